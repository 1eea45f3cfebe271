"""Uploads as they are begun, written, resumed, renamed, listed and cancelled; and what storage may hold instead."""

from __future__ import annotations

import os
import uuid
from datetime import UTC, datetime, timedelta

import pytest
import trio
from harness.faulty_driver import FaultyDriver
from harness.handmade import put_data
from harness.invariants import upload_path
from harness.sha256 import hash_state
from harness.walk import files_in
from hypothesis import given
from hypothesis import strategies as st

from layerfs.digest import Digest
from layerfs.driver.interface import Capabilities, FileWriter, StorageDriver
from layerfs.driver.memory import MemoryDriver
from layerfs.errors import (
    AccessDenied,
    BackendFailure,
    ContentChanged,
    InvalidOffset,
    InvalidRepositoryName,
    InvalidUploadName,
    LayerClosed,
    LayerUploadBusy,
    LayerUploadUnknown,
    StorageFull,
    UnsupportedByDriver,
)
from layerfs.registry import LayerService, Registry, hashing

pytestmark = pytest.mark.also_on("s3")

NAME = "foo/bar"
UUID = "f81d4fae-7dec-4d0a-a765-00a0c91e6bf6"
OTHER = "0190b6a4-0000-7000-8000-000000000000"


def path_of(upload_id: str, file: str = "") -> str:
    return upload_path(NAME, upload_id, file)


async def put_upload(
    driver: StorageDriver,
    content: bytes | None = b"content",
    *,
    upload_id: str = UUID,
    started_at: bytes | None = b"2026-11-23T00:06:39Z",
    states: dict[str, bytes] | None = None,
) -> None:
    """An upload as a registry leaves it, with whatever is not None."""
    if started_at is not None:
        await driver.put_content(path_of(upload_id, "startedat"), started_at)
    if content is not None:
        await put_data(driver, path_of(upload_id, "data"), content)
    for count, state in (states or {}).items():
        await driver.put_content(path_of(upload_id, f"hashstates/sha256/{count}"), state)


async def foreign_append(driver: StorageDriver, content: bytes, upload_id: str = UUID) -> None:
    """What a registry's PATCH does."""
    writer = await driver.writer(path_of(upload_id, "data"), append=True)
    await writer.write([content])
    await writer.flush()
    await writer.close()


# --- beginning -----------------------------------------------------------------------------------------------


async def test_what_an_upload_leaves_at_once(layers: LayerService, driver: StorageDriver) -> None:
    """`startedat` in the registry's format, empty `data`, a UUID, and a repository for both generations."""
    before = datetime.now(UTC).replace(microsecond=0)
    upload = await layers.upload()
    assert str(uuid.UUID(upload.uuid)) == upload.uuid
    files = await files_in(driver)
    assert set(files) == {path_of(upload.uuid, "startedat"), path_of(upload.uuid, "data")}
    text = files[path_of(upload.uuid, "startedat")].decode()
    assert len(text) == 20
    written = datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    assert before <= written <= datetime.now(UTC)
    assert upload.started_at == written
    assert files[path_of(upload.uuid, "data")] == b""
    made = {entry.name for entry in await driver.list(f"/docker/registry/v2/repositories/{NAME}")}
    assert made == ({"_layers", "_manifests", "_uploads"} if driver.capabilities.directories else {"_uploads"})


async def test_a_name_for_an_upload(layers: LayerService, driver: StorageDriver) -> None:
    """It is kept in storage, so that others see it too; without one the UUID is the name."""
    upload = await layers.upload(file_name="layer ä.tar.gz")
    assert await driver.get_content(path_of(upload.uuid, "layerfs-name"), limit=100) == "layer ä.tar.gz".encode()
    assert (await layers.stat_upload(upload.uuid)).file_name == "layer ä.tar.gz"
    plain = await layers.upload()
    assert (await layers.stat_upload(plain.uuid)).file_name == plain.uuid


async def test_a_uuid_for_a_name(layers: LayerService, driver: StorageDriver) -> None:
    """Becomes the id, and needs no file of its own."""
    upload = await layers.upload(file_name=UUID)
    assert upload.uuid == UUID
    assert set(await files_in(driver)) == {path_of(UUID, "startedat"), path_of(UUID, "data")}


async def test_the_uuid_of_an_upload_that_is_there(layers: LayerService, driver: StorageDriver) -> None:
    """Refused: its bytes would be gone."""
    await put_upload(driver)
    before = await files_in(driver)
    with pytest.raises(LayerUploadBusy) as caught:
        await layers.upload(file_name=UUID)
    assert (caught.value.name, caught.value.uuid) == (NAME, UUID)
    assert await files_in(driver) == before


async def test_the_uuid_of_a_ghost(layers: LayerService, driver: StorageDriver) -> None:
    """Nothing that was left under it counts for the new upload: states of other bytes would be believed."""
    await put_upload(driver, None, started_at=None, states={"0": hash_state(b""), "3": hash_state(b"old")})
    async with await layers.upload(file_name=UUID) as upload:
        await upload.write(b"new")
    files = await files_in(driver)
    assert files[path_of(UUID, "hashstates/sha256/3")] == hash_state(b"new")
    assert path_of(UUID, "hashstates/sha256/0") not in files


@pytest.mark.parametrize("file_name", ["", ".", "..", "a/b", "a\nb", "x" * 256, "\x1b[0m"])
async def test_a_name_that_no_file_has(layers: LayerService, driver: StorageDriver, file_name: str) -> None:
    """Refused before anything is stored."""
    with pytest.raises(InvalidUploadName):
        await layers.upload(file_name=file_name)
    assert await files_in(driver) == {}


@pytest.mark.parametrize("name", ["Foo/bar", "a___b", "A"])
async def test_uploading_to_a_name_that_may_not_be_created(registry: Registry, name: str) -> None:
    """Such a repository can be read, if some registry has made it; nothing is begun in it."""
    with pytest.raises(InvalidRepositoryName):
        await registry.repository(name).layers.upload()
    assert await files_in(registry.driver) == {}


@pytest.mark.parametrize("error", [StorageFull, UnsupportedByDriver, AccessDenied])
async def test_a_beginning_that_fails(registry: Registry, watched: FaultyDriver, error: type[BackendFailure]) -> None:
    """Where `data` cannot be made, no upload is left that somebody would find."""

    async def refuse(what: str, path: str) -> None:
        if what == "writer":
            raise error(path)

    watched.on_call = refuse
    with pytest.raises(error):
        await Registry(watched).repository(NAME).layers.upload(file_name="layer.tar")
    assert await registry.repository(NAME).layers.uploads() == []
    assert await files_in(registry.driver) == {}


# --- listing -------------------------------------------------------------------------------------------------


async def test_uploads_are_listed_by_age(layers: LayerService, driver: StorageDriver) -> None:
    """The oldest first, one without a readable time before all."""
    assert await layers.uploads() == []
    times = {"c": b"2026-01-01T00:00:00Z", "a": b"2026-01-02T00:00:00+02:00", "b": b"2025-12-31T23:59:59.5Z", "d": b"?"}
    for upload_id, started_at in times.items():
        await put_upload(driver, upload_id.encode(), upload_id=upload_id, started_at=started_at)
    listed = await layers.uploads()
    assert [info.uuid for info in listed] == ["d", "b", "c", "a"]
    assert [info.size for info in listed] == [1, 1, 1, 1]
    assert listed[0].started_at is None
    assert listed[3].started_at == datetime(2026, 1, 1, 22, tzinfo=UTC)
    assert listed[3].started_at.utcoffset() == timedelta(hours=2)


async def test_ghosts_are_not_listed(layers: LayerService, driver: StorageDriver) -> None:
    """A directory without `startedat` is what registries leave of a cancelled upload (facts F.4)."""
    await put_upload(driver, None, started_at=None, states={"0": hash_state(b"")})
    await put_upload(driver, b"x", upload_id=OTHER)
    await driver.make_directory(path_of("empty"))
    await driver.put_content(path_of("a-file"), b"no directory")
    assert [info.uuid for info in await layers.uploads()] == [OTHER]
    for upload_id in (UUID, "empty", "a-file"):
        with pytest.raises(LayerUploadUnknown):
            await layers.stat_upload(upload_id)
        with pytest.raises(LayerUploadUnknown):
            await layers.resume(upload_id)


async def test_an_upload_without_data(layers: LayerService, driver: StorageDriver) -> None:
    """Has no bytes yet, and can be gone on with."""
    await put_upload(driver, None)
    upload = await layers.resume(UUID)
    assert upload.size == 0
    await upload.write(b"first bytes")
    await upload.close()
    assert (await layers.stat_upload(UUID)).size == 11


@pytest.mark.parametrize(
    "started_at", [b"", b"yesterday", b"2026-11-23T00:06:39Z\n", b"\xff" * 20, b"9" * 5000, b"0000-00-00T00:00:00Z"]
)
async def test_a_startedat_that_is_no_time(layers: LayerService, driver: StorageDriver, started_at: bytes) -> None:
    """The upload is there, so that it can be finished or removed; only its time is unknown."""
    await put_upload(driver, started_at=started_at)
    (info,) = await layers.uploads()
    assert (info.uuid, info.started_at, info.size) == (UUID, None, 7)
    upload = await layers.resume(UUID)
    assert upload.started_at is None
    await upload.finish(Digest.of(b"content"))


@pytest.mark.parametrize(
    "stored", [b"", b"..", b"a/b", b"../../../etc/passwd", b"a\nb", b"\x1b[2J", b"\xff\xfe", b"x" * 256, b"y" * 100_000]
)
async def test_a_hostile_name_in_storage(layers: LayerService, driver: StorageDriver, stored: bytes) -> None:
    """Whatever `layerfs-name` says, a name that no file can have is not shown; the UUID is."""
    await put_upload(driver)
    await driver.put_content(path_of(UUID, "layerfs-name"), stored)
    assert (await layers.stat_upload(UUID)).file_name == UUID


@pytest.mark.parametrize("upload_id", ["my-upload", "_x", "-x", ".x", "x" * 255])
async def test_an_id_that_is_no_uuid(layers: LayerService, driver: StorageDriver, upload_id: str) -> None:
    """The registry's HTTP route makes it possible, so it is an upload like any other."""
    await put_upload(driver, upload_id=upload_id)
    assert [info.uuid for info in await layers.uploads()] == [upload_id]
    assert (await layers.resume(upload_id)).size == 7


@given(st.binary(max_size=70), st.binary(max_size=300))
def test_any_bytes_in_storage(started_at: bytes, file_name: bytes) -> None:
    """No content of the small files keeps the others from being listed."""

    async def check() -> None:
        driver = MemoryDriver()
        await put_upload(driver, started_at=started_at)
        await driver.put_content(path_of(UUID, "layerfs-name"), file_name)
        await put_upload(driver, upload_id=OTHER)
        listed = await Registry(driver).repository(NAME).layers.uploads()
        assert {info.uuid for info in listed} == {UUID, OTHER}
        assert all(info.file_name.isprintable() or info.file_name >= "\u00a0" for info in listed)

    trio.run(check)


@pytest.mark.parametrize("which", ["startedat", "data"])
async def test_an_upload_that_cannot_be_looked_at(registry: Registry, which: str) -> None:
    """A backend that fails is an error, not an upload that is unknown or has no bytes: who resumes would begin anew."""
    await put_upload(registry.driver)

    class OutOfReach(FaultyDriver):
        async def list_files(self, path):  # type: ignore[no-untyped-def]
            # Where that tells how long uploads are too, nothing else is asked for it.
            if which == "data" and self.capabilities.listed_uploads:
                raise BackendFailure(path)
            return await super().list_files(path)

        async def get_contents(self, paths, *, limit):  # type: ignore[no-untyped-def]
            found = await super().get_contents(paths, limit=limit)
            return [BackendFailure(path) if which in path else one for path, one in zip(paths, found, strict=True)]

        async def stat_many(self, paths):  # type: ignore[no-untyped-def]
            return [BackendFailure(path) for path in paths] if which == "data" else await super().stat_many(paths)

    from harness.faulty_driver import Disk

    layers = Registry(OutOfReach(Disk(registry.driver))).repository(NAME).layers
    for ask in (layers.uploads, lambda: layers.resume(UUID), lambda: layers.stat_upload(UUID)):
        with pytest.raises(BackendFailure):
            await ask()


# --- renaming ------------------------------------------------------------------------------------------------


async def test_rename(layers: LayerService, driver: StorageDriver) -> None:
    """The name changes, nothing else; for one that a registry began too."""
    await put_upload(driver)
    await layers.rename_upload(UUID, "new.tar")
    assert (await layers.stat_upload(UUID)).file_name == "new.tar"
    await layers.rename_upload(UUID, "newer.tar")
    (info,) = await layers.uploads()
    assert (info.file_name, info.size) == ("newer.tar", 7)


async def test_renaming_what_is_not_there(layers: LayerService, driver: StorageDriver) -> None:
    """Raises `LayerUploadUnknown`, and makes no ghost; a bad name raises `InvalidUploadName`."""
    with pytest.raises(LayerUploadUnknown):
        await layers.rename_upload(UUID, "new.tar")
    await put_upload(driver)
    with pytest.raises(InvalidUploadName):
        await layers.rename_upload(UUID, "a/b")
    assert path_of(UUID, "layerfs-name") not in await files_in(driver)


# --- writing -------------------------------------------------------------------------------------------------


@pytest.mark.local("an upload is written in the middle")
async def test_seeking_and_overwriting(layers: LayerService, driver: StorageDriver) -> None:
    """As in the original: back to overwrite, beyond the end to leave zeros."""
    upload = await layers.upload()
    await upload.write(b"0123456789")
    assert upload.seek(2) == 2
    await upload.write(b"ab")
    assert upload.offset == 4
    assert upload.seek(0, os.SEEK_END) == 10
    assert upload.seek(5, os.SEEK_CUR) == 15
    await upload.write(b"z")
    await upload.flush()
    assert await driver.get_content(path_of(upload.uuid, "data"), limit=100) == b"01ab456789\0\0\0\0\0z"
    with pytest.raises(InvalidOffset):
        upload.seek(-1)
    assert upload.offset == 16
    await upload.finish(Digest.of(b"01ab456789\0\0\0\0\0z"), 16)


@pytest.mark.local("an upload is cut")
async def test_truncating(layers: LayerService) -> None:
    """Cuts and adds zeros, and the digest is of what is there then."""
    upload = await layers.upload()
    await upload.write(b"0123456789")
    await upload.truncate(4)
    await upload.truncate(6)
    assert upload.size == 6
    assert await upload.read(0, 100) == b"0123\0\0"
    await upload.finish(Digest.of(b"0123\0\0"))


class AppendOnly(FaultyDriver):
    """A storage that can only append, as object stores."""

    def __init__(self, disk) -> None:  # type: ignore[no-untyped-def]
        super().__init__(disk)
        self.capabilities = Capabilities(directories=True, append=True, random_writes=False)


async def test_a_hole_is_not_read_to_finish(layers: LayerService) -> None:
    """What `cp` makes of a file with holes, in the middle and at the end, keeps the running hash."""
    upload = await layers.upload()
    await upload.write(b"begin")
    await upload.write_at(5 + 70_001, b"middle")
    await upload.truncate(5 + 70_001 + 6 + 9_000_000)
    assert upload.hash_lag == 0
    content = b"begin" + bytes(70_001) + b"middle" + bytes(9_000_000)
    assert await upload.finish(Digest.of(content), len(content)) == Digest.of(content)
    async with await layers.fetch(Digest.of(content)) as layer:
        assert await layer.read() == content


@pytest.mark.local("an upload has a hole, which is not stored as zeros")
async def test_a_hole_too_large_to_be_hashed_at_once(layers: LayerService) -> None:
    """It is read when the upload is finished; what follows it counts all the same."""
    upload = await layers.upload()
    hole = (64 << 20) + 1
    await upload.write_at(hole, b"end")
    assert upload.hash_lag == hole
    content = bytes(hole) + b"end"
    assert await upload.finish(Digest.of(content)) == Digest.of(content)


async def test_a_storage_that_can_only_append(registry: Registry) -> None:
    """An earlier offset is refused before a byte has changed; gaps are filled, at the end too; the upload goes on."""
    from harness.faulty_driver import Disk

    upload = await Registry(AppendOnly(Disk(registry.driver))).repository(NAME).layers.upload()
    await upload.write(b"0123456789")
    for refused in (lambda: upload.write_at(3, b"x"), lambda: upload.truncate(3)):
        with pytest.raises(InvalidOffset):
            await refused()
    assert upload.is_usable
    upload.seek(12)
    await upload.write(b"end")
    await upload.truncate(5_000_000)
    assert upload.size == 5_000_000
    await upload.finish(Digest.of(b"0123456789\0\0end".ljust(5_000_000, b"\0")))


async def test_a_write_that_the_backend_refuses(registry: Registry, watched: FaultyDriver) -> None:
    """Bytes that were taken and cannot be stored are an error from then on; nobody is told that they are safe."""
    upload = await Registry(watched).repository(NAME).layers.upload()

    async def refuse(what: str, path: str) -> None:
        if what == "write":
            raise InvalidOffset(path, "the file would be too large")

    watched.on_call = refuse
    await upload.write(b"lost")
    for _ in range(2):
        with pytest.raises(InvalidOffset):
            await upload.flush()
        watched.on_call = None
    assert not upload.is_usable
    assert upload.size == 0
    with pytest.raises(InvalidOffset):
        await upload.finish(Digest.of(b"lost"))


class HalfWriting(FaultyDriver):
    """Refuses the first random write of a writer, when some of it was written."""

    async def writer(self, path: str, *, append: bool) -> FileWriter:
        writer = await super().writer(path, append=append)

        async def write_half(what: str, path: str) -> None:
            if what == "write_at":
                self.on_call = None
                await writer.write_at(5, b"ABCDEFG")
                raise InvalidOffset(path, "the file would be too large")

        self.on_call = write_half
        return writer


@pytest.mark.local("an upload is written in the middle")
async def test_a_random_write_that_fails_half_way(watched: FaultyDriver) -> None:
    """A write that is refused after part of it was done leaves no hash behind of what was there before."""
    upload = await Registry(HalfWriting(watched.disk)).repository(NAME).layers.upload()
    await upload.write(b"0123456789")
    await upload.flush()
    with pytest.raises(InvalidOffset):
        await upload.write_at(5, b"ABCDEFGHIJ")
    assert upload.size == 12
    with pytest.raises(Exception, match="does not match"):
        await upload.finish(Digest.of(b"0123456789FG"))
    assert await upload.finish(Digest.of(b"01234ABCDEFG")) == Digest.of(b"01234ABCDEFG")


async def test_flushing_nothing(registry: Registry, watched: FaultyDriver) -> None:
    """A flush without bytes asks the storage for nothing: a shell sends one before its first write."""
    upload = await Registry(watched).repository(NAME).layers.upload()
    watched.arm(None)
    await upload.flush()
    assert watched.log == []


async def test_what_a_flush_stores(layers: LayerService, driver: StorageDriver) -> None:
    """The data, and the state of its hash under its size, as any registry would: byte for byte."""
    upload = await layers.upload()
    for end in (5, 64, 100):
        await upload.write(bytes(range(100))[upload.size : end])
        await upload.flush()
    files = await files_in(driver)
    assert {path.rpartition("/")[2]: content for path, content in files.items() if "hashstates" in path} == {
        str(end): hash_state(bytes(range(end))) for end in (5, 64, 100)
    }


@pytest.mark.local("an upload is written in the middle")
async def test_states_after_a_random_write(layers: LayerService, driver: StorageDriver) -> None:
    """None is left that is not of the bytes before it."""
    upload = await layers.upload()
    await upload.write(b"0123456789")
    await upload.flush()
    await upload.write_at(0, b"x")
    await upload.flush()
    assert not [path for path in await files_in(driver) if "hashstates" in path]
    await upload.hash_stored()
    await upload.write(b"!")
    await upload.flush()
    states = {path: content for path, content in (await files_in(driver)).items() if "hashstates" in path}
    assert states == {path_of(upload.uuid, "hashstates/sha256/11"): hash_state(b"x123456789!")}


@pytest.mark.local("an upload is written in the middle")
async def test_a_state_whose_storing_failed_is_deleted_too(registry: Registry, watched: FaultyDriver) -> None:
    """It may have got there nevertheless."""
    upload = await Registry(watched).repository(NAME).layers.upload()
    await upload.write(b"0123456789")

    async def late(what: str, path: str) -> None:
        if what == "put_content" and "hashstates" in path:
            await registry.driver.put_content(path, hash_state(b"0123456789"))
            raise BackendFailure(path)

    watched.on_call = late
    await upload.flush()
    await upload.write_at(0, b"x")
    await upload.flush()
    assert not [path for path in await files_in(registry.driver) if "hashstates" in path]


@pytest.mark.local("an upload is written in the middle")
async def test_states_of_others_in_an_upload_without_any_of_ours(
    layers: LayerService, driver: StorageDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where none can be made, others may have stored some while it was let go: before a random write they go too."""
    monkeypatch.setattr(hashing, "_libcrypto", lambda: None)
    upload = await layers.upload(file_name=UUID)
    await upload.write(b"0123456789")
    await upload.close_writer()
    await driver.put_content(path_of(UUID, "hashstates/sha256/10"), hash_state(b"0123456789"))
    await upload.write_at(0, b"x")
    await upload.store()
    assert not [path for path in await files_in(driver) if "hashstates" in path]


# --- resuming ------------------------------------------------------------------------------------------------


async def test_resuming_what_a_registry_began(layers: LayerService, driver: StorageDriver) -> None:
    """Size, offset, time, and the bytes; then more bytes, and the digest of all."""
    await put_upload(driver, states={"0": hash_state(b""), "7": hash_state(b"content")})
    upload = await layers.resume(UUID)
    assert (upload.name, upload.uuid, upload.size, upload.offset) == (NAME, UUID, 7, 7)
    assert upload.started_at == datetime(2026, 11, 23, 0, 6, 39, tzinfo=UTC)
    await upload.write(b", and more")
    assert await upload.read(0, 100) == b"content, and more"
    assert await upload.finish(Digest.of(b"content, and more")) == Digest.of(b"content, and more")


async def test_states_ahead_of_the_data(layers: LayerService, driver: StorageDriver) -> None:
    """A crash leaves a registry's state without its bytes: when other bytes come, it must not be there any more."""
    await put_upload(driver, b"0123", states={"4": hash_state(b"0123"), "8": hash_state(b"01234567"), "0x8": b"?"})
    async with await layers.resume(UUID) as upload:
        await upload.write(b"abcd")
        await upload.flush()
    states = {path.rpartition("/")[2] for path in await files_in(driver) if "hashstates" in path}
    assert not states & {"8", "0x8"}


@pytest.mark.parametrize("length", [0, 7])
async def test_states_ahead_of_the_data_that_come_while_it_is_let_go(
    layers: LayerService, driver: StorageDriver, length: int
) -> None:
    """A registry that dies before its bytes are stored leaves the upload as it was, but for a state of those bytes.

    Before there is any byte that it is not of, it must be gone: by that size alone a registry would believe it.
    """
    upload = await layers.upload(file_name=UUID)
    await upload.write(b"content"[:length])
    await upload.close_writer()
    await driver.put_content(path_of(UUID, f"hashstates/sha256/{length + 5}"), hash_state(b"other content"[-5:]))
    await upload.write(b"abcde")
    await upload.store()
    assert path_of(UUID, f"hashstates/sha256/{length + 5}") not in await files_in(driver)
    assert await upload.finish(Digest.of(b"content"[:length] + b"abcde"))


async def test_states_up_to_the_data_stay(layers: LayerService, driver: StorageDriver) -> None:
    """Those that cannot be wrong for bytes to come are left alone."""
    await put_upload(driver, b"0123", states={"0": hash_state(b""), "4": hash_state(b"0123")})
    async with await layers.resume(UUID) as upload:
        await upload.write(b"abcd")
    states = {path.rpartition("/")[2] for path in await files_in(driver) if "hashstates" in path}
    assert {"0", "4"} <= states


async def test_a_foreign_append_while_it_is_open(layers: LayerService, driver: StorageDriver) -> None:
    """Whoever has it open is told with the next write, and neither's bytes are mixed with the other's."""
    upload = await layers.upload(file_name=UUID)
    await upload.write(b"ours")
    await upload.flush()
    await foreign_append(driver, b" theirs")
    await upload.write(b" lost")
    with pytest.raises(ContentChanged):
        await upload.flush()
    assert not upload.is_usable
    with pytest.raises(ContentChanged):
        await upload.write(b"more")
    await upload.close()
    assert await (await layers.resume(UUID)).finish(Digest.of(b"ours theirs"))


async def test_a_foreign_append_while_it_was_let_go(layers: LayerService, driver: StorageDriver) -> None:
    """Bytes that were taken for what was the end go nowhere else."""
    upload = await layers.upload(file_name=UUID)
    await upload.write(b"ours")
    await upload.close_writer()
    await foreign_append(driver, b" theirs")
    await upload.write(b" lost")
    with pytest.raises(ContentChanged):
        await upload.flush()
    assert await driver.get_content(path_of(UUID, "data"), limit=100) == b"ours theirs"


async def test_looking_again_before_writing(layers: LayerService, driver: StorageDriver) -> None:
    """`open_writer` sees what others have written, and writing goes on behind it; the digest is of all."""
    upload = await layers.upload(file_name=UUID)
    await upload.write(b"ours")
    await upload.close_writer()
    await foreign_append(driver, b" theirs")
    await upload.open_writer()
    assert upload.size == 11
    upload.seek(0, os.SEEK_END)
    await upload.write(b" ours")
    assert await upload.finish(Digest.of(b"ours theirs ours"))


async def test_a_foreign_change_of_the_same_size(layers: LayerService, driver: StorageDriver) -> None:
    """What was hashed is not what is stored any more: the old digest is wrong, the new one is right."""
    upload = await layers.upload(file_name=UUID)
    await upload.write(b"content")
    await upload.close_writer()
    await put_data(driver, path_of(UUID, "data"), b"Content")
    with pytest.raises(Exception, match="does not match"):
        await upload.finish(Digest.of(b"content"))
    await upload.finish(Digest.of(b"Content"))


async def test_an_upload_that_somebody_else_has_ended(layers: LayerService, driver: StorageDriver) -> None:
    """It is unknown then, and writing does not bring back to life what nobody would ever remove."""
    upload = await layers.upload(file_name=UUID)
    await upload.write(b"content")
    await upload.close_writer()
    await (await layers.resume(UUID)).cancel()
    await upload.write(b"more")
    with pytest.raises(LayerUploadUnknown):
        await upload.flush()
    with pytest.raises(LayerUploadUnknown):
        await upload.finish(Digest.of(b"content"))
    assert await files_in(driver) == {}


@pytest.mark.parametrize("end", ["finish", "cancel"])
@pytest.mark.parametrize("content", [b"content", b""])
async def test_an_upload_that_somebody_else_ends_while_it_is_opened(
    registry: Registry, watched: FaultyDriver, end: str, content: bytes
) -> None:
    """It has been seen a moment ago, and would be made anew by opening its data: bytes for nobody."""
    layers = registry.repository(NAME).layers
    async with await layers.upload(file_name=UUID) as begun:
        await begun.write(content)
    upload = await Registry(watched).repository(NAME).layers.resume(UUID)

    async def end_it(what: str, path: str) -> None:
        if what == "writer":
            watched.on_call = None
            other = await layers.resume(UUID)
            await (other.finish(Digest.of(content)) if end == "finish" else other.cancel())

    watched.on_call = end_it
    with pytest.raises(LayerUploadUnknown):
        await upload.open_writer()
    await upload.close()
    assert not [path for path in await files_in(registry.driver) if UUID in path]
    assert [info.blob.size for info in await layers.list()] == ([len(content)] if end == "finish" else [])


# --- cancelling ----------------------------------------------------------------------------------------------


async def test_cancel_leaves_nothing(layers: LayerService, driver: StorageDriver) -> None:
    """No directory either: a ghost is what registries leave, not this."""
    upload = await layers.upload(file_name="layer.tar")
    await upload.write(b"content")
    await upload.flush()
    await upload.write(b"more")
    await upload.cancel()
    if driver.capabilities.directories:
        assert await driver.list(f"/docker/registry/v2/repositories/{NAME}/_uploads") == []
    assert await files_in(driver) == {}


async def test_cancel_after_an_error(registry: Registry, watched: FaultyDriver) -> None:
    """An upload that has failed can still be removed."""
    upload = await Registry(watched).repository(NAME).layers.upload()

    async def fail(what: str, path: str) -> None:
        if what == "write":
            raise StorageFull(path)

    watched.on_call = fail
    await upload.write(b"x")
    with pytest.raises(StorageFull):
        await upload.flush()
    await upload.cancel()
    assert await files_in(registry.driver) == {}


async def test_a_cancel_that_fails(registry: Registry, watched: FaultyDriver) -> None:
    """Nothing can be written from then on, because bytes are missing; cancelling again works."""
    upload = await Registry(watched).repository(NAME).layers.upload()
    await upload.write(b"content")
    await upload.flush()
    await upload.write(b"more")

    async def fail(what: str, path: str) -> None:
        if what == "delete":
            raise BackendFailure(path)

    watched.on_call = fail
    with pytest.raises(BackendFailure):
        await upload.cancel()
    for use in (lambda: upload.write(b"x"), upload.flush, lambda: upload.finish(Digest.of(b"contentmore"))):
        with pytest.raises(LayerClosed):
            await use()
    watched.on_call = None
    await upload.cancel()
    assert await files_in(registry.driver) == {}
