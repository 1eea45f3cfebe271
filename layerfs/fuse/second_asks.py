"""What the kernel asks a second time, right after it was told that the first time failed.

A read that fails was mostly one of the kernel's reading ahead. It then asks again, for the one page that a program is
waiting for (`filemap_read_folio` in Linux). Where failing means that storage did not answer in time, the program would
wait for the same answer twice as long as anything may take.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import trio

from layerfs.errors import LayerfsError

#: Seconds after which failing has taken long. What fails sooner may well succeed when it is asked for again.
_LONG: Final = 1.0

#: Seconds for which it is not tried again; the kernel asks at once.
_REMEMBERED: Final = 2.0


@dataclass(frozen=True, slots=True)
class _Failure:
    start: int
    end: int
    until: float
    error: LayerfsError


class SecondAsks:
    """The last read through each handle that failed after a long time."""

    def __init__(self) -> None:
        # The oldest first. No more than there are handles.
        self._failures: dict[int, _Failure] = {}

    @contextmanager
    def answered(self, handle: int, offset: int, length: int) -> Iterator[None]:
        """Around a read. Raises what the same one has raised a moment ago, if that took long."""
        self._check(handle, offset)
        began_at = trio.current_time()
        try:
            yield
        except LayerfsError as error:
            if trio.current_time() - began_at >= _LONG:
                self._remember(handle, offset, offset + length, error)
            raise

    def _check(self, handle: int, offset: int) -> None:
        failure = self._failures.get(handle)
        if failure is not None and failure.start <= offset < failure.end and trio.current_time() < failure.until:
            # Without the traceback of the first time, which would grow.
            raise failure.error.with_traceback(None)

    def _remember(self, handle: int, start: int, end: int, error: LayerfsError) -> None:
        now = trio.current_time()
        for other in [other for other, failure in self._failures.items() if failure.until <= now]:
            del self._failures[other]
        self._failures[handle] = _Failure(start, end, now + _REMEMBERED, error)
