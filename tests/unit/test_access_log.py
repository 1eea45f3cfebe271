"""The access log: whoever reads it gets every line, nobody who is slow keeps anybody waiting, and nothing is kept."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from layerfs.errors import HandleLimit
from layerfs.view.access_log import AccessLog


async def read_lines(handle: object, length: int = 1 << 16) -> list[str]:
    return (await handle.read(0, length)).decode().splitlines()  # type: ignore[attr-defined]


async def test_everything_from_the_moment_that_it_is_opened() -> None:
    """And nothing from before."""
    log = AccessLog()
    log.write("before")
    reader = log.open("x")
    log.write("one")
    log.write("two")
    assert await read_lines(reader) == ["one", "two"]
    log.write("three")
    assert await read_lines(reader) == ["three"]


async def test_a_reader_waits_a_second_at_most(autojump_clock: trio.testing.MockClock) -> None:
    """Then it gets a comment: a read that waited longer could not be interrupted."""
    reader = AccessLog().open("x")
    assert await read_lines(reader) == ["#"]
    assert trio.current_time() == pytest.approx(1.0)


async def test_a_reader_is_woken(autojump_clock: trio.testing.MockClock) -> None:
    """By a line, at once."""
    log = AccessLog()
    reader = log.open("x")

    async def write_later() -> None:
        await trio.sleep(0.25)
        log.write("line")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(write_later)
        assert await read_lines(reader) == ["line"]
        assert trio.current_time() == pytest.approx(0.25)


async def test_small_reads_lose_nothing() -> None:
    """Lines come in pieces, in order."""
    log = AccessLog()
    reader = log.open("x")
    lines = [f"line {number} {'é' * number}" for number in range(50)]
    for line in lines:
        log.write(line)
    content = b""
    while len(content) < sum(len(line.encode()) + 1 for line in lines):
        content += await reader.read(len(content), 7)
    assert content.decode().splitlines() == lines


async def test_a_reader_that_is_slow_is_told_what_it_missed() -> None:
    """A mebibyte waits for it; the rest is counted."""
    log = AccessLog()
    slow = log.open("x")
    for _ in range(3000):
        log.write("x" * 999)
    content = b""
    while not content.endswith(b"read\n"):
        content += await slow.read(0, 1 << 17)
    lines = content.decode().splitlines()
    assert lines[-1] == f"# {3000 - (len(lines) - 1)} lines were left out: they came faster than they were read"
    assert (1 << 20) - 1000 < (len(lines) - 1) * 1000 <= 1 << 20
    log.write("again")
    assert await read_lines(slow) == ["again"]


async def test_no_more_readers_than_there_may_be() -> None:
    """Each keeps a request of the kernel waiting."""
    log = AccessLog()
    readers = [log.open("x") for _ in range(8)]
    with pytest.raises(HandleLimit):
        log.open("x")
    await readers[3].release()
    log.open("x")
    assert len(log.readers) == 8
