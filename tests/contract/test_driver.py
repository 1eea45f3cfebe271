"""What every storage driver promises: the sentences of `layerfs.driver.interface`, and distribution's driver suite."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest
import trio
from harness.drivers import APPENDING, DRIVERS, OBJECT_STORES, ONLY_APPENDING, RANDOM_WRITING, WITHOUT_DIRECTORIES

from layerfs.driver.interface import Capabilities, Entry, StorageDriver
from layerfs.errors import (
    ContentChanged,
    ContentTooLarge,
    DriverError,
    InvalidOffset,
    InvalidPath,
    NotRegularFile,
    PathNotEmpty,
    PathNotFound,
    ShortRead,
    UnsupportedByDriver,
)

MEBIBYTE = 1 << 20

appending = pytest.mark.parametrize("driver", APPENDING, indirect=True)
random_writing = pytest.mark.parametrize("driver", RANDOM_WRITING, indirect=True)
with_directories = pytest.mark.parametrize(
    "driver", [name for name in DRIVERS if name not in WITHOUT_DIRECTORIES], indirect=True
)
without_directories = pytest.mark.parametrize("driver", WITHOUT_DIRECTORIES, indirect=True)
on_object_stores = pytest.mark.parametrize("driver", OBJECT_STORES, indirect=True)
with_one_thing_at_a_path = pytest.mark.parametrize(
    "driver", [name for name in DRIVERS if name not in OBJECT_STORES], indirect=True
)

NamesLeft = Callable[[str], Awaitable[list[str]]]


async def content_of(driver: StorageDriver, path: str) -> bytes:
    return await driver.get_content(path, limit=64 * MEBIBYTE)


async def append(driver: StorageDriver, path: str, *buffers: bytes) -> None:
    writer = await driver.writer(path, append=True)
    await writer.write(buffers)
    await writer.flush()
    await writer.close()


async def names_in(driver: StorageDriver, path: str) -> list[str]:
    return sorted(entry.name for entry in await driver.list(path))


# --- paths -----------------------------------------------------------------------------------------------------

VALID_PATHS = [
    "/a",
    "/2",
    "/aa",
    "/a.a",
    "/0-9/abcdefg",
    "/abcdefg/z.75",
    "/abc/1.2.3.4.5-6_zyx/123.z/4",
    "/docker/docker-registry",
    "/123.abc",
    "/abc./abc",
    "/.abc",
    "/a--b",
    "/a-.b",
    "/_.abc",
    "/Docker/docker-registry",
    "/Abc/Cba",
]

INVALID_PATHS = [
    "",
    "abc",
    "123.abc",
    "//bcd",
    "/abc_123/",
    "/a//b",
    "/a/../b",
    "/..",
    "/a/.",
    "/a:b",
    "/a b",
    "/a\n",
    "/a\0b",
    "/ä",
    "/a\\b",
    "/%2e%2e",
]


@pytest.mark.parametrize("path", VALID_PATHS)
async def test_a_valid_path_can_be_written_and_read(driver: StorageDriver, path: str) -> None:
    """Every path that distribution accepts holds content."""
    await driver.put_content(path, b"content")
    assert await content_of(driver, path) == b"content"


METHODS: list[Callable[[StorageDriver, str], Awaitable[object]]] = [
    lambda driver, path: driver.stat(path),
    lambda driver, path: driver.list(path),
    lambda driver, path: driver.list_files(path),
    lambda driver, path: driver.get_content(path, limit=10),
    lambda driver, path: driver.put_content(path, b""),
    lambda driver, path: driver.open(path),
    lambda driver, path: driver.writer(path, append=True),
    lambda driver, path: driver.seal(path),
    lambda driver, path: driver.move(path, "/elsewhere"),
    lambda driver, path: driver.move("/exists", path),
    lambda driver, path: driver.delete(path),
    lambda driver, path: driver.make_directory(path),
    lambda driver, path: driver.remove_directory(path),
]


@pytest.mark.parametrize("path", INVALID_PATHS)
async def test_no_method_takes_an_invalid_path(driver: StorageDriver, path: str) -> None:
    """A malformed path is `InvalidPath` everywhere, and nothing is touched."""
    await driver.put_content("/exists", b"content")
    for method in METHODS:
        with pytest.raises(InvalidPath):
            await method(driver, path)
    assert await names_in(driver, "/") == ["exists"]
    assert await content_of(driver, "/exists") == b"content"


async def test_the_root_is_a_directory(driver: StorageDriver) -> None:
    """An empty storage has a root, and nothing in it."""
    info = await driver.stat("/")
    assert (info.path, info.is_directory, info.size) == ("/", True, 0)
    assert await driver.list("/") == []


async def test_the_root_is_no_file_and_stays(driver: StorageDriver) -> None:
    """Nothing replaces or removes the root."""
    await driver.put_content("/a", b"content")
    with pytest.raises(NotRegularFile):
        await driver.put_content("/", b"")
    with pytest.raises(NotRegularFile):
        await driver.move("/a", "/")
    with pytest.raises(NotRegularFile):
        await driver.open("/")
    with pytest.raises(InvalidPath):
        await driver.delete("/")
    assert await names_in(driver, "/") == ["a"]


async def test_capabilities_are_told(driver: StorageDriver) -> None:
    """A driver says what it can, and its name."""
    assert isinstance(driver.capabilities, Capabilities)
    assert driver.name


# --- contents ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [b"", b"\0", "Über die Brücke ☃".encode(), bytes(range(256)), random.Random(1).randbytes(MEBIBYTE)],
    ids=["empty", "one-byte", "utf-8", "not-utf-8", "1-mebibyte"],
)
async def test_content_comes_back_as_it_was_put(driver: StorageDriver, content: bytes) -> None:
    """Bytes are bytes."""
    await driver.put_content("/a/b", content)
    assert await content_of(driver, "/a/b") == content
    assert (await driver.stat("/a/b")).size == len(content)


async def test_all_files_below_a_directory(driver: StorageDriver) -> None:
    """With their sizes, at any depth, and not what only has the same prefix."""
    files = {"/a/b": b"1", "/a/c/d": b"22", "/a/c/e/f": b"333", "/a/c/e/empty": b"", "/ab": b"4444", "/z/a/b": b"55555"}
    for path, content in files.items():
        await driver.put_content(path, content)
    found = await driver.list_files("/a")
    assert {info.path: info.size for info in found} == {"/a/b": 1, "/a/c/d": 2, "/a/c/e/f": 3, "/a/c/e/empty": 0}
    assert not any(info.is_directory for info in found)
    assert {info.path for info in await driver.list_files("/")} == set(files)
    for path in ("/missing", "/a/b"):
        with pytest.raises(PathNotFound):
            await driver.list_files(path)


async def test_the_version_of_a_file_is_that_of_its_bytes(driver: StorageDriver) -> None:
    """Another one for other bytes, also of the same length and in the same second. Listings tell the same of a file."""
    told: list[str | None] = []
    for content in (b"one", b"two", b"2"):
        await driver.put_content("/a/b", content)
        (listed,) = await driver.list_files("/a")
        assert listed == await driver.stat("/a/b")
        told.append(listed.version)
    # Where files are listed to be recognized it must be told.
    assert told == [None] * 3 if not driver.capabilities.listed_files else len({*told} - {None}) == 3


@pytest.mark.parametrize("driver", [name for name in OBJECT_STORES if not name.startswith("s3")], indirect=True)
async def test_a_listing_tells_how_long_a_file_is_that_grows(driver: StorageDriver) -> None:
    """As `stat` does, whether it is stored or not; where `list_files` promises that."""
    path = "/docker/registry/v2/repositories/a/_uploads/u/data"

    async def sizes() -> tuple[int, int]:
        (listed,) = await driver.list_files("/docker/registry/v2/repositories/a/_uploads")
        assert listed.path == path
        return listed.size, (await driver.stat(path)).size

    assert driver.capabilities.listed_uploads
    writer = await driver.writer(path, append=False)
    assert await sizes() == (0, 0)
    await writer.write([b"content"])
    assert await sizes() == (7, 7)
    await writer.flush()
    await writer.close()
    assert await sizes() == (7, 7)
    writer = await driver.writer(path, append=True)
    await writer.write([b" and more"])
    await writer.flush()
    await writer.close()
    assert await sizes() == (16, 16)


async def test_opening_what_was_looked_at(driver: StorageDriver) -> None:
    """It reads as any other; if it has gone meanwhile, opening or reading says so."""
    await driver.put_content("/a/b", b"content")
    info = await driver.stat("/a/b")
    reader = await driver.open_known(info)
    assert reader.size == 7
    assert await reader.read(2, 3) == b"nte"
    reader.close()
    await driver.delete("/a/b")
    with pytest.raises((PathNotFound, ShortRead)):
        await (await driver.open_known(info)).read(0, 1)


async def test_shorter_content_replaces_longer(driver: StorageDriver) -> None:
    """Nothing of the old content is left."""
    await driver.put_content("/a", b"a long content")
    await driver.put_content("/a", b"short")
    assert await content_of(driver, "/a") == b"short"


async def test_missing_content(driver: StorageDriver) -> None:
    """There is no content at a path that nobody has put anything at, or below a file."""
    await driver.put_content("/file", b"")
    for path in ("/missing", "/missing/too", "/file/below"):
        with pytest.raises(PathNotFound) as caught:
            await driver.get_content(path, limit=10)
        assert caught.value.path == path


@with_one_thing_at_a_path
async def test_the_content_of_a_directory(driver: StorageDriver) -> None:
    """A directory has no content."""
    await driver.put_content("/a/b", b"")
    with pytest.raises(NotRegularFile):
        await driver.get_content("/a", limit=10)
    (one_of_many,) = await driver.get_contents(["/a"], limit=10)
    assert isinstance(one_of_many, NotRegularFile)


@on_object_stores
async def test_the_content_of_what_is_only_a_directory(driver: StorageDriver) -> None:
    """There is no file of that name, and nobody looks for what else has it."""
    await driver.put_content("/a/b", b"")
    with pytest.raises(PathNotFound):
        await driver.get_content("/a", limit=10)
    (one_of_many,) = await driver.get_contents(["/a"], limit=10)
    assert isinstance(one_of_many, PathNotFound)


async def test_content_up_to_the_limit(driver: StorageDriver) -> None:
    """The limit itself is allowed, one byte more is not."""
    await driver.put_content("/a", b"12345")
    assert await driver.get_content("/a", limit=5) == b"12345"
    with pytest.raises(ContentTooLarge):
        await driver.get_content("/a", limit=4)


@with_one_thing_at_a_path
async def test_content_cannot_replace_a_directory(driver: StorageDriver) -> None:
    """The directory stays as it is, without left-overs beside it."""
    await driver.put_content("/a/b", b"content")
    with pytest.raises(NotRegularFile):
        await driver.put_content("/a", b"")
    assert await names_in(driver, "/") == ["a"]
    assert await names_in(driver, "/a") == ["b"]


@on_object_stores
async def test_a_file_beside_a_directory_of_the_same_name(driver: StorageDriver, names_left: NamesLeft) -> None:
    """Keys know no directories. The file is seen, nothing is lost, and both are deleted together."""
    await driver.put_content("/a/b", b"below")
    await driver.put_content("/a", b"content")
    await driver.put_content("/a-c", b"neighbour")
    assert await content_of(driver, "/a") == b"content"
    assert await content_of(driver, "/a/b") == b"below"
    assert not (await driver.stat("/a")).is_directory
    assert sorted(await driver.list("/"), key=lambda entry: entry.name) == [Entry("a", False), Entry("a-c", False)]
    assert await names_in(driver, "/a") == ["b"]
    await driver.delete("/a")
    assert await names_left("/") == ["a-c"]
    with pytest.raises(PathNotFound):
        await driver.stat("/a/b")


@with_directories
async def test_content_cannot_be_put_below_a_file(driver: StorageDriver) -> None:
    """The file stays as it is."""
    await driver.put_content("/a", b"content")
    with pytest.raises(PathNotFound):
        await driver.put_content("/a/b", b"")
    assert await content_of(driver, "/a") == b"content"


async def test_putting_content_leaves_nothing_else(driver: StorageDriver) -> None:
    """No temporary file stays."""
    await driver.put_content("/a/b", b"1")
    await driver.put_content("/a/b", b"2")
    assert await names_in(driver, "/a") == ["b"]


async def test_a_directory_with_its_first_file(driver: StorageDriver) -> None:
    """Is there, and nothing is left where it was made; one that is there gets another file."""
    for name in ("b/c", "b/d", "e"):
        await driver.put_directory("/x/a", name, name.encode(), scratch="/y/a")
        assert await content_of(driver, f"/x/a/{name}") == name.encode()
    assert sorted(await names_in(driver, "/x/a")) == ["b", "e"]
    with pytest.raises(PathNotFound):
        await driver.stat("/y/a")


async def test_content_is_replaced_atomically(driver: StorageDriver) -> None:
    """Who reads while another writes sees one content or the other, complete."""
    contents = {bytes([value]) * 100_000 for value in b"ab"}
    await driver.put_content("/a", min(contents))
    done = False

    async def rewrite() -> None:
        nonlocal done
        for _ in range(20):
            for content in contents:
                await driver.put_content("/a", content)
        done = True

    async with trio.open_nursery() as nursery:
        nursery.start_soon(rewrite)
        while not done:
            assert await content_of(driver, "/a") in contents


async def test_many_contents_come_in_order(driver: StorageDriver) -> None:
    """Errors stand in the place of what could not be had."""
    await driver.put_content("/a", b"1")
    await driver.put_content("/d/b", b"22")
    first, missing, large, invalid, last = await driver.get_contents(
        ["/a", "/missing", "/d/b", "invalid", "/a"], limit=1
    )
    assert first == last == b"1"
    assert isinstance(missing, PathNotFound)
    assert isinstance(large, ContentTooLarge)
    assert isinstance(invalid, InvalidPath)


async def test_no_contents(driver: StorageDriver) -> None:
    """Nothing asked for, nothing given."""
    assert await driver.get_contents([], limit=1) == []
    assert await driver.stat_many([]) == []


# --- stat -------------------------------------------------------------------------------------------------------


async def test_stat_of_a_file(driver: StorageDriver) -> None:
    """Size, and the time of the change."""
    before = time.time_ns()
    await driver.put_content("/a/b", b"12345")
    info = await driver.stat("/a/b")
    assert (info.path, info.is_directory, info.size) == ("/a/b", False, 5)
    second = 1_000_000_000
    assert before - second <= info.modified_at <= time.time_ns() + second


async def test_the_time_of_a_file_does_not_go_back(driver: StorageDriver) -> None:
    """A later change is not earlier."""
    await driver.put_content("/a", b"1")
    first = (await driver.stat("/a")).modified_at
    await driver.put_content("/a", b"2")
    assert (await driver.stat("/a")).modified_at >= first


async def test_stat_of_a_directory(driver: StorageDriver) -> None:
    """A directory has no size."""
    await driver.put_content("/a/b", b"12345")
    info = await driver.stat("/a")
    assert (info.path, info.is_directory, info.size) == ("/a", True, 0)


async def test_whether_there_is_a_directory(driver: StorageDriver) -> None:
    """Only if there is; a name that begins alike is another one."""
    await driver.put_content("/a/b/c", b"content")
    assert await driver.is_directory("/")
    assert await driver.is_directory("/a")
    assert await driver.is_directory("/a/b")
    for path in ("/a/b/c", "/a/b/c/d", "/a/bb", "/x"):
        assert not await driver.is_directory(path)
    with pytest.raises(InvalidPath):
        await driver.is_directory("/a/")


async def test_stat_of_what_is_missing(driver: StorageDriver) -> None:
    """Also below a file, and with a name that only begins alike."""
    await driver.put_content("/a/bc", b"")
    for path in ("/missing", "/a/b", "/a/bc/d", "/a/bcd"):
        with pytest.raises(PathNotFound):
            await driver.stat(path)


async def test_many_stats_come_in_order(driver: StorageDriver) -> None:
    """Errors stand in the place of what could not be had."""
    await driver.put_content("/a/b", b"12345")
    file, missing, directory, invalid = await driver.stat_many(["/a/b", "/missing", "/a", "a"])
    assert not isinstance(file, DriverError)
    assert not isinstance(directory, DriverError)
    assert (file.path, file.size, file.is_directory) == ("/a/b", 5, False)
    assert (directory.path, directory.size, directory.is_directory) == ("/a", 0, True)
    assert isinstance(missing, PathNotFound)
    assert isinstance(invalid, InvalidPath)


# --- list -------------------------------------------------------------------------------------------------------


async def test_list_gives_files_and_directories(driver: StorageDriver) -> None:
    """The children, not their children."""
    await driver.put_content("/a/file", b"")
    await driver.put_content("/a/directory/deep/file", b"")
    await driver.put_content("/ab", b"")
    found = sorted(await driver.list("/a"), key=lambda entry: entry.name)
    assert found == [Entry("directory", True), Entry("file", False)]
    assert await names_in(driver, "/") == ["a", "ab"]


async def test_list_of_what_is_no_directory(driver: StorageDriver) -> None:
    """Neither a missing path nor a file can be listed."""
    await driver.put_content("/file", b"content")
    await driver.put_content("/empty", b"")
    for path in ("/missing", "/missing/too", "/file", "/empty", "/file/below"):
        with pytest.raises(PathNotFound):
            await driver.list(path)


async def test_list_gives_all_of_many(driver: StorageDriver) -> None:
    """However many there are."""
    names = [f"file-{number:04}" for number in range(300)]
    async with trio.open_nursery() as nursery:
        for name in names:
            nursery.start_soon(driver.put_content, f"/a/{name}", b"")
    assert await names_in(driver, "/a") == names


# --- reading ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [13 * 1024, 3 * MEBIBYTE])
async def test_read_at_any_offset(driver: StorageDriver, size: int) -> None:
    """All the bytes asked for, fewer only at the end, none beyond it."""
    content = random.Random(size).randbytes(size)
    await driver.put_content("/a", content)
    reader = await driver.open("/a")
    assert reader.size == size
    for offset in (0, 1, size // 3, size * 2 // 3, size - 1, size, size + 1, size + MEBIBYTE):
        for length in (0, 1, 4096, MEBIBYTE, size, size + 1):
            expected = content[offset : offset + length]
            assert await reader.read(offset, length) == expected
            at_once = reader.read_nowait(offset, length)
            assert at_once is None or at_once == expected
    reader.close()


async def test_read_at_a_negative_offset(driver: StorageDriver) -> None:
    """It has no meaning."""
    await driver.put_content("/a", b"content")
    reader = await driver.open("/a")
    with pytest.raises(InvalidOffset):
        await reader.read(-1, 1)
    with pytest.raises(InvalidOffset):
        reader.read_nowait(-1, 1)
    reader.close()


async def test_read_an_empty_file(driver: StorageDriver) -> None:
    """It has no bytes, and that takes no waiting."""
    await driver.put_content("/a", b"")
    reader = await driver.open("/a")
    assert reader.size == 0
    assert await reader.read(0, 10) == b""
    assert reader.read_nowait(0, 10) == b""
    reader.close()


async def test_open_what_is_no_file(driver: StorageDriver) -> None:
    """Only files can be read."""
    await driver.put_content("/a/b", b"")
    with pytest.raises(PathNotFound):
        await driver.open("/missing")
    with pytest.raises(PathNotFound):
        await driver.open("/a/b/c")
    with pytest.raises(NotRegularFile):
        await driver.open("/a")


@appending
async def test_a_file_that_became_shorter(driver: StorageDriver) -> None:
    """Too few bytes are an error, not an end."""
    await driver.put_content("/a", b"0123456789")
    reader = await driver.open("/a")
    await append(driver, "/other", b"")
    writer = await driver.writer("/a", append=False)
    await writer.write([b"01234"])
    with pytest.raises(ShortRead):
        await reader.read(0, 10)
    with pytest.raises(ShortRead):
        await reader.read(7, 1)
    assert await reader.read(0, 5) == b"01234"
    await writer.close()
    reader.close()


async def test_a_reader_can_be_closed_again(driver: StorageDriver) -> None:
    """Closing twice is closing once."""
    await driver.put_content("/a", b"content")
    reader = await driver.open("/a")
    reader.close()
    reader.close()


async def test_ten_readers_at_once(driver: StorageDriver) -> None:
    """Each sees the whole file, whatever the others read."""
    content = random.Random(2).randbytes(4 * MEBIBYTE + 1)
    await driver.put_content("/a", content)

    async def read_all(step: int) -> None:
        reader = await driver.open("/a")
        pieces = [await reader.read(offset, step) for offset in range(0, reader.size, step)]
        reader.close()
        assert b"".join(pieces) == content

    async with trio.open_nursery() as nursery:
        for number in range(10):
            nursery.start_soon(read_all, 100_003 * (number + 1))


# --- writing ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("driver", ["fsspec-unheardof"], indirect=True)
async def test_a_driver_that_cannot_append_has_no_writer(driver: StorageDriver) -> None:
    """It says so before anything is touched."""
    assert not driver.capabilities.append
    await driver.put_content("/a", b"content")
    for path in ("/a", "/b"):
        with pytest.raises(UnsupportedByDriver):
            await driver.writer(path, append=False)
    assert await names_in(driver, "/") == ["a"]
    assert await content_of(driver, "/a") == b"content"


@appending
async def test_a_writer_makes_the_file(driver: StorageDriver) -> None:
    """With the directories above it, and empty, before anything is written."""
    writer = await driver.writer("/a/b/c", append=True)
    assert writer.size == 0
    assert (await driver.stat("/a/b/c")).size == 0
    await writer.close()


@appending
async def test_a_writer_appends_all_buffers(driver: StorageDriver) -> None:
    """In order, however many and however small."""
    buffers = [bytes([number % 251]) * (number % 7) for number in range(3000)]
    writer = await driver.writer("/a", append=True)
    await writer.write(buffers)
    assert writer.size == sum(map(len, buffers))
    await writer.write([])
    await writer.write([b"", b"end"])
    await writer.flush()
    await writer.close()
    assert await content_of(driver, "/a") == b"".join(buffers) + b"end"


@appending
@pytest.mark.parametrize("size", [32, 10 * MEBIBYTE])
async def test_append_in_three_sessions(driver: StorageDriver, size: int) -> None:
    """Each begins where the one before has ended."""
    content = random.Random(size).randbytes(3 * size)
    for number in range(3):
        writer = await driver.writer("/a", append=True)
        assert writer.size == number * size
        await writer.write([content[number * size : (number + 1) * size]])
        assert writer.size == (number + 1) * size
        await writer.flush()
        await writer.close()
        assert (await driver.stat("/a")).size == (number + 1) * size
    assert await content_of(driver, "/a") == content


@appending
async def test_append_to_an_empty_file(driver: StorageDriver) -> None:
    """Whether a writer made it or `put_content`."""
    await append(driver, "/a")
    await driver.put_content("/b", b"")
    for path in ("/a", "/b"):
        await append(driver, path, b"content")
        assert await content_of(driver, path) == b"content"


@appending
async def test_a_writer_that_does_not_append_empties_the_file(driver: StorageDriver) -> None:
    """Nothing of the old content is left."""
    await driver.put_content("/a", b"a long content")
    writer = await driver.writer("/a", append=False)
    assert writer.size == 0
    await writer.write([b"short"])
    await writer.flush()
    await writer.close()
    assert await content_of(driver, "/a") == b"short"


@appending
async def test_no_writer_for_a_directory(driver: StorageDriver) -> None:
    """What is in it stays."""
    await driver.put_content("/a/b", b"content")
    with pytest.raises(NotRegularFile):
        await driver.writer("/a", append=True)
    with pytest.raises(NotRegularFile):
        await driver.writer("/a", append=False)
    assert await content_of(driver, "/a/b") == b"content"


@pytest.mark.parametrize("driver", [name for name in APPENDING if name not in OBJECT_STORES], indirect=True)
async def test_no_writer_below_a_file(driver: StorageDriver) -> None:
    """The file stays as it is."""
    await driver.put_content("/a", b"content")
    with pytest.raises(PathNotFound):
        await driver.writer("/a/b", append=True)
    assert await content_of(driver, "/a") == b"content"


@appending
async def test_what_was_written_can_be_read_before_the_writer_is_closed(driver: StorageDriver) -> None:
    """An upload can be read while it grows."""
    writer = await driver.writer("/a", append=True)
    await writer.write([b"content"])
    assert await content_of(driver, "/a") == b"content"
    await writer.close()


@appending
async def test_a_writer_notices_that_another_has_appended(driver: StorageDriver) -> None:
    """It refuses to mix its bytes with theirs."""
    writer = await driver.writer("/a", append=True)
    await writer.write([b"ours"])
    await append(driver, "/a", b"theirs")
    with pytest.raises(ContentChanged):
        await writer.write([b"more"])
    with pytest.raises(ContentChanged):
        await writer.flush()
    await writer.close()
    assert await content_of(driver, "/a") == b"ourstheirs"


@appending
async def test_a_writer_notices_that_the_file_was_removed(driver: StorageDriver) -> None:
    """Bytes that nobody could find again are not accepted."""
    writer = await driver.writer("/a", append=True)
    await writer.write([b"ours"])
    await driver.delete("/a")
    with pytest.raises(ContentChanged):
        await writer.write([b"more"])
    await writer.close()
    assert await driver.list("/") == []


@appending
async def test_flush_can_be_repeated(driver: StorageDriver) -> None:
    """Also with nothing new to be made durable."""
    writer = await driver.writer("/a", append=True)
    await writer.flush()
    await writer.write([b"content"])
    await writer.flush()
    await writer.flush()
    await writer.close()
    assert await content_of(driver, "/a") == b"content"


@appending
async def test_a_writer_can_be_closed_again(driver: StorageDriver) -> None:
    """Closing twice is closing once."""
    writer = await driver.writer("/a", append=True)
    await writer.close()
    await writer.close()


@appending
async def test_thirty_two_writers_at_once(driver: StorageDriver) -> None:
    """Each has its own file."""

    async def write(number: int) -> None:
        await append(driver, f"/a/{number}", *[bytes([number])] * 1000)

    async with trio.open_nursery() as nursery:
        for number in range(32):
            nursery.start_soon(write, number)
    for number in range(32):
        assert await content_of(driver, f"/a/{number}") == bytes([number]) * 1000


@random_writing
async def test_write_at_any_offset(driver: StorageDriver) -> None:
    """In the middle, over the end and beyond it; a gap reads as zeros."""
    await driver.put_content("/a", b"0123456789")
    writer = await driver.writer("/a", append=True)
    await writer.write_at(2, b"ab")
    assert writer.size == 10
    await writer.write_at(9, b"cd")
    assert writer.size == 11
    await writer.write_at(13, b"e")
    assert writer.size == 14
    await writer.write_at(20, b"")
    assert writer.size == 14
    await writer.write([b"f"])
    await writer.close()
    assert await content_of(driver, "/a") == b"01ab45678cd\0\0ef"


@random_writing
async def test_truncate(driver: StorageDriver) -> None:
    """Shorter, then longer with zeros, then appending goes on at the end."""
    await driver.put_content("/a", b"0123456789")
    writer = await driver.writer("/a", append=True)
    await writer.truncate(3)
    assert writer.size == 3
    await writer.truncate(5)
    assert writer.size == 5
    await writer.write([b"x"])
    await writer.close()
    assert await content_of(driver, "/a") == b"012\0\0x"


@random_writing
async def test_no_negative_offsets_in_writing(driver: StorageDriver) -> None:
    """They have no meaning."""
    writer = await driver.writer("/a", append=True)
    with pytest.raises(InvalidOffset):
        await writer.write_at(-1, b"x")
    with pytest.raises(InvalidOffset):
        await writer.truncate(-1)
    await writer.close()
    assert (await driver.stat("/a")).size == 0


@random_writing
async def test_every_way_of_writing_notices_others(driver: StorageDriver) -> None:
    """`write_at` and `truncate` as well as `write`, even if the size is what it was."""
    await driver.put_content("/a", b"0123456789")
    writer = await driver.writer("/a", append=True)
    other = await driver.writer("/a", append=True)
    await other.write_at(0, b"x")
    with pytest.raises(ContentChanged):
        await writer.write_at(1, b"y")
    with pytest.raises(ContentChanged):
        await writer.truncate(0)
    with pytest.raises(ContentChanged):
        await writer.write([b"y"])
    await writer.close()
    await other.close()
    assert await content_of(driver, "/a") == b"x123456789"


@pytest.mark.parametrize("driver", ONLY_APPENDING, indirect=True)
async def test_a_driver_without_random_writes_only_appends(driver: StorageDriver) -> None:
    """It says so, and nothing has changed."""
    assert not driver.capabilities.random_writes
    await driver.put_content("/a", b"content")
    writer = await driver.writer("/a", append=True)
    with pytest.raises(UnsupportedByDriver):
        await writer.write_at(0, b"x")
    with pytest.raises(UnsupportedByDriver):
        await writer.truncate(0)
    await writer.close()
    assert await content_of(driver, "/a") == b"content"


# --- sealing and publishing -------------------------------------------------------------------------------------


async def test_publish_a_sealed_file(driver: StorageDriver) -> None:
    """What was read is at the destination, and the sealed path can be removed if it is there still."""
    await driver.put_content("/uploads/u/data", b"content")
    async with await driver.seal("/uploads/u/data") as sealed:
        assert sealed.size == 7
        assert await sealed.read(0, 7) == b"content"
        await sealed.publish("/blobs/b/data")
    assert await content_of(driver, "/blobs/b/data") == b"content"
    assert await names_in(driver, "/blobs/b") == ["data"]
    with suppress(PathNotFound):
        await driver.delete("/uploads/u")
    with pytest.raises(PathNotFound):
        await driver.stat("/uploads/u/data")


async def test_what_is_told_of_a_file_that_is_published(driver: StorageDriver) -> None:
    """What is told of it to who asks, or nothing."""
    await driver.put_content("/upload", b"content")
    async with await driver.seal("/upload") as sealed:
        told = await sealed.publish("/blob")
    assert told in (None, await driver.stat("/blob"))


@on_object_stores
async def test_an_object_store_tells_what_it_has_published(driver: StorageDriver) -> None:
    """Whoever has finished an upload need not ask for its time."""
    await append(driver, "/docker/registry/v2/repositories/a/_uploads/u/data", b"content")
    async with await driver.seal("/docker/registry/v2/repositories/a/_uploads/u/data") as sealed:
        assert await sealed.publish("/blob") == await driver.stat("/blob")


@with_directories
async def test_publish_below_a_file(driver: StorageDriver) -> None:
    """It is an error, and both files stay as they are."""
    await driver.put_content("/upload", b"content")
    await driver.put_content("/file", b"other")
    async with await driver.seal("/upload") as sealed:
        with pytest.raises(PathNotFound):
            await sealed.publish("/file/below")
    assert await content_of(driver, "/upload") == b"content"
    assert await content_of(driver, "/file") == b"other"


async def test_a_sealed_file_is_read_like_any_other(driver: StorageDriver) -> None:
    """Exactly the bytes asked for, fewer only at the end."""
    await driver.put_content("/a", b"0123456789")
    async with await driver.seal("/a") as sealed:
        assert await sealed.read(3, 4) == b"3456"
        assert await sealed.read(8, 10) == b"89"
        assert await sealed.read(10, 1) == b""
        assert await sealed.read(100, 1) == b""
        with pytest.raises(InvalidOffset):
            await sealed.read(-1, 1)


async def test_seal_what_is_no_file(driver: StorageDriver) -> None:
    """Only files can be sealed."""
    await driver.put_content("/a/b", b"")
    with pytest.raises(PathNotFound):
        await driver.seal("/missing")
    with pytest.raises(NotRegularFile):
        await driver.seal("/a")


async def test_publish_replaces_what_is_there(driver: StorageDriver) -> None:
    """A damaged blob is healed by publishing the good bytes."""
    await driver.put_content("/upload", b"good")
    await driver.put_content("/blob", b"damaged and longer")
    async with await driver.seal("/upload") as sealed:
        await sealed.publish("/blob")
    assert await content_of(driver, "/blob") == b"good"


async def test_publish_an_empty_file(driver: StorageDriver) -> None:
    """Nothing is content too."""
    await driver.put_content("/upload", b"")
    async with await driver.seal("/upload") as sealed:
        assert sealed.size == 0
        await sealed.publish("/blob")
    assert (await driver.stat("/blob")).size == 0


async def test_publish_checks_the_destination(driver: StorageDriver) -> None:
    """A bad destination changes nothing, and a good one can be given afterwards."""
    await driver.put_content("/upload", b"content")
    async with await driver.seal("/upload") as sealed:
        with pytest.raises(InvalidPath):
            await sealed.publish("blob")
        with pytest.raises(NotRegularFile):
            await sealed.publish("/")
        await sealed.publish("/blob")
    assert await content_of(driver, "/blob") == b"content"


@with_one_thing_at_a_path
async def test_publish_over_a_directory(driver: StorageDriver) -> None:
    """Neither over it nor into it, and another destination can be given afterwards."""
    await driver.put_content("/upload", b"content")
    await driver.put_content("/directory/file", b"")
    async with await driver.seal("/upload") as sealed:
        with pytest.raises(NotRegularFile):
            await sealed.publish("/directory")
        await sealed.publish("/blob")
    assert await content_of(driver, "/blob") == b"content"
    assert await names_in(driver, "/directory") == ["file"]


async def test_a_file_that_was_not_published_is_as_before(driver: StorageDriver) -> None:
    """Unsealing leaves neither a copy nor a lock."""
    await driver.put_content("/a", b"content")
    sealed = await driver.seal("/a")
    await sealed.release()
    await sealed.release()
    assert await names_in(driver, "/") == ["a"]
    assert await content_of(driver, "/a") == b"content"
    await driver.put_content("/a", b"other")
    await driver.delete("/a")


@appending
async def test_an_unsealed_file_can_be_written(driver: StorageDriver) -> None:
    """An upload whose digest did not match can go on."""
    await append(driver, "/a", b"content")
    async with await driver.seal("/a"):
        pass
    await append(driver, "/a", b" and more")
    assert await content_of(driver, "/a") == b"content and more"


@appending
async def test_an_open_writer_cannot_change_what_is_sealed(driver: StorageDriver) -> None:
    """What is read from the sealed file is what is published."""
    writer = await driver.writer("/upload", append=True)
    await writer.write([b"content"])
    async with await driver.seal("/upload") as sealed:
        await writer.write([b" and more"])
        assert await sealed.read(0, 100) == b"content"
        await sealed.publish("/blob")
        with suppress(ContentChanged):
            await writer.write([b"even more"])
    await writer.close()
    assert await content_of(driver, "/blob") == b"content"


@random_writing
async def test_the_version_tells_whether_others_wrote(driver: StorageDriver) -> None:
    """It is that of the last writer, if nobody else changed a byte since."""
    writer = await driver.writer("/a", append=True)
    await writer.write([b"content"])
    await writer.flush()
    version = writer.version()
    await writer.close()
    assert version is not None
    async with await driver.seal("/a") as sealed:
        assert sealed.version == version
    other = await driver.writer("/a", append=True)
    await other.write_at(0, b"C")
    await other.close()
    async with await driver.seal("/a") as sealed:
        assert sealed.version != version


# --- moving and deleting ----------------------------------------------------------------------------------------


async def test_move(driver: StorageDriver) -> None:
    """The file is at the new path, and nowhere else."""
    await driver.put_content("/a/b", b"content")
    await driver.move("/a/b", "/c/d/e")
    assert await content_of(driver, "/c/d/e") == b"content"
    with pytest.raises(PathNotFound):
        await driver.stat("/a/b")


async def test_move_over_a_file(driver: StorageDriver) -> None:
    """The file that was there is gone."""
    await driver.put_content("/a", b"new")
    await driver.put_content("/b", b"old content")
    await driver.move("/a", "/b")
    assert await content_of(driver, "/b") == b"new"
    assert await names_in(driver, "/") == ["b"]


async def test_move_to_itself(driver: StorageDriver) -> None:
    """Nothing changes."""
    await driver.put_content("/a", b"content")
    await driver.move("/a", "/a")
    assert await content_of(driver, "/a") == b"content"


async def test_move_what_is_missing(driver: StorageDriver) -> None:
    """The destination stays as it is, and no directory is made."""
    await driver.put_content("/b", b"content")
    with pytest.raises(PathNotFound):
        await driver.move("/a", "/b")
    with pytest.raises(PathNotFound):
        await driver.move("/a", "/c/d")
    assert await content_of(driver, "/b") == b"content"
    assert await names_in(driver, "/") == ["b"]


@with_directories
async def test_move_below_a_file(driver: StorageDriver) -> None:
    """Both files stay as they are."""
    await driver.put_content("/a", b"content")
    await driver.put_content("/b", b"other")
    with pytest.raises(PathNotFound):
        await driver.move("/a", "/b/c")
    assert await content_of(driver, "/a") == b"content"
    assert await content_of(driver, "/b") == b"other"


async def test_move_over_a_directory(driver: StorageDriver) -> None:
    """Neither over it nor into it."""
    await driver.put_content("/a", b"content")
    await driver.put_content("/b/c", b"other")
    with pytest.raises(NotRegularFile):
        await driver.move("/a", "/b")
    assert await content_of(driver, "/a") == b"content"
    assert await names_in(driver, "/b") == ["c"]


async def test_move_a_directory(driver: StorageDriver) -> None:
    """Only files can be moved."""
    await driver.put_content("/a/b", b"content")
    with pytest.raises(NotRegularFile):
        await driver.move("/a", "/c")
    assert await names_in(driver, "/") == ["a"]


async def test_delete_a_file(driver: StorageDriver) -> None:
    """Its neighbours stay."""
    await driver.put_content("/a/b", b"")
    await driver.put_content("/a/c", b"")
    await driver.delete("/a/b")
    assert await names_in(driver, "/a") == ["c"]


async def test_delete_a_directory(driver: StorageDriver, names_left: NamesLeft) -> None:
    """With all in it, but not what only begins alike."""
    for path in ("/a/b", "/a/c/d", "/ab", "/a-b/c", "/a.b"):
        await driver.put_content(path, b"")
    await driver.delete("/a")
    assert await names_left("/") == ["a-b", "a.b", "ab"]
    with pytest.raises(PathNotFound):
        await driver.stat("/a/c/d")


async def test_delete_what_is_missing(driver: StorageDriver) -> None:
    """It is an error, and what begins alike stays."""
    await driver.put_content("/ab", b"")
    for path in ("/a", "/ab/c", "/x/y"):
        with pytest.raises(PathNotFound):
            await driver.delete(path)
    assert await names_in(driver, "/") == ["ab"]


async def test_delete_files(driver: StorageDriver, names_left: NamesLeft) -> None:
    """Those that are there, wherever they are, and the neighbours stay."""
    for path in ("/a/b/link", "/a/b/link-1", "/a/c/link", "/a/d/link/link"):
        await driver.put_content(path, b"")
    await driver.delete_files(["/a/b/link", "/a/missing", "/a/c/link"])
    assert await names_left("/a/b") == ["link-1"]
    with pytest.raises(PathNotFound):
        await driver.stat("/a/c/link")
    assert not (await driver.stat("/a/d/link/link")).is_directory
    await driver.delete_files([])


async def test_delete_in_steps(driver: StorageDriver, names_left: NamesLeft) -> None:
    """All of it goes, missing or not, and the neighbours stay."""
    for path in ("/a/u/data", "/a/u/states/1", "/a/u/states/2", "/a/u/started", "/a/u/name", "/a/v/data", "/a/u-1"):
        await driver.put_content(path, b"")
    steps = (("/a/u/data", "/a/u/states"), ("/a/u/started", "/a/u/missing"), ("/a/u",))
    await driver.delete_in_steps(*steps)
    assert await names_left("/a") == ["u-1", "v"]
    await driver.delete_in_steps(*steps)
    await driver.delete_in_steps(("/a/u-1",), ("/a/v/data", "/a/missing"))
    for path in ("/a/u-1", "/a/v/data"):
        with pytest.raises(PathNotFound):
            await driver.stat(path)


# --- directories ------------------------------------------------------------------------------------------------


@with_directories
async def test_make_a_directory(driver: StorageDriver) -> None:
    """With those above it; making it again is no error."""
    await driver.make_directory("/a/b/c")
    await driver.make_directory("/a/b/c")
    await driver.make_directory("/")
    assert await driver.list("/a/b") == [Entry("c", True)]
    assert await driver.list("/a/b/c") == []
    assert (await driver.stat("/a/b/c")).is_directory


@with_directories
async def test_no_directory_in_place_of_a_file(driver: StorageDriver) -> None:
    """The file stays."""
    await driver.put_content("/a", b"content")
    for path in ("/a", "/a/b"):
        with pytest.raises(PathNotFound):
            await driver.make_directory(path)
    assert await content_of(driver, "/a") == b"content"


@with_directories
async def test_a_directory_stays_when_it_becomes_empty(driver: StorageDriver) -> None:
    """As in any file system."""
    await driver.put_content("/a/b/c", b"")
    await driver.delete("/a/b/c")
    assert await driver.list("/a/b") == []


@with_directories
async def test_remove_a_directory(driver: StorageDriver) -> None:
    """Only an empty one, and only that."""
    await driver.make_directory("/a/b")
    with pytest.raises(PathNotEmpty):
        await driver.remove_directory("/a")
    await driver.remove_directory("/a/b")
    assert await driver.list("/a") == []
    with pytest.raises(PathNotFound):
        await driver.remove_directory("/a/b")


@with_directories
async def test_remove_a_file_as_a_directory(driver: StorageDriver) -> None:
    """The file stays."""
    await driver.put_content("/a", b"content")
    with pytest.raises(PathNotFound):
        await driver.remove_directory("/a")
    assert await content_of(driver, "/a") == b"content"


@without_directories
async def test_a_driver_without_directories_ignores_them(driver: StorageDriver, names_left: NamesLeft) -> None:
    """A directory is there while something is in it."""
    assert not driver.capabilities.directories
    await driver.make_directory("/a")
    assert await driver.list("/") == []
    await driver.put_content("/a/b", b"content")
    await driver.remove_directory("/a")
    assert await names_in(driver, "/a") == ["b"]
    await driver.delete("/a/b")
    assert await names_left("/") == []


# --- the rest ---------------------------------------------------------------------------------------------------


async def test_usage_adds_up(driver: StorageDriver) -> None:
    """Where it is known, free is less than all."""
    usage = await driver.usage()
    if usage is not None:
        assert 0 <= usage.available_bytes <= usage.free_bytes <= usage.total_bytes
        assert 0 <= usage.free_files <= usage.total_files
        assert usage.block_size & (usage.block_size - 1) == 0


async def test_a_driver_can_be_closed_again(driver: StorageDriver) -> None:
    """Closing twice is closing once."""
    await driver.close()
    await driver.close()


@appending
async def test_everything_can_be_cancelled(driver: StorageDriver) -> None:
    """A cancelled operation has happened or not, and whoever comes next is not disturbed."""
    await driver.put_content("/exists", b"content")
    descriptors = len(os.listdir("/proc/self/fd"))
    for method in METHODS:
        with trio.CancelScope() as scope:
            scope.cancel()
            await method(driver, "/a/b")
        assert scope.cancelled_caught
    await driver.put_content("/a/b", b"other")
    assert await content_of(driver, "/a/b") == b"other"
    assert len(os.listdir("/proc/self/fd")) <= descriptors
