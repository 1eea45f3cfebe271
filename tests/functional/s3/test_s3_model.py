"""One upload, many processes, any order of events: beside a plain `bytes` that says what must be there."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import suppress

import pytest
import trio
from harness.s3_proxy import Fault, S3Proxy

from layerfs.driver import s3_left_uploads
from layerfs.driver.interface import FileWriter
from layerfs.driver.s3 import S3Driver
from layerfs.errors import ContentChanged, DriverError

MEBIBYTE = 1 << 20
PART = 5 * MEBIBYTE
DATA = "/docker/registry/v2/repositories/a/_uploads/u/data"
BLOB = "/docker/registry/v2/blobs/sha256/ab/abcd/data"


class Model:
    """The upload, and what is known of it: `flushed` is in storage for certain, `taken` may be."""

    def __init__(self, drivers: Callable[..., S3Driver], proxy: S3Proxy, seed: int) -> None:
        self.random = random.Random(seed)
        self.drivers = drivers
        self.proxy = proxy
        self.late: list[Fault] = []
        self.driver = self.new_process()
        self.writer: FileWriter | None = None
        self.abandoned: list[FileWriter] = []
        self.flushed = b""
        self.taken = b""
        self.done: list[str] = []

    def new_process(self) -> S3Driver:
        return self.drivers(endpoint_url=self.proxy.url, part_size=PART, parts_in_flight=2)

    async def step(self) -> None:
        """Something happens."""
        steps = [self.write] * 6 + [self.flush] * 3
        steps += [self.close, self.die, self.read, self.read_elsewhere, self.look, self.seal, self.zombie]
        steps += [self.put_off] * 2 + [self.arrive]
        step = self.random.choice(steps)
        self.done.append(step.__name__)
        await step()

    async def write(self) -> None:
        if self.writer is None:
            await self.open()
        content = self.random.randbytes(self.random.choice([1, 1000, 1000, 300_000, PART, PART + 7, 2 * PART]))
        pieces = [content[start : start + MEBIBYTE] for start in range(0, len(content), MEBIBYTE)]
        await self.writer.write(pieces)
        self.taken += content
        assert self.writer.size == len(self.taken)

    async def open(self) -> None:
        self.writer = await self.driver.writer(DATA, append=True)
        self.lost_some(self.writer.size)

    def lost_some(self, size: int) -> None:
        """What was not flushed may be lost, but only from the end."""
        assert len(self.flushed) <= size <= len(self.taken), self.done
        self.flushed = self.taken = self.taken[:size]

    async def flush(self) -> None:
        if self.writer is not None:
            await self.writer.flush()
            self.flushed = self.taken

    async def close(self) -> None:
        if self.writer is not None:
            await self.writer.close()
            self.writer = None
            await self.look()

    async def die(self) -> None:
        """The process ends in the middle, or is only cut off: then its writer is still there."""
        if self.writer is None:
            return
        self.abandoned.append(self.writer)
        self.writer, self.driver = None, self.new_process()
        taken = self.taken
        await self.open()
        try:
            await self.write()
        except ContentChanged:
            # What the other had on its way came after it was opened: there is more now.
            self.taken = taken
            await self.open()
        await self.flush()

    async def zombie(self) -> None:
        """One that was cut off writes: it is told, and nothing happens to the upload."""
        for writer in self.abandoned:
            with pytest.raises(ContentChanged):
                await writer.write([b"zombie"])
                await writer.flush()
        self.abandoned.clear()

    async def put_off(self) -> None:
        """The next request of a kind will be kept on its way, and is made again."""
        operation = self.random.choice(["UploadPart", "UploadPart", "CompleteMultipartUpload", "UploadPartCopy"])
        self.late.append(self.proxy.fail("put_off", operation))

    async def arrive(self) -> None:
        """What was kept comes."""
        for late in self.late:
            self.proxy.faults.remove(late)
            if late.met:
                await trio.to_thread.run_sync(late.deliver)
        self.late.clear()

    async def look(self) -> None:
        """Another process sees how much there is."""
        size = (await self.new_process().stat(DATA)).size
        assert len(self.flushed) <= size <= len(self.taken), self.done
        if self.writer is None:
            self.lost_some(size)

    async def read(self) -> None:
        if self.taken:
            await self.check_read(self.driver, self.taken if self.writer is not None else self.flushed)

    async def read_elsewhere(self) -> None:
        await self.flush()
        if self.flushed:
            await self.check_read(self.new_process(), self.flushed)

    async def check_read(self, driver: S3Driver, content: bytes) -> None:
        reader = await driver.open(DATA)
        assert reader.size == len(content), self.done
        offset = self.random.randrange(len(content))
        length = self.random.choice([1, 4096, PART, len(content)])
        assert await reader.read(offset, length) == content[offset : offset + length], self.done
        reader.close()

    async def seal(self) -> None:
        """Sealed for a wrong digest, and unsealed again."""
        await self.flush()
        if self.writer is not None:
            await self.writer.close()
            self.writer = None
        self.abandoned.clear()
        async with await self.driver.seal(DATA) as sealed:
            assert sealed.size == len(self.flushed), self.done
            assert await sealed.read(0, sealed.size) == self.flushed, self.done


@pytest.mark.parametrize("seed", [32, 225])  # each has found something once
async def test_an_upload_is_what_was_written(
    drivers: Callable[..., S3Driver], proxy: S3Proxy, stored, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Whatever happens, no flushed byte is lost, no byte is another one, and every size is right."""
    monkeypatch.setattr(s3_left_uploads, "_STILL", 0.01)
    model = Model(drivers, proxy, seed)
    await model.write()
    for _ in range(25):
        await model.step()
    await model.flush()
    await model.arrive()
    async with await model.driver.seal(DATA) as sealed:
        await sealed.publish(BLOB)
    assert stored.content(BLOB) == model.flushed, model.done
    for writer in model.abandoned:
        with suppress(DriverError):
            await writer.close()
