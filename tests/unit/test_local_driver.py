"""What only the local driver has to do: hostile files, foreign writers, durability, and threads left behind."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import gc
import os
import resource
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
import trio
import trio.testing
from harness.commands import wait_until
from harness.walk import files_in

from layerfs.driver.interface import FileInfo
from layerfs.driver.local import WRITE_THREADS, LocalDriver
from layerfs.errors import (
    BackendFailure,
    ContentChanged,
    ContentTooLarge,
    DriverError,
    NotRegularFile,
    PathNotFound,
    StorageFull,
    StorageReadOnly,
    TooManyOpenFiles,
    UnsupportedByDriver,
)

MEBIBYTE = 1 << 20
GIBIBYTE = 1 << 30


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "storage"
    path.mkdir()
    return path


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A directory that is not in the storage, with a file in it."""
    path = tmp_path / "outside"
    path.mkdir()
    (path / "secret").write_bytes(b"secret")
    return path


@pytest.fixture
def driver(root: Path) -> LocalDriver:
    return LocalDriver(str(root))


@contextmanager
def tmpfs(path: Path, options: str) -> Iterator[None]:
    path.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", path], check=True)
    try:
        yield
    finally:
        # Lazily: what a test that fails leaves open must not keep it.
        subprocess.run(["umount", "--lazy", path], check=True)


def open_descriptors() -> set[str]:
    gc.collect()
    return {f"{name} {target(name)}" for name in os.listdir("/proc/self/fd")}


def target(descriptor: str) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}")
    except FileNotFoundError:
        return "closed"


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(20):
        while not condition():
            await trio.sleep(0.005)


async def put(driver: LocalDriver, path: str, content: bytes) -> None:
    writer = await driver.writer(path, append=False)
    await writer.write([content])
    await writer.flush()
    await writer.close()


# --- the root ---------------------------------------------------------------------------------------------------


def test_a_missing_root_is_named(tmp_path: Path) -> None:
    """The error says which directory is not there."""
    with pytest.raises(PathNotFound, match="missing"):
        LocalDriver(str(tmp_path / "missing"))
    with pytest.raises(PathNotFound, match="missing"):
        LocalDriver(str(tmp_path / "missing" / "too"))


def test_a_missing_root_can_be_made(tmp_path: Path) -> None:
    """Only when asked to, with the directories above it."""
    LocalDriver(str(tmp_path / "a" / "b"), create=True)
    LocalDriver(str(tmp_path / "a" / "b"), create=True)
    assert (tmp_path / "a" / "b").is_dir()


def test_a_file_is_no_root(tmp_path: Path) -> None:
    """Nor can a directory be made in its place."""
    (tmp_path / "file").write_bytes(b"")
    for create in (False, True):
        with pytest.raises(PathNotFound):
            LocalDriver(str(tmp_path / "file"), create=create)


async def test_the_root_may_be_a_symbolic_link_and_is_resolved_once(root: Path, outside: Path, tmp_path: Path) -> None:
    """Where the link leads later does not matter, nor what the directory is called."""
    (root / "a").write_bytes(b"content")
    link = tmp_path / "link"
    link.symlink_to(root)
    driver = LocalDriver(str(link))
    link.unlink()
    link.symlink_to(outside)
    root.rename(tmp_path / "renamed")
    assert [entry.name for entry in await driver.list("/")] == ["a"]
    assert await driver.get_content("/a", limit=10) == b"content"


async def test_a_closed_driver_refuses_everything_and_keeps_nothing_open(root: Path) -> None:
    """Its descriptor of the root is closed."""
    before = open_descriptors()
    driver = LocalDriver(str(root))
    await driver.close()
    with pytest.raises(BackendFailure):
        await driver.stat("/")
    assert open_descriptors() == before


# --- hostile files ----------------------------------------------------------------------------------------------

HOSTILE: dict[str, Callable[[Path, Path], None]] = {
    "fifo": lambda path, outside: os.mkfifo(path),
    "socket": lambda path, outside: _bind(path),
    "device": lambda path, outside: os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 5)),
    "link-to-outside": lambda path, outside: path.symlink_to(outside / "secret"),
    "link-to-inside": lambda path, outside: path.symlink_to("regular"),
    "dangling-link": lambda path, outside: path.symlink_to("nowhere"),
    "link-to-itself": lambda path, outside: path.symlink_to(path.name),
    "link-through-proc": lambda path, outside: path.symlink_to("/proc/self/root/etc/passwd"),
}


def _bind(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server, _in_directory(path.parent):
        server.bind(path.name)


@contextmanager
def _in_directory(path: Path) -> Iterator[None]:
    """Names of sockets are short."""
    before = Path.cwd()
    os.chdir(path)
    try:
        yield
    finally:
        os.chdir(before)


@pytest.mark.parametrize("kind", HOSTILE)
async def test_what_is_no_regular_file_is_refused(driver: LocalDriver, root: Path, outside: Path, kind: str) -> None:
    """By every method, at once, and without being changed."""
    (root / "regular").write_bytes(b"content")
    HOSTILE[kind](root / "hostile", outside)
    before = os.lstat(root / "hostile")
    with trio.fail_after(5):
        for method in (
            driver.stat("/hostile"),
            driver.get_content("/hostile", limit=100),
            driver.open("/hostile"),
            driver.writer("/hostile", append=True),
            driver.writer("/hostile", append=False),
            driver.seal("/hostile"),
            driver.move("/hostile", "/elsewhere"),
        ):
            with pytest.raises(NotRegularFile):
                await method
        assert [type(found) for found in await driver.stat_many(["/hostile"])] == [NotRegularFile]
        assert [type(found) for found in await driver.get_contents(["/hostile"], limit=9)] == [NotRegularFile]
    after = os.lstat(root / "hostile")
    assert (before.st_ino, before.st_mtime_ns, before.st_ctime_ns) == (
        after.st_ino,
        after.st_mtime_ns,
        after.st_ctime_ns,
    )
    assert (root / "regular").read_bytes() == b"content"
    assert (outside / "secret").read_bytes() == b"secret"


@pytest.mark.parametrize("kind", HOSTILE)
async def test_what_is_no_regular_file_is_not_listed(driver: LocalDriver, root: Path, outside: Path, kind: str) -> None:
    """As if it were not there."""
    HOSTILE[kind](root / "hostile", outside)
    assert await driver.list("/") == []


@pytest.mark.parametrize("kind", HOSTILE)
async def test_what_is_no_regular_file_can_be_replaced_and_deleted(
    driver: LocalDriver, root: Path, outside: Path, kind: str
) -> None:
    """Itself, not what it leads to."""
    (root / "regular").write_bytes(b"content")
    for name in ("one", "two"):
        HOSTILE[kind](root / name, outside)
    await driver.put_content("/one", b"new")
    await driver.delete("/two")
    assert sorted(os.listdir(root)) == ["one", "regular"]
    assert (root / "one").read_bytes() == b"new"
    assert not (root / "one").is_symlink()
    assert (root / "regular").read_bytes() == b"content"
    assert (outside / "secret").read_bytes() == b"secret"


async def test_a_fifo_is_not_even_opened(driver: LocalDriver, root: Path) -> None:
    """Opening it would wake who waits for a reader; inotify sees no opening."""
    os.mkfifo(root / "fifo")
    libc = ctypes.CDLL(None)
    watcher = libc.inotify_init1(os.O_NONBLOCK)
    in_open = 0x20
    libc.inotify_add_watch(watcher, os.fsencode(root / "fifo"), in_open)
    for method in (driver.stat("/fifo"), driver.get_content("/fifo", limit=9), driver.open("/fifo")):
        with pytest.raises(NotRegularFile):
            await method
    with pytest.raises(BlockingIOError):
        os.read(watcher, 4096)
    os.close(watcher)


async def test_a_symbolic_link_to_a_directory_leads_nowhere(driver: LocalDriver, root: Path, outside: Path) -> None:
    """No path goes through it, in no method."""
    (root / "link").symlink_to(outside)
    (root / "file").write_bytes(b"content")
    for method in (
        driver.stat("/link"),
        driver.stat("/link/secret"),
        driver.list("/link"),
        driver.get_content("/link/secret", limit=100),
        driver.put_content("/link/new", b""),
        driver.open("/link/secret"),
        driver.writer("/link/secret", append=True),
        driver.writer("/link/new", append=True),
        driver.seal("/link/secret"),
        driver.move("/link/secret", "/stolen"),
        driver.move("/file", "/link/new"),
        driver.delete("/link/secret"),
        driver.make_directory("/link/new"),
        driver.remove_directory("/link/new"),
    ):
        with pytest.raises(NotRegularFile):
            await method
    assert os.listdir(outside) == ["secret"]
    assert (outside / "secret").read_bytes() == b"secret"


async def test_deleting_a_directory_follows_no_link(driver: LocalDriver, root: Path, outside: Path) -> None:
    """What links lead to stays."""
    (root / "directory").mkdir()
    (root / "directory" / "to-directory").symlink_to(outside)
    (root / "directory" / "to-file").symlink_to(outside / "secret")
    await driver.delete("/directory")
    assert os.listdir(root) == []
    assert (outside / "secret").read_bytes() == b"secret"


@pytest.fixture
def deep_directory() -> Iterator[Path]:
    """A directory with 1,500 others in each other; not below `tmp_path`, which could not be removed either."""
    path = Path(tempfile.mkdtemp(dir="/dev/shm"))
    directory = os.open(path, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("d", dir_fd=directory)
        deeper = os.open("d", os.O_RDONLY, dir_fd=directory)
        os.close(directory)
        directory = deeper
    os.close(directory)
    yield path
    subprocess.run(["rm", "-rf", path], check=True)


async def test_a_directory_too_deep_to_be_deleted_is_an_error(deep_directory: Path) -> None:
    """Whoever made it: not a crash."""
    driver = LocalDriver(str(deep_directory))
    with pytest.raises((BackendFailure, TooManyOpenFiles)):
        await driver.delete("/d")


async def test_only_names_that_can_be_asked_for_are_listed(driver: LocalDriver, root: Path) -> None:
    """Whatever else a directory holds."""
    for name in (b"new\nline", b"esc\x1b[31m", b"colon:", b"space ", b"\xff", "ü".encode(), b"back\\slash", b"..."):
        Path(os.fsdecode(os.path.join(os.fsencode(root), name))).write_bytes(b"")
    assert [entry.name for entry in await driver.list("/")] == ["..."]


async def test_a_huge_file_is_not_read_beyond_the_limit(driver: LocalDriver, root: Path) -> None:
    """Not even one whose size could not be held in memory."""
    (root / "huge").write_bytes(b"")
    os.truncate(root / "huge", 1 << 42)
    with pytest.raises(ContentTooLarge):
        await driver.get_content("/huge", limit=256)
    (root / "large").write_bytes(bytes(10_000_000))
    assert [type(found) for found in await driver.get_contents(["/large"], limit=256)] == [ContentTooLarge]


# --- reading ----------------------------------------------------------------------------------------------------


def drop_from_memory(path: Path, offset: int) -> None:
    """Asks the kernel to keep no page of the file from `offset` on. It keeps those that something else just uses."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), offset, 0, os.POSIX_FADV_DONTNEED)


async def test_read_nowait_gives_what_is_cached_and_nothing_else(driver: LocalDriver, root: Path) -> None:
    """None while the disk would have to be asked; the bytes once they are in memory."""
    content = os.urandom(4 * MEBIBYTE)
    (root / "a").write_bytes(content)
    reader = await driver.open("/a")

    def reads_nothing() -> bool:
        drop_from_memory(root / "a", 0)
        return reader.read_nowait(MEBIBYTE, 4096) is None

    wait_until(reads_nothing, "the kernel to drop the pages")
    assert await reader.read(MEBIBYTE, 4096) == content[MEBIBYTE : MEBIBYTE + 4096]
    assert reader.read_nowait(MEBIBYTE, 4096) == content[MEBIBYTE : MEBIBYTE + 4096]
    reader.close()


async def test_read_nowait_gives_nothing_that_is_partly_cached(driver: LocalDriver, root: Path) -> None:
    """Never fewer bytes than asked for."""
    (root / "a").write_bytes(os.urandom(8 * MEBIBYTE))
    reader = await driver.open("/a")

    def reads_nothing() -> bool:
        drop_from_memory(root / "a", 4 * MEBIBYTE)
        found = reader.read_nowait(4 * MEBIBYTE - 4096, 8192)
        assert found is None or len(found) == 8192
        return found is None

    wait_until(reads_nothing, "the kernel to drop the pages")
    assert reader.read_nowait(4 * MEBIBYTE - 8192, 4096) is not None
    reader.close()


async def test_read_nowait_uses_its_buffer_again(driver: LocalDriver) -> None:
    """As documented: the bytes are the caller's only until the next call."""
    await driver.put_content("/a", b"aaaa")
    await driver.put_content("/b", b"bbbb")
    one, two = await driver.open("/a"), await driver.open("/b")
    first = one.read_nowait(0, 4)
    assert first == b"aaaa"
    assert two.read_nowait(0, 4) == b"bbbb"
    assert first == b"bbbb"


async def test_read_nowait_where_it_is_not_supported(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel is asked once only; reading in a thread goes on."""
    calls = 0

    def unsupported(*arguments: object) -> int:
        nonlocal calls
        calls += 1
        raise OSError(errno.EOPNOTSUPP, "not supported")

    monkeypatch.setattr(os, "preadv", unsupported)
    (root / "a").write_bytes(b"content")
    driver = LocalDriver(str(root))
    reader = await driver.open("/a")
    assert reader.read_nowait(0, 7) is None
    assert reader.read_nowait(0, 7) is None
    assert calls == 1
    assert await reader.read(0, 7) == b"content"


async def test_a_short_read_of_the_kernel_is_completed(
    driver: LocalDriver, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal or a network file system may cut any read short."""
    real = os.pread
    monkeypatch.setattr(os, "pread", lambda number, length, offset: real(number, min(length, 7), offset))
    content = os.urandom(100)
    (root / "a").write_bytes(content)
    reader = await driver.open("/a")
    assert await reader.read(5, 50) == content[5:55]
    assert await driver.get_content("/a", limit=100) == content


async def test_a_closed_reader_reads_nothing(driver: LocalDriver) -> None:
    """Least of all what has got its descriptor since."""
    await driver.put_content("/a", b"content")
    reader = await driver.open("/a")
    reader.close()
    with pytest.raises(BackendFailure):
        reader.read_nowait(0, 4)
    with pytest.raises(BackendFailure):
        await reader.read(0, 4)


async def test_a_reader_outlives_the_name(driver: LocalDriver) -> None:
    """As in any file system, a deleted file can be read while it is open."""
    await driver.put_content("/a", b"content")
    reader = await driver.open("/a")
    await driver.delete("/a")
    assert await reader.read(0, 7) == b"content"


@pytest.mark.parametrize("parent", [None, "/dev/shm"], ids=["disk", "tmpfs"])
async def test_more_than_five_gibibytes(parent: str | None) -> None:
    """Offsets and sizes beyond 32 bits, in a sparse file."""
    size = 5 * GIBIBYTE + 1
    with tempfile.TemporaryDirectory(dir=parent) as directory:
        driver = LocalDriver(directory)
        writer = await driver.writer("/a", append=True)
        await writer.truncate(size)
        await writer.write([b"the end"])
        assert writer.size == size + 7
        await writer.flush()
        await writer.close()
        reader = await driver.open("/a")
        assert reader.size == size + 7
        assert await reader.read(size - 1, 100) == b"\0the end"
        reader.close()


# --- making files -----------------------------------------------------------------------------------------------


async def test_new_files_have_the_owner_of_their_directory(driver: LocalDriver, root: Path) -> None:
    """So that a registry with a user of its own can go on using what root has made."""
    os.chown(root, 1234, 4321)
    await driver.put_content("/a/b", b"")
    await put(driver, "/c/d", b"")
    await driver.make_directory("/e")
    await driver.move("/c/d", "/f/g")
    for name in ("a", "a/b", "c", "e", "f", "f/g"):
        status = os.stat(root / name)
        assert (name, status.st_uid, status.st_gid) == (name, 1234, 4321)


async def test_new_files_obey_the_umask(driver: LocalDriver, root: Path) -> None:
    """0666 and 0777 without it, as the registry makes them."""
    before = os.umask(0o027)
    try:
        await driver.put_content("/a/b", b"")
        await put(driver, "/a/c", b"")
    finally:
        os.umask(before)
    modes = {name: stat.S_IMODE(os.stat(root / name).st_mode) for name in ("a", "a/b", "a/c")}
    assert modes == {"a": 0o750, "a/b": 0o640, "a/c": 0o640}


class Trace:
    """What was done to names and disks, in order, from the real calls."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
        self.calls: list[str] = []
        self._root = str(root)
        fsync, rename, mkdir, link = os.fsync, os.rename, os.mkdir, os.link

        def traced_fsync(number: int) -> None:
            self.calls.append(f"fsync {self._name(number)}")
            fsync(number)

        def traced_rename(source: str, destination: str, *, src_dir_fd: int, dst_dir_fd: int) -> None:
            self.calls.append(f"rename {self._name(src_dir_fd, source)} {self._name(dst_dir_fd, destination)}")
            rename(source, destination, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)

        def traced_mkdir(name: str, *, dir_fd: int) -> None:
            self.calls.append(f"mkdir {self._name(dir_fd, name)}")
            mkdir(name, dir_fd=dir_fd)

        def traced_link(source: str, destination: str, *, dst_dir_fd: int, follow_symlinks: bool) -> None:
            self.calls.append(f"link {self._shown(os.readlink(source))} {self._name(dst_dir_fd, destination)}")
            link(source, destination, dst_dir_fd=dst_dir_fd, follow_symlinks=follow_symlinks)

        monkeypatch.setattr(os, "fsync", traced_fsync)
        monkeypatch.setattr(os, "rename", traced_rename)
        monkeypatch.setattr(os, "mkdir", traced_mkdir)
        monkeypatch.setattr(os, "link", traced_link)

    def _name(self, directory: int, name: str = "") -> str:
        return self._shown(os.path.join(os.readlink(f"/proc/self/fd/{directory}"), name))

    def _shown(self, path: str) -> str:
        path = path.rstrip("/")
        if path.endswith(" (deleted)"):
            return "NAMELESS"
        return "TEMPORARY" if path.endswith(".tmp") else path.removeprefix(self._root) or "/"


async def test_content_is_durable_before_it_is_seen(
    driver: LocalDriver, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Directories from above, then the bytes, then the name; each synced before the next."""
    trace = Trace(monkeypatch, root)
    await driver.put_content("/a/b/c", b"content")
    assert trace.calls == [
        "mkdir /a",
        "fsync /",
        "mkdir /a/b",
        "fsync /a",
        "fsync NAMELESS",
        "link NAMELESS /a/b/c",
        "fsync /a/b",
    ]


async def test_content_that_is_replaced(driver: LocalDriver, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Has another name first, because only a rename replaces: one that a crash can leave."""
    await driver.put_content("/a/b", b"content")
    trace = Trace(monkeypatch, root)
    await driver.put_content("/a/b", b"another")
    assert trace.calls == ["fsync TEMPORARY", "rename TEMPORARY /a/b", "fsync /a"]


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL])
async def test_content_where_files_have_names(
    driver: LocalDriver, root: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """On a file system that has no others it is renamed to its place as well."""
    real = os.open

    def refuse(path: str, flags: int, *arguments: int, **options: int) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(number, os.strerror(number))
        return real(path, flags, *arguments, **options)

    monkeypatch.setattr(os, "open", refuse)
    await driver.put_content("/a/b", b"content")
    assert (root / "a" / "b").read_bytes() == b"content"
    assert os.listdir(root / "a") == ["b"]


async def test_a_directory_appears_with_its_file(
    driver: LocalDriver, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is made elsewhere, and renamed; nothing is left there."""
    await driver.make_directory("/tags")
    await driver.make_directory("/uploads")
    trace = Trace(monkeypatch, root)
    await driver.put_directory("/tags/v1", "current/link", b"content", scratch="/uploads/1")
    assert (root / "tags" / "v1" / "current" / "link").read_bytes() == b"content"
    assert os.listdir(root / "uploads") == []
    assert trace.calls[-3:] == ["rename /uploads/1 /tags/v1", "fsync /tags", "fsync /uploads"]
    assert [call for call in trace.calls if "/tags" in call] == trace.calls[-3:-1]


async def test_a_directory_that_is_there(driver: LocalDriver, root: Path) -> None:
    """Keeps what it has, and has the file as well; an empty one is replaced."""
    await driver.put_content("/tags/v1/index", b"old")
    await driver.make_directory("/tags/v2")
    for name in ("v1", "v2"):
        await driver.put_directory(f"/tags/{name}", "current/link", b"content", scratch="/uploads/1")
        assert (root / "tags" / name / "current" / "link").read_bytes() == b"content"
    assert (root / "tags" / "v1" / "index").read_bytes() == b"old"
    assert os.listdir(root / "uploads") == []


async def test_a_directory_in_whose_place_something_else_is(driver: LocalDriver, root: Path, tmp_path: Path) -> None:
    """It is never followed nor replaced."""
    (root / "tags").mkdir()
    outside = tmp_path / "outside"
    outside.mkdir()
    (root / "tags" / "v1").symlink_to(outside)
    with pytest.raises(DriverError):
        await driver.put_directory("/tags/v1", "current/link", b"content", scratch="/uploads/1")
    assert os.listdir(outside) == []
    assert (root / "tags" / "v1").is_symlink()


async def test_content_that_many_put_at_once(driver: LocalDriver, root: Path) -> None:
    """One of them is there, whole, and nothing else."""
    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(driver.put_content, "/a/b", bytes([number]) * 1000)
    assert len(set((root / "a" / "b").read_bytes())) == 1
    assert os.listdir(root / "a") == ["b"]


async def test_a_move_is_durable(driver: LocalDriver, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The new name first, then that the old one is gone."""
    await driver.put_content("/a/b", b"content")
    trace = Trace(monkeypatch, root)
    await driver.move("/a/b", "/c/d")
    assert trace.calls == ["mkdir /c", "fsync /", "rename /a/b /c/d", "fsync /c", "fsync /a"]


async def test_a_publication_is_durable(driver: LocalDriver, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bytes before the name, then both directories."""
    await put(driver, "/a/b", b"content")
    trace = Trace(monkeypatch, root)
    async with await driver.seal("/a/b") as sealed:
        await sealed.publish("/c/d")
    assert trace.calls == ["fsync /a/b", "mkdir /c", "fsync /", "rename /a/b /c/d", "fsync /c", "fsync /a"]


async def test_a_flush_makes_bytes_and_name_durable(
    driver: LocalDriver, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name once, the bytes each time."""
    trace = Trace(monkeypatch, root)
    writer = await driver.writer("/a/b", append=True)
    await writer.flush()
    await writer.flush()
    await writer.close()
    assert trace.calls == ["mkdir /a", "fsync /", "fsync /a/b", "fsync /a", "fsync /a/b"]


async def test_a_flush_that_failed_fails_for_ever(driver: LocalDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel tells of lost bytes once only."""
    writer = await driver.writer("/a", append=True)
    await writer.write([b"content"])

    def fail(number: int) -> None:
        raise OSError(errno.EIO, "lost")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(BackendFailure):
            await writer.flush()
    with pytest.raises(BackendFailure):
        await writer.flush()
    await writer.close()


async def test_a_short_write_of_the_kernel_is_completed(
    driver: LocalDriver, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of a buffer, at its end, and over several."""
    real = os.pwritev

    def short(number: int, buffers: list[memoryview], offset: int) -> int:
        return real(number, [memoryview(b"".join(buffers))[:7]], offset)

    monkeypatch.setattr(os, "pwritev", short)
    writer = await driver.writer("/a", append=True)
    await writer.write([b"01234567", b"89", b"abcd", b"efghijklmnopqrstuvwxyz"])
    assert writer.size == 36
    await writer.close()
    assert (root / "a").read_bytes() == b"0123456789abcdefghijklmnopqrstuvwxyz"


# --- storage that fails -----------------------------------------------------------------------------------------


async def test_a_full_disk(driver: LocalDriver, root: Path) -> None:
    """The writer knows how much is there, and content that does not fit leaves nothing behind."""
    with tmpfs(root / "small", "size=1m"):
        writer = await driver.writer("/small/a", append=True)
        with pytest.raises(StorageFull):
            await writer.write([b"x" * 700_000, b"y" * 700_000])
        assert writer.size == os.stat(root / "small" / "a").st_size
        assert 700_000 <= writer.size < 1_400_000
        await writer.truncate(900_000)
        await writer.close()
        with pytest.raises(StorageFull):
            await driver.put_content("/small/b", bytes(500_000))
        foreign = os.open(root / "small" / "a", os.O_WRONLY | os.O_APPEND)
        with pytest.raises(StorageFull):
            await driver.seal("/small/a")
        os.close(foreign)
        assert os.listdir(root / "small") == ["a"]


async def test_no_inodes_left(driver: LocalDriver, root: Path) -> None:
    """Full is full."""
    with tmpfs(root / "small", "nr_inodes=3"):
        await driver.put_content("/small/a", b"")
        await driver.put_content("/small/b", b"")
        with pytest.raises(StorageFull):
            await driver.put_content("/small/c", b"")


async def test_a_read_only_disk(driver: LocalDriver, root: Path) -> None:
    """It can be read, and says what it is when it should be changed."""
    with tmpfs(root / "disk", "size=1m"):
        await driver.put_content("/disk/a", b"content")
        subprocess.run(["mount", "-o", "remount,ro", root / "disk"], check=True)
        assert await driver.get_content("/disk/a", limit=10) == b"content"
        for method in (
            driver.put_content("/disk/b", b""),
            driver.writer("/disk/a", append=True),
            driver.move("/disk/a", "/disk/b"),
            driver.delete("/disk/a"),
            driver.make_directory("/disk/d"),
        ):
            with pytest.raises(StorageReadOnly):
                await method


async def test_a_move_to_another_file_system(driver: LocalDriver, root: Path) -> None:
    """Not by copying, which would not be atomic: the file stays where it is."""
    await driver.put_content("/a", b"content")
    with tmpfs(root / "other", "size=1m"):
        with pytest.raises(UnsupportedByDriver):
            await driver.move("/a", "/other/a")
        async with await driver.seal("/a") as sealed:
            with pytest.raises(UnsupportedByDriver):
                await sealed.publish("/other/a")
        assert os.listdir(root / "other") == []
    assert await driver.get_content("/a", limit=10) == b"content"


async def test_no_descriptor_left(driver: LocalDriver, root: Path) -> None:
    """It is said, and passes."""
    await driver.put_content("/a", b"content")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with ExitStack() as stack:
        resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 1, hard))
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        readers = []
        with pytest.raises(TooManyOpenFiles):
            for _ in range(10):
                readers.append(await driver.open("/a"))  # noqa: PERF401 - what was opened before the error counts
    assert await driver.get_content("/a", limit=10) == b"content"


# --- foreign writers --------------------------------------------------------------------------------------------


class ForeignWriter:
    """Another process that opens a file for appending, as a registry does, and writes when it is told to."""

    _PROGRAM = """if True:
        import os, sys
        number = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND)
        print("open", flush=True)
        for line in sys.stdin:
            os.write(number, line.strip().encode())
            print("written", flush=True)
    """

    def __init__(self, path: Path) -> None:
        self._inode = os.stat(path).st_ino
        self._process = subprocess.Popen(
            [sys.executable, "-c", self._PROGRAM, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def wait_until_open(self) -> None:
        assert self._process.stdout
        assert self._process.stdout.readline() == "open\n"

    def is_waiting(self) -> bool:
        """Whether the kernel has asked for the lease on the file to be given back."""
        with open("/proc/locks") as locks:
            return any("LEASE" in line and "BREAKING" in line and f":{self._inode} " in line for line in locks)

    def write(self, content: str) -> None:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(f"{content}\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == "written\n"

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.fixture
def foreign_writer() -> Iterator[Callable[[Path], ForeignWriter]]:
    writers: list[ForeignWriter] = []

    def start(path: Path) -> ForeignWriter:
        writers.append(ForeignWriter(path))
        return writers[-1]

    yield start
    for writer in writers:
        writer.end()


@pytest.fixture(params=[None, "/dev/shm"], ids=["disk", "tmpfs"])
def shared(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A storage directory, on each file system that leases work on."""
    path = Path(tempfile.mkdtemp(dir=request.param))
    yield path
    shutil.rmtree(path)


def leases_of(path: Path) -> list[str]:
    inode = os.stat(path).st_ino
    with open("/proc/locks") as locks:
        return [line for line in locks if "LEASE" in line and f":{inode} " in line]


async def test_a_file_that_nobody_writes_is_sealed_in_place(shared: Path) -> None:
    """No copy is made, and publishing it moves the same inode."""
    driver = LocalDriver(str(shared))
    await put(driver, "/upload/data", b"content")
    inode = os.stat(shared / "upload" / "data").st_ino
    async with await driver.seal("/upload/data") as sealed:
        assert os.listdir(shared / "upload") == ["data"]
        assert len(leases_of(shared / "upload" / "data")) == 1
        await sealed.publish("/blob/data")
    assert os.stat(shared / "blob" / "data").st_ino == inode
    assert leases_of(shared / "blob" / "data") == []
    assert os.listdir(shared / "upload") == []


async def test_a_file_that_another_process_writes_is_copied(
    shared: Path, foreign_writer: Callable[[Path], ForeignWriter]
) -> None:
    """What that process writes later does not get into what is published."""
    driver = LocalDriver(str(shared))
    await put(driver, "/upload/data", b"content")
    foreign = foreign_writer(shared / "upload" / "data")
    foreign.wait_until_open()
    async with await driver.seal("/upload/data") as sealed:
        assert sealed.version is None
        foreign.write("-during")
        assert await sealed.read(0, 100) == b"content"
        await sealed.publish("/blob/data")
    foreign.write("-after")
    assert (shared / "blob" / "data").read_bytes() == b"content"
    assert (shared / "upload" / "data").read_bytes() == b"content-during-after"
    assert os.listdir(shared / "upload") == ["data"]


async def test_a_foreign_writer_waits_until_the_file_is_unsealed(
    shared: Path, foreign_writer: Callable[[Path], ForeignWriter]
) -> None:
    """He is only delayed, and our process survives his asking."""
    driver = LocalDriver(str(shared))
    await put(driver, "/data", b"content")
    async with await driver.seal("/data") as sealed:
        foreign = foreign_writer(shared / "data")
        await until(foreign.is_waiting)
        assert await sealed.read(0, 100) == b"content"
    foreign.wait_until_open()
    foreign.write("-more")
    assert (shared / "data").read_bytes() == b"content-more"


async def test_a_foreign_writer_who_comes_before_the_publication(
    shared: Path, foreign_writer: Callable[[Path], ForeignWriter]
) -> None:
    """He gets the file of the upload; what is published is another."""
    driver = LocalDriver(str(shared))
    await put(driver, "/upload/data", b"content")
    async with await driver.seal("/upload/data") as sealed:
        foreign = foreign_writer(shared / "upload" / "data")
        await until(foreign.is_waiting)
        await sealed.publish("/blob/data")
    foreign.wait_until_open()
    foreign.write("-more")
    assert (shared / "blob" / "data").read_bytes() == b"content"
    assert (shared / "upload" / "data").read_bytes() == b"content-more"
    assert os.listdir(shared / "blob") == ["data"]


async def test_a_foreign_writer_who_comes_during_the_publication(
    shared: Path, foreign_writer: Callable[[Path], ForeignWriter], monkeypatch: pytest.MonkeyPatch
) -> None:
    """He opens the upload just before it is renamed, and must not be able to write into the blob."""
    driver = LocalDriver(str(shared))
    await put(driver, "/upload/data", b"content")
    inode = os.stat(shared / "upload" / "data").st_ino
    came: list[ForeignWriter] = []
    real = os.rename

    def rename(*arguments: object, **options: object) -> None:
        if not came:
            came.append(foreign_writer(shared / "upload" / "data"))
            trio.from_thread.run(until, came[0].is_waiting)
        real(*arguments, **options)  # type: ignore[arg-type]

    async with await driver.seal("/upload/data") as sealed:
        monkeypatch.setattr(os, "rename", rename)
        await sealed.publish("/blob/data")
    came[0].wait_until_open()
    came[0].write("-more")
    assert (shared / "blob" / "data").read_bytes() == b"content"
    assert os.stat(shared / "blob" / "data").st_ino != inode
    assert os.listdir(shared / "blob") == ["data"]


def take_the_lease_away(path: Path) -> None:
    """Does what the kernel does after 45 s, when somebody has waited for the file for that long."""
    for name in os.listdir("/proc/self/fd"):
        if target(name) == str(path):
            fcntl.fcntl(int(name), fcntl.F_SETLEASE, fcntl.F_UNLCK)


async def test_a_lease_that_was_broken_by_force(shared: Path) -> None:
    """What may have been changed is not published, and the upload stays."""
    driver = LocalDriver(str(shared))
    await put(driver, "/upload/data", b"content")
    async with await driver.seal("/upload/data") as sealed:
        take_the_lease_away(shared / "upload" / "data")
        (shared / "upload" / "data").write_bytes(b"changed")
        with pytest.raises(ContentChanged):
            await sealed.publish("/blob/data")
    assert os.listdir(shared / "blob") == []
    assert (shared / "upload" / "data").read_bytes() == b"changed"


async def test_a_lease_that_was_broken_by_force_during_the_publication(
    shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was published for a moment becomes an upload again."""
    driver = LocalDriver(str(shared))
    await put(driver, "/upload/data", b"content")
    real = os.rename
    changed: list[int] = []

    def rename(*arguments: object, **options: object) -> None:
        if not changed:
            take_the_lease_away(shared / "upload" / "data")
            changed.append((shared / "upload" / "data").write_bytes(b"changed"))
        real(*arguments, **options)  # type: ignore[arg-type]

    async with await driver.seal("/upload/data") as sealed:
        monkeypatch.setattr(os, "rename", rename)
        with pytest.raises(ContentChanged):
            await sealed.publish("/blob/data")
    assert os.listdir(shared / "blob") == []
    assert (shared / "upload" / "data").read_bytes() == b"changed"


async def test_no_space_for_the_copy_that_a_foreign_writer_makes_necessary(
    driver: LocalDriver,
    root: Path,
    foreign_writer: Callable[[Path], ForeignWriter],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The file does not stay published: he could write into it."""
    real = os.rename
    came: list[ForeignWriter] = []

    def rename(*arguments: object, **options: object) -> None:
        if not came:
            came.append(foreign_writer(root / "small" / "data"))
            trio.from_thread.run(until, came[0].is_waiting)
        real(*arguments, **options)  # type: ignore[arg-type]

    with tmpfs(root / "small", "size=1m"):
        await put(driver, "/small/data", b"x" * 700_000)
        async with await driver.seal("/small/data") as sealed:
            monkeypatch.setattr(os, "rename", rename)
            with pytest.raises(StorageFull):
                await sealed.publish("/small/blob")
        assert os.listdir(root / "small") == ["data"]
        came[0].end()


async def test_the_same_content_published_twice_at_once(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another node's file over ours is as good, and stays."""
    driver = LocalDriver(str(shared))
    await put(driver, "/upload/data", b"content")
    real = os.rename

    def rename(*arguments: object, **options: object) -> None:
        real(*arguments, **options)  # type: ignore[arg-type]
        (shared / "other").write_bytes(b"content")
        real(shared / "other", shared / "blob" / "data")

    async with await driver.seal("/upload/data") as sealed:
        monkeypatch.setattr(os, "rename", rename)
        await sealed.publish("/blob/data")
    assert (shared / "blob" / "data").read_bytes() == b"content"
    assert os.listdir(shared / "upload") == []


async def test_another_file_in_the_place_of_the_sealed_one(shared: Path) -> None:
    """It was not verified, so it is not published."""
    driver = LocalDriver(str(shared))
    await put(driver, "/upload/data", b"content")
    async with await driver.seal("/upload/data") as sealed:
        (shared / "other").write_bytes(b"unverified")
        os.rename(shared / "other", shared / "upload" / "data")
        with pytest.raises(ContentChanged):
            await sealed.publish("/blob/data")
    assert os.listdir(shared / "blob") == []
    assert (shared / "upload" / "data").read_bytes() == b"unverified"


async def test_a_sealed_file_that_was_removed(shared: Path) -> None:
    """An upload that somebody cancels in the meantime is not published."""
    driver = LocalDriver(str(shared))
    await put(driver, "/upload/data", b"content")
    async with await driver.seal("/upload/data") as sealed:
        os.unlink(shared / "upload" / "data")
        with pytest.raises(ContentChanged):
            await sealed.publish("/blob/data")
    assert os.listdir(shared / "blob") == []


async def test_a_writer_for_a_sealed_file_is_refused_at_once(shared: Path) -> None:
    """Instead of waiting for the lease in a thread."""
    driver = LocalDriver(str(shared))
    await put(driver, "/data", b"content")
    with trio.fail_after(5):
        async with await driver.seal("/data"):
            with pytest.raises(ContentChanged):
                await driver.writer("/data", append=True)


async def test_a_foreign_overwrite_of_the_same_size_is_noticed(driver: LocalDriver, root: Path) -> None:
    """By the time of the change, not only by the size."""
    writer = await driver.writer("/a", append=True)
    await writer.write([b"content"])
    with open(root / "a", "r+b") as file:
        file.write(b"C")
    with pytest.raises(ContentChanged):
        await writer.flush()
    await writer.close()


# --- threads that are left behind -------------------------------------------------------------------------------


class Gate:
    """Holds up a function of `os` in its thread, until it is opened; with `once` only its first call."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str, *, once: bool = False) -> None:
        self.reached = threading.Event()
        self.passed = threading.Event()
        self._open = threading.Event()
        real = getattr(os, name)

        def gated(*arguments: object, **options: object) -> object:
            if threading.current_thread() is threading.main_thread() or (once and self.reached.is_set()):
                return real(*arguments, **options)
            self.reached.set()
            assert self._open.wait(20)
            try:
                return real(*arguments, **options)
            finally:
                self.passed.set()

        monkeypatch.setattr(os, name, gated)

    def open(self) -> None:
        self._open.set()


async def cancelled_at(gate: Gate, operation: Callable[[], object]) -> None:
    """Cancels `operation` when it has reached the gate."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(operation)  # type: ignore[arg-type]
        await until(gate.reached.is_set)
        nursery.cancel_scope.cancel()


Change = Callable[[LocalDriver], Awaitable[None]]


def appending(path: str, content: bytes) -> Change:
    async def change(driver: LocalDriver) -> None:
        writer = await driver.writer(path, append=True)
        await writer.write([content])
        await writer.flush()
        await writer.close()

    return change


def emptying(path: str) -> Change:
    async def change(driver: LocalDriver) -> None:
        await (await driver.writer(path, append=False)).close()

    return change


def cutting(path: str, size: int) -> Change:
    async def change(driver: LocalDriver) -> None:
        writer = await driver.writer(path, append=True)
        await writer.truncate(size)
        await writer.close()

    return change


def putting(path: str, content: bytes) -> Change:
    return lambda driver: driver.put_content(path, content)


def deleting(path: str) -> Change:
    return lambda driver: driver.delete(path)


def moving(source: str, destination: str) -> Change:
    return lambda driver: driver.move(source, destination)


def publishing(source: str, destination: str) -> Change:
    async def change(driver: LocalDriver) -> None:
        async with await driver.seal(source) as sealed:
            await sealed.publish(destination)

    return change


async def test_an_abandoned_opening_leaks_no_descriptor(driver: LocalDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    """The caller can go at once, and what is opened for nobody is closed."""
    await driver.put_content("/a", b"content")
    driver._quick_root = None  # as on storage that has to be waited for
    for operation in (
        lambda: driver.open("/a"),
        lambda: driver.writer("/a", append=True),
        lambda: driver.seal("/a"),
    ):
        before = open_descriptors()
        with monkeypatch.context() as patch:
            gate = Gate(patch, "open")
            await cancelled_at(gate, operation)
            gate.open()
            await until(lambda before=before: open_descriptors() <= before)  # type: ignore[misc]


async def test_what_is_in_memory_needs_no_thread(driver: LocalDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    """A link that was just read, and its blob, are looked at without a trip to a thread."""
    await driver.put_content("/link", b"content")
    await driver.get_content("/link", limit=100)

    async def no_thread(*arguments: object, **options: object) -> None:
        raise AssertionError("a thread was used")

    monkeypatch.setattr(trio.to_thread, "run_sync", no_thread)
    assert await driver.get_content("/link", limit=100) == b"content"
    assert (await driver.stat("/link")).size == 7
    assert await driver.get_contents(["/link"] * 4, limit=100) == [b"content"] * 4
    (await driver.open("/link")).close()


async def test_what_was_never_looked_at(driver: LocalDriver, root: Path) -> None:
    """A name that the kernel has not in memory, there or not, is asked for in a thread."""
    (root / "new").write_bytes(b"content")
    subprocess.run(["sync"], check=True)
    with suppress(OSError):
        Path("/proc/sys/vm/drop_caches").write_text("2")
    assert await driver.get_content("/new", limit=100) == b"content"
    with pytest.raises(PathNotFound):
        await driver.stat("/never")


async def test_many_at_once_keep_their_order(driver: LocalDriver, root: Path) -> None:
    """More than one thread takes part, and every answer stands in its place."""
    for number in range(3000):
        if number % 3:
            (root / f"f{number}").write_bytes(b"x" * (number % 7))
    found = await driver.stat_many([f"/f{number}" for number in range(3000)])
    sizes = [one.size if isinstance(one, FileInfo) else None for one in found]
    assert sizes == [number % 7 if number % 3 else None for number in range(3000)]


async def test_an_abandoned_copy_is_removed(driver: LocalDriver, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sealing by copying can be cancelled in the middle."""
    await put(driver, "/upload/data", b"content")
    writer = await driver.writer("/upload/data", append=True)
    before = open_descriptors()
    gate = Gate(monkeypatch, "copy_file_range")
    await cancelled_at(gate, lambda: driver.seal("/upload/data"))
    assert os.listdir(root / "upload") == ["data"]
    gate.open()
    await until(lambda: open_descriptors() <= before)
    await writer.close()


async def test_a_cancelled_write_goes_on_before_the_next_operation(
    driver: LocalDriver, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writer stays usable, and its size is right again."""
    writer = await driver.writer("/a", append=True)
    gate = Gate(monkeypatch, "pwritev")
    await cancelled_at(gate, lambda: writer.write([b"first"]))
    gate.open()
    await writer.write([b"second"])
    await writer.flush()
    assert writer.size == 11
    await writer.close()
    assert (root / "a").read_bytes() == b"firstsecond"


async def test_closing_under_an_abandoned_thread_is_safe(
    driver: LocalDriver, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The descriptor is closed when the thread has ended, not while it writes to it."""
    before = open_descriptors()
    writer = await driver.writer("/a", append=True)
    gate = Gate(monkeypatch, "pwritev")
    await cancelled_at(gate, lambda: writer.write([b"content"]))
    await writer.close()
    assert open_descriptors() != before
    gate.open()
    await until(lambda: open_descriptors() == before)
    assert (root / "a").read_bytes() == b"content"


@pytest.mark.parametrize(
    ("held", "older", "newer", "expected"),
    [
        ("pwritev", appending("/up/a", b"OLD!"), appending("/up/a", b"new!"), {"/up/a": b"beforeOLD!new!"}),
        ("ftruncate", emptying("/up/a"), appending("/up/a", b"new!"), {"/up/a": b"new!"}),
        ("ftruncate", cutting("/up/a", 2), appending("/up/a", b"new!"), {"/up/a": b"benew!"}),
        ("rename", putting("/up/a", b"older"), putting("/up/a", b"newer"), {"/up/a": b"newer"}),
        ("unlink", deleting("/up/a"), putting("/up/a", b"newer"), {"/up/a": b"newer"}),
        ("scandir", deleting("/up"), putting("/up/b", b"newer"), {"/up/b": b"newer"}),
        ("rename", moving("/up/a", "/up/b"), putting("/up/b", b"newer"), {"/up/b": b"newer"}),
        ("rename", moving("/up/a", "/b"), putting("/up/a", b"newer"), {"/b": b"before", "/up/a": b"newer"}),
        ("rename", publishing("/up/a", "/b"), putting("/up/a", b"newer"), {"/b": b"before", "/up/a": b"newer"}),
    ],
)
async def test_a_change_that_was_given_up_never_comes_after_a_newer_one(
    driver: LocalDriver,
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    held: str,
    older: Change,
    newer: Change,
    expected: dict[str, bytes],
) -> None:
    """Whoever changes the same place waits for it; elsewhere all goes on."""
    await put(driver, "/up/a", b"before")
    gate = Gate(monkeypatch, held, once=True)
    await cancelled_at(gate, lambda: older(driver))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(newer, driver)
        await driver.put_content("/upper", b"elsewhere")
        # Longer than the newer change would take if it did not wait.
        await trio.testing.wait_all_tasks_blocked(0.2)
        gate.open()
    await until(gate.passed.is_set)
    assert await files_in(driver) == expected | {"/upper": b"elsewhere"}


async def test_a_directory_whose_removal_was_given_up(
    driver: LocalDriver, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who makes it again has it."""
    await driver.make_directory("/a")
    gate = Gate(monkeypatch, "rmdir", once=True)
    await cancelled_at(gate, lambda: driver.remove_directory("/a"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(driver.make_directory, "/a")
        await trio.testing.wait_all_tasks_blocked(0.2)
        gate.open()
    await until(gate.passed.is_set)
    assert (root / "a").is_dir()


async def test_waiting_for_a_change_that_was_given_up_can_be_given_up(
    driver: LocalDriver, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not made then, and needs no thread to wait in."""
    writer = await driver.writer("/a", append=True)
    gate = Gate(monkeypatch, "pwritev", once=True)
    await cancelled_at(gate, lambda: writer.write([b"first"]))
    await writer.close()
    async with trio.open_nursery() as nursery:
        for _ in range(2 * WRITE_THREADS):
            nursery.start_soon(appending("/a", b"never"), driver)
        await trio.testing.wait_all_tasks_blocked(0.1)
        await driver.put_content("/b", b"elsewhere")
        nursery.cancel_scope.cancel()
    gate.open()
    await appending("/a", b" and last")(driver)
    assert (root / "a").read_bytes() == b"first and last"


async def test_a_change_that_never_began_is_not_made(
    driver: LocalDriver, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given up while all threads were taken, it keeps nobody waiting either."""
    gate = Gate(monkeypatch, "fsync")
    async with trio.open_nursery() as nursery:
        for number in range(WRITE_THREADS):
            nursery.start_soon(driver.put_content, f"/{number}", b"")
        await until(gate.reached.is_set)
        async with trio.open_nursery() as waiting:
            waiting.start_soon(driver.put_content, "/a", b"never")
            await trio.testing.wait_all_tasks_blocked()
            waiting.cancel_scope.cancel()
        gate.open()
    await driver.put_content("/b", b"")
    assert not (root / "a").exists()


async def test_failures_leak_no_descriptor(driver: LocalDriver, root: Path, outside: Path) -> None:
    """Nor does success."""
    os.mkfifo(root / "fifo")
    (root / "link").symlink_to(outside)
    await driver.put_content("/file", b"content")
    before = open_descriptors()
    paths = ["/fifo", "/link", "/link/secret", "/file", "/file/below", "/missing", "/"]
    for _ in range(3):
        await driver.stat_many(paths)
        await driver.get_contents(paths, limit=3)
        for path in paths:
            for method in (  # closed by nobody: that is what garbage collection is for
                driver.open(path),
                driver.list(path),
                driver.seal(path),
                driver.move(path, "/file/below"),
                driver.put_content(f"{path.rstrip('/')}/below", b""),
                driver.remove_directory(path),
            ):
                with suppress(DriverError):
                    await method
    assert open_descriptors() == before
