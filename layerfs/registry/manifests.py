"""`ManifestService`: the manifests of one repository, stored, read, listed and deleted.

Storing goes: judge and check (see `judging`) -> blob -> revision link -> tag (see `tags`). Several that are put
together are all judged and checked before the first is stored; those that others refer to come first, and the tags when
all are there. Deleting goes the other way: the tags that mean it, each current before index, then the revision link;
the blob stays for garbage collection. Every step may be repeated, and whatever is interrupted leaves no link that leads
nowhere, and no index without the manifests in it: doing the same again completes it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, TypeAlias

import trio

from layerfs.digest import Digest
from layerfs.driver.interface import StorageDriver
from layerfs.errors import (
    BlobUnknown,
    ContentTooLarge,
    LayerfsError,
    ManifestTooLarge,
    ManifestUnknownRevision,
    ManifestUnverified,
    NotRegularFile,
    PathNotFound,
)
from layerfs.jws import attach
from layerfs.manifest import MANIFEST_LIMIT, NO_URLS, Descriptor, Manifest, UrlRules, guess_media_type
from layerfs.names import check_repository_name, check_tag
from layerfs.registry.blobs import BlobInfo, BlobStore
from layerfs.registry.judging import Judged, ManifestJudge, check_digest, children_first
from layerfs.registry.links import raise_if_all_failed, read_links, write_link
from layerfs.registry.manifest_contents import ManifestContents, batches
from layerfs.registry.manifest_parsing import parse_in_turn
from layerfs.registry.media_types import MediaTypes
from layerfs.registry.paths import BlobData, ManifestRevisionLink
from layerfs.registry.reachable import Reachable
from layerfs.registry.repositories import make_repository
from layerfs.registry.revisions import Revisions, parse_digests
from layerfs.registry.tags import TagService

#: Bytes of one JWS signature in storage, which has some 600.
_SIGNATURE_LIMIT: Final = 64 << 10

#: No tags to put.
_NO_TAGS: Final[Mapping[str, Digest]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class ManifestInfo:
    """A manifest of a repository: `size` in bytes, `stored_at` in nanoseconds since 1970 (0 if unknown).

    `seen_at` is when storage had its blob, as in `BlobInfo`.
    """

    digest: Digest
    size: int
    stored_at: int
    seen_at: float | None = field(default=None, compare=False)


class ManifestService:
    """The manifests of repository `name`. Exists also for a repository that has nothing in storage yet."""

    def __init__(
        self,
        name: str,
        driver: StorageDriver,
        blobs: BlobStore,
        tags: TagService,
        revisions: Revisions,
        media_types: MediaTypes,
        *,
        limiter: trio.CapacityLimiter,
        urls: UrlRules = NO_URLS,
    ) -> None:
        """`media_types` is shared by all repositories; `limiter` bounds the threads that parse large manifests.

        `urls` are those that layers may have.
        """
        self.name = name
        self._driver = driver
        self._blobs = blobs
        self._tags = tags
        self._revisions = revisions
        self._media_types = media_types
        self._limiter = limiter
        self._contents = ManifestContents(name, driver)
        self._judge = ManifestJudge(name, driver, blobs, revisions, limiter=limiter, urls=urls)
        self._reachable = Reachable(name, driver, revisions, self._contents, limiter=limiter)

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
        return [_info(blob) for blob in await self._list()]

    async def descriptors(self) -> Descriptors:
        """All manifests with media type and size, by digest; without those that are too large to be one."""
        descriptors: Descriptors = []
        for found in await self._describe(await self._list()):
            if isinstance(found, Descriptor):
                descriptors.append(found)
            elif not isinstance(found, (ManifestUnknownRevision, ManifestTooLarge)):
                raise found
        return descriptors

    async def describe(self, digests: Sequence[Digest]) -> Described:
        """Media type and size of each, in order, an error standing in its place.

        Storage is always asked whether they are there, in two requests; only those that this process has not seen
        before are read, many at a time.
        """
        found = await self._revisions.stat_many(digests)
        described = iter(await self._describe([blob for blob in found if isinstance(blob, BlobInfo)]))
        return [next(described) if isinstance(one, BlobInfo) else one for one in found]

    async def reachable(self, digests: Iterable[Digest]) -> frozenset[Digest]:
        """These manifests and all that they refer to: configs, layers, other manifests, and what those refer to.

        What is not there, or is no manifest, is named, and refers to nothing. A layer that goes by another name than
        its canonical digest is there by that one too. A `subject` is not followed: it may be anywhere. Each manifest is
        read once.
        Raises `ManifestReferencesTooMany` beyond the limits that `reachable.py` has, rather than say of anything
        that it is not reachable.
        """
        return await self._reachable.find(digests)

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
        tags = [] if tag is None else [tag]
        self._check_names(tags)
        judged = await self._judge.judge(content, media_type)
        check_digest(digest, judged.manifest.digest)
        await self._put([judged], dict.fromkeys(tags, judged.manifest.digest))
        return judged.manifest.descriptor

    async def put_together(self, contents: Sequence[bytes], *, tags: Mapping[str, Digest] = _NO_TAGS) -> Descriptors:
        """Stores manifests that may refer to each other, in any order, then puts tags: all of it or nothing.

        A tag may mean one of them or one that the repository has; what each of them is stored as comes back in order.
        Nothing is changed when it raises `ManifestNotHere`, or, for any of them, what `put` raises. It may be repeated.
        """
        self._check_names(tags)
        judged = [await self._judge.judge(content, None) for content in contents]
        await self._put(judged, tags)
        return [one.manifest.descriptor for one in judged]

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

    def _check_names(self, tags: Iterable[str]) -> None:
        check_repository_name(self.name)
        for tag in tags:
            check_tag(tag)

    async def _put(self, judged: Sequence[Judged], tags: Mapping[str, Digest]) -> None:
        await self._judge.check(judged, tags)
        if judged:
            await make_repository(self._driver, self.name)
        for manifest in children_first(judged):
            await self._store(manifest)
        for tag, digest in tags.items():
            await self._tags.tag(tag, digest)

    async def _store(self, manifest: Manifest) -> None:
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

    async def _list(self) -> Blobs:
        found = await self._revisions.stat_many(await self._revisions.list())
        raise_if_all_failed(found)
        return [blob for blob in found if isinstance(blob, BlobInfo)]

    async def _describe(self, blobs: Blobs) -> Described:
        """In order; an error stands in the place of what is gone meanwhile, or too large."""
        found: dict[Digest, str | LayerfsError] = {}
        unseen: Blobs = []
        for blob in blobs:
            if (media_type := self._media_types.find(blob.digest)) is not None:
                found[blob.digest] = media_type
            else:
                unseen.append(blob)
        for batch in batches(unseen):
            for digest, content in await self._contents.read(batch):
                found[digest] = await self._media_type(digest, content) if isinstance(content, bytes) else content
        return [_descriptor(blob, found.get(blob.digest, ManifestTooLarge(MANIFEST_LIMIT))) for blob in blobs]

    async def _media_type(self, digest: Digest, content: bytes) -> str:
        """That of what was just read. It is remembered only if that is what the digest says, for damage is repaired."""
        media_type, actual = await parse_in_turn(content, _identify, limiter=self._limiter)
        if actual == digest:
            self._media_types.learn(digest, media_type)
        return media_type


# Named here because inside `ManifestService` the word `list` is its method.
Blobs: TypeAlias = list[BlobInfo]
Infos: TypeAlias = list[ManifestInfo]
Found: TypeAlias = list[ManifestInfo | LayerfsError]
Descriptors: TypeAlias = list[Descriptor]
Described: TypeAlias = list[Descriptor | LayerfsError]
Contents: TypeAlias = list[bytes]


def _info(blob: BlobInfo) -> ManifestInfo:
    return ManifestInfo(blob.digest, blob.size, blob.stored_at, blob.seen_at)


def _revision_directory(name: str, digest: Digest) -> str:
    return ManifestRevisionLink(name, digest).path.removesuffix("/link")


def _identify(content: bytes) -> tuple[str, Digest]:
    return guess_media_type(content), Digest.of(content)


def _descriptor(blob: BlobInfo, media_type: str | LayerfsError) -> Descriptor | LayerfsError:
    return Descriptor(media_type, blob.digest, blob.size) if isinstance(media_type, str) else media_type
