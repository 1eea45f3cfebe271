"""`ManifestService`: the manifests of one repository, and everything that is asked of one before it is stored.

Storing goes: judge -> blob -> revision link -> tag (see `tags`). Several that are put together are all judged
before the first is stored; those that others refer to come first, and the tags when all are there. Deleting goes the
other way: the tags that mean it, each current before index, then the revision link; the blob stays for garbage
collection. Every step may be repeated, and whatever is interrupted leaves no link that leads nowhere, and no index
without the manifests in it: doing the same again completes it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from graphlib import TopologicalSorter
from types import MappingProxyType
from typing import Final, TypeAlias, TypeVar

import trio

from layerfs.digest import Digest
from layerfs.driver.interface import StorageDriver
from layerfs.errors import (
    BlobUnknown,
    ContentTooLarge,
    DriverError,
    InvalidManifest,
    LayerfsError,
    ManifestBlobUnknown,
    ManifestInvalidDigest,
    ManifestNotHere,
    ManifestReferencesTooMany,
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
from layerfs.layername import LayerName
from layerfs.manifest import (
    MANIFEST_LIMIT,
    NO_URLS,
    Descriptor,
    Manifest,
    References,
    UrlRules,
    guess_media_type,
    parse_manifest,
    tarsum_in,
)
from layerfs.names import check_repository_name, check_tag
from layerfs.registry.blobs import BlobInfo, BlobStore
from layerfs.registry.links import link_fits, raise_if_all_failed, read_links, write_link
from layerfs.registry.media_types import MediaTypes
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

#: Manifests and blobs that are looked for from some manifests, and levels that are followed. 50,000 images of ten blobs
#: are that many, some 110 MB; an index of indexes of images has three levels.
REACHABLE_LIMIT: Final = 500_000
DEPTH_LIMIT: Final = 16

#: No tags to put.
_NO_TAGS: Final[Mapping[str, Digest]] = MappingProxyType({})

_Result = TypeVar("_Result")


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
        """`media_types` is shared by all repositories; `limiter` bounds the threads that judge large manifests.

        `urls` are those that layers may have.
        """
        self.name = name
        self._driver = driver
        self._blobs = blobs
        self._tags = tags
        self._revisions = revisions
        self._media_types = media_types
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
        """All manifests with media type and size, by digest; without those that are too large to be one."""
        descriptors: Descriptors = []
        for found in await self._describe(await self.list()):
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
        found = await self.stat_many(digests)
        described = iter(await self._describe([info for info in found if isinstance(info, ManifestInfo)]))
        return [next(described) if isinstance(one, ManifestInfo) else one for one in found]

    async def reachable(self, digests: Iterable[Digest]) -> frozenset[Digest]:
        """These manifests and all that they refer to: configs, layers, other manifests, and what those refer to.

        What is not there, or is no manifest, is named, and refers to nothing. A layer that goes by another name than
        its canonical digest is there by that one too. A `subject` is not followed: it may be anywhere. Each manifest is
        read once.
        Raises `ManifestReferencesTooMany` beyond `REACHABLE_LIMIT` of them, or `DEPTH_LIMIT` levels, rather than say of
        anything that it is not reachable.
        """
        reached = set(digests)
        aliases: set[LayerName] = set()
        read: set[Digest] = set()
        level = list(reached)
        for _ in range(DEPTH_LIMIT):
            read.update(level)
            manifests: dict[Digest, None] = {}
            for batch in _batches(await self._present(level)):
                for _, content in await self._read(batch):
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
        judged = await self._judge(content, media_type)
        _check_digest(digest, judged.manifest.digest)
        await self._put([judged], dict.fromkeys(tags, judged.manifest.digest))
        return judged.manifest.descriptor

    async def put_together(self, contents: Sequence[bytes], *, tags: Mapping[str, Digest] = _NO_TAGS) -> Descriptors:
        """Stores manifests that may refer to each other, in any order, then puts tags: all of it or nothing.

        A tag may mean one of them or one that the repository has; what each of them is stored as comes back in order.
        Nothing is changed when it raises `ManifestNotHere`, or, for any of them, what `put` raises. It may be repeated.
        """
        self._check_names(tags)
        judged = [await self._judge(content, None) for content in contents]
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

    async def _judge(self, content: bytes, media_type: str | None) -> Judged:
        """What is to be stored, and what that needs; all that can be said without looking into storage."""
        return await self._parse(content, lambda: _judge(content, media_type, self._urls))

    async def _put(self, judged: Sequence[Judged], tags: Mapping[str, Digest]) -> None:
        await self._verify(judged)
        await self._verify_tags(tags, {one.manifest.digest for one in judged})
        if judged:
            await make_repository(self._driver, self.name)
        for manifest in _children_first(judged):
            await self._store(manifest)
        for tag, digest in tags.items():
            await self._tags.tag(tag, digest)

    async def _verify(self, judged: Sequence[Judged]) -> None:
        """Raises unless everything that they refer to is in this repository or among them, and nothing else is wrong.

        All are looked up at once: an index is put with as many manifests as it has platforms.
        """
        together = {one.manifest.digest for one in judged}
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

    async def _verify_tags(self, tags: Mapping[str, Digest], together: set[Digest]) -> None:
        missing = await self._missing_manifests(_unique(digest for digest in tags.values() if digest not in together))
        for tag, digest in tags.items():
            if digest in missing:
                raise ManifestNotHere(self.name, digest, tag)

    async def _missing_manifests(self, digests: Sequence[Digest]) -> set[Digest]:
        """Those that are no manifests of this repository."""
        if not digests:
            return set()
        found = await self._revisions.stat_many(digests)
        return {digest for digest, one in zip(digests, found, strict=True) if _is_missing(one)}

    async def _missing_blobs(self, digests: Sequence[Digest]) -> set[Digest]:
        """Those that are no layers of this repository. One by another algorithm leads to the canonical digest."""
        if not digests:
            return set()
        links = await read_links(self._driver, [LayerLink(self.name, digest).path for digest in digests])
        ends = {
            digest: link
            for digest, link in zip(digests, links, strict=True)
            if not _is_missing(link) and isinstance(link, Digest) and link_fits(digest, link)
        }
        blobs = await self._blobs.stat_many(list(ends.values()))
        there = {digest for digest, blob in zip(ends, blobs, strict=True) if not _is_missing(blob)}
        return {digest for digest in digests if digest not in there}

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

    # --- reading many -------------------------------------------------------------------------------------------

    async def _describe(self, infos: Infos) -> Described:
        """In order; an error stands in the place of what is gone meanwhile, or too large."""
        found: dict[Digest, str | LayerfsError] = {}
        unseen: Infos = []
        for info in infos:
            if (media_type := self._media_types.find(info.digest)) is not None:
                found[info.digest] = media_type
            else:
                unseen.append(info)
        for batch in _batches(unseen):
            for digest, content in await self._read(batch):
                found[digest] = await self._media_type(digest, content) if isinstance(content, bytes) else content
        return [_descriptor(info, found.get(info.digest, ManifestTooLarge(MANIFEST_LIMIT))) for info in infos]

    async def _media_type(self, digest: Digest, content: bytes) -> str:
        """That of what was just read. It is remembered only if that is what the digest says, for damage is repaired."""
        media_type, actual = await self._parse(content, lambda: (guess_media_type(content), Digest.of(content)))
        if actual == digest:
            self._media_types.learn(digest, media_type)
        return media_type

    async def _references(self, content: bytes | LayerfsError) -> _Reached:
        """What a manifest refers to. What is not there, too large or no manifest refers to nothing."""
        if isinstance(content, bytes):
            return await self._parse(content, lambda: _reached(content))
        if isinstance(content, (ManifestUnknownRevision, ManifestTooLarge)):
            return _NOTHING
        raise content

    async def _canonical(self, aliases: Sequence[LayerName]) -> Digests:
        """The digests that layers are stored by which go by these other names here."""
        if not aliases:
            return []
        links = await read_links(self._driver, [LayerLink(self.name, alias).path for alias in aliases])
        return [link for link in links if not _is_missing(link) and isinstance(link, Digest)]

    async def _present(self, digests: Sequence[Digest]) -> Infos:
        """Those that are there."""
        infos: Infos = []
        for found in await self.stat_many(digests):
            if isinstance(found, ManifestInfo):
                infos.append(found)
            elif not _is_missing(found):
                raise found
        return infos

    async def _read(self, batch: Infos) -> Read:
        """The stored bytes of each, or why they cannot be had."""
        contents = await self._driver.get_contents([BlobData(info.digest).path for info in batch], limit=MANIFEST_LIMIT)
        return [(info.digest, self._content(info.digest, one)) for info, one in zip(batch, contents, strict=True)]

    def _content(self, digest: Digest, content: bytes | DriverError) -> bytes | LayerfsError:
        """What was read, or the error in the words of manifests."""
        if isinstance(content, ContentTooLarge):
            return ManifestTooLarge(MANIFEST_LIMIT)
        if isinstance(content, UNUSABLE):
            return ManifestUnknownRevision(self.name, digest, str(BlobUnknown(digest)))
        return content

    async def _parse(self, content: bytes, parse: Callable[[], _Result]) -> _Result:
        """Keeps nobody waiting: what takes long is parsed in a thread, and between many small ones others run."""
        if len(content) <= _INLINE_LIMIT:
            await trio.lowlevel.checkpoint()
            return parse()
        return await trio.to_thread.run_sync(parse, limiter=self._limiter)


# Named here because inside `ManifestService` the word `list` is its method.
Infos: TypeAlias = list[ManifestInfo]
Found: TypeAlias = list[ManifestInfo | LayerfsError]
Descriptors: TypeAlias = list[Descriptor]
Described: TypeAlias = list[Descriptor | LayerfsError]
Contents: TypeAlias = list[bytes]
Digests: TypeAlias = list[Digest]
Read: TypeAlias = list[tuple[Digest, bytes | LayerfsError]]
Manifests: TypeAlias = list[Manifest]


def _info(blob: BlobInfo) -> ManifestInfo:
    return ManifestInfo(blob.digest, blob.size, blob.stored_at, blob.seen_at)


def _revision_directory(name: str, digest: Digest) -> str:
    return ManifestRevisionLink(name, digest).path.removesuffix("/link")


@dataclass(frozen=True, slots=True)
class Judged:
    """A manifest that is to be stored, and what it needs."""

    manifest: Manifest
    references: References


@dataclass(frozen=True, slots=True)
class _Reached:
    """What a manifest refers to; `manifests` are those that are, `aliases` names of layers but canonical digests."""

    digests: tuple[Digest, ...]
    manifests: tuple[Digest, ...]
    aliases: tuple[LayerName, ...]


_NOTHING: Final = _Reached((), (), ())


def _reached(content: bytes) -> _Reached:
    try:
        parsed = parse_manifest(content)
    except InvalidManifest:
        return _NOTHING
    digests = tuple(entry.digest for entry in parsed.descriptors)
    tarsums = [tarsum for entry in parsed.entries if (tarsum := tarsum_in(entry)) is not None]
    aliases = [digest for digest in digests if not digest.is_canonical]
    return _Reached(digests, parsed.references().manifests, (*aliases, *tarsums))


def _children_first(judged: Sequence[Judged]) -> Manifests:
    """Each manifest once, after those that it refers to; by their digests, none can refer to itself."""
    manifests = {one.manifest.digest: one.manifest for one in judged}
    order = TopologicalSorter({one.manifest.digest: one.references.manifests for one in judged}).static_order()
    return [manifests[digest] for digest in order if digest in manifests]


def _unique(digests: Iterable[Digest]) -> Digests:
    return list(dict.fromkeys(digests))


def _descriptor(info: ManifestInfo, media_type: str | LayerfsError) -> Descriptor | LayerfsError:
    return Descriptor(media_type, info.digest, info.size) if isinstance(media_type, str) else media_type


def _judge(content: bytes, media_type: str | None, urls: UrlRules) -> Judged:
    parsed = parse_manifest(content, media_type)
    references = parsed.references(urls)
    try:
        parsed.verify_signatures()
    except ManifestUnverified as error:
        references = replace(references, errors=(*references.errors, error))
    return Judged(parsed.manifest, references)


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
