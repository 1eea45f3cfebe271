"""What commands that draw tables with rich have in common: a console, and texts that command no terminal."""

from __future__ import annotations

import io
import os
import signal
import sys
from typing import TYPE_CHECKING, Final

from layerfs.errors import LayerfsError
from layerfs.logs import one_line

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table
    from rich.text import Text

#: Columns where no terminal says how many there are: a line is never broken for a program that reads it.
_WIDE: Final = 10_000

_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


class CannotWrite(LayerfsError):
    """Standard output takes nothing (any more); the message says why."""


def make_console() -> Console:
    """Standard output: as wide as the terminal, colours only there, nothing interpreted in what is printed.

    Raises `CannotWrite` if there is none.
    """
    if sys.stdout is None:
        raise CannotWrite("standard output is closed")
    from rich.console import Console

    if isinstance(sys.stdout, io.TextIOWrapper):
        # Whatever the terminal's encoding is, nothing is lost for a letter that it does not have.
        sys.stdout.reconfigure(errors="backslashreplace")

    class UnixConsole(Console):
        def on_broken_pipe(self) -> None:
            # As every Unix tool ends whose reader has gone.
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGPIPE)

    width = None if sys.stdout.isatty() else _WIDE
    return UnixConsole(width=width, highlight=False, markup=False, emoji=False)


def draw(console: Console, *what: RenderableType) -> None:
    """Prints what rich draws, each on lines of its own. Raises `CannotWrite`."""
    try:
        console.print(*what, sep="\n")
    except OSError as error:
        # Or the interpreter would try once more when it ends.
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        raise CannotWrite(f"cannot write to standard output: {error.strerror}") from error


def shown(text: object) -> str:
    """A text as it may be shown: one line, nothing that a terminal would obey, and printable anywhere."""
    return one_line(str(text)).encode("utf-8", "backslashreplace").decode()


def plain(text: object, style: str = "") -> Text:
    """`shown`, for rich."""
    from rich.text import Text

    return Text(shown(text), style=style)


def plain_lines(text: str) -> Text:
    """A text of several lines in which there is nothing that a terminal would obey, JSON for example."""
    from rich.text import Text

    return Text(text, no_wrap=True, overflow="ignore")


def make_table(*heads: str, right: tuple[str, ...] = ()) -> Table:
    """A table without lines, with columns called `heads`, of which those in `right` hold numbers."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for head in heads:
        table.add_column(plain(head), justify="right" if head in right else "left", overflow="fold")
    return table


def human_bytes(count: float) -> str:
    """A number of bytes in the unit that leaves up to four digits."""
    for unit in _UNITS[:-1]:
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} {_UNITS[-1]}"


def human_seconds(seconds: float) -> str:
    """A time in the two largest units that it has."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = int(seconds // 60)
    if minutes < 60:
        return f"{minutes} min {int(seconds % 60)} s"
    hours = minutes // 60
    return f"{hours} h {minutes % 60} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def human_latency(seconds: float) -> str:
    """A short time in the unit that leaves up to four digits."""
    for unit, factor in (("us", 1e6), ("ms", 1e3)):
        if seconds * factor < 1000:
            return f"{seconds * factor:.0f} {unit}" if unit == "us" else f"{seconds * factor:.1f} {unit}"
    return f"{seconds:.1f} s"
