"""Layers: read at any offset, never changed, linked from repository to repository."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable
from typing import Any

import pytest
from harness.shown import Shown, link, opened
from harness.storage import digest_of

CONTENT = bytes(range(256)) * 1000


async def test_a_layer_is_a_read_only_file(shown: Shown) -> None:
    """Regular, 0444, with two links: one is the blob's own."""
    status = await shown.stat(await shown.put_layer(CONTENT))
    assert (status.permissions, status.links, status.size) == (0o444, 2, len(CONTENT))


@pytest.mark.parametrize(("offset", "length"), [(0, 10), (255, 2), (100_000, 70_000), (255_990, 100), (256_000, 10)])
async def test_reading_at_an_offset(shown: Shown, offset: int, length: int) -> None:
    """Exactly those bytes, fewer only at the end, none beyond it."""
    async with opened(await shown.open(await shown.put_layer(CONTENT))) as file:
        assert await file.read(offset, length) == CONTENT[offset : offset + length]


async def test_reading_from_the_end_to_the_beginning(shown: Shown) -> None:
    """The order of the reads does not matter."""
    async with opened(await shown.open(await shown.put_layer(CONTENT))) as file:
        pieces = [await file.read(offset, 8000) for offset in reversed(range(0, len(CONTENT), 8000))]
    assert b"".join(reversed(pieces)) == CONTENT


async def test_the_same_blob_is_the_same_file(shown: Shown) -> None:
    """One inode number in every repository, so that `du` counts it once."""
    first = await shown.stat(await shown.put_layer(CONTENT))
    second = await shown.stat(await shown.put_layer(CONTENT, f"{shown.repository}/other"))
    assert first.ino == second.ino


@pytest.mark.parametrize("flags", [os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_APPEND, os.O_WRONLY | os.O_TRUNC])
async def test_opening_a_layer_for_writing(shown: Shown, flags: int) -> None:
    """EPERM for everyone."""
    path = await shown.put_layer(CONTENT)
    with shown.refused(errno.EPERM):
        await shown.open(path, flags)


@pytest.mark.parametrize(
    "change",
    [
        lambda shown, path: shown.truncate(path, 0),
        lambda shown, path: shown.change_mode(path, 0o777),
        lambda shown, path: shown.remove(path),
        lambda shown, path: shown.rename(path, shown.layer(digest_of(b"other"))),
    ],
    ids=["truncate", "chmod", "rm", "mv"],
)
async def test_changing_a_layer(shown: Shown, change: Callable[[Shown, str], Any]) -> None:
    """EPERM, and it is as it was."""
    path = await shown.put_layer(CONTENT)
    with shown.refused(errno.EPERM):
        await change(shown, path)
    assert await shown.read(path) == CONTENT


async def test_linking_a_layer(shown: Shown) -> None:
    """`ln` makes it a layer of another repository too; no bytes move."""
    path = await shown.put_layer(CONTENT)
    other = f"{shown.repository}/other"
    await shown.make_directory(other)
    assert await shown.list(f"{other}/_layers") == []
    await shown.link(path, f"{other}/_layers/{digest_of(CONTENT)}")
    assert await shown.list(f"{other}/_layers") == [digest_of(CONTENT)]
    assert await shown.get(link(other, digest_of(CONTENT))) == digest_of(CONTENT).encode()


async def test_linking_a_layer_that_is_there(shown: Shown) -> None:
    """EEXIST."""
    path = await shown.put_layer(CONTENT)
    other = await shown.put_layer(CONTENT, f"{shown.repository}/other")
    with shown.refused(errno.EEXIST):
        await shown.link(path, other)


@pytest.mark.parametrize("name", [digest_of(b"other"), "layer.tar"])
async def test_linking_under_another_name(shown: Shown, name: str) -> None:
    """A layer keeps its name: EINVAL."""
    path = await shown.put_layer(CONTENT)
    with shown.refused(errno.EINVAL):
        await shown.link(path, shown.layer(name))


async def test_linking_a_layer_by_all_its_names(shown: Shown) -> None:
    """As `ln source/* target` does: the file is one, and the name by which it was found last is not the only one."""
    await shown.put_layer(CONTENT, "source")
    canonical, alias = digest_of(CONTENT), f"sha512:{hashlib.sha512(CONTENT).hexdigest()}"
    await shown.put(link("source", alias), canonical.encode())
    for name in (canonical, alias):
        await shown.link(f"source/_layers/{name}", shown.layer(name))
    assert sorted(await shown.list(shown.layers)) == sorted([canonical, alias])


async def test_linking_a_layer_that_was_found_elsewhere_last(shown: Shown) -> None:
    """In the image layout of its repository, where the kernel has looked it up just now."""
    path = await shown.put_layer(CONTENT, "source")
    await shown.list("source/_oci/blobs/sha256")
    await shown.link(path, shown.layer(digest_of(CONTENT)))
    await shown.assert_is_layer(CONTENT)


async def test_linking_an_upload(shown: Shown) -> None:
    """An upload is linked nowhere; only layers are."""
    await shown.write(shown.upload("x"), CONTENT)
    with shown.refused(errno.EINVAL):
        await shown.link(shown.upload("x"), shown.layer(digest_of(CONTENT)))
    with shown.refused(errno.EPERM):
        await shown.link(shown.upload("x"), shown.upload("y"))


async def test_attributes_of_a_layer(shown: Shown) -> None:
    """What it is, by extended attributes."""
    path = await shown.put_layer(CONTENT)
    assert await shown.attributes(path) == {f"user.layerfs.{name}" for name in ("digest", "mediatype", "repository")}
    assert await shown.attribute(path, "user.layerfs.digest") == digest_of(CONTENT)
    assert await shown.attribute(path, "user.layerfs.repository") == shown.repository


@pytest.mark.parametrize(
    ("name", "code"),
    [("user.other", errno.ENODATA), ("security.capability", errno.EOPNOTSUPP), ("trusted.x", errno.EOPNOTSUPP)],
)
async def test_attributes_that_are_not_there(shown: Shown, name: str, code: int) -> None:
    """ENODATA for one of ours, EOPNOTSUPP in other namespaces."""
    path = await shown.put_layer(CONTENT)
    with shown.refused(code):
        await shown.attribute(path, name)


async def test_attributes_are_not_set(shown: Shown) -> None:
    """EPERM for ours, EOPNOTSUPP for others."""
    path = await shown.put_layer(CONTENT)
    with shown.refused(errno.EPERM):
        await shown.set_attribute(path, "user.layerfs.digest", b"x")
    with shown.refused(errno.EOPNOTSUPP):
        await shown.set_attribute(path, "trusted.x", b"x")
