"""Reading a file on a local disk."""

from __future__ import annotations

import errno
import mmap
import os
from typing import Final

import trio

from layerfs.driver.errnos import driver_error, translated
from layerfs.driver.interface import FileReader
from layerfs.driver.openat import Descriptor, read_exactly
from layerfs.driver.ranges import check_length, clamp
from layerfs.driver.threads import in_thread

#: The most that the kernel asks for at once, with FUSE's `max_read` of 1 MiB.
BUFFER_SIZE: Final = 1 << 20


class CachedReads:
    """Reads what is in the page cache already, into one buffer that all readers of a driver share.

    Asking also starts the kernel's read-ahead, so that a file that is read from beginning to end is cached when it is
    asked for, cold or not (99 of 100 reads of 128 KiB, 1.2-1.6 GiB/s; `posix_fadvise` made no difference).
    """

    def __init__(self) -> None:
        # Anonymous memory of its own: page-aligned, and given back to the system when the driver goes.
        self._buffer = memoryview(mmap.mmap(-1, BUFFER_SIZE))
        self._supported = True

    def read(self, number: int, offset: int, length: int) -> memoryview | None:
        """The `length` bytes at `offset`; None if the disk would have to be waited for, or the file is shorter."""
        if length > BUFFER_SIZE or not self._supported:
            return None
        view = self._buffer[:length]
        count = 0
        try:
            while count < length:
                read = os.preadv(number, [view[count:]], offset + count, os.RWF_NOWAIT)
                if not read:
                    return None
                count += read
        except BlockingIOError:
            return None
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
            # tmpfs before Linux 6.12, NFS, FUSE: as a whole, so it need not be asked again.
            self._supported = False
            return None
        return view


def read_range(descriptor: Descriptor, path: str, offset: int, length: int) -> bytes:
    """Exactly these bytes, or `ShortRead`. Blocks."""
    with translated(path), descriptor as number:
        return check_length(path, read_exactly(number, length, offset), length)


class LocalReader(FileReader):
    """A descriptor and its size; the descriptor is closed at the latest when nobody has the reader any more."""

    def __init__(
        self, path: str, descriptor: Descriptor, size: int, cached: CachedReads, limiter: trio.CapacityLimiter
    ) -> None:
        self._path = path
        self._descriptor = descriptor
        self._cached = cached
        self._limiter = limiter
        self.size = size

    def read_nowait(self, offset: int, length: int) -> memoryview | bytes | None:
        length = clamp(self._path, offset, length, self.size)
        if not length:
            return b""
        try:
            return self._cached.read(self._descriptor.number, offset, length)
        except OSError as error:
            raise driver_error(error, self._path) from error

    async def read(self, offset: int, length: int) -> bytes:
        length = clamp(self._path, offset, length, self.size)
        if not length:
            return b""
        return await in_thread(self._limiter, read_range, self._descriptor, self._path, offset, length)

    def close(self) -> None:
        self._descriptor.close()
