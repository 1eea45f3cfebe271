"""A registry in memory, the same on a local disk, and on object stores if asked for: it behaves the same on all."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import trio
from harness.drivers import storage_on
from harness.faulty_driver import Disk, FaultyDriver
from harness.store_option import parametrize

from layerfs.driver.interface import StorageDriver
from layerfs.registry import LayerService, Registry

NAME = "foo/bar"


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
async def registry(driver: StorageDriver) -> Registry:
    """An empty registry."""
    return await Registry.open(driver, create=True)


@pytest.fixture
async def trusting(registry: Registry) -> Registry:
    """The same registry, seen by an operator who trusts the hash states of others."""
    return await Registry.open(registry.driver, create=True, trust_hash_states=True)


@pytest.fixture
async def layers(registry: Registry) -> LayerService:
    """The layers of a repository that has nothing in storage yet."""
    return registry.repository(NAME).layers


@pytest.fixture
async def watched(registry: Registry) -> FaultyDriver:
    """The storage of the registry, behind a driver that counts, fails and waits on demand."""
    return FaultyDriver(Disk(registry.driver))


@pytest.fixture
def payload(request: pytest.FixtureRequest) -> Callable[[int], bytes]:
    """Gives random bytes, the same in every run of a test."""
    numbers = random.Random(request.node.nodeid)
    return numbers.randbytes
