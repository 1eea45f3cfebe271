"""A backup of a registry's storage, mounted as it is: read-only without being told, by everything that reads."""

from __future__ import annotations

import errno
import os
import random
import shutil
from pathlib import Path

import pytest
from harness.commands import run
from harness.mount import Mount
from harness.storage import Storage, digest_of

LAYERS = [random.Random(number).randbytes(3_000_000) for number in range(4)]


@pytest.mark.local("the archive is a file of this machine")
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_a_backup(kind: str, tmp_path: Path) -> None:
    """Layers are listed and copied out, each change is EROFS, and nobody is shown where it could be written."""
    storage = Storage.create(tmp_path / "storage")
    digests = [storage.put_layer("team/app", layer) for layer in LAYERS]
    if kind == "zip":
        run("zip", "-qr", tmp_path / "backup.zip", "docker", cwd=storage.root)
    else:
        run("tar", "-C", storage.root, "-czf", tmp_path / "backup.zip", ".")
    before = digest_of((tmp_path / "backup.zip").read_bytes())
    with Mount(f"{kind}::{tmp_path}/backup.zip", tmp_path / "mnt") as mount:
        layers = mount.path / "team/app/_layers"
        assert sorted(os.listdir(layers)) == sorted(digests)
        shutil.copytree(layers, tmp_path / "copied")
        assert [(tmp_path / "copied" / digest).read_bytes() for digest in digests] == LAYERS
        assert "ro" in mount.mount_options
        assert run("findmnt", "-no", "SOURCE", mount.path).stdout.strip() == f"{kind}::{tmp_path}/backup.zip"
        assert not os.access(layers, os.W_OK)
        for change in (
            lambda: (mount.path / "new").mkdir(),
            lambda: (mount.path / "team/app/_uploads/x").write_bytes(b""),
            lambda: (layers / digests[0]).unlink(),
        ):
            with pytest.raises(OSError) as caught:
                change()
            assert caught.value.errno == errno.EROFS
    assert digest_of((tmp_path / "backup.zip").read_bytes()) == before
