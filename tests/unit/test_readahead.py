"""Read-ahead: exactly the bytes that were asked for, in bounded memory, whatever the order and whatever fails."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from layerfs.driver.interface import FileReader
from layerfs.errors import BackendFailure
from layerfs.view import readahead
from layerfs.view.readahead import BLOCK, ReadAhead, ReadAheadBudget

#: Blocks that all handles of a mount may hold.
IN_ALL = 16

SIZE = 12 * BLOCK + 12_345
PATTERN = bytes(range(251)) * (BLOCK // 251 + 2)


def content(offset: int, length: int) -> bytes:
    """The bytes of the file: no two blocks begin alike."""
    end = min(offset + length, SIZE)
    start = offset % 251
    count = max(0, end - offset)
    pattern = PATTERN if start + count <= len(PATTERN) else PATTERN * (1 + (start + count) // len(PATTERN))
    return pattern[start : start + count]


class Storage(FileReader):
    """A file on storage where every read waits: until it is let through, if `is_held`; and fails where told to."""

    def __init__(self, size: int = SIZE) -> None:
        self.size = size
        self.is_held = False
        self.reads: list[tuple[int, int]] = []
        self.under_way = 0
        self.most_under_way = 0
        self.failing: set[int] = set()
        self._let_through = trio.Event()

    def read_nowait(self, offset: int, length: int) -> bytes | None:
        return None

    async def read(self, offset: int, length: int) -> bytes:
        self.reads.append((offset, length))
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            if self.is_held:
                await self._let_through.wait()
            await trio.lowlevel.checkpoint()
        finally:
            self.under_way -= 1
        if any(offset <= place < offset + length for place in self.failing):
            raise BackendFailure("/data", f"read of {offset}")
        return content(offset, length)

    def let_through(self) -> None:
        """All that wait, and from now on."""
        self.is_held = False
        self._let_through.set()

    def close(self) -> None:
        pass


@pytest.fixture
def start(nursery: trio.Nursery) -> Callable[[Callable[[], Awaitable[None]]], None]:
    """Runs tasks in the background."""
    return nursery.start_soon


def left(budget: ReadAheadBudget) -> int:
    """How many blocks can be had; takes none."""
    count = 0
    while budget.take():
        count += 1
    for _ in range(count):
        budget.give_back()
    return count


def in_trio(function: Callable[[trio.Nursery], Awaitable[None]]) -> None:
    """Runs it with a nursery that is cancelled at the end."""

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            await function(nursery)
            nursery.cancel_scope.cancel()

    trio.run(main)


places = st.one_of(
    st.integers(0, SIZE + 1000),
    st.builds(lambda block, delta: max(0, block * BLOCK + delta), st.integers(0, 12), st.integers(-3, 3)),
)
#: A jump somewhere, or on from where the last read ended; so far; so often.
steps = st.tuples(st.one_of(st.none(), places), st.integers(0, BLOCK // 2), st.integers(1, 12))


@settings(max_examples=60, deadline=None)
@given(pattern=st.lists(steps, min_size=1, max_size=8))
def test_any_order_gives_the_bytes(pattern: list[tuple[int | None, int, int]]) -> None:
    """In order, backwards, at random, across blocks and beyond the end; and all of the budget comes back."""

    async def check(nursery: trio.Nursery) -> None:
        budget = ReadAheadBudget()
        ahead = ReadAhead(Storage(), budget, nursery.start_soon)
        place = 0
        for jump, length, times in pattern:
            place = place if jump is None else jump
            for _ in range(times):
                assert await ahead.read(place, length) == content(place, length)
                place += length
        ahead.close()
        await trio.testing.wait_all_tasks_blocked()
        assert left(budget) == IN_ALL

    in_trio(check)


@settings(max_examples=40, deadline=None)
@given(
    pattern=st.lists(steps, min_size=1, max_size=8),
    failing=st.sets(st.integers(0, SIZE - 1), min_size=1, max_size=4),
)
def test_errors_reach_who_needs_the_bytes(pattern: list[tuple[int | None, int, int]], failing: set[int]) -> None:
    """A read fails if storage cannot give its bytes, and only then, whatever was read ahead."""

    async def check(nursery: trio.Nursery) -> None:
        storage, budget = Storage(), ReadAheadBudget()
        storage.failing = failing
        ahead = ReadAhead(storage, budget, nursery.start_soon)
        place = 0
        for jump, length, times in pattern:
            place = place if jump is None else jump
            for _ in range(times):
                bad = any(place <= offset < place + length for offset in failing)
                try:
                    assert await ahead.read(place, length) == content(place, length)
                except BackendFailure:
                    assert bad
                else:
                    assert not bad
                place += length
        ahead.close()
        await trio.testing.wait_all_tasks_blocked()
        assert left(budget) == IN_ALL

    in_trio(check)


async def test_an_error_that_has_passed(start: Callable[..., None]) -> None:
    """A block that failed is asked for again by the reader, who gets its bytes."""
    storage = Storage()
    storage.failing = {2 * BLOCK + 5}
    ahead = ReadAhead(storage, ReadAheadBudget(), start)
    for number in range(4):
        await ahead.read(number * 1000, 1000)
    await trio.testing.wait_all_tasks_blocked()
    storage.failing = set()
    assert await ahead.read(2 * BLOCK, 1000) == content(2 * BLOCK, 1000)


async def test_reading_in_order_is_answered_from_blocks(start: Callable[..., None]) -> None:
    """Many small reads are few large ones of storage."""
    storage = Storage()
    ahead = ReadAhead(storage, ReadAheadBudget(), start)
    for offset in range(0, SIZE, 128 << 10):
        assert await ahead.read(offset, 128 << 10) == content(offset, 128 << 10)
    assert len(storage.reads) < 20


async def test_jumping_about_reads_no_more_than_was_asked_for(start: Callable[..., None]) -> None:
    """Read-ahead for random reads would be wasted."""
    storage = Storage(1 << 40)
    ahead = ReadAhead(storage, ReadAheadBudget(), start)
    wanted = [((number * 7919) % 1000 * (64 << 20), 4096) for number in range(50)]
    for offset, length in wanted:
        await ahead.read(offset, length)
    assert storage.reads == wanted


async def test_readers_together_keep_the_budget(start: Callable[..., None]) -> None:
    """However many files are read in order, no more blocks are on their way; and without one, reads work."""
    budget = ReadAheadBudget()
    files = [Storage() for _ in range(20)]
    handles = [ReadAhead(file, budget, start) for file in files]
    for handle in handles:
        for number in range(3):
            await handle.read(number * 1000, 1000)
        for number in range(3, 6):
            assert await handle.read(number * 1000, 1000) == content(number * 1000, 1000)
    blocks = sum(length == BLOCK for file in files for _, length in file.reads)
    assert blocks <= IN_ALL
    assert left(budget) == IN_ALL - blocks
    for handle in handles:
        handle.close()
    assert left(budget) == IN_ALL


async def test_blocks_on_their_way_count(start: Callable[..., None]) -> None:
    """A reader that goes on in order somewhere else, and leaves, does not let them pile up in memory."""
    storage, budget = Storage(), ReadAheadBudget()
    async with trio.open_nursery() as nursery:
        for _ in range(30):
            ahead = ReadAhead(storage, budget, start)
            for number in range(2):
                await ahead.read(number * 1000, 1000)
            storage.is_held = True
            nursery.start_soon(ahead.read, 2000, 1000)
            await trio.testing.wait_all_tasks_blocked()
            ahead.close()
            storage.is_held = False
        held = sum(length == BLOCK for _, length in storage.reads)
        assert held <= IN_ALL
        storage.let_through()
    await trio.testing.wait_all_tasks_blocked()
    assert left(budget) == IN_ALL


async def test_a_read_that_is_cancelled(start: Callable[..., None]) -> None:
    """Nothing is lost by it: the next one gets the block."""
    storage, budget = Storage(), ReadAheadBudget()
    ahead = ReadAhead(storage, budget, start)
    for number in range(2):
        await ahead.read(number * 1000, 1000)
    storage.is_held = True
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ahead.read, 2000, 1000)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    storage.let_through()
    reads = len(storage.reads)
    assert await ahead.read(2000, 1000) == content(2000, 1000)
    assert len(storage.reads) == reads
    ahead.close()
    await trio.testing.wait_all_tasks_blocked()
    assert left(budget) == IN_ALL


async def test_readers_that_wait_for_one_block(start: Callable[..., None]) -> None:
    """The kernel sends several reads at once, in any order: one trip to storage is enough for all."""
    storage = Storage()
    ahead = ReadAhead(storage, ReadAheadBudget(), start)
    for number in range(2):
        await ahead.read(number * 1000, 1000)
    storage.is_held = True
    results: dict[int, bytes] = {}

    async def read(offset: int) -> None:
        results[offset] = await ahead.read(offset, 1000)

    async with trio.open_nursery() as nursery:
        for offset in (6000, 2000, 4000, 3000, 5000):
            nursery.start_soon(read, offset)
        await trio.testing.wait_all_tasks_blocked()
        storage.let_through()
    assert results == {offset: content(offset, 1000) for offset in results}
    assert sum(offset == 0 and length == BLOCK for offset, length in storage.reads) == 1


async def test_shutting_down_while_blocks_are_fetched() -> None:
    """Blocks that will never come are asked for by the reader itself."""
    storage, budget = Storage(), ReadAheadBudget()
    async with trio.open_nursery() as nursery:
        ahead = ReadAhead(storage, budget, nursery.start_soon)
        for number in range(2):
            await ahead.read(number * 1000, 1000)
        storage.is_held = True
        async with trio.open_nursery() as readers:
            readers.start_soon(ahead.read, 2000, 1000)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                await trio.testing.wait_all_tasks_blocked()
            storage.let_through()
    ahead.close()
    assert left(budget) == IN_ALL


def test_the_budget() -> None:
    """So many blocks, and again when they are given back."""
    budget = ReadAheadBudget()
    assert readahead._BLOCKS_IN_ALL == IN_ALL == left(budget)
    assert all(budget.take() for _ in range(IN_ALL))
    assert not budget.take()
    budget.give_back()
    assert budget.take()
