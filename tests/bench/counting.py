"""What counting costs a small read: the guarded handler against the bare one, without a kernel in between.

    python -m tests.bench.counting

Prints microseconds for one read, the best of several rounds, because a busy machine only ever makes it longer.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from time import perf_counter

import trio

from layerfs.fuse.operations import Operations
from layerfs.view.nodes import Handle
from layerfs.view.stats import MountStats

READS = 20_000
ROUNDS = 15


class Page(Handle):
    """A file of which everything is in memory."""

    path = "repository/_layers/sha256:0"
    _content = memoryview(bytes(4096))

    def read_nowait(self, offset: int, length: int) -> memoryview:
        return self._content

    async def read(self, offset: int, length: int) -> bytes:
        raise NotImplementedError


class OneFile:
    """As much of a tree as a read needs."""

    class options:  # noqa: N801
        uid = gid = 0

    def __init__(self) -> None:
        self.stats = MountStats()
        self._page = Page()

    def handle(self, number: int) -> Page:
        return self._page


async def _best(read: Callable[[], Awaitable[object]]) -> float:
    best = float("inf")
    for _ in range(ROUNDS):
        began_at = perf_counter()
        for _ in range(READS):
            await read()
        best = min(best, perf_counter() - began_at)
    return best / READS * 1e6


async def main() -> None:
    """Measures and prints."""
    operations = Operations(OneFile(), operation_timeout=60.0)  # type: ignore[arg-type]
    bare = partial(Operations.read.__wrapped__, operations, 1, 0, 4096)  # type: ignore[attr-defined]
    guarded = partial(operations.read, 1, 0, 4096)
    bare_time, guarded_time = await _best(bare), await _best(guarded)
    print(f"bare handler    {bare_time:.2f} us")
    print(f"guarded         {guarded_time:.2f} us")
    print(f"the guard costs {guarded_time - bare_time:.2f} us")


if __name__ == "__main__":
    trio.run(main)
