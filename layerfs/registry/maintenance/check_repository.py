"""What can be wrong in one repository: its layer links, manifests and tags. Uploads are in `check_uploads`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Final

from layerfs.digest import Digest
from layerfs.driver.interface import StorageDriver
from layerfs.errors import BlobUnknown, ContentTooLarge, InvalidManifest, LayerfsError, NotRegularFile, PathNotFound
from layerfs.layername import LayerName
from layerfs.manifest import DOCKER_SCHEMA1, DOCKER_SCHEMA1_SIGNED, MANIFEST_LIMIT, ParsedManifest, UrlRules, tarsum_in
from layerfs.manifest import parse_manifest as parse
from layerfs.names import is_tag
from layerfs.registry.blobs import BlobInfo, BlobStore
from layerfs.registry.links import link_fits
from layerfs.registry.maintenance.check_uploads import check_uploads
from layerfs.registry.maintenance.faults import Fault, FaultKind
from layerfs.registry.maintenance.knowledge import ImagesWithoutManifest, Meant
from layerfs.registry.maintenance.look import BATCH, Look
from layerfs.registry.manifest_parsing import parse_in_turn
from layerfs.registry.paths import (
    LAYERS,
    BlobData,
    LayerLink,
    ManifestRevisionLink,
    RepositoryDirectory,
    TagCurrentLink,
    TagIndexLink,
)
from layerfs.registry.side_by_side import at_once_on
from layerfs.strictjson import parse_json

#: Bytes of manifests that are in memory at a time.
_BATCH_SIZE: Final = 16 << 20

#: What urls layers may have was somebody's decision when the manifest was put; here only that they have some counts.
_ANY_URLS: Final = UrlRules()


async def parse_manifest(content: bytes) -> ParsedManifest:
    """As `layerfs.manifest.parse_manifest`, large ones in a thread. Raises `InvalidManifest`, `ManifestTooLarge`."""
    return await parse_in_turn(content, parse)


def blobs_of(manifest: ParsedManifest) -> tuple[Digest, ...]:
    """The blobs that a registry wants to have for this manifest."""
    return manifest.references(_ANY_URLS).blobs


class RepositoryCheck:
    """One look at the repository `name`; what it means is told to `meant` and `images`."""

    def __init__(self, look: Look, blobs: BlobStore, name: str, meant: Meant, images: ImagesWithoutManifest) -> None:
        self._look = look
        self._blobs = blobs
        self._name = name
        self._directory = RepositoryDirectory(name)
        self._meant = meant
        self._images = images
        self._has_layers = False
        # False where the links could not be looked at: then nothing is said to be missing.
        self._knows_layers = True
        self._knows_revisions = True
        # What has a link, a good one or a bad one.
        self._layers: set[LayerName] = set()
        self._revisions: set[LayerName] = set()
        self._lacks_blobs = False

    async def run(self, *, before: datetime, deep: bool) -> None:
        """Looks at everything; uploads that began `before` are faults. `deep` is about the hash states of uploads."""
        below = {entry.name for entry in await self._look.list(self._directory.path) if entry.is_directory}
        self._has_layers = LAYERS in below
        await self._look.list_whole(self._directory.layers)
        await self._look.list_whole(self._directory.manifests)
        await self._check_layers()
        await self._check_revisions()
        await self._check_tags()
        await self._look.check_strays()
        await check_uploads(self._look, self._name, before=before, deep=deep)
        if self._lacks_blobs:
            self._found(Fault(FaultKind.REPO_WITHOUT_LAYERS, self._directory.path, self._name))

    def _found(self, fault: Fault) -> None:
        self._look.faults.append(fault)

    # --- layers ----------------------------------------------------------------------------------------------

    async def _check_layers(self) -> None:
        before = self._look.unreadables
        names = await self._look.layer_names_in(self._directory.layers)
        self._knows_layers = self._look.unreadables == before
        places = [
            Fault(FaultKind.DANGLING_LAYER_LINK, LayerLink(self._name, name).path, self._name, digest=name)
            for name in names
        ]
        await self._look.find_temporary(places)
        known = len(self._look.faults)
        links = await self._look.read_links(places)
        # A bad link is no missing one: it has its own fault.
        self._layers = {fault.digest for fault in self._look.faults[known:] if fault.digest is not None}
        good = [(place, link) for place, link in zip(places, links, strict=True) if link and self._fits(place, link)]
        for start in range(0, len(good), BATCH):
            await self._check_targets(good[start : start + BATCH])

    def _fits(self, place: Fault, link: Digest) -> bool:
        if place.digest is None:
            return False
        self._layers.add(place.digest)
        # What an alias leads to is a layer of the repository, too.
        self._meant.add(link)
        if link_fits(place.digest, link):
            return True
        self._found(replace(place, kind=FaultKind.BAD_LINK, detail=f"it leads to {link}"))
        return False

    async def _check_targets(self, good: Sequence[tuple[Fault, Digest]]) -> None:
        found = await self._blobs.stat_many([link for _, link in good])
        for (place, link), blob in zip(good, found, strict=True):
            if isinstance(blob, BlobUnknown):
                self._found(place)
            elif not isinstance(blob, BlobInfo):
                self._look.unreadable(place, blob)
            elif link not in self._layers and self._knows_layers:
                # Registries answer 500 to an alias whose canonical link was deleted.
                self._found(replace(place, detail=f"an alias of {link}, which has no link of its own"))

    # --- manifests -------------------------------------------------------------------------------------------

    async def _check_revisions(self) -> None:
        before = self._look.unreadables
        digests = await self._look.digests_in(f"{self._directory.manifests}/revisions")
        self._knows_revisions = self._look.unreadables == before
        places = [
            Fault(FaultKind.DANGLING_REVISION, ManifestRevisionLink(self._name, digest).path, self._name, digest=digest)
            for digest in digests
        ]
        await self._look.find_temporary(places)
        await self._check_signatures(places)
        known = len(self._look.faults)
        links = await self._look.read_links(places)
        self._revisions = {fault.digest for fault in self._look.faults[known:] if fault.digest is not None}
        good = []
        for place, digest, link in zip(places, digests, links, strict=True):
            if link is None:
                continue
            self._revisions.add(digest)
            self._meant.add(link)
            if link == digest:
                good.append((place, digest))
            else:
                self._found(replace(place, kind=FaultKind.BAD_LINK, detail=f"it leads to {link}"))
        async for place, content in self._read_manifests(good):
            await self._check_manifest(place, content)

    async def _check_signatures(self, revisions: Sequence[Fault]) -> None:
        """Registries before 2.5 kept each signature of a manifest in a blob, linked from the revision."""
        directories = [f"{place.path.rpartition('/')[0]}/signatures/sha256" for place in revisions]
        places: list[Fault] = []
        for directory, entries in zip(directories, await self._look.list_many(directories), strict=True):
            for entry in entries:
                if (digest := Digest.parse_or_none(f"sha256:{entry.name}")) is not None:
                    self._meant.add(digest)
                    path = f"{directory}/{entry.name}/link"
                    places.append(Fault(FaultKind.BAD_LINK, path, self._name, digest=digest))
        for place, link in zip(places, await self._look.read_links(places), strict=True):
            if link is not None and link != place.digest:
                self._found(replace(place, detail=f"it leads to {link}"))

    async def _read_manifests(
        self, places: Sequence[tuple[Fault, Digest]]
    ) -> AsyncIterator[tuple[Fault, bytes | LayerfsError]]:
        """The bytes of each, or the error in their place, few of them in memory at a time."""
        for start in range(0, len(places), BATCH):
            batch = places[start : start + BATCH]
            found = await self._blobs.stat_many([digest for _, digest in batch])
            sizes = [blob.size if isinstance(blob, BlobInfo) else 0 for blob in found]
            # Other repositories are looked at meanwhile.
            for part in parts_of(sizes, _BATCH_SIZE // at_once_on(self._look.driver)):
                contents = await read_blobs(self._look.driver, [batch[index][1] for index in part])
                for index, content in zip(part, contents, strict=True):
                    yield batch[index][0], content

    async def _check_manifest(self, place: Fault, content: bytes | LayerfsError) -> None:
        if isinstance(content, PathNotFound | NotRegularFile):
            self._found(place)
        elif isinstance(content, ContentTooLarge):
            self._found(replace(place, kind=FaultKind.MANIFEST_NOT_JSON, detail=content.what))
        elif isinstance(content, LayerfsError):
            self._look.unreadable(place, content)
        elif content:
            # One that is empty is a blob of no length, and found there.
            await self._check_content(place, content)

    async def _check_content(self, place: Fault, content: bytes) -> None:
        try:
            manifest = await parse_manifest(content)
        except InvalidManifest as error:
            kind = FaultKind.INVALID_MANIFEST if _is_json(content) else FaultKind.MANIFEST_NOT_JSON
            self._found(replace(place, kind=kind, detail=str(error)))
            return
        # Schema 1 says no sizes.
        has_sizes = manifest.manifest.media_type not in (DOCKER_SCHEMA1, DOCKER_SCHEMA1_SIGNED)
        for descriptor in manifest.descriptors:
            self._meant.add(descriptor.digest, descriptor.size if has_sizes else -1)
        blobs = blobs_of(manifest)
        self._images.see_image(blobs)
        # What has urls need not be here: 2.8 lets any layer with urls go without a blob.
        elsewhere = {descriptor.digest for descriptor in manifest.descriptors if descriptor.urls}
        here: list[LayerName] = [blob for blob in blobs if blob not in elsewhere]
        here += [tarsum for tarsum in map(tarsum_in, manifest.entries) if tarsum is not None]
        missing = [blob for blob in here if blob not in self._layers and self._knows_layers]
        if missing and not self._has_layers:
            self._lacks_blobs = True
        elif missing:
            detail = ", ".join(map(str, missing[:3])) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
            self._found(replace(place, kind=FaultKind.MISSING_REFERENCE, detail=detail))

    # --- tags ------------------------------------------------------------------------------------------------

    async def _check_tags(self) -> None:
        entries = await self._look.list(f"{self._directory.manifests}/tags")
        tags = [entry.name for entry in entries if entry.is_directory and is_tag(entry.name)]
        places = [
            Fault(FaultKind.TAG_TO_MISSING_MANIFEST, TagCurrentLink(self._name, tag).path, self._name, tag=tag)
            for tag in tags
        ]
        await self._look.find_temporary(places)
        known = len(self._look.faults)
        links = await self._look.read_links(places)
        bad = {fault.tag for fault in self._look.faults[known:]}
        for place, link in zip(places, links, strict=True):
            if link is None and place.tag not in bad:
                path = place.path.removesuffix("/current/link")
                self._found(replace(place, kind=FaultKind.TAG_WITHOUT_CURRENT, path=path))
            elif link is not None and link not in self._revisions and self._knows_revisions:
                self._found(replace(place, digest=link))
        await self._check_history(tags)

    async def _check_history(self, tags: Sequence[str]) -> None:
        """What tags have meant: only that the links are some, because what they lead to may have been deleted."""
        places = [
            Fault(FaultKind.BAD_LINK, TagIndexLink(self._name, tag, digest).path, self._name, tag=tag, digest=digest)
            for tag in tags
            for digest in await self._look.digests_in(f"{self._directory.manifests}/tags/{tag}/index")
        ]
        await self._look.find_temporary(places)
        await self._look.read_links(places)


async def read_blobs(driver: StorageDriver, digests: Sequence[Digest]) -> Sequence[bytes | LayerfsError]:
    """The content of each blob that can be a manifest; an error stands in the place of one that cannot be had."""
    return await driver.get_contents([BlobData(digest).path for digest in digests], limit=MANIFEST_LIMIT)


def parts_of(sizes: Sequence[int], limit: int = _BATCH_SIZE) -> Iterator[list[int]]:
    """Indexes of `sizes`, in order, in lists whose sizes come to no more than `limit`, but for a single larger one."""
    part: list[int] = []
    total = 0
    for index, size in enumerate(sizes):
        # A larger one is refused, and costs nothing.
        size = size if size <= MANIFEST_LIMIT else 0
        if part and total + size > limit:
            yield part
            part, total = [], 0
        part.append(index)
        total += size
    if part:
        yield part


def _is_json(content: bytes) -> bool:
    try:
        parse_json(content)
    except InvalidManifest:
        return False
    return True
