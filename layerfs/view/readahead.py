"""Reading files on storage where every request takes a while: many requests at a time, ahead of whoever reads in order.

Where the storage can answer at once (`FileReader.read_nowait`) none of this is used. Else a reader that goes through
the file in order is answered from parts that were asked for before it came to them; the further it goes the larger
they are, and the more of them, as long as it has to wait. A reader that jumps about causes one request for each read.

All that read one blob share its parts, so that storage is asked once. All handles of a mount share one `PartPool`,
so that memory and requests in flight are bounded, however many files are open and however large they are.
"""

from __future__ import annotations

import bisect
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import Final, TypeAlias, cast

import trio

from layerfs.driver.interface import FileReader
from layerfs.errors import LayerfsError

MIB: Final = 1 << 20

#: Bytes of the first part that is read ahead, and of the largest: each is twice as large as the one before, so that
#: 1 GiB is some 132 requests.
FIRST_PART: Final = MIB
LARGEST_PART: Final = 8 * MIB

#: Parts ahead of a reader at first, and at the most; doubled each time that it has to wait.
FIRST_WINDOW: Final = 2
LARGEST_WINDOW: Final = 16

#: Bytes of the parts ahead of one reader, with the one that it is in, and of all parts together, at the most. As a rate
#: the first is at most 48 MiB / (latency + what a connection needs for 8 MiB): 40 ms away, with 90 MiB/s for each
#: connection, 370 MiB/s. FUSE does not carry more on the machine that this was measured on.
HANDLE_LIMIT: Final = 48 * MIB
POOL_LIMIT: Final = 256 * MIB

#: Parts that are read ahead at a time. One that somebody waits for does not wait for these: a file that storage does
#: not give out must not keep others from theirs.
REQUESTS: Final = 48

#: Bytes that are asked for at least: what lies behind a small read is often wanted next, and costs no time.
SMALL_READ: Final = 128 << 10

#: Small reads of which a handle keeps what came with them.
_SMALL_READS_KEPT: Final = 2

#: Reads one after the other before anything is fetched ahead; more of them if they leave out something. The kernel
#: sends several at once, in any order, so one may also come a little late.
_CONTIGUOUS_AFTER: Final = 2
_SKIPPING_AFTER: Final = 3
_SKIPPED: Final = 2 * MIB
_LATE: Final = 4 * MIB

#: Bytes behind a reader that are kept for such: as many as two of the kernel's requests.
KEPT_BEHIND: Final = 2 * MIB

#: Seconds without a read after which what a handle keeps is given to others who need it.
_IDLE_AFTER: Final = 5.0

#: Seconds after which a part that fails has taken so long that asking again would take too long.
_LATE_FAILURE: Final = 10.0

Start: TypeAlias = Callable[[Callable[[], Awaitable[None]]], None]


class _Part:
    """Some bytes of a file, asked for once; without `data` when that is `done` if it has failed or was given up."""

    def __init__(self, content: _Content, start: int, end: int) -> None:
        self.content = content
        self.start = start
        self.end = end
        self.done = trio.Event()
        self.data = b""
        self.error: LayerfsError | None = None
        self.asked_at = trio.current_time()
        #: How many handles want to keep it.
        self.users = 0
        self.dropped = False
        self.scope = trio.CancelScope()

    @property
    def length(self) -> int:
        return self.end - self.start

    def took_long(self) -> bool:
        return trio.current_time() - self.asked_at > _LATE_FAILURE


class _Content:
    """The parts of one blob that are here or on their way; they do not overlap."""

    def __init__(self, key: Hashable) -> None:
        self.key = key
        self.handles = 0
        self._starts: list[int] = []
        self._parts: list[_Part] = []

    def at(self, offset: int) -> _Part | None:
        """The part that has the byte at `offset`."""
        index = bisect.bisect_right(self._starts, offset) - 1
        if index >= 0 and offset < self._parts[index].end:
            return self._parts[index]
        return None

    def free_until(self, offset: int, end: int) -> int:
        """`end`, or where a part begins before that, behind `offset`."""
        index = bisect.bisect_right(self._starts, offset)
        return min(end, self._starts[index]) if index < len(self._starts) else end

    def add(self, part: _Part) -> None:
        index = bisect.bisect_right(self._starts, part.start)
        self._starts.insert(index, part.start)
        self._parts.insert(index, part)

    def remove(self, part: _Part) -> None:
        index = bisect.bisect_left(self._starts, part.start)
        if index < len(self._parts) and self._parts[index] is part:
            del self._starts[index]
            del self._parts[index]


class PartPool:
    """What all handles of a mount share: memory, requests in flight, and the parts of blobs.

    `start` runs a task in the background.
    """

    def __init__(self, start: Start) -> None:
        self._start = start
        #: Bytes of all parts, those on their way included.
        self.used = 0
        self._contents: dict[Hashable, _Content] = {}
        # By the last read, the oldest first.
        self._handles: OrderedDict[ReadAhead, None] = OrderedDict()
        # Parts to be fetched, the next one first, and who has the reader for each.
        self._waiting: deque[tuple[_Part, ReadAhead]] = deque()
        self._fetching = 0

    # --- handles -------------------------------------------------------------------------------------------------

    def join(self, key: Hashable) -> _Content:
        """The parts of the blob `key`, for one more handle."""
        content = self._contents.setdefault(key, _Content(key))
        content.handles += 1
        return content

    def leave(self, handle: ReadAhead, content: _Content) -> None:
        """A handle that has dropped its parts is closed."""
        self._handles.pop(handle, None)
        content.handles -= 1
        if not content.handles:
            self._contents.pop(content.key, None)

    def touch(self, handle: ReadAhead) -> None:
        """A handle reads."""
        self._handles[handle] = None
        self._handles.move_to_end(handle)

    def share(self) -> int:
        """Bytes that each handle may have ahead, so that there is enough for all that are reading."""
        now = trio.current_time()
        reading = 0
        for handle in reversed(self._handles):
            if now - handle.read_at > _IDLE_AFTER:
                break
            reading += handle.is_in_order
        return min(HANDLE_LIMIT, max(2 * FIRST_PART, POOL_LIMIT // max(1, reading)))

    # --- parts ---------------------------------------------------------------------------------------------------

    def fetch(self, handle: ReadAhead, content: _Content, start: int, end: int) -> _Part | None:
        """A new part that is fetched in the background; None if there is no memory for it."""
        if not self._make_room(end - start, handle, idle_after=_IDLE_AFTER):
            return None
        part = self._add(content, start, end)
        self._waiting.append((part, handle))
        if self._fetching < REQUESTS:
            self._start_fetching()
        return part

    def need(self, part: _Part) -> None:
        """Somebody waits for a part: it comes before all others."""
        for waiting in self._waiting:
            if waiting[0] is part:
                self._waiting.remove(waiting)
                self._waiting.appendleft(waiting)
                if self._fetching >= REQUESTS:
                    self._start(self._fetch_next)
                return

    def add(self, handle: ReadAhead, content: _Content, start: int, end: int) -> _Part:
        """A new part that the caller fetches, whether or not there is memory: others lose theirs for it."""
        self._make_room(end - start, handle, idle_after=0.0)
        return self._add(content, start, end)

    def _add(self, content: _Content, start: int, end: int) -> _Part:
        part = _Part(content, start, end)
        self.used += part.length
        content.add(part)
        return part

    def release(self, part: _Part) -> None:
        """One handle less keeps a part."""
        part.users -= 1
        if part.users <= 0:
            self.drop(part)

    def drop(self, part: _Part) -> None:
        """Nobody finds the part any more. It takes up memory until it has come, or its request was cancelled."""
        if part.dropped:
            return
        part.dropped = True
        part.content.remove(part)
        if part.done.is_set():
            self.used -= part.length
        else:
            part.scope.cancel()

    def finish(self, part: _Part) -> None:
        """A part has come, or has failed."""
        part.done.set()
        if part.dropped:
            self.used -= part.length

    def _make_room(self, size: int, asking: ReadAhead, *, idle_after: float) -> bool:
        """Takes from those what they keep who have not read for so long, as far as it is needed; whether that did."""
        now = trio.current_time()
        while self.used + size > POOL_LIMIT and self._handles:
            oldest = next(iter(self._handles))
            if oldest is asking or now - oldest.read_at < idle_after:
                return False
            del self._handles[oldest]
            oldest.drop_all()
        return self.used + size <= POOL_LIMIT

    def _start_fetching(self) -> None:
        self._fetching += 1
        self._start(self._fetch_waiting)

    async def _fetch_waiting(self) -> None:
        """Fetches parts until none is waiting. trio starts tasks in any order, so none has a part of its own."""
        try:
            while self._waiting:
                await self._fetch_next()
        finally:
            self._fetching -= 1

    async def _fetch_next(self) -> None:
        if self._waiting:
            await self._fetch(*self._waiting.popleft())

    async def _fetch(self, part: _Part, handle: ReadAhead) -> None:
        part.asked_at = trio.current_time()
        try:
            if not part.dropped:
                with part.scope:
                    part.data = await handle.read_part(part)
        except LayerfsError as error:
            part.error = error
        finally:
            self.finish(part)


class ReadAhead:
    """Reads of one handle of the blob `key`. Handles with equal keys must read the same bytes.

    `kept_behind` is bytes that are kept for those who come a little later. The reader is closed by `close`, or when the
    last request that was made with it has ended.
    """

    def __init__(self, reader: FileReader, pool: PartPool, key: Hashable, *, kept_behind: int = KEPT_BEHIND) -> None:
        self._reader = reader
        self._kept_behind = kept_behind
        self._pool = pool
        self._content = pool.join(key)
        self._size = reader.size
        self._closed = False
        self._requests = 0
        #: When it was last read from.
        self.read_at = trio.current_time()
        self._expected = 0
        self._run = 0
        self._is_contiguous = True
        # Parts in order, of which those before `_planned` are here or were asked for.
        self._ahead: deque[_Part] = deque()
        self._planned = 0
        self._small: deque[_Part] = deque()
        self._next_length = FIRST_PART
        self._window = FIRST_WINDOW

    @property
    def is_in_order(self) -> bool:
        """Whether it is worth while to read ahead."""
        return self._run >= (_CONTIGUOUS_AFTER if self._is_contiguous else _SKIPPING_AFTER)

    async def read(self, offset: int, length: int) -> bytes:
        """As `FileReader.read`."""
        end = self._begin(offset, length)
        pieces = []
        while offset < end:
            piece = await self._piece(offset, end)
            pieces.append(piece)
            offset += len(piece)
        return _joined(pieces)

    async def read_some(self, offset: int, length: int) -> memoryview | bytes:
        """`read`, but as few of the bytes as can be had without copying them: at least one, where there is one."""
        if offset >= self._size:
            return b""
        self._begin(offset, 1)
        piece = await self._piece(offset, min(offset + length, self._size))
        self._expected = max(self._expected, offset + len(piece))
        return piece

    async def read_shared(self, offset: int, length: int) -> bytes | None:
        """`read` of what was asked for already, by whomever; None if something of it was not, or has failed."""
        end = min(offset + length, self._size)
        pieces: list[memoryview] = []
        while offset < end:
            part = self._content.at(offset)
            if part is None:
                return None
            await self._wait(part)
            if not part.data:
                return None
            pieces.append(memoryview(part.data)[offset - part.start : end - part.start])
            offset += len(pieces[-1])
        return _joined(pieces)

    def close(self) -> None:
        """Forgets all parts that nobody else wants, those under way included. May be called again."""
        if not self._closed:
            self._closed = True
            self.drop_all()
            self._pool.leave(self, self._content)
            self._close_reader()

    async def read_part(self, part: _Part) -> bytes:
        """The bytes of a part, from storage."""
        self._requests += 1
        try:
            return await self._reader.read(part.start, part.length)
        finally:
            self._requests -= 1
            self._close_reader()

    def _close_reader(self) -> None:
        if self._closed and not self._requests:
            self._reader.close()

    def drop_all(self) -> None:
        """Keeps nothing any more; the next read begins anew."""
        for part in (*self._ahead, *self._small):
            self._pool.release(part)
        self._ahead.clear()
        self._small.clear()
        self._planned = 0
        self._next_length = FIRST_PART
        self._window = FIRST_WINDOW

    def _begin(self, offset: int, length: int) -> int:
        """Asks for what this read, and the next ones, will need. Returns where it ends."""
        end = min(offset + length, self._size)
        if offset < end:
            self.read_at = trio.current_time()
            self._pool.touch(self)
            self._notice(offset, end)
            if self.is_in_order:
                self._plan(offset)
        return end

    # --- what the reader does ------------------------------------------------------------------------------------

    def _notice(self, offset: int, end: int) -> None:
        """Whether this read goes on where the last ones were, or where parts are already."""
        # Reads that could be answered without waiting were not seen here: so up to what was planned all is in order.
        furthest = max(self._expected, self._planned)
        if self._expected - _LATE <= offset <= furthest + _SKIPPED:
            self._run += end > self._expected
            self._is_contiguous = self._is_contiguous and offset <= self._expected
            self._expected = max(self._expected, end)
        else:
            self._drop_ahead()
            self._run = 1
            self._is_contiguous = True
            self._expected = end

    def _drop_ahead(self) -> None:
        small = self._small
        self._small = deque()
        self.drop_all()
        self._small = small

    def _plan(self, offset: int) -> None:
        """Asks for what comes next, as far as there is room."""
        while self._ahead and self._ahead[0].end + self._kept_behind <= self._expected:
            self._pool.release(self._ahead.popleft())
        self._planned = max(self._planned, offset)
        limit = self._pool.share()
        while self._planned < self._size and self._may_plan(limit):
            part = self._content.at(self._planned)
            if part is None:
                length = min(self._next_length, max(FIRST_PART, limit // 2))
                end = self._content.free_until(self._planned, min(self._planned + length, self._size))
                part = self._pool.fetch(self, self._content, self._planned, end)
                if part is None:
                    return
                self._next_length = min(2 * self._next_length, LARGEST_PART)
            part.users += 1
            self._ahead.append(part)
            self._planned = part.end

    def _may_plan(self, limit: int) -> bool:
        ahead = sum(part.end > self._expected for part in self._ahead)
        kept_from = self._ahead[0].start if self._ahead else self._planned
        return ahead < self._window and self._planned + self._next_length - kept_from <= limit

    # --- the bytes -----------------------------------------------------------------------------------------------

    async def _piece(self, offset: int, end: int) -> memoryview | bytes:
        part = self._content.at(offset)
        if part is None:
            return await self._ask(offset, end)
        await self._wait(part)
        # What is dropped in the meantime can still be used.
        if part.data:
            return memoryview(part.data)[offset - part.start : end - part.start]
        if part.error is not None and part.took_long():
            self._pool.drop(part)
            raise part.error
        # Failed, or given up by whoever asked for it: this read asks for itself, and its error is its own.
        self._pool.drop(part)
        return await self._ask(offset, end)

    async def _wait(self, part: _Part) -> None:
        """Until a part has come or failed; whoever asked for it may lose interest meanwhile."""
        if part.done.is_set():
            return
        self._pool.need(part)
        self._window = min(2 * self._window, LARGEST_WINDOW)
        part.users += 1
        try:
            await part.done.wait()
        finally:
            self._pool.release(part)

    async def _ask(self, offset: int, end: int) -> memoryview | bytes:
        """Asks storage for what no part has. Others who want it meanwhile wait for the answer."""
        end = self._content.free_until(offset, end)
        with_more = self._content.free_until(offset, min(max(end, offset + SMALL_READ), self._size))
        part = self._pool.add(self, self._content, offset, with_more)
        part.users += 1
        self._small.append(part)
        try:
            part.data = await self.read_part(part)
        except LayerfsError:
            if with_more == end or part.took_long():
                raise
        finally:
            self._pool.finish(part)
            if not part.data:
                self._pool.drop(part)
            while len(self._small) > _SMALL_READS_KEPT:
                self._pool.release(self._small.popleft())
        if part.data:
            return memoryview(part.data)[: end - offset]
        # What was asked for besides may be what storage cannot give.
        return await self._reader.read(offset, end - offset)


def _joined(pieces: Sequence[memoryview | bytes]) -> bytes:
    # A view of a part saves a copy of everything; whoever sends it to the kernel takes any buffer.
    return cast(bytes, pieces[0]) if len(pieces) == 1 else b"".join(pieces)
