"""What meets in the middle: at every place where one of two operations waits, the other comes along. In-process only.

`crossing` stops the first at a call of the storage, lets the second run as far as it gets, and then both to their end.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import trio
import trio.testing
from harness.faulty_driver import Disk, Fault, FaultyDriver, InjectedFailure
from harness.shown import File, InProcess, blob, opened
from harness.storage import digest_of

from layerfs.digest import Digest
from layerfs.driver.interface import FileReader
from layerfs.driver.local import LocalDriver
from layerfs.driver.memory import MemoryDriver
from layerfs.errors import LayerfsError, PathNotFound, ShortRead
from layerfs.fuse.errnos import errno_of
from layerfs.registry import Registry
from layerfs.view.tree import ROOT_INO, Tree, TreeOptions

CONTENT = b"the content of a layer " * 5000
DIGEST = digest_of(CONTENT)
SHA512 = f"sha512:{hashlib.sha512(CONTENT).hexdigest()}"
WRONG = digest_of(b"something else")

#: More calls of the storage than any operation here makes.
CALLS = 40

#: What may be said to whoever loses.
LOST = (errno.EBUSY, errno.EBADF, errno.ENOENT, errno.EEXIST)

Work = Callable[[], Awaitable[object]]


@pytest.fixture
def driver() -> FaultyDriver:
    """Storage in memory, that can be stopped."""
    return FaultyDriver(Disk(MemoryDriver()))


@pytest.fixture
async def shown(driver: FaultyDriver, nursery: trio.Nursery) -> AsyncIterator[InProcess]:
    """A repository to play in."""
    registry = await Registry.open(driver, create=True)
    await registry.create_repository("a")
    shown = InProcess(Tree(registry, TreeOptions(metadata_ttl=3600.0), nursery), driver, "a")
    yield shown
    await trio.testing.wait_all_tasks_blocked()
    shown.assert_nothing_left()


async def outcome(work: Work) -> int:
    """The errno that it ended with, 0 if it succeeded."""
    try:
        await work()
    except OSError as error:
        return error.errno or -1
    except LayerfsError as error:
        return errno_of(error)
    return 0


async def crossing(driver: FaultyDriver, first: Work, second: Work, call: int) -> tuple[int, int] | None:
    """What became of both when the second came at call number `call` of the first; None if there is no such call."""
    arrived, go_on = trio.Event(), trio.Event()
    results: dict[str, int] = {}
    seen = 0

    async def on_call(what: str, path: str) -> None:
        nonlocal seen
        seen += 1
        if seen == call:
            arrived.set()
            await go_on.wait()

    async def run(name: str, work: Work) -> None:
        results[name] = await outcome(work)
        arrived.set()

    driver.on_call = on_call
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run, "first", first)
        await arrived.wait()
        if seen >= call:
            nursery.start_soon(run, "second", second)
            await trio.testing.wait_all_tasks_blocked()
        go_on.set()
    driver.on_call = None
    return (results["first"], results["second"]) if "second" in results else None


async def assert_consistent(shown: InProcess) -> None:
    """Listings, lookups and storage say the same; every blob is what its name says; nobody is left as a writer."""
    uploads = await shown.list(shown.uploads)
    for name in uploads:
        await shown.append(shown.upload(name), b"")
    for digest in await shown.list(shown.layers):
        content = await shown.read(shown.layer(digest))
        assert digest == f"sha512:{hashlib.sha512(content).hexdigest()}" or digest == digest_of(content)
        assert await shown.get(blob(digest_of(content))) == content
    fresh = InProcess(Tree(shown.tree.registry, TreeOptions(), shown.tree._state._nursery), shown._driver, "a")
    assert await fresh.list(fresh.uploads) == uploads
    assert await fresh.list(fresh.layers) == await shown.list(shown.layers)


OPERATIONS: dict[str, Callable[[InProcess], Work]] = {
    "finish": lambda shown: lambda: shown.rename(shown.upload("x"), shown.layer(DIGEST)),
    "finish wrongly": lambda shown: lambda: shown.rename(shown.upload("x"), shown.layer(WRONG)),
    "rename": lambda shown: lambda: shown.rename(shown.upload("x"), shown.upload("y")),
    "cancel": lambda shown: lambda: shown.remove(shown.upload("x")),
    "append": lambda shown: lambda: shown.append(shown.upload("x"), b"more"),
    "begin anew": lambda shown: lambda: shown.write(shown.upload("x"), b"new", os.O_TRUNC),
    "truncate": lambda shown: lambda: shown.truncate(shown.upload("x"), 100),
    "list": lambda shown: lambda: shown.list(shown.uploads),
    "list layers": lambda shown: lambda: shown.list(shown.layers),
    "read": lambda shown: lambda: shown.read(shown.upload("x")),
}


@pytest.mark.parametrize("first", ["finish", "finish wrongly", "rename", "cancel", "append", "truncate", "list"])
@pytest.mark.parametrize("second", OPERATIONS)
async def test_two_operations_on_one_upload(
    shown: InProcess, driver: FaultyDriver, nursery: trio.Nursery, first: str, second: str
) -> None:
    """At whatever call they meet: each succeeds or is told that it lost, and afterwards everything fits together."""
    for call in range(1, CALLS):
        await shown.write(shown.upload("x"), CONTENT)
        results = await crossing(driver, OPERATIONS[first](shown), OPERATIONS[second](shown), call)
        await trio.testing.wait_all_tasks_blocked()
        if results is None:
            break
        allowed = {0, *LOST, errno.EBADMSG}
        assert set(results) <= allowed, f"call {call}: {results}"
        await assert_consistent(shown)
        for name in await shown.list(shown.uploads):
            await shown.remove(shown.upload(name))
        if await shown.exists(shown.layer(DIGEST)):
            await driver.delete(f"/docker/registry/v2/repositories/a/_layers/sha256/{DIGEST[7:]}/link")
            shown.tree._state.layer_listings.forget("a")
    else:
        pytest.fail("an operation without an end")


@pytest.mark.parametrize("operation", OPERATIONS)
async def test_an_operation_that_is_given_up(
    shown: InProcess, driver: FaultyDriver, nursery: trio.Nursery, operation: str
) -> None:
    """Cancelled at whatever call, as by the deadline: everything fits together, and nobody is left as a writer."""
    for call in range(1, CALLS):
        await shown.write(shown.upload("x"), CONTENT)
        driver.arm(Fault(call, "before", "cancel"))
        with trio.CancelScope() as driver.scope:
            await outcome(OPERATIONS[operation](shown))
        struck = driver.has_struck
        driver.arm(None)
        await trio.testing.wait_all_tasks_blocked()
        if not struck:
            break
        shown.tree._state.upload_listings.forget("a")
        shown.tree._state.layer_listings.forget("a")
        await assert_consistent(shown)
        for name in await shown.list(shown.uploads):
            await shown.remove(shown.upload(name))
        if await shown.exists(shown.layer(DIGEST)):
            await driver.delete(f"/docker/registry/v2/repositories/a/_layers/sha256/{DIGEST[7:]}/link")
            shown.tree._state.layer_listings.forget("a")
    else:
        pytest.fail("an operation without an end")


ENDS: dict[str, Callable[[InProcess], Work]] = {
    "finish": OPERATIONS["finish"],
    "finish by sha512": lambda shown: lambda: shown.rename(shown.upload("x"), shown.layer(SHA512)),
    "cancel": OPERATIONS["cancel"],
}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("when", ["before", "after"])
async def test_an_end_that_fails_can_be_tried_again(
    shown: InProcess, driver: FaultyDriver, end: str, when: Literal["before", "after"]
) -> None:
    """Whatever call fails, and whether or not it took effect: who is told so finds the upload to do it again with.

    Who is told that it succeeded has a layer, or no upload any more.
    """
    for call in range(1, CALLS):
        await shown.write(shown.upload("x"), CONTENT)
        driver.arm(Fault(call, when, "fail"))
        failed = await outcome(ENDS[end](shown))
        struck = driver.has_struck
        driver.arm(None)
        await trio.testing.wait_all_tasks_blocked()
        if failed:
            assert await outcome(ENDS[end](shown)) == 0, f"after call {call} has failed"
        assert await shown.list(shown.uploads) == []
        assert await shown.exists(shown.layer(DIGEST)) == (end != "cancel")
        await assert_consistent(shown)
        if not struck:
            break
        for digest in await shown.list(shown.layers):
            await driver.delete(f"/docker/registry/v2/repositories/a/_layers/{digest.replace(':', '/')}/link")
        shown.tree._state.layer_listings.forget("a")
    else:
        pytest.fail("an operation without an end")


class Gate:
    """Stops the first call of a kind until it is opened."""

    def __init__(self, driver: FaultyDriver, what: str) -> None:
        self.arrived = trio.Event()
        self._open = trio.Event()
        self._what = what
        driver.on_call = self._on_call

    async def _on_call(self, what: str, path: str) -> None:
        if what == self._what and not self.arrived.is_set():
            self.arrived.set()
            await self._open.wait()

    def open(self) -> None:
        self._open.set()


async def test_opening_while_it_is_finished(shown: InProcess, driver: FaultyDriver) -> None:
    """EBUSY at once, however often; and the first attempt does not open the door for the second."""
    await shown.write(shown.upload("x"), CONTENT)
    gate = Gate(driver, "seal")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(shown.rename, shown.upload("x"), shown.layer(DIGEST))
        await gate.arrived.wait()
        for _ in range(3):
            with trio.fail_after(10), shown.refused(errno.EBUSY):
                await shown.append(shown.upload("x"), b"damage")
        gate.open()
    await shown.assert_is_layer(CONTENT)


@pytest.mark.parametrize("call", ["seal", "publish", "put_content", "delete"])
@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_RDWR])
async def test_reading_while_it_is_finished(shown: InProcess, driver: FaultyDriver, call: str, flags: int) -> None:
    """An open descriptor gets the same bytes all the time: from the upload, then from the layer, never none."""
    await shown.write(shown.upload("x"), CONTENT)
    contents = []

    async def read() -> None:
        contents.append(await file.read())

    async with opened(await shown.open(shown.upload("x"), flags)) as file:
        gate = Gate(driver, call)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(shown.rename, shown.upload("x"), shown.layer(DIGEST))
            await gate.arrived.wait()
            nursery.start_soon(read)
            await trio.testing.wait_all_tasks_blocked()
            gate.open()
        await read()
    assert contents == [CONTENT, CONTENT]


class RemovedIsGone(MemoryDriver):
    """As on object stores: who has a file open that is removed cannot read on."""

    async def open(self, path: str) -> FileReader:
        return _Reader(self, path, await super().open(path))


class _Reader(FileReader):
    def __init__(self, driver: RemovedIsGone, path: str, reader: FileReader) -> None:
        self._driver, self._path, self._reader = driver, path, reader
        self.size = reader.size

    def read_nowait(self, offset: int, length: int) -> None:
        """Nothing is there without asking."""

    async def read(self, offset: int, length: int) -> bytes:
        try:
            await self._driver.stat(self._path)
        except PathNotFound as error:
            raise ShortRead(self._path, "it was removed while it was open") from error
        return await self._reader.read(offset, length)

    def close(self) -> None:
        self._reader.close()


@pytest.mark.parametrize("call", ["seal", "publish", "put_content", "delete"])
async def test_reading_while_it_is_finished_where_removed_is_gone(nursery: trio.Nursery, call: str) -> None:
    """An open descriptor of the upload goes on with the layer, also if it comes when the upload has just gone."""
    driver = FaultyDriver(Disk(RemovedIsGone()))
    registry = await Registry.open(driver, create=True)
    await registry.create_repository("a")
    shown = InProcess(Tree(registry, TreeOptions(), nursery), driver, "a")
    await shown.write(shown.upload("x"), CONTENT)
    contents = []

    async def read() -> None:
        contents.append(await file.read(0, len(CONTENT)))

    async with opened(await shown.open(shown.upload("x"), os.O_RDONLY)) as file:
        await read()
        gate = Gate(driver, call)
        async with trio.open_nursery() as both:
            both.start_soon(shown.rename, shown.upload("x"), shown.layer(DIGEST))
            await gate.arrived.wait()
            both.start_soon(read)
            try:
                await trio.testing.wait_all_tasks_blocked()
            finally:
                gate.open()
        await read()
    assert contents == [CONTENT] * 3
    await shown.assert_is_layer(CONTENT)


async def test_closing_while_it_is_finished(shown: InProcess, driver: FaultyDriver) -> None:
    """All is in storage, so there is nothing that the close could fail with."""
    file = await shown.open(shown.upload("x"), os.O_WRONLY | os.O_CREAT)
    await file.write(CONTENT)
    await file.sync()
    gate = Gate(driver, "seal")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(shown.rename, shown.upload("x"), shown.layer(DIGEST))
        await gate.arrived.wait()
        await file.flush()
        gate.open()
    await file.close()
    await shown.assert_is_layer(CONTENT)


async def test_reads_at_the_same_time(shown: InProcess) -> None:
    """Through one descriptor, while the upload grows: each gets its bytes."""
    await shown.write(shown.upload("x"), CONTENT)
    pieces: dict[int, bytes] = {}

    async def read(offset: int) -> None:
        pieces[offset] = await file.read(offset, 10_000)

    async with opened(await shown.open(shown.upload("x"))) as file, trio.open_nursery() as nursery:
        for offset in range(0, len(CONTENT) + 20_000, 10_000):
            nursery.start_soon(read, offset)
        nursery.start_soon(shown.append, shown.upload("x"), b"more" * 1000)
    content = CONTENT + b"more" * 1000
    for offset, piece in pieces.items():
        assert content[offset : offset + 10_000].startswith(piece)
        assert len(piece) >= min(10_000, len(CONTENT) - offset)


async def test_a_finish_that_ends_after_its_deadline(
    shown: InProcess, driver: FaultyDriver, autojump_clock: trio.testing.MockClock
) -> None:
    """Its last steps have a time of their own; then it was successful, and the inode is the layer's."""
    await shown.write(shown.upload("x"), CONTENT)

    async def slow(what: str, path: str) -> None:
        if what == "delete":
            await trio.sleep(10)

    async with opened(await shown.open(shown.upload("x"))) as file:
        driver.on_call = slow
        with trio.move_on_after(5) as deadline:
            await shown.rename(shown.upload("x"), shown.layer(DIGEST))
        driver.on_call = None
        assert not deadline.cancelled_caught
        assert (await file.status()).permissions == 0o444
    await shown.assert_is_layer(CONTENT)


async def test_uploads_that_begin_at_the_same_time(driver: FaultyDriver, nursery: trio.Nursery) -> None:
    """Are no more than may be written."""
    registry = await Registry.open(driver, create=True)
    await registry.create_repository("a")
    shown = InProcess(Tree(registry, TreeOptions(max_uploads=2), nursery), driver, "a")
    results = []

    async def begin(number: int) -> None:
        try:
            files.append(await shown.open(shown.upload(f"x{number}"), os.O_WRONLY | os.O_CREAT))
        except OSError as error:
            results.append(error.errno)

    files: list[File] = []
    async with trio.open_nursery() as beginners:
        for number in range(5):
            beginners.start_soon(begin, number)
    assert (len(files), results) == (2, [errno.EDQUOT] * 3)
    for file in files:
        await file.close()


async def test_listing_while_an_upload_begins(
    shown: InProcess, driver: FaultyDriver, autojump_clock: trio.testing.MockClock
) -> None:
    """It is not there before it has its name, however long storage takes over it; but then its repository stays."""
    listed = []

    async def look(_what: str, path: str) -> None:
        driver.on_call = None
        shown.tree._state.upload_listings.forget("a")
        listed.append(await shown.list(shown.uploads))
        if path.endswith(("/layerfs-name", "/data")):
            assert await outcome(functools.partial(shown.remove_directory, "a")) == errno.ENOTEMPTY
        driver.on_call = look

    driver.on_call = look
    file = await shown.open(shown.upload("x"), os.O_WRONLY | os.O_CREAT)
    driver.on_call = None
    assert len(listed) > 3
    assert listed == [[]] * len(listed)
    assert await shown.list(shown.uploads) == ["x"]
    await file.close()


async def test_room_while_an_upload_is_closed(driver: FaultyDriver, nursery: trio.Nursery) -> None:
    """Who has closed one can begin the next: his `close` returns while storage still has to do with it."""
    registry = await Registry.open(driver, create=True)
    await registry.create_repository("a")
    shown = InProcess(Tree(registry, TreeOptions(max_uploads=1), nursery), driver, "a")
    file = await shown.open(shown.layer(WRONG), os.O_WRONLY | os.O_CREAT)
    await file.write(CONTENT)

    async def close() -> None:
        with shown.refused(errno.EBADMSG):
            await file.close()

    gate = Gate(driver, "delete")
    async with trio.open_nursery() as closing:
        closing.start_soon(close)
        await gate.arrived.wait()
        await shown.write(shown.upload("x"), CONTENT)
        gate.open()
    assert await shown.list(shown.uploads) == ["x"]


async def test_a_layer_that_could_not_be_cancelled(shown: InProcess, driver: FaultyDriver) -> None:
    """What a wrong copy to `_layers` leaves if storage fails is an upload that can be seen, and removed."""
    file = await shown.open(shown.layer(WRONG), os.O_WRONLY | os.O_CREAT)
    await file.write(CONTENT)
    with shown.refused(errno.EBADMSG):
        await file.flush()

    async def fail(what: str, path: str) -> None:
        if what == "delete":
            driver.arm(Fault(1, "before", "fail"))
            driver.calls = 1

    driver.on_call = fail
    with pytest.raises(InjectedFailure):
        await file.close()
    driver.on_call = None
    driver.arm(None)
    (left,) = await shown.list(shown.uploads)
    assert await shown.read(shown.upload(left)) == CONTENT
    await shown.remove(shown.upload(left))


async def test_a_listing_while_a_wrong_layer_is_taken_back(shown: InProcess, driver: FaultyDriver) -> None:
    """What was to become a layer, and does not, is never listed as an upload, also if the listing began before."""
    for call in range(1, CALLS):
        file = await shown.open(shown.layer(WRONG), os.O_WRONLY | os.O_CREAT)
        await file.write(CONTENT)
        listed: list[str] = []

        async def look(listed: list[str] = listed) -> None:
            listed += await shown.list(shown.uploads)

        met = await crossing(driver, look, file.close, call)
        assert listed == []
        if met is None:
            assert await outcome(file.close) == errno.EBADMSG
            break
        assert met == (0, errno.EBADMSG)
    else:
        pytest.fail("an operation without an end")


async def test_the_end_of_the_mount(shown: InProcess, driver: FaultyDriver) -> None:
    """Every open upload gets its last bytes, also after one that cannot be stored."""
    files = [await shown.open(shown.upload(name), os.O_WRONLY | os.O_CREAT) for name in "xyz"]
    for file in files:
        await file.write(CONTENT)
    driver.arm(Fault(1, "before", "fail"))
    with pytest.raises(LayerfsError):
        await shown.tree.close()
    driver.arm(None)
    stored = [await shown.get(f"{path}/data") for path in await _upload_directories(driver)]
    assert sorted(stored, key=len) == [b"", CONTENT, CONTENT]
    for file in files:
        await outcome(file.close)


async def _upload_directories(driver: FaultyDriver) -> list[str]:
    uploads = "/docker/registry/v2/repositories/a/_uploads"
    return [f"{uploads}/{entry.name}" for entry in await driver.list(uploads)]


async def test_a_writer_that_has_failed(shown: InProcess, driver: FaultyDriver) -> None:
    """Keeps failing, nobody finishes what it has lost, and after its close one can go on from what is there."""
    file = await shown.open(shown.upload("x"), os.O_WRONLY | os.O_CREAT)
    await file.write(CONTENT[:1000])
    await file.sync()
    await file.write(b"lost", 1000)
    driver.arm(Fault(1, "before", "fail"))
    with shown.refused(errno.EIO):
        await file.sync()
    driver.arm(None)
    with shown.refused(errno.EIO):
        await file.write(b"more", 1000)
    with shown.refused(errno.EBUSY):
        await shown.rename(shown.upload("x"), shown.layer(digest_of(CONTENT[:1000])))
    with shown.refused(errno.EIO):
        await file.close()
    await shown.append(shown.upload("x"), CONTENT[1000:])
    await shown.rename(shown.upload("x"), shown.layer(DIGEST))
    await shown.assert_is_layer(CONTENT)


async def test_an_idle_upload_has_nothing_open(nursery: trio.Nursery, tmp_path: Path) -> None:
    """However it was used: there may be many of them, and their number is no cap on descriptors."""
    local = LocalDriver(str(tmp_path / "storage"), create=True)
    registry = await Registry.open(local, create=True)
    await registry.create_repository("a")
    shown = InProcess(Tree(registry, TreeOptions(), nursery), local, "a")
    async with opened(await shown.open(shown.upload("x"), os.O_RDWR | os.O_CREAT)) as file:
        await file.write(CONTENT)
        assert await file.read() == CONTENT
    await trio.testing.wait_all_tasks_blocked()
    descriptors = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
    links = [os.readlink(descriptor) for descriptor in descriptors if os.path.lexists(descriptor)]
    assert not [link for link in links if link.startswith(f"{tmp_path}/") and "/_uploads" in link]
    await local.close()


@pytest.mark.parametrize("is_far", [False, True], ids=["near", "far"])
async def test_opening_what_another_node_has_finished(
    driver: FaultyDriver, nursery: trio.Nursery, is_far: bool
) -> None:
    """Its name is free for whoever was just writing it here, and looks it up again when he is told so."""
    driver.capabilities = replace(driver.capabilities, listed_files=is_far)
    registry = await Registry.open(driver, create=True)
    await registry.create_repository("a")
    shown = InProcess(Tree(registry, TreeOptions(metadata_ttl=3600.0), nursery), driver, "a")
    async with opened(await shown.open(shown.upload("x"), os.O_WRONLY | os.O_CREAT)) as file:
        await file.write(CONTENT)
    await trio.testing.wait_all_tasks_blocked()
    elsewhere = Registry(driver.disk.driver).repository("a").layers
    (found,) = await elsewhere.uploads()
    await (await elsewhere.resume(found.uuid)).finish(Digest.parse(DIGEST))
    async with opened(await shown.open(shown.upload("x"), os.O_RDWR | os.O_CREAT)) as file:
        assert await file.read() == b""
    assert [upload.uuid for upload in await elsewhere.uploads()] != [found.uuid]


async def test_a_reader_after_its_writer_has_failed(shown: InProcess, driver: FaultyDriver) -> None:
    """What is in storage is read, and its size shown, before the failed writer's descriptor is gone for everybody."""
    writing = await shown.open(shown.upload("x"), os.O_WRONLY | os.O_CREAT)
    await writing.write(b"stored")
    await writing.sync()
    await writing.write(b"lost", 6)
    driver.arm(Fault(1, "before", "fail"))
    assert await outcome(writing.sync) == errno.EIO
    driver.arm(None)
    reading = await shown.open(shown.upload("x"))
    assert await reading.read() == b"stored"
    await reading.close()
    assert (await shown.stat(shown.upload("x"))).size == 6
    assert await outcome(writing.close) == errno.EIO  # once more: the bytes are lost


async def test_a_listing_from_memory_is_believed_no_longer_than_a_new_one(
    driver: FaultyDriver, nursery: trio.Nursery
) -> None:
    """Together with what the kernel remembers, nothing is believed longer than the time to live."""
    registry = await Registry.open(driver, create=True)
    await registry.create_repository("a")
    shown = InProcess(Tree(registry, TreeOptions(metadata_ttl=60.0), nursery), driver, "a")
    await shown.put_layer(CONTENT)
    timeouts = []
    for _ in range(2):
        ino, _ = await shown.tree.lookup(ROOT_INO, b"a")
        layers, _ = await shown.tree.lookup(ino, b"_layers")
        handle = await shown.tree.open_directory(layers)
        (entry,) = shown.tree.directory(handle).entries
        timeouts.append(entry.attributes.entry_timeout)
        shown.tree.release_directory(handle)
        await trio.sleep(0.01)  # for the clock to go on
    assert 60.0 >= timeouts[0] > timeouts[1] + 0.009
