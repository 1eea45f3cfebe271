"""A disk that is really full, of bytes or of inodes: whoever writes is told so, nobody else notices, and it goes on."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from harness.bounded import attempt
from harness.commands import opened, run, shell, write_all
from harness.damage import assert_undamaged
from harness.loopfs import LoopFilesystem
from harness.mount import Mount
from harness.repository import MountedRepository
from harness.storage import Storage, digest_of
from harness.tolerance import forgive_refusals
from harness.workload import content

MIB = 1 << 20


class SmallDisk:
    """A small file system with a storage, a mount of it, and something that can be removed to make room."""

    def __init__(self, disk: LoopFilesystem, mount: Mount, storage: Storage) -> None:
        self.disk = disk
        self.mount = mount
        self.storage = storage
        storage.make_repository("small")
        self.repository = MountedRepository(mount, storage, "small")
        self.ballast = disk.path / "ballast"

    def layer_is_whole(self, data: bytes) -> bool:
        return attempt(self.repository.layer(digest_of(data)).read_bytes).value == data


@pytest.fixture
def full_of_bytes(tmp_path: Path, watchdog: None) -> Iterator[SmallDisk]:
    """32 MiB, half of them taken by something that can be removed."""
    yield from _small_disk(tmp_path, "-m", "0")


@pytest.fixture
def full_of_inodes(tmp_path: Path, watchdog: None) -> Iterator[SmallDisk]:
    """Room for bytes, but for few files."""
    yield from _small_disk(tmp_path, "-m", "0", "-N", "160")


def _small_disk(directory: Path, *mkfs: str) -> Iterator[SmallDisk]:
    with LoopFilesystem(directory / "small", mebibytes=32, mkfs=mkfs) as disk:
        storage = Storage.create(disk.path / "registry")
        with Mount(storage.root, directory / "mnt") as mount:
            yield SmallDisk(disk, mount, storage)
            assert mount.is_alive
            forgive_refusals(mount)
            mount.check_log()
        assert_undamaged(storage)


def _use_up_bytes(small: SmallDisk) -> None:
    """Not one block is left."""
    with opened(small.disk.path / "rest", os.O_WRONLY | os.O_CREAT) as rest:
        for size in (MIB, 4096, 1):
            with suppress(OSError):
                while True:
                    os.write(rest, bytes(size))


def _use_up_inodes(small: SmallDisk) -> None:
    """Not one more file can be made."""
    small.ballast.mkdir()
    try:
        for number in range(100_000):
            (small.ballast / str(number)).touch()
    except OSError as error:
        assert error.errno == errno.ENOSPC


def _upload(path: Path, data: bytes) -> None:
    with opened(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND) as descriptor:
        for start in range(0, len(data), 65536):
            write_all(descriptor, data[start : start + 65536])
        os.fsync(descriptor)


def test_an_upload_that_does_not_fit(full_of_bytes: SmallDisk) -> None:
    """ENOSPC; the size says what is there; others go on; with room it is continued by `tail -c +N >>` and committed."""
    small = full_of_bytes
    small.ballast.write_bytes(bytes(14 * MIB))
    before, data = content("before", 3 * MIB), content("large", 20 * MIB)
    small.repository.put_layer(before)
    upload = small.repository.upload("large")
    outcome = attempt(_upload, upload, data, seconds=30)
    assert outcome.name == "ENOSPC"

    size = attempt(os.stat, upload).value.st_size
    assert 0 < size < len(data)
    assert attempt(upload.read_bytes).value == data[:size]
    assert small.layer_is_whole(before)
    assert set(attempt(os.listdir, small.repository.path / "_uploads").value) == {"large"}
    assert attempt(os.rename, upload, small.repository.layer(digest_of(data))).name in ("EBADMSG", "ENOSPC")

    small.ballast.unlink()
    source = small.disk.path.parent / "source"
    source.write_bytes(data)
    assert attempt(os.stat, upload).value.st_size == size
    shell('tail -c "+$(($(stat -c %s "$2") + 1))" "$1" >> "$2"', source, upload)
    run("mv", upload, small.repository.layer(digest_of(data)))
    small.repository.assert_stored(data)


def test_a_commit_on_a_full_disk(full_of_bytes: SmallDisk) -> None:
    """Without room even for a link `mv` is ENOSPC or succeeds rightly, and repeated with room it succeeds."""
    small = full_of_bytes
    data = content("commit", 2 * MIB)
    upload = small.repository.put_upload("layer", data)
    _use_up_bytes(small)
    layer = small.repository.layer(digest_of(data))
    first = attempt(os.rename, upload, layer)
    assert first.name in ("ok", "ENOSPC")
    (small.disk.path / "rest").unlink()
    if not first.is_ok:
        run("mv", upload, layer)
    small.repository.assert_stored(data)


def test_beginning_on_a_full_disk(full_of_bytes: SmallDisk) -> None:
    """An upload begun on a full disk is ENOSPC at the latest when it is closed; what there was stays readable."""
    small = full_of_bytes
    before = content("before", MIB)
    small.repository.put_layer(before)
    _use_up_bytes(small)
    for number in range(5):
        assert attempt(_upload, small.repository.upload(f"n{number}"), content("n", 100_000)).name == "ENOSPC"
    assert attempt(os.mkdir, small.mount.path / "another").name in ("ok", "ENOSPC")
    assert small.layer_is_whole(before)
    (small.disk.path / "rest").unlink()
    for number in range(5):
        data = content(f"after {number}", 100_000)
        small.repository.upload(f"n{number}").write_bytes(data)
        small.repository.commit(f"n{number}", digest_of(data))
    small.repository.assert_stored(data)


def test_an_upload_removed_to_make_room(full_of_bytes: SmallDisk) -> None:
    """`rm` of an upload works on a full disk, gives its room back, and another one then fits."""
    small = full_of_bytes
    data = content("large", 10 * MIB)
    small.repository.put_upload("large", data)
    _use_up_bytes(small)
    assert attempt(os.unlink, small.repository.upload("large")).is_ok
    small.repository.put_layer(content("other", 8 * MIB))
    small.repository.assert_stored(content("other", 8 * MIB))


def test_no_inode_is_left(full_of_inodes: SmallDisk) -> None:
    """Neither a new upload nor a commit: ENOSPC. What is being uploaded, and what is there, goes on."""
    small = full_of_inodes
    before, data = content("before", MIB), content("layer", MIB)
    small.repository.put_layer(before)
    upload = small.repository.put_upload("layer", data[:5000])
    _use_up_inodes(small)

    assert attempt(_upload, small.repository.upload("new"), data).name == "ENOSPC"
    assert attempt(os.mkdir, small.mount.path / "new").name == "ENOSPC"
    assert attempt(_upload, upload, data[5000:]).is_ok
    assert attempt(os.rename, upload, small.repository.layer(digest_of(data))).name == "ENOSPC"
    assert small.layer_is_whole(before)
    assert attempt(upload.read_bytes).value in (data, b"")

    run("rm", "-r", small.ballast)
    run("mv", upload, small.repository.layer(digest_of(data)))
    run("mkdir", "-p", small.mount.path / "new")
    _upload(small.repository.upload("new"), data)
    assert small.repository.layer(digest_of(data)).read_bytes() == data
    assert small.repository.uploads == ["new"]
