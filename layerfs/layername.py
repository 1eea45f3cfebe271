"""`LayerName`: what a layer can be called, a digest of its bytes or, as registries began, a TarSum. No I/O.

Content is stored under its canonical digest, whichever of its names it was uploaded by. A link by any other name is an
alias: it holds the canonical digest, and is of use only beside the canonical link.
"""

from __future__ import annotations

import hashlib
import re
from typing import Final, TypeAlias

from layerfs.digest import CANONICAL, HEX_LENGTHS, Digest
from layerfs.errors import InvalidDigest, LayerTarSumVersionUnsupported
from layerfs.tarsum import DIRECTORIES, TarSum, TarSumDigest

LayerName: TypeAlias = Digest | TarSumDigest

#: Where a repository has the directories of its links, inside `_layers`.
LINK_DIRECTORIES: Final = (*HEX_LENGTHS, *DIRECTORIES.values())

# What is no digest, but was meant to be a TarSum: the word is followed by a version or by the name of a hash.
_IS_TARSUM = re.compile(r"tarsum[.+]")


def parse_layer_name(text: str) -> LayerName:
    """The name that `text` is. Raises `InvalidDigest` or `LayerTarSumVersionUnsupported`."""
    return TarSumDigest.parse(text) if _IS_TARSUM.match(text) else Digest.parse(text)


def parse_layer_name_or_none(text: str) -> LayerName | None:
    """The name that `text` is, if it is one."""
    try:
        return parse_layer_name(text)
    except (InvalidDigest, LayerTarSumVersionUnsupported):
        return None


def layer_name_at(directory: str) -> LayerName | None:
    """The name whose `directory` that is, if it is one's."""
    parent, _, encoded = directory.rpartition("/")
    for version, place in DIRECTORIES.items():
        if parent == place:
            return parse_layer_name_or_none(str(TarSumDigest(version, CANONICAL, encoded)))
    return Digest.parse_or_none(f"{parent}:{encoded}")


def is_of_nothing(name: LayerName) -> bool:
    """Whether no bytes at all have this name. Where it is a TarSum, an archive without entries has it too."""
    verifier = Verifier(name)
    return verifier.finish() == name


class Verifier:
    """Tells what content is called, by the kind of name that `name` is, when all of it was fed.

    `update` and `finish` raise `InvalidTar` for what has no such name.
    """

    def __init__(self, name: LayerName) -> None:
        self._sum = TarSum(name.version) if isinstance(name, TarSumDigest) else _DigestSum(name.algorithm)

    def update(self, data: bytes) -> None:
        """The next bytes."""
        self._sum.update(data)

    def finish(self) -> LayerName:
        """The name; nothing may be fed after it."""
        return self._sum.finish()


class _DigestSum:
    def __init__(self, algorithm: str) -> None:
        self._algorithm = algorithm
        self._hash = hashlib.new(algorithm)

    def update(self, data: bytes) -> None:
        self._hash.update(data)

    def finish(self) -> Digest:
        return Digest(self._algorithm, self._hash.hexdigest())
