"""TarSums: 126 sums by docker's own package, archives of every kind against a slow reading of the rules, hostile ones.

The rules are those of facts D. `Slow` has the whole archive in memory and takes one thing after the other; it reads
only well-formed archives. Sums that stand here as constants were computed by docker's package, as in distribution
2.0.0, with the sort of Go 1.3.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import random
import subprocess
import tarfile
import tracemalloc
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from layerfs import tarstream
from layerfs.errors import (
    InvalidDigest,
    InvalidDigestFormat,
    InvalidDigestLength,
    InvalidTar,
    LayerTarSumVersionUnsupported,
    TruncatedTar,
    UnsupportedDigestAlgorithm,
)
from layerfs.tarsum import TarSum, TarSumDigest

VECTORS = Path(__file__).resolve().parents[3] / "shared/fixtures/tarsum-vectors"
VERSIONS = ("", "v1", "dev")
EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
END = bytes(1024)
MIB = 1 << 20


def tarsum(archive: bytes, version: str = "v1", pieces: Iterable[int] = ()) -> str:
    """The sum of `archive`, fed in pieces of these sizes and the rest at once."""
    total, start = TarSum(version), 0
    for size in pieces:
        total.update(archive[start : start + size])
        start += size
    total.update(archive[start:])
    return str(total.finish())


def refused(archive: bytes) -> InvalidTar:
    with pytest.raises(InvalidTar) as caught:
        tarsum(archive)
    return caught.value


# --- archives, byte by byte ----------------------------------------------------------------------------------------


def padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % 512)


def header(
    name: bytes = b"a", size: int | bytes = 0, typeflag: bytes = b"0", patches: dict[int, bytes] | None = None
) -> bytes:
    """A ustar header; `patches` are bytes to put at offsets before the checksum is made."""
    block = bytearray(512)
    block[0 : len(name)] = name
    block[100:136] = b"0000644\x000001750\x000000144\x00" + (b"%011o\0" % size if isinstance(size, int) else size)
    block[136:148] = b"12345670123\0"
    block[156:157] = typeflag
    block[257:270] = b"ustar\x0000alice"
    for offset, patch in (patches or {}).items():
        block[offset : offset + len(patch)] = patch
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def entry(name: bytes, content: bytes = b"", typeflag: bytes = b"0") -> bytes:
    return header(name, len(content), typeflag) + padded(content)


def record(key: bytes, value: bytes) -> bytes:
    rest = b" " + key + b"=" + value + b"\n"
    size = len(rest) + len(str(len(rest) + 1))
    size = len(rest) + len(str(size))
    return b"%d" % size + rest


def pax(*records: tuple[bytes, bytes]) -> bytes:
    return entry(b"PaxHeaders/a", b"".join(record(*one) for one in records), b"x")


# --- the slow way --------------------------------------------------------------------------------------------------


class Slow:
    """The rules of facts D, one after the other, for archives that are as they should be."""

    def __init__(self, archive: bytes, version: str) -> None:
        self.archive, self.version, self.at = archive, version, 0
        self.sums: list[tuple[bytes, str, int]] = []
        while self.at < len(archive) and any(archive[self.at : self.at + 512]):
            self.read_entry()

    def take(self, size: int) -> bytes:
        taken = self.archive[self.at : self.at + size]
        self.at += size
        return taken

    def take_padded(self, size: int) -> bytes:
        content = self.take(size)
        self.at += -size % 512
        return content

    def read_entry(self) -> None:
        found: dict[str, bytes] = {}
        block = self.take(512)
        while block[156:157] in (b"L", b"K", b"x"):
            content = self.take_padded(number(block[124:136]))
            if block[156:157] == b"x":
                for key, value in pax_records(content):
                    found[key] = found[key] + b"," + value if key in found and "sparse" in key else value
            else:
                found["path" if block[156:157] == b"L" else "linkpath"] = content.split(b"\0")[0]
            block = self.take(512)
        fields = self.fields(block, found)
        stored = number(block[124:136])
        content = self.content(block, found, stored)
        fields["size"] = len(content)
        self.sum_up(fields, found, content)

    def fields(self, block: bytes, found: dict[str, bytes]) -> dict[str, bytes | int]:
        is_v7 = block[257:262] != b"ustar"
        is_device = block[156:157] in (b"3", b"4")
        name = text(block[:100])
        if not is_v7 and block[345:346] != b"\0":
            name = text(block[345:500]) + b"/" + name
        return {
            "name": found.get("GNU.sparse.name", found.get("path", name)),
            "mode": number(block[100:108]),
            "uid": int(found.get("uid", number(block[108:116]))),
            "gid": int(found.get("gid", number(block[116:124]))),
            "size": 0,
            "mtime": int(found["mtime"].split(b".")[0]) if "mtime" in found else number(block[136:148]),
            "typeflag": block[156:157],
            "linkname": found.get("linkpath", text(block[157:257])),
            "uname": found.get("uname", b"" if is_v7 else text(block[265:297])),
            "gname": found.get("gname", b"" if is_v7 else text(block[297:329])),
            "devmajor": number(block[329:337]) if is_device else 0,
            "devminor": number(block[337:345]) if is_device else 0,
        }

    def content(self, block: bytes, found: dict[str, bytes], stored: int) -> bytes:
        if block[156:157] == b"S":
            numbers, more, size = old_map(block[386:482]), block[482], number(block[483:495])
            while more:
                extension = self.take(512)
                numbers, more = numbers + old_map(extension[:504]), extension[504]
            return expanded(numbers, self.take_padded(stored), size)
        content = self.take_padded(stored)
        if "GNU.sparse.major" in found:
            count = int(content.split(b"\n")[0])
            lines = content.split(b"\n")[: 1 + 2 * count]
            text_size = sum(len(line) + 1 for line in lines)
            data = content[text_size + -text_size % 512 :]
            return expanded([int(line) for line in lines[1:]], data, int(found["GNU.sparse.realsize"]))
        if "GNU.sparse.size" in found:
            key = "GNU.sparse.map" if "GNU.sparse.map" in found else "GNU.sparse.pair"
            return expanded([int(n) for n in found[key].split(b",")], content, int(found["GNU.sparse.size"]))
        return content

    def sum_up(self, fields: dict[str, bytes | int], found: dict[str, bytes], content: bytes) -> None:
        total = hashlib.sha256()
        for key, value in fields.items():
            if key != "mtime" or self.version == "":
                total.update(key.encode() + (value if isinstance(value, bytes) else str(value).encode()))
        if self.version != "":
            for key in sorted(found, key=os.fsencode):
                if key.startswith("SCHILY.xattr."):
                    total.update(os.fsencode(key)[13:] + found[key])
        total.update(content)
        name = fields["name"]
        assert isinstance(name, bytes)
        name = name[2:] if name.startswith(b"./") else name
        name = name[:-1] if name.endswith(b"/") else name
        self.sums.append((name, total.hexdigest(), len(self.sums)))

    def result(self) -> str:
        names = [name for name, _, _ in self.sums]
        if len(set(names)) < len(names):
            for last in range(1, len(self.sums)):
                self.insert(last)
        else:
            self.sums.sort(key=lambda one: one[1])
        joined = "".join(hexed for _, hexed, _ in self.sums)
        label = f"tarsum.{self.version}" if self.version else "tarsum"
        return f"{label}+sha256:{hashlib.sha256(joined.encode()).hexdigest()}"

    def insert(self, place: int) -> None:
        while place and self.compare(self.sums[place], self.sums[place - 1]) < 0:
            self.sums[place - 1], self.sums[place] = self.sums[place], self.sums[place - 1]
            place -= 1

    @staticmethod
    def compare(one: tuple[bytes, str, int], other: tuple[bytes, str, int]) -> int:
        if one[0] == other[0]:
            return one[2] - other[2]
        return (one[1] > other[1]) - (one[1] < other[1])


def text(field: bytes) -> bytes:
    return field.split(b"\0")[0]


def number(field: bytes) -> int:
    if field[0] >= 0x80:
        return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
    return int(field.strip(b" \0") or b"0", 8)


def pax_records(content: bytes) -> Iterator[tuple[str, bytes]]:
    while content:
        size = int(content.split(b" ")[0])
        key, _, value = content[len(str(size)) + 1 : size - 1].partition(b"=")
        if key in (b"GNU.sparse.offset", b"GNU.sparse.numbytes"):
            key = b"GNU.sparse.pair"
        yield os.fsdecode(key), value
        content = content[size:]


def old_map(fields: bytes) -> list[int]:
    numbers = [number(fields[start : start + 12]) for start in range(0, len(fields), 12)]
    while numbers and numbers[-2:] == [0, 0]:
        numbers = numbers[:-2]
    return numbers


def expanded(numbers: list[int], data: bytes, size: int) -> bytes:
    content = bytearray(size)
    for offset, length in zip(numbers[::2], numbers[1::2], strict=True):
        content[offset : offset + length], data = data[:length], data[length:]
    return bytes(content)


# --- digests -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "label", "directory"),
    [("", "tarsum", "v0"), ("v1", "tarsum.v1", "v1"), ("dev", "tarsum.dev", "dev")],
)
def test_a_digest_is_its_parts(version: str, label: str, directory: str) -> None:
    """Each version has a label and a directory of its own, and prints as it was written."""
    digest = TarSumDigest.parse(f"{label}+sha256:{EMPTY}")
    assert (digest.version, digest.hash_name, digest.hex) == (version, "sha256", EMPTY)
    assert str(digest) == f"{label}+sha256:{EMPTY}"
    assert digest.directory == f"tarsum/{directory}/sha256/{EMPTY}"


@pytest.mark.parametrize(
    ("digest", "error"),
    [
        ("", InvalidDigestFormat),
        ("tarsum", InvalidDigestFormat),
        (f"sha256:{EMPTY}", InvalidDigestFormat),
        (f"tarsum:{EMPTY}", InvalidDigestFormat),
        (f"tarsum+:{EMPTY}", InvalidDigestFormat),
        (f"tarsum.+sha256:{EMPTY}", InvalidDigestFormat),
        (f"tarsum.V1+sha256:{EMPTY}", InvalidDigestFormat),
        (f"tarsum.v1.v1+sha256:{EMPTY}", InvalidDigestFormat),
        (f"Tarsum.v1+sha256:{EMPTY}", InvalidDigestFormat),
        (f"xtarsum.v1+sha256:{EMPTY}", InvalidDigestFormat),
        (f" tarsum.v1+sha256:{EMPTY}", InvalidDigestFormat),
        (f"tarsum.v1+sha256:{EMPTY}\n", InvalidDigestFormat),
        (f"tarsum.v1+sha256:{EMPTY}/../x", InvalidDigestFormat),
        (f"tarsum.v1+sha256:{EMPTY.upper()}", InvalidDigestFormat),
        ("tarsum.v1+sha256:" + "g" * 64, InvalidDigestFormat),
        ("tarsum.v1+sha256:" + "\u0660" * 64, InvalidDigestFormat),
        ("tarsum.v1+sha256:", InvalidDigestFormat),
        (f"tarsum.v1+sha256:{EMPTY[:-1]}", InvalidDigestLength),
        (f"tarsum.v1+sha256:{EMPTY}0", InvalidDigestLength),
        ("tarsum.v1+sha512:" + "0" * 128, UnsupportedDigestAlgorithm),
        (f"tarsum.v1+sha512:{EMPTY}", UnsupportedDigestAlgorithm),
        ("tarsum.v1+md5:d41d8cd98f00b204e9800998ecf8427e", UnsupportedDigestAlgorithm),
        (f"tarsum.v1+SHA256:{EMPTY}", UnsupportedDigestAlgorithm),
    ],
)
def test_what_is_no_tarsum_digest(digest: str, error: type[InvalidDigest]) -> None:
    """The whole text must be one, of the hash that registries computed; each way to miss that has its error."""
    with pytest.raises(error) as caught:
        TarSumDigest.parse(digest)
    assert type(caught.value) is error
    assert caught.value.name == digest


@pytest.mark.parametrize("version", ["v0", "v2", "v23", "v10", "devel", "0"])
def test_a_version_that_nobody_can_compute(version: str) -> None:
    """It is well-formed, but there are no rules for it, whatever its hash; neither can a sum be begun."""
    for rest in (f"sha256:{EMPTY}", "test:1234"):
        with pytest.raises(LayerTarSumVersionUnsupported):
            TarSumDigest.parse(f"tarsum.{version}+{rest}")
    with pytest.raises(LayerTarSumVersionUnsupported):
        TarSum(version)


@given(st.text() | st.from_regex(r"tarsum(\.[a-z0-9]+)?\+[a-z0-9]+:[a-f0-9]+"))
def test_any_text_parses_or_is_refused(digest: str) -> None:
    """Whatever the text, there is a digest that prints the same, or one of the errors of a digest."""
    try:
        parsed = TarSumDigest.parse(digest)
    except (InvalidDigest, LayerTarSumVersionUnsupported):
        return
    assert str(parsed) == digest


def test_megabytes_where_a_digest_should_be() -> None:
    """A huge text is refused at once, and the message stays small."""
    for huge in ("tarsum" * MIB, "tarsum." + "v" * MIB + "+sha256:00", "tarsum.v1+sha256:" + "0" * MIB):
        with pytest.raises((InvalidDigest, LayerTarSumVersionUnsupported)) as caught:
            TarSumDigest.parse(huge)
        assert len(str(caught.value)) < 500


# --- docker's own sums ---------------------------------------------------------------------------------------------


def vectors() -> list[tuple[str, str, str]]:
    lines = (VECTORS / "vectors.tsv").read_text().splitlines()
    rows = [line.split("\t") for line in lines]
    return [(name, label.removeprefix("tarsum").removeprefix("."), result) for name, label, result in rows]


@pytest.mark.parametrize(("name", "version", "result"), vectors())
def test_a_sum_by_dockers_package(name: str, version: str, result: str) -> None:
    """The same sum, or an error of the same kind."""
    archive = (VECTORS / name).read_bytes()
    if result == "ERROR unexpected EOF":
        assert type(refused(archive)) is TruncatedTar
    elif result == "ERROR archive/tar: invalid tar header":
        assert type(refused(archive)) is InvalidTar
    else:
        assert tarsum(archive, version) == result


def test_every_vector_is_there() -> None:
    """42 archives and three versions, so that a missing fixture is noticed."""
    assert len(vectors()) == 126


QUIRKS = {
    "a pax header before a GNU long name: that is the entry": (
        pax((b"uname", b"bob")) + entry(b"././@LongLink", b"long\0", b"L") + entry(b"short", b"data"),
        "5929b06feb3a6ab55af9c6c3390a26c319515948db05961db87b3783fb312144",
        "7069c82ff03e8ec935a91b96c74326b5669a095559b277858426b920650be3a2",
    ),
    "a GNU long name counts more than a pax one": (
        entry(b"././@LongLink", b"gnu\0junk", b"L") + pax((b"path", b"pax")) + entry(b"short", b"data"),
        "6d9b56b3dce5cf7b0d705762d8c7ae1e1fe1f90f0e9c4300b332fa4b074126d9",
        "e9dd865afd751a8003012fc46729a9849c1410360f72c60f6484464c5df12d0a",
    ),
    "the first of two long names": (
        entry(b"L", b"first", b"L") + entry(b"L", b"second", b"L") + entry(b"K", b"k\0", b"K") + entry(b"short"),
        "c12a41d7c8f7a57dcd92be7a5c6854b9c895064aa59611b58db7eafd181b7dae",
        "1c2764b18c1631cb48f94a88e26b1c2190dd5f3b1a47f13d18eb82405a6187b1",
    ),
    "a NUL in a pax name stays": (
        pax((b"path", b"a\0b")) + entry(b"x"),
        "c6fd8a2050bc1ffd027ab6df1a1ec2e8c8df80d578d5b06e77cf147a4a362813",
        "12f387d1279a15c3f22bd2235b4c1d87cef69b6b5b6bc2f5a21984036ff227c6",
    ),
    "the last of two records": (
        pax((b"path", b"one"), (b"path", b"two")) + entry(b"x"),
        "5feccfd1e4570e0046841d46a22b6346b17345797e66f974d5040d29dbf4bfc0",
        "1c1832b9e1b9cdf30fde75dcf633823e70d3253c808e76a15149512892905dec",
    ),
    "a record that no newline ends": (
        entry(b"x", record(b"path", b"one")[:-1] + b"!", b"x") + entry(b"x"),
        "387c82466792b4c81230941ec4d5fa7a1f04e951b5fe1de0ec502b323a956522",
        "5764376c192c3fea74703639daeee10e4a78dd2a57756b8fff1478292e893886",
    ),
    "signs and zeros in pax numbers": (
        pax((b"uid", b"+0012"), (b"gid", b"-1"), (b"mtime", b"-1.5")) + entry(b"x"),
        "d3e933729983ee84693420c891984bd3a7d875c98fbdfb7ac3c995e3e9bcd137",
        "be368d44b5f05f9213ea90cccf78d6014ec0433db3f8e2ea17ff5d644f24d8ea",
    ),
    "a sign after the point of a time": (
        pax((b"mtime", b"5.-5")) + entry(b"x"),
        "68b6defc6d31449fb09e348475acc62aca4df006baa2c2bb6186258f6fa6b7ba",
        "76abf1c57c8433dad95a83ed98e0fd12ef76594b3a96b20fcc247e4cf59a5750",
    ),
    "a number that is none, alone in its header": (
        pax((b"uid", b"many"), (b"comment", b"x")) + entry(b"x"),
        "440a3f4c59fce3445a73f978bcffd6d4944a709a2f523d24acdb888992c0348b",
        "76abf1c57c8433dad95a83ed98e0fd12ef76594b3a96b20fcc247e4cf59a5750",
    ),
    "an attribute without a name": (
        pax((b"SCHILY.xattr.", b"empty"), (b"SCHILY.xattr.user.a", b"A")) + entry(b"x"),
        "440a3f4c59fce3445a73f978bcffd6d4944a709a2f523d24acdb888992c0348b",
        "48a17c5502b8235ce1a09440162c939d147d29321611cc160f708f838b3c989e",
    ),
    "a size that a pax header repeats": (
        pax((b"size", b"4")) + entry(b"x", b"data"),
        "f569ddc1809cadc38a7499aceea604110b6b466a7e341f147284330eff243ea7",
        "5b373220f6a93d895cf4f759ee398963a334796185f2df3fc59a2ccc5ebc7322",
    ),
    "binary numbers, negative and huge": (
        header(patches={108: b"\xff" * 8, 116: b"\x80" + b"\x01" * 7, 136: b"\xff" * 12}),
        "20355ede3c4168a78292c9b41b5975f60e47ffc701e66580519a9be5e13b5ae4",
        "d8bf0a6acb33d697738abeabb655c575624c4d5aa90d43b658215fd9e4de5a80",
    ),
    "numbers with spaces and NULs": (
        header(patches={100: b" 0644 \0\0", 108: b"\0" * 8, 116: b"12345670", 136: b"0000123\0junk"}),
        "6dac21738a5b83d7f4a84b91678b494d88b4f847b5eed232b1c08776dfea68d8",
        "ae88d7663554e0175f1225176ecd7e44224e2d45ec1c4ea1ea3ee16bb194b2f1",
    ),
    "a directory with content": (
        entry(b"d/", b"data", b"5"),
        "547f90f066e2d5d96ce2c0537a5273e62a764db9ea66eedf9228e914ea4a6686",
        "4570120a4ce490584a7cb1bc89934049859900a6147b7a6ff75a2c7a94a44ac3",
    ),
    "a type that nobody knows": (
        entry(b"x", b"data", b"\xff"),
        "70872c473cf52470e82fffa4d73a1791cf4d495620cccfb605db7dcbf8ccd429",
        "18cb532933846e18891c64129a09b203c53414efed22b8940b0c382a684efa8d",
    ),
    "device numbers of what is no device": (
        header(patches={329: b"junk"}) + entry(b"b"),
        "0bce8da0ebe6c37803862e2f387e634531a2add6ec7e80def8b132d3c5bc65f7",
        "7165ccb85cfbc0ab5d5b91f47f83a130a34e0ba24002f42c3d01f97d7f21e67c",
    ),
    "device numbers": (
        header(typeflag=b"3", patches={329: b"0000010\x000000377\x00"}),
        "7d005c2c9bbb584801e20d529835a27891618e4c5dc2585f0f97b67a9e0053b7",
        "2e0b816abf1a89a5702483fe491f9379eb3d781788c87bb85a5b0a80030679ea",
    ),
    "a prefix in GNU's own format": (
        header(patches={257: b"ustar  \0", 345: b"prefix"}),
        "ef643836dc1eb1f8d9b0e036e1e111fdbfc0b2843096e1d662f34e98f826e59a",
        "ad1db3cf598a7774058e0eb390d8194f869096cf11e38dd33edb6db839b9a844",
    ),
    "a prefix of star": (
        header(patches={345: b"p" * 131 + b"00000000001\0" * 2, 508: b"tar\0"}),
        "b8995cdabd2700a2d8dca74cff07b76b6499d41b9bf61b469b8a4217d2d11446",
        "959776f58ad035b13e4d8016c822ff187b9c9339a446cd70b792f5b3d87587c9",
    ),
    "the first tar has no owner and no prefix": (
        header(patches={257: bytes(8), 345: b"prefix"}),
        "0847ce0e1e7f278a026c3d3629a785d1c7604d98057be880042fc622b16c05aa",
        "736acafbaf7c6ed1869be220b4fec2398f8edd54746f5ffe8f478918cf1f1efd",
    ),
    "a checksum of signed bytes": (
        (lambda block: block[:148] + b"%06o\0 " % (int(block[148:154], 8) - 512) + block[156:])(header(b"\xe9\xe9")),
        "8d1498fbc146c9b06088472365ebc519c2276d3271cad469932cc31d0f4a3de1",
        "92d8e28ede1d9eec0157e6954322568e6543a424ef10a881fc2a6db614444c02",
    ),
    "padding that is missing": (
        entry(b"a", b"one") + header(b"b", 3) + b"two",
        "82a6af64f7ec517f55c73d517cb24378a6b36bd53b7804198cb2c6f5eb3f3b4f",
        "07b7eefb7ccca457d381c14ade5939d4884c9c4c5c883764e2a511a955b62083",
    ),
    "bytes after the end": (
        entry(b"a") + END + b"anything",
        "bb7a4759f334c8f14b9317c7071a76e72ff4641a66ca9fd3d58321ef2c9f46c8",
        "c9e61bdae746c63bf1473900b8cec7b64741e4bd1c36b7eaede192ddf00b4d33",
    ),
    "a circle of three": (
        entry(b"a", b"1") + entry(b"a", b"3") + entry(b"b", b"0") + entry(b"c", b"x"),
        "477a30b96a33b925f194983b41a98481bc79c5f949cac5e3b9beb648b578606d",
        "c7bbd3a1d7562d270295402322b395f364a3d1f10463131c7dd75bc4e87fdb84",
    ),
    "a sparse map of nothing": (
        pax((b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.realsize", b"700"))
        + entry(b"x", padded(b"0\n")),
        "56edebfffb277728ee3038422d0bf03a754a6a388266971256cc514f3ce005c9",
        "62e75620b45f28d9a7fd4ab71201535dc2be83b77239fd1578ff473147e9db65",
    ),
    "a sparse format that nobody knew": (
        pax((b"GNU.sparse.major", b"2"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.name", b"n"))
        + entry(b"x", b"data"),
        "f569ddc1809cadc38a7499aceea604110b6b466a7e341f147284330eff243ea7",
        "5b373220f6a93d895cf4f759ee398963a334796185f2df3fc59a2ccc5ebc7322",
    ),
    "a sparse map that a line goes across": (
        pax((b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.realsize", b"1024"))
        + entry(b"x", padded(b"2\n0\n" + b"0" * 505 + b"512\n512\n" + b"0" * 200 + b"3\n") + b"d" * 515),
        "7b29bc34a39d4c99a413cce2d8aa6e9aab18b5b7162e77183c034ec295ff2020",
        "3001a6d9cef0e3172813986dccc7eebac1da85f86af4482bf8fce49c4d63cc73",
    ),
}


def numbered(count: int, names: int) -> bytes:
    return b"".join(entry(b"n%d" % (i * i % names), b"%d" % i) for i in range(count))


#: Many entries of few names: `sort.Sort` decides, with a median of three, with one of nine, and with several rounds.
CROWDS = {
    (8, 5): "5f2a6f256922e711f2bb57308220c1eb08b0ea8d2516a10d22026e3d1f76f385",
    (12, 7): "3c0ed2283ad2131ce84eed4e51472d049299200169932256aeb6465f0eef95db",
    (41, 11): "6354c252d7f87262cf1650f4c56051ab6f55a6839aacdaf0b134aab40cd0223d",
    (300, 40): "ce35679352559066cfdc027535c55196e04eef55e3cd2680ed5746787ba0bfcd",
    (2000, 900): "6344f7e5ef0a3212c35a3123b10978388441727a9da4c2982851840e0343263e",
}


@pytest.mark.parametrize("quirk", QUIRKS)
def test_what_only_docker_did(quirk: str) -> None:
    """What no description of tar says, and another reader would do otherwise."""
    archive, version_0, version_1 = QUIRKS[quirk]
    assert tarsum(archive, "") == f"tarsum+sha256:{version_0}"
    assert tarsum(archive, "v1") == f"tarsum.v1+sha256:{version_1}"


@pytest.mark.parametrize(("count", "names"), CROWDS)
def test_the_order_of_many_entries_of_few_names(count: int, names: int) -> None:
    """Where the rules give no order, it is the one that the sort of the time happened to give."""
    assert tarsum(numbered(count, names)) == f"tarsum.v1+sha256:{CROWDS[count, names]}"


# --- the slow way agrees -------------------------------------------------------------------------------------------


def tree(root: Path) -> Path:
    """Files of every kind that tar can be made to store without being root."""
    source = root / "tree"
    (source / "dir" / ("d" * 90)).mkdir(parents=True)
    (source / "dir" / ("d" * 90) / ("f" * 95)).write_bytes(b"long")
    (source / "empty").touch()
    (source / "block").write_bytes(bytes(range(256)) * 2)
    (source / "more than a block").write_bytes(b"x" * 513)
    (source / "naïve").write_bytes(b"name")
    os.link(source / "block", source / "hard")
    (source / "soft").symlink_to("s" * 150)
    os.mkfifo(source / "fifo")
    for name, size, pieces in (("holes", 1 << 20, range(4096, 1 << 20, 1 << 15)), ("hole", 1 << 20, ())):
        with (source / name).open("wb") as file:
            for offset in pieces:
                file.seek(offset)
                file.write(b"piece" * 10)
            file.truncate(size)
    for path in sorted(source.rglob("*"), reverse=True):
        os.utime(path, (1, 1_400_000_000), follow_symlinks=False)
    return source


FORMATS = {
    "v7": ["--format=v7", "--exclude=./dir/*", "--exclude=fifo", "--exclude=soft"],
    "ustar": ["--format=ustar", "--exclude=soft"],
    "oldgnu": ["--format=oldgnu"],
    "gnu": ["--format=gnu"],
    "gnu sparse": ["--format=gnu", "-S"],
    "pax": ["--format=posix"],
    "pax without times": ["--format=posix", "--pax-option=delete=atime,delete=ctime"],
    "pax sparse 0.0": ["--format=posix", "-S", "--sparse-version=0.0"],
    "pax sparse 0.1": ["--format=posix", "-S", "--sparse-version=0.1"],
    "pax sparse 1.0": ["--format=posix", "-S", "--sparse-version=1.0"],
    "numeric owner": ["--format=gnu", "--owner=:3000000", "--group=:3000000"],
}


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("version", VERSIONS)
def test_archives_of_gnu_tar(kind: str, version: str, tmp_path: Path) -> None:
    """Every format and every kind of sparse file that GNU tar writes."""
    command = ["tar", "-C", str(tree(tmp_path)), *FORMATS[kind], "--sort=name", "-cf", "-", "."]
    archive = subprocess.run(command, check=True, capture_output=True).stdout
    assert tarsum(archive, version) == Slow(archive, version).result()


def test_a_sparse_file_is_its_content(tmp_path: Path) -> None:
    """However its holes are stored, a sparse file sums up as if it had none; only GNU's own type is another type."""
    source = tree(tmp_path)
    sums = set()
    for options in ([], ["-S", "--sparse-version=0.0"], ["-S", "--sparse-version=0.1"], ["-S", "--sparse-version=1.0"]):
        command = ["tar", "-C", str(source), "--format=posix", *options, "-cf", "-", "holes"]
        sums.add(tarsum(subprocess.run(command, check=True, capture_output=True).stdout))
    assert len(sums) == 1


names = st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\0"), min_size=1, max_size=260)
infos = st.fixed_dictionaries(
    {
        "name": names,
        "mode": st.integers(0, 0o7777),
        "uid": st.integers(0, 2**40),
        "gid": st.integers(0, 2**21),
        "mtime": st.integers(0, 2**33 - 1),
        "type": st.sampled_from([tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.DIRTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE]),
        "linkname": names,
        "uname": st.text("abcö", max_size=40),
        "devmajor": st.integers(0, 2**20),
    }
)
xattrs = st.dictionaries(st.sampled_from(["user.a", "user.b", "security.capability"]), st.text("v=\n", max_size=99))


@st.composite
def archives(draw: st.DrawFn) -> bytes:
    """Archives that tarfile makes of whatever entries."""
    file = io.BytesIO()
    archive_format = draw(st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))
    with tarfile.open(fileobj=file, mode="w", format=archive_format) as archive:
        for values in draw(st.lists(infos, max_size=6)):
            info = tarfile.TarInfo()
            for key, value in values.items():
                setattr(info, key, value)
            info.pax_headers = {f"SCHILY.xattr.{key}": value for key, value in draw(xattrs).items()}
            content = draw(st.binary(max_size=2000)) if info.isreg() else b""
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(archives(), st.sampled_from(VERSIONS))
def test_archives_of_tarfile(archive: bytes, version: str) -> None:
    """Any entries, in two formats: the slow way has the same sum."""
    assert tarsum(archive, version) == Slow(archive, version).result()


# --- pieces --------------------------------------------------------------------------------------------------------


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(archives(), st.lists(st.integers(0, 1500), max_size=60))
def test_any_pieces_have_the_same_sum(archive: bytes, pieces: list[int]) -> None:
    """How the bytes arrive does not matter, down to none at all at a time."""
    assert tarsum(archive, pieces=pieces) == tarsum(archive)


@pytest.mark.parametrize("name", ["sparse-gnu.tar", "sparse-pax10.tar", "longlink-pax.tar", "types.tar", "xattr.tar"])
def test_byte_by_byte(name: str) -> None:
    """One byte at a time, and from every kind of buffer."""
    archive = (VECTORS / name).read_bytes()
    assert tarsum(archive, pieces=[1] * len(archive)) == tarsum(archive)
    for buffer in (bytearray(archive), memoryview(archive)):
        total = TarSum("v1")
        total.update(buffer)
        assert str(total.finish()) == tarsum(archive)


@pytest.mark.parametrize("archive", [b"", bytes(512), END, bytes(10240)])
@pytest.mark.parametrize("version", VERSIONS)
def test_an_archive_of_nothing(archive: bytes, version: str) -> None:
    """No entries have the sum of no bytes, with an end marker, half of one, or none."""
    assert tarsum(archive, version).endswith(f"+sha256:{EMPTY}")


def test_an_entry_by_hand() -> None:
    """The rules in one line: keys and values with nothing between them, then the content; then a sum of hex sums."""
    one = hashlib.sha256(
        b"nameamode420uid1000gid100size4mtime1402433619typeflag0linknameunamealicegnamedevmajor0devminor0data"
    )
    total = hashlib.sha256(one.hexdigest().encode()).hexdigest()
    assert tarsum(entry(b"a", b"data"), "") == f"tarsum+sha256:{total}"


# --- what is refused -----------------------------------------------------------------------------------------------

SPARSE = (b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0")


def sparse(size: int, sparse_map: bytes, content: bytes) -> bytes:
    return pax(*SPARSE, (b"GNU.sparse.realsize", b"%d" % size)) + entry(b"s", padded(sparse_map) + content)


REFUSED: dict[str, tuple[bytes, int]] = {
    "junk": (b"junk" * 200, 0),
    "a second entry that is none": (entry(b"a", b"data") + b"x" * 512, 1024),
    "one block of zeros": (entry(b"a") + bytes(512) + entry(b"b"), 512),
    "a number that is none": (header(patches={108: b"9"}), 0),
    "a number with a sign": (header(patches={108: b"-000001"}), 0),
    "device numbers that are none": (header(typeflag=b"4", patches={329: b"x"}), 0),
    "times of star that are none": (header(patches={345: b"p" * 131 + b"x" * 24, 508: b"tar\0"}), 0),
    "a negative size": (header(size=b"\xff" * 12), 0),
    "a mode too long to be written": (header(patches={100: b"\x80\0\0\0\x01\0\0\0"}), 0),
    "a pax size that differs": (pax((b"size", b"5")) + entry(b"a", b"data"), 1024),
    "a number that is none, among others": (pax((b"uid", b"many"), (b"path", b"x")) + entry(b"a"), 1024),
    "a number of more than 64 bits": (pax((b"uid", b"9" * 19), (b"path", b"x")) + entry(b"a"), 1024),
    "a digit of another script": (pax((b"uid", "٣".encode()), (b"path", b"x")) + entry(b"a"), 1024),
    "a pax record without a length": (entry(b"x", b"path=a\n", b"x") + entry(b"a"), 0),
    "a pax record beyond the header": (entry(b"x", b"900 path=a\n", b"x") + entry(b"a"), 0),
    "a pax record of no length": (entry(b"x", b"0 path=a\n", b"x") + entry(b"a"), 0),
    "a pax record that goes back": (entry(b"x", b"-5 path=a\n", b"x") + entry(b"a"), 0),
    "a pax record without a value": (entry(b"x", b"7 path\n", b"x") + entry(b"a"), 0),
    "a long name and no entry": (entry(b"L", b"long", b"L") + END, 1024),
    "a pax header and no entry": (pax((b"comment", b"x")) + END, 1024),
    "a huge pax header": (entry(b"x", record(b"path", b"p" * (MIB + 1)), b"x") + entry(b"a"), 0),
    "a pax header of exabytes": (header(size=b"\x80\0\0\0\x10" + bytes(7), typeflag=b"x"), 0),
    "a long name of gigabytes": (header(size=8**11 - 1, typeflag=b"L"), 0),
    "holes of exabytes": (sparse(2**62, b"1\n%d\n0\n" % 2**62, b""), 1024),
    "a hole beyond the size": (sparse(100, b"1\n4096\n1\n", b"x"), 1024),
    "data beyond the size": (sparse(100, b"1\n0\n200\n", b"x" * 200), 1024),
    "data that is not there": (sparse(100, b"1\n0\n50\n", b"x" * 49), 1024),
    "fragments in the wrong order": (sparse(2000, b"2\n1000\n5\n0\n5\n", b"x" * 10), 1024),
    "a fragment of nothing before another": (sparse(100, b"2\n0\n0\n0\n100\n", b"x" * 100), 1024),
    "a fragment of less than nothing": (sparse(100, b"1\n0\n-5\n", b"x" * 100), 1024),
    "fewer fragments than none": (sparse(100, b"-1\n", b""), 1024),
    "fragments without number": (sparse(100, b"%d\n" % 10**18 + b"0\n1\n" * 100, b""), 1024),
    "a sparse map that is no map": (sparse(100, b"one\n0\n1\n", b"x"), 1024),
    "a line of a sparse map without end": (sparse(100, b"1" * 5000, b""), 1024),
    "a sparse map that is longer than its file": (pax(*SPARSE) + entry(b"s", b"1\n0\n1\n"), 1024),
    "a count of numbers that is not theirs": (
        pax((b"GNU.sparse.size", b"9"), (b"GNU.sparse.numblocks", b"2"), (b"GNU.sparse.map", b"0,9"))
        + entry(b"s", b"d"),
        1024,
    ),
    "two sparse maps": (pax(*SPARSE) + entry(b"s", padded(b"0\n"), b"S"), 1024),
    "two sizes of a sparse file": (pax((b"size", b"5")) + entry(b"s", b"", b"S"), 1024),
}

TRUNCATED: dict[str, tuple[bytes, int]] = {
    "in the first header": (header()[:300], 300),
    "in a later header": (entry(b"a", b"data") + header()[:1], 1025),
    "in the content": (header(b"a", 100) + b"x" * 99, 611),
    "before the content": (header(b"a", 100), 512),
    "in a pax header": (pax((b"path", b"x"))[:515], 515),
    "in a long name": (header(b"L", 9, b"L") + b"long", 516),
    "in the end marker": (entry(b"a") + bytes(600), 1112),
    "in a sparse map": (header(typeflag=b"S", patches={482: b"\1"}), 512),
    "in the map of a pax sparse file": ((pax(*SPARSE) + header(b"s", 2048) + b"1\n0\n"), 1540),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_what_is_no_archive_with_a_sum(fault: str) -> None:
    """Where docker's package failed, crashed, looped or stopped early, and what only wants memory or time, is refused.

    The error says at which header; it is raised again by whatever is called next, and never becomes a sum.
    """
    archive, position = REFUSED[fault]
    error = refused(archive + entry(b"another") + END)
    assert type(error) is InvalidTar
    assert error.position == position
    total = TarSum("v1")
    for call in (lambda: total.update(archive + END), lambda: total.update(END), total.finish, total.finish):
        with pytest.raises(InvalidTar):
            call()


@pytest.mark.parametrize("where", TRUNCATED)
def test_an_archive_that_breaks_off(where: str) -> None:
    """The error says where; until the end is known there is none, and after it no sum."""
    archive, position = TRUNCATED[where]
    total = TarSum("v1")
    total.update(archive)
    for _ in range(2):
        with pytest.raises(TruncatedTar) as caught:
            total.finish()
        assert caught.value.position == position == len(archive)


@pytest.mark.parametrize("content", [b"layer", random.Random(0).randbytes(100_000)])
def test_a_compressed_archive_is_named(content: bytes) -> None:
    """The likeliest mistake: a layer as registries have it today, which is compressed."""
    assert "gzip" in refused(gzip.compress(content, mtime=0)).reason


@pytest.mark.parametrize("hostile", [b"\x1b[2J", b"\n\n", "\u202e".encode(), b"\xff"])
def test_a_message_is_one_printable_line(hostile: bytes) -> None:
    """What an archive has where a number should be is quoted."""
    assert str(refused(header(patches={109: hostile}))).isprintable()
    assert str(refused(pax((b"uid", hostile), (b"path", b"x")) + entry(b"a"))).isprintable()


def test_too_many_entries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every entry takes memory, so there is a limit, and one more is an error."""
    monkeypatch.setattr(tarstream, "ENTRY_LIMIT", 3)
    assert tarsum(entry(b"a") * 3).startswith("tarsum.v1")
    assert refused(entry(b"a") * 4).position == 1536


@given(st.binary(max_size=3000))
def test_any_bytes_have_a_sum_or_are_refused(junk: bytes) -> None:
    """Nothing else comes out, whatever comes in."""
    try:
        tarsum(junk)
    except InvalidTar as error:
        assert 0 <= error.position <= len(junk)


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.sampled_from([one.name for one in VECTORS.glob("*.tar")]), st.randoms(use_true_random=False))
def test_a_flipped_byte(name: str, chance: random.Random) -> None:
    """A damaged archive has another sum or none; or the same, where nobody looks at the byte. It never hangs."""
    archive = bytearray((VECTORS / name).read_bytes())
    if archive:
        archive[chance.randrange(len(archive))] ^= 1 << chance.randrange(8)
    try:
        tarsum(bytes(archive))
    except InvalidTar:
        return


# --- memory --------------------------------------------------------------------------------------------------------


def peak(feed: Iterable[bytes | memoryview]) -> int:
    total = TarSum("v1")
    tracemalloc.start()
    for piece in feed:
        total.update(piece)
    total.finish()
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return most


def test_content_takes_no_memory() -> None:
    """Neither one large file in large pieces nor its holes are copied or kept."""
    piece = bytes(16 * MIB)
    assert peak([header(b"large", len(piece) * 8), *[piece] * 8, END]) < MIB // 4
    assert peak([sparse(64 * MIB, b"1\n%d\n0\n" % (64 * MIB), b"") + END]) < MIB // 4


def test_what_an_entry_takes() -> None:
    """48 bytes and room to grow while it is fed; some hundred while it is finished."""
    count = 5_000
    assert peak(entry(b"%d" % number) for number in range(count)) < 400 * count
