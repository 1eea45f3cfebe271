"""The tests of distribution's original `layer_test.go`, under these names, and the errors of its `layer.go`."""

from __future__ import annotations

import hashlib
import io
import os
import random
import tarfile

import pytest
from harness.invariants import blob_path, link_path
from harness.walk import files_in

from layerfs.digest import Digest
from layerfs.driver.interface import StorageDriver
from layerfs.errors import LayerClosed, LayerInvalidDigest, LayerInvalidLength, LayerUnknown, LayerUploadUnknown
from layerfs.registry import LayerService, Registry


def random_tar_file(seed: int) -> bytes:
    """A tar archive of a few files with random names and content."""
    numbers = random.Random(seed)
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for _ in range(numbers.randint(5, 10)):
            member = tarfile.TarInfo(numbers.randbytes(8).hex())
            member.size = numbers.randint(10, 60_000)
            archive.addfile(member, io.BytesIO(numbers.randbytes(member.size)))
    return out.getvalue()


def sha256(content: bytes) -> Digest:
    return Digest.parse(f"sha256:{hashlib.sha256(content).hexdigest()}")


class TestSimpleLayerUpload:
    """An upload from its beginning to the layer, with the errors that are met on the way."""

    async def test_it(self, layers: LayerService) -> None:
        """Cancelled; begun anew; written; closed; resumed; finished; unknown; and readable."""
        content = random_tar_file(1)
        upload = await layers.upload()
        await upload.cancel()
        with pytest.raises(LayerUploadUnknown) as unknown:
            await layers.resume(upload.uuid)
        assert (unknown.value.name, unknown.value.uuid) == ("foo/bar", upload.uuid)

        upload = await layers.upload()
        assert await upload.write(content) == len(content)
        assert upload.seek(0, os.SEEK_CUR) == len(content)
        assert upload.offset == len(content)
        await upload.close()

        upload = await layers.resume(upload.uuid)
        assert upload.offset == len(content)
        assert await upload.finish(sha256(content)) == sha256(content)
        with pytest.raises(LayerUploadUnknown):
            await layers.resume(upload.uuid)

        assert await layers.exists(sha256(content))
        async with await layers.fetch(sha256(content)) as layer:
            assert await layer.read() == content

    async def test_in_pieces(self, layers: LayerService) -> None:
        """The same, closed and resumed after every piece."""
        content = random_tar_file(2)
        uuid = (await layers.upload()).uuid
        for start in range(0, len(content), 50_000):
            async with await layers.resume(uuid) as upload:
                assert upload.offset == start
                await upload.write(content[start : start + 50_000])
        assert await (await layers.resume(uuid)).finish(sha256(content), len(content)) == sha256(content)

    async def test_its_storage(self, layers: LayerService, driver: StorageDriver) -> None:
        """A finished upload is a blob and a link, and nothing else."""
        content = random_tar_file(3)
        upload = await layers.upload(file_name="layer.tar")
        await upload.write(content)
        await upload.flush()
        await upload.finish(sha256(content))
        digest = str(sha256(content))
        assert await files_in(driver) == {blob_path(digest): content, link_path("foo/bar", digest): digest.encode()}


class TestSimpleLayerRead:
    """Opening, reading, seeking, and reading again."""

    async def test_it(self, layers: LayerService, driver: StorageDriver) -> None:
        """Unknown before it is stored; then whole, twice."""
        content = random_tar_file(4)
        digest = sha256(content)
        assert not await layers.exists(digest)
        with pytest.raises(LayerUnknown) as unknown:
            await layers.fetch(digest)
        assert (unknown.value.name, unknown.value.digest) == ("foo/bar", digest)

        # Put there by hand, as the original does.
        await driver.put_content(blob_path(str(digest)), content)
        await driver.put_content(link_path("foo/bar", str(digest)), str(digest).encode())

        layer = await layers.fetch(digest)
        assert (layer.name, layer.digest, layer.size) == ("foo/bar", digest, len(content))
        assert layer.created_at.year >= 2024
        assert await layer.read() == content
        assert layer.seek(0) == 0
        assert await layer.read() == content
        await layer.close()


class TestLayerUploadZeroLength:
    """A layer of no bytes."""

    async def test_it(self, layers: LayerService) -> None:
        """Nothing is written, and it is finished with the digest of nothing."""
        upload = await layers.upload()
        await upload.write(b"")
        assert await upload.finish(sha256(b"")) == sha256(b"")
        async with await layers.fetch(sha256(b"")) as layer:
            assert layer.size == 0
            assert await layer.read() == b""

    async def test_resumed(self, layers: LayerService) -> None:
        """The same by another process than began it."""
        upload = await layers.upload()
        await upload.close()
        assert await (await layers.resume(upload.uuid)).finish(sha256(b""), 0) == sha256(b"")

    async def test_without_data(self, layers: LayerService, driver: StorageDriver) -> None:
        """The same where the registry has not made `data` yet: no data is no bytes; for sha512 too."""
        for digest in (sha256(b""), Digest.of(b"", "sha512")):
            upload = await layers.upload()
            await upload.close()
            await driver.delete(f"/docker/registry/v2/repositories/foo/bar/_uploads/{upload.uuid}/data")
            assert await (await layers.resume(upload.uuid)).finish(digest) == sha256(b"")
            assert await layers.exists(digest)


class TestErrors:
    """The errors of the original interface, with their values."""

    async def test_invalid_digest(self, layers: LayerService) -> None:
        """ErrLayerInvalidDigest: the upload stays as it is, and the right digest works."""
        upload = await layers.upload()
        await upload.write(b"content")
        with pytest.raises(LayerInvalidDigest) as caught:
            await upload.finish(sha256(b"other"))
        assert (caught.value.expected, caught.value.actual) == (sha256(b"other"), sha256(b"content"))
        assert caught.value.size == 7
        assert not await layers.exists(sha256(b"content"))
        assert await upload.finish(sha256(b"content")) == sha256(b"content")

    async def test_invalid_length(self, layers: LayerService) -> None:
        """ErrLayerInvalidLength comes before the digest is looked at."""
        upload = await layers.upload()
        await upload.write(b"content")
        with pytest.raises(LayerInvalidLength) as caught:
            await upload.finish(sha256(b"other"), 8)
        assert (caught.value.expected, caught.value.actual) == (8, 7)
        assert await upload.finish(sha256(b"content"), 7) == sha256(b"content")

    async def test_upload_unknown(self, layers: LayerService, registry: Registry) -> None:
        """ErrLayerUploadUnknown: never begun, or begun in another repository."""
        upload = await layers.upload()
        for service, uuid in (
            (layers, "f81d4fae-7dec-4d0a-a765-00a0c91e6bf6"),
            (registry.repository("foo/other").layers, upload.uuid),
        ):
            with pytest.raises(LayerUploadUnknown) as caught:
                await service.resume(uuid)
            assert (caught.value.name, caught.value.uuid) == (service.name, uuid)

    @pytest.mark.parametrize("end", ["close", "cancel", "finish"])
    async def test_closed_upload(self, layers: LayerService, end: str) -> None:
        """ErrLayerClosed: nothing works after `close`, `cancel` or `finish`, except to close again."""
        upload = await layers.upload()
        await upload.write(b"x")
        await (upload.finish(sha256(b"x")) if end == "finish" else getattr(upload, end)())
        for use in (
            lambda: upload.write(b"y"),
            lambda: upload.write_at(0, b"y"),
            lambda: upload.read(0, 1),
            lambda: upload.truncate(0),
            upload.flush,
            upload.store,
            upload.close_writer,
            upload.open_writer,
            upload.cancel,
            lambda: upload.finish(sha256(b"x")),
        ):
            with pytest.raises(LayerClosed):
                await use()
        with pytest.raises(LayerClosed):
            upload.seek(0)
        await upload.close()
        assert not upload.is_usable

    async def test_closed_layer(self, layers: LayerService) -> None:
        """ErrLayerClosed for a layer."""
        upload = await layers.upload()
        await upload.write(b"x")
        await upload.finish(sha256(b"x"))
        layer = await layers.fetch(sha256(b"x"))
        await layer.close()
        await layer.close()
        with pytest.raises(LayerClosed):
            await layer.read()
        with pytest.raises(LayerClosed):
            layer.seek(0)

    async def test_existing_content_is_no_error(self, layers: LayerService) -> None:
        """ErrLayerExists is not for uploads: the same content may be uploaded again."""
        for _ in range(2):
            upload = await layers.upload()
            await upload.write(b"again")
            assert await upload.finish(sha256(b"again")) == sha256(b"again")
