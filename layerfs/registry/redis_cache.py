"""`RedisCache`: a descriptor cache in Redis, in the keys of distribution, so that registries and mounts can share it.

The keys, none of which ever expires (distribution, `registry/storage/cache/redis/redis.go`; seen with 2.8.2):

    blobs::<digest>                            hash: digest (canonical), size, mediatype
    repository::<name>::blobs                  set of the digests that a repository has
    repository::<name>::blobs::<digest>        hash: mediatype

Redis may be gone, slow, or hold what no registry wrote. None of that is an error here: the cache then knows nothing,
and is not asked again for a while.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Final, TypeAlias, TypeVar

import redis
import trio
from redis.backoff import NoBackoff
from redis.retry import Retry

from layerfs.digest import Digest
from layerfs.registry.cache import BLOB_TYPE, CachedBlob, CacheUnusable, DescriptorCache, Found

log = logging.getLogger(__name__)

#: Seconds that Redis gets for each answer. It takes a millisecond, or is of no use.
_SOCKET_TIMEOUT: Final = 0.5
#: Seconds for all of a call: also for what the sockets' timeouts do not bound, such as the search for a host's address.
_CALL_TIMEOUT: Final = 1.0
#: Seconds for which a Redis that has failed is left alone.
_PAUSE: Final = 5.0
#: Calls at a time; each has a thread and a connection.
_THREADS: Final = 4
#: Blobs in one request.
_BATCH: Final = 1000

#: The largest file that any storage can have.
_MAX_SIZE: Final = (1 << 63) - 1
_MEDIA_TYPE_LENGTH: Final = 255

_Result = TypeVar("_Result")
_Pipeline: TypeAlias = "redis.client.Pipeline"
_Answers: TypeAlias = list[Any]


class RedisCache(DescriptorCache):
    """The cache in the Redis at `url`: `redis://`, `rediss://` (TLS) or `unix://`, as redis-py reads them.

    Nothing is asked of the server yet. Raises `CacheUnusable` for a URL that has no meaning.
    """

    tells_age = False

    def __init__(self, url: str) -> None:
        try:
            pool = redis.ConnectionPool.from_url(
                url,
                protocol=2,
                socket_timeout=_SOCKET_TIMEOUT,
                socket_connect_timeout=_SOCKET_TIMEOUT,
                retry=Retry(NoBackoff(), 0),
                max_connections=4 * _THREADS,
            )
        except (ValueError, TypeError):
            # Without the words of the error, which may quote the URL and the password in it.
            raise CacheUnusable("the URL of the cache cannot be used; expected redis://HOST:PORT/DATABASE") from None
        self._client = redis.Redis(connection_pool=pool)
        self._limiter = trio.CapacityLimiter(_THREADS)
        self._retry_at = float("-inf")
        self._is_failing = False
        self._has_odd_keys = False

    async def find_many(self, digests: Sequence[Digest], *, repository: str | None = None) -> Found:
        """As promised by `DescriptorCache`: two requests for a thousand digests at most."""
        found: Found = []
        for start in range(0, len(digests), _BATCH):
            batch = digests[start : start + _BATCH]
            answers = await self._call(partial(self._ask, batch, repository))
            found += [None] * len(batch) if answers is None else self._understand(batch, answers, repository)
        return found

    async def learn(
        self, blobs: Sequence[CachedBlob], *, repository: str | None = None, alias: Digest | None = None
    ) -> None:
        """As promised by `DescriptorCache`."""

        def fill(pipeline: _Pipeline) -> None:
            for blob in blobs:
                for digest in {blob.digest, alias or blob.digest}:
                    _fill(pipeline, digest, blob, repository)

        await self._change(fill)

    async def forget(self, digest: Digest, *, repository: str | None = None) -> None:
        """As promised by `DescriptorCache`; removes what distribution since 3.0 does."""

        def empty(pipeline: _Pipeline) -> None:
            if repository is not None:
                pipeline.srem(_members_key(repository), str(digest))
                pipeline.delete(_member_key(repository, digest))
            pipeline.hdel(_blob_key(digest), "digest", "size", "mediatype")

        await self._change(empty)

    async def close(self) -> None:
        """As promised by `DescriptorCache`; does not wait for what is being asked."""
        self._client.connection_pool.disconnect()

    # --- requests; in threads -------------------------------------------------------------------------------------

    def _ask(self, digests: Sequence[Digest], repository: str | None) -> _Answers:
        with self._client.pipeline(transaction=False) as pipeline:
            for digest in digests:
                pipeline.hmget(_blob_key(digest), "digest", "size", "mediatype")
            for digest in digests if repository is not None else ():
                pipeline.sismember(_members_key(str(repository)), str(digest))
                pipeline.hget(_member_key(str(repository), digest), "mediatype")
            return pipeline.execute(raise_on_error=False)

    def _send(self, fill: Callable[[_Pipeline], None]) -> _Answers:
        with self._client.pipeline(transaction=False) as pipeline:
            fill(pipeline)
            return pipeline.execute(raise_on_error=False)

    # --- what came back -------------------------------------------------------------------------------------------

    async def _change(self, fill: Callable[[_Pipeline], None]) -> None:
        answers = await self._call(partial(self._send, fill))
        self._report_odd_keys(answers or [])

    def _understand(self, digests: Sequence[Digest], answers: _Answers, repository: str | None) -> Found:
        self._report_odd_keys(answers)
        blobs = [_blob(digest, fields) for digest, fields in zip(digests, answers, strict=False)]
        if repository is None:
            return blobs
        memberships = answers[len(digests) :]
        return [
            None if blob is None or is_member != 1 else _with_media_type(blob, media_type)
            for blob, is_member, media_type in zip(blobs, memberships[::2], memberships[1::2], strict=True)
        ]

    def _report_odd_keys(self, answers: Iterable[object]) -> None:
        """Says once that Redis has refused something: such a key, or a user who may not do it, will not go away."""
        error = next((answer for answer in answers if isinstance(answer, Exception)), None)
        if error is not None and not self._has_odd_keys:
            self._has_odd_keys = True
            log.warning("the cache in Redis refuses requests, storage is asked instead: %s", error)

    async def _call(self, request: Callable[[], _Result]) -> _Result | None:
        """What `request` gives, in a thread; None if Redis fails, or has failed a moment ago."""
        if trio.current_time() < self._retry_at:
            return None
        try:
            with trio.fail_after(_CALL_TIMEOUT):
                result = await trio.to_thread.run_sync(request, abandon_on_cancel=True, limiter=self._limiter)
        except (redis.RedisError, OSError, UnicodeError) as error:
            self._pause(str(error) or type(error).__name__)
            return None
        except trio.TooSlowError:
            self._pause(f"no answer within {_CALL_TIMEOUT} s")
            return None
        if self._is_failing:
            self._is_failing = False
            log.info("the cache in Redis works again")
        return result

    def _pause(self, reason: str) -> None:
        self._retry_at = trio.current_time() + _PAUSE
        if not self._is_failing:
            self._is_failing = True
            log.warning("the cache in Redis does not work, storage is asked instead: %s", self._without_secrets(reason))

    def _without_secrets(self, text: str) -> str:
        password = self._client.connection_pool.connection_kwargs.get("password")
        return text.replace(password, "***") if password else text


# --- keys and values ----------------------------------------------------------------------------------------------


def _blob_key(digest: Digest) -> str:
    return f"blobs::{digest}"


def _members_key(repository: str) -> str:
    return f"repository::{repository}::blobs"


def _member_key(repository: str, digest: Digest) -> str:
    return f"repository::{repository}::blobs::{digest}"


def _fill(pipeline: _Pipeline, digest: Digest, blob: CachedBlob, repository: str | None) -> None:
    key = _blob_key(digest)
    if repository is not None:
        pipeline.sadd(_members_key(repository), str(digest))
    pipeline.hset(key, mapping={"digest": str(blob.digest), "size": str(blob.size)})
    pipeline.hsetnx(key, "mediatype", blob.media_type)
    if repository is not None:
        pipeline.hset(_member_key(repository, digest), "mediatype", blob.media_type)


def _blob(digest: Digest, fields: object) -> CachedBlob | None:
    """What the fields of a blob's hash say; None unless they make sense, for anybody may have written them."""
    if not isinstance(fields, list) or len(fields) != 3:
        return None
    canonical, size = _digest(fields[0]), _size(fields[1])
    if canonical is None or size is None or (canonical != digest and digest.is_canonical):
        return None
    return CachedBlob(canonical, size, _media_type(fields[2]) or BLOB_TYPE)


def _with_media_type(blob: CachedBlob, value: object) -> CachedBlob:
    return CachedBlob(blob.digest, blob.size, _media_type(value) or blob.media_type)


def _digest(value: object) -> Digest | None:
    digest = Digest.parse_or_none(value.decode("ascii", "replace")) if isinstance(value, bytes) else None
    return digest if digest is not None and digest.is_canonical else None


def _size(value: object) -> int | None:
    if not isinstance(value, bytes) or not value.isdigit() or len(value) > len(str(_MAX_SIZE)):
        return None
    size = int(value)
    return size if size <= _MAX_SIZE else None


def _media_type(value: object) -> str | None:
    """A media type, if it can be one: short and printable."""
    if not isinstance(value, bytes) or not 0 < len(value) <= _MEDIA_TYPE_LENGTH:
        return None
    text = value.decode("ascii", "replace")
    return text if text.isascii() and text.isprintable() else None
