"""`_manifests`: what is there, and every way to put one there or to take one away."""

from __future__ import annotations

import errno
import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from harness.commands import append, get_xattr, opened, run, shell, wait_until, write_all
from harness.images import (
    DOCKER_IMAGE,
    DOCKER_LIST,
    OCI_IMAGE,
    OCI_INDEX,
    describe,
    docker_image,
    docker_list,
    encode,
    oci_image,
    oci_index,
)
from harness.storage import Storage, digest_of, files
from harness.tagged import TaggedMount, TaggedRepository

MISSING = "sha256:" + "0" * 64

LIMIT = 4 << 20


# --- putting one -------------------------------------------------------------------------------------------------

Put = Callable[[TaggedRepository, Path, str], object]


def put_by_cp(repository: TaggedRepository, file: Path, digest: str) -> object:
    return run("cp", file, repository.manifest(digest), check=False)


def put_by_shell(repository: TaggedRepository, file: Path, digest: str) -> object:
    return shell('cat "$1" > "$2"', file, repository.manifest(digest), check=False)


def put_by_tee(repository: TaggedRepository, file: Path, digest: str) -> object:
    return shell('tee "$2" < "$1" > /dev/null', file, repository.manifest(digest), check=False)


def put_by_dd(repository: TaggedRepository, file: Path, digest: str) -> object:
    return run("dd", f"if={file}", f"of={repository.manifest(digest)}", "bs=7k", "status=none", check=False)


def put_by_mv_within(repository: TaggedRepository, file: Path, digest: str) -> object:
    run("cp", file, repository.manifest("m.json"))
    return run("mv", repository.manifest("m.json"), repository.manifest(digest), check=False)


def put_by_mv_of_upload(repository: TaggedRepository, file: Path, digest: str) -> object:
    run("cp", file, repository.upload("m.json"))
    return run("mv", repository.upload("m.json"), repository.manifest(digest), check=False)


def put_by_rsync(repository: TaggedRepository, file: Path, digest: str) -> object:
    return run("rsync", "--times", file, repository.manifest(digest), check=False)


AT_CLOSE: list[Put] = [put_by_cp, put_by_shell, put_by_tee, put_by_dd]
BY_RENAME: list[Put] = [put_by_mv_within, put_by_mv_of_upload]
WAYS: list[Put] = [*AT_CLOSE, *BY_RENAME, put_by_rsync]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "m.json"


@pytest.mark.parametrize("put", WAYS)
def test_putting_by_digest(repository: TaggedRepository, file: Path, put: Put) -> None:
    """The bytes are stored exactly, linked under their digest, and there at once; no tag is made."""
    content = repository.image(put.__name__)
    file.write_bytes(content)
    assert put(repository, file, digest_of(content)).returncode == 0
    repository.assert_put(content)
    assert repository.tags == {}


@pytest.mark.parametrize(
    ("kind", "make"),
    [
        (OCI_IMAGE, lambda config, layer, child: oci_image(config, (layer,))),
        (OCI_IMAGE, lambda config, layer, child: {k: v for k, v in oci_image(config).items() if k != "mediaType"}),
        (OCI_IMAGE, lambda config, layer, child: oci_image(config, subject=describe(b"unknown", OCI_IMAGE))),
        (OCI_INDEX, lambda config, layer, child: oci_index([child])),
        (OCI_INDEX, lambda config, layer, child: oci_index()),
        (DOCKER_IMAGE, lambda config, layer, child: docker_image(config, (layer,))),
        (DOCKER_LIST, lambda config, layer, child: docker_list([child])),
    ],
    ids=["image", "untyped", "subject", "index", "empty-index", "schema2", "list"],
)
def test_every_kind(repository: TaggedRepository, kind: str, make: Callable) -> None:
    """Each kind is stored, and its media type is what a registry would say."""
    child = repository.image()
    repository.store_manifest(child)
    for blob in (b"{}", b"layer"):
        repository.storage.put_layer(repository.name, blob)
    content = encode(make(b"{}", b"layer", child))
    repository.manifest(digest_of(content)).write_bytes(content)
    digest = repository.assert_put(content)
    assert get_xattr(repository.manifest(digest), "user.layerfs.mediatype") == kind
    assert get_xattr(repository.manifest(digest), "user.layerfs.digest") == digest
    assert get_xattr(repository.manifest(digest), "user.layerfs.repository") == repository.name


def test_nothing_is_seen_before_close(repository: TaggedRepository) -> None:
    """While it is written it is in nobody's list, and not in storage."""
    content = repository.image()
    with repository.unchanged(), repository.mount.tolerates("ENOENT"):
        descriptor = os.open(repository.manifest(digest_of(content)), os.O_WRONLY | os.O_CREAT)
        write_all(descriptor, content)
        assert repository.manifests == []
    os.close(descriptor)
    repository.assert_put(content)


def test_another_name_is_an_upload(repository: TaggedRepository) -> None:
    """Until it is renamed to its digest it is an upload, and no manifest."""
    append(repository.manifest("m.json"), b"{}")
    assert repository.manifests == []
    assert repository.uploads == ["m.json"]
    assert repository.manifest("m.json").read_bytes() == b"{}"
    os.unlink(repository.manifest("m.json"))
    assert repository.uploads == []


def test_a_mistake_can_be_put_right(repository: TaggedRepository) -> None:
    """After a refused close the same name can be put rightly."""
    content = repository.image()
    place = repository.manifest(digest_of(content))
    with repository.mount.refused(errno.EINVAL), opened(place, os.O_WRONLY | os.O_CREAT) as descriptor:
        write_all(descriptor, content[:-5])
    place.write_bytes(content)
    repository.assert_put(content)


def test_putting_again(repository: TaggedRepository, file: Path) -> None:
    """`mv` of the same manifest succeeds, and no file is other than before."""
    content = repository.image()
    repository.store_manifest(content)
    file.write_bytes(content)
    before = files(repository.storage.root)
    assert put_by_mv_of_upload(repository, file, digest_of(content)).returncode == 0
    assert files(repository.storage.root) == before


def test_a_damaged_copy_is_replaced(repository: TaggedRepository, file: Path) -> None:
    """What is stored under the digest but is something else becomes the right bytes."""
    content = repository.image()
    digest = repository.store_manifest(content)
    file.write_bytes(content)
    for damage in (b"", content[:-1] + b"?", content + b" "):
        repository.storage.blob(digest).write_bytes(damage)
        assert put_by_mv_within(repository, file, digest).returncode == 0
        assert repository.stored(digest) == content


def test_the_largest_manifest(repository: TaggedRepository) -> None:
    """Of exactly 4 MiB."""
    content = repository.image(annotations={"a": ""})
    content = content.replace(b'"a": ""', b'"a": "' + b"x" * (LIMIT - len(content)) + b'"')
    assert len(content) == LIMIT
    repository.manifest(digest_of(content)).write_bytes(content)
    repository.assert_put(content)


# --- what is refused ---------------------------------------------------------------------------------------------

MALFORMED = {
    "no-json": b"this is no JSON\n",
    "half": encode(oci_image())[:-3],
    "list": b"[]",
    "number": b"7",
    "no-version": b"{}",
    "schema-3": encode(oci_image(schemaVersion=3)),
    "unknown-type": encode(oci_image(mediaType="text/plain")),
    "both": encode(oci_image(manifests=[])),
    "wrong-types": encode(oci_image() | {"layers": {"a": 1}}),
    "bad-digest": encode(oci_image() | {"layers": [{"mediaType": "a/b", "size": 1, "digest": "sha256:xyz"}]}),
    "twice": encode(oci_image())[:-2] + b',"schemaVersion": 2}',
    "urls": encode(
        oci_image()
        | {
            "layers": [
                describe(
                    b"x",
                    "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
                    urls=["https://example.com/x"],
                )
            ]
        }
    ),
}


@pytest.mark.parametrize("put", [put_by_cp, put_by_shell, put_by_dd])
@pytest.mark.parametrize("content", MALFORMED.values(), ids=MALFORMED)
def test_malformed_at_close(repository: TaggedRepository, file: Path, put: Put, content: bytes) -> None:
    """EINVAL from close, the tool fails, the log has the reason, and nothing has changed."""
    repository.storage.put_layer(repository.name, b"{}")
    file.write_bytes(content)
    with repository.unchanged(), repository.mount.refuses("EINVAL"):
        result = put(repository, file, digest_of(content))
    assert result.returncode != 0
    assert "Invalid argument" in result.stderr


@pytest.mark.parametrize("content", MALFORMED.values(), ids=MALFORMED)
def test_malformed_at_rename(repository: TaggedRepository, content: bytes) -> None:
    """EINVAL from rename; the upload is still there, and its attribute says why."""
    repository.storage.put_layer(repository.name, b"{}")
    append(repository.manifest("m.json"), content)
    with repository.unchanged(), repository.mount.refused(errno.EINVAL):
        os.rename(repository.manifest("m.json"), repository.manifest(digest_of(content)))
    assert get_xattr(repository.manifest("m.json"), "user.layerfs.error")
    os.unlink(repository.manifest("m.json"))


def test_a_wrong_digest(repository: TaggedRepository, file: Path) -> None:
    """EBADMSG, at close and at rename; and never a copy in another way, as after EXDEV."""
    content = repository.image()
    file.write_bytes(content)
    with repository.unchanged(), repository.mount.refuses("EBADMSG"):
        assert "Bad message" in put_by_cp(repository, file, MISSING).stderr
    append(repository.upload("m.json"), content)
    with repository.unchanged(), repository.mount.refuses("EBADMSG"):
        result = run("mv", repository.upload("m.json"), repository.manifest(MISSING), check=False)
    assert "Bad message" in result.stderr
    assert digest_of(content) in get_xattr(repository.upload("m.json"), "user.layerfs.error")
    os.rename(repository.upload("m.json"), repository.manifest(digest_of(content)))
    repository.assert_put(content)


@pytest.mark.parametrize(
    "make",
    [
        lambda: oci_image(b"{}", (b"not there",)),
        lambda: oci_image(b"not there", (b"layer",)),
        lambda: docker_image(b"{}", (b"layer", b"not there")),
        lambda: oci_index([b"not there"]),
        lambda: docker_list([b"not there"]),
    ],
    ids=["layer", "config", "schema2", "child", "list"],
)
def test_a_missing_reference(repository: TaggedRepository, file: Path, make: Callable) -> None:
    """ENOLINK, at close and at rename; the reason names what is missing."""
    for blob in (b"{}", b"layer"):
        repository.storage.put_layer(repository.name, blob)
    file.write_bytes(encode(make()))
    for put in (put_by_cp, put_by_mv_within):
        with repository.mount.refuses("ENOLINK"):
            result = put(repository, file, digest_of(file.read_bytes()))
        assert "severed" in result.stderr
        assert repository.stored_revisions == set()
        assert not repository.storage.blob(digest_of(file.read_bytes())).exists()
    assert digest_of(b"not there") in get_xattr(repository.manifest("m.json"), "user.layerfs.error")
    assert digest_of(b"not there") in (repository.mount.path / ".layerfs/errors").read_text()
    os.unlink(repository.manifest("m.json"))


def test_a_blob_of_another_repository_is_missing(repository: TaggedRepository, small: TaggedMount) -> None:
    """What is stored but not linked here is ENOLINK; after `ln` of the layers it is there."""
    other = small.new_repository()
    content = other.image("theirs")
    place = repository.manifest(digest_of(content))
    with repository.unchanged(), repository.mount.refused(errno.ENOLINK):
        place.write_bytes(content)
    for digest in other.layers:
        os.link(other.layer(digest), repository.layer(digest))
    place.write_bytes(content)
    repository.assert_put(content)


def test_a_manifest_that_is_too_large(repository: TaggedRepository, file: Path) -> None:
    """EFBIG beyond 4 MiB: at write, at truncate, at rename."""
    file.write_bytes(b" " * (LIMIT + 1))
    digest = digest_of(file.read_bytes())
    with repository.unchanged(), repository.mount.refuses("EFBIG"), repository.mount.tolerates("EINVAL"):
        assert "File too large" in put_by_cp(repository, file, digest).stderr
    run("cp", file, repository.upload("m.json"))
    with repository.unchanged(), repository.mount.refused(errno.EFBIG):
        os.rename(repository.upload("m.json"), repository.manifest(digest))
    os.unlink(repository.upload("m.json"))


@pytest.mark.parametrize("place", ["tag", "digest"])
def test_the_beginning_of_a_manifest_that_is_too_large(repository: TaggedRepository, file: Path, place: str) -> None:
    """Nothing is put, though what came before the refused write is a manifest itself; once emptied the file counts."""
    content = repository.image()
    beginning = content + b"\n" * (LIMIT - len(content))
    file.write_bytes(beginning + b"\n")
    name = repository.tag("large") if place == "tag" else repository.manifest(digest_of(beginning))
    with repository.unchanged(), repository.mount.refuses("EFBIG"):
        assert "File too large" in run("cp", file, name, check=False).stderr
    with repository.unchanged(), opened(name, os.O_WRONLY | os.O_CREAT) as fd:
        write_all(fd, beginning)
        with repository.mount.refused(errno.EFBIG):
            os.write(fd, b"\n")
        with repository.mount.refused(errno.EFBIG):
            os.close(os.dup(fd))
        os.ftruncate(fd, 0)
    with opened(name, os.O_WRONLY | os.O_CREAT) as fd:
        write_all(fd, beginning)
    repository.assert_put(beginning)


@pytest.mark.parametrize(
    "change",
    [
        lambda path: os.open(path, os.O_WRONLY),
        lambda path: os.open(path, os.O_RDWR | os.O_TRUNC),
        lambda path: os.chmod(path, 0o600),
        lambda path: os.truncate(path, 3),
        lambda path: os.rename(path, path.with_name("m.json")),
        lambda path: os.rename(path, path.parent.parent / "_tags/v1"),
        lambda path: os.rename(path, path.parent.parent / "_uploads/m.json"),
        os.unlink,
    ],
    ids=["write", "truncate", "chmod", "shorten", "rename", "move-to-tags", "move-to-uploads", "unlink"],
)
def test_changing_a_stored_manifest(repository: TaggedRepository, change: Callable) -> None:
    """EPERM, and everything is as before."""
    digest = repository.store_manifest(repository.image(), "v1")
    with repository.unchanged(), repository.mount.refused(errno.EPERM):
        change(repository.manifest(digest))


def test_a_read_only_mount(mounts, storage: Storage) -> None:
    """EROFS to every change, nothing changed."""
    repository = TaggedRepository(mounts(storage, "--read-only"), storage, "r")
    content = repository.image()
    digest = repository.store_manifest(repository.image("stored"), "v1")
    changes = (
        lambda: os.open(repository.manifest(digest_of(content)), os.O_WRONLY | os.O_CREAT),
        lambda: os.open(repository.manifest("m.json"), os.O_WRONLY | os.O_CREAT),
        lambda: os.open(repository.tag("v2"), os.O_WRONLY | os.O_CREAT),
        lambda: os.symlink("v1", repository.tag("v2")),
        lambda: os.rename(repository.tag("v1"), repository.tag("v2")),
        lambda: os.unlink(repository.tag("v1")),
        lambda: os.unlink(repository.manifest(digest)),
    )
    with repository.unchanged():
        for change in changes:
            # mount(2) was told, so it may be the kernel that answers, and the daemon has nothing to log.
            with repository.mount.tolerates("EROFS"), pytest.raises(OSError, match="Read-only file system"):
                change()
        assert repository.tag("v1").read_bytes() == repository.stored(digest)


# --- reading -----------------------------------------------------------------------------------------------------


def test_a_manifest_is_a_file(repository: TaggedRepository) -> None:
    """Mode 0444, the exact size, readable at any place."""
    content = repository.image()
    digest = repository.store_manifest(content)
    status = os.stat(repository.manifest(digest))
    assert (stat.S_IMODE(status.st_mode), status.st_size) == (0o444, len(content))
    with opened(repository.manifest(digest), os.O_RDONLY) as descriptor:
        assert os.pread(descriptor, 10, 5) == content[5:15]
        assert os.pread(descriptor, 10, len(content)) == b""


def test_revisions_that_lead_nowhere(repository: TaggedRepository) -> None:
    """A link without a blob, an empty link, and a link to something else are not listed; the first two are ENOENT."""
    good = repository.store_manifest(repository.image("good"))
    revisions = repository.storage.repository(repository.name) / "_manifests/revisions/sha256"
    for digest, link in (("1" * 64, "sha256:" + "1" * 64), ("2" * 64, ""), ("3" * 64, good)):
        (revisions / digest).mkdir(parents=True)
        (revisions / digest / "link").write_text(link)
    assert repository.manifests == [good]
    for digit in "12":
        with repository.mount.refused(errno.ENOENT):
            os.stat(repository.manifest("sha256:" + digit * 64))
    with repository.mount.refused(errno.EIO):
        os.stat(repository.manifest("sha256:" + "3" * 64))


def test_what_others_put_and_delete(repository: TaggedRepository) -> None:
    """Within a second it is shown, or gone."""
    assert repository.manifests == []
    digest = repository.store_manifest(repository.image())
    assert repository.manifest(digest).exists()
    wait_until(lambda: repository.manifests == [digest], "the new manifest", seconds=1.5)
    (repository.storage.repository(repository.name) / f"_manifests/revisions/sha256/{digest[7:]}/link").unlink()
    wait_until(lambda: not repository.manifest(digest).exists(), "its end", seconds=1.5)
    wait_until(lambda: repository.manifests == [], "its end in the list", seconds=1.5)


def test_our_own_changes_are_seen_at_once(repository: TaggedRepository) -> None:
    """However fresh the listing and the answer that there is none: a put is in both at once."""
    for number in range(20):
        content = repository.image(str(number))
        place = repository.manifest(digest_of(content))
        assert place.name not in repository.manifests
        assert not place.exists()
        place.write_bytes(content)
        assert place.exists()
        assert place.name in repository.manifests


def test_many_manifests(repository: TaggedRepository) -> None:
    """300 are listed, each once."""
    contents = [repository.image(str(number)) for number in range(300)]
    for content in contents:
        repository.store_manifest(content)
    assert repository.manifests == sorted(map(digest_of, contents))


# --- deleting ----------------------------------------------------------------------------------------------------


def test_deleting_takes_the_tags_that_mean_it(deletable: TaggedRepository) -> None:
    """With `--allow-delete`: the revision and its tags go; the bytes, other manifests and their tags stay."""
    content = deletable.image("one")
    digest = deletable.store_manifest(content, "v1", "latest")
    other = deletable.store_manifest(deletable.image("other"), "v2")
    run("rm", "-f", deletable.manifest(digest))
    assert deletable.stored_revisions == {other}
    assert deletable.stored_tags == {"v2": other}
    assert (deletable.manifests, deletable.tags) == ([other], {"v2": other})
    assert deletable.stored(digest) == content
    with deletable.mount.refused(errno.ENOENT):
        os.stat(deletable.manifest(digest))


def test_deleting_what_is_not_there(deletable: TaggedRepository) -> None:
    """ENOENT."""
    with deletable.mount.refused(errno.ENOENT):
        os.unlink(deletable.manifest(MISSING))


def test_a_deleted_manifest_comes_back(deletable: TaggedRepository) -> None:
    """It can be put again at once, and deleted again."""
    content = deletable.image()
    for _ in range(5):
        deletable.manifest(digest_of(content)).write_bytes(content)
        deletable.assert_put(content)
        os.unlink(deletable.manifest(digest_of(content)))
        assert deletable.manifests == []


def test_a_manifest_that_is_deleted_while_open(deletable: TaggedRepository) -> None:
    """Who has it open reads on."""
    content = deletable.image()
    digest = deletable.store_manifest(content)
    with opened(deletable.manifest(digest), os.O_RDONLY) as descriptor:
        os.unlink(deletable.manifest(digest))
        assert os.pread(descriptor, len(content), 0) == content


# --- in the middle -----------------------------------------------------------------------------------------------


def test_a_writer_that_dies(repository: TaggedRepository) -> None:
    """A process killed in the middle of a manifest puts nothing."""
    program = (
        "import os, signal, sys\n"
        "f = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)\n"
        "os.write(f, b'{\"schemaVersion\": 2')\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    with repository.unchanged(), repository.mount.refuses("EINVAL"):
        result = subprocess.run([sys.executable, "-c", program, repository.manifest(MISSING)], check=False, timeout=30)
    assert result.returncode == -signal.SIGKILL


def test_a_daemon_that_dies(mounts, storage: Storage) -> None:
    """What was not closed is not there after `kill -9` and a remount; an upload is, and can be put."""
    repository = TaggedRepository(mounts(storage), storage, "r")
    storage.make_repository("r")
    content = repository.image()
    append(repository.manifest("m.json"), content)
    before = repository.all_that_is_stored()
    descriptor = os.open(repository.manifest(digest_of(content)), os.O_WRONLY | os.O_CREAT)
    write_all(descriptor, content)
    repository.mount.kill9()
    with pytest.raises(OSError, match=r"not connected|aborted"):
        os.close(descriptor)
    assert repository.all_that_is_stored() == before
    repository.mount.remount()
    assert (repository.manifests, repository.uploads) == ([], ["m.json"])
    os.rename(repository.manifest("m.json"), repository.manifest(digest_of(content)))
    repository.assert_put(content)


def test_two_writers_of_one_manifest(repository: TaggedRepository) -> None:
    """Both are right, in whatever order they write and close."""
    content = repository.image()
    place = repository.manifest(digest_of(content))
    first = os.open(place, os.O_WRONLY | os.O_CREAT)
    second = os.open(place, os.O_WRONLY | os.O_CREAT)
    for start in range(0, len(content), 100):
        os.write(first, content[start : start + 100])
        os.write(second, content[start : start + 100])
    os.close(second)
    os.close(first)
    repository.assert_put(content)


def test_the_reason_of_the_newest_failure(repository: TaggedRepository) -> None:
    """`.layerfs/errors` has it as an object with operation, path and errno."""
    with repository.mount.refused(errno.EINVAL), opened(repository.tag("v1"), os.O_WRONLY | os.O_CREAT) as descriptor:
        write_all(descriptor, b"nonsense")
    newest = json.loads((repository.mount.path / ".layerfs/errors").read_text().splitlines()[-1])
    assert "EINVAL" in json.dumps(newest)
    assert f"{repository.name}/_tags/v1" in json.dumps(newest)
