"""Azure without a key: a managed identity, by TLS, as a machine of Azure has it."""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio
from harness.azurite import AzureRelay, Azurite
from harness.certificate import make_certificate

from layerfs.digest import Digest
from layerfs.driver.azure import AzureDriver
from layerfs.errors import AccessDenied, BackendFailure
from layerfs.registry import Registry


class IdentityServer(http.server.ThreadingHTTPServer):
    """What a machine of Azure asks for tokens in its own name."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _IdentityHandler)
        self.given = 0
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/token"


class _IdentityHandler(http.server.BaseHTTPRequestHandler):
    server: IdentityServer

    def do_GET(self) -> None:
        if self.headers["X-IDENTITY-HEADER"] != "hunter2":
            self.send_error(403)
            return
        self.server.given += 1
        now = int(time.time())
        claims = {
            "aud": "https://storage.azure.com",
            "oid": "11111111-2222-4333-8444-555555555555",
            "tid": "66666666-7777-4888-9999-000000000000",
            "iss": "https://sts.windows.net/tenant/",
            "nbf": now - 60,
            "iat": now - 60,
            "exp": now + 3600,
        }
        parts = [json.dumps(part).encode() for part in ({"alg": "HS256", "typ": "JWT"}, claims)] + [b"signature"]
        token = ".".join(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in parts)
        answer = {"access_token": token, "expires_on": str(claims["exp"]), "resource": claims["aud"]}
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(answer | {"token_type": "Bearer"}).encode())

    def log_message(self, *_: object) -> None:
        """Not to standard error."""


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Azurite, Path]]:
    """An emulator that takes logins, and the file of the certificate that it is to be trusted by."""
    certificate = make_certificate(tmp_path_factory.mktemp("azurite"))
    azurite = Azurite(certificate=certificate)
    yield azurite, certificate[0]
    azurite.stop()


@pytest.fixture
def identity(monkeypatch: pytest.MonkeyPatch) -> Iterator[IdentityServer]:
    """An identity of this machine."""
    server = IdentityServer()
    monkeypatch.setenv("IDENTITY_ENDPOINT", server.url)
    monkeypatch.setenv("IDENTITY_HEADER", "hunter2")
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
async def driver_of(azure, secured: tuple[Azurite, Path]) -> Callable[..., AzureDriver]:
    azurite, certificate = secured

    def make(**options: object) -> AzureDriver:
        given = {"account_key": None, "ca_file": str(certificate)} | options
        azure.made.append(AzureDriver(azurite.options(azure.prefix, **given)))
        return azure.made[-1]

    return make


async def test_a_managed_identity_uploads_a_layer(driver_of, identity: IdentityServer) -> None:
    """From the first byte to the copy to its place, with one token."""
    content = b"layer" * 100_000
    layers = (await Registry.open(driver_of(), create=True)).repository("a").layers
    upload = await layers.upload(file_name="layer.tar")
    await upload.write(content)
    digest = Digest.parse(f"sha256:{hashlib.sha256(content).hexdigest()}")
    await upload.finish(digest)
    async with await layers.fetch(digest) as layer:
        assert await layer.read() == content
    assert identity.given == 1


async def test_a_copy_that_wants_a_signature(driver_of, identity: IdentityServer, secured, azure) -> None:
    """Where a login is not enough to read what is to be copied, the store gets leave to, for a while."""
    azurite, certificate = secured
    relay = AzureRelay(azurite.port, certificate=(certificate, certificate.parent / "key.pem"))
    try:
        driver = driver_of(endpoint_url=relay.endpoint)
        await driver.put_content("/a", b"content")
        relay.fail("refuse", "copy", status=404, code="CannotVerifyCopySource")
        await driver.move("/a", "/b")
        assert await driver.get_content("/b", limit=10) == b"content"
        assert relay.counts["copy"] == 2
    finally:
        relay.stop()


async def test_nobody_is_logged_in(driver_of, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever there is to log in with was tried, and the reason is one line."""
    monkeypatch.setenv("AZURE_TOKEN_CREDENTIALS", "WorkloadIdentityCredential")
    with pytest.raises(AccessDenied, match=r"finds no credentials that it could use") as caught:
        with trio.fail_after(30):
            await driver_of().stat("/a")
    assert "\n" not in str(caught.value)


async def test_a_certificate_that_is_not_trusted(driver_of, identity: IdentityServer) -> None:
    """No token is sent to who it is, unless that is wanted; and it is said what to do."""
    with pytest.raises(BackendFailure, match=r"no trusted TLS connection to .*ca_file="):
        await driver_of(ca_file=None).stat("/a")
    driver = driver_of(ca_file=None, verify_tls=False)
    await driver.put_content("/a", b"content")
    assert (await driver.stat("/a")).size == 7
