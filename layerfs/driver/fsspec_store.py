"""What one of fsspec's filesystems has below a place in it: the operations of a driver, which block, and distrust it.

`Store` is for any library; what is known of some of them is in `fsspec_protocols`.
"""

from __future__ import annotations

import datetime
import errno
import os
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, ClassVar, Final, TypeAlias
from urllib.parse import urlsplit

import fsspec
import fsspec.config
from fsspec.spec import AbstractFileSystem

from layerfs.driver.errnos import driver_error
from layerfs.driver.interface import Entries, Entry, FileInfo, is_component
from layerfs.driver.ranges import check_length
from layerfs.errors import (
    BackendFailure,
    ContentTooLarge,
    DriverError,
    InvalidPath,
    NotRegularFile,
    PathNotEmpty,
    PathNotFound,
    StorageReadOnly,
    UnknownSource,
)

#: Here a file that is put appears whole or not at all, there are no directories, and a rename is a copy.
_OBJECT_STORES: Final = frozenset({"abfs", "abfss", "az", "gcs", "gs", "memory", "oci", "oss", "s3", "s3a", "tos"})

#: Where the libraries put the time of the last change.
_TIMES: Final = ("mtime", "LastModified", "last_modified", "updated", "created")

#: The extras of layerfs that have what a library needs.
_EXTRAS: Final = {"http": "http", "https": "http", "sftp": "sftp", "smb": "smb", "ssh": "sftp", "webdav": "webdav"}

Info: TypeAlias = dict[str, Any]


class Store:
    """The place that a URL names. What is raised is a `DriverError`, or whatever the library raises."""

    #: Whether threads can use it at the same time. Of what is not known, it is not believed.
    is_shared: bool = False
    #: Whether the URL must name a server.
    needs_host: ClassVar[bool] = False

    def __init__(self, url: str) -> None:
        self.scheme = url.partition("://")[0].lower()
        self.shown = without_secrets(url)
        if self.needs_host and not urlsplit(url).hostname:
            raise UnknownSource(self.shown, f"name the server: {self.scheme}://HOST/PATH")
        self.fs = self._filesystem(url)
        # Not as an argument: some filesystems hand on what they do not know to their library, which refuses it.
        self.fs.dircache.use_listings_cache = False
        self.is_shared = self.is_shared or bool(self.fs.async_impl)
        self.has_directories = self.scheme not in _OBJECT_STORES
        self.read_only = self._why_read_only()
        self._is_local = bool(getattr(self.fs, "local_file", False))

    def _filesystem(self, url: str) -> AbstractFileSystem:
        """Not by `fsspec.core.url_to_fs`, which takes `::` for a chain, in the address of a host too."""
        try:
            kind = fsspec.get_filesystem_class(self.scheme)
            options = {**self._options(), **fsspec.config.conf.get(self.scheme, {}), **kind._get_kwargs_from_urls(url)}
            self._root: str = kind._strip_protocol(url).rstrip("/")
            return kind(**options, skip_instance_cache=True)
        except (ImportError, ValueError) as error:
            if isinstance(error.__cause__, OSError):
                raise driver_error(error.__cause__, self.shown) from error
            raise UnknownSource(self.shown, self._advice(error)) from error
        except OSError as error:
            raise driver_error(error, self.shown) from error
        except TypeError as error:
            variable = f"FSSPEC_{self.scheme.upper()}_…"
            raise UnknownSource(
                self.shown, f"{error}: options belong into {variable}, or into ~/.config/fsspec"
            ) from error
        except Exception as error:
            unknown = BackendFailure(self.shown, f"{type(error).__name__}: {error}"[:300])
            raise self.meaning(error) or unknown from error

    def _advice(self, error: Exception) -> str:
        reason = f"{error}".partition("\n")[0]
        if not isinstance(error, ImportError):
            return reason
        extra = _EXTRAS.get(self.scheme)
        if extra:
            return f"{reason}; run pip install 'layerfs[{extra}]'"
        # What fsspec knows nothing better to say of.
        is_bare = type(error) is ModuleNotFoundError
        return f"{error.name} is not installed; run pip install {error.name}" if is_bare else reason

    def _why_read_only(self) -> str:
        """Why nothing can be changed; empty if it can."""
        if self.has_directories and type(self.fs).mv is AbstractFileSystem.mv:
            return f"{self.scheme}:// cannot rename files, so others would see half of one that is being written"
        return ""

    # --- what is different for some ------------------------------------------------------------------------------

    def _options(self) -> Info:
        """What the filesystem is made with, unless fsspec's own configuration says otherwise."""
        return {}

    def meaning(self, error: BaseException) -> DriverError | None:  # noqa: ARG002 - for those that know some
        """What an error of the library's own means; None if that is not known."""
        return None

    def check_alive(self) -> None:
        """Raises anything if the connection is broken; for those that do not make a new one themselves."""

    def close(self) -> None:
        """Lets go of connections; never fails. Most libraries have no way to."""

    # -------------------------------------------------------------------------------------------------------------

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

    def info(self, path: str) -> Info:
        with _missing():
            info: Info = self.fs.info(self.key(path))
        return info

    def list(self, path: str) -> Entries:
        try:
            found = self._entries(path)
        except FileNotFoundError:
            if path == "/":
                return []
            raise
        key = self.key(path).rstrip("/")
        # A listing of a file gives that file; a listing of a directory can give the object that marks it. Some have an
        # empty listing for what is not there.
        if any(entry["name"].rstrip("/") == key for entry in found) or (self.has_directories and not found):
            self.check_directory(path)
        return [Entry(_name(entry), entry["type"] == "directory") for entry in found if _is_listed(entry, key)]

    def _entries(self, path: str) -> Sequence[Info]:
        with _missing():
            found: Sequence[Info] = self.fs.ls(self.key(path), detail=True)
        return found

    def get_content(self, path: str, limit: int) -> bytes:
        size = self.stat_file(path).size
        if size > limit:
            raise ContentTooLarge(path, f"{size} bytes, more than {limit}")
        return self.read(path, 0, size)

    def read(self, path: str, offset: int, length: int) -> bytes:
        if not length:
            return b""
        return check_length(path, self._read(path, offset, length), length)

    def _read(self, path: str, offset: int, length: int) -> bytes:
        content: bytes = self.fs.cat_file(self.key(path), start=offset, end=offset + length)
        return content

    def put_content(self, path: str, content: bytes) -> None:
        self._check_writable(path)
        self._check_no_directory(path)
        if not self.has_directories:
            self.fs.pipe_file(self.key(path), content)
            return
        self._make_parent(path)
        temporary = f"{path}.{uuid.uuid4()}.tmp"
        try:
            self.fs.pipe_file(self.key(temporary), content)
            self.sync(temporary)
            self.rename(temporary, path)
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
        self._check_writable(destination)
        self.stat_file(source)
        self._check_no_directory(destination)
        if source != destination:
            self._make_parent(destination)
            self.rename(source, destination)

    def rename(self, source: str, destination: str) -> None:
        if not self.has_directories:
            self.fs.cp_file(self.key(source), self.key(destination))
            self.fs.rm_file(self.key(source))
            return
        self._rename(self.key(source), self.key(destination))
        self.sync(destination)
        # Some libraries do not look whether the server did it.
        if not self._is_local and self._exists(source):
            raise BackendFailure(destination, f"{self.scheme}:// did not rename the file that should take its place")

    def _rename(self, source: str, destination: str) -> None:
        """Of keys; replaces what is at `destination`."""
        self.fs.mv(source, destination)

    def _exists(self, path: str) -> bool:
        try:
            self.info(path)
        except (FileNotFoundError, PathNotFound):
            return False
        return True

    def delete(self, path: str) -> None:
        _check_not_root(path)
        self._check_writable(path)
        if self.info(path)["type"] == "directory":
            self.fs.rm(self.key(path), recursive=True)
        else:
            self.fs.rm_file(self.key(path))

    def discard(self, path: str) -> None:
        """Removes a file if that works: clearing up after what failed, or was not needed."""
        with suppress(Exception):
            self.fs.rm_file(self.key(path))

    def make_directory(self, path: str) -> None:
        self._check_writable(path)
        if self.has_directories:
            self._make_directories(path)
            self.check_directory(path)

    def _make_directories(self, path: str) -> None:
        # Most libraries look first what is there, and fail if others make one of the directories meanwhile: then again,
        # as often as that can happen.
        for _ in range(path.count("/")):
            try:
                self.fs.makedirs(self.key(path), exist_ok=True)
            except Exception as error:  # noqa: BLE001 - it is raised in the end
                failure = error
            else:
                return
        raise failure

    def remove_directory(self, path: str) -> None:
        self._check_writable(path)
        if self.has_directories:
            _check_not_root(path)
            self.check_directory(path)
            if self.fs.ls(self.key(path), detail=False):
                raise PathNotEmpty(path)
            self.fs.rmdir(self.key(path))

    def _make_parent(self, path: str) -> None:
        self.make_directory(path.rpartition("/")[0] or "/")

    def _check_writable(self, path: str) -> None:
        if self.read_only:
            raise StorageReadOnly(path, self.read_only)

    def check_directory(self, path: str) -> None:
        if not self.stat(path).is_directory:
            raise PathNotFound(path, "not a directory")

    def _check_no_directory(self, path: str) -> None:
        """Raises `NotRegularFile` for a directory: `mv` would move into it, an object store put a file beside it."""
        try:
            is_directory = self.stat(path).is_directory
        except (FileNotFoundError, NotADirectoryError, NotRegularFile, PathNotFound):
            return
        if is_directory:
            raise NotRegularFile(path, "a directory")


@contextmanager
def _missing() -> Iterator[None]:
    """Has errors of the number ENOENT, or ENOTDIR, be of the class for it: some libraries have only the number."""
    try:
        yield
    except OSError as error:
        if error.errno in _MISSING and not isinstance(error, FileNotFoundError):
            raise FileNotFoundError(error.errno, error.strerror) from error
        raise


_MISSING: Final = frozenset({errno.ENOENT, errno.ENOTDIR})


def _check_not_root(path: str) -> None:
    if path == "/":
        raise InvalidPath(path, "the root of the storage stays")


def _fsync(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def without_secrets(url: str) -> str:
    scheme, _, rest = url.partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path.partition('?')[0]}"


def _file_info(path: str, info: Info) -> FileInfo:
    if info["type"] == "directory" and not info.get("islink"):
        return FileInfo(path, True, 0, _modified_at(info))
    if not _is_regular(info):
        raise NotRegularFile(path, "a symbolic link" if info.get("islink") else f"{info['type']}")
    return FileInfo(path, False, info["size"] or 0, _modified_at(info))


def _is_regular(info: Info) -> bool:
    return info["type"] == "file" and not info.get("islink")


def _is_listed(entry: Info, key: str) -> bool:
    return (
        entry["name"].rstrip("/") != key
        and is_component(_name(entry))
        and entry["type"] in {"file", "directory"}
        and not entry.get("islink")
    )


def _name(entry: Info) -> str:
    name: str = entry["name"].rstrip("/").rpartition("/")[2]
    return name


def _modified_at(info: Info) -> int:
    for key in _TIMES:
        value = info.get(key)
        if isinstance(value, str):
            value = datetime.datetime.fromisoformat(value)
        if isinstance(value, datetime.datetime):
            value = value.timestamp()
        if isinstance(value, int | float):
            return int(value * 1e9)
    return 0
