"""What the driver for S3 does, on asyncio: files and directories out of keys, and the uploads that this process writes.

A path is a file if there is an object, or an open upload, with its key; else it is a directory if there is something
below it. Open uploads are looked for only where they can be: at `_uploads/<id>/data`, where registries have them, and
wherever this process has begun one.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter, OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, TypeAlias
from weakref import WeakValueDictionary

from layerfs.driver.at_once import each, gather
from layerfs.driver.interface import (
    Entries,
    Entry,
    FileInfo,
    Files,
    Stats,
    check_path,
    is_component,
)
from layerfs.driver.object_paths import (
    KeyedStorage,
    check_may_be_deleted,
    check_not_root,
    file_info,
    names_below,
)
from layerfs.driver.objects import StoredObject
from layerfs.driver.s3_answers import OpenUpload
from layerfs.driver.s3_bucket import Bucket
from layerfs.driver.s3_copies import Copies
from layerfs.driver.s3_options import S3Options
from layerfs.driver.s3_stored_upload import S3Version, StoredUpload, complete, find_upload, known_upload
from layerfs.driver.s3_upload import S3Upload
from layerfs.errors import (
    ContentChanged,
    ContentTooLarge,
    DriverError,
    PathNotFound,
    ShortRead,
)

_UPLOAD_DATA: Final = re.compile(r"(?P<uploads>.*/_uploads/)[^/]+/data")
_UPLOADS: Final = re.compile(r".*/_uploads")
_UPLOAD_DIRECTORY: Final = re.compile(r".*/_uploads/[^/]+")

#: Seconds without a change after which an upload of somebody else is not being written, and how often to look. If the
#: last change is as long ago as the latter (nanoseconds), whatever the clocks say, there is no need to wait.
_STILL: Final = 1.5
_LOOKS: Final = 4
_SURELY_STILL: Final = 300 * 10**9

#: How many versions of such an upload are looked at by who reads it, if each is another one before it is read.
_VERSIONS: Final = 3

#: Paths that were written here, of which is kept what the next look at them would otherwise have to ask for.
_WRITTEN_KEPT: Final = 4096


# Named here because inside `Store` the word `list` is its method.
Uploads: TypeAlias = list[OpenUpload]
Keys: TypeAlias = list[str]


@dataclass(frozen=True, slots=True)
class _Left:
    """An upload as this process has left it."""

    upload_id: str | None
    version: S3Version


class _BeingWritten(ContentChanged):
    """An upload of somebody else that does not stand still for long enough to be repacked."""


class Store(KeyedStorage):
    """The storage of an `S3Driver`."""

    def __init__(self, options: S3Options) -> None:
        self.bucket = Bucket(options)
        self._copies = Copies(self.bucket)
        self._live: dict[str, S3Upload] = {}
        # Where this process has written: the upload that it has left, None once it is published.
        self._written: OrderedDict[str, _Left | None] = OrderedDict()
        # Held, by path, by whoever repacks an upload to read it, or makes it an object for good.
        self._repacking: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def close(self) -> None:
        for upload in list(self._live.values()):
            await upload.abandon()
        self._live.clear()
        await self._copies.close()
        await self.bucket.close()

    def key(self, path: str) -> str:
        return self.bucket.key(path)

    # --- looking -------------------------------------------------------------------------------------------------

    async def stat(self, path: str, opened: Sequence[OpenUpload] | None = None) -> FileInfo:
        """`opened`: the open uploads around, if somebody has listed them already."""
        if path == "/":
            # A prefix that nothing was ever put under is an empty storage; a bucket that is not there is an error.
            await self.is_directory(path)
            return FileInfo(path, True, 0, 0)
        found = await self._find_file(path, opened)
        if found is not None:
            return found
        await self._check_directory(path)
        return FileInfo(path, True, 0, 0)

    async def is_directory(self, path: str) -> bool:
        page = await self.bucket.list_objects(path, self._below(path), limit=1)
        return bool(page.objects) or path == "/"

    async def stat_many(self, paths: Sequence[str]) -> Stats:
        opened = await self._opened_around(paths)

        async def one(path: str) -> FileInfo:
            return await self.stat(check_path(path), opened.get(_uploads_of(path) or ""))

        return await each(map(one, paths))

    async def list(self, path: str) -> Entries:
        prefix = self._below(path)
        names, begun = await gather(
            [names_below(self.bucket.pages(path, prefix, delimiter="/"), prefix), self._begun_below(path)]
        )
        found = begun | (names or {})
        exists = path == "/" or names is not None or bool(begun)
        if _UPLOAD_DIRECTORY.fullmatch(path) and "data" not in found:
            exists = await self._add_upload(f"{path}/data", found) or exists
        if not exists:
            raise PathNotFound(path)
        return [Entry(name, is_directory) for name, is_directory in found.items() if is_component(name)]

    async def list_files(self, path: str) -> Files:
        """One request for a thousand files, wherever below they are. Open uploads are no files yet."""
        prefix = self._below(path)
        found: Files = []
        async for page in self.bucket.pages(path, prefix):
            for key, each_object in page.objects.items():
                if all(map(is_component, key[len(prefix) :].split("/"))):
                    found.append(file_info(self.bucket.path(key), each_object))
        if not found and path != "/":
            raise PathNotFound(path)
        return found

    async def _begun_below(self, path: str) -> dict[str, bool]:
        """The directories in a directory of uploads that have an open upload: it may be all that is left there.

        Registries that purge an upload delete its objects, and leave the parts.
        """
        if _UPLOADS.fullmatch(path) is None:
            return {}
        prefix = self._below(path)
        keys = [upload.key.removeprefix(prefix).split("/") for upload in await self.bucket.list_uploads(path, prefix)]
        return {key[0]: True for key in keys if key[1:] == ["data"]}

    async def _add_upload(self, path: str, found: dict[str, bool]) -> bool:
        if path not in self._live and not await self.bucket.list_uploads(path, self.key(path)):
            return False
        found["data"] = False
        return True

    async def _find_file(self, path: str, opened: Sequence[OpenUpload] | None = None) -> FileInfo | None:
        """The file at a path; None if there is no file."""
        if self._may_be_upload(path):
            upload = (
                self._written_here(path)
                or (await self._find_left(path) if opened is None else None)
                or await find_upload(self.bucket, path, opened=opened, look_at_object=False)
            )
            return FileInfo(path, False, upload.size, upload.modified_at) if upload is not None else None
        try:
            found = await self.bucket.head(path)
        except PathNotFound:
            return None
        return file_info(path, found)

    async def _find_left(self, path: str) -> StoredUpload | None:
        """An upload that this process has written before, if it is still open: found by one request, not two."""
        left = self._written.get(path)
        if left is None or left.upload_id is None:
            return None
        with suppress(ContentChanged):
            state = await known_upload(self.bucket, path, left.upload_id)
            # One without parts may have an object beside it that counts.
            return state if state.parts else None
        return None

    async def _opened_around(self, paths: Sequence[str]) -> dict[str, Uploads]:
        """The open uploads of directories that many of the paths are in, listed once for all."""
        wanted = Counter(uploads for uploads in map(_uploads_of, paths) if uploads is not None)
        shared = [uploads for uploads, count in wanted.items() if count > 1]
        listed = await each(self.bucket.list_uploads(uploads, self.key(uploads)) for uploads in shared)
        # Where it fails each asks for itself, and has its own error.
        return {
            uploads: found for uploads, found in zip(shared, listed, strict=True) if not isinstance(found, DriverError)
        }

    def _written_here(self, path: str) -> S3Upload | None:
        """The upload that this process writes at a path. Of one that has failed only what is stored counts."""
        live = self._live.get(path)
        return live if live is not None and not live.has_failed else None

    def _may_be_upload(self, path: str) -> bool:
        return path in self._live or path in self._written or _UPLOAD_DATA.fullmatch(path) is not None

    # --- contents ------------------------------------------------------------------------------------------------

    async def get_content(self, path: str, limit: int) -> bytes:
        check_not_root(path)
        if self._may_be_upload(path):
            info = await self.stat_file(path)
            if info.size > limit:
                raise ContentTooLarge(path, f"{info.size} bytes, more than {limit}")
            return await self.read(path, 0, info.size, info.size)
        return await self.bucket.get(path, limit=limit)

    async def put_content(self, path: str, content: bytes) -> None:
        check_not_root(path)
        if self._may_be_upload(path):
            await self._drop_upload(path, "it was replaced")
        await self.bucket.put(path, content)

    async def read(self, path: str, offset: int, length: int, size: int) -> bytes:
        """Reads a file that had `size` bytes when it was opened."""
        if not length:
            return b""
        if not self._may_be_upload(path):
            return await self.bucket.get_range(path, offset, length, size=size)
        while (live := self._written_here(path)) is not None:
            if live.size < offset + length:
                raise ShortRead(path, f"it has {live.size} bytes now, not {size}")
            try:
                return await live.read(offset, length)
            except ContentChanged:
                if self._live.get(path) is live:
                    raise
                # It was closed before it was this reader's turn.
        return await self._read_left(path, offset, length, size)

    async def _read_left(self, path: str, offset: int, length: int, size: int) -> bytes:
        """Reads an upload that nobody writes in this process, from one version of it.

        Somebody elsewhere who goes on with it can make another object of it between a look and the request for what
        was found.
        """
        for _ in range(_VERSIONS - 1):
            try:
                return await self._read_version(path, offset, length, size)
            except _BeingWritten:
                raise
            except ContentChanged:
                continue
        return await self._read_version(path, offset, length, size)

    async def _read_version(self, path: str, offset: int, length: int, size: int) -> bytes:
        end = offset + length
        found = None
        with suppress(ShortRead):  # while it is repacked it looks empty to who asks for its parts and its object
            found = (await self._find_readable(path, end, size)).found
        if found is None or found.size < end:
            # The kernel asks for several pages at once: whoever comes later finds what the first has made.
            async with self._repacking_of(path):
                state = await self._find_readable(path, end, size)
                found = state.found
                if found is None or found.size < end:
                    return await self._read_repacked(S3Upload(self.bucket, self._copies, path, state), offset, length)
        return await self.bucket.get_range(path, offset, length, size=found.size, etag=found.etag)

    def _repacking_of(self, path: str) -> asyncio.Lock:
        return self._repacking.setdefault(path, asyncio.Lock())

    async def _read_repacked(self, upload: S3Upload, offset: int, length: int) -> bytes:
        content = await upload.read(offset, length)
        if upload.path in self._written:
            self._remember(upload)
        return content

    async def _find_readable(self, path: str, end: int, size: int) -> StoredUpload:
        """An upload of somebody else, once it may be repacked so that its bytes up to `end` can be read.

        Whoever writes it would have the ground taken from under his feet, and on AWS a part that is stored between our
        looking and our completing is lost. So it must have stood still for a while.
        """
        state = await self._find_of_size(path, end, size)
        for _ in range(_LOOKS):
            readable = state.found.size if state.found is not None else 0
            is_still = time.time_ns() - state.modified_at > _SURELY_STILL
            if readable >= end or is_still or self._written.get(path) == _Left(state.upload_id, state.version):
                return state
            await asyncio.sleep(_STILL)
            before, state = state, await self._find_of_size(path, end, size)
            if before == state:
                return state
        raise _BeingWritten(path, "somebody else is writing it, and S3 lets nobody read it meanwhile")

    async def _find_of_size(self, path: str, end: int, size: int) -> StoredUpload:
        state = await find_upload(self.bucket, path, look_at_object=True)
        if state is None or state.size < end:
            raise ShortRead(path, f"it has {state.size if state is not None else 0} bytes now, not {size}")
        return state

    async def read_sealed(self, path: str, offset: int, length: int, found: StoredObject) -> bytes:
        """Reads one version of an object and no other. Raises `ContentChanged`."""
        try:
            return await self.bucket.get_range(path, offset, length, size=found.size, etag=found.etag)
        except ShortRead as error:
            raise ContentChanged(path, error.detail) from error

    # --- uploads -------------------------------------------------------------------------------------------------

    async def begin_writing(self, path: str, append: bool) -> S3Upload:
        check_not_root(path)
        await self._hand_over(path, keep=append)
        state, _ = await gather([self._find_for_writing(path), self._check_no_directory(path)])
        if state is None or not append:
            if state is not None:
                await self._remove(path, state)
            state = StoredUpload(await self.bucket.create_upload(path), (), (), None)
        upload = self._live[path] = S3Upload(self.bucket, self._copies, path, state)
        return upload

    async def end_writing(self, upload: S3Upload) -> None:
        try:
            await upload.abandon()
        finally:
            if self._live.get(upload.path) is upload:
                del self._live[upload.path]
                self._remember(upload)
            # Who waits to read it must not repack it any more.
            upload.fence("it is not written here any more")

    def _remember(self, upload: S3Upload) -> None:
        # Of one that has failed it is not known what it is like.
        self._written[upload.path] = _Left(upload.upload_id if not upload.has_failed else None, upload.version)
        self._written.move_to_end(upload.path)
        while len(self._written) > _WRITTEN_KEPT:
            self._written.popitem(last=False)

    def is_live(self, path: str) -> bool:
        return path in self._live

    async def seal(self, path: str) -> tuple[StoredObject, S3Version]:
        """Makes an upload an object, which nothing can be appended to. Returns it, and the version that it is of."""
        check_not_root(path)
        async with self._repacking_of(path):
            return await self._seal(path)

    async def _seal(self, path: str) -> tuple[StoredObject, S3Version]:
        live = self._written_here(path)
        if live is not None:
            await live.flush()
        left = self._written.get(path)
        known = live.upload_id if live is not None else left.upload_id if left is not None else None
        state = await self._find_for_sealing(path, known)
        if state is None:
            raise await self._no_file(path)
        if state.stray:
            state = await self._without_stray(path, state)
        if state.found is not None and state.is_object:
            if state.upload_id is not None:
                await self.bucket.abort_upload(path, state.upload_id)
            return state.found, state.version
        if not state.parts:
            assert state.upload_id is not None  # noqa: S101
            await self.bucket.abort_upload(path, state.upload_id)
            await self.bucket.put(path, b"")
            found = await self.bucket.head(path)
            return found, S3Version(found.etag, found.size)
        return await self._seal_parts(path, state)

    async def _seal_parts(self, path: str, state: StoredUpload) -> tuple[StoredObject, S3Version]:
        found = await complete(self.bucket, path, state)
        version = state.version
        if "-" in version.etag and found.etag != version.etag:
            # Not made of the parts that were listed: of whatever it is, nobody knows anything yet.
            version = S3Version(found.etag, found.size)
        self._written[path] = _Left(None, version)
        return found, version

    async def _without_stray(self, path: str, state: StoredUpload) -> StoredUpload:
        """Leaves out what comes after a gap."""
        await S3Upload(self.bucket, self._copies, path, state).repack()
        again = await find_upload(self.bucket, path, look_at_object=True)
        if again is None or again.stray or again.size != state.size:
            raise ContentChanged(path)
        return again

    async def _find_for_sealing(self, path: str, upload_id: str | None) -> StoredUpload | None:
        if upload_id is not None:
            with suppress(ContentChanged):
                state = await known_upload(self.bucket, path, upload_id)
                if state.parts:
                    return state
        if self._may_be_upload(path):
            return await find_upload(self.bucket, path, look_at_object=True)
        try:
            return StoredUpload(None, (), (), await self.bucket.head(path))
        except PathNotFound:
            return None

    async def _find_for_writing(self, path: str) -> StoredUpload | None:
        return await find_upload(self.bucket, path, look_at_object=True)

    async def _hand_over(self, path: str, *, keep: bool) -> None:
        """Ends the writing of whoever in this process has the file open."""
        live = self._live.get(path)
        if live is None:
            return
        try:
            # What one that has failed did not store is lost, as if its process had been killed.
            if keep and not live.has_failed:
                await live.flush()
        finally:
            live.fence("it was opened for writing again")
            await self.end_writing(live)

    async def _drop_upload(self, path: str, reason: str) -> None:
        live = self._live.get(path)
        if live is not None:
            live.fence(reason)
            await self.end_writing(live)
        await self._abort(path, await self.bucket.list_uploads(path, self.key(path)))
        self._written.pop(path, None)

    async def _remove(self, path: str, state: StoredUpload) -> None:
        await self._abort(path, await self.bucket.list_uploads(path, self.key(path)))
        if state.found is not None:
            await self.bucket.delete(path)

    async def _abort(self, path: str, uploads: Sequence[OpenUpload]) -> int:
        """Aborts those of the uploads that are at `path` or below it; returns how many."""
        key = self.key(path)
        aborted = [upload for upload in uploads if upload.key == key or upload.key.startswith(f"{key}/")]
        await gather([self.bucket.abort_upload(self.bucket.path(upload.key), upload.upload_id) for upload in aborted])
        return len(aborted)

    # --- moving and deleting -----------------------------------------------------------------------------------------

    async def publish(self, source: str, found: StoredObject, destination: str) -> FileInfo | None:
        check_not_root(destination)
        copied = await self._copies.copy(source, destination, found)
        if source in self._written:
            self._written[source] = None
        return file_info(destination, copied) if copied is not None else None

    async def move(self, source: str, destination: str) -> None:
        info = await self.stat_file(source)
        check_not_root(destination)
        if source == destination:
            return
        await self._check_no_directory(destination)
        if self._may_be_upload(source):
            found, _ = await self.seal(source)
        else:
            found = await self.bucket.head(info.path)
        await self.publish(source, found, destination)
        await self.bucket.delete(source)
        self._written.pop(source, None)

    async def delete(self, path: str) -> None:
        check_may_be_deleted(path)
        await self._end_uploads_at(path)
        keys = await self._keys_at(path)
        is_file = keys == [self.key(path)]
        aborted = 0
        if not is_file or self._may_be_upload(path):
            aborted = await self._abort(path, await self.bucket.list_uploads(path, self.key(path)))
        await self.bucket.delete_keys(path, keys)
        self._forget(path)
        if not keys and not aborted:
            raise PathNotFound(path)

    async def _delete_below(self, directory: str, steps: Sequence[Sequence[str]]) -> None:
        await self._end_uploads_at(directory)
        keys = await self._keys_at(directory)
        if not self._is_published_below(directory):
            await self._abort(directory, await self.bucket.list_uploads(directory, self.key(directory)))
        for step in steps:
            beginnings = tuple(f"{self.key(path)}/" for path in step)
            own = [key for key in keys if f"{key}/".startswith(beginnings)]
            await self.bucket.delete_keys(directory, own)
            keys = [key for key in keys if not f"{key}/".startswith(beginnings)]
        self._forget(directory)

    async def _end_uploads_at(self, path: str) -> None:
        for upload in [live for live in self._live.values() if f"{live.path}/".startswith(f"{path}/")]:
            upload.fence("it was removed")
            await self.end_writing(upload)

    def _forget(self, path: str) -> None:
        """Nothing is at the path any more, nor below it."""
        for written in [written for written in self._written if f"{written}/".startswith(f"{path}/")]:
            del self._written[written]

    def _is_published_below(self, directory: str) -> bool:
        """Whether what was uploaded there is known to be an open upload no more."""
        data = f"{directory}/data"
        return data in self._written and self._written[data] is None

    async def _keys_at(self, path: str) -> Keys:
        """The keys of a file and of all that is below it, as far as there is anything."""
        key = self.key(path)
        page = await self.bucket.list_objects(path, key)
        if page.is_last:
            return [found for found in page.objects if found == key or found.startswith(f"{key}/")]
        # Many neighbours have names that begin alike. The file itself comes before all of them.
        keys = [key] if key in page.objects else []
        async for below in self.bucket.pages(path, f"{key}/"):
            keys += below.objects
        return keys


def _uploads_of(path: str) -> str | None:
    """The directory of uploads that the data of an upload is in."""
    match = _UPLOAD_DATA.fullmatch(path)
    return match["uploads"] if match is not None else None
