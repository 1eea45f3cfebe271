"""Why a server could not be reached, as the system says it."""

from __future__ import annotations

import errno
import socket
from typing import Final

#: Numbers of getaddrinfo(3), which are negative, and so never those of an errno.
_NO_SUCH_NAME: Final = frozenset({socket.EAI_NONAME, socket.EAI_AGAIN, socket.EAI_FAIL, socket.EAI_NODATA})


def network_reason(number: int) -> str:
    """What the number of an `OSError` of a connection means: the name of an errno, or that of a host is not known."""
    if number in _NO_SUCH_NAME:
        return "its host name cannot be resolved"
    return errno.errorcode.get(number, str(number))
