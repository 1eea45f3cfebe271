"""A WebDAV server, for all that fsspec reaches and layerfs has no driver for: it is read, and small files are put."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import fsspec
import pytest
from harness.fixture import free_port

from layerfs.driver.fsspec import FsspecDriver
from layerfs.errors import NotRegularFile, PathNotFound, UnsupportedByDriver


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The directory that a server serves; fsspec is told where the server is by its own configuration."""
    directory, port = tmp_path_factory.mktemp("webdav"), free_port()
    command = [str(Path(sys.executable).parent / "wsgidav"), "--host", "127.0.0.1", "--port", str(port)]
    process = subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", *command, "--root", str(directory), "--auth", "anonymous", "-q"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 30
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=5).close()
            break
        except OSError:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)  # polling interval
    fsspec.config.conf["webdav"] = {"base_url": f"http://127.0.0.1:{port}"}
    yield directory
    del fsspec.config.conf["webdav"]
    process.kill()
    process.wait(10)


@pytest.fixture
async def driver(server: Path, request: pytest.FixtureRequest) -> AsyncIterator[FsspecDriver]:
    """A directory of the server."""
    (server / request.node.name).mkdir()
    driver = FsspecDriver(f"webdav:///{request.node.name}")
    yield driver
    await driver.close()


async def test_small_files(driver: FsspecDriver, server: Path, request: pytest.FixtureRequest) -> None:
    """Put, seen, listed, replaced, moved over another, deleted; nothing else is left."""
    await driver.put_content("/a/link", b"content")
    assert await driver.get_content("/a/link", limit=10) == b"content"
    assert ((await driver.stat("/a/link")).size, (await driver.stat("/a")).is_directory) == (7, True)
    await driver.put_content("/a/link", b"other")
    assert (server / request.node.name / "a/link").read_bytes() == b"other"
    await driver.put_content("/a/second", b"second")
    await driver.move("/a/second", "/a/link")
    assert [entry.name for entry in await driver.list("/a")] == ["link"]
    assert await driver.get_content("/a/link", limit=10) == b"second"
    with pytest.raises(NotRegularFile):
        await driver.put_content("/a", b"")
    await driver.delete("/a")
    assert list((server / request.node.name).iterdir()) == []
    with pytest.raises(PathNotFound):
        await driver.stat("/a/link")


async def test_ranges(driver: FsspecDriver) -> None:
    """A layer is read at any offset."""
    content = bytes(range(256)) * 1000
    await driver.put_content("/layer", content)
    reader = await driver.open("/layer")
    assert reader.size == len(content)
    assert await reader.read(1000, 70_000) == content[1000:71_000]
    assert await reader.read(len(content) - 5, 100) == content[-5:]


async def test_uploads_are_refused(driver: FsspecDriver, server: Path, request: pytest.FixtureRequest) -> None:
    """Before anything is touched."""
    with pytest.raises(UnsupportedByDriver, match="webdav cannot append"):
        await driver.writer("/upload", append=False)
    assert list((server / request.node.name).iterdir()) == []
