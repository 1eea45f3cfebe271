"""Finishing an upload: the one operation that must never be wrong."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from harness.commands import append, get_xattr, opened, run, shell, wait_until, write_all
from harness.repository import MountedRepository
from harness.storage import add_to, digest_of, snapshot

#: The one operation that must never be wrong is tried on an object store in every run.
pytestmark = pytest.mark.also_on("s3")

EMPTY = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
WRONG = "sha256:" + "0123456789abcdef" * 4


@pytest.fixture
def data(payload) -> bytes:
    """Some content."""
    return payload(300_007)


@pytest.mark.parametrize("folder", ["_layers", "_uploads"])
def test_mv_to_the_digest(repository: MountedRepository, data: bytes, folder: str) -> None:
    """`mv` to the digest, into `_layers` or within `_uploads`, makes the upload a layer."""
    digest = digest_of(data)
    repository.put_upload("x", data)
    run("mv", repository.upload("x"), repository.path / folder / digest)
    repository.assert_stored(data)
    assert (repository.uploads, repository.layers) == ([], [digest])
    with repository.mount.refused(errno.ENOENT):
        os.stat(repository.upload("x"))
    with repository.mount.refused(errno.ENOENT):
        os.stat(repository.upload(digest))


def test_a_commit_is_seen_at_once(repository: MountedRepository, data: bytes) -> None:
    """A layer that was ENOENT just before the commit exists just after it, also when it came through `_uploads`."""
    digest = digest_of(data)
    repository.put_upload("x", data)
    for _ in range(3):
        assert not os.path.exists(repository.layer(digest))
    os.rename(repository.upload("x"), repository.upload(digest))
    assert os.stat(repository.layer(digest)).st_size == len(data)
    assert repository.layers == [digest]


def test_a_committed_file_has_the_attributes_of_a_layer(repository: MountedRepository, data: bytes) -> None:
    """Right after `mv` the file is 0444, has two links, and cannot be written."""
    layer = repository.put_layer(data)
    seen = os.stat(layer)
    assert (seen.st_mode & 0o7777, seen.st_nlink, seen.st_size) == (0o444, 2, len(data))
    assert get_xattr(layer, "user.layerfs.digest") == digest_of(data)
    with repository.mount.refused(errno.EPERM):
        os.open(layer, os.O_WRONLY)


def test_the_inode_of_a_committed_file_is_the_blobs(repository: MountedRepository, data: bytes) -> None:
    """The same blob committed in two repositories has one inode number."""
    other = MountedRepository(repository.mount, repository.storage, f"{repository.name}/other")
    repository.storage.make_repository(other.name)
    first, second = repository.put_layer(data), other.put_layer(data)
    assert os.stat(first).st_ino == os.stat(second).st_ino


@pytest.mark.local("objects have no modes")
def test_stored_files_are_as_a_registry_creates_them(repository: MountedRepository, data: bytes) -> None:
    """Blob and link are readable by a registry under another user: 0644 in directories 0755."""
    repository.put_layer(data)
    digest = digest_of(data)
    for path in (repository.storage.blob(digest), repository.storage.link(repository.name, digest)):
        assert path.stat().st_mode & 0o7777 == 0o644
        assert path.parent.stat().st_mode & 0o7777 == 0o755


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", ["_layers", "_uploads"])
def test_a_wrong_digest(repository: MountedRepository, data: bytes, folder: str) -> None:
    """EBADMSG; upload and storage are unchanged, the reason is on the upload, and the right digest works then."""
    repository.put_upload("x", data)
    before = snapshot(repository.storage.repository(repository.name))
    with repository.mount.refused(errno.EBADMSG):
        os.rename(repository.upload("x"), repository.path / folder / WRONG)
    assert snapshot(repository.storage.repository(repository.name)) == before
    assert not repository.storage.blob(WRONG).exists()
    assert (repository.uploads, repository.layers) == (["x"], [])
    assert repository.upload("x").read_bytes() == data
    reason = get_xattr(repository.upload("x"), "user.layerfs.error")
    assert WRONG in reason
    assert digest_of(data) in reason
    repository.commit("x", digest_of(data))
    repository.assert_stored(data)


def test_mv_says_why_and_does_not_copy(repository: MountedRepository, data: bytes) -> None:
    """mv(1) fails with a message; it does not fall back to copying, which would publish wrong bytes."""
    repository.put_upload("x", data)
    with repository.mount.refuses("EBADMSG"):
        result = run("mv", repository.upload("x"), repository.layer(WRONG), check=False)
    assert result.returncode == 1
    assert "Bad message" in result.stderr
    assert (repository.uploads, repository.layers) == (["x"], [])


def test_more_is_appended_after_a_wrong_digest(repository: MountedRepository, data: bytes) -> None:
    """An upload that was refused goes on: it was only not complete yet."""
    repository.put_upload("x", data[:100_000])
    with repository.mount.refused(errno.EBADMSG):
        repository.commit("x", digest_of(data))
    append(repository.upload("x"), data[100_000:])
    repository.commit("x", digest_of(data))
    repository.assert_stored(data)


@pytest.mark.parametrize(
    "name",
    [
        "layer.tar",
        "sha256:",
        "sha256:abc",
        "SHA256:" + "0" * 64,
        "sha256:" + "A" * 64,
        "sha256:" + "g" * 64,
        "sha256:" + "0" * 63,
        "sha256:" + "0" * 65,
        "sha256:" + "0" * 64 + "\n",
        "md5:" + "0" * 32,
        "sha512:" + "0" * 64,
        "0" * 64,
    ],
)
def test_a_name_that_is_no_digest(repository: MountedRepository, data: bytes, name: str) -> None:
    """`mv` into `_layers` under such a name is EINVAL, and the upload is unchanged."""
    repository.put_upload("x", data)
    with repository.mount.refused(errno.EINVAL):
        os.rename(repository.upload("x"), repository.layer(name))
    assert repository.upload("x").read_bytes() == data
    assert repository.layers == []


@pytest.mark.parametrize("name", ["sha256:abc", "SHA256:" + "0" * 64, "md5:" + "0" * 32, "sha256:" + "0" * 65])
def test_a_malformed_digest_in_uploads_is_a_name(repository: MountedRepository, data: bytes, name: str) -> None:
    """Within `_uploads` anything that is no well-formed digest just renames the upload."""
    repository.put_upload("x", data)
    os.rename(repository.upload("x"), repository.upload(name))
    assert repository.uploads == [name]


def test_into_another_repository(repository: MountedRepository, data: bytes) -> None:
    """`mv` into another repository's `_layers` is EINVAL, never EXDEV: mv would copy."""
    other = f"{repository.name}/other"
    repository.storage.make_repository(other)
    repository.put_upload("x", data)
    with repository.mount.refused(errno.EINVAL):
        os.rename(repository.upload("x"), repository.path / "other/_layers" / digest_of(data))
    assert repository.uploads == ["x"]
    assert not repository.storage.blob(digest_of(data)).exists()


def test_mv_into_the_directory(repository: MountedRepository, data: bytes) -> None:
    """`mv x _layers/` without a name is EINVAL: the name would be `x`."""
    repository.put_upload("x", data)
    with repository.mount.refuses("EINVAL"):
        result = run("mv", repository.upload("x"), repository.path / "_layers/", check=False)
    assert result.returncode == 1
    assert repository.uploads == ["x"]


def test_linking_an_upload(repository: MountedRepository, data: bytes) -> None:
    """An upload cannot get a second name."""
    repository.put_upload("x", data)
    with repository.mount.refused(errno.EPERM, errno.EINVAL):
        os.link(repository.upload("x"), repository.upload("y"))
    with repository.mount.refused(errno.EPERM, errno.EINVAL):
        os.link(repository.upload("x"), repository.layer(digest_of(data)))
    assert (repository.uploads, repository.layers) == (["x"], [])


def test_exchange_and_no_replace(repository: MountedRepository, data: bytes) -> None:
    """`mv -n` (RENAME_NOREPLACE) commits, or says that it cannot; it never loses the upload."""
    repository.put_upload("x", data)
    with repository.mount.tolerates("EINVAL"):
        run("mv", "-n", repository.upload("x"), repository.layer(digest_of(data)), check=False)
    if repository.layers == []:
        assert repository.upload("x").read_bytes() == data
    else:
        repository.assert_stored(data)


def test_exchanging(repository: MountedRepository, data: bytes) -> None:
    """renameat2 with RENAME_EXCHANGE is refused, and both stay as they are."""
    digest = repository.storage.put_layer(repository.name, data)
    repository.put_upload("x", data)
    program = (
        "import ctypes, os, sys\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "a, b = map(os.fsencode, sys.argv[1:])\n"
        "sys.exit(ctypes.get_errno() if libc.renameat2(-100, a, -100, b, 2) else 0)\n"
    )
    with repository.mount.tolerates("EINVAL", "EPERM"):
        result = run(sys.executable, "-c", program, repository.upload("x"), repository.layer(digest), check=False)
    assert result.returncode in (errno.EINVAL, errno.EPERM)
    assert (repository.uploads, repository.layers) == (["x"], [digest])


# --- special contents ------------------------------------------------------------------------------------------------


def test_no_bytes(repository: MountedRepository) -> None:
    """An upload of nothing is finished with the digest of nothing."""
    run("touch", repository.upload("x"))
    run("mv", repository.upload("x"), repository.layer(EMPTY))
    repository.assert_stored(b"")


def test_no_bytes_under_another_digest(repository: MountedRepository) -> None:
    """Nothing is not something."""
    run("touch", repository.upload("x"))
    with repository.mount.refused(errno.EBADMSG):
        repository.commit("x", WRONG)


@pytest.mark.parametrize("algorithm", ["sha384", "sha512"])
def test_another_algorithm(repository: MountedRepository, data: bytes, algorithm: str) -> None:
    """Stored under its sha256; two links, both with the sha256 digest; both names read the same."""
    alias = digest_of(data, algorithm)
    repository.put_upload("x", data)
    run("mv", repository.upload("x"), repository.layer(alias))
    repository.assert_stored(data, alias)
    assert repository.layers == sorted([alias, digest_of(data)])
    assert os.stat(repository.layer(alias)).st_ino == os.stat(repository.layer(digest_of(data))).st_ino
    assert [path.name for path in (repository.storage.v2 / "blobs").iterdir()] == ["sha256"]


def test_a_wrong_sha512(repository: MountedRepository, data: bytes) -> None:
    """Another algorithm is verified as strictly."""
    repository.put_upload("x", data)
    with repository.mount.refused(errno.EBADMSG):
        repository.commit("x", digest_of(data + b"x", "sha512"))
    assert (repository.uploads, repository.layers) == (["x"], [])


# --- a blob that exists ----------------------------------------------------------------------------------------------


def test_a_blob_that_exists_in_the_repository(repository: MountedRepository, data: bytes) -> None:
    """Success, and the upload's copy is dropped."""
    digest = repository.storage.put_layer(repository.name, data)
    repository.put_upload("x", data)
    run("mv", "-f", repository.upload("x"), repository.layer(digest))
    repository.assert_stored(data)


def test_a_blob_that_exists_elsewhere(repository: MountedRepository, data: bytes) -> None:
    """Success: only the link is new."""
    digest = repository.storage.put_layer(f"{repository.name}/other", data)
    repository.put_layer(data)
    repository.assert_stored(data, digest)


@pytest.mark.parametrize(
    "damage",
    [lambda data: b"", lambda data: data[:1000], lambda data: data + b"x", lambda data: b"X" + data[1:]],
    ids=["emptied", "truncated", "longer", "one-byte-flipped"],
)
@pytest.mark.parametrize("linked", [True, False], ids=["linked", "unlinked"])
def test_a_damaged_blob_is_replaced(repository: MountedRepository, data: bytes, damage, linked: bool) -> None:
    """A stored blob that does not match its digest is replaced by the verified upload; registries do not do that."""
    digest = repository.storage.put_blob(damage(data), digest_of(data))
    if linked:
        repository.storage.put_link(repository.name, digest)
        os.stat(repository.layer(digest))
        repository.layer(digest).read_bytes()
    repository.put_layer(data)
    repository.mount.declare("WARNING", digest, digest[7:])
    repository.assert_stored(data)
    assert os.stat(repository.layer(digest)).st_size == len(data)


# --- handles that are open -------------------------------------------------------------------------------------------


def test_commit_with_a_writer_that_has_flushed(repository: MountedRepository, data: bytes) -> None:
    """After `fsync` an open writer does not stop the commit; its handle cannot write afterwards."""
    with repository.mount.tolerates("EBADF", "EBUSY"):
        upload = os.open(repository.upload("x"), os.O_WRONLY | os.O_CREAT)
        write_all(upload, data)
        os.fsync(upload)
        repository.commit("x", digest_of(data))
        for _ in range(3):
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.write(upload, b"more")
        _close_quietly(upload)
    repository.assert_stored(data)


def test_commit_with_a_writer_that_has_not_flushed(repository: MountedRepository, data: bytes) -> None:
    """EBUSY or success, but never other bytes than were verified, and nothing is lost."""
    with repository.mount.tolerates("EBADF", "EBUSY"):
        upload = os.open(repository.upload("x"), os.O_WRONLY | os.O_CREAT)
        write_all(upload, data)
        try:
            repository.commit("x", digest_of(data))
        except OSError as exc:
            assert exc.errno == errno.EBUSY
            os.close(upload)
            repository.commit("x", digest_of(data))
        else:
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.write(upload, b"more")
            _close_quietly(upload)
    repository.assert_stored(data)


def _close_quietly(descriptor: int) -> None:
    """Closes what the commit has made useless; an error says only that."""
    try:
        os.close(descriptor)
    except OSError as exc:
        assert exc.errno in (errno.EBADF, errno.EBUSY)


def test_truncating_through_a_handle_after_the_commit(repository: MountedRepository, data: bytes) -> None:
    """A handle from before cannot shorten the layer."""
    with repository.mount.tolerates("EBADF", "EBUSY", "EPERM"):
        upload = os.open(repository.upload("x"), os.O_RDWR | os.O_CREAT)
        write_all(upload, data)
        os.fsync(upload)
        repository.commit("x", digest_of(data))
        with pytest.raises(OSError, match=r"Bad file descriptor|not permitted"):
            os.ftruncate(upload, 0)
        _close_quietly(upload)
    repository.assert_stored(data)


def test_a_reader_keeps_reading_across_the_commit(repository: MountedRepository, data: bytes) -> None:
    """Somebody who reads the upload while it is committed reads on in the layer."""
    repository.put_upload("x", data)
    with opened(repository.upload("x"), os.O_RDONLY) as reader:
        assert os.pread(reader, 100, 0) == data[:100]
        repository.commit("x", digest_of(data))
        assert os.pread(reader, 1000, 200_000) == data[200_000:201_000]
        assert os.fstat(reader).st_size == len(data)


def test_a_mapping_cannot_change_what_is_published(repository: MountedRepository, data: bytes) -> None:
    """A process that has the upload mapped for writing cannot change a byte of the layer, before or after."""
    repository.put_upload("x", data)
    program = (
        "import mmap, os, sys\n"
        "f = open(sys.argv[1], 'r+b')\n"
        "try:\n"
        "    m = mmap.mmap(f.fileno(), 0)\n"
        "except OSError:\n"
        "    sys.exit(0)\n"
        "m[0]\n"
        "try:\n"
        "    os.rename(sys.argv[1], sys.argv[2])\n"
        "except OSError as exc:\n"
        "    print(exc)\n"
        "for place in range(0, len(m), 4096):\n"
        "    try:\n"
        "        m[place] = m[place] ^ 255\n"
        "        m.flush()\n"
        "    except OSError as exc:\n"
        "        print(exc)\n"
        "        break\n"
        "os._exit(0)\n"
    )
    with repository.mount.tolerates("EBADF", "EBUSY", "EPERM", "EIO"):
        # SIGBUS is what the kernel says to a mapping whose pages it cannot get any more
        result = run(
            sys.executable, "-c", program, repository.upload("x"), repository.layer(digest_of(data)), check=False
        )
    assert result.returncode in (0, -7), result.stderr
    if repository.layers:
        repository.assert_stored(data)


@pytest.mark.local("no object can be open for writing")
def test_another_process_writes_the_stored_upload(repository: MountedRepository, data: bytes) -> None:
    """Somebody who has the upload's data in storage open for append (a registry's PATCH) cannot damage the layer."""
    repository.put_upload("x", data)
    with (
        repository.mount.tolerates("EBUSY", "EBADMSG"),
        open(repository.upload_directory("x") / "data", "ab", buffering=0) as foreign,
    ):
        try:
            repository.commit("x", digest_of(data))
        except OSError as exc:
            assert exc.errno in (errno.EBUSY, errno.EBADMSG)
        foreign.write(b"damage")
        foreign.flush()
        if repository.layers:
            assert repository.stored(digest_of(data)) == data
    repository.mount.declare("WARNING")


def test_a_commit_sees_what_others_appended(repository: MountedRepository, data: bytes) -> None:
    """Bytes that a registry appended since our last write are part of what is verified."""
    repository.put_upload("x", data)
    add_to(repository.upload_directory("x") / "data", b"more")
    with repository.mount.refused(errno.EBADMSG):
        repository.commit("x", digest_of(data))
    repository.commit("x", digest_of(data + b"more"))
    repository.assert_stored(data + b"more")


def test_a_commit_sees_what_others_overwrote(repository: MountedRepository, data: bytes) -> None:
    """Bytes changed in storage behind our back, size and all else the same, never become a wrong layer."""
    repository.put_upload("x", data)
    stored = repository.upload_directory("x") / "data"
    changed = b"X" + data[1:]
    stored.write_bytes(changed)
    with repository.mount.tolerates("EBADMSG", "EBUSY", "EIO"):
        try:
            repository.commit("x", digest_of(data))
        except OSError as exc:
            assert exc.errno in (errno.EBADMSG, errno.EBUSY, errno.EIO)
        else:
            assert repository.stored(digest_of(data)) == data
    repository.mount.declare("WARNING")


def test_appending_to_what_others_overwrote(repository: MountedRepository, data: bytes) -> None:
    """Bytes changed behind our back, and then we append: the truth is what is stored, not what we remember."""
    repository.put_upload("x", data)
    changed = b"X" + data[1:]
    (repository.upload_directory("x") / "data").write_bytes(changed)
    append(repository.upload("x"), b"tail")
    with repository.mount.refused(errno.EBADMSG):
        repository.commit("x", digest_of(data + b"tail"))
    repository.commit("x", digest_of(changed + b"tail"))
    repository.assert_stored(changed + b"tail")


# --- creating at the digest ------------------------------------------------------------------------------------------


def test_cp_to_the_digest(repository: MountedRepository, data: bytes, tmp_path: Path) -> None:
    """`cp layer.tar _layers/sha256:…` is an upload that is committed when it is closed."""
    (tmp_path / "layer.tar").write_bytes(data)
    run("cp", tmp_path / "layer.tar", repository.layer(digest_of(data)))
    repository.assert_stored(data)
    assert repository.uploads == []


def test_cp_to_a_wrong_digest(repository: MountedRepository, data: bytes, tmp_path: Path) -> None:
    """`close` fails with EBADMSG, cp says so, and nothing appears."""
    (tmp_path / "layer.tar").write_bytes(data)
    with repository.mount.refuses("EBADMSG"):
        result = run("cp", tmp_path / "layer.tar", repository.layer(WRONG), check=False)
    assert result.returncode == 1
    assert "Bad message" in result.stderr
    assert repository.layers == []
    # The kernel tells of the last close, which cancels the upload, after `close` has returned.
    wait_until(lambda: repository.storage.uploads(repository.name) == [], "the upload to be cancelled", seconds=3)
    assert repository.uploads == []
    assert not repository.storage.blob(WRONG).exists()
    with repository.mount.refused(errno.ENOENT):
        os.stat(repository.layer(WRONG))


def test_nothing_is_seen_before_close(repository: MountedRepository, data: bytes) -> None:
    """While it is written the layer is not listed."""
    digest = digest_of(data)
    with opened(repository.layer(digest), os.O_WRONLY | os.O_CREAT) as layer:
        write_all(layer, data)
        assert repository.layers == []
        assert not repository.storage.link(repository.name, digest).exists()
    repository.assert_stored(data)


def test_the_shell_creates_at_the_digest(repository: MountedRepository, data: bytes, tmp_path: Path) -> None:
    """`cat f > _layers/sha256:…`, where the kernel flushes before the first byte."""
    (tmp_path / "f").write_bytes(data)
    shell('cat "$1" > "$2"', tmp_path / "f", repository.layer(digest_of(data)))
    repository.assert_stored(data)


def test_creating_the_empty_layer(repository: MountedRepository) -> None:
    """A file created at the digest of nothing and closed is the empty layer."""
    run("cp", "/dev/null", repository.layer(EMPTY))
    repository.assert_stored(b"")


def test_creating_under_a_name_that_is_no_digest(repository: MountedRepository) -> None:
    """EINVAL in `_layers`; and a well-formed digest in `_uploads` is EINVAL, too: it could never be finished."""
    for path in (repository.layer("layer.tar"), repository.layer("sha256:abc"), repository.upload(WRONG)):
        with repository.mount.refused(errno.EINVAL):
            os.open(path, os.O_WRONLY | os.O_CREAT)
    assert (repository.layers, repository.uploads) == ([], [])
    assert repository.storage.uploads(repository.name) == []


def test_retry_after_a_wrong_close(repository: MountedRepository, data: bytes) -> None:
    """A truncated first attempt leaves the name free for the right one."""
    with (
        repository.mount.refused(errno.EBADMSG),
        opened(repository.layer(digest_of(data)), os.O_WRONLY | os.O_CREAT) as f,
    ):
        write_all(f, data[:1000])
    with opened(repository.layer(digest_of(data)), os.O_WRONLY | os.O_CREAT) as f:
        write_all(f, data)
    repository.assert_stored(data)


def test_a_writer_that_dies_leaves_no_layer(repository: MountedRepository, data: bytes) -> None:
    """A process killed in the middle of creating at the digest publishes nothing."""
    program = (
        "import os, signal, sys\n"
        "f = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)\n"
        "os.write(f, b'half')\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    with repository.mount.refuses("EBADMSG"):
        subprocess.run([sys.executable, "-c", program, repository.layer(digest_of(data))], check=False, timeout=30)
    assert repository.layers == []
