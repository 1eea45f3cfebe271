"""A file system of its own for one test: it can lose its power, freeze and be full, and takes nobody else with it."""

from __future__ import annotations

import fcntl
import os
import struct
import time
from pathlib import Path
from typing import Final, Self

from harness.commands import run

#: EXT4_IOC_SHUTDOWN, which XFS understands too: from here on every operation fails.
_SHUTDOWN: Final = 0x8004587D
#: Without writing the journal: what was not synced is gone, as when the power goes.
_WITHOUT_LOG: Final = 2

_MIB: Final = 1 << 20


class LoopFilesystem:
    """A file system of type `kind` in a file, mounted at `path`. A context manager that leaves nothing behind."""

    def __init__(
        self, directory: Path, kind: str = "ext4", *, mebibytes: int = 400, mkfs: tuple[str, ...] = ()
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.path = directory / "disk"
        self.path.mkdir()
        self._kind = kind
        self._image = directory / "disk.img"
        self._mkfs = mkfs
        self._is_frozen = False
        with self._image.open("wb") as image:
            image.truncate(mebibytes * _MIB)

    def __enter__(self) -> Self:
        run(f"mkfs.{self._kind}", "-q", *self._mkfs, self._image)
        self.mount()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.thaw()
        # Somebody who still uses it is somebody's bug, but not a reason to leave a loop device behind: it goes when the
        # last user goes.
        if self.is_mounted and run("umount", self.path, check=False).returncode:
            run("umount", "-l", self.path)
        self._image.unlink()

    @property
    def is_mounted(self) -> bool:
        # Not by asking the file system, which answers nothing after a power cut.
        mounted = Path("/proc/self/mountinfo").read_text().splitlines()
        return any(line.split()[4] == str(self.path) for line in mounted)

    def mount(self) -> None:
        run("mount", "-o", "loop", self._image, self.path)

    def unmount(self, *, seconds: float = 10) -> None:
        """Whoever has a file open here must let go in time."""
        deadline = time.monotonic() + seconds
        while (result := run("umount", self.path, check=False)).returncode:
            assert time.monotonic() < deadline, result.stderr
            time.sleep(0.05)  # polling interval

    def cut_power(self) -> None:
        """Nothing reaches the disk any more. `restore_power` is the only way on."""
        directory = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(directory, _SHUTDOWN, struct.pack("I", _WITHOUT_LOG))
        finally:
            os.close(directory)

    def restore_power(self) -> None:
        """What a machine does when it starts again: the journal is replayed."""
        self.unmount()
        self.mount()

    def freeze(self) -> None:
        """Whoever writes waits, in a state in which no signal is heard, until `thaw`."""
        run("fsfreeze", "-f", self.path)
        self._is_frozen = True

    def thaw(self) -> None:
        """May be called again."""
        if self._is_frozen:
            self._is_frozen = False
            run("fsfreeze", "-u", self.path)
