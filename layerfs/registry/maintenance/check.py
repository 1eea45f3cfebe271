"""`check`: everything that is wrong in a registry's storage, found while registries and mounts go on using it.

One walk through the repositories, which gathers what is meant, then one through the blobs, which compares. Storage
changes under both, in the order of its writers (blob before link, revision before tag), and an upload, a push or a
garbage collection looks like a fault for a moment. So nothing is reported that is not still there when it is looked at
again, `settle` seconds after it was first seen.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Final, TypeAlias

import trio

from layerfs.digest import Digest
from layerfs.errors import DriverError, RepositoryUnknown
from layerfs.names import check_stored_repository_name
from layerfs.registry.blobs import BlobInfo
from layerfs.registry.links import read_links
from layerfs.registry.maintenance.check_blobs import (
    BlobWalk,
    Hasher,
    Stored,
    judge_size,
    places_again,
    sizes_again,
    without_manifests,
)
from layerfs.registry.maintenance.check_repository import RepositoryCheck
from layerfs.registry.maintenance.check_uploads import being_finished
from layerfs.registry.maintenance.faults import Fault, FaultKind
from layerfs.registry.maintenance.knowledge import ImagesWithoutManifest, Meant
from layerfs.registry.maintenance.look import BATCH, Look
from layerfs.registry.maintenance.progress import Progress, Report, no_report
from layerfs.registry.maintenance.purge import DEFAULT_AGE
from layerfs.registry.paths import LAYERS, MANIFESTS, BlobData, LayerLink, ManifestRevisionLink, RepositoryDirectory
from layerfs.registry.registry import Registry
from layerfs.registry.side_by_side import at_once_on, side_by_side

#: Seconds after which what was only passing has passed: a registry writes blob and link right after one another.
SETTLE: Final = 2.0

#: Faults held back until they are looked at again together, so that not each of them waits.
_HELD: Final = 1000


async def check(
    registry: Registry,
    *,
    deep: bool = False,
    repositories: Sequence[str] = (),
    jobs: int = 4,
    old: timedelta = DEFAULT_AGE,
    settle: float = SETTLE,
    report: Report = no_report,
) -> AsyncGenerator[Fault, None]:
    """Every fault, each once: first those of the repositories, in the order of the catalog, then those of the blobs.

    Changes nothing. Without `deep` only sizes tell of a blob's bytes: it is empty, or not as large as the manifests say
    that refer to it. With it each blob is read and hashed, and the data of uploads that have a hash state. Uploads that
    began `old` ago are faults. `repositories` restricts the check to these, the blobs that they mean, and the images
    that they have; what nothing leads to is not looked for then. `jobs` is how much is done at a time, `report` is told
    of the progress.

    What cannot be read is a fault of the kind `unreadable`. Raises `RepositoryUnknown` or `InvalidRepositoryName` for
    a name that is none, and `DriverError` if the storage as a whole cannot be looked at.
    """
    before = datetime.now(UTC) - old
    walk = _Check(registry, deep=deep, jobs=jobs, before=before, settle=settle, report=report)
    await walk.prepare(repositories)
    for part in walk.parts(walk.meant_blobs if repositories else walk.all_blobs):
        async with aclosing(part) as faults:
            async for fault in faults:
                yield fault


class _Check:
    def __init__(
        self, registry: Registry, *, deep: bool, jobs: int, before: datetime, settle: float, report: Report
    ) -> None:
        self._registry = registry
        self._driver = registry.driver
        self._jobs = jobs
        # Repositories.
        self._at_once = at_once_on(registry.driver)
        self._deep = deep
        self._before = before
        self._settle = settle
        self._report = report
        self._names: list[str] = []
        self._unreadable: list[Fault] = []
        self._meant = Meant()
        self._images = ImagesWithoutManifest()
        # Paths of blobs that have a fault already.
        self._judged: set[str] = set()
        self._orphans: list[Stored] = []
        # False when some could not be read: then it is not known what nothing leads to.
        self._knows_links = True
        self._bytes = 0
        self._hashed = 0

    async def prepare(self, names: Sequence[str]) -> None:
        """Finds the repositories, and those among them that have no `_manifests`."""
        # Not by the catalog, for which a registry that cannot be listed is an empty one.
        await self._driver.list(RepositoryDirectory("").path.rpartition("/")[0])
        for name in names:
            check_stored_repository_name(name)
            if not (await self._registry.list(name)).is_repository:
                raise RepositoryUnknown(name)
        self._names = list(dict.fromkeys(names)) or await self._catalog()
        await side_by_side(self._prepare_one, self._names, at_once=self._at_once)

    async def _prepare_one(self, name: str) -> None:
        look = Look(self._driver, self._jobs)
        directory = RepositoryDirectory(name)
        if MANIFESTS not in {entry.name for entry in await look.list(directory.path)}:
            self._images.add_candidate(name, await look.digests_in(directory.layers))

    async def _catalog(self) -> list[str]:
        return [name async for name in self._registry.catalog(on_error=self._pass_over)]

    def _pass_over(self, name: str, error: DriverError) -> None:
        """A repository, or beginning of names, that cannot be looked at is one fault, and no end of the check."""
        self._knows_links = False
        self._unreadable.append(Fault(FaultKind.UNREADABLE, RepositoryDirectory(name).path, name, detail=str(error)))

    def parts(self, blobs: _Walk) -> list[_Faults]:
        """What there is to do, in this order: each part builds on what those before it have found out."""
        contents = [self.contents(blobs)] if self._deep else []
        return [self.repositories(), self.sizes(blobs), *contents, self.orphans(), self.lost_manifests()]

    # --- repositories ----------------------------------------------------------------------------------------

    async def repositories(self) -> _Faults:
        """What is wrong in each by itself."""
        for fault in self._unreadable:
            yield fault
        suspects: dict[str, list[Fault]] = {}
        for number in range(0, len(self._names), self._at_once):
            self._report(Progress("repositories", "repositories", number, len(self._names)))
            names = self._names[number : number + self._at_once]
            found = await side_by_side(self._look_at, names, at_once=self._at_once)
            suspects |= {name: faults for name, faults in zip(names, found, strict=True) if faults}
            if sum(map(len, suspects.values())) >= _HELD:
                for fault in await self._look_again(suspects):
                    yield fault
                suspects.clear()
        self._report(Progress("repositories", "repositories", len(self._names), len(self._names)))
        for fault in await self._look_again(suspects):
            yield fault

    async def _look_at(self, name: str) -> list[Fault]:
        look = Look(self._driver, self._jobs)
        await RepositoryCheck(look, self._registry.blobs, name, self._meant, self._images).run(
            before=self._before, deep=self._deep
        )
        self._knows_links = self._knows_links and not look.unreadables
        return look.faults

    async def _look_again(self, suspects: dict[str, list[Fault]]) -> list[Fault]:
        """What is still wrong. Changes that were seen half-made are whole by now, or were made half by a crash."""
        if not suspects:
            return []
        await trio.sleep(self._settle)
        confirmed: list[Fault] = []
        seen = await side_by_side(self._look_at, suspects, at_once=self._at_once)
        for faults, now in zip(suspects.values(), seen, strict=True):
            again = {fault.identity for fault in now}
            confirmed += [fault for fault in faults if fault.identity in again]
        return confirmed

    # --- blobs -----------------------------------------------------------------------------------------------

    def all_blobs(self, look: Look) -> AsyncGenerator[list[Stored], None]:
        """The whole blob store."""
        return BlobWalk(look).run()

    async def meant_blobs(self, _look: Look) -> AsyncGenerator[list[Stored], None]:
        """The blobs that links and manifests lead to."""
        digests = list(self._meant.canonical())
        for start in range(0, len(digests), BATCH):
            found = await self._registry.blobs.stat_many(digests[start : start + BATCH])
            yield [Stored(blob.digest, blob.size) for blob in found if isinstance(blob, BlobInfo)]

    async def sizes(self, blobs: _Walk) -> _Faults:
        """What sizes and places tell. Remembers what nothing leads to, and how much there is to read."""
        look = Look(self._driver, self._jobs)
        suspects: list[Fault] = []
        count = 0
        async for batch in blobs(look):
            count += len(batch)
            self._bytes += sum(blob.size for blob in batch)
            self._report(Progress("blobs", "blobs", count, 0))
            for blob in batch:
                fault = judge_size(blob, self._meant)
                if fault is not None:
                    suspects.append(fault)
                elif blob.digest not in self._meant:
                    self._orphans.append(blob)
        if suspects or look.faults:
            await trio.sleep(self._settle)
        for fault in await sizes_again(self._registry.blobs, suspects, self._meant):
            self._judged.add(fault.path)
            yield await self._weigh(fault) if self._deep else fault
        for fault in await places_again(self._driver, look.faults):
            yield fault

    async def _weigh(self, fault: Fault) -> Fault:
        """Who is wrong where blob and manifest disagree on its size: the bytes tell."""
        if fault.kind is FaultKind.ZERO_LENGTH_BLOB or not isinstance(fault.digest, Digest):
            return fault
        bad = await self._hasher().find_bad([Stored(fault.digest, 0)])
        if not bad:
            return replace(fault, kind=FaultKind.SIZE_MISMATCH, detail=f"{fault.detail}; the blob is good")
        return fault if fault.kind is FaultKind.TRUNCATED_BLOB else bad[0]

    async def contents(self, blobs: _Walk) -> _Faults:
        """What the bytes tell, of blobs that nothing was wrong with so far."""
        hasher = self._hasher()
        # What cannot be looked at, or lies at a wrong place, has been found before.
        async with aclosing(blobs(Look(self._driver, self._jobs))) as batches:
            async for batch in batches:
                unjudged = [blob for blob in batch if BlobData(blob.digest).path not in self._judged]
                suspects = {fault.path for fault in await hasher.find_bad(unjudged)}
                # Again: it may just have been replaced by a good one.
                again = [blob for blob in unjudged if BlobData(blob.digest).path in suspects]
                for fault in await self._hasher().find_bad(again):
                    self._judged.add(fault.path)
                    yield fault

    def _hasher(self) -> Hasher:
        return Hasher(self._driver, self._jobs, self._count_bytes)

    def _count_bytes(self, count: int) -> None:
        self._hashed += count
        self._report(Progress("contents", "bytes", min(self._hashed, self._bytes), self._bytes))

    # --- what the whole tells --------------------------------------------------------------------------------

    async def orphans(self) -> _Faults:
        """Blobs to which nothing leads, and which are no manifests: those have been deleted.

        Nor what an upload that is still there can be finished as: it is the upload that is left over.
        """
        orphans = [blob for blob in self._orphans if BlobData(blob.digest).path not in self._judged]
        # Where there are no directories, `_manifests` goes with the last manifest: an image that nobody has any more
        # was deleted here as likely as it was lost.
        images = self._images if self._driver.capabilities.directories else ImagesWithoutManifest()
        orphans = await without_manifests(self._driver, orphans, images)
        if not orphans:
            return
        await trio.sleep(self._settle)
        linked = await self._linked_by_now({blob.digest for blob in orphans})
        linked |= await being_finished(Look(self._driver, self._jobs), await self._catalog())
        there = await self._registry.blobs.stat_many([blob.digest for blob in orphans])
        for blob, found in zip(orphans, there, strict=True):
            if isinstance(found, BlobInfo) and blob.digest not in linked and self._knows_links:
                yield blob.fault(FaultKind.ORPHAN_BLOB, f"{found.size} bytes")

    async def _linked_by_now(self, digests: set[Digest]) -> set[Digest]:
        """Those of `digests` that a repository links, in case one was just being pushed."""
        linked: set[Digest] = set()
        look = Look(self._driver, self._jobs)

        async def see(name: str) -> None:
            directory = RepositoryDirectory(name)
            layers = digests.intersection(await look.digests_in(directory.layers))
            revisions = digests.intersection(await look.digests_in(f"{directory.manifests}/revisions"))
            paths = [LayerLink(name, digest).path for digest in layers]
            paths += [ManifestRevisionLink(name, digest).path for digest in revisions]
            linked.update(link for link in await read_links(self._driver, paths) if isinstance(link, Digest))

        await side_by_side(see, await self._catalog(), at_once=self._at_once)
        self._knows_links = self._knows_links and not look.unreadables
        return linked

    async def lost_manifests(self) -> _Faults:
        """Repositories without `_manifests` that have all of an image but the manifest, and are not just getting it."""
        lost = sorted(self._images.found)
        if lost:
            await trio.sleep(self._settle)
        for name in lost:
            directory = RepositoryDirectory(name)
            below = {entry.name for entry in await Look(self._driver, 1).list(directory.path)}
            if LAYERS in below and MANIFESTS not in below:
                yield Fault(FaultKind.REPO_WITHOUT_MANIFESTS, directory.path, name)


#: A walk through blobs, in batches; what cannot be looked at is noted in the `Look`.
_Walk: TypeAlias = Callable[[Look], AsyncGenerator[list[Stored], None]]

_Faults: TypeAlias = AsyncGenerator[Fault, None]
