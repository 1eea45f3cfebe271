"""Many manifests at once: put together, described without being read again, and everything that they reach."""

from __future__ import annotations

import errno
import itertools
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest
import trio
from harness import images
from harness.faulty_driver import Disk, Fault, FaultyDriver
from harness.images import describe, docker_image, docker_list, encode, oci_image, oci_index, schema1
from harness.invariants import blob_path, link_path
from harness.stored_manifests import (
    NAME,
    REPOSITORIES,
    check_complete,
    interrupt,
    put_layer,
    restore,
    revision_path,
    tag_paths,
)
from harness.walk import files_in

from layerfs.digest import Digest
from layerfs.driver.interface import StorageDriver
from layerfs.driver.memory import MemoryDriver
from layerfs.errors import (
    AccessDenied,
    BackendFailure,
    InvalidManifest,
    InvalidRepositoryName,
    InvalidTag,
    LayerfsError,
    ManifestBlobUnknown,
    ManifestNotHere,
    ManifestReferencesTooMany,
    ManifestReferencesUnknown,
    ManifestTooLarge,
    ManifestUnknownRevision,
    ManifestVerification,
)
from layerfs.fuse.errnos import errno_of
from layerfs.manifest import MANIFEST_LIMIT, Descriptor
from layerfs.registry import ManifestService, Registry, Repository
from layerfs.registry import reachable as reachable_module
from layerfs.registry.media_types import MediaTypes

CONFIG, LAYER, OTHER_LAYER = b'{"config": true}', b"a layer", b"another layer"

#: Two images that share a config, an index of them, and an index of that one and a Docker image.
AMD64 = encode(oci_image(CONFIG, [LAYER]))
ARM64 = encode(oci_image(CONFIG, [OTHER_LAYER]))
PLATFORMS = encode(oci_index([AMD64, ARM64]))
WINDOWS = encode(docker_image(CONFIG, [LAYER, OTHER_LAYER]))
EVERYTHING = encode(
    oci_index() | {"manifests": [describe(WINDOWS, images.DOCKER_IMAGE), describe(PLATFORMS, images.OCI_INDEX)]}
)
ALL = (EVERYTHING, PLATFORMS, AMD64, WINDOWS, ARM64)

#: One that is there before.
OLD = encode(oci_image(CONFIG))


def name_of(content: bytes) -> Digest:
    return Digest.parse(images.digest(content))


def digests(*contents: bytes) -> set[Digest]:
    return {name_of(content) for content in contents}


@pytest.fixture
async def repository(registry: Registry) -> Repository:
    """A repository that has a config, two layers, and an image without layers."""
    for content in (CONFIG, LAYER, OTHER_LAYER):
        await put_layer(registry.driver, content)
    repository = registry.repository(NAME)
    await repository.manifests.put(OLD, tag="old")
    return repository


@pytest.fixture
def manifests(repository: Repository) -> ManifestService:
    return repository.manifests


# --- put together ----------------------------------------------------------------------------------------------------


async def test_in_any_order(manifests: ManifestService, repository: Repository, driver: StorageDriver) -> None:
    """All are there, as if put one by one, children first; what comes back is in the order given."""
    before = await files_in(driver)
    for content in reversed(ALL):
        await manifests.put(content)
    await repository.tags.tag("v1", name_of(EVERYTHING))
    expected = await files_in(driver)
    for order in list(itertools.permutations(ALL))[::7]:
        await restore(driver, before)
        found = await manifests.put_together(order, tags={"v1": name_of(EVERYTHING)})
        assert [descriptor.digest for descriptor in found] == [name_of(content) for content in order]
        assert await files_in(driver) == expected


async def test_what_comes_back(manifests: ManifestService) -> None:
    """Descriptors, by which an index would refer to them; the same one twice is twice in it."""
    assert await manifests.put_together([PLATFORMS, AMD64, ARM64, AMD64]) == [
        Descriptor(images.OCI_INDEX, name_of(PLATFORMS), len(PLATFORMS)),
        Descriptor(images.OCI_IMAGE, name_of(AMD64), len(AMD64)),
        Descriptor(images.OCI_IMAGE, name_of(ARM64), len(ARM64)),
        Descriptor(images.OCI_IMAGE, name_of(AMD64), len(AMD64)),
    ]


async def test_the_order_of_storing(repository: Repository, watched: FaultyDriver) -> None:
    """No revision before those that it refers to, no tag before the last revision, no link before its blob."""
    watched.arm(None)
    tags = {"b": name_of(AMD64), "a": name_of(EVERYTHING), "c": name_of(OLD)}
    await Registry(watched).repository(NAME).manifests.put_together(ALL, tags=tags)
    written = [line.removeprefix("put_content ") for line in watched.log if line.startswith("put_content ")]
    revisions = [revision_path(name_of(content)) for content in ALL]
    places = {content: written.index(revision_path(name_of(content))) for content in ALL}
    assert places[PLATFORMS] > max(places[AMD64], places[ARM64])
    assert places[EVERYTHING] > max(places[PLATFORMS], places[WINDOWS])
    for content in ALL:
        assert written.index(blob_path(images.digest(content))) < places[content]
    assert written[-6:] == [path for tag, digest in tags.items() for path in reversed(tag_paths(tag, digest))]
    assert len(written) == len(revisions) * 2 + 6


async def test_tags_alone(repository: Repository, driver: StorageDriver) -> None:
    """Of manifests that are there: nothing else is written."""
    before = await files_in(driver)
    assert await repository.manifests.put_together([], tags={"v1": name_of(OLD), "v2": name_of(OLD)}) == []
    links = [path for tag in ("v1", "v2") for path in tag_paths(tag, name_of(OLD))]
    assert await files_in(driver) == before | dict.fromkeys(links, str(name_of(OLD)).encode())


async def test_nothing_at_all(registry: Registry, driver: StorageDriver) -> None:
    """Changes nothing, not even makes the repository."""
    before = await files_in(driver)
    assert await registry.repository("new/one").manifests.put_together([]) == []
    assert await files_in(driver) == before
    assert not (await registry.list("")).components


async def test_a_new_repository(registry: Registry, driver: StorageDriver) -> None:
    """Is made, for registries of both generations."""
    empty = encode(oci_index())
    outer = encode(oci_index() | {"manifests": [describe(empty, images.OCI_INDEX)]})
    await registry.repository("new/one").manifests.put_together([outer, empty], tags={"v1": name_of(outer)})
    if driver.capabilities.directories:
        names = {entry.name for entry in await driver.list(f"{REPOSITORIES}/new/one")}
        assert names - {"_uploads"} == {"_layers", "_manifests"}
    assert (await registry.repository("new/one").manifests.get_by_tag("v1")).content == outer


async def test_a_tag_moves(repository: Repository) -> None:
    """From the old manifest to a new one; the others stay as they are."""
    await repository.tags.tag("stays", name_of(OLD))
    await repository.manifests.put_together([AMD64], tags={"old": name_of(AMD64)})
    assert {tag.name: tag.digest for tag in await repository.tags.list()} == {
        "old": name_of(AMD64),
        "stays": name_of(OLD),
    }


async def test_signed_schema_1(manifests: ManifestService) -> None:
    """Is stored by the digest of what is signed, as by `put`; a tag can only mean that."""
    payload = encode(schema1([LAYER]))
    signed = images.sign(schema1([LAYER]), images.ec_key())
    with pytest.raises(ManifestNotHere):
        await manifests.put_together([signed], tags={"v1": name_of(signed)})
    (descriptor,) = await manifests.put_together([signed], tags={"v1": name_of(payload)})
    assert descriptor.digest == name_of(payload)


async def test_a_damaged_copy_is_repaired(manifests: ManifestService, driver: StorageDriver) -> None:
    """Of any of them, also if it was there before."""
    await manifests.put_together(ALL)
    expected = await files_in(driver)
    for content in ALL:
        await driver.put_content(blob_path(images.digest(content)), b"damaged")
    await manifests.put_together(ALL)
    assert await files_in(driver) == expected


async def test_what_it_costs(repository: Repository, watched: FaultyDriver) -> None:
    """What they need is looked up at once: three requests for each manifest, and a dozen in all."""
    children = [encode(oci_image(CONFIG, [LAYER], annotations={"n": str(number)})) for number in range(50)]
    parent = encode(oci_index(children))
    watched.arm(None)
    await Registry(watched).repository(NAME).manifests.put_together([parent, *children], tags={"v1": name_of(parent)})
    assert watched.calls <= 51 * 3 + 12


# --- refused ---------------------------------------------------------------------------------------------------------

GONE = b"not here"


@pytest.mark.parametrize(
    ("contents", "error"),
    [
        ([b"{no"], InvalidManifest),
        ([b" " * (MANIFEST_LIMIT + 1)], ManifestTooLarge),
        ([encode(oci_image(CONFIG, [GONE]))], ManifestReferencesUnknown),
        ([encode(oci_index([GONE]))], ManifestReferencesUnknown),
        # The index names it, but nobody gives it.
        ([PLATFORMS, AMD64], ManifestReferencesUnknown),
        ([PLATFORMS, AMD64, encode(oci_image(CONFIG, [OTHER_LAYER, GONE]))], ManifestReferencesUnknown),
        ([encode(oci_image(CONFIG, [LAYER]) | {"config": {}})], ManifestVerification),
        ([encode(schema1([LAYER]))], ManifestVerification),
        # A manifest given with it is no layer.
        ([encode(oci_image(CONFIG, [WINDOWS]))], ManifestReferencesUnknown),
    ],
    ids=[
        "no JSON",
        "too large",
        "layer unknown",
        "child unknown",
        "child not given",
        "child refused",
        "digest",
        "unsigned",
        "manifest as layer",
    ],
)
@pytest.mark.parametrize("place", ["first", "last"])
async def test_one_that_is_refused(
    manifests: ManifestService, driver: StorageDriver, contents: list[bytes], error: type[LayerfsError], place: str
) -> None:
    """Wherever it is among good ones: nothing at all is stored, and no tag is put, new or old."""
    good = [WINDOWS, encode(oci_index())]
    before = await files_in(driver)
    with pytest.raises(error) as caught:
        await manifests.put_together(
            contents + good if place == "first" else good + contents,
            tags={"old": name_of(WINDOWS), "new": name_of(WINDOWS)},
        )
    assert type(caught.value) is error
    assert str(caught.value).isprintable()
    assert await files_in(driver) == before


async def test_what_is_missing_is_named(manifests: ManifestService) -> None:
    """By the manifest that needs it: blobs first, and only what is neither there nor given."""
    image = encode(oci_image(b"x", [LAYER, b"y"]))
    with pytest.raises(ManifestReferencesUnknown) as caught:
        await manifests.put_together([encode(oci_index([image])), image])
    assert caught.value.digest == name_of(image)
    assert [error.digest for error in caught.value.errors if isinstance(error, ManifestBlobUnknown)] == [
        name_of(b"x"),
        name_of(b"y"),
    ]


@pytest.mark.parametrize("target", [b"nowhere", LAYER], ids=["nowhere", "a layer"])
async def test_a_tag_of_what_is_not_here(manifests: ManifestService, driver: StorageDriver, target: bytes) -> None:
    """Is refused before anything is stored, with the tag and the digest; for a client it is a missing reference."""
    before = await files_in(driver)
    tags = {"good": name_of(AMD64), "bad": name_of(target), "old": name_of(AMD64)}
    with pytest.raises(ManifestNotHere) as caught:
        await manifests.put_together([AMD64], tags=tags)
    assert (caught.value.name, caught.value.tag, caught.value.digest) == (NAME, "bad", name_of(target))
    assert "'bad'" in str(caught.value)
    assert str(name_of(target)) in str(caught.value)
    assert errno_of(caught.value) == errno.ENOLINK
    assert await files_in(driver) == before


async def test_a_manifest_of_another_repository_is_not_here(registry: Registry, repository: Repository) -> None:
    """Though its bytes are in storage."""
    with pytest.raises(ManifestNotHere):
        await registry.repository("foo/other").manifests.put_together([], tags={"v1": name_of(OLD)})


@pytest.mark.parametrize("tag", ["", "-x", "a/b", "x" * 129])
async def test_no_tag(manifests: ManifestService, driver: StorageDriver, tag: str) -> None:
    """Among good ones: nothing is stored."""
    before = await files_in(driver)
    with pytest.raises(InvalidTag):
        await manifests.put_together([AMD64], tags={"v1": name_of(AMD64), tag: name_of(AMD64)})
    assert await files_in(driver) == before


async def test_no_repository_name(registry: Registry, driver: StorageDriver) -> None:
    """Nothing is put where a repository may not be made."""
    before = await files_in(driver)
    with pytest.raises(InvalidRepositoryName):
        await registry.repository("Foo").manifests.put_together([encode(oci_index())])
    assert await files_in(driver) == before


# --- interrupted -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("how", ["die", "fail", "cancel"])
async def test_interrupted_anywhere(repository: Repository, registry: Registry, how: str, when: str) -> None:
    """No link leads nowhere, no index lacks a manifest, each tag means the old or the new; again completes it."""
    tags = {"new": name_of(EVERYTHING), "old": name_of(AMD64), "amd64": name_of(AMD64)}
    before = await files_in(registry.driver)
    await repository.manifests.put_together(ALL, tags=tags)
    complete = await files_in(registry.driver)
    for call in range(1, 100):
        await restore(registry.driver, before)
        driver = await interrupt(
            registry,
            Fault(call, when, how),  # type: ignore[arg-type]
            lambda faulty: faulty.manifests.put_together(ALL, tags=tags),
        )
        await check_complete(registry.driver)
        found = {tag.name: tag.digest for tag in await repository.tags.list()}
        assert found.pop("old") in (name_of(OLD), name_of(AMD64))
        assert found.items() <= tags.items()
        await repository.manifests.put_together(ALL, tags=tags)
        assert await files_in(registry.driver) == complete
        if not driver.has_struck:
            break
    assert call > 20, "the fault never struck"
    assert not driver.has_struck


async def test_many_at_the_same_time(manifests: ManifestService, repository: Repository, driver: StorageDriver) -> None:
    """Writers that share manifests, each with a tag of its own and one in common: all are there, complete."""
    parents = [encode(oci_index([AMD64, ARM64], annotations={"n": str(number)})) for number in range(10)]

    async def put(number: int, parent: bytes) -> None:
        tags = {f"v{number}": name_of(parent), "latest": name_of(parent)}
        await manifests.put_together([parent, ARM64, AMD64], tags=tags)

    async with trio.open_nursery() as nursery:
        for number, parent in enumerate(parents):
            nursery.start_soon(put, number, parent)
    await check_complete(driver)
    tags = {tag.name: tag.digest for tag in await repository.tags.list()}
    assert tags.pop("latest") in digests(*parents)
    assert tags == {f"v{number}": name_of(parent) for number, parent in enumerate(parents)} | {"old": name_of(OLD)}


class Refusing(FaultyDriver):
    """Refuses to read whatever has this in its path."""

    def __init__(self, driver: StorageDriver, part: str) -> None:
        super().__init__(Disk(driver))
        self._part = part

    async def get_contents(self, paths: Sequence[str], *, limit: int):  # type: ignore[no-untyped-def]
        found = await super().get_contents(paths, limit=limit)
        return [AccessDenied(path) if self._part in path else one for path, one in zip(paths, found, strict=True)]


async def test_storage_out_of_reach_is_not_a_missing_manifest(repository: Repository, registry: Registry) -> None:
    """What keeps the target of a tag from being looked up is the error, not that it is not here."""
    manifests = Registry(Refusing(registry.driver, "/revisions/")).repository(NAME).manifests
    with pytest.raises(AccessDenied):
        await manifests.put_together([], tags={"v1": name_of(OLD)})


# --- described -------------------------------------------------------------------------------------------------------


async def test_descriptions(manifests: ManifestService) -> None:
    """In the order asked for, as often as asked for, with an error for what is not there."""
    await manifests.put_together(ALL)
    gone, layer, image, again, index = await manifests.describe(
        [name_of(b"x"), name_of(LAYER), name_of(WINDOWS), name_of(WINDOWS), name_of(PLATFORMS)]
    )
    assert isinstance(gone, ManifestUnknownRevision)
    assert isinstance(layer, ManifestUnknownRevision)
    assert image == again == Descriptor(images.DOCKER_IMAGE, name_of(WINDOWS), len(WINDOWS))
    assert index == Descriptor(images.OCI_INDEX, name_of(PLATFORMS), len(PLATFORMS))
    assert await manifests.describe([]) == []


KINDS = {
    images.OCI_IMAGE: encode(oci_image(CONFIG, [LAYER])),
    images.OCI_INDEX: encode(oci_index([OLD])),
    images.DOCKER_IMAGE: encode(docker_image(CONFIG, [LAYER])),
    images.DOCKER_LIST: encode(docker_list([OLD])),
    # As it is stored, and as registries serve it from there: without signatures.
    images.SCHEMA1: images.sign(schema1([LAYER]), images.ec_key()),
}


@pytest.mark.parametrize("media_type", KINDS)
async def test_every_kind_is_described(manifests: ManifestService, media_type: str) -> None:
    """The same when it is read, when it is remembered, and by `get`."""
    digest = (await manifests.put(KINDS[media_type])).digest
    expected = (await manifests.get(digest)).descriptor
    assert expected.media_type == media_type
    for _ in range(2):
        assert await manifests.describe([digest]) == [expected]


async def test_what_is_known_is_not_read_again(repository: Repository, watched: FaultyDriver) -> None:
    """Two requests see that they are there; only new ones are read, for all repositories of the registry."""
    registry = Registry(watched)
    contents = [encode(oci_image(CONFIG, annotations={"n": str(number)})) for number in range(50)]
    for name in (NAME, "foo/other"):
        await put_layer(watched, CONFIG, name)
        await registry.repository(name).manifests.put_together(contents)
    wanted = [name_of(content) for content in contents]

    async def cost(name: str) -> tuple[int, int]:
        """Requests, and manifests read."""
        watched.arm(None)
        found = await registry.repository(name).manifests.describe(wanted)
        assert [one.digest for one in found if isinstance(one, Descriptor)] == wanted
        return watched.calls, sum(line.count("/data") for line in watched.log if line.startswith("get_contents"))

    assert await cost(NAME) == (3, 50)
    assert await cost(NAME) == (2, 0)
    assert await cost("foo/other") == (2, 0)
    new = encode(oci_image(CONFIG, annotations={"n": "new"}))
    await registry.repository(NAME).manifests.put(new)
    wanted.insert(7, name_of(new))
    assert await cost(NAME) == (3, 1)


@pytest.mark.parametrize("half", ["link", "blob"])
async def test_what_is_known_may_be_gone(manifests: ManifestService, driver: StorageDriver, half: str) -> None:
    """Whether it is there is always asked, of both its halves."""
    assert isinstance((await manifests.describe([name_of(OLD)]))[0], Descriptor)
    await driver.delete(revision_path(name_of(OLD)) if half == "link" else blob_path(images.digest(OLD)))
    (found,) = await manifests.describe([name_of(OLD)])
    assert isinstance(found, ManifestUnknownRevision)


async def test_a_damaged_manifest_is_not_remembered(manifests: ManifestService, driver: StorageDriver) -> None:
    """What was wrong once is right when it is repaired."""
    path = blob_path(images.digest(OLD))
    for damage, media_type in ((b"x" * 7, "application/octet-stream"), (PLATFORMS, images.OCI_INDEX)):
        await driver.put_content(path, damage)
        assert await manifests.describe([name_of(OLD)]) == [Descriptor(media_type, name_of(OLD), len(damage))]
    await driver.put_content(path, OLD)
    assert await manifests.describe([name_of(OLD)]) == [Descriptor(images.OCI_IMAGE, name_of(OLD), len(OLD))]


async def test_what_cannot_be_described(repository: Repository, watched: FaultyDriver) -> None:
    """Too large, gone while we look, unreadable: an error in its place, and the others are described."""
    manifests = Registry(watched).repository(NAME).manifests
    await manifests.put_together(ALL)
    large = b"{" + b" " * MANIFEST_LIMIT
    await watched.put_content(blob_path(images.digest(large)), large)
    await watched.put_content(revision_path(name_of(large)), images.digest(large).encode())

    async def remove(what: str, path: str) -> None:
        if what == "get_contents" and "/data" in path:
            await watched.disk.driver.delete(blob_path(images.digest(AMD64)))
            watched.on_call = None

    watched.on_call = remove
    found = await manifests.describe([name_of(large), name_of(AMD64), name_of(ARM64)])
    assert [type(one) for one in found] == [ManifestTooLarge, ManifestUnknownRevision, Descriptor]

    refusing = Registry(Refusing(watched, blob_path(images.digest(ARM64)))).repository(NAME).manifests
    found = await refusing.describe([name_of(ARM64), name_of(WINDOWS)])
    assert [type(one) for one in found] == [AccessDenied, Descriptor]


async def test_few_are_remembered() -> None:
    """Those that were asked for last."""
    known = MediaTypes(limit=3)
    for content in (b"a", b"b", b"c"):
        known.learn(name_of(content), "x/y")
    assert known.find(name_of(b"a")) == "x/y"
    known.learn(name_of(b"d"), "x/z")
    assert len(known) == 3
    assert {content: known.find(name_of(content)) for content in (b"a", b"b", b"c", b"d")} == {
        b"a": "x/y",
        b"b": None,
        b"c": "x/y",
        b"d": "x/z",
    }


# --- reached ---------------------------------------------------------------------------------------------------------


async def test_what_an_image_reaches(manifests: ManifestService) -> None:
    """Itself, its config, its layers."""
    await manifests.put_together(ALL)
    assert await manifests.reachable([name_of(AMD64)]) == digests(AMD64, CONFIG, LAYER)


async def test_what_an_index_reaches(manifests: ManifestService) -> None:
    """All that its manifests reach, however deep."""
    await manifests.put_together(ALL)
    assert await manifests.reachable([name_of(PLATFORMS)]) == digests(
        PLATFORMS, AMD64, ARM64, CONFIG, LAYER, OTHER_LAYER
    )
    assert await manifests.reachable([name_of(EVERYTHING), name_of(OLD)]) == digests(
        *ALL, OLD, CONFIG, LAYER, OTHER_LAYER
    )
    assert await manifests.reachable([]) == frozenset()


async def store(driver: StorageDriver, document: dict[str, Any] | bytes, name: str = NAME) -> Digest:
    """A manifest as somebody may have put it into storage, whatever it is."""
    content = document if isinstance(document, bytes) else encode(document)
    await driver.put_content(blob_path(images.digest(content)), content)
    await driver.put_content(revision_path(images.digest(content), name), images.digest(content).encode())
    return name_of(content)


async def test_what_other_kinds_reach(manifests: ManifestService, driver: StorageDriver) -> None:
    """Docker's lists and images, schema 1, layers that are elsewhere, digests by other algorithms."""
    list_of_one = encode(docker_list([WINDOWS]))
    old = encode(schema1([LAYER, OTHER_LAYER]))
    sha512 = images.digest(b"z", "sha512")
    foreign = encode(
        oci_image(CONFIG)
        | {
            "layers": [
                describe(b"elsewhere", images.OCI_FOREIGN, urls=["https://example.com/x"]),
                describe(b"z", images.OCI_LAYER) | {"digest": sha512},
            ]
        }
    )
    for content in (list_of_one, WINDOWS, old, foreign):
        await store(driver, content)
    assert await manifests.reachable([name_of(list_of_one)]) == digests(
        list_of_one, WINDOWS, CONFIG, LAYER, OTHER_LAYER
    )
    assert await manifests.reachable([name_of(old)]) == digests(old, LAYER, OTHER_LAYER)
    assert await manifests.reachable([name_of(foreign)]) == digests(foreign, CONFIG, b"elsewhere") | {
        Digest.parse(sha512)
    }


@pytest.mark.parametrize("name", [images.digest(LAYER, "sha512"), f"tarsum.v1+sha256:{'ab' * 32}"])
async def test_a_layer_by_another_name(manifests: ManifestService, driver: StorageDriver, name: str) -> None:
    """Is reached by its canonical digest too: that link must not be taken for unused."""
    layer = describe(LAYER, images.OCI_LAYER) | {"digest": name}
    image = encode(schema1([OTHER_LAYER]) | {"fsLayers": [{"blobSum": name}]})
    if name.startswith("sha512"):
        image = encode(oci_image(CONFIG) | {"layers": [layer]})
    await store(driver, image)
    assert name_of(LAYER) not in await manifests.reachable([name_of(image)])
    await driver.put_content(link_path(NAME, name), images.digest(LAYER).encode())
    assert name_of(LAYER) in await manifests.reachable([name_of(image)])
    refused = Registry(Refusing(driver, link_path(NAME, name))).repository(NAME).manifests
    with pytest.raises(AccessDenied):
        await refused.reachable([name_of(image)])


async def test_a_subject_is_not_reached(manifests: ManifestService, driver: StorageDriver) -> None:
    """Who keeps a signature does not keep what is signed."""
    signature = encode(oci_image(CONFIG, [LAYER], subject=describe(OLD, images.OCI_IMAGE)))
    await store(driver, signature)
    assert await manifests.reachable([name_of(signature)]) == digests(signature, CONFIG, LAYER)


async def test_what_is_not_there_is_named(manifests: ManifestService, driver: StorageDriver) -> None:
    """And refers to nothing: no link or a wrong one, no blob, another repository's, too large, or no manifest."""
    unlinked, dangling, elsewhere = (encode(oci_image(text)) for text in (b"u", b"d", b"e"))
    garbage, large = b"{no", b" " * (MANIFEST_LIMIT + 1)
    for content in (dangling, garbage, large):
        await store(driver, content)
    await store(driver, elsewhere, "foo/other")
    await driver.delete(blob_path(images.digest(dangling)))
    await driver.put_content(blob_path(images.digest(unlinked)), unlinked)
    mismatch = name_of(b"mismatch")
    await driver.put_content(revision_path(mismatch), str(name_of(OLD)).encode())
    parent = await store(driver, oci_index([unlinked, dangling, elsewhere, garbage, large, b"mismatch", b"nowhere"]))
    wanted = digests(unlinked, dangling, elsewhere, garbage, large, b"mismatch", b"nowhere")
    assert await manifests.reachable([parent]) == wanted | {parent}
    assert await manifests.reachable(wanted) == wanted


async def test_each_manifest_is_read_once(repository: Repository, watched: FaultyDriver) -> None:
    """However many paths lead to it: ten levels of ten indexes, each of all below, would be 10^10 of them."""
    level: list[bytes] = [AMD64]
    everything = {AMD64}
    await store(watched, AMD64)
    for _ in range(10):
        level = [encode(oci_index([*level, *level], annotations={"n": str(number)})) for number in range(10)]
        everything.update(level)
        for content in level:
            await store(watched, content)
    watched.arm(None)
    found = await Registry(watched).repository(NAME).manifests.reachable([name_of(content) for content in level])
    assert found == digests(*everything, CONFIG, LAYER)
    read = [line for line in watched.log if line.startswith("get_contents") and "/data" in line]
    assert sum(line.count("/data") for line in read) == len(everything) == 101
    assert watched.calls == 11 * 3


async def test_a_manifest_on_several_levels(repository: Repository, watched: FaultyDriver) -> None:
    """Is read on the first one that it is on."""
    manifests = Registry(watched).repository(NAME).manifests
    top = encode(oci_index([AMD64, PLATFORMS]))
    await manifests.put_together([top, *ALL])
    watched.arm(None)
    assert await manifests.reachable([name_of(top)]) == digests(
        top, AMD64, PLATFORMS, ARM64, CONFIG, LAYER, OTHER_LAYER
    )
    read = [line for line in watched.log if line.startswith("get_contents") and "/data" in line]
    assert sum(line.count("/data") for line in read) == 4


async def test_damaged_manifests_that_go_in_circles(manifests: ManifestService, driver: StorageDriver) -> None:
    """No digests make a circle, but what is stored by them can."""
    one, two = name_of(b"one"), name_of(b"two")
    for digest, child in ((one, b"two"), (two, b"one")):
        await driver.put_content(blob_path(str(digest)), encode(oci_index([child, AMD64])))
        await driver.put_content(revision_path(digest), str(digest).encode())
    assert await manifests.reachable([one]) == {one, two} | digests(AMD64)


@pytest.mark.parametrize("depth", [16, 17])
async def test_indexes_in_indexes(manifests: ManifestService, driver: StorageDriver, depth: int) -> None:
    """Are followed through sixteen levels. Of more it is not said what they reach: somebody would delete the rest."""
    content = AMD64
    digest = await store(driver, content)
    for _ in range(depth - 1):
        content = encode(oci_index() | {"manifests": [describe(content, images.OCI_INDEX)]})
        digest = await store(driver, content)
    if depth == 16:
        assert name_of(LAYER) in await manifests.reachable([digest])
        return
    with pytest.raises(ManifestReferencesTooMany) as caught:
        await manifests.reachable([digest])
    assert "16" in str(caught.value)


async def test_too_many_to_follow(
    manifests: ManifestService, driver: StorageDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory is bounded: beyond that many there is an error, and never an answer that lacks something."""
    image = encode(oci_image(CONFIG, [b"%d" % number for number in range(98)]))
    await store(driver, image)
    monkeypatch.setattr(reachable_module, "REACHABLE_LIMIT", 100)
    assert len(await manifests.reachable([name_of(image)])) == 100
    monkeypatch.setattr(reachable_module, "REACHABLE_LIMIT", 99)
    with pytest.raises(ManifestReferencesTooMany) as caught:
        await manifests.reachable([name_of(image)])
    assert "99" in str(caught.value)


async def test_a_hostile_index() -> None:
    """As many children as fit into a manifest, none of them there: answered at once, others run meanwhile."""
    driver = MemoryDriver()
    manifests = (await Registry.open(driver, create=True)).repository(NAME).manifests
    children = [b"%d" % number for number in range(10_000)]
    index = encode(oci_index() | {"manifests": [describe(child, images.OCI_INDEX) for child in children]})
    await store(driver, index)
    others = 0

    async def other() -> None:
        nonlocal others
        while True:
            await trio.lowlevel.checkpoint()
            others += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        found = await manifests.reachable([name_of(index)])
        nursery.cancel_scope.cancel()
    assert found == digests(index, *children)
    assert others > 0


async def test_reading_that_fails(repository: Repository, watched: FaultyDriver) -> None:
    """Is an error of describing and of reaching, never a manifest that is not there."""
    manifests = Registry(watched).repository(NAME).manifests
    calls: list[Callable[[], Awaitable[object]]] = [
        lambda: manifests.describe([name_of(OLD)]),
        lambda: manifests.reachable([name_of(OLD)]),
    ]
    for call in calls:
        for number in (1, 2, 3):
            watched.arm(Fault(number, "before", "fail"))
            with pytest.raises(BackendFailure):
                await call()
    refused = Registry(Refusing(watched, "/data")).repository(NAME).manifests
    with pytest.raises(AccessDenied):
        await refused.reachable([name_of(OLD)])
    refused = Registry(Refusing(watched, "/revisions/")).repository(NAME).manifests
    with pytest.raises(AccessDenied):
        await refused.reachable([name_of(OLD)])
