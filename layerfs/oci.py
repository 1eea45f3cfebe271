"""An OCI image layout as values: what `oci-layout` and `index.json` say, and what a writer of an index meant. No I/O.

Clients know no registry here, only files: each reads the whole index, changes it, and writes all of it back, without
any lock. So what one has written is compared with what it had read, and only the difference counts (`merge`): what
others have pushed meanwhile was never in its hands, and is not removed because it is not in its copy.

The grammar of the files is image-spec's `image-layout.md` 1.0. A registry can hold less than that: manifests by sha256
only, and tags instead of free names; everything else in an index is refused rather than lost.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Self

from layerfs.digest import CANONICAL, Digest
from layerfs.errors import InvalidDigest, InvalidIndex, InvalidLayout, InvalidManifest, InvalidTag
from layerfs.manifest import (
    DOCKER_IMAGE,
    DOCKER_LIST,
    DOCKER_SCHEMA1,
    DOCKER_SCHEMA1_SIGNED,
    MANIFEST_LIMIT,
    OCI_IMAGE,
    OCI_INDEX,
    Descriptor,
)
from layerfs.names import check_tag
from layerfs.strictjson import JsonObject, parse_json

#: The file that makes a directory a layout, and the one that says what is in it.
LAYOUT_FILE: Final = "oci-layout"
INDEX_FILE: Final = "index.json"

#: The only version there is, and the file that says so.
_LAYOUT_VERSION: Final = "1.0.0"
LAYOUT_CONTENT: Final = b'{"imageLayoutVersion":"1.0.0"}'

#: Bytes of an `index.json` that is taken. A repository may have 50,000 tags; an entry has some 220 bytes as written
#: here, and 305 as crane writes it, indented. To parse that many takes half a second and 50 MB.
INDEX_LIMIT: Final = 16 << 20

#: Brackets and commas that an index may have: an entry has up to eight of either, as `INDEX_LIMIT` has room for 50,000.
_INDEX_SIZE_LIMIT: Final = 400_000

#: The annotation of an entry that gives the manifest its name.
REF_NAME: Final = "org.opencontainers.image.ref.name"

_LAYOUT_FIELDS: Final = frozenset({"imageLayoutVersion"})
_INDEX_FIELDS: Final = frozenset({"schemaVersion", "mediaType", "manifests", "config", "layers"})
_ENTRY_FIELDS: Final = frozenset({"mediaType", "digest", "size", "urls", "annotations"})

_MANIFEST_TYPES: Final = frozenset(
    {OCI_IMAGE, OCI_INDEX, DOCKER_IMAGE, DOCKER_LIST, DOCKER_SCHEMA1, DOCKER_SCHEMA1_SIGNED}
)

#: The beginning of a JSON object.
_OBJECT = re.compile(rb"[ \t\r\n]*\{")


# --- the files -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """A manifest that is in the layout, and the tag that it goes by, if any."""

    descriptor: Descriptor
    tag: str | None


def check_layout(content: bytes) -> None:
    """Raises `InvalidLayout` unless `content` is that of an `oci-layout` file of version 1.0.0."""
    try:
        layout = JsonObject(_parse(content), LAYOUT_FILE, _LAYOUT_FIELDS)
        version = layout.string("imageLayoutVersion")
    except InvalidManifest as error:
        raise InvalidLayout(error.reason) from None
    if not version:
        raise InvalidLayout(f'it has no "imageLayoutVersion"; expected {LAYOUT_CONTENT.decode()}')
    if version != _LAYOUT_VERSION:
        raise InvalidLayout(f"its version is {_shortened(version)}; only {_LAYOUT_VERSION} is known")


def render_index(entries: Sequence[IndexEntry]) -> bytes:
    """The `index.json` that lists these, in this order; of the same entries always the same bytes."""
    index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [_render(entry) for entry in entries]}
    return json.dumps(index, separators=(",", ":")).encode()


def parse_index(content: bytes) -> tuple[IndexEntry, ...]:
    """What an `index.json` lists, in its order; one manifest may be listed, and one tag be given, several times.

    Raises `InvalidIndex`. The caller sees to `INDEX_LIMIT`, and to a thread: 50,000 entries take half a second.
    """
    try:
        index = JsonObject(_parse(content), "the index", _INDEX_FIELDS)
        _check_kind(index)
        return tuple(_entry(value, f"manifests[{number}]") for number, value in enumerate(index.items("manifests")))
    except InvalidManifest as error:
        raise InvalidIndex(error.reason) from None


def _parse(content: bytes) -> object:
    value = parse_json(content, size_limit=_INDEX_SIZE_LIMIT)
    if value is None:
        # It would pass for an object without fields.
        raise InvalidManifest("it is null")
    return value


def _check_kind(index: JsonObject) -> None:
    """An image in the place of the index, or an empty object, must not pass for an index that lists nothing."""
    version = index.integer("schemaVersion")
    if version != 2:
        raise InvalidManifest(f"its schemaVersion is {version}, not 2")
    media_type = index.string("mediaType")
    if media_type not in ("", OCI_INDEX):
        raise InvalidManifest(f"its mediaType is {_shortened(media_type)}, not {OCI_INDEX!r}")
    for name in ("config", "layers"):
        if index.has(name):
            raise InvalidManifest(f"it has {name!r}, as an image has")


def _render(entry: IndexEntry) -> dict[str, object]:
    descriptor = entry.descriptor
    fields: dict[str, object] = {
        "mediaType": descriptor.media_type,
        "digest": str(descriptor.digest),
        "size": descriptor.size,
    }
    if descriptor.urls:
        fields["urls"] = descriptor.urls
    if entry.tag is not None:
        fields["annotations"] = {REF_NAME: entry.tag}
    return fields


def _entry(value: object, where: str) -> IndexEntry:
    fields = JsonObject(value, where, _ENTRY_FIELDS)
    try:
        digest = Digest.parse(fields.string("digest"))
    except InvalidDigest as error:
        raise InvalidManifest(f"{where}: {error}") from None
    if not digest.is_canonical:
        raise InvalidManifest(f"{where} is {digest}, but registries have manifests by {CANONICAL} only")
    descriptor = Descriptor(fields.string("mediaType"), digest, fields.integer("size"), fields.strings("urls"))
    return IndexEntry(descriptor, _tag(fields, where))


def _tag(entry: JsonObject, where: str) -> str | None:
    """None also for an empty name, which says no more than none in the Go of all clients."""
    entry.check_string_map("annotations")
    name = JsonObject(entry.value("annotations"), f"the annotations of {where}", (REF_NAME,)).string(REF_NAME)
    if not name:
        return None
    try:
        return check_tag(name)
    except InvalidTag as error:
        raise InvalidManifest(
            f"{where} is named {_shortened(name)} by {REF_NAME!r}, but a registry has tags only, like 'v1.0': "
            f"{error.reason}"
        ) from None


def _shortened(text: str) -> str:
    """`text` in quotes, escaped, and fit for a message."""
    return repr(text if len(text) <= 200 else text[:200] + "…")


# --- what a writer meant -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class IndexContent:
    """What an index comes to: what each tag means, and the manifests that are in it without a tag."""

    tags: Mapping[str, Digest]
    untagged: frozenset[Digest]

    @classmethod
    def from_entries(cls, entries: Iterable[IndexEntry]) -> Self:
        """Of two entries with one name the last counts, as crane appends; the other is there without a name."""
        tags: dict[str, Digest] = {}
        listed: set[Digest] = set()
        for entry in entries:
            listed.add(entry.descriptor.digest)
            if entry.tag is not None:
                tags[entry.tag] = entry.descriptor.digest
        return cls(MappingProxyType(tags), frozenset(listed.difference(tags.values())))

    @property
    def manifests(self) -> frozenset[Digest]:
        """All that are listed, with a tag or without."""
        return self.untagged.union(self.tags.values())


@dataclass(frozen=True, slots=True)
class Changes:
    """What a writer wants changed.

    `tags` are to be put, whatever they mean now. `untagged` are manifests to have, without a tag. `removed` are the
    tags to be removed, each with what it must still mean for that.
    """

    tags: dict[str, Digest]
    untagged: frozenset[Digest]
    removed: dict[str, Digest]

    def __bool__(self) -> bool:
        """Whether there is any."""
        return bool(self.tags or self.untagged or self.removed)


def merge(base: IndexContent, now: IndexContent, written: IndexContent) -> Changes:
    """What has to change `now`, because somebody who had read `base` has `written` this.

    Tags that the writer left as it had read them are not touched, whatever they mean now. One that it added or moved is
    put, though others may have moved it too: the last writer wins, as in a registry. One that it left out is removed,
    unless others have moved it; it makes no difference whether its manifest stays, without a name (as `oras untag`
    writes it) or not. A manifest that lost its name to another one (as containers/image moves a tag) is in both, and
    is neither new nor removed.
    """
    tags = {
        tag: digest for tag, digest in written.tags.items() if digest not in (base.tags.get(tag), now.tags.get(tag))
    }
    removed = {
        tag: digest for tag, digest in base.tags.items() if tag not in written.tags and now.tags.get(tag) == digest
    }
    return Changes(tags, written.untagged - base.manifests - now.manifests, removed)


# --- manifests among blobs -----------------------------------------------------------------------------------------


def looks_like_manifest(content: bytes) -> bool:
    """Whether a blob is to be kept as a manifest that an index may name. Never fails, and costs little for any other.

    A layout has manifests among its blobs, and nothing there says which they are. Configs of images, documents of
    signatures, SBOMs and attestations are JSON as well, but have no `schemaVersion`.
    """
    if len(content) > MANIFEST_LIMIT or not _OBJECT.match(content):
        return False
    try:
        document = parse_json(content)
    except InvalidManifest:
        return False
    if not isinstance(document, dict):
        return False
    version, media_type = document.get("schemaVersion"), document.get("mediaType")
    if isinstance(version, bool) or version not in (1, 2):
        return False
    if media_type:
        return isinstance(media_type, str) and media_type in _MANIFEST_TYPES
    return _is_schema1(document) if version == 1 else _is_index(document) or _is_image(document)


def _is_image(document: dict[str, object]) -> bool:
    layers = document.get("layers")
    return _is_descriptor(document.get("config")) and (layers is None or _are_descriptors(layers))


def _is_index(document: dict[str, object]) -> bool:
    return _are_descriptors(document.get("manifests"))


def _is_schema1(document: dict[str, object]) -> bool:
    return isinstance(document.get("fsLayers"), list) and isinstance(document.get("history"), list)


def _are_descriptors(value: object) -> bool:
    return isinstance(value, list) and all(_is_descriptor(one) for one in value)


def _is_descriptor(value: object) -> bool:
    return isinstance(value, dict) and isinstance(value.get("digest"), str)
