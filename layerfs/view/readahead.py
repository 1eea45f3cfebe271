"""Read-ahead for one open file on storage where every read takes a while.

Where the storage can answer at once (`FileReader.read_nowait`) none of this is used. Else a reader that goes through
the file in order is answered from blocks that were asked for before it came to them, a few at a time; a reader that
jumps about causes no more reading than it asks for.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from typing import Final

import trio

from layerfs.driver.interface import FileReader
from layerfs.errors import LayerfsError

#: Bytes in a block, and blocks that are fetched ahead of the reader at the most.
BLOCK: Final = 2 << 20
_BLOCKS_AHEAD: Final = 3

#: Reads in order before anything is fetched ahead: one could be a look at the head of the file.
_SEQUENTIAL_AFTER: Final = 2

#: Bytes by which a read may come before or after the one expected: the kernel sends several at once, in any order.
_SLACK: Final = 4 << 20


class _Block:
    def __init__(self) -> None:
        self.done = trio.Event()
        self.content = b""
        self.error: LayerfsError | None = None


class ReadAhead:
    """Reads of one handle. `start` runs a task in the background; memory is at most `_BLOCKS_AHEAD` + 1 blocks."""

    def __init__(self, reader: FileReader, start: Callable[[Callable[[], Awaitable[None]]], None]) -> None:
        self._reader = reader
        self._start = start
        self._blocks: dict[int, _Block] = {}
        self._expected = 0
        self._in_order = 0

    async def read(self, offset: int, length: int) -> bytes:
        """As `FileReader.read`."""
        length = max(0, min(length, self._reader.size - offset))
        if not length:
            return b""
        self._notice(offset, length)
        if self._in_order <= _SEQUENTIAL_AFTER:
            return await self._reader.read(offset, length)
        self._fetch_ahead(offset)
        pieces = []
        while length:
            piece = await self._piece(offset, length)
            pieces.append(piece)
            offset += len(piece)
            length -= len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def close(self) -> None:
        """Forgets all blocks; those under way end by themselves."""
        self._blocks.clear()

    def _notice(self, offset: int, length: int) -> None:
        if abs(offset - self._expected) <= _SLACK:
            self._in_order += 1
        else:
            self._in_order = 0
            self._blocks.clear()
        self._expected = max(self._expected, offset + length) if self._in_order else offset + length

    def _fetch_ahead(self, offset: int) -> None:
        first = offset // BLOCK
        for number in [number for number in self._blocks if number < first - 1]:
            del self._blocks[number]
        for number in range(first, first + _BLOCKS_AHEAD):
            if number not in self._blocks and number * BLOCK < self._reader.size:
                self._blocks[number] = block = _Block()
                self._start(functools.partial(self._fetch, number, block))

    async def _fetch(self, number: int, block: _Block) -> None:
        try:
            block.content = await self._reader.read(number * BLOCK, min(BLOCK, self._reader.size - number * BLOCK))
        except LayerfsError as error:
            block.error = error
        finally:
            block.done.set()

    async def _piece(self, offset: int, length: int) -> bytes:
        number, start = divmod(offset, BLOCK)
        block = self._blocks.get(number)
        if block is None:
            return await self._reader.read(offset, min(length, BLOCK - start))
        await block.done.wait()
        piece = block.content[start : start + length]
        if block.error is not None or not piece:
            # Failed, or given up at shutdown: this read asks for itself, and its error is its own.
            self._blocks.pop(number, None)
            return await self._reader.read(offset, min(length, BLOCK - start))
        return piece
