"""Large buffers that are used again: fresh ones cost more than all that is done with them.

The system hands out memory page by page and zeroed, 0.5 to 1 s of CPU for a GiB in buffers of 8 MiB; and the daemon
has to give large ones back when they are freed, or its memory would only grow. So while many of one size are needed,
those that nobody uses any more are filled again, and given back when that has ended.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Final

#: Seconds without use after which buffers are given back.
_KEPT_FOR: Final = 2.0

#: Buffers that are kept at the most: what one reader has ahead of it, and a few that are just being filled.
_KEPT: Final = 12

#: Bytes up to which what is gathered is in memory of its own: most uploads are small.
_SMALL: Final = 1 << 20

#: References to a buffer that nobody uses: the list's, and that of the question itself.
_UNUSED: Final = 2


class BufferPool:
    """Buffers of `size` bytes. Who takes one need not give it back: that nobody has it any more is seen. On asyncio."""

    def __init__(self, size: int, *, kept: int = _KEPT) -> None:
        self._size = size
        self._kept = kept
        self._buffers: list[bytearray] = []
        self._trimming: asyncio.TimerHandle | None = None

    def take(self, size: int) -> bytearray:
        """A buffer of exactly `size` bytes, with anything in it."""
        if size != self._size:
            return bytearray(size)
        for number in range(len(self._buffers)):
            if self._is_unused(number):
                return self._buffers[number]
        buffer = bytearray(size)
        if len(self._buffers) < self._kept:
            self._buffers.append(buffer)
        if self._trimming is None:
            self._trimming = asyncio.get_running_loop().call_later(_KEPT_FOR, self._trim)
        return buffer

    def _is_unused(self, number: int) -> bool:
        # A memoryview of it would be a reference too. Whoever has none cannot get one.
        return sys.getrefcount(self._buffers[number]) == _UNUSED

    def _trim(self) -> None:
        """Gives back half of those that are not in use, at least one."""
        unused = [number for number in range(len(self._buffers)) if self._is_unused(number)]
        for number in reversed(unused[len(unused) // 2 :]):
            del self._buffers[number]
        self._trimming = asyncio.get_running_loop().call_later(_KEPT_FOR, self._trim) if self._buffers else None


class Gathering:
    """Bytes that come in pieces and are wanted in one, such as a part of an upload. On asyncio.

    What is to become large is copied into a buffer of the pool, so that the pieces, whose memory is dear too, can go at
    once.
    """

    def __init__(self, pool: BufferPool, content: bytes = b"") -> None:
        self._pool = pool
        self._buffer = bytearray(content)
        self._size = len(content)

    def __len__(self) -> int:
        return self._size

    def add(self, piece: memoryview, capacity: int) -> None:
        """Copies the piece. There will be no more than `capacity` bytes in all."""
        size = self._size + len(piece)
        if size > len(self._buffer) and size > _SMALL:
            self._move(capacity)
        if size <= len(self._buffer):
            self._buffer[self._size : size] = piece
        else:
            self._extend(piece)
        self._size = size

    def view(self) -> memoryview:
        """All of it. Does not change, whatever is added later."""
        return memoryview(self._buffer)[: self._size]

    def _extend(self, piece: memoryview) -> None:
        try:
            del self._buffer[self._size :]
            self._buffer += piece
        except BufferError:
            # Somebody has a view of it.
            self._buffer = self._buffer[: self._size] + piece

    def _move(self, capacity: int) -> None:
        with self.view() as view:
            buffer = self._pool.take(capacity)
            buffer[: self._size] = view
        self._buffer = buffer
