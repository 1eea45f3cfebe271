"""Many clients at once for a while: every byte is verified, nothing is logged that should not be, nothing is used up.

16 readers, 8 writers and 4 listers, each a process of its own, all on one mount. Seen to fail: a reader that is given
the bytes of another layer (`test_a_wrong_byte_is_found`).
"""

from __future__ import annotations

import functools
import hashlib
import mmap
import os
import random
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from harness.bounded import Child
from harness.commands import append, wait_until
from harness.damage import assert_undamaged
from harness.mount import Mount
from harness.repository import MountedRepository
from harness.storage import Storage, digest_of
from harness.tolerance import forgive_refusals, refusals
from harness.workload import content

READERS, WRITERS, LISTERS = 16, 8, 4

#: Bytes of memory that the daemon may have at any moment.
MEMORY = 200 << 20

#: Seconds after which a client counts as stuck, on a machine that may be busy with other things.
STALL = 20.0

SIZES = [0, 1, 4096, 70_000, 1_000_000, 5_000_000]


class Worker:
    """Does one thing again and again until the time is over; counts, and writes down what was wrong."""

    def __init__(self, mount: Path, number: int, ends: float) -> None:
        self.mount = mount
        self.number = number
        self.ends = ends
        self.dice = random.Random(f"{type(self).__name__} {number}")
        self.wrong: list[str] = []
        self.count = 0
        self.longest = 0.0

    def run(self) -> Worker:
        while time.time() < self.ends and len(self.wrong) < 5:
            started = time.monotonic()
            try:
                self.once()
            except OSError as error:
                self.wrong.append(f"{type(self).__name__} {self.number}: {error}")
            self.longest = max(self.longest, time.monotonic() - started)
            self.count += 1
        return self

    def once(self) -> None:
        raise NotImplementedError

    def check(self, path: Path, seen: bytes, expected: bytes | None = None) -> None:
        """Bytes that were read of a layer; all of them, unless the expected ones are given."""
        right = seen == expected if expected is not None else digest_of(seen) == path.name
        if not right:
            self.wrong.append(f"{path}: {len(seen)} bytes, sha256 {hashlib.sha256(seen).hexdigest()}")


class Reader(Worker):
    """Reads layers: whole, in pieces somewhere, and mapped."""

    def once(self) -> None:
        number = self.dice.randrange(len(SIZES) * 4)
        data = _stored_layer(number)
        path = self.mount / f"stored/{number % 3}/_layers" / digest_of(data)
        way = self.dice.randrange(3)
        if way == 0 or not data:
            self.check(path, path.read_bytes())
        elif way == 1:
            self._pieces(path, data)
        else:
            with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapping:
                start = self.dice.randrange(len(data))
                self.check(path, mapping[start : start + 9000], data[start : start + 9000])

    def _pieces(self, path: Path, data: bytes) -> None:
        with path.open("rb", buffering=0) as file:
            for _ in range(5):
                start, length = self.dice.randrange(len(data)), self.dice.choice([1, 5000, 200_000])
                seen = os.pread(file.fileno(), length, start)
                self.check(path, seen, data[start : start + length])


class Writer(Worker):
    """Uploads in pieces, commits, reads back; now and then cancels, or commits with a wrong digest first."""

    def once(self) -> None:
        key = f"{self.number}-{self.count}"
        data = content(key, self.dice.choice(SIZES))
        repository = self.mount / f"written/{self.number % 3}"
        upload, layer = repository / "_uploads" / key, repository / "_layers" / digest_of(data)
        cut = self.dice.randint(0, len(data))
        append(upload, data[:cut])
        append(upload, data[cut:])
        if self.dice.random() < 0.1:
            upload.unlink()
            return
        if self.dice.random() < 0.1:
            self._commit_wrongly(upload, repository)
        os.rename(upload, layer)
        self.check(layer, layer.read_bytes())

    def _commit_wrongly(self, upload: Path, repository: Path) -> None:
        with suppress(OSError):
            os.rename(upload, repository / "_layers" / digest_of(b"something else"))
            self.wrong.append(f"{upload}: committed under a wrong digest")


class Lister(Worker):
    """Lists everything; what is there all the time is always listed."""

    def once(self) -> None:
        for number in range(3):
            listed = set(os.listdir(self.mount / f"stored/{number}/_layers"))
            expected = {digest_of(_stored_layer(layer)) for layer in range(number, len(SIZES) * 4, 3)}
            if listed != expected:
                self.wrong.append(f"stored/{number}: {len(listed)} of {len(expected)} layers listed")
            with os.scandir(self.mount / f"written/{number}/_layers") as found:
                for entry in found:
                    entry.stat()
            os.listdir(self.mount / f"written/{number}/_uploads")
        time.sleep(0.02)  # a lister that never rests measures nothing but itself


@functools.cache
def _stored_layer(number: int) -> bytes:
    return content(f"stored {number}", SIZES[number % len(SIZES)] or number)


@pytest.fixture
def busy(storage: Storage) -> Storage:
    """A storage with layers to read and repositories to write to."""
    for number in range(len(SIZES) * 4):
        storage.put_layer(f"stored/{number % 3}", _stored_layer(number))
    for number in range(3):
        storage.make_repository(f"written/{number}")
    return storage


def _load(mount: Mount, seconds: float) -> tuple[list[Worker], list[int]]:
    """All workers at once; what they say, and the memory of the daemon from second to second."""
    ends = time.time() + seconds
    kinds = [*[Reader] * READERS, *[Writer] * WRITERS, *[Lister] * LISTERS]
    clients = [Child(kind(mount.path, number, ends).run) for number, kind in enumerate(kinds)]
    memory = []
    while time.time() < ends:
        memory.append(mount.resident_bytes)
        time.sleep(1)  # the distance of two looks
    return [client.wait(60).value for client in clients], memory


def _warm_up(mount: Mount, storage: Storage) -> int:
    """Descriptors of a daemon that has done everything once."""
    repository = MountedRepository(mount, storage, "written/0")
    repository.put_layer(content("warm", 1000))
    os.listdir(mount.path / "stored/0/_layers")
    time.sleep(0.3)  # RELEASE comes after close
    return mount.descriptors


def _assert_fine(mount: Mount, storage: Storage, workers: list[Worker], memory: list[int], descriptors: int) -> None:
    for kind in (Reader, Writer, Lister):
        alike = [worker for worker in workers if isinstance(worker, kind)]
        longest = max(worker.longest for worker in alike)
        print(f"{kind.__name__}: {sum(worker.count for worker in alike)}, the longest took {longest:.2f} s")
    print(f"at most {max(memory) >> 20} MiB")
    wrong = [problem for worker in workers for problem in worker.wrong]
    assert not wrong, "\n".join(wrong)
    assert max(worker.longest for worker in workers) < STALL
    assert max(memory) < MEMORY
    wait_until(lambda: mount.descriptors <= descriptors + 2, "descriptors are given back")
    # The only thing that was refused is what had to be.
    refused = [line for line in refusals(mount) if "EBADMSG" not in line]
    assert not refused, "\n".join(refused)
    forgive_refusals(mount)
    assert_undamaged(storage)


def test_load(busy: Storage, mounts: Callable[..., Mount]) -> None:
    """Eight seconds."""
    mount = mounts(busy)
    descriptors = _warm_up(mount, busy)
    workers, memory = _load(mount, 8)
    _assert_fine(mount, busy, workers, memory, descriptors)


@pytest.mark.soak
@pytest.mark.timeout(1200)
def test_load_for_ten_minutes(busy: Storage, mounts: Callable[..., Mount]) -> None:
    """Ten minutes; memory does not grow any more in the second half."""
    mount = mounts(busy)
    descriptors = _warm_up(mount, busy)
    workers, memory = _load(mount, 600)
    _assert_fine(mount, busy, workers, memory, descriptors)
    half = len(memory) // 2
    assert max(memory[half:]) - max(memory[:half]) < 8 << 20


def test_a_wrong_byte_is_found(busy: Storage, mounts: Callable[..., Mount]) -> None:
    """A blob with one wrong byte is noticed by the readers: the check can fail."""
    data = _stored_layer(4)
    busy.put_blob(data[:-1] + bytes([data[-1] ^ 1]), digest_of(data))
    mount = mounts(busy)
    reader = Reader(mount.path, 0, time.time() + 60)
    assert Child(_read_until_wrong, reader).wait(60).value != []


def _read_until_wrong(reader: Reader) -> list[str]:
    while not reader.wrong and time.time() < reader.ends:
        reader.once()
    return reader.wrong
