"""The directories that repository names are made of, the root included."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Final

from layerfs.errors import EntryExists, InvalidArgument, InvalidRepositoryName, RepositoryUnknown
from layerfs.names import check_repository_name, is_stored_component
from layerfs.registry.paths import LAYERS, MANIFESTS, UPLOADS
from layerfs.view.control import CONTROL, ControlDirectory
from layerfs.view.layers import LayersDirectory
from layerfs.view.manifests import ManifestsDirectory
from layerfs.view.nodes import OCI, TAGS, Attributes, Directory, DirectoryEntry, Node, directory_attributes, no_entry
from layerfs.view.oci.layout import LayoutDirectory
from layerfs.view.oci.state import Layouts
from layerfs.view.tags import TagsDirectory
from layerfs.view.uploads import UploadsDirectory

#: What every repository has in it, besides other repositories.
_OWN_DIRECTORIES: Final = (LAYERS, MANIFESTS, TAGS, UPLOADS, OCI)


class RepositoryDirectory(Directory):
    """A repository, or the beginning of repository names; "" is the root.

    The directories of a repository can be looked up in every one of them, though they are listed only in those that
    are repositories: so a name that was only a beginning can be uploaded to.
    """

    def __init__(self, layouts: Layouts, control: ControlDirectory, name: str) -> None:
        self.path = self.name = name
        self._state = layouts.state
        self._uploads = layouts.uploads
        self._layouts = layouts
        self._control = control

    @property
    def key(self) -> Hashable:
        return ("repository", self.name)

    async def attributes(self) -> Attributes:
        return self._attributes()

    async def extended_attributes(self) -> dict[str, str]:
        return {"repository": self.name} if self.name else {}

    async def lookup(self, name: str) -> Node:
        if name == CONTROL and not self.name:
            return self._control
        if name in _OWN_DIRECTORIES and self.name:
            return self._own_directory(name)
        child = self._child_name(name)
        if not is_stored_component(name) or not await self._exists(child):
            raise no_entry(self.path, name)
        return self._child(name)

    async def entries(self) -> Sequence[DirectoryEntry]:
        if not self._state.is_far:
            return await self._list()
        return await self._state.catalog_listings.get_or_list(self.name, self._list)

    async def _list(self) -> Sequence[DirectoryEntry]:
        try:
            listing = await self._state.registry.list(self.name)
            components, is_repository = set(listing.components), listing.is_repository
        except RepositoryUnknown:
            # Where there are no directories, the beginning of a remembered name is remembered with it.
            if self.name not in self._state.fresh_repositories and not self._is_remembered(self.name):
                raise
            components, is_repository = set(), False
        components.update(self._remembered_components())
        nodes: list[tuple[str, Node]] = [(name, self._child(name)) for name in sorted(components)]
        if is_repository or self.name in self._state.fresh_repositories:
            nodes += [(name, self._own_directory(name)) for name in _OWN_DIRECTORIES]
        return [DirectoryEntry(name.encode(), node, self._attributes()) for name, node in nodes]

    async def make_directory(self, name: str) -> Node:
        self._state.check_writable()
        try:
            child = check_repository_name(self._child_name(name))
        except InvalidRepositoryName as error:
            raise InvalidArgument(f"{error}; a directory here is a repository") from error
        if await self._exists(child):
            raise EntryExists(f"{child} exists")
        try:
            await self._state.registry.create_repository(child)
            self._state.fresh_repositories.add(child)
            await self._become_beginning()
        finally:
            self._state.catalog_changed()
        return self._child(name)

    async def remove_directory(self, name: str) -> None:
        self._state.check_writable()
        if not is_stored_component(name):
            await super().remove_directory(name)
        child = self._child_name(name)
        try:
            await self._state.registry.remove_repository(child)
        except RepositoryUnknown:
            if child not in self._state.fresh_repositories:
                raise
        finally:
            self._state.catalog_changed()
        self._state.fresh_repositories.discard(child)

    async def _become_beginning(self) -> None:
        """`mkdir -p a/b` is to make one repository, not two: an `a` that was just made for that is none any more."""
        if self.name in self._state.fresh_repositories:
            self._state.fresh_repositories.discard(self.name)
            await self._state.registry.demote_repository(self.name)

    async def _exists(self, name: str) -> bool:
        return self._is_remembered(name) or await self._state.registry.has_directory(name)

    def _is_remembered(self, name: str) -> bool:
        fresh = self._state.fresh_repositories
        return self._remembers_directories() and any(f"{other}/".startswith(f"{name}/") for other in fresh)

    def _remembers_directories(self) -> bool:
        """Whether empty repositories exist only because this mount remembers them."""
        return not self._state.registry.driver.capabilities.directories

    def _remembered_components(self) -> set[str]:
        if not self._remembers_directories():
            return set()
        beginning = f"{self.name}/" if self.name else ""
        return {
            fresh[len(beginning) :].partition("/")[0]
            for fresh in self._state.fresh_repositories
            if fresh.startswith(beginning) and fresh != self.name
        }

    def _child_name(self, component: str) -> str:
        return f"{self.name}/{component}" if self.name else component

    def _child(self, component: str) -> RepositoryDirectory:
        name = self._child_name(component)
        return RepositoryDirectory(self._layouts, self._control, name)

    def _own_directory(self, name: str) -> Directory:
        uploads = UploadsDirectory(self._uploads, self.name)
        if name == LAYERS:
            return LayersDirectory(self._state, self._uploads, self.name)
        if name == MANIFESTS:
            return ManifestsDirectory(self._state, uploads, self.name)
        if name == TAGS:
            return TagsDirectory(self._state, uploads, self.name)
        if name == OCI:
            return LayoutDirectory(self._layouts, self.name)
        return uploads

    def _attributes(self) -> Attributes:
        return directory_attributes(
            permissions=self._state.permissions(0o755),
            modified_at=self._state.mounted_at,
            timeout=self._state.options.metadata_ttl,
        )
