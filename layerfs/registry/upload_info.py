"""What is told of an upload. No I/O."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeAlias

from layerfs.errors import DriverError


@dataclass(frozen=True, slots=True)
class UploadInfo:
    """An upload as it is in storage. `size` is in bytes that count, `modified_at` in nanoseconds since 1970.

    `file_name` is the name that a mounted tree gave it, its UUID if it was begun by a registry. `started_at` is None
    where storage has something else than a time.
    """

    name: str
    uuid: str
    file_name: str
    started_at: datetime | None
    size: int
    modified_at: int


@dataclass(frozen=True, slots=True)
class ListedUpload:
    """An upload as a listing shows it. `info` is None where the listing does not tell how long it is."""

    uuid: str
    file_name: str
    started_at: datetime | None
    info: UploadInfo | None

    @property
    def age(self) -> tuple[datetime, str]:
        """The oldest first, in the same order for everybody."""
        return self.started_at or datetime.min.replace(tzinfo=UTC), self.uuid


Uploads: TypeAlias = list[UploadInfo]
#: None where there is no upload, an error where that cannot be known.
FoundUploads: TypeAlias = list[UploadInfo | DriverError | None]
ListedUploads: TypeAlias = list[ListedUpload]
