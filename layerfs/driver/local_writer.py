"""Writing a file on a local disk that other processes may write too."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable, Sequence
from typing import Final, TypeVarTuple

from layerfs.driver.errnos import translated
from layerfs.driver.interface import ContentVersion, FileWriter
from layerfs.driver.openat import Descriptor, Root, split, write_all
from layerfs.driver.threads import Changes
from layerfs.errors import ContentChanged, InvalidOffset

_Arguments = TypeVarTuple("_Arguments")

#: Bytes after which the disk is told to begin writing, so that the last fsync has little left to do: 0.02-0.06 s
#: instead of 0.5 s after 1 GiB, and 0.5 s instead of 1.2 s for all of it (measured on ext4; 16 MiB is no different).
WRITE_BACK_EVERY: Final = 8 << 20

_SYNC_FILE_RANGE_WRITE: Final = 2

_sync_file_range = ctypes.CDLL(None, use_errno=True).sync_file_range
_sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)


def version_of(status: os.stat_result) -> ContentVersion:
    """Changes whenever a byte does.

    Since Linux 6.13 for sure: there a time that somebody has asked for is never given to another change. Before, a
    change within the same tick (4 ms) that leaves the size alone goes unseen.
    """
    return ContentVersion((status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns))


class LocalWriter(FileWriter):
    """The writer of one file, for one task at a time. Its state changes in threads only, one after the other.

    An operation that was cancelled goes on in its thread, and the next one waits for it, whoever's writer it is of; so
    `size` may still grow after a cancelled `write`, until the next operation.
    """

    def __init__(self, root: Root, path: str, descriptor: Descriptor, status: os.stat_result, changes: Changes) -> None:
        self._root = root
        self._path = path
        self._descriptor = descriptor
        self._changes = changes
        self._flush_failed = False
        self._name_is_durable = False
        self._written_back = 0
        self._remember(status)

    async def write(self, buffers: Sequence[bytes]) -> None:
        await self._run(self._append, [memoryview(buffer) for buffer in buffers if buffer])

    async def write_at(self, offset: int, content: bytes) -> None:
        if offset < 0:
            raise InvalidOffset(self._path, f"{offset}")
        await self._run(self._write_at, offset, content)

    async def truncate(self, size: int) -> None:
        if size < 0:
            raise InvalidOffset(self._path, f"{size}")
        await self._run(self._truncate, size)

    async def flush(self) -> None:
        await self._run(self._flush)

    def version(self) -> ContentVersion | None:
        return self._version

    async def close(self) -> None:
        # Without a thread: closing waits for nothing on a local disk, and cannot be cancelled this way.
        self._descriptor.close()

    async def _run(self, operation: Callable[[int, *_Arguments], None], *arguments: *_Arguments) -> None:
        await self._changes.make([self._path], self._unless_changed, operation, *arguments)

    def _unless_changed(self, operation: Callable[[int, *_Arguments], None], *arguments: *_Arguments) -> None:
        with self._descriptor as number, translated(self._path):
            self._check_unchanged(number)
            operation(number, *arguments)

    def _check_unchanged(self, number: int) -> None:
        if version_of(os.fstat(number)) != self._version:
            raise ContentChanged(self._path)

    def _remember(self, status: os.stat_result) -> None:
        self._version = version_of(status)
        self.size = status.st_size

    def _append(self, number: int, buffers: list[memoryview]) -> None:
        # Not O_APPEND, which would put bytes behind those of a foreign writer who came after the check: at the offset
        # where they belong, the file is either what it should be, or has another size.
        size = self.size + sum(map(len, buffers))
        self._write(number, buffers, self.size)
        if self.size != size:
            raise ContentChanged(self._path)
        self._begin_write_back(number)

    def _write_at(self, number: int, offset: int, content: bytes) -> None:
        self._write(number, [memoryview(content)] if content else [], offset)

    def _write(self, number: int, buffers: list[memoryview], offset: int) -> None:
        try:
            write_all(number, buffers, offset)
        finally:
            self._remember(os.fstat(number))

    def _truncate(self, number: int, size: int) -> None:
        os.ftruncate(number, size)
        self._remember(os.fstat(number))

    def _begin_write_back(self, number: int) -> None:
        length = self.size - self._written_back
        if length >= WRITE_BACK_EVERY:
            # Only a hint: what it could report, fsync reports.
            _sync_file_range(number, self._written_back, length, _SYNC_FILE_RANGE_WRITE)
            self._written_back = self.size

    def _flush(self, number: int) -> None:
        if self._flush_failed:
            # The kernel reports lost pages once, and forgets them: a second fsync that succeeds means nothing.
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        try:
            os.fsync(number)
            self._make_name_durable()
        except OSError:
            self._flush_failed = True
            raise
        self._check_unchanged(number)

    def _make_name_durable(self) -> None:
        if not self._name_is_durable:
            with self._root.directory(split(self._path)[0]) as directory:
                os.fsync(directory)
            self._name_is_durable = True
