"""Answers that nobody waits for any more.

A file is closed for its user before the daemon has answered RELEASE, and by then the mount may be gone; a request is
given up when its client is killed. The kernel says ENOENT to such an answer, which libfuse takes for normal
(`fuse_send_msg` in its fuse_lowlevel.c), and pyfuse3 logs as an error, one that no operator could do anything about.
"""

from __future__ import annotations

import errno
import logging
import os
from typing import Final

_LOGGER: Final = logging.getLogger("pyfuse3")

#: What pyfuse3 says of any answer that the kernel did not take, with the reason as its only argument.
_NOT_TAKEN: Final = "fuse_reply_* failed with %s"
_NOBODY_WAITS: Final = (os.strerror(errno.ENOENT),)


def ignore_late_answers() -> None:
    """Keeps them out of the log. May be called again."""
    _LOGGER.addFilter(_is_worth_a_line)


def _is_worth_a_line(record: logging.LogRecord) -> bool:
    # pyfuse3 gives nothing but the text.
    return not (str(record.msg).endswith(_NOT_TAKEN) and record.args == _NOBODY_WAITS)
