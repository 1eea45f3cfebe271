"""Requests that reach the store long after they were made again, or given up: something on the way has kept them.

S3 knows no condition on which a part is stored. So a part that comes late takes the place of what was stored since
under its number, though that was acknowledged: unless there is no such upload any more.
"""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Awaitable, Callable

import pytest
import trio
from harness.s3_proxy import Fault, S3Proxy

from layerfs.digest import Digest
from layerfs.driver.interface import FileWriter, StorageDriver
from layerfs.driver.s3 import S3Driver
from layerfs.errors import ContentChanged, DriverError
from layerfs.registry import LayerService, Registry

MEBIBYTE = 1 << 20
PART = 5 * MEBIBYTE
DATA = "/docker/registry/v2/repositories/a/_uploads/5f0d3b6a-0000-4000-8000-000000000000/data"
BLOB = "/docker/registry/v2/blobs/sha256/ab/abcd/data"

Drivers = Callable[..., S3Driver]
Payload = Callable[[int], bytes]

FOREVER = 1000


async def append(writer: FileWriter, content: bytes) -> None:
    await writer.write([content])
    await writer.flush()


async def go_on(driver: StorageDriver, content: bytes) -> None:
    writer = await driver.writer(DATA, append=True)
    await append(writer, content)
    await writer.close()


async def publish(driver: StorageDriver) -> None:
    async with await driver.seal(DATA) as sealed:
        await sealed.publish(BLOB)


async def arrive(*late: Fault) -> None:
    """All that was put off reaches the store."""
    for fault in late:
        assert await trio.to_thread.run_sync(fault.deliver)


async def meet(fault: Fault) -> None:
    with trio.fail_after(10):
        while not fault.met:
            await trio.sleep(0.01)  # polling interval


async def give_up(fault: Fault, attempt: Callable[[], Awaitable[None]]) -> None:
    """Cancels what is attempted, once its request is on the way."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(attempt)
        await meet(fault)
        nursery.cancel_scope.cancel()


# --- parts, to who wrote them ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [1000, PART, 2 * PART], ids=["longer", "full", "two more"])
@pytest.mark.parametrize("before", [0, PART], ids=["first part", "second part"])
async def test_a_short_part_that_comes_late(
    drivers: Drivers, proxy: S3Proxy, stored, payload: Payload, before: int, more: int
) -> None:
    """What was stored in its place since stays: the request was made again, and the writer has gone on."""
    content = payload(before + 1000 + more)
    driver = drivers(endpoint_url=proxy.url, part_size=PART)
    writer = await driver.writer(DATA, append=False)
    if before:
        await append(writer, content[:before])
    late = proxy.fail("put_off", "UploadPart")
    await append(writer, content[before : before + 1000])
    assert late.met == 2
    await append(writer, content[before + 1000 :])
    await arrive(late)
    assert (await drivers().stat(DATA)).size == len(content)
    await writer.close()
    await publish(driver)
    assert stored.content(BLOB) == content


async def test_a_short_part_that_comes_while_the_upload_is_finished(
    drivers: Drivers, proxy: S3Proxy, stored, payload: Payload
) -> None:
    """Between the look at its parts and the request that makes them an object."""
    content = payload(PART + 2000)
    driver = drivers(endpoint_url=proxy.url, part_size=PART)
    writer = await driver.writer(DATA, append=False)
    late = proxy.fail("put_off", "UploadPart")
    await append(writer, content[:1000])
    await append(writer, content[1000:])
    await writer.close()
    completed = proxy.fail("hold", "CompleteMultipartUpload")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(publish, driver)
        await meet(completed)
        await arrive(late)
        proxy.heal()
    assert stored.content(BLOB) == content


@pytest.mark.parametrize("more", [1000, PART])
async def test_a_short_part_that_comes_while_nobody_writes(
    drivers: Drivers, proxy: S3Proxy, stored, payload: Payload, more: int
) -> None:
    """The process that made the request is gone, and another goes on with what it flushed."""
    content = payload(2000 + more)
    writer = await drivers(endpoint_url=proxy.url, part_size=PART).writer(DATA, append=False)
    late = proxy.fail("put_off", "UploadPart")
    await append(writer, content[:1000])
    await append(writer, content[1000:-1000])
    await arrive(late)
    other = drivers(part_size=PART)
    assert (await other.stat(DATA)).size == len(content) - 1000
    await go_on(other, content[-1000:])
    await publish(other)
    assert stored.content(BLOB) == content


async def test_a_short_part_whose_flush_was_given_up(
    drivers: Drivers, proxy: S3Proxy, stored, payload: Payload
) -> None:
    """By who was cancelled while he waited for it, and goes on."""
    content = payload(PART + 3000)
    driver = drivers(endpoint_url=proxy.url, part_size=PART)
    writer = await driver.writer(DATA, append=False)
    await append(writer, content[:1000])
    late = proxy.fail("put_off_in_silence", "UploadPart")
    await writer.write([content[1000:2000]])
    await give_up(late, writer.flush)
    await append(writer, content[2000:3000])
    await append(writer, content[3000:])
    await arrive(late)
    await writer.close()
    await publish(driver)
    assert stored.content(BLOB) == content


@pytest.mark.parametrize("arrives", ["at once", "before it is repacked", "later"])
async def test_a_short_part_that_was_given_up_and_is_gone_on_with(
    drivers: Drivers, proxy: S3Proxy, stored, payload: Payload, arrives: str
) -> None:
    """Nothing that was flushed before is lost when it comes before who goes on has got rid of it."""
    content = payload(3000)
    driver = drivers(endpoint_url=proxy.url, part_size=PART)
    writer = await driver.writer(DATA, append=False)
    await append(writer, content[:1000])
    late = proxy.fail("put_off_in_silence", "UploadPart")
    await writer.write([content[1000:2000]])
    await give_up(late, writer.flush)
    if arrives == "at once":
        await arrive(late)
    held = proxy.fail("hold", "CompleteMultipartUpload")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(append, writer, content[2000:])
        if arrives == "before it is repacked":
            await meet(held)
            await arrive(late)
        held.released.set()
    if arrives == "later":
        await arrive(late)
    assert (await drivers().stat(DATA)).size == len(content)
    await writer.close()
    await publish(driver)
    assert stored.content(BLOB) == content


@pytest.mark.parametrize("elsewhere", [False, True], ids=["here", "elsewhere"])
async def test_a_short_part_that_failed_for_good(
    drivers: Drivers, proxy: S3Proxy, stored, payload: Payload, elsewhere: bool
) -> None:
    """Whoever goes on with what was flushed before it keeps what he stores."""
    content = payload(PART + 1000)
    driver = drivers(endpoint_url=proxy.url, read_timeout=0.3)
    writer = await driver.writer(DATA, append=False)
    await append(writer, content[:PART])
    late = proxy.fail("put_off_in_silence", "UploadPart", times=FOREVER)
    with pytest.raises(DriverError, match="does not answer in time"):
        await append(writer, payload(2000))
    proxy.faults.clear()
    await writer.close()
    await go_on(drivers() if elsewhere else driver, content[PART:])
    await arrive(late)
    assert (await drivers().stat(DATA)).size == len(content)
    await publish(drivers())
    assert stored.content(BLOB) == content


async def test_a_full_part_that_was_given_up(drivers: Drivers, proxy: S3Proxy, stored, payload: Payload) -> None:
    """It was never flushed; who begins again stores something else under its number."""
    driver = drivers(endpoint_url=proxy.url, part_size=PART)
    writer = await driver.writer(DATA, append=False)
    late = proxy.fail("put_off_in_silence", "UploadPart")
    await writer.write([payload(PART)])
    await meet(late)
    await writer.close()
    content = payload(3000)
    await go_on(driver, content)
    await arrive(late)
    await publish(driver)
    assert stored.content(BLOB) == content


async def test_a_full_part_that_comes_late(drivers: Drivers, proxy: S3Proxy, stored, payload: Payload) -> None:
    """Nothing else is ever stored under its number: nobody has to do anything about it."""
    content = payload(2 * PART + 1000)
    driver = drivers(endpoint_url=proxy.url, part_size=PART)
    writer = await driver.writer(DATA, append=False)
    late = proxy.fail("put_off", "UploadPart")
    await append(writer, content[: 2 * PART])
    await append(writer, content[2 * PART :])
    await arrive(late)
    await writer.close()
    await publish(driver)
    assert stored.content(BLOB) == content
    assert proxy.counts["CompleteMultipartUpload"] == 1


async def test_a_small_upload_that_is_gone_on_with(drivers: Drivers, proxy: S3Proxy, stored, payload: Payload) -> None:
    """What it has is stored again as the first part of a new upload: that request too can come late."""
    content = payload(3000)
    await go_on(drivers(), content[:1000])
    driver = drivers(endpoint_url=proxy.url)
    writer = await driver.writer(DATA, append=True)
    late = proxy.fail("put_off", "UploadPart")
    await append(writer, content[1000:2000])
    await append(writer, content[2000:])
    await arrive(late)
    await writer.close()
    await publish(driver)
    assert stored.content(BLOB) == content


# --- parts, to who goes on elsewhere ---------------------------------------------------------------------------------


@pytest.mark.parametrize("flushed", [0, 6 * MEBIBYTE])
@pytest.mark.parametrize("unflushed", [1000, 20 * MEBIBYTE], ids=["short", "full"])
async def test_a_part_of_a_process_that_was_killed(
    drivers: Drivers, proxy: S3Proxy, stored, payload: Payload, flushed: int, unflushed: int
) -> None:
    """It was on its way when the process ended, and comes when another one has gone on, with other bytes."""
    content = payload(flushed)
    writer = await drivers(endpoint_url=proxy.url).writer(DATA, append=False)
    await append(writer, content)
    late = proxy.fail("put_off_in_silence", "UploadPart")
    await writer.write([payload(unflushed)])
    await give_up(late, writer.flush)
    theirs = payload(2000)
    other = drivers()
    assert (await other.stat(DATA)).size == flushed
    await go_on(other, theirs)
    await arrive(late)
    assert (await drivers().stat(DATA)).size == flushed + len(theirs)
    await publish(drivers())
    assert stored.content(BLOB) == content + theirs


async def test_who_goes_on_with_what_he_left_himself(drivers: Drivers, proxy: S3Proxy, payload: Payload) -> None:
    """All his requests were answered: nothing can come late, so nothing need be repacked."""
    driver = drivers(endpoint_url=proxy.url)
    for size in (PART, PART, 1000):
        await go_on(driver, payload(size))
    assert proxy.counts["CompleteMultipartUpload"] == proxy.counts["UploadPartCopy"] == 0
    assert proxy.counts["CreateMultipartUpload"] == 1


# --- requests that begin an upload -----------------------------------------------------------------------------------


def digest_of(content: bytes) -> Digest:
    return Digest.parse(f"sha256:{hashlib.sha256(content).hexdigest()}")


async def layers_of(driver: S3Driver) -> LayerService:
    return (await Registry.open(driver, create=True)).repository("a").layers


@pytest.mark.parametrize("is_finished_by", ["who began it", "another"])
async def test_a_second_upload_that_is_begun_late(
    drivers: Drivers, proxy: S3Proxy, stored, payload: Payload, is_finished_by: str
) -> None:
    """It is empty, and nothing of it is left when the upload is finished."""
    content = payload(PART + 1000)
    driver = drivers(endpoint_url=proxy.url, part_size=PART)
    late = proxy.fail("put_off", "CreateMultipartUpload")
    upload = await (await layers_of(driver)).upload()
    await upload.write(content[:1000])
    await upload.flush()
    await arrive(late)
    assert len(stored.uploads()) == 2
    assert (await (await layers_of(drivers())).stat_upload(upload.uuid)).size == 1000
    if is_finished_by == "another":
        await upload.close()
        upload = await (await layers_of(drivers())).resume(upload.uuid)
    await upload.write(content[1000:])
    await upload.finish(digest_of(content))
    hexadecimal = digest_of(content).hex
    assert stored.content(f"/docker/registry/v2/blobs/sha256/{hexadecimal[:2]}/{hexadecimal}/data") == content
    assert stored.uploads() == []
    assert not [path for path in stored.paths() if "/_uploads/" in path]


async def test_a_second_upload_that_is_begun_late_and_cancelled(drivers: Drivers, proxy: S3Proxy, stored) -> None:
    """Nothing is left of either."""
    driver = drivers(endpoint_url=proxy.url)
    late = proxy.fail("put_off", "CreateMultipartUpload")
    upload = await (await layers_of(driver)).upload()
    await upload.write(b"content")
    await upload.flush()
    await arrive(late)
    await upload.cancel()
    assert stored.uploads() == []
    assert stored.paths() == []


async def test_two_writers_of_what_was_begun_twice(drivers: Drivers, proxy: S3Proxy, payload: Payload) -> None:
    """They do not each go on with an upload of their own, of which one would be lost: the first is told."""
    late = proxy.fail("put_off", "CreateMultipartUpload")
    writer = await drivers(endpoint_url=proxy.url).writer(DATA, append=False)
    await arrive(late)
    theirs = payload(1000)
    other = await drivers().writer(DATA, append=True)
    await append(other, theirs)
    with pytest.raises(ContentChanged):
        await append(writer, payload(2000))
    await append(other, theirs)
    await other.close()
    await writer.close()
    assert await drivers().get_content(DATA, limit=10000) == theirs + theirs


# --- other requests --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "operation",
    ["UploadPart", "CompleteMultipartUpload", "CopyObject", "UploadPartCopy", "DeleteObjects", "DeleteObject"],
)
async def test_a_request_of_a_push_that_comes_when_all_is_done(
    drivers: Drivers, proxy: S3Proxy, stored, payload: Payload, operation: str
) -> None:
    """It changes nothing any more."""
    content = payload(2 * PART)
    driver = drivers(endpoint_url=proxy.url, part_size=PART, multipart_copy_threshold=None)
    upload = await (await layers_of(drivers(part_size=PART))).upload()
    await upload.write(content[:PART])
    await upload.close()
    late = proxy.fail("put_off", operation)
    resumed = await (await layers_of(driver)).resume(upload.uuid)
    await resumed.write(content[PART:])
    await resumed.finish(digest_of(content))
    before = stored.paths()
    await arrive(late)
    assert stored.paths() == before
    assert stored.uploads() == []
    hexadecimal = digest_of(content).hex
    assert stored.content(f"/docker/registry/v2/blobs/sha256/{hexadecimal[:2]}/{hexadecimal}/data") == content
    assert posixpath.dirname(DATA).rpartition("/")[0] not in "".join(before)
