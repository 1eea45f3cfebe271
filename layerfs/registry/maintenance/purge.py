"""`purge_uploads`: uploads that nobody will finish any more are deleted.

A registry does this in the background (distribution's `registry/storage/purgeuploads.go`), but never deletes uploads
whose `startedat` is missing or no time, what it left itself of cancelled ones, ids that are no UUID, or the first of
two uploads that have the same id in two repositories. Here each is judged by itself:

* its age counts from `startedat`; where that cannot be used, from the last change to any file of the upload (of the
  directory, if there is no file). Where that cannot be known either, it is kept.
* it is being written, and kept, if any of its files was changed within the last hour (or within the age that was asked
  for, if that is less), or if a process has its data open for writing, where the driver can tell (local disk).
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from layerfs.driver.interface import FileInfo, StorageDriver
from layerfs.errors import ContentTooLarge, DriverError, NotRegularFile, PathNotFound
from layerfs.registry.maintenance.times import STARTED_AT_LIMIT, parse_rfc3339, time_of
from layerfs.registry.paths import RepositoryDirectory, UploadDirectory
from layerfs.registry.registry import Registry

#: What registries purge by default.
DEFAULT_AGE: Final = timedelta(hours=168)

#: Who writes to an upload comes back within this time.
IDLE: Final = timedelta(hours=1)

#: Uploads whose beginnings are read in one request.
_BATCH: Final = 256

#: Directories inside one another in an upload: a registry makes two. Whoever made more does not keep us.
_DEPTH: Final = 8


@dataclass(frozen=True, slots=True)
class PurgedUpload:
    """An upload that was deleted, or would be. `size` is in bytes; `started_at` is None where it could not be used."""

    repository: str
    upload: str
    started_at: datetime | None
    age: timedelta
    size: int


@dataclass(frozen=True, slots=True)
class KeptUpload:
    """An upload that is old enough, and was kept nevertheless."""

    repository: str
    upload: str
    reason: str


def _ignore(_kept: KeptUpload) -> None:
    pass


async def purge_uploads(
    registry: Registry,
    *,
    older_than: timedelta = DEFAULT_AGE,
    dry_run: bool = False,
    now: datetime | None = None,
    on_kept: Callable[[KeptUpload], None] = _ignore,
) -> AsyncGenerator[PurgedUpload, None]:
    """Deletes the uploads of all repositories that are older, and gives each after it is gone.

    A `dry_run` gives the same ones and changes nothing. `on_kept` is told of those that are old enough but being
    written. `now` (aware) is for whoever wants to know what a later purge would do.

    May be interrupted anywhere and repeated: what a crash leaves of an upload is purged when it is old enough itself.
    Raises `DriverError` for an upload that cannot be looked at or deleted; those already given are gone.
    """
    purge = _Purge(registry.driver, older_than, now or datetime.now(UTC), on_kept)
    for name in [name async for name in registry.catalog()]:
        for uploads in await purge.batches(name):
            for due in await purge.find_due(name, uploads):
                # Looked at one by one, right before it goes: deleting those before it took its time.
                purged = await purge.confirm(due)
                if purged is None:
                    continue
                if not dry_run:
                    await registry.uploads.remove(name, due.place.uuid)
                yield purged


@dataclass(frozen=True, slots=True)
class _Due:
    """An upload that is old by its `startedat`, or has none that could tell."""

    place: UploadDirectory
    started_at: datetime | None


class _Purge:
    def __init__(
        self, driver: StorageDriver, older_than: timedelta, now: datetime, on_kept: Callable[[KeptUpload], None]
    ) -> None:
        self._driver = driver
        self._older_than = older_than
        self._idle = min(IDLE, older_than)
        self._now = now
        self._on_kept = on_kept

    async def batches(self, name: str) -> list[list[str]]:
        """The ids of all uploads of a repository."""
        try:
            entries = await self._driver.list(RepositoryDirectory(name).uploads)
        except (PathNotFound, NotRegularFile):
            return []
        uuids = sorted(entry.name for entry in entries if entry.is_directory)
        return [uuids[start : start + _BATCH] for start in range(0, len(uuids), _BATCH)]

    async def find_due(self, name: str, uuids: Sequence[str]) -> list[_Due]:
        places = [UploadDirectory(name, uuid) for uuid in uuids]
        contents = await self._driver.get_contents([place.started_at for place in places], limit=STARTED_AT_LIMIT)
        due = []
        for place, content in zip(places, contents, strict=True):
            started_at = _started_at(content)
            if started_at is None or self._now - started_at >= self._older_than:
                due.append(_Due(place, started_at))
        return due

    async def confirm(self, due: _Due) -> PurgedUpload | None:
        """What is going to be deleted; None if it is not old after all, being written, or gone."""
        try:
            files = await list_files(self._driver, due.place.path)
        except PathNotFound:
            return None
        changed_at = time_of(max(info.modified_at for info in files))
        begun = due.started_at or changed_at
        if begun is None:
            self._keep(due, "when it was begun or last changed cannot be told")
            return None
        if self._now - begun < self._older_than:
            return None
        if changed_at is not None and self._now - changed_at < self._idle:
            self._keep(due, f"written at {changed_at:%Y-%m-%dT%H:%M:%SZ}, less than {self._idle} ago")
            return None
        if await self._driver.is_being_written(due.place.data):
            self._keep(due, "a process has it open for writing")
            return None
        size = sum(info.size for info in files if info.path == due.place.data)
        return PurgedUpload(due.place.name, due.place.uuid, due.started_at, self._now - begun, size)

    def _keep(self, due: _Due, reason: str) -> None:
        self._on_kept(KeptUpload(due.place.name, due.place.uuid, reason))


def _started_at(content: bytes | DriverError) -> datetime | None:
    """None where no time can be had. Raises what says that it cannot be known."""
    if isinstance(content, PathNotFound | NotRegularFile | ContentTooLarge):
        return None
    if isinstance(content, DriverError):
        raise content
    return parse_rfc3339(content)


async def list_files(driver: StorageDriver, path: str) -> list[FileInfo]:
    """All files of an upload; the directory itself if there is none. Raises `PathNotFound` if it is gone."""
    files: list[FileInfo] = []
    waiting = [path]
    for _ in range(_DEPTH):
        paths: list[str] = []
        below: list[str] = []
        for directory in waiting:
            for entry in await driver.list(directory):
                (below if entry.is_directory else paths).append(f"{directory}/{entry.name}")
        files += [info for info in await driver.stat_many(paths) if isinstance(info, FileInfo)]
        waiting = below
    return files or [await driver.stat(path)]
