"""What a command says when it cannot use an object store: one line that names what is wrong, and no secret."""

from __future__ import annotations

import http.server
import os
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from harness.azurite import ACCOUNT, KEY, azurite
from harness.gcs_server import gcs_server
from harness.mount import COMMAND
from harness.object_stores import BUCKET, SECRET_KEY, gateway

USAGE, FAILED = 1, 32

#: What the environment of whoever runs the tests may say of stores.
_FOREIGN = ("AWS_", "AZURE_", "GOOGLE_", "STORAGE_EMULATOR_HOST")

WRONG_KEY = "c2VjcmV0LXRoYXQtaXMtd3Jvbmc="


def said_by(source: str, environment: dict[str, str], *, code: int) -> str:
    """What `ls` of a source says in its one line."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)}
    kept |= {"AWS_EC2_METADATA_DISABLED": "true"}
    result = subprocess.run(
        [COMMAND, "ls", source], env=kept | environment, capture_output=True, text=True, check=False, timeout=60
    )
    assert result.returncode == code, result.stderr
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1, result.stderr
    return result.stderr


def of_s3(**changed: str) -> dict[str, str]:
    """The environment of a user of the gateway, but for what has `changed`."""
    return gateway().environment | {"AWS_ENDPOINT_URL": gateway().endpoint} | changed


@pytest.mark.parametrize(
    ("source", "environment", "words", "code"),
    [
        (
            f"s3://{BUCKET}/p",
            lambda: of_s3(AWS_SECRET_ACCESS_KEY=WRONG_KEY),
            "403 SignatureDoesNotMatch: the secret key does not belong to the access key",
            USAGE,
        ),
        (
            f"s3://{BUCKET}/p",
            lambda: of_s3(AWS_ACCESS_KEY_ID="nobody"),
            "403 InvalidAccessKeyId: the store does not know this access key",
            USAGE,
        ),
        (f"s3://{BUCKET}/p", lambda: of_s3(AWS_PROFILE="nope"), "knows no profile 'nope'", USAGE),
        (f"s3://{BUCKET}/p?region=no%20region", of_s3, "'no region' cannot be the name of a region", USAGE),
        (
            f"s3://{BUCKET}/p",
            lambda: of_s3(AWS_ENDPOINT_URL="127.0.0.1:7480"),
            "the endpoint in AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL or the SDK's configuration is no URL: "
            "expected http://HOST[:PORT] or https://HOST[:PORT]",
            USAGE,
        ),
        (
            f"s3://{BUCKET}/p",
            lambda: of_s3(AWS_ENDPOINT_URL="http://store.invalid"),
            "its host name cannot be resolved",
            FAILED,
        ),
        pytest.param(
            "az://registry/p?endpoint_url=http://store.invalid",
            lambda: {"AZURE_STORAGE_ACCOUNT": ACCOUNT, "AZURE_STORAGE_KEY": KEY},
            "its host name cannot be resolved",
            FAILED,
            marks=pytest.mark.soak,
        ),
        (
            "az://registry/p?endpoint_url=https://127.0.0.1:1",
            lambda: {"AZURE_STORAGE_ACCOUNT": ACCOUNT},
            "Azure's SDK finds no credentials that it could use",
            USAGE,
        ),
        (
            "az://registry/p?endpoint_url=http://127.0.0.1:1",
            lambda: {"AZURE_STORAGE_ACCOUNT": ACCOUNT},
            "is not sent to http://127.0.0.1:1 without TLS",
            USAGE,
        ),
        (
            "s3://registry/p?endpoint_url=https://127.0.0.1:1&ca_file=/nowhere/ca.pem",
            lambda: of_s3(),
            "ca_file='/nowhere/ca.pem' cannot be used: No such file or directory",
            USAGE,
        ),
        (
            "s3://registry/p?endpoint_url=https://127.0.0.1:1",
            lambda: of_s3(AWS_CA_BUNDLE="/nowhere/ca.pem"),
            "AWS_CA_BUNDLE='/nowhere/ca.pem' cannot be used: No such file or directory",
            USAGE,
        ),
        (
            "az://registry/p?endpoint_url=https://127.0.0.1:1&ca_file=/etc/hostname",
            lambda: {"AZURE_STORAGE_ACCOUNT": ACCOUNT, "AZURE_STORAGE_KEY": KEY},
            "ca_file='/etc/hostname' cannot be used: ",
            USAGE,
        ),
        pytest.param(
            "gs://registry/p?endpoint_url=http://store.invalid",
            dict,
            "its host name cannot be resolved",
            FAILED,
            marks=pytest.mark.soak,
        ),
    ],
)
def test_the_reason(source: str, environment: Callable[[], dict[str, str]], words: str, code: int) -> None:
    """It is in the words of whoever wrote the source and its environment, and names the setting that is wrong."""
    said = said_by(source, environment(), code=code)
    assert words in said
    assert WRONG_KEY not in said
    assert KEY not in said


@pytest.mark.parametrize(
    ("config", "credentials", "words"),
    [
        ("", "[default]\naws_access_key_id = test\nhunter2\n", "cannot read {credentials!r}, line 3"),
        ("", "hunter2\n", "cannot read {credentials!r}, line 1"),
        ("", b"[default]\naws_access_key_id = \xff\n", "cannot read {credentials!r}: "),
        (
            "[default]\nrole_arn = arn:aws:iam::1:role/x\nsource_profile = other\n",
            "",
            'cannot use its configuration: The source_profile "other" ',
        ),
        (
            "[default]\ndefaults_mode = odd\n",
            "",
            "cannot use its configuration: Client configured with invalid defaults",
        ),
        ("[default]\ncredential_process = /nowhere/keys\n", "", "(No such file or directory: '/nowhere/keys')"),
        (
            "[default]\ncredential_process = echo hunter2\n",
            "",
            "finds no credentials that it could use (JSONDecodeError)",
        ),
        (
            "[default]\nrole_arn = arn:aws:iam::1:role/x\nweb_identity_token_file = /nowhere/token\n",
            "",
            "(No such file or directory: '/nowhere/token')",
        ),
    ],
)
def test_files_of_the_sdk_that_it_cannot_use(tmp_path: Path, config: str, credentials: str | bytes, words: str) -> None:
    """They are named, and what is in them is not shown; the store has nothing to do with it."""
    files = {"AWS_CONFIG_FILE": tmp_path / "config", "AWS_SHARED_CREDENTIALS_FILE": tmp_path / "credentials"}
    for file, content in zip(files.values(), (config, credentials), strict=True):
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    environment = {name: str(file) for name, file in files.items()} | {"AWS_ENDPOINT_URL": gateway().endpoint}
    said = said_by(f"s3://{BUCKET}/p", environment, code=USAGE)
    assert words.format(credentials=str(files["AWS_SHARED_CREDENTIALS_FILE"])) in said
    assert "hunter2" not in said
    assert "reached" not in said


@pytest.mark.parametrize("store", ["s3", "azure"])
def test_credentials_that_are_refused(store: str) -> None:
    """What is advised is to look at these, and not to become another user of this machine."""
    if store == "s3":
        source, environment = f"s3://{BUCKET}/p", of_s3(AWS_SECRET_ACCESS_KEY=WRONG_KEY)
    else:
        source = "az://registry/p"
        environment = {"AZURE_STORAGE_CONNECTION_STRING": azurite().connection_string().replace(KEY, WRONG_KEY)}
    said = said_by(source, environment, code=USAGE)
    assert "Check the credentials" in said
    assert "as a user who" not in said
    assert SECRET_KEY not in said


def test_a_bucket_that_is_not_there() -> None:
    """It is named, and so is the server that does not have it."""
    said = said_by("gs://nowhere/p", gcs_server().environment, code=USAGE)
    assert "bucket 'nowhere'" in said
    assert "there is no such bucket" in said
    assert gcs_server().url in said


class _WebSite(http.server.BaseHTTPRequestHandler):
    """Something else than a store, which has a page for every request."""

    status = 200

    def do_GET(self) -> None:
        page = b"<html><body>Nothing to see</body></html>"
        self.send_response(self.status)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(page)

    do_HEAD = do_GET  # noqa: N815 - the server's name for it

    def log_message(self, *_: object) -> None:
        """Not to standard error."""


@pytest.mark.parametrize("status", [200, 500])
@pytest.mark.parametrize("scheme", ["s3", "az", "gs"])
def test_an_address_that_is_no_stores(scheme: str, status: int) -> None:
    """The status that was answered is said, and where; nothing is taken for a storage that is empty."""
    handler = type("_", (_WebSite,), {"status": status})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        address = f"127.0.0.1:{server.server_port}"
        environment = of_s3() | {"AZURE_STORAGE_ACCOUNT": ACCOUNT, "AZURE_STORAGE_KEY": KEY}
        said = said_by(f"{scheme}://registry/p?endpoint_url=http://{address}", environment, code=FAILED)
        server.shutdown()
    assert f"answered {status}" in said
    assert address in said


def test_a_name_that_no_bucket_has() -> None:
    """Not only what a source looks like is said, but which part of it is wrong."""
    assert "'b' cannot be the name of a bucket" in said_by("s3://b/p", {}, code=USAGE)
    assert "'B_1' cannot be the name of a container" in said_by("az://B_1/p", {}, code=USAGE)


def test_a_path_that_looks_like_a_url() -> None:
    """It is repeated once, as the path for which it was taken."""
    said = said_by("s3:/bucket/p", {}, code=USAGE)
    assert said.count("s3:/bucket/p") == 2
    assert f"'{os.getcwd()}/s3:/bucket/p': No such file" in said
