"""How far a long command has come, shown on standard error while that is a terminal; nothing anywhere else."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

    from layerfs.registry.maintenance.progress import Progress


class ProgressDisplay:
    """One line with a bar; bytes also with their rate and the time that is left. A context manager."""

    def __init__(self) -> None:
        self._bar: Bar | None = None
        self._task: TaskID | None = None
        self._phase = ""
        self._is_terminal = sys.stderr is not None and sys.stderr.isatty()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, progress: Progress) -> None:
        """Returns at once; the terminal is written to ten times a second."""
        if not self._is_terminal:
            return
        if progress.phase != self._phase:
            self._begin(progress)
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=progress.done, total=progress.total or None)

    @contextlib.contextmanager
    def hidden(self) -> Iterator[None]:
        """While something else is written to the terminal."""
        if self._bar is None:
            yield
            return
        self._bar.stop()
        yield
        self._bar.start()

    def _begin(self, progress: Progress) -> None:
        # Not before it is needed: it takes as long to import as all the rest.
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            MofNCompleteColumn,
            Progress,
            ProgressColumn,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        if self._bar is not None:
            self._bar.stop()
        columns: list[ProgressColumn] = [TextColumn("{task.description}"), BarColumn()]
        if progress.unit == "bytes":
            columns += [DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()]
        else:
            columns.append(MofNCompleteColumn())
        self._phase = progress.phase
        self._bar = Progress(
            *columns, console=Console(stderr=True), transient=True, redirect_stdout=False, redirect_stderr=False
        )
        self._task = self._bar.add_task(progress.phase, total=progress.total or None)
        self._bar.start()
