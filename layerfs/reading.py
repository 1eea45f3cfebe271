"""What can be seen of a registry without a mount: lists, manifests with what they refer to, and stored bytes.

Questions in, values out; how they are shown is the command's business. What storage says is taken for what it is:
documents can be anything, and bytes are compared with their digest before they are believed.
"""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import AsyncGenerator, Iterable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Final

import trio

from layerfs.digest import Digest
from layerfs.errors import (
    InvalidManifest,
    InvalidTar,
    LayerfsError,
    LayerUnknown,
    LinkInvalid,
    ManifestTooLarge,
    ManifestUnknown,
    ManifestUnknownRevision,
    RepositoryUnknown,
    TagUnknown,
)
from layerfs.layername import LayerName, Verifier
from layerfs.manifest import (
    DOCKER_LIST,
    DOCKER_SCHEMA1,
    DOCKER_SCHEMA1_SIGNED,
    OCI_INDEX,
    SCHEMA1_LAYER,
    Descriptor,
    Entry,
    Manifest,
    tarsum_in,
)
from layerfs.reference import Reference
from layerfs.registry import Layer, LayerInfo, ManifestInfo, Registry, Repository
from layerfs.registry.side_by_side import side_by_side
from layerfs.strictjson import parse_json
from layerfs.tarsum import TarSumDigest

#: Bytes that are read and written at a time.
_CHUNK: Final = 1 << 20

#: Bytes of a configuration, which is no larger than a manifest.
_CONFIG_LIMIT: Final = 4 << 20

#: How much of the catalog is looked through for names like the one that is not there, in names and in seconds.
_NAMES_LOOKED_AT: Final = 2000
_LOOKING_SECONDS: Final = 1.0
_SUGGESTIONS: Final = 5

#: What every other tool means where no tag is given.
_DEFAULT_TAG: Final = "latest"

_INDEXES: Final = (OCI_INDEX, DOCKER_LIST)
_SCHEMA1: Final = (DOCKER_SCHEMA1, DOCKER_SCHEMA1_SIGNED)


class NotThere(LayerfsError):
    """What was asked for is not in the registry; the message says what has a similar name."""


class ContentDamaged(LayerfsError):
    """Stored bytes that are not those their digest names."""

    def __init__(self, name: LayerName, actual: object, size: int) -> None:
        super().__init__(f"the storage is damaged: the {size} bytes stored as {name} are {actual}")


class NotForTerminals(LayerfsError):
    """Bytes that are no text, and would go to a terminal."""


class WrittenDamaged(LayerfsError):
    """`ContentDamaged`, found when the bytes were already out."""


# --- lists -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RepositorySummary:
    """A repository, and how much is in it."""

    name: str
    tags: int
    layers: int
    uploads: int


async def summarize(registry: Registry, name: str) -> RepositorySummary:
    """The numbers of one repository."""
    repository = registry.repository(name)
    return RepositorySummary(
        name,
        len(await repository.tags.list()),
        len(await repository.layers.list()),
        len(await repository.layers.upload_names()),
    )


@dataclass(frozen=True, slots=True)
class ListedManifest:
    """A tag and the manifest that it means, or one without a tag. No descriptor: the manifest is missing."""

    tag: str | None
    digest: Digest
    descriptor: Descriptor | None


async def list_manifests(repository: Repository, *, untagged: bool = False) -> list[ListedManifest]:
    """All tags in order, then, with `untagged`, the other manifests."""
    described = {descriptor.digest: descriptor for descriptor in await repository.manifests.descriptors()}
    tags = await repository.tags.list()
    listed = [ListedManifest(tag.name, tag.digest, described.get(tag.digest)) for tag in tags]
    if untagged:
        tagged = {tag.digest for tag in tags}
        listed += [ListedManifest(None, digest, described[digest]) for digest in described if digest not in tagged]
    return listed


# --- finding ---------------------------------------------------------------------------------------------------


async def find_repository(registry: Registry, name: str) -> Repository:
    """Raises `NotThere`."""
    try:
        listing = await registry.list(name)
    except RepositoryUnknown:
        raise NotThere(f"unknown repository {name!r}{await _similar_repositories(registry, name)}") from None
    if not listing.is_repository:
        below = [f"{name}/{component}" for component in listing.components]
        raise NotThere(f"{name!r} is no repository, only the beginning of names{_there_is(below)}")
    return registry.repository(name)


async def find_name(repository: Repository, reference: Reference) -> LayerName:
    """What the reference means; where it has neither tag nor digest, the tag "latest". Raises `NotThere`."""
    if reference.digest is not None:
        return reference.digest
    tag = reference.tag or _DEFAULT_TAG
    try:
        return await repository.tags.get(tag)
    except TagUnknown as error:
        names = [each.name for each in await repository.tags.list()]
        similar = difflib.get_close_matches(tag, names, n=_SUGGESTIONS) or names
        raise NotThere(f"{error}{_there_is(similar)}") from error


async def find_manifest(repository: Repository, digest: LayerName) -> Manifest:
    """A manifest whose bytes match its digest. Raises `NotThere`, `ContentDamaged`."""
    if isinstance(digest, TarSumDigest):
        raise NotThere(f"{digest} can name a layer only, not a manifest")
    try:
        manifest = await repository.manifests.get(digest)
    except ManifestUnknownRevision as error:
        if await repository.layers.exists(digest):
            raise NotThere(f"{digest} is a layer of {repository.name!r}, not a manifest") from error
        raise NotThere(f"{error}{await _similar_digests(repository, digest)}") from error
    _check(digest, Digest.of(manifest.content, digest.algorithm), manifest.size)
    return manifest


async def _similar_repositories(registry: Registry, name: str) -> str:
    names: list[str] = []
    with trio.move_on_after(_LOOKING_SECONDS):
        async for each in registry.catalog():
            names.append(each)
            if len(names) >= _NAMES_LOOKED_AT:
                break
    return _there_is(difflib.get_close_matches(name, names, n=_SUGGESTIONS))


async def _similar_digests(repository: Repository, digest: LayerName) -> str:
    """Those that begin alike: the end was mistyped, or the manifest was replaced since a list was made."""
    manifests = [str(info.digest) for info in await repository.manifests.list()]
    return _there_is([each for each in manifests if each.startswith(str(digest)[:12])])


def _there_is(names: Sequence[str]) -> str:
    if not names:
        return ""
    more = ", …" if len(names) > _SUGGESTIONS else ""
    return f"; there is {', '.join(repr(name) for name in names[:_SUGGESTIONS])}{more}"


# --- bytes -----------------------------------------------------------------------------------------------------


async def stream(repository: Repository, name: LayerName) -> AsyncGenerator[bytes, None]:
    """The bytes of a manifest or layer, whichever there is, piece by piece.

    They are compared with the name on the way, which can be known at the end only: then it raises `ContentDamaged`.
    Raises `NotThere`.
    """
    verifier = Verifier(name)
    size = 0
    async with aclosing(_chunks(repository, name)) as chunks:
        async for chunk in chunks:
            yield chunk
            size += len(chunk)
            with _named(name, size):
                verifier.update(chunk)
    with _named(name, size):
        _check(name, verifier.finish(), size)


async def is_layer(repository: Repository, name: LayerName) -> bool:
    """Whether what `stream` gives is a layer: not text, as a manifest is."""
    is_manifest = isinstance(name, Digest) and await repository.manifests.exists(name)
    return not is_manifest and await repository.layers.exists(name)


async def _chunks(repository: Repository, name: LayerName) -> AsyncGenerator[bytes, None]:
    manifest = await _manifest_or_none(repository, name)
    if manifest is not None:
        yield manifest.content
        return
    async with await _open_layer(repository, name) as layer:
        while chunk := await layer.read(_CHUNK):
            yield chunk


async def _manifest_or_none(repository: Repository, name: LayerName) -> Manifest | None:
    if isinstance(name, Digest):
        with contextlib.suppress(ManifestUnknown, LinkInvalid):
            return await repository.manifests.get(name)
    return None


@contextlib.contextmanager
def _named(name: LayerName, size: int) -> Iterator[None]:
    """What is no tar archive is not what a TarSum names."""
    try:
        yield
    except InvalidTar as error:
        raise ContentDamaged(name, error, size) from error


async def _open_layer(repository: Repository, name: LayerName) -> Layer:
    try:
        return await repository.layers.fetch(name)
    except (LayerUnknown, LinkInvalid) as error:
        similar = await _similar_digests(repository, name)
        raise NotThere(f"no manifest and no layer {name} in repository {repository.name!r}{similar}") from error


def _check(expected: LayerName, actual: LayerName, size: int) -> None:
    if expected != actual:
        raise ContentDamaged(expected, actual, size)


# --- what a manifest says --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Part:
    """Something that a manifest refers to. `size` is its word, `stored_size` the truth; None where there is none."""

    kind: str
    digest: LayerName
    media_type: str
    size: int | None
    stored_size: int | None = None
    platform: str | None = None


@dataclass(frozen=True, slots=True)
class Image:
    """A manifest, with what it and its configuration say. Of an index: its manifests, and no configuration.

    `total_size` is in bytes: all that it refers to, and what the manifests of an index refer to, each once.
    """

    repository: str
    manifest: Manifest
    tags: tuple[str, ...]
    parts: tuple[Part, ...]
    total_size: int
    platform: str | None = None
    created: str | None = None
    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    environment: tuple[str, ...] = ()
    labels: dict[str, str] = field(default_factory=dict)

    @property
    def is_index(self) -> bool:
        """Whether it refers to other manifests and nothing else."""
        return self.manifest.media_type in _INDEXES


async def list_parts(repository: Repository, manifest: Manifest) -> list[Part]:
    """What a manifest refers to: config, then layers; or the manifests of an index. Raises `InvalidManifest`."""
    if is_index(manifest):
        return await _children(repository, manifest, manifest.parse().descriptors)

    async def find(part: Part) -> Part:
        info = await _layer_or_none(repository, part.digest)
        return replace(part, stored_size=info.blob.size if info else None)

    return await side_by_side(find, name_parts(manifest), at_once=repository.at_once)


def is_index(manifest: Manifest) -> bool:
    """Whether it refers to manifests. Raises `InvalidManifest`."""
    return manifest.parse().manifest.media_type in _INDEXES


def name_parts(manifest: Manifest) -> list[Part]:
    """The config and the layers of an image, wherever they are. Raises `InvalidManifest`."""
    parsed = manifest.parse()
    has_config = parsed.manifest.media_type not in _SCHEMA1
    kinds = ["layer"] * len(parsed.entries)
    if has_config:
        kinds[0] = "config"
    parts = [_part(kind, entry, has_size=has_config) for kind, entry in zip(kinds, parsed.entries, strict=True)]
    return [part for part in parts if part is not None]


def _part(kind: str, entry: Entry, *, has_size: bool) -> Part | None:
    """What an entry refers to; None if that can be nothing."""
    if isinstance(entry, Descriptor):
        return Part(kind, entry.digest, entry.media_type, entry.size if has_size else None)
    tarsum = tarsum_in(entry)
    return Part(kind, tarsum, SCHEMA1_LAYER, None) if tarsum is not None and not has_size else None


async def _children(repository: Repository, manifest: Manifest, children: Sequence[Descriptor]) -> list[Part]:
    platforms = platforms_in_index(manifest)
    found = await repository.manifests.stat_many([child.digest for child in children])
    return [
        Part(
            "manifest",
            child.digest,
            child.media_type,
            child.size,
            info.size if isinstance(info, ManifestInfo) else None,
            platforms.get(str(child.digest)),
        )
        for child, info in zip(children, found, strict=True)
    ]


async def describe(repository: Repository, manifest: Manifest) -> Image:
    """Everything that is to be said of a manifest. Raises `NotThere`, `ContentDamaged`, `InvalidManifest`."""
    parts = tuple(await list_parts(repository, manifest))
    tags = tuple(await repository.tags.lookup(manifest.digest))
    document = _config_of_schema1(manifest) if manifest.media_type in _SCHEMA1 else {}
    config = next((part for part in parts if part.kind == "config" and part.stored_size is not None), None)
    if config is not None:
        document = _object(await _read_config(repository, config.digest))
    settings = _dictionary(document.get("config"))
    return Image(
        repository.name,
        manifest,
        tags,
        parts,
        await _total_size(repository, parts),
        platform=_platform(document),
        created=_string(document.get("created")),
        entrypoint=_strings(settings.get("Entrypoint")),
        command=_strings(settings.get("Cmd")),
        environment=_strings(settings.get("Env")),
        labels=_string_map(settings.get("Labels")),
    )


async def _total_size(repository: Repository, parts: Sequence[Part]) -> int:
    sizes = {part.digest: part.stored_size or 0 if part.size is None else part.size for part in parts}
    for part in parts:
        if part.kind == "manifest" and isinstance(part.digest, Digest):
            with contextlib.suppress(ManifestUnknown, LinkInvalid, InvalidManifest, ManifestTooLarge):
                child = (await repository.manifests.get(part.digest)).parse()
                sizes |= {descriptor.digest: descriptor.size for descriptor in child.descriptors}
    return sum(sizes.values())


async def read_config(repository: Repository, manifest: Manifest) -> bytes:
    """The configuration of an image, as it is stored. Raises `NotThere`, `ContentDamaged`, `InvalidManifest`."""
    for part in await list_parts(repository, manifest):
        if part.kind == "config":
            return await _read_config(repository, part.digest)
    raise NotThere(f"{manifest.digest} is {manifest.media_type!r}, which has no configuration")


async def _read_config(repository: Repository, digest: LayerName) -> bytes:
    chunks: list[bytes] = []
    size = 0
    async with aclosing(stream(repository, digest)) as stored:
        async for chunk in stored:
            size += len(chunk)
            if size > _CONFIG_LIMIT:
                raise InvalidManifest(f"its configuration {digest} has more than {_CONFIG_LIMIT} bytes")
            chunks.append(chunk)
    return b"".join(chunks)


async def _layer_or_none(repository: Repository, digest: LayerName) -> LayerInfo | None:
    try:
        return await repository.layers.stat(digest)
    except (LayerUnknown, LinkInvalid):
        return None


async def platform_of_image(repository: Repository, manifest: Manifest, config: Digest | None) -> str | None:
    """The platform that an image says it is for: its `config`, unless that is missing, damaged or none at all."""
    if manifest.media_type in _SCHEMA1:
        return _platform(_config_of_schema1(manifest))
    if config is None:
        return None
    try:
        return _platform(_object(await _read_config(repository, config)))
    except LayerfsError:
        return None


def platforms_in_index(manifest: Manifest) -> dict[str, str]:
    """The platform that an index gives for each of its manifests, by digest."""
    children = _object(manifest.content).get("manifests")
    found = {}
    for child in children if isinstance(children, list) else ():
        fields = _dictionary(child)
        platform = _platform(_dictionary(fields.get("platform")))
        if platform is not None:
            found[str(fields.get("digest"))] = platform
    return found


def _config_of_schema1(manifest: Manifest) -> dict[str, object]:
    """The configuration of schema 1 is in the history of its newest layer, as a document in a string."""
    history = _object(manifest.content).get("history")
    newest = _dictionary(history[0]) if isinstance(history, list) and history else {}
    return _object((_string(newest.get("v1Compatibility")) or "").encode("utf-8", "surrogatepass"))


def _platform(fields: dict[str, object]) -> str | None:
    names = [_string(fields.get(name)) for name in ("os", "architecture", "variant")]
    return "/".join(name for name in names if name) or None


def _object(content: bytes) -> dict[str, object]:
    """The fields of a document; none if it is something else: artifacts have anything for a configuration."""
    try:
        return _dictionary(parse_json(content))
    except InvalidManifest:
        return {}


def _dictionary(value: object) -> dict[str, object]:
    return value if isinstance(value, dict) else {}


def _string(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _strings(value: object) -> tuple[str, ...]:
    items: Iterable[object] = value if isinstance(value, list) else ()
    return tuple(item for item in items if isinstance(item, str))


def _string_map(value: object) -> dict[str, str]:
    return {name: text for name, text in _dictionary(value).items() if isinstance(text, str)}
