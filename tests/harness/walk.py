"""All that is in a storage, through a driver."""

from __future__ import annotations

from layerfs.driver.interface import StorageDriver

_LIMIT = 1 << 30


async def files_in(driver: StorageDriver, path: str = "/") -> dict[str, bytes]:
    """Every file below `path`, with its content."""
    found: dict[str, bytes] = {}
    for entry in await driver.list(path):
        child = f"{path.rstrip('/')}/{entry.name}"
        if entry.is_directory:
            found |= await files_in(driver, child)
        else:
            found[child] = await driver.get_content(child, limit=_LIMIT)
    return found
