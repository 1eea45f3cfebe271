"""One blob in a file of the content cache: its bytes, then a checksum of each block of them, then what all that is.

    content | CRC-32 of every block, 4 bytes each | footer

The footer comes last, so a file that was not finished has none. Nothing is made durable: what a power cut leaves of a
file does not fit its checksums. These are for disks and file systems that fail; that the content is what the digest
says is verified when it is written, by SHA-256. A file is only ever added to, and gets its name when it is complete.
"""

from __future__ import annotations

import hashlib
import os
import struct
import zlib
from array import array
from dataclasses import dataclass
from typing import Final

from layerfs.digest import Digest
from layerfs.driver.local_reader import CachedReads
from layerfs.driver.openat import Descriptor

#: Bytes that one checksum is of. With CRC-32 a GiB takes 0.2 s to check, and its checksums 64 KiB of memory.
BLOCK: Final = 64 << 10

_MAGIC: Final = b"layerfs\x01"
#: The magic, the size of the content and of a block, the digest as text, and the CRC-32 of the checksums and of these.
_FOOTER: Final = struct.Struct("<8sQI140sI")

#: Bytes that are read at a time where everything is read.
_CHUNK: Final = 1 << 20


class ContentDamaged(Exception):
    """A file is not what was written into it: it is to be dropped, and fetched again."""


class ContentMismatch(Exception):
    """What was fetched is not what it should be; `actual` is the digest that it has."""

    def __init__(self, actual: Digest) -> None:
        super().__init__(f"it is {actual}")
        self.actual = actual


@dataclass(frozen=True, slots=True)
class CompleteFile:
    """A file that was found complete; `checksums` are those of its blocks."""

    descriptor: Descriptor
    size: int
    checksums: array[int]

    def read(self, offset: int, length: int) -> bytes:
        """The bytes, checked. Blocks. Raises `ContentDamaged`, `OSError`."""
        start, end = self._around(offset, length)
        with self.descriptor as number:
            return bytes(self._checked(_read(number, start, end - start), start, offset, length))

    def read_cached(self, cached: CachedReads, offset: int, length: int) -> memoryview | None:
        """The bytes, checked, if they are in memory; in the buffer of `cached`."""
        start, end = self._around(offset, length)
        content = cached.read(self.descriptor.number, start, end - start)
        return None if content is None else self._checked(content, start, offset, length)

    def _around(self, offset: int, length: int) -> tuple[int, int]:
        """Whole blocks that hold these bytes."""
        return offset // BLOCK * BLOCK, min(-(-(offset + length) // BLOCK) * BLOCK, self.size)

    def _checked(self, content: bytes | memoryview, start: int, offset: int, length: int) -> memoryview:
        view = memoryview(content)
        for place in range(0, len(view), BLOCK):
            if zlib.crc32(view[place : place + BLOCK]) != self.checksums[(start + place) // BLOCK]:
                raise ContentDamaged(f"the bytes from {start + place} on")
        return view[offset - start : offset - start + length]


def open_complete(descriptor: Descriptor, digest: Digest) -> CompleteFile:
    """What the file is, by its footer. Raises `ContentDamaged`, `OSError`."""
    number = descriptor.number
    file_size = os.fstat(number).st_size
    at = file_size - _FOOTER.size
    if at < 0:
        raise ContentDamaged("it has no footer")
    footer = _read(number, at, _FOOTER.size)
    magic, size, block, text, checksum = _FOOTER.unpack(footer)
    count = -(-size // BLOCK)
    if magic != _MAGIC or block != BLOCK or text.rstrip(b"\0") != str(digest).encode() or at != size + 4 * count:
        raise ContentDamaged("its footer is of something else")
    table = _read(number, size, 4 * count)
    if zlib.crc32(footer[:-4], zlib.crc32(table)) != checksum:
        raise ContentDamaged("its checksums have changed")
    return CompleteFile(descriptor, size, _unpacked(table))


class GrowingFile:
    """A file that is being written from the beginning; what another process has left of it is gone on with.

    All methods but `read` are for one thread at a time, and block.
    """

    def __init__(self, descriptor: Descriptor, digest: Digest, size: int) -> None:
        self.descriptor = descriptor
        self.digest = digest
        #: What the content will have, and what it has so far; and where our own bytes begin.
        self.size = size
        self.written = 0
        self.resumed_at = 0
        self._checksums: array[int] = array("I")
        self._hash = hashlib.new(digest.algorithm)

    def resume_some(self) -> bool:
        """Takes in the next bytes that are there already; whether there may be more of them."""
        with self.descriptor as number:
            there = min(os.fstat(number).st_size, self.size) // BLOCK * BLOCK
            chunk = os.pread(number, min(_CHUNK, there - self.written), self.written) if there > self.written else b""
            chunk = chunk[: len(chunk) // BLOCK * BLOCK]
            if not chunk:
                os.ftruncate(number, self.written)
                self.resumed_at = self.written
                return False
        self._take(chunk)
        return True

    def write(self, content: bytes | memoryview) -> None:
        """Adds bytes."""
        view = memoryview(content)
        with self.descriptor as number:
            place = self.written
            while view:
                count = os.pwrite(number, view, place)
                view, place = view[count:], place + count
        self._take(content)

    def _take(self, content: bytes | memoryview) -> None:
        view = memoryview(content)
        self._hash.update(view)
        while view:
            begun = self.written % BLOCK
            piece = view[: BLOCK - begun]
            if begun:
                self._checksums[-1] = zlib.crc32(piece, self._checksums[-1])
            else:
                self._checksums.append(zlib.crc32(piece))
            self.written += len(piece)
            view = view[len(piece) :]

    def read(self, offset: int, length: int) -> bytes:
        """Bytes that were written here, for whoever need not have them verified."""
        with self.descriptor as number:
            return _read(number, offset, length)

    def start_again(self) -> None:
        """Forgets everything."""
        with self.descriptor as number:
            os.ftruncate(number, 0)
        self.written = self.resumed_at = 0
        self._checksums = array("I")
        self._hash = hashlib.new(self.digest.algorithm)

    def complete(self) -> CompleteFile:
        """Verifies the content and adds what makes the file a complete one. Raises `ContentMismatch`, `OSError`."""
        actual = Digest(self.digest.algorithm, self._hash.hexdigest())
        if actual != self.digest or self.written != self.size:
            raise ContentMismatch(actual)
        table = _packed(self._checksums)
        fields = _FOOTER.pack(_MAGIC, self.size, BLOCK, str(self.digest).encode(), 0)[:-4]
        footer = fields + struct.pack("<I", zlib.crc32(fields, zlib.crc32(table)))
        with self.descriptor as number:
            view = memoryview(table + footer)
            place = self.size
            while view:
                count = os.pwrite(number, view, place)
                view, place = view[count:], place + count
        return CompleteFile(self.descriptor, self.size, self._checksums)


def file_size(size: int) -> int:
    """Bytes of a complete file with `size` bytes of content."""
    return size + 4 * -(-size // BLOCK) + _FOOTER.size


def _read(number: int, offset: int, length: int) -> bytes:
    """Exactly these bytes. Raises `ContentDamaged` if the file is shorter."""
    content = os.pread(number, length, offset)
    while len(content) < length:
        more = os.pread(number, length - len(content), offset + len(content))
        if not more:
            raise ContentDamaged("it is shorter than it was")
        content += more
    return content


def _packed(checksums: array[int]) -> bytes:
    return struct.pack(f"<{len(checksums)}I", *checksums)


def _unpacked(table: bytes) -> array[int]:
    return array("I", struct.unpack(f"<{len(table) // 4}I", table))
