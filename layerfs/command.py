"""What the commands that work on a storage without a mount have in common: running, printing, and how they end.

Nothing is imported here that a mount must not have before it forks.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import click

from layerfs import logs

if TYPE_CHECKING:
    from layerfs.registry import Registry

log = logging.getLogger(__name__)

#: Bytes that are gathered before they are written.
_BUFFER_SIZE: Final = 64 << 10

_STANDARD_OUTPUT: Final = 1

Fields: TypeAlias = dict[str, Any]


class OutputFailed(Exception):
    """Standard output takes nothing (any more); the message says why."""


class Output:
    """Standard output: lines of text, or bytes."""

    def __init__(self) -> None:
        if sys.stdout is None:
            # The descriptor is closed, or something else by now: nothing may be written to it.
            raise OutputFailed("standard output is closed")
        self.is_terminal = os.isatty(_STANDARD_OUTPUT)
        self._buffer = bytearray()

    def line(self, text: str) -> None:
        """Writes one line, in which nothing can start another or command a terminal."""
        self._buffer += logs.one_line(text).encode("utf-8", "backslashreplace") + b"\n"
        if len(self._buffer) > _BUFFER_SIZE:
            self.flush()

    def json(self, fields: Fields, *, indent: int | None = None) -> None:
        """Writes an object, on one line unless it is indented. ASCII only, so there is nothing to escape."""
        self._buffer += json.dumps(fields, indent=indent).replace("\x7f", "\\u007f").encode() + b"\n"
        if len(self._buffer) > _BUFFER_SIZE:
            self.flush()

    def table(self, heads: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """Writes columns under their heads; numbers to the right."""
        table = [list(heads), *([logs.one_line(cell) for cell in row] for row in rows)]
        widths = [max(len(row[column]) for row in table) for column in range(len(heads))]
        numbers = [
            all(row[column].isdigit() or row[column] == "-" for row in table[1:]) for column in range(len(heads))
        ]
        for row in table:
            cells = (
                cell.rjust(width) if number else cell.ljust(width)
                for cell, width, number in zip(row, widths, numbers, strict=True)
            )
            self.line("  ".join(cells).rstrip())

    def content(self, content: bytes) -> None:
        """Writes bytes exactly; to a terminal as text with everything escaped but the ends of lines."""
        if self.is_terminal:
            for line in content.decode("utf-8", "backslashreplace").splitlines():
                self.line(line.replace("\t", "    "))
            return
        self.flush()
        self._write(content)

    def flush(self) -> None:
        content, self._buffer = self._buffer, bytearray()
        self._write(content)

    def _write(self, content: bytes | bytearray) -> None:
        view = memoryview(content)
        try:
            while view:
                view = view[os.write(_STANDARD_OUTPUT, view) :]
        except BrokenPipeError:
            raise
        except OSError as error:
            raise OutputFailed(f"cannot write to standard output: {error.strerror}") from error


def _is_number(cell: str) -> bool:
    return cell == "-" or cell.isdigit()


Work: TypeAlias = Callable[["Registry", Output], Coroutine[Any, Any, int]]


def run_on_registry(source: str, work: Work, *, verb: str) -> int:
    """Opens the registry in `source` and returns what `work` does; raises what stops it, out of any group.

    Where nobody reads the output any more, the process ends by SIGPIPE.
    """
    if not source:
        raise click.UsageError("SOURCE must not be empty")
    logs.configure(level="warning", log_format="text", log_file=None, detached=False)
    import trio

    from layerfs.source import open_registry

    async def run() -> int:
        output = Output()
        async with open_registry(source, verb=verb) as registry:
            try:
                return await work(registry, output)
            finally:
                output.flush()

    try:
        return trio.run(run)
    except BaseException as error:  # noqa: BLE001 - it is raised again
        cause = error
    # Not `from` the group: the cause that an error has is part of what it says.
    while isinstance(cause, BaseExceptionGroup):
        cause = cause.exceptions[0]
    if isinstance(cause, BrokenPipeError):
        _end_as_by_pipe()
    raise cause


def _end_as_by_pipe() -> None:
    """Ends the process as every Unix tool ends whose reader has gone: by SIGPIPE, without a word.

    Python ignores that signal, and has to while storage is being talked to: its sockets can break as well.
    """
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGPIPE)


def say(message: str) -> None:
    """Says on standard error, in one line, why the command fails."""
    click.echo(logs.one_line(f"layerfs: {message}"), err=True)


def report_bug(error: BaseException) -> None:
    """Says that it was none of the user's doing; the traceback goes to the log."""
    log.critical("an error that should not happen", exc_info=error)
    say(f"internal error, please report it with the log: {type(error).__name__}: {error}")
