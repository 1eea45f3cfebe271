"""An upload as a file of the tree, and how such a file is made."""

from __future__ import annotations

import functools
import os
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import replace
from datetime import datetime
from typing import Final

import trio

from layerfs.errors import LayerUploadUnknown, StaleName
from layerfs.layername import LayerName
from layerfs.registry import UploadInfo
from layerfs.registry.paths import UPLOADS
from layerfs.view.live_upload import LiveUpload
from layerfs.view.live_uploads import LiveUploads
from layerfs.view.nodes import Attributes, Handle, Node, file_attributes
from layerfs.view.upload_opening import CLOSE_DEADLINE, open_begun, open_upload

#: Bytes that programs are told to write at a time: as many as the kernel can pass on in one request, of which `cp` then
#: makes an eighth of what it would make otherwise. (Layers have the usual size: who reads a few bytes here and there
#: through a buffer of this size would read all of them.)
_WRITTEN_AT_ONCE: Final = 1 << 20


class UploadFile(Node):
    """An upload. It is shown as its writer here has left it; if there is none, as storage has it."""

    def __init__(
        self,
        uploads: LiveUploads,
        repository: str,
        uuid: str,
        file_name: str,
        started_at: datetime | None,
        path: str | None = None,
    ) -> None:
        self.path = path or f"{repository}/{UPLOADS}/{file_name}"
        self.repository = repository
        self.uuid = uuid
        self.file_name = file_name
        self._uploads = uploads
        self._started_at = started_at

    @property
    def key(self) -> Hashable:
        return ("upload", self.repository, self.uuid)

    async def attributes(self) -> Attributes:
        written = self._as_written()
        if written is not None:
            return written
        info = await self._uploads.look(self.repository, self.uuid)
        return self._attributes(info.size, info.modified_at)

    def attributes_of(self, info: UploadInfo | None) -> Attributes:
        """As listed, or as its writer here has left it.

        What was not asked for is zero: nobody sees it, because the kernel may not believe it and asks when somebody
        looks.
        """
        written = self._as_written()
        if written is not None:
            return written
        return self._attributes(info.size, info.modified_at) if info is not None else self._attributes(0, 0)

    async def extended_attributes(self) -> dict[str, str]:
        live = self._uploads.live(self.repository, self.uuid)
        started_at = live.upload.started_at if live is not None else self._started_at
        found = {"repository": self.repository, "upload.uuid": self.uuid}
        if started_at is not None:
            found["upload.startedat"] = started_at.isoformat().replace("+00:00", "Z")
        if live is not None and live.error:
            found["error"] = live.error
        return found

    async def open(self, flags: int) -> Handle:
        try:
            return await open_upload(self._uploads, self.repository, self.uuid, self.file_name, flags)
        except LayerUploadUnknown as error:
            # Here too: of an upload that is live it is its writer that finds it gone, and nobody has asked storage.
            self._uploads.state.upload_listings.removed(self.repository, self.uuid)
            # It was looked up in what was remembered, so whoever wants to create it was told that it is there.
            raise StaleName(f"{self.path} was removed, or finished, since it was looked up") from error

    async def truncate(self, size: int) -> None:
        self._uploads.state.check_writable()
        live = self._uploads.live(self.repository, self.uuid)
        if live is not None and live.writer is not None:
            await live.upload.truncate(size)
            return
        handle = await open_upload(self._uploads, self.repository, self.uuid, self.file_name, os.O_WRONLY)
        try:
            await handle.truncate(size)
            await handle.flush()
        finally:
            with trio.move_on_after(CLOSE_DEADLINE, shield=True):
                await handle.release()

    def check_ownership_change(self) -> None:
        """Taken and ignored: `cp -a` and `rsync` insist on it, and it means nothing for what will be a blob."""
        self._uploads.state.check_writable()

    def _as_written(self) -> Attributes | None:
        """As its writer here has left it, if there is one."""
        live = self._uploads.live(self.repository, self.uuid)
        if live is None or not live.is_being_written:
            return None
        return self._attributes(live.upload.size, live.modified_at)

    def _attributes(self, size: int, modified_at: int) -> Attributes:
        # No time-outs: a registry may be appending, and the size is where to resume.
        permissions = self._uploads.state.permissions(0o644)
        attributes = file_attributes(permissions=permissions, size=size, modified_at=modified_at)
        return replace(attributes, block_size=_WRITTEN_AT_ONCE)


async def create_upload(uploads: LiveUploads, name: str, file_name: str, flags: int) -> tuple[UploadFile, Handle]:
    """Begins an upload to repository `name` that is called `file_name` in its `_uploads`."""
    with uploads.room():
        return _open(uploads, LiveUpload(await uploads.begin(name, file_name), file_name), flags)


async def create_scratch(uploads: LiveUploads, name: str, path: str, flags: int) -> tuple[UploadFile, Handle]:
    """Begins an upload that has no name of its own in `_uploads`, but is at `path` in the tree of this mount."""
    with uploads.room():
        live = LiveUpload(upload := await uploads.begin(name), upload.uuid)
        live.path = path
        return _open(uploads, live, flags)


async def create_at_digest(
    uploads: LiveUploads,
    name: str,
    path: str,
    digest: LayerName,
    flags: int,
    commit: Callable[[UploadFile], Awaitable[None]],
) -> tuple[UploadFile, Handle]:
    """Begins an upload that becomes the blob `digest` at `path` by `commit`, when it is closed."""
    with uploads.room():
        live = LiveUpload(upload := await uploads.begin(name), upload.uuid)
        live.path, live.expected = path, digest
        node, handle = _open(uploads, live, flags)
        live.commit = functools.partial(commit, node)
        return node, handle


def _open(uploads: LiveUploads, live: LiveUpload, flags: int) -> tuple[UploadFile, Handle]:
    handle = open_begun(uploads, live, flags)
    upload = live.upload
    return UploadFile(uploads, upload.name, upload.uuid, live.file_name, upload.started_at, live.path), handle
