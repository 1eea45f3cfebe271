"""`.layerfs`: what the mount says of itself. Can be looked up, is never listed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Final

from layerfs.errors import NotPermitted
from layerfs.view.buffered import MemoryHandle
from layerfs.view.nodes import (
    Attributes,
    Directory,
    DirectoryEntry,
    Handle,
    Node,
    directory_attributes,
    file_attributes,
    no_entry,
)
from layerfs.view.state import MountState
from layerfs.view.stats import Failure

CONTROL: Final = ".layerfs"

ACCESS_LOG: Final = "accesslog"

#: Below the mountpoint.
STATUS: Final = f"{CONTROL}/status.json"


class ControlDirectory(Directory):
    """The directory itself. `status` gives what `status.json` shows, `stats` what `stats` does."""

    path = CONTROL

    def __init__(self, state: MountState, *, status: Callable[[], dict[str, object]], stats: Callable[[], str]) -> None:
        self._state = state
        self._files: dict[str, Callable[[], str]] = {
            "errors": lambda: _lines(state.stats.failures),
            "missing": lambda: _lines(state.stats.missing.values()),
            "stats": stats,
            "status.json": lambda: json.dumps(status(), indent=2) + "\n",
        }

    @property
    def key(self) -> Hashable:
        return ("control", "")

    async def attributes(self) -> Attributes:
        return directory_attributes(
            permissions=self._state.permissions(0o755), modified_at=self._state.mounted_at, timeout=0.0
        )

    async def lookup(self, name: str) -> Node:
        return self._file(name)

    async def entries(self) -> Sequence[DirectoryEntry]:
        nodes = [(name, self._file(name)) for name in sorted([ACCESS_LOG, *self._files])]
        return [DirectoryEntry(name.encode(), node, await node.attributes()) for name, node in nodes]

    def _file(self, name: str) -> ControlFile | AccessLogFile:
        if name == ACCESS_LOG:
            return AccessLogFile(self._state)
        if name not in self._files:
            raise no_entry(self.path, name)
        return ControlFile(self._state, name, self._files[name])


class ControlFile(Node):
    """A file whose content is made when it is opened. `content` makes it."""

    counts_open = False

    def __init__(self, state: MountState, name: str, content: Callable[[], str]) -> None:
        self.path = f"{CONTROL}/{name}"
        self._name = name
        self._state = state
        self._content = content

    @property
    def key(self) -> Hashable:
        return ("control", self._name)

    async def attributes(self) -> Attributes:
        # The size is what it would be now; `direct` makes readers go on to the real end.
        return file_attributes(
            permissions=self._state.permissions(0o444),
            size=len(self._content().encode()),
            modified_at=self._state.mounted_at,
        )

    async def open(self, flags: int) -> Handle:
        _check_reading(self.path, flags)
        return MemoryHandle(self.path, self._content().encode())


class AccessLogFile(Node):
    """What everybody does, from the moment that it is opened."""

    path = f"{CONTROL}/{ACCESS_LOG}"
    counts_open = False

    def __init__(self, state: MountState) -> None:
        self._state = state

    @property
    def key(self) -> Hashable:
        return ("control", ACCESS_LOG)

    async def attributes(self) -> Attributes:
        state = self._state
        # Who does what is nobody's business but the owner's.
        return file_attributes(permissions=state.permissions(0o400), size=0, modified_at=state.mounted_at)

    async def open(self, flags: int) -> Handle:
        _check_reading(self.path, flags)
        return self._state.stats.access_log.open(self.path)


def _check_reading(path: str, flags: int) -> None:
    if flags & os.O_ACCMODE != os.O_RDONLY:
        raise NotPermitted(f"{path} cannot be written")


def _lines(failures: Iterable[Failure]) -> str:
    return "".join(json.dumps(failure.fields()) + "\n" for failure in failures)
