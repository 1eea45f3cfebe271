"""One instance of every storage driver, for the suite that they all must pass."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from harness.drivers import DRIVERS, LISTING_EMPTIED, SLOW

from layerfs.driver.interface import StorageDriver
from layerfs.errors import PathNotFound


@pytest.hookimpl(tryfirst=True)  # before those of other marks are left out
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        callspec = getattr(item, "callspec", None)
        if callspec is not None and callspec.params.get("driver") in SLOW:
            item.add_marker(pytest.mark.soak)


@pytest.fixture
def ram_path() -> Iterator[Path]:
    """A directory on a tmpfs."""
    path = Path(tempfile.mkdtemp(dir="/dev/shm"))
    yield path
    shutil.rmtree(path)


@pytest.fixture(params=DRIVERS)
async def driver(request: pytest.FixtureRequest, tmp_path: Path, ram_path: Path) -> AsyncIterator[StorageDriver]:
    """An empty storage."""
    driver = DRIVERS[request.param](tmp_path, ram_path)
    yield driver
    await driver.close()


@pytest.fixture
def names_left(request: pytest.FixtureRequest, driver: StorageDriver) -> Callable[[str], Awaitable[list[str]]]:
    """Gives the names in a directory in which something was deleted.

    Some stores go on to list a directory after the last file in it is gone. It must not be there for who looks at it.
    """

    async def is_there(path: str) -> bool:
        try:
            await driver.stat(path)
        except PathNotFound:
            return False
        return True

    async def names(path: str) -> list[str]:
        found = sorted(entry.name for entry in await driver.list(path))
        if request.node.callspec.params["driver"] not in LISTING_EMPTIED:
            return found
        return [name for name in found if await is_there(f"{path.rstrip('/')}/{name}")]

    return names
