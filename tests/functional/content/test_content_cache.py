"""The content cache: what is found in it is what its digest says, whatever happened to its files; within its bounds."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from layerfs.digest import Digest
from layerfs.registry.cache import CacheUnusable
from layerfs.registry.content_cache import ContentCache, ContentUnreadable
from layerfs.registry.content_file import ContentMismatch

KIB, MIB = 1 << 10, 1 << 20
BLOCK = 64 * KIB

#: Three whole blocks and a piece of one.
CONTENT = random.Random(1).randbytes(3 * BLOCK + 1234)
DIGEST = Digest.of(CONTENT)


def blob(number: int, size: int) -> tuple[Digest, bytes]:
    """Some content, another one for each number."""
    content = random.Random(number).randbytes(size)
    return Digest.of(content), content


async def fill(cache: ContentCache, digest: Digest, content: bytes, *, chunk: int = BLOCK) -> bool:
    """Puts content into the cache as whoever fetches it does; whether there was a place for it."""
    new = await cache.begin(digest, len(content))
    if new is None:
        return False
    await new.resume()
    while new.written < len(content):
        await new.write(content[new.written : new.written + chunk])
    (await new.finish()).close()
    return True


async def content_of(cache: ContentCache, digest: Digest, size: int) -> bytes | None:
    """What the cache gives for a blob, None if it has none (any more)."""
    reader = await cache.find(digest, size)
    if reader is None:
        return None
    try:
        return await reader.read(0, size)
    except ContentUnreadable:
        return None
    finally:
        reader.close()


def files_in(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("*") if path.is_file() and path.name != "lock")


Open = Callable[..., ContentCache]


@pytest.fixture
async def opened(tmp_path: Path) -> AsyncIterator[Open]:
    """Opens the cache in a directory, each time as another process would."""
    made: list[ContentCache] = []

    def open_cache(limit: int = 100 * MIB, directory: Path = tmp_path / "cache") -> ContentCache:
        made.append(ContentCache(str(directory), limit))
        return made[-1]

    yield open_cache
    for cache in made:
        await cache.close()


# --- what is found ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * MIB])
async def test_what_was_put_is_found(opened: Open, size: int) -> None:
    """By every cache in that directory, whole and in pieces, with and without waiting."""
    digest, content = blob(size, size)
    assert await fill(opened(), digest, content, chunk=MIB)
    reader = await opened().find(digest, size)
    assert reader is not None
    assert reader.size == size
    for offset, length in [(0, size), (size // 2, size), (size - 1, 100), (size, 1), (max(0, BLOCK - 3), 7)]:
        assert await reader.read(offset, length) == content[offset : offset + length]
        quick = reader.read_nowait(offset, length)
        assert quick is None or bytes(quick) == content[offset : offset + length]
    reader.close()


async def test_nothing_else_is_found(opened: Open) -> None:
    """Neither what was never put, nor what has another size."""
    cache = opened()
    assert await content_of(cache, DIGEST, 10) is None
    assert await fill(cache, DIGEST, CONTENT)
    assert await content_of(cache, DIGEST, len(CONTENT) + 1) is None


async def test_content_is_verified_before_it_is_found(opened: Open) -> None:
    """Other bytes than the digest says never get its name."""
    cache = opened()
    wrong = bytes([CONTENT[0] ^ 1]) + CONTENT[1:]
    new = await cache.begin(DIGEST, len(wrong))
    assert new is not None
    await new.write(wrong)
    assert await content_of(cache, DIGEST, len(CONTENT)) is None
    with pytest.raises(ContentMismatch) as caught:
        await new.finish()
    assert caught.value.actual == Digest.of(wrong)
    new.leave(keep=False)
    assert await content_of(cache, DIGEST, len(CONTENT)) is None
    assert files_in(Path(cache.directory)) == []


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_files_give_no_wrong_byte(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """A byte that is another, bytes that are missing or too many: the blob is right or not there."""
    import trio

    async def check() -> None:
        cache = ContentCache(str(tmp_path_factory.mktemp("cache") / "cache"), 100 * MIB)
        assert await fill(cache, DIGEST, CONTENT)
        (file,) = files_in(Path(cache.directory))
        stored = bytearray(file.read_bytes())
        kind = data.draw(st.sampled_from(["flip", "cut", "append", "zeros"]))
        place = data.draw(st.one_of(st.integers(0, len(stored) - 1), st.integers(len(stored) - 200, len(stored) - 1)))
        if kind == "flip":
            stored[place] ^= 1 << data.draw(st.integers(0, 7))
        elif kind == "cut":
            del stored[place:]
        elif kind == "append":
            stored += b"x" * data.draw(st.integers(1, 300))
        else:
            stored[place:] = bytes(len(stored) - place)
        file.write_bytes(stored)
        assert await content_of(cache, DIGEST, len(CONTENT)) in (None, CONTENT)
        if kind in ("flip", "zeros") and place < len(CONTENT):
            # And it is gone, so that it will be fetched again.
            assert await cache.find(DIGEST, len(CONTENT)) is None
        await cache.close()

    trio.run(check)


async def test_damage_while_it_is_read(opened: Open) -> None:
    """A reader that is open already gets no wrong byte either; others of the same file are still right."""
    cache = opened()
    assert await fill(cache, DIGEST, CONTENT)
    reader = await cache.find(DIGEST, len(CONTENT))
    assert reader is not None
    (file,) = files_in(Path(cache.directory))
    with file.open("r+b") as stored:
        stored.seek(2 * BLOCK + 5)
        stored.write(bytes([CONTENT[2 * BLOCK + 5] ^ 0x80]))
    assert await reader.read(0, BLOCK) == CONTENT[:BLOCK]
    assert reader.read_nowait(2 * BLOCK, 10) is None
    with pytest.raises(ContentUnreadable):
        await reader.read(2 * BLOCK, 10)
    assert await cache.find(DIGEST, len(CONTENT)) is None
    reader.close()


# --- fetching -----------------------------------------------------------------------------------------------------


async def test_one_process_fetches_a_blob_at_a_time(opened: Open) -> None:
    """Until it has ended, in whatever way."""
    one, other = opened(), opened()
    first = await one.begin(DIGEST, len(CONTENT))
    assert first is not None
    assert await other.begin(DIGEST, len(CONTENT)) is None
    first.leave(keep=True)
    second = await other.begin(DIGEST, len(CONTENT))
    assert second is not None
    second.leave(keep=False)


async def test_what_was_interrupted_is_gone_on_with(opened: Open) -> None:
    """From whole blocks: what somebody has left is verified with the rest."""
    one, other = opened(), opened()
    first = await one.begin(DIGEST, len(CONTENT))
    assert first is not None
    await first.write(CONTENT[: 2 * BLOCK])
    first.leave(keep=True)
    second = await other.begin(DIGEST, len(CONTENT))
    assert second is not None
    await second.resume()
    assert second.written == second.resumed_at == 2 * BLOCK
    await second.write(CONTENT[2 * BLOCK :])
    (await second.finish()).close()
    assert await content_of(one, DIGEST, len(CONTENT)) == CONTENT


async def test_what_was_left_can_be_wrong(opened: Open) -> None:
    """Then the whole does not match; and can be begun again."""
    cache = opened()
    first = await cache.begin(DIGEST, len(CONTENT))
    assert first is not None
    await first.write(bytes(2 * BLOCK))
    first.leave(keep=True)
    second = await cache.begin(DIGEST, len(CONTENT))
    assert second is not None
    await second.resume()
    await second.write(CONTENT[2 * BLOCK :])
    with pytest.raises(ContentMismatch):
        await second.finish()
    await second.start_again()
    assert second.written == second.resumed_at == 0
    await second.write(CONTENT)
    (await second.finish()).close()
    assert await content_of(cache, DIGEST, len(CONTENT)) == CONTENT


_FILLER = textwrap.dedent("""
    import random, sys, trio
    from layerfs.digest import Digest
    from layerfs.registry.content_cache import ContentCache

    async def main():
        cache = ContentCache(sys.argv[1], int(sys.argv[2]))
        order = random.Random(int(sys.argv[3]))
        while True:
            number = order.randrange(12)
            content = random.Random(number).randbytes(200_000 + 50_000 * number)
            digest = Digest.of(content)
            reader = await cache.find(digest, len(content))
            if reader is not None:
                assert await reader.read(0, len(content)) == content, "wrong bytes"
                reader.close()
                if order.random() < 0.8:
                    continue
            new = await cache.begin(digest, len(content))
            if new is None:
                continue
            await new.resume()
            while new.written < len(content):
                await new.write(content[new.written : new.written + 65536])
            (await new.finish()).close()
            print(number, flush=True)

    trio.run(main)
""")


async def test_processes_that_are_killed_at_any_moment(opened: Open, tmp_path: Path) -> None:
    """Several fill one cache, over and over, and are killed: what is found is right, and there is never too much."""
    directory, limit = tmp_path / "cache", 2 * MIB
    moments = random.Random(5)
    for number in range(12):
        fillers = [
            subprocess.Popen(
                [sys.executable, "-c", _FILLER, str(directory), str(limit), str(3 * number + each)],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            for each in range(2)
        ]
        # Each has put something when it is killed; when after that is up to chance.
        for filler in fillers:
            filler.stdout.readline()
        time.sleep(moments.random() / 20)  # the moment is what is being tested
        for filler in fillers:
            filler.kill()
            assert filler.communicate()[1] == b""
        assert sum(path.stat().st_size for path in files_in(directory)) <= limit
        cache = opened(limit, directory)
        found = 0
        for each in range(12):
            digest, content = blob(each, 200_000 + 50_000 * each)
            there = await content_of(cache, digest, len(content))
            assert there in (None, content)
            found += there is not None
        assert found


# --- bounds -------------------------------------------------------------------------------------------------------


async def test_what_was_used_longest_ago_goes_first(opened: Open) -> None:
    """Reading counts as using, through whichever cache of the directory."""
    cache = opened(4 * MIB)
    blobs = [blob(number, MIB) for number in range(5)]
    for number, (digest, content) in enumerate(blobs[:3]):
        assert await fill(cache, digest, content)
        (file,) = [path for path in files_in(Path(cache.directory)) if path.name.endswith(digest.hex)]
        os.utime(file, (1000 + number, 1000 + number))
    assert await content_of(opened(4 * MIB), blobs[0][0], MIB) == blobs[0][1]
    assert await fill(cache, *blobs[3])
    assert await content_of(cache, blobs[1][0], MIB) is None
    for number in (0, 2, 3):
        assert await content_of(cache, blobs[number][0], MIB) == blobs[number][1]


async def test_there_is_never_more_than_the_limit(opened: Open) -> None:
    """Also with several that are being fetched: those count with the size that they will have."""
    cache = opened(4 * MIB)
    under_way = []
    for number in range(6):
        new = await cache.begin(*(lambda each: (each[0], MIB))(blob(number, MIB)))
        if new is not None:
            under_way.append((number, new))
    assert len(under_way) == 3
    for number, new in under_way:
        await new.write(blob(number, MIB)[1])
        (await new.finish()).close()
    assert sum(path.stat().st_size for path in files_in(Path(cache.directory))) <= 4 * MIB
    assert await fill(cache, *blob(7, 3 * MIB))
    assert sum(path.stat().st_size for path in files_in(Path(cache.directory))) <= 4 * MIB


async def test_a_lower_limit(opened: Open) -> None:
    """Holds from when the cache is opened with it; what was used last stays."""
    cache = opened(4 * MIB)
    for number in range(3):
        assert await fill(cache, *blob(number, MIB))
        await trio.sleep(0.01)  # the clock of the file system is that coarse
    cache = opened(2 * MIB)
    assert sum(path.stat().st_size for path in files_in(Path(cache.directory))) <= 2 * MIB
    assert await content_of(cache, blob(2, MIB)[0], MIB) == blob(2, MIB)[1]


async def test_what_was_given_up_makes_room(opened: Open) -> None:
    """A part of a blob that nobody is fetching any more goes like everything else."""
    cache = opened(4 * MIB)
    new = await cache.begin(DIGEST, 3 * MIB)
    assert new is not None
    await new.write(bytes(MIB))
    new.leave(keep=True)
    assert len(files_in(Path(cache.directory))) == 1
    assert await fill(cache, *blob(1, 3 * MIB))
    assert [path.parent.name for path in files_in(Path(cache.directory))] == ["blobs"]


async def test_what_cannot_fit(opened: Open) -> None:
    """There is no place for it, and nothing goes for its sake."""
    cache = opened(2 * MIB)
    assert await fill(cache, *blob(1, MIB))
    assert not cache.fits(2 * MIB)
    assert await cache.begin(DIGEST, 2 * MIB) is None
    assert await content_of(cache, blob(1, MIB)[0], MIB) is not None


async def test_a_full_disk(small_disk: Path, opened: Open) -> None:
    """What does not fit on the disk is an error of its writer, and the cache is left alone for a while."""
    cache = opened(100 * MIB, small_disk / "cache")
    digest, content = blob(1, 8 * MIB)
    new = await cache.begin(digest, len(content))
    assert new is not None
    with pytest.raises(OSError, match="No space left"):
        await new.write(content)
    new.leave(keep=False)
    assert files_in(small_disk / "cache") == []
    assert await fill(cache, *blob(2, MIB))


# --- others -------------------------------------------------------------------------------------------------------


async def test_the_directory_is_private(opened: Open, tmp_path: Path) -> None:
    """It is made so; one that others may use, that is another's, or that a link leads to is refused."""
    opened(MIB, tmp_path / "new" / "cache")
    assert (tmp_path / "new" / "cache").stat().st_mode & 0o777 == 0o700
    (tmp_path / "open").mkdir(mode=0o755)
    (tmp_path / "open").chmod(0o755)
    with pytest.raises(CacheUnusable, match="chmod 700"):
        opened(MIB, tmp_path / "open")
    (tmp_path / "link").symlink_to(tmp_path / "new" / "cache")
    with pytest.raises(CacheUnusable):
        opened(MIB, tmp_path / "link")
    (tmp_path / "theirs").mkdir(mode=0o700)
    os.chown(tmp_path / "theirs", 12345, 12345)
    with pytest.raises(CacheUnusable, match="12345"):
        opened(MIB, tmp_path / "theirs")
    (tmp_path / "file").write_text("")
    with pytest.raises(CacheUnusable):
        opened(MIB, tmp_path / "file")


@pytest.mark.parametrize("plant", ["symlink", "hard link", "fifo", "directory", "not ours"])
async def test_what_somebody_planted_is_not_read(opened: Open, tmp_path: Path, plant: str) -> None:
    """Whatever it leads to, a file that the cache has not made is not followed, waited for, or written to."""
    cache = opened()
    assert await fill(cache, DIGEST, CONTENT)
    (file,) = files_in(Path(cache.directory))
    elsewhere = tmp_path / "elsewhere"
    file.rename(elsewhere)
    if plant == "symlink":
        file.symlink_to(elsewhere)
    elif plant == "hard link":
        os.link(elsewhere, file)
    elif plant == "fifo":
        os.mkfifo(file)
    elif plant == "directory":
        file.mkdir()
    else:
        file.write_bytes(elsewhere.read_bytes())
        os.chown(file, 12345, 12345)
    stored = elsewhere.read_bytes()
    assert await content_of(cache, DIGEST, len(CONTENT)) is None
    assert elsewhere.read_bytes() == stored


async def test_files_of_others_are_left_alone(opened: Open) -> None:
    """Making room removes nothing but what the cache has made."""
    cache = opened(2 * MIB)
    other = Path(cache.directory) / "blobs" / "README"
    other.write_bytes(bytes(5 * MIB))
    assert await fill(cache, *blob(1, MIB))
    assert await fill(cache, *blob(2, MIB))
    assert other.stat().st_size == 5 * MIB
