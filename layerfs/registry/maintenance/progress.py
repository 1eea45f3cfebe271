"""How far a check has come."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class Progress:
    """`phase` is what is being looked at; `done` and `total` count `unit`s. A total of 0 is not known yet."""

    phase: str
    unit: str
    done: int
    total: int


#: Called between two awaits, often: it must return at once.
Report: TypeAlias = Callable[[Progress], None]


def no_report(_progress: Progress) -> None:
    """For whoever does not want to know."""
