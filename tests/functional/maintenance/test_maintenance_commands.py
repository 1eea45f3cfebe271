"""`layerfs check` and `layerfs purge-uploads` as a user types them: what they say and what they exit with."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from harness.commands import run
from harness.mount import COMMAND
from harness.storage import Entry, Storage, copy_tree, digest_of, snapshot

CLEAN, FAULTS, FAILED, USAGE = 0, 4, 8, 16


@pytest.fixture
def registry(storage: Storage) -> Storage:
    """A repository with one layer, and nothing wrong."""
    storage.make_repository("team/app")
    storage.put_layer("team/app", b"a layer")
    return storage


def check(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    return run(COMMAND, "check", *arguments, check=False, **options)


def purge(*arguments: object) -> subprocess.CompletedProcess[str]:
    return run(COMMAND, "purge-uploads", *arguments, check=False)


def old_upload(storage: Storage, name: str = "team/app", *, idle: int = 2 * 3600) -> str:
    """An upload of 2015 that nothing was written to for `idle` seconds."""
    upload = storage.put_upload(name, b"x" * 1000, started_at="2015-01-02T03:04:05Z")
    age(storage.upload(name, upload), idle)
    return upload


def age(directory: Path, seconds: int) -> None:
    for path in [directory, *directory.rglob("*")]:
        time = path.stat().st_mtime - seconds
        os.utime(path, (time, time))


def read_terminal(master: int) -> str:
    """All that was written to a terminal that nobody has open any more."""
    shown = b""
    with contextlib.suppress(OSError), open(master, "rb", buffering=0) as file:
        while chunk := file.read(4096):
            shown += chunk
    return shown.decode(errors="replace")


def let_everybody_in(directory: Path) -> None:
    """pytest's directories are for their owner only."""
    for parent in directory.parents:
        if str(parent).startswith("/tmp/"):
            parent.chmod(0o755)


# --- check -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [[], ["--deep"]])
def test_check_says_nothing_of_clean_storage(fixture_trees: Path, options: list[str]) -> None:
    """No output at all, exit code 0."""
    result = check(*options, fixture_trees / "storage")
    assert (result.returncode, result.stdout, result.stderr) == (CLEAN, "", "")


class Checked(NamedTuple):
    """What a check said, and the storage before and after it."""

    result: subprocess.CompletedProcess[str]
    before: dict[str, Entry]
    after: dict[str, Entry]


@pytest.fixture(scope="module")
def checked(fixture_trees: Path, tmp_path_factory: pytest.TempPathFactory) -> Checked:
    """A check of everything that is wrong."""
    root = copy_tree(fixture_trees / "damaged", tmp_path_factory.mktemp("checked") / "damaged")
    before = snapshot(root)
    return Checked(check("--deep", root), before, snapshot(root))


def test_check_prints_a_line_for_each_fault(checked: Checked, fixture_trees: Path) -> None:
    """Severity, kind and place, as grep wants them; exit code 4."""
    result = checked.result
    assert result.returncode == FAULTS, result.stderr
    lines = {" ".join(line.split()[1:]) for line in result.stdout.splitlines() if line.startswith(("error", "warning"))}
    assert set((fixture_trees / "damaged.txt").read_text().splitlines()) <= lines


def test_check_prints_json(fixture_trees: Path) -> None:
    """One object for each fault, and one that sums them up."""
    result = check("--repository", "base", "--format", "json", fixture_trees / "damaged")
    *faults, summary = [json.loads(line) for line in result.stdout.splitlines()]
    assert {fault["type"] for fault in faults} == {"fault"}
    assert (summary["type"], summary["faults"], sum(summary["kinds"].values())) == ("summary", len(faults), len(faults))
    assert summary["errors"] + summary["warnings"] == len(faults)


def test_check_sums_up_nothing_in_json(registry: Storage) -> None:
    """So that whoever parses it knows that it came to the end."""
    result = check("--format", "json", registry.root)
    assert result.returncode == CLEAN
    assert json.loads(result.stdout) == {"type": "summary", "faults": 0, "errors": 0, "warnings": 0, "kinds": {}}


def test_check_changes_nothing(checked: Checked) -> None:
    """Not a byte, whatever is wrong."""
    assert checked.before == checked.after


def test_check_of_one_repository(fixture_trees: Path) -> None:
    """Others' faults are not its own."""
    assert check("--repository", "team/app-docker", fixture_trees / "damaged").stdout == ""
    assert check("--repository", "base", "--repository", "a", fixture_trees / "damaged").returncode == FAULTS


@pytest.mark.parametrize(
    "arguments",
    [[], ["--bogus", "."], ["--jobs", "0", "."], ["--format", "xml", "."], ["/nowhere/at/all"], ["/proc"], [""]],
    ids=" ".join,
)
def test_check_of_what_cannot_be_checked(arguments: list[str]) -> None:
    """Exit code 16, and one line that says why."""
    result = check(*arguments)
    assert (result.returncode, result.stdout) == (USAGE, "")
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("layerfs: ")


@pytest.mark.parametrize("name", ["nope", "team", "../../blobs", "a\nb"])
def test_check_of_a_repository_that_is_none(registry: Storage, name: str) -> None:
    """Exit code 16 as well: a typing error must not look like a clean bill."""
    result = check("--repository", name, registry.root)
    assert result.returncode == USAGE
    assert len(result.stderr.splitlines()) == 1


def test_check_says_what_it_could_not_look_at(registry: Storage) -> None:
    """A directory that may not be read is no clean one: exit code 8."""
    let_everybody_in(registry.root)
    (registry.repository("team/app") / "_layers").chmod(0)
    result = check("--format", "json", "--repository", "team/app", registry.root, user=65534, group=65534)
    found = {json.loads(line).get("kind") for line in result.stdout.splitlines()}
    assert (result.returncode, found) == (FAILED, {"unreadable", None})


def test_check_shows_bytes_on_a_terminal(registry: Storage) -> None:
    """While blobs are read: how many, of how many, how fast, how long still. Faults stay on standard output."""
    registry.put_link("team/app", digest_of(b"gone"))
    master, slave = pty.openpty()
    result = subprocess.run(
        [COMMAND, "check", "--deep", str(registry.root)],
        stdout=subprocess.PIPE,
        stderr=slave,
        text=True,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "120"},
        timeout=60,
        check=False,
    )
    os.close(slave)
    shown = read_terminal(master)
    assert "dangling-layer-link" in result.stdout
    assert "\x1b" not in result.stdout
    assert "contents" in shown


def test_check_escapes_what_storage_says(registry: Storage) -> None:
    """A link can hold anything; a terminal must not act on it."""
    registry.put_link(
        "team/app",
        digest_of(b"evil"),
        b"\x1b]0;owned\x07 and more than enough to be no link in the making, which would be read again",
    )
    result = check(registry.root)
    assert result.returncode == FAULTS
    assert "\x1b" not in result.stdout


def test_check_can_be_interrupted(fixture_trees: Path) -> None:
    """Ctrl-C: exit code 32, as fsck(8) has it, and no summary, so that half a check is not taken for a whole one."""
    arguments = [COMMAND, "check", "--format", "json", str(fixture_trees / "damaged")]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        # With the first fault out, it waits for two seconds before it confirms the next ones.
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (32, "layerfs: interrupted\n")
    assert "summary" not in output


def test_check_ends_with_its_reader(fixture_trees: Path) -> None:
    """`layerfs check … | head -1` says nothing more."""
    command = f"{COMMAND} check {fixture_trees / 'damaged'} | head -1; exit ${{PIPESTATUS[0]}}"
    result = run("bash", "-c", command, check=False)
    assert (result.returncode, result.stderr) == (128 + signal.SIGPIPE, "")


# --- purge-uploads -------------------------------------------------------------------------------------------------


def test_purge_deletes_old_uploads(registry: Storage) -> None:
    """Each is reported with repository, id, age and size, then the sum."""
    upload = old_upload(registry)
    result = purge(registry.root)
    assert (result.returncode, result.stderr) == (0, "")
    _head, row, total = result.stdout.splitlines()
    assert (row.split()[0], row.split()[2:]) == (upload, ["1000", "team/app"])
    assert total == "1 upload deleted, 1000 bytes"
    assert registry.uploads("team/app") == []


@pytest.mark.parametrize("option", ["--dry-run", "-n"])
def test_a_dry_run_changes_nothing(registry: Storage, option: str) -> None:
    """And says what would be deleted."""
    upload = old_upload(registry)
    before = snapshot(registry.root)
    result = purge(option, registry.root)
    assert result.returncode == 0
    assert upload in result.stdout
    assert result.stdout.splitlines()[-1] == "1 upload would be deleted, 1000 bytes"
    assert snapshot(registry.root) == before


def test_purge_prints_json(registry: Storage) -> None:
    """One object for each upload, and one that sums them up; the age in seconds."""
    upload = old_upload(registry)
    first, summary = [json.loads(line) for line in purge("--format", "json", registry.root).stdout.splitlines()]
    assert (first["type"], first["upload"], first["repository"], first["size"]) == ("upload", upload, "team/app", 1000)
    assert first["age"] > 10 * 365 * 86400
    assert summary == {"type": "summary", "uploads": 1, "size": 1000, "failed": 0, "dryRun": False}


@pytest.mark.parametrize(
    ("text", "purged"), [("7d", True), ("168h", True), ("9d", False), ("1w1d1h", False), ("0", True)]
)
def test_the_age_is_written_as_people_write_it(registry: Storage, text: str, purged: bool) -> None:
    """Weeks, days, hours, minutes, seconds, and sums of them."""
    upload = registry.put_upload("team/app", b"x", started_at=None)
    age(registry.upload("team/app", upload), 8 * 86400)
    assert purge("--older-than", text, registry.root).returncode == 0
    assert (registry.uploads("team/app") == []) is purged


@pytest.mark.parametrize("text", ["", "7", "-1h", "1y", "h", "1h 2m", "1e9d", "9" * 400 + "d", "nan"])
def test_an_age_that_is_none_is_refused(registry: Storage, text: str) -> None:
    """Exit code 1, nothing deleted: `7` could be days or hours."""
    old_upload(registry)
    result = purge(f"--older-than={text}", registry.root)
    assert (result.returncode, len(result.stderr.splitlines())) == (1, 1)
    assert len(registry.uploads("team/app")) == 1


def test_purge_says_what_it_kept(registry: Storage) -> None:
    """One that was just written to, on standard error, with the reason."""
    upload = old_upload(registry, idle=0)
    result = purge(registry.root)
    assert (result.returncode, result.stdout) == (0, "0 uploads deleted, 0 bytes\n")
    assert upload in result.stderr
    assert len(registry.uploads("team/app")) == 1


def test_purge_of_what_is_no_registry() -> None:
    """Exit code 1."""
    assert purge("/nowhere/at/all").returncode == 1


def test_purge_where_nothing_may_be_deleted(registry: Storage) -> None:
    """Exit code 1, and why."""
    upload = old_upload(registry)
    let_everybody_in(registry.root)
    result = run(COMMAND, "purge-uploads", registry.root, check=False, user=65534, group=65534)
    assert result.returncode == 1
    assert upload in result.stderr
    assert len(registry.uploads("team/app")) == 1


@pytest.mark.parametrize("options", [[], ["--dry-run"]], ids=" ".join)
@pytest.mark.parametrize("output_format", ["table", "json"])
def test_purge_goes_on_after_what_it_may_not_look_at(registry: Storage, options: list[str], output_format: str) -> None:
    """That one is named, all others go, and the exit code says that it was not everything."""
    uploads = sorted(old_upload(registry) for _ in range(3))
    nobodys = registry.upload("team/app", uploads[1])
    let_everybody_in(registry.root)
    for path in registry.root.rglob("*"):
        os.chown(path, 65534, 65534)
    os.chown(nobodys, 0, 0)
    nobodys.chmod(0o700)
    arguments = [COMMAND, "purge-uploads", *options, "--format", output_format, registry.root]
    result = run(*arguments, check=False, user=65534, group=65534, extra_groups=[])
    assert result.returncode == 1
    if output_format == "json":
        *told, summary = [json.loads(line) for line in result.stdout.splitlines()]
        assert [(each["type"], each["upload"]) for each in told] == [
            ("failed", uploads[1]),
            ("upload", uploads[0]),
            ("upload", uploads[2]),
        ]
        assert "permission denied" in told[0]["reason"].lower()
        assert (summary["uploads"], summary["failed"], result.stderr) == (2, 1, "")
    else:
        _head, *rows, summary = result.stdout.splitlines()
        assert [row.split()[0] for row in rows] == [uploads[0], uploads[2]]
        assert summary.endswith("deleted, 2000 bytes; 1 failed")
        assert f"cannot purge {uploads[1]} in team/app: " in result.stderr
        assert result.stderr.count("\n") == 1
    assert len(registry.uploads("team/app")) == (3 if options else 1)


def test_purge_leaves_what_a_mount_writes(registry: Storage, mounts: Callable[..., object]) -> None:
    """An upload that is open in a mount is not old, whatever is said of its age."""
    mount = mounts(registry)
    path = mount.path / "team/app/_uploads/layer.tar"
    with path.open("wb") as file:
        file.write(b"half")
        file.flush()
        os.fsync(file.fileno())
        purge("--older-than", "0", registry.root)
        file.write(b" whole")
    assert path.read_bytes() == b"half whole"


def test_check_of_what_is_being_used(registry: Storage, mounts: Callable[..., object]) -> None:
    """A mount with an upload under way leaves nothing that looks wrong."""
    mount = mounts(registry)
    with (mount.path / "team/app/_uploads/layer.tar").open("wb") as file:
        file.write(b"half")
        file.flush()
        os.fsync(file.fileno())
        result = check("--deep", registry.root)
    assert (result.returncode, result.stdout) == (CLEAN, "")
