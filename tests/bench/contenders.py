"""The ways to get at the same layers: the disk itself, layerfs, and other FUSE servers over the raw layout."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.mount import Mount
from harness.storage import Storage

from tests.bench.data import MANY, READ

_HERE = Path(__file__).parent
_START_LIMIT = 20


class Missing(Exception):
    """A contender cannot take part; says why."""


class Served:
    """What a contender serves at the moment. `pid` is its daemon, if it has one."""

    root: Path
    pid: int | None = None

    def layer(self, digest: str) -> Path:
        """The file that has a layer's bytes."""
        raise NotImplementedError


class Contender:
    """One way. `prepare` raises `Missing`; `served` gives a new mount, of which the kernel has cached nothing."""

    name: str

    def prepare(self, directory: Path) -> None:
        """Checks that it can take part."""

    @contextmanager
    def served(self, storage: Storage, *options: str) -> Iterator[Served]:
        raise NotImplementedError


class _Raw(Served):
    def __init__(self, root: Path, storage: Storage, pid: int | None = None) -> None:
        self.root = root
        self._storage = storage
        self.pid = pid

    def layer(self, digest: str) -> Path:
        return self.root / self._storage.blob(digest).relative_to(self._storage.root)


class Direct(Contender):
    """The stored file itself."""

    name = "direct"

    @contextmanager
    def served(self, storage: Storage, *options: str) -> Iterator[Served]:
        yield _Raw(storage.root, storage)


class _Mounted(Contender):
    """A foreign FUSE server over the storage directory."""

    program: str

    def prepare(self, directory: Path) -> None:
        if shutil.which(self.program) is None:
            raise Missing(f"{self.program} is not installed")
        self._mountpoint = directory / f"mnt-{self.program}"
        self._mountpoint.mkdir()

    def command(self, source: Path, mountpoint: Path) -> list[object]:
        raise NotImplementedError

    @contextmanager
    def served(self, storage: Storage, *options: str) -> Iterator[Served]:
        command = [str(argument) for argument in self.command(storage.root, self._mountpoint)]
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            deadline = time.monotonic() + _START_LIMIT
            while not os.path.ismount(self._mountpoint):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"{command} does not mount")
                time.sleep(0.01)  # polling interval
            yield _Raw(self._mountpoint, storage, process.pid)
        finally:
            subprocess.run(["fusermount3", "-u", "-z", str(self._mountpoint)], check=False, stderr=subprocess.DEVNULL)
            try:
                process.wait(_START_LIMIT)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


class Passthrough(_Mounted):
    """The least that a server in C does: `passthrough.c`, built when it is needed."""

    name = "C passthrough"
    program = "passthrough"

    def prepare(self, directory: Path) -> None:
        for tool in ("gcc", "pkg-config"):
            if shutil.which(tool) is None:
                raise Missing(f"{tool} is not installed")
        flags = subprocess.run(
            ["pkg-config", "--cflags", "--libs", "fuse3"], capture_output=True, text=True, check=False
        )
        if flags.returncode:
            raise Missing("libfuse3-dev is not installed")
        self._binary = directory / "passthrough"
        source = _HERE / "passthrough.c"
        subprocess.run(
            ["gcc", "-O2", "-o", str(self._binary), str(source), *flags.stdout.split(), "-pthread"], check=True
        )
        self._mountpoint = directory / "mnt-passthrough"
        self._mountpoint.mkdir()

    def command(self, source: Path, mountpoint: Path) -> list[object]:
        return [self._binary, source, mountpoint]


class Bindfs(_Mounted):
    """A passthrough in C with libfuse's high-level interface, as Debian has it."""

    name = "bindfs"
    program = "bindfs"

    def command(self, source: Path, mountpoint: Path) -> list[object]:
        return ["bindfs", "-f", "-r", source, mountpoint]


class Rclone(_Mounted):
    """What people mount object storage with, here on a directory and without its cache on disk."""

    name = "rclone"
    program = "rclone"

    def command(self, source: Path, mountpoint: Path) -> list[object]:
        return [
            *("rclone", "mount", "--config", "/dev/null", "--vfs-cache-mode", "off", "--read-only"),
            *(source, mountpoint),
        ]


class ServedByLayerfs(Served):
    """A mount of layerfs."""

    def __init__(self, mount: Mount) -> None:
        self.root = mount.path
        self.pid = mount.process.pid
        self.many = self.root / MANY / "_layers"

    def layer(self, digest: str) -> Path:
        return self.root / READ / "_layers" / digest

    def count(self, operation: str) -> Callable[[], int]:
        """Begins to count the requests of a kind that reach the daemon; the result says how many there were."""
        first, second = self._calls(operation), self._calls(operation)
        return lambda: self._calls(operation) - second - (second - first)  # a look is a few requests, too

    def _calls(self, operation: str) -> int:
        status = json.loads((self.root / ".layerfs/status.json").read_text())
        return int(status["calls"].get(operation, 0))


class Layerfs(Contender):
    """`layerfs mount`, as users start it."""

    name = "layerfs"

    def prepare(self, directory: Path) -> None:
        self._mountpoint = directory / "mnt-layerfs"

    @contextmanager
    def served(self, storage: Storage, *options: str) -> Iterator[Served]:
        with Mount(storage.root, self._mountpoint, *options) as mount:
            yield ServedByLayerfs(mount)


LAYERFS = Layerfs.name
DIRECT = Direct.name
PASSTHROUGH = Passthrough.name
BINDFS = Bindfs.name
RCLONE = Rclone.name

ALL: tuple[type[Contender], ...] = (Layerfs, Direct, Passthrough, Bindfs, Rclone)
