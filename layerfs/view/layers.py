"""`_layers`: the blobs linked into a repository, as read-only files named by their digests."""

from __future__ import annotations

from collections.abc import Sequence

from layerfs.errors import InvalidArgument, InvalidDigest, LayerExists, LayerUnknown, NotPermitted
from layerfs.layername import LayerName, parse_layer_name, parse_layer_name_or_none
from layerfs.registry import LayerService
from layerfs.registry.paths import LAYERS
from layerfs.view.blob_file import BlobFile, LayerFile
from layerfs.view.live_uploads import LiveUploads
from layerfs.view.nodes import DirectoryEntry, Handle, Node, no_entry, not_a_digest
from layerfs.view.own_directory import OwnDirectory
from layerfs.view.state import MountState
from layerfs.view.upload_file import UploadFile, create_at_digest
from layerfs.view.upload_finishing import finish


class LayersDirectory(OwnDirectory):
    """A repository's `_layers`."""

    PLACE = LAYERS

    def __init__(self, state: MountState, uploads: LiveUploads, repository: str) -> None:
        super().__init__(state, repository)
        self._uploads = uploads

    async def lookup(self, name: str) -> Node:
        digest = parse_layer_name_or_none(name)
        if digest is None:
            raise no_entry(self.path, name)
        return LayerFile(self._state, self.repository, await self._service.stat(digest))

    async def entries(self) -> Sequence[DirectoryEntry]:
        return await self._remembered(self._state.layer_listings, self._files)

    async def _files(self) -> list[LayerFile]:
        return [LayerFile(self._state, self.repository, info) for info in await self._service.list()]

    async def create(self, name: str, flags: int) -> tuple[Node, Handle]:
        """An upload that is finished when it is closed, if its bytes are what its name says."""
        self._state.check_writable()
        digest = self._digest(name)
        if await self._service.exists(digest):
            raise LayerExists(self.repository, digest)

        async def commit(upload: UploadFile) -> None:
            await finish(self._uploads, self.repository, upload.uuid, upload.file_name, digest)

        return await create_at_digest(self._uploads, self.repository, f"{self.path}/{name}", digest, flags, commit)

    async def remove(self, name: str) -> None:
        state = self._state
        state.check_writable()
        if not state.options.allow_delete:
            raise NotPermitted(f"{name!r} in {self.path} can be removed only on a mount made with --allow-delete")
        await self._service.delete(self._digest(name))
        self._state.layers_changed(self.repository)

    async def link(self, node: Node, name: str) -> Node:
        """A cross-repository mount: the blob gets a link here too."""
        self._state.check_writable()
        if not isinstance(node, BlobFile):
            raise InvalidArgument(f"{node.path} is no layer: only layers can be linked into {self.path}")
        digest = self._digest(name)
        if digest not in (node.digest, node.blob.digest) and not await self._is_alias(digest, node):
            raise InvalidArgument(f"a layer keeps its name: link it as {node.name!r}, not as {name!r}")
        info = await self._service.mount(node.repository, digest)
        self._state.fresh_repositories.discard(self.repository)
        self._state.layers_changed(self.repository)
        return LayerFile(self._state, self.repository, info)

    async def _is_alias(self, digest: LayerName, node: BlobFile) -> bool:
        """Whether the file has that name too. A blob is one file under all its names, and was last found by another."""
        try:
            return (await self._state.service(node.repository).stat(digest)).blob.digest == node.blob.digest
        except LayerUnknown:
            return False

    @property
    def _service(self) -> LayerService:
        return self._state.service(self.repository)

    def _digest(self, name: str) -> LayerName:
        try:
            return parse_layer_name(name)
        except InvalidDigest as error:
            raise not_a_digest(name, error) from error
