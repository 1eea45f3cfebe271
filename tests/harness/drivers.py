"""Every storage driver, each made empty, and which of them can do what; for suites that they all must pass."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path

import fsspec
from fsspec.implementations.memory import MemoryFileSystem

from harness.azurite import azurite
from harness.gcs_server import gcs_server
from harness.moto import moto
from harness.object_stores import gateway
from harness.seaweedfs import seaweedfs
from harness.swift import swift
from layerfs.driver.azure import AzureDriver
from layerfs.driver.fsspec import FsspecDriver
from layerfs.driver.gcs import GcsDriver
from layerfs.driver.interface import StorageDriver
from layerfs.driver.local import LocalDriver
from layerfs.driver.memory import MemoryDriver
from layerfs.driver.metered import MeteredDriver
from layerfs.driver.s3 import S3Driver


class UnheardOf(MemoryFileSystem):
    """A filesystem of a scheme that layerfs knows nothing about, and so trusts with as little as possible."""

    protocol = "unheardof"

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        stripped: str = super()._strip_protocol(path.removeprefix("unheardof://"))
        return stripped

    def mv(self, path1: str, path2: str, **options: object) -> None:
        self.store[self._strip_protocol(path2)] = self.store.pop(self._strip_protocol(path1))


fsspec.register_implementation("unheardof", UnheardOf)

DRIVERS: dict[str, Callable[[Path, Path], StorageDriver]] = {
    "memory": lambda disk, ram: MemoryDriver(),
    "metered-on-tmpfs": lambda disk, ram: MeteredDriver(LocalDriver(str(ram))),
    "local-on-disk": lambda disk, ram: LocalDriver(str(disk)),
    "local-on-tmpfs": lambda disk, ram: LocalDriver(str(ram)),
    "fsspec-memory": lambda disk, ram: FsspecDriver(f"memory://{uuid.uuid4()}/storage"),
    "fsspec-file": lambda disk, ram: FsspecDriver(f"file://{disk}"),
    "fsspec-unheardof": lambda disk, ram: FsspecDriver(f"unheardof://{uuid.uuid4()}/storage"),
    "azure": lambda disk, ram: AzureDriver(azurite().options(f"tests/{uuid.uuid4()}")),
    "gcs": lambda disk, ram: GcsDriver(gcs_server().options(f"tests/{uuid.uuid4()}")),
    "s3": lambda disk, ram: S3Driver(gateway().options(f"tests/{uuid.uuid4()}")),
    "s3-moto": lambda disk, ram: S3Driver(moto().options(f"tests/{uuid.uuid4()}")),
    "s3-seaweedfs": lambda disk, ram: S3Driver(seaweedfs().options(f"tests/{uuid.uuid4()}")),
    "s3-swift": lambda disk, ram: S3Driver(swift().options(f"tests/{uuid.uuid4()}")),
}
APPENDING = [name for name in DRIVERS if name != "fsspec-unheardof"]
RANDOM_WRITING = ["memory", "metered-on-tmpfs", "local-on-disk", "local-on-tmpfs"]
ONLY_APPENDING = [name for name in APPENDING if name not in RANDOM_WRITING]
WITHOUT_DIRECTORIES = ["fsspec-memory", "s3", "s3-moto", "s3-seaweedfs", "s3-swift", "azure", "gcs"]
#: Here a file and a directory can have one name: keeping them apart would double the requests of every change.
OBJECT_STORES = ["s3", "s3-moto", "s3-seaweedfs", "s3-swift", "azure", "gcs"]
#: These take minutes for all that a driver must do.
SLOW = ["s3-moto", "s3-swift"]
#: These have directories of their own, and list one for some minutes after the last file in it was deleted.
LISTING_EMPTIED = ["s3-seaweedfs"]


def storage_on(kind: str, directory: Path) -> StorageDriver:
    """An empty storage in memory, on a local disk, or under a prefix of its own in an object store."""
    if kind == "local":
        return LocalDriver(str(directory / "storage"), create=True)
    return DRIVERS[kind](directory, directory)
