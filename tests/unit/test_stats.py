"""What a mount counts of itself: throughputs of the last seconds, hot paths, and failures that are kept."""

from __future__ import annotations

import json
import time

import pytest

from layerfs.driver.metered import MeteredDriver
from layerfs.view.measurements import CacheFigures, Measurements
from layerfs.view.stats import Details, Failure, MountStats

SECOND = 1_000_000_000


class Clock:
    """Time that goes when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1_000 * SECOND
        monkeypatch.setattr(time, "monotonic_ns", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The one that the figures look at."""
    return Clock(monkeypatch)


def read(stats: MountStats, clock: Clock, path: str, length: int) -> None:
    """What the guard and a handler do for one read."""
    if clock.now > stats.next_sample:
        stats.sample(clock.now)
    stats.requests += 1
    stats.read(path, length)


def failure(number: int, error: str = "EIO") -> Failure:
    details = Details(inode=3, handle=4, offset=5, length=6)
    return Failure("2026-11-23T00:00:00", number, "read", f"p{number}", None, error, "ShortRead", "why", 0.5, details)


def test_a_steady_throughput(clock: Clock) -> None:
    """1000 bytes every 10 ms are 100,000 bytes and 100 operations a second, over any time."""
    stats = MountStats()
    for _ in range(9000):
        clock.now += SECOND // 100
        read(stats, clock, "a", 1000)
    for seconds in (1, 10, 60):
        rates = stats.throughput(seconds)
        assert rates.bytes_read == pytest.approx(100_000, rel=0.3)
        assert rates.operations == pytest.approx(100, rel=0.3)
        assert rates.bytes_written == 0


def test_a_throughput_that_ended(clock: Clock) -> None:
    """What was read 5 seconds ago counts for 10 and 60 seconds, and no more for one."""
    stats = MountStats()
    clock.now += 100 * SECOND
    read(stats, clock, "a", 600_000)
    clock.now += 5 * SECOND
    assert stats.throughput(1).bytes_read == 0
    assert stats.throughput(10).bytes_read == pytest.approx(60_000)
    assert stats.throughput(60).bytes_read == pytest.approx(10_000)
    clock.now += 56 * SECOND
    assert stats.throughput(60).bytes_read == 0


def test_a_young_mount(clock: Clock) -> None:
    """Has the throughput of its life, not of a minute."""
    stats = MountStats()
    clock.now += 2 * SECOND
    read(stats, clock, "a", 2_000_000)
    assert stats.throughput(60).bytes_read == pytest.approx(1_000_000)


def test_samples_are_bounded(clock: Clock) -> None:
    """However long a mount lives and however many paths are read."""
    stats = MountStats()
    for number in range(3000):
        clock.now += SECOND // 4
        read(stats, clock, f"path {number}", 1)
        for other in range(100):
            stats.read(f"{number} {other}", 1)
    assert len(stats._samples) < 300
    assert max(len(sample.hot) for sample in stats._samples) <= 100


def test_the_hottest_path_is_the_first(clock: Clock) -> None:
    """By bytes read and written in ten seconds; what was hot before has cooled down."""
    stats = MountStats()
    clock.now += 100 * SECOND
    read(stats, clock, "old", 10_000_000)
    clock.now += 11 * SECOND
    read(stats, clock, "cold", 1000)
    read(stats, clock, "hot", 5000)
    stats.written("hot", 5000)
    assert stats.speeds() == {"hot": 1000.0, "cold": 100.0}


def test_failures_are_kept_and_counted() -> None:
    """The newest 200 with everything, all of them in the counts."""
    stats = MountStats()
    for number in range(300):
        stats.failed(failure(number))
    stats.failed(failure(300, "ENOSPC"))
    assert [each.request for each in stats.failures] == list(range(101, 301))
    assert stats.copy_errors() == {("read", "EIO"): 300, ("read", "ENOSPC"): 1}
    fields = json.loads(json.dumps(stats.failures[-1].fields()))
    assert fields["offset"] == 5
    assert "target" not in fields


def test_names_that_are_not_there_are_bounded() -> None:
    """And the one that was asked for again is the newest."""
    stats = MountStats()
    for number in range(300):
        stats.was_missing(failure(number))
    stats.was_missing(failure(150))
    assert len(stats.missing) == 200
    assert next(reversed(stats.missing)) == "p150"


def test_an_endless_path_is_cut_off() -> None:
    """In what is shown: a client chooses names, and cannot fill memory or pages with them."""
    long = Failure("t", 1, "lookup", "x" * 100_000, "y" * 100_000, "EIO", "k", "z" * 100_000, 0.0, Details())
    assert len(json.dumps(long.fields())) < 15_000


def test_status_stays_small() -> None:
    """Whatever happens: it is read by programs that wait for it."""
    stats = MountStats()
    for number in range(500):
        stats.failed(failure(number))
        stats.read("p" * 4000 + str(number), 10)
        stats.under_way[number] = ("read", (), stats.began_at)
    uploads = [{"path": "u" * 300, "size": 1} for _ in range(256)]
    figures = Measurements({}, 1.0, 1, 1, 1, 256, 0, stats, None, {"x": CacheFigures(1, 2)})
    assert len(json.dumps(figures.status(uploads))) < 250_000


def test_the_text_is_a_name_and_a_number_a_line() -> None:
    """Always the same names, and every line has a value that is a number."""
    stats = MountStats()
    stats.latency("read").add(1000)
    stats.failed(failure(1))
    figures = Measurements({}, 1.5, 1, 2, 3, 0, 0, stats, None, {"listings": CacheFigures(5, 6, 7, "entries")})
    lines = dict(line.split(" ") for line in figures.text().splitlines())
    assert {name: float(value) for name, value in lines.items()} == {
        "uptime_seconds": 1.5,
        "open_files": 1,
        "open_directories": 2,
        "inodes": 3,
        "bytes_read": 0,
        "bytes_written": 0,
        "uploads_active": 0,
        "uploads_committed": 0,
        "uploads_failed": 0,
        "verify_failures": 0,
        "read_ahead_bytes": 0,
        "cache.listings.hits": 5,
        "cache.listings.misses": 6,
        "cache.listings.entries": 7,
        "operation.read.count": 1,
        "operation.read.seconds": 1e-06,
        "error.read.EIO": 1,
    }


def test_every_call_to_a_backend_is_measured() -> None:
    """A method that is added to the interface is not to be forgotten here."""
    from layerfs.driver.interface import StorageDriver

    methods = {name for name, value in vars(StorageDriver).items() if callable(value) and not name.startswith("_")}
    assert methods <= set(vars(MeteredDriver))
