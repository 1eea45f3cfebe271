"""What the drivers need of an object store: the requests that can be made of one, and the values they give."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StoredObject:
    """What a store says of an object. `size` in bytes, `modified_at` in nanoseconds since 1970.

    `etag` is another one whenever the object is, and unquoted.
    """

    size: int
    etag: str
    modified_at: int


@dataclass(frozen=True, slots=True)
class ObjectVersion:
    """One content of an object. Equal versions are equal bytes."""

    etag: str
    size: int


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a listing: objects by key, and the prefixes that end at the delimiter."""

    objects: Mapping[str, StoredObject]
    prefixes: Sequence[str]
    is_last: bool


class Objects(ABC):
    """The requests that can be made of a bucket, below a prefix in it, for `object_store`. Runs on asyncio.

    Paths in, the driver's errors out; a bucket that is not there is `UnknownSource`, whatever is asked of it.
    """

    def __init__(self, root_prefix: str) -> None:
        self._prefix = f"{root_prefix}/" if root_prefix else ""

    def key(self, path: str) -> str:
        """The key of a path; with a slash at the end where the path is `/`, so that it can be listed."""
        return self._prefix + path[1:]

    def path(self, key: str) -> str:
        """The path of a key below the root."""
        return "/" + key[len(self._prefix) :]

    @abstractmethod
    async def head(self, path: str) -> StoredObject:
        """Raises `PathNotFound`."""

    @abstractmethod
    async def get(self, path: str, *, limit: int) -> bytes:
        """All of a small object. Raises `PathNotFound`, or `ContentTooLarge`."""

    @abstractmethod
    async def get_range(
        self, path: str, offset: int, length: int, *, size: int | None = None, etag: str | None = None
    ) -> bytes:
        """`length` bytes of an object, all of them.

        With a `size` only if the object has it, with an `etag` only of that version. Raises `ShortRead` if it has fewer
        bytes or is gone, `ContentChanged` if it is another one.
        """

    @abstractmethod
    async def put(self, path: str, content: bytes) -> None:
        """Makes the content the object, whole or not at all."""

    @abstractmethod
    async def delete_keys(self, path: str, keys: Sequence[str]) -> None:
        """Deletes the objects, which are at `path` or below it; no error for those that are gone."""

    @abstractmethod
    async def copy(self, source: str, destination: str, found: StoredObject) -> StoredObject:
        """Copies an object within the store, whole or not at all, and returns the copy.

        Raises `ContentChanged` if the object is not `found`.
        """

    @abstractmethod
    def pages(self, path: str, prefix: str, *, delimiter: str = "", limit: int | None = None) -> AsyncIterator[Page]:
        """All that has the prefix, by pages of at most `limit`; at least one, which may be empty."""

    @abstractmethod
    async def close(self) -> None:
        """Lets go of the connections."""
