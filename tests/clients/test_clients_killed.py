"""Clients and daemons that die in the middle of a push: nothing is wrong afterwards, and the same push succeeds.

What may be left are uploads, which a registry, or `layerfs purge-uploads`, removes.
"""

from __future__ import annotations

import random
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from harness.bounded import attempt
from harness.clients import COPY, skopeo_copy
from harness.clients_layouts import Image, assert_complete, tags_of, write_layout
from harness.clients_replays import ALL, Replay, ReplayBuildKit, ReplayProcess, ReplayUmoci, kill_after
from harness.clients_served import assert_clean, assert_nothing_lost, assert_served, faults
from harness.clients_target import Images, Target
from harness.commands import run
from harness.mount import COMMAND
from harness.strace import Call, kill_at, record
from harness.tolerance import forgive_refusals


def purge(target: Target) -> None:
    """What an operator does about what is left; without it registries would do so in a week."""
    run(COMMAND, "purge-uploads", "--older-than", "0s", target.storage.source)


# --- clients that are killed -------------------------------------------------------------------------------------


def kill_after_each(target: Target, replay: type[Replay], images: Images, step: int) -> None:
    """Kills a client after its first call, its `step + 1`-th and so on, each in a repository of its own."""
    image = images.image(1)
    count = 0
    layouts = []
    while True:
        layout = target.new_layout(f"r{count}")
        layouts.append(layout)
        if not kill_after(replay(layout, image, "v1"), count):
            break
        count += step
    forgive_refusals(target.mount)  # of half an index, when the kernel closes it
    assert len(layouts) > 3
    assert_nothing_lost(target.storage)
    for layout in layouts:
        assert tags_of(layout) in ({}, {"v1": image.digest})
    with target.mount.tolerates("EPERM"):
        for layout in layouts:
            attempt(replay(layout, image, "v1").run, seconds=60)
            assert_complete(layout, "v1", image)
    assert_clean(target.storage)
    purge(target)
    for number in range(0, count, step):
        assert target.storage.uploads(f"r{number}") == []


@pytest.mark.parametrize("replay", ALL)
def test_killed_after_some_calls(target: Target, images: Images, replay: type[Replay]) -> None:
    """A storage in which nothing is wrong, no tag that is not whole, and a second push that succeeds."""
    kill_after_each(target, replay, images, 31 if replay is ReplayBuildKit else 8)


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("replay", ALL)
def test_killed_after_every_call(target: Target, images: Images, replay: type[Replay]) -> None:
    """The same after each of them."""
    kill_after_each(target, replay, images, 1)


#: System calls by which skopeo and umoci change a layout, and which one of them is the last that is made.
KILLED_AT = {
    "skopeo": [("fsync", 1), ("renameat", 1), ("fchmod", 1), ("fchmod", 2)],
    "umoci": [("mkdirat", 1), ("flock", 1), ("renameat", 1), ("unlinkat", 1)],
}


def kill_client_at(call: str, number: int, command: Sequence[object], cwd: Path) -> bool:
    """Runs a command, and kills it instead of its `number`-th call of a kind; False if it made fewer."""
    strace = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={call}"]
    strace += ["-e", f"inject={call}:signal=SIGKILL:when={number}"]
    result = subprocess.run(
        [*strace, *map(str, command)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        cwd=cwd,
        timeout=60,
        check=False,
    )
    return result.returncode != 0


@pytest.mark.parametrize(("call", "number"), KILLED_AT["skopeo"])
def test_skopeo_is_killed(target: Target, images: Images, tmp_path: Path, call: str, number: int) -> None:
    """Whatever the call, nothing is wrong, there is no tag, and the same copy succeeds."""
    layout = target.new_layout("r")
    image = images.image()
    source = write_layout(tmp_path / "source", {"v1": image})
    command = [*COPY, f"oci:{source}:v1", f"oci:{layout}:v1"]
    assert kill_client_at(call, number, command, tmp_path)
    forgive_refusals(target.mount)
    assert_nothing_lost(target.storage)
    assert tags_of(layout) == {}
    run(*command)
    assert_complete(layout, "v1", image)
    purge(target)
    assert target.storage.uploads("r") == []
    assert_served(target.storage, tmp_path / "registry", {("r", "v1"): image}, all_in_use=True)


@pytest.mark.parametrize(("call", "number"), KILLED_AT["umoci"])
def test_umoci_is_killed(target: Target, images: Images, tmp_path: Path, call: str, number: int) -> None:
    """Whatever the call, nothing is wrong, the image is what it was, and the same command succeeds."""
    layout = target.new_layout("r")
    image = images.image()
    skopeo_copy(f"oci:{write_layout(tmp_path / 'source', {'v1': image})}:v1", f"oci:{layout}:v1")
    command = ["umoci", "config", "--image", f"{layout}:v1", "--tag", "v2", "--author", "somebody"]
    assert kill_client_at(call, number, command, tmp_path)
    forgive_refusals(target.mount)
    assert_nothing_lost(target.storage)
    assert_complete(layout, "v1", image)
    run(*command)
    assert set(tags_of(layout)) == {"v1", "v2"}
    assert target.image("r", "v2")
    purge(target)
    assert target.storage.uploads("r") == []
    assert_clean(target.storage)


# --- daemons that are killed -------------------------------------------------------------------------------------


def test_the_daemon_dies_between_two_calls(target: Target, images: Images) -> None:
    """kill -9 in the middle of a push: what is left are uploads, and the push succeeds on the new mount."""
    image = images.image(1)
    for replay in ALL:
        layout = target.new_layout(replay.__name__.lower())
        process = ReplayProcess(replay(layout, image, "v1"))
        for _ in range(14):
            process.step()
        target.mount.kill9()
        process.kill()
        target.mount.remount()
        assert tags_of(layout) == {}
        with target.mount.tolerates("EPERM"):
            ReplayProcess(replay(layout, image, "v1")).finish()
        assert_complete(layout, "v1", image)
    assert_clean(target.storage)


class Pushes:
    """Pushes of one image by skopeo to ever new repositories."""

    def __init__(self, target: Target, image: Image, directory: Path) -> None:
        self.target = target
        self.image = image
        self._source = write_layout(directory / "source", {"v1": image})
        self._count = 0

    def new(self) -> str:
        """A repository to push to."""
        self._count += 1
        self.target.new_layout(f"r{self._count}")
        return f"r{self._count}"

    def push(self, repository: str, *, check: bool = True) -> None:
        target = f"oci:{self.target.layout(repository)}:v1"
        run(*COPY, f"oci:{self._source}:v1", target, check=check)

    def calls(self) -> list[Call]:
        """By which system calls the daemon stores it; the second push is a typical one."""
        self.push(self.new())
        with record(self.target.mount.process.pid) as strace:
            self.push(self.new())
        return [call for call in strace.calls if call.is_reachable and not call.is_answer]

    def die_at(self, call: Call) -> bool:
        """Whether the daemon was killed at this call of a push; afterwards the same push succeeds."""
        mount = self.target.mount
        repository = self.new()
        with kill_at(mount.process.pid, call):
            self.push(repository, check=False)
        if mount.is_alive:
            return False
        mount.remount()
        assert faults(self.target.storage) == [], f"killed at {call}"
        self.push(repository)
        assert_complete(self.target.layout(repository), "v1", self.image)
        return True


def die_at_calls(target: Target, images: Images, directory: Path, sample: int | None) -> None:
    """Kills the daemon at these of its calls while skopeo pushes."""
    pushes = Pushes(target, images.image(1), directory)
    calls = pushes.calls()
    if sample is not None:
        calls = random.Random(1).sample(calls, sample)
    died = [pushes.die_at(call) for call in calls]
    forgive_refusals(target.mount)
    assert sum(died) >= len(died) / 2, f"only {sum(died)} of {len(died)} calls were reached"
    assert_clean(target.storage)


@pytest.mark.local("what a daemon does to its storage is told by the files of its system calls")
def test_the_daemon_dies_under_skopeo(target: Target, images: Images, tmp_path: Path) -> None:
    """At some of the calls by which it stores a push, always the same ones."""
    die_at_calls(target, images, tmp_path, 4)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.local("what a daemon does to its storage is told by the files of its system calls")
def test_the_daemon_dies_at_every_call(target: Target, images: Images, tmp_path: Path) -> None:
    """At each of them."""
    die_at_calls(target, images, tmp_path, None)


def test_a_mount_is_stopped_during_a_push(target: Target, images: Images, tmp_path: Path) -> None:
    """SIGTERM while a client is writing: what it wrote is an upload; on the next mount the push succeeds."""
    image = images.image()
    layout = target.new_layout("r")
    process = ReplayProcess(ReplayUmoci(layout, image, "v1"))
    while not re.fullmatch(r"write of \d+ bytes", process.step()):
        pass
    target.mount.stop()
    process.kill()
    target.mount.remount()
    assert tags_of(layout) == {}
    ReplayProcess(ReplayUmoci(layout, image, "v1")).finish()
    assert_complete(layout, "v1", image)
    purge(target)
    assert target.storage.uploads("r") == []
    assert_clean(target.storage)
