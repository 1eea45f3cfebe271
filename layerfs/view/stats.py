"""What a mount counts of itself while it answers: operations and how long they took, bytes, failures, who is hot.

All of it is kept on the event loop's thread and costs each operation less than a microsecond. Everything that is read
from another thread (metrics are) is copied first, by one call that the interpreter does not interrupt.
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, Final

from layerfs.latency import LatencyHistogram
from layerfs.view.access_log import AccessLog

#: Nanoseconds between two samples of the totals, and for how long they are kept: the longest time of which a
#: throughput is told, and a little.
_SAMPLE_NS: Final = 250_000_000
_SAMPLES_KEPT_NS: Final = 62_000_000_000

#: Seconds of which a path's bytes count for how hot it is; also those of the speed of an upload.
HOT_SECONDS: Final = 10.0

#: Paths that are remembered of each sample, those with the most bytes.
_HOT_PATHS_KEPT: Final = 64

#: Failures that `.layerfs/errors` keeps, and paths that were not there, for `layerfs why`.
_FAILURES_KEPT: Final = 200
_MISSING_KEPT: Final = 200

#: Bytes of a path or reason that are kept of one failure.
_TEXT_LIMIT: Final = 4096

#: Arguments of a call that is under way: the handler's.
Arguments = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Details:
    """The numbers of an operation, as far as it has them: `offset` and `length` in bytes.

    `inode` is the one the operation is about; for one that has a name it is the directory's.
    """

    inode: int | None = None
    handle: int | None = None
    offset: int | None = None
    length: int | None = None

    def fields(self) -> dict[str, int]:
        """Those that there are."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True, slots=True)
class Failure:
    """One operation that failed.

    `error` is the name of the errno, `kind` that of the class of `layerfs.errors`. `request` is the number that the log
    has for it too; `duration` is in seconds. `target` is the other path of an operation that has two.
    """

    time: str
    request: int
    operation: str
    path: str
    target: str | None
    error: str
    kind: str
    reason: str
    duration: float
    details: Details

    def fields(self) -> dict[str, object]:
        """As `.layerfs/errors` has it."""
        fields: dict[str, object] = {
            "time": self.time,
            "request": self.request,
            "operation": self.operation,
            "path": self.path[:_TEXT_LIMIT],
            "target": None if self.target is None else self.target[:_TEXT_LIMIT],
            "error": self.error,
            "kind": self.kind,
            "reason": self.reason[:_TEXT_LIMIT],
            "duration": self.duration,
        }
        return {name: value for name, value in fields.items() if value is not None} | self.details.fields()


@dataclass(frozen=True, slots=True)
class _Sample:
    """The totals at a time (monotonic, ns), and the paths that had bytes read or written since the sample before."""

    at: int
    operations: int
    bytes_read: int
    bytes_written: int
    hot: dict[str, int]


@dataclass(frozen=True, slots=True)
class Throughput:
    """What was done in a second, on average of some seconds."""

    operations: float
    bytes_read: float
    bytes_written: float


class MountStats:
    """The figures of one mount since it began.

    The guard counts operations (`requests`, `under_way`, `latencies`), the handlers bytes.
    """

    def __init__(self) -> None:
        self.began_at = time.monotonic_ns()
        #: Operations begun; the number of the last one.
        self.requests = 0
        #: By number: the operation, its arguments, and when it began.
        self.under_way: dict[int, tuple[str, Arguments, int]] = {}
        self.latencies: dict[str, LatencyHistogram] = {}
        #: By operation and the name of the errno.
        self.errors: dict[tuple[str, str], int] = {}
        self.failures: deque[Failure] = deque(maxlen=_FAILURES_KEPT)
        self.missing: OrderedDict[str, Failure] = OrderedDict()
        self.bytes_read = 0
        self.bytes_written = 0
        self.uploads_committed = 0
        self.uploads_failed = 0
        self.verify_failures = 0
        self.access_log = AccessLog()
        #: How an operation that is under way is described: its path. Set by whoever dispatches operations.
        self.describe: Callable[[str, Arguments], str] = lambda operation, arguments: "?"  # noqa: ARG005
        self._hot: dict[str, int] = {}
        self._samples: deque[_Sample] = deque([_Sample(self.began_at, 0, 0, 0, {})])
        #: When the next sample is due (monotonic, ns). Who begins an operation, or ends one, looks and calls `sample`.
        self.next_sample = self.began_at + _SAMPLE_NS

    # --- counting ------------------------------------------------------------------------------------------------

    def latency(self, operation: str) -> LatencyHistogram:
        """The durations of an operation, to be added to."""
        return self.latencies.setdefault(operation, LatencyHistogram())

    def read(self, path: str, length: int) -> None:
        """Bytes were given to a reader."""
        self.bytes_read += length
        hot = self._hot
        hot[path] = hot.get(path, 0) + length

    def written(self, path: str, length: int) -> None:
        """Bytes were taken from a writer."""
        self.bytes_written += length
        hot = self._hot
        hot[path] = hot.get(path, 0) + length

    def failed(self, failure: Failure) -> None:
        """An operation failed."""
        key = (failure.operation, failure.error)
        self.errors[key] = self.errors.get(key, 0) + 1
        self.failures.append(failure)

    def was_missing(self, failure: Failure) -> None:
        """Something was asked for that is not there: no failure, but perhaps somebody wants to know why."""
        self.missing.pop(failure.path, None)
        self.missing[failure.path] = failure
        if len(self.missing) > _MISSING_KEPT:
            self.missing.popitem(last=False)

    def sample(self, now: int) -> None:
        """Keeps the totals as they are at `now` (monotonic, ns)."""
        hot, self._hot = self._hot, {}
        if len(hot) > _HOT_PATHS_KEPT:
            hot = dict(sorted(hot.items(), key=lambda item: item[1], reverse=True)[:_HOT_PATHS_KEPT])
        self._samples.append(_Sample(now, self.requests, self.bytes_read, self.bytes_written, hot))
        while self._samples[0].at < now - _SAMPLES_KEPT_NS and len(self._samples) > 1:
            self._samples.popleft()
        self.next_sample = now + _SAMPLE_NS

    # --- asking --------------------------------------------------------------------------------------------------

    def throughput(self, seconds: float) -> Throughput:
        """Of the last `seconds`; of all the time there was, if that is less."""
        now = time.monotonic_ns()
        self.sample(now)
        then = max(now - int(seconds * 1e9), self.began_at)
        before = self._sample_at(then)
        span = max(now - then, 1) / 1e9
        return Throughput(
            operations=(self.requests - before.operations) / span,
            bytes_read=(self.bytes_read - before.bytes_read) / span,
            bytes_written=(self.bytes_written - before.bytes_written) / span,
        )

    def _sample_at(self, then: int) -> _Sample:
        # While nothing happens there are no samples, and the first operation afterwards makes one before it counts. So
        # the first that is not older has the totals of that time, but for what happened until a sample was due.
        return next(sample for sample in self._samples if sample.at >= then)

    def speeds(self) -> dict[str, float]:
        """Bytes a second by path, read or written in the last `HOT_SECONDS`; the hottest first."""
        now = time.monotonic_ns()
        self.sample(now)
        totals: dict[str, int] = {}
        for before, sample in pairwise(self._samples):
            # By the time when it began: a sample is made when one is due and somebody comes.
            if before.at > now - HOT_SECONDS * 1e9:
                for path, length in sample.hot.items():
                    totals[path] = totals.get(path, 0) + length
        seconds = min(HOT_SECONDS, max((now - self.began_at) / 1e9, 1e-9))
        return {
            path: length / seconds for path, length in sorted(totals.items(), key=lambda item: item[1], reverse=True)
        }

    def oldest_under_way(self, count: int) -> Iterator[dict[str, object]]:
        """The `count` operations that wait longest for their answer."""
        now = time.monotonic_ns()
        for request, (operation, arguments, began_at) in list(self.under_way.items())[:count]:
            yield {
                "request": request,
                "operation": operation,
                "path": self.describe(operation, arguments)[:_TEXT_LIMIT],
                "seconds": round((now - began_at) / 1e9, 3),
            }

    def copy_latencies(self) -> dict[str, LatencyHistogram]:
        """As they are now, by operation. May be called from any thread."""
        return {operation: latency.copy() for operation, latency in sorted(self.latencies.copy().items())}

    def copy_errors(self) -> dict[tuple[str, str], int]:
        """As they are now, by operation and errno. May be called from any thread."""
        return dict(sorted(self.errors.copy().items()))
