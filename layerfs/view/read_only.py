"""Directories that cannot be changed, on whatever mount: like those of a file system that is mounted read-only."""

# ruff: noqa: ARG002 - all that a change would be made with

from __future__ import annotations

from typing import NoReturn

from layerfs.errors import ReadOnlyMount
from layerfs.view.nodes import Directory, Handle, Node


class ReadOnlyDirectory(Directory):
    """Every change is `ReadOnlyMount`; to be named before other base classes."""

    async def create(self, name: str, flags: int) -> tuple[Node, Handle]:
        self.refuse(name)

    async def make_directory(self, name: str) -> Node:
        self.refuse(name)

    async def remove_directory(self, name: str) -> None:
        self.refuse(name)

    async def remove(self, name: str) -> None:
        self.refuse(name)

    async def make_link(self, name: str, target: str) -> Node:
        self.refuse(name)

    async def link(self, node: Node, name: str) -> Node:
        self.refuse(name)

    async def rename(self, name: str, target: Directory, new_name: str, *, replace: bool) -> None:
        self.refuse(name)

    def check_ownership_change(self) -> None:
        raise ReadOnlyMount(f"{self.path} can be read only, on every mount")

    def refuse(self, name: str) -> NoReturn:
        """The error for a change of `name` here."""
        raise ReadOnlyMount(f"{name!r}: {self.path} can be read only, on every mount")
