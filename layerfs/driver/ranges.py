"""Which bytes a read gives: the same rule for every driver."""

from __future__ import annotations

from layerfs.errors import BackendFailure, InvalidOffset, ShortRead


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


def check_range(path: str, content_range: str, offset: int) -> None:
    """Raises `BackendFailure` if an answer's `Content-Range` (RFC 9110, 14.4) begins elsewhere than at `offset`.

    Caches on the way have mixed ranges up; what has the right length would be taken for the right bytes. Nothing is
    said of an answer without one.
    """
    begin = content_range.removeprefix("bytes ").partition("-")[0]
    if begin.isdecimal() and int(begin) != offset:
        sent = f"the store, or a cache on the way, sent {content_range!r}"
        raise BackendFailure(path, f"asked for bytes from {offset} on, {sent}")
