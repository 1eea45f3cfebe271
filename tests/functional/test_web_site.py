"""A registry's storage that a web server shows as pages of links, and that is only read."""

from __future__ import annotations

import functools
import http.server
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from layerfs.digest import Digest
from layerfs.driver.fsspec import FsspecDriver
from layerfs.driver.local import LocalDriver
from layerfs.errors import BackendFailure, PathNotFound, StorageReadOnly
from layerfs.registry import Registry

CONTENT = bytes(range(256)) * 100
DIGEST = Digest.of(CONTENT)


class _Site(http.server.SimpleHTTPRequestHandler):
    """Pages of what is in a directory."""

    def log_message(self, *_: object) -> None:
        """Not to standard error."""


class _WithoutRedirects(_Site):
    """Knows a directory only by an address that ends with /, as rclone does."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        if Path(self.translate_path(self.path)).is_dir() and not self.path.endswith("/"):
            self.send_error(404)
        else:
            super().do_GET()


@pytest.fixture(params=[_Site, _WithoutRedirects])
def site(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[http.server.ThreadingHTTPServer]:
    handler = functools.partial(request.param, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
async def driver(site: http.server.ThreadingHTTPServer) -> AsyncIterator[FsspecDriver]:
    driver = FsspecDriver(f"http://127.0.0.1:{site.server_port}")
    yield driver
    await driver.close()


async def test_a_layer_is_found_and_read(driver: FsspecDriver, tmp_path: Path) -> None:
    """Through directories, which HTTP does not know: what has an address that ends with / is one."""
    local = LocalDriver(str(tmp_path))
    layers = (await Registry.open(local, create=True)).repository("team/app").layers
    async with await layers.upload() as upload:
        await upload.write(CONTENT)
        await upload.finish(DIGEST)
    await local.close()
    registry = await Registry.open(driver)
    layers = registry.repository("team/app").layers
    assert [layer.digest for layer in await layers.list()] == [DIGEST]
    async with await layers.fetch(DIGEST) as layer:
        assert await layer.read() == CONTENT
    assert (await driver.stat("/docker")).is_directory
    with pytest.raises(PathNotFound):
        await driver.stat("/docker/nothing")


async def test_a_server_without_ranges(driver: FsspecDriver, tmp_path: Path) -> None:
    """This one is. It would send all of a layer for each few bytes of it."""
    (tmp_path / "file").write_bytes(CONTENT)
    reader = await driver.open("/file")
    with pytest.raises(BackendFailure, match=r"127\.0\.0\.1.* no ranges"):
        await reader.read(10, 10)


async def test_it_is_read_only(driver: FsspecDriver, tmp_path: Path) -> None:
    """And so is what is mounted from it."""
    (tmp_path / "file").write_bytes(CONTENT)
    assert driver.capabilities.read_only
    with pytest.raises(StorageReadOnly):
        await driver.writer("/file", append=True)
    with pytest.raises(StorageReadOnly):
        await driver.make_directory("/new")
    with pytest.raises(StorageReadOnly):
        await driver.delete("/file")
    with pytest.raises(StorageReadOnly):
        await driver.put_content("/file", b"")
    assert (tmp_path / "file").read_bytes() == CONTENT
