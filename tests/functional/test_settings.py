"""Options from the environment and from a configuration file: which one wins, what is shown, what is read again."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness.commands import run, wait_until
from harness.loopfs import LoopFilesystem
from harness.mount import COMMAND, Mount
from harness.storage import Storage

pytestmark = pytest.mark.usefixtures("watchdog")

OK, USAGE = 0, 1


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "layerfs.toml"


@pytest.fixture
def environment(file: Path) -> dict[str, str]:
    """An environment without options of this machine, and with a configuration file."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("LAYERFS_")}
    return plain | {"LAYERFS_CONFIG_FILE": str(file)}


def shown(environment: dict[str, str], *arguments: object) -> dict[tuple[str, str], tuple[str | None, str]]:
    """What `layerfs config` says: value and source by command and option."""
    result = run(COMMAND, "config", "--format", "json", *arguments, env=environment)
    rows = map(json.loads, result.stdout.splitlines())
    return {(row["command"], row["option"]): (row["value"], row["source"]) for row in rows}


def complaint(environment: dict[str, str], *arguments: object) -> str:
    result = run(COMMAND, *arguments, check=False, env=environment)
    assert result.returncode == USAGE, result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("layerfs: ")
    return result.stderr


def test_what_wins(file: Path, environment: dict[str, str]) -> None:
    """The environment over the file, the file over the default; a mountpoint's own table over that of all mounts."""
    file.write_text('[mount]\nmetadata_ttl = 5\numask = "027"\nallow_other = true\n[mount."/m/one"]\nmax-uploads = 3\n')
    environment |= {"LAYERFS_UMASK": "077"}
    options = shown(environment, "--mountpoint", "/m/one/", "mount")
    assert options["mount", "umask"] == ("077", "environment, LAYERFS_UMASK")
    assert options["mount", "metadata_ttl"] == ("5", str(file))
    assert options["mount", "allow_other"] == ("true", str(file))
    assert options["mount", "max_uploads"] == ("3", str(file))
    assert options["mount", "operation_timeout"] == ("60", "default")
    assert shown(environment)["mount", "max_uploads"] == ("256", "default")


@pytest.mark.parametrize(
    ("option", "given", "expected"),
    [
        ("cache_size", "50G", "50G"),
        ("cache_size", "1.5TiB", "1536G"),
        ("cache_size", "12345678901", "12345678901"),
        ("max_handles", "12345678", "12345678"),
        ("metadata_ttl", "1234567.5", "1234567.5"),
        ("metadata_ttl", "0.25", "0.25"),
    ],
)
def test_numbers_are_shown_as_they_can_be_written(
    file: Path, environment: dict[str, str], option: str, given: str, expected: str
) -> None:
    """To the last digit, because the output is what the next configuration is made of."""
    file.write_text("")
    options = shown(environment | {f"LAYERFS_{option.upper()}": given}, "mount")
    assert options["mount", option][0] == expected
    assert shown(environment, "mount")["mount", "cache_size"] == ("10G", "default")


def test_a_mistake_that_is_only_shown(file: Path, environment: dict[str, str]) -> None:
    """Its line names the command that has the option, and no other program."""
    file.write_text('[mount]\nmetadata_ttl = "soon"\n')
    assert "(see 'layerfs mount --help')" in complaint(environment, "config", "mount")


def test_what_a_mount_gets(file: Path, environment: dict[str, str], storage: Storage, tmp_path: Path) -> None:
    """The command line over the environment, over the file: seen in the mount."""
    file.write_text('[mount]\numask = "077"\nread_only = true\nallow_delete = true\nlog_format = "json"\n')
    place = tmp_path / "mnt"
    place.mkdir()
    environment |= {"LAYERFS_UMASK": "027"}
    for arguments, mode in ((["--umask", "0"], 0o755), (["-o", "umask=070"], 0o705), ([], 0o750)):
        run(
            COMMAND,
            "mount",
            "--daemon",
            "--log-file",
            tmp_path / "log",
            *arguments,
            storage.root,
            place,
            env=environment,
        )
        try:
            assert place.stat().st_mode & 0o777 == mode
            status = json.loads((place / ".layerfs/status.json").read_text())
            assert (status["read_only"], status["allow_delete"]) == (True, True)
        finally:
            run(COMMAND, "umount", place, env=environment)
    assert all(line.startswith("{") for line in (tmp_path / "log").read_text().splitlines())


def test_other_commands_have_it_too(file: Path, environment: dict[str, str], storage: Storage) -> None:
    """Any option of any command."""
    storage.make_repository("r")
    file.write_text('[ls]\nformat = "json"\n')
    assert run(COMMAND, "ls", storage.root, env=environment).stdout == '{"repository": "r"}\n'
    assert run(COMMAND, "ls", "--format", "table", storage.root, env=environment).stdout == "r\n"
    environment |= {"LAYERFS_FORMAT": "table"}
    assert run(COMMAND, "ls", storage.root, env=environment).stdout == "r\n"


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("[mount]\nfrobnicate = 1", "'frobnicate'"),
        ("[frobnicate]\n", "[frobnicate]"),
        ("mount = 1", "[mount]"),
        ("[mount]\numask = 9", "umask '9'"),
        ('[mount]\nallow_other = "perhaps"', "perhaps"),
        ("[mount]\numask = {}", "[mount] umask"),
        ('[mount."/m"]\nsource = "x"', '[mount."/m"]'),
        ("[mount", "end of a table"),
    ],
)
def test_a_file_with_mistakes(
    file: Path, environment: dict[str, str], storage: Storage, tmp_path: Path, content: str, named: str
) -> None:
    """One line that says which file, and what is wrong in it."""
    file.write_text(content)
    said = complaint(environment, "mount", storage.root, tmp_path)
    assert str(file) in said
    assert named in said


def test_a_file_that_is_not_there(environment: dict[str, str], storage: Storage, tmp_path: Path) -> None:
    """Is a mistake if it was named; an empty name stands for none."""
    assert "No such file" in complaint(environment, "mount", storage.root, tmp_path)
    assert "No such file" in complaint(environment, "ls", "--config-file", tmp_path / "no", storage.root)
    assert run(COMMAND, "ls", storage.root, env=environment | {"LAYERFS_CONFIG_FILE": ""}).stdout == ""


def test_a_mistake_in_the_environment(
    environment: dict[str, str], file: Path, storage: Storage, tmp_path: Path
) -> None:
    """Is one line that names the variable."""
    file.write_text("")
    for name, value in (("UMASK", "9"), ("READ_ONLY", "maybe"), ("METADATA_TTL", "-1"), ("CACHE", "disk")):
        said = complaint(environment | {f"LAYERFS_{name}": value}, "mount", storage.root, tmp_path)
        assert f"LAYERFS_{name}" in said
    result = run(COMMAND, "config", env=environment | {"LAYERFS_METADATATTL": "1"})
    assert "LAYERFS_METADATATTL" in result.stderr


def test_secrets(environment: dict[str, str], file: Path, storage: Storage, tmp_path: Path) -> None:
    """A password may stand in the environment, and in a file that not everybody can read; it is never shown."""
    secret = "redis://:open-sesame@localhost/0"  # noqa: S105
    file.write_text(f'[mount]\ncache = "{secret}"\n')
    file.chmod(0o644)
    said = complaint(environment, "mount", storage.root, tmp_path)
    assert f"chmod 600 {file}" in said
    assert "sesame" not in said
    file.chmod(0o640)
    assert shown(environment)["mount", "cache"] == ("********", str(file))
    variable = environment | {"LAYERFS_CACHE": secret}
    assert shown(variable)["mount", "cache"] == ("********", "environment, LAYERFS_CACHE")
    # Rubbish is refused without being quoted: there may be a password in it.
    assert "sesame" not in complaint(environment | {"LAYERFS_CACHE": "http://:open-sesame@h"}, "mount", "s", tmp_path)


# --- SIGHUP ------------------------------------------------------------------------------------------------------


class Service:
    """A mount as systemd starts it: no terminal, and a socket for what it has to say."""

    def __init__(self, storage: Storage, directory: Path, environment: dict[str, str], *options: str) -> None:
        self.place = directory / "mnt"
        self.log = directory / "log"
        self.place.mkdir()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(directory / "notify"))
        self._socket.settimeout(30)
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [COMMAND, "mount", storage.root, self.place, *options],
                stderr=log,
                env=environment | {"NOTIFY_SOCKET": str(directory / "notify")},
                start_new_session=True,
            )
        assert "READY=1" in self.hear()

    def hear(self) -> list[str]:
        return self._socket.recv(4096).decode().splitlines()

    def reload(self) -> None:
        """What ExecReload does, and systemd waits for."""
        self.process.send_signal(signal.SIGHUP)
        said = self.hear()
        assert said[0] == "RELOADING=1"
        assert said[1].startswith("MONOTONIC_USEC=")
        assert "READY=1" in self.hear()

    def status(self) -> dict:
        return json.loads((self.place / ".layerfs/status.json").read_text())

    def close(self) -> None:
        self.process.terminate()
        assert self.process.wait(30) == OK
        self._socket.close()


@pytest.fixture
def service(storage: Storage, tmp_path: Path, environment: dict[str, str]) -> Iterator[Callable[..., Service]]:
    made: list[Service] = []

    def start(*options: str, **variables: str) -> Service:
        made.append(Service(storage, tmp_path, environment | variables, *options))
        return made[-1]

    yield start
    for each in made:
        each.close()


def test_reloading(file: Path, service: Callable[..., Service], storage: Storage) -> None:
    """SIGHUP: what the file says now holds, while files stay open; what needs a new mount is named."""
    storage.put_layer("r", b"abc")
    file.write_text("[mount]\nallow_delete = false\n")
    mounted = service()
    [layer] = (mounted.place / "r/_layers").iterdir()
    with layer.open("rb") as opened, pytest.raises(PermissionError):
        layer.unlink()
    with layer.open("rb") as opened:
        file.write_text('[mount]\nallow_delete = true\nlog_format = "json"\nuid = 5\n')
        mounted.reload()
        assert mounted.status()["allow_delete"] is True
        assert "new mount: uid" in mounted.log.read_text()
        assert json.loads(mounted.log.read_text().splitlines()[-1])["level"] == "WARNING"
        assert opened.read() == b"abc"
    layer.unlink()
    file.write_text("")
    mounted.reload()
    assert mounted.status()["allow_delete"] is False


def test_what_reloading_leaves_alone(file: Path, service: Callable[..., Service]) -> None:
    """The command line and the environment win over the file, also later."""
    file.write_text("")
    mounted = service("--allow-delete", LAYERFS_LOG_LEVEL="warning")
    file.write_text('[mount]\nallow_delete = false\nlog_level = "debug"\n')
    mounted.reload()
    assert mounted.status()["allow_delete"] is True
    assert "DEBUG" not in mounted.log.read_text()


def test_reloading_a_mistake(file: Path, service: Callable[..., Service]) -> None:
    """Changes nothing, and is one line in the log; the mount goes on."""
    file.write_text("[mount]\nallow_delete = true\n")
    mounted = service()
    for content in ("[mount", "[mount]\nallow_delete = 9\n", "[mount]\nmetadata_ttl = -1\nallow_delete = false\n"):
        file.write_text(content)
        mounted.reload()
        assert mounted.status()["allow_delete"] is True
    file.unlink()
    mounted.reload()
    assert mounted.log.read_text().count("nothing is changed") == 4
    assert "Traceback" not in mounted.log.read_text()


def test_a_shorter_time_to_live(file: Path, mounts: Callable[..., Mount], storage: Storage, tmp_path: Path) -> None:
    """What is remembered for an hour is forgotten when the hour becomes nothing."""
    storage.make_repository("r")
    file.write_text("[mount]\nmetadata_ttl = 3600\n")
    mount = mounts(storage, "--config-file", str(file))
    assert os.listdir(mount.path / "r/_layers") == []
    digest = storage.put_layer("r", b"abc")
    assert os.listdir(mount.path / "r/_layers") == []
    file.write_text("[mount]\nmetadata_ttl = 0\n")
    os.kill(mount.process.pid, signal.SIGHUP)
    wait_until(lambda: os.listdir(mount.path / "r/_layers") == [digest], "the layer that somebody else put there")


# --- the watchdog ------------------------------------------------------------------------------------------------


def test_signs_of_life(mounts: Callable[..., Mount], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They go on while storage hangs, and end when requests are not answered any more."""
    monkeypatch.setenv("WATCHDOG_USEC", "400000")
    with LoopFilesystem(tmp_path / "disk") as disk:
        mount = mounts(Storage.create(disk.path / "storage"))

        def count() -> int:
            return mount.notifications.count("WATCHDOG=1")

        wait_until(lambda: count() >= 2, "signs of life")
        disk.freeze()
        with subprocess.Popen(["mkdir", mount.path / "r"], stderr=subprocess.DEVNULL) as waiting:
            hung = count()
            wait_until(lambda: count() >= hung + 3, "signs of life while the disk hangs")
            assert waiting.poll() is None
            disk.thaw()
    mount.process.send_signal(signal.SIGSTOP)
    wait_until(lambda: _is_stopped(mount.process.pid), "the daemon to stop")
    time.sleep(0.5)  # what it said before is received
    stopped = count()
    time.sleep(1)  # five times as long as from one sign of life to the next
    assert count() == stopped
    mount.kill9()


def _is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
