"""Registry storage on any driver, put together by hand, path by path, clean or not."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime, timedelta

from layerfs.driver.interface import StorageDriver

V2 = "/docker/registry/v2"
BLOBS = f"{V2}/blobs/sha256"
REPOSITORIES = f"{V2}/repositories"

CONFIG = b'{"architecture":"amd64"}'
LAYER = bytes(range(256)) * 20
UUID = "f81d4fae-7dec-4d0a-a765-00a0c91e6bf6"


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def describe(content: bytes, kind: str) -> dict[str, object]:
    return {
        "mediaType": f"application/vnd.oci.image.{kind}",
        "digest": f"sha256:{sha256(content)}",
        "size": len(content),
    }


MANIFEST = json.dumps(
    {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": describe(CONFIG, "config.v1+json"),
        "layers": [describe(LAYER, "layer.v1.tar")],
    }
).encode()


async def put_data(driver: StorageDriver, path: str, content: bytes) -> None:
    """The bytes of an unfinished upload, which on an object store are not kept like other files."""
    writer = await driver.writer(path, append=False)
    try:
        await writer.write([content])
        await writer.flush()
    finally:
        await writer.close()


class Tree:
    """Registry storage, written as a registry would write it or worse."""

    def __init__(self, driver: StorageDriver) -> None:
        self.driver = driver

    async def put(self, path: str, content: bytes | str) -> None:
        await self.driver.put_content(path, content.encode() if isinstance(content, str) else content)

    def blob_path(self, content: bytes) -> str:
        return f"{BLOBS}/{sha256(content)[:2]}/{sha256(content)}/data"

    async def put_blob(self, content: bytes, *, stored: bytes | None = None) -> None:
        """A blob, with other bytes than it should have if asked to."""
        await self.put(self.blob_path(content), content if stored is None else stored)

    def layer_path(self, name: str, content: bytes) -> str:
        return f"{REPOSITORIES}/{name}/_layers/sha256/{sha256(content)}/link"

    def revision_path(self, name: str, content: bytes) -> str:
        return f"{REPOSITORIES}/{name}/_manifests/revisions/sha256/{sha256(content)}/link"

    async def put_layer(self, name: str, content: bytes) -> None:
        await self.put_blob(content)
        await self.put(self.layer_path(name, content), f"sha256:{sha256(content)}")

    async def put_manifest(self, name: str, content: bytes, tag: str | None = None) -> None:
        digest = f"sha256:{sha256(content)}"
        await self.put_blob(content)
        await self.put(self.revision_path(name, content), digest)
        if tag is not None:
            tags = f"{REPOSITORIES}/{name}/_manifests/tags/{tag}"
            await self.put(f"{tags}/index/sha256/{sha256(content)}/link", digest)
            await self.put(f"{tags}/current/link", digest)

    async def put_image(self, name: str) -> None:
        await self.put_layer(name, CONFIG)
        await self.put_layer(name, LAYER)
        await self.put_manifest(name, MANIFEST, "v1")

    async def put_upload(
        self, name: str, *, started_at: str | None, data: bytes | None = b"abc", uuid: str = UUID, **files: bytes
    ) -> str:
        """An upload with what is not None; `files` are hash states by their number (`n3=…`)."""
        directory = f"{REPOSITORIES}/{name}/_uploads/{uuid}"
        if started_at is not None:
            await self.put(f"{directory}/startedat", started_at)
        if data is not None:
            await put_data(self.driver, f"{directory}/data", data)
        for number, state in files.items():
            await self.put(f"{directory}/hashstates/sha256/{number[1:]}", state)
        return directory

    async def exists(self, path: str) -> bool:
        (found,) = await self.driver.stat_many([path])
        return not isinstance(found, Exception)


def ago(**age: float) -> str:
    """That time before now as a registry writes it."""
    return (datetime.now(UTC) - timedelta(**age)).strftime("%Y-%m-%dT%H:%M:%SZ")
