"""A proxy before the server of an object store that counts what goes through it, and breaks what it is told to.

Bodies pass whole through memory: it is made to count and to break, not to be fast. What requests are called, what an
error looks like, and what else happens on the way, is said by a subclass for each kind of store.
"""

from __future__ import annotations

import http.client
import http.server
import socket
import ssl
import struct
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

HOP_BY_HOP: Final = {"connection", "transfer-encoding", "content-length", "keep-alive"}

#: Status, headers in lower case, body.
Answer = tuple[int, dict[str, str], bytes]


@dataclass
class Call:
    """A request: what it is called, and the key of the object that it is about."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes
    operation: str = ""
    key: str = ""


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
    """What happens to the next requests of an operation, or of all (`*`), after so many have passed.

    `kind` is "refuse" (with an error, nothing was done), "reset_before", "reset_after" (all was done), "late" (all is
    done when it is `released`, long after the connection broke), "stall", "flip" (one bit of what was sent) or "page"
    (something on the way says success, and the server has seen nothing).
    """

    kind: str
    operation: str
    times: int = 1
    after: int = 0
    status: int = 503
    code: str = ""
    #: What a refusal has in `Retry-After`, if anything.
    retry_after: str = ""
    released: threading.Event = field(default_factory=threading.Event)
    #: Set when what was late is done.
    served: threading.Event = field(default_factory=threading.Event)


class Relay:
    """Listens on a free port of 127.0.0.1, from when it is made until `stop`; by TLS if it has a certificate."""

    def __init__(self, upstream_port: int, *, certificate: tuple[Path, Path] | None = None) -> None:
        self.upstream_port = upstream_port
        #: How to trust the server, if it speaks TLS itself.
        self.upstream_tls: ssl.SSLContext | None = None
        self.seen: list[Seen] = []
        self.faults: list[Fault] = []
        self.lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.relay = self
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*certificate)
            # The handshake is made by the thread of the connection.
            self._server.socket = context.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def describe(self, call: Call) -> None:
        """Gives a request its operation and key."""
        raise NotImplementedError

    def error(self, fault: Fault) -> Answer:
        """What a refused request is answered."""
        raise NotImplementedError

    def serve(self, call: Call) -> Answer:
        """What the server answers, with whatever happens on the way."""
        return self.forward(call)

    # --- counting and breaking ---------------------------------------------------------------------------------------

    @property
    def counts(self) -> Counter[str]:
        """How often each operation was asked for."""
        return Counter(seen.operation for seen in self.seen)

    @property
    def bytes_through(self) -> int:
        """The bytes of all bodies, in both directions."""
        return sum(seen.sent + seen.received for seen in self.seen)

    def fail(self, kind: str, operation: str, **more: Any) -> Fault:
        """Has the next requests of an operation fail."""
        fault = Fault(kind, operation, **more)
        self.faults.append(fault)
        return fault

    def heal(self) -> None:
        """No more faults, and counts from here."""
        for fault in self.faults:
            fault.released.set()
        self.faults.clear()
        self.seen.clear()

    def stop(self) -> None:
        self.heal()
        self._server.shutdown()
        self._server.server_close()

    # --- for the handler and for subclasses --------------------------------------------------------------------------

    def note(self, call: Call) -> tuple[Seen, Fault | None]:
        """Counts a request; and what is to happen to it."""
        self.describe(call)
        seen = Seen(call.operation, call.key, len(call.body))
        with self.lock:
            self.seen.append(seen)
            for fault in self.faults:
                if fault.operation not in {call.operation, "*"} or not fault.times:
                    continue
                if fault.after:
                    fault.after -= 1
                    continue
                fault.times -= 1
                return seen, fault
        return seen, None

    def forward(self, call: Call) -> Answer:
        # One connection for each: some emulators close them when they like.
        connection = self._connect()
        try:
            connection.putrequest(call.method, call.target, skip_host=True, skip_accept_encoding=True)
            for name, value in call.headers.items():
                if name not in HOP_BY_HOP:
                    connection.putheader(name, value)
            if call.body or call.method in {"PUT", "POST"}:
                connection.putheader("content-length", str(len(call.body)))
            connection.endheaders(call.body or None)
            answer = connection.getresponse()
            content = answer.read()
            headers = {name.lower(): value for name, value in answer.getheaders()}
            if call.method == "HEAD":
                headers["x-length"] = headers.get("content-length", "0")
            return answer.status, {n: v for n, v in headers.items() if n not in HOP_BY_HOP}, content
        finally:
            connection.close()

    def _connect(self) -> http.client.HTTPConnection:
        if self.upstream_tls is None:
            return http.client.HTTPConnection("127.0.0.1", self.upstream_port, timeout=60)
        return http.client.HTTPSConnection("127.0.0.1", self.upstream_port, timeout=60, context=self.upstream_tls)


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 256
    relay: Relay

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
        headers = {name.lower(): value for name, value in self.headers.items()}
        call = Call(self.command, self.path, headers, self._read_body())
        relay = self.server.relay
        seen, fault = relay.note(call)
        if fault is None:
            self._answer(seen, *relay.serve(call))
        elif fault.kind == "refuse":
            status, said, content = relay.error(fault)
            self._answer(
                seen, status, said | ({"retry-after": fault.retry_after} if fault.retry_after else {}), content
            )
        elif fault.kind == "page":
            page = b"<html><body>Down for maintenance</body></html>"
            self._answer(seen, 200, {"content-type": "text/html"}, page)
        elif fault.kind == "flip":
            middle = len(call.body) // 2
            call.body = call.body[:middle] + bytes([call.body[middle] ^ 1]) + call.body[middle + 1 :]
            self._answer(seen, *relay.serve(call))
        else:
            if fault.kind == "reset_after":
                relay.serve(call)
            elif fault.kind == "stall":
                fault.released.wait()
            self._reset()
            if fault.kind == "late":
                fault.released.wait()
                relay.serve(call)
                fault.served.set()

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

    def _answer(self, seen: Seen, status: int, headers: dict[str, str], content: bytes) -> None:
        seen.status, seen.received = status, len(content)
        self.send_response_only(status)
        said = headers.pop("x-length", None)
        for name, value in headers.items():
            self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", said if said is not None else str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _reset(self) -> None:
        """Closes the connection so that the other side gets ECONNRESET."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()
