"""The driver for Azure Blob Storage.

It keeps what distribution's driver keeps, so that registries on the same container go on with our uploads and we with
theirs. The bytes of an unfinished upload are an append blob (`azure_upload`); finishing one has Azure copy the blob to
its place, so that no byte comes through this machine again.

Nothing is locked: a block is appended only to the very version that its writer knows, and only the version is copied
that was verified. Accounts with a hierarchical namespace are refused: there directories are blobs too.
"""

from __future__ import annotations

from layerfs.driver.azure_container import AzureBlob, Container
from layerfs.driver.azure_options import AzureOptions
from layerfs.driver.azure_upload import AzureUpload
from layerfs.driver.object_driver import ObjectStoreDriver
from layerfs.driver.object_store import ObjectStore
from layerfs.driver.objects import StoredObject


class AzureDriver(ObjectStoreDriver):
    """What lies below a prefix in a container."""

    def __init__(self, options: AzureOptions) -> None:
        super().__init__("azure", options.container, _Store(Container(options)))


class _Store(ObjectStore[AzureUpload]):
    def __init__(self, container: Container) -> None:
        super().__init__(container)
        self._container = container

    async def _create(self, path: str, found: StoredObject | None) -> AzureUpload:
        assert found is None or isinstance(found, AzureBlob)  # noqa: S101 - this container's
        return AzureUpload(self._container, path, await self._container.create(path, found))

    async def _resume(self, path: str, found: StoredObject) -> AzureUpload:
        assert isinstance(found, AzureBlob)  # noqa: S101 - this container's
        if not found.can_grow and not found.size:
            return await self._create(path, found)
        return AzureUpload(self._container, path, found)
