"""Google's credentials, from a file of a service account on: TLS, tokens, and what happens when they do not hold."""

from __future__ import annotations

import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import parse_qs

import pytest
import trio
from harness.certificate import make_certificate, private_key_pem
from harness.gcs_server import GcsRelay, gcs_server

from layerfs.driver.gcs import GcsDriver
from layerfs.errors import AccessDenied, BackendFailure


class TokenServer(http.server.ThreadingHTTPServer):
    """Gives tokens to whoever comes with an assertion, each time another one."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _TokenHandler)
        self.given: list[str] = []
        self.refuses = False
        #: What it does instead of giving a token, each once: "reset", "stall", a "page" or "503".
        self.faults: list[str] = []
        #: Those who wait for an answer of one that is silent wait for it.
        self.released = threading.Event()
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/token"


class _TokenHandler(http.server.BaseHTTPRequestHandler):
    server: TokenServer

    def do_POST(self) -> None:
        form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        fault = self.server.faults.pop(0) if self.server.faults else ""
        if fault == "stall":
            self.server.released.wait()
        if fault in {"stall", "reset"}:
            self.close_connection = True
            return
        if fault:
            self.send_response(200 if fault == "page" else int(fault))
            self.end_headers()
            self.wfile.write(b"<html>Down for maintenance</html>")
            return
        if self.server.refuses or not form["assertion"][0]:
            status, answer = 400, {"error": "invalid_grant", "error_description": "hunter2 is not known"}
        else:
            self.server.given.append(f"token-{len(self.server.given)}")
            status, answer = 200, {"access_token": self.server.given[-1], "expires_in": 3600, "token_type": "Bearer"}
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    def log_message(self, *_: object) -> None:
        """Not to standard error."""


@pytest.fixture
def token_server() -> Iterator[TokenServer]:
    server = TokenServer()
    yield server
    server.released.set()
    server.shutdown()
    server.server_close()


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    return make_certificate(tmp_path)


@pytest.fixture
def secured(certificate: tuple[Path, Path]) -> Iterator[GcsRelay]:
    """A way to the emulator that only those may go who have the first token."""
    relay = GcsRelay(gcs_server().proxy.upstream_port, certificate=certificate)
    relay.token = "token-0"  # noqa: S105 - of a server that lives for a second
    yield relay
    relay.stop()


@pytest.fixture
def account(tmp_path: Path, token_server: TokenServer, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of a service account, named where Google's library looks."""
    about = {
        "type": "service_account",
        "client_email": "layerfs@project.iam.gserviceaccount.example",
        "private_key": private_key_pem()[1].decode(),
        "private_key_id": "1",
        "token_uri": token_server.url,
    }
    path = tmp_path / "account.json"
    path.write_text(json.dumps(about))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(path))
    return path


@pytest.fixture
async def driver_of(gcs, secured: GcsRelay, certificate: tuple[Path, Path]) -> Callable[..., GcsDriver]:
    def make(**options: object) -> GcsDriver:
        given = {"endpoint_url": f"https://127.0.0.1:{secured.port}", "ca_file": str(certificate[0])}
        gcs.made.append(GcsDriver(gcs.server.options(gcs.prefix, **(given | options))))
        return gcs.made[-1]

    return make


async def test_a_service_account(driver_of, account: Path, token_server: TokenServer, secured: GcsRelay) -> None:
    """Its key is exchanged for a token once, however many ask at a time; every request has it."""
    driver = driver_of()
    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(driver.put_content, f"/{number}", b"content")
    assert await driver.get_content("/7", limit=10) == b"content"
    assert token_server.given == ["token-0"]
    assert {seen.status for seen in secured.seen} == {200}


async def test_a_token_that_has_expired(driver_of, account: Path, token_server: TokenServer, secured: GcsRelay) -> None:
    """Another one is asked for, and the request repeated."""
    driver = driver_of()
    await driver.put_content("/a", b"content")
    secured.token = "token-1"  # noqa: S105 - of a server that lives for a second
    assert await driver.get_content("/a", limit=10) == b"content"
    assert token_server.given == ["token-0", "token-1"]


async def test_a_token_that_is_never_good(
    driver_of, account: Path, token_server: TokenServer, secured: GcsRelay
) -> None:
    """A new one is tried, once."""
    secured.token = "another"  # noqa: S105 - of a server that lives for a second
    with pytest.raises(AccessDenied, match="the credentials are not valid, or have expired"):
        await driver_of().get_content("/a", limit=10)
    assert token_server.given == ["token-0", "token-1"]
    assert [seen.status for seen in secured.seen] == [401, 401]


async def test_credentials_that_nobody_accepts(driver_of, account: Path, token_server: TokenServer) -> None:
    """Neither the key nor what the server says of it is in the reason."""
    token_server.refuses = True
    with pytest.raises(AccessDenied, match=r"finds no credentials that it could use \(RefreshError\)") as caught:
        await driver_of().stat("/a")
    assert "hunter2" not in str(caught.value)
    assert "PRIVATE" not in str(caught.value)


@pytest.mark.parametrize("fault", ["reset", "page", "503"])
async def test_a_token_server_that_is_away_for_a_moment(
    driver_of, account: Path, token_server: TokenServer, secured: GcsRelay, fault: str
) -> None:
    """Its clients wait for it, as they do for the store itself: whoever reads then is not told that he may not."""
    driver = driver_of()
    await driver.put_content("/a", b"content")
    secured.token = "token-1"  # noqa: S105 - of a server that lives for a second
    token_server.faults += [fault]
    assert await driver.get_content("/a", limit=10) == b"content"
    assert token_server.faults == []


async def test_a_token_server_that_stays_away(driver_of, account: Path, token_server: TokenServer) -> None:
    """That is no matter of who may do what, and nobody is sent to look at his credentials."""
    token_server.faults += ["reset"] * 10
    with pytest.raises(BackendFailure, match=r"the service that gives out access tokens cannot be reached"):
        await driver_of().stat("/a")


async def test_a_token_server_that_says_nothing(driver_of, account: Path, token_server: TokenServer) -> None:
    """It is given up like a silent store, and whoever asks after that does not wait for those who did."""
    token_server.faults += ["stall"] * 10
    driver = driver_of(read_timeout=0.3)
    with trio.fail_after(4):
        with pytest.raises(BackendFailure):
            await driver.stat("/a")
        await driver.close()
    # No thread is left that waits for an answer.
    waiting = [thread for thread in threading.enumerate() if "asyncio" in thread.name]
    for thread in waiting:
        thread.join(5)
    assert not any(thread.is_alive() for thread in waiting)


@pytest.mark.parametrize("content", ["", "not json", "[]", "null", '"hunter2"', "{}", '{"type": "service_account"}'])
async def test_files_that_are_none_of_credentials(
    driver_of, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    """The reason names the file, and says nothing of what is in it."""
    path = tmp_path / "account.json"
    path.write_text(content)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(path))
    for driver in (driver_of(), driver_of(credentials_file=str(path))):
        with pytest.raises(AccessDenied, match=f"finds no credentials that it could use in {str(path)!r}") as caught:
            await driver.stat("/a")
        assert "hunter2" not in str(caught.value)


async def test_a_directory_in_place_of_a_file_of_credentials(
    driver_of, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That has nothing to do with the store, and so is not told of it."""
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path))
    with pytest.raises(AccessDenied, match=f"finds no credentials that it could use in {str(tmp_path)!r}"):
        await driver_of().stat("/a")


def test_a_file_of_credentials_named_in_the_url(
    account: Path, certificate: tuple[Path, Path], secured: GcsRelay, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name of a file is no secret: a command takes it, though it would refuse what is in it."""
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS")
    url = f"gs://registry/nothing?endpoint_url=https://127.0.0.1:{secured.port}&ca_file={certificate[0]}"
    result = subprocess.run(
        [sys.executable, "-m", "layerfs", "ls", f"{url}&credentials_file={account}"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env=os.environ,
    )
    assert "no registry storage" in result.stderr
    assert {seen.status for seen in secured.seen} == {200, 404}


async def test_a_certificate_that_is_not_trusted(driver_of, account: Path, secured: GcsRelay) -> None:
    """Nothing is sent to who it is, unless that is wanted; and it is said what to do."""
    with pytest.raises(BackendFailure, match=r"no trusted TLS connection to .*ca_file=") as caught:
        await driver_of(ca_file=None).stat("/a")
    assert caught.value.path == "/a"
    assert secured.seen == []
    # The first driver was given a token before it could not use it.
    secured.token = "token-1"  # noqa: S105 - of a server that lives for a second
    driver = driver_of(ca_file=None, verify_tls=False)
    await driver.put_content("/a", b"content")
    assert (await driver.stat("/a")).size == 7
