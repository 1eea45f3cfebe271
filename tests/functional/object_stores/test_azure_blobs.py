"""Uploads on Azure are what registries make of them: append blobs that both go on with."""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Awaitable, Callable
from typing import TypeVar

import pytest
from azure.core import MatchConditions
from azure.storage.blob import AccountSasPermissions, BlobType, ResourceTypes, generate_account_sas
from harness.azurite import ACCOUNT, CONTAINER, KEY, azurite

from layerfs.digest import EMPTY, Digest
from layerfs.driver.azure_container import AzureBlob, Container
from layerfs.driver.azure_upload import AzureUpload, block_size
from layerfs.driver.bridge import AsyncioBridge
from layerfs.driver.sources import open_driver
from layerfs.errors import ContentTooLarge, DriverError, PathNotFound, UnknownSource, UnsupportedByDriver
from layerfs.registry import Registry

Result = TypeVar("Result")

#: When tokens expire.
END = datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=1)

UPLOAD = "/docker/registry/v2/repositories/a/_uploads/11111111-2222-4333-8444-555555555555"
DATA = f"{UPLOAD}/data"
MEBIBYTE = 1 << 20

Payload = Callable[[int], bytes]


async def test_an_upload_of_a_registry_is_gone_on_with(azure, payload: Payload) -> None:
    """An append blob of 4 MiB blocks, as distribution's driver leaves it when the client's connection breaks."""
    content = payload(9 * MEBIBYTE)
    client = azure.client.get_blob_client(azure.prefix + DATA)
    client.create_append_blob()
    for start in range(0, 8 * MEBIBYTE, 4 * MEBIBYTE):
        client.append_block(content[start : start + 4 * MEBIBYTE], appendpos_condition=start)
    azure.client.upload_blob(f"{azure.prefix}{UPLOAD}/startedat", b"2026-11-23T00:06:39Z")
    layers = (await Registry.open(azure.driver(), create=True)).repository("a").layers
    upload = await layers.resume(UPLOAD.rpartition("/")[2])
    assert upload.size == 8 * MEBIBYTE
    upload.seek(upload.size)
    await upload.write(content[8 * MEBIBYTE :])
    await upload.close()
    assert azure.content(DATA) == content


async def test_bytes_that_were_changed_on_the_way(azure, payload: Payload) -> None:
    """Without TLS what is sent has its MD5 with it, so the store refuses it, and nothing is stored."""
    content = payload(100_000)
    driver = azure.driver()
    azure.relay.fail("flip", "put", times=100)
    with pytest.raises(DriverError, match=r"(?i)md5"):
        await driver.put_content("/a", content)
    assert azure.paths() == []
    azure.relay.fail("flip", "append", times=100)
    writer = await driver.writer(DATA, append=False)
    with pytest.raises(DriverError, match=r"(?i)md5"):
        await writer.write([content])
        await writer.flush()
    await writer.close()
    assert azure.content(DATA) == b""


async def test_a_registry_goes_on_with_ours(azure, payload: Payload) -> None:
    """It finds an append blob of as many bytes as it is long, and appends at its end on condition of its ETag."""
    content = payload(6 * MEBIBYTE)
    writer = await azure.driver(block_size=4 * MEBIBYTE).writer(DATA, append=False)
    await writer.write([content[: 5 * MEBIBYTE]])
    await writer.flush()
    await writer.close()
    client = azure.client.get_blob_client(azure.prefix + DATA)
    found = client.get_blob_properties()
    assert found.blob_type == BlobType.APPENDBLOB
    assert found.size == 5 * MEBIBYTE
    assert found.append_blob_committed_block_count == 2
    client.append_block(
        content[5 * MEBIBYTE :],
        appendpos_condition=found.size,
        etag=found.etag,
        match_condition=MatchConditions.IfNotModified,
    )
    async with await azure.driver().seal(DATA) as sealed:
        assert await sealed.read(0, sealed.size) == content
        await sealed.publish("/blob")
    assert azure.client.get_blob_client(f"{azure.prefix}/blob").get_blob_properties().blob_type == BlobType.APPENDBLOB
    assert azure.content("/blob") == content


async def test_a_block_blob_is_not_appended_to(azure) -> None:
    """Unless it is empty, and so can be made anew; it is told before anything is touched."""
    driver = azure.driver()
    await driver.put_content("/a", b"content")
    writer = await driver.writer("/a", append=True)
    assert writer.size == 7
    with pytest.raises(UnsupportedByDriver, match="block blob"):
        await writer.write([b"more"])
    await writer.close()
    assert azure.content("/a") == b"content"


async def test_an_empty_layer(azure) -> None:
    """Nothing was ever appended to it."""
    layers = (await Registry.open(azure.driver(), create=True)).repository("a").layers
    upload = await layers.upload()
    await upload.finish(EMPTY)
    assert (await layers.stat(EMPTY)).blob.size == 0


def test_blocks_grow_with_their_number() -> None:
    """So that 50,000 of them hold more than a terabyte, and none is larger than Azure takes."""
    assert [block_size(4 * MEBIBYTE, blocks) // MEBIBYTE for blocks in (0, 19_999, 20_000, 34_999, 35_000)] == [
        *(4, 4, 16, 16, 64),
    ]
    assert sum(block_size(4 * MEBIBYTE, blocks) for blocks in range(50_000)) > 1.2 * 2**40
    assert block_size(100 * MEBIBYTE, 49_999) == 100 * MEBIBYTE


async def test_the_last_block_is_used_up(azure) -> None:
    """It is said what to do, before anything is sent."""
    blob = AzureBlob(7, "etag", 0, blocks=50_000, can_grow=True)

    async def write() -> None:
        await AzureUpload(Container(azurite().options(azure.prefix)), DATA, blob).append([b"more"])

    with pytest.raises(ContentTooLarge, match=r"50000 blocks are used up.*finish it"):
        await on_asyncio(write)


async def test_many_pages(azure) -> None:
    """A listing that comes in pages is whole, whatever is on their borders."""
    names = [f"/d/{number:02}" for number in range(10)] + [f"/d/{number:02}/below" for number in range(5)]
    for name in names:
        azure.client.upload_blob(azure.prefix + name, b"")
    container = Container(azurite().options(azure.prefix))

    async def collect(delimiter: str, limit: int) -> tuple[list[str], list[bool]]:
        pages = [page async for page in container.pages("/d", container.key("/d/"), delimiter=delimiter, limit=limit)]
        found = [container.path(key) for page in pages for key in [*page.objects, *page.prefixes]]
        return sorted(found), [page.is_last for page in pages]

    async def both() -> tuple[object, object]:
        try:
            return await collect("", 4), await collect("/", 6)
        finally:
            await container.close()

    flat, nested = await on_asyncio(both)
    assert flat == (sorted(names), [False, False, False, True])
    assert nested == (sorted([*names[:10], *(f"/d/{number:02}/" for number in range(5))]), [False, False, True])


async def test_credentials_are_found_where_tools_of_azure_look(azure, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection string, or an account and a key, or one and a token."""
    url = f"az://{CONTAINER}/{azure.prefix}"

    async def content() -> bytes:
        azure.made.append(open_driver(f"{url}?endpoint_url={azurite().endpoint}"))
        return await azure.made[-1].get_content("/a", limit=10)

    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", azurite().connection_string())
    azure.made.append(open_driver(url))
    await azure.made[-1].put_content("/a", b"content")
    monkeypatch.delenv("AZURE_STORAGE_CONNECTION_STRING")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT", ACCOUNT)
    monkeypatch.setenv("AZURE_STORAGE_KEY", KEY)
    assert await content() == b"content"
    monkeypatch.delenv("AZURE_STORAGE_KEY")
    token = generate_account_sas(
        ACCOUNT, KEY, ResourceTypes(object=True, container=True), AccountSasPermissions.from_string("rwdlac"), END
    )
    monkeypatch.setenv("AZURE_STORAGE_SAS_TOKEN", token)
    assert await content() == b"content"


async def test_a_token_is_enough_for_everything(azure, payload: Payload) -> None:
    """Also for copying, where the store itself must be able to read what it copies, and for deleting many at once."""
    token = generate_account_sas(
        ACCOUNT, KEY, ResourceTypes(object=True, container=True), AccountSasPermissions.from_string("rwdlac"), END
    )
    driver = azure.driver(account_key=None, sas_token=token)
    content = payload(100_000)
    layers = (await Registry.open(driver, create=True)).repository("a").layers
    upload = await layers.upload()
    await upload.write(content)
    digest = Digest.parse(f"sha256:{hashlib.sha256(content).hexdigest()}")
    await upload.finish(digest)
    assert (await layers.stat(digest)).blob.size == len(content)
    assert [path for path in azure.paths() if "_uploads" in path] == []


async def on_asyncio(function: Callable[[], Awaitable[Result]]) -> Result:
    """What a coroutine function gives on a loop of its own."""
    bridge = AsyncioBridge("test")
    try:
        return await bridge.call(function)
    finally:
        await bridge.close()


HIERARCHICAL = "hierarchical namespace"


async def test_an_account_with_a_hierarchical_namespace_is_refused(azure) -> None:
    """Such an account shows a directory as a blob with this mark; what is refused is said, and the account named."""
    azure.client.upload_blob(f"{azure.prefix}/docker/registry/v2", b"", metadata={"hdi_isfolder": "true"})
    azure.client.upload_blob(f"{azure.prefix}/docker/registry/v2/repositories/a/_layers/x/link", b"")
    with pytest.raises(UnknownSource, match=HIERARCHICAL) as refused:
        await Registry.open(azure.driver())
    assert ACCOUNT in str(refused.value)
    assert "Data Lake" in str(refused.value)


async def test_an_empty_account_with_a_hierarchical_namespace_is_refused(azure) -> None:
    """There is no directory yet that could tell, but the account is asked before anything is begun in it."""
    azure.relay.is_hierarchical = True
    with pytest.raises(UnknownSource, match=HIERARCHICAL):
        await Registry.open(azure.driver(), create=True)
    assert azure.paths() == []


async def test_what_an_account_is_need_not_be_told(azure) -> None:
    """Only keys and some tokens may ask; whoever may not is served all the same, and it is asked once."""
    azure.relay.fail("refuse", "account", times=1000, status=403, code="AuthorizationPermissionMismatch")
    driver = azure.driver()
    await Registry.open(driver, create=True)
    for number in range(3):
        with pytest.raises(PathNotFound):
            await driver.stat(f"/missing/{number}")
    assert azure.relay.counts["account"] == 1
