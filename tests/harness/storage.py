"""Registry storage seen and built from outside: snapshots to compare, and layouts put together by hand."""

from __future__ import annotations

import hashlib
import os
import stat
import subprocess
import uuid
from pathlib import Path
from typing import NamedTuple

from harness.invariants import link_directory

STARTED_AT = "2026-11-23T00:06:39Z"


def digest_of(data: bytes, algorithm: str = "sha256") -> str:
    """The digest of some bytes, as registries write it."""
    return f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"


def digest_of_file(path: Path | str, algorithm: str = "sha256") -> str:
    """The digest of a file's bytes."""
    with open(path, "rb") as file:
        return f"{algorithm}:{hashlib.file_digest(file, algorithm).hexdigest()}"


def copy_tree(source: Path, target: Path) -> Path:
    """A copy of a storage tree that a test may ruin."""
    subprocess.run(["cp", "-a", "--reflink=auto", str(source), str(target)], check=True)
    return target


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


def snapshot(root: Path) -> dict[str, Entry]:
    """Everything below `root`, by relative path. Nothing is ignored."""
    return {str(path.relative_to(root)): _entry(path) for path in sorted(root.rglob("*"))}


def files(root: Path) -> dict[str, Entry]:
    """Everything below `root` but the directories, by relative path."""
    return {path: entry for path, entry in snapshot(root).items() if entry.kind != "directory"}


class Storage:
    """A storage tree at `root`, in the layout that registries since 2.1 write."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.v2 = root / "docker/registry/v2"

    @classmethod
    def create(cls, root: Path) -> Storage:
        """An empty registry's storage."""
        storage = cls(root)
        (storage.v2 / "blobs").mkdir(parents=True)
        (storage.v2 / "repositories").mkdir()
        return storage

    def repository(self, name: str) -> Path:
        return self.v2 / "repositories" / name

    def blob(self, digest: str) -> Path:
        algorithm, _, encoded = digest.partition(":")
        return self.v2 / "blobs" / algorithm / encoded[:2] / encoded / "data"

    def link(self, name: str, digest: str) -> Path:
        return self.repository(name) / "_layers" / link_directory(digest) / "link"

    def upload(self, name: str, upload_id: str) -> Path:
        return self.repository(name) / "_uploads" / upload_id

    def make_repository(self, name: str) -> Path:
        """A repository as both generations of registries recognise it."""
        for directory in ("_layers", "_manifests"):
            (self.repository(name) / directory).mkdir(parents=True, exist_ok=True)
        return self.repository(name)

    def put_blob(self, data: bytes, digest: str | None = None) -> str:
        """Stores a blob, under another digest than its own if asked to."""
        digest = digest or digest_of(data)
        path = self.blob(digest)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return digest

    def put_link(self, name: str, digest: str, content: str | bytes | None = None) -> Path:
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

    def uploads(self, name: str) -> list[Path]:
        """The directories of uploads of a repository; ghosts (without `startedat`) too."""
        directory = self.repository(name) / "_uploads"
        return sorted(directory.iterdir()) if directory.is_dir() else []

    def links(self) -> list[tuple[str, str, Path]]:
        """(repository, digest by path, stored link) of every link in every repository."""
        repositories = self.v2 / "repositories"
        found = []
        for link in sorted(repositories.glob("**/_layers/*/*/link")):
            encoded, algorithm = link.parent, link.parent.parent
            name = str(algorithm.parent.parent.relative_to(repositories))
            found.append((name, f"{algorithm.name}:{encoded.name}", link))
        return found
