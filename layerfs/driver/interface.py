"""The storage driver interface: bytes at absolute paths, after distribution's `storagedriver.StorageDriver`.

A driver knows nothing of registries. Paths are absolute within the storage (`/docker/registry/v2/…`), made of
`[A-Za-z0-9._-]` components, and checked by `check_path` before anything is touched.

What every driver promises, and `tests/contract` checks:

* **No short reads.** A read gives all the bytes asked for, up to the end of the file, or raises `ShortRead`.
* **Whole or nothing.** `put_content` and `SealedFile.publish` are seen complete or not at all.
* **Durable.** When `put_content`, `move`, `delete`, `FileWriter.flush` or `SealedFile.publish` return, a power cut
  cannot undo them (as far as the backend can promise anything).
* **Regular files only.** A symbolic link, FIFO, socket or device is never followed, opened or listed, whoever put it
  there. Nothing outside the storage is ever reached.
* **Cancellable.** Every method may be cancelled at any await; what it was doing then may or may not have happened, or
  happen yet (but in a thread of ours not after anything newer at the same path), and nothing (descriptor, lock) is left
  behind.

Errors are the `DriverError`s of `layerfs.errors`; no exception of a backend's library gets out.
"""

from __future__ import annotations

import contextlib
import itertools
import re
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import NewType, Self, TypeAlias, TypeVar

from layerfs.errors import DriverError, InvalidPath, NotRegularFile, PathNotFound

#: A value that changes whenever somebody changes a file; None where the backend cannot tell.
ContentVersion = NewType("ContentVersion", object)

_Result = TypeVar("_Result")

# No file system has longer names.
_COMPONENT = re.compile(r"[A-Za-z0-9._-]{1,255}")
_PATH = re.compile(r"(/[A-Za-z0-9._-]+)+")


def check_path(path: str) -> str:
    """`path`, if a driver may be asked for it; else raises `InvalidPath`. The root is `/`."""
    if path == "/":
        return path
    if not _PATH.fullmatch(path):
        raise InvalidPath(path[:300], "expected /-separated components of letters, digits, '.', '_' and '-'")
    if "/./" in f"{path}/" or "/../" in f"{path}/":
        raise InvalidPath(path[:300], "'.' and '..' are not components")
    return path


def is_component(name: str) -> bool:
    """Whether a path that `check_path` accepts can have `name` in it, and a mount too; drivers list no other names."""
    return name not in {".", ".."} and bool(_COMPONENT.fullmatch(name))


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a backend can do beyond the minimum."""

    #: Empty directories exist.
    directories: bool
    #: Files can grow at the end, durably, without being written again.
    append: bool
    #: Files that are being written can be overwritten in the middle and truncated.
    random_writes: bool
    #: `list_files` costs hardly more than `list`, and less than asking for the files one by one.
    listed_files: bool = False
    #: `list_files` tells of all files what `stat` tells, also of those that grow.
    listed_uploads: bool = False
    #: Nothing can be changed: all that would raises `StorageReadOnly`.
    read_only: bool = False


@dataclass(frozen=True, slots=True)
class FileInfo:
    """What is at a path. `size` in bytes, 0 for a directory; `modified_at` in nanoseconds since 1970, 0 if unknown.

    `version` is another one whenever the bytes are; None where the backend does not tell it with the rest.
    """

    path: str
    is_directory: bool
    size: int
    modified_at: int
    version: str | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """One child of a directory."""

    name: str
    is_directory: bool


@dataclass(frozen=True, slots=True)
class Usage:
    """How full the storage is: bytes and files (inodes), in all and free (`available` to an ordinary user)."""

    block_size: int
    total_bytes: int
    free_bytes: int
    available_bytes: int
    total_files: int
    free_files: int


class FileReader(ABC):
    """A file open for reading at any offset. `size` is what it had when it was opened, in bytes."""

    size: int

    @abstractmethod
    def read_nowait(self, offset: int, length: int) -> memoryview | bytes | None:
        """What `read` would give, if that takes no waiting; else None.

        The buffer may be used again by the next call on any reader of this driver: use it or copy it before the next
        await.
        """

    @abstractmethod
    async def read(self, offset: int, length: int) -> bytes:
        """The `length` bytes at `offset`, fewer only at the end of the file, none beyond it.

        Raises `InvalidOffset` for a negative offset and `ShortRead` if the file has become shorter than `size`.
        """

    @abstractmethod
    def close(self) -> None:
        """Lets go of the file. May be called again; never waits, never fails."""


class FileWriter(ABC):
    """The one writer that this process has on a file. `size`, in bytes, includes all that `write` has returned for.

    Appending is all that every backend can; `write_at` and `truncate` raise `UnsupportedByDriver` elsewhere
    (`Capabilities.random_writes`), and then nothing has changed.

    If another process changed the file since this writer last touched it, every method raises `ContentChanged` rather
    than mix its bytes with theirs.
    """

    size: int

    @abstractmethod
    async def write(self, buffers: Sequence[bytes]) -> None:
        """Appends all the buffers. If it fails, `size` tells how many of the bytes are there."""

    @abstractmethod
    async def write_at(self, offset: int, content: bytes) -> None:
        """Writes `content` at `offset`, which may lie anywhere; a gap reads as zeros."""

    @abstractmethod
    async def truncate(self, size: int) -> None:
        """Makes the file `size` bytes long, cutting or adding zeros."""

    @abstractmethod
    async def flush(self) -> None:
        """Returns when all that was written is durable. Once it failed it fails for ever: what was lost is unknown."""

    @abstractmethod
    def version(self) -> ContentVersion | None:
        """The version that this writer left the file in; meaningful after `flush`."""

    @abstractmethod
    async def close(self) -> None:
        """Lets go of the file without flushing. May be called again."""


class SealedFile(ABC):
    """A file that nobody can change any more, to be verified, then published: what is read here is what is published.

    If no other way can keep foreign writers out, it is a private copy. Made by `StorageDriver.seal`; an async context
    manager that unseals the file on leaving, unless it was published.
    """

    size: int
    #: Equal to `FileWriter.version()` of the last writer if nobody else changed a byte since; else something different.
    version: ContentVersion | None

    @abstractmethod
    async def read(self, offset: int, length: int) -> bytes:
        """As `FileReader.read`."""

    @abstractmethod
    async def publish(self, destination: str) -> FileInfo | None:
        """Makes these bytes the file at `destination`, atomically, in place of what is there.

        Returns what `stat` would say of it, or None where it would have to be asked for.

        The sealed path is gone afterwards, or (private copy) can be deleted. Raises `ContentChanged` if the bytes could
        not be kept from changing; then nothing is published. A crash leaves the file at one of the two paths or both,
        complete.
        """

    @abstractmethod
    async def release(self) -> None:
        """Unseals the file, if it was not published. May be called again."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.release()


# Named here because inside `StorageDriver` the word `list` is its method.
Stats: TypeAlias = list[FileInfo | DriverError]
Contents: TypeAlias = list[bytes | DriverError]
Entries: TypeAlias = list[Entry]
Files: TypeAlias = list[FileInfo]


class StorageDriver(ABC):
    """Bytes at absolute paths. Raises `InvalidPath` before anything else where a path is malformed."""

    #: The name that distribution gives this kind of driver, or the URL scheme.
    name: str
    capabilities: Capabilities

    @abstractmethod
    async def stat(self, path: str) -> FileInfo:
        """What is at `path`. Raises `PathNotFound`, or `NotRegularFile` for what is neither file nor directory."""

    @abstractmethod
    async def list(self, path: str) -> Entries:
        """The regular files and directories directly in the directory `path`, in no order; all of them, however many.

        Raises `PathNotFound`, also for a file.
        """

    @abstractmethod
    async def get_content(self, path: str, *, limit: int) -> bytes:
        """All of a small file. Raises `PathNotFound`, `NotRegularFile`, or `ContentTooLarge` beyond `limit` bytes.

        Of a directory an object store says `PathNotFound`: there a file can have the same name, and to tell "only a
        directory" from "nothing" would take another request for every file that is missing.
        """

    @abstractmethod
    async def put_content(self, path: str, content: bytes) -> None:
        """Makes `content` the file at `path`, with the directories above it; atomic and durable."""

    async def put_directory(self, path: str, name: str, content: bytes, *, scratch: str) -> None:  # noqa: ARG002
        """Makes the file `name` (which may have a directory) in the directory `path`, which appears together with it.

        As `put_content` where the directory exists, and where there are no directories. `scratch` is a path that
        nothing has, where the directory may be made first: a crash can leave it there.
        """
        await self.put_content(f"{path}/{name}", content)

    @abstractmethod
    async def open(self, path: str) -> FileReader:
        """Opens a file for reading. Raises `PathNotFound` or `NotRegularFile`."""

    @abstractmethod
    async def writer(self, path: str, *, append: bool) -> FileWriter:
        """Opens a file for writing, made if it is missing; emptied unless `append`.

        Raises `UnsupportedByDriver` where it cannot be done safely, before anything is touched.
        """

    @abstractmethod
    async def seal(self, path: str) -> SealedFile:
        """Closes the file to all writers. Raises `PathNotFound`, `NotRegularFile`."""

    @abstractmethod
    async def move(self, source: str, destination: str) -> None:
        """Moves a file over the one at `destination`. Raises `PathNotFound` for a missing source, nothing changed."""

    @abstractmethod
    async def delete(self, path: str) -> None:
        """Removes a file, or a directory with all in it (not what only has the same prefix). Raises `PathNotFound`."""

    @abstractmethod
    async def make_directory(self, path: str) -> None:
        """Makes a directory and those above it; no error if it exists. Does nothing where there are no directories."""

    @abstractmethod
    async def remove_directory(self, path: str) -> None:
        """Removes an empty directory. Raises `PathNotEmpty` or `PathNotFound`; does nothing where there are none."""

    @abstractmethod
    async def usage(self) -> Usage | None:
        """How full the storage is; None where it has no bound that could be known."""

    @abstractmethod
    async def close(self) -> None:
        """Lets go of everything. May be called again."""

    async def is_being_written(self, path: str) -> bool:  # noqa: ARG002 - for those that can tell
        """Whether somebody, in this process or another, has the file open for writing.

        True is certain; False also where there is no such file, or where the backend cannot tell.
        """
        return False

    async def open_known(self, info: FileInfo) -> FileReader:
        """`open` of a file that `stat` gave `info` of a moment ago.

        Where that needs no request it is not asked for again: if it is gone by now, reads raise `ShortRead`.
        """
        return await self.open(info.path)

    async def is_directory(self, path: str) -> bool:
        """Whether there is a directory at `path`; where a file can have the same name, also beside one."""
        try:
            return (await self.stat(path)).is_directory
        except (PathNotFound, NotRegularFile):
            return False

    # Many at once. A driver that can do better than one after the other overrides these.

    async def list_files(self, path: str) -> Files:
        """All regular files in and below the directory `path`, in no order. Raises `PathNotFound`."""
        found: list[FileInfo] = []
        entries = await self.list(path)
        paths = [f"{path.rstrip('/')}/{entry.name}" for entry in entries if not entry.is_directory]
        found += [info for info in await self.stat_many(paths) if isinstance(info, FileInfo) and not info.is_directory]
        for entry in entries:
            if entry.is_directory:
                with contextlib.suppress(PathNotFound):
                    found += await self.list_files(f"{path.rstrip('/')}/{entry.name}")
        return found

    async def stat_many(self, paths: Sequence[str]) -> Stats:
        """`stat` of each path, in order; an error stands in its place instead of being raised."""
        return [await _result_of(self.stat(path)) for path in paths]

    async def get_contents(self, paths: Sequence[str], *, limit: int) -> Contents:
        """`get_content` of each path, in order; an error stands in its place instead of being raised."""
        return [await _result_of(self.get_content(path, limit=limit)) for path in paths]

    async def delete_files(self, paths: Sequence[str]) -> None:
        """Deletes files, in any order. What is missing is no error; none of the paths may be that of a directory."""
        for path in paths:
            with contextlib.suppress(PathNotFound):
                await self.delete(path)

    async def delete_in_steps(self, *steps: Sequence[str]) -> None:
        """Deletes what is at all the paths, one step after the other, in any order within a step.

        What is missing is no error. The paths of the last step may hold those of the others.
        """
        for path in itertools.chain.from_iterable(steps):
            with contextlib.suppress(PathNotFound):
                await self.delete(path)


async def _result_of(awaitable: Awaitable[_Result]) -> _Result | DriverError:
    try:
        return await awaitable
    except DriverError as error:
        return error
