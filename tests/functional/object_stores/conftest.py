"""Azure and Google Cloud Storage: a prefix for every test, drivers on it, and a proxy that counts and breaks."""

from __future__ import annotations

import random
import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterator
from functools import cache
from typing import Any

import pytest
import trio
from azure.storage.blob import ContentSettings
from harness.azurite import CONTAINER, AzureRelay, azurite
from harness.gcs_server import BUCKET, gcs_server
from harness.relay import Relay

from layerfs.driver.azure import AzureDriver
from layerfs.driver.gcs import GcsDriver
from layerfs.driver.interface import StorageDriver


class Place(ABC):
    """A prefix in an object store; what is in it is looked at without any code of the product."""

    def __init__(self) -> None:
        self.prefix = f"tests/{uuid.uuid4()}"
        self.made: list[StorageDriver] = []

    #: Everything that a driver asks for goes through it.
    relay: Relay
    #: What a user writes as SOURCE, and has in the environment, to have it mounted.
    url: str
    environment: dict[str, str]

    def driver(self, **options: Any) -> StorageDriver:
        """A driver, as if in a process of its own."""
        self.made.append(self._driver(options))
        return self.made[-1]

    @abstractmethod
    def _driver(self, options: dict[str, Any]) -> StorageDriver: ...

    @abstractmethod
    def paths(self) -> list[str]: ...

    @abstractmethod
    def content(self, path: str) -> bytes: ...

    @abstractmethod
    def put_encoded(self, path: str, content: bytes) -> None:
        """What a tool puts that says of it that it is compressed."""

    def forget(self) -> None:
        self.relay.seen.clear()


class AzurePlace(Place):
    def __init__(self) -> None:
        super().__init__()
        self.relay = _azure_relay()
        self.client = azurite().client
        self.url = f"az://{CONTAINER}/{self.prefix}"
        self.environment = {"AZURE_STORAGE_CONNECTION_STRING": azurite().connection_string(self.relay.endpoint)}
        #: Options of a driver that nobody counts or breaks, which is faster.
        self.directly = {"endpoint_url": azurite().endpoint}

    def _driver(self, options: dict[str, Any]) -> AzureDriver:
        return AzureDriver(azurite().options(self.prefix, **({"endpoint_url": self.relay.endpoint} | options)))

    def paths(self) -> list[str]:
        names = self.client.list_blob_names(name_starts_with=f"{self.prefix}/")
        return [name.removeprefix(self.prefix) for name in names]

    def content(self, path: str) -> bytes:
        return self.client.download_blob(self.prefix + path).readall()

    def put_encoded(self, path: str, content: bytes) -> None:
        self.client.upload_blob(self.prefix + path, content, content_settings=ContentSettings(content_encoding="gzip"))


class GcsPlace(Place):
    def __init__(self) -> None:
        super().__init__()
        self.server = gcs_server()
        self.relay = self.server.proxy
        self.url = f"gs://{BUCKET}/{self.prefix}"
        self.environment = self.server.environment

    def _driver(self, options: dict[str, Any]) -> GcsDriver:
        return GcsDriver(self.server.options(self.prefix, **options))

    def paths(self) -> list[str]:
        return [key.removeprefix(self.prefix) for key in self.server.keys(f"{self.prefix}/")]

    def content(self, path: str) -> bytes:
        return self.server.content(self.prefix + path)

    def put_encoded(self, path: str, content: bytes) -> None:
        self.server.put(self.prefix + path, content, "application/octet-stream", encoding="gzip")


PLACES: dict[str, type[Place]] = {"azure": AzurePlace, "gcs": GcsPlace}


@cache
def _azure_relay() -> AzureRelay:
    return AzureRelay(azurite().port)


async def _use(place: Place) -> AsyncIterator[Any]:
    place.relay.heal()
    yield place
    place.relay.heal()
    with trio.CancelScope(shield=True):
        for driver in place.made:
            await driver.close()


@pytest.fixture
async def azure() -> AsyncIterator[AzurePlace]:
    """A place on Azurite."""
    async for place in _use(AzurePlace()):
        yield place


@pytest.fixture
async def gcs() -> AsyncIterator[GcsPlace]:
    """A place on fake-gcs-server."""
    async for place in _use(GcsPlace()):
        yield place


@pytest.fixture(params=PLACES)
async def place(request: pytest.FixtureRequest) -> AsyncIterator[Place]:
    """One of each."""
    async for place in _use(PLACES[request.param]()):
        yield place


@pytest.fixture(params=PLACES)
def mountable(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """One of each, with what a daemon needs in its environment, for tests without drivers of their own."""
    place = PLACES[request.param]()
    place.relay.heal()
    for name, value in place.environment.items():
        monkeypatch.setenv(name, value)
    yield place
    place.relay.heal()


@pytest.fixture
def payload(request: pytest.FixtureRequest) -> Callable[[int], bytes]:
    """Gives random bytes, the same in every run of a test."""
    return random.Random(request.node.nodeid).randbytes
