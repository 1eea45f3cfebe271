"""How many requests things cost on Azure and Google Cloud Storage, counted by a proxy."""

from __future__ import annotations

import pytest
import trio

from layerfs.driver.interface import StorageDriver
from layerfs.errors import PathNotFound


async def put_all(driver: StorageDriver, paths: list[str], content: bytes = b"") -> None:
    """Puts many files, no more at a time than keep the emulator busy."""
    limiter = trio.CapacityLimiter(32)

    async def put(path: str) -> None:
        async with limiter:
            await driver.put_content(path, content)

    async with trio.open_nursery() as nursery:
        for path in paths:
            nursery.start_soon(put, path)


async def test_small_things_cost_one_request(place) -> None:
    """Putting, getting, looking, listing; reading costs one for each range, and opening one."""
    driver = place.driver()
    asked: list[tuple[str, int]] = []

    async def count(what: str, awaitable) -> object:
        place.forget()
        result = await awaitable
        asked.append((what, len(place.relay.seen)))
        return result

    await count("put", driver.put_content("/a/link", b"content"))
    await count("get", driver.get_content("/a/link", limit=100))
    await count("stat", driver.stat("/a/link"))
    await count("list", driver.list("/a"))
    reader = await count("open", driver.open("/a/link"))
    await count("read", reader.read(2, 3))
    await count("read beyond the end", reader.read(7, 1))
    known = await driver.open_known(await driver.stat("/a/link"))
    await count("read what is known", known.read(0, 7))
    await count("delete", driver.delete("/a/link"))
    assert asked == [
        ("put", 1),
        ("get", 1),
        ("stat", 1),
        ("list", 1),
        ("open", 1),
        ("read", 1),
        ("read beyond the end", 0),
        ("read what is known", 1),
        ("delete", 2),
    ]


async def test_a_file_that_is_missing_costs_one_request(place) -> None:
    """Links are looked for where there are none all the time."""
    driver = place.driver()
    await driver.put_content("/a", b"")
    place.forget()
    for path in ("/missing", "/a/below"):
        with pytest.raises(PathNotFound):
            await driver.get_content(path, limit=10)
    assert len(place.relay.seen) == 2


async def test_many_are_asked_for_side_by_side(place) -> None:
    """One request for each, and the files of a whole tree by one listing."""
    driver = place.driver()
    paths = [f"/many/{number}/{number:03}" for number in range(100)]
    await put_all(driver, paths, b"x")
    place.forget()
    assert [info.size for info in await driver.stat_many(paths)] == [1] * 100
    assert len(place.relay.seen) == 100
    place.forget()
    assert await driver.get_contents(paths, limit=1) == [b"x"] * 100
    assert len(place.relay.seen) == 100
    place.forget()
    found = await driver.list_files("/many")
    assert sorted((info.path, info.size, info.is_directory) for info in found) == [
        (path, 1, False) for path in sorted(paths)
    ]
    assert len(place.relay.seen) == 1


async def test_more_than_a_page_of_keys_on_google(gcs) -> None:
    """A thousand are listed by one request; neighbours stay when they are deleted."""
    names = [f"{number:04}" for number in range(1100)]
    driver = gcs.driver()
    await put_all(driver, [f"/many/{name}" for name in names] + ["/many-neighbour"])
    gcs.forget()
    assert sorted(entry.name for entry in await driver.list("/many")) == names
    assert gcs.relay.counts == {"list": 2}
    gcs.forget()
    await driver.delete("/many")
    assert gcs.relay.counts["batch"] == 11
    assert len(gcs.relay.seen) <= 15
    assert gcs.paths() == ["/many-neighbour"]


async def test_more_than_a_batch_of_keys_on_azure(azure) -> None:
    """256 are deleted by one request; neighbours stay."""
    names = [f"{number:04}" for number in range(300)]
    driver = azure.driver(**azure.directly)
    await put_all(driver, [f"/many/{name}" for name in names] + ["/many-neighbour"])
    counted = azure.driver()
    assert sorted(entry.name for entry in await counted.list("/many")) == names
    assert azure.relay.counts == {"list": 1}
    azure.forget()
    await counted.delete("/many")
    assert azure.relay.counts == {"list": 1, "batch": 2}
    assert azure.paths() == ["/many-neighbour"]


async def test_files_are_deleted_together(azure, gcs) -> None:
    """Wherever they are, without looking for them: 256 by one request on Azure, 100 on Google."""
    paths = [f"/many/{number}/link" for number in range(120)]
    for place, batches in ((azure, 1), (gcs, 2)):
        driver = place.driver()
        await put_all(driver, [*paths, "/many/0/other"])
        place.forget()
        await driver.delete_files([*paths, "/many/missing"])
        assert place.relay.counts == {"batch": batches}
        assert place.paths() == ["/many/0/other"]


@pytest.mark.soak
async def test_more_than_a_page_of_keys_on_azure(azure) -> None:
    """Five thousand are listed by one request."""
    names = [f"{number:04}" for number in range(5050)]
    driver = azure.driver(**azure.directly)
    await put_all(driver, [f"/many/{name}" for name in names])
    counted = azure.driver()
    assert sorted(entry.name for entry in await counted.list("/many")) == names
    assert azure.relay.counts == {"list": 2}
    await driver.delete("/many")
    with pytest.raises(PathNotFound):
        await driver.list("/many")
