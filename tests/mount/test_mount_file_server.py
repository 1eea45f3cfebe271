"""Mounts of storages on servers of files: all is read, tags and links are made, and uploads are refused at once."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
from pathlib import Path

import pytest
from harness.commands import run
from harness.file_servers import PASSWORD, file_server
from harness.images import encode, oci_image
from harness.mount import Mount
from harness.storage import Storage, digest_of

LAYER = random.Random(5).randbytes(4_000_000)


@pytest.mark.local("its storage is on a server of its own")
@pytest.mark.parametrize("kind", ["ftp", "sftp", "smb", "vsftpd"])
def test_a_mount(kind: str, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its password is shown nowhere."""
    place = tmp_path_factory.mktemp(kind)
    with file_server(kind, place) as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        storage = Storage.create(server.directory)
        layer, config = storage.put_layer("team/app", LAYER), storage.put_layer("team/app", b"{}")
        run("chmod", "-R", "a+rwX", server.directory)
        with Mount(server.url, place / "mnt") as mount:
            repository = mount.path / "team/app"
            assert sorted(os.listdir(repository / "_layers")) == sorted([layer, config])
            assert digest_of((repository / "_layers" / layer).read_bytes()) == layer
            manifest = encode(oci_image(b"{}", [LAYER]))
            (repository / "_tags/v1").write_bytes(manifest)
            (repository / "_tags/latest").symlink_to("v1")
            assert (repository / "_tags/latest").read_bytes() == manifest
            assert json.loads((repository / "_oci/index.json").read_text())["manifests"][0]["size"] == len(manifest)
            (mount.path / "other").mkdir()
            os.link(repository / "_layers" / layer, mount.path / "other/_layers" / layer)
            with mount.refused(errno.EOPNOTSUPP):
                (repository / "_uploads/x").write_bytes(b"content")
            seen = Path(f"/proc/{mount.process.pid}/cmdline").read_text() + Path("/proc/self/mountinfo").read_text()
            assert PASSWORD not in seen + mount.log_text()
        assert storage.link("other", layer).read_text() == layer
        assert not [name for name in storage.root.rglob("*") if name.suffix == ".tmp" or name.parent.name == "_uploads"]


@pytest.mark.local("its storage is on a server of its own")
@pytest.mark.parametrize("kind", ["ftp", "sftp", "smb"])
def test_a_server_that_answers_no_more(
    kind: str, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who waits for it can be interrupted, and the mount ends when it is told to."""
    place = tmp_path_factory.mktemp(kind)
    with file_server(kind, place) as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        Storage.create(server.directory).put_layer("team/app", LAYER)
        mount = Mount(server.url, place / "mnt")
        with mount:
            assert os.listdir(mount.path) == ["team"]
            with server.silent(), mount.tolerates("EINTR", "EIO"):
                waiting = subprocess.Popen(["ls", mount.path / "team/app/_layers"], stderr=subprocess.DEVNULL)
                with pytest.raises(subprocess.TimeoutExpired):
                    waiting.wait(1)
                waiting.send_signal(signal.SIGINT)
                assert waiting.wait(5) == -signal.SIGINT
                mount.stop()
