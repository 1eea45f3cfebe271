"""Google's credentials, from a file of a service account on: TLS, tokens, and what happens when they do not hold."""

from __future__ import annotations

import http.server
import json
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
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/token"


class _TokenHandler(http.server.BaseHTTPRequestHandler):
    server: TokenServer

    def do_POST(self) -> None:
        form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
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
