"""Every system call that changes storage fails once, with EIO and with ENOSPC: no client is told that all is well.

As for the crash points, the calls are found by watching. A client that gets no error was told the truth: what it asked
for is in storage, right and complete. Seen to fail: `test_a_second_fsync_is_found`, with a daemon that asks again after
fsync has failed.
"""

from __future__ import annotations

import os
import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from harness.bounded import Outcome, attempt, timed
from harness.commands import append, write_all
from harness.mount import Mount
from harness.phases import PHASES, Phase
from harness.planted import plant
from harness.repository import MountedRepository
from harness.storage import Storage, digest_of
from harness.strace import Call, fail_always, fail_at
from harness.tolerance import forgive_refusals
from harness.workload import content
from test_crash_points import BY_NAME, Laboratory

ERRORS = ("EIO", "ENOSPC")

#: Calls tried per phase and errno where there is little time.
SAMPLE = 5

#: What may be said to a client whose change failed. EAGAIN and EINTR would make it try again for ever.
HONEST = {"EIO", "ENOSPC", "ok"}

#: A missing hash state costs time, nothing else, so a failure to write one need not be told. The same goes for what
#: merely hurries things along, and for a lease, without which the file is copied.
_DISPENSABLE = re.compile(r"hashstates|^sync_file_range|^fcntl|^f?chown")

#: The call before the fsync that fails: an upload whose `startedat` is gone is none any more, and nobody could be told
#: to try again. After a power cut it may be back, to be finished or cancelled as before.
_UPLOAD_GONE = re.compile(r'"(startedat|layerfs-name)", 0\) = 0$|/_uploads>, "[0-9a-f-]{36}", AT_REMOVEDIR\) = 0$')


class FailingCalls:
    """The phase, done once for each call and errno, on one mount that must survive it all."""

    def __init__(self, laboratory: Laboratory) -> None:
        self._laboratory = laboratory
        self.injected = 0
        self.tried = 0
        self.problems: list[str] = []

    def run(self, sample: int | None) -> None:
        calls = [call for call in self._laboratory.calls() if call.is_reachable and not call.is_answer]
        for error in ERRORS:
            chosen = calls
            if sample is not None:
                chosen = random.Random(f"{self._laboratory.phase.name} {error}").sample(calls, min(sample, len(calls)))
            for call in chosen:
                self._fail(call, error)

    def _fail(self, call: Call, error: str) -> None:
        self.tried += 1
        mount = self._laboratory.mount
        repository = self._laboratory.repository()
        with fail_at(mount.process.pid, call, error) as strace:
            outcome = attempt(self._laboratory.phase.act, repository, seconds=20)
        self.injected += bool(strace.injected)
        found = self._judge(call, outcome, strace.injected, repository)
        if not mount.is_alive:
            found.append(f"the daemon died with {mount.process.poll()}")
            mount.remount()
        found += self._laboratory.problems(repository)
        self.problems += [f"{error} at {call}: {problem}" for problem in found]

    def _judge(self, call: Call, outcome: Outcome, injected: list[str], repository: MountedRepository) -> list[str]:
        if outcome.name not in HONEST:
            return [f"the client got {outcome.name}"]
        if not outcome.is_ok:
            return []
        undone = attempt(self._laboratory.phase.undone, repository)
        found = [f"said to be done, but {undone.value or undone.name}"] if undone.value or not undone.is_ok else []
        if _UPLOAD_GONE.search(call.before):
            return found
        return found + [
            f"said to be durable although it failed: {line}"
            for line in injected
            if "sync(" in line and not _DISPENSABLE.search(line.partition(" ")[2]) and "hashstates" not in call.before
        ]


def fail_each(phase: Phase, directory: Path, sample: int | None) -> FailingCalls:
    with Laboratory(phase, directory) as laboratory:
        result = FailingCalls(laboratory)
        result.run(sample)
        forgive_refusals(laboratory.mount)
        laboratory.mount.check_log()
        laboratory.mount.stop()
    return result


@pytest.mark.parametrize("name", ["upload-fsync", "append", "commit", "create-by-digest", "cancel", "link"])
def test_some_calls_fail(name: str, tmp_path: Path, watchdog: None) -> None:
    """A few of its calls, always the same ones."""
    result = fail_each(BY_NAME[name], tmp_path, SAMPLE)
    assert not result.problems, "\n".join(result.problems)
    assert result.injected >= result.tried / 2


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", BY_NAME)
def test_every_call_fails(name: str, tmp_path: Path, watchdog: None) -> None:
    """Each of its calls, as far as strace can tell them apart."""
    result = fail_each(BY_NAME[name], tmp_path, None)
    assert not result.problems, "\n".join(result.problems)
    assert result.injected >= 0.8 * result.tried


@pytest.mark.parametrize("error", ERRORS)
def test_a_disk_that_always_fails(error: str, tmp_path: Path, watchdog: None) -> None:
    """While fsync never succeeds nothing is acknowledged, nothing is damaged, and afterwards everything works."""
    for phase in PHASES:
        if phase.name not in ("upload-fsync", "commit", "mkdir", "link"):
            continue
        with Laboratory(phase, tmp_path / phase.name) as laboratory:
            repository = laboratory.repository()
            with fail_always(laboratory.mount.process.pid, ("fsync", "fdatasync"), error) as strace:
                assert attempt(phase.act, repository, seconds=20).name == error
                # Asking again does not help: what the kernel could not write is lost.
                assert attempt(phase.act, repository, seconds=20).name == error
            assert strace.injected
            assert not (found := laboratory.problems(repository)), f"{phase.name}: {found}"
            assert laboratory.mount.is_alive
            forgive_refusals(laboratory.mount)
            laboratory.mount.check_log()


def test_fsync_has_failed_for_good(storage: Storage, mounts: Callable[..., Mount]) -> None:
    """After one failed fsync no later one on this descriptor succeeds, whatever the disk says by then."""
    mount = mounts(storage)
    repository = MountedRepository(mount, storage, "app")
    storage.make_repository("app")
    repository.put_upload("layer", b"saved")
    with fail_always(mount.process.pid, ("fsync", "fdatasync"), "EIO") as strace:
        seen = attempt(_fsync_again_and_again, repository.upload("layer"), strace.let_go, seconds=30).value
    assert seen[0] == "EIO"
    assert "ok" not in seen[:3], seen
    data = attempt(repository.upload("layer").read_bytes).value
    assert data.startswith(b"saved")
    assert attempt(append, repository.upload("layer"), b"!").is_ok
    assert attempt(repository.commit, "layer", digest_of(data + b"!")).is_ok
    repository.assert_stored(data + b"!")
    forgive_refusals(mount)


def _fsync_again_and_again(path: Path, heal: Callable[[], None]) -> list[str]:
    """The disk is broken for the first fsync only."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
    write_all(descriptor, b" and lost")
    seen = [timed(os.fsync, descriptor).name]
    heal()
    seen += [timed(os.fsync, descriptor).name, timed(os.fsync, descriptor).name]
    return [*seen, timed(os.close, descriptor).name]


@pytest.mark.parametrize("error", ["EIO", "ENOMEM", "EMFILE"])
def test_reading_fails(error: str, storage: Storage, mounts: Callable[..., Mount]) -> None:
    """When storage cannot be read the reader is told: never fewer bytes, never others; then all is as before."""
    layers = [content(f"layer {number}", 2_000_000) for number in range(3)]
    for data in layers:
        storage.put_layer("app", data)
    mount = mounts(storage)
    paths = [mount.path / "app/_layers" / digest_of(data) for data in layers]
    assert attempt(_first_bytes, paths[0]).is_ok
    with fail_always(mount.process.pid, ("openat2", "pread64", "preadv", "preadv2"), error) as strace:
        seen = [attempt(path.read_bytes) for path in paths]
    assert strace.injected
    assert {outcome.name for outcome in seen} <= {"EIO", "EMFILE"}
    assert [attempt(path.read_bytes).value == data for path, data in zip(paths, layers, strict=True)] == [True] * 3
    forgive_refusals(mount)


@pytest.mark.parametrize("name", ["append", "commit", "link"])
def test_asking_fails(name: str, tmp_path: Path, watchdog: None) -> None:
    """When storage does not even say how large a file is the client is told, and the log has a reason, no traceback."""
    phase = BY_NAME[name]
    with Laboratory(phase, tmp_path) as laboratory:
        repository = laboratory.repository()
        with fail_always(laboratory.mount.process.pid, ("fstat", "newfstatat", "statx"), "EIO") as strace:
            outcome = attempt(phase.act, repository, seconds=20)
        assert strace.injected
        assert outcome.name == "EIO"
        found = laboratory.problems(repository)
        assert not found, "\n".join(found)
        forgive_refusals(laboratory.mount)
        laboratory.mount.check_log()


def _first_bytes(path: Path) -> bytes:
    with path.open("rb", buffering=0) as file:
        return file.read(10)


def test_a_second_fsync_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, watchdog: None) -> None:
    """A daemon that calls fsync again after it failed, and believes it, is found: the check can fail."""
    plant("fsync again", tmp_path / "planted", monkeypatch)
    phase = BY_NAME["upload-fsync"]
    with Laboratory(phase, tmp_path) as laboratory:
        result = FailingCalls(laboratory)
        for call in laboratory.calls():
            if call.name == "fsync" and "/data>" in call.text:
                result._fail(call, "EIO")
    assert any("said to be durable" in problem for problem in result.problems)
