"""Nodes: what the names in the tree stand for, and what can be done to each. Knows no inodes and no FUSE.

`Node` and `Directory` refuse everything; each kind of node allows what it is for. So the rules for a directory of the
tree stand together in its class: `repositories`, `layers`, `uploads`, `control`.
"""

from __future__ import annotations

import stat
from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Final, NewType

from layerfs.errors import InvalidArgument, IsDirectory, NoSuchEntry, NotPermitted

Ino = NewType("Ino", int)
HandleId = NewType("HandleId", int)

#: The directory of a repository that storage has no directory for: there tags are in `_manifests`.
TAGS: Final = "_tags"

#: The directory of a repository that shows it as an OCI image layout; storage has nothing like it.
OCI: Final = "_oci"

#: Seconds for which the kernel may keep what can never change.
IMMUTABLE_TIMEOUT: Final = 4 * 3600.0


@dataclass(frozen=True, slots=True)
class Attributes:
    """What `stat` shows, but for the inode number and the owner.

    `size` is in bytes, `modified_at` in nanoseconds since 1970. `entry_timeout` and `attribute_timeout` are the seconds
    for which the kernel may believe the name and the rest. `block_size` is how many bytes programs are told to read and
    write at a time.
    """

    mode: int
    size: int
    modified_at: int
    links: int
    entry_timeout: float
    attribute_timeout: float
    block_size: int = 4096


@dataclass(frozen=True, slots=True)
class DirectoryEntry:
    """A name in a directory's listing."""

    name: bytes
    node: Node
    attributes: Attributes

    def believable_for(self, seconds: float) -> DirectoryEntry:
        """The same, but no longer believed by the kernel than that."""
        timeout = min(self.attributes.entry_timeout, seconds)
        return replace(self, attributes=replace(self.attributes, entry_timeout=timeout))


class Handle(ABC):
    """An open file. The defaults are those of a file that is only read."""

    #: For messages.
    path: str
    #: What was opened, for messages too.
    ino: Ino | None = None
    #: Whether the kernel must pass every read and write on instead of keeping pages.
    direct: bool = False

    def read_nowait(self, offset: int, length: int) -> memoryview | bytes | None:  # noqa: ARG002
        """The bytes, if they can be had without waiting; to be used before the next await."""
        return None

    @abstractmethod
    async def read(self, offset: int, length: int) -> bytes:
        """The bytes at `offset`, fewer only at the end of the file."""

    async def write(self, offset: int, content: bytes) -> int:  # noqa: ARG002
        """Takes the bytes, all of them, and returns how many that are."""
        raise NotPermitted(f"{self.path} is not open for writing")

    async def truncate(self, size: int) -> None:  # noqa: ARG002
        """Makes the file `size` bytes long."""
        raise NotPermitted(f"{self.path} is not open for writing")

    async def flush(self) -> None:  # noqa: B027 - right for what is only read
        """A descriptor was closed; others of the same open may remain. What fails, `close` reports."""

    async def synchronize(self) -> None:  # noqa: B027 - right for what is only read
        """Returns when everything written is durable."""

    async def release(self) -> None:  # noqa: B027 - right for what is only read
        """The last descriptor is gone. Nobody hears of an error any more."""


class Node(ABC):
    """Something in the tree. `path` is where it was found, for messages."""

    path: str
    #: Whether it counts, while it is open, among the files of which there may be so many.
    counts_open: bool = True

    @property
    @abstractmethod
    def key(self) -> Hashable:
        """Equal for nodes that are the same file and so share an inode."""

    @abstractmethod
    async def attributes(self) -> Attributes:
        """As they are now. Raises `NoSuchEntry` or a registry error if the node is gone."""

    async def extended_attributes(self) -> dict[str, str]:
        """`user.layerfs.…`, without that prefix."""
        return {}

    async def read_link(self) -> str:
        """Where a symbolic link leads."""
        raise InvalidArgument(f"{self.path or '/'} is no symbolic link")

    async def open(self, flags: int) -> Handle:  # noqa: ARG002
        raise IsDirectory(f"{self.path} is a directory")

    async def truncate(self, size: int) -> None:  # noqa: ARG002
        raise NotPermitted(f"{self.path} cannot be truncated")

    def check_ownership_change(self) -> None:
        """Raises unless a change of mode or owner is taken (and ignored)."""
        raise NotPermitted(f"mode and owner of {self.path} cannot be changed")


class ListedNode(Node):
    """A node that came with its attributes, so that it can be listed without asking again."""

    #: In its directory.
    name: str

    @abstractmethod
    def attributes_now(self) -> Attributes:
        """As they were when the node was made."""

    async def attributes(self) -> Attributes:
        return self.attributes_now()

    def entry(self) -> DirectoryEntry:
        """How its directory lists it."""
        return DirectoryEntry(self.name.encode(), self, self.attributes_now())


class Directory(Node):
    """A directory; its mutators take names that were already decoded from UTF-8."""

    @abstractmethod
    async def lookup(self, name: str) -> Node:
        """The node called `name`. Raises `NoSuchEntry` or a registry error."""

    @abstractmethod
    async def entries(self) -> Sequence[DirectoryEntry]:
        """All that is listed, in a stable order."""

    async def create(self, name: str, flags: int) -> tuple[Node, Handle]:  # noqa: ARG002
        raise NotPermitted(f"files cannot be made in {self.path or '/'}; upload into a repository's _uploads")

    async def make_directory(self, name: str) -> Node:  # noqa: ARG002
        raise NotPermitted(f"directories cannot be made in {self.path or '/'}")

    async def remove_directory(self, name: str) -> None:
        raise NotPermitted(f"{name!r} in {self.path or '/'} cannot be removed")

    async def remove(self, name: str) -> None:
        raise NotPermitted(f"{name!r} in {self.path or '/'} cannot be removed")

    async def make_link(self, name: str, target: str) -> Node:  # noqa: ARG002
        """Makes a symbolic link."""
        raise NotPermitted(f"symbolic links cannot be made in {self.path or '/'}")

    async def link(self, node: Node, name: str) -> Node:  # noqa: ARG002
        raise NotPermitted(f"nothing can be linked into {self.path or '/'}")

    async def rename(self, name: str, target: Directory, new_name: str, *, replace: bool) -> None:  # noqa: ARG002
        """Moves `name`. With `replace` false an existing target is `EntryExists`."""
        raise NotPermitted(f"{name!r} in {self.path or '/'} cannot be moved")


def directory_attributes(*, permissions: int, modified_at: int, timeout: float) -> Attributes:
    """Of a directory whose content can change within `timeout` seconds."""
    return Attributes(stat.S_IFDIR | permissions, 0, modified_at, 2, timeout, timeout)


def file_attributes(
    *, permissions: int, size: int, modified_at: int, links: int = 1, timeout: float = 0.0
) -> Attributes:
    """Of a regular file that can change within `timeout` seconds."""
    return Attributes(stat.S_IFREG | permissions, size, modified_at, links, timeout, timeout)


def no_entry(directory: str, name: str) -> NoSuchEntry:
    """The error for a name that is not there."""
    return NoSuchEntry(f"{directory or '/'} has no {name!r}")


def not_a_digest(name: str, reason: object) -> InvalidArgument:
    """The error for a name that would have to be a digest."""
    return InvalidArgument(f"{name!r} is no digest that content can be stored under: {reason}")
