"""Uploads on Azure and Google Cloud Storage: resumed elsewhere, fenced, sealed, and finished within the store."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import pytest
import trio

from layerfs.digest import Digest
from layerfs.errors import ContentChanged, PathNotFound
from layerfs.registry import Registry

MEBIBYTE = 1 << 20
DATA = "/docker/registry/v2/repositories/a/_uploads/11111111-2222-4333-8444-555555555555/data"

Payload = Callable[[int], bytes]

#: Blocks and parts that make a test of many of them out of a few bytes.
SMALL = {"azure": {"block_size": 64 << 10}, "gcs": {"part_size": 64 << 10}}

#: The request that begins an upload, by the name that the proxies have for it.
BEGINNING = {"azure": "create", "gcs": "upload"}


def small(place) -> dict[str, int]:
    return SMALL[place.driver().name]


def digest_of(content: bytes) -> Digest:
    return Digest.parse(f"sha256:{hashlib.sha256(content).hexdigest()}")


async def test_another_process_goes_on_where_the_first_was_killed(place, payload: Payload) -> None:
    """At least what was flushed is there, exactly as much as its size says, and no more is needed to go on."""
    content = payload(3 * MEBIBYTE)
    first = place.driver(**small(place))
    writer = await first.writer(DATA, append=False)
    await writer.write([content[:MEBIBYTE]])
    await writer.flush()
    await writer.write([content[MEBIBYTE : 2 * MEBIBYTE + 77]])
    # All that the process knows is lost, in the middle of what it does.
    await first.close()
    second = place.driver(**small(place))
    size = (await second.stat(DATA)).size
    assert MEBIBYTE <= size <= 2 * MEBIBYTE + 77
    writer = await second.writer(DATA, append=True)
    assert writer.size == size
    await writer.write([content[size:]])
    await writer.flush()
    await writer.close()
    assert place.content(DATA) == content
    await second.delete(DATA.removesuffix("/data"))
    assert place.paths() == []


async def test_an_upload_is_seen_by_others_as_far_as_it_was_flushed(place, payload: Payload) -> None:
    """Its size, and all the bytes of that."""
    content = payload(300_000)
    writer = await place.driver(**small(place)).writer(DATA, append=False)
    await writer.write([content])
    await writer.flush()
    other = place.driver()
    reader = await other.open(DATA)
    assert reader.size == len(content)
    await writer.write([b"more"])
    await writer.flush()
    # Growing takes nothing from those who have it open.
    assert await reader.read(0, len(content)) == content
    assert (await other.stat(DATA)).size == len(content) + 4
    await writer.close()


async def test_the_second_of_two_writers_wins_and_the_first_is_told(place) -> None:
    """Not a byte of the first is mixed into what the second has appended."""
    first, second = place.driver(), place.driver()
    one = await first.writer(DATA, append=True)
    await one.write([b"one"])
    await one.flush()
    two = await second.writer(DATA, append=True)
    assert two.size == 3
    await two.write([b"two"])
    await two.flush()
    await one.write([b"one again"])
    with pytest.raises(ContentChanged):
        await one.flush()
    with pytest.raises(ContentChanged):
        await one.write([b"and again"])
    assert one.size == 3
    await two.write([b"!"])
    await two.flush()
    assert place.content(DATA) == b"onetwo!"
    await one.close()
    await two.close()
    # What the first has stored and could not append may stay beside it, hidden; it goes with the upload.
    assert [entry.name for entry in await second.list(DATA.removesuffix("/data"))] == ["data"]
    await second.delete(DATA)
    assert place.paths() == []


async def test_one_who_creates_it_anew_takes_it_away(place) -> None:
    """A file that was emptied by another process is not appended to."""
    one = await place.driver().writer(DATA, append=True)
    await one.write([b"one"])
    await one.flush()
    two = await place.driver().writer(DATA, append=False)
    await one.write([b"more"])
    with pytest.raises(ContentChanged):
        await one.flush()
    assert place.content(DATA) == b""
    await one.close()
    await two.close()


async def test_two_who_begin_at_the_same_time(place) -> None:
    """Who is later, because the store had him wait, does not take away what the other has stored by then."""
    driver = place.driver()
    held = place.relay.fail("stall", BEGINNING[driver.name])
    refused = []

    async def begin() -> None:
        with pytest.raises(ContentChanged):
            await driver.writer(DATA, append=True)
        refused.append(True)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(begin)
        with trio.fail_after(10):
            while held.times:
                await trio.sleep(0.01)
        writer = await place.driver().writer(DATA, append=True)
        await writer.write([b"content"])
        await writer.flush()
        held.released.set()
    assert refused == [True]
    assert place.content(DATA) == b"content"
    await writer.close()


@pytest.mark.parametrize("is_there", [False, True])
async def test_a_beginning_that_the_store_carries_out_late(place, is_there: bool) -> None:
    """A request that was given up and made again can still arrive; what was written since stays."""
    driver = place.driver(read_timeout=2)
    if is_there:
        await (await place.driver().writer(DATA, append=True)).close()
    late = place.relay.fail("late", BEGINNING[driver.name])
    writer = await driver.writer(DATA, append=False)
    await writer.write([b"content"])
    await writer.flush()
    late.released.set()
    assert await trio.to_thread.run_sync(late.served.wait, 10)
    assert place.content(DATA) == b"content"
    await writer.write([b" and more"])
    await writer.flush()
    assert place.content(DATA) == b"content and more"
    await writer.close()


async def test_a_lost_answer_to_a_beginning_does_no_harm(place) -> None:
    """It has begun."""
    driver = place.driver()
    place.relay.fail("reset_after", BEGINNING[driver.name])
    writer = await driver.writer(DATA, append=False)
    await writer.write([b"content"])
    await writer.flush()
    assert place.content(DATA) == b"content"
    await writer.close()


async def test_what_was_removed_by_another_process_is_not_appended_to(place) -> None:
    """Nor does it come back."""
    one = await place.driver().writer(DATA, append=True)
    await one.write([b"one"])
    await one.flush()
    await place.driver().delete(DATA)
    await one.write([b"more"])
    with pytest.raises(ContentChanged):
        await one.flush()
    await one.close()
    assert DATA not in place.paths()


async def test_a_sealed_upload_that_grew_is_neither_read_nor_published(place) -> None:
    """What is verified is what is published, or nothing is."""
    driver, other = place.driver(), place.driver()
    writer = await driver.writer(DATA, append=True)
    await writer.write([b"content"])
    await writer.flush()
    await writer.close()
    async with await driver.seal(DATA) as sealed:
        assert await sealed.read(0, 7) == b"content"
        late = await other.writer(DATA, append=True)
        await late.write([b"!"])
        await late.flush()
        with pytest.raises(ContentChanged):
            await sealed.read(0, 7)
        with pytest.raises(ContentChanged):
            await sealed.publish("/blob")
    with pytest.raises(PathNotFound):
        await other.stat("/blob")


async def test_the_version_tells_whether_somebody_else_wrote(place) -> None:
    """So that what this process has hashed need not be read again, and only then."""
    driver, other = place.driver(), place.driver()
    writer = await driver.writer(DATA, append=True)
    await writer.write([b"content"])
    await writer.flush()
    version = writer.version()
    await writer.close()
    async with await driver.seal(DATA) as sealed:
        assert sealed.version == version
    late = await other.writer(DATA, append=True)
    await late.write([b"!"])
    await late.flush()
    async with await driver.seal(DATA) as sealed:
        assert sealed.version != version


async def test_finishing_moves_no_bytes(place, payload: Payload) -> None:
    """At most eight requests, whatever the size: the store copies."""
    content = payload(48 * MEBIBYTE)
    layers = (await Registry.open(place.driver(), create=True)).repository("a").layers
    upload = await layers.upload(file_name="layer.tar")
    place.forget()
    for start in range(0, len(content), MEBIBYTE):
        await upload.write(content[start : start + MEBIBYTE])
    await upload.close_writer()
    assert place.relay.bytes_through < len(content) * 1.01
    assert len(place.relay.seen) <= 20, place.relay.counts
    place.forget()
    await upload.finish(digest_of(content))
    assert len(place.relay.seen) <= 8, place.relay.counts
    assert place.relay.bytes_through < 50_000
    hexadecimal = digest_of(content).hex
    blob = f"/docker/registry/v2/blobs/sha256/{hexadecimal[:2]}/{hexadecimal}/data"
    link = f"/docker/registry/v2/repositories/a/_layers/sha256/{hexadecimal}/link"
    assert place.paths() == [blob, link]
    assert place.content(blob) == content


async def test_finishing_from_another_process(place, payload: Payload) -> None:
    """By the rules of the registry, whoever wrote it: everything is read once, and then copied."""
    content = payload(MEBIBYTE)
    first = (await Registry.open(place.driver(**small(place)), create=True)).repository("a").layers
    async with await first.upload() as upload:
        await upload.write(content)
    second = (await Registry.open(place.driver())).repository("a").layers
    again = await second.resume(upload.uuid)
    assert again.size == len(content)
    await again.finish(digest_of(content))
    assert (await second.stat(digest_of(content))).blob.size == len(content)


async def test_two_processes_upload_to_one(place) -> None:
    """The one who comes second goes on; the other is told that somebody else has changed it (EBUSY on a mount)."""
    first = (await Registry.open(place.driver(), create=True)).repository("a").layers
    upload = await first.upload()
    await upload.write(b"one")
    await upload.flush()
    second = (await Registry.open(place.driver())).repository("a").layers
    again = await second.resume(upload.uuid)
    await again.write(b"two")
    await again.flush()
    await upload.write(b"one again")
    with pytest.raises(ContentChanged):
        await upload.flush()
    await again.finish(digest_of(b"onetwo"))
    assert (await second.stat(digest_of(b"onetwo"))).blob.size == 6


async def test_parts_are_stored_while_more_is_written(place, payload: Payload) -> None:
    """A writer waits for the store only when too much is on its way; what it was given by then is bounded."""
    content = payload(4 * MEBIBYTE)
    writer = await place.driver(**small(place)).writer(DATA, append=False)
    for start in range(0, len(content), 100_000):
        await writer.write([content[start : start + 100_000]])
    assert writer.size == len(content)
    sent = sum(seen.sent for seen in place.relay.seen)
    assert sent >= len(content) - 5 * (64 << 10) - 100_000
    await writer.flush()
    await writer.close()
    assert place.content(DATA) == content
    assert place.paths() == [DATA]


async def test_a_write_that_is_cancelled_loses_nothing(place, payload: Payload) -> None:
    """The next flush stores all that the size says, in order."""
    content = payload(2 * MEBIBYTE)
    writer = await place.driver(**small(place)).writer(DATA, append=False)
    await writer.write([content[:MEBIBYTE]])
    with trio.CancelScope() as scope:
        scope.cancel()
        await writer.write([content[MEBIBYTE:]])
    assert scope.cancelled_caught
    with trio.CancelScope() as scope:
        scope.cancel()
        await writer.flush()
    size = writer.size
    assert MEBIBYTE <= size <= len(content)
    await writer.flush()
    assert place.content(DATA) == content[:size]
    await writer.close()
