"""TarSums as names of layers on a mount: the registry's first names, of which old storage is full."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from harness.commands import get_xattr, run
from harness.repository import MountedRepository
from harness.storage import Storage, digest_of, digest_of_file, snapshot
from harness.tarsums import LABELS, VECTORS, WRONG, archive, tarsum_of

CONTENT = archive("types.tar")
CANONICAL = digest_of(CONTENT)
TARSUM = tarsum_of("types.tar")
UNKNOWN_VERSION = "tarsum.v2+sha256:" + "0" * 64


@pytest.mark.parametrize("folder", ["_layers", "_uploads"])
@pytest.mark.parametrize("label", LABELS)
def test_mv_to_a_tarsum(repository: MountedRepository, folder: str, label: str) -> None:
    """`mv` to it, into `_layers` or within `_uploads`, makes the upload a layer of both names, which are one file."""
    name = tarsum_of("types.tar", label)
    repository.put_upload("x", CONTENT)
    run("mv", repository.upload("x"), repository.path / folder / name)
    repository.assert_stored(CONTENT, name)
    assert (repository.uploads, repository.layers) == ([], sorted([CANONICAL, name]))
    assert os.stat(repository.layer(name)).st_ino == os.stat(repository.layer(CANONICAL)).st_ino
    assert get_xattr(repository.layer(name), "user.layerfs.digest") == CANONICAL
    assert run("sha256sum", repository.layer(name)).stdout.split()[0] == CANONICAL[7:]


def test_cp_at_a_tarsum(repository: MountedRepository) -> None:
    """A file that is created under its TarSum is a layer when it is closed."""
    run("cp", VECTORS / "types.tar", repository.layer(TARSUM))
    repository.assert_stored(CONTENT, TARSUM)
    assert repository.layers == sorted([CANONICAL, TARSUM])
    assert run("tar", "tf", repository.layer(TARSUM)).stdout
    with repository.mount.tolerates("EEXIST"), pytest.raises(FileExistsError):
        os.open(repository.layer(TARSUM), os.O_CREAT | os.O_EXCL | os.O_WRONLY)


@pytest.mark.parametrize("content", [archive("xattr.tar"), b"no archive at all" * 100])
def test_cp_of_something_else(repository: MountedRepository, tmp_path: Path, content: bytes) -> None:
    """EBADMSG at close, and nothing is left."""
    source = tmp_path / "source"
    source.write_bytes(content)
    with repository.mount.refuses("EBADMSG"):
        result = run("cp", source, repository.layer(TARSUM), check=False)
    assert result.returncode == 1
    assert "Bad message" in result.stderr
    assert (repository.uploads, repository.layers) == ([], [])
    assert not repository.storage.link(repository.name, TARSUM).exists()


@pytest.mark.parametrize("folder", ["_layers", "_uploads"])
@pytest.mark.parametrize(
    ("content", "reason"), [(CONTENT, TARSUM), (b"junk" * 500, "no tar archive"), (CONTENT[:700], "at byte")]
)
def test_a_wrong_tarsum(repository: MountedRepository, folder: str, content: bytes, reason: str) -> None:
    """EBADMSG; upload and storage are unchanged, and the upload says why."""
    repository.put_upload("x", content)
    before = snapshot(repository.storage.repository(repository.name))
    with repository.mount.refused(errno.EBADMSG):
        os.rename(repository.upload("x"), repository.path / folder / WRONG)
    assert snapshot(repository.storage.repository(repository.name)) == before
    assert (repository.uploads, repository.layers) == (["x"], [])
    assert reason in get_xattr(repository.upload("x"), "user.layerfs.error")
    assert repository.upload("x").read_bytes() == content
    repository.commit("x", digest_of(content))


@pytest.mark.parametrize(
    "name",
    [
        UNKNOWN_VERSION,
        "tarsum.v1+sha512:" + "0" * 128,
        "tarsum.v1+sha256:" + "0" * 63,
        "tarsum.v1+sha256:" + "A" * 64,
        "xtarsum.v1+sha256:" + "0" * 64,
        "tarsum.+sha256:" + "0" * 64,
    ],
)
def test_a_name_that_is_no_tarsum(repository: MountedRepository, name: str) -> None:
    """EINVAL in `_layers`, by `mv` and by `cp`; ENOENT to look up; within `_uploads` a name like any other."""
    repository.put_upload("x", CONTENT)
    with repository.mount.refused(errno.EINVAL):
        os.rename(repository.upload("x"), repository.layer(name))
    with repository.mount.refused(errno.EINVAL):
        os.open(repository.layer(name), os.O_CREAT | os.O_WRONLY)
    with repository.mount.refused(errno.ENOENT):
        os.stat(repository.layer(name))
    os.rename(repository.upload("x"), repository.upload(name))
    assert (repository.uploads, repository.layers) == ([name], [])


def test_an_unknown_version_is_said_to_be_one(repository: MountedRepository) -> None:
    """The reason is in the log of errors, apart from that of a malformed name."""
    repository.put_upload("x", CONTENT)
    with repository.mount.refused(errno.EINVAL):
        os.rename(repository.upload("x"), repository.layer(UNKNOWN_VERSION))
    assert f"unsupported tarsum version: {UNKNOWN_VERSION}" in (repository.mount.path / ".layerfs/errors").read_text()


def test_an_upload_cannot_begin_under_a_tarsum(repository: MountedRepository) -> None:
    """EINVAL, as under any name that a layer can have."""
    with repository.mount.refused(errno.EINVAL):
        os.open(repository.upload(TARSUM), os.O_CREAT | os.O_WRONLY)


def test_a_tarsum_among_manifests_is_a_name(repository: MountedRepository) -> None:
    """No manifest has a TarSum: there it names an upload, and finishes none."""
    repository.put_upload("x", CONTENT)
    os.rename(repository.upload("x"), repository.path / "_manifests" / TARSUM)
    assert (repository.uploads, repository.layers) == ([TARSUM], [])


def test_link_of_a_tarsum(repository: MountedRepository) -> None:
    """Linked by it into another repository, the blob has both links there."""
    repository.storage.put_layer(repository.name, CONTENT)
    repository.storage.put_link(repository.name, TARSUM, CANONICAL)
    other = f"{repository.name}/other"
    repository.storage.make_repository(other)
    os.link(repository.layer(TARSUM), repository.path / "other/_layers" / TARSUM)
    for name in (TARSUM, CANONICAL):
        assert repository.storage.link(other, name).read_text() == CANONICAL
        assert (repository.path / "other/_layers" / name).read_bytes() == CONTENT


def test_deleting(mounts, storage: Storage) -> None:
    """`rm` of the TarSum leaves the layer; `rm` of the layer takes all its TarSums along."""
    names = [tarsum_of("types.tar", label) for label in LABELS]
    storage.make_repository("here")
    storage.put_layer("here", CONTENT)
    for name in names:
        storage.put_link("here", name, CANONICAL)
    repository = MountedRepository(mounts(storage, "--allow-delete"), storage, "here")
    os.unlink(repository.layer(names[0]))
    assert repository.layers == sorted([CANONICAL, *names[1:]])
    os.unlink(repository.layer(CANONICAL))
    assert repository.layers == []
    assert not list(storage.repository("here").glob("**/link"))
    assert repository.stored(CANONICAL) == CONTENT


def test_a_tree_of_the_seed_era(mounts, storage: Storage) -> None:
    """What distribution 2.0.0 left: all names are listed, stat and readdir agree, and all content is there."""
    expected: dict[str, bytes] = {}
    for vector in ("types.tar", "xattr.tar", "gnu-tar-b1.tar", "zero-length.tar"):
        content = archive(vector)
        names = [tarsum_of(vector, label) for label in LABELS]
        canonical = storage.put_layer("library/old", content)
        for name in names:
            storage.put_link("library/old", name, canonical)
        expected |= dict.fromkeys([canonical, *names], content)
    ghost = storage.repository("library/old") / "_uploads/f81d4fae-7dec-4d0a-a765-00a0c91e6bf6/hashstates/sha256"
    ghost.mkdir(parents=True)
    (ghost / "0").write_bytes(b"gob" * 52)
    upload = storage.put_upload("library/old", None, states={"0": b"gob" * 52})
    before = snapshot(storage.root)
    repository = MountedRepository(mounts(storage, "--read-only"), storage, "library/old")
    with os.scandir(repository.path / "_layers") as entries:
        listed = {entry.name: entry.inode() for entry in entries}
    assert set(listed) == set(expected)
    for name, content in expected.items():
        seen = os.stat(repository.layer(name))
        assert (seen.st_ino, seen.st_size) == (listed[name], len(content))
        assert repository.layer(name).read_bytes() == content
        assert digest_of_file(repository.layer(name)) == digest_of(content)
    assert len(set(listed.values())) == 4
    assert (repository.uploads, repository.upload(upload).read_bytes()) == ([upload], b"")
    assert snapshot(storage.root) == before


@pytest.mark.parametrize("folder", ["_layers", "_uploads"])
def test_two_archives_of_one_tarsum(repository: MountedRepository, folder: str) -> None:
    """The second is seen under it at once, and the first is still there under its digest."""
    first, second = archive("mtime-x.tar"), archive("mtime-y.tar")
    name = tarsum_of("mtime-x.tar")
    for content in (first, second, first, second):
        repository.put_upload("x", content)
        os.rename(repository.upload("x"), repository.path / folder / name)
        assert repository.layer(name).read_bytes() == content
        assert os.stat(repository.layer(name)).st_ino == os.stat(repository.layer(digest_of(content))).st_ino
    assert repository.layers == sorted([digest_of(first), digest_of(second), name])
    assert repository.layer(digest_of(first)).read_bytes() == first
