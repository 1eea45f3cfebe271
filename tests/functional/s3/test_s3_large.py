"""A layer of more than 5 GiB, which no single request copies: on SeaweedFS, which has its data on disk."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator

import pytest
from harness.s3_proxy import S3Proxy

from layerfs.digest import Digest
from layerfs.driver.s3 import S3Driver
from layerfs.driver.s3_copies import COPIES_AT_ONCE
from layerfs.errors import LayerfsError
from layerfs.registry import LayerUpload, Registry

MEBIBYTE = 1 << 20
GIBIBYTE = 1 << 30
SIZE = 5 * GIBIBYTE + 200 * MEBIBYTE + 1

FOREVER = 100_000

#: Copies of 256 MiB, and some more; and how many are made at a time.
COPIES = SIZE // (256 * MEBIBYTE)

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


async def finish(upload: LayerUpload, digest: Digest) -> int:
    """Finishes it, and returns how often that took longer than an operation may take: then it is gone on with."""
    for tries in range(10):
        try:
            await upload.finish(digest)
        except LayerfsError as error:
            assert "do it again to complete it" in str(error)
        else:
            return tries
    raise AssertionError("it does not get on")


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
    proxy.forget()
    tries = await finish(upload, digest)
    assert proxy.counts["CopyObject"] == proxy.counts["GetObject"] == 0
    assert proxy.bytes_through < MEBIBYTE
    copies = [seen for seen in proxy.seen if seen.operation == "UploadPartCopy"]
    assert len({seen.headers["x-amz-copy-source-range"] for seen in copies}) == COPIES
    assert len(copies) <= COPIES + tries * COPIES_AT_ONCE
    assert stored.uploads() == []
    assert [path for path in stored.paths() if "/_uploads/" in path] == []

    sha256 = hashlib.sha256()
    async with await (await Registry.open(drivers())).repository("a").layers.fetch(digest) as layer:
        assert layer.size == SIZE
        while piece := await layer.read(32 * MEBIBYTE):
            sha256.update(piece)
    assert sha256.hexdigest() == digest.hex
    await drivers().delete("/docker")
