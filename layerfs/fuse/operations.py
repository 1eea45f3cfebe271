"""The FUSE handlers: the kernel's arguments in, attributes and errnos out. The rules are in `layerfs.view`."""

from __future__ import annotations

import math
import stat
from collections.abc import Sequence
from functools import partial
from typing import Any, Final, cast

import pyfuse3
from pyfuse3 import EntryAttributes, FileInfo, ReaddirToken, RequestContext, SetattrFields, StatvfsData

from layerfs.errors import InvalidArgument, NotPermitted
from layerfs.fuse.guard import GuardedOperations, limited
from layerfs.fuse.second_asks import SecondAsks
from layerfs.view.caller import set_calling_thread
from layerfs.view.nodes import Attributes, Handle, HandleId, Ino
from layerfs.view.stats import Details
from layerfs.view.tree import Tree

#: `statfs` where nobody knows how full the storage is: a lot of blocks of this many bytes, and nothing about files.
_BLOCK_SIZE: Final = 4096
_MANY_BLOCKS: Final = 1 << 40

#: Handlers whose first argument is a handle, for messages.
_BY_HANDLE: Final = frozenset({"read", "write", "flush", "fsync", "release"})
_BY_DIRECTORY_HANDLE: Final = frozenset({"readdir", "releasedir", "fsyncdir"})


class Operations(GuardedOperations):
    """pyfuse3's view of a `Tree`.

    All of pyfuse3's defaults that answer ENOSYS are replaced, because the kernel remembers an ENOSYS for the life of
    the mount.
    """

    supports_dot_lookup = False
    enable_writeback_cache = False

    def __init__(self, tree: Tree, *, operation_timeout: float, slow_operation: float = math.inf) -> None:
        super().__init__(tree.stats)
        self.operation_timeout = operation_timeout
        self.slow_operation = slow_operation
        self._tree = tree
        self._uid = tree.options.uid
        self._gid = tree.options.gid
        self._second_asks = SecondAsks()
        #: The threads that have opened what is read and written past the page cache, by handle.
        self._openers: dict[int, int] = {}

    # --- for the guard ---------------------------------------------------------------------------------------

    def describe(self, operation: str, arguments: tuple[Any, ...]) -> str:
        path, target = self.paths(operation, arguments)
        return path if target is None else f"{path} -> {target}"

    def paths(self, operation: str, arguments: tuple[Any, ...]) -> tuple[str, str | None]:
        path_of = self._tree.path_of
        if operation in _BY_HANDLE:
            return self._tree.path_of_handle(arguments[0]), None
        if operation in _BY_DIRECTORY_HANDLE:
            return self._tree.path_of_directory(arguments[0]), None
        if operation == "statfs":
            return "/", None
        if operation == "link":
            return path_of(arguments[1], arguments[2]), None
        if operation == "rename":
            return path_of(*arguments[0:2]), path_of(*arguments[2:4])
        name = arguments[1] if isinstance(arguments[1], bytes) and not operation.endswith("xattr") else None
        return path_of(arguments[0], name), None

    def details(self, operation: str, arguments: tuple[Any, ...]) -> Details:
        if operation in ("read", "write"):
            handle, offset, content = arguments
            length = content if operation == "read" else len(content)
            return Details(self._tree.ino_of_handle(handle), handle, offset, length)
        if operation in _BY_HANDLE:
            return Details(self._tree.ino_of_handle(arguments[0]), arguments[0])
        if operation in _BY_DIRECTORY_HANDLE:
            return Details(handle=arguments[0])
        return Details() if operation == "statfs" else Details(arguments[0])

    def caller(self, operation: str, arguments: tuple[Any, ...]) -> int | None:
        # The kernel does not say who reads, writes and closes, so it is taken to be who has opened. Who waits for a
        # page of the cache can be killed anyhow, and others may wait for it, too.
        if operation in _BY_HANDLE:
            return self._openers.get(arguments[0])
        context = arguments[-1]
        return context.pid if isinstance(context, RequestContext) else None

    # --- names and attributes --------------------------------------------------------------------------------

    async def lookup(self, parent: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        return self._entry(*await self._tree.lookup(Ino(parent), name))

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        for ino, lookups in inode_list:
            self._tree.forget(Ino(ino), lookups)

    async def getattr(self, inode: int, ctx: RequestContext) -> EntryAttributes:
        return self._entry(Ino(inode), await self._tree.attributes(Ino(inode)))

    async def setattr(
        self,
        inode: int,
        attr: EntryAttributes,
        fields: SetattrFields,
        fh: int | None,
        ctx: RequestContext,
    ) -> EntryAttributes:
        ino = Ino(inode)
        if fields.update_mode or fields.update_uid or fields.update_gid:
            self._tree.check_ownership_change(ino)
        if fields.update_size:
            await self._tree.truncate(ino, None if fh is None else HandleId(fh), attr.st_size)
        return self._entry(ino, await self._tree.attributes(ino))

    async def access(self, inode: int, mode: int, ctx: RequestContext) -> bool:
        return self._tree.may_access(Ino(inode), mode)

    async def getxattr(self, inode: int, name: bytes, ctx: RequestContext) -> bytes:
        return await self._tree.extended_attribute(Ino(inode), name)

    async def listxattr(self, inode: int, ctx: RequestContext) -> Sequence[bytes]:
        return await self._tree.extended_attribute_names(Ino(inode))

    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: RequestContext) -> None:
        self._tree.check_attribute_change(name)

    async def removexattr(self, inode: int, name: bytes, ctx: RequestContext) -> None:
        self._tree.check_attribute_change(name)

    async def readlink(self, inode: int, ctx: RequestContext) -> bytes:
        return await self._tree.read_link(Ino(inode))

    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        usage = await self._tree.usage()
        result = StatvfsData()
        result.f_bsize = result.f_frsize = usage.block_size if usage else _BLOCK_SIZE
        result.f_blocks = usage.total_bytes // usage.block_size if usage else _MANY_BLOCKS
        result.f_bfree = usage.free_bytes // usage.block_size if usage else _MANY_BLOCKS
        result.f_bavail = usage.available_bytes // usage.block_size if usage else _MANY_BLOCKS
        result.f_files = usage.total_files if usage else 0
        result.f_ffree = result.f_favail = usage.free_files if usage else 0
        result.f_namemax = 255
        return result

    # --- changes of directories ------------------------------------------------------------------------------

    async def mkdir(self, parent_inode: int, name: bytes, mode: int, ctx: RequestContext) -> EntryAttributes:
        return self._entry(*await self._tree.make_directory(Ino(parent_inode), name))

    async def rmdir(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        await self._tree.remove_directory(Ino(parent_inode), name)

    async def unlink(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        await self._tree.remove(Ino(parent_inode), name)

    async def link(self, inode: int, new_parent: int, new_name: bytes, ctx: RequestContext) -> EntryAttributes:
        return self._entry(*await self._tree.link(Ino(inode), Ino(new_parent), new_name))

    async def rename(
        self,
        parent_old: int,
        name_old: bytes,
        parent_new: int,
        name_new: bytes,
        flags: int,
        ctx: RequestContext,
    ) -> None:
        if flags & ~pyfuse3.RENAME_NOREPLACE:
            raise InvalidArgument("files here cannot be exchanged")
        set_calling_thread(ctx.pid)
        replace = not flags & pyfuse3.RENAME_NOREPLACE
        await self._tree.rename(Ino(parent_old), name_old, Ino(parent_new), name_new, replace=replace)

    async def symlink(self, parent_inode: int, name: bytes, target: bytes, ctx: RequestContext) -> EntryAttributes:
        return self._entry(*await self._tree.make_link(Ino(parent_inode), name, target))

    async def mknod(self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: RequestContext) -> EntryAttributes:
        if not stat.S_ISREG(mode):
            raise NotPermitted("only regular files can be made here")
        ino, attributes, number, _ = await self._tree.create(Ino(parent_inode), name, 0)
        await self._tree.release(number)
        return self._entry(ino, attributes)

    # --- files -----------------------------------------------------------------------------------------------

    async def create(
        self,
        parent_inode: int,
        name: bytes,
        mode: int,
        flags: int,
        ctx: RequestContext,
    ) -> tuple[FileInfo, EntryAttributes]:
        ino, attributes, number, handle = await self._tree.create(Ino(parent_inode), name, flags)
        return self._opened(number, handle, ctx), self._entry(ino, attributes)

    async def open(self, inode: int, flags: int, ctx: RequestContext) -> FileInfo:
        set_calling_thread(ctx.pid)
        return self._opened(*await self._tree.open(Ino(inode), flags), ctx)

    async def read(self, fh: int, off: int, size: int) -> bytes:
        handle = self._tree.handle(HandleId(fh))
        content = handle.read_nowait(off, size)
        if content is not None:
            # Sent to the kernel before anything else runs: the buffer may be used again after that.
            self.stats.read(handle.path, len(content))
            return cast(bytes, content)
        with self._second_asks.answered(fh, off, size):
            content = cast(bytes, await self._wait_for_read(fh, handle, off, size))
            self.stats.read(handle.path, len(content))
            return content

    async def write(self, fh: int, off: int, buf: bytes) -> int:
        handle = self._tree.handle(HandleId(fh))
        written = await handle.write(off, buf)
        self.stats.written(handle.path, written)
        return written

    async def flush(self, fh: int) -> None:
        await self._tree.handle(HandleId(fh)).flush()

    async def fsync(self, fh: int, datasync: bool) -> None:
        await self._tree.handle(HandleId(fh)).synchronize()

    async def release(self, fh: int) -> None:
        # Nobody waits for it.
        self._openers.pop(fh, None)
        await self._tree.release(HandleId(fh))

    # --- directories -----------------------------------------------------------------------------------------

    async def opendir(self, inode: int, ctx: RequestContext) -> int:
        return await self._tree.open_directory(Ino(inode))

    async def readdir(self, fh: int, start_id: int, token: ReaddirToken) -> None:
        entries = self._tree.directory(HandleId(fh)).entries
        for position in range(start_id, len(entries)):
            entry = entries[position]
            ino = self._tree.ino_of(entry)
            if not pyfuse3.readdir_reply(token, entry.name, self._entry(ino, entry.attributes), position + 1):
                self._tree.not_told(ino)
                return
            self._tree.told(ino, entry)

    async def releasedir(self, fh: int) -> None:
        self._tree.release_directory(HandleId(fh))

    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        """Changes of directories are durable when they return."""

    # --- who waits -------------------------------------------------------------------------------------------

    @partial(limited, "read")
    async def _wait_for_read(self, fh: int, handle: Handle, offset: int, length: int) -> bytes:
        return await handle.read(offset, length)

    def _opened(self, number: HandleId, handle: Handle, ctx: RequestContext) -> FileInfo:
        if handle.direct:
            self._openers[number] = ctx.pid
        return _file_info(number, handle)

    # --- conversions -----------------------------------------------------------------------------------------

    def _entry(self, ino: Ino, attributes: Attributes) -> EntryAttributes:
        entry = EntryAttributes()
        entry.st_ino = ino
        entry.entry_timeout = attributes.entry_timeout
        entry.attr_timeout = attributes.attribute_timeout
        entry.st_mode = attributes.mode
        entry.st_nlink = attributes.links
        entry.st_uid = self._uid
        entry.st_gid = self._gid
        entry.st_size = attributes.size
        entry.st_blocks = (attributes.size + 511) // 512
        entry.st_blksize = attributes.block_size
        entry.st_atime_ns = entry.st_mtime_ns = entry.st_ctime_ns = attributes.modified_at
        return entry


def _file_info(number: HandleId, handle: Handle) -> FileInfo:
    # What is not direct is immutable, so its pages are as good after the next open.
    return FileInfo(fh=number, direct_io=handle.direct, keep_cache=not handle.direct)
