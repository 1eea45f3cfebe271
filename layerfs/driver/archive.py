"""The driver for a storage that is packed in a zip or tar archive: a backup, which is looked at without unpacking it.

The archive is a file of any other storage, of which parts are read as they are needed; nothing of it is unpacked to a
disk. It is indexed when it is first used (`archive_index`). Nothing can be changed in it.
"""

from __future__ import annotations

import logging
import zipfile
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Literal, NoReturn, TypeAlias

import trio

from layerfs.driver.archive_index import Index, InvalidArchive, Member, archive_path, index_tar, index_zip
from layerfs.driver.inflated import GZIP, RAW, Inflated
from layerfs.driver.interface import (
    Capabilities,
    Entries,
    Entry,
    FileInfo,
    FileReader,
    FileWriter,
    SealedFile,
    StorageDriver,
    Usage,
    check_path,
    is_component,
)
from layerfs.driver.ranges import check_length, clamp
from layerfs.errors import (
    BackendFailure,
    ContentTooLarge,
    NotRegularFile,
    PathNotFound,
    StorageReadOnly,
    UnknownSource,
    UnsupportedByDriver,
)

_log = logging.getLogger(__name__)

ArchiveKind: TypeAlias = Literal["tar", "zip"]

#: States of decompressors that are kept: of the one of a tar, and of each of the last files that were read in a zip.
#: All of them together have 64 MiB.
_STATES_OF_TAR: Final = 1024
_STATES_IN_ZIP: Final = 64
_INFLATED_FILES: Final = 16

#: Threads that decompress.
_THREADS: Final = 4

#: The header of a file in a zip, and where in it the lengths of what follows are.
_ZIP_HEADER: Final = b"PK\x03\x04"
_ZIP_HEADER_SIZE: Final = 30
_ZIP_LENGTHS: Final = 26

#: How what can be compressed begins, and what each of them is unpacked with.
_GZIP: Final = b"\x1f\x8b"
_OTHER_COMPRESSION: Final = {
    b"BZh": "bunzip2",
    b"\xfd7zXZ\0": "unxz",
    b"\x28\xb5\x2f\xfd": "unzstd",
    b"\x04\x22\x4d\x18": "unlz4",
}
_BEGINNING: Final = 262
_TAR_MAGIC_AT: Final = 257
_TAR_MAGIC: Final = b"ustar"

OpenArchive: TypeAlias = Callable[[], Awaitable[FileReader]]


class ArchiveDriver(StorageDriver):
    """What is below the directory `inside` of an archive, which `open_archive` gives and messages call `source`.

    `release` lets go of what the archive is in.
    """

    capabilities = Capabilities(directories=True, append=False, random_writes=False, read_only=True)

    def __init__(
        self,
        kind: ArchiveKind,
        *,
        inside: str,
        source: str,
        open_archive: OpenArchive,
        release: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self.name = kind
        self._inside = archive_path(inside)
        self._source = source
        self._open_archive = open_archive
        self._release = release
        self._opening = trio.Lock()
        self._opened: _OpenArchive | None = None
        self._is_closed = False
        if self._inside is None:
            raise UnknownSource(source, "a directory of an archive cannot have '..' in its name")
        self._kind = kind

    async def stat(self, path: str) -> FileInfo:
        archive, place = await self._at(path)
        if place in archive.index.directories:
            return FileInfo(path, True, 0, 0)
        return _file_info(path, _member(archive.index, place, path))

    async def list(self, path: str) -> Entries:
        archive, place = await self._at(path)
        try:
            names = archive.index.directories[place]
        except KeyError:
            raise PathNotFound(path) from None
        above = place.rstrip("/")
        return [Entry(name, f"{above}/{name}" in archive.index.directories) for name in names if is_component(name)]

    async def get_content(self, path: str, *, limit: int) -> bytes:
        archive, place = await self._at(path)
        member = _member(archive.index, place, path)
        if member.size > limit:
            raise ContentTooLarge(path, f"{member.size} bytes, more than {limit}")
        if member.content is not None:
            return member.content
        reader = await archive.open(member, path)
        return await reader.read(0, reader.size)

    async def open(self, path: str) -> FileReader:
        archive, place = await self._at(path)
        return await archive.open(_member(archive.index, place, path), path)

    async def usage(self) -> Usage | None:
        await trio.lowlevel.checkpoint()
        return None

    async def close(self) -> None:
        self._is_closed = True
        if self._opened is not None:
            self._opened.close()
        if self._release is not None:
            await self._release()
        await trio.lowlevel.checkpoint()

    async def directories_above(self, path: str) -> Sequence[str]:
        """The directories of the whole archive in which there is a directory `path`, without slashes around them."""
        archive, _ = await self._at("/")
        return sorted(
            place.removesuffix(path).strip("/") for place in archive.index.directories if place.endswith(path)
        )

    # --- what cannot be done ---------------------------------------------------------------------------------

    async def put_content(self, path: str, content: bytes) -> None:  # noqa: ARG002 - the interface's
        await self._refuse(path)

    async def writer(self, path: str, *, append: bool) -> FileWriter:  # noqa: ARG002 - the interface's
        await self._refuse(path)

    async def seal(self, path: str) -> SealedFile:
        await self._refuse(path)

    async def move(self, source: str, destination: str) -> None:
        check_path(source)
        await self._refuse(destination)

    async def delete(self, path: str) -> None:
        await self._refuse(path)

    async def make_directory(self, path: str) -> None:
        await self._refuse(path)

    async def remove_directory(self, path: str) -> None:
        await self._refuse(path)

    async def _refuse(self, path: str) -> NoReturn:
        check_path(path)
        await trio.lowlevel.checkpoint()
        raise StorageReadOnly(path, f"a {self.name} archive is only read")

    # --- the archive -----------------------------------------------------------------------------------------

    async def _at(self, path: str) -> tuple[_OpenArchive, str]:
        """The archive, and where in it `path` is."""
        check_path(path)
        archive = await self._archive()
        return archive, (f"{self._inside}{path}" if self._inside != "/" else path).rstrip("/") or "/"

    async def _archive(self) -> _OpenArchive:
        if self._is_closed:
            raise BackendFailure("/", "the driver is closed")
        if self._opened is not None:
            await trio.lowlevel.checkpoint()
            return self._opened
        async with self._opening:
            if self._opened is None:
                file = await self._open_archive()
                try:
                    self._opened = await self._read_index(file)
                except InvalidArchive as error:
                    raise UnknownSource(self._source, f"it is no {self._kind} archive, or damaged: {error}") from error
                finally:
                    if self._opened is None:
                        file.close()
            return self._opened

    async def _read_index(self, file: FileReader) -> _OpenArchive:
        beginning = await file.read(0, _BEGINNING)
        self._check_kind(beginning)
        limiter = trio.CapacityLimiter(_THREADS)
        if self._kind == "zip":
            index = await _in_library(lambda read_at: index_zip(read_at, file.size), file.read)
            return _OpenZip(file, index, limiter)
        if not beginning.startswith(_GZIP):
            index = await _in_library(lambda read_at: self._index_tar(read_at, file.size), file.read)
            return _OpenTar(file, index)
        _log.info("%s: all of it is read once, to know what is in it: %d bytes", self._source, file.size)
        content = Inflated(file, name=self._source, window_bits=GZIP, states=_STATES_OF_TAR, limiter=limiter)
        index = await _in_library(lambda read_at: self._index_tar(read_at, None), content.read)
        return _OpenTar(file, index, content)

    def _index_tar(self, read_at: Callable[[int, int], bytes], size: int | None) -> Index:
        return index_tar(read_at, size, keep_small=size is None, warn=self._warn)

    def _warn(self, text: str) -> None:
        _log.warning("%s: %s", self._source, text)

    def _check_kind(self, beginning: bytes) -> None:
        """Raises `UnknownSource` for an archive of another kind, with what to do."""
        for magic, program in _OTHER_COMPRESSION.items():
            if beginning.startswith(magic):
                raise UnknownSource(
                    self._source,
                    f"no part of it can be read without all that comes before: unpack it with {program}, or "
                    "compress it with gzip",
                )
        if self._kind == "zip" and (beginning.startswith(_GZIP) or beginning[_TAR_MAGIC_AT:].startswith(_TAR_MAGIC)):
            raise UnknownSource(self._source, "it is a tar archive: write tar:: in place of zip::")
        if self._kind == "tar" and beginning.startswith(_ZIP_HEADER):
            raise UnknownSource(self._source, "it is a zip archive: write zip:: in place of tar::")


async def _in_library(
    make_index: Callable[[Callable[[int, int], bytes]], Index], read: Callable[[int, int], Awaitable[bytes]]
) -> Index:
    """What `make_index` makes in a thread of what `read` gives; cancelled where it reads."""
    return await trio.to_thread.run_sync(
        make_index, lambda offset, length: trio.from_thread.run(read, offset, length), limiter=trio.CapacityLimiter(1)
    )


def _member(index: Index, place: str, path: str) -> Member:
    try:
        return index.files[place]
    except KeyError:
        if place in index.directories:
            raise NotRegularFile(path, "a directory") from None
        raise PathNotFound(path) from None


def _file_info(path: str, member: Member) -> FileInfo:
    return FileInfo(path, False, member.size, member.modified_at)


class _OpenArchive:
    """An archive, and what is in it."""

    def __init__(self, file: FileReader, index: Index) -> None:
        self._file = file
        self.index = index

    async def open(self, member: Member, path: str) -> FileReader:
        """Raises `UnsupportedByDriver` for what cannot be read."""
        if member.refusal:
            raise UnsupportedByDriver(path, member.refusal)
        return await self._open(member, path)

    async def _open(self, member: Member, path: str) -> FileReader:
        raise NotImplementedError

    def close(self) -> None:
        self._file.close()


class _OpenTar(_OpenArchive):
    def __init__(self, file: FileReader, index: Index, content: Inflated | None = None) -> None:
        super().__init__(file, index)
        self._content = content

    async def _open(self, member: Member, path: str) -> FileReader:
        await trio.lowlevel.checkpoint()
        if self._content is not None:
            return _InflatedReader(self._content, path, member.place, member.size)
        return _StoredReader(self._file, path, member.place, member.size)


class _OpenZip(_OpenArchive):
    def __init__(self, file: FileReader, index: Index, limiter: trio.CapacityLimiter) -> None:
        super().__init__(file, index)
        self._limiter = limiter
        # What was used last is the last.
        self._inflated: dict[int, Inflated] = {}

    async def _open(self, member: Member, path: str) -> FileReader:
        content = self._inflated.pop(member.place, None)
        if content is None:
            stored = _StoredReader(self._file, path, await self._place_of_content(member, path), member.stored_size)
            if member.method == zipfile.ZIP_STORED:
                return stored
            content = Inflated(stored, name=path, window_bits=RAW, states=_STATES_IN_ZIP, limiter=self._limiter)
        self._inflated[member.place] = content
        if len(self._inflated) > _INFLATED_FILES:
            del self._inflated[next(iter(self._inflated))]
        return _InflatedReader(content, path, 0, member.size)

    async def _place_of_content(self, member: Member, path: str) -> int:
        """After the file's own header, which can be longer than the directory says."""
        header = await self._file.read(member.place, _ZIP_HEADER_SIZE)
        if len(header) < _ZIP_HEADER_SIZE or not header.startswith(_ZIP_HEADER):
            raise BackendFailure(path, f"the archive is damaged at byte {member.place}")
        lengths = header[_ZIP_LENGTHS:_ZIP_HEADER_SIZE]
        return (
            member.place
            + _ZIP_HEADER_SIZE
            + int.from_bytes(lengths[:2], "little")
            + int.from_bytes(lengths[2:], "little")
        )


class _StoredReader(FileReader):
    """A part of the archive, as it is."""

    def __init__(self, file: FileReader, path: str, place: int, size: int) -> None:
        self._file = file
        self._path = path
        self._place = place
        self.size = size

    def read_nowait(self, offset: int, length: int) -> memoryview | bytes | None:
        length = clamp(self._path, offset, length, self.size)
        if not length:
            return b""
        found = self._file.read_nowait(self._place + offset, length)
        return found if found is None or len(found) == length else None

    async def read(self, offset: int, length: int) -> bytes:
        length = clamp(self._path, offset, length, self.size)
        return check_length(self._path, await self._file.read(self._place + offset, length), length)

    def close(self) -> None:
        """The archive stays open for others."""


class _InflatedReader(FileReader):
    """A part of decompressed content."""

    def __init__(self, content: Inflated, path: str, place: int, size: int) -> None:
        self._content = content
        self._path = path
        self._place = place
        self.size = size

    def read_nowait(self, offset: int, length: int) -> memoryview | bytes | None:
        return None if clamp(self._path, offset, length, self.size) else b""

    async def read(self, offset: int, length: int) -> bytes:
        length = clamp(self._path, offset, length, self.size)
        if not length:
            return b""
        return check_length(self._path, await self._content.read(self._place + offset, length), length)

    def close(self) -> None:
        """Nothing is open for it alone."""
