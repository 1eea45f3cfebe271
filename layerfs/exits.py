"""The exit codes of the command; the numbers are those of mount(8), so that scripts and systemd understand them."""

from __future__ import annotations

from enum import IntEnum
from typing import Final


class ExitCode(IntEnum):
    OK = 0
    #: The arguments, the source or the mountpoint: what the person who typed the command can put right.
    USAGE = 1
    BUG = 4
    INTERRUPTED = 8
    FAILED = 32


#: For `--help`; `\b` keeps click from filling the lines.
DESCRIPTION: Final = """\b
Exit codes:
  0   success
  1   the arguments, the source or the mountpoint cannot be used as they are
  4   internal error: please report it, with the log
  8   ended by a signal before the mount was ready, or at once by a second one
  32  mounting or unmounting failed: refused, busy, or the storage is out of reach
"""
