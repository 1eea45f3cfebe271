"""What the options of a mount change: read-only, deleting, caps; and what it says of itself."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Awaitable, Callable

import pytest
from harness.shown import Shown, blob, opened
from harness.storage import digest_of

Show = Callable[..., Awaitable[Shown]]

CONTENT = b"content"
DIGEST = digest_of(CONTENT)
UUID = "9f2d6c1a-4b0e-4c57-8d3f-2a1b0c9d8e7f"

CHANGES: dict[str, Callable[[Shown], Awaitable[object]]] = {
    "create": lambda shown: shown.open(shown.upload("new"), os.O_WRONLY | os.O_CREAT),
    "create a layer": lambda shown: shown.open(shown.layer(digest_of(b"new")), os.O_WRONLY | os.O_CREAT),
    "open for writing": lambda shown: shown.open(shown.upload(UUID), os.O_WRONLY),
    "truncate": lambda shown: shown.truncate(shown.upload(UUID), 0),
    "chmod": lambda shown: shown.change_mode(shown.upload(UUID), 0o600),
    "rm": lambda shown: shown.remove(shown.upload(UUID)),
    "rm of a layer": lambda shown: shown.remove(shown.layer(DIGEST)),
    "rename": lambda shown: shown.rename(shown.upload(UUID), shown.upload("new")),
    "finish": lambda shown: shown.rename(shown.upload(UUID), shown.layer(DIGEST)),
    "link": lambda shown: shown.link(shown.layer(DIGEST), shown.layer(digest_of(b"new"))),
    "mkdir": lambda shown: shown.make_directory(f"{shown.repository}/new"),
    "rmdir": lambda shown: shown.remove_directory(shown.repository),
}


async def test_read_only(show: Show, way: str) -> None:
    """Every change is EROFS, and reading works."""
    shown = await show("--read-only", read_only=True)
    await shown.put_layer(CONTENT)
    await shown.put_upload(CONTENT, UUID)
    for what, change in CHANGES.items():
        try:
            await change(shown)
        except OSError as error:
            assert error.errno == errno.EROFS, what
        else:
            pytest.fail(f"{what} succeeded")
    assert await shown.read(shown.layer(DIGEST)) == CONTENT
    assert await shown.read(shown.upload(UUID)) == CONTENT


async def test_deleting_takes_the_link_only(show: Show) -> None:
    """On a mount that allows it; the blob stays for garbage collection."""
    shown = await show("--allow-delete", allow_delete=True)
    path = await shown.put_layer(CONTENT)
    assert await shown.list(shown.layers) == [DIGEST]
    await shown.remove(path)
    assert await shown.list(shown.layers) == []
    assert await shown.get(blob(DIGEST)) == CONTENT


async def test_the_cap_on_open_files(show: Show) -> None:
    """EMFILE at the cap, and not any more when one is closed."""
    shown = await show("--max-handles=2", max_handles=2)
    path = await shown.put_layer(CONTENT)
    async with opened(await shown.open(path)), opened(await shown.open(path)) as second:
        with shown.refused(errno.EMFILE):
            await shown.open(path)
        assert await second.read() == CONTENT


async def test_the_cap_on_uploads(show: Show) -> None:
    """EDQUOT at the cap; reading goes on, and so does writing when one is closed."""
    shown = await show("--max-uploads=1", max_uploads=1)
    await shown.write(shown.upload("x"), CONTENT)
    async with opened(await shown.open(shown.upload("y"), os.O_WRONLY | os.O_CREAT)) as file:
        with shown.refused(errno.EDQUOT):
            await shown.open(shown.upload("x"), os.O_WRONLY)
        with shown.refused(errno.EDQUOT):
            await shown.open(shown.upload("z"), os.O_WRONLY | os.O_CREAT)
        assert await shown.read(shown.upload("x")) == CONTENT
        await file.write(CONTENT)
    await shown.rename(shown.upload("y"), shown.layer(DIGEST))
    assert await shown.list(shown.uploads) == ["x"]


async def test_the_control_directory(shown: Shown) -> None:
    """Not listed, but it can be looked up, and has what it says."""
    assert ".layerfs" not in await shown.list("")
    assert await shown.list(".layerfs") == ["accesslog", "errors", "missing", "stats", "status.json"]


async def test_status(shown: Shown) -> None:
    """JSON that counts what is open."""
    async with opened(await shown.open(shown.upload("x"), os.O_WRONLY | os.O_CREAT)) as file:
        await file.write(CONTENT)
        status = json.loads(await shown.read(".layerfs/status.json"))
    mine = [upload for upload in status["uploads"] if upload["repository"] == shown.repository]
    assert [(upload["name"], upload["size"]) for upload in mine] == [("x", len(CONTENT))]
    assert status["open_files"] >= 1


@pytest.mark.parametrize("name", ["status.json", "errors"])
async def test_control_files_are_read_only(shown: Shown, name: str) -> None:
    """EPERM, for opening and for all else."""
    for flags in (os.O_WRONLY, os.O_RDWR):
        with shown.refused(errno.EPERM):
            await shown.open(f".layerfs/{name}", flags)
    with shown.refused(errno.EPERM):
        await shown.truncate(f".layerfs/{name}", 0)
    with shown.refused(errno.EPERM):
        await shown.remove(f".layerfs/{name}")
