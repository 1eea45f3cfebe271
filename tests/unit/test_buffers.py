"""Buffers that are used again: never while anybody still has one."""

from __future__ import annotations

import asyncio
import random

from layerfs.driver.buffers import BufferPool, Gathering

SIZE = 1 << 20


def test_a_buffer_that_somebody_has_is_not_given_out() -> None:
    """Nor one of which somebody has a view; when the last view is gone it is filled again."""

    async def check() -> None:
        pool = BufferPool(SIZE)
        views = []
        for number in range(20):
            buffer = pool.take(SIZE)
            buffer[:] = bytes([number]) * SIZE
            views.append(memoryview(buffer)[number : number + 10])
            del buffer
        assert [bytes(view) for view in views] == [bytes([number]) * 10 for number in range(20)]
        place = id(views[3].obj)
        del views[3]
        assert id(pool.take(SIZE)) == place
        assert [view[0] for view in views] == [number for number in range(20) if number != 3]

    asyncio.run(check())


def test_other_sizes() -> None:
    """Are had as they are asked for."""

    async def check() -> None:
        pool = BufferPool(SIZE)
        assert len(pool.take(SIZE - 1)) == SIZE - 1
        assert len(pool.take(2 * SIZE)) == 2 * SIZE

    asyncio.run(check())


def test_what_is_gathered_comes_out_as_it_went_in() -> None:
    """In whatever pieces, small or beyond what a buffer of its own is for; and what was taken out does not change."""

    async def check() -> None:
        pool = BufferPool(2 * SIZE)
        numbers = random.Random(1)
        for largest in (100, 70_000, SIZE):
            gathering, expected = Gathering(pool, b"first"), b"first"
            views: list[tuple[memoryview, bytes]] = []
            while len(expected) < 2 * SIZE:
                piece = numbers.randbytes(min(numbers.randint(0, largest), 2 * SIZE - len(expected)))
                gathering.add(memoryview(piece), 2 * SIZE)
                expected += piece
                if len(views) < 3:
                    views.append((gathering.view(), expected))
            assert len(gathering) == len(expected)
            assert gathering.view() == expected
            assert all(view == then for view, then in views)

    asyncio.run(check())


def test_gathering_beyond_its_capacity_again() -> None:
    """A larger capacity than at first is a new buffer."""

    async def check() -> None:
        pool = BufferPool(SIZE)
        gathering = Gathering(pool, bytes(SIZE))
        gathering.add(memoryview(b"more"), SIZE + 4)
        gathering.add(memoryview(bytes(4 * SIZE)), 6 * SIZE)
        assert gathering.view() == bytes(SIZE) + b"more" + bytes(4 * SIZE)

    asyncio.run(check())
