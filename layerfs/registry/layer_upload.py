"""One resumable upload, as who makes one uses it: write, seek, then finish or cancel; or close it and resume it later.

Who may do what, and when, is decided here: one thing at a time, and nothing more once it is finished, cancelled,
closed, or has failed. What is done with the bytes is in `upload_data`, how they become a layer in `finishing`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Self

import trio

from layerfs.digest import Digest
from layerfs.driver.interface import FileReader
from layerfs.errors import InvalidOffset, LayerClosed, LayerUploadBusy
from layerfs.layername import LayerName
from layerfs.registry.blobs import BlobInfo
from layerfs.registry.finishing import Finishing
from layerfs.registry.pending_bytes import STORE_SIZE
from layerfs.registry.stored_upload import StoredUpload
from layerfs.registry.upload_data import UploadData
from layerfs.registry.upload_info import UploadInfo


class LayerUpload:
    """An unfinished upload: write, seek, then `finish` or `cancel`; or `close` it and resume it later, anywhere.

    What `write` has taken is in storage for certain when `flush` or `close` returns. An error other than a refusal
    (a bad offset, a wrong digest) is final for this object, and what was written since the last `flush` may be lost:
    resume the upload to see how much is there.

    One task at a time may use it, but `store`, `hash_stored` and `size` may be called alongside.
    """

    def __init__(self, info: UploadInfo, stored: StoredUpload, data: UploadData, finishing: Finishing) -> None:
        self.name = info.name
        self.uuid = info.uuid
        self.started_at = info.started_at
        #: Where the next `write` goes.
        self.offset = info.size
        self._stored = stored
        self._data = data
        self._finishing = finishing
        # Held by whoever touches storage. To take bytes it is not needed.
        self._lock = trio.Lock()
        self._is_let_go = False
        self._is_being_finished = False

    @property
    def size(self) -> int:
        """Bytes taken so far, stored or not."""
        return self._data.size

    @property
    def pending(self) -> int:
        """Bytes taken but not yet given to the driver."""
        return self._data.pending

    @property
    def is_flushed(self) -> bool:
        """Whether all bytes taken are in storage for certain."""
        return self._data.is_flushed

    @property
    def hash_lag(self) -> int:
        """Bytes in storage that the running hash does not cover yet, so that finishing would have to read them."""
        return self._data.hash_lag

    @property
    def is_usable(self) -> bool:
        """False once it is finished, cancelled, closed, or has failed."""
        return not self._is_closed and self._data.failure is None

    @property
    def blob(self) -> BlobInfo | None:
        """What `finish` has made of it, if storage has told that unasked."""
        return self._finishing.blob

    # --- writing ---------------------------------------------------------------------------------------------

    async def write(self, content: bytes) -> int:
        """Writes at `offset` and moves it on. Returns the bytes written, always all of them."""
        await self.write_at(self.offset, content)
        self.offset += len(content)
        if self.pending >= STORE_SIZE:
            await self.store()
        return len(content)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Makes `offset`, from the start, here or the end, the place of the next write, and returns it.

        Beyond the end is allowed; the gap will read as zeros.
        """
        self._check_usable()
        place = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self.offset, os.SEEK_END: self.size}[whence]
        if place < 0:
            raise InvalidOffset(self._stored.directory.data, f"cannot seek to {place}")
        self.offset = place
        return place

    async def write_at(self, offset: int, content: bytes) -> None:
        """Writes `content` at `offset`, gathering appends until `store`, `flush` or something that needs them stored.

        Raises `InvalidOffset`, before anything has changed, for an earlier offset where the storage can only append.
        """
        self._check_usable()
        if not content:
            return
        if offset == self.size:
            self._data.append(content)
            return
        async with self._exclusively():
            await self._data.write_at(offset, content)

    async def truncate(self, size: int) -> None:
        """Makes the upload `size` bytes long. Raises `InvalidOffset` if it is longer and storage can only append."""
        self._check_usable()
        if size == self.size:
            return
        async with self._exclusively():
            await self._data.truncate(size)

    async def open_writer(self) -> None:
        """Takes the place of the one writer now instead of at the first write, so that `size` is what storage has."""
        async with self._exclusively():
            await self._data.open()

    async def store(self) -> None:
        """Gives all that was taken to the driver, and hashes it. Not yet durable."""
        async with self._exclusively():
            await self._data.store()

    async def flush(self) -> None:
        """Returns when every byte taken is durable. Also stores the state of the hash, for whoever goes on."""
        async with self._exclusively():
            await self._data.flush()

    async def close_writer(self) -> None:
        """Flushes, and lets go of the file, so that others may write or finish it. The next write opens it again."""
        async with self._exclusively():
            await self._let_go()

    async def read(self, offset: int, length: int) -> bytes:
        """The bytes taken so far at `offset`: fewer at the end, none beyond it."""
        self._check_usable()
        length = max(0, min(length, self.size - offset))
        if not length:
            return b""
        async with self._exclusively():
            return await self._data.read(offset, length)

    async def open_reader(self) -> FileReader:
        """The bytes that are in storage now, to be closed by the caller. Raises `LayerUploadUnknown`."""
        return await self._stored.open()

    async def hash_stored(self) -> None:
        """Lets the hash catch up with what was in storage before, while more is being written.

        Worth the reading where the storage is near: finishing then need not wait for it.
        """
        while self._can_be_hashed and not self._is_being_finished and self.hash_lag > 0:
            async with self._lock:
                if not self._can_be_hashed or not await self._data.hash_some():
                    return

    @property
    def _can_be_hashed(self) -> bool:
        return self.is_usable and self._data.is_open

    # --- ending ----------------------------------------------------------------------------------------------

    async def finish(self, digest: LayerName, size: int | None = None) -> Digest:
        """Verifies the content and makes it a layer of the repository. Returns its canonical digest.

        Raises `LayerInvalidDigest` or `LayerInvalidLength`, for a TarSum also `InvalidTar` or
        `LayerTarSumVersionUnsupported`, and the upload stays as it is. May be repeated after any error or crash; a
        stored blob is replaced, so one that was damaged is whole afterwards.
        """
        self._check_usable()
        self._is_being_finished = True
        try:
            async with self._lock:
                self._check_open()
                await self._let_go()
                return await self._finishing.finish(digest, size)
        finally:
            self._is_being_finished = False

    async def cancel(self) -> None:
        """Deletes the upload and all its bytes. Works also after an error, and again if it fails itself."""
        self._check_not_closed()
        # From here on nothing may be written: it would come back to life as a directory that nobody ever removes.
        self._data.failure = LayerClosed(f"upload {self.uuid}")
        async with self._lock:
            self._check_not_closed()
            self._data.drop_pending()
            await self._data.close()
            self._data.close_reader()
            await self._stored.remove()

    async def close(self) -> None:
        """Flushes and lets go; the upload can be resumed. May be called again, and after `finish` and `cancel`.

        Waits for a `finish` that is under way.
        """
        if self._is_closed:
            return
        try:
            async with self._lock:
                if self.is_usable:
                    await self._data.flush()
        finally:
            self._is_let_go = True
            await self._data.close_at_last()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    # --- whose turn it is --------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def _exclusively(self) -> AsyncIterator[None]:
        """Waits for its turn; and looks again then, because it may be finished, cancelled or closed by now."""
        self._check_usable()
        async with self._lock:
            self._check_open()
            yield

    async def _let_go(self) -> None:
        await self._data.flush()
        await self._data.close()
        self._data.close_reader()

    @property
    def _is_closed(self) -> bool:
        return self._is_let_go or self._stored.is_removed

    def _check_usable(self) -> None:
        self._check_open()
        if self._is_being_finished:
            raise LayerUploadBusy(self.name, self.uuid, "it is being finished")

    def _check_open(self) -> None:
        self._check_not_closed()
        if self._data.failure is not None:
            # Without the traceback of the last time, which would grow with each, and keep all that it refers to.
            raise self._data.failure.with_traceback(None)

    def _check_not_closed(self) -> None:
        if self._is_closed:
            raise LayerClosed(f"upload {self.uuid}")
