"""What every descriptor cache promises (`layerfs.registry.cache`), and distribution's suite of caches; then what each
of the two promises beyond that. Redis is a real one.
"""

from __future__ import annotations

import hashlib
import logging
import random
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import trio
from harness.redis_server import RedisServer, silent_server
from trio.testing import MockClock

from layerfs.digest import Digest
from layerfs.registry.cache import BLOB_TYPE, CachedBlob, CacheUnusable, DescriptorCache, MemoryCache, open_cache
from layerfs.registry.redis_cache import RedisCache

A, B, C = (Digest.of(name) for name in (b"a", b"b", b"c"))
ALIAS = Digest.parse("sha512:" + hashlib.sha512(b"a").hexdigest())
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
NAME, OTHER = "foo/bar", "foo/baz"

#: Seconds after which a Redis that has failed is asked again, with some to spare.
PAUSE = 10


@pytest.fixture(scope="module")
def shared_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def server(shared_redis: RedisServer) -> RedisServer:
    """A Redis with nothing in it."""
    shared_redis.client.flushall()
    return shared_redis


@pytest.fixture(params=["memory", "redis"])
async def cache(request: pytest.FixtureRequest) -> AsyncIterator[DescriptorCache]:
    """An empty cache."""
    url = request.param if request.param == "memory" else request.getfixturevalue("server").url
    cache = open_cache(url)
    assert cache is not None
    yield cache
    await cache.close()


@pytest.fixture
async def in_redis(server: RedisServer) -> AsyncIterator[RedisCache]:
    cache = RedisCache(server.url)
    yield cache
    await cache.close()


def descriptor(blob: CachedBlob | None) -> tuple[Digest, int, str] | None:
    """What all caches keep."""
    return None if blob is None else (blob.digest, blob.size, blob.media_type)


# --- both -----------------------------------------------------------------------------------------------------------


async def test_what_was_learnt_is_found(cache: DescriptorCache) -> None:
    """Digest, size and media type."""
    await cache.learn([CachedBlob(A, 7, LAYER)])
    assert descriptor(await cache.find(A)) == (A, 7, LAYER)


async def test_nothing_is_found_in_an_empty_cache(cache: DescriptorCache) -> None:
    """Neither of the registry nor of a repository."""
    assert await cache.find(A) is None
    assert await cache.find(A, repository=NAME) is None


@pytest.mark.parametrize("size", [0, 1, 1 << 32, (1 << 63) - 1])
async def test_sizes(cache: DescriptorCache, size: int) -> None:
    """From the empty blob to the largest."""
    await cache.learn([CachedBlob(A, size)])
    assert descriptor(await cache.find(A)) == (A, size, BLOB_TYPE)


async def test_the_size_is_the_one_learnt_last(cache: DescriptorCache) -> None:
    """Whoever learnt it before may have seen a damaged file."""
    await cache.learn([CachedBlob(A, 0)])
    await cache.learn([CachedBlob(A, 7)])
    assert descriptor(await cache.find(A)) == (A, 7, BLOB_TYPE)


async def test_what_a_repository_learns_the_registry_knows(cache: DescriptorCache) -> None:
    """Other repositories do not: a blob is theirs only by a link."""
    await cache.learn([CachedBlob(A, 7)], repository=NAME)
    assert descriptor(await cache.find(A)) == (A, 7, BLOB_TYPE)
    assert descriptor(await cache.find(A, repository=NAME)) == (A, 7, BLOB_TYPE)
    assert await cache.find(A, repository=OTHER) is None


async def test_what_the_registry_learns_no_repository_has(cache: DescriptorCache) -> None:
    """It has to learn it itself."""
    await cache.learn([CachedBlob(A, 7)])
    assert await cache.find(A, repository=NAME) is None


async def test_the_media_type_of_a_repository_stays_there(cache: DescriptorCache) -> None:
    """The registry keeps the first it has learnt, a repository the last."""
    await cache.learn([CachedBlob(A, 7)])
    await cache.learn([CachedBlob(A, 7, "text/plain")], repository=NAME)
    await cache.learn([CachedBlob(A, 7, LAYER)], repository=NAME)
    assert descriptor(await cache.find(A)) == (A, 7, BLOB_TYPE)
    assert descriptor(await cache.find(A, repository=NAME)) == (A, 7, LAYER)


async def test_an_alias_leads_to_the_canonical_digest(cache: DescriptorCache) -> None:
    """And makes that known, too."""
    await cache.learn([CachedBlob(A, 7)], repository=NAME, alias=ALIAS)
    for digest in (A, ALIAS):
        assert descriptor(await cache.find(digest)) == (A, 7, BLOB_TYPE)
        assert descriptor(await cache.find(digest, repository=NAME)) == (A, 7, BLOB_TYPE)


async def test_many_at_once(cache: DescriptorCache) -> None:
    """In the order of the question, with what is unknown, and what is asked twice, in its place."""
    digests = [Digest.of(str(number).encode()) for number in range(2500)]
    await cache.learn([CachedBlob(digest, size) for size, digest in enumerate(digests) if size % 3], repository=NAME)
    asked = [*digests, *digests[:9]]
    random.Random(1).shuffle(asked)
    expected = {digest: (digest, size, BLOB_TYPE) for size, digest in enumerate(digests) if size % 3}
    for repository in (None, NAME):
        found = await cache.find_many(asked, repository=repository)
        assert [descriptor(blob) for blob in found] == [expected.get(digest) for digest in asked]


async def test_nothing_at_once(cache: DescriptorCache) -> None:
    """No question, no answer."""
    assert await cache.find_many([]) == []
    assert await cache.find_many([], repository=NAME) == []
    await cache.learn([])


async def test_what_is_forgotten_nobody_finds(cache: DescriptorCache) -> None:
    """Not even the repository that had learnt it; others stay."""
    await cache.learn([CachedBlob(A, 7), CachedBlob(B, 8)], repository=NAME)
    await cache.forget(A)
    assert await cache.find(A) is None
    assert await cache.find(A, repository=NAME) is None
    assert descriptor(await cache.find(B, repository=NAME)) == (B, 8, BLOB_TYPE)


async def test_a_repository_that_has_forgotten_must_learn_again(cache: DescriptorCache) -> None:
    """It is not enough that the registry knows it again; for other repositories it is."""
    for name in (NAME, OTHER):
        await cache.learn([CachedBlob(A, 7, LAYER)], repository=name)
    await cache.forget(A, repository=NAME)
    assert await cache.find(A, repository=OTHER) is None
    await cache.learn([CachedBlob(A, 7)])
    assert await cache.find(A, repository=NAME) is None
    assert descriptor(await cache.find(A, repository=OTHER)) == (A, 7, LAYER)


async def test_forgetting_what_is_unknown(cache: DescriptorCache) -> None:
    """Is no error."""
    await cache.forget(A)
    await cache.forget(A, repository=NAME)


async def test_a_cache_can_be_closed_again(cache: DescriptorCache) -> None:
    """Closing twice is closing once."""
    await cache.close()
    await cache.close()


async def test_everything_can_be_cancelled(cache: DescriptorCache) -> None:
    """Whoever comes next is not disturbed."""
    with trio.CancelScope() as scope:
        scope.cancel()
        await cache.learn([CachedBlob(A, 7)])
        await cache.find(A)
        await cache.forget(A)
    await cache.learn([CachedBlob(B, 8)])
    assert descriptor(await cache.find(B)) == (B, 8, BLOB_TYPE)


# --- memory ---------------------------------------------------------------------------------------------------------


async def test_memory_is_bounded() -> None:
    """What was not used for longest is forgotten first."""
    cache = MemoryCache(limit=2)
    await cache.learn([CachedBlob(A, 1)])
    await cache.learn([CachedBlob(B, 2)])
    await cache.find(A)
    await cache.learn([CachedBlob(C, 3)])
    assert [blob is not None for blob in await cache.find_many([A, B, C])] == [True, False, True]
    assert len(cache) == 2


async def test_memory_of_repositories_is_bounded() -> None:
    """One blob in many repositories, too."""
    cache = MemoryCache(limit=2)
    for number in range(5):
        await cache.learn([CachedBlob(A, 1)], repository=f"r{number}")
    known = [await cache.find(A, repository=f"r{number}") is not None for number in range(5)]
    assert known == [False, False, False, True, True]


async def test_memory_knows_when_storage_had_it() -> None:
    """So that whoever asks can judge."""
    cache = MemoryCache()
    blob = CachedBlob(A, 7, stored_at=12, seen_at=34.5)
    await cache.learn([blob])
    assert cache.tells_age
    assert await cache.find(A) == blob


# --- Redis ----------------------------------------------------------------------------------------------------------


async def test_the_keys_are_those_of_registries(in_redis: RedisCache, server: RedisServer) -> None:
    """With these values, which never expire."""
    await in_redis.learn([CachedBlob(A, 7)], repository=NAME)
    assert server.content() == {
        f"blobs::{A}": ({b"digest": str(A).encode(), b"size": b"7", b"mediatype": BLOB_TYPE.encode()}, -1),
        f"repository::{NAME}::blobs": ({str(A).encode()}, -1),
        f"repository::{NAME}::blobs::{A}": ({b"mediatype": BLOB_TYPE.encode()}, -1),
    }


async def test_forgetting_leaves_no_key(in_redis: RedisCache, server: RedisServer) -> None:
    """Of a blob that only one repository had."""
    await in_redis.learn([CachedBlob(A, 7)], repository=NAME)
    await in_redis.forget(A, repository=NAME)
    assert server.content() == {}


async def test_two_processes_share_a_redis(in_redis: RedisCache, server: RedisServer) -> None:
    """What one learns or forgets the other knows at once."""
    other = RedisCache(server.url)
    await other.learn([CachedBlob(A, 7)])
    assert descriptor(await in_redis.find(A)) == (A, 7, BLOB_TYPE)
    await other.forget(A)
    assert await in_redis.find(A) is None
    await other.close()


@pytest.mark.parametrize(
    "fields",
    [
        {"digest": str(A)},
        {"size": "7"},
        {"digest": str(B), "size": "7"},
        {"digest": str(ALIAS), "size": "7"},
        {"digest": "sha256:", "size": "7"},
        {"digest": b"\xff" * 71, "size": "7"},
        *[
            {"digest": str(A), "size": size}
            for size in ("", "-1", "+7", "7.0", "7 ", "0x7", b"\xb2", "9" * 19, "9" * 99)
        ],
        {"path": "/docker/registry/v2/blobs", "length": "7"},
    ],
)
async def test_values_without_sense_are_nothing(
    in_redis: RedisCache, server: RedisServer, fields: dict[str, str]
) -> None:
    """Whatever anybody wrote there; the last is of a registry 2.0."""
    server.client.hset(f"blobs::{A}", mapping=fields)
    assert await in_redis.find(A) is None


@pytest.mark.parametrize("value", [b"", b"\xff", b"a\nb", b"a" * 256])
async def test_a_media_type_without_sense_is_none(in_redis: RedisCache, server: RedisServer, value: bytes) -> None:
    """The blob is found all the same."""
    server.client.hset(f"blobs::{A}", mapping={"digest": str(A), "size": 7, "mediatype": value})
    assert descriptor(await in_redis.find(A)) == (A, 7, BLOB_TYPE)


async def test_keys_of_other_types_are_nothing(
    in_redis: RedisCache, server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Others are found beside them, and the log says it once."""
    server.client.set(f"blobs::{A}", "text")
    server.client.set(f"repository::{OTHER}::blobs", "text")
    await in_redis.learn([CachedBlob(B, 8)], repository=NAME)
    for _ in range(3):
        assert [descriptor(blob) for blob in await in_redis.find_many([A, B])] == [None, (B, 8, BLOB_TYPE)]
        assert await in_redis.find(B, repository=OTHER) is None
        await in_redis.learn([CachedBlob(A, 7)], repository=OTHER)
        await in_redis.forget(A, repository=OTHER)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


async def test_a_redis_that_is_gone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is known, nothing fails, and the log says it once."""
    with RedisServer(tmp_path) as server:
        cache = RedisCache(server.url)
        await cache.learn([CachedBlob(A, 7)])
        server.kill()
        for _ in range(3):
            assert await cache.find(A) is None
            await cache.learn([CachedBlob(A, 7)], repository=NAME)
            await cache.forget(A)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    await cache.close()


async def test_a_redis_that_comes_back(tmp_path: Path, mock_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    """It is asked again after a pause, not before; both ends of the outage are in the log."""
    caplog.set_level(logging.INFO)
    with RedisServer(tmp_path) as server:
        cache = RedisCache(server.url)
        server.kill()
        assert await cache.find(A) is None
        server.start()
        await cache.learn([CachedBlob(A, 7)])
        assert server.content() == {}
        mock_clock.jump(PAUSE)
        await cache.learn([CachedBlob(A, 7)])
        assert descriptor(await cache.find(A)) == (A, 7, BLOB_TYPE)
        await cache.close()
    assert [record.levelno for record in caplog.records] == [logging.WARNING, logging.INFO]


async def test_a_redis_that_was_restarted_meanwhile(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A connection that has died while nobody used it is made again, which is no outage."""
    caplog.set_level(logging.INFO)
    with RedisServer(tmp_path) as server:
        cache = RedisCache(server.url)
        await cache.learn([CachedBlob(A, 7)])
        server.kill()
        server.start()
        await cache.learn([CachedBlob(B, 8)])
        assert descriptor(await cache.find(B)) == (B, 8, BLOB_TYPE)
        await cache.close()
    assert caplog.records == []


async def test_a_redis_that_only_reads(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A replica refuses to learn; what it knows is found, and the log says it once."""
    with RedisServer(tmp_path, "--replicaof", "127.0.0.1", "1", "--replica-serve-stale-data", "yes") as server:
        cache = RedisCache(server.url)
        for _ in range(3):
            await cache.learn([CachedBlob(A, 7)])
            assert await cache.find(A) is None
        server.client.replicaof("NO", "ONE")
        await cache.learn([CachedBlob(A, 7)])
        assert descriptor(await cache.find(A)) == (A, 7, BLOB_TYPE)
        await cache.close()
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


async def test_a_redis_that_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """All who ask together wait a second at most, and whoever asks later not at all."""
    with silent_server() as url:
        cache = RedisCache(url)
        began_at = trio.current_time()
        async with trio.open_nursery() as nursery:
            for _ in range(50):
                nursery.start_soon(cache.find, A)
        for _ in range(50):
            await cache.learn([CachedBlob(A, 7)])
        assert trio.current_time() - began_at < 2
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    await cache.close()


async def test_a_redis_that_hangs_in_the_middle(
    tmp_path: Path, mock_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever waits for it waits a second at most. Later answers are to the questions that are asked then."""
    mock_clock.rate = 1.0
    digests = [Digest.of(str(number).encode()) for number in range(20)]
    with RedisServer(tmp_path) as server:
        cache = RedisCache(server.url)
        answers: list[tuple[int, CachedBlob | None]] = []

        async def ask(number: int) -> None:
            for _ in range(200):
                blob = await cache.find(digests[number])
                answers.append((number, blob))

        await cache.learn([CachedBlob(digest, size) for size, digest in enumerate(digests)])
        began_at = time.monotonic()
        async with trio.open_nursery() as nursery:
            for number in range(len(digests)):
                nursery.start_soon(ask, number)
            while len(answers) < 100:
                await trio.sleep(0.001)
            server.freeze()
        assert time.monotonic() - began_at < 15
        assert None in [blob for _, blob in answers]
        server.thaw()
        mock_clock.jump(PAUSE)
        async with trio.open_nursery() as nursery:
            for number in range(len(digests)):
                nursery.start_soon(ask, number)
        assert all(descriptor(blob) == (digests[n], n, BLOB_TYPE) for n, blob in answers if blob is not None)
        assert None not in [blob for _, blob in answers[-2000:]]
        await cache.close()
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


async def test_something_else_than_a_redis(caplog: pytest.LogCaptureFixture) -> None:
    """A server of another protocol is as good as none."""

    async def answer(stream: trio.SocketStream) -> None:
        await stream.receive_some(10)
        await stream.send_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, answer, listeners)
        cache = RedisCache(f"redis://127.0.0.1:{listeners[0].socket.getsockname()[1]}")
        assert await cache.find(A) is None
        nursery.cancel_scope.cancel()
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    await cache.close()


async def test_a_redis_with_a_password(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The right one opens it; the log never has one, right or wrong."""
    caplog.set_level(logging.DEBUG)
    with RedisServer(tmp_path, password="open-sesame") as server:  # noqa: S106
        for password in ("open-sesame", "open-barley", ""):
            cache = RedisCache(server.url.replace("//", f"//:{password}@"))
            await cache.learn([CachedBlob(A, 7)])
            assert (await cache.find(A) is not None) == (password == server.password)
            await cache.close()
    assert [record.levelno for record in caplog.records].count(logging.WARNING) == 2
    assert "open-" not in caplog.text


@pytest.mark.parametrize("url", ["redis://:open-sesame@host:port/0", "http://open-sesame", "open-sesame"])
def test_a_url_without_meaning(url: str) -> None:
    """Is refused, without being quoted."""
    with pytest.raises(CacheUnusable) as raised:
        open_cache(url)
    assert "open-sesame" not in str(raised.value)
    assert raised.value.__suppress_context__


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """With what to install; caches that do not need it work."""
    monkeypatch.delitem(sys.modules, "layerfs.registry.redis_cache")
    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(CacheUnusable, match=r"layerfs\[redis\]"):
        open_cache("redis://localhost")
    assert isinstance(open_cache("memory"), MemoryCache)


def test_no_cache() -> None:
    """`none` is none."""
    assert open_cache("none") is None
