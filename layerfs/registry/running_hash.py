"""The hash of an upload that runs along with its writes, so that finishing it need not read it again.

It counts only while this process can show that nobody else touched the file: by the file's version, and, where it goes
on from a state that was found, only until it says that something is wrong (`is_proven`). Nothing here is stored; what
is, is in `hash_states`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeAlias

import trio

from layerfs.digest import Digest
from layerfs.driver.interface import ContentVersion
from layerfs.registry.hashing import StreamingHash, new_hash

#: Bytes read at a time when content is hashed from storage.
READ_SIZE: Final = 4 << 20

#: Gives the bytes at an offset, so many of them, as `FileReader.read` does.
Read: TypeAlias = Callable[[int, int], Awaitable[bytes]]


class RunningHash:
    """The SHA-256 of the first `count` bytes of a file, which may grow.

    `limiter` bounds the threads that hash. One call at a time.
    """

    def __init__(self, limiter: trio.CapacityLimiter) -> None:
        self.limiter = limiter
        #: The version of the file; None if unknown. While it is being written here, the one that its writer keeps.
        self.version: ContentVersion | None = None
        #: Whether every byte under the hash went through this process; else it rests on a state that was found.
        self.is_proven = True
        self._hash = new_hash()

    @property
    def count(self) -> int:
        """Bytes hashed so far, from the beginning."""
        return self._hash.count

    def digest(self) -> Digest:
        """Of the first `count` bytes."""
        return self._hash.digest()

    def state_of(self, size: int) -> bytes | None:
        """The state to store for `size` bytes; None if it is of fewer, or there are no states on this machine."""
        return self._hash.state() if self.count == size else None

    def begin_again(self) -> None:
        """It is of nothing from now on."""
        self._hash = new_hash()
        self.is_proven = True

    def resume(self, found: StreamingHash | None) -> None:
        """Goes on from a state that was found, or, without one, from the beginning."""
        self.begin_again()
        if found is not None:
            self._hash = found
            self.is_proven = False

    async def update(self, buffers: Sequence[bytes]) -> None:
        """Hashes the bytes that come next."""
        # Not abandoned on cancellation: the thread would go on changing the hash behind our back.
        await trio.to_thread.run_sync(self._hash.update, buffers, limiter=self.limiter)

    async def update_zeros(self, count: int) -> None:
        """Hashes a hole of `count` bytes that comes next."""
        await self.update([bytes(min(READ_SIZE, count - done)) for done in range(0, count, READ_SIZE)])

    async def read_some(self, size: int, read: Read) -> bool:
        """Hashes the next part of the first `size` bytes; whether there was any."""
        length = min(READ_SIZE, size - self.count)
        if length <= 0:
            return False
        await self.update([await read(self.count, length)])
        return True

    async def read_all(self, size: int, read: Read) -> None:
        """Hashes what is missing of the first `size` bytes. Where it was cancelled it may go on."""
        while await self.read_some(size, read):
            pass
