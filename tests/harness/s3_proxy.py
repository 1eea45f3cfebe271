"""A proxy before an S3 server that counts what goes through it, makes requests wait, and breaks what it is told to."""

from __future__ import annotations

import http.client
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self
from urllib.parse import parse_qs, unquote, urlsplit

from harness.http_proxy import Answer, Handler, Listener, flipped, forward, page, with_retry_after

_ERROR: Final = '<?xml version="1.0" encoding="UTF-8"?><Error><Code>{}</Code><Message>injected</Message></Error>'

#: Its token is what lies before all keys of tests: itself to servers that take one for a key, and to Swift, which takes
#: it for base64, "0".
_EMPTY_PAGE: Final = (
    b'<?xml version="1.0" encoding="UTF-8"?><ListBucketResult><KeyCount>0</KeyCount><IsTruncated>true</IsTruncated>'
    b"<NextContinuationToken>MA==</NextContinuationToken></ListBucketResult>"
)


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
    #: What the server said, by its status, to each request that was put off.
    delivered: queue.Queue[int] = field(default_factory=queue.Queue)

    def strikes(self, seen: Seen) -> bool:
        """Whether this request is one of those; counts it."""
        if self.operation not in {seen.operation, "*"} or not seen.key.endswith(self.suffix):
            return False
        self.met += 1
        return self.after < self.met <= self.after + self.times

    def deliver(self) -> list[int]:
        """Has the requests that were put off reach the server now; returns what that said to each, by its status."""
        self.released.set()
        return [self.delivered.get(timeout=30) for _ in range(min(self.met - self.after, self.times))]


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
        self._server = _Server(_Handler, certificate)
        self._server.proxy = self
        self._scheme = "http" if certificate is None else "https"

    @property
    def url(self) -> str:
        return f"{self._scheme}://127.0.0.1:{self._server.port}"

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


class _Server(Listener):
    proxy: S3Proxy


class _Handler(Handler):
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
                self.answer(seen, *self._forward(seen, body))
            else:
                seen.fault = fault.kind
                handle: Callable[[Fault, Seen, bytes], None] = getattr(self, f"_{fault.kind}")
                handle(fault, seen, body)
        finally:
            with proxy.lock:
                proxy.at_once -= 1

    def finish(self) -> None:
        super().finish()
        if self._upstream is not None:
            self._upstream.close()

    # --- what can happen to a request ----------------------------------------------------------------------------

    def _refuse(self, fault: Fault, seen: Seen, _body: bytes) -> None:
        """An error instead of an answer; the server has seen nothing."""
        self.answer(seen, *with_retry_after(_error(fault.status, fault), fault.retry_after))

    def _refuse_after(self, fault: Fault, seen: Seen, body: bytes) -> None:
        """The server has done it, and the answer is an error."""
        self._forward(seen, body)
        self._refuse(fault, seen, body)

    def _error_in_200(self, fault: Fault, seen: Seen, _body: bytes) -> None:
        """Success by its status, an error by its body; the server has seen nothing."""
        self.answer(seen, *_error(200, fault))

    def _page(self, _fault: Fault, seen: Seen, _body: bytes) -> None:
        """What something on the way says to everything, with success as its status; the server has seen nothing."""
        self.answer(seen, *page())

    def _reset_before(self, _fault: Fault, _seen: Seen, _body: bytes) -> None:
        """The connection breaks before the server has seen anything."""
        self.reset()

    def _reset_after(self, _fault: Fault, seen: Seen, body: bytes) -> None:
        """The server has done it, and nobody is told."""
        self._forward(seen, body)
        self.reset()

    def _truncate(self, _fault: Fault, seen: Seen, body: bytes) -> None:
        """Half of the answer."""
        status, headers, content = self._forward(seen, body)
        self.head(seen, status, headers, len(content))
        self.wfile.write(content[: len(content) // 2])
        self.reset()

    def _flip(self, _fault: Fault, seen: Seen, body: bytes) -> None:
        """One bit of the answer is another."""
        status, headers, content = self._forward(seen, body)
        self.answer(seen, status, headers, flipped(content))

    def _mix_up(self, _fault: Fault, seen: Seen, body: bytes) -> None:
        """The answer is of a range that begins one byte later, as a cache gives that has mixed them up."""
        status, headers, content = self._forward(seen, body)
        name = next(name for name in headers if name.lower() == "content-range")
        begin, rest = headers[name].removeprefix("bytes ").split("-")
        self.answer(seen, status, headers | {name: f"bytes {int(begin) + 1}-{rest}"}, content)

    def _edit(self, fault: Fault, seen: Seen, body: bytes) -> None:
        """The answer says something else."""
        status, headers, content = self._forward(seen, body)
        assert fault.replaced[0] in content, content
        self.answer(seen, status, headers, content.replace(*fault.replaced))

    def _empty_page(self, _fault: Fault, seen: Seen, _body: bytes) -> None:
        """A page of a listing without objects, after which the listing begins; the server has seen nothing."""
        self.answer(seen, 200, {"content-type": "application/xml"}, _EMPTY_PAGE)

    def _unnumbered(self, _fault: Fault, seen: Seen, body: bytes) -> None:
        """The answer has no number, and is said to be HTML, as some servers say of all of theirs."""
        status, headers, content = self._forward(seen, body)
        headers.pop("x-amz-request-id")
        self.answer(seen, status, headers | {"content-type": "text/html; charset=utf-8"}, content)

    def _flip_request(self, _fault: Fault, seen: Seen, body: bytes) -> None:
        """One bit of what is sent to the server is another."""
        self.answer(seen, *self._forward(seen, flipped(body)))

    def _stall(self, fault: Fault, _seen: Seen, _body: bytes) -> None:
        """No answer, until everything is healed."""
        fault.released.wait()
        self.reset()

    def _hold(self, fault: Fault, seen: Seen, body: bytes) -> None:
        """Goes on when everything is healed."""
        fault.released.wait()
        self.answer(seen, *self._forward(seen, body))

    def _put_off(self, fault: Fault, seen: Seen, body: bytes) -> None:
        """The connection breaks, but the request is kept, and reaches the server when that is asked for."""
        self.reset()
        self._deliver(fault, seen, body)

    def _put_off_in_silence(self, fault: Fault, seen: Seen, body: bytes) -> None:
        """The same without a word to whoever asked."""
        self._deliver(fault, seen, body)
        self.reset()

    def _deliver(self, fault: Fault, seen: Seen, body: bytes) -> None:
        fault.released.wait()
        fault.delivered.put(self._forward(seen, body)[0])

    # --- both sides ----------------------------------------------------------------------------------------------

    def _forward(self, seen: Seen, body: bytes) -> Answer:
        if self._upstream is None:
            proxy = self.server.proxy
            self._upstream = http.client.HTTPConnection(proxy.upstream.hostname, proxy.upstream.port, timeout=60)
        return forward(self._upstream, self.command, self.path, seen.headers, body)


def _error(status: int, fault: Fault) -> Answer:
    return status, {"content-type": "application/xml"}, _ERROR.format(fault.code).encode()
