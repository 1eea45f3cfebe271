"""The driver for whatever fsspec knows: object stores above all.

What fsspec promises is less than what the interface asks for, so this driver uses little of it, and that carefully:

* Never fsspec's file objects where there is another way: each has its own buffering and its own idea of appending
  (gcsfs truncates). Ranges come by `cat_file`, clamped to the known size, because beyond the end of an object every
  library fails in its own way.
* Never its cache of listings, which has no end and would hide what others do.
* Appending only where it has been seen to work and can be made durable; elsewhere there is no writer.
* Nobody can be kept from changing an object, so sealing means copying.

Symbolic links are refused where the library shows them, but unlike `LocalDriver` this cannot keep a path from leading
through one.
"""

from __future__ import annotations

import re
import threading
import uuid
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Final, NamedTuple, TypeVar, TypeVarTuple

import trio

from layerfs.driver.errnos import driver_error
from layerfs.driver.fsspec_connections import Stores
from layerfs.driver.fsspec_store import Store, without_secrets
from layerfs.driver.interface import (
    Capabilities,
    Contents,
    ContentVersion,
    Entries,
    FileInfo,
    FileReader,
    FileWriter,
    SealedFile,
    Stats,
    StorageDriver,
    Usage,
    check_path,
)
from layerfs.driver.ranges import clamp
from layerfs.driver.threads import Changes, in_thread
from layerfs.errors import (
    BackendFailure,
    ContentChanged,
    DriverError,
    StorageReadOnly,
    UnknownSource,
    UnsupportedByDriver,
)


class Threads(NamedTuple):
    """Requests in flight."""

    metadata: int
    reads: int
    writes: int


#: Where all share what connections there are; the first keeps a batch of small requests busy at 40 ms each.
THREADS: Final = Threads(metadata=32, reads=16, writes=8)
#: Where each has a connection: servers of files have ten at most for somebody, or refuse more at a time (sshd).
CONNECTIONS: Final = Threads(metadata=4, reads=4, writes=2)

#: Seconds that removing a copy may take when its user was cancelled.
RELEASE_DEADLINE: Final = 10

#: Here appending is real, and fsync is too (as far as memory lasts). Not so: gcsfs (truncates), s3fs (copies the object
#: at every opening), adlfs (does not say where it appends), sftp (paramiko has no fsync).
_APPENDABLE: Final = frozenset({"file", "local", "memory"})

#: Where to upload to instead.
_ELSEWHERE: Final = "push through a registry, or mount where the storage is on a local disk"

_Result = TypeVar("_Result")
_Arguments = TypeVarTuple("_Arguments")


class FsspecDriver(StorageDriver):
    """What lies below `url`. Raises `UnknownSource` if no installed library knows the scheme."""

    def __init__(self, url: str) -> None:
        self.name = url.partition("://")[0].lower()
        if "::" in re.sub(r"\[[^]]*\]", "", url):
            raise UnknownSource(without_secrets(url), "only zip:: and tar:: can stand before another source")
        self._stores = Stores(url)
        store = self._stores.first
        self.capabilities = Capabilities(
            directories=store.has_directories,
            append=self.name in _APPENDABLE,
            random_writes=False,
            read_only=bool(store.read_only),
        )
        threads = THREADS if store.is_shared else CONNECTIONS
        self._metadata = trio.CapacityLimiter(threads.metadata)
        self._reads = trio.CapacityLimiter(threads.reads)
        self._changes = Changes(trio.CapacityLimiter(threads.writes))

    async def stat(self, path: str) -> FileInfo:
        return await _call(self._metadata, path, self._stores.reading(Store.stat))

    async def stat_many(self, paths: Sequence[str]) -> Stats:
        return await _for_each(paths, self.stat)

    async def list(self, path: str) -> Entries:
        return await _call(self._metadata, path, self._stores.reading(Store.list))

    async def get_content(self, path: str, *, limit: int) -> bytes:
        return await _call(self._metadata, path, self._stores.reading(Store.get_content), limit)

    async def get_contents(self, paths: Sequence[str], *, limit: int) -> Contents:
        return await _for_each(paths, partial(self.get_content, limit=limit))

    async def put_content(self, path: str, content: bytes) -> None:
        await _change(self._changes, path, self._stores.changing(Store.put_content), content)

    async def open(self, path: str) -> FileReader:
        info = await _call(self._metadata, path, self._stores.reading(Store.stat_file))
        return _FsspecReader(self._stores, info, self._reads)

    async def writer(self, path: str, *, append: bool) -> FileWriter:
        check_path(path)
        if self._stores.first.read_only:
            raise StorageReadOnly(path, self._stores.first.read_only)
        if not self.capabilities.append:
            raise UnsupportedByDriver(path, f"{self.name} cannot append safely: {_ELSEWHERE}")
        info = await _change(self._changes, path, self._stores.changing(Store.begin_writing), append)
        return _FsspecWriter(self._stores.first, path, info, self._changes)

    async def seal(self, path: str) -> SealedFile:
        info = await _call(self._metadata, path, self._stores.reading(Store.stat_file))
        copy = _FsspecCopy(self._stores, f"{path}.{uuid.uuid4()}.tmp", self._changes)
        try:
            await copy.fill_from(info)
        except BaseException:
            await copy.release()
            raise
        return copy

    async def move(self, source: str, destination: str) -> None:
        await _change(self._changes, destination, self._stores.changing(Store.move), source, also=source)

    async def delete(self, path: str) -> None:
        await _change(self._changes, path, self._stores.changing(Store.delete))

    async def make_directory(self, path: str) -> None:
        await _change(self._changes, path, self._stores.changing(Store.make_directory))

    async def remove_directory(self, path: str) -> None:
        await _change(self._changes, path, self._stores.changing(Store.remove_directory))

    async def usage(self) -> Usage | None:
        await trio.lowlevel.checkpoint()
        return None

    async def close(self) -> None:
        self._stores.close()
        await trio.lowlevel.checkpoint()


async def _call(
    limiter: trio.CapacityLimiter,
    path: str,
    operation: Callable[[str, *_Arguments], _Result],
    *arguments: *_Arguments,
) -> _Result:
    return await in_thread(limiter, _translating, check_path(path), operation, *arguments)


async def _change(
    changes: Changes,
    path: str,
    operation: Callable[[str, *_Arguments], _Result],
    *arguments: *_Arguments,
    also: str | None = None,
) -> _Result:
    """`_call` of what changes the file at `path`, and the one at `also`."""
    paths = [path] if also is None else [path, also]
    return await changes.make([check_path(path) for path in paths], _translating, path, operation, *arguments)


def _translating(path: str, operation: Callable[[str, *_Arguments], _Result], *arguments: *_Arguments) -> _Result:
    try:
        return operation(path, *arguments)
    except DriverError:
        raise
    except OSError as error:
        raise driver_error(error, path) from error
    except NotImplementedError as error:
        raise UnsupportedByDriver(path, "fsspec's library for this storage cannot do that") from error
    except Exception as error:  # every library behind fsspec has exceptions of its own, which it does not translate
        raise BackendFailure(path, f"{type(error).__name__}: {error}"[:300]) from error


async def _for_each(
    paths: Sequence[str], operation: Callable[[str], Awaitable[_Result]]
) -> list[_Result | DriverError]:
    results: dict[int, _Result | DriverError] = {}

    async def one(index: int, path: str) -> None:
        try:
            results[index] = await operation(path)
        except DriverError as error:
            results[index] = error

    async with trio.open_nursery() as nursery:
        for index, path in enumerate(paths):
            nursery.start_soon(one, index, path)
    return [results[index] for index in range(len(paths))]


class _FsspecReader(FileReader):
    """A path and the size it had; there is nothing open."""

    def __init__(self, stores: Stores, info: FileInfo, limiter: trio.CapacityLimiter) -> None:
        self._stores = stores
        self._path = info.path
        self._limiter = limiter
        self.size = info.size

    def read_nowait(self, offset: int, length: int) -> memoryview | bytes | None:
        return None if clamp(self._path, offset, length, self.size) else b""

    async def read(self, offset: int, length: int) -> bytes:
        length = clamp(self._path, offset, length, self.size)
        return await _call(self._limiter, self._path, self._stores.reading(Store.read), offset, length)

    def close(self) -> None:
        pass


class _FsspecWriter(FileWriter):
    """Appends by opening the file anew each time: nothing stays open, and nothing is lost in a buffer.

    Sees that somebody else wrote by the size, and by the time of the change where the filesystem tells it exactly.
    """

    def __init__(self, store: Store, path: str, info: FileInfo, changes: Changes) -> None:
        self._store = store
        self._path = path
        self._changes = changes
        self._flush_failed = False
        self._remember(info)

    async def write(self, buffers: Sequence[bytes]) -> None:
        await _change(self._changes, self._path, self._append, b"".join(buffers))

    async def write_at(self, offset: int, content: bytes) -> None:  # noqa: ARG002 - the interface's
        raise UnsupportedByDriver(self._path, "only appending is possible")

    async def truncate(self, size: int) -> None:  # noqa: ARG002 - the interface's
        raise UnsupportedByDriver(self._path, "only appending is possible")

    async def flush(self) -> None:
        await _change(self._changes, self._path, self._flush)

    def version(self) -> ContentVersion | None:
        return None

    async def close(self) -> None:
        await trio.lowlevel.checkpoint()

    def _append(self, path: str, content: bytes) -> None:
        self._check_unchanged(path)
        size = self.size + len(content)
        try:
            self._store.append(path, content)
        finally:
            self._remember(self._store.stat_file(path))
        if self.size != size:
            raise ContentChanged(path)

    def _flush(self, path: str) -> None:
        if self._flush_failed:
            raise BackendFailure(path, "an earlier flush failed")
        self._check_unchanged(path)
        try:
            self._store.sync(path)
        except OSError:
            self._flush_failed = True
            raise
        self._check_unchanged(path)

    def _check_unchanged(self, path: str) -> None:
        try:
            info = self._store.stat_file(path)
        except FileNotFoundError as error:
            raise ContentChanged(path, "it was removed") from error
        if info != self._info:
            raise ContentChanged(path)

    def _remember(self, info: FileInfo) -> None:
        self._info = info
        self.size = info.size


class _FsspecCopy(SealedFile):
    """A private copy; its version is unknown, because the original may have changed while it was made."""

    def __init__(self, stores: Stores, path: str, changes: Changes) -> None:
        self._stores = stores
        self._path = path
        self._changes = changes
        self._limiter = changes.limiter
        self._published = False
        # A copy whose maker was cancelled is finished by its thread, and must be removed after that.
        self._one_at_a_time = threading.Lock()
        self.size = 0
        self.version = None

    async def fill_from(self, original: FileInfo) -> None:
        await _call(self._limiter, original.path, self._copy)
        self.size = (await _call(self._limiter, self._path, self._stores.reading(Store.stat_file))).size

    async def read(self, offset: int, length: int) -> bytes:
        length = clamp(self._path, offset, length, self.size)
        return await _call(self._limiter, self._path, self._stores.reading(Store.read), offset, length)

    async def publish(self, destination: str) -> None:
        check_path(destination)
        await _call(self._limiter, self._path, self._stores.changing(Store.sync))
        await _change(self._changes, destination, self._stores.changing(Store.move), self._path, also=self._path)
        self._published = True

    async def release(self) -> None:
        if not self._published:
            with trio.move_on_after(RELEASE_DEADLINE, shield=True):
                await _call(self._limiter, self._path, self._discard)

    def _copy(self, original: str) -> None:
        with self._one_at_a_time:
            self._stores.changing(Store.copy)(original, self._path)

    def _discard(self, path: str) -> None:
        with self._one_at_a_time:
            self._stores.changing(Store.discard)(path)
