"""What is measured: a registry's storage with one big layer, 32 of middling size, and ten thousand small ones."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import tarfile
from pathlib import Path

from harness.storage import Storage, digest_of_file

from tests.bench.measure import MIB

READ = "bench/read"
MANY = "bench/many"
PUSH = "bench/push"

READERS = 32

_MEMBER = 64 * 1024


class Data:
    """The files in `directory`. `size` is that of the big layer and of all 32 together, in bytes; the big layer is an
    uncompressed tar of 64 KiB files of random bytes."""

    def __init__(self, directory: Path, size: int, entries: int) -> None:
        self.directory = directory
        self.size = size
        self.entries = entries
        self.storage = Storage.create(directory / "storage")
        self.flat = directory / "flat"
        self.new = directory / "new.tar"
        self.big = self._put(_tar, size)
        self.parts = [self._put(_random, size // READERS) for _ in range(READERS)]
        self._small: list[Path] = []
        self._make_many()
        _tar(self.new, size)
        self.new_digest = digest_of_file(self.new)

    def warm_small_layers(self) -> None:
        """Sees that neither the links nor the layers have to come from the disk."""
        for path in self._small:
            path.read_bytes()

    def _put(self, make, size: int) -> str:
        """Adds a layer; returns its digest."""
        new = self.directory / "blob"
        make(new, size)
        digest = digest_of_file(new)
        self.storage.blob(digest).parent.mkdir(parents=True)
        new.rename(self.storage.blob(digest))
        self.storage.make_repository(READ)
        self.storage.put_link(READ, digest)
        return digest

    def _make_many(self) -> None:
        self.flat.mkdir()
        self.storage.make_repository(MANY)
        for number in range(self.entries):
            content = b"layer %d\n" % number
            digest = "sha256:" + hashlib.sha256(content).hexdigest()
            self.storage.put_blob(content, digest)
            flat = self.flat / digest
            flat.write_bytes(content)
            self._small += [flat, self.storage.blob(digest), self.storage.put_link(MANY, digest)]

    def empty_storage(self, name: str) -> Storage:
        """A registry's storage without any blob, with one repository to push to; `remove` takes it away."""
        storage = Storage.create(self.directory / name)
        storage.make_repository(PUSH)
        return storage


def remove(*paths: Path) -> None:
    """Deletes what a round has written, and waits for the disk, so that the next round does not pay for this one."""
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    os.sync()


def _random(path: Path, size: int) -> None:
    with path.open("wb") as file:
        while size > 0:
            file.write(os.urandom(min(size, MIB)))
            size -= MIB


def _tar(path: Path, size: int) -> None:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        number = 0
        while archive.offset + 2 * _MEMBER < size:
            member = tarfile.TarInfo(f"directory-{number // 100}/file-{number}")
            member.size = _MEMBER
            archive.addfile(member, io.BytesIO(os.urandom(_MEMBER)))
            number += 1
    with path.open("ab") as file:  # after the end of an archive zeros may follow; not a hole, `cp` would skip it
        file.write(bytes(size - file.tell()))
