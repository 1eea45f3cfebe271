"""Histograms of durations: nothing is lost, and a quantile is right within its bucket."""

from __future__ import annotations

import statistics

from hypothesis import given
from hypothesis import strategies as st

from layerfs.latency import BUCKETS, LatencyHistogram

durations = st.lists(st.integers(0, 1 << 45), min_size=1, max_size=200)


def histogram_of(values: list[int]) -> LatencyHistogram:
    made = LatencyHistogram()
    for value in values:
        made.add(value)
    return made


@given(values=durations)
def test_every_duration_is_in_its_bucket(values: list[int]) -> None:
    """Bucket n holds what is less than 2**n and no less than half of that; the last one also all that is longer."""
    made = histogram_of(values)
    for bits in range(BUCKETS - 1):
        low, high = (1 << bits) >> 1, 1 << bits
        assert made.counts[bits] == sum(low <= value < high for value in values)
    assert made.count == len(values)
    assert made.nanoseconds == sum(values)


@given(values=st.lists(st.integers(1, 1 << 37), min_size=2, max_size=200), fraction=st.sampled_from([0.5, 0.9, 0.99]))
def test_a_quantile_is_right_within_a_factor_of_two(values: list[int], fraction: float) -> None:
    """Compared with the value that stands there when all are sorted."""
    wanted = sorted(values)[max(0, -int(-fraction * len(values) // 1) - 1)] / 1e9
    assert wanted / 2 <= histogram_of(values).quantile(fraction) <= wanted * 2


def test_nothing_took_no_time() -> None:
    """Of no durations, every quantile is 0."""
    assert LatencyHistogram().quantile(0.99) == 0.0


@given(earlier=durations, later=durations)
def test_what_came_since(earlier: list[int], later: list[int]) -> None:
    """The difference of two histograms is that of what was added between them."""
    made = histogram_of(earlier)
    then = made.copy()
    for value in later:
        made.add(value)
    assert made.since(then).counts == histogram_of(later).counts
    assert made.since(then).seconds == sum(later) / 1e9


def test_a_median() -> None:
    """Of many durations that are spread evenly within a bucket, the median is close."""
    values = list(range(1 << 20, 1 << 21, 997))
    assert abs(histogram_of(values).quantile(0.5) * 1e9 - statistics.median(values)) < 2000
