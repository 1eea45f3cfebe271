"""Listing layers where storage tells of all files below a directory at once: by the names of links, and from memory."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import replace

import pytest
from harness.redis_server import RedisServer

from layerfs.digest import Digest
from layerfs.driver.interface import FileInfo, Stats
from layerfs.driver.memory import MemoryDriver
from layerfs.errors import LayerUnknown
from layerfs.registry import Registry
from layerfs.registry.cache import DescriptorCache, MemoryCache
from layerfs.registry.paths import BlobData, LayerLink
from layerfs.registry.redis_cache import RedisCache

NAME, OTHER = "foo/bar", "foo/baz"


class FarAway(MemoryDriver):
    """A storage where listings tell of all files, and every question costs something."""

    capabilities = replace(MemoryDriver.capabilities, listed_files=True)

    def __init__(self) -> None:
        super().__init__()
        self.looked_at: list[str] = []
        self.listed: list[str] = []
        self.read: list[str] = []
        self._is_listing = False

    async def stat_many(self, paths: Sequence[str]) -> Stats:
        self.looked_at += paths
        return await super().stat_many(paths)

    async def list_files(self, path: str) -> list[FileInfo]:
        if self._is_listing:
            return await super().list_files(path)
        self.listed.append(path)
        looked_at = list(self.looked_at)
        self._is_listing = True
        try:
            return await super().list_files(path)
        finally:
            self._is_listing = False
            self.looked_at = looked_at

    async def get_content(self, path: str, *, limit: int) -> bytes:
        self.read.append(path)
        return await super().get_content(path, limit=limit)

    def forget(self) -> None:
        """Counts from here."""
        self.looked_at.clear()
        self.listed.clear()
        self.read.clear()

    async def store(self, digest: Digest, content: bytes, *names: str) -> None:
        await self.put_content(BlobData(digest).path, content)
        for name in names:
            await self.put_content(LayerLink(name, digest).path, str(digest).encode())


@pytest.fixture
async def driver() -> FarAway:
    driver = FarAway()
    await Registry.open(driver, create=True)
    return driver


@pytest.fixture(scope="module")
def shared_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(params=["memory", "redis"])
async def cache(request: pytest.FixtureRequest, shared_redis: RedisServer) -> AsyncIterator[DescriptorCache]:
    cache = MemoryCache() if request.param == "memory" else RedisCache(shared_redis.url)
    yield cache
    await cache.close()


async def put(driver: FarAway, count: int, *names: str) -> dict[Digest, int]:
    """Blobs of different sizes, linked into repositories."""
    sizes = {}
    for number in range(count):
        content = b"x" * number
        sizes[Digest.of(content)] = number
        await driver.store(Digest.of(content), content, *names)
    return sizes


async def sizes_of(registry: Registry, name: str) -> dict[Digest, int]:
    return {info.digest: info.blob.size for info in await registry.repository(name).layers.list()}


async def test_sizes_are_remembered(driver: FarAway, cache: DescriptorCache) -> None:
    """Of every repository, with either cache, whatever the time to live; and no link is read."""
    sizes = await put(driver, 20, NAME, OTHER)
    registry = Registry(driver, cache=cache)
    assert await sizes_of(registry, NAME) == sizes
    assert len(driver.looked_at) == 20
    driver.forget()
    assert await sizes_of(registry, NAME) == sizes
    assert await sizes_of(registry, OTHER) == sizes
    assert driver.looked_at == []
    assert len(driver.listed) == 2
    assert driver.read == []


async def test_without_a_cache_nothing_is_remembered(driver: FarAway) -> None:
    """`--cache none` asks each time."""
    await put(driver, 5, NAME)
    registry = Registry(driver)
    await sizes_of(registry, NAME)
    driver.forget()
    await sizes_of(registry, NAME)
    assert len(driver.looked_at) == 5


async def test_a_blob_that_is_gone(driver: FarAway, cache: DescriptorCache) -> None:
    """Is listed until somebody looks at it, and never found, linked or opened."""
    sizes = await put(driver, 3, NAME)
    registry = Registry(driver, cache=cache)
    await sizes_of(registry, NAME)
    gone = next(iter(sizes))
    await driver.delete(BlobData(gone).path)
    assert gone in await sizes_of(registry, NAME)
    with pytest.raises(LayerUnknown):
        await registry.repository(OTHER).layers.mount(NAME, gone)
    with pytest.raises(LayerUnknown):
        await registry.repository(NAME).layers.stat(gone)
    assert gone not in await sizes_of(registry, NAME)


async def test_links_that_cannot_be_what_they_are_called_are_read(driver: FarAway) -> None:
    """An alias leads to its layer; a damaged link, and one beside a link, lead nowhere."""
    content = b"content"
    digest, alias, damaged = Digest.of(content), Digest.of(content, "sha512"), Digest.of(b"damaged")
    await driver.store(digest, content, NAME)
    await driver.store(damaged, b"damaged")
    await driver.put_content(LayerLink(NAME, alias).path, str(digest).encode())
    await driver.put_content(LayerLink(NAME, damaged).path, str(damaged).encode()[:-1])
    await driver.put_content(LayerLink(NAME, Digest.of(b"")).path.replace("/link", "/other"), b"x")
    driver.forget()
    found = await Registry(driver).repository(NAME).layers.list()
    assert [(str(info.digest), info.blob.digest) for info in found] == [(str(digest), digest), (str(alias), digest)]
    assert LayerLink(NAME, digest).path not in driver.read


@pytest.mark.parametrize(("others", "is_listed"), [(0, True), (100, True), (3000, False)])
async def test_many_unknown_sizes(driver: FarAway, others: int, is_listed: bool) -> None:
    """Come from one listing of the blob store, unless that is much longer; either way they are the same."""
    sizes = await put(driver, 250, NAME)
    for number in range(others):
        content = f"other {number}".encode()
        await driver.store(Digest.of(content), content)
    missing = next(iter(sizes))
    await driver.delete(BlobData(missing).path)
    del sizes[missing]
    driver.forget()
    assert await sizes_of(Registry(driver, cache=MemoryCache()), NAME) == sizes
    assert (len(driver.looked_at) == 0) == is_listed
    assert len(driver.listed) == (3 if is_listed else 2)
