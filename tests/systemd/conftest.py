"""One machine for all tests of systemd."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from harness.systemd import Machine


@pytest.fixture(scope="session")
def machine() -> Iterator[Machine]:
    """A running systemd; each test has a mount of its own name on it."""
    with Machine() as machine:
        yield machine
