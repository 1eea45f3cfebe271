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

#: Blocks that all handles of a mount hold together at the most: 32 MiB.
_BLOCKS_IN_ALL: Final = 16

#: Reads in order before anything is fetched ahead: one could be a look at the head of the file.
_SEQUENTIAL_AFTER: Final = 2

#: Bytes by which a read may come before or after the one expected: the kernel sends several at once, in any order.
_SLACK: Final = 4 << 20


class ReadAheadBudget:
    """How many blocks all handles of a mount may hold together, so that memory does not grow with open files."""

    def __init__(self) -> None:
        self._left = _BLOCKS_IN_ALL

    def take(self) -> bool:
        """One block, if there is one left."""
        if self._left <= 0:
            return False
        self._left -= 1
        return True

    def give_back(self) -> None:
        """A block that was taken is free again."""
        self._left += 1


class _Block:
    def __init__(self) -> None:
        self.done = trio.Event()
        self.content = b""
        self.error: LayerfsError | None = None
        self.dropped = False


class ReadAhead:
    """Reads of one handle. `start` runs a task in the background."""

    def __init__(
        self, reader: FileReader, budget: ReadAheadBudget, start: Callable[[Callable[[], Awaitable[None]]], None]
    ) -> None:
        self._reader = reader
        self._budget = budget
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
        self._drop(list(self._blocks))

    def _drop(self, numbers: list[int]) -> None:
        for number in numbers:
            block = self._blocks.pop(number, None)
            if block is not None:
                block.dropped = True
                # One that is still on its way takes up memory until it has come.
                if block.done.is_set():
                    self._budget.give_back()

    def _notice(self, offset: int, length: int) -> None:
        if abs(offset - self._expected) <= _SLACK:
            self._in_order += 1
        else:
            self._in_order = 0
            self.close()
        self._expected = max(self._expected, offset + length) if self._in_order else offset + length

    def _fetch_ahead(self, offset: int) -> None:
        first = offset // BLOCK
        self._drop([number for number in self._blocks if number < first - 1])
        for number in range(first, first + _BLOCKS_AHEAD):
            wanted = number not in self._blocks and number * BLOCK < self._reader.size
            if wanted and self._budget.take():
                self._blocks[number] = block = _Block()
                self._start(functools.partial(self._fetch, number, block))

    async def _fetch(self, number: int, block: _Block) -> None:
        try:
            if block.dropped:
                return
            block.content = await self._reader.read(number * BLOCK, min(BLOCK, self._reader.size - number * BLOCK))
        except LayerfsError as error:
            block.error = error
        finally:
            block.done.set()
            if block.dropped:
                self._budget.give_back()

    async def _piece(self, offset: int, length: int) -> bytes:
        number, start = divmod(offset, BLOCK)
        block = self._blocks.get(number)
        if block is None:
            return await self._reader.read(offset, min(length, BLOCK - start))
        await block.done.wait()
        piece = block.content[start : start + length]
        if block.error is not None or not piece:
            # Failed, or given up at shutdown: this read asks for itself, and its error is its own.
            self._drop([number])
            return await self._reader.read(offset, min(length, BLOCK - start))
        return piece
