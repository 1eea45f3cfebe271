"""An unfinished upload on Google Cloud Storage: an object that grows by composing. Runs on asyncio.

What is written is stored as objects of their own, *parts*, several at a time; then the store makes one object of the
upload and its parts (`compose`), and the parts are deleted. So whatever was flushed is the object at the upload's path,
for everybody to read and to go on with, and a crash leaves parts that nobody needs, which go with the upload.

Composing is bound to the generation of the object: who comes second, in whatever process, learns it. And it must give
the CRC32C of what was written here, so what is stored is compared with it, from the first byte to the last.

An object may be changed about once in a second; more often the store has flushes wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import google_crc32c

from layerfs.driver.at_once import cancel_all
from layerfs.driver.gcs_bucket import (
    MOST_COMPOSED,
    UPLOAD_TYPE,
    GcsBucket,
    GcsObject,
    decode_crc32c,
    encode_crc32c,
)
from layerfs.driver.object_upload import ObjectUpload
from layerfs.errors import ContentChanged, DriverError

#: Parts that are composed while more are written: more of them cost fewer requests, fewer lose less in a crash.
_COMPOSED_AT: Final = 8
#: Parts that may be there and not composed, stored or on their way: what a crash can lose.
_MOST_PARTS: Final = 2 * _COMPOSED_AT


@dataclass(frozen=True, slots=True)
class _Part:
    path: str
    storing: asyncio.Task[GcsObject]
    #: Of all that was written, up to the end of this part.
    crc32c: int


class GcsUpload(ObjectUpload):
    """An object that this process appends to: several parts at a time."""

    def __init__(self, bucket: GcsBucket, path: str, found: GcsObject) -> None:
        super().__init__(bucket, path, found, bucket.part_buffers)
        self._bucket = bucket
        self._found = found
        self._crc32c = decode_crc32c(found.crc32c)
        # In order. Composing takes them away from the front.
        self._parts: list[_Part] = []
        self._composing: asyncio.Task[None] | None = None

    async def abandon(self) -> None:
        self._forget_tail()
        composing = [] if self._composing is None else [self._composing]
        await cancel_all([*composing, *(part.storing for part in self._parts)])

    @property
    def _next_size(self) -> int:
        return self._bucket.options.part_size

    async def _store(self, content: memoryview) -> None:
        await self._wait_for_room()
        await self._bucket.part_memory.take(len(content))
        # The sums can be had of nothing else.
        block = bytes(content)
        path = f"{self.path}.{self._handed_over:020}-{uuid.uuid4().hex}.part"
        # While there is nothing the first block makes the object.
        if self._handed_over == 0:
            path, storing = (
                self.path,
                self._bucket.put_object(self.path, block, content_type=UPLOAD_TYPE, generation=self._found.generation),
            )
        else:
            storing = self._bucket.put_object(path, block)
        task = asyncio.ensure_future(storing)
        # Not in the coroutine: it is never entered if it is cancelled at once.
        task.add_done_callback(lambda _: self._bucket.part_memory.give_back(len(block)))
        self._crc32c = google_crc32c.extend(self._crc32c, block)
        self._parts.append(_Part(path, task, self._crc32c))

    async def _settle(self) -> None:
        while self._parts or self._composing is not None:
            await self._end_composing()
            if self._parts:
                self._composing = asyncio.ensure_future(self._compose(len(self._parts)))

    async def _wait_for_room(self) -> None:
        """Waits until another part may be on its way; has those composed meanwhile that are stored."""
        while True:
            if self._composing is not None and self._composing.done():
                await self._end_composing()
            stored = next((n for n, part in enumerate(self._parts) if not part.storing.done()), len(self._parts))
            if stored >= _COMPOSED_AT and self._composing is None:
                self._composing = asyncio.ensure_future(self._compose(stored))
            waiting = [part.storing for part in self._parts if not part.storing.done()]
            is_full = len(waiting) >= self._bucket.options.parts_in_flight
            if not is_full and len(self._parts) < _MOST_PARTS:
                return
            pending = [*waiting, self._composing] if self._composing is not None else waiting
            await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)

    async def _end_composing(self) -> None:
        if self._composing is None:
            return
        await asyncio.wait([self._composing])
        composing, self._composing = self._composing, None
        if composing.cancelled():
            raise ContentChanged(self.path, "a part was not stored")
        composing.result()

    async def _compose(self, count: int) -> None:
        """Makes the first parts, at most so many, the end of the object, when they are stored."""
        if self._parts[0].path == self.path:
            first = self._parts[0]
            self._take_in(await first.storing, 1)
            return
        parts = self._parts[: min(count, MOST_COMPOSED - 1)]
        stored = [(part.path, await asyncio.shield(part.storing)) for part in parts]
        try:
            found = await self._bucket.compose(self.path, self._found, stored, encode_crc32c(parts[-1].crc32c))
        except ContentChanged:
            # It may be gone, and nothing would take them with it then.
            await self._delete(stored)
            raise
        self._take_in(found, len(parts))
        await self._delete(stored)

    async def _delete(self, parts: Sequence[tuple[str, GcsObject]]) -> None:
        # If it fails they are in the way of nobody, and go with the upload.
        with contextlib.suppress(DriverError):
            await self._bucket.delete_keys(self.path, [self._bucket.key(path) for path, _ in parts])

    def _take_in(self, found: GcsObject, count: int) -> None:
        self.stored = self._found = found
        del self._parts[:count]
