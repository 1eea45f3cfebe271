"""What only the driver over fsspec has to do: distrust its libraries."""

from __future__ import annotations

import http.server
import os
import socket
import threading
import uuid
from pathlib import Path
from typing import Any

import fsspec
import pytest
import trio
import trio.testing
from fsspec.implementations.memory import MemoryFileSystem

from layerfs.driver.fsspec import FsspecDriver
from layerfs.errors import AccessDenied, BackendFailure, NotRegularFile, PathNotFound, ShortRead, UnknownSource


class Faulty(MemoryFileSystem):
    """Fails as its `failure` says; counts the requests for content; holds up a move until `held` is set."""

    protocol = "faulty"
    failure: Exception | None = None
    truncates = False
    requests = 0
    held: threading.Event | None = None

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        stripped: str = super()._strip_protocol(path.removeprefix("faulty://"))
        return stripped

    def info(self, path: str, **options: Any) -> dict[str, Any]:
        if self.failure:
            raise self.failure
        info: dict[str, Any] = super().info(path, **options)
        return info

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **options: Any) -> bytes:
        type(self).requests += 1
        content: bytes = super().cat_file(path, start=start, end=end, **options)
        return content[:-1] if self.truncates else content

    def mv(self, path1: str, path2: str, **options: Any) -> None:
        held, type(self).held = self.held, None
        assert held is None or held.wait(20)
        super().mv(path1, path2, **options)


fsspec.register_implementation("faulty", Faulty)


class VendorError(Exception):
    """As the libraries of object stores have them: no OSError."""


@pytest.fixture
def faulty() -> FsspecDriver:
    return FsspecDriver(f"faulty://{uuid.uuid4()}")


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        (FileNotFoundError("x"), PathNotFound),
        (PermissionError("Forbidden"), AccessDenied),
        (OSError("whatever"), BackendFailure),
        (TimeoutError(), BackendFailure),
        (VendorError("refused"), BackendFailure),
        (KeyError("/"), BackendFailure),
    ],
)
async def test_errors_without_a_number(
    faulty: FsspecDriver, monkeypatch: pytest.MonkeyPatch, failure: Exception, expected: type[Exception]
) -> None:
    """Are told apart by type, and none gets out as it is."""
    monkeypatch.setattr(Faulty, "failure", failure)
    with pytest.raises(expected):
        await faulty.stat("/a")
    assert [type(found) for found in await faulty.stat_many(["/a", "/b"])] == [expected, expected]


async def test_a_host_that_nobody_knows(faulty: FsspecDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    """The numbers of such errors are none of an errno, which would mean nothing or something else."""
    monkeypatch.setattr(Faulty, "failure", socket.gaierror(socket.EAI_NONAME, "Name or service not known"))
    with pytest.raises(BackendFailure, match="host name cannot be resolved"):
        await faulty.stat("/a")


async def test_a_host_that_refuses() -> None:
    """fsspec's HTTP says of it that nothing is there; it is named, without the user who asks, and the reason told."""
    with pytest.raises(BackendFailure, match=r"http://127\.0\.0\.1:9 cannot be reached.*ECONNREFUSED"):
        await FsspecDriver("http://user@127.0.0.1:9/storage").stat("/a")


@pytest.mark.parametrize(
    ("status", "expected", "words"),
    [
        (404, PathNotFound, "'/a'"),
        (403, AccessDenied, "answered 403"),
        (503, BackendFailure, "answered 503: it is overloaded"),
    ],
)
async def test_a_host_that_answers_with_an_error(status: int, expected: type[Exception], words: str) -> None:
    """Only one of them says that nothing is there."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(status)

        def do_HEAD(self) -> None:
            self.do_GET()

        def log_message(self, *_: object) -> None:
            """Not to standard error."""

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        with pytest.raises(expected, match=words):
            await FsspecDriver(f"http://127.0.0.1:{server.server_address[1]}/storage").stat("/a")
        server.shutdown()


def test_an_option_that_its_url_has_no_place_for() -> None:
    """The line says which it is, and where it belongs."""
    with pytest.raises(UnknownSource, match=r"'fo'.*FSSPEC_REFERENCE_"):
        FsspecDriver("reference://x")


async def test_a_truncated_answer(faulty: FsspecDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Is an error, not content."""
    await faulty.put_content("/a", b"content")
    reader = await faulty.open("/a")
    monkeypatch.setattr(Faulty, "truncates", True)
    with pytest.raises(ShortRead):
        await faulty.get_content("/a", limit=10)
    with pytest.raises(ShortRead):
        await reader.read(0, 3)


async def test_nothing_is_requested_beyond_the_end(faulty: FsspecDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Object stores answer that with an error, each with its own."""
    await faulty.put_content("/empty", b"")
    await faulty.put_content("/a", b"content")
    monkeypatch.setattr(Faulty, "requests", 0)
    assert await faulty.get_content("/empty", limit=10) == b""
    reader = await faulty.open("/a")
    assert await reader.read(7, 10) == b""
    assert await reader.read(3, 0) == b""
    assert Faulty.requests == 0


async def test_names_that_cannot_be_asked_for_are_not_listed(faulty: FsspecDriver) -> None:
    """Keys of an object store can be anything."""
    await faulty.put_content("/a/good", b"")
    store = faulty._stores.first.fs.store
    directory = next(key for key in store if key.endswith("/a/good")).removesuffix("/good")
    for name in ("new\nline", "..", ".", "co:lon", "ü", " "):
        faulty._stores.first.fs.pipe_file(f"{directory}/{name}", b"")
        faulty._stores.first.fs.pipe_file(f"{directory}/sub{name}/below", b"")
    assert sorted(entry.name for entry in await faulty.list("/a")) == ["good", "sub.", "sub.."]


async def test_a_change_that_was_given_up_never_comes_after_a_newer_one(
    faulty: FsspecDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever changes the same file waits for it; elsewhere all goes on."""
    held = threading.Event()
    monkeypatch.setattr(Faulty, "held", held)
    with trio.move_on_after(0.2):
        await faulty.put_content("/a", b"older")
    assert Faulty.held is None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(faulty.put_content, "/a", b"newer")
        await faulty.put_content("/b", b"elsewhere")
        await trio.testing.wait_all_tasks_blocked(0.2)
        held.set()
    with trio.fail_after(20):
        while len(await faulty.list("/")) > 2:
            await trio.sleep(0.005)
    assert await faulty.get_content("/a", limit=10) == b"newer"


async def test_what_others_do_is_seen_at_once(tmp_path: Path) -> None:
    """No listing is kept."""
    driver = FsspecDriver(f"file://{tmp_path}")
    assert await driver.list("/") == []
    (tmp_path / "a").write_bytes(b"")
    assert [entry.name for entry in await driver.list("/")] == ["a"]


async def test_links_and_fifos_are_refused_where_they_are_shown(tmp_path: Path) -> None:
    """As far as the library tells."""
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to("file")
    os.mkfifo(tmp_path / "fifo")
    driver = FsspecDriver(f"file://{tmp_path}")
    assert [entry.name for entry in await driver.list("/")] == ["file"]
    for path in ("/link", "/fifo"):
        for method in (driver.stat(path), driver.get_content(path, limit=10), driver.open(path), driver.seal(path)):
            with pytest.raises(NotRegularFile):
                await method
