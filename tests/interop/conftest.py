"""The real registry and a mount over the same storage."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from harness.mount import Mount
from harness.registry import DockerRegistry
from harness.repository import MountedRepository
from harness.storage import Storage, copy_tree


class Both(NamedTuple):
    """One storage, served by a registry and mounted by layerfs."""

    storage: Storage
    registry: DockerRegistry
    mount: Mount


@pytest.fixture(scope="module")
def served(fixture_trees: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    """The fixture's storage with both on it."""
    directory = tmp_path_factory.mktemp("served")
    storage = Storage(copy_tree(fixture_trees / "storage", directory / "storage"))
    with DockerRegistry(storage.root, directory) as registry, Mount(storage.root, directory / "mnt") as mount:
        yield Both(storage, registry, mount)


@pytest.fixture
def both(served: Both, watchdog: None) -> Iterator[Both]:
    """The same, with a look at the daemon and its log after every test."""
    yield served
    assert served.mount.is_alive, served.mount.log_text()
    served.mount.check_log()


@pytest.fixture
def registry(both: Both) -> DockerRegistry:
    """Debian's docker-registry on the storage that is mounted."""
    return both.registry


@pytest.fixture
def repository(both: Both, request: pytest.FixtureRequest) -> MountedRepository:
    """A new, empty repository on the storage that both have."""
    number = request.config.stash.setdefault(_COUNT, [0])
    number[0] += 1
    repository = MountedRepository(both.mount, both.storage, f"interop/test{number[0]}")
    both.storage.make_repository(repository.name)
    return repository


_COUNT = pytest.StashKey[list[int]]()
