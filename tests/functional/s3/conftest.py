"""A prefix of its own on a real gateway for every test, drivers on it, and a proxy that counts and breaks."""

from __future__ import annotations

import random
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
import trio
from harness.object_stores import BUCKET, RadosGateway, gateway
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


class Stored:
    """What is in the bucket, seen by the SDK alone."""

    def __init__(self, rgw: RadosGateway, prefix: str) -> None:
        self.client = rgw.client
        self._prefix = prefix

    def key(self, path: str) -> str:
        return self._prefix + path

    def content(self, path: str) -> bytes:
        return self.client.get_object(Bucket=BUCKET, Key=self.key(path))["Body"].read()

    def paths(self) -> list[str]:
        """All objects, by path."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=f"{self._prefix}/")
        return [found["Key"][len(self._prefix) :] for page in pages for found in page.get("Contents", [])]

    def uploads(self) -> list[tuple[str, str]]:
        """Path and id of all open multipart uploads."""
        pages = self.client.get_paginator("list_multipart_uploads").paginate(Bucket=BUCKET, Prefix=f"{self._prefix}/")
        return [
            (found["Key"][len(self._prefix) :], found["UploadId"])
            for page in pages
            for found in page.get("Uploads", [])
        ]

    def parts(self, path: str) -> list[tuple[int, int]]:
        """Number and size of the parts of the only upload at a path."""
        ((_, upload_id),) = [upload for upload in self.uploads() if upload[0] == path]
        answer = self.client.list_parts(Bucket=BUCKET, Key=self.key(path), UploadId=upload_id)
        return [(part["PartNumber"], part["Size"]) for part in answer.get("Parts", [])]

    def begin(self, path: str, *parts: tuple[int, bytes]) -> str:
        """An open upload of these parts, by number."""
        upload_id = self.client.create_multipart_upload(Bucket=BUCKET, Key=self.key(path))["UploadId"]
        for number, content in parts:
            self.client.upload_part(
                Bucket=BUCKET, Key=self.key(path), UploadId=upload_id, PartNumber=number, Body=content
            )
        return upload_id

    def put(self, path: str, content: bytes) -> None:
        self.client.put_object(Bucket=BUCKET, Key=self.key(path), Body=content)


@pytest.fixture
def stored(rgw: RadosGateway, prefix: str) -> Stored:
    """The objects of this test."""
    return Stored(rgw, prefix)
