"""Where log lines go and what they look like: text for people, JSON for collectors, fields for systemd's journal.

Modules log through the standard library with names as `%r`; this only sets up the handler.
"""

from __future__ import annotations

import logging
import logging.handlers
import os
import re
import sys
import time
from typing import Final

from pythonjsonlogger.json import JsonFormatter

from layerfs import journal
from layerfs.errors import LayerfsError

_SYSLOG: Final = "/dev/log"

#: A line without its time.
_SHORT: Final = "%(levelname)s %(name)s: %(message)s"
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")


#: What talks to storage shows its requests at DEBUG, with tokens and signatures in their headers and addresses.
_INDISCREET: Final = (
    *("adlfs", "aiobotocore", "aiohttp", "azure", "boto3", "botocore", "fsspec", "gcsfs", "google", "httpx", "msal"),
    *("httpcore", "requests", "s3fs", "smbclient", "smbprotocol", "spnego", "urllib3"),
)

#: What tells at length, at each try, what is told as an error of the storage.
_TALKATIVE: Final = (
    *("aiobotocore.credentials", "azure.identity", "azure.storage.blob._shared.response_handlers"),
    "botocore.credentials",
)


def one_line(text: str) -> str:
    """`text` with everything escaped that could start a line, command a terminal or turn its writing around."""
    return _CONTROL.sub(lambda match: repr(match.group())[1:-1], text)


class LogUnavailable(LayerfsError):
    """The log file cannot be written."""


def configure(*, level: str, log_format: str, log_file: str | None, detached: bool) -> None:
    """Sends the log to `log_file`; without one to standard error, or to syslog (if there is one) when detached.

    Where standard error is systemd's journal, text goes there with its fields, and JSON with its priority.

    `level` is for layerfs; libraries are heard from WARNING on, and from `level` if that is debug, but for those that
    would tell secrets. May be called again: what was set up before is replaced. Raises `LogUnavailable`.
    """
    handler = _handler(log_file, log_format=log_format, detached=detached)
    threshold = logging.getLevelNamesMapping()[level.upper()]
    logging.basicConfig(
        level=threshold if threshold <= logging.DEBUG else max(threshold, logging.WARNING),
        handlers=[handler],
        force=True,
    )
    logging.getLogger("layerfs").setLevel(threshold)
    for name in _INDISCREET:
        logging.getLogger(name).setLevel(logging.WARNING)
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.ERROR)


def _handler(log_file: str | None, *, log_format: str, detached: bool) -> logging.Handler:
    """Where lines go, with what they look like there."""
    formatter = _in_utc(_json_formatter() if log_format == "json" else _text_formatter())
    if log_file is None and not detached and journal.is_standard_error():
        if log_format != "json" and (handler := _journal_handler()) is not None:
            return handler
        # When it was, the journal knows itself.
        formatter = journal.PriorityFormatter(formatter if log_format == "json" else _TextFormatter(_SHORT))
    handler = _plain_handler(log_file, detached=detached)
    handler.setFormatter(formatter)
    return handler


def _journal_handler() -> logging.Handler | None:
    try:
        handler = journal.make_handler()
    except (ImportError, OSError):
        return None
    handler.setFormatter(_MessageFormatter(_SHORT))
    return handler


def _plain_handler(log_file: str | None, *, detached: bool) -> logging.Handler:
    if log_file is not None:
        try:
            # Watched, so that logrotate needs no signal to the daemon.
            return logging.handlers.WatchedFileHandler(log_file, encoding="utf-8", errors="backslashreplace")
        except OSError as exc:
            raise LogUnavailable(f"cannot write the log file {log_file!r}: {exc.strerror}") from exc
    if not detached:
        return logging.StreamHandler(sys.stderr)
    if not os.path.exists(_SYSLOG):
        return logging.NullHandler()
    handler = logging.handlers.SysLogHandler(_SYSLOG, logging.handlers.SysLogHandler.LOG_DAEMON)
    handler.ident = f"layerfs[{os.getpid()}]: "
    return handler


class _TextFormatter(logging.Formatter):
    """`2026-11-23T00:12:51.123Z INFO layerfs.daemon: message`; a traceback follows on lines of its own."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 (the name is the standard library's)
        return one_line(super().formatMessage(record) + _numbers(record))


class _MessageFormatter(_TextFormatter):
    """The line alone: a traceback and the numbers are fields of their own."""

    def format(self, record: logging.LogRecord) -> str:
        return one_line(f"{record.name}: {record.getMessage()}")


def _numbers(record: logging.LogRecord) -> str:
    """Of a line about an operation, which one it was and with which arguments."""
    names = journal.OPERATION_FIELDS[journal.OPERATION_FIELDS.index("request") :]
    found = [f"{name}={value}" for name in names if (value := getattr(record, name, None)) is not None]
    return f" [{' '.join(found)}]" if found else ""


def _text_formatter() -> logging.Formatter:
    return _TextFormatter(f"%(asctime)s {_SHORT}")


def _json_formatter() -> logging.Formatter:
    return JsonFormatter(
        "%(asctime)s %(levelname)s %(name)s %(message)s",
        rename_fields={"asctime": "time", "levelname": "level", "name": "logger", "exc_info": "traceback"},
    )


def _in_utc(formatter: logging.Formatter) -> logging.Formatter:
    formatter.converter = time.gmtime
    formatter.default_time_format = "%Y-%m-%dT%H:%M:%S"
    formatter.default_msec_format = "%s.%03dZ"
    return formatter
