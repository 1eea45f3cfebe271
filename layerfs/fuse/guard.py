"""The guard around every FUSE handler: exceptions become errnos, operations end, all is counted.

pyfuse3 ends the whole mount when a handler raises anything but `FUSEError`, so the guard is put on by the class itself:
a handler that is added to a subclass of `GuardedOperations` has it, whether or not its author thought of it.
"""

from __future__ import annotations

import errno
import functools
import inspect
import json
import logging
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from time import monotonic_ns
from typing import Any, Final

import pyfuse3
import trio

from layerfs.errors import (
    BlobDamaged,
    DeadlineExceeded,
    LayerfsError,
    LayerInvalidDigest,
    ManifestInvalidDigest,
    OperationInterrupted,
    StaleName,
    UnknownAttribute,
    UnsupportedAttribute,
)
from layerfs.fuse.dying import LOOK_EVERY, is_dying
from layerfs.fuse.errnos import errno_of, name_of
from layerfs.view.stats import Details, Failure, MountStats

#: One line for every operation that failed with anything but ENOENT.
log = logging.getLogger("layerfs.operations")

#: Handlers without a deadline, which costs more than a small read: these never wait; `read` sets one when it has to.
_NO_DEADLINE: Final = frozenset({"access", "fsyncdir", "read", "readdir", "releasedir", "removexattr", "setxattr"})

#: Answers that are not failures: programs ask for attributes to see whether they are there, and the kernel looks a
#: name up again of which it is told that it is stale.
_ANSWERS: Final = (StaleName, UnknownAttribute, UnsupportedAttribute)

#: Content that is not what its name says.
_WRONG_CONTENT: Final = (BlobDamaged, LayerInvalidDigest, ManifestInvalidDigest)

#: What an operator should look at; the rest is a client's mistake.
_SERIOUS: Final = frozenset({errno.EIO, errno.ENOSPC, errno.EACCES, errno.ETIMEDOUT, errno.EMFILE, errno.EDQUOT})

#: What `.layerfs/errors` calls an exception that is a bug.
UNEXPECTED: Final = "Unexpected"


class GuardedOperations(pyfuse3.Operations):
    """Base of the FUSE handlers. `describe` and `details` are for the subclass to say what an operation is about."""

    operation_timeout: float
    #: Seconds after which an operation that succeeds is worth a warning.
    slow_operation: float

    def __init__(self, stats: MountStats) -> None:
        super().__init__()
        self.stats = stats
        stats.describe = self.describe
        # What ends each operation that has a deadline, and what it is.
        self._waiting: dict[trio.CancelScope, tuple[str, tuple[Any, ...]]] = {}

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        for name, handler in list(vars(cls).items()):
            if name in vars(pyfuse3.Operations) and inspect.iscoroutinefunction(handler):
                setattr(cls, name, _guarded(name, handler))

    async def give_up_for_the_dying(self) -> None:
        """Ends operations whose clients were killed meanwhile, for ever."""
        while True:
            await trio.sleep(LOOK_EVERY)
            begun_before = trio.current_time() + self.operation_timeout - LOOK_EVERY
            for scope, (operation, arguments) in list(self._waiting.items()):
                if scope.deadline <= begun_before:
                    thread = self.caller(operation, arguments)
                    if thread is not None and is_dying(thread):
                        scope.cancel()

    def caller(self, operation: str, arguments: tuple[Any, ...]) -> int | None:  # noqa: ARG002 - for the subclass
        """The thread that waits for an operation; None if nobody knows it, or is kept from ending by it."""
        return None

    def describe(self, operation: str, arguments: tuple[Any, ...]) -> str:
        """The path that an operation is about, for messages; of a rename both."""
        raise NotImplementedError

    def paths(self, operation: str, arguments: tuple[Any, ...]) -> tuple[str, str | None]:
        """The path that an operation is about, and the other one if it has two."""
        raise NotImplementedError

    def details(self, operation: str, arguments: tuple[Any, ...]) -> Details:
        """The numbers among the arguments."""
        raise NotImplementedError


def _guarded(name: str, handler: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    if name == "forget":
        return _silent(handler)
    timed = handler if name in _NO_DEADLINE else limited(name, handler)

    # One function and not several: every call on the way of a small read is time that it takes. What is done here for
    # counting takes 0.6 us (tests/bench/counting.py).
    @functools.wraps(handler)
    async def guarded(self: GuardedOperations, *arguments: Any) -> Any:
        stats = self.stats
        began_at = monotonic_ns()
        if began_at > stats.next_sample:
            stats.sample(began_at)
        stats.requests = request = stats.requests + 1
        stats.under_way[request] = (name, arguments, began_at)
        try:
            result = await timed(self, *arguments)
        except Exception as error:
            raise _answer_to(self, name, arguments, error, request, began_at) from error
        finally:
            del stats.under_way[request]
            ended_at = monotonic_ns()
            latency = stats.latencies.get(name)
            if latency is None:
                latency = stats.latency(name)
            latency.add(ended_at - began_at)
            if ended_at > stats.next_sample:
                stats.sample(ended_at)
        if stats.access_log.readers or ended_at - began_at > self.slow_operation * 1e9:
            _tell(self, name, arguments, request, ended_at - began_at, result)
        return result

    return guarded


def limited(name: str, handler: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """`handler` as the operation `name`, for as long as an operation may take, and as somebody waits for it."""

    @functools.wraps(handler)
    async def limited(self: GuardedOperations, *arguments: Any) -> Any:
        with trio.move_on_after(self.operation_timeout) as scope:
            self._waiting[scope] = (name, arguments)
            try:
                return await handler(self, *arguments)
            finally:
                del self._waiting[scope]
        if trio.current_time() < scope.deadline:
            raise OperationInterrupted("whoever waited for it was killed")
        raise DeadlineExceeded(f"not done after {self.operation_timeout:g} s")

    return limited


def _silent(handler: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    @functools.wraps(handler)
    async def silent(self: GuardedOperations, *arguments: Any) -> None:
        try:
            await handler(self, *arguments)
        except Exception:
            log.exception("forget: ignored")

    return silent


# --- failures ----------------------------------------------------------------------------------------------------


def _answer_to(
    operations: GuardedOperations,
    operation: str,
    arguments: tuple[Any, ...],
    error: Exception,
    request: int,
    began_at: int,
) -> pyfuse3.FUSEError:
    """The errno for what a handler raised. Never fails itself: that would end the mount."""
    if isinstance(error, pyfuse3.FUSEError):
        return error
    try:
        if not isinstance(error, LayerfsError):
            log.error("%s: unexpected %s", operation, type(error).__name__, exc_info=error)
        return failure(operations, operation, arguments, error, request, monotonic_ns() - began_at)
    except Exception as bug:
        log.exception("%s: unexpected %s", operation, type(bug).__name__)
        return pyfuse3.FUSEError(errno.EIO)


def failure(
    operations: GuardedOperations,
    operation: str,
    arguments: tuple[Any, ...],
    error: Exception,
    request: int,
    nanoseconds: int,
) -> pyfuse3.FUSEError:
    """The errno for `error`, which is logged and kept unless it only says that something is not there."""
    number = errno_of(error) if isinstance(error, LayerfsError) else errno.EIO
    name = name_of(number)
    if isinstance(error, _ANSWERS):
        _write_access(operations, operation, arguments, request, nanoseconds, name)
        return pyfuse3.FUSEError(number)
    found = _describe(operations, operation, arguments, error, request, nanoseconds)
    if isinstance(error, OperationInterrupted) and found.path.startswith(".layerfs/"):
        # That is how everybody ends who follows the access log.
        return pyfuse3.FUSEError(number)
    if number == errno.ENOENT:
        operations.stats.was_missing(found)
    else:
        if isinstance(error, LayerfsError):
            _log_failure(found, logging.WARNING if number in _SERIOUS else logging.INFO)
        if isinstance(error, _WRONG_CONTENT):
            operations.stats.verify_failures += 1
        operations.stats.failed(found)
    _write_access(operations, operation, arguments, request, nanoseconds, name)
    return pyfuse3.FUSEError(number)


def _describe(
    operations: GuardedOperations,
    operation: str,
    arguments: tuple[Any, ...],
    error: Exception,
    request: int,
    nanoseconds: int,
) -> Failure:
    ours = isinstance(error, LayerfsError)
    path, target = operations.paths(operation, arguments)
    return Failure(
        time=datetime.now(UTC).isoformat(timespec="milliseconds"),
        request=request,
        operation=operation,
        path=path,
        target=target,
        error=name_of(errno_of(error) if isinstance(error, LayerfsError) else errno.EIO),
        kind=type(error).__name__ if ours else UNEXPECTED,
        reason=str(error) if ours else f"unexpected {type(error).__name__}: {error}",
        duration=round(nanoseconds / 1e9, 6),
        details=operations.details(operation, arguments),
    )


def _log_failure(found: Failure, level: int) -> None:
    path = found.path if found.target is None else f"{found.path} -> {found.target}"
    fields = {"operation": found.operation, "path": path, "errno": found.error, **found.details.fields()}
    log.log(
        level,
        "%s %r: %s: %s",
        found.operation,
        path,
        found.error,
        found.reason,
        extra=fields | {"request": found.request, "duration": found.duration},
    )


# --- what succeeded ----------------------------------------------------------------------------------------------


def _tell(
    operations: GuardedOperations,
    operation: str,
    arguments: tuple[Any, ...],
    request: int,
    nanoseconds: int,
    result: Any,
) -> None:
    """Writes the access log, and a warning if it took long. Never fails: the operation has succeeded."""
    try:
        if nanoseconds > operations.slow_operation * 1e9:
            seconds = round(nanoseconds / 1e9, 6)
            path = operations.describe(operation, arguments)
            fields = {"operation": operation, "path": path, "request": request, "duration": seconds}
            fields |= operations.details(operation, arguments).fields()
            log.warning("%s %r: slow: took %.1f s", operation, path, seconds, extra=fields)
        _write_access(operations, operation, arguments, request, nanoseconds, "OK", result)
    except Exception:
        log.exception("%s: cannot be told", operation)


def _write_access(
    operations: GuardedOperations,
    operation: str,
    arguments: tuple[Any, ...],
    request: int,
    nanoseconds: int,
    result: str,
    content: Any = None,
) -> None:
    access_log = operations.stats.access_log
    if not access_log.readers:
        return
    path, target = operations.paths(operation, arguments)
    if path.startswith(".layerfs"):
        return  # or whoever reads the log would make it longer
    words = [datetime.now(UTC).isoformat(timespec="microseconds"), operation, f"path={json.dumps(path)}"]
    if target is not None:
        words.append(f"target={json.dumps(target)}")
    words += [f"{name}={value}" for name, value in operations.details(operation, arguments).fields().items()]
    words.append(f"result={result}")
    if operation == "read" and content is not None:
        words.append(f"bytes={len(content)}")
    words += [f"duration={nanoseconds / 1e9:.6f}", f"request={request}"]
    access_log.write(" ".join(words))
