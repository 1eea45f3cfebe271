"""The body of a part, as the SDK signs, sends and repeats it."""

from __future__ import annotations

import asyncio
import os

from layerfs.driver.body import Body

CONTENT = bytes(range(256)) * 5000


async def sent(body: Body) -> bytes:
    return b"".join([bytes(piece) async for piece in body])


def test_it_is_read_as_a_file_and_sent_from_where_that_left_it() -> None:
    """Signing reads all of it and goes back; a repeated request goes back to the beginning."""
    body = Body(memoryview(CONTENT))
    assert b"".join(iter(lambda: bytes(body.read(1000)), b"")) == CONTENT
    assert body.read(1000) == b""
    assert asyncio.run(sent(body)) == b""
    for _ in range(2):
        assert body.seek(0) == 0
        assert asyncio.run(sent(body)) == CONTENT
    assert body.seek(-10, os.SEEK_END) == len(CONTENT) - 10
    assert body.tell() == len(CONTENT) - 10
    assert body.read() == CONTENT[-10:]
    body.seek(5)
    assert body.seek(2, os.SEEK_CUR) == 7
    assert asyncio.run(sent(body)) == CONTENT[7:]


def test_an_empty_one() -> None:
    assert Body(b"").read() == b""
    assert asyncio.run(sent(Body(b""))) == b""
