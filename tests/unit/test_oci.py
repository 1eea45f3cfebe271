"""OCI image layouts as values: the two files, what a writer of an index meant by it, and which blobs are manifests."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
from harness import images
from harness.images import describe, docker_image, docker_list, encode, oci_image, oci_index, schema1
from hypothesis import given
from hypothesis import strategies as st

from layerfs.digest import Digest
from layerfs.errors import InvalidIndex, InvalidLayout
from layerfs.manifest import MANIFEST_LIMIT, Descriptor
from layerfs.oci import (
    INDEX_FILE,
    INDEX_LIMIT,
    LAYOUT_CONTENT,
    LAYOUT_FILE,
    Changes,
    IndexContent,
    IndexEntry,
    check_layout,
    looks_like_manifest,
    merge,
    parse_index,
    render_index,
)

#: Three manifests.
A, B, C = (Digest.parse(images.digest(text)) for text in (b"a", b"b", b"c"))

REF_NAME = "org.opencontainers.image.ref.name"


def entry(manifest: Digest, tag: str | None = None, **more: Any) -> dict[str, Any]:
    """An entry of an index, as JSON has it."""
    annotations = {} if tag is None else {"annotations": {REF_NAME: tag}}
    return {"mediaType": images.OCI_IMAGE, "digest": str(manifest), "size": 7} | annotations | more


def index(*entries: dict[str, Any], **more: Any) -> bytes:
    return json.dumps({"schemaVersion": 2, "manifests": list(entries)} | more).encode()


def parsed(*entries: dict[str, Any]) -> list[tuple[Digest, str | None]]:
    return [(one.descriptor.digest, one.tag) for one in parse_index(index(*entries))]


def content(*entries: dict[str, Any]) -> IndexContent:
    """What an index of these entries comes to."""
    return IndexContent.from_entries(parse_index(index(*entries)))


# --- oci-layout --------------------------------------------------------------------------------------------------


def test_the_names_of_the_files() -> None:
    """And the content of the one that never changes, as image-spec has them."""
    assert (LAYOUT_FILE, INDEX_FILE) == ("oci-layout", "index.json")
    assert json.loads(LAYOUT_CONTENT) == {"imageLayoutVersion": "1.0.0"}
    check_layout(LAYOUT_CONTENT)


@pytest.mark.parametrize(
    "text",
    [
        b'{"imageLayoutVersion": "1.0.0"}',
        b'{\n    "imageLayoutVersion": "1.0.0"\n}\n',
        b'{"imageLayoutVersion":"1.0.0","by":"somebody"}',
    ],
)
def test_a_layout(text: bytes) -> None:
    """However it is written, and whatever else is in it."""
    check_layout(text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"", "JSON"),
        (b"1.0.0", "JSON"),
        (b'{"imageLayoutVersion":"1.0.0"', "JSON"),
        (b'{"imageLayoutVersion":"1.0.0"}{}', "JSON"),
        (b"\xff", "UTF-8"),
        (b'\xef\xbb\xbf{"imageLayoutVersion":"1.0.0"}', "BOM"),
        (b"null", "null"),
        (b"[]", "a list"),
        (b'"1.0.0"', "a string"),
        (b"{}", "imageLayoutVersion"),
        (b'{"imageLayoutVersion":null}', "imageLayoutVersion"),
        (b'{"imageLayoutVersion":1.0}', "1.0"),
        (b'{"imageLayoutVersion":"1.0.1"}', "1.0.1"),
        (b'{"imageLayoutVersion":"2.0.0"}', "2.0.0"),
        (b'{"imageLayoutVersion":"1.0.0","imageLayoutVersion":"2.0.0"}', "twice"),
        (b'{"ImageLayoutVersion":"1.0.0"}', "ImageLayoutVersion"),
        (b'{"imageLayoutVersion":"\\u001b[2J\\u202e"}', "\\x1b"),
        (b'{"imageLayoutVersion":"' + b"9" * 100_000 + b'"}', "999…"),
    ],
)
def test_no_layout(text: bytes, reason: str) -> None:
    """Is refused in one printable line that says why."""
    with pytest.raises(InvalidLayout) as caught:
        check_layout(text)
    assert reason in caught.value.reason
    assert caught.value.reason in str(caught.value)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 500


# --- index.json --------------------------------------------------------------------------------------------------


def test_what_an_index_looks_like() -> None:
    """Byte for byte: no spaces, in the order given, one manifest under two names twice, one without a name."""
    image = Descriptor(images.OCI_IMAGE, A, 1234)
    other = Descriptor(images.DOCKER_LIST, B, 5)
    assert render_index([IndexEntry(image, "v1"), IndexEntry(other, None), IndexEntry(image, "latest")]) == (
        b'{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":['
        b'{"mediaType":"application/vnd.oci.image.manifest.v1+json",'
        b'"digest":"sha256:ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb","size":1234,'
        b'"annotations":{"org.opencontainers.image.ref.name":"v1"}},'
        b'{"mediaType":"application/vnd.docker.distribution.manifest.list.v2+json",'
        b'"digest":"sha256:3e23e8160039594a33894f6564e1b1348bbd7a0088d42c4acb73eeaed59c009d","size":5},'
        b'{"mediaType":"application/vnd.oci.image.manifest.v1+json",'
        b'"digest":"sha256:ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb","size":1234,'
        b'"annotations":{"org.opencontainers.image.ref.name":"latest"}}]}'
    )


def test_an_empty_index() -> None:
    """Is a list of nothing, not `null`, which not every reader expects."""
    assert render_index([]) == (
        b'{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}'
    )


TAGS = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}", fullmatch=True)
DIGESTS = st.binary(max_size=2).map(Digest.of)
ENTRIES = st.builds(
    IndexEntry,
    st.builds(
        Descriptor,
        st.text(max_size=20),
        DIGESTS,
        st.integers(min_value=0, max_value=2**63 - 1),
        st.lists(st.text(), max_size=2).map(tuple),
    ),
    st.none() | TAGS,
)


@given(st.lists(ENTRIES, max_size=5))
def test_what_is_rendered_is_read_back(entries: list[IndexEntry]) -> None:
    """All of it, in order."""
    assert parse_index(render_index(entries)) == tuple(entries)


def test_an_index_of_a_large_repository() -> None:
    """50,000 tags, indented as crane does it: within the limit, and read."""
    many = [entry(Digest.of(b"%d" % number), f"release-{number}") for number in range(50_000)]
    text = json.dumps({"schemaVersion": 2, "mediaType": images.OCI_INDEX, "manifests": many}, indent=3).encode()
    assert len(text) < INDEX_LIMIT
    assert len(parse_index(text)) == 50_000


#: How an index begins with each client, before anything is in it.
EMPTY = {
    "umoci": b'{"schemaVersion":2,"manifests":null}\n',
    "containers/image": b'{"schemaVersion":2,"manifests":null,"annotations":{}}',
    "crane": b'{\n   "schemaVersion": 2,\n   "mediaType": "application/vnd.oci.image.index.v1+json",\n'
    b'   "manifests": []\n}',
    "oras": b'{"schemaVersion":2,"manifests":[]}',
    "missing": b'{"schemaVersion":2}',
    "null type": b'{"schemaVersion":2,"mediaType":null,"manifests":null}',
}


@pytest.mark.parametrize("client", EMPTY)
def test_an_index_that_lists_nothing(client: str) -> None:
    """Go writes an empty list as `null` where nobody thought of it."""
    assert parse_index(EMPTY[client]) == ()


def test_all_that_clients_write_into_an_entry() -> None:
    """What a registry has no use for is passed over."""
    buildkit = {
        REF_NAME: "v1",
        "io.containerd.image.name": "docker.io/library/app:v1",
        "org.opencontainers.image.created": "2026-01-01T00:00:00Z",
    }
    entries = [
        entry(A, annotations=buildkit, platform={"architecture": "amd64", "os": "linux"}),
        entry(B, "latest", artifactType="application/vnd.example", data="e30=", urls=["https://example.com/"]),
        entry(C, annotations=None),
        entry(C, annotations={REF_NAME: None}),
        entry(C, annotations={REF_NAME: "", "x": "y"}),
        {"digest": str(C)},
    ]
    assert parsed(*entries) == [(A, "v1"), (B, "latest"), (C, None), (C, None), (C, None), (C, None)]
    (first, second, *_) = parse_index(index(*entries, annotations={"a": "b"}, subject=entry(C), artifactType="x"))
    assert first.descriptor == Descriptor(images.OCI_IMAGE, A, 7)
    assert second.descriptor == Descriptor(images.OCI_IMAGE, B, 7, ("https://example.com/",))


def test_one_manifest_or_name_several_times() -> None:
    """Is taken as it is, in order."""
    assert parsed(entry(A, "v1"), entry(A, "v2"), entry(A), entry(B, "v1")) == [
        (A, "v1"),
        (A, "v2"),
        (A, None),
        (B, "v1"),
    ]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"", "JSON"),
        (b"{no", "JSON"),
        (index(entry(A, "v1"))[:-1], "JSON"),
        (index() + b"x", "JSON"),
        (index() + index(), "JSON"),
        (b"\xef\xbb\xbf" + index(), "BOM"),
        (b"\xff\xfe", "UTF-8"),
        (b"\x00" * 300, "JSON"),
        (b"null", "null"),
        (b"[]", "a list"),
        (b"7", "7"),
        (b"{}", "schemaVersion is 0"),
        (b'{"manifests":[]}', "schemaVersion is 0"),
        (index(schemaVersion=1), "schemaVersion is 1"),
        (index(schemaVersion="2"), "'schemaVersion'"),
        (index(schemaVersion=2.0), "2.0"),
        (b'{"schemaVersion":2,"schemaVersion":2}', "twice"),
        (b'{"schemaVersion":2,"Manifests":[]}', "'Manifests'"),
        (b'{"schemaVersion":2,"manifests":NaN}', "NaN"),
        (b'{"schemaVersion":2,"manifests":' + b"[" * 1000 + b"]" * 1000 + b"}", "deeper"),
        (b'{"schemaVersion":2,"manifests":[' + b"[]," * 400_000 + b"[]]}", "more than"),
        (index(mediaType=images.DOCKER_LIST), images.DOCKER_LIST),
        (encode(oci_image()), images.OCI_IMAGE),
        (index(config=describe(b"{}", images.OCI_CONFIG)), "'config'"),
        (index(layers=[]), "'layers'"),
        (index(manifests={}), "an object"),
        (index(manifests=["x"]), "manifests[0]"),
        (index(entry(A), entry(A, digest="sha256:12")), "manifests[1]"),
        (index(entry(A, digest="")), "manifests[0]"),
        (index(entry(A, digest=None)), "manifests[0]"),
        (index(entry(A, digest="md5:" + "0" * 32)), "md5"),
        (index(entry(A, digest=str(A).upper())), "SHA256"),
        (index(entry(A, digest="sha256:../../../etc/passwd")), "passwd"),
        (index(entry(A, digest=images.digest(b"a", "sha512"))), "sha256 only"),
        (index(entry(A, size="7")), "'size'"),
        (index(entry(A, size=2**63)), "'size'"),
        (index(entry(A, mediaType=7)), "'mediaType'"),
        (index(entry(A, urls="x")), "'urls'"),
        (index(entry(A, annotations=[])), "'annotations'"),
        (index(entry(A, annotations={REF_NAME: 1})), "'annotations'"),
        (index(entry(A, annotations={REF_NAME.upper(): "v1"})), REF_NAME.upper()),
    ],
)
def test_no_index(text: bytes, reason: str) -> None:
    """Is refused in one printable line that says why; nothing of it counts."""
    with pytest.raises(InvalidIndex) as caught:
        parse_index(text)
    assert reason in caught.value.reason
    assert caught.value.reason in str(caught.value)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("docker.io/library/app:v1", "'docker.io/library/app:v1'"),
        ("my image", "'my image'"),
        ("-v1", "'-v1'"),
        ("a/b", "'a/b'"),
        ("v1\n", "'v1\\n'"),
        ("..", "'..'"),
        ("\x1b[2J\u202e", "'\\x1b[2J\\u202e'"),
        ("\udcff", "'\\udcff'"),
        ("ä", "'ä'"),
        ("x" * 129, "x" * 129),
        ("y" * 100_000, "yyy…"),
    ],
)
def test_a_name_that_is_no_tag(name: str, shown: str) -> None:
    """A layout can have it, a registry cannot: the error names the entry, the name, and what could be."""
    with pytest.raises(InvalidIndex) as caught:
        parse_index(index(entry(A), entry(B, name)))
    message = str(caught.value)
    assert "manifests[1]" in message
    assert shown in message
    assert "tags" in message
    assert message.isprintable()
    assert len(message) < 600


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["schemaVersion", "mediaType", "manifests", "digest", "annotations", REF_NAME, "config"]),
            inner | st.sampled_from([2, str(A), "v1", images.OCI_IMAGE]),
            max_size=4,
        )
    ),
    max_leaves=12,
)
ANYTHING = st.binary(max_size=60) | JSON.map(lambda value: json.dumps(value).encode())


@given(ANYTHING)
def test_whatever_the_bytes_are(text: bytes) -> None:
    """They are an index or not, and never anything worse."""
    for read, error in ((parse_index, InvalidIndex), (check_layout, InvalidLayout)):
        try:
            read(text)  # type: ignore[operator]
        except error as caught:
            assert str(caught).isprintable()
    looks_like_manifest(text)


# --- what an index comes to --------------------------------------------------------------------------------------


def test_what_an_index_comes_to() -> None:
    """Of two entries with one name the last counts; the other one is there without a name."""
    found = content(entry(A, "v1"), entry(C), entry(B, "v1"), entry(B, "latest"))
    assert dict(found.tags) == {"v1": B, "latest": B}
    assert found.untagged == {A, C}
    assert found.manifests == {A, B, C}


def test_a_manifest_with_a_name_is_not_untagged() -> None:
    """Though it has another entry that gives it none, or one whose name went to another manifest."""
    found = content(entry(A), entry(A, "v1"), entry(A, "v2"), entry(B, "v2"))
    assert dict(found.tags) == {"v1": A, "v2": B}
    assert found.untagged == frozenset()


# --- what clients write ------------------------------------------------------------------------------------------


@dataclass
class Writing:
    """What a client had read, what it wrote, and what that means where nothing else has happened."""

    read: list[dict[str, Any]]
    wrote: list[dict[str, Any]]
    tags: dict[str, Digest]
    untagged: frozenset[Digest] = frozenset()
    removed: Mapping[str, Digest] | None = None


#: By hand, after the clients' sources: what `skopeo copy`, `umoci tag`, … do to an index with v1 (A).
CLIENTS = {
    "containers/image, the first image": Writing([], [entry(A, "v1")], {"v1": A}),
    "containers/image, another tag": Writing([entry(A, "v1")], [entry(A, "v1"), entry(B, "v2")], {"v2": B}),
    # The old manifest stays in the index, and loses its name.
    "containers/image moves a tag": Writing([entry(A, "v1")], [entry(A), entry(B, "v1")], {"v1": B}),
    "containers/image moves a tag back": Writing(
        # It had the entry without a name from before; that one is given the name again.
        [entry(A), entry(B, "v1")],
        [entry(A, "v1"), entry(B)],
        {"v1": A},
    ),
    "containers/image, the same image by another tag": Writing(
        [entry(A, "v1")], [entry(A, "v1"), entry(A, "v2")], {"v2": A}
    ),
    "containers/image pushes the same again": Writing(
        [entry(A, "v1"), entry(A, "v2")], [entry(A, "v1"), entry(A, "v2")], {}
    ),
    "containers/image without a tag": Writing([entry(A, "v1")], [entry(A, "v1"), entry(B)], {}, frozenset({B})),
    "skopeo delete": Writing([entry(A, "v1"), entry(B, "v2")], [entry(B, "v2")], {}, removed={"v1": A}),
    "skopeo delete, of two names": Writing([entry(A, "v1"), entry(A, "v2")], [entry(A, "v2")], {}, removed={"v1": A}),
    # The entries of that name are dropped, and one is appended.
    "umoci moves a tag": Writing([entry(A, "v1"), entry(B, "v2")], [entry(B, "v2"), entry(C, "v1")], {"v1": C}),
    "umoci tag": Writing([entry(A, "v1")], [entry(A, "v1"), entry(A, "v2")], {"v2": A}),
    "umoci rm": Writing([entry(A, "v1"), entry(B, "v2")], [entry(A, "v1")], {}, removed={"v2": B}),
    "umoci init": Writing([], [], {}),
    # Appended whatever is there already.
    "crane appends a name that is there": Writing([entry(A, "v1")], [entry(A, "v1"), entry(B, "v1")], {"v1": B}),
    "crane appends the same": Writing([entry(A, "v1")], [entry(A, "v1"), entry(A, "v1")], {}),
    "crane pull without a name": Writing([entry(A, "v1")], [entry(A, "v1"), entry(B)], {}, frozenset({B})),
    "BuildKit by its long name": Writing(
        # It only takes out entries of the same `io.containerd.image.name`, which those of a registry have not.
        [entry(A, "v1")],
        [entry(A, "v1"), entry(B, annotations={REF_NAME: "v1", "io.containerd.image.name": "docker.io/x/y:v1"})],
        {"v1": B},
    ),
    "BuildKit exports a cache": Writing([entry(A, "latest")], [entry(B, "latest")], {"latest": B}),
    "regctl replaces in place": Writing([entry(A, "v1"), entry(B, "v2")], [entry(C, "v1"), entry(B, "v2")], {"v1": C}),
    # A referrer: its manifest has no name, and the list of referrers has one made of the subject's digest.
    "regctl puts a referrer": Writing(
        [entry(A, "v1")],
        [entry(A, "v1"), entry(B), entry(C, f"sha256-{A.hex}", mediaType=images.OCI_INDEX)],
        {f"sha256-{A.hex}": C},
        frozenset({B}),
    ),
    "oras pushes by digest": Writing([entry(A, "v1")], [entry(A, "v1"), entry(B)], {}, frozenset({B})),
    # The write after the one above, when the pushed manifest is given its name.
    "oras then tags": Writing([entry(A, "v1"), entry(B)], [entry(A, "v1"), entry(B, "v2")], {"v2": B}),
    "oras untag": Writing([entry(A, "v1")], [entry(A)], {}, removed={"v1": A}),
    "oras manifest delete": Writing([entry(A, "v1"), entry(B, "v2")], [entry(B, "v2")], {}, removed={"v1": A}),
    "in another order": Writing([entry(A, "v1"), entry(B, "v2")], [entry(B, "v2"), entry(A, "v1")], {}),
}


@pytest.mark.parametrize("client", CLIENTS)
def test_what_a_client_means(client: str) -> None:
    """Exactly these tags are put, manifests kept, and tags removed."""
    writing = CLIENTS[client]
    base = content(*writing.read)
    assert merge(base, base, content(*writing.wrote)) == Changes(
        writing.tags, writing.untagged, dict(writing.removed or {})
    )


@pytest.mark.parametrize("client", CLIENTS)
def test_what_a_client_never_saw_is_not_its_own(client: str) -> None:
    """Tags that others put after it had read the index are neither moved nor removed by what it writes."""
    writing = CLIENTS[client]
    base = content(*writing.read)
    now = content(*writing.read, entry(C, "theirs"), entry(Digest.of(b"d"), "other"))
    changes = merge(base, now, content(*writing.wrote))
    assert {"theirs", "other"}.isdisjoint([*changes.tags, *changes.removed])
    assert changes.tags == writing.tags
    assert changes.removed == dict(writing.removed or {})


def test_two_writers_of_one_tag() -> None:
    """The last one wins, as in a registry; the manifest of the other is still there."""
    base, now = content(entry(A, "v1")), content(entry(B, "v1"))
    assert merge(base, now, content(entry(C, "v1"))).tags == {"v1": C}


def test_two_writers_that_mean_the_same() -> None:
    """What the second wants is there already."""
    base, now = content(entry(A, "v1")), content(entry(B, "v1"), entry(C, "v2"))
    assert not merge(base, now, content(entry(B, "v1"), entry(C, "v2")))


def test_a_tag_that_was_moved_is_not_removed() -> None:
    """Whoever removes has seen something else; nor is anything to be done for one that is gone already."""
    base, written = content(entry(A, "v1"), entry(A, "v2")), content()
    changes = merge(base, content(entry(B, "v1")), written)
    assert changes.removed == {}
    assert merge(base, content(entry(A, "v1")), written).removed == {"v1": A}


def test_a_tag_that_is_removed_stays_removed() -> None:
    """Who has it still in the copy, unchanged, does not bring it back."""
    base = content(entry(A, "v1"), entry(B, "v2"))
    changes = merge(base, content(entry(B, "v2")), content(entry(A, "v1"), entry(B, "v2"), entry(C, "v3")))
    assert changes == Changes({"v3": C}, frozenset(), {})


def test_an_untagged_manifest_that_is_there() -> None:
    """In whatever form, and whoever put it: nothing has to be done for it."""
    for there in (entry(B), entry(B, "x")):
        assert not merge(content(), content(there), content(entry(B)))
        assert not merge(content(there), content(there), content(there))
    assert not merge(content(entry(B, "x")), content(entry(A, "x")), content(entry(A, "x"), entry(B)))


# --- what holds for all writers ----------------------------------------------------------------------------------

CONTENTS = st.builds(
    IndexContent,
    st.dictionaries(st.sampled_from(["v1", "v2", "v3", "v4"]), st.sampled_from([A, B, C]), max_size=4),
    st.frozensets(st.sampled_from([A, B, C, Digest.of(b"d")]), max_size=3),
)


def applied(now: IndexContent, changes: Changes) -> IndexContent:
    """What a registry has after the changes, with removal allowed; manifests stay."""
    tags = dict(now.tags) | changes.tags
    for tag, digest in changes.removed.items():
        if tags.get(tag) == digest:
            del tags[tag]
    had = now.manifests | changes.untagged | set(changes.tags.values())
    return IndexContent(tags, frozenset(had - set(tags.values())))


@given(CONTENTS, CONTENTS)
def test_who_changes_nothing_changes_nothing(base: IndexContent, now: IndexContent) -> None:
    """Writing back what was read is no change, whatever has happened meanwhile."""
    assert not merge(base, now, base)


@given(CONTENTS, CONTENTS)
def test_who_is_alone_gets_what_was_written(base: IndexContent, written: IndexContent) -> None:
    """Exactly these tags, and at least these manifests."""
    after = applied(base, merge(base, base, written))
    assert after.tags == written.tags
    assert after.manifests >= written.manifests


@given(CONTENTS, CONTENTS, CONTENTS)
def test_three_ways(base: IndexContent, now: IndexContent, written: IndexContent) -> None:
    """Each tag is as the writer wants it if the writer changed it, and else as it was."""
    after = applied(now, merge(base, now, written))
    for tag in ("v1", "v2", "v3", "v4"):
        read, there, wanted = (one.tags.get(tag) for one in (base, now, written))
        if wanted == read:
            assert after.tags.get(tag) == there
        elif wanted is not None:
            assert after.tags.get(tag) == wanted
        else:
            assert after.tags.get(tag) == (None if there == read else there)
    assert after.manifests >= now.manifests
    assert after.manifests >= written.manifests - base.manifests


@given(CONTENTS, CONTENTS, CONTENTS)
def test_merging_again_changes_nothing(base: IndexContent, now: IndexContent, written: IndexContent) -> None:
    """A client that writes the same twice, or is not sure whether it was heard."""
    after = applied(now, merge(base, now, written))
    assert not merge(base, after, written)


@given(CONTENTS, st.permutations([0, 0, 1, 1, 2, 2, 3, 3]))
def test_parallel_writers_lose_no_tag(start: IndexContent, order: list[int]) -> None:
    """Each reads once and writes once, in any order, and adds a tag of its own: in the end all are there."""
    now, copies = start, {}
    own = {f"own{number}": Digest.of(b"own %d" % number) for number in range(4)}
    for number in order:
        if number not in copies:
            copies[number] = now
        else:
            now = write_own(copies[number], now, number, own)
    assert now.tags == dict(start.tags) | own


def write_own(base: IndexContent, now: IndexContent, number: int, own: dict[str, Digest]) -> IndexContent:
    tag = f"own{number}"
    return applied(now, merge(base, now, IndexContent(dict(base.tags) | {tag: own[tag]}, base.untagged)))


# --- manifests among blobs ---------------------------------------------------------------------------------------


def without(document: dict[str, Any], *fields: str) -> dict[str, Any]:
    return {name: value for name, value in document.items() if name not in fields}


IMAGE = oci_image(b"{}", [b"layer"])
MANIFESTS = {
    "OCI image": encode(IMAGE),
    "OCI image without media type": encode(without(IMAGE, "mediaType")),
    "OCI image without layers": encode(without(IMAGE, "mediaType", "layers")),
    "Go's image without layers": encode(without(IMAGE, "mediaType") | {"layers": None}),
    "artifact": encode(IMAGE | {"artifactType": "a/b", "subject": describe(b"x", images.OCI_IMAGE)}),
    "OCI index": encode(oci_index([b"x"])),
    "OCI index without media type": encode(without(oci_index([b"x"]), "mediaType")),
    "empty index without media type": b'{"schemaVersion":2,"manifests":[]}',
    "Docker image": encode(docker_image(b"{}", [b"layer"])),
    "Docker list": encode(docker_list([b"x"])),
    "schema 1": encode(schema1([b"x"])),
    "signed schema 1": images.sign(schema1([b"x"]), images.ec_key()),
    "after spaces": b" \r\n\t" + encode(IMAGE),
    "in one line": json.dumps(IMAGE, separators=(",", ":")).encode(),
    "with spaces behind": encode(IMAGE) + b"\n",
    "of the largest size": encode(IMAGE) + b" " * (MANIFEST_LIMIT - len(encode(IMAGE))),
    "refused later, with a reason": encode(IMAGE | {"config": describe(b"not here", images.OCI_CONFIG)}),
}


@pytest.mark.parametrize("kind", MANIFESTS)
def test_a_manifest_among_blobs(kind: str) -> None:
    """Every kind that a registry stores, with a media type in it or without."""
    assert looks_like_manifest(MANIFESTS[kind])


OTHER_BLOBS: dict[str, bytes] = {
    "nothing": b"",
    "spaces": b" " * 1000,
    "gzip": b"\x1f\x8b\x08\x00" + b"\x00" * 100,
    "zstd": b"\x28\xb5\x2f\xfd" + b"\x00" * 100,
    "tar": b"{" + b"\x00" * 511,
    "text": b"schemaVersion",
    "JSON of another kind": b"[]",
    "empty object": b"{}",
    "no JSON": b'{"schemaVersion":2,',
    "config": json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Env": ["A=b"], "digest": "x"},
            "rootfs": {"type": "layers", "diff_ids": [str(A)]},
            "history": [{"created_by": "x"}],
        }
    ).encode(),
    "SPDX": json.dumps(
        {"spdxVersion": "SPDX-2.3", "SPDXID": "SPDXRef-DOCUMENT", "dataLicense": "CC0-1.0", "packages": []}
    ).encode(),
    "CycloneDX": json.dumps({"bomFormat": "CycloneDX", "specVersion": "1.5", "version": 1, "components": []}).encode(),
    "in-toto": json.dumps(
        {"_type": "https://in-toto.io/Statement/v0.1", "subject": [{"digest": {"sha256": A.hex}}], "predicate": {}}
    ).encode(),
    "simple signing": json.dumps(
        {"critical": {"image": {"docker-manifest-digest": str(A)}}, "optional": None}
    ).encode(),
    "trivy report": json.dumps({"SchemaVersion": 2, "ArtifactName": "x", "Results": []}).encode(),
    "cache config of BuildKit": json.dumps({"layers": [{"blob": str(A)}], "records": []}).encode(),
    "image of another version": encode(IMAGE | {"schemaVersion": 3}),
    "image without version": encode(without(IMAGE, "schemaVersion")),
    "version as text": encode(IMAGE | {"schemaVersion": "2"}),
    "version as truth": encode(IMAGE | {"schemaVersion": True}),
    "version as list": encode(IMAGE | {"schemaVersion": [2]}),
    "type of another kind": encode(IMAGE | {"mediaType": images.OCI_CONFIG}),
    "type that is no text": encode(IMAGE | {"mediaType": ["x"]}),
    "version alone": b'{"schemaVersion":2}',
    "version and name": b'{"schemaVersion":2,"name":"x"}',
    "config without digest": encode(without(IMAGE, "mediaType") | {"config": {}}),
    "config that is text": encode(without(IMAGE, "mediaType") | {"config": "x"}),
    "layers that are none": encode(without(IMAGE, "mediaType") | {"layers": ["x"]}),
    "layers in an object": encode(without(IMAGE, "mediaType") | {"layers": {}}),
    "manifests that are none": b'{"schemaVersion":2,"manifests":["app.yaml"]}',
    "manifests in an object": b'{"schemaVersion":2,"manifests":{}}',
    "schema 1 without layers": encode(without(schema1(), "fsLayers")),
    "too large": encode(IMAGE) + b" " * MANIFEST_LIMIT,
    "too deep": b'{"a":' * 100_000,
    "a layer of brackets": b"{" * MANIFEST_LIMIT,
    "not UTF-8": b'{"schemaVersion":2,"a":"\xff"}',
    "a version twice": b'{"schemaVersion":2,"schemaVersion":2,"manifests":[]}',
}


@pytest.mark.parametrize("kind", OTHER_BLOBS)
def test_a_blob_that_is_no_manifest(kind: str) -> None:
    """Configs, documents of all kinds, archives, and what only begins like a manifest."""
    assert not looks_like_manifest(OTHER_BLOBS[kind])
