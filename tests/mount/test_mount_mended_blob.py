"""A stored blob that was cut short, and that somebody else has mended: its old size is nowhere any more."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable

from harness.mount import Mount
from harness.object_stores import gateway
from harness.remote import RemoteRegistry, blob_key
from harness.s3_proxy import S3Proxy
from harness.tolerance import forgive_refusals
from harness.workload import content


def test_a_blob_that_another_node_has_mended(mounts: Callable[..., Mount]) -> None:
    """What was remembered of it is not shown for ever, and never cuts what is read."""
    data = content("mended", 300_000)
    with S3Proxy(gateway().endpoint) as proxy:
        remote = RemoteRegistry(gateway(), proxy)
        digest = remote.put_layer("a", data)
        remote.put_all([(blob_key(digest), data[:1000])])
        mount = mounts(remote.url, "--metadata-ttl", "0.2")
        directory = mount.path / "a/_layers"
        assert os.stat(directory / digest).st_size == 1000
        remote.put_all([(blob_key(digest), data)])
        for _ in range(3):
            subprocess.run(["ls", "-l", directory], check=True, capture_output=True)
            reading = subprocess.run(["cat", directory / digest], check=False, capture_output=True)
            assert reading.stdout == data if reading.returncode == 0 else reading.stdout == b""
            time.sleep(0.3)  # the time to live
        assert reading.stdout == data
        assert (directory / digest).stat().st_size == len(data)
    forgive_refusals(mount)
