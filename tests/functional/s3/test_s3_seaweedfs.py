"""What is different on SeaweedFS. Everything else of the driver is tested on it with `-m soak`."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import trio
from harness.s3_proxy import S3Proxy

from layerfs.driver.s3 import S3Driver
from layerfs.errors import ContentChanged, DriverError, PathNotFound

MEBIBYTE = 1 << 20
PART = 5 * MEBIBYTE
DATA = "/docker/registry/v2/repositories/a/_uploads/u/data"
BLOB = "/docker/registry/v2/blobs/sha256/ab/abcd/data"

Drivers = Callable[..., S3Driver]
Payload = Callable[[int], bytes]

pytestmark = pytest.mark.parametrize("server", ["seaweedfs"], indirect=True)


async def published(driver: S3Driver) -> None:
    async with await driver.seal(DATA) as sealed:
        await sealed.publish(BLOB)


async def test_a_part_that_comes_late(drivers: Drivers, stored, payload: Payload) -> None:
    """A request that was given up and made again can arrive after others. A store that keeps both has lost nothing."""
    content = payload(PART + 2000)
    upload_id = stored.begin(DATA, (1, content[:PART]), (2, content[PART:]))
    written = int(time.time())
    while int(time.time()) == written:
        await trio.sleep(0.01)  # its times are whole seconds
    stored.store_part(DATA, upload_id, 2, content[PART : PART + 1000])
    assert (await drivers().stat(DATA)).size == len(content)
    await published(drivers())
    assert stored.content(BLOB) == content


@pytest.mark.parametrize("is_open", [True, False], ids=["being written", "left"])
async def test_a_request_to_complete_that_comes_late(
    drivers: Drivers, proxy: S3Proxy, stored, payload: Payload, is_open: bool
) -> None:
    """It was made for a reader who gave up. Like AWS it leaves out what is stored by then and not named: so there is no
    such upload any more when more is stored."""
    content = payload(PART + 2000)
    driver = drivers(endpoint_url=proxy.url, part_size=PART)
    writer = await driver.writer(DATA, append=False)
    await writer.write([content[:PART]])
    await writer.flush()
    if not is_open:
        await writer.close()
    reader = await driver.open(DATA)
    late = proxy.fail("put_off_in_silence", "CompleteMultipartUpload")
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(reader.read, 0, 1000)
            while not late.met:
                await trio.sleep(0.01)  # polling interval
            nursery.cancel_scope.cancel()
    if not is_open:
        writer = await driver.writer(DATA, append=True)
    await writer.write([content[PART:]])
    await writer.flush()
    await trio.to_thread.run_sync(late.deliver)
    await writer.close()
    assert (await drivers().stat(DATA)).size == len(content)
    await published(driver)
    assert stored.content(BLOB) == content


async def test_a_part_that_is_not_listed_for_a_moment(
    drivers: Drivers, proxy: S3Proxy, stored, payload: Payload
) -> None:
    """What comes after a gap is left out by who goes on, for good on stores that complete some of the parts: so it is
    looked for twice."""
    content = payload(3 * PART)
    stored.begin(DATA, *((number, content[(number - 1) * PART : number * PART]) for number in (1, 2, 3)))
    number = b"<PartNumber>%d</PartNumber>"
    proxy.fail("edit", "ListParts", replaced=(number % 2, number % 3))
    writer = await drivers(endpoint_url=proxy.url, part_size=PART).writer(DATA, append=True)
    with pytest.raises(ContentChanged):
        await writer.write([b"more"])
    await writer.close()
    assert (await drivers().stat(DATA)).size == len(content)
    await published(drivers())
    assert stored.content(BLOB) == content


async def test_a_writer_goes_on_with_what_the_store_has_copied(
    drivers: Drivers, proxy: S3Proxy, stored, payload: Payload
) -> None:
    """Its ETag says of how many pieces it is. That of the object follows from it: nothing is read to be finished."""
    content = payload(PART + 3000)
    for start, end in ((0, PART + 1000), (PART + 1000, PART + 2000), (PART + 2000, PART + 3000)):
        driver = drivers(endpoint_url=proxy.url, part_size=PART)
        writer = await driver.writer(DATA, append=True)
        await writer.write([content[start:end]])
        await writer.flush()
        await writer.close()
    assert proxy.counts["UploadPartCopy"] == 2
    async with await driver.seal(DATA) as sealed:
        assert sealed.version == writer.version()
        await sealed.publish(BLOB)
    assert stored.content(BLOB) == content


async def test_what_is_sent_has_a_checksum(drivers: Drivers, proxy: S3Proxy, stored, payload: Payload) -> None:
    """It does not compare what it gets with what was signed; so a bit that flips on the way must be seen by the sum."""
    driver = drivers(endpoint_url=proxy.url, part_size=PART)
    writer = await driver.writer(DATA, append=False)
    proxy.fail("flip_request", "UploadPart", times=1000)
    with pytest.raises(DriverError):
        await writer.write([payload(PART)])
        await writer.flush()
    proxy.fail("flip_request", "PutObject", times=1000)
    with pytest.raises(DriverError):
        await driver.put_content("/link", b"sha256:0123")
    assert stored.parts(DATA) == []
    assert stored.paths() == []
    await writer.close()


async def test_a_directory_in_which_nothing_is_left(drivers: Drivers) -> None:
    """It may be listed for some minutes, but there is nothing to be found."""
    driver = drivers()
    await driver.put_content("/a/b/c", b"content")
    await driver.delete("/a")
    with pytest.raises(PathNotFound):
        await driver.stat("/a")
    with pytest.raises(PathNotFound):
        await driver.list_files("/a")
    assert await driver.list("/a/b") == []
    await driver.put_content("/a/d", b"content")
    assert [info.path for info in await driver.list_files("/a")] == ["/a/d"]
