"""`_manifests`: the manifests of a repository, tagged or not, as read-only files named by their digests.

A manifest that is put, here or in `_tags`, is judged when it is closed or renamed to its place: before that it is
either in the memory of the handle that writes it (at its final name) or an upload (under any other name).
"""

from __future__ import annotations

from collections.abc import Sequence

from layerfs.digest import Digest
from layerfs.errors import NotPermitted
from layerfs.manifest import MANIFEST_LIMIT
from layerfs.registry.paths import MANIFESTS
from layerfs.view.blob_file import ManifestFile
from layerfs.view.buffered import BufferedFile, BufferedHandle
from layerfs.view.nodes import Directory, DirectoryEntry, Handle, Node
from layerfs.view.own_directory import OwnDirectory
from layerfs.view.state import MountState
from layerfs.view.uploads import UploadsDirectory


class ManifestsDirectory(OwnDirectory):
    """A repository's `_manifests`."""

    PLACE = MANIFESTS

    def __init__(self, state: MountState, uploads: UploadsDirectory, repository: str) -> None:
        super().__init__(state, repository)
        self._uploads = uploads

    async def lookup(self, name: str) -> Node:
        digest = Digest.parse_or_none(name)
        if digest is None:
            return await self._uploads.lookup(name)
        info = await self._state.manifests(self.repository).stat(digest)
        return ManifestFile(self._state, self.repository, info)

    async def entries(self) -> Sequence[DirectoryEntry]:
        return await self._remembered(self._state.manifest_listings, self._files)

    async def _files(self) -> list[ManifestFile]:
        infos = await self._state.manifests(self.repository).list()
        return [ManifestFile(self._state, self.repository, info) for info in infos]

    async def create(self, name: str, flags: int) -> tuple[Node, Handle]:
        """At a digest: put when it is closed. Under any other name: an upload, to be renamed to the digest."""
        self._state.check_writable()
        digest = Digest.parse_or_none(name)
        if digest is None:
            return await self._uploads.create(name, flags)

        async def put(content: bytes) -> None:
            await self._state.put_manifest(self.repository, content, digest=digest)

        handle = BufferedHandle(f"{self.path}/{name}", put, limit=MANIFEST_LIMIT)
        return BufferedFile(self._state, handle), handle

    async def remove(self, name: str) -> None:
        """The revision and the tags that mean it; the bytes stay."""
        self._state.check_writable()
        digest = Digest.parse_or_none(name)
        if digest is None:
            await self._uploads.remove(name)
            return
        if not self._state.options.allow_delete:
            raise NotPermitted(f"{name!r} in {self.path} can be removed only on a mount made with --allow-delete")
        try:
            await self._state.manifests(self.repository).delete(digest)
        finally:
            self._state.manifests_changed(self.repository)

    async def rename(self, name: str, target: Directory, new_name: str, *, replace: bool) -> None:
        if Digest.parse_or_none(name) is not None:
            await super().rename(name, target, new_name, replace=replace)
        await self._uploads.rename(name, target, new_name, replace=replace)
