"""Uploads that nobody writes in this process: how it has left them, and how they are read and made objects for good.

To read one, or to seal it, can mean to repack it (`s3_upload`), under the hands of somebody elsewhere who goes on with
it. So it is looked at more than once, and what is known of it from writing it here saves only requests.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Final
from weakref import WeakValueDictionary

from layerfs.driver.objects import StoredObject
from layerfs.driver.s3_bucket import Bucket
from layerfs.driver.s3_copies import Copies
from layerfs.driver.s3_stored_upload import S3Version, StoredUpload, complete, find_upload, known_upload
from layerfs.driver.s3_upload import S3Upload
from layerfs.errors import ContentChanged, PathNotFound, ShortRead

#: Seconds without a change after which an upload of somebody else is not being written, and how often to look. If the
#: last change is as long ago as the latter (nanoseconds), whatever the clocks say, there is no need to wait.
_STILL: Final = 1.5
_LOOKS: Final = 4
_SURELY_STILL: Final = 300 * 10**9

#: How many versions of such an upload are looked at by who reads it, if each is another one before it is read.
_VERSIONS: Final = 3

#: Paths that were written here, of which is kept what the next look at them would otherwise have to ask for.
_WRITTEN_KEPT: Final = 4096


@dataclass(frozen=True, slots=True)
class _Left:
    """An upload as this process has left it."""

    upload_id: str | None
    version: S3Version
    #: Whether nothing that was asked of it can still come (`S3Upload.is_quiet`).
    is_quiet: bool = field(default=False, compare=False)


class _BeingWritten(ContentChanged):
    """An upload of somebody else that does not stand still for long enough to be repacked."""


class LeftUploads:
    """Those of a bucket. A path is `in` it if it was written here."""

    def __init__(self, bucket: Bucket, copies: Copies) -> None:
        self._bucket = bucket
        self._copies = copies
        # None once it is published.
        self._written: OrderedDict[str, _Left | None] = OrderedDict()
        self._repacking: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def __contains__(self, path: str) -> bool:
        return path in self._written

    def repacking(self, path: str) -> asyncio.Lock:
        """Held by whoever repacks an upload to read it, or makes it an object for good."""
        return self._repacking.setdefault(path, asyncio.Lock())

    # --- what is known of them ---------------------------------------------------------------------------------------

    def remember(self, upload: S3Upload) -> None:
        """It is not written any more."""
        # Of one that has failed it is not known what it is like.
        upload_id = upload.upload_id if not upload.has_failed else None
        self._written[upload.path] = _Left(upload_id, upload.version, upload.is_quiet)
        self._written.move_to_end(upload.path)
        while len(self._written) > _WRITTEN_KEPT:
            self._written.popitem(last=False)

    def published(self, path: str) -> None:
        """It is a blob now, and no open upload."""
        if path in self._written:
            self._written[path] = None

    def is_published(self, path: str) -> bool:
        """Whether it is known to be an open upload no more."""
        return path in self._written and self._written[path] is None

    def forget(self, path: str) -> None:
        """Something else is at the path, or nothing."""
        self._written.pop(path, None)

    def forget_below(self, path: str) -> None:
        """Nothing is at the path any more, nor below it."""
        for written in [written for written in self._written if f"{written}/".startswith(f"{path}/")]:
            del self._written[written]

    def is_quiet(self, path: str, state: StoredUpload) -> bool:
        """Whether an upload is as this process has left it, and nothing that was asked of it can still come."""
        left = self._written.get(path)
        return left is not None and left.is_quiet and left == _Left(state.upload_id, state.version)

    def _disturb(self, path: str) -> None:
        """It is going to be completed. If that fails the request can come late, and leaves out what is stored then."""
        left = self._written.get(path)
        if left is not None:
            self._written[path] = replace(left, is_quiet=False)

    async def find(self, path: str) -> StoredUpload | None:
        """An upload that this process has written before, if it is still open: found by one request, not two."""
        left = self._written.get(path)
        if left is None or left.upload_id is None:
            return None
        with suppress(ContentChanged):
            state = await known_upload(self._bucket, path, left.upload_id)
            # One without parts may have an object beside it that counts.
            return state if state.parts else None
        return None

    # --- reading -----------------------------------------------------------------------------------------------------

    async def read(self, path: str, offset: int, length: int, size: int) -> bytes:
        """Reads an upload that nobody writes in this process, from one version of it.

        Somebody elsewhere who goes on with it can make another object of it between a look and the request for what
        was found.
        """
        for _ in range(_VERSIONS - 1):
            try:
                return await self._read_version(path, offset, length, size)
            except _BeingWritten:
                raise
            except ContentChanged:
                continue
        return await self._read_version(path, offset, length, size)

    async def _read_version(self, path: str, offset: int, length: int, size: int) -> bytes:
        end = offset + length
        found = None
        with suppress(ShortRead):  # while it is repacked it looks empty to who asks for its parts and its object
            found = (await self._find_readable(path, end, size)).found
        if found is None or found.size < end:
            # The kernel asks for several pages at once: whoever comes later finds what the first has made.
            async with self.repacking(path):
                state = await self._find_readable(path, end, size)
                found = state.found
                if found is None or found.size < end:
                    return await self._read_repacked(S3Upload(self._bucket, self._copies, path, state), offset, length)
        return await self._bucket.get_range(path, offset, length, size=found.size, etag=found.etag)

    async def _read_repacked(self, upload: S3Upload, offset: int, length: int) -> bytes:
        self._disturb(upload.path)
        content = await upload.read(offset, length)
        if upload.path in self._written:
            self.remember(upload)
        return content

    async def _find_readable(self, path: str, end: int, size: int) -> StoredUpload:
        """An upload of somebody else, once it may be repacked so that its bytes up to `end` can be read.

        Whoever writes it would have the ground taken from under his feet, and on AWS a part that is stored between our
        looking and our completing is lost. So it must have stood still for a while.
        """
        state = await self._find_of_size(path, end, size)
        for _ in range(_LOOKS):
            readable = state.found.size if state.found is not None else 0
            is_still = time.time_ns() - state.modified_at > _SURELY_STILL
            if readable >= end or is_still or self._written.get(path) == _Left(state.upload_id, state.version):
                return state
            await asyncio.sleep(_STILL)
            before, state = state, await self._find_of_size(path, end, size)
            if before == state:
                return state
        raise _BeingWritten(path, "somebody else is writing it, and S3 lets nobody read it meanwhile")

    async def _find_of_size(self, path: str, end: int, size: int) -> StoredUpload:
        state = await find_upload(self._bucket, path, look_at_object=True)
        if state is None or state.size < end:
            raise ShortRead(path, f"it has {state.size if state is not None else 0} bytes now, not {size}")
        return state

    # --- sealing -----------------------------------------------------------------------------------------------------

    async def seal(self, path: str, upload_id: str | None, *, is_upload: bool) -> tuple[StoredObject, S3Version] | None:
        """Makes an upload an object for good; None if there is neither. Whoever asks is `repacking` it.

        `upload_id` is that of the upload, if it is known from writing it; `is_upload`: there may be one at the path.
        """
        left = self._written.get(path)
        known = upload_id or (left.upload_id if left is not None else None)
        state = await self._find_for_sealing(path, known, is_upload=is_upload)
        if state is None:
            return None
        if state.stray:
            state = await self._without_stray(path, state)
        if state.found is not None and state.is_object:
            if state.upload_id is not None:
                await self._bucket.abort_upload(path, state.upload_id)
            return state.found, state.version
        if not state.parts:
            assert state.upload_id is not None  # noqa: S101
            await self._bucket.abort_upload(path, state.upload_id)
            await self._bucket.put(path, b"")
            found = await self._bucket.head(path)
            return found, S3Version(found.etag, found.size)
        return await self._seal_parts(path, state)

    async def _seal_parts(self, path: str, state: StoredUpload) -> tuple[StoredObject, S3Version]:
        self._disturb(path)
        found = await complete(self._bucket, path, state)
        version = state.version
        if "-" in version.etag and found.etag != version.etag:
            # Not made of the parts that were listed: of whatever it is, nobody knows anything yet.
            version = S3Version(found.etag, found.size)
        self._written[path] = _Left(None, version)
        return found, version

    async def _without_stray(self, path: str, state: StoredUpload) -> StoredUpload:
        """Leaves out what comes after a gap."""
        self._disturb(path)
        await S3Upload(self._bucket, self._copies, path, state).repack()
        again = await find_upload(self._bucket, path, look_at_object=True)
        if again is None or again.stray or again.size != state.size:
            raise ContentChanged(path)
        return again

    async def _find_for_sealing(self, path: str, upload_id: str | None, *, is_upload: bool) -> StoredUpload | None:
        if upload_id is not None:
            with suppress(ContentChanged):
                state = await known_upload(self._bucket, path, upload_id)
                if state.parts:
                    return state
        if is_upload:
            return await find_upload(self._bucket, path, look_at_object=True)
        try:
            return StoredUpload(None, (), (), await self._bucket.head(path))
        except PathNotFound:
            return None
