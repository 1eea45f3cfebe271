"""`LatencyHistogram`: how long things took, for so little time and memory that everything can be measured. No I/O."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

#: Buckets by the number of bits of the nanoseconds: bucket n ends before 2**n ns. The last one is over 4 minutes,
#: and takes everything that is longer.
BUCKETS: Final = 40


class LatencyHistogram:
    """How many took how long, in buckets that each end at twice the time of the one before.

    `add` costs a quarter of a microsecond: no search for the bucket, and a number of bits is one instruction.
    """

    __slots__ = ("counts", "nanoseconds")

    def __init__(self, counts: Sequence[int] | None = None, nanoseconds: int = 0) -> None:
        self.counts = list(counts) if counts is not None else [0] * BUCKETS
        #: All of them together.
        self.nanoseconds = nanoseconds

    def add(self, nanoseconds: int) -> None:
        """Counts one more."""
        bits = nanoseconds.bit_length()
        self.counts[bits if bits < BUCKETS else BUCKETS - 1] += 1
        self.nanoseconds += nanoseconds

    @property
    def count(self) -> int:
        """How many there were."""
        return sum(self.counts)

    @property
    def seconds(self) -> float:
        """How long they took together."""
        return self.nanoseconds / 1e9

    def quantile(self, fraction: float) -> float:
        """The seconds within which `fraction` of them were done; 0 if there were none.

        Within its bucket a duration is estimated, as if they were spread evenly: it is right within a factor of two.
        """
        wanted = fraction * self.count
        below = 0
        for bits, count in enumerate(self.counts):
            if count and below + count >= wanted:
                start, end = (1 << bits) >> 1, 1 << bits
                return (start + (end - start) * (wanted - below) / count) / 1e9
            below += count
        return 0.0

    def since(self, earlier: LatencyHistogram) -> LatencyHistogram:
        """Those that were added since `earlier`, which was this histogram then."""
        counts = [now - then for now, then in zip(self.counts, earlier.counts, strict=True)]
        return LatencyHistogram(counts, self.nanoseconds - earlier.nanoseconds)

    def copy(self) -> LatencyHistogram:
        """What it is now. May be called from any thread."""
        return LatencyHistogram(self.counts, self.nanoseconds)
