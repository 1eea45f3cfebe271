"""`LayerService`: the blobs that are linked into one repository, and the uploads that will be."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import Final, Self, TypeAlias

from layerfs.digest import CANONICAL, Digest
from layerfs.driver.interface import FileReader, StorageDriver
from layerfs.errors import (
    BlobUnknown,
    InvalidOffset,
    LayerClosed,
    LayerExists,
    LayerUnknown,
    LinkInvalid,
    LinkMismatch,
    NotRegularFile,
    PathNotFound,
)
from layerfs.layername import LINK_DIRECTORIES, LayerName, layer_name_at
from layerfs.names import check_repository_name
from layerfs.registry.blobs import BlobInfo, BlobStore
from layerfs.registry.layer_upload import LayerUpload
from layerfs.registry.links import link_fits, raise_if_all_failed, read_link, read_links
from layerfs.registry.paths import LayerLink, RepositoryDirectory
from layerfs.registry.repositories import link_layer, make_repository
from layerfs.registry.upload_info import FoundUploads, ListedUpload, ListedUploads, UploadInfo, Uploads
from layerfs.registry.uploads import UploadStore

#: Where links by other names than the canonical one are.
_ALIAS_DIRECTORIES: Final = tuple(parent for parent in LINK_DIRECTORIES if parent != CANONICAL)


@dataclass(frozen=True, slots=True)
class LayerInfo:
    """A layer of a repository: the name it is linked under, and the blob that it leads to."""

    digest: LayerName
    blob: BlobInfo


class Layer:
    """A layer open for reading, after distribution's: a reader that seeks. Close it, or use it as a context manager."""

    def __init__(self, name: str, info: LayerInfo, reader: FileReader) -> None:
        #: The repository.
        self.name = name
        #: Canonical, whatever the layer was fetched by.
        self.digest = info.blob.digest
        #: Bytes.
        self.size = reader.size
        self.created_at = _time(info.blob.stored_at)
        self.reader = reader
        self._offset = 0
        self._closed = False

    async def read(self, length: int = -1) -> bytes:
        """The next `length` bytes, all that are left if negative; fewer, or none, only at the end."""
        self._check_open()
        left = max(0, self.size - self._offset)
        content = await self.reader.read(self._offset, left if length < 0 else min(length, left))
        self._offset += len(content)
        return content

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Moves to `offset` from the start, here or the end, and returns the place. Beyond the end is allowed."""
        self._check_open()
        place = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._offset, os.SEEK_END: self.size}[whence]
        if place < 0:
            raise InvalidOffset(str(self.digest), f"cannot seek to {place}")
        self._offset = place
        return place

    async def close(self) -> None:
        """May be called again."""
        self._closed = True
        self.reader.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def _check_open(self) -> None:
        if self._closed:
            raise LayerClosed(f"layer {self.digest}")


def _time(nanoseconds: int) -> datetime:
    """The time, in UTC. Files can have times that `datetime` cannot hold; then it is the nearest that it can."""
    try:
        return datetime.fromtimestamp(nanoseconds / 1e9, UTC)
    except (ValueError, OverflowError, OSError):
        return datetime.max.replace(tzinfo=UTC) if nanoseconds > 0 else datetime.min.replace(tzinfo=UTC)


class LayerService:
    """The layers of repository `name`. Exists also for a repository that has nothing in storage yet."""

    def __init__(self, name: str, driver: StorageDriver, blobs: BlobStore, uploads: UploadStore) -> None:
        self.name = name
        self._driver = driver
        self._blobs = blobs
        self._uploads = uploads

    async def exists(self, digest: LayerName) -> bool:
        """Whether `fetch` would find it."""
        try:
            await self._stat(digest, recall=False)
        except LayerUnknown:
            return False
        return True

    async def stat(self, digest: LayerName) -> LayerInfo:
        """Raises `LayerUnknown` if there is no link or it leads nowhere, `LinkMismatch` if it leads elsewhere."""
        return await self._stat(digest, recall=True)

    async def _stat(self, digest: LayerName, *, recall: bool) -> LayerInfo:
        path = LayerLink(self.name, digest).path
        try:
            canonical = _check_link(path, digest, await read_link(self._driver, path))
            return LayerInfo(digest, await self._blobs.stat(canonical, recall=recall))
        except LinkMismatch:
            raise
        except PathNotFound as error:
            raise LayerUnknown(self.name, digest) from error
        except (LinkInvalid, BlobUnknown) as error:
            raise LayerUnknown(self.name, digest, str(error)) from error

    async def list(self) -> Layers:
        """All layers whose link leads to a blob, TarSums last. Costs two batches of requests, not two for each.

        Where a listing tells of files what they are (`Capabilities.listed_files`), canonical links are not read, and
        sizes that are remembered are not asked for: a link to something else, and a blob that is gone, may be listed.
        """
        if self._driver.capabilities.listed_files:
            return await self._list_by_name()
        digests = await self._linked()
        links = await read_links(self._driver, [LayerLink(self.name, digest).path for digest in digests])
        good = [
            (digest, link)
            for digest, link in zip(digests, links, strict=True)
            if isinstance(link, Digest) and link_fits(digest, link)
        ]
        raise_if_all_failed(links)
        blobs = await self._blobs.stat_many([link for _, link in good])
        raise_if_all_failed(blobs)
        return [
            LayerInfo(digest, blob) for (digest, _), blob in zip(good, blobs, strict=True) if isinstance(blob, BlobInfo)
        ]

    async def _list_by_name(self) -> Layers:
        linked = dict(await self._links())
        plain = {digest for digest, size in linked.items() if isinstance(digest, Digest) and _is_plain(digest, size)}
        # A link that cannot hold its own digest, an alias or a damaged one, has to be read to know where it leads.
        others = [digest for digest in linked if digest not in plain]
        links = await read_links(self._driver, [LayerLink(self.name, digest).path for digest in others])
        raise_if_all_failed(links)
        leads_to = {digest: digest for digest in plain if isinstance(digest, Digest)} | {
            digest: link
            for digest, link in zip(others, links, strict=True)
            if isinstance(link, Digest) and link_fits(digest, link)
        }
        good = [(digest, leads_to[digest]) for digest in linked if digest in leads_to]
        blobs = await self._blobs.recall_many([link for _, link in good])
        raise_if_all_failed(blobs)
        return [
            LayerInfo(digest, blob) for (digest, _), blob in zip(good, blobs, strict=True) if isinstance(blob, BlobInfo)
        ]

    async def _links(self) -> Links:
        """The names that have a link under `_layers`, in the order of `_linked`, and how many bytes each link has."""
        directory = RepositoryDirectory(self.name).layers
        try:
            files = await self._driver.list_files(directory)
        except (PathNotFound, NotRegularFile):
            return []
        found: dict[str, Links] = {parent: [] for parent in LINK_DIRECTORIES}
        for info in sorted(files, key=lambda info: info.path):
            place = info.path.removeprefix(f"{directory}/").rpartition("/")[0]
            name = layer_name_at(place)
            # What else is in the directory of a link is none.
            if name is not None and info.path == LayerLink(self.name, name).path:
                found[place.rpartition("/")[0]].append((name, info.size))
        return [each for parent in LINK_DIRECTORIES for each in found[parent]]

    async def fetch(self, digest: LayerName) -> Layer:
        """Opens a layer. Raises `LayerUnknown`, `LinkMismatch`."""
        info = await self.stat(digest)
        try:
            return Layer(self.name, info, await self._blobs.open(info.blob.digest))
        except BlobUnknown as error:
            raise LayerUnknown(self.name, digest, str(error)) from error

    async def mount(self, source: str, digest: LayerName) -> LayerInfo:
        """Links a layer of repository `source` into this one; no bytes move. Raises `LayerExists`, `LayerUnknown`."""
        check_repository_name(self.name)
        # Not from memory: no link may be made to what is gone.
        info = await LayerService(source, self._driver, self._blobs, self._uploads)._stat(digest, recall=False)
        if await self.exists(digest):
            raise LayerExists(self.name, digest)
        await make_repository(self._driver, self.name)
        await link_layer(self._driver, self.name, info.blob.digest, digest)
        return info

    async def delete(self, digest: LayerName) -> None:
        """Removes the link, and with a canonical one its aliases; the blob stays for garbage collection.

        Raises `LayerUnknown` if there is no link. One that leads nowhere can be removed too.
        """
        for alias in await self._aliases_of(digest):
            await self._delete_link(alias)
        try:
            await self._delete_link(digest)
        except PathNotFound as error:
            raise LayerUnknown(self.name, digest) from error

    async def upload(self, *, file_name: str | None = None, uuid: str | None = None) -> LayerUpload:
        """Begins an upload. `file_name` is what a mounted tree will call it; without one it is called by its UUID.

        `uuid` is a new one for whoever has to know it before the upload is there; a `file_name` that is a UUID wins.
        """
        check_repository_name(self.name)
        return await self._uploads.create(self.name, file_name=file_name, uuid=uuid)

    async def resume(self, uuid: str) -> LayerUpload:
        """The unfinished upload, at the offset where it stands. Raises `LayerUploadUnknown`."""
        return await self._uploads.resume(self.name, uuid)

    async def uploads(self) -> Uploads:
        """The unfinished uploads, the oldest first."""
        return await self._uploads.list(self.name)

    async def upload_names(self) -> ListedUploads:
        """As `uploads`, but where each would have to be asked for how long it is, it is not asked."""
        return await self._uploads.list_names(self.name)

    async def stat_listed(self, listed: Sequence[ListedUpload]) -> FoundUploads:
        """Unfinished uploads that were listed a moment ago, as they are now, in order.

        None stands for those that are gone, an error for those of which it cannot be known.
        """
        return await self._uploads.stat_listed(self.name, listed)

    async def stat_upload(self, uuid: str) -> UploadInfo:
        """An unfinished upload as storage has it. Raises `LayerUploadUnknown`."""
        return await self._uploads.stat(self.name, uuid)

    async def rename_upload(self, uuid: str, file_name: str) -> None:
        """Gives an upload another file name. Raises `LayerUploadUnknown`, `InvalidUploadName`."""
        await self._uploads.rename(self.name, uuid, file_name)

    async def _delete_link(self, digest: LayerName) -> None:
        try:
            await self._driver.delete(LayerLink(self.name, digest).path)
        finally:
            # Also if the link was gone already, and if nobody knows whether it is. No cache knows a TarSum.
            if isinstance(digest, Digest):
                await self._blobs.forget(digest, repository=self.name)

    async def _linked(self, parents: Sequence[str] = LINK_DIRECTORIES) -> LayerNames:
        """The names that have a directory under `_layers`, whatever is in it; only those in some directories there."""
        directory = RepositoryDirectory(self.name).layers
        there = await self._names_in(directory)
        linked: LayerNames = []
        for parent in parents:
            # Few repositories have any but the first: asking for each would cost more than to look.
            if parent.partition("/")[0] in there:
                names = [layer_name_at(f"{parent}/{name}") for name in await self._names_in(f"{directory}/{parent}")]
                linked += [name for name in names if name is not None]
        return linked

    async def _names_in(self, directory: str) -> Names:
        try:
            return sorted(entry.name for entry in await self._driver.list(directory))
        except (PathNotFound, NotRegularFile):
            return []

    async def _aliases_of(self, digest: LayerName) -> LayerNames:
        if not digest.is_canonical:
            return []
        # Not those in the directory of canonical links, of which there may be thousands, for each that is deleted.
        aliases = [linked for linked in await self._linked(_ALIAS_DIRECTORIES) if not linked.is_canonical]
        links = await read_links(self._driver, [LayerLink(self.name, alias).path for alias in aliases])
        return [alias for alias, link in zip(aliases, links, strict=True) if link == digest]


# Named here because inside `LayerService` the word `list` is its method.
Layers: TypeAlias = list[LayerInfo]
LayerNames: TypeAlias = list[LayerName]
Links: TypeAlias = list[tuple[LayerName, int]]
Names: TypeAlias = list[str]


def _is_plain(digest: Digest, size: int) -> bool:
    """Whether a link of `size` bytes that is called so can hold nothing else, if it is a link at all."""
    return digest.is_canonical and size == len(str(digest))


def _check_link(path: str, digest: LayerName, link: Digest) -> Digest:
    if not link_fits(digest, link):
        if not digest.is_canonical:
            raise LinkInvalid(path, f"{link} is not the canonical digest of anything")
        raise LinkMismatch(path, f"it leads to {link}")
    return link
