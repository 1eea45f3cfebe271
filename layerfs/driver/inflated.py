"""Reading at any offset of what deflate has compressed, which by itself can only be decompressed from its beginning.

On the way states of the decompressor are kept, each of which can go on from where it is; so a read decompresses what
lies between the last state before it and its end, and no more. Memory is bounded by how many states are kept: when
there are too many every other one is dropped, and they are twice as far apart from then on.
"""

from __future__ import annotations

import bisect
import zlib
from collections import deque
from typing import Final

import trio

from layerfs.driver.interface import FileReader
from layerfs.driver.threads import in_thread
from layerfs.errors import BackendFailure

#: zlib's names for what is around the compressed bytes: nothing, or a header and a checksum.
RAW: Final = -zlib.MAX_WBITS
GZIP: Final = 16 + zlib.MAX_WBITS

#: How far states are apart at first, in bytes of content. Decompressing so much takes some 15 ms.
_SPACING: Final = 4 << 20

#: States kept beside those: where the last readers stopped, as they are likely to go on.
_RECENT: Final = 4

#: Bytes that are decompressed by one call: a state keeps what it was fed with and has not used.
_FED: Final = 16 << 10

#: Compressed bytes that are read at once, at least and at most; and the most content that one step makes.
_LEAST_READ: Final = 64 << 10
_MOST_READ: Final = 1 << 20
_STEP: Final = 1 << 20

_GZIP_MAGIC: Final = b"\x1f\x8b"


class Inflated:
    """The content of the compressed bytes in `source`; `name` is what errors call it.

    At most `states` of 64 KiB are kept. Several gzip files after one another are one content, as gzip(1) has it.
    """

    def __init__(
        self, source: FileReader, *, name: str, window_bits: int, states: int, limiter: trio.CapacityLimiter
    ) -> None:
        self._source = source
        self._name = name
        self._limiter = limiter
        self._limit = states
        self._spacing = _SPACING
        self._window_bits = window_bits
        # By their offsets, which are multiples of the spacing.
        self._kept = [_State(window_bits)]
        self._recent: deque[_State] = deque(maxlen=_RECENT)
        # Of readers at the same place one decompresses, and the others find its state.
        self._turns = trio.Lock()

    async def read(self, offset: int, length: int) -> bytes:
        """The `length` bytes at `offset`, fewer only where the content ends. Raises `BackendFailure` for damage."""
        async with self._turns:
            state = self._nearest(offset)
            end = offset + length
            parts: list[bytes] = []
            while state.offset < end:
                # Not beyond the next place for a state.
                stop = min(end, (state.offset // self._spacing + 1) * self._spacing)
                began_at = state.offset
                content = await self._advance(state, min(_STEP, stop - state.offset))
                if not content:
                    break
                if state.offset > offset:
                    parts.append(content[max(0, offset - began_at) :])
                self._keep(state)
            self._recent.append(state)
        return b"".join(parts)

    def _nearest(self, offset: int) -> _State:
        """A copy of the last state that is not after `offset`."""
        kept = self._kept[bisect.bisect_right(self._kept, offset, key=_offset_of) - 1]
        found = max((state for state in [kept, *self._recent] if state.offset <= offset), key=_offset_of)
        return found.copy()

    def _keep(self, state: _State) -> None:
        if state.offset % self._spacing or state.offset <= self._kept[-1].offset:
            return
        self._kept.append(state.copy(with_input=False))
        if len(self._kept) > self._limit:
            self._spacing *= 2
            self._kept = [state for state in self._kept if not state.offset % self._spacing]

    async def _advance(self, state: _State, length: int) -> bytes:
        """Some of the next `length` bytes of the content, at least one; none at its end."""
        while not state.is_at_end:
            last = False
            if len(state.input) < len(_GZIP_MAGIC):
                wanted = max(_LEAST_READ, min(_MOST_READ, length))
                more = await self._source.read(state.input_offset + len(state.input), wanted)
                state.input += more
                last = not more
            try:
                content = await in_thread(self._limiter, state.advance, length, last)
            except zlib.error as error:
                raise self._damaged(f"{error}") from error
            if content:
                return content
            if last and not state.is_at_end:
                raise self._damaged("it is cut short")
        return b""

    def _damaged(self, reason: str) -> BackendFailure:
        return BackendFailure(self._name, f"its compressed content is damaged: {reason}")


class _State:
    """A decompressor, and where it is: `offset` in the content, `input_offset` in what is compressed."""

    __slots__ = ("_decompressor", "_window_bits", "input", "input_offset", "is_at_end", "offset")

    def __init__(self, window_bits: int) -> None:
        self._window_bits = window_bits
        self._decompressor = zlib.decompressobj(window_bits)
        self.offset = 0
        self.input_offset = 0
        #: What was read at `input_offset`, and not decompressed yet.
        self.input = b""
        self.is_at_end = False

    def copy(self, *, with_input: bool = True) -> _State:
        copy = _State.__new__(_State)
        copy._window_bits = self._window_bits
        # One that has ended is only asked whether it has.
        copy._decompressor = self._decompressor if self._decompressor.eof else self._decompressor.copy()
        copy.offset = self.offset
        copy.input_offset = self.input_offset
        copy.input = self.input if with_input else b""
        copy.is_at_end = self.is_at_end
        return copy

    def advance(self, length: int, last: bool) -> bytes:
        """At most `length` bytes of content from the input, after which nothing comes if it is the `last`."""
        parts: list[bytes] = []
        view = memoryview(self.input)
        used = 0
        while length:
            if self._decompressor.eof:
                used += self._padding(view[used:])
                if not self._begin_next(view[used:], last):
                    break
            fed = view[used : used + _FED]
            if not fed and not last:
                break
            content = self._decompressor.decompress(fed, length)
            rest = self._decompressor.unused_data if self._decompressor.eof else self._decompressor.unconsumed_tail
            used += len(fed) - len(rest)
            length -= len(content)
            parts.append(content)
            if not fed and not content:
                break
        self.input = self.input[used:]
        self.input_offset += used
        content = b"".join(parts)
        self.offset += len(content)
        return content

    def _padding(self, view: memoryview) -> int:
        """How many zeros come first: tapes and archivers pad the end of a gzip file."""
        return len(view) - len(bytes(view).lstrip(b"\0")) if self._window_bits == GZIP else 0

    def _begin_next(self, view: memoryview, last: bool) -> bool:
        """After the end of a gzip file: whether another begins here. Else `is_at_end`, unless more has to be read."""
        if self._window_bits == GZIP and bytes(view[: len(_GZIP_MAGIC)]) == _GZIP_MAGIC:
            self._decompressor = zlib.decompressobj(self._window_bits)
            return True
        self.is_at_end = last or self._window_bits != GZIP or len(view) >= len(_GZIP_MAGIC)
        return False


def _offset_of(state: _State) -> int:
    return state.offset
