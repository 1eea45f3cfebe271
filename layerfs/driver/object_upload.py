"""A file that grows, on a store whose objects can be appended to in one way or another. Runs on asyncio.

What is written is gathered to blocks, and blocks are stored in the background while the next one fills. What was stored
is known by its version, and the store appends to no other: who comes second, in whatever process, learns it.
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence

from layerfs.driver.buffers import BufferPool, Gathering
from layerfs.driver.objects import Objects, ObjectVersion, StoredObject
from layerfs.errors import ContentChanged, DriverError, ShortRead


class ObjectUpload(ABC):
    """An object that this process appends to. One method at a time has it; the others wait.

    A method that is cancelled leaves what is on its way to the store on its way; the next one waits for it.
    """

    def __init__(self, objects: Objects, path: str, stored: StoredObject, buffers: BufferPool) -> None:
        self.path = path
        #: The object as this upload has last made it or found it.
        self.stored = stored
        self.modified_at = stored.modified_at
        self._objects = objects
        self._lock = asyncio.Lock()
        # Bytes that are in the object, or on their way there.
        self._handed_over = stored.size
        self._buffers = buffers
        self._tail = Gathering(buffers)
        self._failure: DriverError | None = None

    @property
    def size(self) -> int:
        """All bytes that were taken, stored or not; once it has failed, those that are certainly stored."""
        return self.stored.size if self._failure is not None else self._handed_over + len(self._tail)

    @property
    def version(self) -> ObjectVersion:
        """Of what is stored."""
        return ObjectVersion(self.stored.etag, self.stored.size)

    @property
    def has_failed(self) -> bool:
        """Whether every method raises what was raised first."""
        return self._failure is not None

    def fence(self, reason: str) -> None:
        """From here on every method raises `ContentChanged`."""
        self._failure = ContentChanged(self.path, reason)

    async def append(self, buffers: Sequence[bytes]) -> None:
        """Takes all the bytes; returns when no more of them are waiting to be stored than may be."""
        async with self._lock:
            self._check()
            for buffer in buffers:
                with memoryview(buffer) as view:
                    await self._take(view)
            self.modified_at = time.time_ns()

    async def flush(self) -> None:
        """Returns when everything is stored."""
        async with self._lock:
            await self._flush()

    async def read(self, offset: int, length: int) -> bytes:
        """Bytes that were taken, of which those that are needed are stored first."""
        async with self._lock:
            self._check()
            if self.stored.size < offset + length:
                await self._flush()
            if self.stored.size < offset + length:
                raise ShortRead(self.path, f"it has {self.stored.size} bytes now")
        return await self._objects.get_range(self.path, offset, length)

    @abstractmethod
    async def abandon(self) -> None:
        """Forgets what is not stored."""

    # --- how it is stored; the lock is held --------------------------------------------------------------------------

    @property
    @abstractmethod
    def _block_size(self) -> int:
        """Bytes of the block that is being filled. Raises `ContentTooLarge` if the store takes no more."""

    @abstractmethod
    async def _store(self, block: memoryview) -> None:
        """Begins to append a block, which does not change; waits until there is room for it."""

    @abstractmethod
    async def _settle(self) -> None:
        """Returns when all blocks are stored, and `stored` says so."""

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure.with_traceback(None)

    async def _take(self, view: memoryview) -> None:
        while view:
            size = self._block_size
            taken = view[: size - len(self._tail)]
            self._tail.add(taken, size)
            view = view[len(taken) :]
            if len(self._tail) >= size:
                await self._hand_over()

    async def _hand_over(self) -> None:
        block = self._tail.view()
        try:
            await self._store(block)
        except DriverError as error:
            raise self._fail(error) from error
        self._forget_tail()
        self._handed_over += len(block)

    async def _flush(self) -> None:
        self._check()
        if self._tail:
            await self._hand_over()
        try:
            await self._settle()
        except DriverError as error:
            raise self._fail(error) from error

    def _fail(self, error: DriverError) -> DriverError:
        """What is raised from now on."""
        if self._failure is None:
            self._failure = error
        self._forget_tail()
        return error

    def _forget_tail(self) -> None:
        self._tail = Gathering(self._buffers)
