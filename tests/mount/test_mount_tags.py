"""`_tags`: symbolic links that mean manifests, and every way to make, move and remove one."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from harness.commands import append, get_xattr, opened, run, shell, wait_until, write_all
from harness.images import encode, oci_image, oci_index
from harness.mount import Mount
from harness.storage import Storage, digest_of, digest_of_file, remove_tree
from harness.tagged import TaggedMount, TaggedRepository

MISSING = "sha256:" + "0" * 64


# --- the registry's own images -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def told(fixture_trees: Path) -> list[dict]:
    """What the registry itself said of every tag."""
    return [json.loads(line) for line in (fixture_trees / "tags.jsonl").read_text().splitlines()]


def test_every_image_of_the_fixture(mount: Mount, told: list[dict]) -> None:
    """Each repository lists the registry's own tags, with its digests and media types; the bytes match."""
    for name in {each["repo"] for each in told}:
        expected = {each["tag"]: each for each in told if each["repo"] == name}
        tags = mount.path / name / "_tags"
        assert set(os.listdir(tags)) == set(expected)
        for tag, each in expected.items():
            assert os.readlink(tags / tag) == f"../_manifests/{each['digest']}"
            assert digest_of_file(tags / tag) == each["digest"]
            assert get_xattr(tags / tag, "user.layerfs.mediatype") == each["mediaType"]
            assert get_xattr(tags / tag, "user.layerfs.digest") == each["digest"]


def test_jq_over_all_tags(mount: Mount) -> None:
    """`jq` reads every manifest by its tag."""
    script = 'cd "$1" && jq -r .schemaVersion $(find . -path "*/_tags/*" -type l)'
    assert set(shell(script, mount.path).stdout.split()) == {"2"}


def test_tar_of_the_first_layer(mount: Mount) -> None:
    """A layer found by its tag can be unpacked, in one line of shell."""
    script = 'cd "$1" && cat _layers/$(jq -r ".layers[0].digest" _tags/v1) | tar tz'
    assert len(shell(script, mount.path / "team/app").stdout.splitlines()) > 3


def test_untagged_manifests_are_files(mount: Mount) -> None:
    """What no tag means is there under its digest: the children of an index."""
    repository = mount.path / "multi/arch"
    children = [each["digest"] for each in json.loads((repository / "_tags/latest").read_text())["manifests"]]
    assert set(children) < set(os.listdir(repository / "_manifests"))


def test_the_damaged_storage(mounts, storage_copy) -> None:
    """It can be walked, listed and followed; a tag whose manifest is gone is a dangling link."""
    storage = storage_copy("damaged")
    mount = mounts(storage, "--read-only")
    with mount.tolerates("EIO", "ENOENT"):
        for argv in (["ls", "-lR"], ["find", "-L"], ["du", "-a"]):
            run(*argv, mount.path, check=False)
        tags = mount.path / "base/_tags"
        assert os.readlink(tags / "broken").startswith("../_manifests/sha256:")
        assert not (tags / "broken").exists()
        assert {"broken", "1.0", "latest"} <= set(os.listdir(tags))
        assert "halfmade" not in os.listdir(tags)
        assert not (tags / "halfmade").is_symlink()
        assert run("find", tags, "-xtype", "l").stdout.split() == [str(tags / "broken")]
    mount.declare("WARNING")


# --- putting by tag ----------------------------------------------------------------------------------------------

AT_CLOSE = {
    "cp": 'cp "$1" "$2"',
    "shell": 'cat "$1" > "$2"',
    "append": 'cat "$1" >> "$2"',
    "tee": 'tee "$2" < "$1" > /dev/null',
    "dd": 'dd if="$1" of="$2" bs=100 status=none',
    "sponge": '(sleep 0; cat "$1") > "$2"',
}
BY_RENAME = {
    "rsync": 'rsync --times "$1" "$2"',
    "upload": 'up="$(dirname "$2")/../_uploads/m.json"; cp "$1" "$up" && mv "$up" "$2"',
    "manifest": 'up="$(dirname "$2")/../_manifests/m.json"; cp "$1" "$up" && mv "$up" "$2"',
    "hidden": 'up="$(dirname "$2")/.new"; cp "$1" "$up" && mv "$up" "$2"',
}
WAYS = AT_CLOSE | BY_RENAME


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "m.json"


@pytest.mark.parametrize("script", WAYS.values(), ids=WAYS)
def test_putting_by_tag(repository: TaggedRepository, file: Path, script: str) -> None:
    """Blob, revision, index and current are stored, and tag and manifest are there at once."""
    content = repository.image(script)
    file.write_bytes(content)
    shell(script, file, repository.tag("v1"))
    digest = repository.assert_put(content, "v1")
    assert repository.tags == {"v1": digest}
    assert repository.history("v1") == {digest}


@pytest.mark.parametrize("name", ["upload", "manifest", "hidden"])
def test_putting_over_a_tag(repository: TaggedRepository, file: Path, name: str) -> None:
    """By rename the tag means the new manifest; the old one stays, and in the tag's history."""
    old = repository.store_manifest(repository.image("old"), "v1")
    assert repository.tags == {"v1": old}
    content = repository.image(name)
    file.write_bytes(content)
    shell(BY_RENAME[name], file, repository.tag("v1"))
    digest = repository.assert_put(content, "v1")
    assert repository.tags == {"v1": digest}
    assert repository.history("v1") == {old, digest}
    assert repository.manifests == sorted([old, digest])


@pytest.mark.parametrize("name", ["cp", "shell", "tee", "dd"])
def test_writing_through_a_tag(repository: TaggedRepository, file: Path, name: str) -> None:
    """What opens the tag as it is follows the link to a stored manifest: EPERM, nothing changed."""
    repository.store_manifest(repository.image("old"), "v1")
    file.write_bytes(repository.image("new"))
    with repository.unchanged(), repository.mount.refuses("EPERM"):
        assert shell(AT_CLOSE[name], file, repository.tag("v1"), check=False).returncode != 0


@pytest.mark.parametrize("argv", [["cp", "--remove-destination"], ["rsync", "--times"]], ids=["cp", "rsync"])
def test_tools_that_make_way_for_the_new_one(deletable: TaggedRepository, file: Path, argv: list[str]) -> None:
    """`cp --remove-destination` and `rsync` remove the tag first: with `--allow-delete` they retag."""
    deletable.store_manifest(deletable.image("old"), "v1")
    content = deletable.image("new")
    file.write_bytes(content)
    run(*argv, file, deletable.tag("v1"))
    deletable.assert_put(content, "v1")


def test_editing_in_place(repository: TaggedRepository) -> None:
    """`sed -i` of a tag puts the edited manifest, and the tag means that."""
    content = repository.image(annotations={"stage": "testing"})
    old = repository.store_manifest(content, "v1")
    run("sed", "-i", "s/testing/release/", repository.tag("v1"))
    digest = repository.assert_put(content.replace(b"testing", b"release"), "v1")
    assert repository.tags == {"v1": digest}
    assert old in repository.manifests


def test_editing_that_breaks_it(repository: TaggedRepository) -> None:
    """What `sed -i` has made no manifest of is refused; the tag means what it meant."""
    digest = repository.store_manifest(repository.image(), "v1")
    with repository.mount.refuses("EINVAL"), repository.mount.tolerates("ENOENT", "EPERM"):
        assert run("sed", "-i", "s/{//", repository.tag("v1"), check=False).returncode != 0
    assert repository.tags == repository.stored_tags == {"v1": digest}


def test_touching(repository: TaggedRepository) -> None:
    """`touch` of a tag is ignored; of a name that is none it makes nothing."""
    repository.store_manifest(repository.image(), "v1")
    with repository.unchanged(), repository.mount.tolerates("ENOENT", "EPERM"):
        run("touch", repository.tag("v1"))
        run("touch", repository.tag("new"), check=False)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("EINVAL", b"no JSON"),
        ("EINVAL", b'{"schemaVersion": 2'),
        ("ENOLINK", encode(oci_image(b"not there"))),
        ("ENOLINK", encode(oci_index([b"not there"]))),
    ],
    ids=["malformed", "half", "config", "child"],
)
@pytest.mark.parametrize("script", [AT_CLOSE["cp"], BY_RENAME["rsync"]], ids=["cp", "rsync"])
def test_what_is_refused(repository: TaggedRepository, file: Path, script: str, name: str, content: bytes) -> None:
    """The tool fails, the log says why, no tag is made, and no blob."""
    file.write_bytes(content)
    with repository.mount.refuses(name):
        assert shell(script, file, repository.tag("v1"), check=False).returncode != 0
    assert (repository.tags, repository.stored_tags, repository.manifests) == ({}, {}, [])
    assert not repository.storage.blob(digest_of(content)).exists()


@pytest.mark.parametrize("content", [b"no JSON", encode(oci_image(b"not there")), b" " * ((4 << 20) + 1)])
def test_what_is_refused_over_a_tag(repository: TaggedRepository, content: bytes) -> None:
    """The tag means what it meant, and the upload says what is wrong with it."""
    repository.store_manifest(repository.image(), "v1")
    append(repository.upload("m.json"), content)
    with repository.unchanged(), repository.mount.refused(errno.EINVAL, errno.ENOLINK, errno.EFBIG):
        os.rename(repository.upload("m.json"), repository.tag("v1"))
    assert get_xattr(repository.upload("m.json"), "user.layerfs.error")


def test_several_programs_in_one_redirection(repository: TaggedRepository, file: Path) -> None:
    """Each close is judged: an early one may be refused, the whole is put by the last."""
    content = repository.image()
    file.write_bytes(content)
    with repository.mount.refuses("EINVAL"):
        shell('{ head -c 20 "$1" || true; tail -c +21 "$1"; } > "$2"', file, repository.tag("v1"))
    repository.assert_put(content, "v1")


# --- linking -----------------------------------------------------------------------------------------------------

FORMS = {
    "manifest": lambda digest: f"../_manifests/{digest}",
    "digest": lambda digest: digest,
    "tag": lambda digest: "first",
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_linking(repository: TaggedRepository, form: Callable[[str], str]) -> None:
    """`ln -s` to a manifest, to a digest or to another tag makes a tag of the same manifest."""
    content = repository.image()
    digest = repository.store_manifest(content, "first")
    run("ln", "-s", form(digest), repository.tag("v1"))
    repository.assert_put(content, "first", "v1")
    assert os.readlink(repository.tag("v1")) == f"../_manifests/{digest}"
    assert repository.history("v1") == {digest}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("options", ["-sf", "-sfn"])
def test_linking_over_a_tag(repository: TaggedRepository, form: Callable[[str], str], options: str) -> None:
    """`ln -sf` and `ln -sfn` retag, and leave nothing else behind."""
    old = repository.store_manifest(repository.image("old"), "v1")
    content = repository.image("new")
    digest = repository.store_manifest(content, "first")
    assert repository.tags == {"first": digest, "v1": old}
    run("ln", options, form(digest), repository.tag("v1"))
    repository.assert_put(content, "v1")
    assert repository.tags == repository.stored_tags == {"first": digest, "v1": digest}
    assert repository.history("v1") == {old, digest}


def test_a_link_to_a_tag_means_what_that_means_now(repository: TaggedRepository) -> None:
    """When the other tag is moved, this one stays."""
    one = repository.store_manifest(repository.image("one"), "v1")
    two = repository.store_manifest(repository.image("two"))
    run("ln", "-s", "v1", repository.tag("latest"))
    run("ln", "-sfn", two, repository.tag("v1"))
    assert repository.tags == repository.stored_tags == {"latest": one, "v1": two}


def test_linking_what_exists(repository: TaggedRepository) -> None:
    """EEXIST, as everywhere, and nothing changed."""
    digest = repository.store_manifest(repository.image(), "v1")
    with repository.unchanged(), repository.mount.tolerates("EEXIST"), pytest.raises(FileExistsError):
        os.symlink(digest, repository.tag("v1"))


@pytest.mark.parametrize("target", [MISSING, f"../_manifests/{MISSING}", "nosuchtag"])
def test_linking_to_nothing(repository: TaggedRepository, target: str) -> None:
    """ENOENT: a tag of what is not there is not made, nor moved."""
    repository.store_manifest(repository.image(), "v1")
    with repository.unchanged(), repository.mount.refused(errno.ENOENT):
        os.symlink(target, repository.tag("v2"))


@pytest.mark.parametrize(
    "target",
    ["/etc/passwd", "../../other/_tags/v1", "..", "../_layers/" + MISSING, "sha256:12", "md5:" + "0" * 32, "a b", "\n"],
)
def test_linking_to_something_else(repository: TaggedRepository, target: str) -> None:
    """EINVAL: a tag is no link to anywhere."""
    repository.store_manifest(repository.image(), "v1")
    with repository.unchanged(), repository.mount.refused(errno.EINVAL):
        os.symlink(target, repository.tag("v2"))


def test_linking_to_a_layer(repository: TaggedRepository) -> None:
    """ENOENT: a layer is no manifest."""
    repository.image()
    with repository.unchanged(), repository.mount.refused(errno.ENOENT):
        os.symlink(repository.layers[0], repository.tag("v1"))


@pytest.mark.parametrize("name", [".v1", "-v1", "v 1", "v:1", "v1~", "ü", "a" * 129, "a\nb"])
def test_names_that_are_no_tags(repository: TaggedRepository, name: str) -> None:
    """EINVAL, by `ln -s` and by `mv`."""
    digest = repository.store_manifest(repository.image(), "v1")
    with repository.unchanged(), repository.mount.refused(errno.EINVAL):
        os.symlink(digest, repository.tag(name))
    with repository.unchanged(), repository.mount.refused(errno.EINVAL):
        os.rename(repository.tag("v1"), repository.tag(name))


@pytest.mark.parametrize("name", ["-v1", "v 1", "v:1", "v1~", "ü", "a" * 129, "a\nb"])
def test_files_whose_names_are_no_tags(repository: TaggedRepository, file: Path, name: str) -> None:
    """EINVAL for a file that begins under one, and for an upload that is renamed to one: neither would ever be a tag.

    Hidden names are those of rsync, for a while.
    """
    append(repository.upload("m.json"), repository.image())
    with repository.unchanged(), repository.mount.refused(errno.EINVAL):
        repository.tag(name).write_bytes(b"{}")
    with repository.unchanged(), repository.mount.refused(errno.EINVAL):
        os.rename(repository.upload("m.json"), repository.tag(name))
    assert repository.upload("m.json").exists()


@pytest.mark.parametrize("name", ["1", "_", "V1.0-rc_1", "a" * 128, "sha256-" + "0" * 64, "latest"])
def test_names_that_are_tags(repository: TaggedRepository, name: str) -> None:
    """The registry's grammar, to its limit."""
    content = repository.image()
    repository.tag(name).write_bytes(content)
    repository.assert_put(content, name)


def test_links_elsewhere(repository: TaggedRepository) -> None:
    """A symbolic link in any other place is refused."""
    digest = repository.store_manifest(repository.image(), "v1")
    for place in (repository.manifest("x"), repository.layer("x"), repository.upload("x"), repository.path / "x"):
        with repository.unchanged(), repository.mount.refused(errno.EPERM, errno.EINVAL):
            os.symlink(digest, place)


# --- moving and removing -----------------------------------------------------------------------------------------


def test_renaming(repository: TaggedRepository) -> None:
    """`mv` of a tag: the new name means it, the old one is gone; no `--allow-delete` is asked for."""
    content = repository.image()
    digest = repository.store_manifest(content, "v1")
    assert repository.tags == {"v1": digest}
    run("mv", repository.tag("v1"), repository.tag("v2"))
    assert repository.tags == repository.stored_tags == {"v2": digest}
    with repository.mount.refused(errno.ENOENT):
        os.readlink(repository.tag("v1"))


def test_renaming_over_a_tag(repository: TaggedRepository) -> None:
    """`mv` over another tag retags; both manifests stay."""
    one, two = (repository.store_manifest(repository.image(tag), tag) for tag in ("v1", "v2"))
    run("mv", repository.tag("v1"), repository.tag("v2"))
    assert repository.tags == repository.stored_tags == {"v2": one}
    assert repository.history("v2") == {one, two}
    assert repository.manifests == sorted([one, two])


def test_renaming_into_another_repository(repository: TaggedRepository, small: TaggedMount) -> None:
    """Refused, with an errno that `mv` has fitting words for, and never copies at; `cp -d` makes the tag there."""
    other = small.new_repository()
    content = repository.image()
    digest = repository.store_manifest(content, "v1")
    with repository.unchanged(), repository.mount.refused(errno.EPERM):
        os.rename(repository.tag("v1"), other.tag("v1"))
    assert other.tags == {}
    other.image()
    run("cp", repository.manifest(digest), other.manifest(digest))
    run("cp", "-d", repository.tag("v1"), other.tag("v1"))
    assert other.tags == {"v1": digest}


def test_removing_without_permission(repository: TaggedRepository) -> None:
    """`rm` of a tag is EPERM, and the tag stays."""
    repository.store_manifest(repository.image(), "v1")
    with repository.unchanged(), repository.mount.refuses("EPERM"):
        result = run("rm", "-f", repository.tag("v1"), check=False)
    assert "not permitted" in result.stderr


def test_removing(deletable: TaggedRepository) -> None:
    """With `--allow-delete`, `rm` takes that tag with its history, and nothing else."""
    content = deletable.image()
    digest = deletable.store_manifest(content, "v1", "latest")
    run("rm", deletable.tag("v1"))
    assert deletable.tags == deletable.stored_tags == {"latest": digest}
    assert deletable.history("v1") == set()
    assert deletable.manifest(digest).read_bytes() == content
    with deletable.mount.refused(errno.ENOENT):
        os.unlink(deletable.tag("v1"))


def test_removing_a_dangling_tag(deletable: TaggedRepository) -> None:
    """It can be removed, which the registry's API cannot."""
    deletable.store_tag("broken", MISSING)
    assert deletable.tags == {"broken": MISSING}
    run("rm", deletable.tag("broken"))
    assert deletable.tags == deletable.stored_tags == {}


def test_a_removed_tag_comes_back(deletable: TaggedRepository) -> None:
    """Made, removed and made again, each seen at once."""
    digest = deletable.store_manifest(deletable.image())
    for _ in range(10):
        os.symlink(digest, deletable.tag("v1"))
        assert deletable.tags == {"v1": digest}
        os.unlink(deletable.tag("v1"))
        assert deletable.tags == {}
        assert not deletable.tag("v1").is_symlink()


# --- who sees what, when -----------------------------------------------------------------------------------------


def test_what_others_change(repository: TaggedRepository) -> None:
    """A tag that a registry makes, moves or removes is so here within a second."""
    one, two = (repository.store_manifest(repository.image(text)) for text in ("one", "two"))
    for current in (one, two, one):
        repository.store_tag("v1", current)
        wait_until(lambda current=current: repository.tags == {"v1": current}, "the tag of the others", seconds=1.5)
        assert digest_of_file(repository.tag("v1")) == current
    remove_tree(repository.storage.repository(repository.name) / "_manifests/tags/v1")
    wait_until(lambda: repository.tags_listed == [], "its end in the list", seconds=1.5)
    assert not repository.tag("v1").is_symlink()


def test_our_own_changes_are_seen_at_once(repository: TaggedRepository) -> None:
    """However often what the tag means was looked at before."""
    digests = [repository.store_manifest(repository.image(str(number))) for number in range(3)]
    for number in range(30):
        digest = digests[number % 3]
        run("ln", "-sfn", digest, repository.tag("v1")) if number else os.symlink(digest, repository.tag("v1"))
        assert os.readlink(repository.tag("v1")) == f"../_manifests/{digest}"
        assert digest_of_file(repository.tag("v1")) == digest
        assert repository.tags == {"v1": digest}


def test_two_mounts(mounts, storage: Storage) -> None:
    """What one mount does, the other shows within a second."""
    storage.make_repository("r")
    one, two = (TaggedRepository(mounts(storage), storage, "r") for _ in range(2))
    assert (one.tags, two.tags) == ({}, {})
    content = one.image()
    one.tag("v1").write_bytes(content)
    wait_until(lambda: two.tags == {"v1": digest_of(content)}, "the other's tag", seconds=1.5)
    os.rename(two.tag("v1"), two.tag("v2"))
    wait_until(lambda: one.tags == {"v2": digest_of(content)}, "the other's rename", seconds=1.5)


def test_many_tags(repository: TaggedRepository) -> None:
    """300 are listed, each once, and each leads to its manifest."""
    digests = [repository.store_manifest(repository.image(str(number))) for number in range(3)]
    expected = {f"v{number}": digests[number % 3] for number in range(300)}
    for tag, digest in expected.items():
        repository.store_tag(tag, digest)
    assert repository.tags == expected
    assert shell('ls "$1" | wc -l', repository.path / "_tags").stdout.strip() == "300"


def test_a_loop_of_tags(repository: TaggedRepository) -> None:
    """A hundred tags made one after the other by a shell loop."""
    digest = repository.store_manifest(repository.image())
    shell('cd "$1"; for i in $(seq 100); do ln -s "$2" "v$i"; done', repository.path / "_tags", digest)
    assert repository.tags == {f"v{number}": digest for number in range(1, 101)}


def test_tags_with_links_that_are_none(repository: TaggedRepository) -> None:
    """An empty `current`, one with a newline and a directory without one are no tags: neither listed nor found."""
    digest = repository.store_manifest(repository.image(), "good")
    tags = repository.storage.repository(repository.name) / "_manifests/tags"
    for name, content in (("empty", ""), ("newline", digest + "\n"), ("nonsense", "x" * 10_000)):
        (tags / name / "current").mkdir(parents=True)
        (tags / name / "current/link").write_text(content)
    (tags / "halfmade/index/sha256").mkdir(parents=True)
    assert repository.tags == {"good": digest}
    for name in ("empty", "newline", "nonsense", "halfmade"):
        assert not repository.tag(name).is_symlink()


def test_a_bad_tag_is_put_right(repository: TaggedRepository) -> None:
    """`ln -s` over a directory that is no tag makes it one."""
    digest = repository.store_manifest(repository.image())
    current = repository.storage.repository(repository.name) / "_manifests/tags/v1/current"
    current.mkdir(parents=True)
    (current / "link").touch()
    run("ln", "-s", digest, repository.tag("v1"))
    assert repository.tags == repository.stored_tags == {"v1": digest}


def test_copying_all_tags(repository: TaggedRepository, small: TaggedMount) -> None:
    """`cp -d`, `cp -a` and `rsync -l` of tags make the same tags where the manifests are."""
    digest = repository.store_manifest(repository.image(), "v1", "latest")
    for command in ("cp -d", "cp -a", "rsync -l"):
        other = small.new_repository()
        other.store_manifest(repository.stored(digest))
        shell(f'{command} "$1"/_tags/* "$2/_tags/"', repository.path, other.path)
        assert other.tags == other.stored_tags == {"latest": digest, "v1": digest}


# --- at the same time, and in the middle -------------------------------------------------------------------------


def test_two_writers_of_one_tag(repository: TaggedRepository) -> None:
    """Each puts its manifest; the tag means that of whoever closed last."""
    contents = [repository.image(text) for text in ("one", "two")]
    descriptors = [os.open(repository.tag("v1"), os.O_WRONLY | os.O_CREAT) for _ in contents]
    for descriptor, content in zip(descriptors, contents, strict=True):
        write_all(descriptor, content)
    for descriptor, content in zip(descriptors, contents, strict=True):
        os.close(descriptor)
        repository.assert_put(content, "v1")
    assert repository.manifests == sorted(map(digest_of, contents))


def test_many_writers_of_one_tag(repository: TaggedRepository) -> None:
    """Retagged by four at a time, it always means one of theirs, and nothing else is left."""
    digests = [repository.store_manifest(repository.image(str(number))) for number in range(4)]
    repository.store_tag("v1", digests[0])
    done = threading.Event()
    seen: set[str] = set()

    def look() -> None:
        while not done.is_set():
            seen.add(os.readlink(repository.tag("v1")).removeprefix("../_manifests/"))

    def retag(number: int) -> None:
        for turn in range(20):
            name = f"t{number}.{turn}"
            os.symlink(digests[number], repository.tag(name))
            os.rename(repository.tag(name), repository.tag("v1"))

    watcher = threading.Thread(target=look)
    writers = [threading.Thread(target=retag, args=(number,)) for number in range(4)]
    for thread in (watcher, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    watcher.join()
    assert seen <= set(digests)
    assert list(repository.tags) == list(repository.stored_tags) == ["v1"]


def test_a_tag_is_old_or_new_after_kill_9(mounts, storage: Storage) -> None:
    """The daemon is killed while tags are moved: after a remount each means the one or the other manifest."""
    storage.make_repository("r")
    repository = TaggedRepository(mounts(storage), storage, "r")
    one, two = (repository.store_manifest(repository.image(text)) for text in ("one", "two"))
    program = (
        "import itertools, os, sys\n"
        "os.chdir(sys.argv[1])\n"
        "for turn in itertools.count():\n"
        "    os.symlink(sys.argv[2 + turn % 2], 'new')\n"
        "    os.rename('new', 'v1')\n"
        "    print(turn, flush=True)\n"
    )
    for _ in range(3):
        with subprocess.Popen(
            [sys.executable, "-c", program, repository.path / "_tags", one, two],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        ) as mover:
            while int(mover.stdout.readline()) < 10:
                pass
            repository.mount.kill9()
            mover.stdout.read()
            assert mover.wait(30) == 1
        repository.mount.remount()
        assert repository.tags["v1"] in (one, two)
        assert set(repository.tags) <= {"v1", "new"}
        assert digest_of_file(repository.tag("v1")) == repository.tags["v1"]
        if "new" in repository.tags:
            os.rename(repository.tag("new"), repository.tag("v1"))


def test_puts_are_whole_or_nothing_after_kill_9(mounts, storage: Storage, tmp_path: Path) -> None:
    """The daemon is killed while manifests are put by tag: every tag that is there afterwards leads to a whole one."""
    storage.make_repository("r")
    repository = TaggedRepository(mounts(storage), storage, "r")
    contents = [repository.image(str(number)) for number in range(60)]
    for number, content in enumerate(contents):
        (tmp_path / f"m{number}").write_bytes(content)
    script = 'for i in $(seq 0 59); do cp "$1/m$i" "$2/v$i" || exit 1; echo "$i"; done'
    with subprocess.Popen(
        ["bash", "-c", script, "bash", tmp_path, repository.path / "_tags"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as copier:
        while int(copier.stdout.readline()) < 10:
            pass
        repository.mount.kill9()
        acknowledged = 10 + len(copier.stdout.read().splitlines())
        assert copier.wait(30) == 1
    repository.mount.remount()
    for tag, digest in repository.tags.items():
        assert repository.tag(tag).read_bytes() == contents[int(tag[1:])]
        assert digest in repository.stored_revisions
    assert {f"v{number}" for number in range(acknowledged + 1)} <= set(repository.tags)
    put = len(repository.tags)
    repository.tag(f"v{put}").write_bytes(contents[put])
    repository.assert_put(contents[put], f"v{put}")


def test_a_writer_that_dies(repository: TaggedRepository) -> None:
    """A process killed in the middle of a manifest tags nothing."""
    repository.store_manifest(repository.image("old"), "v1")
    program = (
        "import os, signal, sys\n"
        "f = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)\n"
        "os.write(f, b'{')\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    with repository.unchanged(), repository.mount.refuses("EINVAL"):
        result = subprocess.run([sys.executable, "-c", program, repository.tag("v2")], check=False, timeout=30)
    assert result.returncode == -signal.SIGKILL


def test_writing_at_offsets(repository: TaggedRepository) -> None:
    """A manifest may be written in any order, rewritten and cut before it is closed."""
    content = repository.image()
    with opened(repository.tag("v1"), os.O_RDWR | os.O_CREAT) as descriptor:
        os.pwrite(descriptor, content[50:] + b"too much", 50)
        os.pwrite(descriptor, content[:50], 0)
        os.ftruncate(descriptor, len(content))
        assert os.pread(descriptor, len(content), 0) == content
    repository.assert_put(content, "v1")
