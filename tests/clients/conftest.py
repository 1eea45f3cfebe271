"""Clients of OCI image layouts, on `_oci` of a mount, and the same layouts in plain directories to compare with.

What is mounted is where `--stores` says.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from harness.clients import Containers
from harness.clients_layouts import Originals
from harness.clients_target import Images, Target
from harness.mount import Mount
from harness.storage import Storage, copy_tree
from harness.store_option import follow
from harness.stores import Store


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    follow(metafunc)


@pytest.fixture(scope="session")
def originals(fixture_trees: Path, tmp_path_factory: pytest.TempPathFactory) -> Originals:
    """The fixture's repositories as layouts in plain directories."""
    return Originals(fixture_trees, tmp_path_factory.mktemp("originals"))


@pytest.fixture(scope="module")
def fixture_mount(fixture_trees: Path, tmp_path_factory: pytest.TempPathFactory, store: Store) -> Iterator[Mount]:
    """The fixture's storage, mounted with default options. Whoever changes it uses a repository of his own."""
    directory = tmp_path_factory.mktemp("fixture-mount")
    storage = Storage(copy_tree(fixture_trees / "storage", store.root(directory / "storage")))
    with Mount(storage.source, directory / "mnt") as mount:
        yield mount


@pytest.fixture
def source(fixture_mount: Mount, watchdog: None) -> Iterator[Mount]:
    """The fixture's storage on a mount; a test that kills it, or makes it log what was not declared, fails."""
    yield fixture_mount
    assert fixture_mount.is_alive, fixture_mount.log_text()
    fixture_mount.check_log()


@pytest.fixture
def containers() -> Iterator[Containers]:
    """podman and buildah, which have no images yet."""
    with Containers() as made:
        yield made


@pytest.fixture
def target(mounts, storage: Storage) -> Iterator[Target]:
    """An empty storage of the test's own, mounted with default options."""
    yield from _target(mounts(storage), storage)


@pytest.fixture
def deletable(mounts, storage: Storage) -> Iterator[Target]:
    """The same, where clients may delete."""
    yield from _target(mounts(storage, "--allow-delete"), storage)


def _target(mount: Mount, storage: Storage) -> Iterator[Target]:
    yield Target(storage, mount)
    # Go's RemoveAll tries rmdir before it looks into a directory.
    mount.declare("INFO", "ENOTEMPTY")


@pytest.fixture
def images(payload) -> Images:
    """Makes images; the same ones in every run."""
    return Images(payload)
