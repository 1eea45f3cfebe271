"""Looking into a storage without a mount: `layerfs ls`, `layerfs cat`, `layerfs inspect`."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
from pathlib import Path

import pytest
from harness.commands import run, shell
from harness.fixture import SCRIPT, faults
from harness.images import OCI_INDEX, describe, ec_key, encode, oci_image, oci_index, schema1, signature
from harness.images import digest as digest_of
from harness.mount import COMMAND
from harness.storage import Storage, snapshot
from harness.tarsums import LABELS, archive, tarsum_of

OK, USAGE, INTERRUPTED, FAILED = 0, 1, 8, 32

MISSING = "sha256:" + "0" * 64


def layerfs(*argv: object, **options: object) -> subprocess.CompletedProcess[str]:
    """Runs the command; it must succeed and say nothing on standard error."""
    result = run(COMMAND, *argv, **options)
    assert result.stderr == ""
    return result


def lines(*argv: object) -> list[str]:
    return layerfs(*argv).stdout.splitlines()


def objects(*argv: object) -> list[dict]:
    """What the command gives with `--format json`: an object a line."""
    return [json.loads(line) for line in lines(*argv, "--format", "json")]


def complaint(*argv: object, code: int = USAGE) -> str:
    """What it says when it fails: one line, no traceback."""
    result = run(COMMAND, *argv, check=False)
    assert result.returncode == code, result.stderr
    assert result.stderr.startswith("layerfs: ")
    assert result.stderr.count("\n") == 1
    return result.stderr


def stored_bytes(*argv: object) -> bytes:
    return subprocess.run([COMMAND, *map(str, argv)], check=True, capture_output=True, timeout=60).stdout


@pytest.fixture(scope="module")
def source(fixture_trees: Path) -> Storage:
    """The fixture's storage, which nobody here may change."""
    before = snapshot(fixture_trees / "storage")
    yield Storage(fixture_trees / "storage")
    assert snapshot(fixture_trees / "storage") == before


@pytest.fixture(scope="module")
def told(fixture_trees: Path) -> list[dict]:
    """What the registry itself said of every tag."""
    return [json.loads(line) for line in (fixture_trees / "tags.jsonl").read_text().splitlines()]


def put_manifest(storage: Storage, name: str, content: bytes, tag: str | None = None) -> str:
    """A manifest in storage, by hand."""
    digest = storage.put_blob(content)
    manifests = storage.make_repository(name) / "_manifests"
    links = [manifests / "revisions/sha256" / digest[7:] / "link"]
    if tag is not None:
        links += [
            manifests / "tags" / tag / "index/sha256" / digest[7:] / "link",
            manifests / "tags" / tag / "current/link",
        ]
    for link in links:
        link.parent.mkdir(parents=True, exist_ok=True)
        link.write_text(digest)
    return digest


def put_image(storage: Storage, name: str, config: bytes = b"{}", *layers: bytes, tag: str = "v1", **more) -> str:
    for blob in (config, *layers):
        storage.put_layer(name, blob)
    return put_manifest(storage, name, encode(oci_image(config, layers, **more)), tag)


# --- ls ----------------------------------------------------------------------------------------------------------


def test_repositories_in_the_order_of_the_catalog(source: Storage) -> None:
    """One a line; a name that only begins others is none; `/` comes before everything."""
    listed = lines("ls", source.root)
    assert {"a", "a/b", "a/b/c", "base", "team/app", "edge/sha512"} <= set(listed)
    assert "team" not in listed
    assert listed == sorted(listed, key=lambda name: name.split("/"))


def test_repositories_with_numbers(source: Storage) -> None:
    """`-l` counts tags, layers and uploads."""
    found = {each["repository"]: each for each in objects("ls", "-l", source.root)}
    assert found["base"] == {"repository": "base", "tags": 3, "layers": 4, "uploads": 0}
    assert found["edge/uploads"]["uploads"] == 2
    table = {row.split()[0]: row.split()[1:] for row in lines("ls", "-l", source.root)}
    assert table["base"] == ["3", "4", "0"]


def test_tags_are_what_the_registry_says(source: Storage, told: list[dict]) -> None:
    """Every tag with the registry's own digest and media type."""
    for name in {each["repo"] for each in told}:
        expected = {each["tag"]: (each["digest"], each["mediaType"]) for each in told if each["repo"] == name}
        listed = objects("ls", source.root, name)
        assert {each["tag"]: (each["digest"], each["mediaType"]) for each in listed} == expected
        assert all(each["size"] == source.blob(each["digest"]).stat().st_size for each in listed)


def test_the_table_of_tags(source: Storage) -> None:
    """The same for people, a tag a line under a heading."""
    head, *rows = lines("ls", source.root, "team/app")
    assert head.split() == ["TAG", "DIGEST", "SIZE", "MEDIA", "TYPE"]
    assert [row.split()[0] for row in rows] == ["latest", "v1", "v2"]


def test_untagged_manifests(source: Storage) -> None:
    """`-a` adds what no tag means; without it they are not there."""
    tagged, everything = objects("ls", source.root, "multi/arch"), objects("ls", "-a", source.root, "multi/arch")
    assert [each["tag"] for each in tagged] == ["latest"]
    assert [each["tag"] for each in everything] == ["latest", None, None]


def test_a_tag_whose_manifest_is_missing(storage: Storage) -> None:
    """Listed as such."""
    put_manifest(storage, "r", b"{}", "gone")
    storage.blob(digest_of(b"{}")).unlink()
    assert objects("ls", storage.root, "r") == [
        {"tag": "gone", "digest": digest_of(b"{}"), "mediaType": None, "size": None}
    ]
    assert "missing" in lines("ls", storage.root, "r")[1]


def test_layers(source: Storage) -> None:
    """`--layers` gives digest and size of each."""
    listed = objects("ls", "--layers", source.root, "base")
    assert {each["digest"] for each in listed} == {d for name, d, _ in source.links() if name == "base"}
    assert all(each["size"] == source.blob(each["digest"]).stat().st_size for each in listed)


def test_uploads(source: Storage) -> None:
    """`--uploads` gives what is unfinished; a ghost is nothing."""
    listed = objects("ls", "--uploads", source.root, "edge/uploads")
    assert sorted(each["size"] for each in listed) == [0, 170001]
    assert all(each["startedAt"].endswith("Z") for each in listed)


def test_what_an_image_refers_to(source: Storage, told: list[dict]) -> None:
    """The config and the layers, with sizes, and that they are there."""
    manifest = next(each for each in told if (each["repo"], each["tag"]) == ("team/app", "v2"))
    document = json.loads(source.blob(manifest["digest"]).read_bytes())
    expected = [("config", document["config"]), *(("layer", layer) for layer in document["layers"])]
    for reference in ("team/app:v2", f"team/app@{manifest['digest']}", f"team/app:v2@{manifest['digest']}"):
        listed = objects("ls", source.root, reference)
        assert [(each["kind"], each["digest"], each["size"]) for each in listed] == [
            (kind, part["digest"], part["size"]) for kind, part in expected
        ]
        assert all(each["stored"] and each["storedSize"] == each["size"] for each in listed)


@pytest.mark.parametrize("name", ["multi/arch", "multi/docker-list"])
def test_what_an_index_refers_to(source: Storage, name: str) -> None:
    """Its manifests with their platforms."""
    listed = objects("ls", source.root, f"{name}:latest")
    assert [(each["kind"], each["platform"]) for each in listed] == [
        ("manifest", "linux/amd64"),
        ("manifest", "linux/arm64"),
    ]


def test_what_is_not_there_or_not_whole(storage: Storage) -> None:
    """A layer without a link, and one of which bytes are missing, are shown as that."""
    put_image(storage, "r", b"{}", b"first layer", b"second layer")
    storage.link("r", digest_of(b"first layer")).unlink()
    os.truncate(storage.blob(digest_of(b"second layer")), 3)
    _config, first, second = objects("ls", storage.root, "r:v1")
    assert (first["stored"], first["storedSize"], first["size"]) == (False, None, 11)
    assert (second["stored"], second["storedSize"], second["size"]) == (True, 3, 12)
    table = lines("ls", storage.root, "r:v1")
    assert "missing" in table[2]
    assert "3 bytes" in table[3]


@pytest.mark.parametrize("command", ["ls", "cat", "inspect"])
def test_looking_through_a_dangling_tag(fixture_trees: Path, command: str) -> None:
    """What the tag means is not there: exit code 1, and the digest."""
    name, digest = faults(fixture_trees)["tag-to-missing-manifest"]
    assert digest in complaint(command, fixture_trees / "damaged", name)


# --- cat ---------------------------------------------------------------------------------------------------------


def test_bytes_of_every_manifest(source: Storage, told: list[dict]) -> None:
    """By tag and by digest, exactly as stored."""
    for each in told[:5]:
        stored = source.blob(each["digest"]).read_bytes()
        assert stored_bytes("cat", source.root, f"{each['repo']}:{each['tag']}") == stored
        assert stored_bytes("cat", source.root, f"{each['repo']}@{each['digest']}") == stored


def test_bytes_of_a_large_layer(source: Storage) -> None:
    """All of them, with a checksum computed by somebody else."""
    (layer,) = [each["digest"] for each in objects("ls", source.root, "big/layer:1") if each["kind"] == "layer"]
    result = shell('"$1" cat "$2" "big/layer@$3" | sha256sum', COMMAND, source.root, layer)
    assert result.stdout.split()[0] == layer.partition(":")[2]


def test_bytes_by_another_algorithm(source: Storage) -> None:
    """A layer is found, and verified, by its sha512 as well."""
    (alias,) = [d for name, d, _ in source.links() if name == "edge/sha512" and d.startswith("sha512")]
    assert digest_of(stored_bytes("cat", source.root, f"edge/sha512@{alias}"), "sha512") == alias


def test_bytes_by_a_tarsum(storage: Storage) -> None:
    """A layer of the first registries is found by its TarSum, and verified by it."""
    vectors = (SCRIPT.parent / "tarsum-vectors/vectors.tsv").read_text().splitlines()
    file, _, name = next(line for line in vectors if "\ttarsum.v1\ttarsum.v1+sha256:" in line).split("\t")[:3]
    content = (SCRIPT.parent / "tarsum-vectors" / file).read_bytes()
    digest = storage.put_layer("r", content)
    link = storage.repository("r") / "_layers/tarsum/v1/sha256" / name.rpartition(":")[2] / "link"
    link.parent.mkdir(parents=True)
    link.write_text(digest)
    assert {each["digest"] for each in objects("ls", "--layers", storage.root, "r")} == {digest, name}
    assert stored_bytes("cat", storage.root, f"r@{name}") == content
    storage.blob(digest).write_bytes(b"no tar archive" * 100)
    assert "damaged" in complaint_of_bytes(storage.root, f"r@{name}")
    assert "a layer only" in complaint("inspect", storage.root, f"r@{name}")


@pytest.fixture
def seed_era(storage: Storage) -> Storage:
    """What a registry 2.0 left in "library/old": TarSums, an alias, a signed image of two layers, and a ghost.

    The image was pushed by a docker that named one of its layers by TarSum.
    """
    for vector in ("types.tar", "xattr.tar", "zero-length.tar"):
        digest = storage.put_layer("library/old", archive(vector))
        for name in (*(tarsum_of(vector, label) for label in LABELS), digest_of(archive(vector), "sha384")):
            storage.put_link("library/old", name, digest)
    image = schema1([archive("types.tar"), archive("xattr.tar")], name="library/old", tag="1")
    image["fsLayers"][1]["blobSum"] = tarsum_of("xattr.tar", "tarsum.dev")
    image["history"][0]["v1Compatibility"] = '{"os": "linux", "architecture": "amd64", "config": {"Cmd": ["sh"]}}'
    payload = encode(image)
    digest = put_manifest(storage, "library/old", payload, "1")
    by = storage.put_blob(encode(signature(payload, ec_key())))
    link = (
        storage.repository("library/old") / f"_manifests/revisions/sha256/{digest[7:]}/signatures/sha256/{by[7:]}/link"
    )
    link.parent.mkdir(parents=True)
    link.write_text(by)
    storage.put_upload("library/old", None, started_at=None, states={"0": b"gob" * 52})
    return storage


def test_a_tree_of_the_seed_era(seed_era: Storage) -> None:
    """Every layer is listed and read by each of its names, and the image with all its layers; nothing is wrong."""
    (row,) = objects("ls", "-l", seed_era.root)
    assert row == {"repository": "library/old", "tags": 1, "layers": 15, "uploads": 0}
    contents = {}
    for vector in ("types.tar", "xattr.tar", "zero-length.tar"):
        content = archive(vector)
        names = [digest_of(content), digest_of(content, "sha384"), *(tarsum_of(vector, label) for label in LABELS)]
        contents |= dict.fromkeys(names, content)
    listed = objects("ls", "--layers", seed_era.root, "library/old")
    assert {each["digest"]: each["size"] for each in listed} == {name: len(data) for name, data in contents.items()}
    for name in contents:
        assert stored_bytes("cat", seed_era.root, f"library/old@{name}") == contents[name]
    assert lines("check", "--deep", seed_era.root) == []


def test_an_image_of_the_seed_era(seed_era: Storage) -> None:
    """A layer that it names by TarSum is one of its layers; one that is not there is missing."""
    names = [digest_of(archive("types.tar")), tarsum_of("xattr.tar", "tarsum.dev")]
    parts = objects("ls", seed_era.root, "library/old:1")
    assert [(each["kind"], each["digest"], each["storedSize"]) for each in parts] == [
        ("layer", names[0], 4096),
        ("layer", names[1], 3072),
    ]
    shown = json.loads(layerfs("inspect", "--format", "json", seed_era.root, "library/old:1").stdout)
    assert [layer["digest"] for layer in shown["layers"]] == names
    assert (shown["platform"], shown["totalSize"]) == ("linux/amd64", 4096 + 3072)
    seed_era.link("library/old", names[1]).unlink()
    assert [each["stored"] for each in objects("ls", seed_era.root, "library/old:1")] == [True, False]
    result = run(COMMAND, "check", seed_era.root, check=False)
    assert result.returncode == 4
    assert "missing-reference" in result.stdout
    assert names[1] in result.stdout


def test_bytes_of_the_empty_layer(storage: Storage) -> None:
    """Nothing, and success."""
    storage.put_layer("r", b"")
    assert stored_bytes("cat", storage.root, f"r@{digest_of(b'')}") == b""


def test_bytes_that_do_not_match(storage: Storage) -> None:
    """They are written, and then it fails and says so."""
    digest = storage.put_layer("r", b"right bytes")
    storage.blob(digest).write_bytes(b"wrong bytes")
    result = run(COMMAND, "cat", storage.root, f"r@{digest}", check=False)
    assert (result.returncode, result.stdout) == (FAILED, "wrong bytes")
    assert "do not use them" in result.stderr
    assert digest_of(b"wrong bytes") in result.stderr


def test_the_damaged_blob_of_the_fixture(fixture_trees: Path) -> None:
    """The changed byte in `damaged/` is found."""
    damaged = Storage(fixture_trees / "damaged")
    (corrupt,) = faults(fixture_trees)["corrupt-blob"]
    found = [(name, digest) for name, digest, _ in damaged.links() if digest == corrupt]
    assert found
    for name, digest in found:
        assert "damaged" in complaint_of_bytes(damaged.root, f"{name}@{digest}")


def complaint_of_bytes(root: Path, reference: str) -> str:
    result = subprocess.run([COMMAND, "cat", root, reference], capture_output=True, timeout=60, check=False)
    assert result.returncode == FAILED
    return result.stderr.decode()


def test_a_reader_that_goes_away(source: Storage) -> None:
    """The command ends as every tool does: by SIGPIPE, without a word."""
    (layer,) = [each["digest"] for each in objects("ls", source.root, "big/layer:1") if each["kind"] == "layer"]
    with subprocess.Popen(
        [COMMAND, "cat", source.root, f"big/layer@{layer}"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert len(process.stdout.read(3)) == 3
        process.stdout.close()
        said = process.stderr.read()
        assert (process.wait(30), said) == (-signal.SIGPIPE, b"")


def test_an_interrupt(source: Storage) -> None:
    """Ctrl-C, while a reader lets it wait, ends it with one line and exit code 8."""
    (layer,) = [each["digest"] for each in objects("ls", source.root, "big/layer:1") if each["kind"] == "layer"]
    with subprocess.Popen(
        [COMMAND, "cat", source.root, f"big/layer@{layer}"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout.read(1) != b""
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == INTERRUPTED
        assert process.stderr.read() == b"layerfs: interrupted\n"


def test_output_that_cannot_be_written(source: Storage) -> None:
    """A full disk is an error, in one line; and so is no output at all."""
    for redirection in ("> /dev/full", ">&-"):
        result = shell(f'"$1" cat "$2" base:1.0 {redirection}', COMMAND, source.root, check=False)
        assert result.returncode == FAILED
        assert "standard output" in result.stderr
        assert result.stderr.count("\n") == 1


# --- inspect -----------------------------------------------------------------------------------------------------

CONFIG = {
    "created": "2026-11-23T00:06:39Z",
    "os": "linux",
    "architecture": "arm64",
    "variant": "v8",
    "config": {
        "Env": ["PATH=/bin", "MODE=test"],
        "Entrypoint": ["/init"],
        "Cmd": ["serve", "-v"],
        "Labels": {"org.example.who": "me"},
    },
}


def test_a_summary(storage: Storage) -> None:
    """Manifest and config together, as an object."""
    config = json.dumps(CONFIG).encode()
    digest = put_image(storage, "team/app", config, b"layer one", b"layer two")
    put_manifest(storage, "team/app", storage.blob(digest).read_bytes(), "latest")
    shown = json.loads(layerfs("inspect", "--format", "json", storage.root, "team/app:v1").stdout)
    assert shown["name"] == "team/app"
    assert shown["digest"] == digest
    assert shown["tags"] == ["latest", "v1"]
    assert shown["platform"] == "linux/arm64/v8"
    assert shown["created"] == CONFIG["created"]
    assert shown["env"] == CONFIG["config"]["Env"]
    assert shown["entrypoint"] + shown["cmd"] == ["/init", "serve", "-v"]
    assert shown["labels"] == CONFIG["config"]["Labels"]
    assert [layer["size"] for layer in shown["layers"]] == [9, 9]
    assert shown["totalSize"] == 18 + len(config)


def test_a_summary_for_people(storage: Storage) -> None:
    """The same as text."""
    put_image(storage, "r", json.dumps(CONFIG).encode(), b"layer")
    shown = layerfs("inspect", storage.root, "r:v1").stdout
    for words in ("linux/arm64/v8", "PATH=/bin", "org.example.who=me", digest_of(b"layer"), '["serve", "-v"]'):
        assert words in shown


def test_every_image_of_the_fixture(source: Storage, told: list[dict]) -> None:
    """Can be inspected: images, indexes, artifacts, schema 2."""
    for each in told:
        reference = f"{each['repo']}:{each['tag']}"
        shown = json.loads(layerfs("inspect", "--format", "json", source.root, reference).stdout)
        assert (shown["digest"], shown["mediaType"]) == (each["digest"], each["mediaType"])
        assert each["tag"] in shown["tags"]


def test_raw_and_config(source: Storage, told: list[dict]) -> None:
    """`--raw` is the stored manifest, `--config` the stored config."""
    (digest,) = [each["digest"] for each in told if (each["repo"], each["tag"]) == ("base", "1.0")]
    manifest = source.blob(digest).read_bytes()
    assert stored_bytes("inspect", "--raw", source.root, "base:1.0") == manifest
    config = json.loads(manifest)["config"]["digest"]
    assert stored_bytes("inspect", "--config", source.root, "base:1.0") == source.blob(config).read_bytes()


def test_the_default_tag(source: Storage) -> None:
    """A repository alone is its tag `latest`, as for every other tool."""
    assert stored_bytes("cat", source.root, "base") == stored_bytes("cat", source.root, "base:latest")


def test_a_config_that_is_none(storage: Storage) -> None:
    """Artifacts have anything for a config: what is no configuration has nothing to say."""
    for number, config in enumerate(
        (b"", b"[]", b"\xff\x00", b'{"config": 7, "created": []}', b'{"config": {"Env": 1}}')
    ):
        put_image(storage, "r", config, tag=f"v{number}")
        shown = json.loads(layerfs("inspect", "--format", "json", storage.root, f"r:v{number}").stdout)
        assert (shown["env"], shown["created"], shown["platform"]) == ([], None, None)


def test_a_damaged_manifest_is_not_shown(storage: Storage) -> None:
    """What does not match its digest is not taken for an image."""
    digest = put_image(storage, "r")
    storage.blob(digest).write_bytes(encode(oci_image(b"other")))
    for command in (["ls"], ["inspect"], ["inspect", "--raw"]):
        assert "damaged" in complaint(*command, storage.root, "r:v1", code=FAILED)


def test_a_manifest_that_is_no_json(storage: Storage) -> None:
    """An error of storage, in one line; `cat` gives the bytes."""
    put_manifest(storage, "r", b"no\njson", "v1")
    assert "not JSON" in complaint("inspect", storage.root, "r:v1", code=FAILED)
    assert stored_bytes("cat", storage.root, "r:v1") == b"no\njson"


def test_an_index_has_no_config(storage: Storage) -> None:
    """Said as such."""
    put_manifest(storage, "r", encode(oci_index()), "v1")
    assert OCI_INDEX in complaint("inspect", "--config", storage.root, "r:v1")


def test_the_size_of_an_index(storage: Storage) -> None:
    """Its manifests and all that they refer to; what two of them share counts once."""
    contents = [encode(oci_image(b"{}", (b"shared", own))) for own in (b"one", b"two")]
    for content in contents:
        put_manifest(storage, "r", content)
    put_manifest(storage, "r", encode(oci_index(contents)), "v1")
    shown = json.loads(layerfs("inspect", "--format", "json", storage.root, "r:v1").stdout)
    assert shown["totalSize"] == sum(map(len, contents)) + len(b"{}sharedonetwo")


# --- what is refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("bas:1.0", "'base'"),
        ("team:v1", "'team/app'"),
        ("base:1.O", "'1.0'"),
        (f"base@{MISSING}", MISSING),
        ("Not!a!name", "no registry stores such a name"),
        ("base:", "invalid tag"),
        ("base@sha256:12", "64 hex digits"),
        ("localhost:5000/base:1.0", "localhost:5000"),
    ],
)
@pytest.mark.parametrize("command", ["ls", "cat", "inspect"])
def test_what_is_not_there(source: Storage, command: str, reference: str, words: str) -> None:
    """Exit code 1 and one line, with what has a similar name."""
    assert words in complaint(command, source.root, reference)


def test_a_digest_that_begins_alike(source: Storage, told: list[dict]) -> None:
    """The manifest that was probably meant is named."""
    digest = told[0]["digest"]
    mistyped = digest[:-4] + ("0000" if not digest.endswith("0000") else "1111")
    assert digest in complaint("cat", source.root, f"{told[0]['repo']}@{mistyped}")


def test_a_layer_is_no_manifest(source: Storage) -> None:
    """Its digest is known, and said to be a layer."""
    layer = objects("ls", "--layers", source.root, "base")[0]["digest"]
    assert "is a layer" in complaint("inspect", source.root, f"base@{layer}")


@pytest.mark.parametrize(
    "argv",
    [["-l", "base"], ["--layers"], ["-a", "base:1.0"], ["--layers", "--uploads", "base"], ["--format", "xml"]],
)
def test_options_that_do_not_fit(source: Storage, argv: list[str]) -> None:
    """One line that says where to read on."""
    assert "--help" in complaint("ls", source.root, *argv)


@pytest.mark.parametrize("command", [["ls"], ["cat", "base"], ["inspect", "base"]])
def test_sources_that_cannot_be_read(tmp_path: Path, command: list[str]) -> None:
    """Said as `mount` says it, but without the advice to create one."""
    name, *rest = command
    for path in (tmp_path, tmp_path / "none"):
        said = complaint(name, path, *rest)
        assert str(path) in said
        assert "--create" not in said


def test_a_source_inside_a_storage(source: Storage) -> None:
    """The right one is named."""
    assert f"read '{source.root}'" in complaint("ls", source.v2)


def test_a_url(source: Storage) -> None:
    """Any source that can be mounted can be read."""
    assert lines("ls", f"file://{source.root}") == lines("ls", source.root)


def test_no_fuse_is_needed(source: Storage) -> None:
    """Where pyfuse3 cannot be imported, everything can be read."""
    program = "import sys\nsys.modules['pyfuse3'] = None\nfrom layerfs.cli import main\nmain(sys.argv[1:])\n"
    python = Path(COMMAND).parent / "python"
    assert run(python, "-c", program, "ls", source.root).stdout.splitlines() == lines("ls", source.root)


# --- on a terminal -----------------------------------------------------------------------------------------------


def on_a_terminal(*argv: object) -> tuple[int, bytes]:
    """Runs the command with a terminal for its output."""
    ours, theirs = pty.openpty()
    with subprocess.Popen([COMMAND, *map(str, argv)], stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        shown = b""
        try:
            while piece := os.read(ours, 65536):
                shown += piece
        except OSError:  # EIO: everybody has closed it
            pass
        code = process.wait(30)
    os.close(ours)
    return code, shown


HOSTILE = "a\x1b[31mb\u202ec\x9bd\x7fe\nf"


def test_hostile_texts_are_escaped(storage: Storage) -> None:
    """Escapes, reversed writing and newlines from storage never reach a terminal, nor a pipe."""
    config = json.dumps({"created": HOSTILE, "config": {"Labels": {HOSTILE: HOSTILE}, "Env": [HOSTILE]}}).encode()
    storage.put_layer("r", config)
    layers = [describe(b"x", "text/plain" + HOSTILE)]
    put_manifest(storage, "r", encode(oci_image(config) | {"layers": layers}), "v1")
    for argv in (["inspect"], ["ls"], ["inspect", "--format", "json"], ["ls", "--format", "json"]):
        code, shown = on_a_terminal(*argv, storage.root, "r:v1")
        assert code == OK
        assert not set("\x1b\u202e\x9b\x7f") & set(shown.decode())
        assert b"31mb" in shown


def test_bytes_on_a_terminal(storage: Storage) -> None:
    """A manifest is shown with its control characters escaped; a layer is refused."""
    put_manifest(storage, "r", b'{"\x1b[31m":\n1}', "v1")
    code, shown = on_a_terminal("cat", storage.root, "r:v1")
    assert (code, shown) == (OK, b'{"\\x1b[31m":\r\n1}\r\n')
    layer = storage.put_layer("r", b"\x1b")
    code, shown = on_a_terminal("cat", storage.root, f"r@{layer}")
    assert code == USAGE
    assert b"\x1b" not in shown
