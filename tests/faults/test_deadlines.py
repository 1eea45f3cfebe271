"""Storage that does not answer: every operation ends all the same, with an errno, and nobody else has to wait.

Once with a frozen file system, where writers wait in the kernel and hear no signal, and once with system calls that
strace lets take very long. `--operation-timeout` is short here, so that the tests are.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness.bounded import Child, attempt
from harness.commands import append, opened, run, wait_until, write_all
from harness.damage import assert_undamaged
from harness.loopfs import LoopFilesystem
from harness.mount import Mount
from harness.repository import MountedRepository
from harness.storage import Storage, digest_of
from harness.strace import Strace, delay
from harness.tolerance import forgive_refusals, refusals
from harness.workload import content

#: Seconds: the deadline of each operation, and how much later a client may hear of it on a busy machine.
DEADLINE = 2
SLACK = 4

#: Longer than anything here waits.
FOREVER = 60

FSYNC = ("fsync", "fdatasync")
LAYER = content("layer", 100_000)
OTHER = content("other layer", 100_000)

#: What a client is told when storage did not answer.
TOO_LATE = {"ETIMEDOUT", "EIO"}


class Stuck:
    """A mount with a short deadline, and a repository with two layers and an upload."""

    def __init__(self, mount: Mount, storage: Storage) -> None:
        self.mount = mount
        self.repository = MountedRepository(mount, storage, "app")
        self.upload = self.repository.upload("begun")
        # The kernel lets one at a time change a directory, so whoever is not to wait for others has his own.
        self.others = [MountedRepository(mount, storage, f"other/{number}") for number in range(12)]

    @classmethod
    def prepare(cls, storage: Storage) -> None:
        storage.put_layer("read/only", LAYER)
        storage.put_layer("read/only", OTHER)
        for name in ("app", *(f"other/{number}" for number in range(12))):
            storage.make_repository(name)

    def assert_others_are_served(self, data: bytes = LAYER) -> None:
        """Reading and listing take no longer than otherwise."""
        layers = self.mount.path / "read/only/_layers"
        for _ in range(5):
            assert attempt((layers / digest_of(data)).read_bytes, seconds=1.5).value == data
            assert attempt(os.listdir, layers, seconds=1.5).is_ok

    def assert_well(self) -> None:
        """What could not be done can be done now."""
        data = content("afterwards", 50_000)
        again = attempt(_write_synced, self.repository.upload("afterwards"), data, seconds=10)
        assert again.name == "ok"
        assert attempt(self.repository.commit, "afterwards", digest_of(data), seconds=10).is_ok
        assert attempt(self.repository.layer(digest_of(data)).read_bytes).value == data
        self.assert_others_are_served()
        assert_undamaged(self.repository.storage)
        assert self.mount.is_alive


def _write_synced(path: Path, data: bytes) -> None:
    with opened(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND) as descriptor:
        write_all(descriptor, data)
        os.fsync(descriptor)


@pytest.fixture
def stuck(storage: Storage, mounts: Callable[..., Mount]) -> Iterator[Stuck]:
    """On an ordinary file system."""
    Stuck.prepare(storage)
    mount = mounts(storage, "--operation-timeout", str(DEADLINE))
    yield Stuck(mount, storage)
    forgive_refusals(mount)


@pytest.fixture
def distant(storage: Storage, mounts: Callable[..., Mount], tmp_path: Path) -> Iterator[Stuck]:
    """On a file system where the kernel has to ask for every name, as on a network: another FUSE mount."""
    Stuck.prepare(storage)
    behind = tmp_path / "behind"
    behind.mkdir()
    run("bindfs", storage.root, behind)
    mount = mounts(behind, "--operation-timeout", str(DEADLINE))
    yield Stuck(mount, storage)
    forgive_refusals(mount)
    mount.stop()
    run("fusermount3", "-u", "-z", behind)


@pytest.fixture(params=["ext4", "xfs"])
def freezable(request: pytest.FixtureRequest, tmp_path: Path, watchdog: None) -> Iterator[tuple[LoopFilesystem, Stuck]]:
    """On a file system of its own, which is thawed before anybody waits for the daemon's end."""
    with LoopFilesystem(tmp_path / "disk", request.param) as disk:
        storage = Storage.create(disk.path / "registry")
        Stuck.prepare(storage)
        mount = Mount(storage.root, tmp_path / "mnt", "--operation-timeout", str(DEADLINE))
        try:
            yield disk, Stuck(mount.start(), storage)
            forgive_refusals(mount)
            mount.check_log()
        finally:
            disk.thaw()
            mount.clean_up()


def test_a_frozen_file_system(freezable: tuple[LoopFilesystem, Stuck]) -> None:
    """Writers are told in time, more of them than there are threads; readers notice nothing; thawed, all goes on."""
    disk, stuck = freezable
    append(stuck.upload, b"begun")
    stuck.assert_others_are_served()
    disk.freeze()
    writers = [Child(_write_synced, other.upload("new"), LAYER) for other in stuck.others]
    writers.append(Child(append, stuck.upload, b" and continued"))
    time.sleep(0.3)  # until they are in the middle of it
    stuck.assert_others_are_served()
    for writer in writers:
        assert writer.wait(2 * DEADLINE + SLACK).name in TOO_LATE | {"EBUSY"}
    commit = Child(stuck.repository.commit, "begun", digest_of(b"begun"))
    stuck.assert_others_are_served()
    assert commit.wait(DEADLINE + SLACK).name in TOO_LATE | {"EBUSY", "EBADMSG"}
    disk.thaw()
    stuck.assert_well()
    for other in stuck.others:
        assert attempt(_write_synced, other.upload("again"), LAYER).is_ok
    assert attempt(_bytes_of, stuck).value in (b"begun", b"begun and continued")


def _bytes_of(stuck: Stuck) -> bytes:
    """Of the upload, or of the layer that a late commit has made of it."""
    layer = stuck.repository.layer(digest_of(b"begun"))
    return layer.read_bytes() if layer.exists() else stuck.upload.read_bytes()


def test_an_fsync_that_takes_for_ever(stuck: Stuck) -> None:
    """Its client gets an errno after the deadline and a line in the log says so; then the same command succeeds."""
    with delay(stuck.mount.process.pid, FSYNC, FOREVER):
        client = Child(_write_synced, stuck.upload, LAYER)
        time.sleep(0.3)  # until it is in the middle of it
        stuck.assert_others_are_served()
        outcome = client.wait(2 * DEADLINE + SLACK)
    assert outcome.name in TOO_LATE
    assert outcome.seconds >= DEADLINE * 0.9
    assert any(outcome.name in line for line in refusals(stuck.mount))
    assert attempt(run, "cp", "/bin/true", stuck.upload, seconds=10).is_ok
    stuck.assert_well()


@pytest.mark.parametrize("calls", [("openat2",), ("pread64", "preadv", "preadv2"), ("openat",)])
def test_reads_that_take_for_ever(distant: Stuck, calls: tuple[str, ...]) -> None:
    """Whoever looks or reads is told after the deadline too, and what was asked for is there when storage answers."""
    stuck = distant
    with delay(stuck.mount.process.pid, calls, 3 * DEADLINE):
        clients = [
            Child((stuck.mount.path / "read/only/_layers" / digest_of(OTHER)).read_bytes),
            Child(os.listdir, stuck.repository.path / "_uploads"),
            Child(os.stat, stuck.mount.path / "nowhere"),
        ]
        for client in clients:
            assert client.wait(4 * DEADLINE + SLACK).name in TOO_LATE | {"ok", "ENOENT"}
    stuck.assert_well()
    stuck.assert_others_are_served(OTHER)


#: Calls that wait for the disk; not those that say they will not (preadv2 with RWF_NOWAIT), nor close.
BLOCKING = (
    *("openat", "openat2", "fstat", "newfstatat", "statx", "getdents64", "pread64", "pwritev2", "pwritev", "pwrite64"),
    *("fsync", "fdatasync", "ftruncate", "renameat", "renameat2", "mkdirat", "unlinkat", "copy_file_range"),
)


def test_the_first_thread_never_asks_the_disk(stuck: Stuck) -> None:
    """All users wait for the thread that answers the kernel, so no call that may wait for storage is made in it."""
    with Strace(stuck.mount.process.pid, calls=BLOCKING, all_threads=False) as strace:
        seen = attempt(_a_bit_of_everything, stuck, seconds=20)
    assert seen.is_ok, seen.name
    storage = str(stuck.repository.storage.root)
    asked = [line for line in _without_what_is_in_memory(strace.lines) if storage in line]
    assert not asked, "\n".join(asked)


def _without_what_is_in_memory(lines: list[str]) -> Iterator[str]:
    """Leaves out what `openat2` with RESOLVE_CACHED found, and looking at just that file: neither ever waits."""
    found: set[str] = set()
    for line in lines:
        if "RESOLVE_CACHED" in line:
            found.update(re.findall(r"= (\d+)<", line))
            continue
        on = re.search(r"(?:fstat|newfstatat)\((\d+)<|\"/proc/self/fd/(\d+)\"", line)
        if on is None or (on[1] or on[2]) not in found:
            yield line


def _a_bit_of_everything(stuck: Stuck) -> None:
    data = content("everything", 200_000)
    _write_synced(stuck.upload, data[:1000])
    append(stuck.upload, data[1000:])
    stuck.repository.commit("begun", digest_of(data))
    stuck.repository.layer(digest_of(data)).read_bytes()
    append(stuck.repository.upload("other"), data)
    os.rename(stuck.repository.upload("other"), stuck.repository.upload("renamed"))
    os.truncate(stuck.repository.upload("renamed"), 10)
    os.unlink(stuck.repository.upload("renamed"))
    os.makedirs(stuck.mount.path / "new/repository")
    os.listdir(stuck.repository.path / "_layers")
    os.statvfs(stuck.mount.path)


def test_a_waiting_client_can_be_killed(stuck: Stuck) -> None:
    """After SIGKILL a client is gone at the latest when its operation's deadline is over."""
    with delay(stuck.mount.process.pid, FSYNC, FOREVER):
        client = Child(_write_synced, stuck.upload, LAYER)
        time.sleep(0.5)  # until it is in the middle of it
        client.kill()
        assert client.has_ended_within(2 * DEADLINE + SLACK)
    stuck.assert_well()


def test_sigterm_while_stuck(storage: Storage, tmp_path: Path, watchdog: None) -> None:
    """The daemon ends, unmounted, once what it waits for is over; what cannot be saved is lost, nothing else."""
    _assert_ends(storage, tmp_path, lambda mount: mount.process.terminate(), takes=2 * DEADLINE, within=20)


@pytest.mark.soak
@pytest.mark.timeout(300)
def test_sigterm_while_stuck_for_ever(storage: Storage, tmp_path: Path, watchdog: None) -> None:
    """Also when it is never over: before a service manager loses its patience (90 s)."""
    _assert_ends(storage, tmp_path, lambda mount: mount.process.terminate(), takes=300, within=80)


def test_a_second_sigterm_while_stuck(storage: Storage, tmp_path: Path, watchdog: None) -> None:
    """It means: at once."""

    def twice(mount: Mount) -> None:
        mount.process.terminate()
        time.sleep(0.5)  # two signals at once are one
        mount.process.terminate()

    _assert_ends(storage, tmp_path, twice, takes=FOREVER, within=10)


@pytest.mark.parametrize("umount", [["umount", "-l"], ["fusermount3", "-u", "-z"]])
def test_unmounted_while_stuck(storage: Storage, tmp_path: Path, umount: list[str], watchdog: None) -> None:
    """The mount is gone from the table at once, and the daemon ends once what it waits for is over."""

    def unmount(mount: Mount) -> None:
        subprocess.run([*umount, mount.path], check=True, timeout=10)
        assert not mount.is_mounted

    _assert_ends(storage, tmp_path, unmount, takes=2 * DEADLINE, within=20)


def _has_ended(mount: Mount) -> bool:
    """Whether nothing of it is left but what strace still holds."""
    state = Path(f"/proc/{mount.process.pid}/stat").read_text().rpartition(")")[2].split()[0]
    return state in "ZX"


def _assert_ends(
    storage: Storage, directory: Path, end: Callable[[Mount], None], *, takes: float, within: float
) -> None:
    """The daemon ends while an fsync of an upload is stuck, and leaves storage that can be gone on with."""
    Stuck.prepare(storage)
    mount = Mount(storage.root, directory / "mnt", "--operation-timeout", str(DEADLINE))
    try:
        stuck = Stuck(mount.start(), storage)
        append(stuck.upload, b"saved")
        with delay(mount.process.pid, FSYNC, takes):
            client = Child(append, stuck.upload, b" and perhaps saved")
            time.sleep(0.5)  # until it is in the middle of it
            started = time.monotonic()
            end(mount)
            wait_until(lambda: _has_ended(mount), "the daemon ends", seconds=within)
            assert time.monotonic() - started < within
            client.kill()
            assert client.has_ended_within(SLACK)
        mount.wait_end()
        assert not mount.is_mounted
        mount.remount()
        assert attempt(stuck.upload.read_bytes).value in (b"saved", b"saved and perhaps saved")
        stuck.assert_well()
        mount.process.send_signal(signal.SIGTERM)
        assert mount.wait_end() == 0
        forgive_refusals(mount)
        mount.declare("ERROR", "a second signal")
        mount.check_log()
    finally:
        mount.clean_up()
