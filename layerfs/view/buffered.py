"""Small files in memory: to be read, or written at their final name and handed on whole when they are closed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable

from layerfs.errors import ManifestTooLarge
from layerfs.view.nodes import Attributes, Handle, Node, file_attributes
from layerfs.view.state import MountState


class MemoryHandle(Handle):
    """Reads what is in memory: one state of a file that is not stored as it is shown."""

    direct = True

    def __init__(self, path: str, content: bytes) -> None:
        self.path = path
        self._content = content

    def read_nowait(self, offset: int, length: int) -> bytes:
        return self._content[offset : offset + length]

    async def read(self, offset: int, length: int) -> bytes:
        return self.read_nowait(offset, length)


class BufferedHandle(Handle):
    """Writes into memory, and hands all of it to `put` when a descriptor is closed; what that raises, `close` reports.

    `limit` is in bytes. `content` is what it begins with, as when a file is opened without being emptied.
    After something beyond the limit was refused, nothing is handed on before the file is cut to nothing: what came
    before may be a manifest itself (JSON may end in any number of blanks), and the writer was told that it failed.
    """

    direct = True

    def __init__(self, path: str, put: Callable[[bytes], Awaitable[None]], *, limit: int, content: bytes = b"") -> None:
        self.path = path
        self._put = put
        self._limit = limit
        self._content = bytearray(content)
        self._changed = False
        self._too_large = False

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return len(self._content)

    async def read(self, offset: int, length: int) -> bytes:
        return bytes(self._content[offset : offset + length])

    async def write(self, offset: int, content: bytes) -> int:
        end = offset + len(content)
        self._check_size(end)
        if offset > self.size:
            self._content.extend(bytes(offset - self.size))
        self._content[offset:end] = content
        self._changed = True
        return len(content)

    async def truncate(self, size: int) -> None:
        self._check_size(size)
        self._content[size:] = bytes(max(0, size - self.size))
        self._changed = True
        if size == 0:
            self._too_large = False

    async def flush(self) -> None:
        if self._too_large:
            raise ManifestTooLarge(self._limit)
        # A shell's `>` is flushed before the first write: nothing is no content.
        if self._changed and self._content:
            await self._put(bytes(self._content))
            self._changed = False

    async def synchronize(self) -> None:
        """Nothing is stored before it is complete, so there is nothing to synchronize before it is closed."""

    def _check_size(self, size: int) -> None:
        if size > self._limit:
            self._too_large = True
            raise ManifestTooLarge(self._limit)


class BufferedFile(Node):
    """A file that is being written so, and that nobody else has: there for whoever has it open."""

    def __init__(self, state: MountState, handle: BufferedHandle) -> None:
        self.path = handle.path
        self._state = state
        self._handle = handle

    @property
    def key(self) -> Hashable:
        return ("new file", id(self._handle))

    async def attributes(self) -> Attributes:
        return file_attributes(
            permissions=self._state.permissions(0o644), size=self._handle.size, modified_at=self._state.mounted_at
        )

    def check_ownership_change(self) -> None:
        """Taken and ignored, as for every upload."""
