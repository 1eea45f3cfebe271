"""Bugs to be found: each shows that the check which is there to find it can fail.

The daemon is the real one. Python imports `sitecustomize` from `PYTHONPATH` before everything else, and the one written
here changes a single function of the standard library under it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import pytest

BUGS: Final = {
    # No bug, but a file system as there are some: NFS and most of FUSE have no leases.
    "no leases": """
        real = fcntl.fcntl
        def refused(descriptor, command, *argument):
            if command == fcntl.F_SETLEASE:
                raise OSError(22, "Invalid argument")
            return real(descriptor, command, *argument)
        fcntl.fcntl = refused
    """,
    # Everything looks right until the power goes.
    "no fsync": """
        os.fsync = os.fdatasync = lambda descriptor: None
    """,
    # The kernel reports a lost page once. Who asks again is told that all is well.
    "fsync again": """
        real = os.fsync
        def fsync(descriptor):
            try:
                real(descriptor)
            except OSError:
                real(descriptor)
        os.fsync = fsync
    """,
    # As if a lease could be had while somebody writes.
    "lease granted to everybody": """
        real = fcntl.fcntl
        def granted(descriptor, command, *argument):
            if command == fcntl.F_SETLEASE:
                return 0
            if command == fcntl.F_GETLEASE:
                return fcntl.F_RDLCK
            return real(descriptor, command, *argument)
        fcntl.fcntl = granted
    """,
    # Links appear under their name before they are complete.
    "written in place": """
        real = os.rename
        def rename(source, target, *, src_dir_fd=None, dst_dir_fd=None):
            if target != "link":
                return real(source, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)
            descriptor = os.open(source, os.O_RDONLY, dir_fd=src_dir_fd)
            content = os.read(descriptor, 1 << 30)
            os.close(descriptor)
            descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644, dir_fd=dst_dir_fd)
            os.write(descriptor, content)
            os.fsync(descriptor)
            os.close(descriptor)
            os.unlink(source, dir_fd=src_dir_fd)
        os.rename = os.replace = rename
    """,
    # Whatever lies where a file should be is opened, and a FIFO waits for somebody at its other end.
    "everything is a regular file": """
        import stat
        stat.S_ISREG = lambda mode: not stat.S_ISDIR(mode)
        real = os.open
        def open_and_wait(path, flags, *arguments, **options):
            return real(path, flags & ~os.O_NONBLOCK, *arguments, **options)
        os.open = open_and_wait
    """,
}


def plant(bug: str, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Daemons started from now on have this bug."""
    lines = [line[8:] for line in BUGS[bug].splitlines()]
    directory.mkdir(parents=True)
    (directory / "sitecustomize.py").write_text("\n".join(["import fcntl", "import os", *lines, ""]))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(directory), *filter(None, [os.environ.get("PYTHONPATH")])]))


def unplant(monkeypatch: pytest.MonkeyPatch) -> None:
    """Daemons started from now on are themselves again."""
    monkeypatch.setenv("PYTHONPATH", os.environ["PYTHONPATH"].partition(os.pathsep)[2])
