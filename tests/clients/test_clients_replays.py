"""Clients that cannot be had as packages, replayed call by call: a real registry serves what they push."""

from __future__ import annotations

import errno
import fcntl
import json
import os
from pathlib import Path

import pytest
from harness.clients_layouts import Originals, assert_complete, blob_path, blobs_of, read_index, tags_of
from harness.clients_replays import (
    ALL,
    Replay,
    ReplayBuildKit,
    ReplayContainerd,
    ReplayCrane,
    ReplayOras,
    ReplayProcess,
    ReplayRegctl,
    ReplaySkopeo,
    ReplayUmoci,
)
from harness.clients_served import assert_clean, assert_served
from harness.clients_target import Images, Target
from harness.mount import Mount
from harness.storage import digest_of

#: Images that every client can write: an index of two, and one with a layer of no bytes.
PUSHED = [("multi/arch", "latest"), ("edge/empty", "1")]


def prepare(target: Target, replay: type[Replay], repository: str) -> Path:
    """The layout that a client finds: umoci wants one, the others make it."""
    return target.new_layout(repository) if replay is ReplayUmoci else target.layout(repository)


@pytest.mark.parametrize("replay", ALL)
def test_pushing(target: Target, originals: Originals, tmp_path: Path, replay: type[Replay]) -> None:
    """A repository that does not exist, then a second tag for what is there already: both are served."""
    expected = {}
    for repository, tag in PUSHED:
        image = originals.image(repository, tag)
        layout = prepare(target, replay, repository)
        for name in (tag, "again"):
            client = replay(layout, image, name)
            with target.mount.tolerates("EPERM"):  # regctl may delete nothing here
                client.run()
            assert_complete(layout, name, image)
            expected[repository, name] = image
        assert target.storage.uploads(repository) == []
    assert_served(target.storage, tmp_path / "registry", expected, all_in_use=True)


@pytest.mark.parametrize("replay", ALL)
def test_moving_a_tag(target: Target, images: Images, tmp_path: Path, replay: type[Replay]) -> None:
    """A second image under the same tag: the tag means that from then on."""
    layout = prepare(target, replay, "r")
    for image in (images.image(), images.image()):
        with target.mount.tolerates("EPERM"):
            replay(layout, image, "v1").run()
        assert tags_of(layout) == {"v1": image.digest}
    assert_served(target.storage, tmp_path / "registry", {("r", "v1"): image}, all_in_use=False)


def test_one_after_the_other(target: Target, images: Images, tmp_path: Path) -> None:
    """All clients push to one repository, each in a process of its own, each the other's images also."""
    layout = target.new_layout("r")
    index = images.index()
    expected = {}
    for replay in ALL:
        for name, content in (("shared", index), ("own", images.image(1))):
            tag = f"{replay.__name__.lower()}-{name}"
            with target.mount.tolerates("EPERM"):
                ReplayProcess(replay(layout, content, tag)).finish()
            expected["r", tag] = content
    assert_served(target.storage, tmp_path / "registry", expected, all_in_use=True)


# --- regctl's garbage collection ---------------------------------------------------------------------------------


class ReplayOldRegctl(ReplayRegctl):
    """regclient before it logged by slog."""

    stops_at_first_error = False


@pytest.mark.parametrize("replay", [ReplayRegctl, ReplayOldRegctl])
def test_regctl_collects_nothing_of_others(target: Target, images: Images, replay: type[ReplayRegctl]) -> None:
    """While another client is pushing, its blobs are garbage to regctl; without --allow-delete they stay: EPERM."""
    layout = target.new_layout("r")
    other = ReplayProcess(ReplaySkopeo(layout, images.image(), "other"))
    other.run_to("open oci-layout")
    client = replay(layout, images.image(), "mine")
    with target.mount.refuses("EPERM"):
        client.run()
    assert {error.errno for error in client.refused} == {errno.EPERM}
    other.finish()
    assert set(tags_of(layout)) == {"mine", "other"}
    for digest in tags_of(layout).values():
        assert blobs_of(layout, digest)
    assert_clean(target.storage)


@pytest.mark.parametrize("replay", [ReplayRegctl, ReplayOldRegctl])
def test_regctl_collects_nothing_young(deletable: Target, images: Images, replay: type[ReplayRegctl]) -> None:
    """With --allow-delete: EBUSY for what another client has written a moment ago, also for its temporary files."""
    layout = deletable.new_layout("r")
    other_image = images.image()
    other = ReplayProcess(ReplayUncollecting(layout, other_image, "other"))
    other.run_to("write of 32768 bytes")
    while other.step() != "close":
        pass
    with deletable.mount.refuses("EBUSY"):
        client = replay(layout, images.image(), "mine")
        stray = deletable.storage.put_layer("r", b"somebody else's")
        client.run()
    assert {error.errno for error in client.refused} == {errno.EBUSY}
    assert blob_path(layout, stray).exists()
    other.finish()
    assert_complete(layout, "other", other_image)
    assert_complete(layout, "mine", client.image)
    assert_clean(deletable.storage)


class ReplayUncollecting(ReplayRegctl):
    """Temporary files in `blobs/sha256`, and no garbage collection."""

    def collect_garbage(self):
        return iter(())


@pytest.mark.local("files can be given another time")
def test_regctl_collects_what_is_old(deletable: Target, images: Images, tmp_path: Path) -> None:
    """An hour later what no tag leads to goes from the repository, and what a tag leads to stays."""
    layout = deletable.new_layout("r")
    old, new = images.image(), images.image()
    with deletable.mount.refuses("EBUSY"):
        for image in (old, new):
            ReplayRegctl(layout, image, "v1").run()
    for path in deletable.storage.v2.rglob("*"):
        if path.is_file():
            os.utime(path, (path.stat().st_atime, path.stat().st_mtime - 3700))
    client = ReplayRegctl(layout, new, "v2")
    client.run()
    assert client.refused == []
    for digest in old.content:
        assert not blob_path(layout, digest).exists()
        assert deletable.storage.blob(digest).exists()
    expected = {("r", "v1"): new, ("r", "v2"): new}
    assert_served(deletable.storage, tmp_path / "registry", expected, all_in_use=False, orphans=len(old.blobs))


# --- interleaved -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second"),
    [*((client, ReplaySkopeo) for client in ALL), (ReplayUmoci, ReplayUmoci), (ReplayBuildKit, ReplayBuildKit)],
)
def test_two_at_once(target: Target, images: Images, first: type[Replay], second: type[Replay]) -> None:
    """Two clients take turns, call by call, in one repository: both tags are there, each complete."""
    layout = target.new_layout("r")
    pushed = {"first": images.image(1), "second": images.image(1)}
    with target.mount.tolerates("EPERM"):
        waiting = [
            ReplayProcess(kind(layout, pushed[tag], tag)) for kind, tag in ((first, "first"), (second, "second"))
        ]
        while waiting:
            for process in list(waiting):
                if process.step() == "done":
                    process.kill()
                    waiting.remove(process)
    for tag, image in pushed.items():
        assert_complete(layout, tag, image)
    assert target.storage.uploads("r") == []
    assert_clean(target.storage)


def test_the_index_read_long_ago(target: Target, images: Images) -> None:
    """skopeo reads the index first and writes it last; everything that others push in between stays."""
    layout = target.new_layout("r")
    expected = {"slow": images.image(1)}
    slow = ReplayProcess(ReplaySkopeo(layout, expected["slow"], "slow"))
    slow.run_to("read index.json")
    for replay in ALL:
        expected[replay.__name__] = images.image(1)
        with target.mount.tolerates("EPERM"):
            ReplayProcess(replay(layout, expected[replay.__name__], replay.__name__)).finish()
    slow.finish()
    for tag, image in expected.items():
        assert_complete(layout, tag, image)
    assert set(tags_of(layout)) == set(expected)


# --- containerd and BuildKit -------------------------------------------------------------------------------------


def test_containerd_ingests(target: Target, images: Images) -> None:
    """Without an index everything is a layer of the repository, and nothing is a manifest or a tag."""
    layout = target.layout("r")
    image = images.image()
    ReplayContainerd(layout, image, "").run()
    assert blobs_of(layout, image.digest) == image.content
    assert read_index(layout) == []
    assert os.listdir(layout / "ingest") == []
    assert len(target.storage.uploads("r")) == 1  # the manifest, which waits for an index
    assert_clean(target.storage)


def test_containerd_ingests_what_is_there(target: Target, images: Images) -> None:
    """The second time the target exists: the ingest is thrown away."""
    layout = target.layout("r")
    image = images.image()
    for _ in range(2):
        ReplayContainerd(layout, image, "").run()
    assert os.listdir(layout / "ingest") == []
    assert len(target.storage.uploads("r")) == 1


def test_buildkit_reads_from_a_read_only_mount(mounts, storage_copy, originals: Originals) -> None:
    """`--build-context oci-layout://` and `--cache-from type=local`: lock and probe fail with EROFS, as it wants."""
    mount: Mount = mounts(storage_copy(), "--read-only")
    layout = mount.path / "multi/arch/_oci"
    with pytest.raises(OSError, match="Read-only file system"):
        os.open(layout / "index.json.lock", os.O_CREAT | os.O_RDONLY | os.O_CLOEXEC, 0o666)
    with pytest.raises(OSError, match="Read-only file system"):
        (layout / ".fsverity-check-1").mkdir()
    with open(layout / "index.json") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        index = json.load(file)
    [entry] = index["manifests"]
    image = originals.image("multi/arch", "latest")
    assert entry["digest"] == image.digest
    for digest, content in image.content.items():
        with blob_path(layout, digest).open("rb") as file:
            assert os.fstat(file.fileno()).st_size == len(content)
            assert file.read() == content


def test_the_cache_of_buildkit(target: Target, images: Images, tmp_path: Path) -> None:
    """`--cache-to type=local` three times: the tag moves on, and what it meant stays while nobody may delete."""
    layout = target.layout("cache")
    for _ in range(3):
        image = images.image()
        ReplayBuildKit(layout, image, "latest").run()
        assert_complete(layout, "latest", image)
    assert_served(target.storage, tmp_path / "registry", {("cache", "latest"): image}, all_in_use=False)


# --- crane -------------------------------------------------------------------------------------------------------


def test_crane_names_nothing(target: Target, images: Images, tmp_path: Path) -> None:
    """`crane pull --format=oci` adds a manifest without a tag: it is one of the repository, and `ln -s` tags it."""
    layout = target.layout("r")
    image = images.index()
    ReplayCrane(layout, image, "").run()
    assert read_index(layout) == []
    assert set(os.listdir(layout.parent / "_manifests")) == set(image.manifests)
    os.symlink(f"../_manifests/{image.digest}", layout.parent / "_tags/v1")
    assert_complete(layout, "v1", image)
    assert_served(target.storage, tmp_path / "registry", {("r", "v1"): image}, all_in_use=True)


# --- oras --------------------------------------------------------------------------------------------------------


def test_oras_names_what_has_no_tag(target: Target, images: Images, tmp_path: Path) -> None:
    """oras writes the index after every manifest, before it has a tag: those become manifests of the repository."""
    layout = target.layout("r")
    index = images.index()
    ReplayOras(layout, index, "v1").run()
    assert set(os.listdir(layout.parent / "_manifests")) == set(index.manifests)
    assert read_index(layout) == [index.descriptor | {"annotations": read_index(layout)[0]["annotations"]}]
    assert_served(target.storage, tmp_path / "registry", {("r", "v1"): index}, all_in_use=True)


def test_an_artifact(target: Target, images: Images, tmp_path: Path) -> None:
    """What is no image: an artifact with a type and a subject, as `oras attach` makes."""
    layout = target.layout("r")
    image = images.image()
    ReplayOras(layout, image, "v1").run()
    artifact = images.artifact(image)
    ReplayOras(layout, artifact, f"sha256-{image.digest[7:]}").run()
    expected = {("r", "v1"): image, ("r", f"sha256-{image.digest[7:]}"): artifact}
    assert digest_of(artifact.manifests[artifact.digest]) == artifact.digest
    assert_served(target.storage, tmp_path / "registry", expected, all_in_use=True)
