"""Uploads: files that grow, in every way that tools have of writing them."""

from __future__ import annotations

import errno
import os
import re
import stat
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from harness.commands import append, get_xattr, opened, run, shell, wait_until, write_all
from harness.repository import MountedRepository
from harness.storage import STARTED_AT, digest_of, holds, remove_tree


@pytest.fixture
def file(tmp_path: Path, payload) -> Path:
    """A local file of an odd size."""
    path = tmp_path / "layer.tar.gz"
    path.write_bytes(payload(1_234_567))
    return path


@contextmanager
def in_the_middle(repository: MountedRepository) -> Iterator[None]:
    """The body changes bytes of upload `x` that are there. On object stores it is told EINVAL, and nothing changes."""
    if repository.storage.is_local:
        yield
        return
    before = repository.upload("x").read_bytes()
    with repository.mount.refused(errno.EINVAL):
        yield
    assert repository.upload("x").read_bytes() == before


# --- beginning one ---------------------------------------------------------------------------------------------------


def test_creating_a_file_begins_an_upload(repository: MountedRepository) -> None:
    """The storage gets `startedat` and `data` in the registry's layout, under a UUID."""
    run("touch", repository.upload("x"))
    directory = repository.upload_directory("x")
    assert str(uuid.UUID(directory.name)) == directory.name
    started_at = (directory / "startedat").read_text()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", started_at)
    assert (directory / "data").read_bytes() == b""
    assert get_xattr(repository.upload("x"), "user.layerfs.upload.startedat") == started_at


def test_attributes_of_an_upload(repository: MountedRepository) -> None:
    """A regular file 0644 of one link whose size is what was received."""
    upload = repository.put_upload("x", b"12345")
    seen = os.stat(upload)
    assert stat.S_ISREG(seen.st_mode)
    assert (stat.S_IMODE(seen.st_mode), seen.st_nlink, seen.st_size) == (0o644, 1, 5)
    # `cp` and others write so many bytes at a time.
    assert seen.st_blksize == 1 << 20
    assert repository.uploads == ["x"]


def test_the_name_is_kept_in_storage(mounts, storage) -> None:
    """Another mount of the same storage sees the upload under the same name."""
    storage.make_repository("r")
    first = MountedRepository(mounts(storage), storage, "r")
    first.put_upload("my layer.tar.gz", b"abc")
    second = MountedRepository(mounts(storage), storage, "r")
    assert second.uploads == ["my layer.tar.gz"]
    assert second.upload("my layer.tar.gz").read_bytes() == b"abc"


def test_a_uuid_as_name_is_the_upload_id(repository: MountedRepository) -> None:
    """A file created under a UUID uses it as its id, so a registry's client can be told it beforehand."""
    name = str(uuid.uuid4())
    repository.put_upload(name, b"abc")
    assert repository.upload_directory(name).name == name
    assert holds(repository.storage.upload(repository.name, name) / "data", b"abc")


def test_an_upload_of_a_registry_shows_under_its_uuid(repository: MountedRepository) -> None:
    """What a registry began has no name but its id."""
    upload_id = repository.storage.put_upload(repository.name, b"abc")
    assert repository.uploads == [upload_id]
    assert repository.upload(upload_id).read_bytes() == b"abc"
    assert get_xattr(repository.upload(upload_id), "user.layerfs.upload.startedat") == STARTED_AT


# --- tools -----------------------------------------------------------------------------------------------------------


SCRIPTS = [
    'cp "$1" "$2"',
    'cp -a "$1" "$2"',
    'cat "$1" > "$2"',
    'tee "$2" < "$1" > /dev/null',
    'dd if="$1" of="$2" bs=1M status=none',
    'dd if="$1" of="$2" bs=7001 status=none',
    'dd if="$1" of="$2" bs=64k conv=fsync status=none',
    'dd if="$1" of="$2" bs=64k oflag=append conv=notrunc status=none',
    'dd if="$1" of="$2" bs=4096 oflag=direct status=none',
    'dd if="$1" of="$2" bs=100k oflag=sync status=none',
    'cp --sparse=always "$1" "$2"',
    'cp --no-preserve=all --remove-destination "$1" "$2"',
    'curl -sf -o "$2" "file://$1"',
    'rsync "$1" "$2"',
    'rsync -a "$1" "$2"',
    'rsync --inplace "$1" "$2"',
    'rsync --append "$1" "$2"',
    'rsync --preallocate --inplace "$1" "$2"',
    'install -m 600 "$1" "$2"',
    'head -c 400000 "$1" > "$2"; tail -c +400001 "$1" >> "$2"',
    'head -c 400000 "$1" > "$2"; tail -c +400001 "$1" | tee -a "$2" > /dev/null',
    'head -c 400000 "$1" > "$2"; curl -sf -C - -o "$2" "file://$1"',
    'head -c 400000 "$1" > "$2"; rsync --append "$1" "$2"',
    'head -c 400000 "$1" > "$2"; rsync --append-verify "$1" "$2"',
    'head -c 400000 "$1" > "$2"; rsync "$1" "$2"',
    'head -c 400000 "$1" > "$2"; dd if="$1" of="$2" bs=1000 skip=400 seek=400 conv=notrunc status=none',
    '{ head -c 1000; head -c 1; cat; } < "$1" > "$2"',
]
#: They begin with the first byte again.
REWRITING = [
    'head -c 400000 "$1" > "$2"; rsync --inplace "$1" "$2"',
    'head -c 999 "$1" > "$2"; cp "$1" "$2"',
]


@pytest.mark.also_on("s3")
@pytest.mark.parametrize("script", SCRIPTS)
def test_tools_write_uploads(repository: MountedRepository, file: Path, script: str) -> None:
    """Each tool ends with success, the upload has the file's bytes, and it commits under their digest."""
    upload = repository.upload("x")
    shell(script, file, upload)
    data = file.read_bytes()
    assert os.stat(upload).st_size == len(data)
    assert upload.read_bytes() == data
    assert repository.uploads == ["x"]
    repository.commit("x", digest_of(data))
    repository.assert_stored(data)


@pytest.mark.also_on("s3")
@pytest.mark.parametrize("script", REWRITING)
def test_tools_that_write_again(repository: MountedRepository, file: Path, script: str) -> None:
    """They succeed where an upload can be changed anywhere; elsewhere they fail, and nothing is changed."""
    upload, data = repository.upload("x"), file.read_bytes()
    if repository.storage.is_local:
        shell(script, file, upload)
        assert upload.read_bytes() == data
    else:
        with repository.mount.refuses("EINVAL"):
            result = shell(script, file, upload, check=False)
        assert result.returncode != 0
        assert "Invalid argument" in result.stderr
        size = upload.stat().st_size
        assert 0 < size < len(data)
        assert upload.read_bytes() == data[:size]
        append(upload, data[size:])
    repository.commit("x", digest_of(data))
    repository.assert_stored(data)


@pytest.mark.also_on("s3")
def test_a_sparse_copy(repository: MountedRepository, tmp_path: Path) -> None:
    """`cp --sparse=always` seeks over zeros, at the end too: the upload has them all the same."""
    data = bytes(300_000) + b"middle" + bytes(500_000)
    (tmp_path / "sparse").write_bytes(data)
    run("cp", "--sparse=always", tmp_path / "sparse", repository.upload("x"))
    repository.commit("x", digest_of(data))
    repository.assert_stored(data)


def test_tar_writes_an_upload(repository: MountedRepository, file: Path) -> None:
    """`tar czf` makes a layer in place."""
    run("tar", "-C", file.parent, "-czf", repository.upload("x.tgz"), file.name)
    data = repository.upload("x.tgz").read_bytes()
    repository.commit("x.tgz", digest_of(data))
    run("tar", "tzf", repository.layer(digest_of(data)))


def test_mv_from_another_file_system(repository: MountedRepository, file: Path) -> None:
    """`mv` into `_uploads` copies and then removes the source."""
    data = file.read_bytes()
    run("mv", file, repository.upload("x"))
    assert not file.exists()
    assert repository.upload("x").read_bytes() == data


def test_fio_writes_and_verifies(repository: MountedRepository) -> None:
    """fio's checksums of what it wrote are right when it reads the upload back."""
    run(
        "fio",
        "--name=upload",
        f"--filename={repository.upload('x')}",
        "--rw=write",
        "--bs=48k",
        "--size=12m",
        "--verify=crc32c",
        "--do_verify=1",
        "--fallocate=none",
        "--end_fsync=1",
        "--verify_state_save=0",
    )
    assert os.stat(repository.upload("x")).st_size == 12 * 1024 * 1024


def test_one_byte_at_a_time(repository: MountedRepository, payload) -> None:
    """The smallest writes add up."""
    data = payload(2000)
    with opened(repository.upload("x"), os.O_WRONLY | os.O_CREAT) as upload:
        for number in range(len(data)):
            write_all(upload, data[number : number + 1])
    assert repository.upload("x").read_bytes() == data


# --- offsets ---------------------------------------------------------------------------------------------------------


def test_writing_past_the_end(repository: MountedRepository) -> None:
    """A hole is zeros, as everywhere in Unix."""
    with opened(repository.upload("x"), os.O_WRONLY | os.O_CREAT) as upload:
        os.pwrite(upload, b"abc", 0)
        os.pwrite(upload, b"xyz", 100_000)
    data = b"abc" + bytes(99_997) + b"xyz"
    assert repository.upload("x").read_bytes() == data
    repository.commit("x", digest_of(data))
    repository.assert_stored(data)


def test_overwriting(repository: MountedRepository, payload) -> None:
    """Writing at an earlier offset changes those bytes, and the commit knows."""
    data = payload(200_000)
    repository.put_upload("x", data)
    with opened(repository.upload("x"), os.O_WRONLY) as upload, in_the_middle(repository):
        os.pwrite(upload, b"changed", 70_000)
    if repository.storage.is_local:
        data = data[:70_000] + b"changed" + data[70_007:]
    assert repository.upload("x").read_bytes() == data
    repository.commit("x", digest_of(data))
    repository.assert_stored(data)


def test_overwriting_and_appending_with_one_handle(repository: MountedRepository, payload) -> None:
    """Back, and forth again: what is committed is what is there."""
    data = payload(150_000)
    with opened(repository.upload("x"), os.O_RDWR | os.O_CREAT) as upload:
        write_all(upload, data)
        with in_the_middle(repository):
            os.pwrite(upload, b"early", 1000)
        if repository.storage.is_local:
            data = data[:1000] + b"early" + data[1005:]
        os.lseek(upload, 0, os.SEEK_END)
        write_all(upload, b"the end")
        assert os.pread(upload, 5, 1000) == data[1000:1005]
    data += b"the end"
    repository.commit("x", digest_of(data))
    repository.assert_stored(data)


@pytest.mark.also_on("s3")
@pytest.mark.parametrize("size", [0, 1, 65_000, 100_000, 100_001, 250_000])
def test_truncating(repository: MountedRepository, payload, size: int) -> None:
    """`truncate` cuts or fills with zeros, and what is written afterwards comes after that."""
    data = payload(100_000)
    repository.put_upload("x", data)
    if size >= len(data) or repository.storage.is_local:
        run("truncate", "-s", size, repository.upload("x"))
        expected = data[:size].ljust(size, b"\0") + b"tail"
    else:
        with repository.mount.refuses("EINVAL"):
            result = run("truncate", "-s", size, repository.upload("x"), check=False)
        assert "Invalid argument" in result.stderr
        expected = data + b"tail"
    assert os.stat(repository.upload("x")).st_size == len(expected) - len(b"tail")
    append(repository.upload("x"), b"tail")
    assert repository.upload("x").read_bytes() == expected
    repository.commit("x", digest_of(expected))
    repository.assert_stored(expected)


def test_truncating_an_open_upload(repository: MountedRepository) -> None:
    """`ftruncate` of the handle that writes."""
    with opened(repository.upload("x"), os.O_RDWR | os.O_CREAT) as upload:
        write_all(upload, b"0123456789")
        with in_the_middle(repository):
            os.ftruncate(upload, 4)
        size = 4 if repository.storage.is_local else 10
        assert os.fstat(upload).st_size == size
        os.pwrite(upload, b"ab", size)
    assert repository.upload("x").read_bytes() == b"0123456789"[:size] + b"ab"


def test_opening_with_truncation_starts_anew(repository: MountedRepository) -> None:
    """`>` on an existing upload empties it; its id stays."""
    repository.put_upload("x", b"old content")
    before = repository.upload_directory("x")
    with in_the_middle(repository), open(repository.upload("x"), "wb") as file:
        file.write(b"new")
    expected = b"new" if repository.storage.is_local else b"old content"
    assert repository.upload("x").read_bytes() == expected
    assert repository.upload_directory("x") == before


def test_truncated_to_nothing_by_the_shell(repository: MountedRepository) -> None:
    """`: > x` leaves an upload of size 0; where uploads cannot be cut the shell says so, and it stays as it is."""
    repository.put_upload("x", b"old content")
    with repository.mount.tolerates() if repository.storage.is_local else repository.mount.refuses("EINVAL"):
        result = shell(': > "$1"', repository.upload("x"), check=False)
    assert (result.returncode == 0) == repository.storage.is_local
    assert os.stat(repository.upload("x")).st_size == (0 if repository.storage.is_local else len(b"old content"))


def test_reading_while_writing(repository: MountedRepository, payload) -> None:
    """A reader sees at once what was written, through another handle too, and size and bytes agree."""
    data = payload(300_000)
    with opened(repository.upload("x"), os.O_WRONLY | os.O_CREAT) as writer:
        for start in range(0, len(data), 50_000):
            write_all(writer, data[start : start + 50_000])
            assert os.fstat(writer).st_size == start + 50_000
            with opened(repository.upload("x"), os.O_RDONLY) as reader:
                assert os.pread(reader, 1000, start) == data[start : start + 1000]
                assert os.pread(reader, 10, start + 50_000) == b""


def test_tail_follows_an_upload(repository: MountedRepository) -> None:
    """Reads at the end see what came since the file was opened."""
    repository.put_upload("x", b"one")
    with opened(repository.upload("x"), os.O_RDONLY) as reader:
        assert os.read(reader, 100) == b"one"
        append(repository.upload("x"), b"two")
        wait_until(lambda: os.pread(reader, 100, 3) == b"two", "the appended bytes", seconds=3)


def test_fsync(repository: MountedRepository, payload) -> None:
    """After `fsync` the bytes are in storage, while the file is still open."""
    data = payload(150_000)
    with opened(repository.upload("x"), os.O_WRONLY | os.O_CREAT) as upload:
        write_all(upload, data)
        os.fsync(upload)
        assert holds(repository.upload_directory("x") / "data", data)


def test_closing_makes_the_storage_complete(repository: MountedRepository, payload) -> None:
    """After `close` the storage has all bytes."""
    data = payload(150_000)
    repository.put_upload("x", data)
    assert holds(repository.upload_directory("x") / "data", data)


# --- metadata that does not matter -----------------------------------------------------------------------------------


def test_metadata_of_uploads_is_accepted_and_ignored(repository: MountedRepository) -> None:
    """chmod, chown and utimens succeed (`cp -a` needs them), and change nothing."""
    upload = repository.put_upload("x", b"abc")
    os.chmod(upload, 0o4700)
    os.chown(upload, 1234, 1234)
    os.utime(upload, (1, 1))
    wait_until(lambda: stat.S_IMODE(os.stat(upload).st_mode) == 0o644, "the old mode again")
    assert os.stat(upload).st_uid != 1234
    if repository.storage.is_local:
        stored = os.stat(repository.upload_directory("x") / "data")
        assert stat.S_IMODE(stored.st_mode) & 0o6111 == 0


# --- two writers -----------------------------------------------------------------------------------------------------


def test_a_second_writer_is_busy(repository: MountedRepository) -> None:
    """While one handle is open for writing, the next open for writing is EBUSY; reading is not."""
    with opened(repository.upload("x"), os.O_WRONLY | os.O_CREAT) as first:
        write_all(first, b"one")
        for flags in (os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_APPEND, os.O_WRONLY | os.O_TRUNC):
            with repository.mount.refused(errno.EBUSY):
                os.open(repository.upload("x"), flags)
        assert repository.upload("x").read_bytes() == b"one"
    append(repository.upload("x"), b"two")
    assert repository.upload("x").read_bytes() == b"onetwo"


def test_a_second_writer_in_the_shell(repository: MountedRepository) -> None:
    """`exec 3>x; echo a >&3; echo b >> x`: the second echo fails, the first line stays."""
    with repository.mount.refuses("EBUSY"):
        result = shell('exec 3> "$1"; echo a >&3; echo b >> "$1"', repository.upload("x"), check=False)
    assert result.returncode != 0
    assert "busy" in result.stderr
    assert repository.upload("x").read_bytes() == b"a\n"


def test_a_writer_that_gave_up_its_only_handle(repository: MountedRepository) -> None:
    """`exec 3>x; echo a >&3; exec 3>&-; echo b >> x` works: after close the next may write."""
    shell('exec 3> "$1"; echo a >&3; exec 3>&-; echo b >> "$1"', repository.upload("x"))
    assert repository.upload("x").read_bytes() == b"a\nb\n"


def test_a_handle_that_is_let_go_a_little_later(repository: MountedRepository) -> None:
    """The kernel gives a handle back after `close` (here 0.1 s later, for a child had it too): who comes next waits."""
    script = 'rm -f "$1"; exec 3> "$1"; echo a >&3; sleep 0.1 & exec 3>&-; echo b >> "$1"; wait'
    for _ in range(5):
        shell(script, repository.upload("x"))
        assert repository.upload("x").read_bytes() == b"a\nb\n"


def test_inherited_handles_are_one_writer(repository: MountedRepository) -> None:
    """A subshell whose output goes to an upload: many commands, one handle, nothing lost."""
    shell('( echo a; echo b; /bin/echo c; cat <<< d ) > "$1"', repository.upload("x"))
    assert repository.upload("x").read_bytes() == b"a\nb\nc\nd\n"


def test_open_and_close_in_quick_succession(repository: MountedRepository) -> None:
    """500 times `echo a >> x` never finds the upload busy, though the kernel releases handles later."""
    count = 500 if repository.storage.is_local else 50
    shell('for i in $(seq "$2"); do echo a >> "$1"; done', repository.upload("x"), count)
    assert repository.upload("x").read_bytes() == b"a\n" * count


def test_many_tools_in_quick_succession(repository: MountedRepository) -> None:
    """Create, append, overwrite, truncate, read: each next command finds the upload free."""
    # Only a new one can be emptied everywhere.
    anew = "" if repository.storage.is_local else 'rm -f "$1"; '
    cut = 'truncate -s 1 "$1"; ' if repository.storage.is_local else ""
    script = f"""
        for i in $(seq "$2"); do
            {anew}printf %s "$i" > "$1"; printf x >> "$1"; {cut}cat "$1" > /dev/null
            dd if=/dev/zero of="$1" bs=10 count=1 oflag=append conv=notrunc status=none; mv "$1" "$1.b"; mv "$1.b" "$1"
        done
        {anew}printf done > "$1"
    """
    shell(script, repository.upload("x"), 40 if repository.storage.is_local else 5)
    assert repository.upload("x").read_bytes() == b"done"


def test_create_and_remove_in_quick_succession(repository: MountedRepository) -> None:
    """A name is free again at once after `rm`."""
    count = 100 if repository.storage.is_local else 10
    shell('for i in $(seq "$2"); do printf %s "$i" > "$1"; rm "$1"; done', repository.upload("x"), count)
    assert repository.uploads == []
    assert repository.storage.uploads(repository.name) == []


# --- names -----------------------------------------------------------------------------------------------------------


def test_exclusive_creation(repository: MountedRepository) -> None:
    """A name that is taken is EEXIST for `O_EXCL`, and just opened without it: one name, one upload."""
    repository.put_upload("x", b"abc")
    with repository.mount.tolerates("EEXIST"), pytest.raises(FileExistsError):
        os.open(repository.upload("x"), os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    append(repository.upload("x"), b"def")
    assert repository.upload("x").read_bytes() == b"abcdef"
    assert len(repository.storage.uploads(repository.name)) == 1


def test_the_same_name_in_two_repositories(repository: MountedRepository) -> None:
    """Names are the repository's own."""
    other = MountedRepository(repository.mount, repository.storage, f"{repository.name}/other")
    repository.storage.make_repository(other.name)
    repository.put_upload("x", b"one")
    other.put_upload("x", b"two")
    assert (repository.upload("x").read_bytes(), other.upload("x").read_bytes()) == (b"one", b"two")


def test_renaming_an_upload(repository: MountedRepository) -> None:
    """`mv a b` in `_uploads` renames; the upload's id, bytes and place stay."""
    repository.put_upload("a", b"abc")
    directory = repository.upload_directory("a")
    run("mv", repository.upload("a"), repository.upload("b"))
    assert repository.uploads == ["b"]
    assert repository.upload_directory("b") == directory
    append(repository.upload("b"), b"def")
    assert repository.upload("b").read_bytes() == b"abcdef"


def test_renaming_onto_another_upload(repository: MountedRepository) -> None:
    """`mv a b` replaces b, as everywhere: b's upload is cancelled."""
    repository.put_upload("a", b"new")
    repository.put_upload("b", b"old")
    replaced = repository.upload_directory("b")
    os.rename(repository.upload("a"), repository.upload("b"))
    assert repository.uploads == ["b"]
    assert repository.upload("b").read_bytes() == b"new"
    assert not replaced.exists()


def test_renaming_while_open(repository: MountedRepository) -> None:
    """A handle goes on writing to the upload under its new name."""
    with opened(repository.upload("a"), os.O_WRONLY | os.O_CREAT) as upload:
        write_all(upload, b"abc")
        os.rename(repository.upload("a"), repository.upload("b"))
        write_all(upload, b"def")
    assert repository.uploads == ["b"]
    assert repository.upload("b").read_bytes() == b"abcdef"


def test_renaming_an_upload_of_a_registry(repository: MountedRepository) -> None:
    """An upload with a UUID for a name gets another one; the registry still finds it by its id."""
    upload_id = repository.storage.put_upload(repository.name, b"abc")
    os.rename(repository.upload(upload_id), repository.upload("named"))
    assert repository.uploads == ["named"]
    assert holds(repository.storage.upload(repository.name, upload_id) / "data", b"abc")


def test_renaming_to_another_repositorys_uploads(repository: MountedRepository) -> None:
    """An upload belongs to its repository: EINVAL or EPERM, never EXDEV, and it stays."""
    other = f"{repository.name}/other"
    repository.storage.make_repository(other)
    repository.put_upload("x", b"abc")
    with repository.mount.refused(errno.EINVAL, errno.EPERM):
        os.rename(repository.upload("x"), repository.path / "other/_uploads/x")
    assert repository.upload("x").read_bytes() == b"abc"


# --- ending one ------------------------------------------------------------------------------------------------------


def test_removing_cancels(repository: MountedRepository) -> None:
    """`rm` takes data and directory away, also from storage; the name is ENOENT."""
    repository.put_upload("x", b"abc")
    directory = repository.upload_directory("x")
    run("rm", repository.upload("x"))
    assert not directory.exists()
    assert repository.uploads == []
    with repository.mount.refused(errno.ENOENT):
        os.stat(repository.upload("x"))


def test_removing_an_open_upload(repository: MountedRepository) -> None:
    """After a cancel the handle that is still open can write no more, and nothing comes back."""
    with repository.mount.tolerates("EBADF"):
        upload = os.open(repository.upload("x"), os.O_WRONLY | os.O_CREAT)
        write_all(upload, b"abc")
        os.unlink(repository.upload("x"))
        with pytest.raises(OSError, match="Bad file descriptor"):
            write_all(upload, b"def")
        with suppress(OSError):
            os.close(upload)
    assert repository.uploads == []
    assert repository.storage.uploads(repository.name) == []


def test_two_cancels(repository: MountedRepository) -> None:
    """The second `rm` is ENOENT."""
    repository.put_upload("x", b"abc")
    os.unlink(repository.upload("x"))
    with repository.mount.refused(errno.ENOENT):
        os.unlink(repository.upload("x"))


def test_cancelling_what_a_registry_began(repository: MountedRepository) -> None:
    """`rm` of a registry's upload leaves nothing of it."""
    upload_id = repository.storage.put_upload(repository.name, b"abc", states={"0": b"x" * 108})
    os.unlink(repository.upload(upload_id))
    assert repository.storage.uploads(repository.name) == []


def test_an_upload_that_somebody_else_ended(repository: MountedRepository) -> None:
    """An upload that vanished from storage is gone from the listing within the TTL."""
    upload_id = repository.storage.put_upload(repository.name, b"abc")
    assert repository.uploads == [upload_id]
    remove_tree(repository.storage.upload(repository.name, upload_id))
    wait_until(lambda: repository.uploads == [], "the upload to be gone", seconds=3)
    wait_until(lambda: not os.path.exists(repository.upload(upload_id)), "ENOENT", seconds=3)


def test_xattrs_of_an_upload(repository: MountedRepository) -> None:
    """An upload says its id, when it was begun, and whose it is; it has no digest and no error yet."""
    upload = repository.put_upload("x", b"abc")
    assert get_xattr(upload, "user.layerfs.repository") == repository.name
    assert {"user.layerfs.upload.uuid", "user.layerfs.upload.startedat"} <= set(os.listxattr(upload))
    with pytest.raises(OSError, match="No data") as caught:
        os.getxattr(upload, "user.layerfs.error")
    assert caught.value.errno == errno.ENODATA


def test_writes_through_a_mapping(repository: MountedRepository) -> None:
    """What a shared mapping changed is what is committed (or mapping for writing is refused)."""
    repository.put_upload("x", bytes(100_000))
    program = (
        "import mmap, sys\n"
        "with open(sys.argv[1], 'r+b') as f:\n"
        "    try:\n"
        "        m = mmap.mmap(f.fileno(), 0)\n"
        "    except OSError:\n"
        "        sys.exit(0)\n"
        "    m[5000:5005] = b'hello'\n"
        "    m.flush()\n"
        "    m.close()\n"
    )
    run(sys.executable, "-c", program, repository.upload("x"))
    data = repository.upload("x").read_bytes()
    assert data in (bytes(100_000), bytes(5000) + b"hello" + bytes(94_995))
    assert holds(repository.upload_directory("x") / "data", data)
    repository.commit("x", digest_of(data))
    repository.assert_stored(data)
