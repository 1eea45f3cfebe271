"""Clients that are killed while they wait for an answer: that one is on its way out, as the kernel shows it.

Linux lets nobody go who waits for an answer that a daemon has begun to work at, not even by SIGKILL. It sends the
daemon a FUSE_INTERRUPT, which libfuse takes and pyfuse3 does not hand on; so whoever has waited for a while is looked
at in /proc. Only signals that end the client count: a handler, such as Go's for its own SIGURG, must not turn an
operation into an error that no other file system gives.
"""

from __future__ import annotations

import re
import signal
from typing import Final

#: Seconds between looks at those who wait, and for which one has waited before he is looked at.
LOOK_EVERY: Final = 0.25

_FIELD: Final = re.compile(rb"^(SigPnd|ShdPnd|SigBlk|SigIgn|SigCgt):\s*([0-9a-f]+)$", re.MULTILINE)


def _mask(*numbers: signal.Signals) -> int:
    return sum(1 << (number - 1) for number in numbers)


_KILL: Final = _mask(signal.SIGKILL)

#: What ends who has no handler for it, and is sent for that.
_ENDING: Final = _mask(signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM)


def is_dying(thread: int) -> bool:
    """Whether a thread would end now if it did not wait. False of one that cannot be looked at."""
    try:
        with open(f"/proc/{thread}/status", "rb") as file:
            fields = {name: int(mask, 16) for name, mask in _FIELD.findall(file.read())}
        held_back = fields[b"SigBlk"] | fields[b"SigIgn"] | fields[b"SigCgt"]
        # The kernel turns most signals that end a process into a SIGKILL for each of its threads.
        pending = fields[b"SigPnd"] | fields[b"ShdPnd"]
    except (OSError, KeyError):
        return False
    return bool(pending & _KILL or pending & _ENDING & ~held_back)
