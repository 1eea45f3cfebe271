"""How a driver leaves trio's thread, and what keeps a thread that was left behind from doing harm later."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Generic, TypeVar, TypeVarTuple

import trio

_log = logging.getLogger(__name__)

_Result = TypeVar("_Result")
_Arguments = TypeVarTuple("_Arguments")


async def in_thread(
    limiter: trio.CapacityLimiter, function: Callable[[*_Arguments], _Result], *arguments: *_Arguments
) -> _Result:
    """What `function` returns, from a thread that is left behind if the caller is cancelled.

    A disk or server that does not answer blocks its thread for ever; the caller must be able to go. So whatever
    `function` opens has to belong to an object that closes itself when nobody has it any more: the result of a thread
    that was left behind is dropped. What changes storage goes through `Changes`.
    """
    return await trio.to_thread.run_sync(function, *arguments, abandon_on_cancel=True, limiter=limiter)


class Changes:
    """Changes of storage, each in a thread; `limiter` bounds the threads.

    A thread that was left behind may make its change at any time later: long after its user was told that it failed,
    and has done something else instead. So nobody changes the same path, or one above or below it, before that thread
    has ended; who waits for it can be cancelled, and holds no thread meanwhile.
    """

    def __init__(self, limiter: trio.CapacityLimiter) -> None:
        self.limiter = limiter
        # As many as there are threads at the most: one that was left behind keeps its place.
        self._abandoned: dict[_Change[Any], trio.Event] = {}

    async def make(
        self, paths: Sequence[str], function: Callable[[*_Arguments], _Result], *arguments: *_Arguments
    ) -> _Result:
        """What `function` returns, which changes what is at `paths`."""
        while (earlier := self._abandoned_at(paths)) is not None:
            _log.info("%s: waits for a change of it that was given up and has not ended yet", paths[0])
            await earlier.wait()
        change = _Change(paths, function)
        try:
            return await in_thread(self.limiter, change.make, *arguments)
        except trio.Cancelled:
            self._abandon(change)
            raise

    def _abandoned_at(self, paths: Sequence[str]) -> trio.Event | None:
        for change, ended in self._abandoned.items():
            if any(_overlap(path, other) for path in paths for other in change.paths):
                return ended
        return None

    def _abandon(self, change: _Change[_Result]) -> None:
        token = trio.lowlevel.current_trio_token()
        ended = trio.Event()

        def forget() -> None:
            del self._abandoned[change]
            ended.set()

        def tell() -> None:
            # If trio has ended nobody is waiting.
            with suppress(trio.RunFinishedError):
                token.run_sync_soon(forget)

        if change.abandon(tell):
            self._abandoned[change] = ended


class _Change(Generic[_Result]):
    """One call in a thread, which may be left behind."""

    def __init__(self, paths: Sequence[str], function: Callable[..., _Result]) -> None:
        self.paths = paths
        self._function = function
        # Held while either side looks whether the other is still there.
        self._lock = threading.Lock()
        self._is_running = False
        self._is_abandoned = False
        self._tell: Callable[[], None] | None = None

    def make(self, *arguments: object) -> _Result:
        """Calls the function, in a thread. Does nothing if it was abandoned before it began."""
        with self._lock:
            if self._is_abandoned:
                raise RuntimeError("abandoned before it began")
            self._is_running = True
        try:
            return self._function(*arguments)
        finally:
            with self._lock:
                self._is_running = False
                tell = self._tell
            if tell is not None:
                tell()

    def abandon(self, tell: Callable[[], None]) -> bool:
        """Nobody waits for it any more. Whether it is under way: then `tell` is called when it ends, in its thread."""
        with self._lock:
            self._is_abandoned = True
            self._tell = tell if self._is_running else None
            return self._is_running


def _overlap(path: str, other: str) -> bool:
    """Whether the paths are the same, or one lies below the other."""
    return path == other or path.startswith(f"{other}/") or other.startswith(f"{path}/")
