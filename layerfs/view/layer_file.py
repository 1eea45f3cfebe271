"""Layers as files: read-only, immutable, the same file wherever the blob is linked."""

from __future__ import annotations

import os
from collections.abc import Hashable
from dataclasses import replace
from typing import Final

from layerfs.driver.interface import FileReader
from layerfs.errors import BlobUnknown, LayerUnknown, NotPermitted, ShortRead
from layerfs.registry import LayerInfo
from layerfs.registry.paths import LAYERS
from layerfs.view.nodes import IMMUTABLE_TIMEOUT, Attributes, Handle, Node, file_attributes
from layerfs.view.readahead import ReadAhead
from layerfs.view.state import MountState

_MEDIA_TYPE: Final = "application/octet-stream"

#: A layer has two names, its blob's and its link's; with one, `du` would count it again in every repository.
_LINKS: Final = 2


class LayerFile(Node):
    """A layer. The same blob is the same file in every repository and under every digest it is linked by."""

    def __init__(self, state: MountState, repository: str, info: LayerInfo) -> None:
        self.name = str(info.digest)
        self.path = f"{repository}/{LAYERS}/{self.name}"
        self.info = info
        self.repository = repository
        self._state = state

    @property
    def key(self) -> Hashable:
        return self.info.blob.digest

    async def attributes(self) -> Attributes:
        return self.attributes_now()

    def attributes_now(self) -> Attributes:
        """As `attributes`: nothing about a blob can change."""
        blob = self.info.blob
        attributes = file_attributes(
            permissions=self._state.permissions(0o444), size=blob.size, modified_at=blob.stored_at, links=_LINKS
        )
        return replace(attributes, entry_timeout=self._state.options.metadata_ttl, attribute_timeout=IMMUTABLE_TIMEOUT)

    def extended_attributes(self) -> dict[str, str]:
        return {"digest": str(self.info.blob.digest), "mediatype": _MEDIA_TYPE, "repository": self.repository}

    async def open(self, flags: int) -> Handle:
        if flags & os.O_ACCMODE != os.O_RDONLY or flags & os.O_TRUNC:
            raise NotPermitted(f"{self.path} is a layer: it cannot be written, whoever asks")
        try:
            reader = await self._state.registry.blobs.open(self.info.blob.digest)
        except BlobUnknown as error:
            raise LayerUnknown(self.repository, self.info.digest, "its blob is gone") from error
        if reader.size < self.info.blob.size:
            # The kernel believes the size that it was told: a reader would take the missing end for the end.
            reader.close()
            raise ShortRead(self.path, f"its blob has {reader.size} bytes left of {self.info.blob.size}")
        return LayerHandle(self._state, self.path, reader)


class LayerHandle(Handle):
    """An open layer."""

    def __init__(self, state: MountState, path: str, reader: FileReader) -> None:
        self.path = path
        self._reader = reader
        self._ahead = ReadAhead(reader, state.read_ahead, lambda task: state.start(task, f"read-ahead of {path}"))
        # The way of a read that need not wait is one call, not two.
        self.read_nowait = reader.read_nowait  # type: ignore[method-assign]

    async def read(self, offset: int, length: int) -> bytes:
        return await self._ahead.read(offset, length)

    async def release(self) -> None:
        self._ahead.close()
        self._reader.close()
