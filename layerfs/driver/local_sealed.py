"""Files on a local disk that nobody can change between being verified and being published.

Why this is not simply a rename: a registry with a PATCH in flight has the `data` of that upload open, and goes on
writing into the same inode whatever its name has become. Published by rename, a verified blob would be damaged by it.

Two ways out. If a read lease can be had (`layerfs.driver.lease`), nobody has the file open for writing, and who opens
it for writing has to wait; then the file itself is published. Otherwise a private copy is: of bytes that may be
changing while they are copied, but it is the copy that is verified.

A lease can be broken, and between verification and rename somebody may begin to wait for that. So `publish` does this:

1. sync the content; make the directory of the destination; see that the lease is undisturbed;
2. rename; sync both directories; wait for those who had found the file under its old name and are about to open it;
3. see that the lease is still undisturbed. From now on nobody finds the file under the name of the upload any more.
   Close it, and with that give the lease back.

If at 1 or 3 somebody is waiting for the lease, the file must not stay published, because he gets it in the end. But
while he waits nothing can change: the bytes are copied into a new file, which takes the destination. Giving the lease
back afterwards tells whether it had held until then. If it had not (it is taken away after 45 s), the copy may be of
changed bytes: it becomes the upload again, and `ContentChanged` is raised.
"""

from __future__ import annotations

import os
import time
from typing import Final

import trio

from layerfs.driver import lease
from layerfs.driver.errnos import translated
from layerfs.driver.interface import SealedFile, check_path
from layerfs.driver.local_reader import read_range
from layerfs.driver.local_writer import version_of
from layerfs.driver.openat import Descriptor, Root, Scratch
from layerfs.driver.ranges import clamp
from layerfs.driver.threads import Changes, in_thread
from layerfs.errors import ContentChanged

#: Bytes copied in one go: enough for the disk, little enough to be cancelled soon.
COPY_CHUNK: Final = 32 << 20

#: Seconds between rename and last look. Between finding a name and opening the file, a process can be put aside by the
#: scheduler, and nothing in the kernel tells that it is there; without this wait one in 87,000 slipped through when two
#: processes did nothing but open uploads for appending (on tmpfs, where syncing takes no time).
SETTLE: Final = 0.005

#: Seconds that letting go of a file may take when its user was cancelled.
RELEASE_DEADLINE: Final = 10


async def seal(root: Root, path: str, changes: Changes) -> SealedFile:
    """Seals the file at `path`: by a lease if one can be had, else by copying it."""
    descriptor, status = await in_thread(changes.limiter, _open, root, path)
    if status is not None:
        return _LeasedFile(root, path, descriptor, status, changes)
    try:
        return await _copy(root, path, descriptor, changes)
    finally:
        descriptor.close()


def _open(root: Root, path: str) -> tuple[Descriptor, os.stat_result | None]:
    """The file, and its attributes if there is a lease on it."""
    with translated(path):
        descriptor = Descriptor(root.open_regular(path, os.O_RDONLY)[0])
        leased = lease.take(descriptor.number)
        return descriptor, os.fstat(descriptor.number) if leased else None


async def _copy(root: Root, path: str, source: Descriptor, changes: Changes) -> SealedFile:
    limiter = changes.limiter
    scratch, size = await in_thread(limiter, _begin_copy, root, path, source)
    copy = _CopiedFile(path, scratch, changes)
    try:
        # No further than the file reached at first: a foreign writer may be faster than this.
        while copy.size < size:
            count = await in_thread(limiter, _copy_chunk, path, source, scratch.descriptor, copy.size, size - copy.size)
            if not count:
                break
            copy.size += count
    except BaseException:
        await copy.release()
        raise
    return copy


def _begin_copy(root: Root, path: str, source: Descriptor) -> tuple[Scratch, int]:
    with translated(path), source as number:
        return Scratch(root, path), os.fstat(number).st_size


def _copy_chunk(path: str, source: Descriptor, target: Descriptor, offset: int, length: int) -> int:
    """Copies a part, without moving the bytes where the file system can do that; how many bytes, 0 at the end."""
    with translated(path), source as source_number, target as target_number:
        return os.copy_file_range(source_number, target_number, min(length, COPY_CHUNK), offset, offset)


class _LocalSealedFile(SealedFile):
    """What the leased file and the copy have in common."""

    def __init__(self, path: str, descriptor: Descriptor, changes: Changes) -> None:
        self._path = path
        self._descriptor = descriptor
        self._changes = changes

    async def read(self, offset: int, length: int) -> bytes:
        length = clamp(self._path, offset, length, self.size)
        if not length:
            return b""
        return await in_thread(self._changes.limiter, read_range, self._descriptor, self._path, offset, length)

    async def publish(self, destination: str) -> None:
        check_path(destination)
        await self._changes.make([self._path, destination], self._publish, destination)

    def _publish(self, destination: str) -> None:
        raise NotImplementedError


class _CopiedFile(_LocalSealedFile):
    """A private copy, that nobody else knows the name of."""

    def __init__(self, path: str, scratch: Scratch, changes: Changes) -> None:
        super().__init__(path, scratch.descriptor, changes)
        self._scratch = scratch
        self.size = 0
        self.version = None

    def _publish(self, destination: str) -> None:
        with translated(destination):
            with self._descriptor as number:
                os.fsync(number)
            self._scratch.move_to(destination)
        self._scratch.discard()

    async def release(self) -> None:
        # Removing a large file takes a while. Also when cancelled: nothing would remove it later.
        with trio.move_on_after(RELEASE_DEADLINE, shield=True):
            await in_thread(self._changes.limiter, self._scratch.discard)


class _LeasedFile(_LocalSealedFile):
    """The file itself, kept from being opened for writing by a lease, which goes when its descriptor is closed."""

    def __init__(self, root: Root, path: str, descriptor: Descriptor, status: os.stat_result, changes: Changes) -> None:
        super().__init__(path, descriptor, changes)
        self._root = root
        self.version = version_of(status)
        self.size = status.st_size

    async def release(self) -> None:
        self._descriptor.close()

    def _publish(self, destination: str) -> None:
        with translated(destination), self._descriptor as number:
            os.fsync(number)
            if not lease.is_undisturbed(number):
                self._publish_copy(number, destination)
                return
            self._rename(number, destination)
            time.sleep(SETTLE)
            if not lease.is_undisturbed(number):
                self._replace_by_copy(number, destination)
        self._descriptor.close()

    def _rename(self, number: int, destination: str) -> None:
        with (
            self._root.parent(self._path) as (directory, name),
            self._root.parent(destination, create=True) as (target, target_name),
        ):
            self._check_identity(number, directory, name)
            os.rename(name, target_name, src_dir_fd=directory, dst_dir_fd=target)
            os.fsync(target)
            os.fsync(directory)
        # What is at the destination now need not be this file: another node may have published the same content over
        # it already, and that one is as good and must stay.

    def _check_identity(self, number: int, directory: int, name: str) -> None:
        """Raises `ContentChanged` if another file has taken the place of the one that was verified."""
        found = _identity(directory, name)
        if found is None:
            raise ContentChanged(self._path, "it was removed")
        if not os.path.samestat(os.fstat(number), found):
            raise ContentChanged(self._path, "it was replaced")

    def _rename_back(self, destination: str, ours: list[os.stat_result]) -> None:
        """Undoes a publication: what was an upload is one again, to be verified again.

        Not if what is at the destination is none of `ours` by now.
        """
        with (
            self._root.parent(destination) as (target, target_name),
            self._root.parent(self._path, create=True) as (directory, name),
        ):
            found = _identity(target, target_name)
            if found is not None and any(os.path.samestat(found, status) for status in ours):
                os.rename(target_name, name, src_dir_fd=target, dst_dir_fd=directory)
                os.fsync(directory)
                os.fsync(target)

    def _publish_copy(self, number: int, destination: str) -> None:
        scratch = self._copy(number, destination)
        try:
            self._give_lease_back(number)
            scratch.move_to(destination)
        finally:
            scratch.discard()

    def _replace_by_copy(self, number: int, destination: str) -> None:
        ours = [os.fstat(number)]
        try:
            scratch = self._copy(number, destination)
            try:
                ours.append(os.fstat(scratch.descriptor.number))
                scratch.move_to(destination)
                self._give_lease_back(number)
            finally:
                scratch.discard()
        except BaseException:
            self._rename_back(destination, ours)
            raise

    def _copy(self, number: int, destination: str) -> Scratch:
        """The bytes of the leased file in a new one next to `destination`, synced."""
        scratch = Scratch(self._root, destination)
        try:
            with scratch.descriptor as target:
                offset = 0
                while count := os.copy_file_range(number, target, COPY_CHUNK, offset, offset):
                    offset += count
                os.fsync(target)
        except BaseException:
            scratch.discard()
            raise
        return scratch

    def _give_lease_back(self, number: int) -> None:
        if not lease.give_back(number):
            raise ContentChanged(self._path, "the lease on it was broken")


def _identity(directory: int, name: str) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return None
