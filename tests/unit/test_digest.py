"""Digests: go-digest's grammar (facts A.2), and its three errors."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerfs.digest import EMPTY, Digest
from layerfs.errors import InvalidDigest, InvalidDigestFormat, InvalidDigestLength, UnsupportedDigestAlgorithm

HEX = {"sha256": "0a" * 32, "sha384": "1b" * 48, "sha512": "2c" * 64}


@pytest.mark.parametrize("algorithm", HEX)
def test_a_digest_is_its_two_parts(algorithm: str) -> None:
    """A well-formed digest keeps algorithm and hex apart, and prints as it was written."""
    digest = Digest.parse(f"{algorithm}:{HEX[algorithm]}")
    assert (digest.algorithm, digest.hex) == (algorithm, HEX[algorithm])
    assert str(digest) == f"{algorithm}:{HEX[algorithm]}"


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", InvalidDigestFormat),
        ("sha256", InvalidDigestFormat),
        ("sha256:", InvalidDigestFormat),
        (":" + HEX["sha256"], InvalidDigestFormat),
        ("SHA256:" + HEX["sha256"], InvalidDigestFormat),
        ("sha256:" + HEX["sha256"].upper(), InvalidDigestFormat),
        ("sha256:" + "g" * 64, InvalidDigestFormat),
        ("sha256:" + HEX["sha256"] + "\n", InvalidDigestFormat),
        ("\nsha256:" + HEX["sha256"], InvalidDigestFormat),
        (" sha256:" + HEX["sha256"], InvalidDigestFormat),
        ("sha256:" + HEX["sha256"] + "/../x", InvalidDigestFormat),
        ("sha256/" + HEX["sha256"], InvalidDigestFormat),
        ("sha256+:" + HEX["sha256"], InvalidDigestFormat),
        ("+sha256:" + HEX["sha256"], InvalidDigestFormat),
        ("a++b:" + HEX["sha256"], InvalidDigestFormat),
        ("sha256:" + "\u0660" * 64, InvalidDigestFormat),
        ("sha256:" + HEX["sha256"][:-1], InvalidDigestLength),
        ("sha256:" + HEX["sha256"] + "0", InvalidDigestLength),
        ("sha256:0", InvalidDigestLength),
        ("sha256:" + HEX["sha512"], InvalidDigestLength),
        ("sha384:" + HEX["sha256"], InvalidDigestLength),
        ("sha512:" + HEX["sha384"], InvalidDigestLength),
        ("md5:d41d8cd98f00b204e9800998ecf8427e", UnsupportedDigestAlgorithm),
        ("sha1:" + "0" * 40, UnsupportedDigestAlgorithm),
        ("sha224:" + "0" * 56, UnsupportedDigestAlgorithm),
        ("blake3:" + HEX["sha256"], UnsupportedDigestAlgorithm),
        ("tarsum.v1+sha256:" + HEX["sha256"], UnsupportedDigestAlgorithm),
        ("tarsum+sha256:" + HEX["sha256"], UnsupportedDigestAlgorithm),
        ("multihash+base58:QmRZxt2b1FVZPNqd8hsiykDL3TdBDeTSPX9Kv46HmX4Gx8", UnsupportedDigestAlgorithm),
    ],
)
def test_what_is_no_digest(text: str, error: type[InvalidDigest]) -> None:
    """Each way to break the grammar has its own error, which names the text."""
    with pytest.raises(error) as caught:
        Digest.parse(text)
    assert type(caught.value) is error
    assert caught.value.name == text


@given(st.text())
def test_any_text_parses_or_is_refused(text: str) -> None:
    """Whatever the text, there is a digest that prints the same, or an `InvalidDigest`."""
    try:
        digest = Digest.parse(text)
    except InvalidDigest:
        return
    assert str(digest) == text


@given(st.sampled_from(["sha256", "sha384", "sha512"]), st.binary())
def test_the_digest_of_content(algorithm: str, content: bytes) -> None:
    """`of` is what hashlib says, and parses back to itself."""
    digest = Digest.of(content, algorithm)
    assert str(digest) == f"{algorithm}:{hashlib.new(algorithm, content).hexdigest()}"
    assert Digest.parse(str(digest)) == digest


def test_only_sha256_is_canonical() -> None:
    """Blobs are stored under sha256 and nothing else."""
    assert Digest.of(b"x").is_canonical
    assert not Digest.of(b"x", "sha384").is_canonical
    assert not Digest.of(b"x", "sha512").is_canonical


def test_the_digest_of_nothing() -> None:
    """The digest that every registry knows for an empty layer."""
    assert str(EMPTY) == "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def test_digests_are_values() -> None:
    """Equal digests are one key, and nobody can change one."""
    one, other = Digest.of(b"x"), Digest.of(b"x")
    assert {one: 1}[other] == 1
    with pytest.raises(AttributeError):
        one.hex = "0" * 64  # type: ignore[misc]


def test_megabytes_where_a_digest_should_be() -> None:
    """A huge text is refused at once, and the message stays small."""
    with pytest.raises(InvalidDigestFormat) as caught:
        Digest.parse("a" * 10_000_000)
    assert len(str(caught.value)) < 500


def test_no_text_makes_the_grammar_slow() -> None:
    """Separators that could be matched in many ways are refused in linear time."""
    for text in ("a." * 100_000, "a-_" * 100_000 + ":", "sha256:" + "=" * 1_000_000 + "!"):
        with pytest.raises(InvalidDigest):
            Digest.parse(text)
