"""Azure and Google Cloud Storage as file systems: real mounts, ordinary programs."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from harness.images import OCI_IMAGE, describe, digest, encode, oci_image
from harness.mount import Mount

MEBIBYTE = 1 << 20

Mounts = Callable[..., Mount]
Payload = Callable[[int], bytes]


def write_layout(directory: Path, config: bytes, layer: bytes) -> str:
    """An OCI image layout of one image with the tag v1; the digest of its manifest."""
    manifest = encode(oci_image(config, [layer]))
    blobs = directory / "blobs/sha256"
    blobs.mkdir(parents=True)
    for content in (manifest, config, layer):
        (blobs / digest(content).removeprefix("sha256:")).write_bytes(content)
    (directory / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    named = describe(manifest, OCI_IMAGE) | {"annotations": {"org.opencontainers.image.ref.name": "v1"}}
    (directory / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [named]}))
    return digest(manifest)


def test_copy_in_finish_read_back(mountable, mounts: Mounts, payload: Payload, tmp_path: Path) -> None:
    """`cp`, `mv` to the digest, `cmp`; then in a fresh mount, which knows nothing."""
    content = payload(10 * MEBIBYTE + 7)
    (tmp_path / "layer").write_bytes(content)
    mount = mounts(mountable.url, "--create")
    repository = mount.path / "library/alpine"
    os.makedirs(repository)
    subprocess.run(["cp", tmp_path / "layer", repository / "_uploads/layer.tar"], check=True)
    assert os.stat(repository / "_uploads/layer.tar").st_size == len(content)
    mountable.forget()
    subprocess.run(["mv", repository / "_uploads/layer.tar", repository / "_layers" / digest(content)], check=True)
    # Nothing of it came back here to be hashed or moved.
    assert mountable.relay.bytes_through < MEBIBYTE
    subprocess.run(["cmp", tmp_path / "layer", repository / "_layers" / digest(content)], check=True)
    mount.stop()
    mount.remount()
    assert os.listdir(mount.path) == ["library"]
    assert os.listdir(repository / "_layers") == [digest(content)]
    assert os.listdir(repository / "_uploads") == []
    assert (repository / "_layers" / digest(content)).read_bytes() == content


def test_an_upload_outlives_its_daemon(mountable, mounts: Mounts, payload: Payload) -> None:
    """kill -9 in the middle of writing: all that was synced is there, and the same upload goes on in a new mount."""
    content = payload(6 * MEBIBYTE)
    mount = mounts(mountable.url, "--create")
    upload = mount.path / "a/_uploads/layer.tar"
    os.makedirs(mount.path / "a")
    descriptor = os.open(upload, os.O_WRONLY | os.O_CREAT)
    os.write(descriptor, content[: 2 * MEBIBYTE])
    os.fsync(descriptor)
    os.write(descriptor, content[2 * MEBIBYTE : 3 * MEBIBYTE])
    mount.kill9()
    with pytest.raises(OSError, match="not connected"):
        os.close(descriptor)
    mount.remount()
    size = upload.stat().st_size
    assert 2 * MEBIBYTE <= size <= 3 * MEBIBYTE
    with upload.open("ab") as file:
        file.write(content[size:])
    with mount.refuses("EBADMSG"):
        result = subprocess.run(["mv", upload, mount.path / "a/_layers" / digest(b"other")], check=False)
        assert result.returncode == 1
    os.rename(upload, mount.path / "a/_layers" / digest(content))
    assert (mount.path / "a/_layers" / digest(content)).read_bytes() == content


@pytest.mark.parametrize("mountable", ["azure"], indirect=True)
def test_two_mounts_write_to_one_upload(mountable, mounts: Mounts) -> None:
    """Whoever comes second goes on; the first gets EBUSY, and no byte of its is in what the other finishes."""
    one, two = mounts(mountable.url, "--create"), mounts(mountable.url, "--create")
    os.makedirs(one.path / "a")
    first = os.open(one.path / "a/_uploads/x", os.O_WRONLY | os.O_CREAT)
    os.write(first, b"one")
    os.fsync(first)
    with (two.path / "a/_uploads/x").open("ab") as second:
        second.write(b"two")
    with one.refused(errno.EBUSY):
        os.write(first, b"one again")
        os.fsync(first)
    with one.refused(errno.EBUSY):
        os.close(first)
    os.rename(two.path / "a/_uploads/x", two.path / "a/_layers" / digest(b"onetwo"))
    assert (two.path / "a/_layers" / digest(b"onetwo")).read_bytes() == b"onetwo"


def test_a_client_pushes_and_pulls(mountable, mounts: Mounts, payload: Payload, tmp_path: Path) -> None:
    """skopeo copies an image into `_oci` and out again, with the same digest."""
    config = b'{"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": []}}'
    manifest = write_layout(tmp_path / "layout", config, payload(MEBIBYTE))
    mount = mounts(mountable.url, "--create")
    os.makedirs(mount.path / "pushed/image")
    layout = mount.path / "pushed/image/_oci"
    skopeo = ["skopeo", "--insecure-policy", "copy", "--preserve-digests", "--quiet"]
    subprocess.run([*skopeo, f"oci:{tmp_path}/layout:v1", f"oci:{layout}:v1"], check=True, timeout=60)
    assert os.readlink(mount.path / "pushed/image/_tags/v1") == f"../_manifests/{manifest}"
    subprocess.run([*skopeo, f"oci:{layout}:v1", f"oci:{tmp_path}/back:v1"], check=True, timeout=60)
    assert sorted(os.listdir(tmp_path / "back/blobs/sha256")) == sorted(os.listdir(tmp_path / "layout/blobs/sha256"))
    shutil.rmtree(tmp_path / "back")
