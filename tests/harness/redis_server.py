"""Debian's redis-server on a free port of 127.0.0.1, with nothing in it, and a server that only listens."""

from __future__ import annotations

import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import redis

from harness.fixture import free_port


class RedisServer:
    """A Redis that stores nothing on disk. It can be killed and started again, empty, on the same port."""

    def __init__(self, directory: Path, *options: str, password: str = "") -> None:
        self.port = free_port()
        self.password = password
        self._directory = directory
        self._options = [*options, *(["--requirepass", password] if password else [])]
        self._process: subprocess.Popen[bytes] | None = None
        self.client = redis.Redis(port=self.port, protocol=2, password=password or None)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.client.close()
        self.kill()

    def start(self) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        log_path = self._directory / "redis.log"
        with log_path.open("wb") as log:
            self._process = subprocess.Popen(
                ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", *self._options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._directory,
            )
        deadline = time.monotonic() + 20
        while not self._answers():
            assert self._process.poll() is None, log_path.read_text()
            assert time.monotonic() < deadline, "redis-server does not answer"
            time.sleep(0.01)  # polling interval

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(10)

    def freeze(self) -> None:
        """It takes connections and requests, and answers none, until `thaw`."""
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def _answers(self) -> bool:
        try:
            return bool(self.client.ping())
        except redis.ConnectionError:
            return False

    def content(self) -> dict[str, object]:
        """All keys, with what is in them and when they expire."""
        content = {}
        for key in self.client.keys("*"):
            members = self.client.type(key) == b"set"
            value = self.client.smembers(key) if members else self.client.hgetall(key)
            content[key.decode()] = (value, self.client.ttl(key))
        return content


@contextmanager
def silent_server() -> Iterator[str]:
    """The URL of a server that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"redis://127.0.0.1:{listener.getsockname()[1]}/0"
