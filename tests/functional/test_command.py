"""The command as a user types it: what it says, what it exits with, and how mounts begin and end."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import signal
import socket
import stat
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from harness.commands import append, run, wait_until
from harness.fuse_device import open_to_everybody
from harness.loopfs import LoopFilesystem
from harness.mount import COMMAND, Mount
from harness.storage import Storage, snapshot
from harness.strace import delay

pytestmark = pytest.mark.usefixtures("watchdog")

OK, USAGE, INTERRUPTED, FAILED = 0, 1, 8, 32

NOBODY = 65534

#: Of umount2(2).
UMOUNT_NOFOLLOW = 8

#: Seconds that a start or an end may take on a loaded machine.
LIMIT = 30


def layerfs(*argv: object, **options: object) -> subprocess.CompletedProcess[str]:
    """Runs the command to its end."""
    return run(COMMAND, *argv, check=False, **options)


def complaint(*argv: object, code: int = USAGE, **options: object) -> str:
    """What the command says when it fails: one line, no traceback."""
    result = layerfs(*argv, **options)
    assert result.returncode == code, result.stderr
    assert result.stdout == ""
    assert result.stderr.startswith("layerfs: ")
    assert result.stderr.count("\n") == 1
    return result.stderr


def filesystem_at(path: Path) -> str | None:
    """The type of the newest mount on `path`, without touching it."""
    found = None
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split(" ")
        if fields[4] == str(path):
            found = fields[fields.index("-") + 1]
    return found


def status(mountpoint: Path) -> dict:
    return json.loads((mountpoint / ".layerfs/status.json").read_text())


def is_running(pid: int) -> bool:
    """Whether the process is there, and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def thread_states(pid: int) -> set[str]:
    """The states of a process's threads, in the letters of proc(5)."""
    return {path.read_text().rpartition(")")[2].split()[0] for path in Path(f"/proc/{pid}/task").glob("*/stat")}


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """An empty directory to mount on. Whatever a test leaves there is taken away."""
    path = tmp_path / "mnt"
    path.mkdir()
    yield path
    while filesystem_at(path) is not None:
        subprocess.run(["umount", "-l", path], check=True)


@pytest.fixture
def background(storage: Storage, place: Path) -> Iterator[Callable[..., int]]:
    """Mounts `storage` on `place` with `--daemon` and gives the daemon's pid."""
    pids: list[int] = []

    def start(*options: object, **settings: object) -> int:
        result = layerfs("mount", "--daemon", storage.root, place, *options, **settings)
        assert result.returncode == OK, result.stderr
        pids.append(status(place)["pid"])
        return pids[-1]

    yield start
    for pid in filter(is_running, pids):
        os.kill(pid, signal.SIGKILL)


@contextmanager
def held_up(*argv: object, directory: Path) -> Iterator[subprocess.Popen[str]]:
    """Runs the command in a process group of its own, until it opens its log, a FIFO that nobody reads."""
    os.mkfifo(directory / "log")
    with subprocess.Popen(
        [COMMAND, *argv, "--log-file", directory / "log"], stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:

        def opens_log() -> bool:
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            return any(Path(f"/proc/{pid}/wchan").read_text() == "wait_for_partner" for pid in (process.pid, *children))

        try:
            wait_until(opens_log, "the opening of the log", seconds=LIMIT)
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


# --- what is refused, and how it is said ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "Missing command"),
        (["frobnicate"], "frobnicate"),
        (["mount"], "SOURCE"),
        (["mount", "/s"], "MOUNTPOINT"),
        (["mount", "", "/m"], "SOURCE"),
        (["mount", "/s", "/m", "more"], "more"),
        (["mount", "--frobnicate", "/s", "/m"], "--frobnicate"),
        (["mount", "--umask", "999", "/s", "/m"], "invalid umask '999'"),
        (["mount", "-o", "ro,frobnicate", "/s", "/m"], "unknown mount option 'frobnicate'"),
        (["mount", "--create", "-r", "/s", "/m"], "--create"),
        (["umount"], "MOUNTPOINT"),
    ],
)
def test_wrong_arguments(argv: list[str], words: str) -> None:
    """One line that says which, and where to read on."""
    said = complaint(*argv)
    assert words in said
    assert "--help" in said


@pytest.mark.parametrize("argv", [["--help"], ["mount", "--help"], ["umount", "-h"]])
def test_help(argv: list[str]) -> None:
    """Goes to standard output, and explains the exit codes."""
    result = layerfs(*argv)
    assert result.returncode == OK
    assert result.stdout.startswith("Usage: layerfs")
    assert "32  mounting or unmounting failed" in result.stdout


def test_version() -> None:
    """`--version` is name and version."""
    assert layerfs("--version").stdout.startswith("layerfs 0.")


@pytest.mark.parametrize(
    "inside", ["docker", "docker/", "docker/registry", "docker/registry/v2", "docker/registry/v2/blobs"]
)
@pytest.mark.parametrize("create", [[], ["--create"]])
def test_a_source_inside_a_storage(storage: Storage, place: Path, inside: str, create: list[str]) -> None:
    """The right source is named, and `--create` makes no registry in a registry."""
    before = snapshot(storage.root)
    said = complaint("mount", f"{storage.root}/{inside}", place, *create)
    assert f"mount '{storage.root}'" in said
    assert snapshot(storage.root) == before


def test_a_relative_source_inside_a_storage(storage: Storage, place: Path) -> None:
    """`.` is understood as well."""
    assert f"mount '{storage.root}'" in complaint("mount", ".", place, cwd=storage.v2)


def test_a_source_called_docker_that_is_none(place: Path, tmp_path: Path) -> None:
    """A directory that only has the name leads to no wrong advice."""
    (tmp_path / "docker").mkdir()
    assert "--create" in complaint("mount", tmp_path / "docker", place)


def test_a_source_that_is_a_file(place: Path, tmp_path: Path) -> None:
    """Said as such."""
    (tmp_path / "file").touch()
    assert "not a directory" in complaint("mount", tmp_path / "file", place)


def test_a_source_of_unknown_kind(place: Path) -> None:
    """The scheme is named; credentials in the URL are not."""
    said = complaint("mount", "nosuch://user:secret@host/path?token=secret", place)
    assert "nosuch://host/path" in said
    assert "secret" not in said


def test_names_that_would_command_a_terminal(storage: Storage, tmp_path: Path) -> None:
    """Newlines, escapes and reversed writing in a name come out escaped, wherever the message has it."""
    name = "a\nb\x1b[31m\u202ec"
    said = complaint("mount", storage.root, tmp_path / name)
    assert not {"\x1b", "\u202e"} & set(said)
    assert "b\\x1b[31m" in said


def test_a_mountpoint_with_another_file_system(storage: Storage, place: Path) -> None:
    """An empty file system on the mountpoint (a volume, autofs) is fine, as for mount(8)."""
    run("mount", "-t", "tmpfs", "none", place)
    assert layerfs("mount", "--daemon", storage.root, place).returncode == OK
    assert layerfs("umount", place).returncode == OK
    assert filesystem_at(place) == "tmpfs"


def test_a_mountpoint_with_another_fuse_mount(storage: Storage, place: Path, tmp_path: Path) -> None:
    """It is not taken for a dead mount of ours."""
    (tmp_path / "other").mkdir()
    run("bindfs", tmp_path / "other", place)
    assert "fuse" in complaint("mount", storage.root, place)
    assert "not of layerfs" in complaint("umount", place)
    assert filesystem_at(place) == "fuse"


def test_a_bind_mount_of_the_storage(storage: Storage, place: Path) -> None:
    """A place inside the storage is recognised under another name."""
    repositories = storage.v2 / "repositories"
    (repositories / "r").mkdir()
    run("mount", "--bind", repositories, place)
    assert "is inside the storage" in complaint("mount", storage.root, place / "r")


def test_a_log_file_in_the_mountpoint(storage: Storage, place: Path) -> None:
    """Refused, because the daemon would wait for itself."""
    assert "inside the mountpoint" in complaint("mount", "--log-file", place / "log", storage.root, place)


def test_a_log_file_that_cannot_be_written(storage: Storage, place: Path, tmp_path: Path) -> None:
    """The name is in the message, with `--daemon` too."""
    for options in ([], ["--daemon"]):
        said = complaint("mount", *options, "--log-file", tmp_path / "none/log", storage.root, place)
        assert str(tmp_path / "none/log") in said


# --- as another user -----------------------------------------------------------------------------------------


@pytest.fixture
def users_directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory of an ordinary user, who may mount."""
    base = tmp_path_factory.mktemp("user")
    for parent in (base, *base.parents[:3]):
        if stat.S_IMODE(parent.stat().st_mode) & 0o5 != 0o5 and parent.owner() == "root":
            parent.chmod(stat.S_IMODE(parent.stat().st_mode) | 0o55)
    os.chown(base, NOBODY, NOBODY)
    with open_to_everybody():
        yield base


def as_user(*argv: object) -> list[object]:
    return ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", *argv]


def users_complaint(*argv: object) -> str:
    result = run(*as_user(COMMAND, *argv), check=False)
    assert result.returncode == USAGE, result.stderr
    assert result.stderr.count("\n") == 1
    return result.stderr


def test_a_users_mount(users_directory: Path) -> None:
    """An ordinary user mounts, is told who keeps it busy, clears it after a crash, and unmounts."""
    storage, place = users_directory / "storage", users_directory / "mnt"
    run("install", "-d", "-o", NOBODY, place)
    start = as_user(COMMAND, "mount", "--daemon", "--create", storage, place)
    try:
        run(*start)
        assert storage.stat().st_uid == NOBODY
        # The tester is root and not let in, so the pid comes from the user too.
        shown = run(*as_user("cat", place / ".layerfs/status.json")).stdout
        os.kill(json.loads(shown)["pid"], signal.SIGKILL)
        run(*start)
        run(*as_user(COMMAND, "umount", place))
        assert filesystem_at(place) is None
    finally:
        subprocess.run(["umount", "-l", place], check=False, capture_output=True)


def test_what_a_user_may_not(users_directory: Path, storage: Storage, tmp_path: Path) -> None:
    """Mount on a directory of somebody else, let others in, read a foreign storage: each with a way out."""
    mine, theirs, closed = (users_directory / name for name in ("mine", "theirs", "closed"))
    run("install", "-d", "-o", NOBODY, mine)
    run("install", "-d", "-m", "755", theirs)
    run("install", "-d", "-m", "700", closed)
    assert "not writable by this user" in users_complaint("mount", "--create", mine, theirs)
    assert "may not be listed" in users_complaint("mount", "--create", users_directory / "new", closed)
    said = users_complaint("mount", closed, mine)
    assert str(closed) in said
    assert "Mount as a user who may" in said
    if "\nuser_allow_other" not in Path("/etc/fuse.conf").read_text():
        assert "user_allow_other" in users_complaint(
            "mount", "--allow-other", "--create", users_directory / "new", mine
        )
    os.chmod("/dev/fuse", 0o600)
    assert "/dev/fuse" in users_complaint("mount", "--create", users_directory / "new", mine)


# --- in the background ---------------------------------------------------------------------------------------


def test_the_background_daemon_has_left_its_caller(background: Callable[..., int], place: Path, tmp_path: Path) -> None:
    """It holds no pipe or terminal of the caller's, nor his directory, and is in a session of its own."""
    # `run` reads standard output and error to their ends, so it would not return if the daemon held them.
    pid = background(cwd=tmp_path)
    assert os.getsid(pid) == pid
    assert os.readlink(f"/proc/{pid}/cwd") == "/"
    assert {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in range(3)} == {"/dev/null"}


def test_relative_names_in_the_background(storage: Storage, place: Path, tmp_path: Path) -> None:
    """Source, mountpoint and log file are understood before the daemon leaves the directory."""
    run(COMMAND, "mount", "--daemon", "--log-file", "log", "storage", "mnt", cwd=tmp_path)
    assert status(place)["source"] == str(storage.root)
    run(COMMAND, "umount", "mnt", cwd=tmp_path)
    assert "unmounted" in (tmp_path / "log").read_text()


def test_a_background_daemon_that_dies(storage: Storage, place: Path, tmp_path: Path) -> None:
    """The parent says so instead of waiting for ever."""
    with held_up("mount", "--daemon", storage.root, place, directory=tmp_path) as parent:
        [child] = children_of(parent.pid)
        os.kill(child, signal.SIGKILL)
        assert parent.wait(LIMIT) == FAILED
        assert "killed by SIGKILL" in parent.stderr.read()


def test_the_log_of_a_background_daemon(background: Callable[..., int], place: Path, tmp_path: Path) -> None:
    """`--log-file` gets the changes of state, one JSON object a line if so asked."""
    background("--log-file", tmp_path / "log", "--log-format", "json")
    run(COMMAND, "umount", place)
    records = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert [record["level"] for record in records] == ["INFO"] * len(records)
    assert str(place) in records[0]["message"]
    assert {"time", "logger"} <= records[0].keys()


# --- readiness -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("abstract", [False, True])
def test_the_service_manager_is_told(storage: Storage, place: Path, tmp_path: Path, abstract: bool) -> None:
    """READY=1 with a status once the mount answers, STOPPING=1 at its end; also over an abstract socket."""
    address = f"@{tmp_path}/notify" if abstract else f"{tmp_path}/notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address.replace("@", "\0"))
        manager.settimeout(LIMIT)
        environment = os.environ | {"NOTIFY_SOCKET": address}
        with subprocess.Popen(
            [COMMAND, "mount", storage.root, place], env=environment, stderr=subprocess.PIPE
        ) as daemon:
            ready = manager.recv(4096).decode().splitlines()
            assert ready[0] == "READY=1"
            assert ready[1].startswith("STATUS=")
            assert filesystem_at(place) == "fuse.layerfs"
            daemon.terminate()
            assert manager.recv(4096).decode().startswith("STOPPING=1\n")
            assert daemon.wait(LIMIT) == OK


# --- the ends of a mount -------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_mount(mounts: Callable[..., Mount], storage: Storage, number: signal.Signals) -> None:
    """What was written is kept although the file is still open, the mount goes, and the exit code is 0."""
    storage.make_repository("r")
    mount = mounts(storage)
    path = mount.path / "r/_uploads/x"
    fd = os.open(path, os.O_WRONLY | os.O_CREAT)
    try:
        os.write(fd, b"x" * 1_000_000)
        mount.process.send_signal(number)
        assert mount.wait_end() == OK
        assert not mount.is_mounted
    finally:
        with pytest.raises(OSError):
            os.close(fd)
    mount.remount()
    assert path.stat().st_size == 1_000_000


def test_a_second_signal(mounts: Callable[..., Mount], tmp_path: Path) -> None:
    """Does not wait for a disk that does not answer: the mount goes at once, and the exit code is 8."""
    with LoopFilesystem(tmp_path / "disk") as disk:
        mount = mounts(Storage.create(disk.path / "storage"))
        disk.freeze()
        with subprocess.Popen(["mkdir", mount.path / "r"], stderr=subprocess.DEVNULL):
            wait_until(lambda: "D" in thread_states(mount.process.pid), "a thread that waits for the disk")
            mount.process.terminate()
            wait_until(lambda: "SIGTERM" in mount.log_text(), "the first signal", seconds=LIMIT)
            mount.process.terminate()
            wait_until(lambda: not mount.is_mounted, "the end of the mount", seconds=LIMIT / 2)
        # A thread that waits for the disk cannot be ended by anything but the disk.
        disk.thaw()
        assert mount.wait_end() == INTERRUPTED
    assert mount.declare("ERROR", "a second signal (SIGTERM)")


def test_the_end_of_its_terminal_ends_the_mount(storage: Storage, place: Path) -> None:
    """SIGHUP to a mount in the foreground of a terminal: it unmounts and ends well."""
    leader, follower = os.openpty()
    # The terminal becomes that of a new session, as login(1) does it.
    terminal = ["setsid", "--ctty", "--wait", COMMAND, "mount", storage.root, place]
    with subprocess.Popen(terminal, stdin=follower, stdout=follower, stderr=follower) as daemon:
        os.close(follower)
        with open(leader) as screen:
            # It answers before it says so, but a signal until then ends a mount that was never there: another code.
            next(line for line in screen if "mounted" in line)
            os.kill(status(place)["pid"], signal.SIGHUP)
            assert daemon.wait(LIMIT) == OK
    assert filesystem_at(place) is None


def test_nohup(storage: Storage, place: Path) -> None:
    """What was started to outlive its terminal does."""
    with subprocess.Popen(
        ["nohup", COMMAND, "mount", storage.root, place], stderr=subprocess.PIPE, text=True
    ) as daemon:
        for line in daemon.stderr:
            if "mounted" in line:
                break
        daemon.send_signal(signal.SIGHUP)
        assert os.listdir(place) == []
        assert daemon.poll() is None
        daemon.terminate()
        assert daemon.wait(LIMIT) == OK
        assert "SIGHUP" not in daemon.stderr.read()


@pytest.mark.parametrize("options", [[], ["--daemon"]])
def test_ctrl_c_before_the_mount_is_ready(storage: Storage, place: Path, tmp_path: Path, options: list[str]) -> None:
    """Exit code 8, no mount, and nobody left: what is to work in the background is in its caller's group until then."""
    with held_up("mount", *options, storage.root, place, directory=tmp_path) as starting:
        children = children_of(starting.pid)
        os.killpg(starting.pid, signal.SIGINT)
        assert starting.wait(LIMIT) == INTERRUPTED
        assert starting.stderr.read().strip() == "layerfs: interrupted"
        wait_until(lambda: not any(map(is_running, children)), "the end of the child", seconds=LIMIT)
    assert filesystem_at(place) is None


def test_unmounted_from_outside(mounts: Callable[..., Mount], storage: Storage) -> None:
    """umount(8) and fusermount3 end the daemon, with exit code 0."""
    for command in (["umount"], ["fusermount3", "-u"], ["umount", "-l"]):
        mount = mounts(storage)
        run(*command, mount.path)
        assert mount.wait_end() == OK


def test_an_aborted_connection(mounts: Callable[..., Mount], storage: Storage) -> None:
    """The daemon takes the dead mount away and ends."""
    mount = mounts(storage)
    connections = Path("/sys/fs/fuse/connections")
    if not any(connections.iterdir()):
        run("mount", "-t", "fusectl", "fusectl", connections)
    device = os.stat(mount.path).st_dev
    (connections / str(os.minor(device)) / "abort").write_text("1")
    assert mount.wait_end() == OK
    assert not mount.is_mounted


def test_healed_after_kill_9(mounts: Callable[..., Mount], storage: Storage) -> None:
    """kill -9 leaves ENOTCONN; the next mount works at once, even while the kernel remembers the root's attributes."""
    storage.make_repository("r")
    mount = mounts(storage)
    for _ in range(3):
        os.stat(mount.path)
        mount.kill9()
        with pytest.raises(OSError) as raised:
            os.statvfs(mount.path)
        assert raised.value.errno == errno.ENOTCONN
        mount.remount()
        assert os.listdir(mount.path) == ["r"]
    assert Path("/proc/self/mountinfo").read_text().count(f" {mount.path} ") == 1


def test_a_dead_mount_is_unmounted(mounts: Callable[..., Mount], storage: Storage) -> None:
    """`layerfs umount` needs no daemon."""
    mount = mounts(storage)
    mount.kill9()
    assert layerfs("umount", mount.path).returncode == OK
    assert not mount.is_mounted


def test_a_daemon_that_hangs(background: Callable[..., int], storage: Storage, place: Path) -> None:
    """Neither command hangs with it: mount says what to do, and umount does it."""
    pid = background()
    os.kill(pid, signal.SIGSTOP)
    try:
        assert "does not answer" in complaint("mount", storage.root, place)
        assert layerfs("umount", "--lazy", place).returncode == OK
        assert filesystem_at(place) is None
    finally:
        os.kill(pid, signal.SIGCONT)
    wait_until(lambda: not is_running(pid), "the end of the daemon", seconds=LIMIT)


# --- layerfs umount ------------------------------------------------------------------------------------------


def test_umount_waits_for_the_daemon(background: Callable[..., int], storage: Storage, place: Path) -> None:
    """When it returns, the daemon has ended and everything is in the storage."""
    storage.make_repository("r")
    pid = background()
    append(place / "r/_uploads/x", b"x" * 5_000_000)
    assert layerfs("umount", place).returncode == OK
    assert not is_running(pid)
    assert filesystem_at(place) is None
    [upload] = storage.uploads("r")
    assert (upload / "data").stat().st_size == 5_000_000


def test_an_unmount_while_a_file_is_released(mounts: Callable[..., Mount], storage: Storage) -> None:
    """It was closed, and nobody waits for what the daemon has to say to that any more: no error in the log."""
    mount = mounts(storage)
    descriptor = os.open(mount.path / ".layerfs/status.json", os.O_RDONLY)
    with delay(mount.process.pid, ("writev",), 1):
        os.close(descriptor)
        # The call alone: umount(8) asks this and that first, and would wait for the late answers.
        assert ctypes.CDLL(None).umount2(os.fsencode(mount.path), UMOUNT_NOFOLLOW) == 0
        assert mount.wait_end() == OK
    assert {line.level for line in mount.read_log()} == {"INFO"}


def test_umount_of_a_busy_mount(background: Callable[..., int], place: Path) -> None:
    """Refused with the name of who uses it, and it goes on; lazily it goes, and the daemon with its last user."""
    pid = background()
    with subprocess.Popen(["sleep", "600"], cwd=place) as user:
        said = complaint("umount", place, code=FAILED)
        assert "busy" in said
        assert f"'sleep' (pid {user.pid})" in said
        assert os.listdir(place) == []
        assert filesystem_at(place) == "fuse.layerfs"
        assert layerfs("umount", "--lazy", place).returncode == OK
        assert filesystem_at(place) is None
        assert is_running(pid)
        user.kill()
    wait_until(lambda: not is_running(pid), "the end of the daemon", seconds=LIMIT)


def test_umount_through_a_link(background: Callable[..., int], place: Path, tmp_path: Path) -> None:
    """A symbolic link to the mountpoint will do, and a trailing slash."""
    background()
    (tmp_path / "link").symlink_to(place)
    assert layerfs("umount", f"{tmp_path}/link/").returncode == OK
    assert filesystem_at(place) is None


def test_umount_of_other_things(tmp_path: Path) -> None:
    """Only mounts of layerfs are touched."""
    assert "nothing is mounted" in complaint("umount", tmp_path)
    assert "nothing is mounted" in complaint("umount", tmp_path / "missing")
    assert "not of layerfs" in complaint("umount", "/proc")
