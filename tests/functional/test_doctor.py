"""`layerfs doctor`: what it finds on machines that are ill in one way each, made with namespaces."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from harness.commands import run
from harness.mount import COMMAND, Mount
from harness.storage import Storage

pytestmark = pytest.mark.usefixtures("watchdog")

OK, USAGE, FAILED = 0, 1, 32

DEV = "mount -t tmpfs -o dev,mode=755 none /dev"
MNT = "mount -t tmpfs none /mnt"
FUSERMOUNT = "/usr/bin/fusermount3"


def findings(*arguments: object, before: str = "true", user: int = 0, code: int | None = None) -> dict[str, dict]:
    """What is found, by name, where the shell commands `before` have changed the machine, for a user."""
    script = f'{before}; exec setpriv --reuid={user} --regid={user} --clear-groups -- "$@"'
    argv = [COMMAND, "doctor", "--format", "json", *arguments]
    result = run("unshare", "--mount", "bash", "-euc", script, "bash", *argv, check=False, cwd="/")
    assert "Traceback" not in result.stderr
    found = {row["name"]: row for row in map(json.loads, result.stdout.splitlines())}
    ill = [row for row in found.values() if row["health"] == "fail"]
    assert all((row["remedy"] is None) == (row["health"] == "ok") for row in found.values())
    # Other tests may have mounts at the same time, and kill their daemons.
    if any(not row["name"].startswith("mount on") for row in ill):
        assert result.returncode == FAILED
    if code is not None:
        assert result.returncode == code, result.stdout
    return found


def test_a_storage_in_good_health(storage: Storage) -> None:
    """Nothing is said against it, for people and for programs."""
    found = findings(storage.root)
    assert {found[name]["health"] for name in ("storage", "permissions", "space", "kernel", "fusermount3")} == {"ok"}
    said = run(COMMAND, "doctor", storage.root, check=False).stdout
    assert "OK    storage: " in said
    assert run("ls", storage.root).stdout == "docker\n"


@pytest.mark.parametrize(
    ("before", "user", "name", "health", "remedy"),
    [
        ('mount -t tmpfs none /dev', 0, "/dev/fuse", "fail", "modprobe fuse"),
        ('mount -t tmpfs none /dev && mkdir /dev/fuse', 0, "/dev/fuse", "fail", "modprobe fuse"),
        (f"{DEV} && mknod -m 600 /dev/fuse c 10 229", 65534, "/dev/fuse", "fail", "chmod 666"),
        (f"{DEV} && mknod -m 600 /dev/fuse c 10 229", 0, "/dev/fuse", "warn", "chmod 666"),
        (f"{DEV} && mknod -m 666 /dev/fuse c 10 229", 65534, "/dev/fuse", "ok", None),
        (
            f"{MNT} && install -m 755 {FUSERMOUNT} /mnt/f && mount --bind /mnt/f {FUSERMOUNT}",
            65534,
            "fusermount3",
            "fail",
            "chmod u+s",
        ),
        (
            f"{MNT} && echo user_allow_other > /mnt/f && mount --bind /mnt/f /etc/fuse.conf",
            65534,
            "/etc/fuse.conf",
            "ok",
            None,
        ),
        (
            f"{MNT} && echo '#user_allow_other' > /mnt/f && mount --bind /mnt/f /etc/fuse.conf",
            65534,
            "/etc/fuse.conf",
            "warn",
            "user_allow_other",
        ),
        ("ulimit -n 4000", 0, "descriptors", "warn", "LimitNOFILE"),
        ("mount -t tmpfs none /dev", 0, "log", "warn", "--log-file"),
    ],
)  # fmt: skip
def test_a_machine_with_one_illness(before: str, user: int, name: str, health: str, remedy: str | None) -> None:
    """Each is found, with what mends it."""
    found = findings(before=before, user=user)[name]
    assert found["health"] == health, found
    assert remedy is None or remedy in found["remedy"]


def test_locate(tmp_path: Path) -> None:
    """updatedb is to leave our mounts alone."""
    etc = (
        "mount -t tmpfs none /mnt && mkdir /mnt/u /mnt/w && "
        "mount -t overlay o -o lowerdir=/etc,upperdir=/mnt/u,workdir=/mnt/w /etc;"
    )
    for line, health in (('PRUNEFS="nfs fuse.sshfs"', "warn"), ('PRUNEFS = "nfs fuse.layerfs"', "ok"), ("", "warn")):
        assert findings(before=f"{etc} echo '{line}' > /etc/updatedb.conf")["updatedb"]["health"] == health


def test_the_helper_of_mount8() -> None:
    """Is missed; and found where install-units puts it."""
    overlay = (
        "mount -t tmpfs none /mnt && mkdir /mnt/u /mnt/w && "
        "mount -t overlay o -o lowerdir=/usr/sbin,upperdir=/mnt/u,workdir=/mnt/w /usr/sbin; "
        "rm -f /usr/sbin/mount.layerfs"
    )
    assert "install-units" in findings(before=overlay)["mount(8)"]["remedy"]
    installed = f"{overlay}; {COMMAND} install-units --prefix / --unit-directory /mnt/units > /mnt/log"
    assert findings(before=installed)["mount(8)"]["health"] == "ok"


def test_mounts_that_are_dead_or_hang(mounts: Callable[..., Mount], storage: Storage) -> None:
    """Are named with what to do, without hanging as well; doing it helps."""
    mount = mounts(storage)
    name = f"mount on {mount.path}"
    assert findings()[name]["health"] == "ok"
    mount.process.send_signal(signal.SIGSTOP)
    try:
        found = findings(code=FAILED)[name]
    finally:
        mount.process.send_signal(signal.SIGCONT)
    assert "does not answer" in found["explanation"]
    mount.kill9()
    found = findings(code=FAILED)[name]
    assert "has died" in found["explanation"]
    run(COMMAND, *found["remedy"].split("'")[1].split()[1:])
    assert name not in findings()


def test_a_storage_that_is_none(tmp_path: Path) -> None:
    """Is an error with the reason; wrong arguments are another."""
    assert "no such file" in findings(tmp_path / "none", code=FAILED)["storage"]["explanation"].lower()
    assert run(COMMAND, "doctor", "--config", tmp_path / "none.yml", check=False).returncode == USAGE


def test_a_storage_of_somebody_else(storage: Storage) -> None:
    """May be read, and that is said."""
    for directory in (storage.root, *storage.root.parents):
        if directory.stat().st_uid == os.geteuid() and str(directory) not in ("/", "/tmp"):
            directory.chmod(directory.stat().st_mode | 0o011)
    found = findings(storage.root, user=65534)
    assert found["permissions"]["health"] == "warn"
    assert "--read-only" in found["permissions"]["remedy"]


@pytest.fixture
def server() -> Iterator[Callable[[float], str]]:
    """An S3 endpoint that refuses everything, with a clock that is so many seconds ahead; gives its address."""

    class Handler(BaseHTTPRequestHandler):
        ahead = 0.0

        def do_GET(self) -> None:
            self.send_response_only(403)
            self.send_header("Date", format_datetime(datetime.now(UTC) + timedelta(seconds=self.ahead), usegmt=True))
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_GET  # noqa: N815 (the name is the standard library's)

        def log_message(self, *_arguments: object) -> None:
            """Nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()

        def address(ahead: float) -> str:
            Handler.ahead = ahead
            return f"http://127.0.0.1:{serving.server_port}"

        yield address
        serving.shutdown()


@pytest.mark.parametrize(
    ("ahead", "health", "said"),
    [(0, "ok", "agrees"), (-120, "warn", "ahead of"), (1200, "fail", "refused")],
)
def test_the_clock(
    server: Callable[[float], str], monkeypatch: pytest.MonkeyPatch, ahead: float, health: str, said: str
) -> None:
    """Is compared with that of the storage, which refuses requests when they differ by more than 15 minutes."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "open-sesame")
    found = findings(f"s3://bucket?endpoint_url={server(ahead)}", code=FAILED)
    assert found["clock"]["health"] == health
    assert said in found["clock"]["explanation"]
    assert found["storage"]["health"] == "fail"
    assert "sesame" not in json.dumps(found)


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("AZURE_STORAGE_CONNECTION_STRING", "AccountName=abc;AccountKey=b3Blbi1zZXNhbWU=;BlobEndpoint={}/abc;"),
        ("STORAGE_EMULATOR_HOST", "{}"),
        ("AWS_ENDPOINT_URL_S3", "{}"),
    ],
)
def test_the_clock_of_what_the_environment_names(
    server: Callable[[float], str], monkeypatch: pytest.MonkeyPatch, variable: str, text: str
) -> None:
    """It is that of the server that the requests would go to."""
    address = server(1200)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "open-sesame")
    monkeypatch.setenv(variable, text.format(address))
    scheme = {"AZU": "az", "STO": "gs", "AWS": "s3"}[variable[:3]]
    found = findings(f"{scheme}://registry/prefix", code=FAILED)
    assert found["clock"]["health"] == "fail"
    assert found["clock"]["explanation"].startswith("it is ")
    assert f"behind {address}" in found["clock"]["explanation"]


def test_an_endpoint_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Does not keep the rest from being said."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "open-sesame")
    with subprocess.Popen(["true"]):
        found = findings("s3://bucket?endpoint_url=http://127.0.0.1:9", code=FAILED)
    assert found["clock"]["health"] == "warn"
    assert found["storage"]["health"] == "fail"
    # Neither the source nor its credentials need to be wrong.
    assert "network" in found["storage"]["remedy"]
    assert "credentials" not in found["storage"]["remedy"]
