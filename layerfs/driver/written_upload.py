"""A file that this process appends to in an object store: whose turn it is, what is gathered, and that it has failed.

How what was gathered is stored is said by a subclass for each way of storing. Runs on asyncio.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

from layerfs.driver.buffers import BufferPool, Gathering
from layerfs.errors import ContentChanged, DriverError


class WrittenUpload(ABC):
    """What is written is gathered to pieces, which are stored while the next ones fill.

    One method at a time has it; the others wait. Once storing has failed, every method raises what was raised first:
    nobody knows then what is stored.
    """

    def __init__(self, path: str, modified_at: int, buffers: BufferPool) -> None:
        self.path = path
        #: Nanoseconds since 1970.
        self.modified_at = modified_at
        self._lock = asyncio.Lock()
        self._buffers = buffers
        # What does not fill a piece yet.
        self._tail = self._gathering()
        self._failure: DriverError | None = None

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

    @abstractmethod
    async def abandon(self) -> None:
        """Forgets what is not stored."""

    # --- how it is stored; the lock is held --------------------------------------------------------------------------

    @property
    @abstractmethod
    def _next_size(self) -> int:
        """Bytes of the piece that is being filled. Raises `ContentTooLarge` if the store takes no more."""

    @abstractmethod
    async def _hand_over(self) -> None:
        """Begins to store what was gathered, when there is room for it."""

    @abstractmethod
    async def _flush(self) -> None:
        """Returns when everything is stored."""

    async def _take(self, view: memoryview) -> None:
        while view:
            size = self._next_size
            taken = view[: max(0, size - len(self._tail))]
            self._tail.add(taken, size)
            view = view[len(taken) :]
            if len(self._tail) >= size:
                await self._hand_over()

    def _gathering(self, content: bytes = b"") -> Gathering:
        return Gathering(self._buffers, content)

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure.with_traceback(None)

    @contextlib.contextmanager
    def _failing_for_good(self) -> Iterator[None]:
        """What fails in the body is raised by everything from then on."""
        try:
            yield
        except DriverError as error:
            self._fail(error)
            raise

    def _fail(self, error: DriverError) -> None:
        if self._failure is None:
            self._failure = error
