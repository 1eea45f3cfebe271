"""Registry storage seen and built from outside: snapshots to compare, and layouts put together by hand.

It is on this machine, or in an object store; then paths are `StoredPath`, and `harness.stores` says what is different.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import subprocess
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

from harness.invariants import link_directory
from harness.stored_path import StoredPath

STARTED_AT = "2026-11-23T00:06:39Z"

Root = TypeVar("Root", Path, StoredPath)


def digest_of(data: bytes, algorithm: str = "sha256") -> str:
    """The digest of some bytes, as registries write it."""
    return f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"


def digest_of_file(path: Path | StoredPath | str, algorithm: str = "sha256") -> str:
    """The digest of a file's bytes."""
    if isinstance(path, StoredPath):
        return digest_of(path.read_bytes(), algorithm)
    with open(path, "rb") as file:
        return f"{algorithm}:{hashlib.file_digest(file, algorithm).hexdigest()}"


def copy_tree(source: Path, target: Root) -> Root:
    """A copy of a storage tree that a test may ruin. An object store gets its files, and nothing else."""
    if isinstance(target, StoredPath):
        _store_all(source, target)
    else:
        subprocess.run(["cp", "-a", "--reflink=auto", str(source), str(target)], check=True)
    return target


def _store_all(source: Path, target: StoredPath) -> None:
    def store(file: Path) -> None:
        (target / str(file.relative_to(source))).write_bytes(file.read_bytes())

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(store, (path for path in source.rglob("*") if path.is_file() and not path.is_symlink())))


def holds(path: Path | StoredPath, content: bytes) -> bool:
    """Whether a stored file is exactly this. Unfinished uploads cannot be read on every store, but compared."""
    return path.holds(content) if isinstance(path, StoredPath) else path.read_bytes() == content


def add_to(path: Path | StoredPath, content: bytes) -> None:
    """Goes on with the data of an upload behind a mount's back, as a registry does."""
    if isinstance(path, StoredPath):
        path.append(content)
    else:
        with path.open("ab") as file:
            file.write(content)


def cut(path: Path | StoredPath, size: int) -> None:
    """Leaves the beginning of a stored file, as a damaged disk or an interrupted copy does."""
    if isinstance(path, StoredPath):
        path.write_bytes(path.read_bytes()[:size])
    else:
        os.truncate(path, size)


def remove_tree(path: Path | StoredPath) -> None:
    """Removes a directory from storage with all that is in it."""
    if isinstance(path, StoredPath):
        for name in path.files():
            path.store.delete(f"{path}/{name}")
    else:
        shutil.rmtree(path)


class Entry(NamedTuple):
    """One entry of a tree: its kind, size, and the digest of its content (or the target of a link)."""

    kind: str
    size: int
    content: str


def _entry(path: Path) -> Entry:
    status = path.lstat()
    if stat.S_ISDIR(status.st_mode):
        return Entry("directory", 0, "")
    if stat.S_ISREG(status.st_mode):
        return Entry("file", status.st_size, digest_of_file(path))
    if stat.S_ISLNK(status.st_mode):
        return Entry("link", 0, os.readlink(path))
    return Entry(f"special {stat.S_IFMT(status.st_mode):o}", 0, "")


def snapshot(root: Path | StoredPath) -> dict[str, Entry]:
    """Everything below `root`, by relative path. Nothing is ignored. On an object store content is a checksum."""
    if isinstance(root, StoredPath):
        return {name: Entry("file", file.size, file.checksum) for name, file in sorted(root.files().items())}
    return {str(path.relative_to(root)): _entry(path) for path in sorted(root.rglob("*"))}


def files(root: Path | StoredPath) -> dict[str, Entry]:
    """Everything below `root` but the directories, by relative path."""
    return {path: entry for path, entry in snapshot(root).items() if entry.kind != "directory"}


class Storage:
    """A storage tree at `root`, in the layout that registries since 2.1 write."""

    def __init__(self, root: Path | StoredPath) -> None:
        self.root = root
        self.v2 = root / "docker/registry/v2"

    @classmethod
    def create(cls, root: Path | StoredPath) -> Storage:
        """An empty registry's storage."""
        storage = cls(root)
        (storage.v2 / "blobs").mkdir(parents=True)
        storage._make_directory(storage.v2 / "repositories")
        return storage

    def _make_directory(self, path: Path | StoredPath) -> None:
        path.mkdir(parents=True, exist_ok=True)
        if not self.is_local:
            # A directory is what has something in it.
            (path / ".keep").write_bytes(b"")

    @property
    def is_local(self) -> bool:
        """Whether it has directories, modes, times, links and holes, and files can be changed anywhere."""
        return isinstance(self.root, Path)

    @property
    def source(self) -> str:
        """What `layerfs mount` takes as SOURCE."""
        return self.root.url if isinstance(self.root, StoredPath) else str(self.root)

    def repository(self, name: str) -> Path | StoredPath:
        return self.v2 / "repositories" / name

    def blob(self, digest: str) -> Path | StoredPath:
        algorithm, _, encoded = digest.partition(":")
        return self.v2 / "blobs" / algorithm / encoded[:2] / encoded / "data"

    def link(self, name: str, digest: str) -> Path | StoredPath:
        return self.repository(name) / "_layers" / link_directory(digest) / "link"

    def upload(self, name: str, upload_id: str) -> Path | StoredPath:
        return self.repository(name) / "_uploads" / upload_id

    def make_repository(self, name: str) -> Path | StoredPath:
        """A repository as both generations of registries recognise it."""
        for directory in ("_layers", "_manifests"):
            self._make_directory(self.repository(name) / directory)
        return self.repository(name)

    def put_blob(self, data: bytes, digest: str | None = None) -> str:
        """Stores a blob, under another digest than its own if asked to."""
        digest = digest or digest_of(data)
        path = self.blob(digest)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return digest

    def put_link(self, name: str, digest: str, content: str | bytes | None = None) -> Path | StoredPath:
        """Links a blob into a repository, with other content than its digest if asked to."""
        path = self.link(name, digest)
        path.parent.mkdir(parents=True, exist_ok=True)
        content = digest if content is None else content
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def put_layer(self, name: str, data: bytes) -> str:
        digest = self.put_blob(data)
        self.put_link(name, digest)
        return digest

    def put_upload(
        self,
        name: str,
        data: bytes | None,
        *,
        upload_id: str | None = None,
        started_at: str | None = STARTED_AT,
        states: dict[str, bytes] | None = None,
    ) -> str:
        """Leaves an upload as a registry would, with whatever is not None."""
        upload_id = upload_id or str(uuid.uuid4())
        directory = self.upload(name, upload_id)
        directory.mkdir(parents=True)
        if started_at is not None:
            (directory / "startedat").write_text(started_at)
        if data is not None:
            (directory / "data").write_bytes(data)
        for offset, state in (states or {}).items():
            path = directory / "hashstates" / "sha256" / offset
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(state)
        return upload_id

    def uploads(self, name: str) -> list[Path | StoredPath]:
        """The directories of uploads of a repository; ghosts (without `startedat`) too."""
        directory = self.repository(name) / "_uploads"
        return sorted(directory.iterdir()) if directory.is_dir() else []

    def links(self) -> list[tuple[str, str, Path | StoredPath]]:
        """(repository, digest by path, stored link) of every link in every repository."""
        repositories = self.v2 / "repositories"
        found = []
        for link in sorted(repositories.glob("**/_layers/*/*/link")):
            encoded, algorithm = link.parent, link.parent.parent
            name = str(algorithm.parent.parent.relative_to(repositories))
            found.append((name, f"{algorithm.name}:{encoded.name}", link))
        return found
