"""A proxy before an S3 server that counts what goes through it, makes requests wait, and breaks what it is told to.

Bodies pass whole through memory: it is made to count and to break, not to be fast.
"""

from __future__ import annotations

import http.client
import http.server
import socket
import ssl
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self
from urllib.parse import parse_qs, unquote, urlsplit

#: What is of one connection and not of the request.
_HOP_BY_HOP: Final = {"connection", "transfer-encoding", "content-length", "keep-alive", "expect"}

_ERROR: Final = '<?xml version="1.0" encoding="UTF-8"?><Error><Code>{}</Code><Message>injected</Message></Error>'


@dataclass
class Seen:
    """One request that came, and what became of it; sizes of bodies in bytes."""

    operation: str
    key: str
    headers: dict[str, str]
    sent: int
    status: int = 0
    received: int = 0
    fault: str = ""
    #: The path and the query, as they were asked for.
    target: str = ""


@dataclass
class Fault:
    """What happens to requests of an operation: `kind` is a method of `_Handler` without its prefix."""

    kind: str
    operation: str
    times: int
    #: As many pass before it.
    after: int = 0
    code: str = "SlowDown"
    status: int = 503
    #: What a refusal has in `Retry-After`, if anything.
    retry_after: str = ""
    #: Only of keys that end so.
    suffix: str = ""
    #: What stands in the place of what in an answer.
    replaced: tuple[bytes, bytes] = (b"", b"")
    met: int = 0
    released: threading.Event = field(default_factory=threading.Event)

    def strikes(self, seen: Seen) -> bool:
        """Whether this request is one of those; counts it."""
        if self.operation not in {seen.operation, "*"} or not seen.key.endswith(self.suffix):
            return False
        self.met += 1
        return self.after < self.met <= self.after + self.times


def operation_of(method: str, target: str, headers: dict[str, str]) -> str:
    """S3's name of a request."""
    query = parse_qs(urlsplit(target).query, keep_blank_values=True)
    copies = "x-amz-copy-source" in headers
    if method == "PUT" and "partNumber" in query:
        return "UploadPartCopy" if copies else "UploadPart"
    table: dict[tuple[str, str], str] = {
        ("PUT", ""): "CopyObject" if copies else "PutObject",
        ("POST", "uploads"): "CreateMultipartUpload",
        ("POST", "uploadId"): "CompleteMultipartUpload",
        ("POST", "delete"): "DeleteObjects",
        ("DELETE", "uploadId"): "AbortMultipartUpload",
        ("DELETE", ""): "DeleteObject",
        ("GET", "list-type"): "ListObjectsV2",
        ("GET", "uploads"): "ListMultipartUploads",
        ("GET", "uploadId"): "ListParts",
        ("GET", ""): "GetObject",
        ("HEAD", ""): "HeadObject",
    }
    marker = next((name for name in ("uploads", "uploadId", "delete", "list-type") if name in query), "")
    return table.get((method, marker), f"{method} {marker}")


class S3Proxy:
    """Listens on a free port of 127.0.0.1, as a context manager."""

    def __init__(self, upstream: str, *, certificate: Path | None = None) -> None:
        """With a `certificate` (and its key, in one file) it is spoken to by TLS."""
        self.upstream = urlsplit(upstream)
        #: Seconds that every request waits before it goes on.
        self.latency = 0.0
        self.seen: list[Seen] = []
        self.faults: list[Fault] = []
        self.at_once = 0
        self.most_at_once = 0
        self.lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.proxy = self
        self._scheme = "http"
        if certificate is not None:
            self._scheme = "https"
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            # The handshake is made by the connection's own thread, when it reads.
            self._server.socket = context.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )

    @property
    def url(self) -> str:
        return f"{self._scheme}://127.0.0.1:{self._server.server_address[1]}"

    @property
    def counts(self) -> Counter[str]:
        """How often each operation was asked for."""
        return Counter(seen.operation for seen in self.seen)

    @property
    def bytes_through(self) -> int:
        """The bytes of all bodies, in both directions."""
        return sum(seen.sent + seen.received for seen in self.seen)

    def forget(self) -> None:
        """Counts from here."""
        self.seen.clear()
        self.most_at_once = 0

    def fail(self, kind: str, operation: str, *, times: int = 1, **more: object) -> Fault:
        """Has the next requests of an operation fail."""
        fault = Fault(kind, operation, times, **more)
        self.faults.append(fault)
        return fault

    def heal(self) -> None:
        """No more faults."""
        for fault in self.faults:
            fault.released.set()
        self.faults.clear()

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.heal()
        self._server.shutdown()
        self._server.server_close()


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 256
    proxy: S3Proxy

    def handle_error(self, *_: object) -> None:
        """A connection that was broken on purpose is no error."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server
    _upstream: http.client.HTTPConnection | None = None

    def handle_one_request(self) -> None:
        self.raw_requestline = self.rfile.readline(65537)
        if not self.raw_requestline or not self.parse_request():
            self.close_connection = True
            return
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        headers = {name.lower(): value for name, value in self.headers.items()}
        key = unquote(urlsplit(self.path).path)
        seen = Seen(operation_of(self.command, self.path, headers), key, headers, len(body), target=unquote(self.path))
        proxy = self.server.proxy
        with proxy.lock:
            proxy.seen.append(seen)
            proxy.at_once += 1
            proxy.most_at_once = max(proxy.most_at_once, proxy.at_once)
            fault = next((fault for fault in proxy.faults if fault.strikes(seen)), None)
        try:
            time.sleep(proxy.latency)  # what it is for
            if fault is None:
                self._answer(seen, *self._forward(seen, body))
            else:
                seen.fault = fault.kind
                handle: Callable[[Fault, Seen, bytes], None] = getattr(self, f"_{fault.kind}")
                handle(fault, seen, body)
        finally:
            with proxy.lock:
                proxy.at_once -= 1

    def log_message(self, *_: object) -> None:
        """Not to standard error."""

    def finish(self) -> None:
        super().finish()
        if self._upstream is not None:
            self._upstream.close()

    # --- what can happen to a request ----------------------------------------------------------------------------

    def _refuse(self, fault: Fault, seen: Seen, _body: bytes) -> None:
        """An error instead of an answer; the server has seen nothing."""
        content = _ERROR.format(fault.code).encode()
        headers = {"content-type": "application/xml"} | (
            {"retry-after": fault.retry_after} if fault.retry_after else {}
        )
        self._answer(seen, fault.status, headers, content)

    def _refuse_after(self, fault: Fault, seen: Seen, body: bytes) -> None:
        """The server has done it, and the answer is an error."""
        self._forward(seen, body)
        self._refuse(fault, seen, body)

    def _error_in_200(self, fault: Fault, seen: Seen, _body: bytes) -> None:
        """Success by its status, an error by its body; the server has seen nothing."""
        self._answer(seen, 200, {"content-type": "application/xml"}, _ERROR.format(fault.code).encode())

    def _page(self, _fault: Fault, seen: Seen, _body: bytes) -> None:
        """What something on the way says to everything, with success as its status; the server has seen nothing."""
        self._answer(seen, 200, {"content-type": "text/html"}, b"<html><body>Down for maintenance</body></html>")

    def _reset_before(self, _fault: Fault, _seen: Seen, _body: bytes) -> None:
        """The connection breaks before the server has seen anything."""
        self._reset()

    def _reset_after(self, _fault: Fault, seen: Seen, body: bytes) -> None:
        """The server has done it, and nobody is told."""
        self._forward(seen, body)
        self._reset()

    def _truncate(self, _fault: Fault, seen: Seen, body: bytes) -> None:
        """Half of the answer."""
        status, headers, content = self._forward(seen, body)
        self._head(seen, status, headers, len(content))
        self.wfile.write(content[: len(content) // 2])
        self._reset()

    def _flip(self, _fault: Fault, seen: Seen, body: bytes) -> None:
        """One bit of the answer is another."""
        status, headers, content = self._forward(seen, body)
        changed = bytearray(content)
        changed[len(changed) // 2] ^= 0x10
        self._answer(seen, status, headers, bytes(changed))

    def _edit(self, fault: Fault, seen: Seen, body: bytes) -> None:
        """The answer says something else."""
        status, headers, content = self._forward(seen, body)
        assert fault.replaced[0] in content, content
        self._answer(seen, status, headers, content.replace(*fault.replaced))

    def _flip_request(self, _fault: Fault, seen: Seen, body: bytes) -> None:
        """One bit of what is sent to the server is another."""
        changed = bytearray(body)
        changed[len(changed) // 2] ^= 0x10
        self._answer(seen, *self._forward(seen, bytes(changed)))

    def _stall(self, fault: Fault, _seen: Seen, _body: bytes) -> None:
        """No answer, until everything is healed."""
        fault.released.wait()
        self._reset()

    def _hold(self, fault: Fault, seen: Seen, body: bytes) -> None:
        """Goes on when everything is healed."""
        fault.released.wait()
        self._answer(seen, *self._forward(seen, body))

    # --- both sides ----------------------------------------------------------------------------------------------

    def _forward(self, seen: Seen, body: bytes) -> tuple[int, dict[str, str], bytes]:
        if self._upstream is None:
            proxy = self.server.proxy
            self._upstream = http.client.HTTPConnection(proxy.upstream.hostname, proxy.upstream.port, timeout=60)
        connection = self._upstream
        connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in seen.headers.items():
            if name not in _HOP_BY_HOP:
                connection.putheader(name, value)
        if body or self.command in {"PUT", "POST"}:
            connection.putheader("content-length", str(len(body)))
        connection.endheaders(body or None)
        answer = connection.getresponse()
        content = answer.read()
        headers = {name.lower(): value for name, value in answer.getheaders()}
        if self.command == "HEAD":
            headers["x-length"] = headers.get("content-length", "0")
        return answer.status, {n: v for n, v in headers.items() if n not in _HOP_BY_HOP}, content

    def _answer(self, seen: Seen, status: int, headers: dict[str, str], content: bytes) -> None:
        self._head(seen, status, headers, len(content))
        if self.command != "HEAD":
            self.wfile.write(content)

    def _head(self, seen: Seen, status: int, headers: dict[str, str], length: int) -> None:
        seen.status, seen.received = status, length
        self.send_response_only(status)
        said = headers.pop("x-length", None)
        for name, value in headers.items():
            self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", said if said is not None else str(length))
        self.end_headers()

    def _reset(self) -> None:
        """Closes the connection so that the other side gets ECONNRESET."""
        self.wfile.flush()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()
