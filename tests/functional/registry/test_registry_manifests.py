"""Manifests: stored when every rule is kept, read as they are stored, and deleted with their tags."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import trio.testing
from harness import images
from harness.faulty_driver import Disk, Fault, FaultyDriver
from harness.fixture import faults
from harness.images import describe, docker_image, docker_list, encode, oci_image, oci_index, schema1
from harness.invariants import blob_path, link_path
from harness.stored_manifests import (
    NAME,
    REPOSITORIES,
    check_links,
    interrupt,
    put_layer,
    restore,
    revision_path,
    tag_paths,
)
from harness.walk import files_in

from layerfs.digest import Digest
from layerfs.driver.interface import StorageDriver
from layerfs.driver.local import LocalDriver
from layerfs.driver.memory import MemoryDriver
from layerfs.errors import (
    AccessDenied,
    BackendFailure,
    InvalidDigestFormat,
    InvalidManifest,
    InvalidRepositoryName,
    InvalidTag,
    LayerfsError,
    LinkMismatch,
    ManifestBlobUnknown,
    ManifestInvalidDigest,
    ManifestInvalidUrl,
    ManifestMissingUrl,
    ManifestNameInvalid,
    ManifestReferencesUnknown,
    ManifestTooLarge,
    ManifestUnknownRevision,
    ManifestUnverified,
    ManifestVerification,
    TagUnknown,
    UnsupportedDigestAlgorithm,
)
from layerfs.manifest import MANIFEST_LIMIT, Descriptor, UrlRules
from layerfs.registry import ManifestInfo, ManifestService, Registry, Repository, Tag

CONFIG, LAYER, OTHER_LAYER = b'{"config": true}', b"a layer", b"another layer"
KEY = images.ec_key()


@pytest.fixture
async def repository(registry: Registry) -> Repository:
    """A repository that has a config and two layers."""
    for content in (CONFIG, LAYER, OTHER_LAYER):
        await put_layer(registry.driver, content)
    return registry.repository(NAME)


@pytest.fixture
def manifests(repository: Repository) -> ManifestService:
    return repository.manifests


IMAGE = oci_image(CONFIG, [LAYER, OTHER_LAYER])
DOCKER_IMAGE = docker_image(CONFIG, [LAYER, OTHER_LAYER])
KINDS: dict[str, tuple[bytes, str]] = {
    "oci image": (encode(IMAGE), images.OCI_IMAGE),
    "oci image without type": (encode({k: v for k, v in IMAGE.items() if k != "mediaType"}), images.OCI_IMAGE),
    "oci artifact": (
        encode(IMAGE | {"subject": describe(b"not here", images.OCI_IMAGE), "artifactType": "a/b"}),
        images.OCI_IMAGE,
    ),
    "docker image": (encode(DOCKER_IMAGE), images.DOCKER_IMAGE),
    "oci index": (encode(oci_index([encode(IMAGE)])), images.OCI_INDEX),
    "docker list": (encode(docker_list([encode(DOCKER_IMAGE)])), images.DOCKER_LIST),
    "empty index": (encode(oci_index()), images.OCI_INDEX),
    "empty list": (encode(docker_list()), images.DOCKER_LIST),
    "index of an index": (
        encode(oci_index() | {"manifests": [describe(encode(oci_index()), images.OCI_INDEX)]}),
        images.OCI_INDEX,
    ),
    "no layers": (encode(oci_image(CONFIG)), images.OCI_IMAGE),
}


async def put_children(manifests: ManifestService) -> None:
    for child in (encode(IMAGE), encode(DOCKER_IMAGE), encode(oci_index())):
        await manifests.put(child)


# --- put and get -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
async def test_put_then_get(manifests: ManifestService, repository: Repository, kind: str) -> None:
    """By digest and by tag: the very bytes, with their digest and media type."""
    content, media_type = KINDS[kind]
    await put_children(manifests)
    descriptor = await manifests.put(content, tag="v1", media_type=media_type)
    assert descriptor == Descriptor(media_type, Digest.of(content), len(content))
    for manifest in (await manifests.get(descriptor.digest), await manifests.get_by_tag("v1")):
        assert (manifest.content, manifest.digest, manifest.media_type) == (content, descriptor.digest, media_type)
    assert await manifests.exists(descriptor.digest)
    assert (await manifests.stat(descriptor.digest)).size == len(content)
    assert await repository.tags.get("v1") == descriptor.digest


@pytest.mark.parametrize("layout", [{"indent": 3}, {"indent": None, "separators": (",", ":")}, {"indent": "\t"}])
@pytest.mark.parametrize("tail", [b"", b"\n", b" \r\n\t"])
async def test_bytes_are_stored_as_given(manifests: ManifestService, layout: dict[str, Any], tail: bytes) -> None:
    """Space, order of fields, escapes and what nobody knows are kept."""
    content = json.dumps(IMAGE | {"unknown": "ä\u2028"}, **layout).encode() + tail
    descriptor = await manifests.put(content)
    assert (await manifests.get(descriptor.digest)).content == content


async def test_what_is_stored(manifests: ManifestService, driver: StorageDriver) -> None:
    """A blob, a revision link, and the two links of a tag; nothing else."""
    before = await files_in(driver)
    content = encode(IMAGE)
    digest = images.digest(content)
    await manifests.put(content)
    untagged = before | {blob_path(digest): content, revision_path(digest): digest.encode()}
    assert await files_in(driver) == untagged
    await manifests.put(content, tag="v1")
    assert await files_in(driver) == untagged | dict.fromkeys(tag_paths("v1", digest), digest.encode())


async def test_the_order_of_storing(repository: Repository, watched: FaultyDriver) -> None:
    """Blob, revision link, tag: at every moment, what links lead to is there already.

    Of a new tag current comes first, so that it is there as a whole or not at all; of another one index comes first.
    """
    watched.arm(None)
    content = encode(IMAGE)
    await Registry(watched).repository(NAME).manifests.put(content, tag="v1")
    digest = images.digest(content)
    written = [line.removeprefix("put_content ") for line in watched.log if line.startswith("put_content ")]
    assert written == [blob_path(digest), revision_path(digest), *reversed(tag_paths("v1", digest))]
    watched.arm(None)
    moved = encode(oci_image(b"another config"))
    await put_layer(watched, b"another config")
    watched.arm(None)
    await Registry(watched).repository(NAME).manifests.put(moved, tag="v1")
    written = [line.removeprefix("put_content ") for line in watched.log if line.startswith("put_content ")]
    assert written[-2:] == tag_paths("v1", images.digest(moved))


async def test_putting_again_writes_the_bytes_once(repository: Repository, watched: FaultyDriver) -> None:
    """The blob that is there is compared, found good, and left alone."""
    manifests = Registry(watched).repository(NAME).manifests
    await manifests.put(encode(IMAGE))
    watched.arm(None)
    await manifests.put(encode(IMAGE))
    assert not [line for line in watched.log if line.startswith("put_content") and line.endswith("/data")]


@pytest.mark.parametrize("damage", [b"", b"short", b"x" * len(encode(IMAGE)), b"x" * 10_000_000])
async def test_putting_again_repairs(manifests: ManifestService, driver: StorageDriver, damage: bytes) -> None:
    """A stored copy of another size, or of other bytes, is replaced; a registry would leave it."""
    content = encode(IMAGE)
    digest = images.digest(content)
    await driver.put_content(blob_path(digest), damage)
    await manifests.put(content)
    assert (await manifests.get(Digest.parse(digest))).content == content


async def test_putting_makes_a_repository(registry: Registry, driver: StorageDriver) -> None:
    """One that registries of both generations find, even if a manifest needs no layer."""
    await registry.repository("new/one").manifests.put(encode(oci_index()))
    assert {entry.name for entry in await driver.list(f"{REPOSITORIES}/new/one")} >= {"_manifests"}
    if driver.capabilities.directories:
        assert {entry.name for entry in await driver.list(f"{REPOSITORIES}/new/one")} == {"_layers", "_manifests"}


async def test_putting_by_its_digest(manifests: ManifestService) -> None:
    """The right digest is good."""
    digest = Digest.of(encode(IMAGE))
    assert (await manifests.put(encode(IMAGE), digest=digest)).digest == digest


async def test_a_layer_by_another_algorithm(manifests: ManifestService, driver: StorageDriver) -> None:
    """Is found by its alias link."""
    await put_layer(driver, b"other", alias="sha512")
    layer = describe(b"other", images.OCI_LAYER) | {"digest": images.digest(b"other", "sha512")}
    await manifests.put(encode(oci_image(CONFIG) | {"layers": [layer]}))


async def test_a_foreign_layer(registry: Registry, driver: StorageDriver) -> None:
    """Needs no blob where its url is allowed."""
    await put_layer(driver, CONFIG)
    allowing = Registry(driver, urls=UrlRules(allow=re.compile(r"^https://example\.com/")))
    for make, kind in ((docker_image, images.DOCKER_FOREIGN), (oci_image, images.OCI_FOREIGN)):
        layer = describe(b"not here", kind, urls=["https://example.com/layer"])
        content = encode(make(CONFIG) | {"layers": [layer]})
        with pytest.raises(ManifestVerification):
            await registry.repository(NAME).manifests.put(content)
        await allowing.repository(NAME).manifests.put(content)


async def test_a_large_manifest(manifests: ManifestService) -> None:
    """Just below the limit; above it nothing is stored."""
    content = encode(IMAGE | {"annotations": {"x": "?"}})
    content = content.replace(b"?", b"x" * (MANIFEST_LIMIT - len(content) + 1))
    descriptor = await manifests.put(content)
    assert descriptor.size == MANIFEST_LIMIT
    assert (await manifests.get(descriptor.digest)).content == content
    with pytest.raises(ManifestTooLarge):
        await manifests.put(content + b" ")


async def test_many_layers(manifests: ManifestService, driver: StorageDriver) -> None:
    """Are looked up in batches: the number of requests does not depend on theirs."""
    layers = [bytes([number]) for number in range(200)]
    for layer in layers:
        await put_layer(driver, layer)
    watched = FaultyDriver(Disk(driver))
    await Registry(watched).repository(NAME).manifests.put(encode(oci_image(CONFIG, layers)))
    assert watched.calls < 15


# --- every rule broken once ------------------------------------------------------------------------------------------


def with_layer(base: dict[str, Any] = IMAGE, **fields: Any) -> bytes:
    return encode(base | {"layers": [describe(LAYER, images.OCI_LAYER) | fields]})


def unknown(*contents: bytes) -> list[LayerfsError]:
    return [ManifestBlobUnknown(Digest.of(content)) for content in contents]


GONE = b"not here"
GONE_LAYER = describe(GONE, images.OCI_LAYER)

#: What is put, and what it is refused with; in a list, the errors within a `ManifestVerification`.
BROKEN: dict[str, tuple[bytes, type[LayerfsError] | list[type[LayerfsError]]]] = {
    "no JSON": (b"{no", InvalidManifest),
    "empty": (b"", InvalidManifest),
    "too large": (b" " * (MANIFEST_LIMIT + 1), ManifestTooLarge),
    "schemaVersion": (encode(IMAGE | {"schemaVersion": 3}), InvalidManifest),
    "mediaType": (encode(IMAGE | {"mediaType": "application/vnd.example+json"}), InvalidManifest),
    "image with manifests": (encode(IMAGE | {"manifests": []}), InvalidManifest),
    "index with layers": (encode(oci_index() | {"layers": []}), InvalidManifest),
    "list with config": (encode(docker_list() | {"config": {}}), InvalidManifest),
    "config unknown": (encode(IMAGE | {"config": GONE_LAYER}), [ManifestBlobUnknown]),
    "layer unknown": (encode(IMAGE | {"layers": [GONE_LAYER]}), [ManifestBlobUnknown]),
    "layers unknown": (encode(oci_image(b"x", [b"y", LAYER, b"z"])), [ManifestBlobUnknown] * 3),
    "docker layer unknown": (encode(DOCKER_IMAGE | {"layers": [GONE_LAYER]}), [ManifestBlobUnknown]),
    "docker layer with urls unknown": (
        encode(DOCKER_IMAGE | {"layers": [GONE_LAYER | {"urls": ["https://example.com/x"]}]}),
        [ManifestBlobUnknown],
    ),
    "child unknown": (encode(oci_index([GONE])), [ManifestBlobUnknown]),
    "child of a list unknown": (encode(docker_list([GONE])), [ManifestBlobUnknown]),
    "child is only a layer": (encode(oci_index([LAYER])), [ManifestBlobUnknown]),
    "config without digest": (encode(IMAGE | {"config": {}}), [InvalidDigestFormat]),
    "layer of a bad digest": (with_layer(digest="sha256:"), [InvalidDigestFormat]),
    "bad digest and unknown layer": (
        encode(IMAGE | {"layers": [GONE_LAYER, GONE_LAYER | {"digest": "x"}]}),
        [InvalidDigestFormat, ManifestBlobUnknown],
    ),
    "url": (with_layer(urls=["https://example.com/x"]), [ManifestInvalidUrl]),
    "foreign layer without url": (with_layer(DOCKER_IMAGE, mediaType=images.DOCKER_FOREIGN), [ManifestMissingUrl]),
    "schema 1 unsigned": (encode(schema1([LAYER])), [ManifestUnverified]),
    "schema 1 forged": (images.sign(schema1([LAYER]), KEY).replace(b'"v1"', b'"v2"', 1), [ManifestUnverified]),
    "schema 1 name": (images.sign(schema1([LAYER], name="a b"), KEY), [ManifestNameInvalid]),
    "schema 1 tag": (images.sign(schema1([LAYER], tag="a b"), KEY), [ManifestNameInvalid]),
    "schema 1 history": (images.sign(schema1([LAYER], history=[]), KEY), [InvalidManifest]),
    "schema 1 layer": (images.sign(schema1([LAYER, GONE]), KEY), [ManifestBlobUnknown]),
}


@pytest.mark.parametrize("rule", BROKEN)
async def test_a_broken_rule(manifests: ManifestService, driver: StorageDriver, rule: str) -> None:
    """Is the error that says so, with everything that is wrong, and nothing in storage has changed."""
    content, expected = BROKEN[rule]
    before = await files_in(driver)
    with pytest.raises(LayerfsError) as caught:
        await manifests.put(content, tag="v1")
    error = caught.value
    if isinstance(expected, list):
        assert isinstance(error, ManifestVerification)
        assert error.name == NAME
        assert [type(one) for one in error.errors] == expected
        only_unknown = set(expected) == {ManifestBlobUnknown}
        assert isinstance(error, ManifestReferencesUnknown) == only_unknown
    else:
        assert type(error) is expected
    assert str(error).isprintable()
    assert await files_in(driver) == before


async def test_what_is_unknown_is_named(manifests: ManifestService) -> None:
    """The errors carry the digests, those of blobs and those of manifests."""
    for content in (encode(oci_image(b"x", [LAYER, b"y"])), encode(oci_index([b"x", b"y"]))):
        with pytest.raises(ManifestReferencesUnknown) as caught:
            await manifests.put(content)
        assert [error.digest for error in caught.value.errors if isinstance(error, ManifestBlobUnknown)] == [
            Digest.of(b"x"),
            Digest.of(b"y"),
        ]
        assert str(Digest.of(b"y")) in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"tag": "-x"}, InvalidTag),
        ({"tag": ""}, InvalidTag),
        ({"digest": Digest.of(b"other")}, ManifestInvalidDigest),
        ({"digest": Digest.of(encode(IMAGE), "sha512")}, UnsupportedDigestAlgorithm),
        ({"media_type": images.DOCKER_IMAGE}, InvalidManifest),
        ({"media_type": images.OCI_INDEX}, InvalidManifest),
        ({"media_type": "application/json"}, InvalidManifest),
        ({"media_type": ""}, InvalidManifest),
    ],
    ids=str,
)
async def test_not_what_was_expected(
    manifests: ManifestService, driver: StorageDriver, arguments: dict[str, Any], error: type[LayerfsError]
) -> None:
    """A good manifest by a wrong tag, digest or media type is refused, and nothing has changed."""
    before = await files_in(driver)
    with pytest.raises(error):
        await manifests.put(encode(IMAGE), **arguments)
    assert await files_in(driver) == before


async def test_a_wrong_digest_comes_before_what_is_missing(manifests: ManifestService) -> None:
    """The digest is compared before storage is asked; the error has both digests."""
    content = encode(oci_image(GONE))
    with pytest.raises(ManifestInvalidDigest) as caught:
        await manifests.put(content, digest=Digest.of(b"other"))
    assert (caught.value.expected, caught.value.actual) == (Digest.of(b"other"), Digest.of(content))


async def test_a_repository_name_that_cannot_be_made(registry: Registry, driver: StorageDriver) -> None:
    """May be read, if a registry made it, but nothing is put there."""
    before = await files_in(driver)
    with pytest.raises(InvalidRepositoryName):
        await registry.repository("Foo/bar").manifests.put(encode(oci_index()))
    assert await files_in(driver) == before


HALF_A_LAYER: dict[str, Callable[[StorageDriver, str], Awaitable[None]]] = {
    "link missing": lambda driver, digest: driver.delete(link_path(NAME, digest)),
    "blob missing": lambda driver, digest: driver.delete(blob_path(digest)),
    "link empty": lambda driver, digest: driver.put_content(link_path(NAME, digest), b""),
    "link with newline": lambda driver, digest: driver.put_content(link_path(NAME, digest), digest.encode() + b"\n"),
    "link elsewhere": lambda driver, digest: driver.put_content(
        link_path(NAME, digest), images.digest(CONFIG).encode()
    ),
}


@pytest.mark.parametrize("damage", HALF_A_LAYER)
async def test_a_layer_that_is_only_half_there(
    manifests: ManifestService, driver: StorageDriver, autojump_clock: trio.testing.MockClock, damage: str
) -> None:
    """Counts as unknown, whichever half it is."""
    await HALF_A_LAYER[damage](driver, images.digest(LAYER))
    with pytest.raises(ManifestReferencesUnknown) as caught:
        await manifests.put(encode(IMAGE))
    assert [str(error) for error in caught.value.errors] == [str(error) for error in unknown(LAYER)]


@pytest.mark.parametrize("half", ["link", "blob"])
async def test_a_child_that_is_only_half_there(manifests: ManifestService, driver: StorageDriver, half: str) -> None:
    """The same for the manifests that an index needs."""
    await manifests.put(encode(IMAGE))
    digest = images.digest(encode(IMAGE))
    await driver.delete(revision_path(digest) if half == "link" else blob_path(digest))
    with pytest.raises(ManifestReferencesUnknown):
        await manifests.put(encode(oci_index([encode(IMAGE)])))


async def test_layers_of_other_repositories_do_not_count(manifests: ManifestService, registry: Registry) -> None:
    """What is needed must be linked here, though its bytes are in storage; mounting it is enough."""
    other = registry.repository("foo/other")
    with pytest.raises(ManifestReferencesUnknown) as caught:
        await other.manifests.put(encode(IMAGE))
    assert len(caught.value.errors) == 3
    for content in (CONFIG, LAYER, OTHER_LAYER):
        await other.layers.mount(NAME, Digest.of(content))
    await other.manifests.put(encode(IMAGE), tag="v1")


async def test_storage_out_of_reach_is_not_a_missing_layer(repository: Repository, registry: Registry) -> None:
    """What keeps a layer from being looked up is the error, not that it is unknown."""

    class Refusing(FaultyDriver):
        async def get_contents(self, paths: Sequence[str], *, limit: int):  # type: ignore[no-untyped-def]
            return [AccessDenied(path) for path in paths]

    manifests = Registry(Refusing(Disk(registry.driver))).repository(NAME).manifests
    with pytest.raises(AccessDenied):
        await manifests.put(encode(IMAGE))
    with pytest.raises(AccessDenied):
        await manifests.put(encode(oci_index([encode(IMAGE)])))


# --- schema 1 --------------------------------------------------------------------------------------------------------


async def test_schema_1_is_stored_without_signatures(manifests: ManifestService, driver: StorageDriver) -> None:
    """As registries do: blob and revision are of the payload, by its digest, whoever signed it."""
    document = schema1([LAYER, OTHER_LAYER])
    payload = encode(document)
    before = await files_in(driver)
    for key in (KEY, images.ec_key(), images.rsa_key()):
        descriptor = await manifests.put(images.sign(document, key), digest=Digest.of(payload))
        assert (descriptor.digest, descriptor.media_type) == (Digest.of(payload), images.SCHEMA1_SIGNED)
    digest = images.digest(payload)
    assert await files_in(driver) == before | {blob_path(digest): payload, revision_path(digest): digest.encode()}
    manifest = await manifests.get(Digest.of(payload))
    assert (manifest.content, manifest.media_type) == (payload, images.SCHEMA1)
    assert manifest.references().blobs == (Digest.of(LAYER), Digest.of(OTHER_LAYER))


async def plant_schema1(driver: StorageDriver, *keys: images.PrivateKey) -> tuple[bytes, list[bytes]]:
    """A manifest as registries from 2.0 to 2.4 stored it: signatures are blobs of their own."""
    payload = encode(schema1([LAYER]))
    digest = images.digest(payload)
    await driver.put_content(blob_path(digest), payload)
    await driver.put_content(revision_path(digest), digest.encode())
    blocks = [json.dumps(images.signature(payload, key), separators=(",", ":")).encode() for key in keys]
    for block in blocks:
        signature = images.digest(block)
        await driver.put_content(blob_path(signature), block)
        directory = revision_path(digest).removesuffix("/link")
        await driver.put_content(f"{directory}/signatures/{signature.replace(':', '/')}/link", signature.encode())
    return payload, blocks


async def test_signatures_of_the_seed_era(manifests: ManifestService, driver: StorageDriver) -> None:
    """All that are stored are found; the signed document made of them is genuine, and can be put."""
    payload, blocks = await plant_schema1(driver, KEY, images.rsa_key())
    digest = Digest.of(payload)
    assert sorted(await manifests.signatures(digest)) == sorted(blocks)
    signed = await manifests.get_signed(digest)
    assert len(json.loads(signed)["signatures"]) == 2
    assert (await manifests.put(signed, tag="v1")).digest == digest
    assert [info.digest for info in await manifests.list()] == [digest]


async def test_no_signatures(manifests: ManifestService, driver: StorageDriver) -> None:
    """Registries since 2.5 store none; then there is nothing to give, and a bad link is none."""
    payload, _ = await plant_schema1(driver)
    digest = Digest.of(payload)
    assert await manifests.signatures(digest) == []
    bad = f"{revision_path(digest).removesuffix('/link')}/signatures/sha256/{'0' * 64}/link"
    await driver.put_content(bad, str(digest).encode())
    assert await manifests.signatures(digest) == []
    with pytest.raises(ManifestUnverified):
        await manifests.get_signed(digest)
    with pytest.raises(ManifestUnknownRevision):
        await manifests.signatures(Digest.of(b"other"))


# --- reading ---------------------------------------------------------------------------------------------------------


async def test_an_unknown_manifest(manifests: ManifestService) -> None:
    """By digest and by tag, with the values."""
    digest = Digest.of(b"x")
    assert not await manifests.exists(digest)
    for call in (manifests.get, manifests.stat, manifests.delete):
        with pytest.raises(ManifestUnknownRevision) as caught:
            await call(digest)
        assert (caught.value.name, caught.value.digest) == (NAME, digest)
    with pytest.raises(TagUnknown):
        await manifests.get_by_tag("v1")
    with pytest.raises(InvalidTag):
        await manifests.get_by_tag("-x")


async def test_a_layer_is_no_manifest(manifests: ManifestService) -> None:
    """Even where its bytes are in storage (2.1 to 2.8 would look among the layers)."""
    with pytest.raises(ManifestUnknownRevision):
        await manifests.get(Digest.of(LAYER))


async def test_bad_revision_links(
    manifests: ManifestService, driver: StorageDriver, autojump_clock: trio.testing.MockClock
) -> None:
    """Lead to no manifest, are not listed, and are no reason for the others not to be."""
    good = await manifests.put(encode(IMAGE))
    bad = {
        Digest.of(b"empty"): b"",
        Digest.of(b"newline"): str(Digest.of(b"newline")).encode() + b"\n",
        Digest.of(b"dangling"): str(Digest.of(b"dangling")).encode(),
        Digest.of(b"huge"): b"x" * 1_000_000,
    }
    for digest, content in bad.items():
        await driver.put_content(revision_path(digest), content)
    directory = f"{REPOSITORIES}/{NAME}/_manifests/revisions"
    await driver.make_directory(f"{directory}/sha256/{'0' * 64}")
    await driver.put_content(f"{directory}/sha256/README", b"x")
    await driver.put_content(f"{directory}/md5/{'0' * 32}/link", b"x")
    assert [info.digest for info in await manifests.list()] == [good.digest]
    assert await manifests.descriptors() == [good]
    for digest in bad:
        assert not await manifests.exists(digest)
        with pytest.raises(ManifestUnknownRevision):
            await manifests.get(digest)


async def test_a_link_to_other_content(manifests: ManifestService, driver: StorageDriver) -> None:
    """Would show wrong bytes: an error of its own, and not listed."""
    good = await manifests.put(encode(IMAGE))
    wrong = Digest.of(b"wrong")
    await driver.put_content(revision_path(wrong), str(good.digest).encode())
    for call in (manifests.get, manifests.stat, manifests.exists):
        with pytest.raises(LinkMismatch):
            await call(wrong)
    assert [info.digest for info in await manifests.list()] == [good.digest]


@pytest.mark.parametrize("content", [b"", b"{no", bytes(range(256)), b"x" * 100_000])
async def test_what_is_stored_is_read_whatever_it_is(
    manifests: ManifestService, driver: StorageDriver, content: bytes
) -> None:
    """A revision that is no manifest can be looked at; garbage collection stops at it, so somebody will want to."""
    digest = images.digest(content)
    await driver.put_content(blob_path(digest), content)
    await driver.put_content(revision_path(digest), digest.encode())
    manifest = await manifests.get(Digest.parse(digest))
    assert (manifest.content, manifest.media_type) == (content, "application/octet-stream")
    assert await manifests.descriptors() == [manifest.descriptor]


async def test_a_blob_that_is_too_large(manifests: ManifestService, driver: StorageDriver) -> None:
    """Is listed with its size, and not read, nor does it keep others from being described."""
    good = await manifests.put(encode(IMAGE))
    content = b"x" * (MANIFEST_LIMIT + 1)
    digest = images.digest(content)
    await driver.put_content(blob_path(digest), content)
    await driver.put_content(revision_path(digest), digest.encode())
    assert (await manifests.stat(Digest.parse(digest))).size == len(content)
    with pytest.raises(ManifestTooLarge):
        await manifests.get(Digest.parse(digest))
    assert await manifests.descriptors() == [good]


async def test_a_listing(manifests: ManifestService) -> None:
    """By digest, with sizes, tagged or not; each as `stat` has it."""
    contents = [encode(IMAGE | {"annotations": {"number": "x" * number}}) for number in range(20)]
    for number, content in enumerate(contents):
        await manifests.put(content, tag=f"v{number}" if number % 2 else None)
    listed = await manifests.list()
    digests = sorted(images.digest(content) for content in contents)
    assert [str(info.digest) for info in listed] == digests
    assert {str(info.digest): info.size for info in listed} == {images.digest(c): len(c) for c in contents}
    assert await manifests.stat_many([info.digest for info in listed]) == listed
    assert [entry.digest for entry in await manifests.descriptors()] == [info.digest for info in listed]


async def test_stat_many(manifests: ManifestService) -> None:
    """Errors stand in the place of what cannot be had."""
    good = await manifests.put(encode(IMAGE))
    found = await manifests.stat_many([Digest.of(b"x"), good.digest])
    assert isinstance(found[0], ManifestUnknownRevision)
    assert isinstance(found[1], ManifestInfo)
    assert await manifests.stat_many([]) == []


async def test_what_a_listing_costs(repository: Repository, watched: FaultyDriver) -> None:
    """Three requests with sizes, one more for the media types; however many manifests there are."""
    manifests = Registry(watched).repository(NAME).manifests
    for number in range(50):
        await manifests.put(encode(IMAGE | {"annotations": {"number": str(number)}}))
    for call, cost in ((manifests.list, 3), (manifests.descriptors, 4)):
        watched.arm(None)
        assert len(await call()) == 50
        assert watched.calls == cost


async def test_large_manifests_are_described_a_few_at_a_time(repository: Repository, watched: FaultyDriver) -> None:
    """Memory is bounded: no batch is of more than 16 MiB."""
    manifests = Registry(watched).repository(NAME).manifests
    for number in range(6):
        await manifests.put(encode(IMAGE | {"annotations": {str(number): "x" * 3_500_000}}))
    watched.arm(None)
    assert len(await manifests.descriptors()) == 6
    assert [line.count("/data") for line in watched.log if line.startswith("get_contents") and "/data" in line] == [
        4,
        2,
    ]


async def test_a_repository_without_manifests(registry: Registry) -> None:
    """Nothing is listed, whether the repository is there or not."""
    manifests = registry.repository(NAME).manifests
    assert (await manifests.list(), await manifests.descriptors()) == ([], [])
    await registry.create_repository(NAME)
    assert (await manifests.list(), await manifests.descriptors()) == ([], [])


# --- deleting --------------------------------------------------------------------------------------------------------


async def test_deleting(repository: Repository, driver: StorageDriver) -> None:
    """Revision link and the tags that mean it go; blobs, layers, and tags that meant it once, stay."""
    one, two = encode(IMAGE), encode(DOCKER_IMAGE)
    await repository.manifests.put(two, tag="other")
    await repository.manifests.put(one, tag="moved")
    await repository.manifests.put(two, tag="moved")
    kept = await files_in(driver)
    await repository.manifests.put(one, tag="v1")
    await repository.tags.tag("latest", Digest.of(one))
    await repository.manifests.delete(Digest.of(one))
    del kept[revision_path(images.digest(one))]
    assert await files_in(driver) == kept
    assert await repository.tags.list() == [Tag("moved", Digest.of(two)), Tag("other", Digest.of(two))]
    assert not await repository.manifests.exists(Digest.of(one))
    with pytest.raises(ManifestUnknownRevision):
        await repository.manifests.delete(Digest.of(one))


async def test_putting_what_was_deleted(manifests: ManifestService, driver: StorageDriver) -> None:
    """Makes all as it was."""
    await manifests.put(encode(IMAGE), tag="v1")
    before = await files_in(driver)
    await manifests.delete(Digest.of(encode(IMAGE)))
    await manifests.put(encode(IMAGE), tag="v1")
    assert await files_in(driver) == before


async def test_the_order_of_deleting(repository: Repository, watched: FaultyDriver) -> None:
    """Each tag's current first, then the rest of it; the revision link last."""
    again = Registry(watched).repository(NAME)
    digest = (await again.manifests.put(encode(IMAGE), tag="a")).digest
    await again.tags.tag("b", digest)
    watched.arm(None)
    await again.manifests.delete(digest)
    tags = f"{REPOSITORIES}/{NAME}/_manifests/tags"
    deleted = [line.removeprefix("delete ") for line in watched.log if line.startswith("delete ")]
    # On an object store tags are removed side by side, and the rest of one is its only other key.
    for tag in ("a", "b"):
        first, rest = (path for path in deleted if path.startswith(f"{tags}/{tag}"))
        assert first == f"{tags}/{tag}/current/link"
        assert rest in {f"{tags}/{tag}", f"{tags}/{tag}/index/sha256/{digest.hex}/link"}
    assert deleted[-1] == revision_path(digest)
    assert len(deleted) == 5


async def test_a_dangling_revision_can_be_deleted(repository: Repository, driver: StorageDriver) -> None:
    """Where the bytes are gone already, link and tags can still be removed; a registry's API cannot."""
    digest = (await repository.manifests.put(encode(IMAGE), tag="v1")).digest
    await driver.delete(blob_path(str(digest)))
    await repository.manifests.delete(digest)
    assert not [path for path in await files_in(driver) if "/_manifests/" in path]


async def test_tags_of_a_missing_revision_can_be_deleted(repository: Repository, driver: StorageDriver) -> None:
    """What a registry leaves if it is stopped between revision and tags."""
    digest = (await repository.manifests.put(encode(IMAGE), tag="v1")).digest
    await driver.delete(revision_path(digest))
    await repository.manifests.delete(digest)
    assert await repository.tags.list() == []


async def test_a_tag_that_moves_meanwhile_stays(repository: Repository, watched: FaultyDriver) -> None:
    """Deleting removes only the tags that mean this manifest when it comes to them."""
    again = Registry(watched).repository(NAME)
    one = (await again.manifests.put(encode(IMAGE), tag="a")).digest
    await again.tags.tag("b", one)
    two = (await again.manifests.put(encode(DOCKER_IMAGE))).digest
    current = tag_paths("b", two)[1]

    async def move(what: str, path: str) -> None:
        if what == "delete" and path.endswith("/a/current/link"):
            await watched.disk.driver.put_content(current, str(two).encode())

    watched.on_call = move
    await again.manifests.delete(one)
    assert await repository.tags.list() == [Tag("b", two)]


async def test_nothing_is_deleted_while_a_tag_cannot_be_read(repository: Repository, registry: Registry) -> None:
    """It might mean this manifest, and would then lead nowhere."""
    digest = (await repository.manifests.put(encode(IMAGE), tag="v1")).digest
    before = await files_in(registry.driver)

    class Refusing(FaultyDriver):
        async def get_contents(self, paths: Sequence[str], *, limit: int):  # type: ignore[no-untyped-def]
            return [AccessDenied(path) for path in paths]

    with pytest.raises(AccessDenied):
        await Registry(Refusing(Disk(registry.driver))).repository(NAME).manifests.delete(digest)
    assert await files_in(registry.driver) == before


async def test_a_child_can_be_deleted(manifests: ManifestService) -> None:
    """The index stays and can still be read, as in a registry; it cannot be put anew."""
    await manifests.put(encode(IMAGE))
    index = encode(oci_index([encode(IMAGE)]))
    await manifests.put(index, tag="v1")
    await manifests.delete(Digest.of(encode(IMAGE)))
    assert (await manifests.get_by_tag("v1")).content == index
    with pytest.raises(ManifestReferencesUnknown):
        await manifests.put(index)


# --- interrupted -----------------------------------------------------------------------------------------------------

WHENS = ["before", "after"]
HOWS = ["die", "fail", "cancel"]


@pytest.mark.parametrize("when", WHENS)
@pytest.mark.parametrize("how", HOWS)
async def test_put_interrupted_anywhere(repository: Repository, registry: Registry, how: str, when: str) -> None:
    """No link leads nowhere, the tag means the old manifest or the new one, and doing it again completes it."""
    old, new = encode(IMAGE), encode(DOCKER_IMAGE)
    await repository.manifests.put(old, tag="v1")
    before = await files_in(registry.driver)
    await repository.manifests.put(new, tag="v1")
    complete = await files_in(registry.driver)
    for call in range(1, 50):
        await restore(registry.driver, before)
        driver = await interrupt(
            registry,
            Fault(call, when, how),  # type: ignore[arg-type]
            lambda faulty: faulty.manifests.put(new, tag="v1"),
        )
        await check_links(registry.driver)
        assert (await repository.manifests.get_by_tag("v1")).content in (old, new)
        await repository.manifests.put(new, tag="v1")
        assert await files_in(registry.driver) == complete
        if not driver.has_struck:
            break
    assert call > 10, "the fault never struck"
    assert not driver.has_struck


@pytest.mark.parametrize("when", WHENS)
@pytest.mark.parametrize("how", HOWS)
async def test_delete_interrupted_anywhere(repository: Repository, registry: Registry, how: str, when: str) -> None:
    """No tag leads nowhere; doing it again completes it, or says that it was complete."""
    digest = Digest.of(encode(IMAGE))
    untouched = await files_in(registry.driver)
    await repository.manifests.put(encode(IMAGE), tag="v1")
    await repository.tags.tag("latest", digest)
    before = await files_in(registry.driver)
    for call in range(1, 50):
        await restore(registry.driver, before)
        driver = await interrupt(
            registry,
            Fault(call, when, how),  # type: ignore[arg-type]
            lambda faulty: faulty.manifests.delete(digest),
        )
        known = {info.digest for info in await repository.manifests.list()}
        assert {tag.digest for tag in await repository.tags.list()} <= known
        with contextlib.suppress(ManifestUnknownRevision):
            await repository.manifests.delete(digest)
        left = {path for path in await files_in(registry.driver) if path not in untouched}
        assert {path for path in left if not path.endswith("/data") and "/index/" not in path} == set()
        if not driver.has_struck:
            break
    assert call > 5, "the fault never struck"
    assert not driver.has_struck


async def test_storage_that_fails(repository: Repository, watched: FaultyDriver) -> None:
    """Reading and listing raise what is wrong, never that a manifest is unknown."""
    manifests = Registry(watched).repository(NAME).manifests
    digest = (await manifests.put(encode(IMAGE))).digest
    calls: list[Callable[[], Awaitable[object]]] = [
        lambda: manifests.get(digest),
        lambda: manifests.stat(digest),
        lambda: manifests.exists(digest),
        manifests.list,
        manifests.descriptors,
        lambda: manifests.delete(digest),
    ]
    for call in calls:
        watched.arm(Fault(1, "before", "fail"))
        with pytest.raises(BackendFailure):
            await call()
    assert await manifests.exists(digest)


async def test_many_at_the_same_time(manifests: ManifestService, repository: Repository, driver: StorageDriver) -> None:
    """The same manifest, others, and the same tag: every put succeeds, and the tag means one of them."""
    contents = [encode(IMAGE | {"annotations": {"number": str(number % 10)}}) for number in range(40)]
    async with trio.open_nursery() as nursery:
        for content in contents:
            nursery.start_soon(lambda content=content: manifests.put(content, tag="v1"))
    assert len(await manifests.list()) == 10
    assert (await manifests.get_by_tag("v1")).content in contents
    await check_links(driver)


# --- storage written by a registry ---------------------------------------------------------------------------------


async def test_every_image_of_the_fixture(fixture_trees: Path) -> None:
    """Is found under the registry's own tags, with its digests and media types."""
    registry = await Registry.open(LocalDriver(str(fixture_trees / "storage")))
    told = [json.loads(line) for line in (fixture_trees / "tags.jsonl").read_text().splitlines()]
    found = [
        (name, tag.name, str(tag.digest), (await registry.repository(name).manifests.get_by_tag(tag.name)).media_type)
        async for name in registry.catalog()
        for tag in await registry.repository(name).tags.list()
    ]
    assert sorted(found) == sorted((one["repo"], one["tag"], one["digest"], one["mediaType"]) for one in told)
    assert len(found) >= 14


async def test_every_manifest_of_the_fixture(fixture_trees: Path) -> None:
    """Can be read, hashes to its name, is described rightly, and would be taken again."""
    source = LocalDriver(str(fixture_trees / "storage"))
    driver = MemoryDriver()
    for path, content in (await files_in(source, "/docker")).items():
        await driver.put_content(path, content)
    registry, count = Registry(driver), 0
    before = await files_in(driver)
    async for name in registry.catalog():
        manifests = registry.repository(name).manifests
        for descriptor in await manifests.descriptors():
            manifest = await manifests.get(descriptor.digest)
            assert hashlib.sha256(manifest.content).hexdigest() == descriptor.digest.hex
            assert await manifests.put(manifest.content, digest=manifest.digest) == manifest.descriptor == descriptor
            count += 1
    assert count == len([path for path in before if re.search(r"/revisions/sha256/[^/]+/link$", path)]) > 14
    assert await files_in(driver) == before


async def test_the_history_of_a_moved_tag(fixture_trees: Path) -> None:
    """`latest` of team/app was moved: its index has both."""
    tags = (await Registry.open(LocalDriver(str(fixture_trees / "storage")))).repository("team/app").tags
    assert await tags.history("latest") == [await tags.get("v1"), await tags.get("v2")]


async def test_the_damaged_fixture(fixture_trees: Path) -> None:
    """Faults of manifests and tags are left out, or are what they are; everything else is read."""
    registry = await Registry.open(LocalDriver(str(fixture_trees / "damaged")))
    where = faults(fixture_trees)
    base = registry.repository("base")
    assert where["tag-to-missing-manifest"][0] == "base:broken"
    with pytest.raises(ManifestUnknownRevision):
        await base.manifests.get_by_tag("broken")
    with pytest.raises(TagUnknown):
        await base.tags.get("halfmade")
    assert {tag.name for tag in await base.tags.list()} >= {"1.0", "latest", "broken"}
    assert "halfmade" not in {tag.name for tag in await base.tags.list()}
    dangling, garbage = (Digest.parse(where[kind][1]) for kind in ("dangling-revision", "manifest-not-json"))
    with pytest.raises(ManifestUnknownRevision):
        await base.manifests.get(dangling)
    assert (await base.manifests.get(garbage)).content == b"{no"
    listed = {info.digest for info in await base.manifests.list()}
    assert dangling not in listed
    assert garbage in listed
