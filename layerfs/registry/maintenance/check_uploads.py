"""What can be wrong with the uploads of one repository.

An upload has one fault at the most, the first of: no `startedat`; one that is no time; a hash state that a registry
would wrongly go on from; begun long ago. What registries leave of cancelled uploads, hash states without data and
`startedat`, is none: every registry leaves it, nobody sees it.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Final

import trio

from layerfs.digest import Digest
from layerfs.driver.interface import FileInfo, StorageDriver
from layerfs.driver.threads import in_thread
from layerfs.errors import ContentTooLarge, DriverError, NotRegularFile, PathNotFound, ShortRead
from layerfs.registry.hashing import STATE_LENGTH, StreamingHash, new_hash, resume_hash
from layerfs.registry.maintenance.faults import Fault, FaultKind
from layerfs.registry.maintenance.look import BATCH, Look
from layerfs.registry.paths import RepositoryDirectory, UploadDirectory
from layerfs.registry.side_by_side import at_once_on, side_by_side
from layerfs.registry.times import STARTED_AT_LIMIT, parse_rfc3339

_STATE_MAGIC: Final = b"sha\x03"
_BLOCK: Final = 64

#: Bytes read and hashed in one go.
_CHUNK: Final = 4 << 20

_ABSENT: Final = (PathNotFound, NotRegularFile)

#: The name of a hash state: how many bytes were hashed.
_COUNT: Final = re.compile("[0-9]{1,18}")


async def check_uploads(look: Look, name: str, *, before: datetime, deep: bool) -> None:
    """Looks at all uploads of repository `name`; those that began `before` are faults.

    With `deep` the data of those that have a hash state is read, to see whether it is theirs.
    """
    entries = await look.list(RepositoryDirectory(name).uploads)
    places = [UploadDirectory(name, entry.name) for entry in entries if entry.is_directory]
    for start in range(0, len(places), BATCH):
        await _check_batch(look, places[start : start + BATCH], before, deep=deep)


async def _check_batch(look: Look, places: Sequence[UploadDirectory], before: datetime, *, deep: bool) -> None:
    started = await look.driver.get_contents([place.started_at for place in places], limit=STARTED_AT_LIMIT)
    data = await look.driver.stat_many([place.data for place in places])
    states = await _read_states(look, places, data)
    for place, started_at, info, state in zip(places, started, data, states, strict=True):
        known = len(look.faults)
        _check_upload(look, place, started_at, info, state, before)
        is_usable = all(fault.kind is FaultKind.OLD_UPLOAD for fault in look.faults[known:])
        if deep and is_usable and isinstance(state, bytes) and not await _is_state_of(look, place, state):
            detail = "it is the state of other bytes"
            del look.faults[known:]
            look.faults.append(replace(_fault(place), kind=FaultKind.UPLOAD_WITH_BAD_HASHSTATE, detail=detail))


def _fault(place: UploadDirectory) -> Fault:
    return Fault(FaultKind.OLD_UPLOAD, place.path, place.name, upload=place.uuid)


async def _is_state_of(look: Look, place: UploadDirectory, state: bytes) -> bool:
    """Whether the hash of the data has this state; True where that cannot be known."""
    (count,) = struct.unpack_from(">Q", state, STATE_LENGTH - 8)
    hashed = new_hash()
    try:
        await _hash_data(look.driver, place.data, count, hashed)
    except (PathNotFound, NotRegularFile, ShortRead):
        # Data that is not there is no bytes; if it was there a moment ago, this is looked at again.
        return count > 0 or hashed.state() in (None, state)
    except DriverError as error:
        look.unreadable(_fault(place), error)
        return True
    return hashed.state() in (None, state)


async def _hash_data(driver: StorageDriver, path: str, count: int, hashed: StreamingHash) -> None:
    limiter = trio.CapacityLimiter(1)
    reader = await driver.open(path)
    try:
        for offset in range(0, count, _CHUNK):
            content = await reader.read(offset, min(_CHUNK, count - offset))
            await in_thread(limiter, hashed.update, [content])
    finally:
        reader.close()


async def _read_states(
    look: Look, places: Sequence[UploadDirectory], data: Sequence[FileInfo | DriverError]
) -> list[bytes | DriverError]:
    """The hash states that count: those whose number is the size of the data. The others a registry never loads."""
    sizes = [info.size if isinstance(info, FileInfo) else 0 for info in data]
    paths = [place.hash_state(size) for place, size in zip(places, sizes, strict=True)]
    return await look.driver.get_contents(paths, limit=STATE_LENGTH)


def _check_upload(
    look: Look,
    place: UploadDirectory,
    started_at: bytes | DriverError,
    data: FileInfo | DriverError,
    state: bytes | DriverError,
    before: datetime,
) -> None:
    fault = _fault(place)
    for found in (started_at, data, state):
        if isinstance(found, DriverError) and not isinstance(found, (*_ABSENT, ContentTooLarge)):
            look.unreadable(fault, found)
            return
    if isinstance(started_at, _ABSENT):
        if isinstance(data, FileInfo):
            look.faults.append(replace(fault, kind=FaultKind.UPLOAD_WITHOUT_STARTEDAT))
        return
    time = parse_rfc3339(started_at) if isinstance(started_at, bytes) else None
    size = data.size if isinstance(data, FileInfo) else 0
    if time is None:
        look.faults.append(replace(fault, kind=FaultKind.UPLOAD_WITH_BAD_STARTEDAT))
    elif not isinstance(state, _ABSENT) and not (isinstance(state, bytes) and is_state(state, size)):
        look.faults.append(replace(fault, kind=FaultKind.UPLOAD_WITH_BAD_HASHSTATE, detail=f"hashstates/sha256/{size}"))
    elif time < before:
        look.faults.append(replace(fault, detail=f"on {time:%Y-%m-%d}"))


async def being_finished(look: Look, names: Sequence[str]) -> set[Digest]:
    """The blobs that uploads of these repositories were published as by somebody who died before linking them.

    Such an upload has lost its data to the blob store, but has the state of their hash, which tells their digest. Who
    finishes it again links the blob.
    """
    digests: set[Digest] = set()

    async def see(name: str) -> None:
        places = [
            UploadDirectory(name, entry.name)
            for entry in await look.list(RepositoryDirectory(name).uploads)
            if entry.is_directory
        ]
        data = await look.driver.stat_many([place.data for place in places])
        for place, found in zip(places, data, strict=True):
            digest = await _hashed_last(look, place) if isinstance(found, PathNotFound) else None
            if digest is not None:
                digests.add(digest)

    await side_by_side(see, names, at_once=at_once_on(look.driver))
    return digests


async def _hashed_last(look: Look, place: UploadDirectory) -> Digest | None:
    """The digest of all that an upload ever had, by its last hash state."""
    counts = [
        int(entry.name) for entry in await look.list(f"{place.hash_states}/sha256") if _COUNT.fullmatch(entry.name)
    ]
    if not counts:
        return None
    (state,) = await look.driver.get_contents([place.hash_state(max(counts))], limit=STATE_LENGTH)
    if not isinstance(state, bytes) or not is_state(state, max(counts)):
        return None
    hashed = resume_hash(state)
    return hashed.digest() if hashed is not None else None


def is_state(state: bytes, count: int) -> bool:
    """Whether `state` can be that of a SHA-256 of `count` bytes; which ones they were cannot be seen (`hashing`)."""
    if len(state) != STATE_LENGTH or not state.startswith(_STATE_MAGIC):
        return False
    (counted,) = struct.unpack_from(">Q", state, STATE_LENGTH - 8)
    return counted == count and not any(state[36 + count % _BLOCK : 36 + _BLOCK])
