"""Every kind of fault, made by hand in storage that was clean: found, and nothing else. And what is no fault."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from datetime import timedelta
from pathlib import Path

import pytest
import trio
from harness.damage import state_of
from harness.faulty_driver import Disk, FaultyDriver
from harness.handmade import (
    BLOBS,
    CONFIG,
    LAYER,
    MANIFEST,
    REPOSITORIES,
    UUID,
    V2,
    Tree,
    ago,
    describe,
    sha256,
)
from harness.invariants import link_path
from harness.tarsums import LABELS, archive, tarsum_of

from layerfs.driver.interface import StorageDriver
from layerfs.driver.local import LocalDriver
from layerfs.errors import AccessDenied, InvalidRepositoryName, PathNotFound, RepositoryUnknown
from layerfs.registry import Registry
from layerfs.registry.maintenance import Fault, FaultKind, Progress, check

FAKE = "sha256:" + "0" * 63 + "1"
HEX = FAKE.partition(":")[2]
APP = f"{REPOSITORIES}/team/app"


async def faults_of(registry: Registry, **options: object) -> list[Fault]:
    async with aclosing(check(registry, settle=0, **options)) as faults:
        return [fault async for fault in faults]


async def kinds_of(registry: Registry, **options: object) -> list[tuple[str, str]]:
    return [(fault.kind.value, fault.place) for fault in await faults_of(registry, **options)]


# --- each kind, once -----------------------------------------------------------------------------------------------


async def truncate(tree: Tree) -> str:
    await tree.put_blob(LAYER, stored=LAYER[:1000])
    return f"sha256:{sha256(LAYER)}"


async def empty_blob(tree: Tree) -> str:
    await tree.put_blob(LAYER, stored=b"")
    return f"sha256:{sha256(LAYER)}"


async def corrupt(tree: Tree) -> str:
    await tree.put_blob(LAYER, stored=LAYER[:-1] + b"X")
    return f"sha256:{sha256(LAYER)}"


async def corrupt_manifest(tree: Tree) -> str:
    await tree.put_blob(MANIFEST, stored=MANIFEST.replace(b"amd64", b"amd65").replace(b"layer.v1", b"layer.v2"))
    return f"sha256:{sha256(MANIFEST)}"


async def link_layer(tree: Tree, content: str) -> str:
    await tree.put(f"{APP}/_layers/sha256/{HEX}/link", content)
    return f"team/app {FAKE}"


async def dangling_layer(tree: Tree) -> str:
    return await link_layer(tree, FAKE)


async def empty_link(tree: Tree) -> str:
    return await link_layer(tree, "")


async def newline_link(tree: Tree) -> str:
    return await link_layer(tree, f"{FAKE}\n")


async def junk_link(tree: Tree) -> str:
    return await link_layer(tree, "junk")


async def huge_link(tree: Tree) -> str:
    return await link_layer(tree, "x" * 1_000_000)


async def link_elsewhere(tree: Tree) -> str:
    return await link_layer(tree, f"sha256:{sha256(LAYER)}")


async def link_tarsum(tree: Tree, content: str, label: str = "tarsum.v1") -> str:
    name = tarsum_of("types.tar", label)
    await tree.put(link_path("team/app", name), content)
    return f"team/app {name}"


async def dangling_tarsum(tree: Tree) -> str:
    return await link_tarsum(tree, FAKE, "tarsum")


async def empty_tarsum(tree: Tree) -> str:
    return await link_tarsum(tree, "", "tarsum.dev")


async def newline_tarsum(tree: Tree) -> str:
    return await link_tarsum(tree, f"sha256:{sha256(LAYER)}\n")


async def junk_tarsum(tree: Tree) -> str:
    return await link_tarsum(tree, "junk")


async def tarsum_of_a_tarsum(tree: Tree) -> str:
    """As registries wrote it for a month in 2015, before content was stored by its SHA-256."""
    return await link_tarsum(tree, tarsum_of("types.tar"))


async def tarsum_of_an_alias(tree: Tree) -> str:
    return await link_tarsum(tree, f"sha512:{hashlib.sha512(LAYER).hexdigest()}")


async def tarsum_tmp(tree: Tree) -> str:
    await link_tarsum(tree, f"sha256:{sha256(LAYER)}")
    await tree.put(link_path("team/app", tarsum_of("types.tar")) + ".0123.tmp", "half")
    return f"team/app {tarsum_of('types.tar')}"


async def tarsum_of_what_is_no_layer(tree: Tree) -> str:
    await tree.put_blob(b"a blob of others")
    await tree.put_layer("other", b"a blob of others")
    return await link_tarsum(tree, f"sha256:{sha256(b'a blob of others')}")


async def alias_of_what_is_no_layer(tree: Tree) -> str:
    await tree.put_blob(b"deleted")
    alias = hashlib.sha512(b"deleted").hexdigest()
    await tree.put(f"{APP}/_layers/sha512/{alias}/link", f"sha256:{sha256(b'deleted')}")
    return f"team/app sha512:{alias}"


async def put_signature(tree: Tree, link: str) -> str:
    """Of the image, as registries before 2.5 kept it; returns its place."""
    await tree.put_blob(b"{signature}")
    signed = tree.revision_path("team/app", MANIFEST).removesuffix("link")
    await tree.put(f"{signed}signatures/sha256/{sha256(b'{signature}')}/link", link)
    return f"team/app sha256:{sha256(b'{signature}')}"


async def empty_signature(tree: Tree) -> str:
    return await put_signature(tree, "")


async def signature_elsewhere(tree: Tree) -> str:
    return await put_signature(tree, f"sha256:{sha256(LAYER)}")


async def lost_layer_blob(tree: Tree) -> str:
    await tree.driver.delete(tree.blob_path(LAYER))
    return f"team/app sha256:{sha256(LAYER)}"


async def lost_layer_link(tree: Tree) -> str:
    await tree.driver.delete(tree.layer_path("team/app", LAYER))
    return f"team/app sha256:{sha256(MANIFEST)}"


async def tag_nothing(tree: Tree) -> str:
    await tree.put(f"{APP}/_manifests/tags/broken/current/link", FAKE)
    return f"team/app:broken {FAKE}"


async def empty_tag(tree: Tree) -> str:
    await tree.put(f"{APP}/_manifests/tags/v1/current/link", "")
    return "team/app:v1"


async def empty_history(tree: Tree) -> str:
    await tree.put(f"{APP}/_manifests/tags/v1/index/sha256/{HEX}/link", "")
    return f"team/app:v1 {FAKE}"


async def half_a_tag(tree: Tree) -> str:
    await tree.put(f"{APP}/_manifests/tags/half/index/sha256/{sha256(MANIFEST)}/link", f"sha256:{sha256(MANIFEST)}")
    return "team/app:half"


async def dangling_revision(tree: Tree) -> str:
    await tree.put(f"{APP}/_manifests/revisions/sha256/{HEX}/link", FAKE)
    return f"team/app {FAKE}"


async def orphan(tree: Tree) -> str:
    await tree.put_blob(b"orphan")
    return f"sha256:{sha256(b'orphan')}"


async def not_json(tree: Tree) -> str:
    await tree.put_manifest("team/app", b"{no")
    return f"team/app sha256:{sha256(b'{no')}"


async def no_manifest(tree: Tree) -> str:
    await tree.put_manifest("team/app", b'{"schemaVersion": 7}')
    return "team/app sha256:" + sha256(b'{"schemaVersion": 7}')


async def huge_manifest(tree: Tree) -> str:
    content = b" " * ((4 << 20) + 1)
    await tree.put_manifest("team/app", content)
    return f"team/app sha256:{sha256(content)}"


async def blob_tmp(tree: Tree) -> str:
    await tree.put(f"{tree.blob_path(LAYER)}.0123.tmp", "half")
    return f"sha256:{sha256(LAYER)}"


async def layer_tmp(tree: Tree) -> str:
    await tree.put(f"{tree.layer_path('team/app', LAYER)}.0123.tmp", "half")
    return f"team/app sha256:{sha256(LAYER)}"


async def tag_tmp(tree: Tree) -> str:
    await tree.put(f"{APP}/_manifests/tags/v1/current/link.0123.tmp", "half")
    return "team/app:v1"


async def lose_manifests(tree: Tree) -> str:
    await tree.driver.delete(f"{APP}/_manifests")
    return "team/app"


async def lose_layers(tree: Tree) -> str:
    await tree.driver.delete(f"{APP}/_layers")
    return "team/app"


async def old_upload(tree: Tree) -> str:
    await tree.put_upload("team/app", started_at=ago(days=8))
    return f"team/app {UUID}"


async def upload_without_startedat(tree: Tree) -> str:
    await tree.put_upload("team/app", started_at=None)
    return f"team/app {UUID}"


async def upload_with_bad_startedat(tree: Tree) -> str:
    await tree.put_upload("team/app", started_at="yesterday")
    return f"team/app {UUID}"


async def upload_with_bad_hashstate(tree: Tree) -> str:
    await tree.put_upload("team/app", started_at=ago(days=300), n3=b"not-a-state")
    return f"team/app {UUID}"


async def state_of_other_bytes(tree: Tree) -> str:
    await tree.put_upload("team/app", started_at=ago(days=1), n3=state(count=5))
    return f"team/app {UUID}"


async def too_large(tree: Tree) -> str:
    await tree.put_blob(LAYER, stored=LAYER + b"more")
    return f"sha256:{sha256(LAYER)}"


async def misplace(tree: Tree) -> str:
    await tree.put(f"{BLOBS}/ab/xyz/data", "what")
    return f"{BLOBS}/ab/xyz/data"


#: Where a `data` stops a registry's garbage collection, though nobody ever puts one there.
MISPLACED = [
    "data",
    "foo/data",
    "sha256/data",
    "sha256/ab/data",
    f"sha256/ab/{HEX}/data",
    f"md5/{HEX[:2]}/{HEX}/data",
    f"sha256/{sha256(LAYER)[:2]}/{sha256(LAYER)}/more/data",
    f"sha256/{sha256(LAYER)[:2]}/{sha256(LAYER)}/more/and/more/data",
    f"tarsum/v1/sha256/{HEX[:2]}/{HEX}/data",
]


def state(count: int) -> bytes:
    """Something in the form of the hash state of that many bytes."""
    return b"sha\x03" + bytes(32) + b"x" * (count % 64) + bytes(64 - count % 64) + struct.pack(">Q", count)


Break = Callable[[Tree], Awaitable[str]]

#: What is done to the storage, and the one fault that it makes.
BREAKS: list[tuple[Break, FaultKind]] = [
    (truncate, FaultKind.TRUNCATED_BLOB),
    (empty_blob, FaultKind.ZERO_LENGTH_BLOB),
    (dangling_layer, FaultKind.DANGLING_LAYER_LINK),
    (lost_layer_blob, FaultKind.DANGLING_LAYER_LINK),
    (dangling_tarsum, FaultKind.DANGLING_LAYER_LINK),
    (tarsum_of_what_is_no_layer, FaultKind.DANGLING_LAYER_LINK),
    (alias_of_what_is_no_layer, FaultKind.DANGLING_LAYER_LINK),
    (empty_link, FaultKind.EMPTY_LINK),
    (empty_tarsum, FaultKind.EMPTY_LINK),
    (empty_signature, FaultKind.EMPTY_LINK),
    (newline_link, FaultKind.LINK_WITH_NEWLINE),
    (newline_tarsum, FaultKind.LINK_WITH_NEWLINE),
    (tag_nothing, FaultKind.TAG_TO_MISSING_MANIFEST),
    (empty_tag, FaultKind.EMPTY_LINK),
    (empty_history, FaultKind.EMPTY_LINK),
    (half_a_tag, FaultKind.TAG_WITHOUT_CURRENT),
    (dangling_revision, FaultKind.DANGLING_REVISION),
    (orphan, FaultKind.ORPHAN_BLOB),
    (not_json, FaultKind.MANIFEST_NOT_JSON),
    (huge_manifest, FaultKind.MANIFEST_NOT_JSON),
    (blob_tmp, FaultKind.LEFT_OVER_TMP),
    (layer_tmp, FaultKind.LEFT_OVER_TMP),
    (tarsum_tmp, FaultKind.LEFT_OVER_TMP),
    (tag_tmp, FaultKind.LEFT_OVER_TMP),
    (lose_manifests, FaultKind.REPO_WITHOUT_MANIFESTS),
    (lose_layers, FaultKind.REPO_WITHOUT_LAYERS),
    (old_upload, FaultKind.OLD_UPLOAD),
    (upload_without_startedat, FaultKind.UPLOAD_WITHOUT_STARTEDAT),
    (upload_with_bad_startedat, FaultKind.UPLOAD_WITH_BAD_STARTEDAT),
    (upload_with_bad_hashstate, FaultKind.UPLOAD_WITH_BAD_HASHSTATE),
    (state_of_other_bytes, FaultKind.UPLOAD_WITH_BAD_HASHSTATE),
    (junk_link, FaultKind.BAD_LINK),
    (huge_link, FaultKind.BAD_LINK),
    (link_elsewhere, FaultKind.BAD_LINK),
    (junk_tarsum, FaultKind.BAD_LINK),
    (signature_elsewhere, FaultKind.BAD_LINK),
    (tarsum_of_a_tarsum, FaultKind.BAD_LINK),
    (tarsum_of_an_alias, FaultKind.BAD_LINK),
    (no_manifest, FaultKind.INVALID_MANIFEST),
    (lost_layer_link, FaultKind.MISSING_REFERENCE),
    (too_large, FaultKind.SIZE_MISMATCH),
    (misplace, FaultKind.MISPLACED_BLOB),
]


#: An object store has no temporary files, and there `_manifests` goes with the last manifest.
ONLY_WITH_DIRECTORIES = {FaultKind.LEFT_OVER_TMP, FaultKind.REPO_WITHOUT_MANIFESTS}


async def test_a_clean_registry_has_no_faults(registry: Registry) -> None:
    """Nothing is found where nothing is wrong, with or without --deep."""
    assert await kinds_of(registry) == []
    assert await kinds_of(registry, deep=True) == []


@pytest.mark.parametrize(("damage", "kind"), BREAKS, ids=lambda value: getattr(value, "__name__", value))
async def test_each_fault_is_found_alone(tree: Tree, registry: Registry, damage: Break, kind: FaultKind) -> None:
    """One thing broken by hand is one fault of its kind, at its place, but for what only directories show."""
    place = await damage(tree)
    is_seen = tree.driver.capabilities.directories or kind not in ONLY_WITH_DIRECTORIES
    assert await kinds_of(registry) == ([(kind.value, place)] if is_seen else [])


@pytest.mark.parametrize("damage", [corrupt, corrupt_manifest], ids=lambda value: value.__name__)
async def test_wrong_bytes_are_found_by_reading_them(tree: Tree, registry: Registry, damage: Break) -> None:
    """A blob of the right size with wrong bytes is found with `deep` only."""
    place = await damage(tree)
    assert await kinds_of(registry) == []
    assert await kinds_of(registry, deep=True) == [("corrupt-blob", place)]


async def test_a_hash_state_of_other_bytes_is_found_by_reading_them(tree: Tree, registry: Registry) -> None:
    """A registry would store a blob that does not match its digest; the state looks good from outside."""
    await tree.put_upload("team/app", started_at=ago(days=1), n3=state_of(b"xyz"))
    assert await kinds_of(registry) == []
    assert await kinds_of(registry, deep=True) == [("upload-with-bad-hashstate", f"team/app {UUID}")]


async def test_a_true_hash_state_is_no_fault(tree: Tree, registry: Registry) -> None:
    """Of data of more than one chunk, and of no data at all."""
    data = b"0123456789" * 1_000_000
    await tree.put_upload("team/app", started_at=ago(days=1), data=data, n10000000=state_of(data))
    await tree.put_upload("other", started_at=ago(days=1), data=None, n0=state_of(b""))
    assert await kinds_of(registry, deep=True) == []


@pytest.mark.parametrize("place", MISPLACED)
async def test_a_misplaced_blob_is_found_anywhere(tree: Tree, registry: Registry, place: str) -> None:
    """At any depth: a registry looks at every file of that name."""
    path = f"{V2}/blobs/{place}"
    await tree.put(path, "what")
    for deep in (False, True):
        assert await kinds_of(registry, deep=deep) == [("misplaced-blob", path)]


#: Places at which nobody looks for a link by its name, but a registry's garbage collection reads what is there.
STRAYS = [
    f"{APP}/_manifests/revisions/foo",
    f"{APP}/_manifests/revisions/sha256/zz",
    f"{APP}/_manifests/revisions/sha256/zz/and/more",
    f"{APP}/_manifests/revisions/md5/{HEX[:32]}",
    f"{APP}/_layers/foo",
    f"{APP}/_layers/sha256/zz",
    f"{APP}/_layers/md5/{HEX[:32]}",
]


@pytest.mark.parametrize("directory", STRAYS)
async def test_a_stray_link_that_is_none_is_found(tree: Tree, registry: Registry, directory: str) -> None:
    """Garbage collection stops at it; at one that is some digest, it does not."""
    for content, kinds in (
        ("", ["empty-link"]),
        ("junk", ["bad-link"]),
        (f"{FAKE}\n", ["link-with-newline"]),
        (FAKE, []),
    ):
        await tree.put(f"{directory}/link", content)
        assert await kinds_of(registry) == [(kind, f"{directory}/link") for kind in kinds]


async def test_other_files_among_blobs_are_no_faults(tree: Tree, registry: Registry) -> None:
    """Nobody looks at them."""
    for place in ("README", "sha256/.directory", f"sha256/{sha256(LAYER)[:2]}/{sha256(LAYER)}/notes"):
        await tree.put(f"{V2}/blobs/{place}", "what")
    await tree.driver.make_directory(f"{V2}/blobs/sha256/ab/{HEX}/data")
    assert await kinds_of(registry) == []


async def test_a_blob_of_wrong_size_is_not_found_twice(tree: Tree, registry: Registry) -> None:
    """What its size gave away is not also corrupt."""
    place = await truncate(tree)
    assert await kinds_of(registry, deep=True) == [("truncated-blob", place)]


async def test_a_blob_that_is_too_large_and_wrong_is_corrupt(tree: Tree, registry: Registry) -> None:
    """With `deep` it is known that the blob is wrong, and not the manifest."""
    place = await too_large(tree)
    assert await kinds_of(registry, deep=True) == [("corrupt-blob", place)]


async def test_a_manifest_that_says_a_wrong_size_is_told_from_a_damaged_blob(tree: Tree, registry: Registry) -> None:
    """A registry does not look at sizes in manifests; with `deep` the blob is known to be good."""
    liar = json.loads(MANIFEST)
    other = b"another layer"
    liar["layers"] = [describe(other, "layer.v1.tar") | {"size": 99}]
    await tree.put_layer("team/app", other)
    await tree.put_manifest("team/app", json.dumps(liar).encode())
    place = f"sha256:{sha256(other)}"
    assert await kinds_of(registry) == [("truncated-blob", place)]
    assert await kinds_of(registry, deep=True) == [("size-mismatch", place)]


async def test_manifests_that_disagree_about_a_size_are_not_believed(tree: Tree, registry: Registry) -> None:
    """If two say different sizes, neither can call the blob damaged."""
    liar = json.loads(MANIFEST)
    liar["layers"][0]["size"] += 1
    await tree.put_manifest("team/app", json.dumps(liar).encode())
    assert await kinds_of(registry) == []


# --- what is no fault ------------------------------------------------------------------------------------------------


async def test_a_deleted_manifest_is_no_orphan(tree: Tree, registry: Registry) -> None:
    """A registry deletes its links; the blob, a manifest, is left to garbage collection, its layers stay linked."""
    await tree.driver.delete(f"{APP}/_manifests/revisions/sha256/{sha256(MANIFEST)}/link")
    await tree.driver.delete(f"{APP}/_manifests/tags/v1")
    await tree.driver.make_directory(f"{APP}/_manifests/revisions")
    assert await kinds_of(registry) == []


async def test_a_repository_with_single_blobs_lacks_no_manifests(tree: Tree, registry: Registry) -> None:
    """Blobs that were uploaded or mounted by themselves are no image that has lost its manifest."""
    await tree.put_layer("given/blobs", CONFIG)
    await tree.put_layer("given/blobs", b"of no image")
    assert await kinds_of(registry) == []


async def test_a_copy_of_an_image_without_its_manifest_lacks_it(tree: Tree, registry: Registry) -> None:
    """All blobs of an image that is elsewhere, and no `_manifests`."""
    await tree.put_layer("another", CONFIG)
    await tree.put_layer("another", LAYER)
    assert await kinds_of(registry) == [("repo-without-manifests", "another")]


async def test_what_is_left_of_a_cancelled_upload_is_no_fault(tree: Tree, registry: Registry) -> None:
    """Every registry leaves it every time, and hides it."""
    await tree.put_upload("team/app", started_at=None, data=None, n0=state(count=0))
    assert await kinds_of(registry) == []


async def test_hash_states_that_are_not_of_this_size_do_not_count(tree: Tree, registry: Registry) -> None:
    """A registry loads the one whose number is the size; others may be anything, or ahead of the data after a crash."""
    await tree.put_upload("team/app", started_at=ago(days=1), n2=b"junk", n3=state(count=3), n9=state(count=9))
    assert await kinds_of(registry) == []


async def test_how_old_an_upload_may_be_can_be_said(tree: Tree, registry: Registry) -> None:
    """`old` is a week unless it is given."""
    await tree.put_upload("team/app", started_at=ago(hours=3))
    assert await kinds_of(registry) == []
    assert await kinds_of(registry, old=timedelta(hours=2)) == [("old-upload", f"team/app {UUID}")]


async def test_an_empty_blob_may_have_the_digest_of_nothing(tree: Tree, registry: Registry) -> None:
    """Registries take it as a layer."""
    await tree.put_layer("team/app", b"")
    assert await kinds_of(registry) == []


async def test_a_layer_with_urls_may_be_elsewhere(tree: Tree, registry: Registry) -> None:
    """A registry takes such a manifest without the blob."""
    manifest = json.loads(MANIFEST)
    manifest["layers"].append(describe(b"elsewhere", "layer.v1.tar") | {"urls": ["https://example.org/layer"]})
    await tree.put_manifest("team/app", json.dumps(manifest).encode())
    assert await kinds_of(registry) == []


async def test_an_index_may_name_what_nobody_has(tree: Tree, registry: Registry) -> None:
    """Sparse indexes are allowed; a child without its blob is the child's fault."""
    index = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json"}
    index["manifests"] = [describe(MANIFEST, "manifest.v1+json"), describe(b"{}", "manifest.v1+json")]
    await tree.put_manifest("team/app", json.dumps(index).encode(), "index")
    assert await kinds_of(registry) == []


async def test_an_alias_is_no_fault(tree: Tree, registry: Registry) -> None:
    """A link by sha512 holds the sha256 digest."""
    alias = hashlib.sha512(LAYER).hexdigest()
    await tree.put(f"{APP}/_layers/sha512/{alias}/link", f"sha256:{sha256(LAYER)}")
    assert await kinds_of(registry) == []


async def test_a_tree_of_the_seed_era_has_no_faults(tree: Tree, registry: Registry) -> None:
    """What a registry 2.0 left: TarSums of every version, other algorithms, an empty layer, ghosts, a signed image."""
    for vector in ("types.tar", "xattr.tar", "zero-length.tar"):
        content = archive(vector)
        await tree.put_layer("library/old", content)
        names = [tarsum_of(vector, label) for label in LABELS]
        for name in [*names, f"sha384:{hashlib.sha384(content).hexdigest()}"]:
            await tree.put(link_path("library/old", name), f"sha256:{sha256(content)}")
    signed = {"schemaVersion": 1, "name": "library/old", "tag": "1", "architecture": "amd64"}
    signed["fsLayers"] = [{"blobSum": f"sha256:{sha256(archive('types.tar'))}"}, {"blobSum": tarsum_of("xattr.tar")}]
    signed["history"] = [{"v1Compatibility": "{}"}] * 2
    content = json.dumps(signed).encode()
    await tree.put_manifest("library/old", content, "1")
    await tree.put_blob(b"{signature}")
    signatures = tree.revision_path("library/old", content).removesuffix("link") + "signatures/sha256"
    await tree.put(f"{signatures}/{sha256(b'{signature}')}/link", f"sha256:{sha256(b'{signature}')}")
    await tree.put_upload("library/old", started_at=None, data=None, n0=b"gob" * 52)
    for deep in (False, True):
        assert await kinds_of(registry, deep=deep) == []


async def test_what_only_a_tarsum_leads_to_is_no_orphan(tree: Tree, registry: Registry) -> None:
    """The link is wrong without the other one; the bytes are still somebody's, and a wrong size is found."""
    content = archive("types.tar")
    await tree.put_blob(content, stored=b"")
    place = await link_tarsum(tree, f"sha256:{sha256(content)}")
    assert await kinds_of(registry) == [
        ("dangling-layer-link", place),
        ("zero-length-blob", f"sha256:{sha256(content)}"),
    ]


async def test_signatures_of_old_registries_are_no_orphans(tree: Tree, registry: Registry) -> None:
    """Before 2.5 each was a blob, linked from the revision."""
    signature = b"{signature}"
    await tree.put_blob(signature)
    revision = f"{APP}/_manifests/revisions/sha256/{sha256(MANIFEST)}"
    await tree.put(f"{revision}/signatures/sha256/{sha256(signature)}/link", f"sha256:{sha256(signature)}")
    assert await kinds_of(registry) == []


# --- what changes meanwhile ----------------------------------------------------------------------------------------


async def test_a_push_that_ends_meanwhile_is_no_fault(tree: Tree, registry: Registry) -> None:
    """A blob that is stored and not yet linked when it is seen is looked at again."""
    await tree.put_blob(b"pushed")
    names = []

    def finish(progress: Progress) -> None:
        names.append(progress.phase)

    async with aclosing(check(registry, settle=0.2, report=finish)) as faults, trio.open_nursery() as nursery:
        nursery.start_soon(_link_when, tree, names)
        assert [fault async for fault in faults] == []


async def _link_when(tree: Tree, phases: list[str]) -> None:
    """Links the blob once the blobs have been looked at."""
    while "blobs" not in phases:
        await trio.sleep(0.005)
    await tree.put_layer("team/app", b"pushed")


async def test_a_link_that_is_rewritten_meanwhile_is_no_fault(tree: Tree, registry: Registry) -> None:
    """Registries before 3.1 empty a link before they write it."""
    await tree.put(f"{APP}/_manifests/tags/v1/current/link", "")
    async with trio.open_nursery() as nursery:

        async def repair() -> None:
            await trio.sleep(0.2)
            await tree.put(f"{APP}/_manifests/tags/v1/current/link", f"sha256:{sha256(MANIFEST)}")

        nursery.start_soon(repair)
        async with aclosing(check(registry, settle=0.3)) as faults:
            assert [fault async for fault in faults] == []


# --- options -------------------------------------------------------------------------------------------------------


async def test_one_repository_can_be_checked_alone(tree: Tree, registry: Registry) -> None:
    """What is wrong with it and with its blobs is found, nothing elsewhere, and no orphans."""
    await tree.put_blob(b"orphan")
    await tree.put(f"{REPOSITORIES}/bad/_layers/sha256/{HEX}/link", "")
    place = await corrupt(tree)
    assert await kinds_of(registry, repositories=["team/app"], deep=True) == [("corrupt-blob", place)]


@pytest.mark.parametrize(
    ("name", "error"), [("nope", RepositoryUnknown), ("team", RepositoryUnknown), ("../x", InvalidRepositoryName)]
)
async def test_a_repository_that_is_none_is_refused(registry: Registry, name: str, error: type[Exception]) -> None:
    """Rather than found without faults."""
    with pytest.raises(error):
        await kinds_of(registry, repositories=[name])


async def test_the_bytes_that_are_hashed_are_reported(registry: Registry) -> None:
    """The last report has all of them, and they are known from the first on."""
    reports: list[Progress] = []
    await faults_of(registry, deep=True, report=reports.append)
    hashed = [report for report in reports if report.phase == "contents"]
    total = len(CONFIG) + len(LAYER) + len(MANIFEST)
    assert (hashed[-1].done, {report.total for report in hashed}) == (total, {total})


async def test_a_storage_without_a_registry_is_no_clean_one(driver: StorageDriver) -> None:
    """It raises instead."""
    with pytest.raises(PathNotFound):
        await kinds_of(Registry(driver))


async def test_every_fault_explains_itself(tree: Tree, registry: Registry) -> None:
    """Each has what it is, where, why it matters and what to do, also as JSON."""
    for damage in (orphan, half_a_tag, dangling_revision, old_upload):
        await damage(tree)
    for fault in await faults_of(registry):
        fields = json.loads(json.dumps(fault.as_dict()))
        assert all(fields[name] for name in ("kind", "severity", "place", "path", "explanation", "remedy"))


# --- hostile storage -------------------------------------------------------------------------------------------------


async def test_fifos_and_symbolic_links_do_not_hold_it_up(tmp_path: Path) -> None:
    """What is no file is not opened; a link that is one is bad, a blob that is one is not there."""
    driver = LocalDriver(str(tmp_path / "storage"), create=True)
    tree = Tree(driver)
    registry = await Registry.open(driver, create=True)
    await tree.put_image("team/app")
    root = str(tmp_path / "storage")
    await tree.driver.delete(tree.blob_path(LAYER))
    os.mkfifo(root + tree.blob_path(LAYER))
    await tree.driver.delete(tree.layer_path("team/app", CONFIG))
    os.mkfifo(root + tree.layer_path("team/app", CONFIG))
    os.makedirs(f"{root}{APP}/_uploads/{UUID}")
    os.mkfifo(f"{root}{APP}/_uploads/{UUID}/startedat")
    os.symlink("/", f"{root}{REPOSITORIES}/everything")
    with trio.fail_after(30):
        found = await kinds_of(registry, deep=True)
    assert found == [
        ("bad-link", f"team/app sha256:{sha256(CONFIG)}"),
        ("dangling-layer-link", f"team/app sha256:{sha256(LAYER)}"),
    ]


@pytest.mark.parametrize("path", [f"{APP}/_layers/sha256", f"{APP}/_manifests/revisions/sha256", f"{BLOBS}/ab"])
async def test_what_cannot_be_read_is_not_taken_for_missing(tree: Tree, registry: Registry, path: str) -> None:
    """One directory that fails makes one fault: nothing is missing, no blobs are orphans because of it."""
    await tree.put(f"{BLOBS}/ab/xyz/other", "so that the directory is there")
    driver = refusing(tree.driver, path)
    assert await kinds_of(Registry(driver)) == [("unreadable", path)]


async def test_a_repository_that_cannot_be_read_does_not_end_the_check(tree: Tree, registry: Registry) -> None:
    """The others are looked at nevertheless."""
    await tree.put(f"{REPOSITORIES}/other/_manifests/tags/v1/current/link", FAKE)
    found = await kinds_of(Registry(refusing(tree.driver, APP)))
    assert found == [("unreadable", "team/app"), ("tag-to-missing-manifest", f"other:v1 {FAKE}")]


def refusing(driver: StorageDriver, refused: str) -> StorageDriver:
    """The same storage, where one directory cannot be listed, neither by itself nor with what it is in."""
    faulty = FaultyDriver(Disk(driver))

    async def refuse(what: str, path: str) -> None:
        if (what == "list" and path == refused) or (what == "list_files" and f"{refused}/".startswith(f"{path}/")):
            raise AccessDenied(path, "Permission denied")

    faulty.on_call = refuse
    return faulty
