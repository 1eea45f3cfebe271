"""`blobs/<algorithm>/<hex>` of a layout: the layers and manifests of a repository, and manifests on their way.

A client stores manifests as blobs, before or after what they refer to. One is therefore kept as a *candidate*, an
upload that is shown as the blob that it will be; when an index names it, it becomes a manifest of the repository.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Hashable, Sequence
from dataclasses import replace as replaced
from typing import Final

from layerfs.digest import CANONICAL, HEX_LENGTHS, Digest
from layerfs.errors import (
    BlobInUse,
    EntryExists,
    InvalidArgument,
    LayerfsError,
    LayerInvalidDigest,
    LayerUnknown,
    ManifestTooLarge,
    ManifestUnknownRevision,
    NotPermitted,
)
from layerfs.manifest import MANIFEST_LIMIT
from layerfs.oci import looks_like_manifest
from layerfs.registry import BlobInfo
from layerfs.registry.unused import remove_unused
from layerfs.view.blob_file import BlobFile
from layerfs.view.buffered import MemoryHandle
from layerfs.view.layers import LayersDirectory
from layerfs.view.manifests import ManifestsDirectory
from layerfs.view.nodes import Attributes, DirectoryEntry, Handle, Node, file_attributes, no_entry
from layerfs.view.oci.scratch import ScratchHolder
from layerfs.view.oci.state import Candidate, Layouts, ScratchFile, ScratchNames
from layerfs.view.upload_file import UploadFile, create_at_digest
from layerfs.view.upload_finishing import consume, finish, peek
from layerfs.view.uploads import UploadsDirectory

BLOBS: Final = "blobs"

#: Seconds for which a blob that no tag needs is kept from clients that collect garbage: it may be part of a push.
GRACE: Final = 3600.0


class LayoutBlob(BlobFile):
    """A layer or manifest in a layout.

    Unlike in `_layers` it can be opened for writing: clients write over manifests that are there already. What they
    write is an upload, and must be what is there.
    """

    def __init__(self, directory: AlgorithmDirectory, blob: BlobInfo, digest: Digest) -> None:
        super().__init__(directory.layouts.state, directory.repository, f"{directory.path}/{digest.hex}", digest, blob)
        self.name = digest.hex
        self._directory = directory

    def attributes_now(self) -> Attributes:
        """As of any blob; but each time that it is opened by this name it is looked up, to know by which name."""
        return replaced(super().attributes_now(), entry_timeout=0.0)

    async def media_type(self) -> str:
        found = (await self._state.manifests(self.repository).describe([self.blob.digest]))[0]
        return await super().media_type() if isinstance(found, LayerfsError) else found.media_type

    async def open(self, flags: int) -> Handle:
        if flags & os.O_ACCMODE == os.O_RDONLY and not flags & os.O_TRUNC:
            return await super().open(flags)
        _, handle = await self._directory.create(self.name, flags)
        return handle

    def check_ownership_change(self) -> None:
        """As of its directory: clients set the mode of what they have just written."""
        self._directory.check_ownership_change()


class CandidateFile(Node):
    """A manifest that no index names yet."""

    def __init__(self, directory: AlgorithmDirectory, candidate: Candidate) -> None:
        self.path = f"{directory.path}/{candidate.digest.hex}"
        self._directory = directory
        self._candidate = candidate

    @property
    def key(self) -> Hashable:
        return ("candidate", self._candidate.repository, self._candidate.digest)

    async def attributes(self) -> Attributes:
        permissions = self._directory.layouts.state.permissions(0o444)
        size, stored_at = len(self._candidate.content), self._candidate.stored_at
        return file_attributes(permissions=permissions, size=size, modified_at=stored_at)

    async def extended_attributes(self) -> dict[str, str]:
        return {
            "digest": str(self._candidate.digest),
            "repository": self._candidate.repository,
            "upload.uuid": self._candidate.uuid,
        }

    async def open(self, flags: int) -> Handle:
        if flags & os.O_ACCMODE == os.O_RDONLY and not flags & os.O_TRUNC:
            return MemoryHandle(self.path, self._candidate.content)
        _, handle = await self._directory.create(self._candidate.digest.hex, flags)
        return handle

    def check_ownership_change(self) -> None:
        """Taken and ignored, as for every blob of a layout."""
        self._directory.layouts.state.check_writable()


class BlobsDirectory(ScratchHolder):
    """`blobs`: one directory for each algorithm that something here is named by, sha256 always."""

    def __init__(self, layouts: Layouts, repository: str, layout_path: str) -> None:
        super().__init__(layouts, repository, f"{layout_path}/{BLOBS}")

    @property
    def key(self) -> Hashable:
        return (BLOBS, self.path)

    @property
    def _names(self) -> ScratchNames:
        return self._layouts.of(self.repository).beside_blobs("")

    async def lookup(self, name: str) -> Node:
        return self._algorithm(name) if name in HEX_LENGTHS else await self._scratch(name)

    async def entries(self) -> Sequence[DirectoryEntry]:
        used = {digest.algorithm for digest in await listed_blobs(self._layouts, self.repository)}
        return [
            DirectoryEntry(name.encode(), self._algorithm(name), self._attributes())
            for name in HEX_LENGTHS
            if name in used or name == CANONICAL
        ]

    async def make_directory(self, name: str) -> Node:
        self._state.check_writable()
        if name in HEX_LENGTHS:
            raise EntryExists(f"{self.path}/{name} exists")
        raise InvalidArgument(f"{name!r} is no algorithm that blobs can be stored by: {', '.join(HEX_LENGTHS)}")

    async def remove_directory(self, name: str) -> None:
        self._state.check_writable()
        if name in HEX_LENGTHS:
            raise NotPermitted(f"{self.path}/{name} belongs to the layout: it cannot be removed")
        await super().remove_directory(name)

    def _algorithm(self, name: str) -> AlgorithmDirectory:
        return AlgorithmDirectory(self._layouts, self.repository, self.path, name)


class AlgorithmDirectory(ScratchHolder):
    """`blobs/<algorithm>`."""

    def __init__(self, layouts: Layouts, repository: str, blobs_path: str, algorithm: str) -> None:
        super().__init__(layouts, repository, f"{blobs_path}/{algorithm}")
        self.layouts = layouts
        self.algorithm = algorithm

    @property
    def key(self) -> Hashable:
        return ("algorithm", self.path)

    @property
    def _names(self) -> ScratchNames:
        return self._layouts.of(self.repository).beside_blobs(self.algorithm)

    async def lookup(self, name: str) -> Node:
        digest = self._digest(name)
        if digest is None:
            return await self._scratch(name)
        found = self._listed(digest) or await self.stored(digest)
        if found is not None:
            return LayoutBlob(self, found, digest)
        candidate = self._layouts.candidate(self.repository, digest)
        if candidate is None:
            raise no_entry(self.path, name)
        return CandidateFile(self, candidate)

    async def entries(self) -> Sequence[DirectoryEntry]:
        found = await listed_blobs(self._layouts, self.repository)
        own = sorted((digest.hex, digest) for digest in found if digest.algorithm == self.algorithm)
        return [LayoutBlob(self, found[digest], digest).entry() for _, digest in own]

    async def create(self, name: str, flags: int) -> tuple[Node, Handle]:
        """At a digest: a blob when it is closed, if its bytes are that. Under any other name: a temporary file."""
        digest = self._digest(name)
        if digest is None:
            return await super().create(name, flags)
        self._state.check_writable()

        async def commit(upload: UploadFile) -> None:
            await self._commit(upload, digest)

        return await create_at_digest(self._uploads, self.repository, f"{self.path}/{name}", digest, flags, commit)

    async def receive(self, upload: UploadFile, file: ScratchFile, name: str, *, replace: bool) -> None:
        digest = self._digest(name)
        if digest is None:
            await super().receive(upload, file, name, replace=replace)
            return
        if not replace and await self.stored(digest):
            raise EntryExists(f"{self.path}/{name} exists")
        await self._commit(upload, digest)

    async def link(self, node: Node, name: str) -> Node:
        """A layer of any repository gets a link here too."""
        self._state.check_writable()
        digest = self._digest(name)
        if not isinstance(node, BlobFile) or digest is None or digest not in (node.digest, node.blob.digest):
            raise InvalidArgument(f"only a layer can be linked into {self.path}, and under its own digest")
        info = await self._state.service(self.repository).mount(node.repository, digest)
        self._state.layers_changed(self.repository)
        return LayoutBlob(self, info.blob, digest)

    async def remove(self, name: str) -> None:
        digest = self._digest(name)
        if digest is None:
            await super().remove(name)
            return
        self._state.check_writable()
        if not self._state.options.allow_delete:
            raise NotPermitted(f"{name!r} in {self.path} can be removed only on a mount made with --allow-delete")
        if self._layouts.candidate(self.repository, digest) is not None:
            raise BlobInUse(self.repository, digest, "it has just arrived, and no index names it yet")
        async with self._layouts.of(self.repository).applying:
            await remove_unused(self._state.registry, self.repository, digest, grace=GRACE)
        self._state.layers_changed(self.repository)
        self._state.manifests_changed(self.repository)

    def _digest(self, name: str) -> Digest | None:
        return Digest.parse_or_none(f"{self.algorithm}:{name}")

    def _listed(self, digest: Digest) -> BlobInfo | None:
        """The layer or manifest, if it takes a request to ask for it and it was listed a moment ago."""
        if not self._state.is_far:
            return None
        for listings in (self._state.layer_listings, self._state.manifest_listings):
            node = listings.find(self.repository, str(digest))
            if isinstance(node, BlobFile):
                return node.blob
        return None

    async def stored(self, digest: Digest) -> BlobInfo | None:
        """The layer or manifest, if the repository has it."""
        with contextlib.suppress(LayerUnknown):
            return (await self._state.service(self.repository).stat(digest)).blob
        if not digest.is_canonical:
            return None
        with contextlib.suppress(ManifestUnknownRevision):
            info = await self._state.manifests(self.repository).stat(digest)
            return BlobInfo(info.digest, info.size, info.stored_at)
        return None

    async def _commit(self, upload: UploadFile, digest: Digest) -> None:
        """Makes a temporary file the blob `digest`. Raises `LayerInvalidDigest`, and it is what it was."""
        content = await peek(self._uploads, upload, MANIFEST_LIMIT) if digest.is_canonical else None
        if content is not None and looks_like_manifest(content):
            await self._keep(upload, digest)
        else:
            await finish(self._uploads, self.repository, upload.uuid, upload.file_name, digest)

    async def _keep(self, upload: UploadFile, digest: Digest) -> None:
        """Makes it a candidate, unless the very same manifest is here already."""
        stored = await self._manifest(digest)
        replaced_candidate = None

        async def use(content: bytes) -> Node:
            nonlocal replaced_candidate
            actual = Digest.of(content)
            if actual != digest:
                raise LayerInvalidDigest(digest, actual, len(content))
            now = time.time_ns()
            if stored == content:
                return LayoutBlob(self, BlobInfo(digest, len(content), now), digest)
            candidate = Candidate(self.repository, digest, content, upload.uuid, now)
            replaced_candidate = self._layouts.add_candidate(candidate)
            return CandidateFile(self, candidate)

        # What is stored and damaged is not the same: it is put again, and mended, when an index names it.
        await consume(self._uploads, upload, use, keep=stored is None or Digest.of(stored) != digest)
        if replaced_candidate is not None:
            await self._layouts.discard(replaced_candidate)

    async def _manifest(self, digest: Digest) -> bytes | None:
        """The bytes of a manifest that the repository has."""
        try:
            return (await self._state.manifests(self.repository).get(digest)).content
        except (ManifestUnknownRevision, ManifestTooLarge):
            return None


async def listed_blobs(layouts: Layouts, repository: str) -> dict[Digest, BlobInfo]:
    """The layers and manifests of a repository, from the listings of `_layers` and `_manifests`, if these are fresh."""
    state, uploads = layouts.state, layouts.uploads
    found: dict[Digest, BlobInfo] = {}
    for directory in (
        LayersDirectory(state, uploads, repository),
        ManifestsDirectory(state, UploadsDirectory(uploads, repository), repository),
    ):
        for entry in await directory.entries():
            if isinstance(entry.node, BlobFile) and isinstance(entry.node.digest, Digest):
                found.setdefault(entry.node.digest, entry.node.blob)
    return found
