"""Small files of storage far away, read again only when a listing shows that they are others than they were."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Final, TypeAlias

from layerfs.driver.interface import Contents, FileInfo, StorageDriver
from layerfs.errors import DriverError, PathNotFound

#: Files that are remembered, a few hundred bytes each.
_KEPT: Final = 20_000

#: What another content shows by. Not the time and the size alone: stores tell times in whole seconds.
_Shown: TypeAlias = tuple[str | None, int, int]


class SmallFiles:
    """What was read lately, by path."""

    def __init__(self, driver: StorageDriver) -> None:
        self._driver = driver
        self._kept: OrderedDict[str, tuple[_Shown, bytes]] = OrderedDict()

    async def get_contents(self, paths: Sequence[str], listed: Mapping[str, FileInfo], *, limit: int) -> Contents:
        """As `StorageDriver.get_contents`, of files of which a listing has just told; what it lacks is not there."""
        found: dict[str, bytes | DriverError] = {}
        unknown = []
        for path in paths:
            info = listed.get(path)
            kept = self._kept.get(path)
            if info is None:
                found[path] = PathNotFound(path)
            elif kept is not None and kept[0] == _shown(info):
                found[path] = kept[1]
            else:
                unknown.append(path)
        for path, content in zip(unknown, await self._driver.get_contents(unknown, limit=limit), strict=True):
            found[path] = content
            if isinstance(content, bytes):
                self._keep(listed[path], content)
        return [found[path] for path in paths]

    def forget(self, path: str) -> None:
        """The file is written here."""
        self._kept.pop(path, None)

    def _keep(self, info: FileInfo, content: bytes) -> None:
        if info.version is None or len(content) != info.size:
            return
        self._kept[info.path] = (_shown(info), content)
        self._kept.move_to_end(info.path)
        if len(self._kept) > _KEPT:
            self._kept.popitem(last=False)


def _shown(info: FileInfo) -> _Shown:
    return info.version, info.size, info.modified_at
