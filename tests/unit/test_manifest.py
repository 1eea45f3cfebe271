"""Manifests as values: what they are taken for, what is refused, and what they need."""

from __future__ import annotations

import json
import re
import time
from typing import Any

import pytest
from harness import images
from harness.images import describe, docker_image, docker_list, encode, oci_image, oci_index, schema1
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from layerfs.digest import Digest
from layerfs.errors import (
    InvalidDigestFormat,
    InvalidDigestLength,
    InvalidManifest,
    LayerfsError,
    ManifestInvalidUrl,
    ManifestMissingUrl,
    ManifestNameInvalid,
    ManifestTooLarge,
    UnsupportedDigestAlgorithm,
)
from layerfs.manifest import (
    MANIFEST_LIMIT,
    UNKNOWN_TYPE,
    Descriptor,
    Manifest,
    UrlRules,
    guess_media_type,
    parse_manifest,
)

LAYERS = (b"first layer", b"second layer")
CHILDREN = (b"first child", b"second child")
EVERY_URL = UrlRules()


def digests(*contents: bytes) -> tuple[Digest, ...]:
    return tuple(Digest.parse(images.digest(content)) for content in contents)


def without(document: dict[str, Any], *fields: str) -> dict[str, Any]:
    return {name: value for name, value in document.items() if name not in fields}


KINDS = {
    images.OCI_IMAGE: oci_image(layers=LAYERS),
    images.OCI_INDEX: oci_index(CHILDREN),
    images.DOCKER_IMAGE: docker_image(layers=LAYERS),
    images.DOCKER_LIST: docker_list(CHILDREN),
    images.SCHEMA1: schema1(LAYERS),
}


# --- what it is taken for --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_the_kind_of_a_manifest(kind: str) -> None:
    """By schemaVersion and mediaType; schema 1 has no media type in it."""
    content = encode(KINDS[kind])
    assert guess_media_type(content) == kind
    assert parse_manifest(content).manifest == Manifest(Digest.of(content), kind, content)


@pytest.mark.parametrize(
    ("document", "kind"),
    [
        (without(oci_image(), "mediaType"), images.OCI_IMAGE),
        (without(oci_index(), "mediaType"), images.OCI_INDEX),
        (without(oci_image(manifests=None), "mediaType"), images.OCI_IMAGE),
        ({"schemaVersion": 2, "manifests": []}, images.OCI_INDEX),
        ({"schemaVersion": 2}, images.OCI_IMAGE),
        (oci_image(mediaType=None), images.OCI_IMAGE),
        (oci_index(mediaType=""), images.OCI_INDEX),
        (schema1(mediaType=images.OCI_IMAGE), images.SCHEMA1),
        (schema1(signatures=[{}]), images.SCHEMA1_SIGNED),
    ],
)
def test_a_manifest_that_does_not_say(document: dict[str, Any], kind: str) -> None:
    """Without a media type it is an index if it has `manifests`, else an image; schema 1 whatever it says."""
    assert guess_media_type(encode(document)) == kind


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (encode(oci_image(mediaType="application/vnd.example+json")), "application/vnd.example+json"),
        (encode(oci_image(mediaType="no media type")), UNKNOWN_TYPE),
        (encode(oci_image(mediaType="a/b\nc")), UNKNOWN_TYPE),
        (encode(oci_image(schemaVersion=3)), UNKNOWN_TYPE),
        (encode(without(oci_image(), "schemaVersion")), UNKNOWN_TYPE),
        (b"{no", UNKNOWN_TYPE),
        (b"", UNKNOWN_TYPE),
        (b"[]", UNKNOWN_TYPE),
        (bytes(range(256)), UNKNOWN_TYPE),
    ],
)
def test_what_no_registry_would_serve(content: bytes, kind: str) -> None:
    """Is what it says of itself, if that is a media type, or just bytes; reading it never fails."""
    assert guess_media_type(content) == kind
    assert Manifest.from_storage(Digest.of(content), content).media_type == kind


@pytest.mark.parametrize("given_type", [*KINDS, images.SCHEMA1_SIGNED, "", "application/json"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_media_type_that_is_expected(kind: str, given_type: str) -> None:
    """Only what it is will do; schema 1 goes by two names."""
    content = encode(KINDS[kind])
    if given_type == kind or (kind, given_type) == (images.SCHEMA1, images.SCHEMA1_SIGNED):
        assert parse_manifest(content, given_type).manifest.media_type == kind
    else:
        with pytest.raises(InvalidManifest, match="not '"):
            parse_manifest(content, given_type)


def test_a_descriptor_of_a_manifest() -> None:
    """Has its media type, digest and size."""
    content = encode(oci_image())
    manifest = parse_manifest(content).manifest
    assert manifest.descriptor == Descriptor(images.OCI_IMAGE, Digest.of(content), len(content))


# --- what is refused -----------------------------------------------------------------------------------------------


def with_layer(**fields: Any) -> dict[str, Any]:
    return oci_image() | {"layers": [describe(b"x", images.OCI_LAYER) | fields]}


def with_child(**fields: Any) -> dict[str, Any]:
    return oci_index() | {"manifests": [describe(b"x", images.OCI_IMAGE) | fields]}


MALFORMED: dict[str, bytes] = {
    "nothing": b"",
    "spaces": b"  \n ",
    "no JSON": b"{no",
    "cut short": encode(oci_image())[:-1],
    "trailing text": encode(oci_image()) + b"x",
    "two documents": encode(oci_image()) * 2,
    "byte order mark": b"\xef\xbb\xbf" + encode(oci_image()),
    "UTF-16": encode(oci_image()).decode().encode("utf-16"),
    "no UTF-8": encode(oci_image(annotations={"a": "?"})).replace(b"?", b"\xff"),
    "NUL": encode(oci_image()).replace(b"\n", b"\0"),
    "list": b"[]",
    "string": b'"x"',
    "null": b"null",
    "true": b"true",
    "number": b"2",
    "schemaVersion missing": encode(without(oci_image(), "schemaVersion")),
    "schemaVersion 0": encode(oci_image(schemaVersion=0)),
    "schemaVersion 3": encode(oci_image(schemaVersion=3)),
    "schemaVersion 2.0": encode(oci_image(schemaVersion=2.0)),
    "schemaVersion '2'": encode(oci_image(schemaVersion="2")),
    "schemaVersion true": encode(oci_image(schemaVersion=True)),
    "schemaVersion -1": encode(oci_image(schemaVersion=-1)),
    "mediaType unknown": encode(oci_image(mediaType="application/vnd.example+json")),
    "mediaType number": encode(oci_image(mediaType=2)),
    "mediaType surrogate": encode(oci_image(mediaType="a/\ud800")),
    "image with manifests": encode(oci_image(manifests=[])),
    "image without type with manifests": encode(without(oci_image(manifests=[]), "mediaType")),
    "index with config": encode(oci_index(config={})),
    "index with layers": encode(oci_index(layers=[])),
    "list with config": encode(docker_list(config={})),
    "list with layers": encode(docker_list(layers=[])),
    "config string": encode(oci_image() | {"config": "x"}),
    "config list": encode(oci_image() | {"config": []}),
    "layers object": encode(oci_image() | {"layers": {}}),
    "layers string": encode(docker_image() | {"layers": "x"}),
    "layer number": encode(docker_image() | {"layers": [1]}),
    "manifests object": encode(oci_index(manifests={})),
    "child string": encode(oci_index(manifests=["x"])),
    "digest number": encode(with_layer(digest=1)),
    "digest of a child list": encode(with_child(digest=[])),
    "size string": encode(with_layer(size="1")),
    "size fraction": encode(with_layer(size=1.5)),
    "size exponent": encode(with_layer(size=1)).replace(b'"size": 1', b'"size": 1e3'),
    "size true": encode(with_layer(size=True)),
    "size of 65 bits": encode(with_layer(size=2**63)),
    "size of 5000 digits": encode(with_layer(size=1)).replace(b'"size": 1', b'"size": ' + b"9" * 5000),
    "size NaN": encode(with_layer(size=float("nan"))),
    "size Infinity": encode(with_layer(size=float("inf"))),
    "unknown field NaN": encode(oci_image(x=float("nan"))),
    "urls string": encode(with_layer(urls="http://x")),
    "urls of numbers": encode(with_layer(urls=[1])),
    "annotations list": encode(oci_image(annotations=[])),
    "annotations of numbers": encode(oci_image(annotations={"a": 1})),
    "annotations of a layer": encode(with_layer(annotations={"a": {}})),
    "annotations of an index": encode(oci_index(annotations="x")),
    "artifactType number": encode(with_child(artifactType=1)),
    "data no base64": encode(with_child(data="*")),
    "data number": encode(with_child(data=1)),
    "platform string": encode(with_child(platform="linux")),
    "architecture number": encode(with_child(platform={"architecture": 1})),
    "os.features string": encode(with_child(platform={"os.features": "x"})),
    "features of numbers": encode(with_child(platform={"features": [1]})),
    "field twice": encode(oci_image()).replace(b'"layers"', b'"config": {}, "layers"'),
    "field of a layer twice": encode(with_layer()).replace(b'"size"', b'"digest": "", "size"'),
    "unknown field twice": encode(oci_image(x=1)).replace(b'"x"', b'"x": 1, "x"'),
    "Layers": encode(without(oci_image(), "layers") | {"Layers": []}),
    "layers and LAYERS": encode(oci_image(LAYERS=[])),
    "long s": encode(oci_image() | {"layer\u017f": []}),
    "Digest": encode(with_layer(Digest=images.digest(b"other"))),
    "Manifests": encode(oci_image(Manifests=[])),
    "deep": b"[" * 100 + b"]" * 100,
    "deep in an unknown field": encode(oci_image(x=1)).replace(b'"x": 1', b'"x": ' + b"[" * 65 + b"]" * 65),
    "history object": encode(schema1(history={})),
    "v1Compatibility object": encode(schema1(history=[{"v1Compatibility": {}}])),
    "fsLayers of strings": encode(schema1(fsLayers=["x"])),
    "blobSum number": encode(schema1(fsLayers=[{"blobSum": 1}])),
    "name number": encode(schema1(name=1)),
    "architecture of schema 1": encode(schema1(architecture=1)),
    "FSLayers": encode(schema1(FSLayers=[])),
    "signatures empty": encode(schema1(signatures=[])),
    "signatures string": encode(schema1(signatures="x")),
    "signatures of nothing": encode(schema1(signatures=[{}])),
}


@pytest.mark.parametrize("content", MALFORMED.values(), ids=MALFORMED)
def test_what_is_no_manifest(content: bytes) -> None:
    """Is refused with a reason that is one printable line."""
    with pytest.raises(InvalidManifest) as caught:
        parse_manifest(content)
    assert str(caught.value).startswith("invalid manifest: ")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "document",
    [
        oci_image(subject=describe(b"gone", images.OCI_IMAGE), artifactType="application/vnd.example"),
        oci_image(x={"y": [None, 1.5, True, "z"]}),
        oci_image() | {"layers": None},
        without(oci_image(), "layers"),
        with_layer(size=-1),
        with_layer(size=2**63 - 1),
        with_layer(annotations=None, urls=None, platform=None, data=None),
        with_child(data="e30=", artifactType="a/b", annotations={"a": "b", "c": None}),
        with_child(platform={"architecture": "arm", "os": "linux", "variant": "v7", "os.features": ["a"]}),
        oci_image(x=1) | {"annotations": {"Layers": "x", "config": "y"}},
        schema1(history=None, fsLayers=None),
    ],
    ids=str,
)
def test_what_registries_take(document: dict[str, Any]) -> None:
    """Unknown fields, nothing where something could be, and any size are no reason to refuse a manifest."""
    assert parse_manifest(encode(document)).references().errors in ((), parse_manifest(encode(document)).problems)


def test_the_largest_manifest() -> None:
    """4 MiB are taken, one byte more is not, and not even looked at."""
    content = encode(oci_image(x="?"))
    content = content.replace(b"?", b"x" * (MANIFEST_LIMIT - len(content) + 1))
    assert parse_manifest(content).manifest.size == MANIFEST_LIMIT
    with pytest.raises(ManifestTooLarge):
        parse_manifest(content + b" ")
    with pytest.raises(ManifestTooLarge):
        parse_manifest(b"x" * (MANIFEST_LIMIT + 1))


def test_nesting_up_to_the_limit() -> None:
    """64 levels are taken, with the outermost object."""
    nested: Any = []
    for _ in range(62):
        nested = [nested]
    assert parse_manifest(encode(oci_image(x=nested)))
    with pytest.raises(InvalidManifest, match="nested"):
        parse_manifest(encode(oci_image(x=[nested])))


_FULL = MANIFEST_LIMIT
HOSTILE = {
    "brackets": b"[" * _FULL,
    "objects in objects": b'{"a":' * (_FULL // 5),
    "empty objects": b"[" + b"{}," * (_FULL // 3 - 1) + b"{}]",
    "empty lists": b"[" + b"[]," * (_FULL // 3 - 1) + b"[]]",
    "numbers": b"[" + b"1," * (_FULL // 2 - 2) + b"1]",
    "fields": ("{" + ",".join(f'"{number:x}":1' for number in range(49_000)) + "}").encode(),
    "objects of one field": b"[" + b'{"a":1},' * 49_000 + b"{}]",
    "fractions": b"[" + b"1.555555555555555555555555555555e300," * 49_000 + b"1]",
    "one number": b"9" * _FULL,
    "one fraction": b"0." + b"9" * (_FULL - 2),
    "one string": b'"' + b"x" * (_FULL - 2) + b'"',
    "one string of escapes": b'"' + b"\\ud800" * ((_FULL - 2) // 6) + b'"',
    "quotes": b'"' * _FULL,
    "backslashes": b'"' + b"\\" * (_FULL - 1),
    "spaces": b" " * _FULL,
    "NUL": bytes(_FULL),
    "no UTF-8": b"\xff" * _FULL,
    "long base64": encode(schema1(signatures=[{"header": {}, "protected": "A" * (_FULL - 1000)}])),
    "many signatures": encode(schema1(signatures=[{}] * 40_000)),
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_hostile_content_is_refused_quickly(content: bytes) -> None:
    """Within 100 ms of computing, on a machine that has nothing else to do; three times as much is allowed here."""
    started = time.process_time()
    with pytest.raises(InvalidManifest):
        parse_manifest(content)
    assert time.process_time() - started < 0.3


# --- what it needs ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [images.OCI_IMAGE, images.DOCKER_IMAGE])
def test_what_an_image_needs(kind: str) -> None:
    """Its config, then its layers, as blobs."""
    parsed = parse_manifest(encode(KINDS[kind]))
    assert parsed.references().blobs == digests(b"{}", *LAYERS)
    assert (parsed.references().manifests, parsed.references().errors) == ((), ())
    assert [entry.digest for entry in parsed.descriptors] == [*digests(b"{}", *LAYERS)]
    assert [entry.size for entry in parsed.descriptors] == [2, len(LAYERS[0]), len(LAYERS[1])]


@pytest.mark.parametrize("kind", [images.OCI_INDEX, images.DOCKER_LIST])
def test_what_an_index_needs(kind: str) -> None:
    """Its children, as manifests, whatever their media type."""
    document = KINDS[kind]
    document = document | {"manifests": [*document["manifests"], describe(b"third", "text/plain")]}
    references = parse_manifest(encode(document)).references()
    assert references.manifests == digests(*CHILDREN, b"third")
    assert (references.blobs, references.errors) == ((), ())


def test_what_schema_1_needs() -> None:
    """Every layer."""
    assert parse_manifest(encode(schema1(LAYERS))).references().blobs == digests(*LAYERS)


@pytest.mark.parametrize("document", [oci_index(), docker_list(), without(oci_index(), "mediaType")])
def test_an_empty_index(document: dict[str, Any]) -> None:
    """Needs nothing."""
    references = parse_manifest(encode(document)).references()
    assert (references.blobs, references.manifests, references.errors) == ((), (), ())


def test_an_index_of_an_index() -> None:
    """Needs the inner one, not what that needs."""
    inner = encode(oci_index(CHILDREN))
    outer = oci_index() | {"manifests": [describe(inner, images.OCI_INDEX)]}
    assert parse_manifest(encode(outer)).references().manifests == digests(inner)


def test_what_is_needed_twice_is_named_once() -> None:
    """Images often have the same empty layer many times."""
    assert parse_manifest(encode(oci_image(b"x", [b"x", b"y", b"x"]))).references().blobs == digests(b"x", b"y")


def test_the_subject_is_not_needed() -> None:
    """An artifact may be stored before, or without, what it is about."""
    document = oci_image(subject=describe(b"gone", images.OCI_IMAGE))
    assert parse_manifest(encode(document)).references().blobs == digests(b"{}")


def test_a_layer_that_is_an_image() -> None:
    """Is needed as a blob all the same."""
    document = oci_image() | {"layers": [describe(b"child", images.OCI_IMAGE)]}
    assert parse_manifest(encode(document)).references().blobs == digests(b"{}", b"child")


def test_a_layer_by_another_algorithm() -> None:
    """Is needed by that digest."""
    alias = images.digest(b"x", "sha512")
    assert str(parse_manifest(encode(with_layer(digest=alias))).references().blobs[1]) == alias


@pytest.mark.parametrize(
    ("digest", "error"),
    [
        ("", InvalidDigestFormat),
        ("sha256", InvalidDigestFormat),
        ("sha256:" + "A" * 64, InvalidDigestFormat),
        ("sha256:" + "a" * 63, InvalidDigestLength),
        ("md5:" + "a" * 32, UnsupportedDigestAlgorithm),
        ("sha256:../../../etc/passwd", InvalidDigestFormat),
        ("\ud800\n", InvalidDigestFormat),
    ],
)
@pytest.mark.parametrize("kind", ["layer", "child", "config", "schema 1"])
def test_a_digest_that_is_none(kind: str, digest: str, error: type[LayerfsError]) -> None:
    """Is an error of its own, beside what else there is to say; reading the manifest is possible."""
    document = {
        "layer": with_layer(digest=digest),
        "child": with_child(digest=digest),
        "config": oci_image() | {"config": {"digest": digest}},
        "schema 1": schema1([b"x"], fsLayers=[{"blobSum": digest}]),
    }[kind]
    parsed = parse_manifest(encode(document))
    assert [type(found) for found in parsed.references().errors] == [error]
    assert len(parsed.descriptors) == (1 if kind == "layer" else 0)


@pytest.mark.parametrize(
    "document", [without(oci_image(), "config"), oci_image() | {"config": None}, oci_image() | {"config": {}}]
)
def test_an_image_without_a_config(document: dict[str, Any]) -> None:
    """Has a config without a digest, as Go reads it."""
    assert [type(error) for error in parse_manifest(encode(document)).references().errors] == [InvalidDigestFormat]


def test_schema_1_that_is_not_consistent() -> None:
    """The name must be one, the tag may be missing, and every layer must have its history: all is told at once."""
    document = schema1([b"x"], name="Not/a name", tag="-x", history=[])
    errors = parse_manifest(encode(document)).references().errors
    assert [type(error) for error in errors] == [ManifestNameInvalid, ManifestNameInvalid, InvalidManifest]
    assert parse_manifest(encode(schema1([b"x"], tag=""))).references().errors == ()
    assert len(parse_manifest(encode(schema1([b"x"], name=""))).references().errors) == 1


# --- urls --------------------------------------------------------------------------------------------------------

GOOD, OTHER = "https://example.com/layer.tar", "http://example.org/x?y=z"
BAD = {
    "none is allowed": "ftp://example.com/x",
    "file": "file:///local/file",
    "fragment": "https://example.com/x#y",
    "empty": "",
    "path": "/x/y",
    "newline": "https://example.com/\nx",
    "space": "https://example.com/ x",
    "brackets": "https://[x/y",
}


def layer_with(media_type: str, *urls: str, docker: bool = False) -> Manifest:
    document = docker_image() if docker else oci_image()
    layer = describe(b"x", media_type) | ({"urls": list(urls)} if urls else {})
    return parse_manifest(encode(document | {"layers": [layer]})).manifest


NEEDED, NOT_NEEDED = digests(b"{}", b"x"), digests(b"{}")


@pytest.mark.parametrize(
    ("media_type", "urls", "blobs"),
    [
        (images.OCI_LAYER, [], NEEDED),
        (images.OCI_LAYER, [GOOD], NEEDED),
        (images.OCI_LAYER_TAR, [GOOD, OTHER], NEEDED),
        (images.OCI_FOREIGN, [], NEEDED),
        (images.OCI_FOREIGN, [GOOD], NOT_NEEDED),
        (images.OCI_FOREIGN, [GOOD, OTHER], NOT_NEEDED),
        (images.OCI_LAYER_ZSTD, ["file:///nobody/looks"], NEEDED),
        (images.OCI_CONFIG, ["file:///nobody/looks"], NEEDED),
    ],
)
def test_oci_layers_with_urls(media_type: str, urls: list[str], blobs: tuple[Digest, ...]) -> None:
    """Only one that may not be distributed, and that is to be had elsewhere, needs no blob."""
    references = layer_with(media_type, *urls).references(EVERY_URL)
    assert (references.blobs, references.errors) == (blobs, ())


@pytest.mark.parametrize(
    ("media_type", "urls", "blobs"),
    [
        (images.DOCKER_LAYER, [], NEEDED),
        (images.DOCKER_LAYER, [GOOD], NEEDED),
        (images.DOCKER_LAYER, ["file:///nobody/looks"], NEEDED),
        (images.DOCKER_FOREIGN, [GOOD], NOT_NEEDED),
        (images.DOCKER_FOREIGN, [GOOD, OTHER], NOT_NEEDED),
    ],
)
def test_docker_layers_with_urls(media_type: str, urls: list[str], blobs: tuple[Digest, ...]) -> None:
    """A foreign layer needs no blob; any other does, as 3.x has it (2.8 lets all with urls go without)."""
    references = layer_with(media_type, *urls, docker=True).references(EVERY_URL)
    assert (references.blobs, references.errors) == (blobs, ())


def test_a_foreign_layer_without_urls() -> None:
    """Docker's kind is nowhere to be had then: an error that names the layer."""
    (error,) = layer_with(images.DOCKER_FOREIGN, docker=True).references(EVERY_URL).errors
    assert isinstance(error, ManifestMissingUrl)
    assert error.digest == Digest.of(b"x")


@pytest.mark.parametrize("url", BAD.values(), ids=BAD)
@pytest.mark.parametrize("before", [[], [GOOD]])
@pytest.mark.parametrize(
    ("media_type", "docker"), [(images.OCI_LAYER, False), (images.OCI_FOREIGN, False), (images.DOCKER_FOREIGN, True)]
)
def test_urls_that_are_none(media_type: str, docker: bool, before: list[str], url: str) -> None:
    """One bad url is enough, even if every url is allowed; the error has the layer and the url."""
    (error,) = layer_with(media_type, *before, url, docker=docker).references(EVERY_URL).errors
    assert isinstance(error, ManifestInvalidUrl)
    assert (error.digest, error.url) == (Digest.of(b"x"), url)
    assert str(error).isprintable()


@pytest.mark.parametrize(
    ("rules", "allowed"),
    [
        (UrlRules(), True),
        (UrlRules(allow=re.compile(r"^https://example\.com/")), True),
        (UrlRules(allow=re.compile(r"example")), True),
        (UrlRules(allow=re.compile(r"^https://example\.org/")), False),
        (UrlRules(deny=re.compile(r"^https://example\.com/")), False),
        (UrlRules(deny=re.compile(r"^https://example\.org/")), True),
        (UrlRules(allow=re.compile(r"example"), deny=re.compile(r"\.tar$")), False),
    ],
)
def test_rules_for_urls(rules: UrlRules, allowed: bool) -> None:
    """What is allowed and not denied is good."""
    assert (layer_with(images.OCI_FOREIGN, GOOD).references(rules).errors == ()) == allowed


@pytest.mark.parametrize("url", [GOOD, "http://x", "", "https://example.com/x\n"])
def test_no_url_is_allowed_by_default(url: str) -> None:
    """As a registry that nobody has configured."""
    (error,) = layer_with(images.OCI_FOREIGN, url).references().errors
    assert isinstance(error, ManifestInvalidUrl)


# --- whatever it is ------------------------------------------------------------------------------------------------

FIELDS = """
    schemaVersion mediaType config layers manifests annotations digest size urls platform data name tag fsLayers history
    blobSum v1Compatibility signatures header protected signature jwk alg x5c kty Layers architecture
"""
NAMES = st.sampled_from(FIELDS.split())
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(),
    st.sampled_from([1, 2, images.digest(b"x"), GOOD, "e30", *KINDS]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner), st.dictionaries(st.one_of(NAMES, st.text()), inner)),
    max_leaves=20,
)


#: How long an example takes says nothing on a machine that others use.
PATIENT = settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)


def judge(content: bytes) -> None:
    """All that is ever done with a manifest; any error but ours fails the test."""
    assert guess_media_type(content)
    try:
        parsed = parse_manifest(content)
        parsed.references()
        parsed.verify_signatures()
    except LayerfsError as error:
        assert str(error).isprintable()


@PATIENT
@given(st.binary())
def test_any_bytes(content: bytes) -> None:
    """Are a manifest, or are refused by an error of ours."""
    judge(content)


@PATIENT
@given(st.dictionaries(NAMES, VALUES), st.sampled_from([1, 2, 2.0, None]))
def test_any_json(document: dict[str, Any], version: object) -> None:
    """The same for documents that have something of a manifest."""
    judge(json.dumps(document | {"schemaVersion": version}).encode())


@PATIENT
@given(st.sampled_from([*KINDS.values()]), st.data())
def test_a_manifest_with_anything_in_it(document: dict[str, Any], data: st.DataObject) -> None:
    """The same for a good manifest of which one value, anywhere, is replaced."""
    document = json.loads(json.dumps(document))
    place: Any = document
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        if not keys:
            break
        key = data.draw(st.sampled_from(keys))
        if isinstance(place[key], (dict, list)) and data.draw(st.booleans()):
            place = place[key]
        else:
            place[key] = data.draw(VALUES)
            break
    judge(json.dumps(document).encode())
