"""Writers that race with the commit: whoever wins, what is published is what its name says."""

from __future__ import annotations

import errno
import os
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from azure.core.exceptions import AzureError
from botocore.exceptions import ClientError
from harness.commands import opened, write_all
from harness.repository import MountedRepository
from harness.storage import digest_of, digest_of_file
from harness.stored_path import StoredPath

#: What may be said to either side of such a race.
LOST = ("EBUSY", "EBADMSG", "EBADF", "ENOENT", "EPERM", "EIO", "ESTALE")
LOST_CODES = tuple(getattr(errno, name) for name in LOST)


def turns(repository: MountedRepository) -> int:
    """How often it is tried: requests to a store take longer, and leave more time in which to meet."""
    return 25 if repository.storage.is_local else 6


def tolerated(repository: MountedRepository) -> tuple[str, ...]:
    """What may be in the log. Where uploads only grow, changing them is refused besides."""
    return LOST if repository.storage.is_local else (*LOST, "EINVAL")


@contextmanager
def meanwhile(work: Callable[[], None]) -> Iterator[None]:
    """Does `work` again and again while the body runs, whatever it says, or a store says to it."""
    running = threading.Event()
    running.set()

    def repeat() -> None:
        while running.is_set():
            with suppress(OSError, ClientError, AzureError, AssertionError):
                work()

    worker = threading.Thread(target=repeat)
    worker.start()
    try:
        yield
    finally:
        running.clear()
        worker.join()


def commit_if_possible(repository: MountedRepository, name: str, digest: str) -> bool:
    """Whether the commit succeeded; else it said one of the errnos that a race may have."""
    try:
        repository.commit(name, digest)
    except OSError as exc:
        assert exc.errno in LOST_CODES
        return False
    return True


def assert_all_blobs_are_right(repository: MountedRepository) -> None:
    """Every blob that the repository links has the content of its name, in storage and through the mount."""
    for digest in repository.layers:
        assert digest_of_file(repository.storage.blob(digest)) == digest
        assert digest_of_file(repository.layer(digest)) == digest


Target = Path | StoredPath


def _append(path: Target) -> None:
    if isinstance(path, StoredPath):
        path.append(b"damage")
        return
    with opened(path, os.O_WRONLY | os.O_APPEND) as file:
        write_all(file, b"damage")


def _overwrite(path: Target) -> None:
    if isinstance(path, StoredPath):
        path.write_bytes(b"damage" * random.randrange(30_000))
        return
    with opened(path, os.O_WRONLY) as file:
        os.pwrite(file, b"damage", random.randrange(200_000))


def _truncate(path: Target) -> None:
    if isinstance(path, StoredPath):
        path.write_bytes(b"")
        return
    os.truncate(path, random.randrange(200_000))


@pytest.mark.parametrize("damage", [_append, _overwrite, _truncate])
@pytest.mark.parametrize("way", ["through the mount", "in storage"])
def test_changes_while_committing(repository: MountedRepository, payload, damage, way: str) -> None:
    """Somebody opens and changes the upload, through the mount or in storage, just while it is committed."""
    with repository.mount.tolerates(*tolerated(repository)):
        for turn in range(turns(repository)):
            data = payload(200_000)
            upload = repository.put_upload(f"x{turn}", data)
            target = upload if way == "through the mount" else repository.upload_directory(f"x{turn}") / "data"
            with meanwhile(lambda target=target: damage(target)):
                for _ in range(3):
                    if commit_if_possible(repository, f"x{turn}", digest_of(data)):
                        break
            with suppress(FileNotFoundError):
                os.unlink(upload)
        assert_all_blobs_are_right(repository)
    repository.mount.declare("WARNING")


@pytest.mark.parametrize(
    "way",
    ["through the mount", pytest.param("in storage", marks=pytest.mark.local("no object can be open for writing"))],
)
def test_a_handle_that_keeps_writing(repository: MountedRepository, payload, way: str) -> None:
    """Somebody has the upload open all the time, and writes into it before, while and after it is committed."""
    with repository.mount.tolerates(*tolerated(repository)):
        for turn in range(turns(repository)):
            data = payload(100_000)
            upload = repository.put_upload(f"x{turn}", data)
            target = upload if way == "through the mount" else repository.upload_directory(f"x{turn}") / "data"
            descriptor = os.open(target, os.O_RDWR)
            with meanwhile(lambda descriptor=descriptor: os.pwrite(descriptor, b"damage", 50_000)):
                commit_if_possible(repository, f"x{turn}", digest_of(data))
                stored = data[:50_000] + b"damage" + data[50_006:]
                commit_if_possible(repository, f"x{turn}", digest_of(stored))
                assert_all_blobs_are_right(repository)
            with suppress(OSError):
                os.close(descriptor)
            with suppress(FileNotFoundError):
                os.unlink(upload)
        assert_all_blobs_are_right(repository)
    repository.mount.declare("WARNING")


def test_cancelling_while_committing(repository: MountedRepository, payload) -> None:
    """`rm` against `mv`: there is the whole layer or none, and the upload is gone."""
    with repository.mount.tolerates(*tolerated(repository)):
        for turn in range(turns(repository)):
            data = payload(200_000)
            upload = repository.put_upload(f"x{turn}", data)
            with meanwhile(lambda upload=upload: os.unlink(upload)):
                committed = commit_if_possible(repository, f"x{turn}", digest_of(data))
            assert os.path.exists(repository.layer(digest_of(data))) == committed
        assert_all_blobs_are_right(repository)
        assert repository.uploads == []
        assert repository.storage.uploads(repository.name) == []
    repository.mount.declare("WARNING")


def test_committing_twice_at_the_same_time(repository: MountedRepository, payload) -> None:
    """Two `mv` of one upload to its digest: one at least succeeds, and the layer is right."""
    with repository.mount.tolerates(*tolerated(repository)):
        for turn in range(turns(repository)):
            data = payload(100_000)
            repository.put_upload(f"x{turn}", data)
            results: list[bool] = []
            threads = [
                threading.Thread(
                    target=lambda turn=turn, data=data, results=results: results.append(
                        commit_if_possible(repository, f"x{turn}", digest_of(data))
                    )
                )
                for _ in range(3)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert any(results)
            assert repository.stored(digest_of(data)) == data
        assert repository.storage.uploads(repository.name) == []


def test_renaming_while_committing(repository: MountedRepository, payload) -> None:
    """The upload gets another name just while it is committed: it is a layer, or an upload, never lost."""
    with repository.mount.tolerates(*tolerated(repository)):
        for turn in range(turns(repository)):
            data = payload(100_000)
            names = repository.put_upload(f"x{turn}", data), repository.upload(f"y{turn}")
            with meanwhile(lambda names=names: (os.rename(*names), os.rename(*reversed(names)))):
                committed = commit_if_possible(repository, f"x{turn}", digest_of(data))
            left = [name for name in repository.uploads if name.endswith(str(turn)) and len(name) == len(f"x{turn}")]
            assert committed or left
            for name in left:
                assert repository.upload(name).read_bytes() == data
                os.unlink(repository.upload(name))
        assert_all_blobs_are_right(repository)
