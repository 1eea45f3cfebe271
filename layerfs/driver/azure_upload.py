"""An unfinished upload on Azure: an append blob, as distribution's driver keeps it. Runs on asyncio.

A block is appended only where the blob is as this upload has left it: same end, same ETag. A block that was appended is
durable, and there for everybody; who goes on with an upload needs nothing but the blob.

An append blob takes 50,000 blocks. A registry makes them of 4 MiB, which is 195 GiB; here they are larger and grow with
their number, so that 2.6 TiB fit. A flush makes a short one, so whoever syncs every few bytes comes to the limit much
sooner, and is told so; finishing what is there is possible then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from layerfs.driver.at_once import cancel_all
from layerfs.driver.azure_container import AzureBlob, Container
from layerfs.driver.azure_options import LARGEST_BLOCK, MOST_BLOCKS
from layerfs.driver.object_upload import ObjectUpload
from layerfs.errors import ContentChanged, ContentTooLarge, UnsupportedByDriver

#: From how many blocks on they are how many times as large.
_GROWTH: Final = ((35_000, 16), (20_000, 4), (0, 1))


def block_size(first: int, blocks: int) -> int:
    """Bytes of the next block of an upload that began with blocks of `first` bytes and has so many."""
    growth = next(growth for number, growth in _GROWTH if blocks >= number)
    return min(first * growth, LARGEST_BLOCK)


class AzureUpload(ObjectUpload):
    """An append blob that this process appends to: one block at a time, while the next one fills."""

    def __init__(self, container: Container, path: str, blob: AzureBlob) -> None:
        super().__init__(container, path, blob, container.block_buffers)
        self._container = container
        self._blob = blob
        self._blocks = blob.blocks
        self._appending: asyncio.Task[AzureBlob] | None = None

    async def append(self, buffers: Sequence[bytes]) -> None:
        if not self._blob.can_grow and any(buffers):
            raise UnsupportedByDriver(self.path, "a block blob, which nothing can be appended to")
        await super().append(buffers)

    async def abandon(self) -> None:
        self._forget_tail()
        if self._appending is not None:
            await cancel_all([self._appending])

    @property
    def _next_size(self) -> int:
        if self._blocks >= MOST_BLOCKS:
            raise ContentTooLarge(
                self.path, f"its {MOST_BLOCKS} blocks are used up, which is what Azure allows; finish it, or begin anew"
            )
        return block_size(self._container.options.block_size, self._blocks)

    async def _store(self, block: memoryview) -> None:
        await self._settle()
        # Asked for also by a flush, which fills no block.
        _ = self._next_size
        await self._container.block_memory.take(len(block))
        appending = asyncio.ensure_future(self._container.append(self.path, block, self._blob))
        # Not in the coroutine: it is never entered if it is cancelled at once.
        appending.add_done_callback(lambda _: self._container.block_memory.give_back(len(block)))
        self._appending = appending
        self._blocks += 1

    async def _settle(self) -> None:
        if self._appending is None:
            return
        await asyncio.wait([self._appending])
        appending, self._appending = self._appending, None
        if appending.cancelled():
            raise ContentChanged(self.path, "a block was not stored")
        self.stored = self._blob = appending.result()
        self._blocks = self._blob.blocks
