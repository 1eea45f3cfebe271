"""How long a request to an object store may take, and when one that failed is made again: the same for all stores.

Gateways are restarted, and stores ask for fewer requests. Both passes within half a minute, which whoever copies into a
mount would rather wait than be told; but the SDKs count their tries, and give up after a few seconds. So here it is
time that counts. The tries are still the SDK's, which signs each anew and sends what is sent from its beginning.

That is for stores that were there a moment ago. Before a store has answered for the first time it is more likely that
its address is wrong, and whoever gave it is told at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import time
from collections.abc import AsyncIterator, Mapping
from contextvars import ContextVar
from email.utils import parsedate_to_datetime
from enum import Enum, auto
from typing import Final

from layerfs.driver.url_options import MEBIBYTE

#: Seconds until a connection must be made.
CONNECT_TIMEOUT: Final = 5

#: Seconds without a word after which a request is tried again, unless the options say otherwise. With three times that,
#: an operation of a mount, which has 60 s, ends by what the store did and not by the clock.
READ_TIMEOUT: Final = 15.0

#: How often a store that says nothing is asked.
_SILENT_TRIES: Final = 3

#: The part of its time in which a request is made again. The rest is for the last try, so that its failure is told.
_TRIED_FOR: Final = 5 / 6

#: Bytes in a second below which a line counts as broken.
_SLOWEST_LINE: Final = MEBIBYTE // 4

#: Tries of what may fail however often it is tried, and of a store that has never answered.
_FEW: Final = 3

#: Seconds between two tries: at most the first, twice as many each time, up to the second; a random part of it, so
#: that not all come back at once to a store that is just up. Google lets an object be changed once in a second.
_FIRST_PAUSE: Final = 1.0
_LONGEST_PAUSE: Final = 4.0

_AWAY: Final = frozenset({429, 502, 503, 504})
_ACCIDENTS: Final = frozenset({408, 500})


class Failing(Enum):
    """For how long a request will fail, as far as one try of it tells."""

    #: The same request would fail again: it is wrong, or forbidden.
    FOR_GOOD = auto()
    #: It may be an accident, and may not: a store that has lost an object says the same as one that has stumbled.
    PERHAPS = auto()
    #: Nobody is there, or nobody has time.
    FOR_NOW = auto()


def check_read_timeout(seconds: float) -> None:
    """Raises `ValueError` for an option that nobody can mean."""
    if not 0 < seconds < math.inf:
        raise ValueError(f"read_timeout must be more than 0 seconds, not {seconds}")


def failing_by_status(status: int) -> Failing:
    """What the status of an error says of it."""
    if status in _AWAY:
        return Failing.FOR_NOW
    return Failing.PERHAPS if status in _ACCIDENTS else Failing.FOR_GOOD


def seconds_asked_for(headers: Mapping[str, str]) -> float:
    """How long to wait, as an answer says by its `Retry-After`, a number of seconds or a date; 0 if it does not."""
    said = headers.get("retry-after", "")
    if said.isascii() and said.isdecimal():
        return float(said)
    try:
        return max(0.0, parsedate_to_datetime(said).timestamp() - time.time())
    except ValueError:
        return 0.0


class Patience:
    """With one store. It is told of every answer."""

    def __init__(self, read_timeout: float) -> None:
        self._seconds = _SILENT_TRIES * read_timeout
        self._has_answered = False

    def deadline(self, length: int = 0) -> float:
        """Seconds that all tries of a request have together that sends or gets `length` bytes."""
        return self._seconds + length / _SLOWEST_LINE

    def answered(self) -> None:
        """The store is there: it has answered, be it by an error."""
        self._has_answered = True

    @contextlib.asynccontextmanager
    async def request(self, seconds: float) -> AsyncIterator[Tries]:
        """Around all tries of a request, which end with a `TimeoutError` after so many seconds.

        What the SDK calls within finds them by `current_tries`.
        """
        tries = Tries(self, seconds)
        _current.set(tries)
        async with asyncio.timeout(seconds):
            yield tries

    def for_now(self) -> float:
        """Seconds for which a request is made again that fails for now; 0 if the store has never answered."""
        return _TRIED_FOR * self._seconds if self._has_answered else 0.0


class Tries:
    """Those of one request."""

    def __init__(self, patience: Patience, seconds: float) -> None:
        self._patience = patience
        self._last_at = time.monotonic() + _TRIED_FOR * seconds
        self._failed = 0
        self._counted = 0
        self._first_failed_at = 0.0

    def pause(self, failing: Failing, *, at_least: float = 0.0) -> float | None:
        """Seconds until the next try, after one has failed; None if there is to be none.

        `at_least` are those that the store has asked for (`seconds_asked_for`). The last try is not put off by them.
        """
        now = time.monotonic()
        self._first_failed_at = self._first_failed_at or now
        self._failed += 1
        if failing is Failing.FOR_GOOD:
            return None
        last_at = self._last_at
        if failing is Failing.FOR_NOW and (patience := self._patience.for_now()):
            last_at = min(last_at, self._first_failed_at + patience)
        else:
            self._counted += 1
        if now >= last_at or self._counted == _FEW:
            return None
        longest = min(_FIRST_PAUSE * 2 ** (self._failed - 1), _LONGEST_PAUSE)
        pause = random.uniform(longest / 4, longest)  # noqa: S311 - a pause
        if at_least:
            pause = max(pause, at_least + random.uniform(0, _FIRST_PAUSE))  # noqa: S311 - a pause
        return min(pause, last_at - now)


_current: Final[ContextVar[Tries]] = ContextVar("tries")


def current_tries() -> Tries:
    """Those of the request that this task makes."""
    return _current.get()
