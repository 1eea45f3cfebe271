"""An unfinished upload on S3: an open multipart upload, as distribution's driver keeps it. Runs on asyncio.

What is written becomes parts. Full ones are stored in the background, a few at a time; what does not fill a part yet
is kept in memory, and stored by `flush` as a short last part, whose place the full one takes later. Nothing about an
upload is stored anywhere else: who goes on with it asks the store for its parts.

S3 has three rules that make this harder:

* Every part but the last must have 5 MiB. Whoever goes on after a shorter last part must *repack*: complete the
  upload, so that an object appears, begin a new one, and have the object copied into it. The object stays, as the
  beginning of what the upload holds. A crash in the middle leaves an object that is longer than the parts: then the
  object counts.
* The parts of an open upload cannot be read. Whoever wants to read one that is not in memory must repack too.
* A part is stored on no condition, and a request that was given up, or made again, can come late. So a number under
  which something may still be stored is used for nothing else (an upload is *quiet* if there is none): whoever wants to
  append must repack, because what was on its way to the old upload then finds it gone.

What comes after a gap in the parts does not count, and repacking leaves it out. How what the store has is found and
added up: `s3_stored_upload`.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Iterator
from typing import Final

from layerfs.driver.objects import StoredObject
from layerfs.driver.s3_answers import Part
from layerfs.driver.s3_bucket import Bucket
from layerfs.driver.s3_copies import Copies
from layerfs.driver.s3_errors import UploadGone
from layerfs.driver.s3_options import MOST_PARTS, SMALLEST_PART
from layerfs.driver.s3_stored_upload import (
    S3Version,
    StoredUpload,
    complete,
    find_upload,
    known_upload,
    total,
    version_of,
)
from layerfs.driver.written_upload import WrittenUpload
from layerfs.errors import ContentChanged, ContentTooLarge, DriverError

#: From which part on parts are how many times as large, so that 10,000 of them hold a terabyte.
_GROWTH: Final = ((6000, 16), (2000, 4), (0, 1))


def _is_of(part: Part, content: memoryview) -> bool:
    """Whether a part is known to have this content."""
    return part.size == len(content) and part.etag == hashlib.md5(content, usedforsecurity=False).hexdigest()


def _identity(part: Part) -> tuple[int, int, str]:
    return part.number, part.size, part.etag


def _result_of(task: asyncio.Task[Part], path: str) -> Part:
    if task.cancelled():
        raise ContentChanged(path, "a part was not stored")
    return task.result()


class S3Upload(WrittenUpload):
    """An upload that this process writes, or repacks."""

    def __init__(
        self, bucket: Bucket, copies: Copies, path: str, state: StoredUpload, *, is_quiet: bool = False
    ) -> None:
        super().__init__(path, state.modified_at or time.time_ns(), bucket.part_buffers)
        self._bucket = bucket
        self._copies = copies
        self._upload_id = state.upload_id
        self._parts = list(state.parts)
        self._stray = state.stray
        self._others = state.others
        self._object = state.found
        # The object is all there is: there are no parts, or not all that there were to be.
        self._is_object = state.is_object
        self._tail_part: Part | None = None
        self._storing: dict[int, asyncio.Task[Part]] = {}
        self._storing_contents: dict[int, memoryview] = {}
        # The short part whose place the first of them takes.
        self._replaced: Part | None = None
        # Parts are looked for before they are stored, one after the other: behind one that is somebody else's none is.
        self._looking = asyncio.Lock()
        # Whether every part is one that was stored here, or was listed when this began.
        self._is_known = True
        self._is_quiet = is_quiet
        # Whether the store was asked to complete it, and has not answered.
        self._is_completing = False

    @property
    def size(self) -> int:
        """All bytes that were taken, stored or not."""
        if self._is_object and self._object is not None:
            return self._object.size + len(self._unstored)
        return total(self._parts) + self._storing_size + len(self._tail)

    @property
    def upload_id(self) -> str | None:
        return self._upload_id

    @property
    def version(self) -> S3Version:
        """Of what is stored; one that nothing has if parts were made by somebody else since this began."""
        return self._state.version if self._is_known else S3Version("unknown", self.size)

    @property
    def is_quiet(self) -> bool:
        """Whether no part can be stored any more by a request that was made before; so its number can be used."""
        return self._is_quiet and not self.has_failed

    @property
    def _storing_size(self) -> int:
        return sum(map(len, self._storing_contents.values()))

    @property
    def _stored(self) -> list[Part]:
        return [*self._parts, self._tail_part] if self._tail_part is not None else self._parts

    @property
    def _unstored(self) -> memoryview:
        """What of the tail is in memory only."""
        return self._tail.view()[self._tail_part.size if self._tail_part is not None else 0 :]

    @property
    def _state(self) -> StoredUpload:
        found = self._object if self._is_object else None
        return StoredUpload(self._upload_id, () if self._is_object else tuple(self._stored), self._stray, found)

    async def read(self, offset: int, length: int) -> bytes:
        """Bytes that were taken; repacks if they can be had in no other way."""
        async with self._lock:
            self._check()
            stored = self.size - len(self._tail)
            if offset >= stored:
                return bytes(self._tail.view()[offset - stored : offset - stored + length])
            try:
                return await self._read_object(offset, length)
            except ContentChanged:
                if self._is_object or self.has_failed:
                    raise
                # A reader elsewhere has repacked it, and made another object of it.
                self._object = None
            return await self._read_object(offset, length)

    async def _read_object(self, offset: int, length: int) -> bytes:
        if self._object is None or self._object.size < offset + length:
            await self._flush()
            await self._repack()
        assert self._object is not None  # noqa: S101
        found = self._object
        return await self._bucket.get_range(self.path, offset, length, size=found.size, etag=found.etag)

    async def repack(self) -> None:
        """Leaves out what comes after a gap, and makes the rest readable."""
        async with self._lock:
            await self._repack()

    async def abandon(self) -> None:
        """Forgets what is not stored. Who reads ends first: he may be repacking."""
        await self._stop_storing()
        async with self._lock:
            await self._stop_storing()
            self._is_quiet = self._is_quiet and not self._storing
            self._storing.clear()
            self._storing_contents.clear()
            self._tail = self._gathering()

    async def _stop_storing(self) -> None:
        for task in self._storing.values():
            task.cancel()
        if self._storing:
            await asyncio.wait(self._storing.values())

    # --- taking bytes; the lock is held ------------------------------------------------------------------------------

    async def _take(self, view: memoryview) -> None:
        while view and self._must_repack:
            await self._repack()
        await super()._take(view)

    async def _hand_over(self) -> None:
        await self._wait_for_room(len(self._tail))
        # Look again: it may all be in other parts by now.
        if len(self._tail) >= self._next_size:
            await self._bucket.part_memory.take(len(self._tail))
            self._begin_storing()

    @property
    def _next_number(self) -> int:
        return len(self._parts) + len(self._storing) + 1

    @property
    def _next_size(self) -> int:
        if self._next_number > MOST_PARTS:
            raise ContentTooLarge(self.path, f"S3 takes no more than {MOST_PARTS} parts")
        growth = next(growth for number, growth in _GROWTH if self._next_number > number)
        return self._bucket.options.part_size * growth

    async def _wait_for_room(self, size: int) -> None:
        options = self._bucket.options
        most = options.part_size * options.parts_in_flight
        # Behind a short part nothing is stored before the full one is in its place: whoever finds the upload after a
        # crash would take them for its content, without what is missing between them.
        while self._storing and (self._replaced is not None or self._storing_size + size > most):
            await asyncio.wait(self._storing.values(), return_when=asyncio.FIRST_COMPLETED)
            await self._settle()

    def _begin_storing(self) -> None:
        assert self._upload_id is not None  # noqa: S101
        number, content = self._next_number, self._tail.view()
        size = len(content)
        self._replaced = self._tail_part or self._replaced
        self._tail, self._tail_part = self._gathering(), None
        self._storing_contents[number] = content
        storing = self._store(self._upload_id, number, content, self._replaced)
        self._storing[number] = task = asyncio.ensure_future(storing)
        # Not in the coroutine: it is never entered if it is cancelled at once.
        task.add_done_callback(lambda _: self._bucket.part_memory.give_back(size))

    async def _store(self, upload_id: str, number: int, content: memoryview, replaced: Part | None) -> Part:
        """Stores a full part, in the place of a short one that was stored here, but of no other."""
        async with self._looking:
            self._check()
            listed = await self._bucket.list_parts(self.path, upload_id, after=number - 1)
            stored = next((part for part in listed if part.number == number), None)
            if stored is not None and (replaced is None or stored.etag != replaced.etag):
                self.fence("somebody else is writing it too")
                self._check()
        return await self._bucket.upload_part(self.path, upload_id, number, content)

    async def _settle(self) -> None:
        """Takes the parts that are stored into account, in order. Raises what made one fail, for good."""
        with self._failing_for_good():
            try:
                self._take_in_stored()
            except UploadGone as error:
                await self._carry_on(error)

    def _take_in_stored(self) -> None:
        for number in sorted(self._storing):
            if not self._storing[number].done():
                return
            self._parts.append(_result_of(self._storing[number], self.path))
            del self._storing[number], self._storing_contents[number]
            self._replaced = None

    async def _flush(self) -> None:
        self._check()
        await self._wait_for_storing()
        while self._unstored and self._must_repack:
            await self._repack()
            await self._wait_for_storing()
        if not self._unstored:
            return
        with self._failing_for_good():
            try:
                self._tail_part = await self._store_tail()
            except UploadGone as error:
                await self._carry_on(error)
                await self._flush()

    async def _wait_for_storing(self) -> None:
        while self._storing:
            await asyncio.wait(self._storing.values())
            await self._settle()

    async def _store_tail(self) -> Part:
        assert self._upload_id is not None  # noqa: S101
        await self._check_unchanged(self._upload_id)
        # Until there is an answer, to the only request that was made.
        self._is_quiet = False
        part = await self._bucket.upload_part(self.path, self._upload_id, self._next_number, self._tail.view())
        self._is_quiet = not part.may_come_again
        return part

    async def _check_unchanged(self, upload_id: str) -> None:
        """Raises `ContentChanged` if somebody else has stored parts at the end, which ours would replace."""
        expected = self._stored[-1:]
        after = expected[0].number - 1 if expected else 0
        listed = await self._bucket.list_parts(self.path, upload_id, after=after)
        if [(part.number, part.etag) for part in listed] != [(part.number, part.etag) for part in expected]:
            raise ContentChanged(self.path, "somebody else is writing it too")

    # --- going on after somebody else; the lock is held ---------------------------------------------------------------

    async def _carry_on(self, gone: UploadGone) -> None:
        """Goes on if all that was done to the upload is that a reader somewhere has repacked it. Else raises `gone`.

        The object that the reader made tells by its ETag that it is of the parts that were stored here. Whether it was
        copied rightly does not show, so the version is unknown from here on.
        """
        if self._storing:
            await asyncio.wait(self._storing.values())
        state = await find_upload(self._bucket, self.path, look_at_object=True)
        pending = b"".join([*(self._storing_contents[number] for number in sorted(self._storing)), self._tail.view()])
        if state is None or state.stray or not self._is_repacked(state):
            raise gone
        included = state.size - total(self._parts)
        self._upload_id, self._object, self._is_known = state.upload_id, state.found, False
        self._storing.clear()
        self._storing_contents.clear()
        self._tail, self._tail_part, self._replaced = self._gathering(), None, None
        self._parts, self._is_quiet = list(state.parts), False
        await self._take(memoryview(pending)[included:])

    def _is_repacked(self, state: StoredUpload) -> bool:
        """Whether an upload has what is stored of this one, and nothing else."""
        if state.upload_id is None or state.found is None or total(state.parts) != state.found.size:
            return False
        may_go_on = len(state.parts) == 1 or state.parts[-1].size >= SMALLEST_PART
        version = S3Version(state.found.etag, state.found.size)
        return may_go_on and any(version == version_of(parts) for parts in self._possibly_stored())

    def _possibly_stored(self) -> Iterator[list[Part]]:
        """What somebody else may have found, some time since the last `flush`."""
        parts = list(self._parts)
        yield self._stored
        if self._replaced is not None:
            yield [*parts, self._replaced]
        for number in sorted(self._storing):
            task = self._storing[number]
            if task.cancelled() or task.exception() is not None:
                return
            parts.append(task.result())
            yield list(parts)

    # --- repacking; the lock is held ---------------------------------------------------------------------------------

    @property
    def _must_repack(self) -> bool:
        """Whether nothing can be appended to the parts as they are."""
        if self._is_object or self._stray or not self._is_quiet:
            return True
        # A short last part that is in memory too is replaced.
        return bool(self._parts) and self._parts[-1].size < SMALLEST_PART

    async def _repack(self) -> None:
        """What counts becomes the beginning of a new upload, to which anything can be appended."""
        with self._failing_for_good():
            try:
                self._object = await self._gather_in_object()
            except UploadGone as error:
                await self._carry_on(error)
                return
            counts = self._state.size
            unstored = bytes(self._unstored)
            self._is_object, self._upload_id = True, None
            await self._take_in(self._object, counts)
            await self._drop_others()
            await super()._take(memoryview(unstored))

    async def _drop_others(self) -> None:
        """Aborts what else was open when this began: an upload that was begun twice has an empty one beside it."""
        for upload_id in self._others:
            await self._bucket.abort_upload(self.path, upload_id)
        self._others = ()

    async def _gather_in_object(self) -> StoredObject:
        """What counts, as an object. A part that comes in between, late, is noticed by the store or here."""
        for is_last_try in (False, True):
            await self._look_again()
            try:
                return await self._make_object() if self._state.size else await self._make_nothing()
            except ContentChanged as error:
                if is_last_try or isinstance(error, UploadGone):
                    raise
        raise AssertionError("the last try returns or raises")

    async def _look_again(self) -> None:
        """Raises `ContentChanged` unless the parts are what they were: left out, or replaced, they would be lost.

        A short part may be any that was sent of the tail. That somebody else has completed it not every store says when
        it is asked to (Ceph), so it is found out here.
        """
        if self._upload_id is None or self._is_object:
            return
        try:
            again = await known_upload(self._bucket, self.path, self._upload_id)
        except UploadGone:
            if not self._is_completing:
                raise
            # Whether it was completed by that is found out by asking again.
            return
        count = len(self._parts)
        tail = again.parts[count:]
        is_own = not tail or (len(tail) == 1 and self._is_of_tail(tail[0]))
        has_tail = bool(tail) or self._tail_part is None
        is_same = list(map(_identity, again.parts[:count])) == list(map(_identity, self._parts))
        if not (is_own and has_tail and is_same and again.stray == self._stray):
            raise ContentChanged(self.path, "other parts are listed than a moment ago")
        self._tail_part = tail[0] if tail else None

    def _is_of_tail(self, part: Part) -> bool:
        if self._tail_part is not None and _identity(part) == _identity(self._tail_part):
            return True
        return _is_of(part, self._tail.view()[: part.size])

    async def _make_nothing(self) -> StoredObject:
        """Drops an upload of which nothing counts: without parts it could not be completed."""
        if self._upload_id is not None:
            await self._bucket.abort_upload(self.path, self._upload_id)
        return StoredObject(0, "", 0)

    async def _make_object(self) -> StoredObject:
        """Has all that counts in one object, so that nothing is lost whatever happens then."""
        state = self._state
        if state.found is not None:
            if state.upload_id is not None and not self._copies.is_unfinished(self.path, state.upload_id):
                await self._bucket.abort_upload(self.path, state.upload_id)
            return state.found
        # Should there be no answer the request can come late, and leaves out what is stored by then.
        self._is_quiet, self._is_completing = False, True
        try:
            return await complete(self._bucket, self.path, state)
        except UploadGone:
            raise
        except DriverError:
            if not state.stray:
                raise
            # Ceph completes all of the parts or none. What comes after the gap is left out when the object is copied.
            every = StoredUpload(state.upload_id, state.parts + state.stray, (), None)
            return await complete(self._bucket, self.path, every)

    async def _take_in(self, found: StoredObject, size: int) -> None:
        """Makes the first `size` bytes of the object those of a new upload."""
        parts: list[Part] = []
        tail = b""
        tail_part = None
        # Until all is in, and nothing that was asked for can come again.
        self._is_quiet = False
        if size >= SMALLEST_PART:
            self._upload_id, parts = await self._copies.copy_into_upload(self.path, found, size)
        else:
            self._upload_id = await self._bucket.create_upload(self.path)
            if size:
                tail = await self._bucket.get_range(self.path, 0, size, size=found.size, etag=found.etag)
                tail_part = await self._bucket.upload_part(self.path, self._upload_id, 1, tail)
        if size < found.size:
            # Being longer than the parts it would count.
            await self._bucket.delete(self.path)
            self._object = None
        self._parts, self._stray, self._is_object = parts, (), False
        self._is_quiet = tail_part is None or not tail_part.may_come_again
        self._is_completing = False
        self._tail, self._tail_part = self._gathering(tail), tail_part
