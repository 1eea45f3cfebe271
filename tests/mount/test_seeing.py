"""What a mount says of itself: its own files, `status`, `top`, metrics; and what is said of one that says nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
from harness.bounded import attempt
from harness.commands import opened, run, wait_until
from harness.fixture import free_port
from harness.mount import COMMAND, Mount
from harness.repository import MountedRepository
from harness.storage import Storage, digest_of
from harness.stores import Store
from harness.strace import delay
from prometheus_client.parser import text_string_to_metric_families

DATA = b"some bytes" * 10_000
OK, USAGE, FAILED = 0, 1, 32

#: What they are called in figures, as distribution does.
DRIVERS = {"local": "filesystem", "s3": "s3", "azure": "azure", "gcs": "gcs"}


@pytest.fixture
def stored(storage: Storage) -> Storage:
    """A storage with one layer."""
    storage.make_repository("app")
    storage.put_layer("app", DATA)
    return storage


def control(mount: Mount, name: str) -> str:
    return (mount.path / ".layerfs" / name).read_text()


def stats(mount: Mount) -> dict[str, float]:
    return {name: float(value) for name, value in (line.split(" ") for line in control(mount, "stats").splitlines())}


def status(*argv: object, code: int | None = None) -> dict[str, dict]:
    """What `layerfs status` says, by mountpoint. Of all mounts, others may have some that are not well."""
    result = run(COMMAND, "status", "--format", "json", *argv, check=False)
    assert result.returncode in ((OK, FAILED) if code is None else (code,)), result.stderr
    return {each["mountpoint"]: each for each in json.loads(result.stdout)["mounts"]}


def read_anew(path: Path) -> None:
    """Reads all of a file, past the kernel's own memory of it."""
    with opened(path, os.O_RDONLY) as descriptor:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        while os.read(descriptor, 1 << 16):
            pass


def failing(mount: Mount) -> None:
    with mount.refused(1), opened(mount.path / "app/_layers" / digest_of(DATA), os.O_WRONLY):
        pass


# --- its own files ---------------------------------------------------------------------------------------------------


def test_its_files(stored: Storage, mounts: Callable[..., Mount]) -> None:
    """Are not listed, but there; nobody can write them."""
    mount = mounts(stored)
    assert ".layerfs" not in os.listdir(mount.path)
    names = ["accesslog", "errors", "missing", "stats", "status.json"]
    assert sorted(os.listdir(mount.path / ".layerfs")) == names
    for name in names:
        with mount.refused(1, 13), opened(mount.path / ".layerfs" / name, os.O_WRONLY):
            pass
    assert (mount.path / ".layerfs/accesslog").stat().st_mode & 0o777 == 0o400


def test_bytes_and_operations_are_counted(stored: Storage, mounts: Callable[..., Mount], store: Store) -> None:
    """As many as there were: in `stats` and in `status.json`."""
    mount = mounts(stored)
    before = stats(mount)
    read_anew(mount.path / "app/_layers" / digest_of(DATA))
    MountedRepository(mount, stored, "app").put_layer(b"x" * 12_345)
    after = stats(mount)
    own = len(control(mount, "stats"))
    assert 0 <= after["bytes_read"] - before.get("bytes_read", 0) - len(DATA) <= 3 * own
    assert after["bytes_written"] - before["bytes_written"] == 12_345
    assert after["uploads_committed"] == 1
    assert after["operation.rename.count"] == 1
    assert after["backend.Publish.count"] == 1
    said = json.loads(control(mount, "status.json"))
    assert said["calls"]["rename"] == 1
    assert said["backend"]["driver"] == DRIVERS[store.name]
    assert sum(said["latencies"]["rename"]["bits"].values()) == 1
    assert said["throughput"]["60s"]["bytes_written"] > 0


def test_an_upload_shows_how_far_it_is(stored: Storage, mounts: Callable[..., Mount]) -> None:
    """Its bytes and its speed, while it is written."""
    mount = mounts(stored)
    # Not by this process: while it starts another one nothing in it runs, and one of the stores may be in it.
    script = 'exec 3> "$1"; head -c 3145728 /dev/zero >&3; echo; read -r _ || true'
    argv = ["bash", "-c", script, "bash", mount.path / "app/_uploads/big"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"\n"
        (said,) = json.loads(control(mount, "status.json"))["uploads"]
        assert (said["path"], said["size"]) == ("app/_uploads/big", 3 << 20)
        assert said["bytes_per_second"] > 100_000
        assert "app/_uploads/big" in run(COMMAND, "status", mount.path).stdout
    # The kernel tells of the last close after `close` has returned.
    wait_until(lambda: json.loads(control(mount, "status.json"))["uploads"] == [], "the upload is closed", seconds=3)


def test_failures_have_their_numbers(stored: Storage, mounts: Callable[..., Mount]) -> None:
    """In `errors`, in the counts, and in the log the same ones."""
    mount = mounts(stored)
    failing(mount)
    (error,) = [json.loads(line) for line in control(mount, "errors").splitlines()]
    assert (error["operation"], error["error"], error["kind"]) == ("open", "EPERM", "NotPermitted")
    (line,) = [line for line in mount.read_log() if line.is_refusal]
    for name in ("request", "inode", "duration", "operation", "path"):
        assert line.record[name] == error[name]
    assert stats(mount)["error.open.EPERM"] == 1
    assert json.loads(control(mount, "status.json"))["errors_by"] == [
        {"operation": "open", "error": "EPERM", "count": 1}
    ]


def test_the_access_log(stored: Storage, mounts: Callable[..., Mount]) -> None:
    """Has what others do while it is read, and not that it is read."""
    mount = mounts(stored)
    layer = mount.path / "app/_layers" / digest_of(DATA)
    following = ["cat", mount.path / ".layerfs/accesslog"]
    with subprocess.Popen(following, stdout=subprocess.PIPE, text=True) as reader:
        lines = []
        assert reader.stdout is not None
        # A comment, once nobody does anything: it is open. Another test's `status` or `df` may look at all mounts.
        assert "#\n" in iter(reader.stdout.readline, "")
        read_anew(layer)
        failing(mount)
        while not lines or "result=EPERM" not in lines[-1]:
            lines.append(reader.stdout.readline())
        reader.send_signal(signal.SIGINT)
        reader.stdout.read()
    (read,) = [line for line in lines if " read " in line and "offset=0 " in line]
    words = dict(word.split("=", 1) for word in read.split()[2:])
    assert words["path"] == f'"app/_layers/{digest_of(DATA)}"'
    assert (words["result"], words["offset"]) == ("OK", "0")
    assert int(words["bytes"]) > 0
    assert float(words["duration"]) > 0
    assert {"inode", "handle", "length", "request"} <= words.keys()
    assert not [line for line in lines if ".layerfs" in line]


@pytest.mark.local("a system call is delayed")
def test_a_slow_operation_is_a_warning(stored: Storage, mounts: Callable[..., Mount]) -> None:
    """Though it succeeds in the end."""
    mount = mounts(stored, "--slow-operation", "0.3")
    with delay(mount.process.pid, ("mkdirat", "mkdir"), 0.5):
        assert attempt(os.mkdir, mount.path / "slow").is_ok
    (line,) = mount.declare("WARNING", "slow")
    assert line.record["operation"] == "mkdir"
    assert line.record["duration"] > 0.3


# --- status and top --------------------------------------------------------------------------------------------------


def test_status_of_several_mounts(stored: Storage, mounts: Callable[..., Mount]) -> None:
    """All that there are, or the one that is named."""
    one, two = mounts(stored), mounts(stored, "--read-only")
    said = status()
    assert said[str(one.path)]["status"]["read_only"] is False
    assert said[str(two.path)]["status"]["read_only"] is True
    assert said[str(one.path)]["state"] == "serving"
    assert list(status(two.path, code=OK)) == [str(two.path)]
    text = run(COMMAND, "status", check=False).stdout
    for each in (one, two):
        assert f"{each.path}  serving  {stored.source.partition('?')[0]}" in text


def test_status_where_nothing_is_mounted(tmp_path: Path) -> None:
    """One line, and exit code 1."""
    result = run(COMMAND, "status", tmp_path, check=False)
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (USAGE, "", 1)


def test_a_dead_mount(stored: Storage, mounts: Callable[..., Mount]) -> None:
    """Is said to be dead, by `status`, `top` and `why`, with what to do about it."""
    mount = mounts(stored)
    mount.kill9()
    said = status(mount.path, code=FAILED)[str(mount.path)]
    assert said["state"] == "dead"
    assert "mount it again" in said["reason"]
    for command in ("status", "top", "why"):
        result = run(COMMAND, command, mount.path, check=False)
        assert result.returncode == FAILED
        assert "is gone" in result.stdout + result.stderr
    mount.remount()


def test_a_mount_that_hangs(stored: Storage, mounts: Callable[..., Mount]) -> None:
    """Is not waited for: `status` ends, and tells of the others."""
    hung, also_hung, well = mounts(stored), mounts(stored), mounts(stored)
    for each in (hung, also_hung):
        each.process.send_signal(signal.SIGSTOP)
    try:
        began_at = time.monotonic()
        said = status(code=FAILED)
        assert time.monotonic() - began_at < 10, "both at the same time: 5 s, and a busy machine"
    finally:
        for each in (hung, also_hung):
            each.process.send_signal(signal.SIGCONT)
    assert [said[str(each.path)]["state"] for each in (hung, also_hung, well)] == ["hung", "hung", "serving"]
    assert "gave no answer within 5 s" in said[str(hung.path)]["reason"]


def test_top_once(stored: Storage, mounts: Callable[..., Mount]) -> None:
    """Operations with their latencies, the hottest path, and what failed."""
    mount = mounts(stored)
    read_anew(mount.path / "app/_layers" / digest_of(DATA))
    failing(mount)
    text = run(COMMAND, "top", "--once", mount.path).stdout
    table = {row.split()[0]: row.split() for row in text.splitlines() if row.startswith("  ") and row.split()}
    assert int(table["lookup"][2]) >= 3
    assert table["OPERATION"][-2:] == ["P50", "P99"]
    assert f"app/_layers/{digest_of(DATA)}" in text
    assert "EPERM" in text


def test_top_live(stored: Storage, mounts: Callable[..., Mount]) -> None:
    """On a terminal it goes on until 'q' is typed, and leaves the terminal as it was."""
    mount = mounts(stored)
    script = f"stty rows 40 cols 120; {COMMAND} top --interval 0.2 {mount.path}; stty -a; echo code $?"
    argv = ["script", "-qefc", script, "/dev/null"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        seen = b""
        while seen.count(b"PER SECOND") < 3:
            seen += os.read(process.stdout.fileno(), 1 << 16)
        process.stdin.write(b"q")
        process.stdin.flush()
        seen += process.stdout.read()
        assert process.wait(10) == 0
    assert b" icanon " in seen


# --- metrics ---------------------------------------------------------------------------------------------------------


def scraped(text: str) -> dict[str, dict[tuple, float]]:
    """The samples of an exposition, by name; every one must be understood by Prometheus's own parser."""
    found: dict[str, dict[tuple, float]] = {}
    families = list(text_string_to_metric_families(text))
    assert len({family.name for family in families}) == len(families)
    for family in families:
        assert family.documentation
        for sample in family.samples:
            labels = {name: value for name, value in sample.labels.items() if name != "mountpoint"}
            found.setdefault(sample.name, {})[tuple(sorted(labels.items()))] = sample.value
    return found


def test_metrics_on_an_address(stored: Storage, mounts: Callable[..., Mount], store: Store) -> None:
    """What Prometheus scrapes: right names, right numbers, histograms that add up."""
    address = f"127.0.0.1:{free_port()}"
    mount = mounts(stored, "--metrics-address", address)
    MountedRepository(mount, stored, "app").put_layer(b"y" * 5000)
    failing(mount)
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
        assert answer.headers.get_content_type() == "text/plain"
        found = scraped(answer.read().decode())
    assert found["layerfs_uploads_committed_total"] == {(): 1}
    assert found["layerfs_fuse_written_bytes_total"] == {(): 5000}
    assert found["layerfs_fuse_errors_total"] == {(("errno", "EPERM"), ("op", "open")): 1}
    publish = (("action", "Publish"), ("driver", DRIVERS[store.name]))
    assert found["layerfs_backend_request_seconds_count"][publish] == 1
    assert found["layerfs_cache_misses_total"].keys() == {(("cache", "descriptors"),), (("cache", "listings"),)}
    assert found["process_open_fds"][()] > 5
    for key, count in found["layerfs_fuse_ops_seconds_count"].items():
        buckets = [
            (float(dict(labels)["le"]), value)
            for labels, value in found["layerfs_fuse_ops_seconds_bucket"].items()
            if dict(labels)["op"] == dict(key)["op"]
        ]
        values = [value for _, value in sorted(buckets)]
        assert values == sorted(values)
        assert values[-1] == count
    assert {name for name in found if not name.startswith(("layerfs_", "process_"))} == set()


@pytest.mark.local("a system call is delayed")
def test_metrics_of_a_daemon_that_hangs_are_still_told(stored: Storage, mounts: Callable[..., Mount]) -> None:
    """Operations that wait for storage are among them."""
    address = f"127.0.0.1:{free_port()}"
    mount = mounts(stored, "--metrics-address", address)

    def waits() -> bool:
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
            return scraped(answer.read().decode())["layerfs_fuse_ops_under_way"][()] >= 1

    def waiting() -> list[str]:
        return [each["path"] for each in json.loads(control(mount, "status.json"))["under_way"]]

    with (
        delay(mount.process.pid, ("mkdirat", "mkdir"), 1),
        # The kernel lets nobody look up a name in the root meanwhile that it does not know.
        subprocess.Popen(["mkdir", mount.path / "waiting"]) as client,
    ):
        wait_until(waits, "an operation is under way")
        wait_until(lambda: "waiting" in waiting(), "it is the one")
        assert client.wait(20) == 0


def test_metrics_in_a_file(stored: Storage, mounts: Callable[..., Mount], tmp_path: Path) -> None:
    """From the beginning, for node_exporter; it goes with the mount."""
    file = tmp_path / "layerfs.prom"
    mount = mounts(stored, "--metrics-file", str(file))
    text = file.read_text()
    assert f'mountpoint="{mount.path}"' in text
    assert scraped(text)["layerfs_fuse_open_files"] == {(): 0}
    assert [path.name for path in tmp_path.glob("layerfs.prom*")] == ["layerfs.prom"]
    mount.stop()
    assert not file.exists()


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.1:0", "127.0.0.1:99999", ":9187", "::1:9187", "a b:1"])
def test_no_address(stored: Storage, tmp_path: Path, address: str) -> None:
    """Is refused before anything is mounted."""
    argv = (COMMAND, "mount", stored.source, tmp_path / "mnt", "--metrics-address", address)
    result = run(*argv, check=False)
    assert result.returncode == USAGE
    assert "HOST:PORT" in result.stderr


def test_an_address_that_is_taken(stored: Storage, mounts: Callable[..., Mount], tmp_path: Path) -> None:
    """One line, exit code 1, and nothing is mounted."""
    address = f"127.0.0.1:{free_port()}"
    mounts(stored, "--metrics-address", address)
    (tmp_path / "other").mkdir()
    result = run(COMMAND, "mount", stored.source, tmp_path / "other", "--metrics-address", address, check=False)
    assert result.returncode == USAGE
    assert f"cannot serve metrics on {address}: Address already in use" in result.stderr
    assert not os.path.ismount(tmp_path / "other")


def test_a_metrics_file_that_cannot_be(stored: Storage, tmp_path: Path) -> None:
    """In no directory, or in the mount itself, for which the daemon would wait, or in the place of what is no file."""
    (tmp_path / "mnt").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for file in (tmp_path / "no/x.prom", tmp_path / "mnt/x.prom", tmp_path / "pipe"):
        result = run(COMMAND, "mount", stored.source, tmp_path / "mnt", "--metrics-file", file, check=False)
        assert result.returncode == USAGE
        assert result.stderr.count("\n") == 1
        assert not os.path.ismount(tmp_path / "mnt")
    assert (tmp_path / "pipe").is_fifo()
