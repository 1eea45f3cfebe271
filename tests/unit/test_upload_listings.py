"""What is known of uploads without asking storage: never older than what was done here, and asked for in time."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
import trio
import trio.testing
from harness.clock import Clock

from layerfs.driver.interface import Files, Stats
from layerfs.driver.memory import MemoryDriver
from layerfs.errors import BackendFailure, LayerUploadUnknown
from layerfs.registry import ListedUpload, Registry
from layerfs.view.upload_listings import UploadListing, UploadListings

TTL = 10.0
UPLOADS = "/docker/registry/v2/repositories/a/_uploads"


class FarAway(MemoryDriver):
    """Storage where listings tell of all files but not how long uploads are, and that can be slow, or fail."""

    capabilities = replace(MemoryDriver.capabilities, listed_files=True)

    def __init__(self) -> None:
        super().__init__()
        self.listings = 0
        self.looks: list[list[str]] = []
        self._is_listing = False
        #: What happens while uploads are listed, and while they are looked at: before the answer, or with it.
        self.while_listing: Callable[[], Awaitable[None]] | None = None
        self.while_looking: Callable[[], Awaitable[None]] | None = None

    async def list_files(self, path: str) -> Files:
        self._is_listing = True
        try:
            found = await super().list_files(path)
        finally:
            self._is_listing = False
        if path == UPLOADS:
            self.listings += 1
            if self.while_listing is not None:
                await self.while_listing()
        return found

    async def stat_many(self, paths: Sequence[str]) -> Stats:
        found = await super().stat_many(paths)
        looked_at = [path.split("/")[-2] for path in paths if path.endswith("/data")]
        if looked_at and not self._is_listing:
            self.looks.append(looked_at)
            if self.while_looking is not None:
                await self.while_looking()
        return found

    async def begin(self, uuid: str, name: str, size: int = 0) -> None:
        """Somebody else begins an upload."""
        await self.put_content(f"{UPLOADS}/{uuid}/startedat", b"2026-01-01T00:00:00Z")
        await self.put_content(f"{UPLOADS}/{uuid}/layerfs-name", name.encode())
        await self.put_content(f"{UPLOADS}/{uuid}/data", b"x" * size)


@pytest.fixture
async def driver() -> FarAway:
    """A repository without uploads."""
    driver = FarAway()
    await (await Registry.open(driver, create=True)).create_repository("a")
    return driver


@pytest.fixture
def registry(driver: FarAway) -> Registry:
    return Registry(driver)


@pytest.fixture
def listings(registry: Registry, clock: Clock) -> UploadListings:
    """Nothing is known yet."""
    return UploadListings(TTL, lambda name: registry.repository(name).layers, is_far=True)


async def names(listings: UploadListings) -> list[str]:
    return [upload.file_name for upload in await listings.shown("a")]


def upload(uuid: str, name: str, age: int) -> ListedUpload:
    return ListedUpload(uuid, name, datetime(2026, 1, 1, tzinfo=UTC) - timedelta(seconds=age), None)


# --- names -----------------------------------------------------------------------------------------------------------


def test_names_are_distinct_whatever_happens() -> None:
    """The oldest has the name; when it goes, or is called otherwise, the next one has it."""
    listing = UploadListing([upload("u1", "x", 3), upload("u2", "x", 5), upload("u3", "x", 4), upload("u4", "y", 1)])

    def shown() -> dict[str, str]:
        found = {name: upload.uuid for name, upload in listing.shown()}
        for name, uuid in found.items():
            known = listing.find(name)
            assert known is not None
            assert known.uuid == uuid
        assert all(listing.shown()[listing.position(uuid)][1].uuid == uuid for uuid in found.values())
        assert list(found) == sorted(found)
        return found

    assert shown() == {"x": "u2", "u1": "u1", "u3": "u3", "y": "u4"}
    assert listing.find("u2") is None
    listing.rename("u2", "z")
    assert shown() == {"z": "u2", "u1": "u1", "x": "u3", "y": "u4"}
    listing.remove("u3")
    assert shown() == {"z": "u2", "x": "u1", "y": "u4"}
    listing.put(upload("u5", "x", 9))
    assert shown() == {"z": "u2", "u1": "u1", "x": "u5", "y": "u4"}
    listing.remove("u5")
    listing.remove("u5")
    listing.rename("u5", "y")
    assert shown() == {"z": "u2", "x": "u1", "y": "u4"}


def test_nobody_takes_the_uuid_of_another_for_a_name() -> None:
    """However old it is."""
    listing = UploadListing([upload("u1", "u2", 9), upload("u2", "u2", 1)])
    assert {name: upload.uuid for name, upload in listing.shown()} == {"u1": "u1", "u2": "u2"}
    listing.remove("u2")
    assert {name: upload.uuid for name, upload in listing.shown()} == {"u2": "u1"}


# --- listings --------------------------------------------------------------------------------------------------------


async def test_a_listing_holds_from_when_the_answer_was_there(
    driver: FarAway, listings: UploadListings, clock: Clock
) -> None:
    """For the time to live; one that takes longer holds as long as it took."""
    await driver.begin("u1", "x")

    async def be_slow(seconds: float) -> None:
        clock.now += seconds

    for seconds, holds in ((1.0, TTL), (3 * TTL, 3 * TTL)):
        driver.while_listing = functools.partial(be_slow, seconds)
        before = driver.listings
        assert await names(listings) == ["x"]
        clock.now += holds - 0.1
        assert await names(listings) == ["x"]
        assert driver.listings == before + 1
        clock.now += 0.1
    await names(listings)
    assert driver.listings == 3


async def test_a_look_holds_from_when_the_answer_was_there(
    driver: FarAway, listings: UploadListings, clock: Clock
) -> None:
    """As a listing does."""
    await driver.begin("u1", "x", 1)

    async def be_slow(seconds: float) -> None:
        clock.now += seconds

    for seconds, holds in ((1.0, TTL), (3 * TTL, 3 * TTL)):
        driver.while_looking = functools.partial(be_slow, seconds)
        before = len(driver.looks)
        await listings.look("a", "u1")
        clock.now += holds - 0.1
        await listings.look("a", "u1")
        assert len(driver.looks) == before + 1
        clock.now += 0.1
    await listings.look("a", "u1")
    assert len(driver.looks) == 3


async def test_nothing_is_kept_without_time(driver: FarAway, registry: Registry, clock: Clock) -> None:
    """`--metadata-ttl 0`: each who asks is answered by a listing that was begun afterwards, and by no more of them."""
    listings = UploadListings(0.0, lambda name: registry.repository(name).layers, is_far=True)
    await driver.begin("u1", "x", 1)
    for _ in range(2):
        await names(listings)
        assert (await listings.look("a", "u1")).size == 1
    assert driver.listings == 2
    assert driver.looks == [["u1"], ["u1"]]

    go_on = trio.Event()
    driver.while_listing = go_on.wait
    async with trio.open_nursery() as nursery:
        nursery.start_soon(names, listings)
        await trio.testing.wait_all_tasks_blocked()
        clock.now += 1.0
        for _ in range(5):
            nursery.start_soon(names, listings)
        await trio.testing.wait_all_tasks_blocked()
        clock.now += 1.0
        go_on.set()
    assert driver.listings == 4


async def test_many_who_ask_are_answered_by_one_listing(driver: FarAway, listings: UploadListings) -> None:
    """All of them wait for it; if who has asked is cancelled, another one asks."""
    await driver.begin("u1", "x")
    scope, answers = trio.CancelScope(), []

    async def first() -> None:
        with scope:
            await names(listings)

    async def another() -> None:
        answers.append(await names(listings))

    driver.while_listing = trio.testing.wait_all_tasks_blocked
    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(another)
    assert answers == [["x"]] * 5
    assert driver.listings == 1
    listings.forget("a")
    driver.while_listing = trio.sleep_forever
    async with trio.open_nursery() as nursery:
        nursery.start_soon(first)
        await trio.testing.wait_all_tasks_blocked()
        driver.while_listing = None
        nursery.start_soon(another)
        await trio.testing.wait_all_tasks_blocked()
        assert driver.listings == 2
        scope.cancel()
    assert answers[-1] == ["x"]


async def test_a_listing_that_fails_fails_for_all_who_wait(driver: FarAway, listings: UploadListings) -> None:
    """Not one after the other, each after its own time; and who asks afterwards asks anew."""
    failures = []

    async def fail() -> None:
        await trio.testing.wait_all_tasks_blocked()
        raise BackendFailure(UPLOADS, "no answer")

    async def ask() -> None:
        with pytest.raises(BackendFailure) as caught:
            await names(listings)
        failures.append(str(caught.value))

    await driver.begin("u1", "x")
    driver.while_listing = fail
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(ask)
    assert driver.listings == 1
    assert len(failures) == 3
    driver.while_listing = None
    assert await names(listings) == ["x"]


async def test_what_is_done_while_uploads_are_listed(
    driver: FarAway, registry: Registry, listings: UploadListings
) -> None:
    """The answer is older than that, and what is kept is not."""
    for uuid, name in (("u1", "kept"), ("u2", "old"), ("u3", "removed")):
        await driver.begin(uuid, name, 3)
    layers = registry.repository("a").layers

    async def change() -> None:
        driver.while_listing = None
        await driver.begin("u4", "new", 4)
        listings.began("a", await layers.stat_upload("u4"))
        await layers.rename_upload("u2", "renamed")
        listings.renamed("a", "u2", "renamed")
        await (await layers.resume("u3")).cancel()
        listings.removed("a", "u3")

    driver.while_listing = change
    assert await names(listings) == ["kept", "new", "renamed"]
    assert await names(listings) == ["kept", "new", "renamed"]
    assert driver.listings == 1


async def test_after_a_change_of_which_nobody_knows_what_it_was(driver: FarAway, listings: UploadListings) -> None:
    """Storage is asked again; also if it was being asked at that moment."""
    await driver.begin("u1", "x", 1)

    async def change() -> None:
        driver.while_listing = None
        await driver.begin("u2", "y")
        listings.forget("a")

    driver.while_listing = change
    assert await names(listings) == ["x"]
    assert await names(listings) == ["x", "y"]
    await driver.put_content(f"{UPLOADS}/u1/data", b"22")
    listings.forget("a")
    assert (await listings.look("a", "u1")).size == 2


# --- looks -----------------------------------------------------------------------------------------------------------


async def test_who_looks_at_all_of_them_asks_for_each_once(
    driver: FarAway, listings: UploadListings, clock: Clock
) -> None:
    """More and more at a time, up to a bound; and again when the time is over."""
    for number in range(1000):
        await driver.begin(f"u{number:04}", f"layer-{number:04}", number % 7)

    async def look_at_all() -> None:
        for upload in await listings.shown("a"):
            for _ in range(2):
                assert (await listings.look("a", upload.uuid)).size == int(upload.uuid[1:]) % 7

    await look_at_all()
    assert [uuid for looks in driver.looks for uuid in looks] == [f"u{number:04}" for number in range(1000)]
    assert [len(looks) for looks in driver.looks] == [16, 32, 64, 128, 256, 256, 248]
    await look_at_all()
    assert len(driver.looks) == 7
    assert driver.listings == 1
    clock.now += TTL
    await look_at_all()
    assert len(driver.looks) == 14


async def test_who_looks_at_one_asks_for_one(driver: FarAway, listings: UploadListings, clock: Clock) -> None:
    """Also if it is looked at one here and one there, and if the directory was listed a long time ago."""
    for number in range(100):
        await driver.begin(f"u{number:02}", f"layer-{number:02}", number)
    await names(listings)
    clock.now += TTL
    for number in (50, 10, 90, 0):
        found = await listings.find("a", f"layer-{number:02}")
        assert found is not None
        assert (await listings.look("a", found.uuid)).size == number
    assert driver.looks == [["u50"], ["u10"], ["u90"], ["u00"]]


async def test_who_does_something_after_each_look_asks_for_few_in_vain(
    driver: FarAway, listings: UploadListings, clock: Clock
) -> None:
    """As `rm` does: what was asked for ahead is too old when it comes to it."""
    for number in range(300):
        await driver.begin(f"u{number:03}", f"layer-{number:03}")
    for upload in await listings.shown("a"):
        await listings.look("a", upload.uuid)
        clock.now += TTL / 4
        listings.removed("a", upload.uuid)
    assert sum(map(len, driver.looks)) <= 1.6 * 300


async def test_many_who_look_at_one_ask_for_it_once(driver: FarAway, listings: UploadListings) -> None:
    """They wait for the same answer; if who has asked is cancelled, another one asks."""
    await driver.begin("u1", "x", 5)
    await names(listings)
    scope, sizes = trio.CancelScope(), []

    async def first() -> None:
        with scope:
            await listings.look("a", "u1")

    async def another() -> None:
        sizes.append((await listings.look("a", "u1")).size)

    driver.while_looking = trio.sleep_forever
    async with trio.open_nursery() as nursery:
        nursery.start_soon(first)
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(5):
            nursery.start_soon(another)
        await trio.testing.wait_all_tasks_blocked()
        assert len(driver.looks) == 1
        driver.while_looking = None
        scope.cancel()
    assert sizes == [5] * 5
    assert len(driver.looks) == 2


async def test_what_is_written_while_it_is_looked_at(
    driver: FarAway, registry: Registry, listings: UploadListings
) -> None:
    """The answer is older than that, and what is kept is not."""
    await driver.begin("u1", "x", 5)
    await names(listings)

    async def write() -> None:
        driver.while_looking = None
        await driver.put_content(f"{UPLOADS}/u1/data", b"x" * 77)
        listings.changed("a", "u1", await registry.repository("a").layers.stat_upload("u1"))

    driver.while_looking = write
    await listings.look("a", "u1")
    assert (await listings.look("a", "u1")).size == 77


async def test_an_upload_that_is_gone(driver: FarAway, listings: UploadListings, clock: Clock) -> None:
    """Who looks at it is told, and it is not listed any more; one without bytes is still there."""
    for uuid, name in (("u1", "gone"), ("u2", "without"), ("u3", "other")):
        await driver.begin(uuid, name, 3)
    await names(listings)
    await driver.delete(f"{UPLOADS}/u1")
    await driver.delete(f"{UPLOADS}/u2/data")
    with pytest.raises(LayerUploadUnknown):
        await listings.look("a", "u1")
    assert (await listings.look("a", "u2")).size == 0
    assert await names(listings) == ["other", "without"]
    assert driver.listings == 1
    with pytest.raises(LayerUploadUnknown):
        await listings.look("a", "u1")


async def test_near_storage_is_asked_each_time(driver: FarAway, registry: Registry, clock: Clock) -> None:
    """Somebody may be appending, and the size is where to resume."""
    listings = UploadListings(TTL, lambda name: registry.repository(name).layers, is_far=False)
    await driver.begin("u1", "x", 1)
    await names(listings)
    for size in (2, 3):
        await driver.put_content(f"{UPLOADS}/u1/data", b"x" * size)
        assert (await listings.look("a", "u1")).size == size


# --- memory ----------------------------------------------------------------------------------------------------------


async def test_only_so_many_repositories(
    registry: Registry, listings: UploadListings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that were not used for the longest time go; nobody notices but that storage is asked again."""
    monkeypatch.setattr("layerfs.view.upload_listings._REPOSITORIES_KEPT", 2)
    for name in ("a", "b", "c"):
        assert await listings.find(name, "x") is None
    assert listings.misses == 3
    for name in ("b", "c"):
        await listings.find(name, "x")
    assert (listings.hits, listings.misses) == (2, 3)
    await listings.find("a", "x")
    assert (listings.hits, listings.misses) == (2, 4)
