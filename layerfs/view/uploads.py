"""`_uploads`: what is being uploaded to a repository, as files that can be written, resumed and renamed to a digest."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from layerfs.digest import Digest
from layerfs.errors import EntryExists, InvalidArgument, InvalidDigest, LayerUploadUnknown, NoSuchEntry
from layerfs.names import check_upload_name
from layerfs.registry.paths import LAYERS, UPLOADS
from layerfs.view.live_uploads import LiveUploads, UploadFile
from layerfs.view.nodes import (
    Attributes,
    Directory,
    DirectoryEntry,
    Handle,
    Node,
    directory_attributes,
    not_a_digest,
)


class UploadsDirectory(Directory):
    """A repository's `_uploads`."""

    def __init__(self, view: LiveUploads, repository: str) -> None:
        self.path = f"{repository}/{UPLOADS}"
        self.repository = repository
        self._view = view

    @property
    def key(self) -> Hashable:
        return ("uploads", self.repository)

    async def attributes(self) -> Attributes:
        state = self._view.state
        return directory_attributes(
            permissions=state.permissions(0o755), modified_at=state.mounted_at, timeout=state.options.metadata_ttl
        )

    def extended_attributes(self) -> dict[str, str]:
        return {"repository": self.repository}

    async def lookup(self, name: str) -> Node:
        return await self._view.find(self.repository, name)

    async def entries(self) -> Sequence[DirectoryEntry]:
        found = []
        for info in await self._view.listing(self.repository):
            node = UploadFile(self._view, self.repository, info.uuid, info.file_name, info)
            found.append(DirectoryEntry(info.file_name.encode(), node, node.attributes_of(info)))
        return found

    async def create(self, name: str, flags: int) -> tuple[Node, Handle]:
        self._view.state.check_writable()
        check_upload_name(name)
        if _digest_or_none(name) is not None:
            raise InvalidArgument(
                f"an upload cannot begin under a digest: copy to another name here and rename it to {name!r}, "
                f"or copy to {self.repository}/{LAYERS}/{name}"
            )
        if await self._finds(name):
            raise EntryExists(f"{self.path}/{name} exists")
        return await self._view.create(self.repository, name, flags)

    async def remove(self, name: str) -> None:
        self._view.state.check_writable()
        upload = await self._view.find(self.repository, name)
        await self._view.cancel(self.repository, upload.uuid)

    async def rename(self, name: str, target: Directory, new_name: str, *, replace: bool) -> None:
        """To a digest, here or in `_layers`: finishes the upload. To another name here: renames it."""
        self._view.state.check_writable()
        upload = await self._view.find(self.repository, name)
        digest = self._digest_meant(target, new_name)
        if digest is not None:
            await self._view.finish(self.repository, upload.uuid, upload.file_name, digest)
            return
        await self._make_way(new_name, replace=replace)
        await self._view.rename(self.repository, upload.uuid, new_name)

    def _digest_meant(self, target: Directory, new_name: str) -> Digest | None:
        if target.key == self.key:
            return _digest_or_none(new_name)
        if target.key == ("layers", self.repository):
            try:
                return Digest.parse(new_name)
            except InvalidDigest as error:
                raise not_a_digest(new_name, error) from error
        raise InvalidArgument(
            f"an upload to {self.repository} can be renamed within {self.path} or to {self.repository}/{LAYERS}, "
            f"not to {target.path or '/'}"
        )

    async def _make_way(self, name: str, *, replace: bool) -> None:
        check_upload_name(name)
        if not await self._finds(name):
            return
        if not replace:
            raise EntryExists(f"{self.path}/{name} exists")
        await self.remove(name)

    async def _finds(self, name: str) -> bool:
        try:
            await self._view.find(self.repository, name)
        except (NoSuchEntry, LayerUploadUnknown):
            return False
        return True


def _digest_or_none(name: str) -> Digest | None:
    try:
        return Digest.parse(name)
    except InvalidDigest:
        return None
