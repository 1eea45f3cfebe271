"""One resumable upload: how it is written, finished and cancelled.

What becomes of its bytes when it is finished is in `finishing`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Awaitable
from types import TracebackType
from typing import Final, Self, TypeVar

import trio

from layerfs.digest import Digest
from layerfs.driver.interface import ContentVersion, FileReader, FileWriter
from layerfs.errors import (
    BackendFailure,
    ContentChanged,
    ContentTooLarge,
    InvalidOffset,
    LayerClosed,
    LayerfsError,
    LayerUploadBusy,
    UnsupportedByDriver,
)
from layerfs.layername import LayerName
from layerfs.registry.blobs import BlobInfo
from layerfs.registry.finishing import Finishing
from layerfs.registry.hash_states import HashStates
from layerfs.registry.lost_tail import cut_lost_tail
from layerfs.registry.pending_bytes import STORE_SIZE, PendingBytes
from layerfs.registry.running_hash import RunningHash
from layerfs.registry.stored_upload import StoredUpload
from layerfs.registry.upload_info import UploadInfo

_Result = TypeVar("_Result")

#: Bytes of a hole that are hashed when it is made; the hash of an upload with a larger one catches up later.
_HOLE_HASHED: Final = 64 << 20

#: Seconds that letting go of a file may take when its user was cancelled.
_CLOSE_DEADLINE: Final = 10.0


class LayerUpload:
    """An unfinished upload: write, seek, then `finish` or `cancel`; or `close` it and resume it later, anywhere.

    What `write` has taken is in storage for certain when `flush` or `close` returns. An error other than a refusal
    (a bad offset, a wrong digest) is final for this object, and what was written since the last `flush` may be lost:
    resume the upload to see how much is there.

    One task at a time may use it, but `store`, `hash_stored` and `size` may be called alongside.
    """

    def __init__(
        self,
        info: UploadInfo,
        stored: StoredUpload,
        content_hash: RunningHash,
        hash_states: HashStates,
        finishing: Finishing,
        writer: FileWriter | None,
    ) -> None:
        self.name = info.name
        self.uuid = info.uuid
        self.started_at = info.started_at
        #: Where the next `write` goes.
        self.offset = info.size
        self._stored = stored
        self._driver = stored.driver
        self._directory = stored.directory
        self._hash = content_hash
        self._states = hash_states
        self._finishing = finishing
        self._writer = writer
        self._reader: FileReader | None = None
        # Bytes in storage, as far as is known here.
        self._stored_size = info.size
        self._pending = PendingBytes()
        self._flushed = True
        # The version of the file that the last writer here has left, with every byte of it durable.
        self._left_version: ContentVersion | None = None
        self._lock = trio.Lock()
        self._is_let_go = False
        self._is_being_finished = False
        self._failure: LayerfsError | None = None

    @property
    def size(self) -> int:
        """Bytes taken so far, stored or not."""
        return self._stored_size + self._pending.size

    @property
    def pending(self) -> int:
        """Bytes taken but not yet given to the driver."""
        return self._pending.size

    @property
    def is_flushed(self) -> bool:
        """Whether all bytes taken are in storage for certain."""
        return self._flushed and not self._pending.are_left

    @property
    def is_usable(self) -> bool:
        """False once it is finished, cancelled, closed, or has failed."""
        return not self._is_closed and self._failure is None

    @property
    def hash_lag(self) -> int:
        """Bytes in storage that the running hash does not cover yet, so that finishing would have to read them."""
        return self._stored_size - self._hash.count

    @property
    def blob(self) -> BlobInfo | None:
        """What `finish` has made of it, if storage has told that unasked."""
        return self._finishing.blob

    # --- writing ---------------------------------------------------------------------------------------------

    async def write(self, content: bytes) -> int:
        """Writes at `offset` and moves it on. Returns the bytes written, always all of them."""
        await self.write_at(self.offset, content)
        self.offset += len(content)
        if self._pending.size >= STORE_SIZE:
            await self.store()
        return len(content)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Makes `offset`, from the start, here or the end, the place of the next write, and returns it.

        Beyond the end is allowed; the gap will read as zeros.
        """
        self._check_usable()
        place = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self.offset, os.SEEK_END: self.size}[whence]
        if place < 0:
            raise InvalidOffset(self._directory.data, f"cannot seek to {place}")
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
            self._pending.append(content)
            return
        async with self._exclusively():
            await self._write_out_of_order(offset, content)

    async def truncate(self, size: int) -> None:
        """Makes the upload `size` bytes long. Raises `InvalidOffset` if it is longer and storage can only append."""
        self._check_usable()
        if size == self.size:
            return
        async with self._exclusively():
            await self._store_pending()
            writer = await self._open_writer()
            if size > writer.size:
                await self._extend(writer, size)
                return
            writer = await self._writer_for_random_access(size)
            await self._attempt(writer.truncate(size), refusable=True)
            self._stored_size = writer.size

    async def open_writer(self) -> None:
        """Takes the place of the one writer now instead of at the first write, so that `size` is what storage has."""
        async with self._exclusively():
            await self._open_writer()

    async def store(self) -> None:
        """Gives all that was taken to the driver, and hashes it. Not yet durable."""
        async with self._exclusively():
            await self._store_pending()

    async def flush(self) -> None:
        """Returns when every byte taken is durable. Also stores the state of the hash, for whoever goes on."""
        async with self._exclusively():
            await self._flush()

    async def close_writer(self) -> None:
        """Flushes, and lets go of the file, so that others may write or finish it. The next write opens it again."""
        async with self._exclusively():
            await self._flush()
            await self._close_writer()
            self._close_reader()

    async def read(self, offset: int, length: int) -> bytes:
        """The bytes taken so far at `offset`: fewer at the end, none beyond it."""
        self._check_usable()
        length = max(0, min(length, self.size - offset))
        if not length:
            return b""
        async with self._exclusively():
            await self._store_pending()
            if self._reader is None or self._reader.size < offset + length:
                self._close_reader()
                self._reader = await self._driver.open(self._directory.data)
            return await self._reader.read(offset, length)

    async def open_reader(self) -> FileReader:
        """The bytes that are in storage now, to be closed by the caller. Raises `LayerUploadUnknown`."""
        return await self._stored.open()

    async def hash_stored(self) -> None:
        """Lets the hash catch up with what was in storage before, while more is being written.

        Worth the reading where the storage is near: finishing then need not wait for it.
        """
        while self.is_usable and self._writer is not None and not self._is_being_finished and self.hash_lag > 0:
            async with self._lock:
                if not self.is_usable or self._writer is None or not await self._hash_some():
                    return

    async def _hash_some(self) -> bool:
        """Hashes the next part of what is in storage; whether there was any."""
        reader = await self._driver.open(self._directory.data)
        try:
            # The file can be shorter than it should be: it may have been cut by somebody else.
            return await self._hash.read_some(min(self._stored_size, reader.size), reader.read)
        finally:
            reader.close()

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
                await self._flush()
                await self._close_writer()
                self._close_reader()
                return await self._finishing.finish(digest, size)
        finally:
            self._is_being_finished = False

    async def cancel(self) -> None:
        """Deletes the upload and all its bytes. Works also after an error, and again if it fails itself."""
        if self._is_closed:
            raise LayerClosed(f"upload {self.uuid}")
        # From here on nothing may be written: it would come back to life as a directory that nobody ever removes.
        self._failure = LayerClosed(f"upload {self.uuid}")
        async with self._lock:
            if self._is_closed:
                raise LayerClosed(f"upload {self.uuid}")
            self._drop_pending()
            await self._close_writer()
            self._close_reader()
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
                    await self._flush()
        finally:
            self._is_let_go = True
            self._close_reader()
            with trio.move_on_after(_CLOSE_DEADLINE, shield=True):
                await self._close_writer()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    # --- steps of writing; the lock is held ------------------------------------------------------------

    async def _store_pending(self) -> None:
        while self._pending.are_left:
            writer = await self._open_writer()
            batch = self._pending.take()
            start = writer.size
            # Here, not where bytes are taken: they may be taken while an earlier flush is under way.
            self._flushed = False
            await self._attempt(writer.write(batch))
            self._pending.stored(writer.size - start)
            self._stored_size = writer.size
            if self._hash.count == start:
                await self._hash.update(batch)

    async def _write_out_of_order(self, offset: int, content: bytes) -> None:
        await self._store_pending()
        writer = await self._open_writer()
        if offset > writer.size and self._driver.capabilities.random_writes:
            await self._extend(writer, offset)
        elif offset > writer.size:
            await self._append_zeros(offset - writer.size)
        if offset == writer.size:
            self._pending.append(content)
            return
        writer = await self._writer_for_random_access(offset)
        await self._attempt(writer.write_at(offset, content), refusable=True)
        self._stored_size = writer.size

    async def _extend(self, writer: FileWriter, size: int) -> None:
        """Makes a hole at the end, as `cp` does for a file with holes; finishing need not read it all for that."""
        gap = size - writer.size
        if not self._driver.capabilities.random_writes:
            await self._append_zeros(gap)
            return
        follows = self._hash.count == writer.size
        self._flushed = False
        await self._attempt(writer.truncate(size), refusable=True)
        self._stored_size = writer.size
        if follows and gap <= _HOLE_HASHED:
            await self._hash.update_zeros(gap)

    async def _append_zeros(self, count: int) -> None:
        while count:
            length = min(count, STORE_SIZE)
            self._pending.append(bytes(length))
            await self._store_pending()
            count -= length

    async def _writer_for_random_access(self, offset: int) -> FileWriter:
        """The writer, once no stored state can be taken for one of what the file is going to be."""
        if not self._driver.capabilities.random_writes:
            raise InvalidOffset(
                self._directory.data, f"this storage can only append: cannot change byte {offset} of {self.size}"
            )
        writer = await self._open_writer()
        await self._states.delete_all()
        # Before the change, not after it: one that fails half-way has changed the file too.
        self._hash.begin_again()
        self._flushed = False
        return writer

    async def _flush(self) -> None:
        await self._store_pending()
        if self._writer is None or self._flushed:
            return
        await self._attempt(self._writer.flush())
        self._flushed = True
        # After the bytes, never before: a state that is ahead of the data would be wrong for other bytes to come.
        size = self.size
        await self._states.store(size, self._hash.state_of(size))

    async def _open_writer(self) -> FileWriter:
        if self._writer is None:
            await self._stored.check_exists()
            writer = await self._driver.writer(self._directory.data, append=True)
            try:
                if writer.version() is None or writer.version() != self._hash.version:
                    await self._take_over(writer)
            except BaseException:
                with trio.move_on_after(_CLOSE_DEADLINE, shield=True):
                    await writer.close()
                raise
            if writer.version() != self._left_version:
                self._flushed = self._flushed and not writer.size
            self._stored_size = writer.size
            self._writer = writer
        return self._writer

    async def _take_over(self, writer: FileWriter) -> None:
        """Goes on with a file that somebody else has written, or may have."""
        await cut_lost_tail(self._driver, self._directory, writer)
        if self._pending.are_left and writer.size != self._stored_size:
            # They were taken for a place that is no longer the end.
            error = ContentChanged(self._directory.data, f"it has {writer.size} bytes, not {self._stored_size}")
            self._fail(error)
            raise error
        self._hash.resume(await self._states.find(writer.size))
        self._states.expect_others()
        # Whoever wrote these bytes may have been killed before they were durable.
        self._flushed = self._flushed and not writer.size
        await self._states.delete_ahead_of(writer.size)

    async def _close_writer(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            self._hash.version = self._left_version = writer.version()
            await writer.close()

    def _close_reader(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    async def _attempt(self, change: Awaitable[_Result], *, refusable: bool = False) -> _Result:
        """Awaits a change of the file. If it fails nobody knows what the file is like, so the upload has failed.

        A `refusable` one may be refused by the driver without that: no byte that was taken before is lost with it.
        """
        try:
            return await change
        except (UnsupportedByDriver, InvalidOffset, ContentTooLarge) as error:
            if not refusable:
                self._fail(error)
            elif self._writer is not None:
                self._stored_size = self._writer.size
            raise
        except BaseException as error:
            self._fail(error)
            raise

    def _fail(self, error: BaseException) -> None:
        if isinstance(error, LayerfsError):
            self._failure = error
        else:
            self._failure = BackendFailure(self._directory.data, "a write was interrupted")
        self._drop_pending()

    def _drop_pending(self) -> None:
        self._pending.clear()
        if self._writer is not None:
            self._stored_size = self._writer.size

    @contextlib.asynccontextmanager
    async def _exclusively(self) -> AsyncIterator[None]:
        """Waits for its turn; and looks again then, because it may be finished, cancelled or closed by now."""
        self._check_usable()
        async with self._lock:
            self._check_open()
            yield

    @property
    def _is_closed(self) -> bool:
        return self._is_let_go or self._stored.is_removed

    def _check_usable(self) -> None:
        self._check_open()
        if self._is_being_finished:
            raise LayerUploadBusy(self.name, self.uuid, "it is being finished")

    def _check_open(self) -> None:
        if self._is_closed:
            raise LayerClosed(f"upload {self.uuid}")
        if self._failure is not None:
            # Without the traceback of the last time, which would grow with each, and keep all that it refers to.
            raise self._failure.with_traceback(None)
