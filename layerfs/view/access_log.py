"""The access log: a line for every operation, for whoever reads `.layerfs/accesslog` at the moment.

Nothing is kept while nobody reads, and nobody who reads slowly keeps anybody waiting: lines that do not fit any more
are left out, and the reader is told how many.
"""

from __future__ import annotations

from collections import deque
from typing import Final

import trio

from layerfs.errors import HandleLimit
from layerfs.view.nodes import Handle

#: Bytes that wait for one reader.
_BACKLOG: Final = 1 << 20

#: Readers at a time; each keeps a request waiting, of which the kernel's connection has a limited number.
_READERS: Final = 8

#: Seconds after which a read is answered with an empty comment if there is nothing to tell: a reader that is
#: interrupted, or a mount that ends, waits no longer.
_KEEP_ALIVE_SECONDS: Final = 1.0


class AccessLog:
    """Who reads, and what they have not read yet."""

    def __init__(self) -> None:
        #: Empty while there is nothing to do.
        self.readers: list[AccessLogHandle] = []

    def open(self, path: str) -> AccessLogHandle:
        """One more reader, who gets everything from now on. Raises `HandleLimit`."""
        if len(self.readers) >= _READERS:
            raise HandleLimit(f"{_READERS} programs read {path} already, as many as may")
        return AccessLogHandle(path, self)

    def write(self, line: str) -> None:
        """Gives a line, without its end, to everybody who reads."""
        content = line.encode(errors="backslashreplace") + b"\n"
        for reader in self.readers:
            reader.add(content)


class AccessLogHandle(Handle):
    """One reader's open file: a stream, so the offset of a read does not matter."""

    direct = True

    def __init__(self, path: str, log: AccessLog) -> None:
        self.path = path
        self._log = log
        self._lines: deque[bytes] = deque()
        self._waiting = 0
        self._left_out = 0
        self._arrived = trio.Event()
        log.readers.append(self)

    def add(self, content: bytes) -> None:
        """One more line, if there is room."""
        if self._waiting + len(content) > _BACKLOG:
            self._left_out += 1
            return
        self._lines.append(content)
        self._waiting += len(content)
        self._arrived.set()

    async def read(self, offset: int, length: int) -> bytes:  # noqa: ARG002 - it is a stream
        """What has come, as much as fits; waits a second at most."""
        with trio.move_on_after(_KEEP_ALIVE_SECONDS):
            await self._arrived.wait()
        content = bytearray()
        while self._lines and len(content) < length:
            content += self._lines.popleft()
        self._waiting -= len(content)
        if len(content) > length:
            self._lines.appendleft(bytes(content[length:]))
            self._waiting += len(content) - length
            return bytes(content[:length])
        if not self._lines:
            self._arrived = trio.Event()
            content += self._left_out_note()
        return bytes(content[:length]) or b"#\n"[:length]

    def _left_out_note(self) -> bytes:
        left_out, self._left_out = self._left_out, 0
        return f"# {left_out} lines were left out: they came faster than they were read\n".encode() if left_out else b""

    async def release(self) -> None:
        self._log.readers.remove(self)
