"""What an upload becomes in the tree: a layer, a manifest, or whatever else its content is handed to."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import Final

import trio

from layerfs.digest import Digest
from layerfs.errors import LayerfsError, ManifestTooLarge
from layerfs.layername import LayerName
from layerfs.manifest import MANIFEST_LIMIT
from layerfs.registry import BlobInfo, LayerInfo
from layerfs.view.blob_file import BlobFile, LayerFile, ManifestFile
from layerfs.view.live_upload import LiveUpload
from layerfs.view.live_uploads import LiveUploads
from layerfs.view.nodes import Node
from layerfs.view.upload_file import UploadFile

#: Seconds for looking at what was just published.
_LOOK_DEADLINE: Final = 10.0


async def finish(uploads: LiveUploads, name: str, uuid: str, file_name: str, digest: LayerName) -> None:
    """Makes an upload the layer `digest` of its repository; its inode is the layer's when this returns."""
    state = uploads.state
    live = await uploads.revived(name, uuid, file_name)
    try:
        with live.being_finished():
            if not live.upload.is_usable:
                live.upload = await uploads.resume(name, uuid)
            canonical = live.finished = await live.upload.finish(digest)
    except LayerfsError:
        state.stats.uploads_failed += 1
        raise
    finally:
        # One that has failed may have got as far as the link.
        state.layers_changed(name)
        state.upload_listings.changed(name, uuid, None)
    live.error = ""
    state.stats.uploads_committed += 1
    uploads.forget(name, uuid)
    state.fresh_repositories.discard(name)
    upload = UploadFile(uploads, name, uuid, file_name, live.upload.started_at)
    state.became(upload, LayerFile(state, name, await _layer(uploads, digest, canonical, live)))


async def put_manifest(
    uploads: LiveUploads, upload: UploadFile, *, digest: Digest | None = None, tag: str | None = None
) -> None:
    """Puts what was uploaded as a manifest, by digest or by tag; then the upload is no more."""
    state, name = uploads.state, upload.repository

    async def put(content: bytes) -> ManifestFile:
        return ManifestFile(state, name, await state.put_manifest(name, content, digest=digest, tag=tag))

    await consume(uploads, upload, put)


async def peek(uploads: LiveUploads, upload: UploadFile, limit: int) -> bytes | None:
    """The content of an upload, as far as it was written; None if it has more than `limit` bytes."""
    live = await uploads.revived(upload.repository, upload.uuid, upload.file_name)
    with live.being_finished():
        try:
            return await _content(uploads, live, limit)
        except ManifestTooLarge:
            return None


async def consume(
    uploads: LiveUploads,
    upload: UploadFile,
    use: Callable[[bytes], Awaitable[Node]],
    *,
    limit: int = MANIFEST_LIMIT,
    keep: bool = False,
) -> None:
    """Hands all of a small upload to `use`, which says which file it is from now on; then the upload is no more.

    With `keep` it stays in storage, complete and durable, though nobody writes it any more.
    Raises `ManifestTooLarge` beyond `limit` bytes.
    """
    name, uuid = upload.repository, upload.uuid
    live = await uploads.revived(name, uuid, upload.file_name)
    with live.being_finished():
        content = await _content(uploads, live, limit)
        if keep:
            await live.upload.flush()
        node = await use(content)
    live.is_consumed = True
    live.finished = node.blob.digest if isinstance(node, BlobFile) else None
    try:
        await (live.upload.close() if keep else uploads.cancel(name, uuid))
    finally:
        # What could not be deleted is an upload like any other.
        uploads.forget(name, uuid)
    uploads.state.became(upload, node)


async def _content(uploads: LiveUploads, live: LiveUpload, limit: int) -> bytes:
    """All of a small upload that nobody can write meanwhile. Raises `ManifestTooLarge`."""
    if live.writer is None or not live.upload.is_usable:
        live.upload = await uploads.resume(live.upload.name, live.upload.uuid)
    if live.upload.size > limit:
        raise ManifestTooLarge(limit)
    return await live.upload.read(0, live.upload.size)


async def _layer(uploads: LiveUploads, digest: LayerName, canonical: Digest, live: LiveUpload) -> LayerInfo:
    """What was just published; if it cannot be looked at now, what is known of it anyhow.

    Not cancellable: the upload is finished, and nobody may be told anything else.
    """
    if live.upload.blob is not None:
        return LayerInfo(digest, live.upload.blob)
    with contextlib.suppress(LayerfsError), trio.move_on_after(_LOOK_DEADLINE, shield=True):
        return LayerInfo(digest, await uploads.state.registry.blobs.stat(canonical))
    return LayerInfo(digest, BlobInfo(canonical, live.upload.size, time.time_ns()))
