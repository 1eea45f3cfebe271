"""Objects that the tool which put them has marked as compressed: stores and their libraries like to unpack them."""

from __future__ import annotations

import gzip
from collections.abc import Callable

from layerfs.driver.interface import StorageDriver

Payload = Callable[[int], bytes]


async def read(driver: StorageDriver, path: str, offset: int, length: int) -> bytes:
    reader = await driver.open(path)
    try:
        return await reader.read(offset, length)
    finally:
        reader.close()


async def test_marked_content_is_given_out_as_it_is_stored(place, payload: Payload) -> None:
    """Its digest is that of the stored bytes. What unpacks to much more than it takes is no danger either."""
    for number, content in enumerate([gzip.compress(payload(300_000)), gzip.compress(bytes(50_000_000))]):
        path = f"/blobs/{number}"
        place.put_encoded(path, content)
        driver = place.driver()
        assert (await driver.stat(path)).size == len(content)
        assert await driver.get_content(path, limit=len(content)) == content
        assert await read(driver, path, 0, len(content)) == content
        assert await read(driver, path, 0, 4096) == content[:4096]
        assert await read(driver, path, 1000, 20_000) == content[1000:21_000]


async def test_what_is_marked_and_is_not_compressed(place, payload: Payload) -> None:
    """Nobody tries to unpack it."""
    content = payload(10_000)
    place.put_encoded("/blob", content)
    driver = place.driver()
    assert await driver.get_content("/blob", limit=len(content)) == content
    assert await read(driver, "/blob", 100, 5000) == content[100:5100]
