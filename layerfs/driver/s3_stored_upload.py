"""What a store has of an unfinished upload: looked for, added up, and made an object. Runs on asyncio.

The parts of an open multipart upload, an object beside it, or both (`s3_upload`). Parts that are stored side by side
can leave a gap when the process is killed: what comes after a gap does not count.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final

from layerfs.driver.at_once import gather
from layerfs.driver.objects import StoredObject
from layerfs.driver.s3_answers import OpenUpload, Part
from layerfs.driver.s3_bucket import Bucket
from layerfs.driver.s3_errors import UploadGone
from layerfs.errors import ContentChanged, DriverError, PathNotFound

#: What the ETag of an object follows from in the ETag of a part; of a part that was copied SeaweedFS adds of how many
#: pieces it is.
_MD5: Final = re.compile("([0-9a-f]{32})(?:-[0-9]+)?")


@dataclass(frozen=True, slots=True)
class S3Version:
    """The content of an upload, by the ETag that its parts have as an object: equal to that of the object itself where
    the store makes ETags as AWS does without KMS. Equal versions are equal bytes."""

    etag: str
    size: int


@dataclass(frozen=True, slots=True)
class StoredUpload:
    """What the store has of an upload."""

    upload_id: str | None
    #: Those that count: numbered from 1 without a gap.
    parts: tuple[Part, ...]
    #: Those after a gap.
    stray: tuple[Part, ...]
    #: What is at the path: the beginning of what the parts hold, or more than that, and then all there is.
    found: StoredObject | None
    #: When the open upload was begun, in nanoseconds since 1970; 0 if unknown.
    began_at: int = 0
    #: Other open uploads at the path, which do not count.
    others: tuple[str, ...] = ()

    @property
    def is_object(self) -> bool:
        """Whether the object is the content, and not the parts."""
        return self.found is not None and (self.upload_id is None or self.found.size > total(self.parts))

    @property
    def size(self) -> int:
        return self.found.size if self.found is not None and self.is_object else total(self.parts)

    @property
    def modified_at(self) -> int:
        """Nanoseconds since 1970; 0 if unknown."""
        times = [part.modified_at for part in self.parts]
        return max(times, default=self.found.modified_at if self.found is not None else self.began_at)

    @property
    def version(self) -> S3Version:
        if self.found is not None and self.is_object:
            return S3Version(self.found.etag, self.found.size)
        return version_of(self.parts)


def total(parts: Sequence[Part]) -> int:
    """The bytes in all of the parts."""
    return sum(part.size for part in parts)


def version_of(parts: Sequence[Part]) -> S3Version:
    """The version that an object made of these parts has."""
    matches = [_MD5.fullmatch(part.etag) for part in parts]
    if all(matches):
        sums = b"".join(bytes.fromhex(match[1]) for match in matches if match is not None)
        return S3Version(f"{hashlib.md5(sums, usedforsecurity=False).hexdigest()}-{len(parts)}", total(parts))
    # Of an encrypted object nothing can be foretold, but its parts can be compared with themselves.
    return S3Version("+".join(part.etag for part in parts), total(parts))


async def find_upload(
    bucket: Bucket, path: str, *, opened: Sequence[OpenUpload] | None = None, look_at_object: bool
) -> StoredUpload | None:
    """What the store has at `path`: an open upload, an object or both; None if there is neither.

    `opened` are the open uploads, if somebody has listed them already. The object is looked at only if
    `look_at_object`, or if there are no parts: who only wants to know how much there is gets that by two requests.
    """
    key = bucket.key(path)
    if look_at_object:
        opened, found = await gather([_opened_at(bucket, path, opened), _object_at(bucket, path)])
    else:
        opened, found = await _opened_at(bucket, path, opened), None
    uploads = [upload for upload in opened or () if upload.key == key]
    best = await _fullest(bucket, path, uploads)
    if not look_at_object and not best.parts:
        found = await _object_at(bucket, path)
    if best.upload_id is None and found is None:
        return None
    others = tuple(upload.upload_id for upload in uploads if upload.upload_id != best.upload_id)
    if others:
        bucket.begun_twice.add(path)
    return replace(best, found=found, others=others)


async def known_upload(bucket: Bucket, path: str, upload_id: str, *, is_listed: bool = False) -> StoredUpload:
    """An open upload whose id is known. Raises `ContentChanged` if it is not open any more."""
    return _split(upload_id, await bucket.list_parts(path, upload_id, is_listed=is_listed))


async def _opened_at(bucket: Bucket, path: str, opened: Sequence[OpenUpload] | None) -> Sequence[OpenUpload]:
    return opened if opened is not None else await bucket.list_uploads(path, bucket.key(path))


async def _object_at(bucket: Bucket, path: str) -> StoredObject | None:
    try:
        return await bucket.head(path)
    except PathNotFound:
        return None


async def _fullest(bucket: Bucket, path: str, uploads: Sequence[OpenUpload]) -> StoredUpload:
    """The upload with the most in it, if several have one key: requests that were repeated leave empty ones."""
    states = [_split(None, [])]
    for upload in uploads:
        with suppress(ContentChanged):
            state = await known_upload(bucket, path, upload.upload_id, is_listed=True)
            states.append(replace(state, began_at=upload.began_at))
    return max(states, key=lambda state: (state.size, state.upload_id is not None))


def _split(upload_id: str | None, parts: Sequence[Part]) -> StoredUpload:
    whole = sum(1 for number, part in enumerate(parts, 1) if part.number == number)
    return StoredUpload(upload_id, tuple(parts[:whole]), tuple(parts[whole:]), None)


async def complete(bucket: Bucket, path: str, state: StoredUpload) -> StoredObject:
    """Makes the parts of an open upload the object at `path`; also if it was done before and nobody was told.

    Raises `UploadGone` if it was completed or aborted by somebody else.
    """
    assert state.upload_id is not None  # noqa: S101
    size = total(state.parts)
    try:
        etag = await bucket.complete_upload(path, state.upload_id, state.parts)
    except DriverError as error:
        with suppress(DriverError):
            found = await bucket.head(path)
            if found.size == size:
                return found
        if await _is_gone(bucket, path, state.upload_id):
            # To Ceph it is one that is just being completed, which is an error of its own.
            raise UploadGone(path, "somebody else has completed or aborted it") from error
        raise error  # noqa: TRY201 - the first, not one of the look at what there is
    etag = etag or state.version.etag
    # Where it is neither told nor foretold it must be asked for.
    return StoredObject(size, etag, 0) if _is_foretold(etag) else await bucket.head(path)


async def _is_gone(bucket: Bucket, path: str, upload_id: str) -> bool:
    """Whether an upload is certainly not open any more."""
    try:
        await bucket.list_parts(path, upload_id)
    except UploadGone:
        return True
    except DriverError:
        return False
    return False


def _is_foretold(etag: str) -> bool:
    return "+" not in etag
