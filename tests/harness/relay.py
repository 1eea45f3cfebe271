"""A proxy before the server of an object store that counts what goes through it, and breaks what it is told to.

What requests are called, what an error looks like, and what else happens on the way, is said by a subclass for each
kind of store.
"""

from __future__ import annotations

import http.client
import ssl
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.http_proxy import Answer, Handler, Listener, flipped, forward, page, with_retry_after


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
        self._server = _Server(_Handler, *(certificate or ()))
        self._server.relay = self
        self.port = self._server.port
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
            return forward(connection, call.method, call.target, call.headers, call.body)
        finally:
            connection.close()

    def _connect(self) -> http.client.HTTPConnection:
        if self.upstream_tls is None:
            return http.client.HTTPConnection("127.0.0.1", self.upstream_port, timeout=60)
        return http.client.HTTPSConnection("127.0.0.1", self.upstream_port, timeout=60, context=self.upstream_tls)


class _Server(Listener):
    relay: Relay


class _Handler(Handler):
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
            self.answer(seen, *relay.serve(call))
        elif fault.kind == "refuse":
            self.answer(seen, *with_retry_after(relay.error(fault), fault.retry_after))
        elif fault.kind == "page":
            self.answer(seen, *page())
        elif fault.kind == "flip":
            call.body = flipped(call.body)
            self.answer(seen, *relay.serve(call))
        else:
            if fault.kind == "reset_after":
                relay.serve(call)
            elif fault.kind == "stall":
                fault.released.wait()
            self.reset()
            if fault.kind == "late":
                fault.released.wait()
                relay.serve(call)
                fault.served.set()

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        pieces = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            pieces.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(pieces)
