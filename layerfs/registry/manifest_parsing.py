"""Parsing manifests, of up to 4 MiB each and thousands in a row, while everybody else goes on.

Whatever is parsed here keeps the event loop for no longer than one small manifest takes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar

import trio

#: Bytes beyond which a manifest is parsed in a thread, because it can take a tenth of a second.
_INLINE_LIMIT: Final = 256 << 10

_Result = TypeVar("_Result")


async def parse_in_turn(
    content: bytes, parse: Callable[[bytes], _Result], *, limiter: trio.CapacityLimiter | None = None
) -> _Result:
    """What `parse` makes of the content. A large one is parsed in a thread; before each small one others have a turn.

    `limiter` bounds the threads; without one trio's own does.
    """
    if len(content) <= _INLINE_LIMIT:
        await trio.lowlevel.checkpoint()
        return parse(content)
    return await trio.to_thread.run_sync(parse, content, limiter=limiter)
