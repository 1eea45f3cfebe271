"""The storage that a real registry wrote, mounted and walked completely."""

from __future__ import annotations

import os
import random
import stat
import subprocess
from pathlib import Path

import pytest
from harness.commands import get_xattr, run, shell
from harness.fixture import faults
from harness.mount import Mount
from harness.storage import Storage, copy_tree, digest_of_file, snapshot
from harness.stores import Store

pytestmark = pytest.mark.usefixtures("watchdog")

#: Errnos that a damaged entry may have; anything else is a bug of its own.
BROKEN = ("EIO",)


@pytest.fixture(scope="module")
def stored(fixture_trees: Path) -> Storage:
    """The storage as the registry left it."""
    return Storage(fixture_trees / "storage")


@pytest.fixture(scope="module")
def copied(fixture_trees: Path, tmp_path_factory: pytest.TempPathFactory, store: Store) -> Storage:
    """A copy of it that is mounted."""
    return Storage(copy_tree(fixture_trees / "storage", store.root(tmp_path_factory.mktemp("copied") / "storage")))


@pytest.fixture(scope="module")
def walked(copied: Storage, tmp_path_factory: pytest.TempPathFactory):
    """A mount of the undamaged storage that nobody writes to."""
    with Mount(copied.source, tmp_path_factory.mktemp("walked") / "mnt") as mount:
        yield mount
    mount.check_log()


def test_find_reaches_everything(walked: Mount) -> None:
    """`find` walks the whole tree without one error, and every entry can be stat'ed."""
    result = run("find", walked.path, "-ls")
    assert result.stderr == ""
    assert len(result.stdout.splitlines()) > 60


def test_every_linked_layer_is_listed_and_no_other(walked: Mount, stored: Storage) -> None:
    """`_layers` of each repository lists exactly the links in storage."""
    expected: dict[str, set[str]] = {}
    for name, digest, _link in stored.links():
        expected.setdefault(name, set()).add(digest)
    assert len(expected) >= 12
    for name, digests in expected.items():
        assert set(os.listdir(walked.path / name / "_layers")) == digests


def test_content_hashes_to_the_name(walked: Mount, stored: Storage) -> None:
    """`sha256sum` (or `sha512sum`) of every layer is its name."""
    for name, digest, _link in stored.links():
        algorithm, _, encoded = digest.partition(":")
        summed = run(f"{algorithm}sum", walked.path / name / "_layers" / digest).stdout
        assert summed.split()[0] == encoded


def test_sizes_and_times_are_those_of_the_stored_blob(walked: Mount, stored: Storage, copied: Storage) -> None:
    """`st_size` is exact and `st_mtime` is when the blob was stored."""
    for name, digest, link in stored.links():
        data = copied.blob(link.read_text()).stat()
        seen = os.stat(walked.path / name / "_layers" / digest)
        assert (seen.st_size, int(seen.st_mtime)) == (data.st_size, int(data.st_mtime))


def test_modes_and_kinds(walked: Mount, stored: Storage) -> None:
    """Layers are regular files 0444 with two links; every directory is 0755."""
    for name, digest, _link in stored.links():
        seen = os.lstat(walked.path / name / "_layers" / digest)
        assert stat.S_ISREG(seen.st_mode)
        assert (stat.S_IMODE(seen.st_mode), seen.st_nlink) == (0o444, 2)
    wrong = run("find", walked.path, "-type", "d", "!", "-perm", "0755").stdout
    assert wrong == ""


def test_tar_lists_every_gzipped_layer(walked: Mount, stored: Storage) -> None:
    """`tar tzf` reads each gzipped layer to its end."""
    listed = 0
    for name, digest, link in stored.links():
        if stored.blob(link.read_text()).read_bytes()[:2] == b"\x1f\x8b":
            run("tar", "tzf", walked.path / name / "_layers" / digest)
            listed += 1
    assert listed >= 10


def test_random_reads_of_the_large_layer(walked: Mount, stored: Storage, tmp_path: Path) -> None:
    """`dd` at random places gives the bytes of the stored file."""
    name, digest, _link = next(
        entry for entry in stored.links() if entry[0] == "big/layer" and _is_large(stored, entry)
    )
    dice = random.Random(7)
    blob = stored.blob(digest)
    for number in range(25):
        where = dice.randrange(blob.stat().st_size)
        length = dice.choice([1, 511, 4096, 65537, 1_000_000])
        options = [
            f"skip={where}",
            f"count={length}",
            "iflag=skip_bytes,count_bytes",
            f"bs={dice.choice([512, 4096, 131072])}",
        ]
        seen, expected = tmp_path / f"seen-{number}", tmp_path / f"expected-{number}"
        run("dd", f"if={walked.path / name / '_layers' / digest}", f"of={seen}", *options)
        run("dd", f"if={blob}", f"of={expected}", *options)
        run("cmp", seen, expected)


def _is_large(stored: Storage, entry: tuple[str, str, Path]) -> bool:
    return stored.blob(entry[1]).stat().st_size > 30_000_000


def test_repositories_inside_one_another(walked: Mount) -> None:
    """`a`, `a/b` and `a/b/c` are three repositories, each with its own `_layers`."""
    seen = [len(os.listdir(walked.path / name / "_layers")) for name in ("a", "a/b", "a/b/c")]
    assert seen == [2, 3, 4]


def test_a_repository_has_its_directories(walked: Mount) -> None:
    """Every repository has `_layers` and `_uploads`, also where the storage has no such directory yet."""
    for name in ("base", "team/app", "edge/mounted", "edge/sha512", "edge/uploads"):
        assert {"_layers", "_uploads"} <= set(os.listdir(walked.path / name))


def test_a_prefix_is_no_repository(walked: Mount) -> None:
    """`team` only leads to repositories: it lists them and has no directories of its own."""
    assert sorted(os.listdir(walked.path / "team")) == ["app", "app-docker", "app-zstd"]


def test_uploads_of_the_registry(walked: Mount, stored: Storage) -> None:
    """Uploads begun over HTTP are listed by UUID with their size; the ghost of a cancelled one is not."""
    begun = {path.name: path / "data" for path in stored.uploads("edge/uploads") if (path / "startedat").exists()}
    uploads = walked.path / "edge/uploads/_uploads"
    assert len(begun) == 2
    assert {name: os.stat(uploads / name).st_size for name in os.listdir(uploads)} == {
        name: data.stat().st_size for name, data in begun.items()
    }


def test_a_ghost_is_unknown(walked: Mount, stored: Storage) -> None:
    """An upload directory without `startedat` is ENOENT by name, too."""
    ghost = next(path for path in stored.uploads("edge/uploads") if not (path / "startedat").exists())
    with walked.refused(2):
        os.stat(walked.path / "edge/uploads/_uploads" / ghost.name)


def test_the_sha512_alias(walked: Mount, stored: Storage) -> None:
    """A blob uploaded by its sha512 shows under both digests, as one file."""
    directory = walked.path / "edge/sha512/_layers"
    names = os.listdir(directory)
    assert sorted(name.partition(":")[0] for name in names) == ["sha256", "sha512"]
    assert len({os.stat(directory / name).st_ino for name in names}) == 1


def test_the_storage_is_unchanged_by_reading(walked: Mount, stored: Storage, copied: Storage) -> None:
    """Walking and reading a mount changes nothing in the storage."""
    before = snapshot(copied.root)
    run("find", walked.path, "-type", "f", "-path", "*_layers*", "-exec", "cat", "{}", "+", errors="replace")
    assert snapshot(copied.root) == before
    if copied.is_local:
        run("diff", "-r", stored.root, copied.root)


def test_rsync_copies_the_whole_tree(walked: Mount, tmp_path: Path) -> None:
    """`rsync -a` of the mount gives every layer, byte for byte."""
    run("rsync", "-a", f"{walked.path}/", f"{tmp_path}/copy/")
    copied = list((tmp_path / "copy").glob("**/_layers/sha256:*"))
    assert len(copied) >= 40
    assert all(digest_of_file(path) == path.name for path in copied)


# --- damaged -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def damaged_storage(fixture_trees: Path, tmp_path_factory: pytest.TempPathFactory, store: Store) -> Storage:
    """A copy of the damaged storage."""
    return Storage(copy_tree(fixture_trees / "damaged", store.root(tmp_path_factory.mktemp("damaged") / "storage")))


@pytest.fixture(scope="module")
def damaged(damaged_storage: Storage, tmp_path_factory: pytest.TempPathFactory):
    """A mount of the damaged storage."""
    with Mount(damaged_storage.source, tmp_path_factory.mktemp("damaged") / "mnt") as mount:
        yield mount
    mount.declare("WARNING")
    mount.check_log()


@pytest.fixture(scope="module")
def fault(fixture_trees: Path) -> dict[str, list[str]]:
    """Where each kind of damage is."""
    return faults(fixture_trees)


def test_find_on_damage_ends(damaged: Mount) -> None:
    """Walking damaged storage ends quickly, and the daemon is alive afterwards."""
    with damaged.tolerates(*BROKEN):
        result = run("find", damaged.path, "-ls", check=False, timeout=30)
    assert "Transport endpoint" not in result.stderr
    assert damaged.is_alive


def test_reading_all_of_damage_ends(damaged: Mount) -> None:
    """Reading every file of damaged storage ends, too."""
    with damaged.tolerates(*BROKEN):
        shell('find "$1" -type f -exec cat {} + > /dev/null || true', damaged.path, timeout=60)
    assert damaged.is_alive


@pytest.mark.parametrize("kind", ["dangling-layer-link", "empty-link", "link-with-newline"])
def test_a_link_that_does_not_resolve(damaged: Mount, fault: dict, kind: str) -> None:
    """It is ENOENT on lookup and absent from the listing."""
    name, digest = fault[kind]
    with damaged.refused(2):
        os.stat(damaged.path / name / "_layers" / digest)
    assert digest not in os.listdir(damaged.path / name / "_layers")


@pytest.mark.parametrize("kind", ["truncated-blob", "zero-length-blob", "corrupt-blob"])
def test_a_damaged_blob_reads_as_it_is_stored(damaged: Mount, damaged_storage: Storage, fault: dict, kind: str) -> None:
    """What is stored is what is shown: its size and its bytes."""
    storage = damaged_storage
    (digest,) = fault[kind]
    places = [name for name, linked, _link in storage.links() if linked == digest]
    assert places
    for name in places:
        layer = damaged.path / name / "_layers" / digest
        assert os.stat(layer).st_size == storage.blob(digest).stat().st_size
        assert digest_of_file(layer) == digest_of_file(storage.blob(digest))


def test_repository_without_manifests(damaged: Mount, fault: dict) -> None:
    """`_layers` alone makes a repository."""
    (name,) = fault["repo-without-manifests"]
    assert {"_layers", "_uploads"} <= set(os.listdir(damaged.path / name))
    assert len(os.listdir(damaged.path / name / "_layers")) == len(os.listdir(damaged.path / "base" / "_layers"))


def test_repository_without_layers(damaged: Mount, fault: dict) -> None:
    """`_manifests` alone makes a repository; its `_layers` is empty."""
    (name,) = fault["repo-without-layers"]
    assert {"_layers", "_uploads"} <= set(os.listdir(damaged.path / name))
    assert os.listdir(damaged.path / name / "_layers") == []


def test_an_orphan_blob_is_nowhere(damaged: Mount, fault: dict) -> None:
    """A blob that no repository links is not shown, and neither is what a crashed registry left beside it."""
    (digest,) = fault["orphan-blob"]
    assert run("find", damaged.path, "-name", f"*{digest[7:]}*", check=False).stdout == ""
    assert run("find", damaged.path, "-name", "*.tmp", check=False).stdout == ""


def test_an_old_upload(damaged: Mount, fault: dict) -> None:
    """An upload of 2001 is listed like any other, and says when it was begun."""
    name, upload_id = fault["old-upload"]
    upload = damaged.path / name / "_uploads" / upload_id
    assert upload_id in os.listdir(upload.parent)
    assert os.stat(upload).st_size == 3
    assert get_xattr(upload, "user.layerfs.upload.startedat") == "2001-02-03T04:05:06Z"


def test_an_upload_without_startedat(damaged: Mount, fault: dict) -> None:
    """Without `startedat` no registry knows the upload: it is ENOENT and not listed."""
    name, upload_id = fault["upload-without-startedat"]
    with damaged.refused(2):
        os.stat(damaged.path / name / "_uploads" / upload_id)
    assert upload_id not in os.listdir(damaged.path / name / "_uploads")


def test_an_upload_with_bad_startedat_does_not_hide_the_others(damaged: Mount, fault: dict) -> None:
    """One unusable upload leaves the listing and the other uploads usable."""
    name, upload_id = fault["upload-with-bad-startedat"]
    with damaged.tolerates("EIO"):
        listed = set(os.listdir(damaged.path / name / "_uploads"))
        subprocess.run(
            ["stat", damaged.path / name / "_uploads" / upload_id], capture_output=True, timeout=20, check=False
        )
    assert {fault["old-upload"][1], fault["upload-with-bad-hashstate"][1]} <= listed


def test_an_upload_with_bad_hashstate_is_finished(damaged: Mount, fault: dict) -> None:
    """A hash state that is none is ignored: the upload is read, and committed if it is right."""
    name, upload_id = fault["upload-with-bad-hashstate"]
    layers = damaged.path / name / "_layers"
    digest = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # of "abc"
    os.rename(layers.parent / "_uploads" / upload_id, layers / digest)
    assert (layers / digest).read_bytes() == b"abc"
