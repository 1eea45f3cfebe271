"""`ManifestService`: the manifests of one repository, and everything that is asked of one before it is stored.

Storing goes: judge -> blob -> revision link -> tag index -> tag current. Deleting goes the other way: the tags that
mean it, each current before index, then the revision link; the blob stays for garbage collection. Every step may be
repeated, and whatever is interrupted leaves no link that leads nowhere: doing the same again completes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, TypeAlias

import trio

from layerfs.digest import Digest
from layerfs.driver.interface import StorageDriver
from layerfs.errors import (
    BlobUnknown,
    ContentTooLarge,
    DriverError,
    LayerfsError,
    ManifestBlobUnknown,
    ManifestInvalidDigest,
    ManifestReferencesUnknown,
    ManifestTooLarge,
    ManifestUnknownRevision,
    ManifestUnverified,
    ManifestVerification,
    NotRegularFile,
    PathNotFound,
    UnsupportedDigestAlgorithm,
)
from layerfs.jws import attach
from layerfs.manifest import (
    MANIFEST_LIMIT,
    NO_URLS,
    Descriptor,
    Manifest,
    References,
    UrlRules,
    parse_manifest,
)
from layerfs.names import check_repository_name, check_tag
from layerfs.registry.blobs import BlobInfo, BlobStore
from layerfs.registry.links import link_fits, raise_if_all_failed, read_links, write_link
from layerfs.registry.paths import BlobData, LayerLink, ManifestRevisionLink
from layerfs.registry.repositories import make_repository
from layerfs.registry.revisions import UNUSABLE, Revisions, parse_digests
from layerfs.registry.tags import TagService

#: Bytes of manifests that a listing holds in memory at a time.
_BATCH_SIZE: Final = 16 << 20

#: Bytes beyond which a manifest is judged in a thread, because it can take a tenth of a second.
_INLINE_LIMIT: Final = 256 << 10

#: Bytes of one JWS signature in storage, which has some 600.
_SIGNATURE_LIMIT: Final = 64 << 10


@dataclass(frozen=True, slots=True)
class ManifestInfo:
    """A manifest of a repository: `size` in bytes, `stored_at` in nanoseconds since 1970 (0 if unknown)."""

    digest: Digest
    size: int
    stored_at: int


class ManifestService:
    """The manifests of repository `name`. Exists also for a repository that has nothing in storage yet."""

    def __init__(
        self,
        name: str,
        driver: StorageDriver,
        blobs: BlobStore,
        tags: TagService,
        revisions: Revisions,
        *,
        limiter: trio.CapacityLimiter,
        urls: UrlRules = NO_URLS,
    ) -> None:
        """`limiter` bounds the threads that judge large manifests; `urls` are those that layers may have."""
        self.name = name
        self._driver = driver
        self._blobs = blobs
        self._tags = tags
        self._revisions = revisions
        self._limiter = limiter
        self._urls = urls

    async def exists(self, digest: Digest) -> bool:
        """Whether `get` would find it."""
        try:
            await self._revisions.stat(digest)
        except ManifestUnknownRevision:
            return False
        return True

    async def stat(self, digest: Digest) -> ManifestInfo:
        """Raises `ManifestUnknownRevision` if there is no such manifest, `LinkMismatch` if its link leads elsewhere."""
        return _info(await self._revisions.stat(digest))

    async def stat_many(self, digests: Sequence[Digest]) -> Found:
        """`stat` of each, in order, an error standing in its place. Two requests to the driver in all."""
        found = await self._revisions.stat_many(digests)
        return [_info(each) if isinstance(each, BlobInfo) else each for each in found]

    async def list(self) -> Infos:
        """All manifests, tagged or not, by digest; without those whose link leads nowhere. Three requests in all."""
        found = await self.stat_many(await self._revisions.list())
        raise_if_all_failed(found)
        return [info for info in found if isinstance(info, ManifestInfo)]

    async def descriptors(self) -> Descriptors:
        """All manifests with media type and size, by digest. They are read for it, many at a time."""
        descriptors: Descriptors = []
        for batch in _batches(await self.list()):
            contents = await self._driver.get_contents(
                [BlobData(info.digest).path for info in batch], limit=MANIFEST_LIMIT
            )
            for info, content in zip(batch, contents, strict=True):
                if isinstance(content, bytes):
                    descriptors.append(Manifest.from_storage(info.digest, content).descriptor)
                elif not isinstance(content, (*UNUSABLE, ContentTooLarge)):
                    raise content
        return descriptors

    async def get(self, digest: Digest) -> Manifest:
        """A manifest as it is stored; whether the bytes still match their digest is not looked at.

        Raises `ManifestUnknownRevision`, `LinkMismatch`, or `ManifestTooLarge` for a blob that cannot be a manifest.
        """
        await self._revisions.check_link(digest)
        try:
            content = await self._driver.get_content(BlobData(digest).path, limit=MANIFEST_LIMIT)
        except ContentTooLarge as error:
            raise ManifestTooLarge(MANIFEST_LIMIT) from error
        except (PathNotFound, NotRegularFile) as error:
            raise ManifestUnknownRevision(self.name, digest, str(BlobUnknown(digest))) from error
        return Manifest.from_storage(digest, content)

    async def get_by_tag(self, tag: str) -> Manifest:
        """The manifest that a tag means now. Raises `TagUnknown`, `InvalidTag`, and what `get` raises."""
        return await self.get(await self._tags.get(tag))

    async def signatures(self, digest: Digest) -> Contents:
        """The JWS signatures that a registry before 2.5 stored beside a schema 1 manifest; later ones store none.

        Raises `ManifestUnknownRevision`.
        """
        await self._revisions.stat(digest)
        directory = f"{_revision_directory(self.name, digest)}/signatures/{digest.algorithm}"
        try:
            entries = await self._driver.list(directory)
        except (PathNotFound, NotRegularFile):
            return []
        digests = parse_digests(digest.algorithm, sorted(entry.name for entry in entries))
        links = await read_links(self._driver, [f"{directory}/{signature.hex}/link" for signature in digests])
        good = [link for signature, link in zip(digests, links, strict=True) if link == signature]
        contents = await self._driver.get_contents([BlobData(link).path for link in good], limit=_SIGNATURE_LIMIT)
        return [content for content in contents if isinstance(content, bytes)]

    async def get_signed(self, digest: Digest) -> bytes:
        """A schema 1 manifest with its stored signatures, as the registry that stored them would serve it.

        Raises `ManifestUnverified` if none are stored, and what `get` raises.
        """
        signatures = await self.signatures(digest)
        if not signatures:
            raise ManifestUnverified(f"no signatures of {digest} are stored")
        return attach((await self.get(digest)).content, signatures)

    async def put(
        self, content: bytes, *, tag: str | None = None, digest: Digest | None = None, media_type: str | None = None
    ) -> Descriptor:
        """Stores a manifest, these bytes exactly, and tags it. (Of signed schema 1 the payload, as registries do.)

        `digest` and `media_type` are what it is expected to be. Nothing is changed when it raises `InvalidTag`,
        `InvalidManifest`, `ManifestTooLarge`, `ManifestInvalidDigest`, `ManifestReferencesUnknown`,
        `ManifestVerification` or `SignatureUnsupported`. It may be repeated, and repairs a damaged copy.
        """
        check_repository_name(self.name)
        if tag is not None:
            check_tag(tag)
        manifest, references = await self._judge(content, media_type)
        _check_digest(digest, manifest.digest)
        await self._verify(manifest, references)
        await self._store(manifest)
        if tag is not None:
            await self._tags.tag(tag, manifest.digest)
        return manifest.descriptor

    async def delete(self, digest: Digest) -> None:
        """Removes a manifest and the tags that mean it; the blob stays, and so do indexes that refer to it.

        Raises `ManifestUnknownRevision` if there is neither link nor tag. A link that leads nowhere can be removed.
        """
        tags = await self._tags.untag_all(digest)
        try:
            await self._driver.delete(ManifestRevisionLink(self.name, digest).path)
        except PathNotFound as error:
            if not tags:
                raise ManifestUnknownRevision(self.name, digest) from error
        finally:
            await self._blobs.forget(digest, repository=self.name)

    async def _judge(self, content: bytes, media_type: str | None) -> tuple[Manifest, References]:
        """What is to be stored, and what that needs; all that can be said without looking into storage."""
        if len(content) <= _INLINE_LIMIT:
            return _judge(content, media_type, self._urls)
        return await trio.to_thread.run_sync(_judge, content, media_type, self._urls, limiter=self._limiter)

    async def _verify(self, manifest: Manifest, references: References) -> None:
        """Raises unless everything that the manifest refers to is in this repository, and nothing else is wrong."""
        missing = await self._missing_blobs(references.blobs)
        found = await self._revisions.stat_many(references.manifests)
        missing += [digest for digest, one in zip(references.manifests, found, strict=True) if _is_missing(one)]
        unknown = [ManifestBlobUnknown(digest) for digest in missing]
        if references.errors:
            raise ManifestVerification(self.name, manifest.digest, [*references.errors, *unknown])
        if unknown:
            raise ManifestReferencesUnknown(self.name, manifest.digest, unknown)

    async def _missing_blobs(self, digests: Sequence[Digest]) -> Digests:
        """Those that are no layers of this repository. One by another algorithm leads to the canonical digest."""
        links = await read_links(self._driver, [LayerLink(self.name, digest).path for digest in digests])
        ends = {
            digest: link
            for digest, link in zip(digests, links, strict=True)
            if not _is_missing(link) and isinstance(link, Digest) and link_fits(digest, link)
        }
        blobs = await self._blobs.stat_many(list(ends.values()))
        there = {digest for digest, blob in zip(ends, blobs, strict=True) if not _is_missing(blob)}
        return [digest for digest in digests if digest not in there]

    async def _store(self, manifest: Manifest) -> None:
        await make_repository(self._driver, self.name)
        path = BlobData(manifest.digest).path
        # It may be there, and damaged; registries would leave it so. It is small: read and compare.
        if not await self._has(path, manifest.content):
            await self._driver.put_content(path, manifest.content)
        await write_link(self._driver, ManifestRevisionLink(self.name, manifest.digest).path, manifest.digest)
        # For no repository, or registries would serve it as a layer of that one.
        await self._blobs.learn(manifest.digest, len(manifest.content), repository=None)

    async def _has(self, path: str, content: bytes) -> bool:
        try:
            return await self._driver.get_content(path, limit=len(content)) == content
        except (PathNotFound, NotRegularFile, ContentTooLarge):
            return False


# Named here because inside `ManifestService` the word `list` is its method.
Infos: TypeAlias = list[ManifestInfo]
Found: TypeAlias = list[ManifestInfo | LayerfsError]
Descriptors: TypeAlias = list[Descriptor]
Contents: TypeAlias = list[bytes]
Digests: TypeAlias = list[Digest]


def _info(blob: BlobInfo) -> ManifestInfo:
    return ManifestInfo(blob.digest, blob.size, blob.stored_at)


def _revision_directory(name: str, digest: Digest) -> str:
    return ManifestRevisionLink(name, digest).path.removesuffix("/link")


def _judge(content: bytes, media_type: str | None, urls: UrlRules) -> tuple[Manifest, References]:
    parsed = parse_manifest(content, media_type)
    references = parsed.references(urls)
    try:
        parsed.verify_signatures()
    except ManifestUnverified as error:
        references = replace(references, errors=(*references.errors, error))
    return parsed.manifest, references


def _check_digest(expected: Digest | None, actual: Digest) -> None:
    if expected is None or expected == actual:
        return
    if not expected.is_canonical:
        raise UnsupportedDigestAlgorithm(str(expected), f"manifests are stored by {actual.algorithm} only")
    raise ManifestInvalidDigest(expected, actual)


def _is_missing(found: object) -> bool:
    """Whether it is known not to be there. Raises what keeps that from being known."""
    if isinstance(found, (*UNUSABLE, ManifestUnknownRevision, BlobUnknown)):
        return True
    if isinstance(found, DriverError):
        raise found
    return False


def _batches(infos: Infos) -> list[Infos]:
    """In order, each of at most `_BATCH_SIZE` bytes; what is too large for a manifest is left out."""
    batches: list[Infos] = [[]]
    size = 0
    for info in infos:
        if info.size > MANIFEST_LIMIT:
            continue
        if size + info.size > _BATCH_SIZE:
            batches.append([])
            size = 0
        batches[-1].append(info)
        size += info.size
    return [batch for batch in batches if batch]
