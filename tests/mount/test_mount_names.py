"""Names that people, tools and attackers give to files."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from harness.commands import append, run
from harness.repository import MountedRepository
from harness.storage import Storage, digest_of, files
from harness.stores import Store

ALLOWED = [
    "layer.tar.gz",
    "a b  c",
    "-rf",
    "--help",
    "$(touch x)",
    "`id`",
    "'\"\\",
    "*?[a]",
    "..x",
    ".hidden",
    ".layer.tar.X3kQ9z",  # rsync's temporary name
    "...",
    "%2e%2e%2fetc",
    "data",
    "startedat",
    "hashstates",
    "link",
    "_layers",
    "_uploads",
    "name",
    "CON",
    "ünïcödé",
    "層.tar",
    "e\u0301",  # not the same as é
    "é",
    "😀",
    "a:b",
    "sha256:abc",
    "sha256-" + "0" * 64,
    "0" * 64,
    "11111111-1111-4111-8111-11111111111",
    "x" * 255,
    "ü" * 127,
]

REFUSED = [
    b"a\nb",
    b"a\n",
    b"\t",
    b"\x1b[2J",
    b"\x01",
    b"\x7f",
    b"\xc2\x85",  # NEL
    b"\xff",
    b"a\xc3",
    b"\xed\xa0\x80",  # a surrogate
    b"\xc0\xaf",  # an overlong slash
]


@pytest.mark.parametrize("name", ALLOWED)
def test_an_upload_may_be_called_that(repository: MountedRepository, name: str) -> None:
    """Any name that is UTF-8 without control characters is listed, read, renamed and removed as it is."""
    repository.put_upload(name, b"abc")
    assert repository.uploads == [name]
    assert repository.upload(name).read_bytes() == b"abc"
    os.rename(repository.upload(name), repository.upload("other"))
    assert repository.uploads == ["other"]
    os.rename(repository.upload("other"), repository.upload(name))
    append(repository.upload(name), b"def")
    assert repository.upload(name).read_bytes() == b"abcdef"
    os.unlink(repository.upload(name))
    assert repository.storage.uploads(repository.name) == []


@pytest.mark.parametrize("name", REFUSED)
def test_an_upload_must_not_be_called_that(repository: MountedRepository, name: bytes) -> None:
    """Control characters and invalid UTF-8 are EINVAL, for creating and for renaming."""
    directory = os.fsencode(repository.path) + b"/_uploads/"
    with repository.mount.refused(errno.EINVAL):
        os.open(directory + name, os.O_WRONLY | os.O_CREAT)
    repository.put_upload("x", b"abc")
    with repository.mount.refused(errno.EINVAL):
        os.rename(directory + b"x", directory + name)
    assert repository.uploads == ["x"]


@pytest.mark.parametrize("name", REFUSED)
def test_names_are_escaped_in_the_log(repository: MountedRepository, name: bytes) -> None:
    """A name never reaches the log (or `.layerfs/errors`) as raw control characters."""
    with repository.mount.refused(errno.EINVAL):
        os.open(os.fsencode(repository.path) + b"/_uploads/" + name, os.O_WRONLY | os.O_CREAT)
    for text in (repository.mount.log_path.read_bytes(), Path(repository.mount.path, ".layerfs/errors").read_bytes()):
        assert all(byte >= 32 or byte == 10 for byte in text)
        assert b"\x7f" not in text
        text.decode()


@pytest.mark.parametrize("name", REFUSED)
def test_names_that_cannot_be_are_unknown(repository: MountedRepository, name: bytes) -> None:
    """Looking them up, anywhere, is ENOENT (or EINVAL), and the daemon lives."""
    for directory in (b"", b"/_layers", b"/_uploads"):
        with repository.mount.refused(errno.ENOENT, errno.EINVAL):
            os.stat(os.fsencode(repository.path) + directory + b"/" + name)


def test_a_name_that_is_too_long(repository: MountedRepository) -> None:
    """256 bytes are ENAMETOOLONG."""
    with repository.mount.tolerates("ENAMETOOLONG"), pytest.raises(OSError, match="too long") as caught:
        os.open(repository.upload("x" * 256), os.O_WRONLY | os.O_CREAT)
    assert caught.value.errno == errno.ENAMETOOLONG


def test_nothing_is_stored_outside_the_upload(repository: MountedRepository) -> None:
    """Whatever uploads are called, storage has them under UUIDs only."""
    for name in ALLOWED:
        repository.put_upload(name, b"abc")
    assert repository.uploads == sorted(ALLOWED)
    stored = [path.name for path in repository.storage.uploads(repository.name)]
    assert len(stored) == len(ALLOWED)
    assert all(len(name) == 36 and set(name) <= set("0123456789abcdef-") for name in stored)
    for entry in files(repository.storage.repository(repository.name)):
        assert all(character.isalnum() or character in "-_./" for character in entry)


BAD_COMPONENTS = [
    "Upper",
    "a___b",
    "a..b",
    "a._b",
    "-a",
    "a-",
    "a_",
    ".a",
    "_a",
    "a.",
    "a b",
    "a:b",
    "ä",
    "a\nb",
    "a%2fb",
    "_layers2",
]


@pytest.mark.parametrize("name", BAD_COMPONENTS)
def test_mkdir_of_what_is_no_repository_name(repository: MountedRepository, name: str) -> None:
    """EINVAL, at the top and below a repository, and nothing is stored."""
    for parent in (repository.path, repository.mount.path):
        with repository.mount.refused(errno.EINVAL):
            os.mkdir(parent / name)
    assert not (repository.storage.repository(repository.name) / name).exists()
    assert not (repository.storage.v2 / "repositories" / name).exists()


@pytest.mark.parametrize(
    "name", ["a--b", "a---b", "a__b", "a_b", "a.b", "a-b", "0", "z9", "blobs", "manifests", "uploads"]
)
def test_mkdir_of_odd_but_valid_names(repository: MountedRepository, name: str) -> None:
    """The whole strict grammar may be created."""
    os.mkdir(repository.path / name)
    assert {"_layers", "_uploads"} <= set(os.listdir(repository.path / name))
    if repository.storage.is_local:
        assert (repository.storage.repository(repository.name) / name / "_layers").is_dir()


def test_a_repository_name_of_256_characters(repository: MountedRepository) -> None:
    """255 characters in all are the limit of a repository name."""
    room = 255 - len(repository.name) - 1
    os.mkdir(repository.path / ("a" * room))
    with repository.mount.refused(errno.EINVAL, errno.ENAMETOOLONG):
        os.mkdir(repository.path / ("b" * (room + 1)))


def test_stored_names_that_are_lenient(repository: MountedRepository, payload) -> None:
    """What some registry has stored is read: upper case and odd separators."""
    data = payload(100)
    for name in ("Foo/bar", "a_-b", "x..y"):
        digest = repository.storage.put_layer(f"{repository.name}/{name}", data)
        assert (repository.path / name / "_layers" / digest).read_bytes() == data


def test_stored_names_that_no_registry_writes(mounts, storage: Storage, store: Store, payload) -> None:
    """A directory in storage with a hostile name is not listed, and hides nothing else."""
    digest = storage.put_layer("good", payload(10))
    for name in ("a\nb", ".hidden", "-dash", "_under", "a b", "a:b"):
        storage.make_repository(name)
    if store.name != "azure":
        # Azurite cannot list what XML cannot hold: it answers 500.
        storage.make_repository("\x1b[2J")
    if storage.is_local:
        # A key is UTF-8.
        os.makedirs(os.fsencode(storage.v2 / "repositories") + b"/\xff\xfe/_layers")
    (storage.v2 / "repositories/file").write_text("no repository")
    mount = mounts(storage)
    assert os.listdir(mount.path) == ["good"]
    assert os.listdir(mount.path / "good/_layers") == [digest]


def test_stored_layers_with_hostile_names(repository: MountedRepository, payload) -> None:
    """Names in `_layers` in storage that are no digests are not listed, and hide nothing else."""
    digest = repository.storage.put_layer(repository.name, payload(10))
    algorithm = repository.storage.link(repository.name, digest).parent.parent
    hostile = [algorithm / name for name in ("abc", "\n", "A" * 64, "g" * 64, "0" * 65)]
    if repository.storage.is_local:
        # A key is UTF-8.
        hostile.append(algorithm / os.fsdecode(b"\xff"))
    for place in (*hostile, algorithm.parent / "md5" / ("0" * 32)):
        place.mkdir(parents=True)
        (place / "link").write_text(digest)
    assert repository.layers == [digest]


def test_an_upload_id_that_is_no_uuid(repository: MountedRepository) -> None:
    """Registries take any id that a path can have; such an upload in storage is shown and finished."""
    repository.storage.put_upload(repository.name, b"abc", upload_id="my-upload.1_x")
    assert repository.uploads == ["my-upload.1_x"]
    run("mv", repository.upload("my-upload.1_x"), repository.layer(digest_of(b"abc")))
    repository.assert_stored(b"abc")


def test_two_uploads_that_storage_calls_the_same(repository: MountedRepository, mounts) -> None:
    """When two nodes gave two uploads one name, both are listed under different names and neither is lost."""
    here = repository.storage
    twin = MountedRepository(mounts(here), here, repository.name)
    repository.put_upload("x", b"one")
    first = repository.upload_directory("x")
    os.rename(repository.upload("x"), repository.upload("y"))
    twin.put_upload("x", b"two")
    second = twin.upload_directory("x")
    # Both names are forced to be one by copying the file in which the name is kept, whatever it is called.
    names = [
        path
        for path in second.rglob("*")
        if path.is_file() and path.name not in ("data", "startedat") and b"x" in path.read_bytes()
    ]
    for path in names:
        if path.stat().st_size < 20:
            (first / str(path.relative_to(second))).write_bytes(path.read_bytes())
    third = MountedRepository(mounts(here), here, repository.name)
    assert len(third.uploads) == 2
    assert sorted(third.upload(name).read_bytes() for name in third.uploads) == [b"one", b"two"]
