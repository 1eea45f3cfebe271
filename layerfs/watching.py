"""Looking at mounts from outside: which there are, whether they live, and what they say of themselves.

A mount whose daemon hangs never answers, and whoever asks it can not even be killed. So every question is asked by a
child process that can be left behind (`mountpoint.ask`), and has a deadline.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

from layerfs import mountpoint as mountpoints
from layerfs.errors import LayerfsError
from layerfs.mountpoint import Mount

#: In every mount.
CONTROL: Final = ".layerfs"

#: Seconds that a mount has for an answer.
ANSWER_SECONDS: Final = 5.0

#: Bytes of what a mount says of itself; more is not looked at.
_LIMIT: Final = 8 << 20

#: Errnos that only a mount without a daemon gives.
_DEAD: Final = ("ENOTCONN", "ECONNABORTED")

_CONTENT: Final = b"+"
_ERRNO: Final = b"-"


class NotInAMount(LayerfsError):
    """A path that is in no mount of layerfs; the user can name another one."""


class Unanswered(LayerfsError):
    """A mount gave no answer, or an errno: `error` is its name."""

    def __init__(self, message: str, error: str | None = None) -> None:
        super().__init__(message)
        self.error = error


class State(Enum):
    """How a mount is; the values are what `status --format json` says."""

    SERVING = "serving"
    #: Its daemon has ended.
    DEAD = "dead"
    #: Its daemon does not answer.
    HUNG = "hung"
    #: It answers, but not to this user, or not like layerfs.
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class Report:
    """What was found out about a mount: `status` is its status.json, where it is serving; `reason` why it is not."""

    mount: Mount
    state: State
    status: dict[str, Any]
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Place:
    """A path in a mount of layerfs, relative to its root: "" for the root itself."""

    mount: Mount
    path: str


# --- which mounts there are ----------------------------------------------------------------------------------------


def find_mounts() -> list[Mount]:
    """All mounts of layerfs that can be seen, by path; of several on one place, the topmost. Never waits."""
    mounts = mountpoints.read_mounts()
    paths = sorted({mount.path for mount in mounts if mount.is_ours})
    seen = [mountpoints.mount_at(path, mounts) for path in paths]
    return [mount for mount in seen if mount is not None and mount.is_ours]


def find_mount(path: str) -> Mount:
    """The mount on `path`. Raises `NotInAMount`."""
    mounts = mountpoints.read_mounts()
    resolved = mountpoints.resolve(path, mounts)
    mount = mountpoints.mount_at(resolved, mounts)
    if mount is None or not mount.is_ours:
        raise NotInAMount(f"{path!r} is no mountpoint of layerfs{_there_are(mounts)}")
    return mount


def find_place(path: str) -> Place:
    """Where a path is, whether it exists or not; asks no mount of layerfs anything. Raises `NotInAMount`."""
    mounts = mountpoints.read_mounts()
    resolved = "/"
    rest = [part for part in os.path.join(os.getcwd(), path).split("/") if part not in ("", ".")]
    while (mount := mountpoints.mount_at(resolved, mounts)) is None or not mount.is_ours:
        if not rest:
            raise NotInAMount(f"{path!r} is in no mount of layerfs{_there_are(mounts)}")
        resolved = mountpoints.resolve(os.path.join(resolved, rest.pop(0)), mounts)
    below = os.path.normpath("/" + "/".join(rest)).lstrip("/")
    root = mount.root.strip("/")  # a part of it may be mounted elsewhere
    return Place(mount, "/".join(filter(None, (root, below))))


def _there_are(mounts: list[Mount]) -> str:
    paths = sorted({mount.path for mount in mounts if mount.is_ours})
    return f"; there are {', '.join(repr(path) for path in paths[:5])}" if paths else "; none is mounted"


# --- asking them ---------------------------------------------------------------------------------------------------


def report_on(mount: Mount, *, seconds: float = ANSWER_SECONDS) -> Report:
    """How the mount is. Never raises, and takes no longer than `seconds`."""
    try:
        content = read_control(mount, "status.json", seconds=seconds)
    except Unanswered as error:
        return Report(mount, _state(error), {}, str(error))
    try:
        status = json.loads(content)
    except ValueError as error:
        return Report(mount, State.CLOSED, {}, f"status.json cannot be understood: {error}")
    if not isinstance(status, dict):
        return Report(mount, State.CLOSED, {}, "status.json is no object")
    return Report(mount, State.SERVING, status)


def report_on_all(mounts: Sequence[Mount]) -> list[Report]:
    """`report_on` each of them, at the same time: several that hang take no longer than one."""
    if len(mounts) < 2:
        return [report_on(mount) for mount in mounts]
    asked = [(mount, *_begin_report(mount)) for mount in mounts]
    return [_end_report(mount, pid, reading) for mount, pid, reading in asked]


def _begin_report(mount: Mount) -> tuple[int, int]:
    """A child process that reports on a mount, and where its report is to be read."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writing)
        return pid, reading
    try:
        os.close(reading)
        report = report_on(mount)
        with os.fdopen(writing, "w") as pipe:
            json.dump({"state": report.state.value, "status": report.status, "reason": report.reason}, pipe)
    finally:
        os._exit(0)


def _end_report(mount: Mount, pid: int, reading: int) -> Report:
    with os.fdopen(reading) as pipe:
        said = json.load(pipe)
    os.waitpid(pid, 0)
    return Report(mount, State(said["state"]), said["status"], said["reason"])


def _state(error: Unanswered) -> State:
    if error.error is None:
        return State.HUNG
    return State.DEAD if error.error in _DEAD else State.CLOSED


def read_control(mount: Mount, name: str, *, seconds: float = ANSWER_SECONDS) -> bytes:
    """The content of `.layerfs/name`. Raises `Unanswered`."""
    path = os.path.join(mount.path, CONTROL, name)

    def read() -> bytes:
        with open(path, "rb") as file:
            return file.read(_LIMIT)

    return _ask(mount, read, seconds)


def read_failures(mount: Mount, name: str) -> list[dict[str, Any]]:
    """What `.layerfs/errors` or `.layerfs/missing` has, the newest first. Raises `Unanswered`."""
    lines = read_control(mount, name).splitlines()
    try:
        found = [json.loads(line) for line in lines]
    except ValueError as error:
        raise Unanswered(f"{name} of the mount on {mount.path!r} cannot be understood: {error}", "EIO") from error
    return [each for each in reversed(found) if isinstance(each, dict)]


def look_at(place: Place) -> bool | None:
    """Whether there is something at a place, as the mount says now; None if that fails, or takes longer than a mount
    has that answers (the storage behind it may not). Raises `Unanswered` for a mount that is dead.
    """
    path = os.path.join(place.mount.path, place.path)

    def look() -> bytes:
        try:
            os.lstat(path)
        except (FileNotFoundError, NotADirectoryError):
            return b"0"
        return b"1"

    try:
        return _ask(place.mount, look, ANSWER_SECONDS) == b"1"
    except Unanswered as error:
        if _state(error) is State.DEAD:
            raise
        return None


def _ask(mount: Mount, question: Callable[[], bytes], seconds: float) -> bytes:
    def answer() -> bytes:
        try:
            return _CONTENT + question()
        except OSError as error:
            return _ERRNO + errno.errorcode.get(error.errno or 0, "EIO").encode()

    found = mountpoints.ask(answer, seconds=seconds)
    if found is None:
        raise Unanswered(
            f"the daemon of {mount.path!r} gave no answer within {seconds:g} s: kill it, or run "
            f"'layerfs umount --lazy {mount.path}'; its log should say what it waits for"
        )
    if found[:1] == _CONTENT:
        return found[1:]
    name = found[1:].decode()
    if name in _DEAD:
        raise Unanswered(
            f"the daemon of {mount.path!r} is gone: mount it again, which clears it away, or run "
            f"'layerfs umount {mount.path}'",
            name,
        )
    number = getattr(errno, name, errno.EIO)
    raise Unanswered(f"the mount on {mount.path!r} cannot be looked at by this user: {os.strerror(number)}", name)
