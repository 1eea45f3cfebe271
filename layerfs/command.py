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
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar

import click

from layerfs import logs
from layerfs.exits import ExitCode

if TYPE_CHECKING:
    from layerfs.registry import Registry
    from layerfs.source import Source

log = logging.getLogger(__name__)

#: Bytes that are gathered before they are written.
_BUFFER_SIZE: Final = 64 << 10

_STANDARD_OUTPUT: Final = 1

Fields: TypeAlias = dict[str, Any]


class OutputFailed(Exception):
    """Standard output takes nothing (any more); the message says why."""


# --- SOURCE ------------------------------------------------------------------------------------------------------

#: What a SOURCE can be beside `--config` where there has to be one, as in fstab(5).
NO_SOURCE: Final = "none"

_Decorated = TypeVar("_Decorated", bound=Callable[..., Any])


class SourceCommand(click.Command):
    """A command with a SOURCE, which it gets as a path or URL, or as the configuration that `--config` names.

    With `--config` SOURCE is left out. If it is there nevertheless, it has to be the same storage, or `none`.
    """

    def parse_args(self, context: click.Context, arguments: list[str]) -> list[str]:
        context.meta[_WITHOUT_SOURCE] = self._is_without_source(context, arguments)
        rest = super().parse_args(context, arguments)
        file = context.params.pop("registry_config", None)
        if not context.resilient_parsing:
            context.params["source"] = find_source(context.params.get("source"), file, context)
        return rest

    def get_params(self, context: click.Context) -> list[click.Parameter]:
        """All but SOURCE, where it is left out."""
        parameters = super().get_params(context)
        if context.meta.get(_WITHOUT_SOURCE):
            return [parameter for parameter in parameters if parameter.name != "source"]
        return parameters

    def _is_without_source(self, context: click.Context, arguments: list[str]) -> bool:
        """Whether there is a `--config`, and one argument less than there could be."""
        given, _, _ = self.make_parser(context).parse_args(list(arguments))
        names = [each.name for each in self.params if isinstance(each, click.Argument)]
        return given.get("registry_config") is not None and not _is_given(given.get(names[-1] or ""))


_WITHOUT_SOURCE: Final = "layerfs.without_source"


def _is_given(value: object) -> bool:
    # What click has for an argument that is not there is None, or a marker of its own since 8.3.
    return isinstance(value, str)


def source_argument(*names: str) -> Callable[[_Decorated], _Decorated]:
    """Gives a `SourceCommand` its SOURCE, and the option of these names in place of it."""
    names = names or ("--config", "--registry-config")
    explanation = "Read where the storage is from FILE, a registry's own configuration; SOURCE is left out then."

    def decorate(function: _Decorated) -> _Decorated:
        option = click.option(*names, "registry_config", metavar="FILE", help=explanation)
        return click.argument("source", metavar="SOURCE", is_eager=True)(option(function))

    return decorate


def find_source(source: str | None, file: str | None, context: click.Context) -> Source:
    """What SOURCE and `--config` mean together. Raises `click.UsageError`."""
    if file is None:
        if not source:
            raise click.UsageError("SOURCE must not be empty", context)
        return source
    if not file:
        raise click.UsageError("the FILE of --config must not be empty", context)
    from layerfs.registry_config import InvalidConfiguration, load_registry_config

    try:
        configured = load_registry_config(file)
    except InvalidConfiguration as error:
        raise click.UsageError(str(error), context) from None
    if source is not None and _plain(source) not in (NO_SOURCE, configured.name):
        # Without SOURCE itself, in which there may be a secret.
        raise click.UsageError(
            f"SOURCE is not the storage that {configured.file!r} configures, {configured.name!r}: leave it out",
            context,
        )
    return configured


def _plain(source: str) -> str:
    """A SOURCE as a configuration's name is written."""
    if source == NO_SOURCE:
        return source
    return source.rstrip("/") if "://" in source else os.path.abspath(source)


# --- output ------------------------------------------------------------------------------------------------------


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


def run_on_registry(source: Source, work: Work, *, verb: str) -> int:
    """Opens the registry in `source` and returns what `work` does; raises what stops it, out of any group.

    Where nobody reads the output any more, the process ends by SIGPIPE.
    """
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


def run_reading(
    source: Source, work: Work, *, usage_errors: tuple[type[Exception], ...] = (), interrupted: str = "interrupted"
) -> int:
    """The exit code of what `work` does with the registry in `source`, with the reason said if it did not succeed.

    `usage_errors` are those that the user can put right, besides what all commands that read have; `interrupted` is
    what is said after Ctrl-C.
    """
    try:
        return run_on_registry(source, work, verb="read")
    except click.ClickException:
        raise
    except KeyboardInterrupt:
        say(interrupted)
        return ExitCode.INTERRUPTED
    except Exception as error:  # noqa: BLE001 - all of it ends in an exit code
        exit_code = ExitCode.USAGE if isinstance(error, usage_errors) else _reading_exit_code(error)
        if exit_code is ExitCode.BUG:
            report_bug(error)
        else:
            say(str(error))
        return exit_code


def _reading_exit_code(error: Exception) -> ExitCode:
    from layerfs.errors import AccessDenied, InvalidName, LayerfsError
    from layerfs.reading import NotForTerminals, NotThere
    from layerfs.source import SourceUnusable

    match error:
        case SourceUnusable():
            return ExitCode.USAGE if error.is_user_error else ExitCode.FAILED
        case NotForTerminals() | NotThere() | InvalidName() | AccessDenied():
            return ExitCode.USAGE
        case LayerfsError() | OutputFailed():
            return ExitCode.FAILED
        case _:
            return ExitCode.BUG


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
