"""Reads that the kernel repeats: only what has failed after a long time is answered without asking."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from layerfs.errors import BackendFailure, LayerfsError
from layerfs.fuse.second_asks import SecondAsks

SILENT = BackendFailure("/a", "no answer")


async def ask(
    asks: SecondAsks, handle: int, offset: int, *, takes: float = 0, error: LayerfsError | None = None
) -> str:
    """A read of 1,000 bytes that storage answers, or not, after some seconds: whether it was asked, and the error."""
    was_asked = "not asked"
    try:
        with asks.answered(handle, offset, 1000):
            was_asked = "asked"
            await trio.sleep(takes)
            if error is not None:
                raise error
    except LayerfsError as raised:
        return f"{was_asked}: {raised}"
    return was_asked


async def test_what_has_failed_late_is_not_asked_for_at_once(autojump_clock: trio.testing.MockClock) -> None:
    """The page that is in it fails by the same error; after a moment it is tried again."""
    asks = SecondAsks()
    assert await ask(asks, 1, 5000, takes=30, error=SILENT) == f"asked: {SILENT}"
    for offset in (5000, 5500, 5999):
        assert await ask(asks, 1, offset) == f"not asked: {SILENT}"
    await trio.sleep(3)
    assert await ask(asks, 1, 5000) == "asked"


@pytest.mark.parametrize(("handle", "offset"), [(2, 5000), (1, 4999), (1, 6000)])
async def test_others_are_asked_for(autojump_clock: trio.testing.MockClock, handle: int, offset: int) -> None:
    """Through another handle, or elsewhere in the file."""
    asks = SecondAsks()
    await ask(asks, 1, 5000, takes=30, error=SILENT)
    assert await ask(asks, handle, offset) == "asked"


async def test_what_has_failed_soon_is_asked_for_again(autojump_clock: trio.testing.MockClock) -> None:
    """It may succeed."""
    asks = SecondAsks()
    await ask(asks, 1, 5000, takes=0.5, error=SILENT)
    assert await ask(asks, 1, 5000) == "asked"


async def test_what_took_long_and_succeeded(autojump_clock: trio.testing.MockClock) -> None:
    """Is no failure."""
    asks = SecondAsks()
    await ask(asks, 1, 5000, takes=30)
    assert await ask(asks, 1, 5000) == "asked"
