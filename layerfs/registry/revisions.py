"""The manifests that a repository has, by their revision links: what tags and manifest service both ask."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, TypeAlias

from layerfs.digest import CANONICAL, Digest
from layerfs.driver.interface import StorageDriver
from layerfs.errors import (
    BlobUnknown,
    DriverError,
    InvalidDigest,
    LayerfsError,
    LinkInvalid,
    LinkMismatch,
    ManifestUnknownRevision,
    NotRegularFile,
    PathNotFound,
)
from layerfs.registry.blobs import BlobInfo, BlobStore
from layerfs.registry.links import read_links
from layerfs.registry.paths import ManifestRevisionLink, RepositoryDirectory

#: What says that there is nothing (of use) at the end of a link. All else says that it cannot be known.
UNUSABLE: Final = (PathNotFound, NotRegularFile, LinkInvalid, BlobUnknown)


class Revisions:
    """The revision links of repository `name`."""

    def __init__(self, name: str, driver: StorageDriver, blobs: BlobStore) -> None:
        self.name = name
        self._driver = driver
        self._blobs = blobs

    async def stat(self, digest: Digest) -> BlobInfo:
        """The blob of a manifest. Raises `ManifestUnknownRevision`, or `LinkMismatch` if its link leads elsewhere."""
        (found,) = await self.stat_many([digest])
        if isinstance(found, LayerfsError):
            raise found
        return found

    async def stat_many(self, digests: Sequence[Digest]) -> Found:
        """`stat` of each, in order, an error standing in its place. Two requests to the driver in all."""
        links = await read_links(self._driver, [self._path(digest) for digest in digests])
        blobs = await self._blobs.stat_many(digests)
        return [
            self._error(digest, link) or self._blob(digest, blob)
            for digest, link, blob in zip(digests, links, blobs, strict=True)
        ]

    async def check_link(self, digest: Digest) -> None:
        """Raises `ManifestUnknownRevision` or `LinkMismatch` unless there is a link; the blob may be missing."""
        (link,) = await read_links(self._driver, [self._path(digest)])
        if error := self._error(digest, link):
            raise error

    async def list(self) -> Digests:
        """The digests that have a directory here, whatever is in it, in order."""
        try:
            entries = await self._driver.list(f"{RepositoryDirectory(self.name).manifests}/revisions/{CANONICAL}")
        except (PathNotFound, NotRegularFile):
            return []
        return parse_digests(CANONICAL, sorted(entry.name for entry in entries if entry.is_directory))

    def _path(self, digest: Digest) -> str:
        return ManifestRevisionLink(self.name, digest).path

    def _error(self, digest: Digest, link: Digest | LayerfsError) -> LayerfsError | None:
        if isinstance(link, PathNotFound):
            return ManifestUnknownRevision(self.name, digest)
        if isinstance(link, UNUSABLE):
            return ManifestUnknownRevision(self.name, digest, str(link))
        if isinstance(link, Digest) and link != digest:
            return LinkMismatch(self._path(digest), f"it leads to {link}")
        return None if isinstance(link, Digest) else link

    def _blob(self, digest: Digest, blob: BlobInfo | LayerfsError) -> BlobInfo | LayerfsError:
        return ManifestUnknownRevision(self.name, digest, str(blob)) if isinstance(blob, BlobUnknown) else blob


# Named here because inside `Revisions` the word `list` is its method.
Found: TypeAlias = list[BlobInfo | LayerfsError]
Digests: TypeAlias = list[Digest]


def parse_digests(algorithm: str, names: Sequence[str]) -> Digests:
    """The digests that directories of these names stand for; other names are passed over."""
    digests: Digests = []
    for name in names:
        try:
            digests.append(Digest.parse(f"{algorithm}:{name}"))
        except InvalidDigest:
            continue
    return digests


def is_missing(found: object) -> bool:
    """Whether what was found in place of a link or of what it leads to says that it is not there.

    Raises what keeps that from being known.
    """
    if isinstance(found, (*UNUSABLE, ManifestUnknownRevision)):
        return True
    if isinstance(found, DriverError):
        raise found
    return False
