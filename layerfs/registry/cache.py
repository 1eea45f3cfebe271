"""`DescriptorCache`: what is known of blobs without asking storage, by digest; `MemoryCache` keeps it in this process.

An entry is a digest, a size and a media type, known for the whole registry and, apart from that, for repositories,
where the media type may be another one: the two levels of distribution's `BlobDescriptorCacheProvider`. Only what is
there is remembered, never that something is not.

The size of content is never stale, but the content itself may be gone. So an entry says when storage was last seen
to have the blob, if the cache knows that, and whoever asks decides how old is too old (`BlobStore`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, TypeAlias, TypeVar

from layerfs.digest import Digest
from layerfs.errors import LayerfsError

#: What a registry calls every blob that nobody has told it more about.
BLOB_TYPE: Final = "application/octet-stream"

#: Entries of a cache in memory, as many as distribution keeps by default: some 5 MB.
DEFAULT_LIMIT: Final = 10_000

_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


class CacheUnusable(LayerfsError):
    """A cache that was asked for cannot be had, whatever its server does."""


@dataclass(frozen=True, slots=True)
class CachedBlob:
    """What a cache knows of a blob. `digest` is canonical, `size` in bytes.

    `stored_at` is as in `BlobInfo`; `seen_at`, by `trio.current_time`, is when storage had it. A cache that many share
    knows neither.
    """

    digest: Digest
    size: int
    media_type: str = BLOB_TYPE
    stored_at: int | None = None
    seen_at: float | None = None


Found: TypeAlias = list[CachedBlob | None]


class DescriptorCache(ABC):
    """Blobs by digest. No method raises anything but `trio.Cancelled`: a cache that fails knows nothing."""

    #: Whether entries have `stored_at` and `seen_at`.
    tells_age: bool

    async def find(self, digest: Digest, *, repository: str | None = None) -> CachedBlob | None:
        """`find_many` of one."""
        (found,) = await self.find_many([digest], repository=repository)
        return found

    @abstractmethod
    async def find_many(self, digests: Sequence[Digest], *, repository: str | None = None) -> Found:
        """What is known of each, in order, None for nothing; with `repository` only what was learnt for that one."""

    @abstractmethod
    async def learn(
        self, blobs: Sequence[CachedBlob], *, repository: str | None = None, alias: Digest | None = None
    ) -> None:
        """Remembers blobs, with `repository` also for that one, and with `alias` (of the only one) also under that.

        The media type of the registry is the one that was learnt first, that of a repository the one learnt last.
        """

    @abstractmethod
    async def forget(self, digest: Digest, *, repository: str | None = None) -> None:
        """Nobody finds it any more until it is learnt again; with `repository` that one has to learn it itself."""

    @abstractmethod
    async def close(self) -> None:
        """Lets go of everything. May be called again."""


class MemoryCache(DescriptorCache):
    """Keeps the `limit` blobs that were learnt or found last, and as many memberships in repositories."""

    tells_age = True

    def __init__(self, limit: int = DEFAULT_LIMIT) -> None:
        self._limit = limit
        self._blobs: OrderedDict[Digest, CachedBlob] = OrderedDict()
        self._media_types: OrderedDict[tuple[str, Digest], str] = OrderedDict()

    def __len__(self) -> int:
        return len(self._blobs)

    async def find_many(self, digests: Sequence[Digest], *, repository: str | None = None) -> Found:
        """As promised above; takes no waiting."""
        return [self._find(digest, repository) for digest in digests]

    async def learn(
        self, blobs: Sequence[CachedBlob], *, repository: str | None = None, alias: Digest | None = None
    ) -> None:
        """As promised above; takes no waiting."""
        for blob in blobs:
            for digest in {blob.digest, alias or blob.digest}:
                known = self._blobs.get(digest)
                entry = blob if known is None else replace(blob, media_type=known.media_type)
                self._keep(self._blobs, digest, entry)
                if repository is not None:
                    self._keep(self._media_types, (repository, digest), blob.media_type)

    async def forget(self, digest: Digest, *, repository: str | None = None) -> None:
        """As promised above; takes no waiting."""
        self._blobs.pop(digest, None)
        if repository is not None:
            self._media_types.pop((repository, digest), None)

    async def close(self) -> None:
        """As promised above."""
        self._blobs.clear()
        self._media_types.clear()

    def _find(self, digest: Digest, repository: str | None) -> CachedBlob | None:
        blob = self._blobs.get(digest)
        if blob is None:
            return None
        if repository is not None:
            media_type = self._media_types.get((repository, digest))
            if media_type is None:
                return None
            self._media_types.move_to_end((repository, digest))
            blob = replace(blob, media_type=media_type)
        self._blobs.move_to_end(digest)
        return blob

    def _keep(self, entries: OrderedDict[_Key, _Value], key: _Key, entry: _Value) -> None:
        entries[key] = entry
        entries.move_to_end(key)
        if len(entries) > self._limit:
            entries.popitem(last=False)


def open_cache(url: str) -> DescriptorCache | None:
    """The cache that `--cache` names: None for `none`. Reaches for no server. Raises `CacheUnusable`."""
    if url == "none":
        return None
    if url == "memory":
        return MemoryCache()
    try:
        # Not before it is needed: the library is an extra.
        from layerfs.registry.redis_cache import RedisCache
    except ModuleNotFoundError as error:
        if error.name != "redis":
            raise
        raise CacheUnusable("a cache in Redis needs the package redis: pip install 'layerfs[redis]'") from error
    return RedisCache(url)
