"""The bytes of an upload, and the one writer that this process has on them: taken, stored, made durable.

What is stored is hashed on its way, and the state of the hash is stored once the bytes are durable. The file may have
been written by others before, by a registry, another node or a process that was killed, and may be again whenever there
is no writer here: so what is known of it counts only while its version is the one that was left.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable
from typing import Final, TypeVar

import trio

from layerfs.driver.interface import ContentVersion, FileReader, FileWriter
from layerfs.errors import (
    BackendFailure,
    ContentChanged,
    ContentTooLarge,
    DriverError,
    InvalidOffset,
    LayerfsError,
    LayerUploadUnknown,
    UnsupportedByDriver,
)
from layerfs.registry.hash_states import HashStates
from layerfs.registry.lost_tail import cut_lost_tail
from layerfs.registry.pending_bytes import STORE_SIZE, PendingBytes
from layerfs.registry.running_hash import RunningHash
from layerfs.registry.stored_upload import StoredUpload

_Result = TypeVar("_Result")

#: Bytes of a hole that are hashed when it is made; the hash of an upload with a larger one catches up later.
_HOLE_HASHED: Final = 64 << 20

#: Seconds that letting go of a file may take when its user was cancelled.
_CLOSE_DEADLINE: Final = 10.0


class UploadData:
    """The file `data` of an upload, with what is still to be appended to it.

    * Bytes are stored in the order in which they were taken, each once. `size` is what is stored, as far as is known
      here, and what is pending.
    * The hash is of the beginning of what is stored. Where it falls behind, it can catch up (`hash_some`).
    * `is_flushed` is never said of a byte that may not be durable.
    * When a change of the file has failed in the middle nobody knows what it is like. Then `failure` is set, what is
      pending is dropped, and only closing is of use.

    One call at a time, but `append` and the properties may be used during another.
    """

    def __init__(
        self,
        upload: StoredUpload,
        content_hash: RunningHash,
        hash_states: HashStates,
        *,
        size: int,
        writer: FileWriter | None,
    ) -> None:
        #: Why nothing can be read or written any more.
        self.failure: LayerfsError | None = None
        self._upload = upload
        self._driver = upload.driver
        self._directory = upload.directory
        self._hash = content_hash
        self._states = hash_states
        self._stored_size = size
        self._pending = PendingBytes()
        self._flushed = True
        self._writer = writer
        # Whether the writer has opened what was there: others may have had to do with it at that moment.
        self._is_shared = False
        # The version of the file that the last writer here has left, with every byte of it durable.
        self._left_version: ContentVersion | None = None
        self._reader: FileReader | None = None

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
    def is_open(self) -> bool:
        """Whether there is a writer."""
        return self._writer is not None

    @property
    def hash_lag(self) -> int:
        """Bytes in storage that the hash does not cover yet."""
        return self._stored_size - self._hash.count

    # --- the end of it ---------------------------------------------------------------------------------------------

    def append(self, content: bytes) -> None:
        """Takes bytes that follow the last. Memory only."""
        self._pending.append(content)

    async def store(self) -> None:
        """Gives all that was taken to the driver, and hashes it. Not yet durable."""
        while self._pending.are_left:
            writer = await self.open()
            batch = self._pending.take()
            start = writer.size
            # Here, not where bytes are taken: they may be taken while an earlier flush is under way.
            self._flushed = False
            await self._attempt(writer.write(batch))
            self._pending.stored(writer.size - start)
            self._stored_size = writer.size
            if self._hash.count == start:
                await self._hash.update(batch)

    async def flush(self) -> None:
        """Returns when every byte taken is durable. Also stores the state of the hash."""
        await self.store()
        if self._writer is None or self._flushed:
            return
        await self._attempt(self._writer.flush())
        if self._is_shared:
            await self._check_not_ended()
        self._flushed = True
        # After the bytes, never before: a state that is ahead of the data would be wrong for other bytes to come.
        # Without what was taken meanwhile.
        size = self._stored_size
        await self._states.store(size, self._hash.state_of(size))

    # --- elsewhere -------------------------------------------------------------------------------------------------

    async def write_at(self, offset: int, content: bytes) -> None:
        """Writes anywhere; a gap before it is filled with zeros. Raises `InvalidOffset` as `truncate`."""
        await self.store()
        writer = await self.open()
        if offset > writer.size:
            await self._extend(writer, offset)
        if offset == writer.size:
            self.append(content)
            return
        writer = await self._writer_for_random_access(offset)
        await self._attempt(writer.write_at(offset, content), refusable=True)
        self._stored_size = writer.size

    async def truncate(self, size: int) -> None:
        """Makes it `size` bytes long. Raises `InvalidOffset`, with nothing changed, where storage can only append."""
        await self.store()
        writer = await self.open()
        if size > writer.size:
            await self._extend(writer, size)
            return
        writer = await self._writer_for_random_access(size)
        await self._attempt(writer.truncate(size), refusable=True)
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
            self.append(bytes(length))
            await self.store()
            count -= length

    async def _writer_for_random_access(self, offset: int) -> FileWriter:
        """The writer, once no stored state can be taken for one of what the file is going to be."""
        if not self._driver.capabilities.random_writes:
            raise InvalidOffset(
                self._directory.data, f"this storage can only append: cannot change byte {offset} of {self.size}"
            )
        writer = await self.open()
        await self._states.delete_all()
        # Before the change, not after it: one that fails half-way has changed the file too.
        self._hash.begin_again()
        self._flushed = False
        return writer

    # --- reading ---------------------------------------------------------------------------------------------------

    async def read(self, offset: int, length: int) -> bytes:
        """The `length` bytes at `offset`, which must have been taken."""
        await self.store()
        if self._reader is None or self._reader.size < offset + length:
            self.close_reader()
            self._reader = await self._driver.open(self._directory.data)
        return await self._reader.read(offset, length)

    async def hash_some(self) -> bool:
        """Lets the hash catch up with the next part of what is in storage; whether there was any."""
        reader = await self._driver.open(self._directory.data)
        try:
            # The file can be shorter than it should be: it may have been cut by somebody else.
            return await self._hash.read_some(min(self._stored_size, reader.size), reader.read)
        finally:
            reader.close()

    def close_reader(self) -> None:
        """Lets go of what `read` has opened."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    # --- the writer ------------------------------------------------------------------------------------------------

    async def open(self) -> FileWriter:
        """The writer; `size` is what storage has, then. Raises `LayerUploadUnknown`."""
        if self._writer is None:
            states = await self._upload.look_for_states()
            writer = await self._driver.writer(self._directory.data, append=True)
            try:
                if not writer.size:
                    await self._check_not_made_anew()
                if writer.version() is None or not self._left_version == writer.version() == self._hash.version:
                    await self._take_over(writer)
                await self._states.delete_ahead_of(writer.size, states)
            except BaseException:
                with trio.move_on_after(_CLOSE_DEADLINE, shield=True):
                    await writer.close()
                raise
            self._stored_size = writer.size
            self._writer = writer
            self._is_shared = True
        return self._writer

    async def _check_not_made_anew(self) -> None:
        """Somebody may have ended the upload since it was looked for: then opening its `data` has made another one."""
        try:
            await self._upload.check_exists()
        except LayerUploadUnknown:
            with contextlib.suppress(DriverError):
                await self._upload.delete()
            raise

    async def _check_not_ended(self) -> None:
        """Somebody may have been finishing the upload when it was opened: on S3 what is written then is of another one.

        Nobody would ever see it, so nobody may be told that it is stored. A purge removes it, and only that may: should
        a store not find for a moment what it has, all that was ever stored of the upload is still there.
        """
        try:
            await self._upload.check_exists()
        except LayerUploadUnknown as error:
            self._fail(error)
            raise

    async def _take_over(self, writer: FileWriter) -> None:
        """Goes on with a file that somebody else has written, or may have; also if it was verified since."""
        is_known = writer.version() is not None and writer.version() == self._hash.version
        await cut_lost_tail(self._driver, self._directory, writer)
        if self._pending.are_left and writer.size != self._stored_size:
            # They were taken for a place that is no longer the end.
            error = ContentChanged(self._directory.data, f"it has {writer.size} bytes, not {self._stored_size}")
            self._fail(error)
            raise error
        if not is_known or self._hash.count > writer.size:
            self._hash.resume(await self._states.find(writer.size))
        self._states.expect_others()
        # Whoever wrote these bytes may have been killed before they were durable.
        self._flushed = self._flushed and not writer.size

    async def close(self) -> None:
        """Lets go of the file without flushing, so that others may write or finish it."""
        writer, self._writer = self._writer, None
        if writer is not None:
            self._hash.version = self._left_version = writer.version()
            await writer.close()

    async def close_at_last(self) -> None:
        """Lets go of everything, even if cancelled, but bounded."""
        self.close_reader()
        with trio.move_on_after(_CLOSE_DEADLINE, shield=True):
            await self.close()

    # --- failures --------------------------------------------------------------------------------------------------

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
            self.failure = error
        else:
            self.failure = BackendFailure(self._directory.data, "a write was interrupted")
        self.drop_pending()

    def drop_pending(self) -> None:
        """What is not stored is not wanted any more."""
        self._pending.clear()
        if self._writer is not None:
            self._stored_size = self._writer.size
