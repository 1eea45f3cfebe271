"""The life of a mount: everything is put together, announced when it works, and taken apart in order when it ends.

One `trio.run`, one nursery that lives as long as the mount. It ends by a signal (drain, then unmount; a second signal
at once), or by itself when somebody else unmounts or aborts the connection. Nothing needs a clean end: what `kill -9`
leaves is a dead mount, which the next start clears away, and storage in a state that the registry layer explains.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import faulthandler
import logging
import os
import resource
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from enum import Enum, auto
from importlib.metadata import version
from typing import Final

import trio

from layerfs import mountpoint as mountpoints
from layerfs.config import MountConfig, Reloaded
from layerfs.errors import (
    LayerfsError,
)
from layerfs.exits import ExitCode
from layerfs.fuse.session import Session, SessionOptions
from layerfs.metrics import MetricsFile, MetricsUnavailable, served
from layerfs.registry.cache import CacheUnusable
from layerfs.source import USER_ERRORS, SourceUnusable, display_name, local_path, open_registry
from layerfs.view.control import CONTROL, STATUS
from layerfs.view.tree import Tree, TreeOptions

log = logging.getLogger(__name__)

#: How long the requests that are being answered get after the first signal. systemd kills after 90 s by default: this,
#: `_FLUSH_SECONDS` and `source.CLOSE_SECONDS` together stay below.
_GRACE_SECONDS: Final = 20.0
#: How long all uploads together get for their last bytes.
_FLUSH_SECONDS: Final = 40.0
#: How long a mount may take from mount(2) until the root can be looked at. No storage is asked for that.
_READY_SECONDS: Final = 30.0

#: Descriptors beside those of open layers: uploads, directories, sockets, the log.
_SPARE_DESCRIPTORS: Final = 1024


class DaemonFailed(Exception):
    """Why there is no mount (any more), in one line, and the exit code that says so."""

    def __init__(self, message: str, exit_code: ExitCode) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class NotReady(LayerfsError):
    """The mount did not answer in time."""


class Interrupted(LayerfsError):
    """A signal came before the mount was ready, or again while it was ending."""


def run(config: MountConfig, *, on_ready: Callable[[], None], reload: Callable[[], Reloaded]) -> None:
    """Mounts, calls `on_ready` when the mount answers, and returns when it has ended well.

    `reload` is called in a thread whenever SIGHUP asks for it, and raises `LayerfsError` if nothing can be changed.
    Raises `DaemonFailed`. To be called while the process has one thread.
    """
    try:
        # Where it hangs is printed when the watchdog of systemd ends it; unless standard error is closed.
        with contextlib.suppress(RuntimeError, ValueError):
            faulthandler.enable()
        storage = local_path(config.source)
        if mountpoints.is_descriptor(config.mountpoint):
            mountpoint = mountpoints.prepare_mounted(config.mountpoint, storage=storage)
        else:
            mountpoints.check_fuse(allow_other=config.allow_other)
            mountpoint = mountpoints.prepare(config.mountpoint, storage=storage)
        _raise_descriptor_limit(config.max_handles + config.max_uploads + _SPARE_DESCRIPTORS)
        _keep_freed_memory_small()
        trio.run(_Daemon(config, mountpoint, on_ready, reload).serve)
    except BaseException as error:
        raise _failure(error) from error


def notify(state: str) -> None:
    """Tells the service manager, if there is one (see sd_notify(3))."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as manager:
            manager.sendto(state.encode(errors="backslashreplace"), address)
    except OSError as exc:
        log.warning("the service manager at %r cannot be told %r: %s", os.environ["NOTIFY_SOCKET"], state, exc)


#: glibc's numbers for these options of mallopt(3).
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3

#: Bytes from which on a buffer is large: more than what the kernel sends in one write and asyncio receives at a time,
#: or each of them would cost fresh pages; and bytes of free memory that are kept for the next ones.
_LARGE_BUFFER: Final = 1536 << 10
_KEPT_FREE: Final = 4 << 20


class _Phase(Enum):
    STARTING = auto()
    SERVING = auto()
    #: No more requests come: uploads are flushed, the place is unmounted, the session is gone.
    ENDING = auto()


class _Daemon:
    def __init__(
        self, config: MountConfig, mountpoint: str, on_ready: Callable[[], None], reload: Callable[[], Reloaded]
    ) -> None:
        self._config = config
        self._read_again = reload
        self._mountpoint = mountpoint
        self._name = display_name(config.source)
        self._on_ready = on_ready
        self._phase = _Phase.STARTING
        self._signals = 0
        self._stop_session: Callable[[], None] = lambda: None
        self._apply: Callable[[MountConfig], None] = lambda config: None  # noqa: ARG005
        self._ends_with_terminal = _has_terminal()
        # What a second signal cuts short.
        self._serving = trio.CancelScope()
        self._flushing = trio.CancelScope(shield=True)

    async def serve(self) -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(self._watch_signals)
            config = self._config
            async with open_registry(
                config.source,
                verb="mount",
                may_create=True,
                create=config.create,
                trust_hash_states=config.trust_hash_states,
                cache=config.cache,
                metadata_ttl=config.metadata_ttl,
                cache_dir=config.content_directory,
                cache_size=config.cache_size,
            ) as registry:
                if registry.driver.capabilities.read_only and not config.read_only:
                    log.info("%s can only be read, so the mount is read-only", self._name)
                    self._config = dataclasses.replace(config, read_only=True)
                tree = Tree(registry, _tree_options(self._config), nursery, about=self._about())
                with self._metrics(tree, nursery):
                    await self._mount(tree, nursery)
            nursery.cancel_scope.cancel()

    async def _mount(self, tree: Tree, nursery: trio.Nursery) -> None:
        # A descriptor that is mounted already goes to libfuse by its own name.
        is_mounted = mountpoints.is_descriptor(self._config.mountpoint)
        place = self._config.mountpoint if is_mounted else self._mountpoint
        session = Session(tree, place, self._session_options())
        session.mount()
        device = _device_of(self._mountpoint)
        self._stop_session = session.stop
        self._apply = lambda config: _apply(config, tree, session)
        try:
            nursery.start_soon(self._announce, session, device)
            nursery.start_soon(self._keep_alive)
            nursery.start_soon(session.give_up_for_the_dying)
            await self._serve_requests(session)
        finally:
            self._phase = _Phase.ENDING
            try:
                await self._flush(tree)
            finally:
                session.close()
                _forget_mount(self._mountpoint, device)
        log.info("unmounted %r", self._mountpoint)

    @contextmanager
    def _metrics(self, tree: Tree, nursery: trio.Nursery) -> Iterator[None]:
        """Shows metrics to whoever was promised them, while the body runs."""
        config = self._config
        if config.metrics_file is not None:
            file = MetricsFile(tree.measurements, mountpoint=self._mountpoint, path=config.metrics_file)
            nursery.start_soon(file.keep)
        with ExitStack() as stack:
            if config.metrics_address is not None:
                address = config.metrics_address
                stack.enter_context(served(tree.measurements, mountpoint=self._mountpoint, address=address))
            yield

    async def _announce(self, session: Session, device: str | None) -> None:
        """Tells everybody who waits that the mount works, once the kernel has had an answer through it."""
        with trio.move_on_after(_READY_SECONDS) as limit:
            await self._look_at_mount()
            await self._look_at_status()
        if limit.cancelled_caught:
            raise NotReady(f"the mount on {self._mountpoint!r} gave no answer within {_READY_SECONDS:.0f} s")
        if self._phase is _Phase.ENDING:
            return
        if device is not None:
            session.raise_read_ahead(device)
        self._phase = _Phase.SERVING
        log.info("mounted %r on %r", self._name, self._mountpoint)
        self._notify_ready()
        self._on_ready()
        self._ends_with_terminal = _has_terminal()

    async def _look_at_status(self) -> None:
        """Has the kernel know the name: it looks up no new one in a directory that somebody waits to change."""
        with contextlib.suppress(OSError):
            await trio.to_thread.run_sync(os.stat, f"{self._mountpoint}/{STATUS}", abandon_on_cancel=True)

    def _notify_ready(self) -> None:
        notify(f"READY=1\nSTATUS=serving {self._name} on {self._mountpoint}")

    async def _look_at_mount(self) -> None:
        try:
            # In a thread, because it is this one that answers. Left behind, it goes when the mount goes.
            await trio.to_thread.run_sync(os.stat, self._mountpoint, abandon_on_cancel=True)
        except OSError as exc:
            raise NotReady(f"the mount on {self._mountpoint!r} was gone before it was ready: {exc.strerror}") from exc

    async def _watch_signals(self, task_status: trio.TaskStatus[None]) -> None:
        with trio.open_signal_receiver(*_ending_signals()) as received:
            task_status.started()
            async for number in received:
                if number == signal.SIGHUP and not self._ends_with_terminal:
                    await self._reload()
                else:
                    self._stop(signal.Signals(number).name)

    # --- for the service manager -----------------------------------------------------------------------------

    async def _keep_alive(self) -> None:
        """Tells the watchdog of systemd, if it is on, that the kernel has answers through this mount."""
        interval = watchdog_interval()
        while interval is not None and not self._is_ending():
            with trio.move_on_after(interval) as limit:
                await self._ask_mount()
                notify("WATCHDOG=1")
            if limit.cancelled_caught and not self._is_ending():
                log.warning("the mount on %r gave no answer within %.0f s", self._mountpoint, interval)
            await trio.sleep(interval)

    def _is_ending(self) -> bool:
        # New requests are not answered any more then, and systemd does not wait for signs of life.
        return self._signals > 0 or self._phase is _Phase.ENDING

    async def _ask_mount(self) -> None:
        """Returns when a request has come through the kernel and been answered. No storage is asked for it."""
        place = os.path.join(self._mountpoint, CONTROL)
        with contextlib.suppress(OSError):
            await trio.to_thread.run_sync(os.stat, place, abandon_on_cancel=True, limiter=trio.CapacityLimiter(1))

    async def _reload(self) -> None:
        if self._phase is not _Phase.SERVING:
            log.info("SIGHUP: nothing is reloaded while the mount begins or ends")
            return
        notify(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")
        try:
            reloaded = await trio.to_thread.run_sync(self._read_again)
        except LayerfsError as error:
            log.error("SIGHUP: nothing is changed: %s", error)
        else:
            self._config = reloaded.config
            self._apply(reloaded.config)
            log.info("SIGHUP: options were read again")
            if reloaded.ignored:
                log.warning("these options were changed and need a new mount: %s", ", ".join(reloaded.ignored))
        self._notify_ready()

    def _stop(self, signal_name: str) -> None:
        self._signals += 1
        if self._phase is _Phase.STARTING:
            raise Interrupted(f"{signal_name} before the mount was ready")
        if self._signals > 1:
            self._flushing.cancel()
            raise Interrupted(f"a second signal ({signal_name}) before the mount had ended")
        log.info("%s: ending the mount on %r", signal_name, self._mountpoint)
        if self._phase is _Phase.SERVING:
            notify("STOPPING=1\nSTATUS=answering the last requests")
            self._serving.deadline = trio.current_time() + _GRACE_SECONDS
            self._stop_session()

    async def _serve_requests(self, session: Session) -> None:
        """Returns when the mount was ended: by a signal, from outside, or by an abort of the connection."""
        with self._serving:
            await session.run()
        if self._serving.cancelled_caught:
            log.warning(
                "requests on %r were not answered within %.0f s and are given up", self._mountpoint, _GRACE_SECONDS
            )
        elif not self._signals:
            log.info("%r was unmounted from outside", self._mountpoint)

    async def _flush(self, tree: Tree) -> None:
        """Gives every upload its last bytes, also when an error ends the daemon; not after a second signal."""
        notify("STOPPING=1\nSTATUS=flushing uploads")
        self._flushing.deadline = trio.current_time() + _FLUSH_SECONDS
        with self._flushing:
            await tree.close()
        if self._flushing.cancelled_caught:
            log.warning("not all uploads were flushed: those have what was last synced, and can be continued")

    # --- what the parts are told -----------------------------------------------------------------------------

    def _session_options(self) -> SessionOptions:
        config = self._config
        return SessionOptions(
            source_name=self._name,
            allow_other=config.allow_other,
            read_only=config.read_only,
            operation_timeout=config.operation_timeout,
            slow_operation=config.slow_operation,
        )

    def _about(self) -> dict[str, object]:
        """What does not change while this daemon lives; `layerfs umount` needs the `pid`."""
        return {
            "version": version("layerfs"),
            "pid": os.getpid(),
            "source": self._name,
            "mountpoint": self._mountpoint,
            "read_only": self._config.read_only,
            "allow_delete": self._config.allow_delete,
            "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
        }


def _tree_options(config: MountConfig) -> TreeOptions:
    return TreeOptions(
        read_only=config.read_only,
        allow_delete=config.allow_delete,
        uid=config.uid,
        gid=config.gid,
        umask=config.umask,
        metadata_ttl=config.metadata_ttl,
        max_handles=config.max_handles,
        max_uploads=config.max_uploads,
        verify_reads=config.verify_reads,
    )


def _apply(config: MountConfig, tree: Tree, session: Session) -> None:
    """Changes what can be changed while it serves."""
    tree.change_options(_tree_options(config))
    session.change_timeout(config.operation_timeout)


# --- the process ---------------------------------------------------------------------------------------------


def _ending_signals() -> list[signal.Signals]:
    """What ends a mount; SIGHUP only where that is the end of its terminal. What nohup has ignored stays so."""
    is_ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return [signal.SIGTERM, signal.SIGINT, *([] if is_ignored else [signal.SIGHUP])]


def _has_terminal() -> bool:
    """Whether this process has a terminal whose end is its own: neither a daemon nor a service has."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def watchdog_interval() -> float | None:
    """Seconds between two signs of life, half of what systemd waits for; None if nobody waits (see sd_notify(3))."""
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    if not microseconds.isdigit() or int(microseconds) == 0:
        return None
    # Under mount.fuse3 or a shell it is meant for the whole service, whichever process was started first.
    return int(microseconds) / 2_000_000


def _raise_descriptor_limit(wanted: int) -> None:
    """Every open layer is a descriptor, and the usual soft limit of 1024 is for programs that use select(2)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))


def _keep_freed_memory_small() -> None:
    """Has large buffers given back to the system when they are freed, which glibc stops doing after the first ones.

    Without it the memory of eight uploads grew to twice what they use, for good.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGE_BUFFER)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_FREE)


def _device_of(mountpoint: str) -> str | None:
    mount = mountpoints.mount_at(mountpoint, mountpoints.read_mounts())
    return mount.device if mount is not None and mount.is_ours else None


def _forget_mount(mountpoint: str, device: str | None) -> None:
    """Takes our mount out of the kernel's table if it is still there: libfuse leaves it after an abort."""
    if device is None or _device_of(mountpoint) != device:
        return
    try:
        mountpoints.unmount(mountpoint, lazy=True)
    except mountpoints.UnmountFailed as error:
        log.warning("%s", error)


# --- what went wrong -----------------------------------------------------------------------------------------


def _failure(error: BaseException) -> DaemonFailed:
    """The one line that trio's groups of exceptions come down to. What is a bug is logged with its traceback."""
    causes = [cause for cause in _leaves(error) if not isinstance(cause, trio.Cancelled)]
    bug = next((cause for cause in causes if not isinstance(cause, LayerfsError | KeyboardInterrupt)), None)
    if bug is not None or not causes:
        log.critical("the daemon ends because of an error that should not happen", exc_info=error)
        return DaemonFailed(f"internal error, please report it with the log: {type(bug).__name__}: {bug}", ExitCode.BUG)
    cause = causes[0]
    message = str(cause) or "interrupted"
    log.debug("the daemon ends", exc_info=error)
    return DaemonFailed(message, _exit_code(cause))


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error


def _exit_code(cause: BaseException) -> ExitCode:
    if isinstance(cause, Interrupted | KeyboardInterrupt):
        return ExitCode.INTERRUPTED
    if isinstance(cause, SourceUnusable):
        return ExitCode.USAGE if cause.is_user_error else ExitCode.FAILED
    is_usage = isinstance(cause, (*USER_ERRORS, CacheUnusable, MetricsUnavailable, mountpoints.MountpointError))
    return ExitCode.USAGE if is_usage else ExitCode.FAILED
