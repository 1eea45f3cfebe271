"""What can be wrong with the blobs, once it is known which are meant: their sizes, their places, their bytes."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import trio

from layerfs.digest import Digest
from layerfs.driver.interface import FileInfo, StorageDriver
from layerfs.driver.threads import in_thread
from layerfs.errors import InvalidManifest, LayerfsError, NotRegularFile, PathNotFound, ShortRead
from layerfs.manifest import MANIFEST_LIMIT
from layerfs.registry.blobs import BlobInfo, BlobStore
from layerfs.registry.maintenance.check_repository import blobs_of, parse_manifest, parts_of, read_blobs
from layerfs.registry.maintenance.faults import Fault, FaultKind
from layerfs.registry.maintenance.knowledge import ImagesWithoutManifest, Meant
from layerfs.registry.maintenance.look import BATCH, Look
from layerfs.registry.paths import BLOBS, BlobData
from layerfs.registry.side_by_side import at_once_on, side_by_side

#: Bytes read and hashed in one go: enough for the disk, little enough to be cancelled soon.
_CHUNK: Final = 4 << 20

#: What the file of every blob is called.
_DATA: Final = "data"

#: Directories inside one another that are looked at below a blob's, where there should be none.
_DEPTH: Final = 16


@dataclass(frozen=True, slots=True)
class Stored:
    """A blob that is there. `size` in bytes."""

    digest: Digest
    size: int

    def fault(self, kind: FaultKind, detail: str = "") -> Fault:
        return Fault(kind, BlobData(self.digest).path, digest=self.digest, detail=detail)


class BlobWalk:
    """Walks the blob store directory by directory; what is no blob, or cannot be looked at, is noted in `look`."""

    def __init__(self, look: Look) -> None:
        self._look = look

    async def run(self) -> AsyncGenerator[list[Stored], None]:
        """All blobs, in batches."""
        for algorithm in await self._directories_in(BLOBS):
            prefixes = await self._directories_in(algorithm)
            if self._look.driver.capabilities.listed_files:
                at_once = at_once_on(self._look.driver)
                for start in range(0, len(prefixes), at_once):
                    for batch in await side_by_side(self._listed, prefixes[start : start + at_once], at_once=at_once):
                        yield batch
                continue
            for prefix in prefixes:
                directories = await self._directories_in(prefix)
                for start in range(0, len(directories), BATCH):
                    places = [_place(directory) for directory in directories[start : start + BATCH]]
                    yield await self._stat(places)

    async def _listed(self, prefix: str) -> list[Stored]:
        """The blobs below a directory, out of one listing, which tells their sizes and what lies too deep."""
        files = [info for info in await self._look.list_files(prefix) if info.path.endswith(f"/{_DATA}")]
        places = [(_place(info.path.rpartition("/")[0]), info.size) for info in files]
        self._look.faults += [place for place, _ in places if not isinstance(place.digest, Digest)]
        return [Stored(place.digest, size) for place, size in places if isinstance(place.digest, Digest)]

    async def _directories_in(self, directory: str) -> list[str]:
        """The paths of those in a directory where no blob can be: a file of that name there is noted."""
        entries = await self._look.list(directory)
        if any(entry.name == _DATA and not entry.is_directory for entry in entries):
            self._look.faults.append(Fault(FaultKind.MISPLACED_BLOB, f"{directory}/{_DATA}"))
        return [f"{directory}/{entry.name}" for entry in entries if entry.is_directory]

    async def _look_below(self, directory: str) -> None:
        """Notes what lies too deep to be a blob. Where there are no directories, and no `_listed`, it is not seen."""
        waiting = [directory]
        for _ in range(_DEPTH):
            waiting = [below for each in waiting for below in await self._directories_in(each)]

    async def _stat(self, places: Sequence[Fault]) -> list[Stored]:
        for place, entries in zip(places, await self._look.find_temporary(places), strict=True):
            for entry in entries:
                if entry.is_directory:
                    await self._look_below(f"{place.path.removesuffix(_DATA)}{entry.name}")
        blobs = []
        for place, info in zip(
            places, await self._look.driver.stat_many([place.path for place in places]), strict=True
        ):
            if isinstance(info, FileInfo):
                if isinstance(place.digest, Digest) and not info.is_directory:
                    blobs.append(Stored(place.digest, info.size))
                elif not info.is_directory:
                    self._look.faults.append(place)
            elif not isinstance(info, PathNotFound | NotRegularFile):
                self._look.unreadable(place, info)
        return blobs


def _place(directory: str) -> Fault:
    """Where the blob in a directory is, with its digest unless that is none, or belongs elsewhere."""
    path = f"{directory}/{_DATA}"
    algorithm, _, name = directory.split("/")[-3:]
    digest = Digest.parse_or_none(f"{algorithm}:{name}")
    if digest is not None and BlobData(digest).path != path:
        digest = None
    return Fault(FaultKind.MISPLACED_BLOB, path, digest=digest)


def judge_size(blob: Stored, meant: Meant) -> Fault | None:
    """What its size alone gives away."""
    if blob.size == 0 and hashlib.new(blob.digest.algorithm, b"").hexdigest() != blob.digest.hex:
        return blob.fault(FaultKind.ZERO_LENGTH_BLOB)
    expected = meant.size_of(blob.digest)
    if expected is None or blob.size == expected:
        return None
    kind = FaultKind.TRUNCATED_BLOB if blob.size < expected else FaultKind.SIZE_MISMATCH
    return blob.fault(kind, f"{blob.size} bytes, a manifest says {expected}")


async def without_manifests(
    driver: StorageDriver, blobs: Sequence[Stored], images: ImagesWithoutManifest
) -> list[Stored]:
    """Those of `blobs`, to which nothing leads, that are no manifests; the manifests are told to `images`.

    A registry that deletes a manifest removes its links and leaves the blob to garbage collection.
    """
    others = [blob for blob in blobs if blob.size > MANIFEST_LIMIT]
    small = [blob for blob in blobs if blob.size <= MANIFEST_LIMIT]
    for part in parts_of([blob.size for blob in small]):
        contents = await read_blobs(driver, [small[index].digest for index in part])
        for blob, content in zip([small[index] for index in part], contents, strict=True):
            if isinstance(content, LayerfsError) or Digest.of(content, blob.digest.algorithm) != blob.digest:
                others.append(blob)
                continue
            try:
                images.see_image(blobs_of(await parse_manifest(content)))
            except InvalidManifest:
                others.append(blob)
    return others


async def sizes_again(blobs: BlobStore, faults: Iterable[Fault], meant: Meant) -> list[Fault]:
    """What `judge_size` says now of the blobs that it has judged before."""
    found = await blobs.stat_many([fault.digest for fault in faults if isinstance(fault.digest, Digest)])
    judged = [judge_size(Stored(blob.digest, blob.size), meant) for blob in found if isinstance(blob, BlobInfo)]
    return [fault for fault in judged if fault is not None]


async def places_again(driver: StorageDriver, faults: Sequence[Fault]) -> list[Fault]:
    """Those of `faults` at whose path there still is something, or that cannot be looked at."""
    found = await driver.stat_many([fault.path for fault in faults])
    return [fault for fault, info in zip(faults, found, strict=True) if not isinstance(info, PathNotFound)]


class Hasher:
    """Reads whole blobs and compares them with their digests, `jobs` at a time."""

    def __init__(self, driver: StorageDriver, jobs: int, on_bytes: Callable[[int], None]) -> None:
        self._driver = driver
        self._jobs = trio.CapacityLimiter(jobs)
        self._threads = trio.CapacityLimiter(jobs)
        self._on_bytes = on_bytes

    async def find_bad(self, blobs: Sequence[Stored]) -> list[Fault]:
        """A fault for each whose bytes are not those of its digest, or cannot be read; gone ones are no fault."""
        faults: list[Fault | None] = [None for _ in blobs]

        async def judge(index: int) -> None:
            async with self._jobs:
                faults[index] = await self._judge(blobs[index])

        async with trio.open_nursery() as nursery:
            for index in range(len(blobs)):
                nursery.start_soon(judge, index)
        return [fault for fault in faults if fault is not None]

    async def _judge(self, blob: Stored) -> Fault | None:
        fault = blob.fault(FaultKind.CORRUPT_BLOB)
        try:
            found = await self._hash(blob.digest)
        except (PathNotFound, NotRegularFile):
            return None
        except ShortRead as error:
            return replace(fault, detail=str(error))
        except LayerfsError as error:
            return replace(fault, kind=FaultKind.UNREADABLE, detail=str(error))
        return None if found == blob.digest.hex else replace(fault, detail=f"they have {blob.digest.algorithm}:{found}")

    async def _hash(self, digest: Digest) -> str:
        reader = await self._driver.open(BlobData(digest).path)
        try:
            state = hashlib.new(digest.algorithm)
            for offset in range(0, reader.size, _CHUNK):
                content = await reader.read(offset, _CHUNK)
                await in_thread(self._threads, state.update, content)
                self._on_bytes(len(content))
            return state.hexdigest()
        finally:
            reader.close()
