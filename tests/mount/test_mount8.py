"""mount(8), mount.fuse3 and fstab(5), for real, in a mount namespace that has a /sbin/mount.layerfs."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness.commands import run, wait_until
from harness.mount import COMMAND
from harness.storage import Storage

pytestmark = pytest.mark.usefixtures("watchdog")

OK, USAGE, FAILED = 0, 1, 32
NOBODY = 65534

#: /sbin and /usr/local/bin with the commands of this environment in them, seen by nobody else. The root of the
#: test's directory is opened to others, because a daemon without privileges has to get to it.
NAMESPACE = """
    mount -t tmpfs none "$1"
    mkdir "$1/upper" "$1/work" "$1/bin"
    mount -t overlay overlay -o "lowerdir=/usr/sbin,upperdir=$1/upper,workdir=$1/work" /usr/sbin
    ln -s "$2/mount.layerfs" /usr/sbin/mount.layerfs
    ln -s "$2/layerfs" "$1/bin/layerfs"
    mount --bind "$1/bin" /usr/local/bin
    echo ready
    exec sleep infinity
"""


class Machine:
    """A mount namespace in which layerfs is installed, with a storage and a place to mount it."""

    def __init__(self, directory: Path, storage: Storage) -> None:
        self.storage = storage
        self.place = directory / "mnt"
        self.fstab = directory / "fstab"
        self.place.mkdir()
        (directory / "namespace").mkdir()
        argv = ["bash", "-euc", NAMESPACE, "bash", directory / "namespace", Path(sys.executable).parent]
        command = ["unshare", "--mount", "--propagation", "private", *argv]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout.readline() == "ready\n"

    def run(self, *argv: object, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Runs a command in the namespace."""
        return run("nsenter", f"--mount=/proc/{self._process.pid}/ns/mnt", "--", *argv, check=check)

    def mount(self, options: str = "rw", kind: str = "layerfs", *, code: int = OK) -> str:
        """`mount -t KIND -o OPTIONS`, which must exit with `code`; gives what it said."""
        result = self.run("mount", "-t", kind, self.storage.source, self.place, "-o", options, check=False)
        assert result.returncode == code, result.stderr
        return result.stderr

    def mounted(self) -> list[dict]:
        """What findmnt(8) sees at the place."""
        result = self.run("findmnt", "--json", "--mountpoint", self.place, check=False)
        return json.loads(result.stdout)["filesystems"] if result.stdout else []

    def daemon(self) -> int:
        return json.loads(self.run("cat", self.place / ".layerfs/status.json").stdout)["pid"]

    def umount(self) -> None:
        """umount(8), after which the daemon ends by itself."""
        pid = self.daemon()
        self.run("umount", self.place)
        assert self.mounted() == []
        wait_until(lambda: not Path(f"/proc/{pid}/mem").exists() or _is_zombie(pid), "the end of the daemon")

    def close(self) -> None:
        while self.mounted():
            self.run("umount", "-l", self.place)
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()


def _is_zombie(pid: int) -> bool:
    try:
        return "Z" in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return True


@pytest.fixture
def machine(storage: Storage, tmp_path: Path) -> Iterator[Machine]:
    storage.make_repository("r")
    machine = Machine(tmp_path, storage)
    yield machine
    machine.close()


def test_mount_and_umount(machine: Machine) -> None:
    """`mount -t layerfs` returns when the mount answers, with fstab's words ignored and ours done; umount ends it."""
    machine.mount("ro,umask=077,_netdev,nofail,noauto,user,noatime,x-systemd.automount,comment=x")
    assert machine.run("ls", machine.place).stdout == "r\n"
    assert machine.run("stat", "-c", "%a", machine.place).stdout == "700\n"
    [mounted] = machine.mounted()
    assert (mounted["fstype"], mounted["source"]) == ("fuse.layerfs", machine.storage.source.partition("?")[0])
    assert {"ro", "nosuid", "nodev"} <= {*mounted["options"].split(",")}
    machine.umount()


def test_fstab(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line of fstab by its mountpoint, and by `mount -a`, which does nothing where it is mounted."""
    # With parameters it would not be what the table of mounts shows.
    source, _, parameters = machine.storage.source.partition("?")
    if parameters:
        monkeypatch.setenv("AWS_ENDPOINT_URL", parameters.removeprefix("endpoint_url="))
    machine.fstab.write_text(
        f"{source} {machine.place} layerfs ro,_netdev,nofail,x-systemd.automount,metadata_ttl=5 0 0\n"
    )
    machine.run("mount", "-T", machine.fstab, machine.place)
    machine.umount()
    for _ in range(2):
        machine.run("mount", "-a", "-t", "layerfs", "-T", machine.fstab)
        assert len(machine.mounted()) == 1
    machine.umount()


@pytest.mark.parametrize("options", ["bogus", "ro,bogus=1", "umask=99", "metadata_ttl", "cache=disk"])
def test_options_that_are_wrong(machine: Machine, options: str) -> None:
    """Exit code 1, with the word, and no mount."""
    said = machine.mount(options, code=USAGE)
    assert options.rpartition(",")[2].partition("=")[0] in said
    assert "Traceback" not in said
    assert machine.mounted() == []


def test_what_cannot_be_mounted(machine: Machine) -> None:
    """Exit code 32, with the reason."""
    said = machine.run("mount", "-t", "layerfs", "/no/such/storage", machine.place, check=False)
    assert said.returncode == FAILED
    assert "/no/such/storage" in said.stderr
    machine.mount()
    assert "already mounted" in machine.mount(code=FAILED)
    machine.umount()


def test_remounting(machine: Machine) -> None:
    """Is refused and changes nothing: exit code 1, with the way to do it."""
    machine.mount()
    assert "unmount it and mount it again" in machine.mount("remount,ro", code=USAGE)
    assert "rw" in machine.mounted()[0]["options"].split(",")
    machine.umount()


def test_only_pretending(machine: Machine) -> None:
    """`mount -f` says whether the options are right; `-v` what would be done."""
    result = machine.run("mount", "-fv", "-t", "layerfs", machine.storage.source, machine.place)
    assert f"layerfs mount --daemon -o rw -- {shlex.quote(machine.storage.source)} {machine.place}" in result.stdout
    assert (
        machine.run("mount", "-f", "-t", "layerfs", "-o", "bogus", "s", machine.place, check=False).returncode == USAGE
    )
    assert machine.mounted() == []


def test_secrets_in_the_options(machine: Machine) -> None:
    """`env.NAME=VALUE` is in the environment of the daemon, which only its user can read, and not in its arguments."""
    machine.mount("rw,env.LAYERFS_TEST_SECRET=open-sesame")
    process = Path(f"/proc/{machine.daemon()}")
    assert b"LAYERFS_TEST_SECRET=open-sesame" in (process / "environ").read_bytes().split(b"\0")
    assert b"sesame" not in (process / "cmdline").read_bytes()
    assert "sesame" not in machine.mounted()[0]["options"]
    machine.umount()


def test_by_mount_fuse3(machine: Machine) -> None:
    """`-t fuse.layerfs` needs no /sbin/mount.layerfs: mount.fuse3 finds `layerfs` in the PATH."""
    machine.mount("rw,allow_other,_netdev", "fuse.layerfs")
    assert {"allow_other", "default_permissions", "nosuid", "nodev"} <= {*machine.mounted()[0]["options"].split(",")}
    machine.umount()


@pytest.mark.local("whose the storage is")
def test_a_daemon_without_privileges(machine: Machine, tmp_path: Path) -> None:
    """mount.fuse3 mounts as root; the daemon gets /dev/fd/N, is another user, and has no capability."""
    # A daemon that is nobody has to reach the program, the storage and nothing else.
    if not _may_pass(Path(sys.executable).parent):
        pytest.fail(f"user {NOBODY} cannot run {COMMAND}")
    for directory in (tmp_path, *tmp_path.parents):
        if directory.stat().st_uid == os.geteuid() and directory != Path("/"):
            directory.chmod(directory.stat().st_mode | 0o011)
    run("chown", "-R", f"{NOBODY}:{NOBODY}", machine.storage.root)
    options = "drop_privileges,setuid=nobody,allow_other,fsname=ours"
    said = machine.mount(options, "fuse.layerfs", code=FAILED)
    assert "without default_permissions" in said or "nodev" in said
    machine.run("umount", "-l", machine.place)
    machine.mount(f"{options},default_permissions,nosuid,nodev", "fuse.layerfs")
    status = Path(f"/proc/{machine.daemon()}/status").read_text()
    fields = dict(line.split(":\t", 1) for line in status.splitlines())
    assert {*fields["Uid"].split()} == {str(NOBODY)}
    assert [fields[name].strip("0") for name in ("CapEff", "CapPrm", "CapBnd")] == ["", "", ""]
    assert fields["NoNewPrivs"] == "1"
    [mounted] = machine.mounted()
    assert (mounted["fstype"], mounted["source"]) == ("fuse.layerfs", "ours")
    machine.run("bash", "-c", f"printf abc > {machine.place}/r/_uploads/x")
    [upload] = machine.storage.uploads("r")
    assert (upload / "data").stat().st_uid == NOBODY
    machine.umount()


def _may_pass(path: Path) -> bool:
    return all(directory.stat().st_mode & 0o001 for directory in (path, *path.parents))


@pytest.mark.parametrize("name", ["/dev/fd/0", "/dev/fd/99"])
def test_a_descriptor_that_is_no_mount(storage: Storage, name: str) -> None:
    """Is refused: only /dev/fuse will do."""
    result = run(COMMAND, "mount", storage.source, name, check=False)
    assert result.returncode == USAGE
    assert "is not /dev/fuse" in result.stderr


@pytest.mark.local("a configuration of the filesystem driver; others are in tests/functional")
def test_a_registrys_configuration(machine: Machine, tmp_path: Path) -> None:
    """`none` stands for SOURCE where `config=` says what it is."""
    file = tmp_path / "registry.yml"
    file.write_text(f"version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {machine.storage.root}\n")
    machine.run("mount", "-t", "layerfs", "none", machine.place, "-o", f"config={file}")
    assert machine.run("ls", machine.place).stdout == "r\n"
    machine.umount()


def test_a_file_of_options(machine: Machine, tmp_path: Path) -> None:
    """`config_file=` names a layerfs.toml; words win over it."""
    file = tmp_path / "layerfs.toml"
    file.write_text("[mount]\nread_only = true\numask = '077'\n")
    machine.mount(f"config_file={file},umask=027")
    assert machine.run("stat", "-c", "%a", machine.place).stdout == "750\n"
    assert "ro" in machine.mounted()[0]["options"].split(",")
    machine.umount()


@pytest.mark.local("whose the storage is")
def test_a_user_mounts_and_unmounts(machine: Machine, tmp_path: Path) -> None:
    """Where fstab says `user`, an ordinary user may: mount(8) runs the helper as him."""
    for directory in (tmp_path, *tmp_path.parents):
        if directory.stat().st_uid == os.geteuid() and directory != Path("/"):
            directory.chmod(directory.stat().st_mode | 0o011)
    run("chown", "-R", f"{NOBODY}:{NOBODY}", machine.storage.root, machine.place)
    machine.fstab.write_text(f"{machine.storage.root} {machine.place} layerfs user,noauto 0 0\n")
    machine.run("mount", "--bind", machine.fstab, "/etc/fstab")
    machine.run(
        "sh", "-c", f"mknod -m 666 {tmp_path}/namespace/fuse c 10 229 && mount -o remount,dev {tmp_path}/namespace"
    )
    machine.run("mount", "--bind", tmp_path / "namespace/fuse", "/dev/fuse")
    user = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--"]
    machine.run(*user, "mount", machine.place)
    assert machine.run(*user, "ls", machine.place).stdout == "r\n"
    [mounted] = machine.mounted()
    assert f"user_id={NOBODY}" in mounted["options"]
    machine.run(*user, "umount", machine.place)
    assert machine.mounted() == []
