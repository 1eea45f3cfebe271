"""A file that grows, on a store whose objects can be appended to in one way or another. Runs on asyncio.

What was stored is known by its version, and the store appends to no other: who comes second, in whatever process,
learns it.
"""

from __future__ import annotations

from abc import abstractmethod

from layerfs.driver.buffers import BufferPool
from layerfs.driver.objects import Objects, ObjectVersion, StoredObject
from layerfs.driver.written_upload import WrittenUpload
from layerfs.errors import DriverError, ShortRead


class ObjectUpload(WrittenUpload):
    """An object that this process appends to, block by block.

    A method that is cancelled leaves what is on its way to the store on its way; the next one waits for it.
    """

    def __init__(self, objects: Objects, path: str, stored: StoredObject, buffers: BufferPool) -> None:
        super().__init__(path, stored.modified_at, buffers)
        #: The object as this upload has last made it or found it.
        self.stored = stored
        self._objects = objects
        # Bytes that are in the object, or on their way there.
        self._handed_over = stored.size

    @property
    def size(self) -> int:
        """All bytes that were taken, stored or not; once it has failed, those that are certainly stored."""
        return self.stored.size if self._failure is not None else self._handed_over + len(self._tail)

    @property
    def version(self) -> ObjectVersion:
        """Of what is stored."""
        return ObjectVersion(self.stored.etag, self.stored.size)

    async def read(self, offset: int, length: int) -> bytes:
        """Bytes that were taken, of which those that are needed are stored first."""
        async with self._lock:
            self._check()
            if self.stored.size < offset + length:
                await self._flush()
            if self.stored.size < offset + length:
                raise ShortRead(self.path, f"it has {self.stored.size} bytes now")
        return await self._objects.get_range(self.path, offset, length)

    # --- how it is stored; the lock is held --------------------------------------------------------------------------

    @abstractmethod
    async def _store(self, block: memoryview) -> None:
        """Begins to append a block, which does not change; waits until there is room for it."""

    @abstractmethod
    async def _settle(self) -> None:
        """Returns when all blocks are stored, and `stored` says so."""

    async def _hand_over(self) -> None:
        block = self._tail.view()
        with self._failing_for_good():
            await self._store(block)
        self._forget_tail()
        self._handed_over += len(block)

    async def _flush(self) -> None:
        self._check()
        if self._tail:
            await self._hand_over()
        with self._failing_for_good():
            await self._settle()

    def _fail(self, error: DriverError) -> None:
        super()._fail(error)
        self._forget_tail()

    def _forget_tail(self) -> None:
        self._tail = self._gathering()
