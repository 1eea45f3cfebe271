"""The stored bytes of many manifests of one repository, for whoever lists them or follows what they refer to.

They are read many at a time, but never more than a batch of them is in memory, whatever the repository has. That they
are manifests of the repository is for the caller to know (`revisions`); nor is it looked at here whether the bytes
match their digest.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from layerfs.digest import Digest
from layerfs.driver.interface import StorageDriver
from layerfs.errors import (
    BlobUnknown,
    ContentTooLarge,
    DriverError,
    LayerfsError,
    ManifestTooLarge,
    ManifestUnknownRevision,
)
from layerfs.manifest import MANIFEST_LIMIT
from layerfs.registry.blobs import BlobInfo
from layerfs.registry.paths import BlobData
from layerfs.registry.revisions import UNUSABLE

#: Bytes of manifests that are held in memory at a time.
_BATCH_SIZE: Final = 16 << 20


class ManifestContents:
    """The contents of manifests of repository `name`."""

    def __init__(self, name: str, driver: StorageDriver) -> None:
        self.name = name
        self._driver = driver

    async def read(self, batch: Sequence[BlobInfo]) -> list[tuple[Digest, bytes | LayerfsError]]:
        """The stored bytes of each, in order; in place of what is gone meanwhile or too large the error. One request.

        `batch` is one of `batches`.
        """
        contents = await self._driver.get_contents([BlobData(blob.digest).path for blob in batch], limit=MANIFEST_LIMIT)
        return [(blob.digest, self._content(blob.digest, one)) for blob, one in zip(batch, contents, strict=True)]

    def _content(self, digest: Digest, content: bytes | DriverError) -> bytes | LayerfsError:
        """What was read, or the error in the words of manifests."""
        if isinstance(content, ContentTooLarge):
            return ManifestTooLarge(MANIFEST_LIMIT)
        if isinstance(content, UNUSABLE):
            return ManifestUnknownRevision(self.name, digest, str(BlobUnknown(digest)))
        return content


def batches(blobs: Iterable[BlobInfo]) -> list[list[BlobInfo]]:
    """In order, each of at most `_BATCH_SIZE` bytes; what is too large for a manifest is left out."""
    found: list[list[BlobInfo]] = [[]]
    size = 0
    for blob in blobs:
        if blob.size > MANIFEST_LIMIT:
            continue
        if size + blob.size > _BATCH_SIZE:
            found.append([])
            size = 0
        found[-1].append(blob)
        size += blob.size
    return [batch for batch in found if batch]
