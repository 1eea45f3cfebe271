"""`purge-uploads` beside the purge that a running registry does itself, each on its own copy of one storage."""

from __future__ import annotations

import os
import subprocess
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from harness.commands import opened, run
from harness.mount import COMMAND
from harness.storage import Storage, copy_tree

#: A registry waits a random number of minutes, below 60, before it begins. So it is started until it need not wait:
#: 60 times on average. That so many times are not enough happens once in 10**12.
MOST_STARTS = 1700

_CONFIG = """\
version: 0.1
log: {{level: info}}
storage:
  filesystem: {{rootdirectory: {root}}}
  maintenance: {{uploadpurging: {{enabled: true, age: 168h, interval: 24h, dryrun: {dry_run}}}}}
http: {{addr: "127.0.0.1:0"}}
"""

DAY = 24 * 3600


def purge_as_a_registry(root: Path, config: Path, *, dry_run: bool = False) -> str:
    """Has Debian's docker-registry do its own purge of what is older than a week; returns what it logged of it."""
    config.write_text(_CONFIG.format(root=root, dry_run="true" if dry_run else "false"))
    for _ in range(MOST_STARTS):
        log = _start(config)
        if log:
            return log
    pytest.fail("no registry has begun to purge at once")


def _start(config: Path) -> str:
    """The log of a registry that has begun to purge at once, until it has ended; of any other nothing."""
    with subprocess.Popen(
        ["docker-registry", "serve", config], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        log = ""
        for line in process.stdout:
            if "Starting upload purge in" not in line:
                log += line
            elif "purge in 0s" not in line:
                # That is the next one, when this is done; or it is the first, and nothing was done.
                break
        process.kill()
    return log if "PurgeUploads starting" in log else ""


def ago(days: float) -> str:
    return (datetime.now(UTC) - timedelta(days=days)).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass(frozen=True)
class Upload:
    """An upload, and who removes it. `idle` is how long ago its files were changed, in days."""

    name: str
    upload_id: str
    started_at: str | None
    registry: bool
    ours: bool
    data: bytes | None = b"some bytes"
    idle: float = 9
    repository: str = "team/app"

    @property
    def key(self) -> tuple[str, str]:
        return self.repository, self.upload_id


def uuid(number: int) -> str:
    return f"f81d4fae-7dec-4d0a-a765-{number:012}"


OPEN = uuid(20)

UPLOADS = [
    # What a registry removes, and so do we.
    Upload("old", uuid(1), ago(8), True, True),
    Upload("very old", uuid(2), "2001-02-03T04:05:06Z", True, True),
    Upload("old, with an offset", uuid(3), "2001-02-03T04:05:06+02:00", True, True),
    Upload("old, with a fraction", uuid(4), "2001-02-03T04:05:06.123456789Z", True, True),
    Upload("old, without data", uuid(5), ago(8), True, True, data=None),
    Upload("old, a UUID in capitals", uuid(6).upper(), ago(8), True, True),
    Upload("a little too old", uuid(7), ago(7.01), True, True),
    # What both keep.
    Upload("young", uuid(10), ago(1), False, False, idle=0),
    Upload("young, idle ever since", uuid(11), ago(6.9), False, False, idle=6.9),
    Upload("of the future", uuid(12), ago(-3), False, False, idle=0),
    Upload("without startedat, young", uuid(13), None, False, False, idle=6),
    Upload("ghost, young", uuid(14), None, False, False, data=None, idle=1),
    # What a registry removes while somebody writes to it.
    Upload("old, open for writing", OPEN, ago(8), True, False),
    Upload("old, written a minute ago", uuid(21), ago(8), True, False, idle=1 / 1440),
    # What no registry ever removes.
    Upload("without startedat", uuid(30), None, False, True),
    Upload("startedat is no time", uuid(31), "yesterday", False, True),
    Upload("startedat with a newline", uuid(32), "2001-02-03T04:05:06Z\n", False, True),
    Upload("startedat is empty", uuid(33), "", False, True),
    Upload("ghost", uuid(34), None, False, True, data=None),
    Upload("an id that is no UUID", "my-upload", ago(8), False, True),
    # This one is removed by registries since 3.0.
    Upload("a UUID without dashes", "0123456789abcdef0123456789abcdef", ago(8), False, True),
    # The same id in two repositories is one to a registry, which removes what it finds last.
    Upload("first of two", uuid(40), ago(8), False, True, repository="alpha"),
    Upload("last of two", uuid(40), ago(8), True, True, repository="zulu"),
    Upload("old, first of two", uuid(41), ago(8), False, True, repository="alpha"),
    Upload("young, last of two", uuid(41), ago(1), False, False, repository="zulu"),
    # And whose `startedat` may be that of the other one.
    Upload("first of two, lends its time", uuid(42), ago(8), False, True, repository="alpha"),
    Upload("young, last of two, borrows a time", uuid(42), None, True, False, repository="zulu", idle=1),
]


def make(storage: Storage) -> None:
    for name in sorted({upload.repository for upload in UPLOADS}):
        storage.make_repository(name)
    for upload in UPLOADS:
        storage.put_upload(
            upload.repository,
            upload.data,
            upload_id=upload.upload_id,
            started_at=upload.started_at,
            states={"0": b"a hash state"},
        )
        changed = time.time() - upload.idle * DAY
        for path in storage.upload(upload.repository, upload.upload_id).rglob("*"):
            os.utime(path, (changed, changed))


def left(storage: Storage) -> set[str]:
    """Which of the uploads have anything left."""
    return {
        upload.name
        for upload in UPLOADS
        if any(path.is_file() for path in storage.upload(upload.repository, upload.upload_id).rglob("*"))
    }


def test_against_the_registrys_own_purge(storage: Storage, tmp_path: Path) -> None:
    """All that it removes we do, but what is being written; and beyond that, exactly what it never does."""
    make(storage)
    theirs = Storage(copy_tree(storage.root, tmp_path / "theirs"))
    log = purge_as_a_registry(theirs.root, tmp_path / "config.yml")
    with opened(storage.upload("team/app", OPEN) / "data", os.O_WRONLY | os.O_APPEND):
        result = run(COMMAND, "purge-uploads", storage.root)
    assert "Num deleted=" in log
    assert left(theirs) == {upload.name for upload in UPLOADS if not upload.registry}, log
    assert left(storage) == {upload.name for upload in UPLOADS if not upload.ours}, result.stdout
    kept = {line.split()[2] for line in result.stderr.splitlines()}
    assert kept == {OPEN, uuid(21)}


def test_against_the_registrys_own_dry_run(storage: Storage, tmp_path: Path) -> None:
    """Both say the same that they do, and leave everything."""
    make(storage)
    before = left(storage)
    log = purge_as_a_registry(storage.root, tmp_path / "config.yml", dry_run=True)
    said = run(COMMAND, "purge-uploads", "--dry-run", storage.root).stdout
    assert left(storage) == before
    rows = {(line.split()[-1], line.split()[0]) for line in said.splitlines()[1:-1]}
    # Nobody has it open this time.
    assert rows == {upload.key for upload in UPLOADS if upload.ours or upload.upload_id == OPEN}
    assert all(f"{upload.repository}/_uploads/{upload.upload_id}" in log for upload in UPLOADS if upload.registry)
