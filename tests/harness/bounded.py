"""Doing something on a mount that may hang, fail or die, without hanging with it.

A process that waits for a hung file system cannot be killed. So the action is done by a child; the test waits for it
with a limit, and a child that does not answer in time is left where it is until the mount goes.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pickle
import select
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

#: Seconds that nothing on a mount may take, whatever is wrong with its storage.
LIMIT = 5


@dataclass(frozen=True)
class Outcome:
    """What came of an action: its result, or the error that the kernel gave."""

    value: Any = None
    error: int = 0
    seconds: float = 0

    @property
    def is_ok(self) -> bool:
        return not self.error

    @property
    def name(self) -> str:
        """`ok`, or the name of the errno."""
        return errno.errorcode.get(self.error, str(self.error)) if self.error else "ok"


class Child:
    """An action under way in a process of its own."""

    def __init__(self, action: Callable[..., object], *arguments: object) -> None:
        self._what = f"{getattr(action, '__name__', action)}{arguments}"[:300]
        self._output, output = os.pipe()
        self._started = time.monotonic()
        self.pid = os.fork()
        if not self.pid:
            os.close(self._output)
            _run(action, arguments, output)
        os.close(output)

    def is_running(self) -> bool:
        return not select.select([self._output], [], [], 0)[0]

    def wait(self, seconds: float = LIMIT) -> Outcome:
        """The outcome; fails when there is none in time, or the action failed otherwise than by an errno."""
        ready, _, _ = select.select([self._output], [], [], seconds)
        took = time.monotonic() - self._started
        try:
            if not ready:
                os.kill(self.pid, signal.SIGKILL)
                raise AssertionError(f"no answer within {seconds} s: {self._what}")
            with os.fdopen(self._output, "rb", closefd=False) as output:
                answer = output.read()
        finally:
            os.close(self._output)
            self._reap()
        assert answer, f"it was killed: {self._what}"
        outcome = pickle.loads(answer)  # noqa: S301 our own child wrote it
        assert isinstance(outcome, Outcome), f"{self._what} failed:\n{outcome}"
        return Outcome(outcome.value, outcome.error, took)

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def has_ended_within(self, seconds: float) -> bool:
        """Whether the process is gone in time."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if os.waitpid(self.pid, os.WNOHANG)[0]:
                os.close(self._output)
                return True
            time.sleep(0.02)  # polling interval
        return False

    def _reap(self) -> None:
        # A child that hangs in the kernel is left: it ends when the mount is aborted.
        for _ in range(50):
            if os.waitpid(self.pid, os.WNOHANG)[0]:
                return
            time.sleep(0.01)  # polling interval


def _run(action: Callable[..., object], arguments: tuple[object, ...], output: int) -> NoReturn:
    try:
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
        try:
            answer: object = Outcome(action(*arguments))
        except OSError as error:
            answer = Outcome(error=error.errno or errno.EIO) if error.errno else repr(error)
        except BaseException as error:  # noqa: BLE001 whatever it is, the parent is told
            answer = repr(error)
        with os.fdopen(output, "wb") as pipe:
            pipe.write(pickle.dumps(answer))
    finally:
        os._exit(0)


def timed(action: Callable[..., object], *arguments: object) -> Outcome:
    """The outcome of an action that is done here; for children that do several things."""
    started = time.monotonic()
    value, error = None, 0
    try:
        value = action(*arguments)
    except OSError as failure:
        error = failure.errno or errno.EIO
    return Outcome(value, error, time.monotonic() - started)


def attempt(action: Callable[..., object], *arguments: object, seconds: float = LIMIT) -> Outcome:
    """Does something that may hang or fail, in a child, and says what came of it."""
    return Child(action, *arguments).wait(seconds)
