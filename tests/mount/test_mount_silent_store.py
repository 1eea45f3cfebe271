"""An object store that says nothing any more: who reads is told once it is certain, and not only twice as late.

The kernel asks again for the page that a program waits for, when what it has read ahead could not be had.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from harness.bounded import attempt
from harness.commands import wait_until
from harness.mount import Mount
from harness.remote import RemoteRegistry, blob_key
from harness.tolerance import forgive_refusals
from harness.workload import content

#: Seconds after which a read fails here, and how much later its program may hear of it on a busy machine.
DEADLINE = 2
SLACK = 1.5

LAYER = content("layer", 3 << 20)


def _read_at(path: Path, length: int, offset: int) -> bytes:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return os.pread(descriptor, length, offset)
    finally:
        os.close(descriptor)


@pytest.mark.parametrize(("offset", "verify"), [(0, False), (1_500_000, True)])
def test_a_reader_is_told_within_the_deadline(
    remote: RemoteRegistry, mounts: Callable[..., Mount], tmp_path: Path, offset: int, verify: bool
) -> None:
    """And whoever opens the file after him has his own. When the store speaks again both can read."""
    digest = remote.put_layer("a", LAYER)
    options = ["--verify-reads", "--cache-dir", str(tmp_path / "cache")] if verify else []
    mount = mounts(f"{remote.url}&read_timeout=3", "--operation-timeout", str(DEADLINE), *options)
    layer = mount.path / "a/_layers" / digest
    remote.proxy.fail("stall", "GetObject", times=1000, suffix=blob_key(digest))
    with layer.open("rb", buffering=0) as file:
        for outcome in (
            attempt(os.pread, file.fileno(), 100_000, offset, seconds=20),
            attempt(_read_at, layer, 100_000, offset, seconds=20),
        ):
            assert outcome.name == "ETIMEDOUT"
            assert DEADLINE * 0.7 <= outcome.seconds <= DEADLINE + SLACK
        remote.proxy.heal()
        expected = LAYER[offset : offset + 100_000]
        wait_until(lambda: attempt(_read_at, layer, 100_000, offset).value == expected, "it can be read")
        wait_until(lambda: attempt(os.pread, file.fileno(), 100_000, offset).value == expected, "by him too")
    forgive_refusals(mount)
