"""Ending a mount from outside, and waiting until its daemon has stored everything and is gone."""

from __future__ import annotations

import json
import os
import select
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

from layerfs import mountpoint as mountpoints
from layerfs.errors import LayerfsError

#: In the mount, and made by its daemon.
_STATUS_FILE: Final = ".layerfs/status.json"
_STATUS_LIMIT: Final = 4 << 20

#: Longer than a daemon allows itself for its last requests and uploads.
_DRAIN_SECONDS: Final = 90.0


class StillDraining(LayerfsError):
    """The mount is gone, but its daemon goes on storing what it was given."""


def end_mount(mountpoint: str, *, lazy: bool) -> None:
    """Unmounts layerfs from `mountpoint`; unless `lazy`, returns when its daemon has flushed everything and ended.

    Works for dead and wedged mounts too, without waiting for them. Raises `MountpointError` if there is no mount of
    layerfs, `UnmountFailed` if it is in use, and `StillDraining`. To be called while the process has one thread.
    """
    mounts = mountpoints.read_mounts()
    path = mountpoints.resolve(mountpoint, mounts)
    mount = mountpoints.mount_at(path, mounts)
    if mount is None:
        raise mountpoints.MountpointError(f"nothing is mounted on {path!r}")
    if not mount.is_ours:
        raise mountpoints.MountpointError(
            f"{path!r} holds a mount of type {mount.filesystem_type!r}, not of layerfs: use umount(8) for that"
        )
    if lazy:
        # It lives on until its last use ends, and that is the point of it.
        mountpoints.unmount(path, lazy=True)
        return
    with _daemon_of(path) as daemon:
        mountpoints.unmount(path, lazy=False)
        if daemon is not None and not select.select([daemon], [], [], _DRAIN_SECONDS)[0]:
            raise StillDraining(
                f"{path!r} is unmounted, but its daemon has not ended within {_DRAIN_SECONDS:.0f} s: see its log"
            )


@contextmanager
def _daemon_of(path: str) -> Iterator[int | None]:
    """A descriptor of the process behind the mount, readable when that has ended; None if it cannot be known."""
    daemon = _open_daemon(path)
    try:
        yield daemon
    finally:
        if daemon is not None:
            os.close(daemon)


def _open_daemon(path: str) -> int | None:
    pid = _pid_of_daemon(path)
    if pid is None:
        return None
    with suppress(OSError):
        daemon = os.pidfd_open(pid)
        # The number may be one of another pid namespace, where the daemon lives in a container.
        if "/dev/fuse" in mountpoints.open_paths(pid):
            return daemon
        os.close(daemon)
    return None


def _pid_of_daemon(path: str) -> int | None:
    def read_status() -> bytes:
        with open(os.path.join(path, _STATUS_FILE), "rb") as file:
            return file.read(_STATUS_LIMIT)

    try:
        status = json.loads(mountpoints.ask(read_status) or b"{}")
    except ValueError:
        return None
    pid = status.get("pid") if isinstance(status, dict) else None
    return pid if isinstance(pid, int) else None
