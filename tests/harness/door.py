"""The way to a server that can be shut, as when it is restarted: nobody listens there, and all calls are cut off.

It is a TCP port that leads to another one; what is said on the way it does not look at.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from typing import Final, Self

_RESET: Final = struct.pack("ii", 1, 0)


class Door:
    """A port of 127.0.0.1 that leads to `target`, another one, as a context manager; it begins open."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._lock = threading.Lock()
        self._ends: list[socket.socket] = []
        self._listener = _bind(0)
        self.port: int = self._listener.getsockname()[1]
        self.open()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.shut()
        self._listener.close()

    def open(self) -> None:
        """Lets everybody in from here on."""
        self._listener.listen(256)
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def shut(self) -> None:
        """Breaks all connections, and has new ones refused; the port stays ours."""
        # It is in the thread's `accept`, which only this ends; it is an error if it is shut already.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._listener = _bind(self.port)
        with self._lock:
            ends, self._ends = self._ends, []
        for end in ends:
            with contextlib.suppress(OSError):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                end.shutdown(socket.SHUT_RDWR)

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                caller, _ = listener.accept()
                server = socket.create_connection(("127.0.0.1", self._target))
                with self._lock:
                    self._ends += [caller, server]
                for source, sink in ((caller, server), (server, caller)):
                    threading.Thread(target=_carry, args=(source, sink), daemon=True).start()


def _bind(port: int) -> socket.socket:
    bound = socket.socket()
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.bind(("127.0.0.1", port))
    return bound


def _carry(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 20):
            sink.sendall(data)
    for end in (source, sink):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
