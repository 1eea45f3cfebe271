"""One suite of behaviours, run in-process over two drivers and through a real mount."""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest
import trio
import trio.testing
from harness.mount import Mount
from harness.shown import InProcess, Mounted, Shown
from harness.storage import Storage

from layerfs.driver.interface import StorageDriver
from layerfs.driver.local import LocalDriver
from layerfs.driver.memory import MemoryDriver
from layerfs.registry import Registry
from layerfs.view.tree import Tree, TreeOptions

WAYS = ("memory", "local", "mount")

_numbers = itertools.count(1)

Show = Callable[..., Awaitable[Shown]]


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> str:
    """How the registry is shown."""
    return request.param


@pytest.fixture(scope="module")
def module_mount(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], tuple[Mount, Storage]]]:
    """The one mount with default options that all tests of a module share; made when the first asks for it."""
    made: list[tuple[Mount, Storage]] = []

    def get() -> tuple[Mount, Storage]:
        if not made:
            directory = tmp_path_factory.mktemp("tree")
            storage = Storage.create(directory / "storage")
            made.append((Mount(storage.root, directory / "mnt").start(), storage))
        return made[0]

    yield get
    for mount, _ in made:
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
    module_mount: Callable[[], tuple[Mount, Storage]],
    repository_name: str,
    tmp_path: Path,
    nursery: trio.Nursery,
    watchdog: None,
) -> AsyncIterator[Shown]:
    """An empty repository, shown with default options."""
    if way == "mount":
        mount, storage = module_mount()
        storage.make_repository(repository_name)
        yield Mounted(mount, storage.root, repository_name)
        mount.check_log()
        return
    shown = await _in_process(await _driver(way, tmp_path), repository_name, nursery, TreeOptions())
    yield shown
    await _end(shown)


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
    driver = await _driver("local" if way == "mount" else way, tmp_path)

    async def show(*arguments: str, **options: object) -> Shown:
        if way == "mount":
            mount = await trio.to_thread.run_sync(lambda: mounts(tmp_path / "storage", *arguments))
            Storage(tmp_path / "storage").make_repository(repository_name)
            return Mounted(mount, tmp_path / "storage", repository_name)
        made.append(await _in_process(driver, repository_name, nursery, TreeOptions(**options)))  # type: ignore[arg-type]
        return made[-1]

    yield show
    for shown in made:
        await _end(shown)


@pytest.fixture
def payload(request: pytest.FixtureRequest) -> Callable[[int], bytes]:
    """Gives random bytes, the same in every run of a test."""
    return random.Random(request.node.nodeid).randbytes


async def _driver(way: str, directory: Path) -> StorageDriver:
    driver = MemoryDriver() if way == "memory" else LocalDriver(str(directory / "storage"), create=True)
    await Registry.open(driver, create=True)
    return driver


async def _in_process(driver: StorageDriver, repository: str, nursery: trio.Nursery, options: TreeOptions) -> InProcess:
    registry = await Registry.open(driver)
    await registry.create_repository(repository)
    return InProcess(Tree(registry, options, nursery), driver, repository)


async def _end(shown: InProcess) -> None:
    await trio.testing.wait_all_tasks_blocked()
    shown.assert_nothing_left()
    await shown.tree.close()
