"""Fixtures of the black-box tests: real registry storage, daemons on it, and repositories to play in.

The storage is on this machine, or where `--stores` says; `tests/mount/conftest.py` says which tests follow it.

`mount` is shared by the whole session, so tests keep to the `repository` they are given. Whoever needs other options,
or ends the daemon, makes a mount with `mounts`.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import random
import re
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from harness.fixture import make_fixture
from harness.mount import Mount, abort_all
from harness.repository import MountedRepository
from harness.storage import Storage, copy_tree
from harness.store_option import add_option
from harness.stores import Store, open_store

#: Seconds before the limit of a test when everybody who waits for a daemon is freed, which the limit itself cannot do.
MARGIN = 20

_MEMORY = "/dev/shm"

_numbers = itertools.count(1)


def pytest_configure() -> None:
    """Forgets what this machine has in its environment that only costs time.

    Certificates and accounts of AWS are read by each driver. And without files of byte code each daemon compiles all of
    layerfs anew, which is half of what a start takes, a thousand times.
    """
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        del os.environ[name]
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.dont_write_bytecode = False


def pytest_addoption(parser: pytest.Parser) -> None:
    add_option(parser)


@pytest.fixture(scope="session")
def store(request: pytest.FixtureRequest) -> Store:
    """Where the storages of a test are. Tests in tests/mount have one after the other."""
    return open_store(getattr(request, "param", "local"))


@pytest.fixture
def watchdog(request: pytest.FixtureRequest) -> Iterator[None]:
    """Ends all daemons under test when a test takes too long: a hang in the kernel becomes an error."""
    timer = threading.Timer(_limit_of(request) - MARGIN, abort_all)
    timer.daemon = True
    timer.start()
    yield
    timer.cancel()


def _limit_of(request: pytest.FixtureRequest) -> float:
    """Seconds that pytest-timeout gives a test."""
    own = request.node.get_closest_marker("timeout")
    return own.args[0] if own else float(request.config.getoption("timeout") or request.config.getini("timeout"))


@pytest.fixture(scope="session")
def fixture_trees(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """What make_fixture.sh makes. Nobody changes it: `storage_copy` is for that."""
    base = tmp_path_factory.getbasetemp()
    base = base if worker_id == "master" else base.parent
    with (base / "fixture.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return make_fixture(base / "fixture")


@pytest.fixture(scope="session")
def worker_id(request: pytest.FixtureRequest) -> str:
    """Which of several parallel test processes this is; there is one unless pytest-xdist says otherwise."""
    return getattr(request.config, "workerinput", {}).get("workerid", "master")


@pytest.fixture
def quick_path(tmp_path: Path) -> Iterator[Path]:
    """A directory in memory, if there is room: for what is done a thousand times, and would wait for a disk then."""
    if shutil.disk_usage(_MEMORY).free < 1 << 30:
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=_MEMORY, prefix="layerfs-") as directory:
        yield Path(directory)


@pytest.fixture
def storage_copy(fixture_trees: Path, tmp_path: Path, store: Store) -> Callable[[str], Storage]:
    """Gives a copy of `storage` or `damaged` that the test may change."""

    def copy(which: str = "storage") -> Storage:
        return Storage(copy_tree(fixture_trees / which, store.root(tmp_path / f"{which}-{next(_numbers)}")))

    return copy


@pytest.fixture
def storage(tmp_path: Path, store: Store) -> Storage:
    """The storage of an empty registry."""
    return Storage.create(store.root(tmp_path / "storage"))


@pytest.fixture
def mounts(tmp_path: Path, watchdog: None) -> Iterator[Callable[..., Mount]]:
    """Mounts a storage, with options. At the end the daemons are ended and their logs checked."""
    made: list[Mount] = []

    def mount(source: Storage | Path | str, *options: str, **settings: object) -> Mount:
        source = source.source if isinstance(source, Storage) else source
        made.append(Mount(source, tmp_path / f"mnt-{len(made)}", *options, **settings))
        return made[-1].start()

    yield mount
    end_all(made)


def end_all(made: list[Mount]) -> None:
    """Ends daemons and checks their logs; all of them, before anything fails."""
    problems: list[str] = []
    for mount in reversed(made):
        try:
            if mount.is_alive:
                mount.stop()
        except AssertionError as exc:
            problems.append(str(exc))
        finally:
            mount.clean_up()
        try:
            mount.check_log()
        except AssertionError as exc:
            problems.append(str(exc))
    assert not problems, "\n".join(problems)


class SharedMount:
    """One mount for many tests, made anew when a test has killed it."""

    def __init__(self, directory: Path, source: Path, store: Store, *options: str) -> None:
        self._directory = directory
        self._options = options
        self.storage = Storage(copy_tree(source, store.root(directory / "storage")))
        self.mount: Mount | None = None

    def get(self) -> Mount:
        if self.mount is None or not self.mount.is_alive:
            self.close()
            self.mount = Mount(self.storage.source, self._directory / f"mnt-{next(_numbers)}", *self._options)
            self.mount.start()
        return self.mount

    def close(self) -> None:
        if self.mount is not None:
            mount, self.mount = self.mount, None
            end_all([mount])


@pytest.fixture(scope="session")
def shared_mount(fixture_trees: Path, tmp_path_factory: pytest.TempPathFactory, store: Store) -> Iterator[SharedMount]:
    """A copy of the fixture's storage, mounted with default options."""
    shared = SharedMount(tmp_path_factory.mktemp("shared"), fixture_trees / "storage", store)
    yield shared
    shared.close()


@pytest.fixture
def mount(shared_mount: SharedMount, watchdog: None) -> Iterator[Mount]:
    """The session's mount. A test that kills it, or makes it log what was not declared, fails."""
    mount = shared_mount.get()
    yield mount
    assert mount.is_alive, f"the daemon died with {mount.process.poll()}\n{mount.log_text()}"
    mount.check_log()


@pytest.fixture
def repository(mount: Mount, shared_mount: SharedMount, request: pytest.FixtureRequest) -> MountedRepository:
    """A new, empty repository on the session's mount, made in storage by hand."""
    return new_repository(mount, shared_mount.storage, request)


def new_repository(mount: Mount, storage: Storage, request: pytest.FixtureRequest) -> MountedRepository:
    """A repository that no other test has."""
    words = re.sub("[^a-z0-9]+", "-", request.node.name.lower()).strip("-")[:60].strip("-")
    repository = MountedRepository(mount, storage, f"tests/{words}-{next(_numbers)}")
    storage.make_repository(repository.name)
    return repository


@pytest.fixture
def payload(request: pytest.FixtureRequest) -> Callable[..., bytes]:
    """Gives random bytes that no other test has; the same ones in every run."""
    numbers = itertools.count()

    def make(size: int) -> bytes:
        return random.Random(f"{request.node.nodeid} {next(numbers)}").randbytes(size)

    return make
