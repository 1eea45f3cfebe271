"""Verified reads of what is too large to wait for gladly: no program gets a byte that is not verified."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from harness.mount import Mount
from harness.object_stores import gateway
from harness.remote import RemoteRegistry, blob_key
from harness.s3_proxy import S3Proxy
from harness.tolerance import forgive_refusals
from harness.workload import content

MIB = 1 << 20


@pytest.mark.soak
@pytest.mark.timeout(300)
def test_a_bit_that_flips_in_a_layer_of_more_than_a_gibibyte(mounts: Callable[..., Mount], tmp_path: Path) -> None:
    """Whoever reads: all of it, its beginning, somewhere in it, or beside somebody else."""
    data = content("large", MIB) * 1030
    with S3Proxy(gateway().endpoint) as proxy:
        remote = RemoteRegistry(gateway(), proxy)
        digest = remote.put_layer("a", data)
        options = ["--cache-dir", str(tmp_path / "cache"), "--cache-size", "3G", "--operation-timeout", "120"]
        mount = mounts(remote.url, "--verify-reads", *options)
        layer = mount.path / "a/_layers" / digest
        proxy.fail("flip", "GetObject", times=1000, suffix=blob_key(digest))
        readers = [["cat", layer], ["head", "-c", "100000000", layer], ["tail", "-c", "100", layer]]
        for reader in [subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for argv in readers]:
            given, why = reader.communicate()
            assert (reader.returncode, given) == (1, b"")
            assert b"Input/output error" in why
        with layer.open("rb", buffering=0) as file, pytest.raises(OSError, match="Input/output"):
            os.pread(file.fileno(), 100, 500 * MIB)
    forgive_refusals(mount)
