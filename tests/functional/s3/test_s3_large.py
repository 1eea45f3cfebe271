"""A layer of more than 5 GiB, which no single request copies: on SeaweedFS, which has its data on disk."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator

import pytest
from harness.s3_proxy import S3Proxy

from layerfs.digest import Digest
from layerfs.driver.s3 import S3Driver
from layerfs.errors import LayerfsError
from layerfs.registry import Registry

MEBIBYTE = 1 << 20
GIBIBYTE = 1 << 30
SIZE = 5 * GIBIBYTE + 200 * MEBIBYTE + 1

FOREVER = 100_000

pytestmark = [
    pytest.mark.soak,
    pytest.mark.timeout(1800),
    pytest.mark.parametrize("server", ["seaweedfs"], indirect=True),
]


def content() -> Iterator[bytes]:
    """The layer, in pieces, none of which is there twice."""
    block = random.Random(1).randbytes(16 * MEBIBYTE)
    for number, start in enumerate(range(0, SIZE, len(block))):
        yield (number.to_bytes(8, "big") + block[8:])[: SIZE - start]


async def test_a_layer_that_is_copied_in_parts(
    drivers: Callable[..., S3Driver], proxied: S3Driver, proxy: S3Proxy, stored
) -> None:
    """By the store alone, also at the second try; and the first, which fails in the middle, leaves nothing of it."""
    layers = (await Registry.open(proxied, create=True)).repository("a").layers
    upload = await layers.upload()
    sha256 = hashlib.sha256()
    for piece in content():
        await upload.write(piece)
        sha256.update(piece)
    await upload.close_writer()
    digest = Digest.parse(f"sha256:{sha256.hexdigest()}")
    blob = f"/docker/registry/v2/blobs/sha256/{digest.hex[:2]}/{digest.hex}/data"

    proxy.forget()
    proxy.fail("refuse", "UploadPartCopy", times=FOREVER, after=3, status=400, code="InvalidRequest")
    with pytest.raises(LayerfsError):
        await upload.finish(digest)
    assert proxy.counts["AbortMultipartUpload"] == 1
    assert stored.uploads() == []
    assert blob not in stored.paths()
    proxy.heal()
    await upload.finish(digest)
    assert proxy.counts["CopyObject"] == proxy.counts["GetObject"] == 0
    assert proxy.bytes_through < MEBIBYTE
    copied = [
        seen for seen in proxy.seen if seen.operation == "UploadPartCopy" and seen.status == 200 and not seen.fault
    ]
    ranges = {seen.headers["x-amz-copy-source-range"] for seen in copied}
    assert len(ranges) == 5
    assert stored.uploads() == []
    assert [path for path in stored.paths() if "/_uploads/" in path] == []

    sha256 = hashlib.sha256()
    async with await (await Registry.open(drivers())).repository("a").layers.fetch(digest) as layer:
        assert layer.size == SIZE
        while piece := await layer.read(32 * MEBIBYTE):
            sha256.update(piece)
    assert sha256.hexdigest() == digest.hex
    await drivers().delete("/docker")
