"""Layers by their TarSum: finishing uploads by one, and everything else that can be done with a layer's name."""

from __future__ import annotations

import hashlib

import pytest
from harness.faulty_driver import Fault, FaultyDriver, InjectedFailure
from harness.handmade import put_data
from harness.invariants import V2, blob_path, check_storage, link_path, upload_path
from harness.tarsums import LABELS, WRONG, archive, tarsum_of
from harness.walk import files_in

from layerfs.digest import Digest
from layerfs.driver.interface import StorageDriver
from layerfs.errors import (
    InvalidTar,
    LayerExists,
    LayerInvalidDigest,
    LayerInvalidLength,
    LayerTarSumVersionUnsupported,
    LayerUnknown,
    LayerUploadInvalid,
    LinkMismatch,
    TruncatedTar,
)
from layerfs.layername import LayerName, parse_layer_name
from layerfs.registry import LayerService, Registry
from layerfs.tarsum import TarSumDigest

NAME = "foo/bar"
UUID = "f81d4fae-7dec-4d0a-a765-00a0c91e6bf6"
CONTENT = archive("types.tar")


def sha256(content: bytes) -> Digest:
    return Digest.of(content)


def tarsum(name: str = "types.tar", label: str = "tarsum.v1") -> LayerName:
    return parse_layer_name(tarsum_of(name, label))


async def put_upload(driver: StorageDriver, content: bytes) -> None:
    """An upload as a registry leaves it."""
    await driver.put_content(upload_path(NAME, UUID, "startedat"), b"2026-11-23T00:06:39Z")
    await put_data(driver, upload_path(NAME, UUID, "data"), content)


async def put_layer(driver: StorageDriver, content: bytes, *aliases: str, name: str = NAME) -> Digest:
    """A layer as a registry of the seed era stored it."""
    canonical = str(sha256(content))
    await driver.put_content(blob_path(canonical), content)
    for digest in (canonical, *aliases):
        await driver.put_content(link_path(name, digest), canonical.encode())
    return sha256(content)


async def finish(layers: LayerService, content: bytes, name: LayerName) -> Digest:
    """Uploads and finishes at once."""
    upload = await layers.upload()
    await upload.write(content)
    return await upload.finish(name, len(content))


# --- finishing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("resumed", [False, True])
@pytest.mark.parametrize("label", LABELS)
@pytest.mark.parametrize("vector", ["types.tar", "gnu-tar-b1.tar", "padded-10240.tar", "xattr.tar", "dup-ba.tar"])
async def test_by_every_version(
    layers: LayerService, driver: StorageDriver, vector: str, label: str, resumed: bool
) -> None:
    """Stored under sha256; linked under both names; both links are exactly the sha256 digest."""
    content = archive(vector)
    upload = await layers.upload()
    await upload.write(content)
    if resumed:
        await upload.close()
        upload = await layers.resume(upload.uuid)
    assert await upload.finish(tarsum(vector, label), len(content)) == sha256(content)
    canonical = str(sha256(content))
    version = {"tarsum": "v0", "tarsum.v1": "v1", "tarsum.dev": "dev"}[label]
    encoded = tarsum_of(vector, label).partition(":")[2]
    assert await files_in(driver) == {
        blob_path(canonical): content,
        f"{V2}/repositories/{NAME}/_layers/sha256/{canonical[7:]}/link": canonical.encode(),
        f"{V2}/repositories/{NAME}/_layers/tarsum/{version}/sha256/{encoded}/link": canonical.encode(),
    }


@pytest.mark.parametrize(
    "name", [WRONG, tarsum_of("xattr.tar"), tarsum_of("types.tar", "tarsum").replace("m+", "m.v1+")]
)
async def test_a_wrong_tarsum(layers: LayerService, driver: StorageDriver, name: str) -> None:
    """Refused with what it really is; nothing in storage changes, and the right one works then."""
    await put_upload(driver, CONTENT)
    before = await files_in(driver)
    upload = await layers.resume(UUID)
    with pytest.raises(LayerInvalidDigest, match=tarsum_of("types.tar").replace("+", r"\+")) as caught:
        await upload.finish(parse_layer_name(name))
    assert (str(caught.value.expected), caught.value.size) == (name, len(CONTENT))
    assert await files_in(driver) == before
    assert await upload.finish(tarsum()) == sha256(CONTENT)


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"junk" * 1000, InvalidTar),
        (archive("gzipped.tar"), InvalidTar),
        (archive("bad-checksum.tar"), InvalidTar),
        (CONTENT[:700], TruncatedTar),
    ],
)
async def test_what_is_no_archive(
    layers: LayerService, driver: StorageDriver, content: bytes, error: type[Exception]
) -> None:
    """Refused; nothing changes, and by its sha256 it is a layer all the same."""
    await put_upload(driver, content)
    before = await files_in(driver)
    upload = await layers.resume(UUID)
    with pytest.raises(error):
        await upload.finish(tarsum())
    assert await files_in(driver) == before
    assert await upload.finish(sha256(content)) == sha256(content)


async def test_a_version_that_nobody_knows(layers: LayerService, driver: StorageDriver) -> None:
    """Refused as such, by whatever way it comes; nothing changes."""
    await put_upload(driver, CONTENT)
    before = await files_in(driver)
    with pytest.raises(LayerTarSumVersionUnsupported):
        parse_layer_name("tarsum.v2+sha256:" + "0" * 64)
    with pytest.raises(LayerTarSumVersionUnsupported):
        await (await layers.resume(UUID)).finish(TarSumDigest("v2", "sha256", "0" * 64))
    assert await files_in(driver) == before


async def test_a_wrong_size(layers: LayerService, driver: StorageDriver) -> None:
    """The size that is asked for counts as with any digest."""
    await put_upload(driver, CONTENT)
    with pytest.raises(LayerInvalidLength):
        await (await layers.resume(UUID)).finish(tarsum(), len(CONTENT) + 1)


@pytest.mark.parametrize("label", LABELS)
@pytest.mark.parametrize("content", [b"", bytes(1024)])
async def test_archives_of_nothing(layers: LayerService, driver: StorageDriver, label: str, content: bytes) -> None:
    """No bytes, and an end marker alone, have the same TarSum and are different layers."""
    name = parse_layer_name(tarsum_of("zero-length.tar", label))
    assert await finish(layers, content, name) == sha256(content)
    async with await layers.fetch(name) as layer:
        assert await layer.read() == content


async def test_two_archives_of_one_tarsum(layers: LayerService, driver: StorageDriver) -> None:
    """Both are layers; the TarSum leads to the one that was finished by it last."""
    first, second = archive("mtime-x.tar"), archive("mtime-y.tar")
    name = tarsum("mtime-x.tar")
    for content in (first, second):
        assert await finish(layers, content, name) == sha256(content)
        async with await layers.fetch(name) as layer:
            assert await layer.read() == content
    assert {info.digest for info in await layers.list()} == {sha256(first), sha256(second), name}
    check_storage(await files_in(driver))


@pytest.mark.parametrize("how", ["before", "after"])
async def test_trying_again_with_the_same_object(registry: Registry, watched: FaultyDriver, how: str) -> None:
    """Whatever call fails, the same `finish` completes it, unless a write was lost."""
    call = 0
    while True:
        call += 1
        upload = await Registry(watched).repository(NAME).layers.upload()
        await upload.write(CONTENT)
        watched.arm(Fault(call, how, "fail"))
        try:
            await upload.finish(tarsum())
        except InjectedFailure:
            watched.arm(None)
            if not upload.is_usable:
                upload = await Registry(watched).repository(NAME).layers.resume(upload.uuid)
                await upload.write(CONTENT[upload.offset :])
            assert await upload.finish(tarsum()) == sha256(CONTENT)
        else:
            if not watched.has_struck:
                break
        watched.arm(None)
        files = await files_in(registry.driver)
        check_storage(files)
        assert files[link_path(NAME, str(tarsum()))] == str(sha256(CONTENT)).encode()
        assert not [path for path in files if "_uploads" in path]
        await registry.driver.delete(f"{V2}/blobs/sha256")
        await registry.driver.delete(f"{V2}/repositories/{NAME}")
    assert call > 8


async def test_completing_after_a_crash(layers: LayerService, driver: StorageDriver) -> None:
    """The blob was published and nothing else: it is read again, and only its own TarSum completes it."""
    await put_upload(driver, b"")
    await driver.delete(upload_path(NAME, UUID, "data"))
    with pytest.raises(LayerUploadInvalid):
        await (await layers.resume(UUID)).finish(tarsum())
    await driver.put_content(blob_path(str(sha256(CONTENT))), CONTENT)
    await driver.put_content(upload_path(NAME, UUID, "layerfs-committing"), str(sha256(CONTENT)).encode())
    with pytest.raises(LayerInvalidDigest):
        await (await layers.resume(UUID)).finish(parse_layer_name(WRONG))
    assert await (await layers.resume(UUID)).finish(tarsum(), len(CONTENT)) == sha256(CONTENT)
    files = await files_in(driver)
    check_storage(files)
    assert not [path for path in files if "_uploads" in path]
    assert await layers.exists(tarsum())


# --- what is there ----------------------------------------------------------------------------------------------------


async def test_a_tree_of_the_seed_era(layers: LayerService, driver: StorageDriver) -> None:
    """What distribution 2.0.0 left is read completely: every layer, by each of its names, and nothing else."""
    expected = {}
    for vector, labels in {"types.tar": LABELS, "xattr.tar": ["tarsum"], "order-a.tar": ["tarsum.dev"]}.items():
        content = archive(vector)
        aliases = [tarsum_of(vector, label) for label in labels]
        sha384 = f"sha384:{hashlib.sha384(content).hexdigest()}"
        await put_layer(driver, content, *aliases, sha384)
        expected |= dict.fromkeys([str(sha256(content)), *aliases, sha384], content)
    await put_layer(driver, b"", tarsum_of("zero-length.tar"))
    expected |= dict.fromkeys([str(sha256(b"")), tarsum_of("zero-length.tar")], b"")
    # An upload without a byte, which had no `data` then, with a hash state that nobody can read any more; and a ghost.
    await driver.put_content(upload_path(NAME, UUID, "startedat"), b"2015-04-21T10:00:00Z")
    await driver.put_content(upload_path(NAME, UUID, "hashstates/sha256/0"), b"gob" * 52)
    await driver.put_content(upload_path(NAME, UUID[:-1] + "7", "hashstates/sha256/0"), b"gob" * 52)
    listed = await layers.list()
    assert {str(info.digest) for info in listed} == set(expected)
    assert len(listed) == len(expected)
    for info in listed:
        assert info.blob.digest == sha256(expected[str(info.digest)])
        assert await layers.stat(info.digest) == info
        async with await layers.fetch(info.digest) as layer:
            assert (layer.digest, await layer.read()) == (info.blob.digest, expected[str(info.digest)])
    assert [(upload.uuid, upload.size) for upload in await layers.uploads()] == [(UUID, 0)]


async def test_a_link_that_leads_nowhere(layers: LayerService, driver: StorageDriver) -> None:
    """An unknown TarSum, an alias without its blob, and an alias that holds a TarSum: no such layer, and not listed."""
    with pytest.raises(LayerUnknown):
        await layers.fetch(tarsum())
    for content in (str(sha256(b"gone")), tarsum_of("types.tar"), ""):
        await driver.put_content(link_path(NAME, tarsum_of("types.tar")), content.encode())
        with pytest.raises(LayerUnknown):
            await layers.stat(tarsum())
        assert await layers.list() == []
    # By its own name that would be other content; an alias has no bytes of its own to be wrong about.
    await driver.put_content(link_path(NAME, str(sha256(b"x"))), str(sha256(b"y")).encode())
    with pytest.raises(LinkMismatch):
        await layers.stat(sha256(b"x"))


async def test_mounting_by_tarsum(registry: Registry, driver: StorageDriver) -> None:
    """Both links are made, canonical first; a second time it exists."""
    await put_layer(driver, CONTENT, tarsum_of("types.tar"))
    layers = registry.repository("other").layers
    info = await layers.mount(NAME, tarsum())
    assert (info.digest, info.blob.digest) == (tarsum(), sha256(CONTENT))
    files = await files_in(driver)
    for name in (tarsum_of("types.tar"), str(sha256(CONTENT))):
        assert files[link_path("other", name)] == str(sha256(CONTENT)).encode()
    with pytest.raises(LayerExists):
        await layers.mount(NAME, tarsum())


async def test_deleting(layers: LayerService, driver: StorageDriver) -> None:
    """A TarSum goes alone; the canonical link takes all the TarSums of the same blob with it, and no other."""
    aliases = [tarsum_of("types.tar", label) for label in LABELS]
    await put_layer(driver, CONTENT, *aliases)
    other = await put_layer(driver, archive("xattr.tar"), tarsum_of("xattr.tar"))
    await layers.delete(parse_layer_name(aliases[0]))
    assert not await layers.exists(parse_layer_name(aliases[0]))
    assert await layers.exists(sha256(CONTENT))
    await layers.delete(sha256(CONTENT))
    assert {info.digest for info in await layers.list()} == {other, tarsum("xattr.tar")}
    with pytest.raises(LayerUnknown):
        await layers.delete(parse_layer_name(aliases[1]))
