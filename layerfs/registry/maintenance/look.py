"""Looking at storage that may be anything: what cannot be read becomes a fault, and the look goes on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final, TypeAlias

import trio

from layerfs.digest import HEX_LENGTHS, Digest
from layerfs.driver.interface import Entries, Entry, Files, StorageDriver
from layerfs.errors import ContentTooLarge, DriverError, LayerfsError, NotRegularFile, PathNotFound
from layerfs.layername import LINK_DIRECTORIES, LayerName, layer_name_at
from layerfs.registry.links import LINK_LIMIT, read_links
from layerfs.registry.maintenance.faults import Fault, FaultKind
from layerfs.registry.side_by_side import at_once_on

#: Paths in one request.
BATCH: Final = 512

_SUFFIX: Final = ".tmp"

#: Directories inside one another that are looked at where nobody has put any.
_DEPTH: Final = 16


# Named here because inside `Look` the word `list` is its method.
Listings: TypeAlias = list[Entries]
Digests: TypeAlias = list[Digest]
LayerNames: TypeAlias = list[LayerName]
Links: TypeAlias = list[Digest | None]
Strays: TypeAlias = list[str]


class Look:
    """One look at a part of the storage. `faults` is what was found; `jobs` directories are listed at a time.

    On an object store there are more: what they take is not work, but waiting.
    """

    def __init__(self, driver: StorageDriver, jobs: int) -> None:
        self.driver = driver
        self.faults: list[Fault] = []
        #: How many places could not be looked at.
        self.unreadables = 0
        self._limiter = trio.CapacityLimiter(max(jobs, at_once_on(driver)))
        # Directories that are no name's, among those that are.
        self._strays: Strays = []
        # What is in and below directories that were listed as a whole, by directory.
        self._listed: dict[str, dict[str, Entry]] = {}
        self._wholes: tuple[str, ...] = ()

    def unreadable(self, fault: Fault, error: LayerfsError) -> None:
        """Notes that the place of `fault` cannot be looked at."""
        self.unreadables += 1
        self.faults.append(replace(fault, kind=FaultKind.UNREADABLE, detail=str(error)))

    async def list_whole(self, path: str) -> None:
        """Has `list` know all that is below a directory, where a request tells of a thousand files.

        Where it cannot be done `list` asks for each directory, and so finds out which cannot be looked at.
        """
        if not self.driver.capabilities.listed_files:
            return
        try:
            files = await self.driver.list_files(path)
        except DriverError:
            return
        for info in files:
            below = info.path
            is_directory = False
            while below != path:
                directory, _, name = below.rpartition("/")
                self._listed.setdefault(directory, {}).setdefault(name, Entry(name, is_directory))
                below, is_directory = directory, True
        self._wholes += (f"{path}/",)

    async def list(self, path: str) -> Entries:
        """What is in a directory, in order; nothing if there is none."""
        if f"{path}/".startswith(self._wholes):
            return sorted(self._listed.get(path, {}).values(), key=lambda entry: entry.name)
        try:
            entries = await self.driver.list(path)
        except (PathNotFound, NotRegularFile):
            return []
        except DriverError as error:
            self.unreadable(Fault(FaultKind.UNREADABLE, path), error)
            return []
        return sorted(entries, key=lambda entry: entry.name)

    async def list_files(self, path: str) -> Files:
        """The files in and below a directory, in order; none if there is no such directory."""
        try:
            files = await self.driver.list_files(path)
        except (PathNotFound, NotRegularFile):
            return []
        except DriverError as error:
            self.unreadable(Fault(FaultKind.UNREADABLE, path), error)
            return []
        return sorted(files, key=lambda info: info.path)

    async def list_many(self, paths: Sequence[str]) -> Listings:
        """`list` of each, in order."""
        found: Listings = [[] for _ in paths]

        async def look(index: int) -> None:
            async with self._limiter:
                found[index] = await self.list(paths[index])

        for start in range(0, len(paths), BATCH):
            async with trio.open_nursery() as nursery:
                for index in range(start, min(start + BATCH, len(paths))):
                    nursery.start_soon(look, index)
        return found

    async def digests_in(self, directory: str) -> Digests:
        """The digests that have a directory in `directory`, whatever is in it."""
        return [name for name in await self._names_in(directory, tuple(HEX_LENGTHS)) if isinstance(name, Digest)]

    async def layer_names_in(self, directory: str) -> LayerNames:
        """The names of layers, digests and TarSums, that have a directory in `directory`, whatever is in it."""
        return await self._names_in(directory, LINK_DIRECTORIES)

    async def _names_in(self, directory: str, parents: Sequence[str]) -> LayerNames:
        # Few have any but the first: asking for each would cost more than to look.
        there = [entry.name for entry in await self.list(directory) if entry.is_directory]
        roots = {parent.partition("/")[0] for parent in parents}
        self._strays += [f"{directory}/{name}" for name in there if name not in roots]
        names: LayerNames = []
        for parent in parents:
            if parent.partition("/")[0] not in there:
                continue
            for entry in await self.list(f"{directory}/{parent}"):
                name = layer_name_at(f"{parent}/{entry.name}")
                if name is not None and entry.is_directory:
                    names.append(name)
                elif entry.is_directory:
                    self._strays.append(f"{directory}/{parent}/{entry.name}")
        return names

    async def check_strays(self) -> None:
        """Notes links that are none in directories that are nobody's, of all that were looked into for names.

        No link is looked for there, but a registry's garbage collection reads every file that is called so.
        """
        waiting, self._strays = self._strays, []
        for _ in range(_DEPTH):
            listings = await self.list_many(waiting)
            places = []
            below = []
            for directory, entries in zip(waiting, listings, strict=True):
                for entry in entries:
                    if entry.is_directory:
                        below.append(f"{directory}/{entry.name}")
                    elif entry.name == "link":
                        places.append(Fault(FaultKind.BAD_LINK, f"{directory}/link"))
            await self.read_links(places)
            waiting = below

    async def read_links(self, places: Sequence[Fault]) -> Links:
        """What the links at the paths of `places` hold, None where there is none; what is wrong is noted there."""
        links: Links = []
        for start in range(0, len(places), BATCH):
            batch = places[start : start + BATCH]
            found = await read_links(self.driver, [place.path for place in batch])
            bad = [place for place, link in zip(batch, found, strict=True) if not isinstance(link, Digest)]
            links += [link if isinstance(link, Digest) else None for link in found]
            await self._explain(bad)
        return links

    async def _explain(self, places: Sequence[Fault]) -> None:
        """Reads again what was no link, because how it is wrong decides what it is called."""
        contents = await self.driver.get_contents([place.path for place in places], limit=LINK_LIMIT)
        for place, content in zip(places, contents, strict=True):
            if isinstance(content, PathNotFound):
                continue
            if isinstance(content, bytes):
                self._explain_content(place, content)
            elif isinstance(content, NotRegularFile | ContentTooLarge):
                self.faults.append(replace(place, kind=FaultKind.BAD_LINK, detail=content.what))
            else:
                self.unreadable(place, content)

    def _explain_content(self, place: Fault, content: bytes) -> None:
        text = content.decode("ascii", "replace")
        if not content:
            self.faults.append(replace(place, kind=FaultKind.EMPTY_LINK))
        elif Digest.parse_or_none(text.rstrip("\r\n")) is None:
            self.faults.append(replace(place, kind=FaultKind.BAD_LINK, detail=f"{text[:80]!r} is no digest"))
        elif text.endswith("\n"):
            self.faults.append(replace(place, kind=FaultKind.LINK_WITH_NEWLINE))

    async def find_temporary(self, places: Sequence[Fault]) -> Listings:
        """What is in the directories of the links or blobs at `places`; temporary files there are noted.

        Only where directories exist: other backends have no temporary files, and listing costs more there.
        """
        if not self.driver.capabilities.directories:
            return [[] for _ in places]
        directories = [place.path.rpartition("/")[0] for place in places]
        listings = await self.list_many(directories)
        for place, directory, entries in zip(places, directories, listings, strict=True):
            for entry in entries:
                if entry.name.endswith(_SUFFIX) and not entry.is_directory:
                    self.faults.append(replace(place, kind=FaultKind.LEFT_OVER_TMP, path=f"{directory}/{entry.name}"))
        return listings
