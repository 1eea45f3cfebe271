"""The errors: each says what is wrong, with the values, and nobody has to read the message to know them."""

from __future__ import annotations

import inspect

import pytest

from layerfs import errors
from layerfs.digest import Digest
from layerfs.errors import LayerfsError

ALL = [
    error
    for _, error in inspect.getmembers(errors, inspect.isclass)
    if issubclass(error, Exception) and error.__module__ == errors.__name__
]

A, B = Digest.of(b"a"), Digest.of(b"b")


def test_every_error_is_one_of_ours() -> None:
    """One base, so that a caller can tell what was raised on purpose from a mistake in the program."""
    assert ALL
    assert all(issubclass(error, LayerfsError) for error in ALL)


def test_every_error_is_explained() -> None:
    """Each class has a sentence of its own, and is told apart by its name, not by a message."""
    assert all(error.__doc__ and error.__doc__.strip().endswith((".", ")")) for error in ALL)


@pytest.mark.parametrize(
    ("error", "values", "words"),
    [
        (errors.LayerUnknown("a/b", A), {"name": "a/b", "digest": A}, ["a/b", str(A)]),
        (errors.LayerUnknown("a/b", A, "why"), {"digest": A}, ["why"]),
        (errors.LayerExists("a/b", A), {"name": "a/b", "digest": A}, ["a/b", str(A)]),
        (errors.LayerUploadUnknown("a/b", "id"), {"name": "a/b", "uuid": "id"}, ["a/b", "id"]),
        (errors.LayerUploadInvalid("a/b", "id", "why"), {"name": "a/b", "uuid": "id"}, ["a/b", "id", "why"]),
        (errors.LayerUploadBusy("a/b", "id", "why"), {"name": "a/b", "uuid": "id"}, ["a/b", "id", "why"]),
        (errors.LayerInvalidDigest(A, B, 7), {"expected": A, "actual": B, "size": 7}, [str(A), str(B), "7"]),
        (errors.LayerInvalidLength(7, 8), {"expected": 7, "actual": 8}, ["7", "8"]),
        (errors.LayerTarSumVersionUnsupported("tarsum.v9+sha256:00"), {}, ["tarsum.v9+sha256:00"]),
        (errors.LayerClosed("upload id"), {}, ["upload id"]),
        (errors.BlobUnknown(A), {"digest": A}, [str(A)]),
        (errors.BlobDamaged(A, B), {"digest": A, "actual": B}, [str(A), str(B)]),
        (errors.BlobUnverifiable(A, "no room"), {"digest": A}, [str(A), "no room"]),
        (errors.InvalidManifest("why"), {"reason": "why"}, ["why"]),
        (errors.ManifestTooLarge(4), {"limit": 4}, ["4"]),
        (errors.ManifestInvalidDigest(A, B), {"expected": A, "actual": B}, [str(A), str(B)]),
        (errors.ManifestUnknownRevision("a/b", A, "why"), {"name": "a/b", "digest": A}, ["a/b", str(A), "why"]),
        (errors.TagUnknown("a/b", "v1"), {"name": "a/b", "tag": "v1"}, ["a/b", "v1"]),
        (errors.ManifestBlobUnknown(A), {"digest": A}, [str(A)]),
        (errors.ManifestNotHere("a/b", A, "v1"), {"name": "a/b", "digest": A, "tag": "v1"}, ["a/b", str(A), "'v1'"]),
        (errors.ManifestNotHere("a/b", A), {"digest": A, "tag": None}, ["a/b", str(A)]),
        (errors.ManifestReferencesTooMany("a/b", "why"), {"name": "a/b", "reason": "why"}, ["a/b", "why"]),
        (errors.InvalidLayout("why"), {"reason": "why"}, ["oci-layout", "why"]),
        (errors.InvalidIndex("why"), {"reason": "why"}, ["index.json", "why"]),
        (errors.ManifestMissingUrl(A), {"digest": A}, [str(A)]),
        (errors.ManifestInvalidUrl(A, "ftp://x", "why"), {"digest": A, "url": "ftp://x"}, [str(A), "ftp://x", "why"]),
        (errors.ManifestNameInvalid("A b", "why"), {"name": "A b", "reason": "why"}, ["A b", "why"]),
        (errors.ManifestUnverified("why"), {"reason": "why"}, ["why"]),
        (
            errors.ManifestVerification("a/b", A, [errors.ManifestBlobUnknown(B)]),
            {"name": "a/b", "digest": A},
            ["a/b", str(A), str(B)],
        ),
        (errors.LinkInvalid("/a/link", "why"), {"path": "/a/link"}, ["/a/link", "why"]),
        (errors.RepositoryUnknown("a/b"), {"name": "a/b"}, ["a/b"]),
        (errors.RepositoryNotEmpty("a/b", "layers"), {"name": "a/b"}, ["a/b", "layers"]),
        (errors.InvalidTag("-x", "why"), {"name": "-x", "reason": "why"}, ["tag", "-x", "why"]),
        (errors.PathNotFound("/a"), {"path": "/a", "detail": ""}, ["/a"]),
        (errors.ContentChanged("/a", "why"), {"path": "/a", "detail": "why"}, ["/a", "why"]),
    ],
)
def test_an_error_carries_its_values(error: LayerfsError, values: dict[str, object], words: list[str]) -> None:
    """As attributes for programs, in the message for people."""
    for name, value in values.items():
        assert getattr(error, name) == value
    for word in words:
        assert word in str(error)


@pytest.mark.parametrize("hostile", ["a\nb", "\x1b[2J", "\udcff", "\u202e"])
def test_a_message_is_one_printable_line(hostile: str) -> None:
    """Names out of storage and off command lines are quoted: none reaches a terminal or a log unescaped."""
    for error in (
        errors.InvalidRepositoryName(hostile, "why"),
        errors.PathNotFound(hostile),
        errors.LinkInvalid(hostile, "why"),
        errors.LayerUnknown(hostile, A),
        errors.LayerUploadUnknown(hostile, hostile),
        errors.RepositoryUnknown(hostile),
        errors.RepositoryNotEmpty(hostile, "layers"),
        errors.TagUnknown(hostile, hostile),
        errors.ManifestUnknownRevision(hostile, A),
        errors.ManifestNotHere(hostile, A, hostile),
        errors.ManifestReferencesTooMany(hostile, "why"),
        errors.ManifestInvalidUrl(A, hostile, "why"),
        errors.ManifestNameInvalid(hostile, "why"),
        errors.ManifestVerification(hostile, A, [errors.InvalidTag(hostile, "why")]),
    ):
        assert str(error).isprintable()
