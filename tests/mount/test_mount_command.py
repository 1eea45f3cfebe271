"""`layerfs mount` from outside: what it refuses to mount, and how it says so."""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
from pathlib import Path

import pytest
from harness.commands import run
from harness.mount import COMMAND, Mount
from harness.repository import MountedRepository
from harness.storage import Storage, digest_of, snapshot

pytestmark = pytest.mark.usefixtures("watchdog")


def refused(*argv: object) -> str:
    """What `layerfs mount …` says when it does not mount."""
    result = subprocess.run(
        [COMMAND, "mount", *map(str, argv)], capture_output=True, text=True, timeout=30, check=False
    )
    assert result.returncode != 0
    assert "Traceback" not in result.stderr
    assert result.stderr.strip()
    return result.stderr


def test_a_source_that_is_missing(tmp_path: Path) -> None:
    """It says which."""
    (tmp_path / "mnt").mkdir()
    assert str(tmp_path / "nothing") in refused(tmp_path / "nothing", tmp_path / "mnt")


def test_a_source_that_is_empty(tmp_path: Path) -> None:
    """An empty directory is no registry: the message names the way out."""
    (tmp_path / "mnt").mkdir()
    (tmp_path / "empty").mkdir()
    assert "--create" in refused(tmp_path / "empty", tmp_path / "mnt")
    assert os.listdir(tmp_path / "empty") == []


def test_a_source_that_is_a_file(tmp_path: Path) -> None:
    """Refused."""
    (tmp_path / "mnt").mkdir()
    (tmp_path / "file").write_text("x")
    assert str(tmp_path / "file") in refused(tmp_path / "file", tmp_path / "mnt")


def test_create(mounts, tmp_path: Path) -> None:
    """`--create` makes an empty registry, and what is pushed into it is a registry's."""
    mount = mounts(tmp_path / "new", "--create")
    assert os.listdir(mount.path) == []
    os.mkdir(mount.path / "r")
    MountedRepository(mount, Storage(tmp_path / "new"), "r").put_layer(b"abc")
    assert Storage(tmp_path / "new").blob(digest_of(b"abc")).read_bytes() == b"abc"


@pytest.mark.parametrize("name", ["größe, 層 é", "a\nb\\c#,", os.fsdecode(b"\xff\xfe")])
def test_a_source_of_any_name(mounts, tmp_path: Path, name: str) -> None:
    """The table of mounts has the name of the directory as it is, and what the mount tells of itself can be read."""
    source = tmp_path / name
    source.mkdir()
    mount = mounts(source, "--create")
    table = Path("/proc/self/mountinfo").read_bytes().split(b"\n")
    (line,) = [line for line in table if os.fsencode(mount.path) in line.split()]
    shown = line.partition(b" - ")[2].split()[1]
    assert re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8)]), shown) == os.fsencode(source)
    assert json.loads((mount.path / ".layerfs/status.json").read_bytes())["source"] == str(source)
    assert (mount.path / ".layerfs/stats").read_bytes()


def test_a_mountpoint_that_is_missing(storage: Storage, tmp_path: Path) -> None:
    """It says which."""
    assert str(tmp_path / "nothing") in refused(storage.source, tmp_path / "nothing")


def test_a_mountpoint_that_is_not_empty(storage: Storage, tmp_path: Path) -> None:
    """Refused: it would hide files."""
    (tmp_path / "mnt").mkdir()
    (tmp_path / "mnt/file").write_text("x")
    assert str(tmp_path / "mnt") in refused(storage.source, tmp_path / "mnt")


def test_a_mountpoint_that_is_mounted(mounts, storage: Storage) -> None:
    """A second mount on the same place is refused, and the first one lives."""
    storage.make_repository("r")
    mount: Mount = mounts(storage)
    refused(storage.source, mount.path)
    assert os.listdir(mount.path) == ["r"]


@pytest.mark.local("an object store is in no directory")
@pytest.mark.parametrize("place", ["", "docker", "docker/registry/v2/repositories/mnt", ".."])
def test_a_mountpoint_and_storage_in_one_another(storage: Storage, place: str) -> None:
    """Onto, below or above the storage itself: refused, or the daemon would wait for itself."""
    mountpoint = storage.root / place
    mountpoint.mkdir(exist_ok=True)
    before = snapshot(storage.root)
    for source in (storage.root, f"file://{storage.root}", f"local://{storage.root}"):
        refused(source, mountpoint)
    assert snapshot(storage.root) == before


@pytest.mark.local("an object store is in no directory")
def test_a_symlink_into_the_storage_as_mountpoint(storage: Storage, tmp_path: Path) -> None:
    """The same by another name."""
    (storage.root / "mnt").mkdir()
    (tmp_path / "by-another-name").symlink_to(storage.root / "mnt")
    refused(storage.root, tmp_path / "by-another-name")


def test_daemon(storage: Storage, tmp_path: Path) -> None:
    """`--daemon` returns 0 when the mount answers; `layerfs umount` ends it."""
    storage.make_repository("r")
    mountpoint = tmp_path / "mnt"
    mountpoint.mkdir()
    try:
        run(COMMAND, "mount", storage.source, mountpoint, "--daemon")
        assert os.listdir(mountpoint) == ["r"]
        run(COMMAND, "umount", mountpoint)
        assert os.listdir(mountpoint) == []
    finally:
        subprocess.run(["umount", "-l", mountpoint], capture_output=True, check=False)


def test_daemon_that_cannot_mount(tmp_path: Path) -> None:
    """`--daemon` gives the error and the exit code itself, not a daemon somewhere."""
    (tmp_path / "mnt").mkdir()
    assert str(tmp_path / "nothing") in refused(tmp_path / "nothing", tmp_path / "mnt", "--daemon")


def test_umount_of_what_is_not_mounted(tmp_path: Path) -> None:
    """An error, not a traceback."""
    result = subprocess.run([COMMAND, "umount", tmp_path], capture_output=True, text=True, timeout=30, check=False)
    assert result.returncode != 0
    assert "Traceback" not in result.stderr


#: Mounts, uploads, commits and unmounts as user 65534, in a mount namespace where /dev/fuse is open to everybody
#: (as udev makes it; in containers it often is not).
AS_ORDINARY_USER = """
    mount -t tmpfs -o mode=755,dev none "$1/dev"
    mknod -m 666 "$1/dev/fuse" c 10 229
    mount --bind "$1/dev/fuse" /dev/fuse
    user() { setpriv --reuid=65534 --regid=65534 --clear-groups -- "$@"; }
    user "$2" mount "$1/storage" "$1/mnt" --daemon --log-file "$1/log"
    user cp "$1/layer" "$1/mnt/r/_uploads/x"
    user mv "$1/mnt/r/_uploads/x" "$1/mnt/r/_layers/$3"
    user ls "$1/mnt/r/_layers"
    user "$2" umount "$1/mnt"
"""


def test_an_ordinary_user(payload) -> None:
    """Without root, with fusermount3: mount, upload, commit, list, unmount."""
    data = payload(200_000)
    with tempfile.TemporaryDirectory(prefix="layerfs-user-") as directory:
        base = Path(directory)
        storage = Storage.create(base / "storage")
        digest = storage.put_layer("r", payload(1000))
        for name in ("mnt", "dev"):
            (base / name).mkdir()
        (base / "layer").write_bytes(data)
        run("chown", "-R", "65534:65534", base)
        argv = ["unshare", "--mount", "bash", "-euc", AS_ORDINARY_USER, "bash", base, COMMAND, digest_of(data)]
        assert run(*argv).stdout.split() == sorted([digest, digest_of(data)])
        assert storage.blob(digest_of(data)).read_bytes() == data
        assert storage.blob(digest_of(data)).stat().st_uid == 65534


def test_ready_means_ready(storage: Storage, mounts) -> None:
    """When the daemon reports READY=1 the mount answers at once."""
    storage.make_repository("r")
    for _ in range(5):
        mount = mounts(storage)
        assert os.listdir(mount.path) == ["r"]
        mount.stop()


def test_options_by_dash_o(mounts, storage: Storage) -> None:
    """`-o` takes what fstab says: options of ours, the kernel's, and words to be ignored."""
    storage.make_repository("r")
    mount = mounts(storage, "-o", "ro,umask=077,noauto,_netdev,nofail,x-systemd.automount")
    assert "ro" in mount.mount_options
    assert os.stat(mount.path).st_mode & 0o7777 == 0o700


def test_text_log(storage: Storage, tmp_path: Path) -> None:
    """`--log-format text` is for people: no JSON."""
    with Mount(storage.source, tmp_path / "mnt", "--log-format", "text") as mount:
        said = mount.log_path.read_text().splitlines()
    assert said
    assert not any(line.startswith("{") for line in said)
