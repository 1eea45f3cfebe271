"""Manifests as values: what media type some bytes are, whether they are well-formed, what they refer to. No I/O.

The kinds are those of the OCI image-spec and of Docker, and the rules for each are the registry's (distribution's
`manifest/` and the handlers in `registry/storage/`); where its two generations differ, the stricter one is taken, so
that both can serve what is stored here. Sizes in descriptors are somebody's word: nothing is ever decided by them.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final, Protocol, TypeAlias
from urllib.parse import urlsplit

from layerfs.digest import Digest
from layerfs.errors import (
    InvalidDigest,
    InvalidManifest,
    InvalidName,
    LayerfsError,
    ManifestInvalidUrl,
    ManifestMissingUrl,
    ManifestNameInvalid,
    ManifestTooLarge,
    ManifestUnverified,
)
from layerfs.jws import SIGNATURES, SignedJson
from layerfs.layername import parse_layer_name_or_none
from layerfs.names import check_stored_repository_name, check_tag
from layerfs.strictjson import JsonObject, parse_json
from layerfs.tarsum import TarSumDigest

#: Bytes. Registries take no larger manifest, and read none.
MANIFEST_LIMIT: Final = 4 << 20

OCI_IMAGE: Final = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX: Final = "application/vnd.oci.image.index.v1+json"
DOCKER_IMAGE: Final = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST: Final = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_SCHEMA1: Final = "application/vnd.docker.distribution.manifest.v1+json"
DOCKER_SCHEMA1_SIGNED: Final = "application/vnd.docker.distribution.manifest.v1+prettyjws"

#: What is said of content that does not say itself what it is.
UNKNOWN_TYPE: Final = "application/octet-stream"

#: A layer that is had from elsewhere, Docker's way; and the kinds of OCI layers whose urls are looked at.
_DOCKER_FOREIGN: Final = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
_OCI_LAYERS: Final = frozenset(
    {"application/vnd.oci.image.layer.v1.tar", "application/vnd.oci.image.layer.v1.tar+gzip"}
)
_OCI_FOREIGN: Final = frozenset(
    {
        "application/vnd.oci.image.layer.nondistributable.v1.tar",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
    }
)
#: What distribution calls a layer of schema 1, which has no media type there.
SCHEMA1_LAYER: Final = "application/vnd.docker.container.image.rootfs.diff+x-gtar"

_SCHEMA2_FIELDS: Final = frozenset({"schemaVersion", "mediaType", "config", "layers", "manifests", "annotations"})
_SCHEMA1_FIELDS: Final = frozenset(
    {"schemaVersion", "mediaType", "name", "tag", "architecture", "fsLayers", "history", SIGNATURES}
)
_DESCRIPTOR_FIELDS: Final = frozenset(
    {"mediaType", "digest", "size", "urls", "annotations", "data", "platform", "artifactType"}
)
_PLATFORM_FIELDS: Final = frozenset({"architecture", "os", "os.version", "os.features", "variant", "features"})

_MEDIA_TYPE = re.compile(r"[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}/[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}")


@dataclass(frozen=True, slots=True)
class Descriptor:
    """What one document says of another: the image-spec's descriptor. `size` (bytes) and `media_type` are claims."""

    media_type: str
    digest: Digest
    size: int
    urls: tuple[str, ...] = ()


class Pattern(Protocol):
    """A compiled regular expression, of whichever library."""

    def search(self, text: str, /) -> object:
        """Something true if it is found in the text."""


@dataclass(frozen=True, slots=True)
class UrlRules:
    """Which urls layers may have: all that `allow` finds something in, but none that `deny` does."""

    allow: Pattern | None = None
    deny: Pattern | None = None

    def check(self, layer: Descriptor, url: str) -> None:
        """Raises `ManifestInvalidUrl`."""
        try:
            parts = urlsplit(url)
        except ValueError as error:
            raise ManifestInvalidUrl(layer.digest, url, str(error)) from None
        # `urlsplit` would silently take control characters out.
        if any(character <= " " or character == "\x7f" for character in url):
            raise ManifestInvalidUrl(layer.digest, url, "it has spaces or control characters")
        if parts.scheme not in ("http", "https"):
            raise ManifestInvalidUrl(layer.digest, url, "only http and https are allowed")
        if parts.fragment:
            raise ManifestInvalidUrl(layer.digest, url, "it has a fragment")
        if (self.allow and not self.allow.search(url)) or (self.deny and self.deny.search(url)):
            raise ManifestInvalidUrl(layer.digest, url, "this registry does not allow it")


#: A registry's rules unless it is configured otherwise: no url at all.
NO_URLS: Final = UrlRules(allow=re.compile(r"(?!)"))


@dataclass(frozen=True, slots=True)
class References:
    """What must be in the repository of a manifest: layers and configs, other manifests; each once, in order.

    `errors` is what cannot be anywhere: digests that are none, urls that are not allowed.
    """

    blobs: tuple[Digest, ...]
    manifests: tuple[Digest, ...]
    errors: tuple[LayerfsError, ...]


@dataclass(frozen=True, slots=True)
class Manifest:
    """The bytes of a manifest, exactly as stored, by their digest. What they say may be anything: see `parse`."""

    digest: Digest
    media_type: str
    content: bytes = field(repr=False)

    @classmethod
    def from_storage(cls, digest: Digest, content: bytes) -> Manifest:
        """What was found in storage, with its media type as a registry guesses it. Never fails."""
        return cls(digest, guess_media_type(content), content)

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.content)

    @property
    def descriptor(self) -> Descriptor:
        """How an index would refer to this manifest."""
        return Descriptor(self.media_type, self.digest, self.size)

    def parse(self) -> ParsedManifest:
        """What it says. Raises `InvalidManifest`."""
        return parse_manifest(self.content)

    def references(self, urls: UrlRules = NO_URLS) -> References:
        """What must be in its repository. Raises `InvalidManifest`."""
        return self.parse().references(urls)


@dataclass(frozen=True, slots=True)
class ParsedManifest:
    """A well-formed manifest.

    Of a signed schema 1 manifest, `manifest` is the payload: registries store it, and name it, without signatures.
    `problems` is what schema 1 alone can have: names that are none, and layers without history.
    """

    manifest: Manifest
    entries: tuple[Entry, ...]
    signed: SignedJson | None = None
    problems: tuple[LayerfsError, ...] = ()

    @property
    def descriptors(self) -> tuple[Descriptor, ...]:
        """All that it refers to: config, then layers; or the manifests of an index; but for digests that are none."""
        return tuple(entry for entry in self.entries if isinstance(entry, Descriptor))

    def references(self, urls: UrlRules = NO_URLS) -> References:
        """What must be in its repository, by the registry's rules for this kind of manifest."""
        needs = _Needs(list(self.problems), urls)
        need = _RULES[self.manifest.media_type]
        for entry in self.entries:
            if isinstance(entry, Descriptor):
                need(needs, entry)
            else:
                needs.errors.append(entry)
        return References(tuple(needs.blobs), tuple(needs.manifests), tuple(needs.errors))

    def verify_signatures(self) -> None:
        """Raises `ManifestUnverified` for schema 1 without genuine signatures, `SignatureUnsupported`."""
        if self.signed is not None:
            self.signed.verify()
        elif self.manifest.media_type in (DOCKER_SCHEMA1, DOCKER_SCHEMA1_SIGNED):
            raise ManifestUnverified("it has no signatures")


#: A reference, or why it is none.
Entry: TypeAlias = Descriptor | InvalidDigest


def tarsum_in(entry: Entry) -> TarSumDigest | None:
    """The TarSum that a layer of schema 1 is named by, as images of 2015 do. No registry since 2.3 takes them."""
    if not isinstance(entry, InvalidDigest):
        return None
    name = parse_layer_name_or_none(entry.name)
    return name if isinstance(name, TarSumDigest) else None


def guess_media_type(content: bytes) -> str:
    """What a registry takes stored bytes for; for what it would refuse, what they say themselves. Never fails."""
    try:
        document = parse_json(content)
        return _kind_of(JsonObject(document, "the manifest", _SCHEMA2_FIELDS))
    except InvalidManifest:
        return UNKNOWN_TYPE


def parse_manifest(content: bytes, media_type: str | None = None) -> ParsedManifest:
    """The manifest in `content`, which must be of that media type if one is given.

    Raises `ManifestTooLarge` and `InvalidManifest`, and nothing else, whatever the content is.
    """
    if len(content) > MANIFEST_LIMIT:
        raise ManifestTooLarge(MANIFEST_LIMIT)
    value = parse_json(content)
    document = JsonObject(value, "the manifest", _SCHEMA2_FIELDS)
    kind = _kind_of(document)
    if kind not in _RULES:
        raise InvalidManifest(f"unknown media type {kind!r}")
    if media_type is not None and not _fits(kind, media_type):
        raise InvalidManifest(f"it is {kind!r}, not {media_type[:200]!r}")
    if kind in (DOCKER_SCHEMA1, DOCKER_SCHEMA1_SIGNED):
        return _parse_schema1(content, value)
    document.check_string_map("annotations")
    manifest = Manifest(Digest.of(content), kind, content)
    if kind in (OCI_INDEX, DOCKER_LIST):
        return ParsedManifest(manifest, _index_entries(document))
    return ParsedManifest(manifest, _image_entries(document, kind))


def _kind_of(document: JsonObject) -> str:
    """The media type by distribution's rules, or another that the document claims. Raises `InvalidManifest`."""
    version = document.integer("schemaVersion")
    if version == 1:
        return DOCKER_SCHEMA1_SIGNED if document.has(SIGNATURES) else DOCKER_SCHEMA1
    if version != 2:
        raise InvalidManifest(f"its schemaVersion is {version}")
    claimed = document.string("mediaType")
    if not claimed:
        return OCI_INDEX if document.has("manifests") else OCI_IMAGE
    if not _MEDIA_TYPE.fullmatch(claimed):
        raise InvalidManifest(f"{claimed[:200]!r} is no media type")
    return claimed


def _fits(kind: str, media_type: str) -> bool:
    """Schema 1 goes by two names, one of them with signatures; every other kind by one."""
    return kind == media_type or {kind, media_type} == {DOCKER_SCHEMA1, DOCKER_SCHEMA1_SIGNED}


def _image_entries(document: JsonObject, kind: str) -> tuple[Entry, ...]:
    # A document that is both, an image to one reader and an index to another, was CVE-2021-41190.
    if kind == OCI_IMAGE and document.has("manifests"):
        raise InvalidManifest("an image with 'manifests', as an index has")
    layers = [_entry(layer, f"layers[{number}]") for number, layer in enumerate(document.items("layers"))]
    return (_entry(document.value("config"), "config"), *layers)


def _index_entries(document: JsonObject) -> tuple[Entry, ...]:
    for name in ("config", "layers"):
        if document.has(name):
            raise InvalidManifest(f"an index with {name!r}, as an image has")
    children = enumerate(document.items("manifests"))
    return tuple(_entry(child, f"manifests[{number}]") for number, child in children)


def _entry(value: object, where: str) -> Entry:
    """A descriptor in a manifest. Every field that a registry reads must be of its type, or it could read none."""
    fields = JsonObject(value, where, _DESCRIPTOR_FIELDS)
    fields.check_string_map("annotations")
    fields.string("artifactType")
    if fields.has("platform"):
        _check_platform(fields.value("platform"), where)
    if fields.has("data"):
        _check_base64(fields.string("data"), where)
    media_type, size, urls = fields.string("mediaType"), fields.integer("size"), fields.strings("urls")
    try:
        return Descriptor(media_type, Digest.parse(fields.string("digest")), size, urls)
    except InvalidDigest as error:
        return error


def _check_platform(value: object, where: str) -> None:
    platform = JsonObject(value, f"the platform of {where}", _PLATFORM_FIELDS)
    for name in ("architecture", "os", "os.version", "variant"):
        platform.string(name)
    for name in ("os.features", "features"):
        platform.strings(name)


def _check_base64(text: str, where: str) -> None:
    try:
        base64.b64decode(text.replace("\n", "").replace("\r", "").encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError):
        raise InvalidManifest(f"'data' in {where} is no base64") from None


# --- schema 1 ------------------------------------------------------------------------------------------------------


def _parse_schema1(content: bytes, value: object) -> ParsedManifest:
    signed = None
    document = JsonObject(value, "the manifest", _SCHEMA1_FIELDS)
    kind = DOCKER_SCHEMA1
    if document.has(SIGNATURES):
        kind = DOCKER_SCHEMA1_SIGNED
        signed = SignedJson.split(content, document.value(SIGNATURES))
        # Only what is signed counts, whatever the document around it says.
        content = signed.payload
        document = JsonObject(parse_json(content), "the signed manifest", _SCHEMA1_FIELDS)
        if document.integer("schemaVersion") != 1 or document.has(SIGNATURES):
            raise InvalidManifest("what is signed is no manifest of schema 1")
    document.string("architecture")
    layers = [_schema1_layer(layer, f"fsLayers[{number}]") for number, layer in enumerate(document.items("fsLayers"))]
    history = document.items("history")
    for number, entry in enumerate(history):
        JsonObject(entry, f"history[{number}]", ("v1Compatibility",)).string("v1Compatibility")
    problems = [*_schema1_names(document)]
    if len(history) != len(layers):
        problems.append(InvalidManifest(f"{len(layers)} layers, but a history of {len(history)}"))
    return ParsedManifest(Manifest(Digest.of(content), kind, content), tuple(layers), signed, tuple(problems))


def _schema1_layer(value: object, where: str) -> Entry:
    try:
        return Descriptor(SCHEMA1_LAYER, Digest.parse(JsonObject(value, where, ("blobSum",)).string("blobSum")), 0)
    except InvalidDigest as error:
        return error


def _schema1_names(document: JsonObject) -> Iterable[LayerfsError]:
    """That they are those of the place where the manifest is stored is not asked: images are renamed."""
    for name, check in (("name", check_stored_repository_name), ("tag", check_tag)):
        text = document.string(name)
        if name == "tag" and not text:
            continue
        try:
            check(text)
        except InvalidName as error:
            yield ManifestNameInvalid(text[:200], error.reason)


# --- what must exist -------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Needs:
    """References in the making; the dictionaries are ordered sets."""

    errors: list[LayerfsError]
    urls: UrlRules
    blobs: dict[Digest, None] = field(default_factory=dict)
    manifests: dict[Digest, None] = field(default_factory=dict)

    def blob(self, entry: Descriptor) -> None:
        self.blobs[entry.digest] = None

    def manifest(self, entry: Descriptor) -> None:
        self.manifests[entry.digest] = None

    def docker_entry(self, entry: Descriptor) -> None:
        """A foreign layer must have urls, and no blob. (2.8 lets any layer with urls go without; 3.x does not.)"""
        if entry.media_type != _DOCKER_FOREIGN:
            self.blob(entry)
        elif not entry.urls:
            self.errors.append(ManifestMissingUrl(entry.digest))
        else:
            self.check_urls(entry)

    def oci_entry(self, entry: Descriptor) -> None:
        """One that may not be distributed needs no blob if it has urls. Those of other media types are ignored."""
        urls_count = entry.media_type in _OCI_LAYERS or entry.media_type in _OCI_FOREIGN
        if urls_count and not self.check_urls(entry):
            return
        if not entry.urls or entry.media_type not in _OCI_FOREIGN:
            self.blob(entry)

    def check_urls(self, entry: Descriptor) -> bool:
        """Whether all are allowed; the first that is not is an error."""
        try:
            for url in entry.urls:
                self.urls.check(entry, url)
        except ManifestInvalidUrl as error:
            self.errors.append(error)
            return False
        return True


_RULES: Final[dict[str, Callable[[_Needs, Descriptor], None]]] = {
    OCI_IMAGE: _Needs.oci_entry,
    OCI_INDEX: _Needs.manifest,
    DOCKER_IMAGE: _Needs.docker_entry,
    DOCKER_LIST: _Needs.manifest,
    DOCKER_SCHEMA1: _Needs.blob,
    DOCKER_SCHEMA1_SIGNED: _Needs.blob,
}
