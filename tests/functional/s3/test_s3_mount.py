"""A bucket as directories: what a store that is slow, silent or refuses means for whoever uses the mount."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from harness.commands import append, run, wait_until
from harness.mount import COMMAND, Mount
from harness.object_stores import BUCKET, SECRET_KEY, S3Server
from harness.s3_proxy import S3Proxy
from harness.storage import digest_of

MEBIBYTE = 1 << 20
FOREVER = 100_000


@pytest.fixture
def mounted(
    server: S3Server, proxy: S3Proxy, prefix: str, mounts: Callable[..., Mount], monkeypatch: pytest.MonkeyPatch
) -> Mount:
    """A mount that goes through the proxy, and gives up on a silent store after three seconds."""
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    return mounts(f"s3://{BUCKET}/{prefix}?endpoint_url={proxy.url}&read_timeout=1", "--create")


def put_layer(mount: Mount, data: bytes) -> Path:
    repository = mount.path / "a"
    repository.mkdir(exist_ok=True)
    append(repository / "_uploads" / "layer", data)
    os.rename(repository / "_uploads" / "layer", repository / "_layers" / digest_of(data))
    return repository / "_layers" / digest_of(data)


def test_directories_that_nothing_is_stored_in(mounted: Mount) -> None:
    """The mount remembers them, on every level, and forgets them."""
    run("mkdir", "-p", mounted.path / "one" / "two" / "three")
    assert os.listdir(mounted.path) == ["one"]
    assert os.listdir(mounted.path / "one") == ["two"]
    assert os.listdir(mounted.path / "one" / "two") == ["three"]
    assert sorted(os.listdir(mounted.path / "one" / "two" / "three")) == [
        "_layers",
        "_manifests",
        "_oci",
        "_tags",
        "_uploads",
    ]
    os.rmdir(mounted.path / "one" / "two" / "three")
    assert os.listdir(mounted.path) == []


def test_a_bucket_with_nothing_in_it(
    server: S3Server, prefix: str, mounts: Callable[..., Mount], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It is no registry until one is begun there; then it is one, also for whoever does not begin it."""
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    source = f"s3://{BUCKET}/{prefix}?endpoint_url={server.endpoint}"
    (tmp_path / "mnt").mkdir()
    refused = run(COMMAND, "mount", source, tmp_path / "mnt", check=False)
    assert refused.returncode != 0
    assert f"s3://{BUCKET}/{prefix}" in refused.stderr
    assert "use --create to begin an empty registry" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    mounts(source, "--create").stop()
    mounted = mounts(source)
    assert os.listdir(mounted.path) == []
    (mounted.path / "a").mkdir()
    append(mounted.path / "a" / "_uploads" / "layer", b"content")
    assert os.listdir(mounts(source).path) == ["a"]


def test_no_secret_is_shown(mounted: Mount, server: S3Server) -> None:
    """Neither in the table of mounts nor in the command line, nor in what the mount says of itself."""
    shown = [
        Path("/proc/self/mountinfo").read_text(),
        Path(f"/proc/{mounted.process.pid}/cmdline").read_text(),
        (mounted.path / ".layerfs" / "status.json").read_text(),
        mounted.log_text(),
    ]
    assert all(SECRET_KEY not in text for text in shown)


def test_a_stuck_read_can_be_interrupted_and_holds_nobody_up(mounted: Mount, proxy: S3Proxy, payload) -> None:
    """`^C` ends a `cat` at once, and meanwhile other files are read."""
    stuck, other = put_layer(mounted, payload(MEBIBYTE)), put_layer(mounted, b"other")
    proxy.fail("stall", "GetObject", times=FOREVER, suffix=f"{stuck.name[7:]}/data")
    proxy.forget()
    with subprocess.Popen(["cat", stuck], stdout=subprocess.DEVNULL) as cat:
        wait_until(lambda: proxy.counts["GetObject"], "the read")
        assert other.read_bytes() == b"other"
        assert stuck.stat().st_size == MEBIBYTE
        started = time.monotonic()
        cat.send_signal(signal.SIGINT)
        cat.wait(10)
        assert time.monotonic() - started < 2.5, "it was given up after 3 s, by the mount"
    proxy.heal()


def test_a_silent_store_is_eio_in_time(mounted: Mount, proxy: S3Proxy, payload) -> None:
    """Then, when it speaks again, everything is as before."""
    data = payload(100_000)
    layer = put_layer(mounted, data)
    proxy.fail("stall", "*", times=FOREVER)
    started = time.monotonic()
    with mounted.refused(errno.EIO):
        layer.read_bytes()
    assert time.monotonic() - started < 12
    proxy.heal()
    assert layer.read_bytes() == data


def test_credentials_that_expire_are_eacces(mounted: Mount, proxy: S3Proxy, payload) -> None:
    """The log says what they are; and what an upload had is not lost."""
    upload = mounted.path / "a" / "_uploads" / "layer"
    (mounted.path / "a").mkdir()
    data = payload(2000)
    append(upload, data[:1000])
    proxy.fail("refuse", "*", times=FOREVER, status=400, code="ExpiredToken")
    with mounted.refused(errno.EACCES):
        append(upload, data[1000:])
    assert any("credentials have expired" in line.text for line in mounted.read_log())
    proxy.heal()
    assert upload.stat().st_size == 1000
    append(upload, data[1000:])
    os.rename(upload, mounted.path / "a" / "_layers" / digest_of(data))
    assert (mounted.path / "a" / "_layers" / digest_of(data)).read_bytes() == data


@pytest.mark.parametrize("operation", ["CompleteMultipartUpload", "CopyObject", "UploadPart"])
def test_a_finish_that_fails_can_be_repeated(mounted: Mount, proxy: S3Proxy, payload, operation: str) -> None:
    """The same `mv` again completes it."""
    data = payload(6 * MEBIBYTE)
    repository = mounted.path / "a"
    repository.mkdir()
    upload, layer = repository / "_uploads" / "layer", repository / "_layers" / digest_of(data)
    append(upload, data[: 5 * MEBIBYTE])
    proxy.fail("refuse", operation, times=FOREVER, status=500, code="InternalError")
    with mounted.refused(errno.EIO):
        append(upload, data[5 * MEBIBYTE :])
        os.rename(upload, layer)
    proxy.heal()
    if upload.stat().st_size < len(data):
        append(upload, data[upload.stat().st_size :])
    os.rename(upload, layer)
    assert layer.read_bytes() == data
