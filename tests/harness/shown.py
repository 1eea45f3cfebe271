"""A registry shown as files, in-process and on a real mount, behind one interface: what holds for one holds for both.

`InProcess` does to a `Tree` what the kernel does: it walks paths by lookup, counts what it is told of and gives it
back, keeps the inode of an open file, cuts writes into pieces, flushes at every close and releases after the last.
`Mounted` calls the system.
"""

from __future__ import annotations

import errno
import os
import stat
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import NamedTuple, TypeVar

import trio

from harness.handmade import put_data
from harness.mount import Mount
from harness.storage import digest_of, holds
from harness.stored_path import StoredPath
from layerfs.driver.interface import StorageDriver
from layerfs.errors import LayerfsError, PathNotFound
from layerfs.fuse.errnos import errno_of
from layerfs.view.nodes import Attributes, HandleId, Ino
from layerfs.view.tree import ROOT_INO, Tree

_Result = TypeVar("_Result")

#: Where registries since 2.1 keep everything.
_V2 = "/docker/registry/v2"
STARTED_AT = b"2026-11-23T00:06:39Z"

#: Bytes that one request carries at the most.
_WRITE_SIZE = 128 << 10
_READ_SIZE = 1 << 20

#: More than any test stores.
_LIMIT = 1 << 30


class Status(NamedTuple):
    """What `stat` says, as far as it is the tree's to say."""

    mode: int
    size: int
    links: int
    ino: int

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def permissions(self) -> int:
        return stat.S_IMODE(self.mode)


class File(ABC):
    """An open file; `close` is that of the last descriptor."""

    @abstractmethod
    async def read(self, offset: int = 0, length: int = _LIMIT) -> bytes: ...

    @abstractmethod
    async def write(self, content: bytes, offset: int = 0) -> None: ...

    @abstractmethod
    async def truncate(self, size: int) -> None: ...

    @abstractmethod
    async def sync(self) -> None: ...

    @abstractmethod
    async def flush(self) -> None:
        """What closing one of several descriptors does."""

    @abstractmethod
    async def status(self) -> Status: ...

    @abstractmethod
    async def close(self) -> None: ...


class Shown(ABC):
    """The files, and beside them the storage, written and read as a registry would. `repository` is one to play in."""

    repository: str

    # --- the files, as `os` has them ---------------------------------------------------------------------------

    @abstractmethod
    async def list(self, path: str) -> list[str]: ...

    @abstractmethod
    async def stat(self, path: str) -> Status: ...

    @abstractmethod
    async def open(self, path: str, flags: int = os.O_RDONLY) -> File: ...

    @abstractmethod
    async def make_directory(self, path: str) -> None: ...

    @abstractmethod
    async def remove_directory(self, path: str) -> None: ...

    @abstractmethod
    async def remove(self, path: str) -> None: ...

    @abstractmethod
    async def rename(self, path: str, new_path: str) -> None: ...

    @abstractmethod
    async def link(self, path: str, new_path: str) -> None: ...

    @abstractmethod
    async def truncate(self, path: str, size: int) -> None: ...

    @abstractmethod
    async def change_mode(self, path: str, mode: int) -> None: ...

    @abstractmethod
    async def attribute(self, path: str, name: str) -> str: ...

    @abstractmethod
    async def attributes(self, path: str) -> set[str]: ...

    @abstractmethod
    async def set_attribute(self, path: str, name: str, value: bytes) -> None: ...

    @abstractmethod
    def refused(self, *codes: int) -> AbstractContextManager[None]:
        """The body must fail with one of these errnos."""

    # --- the storage ---------------------------------------------------------------------------------------------

    #: Whether an upload can be written anywhere, and cut.
    has_random_writes: bool

    def changing_what_is_there(self) -> AbstractContextManager[None]:
        """The body overwrites or cuts an upload: it must fail with EINVAL where storage can only append."""
        return nullcontext() if self.has_random_writes else self.refused(errno.EINVAL)

    @contextmanager
    def gone_from_object_stores(self) -> Iterator[None]:
        """The body reads what was removed: it may fail with EIO where storage gives nothing more of that."""
        if self.has_random_writes:
            yield
            return
        with self.tolerated(errno.EIO):
            try:
                yield
            except OSError as error:
                assert error.errno == errno.EIO, error

    @abstractmethod
    def tolerated(self, code: int) -> AbstractContextManager[None]:
        """This errno may be in the log after the body."""

    @abstractmethod
    async def put(self, path: str, content: bytes) -> None: ...

    @abstractmethod
    async def get(self, path: str) -> bytes | None: ...

    @abstractmethod
    async def delete(self, path: str) -> None: ...

    async def holds(self, path: str, content: bytes) -> bool:
        """Whether a file, or an unfinished upload, is exactly this."""
        return await self.get(path) == content

    async def put_layer(self, content: bytes, repository: str = "") -> str:
        """A layer in storage, by the registry's layout; gives its path in the tree."""
        repository = repository or self.repository
        digest = digest_of(content)
        await self.put(blob(digest), content)
        await self.put(link(repository, digest), digest.encode())
        await self.put(f"{_V2}/repositories/{repository}/_manifests/revisions/keep", b"")
        return f"{repository}/_layers/{digest}"

    async def put_upload(self, content: bytes, uuid: str) -> str:
        """An upload that a registry has begun; gives its path in the tree."""
        directory = f"{_V2}/repositories/{self.repository}/_uploads/{uuid}"
        await self.put(f"{directory}/data", content)
        await self.put(f"{directory}/startedat", STARTED_AT)
        return self.upload(uuid)

    # --- short words ---------------------------------------------------------------------------------------------

    def upload(self, name: str) -> str:
        return f"{self.repository}/_uploads/{name}"

    def layer(self, digest: str) -> str:
        return f"{self.repository}/_layers/{digest}"

    @property
    def layers(self) -> str:
        return f"{self.repository}/_layers"

    @property
    def uploads(self) -> str:
        return f"{self.repository}/_uploads"

    async def write(self, path: str, content: bytes, flags: int = os.O_CREAT) -> None:
        """Writes at the beginning and closes."""
        async with opened(await self.open(path, os.O_WRONLY | flags)) as file:
            await file.write(content)

    async def append(self, path: str, content: bytes) -> None:
        """What `>>` does."""
        await self.write(path, content, os.O_CREAT | os.O_APPEND)

    async def read(self, path: str) -> bytes:
        async with opened(await self.open(path)) as file:
            return await file.read()

    async def exists(self, path: str) -> bool:
        try:
            await self.stat(path)
        except FileNotFoundError:
            return False
        return True

    async def assert_is_layer(self, content: bytes) -> None:
        """The content is a layer of the repository: shown, listed, and in storage."""
        digest = digest_of(content)
        assert digest in await self.list(self.layers)
        assert await self.read(self.layer(digest)) == content
        assert await self.get(blob(digest)) == content
        assert await self.get(link(self.repository, digest)) == digest.encode()


def repository_path(repository: str) -> str:
    """The path of a repository in storage."""
    return f"{_V2}/repositories/{repository}"


def blob(digest: str) -> str:
    """The path of a blob in storage."""
    algorithm, _, encoded = digest.partition(":")
    return f"{_V2}/blobs/{algorithm}/{encoded[:2]}/{encoded}/data"


def link(repository: str, digest: str) -> str:
    """The path of a layer's link in storage."""
    algorithm, _, encoded = digest.partition(":")
    return f"{_V2}/repositories/{repository}/_layers/{algorithm}/{encoded}/link"


@asynccontextmanager
async def opened(file: File) -> AsyncIterator[File]:
    """Closes the file at the end; an error of that is raised."""
    try:
        yield file
    except BaseException:
        with trio.CancelScope(shield=True), suppress(OSError):
            await file.close()
        raise
    await file.close()


@contextmanager
def as_os_errors() -> Iterator[None]:
    """What the FUSE layer makes of our errors."""
    try:
        yield
    except LayerfsError as error:
        number = errno_of(error)
        raise OSError(number, os.strerror(number)) from error


@contextmanager
def _refused(codes: tuple[int, ...]) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        assert error.errno in codes, f"expected {codes}, got {error!r}"
    else:
        raise AssertionError(f"expected {codes}, but it succeeded")


# --- in-process --------------------------------------------------------------------------------------------------


class InProcess(Shown):
    """A `Tree` over a driver, without a kernel."""

    def __init__(self, tree: Tree, driver: StorageDriver, repository: str) -> None:
        self.tree = tree
        self.repository = repository
        self.has_random_writes = driver.capabilities.random_writes
        self._driver = driver
        self._told: Counter[Ino] = Counter()

    async def list(self, path: str) -> list[str]:
        async with self._at(path) as ino:
            with as_os_errors():
                handle = await self.tree.open_directory(ino)
                entries = self.tree.directory(handle).entries
                for entry in entries:
                    child = self.tree.ino_of(entry)
                    self.tree.told(child, entry)
                    self.tree.forget(child, 1)
                self.tree.release_directory(handle)
        return sorted(entry.name.decode() for entry in entries)

    async def stat(self, path: str) -> Status:
        async with self._at(path) as ino:
            with as_os_errors():
                return _status(ino, await self.tree.attributes(ino))

    async def open(self, path: str, flags: int = os.O_RDONLY) -> File:
        try:
            return await self._open(path, flags)
        except OSError as error:
            if error.errno != errno.ESTALE:
                raise
        return await self._open(path, flags)

    async def _open(self, path: str, flags: int) -> File:
        parent, _, name = path.rpartition("/")
        async with self._at(parent) as directory:
            try:
                ino = await self._lookup(directory, name)
            except FileNotFoundError:
                if not flags & os.O_CREAT:
                    raise
                with as_os_errors():
                    ino, _, handle, _ = await self.tree.create(directory, name.encode(), flags)
                self._told[ino] += 1
                return _InProcessFile(self, ino, handle, flags)
        try:
            with as_os_errors():
                _check_not_exclusive(path, flags)
                handle, _ = await self.tree.open(ino, flags)
        except BaseException:
            self.forget(ino)
            raise
        return _InProcessFile(self, ino, handle, flags)

    async def make_directory(self, path: str) -> None:
        await self._make(path, self.tree.make_directory)

    async def remove_directory(self, path: str) -> None:
        async with self._in_parent(path) as (directory, name):
            await self.tree.remove_directory(directory, name)

    async def remove(self, path: str) -> None:
        async with self._in_parent(path) as (directory, name):
            await self.tree.remove(directory, name)

    async def rename(self, path: str, new_path: str) -> None:
        async with self._at(path), self._in_parent(path) as old, self._in_parent(new_path) as new:
            await self.tree.rename(*old, *new, replace=True)

    async def link(self, path: str, new_path: str) -> None:
        async with self._at(path) as ino:
            await self._make(new_path, lambda directory, name: self.tree.link(ino, directory, name))

    async def truncate(self, path: str, size: int) -> None:
        async with self._at(path) as ino:
            with as_os_errors():
                await self.tree.truncate(ino, None, size)

    async def change_mode(self, path: str, mode: int) -> None:
        async with self._at(path) as ino:
            with as_os_errors():
                self.tree.check_ownership_change(ino)

    async def attribute(self, path: str, name: str) -> str:
        async with self._at(path) as ino:
            with as_os_errors():
                return (await self.tree.extended_attribute(ino, name.encode())).decode()

    async def attributes(self, path: str) -> set[str]:
        async with self._at(path) as ino:
            with as_os_errors():
                return {name.decode() for name in await self.tree.extended_attribute_names(ino)}

    async def set_attribute(self, path: str, name: str, value: bytes) -> None:
        async with self._at(path):
            with as_os_errors():
                self.tree.check_attribute_change(name.encode())

    def refused(self, *codes: int) -> AbstractContextManager[None]:
        return _refused(codes)

    def tolerated(self, code: int) -> AbstractContextManager[None]:
        return nullcontext()

    async def put(self, path: str, content: bytes) -> None:
        if path.endswith("/data") and "/_uploads/" in path:
            await put_data(self._driver, path, content)
        else:
            await self._driver.put_content(path, content)

    async def get(self, path: str) -> bytes | None:
        try:
            return await self._driver.get_content(path, limit=_LIMIT)
        except PathNotFound:
            return None

    async def delete(self, path: str) -> None:
        await self._driver.delete(path)

    def assert_nothing_left(self) -> None:
        """Every inode was given back and every file closed, so the tree remembers none."""
        assert not self._told
        status = self.tree.status()
        assert (status["inodes"], status["open_files"], status["open_directories"]) == (1, 0, 0)
        assert status["uploads"] == []

    def forget(self, ino: Ino) -> None:
        """Gives back one lookup."""
        self._told[ino] -= 1
        if not self._told[ino]:
            del self._told[ino]
        self.tree.forget(ino, 1)

    async def _lookup(self, parent: Ino, name: str) -> Ino:
        with as_os_errors():
            ino, _ = await self.tree.lookup(parent, name.encode())
        self._told[ino] += 1
        return ino

    @asynccontextmanager
    async def _at(self, path: str) -> AsyncIterator[Ino]:
        """The inode at a path, and all on the way to it, for as long as somebody is there."""
        way = [ROOT_INO]
        try:
            for name in filter(None, path.split("/")):
                way.append(await self._lookup(way[-1], name))
            yield way[-1]
        finally:
            for ino in reversed(way[1:]):
                self.forget(ino)

    @asynccontextmanager
    async def _in_parent(self, path: str) -> AsyncIterator[tuple[Ino, bytes]]:
        parent, _, name = path.rpartition("/")
        async with self._at(parent) as directory:
            with as_os_errors():
                yield directory, name.encode()

    async def _make(self, path: str, make: Callable[[Ino, bytes], object]) -> None:
        async with self._in_parent(path) as (directory, name):
            ino, _ = await make(directory, name)  # type: ignore[misc]
            self.tree.forget(ino, 1)


class _InProcessFile(File):
    def __init__(self, shown: InProcess, ino: Ino, handle: HandleId, flags: int) -> None:
        self._shown = shown
        self._tree = shown.tree
        self._ino = ino
        self._handle = handle
        self._appends = bool(flags & os.O_APPEND)

    async def read(self, offset: int = 0, length: int = _LIMIT) -> bytes:
        handle = self._tree.handle(self._handle)
        content = bytearray()
        with as_os_errors():
            while len(content) < length:
                place, wanted = offset + len(content), min(_READ_SIZE, length - len(content))
                piece = handle.read_nowait(place, wanted)
                if piece is None:
                    piece = await handle.read(place, wanted)
                content += piece
                if len(piece) < wanted:
                    break
        return bytes(content)

    async def write(self, content: bytes, offset: int = 0) -> None:
        with as_os_errors():
            for start in range(0, len(content), _WRITE_SIZE):
                piece = content[start : start + _WRITE_SIZE]
                assert await self._tree.handle(self._handle).write(offset + start, piece) == len(piece)

    async def truncate(self, size: int) -> None:
        with as_os_errors():
            await self._tree.truncate(self._ino, self._handle, size)

    async def sync(self) -> None:
        with as_os_errors():
            await self._tree.handle(self._handle).synchronize()

    async def flush(self) -> None:
        with as_os_errors():
            await self._tree.handle(self._handle).flush()

    async def status(self) -> Status:
        with as_os_errors():
            return _status(self._ino, await self._tree.attributes(self._ino))

    async def close(self) -> None:
        try:
            await self.flush()
        finally:
            try:
                await self._tree.release(self._handle)
            finally:
                self._shown.forget(self._ino)


def _check_not_exclusive(path: str, flags: int) -> None:
    if flags & os.O_CREAT and flags & os.O_EXCL:
        raise FileExistsError(errno.EEXIST, "exists", path)


def _status(ino: Ino, attributes: Attributes) -> Status:
    return Status(attributes.mode, attributes.size, attributes.links, ino)


# --- on a real mount -----------------------------------------------------------------------------------------------


class Mounted(Shown):
    """The same through the kernel, every call in a thread. `storage` is what is mounted."""

    def __init__(self, mount: Mount, storage: Path | StoredPath, repository: str) -> None:
        self.mount = mount
        self.repository = repository
        self.has_random_writes = isinstance(storage, Path)
        self._storage = storage

    async def list(self, path: str) -> list[str]:
        return sorted(await _call(os.listdir, self._path(path)))

    async def stat(self, path: str) -> Status:
        return _os_status(await _call(os.stat, self._path(path)))

    async def open(self, path: str, flags: int = os.O_RDONLY) -> File:
        return _MountedFile(await _call(os.open, self._path(path), flags, 0o644))

    async def make_directory(self, path: str) -> None:
        await _call(os.mkdir, self._path(path))

    async def remove_directory(self, path: str) -> None:
        await _call(os.rmdir, self._path(path))

    async def remove(self, path: str) -> None:
        await _call(os.unlink, self._path(path))

    async def rename(self, path: str, new_path: str) -> None:
        await _call(os.rename, self._path(path), self._path(new_path))

    async def link(self, path: str, new_path: str) -> None:
        await _call(os.link, self._path(path), self._path(new_path))

    async def truncate(self, path: str, size: int) -> None:
        await _call(os.truncate, self._path(path), size)

    async def change_mode(self, path: str, mode: int) -> None:
        await _call(os.chmod, self._path(path), mode)

    async def attribute(self, path: str, name: str) -> str:
        return (await _call(os.getxattr, self._path(path), name)).decode()

    async def attributes(self, path: str) -> set[str]:
        return set(await _call(os.listxattr, self._path(path)))

    async def set_attribute(self, path: str, name: str, value: bytes) -> None:
        await _call(os.setxattr, self._path(path), name, value)

    def refused(self, *codes: int) -> AbstractContextManager[None]:
        # What the kernel answers by itself is in no log.
        return _refused(codes) if errno.EEXIST in codes else self.mount.refused(*codes)

    def tolerated(self, code: int) -> AbstractContextManager[None]:
        return self.mount.tolerates(errno.errorcode[code])

    async def put(self, path: str, content: bytes) -> None:
        place = self._storage / path[1:]
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)

    async def get(self, path: str) -> bytes | None:
        try:
            return (self._storage / path[1:]).read_bytes()
        except FileNotFoundError:
            return None

    async def delete(self, path: str) -> None:
        (self._storage / path[1:]).unlink()

    async def holds(self, path: str, content: bytes) -> bool:
        return holds(self._storage / path[1:], content)

    def _path(self, path: str) -> str:
        return f"{self.mount.path}/{path}"


class _MountedFile(File):
    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    async def read(self, offset: int = 0, length: int = _LIMIT) -> bytes:
        content = bytearray()
        while len(content) < length:
            wanted = min(_READ_SIZE, length - len(content))
            piece = await _call(os.pread, self._descriptor, wanted, offset + len(content))
            if not piece:
                break
            content += piece
        return bytes(content)

    async def write(self, content: bytes, offset: int = 0) -> None:
        written = 0
        while written < len(content):
            written += await _call(os.pwrite, self._descriptor, content[written:], offset + written)

    async def truncate(self, size: int) -> None:
        await _call(os.ftruncate, self._descriptor, size)

    async def sync(self) -> None:
        await _call(os.fsync, self._descriptor)

    async def flush(self) -> None:
        await _call(os.close, os.dup(self._descriptor))

    async def status(self) -> Status:
        return _os_status(await _call(os.fstat, self._descriptor))

    async def close(self) -> None:
        await _call(os.close, self._descriptor)


def _os_status(status: os.stat_result) -> Status:
    return Status(status.st_mode, status.st_size, status.st_nlink, status.st_ino)


async def _call(function: Callable[..., _Result], *arguments: object) -> _Result:
    return await trio.to_thread.run_sync(lambda: function(*arguments))
