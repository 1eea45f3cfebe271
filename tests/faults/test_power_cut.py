"""The power goes at a random moment: whatever was acknowledged is there afterwards, and nothing half-done is visible.

Storage is on a file system of its own, which is shut down without writing its journal while clients upload and commit.
What the clients were told is in a journal on another disk. Seen to fail: `test_a_daemon_without_fsync_is_found` runs
the same check on a daemon whose fsync does nothing.
"""

from __future__ import annotations

import os
import random
import time
from pathlib import Path
from typing import Self

import pytest
from harness.bounded import attempt
from harness.commands import append, opened, wait_until, write_all
from harness.damage import damage, wrong_layers
from harness.loopfs import LoopFilesystem
from harness.mount import Mount
from harness.planted import plant, unplant
from harness.repository import MountedRepository
from harness.storage import Storage, digest_of
from harness.tolerance import forgive_refusals
from harness.workload import Journal, broken_promises, content, read_journal, start_client

CLIENTS = 3

#: Another moment in every run; a failing test shows the seed.
SEED = int(os.environ.get("LAYERFS_SEED") or time.time_ns() % 1_000_000)


class Machine:
    """Storage on a disk of its own, a mount of it, and what became of each power cut."""

    def __init__(self, disk: LoopFilesystem, directory: Path) -> None:
        self.disk = disk
        self.storage = Storage.create(disk.path / "registry")
        os.sync()
        self.acknowledged = 0
        self._directory = directory
        self.mount = Mount(self.storage.root, directory / "mnt")

    def __enter__(self) -> Self:
        self.mount.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.mount.clean_up()

    def cut(self, number: int, dice: random.Random) -> list[str]:
        """Clients work, the power goes, the machine starts again: what is wrong then."""
        repository = f"cut/{number}"
        (self.mount.path / repository).mkdir(parents=True)
        journal = self._directory / f"journal-{number}"
        clients = [
            start_client(self.mount.path / repository, f"{SEED}-{number}-{client}", journal)
            for client in range(CLIENTS)
        ]
        wait_until(lambda: _is_at_work(journal), "the clients are at work", seconds=30)
        time.sleep(dice.uniform(0, 1))  # the moment is what the test is about
        cut_at = time.time()
        self.disk.cut_power()
        for client in clients:
            client.wait(20)
        promised = read_journal(journal)
        self.restore_power()
        self.acknowledged += promised.acknowledged
        return [*_early_failures(promised, cut_at), *self._look_around(repository, promised)]

    def restore_power(self) -> None:
        """The machine starts again, without a mount yet."""
        self.mount.stop()
        forgive_refusals(self.mount)
        self.mount.check_log()
        self.disk.restore_power()
        _age(self.storage.root)

    def _look_around(self, repository: str, promised: Journal) -> list[str]:
        problems = damage(self.storage)
        self.mount.remount()
        for check, *arguments in ((broken_promises, promised.promises), (wrong_layers,)):
            seen = attempt(check, self.mount.path / repository, *arguments, seconds=60)
            problems += seen.value if seen.is_ok else [f"{check.__name__}: {seen.name}"]
        return problems + damage(self.storage)


def _age(root: Path) -> None:
    """As if the machine had started anew since: here it is only the disk that did."""
    before = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) - 60
    for data in root.glob("**/_uploads/*/data"):
        os.utime(data, (before, before))


def _is_at_work(journal: Path) -> bool:
    so_far = read_journal(journal)
    return bool(so_far.failures) or len(so_far.promises) >= 2 * CLIENTS


def _early_failures(promised: Journal, cut_at: float) -> list[str]:
    return [f"before the power went: {event}" for event in promised.failures if event["time"] < cut_at]


def _cut_often(kind: str, times: int, directory: Path) -> int:
    """How much was acknowledged in so many cuts. After twenty of them the disk is a new one, before it is full."""
    print(f"LAYERFS_SEED={SEED}")
    dice = random.Random(SEED)
    acknowledged = 0
    for first in range(0, times, 20):
        place = directory / f"{kind}-{first}"
        with LoopFilesystem(place, kind, mebibytes=2000) as disk, Machine(disk, place) as machine:
            for number in range(first, min(first + 20, times)):
                problems = machine.cut(number, dice)
                assert not problems, f"cut {number}:\n" + "\n".join(problems)
            acknowledged += machine.acknowledged
    print(f"{acknowledged} acknowledged")
    return acknowledged


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_power_cuts(kind: str, tmp_path: Path, watchdog: None) -> None:
    """After each of a few cuts all that was acknowledged is there, right, and can be gone on with."""
    assert _cut_often(kind, 4, tmp_path) >= 10


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_a_hundred_power_cuts(kind: str, tmp_path: Path, watchdog: None) -> None:
    """The same a hundred times."""
    assert _cut_often(kind, 100, tmp_path) >= 500


def test_a_size_that_was_kept_without_its_bytes(tmp_path: Path, watchdog: None) -> None:
    """As ext4 does it where they needed no new block: they read as zeros, and do not count."""
    data = content("cut", 20_000)
    filesystem = LoopFilesystem(tmp_path / "disk", mkfs=("-b", "4096"))
    with filesystem as disk, Machine(disk, tmp_path) as machine:
        repository = MountedRepository(machine.mount, machine.storage, "app")
        repository.path.mkdir()
        upload = repository.upload("begun")
        append(upload, data[:5000])
        with pytest.raises(OSError, match="Input/output"), opened(upload, os.O_WRONLY | os.O_APPEND) as descriptor:
            write_all(descriptor, data[5000:8000])
            assert upload.read_bytes() == data[:8000]  # which has them stored
            with opened(disk.path / "other", os.O_WRONLY | os.O_CREAT) as other:
                os.fsync(other)  # which has the journal written
            disk.cut_power()
        machine.restore_power()
        (stored,) = machine.storage.root.glob("**/_uploads/*/data")
        assert stored.read_bytes() == data[:5000] + bytes(3000)
        machine.mount.remount()
        assert upload.stat().st_size == 5000
        append(upload, data[5000:])
        repository.commit("begun", digest_of(data))
        repository.assert_stored(data)


def test_a_daemon_without_fsync_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, watchdog: None) -> None:
    """With fsync doing nothing the check finds what was lost: it can fail."""
    plant("no fsync", tmp_path / "planted", monkeypatch)
    with LoopFilesystem(tmp_path / "disk") as disk, Machine(disk, tmp_path) as machine:
        unplant(monkeypatch)
        assert machine.cut(0, random.Random(SEED)) != []
