"""What clients read from `_oci` is what they read from the same layout in a plain directory."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from harness.clients import Containerd, Containers, skopeo_copy, skopeo_copy_to_directory, umoci
from harness.clients_layouts import (
    REF_NAME,
    Originals,
    assert_complete,
    blobs_of,
    read_index,
    tags_of,
    told_tags,
    tree_of,
    write_layout,
)
from harness.clients_served import assert_served, digest_served
from harness.commands import run, shell
from harness.mount import Mount
from harness.registry import DockerRegistry
from harness.storage import Storage

#: What umoci can unpack: one image with gzipped layers and a whole configuration.
UNPACKED = [("base", "1.0"), ("team/app", "v1"), ("team/app", "v2"), ("a/b/c", "1")]

#: An image of every kind that podman and buildah can keep: OCI, zstd, an index, Docker schema 2.
KEPT = [("base", "1.0"), ("team/app-zstd", "v1"), ("multi/arch", "latest"), ("team/app-docker", "v1")]


def layout_of(mount: Mount, repository: str) -> Path:
    return mount.path / repository / "_oci"


# --- the layout itself -------------------------------------------------------------------------------------------


def test_the_index_lists_all_tags(source: Mount, originals: Originals) -> None:
    """Every repository's index has its tags, with the media types that are stored and the exact sizes; nothing else."""
    for repository in {tag.repository for tag in originals.tags}:
        ours = read_index(layout_of(source, repository))
        theirs = read_index(originals.layout(repository))
        assert sorted(ours, key=str) == sorted(theirs, key=str)


def test_every_image_is_complete(source: Mount, originals: Originals) -> None:
    """Each tag leads to manifests, configurations and layers that have the digests and sizes they should have."""
    for tag in originals.tags:
        assert_complete(layout_of(source, tag.repository), tag.tag, originals.image(tag.repository, tag.tag))


def test_each_tag_is_a_layout_of_its_own(source: Mount, originals: Originals) -> None:
    """`_oci/tags/<tag>` has one entry, that of the tag; it cannot be seen in `_oci`, whose listing stays a layout's."""
    for tag in originals.tags:
        layout = layout_of(source, tag.repository) / "tags" / tag.tag
        [entry] = read_index(layout)
        assert (entry["digest"], entry["mediaType"]) == (tag.digest, tag.media_type)
        assert entry["annotations"][REF_NAME] == tag.tag
        assert blobs_of(layout, tag.digest) == originals.image(tag.repository, tag.tag).content
        listed = {path.name for path in layout_of(source, tag.repository).iterdir()}
        assert listed == {"oci-layout", "index.json", "blobs"}


@pytest.mark.parametrize(("repository", "tag"), [*UNPACKED, ("multi/arch", "latest")])
def test_oci_image_tool_validates(source: Mount, repository: str, tag: str) -> None:
    """The validator of those who wrote the specification finds nothing wrong with what it knows: OCI images of 1.0."""
    layout = layout_of(source, repository) / "tags" / tag
    said = run("oci-image-tool", "validate", "--type", "image", layout)
    assert "Validation succeeded" in said.stdout + said.stderr


# --- skopeo ------------------------------------------------------------------------------------------------------


def test_skopeo_copies_every_image(source: Mount, originals: Originals, tmp_path: Path) -> None:
    """By its tag from the repository's layout: indexes with all that they list, and artifacts, byte for byte.

    skopeo 1.9 finds manifests of Docker's types only where it need not look for a tag: the next test.
    """
    for number, tag in enumerate(each for each in originals.tags if each.is_oci):
        source_name = f"oci:{layout_of(source, tag.repository)}:{tag.tag}"
        ours = skopeo_copy_to_directory(source_name, tmp_path / f"ours-{number}")
        original = f"oci:{originals.layout(tag.repository)}:{tag.tag}"
        assert ours == skopeo_copy_to_directory(original, tmp_path / f"theirs-{number}")


def test_skopeo_copies_every_tag_without_naming_it(source: Mount, originals: Originals, tmp_path: Path) -> None:
    """From the tag's own layout: also Docker's images and manifest lists. What a registry then has is equal."""
    storage = Storage.create(tmp_path / "storage")
    with DockerRegistry(storage.root, tmp_path / "registry") as registry:
        for tag in originals.tags:
            layout = layout_of(source, tag.repository) / "tags" / tag.tag
            skopeo_copy(f"oci:{layout}", f"docker://{registry.host}/{tag.repository}:{tag.tag}")
            assert digest_served(registry, tag.repository, tag.tag) == tag.digest
    images = {(tag.repository, tag.tag): originals.image(tag.repository, tag.tag) for tag in originals.tags}
    assert_served(storage, tmp_path / "again", images, all_in_use=True)


def test_skopeo_refuses_a_layout_of_several(source: Mount, tmp_path: Path) -> None:
    """The reason why there are layouts with one tag."""
    refused = run(
        *("skopeo", "--insecure-policy", "copy"),
        *(f"oci:{layout_of(source, 'team/app')}", f"dir:{tmp_path}"),
        check=False,
    )
    assert refused.returncode != 0
    assert "more than one image" in refused.stderr


def test_skopeo_inspects(source: Mount, originals: Originals) -> None:
    """`skopeo inspect --raw` prints the stored manifest."""
    for repository, tag in (("team/app", "v2"), ("multi/arch", "latest")):
        image = originals.image(repository, tag)
        printed = run("skopeo", "inspect", "--raw", f"oci:{layout_of(source, repository)}:{tag}").stdout
        assert printed.encode() == image.manifests[image.digest]


# --- umoci -------------------------------------------------------------------------------------------------------


def test_umoci_lists_and_describes(source: Mount, originals: Originals) -> None:
    """`umoci list` and `umoci stat` print the same as for the original layout."""
    for repository in ("base", "team/app", "edge/empty", "team/app-docker"):
        ours, theirs = layout_of(source, repository), originals.layout(repository)
        assert sorted(umoci("list", "--layout", ours).split()) == sorted(umoci("list", "--layout", theirs).split())
    for repository, tag in UNPACKED:
        told = [
            umoci("stat", "--json", "--image", f"{layout}:{tag}")
            for layout in (layout_of(source, repository), originals.layout(repository))
        ]
        assert json.loads(told[0]) == json.loads(told[1])


@pytest.mark.parametrize(("repository", "tag"), UNPACKED)
def test_umoci_unpacks(source: Mount, originals: Originals, tmp_path: Path, repository: str, tag: str) -> None:
    """The unpacked image is that of the original layout: names, modes, owners, times, contents, and umoci's mtree."""
    bundles = []
    for name, layout in (("ours", layout_of(source, repository)), ("theirs", originals.layout(repository))):
        umoci("unpack", "--image", f"{layout}:{tag}", tmp_path / name)
        bundles.append(tmp_path / name)
    ours, theirs = (tree_of(bundle / "rootfs") for bundle in bundles)
    assert ours == theirs
    assert len(ours) > 3
    [ours_mtree], [theirs_mtree] = (list(bundle.glob("sha256_*.mtree")) for bundle in bundles)
    assert ours_mtree.name == theirs_mtree.name


# --- podman and buildah ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("repository", "tag"), KEPT)
def test_podman_loads_a_tag(
    source: Mount, originals: Originals, containers: Containers, monkeypatch, repository: str, tag: str
) -> None:
    """`podman load -i TAG`: its name for the image is made from the path, which must be one that images can have."""
    monkeypatch.chdir(layout_of(source, repository) / "tags")
    containers.podman("load", "-i", tag)
    config, digest = containers.image(f"localhost/{tag}")
    image = originals.image(repository, tag)
    assert config in image.blobs
    assert digest in image.manifests


def test_podman_pulls(source: Mount, originals: Originals, containers: Containers, tmp_path: Path, monkeypatch) -> None:
    """`podman pull oci:TAG` likewise, and what is in the image can be seen."""
    monkeypatch.chdir(layout_of(source, "team/app") / "tags")
    containers.podman("pull", "oci:v2")
    assert containers.image("localhost/v2")[1] == originals.tag("team/app", "v2").digest
    root = Path(containers.podman("image", "mount", "localhost/v2"))
    umoci("unpack", "--image", f"{originals.layout('team/app')}:v2", tmp_path / "bundle")
    assert set(tree_of(root)) == set(tree_of(tmp_path / "bundle/rootfs"))
    containers.podman("image", "unmount", "localhost/v2")


def test_buildah_pulls(source: Mount, originals: Originals, containers: Containers, monkeypatch) -> None:
    """`buildah pull` and `buildah from` take an image by its tag's layout."""
    monkeypatch.chdir(layout_of(source, "base") / "tags")
    config = json.loads(originals.image("base", "1.0").manifests[originals.tag("base", "1.0").digest])["config"]
    assert containers.buildah("pull", "oci:1.0").splitlines()[-1] == config["digest"].removeprefix("sha256:")
    name = containers.buildah("from", "oci:1.0").splitlines()[-1]
    root = Path(containers.buildah("mount", name))
    assert (root / "etc").is_dir()
    containers.buildah("umount", name)


def test_skopeo_brings_an_image_to_podman(source: Mount, originals: Originals, containers: Containers) -> None:
    """From any path, under any name: skopeo writes podman's store."""
    name = f"{containers.transport}localhost/team/app:v2"
    run("skopeo", "--insecure-policy", "copy", f"oci:{layout_of(source, 'team/app')}:v2", name)
    assert containers.image("localhost/team/app:v2")[1] == originals.tag("team/app", "v2").digest


# --- containerd --------------------------------------------------------------------------------------------------


def test_containerd_imports(source: Mount, originals: Originals, tmp_path: Path) -> None:
    """`tar | ctr images import`: an index with both its images."""
    layout = write_layout(tmp_path / "content", {})
    with Containerd(tmp_path / "containerd", layout) as containerd:
        archive = tmp_path / "image.tar"
        run("tar", "-C", layout_of(source, "multi/arch"), "-cf", archive, ".")
        containerd.ctr("images", "import", "--all-platforms", "--no-unpack", "--base-name", "multi", archive)
        assert originals.tag("multi/arch", "latest").digest in containerd.ctr("images", "ls")
    image = originals.image("multi/arch", "latest")
    assert blobs_of(layout, image.digest) == image.content


def test_containerd_reads_its_store_from_a_mount(mounts, storage_copy, fixture_trees: Path, tmp_path: Path) -> None:
    """containerd runs with a repository's `_oci` for its content store, and gives what is in it."""
    mount = mounts(storage_copy(), "--read-only")
    [tag] = [each for each in told_tags(fixture_trees) if each.repository == "a"]
    with mount.tolerates("EROFS"), Containerd(tmp_path / "containerd", mount.path / "a/_oci") as containerd:
        assert containerd.ctr("version")
    assert tags_of(mount.path / "a/_oci") == {tag.tag: tag.digest}


# --- plain tools -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "script",
    ['cp -r "$1/." "$2"', 'cp -a "$1/." "$2"', 'rsync -a "$1/" "$2"', 'mkdir "$2"; tar -C "$1" -c . | tar -C "$2" -x'],
    ids=["cp -r", "cp -a", "rsync", "tar"],
)
def test_a_copied_layout_is_one(source: Mount, originals: Originals, tmp_path: Path, script: str) -> None:
    """Whoever copies `_oci` has the whole layout, and nothing besides: skopeo takes every image from the copy."""
    for repository in ("base", "multi/arch"):
        copy = tmp_path / repository / "copy"
        copy.parent.mkdir(parents=True, exist_ok=True)
        shell(script, layout_of(source, repository), copy)
        assert sorted(path.name for path in copy.iterdir()) == ["blobs", "index.json", "oci-layout"]
        for tag in (each for each in originals.tags if each.repository == repository):
            assert_complete(copy, tag.tag, originals.image(repository, tag.tag))
            skopeo_copy(f"oci:{copy}:{tag.tag}", f"dir:{tmp_path / 'target'}")
            shutil.rmtree(tmp_path / "target")


@pytest.mark.local("the registry of these tests has its storage on this machine")
def test_what_a_registry_pushes_is_read(mounts, storage: Storage, originals: Originals, tmp_path: Path) -> None:
    """An image that is pushed to the registry while the storage is mounted is in `_oci` as well."""
    mount = mounts(storage, "--metadata-ttl", "0")
    image = originals.image("team/app", "v1")
    with DockerRegistry(storage.root, tmp_path / "registry") as registry:
        for name in ("one", "two"):
            skopeo_copy(f"oci:{originals.layout('team/app')}:v1", f"docker://{registry.host}/pushed:{name}")
            assert_complete(mount.path / "pushed/_oci", name, image)
