"""Which bytes a read gives: the same rule for every driver."""

from __future__ import annotations

from layerfs.errors import InvalidOffset, ShortRead


def clamp(path: str, offset: int, length: int, size: int) -> int:
    """How many of the `length` bytes at `offset` a file of `size` bytes has. Raises `InvalidOffset`."""
    if offset < 0:
        raise InvalidOffset(path, f"{offset}")
    return max(0, min(length, size - offset))


def check_length(path: str, content: bytes, length: int) -> bytes:
    """`content`, if it has `length` bytes; else raises `ShortRead`."""
    if len(content) != length:
        raise ShortRead(path, f"{len(content)} of {length} bytes")
    return content
