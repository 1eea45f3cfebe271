"""The handle table: numbers of what is open, and no more than so many."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from layerfs.errors import BadHandle, HandleLimit
from layerfs.view.handles import DirectorySnapshot, HandleTable
from layerfs.view.nodes import HandleId

FIRST, SECOND = DirectorySnapshot("first", []), DirectorySnapshot("second", [])


def test_what_is_open_is_found_by_its_number() -> None:
    """Each under its own."""
    table = HandleTable[DirectorySnapshot](2)
    numbers = table.add(FIRST), table.add(SECOND)
    assert [table.get(number) for number in numbers] == [FIRST, SECOND]
    assert table.values() == [FIRST, SECOND]


def test_what_is_closed_is_not_found() -> None:
    """Neither is it closed twice, nor is its number given again."""
    table = HandleTable[DirectorySnapshot](2)
    number = table.add(FIRST)
    assert table.pop(number) is FIRST
    for use in (table.get, table.pop):
        with pytest.raises(BadHandle):
            use(number)
    assert table.add(SECOND) != number


def test_a_number_that_was_never_given() -> None:
    """As one that is closed."""
    with pytest.raises(BadHandle):
        HandleTable[DirectorySnapshot](2).get(HandleId(1))


def test_the_limit() -> None:
    """Refused at the limit, and not any more when one is closed."""
    table = HandleTable[DirectorySnapshot](1)
    with table.room():
        number = table.add(FIRST)
    with pytest.raises(HandleLimit), table.room():
        pass
    table.pop(number)
    with table.room():
        table.add(SECOND)
    assert len(table) == 1


async def test_the_limit_holds_while_files_are_being_opened() -> None:
    """Many that open at once are not more than may be open; one that fails gives its place back."""
    table = HandleTable[DirectorySnapshot](2)
    refused = 0

    async def open_and_fail() -> None:
        nonlocal refused
        try:
            with table.room():
                await trio.testing.wait_all_tasks_blocked()
        except HandleLimit:
            refused += 1

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(open_and_fail)
    assert refused == 3
    with table.room(), table.room():
        pass
