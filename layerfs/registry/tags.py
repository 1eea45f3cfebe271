"""`TagService`: the names that manifests of one repository go by.

A tag is a directory with two kinds of links: `current/link` says what the tag means now, and without it there is no
tag; `index/…/link` are all the manifests that it has meant. Who moves a tag writes index before current, who untags
deletes current before index, so that whatever is interrupted leaves either the old meaning or the new one. A new tag
gets its current first: with an index alone, registries would list a tag that nobody can pull, while the index of one
that has a current is read by nobody but who asks for its past.

Tags are never cached: registries and other nodes change them at any time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from layerfs.digest import CANONICAL, Digest
from layerfs.driver.interface import FileInfo, StorageDriver
from layerfs.errors import LayerfsError, LinkInvalid, NotRegularFile, PathNotFound, TagUnknown
from layerfs.names import check_repository_name, check_tag, is_tag, new_upload_id
from layerfs.registry.links import raise_if_all_failed, read_link, read_links, write_link
from layerfs.registry.paths import RepositoryDirectory, TagCurrentLink, TagIndexLink, UploadDirectory
from layerfs.registry.revisions import UNUSABLE, Revisions, parse_digests

#: Tags that are removed together: what a crash leaves of so many has no current link any more, but its index.
_BATCH: Final = 500

#: Up to so many tags are removed one by one, which costs less than to list what all tags of a repository consist of.
_FEW: Final = 4


@dataclass(frozen=True, slots=True)
class Tag:
    """A tag and the manifest that it means now."""

    name: str
    digest: Digest


class TagService:
    """The tags of repository `name`. Exists also for a repository that has nothing in storage yet."""

    def __init__(self, name: str, driver: StorageDriver, revisions: Revisions) -> None:
        self.name = name
        self._driver = driver
        self._revisions = revisions

    async def get(self, tag: str) -> Digest:
        """What the tag means; the manifest itself may be missing. Raises `TagUnknown`, `InvalidTag`."""
        try:
            return await read_link(self._driver, TagCurrentLink(self.name, check_tag(tag)).path)
        except PathNotFound as error:
            raise TagUnknown(self.name, tag) from error
        except LinkInvalid as error:
            raise TagUnknown(self.name, tag, str(error)) from error

    async def list(self) -> Tags:
        """All tags with their digests, in order of their names. Two requests to the driver in all."""
        found = await self._read()
        raise_if_all_failed(list(found.values()))
        return [Tag(name, link) for name, link in found.items() if isinstance(link, Digest)]

    async def lookup(self, digest: Digest) -> Names:
        """The tags that mean this manifest now, every one. A link that is none is passed over.

        Raises what keeps one from being read: a manifest must not be deleted under a tag that was not seen.
        """
        return _meaning(digest, await self._read())

    async def history(self, tag: str) -> Digests:
        """All that the tag has meant, the newest last, whether those manifests are still there or not.

        Raises `TagUnknown`, `InvalidTag`.
        """
        current = await self.get(tag)
        try:
            entries = await self._driver.list(f"{self._directory(tag)}/index/{CANONICAL}")
        except (PathNotFound, NotRegularFile):
            return [current]
        digests = parse_digests(CANONICAL, [entry.name for entry in entries])
        paths = [TagIndexLink(self.name, tag, digest).path for digest in digests]
        links = await read_links(self._driver, paths)
        # A link is written again each time: its age is that of the newest time that the tag meant this.
        found = await self._driver.stat_many(paths)
        times = {
            digest: info.modified_at
            for digest, link, info in zip(digests, links, found, strict=True)
            if link == digest and isinstance(info, FileInfo)
        }
        past = [digest for digest in times if digest != current]
        return [*sorted(past, key=lambda digest: (times[digest], digest.hex)), current]

    async def tag(self, tag: str, digest: Digest) -> None:
        """Makes the tag mean a manifest of this repository, whatever it meant before. May be repeated.

        Raises `ManifestUnknownRevision` and `InvalidTag`, nothing changed.
        """
        check_repository_name(self.name)
        check_tag(tag)
        await self._revisions.stat(digest)
        index, current = TagIndexLink(self.name, tag, digest).path, TagCurrentLink(self.name, tag).path
        try:
            await self._driver.stat(current)
        except (PathNotFound, NotRegularFile):
            await self._begin(tag, digest)
            await write_link(self._driver, index, digest)
        else:
            await write_link(self._driver, index, digest)
            await write_link(self._driver, current, digest)

    async def _begin(self, tag: str, digest: Digest) -> None:
        """Makes a tag that is new appear with its meaning: registries list a directory as a tag, whatever is in it."""
        directory = self._directory(tag)
        name = TagCurrentLink(self.name, tag).path.removeprefix(f"{directory}/")
        # Among the uploads it is what registries leave of a cancelled one: nobody sees it, and it is purged.
        scratch = UploadDirectory(self.name, new_upload_id()).path
        try:
            await self._driver.put_directory(directory, name, str(digest).encode(), scratch=scratch)
        except PathNotFound as error:
            raise NotRegularFile(directory, "something else stands in its way") from error

    async def untag(self, tag: str) -> None:
        """Removes the tag with its history; the manifest stays. What a crash left of a tag is removed as well.

        Raises `TagUnknown`, `InvalidTag`.
        """
        check_tag(tag)
        if not await (self._delete_files(tag) if self._driver.capabilities.listed_files else self._delete(tag)):
            raise TagUnknown(self.name, tag)

    async def _delete(self, tag: str) -> bool:
        """Deletes what there is of a tag, its current first, and whether it had one."""
        known = True
        try:
            await self._driver.delete(TagCurrentLink(self.name, tag).path)
        except PathNotFound:
            known = False
        with contextlib.suppress(PathNotFound):
            await self._driver.delete(self._directory(tag))
        return known

    async def _delete_files(self, tag: str) -> bool:
        """`_delete` by one listing."""
        current = TagCurrentLink(self.name, tag).path
        try:
            files = [info.path for info in await self._driver.list_files(self._directory(tag))]
        except PathNotFound:
            return False
        await self._driver.delete_files([path for path in files if path == current])
        await self._driver.delete_files([path for path in files if path != current])
        return current in files

    async def untag_all(self, digest: Digest) -> Names:
        """Removes the tags that mean this manifest now, and returns them. Raises what `lookup` raises."""
        tags = await self.lookup(digest)
        # Looked at again: one may have been moved meanwhile, and then it is not ours to remove.
        if len(tags) > _FEW and self._driver.capabilities.listed_files:
            for start in range(0, len(tags), _BATCH):
                batch = tags[start : start + _BATCH]
                await self._untag_many(_meaning(digest, await self._read_current(batch)))
            return tags
        for tag in tags:
            with contextlib.suppress(TagUnknown):
                if await self.get(tag) == digest:
                    await self.untag(tag)
        return tags

    async def _untag_many(self, tags: Sequence[str]) -> None:
        """`untag` of each, with requests for all of them together; every current goes before its index."""
        await self._driver.delete_files([TagCurrentLink(self.name, tag).path for tag in tags])
        above = f"{RepositoryDirectory(self.name).manifests}/tags"
        try:
            left = [info.path for info in await self._driver.list_files(above)]
        except PathNotFound:
            return
        # What somebody has tagged again since keeps its history.
        gone = set(tags) - {path.split("/")[-3] for path in left if path.endswith("/current/link")}
        await self._driver.delete_files([path for path in left if path.removeprefix(f"{above}/").split("/")[0] in gone])

    async def _read(self) -> dict[str, Digest | LayerfsError]:
        """What is in `current/link` of every directory that can be a tag."""
        try:
            entries = await self._driver.list(f"{RepositoryDirectory(self.name).manifests}/tags")
        except (PathNotFound, NotRegularFile):
            return {}
        names = sorted(entry.name for entry in entries if entry.is_directory and is_tag(entry.name))
        return await self._read_current(names)

    async def _read_current(self, names: Sequence[str]) -> dict[str, Digest | LayerfsError]:
        links = await read_links(self._driver, [TagCurrentLink(self.name, name).path for name in names])
        return dict(zip(names, links, strict=True))

    def _directory(self, tag: str) -> str:
        return f"{RepositoryDirectory(self.name).manifests}/tags/{tag}"


# Named here because inside `TagService` the word `list` is its method.
Tags: TypeAlias = list[Tag]
Names: TypeAlias = list[str]
Digests: TypeAlias = list[Digest]


def _meaning(digest: Digest, found: Mapping[str, Digest | LayerfsError]) -> Names:
    """The tags that mean `digest`. Raises what keeps one from being read."""
    for link in found.values():
        if isinstance(link, LayerfsError) and not isinstance(link, UNUSABLE):
            raise link
    return [name for name, link in found.items() if link == digest]
