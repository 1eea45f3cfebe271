"""Filling the content cache with what images need, before anybody reads it.

Questions in, values out; how they are shown is the command's business.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final

import trio

from layerfs.digest import Digest
from layerfs.errors import LayerfsError, LayerUnknown, LinkInvalid, ManifestUnknown
from layerfs.layername import LayerName
from layerfs.reading import find_manifest, find_name, find_repository, is_index, list_parts, name_parts
from layerfs.reference import Reference
from layerfs.registry import BlobInfo, Registry, Repository
from layerfs.registry.content_cache import ContentCache
from layerfs.registry.content_file import file_size
from layerfs.registry.side_by_side import side_by_side
from layerfs.view.contents import Contents, Filling
from layerfs.view.readahead import PartPool

#: Seconds between two reports of how far it has come.
_REPORTED_EVERY: Final = 0.1


class CacheTooSmall(LayerfsError):
    """What is to be kept in the cache is more than it may have."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A blob that an image needs: `blob` is what storage has of it, or `error` why there is none."""

    digest: LayerName
    blob: BlobInfo | None = None
    error: LayerfsError | None = None


@dataclass(frozen=True, slots=True)
class Warmed:
    """What became of a blob: it was in the cache, it is now, or there is an `error`."""

    digest: LayerName
    size: int
    was_there: bool = False
    error: LayerfsError | None = None


async def find_wanted(registry: Registry, references: Sequence[Reference]) -> list[Wanted]:
    """All blobs that the references need, each once: manifests, configurations and layers; all tags of a repository
    that is named without one; of an index all that it leads to.

    Raises `NotThere` for a reference that means nothing, `ContentDamaged` or `InvalidManifest` for a manifest that
    cannot be read.
    """
    found: dict[LayerName, Wanted] = {}
    for reference in references:
        repository = await find_repository(registry, reference.repository)
        if reference.is_repository:
            tags = await repository.tags.list()
            names: list[LayerName] = list(dict.fromkeys(tag.digest for tag in tags))
        else:
            names = [await find_name(repository, reference)]
        following = _Following(repository)
        for each in await side_by_side(following.follow, names, at_once=repository.at_once):
            found |= {digest: wanted for digest, wanted in each.items() if digest not in found}
    return list(found.values())


class _Following:
    """Finds what the images of a repository consist of; what several of them have is looked for once."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self._layers: dict[LayerName, Wanted] = {}
        self._followed: set[LayerName] = set()

    async def follow(self, name: LayerName) -> dict[LayerName, Wanted]:
        """What `name` is, and what it leads to; nothing if it is being followed already.

        Indexes lead to manifests, those to layers, which lead nowhere.
        """
        if name in self._followed:
            return {}
        self._followed.add(name)
        manifests = self._repository.manifests
        (info,) = await manifests.stat_many([name]) if isinstance(name, Digest) else [None]
        if info is None or isinstance(info, ManifestUnknown):
            wanted = await self._layer(name)
            if wanted.blob is None:
                # Only what nobody has needs to be looked for under other names.
                await find_manifest(self._repository, name)
            return {name: wanted}
        if isinstance(info, LayerfsError):
            raise info
        manifest = await find_manifest(self._repository, name)
        found = {name: Wanted(name, BlobInfo(info.digest, info.size, info.stored_at))}
        if not is_index(manifest):
            layers = [part.digest for part in name_parts(manifest)]
            wanted_layers = await side_by_side(self._layer, layers, at_once=self._repository.at_once)
            return found | dict(zip(layers, wanted_layers, strict=True))
        for part in await list_parts(self._repository, manifest):
            # An index may name manifests of platforms that nobody has pushed.
            if part.stored_size is not None:
                found |= await self.follow(part.digest)
        return found

    async def _layer(self, name: LayerName) -> Wanted:
        if name not in self._layers:
            try:
                self._layers[name] = Wanted(name, (await self._repository.layers.stat(name)).blob)
            except (LayerUnknown, LinkInvalid, ManifestUnknown) as error:
                self._layers[name] = Wanted(name, error=error)
        return self._layers[name]


async def warm(
    registry: Registry,
    cache: ContentCache,
    wanted: Sequence[Wanted],
    *,
    jobs: int,
    report: Callable[[int, int], None],
) -> AsyncGenerator[Warmed, None]:
    """Fetches what the cache does not have, `jobs` blobs at a time, and says of each what became of it.

    `report` is told often how many bytes of how many are there. Whatever ends this, what was fetched so far is gone on
    with the next time. Raises `CacheTooSmall` before anything is fetched.
    """
    blobs = {each.blob.digest: each.blob for each in wanted if each.blob is not None}
    _check_size(cache, list(blobs.values()))
    for each in wanted:
        if each.blob is None:
            yield Warmed(each.digest, 0, error=each.error)
    send, receive = trio.open_memory_channel[Warmed](0)
    async with trio.open_nursery() as nursery:
        fetching = _Fetching(registry, cache, list(blobs.values()), nursery, report)
        nursery.start_soon(fetching.run, jobs, send)
        async with aclosing(_received(receive)) as results:
            async for result in results:
                yield result
        nursery.cancel_scope.cancel()


async def _received(channel: trio.MemoryReceiveChannel[Warmed]) -> AsyncGenerator[Warmed, None]:
    async with channel:
        async for each in channel:
            yield each


def _check_size(cache: ContentCache, blobs: Sequence[BlobInfo]) -> None:
    size = sum(file_size(blob.size) for blob in blobs)
    if size > cache.limit:
        raise CacheTooSmall(
            f"{size} bytes are needed, and the cache may have {cache.limit}: make it larger with --cache-size"
        )


class _Fetching:
    def __init__(
        self,
        registry: Registry,
        cache: ContentCache,
        blobs: Sequence[BlobInfo],
        nursery: trio.Nursery,
        report: Callable[[int, int], None],
    ) -> None:
        pool = PartPool(nursery.start_soon)
        self._contents = Contents(cache, registry.blobs, pool, nursery.start_soon, waits=True)
        self._cache = cache
        # The largest first, so that the last one does not keep all others waiting.
        self._waiting = sorted(blobs, key=lambda blob: blob.size)
        self._total = sum(blob.size for blob in blobs)
        self._done = 0
        self._under_way: set[Filling] = set()
        self._report = report

    async def run(self, jobs: int, results: trio.MemorySendChannel[Warmed]) -> None:
        async with results, trio.open_nursery() as reporting:
            reporting.start_soon(self._keep_reporting)
            async with trio.open_nursery() as nursery:
                for _ in range(jobs):
                    nursery.start_soon(self._fetch_waiting, results)
            reporting.cancel_scope.cancel()

    async def _fetch_waiting(self, results: trio.MemorySendChannel[Warmed]) -> None:
        while self._waiting:
            blob = self._waiting.pop()
            warmed = await self._fetch(blob)
            self._done += blob.size
            await results.send(warmed)

    async def _fetch(self, blob: BlobInfo) -> Warmed:
        found = await self._cache.find(blob.digest, blob.size)
        if found is not None:
            found.close()
            return Warmed(blob.digest, blob.size, was_there=True)
        filling = self._contents.follow(blob)
        self._under_way.add(filling)
        try:
            await filling.done.wait()
        finally:
            self._under_way.discard(filling)
            self._contents.leave(filling)
        return Warmed(blob.digest, blob.size, error=filling.error)

    async def _keep_reporting(self) -> None:
        while True:
            self._report(self._done + sum(filling.written for filling in self._under_way), self._total)
            await trio.sleep(_REPORTED_EVERY)
