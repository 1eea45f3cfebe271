"""Logging to systemd's journal by its own protocol, so that operations, paths and numbers are fields to search by.

    journalctl -u layerfs@main LAYERFS_OPERATION=rename LAYERFS_ERRNO=EBADMSG

Needs the extra `journal` (logging-journald, which knows the protocol). Without it the journal still gets each line with
its priority, from standard error.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import traceback
from collections.abc import Iterator
from typing import Final

#: What sd-daemon(3) and syslog(3) call the levels.
_PRIORITIES: Final = (
    (logging.CRITICAL, 2),
    (logging.ERROR, 3),
    (logging.WARNING, 4),
    (logging.INFO, 6),
    (logging.DEBUG, 7),
)

#: Attributes of a record that say what an operation was about, in the order in which text shows them.
OPERATION_FIELDS: Final = ("operation", "path", "errno", "request", "inode", "handle", "offset", "length", "duration")


def is_standard_error() -> bool:
    """Whether standard error goes to the journal (see JOURNAL_STREAM in systemd.exec(5))."""
    device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
    if not inode or sys.stderr is None:
        return False
    try:
        status = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):
        return False
    return (str(status.st_dev), str(status.st_ino)) == (device, inode)


def priority(level: int) -> int:
    """The priority of the journal for a level of logging."""
    return next((number for least, number in _PRIORITIES if level >= least), 7)


class PriorityFormatter(logging.Formatter):
    """What `formatter` makes of a record, each line with the prefix that tells systemd its priority."""

    def __init__(self, formatter: logging.Formatter) -> None:
        super().__init__()
        self._formatter = formatter

    def format(self, record: logging.LogRecord) -> str:
        """As promised above."""
        prefix = f"<{priority(record.levelno)}>"
        return "\n".join(prefix + line for line in self._formatter.format(record).split("\n"))


def make_handler() -> logging.Handler:
    """A handler that sends records to the journal. Raises ImportError without the extra, OSError without a journal."""
    from logging_journald import JournaldTransport

    # Not connected: a journal that is started anew has another socket at the same path.
    transport = JournaldTransport(connected=False)
    os.stat(transport.socket_path)
    return _JournalHandler(transport)


class _JournalHandler(logging.Handler):
    def __init__(self, transport: object) -> None:
        super().__init__()
        self._send = transport.send  # type: ignore[attr-defined]

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._send(_fields(record, self.format(record)))
        except Exception:  # noqa: BLE001 - logging must never fail
            with contextlib.suppress(Exception):
                print(f"<{priority(record.levelno)}>{self.format(record)}", file=sys.stderr)  # noqa: T201


def _fields(record: logging.LogRecord, message: str) -> Iterator[tuple[str, str | int]]:
    yield "MESSAGE", _printable(message)
    yield "PRIORITY", priority(record.levelno)
    yield "SYSLOG_IDENTIFIER", "layerfs"
    yield "SYSLOG_PID", os.getpid()
    yield "LOGGER", record.name
    yield "CODE_FILE", record.pathname
    yield "CODE_LINE", record.lineno
    yield "CODE_FUNC", record.funcName or ""
    for name in OPERATION_FIELDS:
        value = getattr(record, name, None)
        if value is not None:
            yield f"LAYERFS_{name.upper()}", _printable(str(value))
    if record.exc_info:
        yield "TRACEBACK", _printable("".join(traceback.format_exception(*record.exc_info)))


def _printable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()
