"""Names of repositories, tags and uploads (facts A.4): strict where something is created, lenient where it is read."""

from __future__ import annotations

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerfs import names
from layerfs.errors import InvalidName, InvalidRepositoryName, InvalidTag, InvalidUploadId, InvalidUploadName

STRICT = [
    "a",
    "0",
    "a/b",
    "a/b/c",
    "library/alpine",
    "a.b",
    "a_b",
    "a__b",
    "a-b",
    "a--b",
    "a---b",
    "a-b.c_d__e",
    "9/9",
    "x/blobs",
    "x/manifests/y",
    "x/tags/list",
    "uploads",
    "a/blobs/uploads",
    "a" * 255,
    "/".join("a" * 128),
]

#: In storage of some registry, but no name for a new repository.
LENIENT_ONLY = ["Foo/bar", "Example.COM/foo", "A", "a..b", "a-", "a.", "a_", "a___b", "a._b", "library/Alpine"]

NEITHER = [
    "",
    "/",
    "/a",
    "a/",
    "a//b",
    ".",
    "..",
    "a/..",
    "../a",
    "-a",
    ".a",
    "_a",
    "a/_layers",
    "_uploads",
    "a/.b",
    "a b",
    "a\n",
    "\na",
    "a\x00",
    "a:b",
    "localhost:5000/foo",
    "a@b",
    "ä",
    "a/é",
    "a\\b",
    "a" * 256,
    "a/" * 128 + "a",
]


@pytest.mark.parametrize("name", STRICT)
def test_a_name_that_may_be_created(name: str) -> None:
    """The strict grammar takes it, and so it can be read."""
    assert names.check_repository_name(name) == name
    assert names.check_stored_repository_name(name) == name


@pytest.mark.parametrize("name", LENIENT_ONLY)
def test_a_name_that_may_only_be_read(name: str) -> None:
    """Some registry has stored such names; nobody makes them any more."""
    assert names.check_stored_repository_name(name) == name
    with pytest.raises(InvalidRepositoryName):
        names.check_repository_name(name)


@pytest.mark.parametrize("name", NEITHER)
def test_a_name_of_no_repository(name: str) -> None:
    """Neither created nor read; the error says what is wrong and does not grow with the name."""
    for check in (names.check_repository_name, names.check_stored_repository_name):
        with pytest.raises(InvalidRepositoryName) as caught:
            check(name)
        assert caught.value.name.rstrip("…") == name[: len(caught.value.name.rstrip("…"))]
        assert len(str(caught.value)) < 700


@given(st.text())
def test_whatever_may_be_created_may_be_read(name: str) -> None:
    """The lenient grammar contains the strict one, and no text makes either fail otherwise."""
    try:
        names.check_repository_name(name)
    except InvalidRepositoryName:
        return
    assert names.check_stored_repository_name(name) == name


@pytest.mark.parametrize("tag", ["latest", "v1.0", "_x", "0", "A-b_C.d", "a" * 128, "a..b", "a--"])
def test_a_tag(tag: str) -> None:
    """A letter, digit or underscore, then up to 127 more with dots and dashes."""
    assert names.check_tag(tag) == tag


@pytest.mark.parametrize("tag", ["", "-a", ".a", "a" * 129, "a/b", "a b", "a\n", "a:b", "ä", "..", "."])
def test_no_tag(tag: str) -> None:
    """Anything else is refused."""
    with pytest.raises(InvalidTag) as caught:
        names.check_tag(tag)
    assert caught.value.name == tag


def test_new_upload_ids_are_uuids() -> None:
    """A registry purges only uploads whose id is a UUID; each is another one."""
    made = {names.new_upload_id() for _ in range(100)}
    assert len(made) == 100
    assert all(str(uuid.UUID(one)) == one and uuid.UUID(one).version == 4 for one in made)
    assert all(names.is_uuid(one) for one in made)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("f81d4fae-7dec-4d0a-a765-00a0c91e6bf6", True),
        ("0190b6a4-0000-7000-8000-000000000000", True),
        ("F81D4FAE-7DEC-4D0A-A765-00A0C91E6BF6", False),
        ("f81d4fae7dec4d0aa76500a0c91e6bf6", False),
        ("f81d4fae-7dec-4d0a-a765-00a0c91e6bf6\n", False),
        ("f81d4fae-7dec-4d0a-a765-00a0c91e6bf", False),
        ("{f81d4fae-7dec-4d0a-a765-00a0c91e6bf6}", False),
        ("", False),
    ],
)
def test_what_is_a_uuid(text: str, expected: bool) -> None:
    """Only as registries write them: lower-case, with dashes."""
    assert names.is_uuid(text) is expected


@pytest.mark.parametrize(
    "upload_id", ["f81d4fae-7dec-4d0a-a765-00a0c91e6bf6", "my-upload", "a=b", "_a", "-a", ".a", "a.b"]
)
def test_an_upload_id_that_storage_can_have(upload_id: str) -> None:
    """The registry's HTTP route takes these, so their directories can be there."""
    assert names.is_upload_id(upload_id)
    assert names.check_upload_id(upload_id) == upload_id


@pytest.mark.parametrize("upload_id", ["", ".", "..", "a/b", "../a", "a b", "a\n", "ä", "a:b", "a" * 256])
def test_no_upload_id(upload_id: str) -> None:
    """No directory of an upload has such a name."""
    assert not names.is_upload_id(upload_id)
    with pytest.raises(InvalidUploadId):
        names.check_upload_id(upload_id)


@pytest.mark.parametrize(
    "name", ["layer.tar.gz", "a b", ".hidden", "ä", "日本語", "-rf", "x" * 255, "é" * 127, "sha256:abc", "a\\b", "..."]
)
def test_a_file_name_for_an_upload(name: str) -> None:
    """What Unix can call a file, as long as it is printable UTF-8 of at most 255 bytes."""
    assert names.check_upload_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "a/b",
        "a\n",
        "a\x00b",
        "\x1b[31m",
        "a\x7f",
        "a\u202eb",
        "a\u2028b",
        "a\u200bb",
        "\udcff",
        "x" * 256,
        "é" * 128,
    ],
)
def test_no_file_name_for_an_upload(name: str) -> None:
    """Nothing that could move a terminal's cursor, turn text around, or leave the directory."""
    with pytest.raises(InvalidUploadName):
        names.check_upload_name(name)


@given(st.text())
def test_every_check_gives_its_argument_or_an_invalid_name(text: str) -> None:
    """No text makes a check fail in any other way."""
    for check in (
        names.check_repository_name,
        names.check_stored_repository_name,
        names.check_tag,
        names.check_upload_id,
        names.check_upload_name,
    ):
        try:
            assert check(text) == text
        except InvalidName as error:
            assert str(error)
