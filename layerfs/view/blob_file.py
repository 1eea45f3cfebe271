"""Blobs as files: read-only, immutable, the same file wherever the blob is linked."""

from __future__ import annotations

import os
from collections.abc import Hashable
from dataclasses import replace
from typing import Final

import trio

from layerfs.digest import Digest
from layerfs.driver.interface import FileReader
from layerfs.errors import (
    BlobUnknown,
    LayerUnknown,
    ManifestUnknownRevision,
    NotPermitted,
    ShortRead,
    StaleInode,
    StaleName,
)
from layerfs.layername import LayerName
from layerfs.registry import BlobInfo, LayerInfo
from layerfs.registry.manifests import ManifestInfo
from layerfs.registry.paths import LAYERS, MANIFESTS
from layerfs.view.nodes import IMMUTABLE_TIMEOUT, Attributes, Handle, ListedNode, file_attributes
from layerfs.view.readahead import ReadAhead
from layerfs.view.state import MountState

#: What a registry says that every layer is.
_OCTET_STREAM: Final = "application/octet-stream"

#: A blob has two names, its own and that of the link; with one, `du` would count it again in every repository.
_LINKS: Final = 2


class BlobFile(ListedNode):
    """A blob linked into a repository, under the name `digest`.

    The same blob is the same file in every repository and under every digest it is linked by.
    """

    def __init__(self, state: MountState, repository: str, path: str, digest: LayerName, blob: BlobInfo) -> None:
        self.path = path
        self.name = str(digest)
        self.digest = digest
        self.blob = blob
        self.repository = repository
        self._state = state

    @property
    def key(self) -> Hashable:
        return self.blob.digest

    def attributes_now(self) -> Attributes:
        """Nothing about a blob can change."""
        attributes = file_attributes(
            permissions=self._state.permissions(0o444),
            size=self.blob.size,
            modified_at=self.blob.stored_at,
            links=_LINKS,
        )
        return replace(attributes, entry_timeout=self._believable_for, attribute_timeout=IMMUTABLE_TIMEOUT)

    @property
    def _believable_for(self) -> float:
        """Seconds for which the kernel may believe that the blob is there: since storage was asked, not since now.

        A listing can be made of what was seen long ago; what it says counts like any listing.
        """
        ttl, seen_at = self._state.options.metadata_ttl, self.blob.seen_at
        age = trio.current_time() - seen_at if seen_at is not None else 0.0
        return ttl - age if age < ttl else ttl

    async def extended_attributes(self) -> dict[str, str]:
        return {"digest": str(self.blob.digest), "mediatype": await self.media_type(), "repository": self.repository}

    async def media_type(self) -> str:
        """What the content is."""
        return _OCTET_STREAM

    async def open(self, flags: int) -> Handle:
        if flags & os.O_ACCMODE != os.O_RDONLY or flags & os.O_TRUNC:
            await self._check_still_there()
            raise NotPermitted(f"{self.path} is a stored blob: it cannot be written, whoever asks")
        reader = await self._state.registry.blobs.open(self.blob.digest, known=self._known())
        if reader.size < self.blob.size:
            # The kernel believes the size that it was told: a reader would take the missing end for the end.
            reader.close()
            raise ShortRead(self.path, f"its blob has {reader.size} bytes left of {self.blob.size}")
        if reader.size > self.blob.size:
            # It was cut short when it was seen, and was mended since. The kernel looks it up again, and tries anew.
            reader.close()
            await self._state.registry.blobs.forget(self.blob.digest)
            raise StaleInode(f"{self.path}: its blob has {reader.size} bytes by now, not {self.blob.size}")
        if self._state.contents is not None:
            return await self._state.contents.open(self.path, self.blob, reader)
        return BlobHandle(self._state, self.path, self.blob.digest, reader)

    async def _check_still_there(self) -> None:
        """Raises `StaleName` for what a registry, or its garbage collection, has removed since the name was looked up.

        The kernel looks up again then, finds nothing, and creates the file: so it can be stored again at once.
        """
        try:
            await self._find_again()
        except (BlobUnknown, LayerUnknown, ManifestUnknownRevision) as error:
            raise StaleName(f"{self.path} was removed since it was looked up") from error

    async def _find_again(self) -> None:
        await self._state.registry.blobs.stat(self.blob.digest)

    def _known(self) -> BlobInfo | None:
        """The blob, if storage had it so lately that it need not be asked again whether it does."""
        seen_at, ttl = self.blob.seen_at, self._state.options.metadata_ttl
        return self.blob if seen_at is not None and trio.current_time() - seen_at < ttl else None


class LayerFile(BlobFile):
    """A layer."""

    def __init__(self, state: MountState, repository: str, info: LayerInfo) -> None:
        super().__init__(state, repository, f"{repository}/{LAYERS}/{info.digest}", info.digest, info.blob)

    def attributes_now(self) -> Attributes:
        """As of any blob; but what a TarSum leads to can change, and the kernel may not remember it."""
        attributes = super().attributes_now()
        return attributes if isinstance(self.digest, Digest) else replace(attributes, entry_timeout=0.0)

    async def _find_again(self) -> None:
        await super()._find_again()
        await self._state.service(self.repository).stat(self.digest)


class ManifestFile(BlobFile):
    """A manifest: its bytes as they are stored."""

    def __init__(self, state: MountState, repository: str, info: ManifestInfo) -> None:
        blob = BlobInfo(info.digest, info.size, info.stored_at, info.seen_at)
        super().__init__(state, repository, f"{repository}/{MANIFESTS}/{info.digest}", info.digest, blob)

    async def media_type(self) -> str:
        manifest = await self._state.manifests(self.repository).get(self.blob.digest)
        return manifest.media_type

    async def _find_again(self) -> None:
        await super()._find_again()
        await self._state.manifests(self.repository).stat(self.blob.digest)


class BlobHandle(Handle):
    """An open blob."""

    def __init__(self, state: MountState, path: str, digest: Digest, reader: FileReader) -> None:
        self.path = path
        self._ahead = ReadAhead(reader, state.read_ahead, key=digest)
        # The way of a read that need not wait is one call, not two.
        self.read_nowait = reader.read_nowait  # type: ignore[method-assign]

    async def read(self, offset: int, length: int) -> bytes:
        return await self._ahead.read(offset, length)

    async def release(self) -> None:
        self._ahead.close()
