"""Unfinished uploads on S3: parts of open multipart uploads, whoever began them and however they were left."""

from __future__ import annotations

import hashlib
import posixpath
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta

import pytest
import trio
from harness.object_stores import S3Server
from harness.s3_proxy import S3Proxy
from harness.swift import Swift

from layerfs.digest import Digest
from layerfs.driver.interface import StorageDriver
from layerfs.driver.s3 import S3Driver
from layerfs.errors import ContentChanged, DriverError, LayerUploadUnknown, PathNotFound
from layerfs.registry import Registry
from layerfs.registry.maintenance import purge_uploads

MEBIBYTE = 1 << 20
PART = 5 * MEBIBYTE
DATA = "/docker/registry/v2/repositories/a/_uploads/5f0d3b6a-0000-4000-8000-000000000000/data"
BLOB = "/docker/registry/v2/blobs/sha256/ab/abcd/data"

Drivers = Callable[..., S3Driver]
Payload = Callable[[int], bytes]


async def append(driver: StorageDriver, content: bytes) -> None:
    writer = await driver.writer(DATA, append=True)
    await writer.write([content])
    await writer.flush()
    await writer.close()


async def published(driver: StorageDriver) -> None:
    async with await driver.seal(DATA) as sealed:
        await sealed.publish(BLOB)


# --- how they are kept -----------------------------------------------------------------------------------------------


async def test_an_upload_is_an_open_multipart_upload(driver: S3Driver, stored, payload: Payload) -> None:
    """What is flushed is in its parts, the last of them short, and there is no object."""
    writer = await driver.writer(DATA, append=False)
    await writer.write([payload(20 * MEBIBYTE)])
    await writer.flush()
    assert stored.parts(DATA) == [(1, 16 * MEBIBYTE), (2, 4 * MEBIBYTE)]
    assert stored.paths() == []
    await writer.close()


async def test_a_short_last_part_is_replaced_in_place(drivers: Drivers, stored, payload: Payload) -> None:
    """Flushing often does not make more parts, nor small ones in the middle, which S3 would refuse."""
    content = payload(3 * PART)
    writer = await drivers(part_size=PART).writer(DATA, append=False)
    for start in range(0, len(content), MEBIBYTE):
        await writer.write([content[start : start + MEBIBYTE]])
        await writer.flush()
    assert stored.parts(DATA) == [(1, PART), (2, PART), (3, PART)]
    await writer.close()
    await published(drivers())
    assert stored.content(BLOB) == content


async def test_what_is_flushed_survives(drivers: Drivers, payload: Payload) -> None:
    """The process that wrote it never gets to close anything."""
    content = payload(7 * MEBIBYTE)
    writer = await drivers(part_size=PART).writer(DATA, append=False)
    await writer.write([content])
    await writer.flush()
    await writer.write([b"not flushed"])
    other = drivers()
    assert (await other.stat(DATA)).size == len(content)
    assert await other.get_content(DATA, limit=len(content)) == content


@pytest.mark.parametrize("sizes", [(1000, 1, 6 * MEBIBYTE), (6 * MEBIBYTE, 1000, 1000), (20 * MEBIBYTE, 1, 0, 1)])
async def test_others_go_on(drivers: Drivers, stored, payload: Payload, sizes: tuple[int, ...]) -> None:
    """Each time another process, whatever the size of the last part."""
    content = payload(sum(sizes))
    start = 0
    for size in sizes:
        driver = drivers(part_size=PART)
        if start:
            assert (await driver.stat(DATA)).size == start
        await append(driver, content[start : start + size])
        start += size
        assert (await driver.stat(DATA)).size == start
    await published(drivers())
    assert hashlib.sha256(stored.content(BLOB)).digest() == hashlib.sha256(content).digest()


async def test_after_the_first_short_part_there_is_no_more_repacking(
    drivers: Drivers, proxy: S3Proxy, payload: Payload
) -> None:
    """One who goes on completes and copies once, however often it flushes."""
    await append(drivers(), payload(1000))
    writer = await drivers(endpoint_url=proxy.url).writer(DATA, append=True)
    for _ in range(5):
        await writer.write([payload(1000)])
        await writer.flush()
    assert proxy.counts["CompleteMultipartUpload"] == 1
    await writer.close()


# --- what others left ------------------------------------------------------------------------------------------------


async def test_what_comes_after_a_gap_does_not_count(drivers: Drivers, stored, payload: Payload) -> None:
    """Parts are stored side by side: a process that is killed can leave the fourth without the third."""
    one, two, four, more = payload(PART), payload(PART), payload(PART), payload(2000)
    stored.begin(DATA, (1, one), (2, two), (4, four))
    driver = drivers()
    assert (await driver.stat(DATA)).size == 2 * PART
    await append(driver, more)
    assert (await drivers().stat(DATA)).size == 2 * PART + len(more)
    await published(drivers())
    assert stored.content(BLOB) == one + two + more


async def test_sealing_what_has_a_gap(drivers: Drivers, stored, payload: Payload) -> None:
    """What comes after it is left out there too."""
    one, three = payload(PART), payload(PART)
    stored.begin(DATA, (1, one), (3, three))
    async with await drivers().seal(DATA) as sealed:
        assert sealed.size == PART
        await sealed.publish(BLOB)
    assert stored.content(BLOB) == one


async def test_sealing_nothing_but_what_comes_after_a_gap(drivers: Drivers, stored, payload: Payload) -> None:
    """It is an empty file."""
    stored.begin(DATA, (2, payload(PART)))
    async with await drivers().seal(DATA) as sealed:
        assert sealed.size == 0
        await sealed.publish(BLOB)
    assert stored.content(BLOB) == b""


async def test_repacking_that_fails_half_way(drivers: Drivers, proxy: S3Proxy, stored, payload: Payload) -> None:
    """All that there was is there still, for the process that failed as for any other."""
    content = payload(3 * PART)
    stored.put(DATA, content)
    driver = drivers(endpoint_url=proxy.url, multipart_copy_threshold=PART)
    proxy.fail("refuse", "UploadPartCopy", times=1000, suffix="data", after=1, status=400, code="InvalidRequest")
    writer = await driver.writer(DATA, append=True)
    with pytest.raises(DriverError):
        await writer.write([b"more"])
    await writer.close()
    assert stored.uploads() != []
    proxy.heal()
    for other in (driver, drivers()):
        async with await other.seal(DATA) as sealed:
            assert sealed.size == len(content)
            assert await sealed.read(0, len(content)) == content


async def test_nothing_but_what_comes_after_a_gap(drivers: Drivers, stored, payload: Payload) -> None:
    """The upload is empty."""
    stored.begin(DATA, (2, payload(PART)))
    driver = drivers()
    assert (await driver.stat(DATA)).size == 0
    await append(driver, b"content")
    await published(drivers())
    assert stored.content(BLOB) == b"content"


@pytest.mark.parametrize("parts", [(), ((1, b"half"),)])
async def test_repacking_that_was_interrupted(drivers: Drivers, stored, parts: tuple[tuple[int, bytes], ...]) -> None:
    """The object was to become the beginning of a new upload, and is longer than what that has: it is all there is."""
    stored.put(DATA, b"half and half")
    stored.begin(DATA, *parts)
    await append(drivers(), b", whole")
    assert (await drivers().stat(DATA)).size == 20
    await published(drivers())
    assert stored.content(BLOB) == b"half and half, whole"


async def test_an_object_of_which_the_parts_hold_more(drivers: Drivers, stored, payload: Payload) -> None:
    """It is what repacking leaves, and stale."""
    content = payload(PART + 1)
    stored.put(DATA, content[:1000])
    stored.begin(DATA, (1, content[:PART]), (2, content[PART:]))
    driver = drivers()
    assert (await driver.stat(DATA)).size == PART + 1
    assert await driver.get_content(DATA, limit=PART + 1) == content
    await published(driver)
    assert stored.content(BLOB) == content


async def test_an_upload_that_was_completed_goes_on(drivers: Drivers, stored, payload: Payload) -> None:
    """A registry leaves an object when the digest was wrong."""
    content = payload(6 * MEBIBYTE)
    stored.put(DATA, content)
    await append(drivers(), b"more")
    assert [size for _, size in stored.parts(DATA)] == [6 * MEBIBYTE, 4]
    await published(drivers())
    assert stored.content(BLOB) == content + b"more"


async def test_of_several_uploads_the_fullest_counts(drivers: Drivers, stored) -> None:
    """A request to begin one that was repeated leaves another, empty."""
    stored.begin(DATA)
    stored.begin(DATA, (1, b"content"))
    stored.begin(DATA)
    driver = drivers()
    assert (await driver.stat(DATA)).size == 7
    assert await driver.get_content(DATA, limit=7) == b"content"


async def test_beginning_anew_leaves_nothing_of_the_old(drivers: Drivers, stored) -> None:
    """Neither uploads nor the object."""
    stored.put(DATA, b"an object")
    stored.begin(DATA, (1, b"one"))
    stored.begin(DATA, (1, b"other"))
    writer = await drivers().writer(DATA, append=False)
    await writer.close()
    assert stored.paths() == []
    assert stored.parts(DATA) == []
    assert (await drivers().stat(DATA)).size == 0


async def test_cancelling_aborts_the_multipart_upload(drivers: Drivers, stored, payload: Payload) -> None:
    """Else its parts would be stored, and paid for, for ever."""
    await append(drivers(), payload(1000))
    stored.put(DATA.replace("/data", "/startedat"), b"2026-11-23T00:06:39Z")
    await drivers().delete(DATA.rpartition("/")[0])
    assert stored.uploads() == []
    assert stored.paths() == []


async def test_deleting_a_directory_aborts_all_uploads_below_it(drivers: Drivers, stored) -> None:
    """But not those of a neighbour."""
    neighbour = DATA.replace("/a/", "/ab/")
    stored.begin(DATA, (1, b"content"))
    stored.begin(neighbour)
    await drivers().delete("/docker/registry/v2/repositories/a")
    assert [path for path, _ in stored.uploads()] == [neighbour]
    with pytest.raises(PathNotFound):
        await drivers().stat(DATA)


async def test_an_upload_has_the_time_of_its_last_change(drivers: Drivers, stored) -> None:
    """Of its beginning as long as there is nothing in it; for whoever writes it and for everybody else."""
    second = 1_000_000_000
    before = time.time_ns()
    writer = await (writing := drivers()).writer(DATA, append=False)
    for driver in (writing, drivers()):
        assert before - 2 * second <= (await driver.stat(DATA)).modified_at <= time.time_ns() + 2 * second
    await writer.write([b"content"])
    await writer.flush()
    for driver in (writing, drivers()):
        assert before - 2 * second <= (await driver.stat(DATA)).modified_at <= time.time_ns() + 2 * second
    await writer.close()


async def test_an_upload_is_in_the_listing_of_its_directory(drivers: Drivers, stored) -> None:
    """Though there is no object."""
    stored.begin(DATA, (1, b"content"))
    (entry,) = await drivers().list(DATA.rpartition("/")[0])
    assert (entry.name, entry.is_directory) == ("data", False)


async def test_a_writer_that_is_killed_while_a_short_part_is_replaced(
    drivers: Drivers, proxy: S3Proxy, stored, payload: Payload
) -> None:
    """Nothing is stored behind the short part before the full one is in its place: it would count, with a hole."""
    content = payload(4 * PART)
    flushed = PART + 1000
    writer = await drivers(endpoint_url=proxy.url, part_size=PART).writer(DATA, append=False)
    await writer.write([content[:flushed]])
    await writer.flush()
    stuck = proxy.fail("stall", "UploadPart")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(writer.write, [content[flushed:]])
        while not stuck.met:
            await trio.sleep(0.01)  # polling interval
        await trio.sleep(0.5)  # for something not to happen
        assert (await drivers().stat(DATA)).size == flushed
        proxy.heal()
    await writer.flush()
    assert (await drivers().stat(DATA)).size == len(content)
    await writer.close()
    await published(drivers())
    assert stored.content(BLOB) == content


# --- reading ---------------------------------------------------------------------------------------------------------


async def test_reading_what_is_being_written(drivers: Drivers, stored, payload: Payload) -> None:
    """All of it, also what is long out of memory; then writing goes on."""
    content = payload(3 * PART + 1000)
    driver = drivers(part_size=PART)
    writer = await driver.writer(DATA, append=False)
    await writer.write([content[:-1000]])
    reader = await driver.open(DATA)
    for offset, length in ((0, 1000), (PART - 1, 2), (2 * PART, PART), (3 * PART - 1, 10)):
        assert await reader.read(offset, length) == content[: 3 * PART][offset : offset + length]
    await writer.write([content[-1000:]])
    await writer.flush()
    await writer.close()
    await published(driver)
    assert stored.content(BLOB) == content


async def test_reading_what_is_in_memory_asks_nobody(proxied: S3Driver, proxy: S3Proxy) -> None:
    """A small upload, such as a manifest, is at hand."""
    writer = await proxied.writer(DATA, append=False)
    await writer.write([b"content"])
    proxy.forget()
    assert await proxied.get_content(DATA, limit=10) == b"content"
    assert proxy.seen == []
    await writer.close()


async def test_only_reading_repacks(drivers: Drivers, stored, payload: Payload) -> None:
    """Who only looks leaves an upload of somebody else as it is."""
    stored.begin(DATA, (1, payload(1000)))
    before = stored.uploads()
    driver = drivers()
    reader = await driver.open(DATA)
    assert reader.size == 1000
    await (await driver.writer(DATA, append=True)).close()
    await driver.stat_many([DATA])
    assert stored.uploads() == before
    assert stored.paths() == []
    assert len(await reader.read(0, 1000)) == 1000
    assert stored.uploads() != before
    assert (await driver.stat(DATA)).size == 1000


async def test_readers_at_the_same_time_repack_once(
    drivers: Drivers, proxy: S3Proxy, stored, payload: Payload, server: S3Server
) -> None:
    """The kernel asks for several pages at once; nobody takes the upload away from the others, nor begins a second.

    Swift refuses the first copy.
    """
    content = payload(2 * PART)
    driver = drivers(endpoint_url=proxy.url)
    await append(driver, content)
    reader = await driver.open(DATA)
    found: dict[int, bytes] = {}

    async def read(offset: int) -> None:
        found[offset] = bytes(await reader.read(offset, MEBIBYTE))

    async with trio.open_nursery() as nursery:
        for offset in range(0, len(content), MEBIBYTE):
            nursery.start_soon(read, offset)
    reader.close()
    assert b"".join(found[offset] for offset in sorted(found)) == content
    assert proxy.counts["CompleteMultipartUpload"] == 1
    assert proxy.counts["UploadPartCopy"] == (2 if isinstance(server, Swift) else 1)
    assert len(stored.uploads()) == 1


@pytest.mark.parametrize("is_open", [True, False], ids=["being written", "left"])
@pytest.mark.parametrize("request_of_reader", ["CompleteMultipartUpload", "CreateMultipartUpload", "UploadPartCopy"])
async def test_who_reads_while_it_is_finished(
    drivers: Drivers, proxy: S3Proxy, stored, payload: Payload, request_of_reader: str, is_open: bool
) -> None:
    """What the reader must do to the upload for that is over before it becomes a blob, and nothing is left of it."""
    content = payload(2 * PART)
    driver = drivers(endpoint_url=proxy.url, part_size=PART)
    writer = await driver.writer(DATA, append=False)
    await writer.write([content])
    await writer.flush()
    if not is_open:
        await writer.close()
    reader = await driver.open(DATA)
    found: list[bytes] = []
    finished = trio.Event()
    slow = proxy.fail("stall", request_of_reader)

    async def read() -> None:
        found.append(bytes(await reader.read(0, 1000)))

    async def finish() -> None:
        await writer.close()
        await published(driver)
        await driver.delete(posixpath.dirname(DATA))
        finished.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        while not slow.met:
            await trio.sleep(0.01)  # polling interval
        nursery.start_soon(finish)
        with trio.move_on_after(1):  # who does not wait for the reader needs less
            await finished.wait()
        proxy.heal()
    reader.close()
    assert found == [content[:1000]]
    assert stored.content(BLOB) == content
    assert stored.paths() == [BLOB]
    assert stored.uploads() == []


async def test_reading_what_another_process_is_writing(drivers: Drivers, stored, payload: Payload) -> None:
    """While it goes on the reader is refused, and the writer does not notice; when it stands still it can be read."""
    content = payload(PART + 1000)
    writer = await drivers(part_size=PART).writer(DATA, append=False)
    await writer.write([content[:PART]])
    await writer.flush()
    reader = await drivers().open(DATA)
    refused = trio.Event()

    async def read() -> None:
        with pytest.raises(ContentChanged, match="somebody else is writing it"):
            await reader.read(0, 1000)
        refused.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        size = PART
        while not refused.is_set():
            await writer.write([content[size : size + 10]])
            await writer.flush()
            size += 10
            await trio.sleep(0.3)  # the pace of a slow writer
    await writer.write([content[size:]])
    await writer.flush()
    await writer.close()
    assert await reader.read(0, 1000) == content[:1000]
    assert await drivers().get_content(DATA, limit=len(content)) == content


@pytest.mark.parametrize("request_of_reader", ["GetObject", "CompleteMultipartUpload"])
async def test_an_upload_that_others_repack_while_it_is_read(
    drivers: Drivers, proxy: S3Proxy, payload: Payload, request_of_reader: str
) -> None:
    """Whoever reads it has looked at it, and looks again when it is another object then: the bytes are the same."""
    content = payload(3000)
    await append(drivers(), content[:1000])
    if request_of_reader == "GetObject":
        # Repacked, it has an object that can be read.
        assert await drivers().get_content(DATA, limit=1000) == content[:1000]
    reader = await drivers(endpoint_url=proxy.url).open(DATA)
    held = proxy.fail("hold", request_of_reader)
    found: list[bytes] = []

    async def read() -> None:
        found.append(bytes(await reader.read(0, 1000)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        while not held.met:
            await trio.sleep(0.01)  # polling interval
        # Each repacks what the one before has left.
        for start in (1000, 2000):
            await append(drivers(), content[start : start + 1000])
        proxy.heal()
    reader.close()
    assert found == [content[:1000]]
    assert await drivers().get_content(DATA, limit=3000) == content


async def test_an_upload_that_others_repack_all_the_time(drivers: Drivers, proxy: S3Proxy, payload: Payload) -> None:
    """Whoever reads it gives up in the end, and says why."""
    content = payload(2000)
    await append(drivers(), content[:1000])
    assert await drivers().get_content(DATA, limit=1000) == content[:1000]
    reader = await drivers(endpoint_url=proxy.url).open(DATA)
    proxy.fail("refuse", "GetObject", times=100, code="PreconditionFailed", status=412)
    with pytest.raises(ContentChanged):
        await reader.read(0, 1000)
    assert 1 < proxy.counts["GetObject"] < 10
    reader.close()


@pytest.mark.parametrize(
    ("flushed", "more", "in_flight"),
    [(1000, 10, 4), (PART, 10, 4), (PART + 1000, 3 * PART, 4), (2 * PART + 7, 3 * PART, 1)],
)
async def test_a_writer_goes_on_after_a_reader_elsewhere(
    drivers: Drivers, stored, payload: Payload, flushed: int, more: int, in_flight: int
) -> None:
    """The reader has repacked the upload, as it stood still. Its version is unknown then: it is read to be finished."""
    content = payload(flushed + 2 * more)
    writer = await drivers(part_size=PART, parts_in_flight=in_flight).writer(DATA, append=False)
    await writer.write([content[:flushed]])
    await writer.flush()
    before = stored.uploads()
    assert await drivers().get_content(DATA, limit=len(content)) == content[:flushed]
    assert stored.uploads() != before
    await writer.write([content[flushed : flushed + more]])
    await writer.flush()
    await writer.write([content[flushed + more :]])
    await writer.flush()
    assert writer.size == len(content)
    async with await drivers().seal(DATA) as sealed:
        assert sealed.version != writer.version()
        assert sealed.size == len(content)
        await sealed.publish(BLOB)
    await writer.close()
    assert stored.content(BLOB) == content


async def test_a_writer_reads_what_a_reader_elsewhere_has_repacked(drivers: Drivers, stored, payload: Payload) -> None:
    """It goes on with what the other has made of it, and does not make another upload beside that."""
    content = payload(PART + 1000)
    driver = drivers(part_size=PART)
    writer = await driver.writer(DATA, append=False)
    await writer.write([content[:PART]])
    await writer.flush()
    assert await drivers().get_content(DATA, limit=PART) == content[:PART]
    reader = await driver.open(DATA)
    assert await reader.read(0, PART) == content[:PART]
    assert len(stored.uploads()) == 1
    await writer.write([content[PART:]])
    await writer.flush()
    assert await drivers().get_content(DATA, limit=len(content)) == content
    # That has made another object of it than the writer knows.
    assert await reader.read(0, 1000) == content[:1000]
    assert len(stored.uploads()) == 1
    await writer.close()
    assert (await drivers().stat(DATA)).size == len(content)
    await published(driver)
    assert stored.content(BLOB) == content


async def test_a_writer_does_not_go_on_with_what_it_has_not_stored(drivers: Drivers, stored, payload: Payload) -> None:
    """Another upload of the same size in its place is somebody else's."""
    writer = await drivers().writer(DATA, append=False)
    await writer.write([payload(1000)])
    await writer.flush()
    other = payload(1000)
    for _, upload_id in stored.uploads():
        stored.client.abort_multipart_upload(Bucket="registry", Key=stored.key(DATA), UploadId=upload_id)
    stored.put(DATA, other)
    stored.begin(DATA, (1, other))
    await writer.write([b"more"])
    with pytest.raises(ContentChanged):
        await writer.flush()
    await writer.close()
    assert await drivers().get_content(DATA, limit=1000) == other


# --- several writers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [1000, 6 * MEBIBYTE])
async def test_two_processes_do_not_mix_their_bytes(drivers: Drivers, stored, payload: Payload, first: int) -> None:
    """The one that comes later goes on; the other is told so before it has replaced anything."""
    content = payload(first)
    writer = await drivers().writer(DATA, append=False)
    await writer.write([content])
    await writer.flush()
    await append(drivers(), b"theirs")
    with pytest.raises(ContentChanged):
        await writer.write([b"ours"])
        await writer.flush()
    with pytest.raises(ContentChanged):
        await writer.flush()
    await writer.close()
    await published(drivers())
    assert stored.content(BLOB) == content + b"theirs"


@pytest.mark.parametrize("begun", [0, PART])
@pytest.mark.parametrize("theirs", [1000, 3 * PART])
async def test_parts_do_not_replace_what_another_process_has_flushed(
    drivers: Drivers, stored, payload: Payload, begun: int, theirs: int
) -> None:
    """Nor are any stored behind it: also those that are stored while more is written are stored on that condition."""
    content = payload(begun + theirs)
    writer = await drivers(part_size=PART).writer(DATA, append=False)
    await writer.write([content[:begun]])
    await writer.flush()
    await append(drivers(part_size=PART), content[begun:])
    with pytest.raises(ContentChanged):
        for _ in range(8):
            await writer.write([payload(PART)])
        await writer.flush()
    await writer.close()
    assert (await drivers().stat(DATA)).size == len(content)
    await published(drivers())
    assert stored.content(BLOB) == content


async def test_a_part_that_comes_before_it_is_gone_on_with(drivers: Drivers, stored, payload: Payload) -> None:
    """A store can take the last part of one who was killed when somebody has just opened the upload: he is told."""
    content = payload(3 * PART)
    await append(drivers(part_size=PART), content[:PART])
    driver = drivers(part_size=PART)
    writer = await driver.writer(DATA, append=True)
    ((_, upload_id),) = stored.uploads()
    stored.store_part(DATA, upload_id, 2, content[PART : 2 * PART])
    with pytest.raises(ContentChanged):
        await writer.write([content[PART:]])
    await writer.close()
    assert (await driver.stat(DATA)).size == 2 * PART
    await append(driver, content[2 * PART :])
    await published(drivers())
    assert stored.content(BLOB) == content


@pytest.mark.parametrize("size", [1000, PART])
async def test_an_upload_that_is_opened_while_another_process_finishes_it(
    drivers: Drivers, proxied: S3Driver, proxy: S3Proxy, stored, payload: Payload, size: int
) -> None:
    """What is written then would be of an upload that nobody sees, so it is not called stored; a purge takes it."""
    content = payload(size)
    upload = await (await Registry.open(proxied, create=True)).repository("a").layers.upload()
    await upload.write(content)
    await upload.close_writer()
    other = await (await Registry.open(drivers())).repository("a").layers.resume(upload.uuid)
    link = proxy.fail("hold", "PutObject", suffix="/link")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(upload.finish, Digest.of(content))
        while not link.met:
            await trio.sleep(0.01)  # polling interval
        await other.write(b"more")
        await other.store()
        proxy.heal()
    with pytest.raises(LayerUploadUnknown):
        await other.flush()
    with pytest.raises(LayerUploadUnknown):
        await other.write(b"and more")
    await other.close()
    registry = await Registry.open(drivers())
    assert [each.uuid for each in await registry.repository("a").layers.upload_names()] == []
    assert [each.upload async for each in purge_uploads(registry, older_than=timedelta(0))] == [upload.uuid]
    assert [path for path in stored.paths() if "/_uploads/" in path] == []
    assert stored.uploads() == []


async def test_an_upload_that_the_store_does_not_find_for_a_moment(
    drivers: Drivers, proxied: S3Driver, proxy: S3Proxy, payload: Payload
) -> None:
    """Whoever writes it is told so, and nothing that was ever stored of it is taken away."""
    content = payload(1000)
    upload = await (await Registry.open(drivers(), create=True)).repository("a").layers.upload()
    await upload.write(content)
    await upload.close()
    other = await (await Registry.open(proxied)).repository("a").layers.resume(upload.uuid)
    await other.write(b"more")
    await other.store()
    proxy.fail("refuse", "HeadObject", suffix="/startedat", status=404, code="NoSuchKey")
    with pytest.raises(LayerUploadUnknown):
        await other.flush()
    await other.close()
    again = await (await Registry.open(drivers())).repository("a").layers.resume(upload.uuid)
    assert (await again.read(0, again.size)).startswith(content)
    await again.close()


async def test_the_version_is_that_of_the_last_writer(drivers: Drivers, payload: Payload) -> None:
    """Also in another process; as long as nobody has written anything else."""
    content = payload(6 * MEBIBYTE)
    writer = await drivers(part_size=PART).writer(DATA, append=False)
    await writer.write([content])
    await writer.flush()
    version = writer.version()
    await writer.close()
    other = await drivers().writer(DATA, append=True)
    assert other.version() == version
    await other.close()
    for _ in range(2):  # the second time it is an object
        async with await drivers().seal(DATA) as sealed:
            assert sealed.version == version
    await append(drivers(), b"x")
    async with await drivers().seal(DATA) as sealed:
        assert sealed.version != version


async def test_the_version_of_other_bytes_is_another(drivers: Drivers, stored, payload: Payload) -> None:
    """Somebody has replaced a part by one of the same size. Where both are kept (SeaweedFS) either may count."""
    content = payload(2 * PART)
    writer = await drivers(part_size=PART).writer(DATA, append=False)
    await writer.write([content])
    await writer.flush()
    version = writer.version()
    await writer.close()
    ((_, upload_id),) = stored.uploads()
    stored.client.upload_part(
        Bucket="registry", Key=stored.key(DATA), UploadId=upload_id, PartNumber=1, Body=payload(PART)
    )
    async with await drivers().seal(DATA) as sealed:
        found = await sealed.read(0, sealed.size)
        assert found[PART:] == content[PART:]
        assert (sealed.version == version) == (found == content)


@pytest.mark.parametrize("threshold", [PART, None])
async def test_a_sealed_upload_that_somebody_replaces(
    drivers: Drivers, stored, payload: Payload, threshold: int | None
) -> None:
    """Nothing is published, and nothing of it is read as if it were what was sealed."""
    content = payload(PART + 1)
    stored.put(DATA, content)
    async with await drivers(multipart_copy_threshold=threshold).seal(DATA) as sealed:
        stored.put(DATA, content[::-1])
        with pytest.raises(ContentChanged):
            await sealed.read(0, 7)
        with pytest.raises(ContentChanged):
            await sealed.publish(BLOB)
    assert stored.paths() == [DATA]
    assert stored.uploads() == []


# --- speed and memory ------------------------------------------------------------------------------------------------


async def test_parts_are_stored_while_more_is_written(drivers: Drivers, proxy: S3Proxy, payload: Payload) -> None:
    """Several at a time, no more than may be; then the writer has to wait."""
    proxy.fail("stall", "UploadPart", times=100)
    driver = drivers(endpoint_url=proxy.url, part_size=PART, parts_in_flight=3)
    writer = await driver.writer(DATA, append=False)
    content = payload(8 * PART)

    async def write() -> None:
        for start in range(0, len(content), PART):
            await writer.write([content[start : start + PART]])

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(write)
            while proxy.counts["UploadPart"] < 3:
                await trio.sleep(0.01)  # polling interval
            # Three are on their way, the fourth is full, and nothing more is taken.
            await trio.sleep(0.3)  # for something not to happen
            assert proxy.counts["UploadPart"] == 3
            assert writer.size <= 4 * PART
            proxy.heal()
        await writer.flush()
    assert writer.size == (await driver.stat(DATA)).size == len(content)
    await writer.close()
    async with await driver.seal(DATA) as sealed:
        assert await sealed.read(0, len(content)) == content


async def test_closing_forgets_what_is_on_its_way(drivers: Drivers, proxy: S3Proxy, payload: Payload) -> None:
    """It does not wait for a store that does not answer."""
    proxy.fail("stall", "UploadPart", times=100)
    driver = drivers(endpoint_url=proxy.url, part_size=PART)
    writer = await driver.writer(DATA, append=False)
    await writer.write([payload(2 * PART)])
    with trio.fail_after(10):
        await writer.close()
        await driver.close()


@pytest.mark.parametrize("meanwhile", ["nothing", "repacked", "sealed"])
async def test_repacking_that_is_given_up_is_gone_on_with(
    drivers: Drivers, proxy: S3Proxy, stored, payload: Payload, meanwhile: str
) -> None:
    """So that what takes a store longer than an operation may take is done some time: nothing is copied twice. Unless
    somebody else has gone on with it, or tried to finish it, and dropped what was copied."""
    content = payload(4 * PART)
    stored.put(DATA, content)
    driver = drivers(endpoint_url=proxy.url, multipart_copy_threshold=PART)
    await give_up_copying(lambda: append(driver, b"given up"), proxy)
    if meanwhile == "repacked":
        await append(drivers(), b"theirs, ")
        content += b"theirs, "
    elif meanwhile == "sealed":
        await (await drivers().seal(DATA)).release()
    await append(driver, b"more")
    assert meanwhile != "nothing" or proxy.counts["UploadPartCopy"] == 2
    await published(driver)
    assert stored.content(BLOB) == content + b"more"
    assert stored.uploads() == []


@pytest.mark.parametrize("threshold", [PART, None])
async def test_copying_in_parts(drivers: Drivers, proxy: S3Proxy, stored, payload: Payload, threshold: int) -> None:
    """Above the threshold, side by side; no byte comes through this machine."""
    content = payload(3 * PART + 1)
    stored.put(DATA, content)
    driver = drivers(endpoint_url=proxy.url, multipart_copy_threshold=threshold)
    await published(driver)
    assert stored.content(BLOB) == content
    assert proxy.counts["UploadPartCopy"] == (3 if threshold else 0)
    assert proxy.bytes_through < 100_000
    # When it is known how the store compares the original is looked at twice: to find it, and when it is copied.
    stored.put(DATA, content)
    proxy.forget()
    await published(driver)
    assert proxy.counts["HeadObject"] == (2 if threshold else 1)


async def give_up_copying(attempt: Callable[[], Awaitable[None]], proxy: S3Proxy) -> None:
    """Attempts something until two parts are copied, and the store says nothing more."""
    proxy.fail("stall", "UploadPartCopy", times=1000, after=2)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(attempt)
        while proxy.counts["UploadPartCopy"] < 4:
            await trio.sleep(0.01)  # polling interval
        await trio.sleep(0.5)  # for the answers to come
        nursery.cancel_scope.cancel()
    proxy.heal()
    proxy.forget()


async def test_a_copy_that_is_given_up_is_gone_on_with(
    drivers: Drivers, proxy: S3Proxy, stored, payload: Payload
) -> None:
    """So that what takes a store longer than an operation may take is finished some time: nothing is copied twice."""
    content = payload(4 * PART)
    stored.put(DATA, content)
    driver = drivers(endpoint_url=proxy.url, multipart_copy_threshold=PART)
    await give_up_copying(lambda: published(driver), proxy)
    assert [path for path, _ in stored.uploads()] == [BLOB]
    await published(driver)
    assert proxy.counts["UploadPartCopy"] == 2
    assert stored.content(BLOB) == content
    assert stored.uploads() == []


async def test_a_copy_that_is_given_up_for_good(drivers: Drivers, proxy: S3Proxy, stored, payload: Payload) -> None:
    """Nothing is left of it in the store when the driver is closed, nor when there is something else to be copied."""
    driver = drivers(endpoint_url=proxy.url, multipart_copy_threshold=PART)
    stored.put(DATA, payload(4 * PART))
    await give_up_copying(lambda: published(driver), proxy)
    content = payload(4 * PART)
    stored.put(DATA, content)
    await published(driver)
    assert stored.content(BLOB) == content
    assert stored.uploads() == []
    await give_up_copying(lambda: published(driver), proxy)
    await driver.close()
    assert stored.uploads() == []
