"""How clients that cannot be had here write a layout: the system calls that their sources make, one after the other.

A `Replay` pushes one image. `operations` makes one call and yields what it was, so that whoever steps through it can
stop after any of them, as a client does that is killed. Modes, flags and order are those of the clients; so are the
calls whose errors they ignore.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import random
import select
import signal
import stat
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, ClassVar, NoReturn

from harness.clients_layouts import (
    MANIFEST_TYPES,
    REF_NAME,
    Descriptor,
    Image,
    blob_path,
    describe_manifest,
    media_type_of,
    references,
    tagged,
)
from harness.images import OCI_INDEX
from harness.storage import digest_of

#: What Go copies at a time.
_CHUNK = 32 << 10

_LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'

#: Seconds in which a call on a healthy mount has long returned.
_LIMIT = 30

#: Calls made one after the other; each yields its description.
Steps = Iterator[str]

_random = random.SystemRandom()


def go_random() -> str:
    """What Go puts in place of the `*` of a temporary file's name."""
    return str(_random.randrange(1 << 32))


def encode(document: object) -> bytes:
    """As Go's encoder writes it."""
    return json.dumps(document, separators=(",", ":")).encode()


# --- system calls, as Go's library makes them --------------------------------------------------------------------


def exists(path: Path) -> Generator[str, None, bool]:
    """Go's `Stat`."""
    try:
        path.stat()
    except FileNotFoundError:
        yield f"stat {path.name}: not there"
        return False
    yield f"stat {path.name}"
    return True


def make_directories(path: Path, mode: int) -> Steps:
    """Go's `MkdirAll`: what is there already is no error."""
    if (yield from exists(path)):
        return
    yield from make_directories(path.parent, mode)
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode)
    yield f"mkdir {path.name}"


def write(descriptor: int, content: bytes, chunk: int = _CHUNK) -> Steps:
    for start in range(0, len(content), chunk):
        piece = content[start : start + chunk]
        assert os.write(descriptor, piece) == len(piece)
        yield f"write of {len(piece)} bytes"


def write_file(path: Path, content: bytes, flags: int, mode: int, chunk: int = _CHUNK) -> Steps:
    """A file of a known name: opened, written and closed."""
    descriptor = os.open(path, flags, mode)
    yield f"open {path.name}"
    try:
        yield from write(descriptor, content, chunk)
    except BaseException:
        with contextlib.suppress(OSError):
            os.close(descriptor)
        raise
    os.close(descriptor)
    yield f"close {path.name}"


def truncate_and_write(path: Path, content: bytes, mode: int) -> Steps:
    """Go's `WriteFile`: in one write, in place."""
    return write_file(path, content, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode, chunk=len(content))


def create_and_write(path: Path, content: bytes) -> Steps:
    """Go's `Create`, and a copy into it."""
    return write_file(path, content, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)


def rename(source: Path, target: Path) -> Steps:
    """Go's `Rename`, which looks first whether the target is a directory."""
    with contextlib.suppress(FileNotFoundError):
        os.lstat(target)
    os.rename(source, target)
    yield f"rename {source.name} to {target.name}"


def read(path: Path) -> Generator[str, None, bytes]:
    content = path.read_bytes()
    yield f"read {path.name}"
    return content


def remove(path: Path) -> Steps:
    """Go's `Remove`: if it is no file it may be a directory."""
    try:
        os.unlink(path)
    except OSError as error:
        with contextlib.suppress(NotADirectoryError):
            os.rmdir(path)
            yield f"rmdir {path.name}"
            return
        raise error from None
    yield f"unlink {path.name}"


def remove_tree(path: Path) -> Steps:
    """Go's `RemoveAll`: as a file, as an empty directory, and then what is in it first."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        return
    except IsADirectoryError:
        try:
            os.rmdir(path)
        except OSError as error:
            if error.errno != errno.ENOTEMPTY:
                raise
            for name in os.listdir(path):
                yield from remove_tree(path / name)
            os.rmdir(path)
    yield f"remove {path.name}"


def sync_directory(path: Path) -> Steps:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    os.fsync(descriptor)
    os.close(descriptor)
    yield f"fsync of directory {path.name}"


# --- what they have in common ------------------------------------------------------------------------------------


class Replay(ABC):
    """One client, pushing `image` under `tag` to `layout`."""

    def __init__(self, layout: Path, image: Image, tag: str) -> None:
        self.layout = layout
        self.image = image
        self.tag = tag

    @abstractmethod
    def operations(self) -> Steps:
        """Makes one call after the other."""

    def run(self) -> None:
        """All of it."""
        for _ in self.operations():
            pass

    @property
    def blobs(self) -> Path:
        return self.layout / "blobs/sha256"

    @property
    def index(self) -> Path:
        return self.layout / "index.json"

    @property
    def layout_file(self) -> Path:
        return self.layout / "oci-layout"

    @property
    def entry(self) -> Descriptor:
        """What the index shall say of the image; without a tag, that it is there."""
        return tagged(self.image.descriptor, self.tag) if self.tag else self.image.descriptor

    def read_index(self) -> Generator[str, None, dict[str, Any]]:
        document: dict[str, Any] = json.loads((yield from read(self.index)))
        document.setdefault("schemaVersion", 2)
        document["manifests"] = document.get("manifests") or []
        return document


def without_tag(entries: list[Descriptor], tag: str) -> list[Descriptor]:
    """All but the entry of a tag."""
    return [entry for entry in entries if entry.get("annotations", {}).get(REF_NAME) != tag]


# --- containers/image --------------------------------------------------------------------------------------------


class ReplaySkopeo(Replay):
    """containers/image 5.23: skopeo, podman and buildah. Temporary files in the layout itself; nothing is locked."""

    def operations(self) -> Steps:
        entries: list[Descriptor] = []
        with contextlib.suppress(FileNotFoundError):
            os.lstat(self.layout)
        if (yield from exists(self.index)):
            entries = (yield from self.read_index())["manifests"]
        yield from make_directories(self.layout, 0o755)
        yield from make_directories(self.layout / "blobs", 0o755)
        for digest, content in self.image.blobs.items():
            yield from self._put_blob(blob_path(self.layout, digest), content)
        for digest, content in self.image.manifests.items():
            yield from make_directories(self.blobs, 0o755)
            yield from truncate_and_write(blob_path(self.layout, digest), content, 0o644)
        yield from truncate_and_write(self.layout_file, _LAYOUT, 0o644)
        index = {"schemaVersion": 2, "manifests": [*self._untag(entries), self.entry]}
        yield from truncate_and_write(self.index, encode(index), 0o644)

    def _untag(self, entries: list[Descriptor]) -> list[Descriptor]:
        """The manifest that had the tag stays in the index without it."""
        kept = []
        for entry in entries:
            if entry.get("annotations", {}).get(REF_NAME) == self.tag:
                entry = {name: value for name, value in entry.items() if name != "annotations"}
            if entry != self.image.descriptor:
                kept.append(entry)
        return kept

    def _put_blob(self, path: Path, content: bytes) -> Steps:
        if (yield from exists(path)):
            return
        temporary = self.layout / f"oci-put-blob{go_random()}"
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        yield f"create {temporary.name}"
        yield from write(descriptor, content)
        os.fsync(descriptor)
        yield "fsync"
        os.fchmod(descriptor, 0o644)
        yield "fchmod"
        yield from make_directories(path.parent, 0o755)
        os.close(descriptor)
        yield "close"
        yield from rename(temporary, path)


# --- umoci -------------------------------------------------------------------------------------------------------


class ReplayUmoci(Replay):
    """umoci 0.4.7: temporary files in a directory of its own, which it locks; the index is renamed into place."""

    def operations(self) -> Steps:
        assert json.loads((yield from read(self.layout_file)))["imageLayoutVersion"] == "1.0.0"
        assert (self.layout / "blobs").is_dir()
        yield "stat blobs"
        self.index.stat()
        yield "stat index.json"
        directory = self.layout / f".umoci-{go_random()}"
        directory.mkdir(0o700)
        yield f"mkdir {directory.name}"
        lock = os.open(directory, os.O_RDONLY)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield "flock"
        for digest, content in self.image.content.items():
            yield from self._put(directory / f"blob-{go_random()}", content, blob_path(self.layout, digest))
        index = yield from self.read_index()
        index["manifests"] = [*without_tag(index["manifests"], self.tag), self.entry]
        yield from self._put(directory / f"index-{go_random()}", encode(index), self.index)
        fcntl.flock(lock, fcntl.LOCK_UN)
        os.close(lock)
        yield "unlock"
        yield from remove_tree(directory)

    def _put(self, temporary: Path, content: bytes, target: Path) -> Steps:
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        yield f"create {temporary.name}"
        yield from write(descriptor, content)
        owner = os.stat(self.layout)
        os.fchown(descriptor, owner.st_uid, owner.st_gid)
        yield "fchown to the owner of the layout"
        os.fsync(descriptor)
        os.close(descriptor)
        yield "fsync and close"
        yield from rename(temporary, target)


# --- go-containerregistry ----------------------------------------------------------------------------------------


class ReplayCrane(Replay):
    """go-containerregistry's `layout`: crane, ko, kaniko, cosign. Manifests and the index are written in place."""

    _LAYOUT = b'{\n    "imageLayoutVersion": "1.0.0"\n}'

    def operations(self) -> Steps:
        if not (yield from exists(self.index)):
            yield from self._write(self.layout_file, self._LAYOUT)
            empty = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}
            yield from self._write(self.index, encode(empty))
        for manifest in self.image.manifests.values():
            if media_type_of(manifest) == OCI_INDEX:
                yield from self._write(self.layout_file, self._LAYOUT)
                yield from self._write(blob_path(self.layout, digest_of(manifest)), manifest)
            else:
                yield from self._write_image(manifest)
        index = yield from self.read_index()
        index["manifests"].append(self.entry)
        yield from self._write(self.index, json.dumps(index, indent=3).encode())

    def _write(self, path: Path, content: bytes) -> Steps:
        yield from make_directories(path.parent, 0o777)
        yield from truncate_and_write(path, content, 0o777)

    def _write_image(self, manifest: bytes) -> Steps:
        """Layers first, then the configuration, then the manifest itself."""
        config, *layers = references(manifest)
        for layer in layers:
            path = blob_path(self.layout, layer["digest"])
            yield from make_directories(path.parent, 0o777)
            yield from self._write_layer(path, self.image.blobs[layer["digest"]])
        for content in (self.image.blobs[config["digest"]], manifest):
            yield from make_directories(self.blobs, 0o777)
            yield from create_and_write(blob_path(self.layout, digest_of(content)), content)

    def _write_layer(self, path: Path, content: bytes) -> Steps:
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_size == len(content):
                yield f"stat {path.name}: there"
                return
        temporary = path.with_name(path.name + go_random())
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        yield f"create {temporary.name}"
        yield from write(descriptor, content)
        os.close(descriptor)
        yield "close"
        yield from rename(temporary, path)


# --- regclient ---------------------------------------------------------------------------------------------------


class ReplayRegctl(Replay):
    """regclient's `ocidir` (regctl, regsync): everything is renamed into place; at the end it collects garbage."""

    #: Since it logs by slog the first entry that cannot be removed ends the collection; before, all were tried.
    stops_at_first_error = True

    def __init__(self, layout: Path, image: Image, tag: str) -> None:
        super().__init__(layout, image, tag)
        #: Errors of the collection, which `regctl` itself ignores.
        self.refused: list[OSError] = []

    def operations(self) -> Steps:
        for digest, content in self.image.blobs.items():
            yield from self._put_blob(digest, content)
        for digest, content in self.image.manifests.items():
            yield from self._put_blob(digest, content)
            if digest == self.image.digest:
                yield from self._update_index()
        yield from self.collect_garbage()

    def _put_blob(self, digest: str, content: bytes) -> Steps:
        if not (yield from exists(self.layout_file)):
            yield from make_directories(self.layout, 0o777)
            yield from create_and_write(self.layout_file, _LAYOUT)
        path = blob_path(self.layout, digest)
        yield from make_directories(path.parent, 0o777)
        temporary = path.with_name(f"{path.name}.{go_random()}.tmp")
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        yield f"create {temporary.name}"
        os.fstat(descriptor)
        yield from write(descriptor, content)
        os.close(descriptor)
        yield "close"
        yield from rename(temporary, path)

    def _update_index(self) -> Steps:
        try:
            yield from read(self.layout_file)
            index = yield from self.read_index()
        except FileNotFoundError:
            index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}
        index["manifests"] = [*without_tag(index["manifests"], self.tag), self.entry]
        yield from make_directories(self.layout, 0o777)
        layout = os.open(self.layout_file, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)
        os.write(layout, _LAYOUT)
        yield "write oci-layout, which stays open"
        temporary = self.layout / f"index.json.{go_random()}.tmp"
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        yield f"create {temporary.name}"
        os.fstat(descriptor)
        yield from write(descriptor, encode(index))
        os.close(descriptor)
        yield "close"
        yield from rename(temporary, self.index)
        os.close(layout)
        yield "close oci-layout"

    def collect_garbage(self) -> Steps:
        """Removes every blob that the index does not lead to, whosever it is."""
        reachable: set[str] = set()
        index = yield from self.read_index()
        for entry in index["manifests"]:
            self._mark(entry["digest"], reachable)
        for algorithm in sorted(os.listdir(self.layout / "blobs")):
            directory = self.layout / "blobs" / algorithm
            for name in sorted(os.listdir(directory)):
                if f"{algorithm}:{name}" in reachable:
                    continue
                try:
                    yield from remove(directory / name)
                except OSError as error:
                    self.refused.append(error)
                    if self.stops_at_first_error:
                        return

    def _mark(self, digest: str, reachable: set[str]) -> None:
        reachable.add(digest)
        try:
            parts = references(blob_path(self.layout, digest).read_bytes())
        except (OSError, ValueError):  # it may have been deleted, says regclient
            return
        for part in parts:
            reachable.add(part["digest"])
            if part["mediaType"] in MANIFEST_TYPES:
                self._mark(part["digest"], reachable)


# --- oras --------------------------------------------------------------------------------------------------------


class ReplayOras(Replay):
    """oras-go's `content/oci` (oras, notation): `ingest/` for what is coming, and the index again and again."""

    def operations(self) -> Steps:
        yield from make_directories(self.layout / "blobs", 0o777)
        if not (yield from exists(self.layout_file)):
            yield from truncate_and_write(self.layout_file, _LAYOUT, 0o666)
        if (yield from exists(self.index)):
            entries = (yield from self.read_index())["manifests"]
        else:
            entries = []
            yield from self._write_index(entries)
        for digest, content in self.image.blobs.items():
            yield from self._push(digest, content)
        for digest, content in self.image.manifests.items():
            yield from self._push(digest, content)
            descriptor = describe_manifest(content)
            if not any(entry["digest"] == digest for entry in entries):
                entries = [*entries, descriptor]
            yield from self._write_index(entries)
        untagged = [entry for entry in without_tag(entries, self.tag) if entry != self.image.descriptor]
        yield from self._write_index([self.entry, *untagged])

    def _write_index(self, entries: list[Descriptor]) -> Steps:
        index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}
        yield from truncate_and_write(self.index, encode(index), 0o666)

    def _push(self, digest: str, content: bytes) -> Steps:
        path = blob_path(self.layout, digest)
        if (yield from exists(path)):
            return
        yield from make_directories(path.parent, 0o777)
        ingest = self.layout / "ingest"
        yield from make_directories(ingest, 0o777)
        temporary = ingest / f"{path.name}_{go_random()}"
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        yield f"create {temporary.name}"
        yield from write(descriptor, content, 1 << 20)
        os.chmod(temporary, 0o444)
        yield "chmod"
        os.close(descriptor)
        yield "close"
        with contextlib.suppress(PermissionError):  # it takes that for "somebody else was faster"
            yield from rename(temporary, path)


class ReplayNewOras(ReplayOras):
    """Its main branch of 2026: the index is written beside itself, synced and renamed into place."""

    def _write_index(self, entries: list[Descriptor]) -> Steps:
        mode = 0o666
        with contextlib.suppress(FileNotFoundError):
            mode = stat.S_IMODE(self.index.stat().st_mode)
        letters = "".join(_random.choices("ABCDEFGHIJKLMNOPQRSTUVWXYZ234567", k=26))
        temporary = self.layout / f"index.json_{letters}"
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        yield f"create {temporary.name}"
        os.fchmod(descriptor, mode)
        yield "fchmod"
        index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}
        yield from write(descriptor, encode(index))
        os.fsync(descriptor)
        os.close(descriptor)
        yield "fsync and close"
        yield from rename(temporary, self.index)
        yield from sync_directory(self.layout)


# --- containerd and BuildKit -------------------------------------------------------------------------------------


class ReplayContainerd(Replay):
    """containerd's content store, which knows no index: BuildKit adds it."""

    def operations(self) -> Steps:
        yield from self.open_store()
        for digest, content in self.image.content.items():
            yield from self._ingest(digest, content)

    def open_store(self) -> Steps:
        """Tries whether files can be sealed by fs-verity; what goes wrong there is only logged."""
        yield from make_directories(self.layout, 0o777)
        check = self.layout / f".fsverity-check-{go_random()}"
        with contextlib.suppress(OSError):
            check.mkdir(0o700)
            yield f"mkdir {check.name}"
            yield from truncate_and_write(check / "supported", b"verity", 0o644)
            descriptor = os.open(check / "supported", os.O_RDONLY)
            with contextlib.suppress(OSError):
                fcntl.ioctl(descriptor, 0x40806685, bytes(128))  # FS_IOC_ENABLE_VERITY
            os.close(descriptor)
            yield "ioctl for verity"
        yield from remove_tree(check)

    def _ingest(self, digest: str, content: bytes) -> Steps:
        reference = f"{digest} {os.getpid()}".encode()
        ingest = self.layout / "ingest"
        yield from make_directories(ingest, 0o777)
        directory = ingest / hashlib.sha256(reference).hexdigest()
        directory.mkdir(0o755)
        yield f"mkdir {directory.name}"
        yield from truncate_and_write(directory / "ref", reference, 0o666)
        for name in ("startedat", "updatedat"):
            temporary = directory / f"{name}.tmp"
            flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_SYNC
            yield from write_file(temporary, b"2026-11-23T06:00:00Z", flags, 0o666)
            yield from rename(temporary, directory / name)
        yield from truncate_and_write(directory / "total", str(len(content)).encode(), 0o666)
        yield from self._write_data(directory / "data", content)
        yield from self._commit(directory, blob_path(self.layout, digest))

    def _write_data(self, path: Path, content: bytes) -> Steps:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o666)
        os.lseek(descriptor, 0, os.SEEK_SET)
        yield "open data"
        yield from write(descriptor, content)
        os.fsync(descriptor)
        assert os.fstat(descriptor).st_size == len(content)
        yield "fsync and fstat data"
        os.close(descriptor)
        yield "close data"

    def _commit(self, directory: Path, target: Path) -> Steps:
        yield from make_directories(target.parent, 0o755)
        if (yield from exists(target)):
            yield from remove_tree(directory)
            return
        yield from rename(directory / "data", target)
        yield from sync_directory(target.parent)
        os.utime(target, ns=(1_700_000_000 * 10**9, 1_700_000_000 * 10**9))
        yield "utimes"
        yield from remove_tree(directory)
        os.chmod(target, 0o444)
        yield "chmod"


def _locked(descriptor: int) -> bool:
    """Without waiting in the kernel, so that whoever is stepped through lets others go on."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


class ReplayBuildKit(ReplayContainerd):
    """BuildKit's exporter `type=oci,tar=false` and its local cache: the index is locked, and overwritten in place."""

    def operations(self) -> Steps:
        yield from super().operations()
        lock = os.open(self.layout / "index.json.lock", os.O_CREAT | os.O_RDONLY, 0o666)
        while not _locked(lock):
            yield "wait for the lock"  # the real one would give up
        yield "lock index.json"
        yield from truncate_and_write(self.layout_file, _LAYOUT, 0o644)
        yield from self._overwrite_index()
        os.close(lock)
        yield from remove_tree(self.layout / "index.json.lock")

    def _overwrite_index(self) -> Steps:
        descriptor = os.open(self.index, os.O_RDWR | os.O_CREAT, 0o644)
        yield "open index.json"
        text = os.read(descriptor, 1 << 22)
        index = json.loads(text) if text else {"schemaVersion": 2, "manifests": []}
        names = {REF_NAME: self.tag, "io.containerd.image.name": f"registry.example/{self.tag}:{self.tag}"}
        # Only an entry with both names is the same: one that the mount shows, with the tag alone, stays before it.
        kept = [each for each in index.get("manifests") or [] if names.items() - each.get("annotations", {}).items()]
        index["manifests"] = [*kept, self.image.descriptor | {"annotations": names}]
        content = encode(index)
        yield "read index.json"
        assert os.pwrite(descriptor, content, 0) == len(content)
        yield "pwrite index.json"
        os.ftruncate(descriptor, len(content))
        yield "ftruncate index.json"
        os.close(descriptor)
        yield "close index.json"


#: Every client that writes an index.
ALL: tuple[type[Replay], ...] = (
    ReplaySkopeo,
    ReplayUmoci,
    ReplayCrane,
    ReplayRegctl,
    ReplayOras,
    ReplayNewOras,
    ReplayBuildKit,
)


# --- in processes of their own -----------------------------------------------------------------------------------


class ReplayProcess:
    """A replay in a process of its own, as clients are; it goes as far as it is told.

    The process is what a mount knows a client by, so two replays in one would be one client.
    """

    #: The ends of all pipes to children, which the next child shall not keep open.
    _ends: ClassVar[set[int]] = set()

    def __init__(self, replay: Replay) -> None:
        self._name = type(replay).__name__
        orders, self._orders = os.pipe()
        self._answers, answers = os.pipe()
        self._ends.update((self._orders, self._answers))
        self.pid = os.fork()
        if not self.pid:
            for end in self._ends:
                os.close(end)
            _serve(replay, orders, answers)
        os.close(orders)
        os.close(answers)

    def step(self) -> str:
        """Lets it make one call; what it was, or `done`."""
        answer = self._order()
        assert not answer.startswith("failed"), f"{self._name} {answer}"
        return answer

    def run_to(self, name: str) -> None:
        """Goes on until it has made the call that is called so."""
        while (done := self.step()) != name:
            assert done != "done", f"{self._name} does no such thing: {name}"

    def finish(self) -> None:
        """The rest of it."""
        while self.step() != "done":
            pass
        self.kill()

    def fail(self) -> str:
        """Goes on to the call that fails; what it said."""
        while not (answer := self._order()).startswith("failed"):
            assert answer != "done", f"{self._name} succeeded"
        self.kill()
        return answer

    def kill(self) -> None:
        """SIGKILL; the kernel closes what it had open."""
        os.kill(self.pid, signal.SIGKILL)
        for end in (self._orders, self._answers):
            os.close(end)
            self._ends.discard(end)
        os.waitpid(self.pid, 0)

    def _order(self) -> str:
        os.write(self._orders, b".")
        answer = b""
        while not answer.endswith(b"\n"):
            assert select.select([self._answers], [], [], _LIMIT)[0], f"{self._name} does not answer"
            piece = os.read(self._answers, 4096)
            assert piece, f"{self._name} has ended"
            answer += piece
        return answer.decode().strip()


def _serve(replay: Replay, orders: int, answers: int) -> NoReturn:
    """The child: a line for each call that was made, and at the end `done` or the error."""
    try:
        steps = replay.operations()
        while os.read(orders, 1):
            os.write(answers, next(steps, "done").encode() + b"\n")
    except BaseException as error:  # noqa: BLE001 whatever it is, the parent is told
        os.write(answers, f"failed: {error!r}".replace("\n", " ").encode() + b"\n")
        os.read(orders, 1)
    finally:
        os._exit(0)


def kill_after(replay: Replay, count: int) -> bool:
    """Runs a replay in a process that is killed after so many calls; False if it had ended before."""
    process = ReplayProcess(replay)
    for _ in range(count):
        if process.step() == "done":
            process.kill()
            return False
    process.kill()
    return True
