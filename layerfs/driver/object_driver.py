"""What the drivers of all object stores have in common, on trio's side: an asyncio store, called over a bridge.

Nobody can be kept from changing an object, but everybody can be kept from mixing it up with another: what is sealed is
one version of an object, and only that is read and published.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any, Final, Protocol

import trio

from layerfs.driver.bridge import AsyncioBridge, BridgeClosed
from layerfs.driver.interface import (
    Capabilities,
    Contents,
    ContentVersion,
    Entries,
    FileInfo,
    FileReader,
    Files,
    FileWriter,
    SealedFile,
    Stats,
    StorageDriver,
    Usage,
    check_path,
)
from layerfs.driver.objects import StoredObject
from layerfs.driver.ranges import clamp
from layerfs.errors import UnsupportedByDriver

#: Seconds that letting go of everything may take.
_CLOSE_SECONDS: Final = 5.0


class Upload(Protocol):
    """What a process appends to. All of it runs on asyncio."""

    @property
    def path(self) -> str: ...

    @property
    def size(self) -> int:
        """All bytes that were taken, stored or not."""

    @property
    def version(self) -> object:
        """Of what is stored; equal versions are equal bytes."""

    async def append(self, buffers: Sequence[bytes]) -> None: ...

    async def flush(self) -> None: ...


class Store(Protocol):
    """A storage as the driver needs it: its methods, on asyncio and with paths that were checked."""

    async def close(self) -> None: ...

    async def stat(self, path: str) -> FileInfo: ...

    async def stat_file(self, path: str) -> FileInfo: ...

    async def is_directory(self, path: str) -> bool: ...

    async def stat_many(self, paths: Sequence[str]) -> Stats: ...

    async def list(self, path: str) -> Entries: ...

    async def list_files(self, path: str) -> Files:
        """One request for a thousand files or more, wherever below they are."""

    async def get_content(self, path: str, limit: int) -> bytes: ...

    async def get_contents(self, paths: Sequence[str], limit: int) -> Contents: ...

    async def put_content(self, path: str, content: bytes) -> None: ...

    async def read(self, path: str, offset: int, length: int, size: int) -> bytes:
        """Reads a file that had `size` bytes when it was opened."""

    async def read_sealed(self, path: str, offset: int, length: int, found: StoredObject) -> bytes: ...

    async def begin_writing(self, path: str, append: bool) -> Any:
        """An `Upload`, until `end_writing` gets it back."""

    async def end_writing(self, upload: Any) -> None: ...

    def is_live(self, path: str) -> bool:
        """Whether this process is writing the file."""

    async def seal(self, path: str) -> tuple[StoredObject, object]:
        """The object that is published, and the version that its content is of."""

    async def publish(self, source: str, found: StoredObject, destination: str) -> FileInfo | None: ...

    async def move(self, source: str, destination: str) -> None: ...

    async def delete(self, path: str) -> None: ...

    async def delete_files(self, paths: Sequence[str]) -> None:
        """As few requests as the store allows, and none to look for them."""

    async def delete_in_steps(self, steps: Sequence[Sequence[str]]) -> None: ...


class ObjectStoreDriver(StorageDriver):
    """What lies below a prefix in an object store. Nothing is asked of the store before the first call."""

    capabilities = Capabilities(
        directories=False, append=True, random_writes=False, listed_files=True, listed_uploads=True
    )

    def __init__(self, name: str, place: str, store: Store) -> None:
        """`place` is what the storage is called in the list of threads."""
        self.name = name
        self._bridge = AsyncioBridge(f"layerfs-{name}-{place}")
        self._store = store

    async def stat(self, path: str) -> FileInfo:
        return await self._bridge.call(self._store.stat, check_path(path))

    async def is_directory(self, path: str) -> bool:
        return await self._bridge.call(self._store.is_directory, check_path(path))

    async def stat_many(self, paths: Sequence[str]) -> Stats:
        return await self._bridge.call(self._store.stat_many, paths)

    async def list(self, path: str) -> Entries:
        return await self._bridge.call(self._store.list, check_path(path))

    async def list_files(self, path: str) -> Files:
        return await self._bridge.call(self._store.list_files, check_path(path))

    async def get_content(self, path: str, *, limit: int) -> bytes:
        return await self._bridge.call(self._store.get_content, check_path(path), limit)

    async def get_contents(self, paths: Sequence[str], *, limit: int) -> Contents:
        return await self._bridge.call(self._store.get_contents, paths, limit)

    async def put_content(self, path: str, content: bytes) -> None:
        await self._bridge.call(self._store.put_content, check_path(path), content)

    async def open(self, path: str) -> FileReader:
        return _Reader(self._bridge, self._store, await self._bridge.call(self._store.stat_file, check_path(path)))

    async def open_known(self, info: FileInfo) -> FileReader:
        check_path(info.path)
        await trio.lowlevel.checkpoint()
        return _Reader(self._bridge, self._store, info)

    async def writer(self, path: str, *, append: bool) -> FileWriter:
        return _Writer(
            self._bridge, self._store, await self._bridge.call(self._store.begin_writing, check_path(path), append)
        )

    async def seal(self, path: str) -> SealedFile:
        found, version = await self._bridge.call(self._store.seal, check_path(path))
        return _Sealed(self._bridge, self._store, path, found, ContentVersion(version))

    async def move(self, source: str, destination: str) -> None:
        await self._bridge.call(self._store.move, check_path(source), check_path(destination))

    async def delete(self, path: str) -> None:
        await self._bridge.call(self._store.delete, check_path(path))

    async def delete_files(self, paths: Sequence[str]) -> None:
        await self._bridge.call(self._store.delete_files, [check_path(path) for path in paths])

    async def delete_in_steps(self, *steps: Sequence[str]) -> None:
        checked = [[check_path(path) for path in step] for step in steps]
        await self._bridge.call(self._store.delete_in_steps, checked)

    async def make_directory(self, path: str) -> None:
        check_path(path)
        await trio.lowlevel.checkpoint()

    async def remove_directory(self, path: str) -> None:
        check_path(path)
        await trio.lowlevel.checkpoint()

    async def usage(self) -> Usage | None:
        await trio.lowlevel.checkpoint()
        return None

    async def close(self) -> None:
        with trio.move_on_after(_CLOSE_SECONDS, shield=True):
            if not self._bridge.is_closed:
                await self._bridge.call(self._store.close)
        await self._bridge.close()

    async def is_being_written(self, path: str) -> bool:
        """Knows only of this process: others leave no trace while they write."""
        check_path(path)
        await trio.lowlevel.checkpoint()
        return self._store.is_live(path)


class _Reader(FileReader):
    """A path and the size it had; there is nothing open.

    An object that is replaced by one of the same size is read on: in a registry that is the same content.
    """

    def __init__(self, bridge: AsyncioBridge, store: Store, info: FileInfo) -> None:
        self._bridge = bridge
        self._store = store
        self._path = info.path
        self.size = info.size

    def read_nowait(self, offset: int, length: int) -> memoryview | bytes | None:
        return None if clamp(self._path, offset, length, self.size) else b""

    async def read(self, offset: int, length: int) -> bytes:
        length = clamp(self._path, offset, length, self.size)
        return await self._bridge.call(self._store.read, self._path, offset, length, self.size)

    def close(self) -> None:
        pass


class _Writer(FileWriter):
    def __init__(self, bridge: AsyncioBridge, store: Store, upload: Upload) -> None:
        self._bridge = bridge
        self._store = store
        self._upload = upload
        self._closed = False
        self.size = upload.size

    async def write(self, buffers: Sequence[bytes]) -> None:
        try:
            await self._bridge.call(self._upload.append, buffers)
        finally:
            self.size = self._upload.size

    async def write_at(self, offset: int, content: bytes) -> None:  # noqa: ARG002 - the interface's
        raise UnsupportedByDriver(self._upload.path, "only appending is possible")

    async def truncate(self, size: int) -> None:  # noqa: ARG002 - the interface's
        raise UnsupportedByDriver(self._upload.path, "only appending is possible")

    async def flush(self) -> None:
        await self._bridge.call(self._upload.flush)

    def version(self) -> ContentVersion | None:
        return ContentVersion(self._upload.version)

    async def close(self) -> None:
        if self._closed:
            await trio.lowlevel.checkpoint()
            return
        self._closed = True
        with trio.move_on_after(_CLOSE_SECONDS, shield=True):
            with contextlib.suppress(BridgeClosed):  # and with it went all that was open
                await self._bridge.call(self._store.end_writing, self._upload)


class _Sealed(SealedFile):
    """An object in one version. It stays where it is when it was not published, and can be gone on with."""

    def __init__(
        self, bridge: AsyncioBridge, store: Store, path: str, found: StoredObject, version: ContentVersion
    ) -> None:
        self._bridge = bridge
        self._store = store
        self._path = path
        self._found = found
        self.size = found.size
        self.version = version

    async def read(self, offset: int, length: int) -> bytes:
        length = clamp(self._path, offset, length, self.size)
        return await self._bridge.call(self._store.read_sealed, self._path, offset, length, self._found)

    async def publish(self, destination: str) -> FileInfo | None:
        return await self._bridge.call(self._store.publish, self._path, self._found, check_path(destination))

    async def release(self) -> None:
        await trio.lowlevel.cancel_shielded_checkpoint()
