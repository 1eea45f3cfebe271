"""How an upload becomes a layer of its repository: the steps of `docs/architecture.md`, "Finishing an upload".

When it begins the upload is flushed and its writer closed; the rest is here, in this order: seal, verify, note the
canonical digest, publish the blob, canonical link, alias link, delete the upload. Every step can be repeated; that page
has the table of what a crash after each of them leaves behind, and why finishing again repairs it.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from typing import Final

import trio

from layerfs.digest import EMPTY, Digest
from layerfs.driver.interface import SealedFile
from layerfs.errors import (
    BackendFailure,
    BlobUnknown,
    LayerInvalidDigest,
    LayerUploadInvalid,
    LayerUploadUnknown,
    LinkInvalid,
    PathNotFound,
)
from layerfs.layername import LayerName, is_of_nothing
from layerfs.registry.blobs import BlobInfo, BlobStore
from layerfs.registry.hash_states import HashStates
from layerfs.registry.links import read_link, write_link
from layerfs.registry.paths import BlobData, LayerLink
from layerfs.registry.repositories import link_layer, make_repository
from layerfs.registry.running_hash import RunningHash
from layerfs.registry.stored_upload import StoredUpload
from layerfs.registry.verification import check_size, verify_sealed, verify_stored

#: Seconds that the last steps may take once they have begun; they cannot be cancelled.
_PUBLISH_DEADLINE: Final = 60.0


class Finishing:
    """Finishes one upload, in as many tries as it takes. One at a time, and nobody here writes meanwhile.

    What a digest is published under was verified, in this very try, to have it; and until the last step is done there
    is an upload to try again with.
    """

    def __init__(
        self, upload: StoredUpload, blobs: BlobStore, content_hash: RunningHash, hash_states: HashStates
    ) -> None:
        #: What was published, if storage has told that unasked.
        self.blob: BlobInfo | None = None
        self._upload = upload
        self._driver = upload.driver
        self._directory = upload.directory
        self._blobs = blobs
        self._hash = content_hash
        self._states = hash_states

    async def finish(self, digest: LayerName, size: int | None) -> Digest:
        """Verifies the content and makes it a layer. Returns its canonical digest. Raises as `LayerUpload.finish`."""
        try:
            sealed = await self._driver.seal(self._directory.data)
        except PathNotFound:
            return await self._finish_without_data(digest, size)
        async with sealed:
            check_size(size, sealed.size)
            canonical = await verify_sealed(sealed, digest, self._hash, self._states)
            publish = functools.partial(self._publish, sealed, canonical, digest)
            await self._complete(publish, canonical, digest, sealed.size)
        return canonical

    async def _complete(
        self, publish: Callable[[], Awaitable[None]], canonical: Digest, digest: LayerName, size: int
    ) -> None:
        """The last steps, in this order, each of which can be repeated. Not cancellable, but bounded."""
        with trio.move_on_after(_PUBLISH_DEADLINE, shield=True) as scope:
            await publish()
            await make_repository(self._driver, self._directory.name)
            await link_layer(self._driver, self._directory.name, canonical, digest)
            await self._upload.remove()
        if scope.cancelled_caught:
            raise BackendFailure(
                self._directory.path, f"finishing took more than {_PUBLISH_DEADLINE:.0f} s; do it again to complete it"
            )
        # Not by an alias: registries learn that only when they are asked for it.
        await self._blobs.learn(canonical, size, repository=self._directory.name, published=self.blob)

    async def _publish(self, sealed: SealedFile, canonical: Digest, digest: LayerName) -> None:
        if canonical != digest:
            await write_link(self._driver, self._directory.committing, canonical)
        self.blob = await self._blobs.publish(sealed, canonical)

    # --- where `data` is missing: it was published before a crash, or there never was a byte ------------------------

    async def _finish_without_data(self, digest: LayerName, size: int | None) -> Digest:
        try:
            await self._upload.check_exists()
        except LayerUploadUnknown:
            return await self._finish_at_last(digest)
        canonical = await self._canonical_of(digest)
        stored_size = await self._verify_published(canonical, digest, size)
        publish = functools.partial(self._publish_nothing, canonical)
        await self._complete(publish, canonical, digest, stored_size)
        return canonical

    async def _verify_published(self, canonical: Digest, digest: LayerName, size: int | None) -> int:
        """How many bytes the blob has that an earlier try has published, or that there is of nothing."""
        try:
            stored = await self._blobs.open(canonical)
        except BlobUnknown:
            if canonical != EMPTY:
                raise LayerInvalidDigest(digest, EMPTY, 0) from None
            check_size(size, 0)
            return 0
        try:
            check_size(size, stored.size)
            await verify_stored(stored, canonical, digest, self._hash)
            return stored.size
        finally:
            stored.close()

    async def _publish_nothing(self, canonical: Digest) -> None:
        if canonical == EMPTY:
            await self._driver.put_content(BlobData(EMPTY).path, b"")

    async def _finish_at_last(self, digest: LayerName) -> Digest:
        """Finishes where the upload is gone: if that was the last step of an earlier try, there is the layer."""
        name, uuid = self._directory.name, self._directory.uuid
        try:
            canonical = await read_link(self._driver, LayerLink(name, digest).path)
            await self._blobs.stat(canonical)
        except (PathNotFound, LinkInvalid, BlobUnknown) as error:
            raise LayerUploadUnknown(name, uuid) from error
        await self._upload.remove()
        return canonical

    async def _canonical_of(self, digest: LayerName) -> Digest:
        if isinstance(digest, Digest) and digest.is_canonical:
            return digest
        try:
            return await read_link(self._driver, self._directory.committing)
        except (PathNotFound, LinkInvalid):
            if is_of_nothing(digest):
                return EMPTY
            name, uuid = self._directory.name, self._directory.uuid
            raise LayerUploadInvalid(
                name, uuid, f"it has no data to verify {digest} with; cancel it and upload the layer again"
            ) from None
