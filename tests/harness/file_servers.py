"""Servers of files that fsspec reaches: FTP (of two kinds), SFTP and SMB, each with a directory of this machine."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import fsspec

from harness.fixture import free_port

#: Seconds until a server answers.
START_LIMIT = 30

USER, PASSWORD = "layerfs-test", "swordfish"

_PYFTPDLIB = """
import sys
from pyftpdlib.authorizers import DummyAuthorizer
from pyftpdlib.handlers import FTPHandler
from pyftpdlib.servers import FTPServer
authorizer = DummyAuthorizer()
authorizer.add_user(sys.argv[3], sys.argv[4], sys.argv[2], perm="elradfmwMT")
FTPHandler.authorizer = authorizer
FTPServer(("127.0.0.1", int(sys.argv[1])), FTPHandler).serve_forever()
"""


@dataclass
class FileServer:
    """A running server: what it serves is below `url`, and in `directory`; fsspec is told the `options`."""

    scheme: str
    url: str
    directory: Path
    command: list[str]
    port: int
    options: dict[str, object] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *self.command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        deadline = time.monotonic() + START_LIMIT
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=5).close()
                break
            except OSError:
                assert self.process.poll() is None, f"{self.command} has ended"
                assert time.monotonic() < deadline
                time.sleep(0.05)  # polling interval

    def stop(self) -> None:
        """Ends it, with all connections."""
        if self.process is not None:
            for pid in _with_children(self.process.pid):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.process.wait(10)

    @contextmanager
    def silent(self) -> Iterator[None]:
        """It answers nothing, and its connections stay, while the body runs."""
        pids = _with_children(self.process.pid)
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)

    @property
    def environment(self) -> dict[str, str]:
        """What tells fsspec the options in another process."""
        return {f"FSSPEC_{self.scheme.upper()}_{name.upper()}": str(value) for name, value in self.options.items()}


def _with_children(pid: int) -> list[int]:
    """The process and all below it: those of connections have sessions of their own."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [pid, *(found for child in children for found in _with_children(int(child)))]


@contextmanager
def file_server(kind: str, place: Path) -> Iterator[FileServer]:
    """`kind` is `ftp`, `vsftpd`, `sftp` or `smb`."""
    (place / "files").mkdir()
    server = _KINDS[kind](place, free_port())
    server.start()
    before = fsspec.config.conf.get(server.scheme)
    fsspec.config.conf[server.scheme] = dict(server.options)
    try:
        yield server
    finally:
        del fsspec.config.conf[server.scheme]
        if before is not None:
            fsspec.config.conf[server.scheme] = before
        server.stop()


def _ftp(place: Path, port: int) -> FileServer:
    files = place / "files"
    command = [sys.executable, "-W", "ignore", "-c", _PYFTPDLIB, str(port), str(files), USER, PASSWORD]
    options = {"username": USER, "password": PASSWORD}
    return FileServer("ftp", f"ftp://127.0.0.1:{port}", files, command, port, options)


def _vsftpd(place: Path, port: int) -> FileServer:
    """Which knows no MLSD, so that listings are those of ls(1)."""
    files = place / "files"
    for directory in (place, *place.parents[:2]):
        directory.chmod(0o755)
    root = place / "root"
    root.mkdir(mode=0o555)
    (root / "files").mkdir()
    files.rmdir()
    files = root / "files"
    files.chmod(0o777)
    (place / "empty").mkdir()
    config = place / "vsftpd.conf"
    config.write_text(
        f"listen=YES\nlisten_address=127.0.0.1\nlisten_port={port}\nbackground=NO\nanonymous_enable=YES\n"
        f"anon_root={root}\nno_anon_password=YES\nwrite_enable=YES\nanon_upload_enable=YES\nanon_mkdir_write_enable=YES\n"
        f"anon_other_write_enable=YES\nanon_umask=022\nsecure_chroot_dir={place}/empty\nseccomp_sandbox=NO\n"
        "pasv_address=127.0.0.1\nconnect_from_port_20=NO\nrun_as_launching_user=NO\n"
    )
    config.chmod(0o600)
    return FileServer("ftp", f"ftp://127.0.0.1:{port}/files", files, ["vsftpd", str(config)], port)


def _sftp(place: Path, port: int) -> FileServer:
    files = place / "files"
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(place / name)], check=True)
    os.makedirs("/run/sshd", exist_ok=True)
    config = place / "sshd_config"
    config.write_text(
        f"ListenAddress 127.0.0.1\nPort {port}\nHostKey {place}/host\nAuthorizedKeysFile {place}/user.pub\n"
        "StrictModes no\nPasswordAuthentication no\nSubsystem sftp internal-sftp\nPermitRootLogin yes\nPidFile none\n"
    )
    command = ["/usr/sbin/sshd", "-D", "-e", "-f", str(config)]
    # The keys of this server are known to nobody.
    options = {"key_filename": str(place / "user"), "host_key_policy": "auto_add"}
    return FileServer("sftp", f"sftp://root@127.0.0.1:{port}{files}", files, command, port, options)


def _smb(place: Path, port: int) -> FileServer:
    files = place / "files"
    config = place / "smb.conf"
    config.write_text(
        f"[global]\nworkgroup = TEST\nsmb ports = {port}\ninterfaces = 127.0.0.1\nbind interfaces only = yes\n"
        f"private dir = {place}\nlock directory = {place}\nstate directory = {place}\ncache directory = {place}\n"
        f"pid directory = {place}\nncalrpc dir = {place}/ncalrpc\nlog file = {place}/log\ndisable spoolss = yes\n"
        f"load printers = no\nserver role = standalone server\nrpc start on demand helpers = no\n"
        f"[files]\npath = {files}\nread only = no\nforce user = root\n"
    )
    subprocess.run(
        ["smbpasswd", "-c", str(config), "-a", "-s", "root"],
        input=f"{PASSWORD}\n{PASSWORD}\n",
        text=True,
        check=True,
        capture_output=True,
    )
    command = ["smbd", "--foreground", "--no-process-group", "-s", str(config)]
    options = {"username": "root", "password": PASSWORD}
    return FileServer("smb", f"smb://127.0.0.1:{port}/files", files, command, port, options)


_KINDS = {"ftp": _ftp, "sftp": _sftp, "smb": _smb, "vsftpd": _vsftpd}
