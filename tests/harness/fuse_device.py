"""/dev/fuse, which all tests on a machine share, also those of other processes."""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

DEVICE: Final = "/dev/fuse"


@contextmanager
def open_to_everybody() -> Iterator[None]:
    """As udev makes it, which containers may lack. Its mode may be changed in the block: nobody else does meanwhile."""
    device = os.open(DEVICE, os.O_RDONLY)
    fcntl.flock(device, fcntl.LOCK_EX)
    mode = stat.S_IMODE(os.fstat(device).st_mode)
    try:
        os.chmod(DEVICE, 0o666)  # noqa: S103
        yield
    finally:
        os.chmod(DEVICE, mode)
        fcntl.flock(device, fcntl.LOCK_UN)
        os.close(device)
