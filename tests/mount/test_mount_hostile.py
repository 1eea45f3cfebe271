"""Storage as an enemy would leave it: nothing hangs, nothing escapes, nothing wrong is shown."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from harness.commands import append, run
from harness.repository import MountedRepository
from harness.sha256 import hash_state
from harness.storage import STARTED_AT, Storage, digest_of
from harness.stored_path import StoredPath

SECRET_TEXT = b"a file outside of the storage"
UPLOAD = "11111111-1111-4111-8111-111111111111"


def _fifo(path: Path, _outside: Path) -> None:
    os.mkfifo(path)


def _symlink(path: Path, outside: Path) -> None:
    path.symlink_to(outside)


def _symlink_to_itself(path: Path, _outside: Path) -> None:
    path.symlink_to(path.name)


def _device(path: Path, _outside: Path) -> None:
    os.mknod(path, 0o666 | 0o020000, os.makedev(1, 5))  # /dev/zero: endless


def _directory(path: Path, _outside: Path) -> None:
    path.mkdir()


def _socket(path: Path, _outside: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        directory = os.open(path.parent, os.O_PATH)  # the path may be longer than a socket's address
        try:
            sock.bind(f"/proc/self/fd/{directory}/{path.name}")
        finally:
            os.close(directory)


def _huge(path: Path, _outside: Path) -> None:
    path.write_bytes(b"sha256:" + b"a" * 10_000_000)


def _empty(path: Path, _outside: Path) -> None:
    path.write_bytes(b"")


KINDS: dict[str, Callable[[Path, Path], None]] = {
    "fifo": _fifo,
    "symlink": _symlink,
    "loop": _symlink_to_itself,
    "device": _device,
    "directory": _directory,
    "socket": _socket,
    "huge": _huge,
    "empty": _empty,
}


IN_A_STORE: dict[str, Callable[[StoredPath], None]] = {
    "directory": lambda path: (path / "file").write_bytes(b"sha256:"),
    "huge": lambda path: path.write_bytes(b"sha256:" + b"a" * 10_000_000),
    "empty": lambda path: path.write_bytes(b""),
}

_REASON = "object stores have no FIFOs, links, devices and sockets"


def kinds(*names: str) -> list[object]:
    """These kinds, those that object stores do not have only on this machine."""
    marks = {name: [] if name in IN_A_STORE else [pytest.mark.local(_REASON)] for name in names}
    return [pytest.param(name, marks=marks[name]) for name in names]


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A file that must never be seen through the mount."""
    path = tmp_path / "outside"
    path.write_bytes(SECRET_TEXT)
    return path


def replace(path: Path | StoredPath, kind: str, outside: Path) -> None:
    """Puts something else where a file is."""
    if isinstance(path, StoredPath):
        path.unlink()
        IN_A_STORE[kind](path)
        return
    path.unlink()
    KINDS[kind](path, outside)


def ends(*argv: object) -> bytes:
    """What a command prints; it must end soon, however it ends."""
    result = subprocess.run([str(argument) for argument in argv], capture_output=True, timeout=25, check=False)
    assert SECRET_TEXT not in result.stdout
    return result.stdout


def assert_bounded(repository: MountedRepository) -> None:
    """Walking, reading and stat'ing the whole repository ends, and nothing from outside is shown."""
    with repository.mount.tolerates("EIO", "ENOENT", "EINVAL", "EACCES"):
        ends("find", repository.path, "-ls")
        for folder in ("_layers", "_uploads"):
            for name in os.listdir(repository.path / folder):
                ends("head", "-c", "20000000", repository.path / folder / name)
    repository.mount.declare("WARNING")


@pytest.mark.parametrize("kind", kinds(*KINDS))
def test_in_place_of_a_link(repository: MountedRepository, outside: Path, payload, kind: str) -> None:
    """A link that is no link file is a missing layer; its neighbours are as ever."""
    good, bad = (repository.storage.put_layer(repository.name, payload(100)) for _ in range(2))
    replace(repository.storage.link(repository.name, bad), kind, outside)
    with repository.mount.refused(errno.ENOENT, errno.EIO):
        os.stat(repository.layer(bad))
    with repository.mount.tolerates("EIO"):
        assert repository.layers == [good]
    assert_bounded(repository)


@pytest.mark.local("object stores have no links")
def test_a_symlink_to_a_good_link(repository: MountedRepository, payload) -> None:
    """Symlinks in storage are not followed, even where they lead to the right place."""
    digest = repository.storage.put_layer(repository.name, payload(100))
    link = repository.storage.link(repository.name, digest)
    link.rename(link.with_name("real"))
    link.symlink_to("real")
    with repository.mount.refused(errno.ENOENT, errno.EIO):
        os.stat(repository.layer(digest))
    assert_bounded(repository)


@pytest.mark.parametrize("kind", kinds(*(kind for kind in KINDS if kind not in ("huge", "empty"))))
def test_in_place_of_a_blob(repository: MountedRepository, outside: Path, payload, kind: str) -> None:
    """A blob that is no file is a missing layer."""
    good, bad = (repository.storage.put_layer(repository.name, payload(100)) for _ in range(2))
    replace(repository.storage.blob(bad), kind, outside)
    with repository.mount.refused(errno.ENOENT, errno.EIO):
        os.stat(repository.layer(bad))
    with repository.mount.tolerates("EIO"):
        assert repository.layers == [good]
    assert_bounded(repository)


@pytest.mark.parametrize("kind", kinds("fifo", "symlink", "device", "directory"))
def test_a_blob_that_is_replaced_after_it_was_seen(
    repository: MountedRepository, outside: Path, payload, kind: str
) -> None:
    """A cached size is no reason to open what is no file any more."""
    digest = repository.storage.put_layer(repository.name, payload(500_000))
    assert os.stat(repository.layer(digest)).st_size == 500_000
    replace(repository.storage.blob(digest), kind, outside)
    with repository.mount.tolerates("EIO", "ENOENT"):
        assert SECRET_TEXT not in ends("cat", repository.layer(digest))
    repository.mount.declare("WARNING")


@pytest.mark.parametrize("kind", kinds(*KINDS))
def test_in_place_of_startedat(repository: MountedRepository, outside: Path, kind: str) -> None:
    """An upload whose `startedat` is no time does not hang anybody, nor hide the others."""
    repository.storage.put_upload(repository.name, b"good", upload_id="22222222-2222-4222-8222-222222222222")
    repository.storage.put_upload(repository.name, b"abc", upload_id=UPLOAD)
    replace(repository.storage.upload(repository.name, UPLOAD) / "startedat", kind, outside)
    with repository.mount.tolerates("EIO"):
        assert "22222222-2222-4222-8222-222222222222" in repository.uploads
    assert_bounded(repository)


@pytest.mark.parametrize("kind", kinds(*(kind for kind in KINDS if kind not in ("huge", "empty"))))
def test_in_place_of_the_data_of_an_upload(repository: MountedRepository, outside: Path, kind: str) -> None:
    """Data that is no file is neither read nor written, whatever it leads to."""
    repository.storage.put_upload(repository.name, b"abc", upload_id=UPLOAD)
    replace(repository.storage.upload(repository.name, UPLOAD) / "data", kind, outside)
    assert_bounded(repository)
    with repository.mount.tolerates("EIO", "ENOENT", "EBADMSG", "EINVAL", "EBUSY"):
        with suppress(OSError):
            append(repository.upload(UPLOAD), b"written through")
        with suppress(OSError):
            os.truncate(repository.upload(UPLOAD), 0)
        with suppress(OSError):
            repository.commit(UPLOAD, digest_of(SECRET_TEXT))
    assert outside.read_bytes() == SECRET_TEXT
    assert repository.layers == []
    repository.mount.declare("WARNING")


@pytest.mark.parametrize("kind", kinds(*KINDS))
def test_in_place_of_a_hash_state(repository: MountedRepository, outside: Path, kind: str) -> None:
    """A state that is none is ignored: the upload is continued and committed."""
    repository.storage.put_upload(repository.name, b"abc", upload_id=UPLOAD, states={"3": hash_state(b"abc")})
    replace(repository.storage.upload(repository.name, UPLOAD) / "hashstates/sha256/3", kind, outside)
    append(repository.upload(UPLOAD), b"def")
    repository.mount.declare("WARNING")
    repository.commit(UPLOAD, digest_of(b"abcdef"))
    repository.mount.declare("WARNING")
    repository.assert_stored(b"abcdef")
    assert outside.read_bytes() == SECRET_TEXT


@pytest.mark.parametrize("kind", kinds("fifo", "symlink", "device", "socket"))
@pytest.mark.parametrize("folder", ["_layers", "_uploads", "_layers/sha256", "_uploads/hashstates"])
def test_in_place_of_a_directory(repository: MountedRepository, outside: Path, kind: str, folder: str) -> None:
    """What stands where a directory should be makes it empty, and nothing worse."""
    path = repository.storage.repository(repository.name) / folder
    path.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileNotFoundError):
        path.rmdir()
    KINDS[kind](path, outside)
    with repository.mount.tolerates("EIO", "ENOENT", "ENOTDIR"):
        ends("find", repository.path, "-ls")
    repository.mount.declare("WARNING")


@pytest.mark.local("object stores have no links")
def test_symlinked_directories_are_not_followed(mounts, storage: Storage, tmp_path: Path, payload) -> None:
    """A symlink to a directory of repositories, outside or in a circle, is no repository."""
    outside = Storage.create(tmp_path / "other")
    outside.put_layer("secret", payload(10))
    digest = storage.put_layer("good", payload(10))
    repositories = storage.v2 / "repositories"
    (repositories / "outside").symlink_to(outside.v2 / "repositories")
    (repositories / "circle").symlink_to(".")
    (repositories / "good/circle").symlink_to("..")
    (repositories / "good/_layers/sha512").symlink_to(outside.root)
    mount = mounts(storage)
    assert os.listdir(mount.path) == ["good"]
    found = ends("find", mount.path, "-name", "*:*").decode().split()
    assert found == [str(mount.path / "good/_layers" / digest)]
    with mount.refused(errno.ENOENT, errno.EIO):
        os.stat(mount.path / "outside")
    with mount.refused(errno.ENOENT, errno.EIO):
        os.stat(mount.path / "outside/secret/_layers")
    mount.declare("WARNING")


@pytest.mark.local("object stores have no links")
def test_a_symlink_on_the_way_to_new_content(repository: MountedRepository, tmp_path: Path, payload) -> None:
    """An upload is never written through a symlinked `_uploads`."""
    away = tmp_path / "away"
    away.mkdir()
    uploads = repository.storage.repository(repository.name) / "_uploads"
    uploads.symlink_to(away)
    with repository.mount.tolerates("EIO", "ENOENT", "ENOTDIR", "EINVAL", "EPERM", "EACCES"), suppress(OSError):
        append(repository.upload("x"), b"abc")
    repository.mount.declare("WARNING")
    assert list(away.rglob("*")) == []


@pytest.mark.parametrize(
    "content",
    [
        b"../../../../../../../../etc/passwd",
        b"sha256:../../../../../../../../../../etc/passwd",
        b"sha256:" + b"0" * 64 + b"\n",
        b" sha256:" + b"0" * 64,
        b"sha256:" + b"0" * 65,
        b"SHA256:" + b"0" * 64,
        b"sha256:\x00" + b"0" * 63,
        b"sha256:\x1b[2J",
        b"\xff\xfe",
        b"sha1:" + b"0" * 40,
        b"sha256",
        b"s",
    ],
)
def test_link_content(repository: MountedRepository, payload, content: bytes) -> None:
    """A link is exactly a digest, or it does not resolve: ENOENT, not listed.

    Object stores list a link by its name, without reading it, if it is as long as a digest.
    """
    digest = repository.storage.put_layer(repository.name, payload(100))
    repository.storage.put_link(repository.name, digest, content)
    with repository.mount.refused(errno.ENOENT):
        os.stat(repository.layer(digest))
    if repository.storage.is_local or len(content) != len(digest):
        assert repository.layers == []
    repository.mount.declare("WARNING")


@pytest.mark.local("an object is replaced as a whole")
def test_an_empty_link_that_is_just_being_rewritten(mounts, storage: Storage, payload) -> None:
    """A registry 2.8 truncates a link and writes it again: a reader in between still finds the layer."""
    digest = storage.put_layer("r", payload(100))
    repository = MountedRepository(mounts(storage, "--metadata-ttl", "0"), storage, "r")
    link = storage.link("r", digest)
    for cut in (0, 1, 40, 70) * 5:
        with open(link, "w") as file:
            file.write(digest[:cut])
            file.flush()
            rewriting = threading.Timer(0.04, lambda file=file, cut=cut: (file.write(digest[cut:]), file.flush()))
            rewriting.start()
            assert os.stat(repository.layer(digest)).st_size == 100
            assert repository.layers == [digest]
            rewriting.join()


@pytest.mark.parametrize(
    "text", ["", "yesterday", "2026-13-45T00:00:00Z", "2026-01-01T00:00:00Z\n", "9" * 400, "\x00" * 20]
)
def test_startedat_that_is_no_time(repository: MountedRepository, text: str) -> None:
    """An upload with a time that cannot be read keeps nobody from the others."""
    repository.storage.put_upload(repository.name, b"good", upload_id=UPLOAD)
    bad = repository.storage.put_upload(repository.name, b"bad", started_at=text)
    with repository.mount.tolerates("EIO"):
        assert UPLOAD in repository.uploads
        ends("cat", repository.upload(bad))
        ends("getfattr", "-d", repository.upload(bad))
    repository.mount.declare("WARNING")


@pytest.mark.parametrize("text", [STARTED_AT, "2026-11-23T00:06:39.123456789Z", "2026-11-23T01:06:39+01:00"])
def test_startedat_that_is_a_time(repository: MountedRepository, text: str) -> None:
    """Every RFC 3339 time is one, also with a fraction or an offset."""
    upload_id = repository.storage.put_upload(repository.name, b"abc", started_at=text)
    assert repository.uploads == [upload_id]
    repository.commit(upload_id, digest_of(b"abc"))
    repository.assert_stored(b"abc")


def test_a_startedat_without_data(repository: MountedRepository) -> None:
    """What a crash between `startedat` and `data` leaves is an upload of size 0 that goes on."""
    upload_id = repository.storage.put_upload(repository.name, None)
    assert repository.uploads == [upload_id]
    assert os.stat(repository.upload(upload_id)).st_size == 0
    append(repository.upload(upload_id), b"abc")
    repository.commit(upload_id, digest_of(b"abc"))
    repository.assert_stored(b"abc")


def test_left_over_temporary_files(repository: MountedRepository, payload) -> None:
    """`link.<uuid>.tmp` and the like, left by a crashed registry, are not shown and are in nobody's way."""
    digest = repository.storage.put_layer(repository.name, payload(100))
    for path in (repository.storage.link(repository.name, digest), repository.storage.blob(digest)):
        path.with_name(f"{path.name}.0b6a6a8e-0000-4000-8000-000000000000.tmp").write_bytes(b"half")
    assert repository.layers == [digest]
    assert "half" not in run("cat", repository.layer(digest)).stdout


@pytest.mark.local("a directory is renamed; a store that is gone is in test_why")
def test_storage_that_is_taken_away(mounts, storage: Storage, payload, tmp_path: Path) -> None:
    """When the storage vanishes under the mount there are errors, not hangs, and its return heals everything."""
    digest = storage.put_layer("r", payload(1000))
    mount = mounts(storage)
    storage.root.rename(tmp_path / "away")
    with mount.tolerates("EIO", "ENOENT", "EACCES", "ESTALE"):
        for path in ("", "r", f"r/_layers/{digest}"):
            ends("ls", "-l", mount.path / path)
        with suppress(OSError):
            append(mount.path / "r/_uploads/x", b"abc")
    (tmp_path / "away").rename(storage.root)
    mount.declare("WARNING")
    ends("ls", mount.path)
    assert mount.is_alive
