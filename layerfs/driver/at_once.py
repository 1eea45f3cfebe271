"""Many things at once on asyncio: with nothing left running, in order, and within bounds."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Iterable, Sequence
from typing import Any, Final, TypeVar

from layerfs.errors import DriverError

#: More than any driver has requests in flight; each takes some kilobytes while it waits.
_AT_ONCE: Final = 256

_Result = TypeVar("_Result")


async def gather(awaitables: Sequence[Any]) -> list[Any]:
    """The results, in order. If one fails the others are cancelled, and have ended when this raises."""
    tasks = [asyncio.ensure_future(awaitable) for awaitable in awaitables]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)


async def cancel_all(tasks: Iterable[asyncio.Future[Any]]) -> None:
    """Ends tasks that nobody will hear from any more, also those that have failed: asyncio would log that."""
    ended = list(tasks)
    for task in ended:
        task.cancel()
    await asyncio.gather(*ended, return_exceptions=True)


async def each(awaitables: Iterable[Awaitable[_Result]]) -> list[_Result | DriverError]:
    """All results, in order; an error of the storage stands in its place. However many there are, few wait at once."""
    numbered = enumerate(awaitables)
    first = list(itertools.islice(numbered, _AT_ONCE))
    waiting = itertools.chain(first, numbered)
    results: dict[int, _Result | DriverError] = {}

    async def work() -> None:
        for number, awaitable in waiting:
            try:
                results[number] = await awaitable
            except DriverError as error:
                results[number] = error

    await gather([work() for _ in first])
    return [results[number] for number in range(len(results))]


class ByteBudget:
    """A number of bytes that may be in use at a time. More than that at once gets it all, alone."""

    def __init__(self, size: int) -> None:
        self._size = self._left = size
        self._given_back = asyncio.Condition()
        self._waking: set[asyncio.Task[None]] = set()

    async def take(self, size: int) -> None:
        """Waits until there are so many, and takes them."""
        async with self._given_back:
            await self._given_back.wait_for(lambda: self._left >= min(size, self._size))
            self._left -= size

    def give_back(self, size: int) -> None:
        """Ends the use of bytes that were taken."""
        self._left += size
        waking = asyncio.ensure_future(self._wake())
        self._waking.add(waking)
        waking.add_done_callback(self._waking.discard)

    async def _wake(self) -> None:
        async with self._given_back:
            self._given_back.notify_all()
