"""Calls from trio to asyncio: results, errors, and what becomes of them when either side gives up."""

from __future__ import annotations

import asyncio
import threading

import pytest
import trio

from layerfs.driver.bridge import AsyncioBridge, BridgeClosed


@pytest.fixture
async def bridge():
    """A bridge of its own for every test."""
    bridge = AsyncioBridge("test-bridge")
    yield bridge
    await bridge.close()


async def test_results_and_arguments(bridge: AsyncioBridge) -> None:
    """They go over and come back."""

    async def add(one: int, other: int) -> int:
        await asyncio.sleep(0)
        return one + other

    assert await bridge.call(add, 1, 2) == 3


async def test_errors_come_back(bridge: AsyncioBridge) -> None:
    """The very object that was raised."""
    error = KeyError("what was raised")

    async def fail() -> None:
        raise error

    with pytest.raises(KeyError) as caught:
        await bridge.call(fail)
    assert caught.value is error


async def test_one_thread_for_many_calls(bridge: AsyncioBridge) -> None:
    """And none before the first."""
    before = threading.active_count()
    started = trio.Event()
    token = trio.lowlevel.current_trio_token()
    waiting = 0
    go: asyncio.Event | None = None

    async def wait() -> None:
        nonlocal waiting, go
        go = go or asyncio.Event()
        waiting += 1
        if waiting == 500:
            token.run_sync_soon(started.set)
        await go.wait()

    async def release() -> None:
        assert go is not None
        go.set()

    async with trio.open_nursery() as nursery:
        for _ in range(500):
            nursery.start_soon(bridge.call, wait)
        await started.wait()
        assert threading.active_count() == before + 1
        await bridge.call(release)


async def test_cancelling_ends_the_asyncio_task_first(bridge: AsyncioBridge) -> None:
    """When the caller goes on, nothing of the call goes on behind its back."""
    entered = threading.Event()
    ended = []

    async def wait() -> None:
        entered.set()
        try:
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(0.05)  # what it does at the end takes a while
            ended.append(True)

    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bridge.call, wait)
            await trio.to_thread.run_sync(entered.wait)
            scope.cancel()
    assert scope.cancelled_caught
    assert ended == [True]


async def test_a_call_that_is_cancelled_before_it_begins(bridge: AsyncioBridge) -> None:
    """Never begins."""
    called = []

    async def note() -> None:
        called.append(True)

    with trio.CancelScope() as scope:
        scope.cancel()
        await bridge.call(note)
    assert scope.cancelled_caught
    assert called == []


async def test_a_result_that_came_all_the_same_is_not_lost(bridge: AsyncioBridge) -> None:
    """Whoever was cancelled too late has what was done."""
    entered = threading.Event()

    async def stubborn() -> str:
        entered.set()
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            return "done"
        return "never"

    results = []

    async def call() -> None:
        results.append(await bridge.call(stubborn))

    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(call)
            await trio.to_thread.run_sync(entered.wait)
            scope.cancel()
    assert results == ["done"]


async def test_closing_ends_what_is_under_way(bridge: AsyncioBridge) -> None:
    """With an error for whoever waits, and for whoever comes later; and the thread is gone."""
    entered = threading.Event()

    async def wait() -> None:
        entered.set()
        await asyncio.sleep(3600)

    async def expect() -> None:
        with pytest.raises(BridgeClosed):
            await bridge.call(wait)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(expect)
        await trio.to_thread.run_sync(entered.wait)
        await bridge.close()
    with pytest.raises(BridgeClosed):
        await bridge.call(wait)
    await bridge.close()
    assert "test-bridge" not in [thread.name for thread in threading.enumerate()]


async def test_a_bridge_that_was_never_used_has_no_thread() -> None:
    """A daemon forks after it has made its objects."""
    bridge = AsyncioBridge("unused-bridge")
    assert "unused-bridge" not in [thread.name for thread in threading.enumerate()]
    await bridge.close()
