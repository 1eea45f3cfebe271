"""All uploads of a registry: begun, found, listed, renamed, removed. What is done to one of them is in `layer_upload`.

An upload is a directory (`paths.UploadDirectory`) that registries and other nodes see and may go on with at any time:
`startedat` makes it one, `data` holds the bytes received, `hashstates/sha256/<n>` the state of their hash.
"""

from __future__ import annotations

import contextlib
import functools
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final, TypeAlias, TypeVar

import trio

from layerfs.driver.interface import Contents, FileInfo, FileWriter, Stats, StorageDriver
from layerfs.errors import (
    ContentTooLarge,
    DriverError,
    InvalidPath,
    InvalidUploadName,
    LayerUploadBusy,
    LayerUploadUnknown,
    NotRegularFile,
    PathNotFound,
)
from layerfs.names import FILE_NAME_LENGTH, check_upload_id, check_upload_name, is_upload_id, is_uuid, new_upload_id
from layerfs.registry.blobs import BlobStore
from layerfs.registry.finishing import Finishing
from layerfs.registry.hash_states import HashStates
from layerfs.registry.layer_upload import LayerUpload
from layerfs.registry.lost_tail import size_before_lost_tail
from layerfs.registry.nameless_uploads import NamelessUploads
from layerfs.registry.paths import RepositoryDirectory, UploadDirectory
from layerfs.registry.repositories import make_repository
from layerfs.registry.running_hash import RunningHash
from layerfs.registry.small_files import SmallFiles
from layerfs.registry.stored_upload import StoredUpload
from layerfs.registry.times import STARTED_AT_LIMIT, parse_rfc3339
from layerfs.registry.upload_data import UploadData
from layerfs.registry.upload_info import FoundUploads, ListedUpload, ListedUploads, UploadInfo, Uploads

_First = TypeVar("_First")
_Second = TypeVar("_Second")
_Third = TypeVar("_Third")

#: Uploads that a listing has found, and the UUIDs of those that may have a name, or be gone, a moment later.
_Listing: TypeAlias = tuple[Uploads, Sequence[str]]


class UploadStore:
    """All uploads of a registry, which share the threads that hash."""

    def __init__(self, driver: StorageDriver, blobs: BlobStore, *, trust_hash_states: bool) -> None:
        self.driver = driver
        self._blobs = blobs
        self._trust_hash_states = trust_hash_states
        self._hash_limiter = trio.CapacityLimiter(2)
        self._small_files = SmallFiles(driver)
        self._nameless = NamelessUploads(functools.partial(self._stat_many, in_order=True))

    async def create(self, name: str, *, file_name: str | None = None, uuid: str | None = None) -> LayerUpload:
        """Begins an upload to repository `name`, with the new id `uuid`; a `file_name` that is a UUID becomes its id.

        Raises `LayerUploadBusy` if there is an upload of that id. If the storage fails, no upload is left of it.
        """
        if file_name is not None:
            check_upload_name(file_name)
        uuid = uuid or new_upload_id()
        if file_name is not None and is_uuid(file_name):
            uuid = file_name
            await self._make_room(name, uuid)
        directory = UploadDirectory(name, uuid)
        started_at = datetime.now(UTC).replace(microsecond=0)
        await make_repository(self.driver, name)
        # `startedat` first: from here on it is an upload, which a registry purges if we die before the end.
        await self.driver.put_content(directory.started_at, started_at.strftime("%Y-%m-%dT%H:%M:%SZ").encode())
        try:
            if file_name not in (None, uuid):
                await self.driver.put_content(directory.file_name, str(file_name).encode())
            writer = await self.driver.writer(directory.data, append=False)
        except DriverError:
            with contextlib.suppress(DriverError):
                await self.remove(name, uuid)
            raise
        return self._upload(UploadInfo(name, uuid, file_name or uuid, started_at, 0, 0), writer)

    async def resume(self, name: str, uuid: str) -> LayerUpload:
        """The upload as storage has it now. Raises `LayerUploadUnknown`."""
        return self._upload(await self.stat(name, uuid), None)

    def _upload(self, info: UploadInfo, writer: FileWriter | None) -> LayerUpload:
        """An upload of its parts. `writer` is that of a new one."""
        directory = UploadDirectory(info.name, info.uuid)
        stored = StoredUpload(self.driver, directory)
        content_hash = RunningHash(self._hash_limiter)
        states = HashStates(self.driver, directory, trusted=self._trust_hash_states, may_exist=writer is None)
        data = UploadData(stored, content_hash, states, size=info.size, writer=writer)
        return LayerUpload(info, stored, data, Finishing(stored, self._blobs, content_hash, states))

    async def stat(self, name: str, uuid: str) -> UploadInfo:
        """Raises `LayerUploadUnknown` if it was never begun, or is finished or cancelled."""
        (info,) = await self._stat_many(name, [check_upload_id(uuid)])
        if info is None:
            raise LayerUploadUnknown(name, uuid)
        if isinstance(info, DriverError):
            raise info
        return info

    async def list(self, name: str) -> Uploads:
        """All uploads of repository `name`, the oldest first. What registries leave of cancelled ones is left out."""
        listed = await self.list_names(name)
        missing = [upload for upload in listed if upload.info is None]
        found = await self.stat_listed(name, missing)
        infos = _that_could_be_known([*(upload.info for upload in listed if upload.info is not None), *found])
        age = {upload.uuid: upload.age for upload in listed}
        return sorted(infos, key=lambda info: age[info.uuid])

    async def list_names(self, name: str) -> ListedUploads:
        """As `list`, but where each upload would have to be asked for how long it is, it is not asked."""
        try:
            infos, nameless = await (self._list_files(name) if self._lists_files else self._list_directories(name))
        except (PathNotFound, NotRegularFile):
            return []
        settled = _that_could_be_known(await self._nameless.settle(name, infos, nameless))
        listed = [_listed(info) for info in settled]
        if self._lists_files and not self.driver.capabilities.listed_uploads:
            listed = [replace(upload, info=None) for upload in listed]
        return sorted(listed, key=lambda upload: upload.age)

    async def stat_listed(self, name: str, listed: Sequence[ListedUpload]) -> FoundUploads:
        """Uploads that were listed a moment ago, as they are now; in order. None stands for those that are gone.

        Of each only the bytes are asked for, all at the same time.
        """
        places = [UploadDirectory(name, upload.uuid) for upload in listed]
        data = await self.driver.stat_many([place.data for place in places])
        found: dict[str, UploadInfo | DriverError | None] = {}
        for upload, place, file in zip(listed, places, data, strict=True):
            if isinstance(file, FileInfo):
                size = await size_before_lost_tail(self.driver, place, file)
                found[upload.uuid] = UploadInfo(
                    name, upload.uuid, upload.file_name, upload.started_at, size, file.modified_at
                )
            elif not isinstance(file, _ABSENT):
                found[upload.uuid] = file
        # These never had any, or are finished or cancelled.
        without = [upload for upload in listed if upload.uuid not in found]
        again = await self._stat_many(name, [upload.uuid for upload in without])
        for upload, info in zip(without, again, strict=True):
            # Of one that is being deleted the name may be gone already.
            found[upload.uuid] = replace(info, file_name=upload.file_name) if isinstance(info, UploadInfo) else info
        return [found[upload.uuid] for upload in listed]

    @property
    def _lists_files(self) -> bool:
        return self.driver.capabilities.listed_files

    async def _list_directories(self, name: str) -> _Listing:
        entries = await self.driver.list(RepositoryDirectory(name).uploads)
        uuids = sorted(entry.name for entry in entries if entry.is_directory)
        infos = _that_could_be_known(await self._stat_many(name, [uuid for uuid in uuids if is_upload_id(uuid)]))
        return infos, [info.uuid for info in infos if info.file_name == info.uuid]

    async def _list_files(self, name: str) -> _Listing:
        """Where one request tells of a thousand files what they are: who has no `startedat` is not looked at."""
        place = RepositoryDirectory(name).uploads
        files = {info.path: info for info in await self.driver.list_files(place)}
        counts = Counter(path[len(place) + 1 :].partition("/")[0] for path in files)
        begun = [UploadDirectory(name, uuid) for uuid in sorted(counts) if is_upload_id(uuid)]
        places = [directory for directory in begun if directory.started_at in files]
        paths = [place.started_at for place in places] + [place.file_name for place in places]
        contents = await self._small_files.get_contents(paths, files, limit=max(STARTED_AT_LIMIT, FILE_NAME_LENGTH))
        started, names = contents[: len(places)], contents[len(places) :]
        found = [
            _upload_info(place, started_at, file_name, files.get(place.data, PathNotFound(place.data)))
            for place, started_at, file_name in zip(places, started, names, strict=True)
        ]
        # What has anything else never gets one, so it costs no request: registries add a hash state at once.
        nameless = [
            place.uuid
            for place, file_name in zip(places, names, strict=True)
            if counts[place.uuid] == 1 or (place.file_name in files and isinstance(file_name, PathNotFound))
        ]
        return _that_could_be_known(found), nameless

    async def rename(self, name: str, uuid: str, file_name: str) -> None:
        """Gives an upload another file name, on every node."""
        check_upload_name(file_name)
        await self.stat(name, uuid)
        path = UploadDirectory(name, uuid).file_name
        try:
            await self.driver.put_content(path, file_name.encode())
        finally:
            self._small_files.forget(path)

    async def remove(self, name: str, uuid: str) -> None:
        """Deletes all that is stored of an upload. `startedat` goes last, so that it can be repeated after a crash."""
        await StoredUpload(self.driver, UploadDirectory(name, uuid)).delete()

    async def remove_ghosts(self, name: str) -> None:
        """Deletes what registries leave of cancelled uploads: directories without `startedat` and `data`."""
        entries = await self.driver.list(RepositoryDirectory(name).uploads)
        for entry in entries:
            directory = UploadDirectory(name, entry.name)
            found = await self.driver.stat_many([directory.started_at, directory.data])
            if entry.is_directory and all(isinstance(result, PathNotFound) for result in found):
                await self.remove(name, entry.name)

    async def _make_room(self, name: str, uuid: str) -> None:
        """Sees that there is no upload of this id, nor anything left of one: its hash states would be wrong."""
        try:
            await self.stat(name, uuid)
        except LayerUploadUnknown:
            with contextlib.suppress(PathNotFound):
                await self.driver.delete(UploadDirectory(name, uuid).path)
        else:
            raise LayerUploadBusy(name, uuid, "it was begun already")

    async def _stat_many(self, name: str, uuids: Sequence[str], *, in_order: bool = False) -> FoundUploads:
        places = [UploadDirectory(name, uuid) for uuid in uuids]
        started, names, data = await self._look_at(places, in_order=in_order or not self._lists_files)
        found = [
            _upload_info(place, started_at, file_name, info)
            for place, started_at, file_name, info in zip(places, started, names, data, strict=True)
        ]
        for index, (place, info, file) in enumerate(zip(places, found, data, strict=True)):
            if isinstance(info, UploadInfo) and isinstance(file, FileInfo):
                found[index] = replace(info, size=await size_before_lost_tail(self.driver, place, file))
        return found

    async def _look_at(self, places: Sequence[UploadDirectory], *, in_order: bool) -> tuple[Contents, Contents, Stats]:
        """What is stored of uploads: when they began, their names, and their bytes.

        In order, what is made last is looked for first: who finds that finds all that was made before it.
        """
        driver = self.driver
        started = functools.partial(driver.get_contents, [place.started_at for place in places], limit=STARTED_AT_LIMIT)
        names = functools.partial(driver.get_contents, [place.file_name for place in places], limit=FILE_NAME_LENGTH)
        data = functools.partial(driver.stat_many, [place.data for place in places])
        if in_order:
            found_data, found_names = await data(), await names()
            return await started(), found_names, found_data
        # Far away each is a way there and back, and the last one two of them.
        return await _side_by_side(started, names, data)


async def _side_by_side(
    first: Callable[[], Awaitable[_First]],
    second: Callable[[], Awaitable[_Second]],
    third: Callable[[], Awaitable[_Third]],
) -> tuple[_First, _Second, _Third]:
    """The results of calls that are made at the same time. Raises the `DriverError` of the first that has failed."""
    results: dict[int, Any] = {}
    failures: dict[int, DriverError] = {}

    async def call(number: int, function: Callable[[], Awaitable[Any]]) -> None:
        try:
            results[number] = await function()
        except DriverError as error:
            failures[number] = error

    async with trio.open_nursery() as nursery:
        for number, function in enumerate((first, second, third)):
            nursery.start_soon(call, number, function)
    if failures:
        raise failures[min(failures)]
    return results[0], results[1], results[2]


#: What says that a file is not there, or that no registry has put it there. All else says that it cannot be known.
_ABSENT: Final = (PathNotFound, NotRegularFile, InvalidPath)


def _upload_info(
    place: UploadDirectory,
    started_at: bytes | DriverError,
    file_name: bytes | DriverError,
    data: FileInfo | DriverError,
) -> UploadInfo | DriverError | None:
    """None where there is no upload, a `DriverError` where that cannot be known."""
    if isinstance(started_at, _ABSENT):
        return None
    # The name too: an upload that is shown under its UUID for once would be gone for whoever looks for its name.
    for found in (started_at, data, file_name):
        if isinstance(found, DriverError) and not isinstance(found, (*_ABSENT, ContentTooLarge)):
            return found
    size = modified_at = 0
    if isinstance(data, FileInfo):
        size, modified_at = data.size, data.modified_at
    shown = _parse_file_name(file_name) or place.uuid
    time = None if isinstance(started_at, DriverError) else parse_rfc3339(started_at)
    return UploadInfo(place.name, place.uuid, shown, time, size, modified_at)


def _that_could_be_known(found: FoundUploads) -> Uploads:
    """The uploads that are there. One bad upload is left out; if nothing else is left, looking has failed."""
    infos = [info for info in found if isinstance(info, UploadInfo)]
    failures = [failure for failure in found if isinstance(failure, DriverError)]
    if failures and not infos:
        raise failures[0]
    return infos


def _listed(info: UploadInfo) -> ListedUpload:
    return ListedUpload(info.uuid, info.file_name, info.started_at, info)


def _parse_file_name(content: bytes | DriverError) -> str | None:
    if isinstance(content, DriverError):
        return None
    try:
        return check_upload_name(content.decode())
    except (UnicodeDecodeError, InvalidUploadName):
        return None
