"""Uploads: begun, written, read back, renamed and cancelled."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import nullcontext

import pytest
from harness.shown import Shown, opened

UUID = "9f2d6c1a-4b0e-4c57-8d3f-2a1b0c9d8e7f"

Payload = Callable[[int], bytes]


async def test_creating_begins_an_upload(shown: Shown) -> None:
    """It is there at once, empty, writable, under its name."""
    async with opened(await shown.open(shown.upload("x"), os.O_WRONLY | os.O_CREAT)):
        status = await shown.stat(shown.upload("x"))
        assert (status.permissions, status.size) == (0o644, 0)
        assert await shown.list(shown.uploads) == ["x"]


async def test_appending_goes_on_at_the_end(shown: Shown, payload: Payload) -> None:
    """By one open after the other; the size is where to resume."""
    pieces = [payload(1), payload(300_000), payload(70_000)]
    for count, piece in enumerate(pieces, 1):
        await shown.append(shown.upload("x"), piece)
        assert (await shown.stat(shown.upload("x"))).size == sum(map(len, pieces[:count]))
    assert await shown.read(shown.upload("x")) == b"".join(pieces)


async def test_going_on_with_an_upload_of_a_registry(shown: Shown) -> None:
    """Its bytes stay, ours come after them, and both are in storage when it is closed."""
    path = await shown.put_upload(b"received ", UUID)
    await shown.append(path, b"and appended")
    assert await shown.read(path) == b"received and appended"
    data = f"/docker/registry/v2/repositories/{shown.repository}/_uploads/{UUID}/data"
    assert await shown.holds(data, b"received and appended")


async def test_reading_back_while_writing(shown: Shown, payload: Payload) -> None:
    """Through the writing descriptor and another one, flushed or not."""
    content = payload(200_000)
    async with opened(await shown.open(shown.upload("x"), os.O_RDWR | os.O_CREAT)) as writer:
        await writer.write(content)
        assert await writer.read() == content
        async with opened(await shown.open(shown.upload("x"))) as reader:
            assert await reader.read(100_000, 50_000) == content[100_000:150_000]
            await writer.write(b"more", len(content))
            assert await reader.read() == content + b"more"


@pytest.mark.parametrize("offset", [0, 500, 99_999])
async def test_overwriting(shown: Shown, payload: Payload, offset: int) -> None:
    """Only those bytes change; none does where storage can only append. Then it goes on at the end."""
    content = payload(100_000)
    await shown.write(shown.upload("x"), content)
    async with opened(await shown.open(shown.upload("x"), os.O_WRONLY)) as file:
        with shown.changing_what_is_there():
            await file.write(b"changed", offset)
    if shown.has_random_writes:
        content = content[:offset] + b"changed" + content[offset + 7 :]
    assert await shown.read(shown.upload("x")) == content
    await shown.append(shown.upload("x"), b"more")
    assert await shown.read(shown.upload("x")) == content + b"more"


async def test_writing_past_the_end(shown: Shown) -> None:
    """The gap reads as zeros."""
    async with opened(await shown.open(shown.upload("x"), os.O_WRONLY | os.O_CREAT)) as file:
        await file.write(b"begin")
        await file.write(b"end", 1000)
    assert await shown.read(shown.upload("x")) == b"begin" + bytes(995) + b"end"


@pytest.mark.parametrize("size", [0, 50, 100, 150])
@pytest.mark.parametrize("by", ["path", "descriptor", "path of an open one"])
async def test_truncating(shown: Shown, payload: Payload, size: int, by: str) -> None:
    """Shorter or longer, by path or descriptor; what is added is zeros. Where storage can only append not shorter."""
    content = payload(100)
    await shown.write(shown.upload("x"), content)
    with shown.changing_what_is_there() if size < 100 else nullcontext():
        if by == "path":
            await shown.truncate(shown.upload("x"), size)
        else:
            async with opened(await shown.open(shown.upload("x"), os.O_WRONLY)) as file:
                if by == "descriptor":
                    await file.truncate(size)
                else:
                    await shown.truncate(shown.upload("x"), size)
    kept = size if shown.has_random_writes else max(size, 100)
    assert await shown.read(shown.upload("x")) == content[:kept] + bytes(max(0, size - 100))


async def test_opening_with_truncation(shown: Shown) -> None:
    """`>` begins anew; where storage can only append it is refused, and what is there stays."""
    await shown.write(shown.upload("x"), b"what was before")
    with shown.changing_what_is_there():
        await shown.write(shown.upload("x"), b"new", os.O_TRUNC)
    assert await shown.read(shown.upload("x")) == (b"new" if shown.has_random_writes else b"what was before")


async def test_a_second_writer(shown: Shown) -> None:
    """EBUSY while the first has it open, and not any more when that is released."""
    async with opened(await shown.open(shown.upload("x"), os.O_WRONLY | os.O_CREAT)) as first:
        await first.write(b"first")
        with shown.refused(errno.EBUSY):
            await shown.open(shown.upload("x"), os.O_WRONLY)
        await first.sync()
        with shown.refused(errno.EBUSY):
            await shown.open(shown.upload("x"), os.O_WRONLY)
    await shown.append(shown.upload("x"), b" second")
    assert await shown.read(shown.upload("x")) == b"first second"


async def test_a_reader_does_not_hinder_a_writer(shown: Shown) -> None:
    """An open for reading is no second writer."""
    await shown.write(shown.upload("x"), b"one")
    async with opened(await shown.open(shown.upload("x"))) as reader:
        await shown.append(shown.upload("x"), b" two")
        assert await reader.read() == b"one two"


async def test_renaming(shown: Shown) -> None:
    """The content is under the new name, and nothing under the old one."""
    await shown.write(shown.upload("x"), b"content")
    await shown.rename(shown.upload("x"), shown.upload("y"))
    assert await shown.list(shown.uploads) == ["y"]
    assert await shown.read(shown.upload("y")) == b"content"
    with shown.refused(errno.ENOENT):
        await shown.stat(shown.upload("x"))


async def test_renaming_while_it_is_written(shown: Shown) -> None:
    """The descriptor goes on writing into the same upload."""
    async with opened(await shown.open(shown.upload("x"), os.O_WRONLY | os.O_CREAT)) as file:
        await file.write(b"before")
        await shown.rename(shown.upload("x"), shown.upload("y"))
        await file.write(b" after", 6)
        assert await shown.list(shown.uploads) == ["y"]
    assert await shown.read(shown.upload("y")) == b"before after"


async def test_renaming_over_another_upload(shown: Shown) -> None:
    """The other one is cancelled."""
    await shown.write(shown.upload("x"), b"new")
    await shown.write(shown.upload("y"), b"old")
    await shown.rename(shown.upload("x"), shown.upload("y"))
    assert await shown.list(shown.uploads) == ["y"]
    assert await shown.read(shown.upload("y")) == b"new"


async def test_renaming_onto_itself(shown: Shown) -> None:
    """Changes nothing, least of all the content."""
    await shown.write(shown.upload("x"), b"content")
    await shown.rename(shown.upload("x"), shown.upload("x"))
    assert await shown.read(shown.upload("x")) == b"content"


async def test_renaming_into_another_repository(shown: Shown) -> None:
    """EINVAL, never EXDEV, on which `mv` would copy."""
    await shown.write(shown.upload("x"), b"content")
    other = f"{shown.repository}/other"
    await shown.make_directory(other)
    with shown.refused(errno.EINVAL):
        await shown.rename(shown.upload("x"), f"{other}/_uploads/x")


async def test_exclusive_creation(shown: Shown) -> None:
    """EEXIST if there is an upload of that name."""
    await shown.write(shown.upload("x"), b"content")
    with shown.refused(errno.EEXIST):
        await shown.open(shown.upload("x"), os.O_WRONLY | os.O_CREAT | os.O_EXCL)


async def test_cancelling(shown: Shown) -> None:
    """`rm` deletes the upload with all that is stored of it."""
    path = await shown.put_upload(b"received", UUID)
    await shown.remove(path)
    assert await shown.list(shown.uploads) == []
    directory = f"/docker/registry/v2/repositories/{shown.repository}/_uploads/{UUID}"
    assert [await shown.get(f"{directory}/{name}") for name in ("startedat", "data")] == [None, None]


async def test_cancelling_while_it_is_written(shown: Shown) -> None:
    """The writer gets EBADF, and nothing comes back to life."""
    file = await shown.open(shown.upload("x"), os.O_WRONLY | os.O_CREAT)
    await file.write(b"content")
    await shown.remove(shown.upload("x"))
    with shown.refused(errno.EBADF):
        await file.write(b"more", 7)
    with shown.refused(errno.EBADF):
        await file.close()
    assert await shown.list(shown.uploads) == []


async def test_cancelling_while_it_is_read(shown: Shown) -> None:
    """An open file that was removed can be read to its end, as everywhere in Unix; on an object store perhaps not."""
    await shown.write(shown.upload("x"), b"content")
    async with opened(await shown.open(shown.upload("x"))) as reader:
        assert await reader.read(0, 3) == b"con"
        await shown.remove(shown.upload("x"))
        with shown.gone_from_object_stores():
            assert await reader.read() == b"content"


@pytest.mark.parametrize("before", [0, 3])
async def test_cancelling_while_it_is_written_and_read(shown: Shown, before: int) -> None:
    """The same for who has had from its writer what he has read, or has not read at all. An object store: EIO."""
    writer = await shown.open(shown.upload("x"), os.O_WRONLY | os.O_CREAT)
    await writer.write(b"content")
    await writer.sync()
    async with opened(await shown.open(shown.upload("x"))) as reader:
        assert await reader.read(0, before) == b"content"[:before]
        await shown.remove(shown.upload("x"))
        with nullcontext() if shown.has_random_writes else shown.refused(errno.EIO):
            assert await reader.read() == b"content"
    with shown.refused(errno.EBADF):
        await writer.close()


async def test_mode_and_times_are_taken_and_ignored(shown: Shown) -> None:
    """So that `cp -a` works."""
    await shown.write(shown.upload("x"), b"content")
    await shown.change_mode(shown.upload("x"), 0o600)
    assert (await shown.stat(shown.upload("x"))).permissions == 0o644


async def test_attributes_of_an_upload(shown: Shown) -> None:
    """What it is, by extended attributes."""
    path = await shown.put_upload(b"received", UUID)
    assert await shown.attribute(path, "user.layerfs.upload.uuid") == UUID
    assert await shown.attribute(path, "user.layerfs.upload.startedat") == "2026-11-23T00:06:39Z"
    assert await shown.attribute(path, "user.layerfs.repository") == shown.repository
    with shown.refused(errno.ENODATA):
        await shown.attribute(path, "user.layerfs.error")


@pytest.mark.parametrize("name", ["line\nbreak", "\x1b[31m", "sha256:" + "0" * 64])
async def test_names_that_no_upload_may_have(shown: Shown, name: str) -> None:
    """Control characters and digests: EINVAL."""
    with shown.refused(errno.EINVAL):
        await shown.open(shown.upload(name), os.O_WRONLY | os.O_CREAT)


async def test_a_name_that_is_too_long(shown: Shown) -> None:
    """More than 255 bytes: ENAMETOOLONG."""
    with shown.refused(errno.ENAMETOOLONG):
        await shown.open(shown.upload("ü" * 128), os.O_WRONLY | os.O_CREAT)
