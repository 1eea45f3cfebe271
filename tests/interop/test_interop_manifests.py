"""Manifests and tags stored by the Python API are what the real registry stores and serves, and the other way round."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from harness import images
from harness.images import describe, docker_image, docker_list, encode, oci_image, oci_index, schema1
from harness.registry import DockerRegistry
from harness.storage import Storage, digest_of, files

from layerfs.digest import Digest
from layerfs.driver.local import LocalDriver
from layerfs.errors import LayerfsError, ManifestUnknownRevision
from layerfs.manifest import UrlRules
from layerfs.registry import Registry, Repository

CONFIG, LAYER, OTHER_LAYER = b"{}", b"a layer", b"another layer"
KEY = images.ec_key()

#: Schema 1 is off unless it is asked for; and the urls of one host are allowed.
MORE = """\
compatibility: {schema1: {enabled: true}}
validation: {manifests: {urls: {allow: ["^https://example[.]com/"], deny: ["[.]exe$"]}}}
"""
URLS = UrlRules(allow=re.compile(r"^https://example[.]com/"), deny=re.compile(r"[.]exe$"))


class Pair(NamedTuple):
    """A storage, a registry that serves it, and the Python API on it."""

    storage: Storage
    registry: DockerRegistry

    def repository(self, name: str) -> Repository:
        return open_repository(self.storage, name)


def open_repository(storage: Storage, name: str) -> Repository:
    return Registry(LocalDriver(str(storage.root)), urls=URLS).repository(name)


async def push(repository: Repository, *contents: bytes) -> None:
    """Uploads layers by the Python API."""
    for content in contents:
        async with await repository.layers.upload() as upload:
            await upload.write(content)
            await upload.finish(Digest.of(content))


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """One registry for many tests, each with repositories of its own."""
    directory = tmp_path_factory.mktemp("pair")
    storage = Storage.create(directory / "storage")
    with DockerRegistry(storage.root, directory, more=MORE) as registry:
        yield Pair(storage, registry)


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A repository that no other test has."""
    return f"interop/t{hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:16]}"


IMAGE, DOCKER_IMAGE = encode(oci_image(CONFIG, [LAYER, OTHER_LAYER])), encode(docker_image(CONFIG, [LAYER]))
NOT_SAID = encode({key: value for key, value in oci_image(CONFIG, [LAYER]).items() if key != "mediaType"})

#: What is put, in this order, so that what an index needs is there.
KINDS: dict[str, tuple[bytes, str]] = {
    "image": (IMAGE, images.OCI_IMAGE),
    "image without type": (NOT_SAID, images.OCI_IMAGE),
    "docker": (DOCKER_IMAGE, images.DOCKER_IMAGE),
    "index": (encode(oci_index([IMAGE, NOT_SAID])), images.OCI_INDEX),
    "list": (encode(docker_list([DOCKER_IMAGE])), images.DOCKER_LIST),
    "empty": (encode(oci_index()), images.OCI_INDEX),
    "nested": (
        encode(oci_index() | {"manifests": [describe(encode(oci_index()), images.OCI_INDEX)]}),
        images.OCI_INDEX,
    ),
    "artifact": (encode(oci_image(CONFIG, subject=describe(b"gone", images.OCI_IMAGE))), images.OCI_IMAGE),
}


def skopeo(*arguments: object) -> bytes:
    return subprocess.run(["skopeo", *map(str, arguments)], capture_output=True, check=True, timeout=60).stdout


# --- ours, served by the registry -----------------------------------------------------------------------------------


async def test_the_registry_serves_what_we_put(pair: Pair, name: str) -> None:
    """By tag and by digest: the very bytes, digest and media type; every tag is listed."""
    repository = pair.repository(name)
    await push(repository, CONFIG, LAYER, OTHER_LAYER)
    for tag, (content, media_type) in KINDS.items():
        await repository.manifests.put(content, tag=tag.replace(" ", "-"))
        for reference in (tag.replace(" ", "-"), digest_of(content)):
            answer = pair.registry.get_manifest(name, reference, media_type)
            assert (answer.status, answer.body) == (200, content)
            assert answer.headers["docker-content-digest"] == digest_of(content)
            assert answer.headers["content-type"] == media_type
    listed = json.loads(pair.registry.request("GET", f"/v2/{name}/tags/list").body)["tags"]
    assert sorted(listed) == sorted(tag.replace(" ", "-") for tag in KINDS)


def real_image(directory: Path) -> dict[str, Any]:
    """What umoci makes: an image of one layer, in an OCI layout at `directory`."""
    (directory / "rootfs").mkdir(parents=True)
    (directory / "rootfs/hello").write_text("hello")
    layout = directory / "layout"
    for command in (
        ["umoci", "init", "--layout", str(layout)],
        ["umoci", "new", "--image", f"{layout}:v1"],
        ["umoci", "insert", "--rootless", "--image", f"{layout}:v1", str(directory / "rootfs/hello"), "/hello"],
    ):
        subprocess.run(command, check=True, capture_output=True, timeout=60)
    return json.loads((layout / "index.json").read_text())["manifests"][0]


def blob_of(layout: Path, digest: str) -> bytes:
    return (layout / "blobs" / digest.replace(":", "/")).read_bytes()


async def test_skopeo_pulls_what_we_put(pair: Pair, name: str, tmp_path: Path) -> None:
    """A real image, stored by the API, is copied out of the registry with the digest that it had."""
    entry = real_image(tmp_path)
    layout = tmp_path / "layout"
    manifest = blob_of(layout, entry["digest"])
    document = json.loads(manifest)
    repository = pair.repository(name)
    await push(repository, *(blob_of(layout, one["digest"]) for one in [document["config"], *document["layers"]]))
    await repository.manifests.put(manifest, tag="v1", digest=Digest.parse(entry["digest"]))
    source = f"docker://{pair.registry.host}/{name}:v1"
    assert skopeo("inspect", "--raw", "--tls-verify=false", source) == manifest
    skopeo("copy", "--src-tls-verify=false", source, f"dir:{tmp_path}/copy")
    assert (tmp_path / "copy/manifest.json").read_bytes() == manifest


async def test_tags_that_we_move_and_remove(pair: Pair, name: str) -> None:
    """A running registry sees it at once."""
    repository = pair.repository(name)
    await push(repository, CONFIG, LAYER, OTHER_LAYER)
    for content, media_type in (KINDS["image"], KINDS["docker"], KINDS["image"]):
        digest = (await repository.manifests.put(content)).digest
        await repository.tags.tag("latest", digest)
        assert pair.registry.get_manifest(name, "latest", media_type).body == content
    await repository.tags.untag("latest")
    assert pair.registry.get_manifest(name, "latest", images.OCI_IMAGE).status == 404
    assert pair.registry.get_manifest(name, digest_of(IMAGE), images.OCI_IMAGE).status == 200


# --- theirs, read by us -----------------------------------------------------------------------------------------------


async def test_we_read_what_the_registry_got(pair: Pair, name: str) -> None:
    """By tag and by digest, and all of it is listed, in order."""
    for content in (CONFIG, LAYER, OTHER_LAYER):
        pair.registry.push(name, content)
    repository = pair.repository(name)
    for tag, (content, media_type) in KINDS.items():
        reference = tag.replace(" ", "-")
        assert pair.registry.put_manifest(name, reference, content, media_type).status == 201
        manifest = await repository.manifests.get_by_tag(reference)
        assert (manifest.content, str(manifest.digest)) == (content, digest_of(content))
        assert manifest.media_type == media_type
    assert {
        str(entry.digest): (entry.media_type, entry.size) for entry in await repository.manifests.descriptors()
    } == {digest_of(content): (media_type, len(content)) for content, media_type in KINDS.values()}


async def test_we_see_what_skopeo_pushes(pair: Pair, name: str, tmp_path: Path) -> None:
    """As OCI and as Docker image: what skopeo says of it is what we have."""
    real_image(tmp_path)
    repository = pair.repository(name)
    for tag, kind in (("oci", "oci"), ("docker", "v2s2")):
        target = f"docker://{pair.registry.host}/{name}:{tag}"
        skopeo("copy", "--dest-tls-verify=false", "--format", kind, f"oci:{tmp_path}/layout:v1", target)
        manifest = await repository.manifests.get_by_tag(tag)
        assert manifest.content == skopeo("inspect", "--raw", "--tls-verify=false", target)
        assert await repository.manifests.put(manifest.content, digest=manifest.digest) == manifest.descriptor


# --- the same storage -----------------------------------------------------------------------------------------------

Step = tuple[str, bytes, str]

PUSHES: dict[str, list[Step]] = {
    "one image": [("v1", *KINDS["image"])],
    "by digest": [(digest_of(IMAGE), *KINDS["image"])],
    "two tags": [("v1", *KINDS["image"]), ("latest", *KINDS["image"])],
    "a moved tag": [("v1", *KINDS["image"]), ("v1", *KINDS["docker"])],
    "moved there and back": [("v1", *KINDS["image"]), ("v1", *KINDS["docker"]), ("v1", *KINDS["image"])],
    "the same twice": [("v1", *KINDS["image"]), ("v1", *KINDS["image"])],
    "everything": [(tag.replace(" ", "-"), *pushed) for tag, pushed in KINDS.items()],
    "schema 1": [("v1", images.sign(schema1([LAYER, OTHER_LAYER]), KEY), images.SCHEMA1_SIGNED)],
}


@pytest.mark.parametrize("pushed", PUSHES)
async def test_the_storage_is_exactly_what_the_registry_writes(tmp_path: Path, pushed: str) -> None:
    """The same images pushed over HTTP and put by the API give the same files with the same bytes, and no other."""
    theirs, ours = Storage.create(tmp_path / "theirs"), Storage.create(tmp_path / "ours")
    with DockerRegistry(theirs.root, tmp_path / "registry", more=MORE) as registry:
        for content in (CONFIG, LAYER, OTHER_LAYER):
            registry.push("team/app", content)
        for reference, content, media_type in PUSHES[pushed]:
            assert registry.put_manifest("team/app", reference, content, media_type).status == 201
    repository = open_repository(ours, "team/app")
    await push(repository, CONFIG, LAYER, OTHER_LAYER)
    for reference, content, media_type in PUSHES[pushed]:
        by_digest = ":" in reference
        await repository.manifests.put(
            content,
            tag=None if by_digest else reference,
            digest=Digest.parse(reference) if by_digest else None,
            media_type=media_type,
        )
    assert files(ours.root) == files(theirs.root)


@pytest.mark.parametrize("tags", [[], ["v1"], ["v1", "latest"]])
async def test_deleting_is_the_registry_s(tmp_path: Path, tags: list[str]) -> None:
    """The same deletion, over HTTP and by the API, leaves the same files."""
    theirs, ours = Storage.create(tmp_path / "theirs"), Storage.create(tmp_path / "ours")
    for storage in (theirs, ours):
        repository = open_repository(storage, "team/app")
        await push(repository, CONFIG, LAYER, OTHER_LAYER)
        digest = (await repository.manifests.put(IMAGE)).digest
        await repository.manifests.put(IMAGE, tag="moved")
        await repository.manifests.put(DOCKER_IMAGE, tag="moved")
        for tag in tags:
            await repository.tags.tag(tag, digest)
    with DockerRegistry(theirs.root, tmp_path / "registry") as registry:
        assert registry.delete_manifest("team/app", str(digest)).status == 202
        assert registry.delete_manifest("team/app", str(digest)).status == 404
    await repository.manifests.delete(digest)
    with pytest.raises(ManifestUnknownRevision):
        await repository.manifests.delete(digest)
    assert files(ours.root) == files(theirs.root)


async def test_garbage_collection_finds_nothing_odd(tmp_path: Path) -> None:
    """All that we stored is marked and nothing is eligible; what we deleted, and only that, would go."""
    storage = Storage.create(tmp_path / "storage")
    repository = open_repository(storage, "team/app")
    await push(repository, CONFIG, LAYER, OTHER_LAYER)
    for tag, (content, _) in KINDS.items():
        await repository.manifests.put(content, tag=tag.replace(" ", "-"))
    registry = DockerRegistry(storage.root, tmp_path / "registry")
    said = registry.garbage_collect()
    assert f"{len(KINDS) + 3} blobs marked, 0 blobs and 0 manifests eligible for deletion" in said
    await repository.manifests.delete(Digest.of(KINDS["artifact"][0]))
    said = registry.garbage_collect()
    assert f"{len(KINDS) + 2} blobs marked, 1 blobs and 0 manifests eligible for deletion" in said
    assert Digest.of(KINDS["artifact"][0]).hex in said


# --- the same judgement ---------------------------------------------------------------------------------------------

GONE = describe(b"not here", images.OCI_LAYER)
FOREIGN = describe(b"not here", images.OCI_FOREIGN)
DOCKER_FOREIGN = describe(b"not here", images.DOCKER_FOREIGN)
GOOD_URL = "https://example.com/layer"


def oci(*layers: dict[str, Any], **more: Any) -> bytes:
    return encode(oci_image(CONFIG) | {"layers": list(layers)} | more)


def docker(*layers: dict[str, Any], **more: Any) -> bytes:
    return encode(docker_image(CONFIG) | {"layers": list(layers)} | more)


def layer(**fields: Any) -> dict[str, Any]:
    return describe(LAYER, images.OCI_LAYER) | fields


def signed(**fields: Any) -> bytes:
    return images.sign(schema1([LAYER], **fields), KEY)


def no_type(content: bytes) -> bytes:
    return encode({key: value for key, value in json.loads(content).items() if key != "mediaType"})


JUDGED: dict[str, tuple[bytes, str]] = {
    "good": (oci(layer()), images.OCI_IMAGE),
    "good docker": (docker(layer()), images.DOCKER_IMAGE),
    "good signature": (signed(), images.SCHEMA1_SIGNED),
    "signature by RSA": (images.sign(schema1([LAYER]), images.rsa_key()), images.SCHEMA1_SIGNED),
    "signature by a certificate": (images.sign(schema1([LAYER]), KEY, chain=True), images.SCHEMA1_SIGNED),
    "several signatures": (images.sign(schema1([LAYER]), KEY, images.ec_key()), images.SCHEMA1_SIGNED),
    "forged": (signed().replace(b'"v1"', b'"v2"', 1), images.SCHEMA1_SIGNED),
    "one of two forged": (
        images.attach(
            encode(schema1([LAYER])),
            [
                images.signature(encode(schema1([LAYER])), KEY),
                images.signature(encode(schema1([LAYER])), KEY) | {"signature": "A" * 86},
            ],
        ),
        images.SCHEMA1_SIGNED,
    ),
    "unsigned": (encode(schema1([LAYER])), images.SCHEMA1_SIGNED),
    "schema 1 layer unknown": (images.sign(schema1([b"not here"]), KEY), images.SCHEMA1_SIGNED),
    "schema 1 history": (signed(history=[]), images.SCHEMA1_SIGNED),
    "schema 1 of any other name": (signed(name="another/name"), images.SCHEMA1_SIGNED),
    "schema 1 without tag": (signed(tag=""), images.SCHEMA1_SIGNED),
    "schema 1 name": (signed(name="***"), images.SCHEMA1_SIGNED),
    "unknown layer": (oci(GONE), images.OCI_IMAGE),
    "unknown docker layer": (docker(GONE), images.DOCKER_IMAGE),
    "unknown config": (encode(oci_image(b"gone")), images.OCI_IMAGE),
    "unknown child": (encode(oci_index([b"gone"])), images.OCI_INDEX),
    "unknown child of a list": (encode(docker_list([b"gone"])), images.DOCKER_LIST),
    "wrong size": (oci(layer(size=1)), images.OCI_IMAGE),
    "negative size": (oci(layer(size=-1)), images.OCI_IMAGE),
    "no size": (oci(layer(size=None)), images.OCI_IMAGE),
    "size too large": (oci(layer(size=2**63)), images.OCI_IMAGE),
    "size a fraction": (oci(layer(size=1.5)), images.OCI_IMAGE),
    "size a string": (oci(layer(size="1")), images.OCI_IMAGE),
    "no layers": (oci(layers=None), images.OCI_IMAGE),
    "layers a string": (oci(layers="x"), images.OCI_IMAGE),
    "layer a number": (oci(layers=[1]), images.OCI_IMAGE),
    "config null": (oci(layer(), config=None), images.OCI_IMAGE),
    "config a string": (oci(layer(), config="x"), images.OCI_IMAGE),
    "annotations a list": (oci(layer(), annotations=[]), images.OCI_IMAGE),
    "annotations of numbers": (oci(layer(), annotations={"a": 1}), images.OCI_IMAGE),
    "annotations null": (oci(layer(), annotations=None), images.OCI_IMAGE),
    "platform a string": (oci(layer(platform="x")), images.OCI_IMAGE),
    "no digest": (oci(layer(digest=None)), images.OCI_IMAGE),
    "short digest": (oci(layer(digest="sha256:abc")), images.OCI_IMAGE),
    "md5": (oci(layer(digest="md5:" + "0" * 32)), images.OCI_IMAGE),
    "digest a number": (oci(layer(digest=1)), images.OCI_IMAGE),
    "schemaVersion 1 in an image": (oci(layer(), schemaVersion=1), images.OCI_IMAGE),
    "schemaVersion 3": (oci(layer(), schemaVersion=3), images.OCI_IMAGE),
    "no schemaVersion": (oci(layer(), schemaVersion=None), images.OCI_IMAGE),
    "image with manifests": (oci(layer(), manifests=[]), images.OCI_IMAGE),
    "image with null for manifests": (oci(layer(), manifests=None), images.OCI_IMAGE),
    "docker image with manifests": (docker(layer(), manifests=[]), images.DOCKER_IMAGE),
    "index with config": (encode(oci_index(config={})), images.OCI_INDEX),
    "index with layers": (encode(oci_index(layers=[])), images.OCI_INDEX),
    "index with null for layers": (encode(oci_index(layers=None)), images.OCI_INDEX),
    "index without type": (no_type(encode(oci_index())), images.OCI_INDEX),
    "image without type": (no_type(oci(layer())), images.OCI_IMAGE),
    "docker image without type": (no_type(docker(layer())), images.DOCKER_IMAGE),
    "list without type": (no_type(encode(docker_list())), images.DOCKER_LIST),
    "OCI put as Docker": (oci(layer()), images.DOCKER_IMAGE),
    "Docker put as OCI": (docker(layer()), images.OCI_IMAGE),
    "index put as image": (encode(oci_index()), images.OCI_IMAGE),
    "image put as index": (oci(layer()), images.OCI_INDEX),
    "index without type put as image": (no_type(encode(oci_index())), images.OCI_IMAGE),
    "no JSON": (b"{no", images.OCI_IMAGE),
    "empty": (b"", images.OCI_IMAGE),
    "trailing text": (oci(layer()) + b"x", images.OCI_IMAGE),
    "NaN": (oci(layer(), x=float("nan")), images.OCI_IMAGE),
    "unknown fields": (oci(layer(x=1), x={"y": [1.5, None]}), images.OCI_IMAGE),
    "subject": (oci(layer(), subject=GONE, artifactType="a/b"), images.OCI_IMAGE),
    "foreign": (oci(FOREIGN | {"urls": [GOOD_URL]}), images.OCI_IMAGE),
    "foreign without url": (oci(FOREIGN), images.OCI_IMAGE),
    "foreign with a url that is not allowed": (oci(FOREIGN | {"urls": ["https://example.org/x"]}), images.OCI_IMAGE),
    "foreign with a url that is denied": (oci(FOREIGN | {"urls": [GOOD_URL + ".exe"]}), images.OCI_IMAGE),
    "foreign with a fragment": (oci(FOREIGN | {"urls": [GOOD_URL + "#x"]}), images.OCI_IMAGE),
    "foreign with one bad url": (oci(FOREIGN | {"urls": [GOOD_URL, "file:///x"]}), images.OCI_IMAGE),
    "layer with a url": (oci(layer(urls=[GOOD_URL])), images.OCI_IMAGE),
    "layer with a url that is not allowed": (oci(layer(urls=["https://example.org/x"])), images.OCI_IMAGE),
    "zstd layer with any url": (oci(layer(mediaType=images.OCI_LAYER_ZSTD, urls=["file:///x"])), images.OCI_IMAGE),
    "docker foreign": (docker(DOCKER_FOREIGN | {"urls": [GOOD_URL]}), images.DOCKER_IMAGE),
    "docker foreign without url": (docker(DOCKER_FOREIGN), images.DOCKER_IMAGE),
    "docker foreign, not allowed": (docker(DOCKER_FOREIGN | {"urls": ["https://example.org/x"]}), images.DOCKER_IMAGE),
    "docker layer with any url": (docker(layer(urls=["file:///x"])), images.DOCKER_IMAGE),
    "urls a string": (oci(layer(urls="x")), images.OCI_IMAGE),
    "layer that is an image": (oci(describe(LAYER, images.OCI_IMAGE)), images.OCI_IMAGE),
    "5 MiB": (oci(layer(), annotations={"x": "x" * (5 << 20)}), images.OCI_IMAGE),
    "4 MiB less a little": (oci(layer(), annotations={"x": "x" * ((4 << 20) - 1000)}), images.OCI_IMAGE),
}


@pytest.mark.parametrize("case", JUDGED)
async def test_we_take_what_the_registry_takes(pair: Pair, name: str, case: str) -> None:
    """And refuse what it refuses. Each is put to a repository of its own."""
    content, media_type = JUDGED[case]
    for owner in ("ours", "theirs"):
        await push(pair.repository(f"{name}/{owner}"), CONFIG, LAYER)
    status = pair.registry.put_manifest(f"{name}/theirs", "v1", content, media_type).status
    try:
        await pair.repository(f"{name}/ours").manifests.put(content, tag="v1", media_type=media_type)
        taken = True
    except LayerfsError:
        taken = False
    assert taken == (status == 201), f"the registry says {status}"


#: Taken by 2.8, and refused by us on purpose.
STRICTER: dict[str, tuple[bytes, str]] = {
    "unknown layer with a url, as 3.x has it": (oci(GONE | {"urls": [GOOD_URL]}), images.OCI_IMAGE),
    "list with layers, as 3.x has it": (encode(docker_list(layers=[])), images.DOCKER_LIST),
    "docker layer with urls, as 3.x has it": (docker(GONE | {"urls": [GOOD_URL]}), images.DOCKER_IMAGE),
    "a field twice": (oci(layer()).replace(b'"layers"', b'"layers": [], "layers"'), images.OCI_IMAGE),
    "a field in capitals": (oci(layer(), LAYERS=[layer()]), images.OCI_IMAGE),
    "no UTF-8": (oci(layer(), annotations={"x": "?"}).replace(b"?", b"\xff"), images.OCI_IMAGE),
    "deep": (oci(layer(), x=1).replace(b'"x": 1', b'"x": ' + b"[" * 100 + b"]" * 100), images.OCI_IMAGE),
    "data that is no base64, as 3.x has it": (oci(layer(data="*")), images.OCI_IMAGE),
    "a tag that is none in schema 1": (signed(tag="-x"), images.SCHEMA1_SIGNED),
}


@pytest.mark.parametrize("case", STRICTER)
async def test_where_we_are_stricter(pair: Pair, name: str, case: str) -> None:
    """These are all that is known; each would be read differently by somebody, or not at all."""
    content, media_type = STRICTER[case]
    for owner in ("ours", "theirs"):
        await push(pair.repository(f"{name}/{owner}"), CONFIG, LAYER)
    assert pair.registry.put_manifest(f"{name}/theirs", "v1", content, media_type).status == 201
    with pytest.raises(LayerfsError):
        await pair.repository(f"{name}/ours").manifests.put(content, tag="v1", media_type=media_type)


@pytest.mark.parametrize("reference", ["sha256", "sha512"])
async def test_a_digest_that_is_not_the_manifest_s(pair: Pair, name: str, reference: str) -> None:
    """By another's digest, and by its own sha512, the registry refuses it, and so do we."""
    digest = digest_of(b"other") if reference == "sha256" else digest_of(IMAGE, "sha512")
    repository = pair.repository(name)
    await push(repository, CONFIG, LAYER, OTHER_LAYER)
    assert pair.registry.put_manifest(name, digest, IMAGE, images.OCI_IMAGE).status == 400
    with pytest.raises(LayerfsError):
        await repository.manifests.put(IMAGE, digest=Digest.parse(digest))
    assert await repository.manifests.list() == []


# --- schema 1 --------------------------------------------------------------------------------------------------------


async def test_what_skopeo_signs(pair: Pair, name: str, tmp_path: Path) -> None:
    """A schema 1 image signed by the real libtrust: genuine, and stored by us where skopeo's went."""
    real_image(tmp_path)
    target = f"docker://{pair.registry.host}/{name}:v1"
    skopeo("copy", "--dest-tls-verify=false", "--format", "v2s1", f"oci:{tmp_path}/layout:v1", target)
    repository = pair.repository(name)
    stored = await repository.manifests.get_by_tag("v1")
    assert stored.media_type == images.SCHEMA1
    served = pair.registry.get_manifest(name, "v1", images.SCHEMA1_SIGNED)
    assert served.headers["content-type"] == images.SCHEMA1_SIGNED
    before = files(pair.storage.root)
    descriptor = await repository.manifests.put(served.body, tag="v1")
    assert descriptor.digest == stored.digest
    assert files(pair.storage.root) == before


async def test_a_forged_copy_of_what_the_registry_signs(pair: Pair, name: str) -> None:
    """One changed byte within what is signed, and it is no longer genuine."""
    repository = pair.repository(name)
    await push(repository, LAYER)
    await repository.manifests.put(signed(), tag="v1")
    served = pair.registry.get_manifest(name, "v1", images.SCHEMA1_SIGNED).body
    await repository.manifests.put(served)
    with pytest.raises(LayerfsError):
        await repository.manifests.put(served.replace(b"amd64", b"arm64", 1))


async def test_the_registry_signs_what_we_stored(pair: Pair, name: str) -> None:
    """It serves our schema 1 manifest with its own signature; the digest is that of the payload."""
    repository = pair.repository(name)
    await push(repository, LAYER)
    descriptor = await repository.manifests.put(signed(), tag="v1")
    served = pair.registry.get_manifest(name, "v1", images.SCHEMA1_SIGNED)
    assert served.headers["docker-content-digest"] == str(descriptor.digest)
    assert json.loads(served.body)["fsLayers"] == [{"blobSum": digest_of(LAYER)}]
