"""The layout itself: `_oci`, and the two files in it that are always there.

It lists what image-spec's `image-layout.md` says that a layout has, and nothing else, so that it can be copied as a
whole; temporary files, and the layouts of single tags, are found by name only.
"""

from __future__ import annotations

import os
from collections.abc import Hashable, Sequence

from layerfs.errors import EntryExists, NotPermitted
from layerfs.manifest import MANIFEST_LIMIT
from layerfs.oci import INDEX_FILE, INDEX_LIMIT, LAYOUT_CONTENT, LAYOUT_FILE, check_layout
from layerfs.view.buffered import BufferedHandle, MemoryHandle
from layerfs.view.nodes import OCI, Attributes, Directory, DirectoryEntry, Handle, Node, file_attributes
from layerfs.view.oci.blobs import BLOBS, BlobsDirectory
from layerfs.view.oci.index import IndexFile
from layerfs.view.oci.scratch import ScratchHolder
from layerfs.view.oci.state import Layouts, ScratchFile, ScratchNames
from layerfs.view.oci.tag_layouts import TAG_LAYOUTS, TagLayoutsDirectory
from layerfs.view.upload_file import UploadFile
from layerfs.view.upload_finishing import consume


class LayoutFile(Node):
    """`oci-layout`: always the same. What is written is checked, and not stored."""

    def __init__(self, layouts: Layouts, layout_path: str) -> None:
        self.path = f"{layout_path}/{LAYOUT_FILE}"
        self._state = layouts.state

    @property
    def key(self) -> Hashable:
        return ("layout file", self.path)

    async def attributes(self) -> Attributes:
        return self.attributes_now()

    def attributes_now(self) -> Attributes:
        """They never change."""
        state = self._state
        permissions = state.permissions(0o644)
        return file_attributes(permissions=permissions, size=len(LAYOUT_CONTENT), modified_at=state.mounted_at)

    async def open(self, flags: int) -> Handle:
        if flags & os.O_ACCMODE == os.O_RDONLY and not flags & os.O_TRUNC:
            return MemoryHandle(self.path, LAYOUT_CONTENT)
        self._state.check_writable()
        content = b"" if flags & os.O_TRUNC else LAYOUT_CONTENT
        return BufferedHandle(self.path, self.replace, limit=MANIFEST_LIMIT, content=content)

    async def truncate(self, size: int) -> None:  # noqa: ARG002
        """Taken and ignored: what is written then is what counts."""
        self._state.check_writable()

    async def replace(self, content: bytes) -> None:
        """Raises `InvalidLayout` for another content than the one that is known here."""
        check_layout(content)

    def check_ownership_change(self) -> None:
        """Taken and ignored: clients set the mode of what they have just written."""
        self._state.check_writable()


class LayoutDirectory(ScratchHolder):
    """`_oci` of a repository."""

    def __init__(self, layouts: Layouts, repository: str) -> None:
        super().__init__(layouts, repository, f"{repository}/{OCI}")

    @property
    def key(self) -> Hashable:
        return (OCI, self.repository)

    @property
    def _names(self) -> ScratchNames:
        return self._layouts.of(self.repository).scratch

    async def lookup(self, name: str) -> Node:
        if name == LAYOUT_FILE:
            return LayoutFile(self._layouts, self.path)
        if name == INDEX_FILE:
            return self._index()
        if name == BLOBS:
            return self._blobs()
        if name == TAG_LAYOUTS:
            return TagLayoutsDirectory(self._layouts, self.repository, self.path)
        return await self._scratch(name)

    async def entries(self) -> Sequence[DirectoryEntry]:
        layout, index = LayoutFile(self._layouts, self.path), self._index()
        return [
            DirectoryEntry(BLOBS.encode(), self._blobs(), self._attributes()),
            DirectoryEntry(INDEX_FILE.encode(), index, index.attributes_unread()),
            DirectoryEntry(LAYOUT_FILE.encode(), layout, layout.attributes_now()),
        ]

    async def remove(self, name: str) -> None:
        self._refuse_fixed(name, "removed")
        await super().remove(name)

    async def remove_directory(self, name: str) -> None:
        self._refuse_fixed(name, "removed")
        await super().remove_directory(name)

    async def rename(self, name: str, target: Directory, new_name: str, *, replace: bool) -> None:
        self._refuse_fixed(name, "moved")
        await super().rename(name, target, new_name, replace=replace)

    async def receive(self, upload: UploadFile, file: ScratchFile, name: str, *, replace: bool) -> None:
        """A file over the index says what is to be changed; one over `oci-layout` is checked."""
        if name not in (INDEX_FILE, LAYOUT_FILE):
            self._refuse_fixed(name, "replaced")
            await super().receive(upload, file, name, replace=replace)
            return
        if not replace:
            raise EntryExists(f"{self.path}/{name} exists")
        index, layout = self._index(), LayoutFile(self._layouts, self.path)

        async def use(content: bytes) -> Node:
            if name == LAYOUT_FILE:
                await layout.replace(content)
                return layout
            await index.replace(content, file.began_at)
            return index

        await consume(self._uploads, upload, use, limit=INDEX_LIMIT)

    def _refuse_fixed(self, name: str, what: str) -> None:
        self._state.check_writable()
        if name in (LAYOUT_FILE, INDEX_FILE, BLOBS, TAG_LAYOUTS):
            raise NotPermitted(f"{self.path}/{name} belongs to the layout: it cannot be {what}")

    def _index(self) -> IndexFile:
        return IndexFile(self._layouts, self.repository, self.path)

    def _blobs(self) -> BlobsDirectory:
        return BlobsDirectory(self._layouts, self.repository, self.path)
