"""What a power cut leaves at the end of an upload: zeros in the place of bytes that were never stored.

A file system can keep the new size of a file and lose the bytes, where these needed no new block: then the rest of the
last block reads as zeros (ext4 does so; seen by cutting the power). Whoever goes on behind them gets an upload that no
digest will ever match. So they do not count: where all of this is so, an upload is as long as it is without them.

* It lies on a disk, and was last written before this machine was started.
* There are hash states, so it is known how much was durable at least: those bytes count in any case.
* The zeros are at the end, and in the last block.

Nothing is lost where they are genuine, as at the end of an archive. Whoever goes on where the size says writes the same
zeros again; whoever writes behind them makes them again; and whoever finishes the upload without writing to it has the
file verified as it is.
"""

from __future__ import annotations

import time
from typing import Final

from layerfs.driver.interface import FileInfo, StorageDriver
from layerfs.errors import DriverError
from layerfs.registry.paths import UploadDirectory

#: Bytes of a block, as nearly all file systems have them.
_BLOCK: Final = 4096


async def size_before_lost_tail(driver: StorageDriver, directory: UploadDirectory, data: FileInfo) -> int:
    """How many bytes of an upload count, whose `data` was just looked at."""
    if not data.size or not driver.capabilities.random_writes or data.modified_at >= _started_at():
        return data.size
    try:
        durable = await _durable(driver, directory, data.size)
        return data.size if durable is None else max(durable, await _size_without_zeros(driver, data))
    except DriverError:
        # What is wrong with it is found by whoever reads or writes it.
        return data.size


def _started_at() -> int:
    """When this machine was started, in nanoseconds since 1970."""
    return time.time_ns() - time.clock_gettime_ns(time.CLOCK_BOOTTIME)


async def _durable(driver: StorageDriver, directory: UploadDirectory, size: int) -> int | None:
    """The bytes that were durable when the newest hash state was stored; None if there is none."""
    names = [entry.name for entry in await driver.list(f"{directory.hash_states}/sha256")]
    return max((int(name) for name in names if name.isdecimal() and int(name) <= size), default=None)


async def _size_without_zeros(driver: StorageDriver, data: FileInfo) -> int:
    start = (data.size - 1) // _BLOCK * _BLOCK
    reader = await driver.open(data.path)
    try:
        return start + len((await reader.read(start, data.size - start)).rstrip(b"\0"))
    finally:
        reader.close()
