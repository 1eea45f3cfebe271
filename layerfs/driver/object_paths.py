"""Keys as files and directories: the rules for paths that all object stores share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress

from layerfs.driver.at_once import each
from layerfs.driver.interface import Contents, FileInfo, check_path
from layerfs.driver.objects import Page, StoredObject
from layerfs.errors import InvalidPath, NotRegularFile, PathNotFound


class KeyedStorage(ABC):
    """A storage out of keys: a path is a file or a directory, or neither."""

    @abstractmethod
    def key(self, path: str) -> str:
        """The key of a path; with a slash at the end where the path is `/`."""

    @abstractmethod
    async def stat(self, path: str) -> FileInfo: ...

    @abstractmethod
    async def is_directory(self, path: str) -> bool:
        """One request, whatever else has the name."""

    @abstractmethod
    async def get_content(self, path: str, limit: int) -> bytes: ...

    @abstractmethod
    async def delete(self, path: str) -> None: ...

    @abstractmethod
    async def _delete_below(self, directory: str, steps: Sequence[Sequence[str]]) -> None:
        """Deletes what is at the paths, one step after the other; all are in the directory, which is listed once."""

    async def stat_file(self, path: str) -> FileInfo:
        check_not_root(path)
        info = await self.stat(path)
        if info.is_directory:
            raise NotRegularFile(path, "a directory")
        return info

    async def get_contents(self, paths: Sequence[str], limit: int) -> Contents:
        async def one(path: str) -> bytes:
            return await self.get_content(check_path(path), limit)

        return await each(map(one, paths))

    async def delete_in_steps(self, steps: Sequence[Sequence[str]]) -> None:
        """As of the interface. Where the last step is one directory that holds all the others it is listed once."""
        directory = directory_of_all(steps)
        if directory is not None:
            check_may_be_deleted(directory)
            await self._delete_below(directory, steps)
            return
        for path in (path for step in steps for path in step):
            with suppress(PathNotFound):
                await self.delete(path)

    def _below(self, path: str) -> str:
        """With what the keys begin of all that is below a path."""
        return self.key(path) if path == "/" else f"{self.key(path)}/"

    async def _no_file(self, path: str) -> NotRegularFile:
        """The error for what is a directory, and was to be a file. Raises `PathNotFound` if it is nothing at all."""
        await self._check_directory(path)
        return NotRegularFile(path, "a directory")

    async def _check_directory(self, path: str) -> None:
        if not await self.is_directory(path):
            raise PathNotFound(path)

    async def _check_no_directory(self, path: str) -> None:
        if await self.is_directory(path):
            raise NotRegularFile(path, "a directory")


def file_info(path: str, found: StoredObject) -> FileInfo:
    """What is told of an object that is the file at a path."""
    return FileInfo(path, False, found.size, found.modified_at, found.etag or None)


def check_not_root(path: str) -> None:
    """Raises `NotRegularFile` for the root, which is a directory whatever is stored."""
    if path == "/":
        raise NotRegularFile(path, "a directory")


def check_may_be_deleted(path: str) -> None:
    """Raises `InvalidPath` for the root."""
    if path == "/":
        raise InvalidPath(path, "the root of the storage stays")


def directory_of_all(steps: Sequence[Sequence[str]]) -> str | None:
    """The directory that is the last step, if it is that alone and holds all that the other steps delete."""
    *_, last = steps
    if len(last) != 1 or not all(f"{path}/".startswith(f"{last[0]}/") for step in steps for path in step):
        return None
    return last[0]


async def names_below(pages: AsyncIterator[Page], prefix: str) -> dict[str, bool] | None:
    """The names directly below `prefix`, and whether each is a directory; None if nothing has the prefix.

    `pages` is a listing of it with the delimiter `/`.
    """
    names: dict[str, bool] = {}
    exists = False
    async for page in pages:
        exists = exists or bool(page.objects or page.prefixes)
        names.update((key[len(prefix) :].rstrip("/"), True) for key in page.prefixes)
        # An object that ends in a slash marks a directory for those who want to see it.
        names.update((key[len(prefix) :], False) for key in page.objects if key != prefix)
    return names if exists else None
