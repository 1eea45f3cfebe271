"""Listing ahead of who walks through the repositories (`find`, `du`, `ls -R`, `grep -r`), as files are read ahead.

On an object store a repository is a dozen requests. Who walks through many makes them one after the other: of 2,000
repositories that are 40 ms away he would see the last after a quarter of an hour. So once he has opened one repository
and goes on to the one that is listed behind it, the next are listed before he comes to them: as many as he needs less
than the time to live for, because what is listed holds no longer. If he has looked into the one, so are the directories
that they have. Nothing is listed that would not be, if he goes on; and who walks slowly, because he reads what he
finds, is left alone.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import Final

import trio

from layerfs.view.nodes import Directory, DirectoryEntry
from layerfs.view.own_directory import OwnDirectory
from layerfs.view.repositories import RepositoryDirectory

#: Repositories that are listed ahead at the most: each is up to a dozen requests.
_MOST_AHEAD: Final = 8

#: Seconds that a repository takes at the least.
_SHORTEST: Final = 0.001

#: Directories of repositories in which somebody may be walking, and repositories in all of them together.
_WALKS_KEPT: Final = 64
_REPOSITORIES_KEPT: Final = 200_000


class _Walk:
    """Where somebody is who goes through the repositories of one directory, in the order in which they are listed."""

    def __init__(self, repositories: Sequence[RepositoryDirectory]) -> None:
        self._repositories = repositories
        self._places = {repository.name: place for place, repository in enumerate(repositories)}
        # The place he came to last, and when (monotonic seconds); whether he has looked into that repository.
        self._place = -1
        self._came_at = 0.0
        self._is_inside = False
        # Whether he goes into each, or through the names only.
        self.goes_inside = False
        # How many are listed ahead; and the first place that was not.
        self._ahead = 0
        self._listed = 0

    def __len__(self) -> int:
        return len(self._repositories)

    def look_into(self, name: str) -> None:
        """He opens one of the directories that a repository has."""
        self._is_inside = self._is_inside or self._places.get(name) == self._place

    def come_to(self, name: str, time_to_live: float) -> Sequence[RepositoryDirectory]:
        """He opens a repository. Returns those that are to be listed now, this one among them."""
        place, now = self._places.get(name, -1), time.monotonic()
        if place == self._place:
            return []
        needed, self._came_at = max(_SHORTEST, now - self._came_at), now
        goes_on = self._place >= 0 and place == self._place + 1
        if self.goes_inside != self._is_inside:
            self.goes_inside, self._listed = self._is_inside, place
        self._place, self._is_inside = place, False
        if not goes_on:
            self._ahead = 0
            return []
        self._ahead = int(min(2 * self._ahead + 1, _MOST_AHEAD, time_to_live / needed))
        begin, self._listed = max(self._listed, place), max(self._listed, place + self._ahead + 1)
        return self._repositories[begin : self._listed]


class WalkAhead:
    """Lists directories for who opens them, and those that he will open next.

    `start` runs a task in the background; `time_to_live` is for how many seconds a listing holds, 0 if none is listed
    ahead.
    """

    def __init__(
        self, start: Callable[[Callable[[], Awaitable[None]]], None], time_to_live: Callable[[], float]
    ) -> None:
        self._start = start
        self._time_to_live = time_to_live
        # By the name that the repositories in it begin with; the one that was used last is the last.
        self._walks: OrderedDict[str, _Walk] = OrderedDict()
        # What is being listed ahead, by the key of the directory.
        self._listing: dict[Hashable, trio.Event] = {}

    async def entries(self, directory: Directory) -> Sequence[DirectoryEntry]:
        """What the directory lists: from what is remembered, if it was listed ahead."""
        if not self._time_to_live():
            return await directory.entries()
        if isinstance(directory, OwnDirectory):
            self._look_into(directory.repository)
        elif isinstance(directory, RepositoryDirectory) and directory.name:
            self._come_to(directory.name)
        while (listed := self._listing.get(directory.key)) is not None:
            await listed.wait()
        entries = await directory.entries()
        if isinstance(directory, RepositoryDirectory):
            self._begin(directory.name, entries)
        return entries

    def _begin(self, name: str, entries: Sequence[DirectoryEntry]) -> None:
        """Somebody may be going to walk through what is in a directory of repositories."""
        self._walks[name] = _Walk([entry.node for entry in entries if isinstance(entry.node, RepositoryDirectory)])
        self._walks.move_to_end(name)
        while len(self._walks) > 1 and (
            len(self._walks) > _WALKS_KEPT or sum(map(len, self._walks.values())) > _REPOSITORIES_KEPT
        ):
            self._walks.popitem(last=False)

    def _look_into(self, repository: str) -> None:
        walk = self._walks.get(_above(repository))
        if walk is not None:
            walk.look_into(repository)

    def _come_to(self, repository: str) -> None:
        walk = self._walks.get(_above(repository))
        if walk is None:
            return
        self._walks.move_to_end(_above(repository))
        for each in walk.come_to(repository, self._time_to_live()):
            self._list(each, and_own=walk.goes_inside)

    def _list(self, directory: Directory, *, and_own: bool = False) -> None:
        """In the background; and then what a repository has. What cannot be listed says so when it is opened.

        The directories themselves remember what they have listed.
        """
        if directory.key in self._listing:
            return
        listed = self._listing[directory.key] = trio.Event()

        async def run() -> None:
            try:
                entries = await directory.entries()
            finally:
                del self._listing[directory.key]
                listed.set()
            for entry in entries if and_own else ():
                if isinstance(entry.node, OwnDirectory):
                    self._list(entry.node)

        self._start(run)


def _above(repository: str) -> str:
    return repository.rpartition("/")[0]
