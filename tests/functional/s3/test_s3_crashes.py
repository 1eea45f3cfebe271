"""A process that is gone after any of its requests: nothing that was flushed is lost, and others finish its upload."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import pytest
from harness.s3_proxy import S3Proxy

from layerfs.digest import Digest
from layerfs.driver.s3 import S3Driver
from layerfs.errors import LayerfsError, LayerUploadUnknown
from layerfs.registry import LayerService, Registry

MEBIBYTE = 1 << 20
PART = 5 * MEBIBYTE
FOREVER = 1000

#: More requests than there are.
MOST = 60


async def layers_of(driver: S3Driver) -> LayerService:
    return (await Registry.open(driver, create=True)).repository("a").layers


async def finish_elsewhere(driver: S3Driver, uuid: str, content: bytes, flushed: int, digest: Digest) -> None:
    """What somebody does who finds the upload afterwards."""
    layers = await layers_of(driver)
    try:
        upload = await layers.resume(uuid)
    except LayerUploadUnknown:
        # It was all done but for the answer.
        assert (await layers.stat(digest)).blob.size == len(content)
        return
    if not await layers.exists(digest):
        await upload.open_writer()
        assert flushed <= upload.size <= len(content)
        await upload.write(content[upload.size :])
    await upload.finish(digest)


@pytest.mark.soak
@pytest.mark.parametrize("kind", ["refuse", "refuse_after"])
@pytest.mark.parametrize("sizes", [(1000, 2000), (1000, PART + 1000), (PART + 7, PART)])
async def test_a_process_that_ends_at_any_request(
    drivers: Callable[..., S3Driver], proxy: S3Proxy, stored, payload, kind: str, sizes: tuple[int, int]
) -> None:
    """It goes on with what another has left, which takes repacking, and finishes it; and dies at request k."""
    first, second = sizes
    for k in range(MOST):
        content = payload(first + second)
        digest = Digest.parse(f"sha256:{hashlib.sha256(content).hexdigest()}")
        other = drivers(part_size=PART)
        async with await (await layers_of(other)).upload() as upload:
            await upload.write(content[:first])
        flushed = first
        dying = drivers(endpoint_url=proxy.url, part_size=PART)
        fault = proxy.fail(kind, "*", times=FOREVER, after=k, status=400, code="Gone")
        try:
            resumed = await (await layers_of(dying)).resume(upload.uuid)
            await resumed.write(content[first:])
            await resumed.flush()
            flushed = len(content)
            await resumed.finish(digest)
        except LayerfsError:
            pass
        survived = fault.met <= k
        proxy.heal()
        await dying.close()
        await finish_elsewhere(other, upload.uuid, content, flushed, digest)
        blob = f"/docker/registry/v2/blobs/sha256/{digest.hex[:2]}/{digest.hex}/data"
        assert hashlib.sha256(stored.content(blob)).hexdigest() == digest.hex, k
        assert stored.uploads() == [], k
        assert not [path for path in stored.paths() if "/_uploads/" in path], k
        await other.close()
        if survived:
            assert k > 10
            return
    raise AssertionError(f"more than {MOST} requests")
