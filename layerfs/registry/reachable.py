"""Everything that is reachable from some manifests of one repository: what nobody may remove while these are wanted.

Nothing is ever said to be unreachable because it could not be looked at: what storage cannot tell, and what goes beyond
the limits, is an error. What is not there, and what is no manifest, is reachable itself, and leads nowhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import trio

from layerfs.digest import Digest
from layerfs.driver.interface import StorageDriver
from layerfs.errors import (
    InvalidManifest,
    LayerfsError,
    ManifestReferencesTooMany,
    ManifestTooLarge,
    ManifestUnknownRevision,
)
from layerfs.layername import LayerName
from layerfs.manifest import parse_manifest, tarsum_in
from layerfs.registry.blobs import BlobInfo
from layerfs.registry.links import read_links
from layerfs.registry.manifest_contents import ManifestContents, batches
from layerfs.registry.manifest_parsing import parse_in_turn
from layerfs.registry.paths import LayerLink
from layerfs.registry.revisions import Revisions, is_missing

#: Manifests and blobs that are looked for from some manifests, and levels that are followed. 50,000 images of ten blobs
#: are that many, some 110 MB; an index of indexes of images has three levels.
REACHABLE_LIMIT: Final = 500_000
DEPTH_LIMIT: Final = 16


class Reachable:
    """What is reachable from manifests of repository `name`. `limiter` bounds the threads that parse large ones."""

    def __init__(
        self,
        name: str,
        driver: StorageDriver,
        revisions: Revisions,
        contents: ManifestContents,
        *,
        limiter: trio.CapacityLimiter,
    ) -> None:
        self.name = name
        self._driver = driver
        self._revisions = revisions
        self._contents = contents
        self._limiter = limiter

    async def find(self, digests: Iterable[Digest]) -> frozenset[Digest]:
        """Level by level, each manifest once. Promises and raises what `ManifestService.reachable` does."""
        reached = set(digests)
        aliases: set[LayerName] = set()
        read: set[Digest] = set()
        level = list(reached)
        for _ in range(DEPTH_LIMIT):
            read.update(level)
            manifests: dict[Digest, None] = {}
            for batch in batches(await self._present(level)):
                for _, content in await self._contents.read(batch):
                    references = await self._references(content)
                    reached.update(references.digests)
                    aliases.update(references.aliases)
                    manifests.update(dict.fromkeys(references.manifests))
                    if len(reached) + len(aliases) > REACHABLE_LIMIT:
                        raise ManifestReferencesTooMany(self.name, f"they are more than {REACHABLE_LIMIT}")
            level = [digest for digest in manifests if digest not in read]
            if not level:
                return frozenset(reached.union(await self._canonical(list(aliases))))
        raise ManifestReferencesTooMany(self.name, f"indexes in indexes, more than {DEPTH_LIMIT} levels deep")

    async def _present(self, digests: Sequence[Digest]) -> list[BlobInfo]:
        """Those that are there."""
        present: list[BlobInfo] = []
        for found in await self._revisions.stat_many(digests):
            if isinstance(found, BlobInfo):
                present.append(found)
            elif not is_missing(found):
                raise found
        return present

    async def _references(self, content: bytes | LayerfsError) -> _References:
        """What a manifest refers to. What is not there, too large or no manifest refers to nothing."""
        if isinstance(content, bytes):
            return await parse_in_turn(content, _references_in, limiter=self._limiter)
        if isinstance(content, (ManifestUnknownRevision, ManifestTooLarge)):
            return _NOTHING
        raise content

    async def _canonical(self, aliases: Sequence[LayerName]) -> list[Digest]:
        """The digests that layers are stored by which go by these other names here."""
        if not aliases:
            return []
        links = await read_links(self._driver, [LayerLink(self.name, alias).path for alias in aliases])
        return [link for link in links if not is_missing(link) and isinstance(link, Digest)]


@dataclass(frozen=True, slots=True)
class _References:
    """What a manifest refers to; `manifests` are those that are, `aliases` names of layers but canonical digests."""

    digests: tuple[Digest, ...]
    manifests: tuple[Digest, ...]
    aliases: tuple[LayerName, ...]


_NOTHING: Final = _References((), (), ())


def _references_in(content: bytes) -> _References:
    try:
        parsed = parse_manifest(content)
    except InvalidManifest:
        return _NOTHING
    digests = tuple(entry.digest for entry in parsed.descriptors)
    tarsums = [tarsum for entry in parsed.entries if (tarsum := tarsum_in(entry)) is not None]
    aliases = [digest for digest in digests if not digest.is_canonical]
    return _References(digests, parsed.references().manifests, (*aliases, *tarsums))
