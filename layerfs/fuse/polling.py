"""Asking the kernel for the next request without going through trio's event loop first.

pyfuse3 waits for every request with `trio.lowlevel.wait_readable`: a turn of the scheduler and an `epoll_wait`, more
than answering a cached read costs. While requests keep coming, a `poll` that does not wait finds the next one at once;
only when there is none is the event loop asked. That halves the latency of small reads (`tests/bench`).

This replaces a private name of pyfuse3, `_wait_fuse_readable`, so it is done only for versions that it was tested
with, and everything works without it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
from collections.abc import Awaitable, Callable
from typing import Final, cast

import pyfuse3
import trio

_log = logging.getLogger(__name__)

_TESTED_VERSIONS: Final = ("3.4.", "3.5.")
_NAME: Final = "_wait_fuse_readable"

#: Requests in a row after which everything else (other tasks, signals, deadlines) gets its turn. Costs nothing
#: measurable at this number, and is less than a millisecond of small reads.
_REQUESTS_IN_A_ROW: Final = 64

#: Polls, of half a microsecond each, before the event loop is asked: a client that goes on at once is back in less time
#: than a trip through epoll takes.
_POLLS: Final = 10


def poll_first() -> None:
    """Makes pyfuse3 poll before it waits, if this version of it is known. To be called when the session is mounted."""
    descriptor = _session_descriptor()
    original = getattr(pyfuse3, _NAME, None)
    if original is None or descriptor is None or not pyfuse3.__version__.startswith(_TESTED_VERSIONS):
        _log.info("pyfuse3 %s is not known to allow polling first", pyfuse3.__version__)
        return
    setattr(pyfuse3, _NAME, _poll_first(cast(Callable[[], Awaitable[bool]], original), descriptor))


def _session_descriptor() -> int | None:
    """The descriptor of /dev/fuse that pyfuse3 keeps to itself: the one such that this process has."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/self/fd/{name}") == "/dev/fuse":
                found.append(int(name))
    return found[0] if len(found) == 1 else None


def _poll_first(wait: Callable[[], Awaitable[bool]], descriptor: int) -> Callable[[], Awaitable[bool]]:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    readable = poll.poll
    attempts = range(_POLLS)
    in_a_row = 0

    async def wait_readable() -> bool:
        """Whether to receive: pyfuse3 does so without an await in between, on a descriptor that would block."""
        nonlocal in_a_row
        while True:
            if in_a_row >= _REQUESTS_IN_A_ROW:
                in_a_row = 0
                # Shielded: `wait` is the place where a worker is cancelled, as without this.
                await trio.lowlevel.cancel_shielded_checkpoint()
            for _ in attempts:
                if readable(0):
                    in_a_row += 1
                    return True
            in_a_row = 0
            # Also tells when the session is over. After it, another task may have been faster: look again.
            if not await wait():
                return False

    return wait_readable
