"""Debian's docker-registry (2.8.2) on a storage tree, and as much of an HTTP client as the tests need."""

from __future__ import annotations

import base64
import hashlib
import hmac
import http.client
import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, Self
from urllib.parse import urlencode, urlsplit

from harness.fixture import free_port
from harness.storage import digest_of

SIGNING_KEY = "layerfs-tests"

_CONFIG = """\
version: 0.1
log: {{level: info}}
storage:
  filesystem: {{rootdirectory: {root}}}
  delete: {{enabled: true}}
  maintenance: {{uploadpurging: {{enabled: false}}}}
http: {{addr: "127.0.0.1:{port}", secret: {key}}}
"""


class Response(NamedTuple):
    """What the registry answered."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def location(self) -> str:
        return self.headers["location"]


class DockerRegistry:
    """A registry on 127.0.0.1 with the storage at `root`, without a descriptor cache: it says what is stored."""

    def __init__(self, root: Path, directory: Path, *, user: int | None = None, more: str = "") -> None:
        """`more` is added to its configuration."""
        self.root = root
        self.user = user
        #: Instead of that of the tests.
        self.environment: dict[str, str] | None = None
        self.port = free_port()
        directory.mkdir(parents=True, exist_ok=True)
        self.config = directory / "config.yml"
        self.config.write_text(_CONFIG.format(root=root, port=self.port, key=SIGNING_KEY) + more)
        self.log_path = directory / "registry.log"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        with self.log_path.open("wb") as log:
            self._process = subprocess.Popen(
                ["docker-registry", "serve", str(self.config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                user=self.user,
                group=self.user,
                env=self.environment,
                extra_groups=None if self.user is None else [],
            )
        deadline = time.monotonic() + 20
        while not self._answers():
            assert self._process.poll() is None, self.log_path.read_text()
            assert time.monotonic() < deadline, "docker-registry does not answer"
            time.sleep(0.05)  # polling interval
        return self

    def __exit__(self, *_exc: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10)

    def _answers(self) -> bool:
        try:
            return self.request("GET", "/v2/").status == 200
        except OSError:
            return False

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    def request(self, method: str, url: str, body: bytes = b"", **headers: str) -> Response:
        """One request to a path, or to a URL that the registry gave."""
        parts = urlsplit(url)
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            target = parts.path + (f"?{parts.query}" if parts.query else "")
            names = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, target, body=body, headers=names)
            answer = connection.getresponse()
            return Response(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    # --- uploads ---------------------------------------------------------------------------------------------

    def post(self, name: str) -> str:
        """Begins an upload; returns its URL."""
        answer = self.request("POST", f"/v2/{name}/blobs/uploads/")
        assert answer.status == 202, answer
        return answer.location

    def patch(self, url: str, data: bytes) -> str:
        """Sends a chunk; returns the URL to go on with."""
        answer = self.request("PATCH", url, data, Content_Type="application/octet-stream")
        assert answer.status == 202, answer
        return answer.location

    def put(self, url: str, digest: str, data: bytes = b"") -> Response:
        """Finishes an upload."""
        query = "&" if urlsplit(url).query else "?"
        return self.request("PUT", f"{url}{query}{urlencode({'digest': digest})}", data)

    def push(self, name: str, data: bytes, digest: str | None = None) -> str:
        """Uploads a blob the way clients do."""
        digest = digest or digest_of(data)
        answer = self.put(self.patch(self.post(name), data), digest)
        assert answer.status == 201, answer
        return digest

    def resume_url(self, name: str, upload_id: str, *, offset: int, started_at: str) -> str:
        """The URL of an upload that this registry did not begin: 2.8.2 wants its state signed with the secret."""
        state = {"Name": name, "UUID": upload_id, "Offset": offset, "StartedAt": started_at}
        text = json.dumps(state, separators=(",", ":")).encode()
        token = base64.urlsafe_b64encode(hmac.new(SIGNING_KEY.encode(), text, hashlib.sha256).digest() + text).decode()
        return f"/v2/{name}/blobs/uploads/{upload_id}?{urlencode({'_state': token})}"

    @contextmanager
    def held_patch(self, url: str) -> Iterator[HeldPatch]:
        """A PATCH whose body is still coming: the registry has the upload's data open for append."""
        parts = urlsplit(url)
        with socket.create_connection(("127.0.0.1", self.port), timeout=30) as connection:
            connection.sendall(
                f"PATCH {parts.path}?{parts.query} HTTP/1.1\r\nHost: {self.host}\r\n"
                "Content-Type: application/octet-stream\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
            )
            yield HeldPatch(connection)

    # --- blobs -----------------------------------------------------------------------------------------------

    def head(self, name: str, digest: str) -> Response:
        return self.request("HEAD", f"/v2/{name}/blobs/{digest}")

    def get(self, name: str, digest: str) -> Response:
        return self.request("GET", f"/v2/{name}/blobs/{digest}")

    def delete(self, name: str, digest: str) -> Response:
        return self.request("DELETE", f"/v2/{name}/blobs/{digest}")

    def serves(self, name: str, digest: str, data: bytes) -> bool:
        """Whether HEAD and GET give exactly these bytes."""
        head, get = self.head(name, digest), self.get(name, digest)
        return (head.status, get.status, head.headers["content-length"], get.body) == (200, 200, str(len(data)), data)

    # --- manifests -------------------------------------------------------------------------------------------

    def put_manifest(self, name: str, reference: str, content: bytes, media_type: str) -> Response:
        """Puts a manifest by tag or digest; the answer may be a refusal."""
        return self.request("PUT", f"/v2/{name}/manifests/{reference}", content, Content_Type=media_type)

    def get_manifest(self, name: str, reference: str, media_type: str) -> Response:
        """A manifest by tag or digest, if it is of that media type."""
        return self.request("GET", f"/v2/{name}/manifests/{reference}", Accept=media_type)

    def delete_manifest(self, name: str, digest: str) -> Response:
        return self.request("DELETE", f"/v2/{name}/manifests/{digest}")

    # --- maintenance -----------------------------------------------------------------------------------------

    def garbage_collect(self) -> str:
        """What a dry run of the registry's own garbage collector says; it changes nothing."""
        result = subprocess.run(
            ["docker-registry", "garbage-collect", "--dry-run", str(self.config)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout


class ConfiguredRegistry(DockerRegistry):
    """A registry with somebody's configuration, exactly as it is, and variables; only its address is ours."""

    def __init__(self, config: Path, directory: Path, **variables: str) -> None:
        super().__init__(directory, directory / "own")
        self.config = config
        # With AWS_CA_BUNDLE 2.8.2 panics where it uses S3.
        inherited = {name: value for name, value in os.environ.items() if name != "AWS_CA_BUNDLE"}
        self.environment = inherited | variables | {"REGISTRY_HTTP_ADDR": f"127.0.0.1:{self.port}"}


class HeldPatch:
    """A request body that is sent piece by piece."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def send(self, data: bytes) -> None:
        self._connection.sendall(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    def finish(self) -> bytes:
        """Ends the body; returns the status line."""
        self._connection.sendall(b"0\r\n\r\n")
        return self._connection.recv(65536).partition(b"\r\n")[0]
