"""The daemon is killed at every system call that changes storage: what was there stays, and doing it again succeeds.

First the thing is done once and watched, which gives the list of calls; then it is done once for each of them, with
SIGKILL in place of that call, on a fresh repository. Seen to fail: `test_writing_in_place_is_found`, with a daemon that
writes links under their final name.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import pytest
from harness.bounded import attempt
from harness.damage import damage
from harness.mount import Mount
from harness.phases import DONE_ALREADY, PHASES, Phase
from harness.planted import plant
from harness.repository import MountedRepository
from harness.storage import Storage
from harness.strace import Call, kill_at, record
from harness.tolerance import forgive_refusals

#: Calls tried per phase where there is little time. Which ones changes with the seed below.
SAMPLE = 3

BY_NAME = {phase.name: phase for phase in PHASES}


@dataclass
class Sweep:
    """What came of one phase."""

    killed: int = 0
    survived: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


class Laboratory:
    """A storage and a mount for one phase, with a fresh repository for each try."""

    def __init__(self, phase: Phase, directory: Path) -> None:
        self.phase = phase
        self.storage = Storage.create(directory / "storage")
        self.mount = Mount(self.storage.root, directory / "mnt", *phase.options)
        self._count = 0

    def __enter__(self) -> Self:
        self.mount.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.mount.clean_up()

    def repository(self) -> MountedRepository:
        """A new one, prepared."""
        self._count += 1
        repository = MountedRepository(self.mount, self.storage, f"{self.phase.name}/{self._count}")
        self.storage.make_repository(repository.name)
        prepared = attempt(self.phase.prepare, repository)
        assert prepared.is_ok, f"cannot prepare {self.phase.name}: {prepared.name}"
        return repository

    def calls(self) -> list[Call]:
        """The system calls of the phase. Its second run is the typical one."""
        assert attempt(self.phase.act, self.repository()).is_ok
        repository = self.repository()
        with record(self.mount.process.pid) as strace:
            done = attempt(self.phase.act, repository)
            assert done.is_ok, done.name
            time.sleep(0.2)  # what is done after the answer (RELEASE) belongs to it
        assert attempt(self.phase.undone, repository).value is None
        return strace.calls

    def problems(self, repository: MountedRepository) -> list[str]:
        """What is wrong after a crash or an error, and what goes wrong when it is done again."""
        found = damage(self.storage) if not self._is_damaged_on_purpose(repository) else []
        for check in (self.phase.wrong, self._again, self.phase.unfinished or self.phase.undone):
            outcome = attempt(check, repository)
            if outcome.value or not outcome.is_ok:
                found.append(f"{check.__name__}: {outcome.value or outcome.name}")
        return found + damage(self.storage)

    def _again(self, repository: MountedRepository) -> str | None:
        outcome = attempt(self.phase.act, repository)
        if outcome.is_ok or outcome.name == DONE_ALREADY.get(self.phase.name):
            return None
        return f"doing it again gives {outcome.name}"

    def _is_damaged_on_purpose(self, repository: MountedRepository) -> bool:
        return self.phase.name == "commit-over-damage"


def sweep(phase: Phase, directory: Path, sample: int | None) -> Sweep:
    """Dies at each call, or at a sample of them."""
    result = Sweep()
    with Laboratory(phase, directory) as laboratory:
        calls = [call for call in laboratory.calls() if call.is_reachable]
        assert calls, "no call that changes storage was seen"
        if sample is not None:
            calls = random.Random(f"{phase.name} 1").sample(calls, min(sample, len(calls)))
        for call in calls:
            _die_at(call, laboratory, result)
        forgive_refusals(laboratory.mount)
        laboratory.mount.check_log()
    return result


def _die_at(call: Call, laboratory: Laboratory, result: Sweep) -> None:
    mount = laboratory.mount
    repository = laboratory.repository()
    with kill_at(mount.process.pid, call):
        outcome = attempt(laboratory.phase.act, repository, seconds=20)
        has_died = _dies_within(mount, 0.5 if outcome.is_ok else 5)
    if has_died:
        result.killed += 1
        mount.remount()
    else:
        result.survived.append(str(call))
    result.problems += [f"killed at {call}: {problem}" for problem in laboratory.problems(repository)]


def _dies_within(mount: Mount, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while mount.is_alive and time.monotonic() < deadline:
        time.sleep(0.01)  # polling interval
    return not mount.is_alive


def _assert_right(result: Sweep, least: float) -> None:
    assert not result.problems, "\n".join(result.problems)
    total = result.killed + len(result.survived)
    assert result.killed >= least * total, f"only {result.killed} of {total} calls were reached: {result.survived}"


@pytest.mark.parametrize("name", ["upload", "append", "commit", "commit-sha512", "create-by-digest", "rename"])
def test_killed_at_some_calls(name: str, tmp_path: Path, watchdog: None) -> None:
    """A few of its calls, always the same ones."""
    _assert_right(sweep(BY_NAME[name], tmp_path, SAMPLE), 0.5)


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", BY_NAME)
def test_killed_at_every_call(name: str, tmp_path: Path, watchdog: None) -> None:
    """Each of its calls, as far as strace can tell them apart."""
    _assert_right(sweep(BY_NAME[name], tmp_path, None), 0.8)


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_writing_in_place_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, watchdog: None) -> None:
    """A daemon that writes links and blobs under their final name leaves half of one: the check can fail."""
    plant("written in place", tmp_path / "planted", monkeypatch)
    assert sweep(BY_NAME["commit"], tmp_path, None).problems != []
