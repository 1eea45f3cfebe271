"""The units under a running systemd: starting, killing, hanging, reloading, stopping while in use, fstab, timers."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from harness.commands import run, wait_until
from harness.systemd import Machine, Service

UNITS = Path(__file__).parents[2] / "systemd"
MIB = 1 << 20


# --- the files -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unit", sorted(path.name for path in UNITS.iterdir()))
def test_the_units_are_valid(unit: str) -> None:
    """systemd finds nothing to say about any of them."""
    result = run("systemd-analyze", "verify", UNITS / unit)
    assert (result.stdout, result.stderr) == ("", "")


@pytest.mark.parametrize("unit", sorted(path.name for path in UNITS.glob("*.service")))
def test_the_services_are_hardened(unit: str) -> None:
    """systemd's own score is 4.5 at the most; a little more where mount.fuse3 gives all rights away afterwards."""
    threshold = 46 if "unprivileged" in unit else 45
    run("systemd-analyze", "security", "--offline=true", f"--threshold={threshold}", UNITS / unit)


# --- layerfs@.service ----------------------------------------------------------------------------------------------


def test_started_means_mounted(machine: Machine) -> None:
    """`systemctl start` returns when everybody sees the mount; status says what it serves; stop leaves nothing."""
    service = Service(machine, "started").start()
    assert service.answers()
    assert machine.show(service.unit, "StatusText").startswith("serving ")
    assert {*_capabilities(service.process)} <= {"CAP_SYS_ADMIN", *_FILES}
    machine.systemctl("stop", service.unit)
    assert machine.mounted(service.place) == []
    assert machine.show(service.unit, "Result") == "success"


def test_what_waits_for_a_mount_finds_it(machine: Machine) -> None:
    """A service that comes after the mount sees what is in it, whenever it was started."""
    service = Service(machine, "ordered")
    machine.write(
        "/etc/systemd/system/consumer.service",
        f"[Unit]\nRequires={service.unit}\nAfter={service.unit}\n"
        f"[Service]\nType=oneshot\nExecStart=/usr/bin/test -d {service.place}/r/_layers\n",
    )
    machine.systemctl("daemon-reload")
    machine.systemctl("start", "consumer")
    machine.systemctl("stop", service.unit)


def test_kill_9(machine: Machine) -> None:
    """The mount is back within seconds, with every byte that fsync returned for."""
    service = Service(machine, "killed").start()
    upload = f"{service.place}/r/_uploads/x"
    machine.run("dd", "if=/dev/urandom", f"of={upload}", "bs=1M", "count=3", "conv=fsync")
    killed = service.kill(signal.SIGKILL)
    wait_until(lambda: service.is_back(killed), "the mount to be back")
    assert machine.run("stat", "-c", "%s", upload).stdout == f"{3 * MIB}\n"
    assert machine.mounted(service.place) == ["fuse.layerfs"]
    machine.systemctl("stop", service.unit)


@pytest.mark.soak
def test_killed_again_and_again(machine: Machine) -> None:
    """Thirty times in the middle of one upload, which goes on where stat says, and is whole in the end."""
    service = Service(machine, "tormented")
    machine.write(f"/etc/systemd/system/{service.unit}.d/limit.conf", "[Unit]\nStartLimitBurst=100\n")
    machine.systemctl("daemon-reload")
    service.start()
    source = machine.directory / "torment"
    source.write_bytes(os.urandom(32 * MIB))
    target = f"{service.place}/r/_uploads/x"
    script = f"tail -c +$(($(stat -c %s {target} 2> /dev/null || echo 0) + 1)) {source} >> {target}"
    for _ in range(30):
        with subprocess.Popen(machine.command("sh", "-c", script), stderr=subprocess.DEVNULL):
            killed = service.kill(signal.SIGKILL)
        wait_until(lambda killed=killed: service.is_back(killed), "the mount to be back")
    machine.run("sh", "-c", script)
    digest = machine.run("sha256sum", source).stdout.split()[0]
    machine.run("mv", target, f"{service.place}/r/_layers/sha256:{digest}")
    assert machine.run("sha256sum", f"{service.place}/r/_layers/sha256:{digest}").stdout.split()[0] == digest
    machine.systemctl("stop", service.unit)


def test_a_daemon_that_hangs(machine: Machine) -> None:
    """The watchdog ends a daemon that does not answer, and the mount is back."""
    service = Service(machine, "hung")
    machine.write(
        f"/etc/systemd/system/{service.unit}.d/watchdog.conf", "[Service]\nWatchdogSec=2\nTimeoutAbortSec=1\n"
    )
    machine.systemctl("daemon-reload")
    service.start()
    first = service.process
    # Signs of life come, one each second: it outlives the watchdog's time.
    seen: set[str] = set()
    wait_until(
        lambda: seen.add(machine.show(service.unit, "WatchdogTimestampMonotonic")) or len(seen) > 3, "signs of life"
    )
    assert service.process == first
    stopped = service.kill(signal.SIGSTOP)
    wait_until(lambda: service.process not in (None, stopped), "another daemon", seconds=20)
    wait_until(service.answers, "the mount to be back")
    assert "watchdog" in machine.journal(service.unit).lower()
    machine.systemctl("stop", service.unit)


def test_reload(machine: Machine) -> None:
    """`systemctl reload` makes the new options hold; it is the same daemon."""
    service = Service(machine, "reloaded", LAYERFS_CONFIG_FILE="/etc/layerfs/reloaded.toml")
    machine.write("/etc/layerfs/reloaded.toml", "")
    service.start()
    daemon = service.process
    assert machine.status(service.place)["allow_delete"] is False
    machine.write("/etc/layerfs/reloaded.toml", "[mount]\nallow_delete = true\n")
    machine.systemctl("reload", service.unit)
    wait_until(lambda: machine.status(service.place)["allow_delete"] is True, "the new options")
    assert machine.is_active(service.unit)
    assert service.process == daemon
    machine.systemctl("stop", service.unit)


def test_stopped_in_the_middle_of_a_cp(machine: Machine) -> None:
    """`cp` finishes or fails; what it was told is written is there, and can be continued after the next start."""
    service = Service(machine, "drained").start()
    source = machine.directory / "large"
    source.write_bytes(os.urandom(64 * MIB))
    target = f"{service.place}/r/_uploads/large"
    with subprocess.Popen(machine.command("cp", source, target), stderr=subprocess.PIPE) as copy:
        wait_until(
            lambda: any(data.stat().st_size > 2 * MIB for data in service.storage.root.rglob("_uploads/*/data")),
            "the copy to be under way",
        )
        machine.systemctl("stop", service.unit)
        copy.wait(30)
    assert machine.mounted(service.place) == []
    assert machine.show(service.unit, "Result") == "success"
    [data] = service.storage.root.rglob("_uploads/*/data")
    kept = data.read_bytes()
    assert source.read_bytes().startswith(kept)
    assert copy.returncode != 0 or len(kept) == 64 * MIB
    service.start()
    machine.run("sh", "-c", f"tail -c +$(($(stat -c %s {target}) + 1)) {source} >> {target}")
    assert machine.run("sha256sum", source).stdout.split()[0] == machine.run("sha256sum", data).stdout.split()[0]
    machine.systemctl("stop", service.unit)


#: Has no end of its own: it is the stop that ends it, and it says how far it came.
ENDLESS_WRITER = """
import os, sys
written, fd = 0, os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
try:
    while True:
        written += os.write(fd, os.urandom(16384))
except OSError:
    print(written)
"""


def test_what_was_acknowledged_before_a_stop(machine: Machine) -> None:
    """Every byte that write(2) returned for is in the storage, although the file was never closed well."""
    service = Service(machine, "acknowledged").start()
    target = f"{service.place}/r/_uploads/x"
    command = machine.command("python3", "-c", ENDLESS_WRITER, target)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        wait_until(
            lambda: any(data.stat().st_size > MIB for data in service.storage.root.rglob("_uploads/*/data")),
            "some bytes in storage",
        )
        machine.systemctl("stop", service.unit)
        said, _ = writer.communicate(timeout=30)
    acknowledged = int(said)
    [data] = service.storage.root.rglob("_uploads/*/data")
    assert data.stat().st_size >= acknowledged > MIB


def test_a_mistake_in_the_configuration(machine: Machine) -> None:
    """Is not tried again, and the journal says what it is."""
    service = Service(machine, "wrong", OPTIONS="--umask 9")
    assert machine.systemctl("start", service.unit, check=False).returncode != 0
    assert machine.show(service.unit, "NRestarts") == "0"
    assert "invalid umask '9'" in machine.journal(service.unit)
    machine.systemctl("reset-failed", service.unit)


def test_credentials(machine: Machine) -> None:
    """A file that systemd hands over is read, and the mount is still seen by everybody."""
    service = Service(machine, "secret", SOURCE="none")
    storage = f"version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {service.source}\n"
    machine.write("/root/registry.yml", storage)
    machine.run("chmod", "600", "/root/registry.yml")
    machine.write(
        f"/etc/systemd/system/{service.unit}.d/secret.conf",
        "[Service]\nLoadCredential=registry.yml:/root/registry.yml\nEnvironment=OPTIONS=--config=%d/registry.yml\n",
    )
    machine.systemctl("daemon-reload")
    service.start()
    assert service.answers()
    machine.systemctl("stop", service.unit)


def test_without_privileges(machine: Machine) -> None:
    """The daemon has no capability and is another user; it is watched, reloaded, and comes back after kill -9."""
    service = Service(machine, "plain", kind="layerfs-unprivileged", MOUNT_USER="daemon")
    run("chown", "-R", "daemon", service.storage.root)
    service.start()
    assert service.answers()
    fields = dict(line.split(":\t", 1) for line in (service.process / "status").read_text().splitlines())
    assert int(fields["CapEff"], 16) == int(fields["CapPrm"], 16) == int(fields["CapBnd"], 16) == 0
    assert "0" not in fields["Uid"].split()
    machine.systemctl("reload", service.unit)
    killed = service.kill(signal.SIGKILL)
    wait_until(lambda: service.is_back(killed), "the mount to be back")
    machine.systemctl("stop", service.unit)
    assert machine.mounted(service.place) == []


# --- fstab, mount and automount units -------------------------------------------------------------------------------


def test_a_line_of_fstab(machine: Machine) -> None:
    """With x-systemd.automount it is mounted when somebody looks, unmounted when nobody does, and mounted again."""
    service = Service(machine, "fstab")
    options = "ro,_netdev,nofail,x-systemd.automount,x-systemd.idle-timeout=1,x-systemd.mount-timeout=30"
    machine.write("/etc/fstab", f"{service.source} {service.place} layerfs {options} 0 0\n")
    machine.systemctl("daemon-reload")
    machine.systemctl("start", "mnt-fstab.automount")
    for _ in range(2):
        assert machine.mounted(service.place) == ["autofs"]
        assert machine.run("ls", service.place).stdout == "r\n"
        assert machine.mounted(service.place) == ["autofs", "fuse.layerfs"]
        wait_until(lambda: machine.mounted(service.place) == ["autofs"], "the end of an idle mount", seconds=20)
    machine.systemctl("stop", "mnt-fstab.automount")
    machine.write("/etc/fstab", "")
    machine.systemctl("daemon-reload")
    assert machine.mounted(service.place) == []


def test_a_pair_of_units(machine: Machine) -> None:
    """`install-units --mount` writes a mount and an automount that work; a dash in the name is none of the path."""
    service = Service(machine, "a-pair")
    machine.run("layerfs", "install-units", "--mount", service.source, service.place, "-o", "umask=077")
    machine.systemctl("daemon-reload")
    unit = machine.run("systemd-escape", "--path", service.place).stdout.strip()
    machine.systemctl("start", f"{unit}.automount")
    assert machine.run("stat", "-c", "%a", f"{service.place}/r").stdout == "700\n"
    assert machine.is_active(f"{unit}.mount")
    machine.systemctl("stop", f"{unit}.automount", f"{unit}.mount")
    assert machine.mounted(service.place) == []


# --- timers -----------------------------------------------------------------------------------------------------


def test_purging(machine: Machine) -> None:
    """The service deletes old uploads of a storage, and leaves new ones; its timer is accepted."""
    service = Service(machine, "purged", LAYERFS_OLDER_THAN="7d")
    uploads = service.storage.root / "docker/registry/v2/repositories/r/_uploads"
    for name, begun in (("old", "2020-01-01T00:00:00Z"), ("new", time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))):
        (uploads / name).mkdir(parents=True)
        (uploads / name / "startedat").write_text(begun)
        (uploads / name / "data").write_bytes(b"x")
    for path in (*(uploads / "old").iterdir(), uploads / "old"):
        os.utime(path, (0, 0))
    machine.systemctl("start", "layerfs-purge@purged.service")
    assert [path.name for path in uploads.iterdir()] == ["new"]
    machine.systemctl("start", "layerfs-purge@purged.timer")
    assert machine.is_active("layerfs-purge@purged.timer")
    machine.systemctl("stop", "layerfs-purge@purged.timer")


def test_checking(machine: Machine) -> None:
    """The service succeeds where nothing is wrong, and fails with what is."""
    service = Service(machine, "checked")
    service.storage.put_layer("r", b"abc")
    machine.systemctl("start", "layerfs-check@checked.service")
    blobs = service.storage.root / "docker/registry/v2/blobs"
    shutil.rmtree(next(blobs.glob("sha256/*/*")))
    unit = "layerfs-check@checked.service"
    assert machine.systemctl("start", unit, check=False).returncode != 0
    assert machine.show(unit, "ExecMainStatus") == "4"
    assert "dangling-layer-link" in machine.journal(unit)
    machine.systemctl("reset-failed", unit)


# --- helpers --------------------------------------------------------------------------------------------------------

#: What the daemon may do with files of others.
_FILES = {"CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_CHOWN", "CAP_FOWNER", "CAP_LEASE"}


def _capabilities(process: Path) -> list[str]:
    effective = next(line for line in (process / "status").read_text().splitlines() if line.startswith("CapEff:"))
    decoded = run("capsh", f"--decode={effective.split()[1]}").stdout.strip()
    return [name.upper() for name in decoded.partition("=")[2].split(",")]


# --- the documents ---------------------------------------------------------------------------------------------------


def blocks(section: str) -> list[str]:
    """What a section of docs/operating.md has to be typed."""
    text = (UNITS.parent / "docs/operating.md").read_text()
    lines = text.partition(f"\n## {section}\n")[2].partition("\n## ")[0].splitlines()
    indented = "\n".join(line.removeprefix("    ") if not line or line.startswith("    ") else "\0" for line in lines)
    return [block.strip("\n") for block in indented.split("\0") if block.strip()]


@pytest.fixture
def documented_storage(machine: Machine) -> None:
    """The storage that the documents speak of, of the user that they speak of."""
    machine.run("mkdir", "-p", "/var/lib/docker-registry/docker/registry/v2/repositories/r/_layers", "/mnt/registry")
    machine.run("sh", "-c", "id registry || useradd --system registry")
    machine.run("chown", "-R", "registry", "/var/lib/docker-registry")


def test_systemd_as_documented(machine: Machine, documented_storage: None) -> None:
    """The first block of the section does all of it."""
    machine.run("bash", "-euc", blocks("systemd")[0])
    assert machine.run("ls", "/mnt/registry").stdout == "r\n"
    assert machine.is_active("layerfs@main")
    assert machine.systemctl("is-enabled", "layerfs@main").stdout == "enabled\n"
    machine.systemctl("disable", "--now", "layerfs@main")


def test_mount_as_documented(machine: Machine, documented_storage: None) -> None:
    """mount(8), and the daemon without privileges; fstab's line is accepted."""
    section = blocks("mount(8) and fstab")
    machine.run("bash", "-euc", section[0].replace("umount", "ls /mnt/registry && umount"))
    [unprivileged] = (block for block in section if "drop_privileges" in block)
    machine.run("bash", "-euc", unprivileged)
    assert machine.run("ls", "/mnt/registry").stdout == "r\n"
    machine.run("umount", "/mnt/registry")
    [line] = (block for block in section if block.startswith("s3://"))
    machine.write("/etc/fstab", f"{line}\n")
    said = machine.run("findmnt", "--verify", "--tab-file", "/etc/fstab", check=False).stderr
    assert "0 parse errors, 0 errors" in said
    machine.write("/etc/fstab", "")


def test_options_as_documented(machine: Machine) -> None:
    """The example of a configuration file is one, and means what it says."""
    [example] = (block for block in blocks("Options from variables and a file") if block.startswith("[mount]"))
    machine.write("/etc/layerfs/layerfs.toml", example)
    shown = machine.run("layerfs", "config", "--mountpoint", "/mnt/registry").stdout
    rows = {tuple(line.split()[:2]): line.split()[2:] for line in shown.splitlines()}
    assert rows["mount", "metadata_ttl"] == ["5", "/etc/layerfs/layerfs.toml"]
    assert rows["mount", "log_format"] == ["json", "/etc/layerfs/layerfs.toml"]
    assert rows["check", "jobs"] == ["8", "/etc/layerfs/layerfs.toml"]
    machine.run("rm", "/etc/layerfs/layerfs.toml")


def test_a_file_that_only_root_may_read(machine: Machine) -> None:
    """Is root's: other users' commands work without it, and `layerfs config` says so."""
    machine.write("/etc/layerfs/layerfs.toml", "[ls]\nformat = 'json'\n")
    machine.run("chmod", "600", "/etc/layerfs/layerfs.toml")
    service = Service(machine, "readers")
    user = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", "--"]
    assert machine.run("layerfs", "ls", service.source).stdout == '{"repository": "r"}\n'
    assert machine.run(*user, "layerfs", "ls", service.source).stdout == "r\n"
    assert "left out" in machine.run(*user, "layerfs", "config", "ls").stderr
    machine.run("rm", "/etc/layerfs/layerfs.toml")
