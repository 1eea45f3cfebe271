"""Buffers that are used again: never while anybody still has one."""

from __future__ import annotations

import asyncio

from layerfs.driver.buffers import BufferPool

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
