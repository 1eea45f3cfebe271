"""A prefix of its own on a real gateway for every test, drivers on it, and a proxy that counts and breaks."""

from __future__ import annotations

import random
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
import trio
from harness.object_stores import RadosGateway, Stored, gateway
from harness.s3_proxy import S3Proxy

from layerfs.driver.s3 import S3Driver


@pytest.fixture(scope="session")
def rgw() -> RadosGateway:
    """The gateway that all tests share."""
    return gateway()


@pytest.fixture
def prefix() -> str:
    """Where this test has its objects."""
    return f"tests/{uuid.uuid4()}"


@pytest.fixture
def proxy(rgw: RadosGateway) -> Iterator[S3Proxy]:
    """A way to the gateway that counts what goes through it."""
    with S3Proxy(rgw.endpoint) as proxy:
        yield proxy


@pytest.fixture
async def drivers(rgw: RadosGateway, prefix: str) -> AsyncIterator[Callable[..., S3Driver]]:
    """Gives drivers on the same storage, each as if in a process of its own."""
    made: list[S3Driver] = []

    def make(**options: Any) -> S3Driver:
        made.append(S3Driver(rgw.options(prefix, **options)))
        return made[-1]

    yield make
    with trio.CancelScope(shield=True):
        for driver in made:
            await driver.close()


@pytest.fixture
async def driver(drivers: Callable[..., S3Driver]) -> S3Driver:
    """A driver without anything in between."""
    return drivers()


@pytest.fixture
async def proxied(drivers: Callable[..., S3Driver], proxy: S3Proxy) -> S3Driver:
    """A driver that has to go through the proxy."""
    return drivers(endpoint_url=proxy.url)


@pytest.fixture
def payload(request: pytest.FixtureRequest) -> Callable[[int], bytes]:
    """Gives random bytes, the same in every run of a test."""
    return random.Random(request.node.nodeid).randbytes


@pytest.fixture
def stored(rgw: RadosGateway, prefix: str) -> Stored:
    """The objects of this test."""
    return Stored(rgw, prefix)
