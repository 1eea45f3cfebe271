"""All that happens to an image in a mount of a bucket, on each of the servers."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from harness.commands import append, run, shell
from harness.mount import Mount
from harness.object_stores import BUCKET, S3Server
from harness.storage import digest_of

MEBIBYTE = 1 << 20
PART = 5 * MEBIBYTE

SERVERS = ["ceph", "seaweedfs", pytest.param("swift", marks=pytest.mark.soak)]


@pytest.mark.parametrize("server", SERVERS, indirect=True)
def test_an_image(
    server: S3Server,
    prefix: str,
    stored,
    mounts: Callable[..., Mount],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    payload: Callable[[int], bytes],
) -> None:
    """Half a layer is copied, the daemon killed, the rest appended by another one; then finished, tagged, deleted."""
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    source = f"s3://{BUCKET}/{prefix}?endpoint_url={server.endpoint}&part_size={PART}"
    data, config = payload(2 * PART + 3000), json.dumps({"architecture": "amd64", "os": "linux"}).encode()
    (tmp_path / "layer").write_bytes(data)
    (tmp_path / "config").write_bytes(config)
    first = mounts(source, "--create")
    run("mkdir", "-p", first.path / "library" / "image")
    uploads = first.path / "library" / "image" / "_uploads"
    # A part, and a short one that is replaced by another short one.
    append(uploads / "layer", data[: PART + 1000])
    append(uploads / "layer", data[PART + 1000 : PART + 2000])
    first.kill9()

    second = mounts(source, "--allow-delete")
    repository = second.path / "library" / "image"
    upload, layer = repository / "_uploads" / "layer", repository / "_layers" / digest_of(data)
    assert upload.stat().st_size == PART + 2000
    shell('tail -c +"$1" "$2" >> "$3"', PART + 2001, tmp_path / "layer", upload)
    with second.refused(errno.EBADMSG):
        os.rename(upload, layer.with_name(digest_of(b"another")))
    run("mv", upload, layer)
    run("cp", tmp_path / "config", repository / "_layers" / digest_of(config))
    assert run("cmp", tmp_path / "layer", layer).returncode == 0
    assert os.listdir(repository / "_uploads") == []

    (tmp_path / "manifest").write_bytes(manifest := _manifest(config, data))
    run("cp", tmp_path / "manifest", repository / "_tags" / "v1")
    assert os.readlink(repository / "_tags" / "v1") == f"../_manifests/{digest_of(manifest)}"
    names = sorted([digest_of(data), digest_of(config)])
    listed = run("ls", "-l", repository / "_layers").stdout.splitlines()[1:]
    assert [(line.split()[-1], int(line.split()[4])) for line in listed] == [
        (name, len(data) if name == digest_of(data) else len(config)) for name in names
    ]

    run("rm", repository / "_tags" / "v1", repository / "_manifests" / digest_of(manifest), layer)
    assert os.listdir(repository / "_tags") == os.listdir(repository / "_manifests") == []
    assert os.listdir(repository / "_layers") == [digest_of(config)]
    with pytest.raises(OSError) as refused:
        layer.stat()
    assert refused.value.errno == errno.ENOENT
    assert stored.uploads() == []
    encoded = digest_of(data).removeprefix("sha256:")
    assert stored.content(f"/docker/registry/v2/blobs/sha256/{encoded[:2]}/{encoded}/data") == data
    assert [path for path in stored.paths() if "/_uploads/" in path] == []


def _manifest(config: bytes, layer: bytes) -> bytes:
    def described(media_type: str, content: bytes) -> dict[str, object]:
        return {"mediaType": media_type, "digest": digest_of(content), "size": len(content)}

    return json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": described("application/vnd.oci.image.config.v1+json", config),
            "layers": [described("application/vnd.oci.image.layer.v1.tar", layer)],
        }
    ).encode()
