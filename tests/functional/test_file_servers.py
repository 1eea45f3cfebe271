"""Servers of files, which fsspec reaches and layerfs has no driver for: storage is read, and small files are put."""

from __future__ import annotations

import os
import random
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import trio
from harness.commands import run
from harness.file_servers import PASSWORD, USER, FileServer, file_server
from harness.mount import COMMAND

from layerfs.driver.fsspec import FsspecDriver
from layerfs.driver.sources import open_driver
from layerfs.errors import BackendFailure, NotRegularFile, PathNotEmpty, PathNotFound, UnsupportedByDriver

CONTENT = random.Random(3).randbytes(3_000_000)


@pytest.fixture(scope="module", params=["ftp", "vsftpd", "sftp", "smb"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FileServer]:
    with file_server(request.param, tmp_path_factory.mktemp(request.param)) as server:
        yield server


@pytest.fixture
async def driver(server: FileServer) -> AsyncIterator[FsspecDriver]:
    driver = FsspecDriver(server.url)
    yield driver
    await driver.close()
    for path in sorted(server.directory.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()


async def test_small_files(driver: FsspecDriver, server: FileServer, request: pytest.FixtureRequest) -> None:
    """Put, seen, listed, replaced, moved over another, deleted; nothing else is left."""
    await driver.put_content("/a/b/link", b"content")
    assert await driver.get_content("/a/b/link", limit=10) == b"content"
    assert ((await driver.stat("/a/b/link")).size, (await driver.stat("/a")).is_directory) == (7, True)
    if request.node.callspec.params["server"] != "vsftpd":
        assert abs((await driver.stat("/a/b/link")).modified_at / 1e9 - time.time()) < 100
    await driver.put_content("/a/b/link", b"other")
    assert (server.directory / "a/b/link").read_bytes() == b"other"
    await driver.put_content("/a/b/second", b"")
    assert await driver.get_content("/a/b/second", limit=10) == b""
    await driver.move("/a/b/second", "/a/b/link")
    assert [(entry.name, entry.is_directory) for entry in await driver.list("/a")] == [("b", True)]
    assert [(entry.name, entry.is_directory) for entry in await driver.list("/a/b")] == [("link", False)]
    assert (server.directory / "a/b/link").read_bytes() == b""
    with pytest.raises(NotRegularFile):
        await driver.put_content("/a", b"")
    with pytest.raises(PathNotEmpty):
        await driver.remove_directory("/a")
    await driver.make_directory("/empty/one")
    assert await driver.list("/empty/one") == []
    await driver.remove_directory("/empty/one")
    await driver.delete("/empty")
    await driver.delete("/a")
    assert list(server.directory.iterdir()) == []


async def test_what_is_not_there(driver: FsspecDriver) -> None:
    """Is never an empty listing."""
    await driver.put_content("/file", b"content")
    for call in (driver.stat, driver.list, driver.open, driver.delete):
        with pytest.raises(PathNotFound):
            await call("/nothing/at/all")
    with pytest.raises(PathNotFound):
        await driver.list("/file")
    with pytest.raises(PathNotFound):
        await driver.get_content("/nothing", limit=1)
    with pytest.raises(PathNotFound):
        await driver.move("/nothing", "/file")
    assert await driver.get_content("/file", limit=10) == b"content"


async def test_many_at_the_same_time(driver: FsspecDriver) -> None:
    """Everyone gets his own answer, at any offset."""
    await driver.put_content("/layers/layer", CONTENT)
    await driver.put_content("/layers/small", b"small")
    reader = await driver.open("/layers/layer")
    wrong = []

    async def read(offset: int) -> None:
        if await reader.read(offset, 300_000) != CONTENT[offset : offset + 300_000]:
            wrong.append(offset)

    async def look() -> None:
        if await driver.get_content("/layers/small", limit=10) != b"small" or len(await driver.list("/layers")) != 2:
            wrong.append(-1)

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for offset in range(0, len(CONTENT), 100_001):
                nursery.start_soon(read, offset)
                nursery.start_soon(look)
    assert wrong == []
    assert await reader.read(len(CONTENT) - 5, 100) == CONTENT[-5:]


@pytest.mark.parametrize("server", ["sftp"], indirect=True)
async def test_links_are_refused(driver: FsspecDriver, server: FileServer) -> None:
    """Which lead anywhere on the server; where its protocol shows that they are some."""
    (server.directory / "link").symlink_to("/etc/passwd")
    assert await driver.list("/") == []
    for call in (driver.stat, driver.open):
        with pytest.raises(NotRegularFile):
            await call("/link")


async def test_an_archive_on_it(server: FileServer, tmp_path: Path) -> None:
    """Is read in parts, too."""
    (tmp_path / "docker").mkdir()
    (tmp_path / "docker/file").write_bytes(CONTENT)
    for command in (["tar", "-czf"], ["zip", "-qr"]):
        archive = server.directory / f"backup.{command[0]}"
        run(*command, archive, "docker", cwd=tmp_path)
        driver = open_driver(f"{command[0]}::{server.url}/{archive.name}")
        reader = await driver.open("/docker/file")
        assert await reader.read(1_000_000, 300_000) == CONTENT[1_000_000:1_300_000]
        await driver.close()
        archive.unlink()


async def test_putting_into_a_new_directory_at_the_same_time(driver: FsspecDriver, server: FileServer) -> None:
    """Two make the directory, and neither fails."""
    with trio.fail_after(60):
        for turn in range(5):
            async with trio.open_nursery() as nursery:
                for name in ("one", "two", "three"):
                    nursery.start_soon(driver.put_content, f"/{turn}/a/b/c/{name}", b"content")
    assert len([path for path in server.directory.rglob("*") if path.is_file()]) == 15


async def test_uploads_are_refused(driver: FsspecDriver, server: FileServer) -> None:
    """Before anything is touched."""
    with pytest.raises(UnsupportedByDriver, match="cannot append"):
        await driver.writer("/upload", append=False)
    assert list(server.directory.iterdir()) == []


async def test_a_server_that_was_restarted(driver: FsspecDriver, server: FileServer) -> None:
    """Who reads does not notice; connections are made anew, with the credentials."""
    await driver.put_content("/file", b"content")
    reader = await driver.open("/file")
    server.stop()
    server.start()
    with trio.fail_after(60):
        assert await reader.read(0, 10) == b"content"
        assert await driver.get_content("/file", limit=10) == b"content"
        assert [entry.name for entry in await driver.list("/")] == ["file"]
        await driver.put_content("/file", b"other")
    assert (server.directory / "file").read_bytes() == b"other"


async def test_a_server_that_is_away(driver: FsspecDriver, server: FileServer) -> None:
    """Is an error that names it, and never means that nothing is there."""
    await driver.put_content("/file", b"content")
    server.stop()
    try:
        with trio.fail_after(60):
            for call in (driver.stat, driver.list, driver.open):
                with pytest.raises(BackendFailure):
                    await call("/file")
    finally:
        server.start()
    assert await driver.get_content("/file", limit=10) == b"content"


def test_sources_that_are_wrong_are_one_line(server: FileServer) -> None:
    """That says what to do, and never a password."""
    place = server.url.removeprefix(f"{server.scheme}://")
    for source, words in {
        f"{server.scheme}://": "name the server",
        f"{server.scheme}://127.0.0.1:9/x": "127.0.0.1:9/x",
        f"{server.scheme}://{USER}:{PASSWORD}@{place.rpartition('@')[2]}": "credentials in a URL",
        f"{server.url}/nothing": "no registry storage",
    }.items():
        done = run(COMMAND, "ls", source, check=False, env=os.environ | server.environment)
        assert done.returncode in (1, 32), done
        assert done.stderr.count("\n") == 1, done
        assert words in done.stderr
        assert PASSWORD not in done.stderr


@pytest.mark.parametrize("server", ["ftp", "sftp", "smb"], indirect=True)
def test_wrong_credentials(server: FileServer) -> None:
    """Are called that."""
    wrong = {"FSSPEC_SFTP_KEY_FILENAME": "/dev/null"}
    name = f"FSSPEC_{server.scheme.upper()}_PASSWORD"
    environment = os.environ | server.environment | {name: "wrong"} | (wrong if server.scheme == "sftp" else {})
    done = run(COMMAND, "ls", server.url, check=False, env=environment)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done
    assert "access to storage denied" in done.stderr
    assert "Check the credentials" in done.stderr


@pytest.mark.parametrize("server", ["sftp"], indirect=True)
def test_a_server_whose_key_is_not_known(server: FileServer, tmp_path: Path) -> None:
    """Is not talked to, as ssh(1) would not; once its key is known it is."""
    environment = os.environ | server.environment | {"HOME": str(tmp_path)}
    del environment["FSSPEC_SFTP_HOST_KEY_POLICY"]
    refused = run(COMMAND, "ls", server.url, check=False, env=environment)
    assert (refused.returncode, refused.stderr.count("\n")) == (1, 1), refused
    assert f"for [127.0.0.1]:{server.port}: if it is the right one, log in by ssh once" in refused.stderr
    (tmp_path / ".ssh").mkdir()
    keys = run("ssh-keyscan", "-p", server.port, "127.0.0.1").stdout
    (tmp_path / ".ssh/known_hosts").write_text(keys)
    known = run(COMMAND, "ls", server.url, check=False, env=environment)
    assert "no registry storage" in known.stderr
