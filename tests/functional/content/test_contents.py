"""Reading through the content cache: what is given out when, and what is kept, while blobs are fetched."""

from __future__ import annotations

import logging
import random
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import trio
import trio.testing

from layerfs.digest import Digest
from layerfs.driver.interface import FileInfo, FileReader
from layerfs.driver.memory import MemoryDriver
from layerfs.errors import BackendFailure, BlobDamaged, BlobNotVerifiedYet, BlobUnverifiable
from layerfs.registry import BlobInfo, BlobStore
from layerfs.registry.content_cache import ContentCache
from layerfs.registry.paths import BlobData
from layerfs.view import contents as contents_module
from layerfs.view.contents import Contents
from layerfs.view.nodes import Handle
from layerfs.view.readahead import PartPool

MIB = 1 << 20
KIB128 = 128 << 10

#: Seconds before their time is over in which readers are told how far a blob has come, where a test says so.
EARLY = 5.0

CONTENT = random.Random(1).randbytes(6 * MIB + 1234)
DIGEST = Digest.of(CONTENT)


class _Reader(FileReader):
    """Waits for the storage."""

    def __init__(self, storage: FarAway, path: str, content: bytes) -> None:
        self._storage = storage
        self._path = path
        self._content = content
        self.size = len(content)

    def read_nowait(self, offset: int, length: int) -> bytes | None:
        return None

    async def read(self, offset: int, length: int) -> bytes:
        self._storage.reads.append((offset, length))
        while offset + length > self._storage.given_out:
            await self._storage.more.wait()
        await trio.lowlevel.checkpoint()
        if self._storage.is_broken:
            raise BackendFailure(self._path, "out of reach")
        return self._content[offset : offset + length]

    def close(self) -> None:
        pass


class FarAway(MemoryDriver):
    """A storage where reading waits; gives out the bytes of files up to an offset."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: list[tuple[int, int]] = []
        self.given_out = 1 << 60
        self.more = trio.Event()
        self.is_broken = False
        #: What every file is said to have, if that is not what it has.
        self.size: int | None = None

    async def open(self, path: str) -> FileReader:
        content = await self.get_content(path, limit=1 << 30)
        reader = _Reader(self, path, content)
        reader.size = self.size or reader.size
        return reader

    async def open_known(self, info: FileInfo) -> FileReader:
        return await self.open(info.path)

    def give_out(self, end: int) -> None:
        """The bytes before `end`, from now on."""
        self.given_out = end
        more, self.more = self.more, trio.Event()
        more.set()

    @property
    def bytes_read(self) -> int:
        return sum(length for _, length in self.reads)


class Setting:
    """A storage with one blob, and a cache."""

    def __init__(self, cache: ContentCache, nursery: trio.Nursery) -> None:
        self.driver = FarAway()
        self.cache = cache
        self.nursery = nursery
        self.blob = BlobInfo(DIGEST, len(CONTENT), 0)

    async def store(self, content: bytes = CONTENT) -> None:
        await self.driver.put_content(BlobData(DIGEST).path, content)

    async def open(self, *, verify: bool = False, content: bytes = CONTENT) -> Handle:
        """A handle of the blob, or of another, in a mount of its own."""
        blobs = BlobStore(self.driver)
        start = self.nursery.start_soon
        self.contents = Contents(self.cache, blobs, PartPool(start), start, verify=verify)
        blob = self.blob if content is CONTENT else BlobInfo(Digest.of(content), len(content), 0)
        return await self.contents.open("/blob", blob, await blobs.open(blob.digest))

    async def is_kept(self) -> bool:
        found = await self.cache.find(DIGEST, len(CONTENT))
        if found is not None:
            found.close()
        return found is not None


@pytest.fixture
async def setting(tmp_path: Path, nursery: trio.Nursery) -> AsyncIterator[Setting]:
    cache = ContentCache(str(tmp_path / "cache"), 100 * MIB)
    setting = Setting(cache, nursery)
    await setting.store()
    yield setting
    await cache.close()


async def read_all(handle: Handle, end: int = len(CONTENT)) -> bytes:
    """As the kernel does."""
    pieces = []
    for offset in range(0, end, KIB128):
        quick = handle.read_nowait(offset, KIB128)
        pieces.append(bytes(quick) if quick is not None else bytes(await handle.read(offset, KIB128)))
    return b"".join(pieces)


async def settled(condition: Callable[[], bool]) -> None:
    """What goes on in the background has come that far."""
    with trio.fail_after(10):
        while not condition():
            await trio.sleep(0.005)  # threads write


async def test_reading_in_order_keeps_the_blob(setting: Setting) -> None:
    """Each byte is asked for once, for the reader and for the cache."""
    handle = await setting.open()
    assert await read_all(handle) == CONTENT
    await handle.release()
    with trio.fail_after(10):
        while not await setting.is_kept():
            await trio.sleep(0.005)  # its last bytes are being written
    assert setting.driver.bytes_read == len(CONTENT)
    setting.driver.reads.clear()
    again = await setting.open()
    assert await read_all(again) == CONTENT
    assert await again.read(5 * MIB, 100) == CONTENT[5 * MIB : 5 * MIB + 100]
    await again.release()
    assert setting.driver.reads == []


async def test_a_reader_gets_what_has_come(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    """He does not wait for the whole blob, nor for the disk."""
    monkeypatch.setattr(contents_module, "_SMALL_BLOB", 0)
    setting.driver.give_out(4 * MIB)
    handle = await setting.open()
    with trio.fail_after(10):
        assert await read_all(handle, 2 * MIB) == CONTENT[: 2 * MIB]
    setting.driver.give_out(1 << 60)
    assert await read_all(handle) == CONTENT
    await handle.release()


async def test_damage_is_never_kept(setting: Setting, caplog: pytest.LogCaptureFixture) -> None:
    """Without verification it is given out as storage has it, which the log says; but the cache does not take it."""
    damaged = CONTENT[:-1] + bytes([CONTENT[-1] ^ 1])
    await setting.store(damaged)
    handle = await setting.open()
    with caplog.at_level(logging.WARNING):
        assert await read_all(handle) == damaged
        await settled(lambda: "is damaged" in caplog.text)
    assert str(Digest.of(damaged)) in caplog.text
    assert not await setting.is_kept()
    await handle.release()


@pytest.fixture
def told_early(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who reads is told long before his time is over, so that a busy machine is not late."""
    monkeypatch.setattr(contents_module, "_TOLD_BEFORE", EARLY)


@pytest.mark.parametrize("offset", [0, 3 * MIB, len(CONTENT) - 10])
async def test_verified_reads_give_out_nothing_before_all_is_there(
    setting: Setting, told_early: None, offset: int
) -> None:
    """Wherever the first read is."""
    setting.driver.give_out(len(CONTENT) - 1)
    handle = await setting.open(verify=True)
    with trio.fail_after(EARLY + 0.2), pytest.raises(BlobNotVerifiedYet):
        await handle.read(offset, 10)
    setting.driver.give_out(1 << 60)
    assert await handle.read(offset, 10) == CONTENT[offset : offset + 10]
    await handle.release()


async def test_verified_reads_of_damage(setting: Setting) -> None:
    """Fail with both digests, again and again; and work when it is mended."""
    damaged = b"x" + CONTENT[1:]
    await setting.store(damaged)
    handle = await setting.open(verify=True)
    for offset in (0, 5 * MIB, 0):
        assert handle.read_nowait(offset, 100) is None
        with pytest.raises(BlobDamaged) as caught:
            await handle.read(offset, 100)
        assert (caught.value.digest, caught.value.actual) == (DIGEST, Digest.of(damaged))
    await handle.release()
    await setting.store()
    again = await setting.open(verify=True)
    assert await read_all(again) == CONTENT
    await again.release()


async def test_a_large_blob_is_verified_as_a_whole_too(tmp_path: Path, nursery: trio.Nursery, told_early: None) -> None:
    """Not a byte of it is given out before, though somebody reads it in order from its beginning."""
    cache = ContentCache(str(tmp_path / "cache"), 3 << 30)
    setting = Setting(cache, nursery)
    await setting.store()
    setting.blob = BlobInfo(DIGEST, (1 << 30) + 1, 0)
    setting.driver.size = setting.blob.size
    setting.driver.give_out(len(CONTENT))
    handle = await setting.open(verify=True)
    for offset in range(0, 5 * MIB, MIB):
        assert handle.read_nowait(offset, KIB128) is None
        with trio.fail_after(EARLY + 0.05), pytest.raises(BlobNotVerifiedYet):
            await handle.read(offset, KIB128)
    await handle.release()
    await cache.close()


async def test_a_blob_that_takes_longer_than_a_read_may(
    setting: Setting, told_early: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its reader is told how far it has come, in time; it is fetched to the end though he has left."""
    monkeypatch.setattr(contents_module, "_FINISHED", 0)
    setting.driver.give_out(5 * MIB)
    handle = await setting.open(verify=True)
    contents = setting.contents
    for _ in range(2):
        with trio.fail_after(EARLY + 0.4), pytest.raises(BlobNotVerifiedYet, match=rf"of {len(CONTENT)} bytes"):
            await handle.read(0, KIB128)
    await handle.release()
    setting.driver.give_out(1 << 60)
    with trio.fail_after(10):
        while not await setting.is_kept():
            await trio.sleep(0.005)  # it is being fetched
    setting.driver.reads.clear()
    again = await contents.open("/blob", setting.blob, await BlobStore(setting.driver).open(DIGEST))
    assert await read_all(again) == CONTENT
    assert setting.driver.reads == []
    await again.release()


async def test_a_verifying_reader_who_leaves_in_time(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody wants the blob any more: no more of it is fetched."""
    monkeypatch.setattr(contents_module, "_FINISHED", 0)
    setting.driver.give_out(2 * MIB)
    handle = await setting.open(verify=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(handle.read, 0, KIB128)
        await settled(lambda: bool(setting.driver.reads))
        nursery.cancel_scope.cancel()
    await handle.release()
    setting.driver.give_out(1 << 60)
    with trio.fail_after(10):
        while (new := await setting.cache.begin(DIGEST, len(CONTENT))) is None:
            await trio.sleep(0.005)  # it is being let go of
    await new.resume()
    assert new.written < len(CONTENT)
    new.leave(keep=False)


async def test_what_cannot_be_kept_cannot_be_verified(setting: Setting, tmp_path: Path) -> None:
    """A blob that is larger than the cache."""
    setting.cache = ContentCache(str(tmp_path / "small"), 2 * MIB)
    handle = await setting.open(verify=True)
    with pytest.raises(BlobUnverifiable, match="more than the cache may have"):
        await handle.read(0, 10)
    await handle.release()
    plain = await setting.open()
    assert await read_all(plain) == CONTENT
    await plain.release()
    await setting.cache.close()


async def test_one_that_does_not_fit_on_the_disk_is_in_the_way_of_no_other(setting: Setting, small_disk: Path) -> None:
    """The reason is the disk's, each time; what does fit can be verified and read at once."""
    setting.cache = ContentCache(str(small_disk / "cache"), 100 * MIB)
    small = CONTENT[:MIB]
    await setting.driver.put_content(BlobData(Digest.of(small)).path, small)
    for _ in range(2):
        handle = await setting.open(verify=True)
        with pytest.raises(BlobUnverifiable, match="No space left on device"):
            await handle.read(0, 10)
        await handle.release()
    handle = await setting.open(verify=True, content=small)
    assert await read_all(handle, MIB) == small
    await handle.release()
    await setting.cache.close()


async def test_leaving_early(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ends the fetching, unless it is nearly done; the next reader goes on from there."""
    monkeypatch.setattr(contents_module, "_FINISHED", MIB)
    setting.driver.give_out(4 * MIB)
    handle = await setting.open()
    assert await read_all(handle, MIB) == CONTENT[:MIB]
    partial = Path(setting.cache.directory) / "partial"
    await settled(lambda: any(path.stat().st_size >= MIB for path in partial.iterdir()))
    await handle.release()
    with trio.fail_after(10):
        while await setting.cache.begin(DIGEST, len(CONTENT)) is None:
            await trio.sleep(0.005)  # it is being let go of
    monkeypatch.setattr(contents_module, "_FINISHED", len(CONTENT))
    setting.driver.give_out(1 << 60)
    setting.driver.reads.clear()
    again = await setting.open()
    assert await read_all(again) == CONTENT
    await again.release()
    with trio.fail_after(10):
        while not await setting.is_kept():
            await trio.sleep(0.005)  # its last bytes are being written


async def test_storage_that_fails(setting: Setting) -> None:
    """Is the reader's error, and the next read asks again."""
    for verify in (False, True):
        handle = await setting.open(verify=verify)
        setting.driver.is_broken = True
        with pytest.raises(BackendFailure):
            await handle.read(0, KIB128)
        setting.driver.is_broken = False
        assert await read_all(handle) == CONTENT
        await handle.release()


async def test_a_file_that_is_lost_while_it_is_read(setting: Setting, caplog: pytest.LogCaptureFixture) -> None:
    """The reader goes on from storage, or with verification from a new copy."""
    for verify in (False, True):
        first = await setting.open(verify=True)
        assert await read_all(first) == CONTENT
        await first.release()
        handle = await setting.open(verify=verify)
        (file,) = (Path(setting.cache.directory) / "blobs").iterdir()
        with file.open("r+b") as stored:
            stored.seek(2 * MIB)
            stored.write(bytes(300_000))
        with caplog.at_level(logging.WARNING):
            assert await read_all(handle) == CONTENT
        assert "has lost" in caplog.text
        await handle.release()
