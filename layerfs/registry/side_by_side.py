"""Looking at many things, several at a time where each of them waits for a storage that is far away."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Final, TypeVar

import trio

from layerfs.driver.interface import StorageDriver

#: Things that are looked at side by side on an object store. Each may make many requests, which its driver bounds.
_FAR: Final = 32

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def at_once_on(driver: StorageDriver) -> int:
    """How many things are looked at at a time: on this machine, where nothing is to be waited for, one."""
    return _FAR if driver.capabilities.listed_files else 1


async def side_by_side(
    function: Callable[[_Item], Awaitable[_Result]], items: Iterable[_Item], *, at_once: int
) -> list[_Result]:
    """What `function` gives for each of the items, in order; no more than `at_once` of the calls are under way.

    If one fails the others are cancelled, and its error is raised.
    """
    waiting = list(enumerate(items))
    if at_once == 1 or len(waiting) == 1:
        return [await function(item) for _, item in waiting]
    waiting.reverse()
    results: dict[int, _Result] = {}
    errors: list[Exception] = []

    async def work() -> None:
        while waiting:
            number, item = waiting.pop()
            try:
                results[number] = await function(item)
            except Exception as error:  # noqa: BLE001 - it is raised below, not in a group of one
                errors.append(error)
                nursery.cancel_scope.cancel()
                return

    async with trio.open_nursery() as nursery:
        for _ in range(min(at_once, len(waiting))):
            nursery.start_soon(work)
    if errors:
        raise errors[0]
    return [results[number] for number in range(len(results))]
