"""Many and much: caps, large listings, parallel users, memory."""

from __future__ import annotations

import errno
import os
import random
import resource
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from harness.commands import opened, run, shell, wait_until, write_all
from harness.mount import COMMAND
from harness.repository import MountedRepository
from harness.storage import Storage, digest_of, digest_of_file


def test_the_cap_on_uploads(mounts, storage: Storage) -> None:
    """With `--max-uploads 3` the fourth open upload is EDQUOT at once; the others go on; a close makes room."""
    storage.make_repository("r")
    repository = MountedRepository(mounts(storage, "--max-uploads", "3"), storage, "r")
    handles = [os.open(repository.upload(f"x{number}"), os.O_WRONLY | os.O_CREAT) for number in range(3)]
    start = time.monotonic()
    with repository.mount.refused(errno.EDQUOT):
        os.open(repository.upload("x3"), os.O_WRONLY | os.O_CREAT)
    assert time.monotonic() - start < 5
    for handle in handles:
        write_all(handle, b"abc")
    for handle in handles:
        os.close(handle)
    with repository.mount.tolerates("EDQUOT"):  # the kernel releases handles a little later
        wait_until(lambda: _writes(repository.upload("x3")), "room for another upload", seconds=5)
    assert [repository.upload(f"x{number}").read_bytes() for number in range(4)] == [b"abc"] * 4


def _writes(path: Path) -> bool:
    with suppress(OSError), opened(path, os.O_WRONLY | os.O_CREAT) as handle:
        write_all(handle, b"abc")
        return True
    return False


def test_the_cap_on_handles(mounts, storage: Storage) -> None:
    """With `--max-handles 5` the sixth open is EMFILE at once; the others go on; a close makes room."""
    digest = storage.put_layer("r", b"layer")
    repository = MountedRepository(mounts(storage, "--max-handles", "5"), storage, "r")
    handles = [os.open(repository.layer(digest), os.O_RDONLY) for _ in range(5)]
    with repository.mount.refused(errno.EMFILE):
        os.open(repository.layer(digest), os.O_RDONLY)
    assert [os.pread(handle, 10, 0) for handle in handles] == [b"layer"] * 5
    for handle in handles:
        os.close(handle)
    with repository.mount.tolerates("EMFILE"):
        wait_until(lambda: _reads(repository.layer(digest)), "room for another handle", seconds=5)


def test_a_mount_at_its_limits_tells_of_itself(mounts, storage: Storage) -> None:
    """`.layerfs` can be read when no other file can, and who reads it takes no place from others."""
    digest = storage.put_layer("r", b"layer")
    repository = MountedRepository(mounts(storage, "--max-handles", "2"), storage, "r")
    path, control = repository.layer(digest), repository.mount.path / ".layerfs"
    with open(control / "errors"), open(control / "accesslog"), open(path, "rb"), open(path, "rb") as second:
        assert second.read() == b"layer"
        with repository.mount.refused(errno.EMFILE):
            os.open(path, os.O_RDONLY)
        assert "--max-handles" in run(COMMAND, "why", path).stdout
        assert run(COMMAND, "status", repository.mount.path).stdout


def _reads(path: Path) -> bool:
    with suppress(OSError):
        return path.read_bytes() == b"layer"
    return False


def test_ten_thousand_layers(mounts, storage: Storage) -> None:
    """A repository of 10,000 layers is listed and stat'ed completely, and one of them is found at once.

    On object stores it is 1,100: more than a listing has at once.
    """
    count = 10_000 if storage.is_local else 1_100
    digests = {storage.put_layer("r", b"layer %d" % number) for number in range(count)}
    mount = mounts(storage)
    listed = run("ls", "-l", mount.path / "r/_layers").stdout.splitlines()[1:]
    assert {line.split()[-1] for line in listed} == digests
    assert all(int(line.split()[4]) in range(7, 12) for line in listed)
    assert len(os.listdir(mount.path / "r/_layers")) == count
    start = time.monotonic()
    assert (mount.path / "r/_layers" / min(digests)).read_bytes().startswith(b"layer ")
    assert time.monotonic() - start < 2


def test_a_listing_while_layers_come_and_go(repository: MountedRepository) -> None:
    """Somebody who lists sees every layer that was there all the time, whatever happens to the others."""
    steady = {repository.storage.put_layer(repository.name, b"steady %d" % n + os.urandom(8)) for n in range(300)}
    stop = threading.Event()

    def churn() -> None:
        while not stop.is_set():
            digest = repository.storage.put_layer(repository.name, os.urandom(16))
            repository.storage.link(repository.name, digest).unlink()

    churner = threading.Thread(target=churn)
    churner.start()
    try:
        for _ in range(20):
            assert steady <= set(repository.layers)
    finally:
        stop.set()
        churner.join()


@pytest.mark.parametrize("count", [200, pytest.param(2000, marks=[pytest.mark.soak, pytest.mark.timeout(900)])])
def test_many_uploads(repository: MountedRepository, count: int) -> None:
    """Many uploads in one repository are begun, listed by name, read, and cancelled."""
    if not repository.storage.is_local:
        count //= 5  # each takes some twenty requests
    shell('for i in $(seq "$2"); do echo $i > "$1/$i"; done', repository.path / "_uploads", count, timeout=400)
    assert set(repository.uploads) == {str(number) for number in range(1, count + 1)}
    assert repository.upload("37").read_bytes() == b"37\n"
    shell('rm "$1"/*', repository.path / "_uploads", timeout=400)
    assert repository.uploads == []
    assert repository.storage.uploads(repository.name) == []


def test_handles_and_descriptors_come_back(mounts, storage: Storage, payload) -> None:
    """After 300 uploads, commits, cancels and reads the daemon has no more files open than before."""
    count = 100 if storage.is_local else 20
    storage.make_repository("r")
    repository = MountedRepository(mounts(storage), storage, "r")
    repository.put_layer(payload(100))
    wait_until(lambda: True, "a first look")
    before = repository.mount.descriptors
    for number in range(count):
        repository.put_layer(payload(2000))
        repository.put_upload(f"cancelled {number}", b"abc")
        os.unlink(repository.upload(f"cancelled {number}"))
        with repository.mount.refused(errno.EBADMSG):
            repository.put_upload("wrong", b"abc")
            repository.commit("wrong", "sha256:" + "0" * 64)
    for digest in repository.layers:
        repository.layer(digest).read_bytes()
    wait_until(lambda: repository.mount.descriptors <= before + 5, "descriptors to be given back", seconds=10)


class Traffic:
    """Readers, writers and listers of one repository; each checks every byte that it sees."""

    def __init__(self, repository: MountedRepository, data: dict[str, bytes], rounds: int) -> None:
        self._repository = repository
        self._data = data
        self._rounds = rounds
        self._writing = threading.Event()
        self.failures: list[str] = []

    def run(self, *, readers: int, writers: int, listers: int) -> None:
        """Returns when all writers are done."""
        self._writing.set()
        writing = [threading.Thread(target=self._guarded, args=(self._write, number)) for number in range(writers)]
        others = [threading.Thread(target=self._guarded, args=(self._read, number)) for number in range(readers)]
        others += [threading.Thread(target=self._guarded, args=(self._list, number)) for number in range(listers)]
        for thread in writing + others:
            thread.start()
        for thread in writing:
            thread.join()
        self._writing.clear()
        for thread in others:
            thread.join()

    def _guarded(self, work: Callable[[int], None], number: int) -> None:
        try:
            work(number)
        except Exception as exc:  # noqa: BLE001 - whoever runs the traffic looks at the failures
            self.failures.append(f"{work.__name__} {number}: {exc!r}")

    def _read(self, number: int) -> None:
        dice = random.Random(number)
        while self._writing.is_set():
            digest = dice.choice(list(self._data))
            with opened(self._repository.layer(digest), os.O_RDONLY) as file:
                for _ in range(20):
                    where, length = dice.randrange(1_600_000), dice.randrange(200_000)
                    assert os.pread(file, length, where) == self._data[digest][where : where + length]

    def _write(self, number: int) -> None:
        dice = random.Random(f"writer {number}")
        for turn in range(self._rounds * 3):
            content = dice.randbytes(dice.randrange(1, 3_000_000))
            name, digest = f"upload {number} {turn}", digest_of(content)
            self._upload(name, content, dice)
            self._repository.commit(name, digest)
            assert digest_of_file(self._repository.storage.blob(digest)) == digest
            assert digest_of_file(self._repository.layer(digest)) == digest

    def _upload(self, name: str, content: bytes, dice: random.Random) -> None:
        with opened(self._repository.upload(name), os.O_WRONLY | os.O_CREAT) as upload:
            start = 0
            while start < len(content):
                length = dice.choice([100, 4096, 50_000, 131_072])
                write_all(upload, content[start : start + length])
                start += length

    def _list(self, _number: int) -> None:
        while self._writing.is_set():
            assert set(self._data) <= set(self._repository.layers)
            assert all(name.startswith("upload ") for name in self._repository.uploads)


@pytest.mark.parametrize("rounds", [2, pytest.param(60, marks=[pytest.mark.soak, pytest.mark.timeout(3600)])])
def test_parallel_readers_and_writers(mounts, storage: Storage, payload, rounds: int) -> None:
    """8 readers, 4 writers, 2 listers at once: every byte read is right, every upload committed is right."""
    contents = [payload(1_500_000 + number) for number in range(4)]
    data = {storage.put_layer("r", content): content for content in contents}
    traffic = Traffic(MountedRepository(mounts(storage), storage, "r"), data, rounds)
    traffic.run(readers=8, writers=4, listers=2)
    assert traffic.failures == []
    assert storage.uploads("r") == []


def test_memory_does_not_grow_with_files(mounts, storage: Storage, tmp_path: Path) -> None:
    """Four uploads of 100 MB at once, and reading them back, take well under 100 MB of memory.

    Object stores have a part of each in memory, 256 MiB of parts on their way, and 48 MiB that were read ahead.
    """
    limit = 100_000_000 if storage.is_local else (4 * 16 + 256 + 48) << 20
    storage.make_repository("r")
    repository = MountedRepository(mounts(storage), storage, "r")
    before = repository.mount.resident_bytes
    script = """
        for i in 1 2 3 4; do head -c 100000000 /dev/zero | tr '\\0' "$i" > "$1/$i" & done; wait
        for i in 1 2 3 4; do
            d=$(head -c 100000000 /dev/zero | tr '\\0' "$i" | sha256sum | cut -d' ' -f1)
            mv "$1/$i" "$2/sha256:$d"
            sha256sum --status -c <<< "$d  $2/sha256:$d"
        done
    """
    peak = _Peak(repository.mount)
    with peak:
        shell(script, repository.path / "_uploads", repository.path / "_layers", timeout=100)
    assert len(repository.layers) == 4
    assert peak.bytes - before < limit
    # Closing them has to wait for all of what is on its way.
    repository.mount.declare("WARNING", "slow: took")


class _Peak:
    """The most memory that a daemon had while the body ran, as the kernel counts it."""

    def __init__(self, mount) -> None:
        self._mount = mount
        self.bytes = 0

    def __enter__(self) -> None:
        Path(f"/proc/{self._mount.process.pid}/clear_refs").write_text("5")  # resets VmHWM

    def __exit__(self, *_exc: object) -> None:
        status = Path(f"/proc/{self._mount.process.pid}/status").read_text()
        self.bytes = int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))) * 1024


def test_memory_does_not_grow_with_names(mounts, storage: Storage) -> None:
    """Asking for 20,000 names that do not exist, and listing again and again, leaves no trace in memory.

    On object stores it is 600 names, each a request.
    """
    names = 10_000 if storage.is_local else 300
    for number in range(500):
        storage.put_layer("r", b"layer %d" % number)
    mount = mounts(storage)

    def work() -> None:
        for number in range(names):
            with suppress(FileNotFoundError):
                os.stat(mount.path / "r/_layers" / f"sha256:{number:064x}")
        for _ in range(5):
            run("ls", "-l", mount.path / "r/_layers")

    work()
    before = mount.resident_bytes
    work()
    assert mount.resident_bytes - before < 15_000_000


@pytest.mark.local("how many descriptors a read takes is known here only")
def test_few_descriptors(storage: Storage, mounts, payload) -> None:
    """With RLIMIT_NOFILE of 64 the daemon refuses what it cannot open (EMFILE), and lives."""
    digest = storage.put_layer("r", payload(1000))
    repository = MountedRepository(mounts(storage), storage, "r")
    resource.prlimit(repository.mount.process.pid, resource.RLIMIT_NOFILE, (repository.mount.descriptors + 20,) * 2)
    handles: list[int] = []
    with repository.mount.tolerates("EMFILE", "ENFILE"):
        for _ in range(100):
            try:
                handles.append(os.open(repository.layer(digest), os.O_RDONLY))
                os.pread(handles[-1], 10, 0)
            except OSError as exc:
                assert exc.errno in (errno.EMFILE, errno.ENFILE)
        for handle in handles:
            os.close(handle)
        wait_until(lambda: _sized(repository.layer(digest)) == 1000, "reading again", seconds=5)
    repository.mount.declare("WARNING")


def _sized(path: Path) -> int:
    with suppress(OSError):
        return len(path.read_bytes())
    return -1


@pytest.mark.local("a disk that is full")
def test_a_full_disk(mounts, tmp_path: Path, payload) -> None:
    """ENOSPC reaches the writer; what was written stays; after room is made the upload is finished."""
    disk = tmp_path / "disk"
    disk.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=8m", "none", disk)
    try:
        storage = Storage.create(disk / "storage")
        storage.make_repository("r")
        repository = MountedRepository(mounts(storage), storage, "r")
        (disk / "ballast").write_bytes(bytes(6_000_000))
        data = payload(3_000_000)
        (tmp_path / "layer").write_bytes(data)
        with repository.mount.refuses("ENOSPC"):
            result = run("cp", tmp_path / "layer", repository.upload("x"), check=False)
        assert "No space left" in result.stderr
        repository.mount.declare("WARNING")
        size = os.stat(repository.upload("x")).st_size
        assert repository.upload("x").read_bytes() == data[:size]
        (disk / "ballast").unlink()
        shell('tail -c +$(( $(stat -c %s "$2") + 1 )) "$1" >> "$2"', tmp_path / "layer", repository.upload("x"))
        repository.commit("x", digest_of(data))
        repository.assert_stored(data)
        repository.mount.stop()
    finally:
        run("umount", "-l", disk)


@pytest.mark.local("bindfs hangs; stores that do not answer are in tests/functional/object_stores and s3")
def test_a_storage_that_does_not_answer(mounts, storage: Storage, payload, tmp_path: Path) -> None:
    """Every operation ends by `--operation-timeout`, also when the storage hangs; when it answers again all is well."""
    data = payload(300_000)
    digest = storage.put_layer("r", data)
    other = storage.put_layer("r", payload(300_000))
    slow = tmp_path / "slow"
    slow.mkdir()
    with subprocess.Popen(["bindfs", "-f", storage.root, slow]) as bindfs:
        try:
            wait_until(lambda: os.path.ismount(slow), "bindfs")
            repository = MountedRepository(mounts(slow, "--operation-timeout", "2"), storage, "r")
            assert repository.layer(digest).read_bytes() == data
            bindfs.send_signal(signal.SIGSTOP)
            with repository.mount.tolerates("ETIMEDOUT", "EIO"):
                for command in (["ls", repository.path / "_uploads"], ["cat", repository.layer(other)]):
                    start = time.monotonic()
                    assert run(*command, check=False).returncode != 0
                    assert time.monotonic() - start < 20
            bindfs.send_signal(signal.SIGCONT)
            with repository.mount.tolerates("ETIMEDOUT", "EIO"):
                wait_until(lambda: _sized(repository.layer(other)) == 300_000, "an answer", seconds=20)
            repository.put_layer(payload(1000))
            repository.mount.declare("WARNING")
            repository.mount.stop()
        finally:
            bindfs.send_signal(signal.SIGCONT)
            run("umount", "-l", slow)


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_a_layer_of_five_gibibytes(mounts, storage: Storage, tmp_path: Path) -> None:
    """A layer beyond every 32-bit limit is uploaded in two pieces, committed, and read at its far end."""
    storage.make_repository("r")
    repository = MountedRepository(mounts(storage), storage, "r")
    size = 5 * 1024**3 + 7
    script = """
        f() { openssl enc -aes-128-ctr -K 0 -iv 0 -in /dev/zero 2> /dev/null || true; }
        set +o pipefail
        f | head -c 3000000000 > "$1/x"
        f | head -c "$2" | tail -c +3000000001 >> "$1/x"
        f | head -c "$2" | sha256sum | cut -d' ' -f1
    """
    encoded = shell(script, repository.path / "_uploads", size, timeout=1500).stdout.strip()
    repository.commit("x", f"sha256:{encoded}")
    assert os.stat(repository.layer(f"sha256:{encoded}")).st_size == size
    assert run("sha256sum", repository.layer(f"sha256:{encoded}"), timeout=600).stdout.startswith(encoded)
