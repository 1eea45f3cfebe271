"""Links: small files whose content is a digest, and nothing else. How they are read, one or many.

A registry before 3.1 rewrites a link in place, so a reader can find it empty or cut short for a moment. Such a link is
read again, a few times, before it counts as bad.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import trio

from layerfs.digest import HEX_LENGTHS, Digest
from layerfs.driver.interface import StorageDriver
from layerfs.errors import (
    ContentTooLarge,
    DriverError,
    InvalidDigest,
    LayerfsError,
    LinkInvalid,
    NotRegularFile,
    PathNotFound,
)
from layerfs.layername import LayerName

#: Bytes. The longest digest has 135; more is no link, and is not read to find that out.
LINK_LIMIT: Final = 256

#: How often, and how many seconds apart, a link that may be in flux is read again.
_RETRIES: Final = 3
_RETRY_DELAY: Final = 0.05

_SHORTEST_LINK: Final = min(len(name) + 1 + length for name, length in HEX_LENGTHS.items())


async def read_link(driver: StorageDriver, path: str) -> Digest:
    """The digest in the link at `path`. Raises `LinkInvalid`, or what the driver raises (`PathNotFound`)."""
    (result,) = await read_links(driver, [path])
    if isinstance(result, LayerfsError):
        raise result
    return result


async def read_links(driver: StorageDriver, paths: Sequence[str]) -> list[Digest | LayerfsError]:
    """What `read_link` would give for each path, in order, an error standing in its place."""
    contents = await driver.get_contents(paths, limit=LINK_LIMIT)
    for _ in range(_RETRIES):
        in_flux = [index for index, content in enumerate(contents) if _may_be_in_flux(content)]
        if not in_flux:
            break
        await trio.sleep(_RETRY_DELAY)
        again = await driver.get_contents([paths[index] for index in in_flux], limit=LINK_LIMIT)
        for index, content in zip(in_flux, again, strict=True):
            contents[index] = content
    return [_parse_link(path, content) for path, content in zip(paths, contents, strict=True)]


def link_fits(digest: LayerName, link: Digest) -> bool:
    """Whether the link by `digest` may hold `link`: itself, or, by an alias, a canonical digest."""
    return link == digest if digest.is_canonical else link.is_canonical


def raise_if_all_failed(found: Sequence[object]) -> None:
    """A single bad one is left out of a listing; if every one failed for lack of access, so has the listing."""
    hard = [failure for failure in found if isinstance(failure, DriverError) and not isinstance(failure, PathNotFound)]
    if hard and len(hard) == len(found):
        raise hard[0]


async def write_link(driver: StorageDriver, path: str, digest: Digest) -> None:
    """Makes `path` a link to `digest`: exactly the digest, without a newline, which registries would choke on."""
    try:
        await driver.put_content(path, str(digest).encode())
    except PathNotFound as error:
        # Not that something is missing: a file stands where a directory should be.
        raise NotRegularFile(path, "something else stands in its way") from error


def _may_be_in_flux(content: bytes | DriverError) -> bool:
    return isinstance(content, bytes) and len(content) < _SHORTEST_LINK


def _parse_link(path: str, content: bytes | DriverError) -> Digest | LayerfsError:
    if isinstance(content, ContentTooLarge | NotRegularFile):
        return LinkInvalid(path, content.what)
    if isinstance(content, DriverError):
        return content
    try:
        return Digest.parse(content.decode("ascii"))
    except UnicodeDecodeError:
        return LinkInvalid(path, f"{content[:80]!r} is no digest")
    except InvalidDigest as error:
        return LinkInvalid(path, str(error))
