"""The requests that can be made of a bucket, each a method: paths in, the driver's errors out. Runs on asyncio.

The JSON interface, spoken directly: of Google's own libraries only the one for credentials is used, because those for
storage have no way to make an upload's requests conditional, retry in layers, and bring gRPC along.

`gcs_client` makes requests, and makes them again. All that is repeated either changes nothing by that, or is bound to a
generation and so done once.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import functools
import json
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, TypeVar
from urllib.parse import quote

import aiohttp
import google_crc32c

from layerfs.driver.at_once import ByteBudget, gather
from layerfs.driver.buffers import BufferPool
from layerfs.driver.gcs_client import BATCH, Client
from layerfs.driver.gcs_errors import StoredOtherBytes
from layerfs.driver.gcs_options import GcsOptions
from layerfs.driver.objects import Objects, Page, StoredObject
from layerfs.driver.ranges import check_range
from layerfs.driver.store_errors import not_of_store
from layerfs.driver.url_options import MEBIBYTE
from layerfs.errors import (
    BackendFailure,
    ContentChanged,
    ContentTooLarge,
    DriverError,
    PathNotFound,
    ShortRead,
    UnknownSource,
    UnsupportedByDriver,
)

#: Requests in flight, by kind, so that a long listing cannot starve reads.
METADATA_REQUESTS: Final = 64
READ_REQUESTS: Final = 48
WRITE_REQUESTS: Final = 32

#: Bytes that the parts of all uploads together have on their way.
PART_MEMORY: Final = 256 * MEBIBYTE

#: Objects that one request composes.
MOST_COMPOSED: Final = 32

#: Seconds.
_COPY_DEADLINE: Final = 900.0

#: Objects that one request deletes.
_DELETED_AT_ONCE: Final = 100

#: Seconds for which a bucket counts as being there that has answered.
_THERE_FOR: Final = 10.0

#: What distribution's driver says an object is that stands for an upload session of its, and what this one says of its
#: own unfinished uploads: so no registry takes one of those for something that it could go on with.
SESSION_TYPE: Final = "application/x-docker-upload-session"
UPLOAD_TYPE: Final = "application/x-layerfs-upload"
_CONTENT_TYPE: Final = "application/octet-stream"
#: Else Google unpacks an object that says that it is compressed, and gives all of it whatever range was asked for.
_AS_STORED: Final = {"Accept-Encoding": "gzip"}

#: The header that says which generation of an object is sent.
_GENERATION: Final = "x-goog-generation"

_FIELDS: Final = "name,size,generation,crc32c,updated,contentType,metadata"

_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class GcsObject(StoredObject):
    """What the store says of an object. Its `etag` is its generation and its CRC32C."""

    generation: str
    crc32c: str
    #: Of a registry's upload, whose bytes are in a session that cannot be read; `size` is what the registry says.
    is_session: bool


class GcsBucket(Objects):
    """A bucket, and the prefix in it that is the root. Opened by the first request."""

    def __init__(self, options: GcsOptions) -> None:
        super().__init__(options.root_prefix)
        self.options = options
        #: What the parts that are on their way, of all uploads together, may take up.
        self.part_memory = ByteBudget(PART_MEMORY)
        #: And their memory.
        self.part_buffers = BufferPool(options.part_size, kept=max(1, PART_MEMORY // options.part_size))
        self._objects_url = f"/storage/v1/b/{quote(options.bucket, safe='')}/o"
        self._client = Client(options, connections=METADATA_REQUESTS + READ_REQUESTS + WRITE_REQUESTS)
        self._metadata = asyncio.Semaphore(METADATA_REQUESTS)
        self._reads = asyncio.Semaphore(READ_REQUESTS)
        self._writes = asyncio.Semaphore(WRITE_REQUESTS)

    async def close(self) -> None:
        await self._client.close()

    # --- objects -------------------------------------------------------------------------------------------------

    async def head(self, path: str) -> GcsObject:
        async def look() -> GcsObject:
            return _object(await self._client.json("GET", self._object_url(path), {"fields": _FIELDS}))

        return await self._ask(self._metadata, path, look)

    async def get(self, path: str, *, limit: int) -> bytes:
        async def read() -> bytes:
            async with self._client.request(
                "GET", self._object_url(path), {"alt": "media"}, headers=_AS_STORED
            ) as answer:
                self._check_readable(path, answer)
                size = int(answer.headers["Content-Length"])
                if size > limit:
                    answer.close()
                    raise ContentTooLarge(path, f"{size} bytes, more than {limit}")
                return await answer.read()

        try:
            return await self._ask(self._reads, path, read, length=limit)
        except PathNotFound:
            await self._check_bucket(path)
            raise

    async def get_range(
        self, path: str, offset: int, length: int, *, size: int | None = None, etag: str | None = None
    ) -> bytes:
        if not length:
            return b""
        condition = {} if etag is None else {"ifGenerationMatch": etag.partition("/")[0]}
        wanted = {"Range": f"bytes={offset}-{offset + length - 1}", **_AS_STORED}

        async def read() -> tuple[int, bytes]:
            query = {"alt": "media", **condition}
            async with self._client.request("GET", self._object_url(path), query, headers=wanted) as answer:
                self._check_readable(path, answer)
                if etag is not None and _etag_of(answer) != etag:
                    answer.close()
                    raise ContentChanged(path, "it was replaced")
                sent = answer.headers["Content-Range"]
                total = int(sent.rpartition("/")[2])
                if size is not None and total != size:
                    answer.close()
                    raise (ShortRead if total < size else ContentChanged)(path, f"it has {total} bytes now, not {size}")
                check_range(path, sent, offset)
                return total, await answer.read()

        try:
            total, content = await self._ask(self._reads, path, read, length=length)
        except PathNotFound as error:
            raise ShortRead(path, "it was removed while it was open") from error
        if len(content) != length:
            raise ShortRead(path, f"{len(content)} of {length} bytes: it has {total} now")
        return content

    async def put(self, path: str, content: bytes) -> None:
        await self.put_object(path, content)

    async def put_object(
        self, path: str, content: bytes, *, content_type: str = _CONTENT_TYPE, generation: str | None = None
    ) -> GcsObject:
        """Makes the content the object, if it is of the `generation` until then (0 for none).

        Raises `ContentChanged` if it is not.
        """
        query = {"uploadType": "media", "name": self.key(path), "fields": _FIELDS} | _if_generation(generation)
        checksum = encode_crc32c(google_crc32c.value(content))

        async def upload() -> GcsObject:
            nonlocal query
            stored = _object(
                await self._client.json("POST", f"/upload{self._objects_url}", query, content, content_type)
            )
            if (stored.size, stored.crc32c) != (len(content), checksum):
                # It must not stay. So it is sent again, in place of that.
                query |= _if_generation(stored.generation) if generation is not None else {}
                raise StoredOtherBytes
            return stored

        try:
            return await self._ask(self._writes, path, upload, length=len(content))
        except (ContentChanged, BackendFailure):
            # It may be that only the answer was lost.
            stored = await self._as_expected(path, len(content), checksum) if generation is not None else None
            if stored is None:
                raise
            return stored

    async def compose(
        self, path: str, found: GcsObject, parts: Sequence[tuple[str, GcsObject]], crc32c: str
    ) -> GcsObject:
        """Appends objects to one that is as `found` says, within the store. `crc32c` is what it must have then.

        Raises `ContentChanged` if it was not as `found` says.
        """
        sources = [(path, found), *parts] if found.size else list(parts)
        body = {
            "sourceObjects": [
                {"name": self.key(source), "objectPreconditions": {"ifGenerationMatch": part.generation}}
                for source, part in sources
            ],
            "destination": {"contentType": UPLOAD_TYPE},
        }
        query = {"fields": _FIELDS} | _if_generation(found.generation)
        size = found.size + sum(part.size for _, part in parts)

        async def append() -> GcsObject:
            return _object(await self._client.json("POST", f"{self._object_url(path)}/compose", query, _json(body)))

        try:
            composed = await self._ask(self._writes, path, append)
        except PathNotFound as error:
            raise ContentChanged(path, "it, or a part of it, was removed") from error
        except (ContentChanged, BackendFailure):
            stored = await self._as_expected(path, size, crc32c)
            if stored is None:
                raise
            return stored
        if (composed.size, composed.crc32c) != (size, crc32c):
            raise ContentChanged(path, "somebody else has written to it")
        return composed

    async def _as_expected(self, path: str, size: int, crc32c: str) -> GcsObject | None:
        """The object, if it has this content."""
        with contextlib.suppress(DriverError):
            now = await self.head(path)
            if (now.size, now.crc32c) == (size, crc32c):
                return now
        return None

    def _check_readable(self, path: str, answer: aiohttp.ClientResponse) -> None:
        if _GENERATION not in answer.headers:
            answer.close()
            raise BackendFailure(path, not_of_store(self._client.description, answer.status))
        if answer.content_type == SESSION_TYPE:
            answer.close()
            raise session_error(path)

    # --- copying and deleting ------------------------------------------------------------------------------------

    async def copy(self, source: str, destination: str, found: StoredObject) -> GcsObject:
        assert isinstance(found, GcsObject)  # noqa: S101 - this bucket's
        place = f"{self._object_url(source)}/rewriteTo/b/{quote(self.options.bucket, safe='')}/o/"
        url = place + quote(self.key(destination), safe="")
        query = {"ifSourceGenerationMatch": found.generation}
        try:
            async with asyncio.timeout(_COPY_DEADLINE):
                while True:
                    rewrite = functools.partial(
                        self._client.json, "POST", url, query, _json({"contentType": _CONTENT_TYPE})
                    )
                    answer = await self._ask(self._writes, destination, rewrite)
                    if answer.get("done"):
                        break
                    # As a rule it is done at once; between classes or places it takes some turns.
                    query = {**query, "rewriteToken": answer["rewriteToken"]}
        except TimeoutError as error:
            raise BackendFailure(destination, f"{self._client.description} takes too long to copy it") from error
        except PathNotFound as error:
            raise ContentChanged(source, "it was removed while it was copied") from error
        copied = _object(answer["resource"])
        if (copied.size, copied.crc32c) != (found.size, found.crc32c):
            raise ContentChanged(source, "it was replaced while it was copied")
        return copied

    async def delete_keys(self, path: str, keys: Sequence[str]) -> None:
        for start in range(0, len(keys), _DELETED_AT_ONCE):
            batch = keys[start : start + _DELETED_AT_ONCE]
            refused = batch if len(batch) == 1 else await self._delete_batch(path, batch)
            # One by one there is a reason for each.
            await gather([self._delete(self.path(key)) for key in refused])

    async def _delete(self, path: str) -> None:
        async def delete() -> None:
            await self._client.json("DELETE", self._object_url(path), {})

        with contextlib.suppress(PathNotFound):
            await self._ask(self._writes, path, delete)

    async def _delete_batch(self, path: str, keys: Sequence[str]) -> Sequence[str]:
        """Deletes objects by one request; returns those that may be there still."""
        boundary = uuid.uuid4().hex
        requests = [
            f"--{boundary}\r\nContent-Type: application/http\r\nContent-ID: <{number}>\r\n\r\n"
            f"DELETE {self._object_url(self.path(key))} HTTP/1.1\r\n\r\n\r\n"
            for number, key in enumerate(keys)
        ]
        body = "".join([*requests, f"--{boundary}--\r\n"]).encode()

        async def delete() -> list[int]:
            content_type = f"multipart/mixed; boundary={boundary}"
            async with self._client.request("POST", BATCH, {}, body, content_type) as answer:
                return _statuses(await answer.read())

        try:
            statuses = await self._ask(self._writes, path, delete)
        except (BackendFailure, UnsupportedByDriver, PathNotFound):
            return keys
        # They come in the order in which they were asked for.
        if len(statuses) != len(keys):
            return keys
        return [key for key, status in zip(keys, statuses, strict=True) if status not in {200, 204, 404}]

    # --- listings ------------------------------------------------------------------------------------------------

    async def pages(
        self, path: str, prefix: str, *, delimiter: str = "", limit: int | None = None
    ) -> AsyncIterator[Page]:
        query = {"prefix": prefix, "fields": f"items({_FIELDS}),prefixes,nextPageToken"}
        query |= {"delimiter": delimiter} if delimiter else {}
        query |= {"maxResults": str(limit)} if limit is not None else {}
        token: str | None = ""
        while token is not None:
            page, token = await self._page(path, query | ({"pageToken": token} if token else {}))
            yield page

    async def _page(self, path: str, query: Mapping[str, str]) -> tuple[Page, str | None]:
        async def fetch() -> dict[str, Any]:
            return await self._client.json("GET", self._objects_url, query)

        try:
            answer = await self._ask(self._metadata, path, fetch)
        except PathNotFound as error:
            # Of a bucket that is there even nothing can be listed.
            raise UnknownSource(
                f"gs://{self.options.bucket}", f"{self._client.description}: there is no such bucket"
            ) from error
        token = answer.get("nextPageToken")
        objects = {found["name"]: _object(found) for found in answer.get("items", [])}
        return Page(objects, answer.get("prefixes", []), is_last=not token), token or None

    async def _check_bucket(self, path: str) -> None:
        """Raises `UnknownSource` if the bucket is not there, unless it was a moment ago.

        Of an object that is missing Google says the same as of one in a bucket that is missing.
        """
        if time.monotonic() - self._client.answered_at > _THERE_FOR:
            await self._page(path, {"prefix": self.key(path), "maxResults": "1"})

    # --- asking --------------------------------------------------------------------------------------------------

    def _object_url(self, path: str) -> str:
        return f"{self._objects_url}/{quote(self.key(path), safe='')}"

    async def _ask(
        self,
        limit: asyncio.Semaphore,
        path: str,
        request: Callable[[], Awaitable[_Result]],
        *,
        length: int = 0,
    ) -> _Result:
        async with limit:
            return await self._client.ask(path, request, length=length)


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value).encode()


def session_error(path: str) -> UnsupportedByDriver:
    """Why a registry's unfinished upload can be neither read nor gone on with."""
    return UnsupportedByDriver(
        path,
        "a registry has begun it, and has its bytes in an upload session that only it can go on with; finish it there, "
        "or cancel it and begin anew",
    )


def encode_crc32c(value: int) -> str:
    """As the store writes it."""
    return base64.b64encode(value.to_bytes(4, "big")).decode()


def decode_crc32c(text: str) -> int:
    """From how the store writes it."""
    return int.from_bytes(base64.b64decode(text), "big")


def _if_generation(generation: str | None) -> dict[str, str]:
    return {} if generation is None else {"ifGenerationMatch": generation}


def _object(found: Mapping[str, Any]) -> GcsObject:
    generation, crc32c = str(found["generation"]), str(found.get("crc32c", ""))
    is_session = found.get("contentType") == SESSION_TYPE
    size = int(found["size"]) + (_offset(found) if is_session else 0)
    changed_at = int(datetime.fromisoformat(found["updated"]).timestamp() * 1e9)
    return GcsObject(
        size, f"{generation}/{crc32c}", changed_at, generation=generation, crc32c=crc32c, is_session=is_session
    )


def _offset(found: Mapping[str, Any]) -> int:
    """How many bytes a registry's upload session has, besides those in the object that stands for it."""
    text = str((found.get("metadata") or {}).get("Offset", ""))
    return int(text) if text.isdecimal() and len(text) < 16 else 0


def _etag_of(answer: aiohttp.ClientResponse) -> str:
    hashes = ",".join(answer.headers.getall("x-goog-hash", []))
    crc32c = next((part.partition("=")[2] for part in hashes.split(",") if part.strip().startswith("crc32c=")), "")
    return f"{answer.headers.get(_GENERATION, '')}/{crc32c}"


def _statuses(body: bytes) -> list[int]:
    """The status of each answer in the answer to a batch."""
    lines = (line.split() for line in body.split(b"\r\n") if line.startswith(b"HTTP/"))
    return [int(words[1]) for words in lines if len(words) > 1 and words[1].isdigit()]
