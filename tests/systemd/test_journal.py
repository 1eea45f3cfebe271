"""The log of a unit in a running systemd's own journal."""

from __future__ import annotations

import json

from harness.commands import wait_until
from harness.systemd import Machine, Service


def entries(machine: Machine, *matches: str) -> list[dict]:
    said = machine.run("journalctl", "--output=json", "--no-pager", *matches).stdout
    return [json.loads(line) for line in said.splitlines() if line.startswith("{")]


def test_what_failed_can_be_searched_for(machine: Machine) -> None:
    """By operation and errno; the entry belongs to the unit, has a priority, and its numbers are fields."""
    service = Service(machine, "journal").start()
    failed = machine.run("mkdir", f"{service.place}/Upper", check=False)
    assert failed.returncode == 1
    matches = (f"_SYSTEMD_UNIT={service.unit}", "LAYERFS_OPERATION=mkdir", "LAYERFS_ERRNO=EINVAL")
    wait_until(lambda: entries(machine, *matches), "the entry is in the journal")
    (entry,) = entries(machine, *matches)
    assert (entry["LAYERFS_PATH"], entry["SYSLOG_IDENTIFIER"], entry["PRIORITY"]) == ("Upper", "layerfs", "6")
    assert entry["MESSAGE"].startswith("layerfs.operations: mkdir 'Upper': EINVAL: ")
    assert {"LAYERFS_REQUEST", "LAYERFS_INODE", "LAYERFS_DURATION", "LOGGER", "CODE_FILE"} <= entry.keys()
    machine.systemctl("stop", service.unit)
