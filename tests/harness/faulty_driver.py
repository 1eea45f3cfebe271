"""A storage driver that fails, or dies with its whole process, at the call one wants it to.

It stands before a real driver, counts the calls that reach it, and at the one that a `Fault` names either raises, once,
or is dead from then on, as seen by everybody who holds it; a new `FaultyDriver` on the same `Disk` is the process after
the restart. `Disk.lose_power` takes away what was written and never flushed.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import trio

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
from layerfs.errors import BackendFailure, PathNotFound

_Result = TypeVar("_Result")

#: More than any test writes.
_LIMIT = 1 << 30


class ProcessDied(BaseException):
    """The process has ended in the middle of a call. Not an `Exception`: nobody who handles errors may see it."""


class InjectedFailure(BackendFailure):
    """What a driver raises that was told to fail."""


@dataclass(frozen=True)
class Fault:
    """At call number `call` (from 1), before or after it took effect.

    The call fails, or the process dies, alone or together with the power, or the task is cancelled.
    """

    call: int
    when: Literal["before", "after"]
    how: Literal["fail", "die", "power", "cancel"]


class Disk:
    """What survives a process: the real driver, and which files have content that was not flushed.

    An object store has no such content; and to look at an upload there would change it.
    """

    def __init__(self, driver: StorageDriver) -> None:
        self.driver = driver
        self._durable: dict[str, bytes] = {}

    async def opened(self, path: str, *, append: bool) -> None:
        """The file is going to be written."""
        if not self.driver.capabilities.random_writes:
            return
        if not append:
            self._durable[path] = b""
        elif path not in self._durable:
            try:
                self._durable[path] = await self.driver.get_content(path, limit=_LIMIT)
            except PathNotFound:
                self._durable[path] = b""

    async def flushed(self, path: str) -> None:
        """The file is durable as it is."""
        if not self.driver.capabilities.random_writes:
            return
        self._durable[path] = await self.driver.get_content(path, limit=_LIMIT)

    async def lose_power(self) -> None:
        """Every file that is still there goes back to what it was when it was flushed."""
        for path, content in self._durable.items():
            try:
                await self.driver.stat(path)
            except PathNotFound:
                continue
            await self.driver.put_content(path, content)
        self._durable.clear()


class FaultyDriver(StorageDriver):
    """One process's view of a disk."""

    def __init__(self, disk: Disk) -> None:
        self.disk = disk
        self.name = disk.driver.name
        self.capabilities = disk.driver.capabilities
        self.calls = 0
        self.log: list[str] = []
        self._fault: Fault | None = None
        self.is_dead = False
        #: What a fault that cancels cancels.
        self.scope = trio.CancelScope()
        #: Called with the name and path of each call, before it takes effect.
        self.on_call: Callable[[str, str], Awaitable[None]] | None = None

    def arm(self, fault: Fault | None) -> None:
        """Counts from 1 again, and strikes when `fault` is due."""
        self.calls = 0
        self.log.clear()
        self._fault = fault

    @property
    def has_struck(self) -> bool:
        """Whether the fault came due."""
        return self._fault is not None and self.calls >= self._fault.call

    async def call(self, what: str, path: str, effect: Callable[[], Awaitable[_Result]]) -> _Result:
        """One call of the driver, which may be the one."""
        if self.is_dead:
            raise ProcessDied
        self.calls += 1
        self.log.append(f"{what} {path}")
        if self.on_call is not None:
            await self.on_call(what, path)
        fault = self._fault
        if fault is None or self.calls != fault.call:
            return await effect()
        if fault.how == "cancel":
            return await self._cancel(fault, effect)
        if fault.when == "after":
            await effect()
        if fault.how == "fail":
            raise InjectedFailure(path, f"call {self.calls}: {fault.when} {what}")
        self.is_dead = True
        raise ProcessDied(f"call {self.calls}: {fault.when} {what} {path}")

    async def _cancel(self, fault: Fault, effect: Callable[[], Awaitable[_Result]]) -> _Result:
        if fault.when == "before":
            self.scope.cancel()
            await trio.lowlevel.checkpoint()
        # Cancelled here only if the caller is not shielded, and so cannot be stopped any more.
        result = await effect()
        self.scope.cancel()
        await trio.lowlevel.checkpoint()
        return result

    async def stat(self, path: str) -> FileInfo:
        return await self.call("stat", path, lambda: self.disk.driver.stat(path))

    async def stat_many(self, paths: Sequence[str]) -> Stats:
        return await self.call("stat_many", str(list(paths)), lambda: self.disk.driver.stat_many(paths))

    async def list(self, path: str) -> Entries:
        return await self.call("list", path, lambda: self.disk.driver.list(path))

    async def list_files(self, path: str) -> Files:
        return await self.call("list_files", path, lambda: self.disk.driver.list_files(path))

    async def get_content(self, path: str, *, limit: int) -> bytes:
        return await self.call("get_content", path, lambda: self.disk.driver.get_content(path, limit=limit))

    async def get_contents(self, paths: Sequence[str], *, limit: int) -> Contents:
        return await self.call(
            "get_contents", str(list(paths)), lambda: self.disk.driver.get_contents(paths, limit=limit)
        )

    async def put_content(self, path: str, content: bytes) -> None:
        await self.call("put_content", path, lambda: self.disk.driver.put_content(path, content))

    async def open(self, path: str) -> FileReader:
        reader = await self.call("open", path, lambda: self.disk.driver.open(path))
        return _FaultyReader(self, path, reader)

    async def writer(self, path: str, *, append: bool) -> FileWriter:
        async def effect() -> FileWriter:
            await self.disk.opened(path, append=append)
            return await self.disk.driver.writer(path, append=append)

        return _FaultyWriter(self, path, await self.call("writer", path, effect))

    async def seal(self, path: str) -> SealedFile:
        return _FaultySealedFile(self, path, await self.call("seal", path, lambda: self.disk.driver.seal(path)))

    async def move(self, source: str, destination: str) -> None:
        await self.call("move", source, lambda: self.disk.driver.move(source, destination))

    async def delete(self, path: str) -> None:
        await self.call("delete", path, lambda: self.disk.driver.delete(path))

    async def make_directory(self, path: str) -> None:
        await self.call("make_directory", path, lambda: self.disk.driver.make_directory(path))

    async def remove_directory(self, path: str) -> None:
        await self.call("remove_directory", path, lambda: self.disk.driver.remove_directory(path))

    async def usage(self) -> Usage | None:
        return await self.call("usage", "/", self.disk.driver.usage)

    async def close(self) -> None:
        pass


class _FaultyReader(FileReader):
    def __init__(self, driver: FaultyDriver, path: str, reader: FileReader) -> None:
        self._driver = driver
        self._path = path
        self._reader = reader
        self.size = reader.size

    def read_nowait(self, offset: int, length: int) -> memoryview | bytes | None:
        return self._reader.read_nowait(offset, length)

    async def read(self, offset: int, length: int) -> bytes:
        return await self._driver.call("read", self._path, lambda: self._reader.read(offset, length))

    def close(self) -> None:
        self._reader.close()


class _FaultyWriter(FileWriter):
    def __init__(self, driver: FaultyDriver, path: str, writer: FileWriter) -> None:
        self._driver = driver
        self._path = path
        self._writer = writer

    @property
    def size(self) -> int:  # type: ignore[override]
        return self._writer.size

    async def write(self, buffers: Sequence[bytes]) -> None:
        await self._driver.call("write", self._path, lambda: self._writer.write(buffers))

    async def write_at(self, offset: int, content: bytes) -> None:
        await self._driver.call("write_at", self._path, lambda: self._writer.write_at(offset, content))

    async def truncate(self, size: int) -> None:
        await self._driver.call("truncate", self._path, lambda: self._writer.truncate(size))

    async def flush(self) -> None:
        async def effect() -> None:
            await self._writer.flush()
            await self._driver.disk.flushed(self._path)

        await self._driver.call("flush", self._path, effect)

    def version(self) -> ContentVersion | None:
        return self._writer.version()

    async def close(self) -> None:
        await self._writer.close()


class _FaultySealedFile(SealedFile):
    def __init__(self, driver: FaultyDriver, path: str, sealed: SealedFile) -> None:
        self._driver = driver
        self._path = path
        self._sealed = sealed
        self.size = sealed.size
        self.version = sealed.version

    async def read(self, offset: int, length: int) -> bytes:
        return await self._driver.call("sealed read", self._path, lambda: self._sealed.read(offset, length))

    async def publish(self, destination: str) -> FileInfo | None:
        return await self._driver.call("publish", destination, lambda: self._sealed.publish(destination))

    async def release(self) -> None:
        await self._sealed.release()
