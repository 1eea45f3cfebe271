"""A prefix of its own on a real server for every test, drivers on it, and a proxy that counts and breaks.

Every run has all of it on Ceph's gateway; `-m soak` has it on the other servers too.
"""

from __future__ import annotations

import random
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
import trio
from harness.object_stores import S3Server, Stored, gateway
from harness.s3_proxy import S3Proxy
from harness.seaweedfs import seaweedfs
from harness.swift import swift

from layerfs.driver.s3 import S3Driver

SERVERS = {"ceph": gateway, "seaweedfs": seaweedfs, "swift": swift}


@pytest.fixture(
    scope="session",
    params=["ceph", *(pytest.param(name, marks=pytest.mark.soak) for name in SERVERS if name != "ceph")],
)
def server(request: pytest.FixtureRequest) -> S3Server:
    """The server that all tests share."""
    return SERVERS[request.param]()


@pytest.fixture
def prefix() -> str:
    """Where this test has its objects."""
    return f"tests/{uuid.uuid4()}"


@pytest.fixture
def proxy(server: S3Server) -> Iterator[S3Proxy]:
    """A way to the server that counts what goes through it."""
    with S3Proxy(server.endpoint) as proxy:
        yield proxy


@pytest.fixture
async def drivers(server: S3Server, prefix: str) -> AsyncIterator[Callable[..., S3Driver]]:
    """Gives drivers on the same storage, each as if in a process of its own."""
    made: list[S3Driver] = []

    def make(**options: Any) -> S3Driver:
        made.append(S3Driver(server.options(prefix, **options)))
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
def stored(server: S3Server, prefix: str) -> Stored:
    """The objects of this test."""
    return Stored(server, prefix)
