"""Calling asyncio from trio: the libraries of the object stores know no other event loop.

Each bridge has one thread with one loop, which runs as long as its driver. A call costs two wake-ups, less than a trip
to a worker thread, and no thread is held while the store thinks; so hundreds of requests may be under way.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar, TypeVarTuple

import outcome
import trio

_Result = TypeVar("_Result")
_Arguments = TypeVarTuple("_Arguments")

#: Seconds that the thread gets to end, once its tasks have been cancelled.
_STOP_SECONDS: Final = 5.0


class BridgeClosed(Exception):
    """A call to a bridge that is closed, or was closed while it was under way."""


class AsyncioBridge:
    """An asyncio event loop in a thread of its own. The thread begins with the first call, so not before a fork."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._closed = False

    async def call(self, function: Callable[[*_Arguments], Awaitable[_Result]], *arguments: *_Arguments) -> _Result:
        """What `await function(*arguments)` gives on the loop, or raises.

        If the caller is cancelled so is the asyncio task, and the call returns only when that has ended: nothing goes
        on behind the caller's back. A result that came all the same is not lost.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        loop = self._running_loop()
        crossing = _Crossing(loop)
        _call_soon(loop, crossing.begin, function, arguments)
        result: _Result = await trio.lowlevel.wait_task_rescheduled(crossing.abort)
        return result

    @property
    def is_closed(self) -> bool:
        """Whether no call can be made any more."""
        return self._closed

    async def close(self) -> None:
        """Cancels what is under way and ends the thread. May be called again; a thread that hangs is left behind."""
        self._closed = True
        thread, self._thread = self._thread, None
        if thread is None or self._loop is None:
            await trio.lowlevel.checkpoint()
            return
        _call_soon(self._loop, self._loop.stop)
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(thread.join, _STOP_SECONDS)

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        if self._closed:
            raise BridgeClosed(f"{self._name} is closed")
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=_run, args=(self._loop,), name=self._name, daemon=True)
            self._thread.start()
        return self._loop


class _Crossing:
    """One call: begun by trio, run by asyncio, and whichever of the two gives up, ended once."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting = trio.lowlevel.current_task()
        self._token = trio.lowlevel.current_trio_token()
        self._task: asyncio.Task[Any] | None = None
        self._raise_cancel: Callable[[], Any] | None = None

    # On trio's thread.

    def abort(self, raise_cancel: Callable[[], Any]) -> trio.lowlevel.Abort:
        """Cancels the asyncio task; trio's task waits on until that has ended."""
        self._raise_cancel = raise_cancel
        _call_soon(self._loop, self._cancel)
        return trio.lowlevel.Abort.FAILED

    def _wake(self, result: outcome.Outcome[Any]) -> None:
        was_cancelled = isinstance(result, outcome.Error) and isinstance(result.error, asyncio.CancelledError)
        if was_cancelled and self._raise_cancel is not None:
            result = outcome.capture(self._raise_cancel)
        elif was_cancelled:
            result = outcome.Error(BridgeClosed("closed while a call was under way"))
        trio.lowlevel.reschedule(self._waiting, result)

    # On the loop's thread, in the order in which they were asked for.

    def begin(self, function: Callable[..., Awaitable[Any]], arguments: tuple[Any, ...]) -> None:
        self._task = self._loop.create_task(_await(function, arguments))
        self._task.add_done_callback(self._finished)

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def _finished(self, task: asyncio.Task[Any]) -> None:
        result: outcome.Outcome[Any]
        if task.cancelled():
            result = outcome.Error(asyncio.CancelledError())
        elif (error := task.exception()) is not None:
            result = outcome.Error(error)
        else:
            result = outcome.Value(task.result())
        with contextlib.suppress(trio.RunFinishedError):  # nobody is left to be told
            self._token.run_sync_soon(self._wake, result)


async def _await(function: Callable[..., Awaitable[Any]], arguments: tuple[Any, ...]) -> Any:
    return await function(*arguments)


def _call_soon(loop: asyncio.AbstractEventLoop, function: Callable[..., object], *arguments: Any) -> None:
    try:
        loop.call_soon_threadsafe(function, *arguments)
    except RuntimeError as error:
        # The loop is closed: there is no other reason that this call could have.
        raise BridgeClosed("the event loop has ended") from error


def _run(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
        _end_tasks(loop)
        loop.run_until_complete(loop.shutdown_asyncgens())
    finally:
        loop.close()


def _end_tasks(loop: asyncio.AbstractEventLoop) -> None:
    tasks = asyncio.all_tasks(loop)
    for task in tasks:
        task.cancel()
    if tasks:
        loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
