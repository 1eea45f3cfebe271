"""Names of layers: which of the two kinds a text is, where their links lie, and what content is called."""

from __future__ import annotations

import hashlib

import pytest
from harness.tarsums import LABELS, archive, tarsum_of
from hypothesis import example, given
from hypothesis import strategies as st

from layerfs.digest import Digest
from layerfs.errors import (
    InvalidDigest,
    InvalidDigestFormat,
    InvalidTar,
    LayerTarSumVersionUnsupported,
    UnsupportedDigestAlgorithm,
)
from layerfs.layername import (
    LINK_DIRECTORIES,
    Verifier,
    is_of_nothing,
    layer_name_at,
    parse_layer_name,
    parse_layer_name_or_none,
)
from layerfs.tarsum import TarSumDigest

HEX = "ab12" * 16
NAMES = [
    (f"sha256:{HEX}", f"sha256/{HEX}", Digest("sha256", HEX)),
    (f"sha384:{HEX[:32]}{HEX}", f"sha384/{HEX[:32]}{HEX}", Digest("sha384", HEX[:32] + HEX)),
    (f"sha512:{HEX}{HEX}", f"sha512/{HEX}{HEX}", Digest("sha512", HEX + HEX)),
    (f"tarsum+sha256:{HEX}", f"tarsum/v0/sha256/{HEX}", TarSumDigest("", "sha256", HEX)),
    (f"tarsum.v1+sha256:{HEX}", f"tarsum/v1/sha256/{HEX}", TarSumDigest("v1", "sha256", HEX)),
    (f"tarsum.dev+sha256:{HEX}", f"tarsum/dev/sha256/{HEX}", TarSumDigest("dev", "sha256", HEX)),
]


@pytest.mark.parametrize(("text", "directory", "name"), NAMES)
def test_a_name_and_its_place(text: str, directory: str, name: Digest | TarSumDigest) -> None:
    """Text, value and directory go over into each other; only sha256 is canonical."""
    assert parse_layer_name(text) == parse_layer_name_or_none(text) == name
    assert (str(name), name.directory) == (text, directory)
    assert layer_name_at(directory) == name
    assert directory.rpartition("/")[0] in LINK_DIRECTORIES
    assert name.is_canonical == text.startswith("sha256:")


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", InvalidDigestFormat),
        ("layer.tar", InvalidDigestFormat),
        (f"tarsum:{HEX}", UnsupportedDigestAlgorithm),
        (f"tarsums+sha256:{HEX}", UnsupportedDigestAlgorithm),
        (f"xtarsum.v1+sha256:{HEX}", UnsupportedDigestAlgorithm),
        (f"tarsum.v1+sha512:{HEX}{HEX}", UnsupportedDigestAlgorithm),
        (f"tarsum.v1+sha256:{HEX}\n", InvalidDigestFormat),
        (f"tarsum.v1+sha256:{HEX.upper()}", InvalidDigestFormat),
        (f"tarsum.v2+sha256:{HEX}", LayerTarSumVersionUnsupported),
        ("tarsum.v23+test:1234", LayerTarSumVersionUnsupported),
    ],
)
def test_what_is_no_name(text: str, error: type[Exception]) -> None:
    """The error says which of the two it was meant to be, and what is wrong with it."""
    with pytest.raises(error):
        parse_layer_name(text)
    assert parse_layer_name_or_none(text) is None


@given(st.text(alphabet="tarsumv012dev.+:/shaABab\n_- ", max_size=90))
@example("tarsum/v1/sha256/..")
@example(f"tarsum/v1/sha256/{HEX}/link")
@example(f"/sha256/{HEX}")
@example(f"tarsum/v2/sha256/{HEX}")
@example(f"sha256/sha256/{HEX}")
def test_any_text_at_all(text: str) -> None:
    """It is a name, written in the one way that there is, or refused with an error of ours."""
    try:
        assert str(parse_layer_name(text)) == text
    except (InvalidDigest, LayerTarSumVersionUnsupported):
        assert parse_layer_name_or_none(text) is None
    name = layer_name_at(text)
    assert name is None or name.directory == text


@pytest.mark.parametrize("label", LABELS)
def test_what_content_is_called(label: str) -> None:
    """By each kind of name, fed in pieces."""
    content = archive("types.tar")
    canonical = hashlib.sha256(content).hexdigest()
    for expected in (tarsum_of("types.tar", label), f"sha256:{canonical}"):
        verifier = Verifier(parse_layer_name(expected))
        for start in range(0, len(content), 100):
            verifier.update(content[start : start + 100])
        assert str(verifier.finish()) == expected


def test_content_that_has_no_such_name() -> None:
    """What is no archive has no TarSum, and says so."""
    verifier = Verifier(parse_layer_name(f"tarsum+sha256:{HEX}"))
    with pytest.raises(InvalidTar):
        verifier.update(b"junk" * 1000)
        verifier.finish()


@pytest.mark.parametrize("algorithm", ["sha256", "sha384", "sha512"])
def test_the_digest_of_nothing(algorithm: str) -> None:
    """No bytes, by every algorithm; anything else is of something."""
    assert is_of_nothing(Digest.of(b"", algorithm))
    assert not is_of_nothing(Digest.of(b"x", algorithm))


@pytest.mark.parametrize("label", LABELS)
def test_the_tarsum_of_nothing(label: str) -> None:
    """The sum that docker's package gives to a file without a byte."""
    assert is_of_nothing(parse_layer_name(tarsum_of("zero-length.tar", label)))
    assert not is_of_nothing(parse_layer_name(tarsum_of("types.tar", label)))
