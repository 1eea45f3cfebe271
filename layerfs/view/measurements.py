"""`Measurements`: all figures of a mount at one time, and the two forms in which the mount itself shows them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from layerfs.driver.metered import BackendStats
from layerfs.latency import LatencyHistogram
from layerfs.view.stats import MountStats

#: Seconds of which throughputs are told.
WINDOWS: Final = (1, 10, 60)

#: Paths with the most bytes, and operations that wait longest, in `status.json`.
_HOTTEST_SHOWN: Final = 20
_OLDEST_SHOWN: Final = 10

Fields: TypeAlias = dict[str, object]


@dataclass(frozen=True, slots=True)
class CacheFigures:
    """How often a cache was asked, and `size` bytes or entries (`unit`) that it holds, if it knows."""

    hits: int
    misses: int
    size: int | None = None
    unit: str = "entries"


@dataclass(frozen=True, slots=True)
class Measurements:
    """The figures; `uptime` in seconds, `about` what does not change, `uploads` how many are being written."""

    about: Mapping[str, object]
    uptime: float
    open_files: int
    open_directories: int
    inodes: int
    uploads: int
    read_ahead_bytes: int
    stats: MountStats
    backend: BackendStats | None
    caches: Mapping[str, CacheFigures]

    # --- status.json ---------------------------------------------------------------------------------------------

    def status(self, uploads: Sequence[Fields]) -> Fields:
        """What `status.json` shows; `uploads` are those that are being written."""
        stats = self.stats
        speeds = stats.speeds()
        latencies = stats.copy_latencies()
        return {
            **self.about,
            "uptime_seconds": round(self.uptime, 3),
            "open_files": self.open_files,
            "open_directories": self.open_directories,
            "inodes": self.inodes,
            "throughput": {f"{seconds}s": _rates(stats, seconds) for seconds in WINDOWS},
            "bytes_read": stats.bytes_read,
            "bytes_written": stats.bytes_written,
            "uploads": [
                {**upload, "bytes_per_second": round(speeds.get(str(upload.get("path")), 0.0))} for upload in uploads
            ],
            "uploads_committed": stats.uploads_committed,
            "uploads_failed": stats.uploads_failed,
            "verify_failures": stats.verify_failures,
            "read_ahead_bytes": self.read_ahead_bytes,
            "caches": {name: _cache(figures) for name, figures in self.caches.items()},
            "backend": self._backend(),
            "errors": sum(stats.errors.values()),
            "errors_by": [
                {"operation": operation, "error": error, "count": count}
                for (operation, error), count in stats.copy_errors().items()
            ],
            "last_error": stats.failures[-1].fields() if stats.failures else None,
            "under_way": list(stats.oldest_under_way(_OLDEST_SHOWN)),
            "hottest": [
                {"path": path[:1024], "bytes_per_second": round(speed)}
                for path, speed in list(speeds.items())[:_HOTTEST_SHOWN]
            ],
            "calls": {operation: latency.count for operation, latency in latencies.items()},
            "latencies": {operation: _latency(latency) for operation, latency in latencies.items()},
        }

    def _backend(self) -> Fields | None:
        backend = self.backend
        if backend is None:
            return None
        return {
            "driver": backend.driver,
            "under_way": backend.under_way,
            "bytes_read": backend.bytes_read,
            "bytes_written": backend.bytes_written,
            "requests": {action: _latency(latency) for action, latency in backend.copy_latencies().items()},
            "errors_by": [
                {"action": action, "kind": kind, "count": count}
                for (action, kind), count in backend.copy_errors().items()
            ],
        }

    # --- stats ---------------------------------------------------------------------------------------------------

    def text(self) -> str:
        """What `stats` shows: a name and a value a line."""
        return "".join(
            f"{name} {value:g}\n" if isinstance(value, float) else f"{name} {value}\n" for name, value in self._lines()
        )

    def _lines(self) -> Iterator[tuple[str, int | float]]:
        stats = self.stats
        yield "uptime_seconds", round(self.uptime, 3)
        yield "open_files", self.open_files
        yield "open_directories", self.open_directories
        yield "inodes", self.inodes
        yield "bytes_read", stats.bytes_read
        yield "bytes_written", stats.bytes_written
        yield "uploads_active", self.uploads
        yield "uploads_committed", stats.uploads_committed
        yield "uploads_failed", stats.uploads_failed
        yield "verify_failures", stats.verify_failures
        yield "read_ahead_bytes", self.read_ahead_bytes
        for name, figures in self.caches.items():
            yield f"cache.{name}.hits", figures.hits
            yield f"cache.{name}.misses", figures.misses
            if figures.size is not None:
                yield f"cache.{name}.{figures.unit}", figures.size
        yield from _latency_lines("operation", stats.copy_latencies())
        for (operation, error), count in stats.copy_errors().items():
            yield f"error.{operation}.{error}", count
        if self.backend is not None:
            yield "backend.under_way", self.backend.under_way
            yield "backend.bytes_read", self.backend.bytes_read
            yield "backend.bytes_written", self.backend.bytes_written
            yield from _latency_lines("backend", self.backend.copy_latencies())
            for (action, kind), count in self.backend.copy_errors().items():
                yield f"backend_error.{action}.{kind}", count


def _rates(stats: MountStats, seconds: int) -> Fields:
    rates = stats.throughput(seconds)
    return {
        "operations": round(rates.operations, 1),
        "bytes_read": round(rates.bytes_read),
        "bytes_written": round(rates.bytes_written),
    }


def _cache(figures: CacheFigures) -> Fields:
    fields: Fields = {"hits": figures.hits, "misses": figures.misses}
    return fields if figures.size is None else fields | {figures.unit: figures.size}


def _latency(latency: LatencyHistogram) -> Fields:
    return {
        "count": latency.count,
        "seconds": round(latency.seconds, 6),
        "p50": round(latency.quantile(0.5), 9),
        "p99": round(latency.quantile(0.99), 9),
        # How many took less than 2**bits nanoseconds, and at least half of that.
        "bits": {str(bits): count for bits, count in enumerate(latency.counts) if count},
    }


def _latency_lines(prefix: str, latencies: Mapping[str, LatencyHistogram]) -> Iterator[tuple[str, int | float]]:
    for name, latency in latencies.items():
        yield f"{prefix}.{name}.count", latency.count
        yield f"{prefix}.{name}.seconds", round(latency.seconds, 6)
