"""A small clean registry in memory, the same on a local disk, and on object stores if asked for."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
from harness.drivers import storage_on
from harness.handmade import Tree
from harness.store_option import parametrize

from layerfs.driver.interface import StorageDriver
from layerfs.registry import Registry


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    parametrize(metafunc, "driver", local=["memory", "local"])


@pytest.fixture
async def driver(request: pytest.FixtureRequest, quick_path: Path) -> AsyncIterator[StorageDriver]:
    """An empty storage."""
    driver = storage_on(request.param, quick_path)
    yield driver
    with trio.CancelScope(shield=True):
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
