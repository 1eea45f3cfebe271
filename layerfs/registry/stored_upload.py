"""An upload as a directory in storage: whether it is still there, and how it goes.

Others see it, and may finish or cancel it at any time. It is an upload for as long as it has its `startedat`.
"""

from __future__ import annotations

import logging
import os

from layerfs.driver.interface import FileReader, StorageDriver
from layerfs.errors import DriverError, LayerUploadUnknown, NotRegularFile, PathNotFound
from layerfs.registry.paths import UploadDirectory

_log = logging.getLogger(__name__)


class StoredUpload:
    """What `driver` has of the upload in `directory`. Once `is_removed` is set there is none any more."""

    def __init__(self, driver: StorageDriver, directory: UploadDirectory) -> None:
        self.driver = driver
        self.directory = directory
        self.is_removed = False

    async def check_exists(self) -> None:
        """Raises `LayerUploadUnknown` if somebody has finished or cancelled it: it must not come back to life."""
        try:
            await self.driver.stat(self.directory.started_at)
        except PathNotFound as error:
            raise self._unknown() from error

    async def look_for_states(self) -> list[str]:
        """The names in its directory of hash states. Raises `LayerUploadUnknown` as `check_exists`.

        Where one request lists all files below a directory, this is that one.
        """
        directory = os.path.dirname(self.directory.hash_state(0))
        if self.driver.capabilities.listed_files:
            return await self._list_states(directory)
        await self.check_exists()
        try:
            return [entry.name for entry in await self.driver.list(directory)]
        except PathNotFound:
            return []
        except NotRegularFile:
            return [directory]

    async def _list_states(self, directory: str) -> list[str]:
        try:
            paths = [info.path for info in await self.driver.list_files(self.directory.path)]
        except PathNotFound:
            paths = []
        if self.directory.started_at not in paths:
            # Not every listing has what was stored a moment ago.
            await self.check_exists()
        below = f"{self.directory.hash_states}/"
        return [path.removeprefix(f"{directory}/") for path in paths if path.startswith(below)]

    async def open(self) -> FileReader:
        """The bytes that are in storage now, to be closed by the caller. Raises `LayerUploadUnknown`."""
        try:
            return await self.driver.open(self.directory.data)
        except PathNotFound as error:
            raise self._unknown() from error

    async def delete(self) -> None:
        """Deletes all that is stored of it. `startedat` goes last, so that it can be repeated after a crash."""
        await self.driver.delete_in_steps(
            (self.directory.data, self.directory.hash_states),
            (self.directory.started_at, self.directory.file_name),
            (self.directory.path,),
        )

    async def remove(self) -> None:
        """Deletes it, and is done when it is no upload any more, though there may be something left of it.

        Where storage fails in the middle, or its last answer is lost, nobody could be told to try again: there would be
        nothing to try it with. What is left then nobody sees, and `purge_uploads` removes it.
        """
        try:
            await self.delete()
        except DriverError:
            if await self._may_be_there():
                raise
            await self._delete_rest()
        self.is_removed = True

    async def _delete_rest(self) -> None:
        try:
            await self.delete()
        except DriverError as error:
            _log.info("upload %s is gone, but there may be something left of it: %s", self.directory.uuid, error)

    async def _may_be_there(self) -> bool:
        try:
            await self.check_exists()
        except LayerUploadUnknown:
            return False
        except DriverError:
            return True
        return True

    def _unknown(self) -> LayerUploadUnknown:
        return LayerUploadUnknown(self.directory.name, self.directory.uuid)
