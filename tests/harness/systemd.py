"""A machine of its own for systemd: PID 1 of namespaces, on an overlay of this root (`tests/systemd/boot.sh`)."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Self

from harness.commands import LIMIT, run, wait_until
from harness.mount import COMMAND
from harness.storage import Storage

_BOOT = Path(__file__).parents[1] / "systemd/boot.sh"

#: Seconds for systemd to start.
_BOOT_LIMIT = 30


class Machine:
    """A running systemd with layerfs installed. `directory` is seen by both sides, under the same name."""

    def __init__(self) -> None:
        # Not below pytest's own directory, into which a daemon of another user could not look.
        self._temporary = tempfile.TemporaryDirectory(prefix="layerfs-systemd-", ignore_cleanup_errors=True)
        self.directory = Path(self._temporary.name)
        self.directory.chmod(0o755)
        self._log = (self.directory / "boot.log").open("w")
        self._boot = subprocess.Popen(
            [_BOOT, self.directory, COMMAND.parent], stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log
        )
        self._init = 0

    def __enter__(self) -> Self:
        try:
            wait_until(self._find_init, f"a systemd: {(self.directory / 'boot.log').read_text()}", seconds=_BOOT_LIMIT)
            wait_until(
                lambda: self.run("systemctl", "is-system-running", check=False).stdout.strip() == "running",
                f"systemd to be up: {(self.directory / 'boot.log').read_text()}",
                seconds=_BOOT_LIMIT,
            )
        except BaseException:
            self.__exit__()
            raise
        self.run("layerfs", "install-units")
        self.run("mkdir", "-p", "/etc/layerfs")
        if COMMAND.is_relative_to("/tmp"):
            # The clone under test lies there; a program that is installed does not.
            for unit in ("layerfs-purge@", "layerfs-check@"):
                self.write(f"/etc/systemd/system/{unit}.service.d/clone.conf", "[Service]\nPrivateTmp=no\n")
            self.run("systemctl", "daemon-reload")
        return self

    def __exit__(self, *_exc: object) -> None:
        if self._init:
            subprocess.run(["kill", "-9", str(self._init)], check=False)
        elif self._boot.poll() is None:
            self._boot.terminate()
        self._boot.wait(LIMIT)
        self._log.close()
        self._temporary.cleanup()

    def _find_init(self) -> bool:
        assert self._boot.poll() is None, (self.directory / "boot.log").read_text()
        for unshare in _children(self._boot.pid):
            for init in _children(unshare):
                if Path(f"/proc/{init}/comm").read_text() == "systemd\n":
                    self._init = init
                    return True
        return False

    def run(self, *argv: object, check: bool = True, **options: object) -> subprocess.CompletedProcess[str]:
        """Runs a command on the machine."""
        return run(*self.command(*argv), check=check, **options)

    def command(self, *argv: object) -> list[str]:
        """What runs a command on the machine, for subprocess."""
        return ["nsenter", "-t", str(self._init), "-m", "-p", "-u", "-i", "-C", "--", *map(str, argv)]

    def write(self, path: str, content: str) -> None:
        """Makes a file on the machine."""
        run(*self.command("sh", "-c", 'mkdir -p "$(dirname "$1")" && printf %s "$2" > "$1"', "sh", path, content))

    # --- systemd -------------------------------------------------------------------------------------------------

    def systemctl(self, *argv: object, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.run("systemctl", *argv, check=check)

    def show(self, unit: str, name: str) -> str:
        """A property of a unit."""
        return self.systemctl("show", "--value", "-p", name, unit).stdout.strip()

    def is_active(self, unit: str) -> bool:
        return self.show(unit, "ActiveState") == "active"

    def journal(self, unit: str) -> str:
        return self.run("journalctl", "--no-pager", "-u", unit).stdout

    # --- mounts --------------------------------------------------------------------------------------------------

    def mounted(self, path: str) -> list[str]:
        """The types of what is mounted on a place, seen from PID 1, that is by everybody."""
        lines = Path(f"/proc/{self._init}/mountinfo").read_text().splitlines()
        fields = [line.split(" ") for line in lines]
        return [each[each.index("-") + 1] for each in fields if each[4] == path]

    def status(self, path: str) -> dict:
        return json.loads(self.run("cat", f"{path}/.layerfs/status.json").stdout)


class Service:
    """One storage, to be mounted by `layerfs@NAME.service` on /mnt/NAME."""

    def __init__(self, machine: Machine, name: str, *, kind: str = "layerfs", **settings: str) -> None:
        self.machine = machine
        self.unit = f"{kind}@{name}.service"
        self.place = f"/mnt/{name}"
        self.storage = Storage.create(machine.directory / name)
        self.storage.make_repository("r")
        self.source = f"/srv/shared/{name}"
        settings = {"SOURCE": self.source, "MOUNTPOINT": self.place} | settings
        machine.run("mkdir", "-p", self.place)
        machine.write(f"/etc/layerfs/{name}.conf", "".join(f"{key}={value}\n" for key, value in settings.items()))

    def start(self) -> Self:
        result = self.machine.systemctl("start", self.unit, check=False)
        assert result.returncode == 0, self.machine.journal(self.unit)
        return self

    @property
    def process(self) -> Path | None:
        """The daemon in the /proc of this side, if there is one."""
        for path in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if self.unit in (path / "cgroup").read_text() and (path / "comm").read_text() == "layerfs\n":
                    return path
        return None

    def kill(self, number: int) -> Path:
        """Sends a signal to the daemon, and gives which one it was."""
        process = self.process
        assert process is not None
        os.kill(int(process.name), number)
        return process

    def is_back(self, last: Path) -> bool:
        """Whether there is another daemon than the last one, and the mount is served."""
        return self.process not in (None, last) and self.answers()

    def answers(self) -> bool:
        """Whether the mount is there and shows the storage."""
        if "fuse.layerfs" not in self.machine.mounted(self.place):
            return False
        return self.machine.run("timeout", "5", "ls", self.place, check=False).stdout == "r\n"


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []
