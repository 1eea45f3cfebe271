"""Uploads that are begun or ended while another node lists them: their files come and go one after the other.

Each of the two is stopped for a moment at each of its calls of the storage, while the other goes on.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import replace

import pytest
import trio
from harness.faulty_driver import Disk, FaultyDriver
from harness.invariants import upload_path
from trio.testing import MockClock as Clock

from layerfs.digest import Digest
from layerfs.driver.memory import MemoryDriver
from layerfs.errors import PathNotFound
from layerfs.registry import LayerService, Registry

NAME = "foo/bar"
UPLOADS = f"/docker/registry/v2/repositories/{NAME}/_uploads"
FILE_NAME = "layer.tar"
CONTENT = b"content"
UUID = "f81d4fae-7dec-4d0a-a765-00a0c91e6bf6"

#: More calls of the storage than any of this makes.
CALLS = 60

#: Seconds that a call takes that is stopped.
STOP = 0.1

#: Seconds within which an upload is listed of which nothing more comes.
PATIENCE = 0.5

#: What a node does, or lists.
Command = Callable[[LayerService], Awaitable[object]]


class Storage(MemoryDriver):
    """Storage that deletes what may go in any order in the one that is worst here: by name."""

    async def delete_in_steps(self, *steps: Sequence[str]) -> None:
        for path in [path for step in steps for path in sorted(step)]:
            with suppress(PathNotFound):
                await self.delete(path)


class FarAway(Storage):
    """As an object store: a listing tells of all files."""

    capabilities = replace(MemoryDriver.capabilities, listed_files=True)


class Node(FaultyDriver):
    """Storage as one node sees it."""

    def __init__(self, storage: Storage) -> None:
        super().__init__(Disk(storage))
        self.layers = Registry(self).repository(NAME).layers

    async def delete_in_steps(self, *steps: Sequence[str]) -> None:
        await Storage.delete_in_steps(self, *steps)  # type: ignore[arg-type]


@pytest.fixture(params=[Storage, FarAway], ids=["near", "far"])
async def storage(request: pytest.FixtureRequest) -> Storage:
    """An empty registry."""
    driver: Storage = request.param()
    await Registry.open(driver, create=True)
    return driver


async def begin(layers: LayerService) -> None:
    await (await layers.upload(file_name=FILE_NAME)).close()


async def write(layers: LayerService) -> None:
    async with await layers.upload(file_name=FILE_NAME) as upload:
        await upload.write(CONTENT)


async def finish(layers: LayerService) -> None:
    (found,) = await layers.upload_names()
    await (await layers.resume(found.uuid)).finish(Digest.of(CONTENT))


async def cancel(layers: LayerService) -> None:
    (found,) = await layers.upload_names()
    await (await layers.resume(found.uuid)).cancel()


async def nothing(_layers: LayerService) -> None:
    """No preparation."""


async def names(layers: LayerService) -> list[str]:
    return [upload.file_name for upload in await layers.upload_names()]


async def names_with_sizes(layers: LayerService) -> list[str]:
    """As commands list them that show the sizes as well."""
    return [upload.file_name for upload in await layers.uploads()]


async def crossing(
    storage: Storage, stopped: Command, call: int, other: Command, *, other_call: int = 0
) -> dict[str, object]:
    """What both give when the first is stopped at call number `call`; if there is no such call, the first alone.

    The other is stopped at `other_call`, if it comes to that, until the first has ended.
    """
    node, another = Node(storage), Node(storage)
    given: dict[str, object] = {}

    async def run_other() -> None:
        given["other"] = await other(another.layers)

    async with trio.open_nursery() as nursery:

        async def on_call(_what: str, _path: str) -> None:
            if node.calls == call:
                nursery.start_soon(run_other)
                await trio.sleep(STOP)

        async def on_other_call(_what: str, _path: str) -> None:
            if another.calls == other_call:
                given["other stopped"] = True
                await trio.sleep(2 * STOP)

        node.on_call, another.on_call = on_call, on_other_call
        given["stopped"] = await stopped(node.layers)
    return given


async def sweep(
    storage: Storage, prepare: Command, stopped: Command, other: Command, *, other_call: int = 0
) -> AsyncIterator[dict[str, object]]:
    """What `crossing` gives for each call in turn."""
    for call in range(1, CALLS):
        await prepare(Node(storage).layers)
        given = await crossing(storage, stopped, call, other, other_call=other_call)
        if "other" not in given:
            return
        yield given
        with suppress(PathNotFound):
            await storage.delete(UPLOADS)
    pytest.fail("it never ends")


CHANGES = [
    pytest.param(nothing, begin, id="begin"),
    pytest.param(write, finish, id="finish"),
    pytest.param(write, cancel, id="cancel"),
]


@pytest.mark.parametrize("listing", [names, names_with_sizes])
@pytest.mark.parametrize(("prepare", "change"), CHANGES)
async def test_listing_in_the_middle_of_a_change(
    storage: Storage, autojump_clock: Clock, prepare: Command, change: Command, listing: Command
) -> None:
    """An upload has its name or is not there, wherever the other node is."""
    async for given in sweep(storage, prepare, change, listing):
        assert given["other"] in ([], [FILE_NAME])


@pytest.mark.parametrize("listing", [names, names_with_sizes])
@pytest.mark.parametrize(("prepare", "change"), CHANGES)
async def test_a_change_in_the_middle_of_listing(
    storage: Storage, autojump_clock: Clock, prepare: Command, change: Command, listing: Command
) -> None:
    """The same if it comes and goes while somebody lists, whatever the listing has seen of it by then."""
    async for given in sweep(storage, prepare, listing, change):
        assert given["stopped"] in ([], [FILE_NAME])


@pytest.mark.parametrize(("prepare", "change"), CHANGES)
async def test_a_change_that_goes_on_in_the_middle_of_listing(
    storage: Storage, autojump_clock: Clock, prepare: Command, change: Command
) -> None:
    """The same if it was in the middle already when the listing began."""
    for other_call in range(1, CALLS):
        were_stopped = False
        async for given in sweep(storage, prepare, change, names, other_call=other_call):
            assert given["other"] in ([], [FILE_NAME])
            were_stopped = were_stopped or "other stopped" in given
        if not were_stopped:
            return
    pytest.fail("listing never ends")


async def left(storage: Storage, uuid: str, *files: str) -> None:
    """What somebody else has begun, and gone."""
    for file in ("startedat", *files):
        await storage.put_content(upload_path(NAME, uuid, file), b"2026-11-23T00:06:39Z")


async def test_what_a_crash_has_left(storage: Storage, autojump_clock: Clock) -> None:
    """Who died after the first file has left an upload; it is waited for once, and then listed at once."""
    await left(storage, UUID)
    layers = Node(storage).layers
    with trio.fail_after(PATIENCE):
        assert await names(layers) == [UUID]
    before = trio.current_time()
    assert await names(layers) == [UUID]
    assert trio.current_time() == before


async def test_what_a_crash_has_left_is_there(storage: Storage, autojump_clock: Clock) -> None:
    """Who asks for it by its UUID need not wait, and can go on with it, or remove it."""
    await left(storage, UUID)
    before = trio.current_time()
    upload = await Node(storage).layers.resume(UUID)
    assert trio.current_time() == before
    await upload.cancel()
    assert await names(Node(storage).layers) == []


async def test_what_a_registry_has_begun(storage: Storage, autojump_clock: Clock) -> None:
    """It has no name, and never will: it is listed at once, because there is more than its beginning."""
    await left(storage, UUID, "data" if type(storage) is Storage else "hashstates/sha256/0")
    before = trio.current_time()
    assert await names(Node(storage).layers) == [UUID]
    assert trio.current_time() == before


async def test_many_that_were_left(storage: Storage, autojump_clock: Clock) -> None:
    """Are not all just being begun, so nobody waits for them."""
    uuids = [f"{UUID[:-4]}{number:04}" for number in range(200)]
    for uuid in uuids:
        await left(storage, uuid)
    before = trio.current_time()
    assert await names(Node(storage).layers) == uuids
    assert trio.current_time() == before
