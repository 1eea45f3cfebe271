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

import asyncio
import datetime
import os
import threading
import uuid
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final, TypeVar, TypeVarTuple
from urllib.parse import urlsplit

import fsspec
import trio

from layerfs.driver.errnos import driver_error
from layerfs.driver.interface import (
    Capabilities,
    Contents,
    ContentVersion,
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
from layerfs.driver.ranges import check_length, clamp
from layerfs.driver.store_errors import BY_STATUS, UNKNOWN, Network, answered
from layerfs.driver.threads import Changes, in_thread
from layerfs.errors import (
    BackendFailure,
    ContentChanged,
    ContentTooLarge,
    DriverError,
    InvalidPath,
    NotRegularFile,
    PathNotEmpty,
    PathNotFound,
    UnknownSource,
    UnsupportedByDriver,
)

#: Requests in flight; the first keeps a batch of small ones busy at 40 ms each.
METADATA_THREADS: Final = 32
READ_THREADS: Final = 16
WRITE_THREADS: Final = 8

#: Seconds that removing a copy may take when its user was cancelled.
RELEASE_DEADLINE: Final = 10

#: Here a file that is put appears whole or not at all, there are no directories, and a rename is a copy.
_OBJECT_STORES: Final = frozenset({"abfs", "abfss", "az", "gcs", "gs", "memory", "oci", "oss", "s3", "s3a", "tos"})

#: Here appending is real, and fsync is too (as far as memory lasts). Not so: gcsfs (truncates), s3fs (copies the object
#: at every opening), adlfs (does not say where it appends), sftp (paramiko has no fsync).
_APPENDABLE: Final = frozenset({"file", "local", "memory"})

#: Where the libraries put the time of the last change.
_TIMES: Final = ("mtime", "LastModified", "last_modified", "updated", "created")

#: For fsspec's HTTP, of whose own library nothing need be known here: its errors of connections are the system's too.
_HTTP: Final = frozenset({"http", "https"})
_NETWORK: Final = Network(
    timeouts=(TimeoutError, asyncio.TimeoutError), errors=(OSError,), trust_advice="set SSL_CERT_FILE"
)

_Info = dict[str, Any]
_Result = TypeVar("_Result")
_Arguments = TypeVarTuple("_Arguments")


class FsspecDriver(StorageDriver):
    """What lies below `url`. Raises `UnknownSource` if no installed library knows the scheme."""

    def __init__(self, url: str) -> None:
        self.name = urlsplit(url).scheme
        self._store = _Store(url)
        self.capabilities = Capabilities(
            directories=self._store.has_directories, append=self.name in _APPENDABLE, random_writes=False
        )
        self._metadata = trio.CapacityLimiter(METADATA_THREADS)
        self._reads = trio.CapacityLimiter(READ_THREADS)
        self._changes = Changes(trio.CapacityLimiter(WRITE_THREADS))

    async def stat(self, path: str) -> FileInfo:
        return await _call(self._metadata, path, self._store.stat)

    async def stat_many(self, paths: Sequence[str]) -> Stats:
        return await _for_each(paths, self.stat)

    async def list(self, path: str) -> Entries:
        return await _call(self._metadata, path, self._store.list)

    async def get_content(self, path: str, *, limit: int) -> bytes:
        return await _call(self._metadata, path, self._store.get_content, limit)

    async def get_contents(self, paths: Sequence[str], *, limit: int) -> Contents:
        return await _for_each(paths, partial(self.get_content, limit=limit))

    async def put_content(self, path: str, content: bytes) -> None:
        await _change(self._changes, path, self._store.put_content, content)

    async def open(self, path: str) -> FileReader:
        return _FsspecReader(self._store, await _call(self._metadata, path, self._store.stat_file), self._reads)

    async def writer(self, path: str, *, append: bool) -> FileWriter:
        check_path(path)
        if not self.capabilities.append:
            raise UnsupportedByDriver(path, f"{self.name} cannot append")
        info = await _change(self._changes, path, self._store.begin_writing, append)
        return _FsspecWriter(self._store, path, info, self._changes)

    async def seal(self, path: str) -> SealedFile:
        info = await _call(self._metadata, path, self._store.stat_file)
        copy = _FsspecCopy(self._store, f"{path}.{uuid.uuid4()}.tmp", self._changes)
        try:
            await copy.fill_from(info)
        except BaseException:
            await copy.release()
            raise
        return copy

    async def move(self, source: str, destination: str) -> None:
        await _change(self._changes, destination, self._store.move, source, also=source)

    async def delete(self, path: str) -> None:
        await _change(self._changes, path, self._store.delete)

    async def make_directory(self, path: str) -> None:
        await _change(self._changes, path, self._store.make_directory)

    async def remove_directory(self, path: str) -> None:
        await _change(self._changes, path, self._store.remove_directory)

    async def usage(self) -> Usage | None:
        await trio.lowlevel.checkpoint()
        return None

    async def close(self) -> None:
        # fsspec has no way to close a filesystem; its connections go with it.
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


class _Store:
    """The filesystem and the place in it, with the operations of the driver; they block, and raise what they like."""

    def __init__(self, url: str) -> None:
        shown = _without_secrets(url)
        if "::" in url:
            raise UnknownSource(shown, "chained URLs would put a cache in between")
        try:
            fs, root = fsspec.core.url_to_fs(url, skip_instance_cache=True)
        except (ImportError, ValueError) as error:
            raise UnknownSource(shown, f"{error}".partition("\n")[0]) from error
        except OSError as error:
            raise driver_error(error, shown) from error
        except TypeError as error:
            variable = f"FSSPEC_{urlsplit(url).scheme.upper()}_…"
            raise UnknownSource(shown, f"{error}: options belong into {variable}, or into ~/.config/fsspec") from error
        except Exception as error:
            raise BackendFailure(shown, f"{type(error).__name__}: {error}"[:300]) from error
        # Not as an argument: some filesystems hand on what they do not know to their library, which refuses it.
        fs.dircache.use_listings_cache = False
        self.fs = fs
        self._root = root.rstrip("/")
        self.has_directories = urlsplit(url).scheme not in _OBJECT_STORES
        self._is_local = bool(getattr(fs, "local_file", False))
        parts = urlsplit(url)
        self._server = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
        self._is_http = parts.scheme in _HTTP
        self._is_webdav = urlsplit(url).scheme in {"dav", "webdav"}

    def key(self, path: str) -> str:
        return self._root + path if path != "/" else self._root or "/"

    def stat(self, path: str) -> FileInfo:
        if path == "/":
            # A bucket or prefix that nothing was ever put into is an empty registry.
            return FileInfo(path, True, 0, 0)
        return _file_info(path, self.info(path))

    def stat_file(self, path: str) -> FileInfo:
        info = self.stat(path)
        if info.is_directory:
            raise NotRegularFile(path, "a directory")
        return info

    def info(self, path: str) -> _Info:
        try:
            info: _Info = self.fs.info(self.key(path))
        except FileNotFoundError as error:
            if self._is_http and error.__cause__ is not None:
                raise _http_error(error.__cause__, path, server=self._server) from error
            raise
        # HTTP has no directories, but servers redirect who asks for what they show as one to an address that ends so.
        if self._is_http and str(info.get("url", "")).endswith("/"):
            return {**info, "type": "directory"}
        return info

    def list(self, path: str) -> Entries:
        try:
            found: list[_Info] = self.fs.ls(self.key(path), detail=True)
        except FileNotFoundError:
            if path == "/":
                return []
            raise
        key = self.key(path).rstrip("/")
        if self._is_http:
            # A page has links to other places as well.
            found = [entry for entry in found if entry["name"].startswith(f"{key}/")]
        # A listing of a file gives that file; a listing of a directory can give the object that marks it.
        if any(entry["name"].rstrip("/") == key for entry in found):
            self._check_directory(path)
        return [Entry(_name(entry), entry["type"] == "directory") for entry in found if _is_listed(entry, key)]

    def get_content(self, path: str, limit: int) -> bytes:
        size = self.stat_file(path).size
        if size > limit:
            raise ContentTooLarge(path, f"{size} bytes, more than {limit}")
        return self.read(path, 0, size)

    def read(self, path: str, offset: int, length: int) -> bytes:
        if not length:
            return b""
        content: bytes = self.fs.cat_file(self.key(path), start=offset, end=offset + length)
        if self._is_http and len(content) > length:
            raise BackendFailure(path, f"{self._server} sends whole files, and no ranges of them, as reading needs")
        return check_length(path, content, length)

    def put_content(self, path: str, content: bytes) -> None:
        self._check_no_directory(path)
        if not self.has_directories:
            self.fs.pipe_file(self.key(path), content)
            return
        self._make_parent(path)
        temporary = f"{path}.{uuid.uuid4()}.tmp"
        try:
            self.fs.pipe_file(self.key(temporary), content)
            self.sync(temporary)
            self._rename(temporary, path)
        except BaseException:
            self.discard(temporary)
            raise

    def begin_writing(self, path: str, append: bool) -> FileInfo:
        try:
            info = self.stat_file(path)
        except FileNotFoundError:
            append = False
        if not append:
            self._make_parent(path)
            self.fs.pipe_file(self.key(path), b"")
            info = self.stat_file(path)
        return info

    def append(self, path: str, content: bytes) -> None:
        with self.fs.open(self.key(path), "ab") as file:
            file.write(content)

    def sync(self, path: str) -> None:
        """Makes a file durable where that takes more than having written it."""
        if self._is_local:
            _fsync(self.key(path))
            _fsync(os.path.dirname(self.key(path)))

    def copy(self, source: str, destination: str) -> None:
        self.fs.cp_file(self.key(source), self.key(destination))

    def move(self, destination: str, source: str) -> None:
        self.stat_file(source)
        self._check_no_directory(destination)
        if source != destination:
            self._make_parent(destination)
            self._rename(source, destination)

    def _rename(self, source: str, destination: str) -> None:
        if self._is_webdav:
            # fsspec has it refuse to replace a file; the protocol does not.
            self.fs.client.move(self.key(source), self.key(destination), overwrite=True)
        elif self.has_directories:
            self.fs.mv(self.key(source), self.key(destination))
            self.sync(destination)
        else:
            self.fs.cp_file(self.key(source), self.key(destination))
            self.fs.rm_file(self.key(source))

    def delete(self, path: str) -> None:
        _check_not_root(path)
        if self.info(path)["type"] == "directory":
            self.fs.rm(self.key(path), recursive=True)
        else:
            self.fs.rm_file(self.key(path))

    def discard(self, path: str) -> None:
        """Removes a file if that works: clearing up after what failed, or was not needed."""
        with suppress(Exception):
            self.fs.rm_file(self.key(path))

    def make_directory(self, path: str) -> None:
        if self._is_http:
            raise UnsupportedByDriver(path, "over HTTP a storage can only be read")
        if self.has_directories:
            self.fs.makedirs(self.key(path), exist_ok=True)
            self._check_directory(path)

    def remove_directory(self, path: str) -> None:
        if self.has_directories:
            _check_not_root(path)
            self._check_directory(path)
            if self.fs.ls(self.key(path), detail=False):
                raise PathNotEmpty(path)
            self.fs.rmdir(self.key(path))

    def _make_parent(self, path: str) -> None:
        self.make_directory(path.rpartition("/")[0] or "/")

    def _check_directory(self, path: str) -> None:
        if not self.stat(path).is_directory:
            raise PathNotFound(path, "not a directory")

    def _check_no_directory(self, path: str) -> None:
        """Raises `NotRegularFile` for a directory: `mv` would move into it, an object store put a file beside it."""
        try:
            is_directory = self.stat(path).is_directory
        except (FileNotFoundError, NotADirectoryError, NotRegularFile):
            return
        if is_directory:
            raise NotRegularFile(path, "a directory")


def _http_error(error: BaseException, path: str, *, server: str) -> DriverError:
    """What has happened where fsspec's HTTP says that nothing is there, as it does of every error."""
    status = getattr(error, "status", None)
    if isinstance(status, int):
        return answered(str(status), BY_STATUS.get(status, UNKNOWN), path, store=server)
    return _NETWORK.error(error, path, store=server)


def _check_not_root(path: str) -> None:
    if path == "/":
        raise InvalidPath(path, "the root of the storage stays")


def _fsync(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _without_secrets(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _file_info(path: str, info: _Info) -> FileInfo:
    if info["type"] == "directory" and not info.get("islink"):
        return FileInfo(path, True, 0, _modified_at(info))
    if not _is_regular(info):
        raise NotRegularFile(path, "a symbolic link" if info.get("islink") else f"{info['type']}")
    return FileInfo(path, False, info["size"] or 0, _modified_at(info))


def _is_regular(info: _Info) -> bool:
    return info["type"] == "file" and not info.get("islink")


def _is_listed(entry: _Info, key: str) -> bool:
    return (
        entry["name"].rstrip("/") != key
        and is_component(_name(entry))
        and entry["type"] in {"file", "directory"}
        and not entry.get("islink")
    )


def _name(entry: _Info) -> str:
    name: str = entry["name"].rstrip("/").rpartition("/")[2]
    return name


def _modified_at(info: _Info) -> int:
    for key in _TIMES:
        value = info.get(key)
        if isinstance(value, str):
            value = datetime.datetime.fromisoformat(value)
        if isinstance(value, datetime.datetime):
            value = value.timestamp()
        if isinstance(value, int | float):
            return int(value * 1e9)
    return 0


class _FsspecReader(FileReader):
    """A path and the size it had; there is nothing open."""

    def __init__(self, store: _Store, info: FileInfo, limiter: trio.CapacityLimiter) -> None:
        self._store = store
        self._path = info.path
        self._limiter = limiter
        self.size = info.size

    def read_nowait(self, offset: int, length: int) -> memoryview | bytes | None:
        return None if clamp(self._path, offset, length, self.size) else b""

    async def read(self, offset: int, length: int) -> bytes:
        length = clamp(self._path, offset, length, self.size)
        return await _call(self._limiter, self._path, self._store.read, offset, length)

    def close(self) -> None:
        pass


class _FsspecWriter(FileWriter):
    """Appends by opening the file anew each time: nothing stays open, and nothing is lost in a buffer.

    Sees that somebody else wrote by the size, and by the time of the change where the filesystem tells it exactly.
    """

    def __init__(self, store: _Store, path: str, info: FileInfo, changes: Changes) -> None:
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

    def __init__(self, store: _Store, path: str, changes: Changes) -> None:
        self._store = store
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
        self.size = (await _call(self._limiter, self._path, self._store.stat_file)).size

    async def read(self, offset: int, length: int) -> bytes:
        length = clamp(self._path, offset, length, self.size)
        return await _call(self._limiter, self._path, self._store.read, offset, length)

    async def publish(self, destination: str) -> None:
        check_path(destination)
        await _call(self._limiter, self._path, self._store.sync)
        await _change(self._changes, destination, self._store.move, self._path, also=self._path)
        self._published = True

    async def release(self) -> None:
        if not self._published:
            with trio.move_on_after(RELEASE_DEADLINE, shield=True):
                await _call(self._limiter, self._path, self._discard)

    def _copy(self, original: str) -> None:
        with self._one_at_a_time:
            self._store.copy(original, self._path)

    def _discard(self, path: str) -> None:
        with self._one_at_a_time:
            self._store.discard(path)
