"""Storage with something else where a file or directory should be: nothing hangs, nothing outside is read or written.

Every place that layerfs looks at gets every kind of thing once, each in a repository of its own, all in one mount. What
lies outside the storage, and is pointed at, is a valid link, blob or upload: only following it would show.
Seen to fail: `test_opening_whatever_is_there_is_found`, with a daemon that takes everything for a regular file.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import harness.mount
import pytest
from harness.bounded import LIMIT, Outcome, attempt, timed
from harness.commands import append, run
from harness.mount import Mount
from harness.planted import plant
from harness.repository import MountedRepository
from harness.sha256 import hash_state
from harness.storage import STARTED_AT, Storage, digest_of, snapshot
from harness.tolerance import forgive_refusals
from harness.workload import content

LAYER = content("layer", 10_000)
DIGEST = digest_of(LAYER)
HEX = DIGEST.partition(":")[2]
UPLOAD = "5d9b0bd7-9a43-4f38-8f0c-2b3f4e1a7c11"
UPLOADED = content("upload", 3000)

#: Lies outside and must never be seen through the mount.
SECRET = b"SECRET-" * 200
BIG = 10 << 20
NONSENSE = b"../../../../etc/passwd\n\x1b[2J"

#: What may be said of something that is not what it should be. Others (EAGAIN, EINTR, ENOTCONN, ENOSYS …) are wrong.
ANSWERS = {
    *("ok", "ENOENT", "EIO", "EACCES", "EBADMSG", "EINVAL", "EISDIR", "ENOTDIR", "EPERM", "EBUSY", "EEXIST"),
    *("ENOTEMPTY", "EFBIG"),
}


@dataclass(frozen=True)
class Outside:
    """What the symbolic links point to."""

    root: Path

    def prepare(self) -> None:
        for name, data in {"link": DIGEST.encode(), "startedat": STARTED_AT.encode()}.items():
            (self.root / name).write_bytes(data)
        (self.root / "data").write_bytes(SECRET)
        (self.root / "layerfs-name").write_bytes(b"SECRET-name")
        outside = Storage.create(self.root / "registry")
        outside.put_layer("victim", SECRET)
        outside.put_upload("victim", SECRET, upload_id=UPLOAD)


# --- what is put in the place ------------------------------------------------------------------------------------


def _fifo(path: Path, outside: Outside) -> None:
    os.mkfifo(path)


def _socket(path: Path, outside: Outside) -> None:
    os.mknod(path, stat.S_IFSOCK | 0o666)


def _endless_device(path: Path, outside: Outside) -> None:
    os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 5))


def _directory(path: Path, outside: Outside) -> None:
    (path / "inside").mkdir(parents=True)


def _link_to_same_outside(path: Path, outside: Outside) -> None:
    target = outside.root / path.name
    path.symlink_to(target if target.exists() else outside.root / "data")


def _link_to_directory_outside(path: Path, outside: Outside) -> None:
    victim = outside.root / "registry/docker/registry/v2/repositories/victim"
    path.symlink_to(victim / path.name if (victim / path.name).exists() else victim)


def _link_to_itself(path: Path, outside: Outside) -> None:
    path.symlink_to(path)


def _link_upwards(path: Path, outside: Outside) -> None:
    path.symlink_to("../..")


def _link_to_zeros(path: Path, outside: Outside) -> None:
    path.symlink_to("/dev/zero")


def _big(path: Path, outside: Outside) -> None:
    path.write_bytes(DIGEST.encode() + bytes(BIG))


def _empty(path: Path, outside: Outside) -> None:
    path.write_bytes(b"")


def _nonsense(path: Path, outside: Outside) -> None:
    path.write_bytes(NONSENSE)


THINGS: dict[str, Callable[[Path, Outside], None]] = {
    "fifo": _fifo,
    "socket": _socket,
    "device": _endless_device,
    "directory": _directory,
    "symlink-outside": _link_to_same_outside,
    "symlink-to-directory": _link_to_directory_outside,
    "symlink-loop": _link_to_itself,
    "symlink-up": _link_upwards,
    "symlink-zero": _link_to_zeros,
    "big": _big,
    "empty": _empty,
    "nonsense": _nonsense,
}

#: Where it is put, below the repository (or below the blobs).
PLACES = {
    "link": f"_layers/sha256/{HEX}/link",
    "digest-directory": f"_layers/sha256/{HEX}",
    "algorithm": "_layers/sha256",
    "layers": "_layers",
    "uploads": "_uploads",
    "upload": f"_uploads/{UPLOAD}",
    "data": f"_uploads/{UPLOAD}/data",
    "startedat": f"_uploads/{UPLOAD}/startedat",
    "layerfs-name": f"_uploads/{UPLOAD}/layerfs-name",
    "hashstates": f"_uploads/{UPLOAD}/hashstates",
    "hashstates-sha256": f"_uploads/{UPLOAD}/hashstates/sha256",
    "hash-state": f"_uploads/{UPLOAD}/hashstates/sha256/{len(UPLOADED)}",
    "committing": f"_uploads/{UPLOAD}/layerfs-committing",
    "manifests": "_manifests",
    "repository": "",
    "blob": "blob data",
    "blob-directory": "blob directory",
}

CASES = [(place, thing) for place in PLACES for thing in THINGS]

#: No file of these is needed: whatever is there, the upload can be continued and committed.
NOT_NEEDED = ("layerfs-name", "hashstates", "hashstates-sha256", "hash-state", "committing")


class Hostile:
    """The storage, what lies around it, and the mount."""

    def __init__(self, directory: Path) -> None:
        self.outside = Outside(directory / "outside")
        self.outside.root.mkdir()
        self.outside.prepare()
        self.storage = Storage.create(directory / "storage")
        self.storage.make_repository("good")
        self.good = content("good", 5000)
        self.storage.put_layer("good", self.good)
        self.mount = Mount(self.storage.root, directory / "mnt", "--metadata-ttl", "0.1")
        for place, thing in CASES:
            self._put(place, thing)
        self.before = snapshot(self.outside.root)

    def name(self, place: str, thing: str) -> str:
        return f"bad/{place}/{thing}"

    def layer_of(self, place: str, thing: str) -> bytes:
        """Blobs are shared, so whoever ruins one has one of his own."""
        return content(f"{place} {thing}", 10_000) if place.startswith("blob") else LAYER

    def _put(self, place: str, thing: str) -> None:
        name, layer = self.name(place, thing), self.layer_of(place, thing)
        root = self.storage.make_repository(name)
        self.storage.put_layer(name, layer)
        self.storage.put_upload(name, UPLOADED, upload_id=UPLOAD, states={str(len(UPLOADED)): hash_state(UPLOADED)})
        path = root / PLACES[place]
        if place == "blob":
            path = self.storage.blob(digest_of(layer))
        elif place == "blob-directory":
            path = self.storage.blob(digest_of(layer)).parent
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        THINGS[thing](path, self.outside)

    def repository(self, place: str, thing: str) -> MountedRepository:
        return MountedRepository(self.mount, self.storage, self.name(place, thing))

    def assert_well(self) -> None:
        """The daemon lives, others are served, and nothing outside has changed."""
        assert self.mount.is_alive, self.mount.log_text()
        layer = self.mount.path / "good/_layers" / digest_of(self.good)
        assert attempt(layer.read_bytes).value == self.good
        assert snapshot(self.outside.root) == self.before


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hostile]:
    """One mount for all: what one repository has must not matter to another."""
    hostile = Hostile(tmp_path_factory.mktemp("hostile"))
    with hostile.mount:
        yield hostile
        forgive_refusals(hostile.mount)
        hostile.mount.check_log()


def _look_at(repository: MountedRepository, layer: bytes) -> dict[str, Outcome]:
    """Everything that can be seen of a repository: outcome by action."""
    upload, digest = repository.upload(UPLOAD), digest_of(layer)
    return {
        "list": timed(os.listdir, repository.path),
        "layers": timed(os.listdir, repository.path / "_layers"),
        "uploads": timed(os.listdir, repository.path / "_uploads"),
        "stat layer": timed(lambda: os.stat(repository.layer(digest)).st_size),
        "read layer": timed(_read, repository.layer(digest)),
        "stat upload": timed(lambda: os.stat(upload).st_size),
        "read upload": timed(_read, upload),
        "attributes": timed(lambda: {name: os.getxattr(upload, name) for name in os.listxattr(upload)}),
    }


def _change(repository: MountedRepository) -> dict[str, Outcome]:
    """Everything that can be done in a repository."""
    upload, whole = repository.upload(UPLOAD), UPLOADED + b"more"
    fresh = content(repository.name, 2000)
    return {
        "append": timed(append, upload, b"more"),
        "commit": timed(os.rename, upload, repository.layer(digest_of(whole))),
        "read committed": timed(_read, repository.layer(digest_of(whole))),
        "upload": timed(append, repository.upload("fresh"), fresh),
        "commit fresh": timed(os.rename, repository.upload("fresh"), repository.layer(digest_of(fresh))),
        "truncate": timed(os.truncate, upload, 10),
        "rename": timed(os.rename, upload, repository.upload("renamed")),
        "remove": timed(os.unlink, upload),
        "mkdir": timed(os.mkdir, repository.path / "below"),
        "rmdir": timed(os.rmdir, repository.path),
    }


def _look_at_all(hostile: Hostile, place: str) -> dict[str, dict[str, Outcome]]:
    return {thing: _look_at(hostile.repository(place, thing), hostile.layer_of(place, thing)) for thing in THINGS}


def _change_all(hostile: Hostile, place: str) -> dict[str, dict[str, Outcome]]:
    return {thing: _change(hostile.repository(place, thing)) for thing in THINGS}


def _read(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(BIG + 1000)


@pytest.mark.parametrize("place", PLACES)
def test_looking(hostile: Hostile, place: str, watchdog: None) -> None:
    """Listing and reading end quickly, with an errno that says what is wrong, and show nothing from outside."""
    everything = attempt(_look_at_all, hostile, place, seconds=60).value
    for thing, seen in everything.items():
        _assert_answered(f"{place}, {thing}", seen)
        for action, expected in _expected_when_looking(place, thing, hostile.layer_of(place, thing)).items():
            allowed = expected if isinstance(expected, tuple) else (expected,)
            got = seen[action]
            assert got.value in allowed or got.name in allowed, f"{place}, {thing}, {action}: {got}"
    hostile.assert_well()


def _assert_answered(where: str, seen: dict[str, Outcome]) -> None:
    for action, outcome in seen.items():
        assert outcome.name in ANSWERS, f"{where}, {action}: {outcome.name}"
        assert outcome.seconds < LIMIT, f"{where}, {action}: it took {outcome.seconds:.1f} s"
    assert "SECRET" not in repr(seen), f"{where}: {seen}"


def _expected_when_looking(place: str, thing: str, layer: bytes) -> dict[str, Any]:
    """What the contract fixes; the rest only has to be an answer."""
    if place in ("link", "digest-directory", "blob-directory"):
        return {"stat layer": "ENOENT", "layers": [], "stat upload": len(UPLOADED)}
    if place == "blob":
        stored = {"big": BIG + 71, "empty": 0, "nonsense": len(NONSENSE)}.get(thing)
        if stored is None:
            return {"stat layer": "ENOENT", "layers": [], "stat upload": len(UPLOADED)}
        return {"stat layer": stored, "layers": [digest_of(layer)]}
    if place in ("algorithm", "layers", "repository"):
        return {"stat layer": ("ENOENT", "EIO")}
    if place in ("uploads", "upload"):
        return {"read layer": layer, "stat upload": ("ENOENT", "EIO")}
    if place in NOT_NEEDED:
        return {"read layer": layer, "read upload": UPLOADED, "uploads": [UPLOAD]}
    return {"read layer": layer}


@pytest.mark.parametrize("place", PLACES)
def test_changing(hostile: Hostile, place: str, watchdog: None) -> None:
    """Uploading, committing and removing end quickly too, and write nothing outside; what is not needed cannot harm."""
    everything = attempt(_change_all, hostile, place, seconds=60).value
    for thing, seen in everything.items():
        where = f"{place}, {thing}"
        _assert_answered(where, seen)
        names = (seen["append"].name, seen["commit"].name)
        if place in NOT_NEEDED:
            assert names == ("ok", "ok"), f"{where}: {seen}"
            assert seen["read committed"].value == UPLOADED + b"more", where
        if place == "data" and thing not in ("big", "empty", "nonsense"):
            assert "ok" not in names, f"{where}: {seen}"
    hostile.assert_well()


def test_the_whole_tree_can_be_walked(hostile: Hostile, watchdog: None) -> None:
    """`find` over everything ends, and shows no symbolic link, no device and no FIFO."""
    found = run("find", hostile.mount.path, "-not", "-type", "f", "-not", "-type", "d", check=False, timeout=30)
    assert found.stdout == ""
    hostile.assert_well()


def test_names_in_storage_that_no_registry_makes(storage: Storage, tmp_path: Path, mounts, watchdog: None) -> None:
    """Directories with control characters, bidirectional marks or broken UTF-8 in their names are not shown."""
    storage.put_layer("good", LAYER)
    hostile_names = [
        *(b"new\nline", b"\x1b[31mred", "right\u202eto left".encode(), b"\xff\xfe", b"..data", b"-rf", b"a b", b"a%2f"),
        *(b"con:con", b"_private", b".hidden", b"x" * 255),
    ]
    repositories = os.fsencode(storage.v2 / "repositories")
    for name in hostile_names:
        os.makedirs(os.path.join(repositories, name, b"_layers"))
        os.makedirs(os.path.join(repositories, b"good/_uploads", name))
        os.makedirs(os.path.join(repositories, b"good/_layers/sha256", name))
        with open(os.path.join(repositories, b"good/_uploads", name, b"startedat"), "w") as file:
            file.write(STARTED_AT)
    for number, name in enumerate(hostile_names):
        upload = storage.put_upload("good", b"x", upload_id=f"00000000-0000-4000-8000-{number:012}")
        (storage.upload("good", upload) / "layerfs-name").write_bytes(name + b"/../x" if number == 4 else name)
    mount = mounts(storage)
    assert set(attempt(os.listdir, os.fsencode(mount.path)).value) == {b"good", b"x" * 255}
    assert attempt(os.listdir, mount.path / "good/_layers").value == [DIGEST]
    shown = b"\n".join(attempt(os.listdir, os.fsencode(mount.path / "good/_uploads")).value)
    for forbidden in (b"\x1b", b"\xff", "\u202e".encode(), b"/", b"new\nline"):
        assert forbidden not in shown.replace(b"\n00000000", b"")
    assert attempt((mount.path / "good/_layers" / DIGEST).read_bytes).value == LAYER
    forgive_refusals(mount)


@pytest.fixture
def very_deep(storage: Storage) -> Iterator[Storage]:
    """A thousand directories in one another, more than a path may hold, and a good layer."""
    storage.put_layer("good", LAYER)
    path = os.open(storage.v2 / "repositories", os.O_PATH)
    for _ in range(1000):
        os.mkdir("deep", dir_fd=path)
        deeper = os.open("deep", os.O_PATH, dir_fd=path)
        os.close(path)
        path = deeper
    os.mkdir("_layers", dir_fd=path)
    os.close(path)
    yield storage
    # Whatever cleans up after us may not be able to.
    run("rm", "-rf", storage.v2 / "repositories/deep")


def test_repositories_nested_very_deep(very_deep: Storage, mounts) -> None:
    """Walking them ends, and does not end the daemon."""
    mount = mounts(very_deep)
    run("find", mount.path, check=False, timeout=30)
    assert attempt((mount.path / "good/_layers" / DIGEST).read_bytes).value == LAYER
    forgive_refusals(mount)


def test_symbolic_links_that_come_and_go(storage: Storage, tmp_path: Path, mounts, watchdog: None) -> None:
    """Somebody swaps files and directories for symbolic links all the time: not one look gets outside."""
    outside = Outside(tmp_path / "outside")
    outside.root.mkdir()
    outside.prepare()
    victim = outside.root / "registry/docker/registry/v2/repositories/victim"
    storage.put_layer("good", LAYER)
    storage.put_upload("good", UPLOADED, upload_id=UPLOAD)
    root = storage.repository("good")
    before = snapshot(outside.root)
    mount = mounts(storage, "--metadata-ttl", "0.1")
    stop = threading.Event()
    swaps = [
        (root / "_layers", victim / "_layers"),
        (root / "_uploads", victim / "_uploads"),
        (storage.blob(DIGEST), outside.root / "data"),
    ]
    swappers = [threading.Thread(target=_swap, args=(path, target, stop)) for path, target in swaps]
    for swapper in swappers:
        swapper.start()
    try:
        seen = attempt(_look_for_seconds, MountedRepository(mount, storage, "good"), 3.0, seconds=30).value
    finally:
        stop.set()
        for swapper in swappers:
            swapper.join(5)
    assert seen["rounds"] > 50
    assert seen["secrets"] == []
    assert snapshot(outside.root) == before
    forgive_refusals(mount)


def _swap(path: Path, target: Path, stop: threading.Event) -> None:
    """The real thing and a symbolic link take turns under one name."""
    real, link = path.with_name(path.name + ".real"), path.with_name(path.name + ".link")
    os.symlink(target, link)
    while not stop.is_set():
        os.rename(path, real)
        _move_over(link, path)
        time.sleep(0.0005)  # what the race is about
        os.rename(path, link)
        _move_over(real, path)
        time.sleep(0.0005)  # what the race is about


def _move_over(source: Path, destination: Path) -> None:
    """Also over a directory: in the moment when nothing is there, the mount may make what a repository needs."""
    while True:
        try:
            os.rename(source, destination)
        except OSError as error:
            if error.errno not in (errno.EISDIR, errno.ENOTEMPTY):
                raise
            shutil.rmtree(destination, ignore_errors=True)
        else:
            return


def _look_for_seconds(repository: MountedRepository, seconds: float) -> dict[str, Any]:
    deadline = time.monotonic() + seconds
    rounds, secrets = 0, []
    while time.monotonic() < deadline:
        rounds += 1
        seen = _look_at(repository, LAYER) | {
            "stolen": timed(_read, repository.layer(digest_of(SECRET))),
            "append": timed(append, repository.upload(UPLOAD), b"x"),
        }
        if "SECRET" in repr(seen):
            secrets.append(repr(seen)[:500])
    return {"rounds": rounds, "secrets": secrets}


def test_files_that_may_not_be_read(storage: Storage, tmp_path: Path, mounts, monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon without the right to read something answers EACCES for that, and serves the rest."""
    for name in ("good", "link", "layers", "upload"):
        storage.put_layer(name, LAYER)
    other = storage.put_layer("blob", content("other", 100))
    storage.put_upload("upload", UPLOADED, upload_id=UPLOAD)
    for path in (
        storage.link("link", DIGEST),
        storage.repository("layers") / "_layers",
        storage.blob(other),
        storage.upload("upload", UPLOAD) / "data",
    ):
        path.chmod(0)
    # Root, but held to the modes of files like everybody else.
    command = tmp_path / "layerfs"
    command.write_text(
        f'#!/bin/sh\nexec setpriv --bounding-set=-dac_override,-dac_read_search {harness.mount.COMMAND} "$@"\n'
    )
    command.chmod(0o755)
    monkeypatch.setattr(harness.mount, "COMMAND", command)
    mount = mounts(storage)
    seen = {
        "link": attempt((mount.path / "link/_layers" / DIGEST).read_bytes),
        "layers": attempt(os.listdir, mount.path / "layers/_layers"),
        "blob": attempt((mount.path / "blob/_layers" / other).read_bytes),
        "upload": attempt((mount.path / "upload/_uploads" / UPLOAD).read_bytes),
    }
    assert {what: outcome.name for what, outcome in seen.items()} == dict.fromkeys(seen, "EACCES")
    assert attempt((mount.path / "good/_layers" / DIGEST).read_bytes).value == LAYER
    forgive_refusals(mount)


def test_opening_whatever_is_there_is_found(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, watchdog: None
) -> None:
    """A daemon that takes a FIFO for a file waits at it, and is found: the check can fail."""
    plant("everything is a regular file", tmp_path / "planted", monkeypatch)
    storage.put_layer("good", LAYER)
    storage.link("good", DIGEST).unlink()
    os.mkfifo(storage.link("good", DIGEST))
    mount = Mount(storage.root, tmp_path / "mnt")
    try:
        mount.start()
        with pytest.raises(AssertionError, match="no answer"):
            attempt(os.listdir, mount.path / "good/_layers", seconds=LIMIT)
    finally:
        mount.clean_up()
