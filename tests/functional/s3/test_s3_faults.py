"""A store that is slow, overloaded, unreachable or lies, by a proxy before a real one: no wrong byte, no lost one."""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
from harness.s3_proxy import S3Proxy

from layerfs.digest import Digest
from layerfs.driver.s3 import S3Driver
from layerfs.errors import (
    AccessDenied,
    BackendFailure,
    ContentChanged,
    DriverError,
    PathNotFound,
    ShortRead,
    UnknownSource,
)
from layerfs.registry import Registry

MEBIBYTE = 1 << 20
PART = 5 * MEBIBYTE
DATA = "/docker/registry/v2/repositories/a/_uploads/u/data"

Drivers = Callable[..., S3Driver]
Payload = Callable[[int], bytes]

FOREVER = 1000


@pytest.fixture
async def impatient(drivers: Drivers, proxy: S3Proxy) -> S3Driver:
    """A driver that gives up after a second and a half."""
    return drivers(endpoint_url=proxy.url, part_size=PART, read_timeout=0.5)


def digest_of(content: bytes) -> Digest:
    return Digest.parse(f"sha256:{hashlib.sha256(content).hexdigest()}")


async def push(driver: S3Driver, content: bytes) -> None:
    layers = (await Registry.open(driver, create=True)).repository("a").layers
    async with await layers.upload() as upload:
        await upload.write(content)
        await upload.finish(digest_of(content))


async def content_of(driver: S3Driver, digest: Digest) -> bytes:
    layers = (await Registry.open(driver)).repository("a").layers
    async with await layers.fetch(digest) as layer:
        return await layer.read()


#: All that a push asks for.
PUSHED = [
    "PutObject",
    "CreateMultipartUpload",
    "UploadPart",
    "ListParts",
    "CompleteMultipartUpload",
    "CopyObject",
    "DeleteObjects",
    "DeleteObject",
    "ListObjectsV2",
    "ListMultipartUploads",
    "HeadObject",
]


# --- what passes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "operation"),
    [
        *[("reset_after", operation) for operation in PUSHED],
        ("reset_before", "UploadPart"),
        ("reset_before", "CompleteMultipartUpload"),
        ("refuse", "UploadPart"),
        ("refuse", "CopyObject"),
    ],
)
async def test_a_push_in_which_one_request_fails(
    drivers: Drivers, proxy: S3Proxy, stored, payload: Payload, kind: str, operation: str
) -> None:
    """It succeeds, and leaves what it always leaves, whether the store had done what it was asked for or not."""
    content = payload(2000)
    fault = proxy.fail(kind, operation, times=1)
    await push(drivers(endpoint_url=proxy.url, part_size=PART), content)
    assert fault.met
    hexadecimal = digest_of(content).hex
    blob = f"/docker/registry/v2/blobs/sha256/{hexadecimal[:2]}/{hexadecimal}/data"
    assert stored.paths() == [blob, f"/docker/registry/v2/repositories/a/_layers/sha256/{hexadecimal}/link"]
    assert stored.content(blob) == content
    assert stored.uploads() == []


@pytest.mark.parametrize("operation", ["CompleteMultipartUpload", "CopyObject"])
async def test_an_error_in_a_successful_answer(
    drivers: Drivers, proxy: S3Proxy, stored, payload: Payload, operation: str
) -> None:
    """AWS answers 200 before it knows, and says in the body that it failed: that is tried again."""
    content = payload(1000)
    fault = proxy.fail("error_in_200", operation, code="InternalError")
    driver = drivers(endpoint_url=proxy.url)
    await push(driver, content)
    assert fault.met >= 2
    assert await content_of(driver, digest_of(content)) == content


@pytest.mark.parametrize(
    ("kind", "operation"),
    [
        ("refuse", "UploadPart"),
        ("refuse", "PutObject"),
        ("reset_before", "CopyObject"),
        ("error_in_200", "CompleteMultipartUpload"),
        ("error_in_200", "CopyObject"),
        ("page", "UploadPart"),
        ("page", "PutObject"),
        ("page", "CompleteMultipartUpload"),
        ("page", "CopyObject"),
    ],
)
async def test_a_request_that_fails_for_good(
    drivers: Drivers, proxy: S3Proxy, stored, payload: Payload, kind: str, operation: str
) -> None:
    """An error says so; nothing is published, and when the store is well again the same upload is finished."""
    content = payload(PART + 1)
    driver = drivers(endpoint_url=proxy.url, part_size=PART, read_timeout=1)
    layers = (await Registry.open(driver, create=True)).repository("a").layers
    upload = await layers.upload()
    await upload.write(content[:1000])
    await upload.flush()
    proxy.fail(kind, operation, times=FOREVER, suffix="" if operation != "PutObject" else "link")
    with pytest.raises(BackendFailure, match="registry"):
        await upload.write(content[1000:])
        await upload.finish(digest_of(content))
    with pytest.raises(Exception, match="unknown layer"):
        await layers.stat(digest_of(content))
    proxy.heal()
    resumed = await layers.resume(upload.uuid)
    assert resumed.size in {1000, len(content)}
    await resumed.write(content[resumed.size :])
    await resumed.finish(digest_of(content))
    assert await content_of(driver, digest_of(content)) == content


async def test_what_is_no_answer_of_a_store(proxied: S3Driver, proxy: S3Proxy, stored) -> None:
    """A page of a proxy that is down for maintenance tells nothing of what there is, and nothing was done."""
    writer = await proxied.writer(DATA, append=False)
    await writer.write([b"content"])
    await writer.flush()
    await writer.close()
    stored.put("/a", b"content")
    reader = await proxied.open("/a")
    for operation, call in {
        "HeadObject": lambda: proxied.stat("/a"),
        "GetObject": lambda: proxied.get_content("/a", limit=100),
        "ListObjectsV2": lambda: proxied.list("/"),
        "ListMultipartUploads": lambda: proxied.list(DATA.removesuffix("/u/data")),
        "ListParts": lambda: proxied.writer(DATA, append=True),
        "CreateMultipartUpload": lambda: proxied.writer("/b", append=False),
        "PutObject": lambda: proxied.put_content("/a", b"more"),
        "CopyObject": lambda: proxied.move("/a", "/b"),
        "DeleteObject": lambda: proxied.delete("/a"),
    }.items():
        fault = proxy.fail("page", operation, times=FOREVER)
        with pytest.raises(BackendFailure, match="registry"):
            await call()
        assert fault.met, operation
        proxy.heal()
    proxy.fail("page", "GetObject", times=FOREVER)
    with pytest.raises(DriverError):
        await reader.read(0, 7)
    proxy.heal()
    assert stored.content("/a") == b"content"
    assert (await proxied.stat(DATA)).size == 7


async def test_a_page_of_a_listing_may_be_empty_and_not_the_last(proxied: S3Driver, proxy: S3Proxy, stored) -> None:
    """S3 allows pages of fewer keys than were asked for, and with some stores that is none: the others come later."""
    stored.put("/a", b"content")
    stored.put("/a-b", b"content")
    stored.put("/c/d", b"content")

    async def after_an_empty_page(ask: Callable[[str], Awaitable[Any]], path: str) -> Any:
        proxy.heal()
        empty = proxy.fail("empty_page", "ListObjectsV2")
        answer = await ask(path)
        assert empty.met > 1
        return answer

    assert await after_an_empty_page(proxied.is_directory, "/c")
    assert not await after_an_empty_page(proxied.is_directory, "/b")
    assert (await after_an_empty_page(proxied.stat, "/c")).is_directory
    assert [entry.name for entry in await after_an_empty_page(proxied.list, "/c")] == ["d"]
    await after_an_empty_page(proxied.delete, "/a")
    await after_an_empty_page(proxied.delete, "/c")
    assert stored.paths() == ["/a-b"]


async def test_an_answer_without_content_is_no_page(proxied: S3Driver, proxy: S3Proxy, stored) -> None:
    """Whatever the server says that it is: moto calls everything HTML."""
    stored.put("/a", b"content")
    stored.begin(DATA, (1, b"content"))
    removed = proxy.fail("unnumbered", "DeleteObject")
    cancelled = proxy.fail("unnumbered", "AbortMultipartUpload")
    await proxied.delete("/a")
    await proxied.delete(DATA)
    assert removed.met
    assert cancelled.met
    assert stored.paths() == []
    assert stored.uploads() == []


@pytest.mark.parametrize("kind", ["truncate", "reset_after", "refuse"])
async def test_a_read_that_breaks_off_once(
    drivers: Drivers, proxy: S3Proxy, stored, payload: Payload, kind: str
) -> None:
    """All the bytes come at the second try."""
    content = payload(3 * MEBIBYTE)
    stored.put("/blob", content)
    driver = drivers(endpoint_url=proxy.url)
    reader = await driver.open("/blob")
    fault = proxy.fail(kind, "GetObject")
    assert await reader.read(0, len(content)) == content
    assert fault.met == 2
    proxy.fail(kind, "GetObject")
    assert await driver.get_content("/blob", limit=len(content)) == content


async def test_another_range_than_was_asked_for(drivers: Drivers, proxy: S3Proxy, stored, payload: Payload) -> None:
    """What a cache on the way has mixed up is not given out for what was wanted, though it has the right length."""
    stored.put("/blob", payload(1000))
    reader = await drivers(endpoint_url=proxy.url).open("/blob")
    proxy.fail("mix_up", "GetObject", times=FOREVER)
    with pytest.raises(BackendFailure, match=r"from 100 on, .* sent 'bytes 101-199/1000'"):
        await reader.read(100, 100)


async def test_a_read_that_always_breaks_off(drivers: Drivers, proxy: S3Proxy, stored, payload: Payload) -> None:
    """An error, and never the bytes that came."""
    stored.put("/blob", payload(MEBIBYTE))
    driver = drivers(endpoint_url=proxy.url)
    reader = await driver.open("/blob")
    proxy.fail("truncate", "GetObject", times=FOREVER)
    with pytest.raises(ShortRead):
        await reader.read(0, MEBIBYTE)
    with pytest.raises(ShortRead):
        await driver.get_content("/blob", limit=MEBIBYTE)


async def test_a_bit_that_flips_on_the_way_to_the_store(
    drivers: Drivers, proxy: S3Proxy, stored, payload: Payload
) -> None:
    """Without TLS what is sent is signed or has a checksum: the store refuses it, and nothing wrong is ever stored."""
    content = payload(PART)
    driver = drivers(endpoint_url=proxy.url, part_size=PART)
    writer = await driver.writer(DATA, append=False)
    proxy.fail("flip_request", "UploadPart", times=FOREVER)
    with pytest.raises(DriverError):
        await writer.write([content])
        await writer.flush()
    assert stored.parts(DATA) == []
    proxy.fail("flip_request", "PutObject", times=FOREVER)
    with pytest.raises(DriverError):
        await driver.put_content("/link", b"sha256:0123")
    assert stored.paths() == []
    await writer.close()


# --- what replaces what is read --------------------------------------------------------------------------------------


async def test_a_file_that_is_replaced_while_it_is_read(driver: S3Driver, stored) -> None:
    """Shorter, longer or gone is an error; of the same size it is read on."""
    stored.put("/blob", b"content")
    reader = await driver.open("/blob")
    stored.put("/blob", b"CONTENT")
    assert await reader.read(2, 2) == b"NT"
    stored.put("/blob", b"longer content")
    with pytest.raises(ContentChanged):
        await reader.read(0, 7)
    stored.put("/blob", b"short")
    with pytest.raises(ShortRead):
        await reader.read(0, 7)
    with pytest.raises(ShortRead):
        await reader.read(6, 1)
    await driver.delete("/blob")
    with pytest.raises(ShortRead):
        await reader.read(0, 7)


# --- a store that says nothing ---------------------------------------------------------------------------------------


async def test_a_silent_store_is_an_error_in_time(impatient: S3Driver, proxy: S3Proxy, stored) -> None:
    """Whatever is asked of it."""
    stored.put("/blob", b"content")
    reader = await impatient.open("/blob")
    proxy.fail("stall", "*", times=FOREVER)
    with trio.fail_after(8):
        async with trio.open_nursery() as nursery:
            for ask in (
                lambda: reader.read(0, 7),
                lambda: impatient.stat("/blob"),
                lambda: impatient.list("/"),
                lambda: impatient.put_content("/other", b""),
                lambda: impatient.writer(DATA, append=True),
                lambda: impatient.delete("/blob"),
            ):
                nursery.start_soon(_expect_silence, ask)


async def _expect_silence(ask: Callable[[], object]) -> None:
    with pytest.raises(DriverError, match="does not answer in time"):
        await ask()


async def test_one_silent_request_holds_nobody_up(proxied: S3Driver, proxy: S3Proxy, stored) -> None:
    """Others go on; and whoever waits can give up at once."""
    stored.put("/stuck", b"content")
    stored.put("/other", b"content")
    stuck = await proxied.open("/stuck")
    proxy.fail("stall", "GetObject", times=FOREVER, suffix="stuck")
    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(stuck.read, 0, 7)
        with trio.fail_after(5):
            while proxy.counts["GetObject"] < 20:
                await trio.sleep(0.01)  # polling interval
            for _ in range(5):
                assert await proxied.get_content("/other", limit=10) == b"content"
                assert (await proxied.stat("/stuck")).size == 7
            nursery.cancel_scope.cancel()
        started = trio.current_time()
    assert trio.current_time() - started < 1
    assert await proxied.get_content("/other", limit=10) == b"content"


# --- who may not, and where nobody is --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "code", "error", "words"),
    [
        (400, "ExpiredToken", AccessDenied, "the credentials have expired; renew them"),
        (403, "AccessDenied", AccessDenied, "403 AccessDenied"),
        (403, "RequestTimeTooSkewed", AccessDenied, "clock"),
        (301, "PermanentRedirect", UnknownSource, "301 PermanentRedirect: .*region"),
        (403, "QuotaExceeded", DriverError, "no space left in storage.*quota"),
        (503, "SlowDown", BackendFailure, r"503 SlowDown, tried \d+ times.*fewer requests"),
        (500, "InternalError", BackendFailure, "500 InternalError, tried 3 times"),
        (501, "NotImplemented", DriverError, "not supported"),
    ],
)
async def test_what_a_refusal_means(
    drivers: Drivers, proxy: S3Proxy, status: int, code: str, error: type[DriverError], words: str
) -> None:
    """The error says what it was, of which bucket where, and what can be done. What can pass is tried again."""
    proxy.fail("refuse", "PutObject", times=FOREVER, status=status, code=code)
    with pytest.raises(error, match=words) as caught:
        await drivers(endpoint_url=proxy.url, read_timeout=2).put_content("/a/link", b"")
    assert (proxy.counts["PutObject"] > 1) == ("tried" in words)
    assert f"bucket 'registry' at {proxy.url}" in str(caught.value)
    assert caught.value.path == "/a/link"


async def test_a_store_that_says_how_long_it_is_busy(proxied: S3Driver, proxy: S3Proxy) -> None:
    """It is not asked before, though it would be within a second otherwise."""
    await proxied.put_content("/a", b"content")
    proxy.fail("refuse", "GetObject", retry_after="2")
    started = time.monotonic()
    assert await proxied.get_content("/a", limit=10) == b"content"
    assert 2 <= time.monotonic() - started < 10


async def test_credentials_that_expire(proxied: S3Driver, proxy: S3Proxy) -> None:
    """While they are expired everything is refused, and with new ones it goes on."""
    await proxied.put_content("/a", b"content")
    proxy.fail("refuse", "*", times=FOREVER, status=400, code="ExpiredToken")
    with pytest.raises(AccessDenied, match="expired"):
        await proxied.get_content("/a", limit=10)
    with pytest.raises(AccessDenied, match="expired"):  # though a HEAD says only 400
        await proxied.stat("/a")
    assert proxy.counts["GetObject"] == 1
    assert proxy.counts["HeadObject"] <= 2  # with which the SDK asks for the region of the bucket
    proxy.heal()
    assert await proxied.get_content("/a", limit=10) == b"content"


@pytest.mark.parametrize("wrong", [{"access_key_id": "nobody"}, {"secret_access_key": "wrong-secret"}])
async def test_wrong_credentials(drivers: Drivers, wrong: dict[str, str]) -> None:
    """Access denied, and not a word of them."""
    driver = drivers(**wrong)
    for ask in (driver.stat("/a"), driver.list("/"), driver.put_content("/a", b"")):
        with pytest.raises(AccessDenied) as caught:
            await ask
        assert "wrong-secret" not in str(caught.value)


async def test_a_bucket_that_is_not_there(server) -> None:
    """It is no empty storage."""
    driver = S3Driver(dataclasses.replace(server.options(""), bucket="no-such-bucket"))
    for ask in (driver.stat("/"), driver.stat("/docker"), driver.list("/"), driver.get_content("/a", limit=1)):
        with pytest.raises(UnknownSource, match="no such bucket"):
            await ask
    await driver.close()


async def test_a_store_that_is_not_there(drivers: Drivers) -> None:
    """The error names it, and comes soon: a store that was never there will hardly be there in a moment."""
    driver = drivers(endpoint_url="http://127.0.0.1:9")
    with trio.fail_after(6), pytest.raises(BackendFailure, match=r"127\.0\.0\.1:9.*ECONNREFUSED"):
        await driver.stat("/a")


async def test_a_missing_file_is_no_failure(proxied: S3Driver, proxy: S3Proxy) -> None:
    """And not tried again."""
    with pytest.raises(PathNotFound):
        await proxied.get_content("/missing", limit=1)
    assert proxy.counts == {"GetObject": 1}
