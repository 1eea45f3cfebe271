"""What an archive has at which path, and where in it: made once by reading a zip's directory, or a whole tar."""

from __future__ import annotations

import calendar
import errno
import stat
import struct
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, Final, Protocol, cast

#: Content that is so small is kept from when a compressed tar was read: links, of which listings read thousands.
_SMALL: Final = 512

#: What a library may want of an archive by one read: the extended header of a tar, the directory of a zip.
_MOST_OF_TAR: Final = 16 << 20
_MOST_OF_ZIP: Final = 512 << 20

#: What is read at once, where less was wanted.
_LEAST_READ: Final = 64 << 10

_TAR_BLOCK: Final = 512

#: The field of a zip's entry that has its time in UTC, and the bit in it that says so.
_EXTENDED_TIME: Final = 0x5455
_HAS_MODIFIED: Final = 1

_ENCRYPTED: Final = 1


class InvalidArchive(ValueError):
    """It is no archive of that kind, or damaged."""


@dataclass(frozen=True, slots=True)
class Member:
    """A file in an archive. `modified_at` in nanoseconds since 1970, 0 if unknown.

    `place` is where its content is in a tar, and its header in a zip; `stored_size` how long what is stored of it is
    there, packed by `method`, a zip's number. `refusal` is why it cannot be read, if so.
    """

    size: int
    modified_at: int
    place: int
    stored_size: int
    method: int = zipfile.ZIP_STORED
    content: bytes | None = None
    refusal: str = ""


class Index:
    """The files and directories of an archive by their absolute paths; of what is there twice, the last."""

    def __init__(self) -> None:
        self.files: dict[str, Member] = {}
        self.directories: dict[str, dict[str, None]] = {"/": {}}

    def add(self, name: str, member: Member | None) -> None:
        """Takes in a file, or a directory if `member` is None; both with the directories above."""
        path = archive_path(name)
        if path is None or path == "/":
            return
        if member is None:
            self._add_directory(path)
            return
        if path not in self.directories:
            self._add_to_parent(path)
            self.files[path] = member

    def remove(self, name: str) -> None:
        """Forgets a file, in whose place something else is that is none."""
        path = archive_path(name)
        if path is not None and self.files.pop(path, None) is not None:
            parent, _, last = path.rpartition("/")
            del self.directories[parent or "/"][last]

    def find(self, name: str) -> Member | None:
        path = archive_path(name)
        return self.files.get(path) if path else None

    def _add_directory(self, path: str) -> None:
        if path not in self.directories:
            self.files.pop(path, None)
            self.directories[path] = {}
            self._add_to_parent(path)

    def _add_to_parent(self, path: str) -> None:
        parent, _, last = path.rpartition("/")
        self._add_directory(parent or "/")
        self.directories[parent or "/"][last] = None


def archive_path(name: str) -> str | None:
    """The absolute path for a name in an archive; None for one that leads out of it."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    return None if ".." in parts or "\0" in name else "/" + "/".join(parts)


class ReadAt(Protocol):
    """Blocks; fewer bytes only at the end."""

    def __call__(self, offset: int, length: int, /) -> bytes: ...


class BoundedFile:
    """What archive libraries read: a file that is asked for by `read_at`, and never for more than `limit` at once."""

    def __init__(self, read_at: ReadAt, *, size: int | None, limit: int) -> None:
        self._read_at = read_at
        self._size = size
        self._limit = limit
        self._position = 0
        self._part_at = 0
        self._part = b""

    def read(self, count: int = -1) -> bytes:
        if count < 0:
            count = max(0, (self._size or 0) - self._position)
        if count > self._limit:
            raise InvalidArchive(f"a header says that it is {count} bytes long")
        at = self._position - self._part_at
        if not 0 <= at <= at + count <= len(self._part):
            self._part = self._read_at(self._position, max(count, _LEAST_READ))
            self._part_at, at = self._position, 0
        content = self._part[at : at + count]
        self._position += len(content)
        return content

    def seek(self, offset: int, whence: int = 0) -> int:
        base = {0: 0, 1: self._position, 2: self._size or 0}[whence]
        if base + offset < 0:
            # zipfile looks for a zip64 trailer before the beginning of the smallest archives, and expects this.
            raise OSError(errno.EINVAL, "a header leads to before the beginning")
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def seekable(self) -> bool:
        return True


# --- zip ---------------------------------------------------------------------------------------------------------


def index_zip(read_at: ReadAt, size: int) -> Index:
    """By the directory at the end of a zip archive. Blocks. Raises `InvalidArchive`."""
    file = BoundedFile(read_at, size=size, limit=_MOST_OF_ZIP)
    try:
        with zipfile.ZipFile(cast(BinaryIO, file)) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, EOFError, LookupError, OSError, ValueError, struct.error) as error:
        raise InvalidArchive(f"{error}") from error
    index = Index()
    for entry in entries:
        mode = entry.external_attr >> 16
        if entry.is_dir():
            index.add(entry.filename, None)
        elif not stat.S_IFMT(mode) or stat.S_ISREG(mode):
            index.add(entry.filename, _zip_member(entry))
    return index


def _zip_member(entry: zipfile.ZipInfo) -> Member:
    refusal = ""
    if entry.flag_bits & _ENCRYPTED:
        refusal = "it is encrypted"
    elif entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        refusal = f"it is compressed by method {entry.compress_type}, of which no part can be read without the rest"
    return Member(
        size=entry.file_size,
        modified_at=_zip_time(entry),
        place=entry.header_offset,
        stored_size=entry.compress_size,
        method=entry.compress_type,
        refusal=refusal,
    )


def _zip_time(entry: zipfile.ZipInfo) -> int:
    """In UTC where the entry has it so; else by the clock of whoever packed it, whose time zone nobody knows."""
    extra = entry.extra
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<HH", extra)
        field = extra[4 : 4 + length]
        if kind == _EXTENDED_TIME and len(field) >= 5 and field[0] & _HAS_MODIFIED:
            return int(struct.unpack_from("<i", field, 1)[0]) * 1_000_000_000
        extra = extra[4 + length :]
    try:
        return int(time.mktime((*entry.date_time, 0, 0, -1))) * 1_000_000_000
    except (OverflowError, ValueError):
        return calendar.timegm((1980, 1, 1, 0, 0, 0)) * 1_000_000_000


# --- tar ---------------------------------------------------------------------------------------------------------


def index_tar(read_at: ReadAt, size: int | None, *, keep_small: bool, warn: Callable[[str], None]) -> Index:
    """By all headers of a tar archive, from its beginning to its end; `size` is None where it is not known.

    With `keep_small` members keep their content if it is small. `warn` is told of what may be damage, but need not.
    Blocks. Raises `InvalidArchive`.
    """
    file = BoundedFile(read_at, size=size, limit=_MOST_OF_TAR)
    index = Index()
    try:
        with tarfile.TarFile(fileobj=cast(BinaryIO, file)) as archive:
            for entry in _entries(archive):
                _add_tar_entry(index, entry, file if keep_small else None)
            end = archive.offset
    except (tarfile.TarError, EOFError, LookupError, OSError, ValueError, OverflowError) as error:
        raise InvalidArchive(f"{error}") from error
    # tarfile takes what is no header for the end, and so would leave out all that comes after it.
    block = read_at(end, _TAR_BLOCK)
    if block.strip(b"\0"):
        raise InvalidArchive(f"there is no header at byte {end}")
    if len(block) < _TAR_BLOCK:
        warn("it has no end marker: it may have been cut short")
    return index


def _entries(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    # It would keep all of them.
    kept: list[Any] = archive.members  # type: ignore[attr-defined]
    while (entry := archive.next()) is not None:
        kept.clear()
        yield entry


def _add_tar_entry(index: Index, entry: tarfile.TarInfo, file: BoundedFile | None) -> None:
    if entry.isdir():
        index.add(entry.name, None)
    elif entry.islnk():
        # Another name of a file that came before.
        original = index.find(entry.linkname)
        if original is not None:
            index.add(entry.name, original)
    elif entry.isreg() or entry.issparse():
        index.add(entry.name, _tar_member(entry, file))
    else:
        index.remove(entry.name)


def _tar_member(entry: tarfile.TarInfo, file: BoundedFile | None) -> Member:
    content = None
    if file is not None and entry.size <= _SMALL and not entry.issparse():
        position = file.tell()
        file.seek(entry.offset_data)
        content = file.read(entry.size)
        file.seek(position)
        if len(content) != entry.size:
            raise InvalidArchive("it is cut short")
    return Member(
        size=entry.size,
        modified_at=int(entry.mtime * 1e9),
        place=entry.offset_data,
        stored_size=entry.size,
        content=content,
        refusal="it was packed with --sparse" if entry.issparse() else "",
    )
