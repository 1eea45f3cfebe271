"""Copies that a store makes of objects in a bucket, without a byte coming here: whole or in parts, and of one version.

Not every store looks at the condition of a copy (Ceph 16 does not), and Swift 2.30 compares it with something else. So
what is said of the copy is compared, or the original is looked at again: an ETag that was gone does not come back.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, TypeVar

from layerfs.driver.at_once import each, gather
from layerfs.driver.objects import StoredObject
from layerfs.driver.s3_answers import Part
from layerfs.driver.s3_bucket import Bucket
from layerfs.driver.s3_errors import UploadGone
from layerfs.driver.s3_options import COPY_THRESHOLD_ON_AWS, LARGEST_COPY, MOST_PARTS, SMALLEST_PART
from layerfs.driver.url_options import MEBIBYTE
from layerfs.errors import ContentChanged, DriverError

#: Parts of one object that are copied at a time, within the store.
COPIES_AT_ONCE: Final = 8

#: Bytes that one request copies into a part at the most. Stores that really copy take 2 s for this when they are idle,
#: and what is done when a copy is given up is not done again.
_COPIED_PART: Final = 256 * MEBIBYTE

_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class _Copying:
    """A copy in parts that is not finished: of what, and what there is of it."""

    upload_id: str
    found: StoredObject
    parts: dict[int, Part]


class Copies:
    """Those that are made in a bucket, and those that were given up."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket
        # Given up, mostly because they took too long, by their destinations: who tries again goes on.
        self._unfinished: dict[str, _Copying] = {}
        # Until a store has refused a condition that was right.
        self._compares_originals = True

    async def close(self) -> None:
        """Drops what was given up."""
        await each(self._bucket.abort_upload(path, copying.upload_id) for path, copying in self._unfinished.items())
        self._unfinished.clear()

    async def copy(self, source: str, destination: str, found: StoredObject) -> StoredObject | None:
        """Copies an object, whole or not at all. Raises `ContentChanged` if it is not `found` by now.

        Returns the copy; None if the store has not told when it was made, as none does of what is copied in parts.
        """
        if found.size > self._threshold:
            await self._copy_in_parts(source, destination, found)
            return None
        copied = await self._on_condition(
            source, found, lambda etag: self._bucket.copy_object(source, destination, size=found.size, etag=etag)
        )
        if copied.etag != found.etag:
            now = await self._bucket.head(source)
            if now.etag == copied.etag:
                # What has been copied is what took the place of `found`.
                await self._bucket.delete(destination)
            _check_same(source, found, now)
        return copied if copied.etag and copied.modified_at else None

    async def copy_into_upload(self, path: str, found: StoredObject, size: int) -> tuple[str, list[Part]]:
        """Makes the first `size` bytes of an object the parts of a new upload at its path; returns its id and them.

        Raises `ContentChanged` as `copy` does. Who tries again after a failure goes on with what there is.
        """
        has_begun = path in self._unfinished
        copying = await self._begin(path, found)
        try:
            parts = await self._copy_pieces(path, path, copying.upload_id, found, size, copying.parts)
            if not self._compares_originals:
                _check_same(path, found, await self._bucket.head(path))
        except UploadGone:
            if not has_begun:
                raise
            # Somebody else has dropped it meanwhile.
            return await self.copy_into_upload(path, found, size)
        except BaseException:
            self._unfinished[path] = copying
            raise
        return copying.upload_id, parts

    def is_unfinished(self, path: str, upload_id: str) -> bool:
        """Whether an open upload is a copy that was given up, and that will be gone on with."""
        return path in self._unfinished and self._unfinished[path].upload_id == upload_id

    async def _copy_in_parts(self, source: str, destination: str, found: StoredObject) -> None:
        copying = await self._begin(destination, found)
        try:
            parts = await self._copy_pieces(source, destination, copying.upload_id, found, found.size, copying.parts)
            _check_same(source, found, await self._bucket.head(source))
            await self._bucket.complete_upload(destination, copying.upload_id, parts)
        except asyncio.CancelledError:
            self._unfinished[destination] = copying
            raise
        except Exception:
            with contextlib.suppress(DriverError):
                await asyncio.shield(self._bucket.abort_upload(destination, copying.upload_id))
            raise

    async def _begin(self, destination: str, found: StoredObject) -> _Copying:
        """A copy that was given up, to go on with; else a new one."""
        earlier = self._unfinished.pop(destination, None)
        if earlier is not None:
            if (earlier.found.size, earlier.found.etag) == (found.size, found.etag):
                return earlier
            await self._bucket.abort_upload(destination, earlier.upload_id)
        return _Copying(await self._bucket.create_upload(destination), found, {})

    async def _copy_pieces(
        self, source: str, destination: str, upload_id: str, found: StoredObject, size: int, made: dict[int, Part]
    ) -> list[Part]:
        """`made` has the parts that were made before, and gets those that are made now."""
        pieces = _pieces(size, self._part_size(size))
        is_whole = size == found.size and len(pieces) == 1
        slots = asyncio.Semaphore(COPIES_AT_ONCE)

        async def one(number: int, start: int, length: int) -> None:
            async with slots:
                made[number] = await self._on_condition(
                    source,
                    found,
                    lambda etag: self._bucket.copy_part(
                        source, destination, upload_id, number, start, length, is_whole=is_whole, etag=etag
                    ),
                )

        numbered = enumerate(pieces, 1)
        await gather([one(number, start, length) for number, (start, length) in numbered if number not in made])
        return [made[number] for number in sorted(made)]

    async def _on_condition(
        self, source: str, found: StoredObject, copy: Callable[[str | None], Awaitable[_Result]]
    ) -> _Result:
        """What `copy` gives, on condition of the ETag of `found` if the store can compare it with that of the original.

        Where it cannot, whoever asks must look at the original once more.
        """
        if self._compares_originals:
            try:
                return await copy(found.etag)
            except UploadGone:
                raise
            except ContentChanged:
                _check_same(source, found, await self._bucket.head(source))
                self._compares_originals = False
        return await copy(None)

    @property
    def _threshold(self) -> int:
        """Bytes up to which one request copies an object."""
        given = self._bucket.options.multipart_copy_threshold
        if given is not None:
            return given
        return COPY_THRESHOLD_ON_AWS if self._bucket.is_on_aws else LARGEST_COPY

    def _part_size(self, size: int) -> int:
        """Bytes that one request copies into a part: as many as it copies whole, within limits."""
        return max(min(_COPIED_PART, max(self._threshold, SMALLEST_PART)), -(-size // MOST_PARTS))


def _pieces(size: int, length: int) -> list[tuple[int, int]]:
    """`size` bytes in pieces of about the same size, none smaller than `length` unless it is the only one."""
    count = max(1, size // length)
    length = -(-size // count)
    return [(start, min(length, size - start)) for start in range(0, size, length)]


def _check_same(path: str, found: StoredObject, now: StoredObject) -> None:
    """Raises `ContentChanged` unless an object is still what it was."""
    if (now.size, now.etag) != (found.size, found.etag):
        raise ContentChanged(path, "it was replaced while it was copied")
