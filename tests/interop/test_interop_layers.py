"""What layerfs stores is what the registry stores, and each sees at once what the other did."""

from __future__ import annotations

import errno
import json
import os
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
from harness.commands import run, wait_until
from harness.registry import DockerRegistry
from harness.repository import MountedRepository
from harness.storage import Storage, digest_of, files


def push_by_mv(repository: MountedRepository, data: bytes, digest: str) -> None:
    repository.put_upload("layer.tar.gz", data)
    run("mv", repository.upload("layer.tar.gz"), repository.layer(digest))


def push_within_uploads(repository: MountedRepository, data: bytes, digest: str) -> None:
    repository.put_upload("layer.tar.gz", data)
    run("mv", repository.upload("layer.tar.gz"), repository.upload(digest))


def push_at_digest(repository: MountedRepository, data: bytes, digest: str) -> None:
    repository.layer(digest).write_bytes(data)


def push_in_pieces(repository: MountedRepository, data: bytes, digest: str) -> None:
    for start in range(0, len(data), 100_000):
        repository.put_upload("layer", data[start : start + 100_000])
    run("touch", repository.upload("layer"))
    repository.commit("layer", digest)


WAYS = [push_by_mv, push_within_uploads, push_at_digest, push_in_pieces]


@pytest.mark.parametrize("push", WAYS)
@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
@pytest.mark.parametrize("size", [0, 1, 300_001])
def test_the_storage_is_exactly_what_the_registry_writes(
    mounts, tmp_path: Path, payload, push: Callable[..., None], algorithm: str, size: int
) -> None:
    """The same blob pushed over HTTP and through a mount gives the same files with the same bytes, and no other."""
    data = payload(size)
    digest = digest_of(data, algorithm)
    theirs, ours = Storage.create(tmp_path / "theirs"), Storage.create(tmp_path / "ours")
    with DockerRegistry(theirs.root, tmp_path / "registry") as registry:
        registry.push("team/app", data, digest)
    mount = mounts(ours)
    run("mkdir", "-p", mount.path / "team/app")
    push(MountedRepository(mount, ours, "team/app"), data, digest)
    mount.stop()
    assert files(ours.root) == files(theirs.root)
    assert len(files(ours.root)) == (2 if algorithm == "sha256" else 3)


@pytest.mark.parametrize("there", ["_layers", "_manifests", "_uploads", "an upload"])
def test_both_generations_of_registries_find_the_repository(mounts, storage: Storage, there: str) -> None:
    """After a commit the repository has what 2.x looks for and what 3.x looks for, whatever it had before."""
    name = str(uuid.uuid4())
    if there == "an upload":
        storage.put_upload("r", b"abc", upload_id=name)
    else:
        (storage.repository("r") / there).mkdir(parents=True)
    repository = MountedRepository(mounts(storage), storage, "r")
    if there != "an upload":
        repository.put_upload(name, b"abc")
    repository.commit(name, digest_of(b"abc"))
    assert (storage.repository("r") / "_layers").is_dir()
    assert (storage.repository("r") / "_manifests").is_dir()


def test_modes_are_what_the_registry_writes(mounts, tmp_path: Path, payload) -> None:
    """Files and directories have the registry's modes and owner."""
    data = payload(1000)
    theirs, ours = Storage.create(tmp_path / "theirs"), Storage.create(tmp_path / "ours")
    with DockerRegistry(theirs.root, tmp_path / "registry") as registry:
        digest = registry.push("team/app", data)
    ours.make_repository("team/app")
    MountedRepository(mounts(ours), ours, "team/app").put_layer(data)
    for find in (lambda storage: storage.blob(digest), lambda storage: storage.link("team/app", digest)):
        for their, our in zip((find(theirs), find(theirs).parent), (find(ours), find(ours).parent), strict=True):
            assert (our.stat().st_mode, our.stat().st_uid) == (their.stat().st_mode, their.stat().st_uid)


@pytest.mark.parametrize("push", WAYS)
def test_the_registry_serves_it_at_once(
    repository: MountedRepository, registry: DockerRegistry, payload, push: Callable[..., None]
) -> None:
    """HEAD and GET of the running registry, straight after `mv`."""
    data = payload(200_000)
    digest = digest_of(data)
    assert registry.head(repository.name, digest).status == 404
    push(repository, data, digest)
    assert registry.serves(repository.name, digest, data)


def test_the_registry_serves_by_sha512(repository: MountedRepository, registry: DockerRegistry, payload) -> None:
    """A layer committed by its sha512 is served under both digests."""
    data = payload(1000)
    push_by_mv(repository, data, digest_of(data, "sha512"))
    for digest in (digest_of(data), digest_of(data, "sha512")):
        assert registry.serves(repository.name, digest, data)
        assert registry.head(repository.name, digest).headers["docker-content-digest"] == digest_of(data)


def test_the_registry_serves_a_linked_layer(repository: MountedRepository, registry: DockerRegistry, payload) -> None:
    """`ln` into another repository is the registry's cross-repository mount."""
    data = payload(1000)
    digest = registry.push(repository.name, data)
    other = f"{repository.name}/other"
    os.mkdir(repository.path / "other")
    run("ln", repository.layer(digest), repository.path / "other/_layers" / digest)
    assert registry.serves(other, digest, data)


def test_the_registry_finds_a_repository_made_by_mkdir(repository: MountedRepository, registry: DockerRegistry) -> None:
    """`mkdir` is enough to be in the catalog."""
    os.mkdir(repository.path / "made")
    catalog = json.loads(registry.request("GET", "/v2/_catalog?n=1000").body)["repositories"]
    assert f"{repository.name}/made" in catalog


def test_what_the_registry_got_is_seen(repository: MountedRepository, registry: DockerRegistry, payload) -> None:
    """A layer pushed over HTTP is on the mount within the TTL, though its name was ENOENT just before."""
    data = payload(200_000)
    digest = digest_of(data)
    assert not os.path.exists(repository.layer(digest))
    assert repository.layers == []
    registry.push(repository.name, data)
    wait_until(lambda: os.path.exists(repository.layer(digest)), "the layer", seconds=2)
    wait_until(lambda: repository.layers == [digest], "the layer in the listing", seconds=2)
    assert repository.layer(digest).read_bytes() == data


def test_what_the_registry_deleted_is_gone(repository: MountedRepository, registry: DockerRegistry, payload) -> None:
    """DELETE of a blob removes the link: ENOENT within the TTL, and the (empty) directory it leaves is no layer."""
    digest = registry.push(repository.name, payload(1000))
    repository.layer(digest).read_bytes()
    assert registry.delete(repository.name, digest).status == 202
    wait_until(lambda: not os.path.exists(repository.layer(digest)), "ENOENT", seconds=3)
    wait_until(lambda: repository.layers == [], "an empty listing", seconds=3)


def test_what_we_deleted_is_gone_from_the_registry(mounts, storage: Storage, tmp_path: Path, payload) -> None:
    """`rm` with `--allow-delete` is the registry's DELETE: 404 afterwards, and pushing again works."""
    data = payload(1000)
    with DockerRegistry(storage.root, tmp_path / "registry") as registry:
        digest = registry.push("r", data)
        repository = MountedRepository(mounts(storage, "--allow-delete"), storage, "r")
        os.unlink(repository.layer(digest))
        assert registry.head("r", digest).status == 404
        registry.push("r", data)
        assert registry.serves("r", digest, data)


def image_of(registry: DockerRegistry, repository: MountedRepository, config: bytes, layer: bytes) -> str:
    """Pushes the manifest (only) of an image of blobs that are there; returns its digest."""
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": digest_of(config),
            "size": len(config),
        },
        "layers": [
            {
                "mediaType": "application/vnd.oci.image.layer.v1.tar",
                "digest": digest_of(layer),
                "size": len(layer),
            }
        ],
    }
    body = json.dumps(manifest).encode()
    url = f"/v2/{repository.name}/manifests/v1"
    answer = registry.request("PUT", url, body, Content_Type=manifest["mediaType"])
    assert answer.status == 201, answer
    return digest_of(body)


def test_garbage_collection_finds_nothing_odd(mounts, storage: Storage, tmp_path: Path, payload) -> None:
    """An image whose blobs came through the mount is marked whole: the collector's dry run wants nothing of it."""
    config = json.dumps({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": []}}).encode()
    layer = payload(100_000)
    with DockerRegistry(storage.root, tmp_path / "registry") as registry:
        mount = mounts(storage)
        run("mkdir", "-p", mount.path / "team/app", mount.path / "team/empty")
        repository = MountedRepository(mount, storage, "team/app")
        repository.put_upload("unfinished", b"abc")
        for data in (config, layer):
            repository.put_layer(data)
        manifest = image_of(registry, repository, config, layer)
        report = registry.garbage_collect()
    assert "3 blobs marked, 0 blobs and 0 manifests eligible for deletion" in report
    for digest in (manifest, digest_of(config), digest_of(layer)):
        assert f"marking blob {digest}" in report or f"marking manifest {digest}" in report
    assert "eligible for deletion: sha256" not in report


def test_garbage_collection_of_what_nobody_refers_to(mounts, storage: Storage, tmp_path: Path, payload) -> None:
    """A layer without a manifest is eligible, as it would be after a push over HTTP; nothing stops the collector."""
    with DockerRegistry(storage.root, tmp_path / "registry") as registry:
        mount = mounts(storage)
        run("mkdir", "-p", mount.path / "team/app")
        repository = MountedRepository(mount, storage, "team/app")
        layer = repository.put_layer(payload(1000))
        report = registry.garbage_collect()
    assert "0 blobs marked, 1 blobs" in report
    assert layer.name in report


def test_skopeo_pulls_an_image_whose_layer_came_through_the_mount(
    repository: MountedRepository, registry: DockerRegistry, payload, tmp_path: Path
) -> None:
    """A client gets the image, with every byte verified."""
    root = tmp_path / "root"
    root.mkdir()
    (root / "file").write_bytes(payload(50_000))
    layer = tmp_path / "layer.tar"
    run("tar", "-C", root, "-cf", layer, ".")
    data = layer.read_bytes()
    config = {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [digest_of(data)]}}
    config_bytes = json.dumps(config).encode()
    run("cp", layer, repository.upload("layer.tar"))
    run("mv", repository.upload("layer.tar"), repository.layer(digest_of(data)))
    repository.put_layer(config_bytes, "config")
    image_of(registry, repository, config_bytes, data)
    image = f"docker://{registry.host}/{repository.name}:v1"
    run("skopeo", "copy", "-q", "--src-tls-verify=false", image, f"dir:{tmp_path}/copy")
    assert (tmp_path / "copy" / digest_of(data)[7:]).read_bytes() == data


def test_layers_of_a_pushed_image(repository: MountedRepository, registry: DockerRegistry, tmp_path: Path) -> None:
    """What skopeo pushed to the registry is read through the mount."""
    name = repository.name
    source = f"docker://{registry.host}/team/app:v2"
    target = f"docker://{registry.host}/{name}:v2"
    run("skopeo", "copy", "-q", "--src-tls-verify=false", "--dest-tls-verify=false", source, target)
    manifest = json.loads(run("skopeo", "inspect", "--raw", "--tls-verify=false", target).stdout)
    for layer in manifest["layers"]:
        path = repository.layer(layer["digest"])
        wait_until(lambda path=path: os.path.exists(path), "the layer", seconds=2)
        assert os.stat(path).st_size == layer["size"]
        assert digest_of(path.read_bytes()) == layer["digest"]


def test_a_damaged_blob_is_healed_for_the_registry(
    repository: MountedRepository, registry: DockerRegistry, payload
) -> None:
    """The registry keeps a damaged blob when it is pushed again; a commit through the mount heals it."""
    data = payload(100_000)
    digest = registry.push(repository.name, data)
    repository.storage.blob(digest).write_bytes(b"X" + data[1:])
    registry.push(repository.name, data)
    assert registry.get(repository.name, digest).body != data
    push_by_mv(repository, data, digest)
    repository.mount.declare("WARNING")
    assert registry.serves(repository.name, digest, data)


def test_a_wrong_digest_is_refused_by_both(repository: MountedRepository, registry: DockerRegistry, payload) -> None:
    """The registry's 400 is our EBADMSG; afterwards neither has the layer, and both still have the upload."""
    data, wrong = payload(1000), digest_of(payload(1000))
    assert registry.put(registry.patch(registry.post(repository.name), data), wrong).status == 400
    (upload_id,) = (path.name for path in repository.storage.uploads(repository.name))
    wait_until(lambda: repository.uploads == [upload_id], "the upload", seconds=2)
    with repository.mount.refused(errno.EBADMSG):
        repository.commit(upload_id, wrong)
    assert registry.head(repository.name, wrong).status == 404
    repository.commit(upload_id, digest_of(data))
    assert registry.serves(repository.name, digest_of(data), data)


def test_a_registry_that_rewrites_links(repository: MountedRepository, registry: DockerRegistry, payload) -> None:
    """While the registry pushes the same blob again and again (2.8 rewrites its link in place), it is always there."""
    data = payload(1000)
    digest = registry.push(repository.name, data)
    wait_until(lambda: repository.layers == [digest], "the layer", seconds=2)
    for _ in range(50):
        registry.push(repository.name, data)
        assert repository.layers == [digest]
        assert repository.layer(digest).read_bytes() == data
