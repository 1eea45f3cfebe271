"""Uploads as a power cut leaves them on a disk: with zeros at the end in the place of bytes that were never stored."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from layerfs.digest import Digest
from layerfs.driver.local import LocalDriver
from layerfs.registry import LayerService, LayerUpload, Registry
from layerfs.registry.paths import UploadDirectory

NAME = "foo/bar"
BLOCK = 4096


@pytest.fixture
def layers(tmp_path: Path) -> LayerService:
    return Registry(LocalDriver(str(tmp_path))).repository(NAME).layers


@pytest.fixture
def data_of(tmp_path: Path) -> Callable[[LayerUpload], Path]:
    """Where the bytes of an upload are stored."""
    return lambda upload: Path(f"{tmp_path}{UploadDirectory(NAME, upload.uuid).data}")


async def acknowledged(layers: LayerService, content: bytes) -> LayerUpload:
    """An upload with bytes that are durable, and nobody who writes it."""
    async with await layers.upload() as upload:
        await upload.write(content)
    return upload


def cut_power(path: Path, content: bytes) -> None:
    """The file is found with this content after the machine has started again."""
    path.write_bytes(content)
    before = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) - 60
    os.utime(path, (before, before))


@pytest.mark.parametrize("stored", [5000, 5700])
@pytest.mark.parametrize("end", [6000, 2 * BLOCK, 3_000_000])
async def test_zeros_after_what_was_acknowledged(
    layers: LayerService,
    data_of: Callable[[LayerUpload], Path],
    payload: Callable[[int], bytes],
    stored: int,
    end: int,
) -> None:
    """Do not count: whoever goes on where the size says has the right layer in the end."""
    content = payload(20_000).replace(b"\0", b"x")
    upload = await acknowledged(layers, content[:5000])
    cut_power(data_of(upload), content[:stored].ljust(end, b"\0"))
    assert [info.size for info in await layers.uploads()] == [stored]
    async with await layers.resume(upload.uuid) as again:
        assert (again.size, again.offset) == (stored, stored)
        await again.write(content[stored:])
        await again.flush()
        assert again.size == 20_000
        await again.finish(Digest.of(content))
    async with await layers.fetch(Digest.of(content)) as layer:
        assert await layer.read() == content


async def test_opening_for_writing_says_the_same(layers: LayerService, data_of: Callable[[LayerUpload], Path]) -> None:
    """As the size that was shown before."""
    upload = await acknowledged(layers, b"x" * 5000)
    cut_power(data_of(upload), (b"x" * 5000).ljust(BLOCK * 2, b"\0"))
    async with await layers.resume(upload.uuid) as again:
        await again.open_writer()
        assert again.size == 5000
    assert (await layers.stat_upload(upload.uuid)).size == 5000


async def test_zeros_that_were_acknowledged(layers: LayerService, data_of: Callable[[LayerUpload], Path]) -> None:
    """Count, as all that was acknowledged."""
    content = (b"x" * 5000).ljust(2 * BLOCK, b"\0")
    upload = await acknowledged(layers, content)
    cut_power(data_of(upload), content)
    assert (await layers.stat_upload(upload.uuid)).size == 2 * BLOCK
    cut_power(data_of(upload), content + bytes(1000))
    assert (await layers.stat_upload(upload.uuid)).size == 2 * BLOCK


async def test_zeros_that_were_acknowledged_without_a_state(
    layers: LayerService, data_of: Callable[[LayerUpload], Path]
) -> None:
    """Count too: there is no state after writing here and there."""
    content = (b"x" * 5000).ljust(2 * BLOCK, b"\0")
    async with await layers.upload() as upload:
        await upload.write_at(5000, bytes(len(content) - 5000))
        await upload.write_at(0, content[:5000])
    assert not list(data_of(upload).parent.glob("hashstates/*/*"))
    cut_power(data_of(upload), content + bytes(1000))
    assert (await layers.stat_upload(upload.uuid)).size == 2 * BLOCK


async def test_other_bytes_count(layers: LayerService, data_of: Callable[[LayerUpload], Path]) -> None:
    """Whatever was acknowledged: others may have written them, and the zeros before them."""
    upload = await acknowledged(layers, b"x" * 100)
    found = b"x" * 100 + bytes(BLOCK * 2) + b"y" * 100
    cut_power(data_of(upload), found)
    assert (await layers.stat_upload(upload.uuid)).size == len(found)


async def test_a_large_hole_at_the_end_counts(layers: LayerService, data_of: Callable[[LayerUpload], Path]) -> None:
    """No power cut has made that."""
    upload = await acknowledged(layers, b"x" * 100)
    cut_power(data_of(upload), b"x" * 100)
    times = data_of(upload).stat()
    os.truncate(data_of(upload), 1 << 30)
    os.utime(data_of(upload), ns=(times.st_atime_ns, times.st_mtime_ns))
    assert (await layers.stat_upload(upload.uuid)).size == 1 << 30


async def test_an_upload_of_which_nothing_was_acknowledged(
    layers: LayerService, data_of: Callable[[LayerUpload], Path]
) -> None:
    """Is empty if all of it is zeros."""
    upload = await layers.upload()
    await upload.close()
    cut_power(data_of(upload), bytes(300_000))
    assert (await layers.stat_upload(upload.uuid)).size == 0
    async with await layers.resume(upload.uuid) as again:
        await again.write(b"content")
        await again.finish(Digest.of(b"content"))


@pytest.mark.parametrize("number", [b"", b"-1", b"9" * 30, b"x", b"9000"])
async def test_what_is_noted_and_means_nothing(
    layers: LayerService, data_of: Callable[[LayerUpload], Path], number: bytes
) -> None:
    """Does not count: no number, or of more bytes than there are."""
    upload = await layers.upload()
    await upload.close()
    data_of(upload).with_name("layerfs-durable").write_bytes(number)
    cut_power(data_of(upload), b"x" * 5000 + bytes(1000))
    assert (await layers.stat_upload(upload.uuid)).size == 5000


async def test_zeros_that_were_written_since_the_machine_started(
    layers: LayerService, data_of: Callable[[LayerUpload], Path]
) -> None:
    """No power cut has made these."""
    upload = await acknowledged(layers, b"x" * 5000)
    with data_of(upload).open("ab") as file:
        file.write(bytes(1000))
    assert (await layers.stat_upload(upload.uuid)).size == 6000


async def test_a_complete_upload_that_ends_in_zeros(
    layers: LayerService, data_of: Callable[[LayerUpload], Path]
) -> None:
    """As an archive does: it can be finished as it is, and whoever writes the rest again may do so."""
    content = (b"x" * 5000).ljust(2 * BLOCK, b"\0")
    first, second = await acknowledged(layers, content[:4500]), await acknowledged(layers, content[:4500])
    for upload in (first, second):
        cut_power(data_of(upload), content)
        assert (await layers.stat_upload(upload.uuid)).size == 5000
    await (await layers.resume(first.uuid)).finish(Digest.of(content))
    async with await layers.resume(second.uuid) as again:
        again.seek(7000)
        await again.write(content[7000:])
        await again.finish(Digest.of(content))
