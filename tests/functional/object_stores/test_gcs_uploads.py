"""Uploads on Google Cloud Storage: what is stored of ours, and what becomes of those that a registry has begun."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from datetime import timedelta

import pytest
import trio

from layerfs.digest import Digest
from layerfs.errors import AccessDenied, BackendFailure, ContentChanged, UnsupportedByDriver
from layerfs.registry import Registry
from layerfs.registry.maintenance.purge import purge_uploads

UUID = "11111111-2222-4333-8444-555555555555"
UPLOAD = f"/docker/registry/v2/repositories/a/_uploads/{UUID}"
DATA = f"{UPLOAD}/data"

Payload = Callable[[int], bytes]


async def test_a_registrys_upload_is_shown_and_left_alone(gcs) -> None:
    """Its size is what the registry has received: what its session has, and the rest in the object."""
    gcs.server.put(f"{gcs.prefix}{UPLOAD}/startedat", b"2026-11-23T00:06:39Z", "application/octet-stream")
    about = {"Session-URI": "https://storage.example/secret-upload-session", "Offset": "524288"}
    gcs.server.put(gcs.prefix + DATA, b"rest", "application/x-docker-upload-session", about)
    driver = gcs.driver()
    uploads = (await Registry.open(driver, create=True)).repository("a").layers
    (info,) = await uploads.uploads()
    assert (info.uuid, info.size) == (UUID, 524_292)
    before = gcs.server.about(gcs.prefix + DATA)
    for ask in (
        lambda: driver.writer(DATA, append=True),
        lambda: driver.seal(DATA),
        lambda: driver.get_content(DATA, limit=10),
    ):
        with pytest.raises(UnsupportedByDriver, match=r"a registry has begun it.* finish it there") as caught:
            await ask()
        assert "secret" not in str(caught.value)
    reader = await driver.open(DATA)
    with pytest.raises(UnsupportedByDriver):
        await reader.read(0, 4)
    assert gcs.server.about(gcs.prefix + DATA) == before
    upload = await uploads.resume(UUID)
    await upload.cancel()
    assert gcs.paths() == []


async def test_no_registry_takes_our_upload_for_its_own(gcs) -> None:
    """It resumes what is of its own type, or plain bytes, of which it would forget all beyond the first 16 MiB."""
    driver = gcs.driver()
    layers = (await Registry.open(driver, create=True)).repository("a").layers
    upload = await layers.upload()
    (data,) = [path for path in gcs.paths() if path.endswith("/data")]
    for content in (b"", b"one", b"two"):
        await upload.write(content)
        await upload.flush()
        assert gcs.server.about(gcs.prefix + data)["contentType"] == "application/x-layerfs-upload"
    await upload.finish(Digest.parse(f"sha256:{hashlib.sha256(b'onetwo').hexdigest()}"))
    (blob,) = [path for path in gcs.paths() if path.endswith("/data")]
    assert "/blobs/" in blob
    assert gcs.server.about(gcs.prefix + blob)["contentType"] == "application/octet-stream"


async def test_what_a_registry_has_completed_is_gone_on_with(gcs, payload: Payload) -> None:
    """Then it is plain bytes: all of them, and more after them."""
    content = payload(200_000)
    gcs.server.put(gcs.prefix + DATA, content[:150_000], "application/octet-stream")
    writer = await gcs.driver().writer(DATA, append=True)
    assert writer.size == 150_000
    await writer.write([content[150_000:]])
    await writer.flush()
    await writer.close()
    assert gcs.content(DATA) == content


async def test_more_parts_than_can_be_composed_at_once(gcs, payload: Payload) -> None:
    """Some are composed while others are still on their way; none is left."""
    content = payload(100 * 4096 + 17)
    driver = gcs.driver(part_size=4096)
    writer = await driver.writer(DATA, append=False)
    await writer.write([content])
    await writer.flush()
    await writer.close()
    assert gcs.content(DATA) == content
    assert gcs.paths() == [DATA]
    assert 4 <= gcs.relay.counts["compose"] <= 13
    assert gcs.relay.counts["upload"] == 102


async def test_parts_are_nobodys_business(gcs, payload: Payload) -> None:
    """While an upload grows, and after a crash, they are neither listed nor files; they go with the upload."""
    driver = gcs.driver(part_size=4096)
    writer = await driver.writer(DATA, append=False)
    gcs.relay.fail("refuse", "compose", status=403, code="forbidden", times=100)
    with pytest.raises(AccessDenied, match="403 forbidden"):
        await writer.write([payload(60_000)])
        await writer.flush()
    await writer.close()
    left = [path for path in gcs.paths() if path != DATA]
    assert left
    assert all(re.fullmatch(rf"{DATA}\.\d{{20}}-[0-9a-f]{{32}}\.part", path) for path in left)
    other = gcs.driver()
    assert [entry.name for entry in await other.list(UPLOAD)] == ["data"]
    assert [info.path for info in await other.list_files(UPLOAD)] == [DATA]
    await other.put_content(f"{UPLOAD}/data.txt", b"a neighbour")
    await other.delete(DATA)
    assert gcs.paths() == [f"{UPLOAD}/data.txt"]


async def test_a_part_that_comes_when_its_upload_is_gone(gcs, payload: Payload) -> None:
    """Something on the way has kept it. It is then nobody's, and so goes by a purge like other remains of uploads."""
    driver = gcs.driver()
    registry = await Registry.open(driver, create=True)
    upload = await registry.repository("a").layers.upload()
    await upload.write(b"begun")
    await upload.flush()
    late = gcs.relay.fail("late", "upload")
    await upload.write(payload(5000))
    await upload.flush()
    await upload.cancel()
    assert gcs.paths() == []
    late.released.set()
    await trio.to_thread.run_sync(late.served.wait, 10)
    (left,) = gcs.paths()
    assert left.endswith(".part")
    assert await registry.repository("a").layers.uploads() == []
    (purged,) = [each.upload async for each in purge_uploads(registry, older_than=timedelta(0))]
    assert f"/_uploads/{purged}/" in left
    assert gcs.paths() == []


async def test_an_upload_that_is_removed_elsewhere_while_it_is_written(gcs, payload: Payload) -> None:
    """Its writer learns it with the next flush, and leaves nothing of it in the bucket."""
    writer = await gcs.driver(part_size=4096).writer(DATA, append=False)
    await writer.write([b"begun"])
    await writer.flush()
    await gcs.driver().delete(DATA)
    with pytest.raises(ContentChanged):
        await writer.write([payload(10_000)])
        await writer.flush()
    await writer.close()
    assert gcs.paths() == []


async def test_bytes_that_were_changed_once_on_the_way(gcs, payload: Payload) -> None:
    """What the store has made of them does not stay: it is sent again, over it."""
    content = payload(100_000)
    driver = gcs.driver()
    gcs.relay.fail("flip", "upload")
    await driver.put_content("/a", content)
    assert gcs.content("/a") == content
    writer = await driver.writer(DATA, append=False)
    for piece in (content[:50_000], content[50_000:]):
        gcs.relay.fail("flip", "upload")
        await writer.write([piece])
        await writer.flush()
    await writer.close()
    assert all(fault.times == 0 for fault in gcs.relay.faults)
    assert gcs.content(DATA) == content
    assert sorted(gcs.paths()) == ["/a", DATA]


async def test_bytes_that_were_changed_on_the_way(gcs, payload: Payload) -> None:
    """What the store has is compared with what it was sent, part by part and as a whole."""
    content = payload(100_000)
    driver = gcs.driver()
    gcs.relay.fail("flip", "upload", times=100)
    with pytest.raises(BackendFailure, match="other bytes than it was sent"):
        await driver.put_content("/a", content)
    writer = await driver.writer(DATA, append=False)
    with pytest.raises(BackendFailure, match="other bytes than it was sent"):
        await writer.write([content])
        await writer.flush()
    await writer.close()


async def test_credentials_that_are_not_there(gcs, monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    """Nothing is sent without, and the reason names where they were looked for."""
    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    secret = tmp_path / "credentials.json"
    secret.write_text('{"type": "service_account", "private_key": "secret"}')
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(secret))
    driver = gcs.driver(endpoint_url="https://127.0.0.1:1")
    with pytest.raises(AccessDenied, match="Google's library finds no credentials") as caught:
        await driver.stat("/a")
    assert "private_key" not in str(caught.value)


async def test_ten_processes_write_to_one_upload(gcs) -> None:
    """However they are interleaved, what is stored is what those wrote that were told that it is stored, in order."""
    drivers = [gcs.driver() for _ in range(10)]
    await (await gcs.driver().writer(DATA, append=False)).close()
    accepted: list[bytes] = []

    async def write(number: int) -> None:
        try:
            writer = await drivers[number].writer(DATA, append=True)
            size = writer.size
            await writer.write([bytes([65 + number]) * 10])
            await writer.flush()
        except ContentChanged:
            await writer.close()
        else:
            accepted.append(b"%06d" % size + bytes([65 + number]))

    async with trio.open_nursery() as nursery:
        for number in range(10):
            nursery.start_soon(write, number)
    assert accepted
    expected = b"".join(entry[6:] * 10 for entry in sorted(accepted))
    assert gcs.content(DATA) == expected
