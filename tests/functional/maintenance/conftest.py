"""A small clean registry in memory, and the same on a local disk."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from harness.handmade import Tree

from layerfs.driver.interface import StorageDriver
from layerfs.driver.local import LocalDriver
from layerfs.driver.memory import MemoryDriver
from layerfs.registry import Registry


@pytest.fixture(params=["memory", "local"])
async def driver(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[StorageDriver]:
    """An empty storage."""
    driver = MemoryDriver() if request.param == "memory" else LocalDriver(str(tmp_path / "storage"), create=True)
    yield driver
    await driver.close()


@pytest.fixture
async def tree(driver: StorageDriver) -> Tree:
    """The storage of a registry with one image, team/app:v1, and nothing wrong in it."""
    tree = Tree(driver)
    await Registry.open(driver, create=True)
    await tree.put_image("team/app")
    return tree


@pytest.fixture
async def registry(tree: Tree) -> Registry:
    """The registry in `tree`."""
    return Registry(tree.driver)
