"""What proxies before object stores are made of, whatever store is behind them.

Bodies pass whole through memory: these proxies are made to count and to break, not to be fast.
"""

from __future__ import annotations

import http.client
import http.server
import socket
import ssl
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Protocol

#: Status, headers in lower case, body.
Answer = tuple[int, dict[str, str], bytes]

#: What is of one connection and not of the request. `expect` is answered by whoever reads the request first.
_HOP_BY_HOP: Final = {"connection", "transfer-encoding", "content-length", "keep-alive", "expect"}


class Recorded(Protocol):
    """What is noted of a request when it is answered; `received` in bytes of the body."""

    status: int
    received: int


class Listener(http.server.ThreadingHTTPServer):
    """A free port of 127.0.0.1, by TLS if there is a certificate; without a `key` that is in the same file."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 256

    def __init__(self, handler: type[Handler], certificate: Path | None = None, key: Path | None = None) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        self.port: int = self.server_address[1]
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate, key)
            # The handshake is made by the connection's own thread, when it reads.
            self.socket = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)

    def handle_error(self, *_: object) -> None:
        """A connection that was broken on purpose is no error."""


class Handler(http.server.BaseHTTPRequestHandler):
    """One connection to a proxy; what becomes of a request is up to a subclass."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_: object) -> None:
        """Not to standard error."""

    def answer(self, seen: Recorded, status: int, headers: Mapping[str, str], content: bytes) -> None:
        self.head(seen, status, headers, len(content))
        if self.command != "HEAD":
            self.wfile.write(content)

    def head(self, seen: Recorded, status: int, headers: Mapping[str, str], length: int) -> None:
        """An answer without its body, which is as long as this."""
        seen.status, seen.received = status, length
        self.send_response_only(status)
        for name, value in headers.items():
            if name != "x-length":
                self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", headers.get("x-length", str(length)))
        self.end_headers()

    def reset(self) -> None:
        """Closes the connection so that the other side gets ECONNRESET, now."""
        self.wfile.flush()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        # The socket is closed when nobody has it any more.
        self.rfile.close()
        self.connection.close()


def forward(
    connection: http.client.HTTPConnection, method: str, target: str, headers: Mapping[str, str], body: bytes
) -> Answer:
    """What a server answers. Of a body that HEAD leaves out, the length is in `x-length`."""
    connection.putrequest(method, target, skip_host=True, skip_accept_encoding=True)
    for name, value in headers.items():
        if name not in _HOP_BY_HOP:
            connection.putheader(name, value)
    if body or method in {"PUT", "POST"}:
        connection.putheader("content-length", str(len(body)))
    connection.endheaders(body or None)
    answer = connection.getresponse()
    content = answer.read()
    said = {name.lower(): value for name, value in answer.getheaders()}
    if method == "HEAD":
        said["x-length"] = said.get("content-length", "0")
    return answer.status, {name: value for name, value in said.items() if name not in _HOP_BY_HOP}, content


def page() -> Answer:
    """What something on the way says to everything, with success as its status."""
    return 200, {"content-type": "text/html"}, b"<html><body>Down for maintenance</body></html>"


def with_retry_after(refusal: Answer, retry_after: str) -> Answer:
    """A refusal that says when to ask again, in `Retry-After`, unless that is empty."""
    status, headers, content = refusal
    return status, headers | ({"retry-after": retry_after} if retry_after else {}), content


def flipped(content: bytes) -> bytes:
    """The same with one bit changed, in the middle; of nothing nothing."""
    middle = len(content) // 2
    return content[:middle] + bytes(byte ^ 0x10 for byte in content[middle : middle + 1]) + content[middle + 1 :]
