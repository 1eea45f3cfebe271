"""When an upload was begun: `startedat`, as far as it can be understood. No I/O."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, timezone
from typing import Final

#: Bytes of `startedat` that are read. RFC 3339 sets no end to the digits of a fraction.
STARTED_AT_LIMIT: Final = 128

_RFC3339: Final = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[Tt ](\d\d):(\d\d):(\d\d)(?:[.,](\d+))?(?:[Zz]|([+-])(\d\d):(\d\d))", re.ASCII
)


def parse_rfc3339(content: bytes) -> datetime | None:
    """The time that `content` is, in any of the forms of RFC 3339; None if it is none.

    Nothing may stand around it: a registry does not understand a time with a newline behind it either. Its offset is
    that of the text. The second 60 is the first of the next minute, digits beyond microseconds are cut off.
    """
    match = _RFC3339.fullmatch(content.decode("ascii", "replace"))
    if match is None:
        return None
    year, month, day, hour, minute, second = (int(text) for text in match.groups()[:6])
    if second > 60:
        return None
    microsecond = int((match[7] or "0")[:6].ljust(6, "0"))
    try:
        time = datetime(year, month, day, hour, minute, tzinfo=_zone(match))
        time += timedelta(seconds=second, microseconds=microsecond)
        # One that is none in UTC cannot be compared with others.
        time.astimezone(UTC)
    except (ValueError, OverflowError):
        return None
    return time


def _zone(match: re.Match[str]) -> timezone:
    """Raises `ValueError` for an offset that no place has."""
    if match[8] is None:
        return UTC
    hours, minutes = int(match[9]), int(match[10])
    if hours > 23 or minutes > 59:
        raise ValueError(match.group())
    offset = timedelta(hours=hours, minutes=minutes)
    return timezone(-offset if match[8] == "-" else offset)


def time_of(nanoseconds: int) -> datetime | None:
    """A file's modification time; None where the backend does not know it, or nobody could have set it in earnest."""
    if nanoseconds <= 0:
        return None
    try:
        return datetime.fromtimestamp(nanoseconds / 1e9, UTC)
    except (ValueError, OverflowError, OSError):
        return None
