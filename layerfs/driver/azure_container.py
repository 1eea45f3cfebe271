"""The requests that can be made of a container, each a method: paths in, the driver's errors out. Runs on asyncio.

How they are made, and made again, is the business of `azure_client`. An append that was tried again, or whose answer
was lost, looks like another's: so the end of the blob is compared before it counts as such.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from typing import IO, Any, Final, TypeVar, cast

from azure.core import MatchConditions
from azure.storage.blob import BlobProperties, BlobSasPermissions, BlobType, generate_blob_sas
from azure.storage.blob.aio import ContainerClient

from layerfs.driver.at_once import ByteBudget, gather
from layerfs.driver.azure_client import Client
from layerfs.driver.azure_errors import CopyPending, OtherKind, SourceUnreadable
from layerfs.driver.azure_options import AzureOptions
from layerfs.driver.body import Body
from layerfs.driver.buffers import BufferPool
from layerfs.driver.objects import Objects, Page, StoredObject
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
)

#: Requests in flight, by kind, so that a long listing cannot starve reads; the SDK has 100 connections.
METADATA_REQUESTS: Final = 48
READ_REQUESTS: Final = 32
WRITE_REQUESTS: Final = 20

#: Bytes that all uploads together have on their way.
BLOCK_MEMORY: Final = 256 * MEBIBYTE

#: A copy within an account is done when it is answered, as a rule. Else it is looked at after so many seconds, twice as
#: many each time, and given up after this time.
_FIRST_LOOK: Final = 0.05
_LONGEST_LOOK: Final = 2.0
_COPY_DEADLINE: Final = 900.0

#: Blobs that one request deletes.
_DELETED_AT_ONCE: Final = 256

#: Has the SDK unpack nothing, whatever a blob says of its encoding: digests are of what is stored.
_AS_STORED: Final[Mapping[str, Any]] = {"decompress": False}

#: What Azure notes of a blob that is a directory, in an account with a hierarchical namespace.
_DIRECTORY_MARK: Final = "hdi_isfolder"

#: How long the store may read the source of a copy on behalf of a user who is logged in.
_SIGNED_FOR: Final = timedelta(hours=1)

_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class AzureBlob(StoredObject):
    """What Azure says of a blob. `blocks` is how often it was appended to, which only an append blob can be."""

    blocks: int
    can_grow: bool


class Container(Objects):
    """A container, and the prefix in it that is the root. Opened by the first request."""

    def __init__(self, options: AzureOptions) -> None:
        super().__init__(options.root_prefix)
        self.options = options
        #: What the blocks that are on their way, of all uploads together, may take up.
        self.block_memory = ByteBudget(BLOCK_MEMORY)
        #: And their memory.
        self.block_buffers = BufferPool(options.block_size, kept=max(1, BLOCK_MEMORY // options.block_size))
        self._client = Client(options)
        self._knows_account = False
        self._metadata = asyncio.Semaphore(METADATA_REQUESTS)
        self._reads = asyncio.Semaphore(READ_REQUESTS)
        self._writes = asyncio.Semaphore(WRITE_REQUESTS)

    async def close(self) -> None:
        await self._client.close()

    # --- blobs ---------------------------------------------------------------------------------------------------

    async def head(self, path: str) -> AzureBlob:
        try:
            found = await self._properties(path)
        except PathNotFound:
            await self._check_account()
            raise
        if (found.metadata or {}).get(_DIRECTORY_MARK) == "true":
            raise self._hierarchical()
        if not _is_whole(found):
            raise PathNotFound(path)
        return _blob(found)

    async def _check_account(self) -> None:
        """Raises `UnknownSource` if directories are blobs there. Asked once: until there is one nothing else tells."""
        if self._knows_account:
            return

        async def ask(client: ContainerClient) -> bool:
            answer: dict[str, Any] = await client.get_account_information()
            return bool(answer.get("is_hns_enabled"))

        self._knows_account = True
        try:
            is_hierarchical = await self._ask(self._metadata, "/", ask)
        except DriverError:
            # Who is logged in, or has a token for the container alone, may not ask.
            return
        if is_hierarchical:
            self._knows_account = False
            raise self._hierarchical()

    def _hierarchical(self) -> UnknownSource:
        return UnknownSource(
            f"az://{self.options.container}",
            f"the account at {self._client.endpoint} has a hierarchical namespace (Data Lake Storage), in which "
            "directories are blobs: layerfs needs an account without one",
        )

    async def get(self, path: str, *, limit: int) -> bytes:
        async def read(client: ContainerClient) -> tuple[BlobProperties, int, bytes]:
            # One byte more shows that there is more, without a request for the size.
            answer = await client.download_blob(self.key(path), offset=0, length=limit + 1, **_AS_STORED)
            content = await _read_all(answer)
            size = int((answer.properties.content_range or f"/{len(content)}").rpartition("/")[2])
            return answer.properties, size, content

        try:
            found, size, content = await self._ask(self._reads, path, read, length=limit)
        except ShortRead:
            # There is no range of an empty blob that Azure would give.
            if (await self.head(path)).size:
                raise
            return b""
        if not _is_whole(found):
            raise PathNotFound(path)
        if size > limit:
            raise ContentTooLarge(path, f"{size} bytes, more than {limit}")
        if len(content) != size:
            raise ShortRead(path, f"{self._client.description} sent {len(content)} of {size} bytes")
        return content

    async def get_range(
        self, path: str, offset: int, length: int, *, size: int | None = None, etag: str | None = None
    ) -> bytes:
        if not length:
            return b""

        async def read(client: ContainerClient) -> tuple[int, bytes]:
            wanted = {**_AS_STORED, **_if_is(etag)}
            answer = await client.download_blob(self.key(path), offset=offset, length=length, **wanted)
            content = await _read_all(answer)
            return int(str(answer.properties.content_range).rpartition("/")[2]), content

        try:
            total, content = await self._ask(self._reads, path, read, length=length)
        except PathNotFound as error:
            raise ShortRead(path, "it was removed while it was open") from error
        if size is not None and total != size:
            raise (ShortRead if total < size else ContentChanged)(path, f"it has {total} bytes now, not {size}")
        if len(content) != length:
            raise ShortRead(path, f"{len(content)} of {length} bytes: it has {total} now")
        return content

    async def put(self, path: str, content: bytes) -> None:
        """As a block blob, in place of one of any kind."""

        async def upload(client: ContainerClient) -> object:
            return await client.get_blob_client(self.key(path)).upload_blob(
                content, overwrite=True, validate_content=self._client.has_sums
            )

        await self._replacing(path, lambda: self._ask(self._writes, path, upload, length=len(content)))

    async def create(self, path: str, found: AzureBlob | None) -> AzureBlob:
        """Makes an empty append blob, in place of what was found. Raises `ContentChanged` if that is not there."""
        if found is not None and not found.can_grow:
            # Azure replaces blobs by others of their kind only.
            await self._delete(path, etag=found.etag)
            found = None
        condition = _if_is(found.etag) if found is not None else {"match_condition": MatchConditions.IfMissing}

        async def begin(client: ContainerClient) -> AzureBlob:
            answer: dict[str, Any] = await client.get_blob_client(self.key(path)).create_append_blob(**condition)
            return AzureBlob(0, _etag(answer), _nanoseconds(answer["last_modified"]), blocks=0, can_grow=True)

        try:
            return await self._ask(self._writes, path, begin)
        except (ContentChanged, BackendFailure):
            # It may be that only the answer was lost.
            with contextlib.suppress(DriverError):
                now = await self.head(path)
                if now.can_grow and not now.blocks:
                    return now
            raise

    async def append(self, path: str, block: bytes | memoryview, blob: AzureBlob) -> AzureBlob:
        """Appends a block to a blob that is as `blob` says, durably. Raises `ContentChanged` if it is not."""

        async def append(client: ContainerClient) -> AzureBlob:
            answer: dict[str, Any] = await client.get_blob_client(self.key(path)).append_block(
                cast(IO[bytes], Body(block)),
                length=len(block),
                appendpos_condition=blob.size,
                validate_content=self._client.has_sums,
                **_if_is(blob.etag),
            )
            blocks = int(answer["blob_committed_block_count"])
            changed_at = _nanoseconds(answer["last_modified"])
            return AzureBlob(blob.size + len(block), _etag(answer), changed_at, blocks=blocks, can_grow=True)

        try:
            return await self._ask(self._writes, path, append, length=len(block))
        except PathNotFound as error:
            raise ContentChanged(path, "it was removed") from error
        except (ContentChanged, BackendFailure):
            appended = await self._as_if_appended(path, block, blob)
            if appended is None:
                raise
            return appended

    async def _as_if_appended(self, path: str, block: bytes | memoryview, blob: AzureBlob) -> AzureBlob | None:
        """The blob, if it is what appending the block has made of it, or would have."""
        with contextlib.suppress(DriverError):
            now = await self.head(path)
            may_be = (now.size, now.blocks) == (blob.size + len(block), blob.blocks + 1)
            if may_be and await self.get_range(path, blob.size, len(block), etag=now.etag) == block:
                return now
        return None

    async def _properties(self, path: str) -> BlobProperties:
        async def look(client: ContainerClient) -> BlobProperties:
            return await client.get_blob_client(self.key(path)).get_blob_properties()

        found = await self._ask(self._metadata, path, look)
        if found.last_modified is None:
            raise BackendFailure(path, not_of_store(self._client.description, HTTPStatus.OK))
        return found

    async def _replacing(self, path: str, make: Callable[[], Awaitable[_Result]]) -> _Result:
        """What `make` gives; Azure does not let it replace a blob of another kind, so then that is deleted first.

        That one and no other: a deletion that the store carries out late takes nothing away that was made since.
        """
        try:
            return await make()
        except OtherKind:
            with contextlib.suppress(PathNotFound, ContentChanged):
                await self._delete(path, etag=_etag(await self._properties(path)))
            return await make()

    # --- deleting ------------------------------------------------------------------------------------------------

    async def delete_keys(self, path: str, keys: Sequence[str]) -> None:
        for start in range(0, len(keys), _DELETED_AT_ONCE):
            batch = keys[start : start + _DELETED_AT_ONCE]
            refused = batch if len(batch) == 1 else await self._delete_batch(path, batch)
            # One by one there is a reason for each; and not every server knows how to delete many.
            await gather([self._delete(self.path(key)) for key in refused])

    async def _delete_batch(self, path: str, keys: Sequence[str]) -> Sequence[str]:
        """Deletes blobs by one request; returns those that it did not delete."""

        async def delete(client: ContainerClient) -> list[int]:
            answers = await client.delete_blobs(*keys, raise_on_any_failure=False)
            return [answer.status_code async for answer in answers]

        try:
            codes = await self._ask(self._writes, path, delete)
        except BackendFailure:
            return keys
        if len(codes) != len(keys):
            return keys
        return [key for key, code in zip(keys, codes, strict=True) if code not in {200, 202, 404}]

    async def _delete(self, path: str, *, etag: str | None = None) -> None:
        """Deletes one blob; no error if there is none. With an `etag` it raises `ContentChanged` if that is another."""

        async def delete(client: ContainerClient) -> None:
            await client.delete_blob(self.key(path), delete_snapshots="include", **_if_is(etag))

        with contextlib.suppress(PathNotFound):
            await self._ask(self._writes, path, delete)

    # --- copying -------------------------------------------------------------------------------------------------

    async def copy(self, source: str, destination: str, found: StoredObject) -> StoredObject:
        """As of `Objects`. The copy is of the kind that the source is; while it is made it does not count as a blob."""
        try:
            async with asyncio.timeout(_COPY_DEADLINE):
                return await self._replacing(destination, lambda: self._copy(source, destination, found))
        except TimeoutError as error:
            raise BackendFailure(destination, f"{self._client.description} takes too long to copy it") from error
        except PathNotFound as error:
            raise ContentChanged(source, "it was removed while it was copied") from error

    async def _copy(self, source: str, destination: str, found: StoredObject) -> StoredObject:
        try:
            copied = await self._start_copy(source, destination, found, is_signed=False)
        except SourceUnreadable:
            # Being logged in is not enough for the store to read what it copies, everywhere.
            if not self._client.is_logged_in:
                raise
            copied = await self._start_copy(source, destination, found, is_signed=True)
        except CopyPending:
            await self._wait_for_copy(destination)
            copied = await self._start_copy(source, destination, found, is_signed=False)
        if copied is None:
            copied = await self._wait_for_copy(destination)
        if copied.size != found.size:
            raise ContentChanged(destination, "somebody else has replaced it meanwhile")
        return copied

    async def _start_copy(
        self, source: str, destination: str, found: StoredObject, *, is_signed: bool
    ) -> StoredObject | None:
        """The copy, if it was done at once."""

        async def start(client: ContainerClient) -> StoredObject | None:
            url = client.get_blob_client(self.key(source)).url
            if is_signed:
                url = f"{url}?{await self._sign(source)}"
            blob = client.get_blob_client(self.key(destination))
            answer: dict[str, Any] = await blob.start_copy_from_url(
                url, source_etag=f'"{found.etag}"', source_match_condition=MatchConditions.IfNotModified
            )
            if answer.get("copy_status") != "success":
                return None
            return StoredObject(found.size, _etag(answer), _nanoseconds(answer["last_modified"]))

        return await self._ask(self._writes, destination, start)

    async def _wait_for_copy(self, destination: str) -> StoredObject:
        """The copy, when it is done. Raises if it failed."""
        pause = _FIRST_LOOK
        while True:
            now = await self._properties(destination)
            if _is_whole(now):
                return _blob(now)
            if now.copy.status != "pending":
                raise BackendFailure(destination, f"{self._client.description} has not copied it: {now.copy.status}")
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_LOOK)

    async def _sign(self, path: str) -> str:
        """Leave to read a blob for a while, in the name of the user who is logged in."""
        service = self._client.service
        now = datetime.now(UTC)
        # Clocks differ by minutes.
        begin, end = now - timedelta(minutes=15), now + _SIGNED_FOR
        return generate_blob_sas(
            str(service.account_name),
            self.options.container,
            self.key(path),
            user_delegation_key=await service.get_user_delegation_key(begin, end),
            permission=BlobSasPermissions(read=True),
            start=begin,
            expiry=end,
        )

    # --- listings ------------------------------------------------------------------------------------------------

    async def pages(
        self, path: str, prefix: str, *, delimiter: str = "", limit: int | None = None
    ) -> AsyncIterator[Page]:
        marker: str | None = ""
        while marker is not None:
            page, marker = await self._page(path, prefix, delimiter, limit, marker or None)
            yield page

    async def _page(
        self, path: str, prefix: str, delimiter: str, limit: int | None, marker: str | None
    ) -> tuple[Page, str | None]:
        async def fetch(client: ContainerClient) -> tuple[list[Any], str | None]:
            wanted: dict[str, Any] = {"name_starts_with": prefix, "results_per_page": limit}
            walk: Any = client.walk_blobs(**wanted, delimiter=delimiter) if delimiter else client.list_blobs(**wanted)
            pages = walk.by_page(continuation_token=marker)
            async for page in pages:
                return [found async for found in page], pages.continuation_token or None
            return [], None

        found, following = await self._ask(self._metadata, path, fetch)
        objects = {blob.name: _blob(blob) for blob in found if isinstance(blob, BlobProperties)}
        prefixes = [prefix.name for prefix in found if not isinstance(prefix, BlobProperties)]
        return Page(objects, prefixes, is_last=following is None), following

    # --- asking --------------------------------------------------------------------------------------------------

    async def _ask(
        self,
        limit: asyncio.Semaphore,
        path: str,
        request: Callable[[ContainerClient], Awaitable[_Result]],
        *,
        length: int = 0,
    ) -> _Result:
        async with limit:
            return await self._client.ask(path, request, length=length)


async def _read_all(answer: Any) -> bytes:
    """The content of an answer, which came as one piece: unlike the SDK's own method this does not copy it twice."""
    return b"".join([piece async for piece in answer.chunks()])


def _if_is(etag: str | None) -> dict[str, Any]:
    """The arguments that make a request fail if the blob is another one."""
    return {} if etag is None else {"etag": f'"{etag}"', "match_condition": MatchConditions.IfNotModified}


def _is_whole(found: BlobProperties) -> bool:
    """Whether it is not the place of a copy that is not done, or failed."""
    return found.copy.status in {None, "success"}


def _blob(found: BlobProperties) -> AzureBlob:
    can_grow = found.blob_type == BlobType.APPENDBLOB
    blocks = int(found.append_blob_committed_block_count or 0)
    return AzureBlob(int(found.size), _etag(found), _nanoseconds(found.last_modified), blocks=blocks, can_grow=can_grow)


def _etag(found: Any) -> str:
    return str(found["etag"] or "").strip('"')


def _nanoseconds(time: datetime) -> int:
    return int(time.timestamp() * 1e9)
