"""The real registry and layerfs on one storage and one Redis: what one of them learns there the other knows."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from harness.commands import run
from harness.mount import Mount
from harness.redis_server import RedisServer, silent_server
from harness.registry import DockerRegistry
from harness.repository import MountedRepository
from harness.storage import Storage, digest_of

from layerfs.digest import Digest
from layerfs.registry.cache import CachedBlob
from layerfs.registry.redis_cache import RedisCache

NAME, OTHER = "team/app", "team/other"
INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
INDEX = b'{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}'


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis with nothing in it."""
    with RedisServer(tmp_path / "redis") as server:
        yield server


@pytest.fixture
async def cache(server: RedisServer) -> AsyncIterator[RedisCache]:
    """Our view of it."""
    cache = RedisCache(server.url)
    yield cache
    await cache.close()


@contextmanager
def registry_with(server: RedisServer, storage: Storage, directory: Path) -> Iterator[DockerRegistry]:
    """A registry that keeps its descriptors in this Redis."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("REGISTRY_STORAGE_CACHE_BLOBDESCRIPTOR", "redis")
        more = f'redis: {{addr: "127.0.0.1:{server.port}", db: 0}}\n'
        with DockerRegistry(storage.root, directory, more=more) as registry:
            yield registry


@pytest.fixture
def registry(server: RedisServer, storage: Storage, tmp_path: Path) -> Iterator[DockerRegistry]:
    with registry_with(server, storage, tmp_path / "registry") as registry:
        yield registry


@pytest.fixture
def shared_mount(mounts, server: RedisServer, storage: Storage) -> Mount:
    """The storage, mounted with the same Redis."""
    storage.make_repository(NAME)
    storage.make_repository(OTHER)
    return mounts(storage, "--allow-delete", "--cache", server.url)


@pytest.fixture
def ours(shared_mount: Mount, storage: Storage) -> MountedRepository:
    return MountedRepository(shared_mount, storage, NAME)


def push(repository: MountedRepository, data: bytes, digest: str) -> None:
    repository.put_upload("layer", data)
    run("mv", repository.upload("layer"), repository.layer(digest))


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
@pytest.mark.parametrize("size", [0, 1, 300_001])
def test_a_push_leaves_the_same_keys(
    ours: MountedRepository, server: RedisServer, tmp_path: Path, payload, algorithm: str, size: int
) -> None:
    """Byte for byte, whether over HTTP or through a mount."""
    data = payload(size)
    digest = digest_of(data, algorithm)
    push(ours, data, digest)
    by_us = server.content()
    server.client.flushall()
    with registry_with(server, Storage.create(tmp_path / "theirs"), tmp_path / "registry") as registry:
        registry.push(NAME, data, digest)
    assert by_us == server.content()
    assert len(by_us) == 3


def test_mounting_a_blob_leaves_the_same_keys(
    ours: MountedRepository, server: RedisServer, registry: DockerRegistry, shared_mount: Mount, payload
) -> None:
    """None: a registry learns it when it is asked for. `ln` is what it calls a cross-repository mount."""
    digest = registry.push(NAME, payload(1000))
    before = server.content()
    run("ln", ours.layer(digest), shared_mount.path / OTHER / "_layers" / digest)
    assert server.content() == before
    answer = registry.request("POST", f"/v2/{OTHER}/blobs/uploads/?mount={digest}&from={NAME}")
    assert answer.status == 201
    assert server.content() == before


def test_a_manifest_leaves_the_keys_of_one_that_was_read(
    ours: MountedRepository, server: RedisServer, registry: DockerRegistry
) -> None:
    """Registry 2.8 learns a manifest when it first reads it, and does not take it for a layer."""
    registry.request("PUT", f"/v2/{NAME}/manifests/v1", INDEX, Content_Type=INDEX_TYPE)
    assert registry.request("GET", f"/v2/{NAME}/manifests/v1", Accept=INDEX_TYPE).body == INDEX
    by_them = server.content()
    server.client.flushall()
    (ours.path / "_manifests" / digest_of(INDEX)).unlink()
    (ours.path / "_tags" / "v2").write_bytes(INDEX)
    assert server.content() == by_them
    assert registry.head(NAME, digest_of(INDEX)).status == 404


async def test_what_the_registry_has_learnt_we_find(registry: DockerRegistry, cache: RedisCache, payload) -> None:
    """Of the whole registry and of the repository, with the media type that it gives to all blobs."""
    data = payload(1000)
    digest = Digest.parse(registry.push(NAME, data))
    for repository in (None, NAME):
        assert await cache.find(digest, repository=repository) == CachedBlob(digest, 1000)
    assert await cache.find(digest, repository=OTHER) is None


async def test_an_alias_that_the_registry_has_learnt_we_find(
    registry: DockerRegistry, cache: RedisCache, payload
) -> None:
    """With the canonical digest."""
    data = payload(1000)
    alias = digest_of(data, "sha512")
    registry.push(NAME, data, alias)
    assert registry.head(NAME, alias).status == 200
    expected = CachedBlob(Digest.of(data), 1000)
    assert await cache.find(Digest.parse(alias), repository=NAME) == expected


async def test_what_we_have_learnt_the_registry_finds(
    registry: DockerRegistry, cache: RedisCache, storage: Storage
) -> None:
    """It answers from there without a look at storage, which has no such blob."""
    digest = Digest.of(b"nowhere")
    await cache.learn([CachedBlob(digest, 12345)], repository=NAME)
    answer = registry.head(NAME, str(digest))
    assert (answer.status, answer.headers["content-length"]) == (200, "12345")


def test_what_we_delete_the_registry_does_not_promise(
    ours: MountedRepository, registry: DockerRegistry, payload
) -> None:
    """`rm` of a layer that the registry has in its cache: it is gone there at once, with its aliases."""
    data = payload(1000)
    digest, alias = digest_of(data), digest_of(data, "sha512")
    registry.push(NAME, data, alias)
    assert (registry.head(NAME, digest).status, registry.head(NAME, alias).status) == (200, 200)
    ours.layer(digest).unlink()
    assert (registry.head(NAME, digest).status, registry.head(NAME, alias).status) == (404, 404)


def test_what_we_delete_stays_in_other_repositories(ours: MountedRepository, registry: DockerRegistry, payload) -> None:
    """They find it in storage again."""
    data = payload(1000)
    digest = registry.push(NAME, data)
    registry.push(OTHER, data)
    ours.layer(digest).unlink()
    assert registry.serves(OTHER, digest, data)


def test_deleting_leaves_no_keys(
    ours: MountedRepository, registry: DockerRegistry, server: RedisServer, payload
) -> None:
    """As registries since 3.0 do it; 2.8 leaves those of the repository."""
    digest = registry.push(NAME, payload(1000))
    ours.layer(digest).unlink()
    assert server.content() == {}


def test_what_is_gone_is_not_shown_whatever_the_cache_says(
    ours: MountedRepository, registry: DockerRegistry, storage: Storage, payload
) -> None:
    """A registry would say that it is there, for ever; after a look through the mount it knows better."""
    data = payload(1000)
    digest = registry.push(NAME, data)
    storage.blob(digest).unlink()
    assert registry.head(NAME, digest).status == 200
    assert digest not in ours.layers
    assert not ours.layer(digest).exists()
    assert registry.head(NAME, digest).status == 404
    assert registry.push(NAME, data) == digest
    assert registry.serves(NAME, digest, data)


def test_a_mount_works_without_its_redis(mounts, storage: Storage, payload) -> None:
    """One line in the log, and no error for anybody."""
    storage.make_repository(NAME)
    data = payload(1000)
    digest = digest_of(data)
    with silent_server() as url:
        mount = mounts(storage, "--allow-delete", "--cache", url)
        repository = MountedRepository(mount, storage, NAME)
        push(repository, data, digest)
        assert repository.layer(digest).read_bytes() == data
        repository.layer(digest).unlink()
    assert len(mount.declare("WARNING", "the cache in Redis does not work")) == 1


def kill(server: RedisServer) -> None:
    server.kill()


def hang(server: RedisServer) -> None:
    server.freeze()


def poison(server: RedisServer) -> None:
    """All keys there are, and those that are going to be used, hold something of another type than they should."""
    keys = [*server.client.keys("*"), f"repository::{NAME}::blobs", f"repository::{OTHER}::blobs"]
    for number in range(4):
        digest = digest_of(b"%d" % number * 1000)
        keys += [f"blobs::{digest}", f"repository::{NAME}::blobs::{digest}"]
    for key in keys:
        server.client.delete(key)
        server.client.rpush(key, b"\xff rubbish", b"")


@pytest.mark.parametrize("harm", [kill, hang, poison], ids=lambda harm: harm.__name__)
def test_a_redis_that_fails_in_the_middle(
    mounts, storage: Storage, tmp_path: Path, harm: Callable[[RedisServer], None]
) -> None:
    """Layers are stored, read, linked and removed as before, at once, and the log says one line of it."""
    storage.make_repository(NAME)
    storage.make_repository(OTHER)
    contents = [b"%d" % number * 1000 for number in range(4)]
    with RedisServer(tmp_path / "redis") as server:
        mount = mounts(storage, "--allow-delete", "--cache", server.url)
        repository = MountedRepository(mount, storage, NAME)
        for data in contents[:2]:
            push(repository, data, digest_of(data))
        harm(server)
        began_at = time.monotonic()
        for data in contents[2:]:
            push(repository, data, digest_of(data))
        (repository.path / "_tags" / "v1").write_bytes(INDEX)
        for data in contents:
            assert repository.layer(digest_of(data)).read_bytes() == data
        run("ln", repository.layer(digest_of(contents[0])), mount.path / OTHER / "_layers" / digest_of(contents[0]))
        for data in contents[1:]:
            repository.layer(digest_of(data)).unlink()
        assert repository.layers == [digest_of(contents[0])]
        assert (mount.path / OTHER / "_layers" / digest_of(contents[0])).read_bytes() == contents[0]
        assert (repository.path / "_tags" / "v1").read_bytes() == INDEX
        assert time.monotonic() - began_at < 10
    assert len(mount.declare("WARNING", "the cache in Redis")) == 1


def test_the_password_of_a_redis_is_nowhere(mounts, storage: Storage, tmp_path: Path, payload) -> None:
    """Not in the command line, the table of mounts, the log or the status; the cache works."""
    storage.make_repository(NAME)
    data = payload(1000)
    with RedisServer(tmp_path / "redis", password="open-sesame") as server, pytest.MonkeyPatch.context() as environment:  # noqa: S106
        environment.setenv("LAYERFS_CACHE", server.url.replace("//", "//:open-sesame@"))
        mount = mounts(storage, "-v")
        push(MountedRepository(mount, storage, NAME), data, digest_of(data))
        assert len(server.content()) == 3
        told = [
            Path(f"/proc/{mount.process.pid}/cmdline").read_text(),
            Path("/proc/self/mountinfo").read_text(),
            (mount.path / ".layerfs/status.json").read_text(),
        ]
        mount.stop()
        told += [line.text for line in mount.read_log()]
    assert not [text for text in told if "sesame" in text]
