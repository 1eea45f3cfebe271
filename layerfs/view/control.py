"""`.layerfs`: what the mount says of itself. Can be looked up, is never listed."""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict
from typing import Final

from layerfs.errors import NotPermitted
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

CONTROL: Final = ".layerfs"


class ControlDirectory(Directory):
    """The directory itself. `status` gives what `status.json` shows."""

    path = CONTROL

    def __init__(self, state: MountState, status: Callable[[], dict[str, object]]) -> None:
        self._state = state
        self._files: dict[str, Callable[[], str]] = {
            "errors": self._errors,
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
        if name not in self._files:
            raise no_entry(self.path, name)
        return self._file(name)

    async def entries(self) -> Sequence[DirectoryEntry]:
        nodes = [(name, self._file(name)) for name in sorted(self._files)]
        return [DirectoryEntry(name.encode(), node, await node.attributes()) for name, node in nodes]

    def _file(self, name: str) -> ControlFile:
        return ControlFile(self._state, name, self._files[name])

    def _errors(self) -> str:
        return "".join(json.dumps(asdict(error)) + "\n" for error in self._state.errors)


class ControlFile(Node):
    """A file whose content is made when it is opened. `content` makes it."""

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
        if flags & 0o3:
            raise NotPermitted(f"{self.path} cannot be written")
        return ControlHandle(self.path, self._content().encode())


class ControlHandle(Handle):
    """An open file of `.layerfs`: one state of it."""

    direct = True

    def __init__(self, path: str, content: bytes) -> None:
        self.path = path
        self._content = content

    def read_nowait(self, offset: int, length: int) -> bytes:
        return self._content[offset : offset + length]

    async def read(self, offset: int, length: int) -> bytes:
        return self.read_nowait(offset, length)
