"""What the driver for S3 does, on asyncio: files and directories out of keys, and the uploads that this process writes.

A path is a file if there is an object, or an open upload, with its key; else it is a directory if there is something
below it. Open uploads are looked for only where they can be: at `_uploads/<id>/data`, where registries have them, and
wherever this process has begun one.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Final, TypeAlias

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
from layerfs.driver.objects import Page, StoredObject
from layerfs.driver.s3_answers import OpenUpload
from layerfs.driver.s3_bucket import PAGE_KEYS, Bucket
from layerfs.driver.s3_copies import Copies
from layerfs.driver.s3_left_uploads import LeftUploads
from layerfs.driver.s3_options import S3Options
from layerfs.driver.s3_stored_upload import S3Version, StoredUpload, find_upload
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

# Named here because inside `Store` the word `list` is its method.
Uploads: TypeAlias = list[OpenUpload]
Keys: TypeAlias = list[str]


class Store(KeyedStorage):
    """The storage of an `S3Driver`."""

    def __init__(self, options: S3Options) -> None:
        self.bucket = Bucket(options)
        self._copies = Copies(self.bucket)
        self._live: dict[str, S3Upload] = {}
        self._left = LeftUploads(self.bucket, self._copies)

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
        page = await self._first_page(path, self._below(path), limit=1)
        return bool(page.objects) or path == "/"

    async def _first_page(self, path: str, prefix: str, *, limit: int = PAGE_KEYS) -> Page:
        """The first page that has anything: a store may give empty ones that are not the last."""
        async for page in self.bucket.pages(path, prefix, limit=limit):
            if page.objects or page.is_last:
                return page
        raise AssertionError("a listing has a last page")

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
                or (await self._left.find(path) if opened is None else None)
                or await find_upload(self.bucket, path, opened=opened, look_at_object=False)
            )
            return FileInfo(path, False, upload.size, upload.modified_at) if upload is not None else None
        try:
            found = await self.bucket.head(path)
        except PathNotFound:
            return None
        return file_info(path, found)

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
        return path in self._live or path in self._left or _UPLOAD_DATA.fullmatch(path) is not None

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
        return await self._left.read(path, offset, length, size)

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
            state, is_quiet = StoredUpload(await self.bucket.create_upload(path), (), (), None), True
        else:
            is_quiet = self._left.is_quiet(path, state)
        upload = self._live[path] = S3Upload(self.bucket, self._copies, path, state, is_quiet=is_quiet)
        return upload

    async def end_writing(self, upload: S3Upload) -> None:
        try:
            await upload.abandon()
        finally:
            if self._live.get(upload.path) is upload:
                del self._live[upload.path]
                self._left.remember(upload)
            # Who waits to read it must not repack it any more.
            upload.fence("it is not written here any more")

    def is_live(self, path: str) -> bool:
        return path in self._live

    async def seal(self, path: str) -> tuple[StoredObject, S3Version]:
        """Makes an upload an object, which nothing can be appended to. Returns it, and the version that it is of."""
        check_not_root(path)
        async with self._left.repacking(path):
            live = self._written_here(path)
            if live is not None:
                await live.flush()
            known = live.upload_id if live is not None else None
            sealed = await self._left.seal(path, known, is_upload=self._may_be_upload(path))
        if sealed is None:
            raise await self._no_file(path)
        return sealed

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
        self._left.forget(path)

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
        self._left.published(source)
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
        self._left.forget(source)

    async def delete(self, path: str) -> None:
        check_may_be_deleted(path)
        await self._end_uploads_at(path)
        keys = await self._keys_at(path)
        is_file = keys == [self.key(path)]
        aborted = 0
        if not is_file or self._may_be_upload(path):
            aborted = await self._abort(path, await self.bucket.list_uploads(path, self.key(path)))
        await self.bucket.delete_keys(path, keys)
        self._left.forget_below(path)
        if not keys and not aborted:
            raise PathNotFound(path)

    async def delete_files(self, paths: Sequence[str]) -> None:
        for path in filter(self._may_be_upload, paths):
            await self._drop_upload(path, "it was removed")
        for path in paths:
            check_may_be_deleted(path)
        if paths:
            await self.bucket.delete_keys(paths[0], [self.key(path) for path in paths])

    async def _delete_below(self, directory: str, steps: Sequence[Sequence[str]]) -> None:
        await self._end_uploads_at(directory)
        keys = await self._keys_at(directory)
        data = f"{directory}/data"
        if not self._left.is_published(data) or data in self.bucket.begun_twice:
            await self._abort(directory, await self.bucket.list_uploads(directory, self.key(directory)))
            self.bucket.begun_twice.discard(data)
        for step in steps:
            beginnings = tuple(f"{self.key(path)}/" for path in step)
            own = [key for key in keys if f"{key}/".startswith(beginnings)]
            await self.bucket.delete_keys(directory, own)
            keys = [key for key in keys if not f"{key}/".startswith(beginnings)]
        self._left.forget_below(directory)

    async def _end_uploads_at(self, path: str) -> None:
        for upload in [live for live in self._live.values() if f"{live.path}/".startswith(f"{path}/")]:
            upload.fence("it was removed")
            await self.end_writing(upload)

    async def _keys_at(self, path: str) -> Keys:
        """The keys of a file and of all that is below it, as far as there is anything."""
        key = self.key(path)
        page = await self._first_page(path, key)
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
