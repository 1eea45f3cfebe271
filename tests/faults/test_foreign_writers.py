"""Another process writes the bytes of an upload, in storage, while it is being finished: no layer is ever damaged.

That is what a registry with a PATCH in flight does, and what anybody can do who may write the storage. `mv` succeeds
rightly or fails with an errno that says so, and can be repeated. A blob that was published hashes to its name at once,
after the foreign writer has gone, and a second later. Seen to fail: `test_a_lease_for_everybody_is_found`, with a
daemon that believes to be alone although it is not.
"""

from __future__ import annotations

import mmap
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from harness.bounded import Outcome, attempt
from harness.commands import opened
from harness.damage import damage_of_layers
from harness.mount import Mount
from harness.planted import plant
from harness.repository import MountedRepository
from harness.storage import Storage, digest_of
from harness.tolerance import forgive_refusals
from harness.workload import content

#: What `mv` may say when somebody interferes.
REFUSALS = {"EBUSY", "EBADMSG"}

#: Seconds that opening for writing may have to wait until a lease is given back.
LEASE_WAIT = 10


class ForeignWriter(threading.Thread):
    """Writes to `path` as `write` does, from a random moment on, until it is told to stop. Never fails."""

    def __init__(self, write: Callable[[ForeignWriter], None], path: Path, size: int, dice: random.Random) -> None:
        super().__init__(daemon=True)
        self._write = write
        self.path = path
        self.size = size
        self.dice = dice
        self.is_open = threading.Event()
        self.goes_on = threading.Event()
        self.goes_on.set()
        self.writes = 0

    def run(self) -> None:
        try:
            self._write(self)
        except FileNotFoundError:
            # The upload is finished already: nobody finds its bytes under that name any more.
            pass
        finally:
            self.is_open.set()

    def wait_for_the_moment(self) -> None:
        """Sometimes before the upload is read, sometimes while it is, sometimes when it has its place already."""
        time.sleep(self.dice.uniform(0, 0.06))  # the moment is what the race is about

    def pause(self) -> None:
        time.sleep(self.dice.uniform(0, 0.004))  # the moment is what the race is about

    def stop(self) -> None:
        self.goes_on.clear()
        self.join(LEASE_WAIT)
        assert not self.is_alive(), "a foreign writer was kept waiting for a lease"


def _append_to_open_file(writer: ForeignWriter) -> None:
    """Opened before, appends all the time."""
    with opened(writer.path, os.O_WRONLY | os.O_APPEND) as descriptor:
        writer.is_open.set()
        writer.wait_for_the_moment()
        while writer.goes_on.is_set():
            os.write(descriptor, b"FOREIGN")
            writer.writes += 1
            writer.pause()


def _overwrite_open_file(writer: ForeignWriter) -> None:
    """Opened before, overwrites something in the middle; the size stays."""
    with opened(writer.path, os.O_WRONLY) as descriptor:
        writer.is_open.set()
        writer.wait_for_the_moment()
        while writer.goes_on.is_set():
            os.pwrite(descriptor, b"F", writer.dice.randrange(writer.size))
            writer.writes += 1
            writer.pause()


def _open_during(writer: ForeignWriter) -> None:
    """Opened some time while it is being finished."""
    writer.is_open.set()
    writer.wait_for_the_moment()
    while writer.goes_on.is_set():
        with opened(writer.path, os.O_WRONLY) as descriptor:
            os.pwrite(descriptor, b"F", writer.dice.randrange(writer.size))
            writer.writes += 1
            writer.pause()
            os.pwrite(descriptor, b"G", writer.dice.randrange(writer.size))


def _shared_mapping(writer: ForeignWriter) -> None:
    """No descriptor at all: a shared mapping, written for as long as the race lasts."""
    with opened(writer.path, os.O_RDWR) as descriptor:
        mapping = mmap.mmap(descriptor, writer.size)
    with mapping:
        writer.is_open.set()
        writer.wait_for_the_moment()
        while writer.goes_on.is_set():
            mapping[writer.dice.randrange(writer.size)] ^= 0xFF
            writer.writes += 1
            writer.pause()


def _truncate(writer: ForeignWriter) -> None:
    """Cut short and made longer again, by name."""
    writer.is_open.set()
    writer.wait_for_the_moment()
    while writer.goes_on.is_set():
        os.truncate(writer.path, writer.dice.randrange(writer.size))
        writer.writes += 1
        writer.pause()
        os.truncate(writer.path, writer.size)


def _replace(writer: ForeignWriter) -> None:
    """Another file is put in its place."""
    other = writer.path.with_name("other")
    writer.is_open.set()
    writer.wait_for_the_moment()
    while writer.goes_on.is_set():
        if not writer.path.exists():
            return
        other.write_bytes(content("foreign", writer.size))
        os.rename(other, writer.path)
        writer.writes += 1
        writer.pause()


RACES = {
    "append": _append_to_open_file,
    "overwrite": _overwrite_open_file,
    "open-during": _open_during,
    "mapping": _shared_mapping,
    "truncate": _truncate,
    "replace": _replace,
}


class Track:
    """Many races of one kind on one mount."""

    def __init__(self, mount: Mount, storage: Storage, kind: str, seed: int) -> None:
        self._mount = mount
        self._storage = storage
        self._kind = kind
        self._dice = random.Random(f"{kind} {seed}")
        self.outcomes: Counter[str] = Counter()
        self.writes = 0
        self.problems: list[str] = []

    def run(self, count: int) -> None:
        for number in range(count):
            self._race(number)
        time.sleep(1)  # what a mapping or a writer has changed reaches the file by then
        self.problems += damage_of_layers(self._storage)

    def _race(self, number: int) -> None:
        repository = MountedRepository(self._mount, self._storage, f"race/{self._kind}/{number}")
        self._storage.make_repository(repository.name)
        data = content(repository.name, self._dice.choice([5000, 300_000, 3_000_000]))
        by_registry = self._dice.random() < 0.5
        name = self._storage.put_upload(repository.name, data) if by_registry else "layer"
        if not by_registry:
            repository.put_upload(name, data)
        path = (self._storage.uploads(repository.name)[0]) / "data"
        writer = ForeignWriter(RACES[self._kind], path, len(data), self._dice)
        writer.start()
        writer.is_open.wait(5)
        outcome = attempt(repository.commit, name, digest_of(data), seconds=30)
        self._judge(number, repository, name, data, outcome)
        writer.stop()
        self.writes += writer.writes
        self.problems += [f"{number}: afterwards {problem}" for problem in damage_of_layers(self._storage)]
        if not outcome.is_ok:
            self._finish_now(number, repository, name, path)

    def _judge(self, number: int, repository: MountedRepository, name: str, data: bytes, outcome: Outcome) -> None:
        self.outcomes[outcome.name] += 1
        if outcome.is_ok:
            seen = attempt(repository.layer(digest_of(data)).read_bytes)
            if seen.value != data:
                self.problems.append(f"{number}: the layer reads otherwise ({seen.name})")
        elif outcome.name not in REFUSALS:
            self.problems.append(f"{number}: mv gives {outcome.name}")
        self.problems += [f"{number}: at once {problem}" for problem in damage_of_layers(self._storage)]

    def _finish_now(self, number: int, repository: MountedRepository, name: str, path: Path) -> None:
        """Nobody interferes any more: what is there now can be finished."""
        if not path.exists():
            self.problems.append(f"{number}: refused, but the upload's bytes are gone")
            return
        whole = path.read_bytes()
        again = attempt(repository.commit, name, digest_of(whole))
        if not again.is_ok or repository.layer(digest_of(whole)).read_bytes() != whole:
            self.problems.append(f"{number}: doing it again gives {again.name}")


def _run_races(kind: str, count: int, storage: Storage, mount: Mount, seed: int = 1) -> Track:
    track = Track(mount, storage, kind, seed)
    track.run(count)
    forgive_refusals(mount)
    print(f"{kind}: {dict(track.outcomes)}, {track.writes} foreign writes")
    return track


@pytest.mark.parametrize("kind", RACES)
def test_races(kind: str, storage: Storage, mounts) -> None:
    """Twenty of each kind."""
    track = _run_races(kind, 20, storage, mounts(storage))
    assert not track.problems, "\n".join(track.problems)
    assert track.writes


@pytest.mark.parametrize("kind", ["append", "overwrite", "mapping", "truncate"])
def test_races_without_leases(
    kind: str, storage: Storage, tmp_path: Path, mounts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same on a file system that has no leases: nobody can be kept out, so what is published must be a copy."""
    plant("no leases", tmp_path / "planted", monkeypatch)
    track = _run_races(kind, 10, storage, mounts(storage))
    assert not track.problems, "\n".join(track.problems)


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", RACES)
def test_many_races(kind: str, storage: Storage, mounts) -> None:
    """Four hundred of each kind, with another seed."""
    for seed in range(4):
        track = _run_races(kind, 100, storage, mounts(storage), seed)
        assert not track.problems, "\n".join(track.problems)


def test_an_undisturbed_upload_is_not_refused(storage: Storage, mounts) -> None:
    """A foreign process that only reads is no reason to refuse."""
    mount = mounts(storage)
    repository = MountedRepository(mount, storage, "quiet")
    storage.make_repository("quiet")
    data = content("quiet", 100_000)
    upload = storage.put_upload("quiet", data)
    with opened(storage.upload("quiet", upload) / "data", os.O_RDONLY) as descriptor:
        assert attempt(repository.commit, upload, digest_of(data)).is_ok
        assert os.pread(descriptor, len(data), 0) == data
    repository.assert_stored(data)


def test_a_lease_for_everybody_is_found(
    storage: Storage, tmp_path: Path, mounts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A daemon that believes to have a lease publishes what others still write, and is found: the check can fail."""
    plant("lease granted to everybody", tmp_path / "planted", monkeypatch)
    mount = mounts(storage)
    # On a busy machine the daemon comes so late that all of a round's writers are before it, and are refused.
    rounds = (_run_races("append", 10, storage, mount, seed) for seed in range(20))
    assert any("bytes that hash to" in problem for track in rounds for problem in track.problems)
