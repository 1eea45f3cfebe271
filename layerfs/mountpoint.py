"""The place where a file system is mounted: may it be mounted on, what is mounted there, and unmounting it.

Looking at a mount whose daemon is wedged blocks for ever, in a state that SIGKILL does not end. So the kernel's table
of mounts is read first, and a FUSE mount is only ever touched by a child process that can be left behind (`ask`).
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import re
import select
import shutil
import signal
import stat
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from layerfs.errors import LayerfsError

log = logging.getLogger(__name__)

#: What the kernel calls a mount of ours.
FILESYSTEM_TYPE: Final = "fuse.layerfs"

#: How long a mount may take to answer whether it is alive.
_ANSWER_SECONDS: Final = 5.0

# From <sys/mount.h>; Python has no umount(2).
_MNT_DETACH: Final = 2
_UMOUNT_NOFOLLOW: Final = 8

#: Errors that only a FUSE mount without a daemon gives: dead, or dying while it was asked.
_DEAD: Final = frozenset({errno.ENOTCONN, errno.ECONNABORTED})

#: As many as the kernel follows in one path.
_MAX_SYMLINKS: Final = 40


class MountpointError(LayerfsError):
    """This place cannot be mounted on (or unmounted), and the user can do something about it."""


class UnmountFailed(LayerfsError):
    """The kernel refused to unmount, as a rule because somebody uses the mount."""


@dataclass(frozen=True, slots=True)
class Mount:
    """A line of /proc/self/mountinfo."""

    mount_id: int
    parent_id: int
    #: `major:minor`, which is what distinguishes one mount of ours from another.
    device: str
    #: Which directory of the file system is mounted; not `/` for a bind mount of a part.
    root: str
    path: str
    filesystem_type: str
    source: str
    #: Those of this place (`nosuid`), and those of the file system (`allow_other`).
    options: frozenset[str] = frozenset()

    @property
    def is_ours(self) -> bool:
        return self.filesystem_type == FILESYSTEM_TYPE

    @property
    def is_fuse(self) -> bool:
        return self.filesystem_type in ("fuse", "fuseblk") or self.filesystem_type.startswith("fuse.")


# --- the table of mounts -----------------------------------------------------------------------------------


def read_mounts() -> list[Mount]:
    """All mounts that this process sees. Never blocks."""
    with open("/proc/self/mountinfo", "rb") as file:
        return parse_mountinfo(file.read())


def parse_mountinfo(content: bytes) -> list[Mount]:
    """The mounts in the content of a mountinfo file (see proc(5))."""
    # By b"\n" only: names keep other line separators unescaped.
    return [_parse_mount(line) for line in content.split(b"\n") if line]


def _parse_mount(line: bytes) -> Mount:
    before, _, after = line.partition(b" - ")
    mount_id, parent_id, device, root, path, options, *_ = before.split(b" ")
    filesystem_type, source, *more_options = after.split(b" ")
    return Mount(
        mount_id=int(mount_id),
        parent_id=int(parent_id),
        device=device.decode(),
        root=_unescape(root),
        path=_unescape(path),
        filesystem_type=_unescape(filesystem_type),
        source=_unescape(source),
        options=frozenset(_unescape(b",".join([options, *more_options])).split(",")),
    )


def _unescape(field: bytes) -> str:
    # Space, tab, newline, backslash and # are written as \ooo; everything else as it is.
    return os.fsdecode(re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match.group(1), 8)]), field))


def mount_at(path: str, mounts: Iterable[Mount]) -> Mount | None:
    """The mount that is seen at the resolved `path`: of several on top of each other, the topmost."""
    stacked = [mount for mount in mounts if mount.path == path]
    covered = {mount.parent_id for mount in stacked}
    return next((mount for mount in stacked if mount.mount_id not in covered), None)


def resolve(path: str, mounts: Iterable[Mount]) -> str:
    """The absolute path without symbolic links, like `os.path.realpath`, but never asks a FUSE mount at `path`.

    Parts that do not exist stay as they are.
    """
    untouchable = {mount.path for mount in mounts if mount.is_fuse}
    absolute = path if os.path.isabs(path) else os.path.join(os.getcwd(), path)
    pending = list(reversed(absolute.split("/")))
    resolved = "/"
    links = 0
    while pending:
        part = pending.pop()
        if part in ("", ".", ".."):
            resolved = os.path.dirname(resolved) if part == ".." else resolved
            continue
        candidate = os.path.join(resolved, part)
        target = None if candidate in untouchable else _link_target(candidate)
        if target is None:
            resolved = candidate
            continue
        links += 1
        if links > _MAX_SYMLINKS:
            raise MountpointError(f"{path!r} cannot be followed: too many symbolic links")
        if target.startswith("/"):
            resolved = "/"
        pending.extend(reversed(target.split("/")))
    return resolved


def _link_target(path: str) -> str | None:
    try:
        return os.readlink(path)
    except OSError:
        return None


# --- before mounting ---------------------------------------------------------------------------------------


def prepare(mountpoint: str, *, storage: str | None) -> str:
    """The resolved path of `mountpoint`, ready to be mounted on; `storage` is the local directory to be shown there.

    A dead mount of ours is cleared away. Raises `MountpointError` for everything else that is in the way. Must be
    called while the process has one thread.
    """
    path = resolve(mountpoint, read_mounts())
    _clear_dead_mounts(path)
    _check_directory(path)
    if storage is not None:
        _check_apart(path, storage)
    _check_usable(path)
    return path


def _clear_dead_mounts(path: str) -> None:
    while (mount := mount_at(path, read_mounts())) is not None and mount.is_fuse:
        if not mount.is_ours:
            raise MountpointError(
                f"mountpoint {path!r} holds a mount of type {mount.filesystem_type!r} (of {mount.source!r}): "
                "unmount it first, or choose another directory"
            )
        _check_dead(path, mount)
        unmount(path, lazy=True)
        log.info("cleared away the dead mount of %r on %r", mount.source, path)


def _check_dead(path: str, mount: Mount) -> None:
    """Raises `MountpointError` unless the daemon of the mount is gone."""
    number = ask_errno(path)
    if number is None:
        raise MountpointError(
            f"mountpoint {path!r} holds a mount of {mount.source!r} whose daemon does not answer: "
            f"kill that daemon, or run 'layerfs umount --lazy {path}'"
        )
    if number not in _DEAD:
        raise MountpointError(
            f"{mount.source!r} is already mounted on {path!r}: run 'layerfs umount {path}' first, "
            "or choose another directory"
        )


def ask_errno(path: str) -> int | None:
    """What a mount answers when it is asked whether it is alive: 0, or an errno; None if it does not answer.

    Must be called while the process has one thread.
    """
    answer = ask(lambda: _errno_of(lambda: os.statvfs(path)))
    return None if answer is None else int(answer)


def _errno_of(call: Callable[[], object]) -> bytes:
    # statvfs and not stat: the kernel answers stat from its cache for a while, also for the dead.
    try:
        call()
    except OSError as exc:
        return b"%d" % (exc.errno or 0)
    return b"0"


def _check_directory(path: str) -> None:
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        raise MountpointError(f"mountpoint {path!r} does not exist: make it with 'mkdir -p {path}'") from None
    except OSError as exc:
        raise MountpointError(f"mountpoint {path!r} cannot be used: {exc.strerror}") from exc
    if not stat.S_ISDIR(mode):
        raise MountpointError(f"mountpoint {path!r} is not a directory")


def _check_usable(path: str) -> None:
    try:
        with os.scandir(path) as entries:
            found = next(entries, None)
    except PermissionError:
        raise MountpointError(
            f"mountpoint {path!r} may not be listed by this user: choose a directory of yours"
        ) from None
    if found is not None:
        raise MountpointError(
            f"mountpoint {path!r} is not empty (it has {found.name!r}): what is in it would be hidden; "
            "choose an empty directory"
        )
    if os.geteuid() != 0 and not os.access(path, os.W_OK):
        raise MountpointError(f"mountpoint {path!r} is not writable by this user, who therefore may not mount on it")


def _check_apart(path: str, storage: str) -> None:
    """Raises `MountpointError` if the mount would hide the storage, or the storage contain the mount.

    Either makes the daemon wait for itself. Checked by name, by identity of the directories above, and by place on
    the file system below: bind mounts give one directory several names, and a mount on one may show on the others.
    """
    source = os.path.realpath(storage)
    mounts = read_mounts()
    below = _is_within(path, source) or _is_among_parents(source, path) or _lies_within(path, source, mounts)
    above = _is_within(source, path) or _is_among_parents(path, source) or _lies_within(source, path, mounts)
    if not below and not above:
        return
    relation = "is" if below and above else "is inside" if below else "contains"
    raise MountpointError(
        f"mountpoint {path!r} {relation} the storage {source!r}: the daemon would wait for its own answers; "
        "choose a directory elsewhere"
    )


def _is_within(path: str, directory: str) -> bool:
    return path == directory or path.startswith(directory.rstrip("/") + "/")


def _is_among_parents(directory: str, path: str) -> bool:
    identity = _identity(directory)
    return identity is not None and any(_identity(parent) == identity for parent in _with_parents(path))


def _identity(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _with_parents(path: str) -> Iterator[str]:
    while True:
        yield path
        if path == "/":
            return
        path = os.path.dirname(path)


def _lies_within(path: str, directory: str, mounts: Iterable[Mount]) -> bool:
    inner, outer = _place(path, mounts), _place(directory, mounts)
    return inner is not None and outer is not None and inner[0] == outer[0] and _is_within(inner[1], outer[1])


def _place(path: str, mounts: Iterable[Mount]) -> tuple[str, str] | None:
    """The device, and the path on it, that the resolved `path` leads to."""
    mounts = list(mounts)
    for parent in _with_parents(path):
        mount = mount_at(parent, mounts)
        if mount is not None:
            return mount.device, os.path.normpath(os.path.join(mount.root, os.path.relpath(path, parent)))
    return None


# --- mounted already, by somebody with more rights -----------------------------------------------------------

_DESCRIPTOR: Final = re.compile(r"/dev/fd/([0-9]+)")


def is_descriptor(mountpoint: str) -> bool:
    """Whether a mountpoint is not a place but /dev/fuse, opened and mounted already (by mount.fuse3, say)."""
    return _DESCRIPTOR.fullmatch(mountpoint) is not None


def prepare_mounted(mountpoint: str, *, storage: str | None) -> str:
    """The place where the descriptor `mountpoint` is mounted. Never touches it: nobody answers there yet.

    Raises `MountpointError` if it is not mounted as `layerfs mount` would have done it, or hides the storage.
    """
    mount = _mount_of(mountpoint)
    missing = sorted({"nosuid", "nodev"} - mount.options)
    if "allow_other" in mount.options and "default_permissions" not in mount.options:
        missing.append("default_permissions")
    if missing:
        raise MountpointError(
            f"{mount.path!r} is mounted without {' and '.join(missing)}: add -o {','.join(missing)} to what mounts it"
        )
    if storage is not None:
        _check_apart_by_name(mount.path, storage)
    return mount.path


def _mount_of(mountpoint: str) -> Mount:
    match = _DESCRIPTOR.fullmatch(mountpoint)
    try:
        is_fuse = match is not None and os.readlink(f"/proc/self/fd/{match[1]}") == "/dev/fuse"
    except OSError:
        is_fuse = False
    if match is None or not is_fuse:
        raise MountpointError(f"mountpoint {mountpoint!r} is not /dev/fuse, opened by the one who calls layerfs")
    with open(f"/proc/self/fdinfo/{match[1]}", "rb") as file:
        connection = re.search(rb"^fuse_connection:\s*([0-9]+)$", file.read(), re.MULTILINE)
    mounts = [mount for mount in read_mounts() if mount.is_fuse]
    # Older kernels do not say which connection it is: then it is the newest of ours, as it was mounted just now.
    wanted = f"0:{int(connection[1])}" if connection else None
    found = [mount for mount in mounts if (mount.is_ours if wanted is None else mount.device == wanted)]
    if not found:
        raise MountpointError(f"mountpoint {mountpoint!r} is /dev/fuse, but nothing is mounted with it")
    return max(found, key=lambda mount: mount.mount_id)


def _check_apart_by_name(path: str, storage: str) -> None:
    mounts = read_mounts()
    source = resolve(storage, mounts)
    around = os.path.dirname(path)
    if _is_within(source, path) or _is_within(path, source) or _lies_within(around, source, mounts):
        raise MountpointError(
            f"mountpoint {path!r} and the storage {source!r} are one inside the other: the daemon would wait for its "
            "own answers; choose a directory elsewhere"
        )


# --- the log -------------------------------------------------------------------------------------------------


def check_log_file(log_file: str, mountpoint: str) -> None:
    """Raises `MountpointError` if a file of the daemon, its log say, would be written into its own mount."""
    mounts = read_mounts()
    path = resolve(mountpoint, mounts)
    if _is_within(resolve(os.path.dirname(log_file), mounts), path):
        raise MountpointError(
            f"the file {log_file!r} is inside the mountpoint {path!r}: the daemon would wait for its own answers; "
            "choose a file elsewhere"
        )


# --- may this user mount at all ------------------------------------------------------------------------------


def check_fuse(*, allow_other: bool) -> None:
    """Raises `MountpointError` if this machine or user cannot mount with FUSE."""
    if not os.path.exists("/dev/fuse"):
        raise MountpointError(
            "/dev/fuse does not exist: load the kernel module with 'modprobe fuse' "
            "(in a container: give it the device and CAP_SYS_ADMIN)"
        )
    if os.geteuid() == 0:
        return
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        raise MountpointError(
            "/dev/fuse may not be opened by this user: give it the usual mode with 'chmod 666 /dev/fuse' "
            "(everybody only reaches mounts of his own through it), or mount as root"
        )
    if shutil.which("fusermount3") is None:
        raise MountpointError(
            "an ordinary user needs fusermount3 to mount: install the package fuse3, or mount as root"
        )
    if allow_other and not fuse_conf_allows_other("/etc/fuse.conf"):
        raise MountpointError(
            "an ordinary user may not use --allow-other: add the line 'user_allow_other' to /etc/fuse.conf, "
            "or mount as root"
        )


def fuse_conf_allows_other(path: str) -> bool:
    """Whether ordinary users may let others use their mounts."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return any(line.strip() == "user_allow_other" for line in file)
    except OSError:
        return False


# --- unmounting ----------------------------------------------------------------------------------------------


def unmount(path: str, *, lazy: bool) -> None:
    """Unmounts what is on top at the resolved `path`. `lazy`: takes it out of sight now, and ends it with its last use.

    Raises `UnmountFailed`; nothing changed then.
    """
    if os.geteuid() == 0:
        _unmount_as_root(path, lazy=lazy)
    else:
        _unmount_as_user(path, lazy=lazy)


def _unmount_as_root(path: str, *, lazy: bool) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.umount2(os.fsencode(path), _UMOUNT_NOFOLLOW | (_MNT_DETACH if lazy else 0)) == 0:
        return
    number = ctypes.get_errno()
    if number == errno.EBUSY:
        raise UnmountFailed(_busy_message(path))
    raise UnmountFailed(f"cannot unmount {path!r}: {os.strerror(number)}")


def _unmount_as_user(path: str, *, lazy: bool) -> None:
    command = ["fusermount3", "-u", *(["-z"] if lazy else []), "--", path]
    try:
        result = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    except FileNotFoundError:
        raise UnmountFailed(f"cannot unmount {path!r}: no fusermount3; install the package fuse3") from None
    if result.returncode == 0:
        return
    # Its exit status is 1 for everything, so what it says stands beside what we find.
    said = " ".join(result.stderr.split()) or f"fusermount3 exits with status {result.returncode}"
    raise UnmountFailed(f"{_busy_message(path)} ({said})" if _users_of(path) else f"cannot unmount {path!r}: {said}")


def _busy_message(path: str) -> str:
    users = ", ".join(_users_of(path)[:5]) or "a process that cannot be seen from here"
    return f"{path!r} is busy: in use by {users}; close that, or detach the mount with 'layerfs umount --lazy {path}'"


def _users_of(path: str) -> list[str]:
    """Who has something open below `path`, as far as this user may know, and mounts on top. Never asks the mount."""
    users = [f"the mount on {mount.path!r}" for mount in read_mounts() if mount.path.startswith(path.rstrip("/") + "/")]
    users += [
        f"{_command_of(pid)!r} (pid {pid})"
        for pid in filter(str.isdigit, os.listdir("/proc"))
        if any(_is_within(target, path) for target in open_paths(pid))
    ]
    return users


def open_paths(pid: int | str) -> Iterator[str]:
    """What a process has open, as far as this user may know. Never asks what is open."""
    links = [f"/proc/{pid}/cwd", f"/proc/{pid}/root", f"/proc/{pid}/exe"]
    with suppress(OSError):
        links += [f"/proc/{pid}/fd/{fd}" for fd in os.listdir(f"/proc/{pid}/fd")]
    for link in links:
        with suppress(OSError):
            yield os.readlink(link)


def _command_of(pid: str) -> str:
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return "?"


# --- asking a mount something that may never be answered -----------------------------------------------------


def ask(question: Callable[[], bytes], *, seconds: float = _ANSWER_SECONDS) -> bytes | None:
    """What `question` returns when a child process calls it; None if it fails or takes longer than `seconds`.

    The child is left behind then, killed; it goes when the kernel lets it. For short answers. Must be called while the
    process has one thread.
    """
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        _answer_and_exit(question, writing)
    os.close(writing)
    try:
        answer = _read_to_end(reading, seconds)
    finally:
        os.close(reading)
        os.kill(pid, signal.SIGKILL)
    # A child that never answered may be stuck in the kernel: not waited for, it becomes init's.
    os.waitpid(pid, 0 if answer is not None else os.WNOHANG)
    return answer or None


def _answer_and_exit(question: Callable[[], bytes], writing: int) -> None:
    try:
        # Nobody shall wait for the end of a pipe that a stuck child still holds.
        os.dup2(writing, 3)
        os.closerange(0, 3)
        os.closerange(4, os.sysconf("SC_OPEN_MAX"))
        os.write(3, question())
    finally:
        os._exit(0)


def _read_to_end(fd: int, seconds: float) -> bytes | None:
    deadline = time.monotonic() + seconds
    content = b""
    while True:
        readable, _, _ = select.select([fd], [], [], max(0.0, deadline - time.monotonic()))
        if not readable:
            return None
        chunk = os.read(fd, 65536)
        if not chunk:
            return content
        content += chunk
