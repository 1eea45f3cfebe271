"""Layers: reading and seeking, links good and bad, listing, mounting and deleting."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
import trio
import trio.testing
from harness.faulty_driver import Disk, FaultyDriver
from harness.invariants import blob_path, link_path
from harness.walk import files_in

from layerfs.digest import Digest
from layerfs.driver.interface import StorageDriver
from layerfs.driver.local import LocalDriver
from layerfs.driver.memory import MemoryDriver
from layerfs.errors import (
    BackendFailure,
    BlobUnknown,
    InvalidOffset,
    InvalidRepositoryName,
    LayerExists,
    LayerUnknown,
    LinkMismatch,
    ShortRead,
)
from layerfs.registry import LayerService, Registry

NAME = "foo/bar"


async def put_layer(driver: StorageDriver, content: bytes, name: str = NAME) -> Digest:
    """A layer as a registry would store it."""
    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
    await driver.put_content(blob_path(digest), content)
    await driver.put_content(link_path(name, digest), digest.encode())
    return Digest.parse(digest)


async def put_alias(driver: StorageDriver, content: bytes, algorithm: str = "sha512", name: str = NAME) -> Digest:
    """A layer by another algorithm, as a registry links it after such an upload."""
    canonical = await put_layer(driver, content, name)
    alias = f"{algorithm}:{hashlib.new(algorithm, content).hexdigest()}"
    await driver.put_content(link_path(name, alias), str(canonical).encode())
    return Digest.parse(alias)


PATTERN = b"01234567890ab" * 1024


async def test_random_seeks(layers: LayerService, driver: StorageDriver) -> None:
    """From anywhere, any length: the bytes that are there."""
    numbers = random.Random(5)
    async with await layers.fetch(await put_layer(driver, PATTERN)) as layer:
        for _ in range(200):
            where, length = numbers.randrange(len(PATTERN)), numbers.randrange(2000)
            assert layer.seek(where) == where
            assert await layer.read(length) == PATTERN[where : where + length]


async def test_reading_on(layers: LayerService, driver: StorageDriver) -> None:
    """One read goes on where the last one ended, and ends with nothing."""
    async with await layers.fetch(await put_layer(driver, PATTERN)) as layer:
        pieces = []
        while piece := await layer.read(1000):
            pieces.append(piece)
        assert b"".join(pieces) == PATTERN
        assert await layer.read() == b""


async def test_seeking(layers: LayerService, driver: StorageDriver) -> None:
    """From the start, from here, from the end; beyond the end too; but not before the start."""
    async with await layers.fetch(await put_layer(driver, PATTERN)) as layer:
        assert layer.seek(0, os.SEEK_END) == len(PATTERN)
        assert await layer.read(1) == b""
        assert layer.seek(-13, os.SEEK_CUR) == len(PATTERN) - 13
        assert await layer.read() == b"01234567890ab"
        assert layer.seek(1, os.SEEK_END) == len(PATTERN) + 1
        assert await layer.read(10) == b""
        for offset, whence in ((-1, os.SEEK_SET), (-len(PATTERN) - 1, os.SEEK_END), (-len(PATTERN) - 2, os.SEEK_CUR)):
            with pytest.raises(InvalidOffset):
                layer.seek(offset, whence)
        assert layer.seek(0, os.SEEK_CUR) == len(PATTERN) + 1


async def test_a_layer_outlives_its_link(layers: LayerService, driver: StorageDriver) -> None:
    """An open layer goes on being read when its link is deleted, and where files can be held, its blob."""
    digest = await put_layer(driver, PATTERN)
    async with await layers.fetch(digest) as layer:
        await driver.delete(link_path(NAME, str(digest)))
        assert await layer.read(100) == PATTERN[:100]
        await driver.delete(blob_path(str(digest)))
        if driver.capabilities.listed_files:
            with pytest.raises(ShortRead):
                await layer.read()
        else:
            assert await layer.read() == PATTERN[100:]


async def test_a_blob_that_becomes_shorter(tmp_path: Path) -> None:
    """Bytes that are not there are an error, never a short read."""
    driver = LocalDriver(str(tmp_path))
    digest = await put_layer(driver, PATTERN)
    registry = Registry(driver)
    async with await registry.repository(NAME).layers.fetch(digest) as layer:
        os.truncate(f"{tmp_path}{blob_path(str(digest))}", 1000)
        with pytest.raises(ShortRead):
            await layer.read()


@pytest.mark.parametrize("nanoseconds", [2**62, 0, -(2**62)])
async def test_a_blob_with_an_impossible_time(registry: Registry, nanoseconds: int) -> None:
    """A time that no calendar has does not keep a layer from being read."""

    class Strange(FaultyDriver):
        async def stat_many(self, paths):  # type: ignore[no-untyped-def]
            found = await super().stat_many(paths)
            return [type(info)(info.path, info.is_directory, info.size, nanoseconds * 1000) for info in found]

    digest = await put_layer(registry.driver, b"x")
    strange = Registry(Strange(Disk(registry.driver)))
    async with await strange.repository(NAME).layers.fetch(digest) as layer:
        assert layer.created_at.tzinfo is UTC
        assert await layer.read() == b"x"


async def test_the_time_of_a_layer(layers: LayerService, driver: StorageDriver) -> None:
    """It was created when its blob was stored."""
    before = datetime.now(UTC).timestamp()
    digest = await put_layer(driver, b"x")
    async with await layers.fetch(digest) as layer:
        assert before - 2 <= layer.created_at.timestamp() <= datetime.now(UTC).timestamp() + 2


# --- links ---------------------------------------------------------------------------------------------------

BAD_LINKS = {
    "empty": b"",
    "newline": b"sha256:" + b"0" * 64 + b"\n",
    "short": b"sha256:abc",
    "binary": bytes(range(256))[:71],
    "upper case": b"sha256:" + b"A" * 64,
    "no digest": b"x" * 71,
    "ten megabytes": b"s" * 10_000_000,
    "path": b"sha256:../../../../../../../../../../etc/passwd",
}


@pytest.mark.parametrize("content", BAD_LINKS.values(), ids=BAD_LINKS)
async def test_a_link_that_is_no_digest(
    layers: LayerService, driver: StorageDriver, autojump_clock: trio.testing.MockClock, content: bytes
) -> None:
    """The layer is unknown, is not listed, and the reason says what is wrong with the link."""
    digest = await put_layer(driver, b"x")
    other = await put_layer(driver, b"other")
    await driver.put_content(link_path(NAME, str(digest)), content)
    assert not await layers.exists(digest)
    with pytest.raises(LayerUnknown, match="invalid link"):
        await layers.fetch(digest)
    # Where links are not read to list them, one that is as long as a digest is taken for one.
    whole = driver.capabilities.listed_files and len(content) == len(str(digest))
    assert {info.digest for info in await layers.list()} == ({digest, other} if whole else {other})


async def test_a_dangling_link(layers: LayerService, driver: StorageDriver) -> None:
    """A link to a blob that is not there, or is a directory, is no layer."""
    digest = await put_layer(driver, b"x")
    await driver.delete(blob_path(str(digest)))
    for _ in range(2):
        assert not await layers.exists(digest)
        assert await layers.list() == []
        with pytest.raises(LayerUnknown) as caught:
            await layers.fetch(digest)
        assert isinstance(caught.value.__cause__, BlobUnknown)
        await driver.make_directory(blob_path(str(digest)))


async def test_a_link_to_other_content(layers: LayerService, driver: StorageDriver) -> None:
    """A canonical link that names another blob would show wrong bytes: an error of its own, not listed on a disk."""
    digest, other = await put_layer(driver, b"x"), await put_layer(driver, b"other")
    await driver.put_content(link_path(NAME, str(digest)), str(other).encode())
    with pytest.raises(LinkMismatch):
        await layers.fetch(digest)
    # Where links are not read to list them, this one is taken for what it should be.
    listed = {digest, other} if driver.capabilities.listed_files else {other}
    assert {info.digest for info in await layers.list()} == listed


async def test_a_link_by_another_algorithm(layers: LayerService, driver: StorageDriver) -> None:
    """Leads to the canonical blob; the layer knows its canonical digest."""
    for algorithm in ("sha512", "sha384"):
        alias = await put_alias(driver, b"content", algorithm)
        async with await layers.fetch(alias) as layer:
            assert await layer.read() == b"content"
            assert layer.digest == Digest.of(b"content")


async def test_the_dangling_alias_that_a_registry_makes(layers: LayerService, driver: StorageDriver) -> None:
    """Mounting by sha512, a registry links sha512 to itself (facts A.3): that leads nowhere."""
    alias = Digest.of(b"content", "sha512")
    await driver.put_content(link_path(NAME, str(alias)), str(alias).encode())
    with pytest.raises(LayerUnknown):
        await layers.fetch(alias)


@pytest.mark.parametrize("reads", [1, 2, 3])
async def test_a_link_in_flux(
    registry: Registry, watched: FaultyDriver, autojump_clock: trio.testing.MockClock, reads: int
) -> None:
    """Links that a 2.8 registry is just rewriting are read again, up to three times, until they are whole."""
    digests = sorted([await put_layer(registry.driver, bytes([number])) for number in range(20)], key=str)
    for digest in digests:
        await registry.driver.put_content(link_path(NAME, str(digest)), b"sha256:" if digest.hex < "8" else b"")
    left = reads

    async def complete(what: str, path: str) -> None:
        nonlocal left
        left -= what == "get_contents"
        if left < 0:
            for digest in digests:
                await registry.driver.put_content(link_path(NAME, str(digest)), str(digest).encode())

    watched.on_call = complete
    assert [info.digest for info in await Registry(watched).repository(NAME).layers.list()] == digests


async def test_how_long_a_link_may_be_in_flux(autojump_clock: trio.testing.MockClock) -> None:
    """150 ms are waited for, for twenty links no longer than for one, and not for ever."""
    driver = MemoryDriver()
    layers = Registry(driver).repository(NAME).layers
    digests = sorted([await put_layer(driver, bytes([number])) for number in range(20)], key=str)
    for digest in digests:
        await driver.put_content(link_path(NAME, str(digest)), b"")
    started = trio.current_time()
    assert not await layers.exists(digests[0])
    assert 0.15 <= trio.current_time() - started < 0.2

    async def complete() -> None:
        await trio.sleep(0.149)
        for digest in digests:
            await driver.put_content(link_path(NAME, str(digest)), str(digest).encode())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(complete)
        assert [info.digest for info in await layers.list()] == digests


async def test_nobody_waits_for_whole_links(
    layers: LayerService, driver: StorageDriver, autojump_clock: trio.testing.MockClock
) -> None:
    """A link that is bad but not short is not read again."""
    digest = await put_layer(driver, b"x")
    await driver.put_content(link_path(NAME, str(digest)), b"x" * 71)
    started = trio.current_time()
    assert not await layers.exists(digest)
    assert trio.current_time() == started


# --- listing ---------------------------------------------------------------------------------------------------


async def test_a_repository_without_layers(layers: LayerService, registry: Registry) -> None:
    """Nothing is listed, whether the repository is there or not."""
    assert await layers.list() == []
    await registry.create_repository(NAME)
    assert await layers.list() == []


async def test_a_listing(layers: LayerService, driver: StorageDriver) -> None:
    """By algorithm and digest, with the size of each, aliases with that of their blob."""
    contents = [bytes(size) for size in range(10)]
    for content in contents:
        await put_alias(driver, content)
    listed = await layers.list()
    canonical = sorted(f"sha256:{hashlib.sha256(content).hexdigest()}" for content in contents)
    aliases = sorted(f"sha512:{hashlib.sha512(content).hexdigest()}" for content in contents)
    assert [str(info.digest) for info in listed] == canonical + aliases
    sizes = {str(info.digest): info.blob.size for info in listed}
    for content in contents:
        assert sizes[f"sha256:{hashlib.sha256(content).hexdigest()}"] == len(content)
        assert sizes[f"sha512:{hashlib.sha512(content).hexdigest()}"] == len(content)


async def test_what_else_may_lie_there(layers: LayerService, driver: StorageDriver) -> None:
    """Empty directories of deleted links, left-over temporary files and strange names are passed over."""
    digest = await put_layer(driver, b"x")
    directory = f"/docker/registry/v2/repositories/{NAME}/_layers"
    await driver.make_directory(f"{directory}/sha256/{'0' * 64}")
    await driver.put_content(f"{directory}/sha256/{'1' * 64}/link.f81d4fae.tmp", b"sha256:")
    await driver.put_content(f"{directory}/sha256/{'2' * 63}/link", b"sha256:")
    await driver.put_content(f"{directory}/sha256/README", b"read me")
    await driver.put_content(f"{directory}/md5/{'3' * 32}/link", b"md5:" + b"3" * 32)
    for strange in ("v2/sha256", "v1/md5", "v1", "sha256", "v0/sha256/sha256"):
        await driver.put_content(f"{directory}/tarsum/{strange}/{'4' * 64}/link", str(digest).encode())
    await driver.put_content(f"{directory}/tarsum/v1/sha256/{'4' * 63}/link", str(digest).encode())
    await driver.put_content(f"{directory}/tarsum/v1/sha256/{'A' * 64}/link", str(digest).encode())
    await driver.make_directory(f"{directory}/sha256/{'5' * 64}/link")
    assert [info.digest for info in await layers.list()] == [digest]


async def test_ten_thousand_layers(registry: Registry, watched: FaultyDriver) -> None:
    """A listing costs a handful of requests, however many layers there are."""
    count = 10_000
    if isinstance(registry.driver, LocalDriver):
        # Without fsync: this is not what is tested.
        for number in range(count):
            digest = f"sha256:{hashlib.sha256(b'%d' % number).hexdigest()}"
            for path, content in ((blob_path(digest), b"%d" % number), (link_path(NAME, digest), digest.encode())):
                file = Path(f"{registry.driver._root.path}{path}")
                file.parent.mkdir(parents=True)
                file.write_bytes(content)
    else:
        # As many as a request can list, and some more: to put ten thousand on an object store takes too long.
        count = 1_100 if registry.driver.capabilities.listed_files else count
        async with trio.open_nursery() as nursery:
            for number in range(count):
                nursery.start_soon(put_layer, registry.driver, b"%d" % number)
    listed = await Registry(watched).repository(NAME).layers.list()
    assert len(listed) == count
    assert {info.blob.size for info in listed} == {1, 2, 3, 4}
    assert watched.calls < 10


@pytest.mark.parametrize("call", ["list", "get_contents", "stat_many"])
async def test_a_listing_that_fails(registry: Registry, watched: FaultyDriver, call: str) -> None:
    """A backend that is out of reach is an error, never an empty repository."""
    await put_alias(registry.driver, b"x")

    async def fail(what: str, path: str) -> None:
        if what == call or (call == "list" and what == "list_files"):
            raise BackendFailure(path)

    watched.on_call = fail
    with pytest.raises(BackendFailure):
        await Registry(watched).repository(NAME).layers.list()


@pytest.mark.parametrize("kind", ["link", "blob"])
async def test_a_listing_where_all_are_out_of_reach(registry: Registry, kind: str) -> None:
    """The same where the batch succeeds and every single answer is a failure."""
    await put_alias(registry.driver, b"x")

    class OutOfReach(FaultyDriver):
        async def get_contents(self, paths, *, limit):  # type: ignore[no-untyped-def]
            found = await super().get_contents(paths, limit=limit)
            return found if kind == "blob" else [BackendFailure(path) for path in paths]

        async def stat_many(self, paths):  # type: ignore[no-untyped-def]
            return [BackendFailure(path) for path in paths]

    with pytest.raises(BackendFailure):
        await Registry(OutOfReach(Disk(registry.driver))).repository(NAME).layers.list()


# --- mounting and deleting -------------------------------------------------------------------------------------


async def test_mount(registry: Registry, driver: StorageDriver) -> None:
    """A link in the target, no bytes moved; deleting it in one repository leaves it in the other."""
    digest = await put_layer(driver, b"content", "source")
    target = registry.repository("target").layers
    info = await target.mount("source", digest)
    assert (info.digest, info.blob.digest, info.blob.size) == (digest, digest, 7)
    assert await target.exists(digest)
    await registry.repository("source").layers.delete(digest)
    assert not await registry.repository("source").layers.exists(digest)
    async with await target.fetch(digest) as layer:
        assert await layer.read() == b"content"
    await target.delete(digest)
    assert [path for path in await files_in(driver) if "_layers" in path] == []


@pytest.mark.parametrize("algorithm", ["sha512", "sha384"])
async def test_mount_by_another_algorithm(registry: Registry, driver: StorageDriver, algorithm: str) -> None:
    """Both links are made, both with the canonical digest: the registry's own mount gets this wrong."""
    alias = await put_alias(driver, b"content", algorithm, "source")
    await registry.repository("target").layers.mount("source", alias)
    files = await files_in(driver)
    canonical = f"sha256:{hashlib.sha256(b'content').hexdigest()}"
    assert files[link_path("target", str(alias))] == canonical.encode()
    assert files[link_path("target", canonical)] == canonical.encode()


async def test_mounting_what_is_there(registry: Registry, driver: StorageDriver) -> None:
    """Raises `LayerExists` with the target's name and the digest."""
    digest = await put_layer(driver, b"content", "source")
    target = registry.repository("target").layers
    await target.mount("source", digest)
    with pytest.raises(LayerExists) as caught:
        await target.mount("source", digest)
    assert (caught.value.name, caught.value.digest) == ("target", digest)


async def test_mounting_what_is_not_there(registry: Registry, driver: StorageDriver) -> None:
    """Raises `LayerUnknown` with the source's name, and does not make the target."""
    digest = await put_layer(driver, b"content", "elsewhere")
    for source in ("source", "target"):
        with pytest.raises(LayerUnknown) as caught:
            await registry.repository("target").layers.mount(source, digest)
        assert (caught.value.name, caught.value.digest) == (source, digest)
    assert [name async for name in registry.catalog()] == ["elsewhere"]


async def test_mounting_into_a_name_that_may_not_be_created(registry: Registry, driver: StorageDriver) -> None:
    """What is only lenient to read is not written to."""
    digest = await put_layer(driver, b"content", "source")
    with pytest.raises(InvalidRepositoryName):
        await registry.repository("Target/x").layers.mount("source", digest)


async def test_delete(layers: LayerService, driver: StorageDriver) -> None:
    """The link goes, the blob stays, and again it is unknown; it can be uploaded again."""
    digest = await put_layer(driver, b"content")
    await layers.delete(digest)
    assert not await layers.exists(digest)
    assert await driver.get_content(blob_path(str(digest)), limit=100) == b"content"
    with pytest.raises(LayerUnknown) as caught:
        await layers.delete(digest)
    assert (caught.value.name, caught.value.digest) == (NAME, digest)
    upload = await layers.upload()
    await upload.write(b"content")
    await upload.finish(digest)
    assert await layers.exists(digest)


async def test_deleting_takes_the_aliases(layers: LayerService, driver: StorageDriver) -> None:
    """With the canonical link go those by other algorithms, which would lead a registry's collector astray."""
    aliases = [await put_alias(driver, b"content", algorithm) for algorithm in ("sha384", "sha512")]
    other = await put_alias(driver, b"other")
    await layers.delete(Digest.of(b"content"))
    assert [await layers.exists(alias) for alias in aliases] == [False, False]
    assert {info.digest for info in await layers.list()} == {Digest.of(b"other"), other}


async def test_deleting_an_alias(layers: LayerService, driver: StorageDriver) -> None:
    """Takes that link only."""
    alias = await put_alias(driver, b"content")
    await layers.delete(alias)
    assert not await layers.exists(alias)
    assert await layers.exists(Digest.of(b"content"))


async def test_deleting_a_dangling_link(layers: LayerService, driver: StorageDriver) -> None:
    """A link that leads nowhere can be removed too."""
    digest = await put_layer(driver, b"content")
    await driver.delete(blob_path(str(digest)))
    await layers.delete(digest)
    assert [path for path in await files_in(driver) if "_layers" in path] == []


async def test_deletes_are_independent(
    registry: Registry, driver: StorageDriver, payload: Callable[[int], bytes]
) -> None:
    """Of two layers of one repository, and of one layer in two repositories, only the one named goes."""
    first, second = payload(100), payload(100)
    for name in ("a", "b"):
        for content in (first, second):
            await put_layer(driver, content, name)
    await registry.repository("a").layers.delete(Digest.of(first))
    left = {(name, info.digest) for name in ("a", "b") for info in await registry.repository(name).layers.list()}
    assert left == {("a", Digest.of(second)), ("b", Digest.of(first)), ("b", Digest.of(second))}
