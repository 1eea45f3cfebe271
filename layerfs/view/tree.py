"""`Tree`: the whole file system in terms of inodes and handles, without FUSE.

Finds the node that a call is about, lets it do the work, and keeps the inode and handle tables right. What is allowed
where is in the nodes; what becomes which errno is in `layerfs.fuse.errnos`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Final

import trio

from layerfs.driver.interface import Usage
from layerfs.driver.metered import MeteredDriver
from layerfs.errors import (
    InvalidArgument,
    IsNotDirectory,
    LayerfsError,
    NameTooLong,
    NoSuchEntry,
    NotPermitted,
    UnknownAttribute,
    UnsupportedAttribute,
)
from layerfs.names import FILE_NAME_LENGTH
from layerfs.registry import Registry
from layerfs.view.control import ControlDirectory
from layerfs.view.handles import DirectorySnapshot, HandleTable
from layerfs.view.inodes import ROOT_INO, InodeTable
from layerfs.view.live_upload import LiveUpload
from layerfs.view.live_uploads import LiveUploads
from layerfs.view.measurements import Measurements
from layerfs.view.nodes import Attributes, Directory, DirectoryEntry, Handle, HandleId, Ino, Node
from layerfs.view.oci.state import Layouts
from layerfs.view.repositories import RepositoryDirectory
from layerfs.view.state import MountState, TreeOptions
from layerfs.view.walk_ahead import WalkAhead

__all__ = ["ROOT_INO", "Tree", "TreeOptions"]

_ATTRIBUTE_PREFIX: Final = "user.layerfs."


class Tree:
    """A registry as a file system.

    `about` is added to `.layerfs/status.json`. `nursery` is for work that goes on after the call that began it.
    """

    def __init__(
        self, registry: Registry, options: TreeOptions, nursery: trio.Nursery, about: Mapping[str, object] | None = None
    ) -> None:
        self.options = options
        self.registry = registry
        self._about = dict(about or {})
        self._state = MountState(registry, options, nursery)
        #: What is counted, by whoever dispatches operations.
        self.stats = self._state.stats
        self._uploads = LiveUploads(self._state)
        control = ControlDirectory(self._state, status=self.status, stats=lambda: self.measurements().text())
        self._inodes = InodeTable(RepositoryDirectory(Layouts(self._state, self._uploads), control, ""))
        self._state.became = self._inodes.rebind
        self._handles: HandleTable[Handle] = HandleTable(options.max_handles)
        self._directories: HandleTable[DirectorySnapshot] = HandleTable(options.max_handles)
        self._walk_ahead = WalkAhead(
            lambda task: self._state.start(task, "listing ahead"),
            lambda: self.options.metadata_ttl if self._state.is_far else 0.0,
        )

    def change_options(self, options: TreeOptions) -> None:
        """Changes what can be changed while it is used; the rest of `options` is not looked at."""
        self._state.change_options(options)
        self.options = self._state.options
        self._about["allow_delete"] = options.allow_delete

    async def close(self) -> None:
        """Makes durable what is still open for writing. To be called when no more calls come in; may be cancelled."""
        await self._uploads.close()

    def measurements(self) -> Measurements:
        """All figures as they are now. May be called from any thread."""
        return Measurements(
            about=self._about,
            uptime=(time.time_ns() - self._state.mounted_at) / 1e9,
            open_files=len(self._handles),
            open_directories=len(self._directories),
            inodes=len(self._inodes),
            uploads=len(self._uploads.open_uploads()),
            read_ahead_bytes=self._state.read_ahead.used,
            stats=self._state.stats,
            backend=self.registry.driver.stats if isinstance(self.registry.driver, MeteredDriver) else None,
            caches=self._state.cache_figures(),
        )

    def status(self) -> dict[str, object]:
        """What `.layerfs/status.json` shows."""
        return self.measurements().status([_upload_fields(live) for live in self._uploads.open_uploads()])

    # --- names and attributes --------------------------------------------------------------------------------

    async def lookup(self, parent: Ino, name: bytes) -> tuple[Ino, Attributes]:
        """The inode called `name`, which the kernel knows once more from now on."""
        node = await self._directory(parent).lookup(_decode(name))
        return self._tell(node, await node.attributes())

    def forget(self, ino: Ino, lookups: int) -> None:
        """The kernel gives back `lookups` of what it was told of an inode."""
        self._inodes.forget(ino, lookups)

    async def attributes(self, ino: Ino) -> Attributes:
        """What `stat` shows."""
        return await self._inodes.node(ino).attributes()

    async def truncate(self, ino: Ino, handle: HandleId | None, size: int) -> None:
        """`truncate`, or with a handle `ftruncate`."""
        if handle is None:
            await self._inodes.node(ino).truncate(size)
        else:
            await self._handles.get(handle).truncate(size)

    def check_ownership_change(self, ino: Ino) -> None:
        """Raises unless `chmod` and `chown` are taken (and ignored) here."""
        self._inodes.node(ino).check_ownership_change()

    def may_access(self, ino: Ino, mode: int) -> bool:
        """`access`: by what can be done here at all, whoever asks."""
        node = self._inodes.node(ino)
        if mode & os.W_OK:
            self._state.check_writable()
        if isinstance(node, Directory):
            return True
        if mode & os.W_OK:
            try:
                node.check_ownership_change()
            except NotPermitted:
                return False
        return not mode & os.X_OK

    async def extended_attribute(self, ino: Ino, name: bytes) -> bytes:
        """Raises `UnknownAttribute`, or `UnsupportedAttribute` outside `user.`, without waiting."""
        if not name.startswith(b"user."):
            raise UnsupportedAttribute(f"there are no attributes like {name!r} here")
        found = (await self._inodes.node(ino).extended_attributes()).get(_attribute_name(name))
        if found is None:
            raise UnknownAttribute(f"no attribute {name!r}")
        return found.encode(errors="surrogateescape")

    async def extended_attribute_names(self, ino: Ino) -> list[bytes]:
        """All that `extended_attribute` has for an inode."""
        return [f"{_ATTRIBUTE_PREFIX}{name}".encode() for name in await self._inodes.node(ino).extended_attributes()]

    def check_attribute_change(self, name: bytes) -> None:
        """Setting and removing attributes: always refused, the reason depends on the name."""
        if name.startswith(_ATTRIBUTE_PREFIX.encode()):
            raise NotPermitted(f"{name!r} is read-only")
        raise UnsupportedAttribute(f"attributes like {name!r} cannot be set here")

    async def usage(self) -> Usage | None:
        """How full the storage is, None if nobody can know."""
        return await self.registry.driver.usage()

    # --- changes of directories ------------------------------------------------------------------------------

    async def make_directory(self, parent: Ino, name: bytes) -> tuple[Ino, Attributes]:
        """`mkdir`: makes a repository."""
        node = await self._directory(parent).make_directory(_decode(name, InvalidArgument))
        return self._tell(node, await node.attributes())

    async def remove_directory(self, parent: Ino, name: bytes) -> None:
        """`rmdir`."""
        await self._directory(parent).remove_directory(_decode(name))

    async def remove(self, parent: Ino, name: bytes) -> None:
        """`unlink`."""
        await self._directory(parent).remove(_decode(name))

    async def read_link(self, ino: Ino) -> bytes:
        """`readlink`."""
        return (await self._inodes.node(ino).read_link()).encode()

    async def make_link(self, parent: Ino, name: bytes, target: bytes) -> tuple[Ino, Attributes]:
        """`symlink`: tags a manifest."""
        text = _decode(name, InvalidArgument)
        node = await self._directory(parent).make_link(text, target.decode(errors="replace"))
        return self._tell(node, await node.attributes())

    async def link(self, ino: Ino, parent: Ino, name: bytes) -> tuple[Ino, Attributes]:
        """`link`."""
        node = await self._directory(parent).link(self._inodes.node(ino), _decode(name, InvalidArgument))
        return self._tell(node, await node.attributes())

    async def rename(self, parent: Ino, name: bytes, new_parent: Ino, new_name: bytes, *, replace: bool) -> None:
        """`rename`; with `replace` false an existing target is refused."""
        directory, target = self._directory(parent), self._directory(new_parent)
        await directory.rename(_decode(name), target, _decode(new_name, InvalidArgument), replace=replace)

    # --- files -----------------------------------------------------------------------------------------------

    async def create(self, parent: Ino, name: bytes, flags: int) -> tuple[Ino, Attributes, HandleId, Handle]:
        """Makes a file and opens it."""
        with self._handles.room():
            node, handle = await self._directory(parent).create(_decode(name, InvalidArgument), flags)
            ino, attributes = self._tell(node, await node.attributes())
            handle.ino = ino
            return ino, attributes, self._handles.add(handle), handle

    async def open(self, ino: Ino, flags: int) -> tuple[HandleId, Handle]:
        """Opens a file."""
        node = self._inodes.node(ino)
        with self._handles.room(counts=node.counts_open):
            handle = await node.open(flags)
            handle.ino = ino
            return self._handles.add(handle, counts=node.counts_open), handle

    def handle(self, handle: HandleId) -> Handle:
        """An open file. Raises `BadHandle`."""
        return self._handles.get(handle)

    async def release(self, handle: HandleId) -> None:
        """The last descriptor of a handle is gone."""
        await self._handles.pop(handle).release()

    async def open_directory(self, ino: Ino) -> HandleId:
        """Opens a directory: lists it once."""
        with self._directories.room():
            directory = self._directory(ino)
            return self._directories.add(DirectorySnapshot(directory.path, await self._walk_ahead.entries(directory)))

    def directory(self, handle: HandleId) -> DirectorySnapshot:
        """An open directory. Raises `BadHandle`."""
        return self._directories.get(handle)

    def release_directory(self, handle: HandleId) -> None:
        """A directory was closed."""
        self._directories.pop(handle)

    def ino_of(self, entry: DirectoryEntry) -> Ino:
        """The inode number of a listed node. Ends with `told` or `not_told`."""
        return self._inodes.ino(entry.node)

    def told(self, ino: Ino, entry: DirectoryEntry) -> None:
        """The kernel has taken the entry, and so knows the inode once more."""
        self._inodes.remember(ino, entry.node)

    def not_told(self, ino: Ino) -> None:
        """The kernel has not taken the entry."""
        self._inodes.discard_unknown(ino)

    # --- failures --------------------------------------------------------------------------------------------

    def path_of(self, ino: Ino, name: bytes | None = None) -> str:
        """Where a call was, for messages; whatever the numbers are."""
        try:
            path = self._inodes.node(ino).path
        except LayerfsError:
            path = f"<inode {ino}>"
        if name is None:
            return path or "/"
        return f"{path}/{os.fsdecode(name)}" if path else os.fsdecode(name)

    def path_of_handle(self, handle: HandleId) -> str:
        """Where an open file was, for messages; whatever the number is."""
        return self._handles.path(handle)

    def path_of_directory(self, handle: HandleId) -> str:
        """Where an open directory was, for messages; whatever the number is."""
        return self._directories.path(handle)

    def ino_of_handle(self, handle: HandleId) -> Ino | None:
        """What an open file is, for messages; None if it is not open."""
        try:
            return self._handles.get(handle).ino
        except LayerfsError:
            return None

    def _directory(self, ino: Ino) -> Directory:
        node = self._inodes.node(ino)
        if not isinstance(node, Directory):
            raise IsNotDirectory(f"{node.path} is no directory")
        return node

    def _tell(self, node: Node, attributes: Attributes) -> tuple[Ino, Attributes]:
        # No await between allocating the number and remembering it: nobody can forget it in between.
        ino = self._inodes.ino(node)
        self._inodes.remember(ino, node)
        return ino, attributes


def _upload_fields(live: LiveUpload) -> dict[str, object]:
    upload = live.upload
    return {
        "repository": upload.name,
        "name": live.file_name,
        "path": live.path,
        "uuid": upload.uuid,
        "size": upload.size,
        "pending": upload.pending,
        "hash_lag": upload.hash_lag,
    }


def _decode(name: bytes, error: type[LayerfsError] = NoSuchEntry) -> str:
    """A file name as text. `error` is what one that is not UTF-8 is: nothing by that name is here, or can be made."""
    if len(name) > FILE_NAME_LENGTH:
        raise NameTooLong(f"{name[:80]!r}… has {len(name)} bytes, more than {FILE_NAME_LENGTH}")
    try:
        return name.decode()
    except UnicodeDecodeError:
        raise error(f"{name!r} is not UTF-8") from None


def _attribute_name(name: bytes) -> str:
    return name.decode(errors="replace").removeprefix(_ATTRIBUTE_PREFIX)
