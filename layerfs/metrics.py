"""Metrics for Prometheus: what a mount has counted, on an address or in a file, under names that do not change.

Needs the extra `metrics` (prometheus_client). Nothing is counted here, and nothing is done until somebody asks: the
figures of the mount are copied when they are scraped, in the thread that serves it, so that a mount whose event loop
is stuck still tells them.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, TypeVar

import trio

from layerfs.errors import LayerfsError

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from prometheus_client.core import HistogramMetricFamily, Metric

    from layerfs.latency import LatencyHistogram
    from layerfs.view.measurements import Measurements

log = logging.getLogger(__name__)

_Labels = TypeVar("_Labels", bound=tuple[str, ...])

#: Seconds between two versions of the file: the usual time between two scrapes.
FILE_SECONDS: Final = 15.0

#: Buckets that are told, by the bits of their nanoseconds: from a microsecond to a minute, each four times as long as
#: the one before. All of them would be as many time series for each operation as there are bits.
_BITS: Final = tuple(range(10, 38, 2))


class MetricsUnavailable(LayerfsError):
    """Metrics were asked for and cannot be had: the address is in use, or what they need is not installed."""


def make_registry(measure: Callable[[], Measurements], *, mountpoint: str) -> CollectorRegistry:
    """A registry of prometheus_client with the figures of one mount. Raises `MetricsUnavailable`."""
    try:
        from prometheus_client import CollectorRegistry
    except ImportError as error:
        raise MetricsUnavailable("metrics need prometheus_client; run pip install 'layerfs[metrics]'") from error
    registry = CollectorRegistry()
    registry.register(_Collector(measure, mountpoint))
    return registry


@contextmanager
def served(measure: Callable[[], Measurements], *, mountpoint: str, address: str) -> Iterator[None]:
    """Serves http://`address`/metrics, in a thread, while the body runs.

    `address` is `HOST:PORT` or `[HOST]:PORT`. Raises `MetricsUnavailable`.
    """
    registry = make_registry(measure, mountpoint=mountpoint)
    from prometheus_client import ProcessCollector, start_http_server

    ProcessCollector(registry=registry)
    host, port = _split_address(address)
    try:
        server, thread = start_http_server(port, host, registry)
    except OSError as error:
        raise MetricsUnavailable(f"cannot serve metrics on {address}: {error.strerror or error}") from error
    log.info("metrics on http://%s/metrics", address)
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _split_address(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.removeprefix("[").removesuffix("]"), int(port)


class MetricsFile:
    """A file for node_exporter's textfile collector: always whole, never older than `FILE_SECONDS`.

    It goes when the mount ends, so that a mount that is gone has no figures. Made before the mount: raises
    `MetricsUnavailable` if the file cannot be written. What is there and is no file (/dev/stdout, a pipe) is refused: a
    file would take its place, and nothing would be there after the mount.
    """

    def __init__(self, measure: Callable[[], Measurements], *, mountpoint: str, path: str) -> None:
        if os.path.exists(path) and not os.path.isfile(path):
            raise MetricsUnavailable(f"cannot write the metrics file {path!r}: there is something that is no file")
        self._path = path
        self._registry = make_registry(measure, mountpoint=mountpoint)
        try:
            self._write()
        except OSError as error:
            raise MetricsUnavailable(f"cannot write the metrics file {path!r}: {error.strerror}") from error

    async def keep(self) -> None:
        """Writes it again and again until it is cancelled. What fails is logged once, and tried again."""
        failing = False
        try:
            while True:
                await trio.sleep(FILE_SECONDS)
                try:
                    await trio.to_thread.run_sync(self._write)
                    failing = False
                except OSError as error:
                    if not failing:
                        log.warning("the metrics file %r cannot be written: %s", self._path, error.strerror)
                    failing = True
        finally:
            with contextlib.suppress(OSError):
                os.unlink(self._path)

    def _write(self) -> None:
        from prometheus_client import write_to_textfile

        write_to_textfile(self._path, self._registry)


class _Collector:
    """Makes prometheus_client's values of the figures, each time it is asked."""

    def __init__(self, measure: Callable[[], Measurements], mountpoint: str) -> None:
        self._measure = measure
        # In every value: the files of several mounts lie in one directory, and become one scrape.
        self._mountpoint = mountpoint

    def collect(self) -> Iterator[Metric]:
        """All of them, as they are now."""
        figures = self._measure()
        yield from self._about(figures)
        yield from self._operations(figures)
        yield from self._uploads(figures)
        yield from self._caches(figures)
        yield from self._backend(figures)

    def _about(self, figures: Measurements) -> Iterator[Metric]:
        version = str(figures.about.get("version", ""))
        source = str(figures.about.get("source", ""))
        yield self._gauge("layerfs_info", "What is mounted.", 1, version=version, source=source)
        yield self._gauge("layerfs_uptime_seconds", "How long it has been mounted.", figures.uptime)
        yield self._gauge("layerfs_fuse_open_files", "Files that are open.", figures.open_files)
        yield self._gauge("layerfs_fuse_open_directories", "Directories that are open.", figures.open_directories)
        yield self._gauge("layerfs_fuse_inodes", "Inodes that the kernel knows.", figures.inodes)

    def _operations(self, figures: Measurements) -> Iterator[Metric]:
        stats = figures.stats
        yield self._gauge("layerfs_fuse_ops_under_way", "Operations without an answer yet.", len(stats.under_way))
        name, text = "layerfs_fuse_ops_seconds", "How long operations took, by kind."
        yield self._histograms(name, text, stats.copy_latencies(), "op")
        errors = {(operation, error): count for (operation, error), count in stats.copy_errors().items()}
        yield self._counters("layerfs_fuse_errors", "Operations that failed.", ("op", "errno"), errors)
        yield self._counter("layerfs_fuse_read_bytes", "Bytes given to readers.", stats.bytes_read)
        yield self._counter("layerfs_fuse_written_bytes", "Bytes taken from writers.", stats.bytes_written)

    def _uploads(self, figures: Measurements) -> Iterator[Metric]:
        stats = figures.stats
        yield self._gauge("layerfs_uploads_active", "Uploads that are being written.", figures.uploads)
        yield self._counter("layerfs_uploads_committed", "Uploads that became a layer.", stats.uploads_committed)
        yield self._counter("layerfs_uploads_failed", "Attempts to finish an upload that failed.", stats.uploads_failed)
        text = "Content that was not what its digest said."
        yield self._counter("layerfs_verify_failures", text, stats.verify_failures)

    def _caches(self, figures: Measurements) -> Iterator[Metric]:
        caches = figures.caches.items()
        hits = {(name,): each.hits for name, each in caches}
        misses = {(name,): each.misses for name, each in caches}
        yield self._counters("layerfs_cache_hits", "What a cache could answer.", ("cache",), hits)
        yield self._counters("layerfs_cache_misses", "What storage had to be asked for.", ("cache",), misses)
        yield self._gauge("layerfs_read_ahead_bytes", "Memory that reading ahead uses.", figures.read_ahead_bytes)

    def _backend(self, figures: Measurements) -> Iterator[Metric]:
        backend = figures.backend
        if backend is None:
            return
        name, text = "layerfs_backend_request_seconds", "How long the storage driver took, by what it did."
        yield self._histograms(name, text, backend.copy_latencies(), "action", driver=backend.driver)
        errors = {(backend.driver, action, kind): count for (action, kind), count in backend.copy_errors().items()}
        labels = ("driver", "action", "error")
        yield self._counters("layerfs_backend_errors", "Requests to the storage that failed.", labels, errors)
        yield self._counter("layerfs_backend_read_bytes", "Bytes read from the storage.", backend.bytes_read)
        yield self._counter("layerfs_backend_written_bytes", "Bytes written to the storage.", backend.bytes_written)
        text = "Requests to the storage without an answer yet."
        yield self._gauge("layerfs_backend_requests_under_way", text, backend.under_way)

    # --- prometheus_client's values ------------------------------------------------------------------------------

    def _gauge(self, name: str, text: str, value: float, **labels: str) -> Metric:
        from prometheus_client.core import GaugeMetricFamily

        family = GaugeMetricFamily(name, text, labels=["mountpoint", *labels])
        family.add_metric([self._mountpoint, *labels.values()], value)
        return family

    def _counter(self, name: str, text: str, value: float) -> Metric:
        return self._counters(name, text, (), {(): value})

    def _counters(self, name: str, text: str, labels: tuple[str, ...], values: Mapping[_Labels, float]) -> Metric:
        from prometheus_client.core import CounterMetricFamily

        family = CounterMetricFamily(name, text, labels=["mountpoint", *labels])
        for key, value in values.items():
            family.add_metric([self._mountpoint, *key], value)
        return family

    def _histograms(
        self, name: str, text: str, latencies: Mapping[str, LatencyHistogram], label: str, **labels: str
    ) -> HistogramMetricFamily:
        from prometheus_client.core import HistogramMetricFamily

        family = HistogramMetricFamily(name, text, labels=["mountpoint", *labels, label])
        for key, latency in latencies.items():
            family.add_metric([self._mountpoint, *labels.values(), key], _buckets(latency), latency.seconds)
        return family


def _buckets(latency: LatencyHistogram) -> list[tuple[str, float]]:
    """How many took no longer than the end of each bucket, in seconds as text."""
    ends = [(repr((1 << bits) / 1e9), float(sum(latency.counts[: bits + 1]))) for bits in _BITS]
    return [*ends, ("+Inf", float(latency.count))]
