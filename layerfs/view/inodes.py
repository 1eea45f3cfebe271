"""The inode table: which numbers the kernel knows, and which nodes they are.

The kernel counts how often it was told of an inode (`lookup`, `create`, every entry of a listing) and gives the count
back with `forget`; an inode lives exactly that long. Blobs get numbers made from their digest, so that they are the
same in every repository, on every mount and after a remount.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Final

from layerfs.digest import Digest
from layerfs.errors import StaleInode
from layerfs.view.nodes import Ino, Node

ROOT_INO: Final = Ino(1)

#: Numbers from here on are made from digests; those below are counted up.
_FIRST_BLOB_INO: Final = 1 << 62


class _Inode:
    __slots__ = ("lookups", "node")

    def __init__(self, node: Node) -> None:
        self.node = node
        self.lookups = 0


class InodeTable:
    """Inodes that the kernel knows. The root is always there."""

    def __init__(self, root: Node) -> None:
        self._inodes: dict[Ino, _Inode] = {ROOT_INO: _Inode(root)}
        self._inos: dict[Hashable, Ino] = {root.key: ROOT_INO}
        self._next_ino = ROOT_INO + 1

    def __len__(self) -> int:
        return len(self._inodes)

    def node(self, ino: Ino) -> Node:
        """Raises `StaleInode` for a number that was forgotten or never given."""
        inode = self._inodes.get(ino)
        if inode is None:
            raise StaleInode(f"inode {ino} is not known")
        return inode.node

    def ino(self, node: Node) -> Ino:
        """The number that `node` has, or will have with the next `remember`."""
        ino = self._inos.get(node.key)
        if ino is None:
            ino = self._allocate(node.key)
            self._inos[node.key] = ino
            self._inodes[ino] = _Inode(node)
        return ino

    def remember(self, ino: Ino, node: Node) -> None:
        """The kernel was told of `ino` once more. The newest node object stands for it from now on."""
        inode = self._inodes[ino]
        inode.lookups += 1
        if inode.node.key == node.key:
            inode.node = node

    def forget(self, ino: Ino, lookups: int) -> None:
        """The kernel gives back `lookups` of what it was told. Never raises."""
        inode = self._inodes.get(ino)
        if inode is None or ino == ROOT_INO:
            return
        inode.lookups -= lookups
        if inode.lookups <= 0:
            self._remove(ino, inode)

    def discard_unknown(self, ino: Ino) -> None:
        """Drops a number that was allocated but that the kernel was never told of."""
        inode = self._inodes.get(ino)
        if inode is not None and inode.lookups <= 0 and ino != ROOT_INO:
            self._remove(ino, inode)

    def rebind(self, old: Node, new: Node) -> None:
        """The file `old` has become `new` (an upload, a layer): its number stays, because the kernel goes on using it.

        But it is not the number for lookups: that of a blob is made from its digest, whoever has uploaded it.
        """
        ino = self._inos.pop(old.key, None)
        if ino is not None:
            self._inodes[ino].node = new

    def _remove(self, ino: Ino, inode: _Inode) -> None:
        del self._inodes[ino]
        if self._inos.get(inode.node.key) == ino:
            del self._inos[inode.node.key]

    def _allocate(self, key: Hashable) -> Ino:
        if isinstance(key, Digest):
            ino = Ino(_FIRST_BLOB_INO | int(key.hex[:15], 16))
            if ino not in self._inodes:
                return ino
            # Two digests that begin alike: somebody has worked for that. The second gets an ordinary number.
        ino = Ino(self._next_ino)
        self._next_ino += 1
        return ino
