"""Uploads as files: the ones that this mount is writing, and how they are opened, written, finished and cancelled.

An upload that was touched on this mount is *live*: its `LayerUpload` is kept, with the hash of what has been written,
so that finishing it need not read it again. A live upload has at most one writing handle. Everything that is shown of
an upload that nobody here is writing comes from storage, where others may be writing it.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Final

import trio

from layerfs.digest import Digest
from layerfs.driver.interface import FileReader
from layerfs.errors import (
    BadHandle,
    BlobUnknown,
    LayerClosed,
    LayerfsError,
    LayerUploadBusy,
    LayerUploadUnknown,
    ManifestTooLarge,
    ShortRead,
    StaleName,
    UploadLimit,
)
from layerfs.layername import LayerName, is_of_nothing
from layerfs.manifest import MANIFEST_LIMIT
from layerfs.names import new_upload_id
from layerfs.registry import BlobInfo, LayerInfo, LayerUpload, ListedUpload, UploadInfo
from layerfs.registry.layer_upload import STORE_SIZE
from layerfs.registry.paths import UPLOADS
from layerfs.view.blob_file import BlobFile, LayerFile, ManifestFile
from layerfs.view.nodes import (
    Attributes,
    Handle,
    Node,
    file_attributes,
    no_entry,
)
from layerfs.view.readahead import ReadAhead
from layerfs.view.state import MountState

_log = logging.getLogger(__name__)

#: Bytes that a writer may be ahead of storage before it has to wait.
_WRITE_BEHIND: Final = 2 * STORE_SIZE

#: Bytes that programs are told to write at a time: as many as the kernel can pass on in one request, of which `cp` then
#: makes an eighth of what it would make otherwise. (Layers have the usual size: who reads a few bytes here and there
#: through a buffer of this size would read all of them.)
_WRITTEN_AT_ONCE: Final = 1 << 20

#: Seconds that opening for writing waits for a handle that was flushed and may be closed already: the kernel tells of
#: the last close (RELEASE) only after `close` has returned.
_RELEASE_GRACE: Final = 0.25

#: Seconds for letting go of a file that could not be opened rightly.
_CLOSE_DEADLINE: Final = 10.0

#: Live uploads without a handle that are kept for their hashes.
_IDLE_KEPT: Final = 1024


class LiveUpload:
    """An upload that this mount has written to, or is about to finish."""

    def __init__(self, upload: LayerUpload, file_name: str) -> None:
        self.upload = upload
        self.file_name = file_name
        #: Where it is in the tree.
        self.path = f"{upload.name}/{UPLOADS}/{file_name}"
        #: Set for a file that was created at its digest: what it must hold, and what makes it so when it is closed.
        self.expected: LayerName | None = None
        self.commit: Callable[[], Awaitable[None]] | None = None
        self.writer: UploadHandle | None = None
        self.writer_gone = trio.Event()
        #: Who has it open for reading only.
        self.readers: set[UploadHandle] = set()
        self.storing = False
        #: Set when the finish that is under way is over.
        self.finishing: trio.Event | None = None
        #: Why the last thing that failed did; shown as `user.layerfs.error`.
        self.error = ""
        #: The canonical digest of the blob that it has become.
        self.finished: Digest | None = None
        #: Whether its content was handed to somebody: nothing more can be written.
        self.is_consumed = False
        self.modified_at = time.time_ns()

    @property
    def is_being_written(self) -> bool:
        """Whether the newest of it is here. Not after its writer has failed: then it is what storage has."""
        return self.writer is not None and self.upload.is_usable

    @property
    def is_over(self) -> bool:
        """Whether it is finished, or its content has gone elsewhere."""
        return self.is_consumed or self.finished is not None


class LiveUploads:
    """All live uploads of a mount."""

    def __init__(self, state: MountState) -> None:
        self.state = state
        self._listings = state.upload_listings
        self._live: OrderedDict[tuple[str, str], LiveUpload] = OrderedDict()
        self._beginning = 0
        # Of those that are just being begun, which may have no name in storage yet.
        self._nameless: set[tuple[str, str]] = set()

    def live(self, name: str, uuid: str) -> LiveUpload | None:
        """The live upload, if it is one."""
        return self._live.get((name, uuid))

    def open_uploads(self) -> list[LiveUpload]:
        """Those that are being written."""
        return [live for live in self._live.values() if live.writer is not None]

    async def listing(self, name: str) -> Sequence[ListedUpload]:
        """The uploads of a repository as storage has them, from memory while that is fresh.

        Without what is being written to `_layers` here: if it does not become a layer it goes when it is released.
        """
        return [upload for upload in await self._listings.shown(name) if self._is_shown(name, upload.uuid)]

    def _is_shown(self, name: str, uuid: str) -> bool:
        live = self.live(name, uuid)
        return (name, uuid) not in self._nameless and (live is None or live.expected is None)

    async def find(self, name: str, file_name: str) -> UploadFile:
        """The upload called `file_name`; it may be gone, or longer, since it was listed. Raises `NoSuchEntry`."""
        for (repository, uuid), live in self._live.items():
            if repository == name and live.file_name == file_name and live.writer is not None and not live.expected:
                return UploadFile(self, name, uuid, file_name, live.upload.started_at)
        found = await self._listings.find(name, file_name)
        if found is None or not self._is_shown(name, found.uuid):
            raise no_entry(f"{name}/{UPLOADS}", file_name)
        return UploadFile(self, name, found.uuid, file_name, found.started_at)

    async def look(self, name: str, uuid: str) -> UploadInfo:
        """An upload as storage has it, or had it a moment ago where it is far away. Raises `LayerUploadUnknown`."""
        return await self._listings.look(name, uuid)

    async def stat(self, name: str, uuid: str) -> UploadInfo:
        """An upload as storage has it now. Raises `LayerUploadUnknown`."""
        return await self._listings.stat(name, uuid)

    @contextlib.contextmanager
    def _changing(self, name: str) -> Iterator[None]:
        """What fails in the middle of the body may have happened or not: only storage knows."""
        try:
            yield
        except BaseException:
            self._listings.forget(name)
            raise

    async def create(self, name: str, file_name: str, flags: int) -> tuple[UploadFile, Handle]:
        """Begins an upload called `file_name`."""
        with self._room():
            return self._began(LiveUpload(await self._begin(name, file_name), file_name), flags)

    async def create_scratch(self, name: str, path: str, flags: int) -> tuple[UploadFile, Handle]:
        """Begins an upload that has no name of its own in `_uploads`, but is at `path` in the tree of this mount."""
        with self._room():
            live = LiveUpload(upload := await self._begin(name), upload.uuid)
            live.path = path
            return self._began(live, flags)

    async def create_for(
        self, name: str, path: str, digest: LayerName, flags: int, commit: Callable[[UploadFile], Awaitable[None]]
    ) -> tuple[UploadFile, Handle]:
        """Begins an upload that becomes the blob `digest` at `path` by `commit`, when it is closed."""
        with self._room():
            live = LiveUpload(upload := await self._begin(name), upload.uuid)
            live.path, live.expected = path, digest
            node, handle = self._began(live, flags)
            live.commit = functools.partial(commit, node)
            return node, handle

    async def _begin(self, name: str, file_name: str | None = None) -> LayerUpload:
        uuid = new_upload_id()
        self._nameless.add((name, uuid))
        try:
            with self._changing(name):
                return await self.state.service(name).upload(file_name=file_name, uuid=uuid)
        finally:
            self._nameless.remove((name, uuid))

    async def open(self, name: str, uuid: str, file_name: str, flags: int) -> UploadHandle:
        """Opens an upload. Raises `LayerUploadBusy` if it is to be written and somebody else is writing it."""
        if flags & os.O_ACCMODE == os.O_RDONLY and not flags & os.O_TRUNC:
            live = self.live(name, uuid) or await self._revive(name, uuid, file_name)
            handle = UploadHandle(self, name, live, flags)
            live.readers.add(handle)
            return handle
        self.state.check_writable()
        return await self._open_for_writing(name, uuid, file_name, flags)

    async def finish(self, name: str, uuid: str, file_name: str, digest: LayerName) -> None:
        """Makes an upload the layer `digest` of its repository; its inode is the layer's when this returns."""
        live = self.live(name, uuid) or await self._revive(name, uuid, file_name)
        try:
            with self._finishing(live):
                if not live.upload.is_usable:
                    live.upload = await self._resume(name, uuid)
                canonical = live.finished = await live.upload.finish(digest)
        except LayerfsError:
            self.state.stats.uploads_failed += 1
            raise
        finally:
            # One that has failed may have got as far as the link.
            self.state.layer_listings.forget(name)
            self._listings.changed(name, uuid, None)
        live.error = ""
        self.state.stats.uploads_committed += 1
        self.forget(name, uuid)
        self.state.fresh_repositories.discard(name)
        upload = UploadFile(self, name, uuid, file_name, live.upload.started_at)
        self.state.became(upload, LayerFile(self.state, name, await self._layer(digest, canonical, live)))

    async def put_manifest(self, upload: UploadFile, *, digest: Digest | None = None, tag: str | None = None) -> None:
        """Puts what was uploaded as a manifest, by digest or by tag; then the upload is no more."""

        async def put(content: bytes) -> ManifestFile:
            name = upload.repository
            return ManifestFile(self.state, name, await self.state.put_manifest(name, content, digest=digest, tag=tag))

        await self.consume(upload, put)

    async def peek(self, upload: UploadFile, limit: int) -> bytes | None:
        """The content of an upload, as far as it was written; None if it has more than `limit` bytes."""
        live = self.live(upload.repository, upload.uuid) or await self._revive_file(upload)
        with self._finishing(live):
            try:
                return await self._content(live, limit)
            except ManifestTooLarge:
                return None

    async def consume(
        self,
        upload: UploadFile,
        use: Callable[[bytes], Awaitable[Node]],
        *,
        limit: int = MANIFEST_LIMIT,
        keep: bool = False,
    ) -> None:
        """Hands all of a small upload to `use`, which says which file it is from now on; then the upload is no more.

        With `keep` it stays in storage, complete and durable, though nobody writes it any more.
        Raises `ManifestTooLarge` beyond `limit` bytes.
        """
        name, uuid = upload.repository, upload.uuid
        live = self.live(name, uuid) or await self._revive_file(upload)
        with self._finishing(live):
            content = await self._content(live, limit)
            if keep:
                await live.upload.flush()
            node = await use(content)
        live.is_consumed = True
        live.finished = node.blob.digest if isinstance(node, BlobFile) else None
        try:
            await (live.upload.close() if keep else self.cancel(name, uuid))
        finally:
            # What could not be deleted is an upload like any other.
            self.forget(name, uuid)
        self.state.became(upload, node)

    async def _content(self, live: LiveUpload, limit: int) -> bytes:
        """All of a small upload that nobody can write meanwhile. Raises `ManifestTooLarge`."""
        if live.writer is None or not live.upload.is_usable:
            live.upload = await self._resume(live.upload.name, live.upload.uuid)
        if live.upload.size > limit:
            raise ManifestTooLarge(limit)
        return await live.upload.read(0, live.upload.size)

    @contextlib.contextmanager
    def _finishing(self, live: LiveUpload) -> Iterator[None]:
        """Lets nobody else finish the upload, or open it for writing, in the body."""
        if live.writer is not None and not (live.upload.is_flushed and live.upload.is_usable):
            reason = f"{live.file_name!r} is open for writing and not all of it is in storage yet"
            raise LayerUploadBusy(live.upload.name, live.upload.uuid, reason)
        _check_not_finishing(live)
        live.finishing = trio.Event()
        try:
            yield
        except LayerfsError as error:
            live.error = str(error)
            raise
        finally:
            live.finishing.set()
            live.finishing = None

    async def _layer(self, digest: LayerName, canonical: Digest, live: LiveUpload) -> LayerInfo:
        """What was just published; if it cannot be looked at now, what is known of it anyhow.

        Not cancellable: the upload is finished, and nobody may be told anything else.
        """
        if live.upload.blob is not None:
            return LayerInfo(digest, live.upload.blob)
        with contextlib.suppress(LayerfsError), trio.move_on_after(_CLOSE_DEADLINE, shield=True):
            return LayerInfo(digest, await self.state.registry.blobs.stat(canonical))
        return LayerInfo(digest, BlobInfo(canonical, live.upload.size, time.time_ns()))

    async def cancel(self, name: str, uuid: str) -> None:
        """Deletes an upload, even while it is being written."""
        live = self.live(name, uuid)
        for handle in list(live.readers) if live is not None else []:
            await handle.hold()
        try:
            await self._cancel(live.upload if live is not None else await self._resume(name, uuid))
        except LayerClosed:
            await self._cancel(await self._resume(name, uuid))
        self.forget(name, uuid)

    async def _cancel(self, upload: LayerUpload) -> None:
        with self._changing(upload.name):
            await upload.cancel()

    def forget(self, name: str, uuid: str) -> None:
        """The upload is no more."""
        self._live.pop((name, uuid), None)
        self._listings.removed(name, uuid)

    async def rename(self, name: str, uuid: str, file_name: str) -> None:
        """Gives an upload another name, on every node."""
        with self._changing(name):
            await self.state.service(name).rename_upload(uuid, file_name)
        live = self.live(name, uuid)
        if live is not None:
            live.file_name = file_name
        self._listings.renamed(name, uuid, file_name)

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

    async def _open_for_writing(self, name: str, uuid: str, file_name: str, flags: int) -> UploadHandle:
        # Again after waiting: it may be finished or cancelled by then.
        while (live := self.live(name, uuid) or await self._revive(name, uuid, file_name)).writer is not None:
            await self._wait_for_release(live)
        _check_not_finishing(live)
        self._check_room()
        handle = UploadHandle(self, name, live, flags)
        live.writer, live.writer_gone = handle, trio.Event()
        try:
            if not live.upload.is_usable:
                live.upload = await self._resume(name, uuid)
            await live.upload.open_writer()
            if flags & os.O_TRUNC:
                await live.upload.truncate(0)
        except BaseException:
            self.writer_closed(live)
            if live.finishing is not None:
                raise  # that lets go of the file
            self._live.pop((name, uuid), None)
            with trio.move_on_after(_CLOSE_DEADLINE, shield=True):
                await live.upload.close()
            raise
        live.error = ""
        self._start_hashing(live)
        return handle

    async def _wait_for_release(self, live: LiveUpload) -> None:
        writer = live.writer
        if live.upload.is_flushed:
            with trio.move_on_after(_RELEASE_GRACE):
                await live.writer_gone.wait()
        if live.writer is not None:
            reason = (
                "another program has it open for writing" if live.writer is writer else "another program was faster"
            )
            raise LayerUploadBusy(live.upload.name, live.upload.uuid, f"{live.file_name!r}: {reason}")

    def writer_closed(self, live: LiveUpload) -> None:
        """The writing handle of `live` is gone."""
        live.writer = None
        live.writer_gone.set()
        upload = live.upload
        if live.is_over:
            return
        # Only storage knows how much there is of what was not flushed.
        is_known = upload.is_usable and upload.is_flushed
        self._listings.changed(upload.name, upload.uuid, _info_of(live) if is_known else None)

    async def _resume(self, name: str, uuid: str) -> LayerUpload:
        """The upload as storage has it now. Raises `LayerUploadUnknown`."""
        try:
            return await self.state.service(name).resume(uuid)
        except LayerUploadUnknown:
            self._listings.removed(name, uuid)
            raise

    async def _revive(self, name: str, uuid: str, file_name: str) -> LiveUpload:
        upload = await self._resume(name, uuid)
        live = self.live(name, uuid)  # somebody may have been faster
        return live or self._keep(LiveUpload(upload, file_name))

    async def _revive_file(self, upload: UploadFile) -> LiveUpload:
        return await self._revive(upload.repository, upload.uuid, upload.file_name)

    def _began(self, live: LiveUpload, flags: int) -> tuple[UploadFile, Handle]:
        self._keep(live)
        name, uuid = live.upload.name, live.upload.uuid
        handle = UploadHandle(self, name, live, flags)
        live.writer = handle
        self._listings.began(name, _info_of(live))
        self.state.fresh_repositories.discard(name)
        return UploadFile(self, name, uuid, live.file_name, live.upload.started_at, live.path), handle

    def _keep(self, live: LiveUpload) -> LiveUpload:
        self._live[live.upload.name, live.upload.uuid] = live
        idle = [key for key, other in self._live.items() if other.writer is None and other is not live]
        for key in idle[: max(0, len(idle) - _IDLE_KEPT)]:
            del self._live[key]
        return live

    def _check_room(self) -> None:
        limit = self.state.options.max_uploads
        # Without those whose `close` has returned: that the last descriptor is gone the kernel tells without waiting.
        writing = sum(live.writer is not None and not live.writer.is_leaving for live in self._live.values())
        if writing + self._beginning >= limit:
            raise UploadLimit(f"{limit} uploads are being written on this mount, as many as --max-uploads allows")

    @contextlib.contextmanager
    def _room(self) -> Iterator[None]:
        """Keeps a place for an upload that is about to begin, so that many at once are not too many."""
        self._check_room()
        self._beginning += 1
        try:
            yield
        finally:
            self._beginning -= 1

    def _start_hashing(self, live: LiveUpload) -> None:
        # Where random writes are possible storage is near, and reading what was there before costs little.
        near = self.state.registry.driver.capabilities.random_writes
        if near and live.upload.hash_lag > 0:
            self.state.start(live.upload.hash_stored, f"hashing what upload {live.upload.uuid} had before")


class UploadFile(Node):
    """An upload. It is shown as its writer here has left it; if there is none, as storage has it."""

    def __init__(
        self,
        view: LiveUploads,
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
        self._view = view
        self._started_at = started_at

    @property
    def key(self) -> Hashable:
        return ("upload", self.repository, self.uuid)

    async def attributes(self) -> Attributes:
        live = self._view.live(self.repository, self.uuid)
        if live is not None and live.is_being_written:
            return self._attributes(live.upload.size, live.modified_at)
        info = await self._view.look(self.repository, self.uuid)
        return self._attributes(info.size, info.modified_at)

    def attributes_of(self, info: UploadInfo | None) -> Attributes:
        """As listed, or as its writer here has left it.

        What was not asked for is zero: nobody sees it, because the kernel may not believe it and asks when somebody
        looks.
        """
        live = self._view.live(self.repository, self.uuid)
        if live is not None and live.is_being_written:
            return self._attributes(live.upload.size, live.modified_at)
        return self._attributes(info.size, info.modified_at) if info is not None else self._attributes(0, 0)

    async def extended_attributes(self) -> dict[str, str]:
        live = self._view.live(self.repository, self.uuid)
        started_at = live.upload.started_at if live is not None else self._started_at
        found = {"repository": self.repository, "upload.uuid": self.uuid}
        if started_at is not None:
            found["upload.startedat"] = started_at.isoformat().replace("+00:00", "Z")
        if live is not None and live.error:
            found["error"] = live.error
        return found

    async def open(self, flags: int) -> Handle:
        try:
            return await self._view.open(self.repository, self.uuid, self.file_name, flags)
        except LayerUploadUnknown as error:
            self._view.state.upload_listings.removed(self.repository, self.uuid)
            # It was looked up in what was remembered, so whoever wants to create it was told that it is there.
            raise StaleName(f"{self.path} was removed, or finished, since it was looked up") from error

    async def truncate(self, size: int) -> None:
        self._view.state.check_writable()
        live = self._view.live(self.repository, self.uuid)
        if live is not None and live.writer is not None:
            await live.upload.truncate(size)
            return
        handle = await self._view.open(self.repository, self.uuid, self.file_name, os.O_WRONLY)
        try:
            await handle.truncate(size)
            await handle.flush()
        finally:
            with trio.move_on_after(_CLOSE_DEADLINE, shield=True):
                await handle.release()

    def check_ownership_change(self) -> None:
        """Taken and ignored: `cp -a` and `rsync` insist on it, and it means nothing for what will be a blob."""
        self._view.state.check_writable()

    def _attributes(self, size: int, modified_at: int) -> Attributes:
        # No time-outs: a registry may be appending, and the size is where to resume.
        permissions = self._view.state.permissions(0o644)
        attributes = file_attributes(permissions=permissions, size=size, modified_at=modified_at)
        return replace(attributes, block_size=_WRITTEN_AT_ONCE)


class UploadHandle(Handle):
    """An open upload.

    Reads and writes bypass the kernel's page cache (`direct`): no page of an upload can outlive it as a page of the
    layer, and no mapping of it can be written.
    """

    direct = True

    def __init__(self, view: LiveUploads, repository: str, live: LiveUpload, flags: int) -> None:
        self.path = live.path
        self._view = view
        self._repository = repository
        self._live = live
        self._writes = flags & os.O_ACCMODE != os.O_RDONLY
        self._appends = bool(flags & os.O_APPEND)
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
            self._view.state.start(functools.partial(_store, live), f"storing {self.path}")
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
            self._view.writer_closed(live)

    async def _let_go(self, live: LiveUpload) -> None:
        if live.is_over:
            return
        if live.expected is not None:
            try:
                await self._view.cancel(self._repository, live.upload.uuid)
            finally:
                # If it could not be deleted it is an upload like any other.
                self._view.forget(self._repository, live.upload.uuid)
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
        if reader is not None and not self._view.state.registry.driver.capabilities.random_writes:
            self._ahead = ReadAhead(reader, self._view.state.read_ahead, key=reader)

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
        if self._live.finished is not None:
            return await self._view.state.registry.blobs.open(self._live.finished)
        await self._view.stat(self._repository, self._live.upload.uuid)
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


def _check_not_finishing(live: LiveUpload) -> None:
    if live.finishing is not None:
        raise LayerUploadBusy(live.upload.name, live.upload.uuid, "it is being finished")


async def _store(live: LiveUpload) -> None:
    """Stores what a writer is ahead of storage. If it fails, so does everything else on this upload from then on."""
    try:
        await live.upload.store()
    except LayerfsError as error:
        live.error = str(error)
    finally:
        live.storing = False


def _info_of(live: LiveUpload) -> UploadInfo:
    """A live upload as storage has it, if all of it is there."""
    upload = live.upload
    return UploadInfo(upload.name, upload.uuid, live.file_name, upload.started_at, upload.size, live.modified_at)
