"""Keys as files and directories: the rules for paths that all object stores share."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from layerfs.driver.objects import Page
from layerfs.errors import InvalidPath, NotRegularFile


def check_not_root(path: str) -> None:
    """Raises `NotRegularFile` for the root, which is a directory whatever is stored."""
    if path == "/":
        raise NotRegularFile(path, "a directory")


def check_may_be_deleted(path: str) -> None:
    """Raises `InvalidPath` for the root."""
    if path == "/":
        raise InvalidPath(path, "the root of the storage stays")


def directory_of_all(steps: Sequence[Sequence[str]]) -> str | None:
    """The directory that is the last step, if it is that alone and holds all that the other steps delete."""
    *_, last = steps
    if len(last) != 1 or not all(f"{path}/".startswith(f"{last[0]}/") for step in steps for path in step):
        return None
    return last[0]


async def names_below(pages: AsyncIterator[Page], prefix: str) -> dict[str, bool] | None:
    """The names directly below `prefix`, and whether each is a directory; None if nothing has the prefix.

    `pages` is a listing of it with the delimiter `/`.
    """
    names: dict[str, bool] = {}
    exists = False
    async for page in pages:
        exists = exists or bool(page.objects or page.prefixes)
        names.update((key[len(prefix) :].rstrip("/"), True) for key in page.prefixes)
        # An object that ends in a slash marks a directory for those who want to see it.
        names.update((key[len(prefix) :], False) for key in page.objects if key != prefix)
    return names if exists else None
