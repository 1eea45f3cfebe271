"""The daemon itself is stopped, cut off or starved: it ends by itself or goes on, and a new one takes its place."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path

import harness.mount
import pytest
from harness.bounded import Child, attempt
from harness.commands import append, opened, wait_until, write_all
from harness.damage import assert_undamaged
from harness.mount import Mount
from harness.repository import MountedRepository
from harness.storage import Storage, digest_of
from harness.tolerance import forgive_refusals
from harness.workload import content

LAYER = content("layer", 100_000)


@pytest.fixture
def stored(storage: Storage) -> Storage:
    """A storage with one layer."""
    storage.make_repository("app")
    storage.put_layer("app", LAYER)
    return storage


def _abort(mount: Mount) -> None:
    """What an administrator does who has nothing else left."""
    connection = os.minor(attempt(os.stat, mount.path).value.st_dev)
    Path(f"/sys/fs/fuse/connections/{connection}/abort").write_text("1")


def test_an_aborted_connection(stored: Storage, tmp_path: Path, watchdog: None) -> None:
    """The daemon ends by itself, and its place can be mounted again at once."""
    mount = Mount(stored.root, tmp_path / "mnt")
    try:
        mount.start()
        _abort(mount)
        mount.wait_end(10)
        mount.remount()
        assert attempt((mount.path / "app/_layers" / digest_of(LAYER)).read_bytes).value == LAYER
        mount.stop()
        forgive_refusals(mount)
        mount.check_log()
    finally:
        mount.clean_up()


def test_an_aborted_connection_with_open_files(stored: Storage, tmp_path: Path, watchdog: None) -> None:
    """Readers and writers get errors, the daemon ends, and what was synced is there afterwards."""
    mount = Mount(stored.root, tmp_path / "mnt")
    try:
        repository = MountedRepository(mount.start(), stored, "app")
        upload = os.open(repository.upload("begun"), os.O_WRONLY | os.O_CREAT)
        layer = os.open(repository.layer(digest_of(LAYER)), os.O_RDONLY)
        try:
            write_all(upload, b"synced")
            os.fsync(upload)
            write_all(upload, b" and not synced")
            _abort(mount)
            mount.wait_end(10)
            assert attempt(os.write, upload, b"more").name in ("ENOTCONN", "ECONNABORTED")
            assert attempt(os.fsync, upload).name in ("ENOTCONN", "ECONNABORTED")
        finally:
            for descriptor in (layer, upload):
                with contextlib.suppress(OSError):
                    os.close(descriptor)
        mount.remount()
        seen = attempt(repository.upload("begun").read_bytes).value
        assert seen in (b"synced", b"synced and not synced")
        append(repository.upload("begun"), b"!")
        assert attempt(repository.commit, "begun", digest_of(seen + b"!")).is_ok
        assert_undamaged(stored)
    finally:
        mount.clean_up()


def test_a_stopped_daemon(stored: Storage, mounts: Callable[..., Mount]) -> None:
    """Clients wait while it is stopped, and have their answers, the right ones, when it goes on."""
    mount = mounts(stored)
    repository = MountedRepository(mount, stored, "app")
    data = content("upload", 300_000)
    mount.process.send_signal(signal.SIGSTOP)
    try:
        clients = [
            Child(repository.layer(digest_of(LAYER)).read_bytes),
            Child(append, repository.upload("begun"), data),
            Child(os.listdir, repository.path / "_layers"),
        ]
        time.sleep(2)  # for as long as it is stopped nothing may come back
        assert all(client.is_running() for client in clients)
    finally:
        mount.process.send_signal(signal.SIGCONT)
    seen = [client.wait(10) for client in clients]
    assert (seen[0].value, seen[1].name, seen[2].value) == (LAYER, "ok", [digest_of(LAYER)])
    assert attempt(repository.commit, "begun", digest_of(data)).is_ok


def test_few_descriptors(stored: Storage, mounts: Callable[..., Mount]) -> None:
    """With room for 96 files only, more are EMFILE at once; it lives, and with some closed it goes on as before."""
    mount = mounts(stored)
    repository = MountedRepository(mount, stored, "app")
    layers = [stored.put_layer("app", content(f"layer {number}", 5000)) for number in range(150)]
    time.sleep(1.1)  # until the listing of before is old
    resource.prlimit(mount.process.pid, resource.RLIMIT_NOFILE, (96, 96))
    seen = attempt(_open_many, repository, layers, seconds=30).value
    assert seen["opened"] >= 20
    assert seen["refused"] == {"EMFILE"}
    assert seen["wrong"] == []
    assert mount.is_alive
    assert attempt(repository.layer(layers[-1]).read_bytes).value == content("layer 149", 5000)
    data = content("upload", 100_000)
    assert attempt(append, repository.upload("begun"), data).is_ok
    assert attempt(repository.commit, "begun", digest_of(data)).is_ok
    forgive_refusals(mount)


def _open_many(repository: MountedRepository, layers: list[str]) -> dict[str, object]:
    """Opens all of them, keeps them open, reads those that could be opened."""
    opened_files: dict[int, int] = {}
    refused = set()
    for number, digest in enumerate(layers):
        outcome = _opened(repository.layer(digest))
        if isinstance(outcome, int):
            opened_files[number] = outcome
        else:
            refused.add(outcome)
    wrong = [
        number
        for number, descriptor in opened_files.items()
        if os.pread(descriptor, 10_000, 0) != content(f"layer {number}", 5000)
    ]
    for descriptor in opened_files.values():
        os.close(descriptor)
    return {"opened": len(opened_files), "refused": refused, "wrong": wrong}


def _opened(path: Path, flags: int = os.O_RDONLY) -> int | str:
    """A descriptor, or the name of the errno."""
    try:
        return os.open(path, flags)
    except OSError as error:
        return errno.errorcode[error.errno]


def test_a_low_limit_from_the_start(
    stored: Storage, tmp_path: Path, mounts: Callable[..., Mount], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A daemon that may not have more than 96 files from the beginning works, with fewer of them."""
    command = tmp_path / "layerfs"
    command.write_text(f'#!/bin/sh\nexec prlimit --nofile=96:96 {harness.mount.COMMAND} "$@"\n')
    command.chmod(0o755)
    monkeypatch.setattr(harness.mount, "COMMAND", command)
    mount = mounts(stored)
    repository = MountedRepository(mount, stored, "app")
    data = content("upload", 100_000)
    assert attempt(append, repository.upload("begun"), data).is_ok
    assert attempt(repository.commit, "begun", digest_of(data)).is_ok
    assert attempt(repository.layer(digest_of(LAYER)).read_bytes).value == LAYER
    forgive_refusals(mount)


def test_many_handles_are_given_back(stored: Storage, mounts: Callable[..., Mount]) -> None:
    """Thousands of opens, of layers, uploads and directories, some refused: afterwards nothing is left of them."""
    mount = mounts(stored, "--max-handles", "200", "--max-uploads", "20")
    repository = MountedRepository(mount, stored, "app")
    attempt(_many_handles, repository, 1)
    before = mount.descriptors
    outcomes = attempt(_many_handles, repository, 5, seconds=60).value
    assert outcomes <= {"ok", "EMFILE", "EDQUOT", "ENFILE", "EBUSY"}
    assert "EMFILE" in outcomes
    assert "EDQUOT" in outcomes
    wait_until(lambda: mount.descriptors <= before + 2, "descriptors are given back")
    assert attempt(repository.layer(digest_of(LAYER)).read_bytes).value == LAYER
    assert attempt(append, repository.upload("one more"), b"x").is_ok
    forgive_refusals(mount)


def _many_handles(repository: MountedRepository, rounds: int) -> set[str]:
    outcomes = set()
    layer = repository.layer(digest_of(LAYER))
    for number in range(rounds):
        uploads = [repository.upload(f"u{number}-{count}") for count in range(30)]
        held = [_opened(upload, os.O_WRONLY | os.O_CREAT) for upload in uploads]
        held += [_opened(layer) for _ in range(250)]
        for descriptor in held:
            if isinstance(descriptor, int):
                os.close(descriptor)
        outcomes |= {descriptor if isinstance(descriptor, str) else "ok" for descriptor in held}
    return outcomes


def test_killed_again_and_again(stored: Storage, tmp_path: Path, watchdog: None) -> None:
    """kill -9 in the middle of an upload, ten times: no synced byte is lost, and the layer is whole in the end."""
    data = content("resumed", 1_000_000)
    mount = Mount(stored.root, tmp_path / "mnt")
    try:
        repository = MountedRepository(mount.start(), stored, "app")
        upload = repository.upload("resumed")
        step, saved = len(data) // 10, 0
        for _ in range(10):
            size = attempt(os.stat, upload).value.st_size if saved else 0
            assert size >= saved
            assert attempt(_append_and_crash, upload, data[size : saved + step], mount.process.pid).name in (
                *("ok", "ENOTCONN", "ECONNABORTED"),
            )
            saved += step
            mount.kill9()
            mount.remount()
        size = attempt(os.stat, upload).value.st_size
        append(upload, data[size:])
        assert attempt(repository.commit, "resumed", digest_of(data)).is_ok
        repository.assert_stored(data)
    finally:
        mount.clean_up()


def _append_and_crash(path: Path, data: bytes, pid: int) -> None:
    """Syncs all of it, begins to write more, and kills the daemon."""
    with opened(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND) as descriptor:
        write_all(descriptor, data)
        os.fsync(descriptor)
        os.kill(pid, signal.SIGKILL)
