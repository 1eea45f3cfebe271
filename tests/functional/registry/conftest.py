"""A registry in memory and the same on a local disk: whatever holds for one holds for the other."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from harness.faulty_driver import Disk, FaultyDriver

from layerfs.driver.interface import StorageDriver
from layerfs.driver.local import LocalDriver
from layerfs.driver.memory import MemoryDriver
from layerfs.registry import LayerService, Registry

NAME = "foo/bar"


@pytest.fixture(params=["memory", "local"])
async def driver(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[StorageDriver]:
    """An empty storage."""
    driver = MemoryDriver() if request.param == "memory" else LocalDriver(str(tmp_path / "storage"), create=True)
    yield driver
    await driver.close()


@pytest.fixture
async def registry(driver: StorageDriver) -> Registry:
    """An empty registry."""
    return await Registry.open(driver, create=True)


@pytest.fixture
async def trusting(registry: Registry) -> Registry:
    """The same registry, seen by an operator who trusts the hash states of others."""
    return await Registry.open(registry.driver, trust_hash_states=True)


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
