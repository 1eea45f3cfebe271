"""`TarReader`: the entries of a tar archive that arrives in pieces, as docker's Go package of 2015 read them. No I/O.

TarSums were made by that package (`archive/tar` of Go 1.3 with sparse files added, vendored by docker and by
distribution 2.0.0), and readers of tar differ: in what they make of a slash, a NUL, a number that is no number, a
global header. So the 512-byte headers are read here by its rules, and what later readers do better does not count:

* a pax header holds for whatever header follows, be it a GNU long name or another pax header;
* `size` of a pax header changes the size, but not how much is read: unless both agree there is no TarSum;
* every kind of entry has content if its header gives a size; nothing but `S` and pax records make a file sparse;
* an archive may end without padding, or after one block of zeros or none; what follows the end marker is not read.

Where that package crashed, looped, stopped halfway without an error, or left the result to chance (the order of a Go
map, the size of a buffer), there is no sum to agree with: such an archive is refused.

What memory takes: one header, one extended header (`EXTENDED_LIMIT`) and one sparse map (`FRAGMENT_LIMIT`), whatever
the archive is like. Content is handed on in the buffers that it came in.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Final, Protocol, TypeAlias, TypeVar

from layerfs.errors import InvalidTar, TruncatedTar

#: Bytes of a pax header or a GNU long name. Names have at most 4 KiB on Linux and all xattrs of a file 64 KiB.
EXTENDED_LIMIT: Final = 1 << 20

#: Pieces of data in one sparse file; 16 bytes of memory each.
FRAGMENT_LIMIT: Final = 1 << 18

#: Entries of one archive; whoever sums them up keeps something of each.
ENTRY_LIMIT: Final = 1 << 21

#: Bytes of holes in one archive, about half a minute of hashing: a few hundred bytes can ask for 2^63.
HOLES_LIMIT: Final = 16 << 30

_BLOCK: Final = 512
_END: Final = bytes(_BLOCK)
_ZEROS: Final = memoryview(bytes(1 << 20))

_COMPRESSED: Final = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_XATTR: Final = b"SCHILY.xattr."
_SPARSE: Final = b"GNU.sparse."

_OCTAL = re.compile(rb"[0-7]+")
_DECIMAL = re.compile(rb"([+-]?)0*([0-9]{1,19})")

_T = TypeVar("_T")


@dataclass(slots=True)
class Header:
    """An entry, after extended headers have replaced what they replace. `size` is that of the expanded content.

    `stored` is how many bytes the archive has for it. For a sparse file, `map_size` of them are its map, and
    `fragments` says where the others belong: offset and length in turn.
    """

    name: bytes
    mode: int
    uid: int
    gid: int
    size: int
    mtime: int
    typeflag: bytes
    linkname: bytes
    uname: bytes = b""
    gname: bytes = b""
    devmajor: int = 0
    devminor: int = 0
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    stored: int = 0
    map_size: int = 0
    fragments: array[int] | None = None


class EntryVisitor(Protocol):
    """Is told of each entry: once `begin`, `content` with all bytes in order, once `end`."""

    def begin(self, header: Header) -> None: ...

    def content(self, part: memoryview) -> None:
        """`part` is valid during the call only."""

    def end(self) -> None: ...


class TarReader:
    """Tells `visitor` of the entries as the archive is fed to it.

    `feed` and `close` raise `InvalidTar` as soon as it is sure, and the same again ever after.
    """

    def __init__(self, visitor: EntryVisitor) -> None:
        self._visitor = visitor
        self._position = 0
        self._header_position = 0
        self._holes = 0
        self._failure: InvalidTar | None = None
        self._steps = self._read_archive()
        self._wanted: _Wanted | None = next(self._steps)

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """The next bytes of the archive, as many as there are. Those after the end marker are ignored."""
        self._check()
        view = memoryview(data)
        while view and self._wanted is not None:
            taken = self._wanted.take(view)
            self._position += taken
            view = view[taken:]
            if not self._wanted.missing:
                self._go_on()

    def close(self) -> None:
        """There are no more bytes. Raises `TruncatedTar` if there should be."""
        self._check()
        while self._wanted is not None:
            self._go_on()

    def _check(self) -> None:
        if self._failure is not None:
            # Without the traceback of the last time, which would grow with each.
            raise self._failure.with_traceback(None)

    def _go_on(self) -> None:
        self._wanted = None
        try:
            self._wanted = next(self._steps)
        except StopIteration:
            return
        except _Truncated as cause:
            self._failure = TruncatedTar(self._position, str(cause))
            raise self._failure from cause
        except _Malformed as cause:
            self._failure = InvalidTar(self._header_position, str(cause))
            raise self._failure from cause
        except BaseException:
            # The steps cannot be taken up again, and what was read so far must not pass for the whole archive.
            self._failure = InvalidTar(self._header_position, "reading it was broken off")
            raise

    # --- steps: generators that yield what they wait for ------------------------------------------------------------

    def _read_archive(self) -> _Steps[None]:
        count = 0
        while (header := (yield from self._next_entry())) is not None:
            count += 1
            if count > ENTRY_LIMIT:
                raise _Malformed(f"more than {ENTRY_LIMIT} entries")
            _check_entry(header)
            self._visitor.begin(header)
            rest = yield from self._read_content(header)
            self._visitor.end()
            yield from _skip(rest + -header.stored % _BLOCK)

    def _next_entry(self) -> _Steps[Header | None]:
        """The next entry, with all that extended headers say of it; None at the end of the archive."""
        header = yield from self._next_header()
        if header is None:
            return None
        names: dict[bytes, bytes] = {}
        while header.typeflag in b"LK":
            # Of two the first counts: the package let each change what the rest of the archive had given.
            names.setdefault(header.typeflag, _c_string((yield from _read_extended(header))))
            header = _required((yield from self._next_header()))
        if header.typeflag == b"x":
            records = _parse_records((yield from _read_extended(header)))
            header = _required((yield from self._next_header()))
            _merge(header, records)
            yield from _apply_sparse_records(header, records)
        header.name = names.get(b"L", header.name)
        header.linkname = names.get(b"K", header.linkname)
        return header

    def _next_header(self) -> _Steps[Header | None]:
        self._header_position = self._position
        block = yield from _read_block()
        if not block:
            return None
        if block == _END:
            if (yield from _read_block()) not in (b"", _END):
                raise _Malformed("one block of zeros, where the archive should end, and then more")
            return None
        try:
            header = _parse_header(block)
        except _Malformed as cause:
            raise _Malformed(f"{cause}{_suspicion(block)}") from cause
        if header.typeflag == b"S":
            header.size = _number(block[483:495])
            header.fragments = yield from _read_old_sparse_map(block)
        return header

    def _read_content(self, header: Header) -> _Steps[int]:
        """Hands on the content; returns how many of the stored bytes are no part of it."""
        if header.fragments is not None:
            return (yield from self._read_sparse(header, header.fragments))
        if header.size != header.stored:
            raise _Malformed(f"its size is {header.size} by a pax header, {header.stored} by its own")
        yield from _pour(header.stored, self._visitor.content)
        return 0

    def _read_sparse(self, header: Header, fragments: array[int]) -> _Steps[int]:
        """Goes through the map as the package did, be it good or bad, where that came to an end."""
        stored, position = header.stored - header.map_size, 0
        for offset, length in zip(fragments[::2], fragments[1::2], strict=True):
            if position < offset:
                position = self._fill_hole(position, offset, header.size)
            missing = offset + length - position
            available = min(missing, stored)
            if available < 0 or position + available > header.size:
                raise _Malformed("fragments that overlap or are beyond its size in its sparse map")
            yield from _pour(available, self._visitor.content)
            position, stored = position + available, stored - available
            if missing == 0 or available < missing:
                if stored or position < header.size:
                    # The package got no bytes and no error here, and took that for the end of the whole archive.
                    raise _Malformed("an empty fragment, or one without data, in its sparse map")
                break
        if position < header.size:
            self._fill_hole(position, header.size, header.size)
        return stored

    def _fill_hole(self, start: int, end: int, size: int) -> int:
        if end > size:
            raise _Malformed("a hole beyond its size in its sparse map")
        self._holes += end - start
        if self._holes > HOLES_LIMIT:
            raise _Malformed(f"more than {HOLES_LIMIT} bytes of holes up to here")
        for position in range(start, end, len(_ZEROS)):
            self._visitor.content(_ZEROS[: end - position])
        return end


class _Malformed(Exception):
    """Why the entry cannot be; `TarReader` knows where it is."""


class _Truncated(_Malformed):
    """The archive ends too early."""


class _Wanted:
    """Bytes that a step waits for. They are given to `sink` as they come, or gathered if there is none."""

    __slots__ = ("gathered", "missing", "sink")

    def __init__(self, size: int, sink: Callable[[memoryview], object] | None = None) -> None:
        self.missing = size
        self.gathered = bytearray()
        self.sink = sink or self.gathered.extend

    def take(self, view: memoryview) -> int:
        part = view[: self.missing]
        self.missing -= len(part)
        self.sink(part)
        return len(part)


_Steps: TypeAlias = Generator[_Wanted, None, _T]


def _read_block() -> _Steps[bytes]:
    """A block; nothing at the end of the archive."""
    wanted = _Wanted(_BLOCK)
    yield wanted
    block = bytes(wanted.gathered)
    if 0 < len(block) < _BLOCK:
        raise _Truncated(f"{len(block)} bytes where a header of {_BLOCK} should be{_suspicion(block)}")
    return block


def _read_extended(header: Header) -> _Steps[bytes]:
    """All of the content of an extended header."""
    if not 0 <= header.stored <= EXTENDED_LIMIT:
        raise _Malformed(f"an extended header of {header.stored} bytes; at most {EXTENDED_LIMIT} are read")
    wanted = _Wanted(header.stored)
    if header.stored:
        yield wanted
    if wanted.missing:
        raise _Truncated(f"{wanted.missing} bytes of an extended header are missing")
    yield from _skip(-header.stored % _BLOCK)
    return bytes(wanted.gathered)


def _pour(size: int, sink: Callable[[memoryview], object]) -> _Steps[None]:
    if size:
        wanted = _Wanted(size, sink)
        yield wanted
        if wanted.missing:
            raise _Truncated(f"{wanted.missing} bytes of content are missing")


def _skip(size: int) -> _Steps[None]:
    """Goes past bytes that nobody wants. It is no error if the archive ends before them: that was so in Go too."""
    if size:
        yield _Wanted(size, lambda _: None)


def _required(header: Header | None) -> Header:
    if header is None:
        raise _Malformed("an extended header with no entry after it")
    return header


# --- headers -------------------------------------------------------------------------------------------------------


def _parse_header(block: bytes) -> Header:
    _check_checksum(block)
    header = Header(
        name=_c_string(block[:100]),
        mode=_number(block[100:108]),
        uid=_number(block[108:116]),
        gid=_number(block[116:124]),
        size=_number(block[124:136]),
        mtime=_number(block[136:148]),
        typeflag=block[156:157],
        linkname=_c_string(block[157:257]),
    )
    header.stored = header.size
    if block.startswith((b"ustar\0", b"ustar  \0"), 257):
        _parse_ustar(header, block)
    return header


def _parse_ustar(header: Header, block: bytes) -> None:
    """The fields that the first tar did not have. In GNU's own format, too, the package took a prefix from here."""
    header.uname = _c_string(block[265:297])
    header.gname = _c_string(block[297:329])
    if header.typeflag in b"34":
        header.devmajor = _number(block[329:337])
        header.devminor = _number(block[337:345])
    is_star = block.startswith(b"ustar\0", 257) and block.endswith(b"tar\0")
    if is_star:
        # Times of no use to the sum, but an archive in which they are no numbers was refused.
        _number(block[476:488])
        _number(block[488:500])
    prefix = _c_string(block[345 : 476 if is_star else 500])
    if prefix:
        header.name = prefix + b"/" + header.name


def _check_checksum(block: bytes) -> None:
    """The sum of all bytes, with spaces for the sum itself; some programs of old took bytes for signed."""
    others = block[:148] + b" " * 8 + block[156:]
    unsigned = sum(others)
    given = _number(block[148:156])
    if given == unsigned:
        return
    if given != unsigned - 256 * sum(byte > 127 for byte in others):
        raise _Malformed("no tar header: its checksum is wrong")


def _check_entry(header: Header) -> None:
    """What no archive with a sum can have: the package wrote again what it read, and gave up where it could not."""
    if header.size < 0 or header.stored < 0:
        raise _Malformed("a negative size")
    if header.mode >= 8**8:
        raise _Malformed(f"mode {header.mode:o}, which has more than 8 octal digits")


def _suspicion(block: bytes) -> str:
    for magic, name in _COMPRESSED.items():
        if block.startswith(magic):
            return f"; it looks compressed by {name}, and TarSums are of archives that are not"
    return ""


def _c_string(text: bytes) -> bytes:
    return text.partition(b"\0")[0]


def _number(text: bytes) -> int:
    """A number of a header, octal or, if the first bit is set, binary. A signed one is cut to the 64 bits of Go's."""
    if text[0] & 0x80:
        value = int.from_bytes(text, "big") & ~(0x80 << 8 * (len(text) - 1))
        return (value + 2**63) % 2**64 - 2**63
    digits = _c_string(text.strip(b" \0"))
    if not digits:
        return 0
    if not _OCTAL.fullmatch(digits):
        raise _Malformed(f"{digits!r} where an octal number should be")
    return int(digits, 8)


def _decimal(text: bytes) -> int:
    """A number of a pax header or of a sparse map there: with any zeros before it, and of 64 bits."""
    match = _DECIMAL.fullmatch(text)
    value = int(match[1] + match[2]) if match else 2**63
    if not -(2**63) <= value < 2**63:
        raise _Malformed(f"{text[:40]!r} where a decimal number should be")
    return value


# --- pax records ---------------------------------------------------------------------------------------------------


def _parse_records(text: bytes) -> dict[bytes, bytes]:
    """The records of a pax header. What ends one is not looked at, only where."""
    records: dict[bytes, bytes] = {}
    numbers: list[bytes] = []
    start = 0
    while start < len(text):
        space = text.find(b" ", start)
        end = start + _decimal(text[start:space]) if space > 0 else 0
        if not space + 2 <= end <= len(text):
            raise _Malformed("a record in its pax header has no length, or a wrong one")
        key, equals, value = text[space + 1 : end - 1].partition(b"=")
        if not equals:
            raise _Malformed("a record in its pax header has no '='")
        if key in (b"GNU.sparse.offset", b"GNU.sparse.numbytes"):
            numbers.append(value)
        elif key in _FIELDS or key.startswith((_XATTR, _SPARSE)):
            records[key] = value
        start = end
    if numbers:
        # GNU's format 0.0 has a record for each number, 0.1 one for all.
        records[_SPARSE + b"map"] = b",".join(numbers)
    return records


def _time(text: bytes) -> int:
    """The whole seconds of a pax time; what is after the point is read as a number too, and may have a sign."""
    seconds, point, fraction = text.partition(b".")
    if not point:
        return _decimal(seconds)
    return _decimal(seconds) + _decimal(fraction[:9].ljust(9, b"0")) // 10**9


def _as_it_is(text: bytes) -> bytes:
    return text


#: What a pax record replaces, and how it is read. Times that are in no sum are read because they can be malformed.
_FIELDS: Final[dict[bytes, tuple[str, Callable[[bytes], bytes | int]]]] = {
    b"path": ("name", _as_it_is),
    b"linkpath": ("linkname", _as_it_is),
    b"uname": ("uname", _as_it_is),
    b"gname": ("gname", _as_it_is),
    b"uid": ("uid", _decimal),
    b"gid": ("gid", _decimal),
    b"size": ("size", _decimal),
    b"mtime": ("mtime", _time),
    b"atime": ("", _time),
    b"ctime": ("", _time),
}


def _merge(header: Header, records: dict[bytes, bytes]) -> None:
    size = header.size
    replacing = {key: value for key, value in records.items() if not key.startswith(_SPARSE)}
    for key, value in replacing.items():
        if key.startswith(_XATTR):
            header.xattrs[key.removeprefix(_XATTR)] = value
            continue
        name, read = _FIELDS[key]
        try:
            replacement = read(value)
        except _Malformed:
            # The package stopped here without an error, having merged those records that chance had put first.
            if len(replacing) > 1:
                raise
            return
        if name:
            setattr(header, name, replacement)
    if header.fragments is not None and header.size != size:
        # Of a file that is not sparse this is found when its content is due; of this one it would not be.
        raise _Malformed(f"its size is {header.size} by a pax header, {size} by its sparse map")


# --- sparse files --------------------------------------------------------------------------------------------------


def _read_old_sparse_map(block: bytes) -> _Steps[array[int]]:
    """GNU's first format: four fragments in the header itself, 21 in each block that follows as long as they say so."""
    numbers = array("q")
    _add_fragments(numbers, block[386:482])
    is_extended = block[482] != 0
    while is_extended:
        block = yield from _read_block()
        if not block:
            raise _Truncated("a sparse map is missing")
        _add_fragments(numbers, block[:504])
        is_extended = block[504] != 0
    return numbers


def _add_fragments(numbers: array[int], fields: bytes) -> None:
    for start in range(0, len(fields), 24):
        offset, length = _number(fields[start : start + 12]), _number(fields[start + 12 : start + 24])
        if offset == 0 and length == 0:
            break
        numbers.extend((offset, length))
    _check_fragment_count(len(numbers) // 2)


def _apply_sparse_records(header: Header, records: dict[bytes, bytes]) -> _Steps[None]:
    """Makes the entry a sparse file if its pax header says that it is, in a format that was known."""
    sparse = {key.removeprefix(_SPARSE): value for key, value in records.items() if key.startswith(_SPARSE)}
    version = _sparse_format(sparse)
    if version not in (b"0.0", b"0.1", b"1.0"):
        return
    if header.fragments is not None:
        raise _Malformed("two sparse maps, GNU's own and that of a pax header")
    header.name = sparse.get(b"name", header.name)
    size = sparse.get(b"size", sparse.get(b"realsize"))
    if size is not None:
        header.size = _decimal(size)
    if version == b"1.0":
        header.fragments = yield from _read_stored_sparse_map(header)
    else:
        header.fragments = _parse_sparse_map(sparse)


def _sparse_format(sparse: dict[bytes, bytes]) -> bytes | None:
    if b"major" in sparse and b"minor" in sparse:
        return sparse[b"major"] + b"." + sparse[b"minor"]
    if b"name" in sparse and b"map" in sparse:
        return b"0.1"
    return b"0.0" if b"size" in sparse else None


def _parse_sparse_map(sparse: dict[bytes, bytes]) -> array[int]:
    """The map of formats 0.0 and 0.1, which is in the pax header."""
    count = _decimal(sparse.get(b"numblocks", b""))
    _check_fragment_count(count)
    numbers = sparse.get(b"map", b"").split(b",")
    if len(numbers) != 2 * count:
        raise _Malformed(f"{len(numbers)} numbers in its sparse map, not {2 * count}")
    return array("q", map(_decimal, numbers))


def _read_stored_sparse_map(header: Header) -> _Steps[array[int]]:
    """The map of format 1.0: lines before the content, as many blocks as it takes; the first says how many follow."""
    numbers = array("q")
    text = yield from _read_map_block(header)
    while not numbers or len(numbers) <= 2 * numbers[0]:
        line, newline, rest = text.partition(b"\n")
        if newline:
            numbers.append(_decimal(line))
            _check_fragment_count(numbers[0])
            text = rest
            continue
        more = yield from _read_map_block(header)
        if len(text) >= _BLOCK or b"\n" not in more:
            raise _Malformed("a line without end in its sparse map")
        text += more
    return numbers[1:]


def _read_map_block(header: Header) -> _Steps[bytes]:
    header.map_size += _BLOCK
    if header.map_size > header.stored:
        raise _Malformed("its sparse map is longer than its content")
    wanted = _Wanted(_BLOCK)
    yield wanted
    if wanted.missing:
        raise _Truncated("a part of a sparse map is missing")
    return bytes(wanted.gathered)


def _check_fragment_count(count: int) -> None:
    if not 0 <= count <= FRAGMENT_LIMIT:
        raise _Malformed(f"{count} fragments in its sparse map; at most {FRAGMENT_LIMIT} are read")
