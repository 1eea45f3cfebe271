"""Polling before waiting: requests are found at once, and nobody else is kept from running."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import NamedTuple

import pyfuse3
import pytest
import trio
import trio.testing

from layerfs.fuse import polling

NAME = "_wait_fuse_readable"


class Pipe(NamedTuple):
    """What stands for /dev/fuse: a request is a byte."""

    requests: int
    kernel: int

    def send(self) -> None:
        os.write(self.kernel, b"r")

    def receive(self) -> None:
        os.read(self.requests, 1)


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    """Without a request."""
    pipe = Pipe(*os.pipe())
    yield pipe
    for descriptor in pipe:
        os.close(descriptor)


async def never() -> bool:
    """The wait of pyfuse3, where it must not be asked."""
    raise AssertionError("waited for what is there already")


async def test_a_request_that_is_there_is_not_waited_for(pipe: Pipe) -> None:
    """The event loop is not asked."""
    pipe.send()
    assert await polling._poll_first(never, pipe.requests)()


async def test_without_a_request_it_waits(pipe: Pipe) -> None:
    """As pyfuse3 does, and returns when there is one."""

    async def wait() -> bool:
        await trio.lowlevel.wait_readable(pipe.requests)
        return True

    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def send_later() -> None:
            await trio.testing.wait_all_tasks_blocked()
            pipe.send()

        assert await polling._poll_first(wait, pipe.requests)()


async def test_a_request_that_another_task_took(pipe: Pipe) -> None:
    """It looks again after waiting: pyfuse3 would block in receiving."""
    waits = 0

    async def wait() -> bool:
        nonlocal waits
        waits += 1
        if waits == 2:
            pipe.send()
        return True

    assert await polling._poll_first(wait, pipe.requests)()
    assert waits == 2


async def test_the_end_of_the_session(pipe: Pipe) -> None:
    """Is told by the wait, and handed on."""

    async def over() -> bool:
        return False

    assert not await polling._poll_first(over, pipe.requests)()


async def test_others_get_their_turn(pipe: Pipe) -> None:
    """While requests never cease, other tasks run after a bounded number of them."""
    pipe.send()
    wait = polling._poll_first(never, pipe.requests)
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        for _ in range(1000):
            assert await wait()
        nursery.cancel_scope.cancel()
    assert 1000 / 100 < turns < 1000


async def test_it_is_not_cancelled_with_a_request_in_hand(pipe: Pipe) -> None:
    """A worker is cancelled where it waits, and there only."""
    pipe.send()
    wait = polling._poll_first(never, pipe.requests)
    with trio.CancelScope() as scope:
        scope.cancel()
        for _ in range(200):
            assert await wait()
    assert not scope.cancelled_caught


@pytest.mark.parametrize("version", ["3.3.1", "3.40.0", "4.0.0"])
def test_a_version_that_is_not_known(monkeypatch: pytest.MonkeyPatch, pipe: Pipe, version: str) -> None:
    """Nothing is replaced."""
    original = getattr(pyfuse3, NAME)
    monkeypatch.setattr(pyfuse3, "__version__", version)
    monkeypatch.setattr(polling, "_session_descriptor", lambda: pipe.requests)
    polling.poll_first()
    assert getattr(pyfuse3, NAME) is original


@pytest.mark.parametrize("missing", ["name", "descriptor"])
def test_what_it_needs_is_missing(monkeypatch: pytest.MonkeyPatch, pipe: Pipe, missing: str) -> None:
    """Nothing is replaced, and nothing fails."""
    monkeypatch.setattr(polling, "_session_descriptor", lambda: None if missing == "descriptor" else pipe.requests)
    if missing == "name":
        monkeypatch.delattr(pyfuse3, NAME)
    before = getattr(pyfuse3, NAME, None)
    polling.poll_first()
    assert getattr(pyfuse3, NAME, None) is before


def test_a_version_that_is_known(monkeypatch: pytest.MonkeyPatch, pipe: Pipe) -> None:
    """The wait is replaced."""
    original = getattr(pyfuse3, NAME)
    monkeypatch.setattr(pyfuse3, NAME, original)
    monkeypatch.setattr(pyfuse3, "__version__", "3.4.0")
    monkeypatch.setattr(polling, "_session_descriptor", lambda: pipe.requests)
    polling.poll_first()
    assert getattr(pyfuse3, NAME) is not original
