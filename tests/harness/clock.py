"""A clock that a test has in its hands."""

from __future__ import annotations


class Clock:
    """Seconds that pass when the test says so."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now
