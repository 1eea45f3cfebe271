"""The driver that keeps everything in memory: for tests, and for trying things out."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TypeAlias

import trio

from layerfs.driver.interface import (
    Capabilities,
    ContentVersion,
    Entries,
    Entry,
    FileInfo,
    FileReader,
    FileWriter,
    SealedFile,
    StorageDriver,
    Usage,
    check_path,
)
from layerfs.driver.ranges import check_length, clamp
from layerfs.errors import (
    ContentChanged,
    ContentTooLarge,
    InvalidOffset,
    InvalidPath,
    NotRegularFile,
    PathNotEmpty,
    PathNotFound,
)

_changes = itertools.count(1)


@dataclass(slots=True, eq=False)
class _File:
    """The bytes of a file, which outlive its name as long as somebody has it open."""

    content: bytearray = field(default_factory=bytearray)
    version: int = field(default_factory=lambda: next(_changes))
    modified_at: int = field(default_factory=time.time_ns)

    def changed(self) -> None:
        self.version = next(_changes)
        self.modified_at = time.time_ns()


@dataclass(slots=True, eq=False)
class _Directory:
    children: dict[str, _Node] = field(default_factory=dict)
    modified_at: int = field(default_factory=time.time_ns)

    def add(self, name: str, child: _Node) -> None:
        self.children[name] = child
        self.modified_at = time.time_ns()

    def remove(self, name: str) -> None:
        del self.children[name]
        self.modified_at = time.time_ns()

    def changed(self) -> None:
        for child in self.children.values():
            child.changed()


_Node: TypeAlias = _File | _Directory


class MemoryDriver(StorageDriver):
    """A tree that nobody else sees. Every method lets other tasks run first, and then does its work in one step."""

    name = "inmemory"
    capabilities = Capabilities(directories=True, append=True, random_writes=True)

    def __init__(self) -> None:
        self._root = _Directory()

    async def stat(self, path: str) -> FileInfo:
        await _checkpoint(path)
        node = self._find(path)
        size = len(node.content) if isinstance(node, _File) else 0
        return FileInfo(path, isinstance(node, _Directory), size, node.modified_at)

    async def list(self, path: str) -> Entries:
        await _checkpoint(path)
        children = self._find_directory(path).children
        return [Entry(name, isinstance(child, _Directory)) for name, child in children.items()]

    async def get_content(self, path: str, *, limit: int) -> bytes:
        await _checkpoint(path)
        file = self._find_file(path)
        if len(file.content) > limit:
            raise ContentTooLarge(path, f"more than {limit} bytes")
        return bytes(file.content)

    async def put_content(self, path: str, content: bytes) -> None:
        await _checkpoint(path)
        self._put(path, _File(bytearray(content)))

    async def open(self, path: str) -> FileReader:
        await _checkpoint(path)
        return _MemoryReader(path, self._find_file(path))

    async def writer(self, path: str, *, append: bool) -> FileWriter:
        await _checkpoint(path)
        directory, name = self._make_parent(path)
        file = directory.children.get(name)
        if file is None:
            file = _File()
            directory.add(name, file)
        if isinstance(file, _Directory):
            raise NotRegularFile(path, "a directory")
        if not append:
            file.content.clear()
            file.changed()
        return _MemoryWriter(path, file)

    async def seal(self, path: str) -> SealedFile:
        await _checkpoint(path)
        return _MemorySealedFile(self, path, self._find_file(path))

    async def move(self, source: str, destination: str) -> None:
        check_path(destination)
        await _checkpoint(source)
        file = self._find_file(source)
        if source != destination:
            self._put(destination, file)
            self._find_directory(_parent(source)).remove(_name(source))

    async def delete(self, path: str) -> None:
        await _checkpoint(path)
        self._check_not_root(path)
        node = self._find(path)
        self._find_directory(_parent(path)).remove(_name(path))
        node.changed()

    async def make_directory(self, path: str) -> None:
        await _checkpoint(path)
        self._make_directory(path)

    async def remove_directory(self, path: str) -> None:
        await _checkpoint(path)
        self._check_not_root(path)
        if self._find_directory(path).children:
            raise PathNotEmpty(path)
        self._find_directory(_parent(path)).remove(_name(path))

    async def usage(self) -> Usage | None:
        await trio.lowlevel.checkpoint()
        return None

    async def close(self) -> None:
        await trio.lowlevel.checkpoint()

    def publish(self, path: str, file: _File, content: bytes, destination: str) -> None:
        """Makes `content` the file at `destination`, and removes `file` if it is at `path` still."""
        self._put(destination, _File(bytearray(content)))
        with suppress(PathNotFound):
            directory = self._find_directory(_parent(path))
            if directory.children.get(_name(path)) is file:
                directory.remove(_name(path))
                file.changed()

    def _find(self, path: str) -> _Node:
        node: _Node = self._root
        for name in _components(path):
            child = node.children.get(name) if isinstance(node, _Directory) else None
            if child is None:
                raise PathNotFound(path)
            node = child
        return node

    def _find_file(self, path: str) -> _File:
        node = self._find(path)
        if isinstance(node, _Directory):
            raise NotRegularFile(path, "a directory")
        return node

    def _find_directory(self, path: str) -> _Directory:
        node = self._find(path)
        if isinstance(node, _File):
            raise PathNotFound(path, "not a directory")
        return node

    def _make_directory(self, path: str) -> _Directory:
        directory = self._root
        for name in _components(path):
            child = directory.children.get(name)
            if isinstance(child, _File):
                raise PathNotFound(path, "a file is in the way")
            if child is None:
                child = _Directory()
                directory.add(name, child)
            directory = child
        return directory

    def _make_parent(self, path: str) -> tuple[_Directory, str]:
        if path == "/":
            raise NotRegularFile(path, "a directory")
        return self._make_directory(_parent(path)), _name(path)

    def _put(self, path: str, file: _File) -> None:
        directory, name = self._make_parent(path)
        replaced = directory.children.get(name)
        if isinstance(replaced, _Directory):
            raise NotRegularFile(path, "a directory")
        directory.add(name, file)
        if replaced is not None:
            replaced.changed()

    def _check_not_root(self, path: str) -> None:
        if path == "/":
            raise InvalidPath(path, "the root of the storage stays")


async def _checkpoint(path: str) -> None:
    check_path(path)
    await trio.lowlevel.checkpoint()


def _components(path: str) -> Sequence[str]:
    return [component for component in path.split("/") if component]


def _parent(path: str) -> str:
    return path.rpartition("/")[0] or "/"


def _name(path: str) -> str:
    return path.rpartition("/")[2]


class _MemoryReader(FileReader):
    def __init__(self, path: str, file: _File) -> None:
        self._path = path
        self._file = file
        self.size = len(file.content)

    def read_nowait(self, offset: int, length: int) -> memoryview | bytes | None:
        length = clamp(self._path, offset, length, self.size)
        return check_length(self._path, bytes(self._file.content[offset : offset + length]), length)

    async def read(self, offset: int, length: int) -> bytes:
        await trio.lowlevel.checkpoint()
        return bytes(self.read_nowait(offset, length) or b"")

    def close(self) -> None:
        pass


class _MemoryWriter(FileWriter):
    def __init__(self, path: str, file: _File) -> None:
        self._path = path
        self._file = file
        self._version = file.version
        self.size = len(file.content)

    async def write(self, buffers: Sequence[bytes]) -> None:
        await self._check_unchanged()
        self._replace(self.size, b"".join(buffers))

    async def write_at(self, offset: int, content: bytes) -> None:
        _check_offset(self._path, offset)
        await self._check_unchanged()
        if content:
            self._extend(offset)
        self._replace(offset, content)

    async def truncate(self, size: int) -> None:
        _check_offset(self._path, size)
        await self._check_unchanged()
        self._extend(size)
        del self._file.content[size:]
        self._remember()

    async def flush(self) -> None:
        await self._check_unchanged()

    def version(self) -> ContentVersion | None:
        return ContentVersion(self._version)

    async def close(self) -> None:
        await trio.lowlevel.checkpoint()

    async def _check_unchanged(self) -> None:
        await trio.lowlevel.checkpoint()
        if self._file.version != self._version:
            raise ContentChanged(self._path)

    def _extend(self, size: int) -> None:
        self._file.content.extend(bytes(max(0, size - len(self._file.content))))

    def _replace(self, offset: int, content: bytes) -> None:
        self._file.content[offset : offset + len(content)] = content
        self._remember()

    def _remember(self) -> None:
        self._file.changed()
        self._version = self._file.version
        self.size = len(self._file.content)


def _check_offset(path: str, offset: int) -> None:
    if offset < 0:
        raise InvalidOffset(path, f"{offset}")


class _MemorySealedFile(SealedFile):
    """A private copy; its version is known nevertheless, because nothing can change while it is made."""

    def __init__(self, driver: MemoryDriver, path: str, file: _File) -> None:
        self._driver = driver
        self._path = path
        self._file = file
        self._content = bytes(file.content)
        self.size = len(self._content)
        self.version = ContentVersion(file.version)

    async def read(self, offset: int, length: int) -> bytes:
        await trio.lowlevel.checkpoint()
        length = clamp(self._path, offset, length, self.size)
        return self._content[offset : offset + length]

    async def publish(self, destination: str) -> None:
        await _checkpoint(destination)
        self._driver.publish(self._path, self._file, self._content, destination)

    async def release(self) -> None:
        # Not cancellable, as nowhere else: what was published would look as if it were not.
        await trio.lowlevel.cancel_shielded_checkpoint()
