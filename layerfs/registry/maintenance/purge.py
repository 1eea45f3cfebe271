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

import contextlib
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from layerfs.driver.interface import FileInfo, StorageDriver
from layerfs.errors import ContentTooLarge, DriverError, NotRegularFile, PathNotFound
from layerfs.registry.paths import REPOSITORIES, RepositoryDirectory, UploadDirectory
from layerfs.registry.registry import Registry
from layerfs.registry.side_by_side import at_once_on, side_by_side
from layerfs.registry.times import STARTED_AT_LIMIT, parse_rfc3339, time_of

#: What registries purge by default.
DEFAULT_AGE: Final = timedelta(hours=168)

#: Who writes to an upload comes back within this time.
IDLE: Final = timedelta(hours=1)

#: Uploads whose beginnings are read in one request.
_BATCH: Final = 256

#: Directories inside one another in an upload: a registry makes two. Whoever made more does not keep us.
_DEPTH: Final = 8

#: What says that there is no time in `startedat`; all else says that it cannot be known.
_NO_TIME: Final = (PathNotFound, NotRegularFile, ContentTooLarge)


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


@dataclass(frozen=True, slots=True)
class FailedUpload:
    """An upload that could not be looked at, or not be deleted; where `upload` is None, all those of `repository`.

    Then `repository` may also be no more than the beginning of names.
    """

    repository: str
    upload: str | None
    error: DriverError


def _ignore(_kept: KeptUpload) -> None:
    pass


async def purge_uploads(
    registry: Registry,
    *,
    older_than: timedelta = DEFAULT_AGE,
    dry_run: bool = False,
    now: datetime | None = None,
    on_kept: Callable[[KeptUpload], None] = _ignore,
    on_failed: Callable[[FailedUpload], None] | None = None,
) -> AsyncGenerator[PurgedUpload, None]:
    """Deletes the uploads of all repositories that are older, and gives each after it is gone; on object stores many go
    at a time.

    A `dry_run` gives the same ones and changes nothing. `on_kept` is told of those that are old enough but being
    written, `on_failed` of those that cannot be looked at or deleted, and the others go nevertheless; without it the
    first such error is raised, and those already given are gone. `now` (aware) is for whoever wants to know what a
    later purge would do.

    May be interrupted anywhere and repeated: what a crash leaves of an upload is purged when it is old enough itself.
    Raises `DriverError` if the storage as a whole cannot be looked at.
    """
    purge = _Purge(registry, older_than, now or datetime.now(UTC), on_kept, on_failed, dry_run=dry_run)
    at_once = at_once_on(registry.driver)
    names = await purge.repositories()
    for first in range(0, len(names), at_once):
        some = names[first : first + at_once]
        listed = await side_by_side(purge.batches, some, at_once=at_once)
        for name, uploads in [
            (name, uploads) for name, batches in zip(some, listed, strict=True) for uploads in batches
        ]:
            due = await purge.find_due(name, uploads)
            for start in range(0, len(due), at_once):
                # Looked at right before it goes: deleting those before it took its time.
                for purged in await side_by_side(purge.purge, due[start : start + at_once], at_once=at_once):
                    if purged is not None:
                        yield purged


@dataclass(frozen=True, slots=True)
class _Due:
    """An upload that is old by its `startedat`, or has none that could tell."""

    place: UploadDirectory
    started_at: datetime | None


class _Purge:
    def __init__(
        self,
        registry: Registry,
        older_than: timedelta,
        now: datetime,
        on_kept: Callable[[KeptUpload], None],
        on_failed: Callable[[FailedUpload], None] | None,
        *,
        dry_run: bool,
    ) -> None:
        self._registry = registry
        self._driver = registry.driver
        self._older_than = older_than
        self._idle = min(IDLE, older_than)
        self._now = now
        self._on_kept = on_kept
        self._on_failed = on_failed
        self._dry_run = dry_run

    async def repositories(self) -> list[str]:
        """The names of all; what cannot be looked at is told. Raises `DriverError` if that is everything."""
        try:
            # Not by the catalog, for which a registry that cannot be listed is one repository fewer.
            await self._driver.list(REPOSITORIES)
        except PathNotFound:
            return []
        return [name async for name in self._registry.catalog(on_error=self._fail_all)]

    async def batches(self, name: str) -> list[list[str]]:
        """The ids of all uploads of a repository."""
        try:
            entries = await self._driver.list(RepositoryDirectory(name).uploads)
        except (PathNotFound, NotRegularFile):
            return []
        except DriverError as error:
            self._fail_all(name, error)
            return []
        uuids = sorted(entry.name for entry in entries if entry.is_directory)
        return [uuids[start : start + _BATCH] for start in range(0, len(uuids), _BATCH)]

    async def find_due(self, name: str, uuids: Sequence[str]) -> list[_Due]:
        """Those that are old enough, as far as `startedat` can tell."""
        places = [UploadDirectory(name, uuid) for uuid in uuids]
        contents = await self._driver.get_contents([place.started_at for place in places], limit=STARTED_AT_LIMIT)
        due = []
        for place, content in zip(places, contents, strict=True):
            if isinstance(content, DriverError) and not isinstance(content, _NO_TIME):
                self._fail(place, content)
                continue
            started_at = None if isinstance(content, DriverError) else parse_rfc3339(content)
            if started_at is None or self._now - started_at >= self._older_than:
                due.append(_Due(place, started_at))
        return due

    async def purge(self, due: _Due) -> PurgedUpload | None:
        """What was deleted, or would be; None if it is not old after all, being written, gone, or it fails."""
        try:
            purged = await self._confirm(due)
            if purged is not None and not self._dry_run:
                await self._registry.uploads.remove(due.place.name, due.place.uuid)
        except DriverError as error:
            self._fail(due.place, error)
            return None
        return purged

    async def _confirm(self, due: _Due) -> PurgedUpload | None:
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

    def _fail(self, place: UploadDirectory, error: DriverError) -> None:
        self._tell(FailedUpload(place.name, place.uuid, error))

    def _fail_all(self, name: str, error: DriverError) -> None:
        self._tell(FailedUpload(name, None, error))

    def _tell(self, failed: FailedUpload) -> None:
        if self._on_failed is None:
            raise failed.error
        self._on_failed(failed)


async def list_files(driver: StorageDriver, path: str) -> list[FileInfo]:
    """All files of an upload; the directory itself if there is none. Raises `PathNotFound` if it is gone."""
    if driver.capabilities.listed_files:
        return await _list_together(driver, path)
    files: list[FileInfo] = []
    waiting = [path]
    for _ in range(_DEPTH):
        paths: list[str] = []
        below: list[str] = []
        for directory in waiting:
            for entry in await driver.list(directory):
                (below if entry.is_directory else paths).append(f"{directory}/{entry.name}")
        for info in await driver.stat_many(paths):
            if isinstance(info, FileInfo):
                files.append(info)
            elif not isinstance(info, PathNotFound | NotRegularFile):
                # When that one was changed could be what matters.
                raise info
        waiting = below
    return files or [await driver.stat(path)]


async def _list_together(driver: StorageDriver, path: str) -> list[FileInfo]:
    """By one listing; and a look at the data, where what is still open is not listed as a file."""
    try:
        files = await driver.list_files(path)
    except PathNotFound:
        files = []
    if not driver.capabilities.listed_uploads:
        data = f"{path}/data"
        with contextlib.suppress(PathNotFound, NotRegularFile):
            found = await driver.stat(data)
            files = [info for info in files if info.path != data] + [found] * (not found.is_directory)
    if not files:
        raise PathNotFound(path)
    return files
