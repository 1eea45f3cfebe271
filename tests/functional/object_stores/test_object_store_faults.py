"""What goes wrong on the way to Azure and Google Cloud Storage: retried where it is safe, else told with its reason."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

import pytest
import trio
from harness.azurite import KEY, azurite
from harness.fixture import free_port
from harness.http_proxy import Answer
from harness.relay import Call

from layerfs.driver.azure import AzureDriver
from layerfs.driver.gcs import GcsDriver
from layerfs.errors import AccessDenied, BackendFailure, ContentTooLarge, DriverError, PathNotFound, UnknownSource

DATA = "/docker/registry/v2/repositories/a/_uploads/11111111-2222-4333-8444-555555555555/data"

Payload = Callable[[int], bytes]

#: The requests that store what is written, by the names that the proxies have for them.
STORING = {"azure": ["append"], "gcs": ["upload", "compose"]}

#: Seconds that a busy machine takes besides.
LATE = 4


async def test_a_lost_answer_does_no_harm(place, payload: Payload) -> None:
    """A request that was carried out, and whose answer never came, is neither repeated in the data nor an error."""
    content = payload(300_000)
    driver = place.driver()
    writer = await driver.writer(DATA, append=False)
    await writer.write([content[:100_000]])
    await writer.flush()
    for operation in STORING[driver.name]:
        place.relay.fail("reset_after", operation)
    await writer.write([content[100_000:]])
    await writer.flush()
    assert all(fault.times == 0 for fault in place.relay.faults)
    await writer.close()
    assert place.content(DATA) == content


async def test_what_is_no_answer_of_a_store(place) -> None:
    """A page of a proxy that is down for maintenance tells nothing of what there is, and nothing was done."""
    driver = place.driver()
    await driver.put_content("/a", b"content")
    reader = await driver.open("/a")
    writer = await driver.writer(DATA, append=False)

    async def write() -> None:
        await writer.write([b"content"])
        await writer.flush()

    azure = driver.name == "azure"
    for operation, call in [
        ("stat", lambda: driver.stat("/a")),
        ("read", lambda: driver.get_content("/a", limit=100)),
        ("read", lambda: reader.read(0, 7)),
        ("list", lambda: driver.list("/")),
        ("list", lambda: driver.list_files("/docker")),
        ("put" if azure else "upload", lambda: driver.put_content("/a", b"more")),
        ("create" if azure else "upload", lambda: driver.writer("/b", append=False)),
        ("append" if azure else "upload", write),
        ("copy" if azure else "rewrite", lambda: driver.move("/a", "/b")),
        ("delete", lambda: driver.delete("/a")),
    ]:
        fault = place.relay.fail("page", operation, times=100)
        with pytest.raises(BackendFailure, match="registry"):
            await call()
        assert fault.times < 100, operation
        place.relay.heal()
    await writer.close()
    assert place.content("/a") == b"content"
    assert place.content(DATA) == b""


async def test_a_lost_answer_to_a_copy_or_a_deletion_does_no_harm(place) -> None:
    """Both are simply done again."""
    driver = place.driver()
    await driver.put_content("/a", b"content")
    place.relay.fail("reset_after", {"azure": "copy", "gcs": "rewrite"}[driver.name])
    place.relay.fail("reset_after", "delete")
    await driver.move("/a", "/b")
    assert place.content("/b") == b"content"
    assert place.paths() == ["/b"]


async def test_a_store_that_is_busy_for_a_moment(place) -> None:
    """Is asked again."""
    driver = place.driver()
    await driver.put_content("/a", b"content")
    place.relay.fail("refuse", "read", status=503)
    place.relay.fail("reset_before", "stat")
    place.forget()
    assert await driver.get_content("/a", limit=10) == b"content"
    assert (await driver.stat("/a")).size == 7
    assert place.relay.counts == {"read": 2, "stat": 2}


async def test_a_store_that_says_how_long_it_is_busy(place) -> None:
    """It is not asked before, though it would be within a second otherwise. Azure's SDK would not repeat a 429."""
    driver = place.driver()
    await driver.put_content("/a", b"content")
    place.relay.fail("refuse", "read", status={"azure": 429, "gcs": 503}[driver.name], retry_after="2")
    started = time.monotonic()
    assert await driver.get_content("/a", limit=10) == b"content"
    assert 2 <= time.monotonic() - started < 10


async def test_a_store_that_stays_busy(place) -> None:
    """It is asked again for as long as there is time, and the error names the place."""
    driver = place.driver(read_timeout=2)
    place.relay.fail("refuse", "stat", status=503, times=100)
    started = time.monotonic()
    with pytest.raises(BackendFailure, match=r"'registry' at http://127\.0\.0\.1.* answered 503 .*fewer requests"):
        await driver.stat("/a")
    assert place.relay.counts["stat"] > 3
    assert 4 < time.monotonic() - started < 6 + LATE


async def test_a_store_that_stumbles_each_time(place) -> None:
    """As with an object that it has lost: that is not worth waiting for."""
    driver = place.driver()
    place.relay.fail("refuse", "stat", status=500, code="InternalError", times=100)
    with trio.fail_after(20), pytest.raises(BackendFailure, match="answered 500"):
        await driver.stat("/a")
    assert place.relay.counts["stat"] == 3


async def test_a_write_that_fails_is_told_and_what_is_there_stays(place) -> None:
    """The size is that of what is certainly stored, and another writer goes on from there."""
    driver = place.driver()
    writer = await driver.writer(DATA, append=False)
    await writer.write([b"stored"])
    await writer.flush()
    for operation in STORING[driver.name]:
        place.relay.fail("refuse", operation, status=403, code="Forbidden", times=100)
    await writer.write([b"lost"])
    with pytest.raises(AccessDenied):
        await writer.flush()
    with pytest.raises(AccessDenied):
        await writer.write([b"more"])
    assert writer.size == 6
    await writer.close()
    place.relay.heal()
    again = await driver.writer(DATA, append=True)
    assert again.size == 6
    await again.write([b"!"])
    await again.flush()
    await again.close()
    assert place.content(DATA) == b"stored!"


async def test_a_store_that_says_nothing(place) -> None:
    """It is given up, with its own reason, after three times as long as it has for an answer."""
    driver = place.driver(read_timeout=0.7)
    place.relay.fail("stall", "stat", times=100)
    started = time.monotonic()
    with pytest.raises(BackendFailure, match=r"'registry' at http.* does not answer in time"):
        await driver.stat("/a")
    assert 1.4 < time.monotonic() - started < 2.1 + LATE


async def test_what_waits_for_the_store_can_be_cancelled_at_once(place) -> None:
    """A server that says nothing holds nobody who wants to go; others are served meanwhile."""
    driver = place.driver()
    await driver.put_content("/a", b"content")
    place.relay.fail("stall", "read")
    started = time.monotonic()
    with trio.move_on_after(0.3) as scope:
        await driver.get_content("/a", limit=10)
    assert scope.cancelled_caught
    assert time.monotonic() - started < 0.3 + LATE
    assert await driver.get_content("/a", limit=10) == b"content"


async def test_nobody_listens(place) -> None:
    """The endpoint is named, and nothing secret; and soon: a store that was never there will hardly come."""
    nowhere = f"http://127.0.0.1:{free_port()}"
    driver = place.driver(endpoint_url=nowhere)
    with (
        trio.fail_after(20),
        pytest.raises(BackendFailure, match=f"at {nowhere} cannot be reached.*ECONNREFUSED") as caught,
    ):
        await driver.stat("/a")
    assert KEY not in str(caught.value)


async def test_a_wrong_key(azure) -> None:
    """The reason says so, and not the key."""
    wrong = "d3Jvbmcga2V5IHRoYXQgbm9ib2R5IG1heSBzZWU="
    driver = azure.driver(account_key=wrong)
    with pytest.raises(AccessDenied, match=r"container 'registry' at http.* 403 Auth\w+: the key") as caught:
        await driver.stat("/a")
    assert wrong not in str(caught.value)
    assert azure.relay.counts["stat"] == 1


async def test_what_is_no_key_at_all(azure) -> None:
    """Nor is it repeated."""
    with pytest.raises(AccessDenied) as caught:
        await azure.driver(account_key="no-key!").stat("/a")
    assert "no-key" not in str(caught.value)


@pytest.mark.parametrize("text", ["nonsense", "AccountName=a;AccountKey=secret;", "=;;="])
async def test_a_malformed_connection_string(azure, text: str) -> None:
    """It is not repeated either."""
    driver = azure.driver(connection_string=text)
    with pytest.raises(DriverError) as caught:
        await driver.stat("/a")
    assert "secret" not in str(caught.value)
    assert text not in str(caught.value)


@pytest.mark.parametrize("around", ["{}\n", " {} ", "{}\r\n"])
async def test_a_connection_string_from_a_file(azure, around: str) -> None:
    """Blanks and ends of lines around it do not count."""
    text = around.format(azurite().connection_string())
    await azure.driver(connection_string=text).put_content("/a", b"content")
    assert azure.content("/a") == b"content"


async def test_a_token_that_is_refused(azure) -> None:
    """Nothing of it is in the reason."""
    token = "sv=2022-11-02&ss=b&srt=co&sp=rl&se=2020-01-01T00:00:00Z&sig=c2VjcmV0c2VjcmV0"  # noqa: S105 - it has expired
    with pytest.raises(AccessDenied) as caught:
        await azure.driver(account_key=None, sas_token=token).stat("/a")
    assert "c2VjcmV0" not in str(caught.value)


async def test_no_such_container(azure) -> None:
    """Whatever is asked of it."""
    options = dataclasses.replace(azurite().options("prefix"), container="missing")
    driver = AzureDriver(options)
    azure.made.append(driver)
    for ask in (
        driver.stat("/"),
        driver.list("/a"),
        driver.get_content("/a", limit=1),
        driver.put_content("/a", b""),
        driver.writer("/a", append=True),
    ):
        with pytest.raises(UnknownSource, match=r"'missing'.* no such container"):
            await ask


async def test_no_such_bucket(gcs) -> None:
    """It is found out when it is listed."""
    driver = GcsDriver(dataclasses.replace(gcs.server.options("prefix"), bucket="missing"))
    gcs.made.append(driver)
    for ask in (driver.stat("/"), driver.list("/a"), driver.stat("/a"), driver.get_content("/a", limit=1)):
        with pytest.raises(UnknownSource, match=r"'missing'.* no such bucket"):
            await ask


async def test_a_bucket_that_is_removed_while_it_is_used(gcs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Google says of what was in it the same as of what never was: so whoever has not heard of it lately looks."""
    gcs.server.request("POST", "/storage/v1/b", b'{"name": "removed"}')
    driver = GcsDriver(dataclasses.replace(gcs.server.options("prefix"), bucket="removed"))
    gcs.made.append(driver)
    await driver.put_content("/a", b"")
    await driver.delete("/a")
    monkeypatch.setattr("layerfs.driver.gcs_bucket._THERE_FOR", 0.0)
    with pytest.raises(PathNotFound):
        await driver.get_content("/a", limit=1)
    gcs.server.request("DELETE", "/storage/v1/b/removed")
    with pytest.raises(UnknownSource, match=r"'removed'.* no such bucket"):
        await driver.get_content("/a", limit=1)


async def test_google_asks_for_patience(gcs) -> None:
    """An object may be changed about once in a second; who does it more often waits."""
    driver = gcs.driver()
    writer = await driver.writer(DATA, append=False)
    await writer.write([b"one"])
    await writer.flush()
    gcs.relay.fail("refuse", "compose", status=429, code="rateLimitExceeded", times=2)
    await writer.write([b"two"])
    await writer.flush()
    await writer.close()
    assert gcs.content(DATA) == b"onetwo"


async def test_an_append_blob_that_is_full(azure) -> None:
    """It is said what to do about it, and what is there can be finished."""
    driver = azure.driver()
    writer = await driver.writer(DATA, append=False)
    await writer.write([b"content"])
    await writer.flush()
    azure.relay.fail("refuse", "append", status=409, code="BlockCountExceedsLimit")
    await writer.write([b"more"])
    with pytest.raises(ContentTooLarge, match="50,000 blocks"):
        await writer.flush()
    await writer.close()
    await driver.move(DATA, "/blob")
    assert azure.content("/blob") == b"content"


async def test_a_blob_of_another_kind_is_in_the_way(azure) -> None:
    """Azure replaces blobs by others of their kind only; the one in the way is deleted first."""
    driver = azure.driver()
    await driver.put_content("/blob", b"damaged")
    await driver.put_content("/upload", b"content")
    azure.relay.fail("refuse", "copy", status=409, code="InvalidBlobType")
    async with await driver.seal("/upload") as sealed:
        await sealed.publish("/blob")
    assert azure.content("/blob") == b"content"
    azure.relay.fail("refuse", "put", status=409, code="InvalidBlobType")
    await driver.put_content("/blob", b"again")
    assert azure.content("/blob") == b"again"
    assert azure.relay.counts["delete"] == 2


@pytest.mark.parametrize("operation", ["copy", "put"])
async def test_what_was_in_the_way_is_deleted_late(azure, operation: str) -> None:
    """A deletion that the store carries out after it was made again takes nothing away that was stored since."""
    driver = azure.driver()
    await driver.put_content("/blob", b"damaged")
    await driver.put_content("/upload", b"content")
    azure.relay.fail("refuse", operation, status=409, code="InvalidBlobType")
    late = azure.relay.fail("late", "delete")
    if operation == "copy":
        async with await driver.seal("/upload") as sealed:
            await sealed.publish("/blob")
    else:
        await driver.put_content("/blob", b"content")
    assert azure.relay.counts["delete"] == 2
    late.released.set()
    assert await trio.to_thread.run_sync(late.served.wait, 10)
    assert azure.content("/blob") == b"content"


async def test_an_empty_file_is_deleted_late(azure) -> None:
    """What a tool has put as an upload's empty file makes way for an append blob, which stays then."""
    azure.client.upload_blob(azure.prefix + DATA, b"")
    driver = azure.driver()
    late = azure.relay.fail("late", "delete")
    writer = await driver.writer(DATA, append=True)
    await writer.write([b"content"])
    await writer.flush()
    late.released.set()
    assert await trio.to_thread.run_sync(late.served.wait, 10)
    assert azure.content(DATA) == b"content"
    await writer.close()


@pytest.mark.parametrize("store", ["azure", "gcs"])
async def test_another_range_than_was_asked_for(
    azure, gcs, store: str, payload: Payload, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a cache on the way has mixed up is not given out for what was wanted, though it has the right length."""
    server = {"azure": azure, "gcs": gcs}[store]
    content, serve = payload(1000), server.relay.serve
    driver = server.driver()
    await driver.put_content("/blob", content)
    reader = await driver.open("/blob")

    def serve_another(call: Call) -> Answer:
        status, headers, body = serve(call)
        if status != 206:
            return status, headers, body
        return status, headers | {"content-range": "bytes 200-299/1000"}, content[200:300]

    monkeypatch.setattr(server.relay, "serve", serve_another)
    with pytest.raises(BackendFailure, match=r"asked for .*100.* sent 'bytes 200-299/1000'"):
        await reader.read(100, 100)


async def test_an_answer_that_tells_nothing_of_a_blob(azure, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is another's than the store's, and said to be."""
    driver = azure.driver()
    monkeypatch.setattr(azure.relay, "serve", lambda _: (200, {}, b""))
    with pytest.raises(BackendFailure, match="answered 200, but not as a store does"):
        await driver.stat("/blob")


async def test_a_copy_that_takes_a_while(azure) -> None:
    """It is waited for, and until then there is no blob."""
    driver, other = azure.driver(), azure.driver()
    await driver.put_content("/upload", b"content")
    azure.relay.pending["/blob"] = 4
    async with trio.open_nursery() as nursery:
        sealed = await driver.seal("/upload")
        nursery.start_soon(sealed.publish, "/blob")
        while not azure.relay.counts["copy"]:
            await trio.sleep(0.01)  # polling interval
        with pytest.raises(PathNotFound):
            await other.stat("/blob")
    assert (await other.stat("/blob")).size == 7
    assert azure.relay.pending["/blob"] == 0


async def test_a_copy_that_failed(azure) -> None:
    """Nothing counts as published."""
    driver = azure.driver()
    await driver.put_content("/upload", b"content")
    azure.relay.pending["/blob"] = 2
    azure.relay.copy_status = "failed"
    async with await driver.seal("/upload") as sealed:
        with pytest.raises(BackendFailure, match="has not copied it: failed"):
            await sealed.publish("/blob")
