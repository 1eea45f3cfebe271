"""The driver for S3 and what speaks its protocol: Ceph, MinIO, SeaweedFS, Swift.

It keeps what distribution's driver keeps, so that registries on the same bucket go on with our uploads and we with
theirs. The bytes of an unfinished upload are the parts of an open multipart upload (`s3_upload`); finishing one
completes it and has the store copy the object to its place, so that no byte comes through this machine again.

No feature is relied on that some store lacks. Nothing is locked: that nobody else has changed what is published follows
from the ETags of its parts and of the object.

What a crash leaves of a copy in parts is left to a lifecycle rule of the bucket (AbortIncompleteMultipartUpload). It
must allow more time than uploads are given by whoever purges them: 30 days, say.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Final

import trio

from layerfs.driver.bridge import AsyncioBridge, BridgeClosed
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
from layerfs.driver.s3_bucket import StoredObject
from layerfs.driver.s3_options import S3Options
from layerfs.driver.s3_store import Store
from layerfs.driver.s3_upload import S3Upload, S3Version
from layerfs.errors import UnsupportedByDriver

#: Seconds that letting go of everything may take.
_CLOSE_SECONDS: Final = 5.0


class S3Driver(StorageDriver):
    """What lies below a prefix in a bucket. Nothing is asked of the store before the first call."""

    name = "s3"
    capabilities = Capabilities(directories=False, append=True, random_writes=False)

    def __init__(self, options: S3Options) -> None:
        self._bridge = AsyncioBridge(f"layerfs-s3-{options.bucket}")
        self._store = Store(options)

    async def stat(self, path: str) -> FileInfo:
        return await self._bridge.call(self._store.stat, check_path(path))

    async def stat_many(self, paths: Sequence[str]) -> Stats:
        return await self._bridge.call(self._store.stat_many, paths)

    async def list(self, path: str) -> Entries:
        return await self._bridge.call(self._store.list, check_path(path))

    async def get_content(self, path: str, *, limit: int) -> bytes:
        return await self._bridge.call(self._store.get_content, check_path(path), limit)

    async def get_contents(self, paths: Sequence[str], *, limit: int) -> Contents:
        return await self._bridge.call(self._store.get_contents, paths, limit)

    async def put_content(self, path: str, content: bytes) -> None:
        await self._bridge.call(self._store.put_content, check_path(path), content)

    async def open(self, path: str) -> FileReader:
        return _Reader(self._bridge, self._store, await self._bridge.call(self._store.stat_file, check_path(path)))

    async def writer(self, path: str, *, append: bool) -> FileWriter:
        return _Writer(
            self._bridge, self._store, await self._bridge.call(self._store.begin_writing, check_path(path), append)
        )

    async def seal(self, path: str) -> SealedFile:
        found, version = await self._bridge.call(self._store.seal, check_path(path))
        return _Sealed(self._bridge, self._store, path, found, version)

    async def move(self, source: str, destination: str) -> None:
        await self._bridge.call(self._store.move, check_path(source), check_path(destination))

    async def delete(self, path: str) -> None:
        await self._bridge.call(self._store.delete, check_path(path))

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
    def __init__(self, bridge: AsyncioBridge, store: Store, upload: S3Upload) -> None:
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
    """A completed object. It stays where it is when it was not published, as one that a registry did not finish does:
    whoever goes on with it takes it in."""

    def __init__(self, bridge: AsyncioBridge, store: Store, path: str, found: StoredObject, version: S3Version) -> None:
        self._bridge = bridge
        self._store = store
        self._path = path
        self._found = found
        self.size = found.size
        self.version = ContentVersion(version)

    async def read(self, offset: int, length: int) -> bytes:
        length = clamp(self._path, offset, length, self.size)
        return await self._bridge.call(self._store.read_sealed, self._path, offset, length, self._found)

    async def publish(self, destination: str) -> None:
        await self._bridge.call(self._store.publish, self._path, self._found, check_path(destination))

    async def release(self) -> None:
        await trio.lowlevel.cancel_shielded_checkpoint()
