"""Blobs that are kept on this machine: fetched into the content cache while they are read, and read from there.

A `Filling` fetches one blob from its beginning. Who reads in order follows it, and needs no requests of his own; who
reads elsewhere has his own until the blob is complete. Where reads are to be verified nothing is given out before
that, however large the blob is: whoever reads a part of it, and nothing else, is to have the right bytes too.
"""

from __future__ import annotations

import logging
from typing import Final

import trio

from layerfs.digest import Digest
from layerfs.driver.interface import FileReader
from layerfs.errors import BlobDamaged, BlobNotVerifiedYet, BlobUnverifiable, LayerfsError
from layerfs.registry import BlobInfo, BlobStore
from layerfs.registry.content_cache import ContentCache, ContentUnreadable, NewContent
from layerfs.registry.content_file import ContentDamaged, ContentMismatch
from layerfs.view.nodes import Handle
from layerfs.view.readahead import MIB, PartPool, ReadAhead, Start

log = logging.getLogger(__name__)

#: Bytes that are hashed and stored at a time.
_CHUNK: Final = 4 * MIB

#: Bytes that were stored and are kept in memory for those who follow.
_KEPT_BEHIND: Final = 16 * MIB

#: Up to here a blob is fetched when its first byte is read; a larger one when the next read comes in order.
_SMALL_BLOB: Final = 8 * MIB

#: Bytes behind what is stored that a reader waits for rather than ask storage himself.
_FOLLOWED: Final = 80 * MIB

#: Bytes that are fetched to the end though nobody reads the blob any more. What is left of others can be gone on with.
_FINISHED: Final = 64 * MIB

#: Seconds before a read runs out of time in which it says how far the blob has come, instead of only that it is late.
_TOLD_BEFORE: Final = 0.1

#: Bytes by which a read may come before or after the one expected: the kernel sends several at once.
_SLACK: Final = 4 * MIB

#: Seconds between looks at a blob that another process is fetching.
_POLL: Final = 0.1


class Filling:
    """One blob on its way into the cache, and those who follow it."""

    def __init__(self, contents: Contents, blob: BlobInfo) -> None:
        self.blob = blob
        self.users = 0
        #: Why the blob is not in the cache, when `done` is set.
        self.error: LayerfsError | None = None
        self.done = trio.Event()
        self.scope = trio.CancelScope()
        #: Whether somebody has run out of time waiting for it, and will come again.
        self.is_late = False
        self._contents = contents
        self._new: NewContent | None = None
        self._progress = trio.Event()

    @property
    def written(self) -> int:
        """Bytes that are here."""
        return self._new.written if self._new is not None else 0

    @property
    def is_complete(self) -> bool:
        """Whether the cache has the blob."""
        return self.done.is_set() and self.error is None

    def is_near(self, offset: int) -> bool:
        """Whether the byte at `offset` is one of those that this process has fetched, or will soon."""
        if self.done.is_set():
            return False
        return self._new is None or self._new.resumed_at <= offset <= self._new.written + _FOLLOWED

    async def wait_for_more(self) -> None:
        """Waits until more is here, or no more comes."""
        if not self.done.is_set():
            await self._progress.wait()

    async def wait_verified(self) -> None:
        """Waits until the cache has the blob. Raises why it has not; in time also that it has it not yet."""
        with trio.move_on_at(trio.current_effective_deadline() - _TOLD_BEFORE):
            await self.done.wait()
        if not self.done.is_set():
            self.is_late = True
            raise BlobNotVerifiedYet(self.blob.digest, self.written, self.blob.size)
        if self.error is not None:
            raise self.error

    async def read(self, offset: int, length: int) -> bytes | None:
        """Bytes that are here, not verified yet; None if they are not."""
        new = self._new
        if new is None or self.done.is_set() or not new.resumed_at <= offset <= offset + length <= new.written:
            return None
        try:
            return await new.read(offset, length)
        except (ContentDamaged, OSError):
            return None

    async def run(self) -> None:
        """Fetches the blob. How it ended is in `error`."""
        self.error = BlobUnverifiable(self.blob.digest, "fetching it was given up")
        try:
            with self.scope:
                await self._fill()
                self.error = None
        except LayerfsError as error:
            self.error = error
            if isinstance(error, BlobDamaged) and not self._contents.verify:
                # Whoever reads it is not told.
                log.warning("%s", error)
        except OSError as error:
            self._contents.cache.pause(error)
            self.error = BlobUnverifiable(self.blob.digest, f"the cache cannot take it: {error.strerror}")
        finally:
            self.done.set()
            self._tell()
            self._contents.forget_unused(self)

    async def _fill(self) -> None:
        new = await self._begin()
        if new is None:
            return
        is_whole = keep = False
        ahead: ReadAhead | None = None
        try:
            reader = await self._contents.open_blob(self.blob)
            ahead = ReadAhead(reader, self._contents.pool, self.blob.digest, kept_behind=_KEPT_BEHIND)
            await new.resume()
            self._new = new
            self._tell()
            keep = True
            while not is_whole:
                await self._fetch(new, ahead)
                is_whole = await self._finish(new)
        except (OSError, BlobDamaged):
            keep = False
            raise
        finally:
            if ahead is not None:
                ahead.close()
            if not is_whole:
                new.leave(keep=keep)

    async def _begin(self) -> NewContent | None:
        """A place in the cache; None if the blob is there already."""
        cache, blob = self._contents.cache, self.blob
        while True:
            if not cache.fits(blob.size):
                raise BlobUnverifiable(blob.digest, f"its {blob.size} bytes are more than the cache may have")
            # What is verified can be had from nowhere else, so there it is tried each time.
            new = await cache.begin(blob.digest, blob.size, is_needed=self._contents.verify)
            if new is not None:
                return new
            if cache.failure:
                raise BlobUnverifiable(blob.digest, f"the cache fails: {cache.failure}")
            if not self._contents.waits:
                raise BlobUnverifiable(blob.digest, "the cache has no room for it, or another process is fetching it")
            await trio.sleep(_POLL)
            found = await cache.find(blob.digest, blob.size)
            if found is not None:
                found.close()
                return None

    async def _fetch(self, new: NewContent, ahead: ReadAhead) -> None:
        while new.written < new.size:
            await new.write(await ahead.read_some(new.written, _CHUNK))
            self._tell()

    async def _finish(self, new: NewContent) -> bool:
        """Whether the blob is in the cache; if not, it is to be fetched again, because others had begun it."""
        try:
            content = await new.finish()
        except ContentMismatch as error:
            if new.resumed_at:
                await new.start_again()
                return False
            raise BlobDamaged(self.blob.digest, error.actual) from None
        content.close()
        return True

    def _tell(self) -> None:
        progress, self._progress = self._progress, trio.Event()
        progress.set()


class Contents:
    """The content cache of a registry. With `verify`, only verified bytes are given out.

    `start` runs a task in the background. `waits`: a blob that another process fetches is waited for.
    """

    def __init__(
        self,
        cache: ContentCache,
        blobs: BlobStore,
        pool: PartPool,
        start: Start,
        *,
        verify: bool = False,
        waits: bool = False,
    ) -> None:
        self.cache = cache
        self._blobs = blobs
        self.pool = pool
        self.verify = verify
        self.waits = verify or waits
        self._start = start
        self._fillings: dict[Digest, Filling] = {}

    async def open(self, path: str, blob: BlobInfo, reader: FileReader) -> Handle:
        """A handle of a blob that `reader` reads from storage."""
        return ContentHandle(self, path, blob, reader, await self.cache.find(blob.digest, blob.size))

    async def open_blob(self, blob: BlobInfo) -> FileReader:
        """A reader of a blob that is known to be in storage."""
        return await self._blobs.open(blob.digest, known=blob)

    def follow(self, blob: BlobInfo) -> Filling:
        """The filling of a blob, begun if need be; ends with `leave`."""
        filling = self._fillings.get(blob.digest)
        if filling is None or filling.done.is_set() or filling.scope.cancel_called:
            filling = self._fillings[blob.digest] = Filling(self, blob)
            self._start(filling.run)
        filling.users += 1
        return filling

    def leave(self, filling: Filling) -> None:
        """One less follows it; without any it ends, unless it is nearly done, or was too slow for those."""
        filling.users -= 1
        if filling.users <= 0 and not filling.is_late and filling.blob.size - filling.written > _FINISHED:
            filling.scope.cancel()
        self.forget_unused(filling)

    def forget_unused(self, filling: Filling) -> None:
        """Forgets a filling that has ended and that nobody follows."""
        is_ours = self._fillings.get(filling.blob.digest) is filling
        if is_ours and filling.users <= 0 and filling.done.is_set():
            del self._fillings[filling.blob.digest]


class ContentHandle(Handle):
    """An open blob of a mount with a content cache."""

    def __init__(
        self, contents: Contents, path: str, blob: BlobInfo, reader: FileReader, cached: FileReader | None
    ) -> None:
        self.path = path
        self._contents = contents
        self._blob = blob
        self._reader = reader
        self._ahead = ReadAhead(reader, contents.pool, key=blob.digest)
        self._cached = cached
        self._filling: Filling | None = None
        # How far this handle has read in order from the beginning, and whether it has at all.
        self._next = 0
        self._in_order = True

    def read_nowait(self, offset: int, length: int) -> memoryview | bytes | None:
        if self._cached is not None:
            return self._cached.read_nowait(offset, length)
        return None if self._contents.verify else self._reader.read_nowait(offset, length)

    async def read(self, offset: int, length: int) -> bytes:
        length = min(length, self._blob.size - offset)
        if length <= 0:
            return b""
        self._notice(offset, offset + length)
        while True:
            content = await self._read_cached(offset, length)
            if content is None and self._contents.verify:
                await self._wait_verified()
            elif content is None:
                content = await self._read_along(offset, length)
            if content is not None:
                return content

    async def release(self) -> None:
        self._ahead.close()
        if self._cached is not None:
            self._cached.close()
        self._leave()

    def _notice(self, offset: int, end: int) -> None:
        self._in_order = self._in_order and abs(offset - self._next) <= _SLACK
        self._next = max(self._next, end)

    async def _read_cached(self, offset: int, length: int) -> bytes | None:
        if self._cached is None:
            return None
        try:
            return await self._cached.read(offset, length)
        except ContentUnreadable:
            if self._cached is not None:
                self._cached.close()
            self._cached = None
            return None

    async def _read_along(self, offset: int, length: int) -> bytes | None:
        """From what is being fetched, or from storage; None if it is in the cache now."""
        if self._filling is None and self._in_order and (offset or self._blob.size <= _SMALL_BLOB):
            self._follow()
        filling = self._filling
        while filling is not None and filling.is_near(offset):
            # What it has asked for is in memory before it is stored, and a while after that.
            content = await self._ahead.read_shared(offset, length) or await filling.read(offset, length)
            if content is not None:
                return content
            await filling.wait_for_more()
        if filling is not None and filling.is_complete and await self._switch():
            return None
        return await self._ahead.read(offset, length)

    async def _wait_verified(self) -> None:
        """Until the blob was in the cache; raises why it cannot be there."""
        filling = self._filling or self._follow()
        try:
            await filling.wait_verified()
        except LayerfsError:
            if filling.done.is_set():
                # Whoever reads next may find it better.
                self._leave()
            raise
        if not await self._switch():
            self._leave()

    def _follow(self) -> Filling:
        self._filling = self._contents.follow(self._blob)
        return self._filling

    async def _switch(self) -> bool:
        """Reads from the cache from now on, if it still has the blob."""
        found = await self._contents.cache.find(self._blob.digest, self._blob.size)
        if self._cached is None:
            self._cached = found
        elif found is not None:
            found.close()
        return self._cached is not None

    def _leave(self) -> None:
        filling, self._filling = self._filling, None
        if filling is not None:
            self._contents.leave(filling)
