"""Finishing an upload: by every algorithm, again and again, over what is there, and whose word is believed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import pytest
from harness.faulty_driver import Fault, FaultyDriver, InjectedFailure
from harness.handmade import put_data
from harness.invariants import blob_path, check_storage, link_path, upload_path
from harness.sha256 import hash_state
from harness.walk import files_in

from layerfs.digest import Digest
from layerfs.driver.interface import StorageDriver
from layerfs.errors import (
    LayerInvalidDigest,
    LayerInvalidLength,
    LayerUploadInvalid,
    LayerUploadUnknown,
    NotRegularFile,
)
from layerfs.registry import LayerService, Registry, hashing

NAME = "foo/bar"
UUID = "f81d4fae-7dec-4d0a-a765-00a0c91e6bf6"


def digest_of(content: bytes, algorithm: str = "sha256") -> Digest:
    return Digest.parse(f"{algorithm}:{hashlib.new(algorithm, content).hexdigest()}")


async def put_upload(driver: StorageDriver, content: bytes, states: dict[str, bytes] | None = None) -> None:
    """An upload as a registry leaves it."""
    await driver.put_content(upload_path(NAME, UUID, "startedat"), b"2026-11-23T00:06:39Z")
    await put_data(driver, upload_path(NAME, UUID, "data"), content)
    for count, state in (states or {}).items():
        await driver.put_content(upload_path(NAME, UUID, f"hashstates/sha256/{count}"), state)


@pytest.mark.parametrize("algorithm", ["sha256", "sha384", "sha512"])
@pytest.mark.parametrize("resumed", [False, True])
async def test_by_every_algorithm(
    layers: LayerService, driver: StorageDriver, algorithm: str, resumed: bool, payload: Callable[[int], bytes]
) -> None:
    """Stored under sha256 only; linked under both; both links hold the sha256 digest (facts A.3)."""
    content = payload(5_000_000)
    upload = await layers.upload()
    await upload.write(content)
    if resumed:
        await upload.close()
        upload = await layers.resume(upload.uuid)
    digest = digest_of(content, algorithm)
    assert await upload.finish(digest, len(content)) == digest_of(content)
    files = await files_in(driver)
    canonical = str(digest_of(content))
    assert files == {blob_path(canonical): content} | {
        link_path(NAME, name): canonical.encode() for name in (canonical, str(digest))
    }


@pytest.mark.parametrize("algorithm", ["sha256", "sha384", "sha512"])
async def test_a_wrong_digest_of_every_algorithm(layers: LayerService, driver: StorageDriver, algorithm: str) -> None:
    """Refused with both digests and the size; nothing in storage changes."""
    await put_upload(driver, b"content")
    before = await files_in(driver)
    upload = await layers.resume(UUID)
    with pytest.raises(LayerInvalidDigest) as caught:
        await upload.finish(digest_of(b"other", algorithm))
    assert caught.value.expected == digest_of(b"other", algorithm)
    assert caught.value.actual == digest_of(b"content", algorithm)
    assert caught.value.size == 7
    assert await files_in(driver) == before


async def test_going_on_after_a_wrong_digest(layers: LayerService) -> None:
    """The upload can be written, and finished, as if nothing had been."""
    upload = await layers.upload()
    await upload.write(b"content")
    with pytest.raises(LayerInvalidDigest):
        await upload.finish(digest_of(b"content, and more"))
    await upload.write(b", and more")
    assert await upload.finish(digest_of(b"content, and more")) == digest_of(b"content, and more")


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
@pytest.mark.parametrize("how", ["before", "after"])
async def test_trying_again_with_the_same_object(
    registry: Registry, watched: FaultyDriver, algorithm: str, how: str
) -> None:
    """Whatever call fails, the same `finish` on the same object completes it, unless a write was lost."""
    content, call = b"content" * 100, 0
    while True:
        call += 1
        upload = await Registry(watched).repository(NAME).layers.upload()
        await upload.write(content)
        watched.arm(Fault(call, how, "fail"))
        try:
            await upload.finish(digest_of(content, algorithm))
        except InjectedFailure:
            watched.arm(None)
            if not upload.is_usable:
                upload = await Registry(watched).repository(NAME).layers.resume(upload.uuid)
                await upload.write(content[upload.offset :])
            assert await upload.finish(digest_of(content, algorithm)) == digest_of(content)
        else:
            if not watched.has_struck:
                break
        watched.arm(None)
        files = await files_in(registry.driver)
        check_storage(files)
        assert not [path for path in files if "_uploads" in path]
        await registry.driver.delete("/docker/registry/v2/blobs/sha256")
        await registry.driver.delete(f"/docker/registry/v2/repositories/{NAME}")
    assert call > 8


async def published_only(driver: StorageDriver, content: bytes, committing: str | None) -> None:
    """What a crash leaves between publishing the blob and linking it."""
    await put_upload(driver, b"")
    await driver.delete(upload_path(NAME, UUID, "data"))
    await driver.put_content(blob_path(str(digest_of(content))), content)
    if committing is not None:
        await driver.put_content(upload_path(NAME, UUID, "layerfs-committing"), committing.encode())


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
async def test_completing_after_a_crash(layers: LayerService, driver: StorageDriver, algorithm: str) -> None:
    """The blob was published and nothing else: the same command makes the links and removes the upload."""
    await published_only(driver, b"content", str(digest_of(b"content")))
    upload = await layers.resume(UUID)
    assert await upload.finish(digest_of(b"content", algorithm), 7) == digest_of(b"content")
    files = await files_in(driver)
    check_storage(files)
    assert not [path for path in files if "_uploads" in path]
    assert await layers.exists(digest_of(b"content", algorithm))


@pytest.mark.parametrize("algorithm", ["sha256", "sha384", "sha512"])
async def test_completing_by_a_wrong_digest(layers: LayerService, driver: StorageDriver, algorithm: str) -> None:
    """What was published is verified again, by the digest that is asked for now."""
    await published_only(driver, b"content", str(digest_of(b"content")))
    before = await files_in(driver)
    with pytest.raises(LayerInvalidDigest):
        await (await layers.resume(UUID)).finish(digest_of(b"other", algorithm))
    assert await files_in(driver) == before


async def test_completing_with_a_wrong_size(layers: LayerService, driver: StorageDriver) -> None:
    """The size is checked too; also that of no data at all."""
    await published_only(driver, b"content", None)
    upload = await layers.resume(UUID)
    with pytest.raises(LayerInvalidLength) as caught:
        await upload.finish(digest_of(b"content"), 8)
    assert (caught.value.expected, caught.value.actual) == (8, 7)
    with pytest.raises(LayerInvalidLength):
        await upload.finish(digest_of(b""), 5)


async def test_completing_with_a_damaged_blob(layers: LayerService, driver: StorageDriver) -> None:
    """A blob that is not what its name says is not linked."""
    await published_only(driver, b"content", None)
    await driver.put_content(blob_path(str(digest_of(b"content"))), b"damaged")
    with pytest.raises(LayerInvalidDigest) as caught:
        await (await layers.resume(UUID)).finish(digest_of(b"content"))
    assert caught.value.actual == digest_of(b"damaged")
    assert not [path for path in await files_in(driver) if "_layers" in path]


async def test_no_data_to_verify_with(layers: LayerService, driver: StorageDriver) -> None:
    """Raises `LayerUploadInvalid` where nothing tells which blob it was, `LayerInvalidDigest` where there is none."""
    await published_only(driver, b"content", None)
    upload = await layers.resume(UUID)
    with pytest.raises(LayerUploadInvalid) as invalid:
        await upload.finish(digest_of(b"content", "sha512"))
    assert (invalid.value.name, invalid.value.uuid) == (NAME, UUID)
    with pytest.raises(LayerInvalidDigest) as caught:
        await upload.finish(digest_of(b"nowhere"))
    assert (caught.value.actual, caught.value.size) == (digest_of(b""), 0)


async def test_finishing_what_somebody_else_has_finished(layers: LayerService, driver: StorageDriver) -> None:
    """The layer is there: that is what was wanted. With another digest the upload is unknown."""
    upload = await layers.upload()
    await upload.write(b"content")
    await upload.close_writer()
    await (await layers.resume(upload.uuid)).finish(digest_of(b"content"))
    with pytest.raises(LayerUploadUnknown):
        await upload.finish(digest_of(b"other"))
    assert await upload.finish(digest_of(b"content")) == digest_of(b"content")


@pytest.mark.parametrize("damaged", [b"", b"c0ntent", b"content and more"])
async def test_a_damaged_blob_is_replaced(layers: LayerService, driver: StorageDriver, damaged: bytes) -> None:
    """No registry does: it sees that a blob is there and looks no further (facts F.6)."""
    await driver.put_content(blob_path(str(digest_of(b"content"))), damaged)
    upload = await layers.upload()
    await upload.write(b"content")
    await upload.finish(digest_of(b"content"))
    assert await driver.get_content(blob_path(str(digest_of(b"content"))), limit=100) == b"content"


async def test_a_bad_link_is_replaced(layers: LayerService, driver: StorageDriver) -> None:
    """One that was empty, or led elsewhere, is right afterwards."""
    await driver.put_content(link_path(NAME, str(digest_of(b"content"))), str(digest_of(b"other")).encode())
    upload = await layers.upload()
    await upload.write(b"content")
    await upload.finish(digest_of(b"content"))
    check_storage(await files_in(driver))


async def test_two_uploads_of_the_same_content(layers: LayerService, driver: StorageDriver) -> None:
    """Both are finished; there is one blob."""
    uploads = [await layers.upload() for _ in range(2)]
    for upload in uploads:
        await upload.write(b"content")
    for upload in uploads:
        assert await upload.finish(digest_of(b"content")) == digest_of(b"content")
    assert len(await files_in(driver)) == 2


@pytest.mark.local("where there are no directories nothing is in the place of a file")
async def test_a_directory_in_place_of_data(layers: LayerService, driver: StorageDriver) -> None:
    """An error with its path, not an empty layer."""
    await put_upload(driver, b"")
    await driver.delete(upload_path(NAME, UUID, "data"))
    await driver.make_directory(upload_path(NAME, UUID, "data"))
    with pytest.raises(NotRegularFile):
        await (await layers.resume(UUID)).finish(digest_of(b""))


# --- hash states in storage (facts F.5) --------------------------------------------------------------------------

CONTENT = bytes(range(256)) * 10
OTHER = bytes(reversed(range(256))) * 10

STATES = {
    "right": {str(len(CONTENT)): hash_state(CONTENT)},
    "none": {},
    "of another offset": {"1000": hash_state(CONTENT[:1000])},
    "of the last bytes only": {"1000": hash_state(CONTENT[-1000:])},
    "name is no number": {"abc": hash_state(CONTENT)},
    "hexadecimal name": {hex(len(CONTENT)): hash_state(OTHER)},
    "of other data": {str(len(CONTENT)): hash_state(OTHER)},
    "of a count that is not its name": {str(len(CONTENT)): hash_state(CONTENT[:1000])},
    "old gob": {str(len(CONTENT)): b"\x0b\xff\x81\x05\x01\x02\xff\x84" + bytes(148)},
    "empty": {str(len(CONTENT)): b""},
    "huge": {str(len(CONTENT)): bytes(1_000_000)},
}


@pytest.mark.parametrize("states", STATES.values(), ids=STATES)
@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
@pytest.mark.parametrize("trust", [False, True])
async def test_the_right_digest_whatever_states_say(
    driver: StorageDriver, states: dict[str, bytes], algorithm: str, trust: bool
) -> None:
    """Accepted always, and the blob is right: a registry refuses it where a state is wrong."""
    registry = await Registry.open(driver, create=True, trust_hash_states=trust)
    await put_upload(driver, CONTENT, states)
    upload = await registry.repository(NAME).layers.resume(UUID)
    assert await upload.finish(digest_of(CONTENT, algorithm)) == digest_of(CONTENT)
    check_storage(await files_in(driver))


@pytest.mark.parametrize("states", STATES.values(), ids=STATES)
@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
async def test_a_wrong_digest_whatever_states_say(
    layers: LayerService, driver: StorageDriver, states: dict[str, bytes], algorithm: str
) -> None:
    """Without trust, a planted state never makes a wrong digest right: a registry stores a wrong blob then."""
    await put_upload(driver, CONTENT, states)
    with pytest.raises(LayerInvalidDigest) as caught:
        await (await layers.resume(UUID)).finish(digest_of(OTHER, algorithm))
    assert caught.value.actual == digest_of(CONTENT, algorithm)
    assert not [path for path in await files_in(driver) if "/blobs/" in path]


@pytest.mark.parametrize("states", STATES.values(), ids=STATES)
async def test_going_on_whatever_states_say(
    layers: LayerService, driver: StorageDriver, states: dict[str, bytes]
) -> None:
    """The same where more is written first; and no state is stored that rests on a planted one."""
    await put_upload(driver, CONTENT, states)
    upload = await layers.resume(UUID)
    await upload.write(b"more")
    await upload.flush()
    await upload.hash_stored()
    await upload.write(b" and more")
    await upload.close_writer()
    whole = CONTENT + b"more and more"
    files = await files_in(driver)
    assert files[upload_path(NAME, UUID, f"hashstates/sha256/{len(whole)}")] == hash_state(whole)
    assert f"{len(CONTENT) + 4}" not in {path.rpartition("/")[2] for path in files}
    with pytest.raises(LayerInvalidDigest):
        await upload.finish(digest_of(OTHER + b"more and more"))
    assert await upload.finish(digest_of(whole)) == digest_of(whole)


async def reads_of_finish(watched: FaultyDriver, trust: bool, digest: Digest) -> int:
    registry = Registry(watched, trust_hash_states=trust)
    upload = await registry.repository(NAME).layers.resume(UUID)
    watched.arm(None)
    await upload.finish(digest)
    return sum(line.startswith("sealed read") for line in watched.log)


async def test_trust_saves_the_reading(registry: Registry, watched: FaultyDriver) -> None:
    """With trust, and the exact state, nothing is read again; without trust everything is."""
    for trust, expected in ((True, 0), (False, 1)):
        await put_upload(registry.driver, CONTENT, STATES["right"])
        assert await reads_of_finish(watched, trust, digest_of(CONTENT)) == expected


async def test_trust_goes_no_further_than_sha256(registry: Registry, watched: FaultyDriver) -> None:
    """By another algorithm everything is read anyhow, and the canonical digest is of what was read."""
    await put_upload(registry.driver, CONTENT, STATES["of other data"])
    assert await reads_of_finish(watched, True, digest_of(CONTENT, "sha512")) > 0
    check_storage(await files_in(registry.driver))


async def test_what_trust_means(trusting: Registry) -> None:
    """The operator was told: with a planted state the other data's digest is accepted, as by a registry."""
    await put_upload(trusting.driver, CONTENT, STATES["of other data"])
    upload = await trusting.repository(NAME).layers.resume(UUID)
    assert await upload.finish(digest_of(OTHER)) == digest_of(OTHER)


async def test_a_process_believes_itself(registry: Registry, watched: FaultyDriver) -> None:
    """What went through this process, and nobody touched since, is not read again to finish it."""
    upload = await Registry(watched).repository(NAME).layers.upload()
    for _ in range(10):
        await upload.write(CONTENT)
        await upload.close_writer()
    watched.arm(None)
    await upload.finish(digest_of(CONTENT * 10))
    assert not [line for line in watched.log if line.startswith(("sealed read", "read"))]


async def test_without_libcrypto(layers: LayerService, driver: StorageDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    """hashlib hashes, no states are stored, and resuming reads everything."""
    monkeypatch.setattr(hashing, "_libcrypto", lambda: None)
    async with await layers.upload() as upload:
        await upload.write(CONTENT)
    assert not [path for path in await files_in(driver) if "hashstates" in path]
    assert await (await layers.resume(upload.uuid)).finish(digest_of(CONTENT)) == digest_of(CONTENT)
