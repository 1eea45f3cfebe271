"""Reading what is in an object store through mounts: with how many requests, and what is read."""

from __future__ import annotations

import os
from collections.abc import Callable

from harness.mount import Mount

MEBIBYTE = 1 << 20

Mounts = Callable[..., Mount]
Payload = Callable[[int], bytes]


def test_an_upload_is_read_ahead(mountable, mounts: Mounts, payload: Payload) -> None:
    """Whoever reads an upload in small pieces, as `cmp` does, costs a few requests, and not one for each piece."""
    content = payload(4 * MEBIBYTE + 1)
    mount = mounts(mountable.url, "--create")
    upload = mount.path / "a/_uploads/layer.tar"
    os.makedirs(mount.path / "a")
    upload.write_bytes(content)
    mountable.forget()
    descriptor = os.open(upload, os.O_RDONLY)
    try:
        assert b"".join(iter(lambda: os.read(descriptor, 4096), b"")) == content
        assert len(mountable.relay.seen) <= 30
        # It is not believed to have ended: what is appended meanwhile is read, too.
        with upload.open("ab") as file:
            file.write(b"more")
        assert os.read(descriptor, 4096) == b"more"
    finally:
        os.close(descriptor)
