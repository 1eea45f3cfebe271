"""Small files of storage far away, read again only when a listing shows that they are others than they were."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Final

from layerfs.driver.interface import Contents, FileInfo, StorageDriver
from layerfs.errors import DriverError, PathNotFound

#: Files that are remembered, a few hundred bytes each.
_KEPT: Final = 20_000

#: Nanoseconds by which a file must be older than the look at it: stores tell times in whole seconds, so what is younger
#: may be replaced without its time or size showing it.
_SETTLED_AFTER: Final = 3_000_000_000


class SmallFiles:
    """What was read lately, by path."""

    def __init__(self, driver: StorageDriver) -> None:
        self._driver = driver
        self._kept: OrderedDict[str, tuple[int, int, bytes]] = OrderedDict()

    async def get_contents(self, paths: Sequence[str], listed: Mapping[str, FileInfo], *, limit: int) -> Contents:
        """As `StorageDriver.get_contents`, of files of which a listing has just told; what it lacks is not there."""
        found: dict[str, bytes | DriverError] = {}
        unknown = []
        for path in paths:
            info = listed.get(path)
            kept = self._kept.get(path)
            if info is None:
                found[path] = PathNotFound(path)
            elif kept is not None and kept[:2] == (info.modified_at, info.size):
                found[path] = kept[2]
            else:
                unknown.append(path)
        asked_at = time.time_ns()
        for path, content in zip(unknown, await self._driver.get_contents(unknown, limit=limit), strict=True):
            found[path] = content
            if isinstance(content, bytes):
                self._keep(listed[path], content, asked_at)
        return [found[path] for path in paths]

    def forget(self, path: str) -> None:
        """The file is written here, so that its time need not tell."""
        self._kept.pop(path, None)

    def _keep(self, info: FileInfo, content: bytes, asked_at: int) -> None:
        if len(content) != info.size or info.modified_at > asked_at - _SETTLED_AFTER:
            return
        self._kept[info.path] = (info.modified_at, info.size, content)
        self._kept.move_to_end(info.path)
        if len(self._kept) > _KEPT:
            self._kept.popitem(last=False)
