"""How a driver leaves trio's thread."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, TypeVarTuple

import trio

_Result = TypeVar("_Result")
_Arguments = TypeVarTuple("_Arguments")


async def in_thread(
    limiter: trio.CapacityLimiter, function: Callable[[*_Arguments], _Result], *arguments: *_Arguments
) -> _Result:
    """What `function` returns, from a thread that is left behind if the caller is cancelled.

    A disk or server that does not answer blocks its thread for ever; the caller must be able to go. So whatever
    `function` opens has to belong to an object that closes itself when nobody has it any more: the result of a thread
    that was left behind is dropped.
    """
    return await trio.to_thread.run_sync(function, *arguments, abandon_on_cancel=True, limiter=limiter)
