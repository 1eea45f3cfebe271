"""One instance of every storage driver, for the suite that they all must pass."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from harness.drivers import DRIVERS

from layerfs.driver.interface import StorageDriver


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
