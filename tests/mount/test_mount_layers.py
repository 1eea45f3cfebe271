"""What a layer is to a program: a file that can be read in every way and changed in none."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from harness.commands import get_xattr, opened, run, wait_until
from harness.repository import MountedRepository
from harness.storage import Storage, cut, digest_of


def test_reading_at_every_kind_of_place(repository: MountedRepository, payload) -> None:
    """`lseek` and `pread` find the right bytes at the start, across pages, and up to the last byte."""
    data = payload(1_000_003)
    digest = repository.storage.put_layer(repository.name, data)
    with opened(repository.layer(digest), os.O_RDONLY) as file:
        for where in (0, 1, 4095, 4096, 131071, 500_000, len(data) - 1):
            os.lseek(file, where, os.SEEK_SET)
            assert os.read(file, 10_000) == data[where : where + 10_000]
        assert os.lseek(file, -5, os.SEEK_END) == len(data) - 5
        assert os.read(file, 100) == data[-5:]


def test_reading_beyond_the_end(repository: MountedRepository, payload) -> None:
    """Past the end there are 0 bytes, and no error."""
    digest = repository.storage.put_layer(repository.name, payload(5000))
    with opened(repository.layer(digest), os.O_RDONLY) as file:
        assert os.pread(file, 10, 5000) == b""
        assert os.pread(file, 10, 1 << 40) == b""
        assert len(os.pread(file, 100, 4990)) == 10


def test_mmap(repository: MountedRepository, payload) -> None:
    """A mapping shows the same bytes; in another process, because a page fault cannot be interrupted."""
    data = payload(300_001)
    digest = repository.storage.put_layer(repository.name, data)
    program = (
        "import hashlib, mmap, sys\n"
        "with open(sys.argv[1], 'rb') as f, mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ) as m:\n"
        "    print('sha256:' + hashlib.sha256(m).hexdigest(), m[299_999:].hex())"
    )
    result = run(sys.executable, "-c", program, repository.layer(digest))
    assert result.stdout.split() == [digest, data[299_999:].hex()]


def test_a_layer_of_no_bytes(repository: MountedRepository) -> None:
    """The empty blob is a layer of size 0 that reads as nothing."""
    digest = repository.storage.put_layer(repository.name, b"")
    assert os.stat(repository.layer(digest)).st_size == 0
    assert repository.layer(digest).read_bytes() == b""


@pytest.mark.parametrize(
    "flags",
    [os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_TRUNC, os.O_WRONLY | os.O_APPEND, os.O_WRONLY | os.O_CREAT],
    ids=["write", "read-write", "truncate", "append", "create"],
)
def test_opening_for_writing(repository: MountedRepository, payload, flags: int) -> None:
    """EPERM, for root too, and the bytes stay."""
    data = payload(1000)
    digest = repository.storage.put_layer(repository.name, data)
    with repository.mount.refused(errno.EPERM):
        os.open(repository.layer(digest), flags)
    assert repository.stored(digest) == data


@pytest.mark.parametrize("what", ["blob", "link"])
def test_storing_again_what_was_removed_elsewhere(mounts, storage: Storage, what: str) -> None:
    """`cp` to the digest of a layer that somebody else has just removed stores it, however long names are believed."""
    repository = MountedRepository(mounts(storage, "--metadata-ttl", "60"), storage, "r")
    storage.put_layer("r", b"without which there is no repository, where storage has no directories")
    digest = storage.put_layer("r", b"removed")
    place = repository.layer(digest)
    assert place.read_bytes() == b"removed"
    (storage.blob(digest) if what == "blob" else storage.link("r", digest)).unlink()
    place.write_bytes(b"removed")
    assert repository.stored(digest) == b"removed"
    assert place.read_bytes() == b"removed"
    with repository.mount.refused(errno.EPERM):
        os.open(place, os.O_WRONLY)


@pytest.mark.parametrize(
    "change",
    [
        lambda path: os.chmod(path, 0o600),
        lambda path: os.chown(path, 1000, 1000),
        lambda path: os.truncate(path, 10),
        lambda path: os.truncate(path, 10_000),
        os.unlink,
        lambda path: os.rename(path, path.with_name("sha256:" + "0" * 64)),
        lambda path: os.rename(path, path.parent.parent / "_uploads" / "back"),
        lambda path: os.rename(path, path.parent.parent / "_uploads" / path.name),
    ],
    ids=[
        "chmod",
        "chown",
        "shrink",
        "grow",
        "unlink",
        "rename",
        "move-to-uploads",
        "move-to-uploads-as-digest",
    ],
)
def test_changing_a_layer(repository: MountedRepository, payload, change) -> None:
    """EPERM, and everything is as before."""
    data = payload(1000)
    digest = repository.storage.put_layer(repository.name, data)
    before = os.stat(repository.layer(digest))
    with repository.mount.refused(errno.EPERM):
        change(repository.layer(digest))
    after = os.stat(repository.layer(digest))
    assert (before.st_mode, before.st_uid, before.st_size) == (after.st_mode, after.st_uid, after.st_size)
    assert repository.layer(digest).read_bytes() == data
    assert repository.stored(digest) == data


@pytest.mark.parametrize("name", ["user.layerfs.digest", "user.mine"])
def test_attributes_cannot_be_set(repository: MountedRepository, payload, name: str) -> None:
    """Extended attributes are read-only."""
    digest = repository.storage.put_layer(repository.name, payload(10))
    with repository.mount.refused(errno.EPERM, errno.EOPNOTSUPP):
        os.setxattr(repository.layer(digest), name, b"x")
    assert get_xattr(repository.layer(digest), "user.layerfs.digest") == digest


def test_touching_a_layer(repository: MountedRepository, payload) -> None:
    """`utimens` is accepted and ignored."""
    digest = repository.storage.put_layer(repository.name, payload(10))
    before = os.stat(repository.layer(digest)).st_mtime
    os.utime(repository.layer(digest), (1, 1))
    wait_until(lambda: os.stat(repository.layer(digest)).st_mtime == before, "the old time again")


def test_reading_what_is_no_longer_all_there(repository: MountedRepository, payload) -> None:
    """Fewer bytes in storage than `st_size` is EIO, never a short file."""
    digest = repository.storage.put_layer(repository.name, payload(400_000))
    with opened(repository.layer(digest), os.O_RDONLY) as file:
        assert os.fstat(file).st_size == 400_000
        cut(repository.storage.blob(digest), 200_000)
        with repository.mount.refused(errno.EIO):
            os.pread(file, 100_000, 150_000)
            os.pread(file, 100_000, 250_000)
    repository.mount.declare("WARNING", digest)


def test_one_inode_everywhere(repository: MountedRepository, payload) -> None:
    """The same blob has one inode number in every repository, two different blobs have two."""
    data = payload(100)
    digest = repository.storage.put_layer(repository.name, data)
    other = repository.storage.put_layer(repository.name, payload(100))
    nested = repository.storage.put_layer(f"{repository.name}/nested", data)
    first = os.stat(repository.layer(digest)).st_ino
    assert first == os.stat(repository.path / "nested/_layers" / nested).st_ino
    assert first != os.stat(repository.layer(other)).st_ino


def test_du_counts_a_shared_blob_once(repository: MountedRepository, payload) -> None:
    """`du` of two repositories with one 8 MB blob says 8 MB; with `-l` four times that: each has it in two folders."""
    data = payload(8_000_000)
    for name in ("one", "two"):
        repository.storage.put_layer(f"{repository.name}/{name}", data)
    for options, size in ((["-s"], 8_000_000), (["-s", "-l"], 32_000_000), (["-s", "--apparent-size"], 8_000_000)):
        used = int(run("du", *options, "-B1", repository.path).stdout.split()[0])
        assert size <= used <= size + 200_000


def test_find_by_links(repository: MountedRepository, payload) -> None:
    """`st_nlink` is 2, so that tools look for the other name."""
    digest = repository.storage.put_layer(repository.name, payload(100))
    assert os.stat(repository.layer(digest)).st_nlink == 2


def test_link_into_another_repository(repository: MountedRepository, payload) -> None:
    """`ln a/_layers/D b/_layers/D` writes a link in storage; no bytes move."""
    data = payload(50_000)
    digest = repository.storage.put_layer(repository.name, data)
    other = f"{repository.name}/other"
    repository.storage.make_repository(other)
    target = repository.path / "other/_layers" / digest
    blob = repository.storage.blob(digest).stat()
    run("ln", repository.layer(digest), target)
    assert repository.storage.link(other, digest).read_bytes() == digest.encode()
    assert target.read_bytes() == data
    now = repository.storage.blob(digest).stat()
    assert now.st_mtime == blob.st_mtime
    assert not repository.storage.is_local or now.st_ino == blob.st_ino


def test_link_under_another_name(repository: MountedRepository, payload) -> None:
    """A link must have the digest as its name: EINVAL, for another digest and for any other name."""
    digest = repository.storage.put_layer(repository.name, payload(10))
    other = f"{repository.name}/other"
    repository.storage.make_repository(other)
    layers = repository.path / "other/_layers"
    for name in ("sha256:" + "1" * 64, "layer.tar"):
        with repository.mount.refused(errno.EINVAL):
            os.link(repository.layer(digest), layers / name)
    assert os.listdir(layers) == []


def test_link_that_exists(repository: MountedRepository, payload) -> None:
    """A second link in the same place is EEXIST, as everywhere."""
    digest = repository.storage.put_layer(repository.name, payload(10))
    other = f"{repository.name}/other"
    repository.storage.put_link(other, digest)
    with repository.mount.tolerates("EEXIST"), pytest.raises(FileExistsError):
        os.link(repository.layer(digest), repository.path / "other/_layers" / digest)


def test_link_of_a_sha512_alias(repository: MountedRepository, payload) -> None:
    """Linked by its alias, the blob has both links, and both hold its sha256: one with a sha512 in it would dangle."""
    data = payload(100)
    canonical, alias = digest_of(data), digest_of(data, "sha512")
    repository.storage.put_layer(repository.name, data)
    repository.storage.put_link(repository.name, alias, canonical)
    other = f"{repository.name}/other"
    repository.storage.make_repository(other)
    os.link(repository.layer(alias), repository.path / "other/_layers" / alias)
    assert repository.storage.link(other, alias).read_text() == canonical
    assert repository.storage.link(other, canonical).read_text() == canonical
    assert (repository.path / "other/_layers" / alias).read_bytes() == data


def test_a_link_to_other_content(repository: MountedRepository, payload) -> None:
    """A link whose content is another digest than its place says is EIO, and not listed."""
    digest = repository.storage.put_layer(repository.name, payload(100))
    false = digest_of(payload(100))
    repository.storage.put_link(repository.name, false, digest)
    with repository.mount.refused(errno.EIO):
        os.stat(repository.layer(false))
    with repository.mount.tolerates("EIO"):
        assert repository.layers == [digest]
    repository.mount.declare("WARNING", false)


def test_xattrs_of_a_layer(repository: MountedRepository, payload) -> None:
    """A layer says its digest and its repository."""
    digest = repository.storage.put_layer(repository.name, payload(10))
    layer = repository.layer(digest)
    assert get_xattr(layer, "user.layerfs.digest") == digest
    assert get_xattr(layer, "user.layerfs.repository") == repository.name
    assert {"user.layerfs.digest", "user.layerfs.repository"} <= set(os.listxattr(layer))


def test_cached_pages_survive_reopening(repository: MountedRepository, payload) -> None:
    """What was read once is read again right, by many openers at the same time."""
    data = payload(3_000_000)
    digest = repository.storage.put_layer(repository.name, data)
    seen: list[str] = []

    def read() -> None:
        seen.extend(digest_of(repository.layer(digest).read_bytes()) for _ in range(5))

    threads = [threading.Thread(target=read) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [digest] * 30


def test_fio_verifies_random_reads(repository: MountedRepository, tmp_path: Path) -> None:
    """What fio laid out with checksums is verified by random reads through the mount, by `read` and by `mmap`."""
    job = [
        "fio",
        "--name=layer",
        "--size=16m",
        "--bs=32k",
        "--verify=sha256",
        "--fallocate=none",
        "--verify_state_save=0",
    ]
    laid_out = tmp_path / "laid-out"
    run(*job, f"--filename={laid_out}", "--rw=write", "--do_verify=0")
    layer = repository.put_layer(laid_out.read_bytes())
    for engine in ("psync", "mmap"):
        escaped = str(layer).replace(":", r"\:")
        run(*job, f"--filename={escaped}", "--rw=randread", "--verify_only=1", "--readonly", f"--ioengine={engine}")


def test_a_layer_that_is_deleted_while_open(repository: MountedRepository, payload) -> None:
    """When somebody removes the link, an open handle reads on to the end."""
    data = payload(2_000_000)
    digest = repository.storage.put_layer(repository.name, data)
    with opened(repository.layer(digest), os.O_RDONLY) as file:
        assert os.pread(file, 10, 0) == data[:10]
        repository.storage.link(repository.name, digest).unlink()
        assert os.pread(file, 100_000, 1_500_000) == data[1_500_000:1_600_000]


def test_names_that_are_no_layers(repository: MountedRepository) -> None:
    """Looking up anything but a digest in `_layers` is ENOENT."""
    for name in ("x", "sha256", "sha256:", "sha256:abc", "SHA256:" + "0" * 64, "sha256:" + "0" * 64, "md5:" + "0" * 32):
        with repository.mount.refused(errno.ENOENT):
            os.stat(repository.layer(name))


def test_direct_reads(repository: MountedRepository, payload, tmp_path: Path) -> None:
    """`dd iflag=direct`, which goes around the page cache, gives the same bytes."""
    data = payload(1_048_576 + 4096)
    digest = repository.storage.put_layer(repository.name, data)
    copy = tmp_path / "copy"
    subprocess.run(
        ["dd", f"if={repository.layer(digest)}", f"of={copy}", "bs=64k", "iflag=direct"],
        check=True,
        capture_output=True,
    )
    assert copy.read_bytes() == data


# --- with --allow-delete -----------------------------------------------------------------------------------------


@pytest.fixture
def deletable(mounts, storage) -> MountedRepository:
    """A repository on a mount that allows deleting."""
    storage.make_repository("here/there")
    return MountedRepository(mounts(storage, "--allow-delete"), storage, "here/there")


def test_deleting_takes_the_link_only(deletable: MountedRepository, payload) -> None:
    """With `--allow-delete`, `rm` removes this repository's link; the bytes and other repositories stay."""
    data = payload(1000)
    digest = deletable.storage.put_layer(deletable.name, data)
    deletable.storage.put_link("other", digest)
    run("rm", "-f", deletable.layer(digest))
    assert not deletable.storage.link(deletable.name, digest).exists()
    assert deletable.stored(digest) == data
    assert deletable.layers == []
    assert (deletable.mount.path / "other/_layers" / digest).read_bytes() == data
    with deletable.mount.refused(errno.ENOENT):
        os.stat(deletable.layer(digest))


def test_a_deleted_layer_comes_back(deletable: MountedRepository, payload) -> None:
    """After `rm` the same blob can be uploaded again."""
    data = payload(1000)
    layer = deletable.put_layer(data)
    os.unlink(layer)
    deletable.put_layer(data, "again")
    deletable.assert_stored(data)


def test_deleting_one_of_two_names(deletable: MountedRepository, payload) -> None:
    """Removing the sha512 alias leaves the layer's sha256 name."""
    data = payload(100)
    canonical, alias = digest_of(data), digest_of(data, "sha512")
    deletable.storage.put_layer(deletable.name, data)
    deletable.storage.put_link(deletable.name, alias, canonical)
    os.unlink(deletable.layer(alias))
    assert deletable.layers == [canonical]


def test_repositories_are_not_deleted_with_their_layers(deletable: MountedRepository, payload) -> None:
    """`rmdir` of `_layers` is refused, also where deleting is allowed."""
    deletable.storage.put_layer(deletable.name, payload(10))
    with deletable.mount.refused(errno.EPERM, errno.ENOTEMPTY):
        os.rmdir(deletable.path / "_layers")
