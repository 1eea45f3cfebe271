"""Read leases (`fcntl(2)`, F_SETLEASE): the one way in Linux to know that nobody has a file open for writing.

The kernel grants a read lease only while no descriptor and no shared mapping can write to the file, and makes whoever
opens it for writing afterwards wait until the lease is given back, or until `/proc/sys/fs/lease-break-time` (45 s) has
passed: then it takes the lease away. It belongs to the open file, and goes when that is closed.
"""

from __future__ import annotations

import errno
import fcntl
import signal


def take(number: int) -> bool:
    """Whether a read lease on the file, open for reading only, could be had."""
    try:
        # SIGIO, which the kernel sends when somebody wants to write, would kill a process that does not handle it.
        # SIGURG is ignored by default.
        fcntl.fcntl(number, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(number, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError:
        # A writer (EAGAIN), somebody else's file (EACCES), a file system that has no leases (EINVAL, EOPNOTSUPP): all
        # the same to the caller, who copies the file instead.
        return False
    return True


def has_writer(number: int) -> bool:
    """Whether the file, open for reading only, is certainly open for writing elsewhere. No lease is left on it."""
    try:
        fcntl.fcntl(number, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(number, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(number, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError as error:
        # Any other error says that a lease cannot be had here at all, writer or not.
        return error.errno == errno.EAGAIN
    return False


def is_undisturbed(number: int) -> bool:
    """Whether the lease holds and nobody waits for it to be given back.

    The first question is answered with F_UNLCK from the moment somebody opens the file for writing. The second finds
    one who is inside `open` but has not come to the lease yet: the kernel counts him as a writer already, and refuses
    to set again a lease that we have.
    """
    return fcntl.fcntl(number, fcntl.F_GETLEASE) == fcntl.F_RDLCK and take(number)


def give_back(number: int) -> bool:
    """Gives the lease back; whether it was there until now, so that nobody can have written in the meantime."""
    try:
        fcntl.fcntl(number, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError:
        return False
    return True
