"""`--daemon`: the work goes on in a child process, and the parent returns when the child says that it works.

The child stays in the caller's process group and session until then. autofs lets only the process group of the mount
helper through to the mountpoint; one that has left it gets ENODEV. And Ctrl-C during a slow start ends both.
"""

from __future__ import annotations

import json
import os
import signal
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True)
class Outcome:
    """How starting ended: an exit code, and the error if there was one."""

    exit_code: int
    error: str | None = None


def run_detached(work: Callable[[Callable[[], None]], Outcome], *, died: int) -> Outcome:
    """Runs `work(ready)` in a child process. Returns once it has called `ready` (exit code 0), or with its outcome.

    `died` is the exit code if the child ends without a word. To be called while the process has one thread. After
    `ready` the child has a session of its own, `/` as its working directory and nothing on its standard streams.
    """
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        _work_and_exit(work, writing, died)
    os.close(writing)
    with os.fdopen(reading, "rb") as report:
        words = report.read()
    if words:
        return Outcome(**json.loads(words))
    return Outcome(died, f"the daemon ended before the mount answered ({_ending(pid)})")


def _work_and_exit(work: Callable[[Callable[[], None]], Outcome], writing: int, died: int) -> None:
    reported = False

    def report(outcome: Outcome) -> None:
        nonlocal reported
        if not reported:
            reported = True
            os.write(writing, json.dumps(asdict(outcome)).encode())
            os.close(writing)

    def ready() -> None:
        _leave_caller()
        report(Outcome(0))

    status = died
    try:
        outcome = work(ready)
        report(outcome)
        status = outcome.exit_code
    except Exception:
        # Nobody above will say it: what a child raises ends here. An interrupt is the parent's to say.
        traceback.print_exc()
        raise
    finally:
        # The caller's own clean-up (buffered output, exit handlers) belongs to the parent.
        os._exit(status)


def _leave_caller() -> None:
    os.setsid()
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        os.dup2(null, stream)
    os.close(null)


def _ending(pid: int) -> str:
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return f"exit code {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"
