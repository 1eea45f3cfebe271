"""The tests of mounts have their storages where `--stores` says: `make stores` runs them on all.

Without it they are on this machine, and a few, those with `also_on`, on an object store too.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from harness.object_stores import gateway
from harness.remote import RemoteRegistry
from harness.s3_proxy import S3Proxy
from harness.store_option import chosen_for, parametrize
from harness.stores import Store
from harness.tagged import TaggedMount, TaggedRepository


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if chosen_for(metafunc) != ["local"]:
        # Tests on this machine are called as ever.
        here = pytest.param("local", id=pytest.HIDDEN_PARAM)
        parametrize(metafunc, "store", local=[here], scope="session")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips what is only of one parameter `local`: of those `store_option` does not know yet."""
    for item in items:
        mark = item.get_closest_marker("local")
        if mark is not None and item.get_closest_marker("on_store") and not item.get_closest_marker("skip"):
            item.add_marker(pytest.mark.skip(reason=f"local: {mark.args[0]}"))


@pytest.fixture
def proxy() -> Iterator[S3Proxy]:
    """The way to an object store, which counts, delays and breaks."""
    with S3Proxy(gateway().endpoint) as proxy:
        yield proxy


@pytest.fixture
def remote(proxy: S3Proxy) -> RemoteRegistry:
    """An empty registry on S3."""
    return RemoteRegistry(gateway(), proxy)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, store: Store) -> Iterator[TaggedMount]:
    """A small storage, mounted with default options."""
    shared = TaggedMount(tmp_path_factory.mktemp("tagged"), store=store)
    with shared.mount:
        yield shared


@pytest.fixture(scope="module")
def small_deletable(tmp_path_factory: pytest.TempPathFactory, store: Store) -> Iterator[TaggedMount]:
    """Another one, mounted with `--allow-delete`."""
    shared = TaggedMount(tmp_path_factory.mktemp("deletable"), "--allow-delete", store=store)
    with shared.mount:
        yield shared


@pytest.fixture
def repository(small: TaggedMount, watchdog: None) -> Iterator[TaggedRepository]:
    yield small.new_repository()
    small.check()


@pytest.fixture
def deletable(small_deletable: TaggedMount, watchdog: None) -> Iterator[TaggedRepository]:
    yield small_deletable.new_repository()
    small_deletable.check()
