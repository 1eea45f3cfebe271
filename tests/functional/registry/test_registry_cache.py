"""When the cache of descriptors may answer instead of storage, and what it is told."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from harness.redis_server import RedisServer
from trio.testing import MockClock

from layerfs.digest import Digest
from layerfs.driver.interface import StorageDriver
from layerfs.errors import BlobUnknown, LayerUnknown, ManifestUnknownRevision
from layerfs.registry import Registry
from layerfs.registry.cache import CachedBlob, MemoryCache
from layerfs.registry.paths import BlobData, LayerLink
from layerfs.registry.redis_cache import RedisCache
from layerfs.registry.repositories import link_layer
from layerfs.source import open_registry

NAME, OTHER = "foo/bar", "foo/baz"
CONTENT = b"content"
DIGEST = Digest.of(CONTENT)
INDEX = b'{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}'

#: Seconds for which storage is believed in these tests.
BELIEVE_FOR = 60


@pytest.fixture(scope="module")
def shared_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
async def cache(shared_redis: RedisServer) -> AsyncIterator[RedisCache]:
    """An empty cache in Redis."""
    shared_redis.client.flushall()
    cache = RedisCache(shared_redis.url)
    yield cache
    await cache.close()


@pytest.fixture
def sharing(registry: Registry, cache: RedisCache) -> Registry:
    """The registry with a cache in Redis."""
    return Registry(registry.driver, cache=cache, believe_for=BELIEVE_FOR)


@pytest.fixture
def remembering(registry: Registry) -> Registry:
    """The registry, as far away, with a cache in memory."""
    return Registry(registry.driver, cache=MemoryCache(), believe_for=BELIEVE_FOR)


async def store(driver: StorageDriver, name: str = NAME) -> None:
    """What a registry does, without the knowledge of ours."""
    await driver.put_content(BlobData(DIGEST).path, CONTENT)
    await link_layer(driver, name, DIGEST, DIGEST)


async def lose(driver: StorageDriver) -> None:
    """What garbage collection does to a blob."""
    await driver.delete(BlobData(DIGEST).path)


async def upload(registry: Registry, name: str = NAME, digest: Digest = DIGEST) -> None:
    upload = await registry.repository(name).layers.upload()
    await upload.write(CONTENT)
    await upload.finish(digest)


# --- when it answers ------------------------------------------------------------------------------------------------


async def test_storage_is_believed_for_its_time(remembering: Registry, mock_clock: MockClock) -> None:
    """A blob that was there a moment ago is not asked for again; after that time it is."""
    layers = remembering.repository(NAME).layers
    await store(remembering.driver)
    before = await layers.stat(DIGEST)
    await lose(remembering.driver)
    mock_clock.jump(BELIEVE_FOR - 1)
    assert await layers.stat(DIGEST) == before
    mock_clock.jump(1)
    with pytest.raises(LayerUnknown):
        await layers.stat(DIGEST)


async def test_an_answer_from_memory_does_not_prolong_itself(remembering: Registry, mock_clock: MockClock) -> None:
    """What counts is when storage had the blob, not when it was last asked for."""
    layers = remembering.repository(NAME).layers
    await store(remembering.driver)
    await layers.stat(DIGEST)
    await lose(remembering.driver)
    for _ in range(2):
        mock_clock.jump(BELIEVE_FOR * 0.4)
        await layers.stat(DIGEST)
    mock_clock.jump(BELIEVE_FOR * 0.4)
    with pytest.raises(LayerUnknown):
        await layers.stat(DIGEST)


async def test_storage_on_this_machine_is_always_asked(registry: Registry) -> None:
    """`believe_for` is 0 there: a blob that is gone is gone at once."""
    local = Registry(registry.driver, cache=MemoryCache())
    await store(registry.driver)
    await local.repository(NAME).layers.stat(DIGEST)
    await lose(registry.driver)
    with pytest.raises(LayerUnknown):
        await local.repository(NAME).layers.stat(DIGEST)


async def test_a_link_is_never_remembered(remembering: Registry) -> None:
    """A layer that another process has removed from the repository is gone at once."""
    layers = remembering.repository(NAME).layers
    await store(remembering.driver)
    await layers.stat(DIGEST)
    await remembering.driver.delete(LayerLink(NAME, DIGEST).path)
    with pytest.raises(LayerUnknown):
        await layers.stat(DIGEST)


async def test_a_listing_asks_storage(remembering: Registry) -> None:
    """It is one batch of requests, and remembered by whoever shows it; an object store is not asked for known blobs."""
    layers = remembering.repository(NAME).layers
    await store(remembering.driver)
    await layers.stat(DIGEST)
    await lose(remembering.driver)
    remembers = remembering.driver.capabilities.listed_files
    assert [info.digest for info in await layers.list()] == ([DIGEST] if remembers else [])


async def test_no_link_is_made_to_what_is_only_remembered(remembering: Registry) -> None:
    """Mounting into another repository asks storage."""
    await store(remembering.driver)
    await remembering.repository(NAME).layers.stat(DIGEST)
    await lose(remembering.driver)
    with pytest.raises(LayerUnknown):
        await remembering.repository(OTHER).layers.mount(NAME, DIGEST)


async def test_what_opening_finds_gone_is_forgotten(remembering: Registry) -> None:
    """The next one who asks is not told that it is there."""
    layers = remembering.repository(NAME).layers
    await store(remembering.driver)
    await layers.stat(DIGEST)
    await lose(remembering.driver)
    with pytest.raises(LayerUnknown):
        await layers.fetch(DIGEST)
    with pytest.raises(LayerUnknown):
        await layers.stat(DIGEST)


async def test_a_redis_never_answers_for_storage(sharing: Registry, cache: RedisCache) -> None:
    """Nobody knows how old its entries are: what a registry says there makes no blob appear."""
    await store(sharing.driver)
    await lose(sharing.driver)
    await cache.learn([CachedBlob(DIGEST, len(CONTENT))], repository=NAME)
    with pytest.raises(LayerUnknown):
        await sharing.repository(NAME).layers.stat(DIGEST)


@pytest.mark.parametrize(("scheme", "is_asked"), [("", True), ("file://", True), ("memory://", False)])
async def test_what_is_storage_on_this_machine(tmp_path: Path, scheme: str, is_asked: bool) -> None:
    """A directory, however it is written: there a cache never answers. For a mount it may elsewhere."""
    source = "memory://" if scheme == "memory://" else f"{scheme}{tmp_path}"
    async with open_registry(source, verb="mount", create=True, cache="memory", metadata_ttl=BELIEVE_FOR) as registry:
        layers = registry.repository(NAME).layers
        await store(registry.driver)
        await layers.stat(DIGEST)
        await lose(registry.driver)
        if is_asked:
            with pytest.raises(LayerUnknown):
                await layers.stat(DIGEST)
        else:
            assert (await layers.stat(DIGEST)).blob.size == len(CONTENT)
        assert not await layers.exists(DIGEST)


# --- what it is told ------------------------------------------------------------------------------------------------


async def test_an_upload_that_is_finished_is_known(sharing: Registry, cache: RedisCache) -> None:
    """To this repository, with its size."""
    await upload(sharing)
    assert await cache.find(DIGEST, repository=NAME) == CachedBlob(DIGEST, len(CONTENT))
    assert await cache.find(DIGEST, repository=OTHER) is None


async def test_a_layer_that_is_deleted_is_forgotten(sharing: Registry, cache: RedisCache) -> None:
    """By its repository and, as distribution does it, by the registry, until somebody asks again."""
    await upload(sharing)
    await upload(sharing, OTHER)
    await sharing.repository(NAME).layers.delete(DIGEST)
    assert await cache.find(DIGEST) is None
    await cache.learn([CachedBlob(DIGEST, len(CONTENT))])
    assert await cache.find(DIGEST, repository=NAME) is None
    assert await cache.find(DIGEST, repository=OTHER) is not None


async def test_the_aliases_of_a_deleted_layer_are_forgotten(sharing: Registry, cache: RedisCache) -> None:
    """Or a registry would go on to serve it by them."""
    alias = Digest.of(CONTENT, "sha512")
    await upload(sharing, digest=alias)
    await cache.learn([CachedBlob(DIGEST, len(CONTENT))], repository=NAME, alias=alias)
    await sharing.repository(NAME).layers.delete(DIGEST)
    assert await cache.find_many([DIGEST, alias], repository=NAME) == [None, None]
    assert await cache.find_many([DIGEST, alias]) == [None, None]


async def test_deleting_what_is_gone_forgets_it_too(sharing: Registry, cache: RedisCache) -> None:
    """Whoever removed the link did not tell the cache."""
    await cache.learn([CachedBlob(DIGEST, len(CONTENT))], repository=NAME)
    with pytest.raises(LayerUnknown):
        await sharing.repository(NAME).layers.delete(DIGEST)
    assert await cache.find(DIGEST) is None


async def test_a_manifest_that_is_put_is_known_to_the_registry(sharing: Registry, cache: RedisCache) -> None:
    """And to no repository, which would make it a layer there."""
    descriptor = await sharing.repository(NAME).manifests.put(INDEX)
    assert await cache.find(descriptor.digest) == CachedBlob(descriptor.digest, len(INDEX))
    assert await cache.find(descriptor.digest, repository=NAME) is None


async def test_a_manifest_that_is_deleted_is_forgotten(sharing: Registry, cache: RedisCache) -> None:
    """Also by the repository, which registries since 3.0 tell of it."""
    manifests = sharing.repository(NAME).manifests
    digest = (await manifests.put(INDEX)).digest
    await cache.learn([CachedBlob(digest, len(INDEX))], repository=NAME)
    await manifests.delete(digest)
    assert await cache.find(digest) is None
    with pytest.raises(ManifestUnknownRevision):
        await manifests.stat(digest)


async def test_a_blob_that_is_gone_is_forgotten(sharing: Registry, cache: RedisCache) -> None:
    """So that a registry does not go on to promise it, and stores it when it is pushed again."""
    await cache.learn([CachedBlob(DIGEST, len(CONTENT))], repository=NAME)
    with pytest.raises(BlobUnknown):
        await sharing.blobs.stat(DIGEST)
    assert await cache.find(DIGEST, repository=NAME) is None


async def test_a_redis_that_is_gone_is_no_error(registry: Registry, tmp_path: Path) -> None:
    """Everything works as without it."""
    with RedisServer(tmp_path / "redis") as server:
        cache = RedisCache(server.url)
    sharing = Registry(registry.driver, cache=cache, believe_for=BELIEVE_FOR)
    layers = sharing.repository(NAME).layers
    await upload(sharing)
    assert (await layers.stat(DIGEST)).blob.size == len(CONTENT)
    await sharing.repository(OTHER).layers.mount(NAME, DIGEST)
    await layers.delete(DIGEST)
    assert not await layers.exists(DIGEST)
    await cache.close()
