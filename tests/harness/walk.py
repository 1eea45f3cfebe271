"""All that is in a storage, through a driver."""

from __future__ import annotations

import trio

from layerfs.driver.interface import StorageDriver

_LIMIT = 1 << 30


async def files_in(driver: StorageDriver, path: str = "/") -> dict[str, bytes]:
    """Every file below `path`, with its content."""
    paths = sorted(await _paths_in(driver, path))
    contents = await driver.get_contents(paths, limit=_LIMIT)
    found: dict[str, bytes] = {}
    for child, content in zip(paths, contents, strict=True):
        if isinstance(content, Exception):
            raise content
        found[child] = content
    return found


async def _paths_in(driver: StorageDriver, path: str) -> list[str]:
    entries = await driver.list(path)
    found = [f"{path.rstrip('/')}/{entry.name}" for entry in entries if not entry.is_directory]

    async def add(directory: str) -> None:
        found.extend(await _paths_in(driver, directory))

    async with trio.open_nursery() as nursery:
        for entry in entries:
            if entry.is_directory:
                nursery.start_soon(add, f"{path.rstrip('/')}/{entry.name}")
    return found
