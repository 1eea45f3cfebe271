"""A storage out of objects that can be appended to, on asyncio: files and directories out of keys, and what is written.

A path is a file if there is an object with its key; else it is a directory if there is something below it. Uploads are
objects like all others, which only this process knows to be longer than they are while it writes them.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Container, Sequence
from typing import Final, Generic, TypeAlias, TypeVar

from layerfs.driver.at_once import each, gather
from layerfs.driver.interface import Entries, Entry, FileInfo, Files, Stats, check_path, is_component
from layerfs.driver.object_paths import (
    KeyedStorage,
    check_may_be_deleted,
    check_not_root,
    file_info,
    names_below,
)
from layerfs.driver.object_upload import ObjectUpload
from layerfs.driver.objects import Objects, ObjectVersion, StoredObject
from layerfs.errors import ContentChanged, ContentTooLarge, PathNotFound, ShortRead

#: Where registries have the bytes of an unfinished upload, which may grow while it is read.
_UPLOAD_DATA: Final = re.compile(r".*/_uploads/[^/]+/data")

_Upload = TypeVar("_Upload", bound=ObjectUpload)

# Named here because inside `ObjectStore` the word `list` is its method.
Keys: TypeAlias = list[str]


class ObjectStore(KeyedStorage, Generic[_Upload]):
    """The storage of an `ObjectStoreDriver`, of which stores differ in how they append."""

    #: How the names end of objects that belong to another, whose name is the beginning: nobody sees them while that is
    #: there. One that came when it was gone is a file like any other, or nobody could find it to remove it.
    _hidden_suffix: re.Pattern[str] | None = None

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        self._live: dict[str, _Upload] = {}

    @abstractmethod
    async def _create(self, path: str, found: StoredObject | None) -> _Upload:
        """Makes an empty object at `path`, in place of what was found there.

        Raises `ContentChanged` if it is not as it was found. So a request that the store carries out long after it was
        given up takes nothing away, and of two who begin at the same time one learns it.
        """

    @abstractmethod
    async def _resume(self, path: str, found: StoredObject) -> _Upload:
        """Goes on with an object. Raises `UnsupportedByDriver` if it is none of ours to go on with."""

    async def close(self) -> None:
        for upload in list(self._live.values()):
            await upload.abandon()
        self._live.clear()
        await self._objects.close()

    def key(self, path: str) -> str:
        return self._objects.key(path)

    # --- looking -------------------------------------------------------------------------------------------------

    async def stat(self, path: str) -> FileInfo:
        if path == "/":
            # A prefix that nothing was ever put under is an empty storage; a bucket that is not there is an error.
            await self.is_directory(path)
            return FileInfo(path, True, 0, 0)
        live = self._live.get(path)
        if live is not None:
            return _live_info(live)
        found = await self._find(path)
        if found is not None:
            return file_info(path, found)
        await self._check_directory(path)
        return FileInfo(path, True, 0, 0)

    async def stat_many(self, paths: Sequence[str]) -> Stats:
        async def one(path: str) -> FileInfo:
            return await self.stat(check_path(path))

        return await each(map(one, paths))

    async def list(self, path: str) -> Entries:
        prefix = self._below(path)
        found = await names_below(self._objects.pages(path, prefix, delimiter="/"), prefix)
        if found is None and path != "/":
            raise PathNotFound(path)
        return [
            Entry(name, is_directory)
            for name, is_directory in (found or {}).items()
            if is_component(name) and (is_directory or not self._is_hidden(name, found or {}))
        ]

    async def list_files(self, path: str) -> Files:
        """As many of them in one request as the store gives, wherever below they are."""
        prefix = self._below(path)
        found: dict[str, StoredObject] = {}
        async for page in self._objects.pages(path, prefix):
            found.update((key[len(prefix) :], each_object) for key, each_object in page.objects.items())
        if not found and path != "/":
            raise PathNotFound(path)
        above = path.rstrip("/")
        shown = [name for name in found if all(map(is_component, name.split("/"))) and not self._is_hidden(name, found)]
        return [self._listed_info(f"{above}/{name}", found[name]) for name in shown]

    def _listed_info(self, path: str, found: StoredObject) -> FileInfo:
        live = self._live.get(path)
        return _live_info(live) if live is not None else file_info(path, found)

    async def _find(self, path: str) -> StoredObject | None:
        try:
            return await self._objects.head(path)
        except PathNotFound:
            return None

    async def is_directory(self, path: str) -> bool:
        async for page in self._objects.pages(path, self._below(path), limit=1):
            # A page can be empty and not the last one.
            if page.objects or page.is_last:
                return bool(page.objects) or path == "/"
        return path == "/"

    # --- contents ------------------------------------------------------------------------------------------------

    async def get_content(self, path: str, limit: int) -> bytes:
        check_not_root(path)
        live = self._live.get(path)
        if live is not None:
            if live.size > limit:
                raise ContentTooLarge(path, f"{live.size} bytes, more than {limit}")
            return await live.read(0, live.size)
        return await self._objects.get(path, limit=limit)

    async def put_content(self, path: str, content: bytes) -> None:
        check_not_root(path)
        await self._take_away(path, "it was replaced")
        await self._objects.put(path, content)

    async def read(self, path: str, offset: int, length: int, size: int) -> bytes:
        """Reads a file that had `size` bytes when it was opened."""
        if not length:
            return b""
        live = self._live.get(path)
        if live is not None:
            return await live.read(offset, length)
        may_grow = _UPLOAD_DATA.fullmatch(path) is not None
        return await self._objects.get_range(path, offset, length, size=None if may_grow else size)

    async def read_sealed(self, path: str, offset: int, length: int, found: StoredObject) -> bytes:
        """Reads one version of an object and no other. Raises `ContentChanged`."""
        if not length:
            return b""
        try:
            return await self._objects.get_range(path, offset, length, etag=found.etag)
        except ShortRead as error:
            raise ContentChanged(path, error.detail) from error

    # --- writing -------------------------------------------------------------------------------------------------

    async def begin_writing(self, path: str, append: bool) -> _Upload:
        check_not_root(path)
        await self._change_hands(path, keep=append)
        found, _ = await gather([self._find(path), self._check_no_directory(path)])
        upload = await self._resume(path, found) if append and found is not None else await self._create(path, found)
        self._live[path] = upload
        return upload

    async def end_writing(self, upload: _Upload) -> None:
        if self._live.get(upload.path) is upload:
            del self._live[upload.path]
        await upload.abandon()

    def is_live(self, path: str) -> bool:
        return path in self._live

    async def _change_hands(self, path: str, *, keep: bool) -> None:
        """Ends the writing of whoever in this process has the file open."""
        live = self._live.get(path)
        try:
            # What one that has failed did not store is lost, as if its process had been killed.
            if live is not None and keep and not live.has_failed:
                await live.flush()
        finally:
            await self._take_away(path, "it was opened for writing again")

    async def _take_away(self, path: str, reason: str) -> None:
        live = self._live.get(path)
        if live is not None:
            live.fence(reason)
            await self.end_writing(live)

    # --- sealing, moving and deleting --------------------------------------------------------------------------------

    async def seal(self, path: str) -> tuple[StoredObject, ObjectVersion]:
        """The object as it is now: who appends to it makes another one of it."""
        check_not_root(path)
        live = self._live.get(path)
        if live is not None and not live.has_failed:
            await live.flush()
        found = await self._find(path)
        if found is None:
            raise await self._no_file(path)
        return found, ObjectVersion(found.etag, found.size)

    async def publish(self, source: str, found: StoredObject, destination: str) -> FileInfo:
        check_not_root(destination)
        await self._take_away(destination, "it was replaced")
        return file_info(destination, await self._objects.copy(source, destination, found))

    async def move(self, source: str, destination: str) -> None:
        await self.stat_file(source)
        check_not_root(destination)
        if source == destination:
            return
        await self._check_no_directory(destination)
        await self._change_hands(source, keep=True)
        await self.publish(source, await self._objects.head(source), destination)
        await self._objects.delete_keys(source, [self.key(source)])

    async def delete(self, path: str) -> None:
        check_may_be_deleted(path)
        await self._take_away_below(path)
        keys = await self._keys_at(path)
        if not keys:
            raise PathNotFound(path)
        await self._objects.delete_keys(path, keys)

    async def delete_files(self, paths: Sequence[str]) -> None:
        for path in paths:
            check_may_be_deleted(path)
            await self._take_away(path, "it was removed")
        if paths:
            await self._objects.delete_keys(paths[0], [self.key(path) for path in paths])

    async def _delete_below(self, directory: str, steps: Sequence[Sequence[str]]) -> None:
        await self._take_away_below(directory)
        keys = await self._keys_at(directory)
        for step in steps:
            own = [key for key in keys if any(self._is_at(key, path) for path in step)]
            await self._objects.delete_keys(directory, own)
            keys = [key for key in keys if key not in own]

    def _is_at(self, key: str, path: str) -> bool:
        """Whether an object is deleted when a path is: it is there, below it, or belongs to what is there."""
        name = self.key(path)
        rest = key.removeprefix(name)
        return key.startswith(name) and (not rest or rest.startswith("/") or self._is_suffix(rest))

    def _is_suffix(self, text: str) -> bool:
        return self._hidden_suffix is not None and self._hidden_suffix.fullmatch(text) is not None

    def _is_hidden(self, name: str, others: Container[str]) -> bool:
        """Whether it belongs to one of the others that were found."""
        match = None if self._hidden_suffix is None else self._hidden_suffix.search(name)
        return match is not None and match.end() == len(name) and name[: match.start()] in others

    async def _take_away_below(self, path: str) -> None:
        for other in [other for other in self._live if f"{other}/".startswith(f"{path}/")]:
            await self._take_away(other, "it was removed")

    async def _keys_at(self, path: str) -> Keys:
        """The keys of a file and of all that is below it, as far as there is anything."""
        key = self.key(path)
        async for page in self._objects.pages(path, key):
            keys = [found for found in page.objects if self._is_at(found, path)]
            if page.is_last:
                return keys
            break
        # Many neighbours have names that begin alike. The file itself comes before all of them.
        async for below in self._objects.pages(path, f"{key}/"):
            keys += [found for found in below.objects if found not in keys]
        return keys


def _live_info(live: ObjectUpload) -> FileInfo:
    """What is written here, with what is not stored yet."""
    return FileInfo(live.path, False, live.size, live.modified_at)
