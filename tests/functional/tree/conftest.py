"""One suite of behaviours, run in-process over two drivers and through a real mount; on object stores if asked for."""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest
import trio
import trio.testing
from harness.drivers import storage_on
from harness.mount import Mount
from harness.shown import InProcess, Mounted, Shown, repository_path
from harness.storage import Storage
from harness.store_option import parametrize
from harness.stores import open_store

from layerfs.driver.interface import StorageDriver
from layerfs.registry import Registry
from layerfs.view.tree import Tree, TreeOptions

WAYS = ("memory", "local", "mount")

_numbers = itertools.count(1)

Show = Callable[..., Awaitable[Shown]]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    parametrize(metafunc, "way", local=WAYS, ways=["{}", "{}-mount"])


@pytest.fixture
def way(request: pytest.FixtureRequest) -> str:
    """How the registry is shown: in-process over a driver, or where it is mounted from."""
    return request.param


@pytest.fixture(scope="module")
def module_mount(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], tuple[Mount, Storage]]]:
    """The one mount of a store with default options that all tests of a module share; made when the first asks."""
    made: dict[str, tuple[Mount, Storage]] = {}

    def get(store: str) -> tuple[Mount, Storage]:
        if store not in made:
            directory = tmp_path_factory.mktemp("tree")
            storage = Storage.create(open_store(store).root(directory / "storage"))
            made[store] = (Mount(storage.source, directory / "mnt").start(), storage)
        return made[store]

    yield get
    for mount, _ in made.values():
        try:
            mount.stop()
        finally:
            mount.clean_up()
        mount.check_log()


@pytest.fixture
def repository_name(request: pytest.FixtureRequest) -> str:
    """A repository that no other test has."""
    words = re.sub("[^a-z0-9]+", "-", request.node.originalname.lower()).strip("-")
    return f"tests/{words}-{next(_numbers)}"


@pytest.fixture
async def shown(
    way: str,
    module_mount: Callable[[str], tuple[Mount, Storage]],
    repository_name: str,
    tmp_path: Path,
    nursery: trio.Nursery,
    watchdog: None,
) -> AsyncIterator[Shown]:
    """An empty repository, shown with default options."""
    if store := _mounted_store(way):
        mount, storage = module_mount(store)
        storage.make_repository(repository_name)
        yield Mounted(mount, storage.root, repository_name)
        mount.check_log()
        return
    driver = await _driver(way, tmp_path)
    shown = await _in_process(driver, repository_name, nursery, TreeOptions())
    yield shown
    await _end(shown)
    await _close(driver)


@pytest.fixture
async def show(
    way: str,
    repository_name: str,
    tmp_path: Path,
    nursery: trio.Nursery,
    mounts: Callable[..., Mount],
) -> AsyncIterator[Show]:
    """Shows an empty repository with other options: `show("--read-only", read_only=True)`.

    May be called again, for another look at the same storage.
    """
    made: list[InProcess] = []
    if store := _mounted_store(way):
        storage = Storage.create(open_store(store).root(tmp_path / "storage"))
        storage.make_repository(repository_name)

        async def show_mounted(*arguments: str, **_options: object) -> Shown:
            mount = await trio.to_thread.run_sync(lambda: mounts(storage, *arguments))
            return Mounted(mount, storage.root, repository_name)

        yield show_mounted
        return
    driver = await _driver(way, tmp_path)

    async def show(*arguments: str, **options: object) -> Shown:
        made.append(await _in_process(driver, repository_name, nursery, TreeOptions(**options)))  # type: ignore[arg-type]
        return made[-1]

    yield show
    for shown in made:
        await _end(shown)
    await _close(driver)


@pytest.fixture
def payload(request: pytest.FixtureRequest) -> Callable[[int], bytes]:
    """Gives random bytes, the same in every run of a test."""
    return random.Random(request.node.nodeid).randbytes


def _mounted_store(way: str) -> str:
    """Which store is mounted; none if a driver for it is used in-process."""
    store, _, how = way.rpartition("-")
    return (store or "local") if how == "mount" else ""


async def _driver(way: str, directory: Path) -> StorageDriver:
    driver = storage_on(way, directory)
    await Registry.open(driver, create=True)
    return driver


async def _close(driver: StorageDriver) -> None:
    with trio.CancelScope(shield=True):
        await driver.close()


async def _in_process(driver: StorageDriver, repository: str, nursery: trio.Nursery, options: TreeOptions) -> InProcess:
    registry = await Registry.open(driver, create=True)
    await registry.create_repository(repository)
    if not driver.capabilities.directories:
        # What is in no directory makes one.
        for name in ("_layers", "_manifests"):
            await driver.put_content(f"{repository_path(repository)}/{name}/.keep", b"")
    return InProcess(Tree(registry, options, nursery), driver, repository)


async def _end(shown: InProcess) -> None:
    await trio.testing.wait_all_tasks_blocked()
    shown.assert_nothing_left()
    await shown.tree.close()
