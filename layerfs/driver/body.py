"""The body of a request that stores a part: signed and sent as it is in memory, without another copy of it.

SDKs take bytes, which they would send in one piece that holds their loop up, and files. From a `BytesIO` botocore and
aiohttp make three copies: when it is asked for its size, when it is read to be signed, and when it is read to be sent;
and fresh memory costs more CPU than all the rest of an upload. This is as much of a file as SDKs read for sums and
signatures and go back in when a request is repeated, and an asynchronous iterator to what sends it (aiohttp).
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from typing import Final

#: Bytes that are sent at a time: as many as a socket takes at once.
_SENT: Final = 256 << 10


class Body:
    """Bytes that nobody changes as long as this is there."""

    def __init__(self, content: bytes | memoryview) -> None:
        self._content = memoryview(content)
        self._position = 0

    def read(self, size: int = -1) -> memoryview | bytes:
        """The next bytes, as many as there are of `size`."""
        end = len(self._content) if size is None or size < 0 else self._position + size
        found = self._content[self._position : end]
        self._position += len(found)
        # What asks for all of a file compares with `b""`.
        return found if found else b""

    def tell(self) -> int:
        """Where `read` is."""
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Goes elsewhere; to the beginning when a request is repeated."""
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: len(self._content)}[whence]
        self._position = max(0, start + offset)
        return self._position

    async def __aiter__(self) -> AsyncIterator[memoryview]:
        """What is left to read, in pieces."""
        while self._position < len(self._content):
            piece = self._content[self._position : self._position + _SENT]
            self._position += len(piece)
            yield piece
