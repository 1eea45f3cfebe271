"""What a power cut leaves at the end of an upload: zeros in the place of bytes that were never stored.

A file system can keep the new size of a file and lose the bytes. ext4 does so for the rest of a block, where they
needed no new one, and for blocks that were on their way to the disk; both read as zeros (seen by cutting the power).
Whoever goes on behind them gets an upload that no digest will ever match. So an upload is as long as it is without the
zeros at its end, where these can be such: on a disk, in a file that was last written before this machine was started,
behind what is known to have been durable. That is the newest hash state, or what `HashStates.store` has noted without.

Nothing is lost where they are genuine, as at the end of an archive. Whoever goes on where the size says writes the same
zeros again; whoever writes behind them makes them again; and whoever finishes the upload without writing to it has the
file verified as it is.
"""

from __future__ import annotations

import contextlib
import logging
import time
from typing import Final

from layerfs.driver.interface import FileInfo, FileWriter, StorageDriver
from layerfs.errors import ContentTooLarge, DriverError, NotRegularFile, PathNotFound
from layerfs.registry.paths import UploadDirectory

_log = logging.getLogger(__name__)

#: Bytes that can be lost at once: more than are on their way to a disk. More zeros are a hole that somebody has made.
_LARGEST: Final = 64 << 20

#: Bytes read at a time, first and then.
_FIRST_READ: Final = 4 << 10
_READ: Final = 1 << 20

#: Bytes of the number that `note_durable` stores.
_NUMBER_LIMIT: Final = 20


async def size_before_lost_tail(driver: StorageDriver, directory: UploadDirectory, data: FileInfo) -> int:
    """How many bytes of an upload count, whose `data` was just looked at."""
    if not _can_lose_tail(driver, data.size) or data.modified_at >= _started_at():
        return data.size
    try:
        return await _size_without_zeros(driver, data, await _durable(driver, directory, data.size))
    except DriverError:
        # What is wrong with it is found by whoever reads or writes it.
        return data.size


async def cut_lost_tail(driver: StorageDriver, directory: UploadDirectory, writer: FileWriter) -> None:
    """Cuts what does not count off the `data` of an upload, which `writer` has just opened."""
    if not _can_lose_tail(driver, writer.size):
        return
    info = await driver.stat(directory.data)
    size = await size_before_lost_tail(driver, directory, info)
    if size < info.size == writer.size:
        _log.info("upload %s: the last %d bytes were lost when the power went", directory.uuid, info.size - size)
        await writer.truncate(size)


async def note_durable(driver: StorageDriver, directory: UploadDirectory, size: int) -> None:
    """Remembers that the first `size` bytes are durable. Nothing needs it where files do not lose bytes like this."""
    if driver.capabilities.random_writes:
        await driver.put_content(directory.durable, str(size).encode())


def _can_lose_tail(driver: StorageDriver, size: int) -> bool:
    """Whether a file of `size` bytes can have lost some, so that it is worth looking at."""
    return size > 0 and driver.capabilities.random_writes


def _started_at() -> int:
    """When this machine was started, in nanoseconds since 1970."""
    return time.time_ns() - time.clock_gettime_ns(time.CLOCK_BOOTTIME)


async def _durable(driver: StorageDriver, directory: UploadDirectory, size: int) -> int:
    """The bytes that are known to have been durable."""
    try:
        found = [entry.name for entry in await driver.list(f"{directory.hash_states}/sha256")]
    except (PathNotFound, NotRegularFile):
        found = []
    with contextlib.suppress(PathNotFound, NotRegularFile, ContentTooLarge):
        found.append((await driver.get_content(directory.durable, limit=_NUMBER_LIMIT)).decode("ascii", "replace"))
    return max((int(number) for number in found if number.isdecimal() and int(number) <= size), default=0)


async def _size_without_zeros(driver: StorageDriver, data: FileInfo, durable: int) -> int:
    size, lowest = data.size, max(durable, data.size - _LARGEST)
    reader = await driver.open(data.path)
    try:
        length = _FIRST_READ
        while size > lowest:
            start = max(lowest, size - length)
            kept = len((await reader.read(start, size - start)).rstrip(b"\0"))
            if kept:
                return start + kept
            size, length = start, _READ
    finally:
        reader.close()
    return durable if lowest == durable else data.size
