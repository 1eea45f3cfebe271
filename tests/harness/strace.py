"""System calls of a running daemon: watched, made to fail, delayed, or the moment of its death.

`when=` counts the calls of one name in one thread, from the moment strace attaches. Calls of two threads with the same
name and number cannot be told apart: the first one is hit. Daemons that do one thing at a time use one thread for it,
so almost every call can be reached; the tests say how many were.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

#: Every system call by which a program on Linux changes a file system, as far as anybody uses them.
STATE_CHANGING: Final = (
    "openat",  # only with O_CREAT
    *("write", "writev", "pwrite64", "pwritev", "pwritev2", "copy_file_range", "sendfile", "splice"),
    *("fsync", "fdatasync", "sync_file_range", "fallocate", "ftruncate", "truncate"),
    *("rename", "renameat", "renameat2", "mkdir", "mkdirat", "unlink", "unlinkat", "rmdir"),
    *("link", "linkat", "symlink", "symlinkat", "mknodat"),
    *("chown", "fchown", "fchownat", "fchmod", "fchmodat", "utimensat", "setxattr", "fsetxattr"),
    "fcntl",  # only F_SETLEASE
)

_CALL = re.compile(r"(?P<thread>\d+) +(?P<name>[a-z0-9_]+)\((?P<arguments>.*)")


@dataclass(frozen=True)
class Call:
    """One system call: the `number`-th of this name in its thread since strace attached."""

    name: str
    number: int
    text: str
    is_reachable: bool = True
    #: The calls just before it, which say what it is for.
    before: str = ""

    @property
    def is_answer(self) -> bool:
        """Whether it is the daemon's answer to the kernel rather than something it does to storage."""
        return "</dev/fuse>" in self.text

    def __str__(self) -> str:
        return f"{self.name} #{self.number}: {self.text[:160]}"


class Strace:
    """strace on all threads of a process, or its first one only, while in the `with` block."""

    def __init__(
        self, pid: int, *options: str, calls: tuple[str, ...] = STATE_CHANGING, all_threads: bool = True
    ) -> None:
        self._pid = pid
        self._directory = tempfile.TemporaryDirectory(prefix="layerfs-strace-")
        self._output = Path(self._directory.name) / "calls"
        trace = f"trace={','.join('?' + name for name in calls)}"
        follow = ["-f"] if all_threads else []
        self._command = [
            "strace",
            *follow,
            "-y",
            "-s",
            "200",
            "-p",
            str(pid),
            "-o",
            self._output,
            "-e",
            trace,
            *options,
        ]
        self._process: subprocess.Popen[str] | None = None
        self.lines: list[str] = []

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(self._command, stderr=subprocess.PIPE, text=True, bufsize=1)
        said = []
        # Without a limit of its own: strace either attaches or ends.
        for line in self._process.stderr:
            said.append(line)
            if "attached" in line:
                break
        else:
            raise AssertionError(f"strace did not attach: {''.join(said)}")
        # It says so for each new thread too, and would wait for us if nobody listened.
        threading.Thread(target=self._process.stderr.read, daemon=True).start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.detach()
        self._directory.cleanup()

    def let_go(self) -> None:
        """From here on the daemon runs by itself; for children of the test, who cannot wait for strace."""
        os.kill(self._process.pid, signal.SIGINT)
        while "TracerPid:\t0" not in Path(f"/proc/{self._pid}/status").read_text():
            time.sleep(0.01)  # polling interval

    def detach(self) -> None:
        """From here on the daemon runs by itself. May be called again."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            try:
                # It does not listen while it keeps waiting a thread of a process that has ended.
                self._process.wait(3)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(10)
        if self._output.exists():
            self.lines = self._output.read_text(errors="replace").splitlines()

    def written(self) -> str:
        """What strace has seen so far."""
        return self._output.read_text(errors="replace")

    @property
    def calls(self) -> list[Call]:
        """All calls, in order, once it has detached; those that cannot change storage are left out."""
        counted: Counter[tuple[str, str]] = Counter()
        seen: set[tuple[str, int]] = set()
        found = []
        for line in self.lines:
            match = _CALL.match(line)
            if not match:
                continue
            name, arguments = match["name"], match["arguments"]
            counted[match["thread"], name] += 1
            number = counted[match["thread"], name]
            if not _changes_state(name, arguments):
                continue
            before = " ".join(call.text for call in found[-2:])
            found.append(Call(name, number, arguments, (name, number) not in seen, before))
            seen.add((name, number))
        return found

    @property
    def injected(self) -> list[str]:
        """The calls in which a fault was injected."""
        return [line for line in self.lines if "(INJECTED)" in line]


def _changes_state(name: str, arguments: str) -> bool:
    if name == "openat":
        return "O_CREAT" in arguments
    if name == "fcntl":
        return "F_SETLEASE" in arguments
    # The log, the pipes and event counters that wake trio up, and the service manager's socket.
    return name not in ("write", "writev", "splice") or bool(re.match(r"\d+</(?!tmp/layerfs-log-)", arguments))


def record(pid: int) -> Strace:
    """Watches without interfering."""
    return Strace(pid)


def kill_at(pid: int, call: Call) -> Strace:
    """SIGKILL instead of this call: it is not made any more."""
    return Strace(pid, "-e", f"inject={call.name}:signal=SIGKILL:when={call.number}", calls=(call.name,))


def dying_at_write(pid: int, path: Path) -> Strace:
    """SIGKILL instead of the first write to a file that is there already."""
    return Strace(pid, "-P", str(path), "-e", "inject=write:error=EIO:signal=SIGKILL:when=1", calls=("write",))


def fail_at(pid: int, call: Call, error: str) -> Strace:
    """An errno instead of this call."""
    return Strace(pid, "-e", f"inject={call.name}:error={error}:when={call.number}", calls=(call.name,))


def fail_always(pid: int, names: tuple[str, ...], error: str) -> Strace:
    """An errno instead of every call of these names."""
    listed = ",".join(names)
    return Strace(pid, "-e", f"inject={listed}:error={error}", calls=names)


def delay(pid: int, names: tuple[str, ...], seconds: float, *, when: str = "1+") -> Strace:
    """Every call of these names takes longer: a disk that does not answer."""
    listed = ",".join(names)
    return Strace(pid, "-e", f"inject={listed}:delay_enter={round(seconds * 1_000_000)}:when={when}", calls=names)
