"""A FUSE session: mounting a `Tree`, serving it, ending it. One for each process, as pyfuse3 has it."""

from __future__ import annotations

import contextlib
import logging
import sys
from dataclasses import dataclass
from typing import Final

import pyfuse3

from layerfs.errors import LayerfsError
from layerfs.fuse.late_answers import ignore_late_answers
from layerfs.fuse.operations import Operations
from layerfs.fuse.polling import poll_first
from layerfs.view.tree import Tree

_log = logging.getLogger(__name__)

#: KiB that the kernel reads ahead on the mount; with its default of 128 every request is an eighth of what it can be.
_READ_AHEAD_KIB: Final = 1024

#: Requests that are handled at once; more wait in the kernel.
_MAX_REQUESTS: Final = 256

#: Reads ahead of programs that the kernel sends at once, and from where on it holds back. With its default of 12, as
#: many that storage does not answer keep everybody from reading anything.
_MAX_READS_AHEAD: Final = 192
_CONGESTED_READS: Final = 144


class MountFailed(LayerfsError):
    """The kernel or fusermount3 refused to mount."""


@dataclass(frozen=True, slots=True)
class SessionOptions:
    """`source_name` is what the table of mounts shows; `operation_timeout` and `slow_operation` are in seconds."""

    source_name: str
    allow_other: bool = False
    read_only: bool = False
    operation_timeout: float = 60.0
    slow_operation: float = 10.0


class _Option(str):
    """An option of any characters. Of itself pyfuse3 encodes as ASCII, which names of directories need not be."""

    __slots__ = ()

    def encode(self, encoding: str = "", errors: str = "") -> bytes:  # noqa: ARG002 - those of `str`
        """As the names of files are."""
        return super().encode(sys.getfilesystemencoding(), sys.getfilesystemencodeerrors())


class Session:
    """The mount of `tree` on `mountpoint`."""

    def __init__(self, tree: Tree, mountpoint: str, options: SessionOptions) -> None:
        self._operations = Operations(
            tree, operation_timeout=options.operation_timeout, slow_operation=options.slow_operation
        )
        self._mountpoint = mountpoint
        self._options = options
        self._mounted = False

    def mount(self) -> None:
        """Mounts, so that requests begin to wait for `run`. Raises `MountFailed`."""
        ignore_late_answers()
        try:
            pyfuse3.init(self._operations, self._mountpoint, _mount_options(self._options))
        except RuntimeError as error:
            raise MountFailed(
                f"cannot mount on {self._mountpoint!r}: {error}. Is /dev/fuse there, and for an ordinary user "
                "fusermount3 (package fuse3)?"
            ) from error
        self._mounted = True
        poll_first()

    async def run(self) -> None:
        """Answers requests until `stop` is called or the file system is unmounted; what has begun is finished."""
        await pyfuse3.main(min_tasks=1, max_tasks=_MAX_REQUESTS)

    async def give_up_for_the_dying(self) -> None:
        """Ends what clients wait for that were killed, for ever."""
        await self._operations.give_up_for_the_dying()

    def raise_read_ahead(self, device: str) -> None:
        """Lets the kernel ask for more at a time, where this process may (root, and sysfs is writable).

        `device` is the mount's `major:minor`. To be called when the first request was answered: until then the kernel
        puts its own limit back.
        """
        connection = f"/sys/fs/fuse/connections/{device.rpartition(':')[2]}"
        for path, value in (
            (f"/sys/class/bdi/{device}/read_ahead_kb", _READ_AHEAD_KIB),
            (f"{connection}/max_background", _MAX_READS_AHEAD),
            (f"{connection}/congestion_threshold", _CONGESTED_READS),
        ):
            with contextlib.suppress(OSError), open(path, "w") as setting:
                setting.write(str(value))

    def change_timeout(self, seconds: float) -> None:
        """From now on no operation that begins takes longer."""
        self._operations.operation_timeout = seconds

    def stop(self) -> None:
        """Makes `run` return when the requests under way are answered."""
        pyfuse3.terminate()

    def close(self) -> None:
        """Unmounts, if that has not been done from outside. May be called again."""
        if self._mounted:
            self._mounted = False
            pyfuse3.close(unmount=True)


def _mount_options(options: SessionOptions) -> set[str]:
    # libfuse splits the options at commas, and fusermount3 escapes for the table of mounts itself.
    name = options.source_name.replace("\\", "\\\\").replace(",", "\\,")
    chosen: set[str] = {_Option(f"fsname={name}"), "subtype=layerfs", "nosuid", "nodev", "noatime"}
    if options.read_only:
        chosen.add("ro")
    if options.allow_other:
        # Others are let in, so the kernel has to hold them to the modes. A mount for one user needs no such check, and
        # without it a refused write can say that it is EPERM for everyone.
        chosen |= {"allow_other", "default_permissions"}
    return chosen
