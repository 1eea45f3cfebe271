"""A layerfs daemon under test: always a subprocess, always ended, its log always read.

A test that touches a mount whose daemon hangs cannot be killed: it waits in the kernel. So nothing here touches the
mount to judge or to end it, and `abort_all` (called by a timer) frees everybody who waits.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

COMMAND = Path(sys.executable).parent / "layerfs"
OPERATIONS = "layerfs.operations"

#: Seconds for a daemon to become ready, and to go after SIGTERM.
START_LIMIT = 30
STOP_LIMIT = 20

#: Seconds for what was refused to be in the log.
LOG_LIMIT = 10

#: Questions that tools ask of every file; the answer "no" is not worth a declaration.
ASKED_BY_TOOLS = ("ENODATA", "EOPNOTSUPP", "ERANGE")

_LIVE: set[Mount] = set()


def abort_all() -> None:
    """Ends every daemon at once, so that nobody waits for an answer any more."""
    for mount in list(_LIVE):
        mount.abort()


class LogLine:
    """One line that the daemon wrote to stderr."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.declared = False
        try:
            record = json.loads(text)
        except ValueError:
            record = None
        self.is_json = isinstance(record, dict)
        self.record: dict = record if isinstance(record, dict) else {}

    @property
    def level(self) -> str:
        return str(self.record.get("level") or self.record.get("levelname") or "ERROR").upper()

    @property
    def logger(self) -> str:
        return str(self.record.get("logger") or self.record.get("name") or "")

    @property
    def is_refusal(self) -> bool:
        return self.logger == OPERATIONS and self.level in ("INFO", "WARNING")

    @property
    def is_unexpected(self) -> bool:
        """Whether the line fails a test that did not declare it."""
        if self.declared:
            return False
        if not self.is_json or "Traceback" in self.text or self.level not in ("DEBUG", "INFO", "WARNING"):
            return True
        if self.is_refusal:
            return not any(name in self.text for name in ASKED_BY_TOOLS)
        return self.level == "WARNING"


class Notifications:
    """What the daemon tells its service manager, for as long as the daemon lives."""

    def __init__(self, address: Path) -> None:
        self.address = address
        self._words: list[str] = []
        address.unlink(missing_ok=True)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(address))
        address.chmod(0o777)
        threading.Thread(target=self._receive, args=(self._socket,), daemon=True).start()

    def _receive(self, receiver: socket.socket) -> None:
        while message := receiver.recv(4096):
            self._words += message.decode().splitlines()
        receiver.close()

    def has(self, word: str) -> bool:
        """Whether this was said, ever."""
        return word in self._words

    def count(self, word: str) -> int:
        """How often this was said."""
        return self._words.count(word)

    def close(self) -> None:
        """Ends the receiver, by an empty message."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as last:
            last.sendto(b"", str(self.address))


class Mount:
    """`layerfs mount SOURCE MOUNTPOINT`, as a context manager that leaves nothing behind."""

    def __init__(self, source: Path | str, mountpoint: Path, *options: str, user: int | None = None) -> None:
        self.source = source
        self.path = mountpoint
        self.options = options
        self.user = user
        self.process: subprocess.Popen[bytes] | None = None
        self.lines: list[LogLine] = []
        self.notifications: Notifications | None = None
        self._partial = ""
        self._connection = ""
        self._directory = Path(tempfile.mkdtemp(prefix="layerfs-log-"))
        self._directory.chmod(0o755)
        self.log_path = self._directory / "log"
        self._log = self.log_path.open("wb")
        self._log_read = self.log_path.open("rb")

    # --- life ------------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_exc: object) -> None:
        try:
            if self.is_alive:
                self.stop()
        finally:
            self.clean_up()

    def start(self) -> Self:
        """Returns when the daemon has reported that it is ready."""
        with suppress(FileExistsError):  # also of a dead mount, about which nothing can be asked
            os.makedirs(self.path)
        if self.notifications is not None:
            self.notifications.close()
        self.notifications = Notifications(self._directory / "notify")
        _LIVE.add(self)
        self.process = subprocess.Popen(
            [COMMAND, "mount", self.source, self.path, "--log-format", "json", *self.options],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            env=os.environ | {"NOTIFY_SOCKET": str(self.notifications.address)},
            user=self.user,
            group=self.user,
            extra_groups=None if self.user is None else [],
            cwd="/",
        )
        self._wait_ready()
        self._connection = self._fuse_connection()
        return self

    def _wait_ready(self) -> None:
        deadline = time.monotonic() + START_LIMIT
        while not self.notifications.has("READY=1"):
            if self.process.poll() is not None:
                raise AssertionError(f"layerfs mount ended with {self.process.returncode}:\n{self.log_text()}")
            if time.monotonic() > deadline:
                self.abort()
                raise AssertionError(f"layerfs mount was not ready after {START_LIMIT} s:\n{self.log_text()}")
            time.sleep(0.01)  # polling interval

    def stop(self) -> None:
        """Stops the daemon as an administrator does; it must end by itself, unmounted, with exit code 0."""
        self.process.send_signal(signal.SIGTERM)
        self.wait_end()
        assert self.process.returncode == 0, f"SIGTERM: exit code {self.process.returncode}\n{self.log_text()}"
        assert not self.is_mounted, "SIGTERM left the mount behind"

    def wait_end(self, seconds: float = STOP_LIMIT) -> int:
        """The exit code of a daemon that is about to end."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.abort()
            raise AssertionError(f"the daemon did not end within {seconds} s\n{self.log_text()}") from None

    def kill9(self) -> None:
        """What a crash leaves: the mountpoint answers ENOTCONN."""
        self.process.kill()
        self.process.wait(STOP_LIMIT)

    def remount(self) -> Self:
        """A new daemon on the same storage and place, whatever became of the old one."""
        assert not self.is_alive
        return self.start()

    def abort(self) -> None:
        """Frees everybody who waits for this daemon. Never waits itself."""
        abort = Path("/sys/fs/fuse/connections") / self._connection / "abort"
        if self._connection and abort.exists():
            abort.write_text("1")
        if self.process is not None:
            self.process.kill()

    def clean_up(self) -> None:
        """No daemon and no mount afterwards, whatever happened."""
        if self.is_alive:
            self.abort()
            self.process.wait(STOP_LIMIT)
        while self.is_mounted:
            subprocess.run(["umount", "-l", str(self.path)], check=True, timeout=STOP_LIMIT)
        _LIVE.discard(self)
        if self.notifications is not None:
            self.notifications.close()
            self.notifications = None
        self.read_log()
        self._log.close()
        self._log_read.close()
        shutil.rmtree(self._directory, ignore_errors=True)

    @property
    def is_alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    @property
    def is_mounted(self) -> bool:
        return self._mountinfo() is not None

    def _mountinfo(self) -> list[str] | None:
        """The newest line about the mountpoint in mountinfo, which can be read without touching the mount."""
        wanted = os.fsencode(self.path).decode("unicode_escape")
        found = None
        # A source can have any name, also one that is no text.
        with open("/proc/self/mountinfo", errors="surrogateescape") as lines:
            for line in lines:
                fields = line.split()
                if os.fsencode(fields[4]).decode("unicode_escape") == wanted:
                    found = fields
        return found

    def _fuse_connection(self) -> str:
        fields = self._mountinfo()
        return fields[2].partition(":")[2] if fields else ""

    @property
    def mount_options(self) -> set[str]:
        return set(self._mountinfo()[5].split(","))

    # --- its process -----------------------------------------------------------------------------------------

    @property
    def resident_bytes(self) -> int:
        """Memory that the daemon has at the moment."""
        pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    @property
    def descriptors(self) -> int:
        """Files that the daemon has open."""
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    # --- its log ---------------------------------------------------------------------------------------------

    def read_log(self) -> list[LogLine]:
        """Everything logged so far."""
        if self._log_read.closed:
            return self.lines
        self._partial += self._log_read.read().decode(errors="backslashreplace")
        *whole, self._partial = self._partial.split("\n")
        self.lines.extend(LogLine(line) for line in whole if line)
        return self.lines

    def log_text(self) -> str:
        return "\n".join(line.text[:300] for line in self.read_log()[-12:])

    def check_log(self) -> None:
        """Fails when something was logged that no test declared; says it only once."""
        unexpected = [line for line in self.read_log() if line.is_unexpected]
        for line in unexpected:
            line.declared = True
        assert not unexpected, "unexpected in the log:\n" + "\n".join(line.text for line in unexpected)

    @contextmanager
    def refused(self, *codes: int) -> Iterator[None]:
        """The body must fail with one of these errnos, and unless that happens all the time the log must say why."""
        names = [_name(code) for code in codes]
        with self._declares(names, demanded=False) as new_refusals:
            try:
                yield
            except OSError as exc:
                got = _name(exc.errno)
                assert exc.errno in codes, f"expected {names}, got {got}: {exc}"
            else:
                raise AssertionError(f"expected {names}, but it succeeded")
            if got not in ("ENOENT", *ASKED_BY_TOOLS):
                _wait_for(lambda: new_refusals(got), f"a line of {OPERATIONS} with {got}", self)

    @contextmanager
    def refuses(self, *names: str) -> Iterator[None]:
        """The body makes the daemon refuse something with one of these errnos, and the log says why."""
        with self._declares(names, demanded=True):
            yield

    @contextmanager
    def tolerates(self, *names: str) -> Iterator[None]:
        """The body may make the daemon refuse something with one of these errnos."""
        with self._declares(names, demanded=False):
            yield

    @contextmanager
    def _declares(self, names, *, demanded: bool):
        start = len(self.read_log())

        def new_refusals(*wanted: str) -> list[LogLine]:
            return [
                line
                for line in self.read_log()[start:]
                if line.is_refusal and any(name in line.text for name in wanted)
            ]

        try:
            yield new_refusals
            if demanded:
                _wait_for(lambda: new_refusals(*names), f"a line of {OPERATIONS} with one of {names}", self)
        finally:
            for line in new_refusals(*names):
                line.declared = True

    def declare(self, level: str, *words: str) -> list[LogLine]:
        """Lines of a level (WARNING, say) that hold one of these words are expected."""
        found = [
            line
            for line in self.read_log()
            if line.level == level and (not words or any(word in line.text for word in words))
        ]
        for line in found:
            line.declared = True
        return found


def _name(code: int | None) -> str:
    """The errno's name as the log has it; Python prefers the older name where there are two."""
    name = errno.errorcode.get(code or 0, str(code))
    return "EOPNOTSUPP" if name == "ENOTSUP" else name


def _wait_for(condition, what: str, mount: Mount) -> None:
    deadline = time.monotonic() + LOG_LIMIT
    while not condition():
        assert time.monotonic() < deadline, f"not logged: {what}\nlog:\n{mount.log_text()}"
        time.sleep(0.02)  # polling interval
