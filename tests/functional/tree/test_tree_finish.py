"""Finishing: an upload becomes a layer if its content is what the name says, and else stays what it is."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

import pytest
from harness.shown import Shown, blob, link, opened
from harness.storage import digest_of

pytestmark = pytest.mark.also_on("s3")

Payload = Callable[[int], bytes]

CONTENT = b"the content of a layer " * 5000
DIGEST = digest_of(CONTENT)
WRONG = digest_of(b"something else")


@pytest.mark.parametrize("directory", ["_layers", "_uploads"])
async def test_renaming_to_the_digest(shown: Shown, directory: str) -> None:
    """In `_layers`, or without leaving `_uploads`: it is a layer, and no upload is left."""
    await shown.write(shown.upload("x"), CONTENT)
    await shown.rename(shown.upload("x"), f"{shown.repository}/{directory}/{DIGEST}")
    await shown.assert_is_layer(CONTENT)
    assert await shown.list(shown.uploads) == []


@pytest.mark.parametrize("algorithm", ["sha384", "sha512"])
async def test_another_algorithm(shown: Shown, algorithm: str) -> None:
    """Stored under sha256, linked under both, one file."""
    alias = digest_of(CONTENT, algorithm)
    await shown.write(shown.upload("x"), CONTENT)
    await shown.rename(shown.upload("x"), shown.layer(alias))
    await shown.assert_is_layer(CONTENT)
    assert await shown.read(shown.layer(alias)) == CONTENT
    assert (await shown.stat(shown.layer(alias))).ino == (await shown.stat(shown.layer(DIGEST))).ino


async def test_no_bytes(shown: Shown) -> None:
    """The empty layer is one like all others."""
    await shown.write(shown.upload("x"), b"")
    await shown.rename(shown.upload("x"), shown.layer(digest_of(b"")))
    await shown.assert_is_layer(b"")


@pytest.mark.parametrize("directory", ["_layers", "_uploads"])
async def test_a_wrong_digest(shown: Shown, directory: str) -> None:
    """EBADMSG; nothing has changed, and the upload says why."""
    await shown.write(shown.upload("x"), CONTENT)
    with shown.refused(errno.EBADMSG):
        await shown.rename(shown.upload("x"), f"{shown.repository}/{directory}/{WRONG}")
    assert await shown.read(shown.upload("x")) == CONTENT
    assert await shown.list(shown.layers) == []
    assert await shown.get(blob(WRONG)) is None
    assert DIGEST in await shown.attribute(shown.upload("x"), "user.layerfs.error")


async def test_again_after_a_wrong_digest(shown: Shown) -> None:
    """With the right digest it is a layer."""
    await shown.write(shown.upload("x"), CONTENT)
    with shown.refused(errno.EBADMSG):
        await shown.rename(shown.upload("x"), shown.layer(WRONG))
    await shown.rename(shown.upload("x"), shown.layer(DIGEST))
    await shown.assert_is_layer(CONTENT)


async def test_more_after_a_wrong_digest(shown: Shown) -> None:
    """The upload can be continued, and is right then."""
    await shown.write(shown.upload("x"), CONTENT[:1000])
    with shown.refused(errno.EBADMSG):
        await shown.rename(shown.upload("x"), shown.layer(DIGEST))
    await shown.append(shown.upload("x"), CONTENT[1000:])
    await shown.rename(shown.upload("x"), shown.layer(DIGEST))
    await shown.assert_is_layer(CONTENT)


@pytest.mark.parametrize("name", ["layer.tar", "sha256:abc", "md5:" + "0" * 32])
async def test_a_name_that_is_no_digest(shown: Shown, name: str) -> None:
    """In `_layers` EINVAL; the upload stays."""
    await shown.write(shown.upload("x"), CONTENT)
    with shown.refused(errno.EINVAL):
        await shown.rename(shown.upload("x"), shown.layer(name))
    assert await shown.read(shown.upload("x")) == CONTENT


async def test_a_malformed_digest_in_uploads_is_a_name(shown: Shown) -> None:
    """Nothing is finished under it; the upload is called that."""
    await shown.write(shown.upload("x"), CONTENT)
    await shown.rename(shown.upload("x"), shown.upload("sha256:abc"))
    assert await shown.list(shown.uploads) == ["sha256:abc"]


@pytest.mark.parametrize("elsewhere", [False, True], ids=["new", "known elsewhere"])
async def test_the_inode_number_is_the_blobs(shown: Shown, elsewhere: bool) -> None:
    """It is made from the digest, as on every other mount, whatever number the upload had."""
    if elsewhere:
        await shown.stat(await shown.put_layer(CONTENT, f"{shown.repository}/other"))
    await shown.write(shown.upload("x"), CONTENT)
    async with opened(await shown.open(shown.upload("x"))):
        await shown.rename(shown.upload("x"), shown.layer(DIGEST))
        assert (await shown.stat(shown.layer(DIGEST))).ino == (1 << 62) | int(DIGEST[7:22], 16)


async def test_a_blob_that_is_there_already(shown: Shown) -> None:
    """Success: the layer is linked here too."""
    await shown.put_layer(CONTENT, f"{shown.repository}/other")
    await shown.write(shown.upload("x"), CONTENT)
    await shown.rename(shown.upload("x"), shown.layer(DIGEST))
    await shown.assert_is_layer(CONTENT)


async def test_a_damaged_blob_is_mended(shown: Shown) -> None:
    """What was verified takes its place."""
    await shown.put(blob(DIGEST), b"damaged")
    await shown.write(shown.upload("x"), CONTENT)
    await shown.rename(shown.upload("x"), shown.layer(DIGEST))
    await shown.assert_is_layer(CONTENT)


async def test_open_for_writing_and_flushed(shown: Shown) -> None:
    """Finishing succeeds; the descriptor reads the layer from then on, and cannot write it."""
    async with opened(await shown.open(shown.upload("x"), os.O_RDWR | os.O_CREAT)) as file:
        await file.write(CONTENT)
        await file.sync()
        await shown.rename(shown.upload("x"), shown.layer(DIGEST))
        assert await file.read() == CONTENT
        assert (await file.status()).permissions == 0o444
        with shown.refused(errno.EBADF):
            await file.write(b"damage")
        with shown.refused(errno.EBADF, errno.EPERM):
            await file.truncate(0)
    await shown.assert_is_layer(CONTENT)


async def test_open_for_writing_and_not_flushed(shown: Shown) -> None:
    """EBUSY; it is not known yet what the content is. After the close it succeeds."""
    async with opened(await shown.open(shown.upload("x"), os.O_WRONLY | os.O_CREAT)) as file:
        await file.write(CONTENT)
        with shown.refused(errno.EBUSY):
            await shown.rename(shown.upload("x"), shown.layer(DIGEST))
    await shown.rename(shown.upload("x"), shown.layer(DIGEST))
    await shown.assert_is_layer(CONTENT)


async def test_a_reader_across_the_end(shown: Shown) -> None:
    """An open descriptor reads the same bytes before and after."""
    await shown.write(shown.upload("x"), CONTENT)
    async with opened(await shown.open(shown.upload("x"))) as reader:
        before = await reader.read(0, 1000)
        await shown.rename(shown.upload("x"), shown.layer(DIGEST))
        assert before + await reader.read(1000) == CONTENT


async def test_a_finished_upload_is_seen_at_once(shown: Shown) -> None:
    """Also where the directories were listed just before."""
    await shown.write(shown.upload("x"), CONTENT)
    assert (await shown.list(shown.uploads), await shown.list(shown.layers)) == (["x"], [])
    await shown.rename(shown.upload("x"), shown.layer(DIGEST))
    assert (await shown.list(shown.uploads), await shown.list(shown.layers)) == ([], [DIGEST])


# --- creating at the digest ------------------------------------------------------------------------------------


async def test_creating_at_the_digest(shown: Shown) -> None:
    """A copy to the final name is a layer when it is closed."""
    await shown.write(shown.layer(DIGEST), CONTENT)
    await shown.assert_is_layer(CONTENT)
    assert await shown.list(shown.uploads) == []


async def test_creating_the_empty_layer(shown: Shown) -> None:
    """Closing without a byte is right for the digest of no bytes."""
    await shown.write(shown.layer(digest_of(b"")), b"")
    await shown.assert_is_layer(b"")


async def test_nothing_is_seen_before_the_close(shown: Shown) -> None:
    """Nobody else finds the layer, nor an upload."""
    async with opened(await shown.open(shown.layer(DIGEST), os.O_WRONLY | os.O_CREAT)) as file:
        await file.write(CONTENT)
        assert await shown.list(shown.layers) == []
        assert await shown.list(shown.uploads) == []
        assert not await shown.exists(shown.layer(DIGEST))
    assert await shown.list(shown.layers) == [DIGEST]


async def test_creating_at_the_wrong_digest(shown: Shown) -> None:
    """The close fails with EBADMSG, and nothing appears."""
    file = await shown.open(shown.layer(WRONG), os.O_WRONLY | os.O_CREAT)
    await file.write(CONTENT)
    with shown.refused(errno.EBADMSG):
        await file.close()
    assert await shown.list(shown.layers) == []
    assert await shown.list(shown.uploads) == []
    assert await shown.get(link(shown.repository, WRONG)) is None


async def test_writing_on_after_a_close_that_failed(shown: Shown) -> None:
    """A shell closes after every command; only what is there at the last close counts."""
    async with opened(await shown.open(shown.layer(DIGEST), os.O_WRONLY | os.O_CREAT)) as file:
        await file.write(CONTENT[:1000])
        with shown.refused(errno.EBADMSG):
            await file.flush()
        await file.write(CONTENT[1000:], 1000)
    await shown.assert_is_layer(CONTENT)


@pytest.mark.parametrize("name", ["layer.tar", "sha256:abc"])
async def test_creating_under_another_name(shown: Shown, name: str) -> None:
    """Only digests are names of layers: EINVAL."""
    with shown.refused(errno.EINVAL):
        await shown.open(shown.layer(name), os.O_WRONLY | os.O_CREAT)
