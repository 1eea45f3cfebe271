"""The driver for a directory on a local disk: distribution's `filesystem`, and storage that it can share.

Blocking calls run in threads, one hop for a whole operation or batch, with a limit for each kind so that a listing of
a large directory cannot keep reads from their turn.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Final, TypeAlias, TypeVar, TypeVarTuple

import trio

from layerfs.driver import lease
from layerfs.driver.errnos import driver_error, translated
from layerfs.driver.interface import (
    Capabilities,
    Contents,
    Entries,
    Entry,
    FileInfo,
    FileReader,
    FileWriter,
    SealedFile,
    Stats,
    StorageDriver,
    Usage,
    check_path,
    is_component,
)
from layerfs.driver.local_reader import CachedReads, LocalReader
from layerfs.driver.local_sealed import seal
from layerfs.driver.local_writer import LocalWriter
from layerfs.driver.openat import (
    Descriptor,
    Root,
    Scratch,
    create_file,
    put_new_file,
    read_exactly,
    refuse_irregular,
    write_all,
)
from layerfs.driver.threads import Changes, in_thread
from layerfs.errors import (
    BackendFailure,
    ContentChanged,
    ContentTooLarge,
    DriverError,
    InvalidPath,
    NotRegularFile,
    PathNotFound,
)

#: Threads at once. Metadata is mostly in memory; cold reads want the disk's queue full; writes are bound by the disk.
METADATA_THREADS: Final = 8
READ_THREADS: Final = 32
WRITE_THREADS: Final = 8

#: Paths that are looked at without a thread, and paths that one thread looks at.
_FEW: Final = 4
_PART: Final = 1024

_Result = TypeVar("_Result")
_Arguments = TypeVarTuple("_Arguments")


# Named here because inside `LocalDriver` the word `list` is its method.
_Results: TypeAlias = list[_Result | DriverError]


class LocalDriver(StorageDriver):
    """The files beneath the directory `root`, which is resolved once: what it is renamed to does not matter.

    Raises `PathNotFound` or `AccessDenied` if the directory cannot be used; made first if `create`.
    """

    name = "filesystem"
    capabilities = Capabilities(directories=True, append=True, random_writes=True)

    def __init__(self, root: str, *, create: bool = False) -> None:
        with translated(root):
            if create:
                os.makedirs(root, exist_ok=True)
            self._open_root: Root | None = Root(root)
            self._quick_root = self._open_root.in_memory()
        self._cached = CachedReads()
        self._metadata = trio.CapacityLimiter(METADATA_THREADS)
        self._reads = trio.CapacityLimiter(READ_THREADS)
        self._changes = Changes(trio.CapacityLimiter(WRITE_THREADS))

    @property
    def _root(self) -> Root:
        if self._open_root is None:
            raise BackendFailure("/", "the driver is closed")
        return self._open_root

    async def stat(self, path: str) -> FileInfo:
        return await self._quickly(_stat, check_path(path))

    async def stat_many(self, paths: Sequence[str]) -> Stats:
        return await self._quickly_each(_stat_many, paths)

    async def list(self, path: str) -> Entries:
        return await in_thread(self._metadata, _list, self._root, check_path(path))

    async def get_content(self, path: str, *, limit: int) -> bytes:
        return await self._quickly(_get_content, check_path(path), limit)

    async def get_contents(self, paths: Sequence[str], *, limit: int) -> Contents:
        return await self._quickly_each(_get_contents, paths, limit)

    async def put_content(self, path: str, content: bytes) -> None:
        await self._changes.make([check_path(path)], _put_content, self._root, path, content)

    async def put_directory(self, path: str, name: str, content: bytes, *, scratch: str) -> None:
        check_path(f"{path}/{name}")
        paths = [path, check_path(scratch)]
        await self._changes.make(paths, _put_directory, self._root, path, name, content, scratch)

    async def open(self, path: str) -> FileReader:
        descriptor, size = await self._quickly(_open, check_path(path))
        return LocalReader(path, descriptor, size, self._cached, self._reads)

    async def writer(self, path: str, *, append: bool) -> FileWriter:
        paths = [check_path(path)]
        descriptor, status = await self._changes.make(paths, _open_for_writing, self._root, path, append)
        return LocalWriter(self._root, path, descriptor, status, self._changes)

    async def seal(self, path: str) -> SealedFile:
        return await seal(self._root, check_path(path), self._changes)

    async def move(self, source: str, destination: str) -> None:
        paths = [check_path(source), check_path(destination)]
        await self._changes.make(paths, _move, self._root, source, destination)

    async def delete(self, path: str) -> None:
        await self._changes.make([_below_root(path)], _delete, self._root, path)

    async def make_directory(self, path: str) -> None:
        await self._changes.make([check_path(path)], _make_directory, self._root, path)

    async def remove_directory(self, path: str) -> None:
        await self._changes.make([_below_root(path)], _remove_directory, self._root, path)

    async def usage(self) -> Usage | None:
        return await in_thread(self._metadata, _usage, self._root)

    async def is_being_written(self, path: str) -> bool:
        return await in_thread(self._metadata, _is_being_written, self._root, check_path(path))

    async def close(self) -> None:
        # The descriptor of the root is closed when the last thread that uses it has ended.
        self._open_root = self._quick_root = None

    async def _quickly(self, function: Callable[[Root, *_Arguments], _Result], *arguments: *_Arguments) -> _Result:
        """Without a thread if the kernel has everything in memory: a trip to one takes ten times as long."""
        if self._quick_root is not None:
            await trio.lowlevel.checkpoint()
            try:
                return function(self._quick_root, *arguments)
            except DriverError as error:
                if not isinstance(error.__cause__, BlockingIOError):
                    raise
        return await in_thread(self._metadata, function, self._root, *arguments)

    async def _quickly_each(
        self,
        function: Callable[[Root, Sequence[str], *_Arguments], _Results[_Result]],
        paths: Sequence[str],
        *arguments: *_Arguments,
    ) -> _Results[_Result]:
        """The same for a few paths; for many, several threads, so that a disk that has to be asked is asked at once."""
        if self._quick_root is not None and len(paths) <= _FEW:
            await trio.lowlevel.checkpoint()
            found = function(self._quick_root, paths, *arguments)
            if not any(isinstance(one, BackendFailure) for one in found):
                return found
        if len(paths) <= _PART:
            return await in_thread(self._metadata, function, self._root, paths, *arguments)
        parts = [paths[start : start + _PART] for start in range(0, len(paths), _PART)]
        results: dict[int, _Results[_Result]] = {}

        async def run(number: int) -> None:
            results[number] = await in_thread(self._metadata, function, self._root, parts[number], *arguments)

        async with trio.open_nursery() as nursery:
            for number in range(len(parts)):
                nursery.start_soon(run, number)
        return [one for number in range(len(parts)) for one in results[number]]


def _below_root(path: str) -> str:
    if path == "/":
        raise InvalidPath(path, "the root of the storage stays")
    return check_path(path)


# What follows blocks, and runs in threads.


def _stat(root: Root, path: str) -> FileInfo:
    with translated(path):
        return _file_info(root, path)


def _file_info(root: Root, path: str) -> FileInfo:
    status = root.stat(path)
    if stat.S_ISDIR(status.st_mode):
        return FileInfo(path, True, 0, status.st_mtime_ns)
    refuse_irregular(status, path)
    return FileInfo(path, False, status.st_size, status.st_mtime_ns)


def _stat_many(root: Root, paths: Sequence[str]) -> Stats:
    return [_result_of(_file_info, root, path) for path in paths]


def _get_contents(root: Root, paths: Sequence[str], limit: int) -> Contents:
    return [_result_of(_content, root, path, limit) for path in paths]


def _result_of(
    operation: Callable[[Root, str, *_Arguments], _Result], root: Root, path: str, *arguments: *_Arguments
) -> _Result | DriverError:
    try:
        return operation(root, check_path(path), *arguments)
    except OSError as error:
        return driver_error(error, path)
    except DriverError as error:
        return error


def _get_content(root: Root, path: str, limit: int) -> bytes:
    with translated(path):
        return _content(root, path, limit)


def _content(root: Root, path: str, limit: int) -> bytes:
    number, status = root.open_regular(path, os.O_RDONLY)
    try:
        content = b"" if status.st_size > limit else root.read(number, status.st_size + 1)
        if len(content) != status.st_size:
            # It is too large, or has just changed. One byte more than allowed tells, whatever size it has by now.
            content = read_exactly(number, limit + 1, 0)
    finally:
        os.close(number)
    if len(content) > limit:
        raise ContentTooLarge(path, f"more than {limit} bytes")
    return content


def _list(root: Root, path: str) -> Entries:
    with translated(path), root.directory(path) as number, os.scandir(number) as found:
        return [
            Entry(entry.name, entry.is_dir(follow_symlinks=False))
            for entry in found
            if (entry.is_file(follow_symlinks=False) or entry.is_dir(follow_symlinks=False))
            and is_component(entry.name)
        ]


def _put_content(root: Root, path: str, content: bytes) -> None:
    with translated(path):
        with root.parent(path, create=True) as (directory, name):
            if not _exists(directory, name) and put_new_file(directory, name, content):
                return
        scratch = Scratch(root, path)
        try:
            with scratch.descriptor as number:
                write_all(number, [memoryview(content)] if content else [], 0)
                os.fsync(number)
            scratch.move_to(path)
        finally:
            scratch.discard()


def _put_directory(root: Root, path: str, name: str, content: bytes, scratch: str) -> None:
    _put_content(root, f"{scratch}/{name}", content)
    try:
        with (
            translated(path),
            root.parent(scratch) as (directory, scratch_name),
            root.parent(path, create=True) as (target, target_name),
        ):
            os.rename(scratch_name, target_name, src_dir_fd=directory, dst_dir_fd=target)
            os.fsync(target)
            os.fsync(directory)
    except DriverError:
        # There is something already, or it lies on another file system.
        _delete(root, scratch)
        _put_content(root, f"{path}/{name}", content)


def _exists(directory: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _open(root: Root, path: str) -> tuple[Descriptor, int]:
    with translated(path):
        number, status = root.open_regular(path, os.O_RDONLY)
        return Descriptor(number), status.st_size


def _is_being_written(root: Root, path: str) -> bool:
    try:
        with translated(path):
            number, _ = root.open_regular(path, os.O_RDONLY)
    except (PathNotFound, NotRegularFile):
        return False
    try:
        return lease.has_writer(number)
    finally:
        os.close(number)


def _open_for_writing(root: Root, path: str, append: bool) -> tuple[Descriptor, os.stat_result]:
    with translated(path):
        try:
            descriptor = Descriptor(_open_or_create(root, path))
        except BlockingIOError as error:
            raise ContentChanged(path, "another process has sealed it") from error
        if not append:
            os.ftruncate(descriptor.number, 0)
        return descriptor, os.fstat(descriptor.number)


def _open_or_create(root: Root, path: str) -> int:
    try:
        return root.open_regular(path, os.O_RDWR)[0]
    except FileNotFoundError:
        pass
    try:
        with root.parent(path, create=True) as (directory, name):
            return create_file(directory, name)
    except FileExistsError:
        # Somebody made it in between.
        return root.open_regular(path, os.O_RDWR)[0]


def _move(root: Root, source: str, destination: str) -> None:
    with translated(source):
        refuse_irregular(root.stat(source), source)
        with (
            root.parent(source) as (directory, name),
            root.parent(destination, create=True) as (target, target_name),
        ):
            os.rename(name, target_name, src_dir_fd=directory, dst_dir_fd=target)
            os.fsync(target)
            os.fsync(directory)


def _delete(root: Root, path: str) -> None:
    with translated(path), root.parent(path) as (directory, name):
        status = os.stat(name, dir_fd=directory, follow_symlinks=False)
        if stat.S_ISDIR(status.st_mode):
            _delete_tree(directory, name, path)
        else:
            os.unlink(name, dir_fd=directory)
        os.fsync(directory)


def _delete_tree(directory: int, name: str, path: str) -> None:
    try:
        shutil.rmtree(name, dir_fd=directory, onerror=_unless_gone)
    except RecursionError as error:
        raise BackendFailure(path, "directories nested too deep to be removed") from error


def _unless_gone(
    operation: Callable[..., object],  # noqa: ARG001 - the signature that rmtree wants
    name: str,  # noqa: ARG001
    raised: tuple[type[BaseException], BaseException, TracebackType],
) -> None:
    """What somebody else removes at the same time is removed."""
    if not isinstance(raised[1], FileNotFoundError):
        raise raised[1]


def _make_directory(root: Root, path: str) -> None:
    with translated(path), root.directory(path, create=True):
        pass


def _remove_directory(root: Root, path: str) -> None:
    with translated(path), root.parent(path) as (directory, name):
        os.rmdir(name, dir_fd=directory)
        os.fsync(directory)


def _usage(root: Root) -> Usage:
    with translated("/"):
        status = root.statvfs()
    return Usage(
        block_size=status.f_frsize,
        total_bytes=status.f_blocks * status.f_frsize,
        free_bytes=status.f_bfree * status.f_frsize,
        available_bytes=status.f_bavail * status.f_frsize,
        total_files=status.f_files,
        free_files=status.f_ffree,
    )
