"""Removing from a repository what none of its tags needs, for clients that collect garbage one file at a time.

A client looks at the index that it has read, and removes what is not in there: also what others have pushed since. So
its word is not taken for it. What a tag leads to stays, and so does whatever was linked a short while ago: the tag that
will lead to it may be about to be put.
"""

from __future__ import annotations

import contextlib
import time

from layerfs.digest import Digest
from layerfs.driver.interface import FileInfo
from layerfs.errors import BlobInUse, DriverError, LayerUnknown, ManifestUnknownRevision, NotRegularFile, PathNotFound
from layerfs.registry.paths import LayerLink, ManifestRevisionLink
from layerfs.registry.registry import Registry


async def remove_unused(registry: Registry, name: str, digest: Digest, *, grace: float) -> None:
    """Removes a layer, a manifest, or what is both, from repository `name`; the blob stays for garbage collection.

    Raises `BlobInUse` for what a tag leads to, and what was linked less than `grace` seconds ago; `LayerUnknown` for
    what is not there.
    """
    repository = registry.repository(name)
    linked_at = await _linked_at(registry, name, digest)
    if linked_at is None:
        raise LayerUnknown(name, digest)
    age = time.time() - linked_at / 1e9
    if age < grace:
        raise BlobInUse(name, digest, f"it was put there {max(0, age):.0f} s ago, and may be part of a push")
    tagged = [tag.digest for tag in await repository.tags.list()]
    if digest in await repository.manifests.reachable(tagged):
        raise BlobInUse(name, digest, "a tag leads to it")
    with contextlib.suppress(ManifestUnknownRevision):
        await repository.manifests.delete(digest)
    with contextlib.suppress(LayerUnknown):
        await repository.layers.delete(digest)


async def _linked_at(registry: Registry, name: str, digest: Digest) -> int | None:
    """When it was last made part of the repository, in nanoseconds since 1970; None if it is not."""
    links = [LayerLink(name, digest).path]
    if digest.is_canonical:
        links.append(ManifestRevisionLink(name, digest).path)
    found = await registry.driver.stat_many(links)
    for result in found:
        if isinstance(result, DriverError) and not isinstance(result, PathNotFound | NotRegularFile):
            raise result
    return max((info.modified_at for info in found if isinstance(info, FileInfo)), default=None)
