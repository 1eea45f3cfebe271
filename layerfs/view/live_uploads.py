"""The uploads that this mount has touched: which there are, how they are found, begun, renamed and cancelled.

Everything that is shown of an upload that nobody here is writing comes from storage, where others may be writing it.
How one is opened is in `upload_opening`, how it is finished in `upload_finishing`.
"""

from __future__ import annotations

import contextlib
import logging
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Final

from layerfs.errors import LayerClosed, LayerfsError, LayerUploadUnknown, UploadLimit
from layerfs.names import new_upload_id
from layerfs.registry import LayerUpload, ListedUpload, UploadInfo
from layerfs.registry.paths import UPLOADS
from layerfs.view.live_upload import LiveUpload
from layerfs.view.nodes import no_entry
from layerfs.view.state import MountState

_log = logging.getLogger(__name__)

#: Live uploads without a handle that are kept for their hashes.
_IDLE_KEPT: Final = 1024


class LiveUploads:
    """All live uploads of a mount."""

    def __init__(self, state: MountState) -> None:
        self.state = state
        self._listings = state.upload_listings
        self._live: OrderedDict[tuple[str, str], LiveUpload] = OrderedDict()
        self._beginning = 0
        # Of those that are just being begun, which may have no name in storage yet.
        self._nameless: set[tuple[str, str]] = set()

    # --- which there are -----------------------------------------------------------------------------------------

    def live(self, name: str, uuid: str) -> LiveUpload | None:
        """The live upload, if it is one."""
        return self._live.get((name, uuid))

    async def revived(self, name: str, uuid: str, file_name: str) -> LiveUpload:
        """The upload, which is live from now on if it was not. Raises `LayerUploadUnknown`."""
        live = self.live(name, uuid)
        if live is not None:
            return live
        upload = await self.resume(name, uuid)
        # Somebody may have been faster.
        return self.live(name, uuid) or self._keep(LiveUpload(upload, file_name))

    async def resume(self, name: str, uuid: str) -> LayerUpload:
        """The upload as storage has it now. Raises `LayerUploadUnknown`."""
        try:
            return await self.state.service(name).resume(uuid)
        except LayerUploadUnknown:
            self._listings.removed(name, uuid)
            raise

    def forget(self, name: str, uuid: str) -> None:
        """The upload is no more."""
        self.drop(name, uuid)
        self._listings.removed(name, uuid)
        self.state.catalog_changed()

    def drop(self, name: str, uuid: str) -> None:
        """What is known here of the upload is of no use any more."""
        self._live.pop((name, uuid), None)

    def _keep(self, live: LiveUpload) -> LiveUpload:
        self._live[live.upload.name, live.upload.uuid] = live
        idle = [key for key, other in self._live.items() if other.writer is None and other is not live]
        for key in idle[: max(0, len(idle) - _IDLE_KEPT)]:
            del self._live[key]
        return live

    # --- what is shown -------------------------------------------------------------------------------------------

    async def listing(self, name: str) -> Sequence[ListedUpload]:
        """The uploads of a repository as storage has them, from memory while that is fresh.

        Without what is being written to `_layers` here: if it does not become a layer it goes when it is released.
        """
        return [upload for upload in await self._listings.shown(name) if self._is_shown(name, upload.uuid)]

    async def find(self, name: str, file_name: str) -> ListedUpload:
        """The upload called `file_name`; it may be gone, or longer, since it was listed. Raises `NoSuchEntry`."""
        for (repository, uuid), live in self._live.items():
            if repository == name and live.file_name == file_name and live.writer is not None and not live.expected:
                return ListedUpload(uuid, file_name, live.upload.started_at, None)
        found = await self._listings.find(name, file_name)
        if found is None or not self._is_shown(name, found.uuid):
            raise no_entry(f"{name}/{UPLOADS}", file_name)
        return found

    def _is_shown(self, name: str, uuid: str) -> bool:
        live = self.live(name, uuid)
        return (name, uuid) not in self._nameless and (live is None or live.expected is None)

    async def look(self, name: str, uuid: str) -> UploadInfo:
        """An upload as storage has it, or had it a moment ago where it is far away. Raises `LayerUploadUnknown`."""
        return await self._listings.look(name, uuid)

    async def stat(self, name: str, uuid: str) -> UploadInfo:
        """An upload as storage has it now. Raises `LayerUploadUnknown`."""
        return await self._listings.stat(name, uuid)

    # --- those that are being written ------------------------------------------------------------------------------

    def open_uploads(self) -> list[LiveUpload]:
        """All of them."""
        return [live for live in self._live.values() if live.writer is not None]

    def check_room(self) -> None:
        """Raises `UploadLimit` if there are as many as there may be."""
        limit = self.state.options.max_uploads
        # Without those whose `close` has returned: that the last descriptor is gone the kernel tells without waiting.
        writing = sum(live.writer is not None and not live.writer.is_leaving for live in self._live.values())
        if writing + self._beginning >= limit:
            raise UploadLimit(f"{limit} uploads are being written on this mount, as many as --max-uploads allows")

    @contextlib.contextmanager
    def room(self) -> Iterator[None]:
        """Keeps a place for an upload that is about to begin, so that many at once are not too many."""
        self.check_room()
        self._beginning += 1
        try:
            yield
        finally:
            self._beginning -= 1

    async def begin(self, name: str, file_name: str | None = None) -> LayerUpload:
        """A new upload to repository `name`; it counts, and is shown, once `began` is told who writes it."""
        uuid = new_upload_id()
        self._nameless.add((name, uuid))
        try:
            with self._changing(name):
                return await self.state.service(name).upload(file_name=file_name, uuid=uuid)
        finally:
            self._nameless.remove((name, uuid))

    def began(self, live: LiveUpload) -> None:
        """There is another upload, and somebody who writes it."""
        self._keep(live)
        self._listings.began(live.upload.name, live.info)
        self.state.catalog_changed()

    def writer_closed(self, live: LiveUpload) -> None:
        """The writing handle of `live` is gone."""
        live.writer = None
        live.writer_gone.set()
        upload = live.upload
        if live.is_over:
            return
        # Only storage knows how much there is of what was not flushed.
        is_known = upload.is_usable and upload.is_flushed
        self._listings.changed(upload.name, upload.uuid, live.info if is_known else None)

    async def close(self) -> None:
        """Makes all that was written durable, at the end of the mount; what fails for one does not stop the others."""
        failures = []
        for live in list(self._live.values()):
            try:
                if live.upload.is_usable:
                    await live.upload.close()
            except LayerfsError as error:
                _log.warning("upload %s of %r was not stored completely: %s", live.upload.uuid, live.upload.name, error)
                failures.append(error)
        if failures:
            raise failures[0]

    # --- changes -------------------------------------------------------------------------------------------------

    async def rename(self, name: str, uuid: str, file_name: str) -> None:
        """Gives an upload another name, on every node."""
        with self._changing(name):
            await self.state.service(name).rename_upload(uuid, file_name)
        live = self.live(name, uuid)
        if live is not None:
            live.file_name = file_name
        self._listings.renamed(name, uuid, file_name)

    async def cancel(self, name: str, uuid: str) -> None:
        """Deletes an upload, even while it is being written."""
        live = self.live(name, uuid)
        for handle in list(live.readers) if live is not None else []:
            await handle.hold()
        try:
            await self._cancel(live.upload if live is not None else await self.resume(name, uuid))
        except LayerClosed:
            await self._cancel(await self.resume(name, uuid))
        self.forget(name, uuid)

    async def _cancel(self, upload: LayerUpload) -> None:
        with self._changing(upload.name):
            await upload.cancel()

    @contextlib.contextmanager
    def _changing(self, name: str) -> Iterator[None]:
        """What fails in the middle of the body may have happened or not: only storage knows."""
        try:
            yield
        except BaseException:
            self._listings.forget(name)
            self.state.catalog_changed()
            raise
