"""Whole images: what the mount makes of them with ordinary tools, a real registry serves, and the other way round."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness.commands import get_xattr, run, shell, wait_until
from harness.images import DOCKER_IMAGE, OCI_IMAGE, OCI_INDEX, docker_image, encode, oci_image, oci_index
from harness.mount import Mount
from harness.registry import DockerRegistry
from harness.storage import Storage, copy_tree, digest_of, files
from harness.tagged import TaggedRepository

#: What no garbage collector may say of a storage in which everything is in use.
NOTHING_TO_DELETE = re.compile(r"\b0 blobs and 0 manifests eligible for deletion")

#: Images of the fixture, of every kind: repository and tag.
IMAGES = [
    ("base", "1.0"),
    ("team/app", "v2"),
    ("team/app-docker", "v1"),
    ("team/app-zstd", "v1"),
    ("edge/empty", "1"),
    ("multi/arch", "latest"),
    ("multi/docker-list", "latest"),
]

#: Copies image $1 (a tag of the repository $PWD) to repository $2, with cp, mv and ln only; manifests below an index
#: first. jq says what there is to copy.
BY_CP = """\
put_image() {
    for blob in $(jq -r '(.config, .layers[]?) | .digest? // empty' "_manifests/$1"); do
        [ -e "$2/_layers/$blob" ] || cp "_layers/$blob" "$2/_layers/$blob"
    done
    cp "_manifests/$1" "$2/_manifests/$1"
}
digest=$(basename "$(readlink "_tags/$1")")
for child in $(jq -r '.manifests[]?.digest' "_tags/$1"); do put_image "$child" "$2"; done
put_image "$digest" "$2"
ln -s "../_manifests/$digest" "$2/_tags/$3"
"""
BY_MV = """\
put_image() {
    for blob in $(jq -r '(.config, .layers[]?) | .digest? // empty' "_manifests/$1"); do
        cp "_layers/$blob" "$2/_uploads/blob"
        mv "$2/_uploads/blob" "$2/_layers/$blob"
    done
    cp "_manifests/$1" "$2/_uploads/manifest"
    mv "$2/_uploads/manifest" "$2/$3"
}
for child in $(jq -r '.manifests[]?.digest' "_tags/$1"); do put_image "$child" "$2" "_manifests/$child"; done
put_image "$(basename "$(readlink "_tags/$1")")" "$2" "_tags/$3"
"""
#: Within one mount no bytes of layers need to move.
BY_LN = BY_CP.replace('cp "_layers/$blob"', 'ln "_layers/$blob"')


def copy_image(script: str, source: Path, tag: str, target: Path, new_tag: str) -> None:
    run("mkdir", "-p", target)
    shell(script, tag, target, new_tag, cwd=source)


class Client:
    """skopeo and HTTP, asking a registry."""

    def __init__(self, registry: DockerRegistry, directory: Path) -> None:
        self._registry = registry
        self._directory = directory

    def digest(self, name: str, tag: str) -> str:
        """What the registry says the tag means."""
        accept = ", ".join((OCI_IMAGE, OCI_INDEX, DOCKER_IMAGE, DOCKER_IMAGE.replace("v2+json", "list.v2+json")))
        accept += ", application/vnd.docker.distribution.manifest.list.v2+json"
        answer = self._registry.request("HEAD", f"/v2/{name}/manifests/{tag}", Accept=accept)
        assert answer.status == 200, answer
        return answer.headers["docker-content-digest"]

    def pull(self, name: str, tag: str) -> str:
        """Pulls the whole image with skopeo, digests kept; returns that of the manifest."""
        target = self._directory / f"{name.replace('/', '-')}-{tag}"
        argv = ["skopeo", "--insecure-policy", "copy", "--all", "--preserve-digests", "--src-tls-verify=false"]
        run(*argv, f"docker://{self._registry.host}/{name}:{tag}", f"dir:{target}")
        return digest_of((target / "manifest.json").read_bytes())

    def tags(self, name: str) -> set[str]:
        answer = self._registry.request("GET", f"/v2/{name}/tags/list")
        return set(json.loads(answer.body)["tags"] or [])


@pytest.fixture
def client(registry: DockerRegistry, tmp_path: Path) -> Client:
    return Client(registry, tmp_path)


# --- copying -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "tag"), IMAGES)
@pytest.mark.parametrize("script", [BY_CP, BY_MV, BY_LN], ids=["cp", "mv", "ln"])
def test_copying_between_repositories(both, client: Client, name: str, tag: str, script: str, request) -> None:
    """A copy made by cp, mv and ln is served by the running registry under the very digest, and skopeo pulls it."""
    target = f"copies/{request.node.callspec.id.lower().replace('.', '-').replace('/', '-')}"
    copy_image(script, both.mount.path / name, tag, both.mount.path / target, "copy")
    expected = client.digest(name, tag)
    assert client.digest(target, "copy") == client.pull(target, "copy") == expected
    assert client.tags(target) == {"copy"}


@pytest.fixture(scope="module")
def other_storage(fixture_trees: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Mount, Mount]]:
    """The fixture's storage, and an empty one, both mounted."""
    directory = tmp_path_factory.mktemp("two")
    source = copy_tree(fixture_trees / "storage", directory / "source")
    target = Storage.create(directory / "target")
    with (
        Mount(source, directory / "mnt-source", "--read-only") as one,
        Mount(target.root, directory / "mnt-target") as two,
    ):
        yield one, two


@pytest.mark.parametrize("script", [BY_CP, BY_MV], ids=["cp", "mv"])
def test_copying_between_storages(
    other_storage: tuple[Mount, Mount], tmp_path: Path, fixture_trees: Path, script: str, watchdog: None
) -> None:
    """Every image, copied to an empty storage: a registry serves all, and its collector finds nothing to delete."""
    source, target = other_storage
    told = [json.loads(line) for line in (fixture_trees / "tags.jsonl").read_text().splitlines()]
    digests = {(each["repo"], each["tag"]): each["digest"] for each in told}
    prefix = f"by-{'cp' if script is BY_CP else 'mv'}"
    for name, tag in IMAGES:
        copy_image(script, source.path / name, tag, target.path / prefix / name, tag)
    with DockerRegistry(target.source, tmp_path / "registry") as registry:
        client = Client(registry, tmp_path)
        for name, tag in IMAGES:
            assert client.pull(f"{prefix}/{name}", tag) == digests[name, tag]
        assert NOTHING_TO_DELETE.search(registry.garbage_collect())
    for mount in other_storage:
        mount.check_log()


# --- the same storage --------------------------------------------------------------------------------------------


def push(registry: DockerRegistry, name: str, content: bytes, reference: str, media_type: str) -> None:
    answer = registry.request("PUT", f"/v2/{name}/manifests/{reference}", content, Content_Type=media_type)
    assert answer.status == 201, answer


def put_by_cp(repository: TaggedRepository, file: Path, tag: str) -> None:
    run("cp", file, repository.tag(tag))


def put_by_mv(repository: TaggedRepository, file: Path, tag: str) -> None:
    run("cp", file, repository.upload("m.json"))
    run("mv", repository.upload("m.json"), repository.tag(tag))


def put_by_ln(repository: TaggedRepository, file: Path, tag: str) -> None:
    digest = digest_of(file.read_bytes())
    if not repository.manifest(digest).exists():
        run("cp", file, repository.manifest(digest))
    run("ln", "-s", f"../_manifests/{digest}", repository.tag(tag))


@pytest.mark.parametrize("put", [put_by_cp, put_by_mv, put_by_ln])
@pytest.mark.parametrize("kind", ["image", "index", "schema2"])
def test_the_storage_is_what_the_registry_writes(mounts, tmp_path: Path, put: Callable[..., None], kind: str) -> None:
    """Layers and a manifest pushed over HTTP, and put through a mount: the same files with the same bytes."""
    child = encode(oci_image(b"{}", (b"layer",)))
    content, media_type = {
        "image": (child, OCI_IMAGE),
        "index": (encode(oci_index([child])), OCI_INDEX),
        "schema2": (encode(docker_image(b"{}", (b"layer",))), DOCKER_IMAGE),
    }[kind]
    theirs, ours = Storage.create(tmp_path / "theirs"), Storage.create(tmp_path / "ours")
    with DockerRegistry(theirs.root, tmp_path / "registry") as registry:
        for blob in (b"{}", b"layer"):
            registry.push("team/app", blob)
        push(registry, "team/app", child, digest_of(child), OCI_IMAGE)
        push(registry, "team/app", content, "v1", media_type)
    mount = mounts(ours)
    repository = TaggedRepository(mount, ours, "team/app")
    run("mkdir", "-p", repository.path)
    for blob in (b"{}", b"layer"):
        repository.layer(digest_of(blob)).write_bytes(blob)
    repository.manifest(digest_of(child)).write_bytes(child)
    (tmp_path / "m.json").write_bytes(content)
    put(repository, tmp_path / "m.json", "v1")
    mount.stop()
    assert files(ours.root) == files(theirs.root)


@pytest.fixture
def tagged(both, request: pytest.FixtureRequest) -> TaggedRepository:
    """A new repository that the registry and the mount both have."""
    number = next(_numbers)
    both.storage.make_repository(f"images/test{number}")
    return TaggedRepository(both.mount, both.storage, f"images/test{number}")


_numbers = iter(range(1, 1 << 20))


def test_what_the_registry_does_is_seen(tagged: TaggedRepository, registry: DockerRegistry) -> None:
    """A pushed tag, a moved tag and a deleted manifest are so in the mount within a second."""
    one, two = tagged.image("one"), tagged.image("two")
    assert (tagged.manifests, tagged.tags) == ([], {})
    for content in (one, two):
        push(registry, tagged.name, content, "v1", OCI_IMAGE)
        expected = {"v1": digest_of(content)}
        wait_until(lambda expected=expected: tagged.tags == expected, "the pushed tag", seconds=1.5)
        assert tagged.tag("v1").read_bytes() == content
        assert get_xattr(tagged.tag("v1"), "user.layerfs.mediatype") == OCI_IMAGE
    assert registry.request("DELETE", f"/v2/{tagged.name}/manifests/{digest_of(two)}").status == 202
    wait_until(lambda: tagged.tags_listed == [], "the end of the tag", seconds=1.5)
    wait_until(lambda: tagged.manifests == [digest_of(one)], "the end of the manifest", seconds=1.5)


def test_what_the_mount_does_is_served(tagged: TaggedRepository, registry: DockerRegistry, client: Client) -> None:
    """Tags put, made by a link, moved and renamed are what the registry says at once."""
    one, two = tagged.image("one"), tagged.image("two")
    tagged.tag("v1").write_bytes(one)
    assert client.digest(tagged.name, "v1") == digest_of(one)
    tagged.manifest(digest_of(two)).write_bytes(two)
    run("ln", "-s", "v1", tagged.tag("latest"))
    run("ln", "-sfn", digest_of(two), tagged.tag("v1"))
    run("mv", tagged.tag("v1"), tagged.tag("v2"))
    assert client.tags(tagged.name) == {"latest", "v2"}
    assert client.digest(tagged.name, "latest") == digest_of(one)
    assert client.digest(tagged.name, "v2") == digest_of(two)
    answer = registry.request("GET", f"/v2/{tagged.name}/manifests/v2", Accept=OCI_IMAGE)
    assert (answer.body, answer.headers["content-type"]) == (two, OCI_IMAGE)


def test_what_the_registry_refuses_is_refused(tagged: TaggedRepository, registry: DockerRegistry) -> None:
    """The same documents are taken and refused by both."""
    good = tagged.image()
    tagged.storage.put_layer(tagged.name, b"{}")
    for content in (
        good,
        encode(oci_image(b"not there")),
        encode(oci_index([b"not there"])),
        encode(oci_image(schemaVersion=3)),
        encode(oci_image(manifests=[])),
        good[:-1],
        b"",
        b"[]",
    ):
        theirs = registry.request("PUT", f"/v2/{tagged.name}/manifests/t", content, Content_Type=OCI_IMAGE).status
        (tagged.upload("m.json")).write_bytes(content)
        with tagged.mount.tolerates("EINVAL", "ENOLINK"):
            try:
                os.rename(tagged.upload("m.json"), tagged.tag("o"))
            except OSError:
                ours = False
                os.unlink(tagged.upload("m.json"))
            else:
                ours = True
        assert ours == (theirs == 201), content


def test_pushing_by_skopeo_into_what_the_mount_made(tagged: TaggedRepository, registry: DockerRegistry) -> None:
    """skopeo pushes an image beside ours; both are there, in the mount and in the registry."""
    tagged.tag("ours").write_bytes(tagged.image("ours"))
    argv = ["skopeo", "--insecure-policy", "copy", "--src-tls-verify=false", "--dest-tls-verify=false"]
    host = registry.host
    run(*argv, f"docker://{host}/base:1.0", f"docker://{host}/{tagged.name}:theirs")
    wait_until(lambda: set(tagged.tags) == {"ours", "theirs"}, "the pushed tag", seconds=1.5)
    assert json.loads(tagged.tag("theirs").read_text())["layers"][0]["digest"] in tagged.layers
    shell('cd "$1" && cat _layers/$(jq -r ".layers[0].digest" _tags/theirs) | tar tz', tagged.path)


# --- garbage collection ------------------------------------------------------------------------------------------


def collected(storage: Storage, directory: Path) -> str:
    return DockerRegistry(storage.root, directory).garbage_collect()


def test_everything_that_is_tagged_is_kept(mounts, storage: Storage, tmp_path: Path) -> None:
    """After putting, retagging and renaming, the collector does not stop, and finds nothing to delete."""
    repository = TaggedRepository(mounts(storage), storage, "team/app")
    run("mkdir", "-p", repository.path)
    for text in ("one", "two", "three"):
        repository.tag(text).write_bytes(repository.image(text))
    repository.manifest("m.json").write_bytes(encode(oci_index([repository.tag("one").read_bytes()])))
    os.rename(repository.manifest("m.json"), repository.tag("all"))
    os.rename(repository.tag("two"), repository.tag("three"))
    run("ln", "-sfn", "one", repository.tag("two"))
    assert NOTHING_TO_DELETE.search(collected(storage, tmp_path / "registry"))


def test_a_deleted_image_can_be_collected(mounts, storage: Storage, tmp_path: Path) -> None:
    """After `rm` of a manifest its three blobs are what the collector would delete, and nothing of the other."""
    repository = TaggedRepository(mounts(storage, "--allow-delete"), storage, "team/app")
    run("mkdir", "-p", repository.path)
    for text in ("one", "two"):
        repository.tag(text).write_bytes(repository.image(text))
    os.unlink(repository.manifest(repository.tags["one"]))
    assert "3 blobs marked, 3 blobs and 0 manifests eligible for deletion" in collected(storage, tmp_path / "registry")


def test_refused_manifests_leave_nothing_to_collect(mounts, storage: Storage, tmp_path: Path) -> None:
    """What was refused, by close and by rename, and an upload that is left, are nothing to the collector."""
    repository = TaggedRepository(mounts(storage), storage, "team/app")
    run("mkdir", "-p", repository.path)
    repository.tag("good").write_bytes(repository.image())
    bad = encode(oci_image(b"not there"))
    with repository.mount.refuses("ENOLINK"), pytest.raises(OSError, match="severed"):
        repository.tag("bad").write_bytes(bad)
    repository.upload("m.json").write_bytes(bad)
    with repository.mount.refuses("ENOLINK"), pytest.raises(OSError, match="severed"):
        os.rename(repository.upload("m.json"), repository.tag("bad"))
    assert NOTHING_TO_DELETE.search(collected(storage, tmp_path / "registry"))
