"""What units are told instead of what is: the time."""

from __future__ import annotations

import time

import pytest
from harness.clock import Clock


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The time that everything sees."""
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock)
    return clock
