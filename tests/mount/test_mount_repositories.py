"""Repositories as directories."""

from __future__ import annotations

import errno
import os
import time
from contextlib import suppress

import pytest
from harness.commands import run, wait_until
from harness.mount import Mount
from harness.repository import MountedRepository
from harness.storage import Storage, remove_tree


def is_repository(mount: Mount, storage: Storage, name: str) -> bool:
    """Whether a registry, of whatever version, would find it. An empty one on an object store only its mount has."""
    if not storage.is_local:
        return "_layers" in os.listdir(mount.path / name)
    return any((storage.repository(name) / part).is_dir() for part in ("_layers", "_manifests", "_uploads"))


def test_mkdir_makes_a_repository(repository: MountedRepository) -> None:
    """Storage gets `_layers` and `_manifests`: each registry version looks for another one."""
    os.mkdir(repository.path / "new")
    stored = repository.storage.repository(repository.name) / "new"
    for part in ("_layers", "_manifests"):
        assert (stored / part).is_dir() == repository.storage.is_local
    assert "new" in os.listdir(repository.path)
    assert {"_layers", "_uploads"} <= set(os.listdir(repository.path / "new"))


def test_mkdir_p_makes_one_repository(mounts, storage: Storage) -> None:
    """`mkdir -p a/b` makes the repository a/b; `a` is only the prefix on the way."""
    mount = mounts(storage)
    run("mkdir", "-p", mount.path / "a/b")
    assert is_repository(mount, storage, "a/b")
    assert not is_repository(mount, storage, "a")
    wait_until(lambda: os.listdir(mount.path / "a") == ["b"], "`a` listing only `b`", seconds=3)


def test_mkdir_p_of_many_levels(mounts, storage: Storage) -> None:
    """The same for `mkdir -p a/b/c/d`."""
    mount = mounts(storage)
    run("mkdir", "-p", mount.path / "a/b/c/d")
    assert [name for name in ("a", "a/b", "a/b/c", "a/b/c/d") if is_repository(mount, storage, name)] == ["a/b/c/d"]


def test_a_prefix_becomes_a_repository_when_used(mounts, storage: Storage) -> None:
    """After `mkdir -p a/b`, an upload to `a/_uploads` still works, and makes `a` a repository."""
    mount = mounts(storage)
    run("mkdir", "-p", mount.path / "a/b")
    a = MountedRepository(mount, storage, "a")
    a.put_layer(b"abc")
    assert (storage.repository("a") / "_layers").is_dir()
    assert (storage.repository("a") / "_manifests").is_dir() == storage.is_local
    assert is_repository(mount, storage, "a/b")
    assert {"_layers", "_uploads", "b"} <= set(os.listdir(a.path))


def test_a_repository_with_content_stays_one(mounts, storage: Storage) -> None:
    """`mkdir a`, a layer in it, then `mkdir a/b`: two repositories."""
    mount = mounts(storage)
    os.mkdir(mount.path / "a")
    MountedRepository(mount, storage, "a").put_layer(b"abc")
    os.mkdir(mount.path / "a/b")
    assert is_repository(mount, storage, "a")
    assert is_repository(mount, storage, "a/b")


def test_a_new_repository_outlives_an_upload_that_is_removed(mounts, storage: Storage) -> None:
    """Clients that are killed take back what they have begun; what they have made with `mkdir` stays."""
    mount: Mount = mounts(storage.source, "--metadata-ttl", "0.1")
    repository = mount.path / "made/here"
    repository.mkdir(parents=True)
    (repository / "_uploads/x").write_bytes(b"content")
    (repository / "_uploads/x").unlink()
    time.sleep(0.2)  # until the kernel and the mount have forgotten its name
    assert "_layers" in os.listdir(repository)
    assert os.listdir(mount.path / "made") == ["here"]
    assert os.listdir(repository / "_oci")


def test_mkdir_of_what_exists(repository: MountedRepository) -> None:
    """EEXIST for a repository, a prefix, and the directories of a repository."""
    for path in (repository.path, repository.path.parent, repository.path / "_layers", repository.path / "_uploads"):
        with repository.mount.tolerates("EEXIST"), pytest.raises(FileExistsError):
            os.mkdir(path)


def test_mkdir_inside_layers_and_uploads(repository: MountedRepository) -> None:
    """There are no directories there."""
    for folder in ("_layers", "_uploads"):
        with repository.mount.refused(errno.EPERM, errno.EINVAL):
            os.mkdir(repository.path / folder / "new")


def test_rmdir_of_an_empty_repository(repository: MountedRepository) -> None:
    """`rmdir` takes it out of storage."""
    os.mkdir(repository.path / "new")
    os.rmdir(repository.path / "new")
    assert not (repository.storage.repository(repository.name) / "new").exists()
    assert "new" not in os.listdir(repository.path)
    with repository.mount.refused(errno.ENOENT):
        os.stat(repository.path / "new")


def test_rmdir_and_mkdir_again(repository: MountedRepository) -> None:
    """The name is free at once."""
    for _ in range(5):
        os.mkdir(repository.path / "new")
        assert (repository.path / "new/_layers").is_dir()
        os.rmdir(repository.path / "new")


@pytest.mark.parametrize("content", ["layer", "upload", "nested", "manifest"])
def test_rmdir_of_a_repository_with_content(repository: MountedRepository, content: str) -> None:
    """ENOTEMPTY, and the content stays."""
    name = f"{repository.name}/full"
    repository.storage.make_repository(name)
    if content == "layer":
        repository.storage.put_layer(name, b"abc")
    elif content == "upload":
        repository.storage.put_upload(name, b"abc")
    elif content == "nested":
        repository.storage.make_repository(f"{name}/nested")
    else:
        link = repository.storage.repository(name) / "_manifests/revisions/sha256" / ("0" * 64) / "link"
        link.parent.mkdir(parents=True)
        link.write_text("sha256:" + "0" * 64)
    with repository.mount.refused(errno.ENOTEMPTY):
        os.rmdir(repository.path / "full")
    assert is_repository(repository.mount, repository.storage, name)


def test_rmdir_of_the_directories_of_a_repository(repository: MountedRepository) -> None:
    """`_layers` and `_uploads` are always there."""
    for folder in ("_layers", "_uploads"):
        with repository.mount.refused(errno.EPERM, errno.ENOTEMPTY):
            os.rmdir(repository.path / folder)


def test_renaming_a_repository(repository: MountedRepository) -> None:
    """Repositories keep their names: EPERM, not EXDEV."""
    os.mkdir(repository.path / "new")
    with repository.mount.refused(errno.EPERM):
        os.rename(repository.path / "new", repository.path / "other")
    with repository.mount.refused(errno.EPERM):
        os.rename(repository.path / "_layers", repository.path / "layers")


def test_files_outside_of_layers_and_uploads(repository: MountedRepository) -> None:
    """A file anywhere else is refused."""
    for path in (repository.path / "file", repository.path.parent / "file", repository.mount.path / "file"):
        with repository.mount.refused(errno.EPERM, errno.EINVAL, errno.EACCES):
            os.open(path, os.O_WRONLY | os.O_CREAT)


def test_special_files_and_symlinks(repository: MountedRepository) -> None:
    """No FIFO, device or symlink can be made, anywhere."""
    for directory in (
        repository.path / "_uploads",
        repository.path / "_layers",
        repository.path,
        repository.mount.path,
    ):
        with repository.mount.refused(errno.EPERM, errno.EOPNOTSUPP, errno.EINVAL):
            os.mkfifo(directory / "fifo")
        with repository.mount.refused(errno.EPERM, errno.EOPNOTSUPP, errno.EINVAL):
            os.mknod(directory / "device", 0o600 | 0o020000, os.makedev(1, 3))
        with repository.mount.refused(errno.EPERM, errno.EOPNOTSUPP, errno.EINVAL):
            os.symlink("/etc/passwd", directory / "symlink")
    assert repository.uploads == []


def test_mknod_of_a_regular_file(repository: MountedRepository) -> None:
    """`mknod` of a regular file is an upload like any other, or refused; it does no harm."""
    with repository.mount.tolerates("EPERM", "EOPNOTSUPP"):
        try:
            os.mknod(repository.upload("x"), 0o644 | 0o100000)
        except OSError as exc:
            assert exc.errno in (errno.EPERM, errno.EOPNOTSUPP)
        else:
            repository.put_upload("x", b"abc")
            assert repository.upload("x").read_bytes() == b"abc"


def test_chmod_of_a_directory(repository: MountedRepository) -> None:
    """Modes of directories are the mount's."""
    for path in (repository.path, repository.path / "_layers", repository.path / "_uploads"):
        with repository.mount.tolerates("EPERM"), suppress(PermissionError):
            os.chmod(path, 0o700)
        wait_until(lambda path=path: os.stat(path).st_mode & 0o7777 == 0o755, "mode 0755", seconds=3)


def test_a_new_repository_of_a_registry_is_seen(repository: MountedRepository, payload) -> None:
    """A repository that appears in storage is listed within the TTL."""
    data = payload(100)
    assert "new" not in os.listdir(repository.path)
    digest = repository.storage.put_layer(f"{repository.name}/new", data)
    wait_until(lambda: "new" in os.listdir(repository.path), "the new repository", seconds=3)
    assert (repository.path / "new/_layers" / digest).read_bytes() == data


def test_a_repository_that_vanishes(repository: MountedRepository, payload) -> None:
    """A repository that is deleted from storage is gone within the TTL."""
    repository.storage.put_layer(f"{repository.name}/old", payload(100))
    assert "old" in os.listdir(repository.path)
    remove_tree(repository.storage.repository(f"{repository.name}/old"))
    wait_until(lambda: "old" not in os.listdir(repository.path), "the repository to be gone", seconds=3)
    wait_until(lambda: not os.path.exists(repository.path / "old"), "ENOENT", seconds=3)


def test_names_that_begin_with_underscore_or_dot(repository: MountedRepository) -> None:
    """They are never repositories: ENOENT."""
    for name in ("_nothing", ".nothing", "_Layers"):
        with repository.mount.refused(errno.ENOENT):
            os.stat(repository.path / name)


def test_a_large_tree_of_repositories(mounts, storage: Storage) -> None:
    """`find` over 2,000 repositories (200 where making them takes long) ends, and finds each."""
    count = 2000 if storage.is_local else 200
    for number in range(count):
        storage.make_repository(f"group{number % 20}/project{number}")
    mount: Mount = mounts(storage)
    found = run("find", mount.path, "-name", "_layers").stdout.splitlines()
    assert len(found) == count
