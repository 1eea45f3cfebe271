"""The guard: what a handler raises becomes an errno, is logged and kept, and never ends the mount."""

from __future__ import annotations

import errno
import inspect
import json
import logging
import math
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pyfuse3
import pytest
import trio
import trio.testing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from layerfs import errors
from layerfs.driver.memory import MemoryDriver
from layerfs.fuse import guard
from layerfs.fuse.guard import GuardedOperations
from layerfs.fuse.operations import Operations
from layerfs.logs import one_line
from layerfs.registry import Registry
from layerfs.view.stats import Details, MountStats
from layerfs.view.tree import ROOT_INO, Tree, TreeOptions

TIMEOUT = 60.0
LOGGER = "layerfs.operations"


class Handlers(GuardedOperations):
    """Handlers that do what the test says."""

    operation_timeout = TIMEOUT
    slow_operation = math.inf

    def __init__(self) -> None:
        super().__init__(MountStats())
        self.behave: Callable[[], Awaitable[object]] = trio.lowlevel.checkpoint

    @property
    def records(self) -> list[tuple[str, str, str, str]]:
        return [(each.operation, each.path, each.error, each.reason) for each in self.stats.failures]

    @property
    def counts(self) -> dict[str, int]:
        return {operation: latency.count for operation, latency in self.stats.latencies.items()}

    def describe(self, operation: str, arguments: tuple[Any, ...]) -> str:
        return "some/path"

    def paths(self, operation: str, arguments: tuple[Any, ...]) -> tuple[str, str | None]:
        return "some/path", None

    def details(self, operation: str, arguments: tuple[Any, ...]) -> Details:
        return Details(inode=7)

    async def getattr(self, inode: int, ctx: object) -> object:
        return await self.behave()

    async def read(self, fh: int, off: int, size: int) -> object:
        return await self.behave()

    async def forget(self, inode_list: object) -> None:
        await self.behave()


@pytest.fixture
def handlers() -> Handlers:
    """Handlers that do nothing yet."""
    return Handlers()


def raising(error: BaseException) -> Callable[[], Awaitable[object]]:
    async def behave() -> object:
        raise error

    return behave


async def errno_from(call: Awaitable[object]) -> int:
    """The errno that the kernel gets."""
    with pytest.raises(pyfuse3.FUSEError) as caught:
        await call
    return caught.value.errno


async def test_an_answer_is_handed_on(handlers: Handlers) -> None:
    """And counted."""

    async def answer() -> object:
        return "answer"

    handlers.behave = answer
    assert await handlers.getattr(1, None) == "answer"
    assert handlers.counts == {"getattr": 1}


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (errors.NotPermitted("why"), errno.EPERM),
        (errors.LayerUploadBusy("a", "id", "why"), errno.EBUSY),
        (errors.StorageFull("/x"), errno.ENOSPC),
    ],
)
async def test_our_errors(
    handlers: Handlers, caplog: pytest.LogCaptureFixture, error: errors.LayerfsError, number: int
) -> None:
    """Their errno, one line with operation, path and reason, and a record."""
    caplog.set_level(logging.INFO)
    handlers.behave = raising(error)
    assert await errno_from(handlers.getattr(1, None)) == number
    name = errno.errorcode[number]
    assert [record.getMessage() for record in caplog.records] == [f"getattr 'some/path': {name}: {error}"]
    assert caplog.records[0].name == LOGGER
    assert handlers.records == [("getattr", "some/path", name, str(error))]


@pytest.mark.parametrize(
    "error",
    [
        errors.NoSuchEntry("why"),
        errors.LayerUnknown("a", "sha256:0"),
        errors.PathNotFound("/x"),
        errors.UnknownAttribute("why"),
        errors.UnsupportedAttribute("why"),
    ],
)
async def test_answers_that_are_no_failures(
    handlers: Handlers, caplog: pytest.LogCaptureFixture, error: errors.LayerfsError
) -> None:
    """What is not there, and attributes that are not there, leave no trace."""
    caplog.set_level(logging.DEBUG)
    handlers.behave = raising(error)
    assert await errno_from(handlers.getattr(1, None)) in (errno.ENOENT, errno.ENODATA, errno.EOPNOTSUPP)
    assert caplog.records == []
    assert handlers.records == []


@pytest.mark.parametrize(
    ("error", "level"),
    [
        (errors.NotPermitted("why"), logging.INFO),
        (errors.BackendFailure("/x"), logging.WARNING),
        (errors.StorageFull("/x"), logging.WARNING),
        (errors.HandleLimit("why"), logging.WARNING),
    ],
)
async def test_what_an_operator_should_look_at(
    handlers: Handlers, caplog: pytest.LogCaptureFixture, error: errors.LayerfsError, level: int
) -> None:
    """A warning for what is wrong with the storage or too small; a client's mistake is not."""
    caplog.set_level(logging.DEBUG)
    handlers.behave = raising(error)
    await errno_from(handlers.getattr(1, None))
    assert [record.levelno for record in caplog.records] == [level]


@pytest.mark.parametrize("error", [ValueError("bug"), OSError(errno.EPERM, "x"), ExceptionGroup("x", [KeyError(1)])])
@pytest.mark.parametrize("operation", ["getattr", "read"])
async def test_an_exception_that_should_not_be(
    handlers: Handlers, caplog: pytest.LogCaptureFixture, error: Exception, operation: str
) -> None:
    """EIO with a traceback in the log, and the next request is answered."""
    handlers.behave = raising(error)
    call = {"getattr": lambda: handlers.getattr(1, None), "read": lambda: handlers.read(1, 0, 1)}[operation]
    assert await errno_from(call()) == errno.EIO
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert caplog.records[0].exc_info is not None
    assert caplog.records[0].exc_info[1] is error
    (kept,) = handlers.stats.failures
    assert (kept.error, kept.kind, kept.details.inode) == ("EIO", "Unexpected", 7)
    assert type(error).__name__ in kept.reason
    handlers.behave = trio.lowlevel.checkpoint
    assert await call() is None


async def test_an_errno_of_the_handler_itself(handlers: Handlers) -> None:
    """Is handed on."""
    handlers.behave = raising(pyfuse3.FUSEError(errno.ENOSYS))
    assert await errno_from(handlers.getattr(1, None)) == errno.ENOSYS


async def test_the_deadline(
    handlers: Handlers, caplog: pytest.LogCaptureFixture, autojump_clock: trio.testing.MockClock
) -> None:
    """What takes too long is cancelled then: ETIMEDOUT, a warning, a record."""
    handlers.behave = trio.sleep_forever
    assert await errno_from(handlers.getattr(1, None)) == errno.ETIMEDOUT
    assert trio.current_time() == pytest.approx(TIMEOUT)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert [record[2] for record in handlers.records] == ["ETIMEDOUT"]


@pytest.mark.parametrize(("seconds", "is_slow"), [(9.0, False), (11.0, True)])
async def test_a_slow_success(
    handlers: Handlers, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, seconds: float, is_slow: bool
) -> None:
    """Is worth a warning, and is no failure."""
    now = iter([0, int(seconds * 1e9)])
    monkeypatch.setattr(guard, "monotonic_ns", lambda: next(now))
    handlers.slow_operation = 10.0
    assert await handlers.getattr(1, None) is None
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * is_slow
    assert handlers.records == []


async def test_nothing_is_under_way_afterwards(handlers: Handlers) -> None:
    """However it ended; while it lasts it is, with its number."""
    seen: list[object] = []

    async def look() -> None:
        seen.extend(handlers.stats.under_way.items())
        raise errors.NotPermitted("why")

    handlers.behave = look
    await errno_from(handlers.getattr(1, None))
    ((number, (operation, arguments, _)),) = seen
    assert (number, operation, arguments) == (1, "getattr", (1, None))
    assert handlers.stats.under_way == {}


async def test_an_answer_after_the_deadline(handlers: Handlers, autojump_clock: trio.testing.MockClock) -> None:
    """What could not be cancelled and was done in the end was done."""

    async def finish() -> object:
        with trio.CancelScope(shield=True):
            await trio.sleep(2 * TIMEOUT)
        return "done"

    handlers.behave = finish
    assert await handlers.getattr(1, None) == "done"


async def test_the_end_of_the_daemon_is_no_deadline(handlers: Handlers) -> None:
    """A handler that is cancelled from outside raises no errno: its worker ends."""
    handlers.behave = trio.sleep_forever
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(handlers.getattr, 1, None)
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()
    assert scope.cancelled_caught
    assert handlers.records == []


@pytest.mark.parametrize("error", [errors.StaleInode("why"), ValueError("bug"), pyfuse3.FUSEError(errno.EIO)])
async def test_forget_never_fails(handlers: Handlers, caplog: pytest.LogCaptureFixture, error: Exception) -> None:
    """Even an errno of it would end the mount."""
    handlers.behave = raising(error)
    await handlers.forget([])
    assert [record.levelno for record in caplog.records] == [logging.ERROR]


# --- all handlers ------------------------------------------------------------------------------------------------

HANDLERS = sorted(
    name
    for name, handler in vars(Operations).items()
    if inspect.iscoroutinefunction(handler) and hasattr(pyfuse3.Operations, name)
)

#: What the kernel must never be told that we do not have, because it remembers that for the life of the mount.
DEMANDED = (
    "access create flush forget fsync fsyncdir getattr getxattr link listxattr lookup mkdir mknod open opendir read "
    "readdir readlink release releasedir removexattr rename rmdir setattr setxattr statfs symlink unlink write"
)


class Broken:
    """A tree that has a bug in whatever is asked of it."""

    options = TreeOptions()

    def __init__(self) -> None:
        self.stats = MountStats()

    def path_of(self, *_arguments: object) -> str:
        return "path"

    def path_of_handle(self, *_arguments: object) -> str:
        return "path"

    def __getattr__(self, name: str) -> object:
        raise ZeroDivisionError(name)


def test_all_handlers_are_there() -> None:
    """None of pyfuse3's defaults, which answer ENOSYS."""
    assert set(HANDLERS) == set(DEMANDED.split())


async def test_an_exception_of_the_guard_itself(handlers: Handlers, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a failure cannot be described or kept, it is EIO, and the mount lives on."""
    handlers.behave = raising(errors.NotPermitted("why"))
    for owner, part in ((handlers, "paths"), (handlers, "details"), (handlers.stats, "failed")):
        with monkeypatch.context() as broken:
            broken.setattr(owner, part, lambda *_: 1 / 0)
            assert await errno_from(handlers.getattr(1, None)) == errno.EIO


@pytest.mark.parametrize("name", HANDLERS)
async def test_every_handler_is_guarded(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """A bug in what it calls, or arguments that are no such thing, are EIO at the most."""
    operations = Operations(Broken(), operation_timeout=TIMEOUT)  # type: ignore[arg-type]
    handler = getattr(operations, name)
    arguments = [
        1 if parameter.name != "name" else b"x" for parameter in inspect.signature(handler).parameters.values()
    ]
    try:
        await handler(*arguments)
    except pyfuse3.FUSEError as error:
        assert error.errno in (errno.EIO, errno.EINVAL, errno.EPERM)
        assert name != "forget"
    else:
        assert name in ("forget", "fsyncdir")


# --- names -----------------------------------------------------------------------------------------------------------

names = st.one_of(
    st.binary(min_size=1, max_size=300),
    st.text(st.sampled_from("a/\n\r\x1b[31m\x7f\x85\u202e\u2028é"), min_size=1, max_size=20).map(str.encode),
).filter(lambda name: b"/" not in name and b"\0" not in name)


OWN_DIRECTORIES = (b"_layers", b"_manifests", b"_oci", b"_tags", b"_uploads")

#: What the kernel says of the thread that calls, as far as it is looked at; 0 is one that it cannot name.
CALLER = SimpleNamespace(pid=0)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=names)
def test_no_name_gets_into_the_log_unescaped(caplog: pytest.LogCaptureFixture, name: bytes) -> None:
    """Whatever is made of it: every line, and every record for `.layerfs/errors`, is one printable line."""
    caplog.clear()
    caplog.set_level(logging.DEBUG)

    async def main() -> None:
        registry = await Registry.open(MemoryDriver(), create=True)
        await registry.create_repository("a")
        async with trio.open_nursery() as nursery:
            tree = Tree(registry, TreeOptions(), nursery)
            operations = Operations(tree, operation_timeout=TIMEOUT)
            repository, _ = await tree.lookup(ROOT_INO, b"a")
            own = [await tree.lookup(repository, own) for own in OWN_DIRECTORIES]
            places = [ROOT_INO, repository, *(ino for ino, _ in own)]
            for place in places:
                for call in (
                    lambda: operations.create(place, name, 0o644, 1, SimpleNamespace(pid=0)),  # noqa: B023
                    lambda: operations.mkdir(place, name, 0o755, None),  # noqa: B023
                    lambda: operations.unlink(place, name, None),  # noqa: B023
                    lambda: operations.rmdir(place, name, None),  # noqa: B023
                    lambda: operations.symlink(place, name, name, None),  # noqa: B023
                    lambda: operations.link(repository, place, name, None),  # noqa: B023
                    lambda: operations.rename(place, name, repository, name, 0, CALLER),  # noqa: B023
                    lambda: operations.getxattr(place, name, None),  # noqa: B023
                    lambda: operations.setxattr(place, name, b"", None),  # noqa: B023
                ):
                    try:
                        await call()
                    except pyfuse3.FUSEError as error:
                        assert error.errno != errno.EIO
            content = "".join(json.dumps([error.path, error.reason]) + "\n" for error in tree.stats.failures)
            assert all(one_line(line) == line for line in content.splitlines())
            nursery.cancel_scope.cancel()

    trio.run(main)
    for record in caplog.records:
        assert record.exc_info is None
        assert one_line(record.getMessage()) == record.getMessage()
