"""What is asked of manifests before they are put: what they say, and that all they need is in the repository.

Judging comes first, of each by itself, without storage; then all that are put together, and the tags that are to mean
them, are checked against the repository at once. Nothing is changed here, and nothing may be changed by whoever puts
them before both have passed: so a manifest that is stored refers to what was there, or is stored before it
(`children_first`).
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from graphlib import TopologicalSorter

import trio

from layerfs.digest import Digest
from layerfs.driver.interface import StorageDriver
from layerfs.errors import (
    ManifestBlobUnknown,
    ManifestInvalidDigest,
    ManifestNotHere,
    ManifestReferencesUnknown,
    ManifestUnverified,
    ManifestVerification,
    UnsupportedDigestAlgorithm,
)
from layerfs.manifest import Manifest, References, UrlRules, parse_manifest
from layerfs.registry.blobs import BlobStore
from layerfs.registry.links import link_fits, read_links
from layerfs.registry.manifest_parsing import parse_in_turn
from layerfs.registry.paths import LayerLink
from layerfs.registry.revisions import Revisions, is_missing


@dataclass(frozen=True, slots=True)
class Judged:
    """A manifest that is to be stored, and what it needs."""

    manifest: Manifest
    references: References


class ManifestJudge:
    """Judges what is put into repository `name`. `limiter` bounds the threads that judge large manifests.

    `urls` are those that layers may have.
    """

    def __init__(
        self,
        name: str,
        driver: StorageDriver,
        blobs: BlobStore,
        revisions: Revisions,
        *,
        limiter: trio.CapacityLimiter,
        urls: UrlRules,
    ) -> None:
        self.name = name
        self._driver = driver
        self._blobs = blobs
        self._revisions = revisions
        self._limiter = limiter
        self._urls = urls

    async def judge(self, content: bytes, media_type: str | None) -> Judged:
        """What is to be stored, and what that needs; all that can be said without looking into storage.

        Raises `InvalidManifest`, `ManifestTooLarge` or `SignatureUnsupported`; what else is wrong, `check` raises.
        """
        judge = functools.partial(_judge, media_type=media_type, urls=self._urls)
        return await parse_in_turn(content, judge, limiter=self._limiter)

    async def check(self, judged: Sequence[Judged], tags: Mapping[str, Digest]) -> None:
        """Raises unless all that they refer to, and all that tags are to mean, is in this repository or among them.

        Raises `ManifestVerification` for one with which anything else is wrong, `ManifestReferencesUnknown`, or
        `ManifestNotHere` for a tag.
        """
        together = {one.manifest.digest for one in judged}
        await self._check_references(judged, together)
        await self._check_tags(tags, together)

    async def _check_references(self, judged: Sequence[Judged], together: set[Digest]) -> None:
        """All are looked up at once: an index is put with as many manifests as it has platforms."""
        manifests = _unique(digest for one in judged for digest in one.references.manifests if digest not in together)
        missing_manifests = await self._missing_manifests(manifests)
        missing_blobs = await self._missing_blobs(_unique(digest for one in judged for digest in one.references.blobs))
        for one in judged:
            missing = [digest for digest in one.references.blobs if digest in missing_blobs]
            missing += [digest for digest in one.references.manifests if digest in missing_manifests]
            self._raise_if_refused(one, [ManifestBlobUnknown(digest) for digest in missing])

    def _raise_if_refused(self, judged: Judged, unknown: Sequence[ManifestBlobUnknown]) -> None:
        errors = judged.references.errors
        if errors:
            raise ManifestVerification(self.name, judged.manifest.digest, [*errors, *unknown])
        if unknown:
            raise ManifestReferencesUnknown(self.name, judged.manifest.digest, unknown)

    async def _check_tags(self, tags: Mapping[str, Digest], together: set[Digest]) -> None:
        missing = await self._missing_manifests(_unique(digest for digest in tags.values() if digest not in together))
        for tag, digest in tags.items():
            if digest in missing:
                raise ManifestNotHere(self.name, digest, tag)

    async def _missing_manifests(self, digests: Sequence[Digest]) -> set[Digest]:
        """Those that are no manifests of this repository."""
        if not digests:
            return set()
        found = await self._revisions.stat_many(digests)
        return {digest for digest, one in zip(digests, found, strict=True) if is_missing(one)}

    async def _missing_blobs(self, digests: Sequence[Digest]) -> set[Digest]:
        """Those that are no layers of this repository. One by another algorithm leads to the canonical digest."""
        if not digests:
            return set()
        links = await read_links(self._driver, [LayerLink(self.name, digest).path for digest in digests])
        ends = {
            digest: link
            for digest, link in zip(digests, links, strict=True)
            if not is_missing(link) and isinstance(link, Digest) and link_fits(digest, link)
        }
        blobs = await self._blobs.stat_many(list(ends.values()))
        there = {digest for digest, blob in zip(ends, blobs, strict=True) if not is_missing(blob)}
        return {digest for digest in digests if digest not in there}


def check_digest(expected: Digest | None, actual: Digest) -> None:
    """Raises `ManifestInvalidDigest` for another digest than was expected, if any was.

    `UnsupportedDigestAlgorithm` if it is of a kind that no manifest is stored by.
    """
    if expected is None or expected == actual:
        return
    if not expected.is_canonical:
        raise UnsupportedDigestAlgorithm(str(expected), f"manifests are stored by {actual.algorithm} only")
    raise ManifestInvalidDigest(expected, actual)


def children_first(judged: Sequence[Judged]) -> list[Manifest]:
    """Each manifest once, after those that it refers to; by their digests, none can refer to itself."""
    manifests = {one.manifest.digest: one.manifest for one in judged}
    order = TopologicalSorter({one.manifest.digest: one.references.manifests for one in judged}).static_order()
    return [manifests[digest] for digest in order if digest in manifests]


def _judge(content: bytes, media_type: str | None, urls: UrlRules) -> Judged:
    parsed = parse_manifest(content, media_type)
    references = parsed.references(urls)
    try:
        parsed.verify_signatures()
    except ManifestUnverified as error:
        references = replace(references, errors=(*references.errors, error))
    return Judged(parsed.manifest, references)


def _unique(digests: Iterable[Digest]) -> list[Digest]:
    return list(dict.fromkeys(digests))
