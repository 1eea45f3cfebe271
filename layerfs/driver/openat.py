"""Opening what lies beneath a directory, and nothing else: `openat2(2)`.

The storage is hostile input: anybody who can write there can put a symbolic link, a FIFO or a device where a file is
expected, at any moment. Checking a path first and opening it then is a race; the kernel alone can do both at once. So
every path goes through `openat2` with `RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS`, and a file is
first taken hold of without being opened (`O_PATH`), looked at, and opened only if it is a regular one: opening a FIFO
already wakes its writer, and opening a device can do anything.
"""

from __future__ import annotations

import copy
import ctypes
import errno
import os
import stat
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from types import TracebackType
from typing import Final

from layerfs.errors import NotRegularFile, UnsupportedByDriver

#: The same on every architecture of Linux that Debian has.
_SYS_OPENAT2: Final = 437

_RESOLVE_NO_MAGICLINKS: Final = 0x02
_RESOLVE_NO_SYMLINKS: Final = 0x04
_RESOLVE_BENEATH: Final = 0x08
_RESOLVE_CACHED: Final = 0x20

#: File systems on disks and in memory (`linux/magic.h`): what the kernel has of a name there it need not ask about.
#: ext2 to ext4, xfs, btrfs, tmpfs, f2fs, zfs, overlay.
_LOCAL: Final = frozenset({0xEF53, 0x58465342, 0x9123683E, 0x01021994, 0xF2F52010, 0x2FC12FC1, 0x794C7630})

#: Without O_NOFOLLOW, which would make a symbolic link ENOTDIR; RESOLVE_NO_SYMLINKS makes it ELOOP.
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY

_KINDS: Final = {
    stat.S_IFDIR: "a directory",
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
}


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


_syscall = ctypes.CDLL(None, use_errno=True).syscall
_syscall.restype = ctypes.c_long
_syscall.argtypes = (ctypes.c_long, ctypes.c_int, ctypes.c_char_p, ctypes.POINTER(_OpenHow), ctypes.c_size_t)


_statfs = ctypes.CDLL(None, use_errno=True).fstatfs
_statfs.argtypes = (ctypes.c_int, ctypes.c_char_p)


@lru_cache(maxsize=32)
def _how(flags: int, resolve: int) -> _OpenHow:
    resolve |= _RESOLVE_BENEATH | _RESOLVE_NO_SYMLINKS | _RESOLVE_NO_MAGICLINKS
    return _OpenHow(flags=flags | os.O_CLOEXEC, mode=0, resolve=resolve)


def _openat2(directory: int, path: str, flags: int, resolve: int) -> int:
    name = path[1:].encode() or b"."
    how = _how(flags, resolve)
    while True:
        descriptor: int = _syscall(_SYS_OPENAT2, directory, name, how, ctypes.sizeof(how))
        if descriptor >= 0:
            return descriptor
        number = ctypes.get_errno()
        if number != errno.EINTR:
            raise OSError(number, os.strerror(number), path)


def _is_local(number: int) -> bool:
    """Whether the directory lies on a disk or in memory; also false where that cannot be told."""
    # struct statfs begins with the type, a long; the whole has 120 bytes on 64-bit machines.
    buffer = ctypes.create_string_buffer(256)
    return _statfs(number, buffer) == 0 and ctypes.c_long.from_buffer(buffer).value in _LOCAL


def split(path: str) -> tuple[str, str]:
    """The directory that `path` lies in, and its name there."""
    directory, _, name = path.rpartition("/")
    return directory or "/", name


def join(directory: str, name: str) -> str:
    """The path of `name` in `directory`."""
    return f"/{name}" if directory == "/" else f"{directory}/{name}"


def refuse_irregular(status: os.stat_result, path: str) -> None:
    """Raises `NotRegularFile` if `status` is not that of a regular file."""
    if not stat.S_ISREG(status.st_mode):
        raise NotRegularFile(path, _KINDS.get(stat.S_IFMT(status.st_mode), "of an unknown kind"))


class Descriptor:
    """An open file, closed when it is told to or when nobody has it any more.

    A thread uses it in a `with` block, which gives the number. `close` in the meantime takes effect at the end of that
    block: a number that was closed under a thread that still uses it would be somebody else's file.
    """

    __slots__ = ("_closing", "_lock", "_users", "number")

    def __init__(self, number: int) -> None:
        self.number = number
        self._lock = threading.Lock()
        self._users = 0
        self._closing = False

    def __enter__(self) -> int:
        with self._lock:
            if self._closing:
                raise OSError(errno.EBADF, os.strerror(errno.EBADF))
            self._users += 1
            return self.number

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._lock:
            self._users -= 1
            self._close_if_unused()

    def close(self) -> None:
        """Closes the file as soon as no thread uses it. May be called again; never fails."""
        with self._lock:
            self._closing = True
            self._close_if_unused()

    def _close_if_unused(self) -> None:
        if self._closing and not self._users and self.number >= 0:
            number, self.number = self.number, -1
            # What close reports late (NFS) was reported by fsync, where anybody cared to know.
            with suppress(OSError):
                os.close(number)

    def __del__(self) -> None:
        self.close()


class Root:
    """A directory, and what can be done beneath it without ever leaving it.

    Everything here blocks: it is for threads. Paths begin with `/`, and were checked by `check_path`. Errors are
    `OSError`, and `NotRegularFile`.
    """

    def __init__(self, path: str) -> None:
        self.path = os.path.realpath(path)
        self._descriptor = Descriptor(os.open(self.path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
        self._number = self._descriptor.number
        self._resolve = 0
        self._check_kernel()

    def _check_kernel(self) -> None:
        try:
            os.close(self.open("/", _DIRECTORY))
        except OSError as error:
            if error.errno != errno.ENOSYS:
                raise
            raise UnsupportedByDriver(self.path, "openat2 is missing: Linux 5.6 or newer is needed") from error
        # Without it every reopening would look like a file that is not there.
        if not os.path.exists(f"/proc/self/fd/{self._number}"):
            raise UnsupportedByDriver(self.path, "/proc is not mounted")

    def in_memory(self) -> Root | None:
        """The same directory for callers that must not wait: what is not in memory is `BlockingIOError`.

        None where even that cannot be promised: on a network, and before Linux 5.12.
        """
        if not _is_local(self._number):
            return None
        quick = copy.copy(self)
        quick._resolve = _RESOLVE_CACHED
        try:
            os.close(quick.open("/", os.O_PATH))
        except BlockingIOError:
            return quick
        except OSError:
            return None
        return quick

    def open(self, path: str, flags: int) -> int:
        """A new descriptor of `path`."""
        return _openat2(self._number, path, flags, self._resolve)

    def read(self, number: int, length: int) -> bytes:
        """The first bytes of an open file, up to `length`."""
        if not self._resolve:
            return os.pread(number, length, 0)
        buffer = bytearray(length)
        try:
            count = os.preadv(number, [buffer], 0, os.RWF_NOWAIT)
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN)) from error
        return bytes(buffer[:count])

    def stat(self, path: str) -> os.stat_result:
        """The attributes of `path`; of a symbolic link itself."""
        number = self.open(path, os.O_PATH | os.O_NOFOLLOW)
        try:
            return os.fstat(number)
        finally:
            os.close(number)

    def open_regular(self, path: str, flags: int) -> tuple[int, os.stat_result]:
        """A new descriptor of the regular file at `path`, and its attributes just before. Never waits for a lease."""
        handle = self.open(path, os.O_PATH | os.O_NOFOLLOW)
        try:
            status = os.fstat(handle)
            refuse_irregular(status, path)
            return os.open(f"/proc/self/fd/{handle}", flags | os.O_CLOEXEC | os.O_NONBLOCK), status
        finally:
            os.close(handle)

    def statvfs(self) -> os.statvfs_result:
        """The figures of the file system that the directory itself lies on."""
        return os.fstatvfs(self._number)

    @contextmanager
    def directory(self, path: str, *, create: bool = False) -> Iterator[int]:
        """A descriptor of the directory `path`, for the block. `create` makes it and those above it, durably."""
        number = self._make_directory(path) if create else self.open(path, _DIRECTORY)
        try:
            yield number
        finally:
            os.close(number)

    def _make_directory(self, path: str) -> int:
        missing: list[str] = []
        while True:
            try:
                number = self.open(path, _DIRECTORY)
                break
            except FileNotFoundError:
                if path == "/":
                    raise
                path, name = split(path)
                missing.append(name)
        while missing:
            path = join(path, name := missing.pop())
            try:
                _mkdir(number, name)
            finally:
                os.close(number)
            number = self.open(path, _DIRECTORY)
        return number

    @contextmanager
    def parent(self, path: str, *, create: bool = False) -> Iterator[tuple[int, str]]:
        """A descriptor of the directory that `path` lies in, and its name there, for the block."""
        if path == "/":
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        directory, name = split(path)
        with self.directory(directory, create=create) as number:
            yield number, name


def _mkdir(directory: int, name: str) -> None:
    with suppress(FileExistsError):
        os.mkdir(name, dir_fd=directory)
        owner = _owner_to_give(directory)
        if owner:
            with suppress(PermissionError):
                os.chown(name, *owner, dir_fd=directory, follow_symlinks=False)
    # Also if somebody else was faster: whether that one has synced it is unknown.
    os.fsync(directory)


def create_file(directory: int, name: str) -> int:
    """A descriptor, for reading and writing, of the new file `name`. Raises `FileExistsError`."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    return _given_away(os.open(name, flags, 0o666, dir_fd=directory), directory)


def put_new_file(directory: int, name: str, content: bytes) -> bool:
    """Makes `content` the new file `name`, atomically and durably: it has no other name before, whoever dies when.

    Returns False, and has changed nothing, if there is something of that name, or where files cannot be made so: that
    needs a file system that has files without names (not NFS, nor an older overlay), and `/proc`.
    """
    try:
        number = os.open(".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o666, dir_fd=directory)
    except OSError as error:
        if error.errno in _NO_NAMELESS_FILES:
            return False
        raise
    with Descriptor(_given_away(number, directory)) as number:
        write_all(number, [memoryview(content)] if content else [], 0)
        os.fsync(number)
        try:
            os.link(f"/proc/self/fd/{number}", name, dst_dir_fd=directory, follow_symlinks=True)
        except OSError as error:
            if isinstance(error, FileExistsError) or error.errno in _NO_LINKS:
                return False
            raise
    os.fsync(directory)
    return True


#: What file systems without such files answer, and what is answered where they cannot be given a name.
_NO_NAMELESS_FILES: Final = (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT)
_NO_LINKS: Final = (errno.ENOENT, errno.EPERM, errno.EOPNOTSUPP, errno.EXDEV, errno.EMLINK)


def _given_away(number: int, directory: int) -> int:
    """`number`, the descriptor of a new file, when it has its owner."""
    owner = _owner_to_give(directory)
    if owner:
        with suppress(PermissionError):
            os.fchown(number, *owner)
    return number


def _owner_to_give(directory: int) -> tuple[int, int] | None:
    """Whom root gives what it makes in `directory`: a registry that runs as its own user must be able to go on with it.

    Best effort: over NFS even root may not be allowed to (`root_squash`), and then all users look alike anyway.
    """
    if os.geteuid() != 0:
        return None
    status = os.fstat(directory)
    return status.st_uid, status.st_gid


class Scratch:
    """A new file under a name of its own next to `path`, gone again unless it is moved to where it belongs.

    The name has the form that distribution gives its temporary files.
    """

    def __init__(self, root: Root, path: str) -> None:
        self._root = root
        self._path: str | None = None
        path = f"{path}.{uuid.uuid4()}.tmp"
        with root.parent(path, create=True) as (directory, name):
            self.descriptor = Descriptor(create_file(directory, name))
        self._path = path

    def move_to(self, destination: str) -> None:
        """Makes this the file at `destination`, atomically and durably; the content must have been synced."""
        if self._path is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), destination)
        with (
            self._root.parent(self._path) as (directory, name),
            self._root.parent(destination, create=True) as (target, target_name),
        ):
            os.rename(name, target_name, src_dir_fd=directory, dst_dir_fd=target)
            self._path = None
            os.fsync(target)

    def discard(self) -> None:
        """Removes the file, if it was not moved. May be called again; never fails."""
        path, self._path = self._path, None
        if path is not None:
            with suppress(OSError), self._root.parent(path) as (directory, name):
                os.unlink(name, dir_fd=directory)
        self.descriptor.close()

    def __del__(self) -> None:
        if self._path is not None:
            self.discard()


def write_all(number: int, buffers: list[memoryview], offset: int) -> None:
    """Writes all the buffers at `offset`, however many calls that takes. If it fails, some of it may be there."""
    while buffers:
        count = os.pwritev(number, buffers[:_IOV_MAX], offset)
        offset += count
        buffers = _without(buffers, count)


#: How many buffers the kernel takes at once.
_IOV_MAX: Final = 1024


def _without(buffers: list[memoryview], count: int) -> list[memoryview]:
    for index, buffer in enumerate(buffers):
        if count < len(buffer):
            return [buffer[count:], *buffers[index + 1 :]]
        count -= len(buffer)
    return []


def read_exactly(number: int, length: int, offset: int) -> bytes:
    """The `length` bytes at `offset`; fewer only where the file ends."""
    content = os.pread(number, length, offset)
    if len(content) == length or not content:
        return content
    pieces = [content]
    missing = length - len(content)
    while missing and (piece := os.pread(number, missing, offset + length - missing)):
        pieces.append(piece)
        missing -= len(piece)
    return b"".join(pieces)
