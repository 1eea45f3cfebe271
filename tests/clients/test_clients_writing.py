"""What clients write into `_oci`, mostly of repositories that do not exist yet, a real registry serves, unchanged."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from harness.clients import SKOPEO, Containerd, Containers, skopeo_copy, umoci
from harness.clients_layouts import (
    Image,
    Originals,
    assert_complete,
    blob_path,
    blobs_of,
    read_index,
    tags_of,
    tree_of,
    write_layout,
)
from harness.clients_served import assert_clean, assert_served, digest_served
from harness.clients_target import Images, Target
from harness.commands import run, shell
from harness.images import OCI_IMAGE, OCI_INDEX
from harness.registry import DockerRegistry

# --- skopeo ------------------------------------------------------------------------------------------------------


@pytest.mark.also_on("s3")
def test_skopeo_pushes_every_image(target: Target, originals: Originals, tmp_path: Path) -> None:
    """Images, indexes with all their images, artifacts and referrers: a registry serves all under the same digests."""
    expected = {}
    for tag in (each for each in originals.tags if each.is_oci):
        repository = f"new/deep/{tag.repository}"
        skopeo_copy(
            f"oci:{originals.layout(tag.repository)}:{tag.tag}", f"oci:{target.new_layout(repository)}:{tag.tag}"
        )
        image = originals.image(tag.repository, tag.tag)
        assert_complete(target.layout(repository), tag.tag, image)
        expected[repository, tag.tag] = image
    assert_served(target.storage, tmp_path / "registry", expected, all_in_use=True)


def test_skopeo_pushes_from_a_registry(target: Target, originals: Originals, tmp_path: Path, fixture_trees) -> None:
    """`skopeo copy docker://… oci:…/_oci:tag`, and Docker's images, which skopeo converts for a layout."""
    expected = {}
    with DockerRegistry(fixture_trees / "storage", tmp_path / "source") as registry:
        for repository, tag in (("team/app", "v2"), ("multi/arch", "latest")):
            skopeo_copy(f"docker://{registry.host}/{repository}:{tag}", f"oci:{target.new_layout(repository)}:{tag}")
            expected[repository, tag] = originals.image(repository, tag)
        for repository, tag in (("team/app-docker", "v1"), ("multi/docker-list", "latest")):
            plain = tmp_path / "plain" / repository
            plain.parent.mkdir(parents=True, exist_ok=True)
            for layout in (plain, target.new_layout(repository)):
                source = f"docker://{registry.host}/{repository}:{tag}"
                run(*SKOPEO, "copy", "--all", "--src-tls-verify=false", source, f"oci:{layout}:{tag}")
            [entry] = read_index(plain)
            assert entry["mediaType"] in (OCI_IMAGE, OCI_INDEX)
            expected[repository, tag] = Image.read(plain, entry)
    assert_served(target.storage, tmp_path / "registry", expected, all_in_use=True)


def test_skopeo_moves_a_tag(target: Target, originals: Originals, tmp_path: Path) -> None:
    """The same tag again is another image from then on; the first one stays a manifest of the repository."""
    layout = target.new_layout("team/app")
    for tag in ("v1", "v2"):
        skopeo_copy(f"oci:{originals.layout('team/app')}:{tag}", f"oci:{layout}:latest")
    assert tags_of(layout) == {"latest": originals.tag("team/app", "v2").digest}
    manifests = set(os.listdir(layout.parent / "_manifests"))
    assert manifests == {originals.tag("team/app", tag).digest for tag in ("v1", "v2")}
    expected = {("team/app", "latest"): originals.image("team/app", "v2")}
    assert_served(target.storage, tmp_path / "registry", expected, all_in_use=False)


def test_skopeo_deletes(deletable: Target, originals: Originals, tmp_path: Path) -> None:
    """A real `skopeo delete` of an image in a layout; 1.9 cannot do that, so it is refused by skopeo, not by us."""
    layout = deletable.new_layout("team/app")
    skopeo_copy(f"oci:{originals.layout('team/app')}:v1", f"oci:{layout}:v1")
    refused = run(*SKOPEO, "delete", f"oci:{layout}:v1", check=False)
    assert refused.returncode != 0
    assert "not implemented" in refused.stderr
    expected = {("team/app", "v1"): originals.image("team/app", "v1")}
    assert_served(deletable.storage, tmp_path / "registry", expected, all_in_use=True)


# --- umoci -------------------------------------------------------------------------------------------------------


def make_by_umoci(layout: Path, directory: Path) -> None:
    """An image from nothing: made, configured, given a file, tagged, unpacked, changed and packed again."""
    file = directory / "file"
    file.write_text("a file\n")
    umoci("new", "--image", f"{layout}:made")
    umoci("config", "--image", f"{layout}:made", "--author", "somebody", "--config.env", "A=b")
    umoci("insert", "--image", f"{layout}:made", file, "/etc/file")
    umoci("tag", "--image", f"{layout}:made", "also")
    umoci("unpack", "--image", f"{layout}:made", directory / "bundle")
    (directory / "bundle/rootfs/new").write_text("another file\n")
    umoci("repack", "--image", f"{layout}:packed", directory / "bundle")


def test_umoci_makes_an_image(target: Target, tmp_path: Path) -> None:
    """`new`, `config`, `insert`, `tag`, `unpack` and `repack` in a new repository; a registry serves the results."""
    layout = target.new_layout("made/by/umoci")
    make_by_umoci(layout, tmp_path)
    tags = tags_of(layout)
    assert set(tags) == {"made", "also", "packed"}
    assert tags["made"] == tags["also"]
    images = {("made/by/umoci", tag): target.image("made/by/umoci", tag) for tag in tags}
    assert_served(target.storage, tmp_path / "registry", images, all_in_use=False)
    umoci("unpack", "--image", f"{layout}:packed", tmp_path / "again")
    assert (tmp_path / "again/rootfs/etc/file").read_text() == "a file\n"
    assert (tmp_path / "again/rootfs/new").read_text() == "another file\n"
    configured = json.loads(umoci("stat", "--json", "--image", f"{layout}:packed"))
    assert len(configured["history"]) > 2
    assert target.storage.uploads("made/by/umoci") == []


def test_umoci_changes_what_skopeo_pushed(target: Target, originals: Originals, tmp_path: Path) -> None:
    """A file inserted into an image of the fixture: the layers below are the same, and the result can be unpacked."""
    layout = target.new_layout("base")
    skopeo_copy(f"oci:{originals.layout('base')}:1.0", f"oci:{layout}:1.0")
    (tmp_path / "file").write_text("inserted\n")
    umoci("insert", "--image", f"{layout}:1.0", "--tag", "1.1", tmp_path / "file", "/inserted")
    for tag in ("1.0", "1.1"):
        umoci("unpack", "--image", f"{layout}:{tag}", tmp_path / tag)
    before, after = (tree_of(tmp_path / tag / "rootfs") for tag in ("1.0", "1.1"))
    assert {name for name in after if name not in before} == {"inserted"}
    images = {("base", tag): target.image("base", tag) for tag in ("1.0", "1.1")}
    assert images["base", "1.0"] == originals.image("base", "1.0")
    assert_served(target.storage, tmp_path / "registry", images, all_in_use=True)


def test_umoci_cannot_init_what_is_there(target: Target) -> None:
    """Every repository has its layout; `umoci init` says so, and is not needed."""
    layout = target.new_layout("r")
    refused = run("umoci", "init", "--layout", layout, check=False)
    assert refused.returncode != 0
    assert "already exists" in refused.stderr
    assert umoci("list", "--layout", layout) == ""


def test_umoci_rm_needs_permission(target: Target, originals: Originals, tmp_path: Path) -> None:
    """Without --allow-delete a tag that a client leaves out of the index stays."""
    layout = target.new_layout("base")
    skopeo_copy(f"oci:{originals.layout('base')}:1.0", f"oci:{layout}:1.0")
    umoci("rm", "--image", f"{layout}:1.0")
    assert_served(
        target.storage, tmp_path / "registry", {("base", "1.0"): originals.image("base", "1.0")}, all_in_use=True
    )


def test_umoci_rm(deletable: Target, originals: Originals, tmp_path: Path) -> None:
    """With --allow-delete `umoci rm` removes the tag, and nothing else."""
    layout = deletable.new_layout("base")
    for tag in ("1.0", "2.0"):
        skopeo_copy(f"oci:{originals.layout('base')}:1.0", f"oci:{layout}:{tag}")
    umoci("rm", "--image", f"{layout}:1.0")
    assert_served(
        deletable.storage, tmp_path / "registry", {("base", "2.0"): originals.image("base", "1.0")}, all_in_use=True
    )


def test_umoci_gc_takes_nothing_new(deletable: Target, originals: Originals, tmp_path: Path) -> None:
    """What no tag leads to, but was written a moment ago, may be somebody's push: `umoci gc` is refused."""
    layout = deletable.new_layout("base")
    skopeo_copy(f"oci:{originals.layout('base')}:1.0", f"oci:{layout}:1.0")
    fresh = deletable.storage.put_layer("base", b"somebody is pushing this")
    with deletable.mount.refuses("EBUSY"):
        assert run("umoci", "gc", "--layout", layout, check=False).returncode != 0
    assert blob_path(layout, fresh).read_bytes() == b"somebody is pushing this"
    assert_complete(layout, "1.0", originals.image("base", "1.0"))
    assert_clean(deletable.storage)


@pytest.mark.local("files can be given another time")
def test_umoci_gc_takes_what_is_old(deletable: Target, originals: Originals, tmp_path: Path) -> None:
    """An hour later `umoci gc` removes it from the repository, and everything that a tag leads to stays."""
    layout = deletable.new_layout("base")
    skopeo_copy(f"oci:{originals.layout('base')}:1.0", f"oci:{layout}:1.0")
    old = deletable.storage.put_layer("base", b"nobody needs this")
    for path in (deletable.storage.blob(old), deletable.storage.link("base", old)):
        os.utime(path, (path.stat().st_atime, path.stat().st_mtime - 3700))
    umoci("gc", "--layout", layout)
    assert not blob_path(layout, old).exists()
    assert not deletable.storage.link("base", old).exists()
    assert deletable.storage.blob(old).exists()
    expected = {("base", "1.0"): originals.image("base", "1.0")}
    assert_served(deletable.storage, tmp_path / "registry", expected, all_in_use=False, orphans=1)


# --- podman and buildah ------------------------------------------------------------------------------------------


def test_podman_pushes(
    target: Target, originals: Originals, containers: Containers, tmp_path: Path, monkeypatch
) -> None:
    """`podman push` and `buildah push`: what the registry then serves has the digest that they have written down."""
    monkeypatch.chdir(originals.layout("team/app").parent)
    containers.podman("pull", "oci:layout:v2")
    expected = {}
    for name, command in (("podman", containers.podman), ("buildah", containers.buildah)):
        digest_file = tmp_path / name
        layout = target.new_layout(f"by/{name}")
        command("push", "--digestfile", digest_file, "localhost/layout", f"oci:{layout}:v2")
        image = target.image(f"by/{name}", "v2")
        assert image.digest == digest_file.read_text()
        config = json.loads(image.manifests[image.digest])["config"]["digest"]
        assert config == containers.image("localhost/layout")[0]
        expected[f"by/{name}", "v2"] = image
    assert_served(target.storage, tmp_path / "registry", expected, all_in_use=True)


def test_podman_pushes_an_index(target: Target, originals: Originals, containers: Containers, tmp_path: Path) -> None:
    """`podman manifest push --all`: both images, and the index that has them."""
    containers.podman("manifest", "create", "list")
    containers.podman("manifest", "add", "--all", "list", f"oci:{originals.layout('multi/arch')}:latest")
    containers.podman("manifest", "push", "--all", "list", f"oci:{target.new_layout('multi')}:v1")
    image = target.image("multi", "v1")
    assert set(image.manifests) - {image.digest} == set(originals.image("multi/arch", "latest").manifests) - {
        originals.tag("multi/arch", "latest").digest
    }
    assert_served(target.storage, tmp_path / "registry", {("multi", "v1"): image}, all_in_use=True)


def test_podman_saves(
    target: Target, originals: Originals, containers: Containers, tmp_path: Path, monkeypatch
) -> None:
    """`podman save --format oci-dir`, which names nothing: its image can be read, and is tagged afterwards."""
    monkeypatch.chdir(originals.layout("base").parent)
    containers.podman("pull", "oci:layout:1.0")
    containers.podman("save", "--format", "oci-dir", "-o", tmp_path / "saved", "localhost/layout")
    [entry] = read_index(tmp_path / "saved")
    skopeo_copy(f"oci:{tmp_path / 'saved'}", f"oci:{target.new_layout('saved')}:v1")
    expected = {("saved", "v1"): Image.read(tmp_path / "saved", entry)}
    assert_served(target.storage, tmp_path / "registry", expected, all_in_use=True)


def test_buildah_builds_into_a_registry(target: Target, containers: Containers, tmp_path: Path) -> None:
    """`buildah commit … oci:…/_oci:tag`: an image goes from the build into the registry, and no server runs."""
    (tmp_path / "file").write_text("built\n")
    name = containers.buildah("from", "scratch")
    containers.buildah("copy", name, tmp_path / "file", "/file")
    containers.buildah("config", "--author", "somebody", name)
    containers.buildah("commit", name, f"oci:{target.new_layout('team/built')}:v1")
    umoci("unpack", "--image", f"{target.layout('team/built')}:v1", tmp_path / "bundle")
    assert (tmp_path / "bundle/rootfs/file").read_text() == "built\n"
    expected = {("team/built", "v1"): target.image("team/built", "v1")}
    assert_served(target.storage, tmp_path / "registry", expected, all_in_use=True)


# --- containerd --------------------------------------------------------------------------------------------------


def test_containerd_stores_in_a_repository(target: Target, originals: Originals, tmp_path: Path) -> None:
    """containerd with `_oci` for its content store: what it imports are layers of the repository, and then a tag."""
    layout = target.new_layout("imported")
    image = originals.image("multi/arch", "latest")
    with Containerd(tmp_path / "containerd", layout) as containerd:
        archive = tmp_path / "image.tar"
        run("tar", "-C", originals.layout("multi/arch"), "-cf", archive, ".")
        with target.mount.tolerates("EPERM", "EBUSY"):  # it collects garbage: the index of the archive itself
            containerd.ctr("images", "import", "--all-platforms", "--no-unpack", "--base-name", "multi", archive)
            assert blobs_of(layout, image.digest) == image.content
            blob = blob_path(originals.layout("multi/arch"), next(iter(image.blobs)))
            shell('ctr --address "$1" content ingest again < "$2"', containerd.socket, blob)
    assert os.listdir(layout / "ingest") == []
    index = read_index(originals.layout("multi/arch"))
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": index}))
    assert_served(target.storage, tmp_path / "registry", {("imported", "latest"): image}, all_in_use=False)


# --- plain tools -------------------------------------------------------------------------------------------------


#: Repositories of every kind: several tags of an image, an index, and Docker's kinds of both.
COPIED = ["team/app", "multi/arch", "team/app-docker", "multi/docker-list"]


@pytest.mark.parametrize(
    "script",
    [
        'cp -r "$1/oci-layout" "$1/blobs" "$2"; cp "$1/index.json" "$2"',
        'cp -a "$1/oci-layout" "$1/blobs" "$2"; cp -a "$1/index.json" "$2"',
        'rsync -a "$1/blobs" "$1/oci-layout" "$2"; rsync -a "$1/index.json" "$2"',
        'tar -C "$1" -c oci-layout blobs index.json | tar -C "$2" -x --overwrite',
    ],
    ids=["cp -r", "cp -a", "rsync", "tar"],
)
def test_a_layout_is_copied_in(target: Target, originals: Originals, tmp_path: Path, script: str) -> None:
    """With ordinary tools, the index last: every tag is served under the digest that it had, Docker's images too."""
    for repository in COPIED:
        shell(script, originals.layout(repository), target.new_layout(repository))
    tags = [tag for tag in originals.tags if tag.repository in COPIED]
    expected = {(tag.repository, tag.tag): originals.image(tag.repository, tag.tag) for tag in tags}
    assert_served(target.storage, tmp_path / "registry", expected, all_in_use=True)


def test_the_index_before_the_blobs(target: Target, originals: Originals, tmp_path: Path) -> None:
    """rsync sends files before directories: the index is refused, the rest arrives, and the second run succeeds."""
    layout = target.new_layout("base")
    source = originals.layout("base")
    with target.mount.refuses("ENOLINK"):
        assert run("rsync", "-a", f"{source}/", layout, check=False).returncode != 0
    assert tags_of(layout) == {}
    run("rsync", "-a", f"{source}/", layout)
    expected = {("base", tag): originals.image("base", tag) for tag in tags_of(source)}
    assert_served(target.storage, tmp_path / "registry", expected, all_in_use=True)


def test_sed_and_jq_edit_the_index(target: Target, images: Images, tmp_path: Path) -> None:
    """A tag is added by `sed -i` and by `jq > new; mv`: programs that read in one process and write in another."""
    image = images.image()
    layout = target.new_layout("r")
    write_layout(tmp_path / "plain", {"v1": image})
    run("cp", "-r", f"{tmp_path}/plain/blobs", layout)
    run("cp", f"{tmp_path}/plain/index.json", layout)
    run("sed", "-i", 's/"v1"/"v2"/', layout / "index.json")
    assert tags_of(layout) == {"v1": image.digest, "v2": image.digest}
    script = """jq '.manifests += [.manifests[0] | .annotations["org.opencontainers.image.ref.name"] = "v3"]' \\
        index.json > new; mv new index.json"""
    shell(script, cwd=layout)
    expected = {("r", tag): image for tag in ("v1", "v2", "v3")}
    assert_served(target.storage, tmp_path / "registry", expected, all_in_use=True)


@pytest.mark.local("the registry of this test has its storage on this machine")
def test_nothing_is_seen_before_the_index(target: Target, images: Images, tmp_path: Path) -> None:
    """While a push is going on, a registry knows neither a tag nor a manifest, and no file that is being written."""
    image = images.image()
    [manifest] = image.manifests
    layout = target.new_layout("r")
    temporary = layout / "oci-put-blob1"
    with temporary.open("wb") as file, DockerRegistry(target.storage.root, tmp_path / "registry") as registry:
        file.write(b"half of a layer")
        file.flush()
        for digest, content in image.content.items():
            blob_path(layout, digest).write_bytes(content)
        (layout / "index.json.new").write_bytes(b"half of an ind")
        assert registry.request("GET", "/v2/r/tags/list").status == 404
        assert registry.get_manifest("r", manifest, OCI_IMAGE).status == 404
        assert {path.name for path in (layout.parent / "_manifests").iterdir()} == set()
        assert sorted(os.listdir(layout)) == ["blobs", "index.json", "oci-layout"]
        assert sorted(os.listdir(layout / "blobs/sha256")) == sorted(digest[7:] for digest in image.blobs)
        assert len(target.storage.uploads("r")) == 3
        (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [image.descriptor]}))
        assert registry.get_manifest("r", manifest, OCI_IMAGE).body == image.manifests[manifest]
        skopeo_copy(f"docker://{registry.host}/r@{manifest}", f"oci:{layout}:v1")
        assert digest_served(registry, "r", "v1") == manifest
    os.unlink(temporary)
    os.unlink(layout / "index.json.new")
    assert target.storage.uploads("r") == []
    assert_clean(target.storage)
