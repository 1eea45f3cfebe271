"""One resumable upload: how it is written, verified, finished and cancelled.

Two rules decide what is in here:

* **What is hashed is what is stored.** The hash that runs along with the writes counts only while this process can
  show that nobody else touched the file (`ContentVersion`); else everything is read again. A state found in storage is
  somebody's word and is believed only if the operator says so (`trust_hash_states`): registries do leave states that
  are not of the first n bytes.
* **Every step of finishing can be repeated.** seal -> verify -> publish the blob -> canonical link -> alias link ->
  delete the upload. `docs/architecture.md` has the table of what a crash after each step leaves behind, and why
  finishing again repairs it.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self, TypeAlias, TypeVar

import trio

from layerfs.digest import EMPTY, Digest
from layerfs.driver.interface import ContentVersion, FileReader, FileWriter, SealedFile
from layerfs.errors import (
    BackendFailure,
    BlobUnknown,
    ContentChanged,
    ContentTooLarge,
    DriverError,
    InvalidOffset,
    LayerClosed,
    LayerfsError,
    LayerInvalidDigest,
    LayerInvalidLength,
    LayerUploadBusy,
    LayerUploadInvalid,
    LayerUploadUnknown,
    LinkInvalid,
    NotRegularFile,
    PathNotFound,
    UnsupportedByDriver,
)
from layerfs.layername import LayerName, Verifier, is_of_nothing
from layerfs.registry.hashing import STATE_LENGTH, StreamingHash, new_hash, resume_hash
from layerfs.registry.links import read_link, write_link
from layerfs.registry.lost_tail import cut_lost_tail, note_durable
from layerfs.registry.paths import BlobData, LayerLink, UploadDirectory
from layerfs.registry.pending_bytes import STORE_SIZE, PendingBytes
from layerfs.registry.repositories import link_layer, make_repository
from layerfs.registry.stored_upload import StoredUpload

if TYPE_CHECKING:
    from layerfs.registry.blobs import BlobInfo
    from layerfs.registry.upload_info import UploadInfo
    from layerfs.registry.uploads import UploadStore

_log = logging.getLogger(__name__)

_Result = TypeVar("_Result")

#: Bytes read at a time when content is hashed from storage.
_READ_SIZE: Final = 4 << 20

#: Bytes of a hole that are hashed when it is made; the hash of an upload with a larger one catches up later.
_HOLE_HASHED: Final = 64 << 20

#: Seconds that the last steps of finishing may take once they have begun; they cannot be cancelled.
_PUBLISH_DEADLINE: Final = 60.0

#: Seconds that letting go of a file may take when its user was cancelled.
_CLOSE_DEADLINE: Final = 10.0

_Read: TypeAlias = Callable[[int, int], Awaitable[bytes]]


class LayerUpload:
    """An unfinished upload: write, seek, then `finish` or `cancel`; or `close` it and resume it later, anywhere.

    What `write` has taken is in storage for certain when `flush` or `close` returns. An error other than a refusal
    (a bad offset, a wrong digest) is final for this object, and what was written since the last `flush` may be lost:
    resume the upload to see how much is there.

    One task at a time may use it, but `store`, `hash_stored` and `size` may be called alongside.
    """

    def __init__(self, store: UploadStore, info: UploadInfo, writer: FileWriter | None) -> None:
        self.name = info.name
        self.uuid = info.uuid
        self.started_at = info.started_at
        #: Where the next `write` goes.
        self.offset = info.size
        #: What `finish` has made of it, if storage has told that unasked.
        self.blob: BlobInfo | None = None
        self._store = store
        self._driver = store.driver
        self._directory = UploadDirectory(info.name, info.uuid)
        self._stored = StoredUpload(store.driver, self._directory)
        self._writer = writer
        self._reader: FileReader | None = None
        # Bytes in storage, as far as is known here.
        self._stored_size = info.size
        self._pending = PendingBytes()
        self._flushed = True
        # Whether what was found in the file may never have been made durable, by a process that was killed.
        self._is_inherited = writer is None
        # `_hash` is of the first `_hash.count` bytes of the file in version `_hash_version`; while there is a writer,
        # of the version that the writer keeps.
        self._hash: StreamingHash = new_hash()
        self._hash_version: ContentVersion | None = None
        # Whether every byte under `_hash` went through this process; else it rests on a state that was found.
        self._hash_is_proven = True
        self._stored_state_count = 0
        self._states_may_exist = writer is None
        self._lock = trio.Lock()
        self._is_let_go = False
        self._finishing = False
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
        while self.is_usable and self._writer is not None and not self._finishing and self.hash_lag > 0:
            async with self._lock:
                if not self.is_usable or self._writer is None or not await self._hash_some():
                    return

    async def _hash_some(self) -> bool:
        """Hashes the next part of what is in storage; whether there was any."""
        reader = await self._driver.open(self._directory.data)
        try:
            # The file can be shorter than it should be: it may have been cut by somebody else.
            length = min(_READ_SIZE, self.hash_lag, reader.size - self._hash.count)
            if length <= 0:
                return False
            await self._update_hash([await reader.read(self._hash.count, length)])
        finally:
            reader.close()
        return True

    # --- ending ----------------------------------------------------------------------------------------------

    async def finish(self, digest: LayerName, size: int | None = None) -> Digest:
        """Verifies the content and makes it a layer of the repository. Returns its canonical digest.

        Raises `LayerInvalidDigest` or `LayerInvalidLength`, for a TarSum also `InvalidTar` or
        `LayerTarSumVersionUnsupported`, and the upload stays as it is. May be repeated after any error or crash; a
        stored blob is replaced, so one that was damaged is whole afterwards.
        """
        self._check_usable()
        self._finishing = True
        try:
            async with self._lock:
                self._check_open()
                await self._flush()
                await self._close_writer()
                self._close_reader()
                return await self._finish(digest, size)
        finally:
            self._finishing = False

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
                await self._update_hash(batch)

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
            await self._update_hash([bytes(min(_READ_SIZE, gap - done)) for done in range(0, gap, _READ_SIZE)])

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
        if self._states_may_exist:
            with contextlib.suppress(PathNotFound):
                await self._driver.delete(self._directory.hash_states)
            self._states_may_exist = False
        # Before the change, not after it: one that fails half-way has changed the file too.
        self._forget_hash()
        self._flushed = False
        return writer

    async def _flush(self) -> None:
        await self._store_pending()
        if self._writer is None or self._flushed:
            return
        await self._attempt(self._writer.flush())
        self._flushed = True
        self._is_inherited = False
        # After the bytes, never before: a state that is ahead of the data would be wrong for other bytes to come.
        await self._store_hash_state()

    async def _store_hash_state(self) -> None:
        size, state = self.size, self._hash.state()
        if self._stored_state_count == size:
            return
        try:
            if state is None or self._hash.count != size:
                await note_durable(self._driver, self._directory, size)
                return
            # Before, because it may be there also if storing it is cancelled or fails.
            self._states_may_exist = True
            await self._driver.put_content(self._directory.hash_state(size), state)
            self._stored_state_count = size
        except DriverError as error:
            # The bytes are safe, and a missing state only costs time.
            _log.info("no hash state for upload %s at %d bytes: %s", self.uuid, size, error)

    async def _open_writer(self) -> FileWriter:
        if self._writer is None:
            await self._stored.check_exists()
            writer = await self._driver.writer(self._directory.data, append=True)
            try:
                if writer.version() is None or writer.version() != self._hash_version:
                    await self._take_over(writer)
            except BaseException:
                with trio.move_on_after(_CLOSE_DEADLINE, shield=True):
                    await writer.close()
                raise
            if self._is_inherited and writer.size:
                self._flushed = False
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
        self._hash = await self._trusted_hash(writer.size)
        self._stored_state_count = 0
        self._states_may_exist = True
        # Whoever wrote these bytes may have been killed before they were durable.
        self._flushed = self._flushed and not writer.size
        await self._delete_states_ahead_of(writer.size)

    async def _delete_states_ahead_of(self, size: int) -> None:
        """Registries store a state before the data: what a crash leaves would be wrong for other bytes to come."""
        try:
            entries = await self._driver.list(os.path.dirname(self._directory.hash_state(0)))
        except PathNotFound:
            return
        except NotRegularFile:
            entries = []
        if not entries or any(not _is_count_up_to(size, entry.name) for entry in entries):
            with contextlib.suppress(PathNotFound):
                await self._driver.delete(self._directory.hash_states)

    async def _close_writer(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            self._hash_version = writer.version()
            await writer.close()

    def _close_reader(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def _forget_hash(self) -> None:
        self._hash = new_hash()
        self._hash_is_proven = True
        self._stored_state_count = 0

    async def _update_hash(self, buffers: Sequence[bytes]) -> None:
        # Not abandoned on cancellation: the thread would go on changing the hash behind our back.
        await trio.to_thread.run_sync(self._hash.update, buffers, limiter=self._store.hash_limiter)

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
        if self._finishing:
            raise LayerUploadBusy(self.name, self.uuid, "it is being finished")

    def _check_open(self) -> None:
        if self._is_closed:
            raise LayerClosed(f"upload {self.uuid}")
        if self._failure is not None:
            # Without the traceback of the last time, which would grow with each, and keep all that it refers to.
            raise self._failure.with_traceback(None)

    # --- steps of finishing; the lock is held ---------------------------------------------------------------------

    async def _finish(self, digest: LayerName, size: int | None) -> Digest:
        try:
            sealed = await self._driver.seal(self._directory.data)
        except PathNotFound:
            return await self._finish_again(digest, size)
        async with sealed:
            _check_size(size, sealed.size)
            canonical = await self._verify(sealed, digest)

            async def publish() -> None:
                if canonical != digest:
                    await write_link(self._driver, self._directory.committing, canonical)
                self.blob = await self._store.blobs.publish(sealed, canonical)

            await self._publish(publish, canonical, digest, sealed.size)
        return canonical

    async def _finish_again(self, digest: LayerName, size: int | None) -> Digest:
        """Finishes where `data` is missing: it was published before a crash, or there never was a byte."""
        try:
            await self._stored.check_exists()
        except LayerUploadUnknown:
            return await self._finish_at_last(digest)
        canonical = await self._canonical_of(digest)
        try:
            stored = await self._store.blobs.open(canonical)
            stored_size = stored.size
        except BlobUnknown:
            if canonical != EMPTY:
                raise LayerInvalidDigest(digest, EMPTY, 0) from None
            _check_size(size, 0)
            stored_size = 0
        else:
            try:
                await self._verify_stored(stored, canonical, digest, size)
            finally:
                stored.close()

        async def publish() -> None:
            if canonical == EMPTY:
                await self._driver.put_content(BlobData(EMPTY).path, b"")

        await self._publish(publish, canonical, digest, stored_size)
        return canonical

    async def _finish_at_last(self, digest: LayerName) -> Digest:
        """Finishes where the upload is gone: if that was the last step of an earlier try, there is the layer."""
        try:
            canonical = await read_link(self._driver, LayerLink(self.name, digest).path)
            await self._store.blobs.stat(canonical)
        except (PathNotFound, LinkInvalid, BlobUnknown) as error:
            raise LayerUploadUnknown(self.name, self.uuid) from error
        await self._stored.remove()
        return canonical

    async def _verify_stored(self, stored: FileReader, canonical: Digest, digest: LayerName, size: int | None) -> None:
        _check_size(size, stored.size)
        self._forget_hash()
        self._hash_version = None
        await self._hash_up_to(stored.size, stored.read)
        if self._hash.digest() != canonical:
            raise LayerInvalidDigest(canonical, self._hash.digest(), stored.size)
        # Not only by the word of `committing`: it may be of an earlier try, by another digest.
        if digest != canonical:
            await self._verify_alias(digest, stored.size, stored.read)

    async def _canonical_of(self, digest: LayerName) -> Digest:
        if isinstance(digest, Digest) and digest.is_canonical:
            return digest
        try:
            return await read_link(self._driver, self._directory.committing)
        except (PathNotFound, LinkInvalid):
            if is_of_nothing(digest):
                return EMPTY
            raise LayerUploadInvalid(
                self.name, self.uuid, f"it has no data to verify {digest} with; cancel it and upload the layer again"
            ) from None

    async def _verify(self, sealed: SealedFile, digest: LayerName) -> Digest:
        """The canonical digest of the sealed content, which is also `digest`. Goes on where a try was stopped."""
        if sealed.version is None or sealed.version != self._hash_version or self._hash.count > sealed.size:
            self._hash, self._hash_version = await self._trusted_hash(sealed.size), sealed.version
            self._is_inherited = True
        await self._hash_up_to(sealed.size, sealed.read)
        if not self._hash_is_proven and self._hash.digest() != digest:
            # Before content is called wrong, or called by an alias, it is read.
            self._forget_hash()
            await self._hash_up_to(sealed.size, sealed.read)
        canonical = self._hash.digest()
        if not digest.is_canonical:
            await self._verify_alias(digest, sealed.size, sealed.read)
        elif canonical != digest:
            raise LayerInvalidDigest(digest, canonical, sealed.size)
        return canonical

    async def _verify_alias(self, digest: LayerName, size: int, read: _Read) -> None:
        verifier = Verifier(digest)
        for offset in range(0, size, _READ_SIZE):
            chunk = await read(offset, min(_READ_SIZE, size - offset))
            await trio.to_thread.run_sync(verifier.update, chunk, limiter=self._store.hash_limiter)
        # In a thread too: sorting the sums of a million files takes a while.
        actual = await trio.to_thread.run_sync(verifier.finish, limiter=self._store.hash_limiter)
        if actual != digest:
            raise LayerInvalidDigest(digest, actual, size)

    async def _hash_up_to(self, size: int, read: _Read) -> None:
        while self._hash.count < size:
            await self._update_hash([await read(self._hash.count, min(_READ_SIZE, size - self._hash.count))])

    async def _trusted_hash(self, size: int) -> StreamingHash:
        """The hash to go on with for `size` bytes that others wrote: of nothing, unless their states are trusted."""
        self._hash_is_proven = True
        if self._store.trust_hash_states:
            try:
                content = await self._driver.get_content(self._directory.hash_state(size), limit=STATE_LENGTH)
            except DriverError:
                return new_hash()
            state = resume_hash(content)
            if state is not None and state.count == size:
                self._hash_is_proven = False
                return state
        return new_hash()

    async def _publish(
        self, publish: Callable[[], Awaitable[None]], canonical: Digest, digest: LayerName, size: int
    ) -> None:
        """The last steps, in this order, each of which can be repeated. Not cancellable, but bounded."""
        with trio.move_on_after(_PUBLISH_DEADLINE, shield=True) as scope:
            await publish()
            await make_repository(self._driver, self.name)
            await link_layer(self._driver, self.name, canonical, digest)
            await self._stored.remove()
        if scope.cancelled_caught:
            raise BackendFailure(
                self._directory.path, f"finishing took more than {_PUBLISH_DEADLINE:.0f} s; do it again to complete it"
            )
        # Not by an alias: registries learn that only when they are asked for it.
        await self._store.blobs.learn(canonical, size, repository=self.name, published=self.blob)


def _check_size(expected: int | None, actual: int) -> None:
    if expected is not None and expected != actual:
        raise LayerInvalidLength(expected, actual)


def _is_count_up_to(size: int, name: str) -> bool:
    """Whether `name` is a number, written as registries write it, of at most `size`."""
    return name.isdecimal() and str(int(name)) == name and int(name) <= size
