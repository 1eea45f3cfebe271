"""`BlobStore`: the content-addressed bytes that all repositories of a registry share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

import trio

from layerfs.digest import CANONICAL, Digest
from layerfs.driver.interface import FileInfo, FileReader, SealedFile, StorageDriver
from layerfs.errors import BlobUnknown, DriverError, LayerfsError, NotRegularFile, PathNotFound
from layerfs.registry.cache import CachedBlob, DescriptorCache, MemoryCache
from layerfs.registry.paths import BLOBS, BlobData


@dataclass(frozen=True, slots=True)
class BlobInfo:
    """A stored blob: `size` in bytes, `stored_at` in nanoseconds since 1970 (0 if the backend does not know).

    `seen_at`, by `trio.current_time`, is when storage was last known to have it; None if nobody knows.
    """

    digest: Digest
    size: int
    stored_at: int
    seen_at: float | None = field(default=None, compare=False)


#: Blobs from which on it may be worth while to list them all rather than ask for each, the directories that they are
#: spread over, and how many may be listed for each that is wanted.
_WORTH_LISTING: Final = 200
_DIRECTORIES: Final = 256
_LISTED_FOR_ONE: Final = 4

Found: TypeAlias = list[BlobInfo | LayerfsError]


class BlobStore:
    """Blobs by their canonical digest. What is read is not verified against it; what is published was, by `uploads`.

    `cache` is told what is stored and what is gone. It answers instead of storage only where `recall` allows it, for
    blobs that storage had less than `believe_for` seconds ago: a size is never stale, but a blob may be gone.
    """

    def __init__(
        self, driver: StorageDriver, cache: DescriptorCache | None = None, *, believe_for: float = 0.0
    ) -> None:
        self._driver = driver
        self._cache = cache
        self._believe_for = believe_for
        self._seen = self._memory(driver, cache)
        #: How often the cache answered instead of storage, and how often it was asked and could not.
        self.cache_hits = 0
        self.cache_misses = 0

    async def stat(self, digest: Digest, *, recall: bool = False) -> BlobInfo:
        """Raises `BlobUnknown` if there is no such blob (or something that is no file in its place)."""
        if recall and (known := await self._recall(digest)) is not None:
            return known
        (found,) = await self.stat_many([digest])
        if isinstance(found, BlobUnknown):
            await self.forget(digest)
        if isinstance(found, LayerfsError):
            raise found
        await self._remember([found])
        return found

    async def stat_many(self, digests: Sequence[Digest]) -> Found:
        """`stat` of each, in order, an error standing in its place."""
        asked_at = trio.current_time()
        found = await self._driver.stat_many([BlobData(digest).path for digest in digests])
        return [_blob_info(digest, info, asked_at) for digest, info in zip(digests, found, strict=True)]

    async def recall_many(self, digests: Sequence[Digest]) -> Found:
        """`stat_many`, but what was seen before, whenever that was, comes from memory: one that is gone may be there.

        For listings: what is remembered must be looked at again before it is relied on.
        """
        known = await self._known(digests)
        missing = [digest for digest in dict.fromkeys(digests) if digest not in known]
        self.cache_hits += len(known)
        self.cache_misses += len(missing) if self._seen is not None else 0
        found = await self._listed(missing)
        if found is None:
            found = dict(zip(missing, await self.stat_many(missing), strict=True))
        await self._remember([info for info in found.values() if isinstance(info, BlobInfo)])
        return [known[digest] if digest in known else found[digest] for digest in digests]

    async def _listed(self, digests: Sequence[Digest]) -> dict[Digest, BlobInfo | LayerfsError] | None:
        """What `stat_many` gives, out of a listing of all blobs; None where that would take longer.

        On S3 a request costs 1 ms of CPU, whether it is for one blob or lists a thousand, which costs 80 ms.
        """
        if not self._driver.capabilities.listed_files or len(digests) < _WORTH_LISTING:
            return None
        asked_at = trio.current_time()
        # The first digits of digests are evenly spread: how many others one has beside it tells how many there are.
        beside = len(await self._files(BlobData(digests[0]).path.rsplit("/", 2)[0])) - 1
        if beside * _DIRECTORIES > _LISTED_FOR_ONE * len(digests):
            return None
        files = {info.path: info for info in await self._files(f"{BLOBS}/{CANONICAL}")}
        return {digest: _listed_info(digest, files.get(BlobData(digest).path), asked_at) for digest in digests}

    async def _files(self, directory: str) -> list[FileInfo]:
        try:
            return await self._driver.list_files(directory)
        except PathNotFound:
            return []

    async def open(self, digest: Digest, *, known: BlobInfo | None = None) -> FileReader:
        """The bytes of a blob, with no request for what is `known` from a moment ago. Raises `BlobUnknown`."""
        path = BlobData(digest).path
        try:
            if known is not None:
                return await self._driver.open_known(FileInfo(path, False, known.size, known.stored_at))
            return await self._driver.open(path)
        except (PathNotFound, NotRegularFile) as error:
            await self.forget(digest)
            raise BlobUnknown(digest) from error

    async def publish(self, sealed: SealedFile, digest: Digest) -> BlobInfo | None:
        """Makes a sealed file the blob that it was verified to be; returns it, if storage tells of it unasked."""
        asked_at = trio.current_time()
        published = await sealed.publish(BlobData(digest).path)
        if published is None:
            return None
        return BlobInfo(digest, published.size, published.modified_at, asked_at)

    # --- the cache ------------------------------------------------------------------------------------------------

    async def learn(
        self, digest: Digest, size: int, *, repository: str | None, published: BlobInfo | None = None
    ) -> None:
        """Has the cache know a blob that was just stored or linked. Never fails; not cancelled in the middle.

        `published` is what storage has told of it, which listings then need not ask for.
        """
        if self._cache is not None:
            with trio.CancelScope(shield=True):
                await self._cache.learn([CachedBlob(digest, size)], repository=repository)
                await self._remember([published] if published is not None else [])

    async def forget(self, digest: Digest, *, repository: str | None = None) -> None:
        """Has the cache forget a blob that is gone, from `repository` or at all. Never fails; not cancelled either.

        A registry that shares the cache would go on to promise it, and to take uploads of it for done.
        """
        if self._cache is not None:
            with trio.CancelScope(shield=True):
                await self._cache.forget(digest, repository=repository)
                if self._seen is not None and self._seen is not self._cache:
                    await self._seen.forget(digest)

    def _memory(self, driver: StorageDriver, cache: DescriptorCache | None) -> DescriptorCache | None:
        """Where it is remembered what blobs were seen, if anybody may ask for it."""
        if cache is None or not (driver.capabilities.listed_files or (cache.tells_age and self._believe_for > 0)):
            return None
        # A cache that is shared does not know the times that listings show.
        return cache if cache.tells_age else MemoryCache()

    @property
    def _may_recall(self) -> bool:
        return self._cache is not None and self._cache.tells_age and self._believe_for > 0

    async def _remember(self, found: Sequence[BlobInfo]) -> None:
        if self._seen is not None and found:
            await self._seen.learn(
                [CachedBlob(info.digest, info.size, stored_at=info.stored_at, seen_at=info.seen_at) for info in found]
            )

    async def _recall(self, digest: Digest) -> BlobInfo | None:
        known = (await self._known([digest])).get(digest) if self._may_recall else None
        if known is None or known.seen_at is None or trio.current_time() - known.seen_at >= self._believe_for:
            self.cache_misses += self._may_recall
            return None
        self.cache_hits += 1
        return known

    async def _known(self, digests: Sequence[Digest]) -> dict[Digest, BlobInfo]:
        """What is remembered of them, however old."""
        if self._seen is None:
            return {}
        return {
            blob.digest: BlobInfo(blob.digest, blob.size, blob.stored_at, blob.seen_at)
            for blob in await self._seen.find_many(digests)
            if blob is not None and blob.stored_at is not None
        }


def _blob_info(digest: Digest, found: FileInfo | DriverError, asked_at: float) -> BlobInfo | LayerfsError:
    if isinstance(found, PathNotFound | NotRegularFile):
        return BlobUnknown(digest)
    if isinstance(found, DriverError):
        return found
    if found.is_directory:
        return BlobUnknown(digest)
    return BlobInfo(digest, found.size, found.modified_at, asked_at)


def _listed_info(digest: Digest, found: FileInfo | None, asked_at: float) -> BlobInfo | LayerfsError:
    if found is None:
        return BlobUnknown(digest)
    return BlobInfo(digest, found.size, found.modified_at, asked_at)
