"""A registry's storage in a zip or tar archive, which is read without unpacking it."""

from __future__ import annotations

import gzip
import http.server
import io
import os
import random
import subprocess
import tarfile
import threading
import time
import uuid
import zipfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
import trio
from harness.commands import run
from harness.mount import COMMAND
from harness.object_stores import BUCKET, gateway
from harness.storage import Storage, digest_of

from layerfs.driver.inflated import GZIP, Inflated
from layerfs.driver.interface import FileReader, StorageDriver
from layerfs.driver.sources import open_driver
from layerfs.errors import (
    BackendFailure,
    DriverError,
    NotRegularFile,
    PathNotFound,
    StorageReadOnly,
    UnknownSource,
    UnsupportedByDriver,
)

USAGE = 1

_random = random.Random(1)
#: What cannot be compressed, what can be very much, what has a state in it, links, and nothing.
FILES = {
    "docker/registry/v2/blobs/random": _random.randbytes(5_000_000),
    "docker/registry/v2/blobs/zeros": bytes(20_000_000),
    "docker/registry/v2/blobs/mixed": b"".join(bytes([i % 251]) * 1000 + _random.randbytes(100) for i in range(9000)),
    "docker/registry/v2/blobs/empty": b"",
    "docker/registry/v2/repositories/a/_layers/link": b"sha256:" + b"a" * 64,
}
PLACES = (0, 1, 4095, 64 << 10, (4 << 20) - 3, 4 << 20, 4_999_999, 9_000_000, 19_999_000)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tree")
    for name, content in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
        os.utime(root / name, (1_700_000_000, 1_700_000_000))
    return root


def _zip(tree: Path, archive: Path, *options: str) -> None:
    run("zip", "-qr", *options, archive, "docker", cwd=tree)


def _tar(tree: Path, archive: Path, *options: str) -> None:
    run("tar", "-C", tree, *options, "-cf", archive, ".")


def _in_two_gzip_files(tree: Path, archive: Path) -> None:
    """As pigz and concatenation make them; padded with zeros, as tapes are."""
    _tar(tree, archive)
    content = archive.read_bytes()
    archive.write_bytes(
        gzip.compress(content[:7_000_001], 1) + bytes(700) + gzip.compress(content[7_000_001:], 1) + bytes(999)
    )


def _without_directories(tree: Path, archive: Path) -> None:
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        for name in FILES:
            packed.write(tree / name, name)


PACKERS: dict[str, Callable[[Path, Path], None]] = {
    "zip": _zip,
    "zip-stored": lambda tree, archive: _zip(tree, archive, "-0"),
    "zip-without-directories": _without_directories,
    "tar": _tar,
    "tar-old": lambda tree, archive: _tar(tree, archive, "--format=v7"),
    "tar-pax": lambda tree, archive: _tar(tree, archive, "--format=pax"),
    "tar-gzip": lambda tree, archive: _tar(tree, archive, "-z"),
    "tar-two-gzips": _in_two_gzip_files,
}


@pytest.fixture(scope="module", params=PACKERS)
def archive(request: pytest.FixtureRequest, tree: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A SOURCE."""
    file = tmp_path_factory.mktemp("archive") / "archive.bin"
    PACKERS[request.param](tree, file)
    return f"{request.param.partition('-')[0]}::{file}"


@pytest.fixture
async def driver(archive: str) -> AsyncIterator[StorageDriver]:
    driver = open_driver(archive)
    yield driver
    await driver.close()


async def _content(reader: FileReader) -> bytes:
    parts = [await reader.read(offset, 1 << 20) for offset in range(0, reader.size, 1 << 20)]
    return b"".join(parts)


# --- reading -----------------------------------------------------------------------------------------------------


async def test_all_of_it(driver: StorageDriver, tree: Path) -> None:
    """Every file and directory, with sizes, times and content, and nothing else."""
    waiting, found = ["/"], {}
    while waiting:
        path = waiting.pop()
        for entry in await driver.list(path):
            below = f"{path.rstrip('/')}/{entry.name}"
            info = await driver.stat(below)
            assert info.is_directory == entry.is_directory == (tree / below[1:]).is_dir()
            if entry.is_directory:
                waiting.append(below)
            else:
                assert info.modified_at == 1_700_000_000 * 10**9
                found[below[1:]] = await _content(await driver.open(below))
                assert info.size == len(found[below[1:]])
    assert found == FILES


async def test_parts_in_any_order_at_the_same_time(driver: StorageDriver) -> None:
    """As read-ahead and several programs ask for them: each gets its own."""
    wrong = []

    async def read(name: str, offset: int, length: int) -> None:
        reader = await driver.open(f"/{name}")
        if await reader.read(offset, length) != FILES[name][offset : offset + length]:
            wrong.append((name, offset, length))

    asked = [(name, offset, length) for name in FILES for offset in PLACES for length in (1, 70_000, 2 << 20)]
    random.Random(2).shuffle(asked)
    async with trio.open_nursery() as nursery:
        for each in asked:
            nursery.start_soon(read, *each)
    assert wrong == []


async def test_what_is_missing_and_what_is_none(driver: StorageDriver) -> None:
    with pytest.raises(PathNotFound):
        await driver.stat("/docker/registry/v3")
    with pytest.raises(PathNotFound):
        await driver.list("/docker/registry/v2/blobs/empty")
    with pytest.raises(NotRegularFile):
        await driver.open("/docker")
    assert await driver.get_content("/docker/registry/v2/blobs/empty", limit=1) == b""


async def test_nothing_can_be_changed(driver: StorageDriver) -> None:
    assert driver.capabilities.read_only
    for change in (
        driver.put_content("/docker/new", b""),
        driver.writer("/docker/new", append=False),
        driver.delete("/docker/registry/v2/blobs/empty"),
        driver.move("/docker/registry/v2/blobs/empty", "/docker/new"),
        driver.make_directory("/docker/new"),
        driver.seal("/docker/registry/v2/blobs/empty"),
    ):
        with pytest.raises(StorageReadOnly, match="archive"):
            await change


async def test_going_back_is_not_from_the_beginning(tmp_path: Path) -> None:
    """Compressed content is decompressed from near where it is wanted, with few states kept."""
    content = _random.randbytes(24_000_000)
    packed = gzip.compress(content, 1)
    asked = 0

    class Counting(FileReader):
        size = len(packed)

        def read_nowait(self, offset: int, length: int) -> None:
            return None

        async def read(self, offset: int, length: int) -> bytes:
            nonlocal asked
            part = packed[offset : offset + length]
            asked += len(part)
            return part

        def close(self) -> None:
            """Nothing is open."""

    inflated = Inflated(Counting(), name="x", window_bits=GZIP, states=4, limiter=trio.CapacityLimiter(1))
    for offset in range(23_500_000, -1, -500_000):
        assert await inflated.read(offset, 500_000) == content[offset : offset + 500_000]
    # Each time from the beginning would be 588 MB.
    assert asked < 250_000_000
    assert len(inflated._kept) <= 4


# --- what can be wrong ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("packer", ["zip", "tar", "tar-gzip"])
@pytest.mark.parametrize("part", [0.0, 0.01, 0.5, 0.9])
async def test_an_archive_that_is_cut_short(packer: str, part: float, tree: Path, tmp_path: Path) -> None:
    """Is an error that says so, and not a smaller registry."""
    archive = tmp_path / "archive.bin"
    PACKERS[packer](tree, archive)
    os.truncate(archive, int(archive.stat().st_size * part))
    driver = open_driver(f"{packer[:3]}::{archive}")
    with pytest.raises(DriverError, match=r"archive.*(damaged|short)"):
        await driver.list("/")
    await driver.close()


async def test_a_tar_that_is_damaged_in_the_middle(tree: Path, tmp_path: Path) -> None:
    """What comes after it is not left out silently."""
    archive = tmp_path / "archive.bin"
    _tar(tree, archive)
    content = bytearray(archive.read_bytes())
    at = content.index(b"ustar", len(content) // 2) - 257
    content[at : at + 100] = b"x" * 100
    archive.write_bytes(content)
    with pytest.raises(UnknownSource, match=f"no header at byte {at}"):
        await open_driver(f"tar::{archive}").list("/")


@pytest.mark.parametrize("packer", ["zip", "tar-gzip"])
async def test_content_that_is_damaged(packer: str, tree: Path, tmp_path: Path) -> None:
    """Compressed content that does not unpack is an error."""
    archive = tmp_path / "archive.bin"
    PACKERS[packer](tree, archive)
    content = bytearray(archive.read_bytes())
    content[1000:200_000] = bytes(199_000)
    archive.write_bytes(content)
    driver = open_driver(f"{packer[:3]}::{archive}")
    with pytest.raises((BackendFailure, UnknownSource), match="damaged"):
        for name in FILES:
            await _content(await driver.open(f"/{name}"))


async def test_names_that_lead_elsewhere_links_and_devices(tmp_path: Path) -> None:
    """Are left out; of what is there twice the last counts; a hard link is its file."""
    archive = tmp_path / "archive.bin"
    with tarfile.open(archive, "w") as packed:

        def add(name: str, content: bytes = b"", **fields: object) -> None:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            for field, value in fields.items():
                setattr(entry, field, value)
            packed.addfile(entry, io.BytesIO(content))

        add("./a/file", b"old")
        add("a//file", b"content")
        add("../outside", b"x")
        add("a/../../outside", b"x")
        add("/absolute/file", b"y")
        add("a/symbolic", type=tarfile.SYMTYPE, linkname="/etc/passwd")
        add("a/hard", type=tarfile.LNKTYPE, linkname="a/file")
        add("a/dangling", type=tarfile.LNKTYPE, linkname="../../etc/passwd")
        add("a/fifo", type=tarfile.FIFOTYPE)
        add("a/was", b"a file")
        add("a/was", type=tarfile.SYMTYPE, linkname="file")
        add("a/new\nline", b"")
    driver = open_driver(f"tar::{archive}")
    assert sorted(entry.name for entry in await driver.list("/")) == ["a", "absolute"]
    assert sorted(entry.name for entry in await driver.list("/a")) == ["file", "hard"]
    assert await driver.get_content("/a/file", limit=10) == b"content"
    assert await driver.get_content("/a/hard", limit=10) == b"content"
    assert await driver.get_content("/absolute/file", limit=10) == b"y"


async def test_a_header_that_claims_to_be_huge(tmp_path: Path) -> None:
    """Is refused without giving it memory."""
    entry = tarfile.TarInfo("pax")
    entry.type = tarfile.XHDTYPE
    entry.size = 8 << 30
    archive = tmp_path / "archive.bin"
    archive.write_bytes(entry.tobuf(tarfile.GNU_FORMAT) + bytes(1 << 20))
    with pytest.raises(UnknownSource, match="8589934592 bytes"):
        await open_driver(f"tar::{archive}").list("/")


@pytest.mark.parametrize("files", [[], ["a"]])
async def test_the_smallest_archives(files: list[str], tmp_path: Path) -> None:
    """Are archives."""
    with zipfile.ZipFile(tmp_path / "x", "w") as packed_zip:
        for name in files:
            packed_zip.writestr(name, b"")
    with tarfile.open(tmp_path / "y", "w") as packed_tar:
        for name in files:
            packed_tar.addfile(tarfile.TarInfo(name))
    for source in (f"zip::{tmp_path}/x", f"tar::{tmp_path}/y"):
        assert [entry.name for entry in await open_driver(source).list("/")] == files


async def test_what_cannot_be_read_in_parts(tree: Path, tmp_path: Path) -> None:
    """Of a zip that some of its files are, of others all of them; the line says what to do."""
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
        packed.writestr("bzip2", b"x" * 1000, zipfile.ZIP_BZIP2)
        packed.writestr("fine", b"y" * 1000, zipfile.ZIP_DEFLATED)
    driver = open_driver(f"zip::{tmp_path}/a.zip")
    with pytest.raises(UnsupportedByDriver, match="method 12"):
        await driver.open("/bzip2")
    assert await driver.get_content("/fine", limit=1000) == b"y" * 1000
    for option, advice in (("-J", "unxz"), ("-j", "bunzip2")):
        run("tar", "-C", tree, option, "-cf", tmp_path / "a.tar", "docker/registry/v2/repositories")
        with pytest.raises(UnknownSource, match=advice):
            await open_driver(f"tar::{tmp_path}/a.tar").list("/")


# --- far away ----------------------------------------------------------------------------------------------------


class _Ranges(http.server.SimpleHTTPRequestHandler):
    """Serves a directory with ranges of files, as web servers do and Python's does not."""

    def do_GET(self) -> None:
        wanted = self.headers.get("Range", "")
        if not wanted:
            super().do_GET()
            return
        first, last = (int(number) for number in wanted.removeprefix("bytes=").split("-"))
        content = Path(self.translate_path(self.path)).read_bytes()[first : last + 1]
        self.send_response(206)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Content-Range", f"bytes {first}-{first + len(content) - 1}/*")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Not to standard error."""


@pytest.fixture
def site(tmp_path: Path) -> Iterator[str]:
    def handler(*arguments: object) -> _Ranges:
        return _Ranges(*arguments, directory=str(tmp_path))

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("packer", ["zip", "tar-gzip"])
async def test_on_a_web_server(packer: str, tree: Path, tmp_path: Path, site: str) -> None:
    PACKERS[packer](tree, tmp_path / "backup.bin")
    driver = open_driver(f"{packer[:3]}::{site}/backup.bin")
    name = "docker/registry/v2/blobs/mixed"
    assert await _content(await driver.open(f"/{name}")) == FILES[name]
    await driver.close()
    with pytest.raises(PathNotFound, match=f"{site}/missing"):
        await open_driver(f"{packer[:3]}::{site}/missing").list("/")


async def test_in_an_object_store(tree: Path, tmp_path: Path) -> None:
    """By the driver of that store, with the options of its URL and the credentials that it finds."""
    _zip(tree, tmp_path / "backup.zip")
    store, prefix = gateway(), f"tests/{uuid.uuid4()}"
    os.environ.update(store.environment)
    store.client.put_object(Bucket=BUCKET, Key=f"{prefix}/backup.zip", Body=(tmp_path / "backup.zip").read_bytes())
    driver = open_driver(f"zip::s3://{BUCKET}/{prefix}/backup.zip?endpoint_url={store.endpoint}")
    name = "docker/registry/v2/blobs/mixed"
    assert await _content(await driver.open(f"/{name}")) == FILES[name]
    await driver.close()
    missing = open_driver(f"zip::s3://{BUCKET}/{prefix}/missing.zip?endpoint_url={store.endpoint}")
    with pytest.raises(PathNotFound, match=f"s3://{BUCKET}/{prefix}/missing.zip'"):
        await missing.list("/")
    await missing.close()


# --- as SOURCE ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def backup(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with backups of a storage that has one layer, `LAYER`."""
    directory = tmp_path_factory.mktemp("backup")
    storage = Storage.create(directory / "storage")
    storage.put_layer("team/app", LAYER)
    run("tar", "-C", directory / "storage", "-czf", directory / "right.tar.gz", "docker")
    run("tar", "-C", directory, "-cf", directory / "deep.tar", "storage")
    run("zip", "-qr", directory / "deep.zip", "storage", cwd=directory)
    (directory / "latest").symlink_to("right.tar.gz")
    return directory


LAYER = _random.randbytes(300_000)


@pytest.mark.parametrize(
    "source",
    [
        "tar::{}/right.tar.gz",
        "tar://::{}/latest",
        "TAR::file://{}/right.tar.gz",
        "zip://storage::{}/deep.zip",
        "tar://storage/::local://{}/deep.tar",
    ],
)
def test_a_source(source: str, backup: Path) -> None:
    """As fsspec writes it, and shorter; what the path leads to is meant."""
    assert run(COMMAND, "ls", source.format(backup)).stdout.split() == ["team/app"]
    done = subprocess.run(
        [COMMAND, "cat", source.format(backup), f"team/app@{digest_of(LAYER)}"], capture_output=True, check=True
    )
    assert done.stdout == LAYER


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("zip::{0}/deep.zip", "name 'zip://storage::{0}/deep.zip'"),
        ("zip://storage/docker::{0}/deep.zip", "name 'zip://storage::{0}/deep.zip'"),
        ("zip::{0}/missing.zip", "No such file or directory. Check the name"),
        ("zip::{0}/right.tar.gz", "write tar:: in place of zip::"),
        ("tar::{0}/deep.zip", "write zip:: in place of tar::"),
        ("zip::{0}/storage", "not a regular file"),
        ("{0}/right.tar.gz", "read 'tar::{0}/right.tar.gz'"),
        ("tar::", "name the archive"),
        ("zip::tar::{0}/deep.tar", "unpack the outer one"),
        ("simplecache::{0}", "--cache-dir"),
        ("libarchive://::{0}/deep.tar", "only zip:: and tar::"),
        ("zip::nonsense://x/y", "nonsense"),
        ("zip::https://user:swordfish@host/x.zip", "'zip::https://host/x.zip'"),
        ("zip::s3://bucket/x.zip?secret=swordfish", "'zip::s3://bucket/x.zip'"),
        ("zip::oci://user@bucket/x.zip", "ocifs"),
        ("zip::http://127.0.0.1:9/x.zip", "ECONNREFUSED"),
    ],
)
def test_what_is_wrong_is_one_line(source: str, words: str, backup: Path) -> None:
    """That says what to do, and never a secret."""
    done = run(COMMAND, "ls", source.format(backup), check=False)
    assert done.returncode in (1, 32)
    assert done.stderr.count("\n") == 1
    assert words.format(backup) in done.stderr
    assert "swordfish" not in done.stderr


def test_an_archive_that_this_user_may_not_read(backup: Path) -> None:
    """Root may read everything, so somebody else tries."""
    (backup / "private.tar").write_bytes((backup / "deep.tar").read_bytes())
    (backup / "private.tar").chmod(0o600)
    for directory in [backup, *backup.parents[:2]]:
        directory.chmod(0o755)
    done = run(COMMAND, "ls", f"tar::{backup}/private.tar", check=False, user=65534)
    assert "private.tar': Permission denied. Read as a user who may use it" in done.stderr


def test_times_by_no_clock_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A zip without UTC has the clock of whoever packed it: taken for this machine's, as unzip(1) does."""
    entry = zipfile.ZipInfo("docker/registry/v2/file", (2024, 2, 3, 4, 5, 6))
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
        packed.writestr(entry, b"")

    async def modified_at() -> int:
        return (await open_driver(f"zip::{tmp_path}/a.zip").stat("/docker/registry/v2/file")).modified_at

    assert trio.run(modified_at) == time.mktime((2024, 2, 3, 4, 5, 6, 0, 0, -1)) * 10**9
