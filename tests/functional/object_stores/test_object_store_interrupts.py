"""Programs that wait for an object store that says nothing: they can be ended at once, whatever they wait for."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable

import pytest
from harness.commands import wait_until
from harness.mount import Mount
from harness.tolerance import forgive_refusals

MEBIBYTE = 1 << 20

Mounts = Callable[..., Mount]
Payload = Callable[[int], bytes]

ALL = ("list", "stat", "read", "create", "append", "put", "copy", "delete")

#: What a program does that comes to wait, the requests that it waits for, and what ends it.
WAITING = {
    "lookup": ("stat a/_layers/sha256:" + 64 * "0", ALL, signal.SIGINT),
    "opendir": ("ls a/_tags", ALL, signal.SIGKILL),
    "getattr": ("stat a/_uploads/layer.tar", ALL, signal.SIGTERM),
    "read": ("cat a/_uploads/layer.tar", ("read",), signal.SIGINT),
    "create": ("touch a/_uploads/new.tar", ("put", "create"), signal.SIGHUP),
    "write": ("exec head -c 500M /dev/zero >> a/_uploads/layer.tar", ("append",), signal.SIGINT),
    "flush": ("exec cp /etc/hostname a/_uploads/small.tar", ("append",), signal.SIGKILL),
}


@pytest.mark.parametrize("mountable", ["azure"], indirect=True)
@pytest.mark.parametrize("operation", WAITING)
def test_who_waits_can_be_ended(mountable, mounts: Mounts, payload: Payload, operation: str) -> None:
    """`^C` and `kill` work at once, and the mount goes on."""
    script, stalled, number = WAITING[operation]
    mount = mounts(mountable.url, "--create", "--metadata-ttl", "0")
    os.makedirs(mount.path / "a")
    (mount.path / "a/_uploads/layer.tar").write_bytes(payload(MEBIBYTE))
    mountable.forget()
    for each in stalled:
        mountable.relay.fail("stall", each, times=1000)
    with subprocess.Popen(["bash", "-c", script], cwd=mount.path, stdout=subprocess.DEVNULL) as program:
        wait_until(lambda: {seen.operation for seen in list(mountable.relay.seen)} & set(stalled), "it waits")
        assert program.poll() is None
        started = time.monotonic()
        program.send_signal(number)
        assert program.wait(20) == -number
        assert time.monotonic() - started < 10
    mountable.relay.heal()
    forgive_refusals(mount)
    assert (mount.path / "a/_uploads/layer.tar").stat().st_size >= MEBIBYTE
    (mount.path / "a/_uploads/later.tar").write_bytes(b"later")
    assert (mount.path / "a/_uploads/later.tar").read_bytes() == b"later"


@pytest.mark.parametrize("mountable", ["azure"], indirect=True)
def test_who_handles_a_signal_is_not_disturbed(mountable, mounts: Mounts) -> None:
    """A program that waits, and has a handler for the signal, gets its answer and not EINTR."""
    mount = mounts(mountable.url, "--create", "--metadata-ttl", "0")
    os.makedirs(mount.path / "a")
    mountable.forget()
    stalls = [mountable.relay.fail("stall", each, times=1000) for each in ("list", "stat")]
    script = "import os, signal; signal.signal(signal.SIGTERM, print); print(os.listdir('a/_tags'))"
    with subprocess.Popen(["python3", "-I", "-c", script], cwd=mount.path, stdout=subprocess.PIPE) as program:
        wait_until(lambda: mountable.relay.seen, "it waits")
        program.send_signal(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):
            program.wait(1)
        for stall in stalls:
            stall.times = 0
            stall.released.set()
        assert program.stdout is not None
        assert program.stdout.read().endswith(b"[]\n")
        assert program.wait(20) == 0
