"""What object stores say of what they hold: values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StoredObject:
    """What a store says of an object. `size` in bytes, `modified_at` in nanoseconds since 1970.

    `etag` is another one whenever the object is, and unquoted."""

    size: int
    etag: str
    modified_at: int


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a listing: objects by key, and the prefixes that end at the delimiter."""

    objects: Mapping[str, StoredObject]
    prefixes: Sequence[str]
    is_last: bool
