"""`_uploads`: what is being uploaded to a repository, as files that can be written, resumed and renamed to a digest."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from layerfs.digest import Digest
from layerfs.errors import EntryExists, InvalidArgument, InvalidDigest, LayerUploadUnknown, NoSuchEntry
from layerfs.layername import parse_layer_name, parse_layer_name_or_none
from layerfs.names import check_name_among_tags, check_upload_name, is_tag
from layerfs.registry.paths import LAYERS, MANIFESTS, UPLOADS
from layerfs.view.live_uploads import LiveUploads
from layerfs.view.nodes import TAGS, Directory, DirectoryEntry, Handle, Node, not_a_digest
from layerfs.view.own_directory import OwnDirectory
from layerfs.view.upload_file import UploadFile, create_upload
from layerfs.view.upload_finishing import finish, put_manifest


class UploadsDirectory(OwnDirectory):
    """A repository's `_uploads`."""

    PLACE = UPLOADS

    def __init__(self, uploads: LiveUploads, repository: str) -> None:
        super().__init__(uploads.state, repository)
        self._uploads = uploads

    async def lookup(self, name: str) -> Node:
        return await self._file(name)

    async def entries(self) -> Sequence[DirectoryEntry]:
        found = []
        for upload in await self._uploads.listing(self.repository):
            node = UploadFile(self._uploads, self.repository, upload.uuid, upload.file_name, upload.started_at)
            found.append(DirectoryEntry(upload.file_name.encode(), node, node.attributes_of(upload.info)))
        return found

    async def create(self, name: str, flags: int) -> tuple[Node, Handle]:
        self._state.check_writable()
        check_upload_name(name)
        if parse_layer_name_or_none(name) is not None:
            raise InvalidArgument(
                f"an upload cannot begin under a digest: copy to another name here and rename it to {name!r}, "
                f"or copy to {self.repository}/{LAYERS}/{name}"
            )
        if await self._find(name) is not None:
            raise EntryExists(f"{self.path}/{name} exists")
        return await create_upload(self._uploads, self.repository, name, flags)

    async def remove(self, name: str) -> None:
        self._state.check_writable()
        upload = await self._uploads.find(self.repository, name)
        await self._uploads.cancel(self.repository, upload.uuid)

    async def rename(self, name: str, target: Directory, new_name: str, *, replace: bool) -> None:
        """To a digest, here or in `_layers`: finishes the upload. To one in `_manifests` or a tag: puts a manifest.

        To any other name: renames it.
        """
        self._state.check_writable()
        upload = await self._file(name)
        self._check_target(target, new_name)
        digest = parse_layer_name_or_none(new_name)
        if target.key == (TAGS, self.repository) and is_tag(new_name):
            await put_manifest(self._uploads, upload, tag=new_name)
        elif target.key == (MANIFESTS, self.repository) and isinstance(digest, Digest):
            await put_manifest(self._uploads, upload, digest=digest)
        elif digest is not None and target.key != (MANIFESTS, self.repository):
            await finish(self._uploads, self.repository, upload.uuid, upload.file_name, digest)
        else:
            await self._make_way(upload, new_name, replace=replace)
            await self._uploads.rename(self.repository, upload.uuid, new_name)

    def _check_target(self, target: Directory, new_name: str) -> None:
        if target.key == (LAYERS, self.repository):
            try:
                parse_layer_name(new_name)
            except InvalidDigest as error:
                raise not_a_digest(new_name, error) from error
        elif target.key == (TAGS, self.repository):
            check_name_among_tags(new_name)
        elif target.key not in [(place, self.repository) for place in (UPLOADS, MANIFESTS)]:
            raise InvalidArgument(
                f"an upload to {self.repository} can be renamed within {self.path}, or into {LAYERS}, {MANIFESTS} or "
                f"{TAGS} of this repository, not into {target.path or '/'}"
            )

    async def _make_way(self, upload: UploadFile, name: str, *, replace: bool) -> None:
        check_upload_name(name)
        found = await self._find(name)
        if found is None or found.uuid == upload.uuid:
            return
        if not replace:
            raise EntryExists(f"{self.path}/{name} exists")
        with contextlib.suppress(LayerUploadUnknown):
            await self._uploads.cancel(self.repository, found.uuid)

    async def _file(self, name: str) -> UploadFile:
        found = await self._uploads.find(self.repository, name)
        return UploadFile(self._uploads, self.repository, found.uuid, name, found.started_at)

    async def _find(self, name: str) -> UploadFile | None:
        try:
            upload = await self._file(name)
            await upload.attributes()  # it may be gone since it was listed
        except (NoSuchEntry, LayerUploadUnknown):
            return None
        return upload
