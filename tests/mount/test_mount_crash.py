"""What survives: kill -9, SIGTERM, remounting, two mounts at once."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pytest
from harness.commands import append, opened, run, shell, wait_until, write_all
from harness.mount import Mount
from harness.repository import MountedRepository
from harness.sha256 import hash_state
from harness.storage import Storage, cut, digest_of, holds, snapshot

#: Writes a file in chunks, each with fsync, and prints how many bytes are acknowledged; from the beginning or goes on.
FSYNCING_WRITER = """
import os, sys
data = open(sys.argv[1], 'rb').read()
f = os.open(sys.argv[2], os.O_WRONLY | os.O_CREAT)
done = os.lseek(f, 0, os.SEEK_END) if sys.argv[3] == 'on' else 0
while done < len(data):
    done += os.write(f, data[done:done + 50_000])
    os.fsync(f)
    print(done, flush=True)
"""


@pytest.fixture
def repository(mounts, storage: Storage) -> MountedRepository:
    """A repository on a mount that the test may kill."""
    storage.make_repository("r")
    return MountedRepository(mounts(storage), storage, "r")


def die(mount: Mount) -> None:
    """kill -9, and see that it is dead."""
    mount.kill9()
    with pytest.raises(OSError, match="not connected"):
        os.listdir(mount.path)


# --- kill -9 ---------------------------------------------------------------------------------------------------------


def test_after_kill_9_the_next_mount_heals(repository: MountedRepository, payload) -> None:
    """The dead mountpoint answers ENOTCONN; `layerfs mount` on it works, and everything is there."""
    layer = repository.put_layer(payload(1000))
    die(repository.mount)
    repository.mount.remount()
    assert layer.read_bytes() == repository.stored(layer.name)


def test_a_closed_upload_survives_kill_9(repository: MountedRepository, payload, tmp_path: Path) -> None:
    """Everything closed is there under its name; `tail -c +N >>` finishes it."""
    data = payload(500_000)
    (tmp_path / "layer").write_bytes(data)
    repository.put_upload("my layer", data[:200_000])
    die(repository.mount)
    repository.mount.remount()
    assert repository.uploads == ["my layer"]
    resume(tmp_path / "layer", repository.upload("my layer"))
    repository.commit("my layer", digest_of(data))
    repository.assert_stored(data)


def resume(file: Path, upload: Path) -> None:
    """What a user does: the size says where to go on."""
    shell('tail -c +$(( $(stat -c %s "$2") + 1 )) "$1" >> "$2"', file, upload)


@pytest.mark.parametrize("seed", range(6))
def test_kill_9_while_writing(repository: MountedRepository, payload, tmp_path: Path, seed: int) -> None:
    """Bytes acknowledged by fsync are there; the size says exactly how many; continuing makes it whole."""
    data = payload(2_000_000)
    (tmp_path / "layer").write_bytes(data)
    dice = random.Random(seed)
    for _ in range(2):
        acknowledged = kill_while_writing(repository, tmp_path / "layer", after=dice.randrange(1, 20))
        repository.mount.remount()
        size = os.stat(repository.upload("x")).st_size
        assert acknowledged <= size <= len(data)
        assert repository.upload("x").read_bytes() == data[:size]
    resume(tmp_path / "layer", repository.upload("x"))
    repository.commit("x", digest_of(data))
    repository.assert_stored(data)


def kill_while_writing(repository: MountedRepository, file: Path, *, after: int) -> int:
    """Kills the daemon when the writer has fsynced some times; returns how many bytes are acknowledged."""
    # Where uploads only grow it goes on with what there is.
    where = "again" if repository.storage.is_local else "on"
    argv = [sys.executable, "-c", FSYNCING_WRITER, str(file), str(repository.upload("x")), where]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as writer:
        acknowledged = [writer.stdout.readline() for _ in range(after)]
        repository.mount.kill9()
        acknowledged += writer.stdout.readlines()
        writer.wait(30)
    return int([line for line in acknowledged if line][-1])


@pytest.mark.parametrize("flag", [os.O_SYNC, os.O_DSYNC])
def test_what_is_written_synchronously_survives_kill_9(repository: MountedRepository, payload, flag: int) -> None:
    """Without `fsync`, as by `dd oflag=sync`: each write has returned when its bytes were durable."""
    data = payload(100_000)
    writer = os.open(repository.upload("x"), os.O_WRONLY | os.O_CREAT | flag, 0o644)
    for start in range(0, len(data), 25_000):
        assert os.write(writer, data[start : start + 25_000]) == 25_000
    die(repository.mount)
    with suppress(OSError):
        os.close(writer)
    repository.mount.remount()
    assert repository.upload("x").read_bytes() == data


@pytest.mark.parametrize("delay", [0.0, 0.002, 0.005, 0.01, 0.02, 0.05])
def test_kill_9_while_committing(repository: MountedRepository, payload, delay: float) -> None:
    """Afterwards there is the upload, or the layer, or both; committing again succeeds; nothing is half-done."""
    data = payload(3_000_000)
    digest = digest_of(data)
    repository.put_upload("x", data)
    script = f"import os; os.rename({str(repository.upload('x'))!r}, {str(repository.layer(digest))!r})"
    with subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.DEVNULL) as mv:
        killer = threading.Timer(0.03 + delay, repository.mount.process.kill)
        killer.start()
        mv.wait(30)
    killer.join()
    repository.mount.wait_end()
    repository.mount.remount()
    if digest in repository.layers:
        assert repository.layer(digest).read_bytes() == data
    if "x" in repository.uploads:
        if repository.upload("x").read_bytes() != data:  # moved, but not linked and tidied up yet
            assert repository.stored(digest) == data
        repository.commit("x", digest)
    elif digest not in repository.layers:
        pytest.fail("neither upload nor layer")
    assert repository.stored(digest) == data
    assert repository.layer(digest).read_bytes() == data
    assert repository.uploads == []


@pytest.mark.parametrize("linked", [False, True])
def test_a_crash_after_the_move_is_repaired_by_mv(repository: MountedRepository, payload, linked: bool) -> None:
    """The data has become the blob, the upload's directory is still there: the same `mv` again completes it."""
    data = payload(100_000)
    repository.put_upload("x", data)
    directory = repository.upload_directory("x")
    repository.mount.stop()
    blob = repository.storage.blob(digest_of(data))
    blob.parent.mkdir(parents=True)
    (directory / "data").rename(blob)
    if linked:
        repository.storage.put_link("r", digest_of(data))
    repository.mount.remount()
    run("mv", "-f", repository.upload("x"), repository.layer(digest_of(data)))
    repository.assert_stored(data)


def test_a_crash_after_the_move_is_repaired_by_uploading_again(repository: MountedRepository, payload) -> None:
    """A user who sees size 0 there and sends everything again gets the layer, too."""
    data = payload(100_000)
    upload_id = repository.storage.put_upload("r", None)
    repository.storage.put_blob(data)
    append(repository.upload(upload_id), data[os.stat(repository.upload(upload_id)).st_size :])
    repository.commit(upload_id, digest_of(data))
    repository.assert_stored(data)


def test_an_empty_upload_is_not_mistaken_for_a_crash(repository: MountedRepository, payload) -> None:
    """`touch x; mv x _layers/<digest of a blob that exists>` is EBADMSG: its bytes were never sent."""
    digest = repository.storage.put_layer("other", payload(100))
    run("touch", repository.upload("x"))
    with repository.mount.refused(errno.EBADMSG):
        repository.commit("x", digest)
    assert repository.layers == []


def test_hash_states_after_kill_9_are_right(repository: MountedRepository, payload, tmp_path: Path) -> None:
    """A state file that a crash leaves at the size of `data` is the state of exactly those bytes."""
    data = payload(400_000)
    (tmp_path / "layer").write_bytes(data)
    kill_while_writing(repository, tmp_path / "layer", after=4)
    (directory,) = repository.storage.uploads("r")
    stored = data[: (directory / "data").stat().st_size]
    assert holds(directory / "data", stored)
    state = directory / "hashstates/sha256" / str(len(stored))
    assert not state.exists() or state.read_bytes() == hash_state(stored)


def test_the_empty_upload_survives(repository: MountedRepository) -> None:
    """An upload that was only begun is there after kill -9."""
    run("touch", repository.upload("x"))
    die(repository.mount)
    repository.mount.remount()
    assert repository.uploads == ["x"]


def test_renames_survive(repository: MountedRepository) -> None:
    """The name that `mv` gave an upload is there after kill -9."""
    repository.put_upload("a", b"abc")
    os.rename(repository.upload("a"), repository.upload("b"))
    die(repository.mount)
    repository.mount.remount()
    assert repository.uploads == ["b"]


def test_kill_9_while_creating_at_the_digest(repository: MountedRepository, payload) -> None:
    """Nothing appears as a layer, and the same command succeeds afterwards."""
    data = payload(300_000)
    digest = digest_of(data)
    layer = os.open(repository.layer(digest), os.O_WRONLY | os.O_CREAT)
    write_all(layer, data[:100_000])
    repository.mount.kill9()
    with pytest.raises(OSError, match="not connected"):
        os.close(layer)
    repository.mount.remount()
    assert repository.layers == []
    with opened(repository.layer(digest), os.O_WRONLY | os.O_CREAT) as again:
        write_all(again, data)
    assert repository.stored(digest) == data
    assert repository.layers == [digest]


# --- stopping --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_unmounts(repository: MountedRepository, number: int) -> None:
    """SIGTERM and SIGINT: the daemon unmounts and ends with 0."""
    repository.put_upload("x", b"abc")
    repository.mount.process.send_signal(number)
    assert repository.mount.wait_end() == 0
    assert not repository.mount.is_mounted
    assert os.listdir(repository.mount.path) == []


def test_sigterm_during_a_cp(repository: MountedRepository, payload, tmp_path: Path) -> None:
    """The daemon ends in time; what cp had written is a prefix of the file, and can be continued."""
    data = payload(30_000_000)
    (tmp_path / "layer").write_bytes(data)
    upload = repository.upload("x")
    with subprocess.Popen(["cp", tmp_path / "layer", upload], stderr=subprocess.DEVNULL) as cp:
        wait_until(lambda: os.path.exists(upload) and os.stat(upload).st_size > 0, "cp to begin")
        repository.mount.process.send_signal(signal.SIGTERM)
        assert repository.mount.wait_end() == 0
        cp.wait(30)
    assert not repository.mount.is_mounted
    repository.mount.remount()
    size = os.stat(upload).st_size
    assert 0 < size <= len(data)
    assert upload.read_bytes() == data[:size]
    resume(tmp_path / "layer", upload)
    repository.commit("x", digest_of(data))
    assert repository.stored(digest_of(data)) == data


def test_sigterm_with_files_open(repository: MountedRepository, payload) -> None:
    """Open handles do not keep the daemon: it ends in time, with 0, and leaves no mount."""
    layer = repository.put_layer(payload(1000))
    reader = os.open(layer, os.O_RDONLY)
    writer = os.open(repository.upload("x"), os.O_WRONLY | os.O_CREAT)
    write_all(writer, b"abc")
    repository.mount.process.send_signal(signal.SIGTERM)
    assert repository.mount.wait_end() == 0
    for descriptor in (reader, writer):
        try:
            os.close(descriptor)
        except OSError as exc:
            assert exc.errno in (errno.ENOTCONN, errno.ECONNABORTED, errno.EIO)
    assert not repository.mount.is_mounted
    repository.mount.remount()
    assert repository.upload("x").read_bytes() == b"abc"


def test_umount(repository: MountedRepository) -> None:
    """`umount` of the mountpoint ends the daemon, with 0."""
    run("umount", repository.mount.path)
    assert repository.mount.wait_end() == 0


def test_fusermount_with_a_file_open(repository: MountedRepository, payload) -> None:
    """`fusermount3 -u` is refused while a file is open; `-u -z` takes the mount away, and the daemon ends at last."""
    layer = repository.put_layer(payload(100_000))
    with opened(layer, os.O_RDONLY) as file:
        assert run("fusermount3", "-u", repository.mount.path, check=False).returncode != 0
        run("fusermount3", "-u", "-z", repository.mount.path)
        assert len(os.pread(file, 100, 50_000)) == 100
    assert repository.mount.wait_end() == 0


def test_layerfs_umount(repository: MountedRepository) -> None:
    """`layerfs umount` does the same."""
    run(Path(sys.executable).parent / "layerfs", "umount", repository.mount.path)
    assert repository.mount.wait_end() == 0
    assert not repository.mount.is_mounted


def test_a_second_life(repository: MountedRepository, payload) -> None:
    """Ten times: mount, write a piece, stop. The upload is whole in the end, and the hash right."""
    data = payload(1_000_000)
    for start in range(0, len(data), 100_000):
        append(repository.upload("x"), data[start : start + 100_000])
        repository.mount.stop()
        repository.mount.remount()
    repository.commit("x", digest_of(data))
    repository.assert_stored(data)


# --- two mounts ------------------------------------------------------------------------------------------------------


@pytest.fixture
def two(mounts, storage: Storage) -> tuple[MountedRepository, MountedRepository]:
    """One repository through two daemons."""
    storage.make_repository("r")
    return MountedRepository(mounts(storage), storage, "r"), MountedRepository(mounts(storage), storage, "r")


def test_another_mount_continues_an_upload(two, payload) -> None:
    """Begun here, continued there, and again here, committed there; then it is a layer on both."""
    here, there = two
    data = payload(600_000)
    for number, repository in enumerate((here, there, here, there)):
        wait_until(
            lambda repository=repository, number=number: (
                number == 0
                or (
                    os.path.exists(repository.upload("x"))
                    and os.stat(repository.upload("x")).st_size == number * 150_000
                )
            ),
            "the upload with its new size",
            seconds=3,
        )
        append(repository.upload("x"), data[number * 150_000 : (number + 1) * 150_000])
    os.rename(there.upload("x"), there.layer(digest_of(data)))
    there.assert_stored(data)
    wait_until(lambda: os.path.exists(here.layer(digest_of(data))), "the layer on the other mount", seconds=3)
    wait_until(lambda: here.uploads == [], "the upload to be gone", seconds=3)
    assert here.layer(digest_of(data)).read_bytes() == data


def test_another_mount_continues_after_the_first_died(two, payload) -> None:
    """The first is killed while it writes; the second goes on from the size that it sees."""
    here, there = two
    data = payload(400_000)
    upload = os.open(here.upload("x"), os.O_WRONLY | os.O_CREAT)
    write_all(upload, data[:100_000])
    os.fsync(upload)
    here.mount.kill9()
    with pytest.raises(OSError, match="not connected"):
        os.close(upload)
    wait_until(lambda: os.path.exists(there.upload("x")), "the upload on the other mount", seconds=3)
    size = os.stat(there.upload("x")).st_size
    assert size == 100_000
    append(there.upload("x"), data[size:])
    there.commit("x", digest_of(data))
    there.assert_stored(data)


def test_cancelled_on_another_mount(two) -> None:
    """What one cancels the other does not bring back by writing on."""
    here, there = two
    with here.mount.tolerates("EBADF", "ENOENT", "EIO", "ESTALE", "EBUSY"):
        upload = os.open(here.upload("x"), os.O_WRONLY | os.O_CREAT)
        write_all(upload, b"abc")
        os.fsync(upload)
        wait_until(lambda: os.path.exists(there.upload("x")), "the upload on the other mount", seconds=3)
        os.unlink(there.upload("x"))
        with suppress(OSError):
            write_all(upload, b"def")
            os.fsync(upload)
        with suppress(OSError):
            os.close(upload)
        wait_until(lambda: there.uploads == [], "no upload", seconds=3)
        wait_until(lambda: here.uploads == [], "no upload", seconds=3)
    here.mount.declare("WARNING")
    assert not any((path / "startedat").exists() for path in here.storage.uploads("r"))


def test_another_mount_writes_at_the_same_time(two, payload) -> None:
    """Nobody can keep another node out, but what both wrote is never committed as what one of them wrote."""
    here, there = two
    ours, theirs = payload(100_000), payload(50_000)
    with here.mount.tolerates("EBUSY", "EBADMSG", "EIO"), there.mount.tolerates("EBUSY", "EBADMSG", "EIO"):
        upload = os.open(here.upload("x"), os.O_WRONLY | os.O_CREAT)
        write_all(upload, ours)
        os.fsync(upload)
        wait_until(lambda: os.path.exists(there.upload("x")), "the upload on the other mount", seconds=3)
        append(there.upload("x"), theirs)
        with suppress(OSError):
            write_all(upload, ours)
        with suppress(OSError):
            os.close(upload)
        written = here.storage.uploads("r")[0] / "data"
        stored = (ours + theirs + ours)[: written.stat().st_size]
        assert holds(written, stored)
        assert stored.startswith(ours + theirs)
        if stored != ours + ours:
            with pytest.raises(OSError, match=r"Bad message|busy"):
                here.commit("x", digest_of(ours + ours))
        wait_until(lambda: _commits(there, "x", digest_of(stored)), "the other mount to finish", seconds=5)
    for repository in two:
        repository.mount.declare("WARNING")
    assert here.stored(digest_of(stored)) == stored


def _commits(repository: MountedRepository, name: str, digest: str) -> bool:
    with suppress(OSError):
        repository.commit(name, digest)
        return True
    return False


def test_a_blob_that_another_mount_mended(two, payload) -> None:
    """A layer seen truncated, and mended by another node, is whole here within the TTL: its size too."""
    here, there = two
    data = payload(100_000)
    digest = here.storage.put_layer("r", data)
    cut(here.storage.blob(digest), 1000)
    assert len(here.layer(digest).read_bytes()) == 1000
    there.put_layer(data)
    there.mount.declare("WARNING")
    wait_until(lambda: os.stat(here.layer(digest)).st_size == 100_000, "the right size", seconds=3)
    assert here.layer(digest).read_bytes() == data


def test_both_commit_the_same_blob(two, payload) -> None:
    """Two nodes push the same layer at the same time: both succeed, one blob."""
    data = payload(2_000_000)
    digest = digest_of(data)
    errors: list[OSError] = []

    def push(repository: MountedRepository, number: int) -> None:
        try:
            repository.put_upload(f"upload-{number}", data)
            repository.commit(f"upload-{number}", digest)
        except OSError as exc:
            errors.append(exc)

    threads = [threading.Thread(target=push, args=(two[number % 2], number)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    two[0].assert_stored(data)


def test_both_commit_the_same_upload(two, payload) -> None:
    """Two nodes finish one upload at the same time: one succeeds at least, and the blob is right."""
    here, there = two
    data = payload(1_000_000)
    digest = digest_of(data)
    here.put_upload("x", data)
    wait_until(lambda: os.path.exists(there.upload("x")), "the upload on the other mount", seconds=3)
    results: list[int] = []

    def finish(repository: MountedRepository) -> None:
        try:
            repository.commit("x", digest)
            results.append(0)
        except OSError as exc:
            results.append(exc.errno)

    with here.mount.tolerates("ENOENT", "EBUSY", "EIO"), there.mount.tolerates("ENOENT", "EBUSY", "EIO"):
        threads = [threading.Thread(target=finish, args=(repository,)) for repository in two]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for repository in two:
        repository.mount.declare("WARNING")
    assert 0 in results
    assert here.stored(digest) == data
    assert here.storage.link("r", digest).read_text() == digest


def test_remounting_changes_nothing(repository: MountedRepository, payload) -> None:
    """Mounting, looking at everything and unmounting leaves the storage as it was."""
    repository.put_upload("x", payload(1000))
    repository.put_layer(payload(1000))
    repository.mount.stop()
    before = snapshot(repository.storage.root)
    repository.mount.remount()
    run("find", repository.mount.path, "-type", "f", "-exec", "cat", "{}", "+")
    repository.mount.stop()
    assert snapshot(repository.storage.root) == before
