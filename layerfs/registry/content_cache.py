"""`ContentCache`: whole blobs in a directory on this machine, by digest, for any number of mounts at a time.

    DIRECTORY/blobs/<algorithm>-<hex>           a verified blob (`content_file`)
    DIRECTORY/partial/<algorithm>-<hex>.<size>  one that somebody is fetching, or was
    DIRECTORY/lock                              held while room is made

There is no index: the directory is one. A file's modification time is when it was last used; the oldest go first. Who
fetches a blob holds a lock on its file, which the kernel takes back when he dies. A blob gets its name when all of it
is there and verified, so whatever is interrupted, what is found is whole; and each block is checked when it is read.

The directory must be this user's and closed to all others: who can write into it decides what is read.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Final, TypeVar, TypeVarTuple

import trio

from layerfs.digest import Digest
from layerfs.driver.interface import FileReader
from layerfs.driver.local_reader import BUFFER_SIZE, CachedReads
from layerfs.driver.openat import Descriptor
from layerfs.driver.ranges import clamp
from layerfs.driver.threads import in_thread
from layerfs.errors import DriverError
from layerfs.registry.cache import CacheUnusable
from layerfs.registry.content_file import (
    CompleteFile,
    ContentDamaged,
    GrowingFile,
    file_size,
    open_complete,
)

log = logging.getLogger(__name__)

#: Threads that read and write in the cache at a time.
_THREADS: Final = 8

#: Seconds for which nothing is begun after the disk was full, or failed.
_PAUSE: Final = 30.0

_BLOB_NAME: Final = re.compile(r"(?P<algorithm>[a-z0-9]+)-(?P<hex>[0-9a-f]+)(\.(?P<size>[0-9]+))?")
_OPEN: Final = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

_Result = TypeVar("_Result")
_Arguments = TypeVarTuple("_Arguments")


class ContentUnreadable(DriverError):
    """What a cache had cannot be read any more, and was dropped; storage has it."""


@dataclass(frozen=True, slots=True)
class _File:
    name: str
    directory: int
    used_at: int
    size: int


class ContentCache:
    """The cache in `directory`, of at most `limit` bytes. Raises `CacheUnusable`.

    No method but the constructor raises anything of its own: a cache that fails has nothing.
    """

    def __init__(self, directory: str, limit: int) -> None:
        self.directory = directory
        self.limit = limit
        self._limiter = trio.CapacityLimiter(_THREADS)
        self._cached = CachedReads()
        self._pause_until = float("-inf")
        self._failure = ""
        #: How often `find` found something, and how often it did not.
        self.hits = 0
        self.misses = 0
        try:
            with _opened_root(directory) as root:
                self._blobs = Descriptor(_subdirectory(root, "blobs"))
                self._partial = Descriptor(_subdirectory(root, "partial"))
                self._lock = Descriptor(os.open("lock", os.O_RDWR | os.O_CREAT | _OPEN, 0o600, dir_fd=root))
            # The limit may have been higher, and nothing may ever be fetched again.
            self._make_room(0)
        except OSError as error:
            raise CacheUnusable(f"cannot keep a cache in {directory!r}: {error.strerror}") from error

    async def find(self, digest: Digest, size: int) -> FileReader | None:
        """The content of a blob of `size` bytes, if it is here; it counts as used now."""
        found = await self._find(digest, size)
        if found is None:
            self.misses += 1
        else:
            self.hits += 1
        return found

    async def _find(self, digest: Digest, size: int) -> FileReader | None:
        try:
            found = await self.in_thread(self._open, digest)
        except (ContentDamaged, OSError) as error:
            if not isinstance(error, FileNotFoundError):
                await self.drop(digest, str(error))
            return None
        if found.size != size:
            await self.drop(digest, f"it has {found.size} bytes, the blob {size}")
            return None
        return CachedContent(self, digest, found)

    async def begin(self, digest: Digest, size: int, *, is_needed: bool = False) -> NewContent | None:
        """A file for a blob that is not here; None if there can be none, or another process is fetching it.

        After the disk has failed there is none for a while, unless it `is_needed`.
        """
        if file_size(size) > self.limit or (self.failure and not is_needed):
            return None
        try:
            return await self.in_thread(self._begin, digest, size)
        except OSError as error:
            self.pause(error)
            return None

    def fits(self, size: int) -> bool:
        """Whether a blob of `size` bytes can ever be here."""
        return file_size(size) <= self.limit

    @property
    def failure(self) -> str:
        """What the disk has failed with a moment ago; empty if it has not."""
        return self._failure if trio.current_time() < self._pause_until else ""

    def pause(self, error: OSError) -> None:
        """After the disk has failed: it is left alone for a while, and said once."""
        if not self.failure:
            log.warning("the cache in %r is left alone for %.0f s: %s", self.directory, _PAUSE, error.strerror)
        self._failure = error.strerror or type(error).__name__
        self._pause_until = trio.current_time() + _PAUSE

    async def drop(self, digest: Digest, reason: str) -> None:
        """Forgets a blob that is not what it was."""
        log.warning("the cache in %r has lost %s, which is fetched again: %s", self.directory, digest, reason)
        with suppress(OSError):
            await self.in_thread(self._unlink, self._blobs, _name(digest))

    async def close(self) -> None:
        """Lets go of the directory. May be called again."""
        await trio.lowlevel.checkpoint()
        for descriptor in (self._blobs, self._partial, self._lock):
            descriptor.close()

    async def in_thread(self, function: Callable[[*_Arguments], _Result], *arguments: *_Arguments) -> _Result:
        """What the function returns, in one of the cache's threads."""
        return await in_thread(self._limiter, function, *arguments)

    def read_cached(self, found: CompleteFile, offset: int, length: int) -> memoryview | None:
        """What can be read without waiting, in a buffer that is used again by the next read."""
        return found.read_cached(self._cached, offset, length) if length <= BUFFER_SIZE else None

    # --- in threads ----------------------------------------------------------------------------------------------

    def _open(self, digest: Digest) -> CompleteFile:
        with self._blobs as directory:
            descriptor = Descriptor(os.open(_name(digest), os.O_RDONLY | _OPEN, dir_fd=directory))
        _check_file(descriptor.number)
        found = open_complete(descriptor, digest)
        os.utime(descriptor.number)
        return found

    def _begin(self, digest: Digest, size: int) -> NewContent | None:
        name = f"{_name(digest)}.{size}"
        with self._partial as directory:
            descriptor = Descriptor(os.open(name, os.O_RDWR | os.O_CREAT | _OPEN, 0o600, dir_fd=directory))
            _check_file(descriptor.number)
            if not _locked(descriptor.number) or not _is_at(descriptor.number, directory, name):
                return None
        os.utime(descriptor.number)
        if not self._make_room(file_size(size), keep=name):
            self._unlink(self._partial, name)
            return None
        return NewContent(self, name, GrowingFile(descriptor, digest, size))

    def publish(self, name: str, digest: Digest) -> None:
        """Gives a complete file the name that it is found by."""
        with self._partial as partial, self._blobs as blobs:
            os.rename(name, _name(digest), src_dir_fd=partial, dst_dir_fd=blobs)

    def discard(self, name: str) -> None:
        """Removes what was fetched so far."""
        self._unlink(self._partial, name)

    def _unlink(self, directory: Descriptor, name: str) -> None:
        with directory as number, suppress(FileNotFoundError):
            os.unlink(name, dir_fd=number)

    def _make_room(self, size: int, *, keep: str | None = None) -> bool:
        """Removes what was used longest ago until `size` bytes more fit. One process at a time."""
        with self._lock as lock, self._blobs as blobs, self._partial as partial:
            fcntl.flock(lock, fcntl.LOCK_EX)
            try:
                files = sorted((*_files(blobs), *_files(partial)), key=lambda file: file.used_at)
                used = sum(file.size for file in files if file.name != keep)
                for file in files:
                    if used + size <= self.limit:
                        break
                    if file.name != keep and (file.directory == blobs or _is_abandoned(file)):
                        with suppress(FileNotFoundError):
                            os.unlink(file.name, dir_fd=file.directory)
                        used -= file.size
                return used + size <= self.limit
            finally:
                fcntl.flock(lock, fcntl.LOCK_UN)


class CachedContent(FileReader):
    """A blob in the cache. Raises `ContentUnreadable` once, when it turns out not to be what it was."""

    def __init__(self, cache: ContentCache, digest: Digest, found: CompleteFile) -> None:
        self._cache = cache
        self._digest = digest
        self._found = found
        self.size = found.size

    def read_nowait(self, offset: int, length: int) -> memoryview | bytes | None:
        length = clamp(str(self._digest), offset, length, self.size)
        if not length:
            return b""
        try:
            return self._cache.read_cached(self._found, offset, length)
        except (ContentDamaged, OSError):
            # `read` finds it too, and can do something about it.
            return None

    async def read(self, offset: int, length: int) -> bytes:
        length = clamp(str(self._digest), offset, length, self.size)
        if not length:
            return b""
        try:
            return await self._cache.in_thread(self._found.read, offset, length)
        except (ContentDamaged, OSError) as error:
            await self._cache.drop(self._digest, str(error))
            raise ContentUnreadable(str(self._digest), str(error)) from error

    def close(self) -> None:
        self._found.descriptor.close()


class NewContent:
    """A blob on its way into the cache. Ends with `finish` or `leave`."""

    def __init__(self, cache: ContentCache, name: str, file: GrowingFile) -> None:
        self._cache = cache
        self._name = name
        self._file = file
        self.size = file.size

    @property
    def written(self) -> int:
        """Bytes that are here so far."""
        return self._file.written

    @property
    def resumed_at(self) -> int:
        """Where the bytes begin that this process has written."""
        return self._file.resumed_at

    async def resume(self) -> None:
        """Takes in what a process has left that was interrupted. Raises `OSError`."""
        while await self._cache.in_thread(self._file.resume_some):
            pass

    async def write(self, content: bytes | memoryview) -> None:
        """Adds bytes. Raises `OSError`; then all that can be done is to leave."""
        await self._cache.in_thread(self._file.write, content)

    async def read(self, offset: int, length: int) -> bytes:
        """Bytes that were written here. Raises `ContentDamaged`, `OSError`."""
        return await self._cache.in_thread(self._file.read, offset, length)

    async def start_again(self) -> None:
        """Drops everything. Raises `OSError`."""
        await self._cache.in_thread(self._file.start_again)

    async def finish(self) -> CachedContent:
        """Verifies the content and puts it where it is found. Raises `ContentMismatch`, `OSError`."""

        def finish() -> CompleteFile:
            complete = self._file.complete()
            self._cache.publish(self._name, self._file.digest)
            return complete

        return CachedContent(self._cache, self._file.digest, await self._cache.in_thread(finish))

    def leave(self, *, keep: bool) -> None:
        """Ends without the whole; with `keep`, whoever wants it next goes on. May block for a moment."""
        if not keep:
            with suppress(OSError):
                self._cache.discard(self._name)
        self._file.descriptor.close()


# --- the directory ------------------------------------------------------------------------------------------------


@contextmanager
def _opened_root(directory: str) -> Iterator[int]:
    with suppress(FileExistsError):
        os.makedirs(directory, mode=0o700)
    number = os.open(directory, _DIRECTORY)
    try:
        _check_private(number, directory)
        yield number
    finally:
        os.close(number)


def _check_private(number: int, directory: str) -> None:
    found = os.fstat(number)
    if found.st_uid != os.geteuid():
        raise CacheUnusable(f"cannot keep a cache in {directory!r}: it belongs to user {found.st_uid}, not to this one")
    if found.st_mode & 0o077:
        raise CacheUnusable(
            f"cannot keep a cache in {directory!r}: others may use it (mode {stat.S_IMODE(found.st_mode):04o}); "
            "make it private with chmod 700, or name another"
        )


def _subdirectory(root: int, name: str) -> int:
    with suppress(FileExistsError):
        os.mkdir(name, 0o700, dir_fd=root)
    number = os.open(name, _DIRECTORY, dir_fd=root)
    if os.fstat(number).st_uid != os.geteuid():
        os.close(number)
        raise PermissionError(errno.EPERM, f"{name!r} in it belongs to somebody else")
    return number


def _check_file(number: int) -> None:
    """Raises unless it is a file that only this user can have made."""
    found = os.fstat(number)
    if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or found.st_nlink > 1:
        raise ContentDamaged("it is no file of the cache's own")


def _files(directory: int) -> Iterator[_File]:
    """All files with names that the cache gives."""
    with os.scandir(directory) as entries:
        for entry in entries:
            match = _BLOB_NAME.fullmatch(entry.name)
            if match is not None:
                with suppress(FileNotFoundError):
                    found = entry.stat(follow_symlinks=False)
                    # One that is being fetched will have all of its size.
                    size = max(found.st_size, file_size(int(match["size"])) if match["size"] else 0)
                    yield _File(entry.name, directory, found.st_mtime_ns, size)


def _is_abandoned(file: _File) -> bool:
    """Whether nobody is fetching what is in a partial file."""
    try:
        number = os.open(file.name, os.O_RDWR | _OPEN, dir_fd=file.directory)
    except OSError:
        return True
    try:
        return _locked(number)
    finally:
        os.close(number)


def _locked(number: int) -> bool:
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(number: int, directory: int, name: str) -> bool:
    """Whether the file still has that name: who had the lock before may have finished it."""
    try:
        return os.path.samestat(os.fstat(number), os.stat(name, dir_fd=directory, follow_symlinks=False))
    except FileNotFoundError:
        return False


def _name(digest: Digest) -> str:
    return f"{digest.algorithm}-{digest.hex}"
