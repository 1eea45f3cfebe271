"""Temporary files of clients: uploads, under whatever name a client gives them until it renames them to their place.

They are there for whoever knows their names, and not listed beside what the layout is made of: readers would take them
for content, and clients that collect garbage for garbage. A directory that a client has made lists what is in it,
because clients empty such directories before they remove them. The names are this mount's alone; the bytes are uploads
of the repository, which a registry sees as such and `purge-uploads` removes if their client was killed.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Hashable, Sequence
from typing import Final

from layerfs.errors import EntryExists, InvalidArgument, IsDirectory, LayerUploadUnknown, PathNotEmpty
from layerfs.names import check_upload_name
from layerfs.view.nodes import Attributes, Directory, DirectoryEntry, Handle, Node, directory_attributes, no_entry
from layerfs.view.oci.state import Layouts, ScratchFile, ScratchNames
from layerfs.view.read_only import ReadOnlyDirectory
from layerfs.view.upload_file import UploadFile, create_scratch

#: Where the temporary directories of clients may nest to; the deepest known client needs two.
_DEPTH_LIMIT: Final = 8


class ScratchHolder(Directory):
    """A directory of a layout in which clients make temporary files and directories."""

    def __init__(self, layouts: Layouts, repository: str, path: str) -> None:
        self.path = path
        self.repository = repository
        self._layouts = layouts
        self._state = layouts.state
        self._uploads = layouts.uploads

    @property
    @abstractmethod
    def _names(self) -> ScratchNames:
        """The temporary names here; not to be kept over an await."""

    @property
    def _depth(self) -> int:
        return 0

    async def attributes(self) -> Attributes:
        return self._attributes()

    async def extended_attributes(self) -> dict[str, str]:
        return {"repository": self.repository}

    def check_ownership_change(self) -> None:
        """Taken and ignored: clients set the modes of the directories that they have made, or think they have."""
        self._state.check_writable()

    async def create(self, name: str, flags: int) -> tuple[Node, Handle]:
        self._state.check_writable()
        check_upload_name(name)
        self._layouts.check_room()
        if name in self._names:
            raise EntryExists(f"{self.path}/{name} exists")
        node, handle = await create_scratch(self._uploads, self.repository, f"{self.path}/{name}", flags)
        self._names.files[name] = ScratchFile(node.uuid, time.monotonic())
        return node, handle

    async def make_directory(self, name: str) -> Node:
        self._state.check_writable()
        check_upload_name(name)
        self._layouts.check_room()
        if name in self._names:
            raise EntryExists(f"{self.path}/{name} exists")
        if self._depth >= _DEPTH_LIMIT:
            raise InvalidArgument(f"{self.path}: temporary directories nest no deeper than {_DEPTH_LIMIT}")
        self._names.directories[name] = ScratchNames()
        return self._scratch_directory(name)

    async def remove(self, name: str) -> None:
        self._state.check_writable()
        upload = await self._scratch_file(name)
        await self._uploads.cancel(self.repository, upload.uuid)
        self._names.files.pop(name, None)

    async def remove_directory(self, name: str) -> None:
        self._state.check_writable()
        directory = self._names.directories.get(name)
        if directory is None:
            raise no_entry(self.path, name)
        if directory:
            raise PathNotEmpty(f"{self.path}/{name}")
        del self._names.directories[name]

    async def rename(self, name: str, target: Directory, new_name: str, *, replace: bool) -> None:
        self._state.check_writable()
        if isinstance(target, ReadOnlyDirectory):
            target.refuse(new_name)
        if not isinstance(target, ScratchHolder) or target.repository != self.repository:
            raise InvalidArgument(
                f"{name!r} in {self.path} can be renamed within the image layout of {self.repository} only, "
                f"not into {target.path or '/'}"
            )
        if target.key == self.key and new_name == name:
            return
        if name in self._names.directories:
            self._move_directory(name, target, new_name)
            return
        file = self._names.files.get(name)
        if file is None:
            raise no_entry(self.path, name)
        upload = await self._scratch_file(name)
        await target.receive(upload, file, new_name, replace=replace)
        if self._names.files.get(name) is file:
            del self._names.files[name]

    async def receive(
        self,
        upload: UploadFile,  # noqa: ARG002
        file: ScratchFile,
        name: str,
        *,
        replace: bool,
    ) -> None:
        """Takes a temporary file that is renamed to `name` here: under that name, it is a temporary file still."""
        check_upload_name(name)
        if name in self._names.directories:
            raise IsDirectory(f"{self.path}/{name} is a directory")
        old = self._names.files.get(name)
        if old is not None and not replace:
            raise EntryExists(f"{self.path}/{name} exists")
        self._names.files[name] = file
        if old is not None:
            await self._uploads.cancel(self.repository, old.uuid)

    async def _scratch(self, name: str) -> Node:
        """The temporary file or directory `name`. Raises `NoSuchEntry`."""
        if name in self._names.directories:
            return self._scratch_directory(name)
        return await self._scratch_file(name)

    async def _scratch_file(self, name: str) -> UploadFile:
        file = self._names.files.get(name)
        if file is None:
            if name in self._names.directories:
                raise IsDirectory(f"{self.path}/{name} is a directory")
            raise no_entry(self.path, name)
        try:
            info = await self._uploads.look(self.repository, file.uuid)
        except LayerUploadUnknown:
            # Somebody has removed the upload, here under its UUID or in storage.
            if self._names.files.get(name) is file:
                del self._names.files[name]
            raise
        return UploadFile(self._uploads, self.repository, file.uuid, file.uuid, info.started_at, f"{self.path}/{name}")

    def _move_directory(self, name: str, target: ScratchHolder, new_name: str) -> None:
        check_upload_name(new_name)
        # Taken names are an error whatever `replace` says: no client moves one directory over another.
        if new_name in target._names:
            raise EntryExists(f"{target.path}/{new_name} exists")
        if target._depth >= _DEPTH_LIMIT:
            raise InvalidArgument(f"{target.path}: temporary directories nest no deeper than {_DEPTH_LIMIT}")
        target._names.directories[new_name] = self._names.directories.pop(name)

    def _scratch_directory(self, name: str) -> ScratchDirectory:
        names = self._names.directories[name]
        return ScratchDirectory(self._layouts, self.repository, f"{self.path}/{name}", names, self._depth + 1)

    def _attributes(self) -> Attributes:
        state = self._state
        return directory_attributes(
            permissions=state.permissions(0o755), modified_at=state.mounted_at, timeout=state.options.metadata_ttl
        )


class ScratchDirectory(ScratchHolder):
    """A directory that a client has made. It exists in this mount's memory only."""

    def __init__(self, layouts: Layouts, repository: str, path: str, names: ScratchNames, depth: int) -> None:
        super().__init__(layouts, repository, path)
        self._own_names = names
        self._own_depth = depth

    @property
    def key(self) -> Hashable:
        return ("scratch", self._own_names)

    @property
    def _names(self) -> ScratchNames:
        return self._own_names

    @property
    def _depth(self) -> int:
        return self._own_depth

    async def lookup(self, name: str) -> Node:
        return await self._scratch(name)

    async def entries(self) -> Sequence[DirectoryEntry]:
        entries = [
            DirectoryEntry(name.encode(), self._scratch_directory(name), self._attributes())
            for name in sorted(self._names.directories)
        ]
        for name in sorted(self._names.files):
            try:
                upload = await self._scratch_file(name)
            except LayerUploadUnknown:
                continue
            entries.append(DirectoryEntry(name.encode(), upload, await upload.attributes()))
        return entries
