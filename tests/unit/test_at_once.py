"""Many things at once on asyncio: in order, with nothing left running, and never too many."""

from __future__ import annotations

import asyncio

import pytest

from layerfs.driver.at_once import ByteBudget, each, gather
from layerfs.errors import PathNotFound


def test_each_result_stands_in_its_place() -> None:
    """Also errors of the storage, and however many there are; never are more than some hundreds under way."""
    under_way = most = 0

    async def one(number: int) -> int:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0.0001 * (number % 3))
        under_way -= 1
        if number % 10 == 0:
            raise PathNotFound(f"/{number}")
        return number

    results = asyncio.run(each(map(one, range(3000))))
    assert [r.path if isinstance(r, PathNotFound) else r for r in results] == [
        f"/{number}" if number % 10 == 0 else number for number in range(3000)
    ]
    assert 1 < most <= 512


def test_each_of_nothing() -> None:
    """Is nothing."""
    assert asyncio.run(each([])) == []


def test_an_error_ends_the_others() -> None:
    """They have ended when it is raised."""
    ended = []

    async def wait() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            ended.append(True)

    async def fail() -> None:
        await asyncio.sleep(0)
        raise KeyError("what was raised")

    with pytest.raises(KeyError):
        asyncio.run(gather([wait(), fail(), wait()]))
    assert ended == [True, True]


def test_a_budget_of_bytes() -> None:
    """Whoever wants more than is left waits; whoever wants more than there is gets it alone."""

    async def check() -> None:
        budget = ByteBudget(100)
        await budget.take(60)
        waiting = asyncio.ensure_future(budget.take(50))
        large = asyncio.ensure_future(budget.take(500))
        await asyncio.sleep(0.01)
        assert not waiting.done()
        assert not large.done()
        budget.give_back(60)
        await asyncio.wait_for(waiting, 1)
        await asyncio.sleep(0.01)
        assert not large.done()
        budget.give_back(50)
        await asyncio.wait_for(large, 1)
        assert not asyncio.ensure_future(budget.take(1)).done()

    asyncio.run(check())
