"""`Digest`: the name of content. No I/O.

The grammar and the three ways to break it are go-digest's (`github.com/opencontainers/go-digest`, `digest.go` and
`algorithm.go`): `algorithm ":" hex`, where only sha256, sha384 and sha512 are known and the hex is lower-case.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Final

from layerfs.errors import InvalidDigest, InvalidDigestFormat, InvalidDigestLength, UnsupportedDigestAlgorithm

#: Algorithms that content can be verified with, and how many hex digits each has.
HEX_LENGTHS: Final = {"sha256": 64, "sha384": 96, "sha512": 128}

#: The algorithm that blobs are stored under, whatever they were asked for by.
CANONICAL: Final = "sha256"

_FORM = re.compile(r"[a-z0-9]+(?:[.+_-][a-z0-9]+)*:[a-zA-Z0-9=_-]+")
_HEX = re.compile(r"[a-f0-9]+")


@dataclass(frozen=True, slots=True)
class Digest:
    """`algorithm:hex` of some content. Only `parse` and `of` make one, so whoever holds one can trust its form."""

    algorithm: str
    hex: str

    @classmethod
    def parse(cls, text: str) -> Digest:
        """The digest that `text` is.

        Raises `InvalidDigestFormat`, `UnsupportedDigestAlgorithm` or `InvalidDigestLength`.
        """
        if not _FORM.fullmatch(text):
            raise InvalidDigestFormat(_shortened(text), "expected algorithm:hex")
        algorithm, _, encoded = text.partition(":")
        length = HEX_LENGTHS.get(algorithm)
        if length is None:
            raise UnsupportedDigestAlgorithm(_shortened(text), f"only {', '.join(HEX_LENGTHS)} can be verified")
        if len(encoded) != length:
            raise InvalidDigestLength(_shortened(text), f"{algorithm} has {length} hex digits, not {len(encoded)}")
        if not _HEX.fullmatch(encoded):
            raise InvalidDigestFormat(_shortened(text), "only lower-case hex digits are allowed after the colon")
        return cls(algorithm, encoded)

    @classmethod
    def parse_or_none(cls, text: str) -> Digest | None:
        """The digest that `text` is, if it is one."""
        try:
            return cls.parse(text)
        except InvalidDigest:
            return None

    @classmethod
    def of(cls, content: bytes, algorithm: str = CANONICAL) -> Digest:
        """The digest of `content`, which is in memory."""
        return cls(algorithm, hashlib.new(algorithm, content).hexdigest())

    @property
    def is_canonical(self) -> bool:
        """Whether a blob can be stored under this digest."""
        return self.algorithm == CANONICAL

    @property
    def directory(self) -> str:
        """Where a repository has a link by this digest, inside `_layers` and its like."""
        return f"{self.algorithm}/{self.hex}"

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.hex}"


#: The digest of no bytes at all; a registry accepts it as a layer.
EMPTY: Final = Digest.of(b"")


def _shortened(text: str) -> str:
    """`text`, fit for a message: storage can hold megabytes where a digest should be."""
    return text if len(text) <= 200 else text[:200] + "…"
