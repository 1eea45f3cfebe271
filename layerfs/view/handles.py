"""The handle table: which files and directories are open, and no more than so many of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final, Generic, TypeVar

from layerfs.errors import BadHandle, HandleLimit
from layerfs.view.nodes import DirectoryEntry, Handle, HandleId

#: Closed ones whose path is remembered, as many as there can be answers on their way.
_CLOSED_KEPT: Final = 64

#: Those that do not count, at the most.
_UNCOUNTED: Final = 1024

_Open = TypeVar("_Open", Handle, "DirectorySnapshot")


class DirectorySnapshot:
    """An open directory: what it held when it was opened, so that a listing in pieces is one listing."""

    def __init__(self, path: str, entries: Sequence[DirectoryEntry]) -> None:
        self.path = path
        self.entries = entries


class HandleTable(Generic[_Open]):
    """Open things by number, at most `limit` of those that count."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._open: dict[HandleId, _Open] = {}
        self._uncounted: set[HandleId] = set()
        self._opening = 0
        self._next = 1
        #: The newest that are closed: an answer can be told of only when it was given.
        self._closed: deque[tuple[HandleId, str]] = deque(maxlen=_CLOSED_KEPT)

    def __len__(self) -> int:
        return len(self._open)

    @contextmanager
    def room(self, *, counts: bool = True) -> Iterator[None]:
        """Keeps a place while something is being opened, so that many at once are not too many.

        Raises `HandleLimit` when there are as many as there may be.
        """
        if counts and len(self._open) - len(self._uncounted) + self._opening >= self._limit:
            raise HandleLimit(f"{self._limit} files are open on this mount, as many as --max-handles allows")
        if not counts and len(self._uncounted) >= _UNCOUNTED:
            raise HandleLimit(f"{_UNCOUNTED} files are open that tell of this mount, as many as may be")
        self._opening += counts
        try:
            yield
        finally:
            self._opening -= counts

    def add(self, opened: _Open, *, counts: bool = True) -> HandleId:
        """A number for something that was just opened."""
        number = HandleId(self._next)
        self._next += 1
        self._open[number] = opened
        if not counts:
            self._uncounted.add(number)
        return number

    def get(self, number: HandleId) -> _Open:
        """Raises `BadHandle` for one that is closed."""
        opened = self._open.get(number)
        if opened is None:
            raise BadHandle(f"handle {number} is not open")
        return opened

    def pop(self, number: HandleId) -> _Open:
        """Takes it out of the table. Raises `BadHandle`."""
        opened = self.get(number)
        del self._open[number]
        self._uncounted.discard(number)
        self._closed.append((number, opened.path))
        return opened

    def path(self, number: HandleId) -> str:
        """Where one that is open, or was closed just now, is in the tree; for messages, whatever the number is."""
        opened = self._open.get(number)
        if opened is not None:
            return opened.path or "/"
        return dict(self._closed).get(number, f"<handle {number}>") or "/"

    def values(self) -> list[_Open]:
        """All that are open."""
        return list(self._open.values())
