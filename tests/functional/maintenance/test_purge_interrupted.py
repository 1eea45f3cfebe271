"""A purge that is cut off at every call of the driver, in every way, and then repeated."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trio
from harness.faulty_driver import Disk, Fault, FaultyDriver, InjectedFailure, ProcessDied
from harness.handmade import REPOSITORIES, Tree, ago

from layerfs.driver.local import LocalDriver
from layerfs.driver.memory import MemoryDriver
from layerfs.registry import Registry
from layerfs.registry.maintenance import check, purge_uploads

MOST_CALLS = 200

WAYS = [("memory", "fail"), ("memory", "die"), ("memory", "power"), ("memory", "cancel"), ("local", "die")]


async def purge(registry: Registry, *, later: timedelta = timedelta(hours=2)) -> list[str]:
    async with aclosing(purge_uploads(registry, now=datetime.now(UTC) + later)) as uploads:
        return [upload.upload async for upload in uploads]


async def fill(tree: Tree) -> None:
    await Registry.open(tree.driver, create=True)
    await tree.put_image("team/app")
    await tree.put_upload("team/app", started_at=ago(days=8), uuid="old", n3=b"state")
    await tree.put_upload("team/app", started_at=ago(days=9), data=None, uuid="older")
    await tree.put_upload("team/app", started_at=ago(days=1), uuid="young")


async def uploads_in(tree: Tree) -> set[str]:
    return {entry.name for entry in await tree.driver.list(f"{REPOSITORIES}/team/app/_uploads")}


async def interrupted(disk: Disk, fault: Fault) -> bool:
    """Whether the fault came due in a purge of what `fill` makes."""
    driver = FaultyDriver(disk)
    driver.arm(fault)
    try:
        with driver.scope:
            await purge(Registry(driver))
    except InjectedFailure:
        return True
    except ProcessDied:
        if fault.how == "power":
            await disk.lose_power()
        return True
    return driver.has_struck


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("way", WAYS, ids="-".join)
def test_a_purge_can_be_repeated_after_any_interruption(way: tuple[str, str], when: str, quick_path: Path) -> None:
    """Wherever it was cut off, no fault is left for others, and doing it again deletes the rest and no more."""
    kind, how = way
    make: Callable[[int], Disk] = lambda number: Disk(  # noqa: E731
        LocalDriver(str(quick_path / str(number)), create=True) if kind == "local" else MemoryDriver()
    )
    for call in range(1, MOST_CALLS):
        if not trio.run(round_of, make(call), Fault(call, when, how)):
            assert call > 10
            return
    pytest.fail("the purge never ends")


async def round_of(disk: Disk, fault: Fault) -> bool:
    tree = Tree(disk.driver)
    await fill(tree)
    if not await interrupted(disk, fault):
        return False
    assert "young" in await uploads_in(tree)
    registry = Registry(disk.driver)
    await purge(registry)
    # What is left of a directory whose `startedat` went last is new, and goes when it is old.
    await purge(registry, later=timedelta(days=2))
    left = await uploads_in(tree)
    async with aclosing(check(registry, settle=0)) as faults:
        assert [fault async for fault in faults if fault.upload == "young"] == []
    for name in left - {"young"}:
        assert await tree.driver.list(f"{REPOSITORIES}/team/app/_uploads/{name}") == []
    await purge(registry, later=timedelta(days=30))
    assert await uploads_in(tree) == set()
    return True
