"""What holds everywhere in the tree: read-only mounts, attributes, statfs, `.layerfs`, ownership, the log."""

from __future__ import annotations

import errno
import json
import os
import re
import tempfile
import time
from datetime import datetime
from pathlib import Path

import pytest
from harness.commands import append, opened, run, wait_until
from harness.mount import Mount
from harness.repository import MountedRepository
from harness.storage import Storage, add_to, digest_of, snapshot

# --- read-only -------------------------------------------------------------------------------------------------------


@pytest.fixture
def read_only(mounts, storage: Storage) -> MountedRepository:
    """A repository with a layer and an upload, on a mount that may change nothing."""
    storage.put_layer("r", b"layer")
    storage.put_upload("r", b"upload", upload_id="11111111-1111-4111-8111-111111111111")
    return MountedRepository(mounts(storage, "--read-only"), storage, "r")


def test_every_change_is_erofs(read_only: MountedRepository) -> None:
    """Each operation that would change something says EROFS, and nothing is changed."""
    layer, upload = read_only.layer(digest_of(b"layer")), read_only.upload("11111111-1111-4111-8111-111111111111")
    new_digest = read_only.layer(digest_of(b"upload"))
    changes = {
        "create upload": lambda: os.open(read_only.upload("x"), os.O_WRONLY | os.O_CREAT),
        "create layer": lambda: os.open(new_digest, os.O_WRONLY | os.O_CREAT),
        "open upload": lambda: os.open(upload, os.O_WRONLY),
        "open layer": lambda: os.open(layer, os.O_WRONLY),
        "truncate": lambda: os.truncate(upload, 1),
        "commit": lambda: os.rename(upload, new_digest),
        "rename": lambda: os.rename(upload, read_only.upload("x")),
        "remove upload": lambda: os.unlink(upload),
        "remove layer": lambda: os.unlink(layer),
        "mkdir": lambda: os.mkdir(read_only.mount.path / "new"),
        "rmdir": lambda: os.rmdir(read_only.path),
        "link": lambda: os.link(layer, new_digest),
        "symlink": lambda: os.symlink("x", read_only.upload("x")),
        "mkfifo": lambda: os.mkfifo(read_only.upload("x")),
        "chmod": lambda: os.chmod(upload, 0o600),
        "chmod layer": lambda: os.chmod(layer, 0o600),
        "chown": lambda: os.chown(upload, 1, 1),
        "utime": lambda: os.utime(upload),
        "setxattr": lambda: os.setxattr(upload, "user.x", b"x"),
        "removexattr": lambda: os.removexattr(upload, "user.layerfs.upload.uuid"),
    }
    before = snapshot(read_only.storage.root)
    got = {}
    with read_only.mount.tolerates("EROFS"):
        for name, change in changes.items():
            with pytest.raises(OSError) as caught:
                change()
            got[name] = errno.errorcode[caught.value.errno]
    assert got == dict.fromkeys(changes, "EROFS")
    assert snapshot(read_only.storage.root) == before


def test_reading_a_read_only_mount(read_only: MountedRepository) -> None:
    """Layers and uploads are read as ever, and the mount says `ro`."""
    assert read_only.layer(digest_of(b"layer")).read_bytes() == b"layer"
    assert [read_only.upload(name).read_bytes() for name in read_only.uploads] == [b"upload"]
    assert "ro" in read_only.mount.mount_options


def test_reading_changes_nothing(read_only: MountedRepository) -> None:
    """A walk over a read-only mount, and its end, leave the storage as it was."""
    before = snapshot(read_only.storage.root)
    run("find", read_only.mount.path, "-type", "f", "-exec", "cat", "{}", "+")
    read_only.mount.stop()
    assert snapshot(read_only.storage.root) == before


# --- mount options ---------------------------------------------------------------------------------------------------


def test_nosuid_and_nodev(mount: Mount) -> None:
    """Always."""
    assert {"nosuid", "nodev"} <= mount.mount_options


def test_the_kind_of_mount(mount: Mount) -> None:
    """It is called `fuse.layerfs` and says where its storage is, without the options of a URL."""
    found = run("findmnt", "-no", "FSTYPE,SOURCE", "--mountpoint", mount.path).stdout.split()
    assert found[0] == "fuse.layerfs"
    assert str(mount.source).partition("?")[0] in found[1]


def test_ownership_and_umask(mounts, storage: Storage) -> None:
    """`--uid`, `--gid` and `--umask` say whose everything is, and what is masked."""
    digest = storage.put_layer("r", b"layer")
    upload_id = storage.put_upload("r", b"upload")
    mount = mounts(storage, "--uid", "1234", "--gid", "2345", "--umask", "027")
    modes = {}
    for path in ("", "r", "r/_layers", "r/_uploads", f"r/_layers/{digest}", f"r/_uploads/{upload_id}"):
        seen = os.stat(mount.path / path)
        assert (seen.st_uid, seen.st_gid) == (1234, 2345)
        modes[path] = seen.st_mode & 0o7777
    assert list(modes.values()) == [0o750, 0o750, 0o750, 0o750, 0o440, 0o640]


def test_other_users(payload) -> None:
    """Without `--allow-other` nobody else gets in; with it, everybody reads and modes decide who writes."""
    other = {"user": 65534, "group": 65534, "extra_groups": [], "check": False}
    with tempfile.TemporaryDirectory(prefix="layerfs-user-") as directory:
        base = Path(directory)
        base.chmod(0o755)
        storage = Storage.create(base / "storage")
        layer = f"r/_layers/{storage.put_layer('r', b'layer')}"
        with Mount(storage.root, base / "private") as private:
            assert "Permission denied" in run("cat", private.path / layer, **other).stderr
        with Mount(storage.root, base / "public", "--allow-other") as public:
            assert run("cat", public.path / layer, **other).stdout == "layer"
            for command in (["touch", "r/_uploads/x"], ["mkdir", "new"], ["rm", "-f", layer]):
                assert "denied" in run(*command[:-1], public.path / command[-1], **other).stderr
            assert os.listdir(public.path / "r/_uploads") == []
        for mount in (private, public):
            mount.check_log()


# --- extended attributes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["user.unknown", "user.layerfs.unknown"])
def test_an_unknown_attribute(repository: MountedRepository, name: str) -> None:
    """ENODATA, on files and directories."""
    repository.put_upload("x", b"abc")
    for path in (repository.mount.path, repository.path, repository.path / "_layers", repository.upload("x")):
        with pytest.raises(OSError, match="No data"):
            os.getxattr(path, name)


@pytest.mark.parametrize("name", ["security.capability", "security.selinux", "system.posix_acl_access", "system.foo"])
def test_attributes_of_other_namespaces(repository: MountedRepository, name: str) -> None:
    """EOPNOTSUPP (the kernel answers some of them itself)."""
    repository.put_upload("x", b"abc")
    with pytest.raises(OSError, match=r"not supported|No data") as caught:
        os.getxattr(repository.upload("x"), name)
    assert caught.value.errno in (errno.EOPNOTSUPP, errno.ENODATA)


@pytest.mark.parametrize("name", ["user.x", "user.layerfs.error", "security.capability", "trusted.overlay.opaque"])
def test_attributes_are_read_only(repository: MountedRepository, name: str) -> None:
    """Setting or removing any is refused and stores nothing."""
    repository.put_upload("x", b"abc")
    before = snapshot(repository.storage.repository(repository.name))
    for path in (repository.upload("x"), repository.path):
        with (
            repository.mount.tolerates("EPERM", "EOPNOTSUPP"),
            pytest.raises(OSError, match=r"permitted|not supported"),
        ):
            os.setxattr(path, name, b"\x01\x00\x00\x02" + bytes(16))
    assert snapshot(repository.storage.repository(repository.name)) == before


def test_repository_attribute_of_directories(repository: MountedRepository) -> None:
    """A repository's directory says its name."""
    assert os.getxattr(repository.path, "user.layerfs.repository") == repository.name.encode()


# --- statfs ----------------------------------------------------------------------------------------------------------


@pytest.mark.local("an object store has no size")
def test_statfs_is_that_of_the_disk(mount: Mount) -> None:
    """On local disk the figures are those of the file system below."""
    seen, real = os.statvfs(mount.path), os.statvfs(mount.source)
    assert seen.f_blocks * seen.f_frsize == real.f_blocks * real.f_frsize
    assert abs(seen.f_bavail * seen.f_frsize - real.f_bavail * real.f_frsize) < real.f_blocks * real.f_frsize / 10
    assert seen.f_namemax == 255
    run("df", mount.path)


# --- .layerfs --------------------------------------------------------------------------------------------------------


def test_dot_layerfs_is_hidden(mount: Mount) -> None:
    """It can be looked up, but is not listed."""
    assert ".layerfs" not in os.listdir(mount.path)
    assert os.path.isdir(mount.path / ".layerfs")
    assert {"status.json", "errors"} <= set(os.listdir(mount.path / ".layerfs"))


def test_status(mount: Mount) -> None:
    """`status.json` is JSON."""
    status = json.loads((mount.path / ".layerfs/status.json").read_text())
    assert isinstance(status, dict)
    assert status


def test_errors_are_kept(repository: MountedRepository) -> None:
    """The newest refusal is the last line of `.layerfs/errors`: operation, path, errno, reason and time."""
    repository.put_upload("x", b"abc")
    before = time.time()
    with repository.mount.refused(errno.EBADMSG):
        os.rename(repository.upload("x"), repository.layer("sha256:" + "0" * 64))
    *_, last = (repository.mount.path / ".layerfs/errors").read_text().splitlines()
    entry = json.loads(last)
    text = json.dumps(entry)
    assert "rename" in text
    assert f"{repository.name}/_uploads/x" in text
    assert "sha256:" + "0" * 64 in text
    assert {"operation", "path", "reason", "time"} <= set(entry)
    assert "EBADMSG" in entry.values()
    stamp = entry["time"]
    seen = stamp if isinstance(stamp, int | float) else datetime.fromisoformat(stamp).timestamp()
    assert before - 2 <= seen <= time.time() + 2


def test_errors_are_bounded(repository: MountedRepository) -> None:
    """Thousands of refusals do not grow `.layerfs/errors` without end, and the newest is there."""
    digest = repository.storage.put_layer(repository.name, b"abc" + os.urandom(8))
    with repository.mount.refuses("EPERM"):
        for _ in range(1500):
            with pytest.raises(PermissionError):
                os.truncate(repository.layer(digest), 0)
    errors = (repository.mount.path / ".layerfs/errors").read_text().splitlines()
    assert 1 <= len(errors) <= 1200
    assert digest in errors[-1]


def test_every_refusal_is_one_log_line(repository: MountedRepository) -> None:
    """One refused operation is one line, with operation, path and errno."""
    digest = repository.storage.put_layer(repository.name, b"abc" + os.urandom(8))
    os.stat(repository.layer(digest))
    start = len(repository.mount.read_log())
    with repository.mount.refused(errno.EPERM):
        os.truncate(repository.layer(digest), 0)
    lines = [line.text for line in repository.mount.read_log()[start:] if line.is_refusal]
    assert len(lines) == 1
    assert digest in lines[0]
    assert repository.name in lines[0]


def test_a_missing_name_is_not_logged(repository: MountedRepository) -> None:
    """ENOENT happens all the time."""
    start = len(repository.mount.read_log())
    with repository.mount.refused(errno.ENOENT):
        os.stat(repository.path / "nothing")
    repository.put_upload("x", b"abc")
    assert not any("nothing" in line.text for line in repository.mount.read_log()[start:])


@pytest.mark.parametrize("name", ["status.json", "errors"])
def test_dot_layerfs_is_read_only(mount: Mount, name: str) -> None:
    """Its files cannot be written, removed or renamed, and none can be added."""
    path = mount.path / ".layerfs" / name
    for change in (
        lambda: os.open(path, os.O_WRONLY),
        lambda: os.truncate(path, 0),
        lambda: os.unlink(path),
        lambda: os.rename(path, path.with_name("x")),
        lambda: os.open(path.with_name("x"), os.O_WRONLY | os.O_CREAT),
        lambda: os.mkdir(path.with_name("x")),
        lambda: os.rmdir(path.parent),
    ):
        with mount.refused(errno.EPERM, errno.EACCES, errno.EINVAL, errno.ENOTEMPTY):
            change()


def test_dot_layerfs_files_have_their_size(mount: Mount) -> None:
    """Tools that trust `st_size` (cp, wc, tail) get the whole file."""
    for name in ("status.json", "errors"):
        path = mount.path / ".layerfs" / name
        copied = run("cat", path).stdout
        tail = run("tail", "-c", "100000000", path).stdout
        assert (copied == "") == (tail == "")


# --- others' changes -------------------------------------------------------------------------------------------------


def test_a_new_layer_of_a_registry_is_seen(repository: MountedRepository, payload) -> None:
    """A layer that appears in storage is seen within the TTL, also by its name that was ENOENT before."""
    data = payload(1000)
    digest = digest_of(data)
    assert not os.path.exists(repository.layer(digest))
    assert repository.layers == []
    repository.storage.put_layer(repository.name, data)
    wait_until(lambda: os.path.exists(repository.layer(digest)), "the new layer", seconds=2)
    wait_until(lambda: repository.layers == [digest], "the new layer in the listing", seconds=2)
    assert repository.layer(digest).read_bytes() == data


def test_a_removed_link_is_seen(repository: MountedRepository, payload) -> None:
    """A layer whose link was removed is ENOENT within the TTL."""
    digest = repository.storage.put_layer(repository.name, payload(1000))
    repository.layer(digest).read_bytes()
    repository.storage.link(repository.name, digest).unlink()
    wait_until(lambda: not os.path.exists(repository.layer(digest)), "ENOENT", seconds=3)
    wait_until(lambda: repository.layers == [], "an empty listing", seconds=3)


def test_the_metadata_ttl(mounts, storage: Storage) -> None:
    """`--metadata-ttl` is how long old answers may be given."""
    storage.make_repository("r")
    repository = MountedRepository(mounts(storage, "--metadata-ttl", "0.1"), storage, "r")
    upload_id = storage.put_upload("r", b"abc")
    assert os.stat(repository.upload(upload_id)).st_size == 3
    add_to(storage.upload("r", upload_id) / "data", b"def")
    wait_until(lambda: os.stat(repository.upload(upload_id)).st_size == 6, "the new size", seconds=1)


def test_an_upload_that_a_registry_goes_on_with(repository: MountedRepository) -> None:
    """Its size grows within the TTL, and `>>` here comes after what was written there."""
    upload_id = repository.storage.put_upload(repository.name, b"abc")
    assert os.stat(repository.upload(upload_id)).st_size == 3
    add_to(repository.storage.upload(repository.name, upload_id) / "data", b"def")
    wait_until(lambda: os.stat(repository.upload(upload_id)).st_size == 6, "the new size", seconds=3)
    append(repository.upload(upload_id), b"ghi")
    assert repository.upload(upload_id).read_bytes() == b"abcdefghi"


# --- odd calls -------------------------------------------------------------------------------------------------------


def test_locks_are_the_kernels(repository: MountedRepository) -> None:
    """`flock` works on an upload, for scripts that guard with it."""
    repository.put_upload("x", b"abc")
    run("flock", "-n", repository.upload("x"), "true")


def test_fallocate_is_refused(repository: MountedRepository) -> None:
    """Nothing is reserved: the tool says so, and nothing changes."""
    repository.put_upload("x", b"abc")
    with repository.mount.tolerates("EOPNOTSUPP"):
        result = run("fallocate", "-l", "4096", repository.upload("x"), check=False)
    assert "not supported" in result.stderr
    assert repository.upload("x").read_bytes() == b"abc"


def test_syncing_directories(repository: MountedRepository) -> None:
    """`fsync` of a directory and `sync -f` succeed."""
    for path in (repository.path, repository.path / "_layers", repository.path / "_uploads"):
        with opened(path, os.O_RDONLY | os.O_DIRECTORY) as directory:
            os.fsync(directory)
    run("sync", "-f", repository.path)


def test_access_answers(repository: MountedRepository) -> None:
    """`access(2)` is implemented: a layer can be read."""
    digest = repository.storage.put_layer(repository.name, b"xyz" + os.urandom(8))
    assert os.access(repository.layer(digest), os.R_OK)
    assert os.access(repository.path / "_uploads", os.W_OK)


def test_times_are_sensible(repository: MountedRepository) -> None:
    """An upload's time is when it was last written; directories have one, too."""
    repository.put_upload("x", b"abc")
    assert abs(os.stat(repository.upload("x")).st_mtime - time.time()) < 60
    assert os.stat(repository.path).st_mtime > 0
    assert re.match(r"d", run("stat", "-c", "%A", repository.path).stdout)
