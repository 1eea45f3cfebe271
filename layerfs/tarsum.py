"""`TarSumDigest` and `TarSum`: the name that content had when registries began. No I/O.

A TarSum says the same of two archives that unpack to the same files: what it sums up are the entries, each with the
fields of its header that matter, in an order that is not the archive's. `tarsum` is version 0; `tarsum.v1` leaves out
the time of modification and adds extended attributes; `tarsum.dev` was to be the next one and never differed from v1.

The rules are those of docker's `pkg/tarsum` as distribution 2.0.0 had it: the last registry to store layers by TarSum.
How it read an archive is in `layerfs.tarstream`.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Final, NamedTuple

from layerfs.digest import CANONICAL, HEX_LENGTHS
from layerfs.errors import (
    InvalidDigestFormat,
    InvalidDigestLength,
    InvalidTar,
    LayerTarSumVersionUnsupported,
    UnsupportedDigestAlgorithm,
)
from layerfs.tarstream import Header, TarReader

#: Where repositories have the links of layers by each version, inside `_layers`.
DIRECTORIES: Final = {"": f"tarsum/v0/{CANONICAL}", "v1": f"tarsum/v1/{CANONICAL}", "dev": f"tarsum/dev/{CANONICAL}"}

# distribution's own expression was not anchored: anything with a TarSum somewhere in it was one.
_FORM = re.compile(r"tarsum(?:\.([a-z0-9]+))?\+([a-zA-Z0-9]+):([a-fA-F0-9]+)")

_SUM_SIZE: Final = 32
_NAME_SIZE: Final = 16


@dataclass(frozen=True, slots=True)
class TarSumDigest:
    """`tarsum[.version]+hash:hex`. Only `parse` and `TarSum` make one, so its form can be trusted."""

    version: str
    hash_name: str
    hex: str

    @classmethod
    def parse(cls, text: str) -> TarSumDigest:
        """The digest that `text` is.

        Raises `InvalidDigestFormat`, `LayerTarSumVersionUnsupported`, `UnsupportedDigestAlgorithm` or
        `InvalidDigestLength`, in this order. Registries took any name of a hash, computed SHA-256, and so never found
        content to match another one: no layer has such a digest.
        """
        shown = text[:200]
        match = _FORM.fullmatch(text)
        if not match:
            raise InvalidDigestFormat(shown, "expected tarsum[.version]+sha256:hex")
        version, hash_name, encoded = match[1] or "", match[2], match[3]
        if version not in DIRECTORIES or ".+" in text:
            raise LayerTarSumVersionUnsupported(shown)
        if hash_name != CANONICAL:
            raise UnsupportedDigestAlgorithm(shown, f"only TarSums by {CANONICAL} were ever verified")
        if len(encoded) != HEX_LENGTHS[CANONICAL]:
            raise InvalidDigestLength(shown, f"{CANONICAL} has {HEX_LENGTHS[CANONICAL]} hex digits, not {len(encoded)}")
        if encoded != encoded.lower():
            raise InvalidDigestFormat(shown, "only lower-case hex digits are allowed after the colon")
        return cls(version, hash_name, encoded)

    @property
    def directory(self) -> str:
        """Where a repository has the link of such a layer, inside `_layers`."""
        return f"{DIRECTORIES[self.version]}/{self.hex}"

    @property
    def is_canonical(self) -> bool:
        """Whether a blob can be stored under this digest: never."""
        return False

    def __str__(self) -> str:
        return f"tarsum{'.' if self.version else ''}{self.version}+{self.hash_name}:{self.hex}"


class TarSum:
    """The TarSum of an archive that is fed to it, in pieces of any size.

    Memory does not grow with the content, only with the number of entries, of which an archive can have
    `tarstream.ENTRY_LIMIT`: 48 bytes for each while it is fed, about 300 while it is finished. `update` and `finish`
    raise `InvalidTar`, and do so again if they are called again. No bytes at all are an archive without entries.

    Both work in whatever thread they are called in, and release the GIL while they hash large pieces.
    """

    def __init__(self, version: str = "") -> None:
        """Raises `LayerTarSumVersionUnsupported`."""
        if version not in DIRECTORIES:
            raise LayerTarSumVersionUnsupported(f"tarsum.{version[:80]}")
        self._version = version
        self._entries = _EntrySums(has_mtime=version == "", has_xattrs=version != "")
        self._reader = TarReader(self._entries)

    def update(self, data: bytes | bytearray | memoryview) -> None:
        """The next bytes. What follows the archive's end marker, GNU tar's padding for one, is not in the sum."""
        self._reader.feed(data)

    def finish(self) -> TarSumDigest:
        """The digest of all that was fed; nothing may be fed after it."""
        self._reader.close()
        total = hashlib.sha256()
        for entry_sum in self._entries.in_order():
            total.update(entry_sum.hex().encode())
        return TarSumDigest(self._version, CANONICAL, total.hexdigest())


class _EntrySums:
    """The sums of the entries, and a hash of each one's name to tell which are the same."""

    def __init__(self, *, has_mtime: bool, has_xattrs: bool) -> None:
        self._has_mtime = has_mtime
        self._has_xattrs = has_xattrs
        self._sums = bytearray()
        self._names = bytearray()
        self._hash = hashlib.sha256()

    def begin(self, header: Header) -> None:
        name = header.name.removeprefix(b"./").removesuffix(b"/")
        self._names += hashlib.blake2b(name, digest_size=_NAME_SIZE).digest()
        self._hash = hashlib.sha256(self._summed_fields(header))

    def content(self, part: memoryview) -> None:
        self._hash.update(part)

    def end(self) -> None:
        self._sums += self._hash.digest()

    def in_order(self) -> list[bytes]:
        """The sums in the order in which they are summed up: their own, except where a name occurs twice."""
        sums = _split(self._sums, _SUM_SIZE)
        names = _split(self._names, _NAME_SIZE)
        if len(set(names)) == len(names):
            return sorted(sums)
        return _sort_with_duplicates([_Entry(*entry) for entry in zip(sums, names, range(len(sums)), strict=True)])

    def _summed_fields(self, header: Header) -> bytes:
        fields: list[tuple[bytes, bytes | int]] = [
            (b"name", header.name),
            (b"mode", header.mode),
            (b"uid", header.uid),
            (b"gid", header.gid),
            (b"size", header.size),
            *([(b"mtime", header.mtime)] if self._has_mtime else []),
            (b"typeflag", header.typeflag),
            (b"linkname", header.linkname),
            (b"uname", header.uname),
            (b"gname", header.gname),
            (b"devmajor", header.devmajor),
            (b"devminor", header.devminor),
        ]
        if self._has_xattrs and header.xattrs:
            # The package sorted as many empty names together with the names as there are names. An attribute whose
            # name is empty, which Linux does not have but an archive can, is summed up once more for each.
            names = sorted([b""] * len(header.xattrs) + list(header.xattrs))
            fields.extend((name, header.xattrs.get(name, b"")) for name in names)
        return b"".join(key + (b"%d" % value if isinstance(value, int) else value) for key, value in fields)


def _split(joined: bytearray, size: int) -> list[bytes]:
    return [bytes(joined[start : start + size]) for start in range(0, len(joined), size)]


# --- the order of archives in which a name occurs twice ------------------------------------------------------------


class _Entry(NamedTuple):
    sum: bytes
    name: bytes
    position: int

    def is_before(self, other: _Entry) -> bool:
        """Entries of the same name keep the order that they have in the archive.

        With two of them in the wrong order and a third whose sum is between theirs, each is before the next in a
        circle. Which order such entries get depends on who compares what with what.
        """
        if self.name == other.name:
            return self.position < other.position
        return self.sum < other.sum


def _sort_with_duplicates(entries: list[_Entry]) -> list[bytes]:
    """The sums, in an order that is the same in every implementation if there is one, else that of Go 1.3 and 1.4.

    Those built docker and the registry when TarSums were in use. Their `sort.Sort` is Bentley and McIlroy's quicksort
    ("Engineering a Sort Function", 1993), with pieces of up to seven sorted by insertion.
    """
    if not _has_inversions(entries):
        return sorted(entry.sum for entry in entries)
    _quicksort(entries, 0, len(entries), depth=2 * len(entries).bit_length())
    return [entry.sum for entry in entries]


def _has_inversions(entries: list[_Entry]) -> bool:
    last: dict[bytes, bytes] = {}
    for entry in entries:
        if last.get(entry.name, b"") > entry.sum:
            return True
        last[entry.name] = entry.sum
    return False


def _quicksort(entries: list[_Entry], low: int, high: int, *, depth: int) -> None:
    while high - low > 7:
        if depth == 0:
            # Go would go on with a heap. No entries but contrived ones come to this, and none were ever stored.
            raise InvalidTar(0, "its duplicate names cannot be put in an order")
        depth -= 1
        middle, end = _partition(entries, low, high)
        _quicksort(entries, low, middle, depth=depth)
        low = end
    for last in range(low + 1, high):
        place = last
        while place > low and entries[place].is_before(entries[place - 1]):
            entries[place - 1 : place + 1] = entries[place], entries[place - 1]
            place -= 1


def _partition(entries: list[_Entry], low: int, high: int) -> tuple[int, int]:
    """Smaller ones first, then what is equal to the pivot, then greater ones; returns where the equal ones are.

    Equal ones are gathered at both ends while it goes on.
    """
    _choose_pivot(entries, low, high)
    pivot = entries[low]
    left = first = low + 1
    right = last = high
    while first < last:
        one, other = entries[first], entries[last - 1]
        if one.is_before(pivot):
            first += 1
        elif not pivot.is_before(one):
            entries[left], entries[first] = one, entries[left]
            left, first = left + 1, first + 1
        elif pivot.is_before(other):
            last -= 1
        elif not other.is_before(pivot):
            entries[last - 1], entries[right - 1] = entries[right - 1], other
            right, last = right - 1, last - 1
        else:
            entries[first], entries[last - 1] = other, one
            first, last = first + 1, last - 1
    _exchange(entries, low, first, min(first - left, left - low))
    _exchange(entries, first, high, min(high - right, right - last))
    return low + first - left, high - (right - last)


def _exchange(entries: list[_Entry], start: int, end: int, count: int) -> None:
    """The first `count` of a range for the last."""
    entries[start : start + count], entries[end - count : end] = (
        entries[end - count : end],
        entries[start : start + count],
    )


def _choose_pivot(entries: list[_Entry], low: int, high: int) -> None:
    """Brings a middling one to `low`: the median of three, or of nine as three times three where there are many."""
    middle = low + (high - low) // 2
    if high - low > 40:
        step = (high - low) // 8
        _order_three(entries, low, low + step, low + 2 * step)
        _order_three(entries, middle, middle - step, middle + step)
        _order_three(entries, high - 1, high - 1 - step, high - 1 - 2 * step)
    _order_three(entries, low, middle, high - 1)


def _order_three(entries: list[_Entry], median: int, least: int, greatest: int) -> None:
    for one, next_one in ((least, median), (median, greatest), (least, median)):
        if entries[next_one].is_before(entries[one]):
            entries[one], entries[next_one] = entries[next_one], entries[one]
