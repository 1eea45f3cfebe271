"""Read-ahead: exactly the bytes that were asked for, in few requests and bounded memory, whatever the order and
whatever fails.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from layerfs.driver.interface import FileReader
from layerfs.errors import BackendFailure
from layerfs.view.readahead import PartPool, ReadAhead

MIB = 1 << 20
SMALL = 128 << 10

SIZE = 24 * MIB + 12_345
PATTERN = bytes(range(251)) * (MIB // 251 + 2)


def content(offset: int, length: int) -> bytes:
    """The bytes of the file: no two MiB begin alike."""
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
        self.is_closed = False
        self.reads: list[tuple[int, int]] = []
        self.under_way: list[tuple[int, int]] = []
        self.most_under_way = 0
        self.failing: set[int] = set()
        self._let_through = trio.Event()

    def read_nowait(self, offset: int, length: int) -> bytes | None:
        return None

    async def read(self, offset: int, length: int) -> bytes:
        assert not self.is_closed
        self.reads.append((offset, length))
        self.under_way.append((offset, length))
        self.most_under_way = max(self.most_under_way, len(self.under_way))
        try:
            if self.is_held:
                await self._let_through.wait()
            await trio.lowlevel.checkpoint()
        finally:
            self.under_way.remove((offset, length))
        if any(offset <= place < offset + length for place in self.failing):
            raise BackendFailure("/data", f"read of {offset}")
        return self.content(offset, length)

    def content(self, offset: int, length: int) -> bytes:
        """The bytes."""
        return content(offset, length)

    def let_through(self) -> None:
        """All that wait, and from now on."""
        self.is_held = False
        self._let_through.set()

    @property
    def bytes_under_way(self) -> int:
        return sum(length for _, length in self.under_way)

    def close(self) -> None:
        assert not self.under_way
        self.is_closed = True


class Huge(Storage):
    """Zeros, without end to speak of."""

    def __init__(self) -> None:
        super().__init__(1 << 40)

    def content(self, offset: int, length: int) -> bytes:
        return bytes(length)


@pytest.fixture
def pool(nursery: trio.Nursery) -> PartPool:
    """What handles share; its tasks end with the test."""
    return PartPool(nursery.start_soon)


async def begin(handle: ReadAhead) -> None:
    """Reads the first bytes: what comes next in order is read ahead."""
    assert len(await handle.read(0, SMALL)) == SMALL


def in_trio(function: Callable[[trio.Nursery], Awaitable[None]]) -> None:
    """Runs it with a nursery that is cancelled at the end."""

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            await function(nursery)
            nursery.cancel_scope.cancel()

    trio.run(main)


places = st.one_of(
    st.integers(0, SIZE + 1000),
    st.builds(lambda place, delta: max(0, place * MIB + delta), st.integers(0, 24), st.integers(-3, 3)),
)
#: Which handle; a jump somewhere, or on from where its last read ended; so far; so often.
steps = st.tuples(st.integers(0, 1), st.one_of(st.none(), places), st.integers(0, MIB), st.integers(1, 12))


@settings(max_examples=60, deadline=None)
@given(pattern=st.lists(steps, min_size=1, max_size=8))
def test_any_order_gives_the_bytes(pattern: list[tuple[int, int | None, int, int]]) -> None:
    """In order, backwards, at random, beyond the end, by two readers of one blob; and all memory comes back."""

    async def check(nursery: trio.Nursery) -> None:
        pool = PartPool(nursery.start_soon)
        files = [Storage(), Storage()]
        handles = [ReadAhead(file, pool, "blob") for file in files]
        place = [0, 0]
        for which, jump, length, times in pattern:
            place[which] = place[which] if jump is None else jump
            for _ in range(times):
                assert await handles[which].read(place[which], length) == content(place[which], length)
                place[which] += length
        for handle in handles:
            handle.close()
        await trio.testing.wait_all_tasks_blocked()
        assert pool.used == 0
        assert all(file.is_closed for file in files)

    in_trio(check)


@settings(max_examples=40, deadline=None)
@given(
    pattern=st.lists(steps, min_size=1, max_size=8),
    failing=st.sets(st.integers(0, SIZE - 1), min_size=1, max_size=4),
)
def test_errors_reach_who_needs_the_bytes(pattern: list[tuple[int, int | None, int, int]], failing: set[int]) -> None:
    """A read fails if storage cannot give its bytes, and only then, whatever was read ahead."""

    async def check(nursery: trio.Nursery) -> None:
        storage, pool = Storage(), PartPool(nursery.start_soon)
        storage.failing = failing
        handle = ReadAhead(storage, pool, "blob")
        place = 0
        for _, jump, length, times in pattern:
            place = place if jump is None else jump
            for _ in range(times):
                bad = any(place <= offset < place + length for offset in failing)
                try:
                    assert await handle.read(place, length) == content(place, length)
                except BackendFailure:
                    assert bad
                else:
                    assert not bad
                place += length
        handle.close()
        await trio.testing.wait_all_tasks_blocked()
        assert pool.used == 0

    in_trio(check)


async def test_an_error_that_has_passed(pool: PartPool) -> None:
    """What failed before anybody needed it is asked for again."""
    storage = Storage()
    storage.failing = {2 * MIB}
    handle = ReadAhead(storage, pool, "blob")
    await begin(handle)
    await handle.read(SMALL, 1000)
    await trio.testing.wait_all_tasks_blocked()
    assert any(offset <= 2 * MIB < offset + length for offset, length in storage.reads)
    storage.failing = set()
    assert await handle.read(2 * MIB, 1000) == content(2 * MIB, 1000)


async def test_one_gibibyte_in_order(pool: PartPool) -> None:
    """As the kernel reads it: 140 requests at the most, each byte once, 64 MiB ahead at the most."""
    storage = Huge()
    storage.size = 1 << 30
    handle = ReadAhead(storage, pool, "blob")
    for offset in range(0, 1 << 30, MIB):
        assert len(await handle.read(offset, MIB)) == MIB
        assert pool.used <= 64 * MIB + MIB
    assert len(storage.reads) <= 140
    assert sum(length for _, length in storage.reads) == 1 << 30
    assert max(length for _, length in storage.reads) == 8 * MIB


async def test_the_kernels_requests_come_in_any_order(pool: PartPool) -> None:
    """Two or three of 1 MiB are under way at a time, and are seen in whatever order: nothing is fetched twice."""
    order = random.Random(1)
    for number in range(10):
        storage = Storage()
        handle = ReadAhead(storage, pool, number)
        await begin(handle)
        places = list(range(SMALL, 24 * MIB, MIB))
        while places:
            count = order.randrange(1, 4)
            together, places = places[:count], places[count:]
            order.shuffle(together)
            for place in together:
                assert await handle.read(place, MIB) == content(place, MIB)
        assert sum(length for _, length in storage.reads) <= SIZE + 2 * MIB
        assert len(storage.reads) <= 10
        handle.close()


async def test_parts_grow_from_one_to_eight(pool: PartPool) -> None:
    """Little is wasted on who reads little: 1, 2, 4, 8 MiB."""
    storage = Huge()
    handle = ReadAhead(storage, pool, "blob")
    for offset in range(0, 64 * MIB, MIB):
        await handle.read(offset, MIB)
    lengths = [length // MIB for _, length in storage.reads]
    assert lengths[:6] == [1, 1, 2, 4, 8, 8]


async def test_what_is_needed_is_asked_for_first(pool: PartPool) -> None:
    """Whatever the order in which tasks are started, ten times over."""
    for number in range(10):
        storage = Storage()
        handle = ReadAhead(storage, pool, number)
        await handle.read(10 * MIB, SMALL)
        storage.reads.clear()
        storage.is_held = True
        async with trio.open_nursery() as nursery:
            nursery.start_soon(handle.read, 10 * MIB + SMALL, 1000)
            await trio.testing.wait_all_tasks_blocked()
            assert storage.reads[0] == (10 * MIB + SMALL, MIB)
            assert len(storage.reads) > 1
            storage.let_through()
        handle.close()


async def test_jumping_about_is_one_small_request_for_each(pool: PartPool) -> None:
    """Read-ahead for random reads would be wasted; 128 KiB cost no more time than 4."""
    storage = Huge()
    handle = ReadAhead(storage, pool, "blob")
    wanted = [(number * 7919) % 1000 * (64 * MIB) for number in range(50)]
    for offset in wanted:
        assert await handle.read(offset, 4096) == bytes(4096)
    assert storage.reads == [(offset, SMALL) for offset in wanted]
    assert pool.used <= 2 * SMALL


async def test_small_reads_side_by_side_are_one_request(pool: PartPool) -> None:
    """Asked for at the same time, by several handles, in any order."""
    storage = Storage()
    first, second, third = (ReadAhead(storage, pool, "blob") for _ in range(3))
    storage.is_held = True
    results: dict[int, bytes] = {}

    async def read(handle: ReadAhead, offset: int) -> None:
        results[offset] = await handle.read(offset, 4096)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read, first, 5 * MIB)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(read, second, 5 * MIB + 8192)
        nursery.start_soon(read, third, 5 * MIB + 4096)
        await trio.testing.wait_all_tasks_blocked()
        assert storage.reads == [(5 * MIB, SMALL)]
        storage.let_through()
    assert results == {offset: content(offset, 4096) for offset in results}


async def test_eight_readers_of_one_blob_fetch_it_once(pool: PartPool) -> None:
    """At about the same time, each with a handle of its own."""
    files = [Storage() for _ in range(8)]

    async def read_all(file: Storage) -> None:
        handle = ReadAhead(file, pool, "blob")
        for offset in range(0, SIZE, SMALL):
            assert await handle.read(offset, SMALL) == content(offset, SMALL)
        handle.close()

    async with trio.open_nursery() as nursery:
        for file in files:
            nursery.start_soon(read_all, file)
    fetched = sum(length for file in files for _, length in file.reads)
    assert SIZE <= fetched < 1.2 * SIZE
    await trio.testing.wait_all_tasks_blocked()
    assert pool.used == 0


async def test_a_skip_is_still_in_order(pool: PartPool) -> None:
    """Who leaves out a MiB each time is read ahead for; who leaves out more is not."""
    for step, is_ahead in ((2 * MIB, True), (5 * MIB, False)):
        storage = Huge()
        handle = ReadAhead(storage, pool, step)
        for number in range(8):
            await handle.read(number * step, 4096)
        assert any(length > SMALL for _, length in storage.reads) == is_ahead
        handle.close()


async def test_reads_that_were_answered_without_waiting_are_in_order(pool: PartPool) -> None:
    """What storage had at hand was not seen here: the next read is far from the last, but within what was planned."""
    storage = Huge()
    handle = ReadAhead(storage, pool, "blob")
    for offset in range(0, 20 * MIB, MIB):
        await handle.read(offset, MIB)
    storage.reads.clear()
    await handle.read(40 * MIB, MIB)
    assert all(length > SMALL for _, length in storage.reads)


async def test_readers_together_keep_the_limits(pool: PartPool) -> None:
    """However many files are read in order: 256 MiB, 48 requests ahead of them; and every one goes on."""
    files = [Huge() for _ in range(100)]
    most = 0

    async def read_all(file: Huge) -> None:
        nonlocal most
        handle = ReadAhead(file, pool, file)
        for offset in range(0, 32 * MIB, MIB):
            assert len(await handle.read(offset, MIB)) == MIB
            most = max(most, pool.used)
        handle.close()

    async with trio.open_nursery() as nursery:
        for file in files:
            nursery.start_soon(read_all, file)
    assert most <= 256 * MIB + 100 * MIB
    await trio.testing.wait_all_tasks_blocked()
    assert pool.used == 0


async def test_requests_ahead_at_a_time(pool: PartPool) -> None:
    """48 for all, and besides them what somebody waits for: a file that gives nothing keeps nobody from another."""
    stuck = [Storage() for _ in range(60)]
    async with trio.open_nursery() as nursery:
        for file in stuck:
            handle = ReadAhead(file, pool, file)
            await begin(handle)
            file.is_held = True
            nursery.start_soon(handle.read, SMALL, 1000)
        await trio.testing.wait_all_tasks_blocked()
        assert all(file.under_way for file in stuck)
        assert sum(len(file.under_way) for file in stuck) <= 48 + len(stuck)
        with trio.fail_after(5):
            healthy = Storage()
            handle = ReadAhead(healthy, pool, "healthy")
            for offset in range(0, SIZE, MIB):
                assert await handle.read(offset, MIB) == content(offset, MIB)
        for file in stuck:
            file.let_through()


async def test_many_open_files_that_read_here_and_there(pool: PartPool) -> None:
    """What came with small reads is kept in bounded memory, not for every handle."""
    handles = [ReadAhead(Huge(), pool, number) for number in range(3000)]
    for handle in handles:
        for number in range(2):
            await handle.read(number * 100 * MIB, 4096)
    assert pool.used <= 256 * MIB
    for handle in handles:
        handle.close()
    assert pool.used == 0


async def test_idle_handles_give_way(pool: PartPool, autojump_clock: trio.testing.MockClock) -> None:
    """Six files that were read ahead of, and then left alone, hold all memory: another one gets what it needs of it."""
    idle = [ReadAhead(Huge(), pool, number) for number in range(6)]
    for handle in idle:
        for offset in range(0, 60 * MIB, MIB):
            await handle.read(offset, MIB)
    await trio.testing.wait_all_tasks_blocked()
    assert pool.used > 200 * MIB
    await trio.sleep(60)
    storage = Huge()
    handle = ReadAhead(storage, pool, "new")
    for offset in range(0, 64 * MIB, MIB):
        await handle.read(offset, MIB)
    assert len(storage.reads) <= 20
    assert pool.used <= 256 * MIB
    assert all([await one.read(60 * MIB, MIB) == bytes(MIB) for one in idle])


async def test_leaving_ends_what_is_under_way(pool: PartPool) -> None:
    """Closing a handle, or jumping elsewhere, gives up the requests that nobody wants any more."""
    storage = Storage()
    handle = ReadAhead(storage, pool, "blob")
    await begin(handle)
    storage.is_held = True
    with trio.move_on_after(0.01):
        await handle.read(SMALL, 1000)
    assert storage.bytes_under_way > 0
    handle.close()
    await trio.testing.wait_all_tasks_blocked()
    assert not storage.under_way
    assert storage.is_closed
    assert pool.used == 0


async def test_one_leaves_and_another_waits(pool: PartPool) -> None:
    """What the one had asked for comes for the other, and is asked for once."""
    first, second = Storage(), Storage()
    one, other = ReadAhead(first, pool, "blob"), ReadAhead(second, pool, "blob")
    await begin(one)
    first.is_held = True
    results: list[bytes] = []

    async def read() -> None:
        results.append(bytes(await other.read(SMALL, 1000)))

    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as waiting:
            nursery.start_soon(read)
            async with trio.open_nursery() as inner:
                inner.start_soon(one.read, SMALL, 1000)
                await trio.testing.wait_all_tasks_blocked()
                waiting.cancel()
        one.close()
        await trio.testing.wait_all_tasks_blocked()
        first.let_through()
    assert results == [content(SMALL, 1000)]
    assert sum(offset <= SMALL < offset + length for file in (first, second) for offset, length in file.reads) == 1
    assert first.is_closed
    other.close()


async def test_a_read_that_is_cancelled(pool: PartPool) -> None:
    """Nothing is lost by it: the next one gets the part."""
    storage = Storage()
    handle = ReadAhead(storage, pool, "blob")
    await begin(handle)
    storage.is_held = True
    async with trio.open_nursery() as nursery:
        nursery.start_soon(handle.read, SMALL, 1000)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    storage.let_through()
    assert await handle.read(SMALL, 1000) == content(SMALL, 1000)
    assert sum(offset == SMALL for offset, _ in storage.reads) == 1
    handle.close()
    await trio.testing.wait_all_tasks_blocked()
    assert pool.used == 0


async def test_readers_that_wait_for_one_part(pool: PartPool) -> None:
    """The kernel sends several reads at once, in any order: one trip to storage is enough for all."""
    storage = Storage()
    handle = ReadAhead(storage, pool, "blob")
    await begin(handle)
    storage.is_held = True
    results: dict[int, bytes] = {}

    async def read(offset: int) -> None:
        results[offset] = await handle.read(offset, 1000)

    async with trio.open_nursery() as nursery:
        for place in (0, 4000, 2000, 1000, 3000):
            nursery.start_soon(read, SMALL + place)
            await trio.testing.wait_all_tasks_blocked()
        assert sum(SMALL <= offset < MIB for offset, _ in storage.reads) == 1
        storage.let_through()
    assert results == {offset: content(offset, 1000) for offset in results}


async def test_shutting_down_while_parts_are_fetched() -> None:
    """Parts that will never come are asked for by the reader itself."""
    storage = Storage()
    async with trio.open_nursery() as nursery:
        pool = PartPool(nursery.start_soon)
        handle = ReadAhead(storage, pool, "blob")
        await begin(handle)
        storage.is_held = True
        async with trio.open_nursery() as readers:
            readers.start_soon(handle.read, SMALL, 1000)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                await trio.testing.wait_all_tasks_blocked()
            storage.let_through()
    handle.close()
    assert pool.used == 0


async def test_a_failure_that_took_long_is_not_asked_for_again(
    pool: PartPool, autojump_clock: trio.testing.MockClock
) -> None:
    """Storage that gives up after 45 s would need as long again: the reader hears of it within an operation's time."""

    class Silent(Storage):
        async def read(self, offset: int, length: int) -> bytes:
            self.reads.append((offset, length))
            if len(self.reads) > 1:
                await trio.sleep(45)
                raise BackendFailure("/data", "no answer")
            return content(offset, length)

    handle = ReadAhead(Silent(), pool, "blob")
    await begin(handle)
    with trio.fail_after(50), pytest.raises(BackendFailure, match="no answer"):
        await handle.read(SMALL, 1000)
