"""What uses how much of a storage: bytes by repository, its own and shared ones, and what its images consist of.

Nothing is read of layers: their sizes come with the listing. What cannot be looked at is noted, and the rest is told.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

import trio

from layerfs.digest import Digest
from layerfs.errors import LayerfsError
from layerfs.manifest import DOCKER_LIST, DOCKER_SCHEMA1, DOCKER_SCHEMA1_SIGNED, OCI_INDEX, Manifest
from layerfs.reading import platform_of_image, platforms_in_index
from layerfs.registry import Registry, Repository
from layerfs.registry.maintenance.check_blobs import BlobWalk
from layerfs.registry.maintenance.look import Look
from layerfs.registry.maintenance.progress import Progress, Report, no_report

#: Repositories, and manifests of one, that are looked at at a time.
_JOBS: Final = 16

#: Indexes inside one another that are followed.
_DEPTH: Final = 8

_INDEXES: Final = (OCI_INDEX, DOCKER_LIST)
_SCHEMA1: Final = (DOCKER_SCHEMA1, DOCKER_SCHEMA1_SIGNED)


@dataclass(frozen=True, slots=True)
class PartUse:
    """What an image refers to: `kind` is "config" or "layer". No `size`, in bytes: it is not in the repository."""

    kind: str
    digest: Digest
    size: int | None


@dataclass(frozen=True, slots=True)
class ImageUse:
    """A manifest: an image with its `parts`, or an index with the images in it (`children`).

    `manifest_size` is in bytes; `problem` is why nothing is known of what it refers to.
    """

    digest: Digest
    tags: tuple[str, ...]
    media_type: str
    manifest_size: int
    platform: str | None = None
    parts: tuple[PartUse, ...] = ()
    children: tuple[ImageUse, ...] = ()
    problem: str = ""

    def sizes(self) -> dict[Digest, int]:
        """Every blob of it that is there, the manifests included, each once."""
        found = {self.digest: self.manifest_size}
        found |= {part.digest: part.size for part in self.parts if part.size is not None}
        for child in self.children:
            found |= child.sizes()
        return found


@dataclass(frozen=True, slots=True)
class RepositoryUse:
    """A repository: `sizes` are those of all blobs that it links, `uploads` those of what is not finished, in bytes."""

    name: str
    sizes: dict[Digest, int]
    tags: tuple[tuple[str, Digest], ...] = ()
    uploads: tuple[int, ...] = ()
    images: tuple[ImageUse, ...] = ()

    @property
    def size(self) -> int:
        """Bytes of all its blobs, shared or not."""
        return sum(self.sizes.values())


@dataclass(slots=True)
class StorageUse:
    """All repositories, in order; `problems` is what could not be looked at.

    `stored` counts every blob in the storage and its bytes, whether a repository links it or not.
    """

    repositories: list[RepositoryUse] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    stored: int = 0
    stored_bytes: int = 0
    #: In how many repositories a blob is, and its size.
    links: Counter[Digest] = field(default_factory=Counter)
    sizes: dict[Digest, int] = field(default_factory=dict)

    def unique_bytes(self, repository: RepositoryUse) -> int:
        """What no other repository has: the blobs that go if this one is removed and garbage is collected."""
        return sum(size for digest, size in repository.sizes.items() if self.links[digest] == 1)

    def freed_bytes(self, repository: RepositoryUse) -> int:
        """What removing it frees in all: its unique blobs, and its unfinished uploads."""
        return self.unique_bytes(repository) + sum(repository.uploads)

    @property
    def linked_bytes(self) -> int:
        """What all repositories would take if none shared anything."""
        return sum(repository.size for repository in self.repositories)

    @property
    def deduplicated_bytes(self) -> int:
        """What their blobs take, each once."""
        return sum(self.sizes.values())

    @property
    def orphans(self) -> int:
        """Blobs that no repository links."""
        return max(0, self.stored - len(self.sizes))

    @property
    def orphaned_bytes(self) -> int:
        """Bytes of those."""
        return max(0, self.stored_bytes - self.deduplicated_bytes)

    def largest(self, count: int, among: Sequence[RepositoryUse]) -> list[tuple[Digest, int, list[str]]]:
        """The `count` largest blobs that these repositories have, with the names of those that do."""
        having: dict[Digest, list[str]] = {}
        for repository in among:
            for digest in repository.sizes:
                having.setdefault(digest, []).append(repository.name)
        ranked = sorted(having, key=lambda digest: (-self.sizes[digest], str(digest)))
        return [(digest, self.sizes[digest], having[digest]) for digest in ranked[:count]]

    def add(self, repository: RepositoryUse) -> None:
        """One more repository."""
        self.repositories.append(repository)
        self.links.update(repository.sizes.keys())
        self.sizes |= repository.sizes


async def measure_storage(registry: Registry, *, images: bool = False, report: Report = no_report) -> StorageUse:
    """What all repositories use, with their `images` if asked for; `report` is told how far it has come."""
    use = StorageUse()
    names = [
        name
        async for name in registry.catalog(
            on_error=lambda name, error: use.problems.append(f"{name or 'the repositories'}: {error}")
        )
    ]
    measured: dict[str, RepositoryUse] = {}
    limiter = trio.CapacityLimiter(_JOBS)

    async def measure(name: str) -> None:
        async with limiter:
            try:
                measured[name] = await measure_repository(registry, name, images=images)
            except LayerfsError as error:
                use.problems.append(f"{name}: {error}")
            report(Progress("looking at repositories", "repositories", len(measured), len(names)))

    async with trio.open_nursery() as nursery:
        for name in names:
            nursery.start_soon(measure, name)
    for name in names:
        if name in measured:
            use.add(measured[name])
    await _count_blobs(registry, use, report)
    return use


async def _count_blobs(registry: Registry, use: StorageUse, report: Report) -> None:
    look = Look(registry.driver, _JOBS)
    async for batch in BlobWalk(look).run():
        use.stored += len(batch)
        use.stored_bytes += sum(blob.size for blob in batch)
        report(Progress("looking at blobs", "blobs", use.stored, 0))
    if look.unreadables:
        use.problems.append(f"{look.unreadables} places among the blobs cannot be looked at")


async def measure_repository(registry: Registry, name: str, *, images: bool) -> RepositoryUse:
    """What one repository uses. Raises what looking at it does."""
    repository = registry.repository(name)
    layers = await repository.layers.list()
    manifests = await repository.manifests.list()
    sizes = {layer.blob.digest: layer.blob.size for layer in layers}
    sizes |= {manifest.digest: manifest.size for manifest in manifests}
    tags = tuple((tag.name, tag.digest) for tag in await repository.tags.list())
    uploads = tuple(upload.size for upload in await repository.layers.uploads())
    found: tuple[ImageUse, ...] = ()
    if images:
        found = await _Images(repository, sizes, tags).find([manifest.digest for manifest in manifests])
    return RepositoryUse(name, sizes, tags, uploads, found)


class _Images:
    """The images of one repository, put together from its manifests."""

    def __init__(self, repository: Repository, sizes: dict[Digest, int], tags: Sequence[tuple[str, Digest]]) -> None:
        self._repository = repository
        self._sizes = sizes
        self._limiter = trio.CapacityLimiter(_JOBS)
        self._read: dict[Digest, ImageUse] = {}
        # Of an index, what it names and for which platform.
        self._children: dict[Digest, list[tuple[Digest, str | None]]] = {}
        self._tags: dict[Digest, list[str]] = {}
        for name, digest in tags:
            self._tags.setdefault(digest, []).append(name)

    async def find(self, digests: Sequence[Digest]) -> tuple[ImageUse, ...]:
        """All that have a tag, by its name, then those that neither have one nor are part of an index."""
        async with trio.open_nursery() as nursery:
            for digest in digests:
                nursery.start_soon(self._read_one, digest)
        parts = {child for children in self._children.values() for child, _ in children}
        roots = [digest for digest in digests if digest in self._tags or digest not in parts]
        roots.sort(key=lambda digest: (digest not in self._tags, self._tags.get(digest, [str(digest)])))
        return tuple(self._with_children(digest, None, _DEPTH) for digest in roots)

    def _with_children(self, digest: Digest, platform: str | None, depth: int) -> ImageUse:
        image = self._read[digest]
        children = tuple(
            self._with_children(child, for_platform, depth - 1)
            for child, for_platform in self._children.get(digest, ())
            if child in self._read and depth
        )
        return ImageUse(
            image.digest,
            image.tags,
            image.media_type,
            image.manifest_size,
            platform or image.platform,
            image.parts,
            children,
            image.problem,
        )

    async def _read_one(self, digest: Digest) -> None:
        size, tags = self._sizes[digest], tuple(sorted(self._tags.get(digest, ())))
        async with self._limiter:
            try:
                manifest = await self._repository.manifests.get(digest)
                parts = tuple(self._parts(manifest))
                platform = await self._platform(manifest, parts)
            except LayerfsError as error:
                self._read[digest] = ImageUse(digest, tags, "", size, problem=str(error))
                return
        self._read[digest] = ImageUse(digest, tags, manifest.media_type, size, platform, parts)

    def _parts(self, manifest: Manifest) -> Iterator[PartUse]:
        parsed = manifest.parse()
        media_type = parsed.manifest.media_type
        if media_type in _INDEXES:
            platforms = platforms_in_index(manifest)
            self._children[manifest.digest] = [
                (each.digest, platforms.get(str(each.digest))) for each in parsed.descriptors
            ]
            return
        for number, each in enumerate(parsed.descriptors):
            kind = "config" if not number and media_type not in _SCHEMA1 else "layer"
            yield PartUse(kind, each.digest, self._sizes.get(each.digest))

    async def _platform(self, manifest: Manifest, parts: Sequence[PartUse]) -> str | None:
        config = next((part.digest for part in parts if part.kind == "config" and part.size is not None), None)
        return await platform_of_image(self._repository, manifest, config)
