"""An open upload: what is read and written through a descriptor."""

from __future__ import annotations

import contextlib
import os
import time
from typing import Final

import trio

from layerfs.driver.interface import FileReader
from layerfs.errors import (
    BadHandle,
    BlobUnknown,
    LayerClosed,
    LayerfsError,
    LayerUploadBusy,
    LayerUploadUnknown,
    ShortRead,
)
from layerfs.layername import is_of_nothing
from layerfs.registry.pending_bytes import STORE_SIZE
from layerfs.view.live_upload import LiveUpload
from layerfs.view.live_uploads import LiveUploads
from layerfs.view.nodes import Handle
from layerfs.view.readahead import ReadAhead

#: Bytes that a writer may be ahead of storage before it has to wait.
_WRITE_BEHIND: Final = 2 * STORE_SIZE


class UploadHandle(Handle):
    """An open upload.

    Reads and writes bypass the kernel's page cache (`direct`): no page of an upload can outlive it as a page of the
    layer, and no mapping of it can be written.
    """

    direct = True

    def __init__(self, uploads: LiveUploads, live: LiveUpload, flags: int) -> None:
        self.path = live.path
        self._uploads = uploads
        self._live = live
        self._writes = flags & os.O_ACCMODE != os.O_RDONLY
        self._appends = bool(flags & os.O_APPEND)
        # O_SYNC has the bit too. Where the page cache is bypassed the kernel leaves it to us.
        self._is_synchronous = bool(flags & os.O_DSYNC)
        self._reader: FileReader | None = None
        # Set with `_reader` where bytes that are in storage do not change any more, and closes it.
        self._ahead: ReadAhead | None = None
        # One read at a time, because it may change readers.
        self._reading = trio.Lock()
        #: The last descriptor is closed; storage may still have to do with it.
        self.is_leaving = False

    async def read(self, offset: int, length: int) -> bytes:
        live = self._live
        if not live.is_over and live.is_being_written and live.finishing is None:
            return await live.upload.read(offset, length)
        async with self._reading:
            if self._reader is None or self._reader.size < offset + length:
                await self._renew_reader()
            try:
                return await self._read(offset, length)
            except ShortRead:
                # Not every storage goes on giving what was open when it was moved to the blob store.
                if live.finishing is not None:
                    await live.finishing.wait()
                if live.finished is None:
                    raise
                await self._renew_reader()
                return await self._read(offset, length)

    async def _read(self, offset: int, length: int) -> bytes:
        source = self._ahead or self._reader
        return await source.read(offset, length) if source is not None else b""

    async def write(self, offset: int, content: bytes) -> int:
        live = self._check_writer()
        upload = live.upload
        try:
            await upload.write_at(upload.size if self._appends else offset, content)
            live.modified_at = time.time_ns()
            if upload.pending >= _WRITE_BEHIND:
                await upload.store()
        except LayerfsError as error:
            live.error = str(error)
            raise
        if upload.pending >= STORE_SIZE and not live.storing:
            live.storing = True
            self._uploads.state.start(live.store, f"storing {self.path}")
        if self._is_synchronous:
            await self._flush()
        return len(content)

    async def truncate(self, size: int) -> None:
        """Through the descriptor."""
        await self._check_writer().upload.truncate(size)

    async def flush(self) -> None:
        live = self._live
        if not self._writes or live.writer is not self or live.is_over:
            return
        await self._flush()
        # A shell's `>` is flushed before the first write. That is no end, unless an empty file is what is wanted.
        if live.commit and live.expected and (live.upload.size or is_of_nothing(live.expected)):
            await live.commit()

    async def synchronize(self) -> None:
        if self._writes and self._live.writer is self and not self._live.is_over:
            await self._flush()

    async def hold(self) -> None:
        """Opens what is in storage, before it is removed: where files outlive their names it can be read on.

        So far it may have been read from its writer, or not at all.
        """
        if self._reader is None and not self._reading.locked():
            async with self._reading:
                with contextlib.suppress(LayerfsError):
                    await self._renew_reader()

    async def release(self) -> None:
        self.is_leaving = True
        live = self._live
        live.readers.discard(self)
        self._close_reader()
        if live.writer is not self:
            return
        try:
            await self._let_go(live)
        finally:
            self._uploads.writer_closed(live)

    async def _let_go(self, live: LiveUpload) -> None:
        if live.is_over:
            return
        if live.expected is not None:
            try:
                await self._uploads.cancel(live.upload.name, live.upload.uuid)
            finally:
                # If it could not be deleted it is an upload like any other.
                self._uploads.forget(live.upload.name, live.upload.uuid)
        elif live.upload.is_usable:
            # Finished or cancelled at this moment: then that lets go of the file.
            with contextlib.suppress(LayerClosed, LayerUploadBusy):
                await live.upload.close_writer()
        else:
            await live.upload.close()

    async def _flush(self) -> None:
        upload = self._live.upload
        if upload.is_usable and upload.is_flushed:
            return
        try:
            await upload.flush()
        except LayerfsError as error:
            self._live.error = str(error)
            raise

    async def _renew_reader(self) -> None:
        """Reads from what is in storage now, or from what was open if that was removed."""
        try:
            reader = await self._open_reader()
        except (BlobUnknown, LayerUploadUnknown):
            if self._reader is None:
                raise
            return
        self._close_reader()
        self._reader = reader
        # The kernel keeps no pages of an upload, so programs that read a little at a time do so here, too.
        if reader is not None and not self._uploads.state.registry.driver.capabilities.random_writes:
            self._ahead = ReadAhead(reader, self._uploads.state.read_ahead, key=reader)

    async def _open_reader(self) -> FileReader | None:
        """The bytes in storage; None for an upload that has not even an empty file yet."""
        live = self._live
        if live.finished is None:
            try:
                return await live.upload.open_reader()
            except LayerUploadUnknown:
                if live.finishing is not None:
                    # On its way to the blob store.
                    await live.finishing.wait()
        return await self._open_ended()

    async def _open_ended(self) -> FileReader | None:
        live = self._live
        if live.finished is not None:
            return await self._uploads.state.registry.blobs.open(live.finished)
        await self._uploads.stat(live.upload.name, live.upload.uuid)
        return None

    def _close_reader(self) -> None:
        source = self._ahead or self._reader
        if source is not None:
            source.close()
        self._ahead = self._reader = None

    def _check_writer(self) -> LiveUpload:
        if not self._writes:
            raise BadHandle(f"{self.path} is open for reading only")
        if self._live.is_over:
            raise BadHandle(f"{self.path} is finished: {self._live.finished or 'it'} cannot be changed any more")
        return self._live
