"""The guard around every FUSE handler: exceptions become errnos, operations end, failures leave a trace.

pyfuse3 ends the whole mount when a handler raises anything but `FUSEError`, so the guard is put on by the class itself:
a handler that is added to a subclass of `GuardedOperations` has it, whether or not its author thought of it.
"""

from __future__ import annotations

import errno
import functools
import inspect
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final

import pyfuse3
import trio

from layerfs.errors import DeadlineExceeded, LayerfsError, UnknownAttribute, UnsupportedAttribute
from layerfs.fuse.errnos import errno_of

#: One line for every operation that failed with anything but ENOENT.
log = logging.getLogger("layerfs.operations")

#: Handlers without a deadline, which costs more than a small read: these never wait; `read` sets one when it has to.
_NO_DEADLINE: Final = frozenset({"access", "fsyncdir", "read", "readdir", "releasedir", "removexattr", "setxattr"})

#: Answers that are not failures: programs ask for attributes to see whether they are there.
_ANSWERS: Final = (UnknownAttribute, UnsupportedAttribute)

#: What an operator should look at; the rest is a client's mistake.
_SERIOUS: Final = frozenset({errno.EIO, errno.ENOSPC, errno.EACCES, errno.ETIMEDOUT, errno.EMFILE, errno.EDQUOT})


class GuardedOperations(pyfuse3.Operations):
    """Base of the FUSE handlers. `describe` and `record` are for the subclass to say where a failure happened."""

    operation_timeout: float

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        for name, handler in list(vars(cls).items()):
            if name in vars(pyfuse3.Operations) and inspect.iscoroutinefunction(handler):
                setattr(cls, name, _guarded(name, handler))

    def count(self, operation: str) -> None:
        """Called before every operation."""

    def describe(self, operation: str, arguments: tuple[Any, ...]) -> str:
        """The path that an operation is about, for messages; must not raise."""
        raise NotImplementedError

    def record(self, operation: str, path: str, error: str, reason: str) -> None:
        """Keeps a failure where users can see it; must not raise."""
        raise NotImplementedError


def _guarded(name: str, handler: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    if name == "forget":
        return _silent(handler)
    timed = handler if name in _NO_DEADLINE else _timed(handler)

    async def told(self: GuardedOperations, *arguments: Any) -> Any:
        self.count(name)
        try:
            return await timed(self, *arguments)
        except LayerfsError as error:
            raise failure(self, name, arguments, error) from error

    @functools.wraps(handler)
    async def guarded(self: GuardedOperations, *arguments: Any) -> Any:
        try:
            return await told(self, *arguments)
        except pyfuse3.FUSEError:
            raise
        except Exception as error:
            log.exception("%s: unexpected %s", name, type(error).__name__)
            raise pyfuse3.FUSEError(errno.EIO) from error

    return guarded


def _timed(handler: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    @functools.wraps(handler)
    async def timed(self: GuardedOperations, *arguments: Any) -> Any:
        with trio.move_on_after(self.operation_timeout):
            return await handler(self, *arguments)
        raise DeadlineExceeded(f"not done after {self.operation_timeout:g} s")

    return timed


def _silent(handler: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    @functools.wraps(handler)
    async def silent(self: GuardedOperations, *arguments: Any) -> None:
        try:
            await handler(self, *arguments)
        except Exception:
            log.exception("forget: ignored")

    return silent


def failure(
    operations: GuardedOperations, operation: str, arguments: tuple[Any, ...], error: LayerfsError
) -> pyfuse3.FUSEError:
    """The errno for `error`, which is logged and recorded unless it only says that something is not there."""
    number = errno_of(error)
    if number != errno.ENOENT and not isinstance(error, _ANSWERS):
        name = errno.errorcode[number]
        path = operations.describe(operation, arguments)
        level = logging.WARNING if number in _SERIOUS else logging.INFO
        log.log(level, "%s %r: %s: %s", operation, path, name, error, extra={"operation": operation, "path": path})
        operations.record(operation, path, name, str(error))
    return pyfuse3.FUSEError(number)
