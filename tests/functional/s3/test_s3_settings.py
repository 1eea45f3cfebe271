"""What the SDK finds by itself, what a driver makes of it, and TLS."""

from __future__ import annotations

import subprocess
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
import trio
from harness.object_stores import BUCKET, S3Server
from harness.s3_proxy import S3Proxy

from layerfs.driver.s3 import S3Driver
from layerfs.driver.s3_options import S3Options
from layerfs.errors import AccessDenied, BackendFailure, PathNotFound, UnknownSource

MEBIBYTE = 1 << 20
DATA = "/docker/registry/v2/repositories/a/_uploads/u/data"


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No settings but those of the test."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_ENDPOINT_URL", "AWS_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


async def works(options: S3Options, *, size: int = 100) -> None:
    """Small and large, written and read."""
    driver = S3Driver(options)
    try:
        content = bytes(range(256)) * (size // 256 + 1)
        await driver.put_content("/small", content[:100])
        assert await driver.get_content("/small", limit=100) == content[:100]
        writer = await driver.writer(DATA, append=False)
        await writer.write([content])
        await writer.flush()
        await writer.close()
        async with await driver.seal(DATA) as sealed:
            assert await sealed.read(0, len(content)) == content
            await sealed.publish("/blob")
        assert (await driver.stat("/blob")).size == len(content)
        await driver.delete(DATA)
    finally:
        await driver.close()


async def test_the_environment(server: S3Server, prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Credentials and endpoint; there the bucket is named in the path, without being told so."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", server.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", server.secret_key)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", server.endpoint)
    await works(S3Options(BUCKET, prefix))


async def test_the_configuration_files(server: S3Server, prefix: str, tmp_path: Path) -> None:
    """A profile with an endpoint of its own for S3."""
    (tmp_path / "config").write_text(
        "[profile work]\nregion = us-east-1\nservices = local\n"
        f"[services local]\ns3 =\n  endpoint_url = {server.endpoint}\n"
    )
    (tmp_path / "credentials").write_text(
        f"[work]\naws_access_key_id = {server.access_key}\naws_secret_access_key = {server.secret_key}\n"
    )
    await works(S3Options(BUCKET, prefix, profile="work"))
    driver = S3Driver(S3Options(BUCKET, prefix, profile="play"))
    with pytest.raises(UnknownSource, match="no profile 'play'"):
        await driver.stat("/")
    await driver.close()


@pytest.mark.parametrize(
    ("revoked", "said"),
    [
        (lambda server: ("revoked", "whatever"), "does not (know this|belong to the) access key"),
        (lambda server: (server.access_key, "whatever"), "the secret key does not belong to the access key"),
    ],
    ids=["both", "the secret"],
)
@pytest.mark.parametrize("first", ["in HEAD", "in GET", "in PUT"])
async def test_credentials_that_are_replaced_in_their_file(
    server: S3Server,
    prefix: str,
    tmp_path: Path,
    first: str,
    revoked: Callable[[S3Server], tuple[str, str]],
    said: str,
) -> None:
    """Hold from then on, also for what was begun with the old ones: a mount outlives many of them."""

    def hand_out(access_key: str, secret_key: str) -> None:
        (tmp_path / "credentials").write_text(
            f"[default]\naws_access_key_id = {access_key}\naws_secret_access_key = {secret_key}\n"
        )

    driver = S3Driver(S3Options(BUCKET, prefix, endpoint_url=server.endpoint, region="us-east-1"))
    asked: dict[str, Callable[[], Awaitable[object]]] = {
        "in HEAD": lambda: driver.stat("/a"),
        "in GET": lambda: driver.get_content("/a", limit=10),
        "in PUT": lambda: driver.put_content("/a", b"content"),
    }
    try:
        hand_out(*revoked(server))
        with pytest.raises(AccessDenied, match=said):
            await asked[first]()
        hand_out(server.access_key, server.secret_key)
        with trio.fail_after(10):
            while True:
                try:
                    await asked[first]()
                except AccessDenied:
                    await trio.sleep(0.1)  # polling interval
                except PathNotFound:
                    break
                else:
                    break
        await driver.put_content("/a", b"content")
        assert await driver.get_content("/a", limit=10) == b"content"
    finally:
        await driver.close()


async def test_no_credentials(server: S3Server, prefix: str) -> None:
    """The SDK finds none, and the error says so."""
    driver = S3Driver(S3Options(BUCKET, prefix, server.endpoint))
    with pytest.raises(AccessDenied, match="finds no credentials"):
        await driver.stat("/")
    await driver.close()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for 127.0.0.1 that nobody has signed, with its key."""
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    key = path.with_name("key.pem")
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"),
            *("-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(path)),
        ],
        check=True,
        capture_output=True,
        timeout=60,
    )
    path.write_text(path.read_text() + key.read_text())
    return path


@pytest.fixture
def tls_proxy(server: S3Server, certificate: Path) -> Iterator[S3Proxy]:
    """A way to the gateway by TLS."""
    with S3Proxy(server.endpoint, certificate=certificate) as proxy:
        yield proxy


async def test_tls(
    drivers: Callable[..., S3Driver], server: S3Server, prefix: str, tls_proxy: S3Proxy, certificate: Path, stored
) -> None:
    """By a certificate that one is told to trust; what is stored is what was sent, without the framing of a sum."""
    await works(server.options(prefix, endpoint_url=tls_proxy.url, ca_file=str(certificate)), size=6 * MEBIBYTE)
    assert stored.content("/small") == bytes(range(100))
    assert stored.content("/blob")[: 256 * 10] == bytes(range(256)) * 10
    assert not [seen for seen in tls_proxy.seen if "aws-chunked" in seen.headers.get("content-encoding", "")]


async def test_tls_that_is_not_trusted(server: S3Server, prefix: str, tls_proxy: S3Proxy) -> None:
    """Nothing is sent; unless one says that everybody is to be trusted."""
    driver = S3Driver(server.options(prefix, endpoint_url=tls_proxy.url))
    with pytest.raises(BackendFailure, match="no trusted TLS connection"):
        await driver.stat("/")
    await driver.close()
    assert tls_proxy.seen == []
    await works(server.options(prefix, endpoint_url=tls_proxy.url, verify_tls=False))
