"""What S3 answers, as values: objects, parts, open uploads. From what the SDK makes of an answer, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from layerfs.driver.objects import StoredObject
from layerfs.driver.store_errors import is_page


@dataclass(frozen=True, slots=True)
class Part:
    """A part of an open multipart upload, as the store has it."""

    number: int
    size: int
    etag: str
    modified_at: int = 0
    #: Whether it was asked for more than once when it was stored here: one of these requests may still come.
    may_come_again: bool = field(default=False, compare=False)


@dataclass(frozen=True, slots=True)
class OpenUpload:
    """An open multipart upload, by its key. `began_at` is in nanoseconds since 1970, 0 if the store does not say."""

    key: str
    upload_id: str
    began_at: int = 0


def is_of_store(operation: str, answer: Mapping[str, Any]) -> bool:
    """Whether an answer that means success is a store's, and no page of something on the way to it, which would be an
    empty listing, or a part that was stored."""
    if operation in {"get_object", "head_object"}:
        return "LastModified" in answer
    if operation in {"put_object", "upload_part"}:
        return "ETag" in answer
    http = answer["ResponseMetadata"]
    return not is_page(http["HTTPStatusCode"], http["HTTPHeaders"], request_id="x-amz-request-id")


def etag_of(answer: Mapping[str, Any]) -> str:
    """An ETag without its quotes, which not every store sends every time; empty if there is none."""
    return str(answer.get("ETag") or "").strip('"')


def stored_object(answer: Mapping[str, Any]) -> StoredObject:
    return StoredObject(answer["ContentLength"], etag_of(answer), _nanoseconds(answer["LastModified"]))


def copied_object(answer: Mapping[str, Any], size: int) -> StoredObject:
    """A copy of `size` bytes; its ETag is empty, and its time 0, if that is not said."""
    result = answer.get("CopyObjectResult", {})
    copied_at = _whole_seconds(result["LastModified"]) if "LastModified" in result else 0
    return StoredObject(size, etag_of(result), copied_at)


def listed_object(found: Mapping[str, Any]) -> StoredObject:
    return StoredObject(found["Size"], etag_of(found), _whole_seconds(found["LastModified"]))


def open_upload(found: Mapping[str, Any]) -> OpenUpload:
    began_at = _nanoseconds(found["Initiated"]) if "Initiated" in found else 0
    return OpenUpload(found["Key"], found["UploadId"], began_at)


def listed_part(found: Mapping[str, Any]) -> Part:
    modified_at = _nanoseconds(found["LastModified"]) if "LastModified" in found else 0
    return Part(found["PartNumber"], found["Size"], etag_of(found), modified_at)


def _whole_seconds(time: datetime) -> int:
    """In nanoseconds. A HEAD tells no more of the time of an object, which must not have two."""
    return _nanoseconds(time.replace(microsecond=0))


def _nanoseconds(time: datetime) -> int:
    return int(time.timestamp() * 1e9)
