"""What makes a directory in storage a repository, and a blob one of its layers."""

from __future__ import annotations

from layerfs.digest import Digest
from layerfs.driver.interface import StorageDriver
from layerfs.errors import NotRegularFile, PathNotFound
from layerfs.layername import LayerName
from layerfs.registry.links import write_link
from layerfs.registry.paths import LayerLink, RepositoryDirectory


async def link_layer(driver: StorageDriver, name: str, canonical: Digest, digest: LayerName) -> None:
    """Links a stored blob into a repository, under `digest` too where that is another one; canonical first.

    Both links hold the canonical digest, and an alias is of no use to a registry without the first.
    """
    await write_link(driver, LayerLink(name, canonical).path, canonical)
    if digest != canonical:
        await write_link(driver, LayerLink(name, digest).path, canonical)


async def make_repository(driver: StorageDriver, name: str) -> None:
    """Makes the directories by which both generations of registries know a repository.

    With only one of the two, garbage collection by the other generation deletes its blobs.
    """
    directory = RepositoryDirectory(name)
    for path in (directory.layers, directory.manifests):
        try:
            await driver.make_directory(path)
        except PathNotFound as error:
            # Not that something is missing: a file stands where a directory should be.
            raise NotRegularFile(path, "something else stands in its place") from error
