"""`BlobStore`: the content-addressed bytes that all repositories of a registry share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from layerfs.digest import Digest
from layerfs.driver.interface import FileInfo, FileReader, StorageDriver
from layerfs.errors import BlobUnknown, DriverError, LayerfsError, NotRegularFile, PathNotFound
from layerfs.registry.paths import BlobData


@dataclass(frozen=True, slots=True)
class BlobInfo:
    """A stored blob: `size` in bytes, `stored_at` in nanoseconds since 1970 (0 if the backend does not know)."""

    digest: Digest
    size: int
    stored_at: int


class BlobStore:
    """Blobs by their canonical digest. What is read is not verified against it; what is published was, by `uploads`."""

    def __init__(self, driver: StorageDriver) -> None:
        self._driver = driver

    async def stat(self, digest: Digest) -> BlobInfo:
        """Raises `BlobUnknown` if there is no such blob (or something that is no file in its place)."""
        (result,) = await self.stat_many([digest])
        if isinstance(result, LayerfsError):
            raise result
        return result

    async def stat_many(self, digests: Sequence[Digest]) -> list[BlobInfo | LayerfsError]:
        """`stat` of each, in order, an error standing in its place."""
        found = await self._driver.stat_many([BlobData(digest).path for digest in digests])
        return [_blob_info(digest, info) for digest, info in zip(digests, found, strict=True)]

    async def open(self, digest: Digest) -> FileReader:
        """The bytes of a blob. Raises `BlobUnknown`."""
        try:
            return await self._driver.open(BlobData(digest).path)
        except (PathNotFound, NotRegularFile) as error:
            raise BlobUnknown(digest) from error


def _blob_info(digest: Digest, found: FileInfo | DriverError) -> BlobInfo | LayerfsError:
    if isinstance(found, PathNotFound | NotRegularFile):
        return BlobUnknown(digest)
    if isinstance(found, DriverError):
        return found
    if found.is_directory:
        return BlobUnknown(digest)
    return BlobInfo(digest, found.size, found.modified_at)
