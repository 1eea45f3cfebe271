"""`MeteredDriver`: any storage driver, with every call of it counted and timed.

The names of the actions are those of distribution's metric `registry_storage_action_seconds`, so that one picture can
show both. What they do not have a name for is called after our own methods. What a reader has in memory
(`read_nowait`) is no call to the backend, and not counted.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, field
from time import monotonic_ns
from typing import Final, TypeVar

from layerfs.driver.interface import (
    Contents,
    ContentVersion,
    Entries,
    FileInfo,
    FileReader,
    Files,
    FileWriter,
    SealedFile,
    Stats,
    StorageDriver,
    Usage,
)
from layerfs.errors import LayerfsError, NotRegularFile, PathNotEmpty, PathNotFound
from layerfs.latency import LatencyHistogram

_Result = TypeVar("_Result")

#: Answers of a backend that works.
_ANSWERS: Final = (PathNotFound, NotRegularFile, PathNotEmpty)


@dataclass(slots=True)
class BackendStats:
    """The calls of one driver. `errors` are by action and class of the error; what is not there is none."""

    driver: str
    latencies: dict[str, LatencyHistogram] = field(default_factory=dict)
    errors: dict[tuple[str, str], int] = field(default_factory=dict)
    #: Calls that have no answer yet.
    under_way: int = 0
    bytes_read: int = 0
    bytes_written: int = 0

    async def measure(self, action: str, call: Awaitable[_Result]) -> _Result:
        """What `call` gives. One that is cancelled counts with the time that it had."""
        began_at = monotonic_ns()
        self.under_way += 1
        try:
            return await call
        except _ANSWERS:
            raise
        except LayerfsError as error:
            key = (action, type(error).__name__)
            self.errors[key] = self.errors.get(key, 0) + 1
            raise
        finally:
            self.under_way -= 1
            latency = self.latencies.get(action)
            if latency is None:
                latency = self.latencies[action] = LatencyHistogram()
            latency.add(monotonic_ns() - began_at)

    def copy_latencies(self) -> dict[str, LatencyHistogram]:
        """As they are now, by action. May be called from any thread."""
        return {action: latency.copy() for action, latency in sorted(self.latencies.copy().items())}

    def copy_errors(self) -> dict[tuple[str, str], int]:
        """As they are now. May be called from any thread."""
        return dict(sorted(self.errors.copy().items()))


class MeteredDriver(StorageDriver):
    """`driver`, counted in `stats`. Promises what that promises."""

    def __init__(self, driver: StorageDriver) -> None:
        self.name = driver.name
        self.capabilities = driver.capabilities
        self.stats = BackendStats(driver.name)
        self._driver = driver
        self._measure = self.stats.measure

    async def stat(self, path: str) -> FileInfo:
        return await self._measure("Stat", self._driver.stat(path))

    async def is_directory(self, path: str) -> bool:
        return await self._measure("Stat", self._driver.is_directory(path))

    async def list(self, path: str) -> Entries:
        return await self._measure("List", self._driver.list(path))

    async def get_content(self, path: str, *, limit: int) -> bytes:
        content = await self._measure("GetContent", self._driver.get_content(path, limit=limit))
        self.stats.bytes_read += len(content)
        return content

    async def put_content(self, path: str, content: bytes) -> None:
        await self._measure("PutContent", self._driver.put_content(path, content))
        self.stats.bytes_written += len(content)

    async def put_directory(self, path: str, name: str, content: bytes, *, scratch: str) -> None:
        await self._measure("PutContent", self._driver.put_directory(path, name, content, scratch=scratch))
        self.stats.bytes_written += len(content)

    async def open(self, path: str) -> FileReader:
        return _MeteredReader(await self._measure("Reader", self._driver.open(path)), self.stats)

    async def open_known(self, info: FileInfo) -> FileReader:
        return _MeteredReader(await self._measure("Reader", self._driver.open_known(info)), self.stats)

    async def writer(self, path: str, *, append: bool) -> FileWriter:
        return _MeteredWriter(await self._measure("Writer", self._driver.writer(path, append=append)), self.stats)

    async def seal(self, path: str) -> SealedFile:
        return _MeteredSeal(await self._measure("Seal", self._driver.seal(path)), self.stats)

    async def move(self, source: str, destination: str) -> None:
        await self._measure("Move", self._driver.move(source, destination))

    async def delete(self, path: str) -> None:
        await self._measure("Delete", self._driver.delete(path))

    async def make_directory(self, path: str) -> None:
        await self._measure("MakeDirectory", self._driver.make_directory(path))

    async def remove_directory(self, path: str) -> None:
        await self._measure("RemoveDirectory", self._driver.remove_directory(path))

    async def usage(self) -> Usage | None:
        return await self._measure("Usage", self._driver.usage())

    async def close(self) -> None:
        await self._driver.close()

    async def is_being_written(self, path: str) -> bool:
        return await self._measure("IsBeingWritten", self._driver.is_being_written(path))

    async def list_files(self, path: str) -> Files:
        return await self._measure("ListFiles", self._driver.list_files(path))

    async def stat_many(self, paths: Sequence[str]) -> Stats:
        return await self._measure("StatMany", self._driver.stat_many(paths))

    async def get_contents(self, paths: Sequence[str], *, limit: int) -> Contents:
        return await self._measure("GetContents", self._driver.get_contents(paths, limit=limit))

    async def delete_files(self, paths: Sequence[str]) -> None:
        await self._measure("DeleteFiles", self._driver.delete_files(paths))

    async def delete_in_steps(self, *steps: Sequence[str]) -> None:
        await self._measure("DeleteInSteps", self._driver.delete_in_steps(*steps))


class _MeteredReader(FileReader):
    def __init__(self, reader: FileReader, stats: BackendStats) -> None:
        self.size = reader.size
        self._reader = reader
        self._stats = stats
        # The hot path of local storage: not one call more.
        self.read_nowait = reader.read_nowait  # type: ignore[method-assign]

    def read_nowait(self, offset: int, length: int) -> memoryview | bytes | None:
        """As of the reader itself, which takes this place when one is made."""
        return self._reader.read_nowait(offset, length)

    async def read(self, offset: int, length: int) -> bytes:
        content = await self._stats.measure("Read", self._reader.read(offset, length))
        self._stats.bytes_read += len(content)
        return content

    def close(self) -> None:
        self._reader.close()


class _MeteredWriter(FileWriter):
    def __init__(self, writer: FileWriter, stats: BackendStats) -> None:
        self._writer = writer
        self._stats = stats

    @property
    def size(self) -> int:  # type: ignore[override]
        return self._writer.size

    async def write(self, buffers: Sequence[bytes]) -> None:
        before = self._writer.size
        try:
            await self._stats.measure("Write", self._writer.write(buffers))
        finally:
            self._stats.bytes_written += max(0, self._writer.size - before)

    async def write_at(self, offset: int, content: bytes) -> None:
        await self._stats.measure("Write", self._writer.write_at(offset, content))
        self._stats.bytes_written += len(content)

    async def truncate(self, size: int) -> None:
        await self._stats.measure("Truncate", self._writer.truncate(size))

    async def flush(self) -> None:
        await self._stats.measure("Flush", self._writer.flush())

    def version(self) -> ContentVersion | None:
        return self._writer.version()

    async def close(self) -> None:
        await self._writer.close()


class _MeteredSeal(SealedFile):
    def __init__(self, sealed: SealedFile, stats: BackendStats) -> None:
        self.size = sealed.size
        self.version = sealed.version
        self._sealed = sealed
        self._stats = stats

    async def read(self, offset: int, length: int) -> bytes:
        content = await self._stats.measure("Read", self._sealed.read(offset, length))
        self._stats.bytes_read += len(content)
        return content

    async def publish(self, destination: str) -> FileInfo | None:
        return await self._stats.measure("Publish", self._sealed.publish(destination))

    async def release(self) -> None:
        await self._sealed.release()
