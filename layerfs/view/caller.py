"""Which process a call comes from, for the one file whose meaning depends on what that process has read before."""

from __future__ import annotations

import contextlib
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final

#: The thread that the kernel names in the call that this task serves; 0 if it has no number here.
_thread: Final[ContextVar[int]] = ContextVar("thread", default=0)

#: In `/proc/<pid>/stat`, after the command's name: when the process started, in clock ticks since boot.
_START_TIME_FIELD: Final = 19


@dataclass(frozen=True, slots=True)
class Process:
    """A process, told apart from a later one with the same number by the time when it started."""

    pid: int
    started_at: int


def set_calling_thread(thread: int) -> None:
    """To be called where a call of the kernel comes in."""
    _thread.set(thread)


def calling_process() -> Process | None:
    """Whose call this is; None if nobody can know, as for a process in a foreign PID namespace, or one that is gone.

    The kernel names the thread, and programs in Go open and write one file from different threads.
    """
    thread = _thread.get()
    if not thread:
        return None
    with contextlib.suppress(OSError, ValueError, IndexError, StopIteration):
        pid = _thread_group(thread)
        return Process(pid, _started_at(pid))
    return None


def _thread_group(thread: int) -> int:
    with open(f"/proc/{thread}/status", "rb") as status:
        return int(next(line for line in status if line.startswith(b"Tgid:")).split()[1])


def _started_at(pid: int) -> int:
    with open(f"/proc/{pid}/stat", "rb") as stat:
        # The name of the command stands in brackets, and can have spaces and brackets in it.
        return int(stat.read().rpartition(b")")[2].split()[_START_TIME_FIELD])
