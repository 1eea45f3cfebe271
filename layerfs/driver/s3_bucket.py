"""The requests that can be made of a bucket, each a method: paths in, the driver's errors out. Runs on asyncio.

How they are made, and made again, is the business of `s3_client`. Only the body of a GET, which comes after the SDK has
returned, is asked for a second time here.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import zlib
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import Any, Final, cast

import aiohttp
from botocore import exceptions

from layerfs.driver.at_once import ByteBudget, gather
from layerfs.driver.body import Body
from layerfs.driver.buffers import BufferPool
from layerfs.driver.objects import Page, StoredObject
from layerfs.driver.ranges import check_range
from layerfs.driver.s3_answers import (
    OpenUpload,
    Part,
    copied_object,
    etag_of,
    listed_object,
    listed_part,
    open_upload,
    stored_object,
)
from layerfs.driver.s3_client import Client, Refused
from layerfs.driver.s3_errors import UploadGone
from layerfs.driver.s3_options import S3Options
from layerfs.driver.url_options import MEBIBYTE
from layerfs.errors import (
    AccessDenied,
    BackendFailure,
    ContentChanged,
    ContentTooLarge,
    DriverError,
    PathNotFound,
    ShortRead,
    UnsupportedByDriver,
)

#: Requests in flight, by kind, so that a long listing cannot starve reads. 64 HEADs keep one loop busy at any latency.
#: Of reads a mount makes 48 ahead of its readers; those that somebody waits for must find a place beside them.
METADATA_REQUESTS: Final = 64
READ_REQUESTS: Final = 128
WRITE_REQUESTS: Final = 32

#: Bytes that all uploads together have on their way.
PART_MEMORY: Final = 256 * MEBIBYTE

#: Bytes from which on a body is received in buffers that are used again; nearly all such bodies have just so many.
_BUFFERED: Final = 8 * MEBIBYTE

#: Keys that a page of a listing has at most.
PAGE_KEYS: Final = 1000

#: Keys that one request deletes.
_DELETED_AT_ONCE: Final = 1000

#: What a body ends with that did not come whole.
_BROKEN_BODY: Final = (
    aiohttp.ClientError,
    exceptions.ResponseStreamingError,
    exceptions.IncompleteReadError,
    exceptions.ReadTimeoutError,
)


class Bucket:
    """A bucket, and the prefix in it that is the root. Opened by the first request."""

    def __init__(self, options: S3Options) -> None:
        self.options = options
        self._prefix = f"{options.root_prefix}/" if options.root_prefix else ""
        self._client = Client(options, connections=METADATA_REQUESTS + READ_REQUESTS + WRITE_REQUESTS)
        #: What the parts that are on their way, of all uploads together, may take up.
        self.part_memory = ByteBudget(PART_MEMORY)
        #: And their memory.
        self.part_buffers = BufferPool(options.part_size, kept=max(1, PART_MEMORY // options.part_size))
        #: Paths at which an upload may have been begun twice, so that whoever ends it must look for others.
        self.begun_twice: set[str] = set()
        self._buffers = BufferPool(_BUFFERED)
        self._metadata = asyncio.Semaphore(METADATA_REQUESTS)
        self._reads = asyncio.Semaphore(READ_REQUESTS)
        self._writes = asyncio.Semaphore(WRITE_REQUESTS)

    @property
    def is_on_aws(self) -> bool:
        """Whether it is AWS that has the bucket; known since the first request, if only the SDK knows where it is."""
        return self._client.is_aws

    def key(self, path: str) -> str:
        """The key of a path; with a slash at the end where the path is `/`, so that it can be listed."""
        return self._prefix + path[1:]

    def path(self, key: str) -> str:
        """The path of a key below the root."""
        return "/" + key[len(self._prefix) :]

    async def close(self) -> None:
        await self._client.close()

    # --- objects -------------------------------------------------------------------------------------------------

    async def head(self, path: str) -> StoredObject:
        """Raises `PathNotFound`."""
        try:
            return stored_object(await self._ask(self._metadata, "head_object", path, Key=self.key(path)))
        except (Refused, AccessDenied):
            # The answer to a HEAD has no body that could say why; that to another request has.
            renewals = self._client.renewals
            await self._page(path, {"Prefix": self.key(path), "MaxKeys": 1})
            if renewals == self._client.renewals:
                raise
        # It was for credentials that are others by now.
        return stored_object(await self._ask(self._metadata, "head_object", path, Key=self.key(path)))

    async def get(self, path: str, *, limit: int) -> bytes:
        """All of a small object. Raises `PathNotFound`, or `ContentTooLarge` without reading it."""
        async with self._reads:
            for is_last_try in (False, True):
                answer = await self._client.ask("get_object", path, Key=self.key(path))
                if answer["ContentLength"] > limit:
                    answer["Body"].close()
                    raise ContentTooLarge(path, f"{answer['ContentLength']} bytes, more than {limit}")
                content = await self._body(path, answer, answer["ContentLength"], is_last_try=is_last_try)
                if content is not None:
                    return content
        raise AssertionError("the last try returns or raises")

    async def get_range(self, path: str, offset: int, length: int, *, size: int, etag: str | None = None) -> bytes:
        """`length` bytes of an object of `size` bytes, and with an `etag` only of that version of it.

        Raises `ShortRead` if it is shorter or gone, `ContentChanged` if it is another one.
        """
        if not length:
            return b""
        condition = {} if etag is None else {"IfMatch": _quoted(etag)}
        wanted = {"Key": self.key(path), "Range": f"bytes={offset}-{offset + length - 1}", **condition}
        async with self._reads:
            for is_last_try in (False, True):
                try:
                    answer = await self._client.ask("get_object", path, length=length, **wanted)
                except PathNotFound as error:
                    raise ShortRead(path, "it was removed while it was open") from error
                _check_sent(path, answer, offset, size)
                content = await self._body(path, answer, length, is_last_try=is_last_try)
                if content is not None:
                    return content
        raise AssertionError("the last try returns or raises")

    async def put(self, path: str, content: bytes) -> None:
        more = self.options.object_parameters | self._checksum(content)
        await self._ask(self._writes, "put_object", path, Key=self.key(path), Body=content, **more)

    async def delete(self, path: str) -> None:
        """Deletes one object; no error if there is none."""
        await self._ask(self._writes, "delete_object", path, Key=self.key(path))

    async def delete_keys(self, path: str, keys: Sequence[str]) -> None:
        """Deletes many objects, which lie below `path`."""
        for start in range(0, len(keys), _DELETED_AT_ONCE):
            batch = keys[start : start + _DELETED_AT_ONCE]
            try:
                await self._delete_batch(path, batch)
            except (UnsupportedByDriver, Refused):
                # Some stores have no such request.
                await gather([self.delete(self.path(key)) for key in batch])

    async def _delete_batch(self, path: str, keys: Sequence[str]) -> None:
        if len(keys) == 1:
            await self.delete(self.path(keys[0]))
            return
        objects = {"Objects": [{"Key": key} for key in keys], "Quiet": True}
        answer = await self._ask(self._writes, "delete_objects", path, Delete=objects)
        for failure in answer.get("Errors", []):
            code = failure.get("Code", "")
            if code != "NoSuchKey":
                kind = AccessDenied if code == "AccessDenied" else BackendFailure
                raise kind(self.path(failure.get("Key", "")), f"{self._client.description} did not delete it: {code}")

    async def copy_object(self, source: str, destination: str, *, size: int, etag: str | None) -> StoredObject:
        """Copies an object of `size` bytes, whole or not at all; returns the copy, as far as the store tells of it.

        Raises `ContentChanged` if the store looks at the `etag`, and it is another one.
        """
        more = self.options.object_parameters
        return copied_object(await self._ask_for_copy("copy_object", source, destination, etag, **more), size)

    # --- listings ------------------------------------------------------------------------------------------------

    async def pages(
        self, path: str, prefix: str, *, delimiter: str = "", limit: int = PAGE_KEYS
    ) -> AsyncIterator[Page]:
        """All that has the prefix, by pages of up to `limit` keys; at least one. Any of them may be empty."""
        wanted: dict[str, Any] = {"Prefix": prefix, **({"Delimiter": delimiter} if delimiter else {})}
        wanted |= {"MaxKeys": limit} if limit < PAGE_KEYS else {}
        token: str | None = ""
        while token is not None:
            page, token = await self._page(path, wanted | ({"ContinuationToken": token} if token else {}))
            yield page

    async def _page(self, path: str, wanted: Mapping[str, Any]) -> tuple[Page, str | None]:
        answer = await self._ask(self._metadata, "list_objects_v2", path, **wanted)
        token = answer.get("NextContinuationToken") if answer.get("IsTruncated") else None
        objects = {found["Key"]: listed_object(found) for found in answer.get("Contents", [])}
        prefixes = [found["Prefix"] for found in answer.get("CommonPrefixes", [])]
        return Page(objects, prefixes, is_last=not token), token or None

    # --- multipart uploads ---------------------------------------------------------------------------------------

    async def list_uploads(self, path: str, prefix: str) -> list[OpenUpload]:
        """The open multipart uploads of keys with the prefix, as the store sorts them."""
        found: list[OpenUpload] = []
        more: dict[str, str] = {}
        while True:
            answer = await self._ask(self._metadata, "list_multipart_uploads", path, Prefix=prefix, **more)
            found += map(open_upload, answer.get("Uploads", []))
            if not answer.get("IsTruncated") or not answer.get("NextKeyMarker"):
                return found
            more = {"KeyMarker": answer["NextKeyMarker"], "UploadIdMarker": answer.get("NextUploadIdMarker", "")}

    async def list_parts(self, path: str, upload_id: str, *, after: int = 0, is_listed: bool = False) -> list[Part]:
        """The parts numbered above `after`, in order. Raises `UploadGone` if there is no such upload any more.

        `is_listed`: it was in the list of open uploads a moment ago.
        """
        if not is_listed:
            await self._check_open(path, upload_id)
        found: dict[int, Part] = {}
        while True:
            answer = await self._ask(
                self._metadata,
                "list_parts",
                path,
                Key=self.key(path),
                UploadId=upload_id,
                **({"PartNumberMarker": after} if after else {}),
            )
            for part in map(listed_part, answer.get("Parts", [])):
                # SeaweedFS keeps what was uploaded again beside what it replaces. A part is only uploaded again when it
                # has grown, so the largest is the newest, whatever the clocks say, and however late a request comes.
                known = found.get(part.number, part)
                if (known.size, known.modified_at, known.etag) <= (part.size, part.modified_at, part.etag):
                    found[part.number] = part
            last = int(answer.get("NextPartNumberMarker") or 0)
            if not answer.get("IsTruncated") or last <= after:
                return [found[number] for number in sorted(found)]
            after = last

    async def create_upload(self, path: str) -> str:
        """Begins a multipart upload and returns its id."""
        kept = self.options.object_parameters
        answer = await self._ask(self._writes, "create_multipart_upload", path, Key=self.key(path), **kept)
        upload_id: str = answer["UploadId"]
        if _was_made_again(answer):
            # A try whose answer was lost may have begun one too, and registries take the first that they find. Or it
            # will, if something on the way has kept it.
            self.begun_twice.add(path)
            await self._abort_others(path, upload_id)
        return upload_id

    async def upload_part(self, path: str, upload_id: str, number: int, content: bytes | memoryview) -> Part:
        """Stores one part, in place of what had its number."""
        await self._check_open(path, upload_id)
        answer = await self._ask(
            self._writes,
            "upload_part",
            path,
            length=len(content),
            Key=self.key(path),
            UploadId=upload_id,
            PartNumber=number,
            ContentLength=len(content),
            Body=Body(content),
            **self._checksum(content),
        )
        return Part(number, len(content), etag_of(answer), may_come_again=_was_made_again(answer))

    async def copy_part(
        self,
        source: str,
        destination: str,
        upload_id: str,
        number: int,
        start: int,
        length: int,
        *,
        is_whole: bool,
        etag: str | None,
    ) -> Part:
        """Makes `length` bytes of an object, from `start` on, a part of an upload to `destination`.

        `is_whole`: that is all of it. Raises `ContentChanged` as `copy_object` does.
        """
        names_range = not is_whole or self._client.peculiarities.forgets_etag_of_whole
        limits = {"CopySourceRange": f"bytes={start}-{start + length - 1}"} if names_range else {}
        answer = await self._ask_for_copy(
            "upload_part_copy", source, destination, etag, UploadId=upload_id, PartNumber=number, **limits
        )
        return Part(number, length, etag_of(answer["CopyPartResult"]))

    async def complete_upload(self, path: str, upload_id: str, parts: Iterable[Part]) -> str:
        """Makes the parts an object and returns its ETag, or "" if the store does not tell it (Ceph 16).

        Raises `ContentChanged` if they are not these any more.
        """
        await self._check_open(path, upload_id)
        listed = [{"PartNumber": part.number, "ETag": _quoted(part.etag)} for part in parts]
        answer = await self._ask(
            self._writes,
            "complete_multipart_upload",
            path,
            Key=self.key(path),
            UploadId=upload_id,
            MultipartUpload={"Parts": listed},
        )
        return etag_of(answer)

    async def abort_upload(self, path: str, upload_id: str) -> None:
        """Drops an upload and its parts; no error if it is gone."""
        with contextlib.suppress(ContentChanged, PathNotFound):
            await self._ask(self._writes, "abort_multipart_upload", path, Key=self.key(path), UploadId=upload_id)

    async def _check_open(self, path: str, upload_id: str) -> None:
        """Raises `UploadGone` if an upload is not open any more, where the request to come would not say so."""
        if not self._client.peculiarities.keeps_completed:
            return
        opened = await self.list_uploads(path, self.key(path))
        if upload_id not in [upload.upload_id for upload in opened]:
            raise UploadGone(path, f"{self._client.description} has no such open multipart upload any more")

    async def _abort_others(self, path: str, upload_id: str) -> None:
        for upload in await self.list_uploads(path, self.key(path)):
            if upload.key == self.key(path) and upload.upload_id != upload_id:
                await self.abort_upload(path, upload.upload_id)

    def _checksum(self, content: bytes | memoryview) -> dict[str, str]:
        """What has a store notice that content arrives as something else, if it looks neither at TLS nor signatures."""
        if not self._client.peculiarities.wants_checksums or not self._client.endpoint.startswith("http://"):
            return {}
        return {"ChecksumCRC32": base64.b64encode(zlib.crc32(content).to_bytes(4, "big")).decode()}

    async def _ask_for_copy(
        self, operation: str, source: str, destination: str, etag: str | None, **parameters: Any
    ) -> Any:
        original = {"Bucket": self.options.bucket, "Key": self.key(source)}
        condition = {} if etag is None else {"CopySourceIfMatch": _quoted(etag)}
        wanted = {"Key": self.key(destination), "CopySource": original, **condition, **parameters}
        return await self._ask(self._writes, operation, destination, **wanted)

    # --- asking --------------------------------------------------------------------------------------------------

    async def _ask(self, limit: asyncio.Semaphore, operation: str, path: str, **parameters: Any) -> Any:
        async with limit:
            return await self._client.ask(operation, path, **parameters)

    async def _body(self, path: str, answer: Any, length: int, *, is_last_try: bool) -> bytes | None:
        """The body of an answer; None if it did not come whole and may be asked for again."""
        try:
            async with asyncio.timeout(self._client.deadline(length)), answer["Body"] as body:
                content: bytes = await body.read() if length < _BUFFERED else await self._filled(body, length)
        except (*_BROKEN_BODY, TimeoutError) as error:
            if is_last_try:
                raise ShortRead(path, f"{self._client.description} broke off in the middle") from error
            return None
        if len(content) == length:
            return content
        if is_last_try:
            raise ShortRead(path, f"{self._client.description} sent {len(content)} of {length} bytes")
        return None

    async def _filled(self, body: Any, length: int) -> bytes:
        """The body, in a buffer that is used again; shorter or longer if that is what came."""
        buffer = self._buffers.take(length)
        place = 0
        while True:
            chunk, ends_piece = await body.raw_stream.content.readchunk()
            if not chunk and not ends_piece:
                break
            if place + len(chunk) > length:
                return bytes(buffer[:place] + chunk)
            buffer[place : place + len(chunk)] = chunk
            place += len(chunk)
        return cast(bytes, buffer) if place == length else bytes(buffer[:place])


def _was_made_again(answer: Any) -> bool:
    """Whether it took more than one request to get an answer."""
    return bool(answer["ResponseMetadata"].get("RetryAttempts"))


def _check_sent(path: str, answer: Any, offset: int, size: int) -> None:
    """Raises unless the range begins at `offset`, and the object that it is of has `size` bytes."""
    sent = str(answer.get("ContentRange", ""))
    total = sent.rpartition("/")[2]
    try:
        if total.isdecimal() and int(total) != size:
            kind = ShortRead if int(total) < size else ContentChanged
            raise kind(path, f"it has {total} bytes now, not {size}")
        check_range(path, sent, offset)
    except DriverError:
        answer["Body"].close()
        raise


def _quoted(etag: str) -> str:
    return f'"{etag}"'
