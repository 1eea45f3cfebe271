"""What an upload has taken and not stored yet: gathered in memory, so that many small writes are stored in one go."""

from __future__ import annotations

from typing import Final

#: Bytes that are gathered before they are handed to the driver: one trip to a thread for many small writes.
STORE_SIZE: Final = 1 << 20

#: Bytes below which a write is gathered with its neighbours.
_SMALL: Final = 64 << 10


class PendingBytes:
    """Bytes that are to be stored, in order.

    `size` counts every byte from `append` until `stored` or `clear`: also those that `take` has given out, which are on
    their way to storage.
    """

    def __init__(self) -> None:
        self.size = 0
        self._buffers: list[bytes | bytearray] = []

    @property
    def are_left(self) -> bool:
        """Whether there are any that `take` has not given out."""
        return bool(self._buffers)

    def append(self, content: bytes) -> None:
        """Takes more."""
        last = self._buffers[-1] if self._buffers else None
        if len(content) >= _SMALL:
            self._buffers.append(content)
        elif isinstance(last, bytearray) and len(last) < STORE_SIZE:
            last += content
        else:
            # Gathered: as objects of their own, bytes written one by one would take forty times their size.
            self._buffers.append(bytearray(content))
        self.size += len(content)

    def take(self) -> list[bytes]:
        """All that are left, for whoever stores them."""
        taken, self._buffers = [bytes(content) for content in self._buffers], []
        return taken

    def stored(self, count: int) -> None:
        """So many of what was taken are in storage now."""
        self.size -= count

    def clear(self) -> None:
        """Drops all, also what was taken."""
        self._buffers.clear()
        self.size = 0
