"""Tags: what they mean, meant, and how they come and go."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest
import trio.testing
from harness.faulty_driver import Disk, Fault, FaultyDriver, InjectedFailure, ProcessDied
from harness.images import digest, encode, oci_image
from harness.invariants import blob_path
from harness.walk import files_in

from layerfs.digest import Digest
from layerfs.driver.interface import StorageDriver
from layerfs.driver.local import LocalDriver
from layerfs.errors import (
    AccessDenied,
    BackendFailure,
    InvalidRepositoryName,
    InvalidTag,
    ManifestUnknown,
    ManifestUnknownRevision,
    TagUnknown,
)
from layerfs.registry import Registry, Repository, Tag, TagService

NAME = "foo/bar"
MANIFESTS = f"/docker/registry/v2/repositories/{NAME}/_manifests"


def index_path(tag: str, manifest: Digest) -> str:
    return f"{MANIFESTS}/tags/{tag}/index/sha256/{manifest.hex}/link"


def current_path(tag: str) -> str:
    return f"{MANIFESTS}/tags/{tag}/current/link"


async def plant(driver: StorageDriver, number: int, name: str = NAME) -> Digest:
    """A manifest as a registry would store it; what it needs is not there, nobody looks."""
    content = encode(oci_image(annotations={"number": str(number)}))
    text = digest(content)
    await driver.put_content(blob_path(text), content)
    revision = f"/docker/registry/v2/repositories/{name}/_manifests/revisions/sha256/{text[7:]}/link"
    await driver.put_content(revision, text.encode())
    return Digest.parse(text)


@pytest.fixture
def repository(registry: Registry) -> Repository:
    """A repository that has nothing in storage yet."""
    return registry.repository(NAME)


@pytest.fixture
def tags(repository: Repository) -> TagService:
    return repository.tags


# --- get, tag, untag -----------------------------------------------------------------------------------------------


async def test_get_gives_what_was_tagged(tags: TagService, driver: StorageDriver) -> None:
    """And storage has the two links that a registry makes, to the byte."""
    one = await plant(driver, 1)
    before = await files_in(driver)
    await tags.tag("v1", one)
    assert await tags.get("v1") == one
    link = str(one).encode()
    assert await files_in(driver) == before | {index_path("v1", one): link, current_path("v1"): link}


async def test_retagging(tags: TagService, driver: StorageDriver) -> None:
    """The tag means the newest; the index keeps them all."""
    one, two = await plant(driver, 1), await plant(driver, 2)
    await tags.tag("v1", one)
    await tags.tag("v1", two)
    assert await tags.get("v1") == two
    files = await files_in(driver)
    assert index_path("v1", one) in files
    assert index_path("v1", two) in files


async def test_tagging_again_changes_nothing(tags: TagService, driver: StorageDriver) -> None:
    """The same tag to the same manifest may be made any number of times."""
    one = await plant(driver, 1)
    await tags.tag("v1", one)
    before = await files_in(driver)
    await tags.tag("v1", one)
    assert await files_in(driver) == before


@pytest.mark.parametrize("known", ["nothing", "blob", "revision", "other repository"])
async def test_tagging_what_is_not_there(tags: TagService, driver: StorageDriver, known: str) -> None:
    """Only a manifest of this repository, with its bytes in storage, can be tagged; else nothing is changed."""
    one = await plant(driver, 1, "foo/other" if known == "other repository" else NAME)
    if known in ("nothing", "revision"):
        await driver.delete(blob_path(str(one)))
    if known in ("nothing", "blob"):
        await driver.delete(f"{MANIFESTS}/revisions/sha256/{one.hex}/link")
    before = await files_in(driver)
    with pytest.raises(ManifestUnknownRevision) as caught:
        await tags.tag("v1", one)
    assert (caught.value.name, caught.value.digest) == (NAME, one)
    assert await files_in(driver) == before


async def test_an_unknown_tag(tags: TagService, driver: StorageDriver) -> None:
    """Is a `TagUnknown` with its values, which is a kind of `ManifestUnknown`."""
    await plant(driver, 1)
    with pytest.raises(ManifestUnknown) as caught:
        await tags.get("v1")
    assert isinstance(caught.value, TagUnknown)
    assert (caught.value.name, caught.value.tag) == (NAME, "v1")


async def test_untagging(tags: TagService, driver: StorageDriver) -> None:
    """Takes the tag away with its history, and nothing else."""
    one, two = await plant(driver, 1), await plant(driver, 2)
    before = await files_in(driver)
    await tags.tag("v2", two)
    kept = await files_in(driver)
    await tags.tag("v1", one)
    await tags.tag("v1", two)
    await tags.untag("v1")
    assert await files_in(driver) == kept
    with pytest.raises(TagUnknown):
        await tags.get("v1")
    await tags.untag("v2")
    assert await files_in(driver) == before


async def test_untagging_what_is_no_tag(tags: TagService, driver: StorageDriver) -> None:
    """Is an error, though what a crash left of a tag goes."""
    one = await plant(driver, 1)
    before = await files_in(driver)
    with pytest.raises(TagUnknown):
        await tags.untag("v1")
    await driver.put_content(index_path("v1", one), str(one).encode())
    with pytest.raises(TagUnknown):
        await tags.untag("v1")
    assert await files_in(driver) == before


async def test_untagging_does_not_take_similar_names(tags: TagService, driver: StorageDriver) -> None:
    """`v1` is not `v1.1`."""
    one = await plant(driver, 1)
    for tag in ("v1", "v1.1", "v", "V1"):
        await tags.tag(tag, one)
    await tags.untag("v1")
    assert [tag.name for tag in await tags.list()] == ["V1", "v", "v1.1"]


GOOD_TAGS = ["a", "_", "0", "A.b-C_d", "v1.0.0", "x" * 128, "latest", "sha256-" + "a" * 64]
BAD_TAGS = ["", ".", "..", "-a", ".a", "x" * 129, "a/b", "a b", "a\n", "ä", "a:b", "a\0", "\ud800"]


@pytest.mark.parametrize("tag", GOOD_TAGS)
async def test_names_that_are_tags(tags: TagService, driver: StorageDriver, tag: str) -> None:
    """All that the grammar has can be tagged, listed, and untagged."""
    one = await plant(driver, 1)
    await tags.tag(tag, one)
    assert await tags.list() == [Tag(tag, one)]
    await tags.untag(tag)
    assert await tags.list() == []


@pytest.mark.parametrize("tag", BAD_TAGS)
async def test_names_that_are_no_tags(tags: TagService, driver: StorageDriver, tag: str) -> None:
    """Are refused by every method, before storage is touched."""
    one = await plant(driver, 1)
    before = await files_in(driver)
    for call in (tags.get, tags.untag, tags.history):
        with pytest.raises(InvalidTag):
            await call(tag)
    with pytest.raises(InvalidTag):
        await tags.tag(tag, one)
    assert await files_in(driver) == before


async def test_tagging_where_no_repository_can_be_made(registry: Registry, driver: StorageDriver) -> None:
    """What may be read is more than what may be written."""
    one = await plant(driver, 1, "Foo/bar")
    with pytest.raises(InvalidRepositoryName):
        await registry.repository("Foo/bar").tags.tag("v1", one)


# --- listing -------------------------------------------------------------------------------------------------------


async def test_no_tags(tags: TagService, registry: Registry) -> None:
    """Nothing is listed, whether the repository is there or not."""
    assert await tags.list() == []
    await registry.create_repository(NAME)
    assert await tags.list() == []


async def test_a_listing(tags: TagService, driver: StorageDriver) -> None:
    """Every tag with what it means, in order of the bytes of their names."""
    one, two = await plant(driver, 1), await plant(driver, 2)
    for tag in ("v10", "v2", "latest", "V1", "_x", "1"):
        await tags.tag(tag, one)
    await tags.tag("v2", two)
    assert await tags.list() == [
        Tag(tag, two if tag == "v2" else one) for tag in ["1", "V1", "_x", "latest", "v10", "v2"]
    ]


async def test_what_is_no_tag_is_not_listed(tags: TagService, driver: StorageDriver) -> None:
    """Directories without `current/link`, with a bad one, and other things that lie there."""
    one = await plant(driver, 1)
    await tags.tag("good", one)
    link = str(one).encode()
    await driver.put_content(index_path("no-current", one), link)
    await driver.make_directory(f"{MANIFESTS}/tags/empty")
    await driver.make_directory(current_path("directory"))
    await driver.put_content(current_path("newline"), link + b"\n")
    await driver.put_content(current_path("huge"), b"x" * 1_000_000)
    await driver.put_content(current_path("-dash"), link)
    await driver.put_content(f"{MANIFESTS}/tags/file", link)
    await driver.put_content(f"{MANIFESTS}/tags/left-over/current/link.f81d4fae.tmp", link)
    assert await tags.list() == [Tag("good", one)]
    for tag in ("no-current", "empty", "newline", "huge", "file", "left-over"):
        with pytest.raises(TagUnknown):
            await tags.get(tag)


async def test_a_tag_to_a_missing_manifest(tags: TagService, driver: StorageDriver, repository: Repository) -> None:
    """Is a tag: it is listed and can be removed; only its manifest cannot be had."""
    gone = Digest.of(b"gone")
    await driver.put_content(current_path("broken"), str(gone).encode())
    assert await tags.list() == [Tag("broken", gone)]
    with pytest.raises(ManifestUnknownRevision):
        await repository.manifests.get_by_tag("broken")
    await tags.untag("broken")
    assert await tags.list() == []


async def test_a_listing_costs_two_requests(registry: Registry, watched: FaultyDriver) -> None:
    """However many tags there are."""
    tags = Registry(watched).repository(NAME).tags
    one = await plant(registry.driver, 1)
    for number in range(50):
        await tags.tag(f"v{number}", one)
    watched.arm(None)
    assert len(await tags.list()) == 50
    assert watched.calls == 2


async def test_a_tag_in_flux(registry: Registry, watched: FaultyDriver, autojump_clock: trio.testing.MockClock) -> None:
    """A link that a 2.8 registry is just rewriting is read again, not taken for none."""
    one = await plant(registry.driver, 1)
    await registry.driver.put_content(current_path("v1"), b"")
    reads = 0

    async def complete(what: str, path: str) -> None:
        nonlocal reads
        reads += what == "get_contents"
        if reads == 3:
            await registry.driver.put_content(current_path("v1"), str(one).encode())

    watched.on_call = complete
    assert await Registry(watched).repository(NAME).tags.list() == [Tag("v1", one)]


async def test_what_others_do_is_seen_at_once(tags: TagService, driver: StorageDriver) -> None:
    """Tags are never cached."""
    one, two = await plant(driver, 1), await plant(driver, 2)
    for manifest in (one, two, one):
        await driver.put_content(current_path("v1"), str(manifest).encode())
        assert await tags.get("v1") == manifest
        assert await tags.list() == [Tag("v1", manifest)]
    await driver.delete(f"{MANIFESTS}/tags/v1")
    assert await tags.list() == []


class Refusing(FaultyDriver):
    """Cannot read the links of some paths."""

    refused = ""

    async def get_contents(self, paths, *, limit):  # type: ignore[no-untyped-def]
        found = await super().get_contents(paths, limit=limit)
        return [AccessDenied(path) if self.refused in path else one for path, one in zip(paths, found, strict=True)]


async def test_a_tag_that_cannot_be_read(registry: Registry) -> None:
    """Is left out of a listing, and fails it if there is no other; a lookup, which deletions rely on, fails."""
    driver = Refusing(Disk(registry.driver))
    tags = Registry(driver).repository(NAME).tags
    one = await plant(registry.driver, 1)
    driver.refused = "nothing"
    await tags.tag("a", one)
    await tags.tag("b", one)
    driver.refused = "/tags/a/"
    assert await tags.list() == [Tag("b", one)]
    with pytest.raises(AccessDenied):
        await tags.lookup(one)
    driver.refused = "/tags/"
    with pytest.raises(AccessDenied):
        await tags.list()
    with pytest.raises(AccessDenied):
        await tags.get("a")


# --- lookup, history ---------------------------------------------------------------------------------------------


async def test_lookup(tags: TagService, driver: StorageDriver) -> None:
    """The tags that mean a manifest now: none, or all of them; those that meant it once do not count."""
    one, two = await plant(driver, 1), await plant(driver, 2)
    assert await tags.lookup(one) == []
    for tag, manifest in [("b", one), ("a", one), ("c", two), ("d", one), ("d", two)]:
        await tags.tag(tag, manifest)
    assert await tags.lookup(one) == ["a", "b"]
    assert await tags.lookup(two) == ["c", "d"]


async def test_lookup_passes_over_what_is_no_tag(
    tags: TagService, driver: StorageDriver, autojump_clock: trio.testing.MockClock
) -> None:
    """A bad or missing link does not keep the others from being found."""
    one = await plant(driver, 1)
    await tags.tag("good", one)
    await driver.put_content(current_path("bad"), b"x")
    await driver.make_directory(f"{MANIFESTS}/tags/empty")
    assert await tags.lookup(one) == ["good"]


async def test_history(tags: TagService, driver: StorageDriver) -> None:
    """Every manifest that the tag has meant, once, the present one last; of its own, not of other tags."""
    one, two, three = [await plant(driver, number) for number in (1, 2, 3)]
    for tag, manifest in [("v1", one), ("v1", two), ("other", three), ("v1", one)]:
        await tags.tag(tag, manifest)
    assert await tags.history("v1") == [two, one]
    assert await tags.history("other") == [three]
    with pytest.raises(TagUnknown):
        await tags.history("unknown")


async def test_history_is_in_order_of_time(tmp_path: Path) -> None:
    """By when the tag last meant each, oldest first."""
    driver = LocalDriver(str(tmp_path))
    tags = Registry(driver).repository(NAME).tags
    manifests = [await plant(driver, number) for number in range(5)]
    for manifest in manifests:
        await tags.tag("v1", manifest)
    for age, manifest in enumerate([manifests[3], manifests[0], manifests[2], manifests[1]]):
        os.utime(f"{tmp_path}{index_path('v1', manifest)}", (1_000_000 + age, 1_000_000 + age))
    assert await tags.history("v1") == [manifests[number] for number in (3, 0, 2, 1, 4)]


async def test_history_without_an_index(tags: TagService, driver: StorageDriver) -> None:
    """Is what the tag means; bad links in an index are passed over."""
    one, two = await plant(driver, 1), await plant(driver, 2)
    await driver.put_content(current_path("v1"), str(one).encode())
    assert await tags.history("v1") == [one]
    await driver.put_content(index_path("v1", two), str(one).encode())
    await driver.put_content(f"{MANIFESTS}/tags/v1/index/sha256/README", b"x")
    assert await tags.history("v1") == [one]


# --- interrupted ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("how", ["die", "fail", "cancel"])
@pytest.mark.parametrize("what", ["tag", "retag", "untag"])
async def test_interrupted_anywhere(registry: Registry, what: str, how: str, when: str) -> None:
    """The tag means the old or the new manifest, or is none; doing it again completes it."""
    one, two = await plant(registry.driver, 1), await plant(registry.driver, 2)
    for call in range(1, 20):
        tags = registry.repository(NAME).tags
        if what != "tag":
            await tags.tag("v1", one)
        driver = FaultyDriver(Disk(registry.driver))
        driver.arm(Fault(call, when, how))  # type: ignore[arg-type]
        faulty = Registry(driver).repository(NAME).tags
        with driver.scope, contextlib.suppress(ProcessDied, InjectedFailure):
            await (faulty.untag("v1") if what == "untag" else faulty.tag("v1", two))
        if not driver.has_struck:
            break
        found = {tag.digest for tag in await tags.list()}
        assert found <= ({two} if what == "tag" else {one} if what == "untag" else {one, two})
        if what == "untag":
            try:
                await tags.untag("v1")
            except TagUnknown:
                assert not found
            assert not [path for path in await files_in(registry.driver) if "/tags/" in path]
        else:
            await tags.tag("v1", two)
            assert await tags.list() == [Tag("v1", two)]
            await tags.untag("v1")
    assert call > 2, "the fault never struck"
    assert driver.calls == call - 1


async def test_storage_out_of_reach(registry: Registry, watched: FaultyDriver) -> None:
    """Is what it is, never a tag that is unknown."""
    one = await plant(registry.driver, 1)
    tags = Registry(watched).repository(NAME).tags
    await tags.tag("v1", one)
    for call in (lambda: tags.get("v1"), tags.list, lambda: tags.lookup(one), lambda: tags.untag("v1")):
        watched.arm(Fault(1, "before", "fail"))
        with pytest.raises(BackendFailure):
            await call()
    assert await tags.get("v1") == one
