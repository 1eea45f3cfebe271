"""The requests that can be made of a bucket, each a method: paths in, the driver's errors out. Runs on asyncio.

There is one layer of retries, the SDK's, which goes on for as long as `patience` says, and every request has a deadline
over all its tries. Only the body of a GET, which comes after the SDK has returned, is asked for a second time here.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import logging
import os
import zlib
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, TypeAlias, cast
from urllib.parse import urlsplit

import aiohttp
from aiobotocore.config import AioConfig
from aiobotocore.session import AioSession
from botocore import exceptions

from layerfs.driver.at_once import ByteBudget, each, gather
from layerfs.driver.body import Body
from layerfs.driver.buffers import BufferPool
from layerfs.driver.objects import Page, StoredObject
from layerfs.driver.patience import CONNECT_TIMEOUT, Patience, current_tries, seconds_asked_for
from layerfs.driver.s3_errors import (
    UploadGone,
    error_code,
    failing,
    has_outdated_credentials,
    misconfiguration,
    s3_error,
)
from layerfs.driver.s3_options import COPY_THRESHOLD_ON_AWS, LARGEST_COPY, MOST_PARTS, SMALLEST_PART, S3Options
from layerfs.driver.s3_servers import Peculiarities, peculiarities
from layerfs.driver.trust import trusting
from layerfs.driver.url_options import MEBIBYTE
from layerfs.errors import (
    AccessDenied,
    BackendFailure,
    ContentChanged,
    ContentTooLarge,
    DriverError,
    PathNotFound,
    ShortRead,
    UnknownSource,
    UnsupportedByDriver,
)

#: Requests in flight, by kind, so that a long listing cannot starve reads. 64 HEADs keep one loop busy at any latency.
#: Of reads a mount makes 48 ahead of its readers; those that somebody waits for must find a place beside them.
METADATA_REQUESTS: Final = 64
READ_REQUESTS: Final = 128
WRITE_REQUESTS: Final = 32

#: Bytes that all uploads together have on their way.
PART_MEMORY: Final = 256 * MEBIBYTE

#: Parts of one object that are copied at a time, within the store.
COPIES_AT_ONCE: Final = 8

#: Seconds, for what makes the store copy bytes, or delete many objects, which it does without a word.
_PATIENT_READ_TIMEOUT: Final = 300
_PATIENT_DEADLINE: Final = 900.0
#: By the SDK's methods, S3's names of them.
_PATIENT_OPERATIONS: Final = {
    "complete_multipart_upload": "CompleteMultipartUpload",
    "copy_object": "CopyObject",
    "delete_objects": "DeleteObjects",
    "upload_part_copy": "UploadPartCopy",
}
#: Bytes from which on a body is received in buffers that are used again; nearly all such bodies have just so many.
_BUFFERED: Final = 8 * MEBIBYTE

#: Keys that one request deletes.
_DELETED_AT_ONCE: Final = 1000

#: Bytes that one request copies into a part at the most. Stores that really copy take 2 s for this when they are idle,
#: and what is done when a copy is given up is not done again.
_COPIED_PART: Final = 256 * MEBIBYTE

#: What a body ends with that did not come whole.
_BROKEN_BODY: Final = (
    aiohttp.ClientError,
    exceptions.ResponseStreamingError,
    exceptions.IncompleteReadError,
    exceptions.ReadTimeoutError,
)


#: Seconds from one look for other credentials to the next, while those there are are refused.
_RENEWAL_PAUSE: Final = 1.0

#: Key, secret, token, and whatever else the SDK has with them.
_Credentials: TypeAlias = tuple[str | None, ...]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Part:
    """A part of an open multipart upload, as the store has it."""

    number: int
    size: int
    etag: str
    modified_at: int = 0


@dataclass(frozen=True, slots=True)
class OpenUpload:
    """An open multipart upload, by its key. `began_at` is in nanoseconds since 1970, 0 if the store does not say."""

    key: str
    upload_id: str
    began_at: int = 0


@dataclass(frozen=True, slots=True)
class _Copying:
    """A copy in parts that is not finished: of what, and what there is of it."""

    upload_id: str
    found: StoredObject
    parts: dict[int, Part]


class Bucket:
    """A bucket, and the prefix in it that is the root. Opened by the first request."""

    def __init__(self, options: S3Options) -> None:
        self.options = options
        self._prefix = f"{options.root_prefix}/" if options.root_prefix else ""
        self._resources = contextlib.AsyncExitStack()
        self._opening = asyncio.Lock()
        self._client: Any = None
        self._credentials: _Credentials | None = None
        self._next_renewal = 0.0
        self._endpoint = options.endpoint_url or ""
        # Known from the first answer; an upload is begun, or something is listed, before anything that matters.
        self._peculiarities = Peculiarities()
        # Copies that were given up because they took too long, by their destinations: who tries again goes on.
        self._copying: dict[str, _Copying] = {}
        # Until a store has refused a condition that was right.
        self._compares_originals = True
        self._patience = Patience(options.read_timeout)
        #: What the parts that are on their way, of all uploads together, may take up.
        self.part_memory = ByteBudget(PART_MEMORY)
        #: And their memory.
        self.part_buffers = BufferPool(options.part_size, kept=max(1, PART_MEMORY // options.part_size))
        self._buffers = BufferPool(_BUFFERED)
        self._metadata = asyncio.Semaphore(METADATA_REQUESTS)
        self._reads = asyncio.Semaphore(READ_REQUESTS)
        self._writes = asyncio.Semaphore(WRITE_REQUESTS)

    @property
    def description(self) -> str:
        """The bucket and where it is, for messages."""
        where = self._endpoint or "AWS"
        return f"bucket {self.options.bucket!r} at {where}"

    @property
    def copy_threshold(self) -> int:
        """Bytes up to which one request copies an object."""
        given = self.options.multipart_copy_threshold
        if given is not None:
            return given
        return COPY_THRESHOLD_ON_AWS if _is_aws(self._endpoint) else LARGEST_COPY

    def key(self, path: str) -> str:
        """The key of a path; with a slash at the end where the path is `/`, so that it can be listed."""
        return self._prefix + path[1:]

    def path(self, key: str) -> str:
        """The path of a key below the root."""
        return "/" + key[len(self._prefix) :]

    async def close(self) -> None:
        await each(self.abort_upload(path, copying.upload_id) for path, copying in self._copying.items())
        self._copying.clear()
        self._client = None
        await self._resources.aclose()

    # --- objects -------------------------------------------------------------------------------------------------

    async def head(self, path: str) -> StoredObject:
        """Raises `PathNotFound`."""
        try:
            return _stored_object(await self._ask(self._metadata, "head_object", path, Key=self.key(path)))
        except (_Refused, AccessDenied):
            # The answer to a HEAD has no body that could say why; that to another request has.
            client = self._client
            await self.list_objects(path, self.key(path), limit=1)
            if client is self._client:
                raise
        # It was for credentials that are others by now.
        return _stored_object(await self._ask(self._metadata, "head_object", path, Key=self.key(path)))

    async def get(self, path: str, *, limit: int) -> bytes:
        """All of a small object. Raises `PathNotFound`, or `ContentTooLarge` without reading it."""
        async with self._reads:
            for is_last_try in (False, True):
                answer = await self._request("get_object", path, Key=self.key(path))
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
                    answer = await self._request("get_object", path, length=length, **wanted)
                except PathNotFound as error:
                    raise ShortRead(path, "it was removed while it was open") from error
                _check_total(path, answer, size)
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
            except (UnsupportedByDriver, _Refused):
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
                raise kind(self.path(failure.get("Key", "")), f"{self.description} did not delete it: {code}")

    async def copy(self, source: str, destination: str, found: StoredObject) -> StoredObject | None:
        """Copies an object within the store, whole or not at all. Raises `ContentChanged` if it is not `found` by now.

        Returns the copy; None if the store has not told when it was made, as none does of what is copied in parts.

        Not every store looks at the condition (Ceph 16 does not), so what it says of the copy is compared, or the
        original is looked at again: an ETag that was gone does not come back.
        """
        if found.size > self.copy_threshold:
            await self._copy_in_parts(source, destination, found)
            return None
        more = self.options.object_parameters
        answer = await self._ask_for_copy("copy_object", source, destination, found, **more)
        copied = _etag(answer.get("CopyObjectResult", {}))
        if copied != found.etag:
            now = await self.head(source)
            if now.etag == copied:
                # What has been copied is what took the place of `found`.
                await self.delete(destination)
            _check_same(source, found, now)
        return _copied_object(answer.get("CopyObjectResult", {}), found.size)

    # --- listings ------------------------------------------------------------------------------------------------

    async def list_objects(self, path: str, prefix: str, *, limit: int = 1000) -> Page:
        """The first page of what has the prefix."""
        page, _ = await self._page(path, {"Prefix": prefix, "MaxKeys": limit})
        return page

    async def pages(self, path: str, prefix: str, *, delimiter: str = "") -> AsyncIterator[Page]:
        """All that has the prefix, by pages; at least one, which may be empty."""
        wanted: dict[str, Any] = {"Prefix": prefix, **({"Delimiter": delimiter} if delimiter else {})}
        token: str | None = ""
        while token is not None:
            page, token = await self._page(path, wanted | ({"ContinuationToken": token} if token else {}))
            yield page

    async def _page(self, path: str, wanted: Mapping[str, Any]) -> tuple[Page, str | None]:
        answer = await self._ask(self._metadata, "list_objects_v2", path, **wanted)
        token = answer.get("NextContinuationToken") if answer.get("IsTruncated") else None
        objects = {found["Key"]: _listed_object(found) for found in answer.get("Contents", [])}
        prefixes = [found["Prefix"] for found in answer.get("CommonPrefixes", [])]
        return Page(objects, prefixes, is_last=not token), token or None

    # --- multipart uploads ---------------------------------------------------------------------------------------

    async def list_uploads(self, path: str, prefix: str) -> list[OpenUpload]:
        """The open multipart uploads of keys with the prefix, as the store sorts them."""
        found: list[OpenUpload] = []
        more: dict[str, str] = {}
        while True:
            answer = await self._ask(self._metadata, "list_multipart_uploads", path, Prefix=prefix, **more)
            found += map(_open_upload, answer.get("Uploads", []))
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
            for part in map(_listed_part, answer.get("Parts", [])):
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
        if answer["ResponseMetadata"].get("RetryAttempts"):
            # A try whose answer was lost may have begun one too, and registries take the first that they find.
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
        return Part(number, len(content), _etag(answer))

    async def copy_into_upload(
        self, source: str, destination: str, upload_id: str, found: StoredObject, size: int
    ) -> list[Part]:
        """Makes the first `size` bytes of an object the parts of an upload, without a byte coming here."""
        parts = await self._copy_pieces(source, destination, upload_id, found, size, {})
        if not self._compares_originals:
            _check_same(source, found, await self.head(source))
        return parts

    async def _copy_pieces(
        self, source: str, destination: str, upload_id: str, found: StoredObject, size: int, made: dict[int, Part]
    ) -> list[Part]:
        """`made` has the parts that were made before, and gets those that are made now."""
        pieces = _pieces(size, self._copied_part(size))
        is_whole = size == found.size and len(pieces) == 1 and not self._peculiarities.forgets_etag_of_whole
        slots = asyncio.Semaphore(COPIES_AT_ONCE)

        async def one(number: int, start: int, length: int) -> None:
            limits = {} if is_whole else {"CopySourceRange": f"bytes={start}-{start + length - 1}"}
            async with slots:
                answer = await self._ask_for_copy(
                    "upload_part_copy", source, destination, found, UploadId=upload_id, PartNumber=number, **limits
                )
            made[number] = Part(number, length, _etag(answer["CopyPartResult"]))

        numbered = enumerate(pieces, 1)
        await gather([one(number, start, length) for number, (start, length) in numbered if number not in made])
        return [made[number] for number in sorted(made)]

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
        return _etag(answer)

    async def abort_upload(self, path: str, upload_id: str) -> None:
        """Drops an upload and its parts; no error if it is gone."""
        with contextlib.suppress(ContentChanged, PathNotFound):
            await self._ask(self._writes, "abort_multipart_upload", path, Key=self.key(path), UploadId=upload_id)

    async def _check_open(self, path: str, upload_id: str) -> None:
        """Raises `UploadGone` if an upload is not open any more, where the request to come would not say so."""
        if not self._peculiarities.keeps_completed:
            return
        opened = await self.list_uploads(path, self.key(path))
        if upload_id not in [upload.upload_id for upload in opened]:
            raise UploadGone(path, f"{self.description} has no such open multipart upload any more")

    async def _abort_others(self, path: str, upload_id: str) -> None:
        for upload in await self.list_uploads(path, self.key(path)):
            if upload.key == self.key(path) and upload.upload_id != upload_id:
                await self.abort_upload(path, upload.upload_id)

    async def _copy_in_parts(self, source: str, destination: str, found: StoredObject) -> None:
        copying = await self._begin_copying(destination, found)
        try:
            parts = await self._copy_pieces(source, destination, copying.upload_id, found, found.size, copying.parts)
            _check_same(source, found, await self.head(source))
            await self.complete_upload(destination, copying.upload_id, parts)
        except asyncio.CancelledError:
            self._copying[destination] = copying
            raise
        except BaseException:
            with contextlib.suppress(DriverError):
                await asyncio.shield(self.abort_upload(destination, copying.upload_id))
            raise

    async def _begin_copying(self, destination: str, found: StoredObject) -> _Copying:
        """A copy that was given up, to go on with; else a new one."""
        earlier = self._copying.pop(destination, None)
        if earlier is not None:
            if (earlier.found.size, earlier.found.etag) == (found.size, found.etag):
                return earlier
            await self.abort_upload(destination, earlier.upload_id)
        return _Copying(await self.create_upload(destination), found, {})

    async def _ask_for_copy(
        self, operation: str, source: str, destination: str, found: StoredObject, **parameters: Any
    ) -> Any:
        """A copy on condition that the original is `found`; raises `ContentChanged` if it is another one.

        Without a condition where the store compares it with something else, as Swift 2.30 does with the ETag of an
        object that was uploaded in parts: then whoever asks must look at the original once more.
        """
        wanted = {"Key": self.key(destination), "CopySource": self._copy_source(source), **parameters}
        if self._compares_originals:
            try:
                condition = {"CopySourceIfMatch": _quoted(found.etag)}
                return await self._ask(self._writes, operation, destination, **condition, **wanted)
            except UploadGone:
                raise
            except ContentChanged:
                _check_same(source, found, await self.head(source))
                self._compares_originals = False
        return await self._ask(self._writes, operation, destination, **wanted)

    def _copied_part(self, size: int) -> int:
        """Bytes that one request copies into a part: as many as it copies whole, within limits."""
        return max(min(_COPIED_PART, max(self.copy_threshold, SMALLEST_PART)), -(-size // MOST_PARTS))

    def _checksum(self, content: bytes | memoryview) -> dict[str, str]:
        """What has a store notice that content arrives as something else, if it looks neither at TLS nor signatures."""
        if not self._peculiarities.wants_checksums or not self._endpoint.startswith("http://"):
            return {}
        return {"ChecksumCRC32": base64.b64encode(zlib.crc32(content).to_bytes(4, "big")).decode()}

    def _copy_source(self, path: str) -> dict[str, str]:
        return {"Bucket": self.options.bucket, "Key": self.key(path)}

    # --- the SDK -------------------------------------------------------------------------------------------------

    async def _ask(self, limit: asyncio.Semaphore, operation: str, path: str, **parameters: Any) -> Any:
        async with limit:
            return await self._request(operation, path, **parameters)

    async def _request(self, operation: str, path: str, *, length: int = 0, **parameters: Any) -> Any:
        deadline = _PATIENT_DEADLINE if operation in _PATIENT_OPERATIONS else self._patience.deadline(length)
        try:
            # To begin with it reads files, large ones, and may ask others for credentials.
            async with asyncio.timeout(self._patience.deadline()):
                client = await self._open()
            async with self._patience.request(deadline):
                answer = await self._call(client, operation, parameters)
                self._peculiarities = peculiarities(answer["ResponseMetadata"]["HTTPHeaders"])
                return answer
        except DriverError:
            raise
        except Exception as error:
            failure = s3_error(error, path, store=self.description)
            if "UploadId" in parameters and isinstance(failure, PathNotFound):
                # Ceph has the code of a missing object for this too.
                raise UploadGone(path, f"{self.description} has no such multipart upload any more") from error
            if isinstance(error, exceptions.ClientError) and _is_refusal(error):
                raise _Refused(path, failure.detail) from error
            raise failure from error

    async def _call(self, client: Any, operation: str, parameters: Mapping[str, Any]) -> Any:
        """Asks once; a second time if it was refused for credentials that are others by now."""
        try:
            return await getattr(client, operation)(Bucket=self.options.bucket, **parameters)
        except exceptions.ClientError as error:
            if not has_outdated_credentials(error) or not await self._renew(client):
                raise
        body = parameters.get("Body")
        if isinstance(body, Body):
            body.seek(0)
        return await getattr(self._client, operation)(Bucket=self.options.bucket, **parameters)

    async def _renew(self, client: Any) -> bool:
        """Whether there is a client with other credentials than those of `client`; makes it if they can be found.

        What the SDK has found it keeps as long as the client lasts, unless it knows when that expires. A mount lasts
        longer than keys that somebody writes into the SDK's files every day.
        """
        async with self._opening:
            now = asyncio.get_running_loop().time()
            if client is not self._client or self.options.access_key_id is not None or now < self._next_renewal:
                return client is not self._client
            self._next_renewal = now + _RENEWAL_PAUSE
            try:
                found = await _credentials(AioSession(profile=self.options.profile))
                if found in {None, self._credentials}:
                    return False
                # What is under way with the old client goes on to its end.
                self._client = await self._connect()
            except (exceptions.BotoCoreError, DriverError, OSError):
                return False
            log.info("%s: uses the credentials that the AWS SDK finds now", self.description)
            return True

    async def _body(self, path: str, answer: Any, length: int, *, is_last_try: bool) -> bytes | None:
        """The body of an answer; None if it did not come whole and may be asked for again."""
        try:
            async with asyncio.timeout(self._patience.deadline(length)), answer["Body"] as body:
                content: bytes = await body.read() if length < _BUFFERED else await self._filled(body, length)
        except (*_BROKEN_BODY, TimeoutError) as error:
            if is_last_try:
                raise ShortRead(path, f"{self.description} broke off in the middle") from error
            return None
        if len(content) == length:
            return content
        if is_last_try:
            raise ShortRead(path, f"{self.description} sent {len(content)} of {length} bytes")
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

    async def _open(self) -> Any:
        if self._client is None:
            async with self._opening:
                if self._client is None:
                    self._client = await self._connect()
        return self._client

    async def _connect(self) -> Any:
        options = self.options
        self._check_trust()
        try:
            session = AioSession(profile=options.profile)
            client = await self._create_client(session, options.endpoint_url or "", options.path_style)
            endpoint = client.meta.endpoint_url
            if not options.endpoint_url and not _is_aws(endpoint):
                # Only the SDK knows all the places where an endpoint can be set; and other settings follow from it.
                client = await self._create_client(session, endpoint, options.path_style)
            self._credentials = await _credentials(session) if options.access_key_id is None else None
        except (exceptions.BotoCoreError, OSError, ValueError) as error:
            reason = misconfiguration(error)
            if reason is not None:
                raise UnknownSource(f"s3://{options.bucket}", reason) from error
            raise s3_error(error, "/", store=self.description) from error
        self._endpoint = client.meta.endpoint_url
        client.meta.events.register("needs-retry.s3", self._pause)
        client.meta.events.register("before-call.s3.DeleteObjects", _add_md5)
        for operation in _PATIENT_OPERATIONS.values():
            client.meta.events.register(f"before-call.s3.{operation}", _be_patient)
        return client

    def _pause(
        self,
        *,
        response: tuple[Any, dict[str, Any]] | None,
        caught_exception: Exception | None,
        **_: Any,
    ) -> float | None:
        """Seconds after which the SDK is to make a request again that it has just made; None if it is not to."""
        answer = response[1] if response is not None else {}
        if response is not None:
            self._patience.answered()
        failed = failing(answer, caught_exception)
        if failed is None:
            return None
        headers = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {})
        return current_tries().pause(failed, at_least=seconds_asked_for(headers))

    def _check_trust(self) -> None:
        """Raises `UnknownSource` if the certificates by which the store is to be trusted cannot be read."""
        settings = {"ca_file": self.options.ca_file, "AWS_CA_BUNDLE": os.environ.get("AWS_CA_BUNDLE")}
        setting, ca_file = next(((name, file) for name, file in settings.items() if file), ("", ""))
        if self.options.verify_tls and ca_file:
            trusting(ca_file, setting=setting, source=f"s3://{self.options.bucket}")

    async def _create_client(self, session: AioSession, endpoint: str, path_style: bool | None) -> Any:
        options = self.options
        # Few stores but AWS have a host name for each bucket.
        style = {None: "auto" if _is_aws(endpoint) else "path", True: "path", False: "virtual"}[path_style]
        config = AioConfig(
            connect_timeout=CONNECT_TIMEOUT,
            read_timeout=options.read_timeout,
            # Its own rule counts tries, and the failures of all requests together; `_pause` is the one that holds.
            retries={"mode": "standard", "total_max_attempts": 1},
            max_pool_connections=METADATA_REQUESTS + READ_REQUESTS + WRITE_REQUESTS,
            s3={"addressing_style": style, "use_accelerate_endpoint": options.accelerate, **_payload_signing(endpoint)},
            use_dualstack_endpoint=options.dual_stack or None,
            use_fips_endpoint=options.fips or None,
            # By TLS the SDK would send sums after the content, framed in a way that other stores take for content.
            request_checksum_calculation=None if _is_aws(endpoint) else "when_required",
            # Only AWS sends one, and only of whole objects.
            response_checksum_validation="when_required",
        )
        return await self._resources.enter_async_context(
            session.create_client(
                "s3",
                region_name=options.region,
                endpoint_url=options.endpoint_url,
                verify=(options.ca_file or None) if options.verify_tls else False,
                aws_access_key_id=options.access_key_id,
                aws_secret_access_key=options.secret_access_key,
                aws_session_token=options.session_token,
                config=config,
            )
        )


class _Refused(BackendFailure):
    """A request that the store did not understand, or would not say what was wrong with it."""


async def _credentials(session: AioSession) -> _Credentials | None:
    """Those that the SDK finds; None if there are none."""
    found = await session.get_credentials()
    return tuple(await found.get_frozen_credentials()) if found is not None else None


def _pieces(size: int, length: int) -> list[tuple[int, int]]:
    """`size` bytes in pieces of about the same size, none smaller than `length` unless it is the only one."""
    count = max(1, size // length)
    length = -(-size // count)
    return [(start, min(length, size - start)) for start in range(0, size, length)]


def _add_md5(params: dict[str, Any], **_: Any) -> None:
    """Some stores (Swift, old ones of all kinds) insist on this sum, which the SDK replaces with another one."""
    digest = hashlib.md5(params["body"], usedforsecurity=False).digest()
    params["headers"]["Content-MD5"] = base64.b64encode(digest).decode()


def _be_patient(context: dict[str, Any], **_: Any) -> None:
    context["read_timeout"] = _PATIENT_READ_TIMEOUT


def _payload_signing(endpoint: str) -> dict[str, bool]:
    """Without TLS all that is sent is signed, so that the store notices if it arrives as something else."""
    return {} if _is_aws(endpoint) else {"payload_signing_enabled": endpoint.startswith("http://")}


def _is_aws(endpoint: str) -> bool:
    host = urlsplit(endpoint).hostname or ""
    return not endpoint or host.endswith((".amazonaws.com", ".amazonaws.com.cn"))


def _is_refusal(error: exceptions.ClientError) -> bool:
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return status == 400 and error_code(error) in {"400", "InvalidRequest", "InvalidDigest", "MalformedXML"}


def _check_same(path: str, found: StoredObject, now: StoredObject) -> None:
    """Raises `ContentChanged` unless an object is still what it was."""
    if (now.size, now.etag) != (found.size, found.etag):
        raise ContentChanged(path, "it was replaced while it was copied")


def _check_total(path: str, answer: Any, size: int) -> None:
    """Raises unless the object that the range is of has `size` bytes."""
    total = str(answer.get("ContentRange", "")).rpartition("/")[2]
    if total.isdecimal() and int(total) != size:
        answer["Body"].close()
        kind = ShortRead if int(total) < size else ContentChanged
        raise kind(path, f"it has {total} bytes now, not {size}")


def _etag(answer: Mapping[str, Any]) -> str:
    """An ETag without its quotes, which not every store sends every time; empty if there is none."""
    return str(answer.get("ETag") or "").strip('"')


def _quoted(etag: str) -> str:
    return f'"{etag}"'


def _stored_object(answer: Mapping[str, Any]) -> StoredObject:
    return StoredObject(answer["ContentLength"], _etag(answer), _nanoseconds(answer["LastModified"]))


def _copied_object(result: Mapping[str, Any], size: int) -> StoredObject | None:
    """What the answer to a copy says of it; None if it does not say all."""
    if "LastModified" not in result or not _etag(result):
        return None
    return StoredObject(size, _etag(result), _whole_seconds(result["LastModified"]))


def _listed_object(found: Mapping[str, Any]) -> StoredObject:
    return StoredObject(found["Size"], _etag(found), _whole_seconds(found["LastModified"]))


def _open_upload(found: Mapping[str, Any]) -> OpenUpload:
    began_at = _nanoseconds(found["Initiated"]) if "Initiated" in found else 0
    return OpenUpload(found["Key"], found["UploadId"], began_at)


def _listed_part(found: Mapping[str, Any]) -> Part:
    modified_at = _nanoseconds(found["LastModified"]) if "LastModified" in found else 0
    return Part(found["PartNumber"], found["Size"], _etag(found), modified_at)


def _whole_seconds(time: datetime) -> int:
    """In nanoseconds. A HEAD tells no more of the time of an object, which must not have two."""
    return _nanoseconds(time.replace(microsecond=0))


def _nanoseconds(time: datetime) -> int:
    return int(time.timestamp() * 1e9)
