"""`_oci/tags/<tag>`: a layout for each tag, with that image alone.

Some clients refuse a layout with more than one image if they are not told which to take, or cannot be told. These
layouts are complete, list no blob that their image does not need, and are read-only: every change is `ReadOnlyMount`,
which the clients that make lock files in what they read know how to take.
"""

from __future__ import annotations

import os
from collections.abc import Hashable, Sequence
from typing import Final

from layerfs.digest import HEX_LENGTHS, Digest
from layerfs.errors import ReadOnlyMount, TagUnknown
from layerfs.names import is_tag
from layerfs.oci import INDEX_FILE, LAYOUT_CONTENT, LAYOUT_FILE, IndexEntry, render_index
from layerfs.registry.tags import Tag
from layerfs.view.buffered import MemoryHandle
from layerfs.view.nodes import (
    Attributes,
    DirectoryEntry,
    Handle,
    ListedNode,
    Node,
    directory_attributes,
    file_attributes,
    no_entry,
)
from layerfs.view.oci.blobs import BLOBS, AlgorithmDirectory, LayoutBlob
from layerfs.view.oci.index import current_entries, entries_of
from layerfs.view.oci.state import Layouts
from layerfs.view.read_only import ReadOnlyDirectory

#: The layouts of single tags, in the layout of the repository.
TAG_LAYOUTS: Final = "tags"


class TagLayoutsDirectory(ReadOnlyDirectory):
    """`_oci/tags`."""

    def __init__(self, layouts: Layouts, repository: str, layout_path: str) -> None:
        self.path = f"{layout_path}/{TAG_LAYOUTS}"
        self._layouts = layouts
        self._repository = repository

    @property
    def key(self) -> Hashable:
        return (TAG_LAYOUTS, self._repository)

    async def attributes(self) -> Attributes:
        return _attributes(self._layouts)

    async def lookup(self, name: str) -> Node:
        if not is_tag(name):
            raise no_entry(self.path, name)
        layout = TagLayoutDirectory(self._layouts, self._repository, self.path, name)
        await layout.entry_in_index()
        return layout

    async def entries(self) -> Sequence[DirectoryEntry]:
        return [
            DirectoryEntry(
                str(entry.tag).encode(),
                TagLayoutDirectory(self._layouts, self._repository, self.path, str(entry.tag)),
                _attributes(self._layouts),
            )
            for entry in await current_entries(self._layouts, self._repository)
        ]


class TagLayoutDirectory(ReadOnlyDirectory):
    """`_oci/tags/<tag>`: the layout of what the tag means now."""

    def __init__(self, layouts: Layouts, repository: str, parent: str, tag: str) -> None:
        self.path = f"{parent}/{tag}"
        self.layouts = layouts
        self.repository = repository
        self._tag = tag

    @property
    def key(self) -> Hashable:
        return ("tag layout", self.repository, self._tag)

    async def attributes(self) -> Attributes:
        return _attributes(self.layouts)

    async def entry_in_index(self) -> IndexEntry:
        """What its index lists. Raises `TagUnknown`, also if the manifest is not there."""
        digest = await self.layouts.state.tags(self.repository).get(self._tag)
        for entry in await entries_of(self.layouts, self.repository, [Tag(self._tag, digest)]):
            return entry
        raise TagUnknown(self.repository, self._tag, f"its manifest {digest} is missing")

    async def lookup(self, name: str) -> Node:
        if name == LAYOUT_FILE:
            return self._file(LAYOUT_FILE, LAYOUT_CONTENT)
        if name == INDEX_FILE:
            return self._file(INDEX_FILE, render_index([await self.entry_in_index()]))
        if name == BLOBS:
            return TagBlobsDirectory(self)
        raise no_entry(self.path, name)

    async def entries(self) -> Sequence[DirectoryEntry]:
        index = self._file(INDEX_FILE, render_index([await self.entry_in_index()]))
        blobs = DirectoryEntry(BLOBS.encode(), TagBlobsDirectory(self), _attributes(self.layouts))
        return [blobs, index.entry(), self._file(LAYOUT_FILE, LAYOUT_CONTENT).entry()]

    def _file(self, name: str, content: bytes) -> ContentFile:
        return ContentFile(self.layouts, f"{self.path}/{name}", content)


class ContentFile(ListedNode):
    """A file of the layout of a tag, as it was when it was looked up."""

    def __init__(self, layouts: Layouts, path: str, content: bytes) -> None:
        self.path = path
        self.name = path.rpartition("/")[2]
        self._layouts = layouts
        self._content = content

    @property
    def key(self) -> Hashable:
        # Another content is another file: whoever has this one open goes on to read it.
        return ("content", self.path, self._content)

    def attributes_now(self) -> Attributes:
        """No time-outs: the tag may mean something else at any moment."""
        state = self._layouts.state
        permissions = state.permissions(0o444)
        return file_attributes(permissions=permissions, size=len(self._content), modified_at=state.mounted_at)

    async def open(self, flags: int) -> Handle:
        if flags & os.O_ACCMODE != os.O_RDONLY or flags & os.O_TRUNC:
            raise ReadOnlyMount(f"{self.path} can be read only, on every mount")
        return MemoryHandle(self.path, self._content)

    async def truncate(self, size: int) -> None:  # noqa: ARG002
        self.check_ownership_change()

    def check_ownership_change(self) -> None:
        raise ReadOnlyMount(f"{self.path} can be read only, on every mount")


class TagBlobsDirectory(ReadOnlyDirectory):
    """`blobs` of the layout of a tag."""

    def __init__(self, layout: TagLayoutDirectory) -> None:
        self.path = f"{layout.path}/{BLOBS}"
        self._layout = layout

    @property
    def key(self) -> Hashable:
        return ("tag blobs", self._layout.key)

    async def attributes(self) -> Attributes:
        return _attributes(self._layout.layouts)

    async def lookup(self, name: str) -> Node:
        if name not in HEX_LENGTHS:
            raise no_entry(self.path, name)
        return TagAlgorithmDirectory(self._layout, self.path, name)

    async def entries(self) -> Sequence[DirectoryEntry]:
        used = {digest.algorithm for digest in await needed_by(self._layout)}
        return [
            DirectoryEntry(name.encode(), TagAlgorithmDirectory(self._layout, self.path, name), await self.attributes())
            for name in HEX_LENGTHS
            if name in used
        ]


class TagAlgorithmDirectory(ReadOnlyDirectory, AlgorithmDirectory):
    """`blobs/<algorithm>` of the layout of a tag: lists what the image needs; by name, all that the repository has."""

    def __init__(self, layout: TagLayoutDirectory, blobs_path: str, algorithm: str) -> None:
        super().__init__(layout.layouts, layout.repository, blobs_path, algorithm)
        self._layout = layout

    async def lookup(self, name: str) -> Node:
        digest = self._digest(name)
        found = await self.stored(digest) if digest is not None else None
        if digest is None or found is None:
            raise no_entry(self.path, name)
        return LayoutBlob(self, found, digest)

    async def entries(self) -> Sequence[DirectoryEntry]:
        needed = await needed_by(self._layout)
        return [entry for entry in await super().entries() if self._digest(entry.name.decode()) in needed]


async def needed_by(layout: TagLayoutDirectory) -> frozenset[Digest]:
    """The digests of the manifest, and of all that it leads to."""
    entry = await layout.entry_in_index()
    return await layout.layouts.state.manifests(layout.repository).reachable([entry.descriptor.digest])


def _attributes(layouts: Layouts) -> Attributes:
    state = layouts.state
    permissions = state.permissions(0o555)
    return directory_attributes(
        permissions=permissions, modified_at=state.mounted_at, timeout=state.options.metadata_ttl
    )
