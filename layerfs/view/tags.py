"""`_tags`: the tags of a repository, as symbolic links to its manifests."""

from __future__ import annotations

import stat
import time
from collections.abc import Hashable, Sequence

from layerfs.digest import Digest
from layerfs.errors import EntryExists, InvalidArgument, NotPermitted, TagUnknown
from layerfs.manifest import MANIFEST_LIMIT
from layerfs.names import check_name_among_tags, check_tag, is_tag
from layerfs.registry.paths import MANIFESTS
from layerfs.view.buffered import BufferedFile, BufferedHandle
from layerfs.view.nodes import TAGS, Attributes, Directory, DirectoryEntry, Handle, ListedNode, Node
from layerfs.view.own_directory import OwnDirectory
from layerfs.view.state import MountState
from layerfs.view.uploads import UploadsDirectory


class TagLink(ListedNode):
    """A tag. Where it leads need not exist: registries can leave tags of manifests that are gone."""

    def __init__(self, state: MountState, repository: str, tag: str, digest: Digest) -> None:
        self.path = f"{repository}/{TAGS}/{tag}"
        self._state = state
        self._repository = repository
        self.name = tag
        self._digest = digest

    @property
    def key(self) -> Hashable:
        return (TAGS, self._repository, self.name)

    def attributes_now(self) -> Attributes:
        """As they were when the tag was read. No time-outs: a tag means something else at any moment."""
        return Attributes(stat.S_IFLNK | 0o777, len(self._target(self._digest)), self._state.mounted_at, 1, 0.0, 0.0)

    async def read_link(self) -> str:
        found = self._state.tag_listings.find(self._repository, self.name)
        if isinstance(found, TagLink):
            return self._target(found._digest)
        return self._target(await self._state.tags(self._repository).get(self.name))

    def check_ownership_change(self) -> None:
        """Taken and ignored: `cp -a` of a tag insists on the owner of the link that it has made."""
        self._state.check_writable()

    def _target(self, digest: Digest) -> str:
        return f"../{MANIFESTS}/{digest}"


class TagsDirectory(OwnDirectory):
    """A repository's `_tags`."""

    PLACE = TAGS

    def __init__(self, state: MountState, uploads: UploadsDirectory, repository: str) -> None:
        super().__init__(state, repository)
        self._uploads = uploads

    async def lookup(self, name: str) -> Node:
        if not is_tag(name):
            return await self._uploads.lookup(name)
        found = self._state.tag_listings.find(self.repository, name)
        if found is None:
            asked_at = time.monotonic()
            found = self._link(name, await self._state.tags(self.repository).get(name))
            self._state.tag_listings.remember(self.repository, name, asked_at, found)
        return found

    async def entries(self) -> Sequence[DirectoryEntry]:
        return await self._remembered(self._state.tag_listings, self._links)

    async def _links(self) -> list[TagLink]:
        return [self._link(tag.name, tag.digest) for tag in await self._state.tags(self.repository).list()]

    async def create(self, name: str, flags: int) -> tuple[Node, Handle]:
        """Puts a manifest by tag, when it is closed. Under a hidden name: an upload, to be renamed to a tag."""
        self._state.check_writable()
        check_name_among_tags(name)
        if not is_tag(name):
            return await self._uploads.create(name, flags)

        async def put(content: bytes) -> None:
            await self._state.put_manifest(self.repository, content, tag=name)

        handle = BufferedHandle(f"{self.path}/{name}", put, limit=MANIFEST_LIMIT)
        return BufferedFile(self._state, handle), handle

    async def make_link(self, name: str, target: str) -> Node:
        """`ln -s`: to a digest, to a manifest of this repository, or to what another tag means now."""
        self._state.check_writable()
        check_tag(name)
        if await self._has(name):
            raise EntryExists(f"{self.path}/{name} exists")
        digest = await self._meant_by(target)
        await self._tag(name, digest)
        return self._link(name, digest)

    async def remove(self, name: str) -> None:
        """The tag; the manifest and what else means it stay."""
        self._state.check_writable()
        if not is_tag(name):
            await self._uploads.remove(name)
            return
        if not self._state.options.allow_delete:
            raise NotPermitted(f"{name!r} in {self.path} can be removed only on a mount made with --allow-delete")
        try:
            await self._state.tags(self.repository).untag(name)
        finally:
            self._state.manifests_changed(self.repository)

    async def rename(self, name: str, target: Directory, new_name: str, *, replace: bool) -> None:
        """Of a tag: the new one means what the old one meant. (`ln -sf` makes a link, and renames it over the old.)"""
        self._state.check_writable()
        if not is_tag(name):
            await self._uploads.rename(name, target, new_name, replace=replace)
            return
        if target.key != self.key:
            # Not EXDEV: `mv` would remove the tag that is there before it finds out that the manifest is not.
            raise NotPermitted(f"a tag stays in its repository: make one in {target.path} with 'cp -d' or 'ln -s'")
        check_tag(new_name)
        if not replace and await self._has(new_name):
            raise EntryExists(f"{self.path}/{new_name} exists")
        tags = self._state.tags(self.repository)
        digest = await tags.get(name)
        if name == new_name:
            return
        await self._tag(new_name, digest)
        await tags.untag(name)
        self._state.manifests_changed(self.repository)

    async def _tag(self, name: str, digest: Digest) -> None:
        try:
            await self._state.tags(self.repository).tag(name, digest)
        finally:
            self._state.manifests_changed(self.repository)

    async def _has(self, tag: str) -> bool:
        try:
            await self._state.tags(self.repository).get(tag)
        except TagUnknown:
            return False
        return True

    async def _meant_by(self, target: str) -> Digest:
        name = target.removeprefix(f"../{MANIFESTS}/")
        digest = Digest.parse_or_none(name)
        if digest is not None:
            return digest
        if is_tag(target):
            return await self._state.tags(self.repository).get(target)
        raise InvalidArgument(
            f"a tag is a link to ../{MANIFESTS}/<digest>, to a digest, or to another tag, not to {target!r}"
        )

    def _link(self, tag: str, digest: Digest) -> TagLink:
        return TagLink(self._state, self.repository, tag, digest)
