"""Several tasks on one upload, and tasks that are cancelled: nothing is lost, mixed up, or brought back to life."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import random
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
import trio.testing
from harness.faulty_driver import Disk, FaultyDriver
from harness.invariants import check_storage, upload_path
from harness.sha256 import hash_state
from harness.walk import files_in

from layerfs.digest import Digest
from layerfs.driver.interface import StorageDriver
from layerfs.driver.local import LocalDriver
from layerfs.driver.memory import MemoryDriver
from layerfs.errors import (
    BackendFailure,
    ContentChanged,
    LayerClosed,
    LayerInvalidDigest,
    LayerUploadBusy,
    LayerUploadUnknown,
)
from layerfs.registry import LayerService, LayerUpload, Registry

NAME = "foo/bar"


def digest_of(content: bytes, algorithm: str = "sha256") -> Digest:
    return Digest.parse(f"{algorithm}:{hashlib.new(algorithm, content).hexdigest()}")


class Gate:
    """Holds the first call of one kind until it is opened."""

    def __init__(self, driver: FaultyDriver, what: str, part: str = "") -> None:
        self.reached = trio.Event()
        self._what, self._part = what, part
        self._opened = trio.Event()
        driver.on_call = self._wait

    def open(self) -> None:
        self._opened.set()

    async def _wait(self, what: str, path: str) -> None:
        if what == self._what and self._part in path:
            self.reached.set()
            await self._opened.wait()


async def begin(watched: FaultyDriver, content: bytes = b"") -> LayerUpload:
    upload = await Registry(watched).repository(NAME).layers.upload()
    await upload.write(content)
    return upload


async def test_bytes_taken_while_a_flush_is_under_way(registry: Registry, watched: FaultyDriver) -> None:
    """They are not called durable by a flush that began before them, though they be stored meanwhile."""
    upload = await begin(watched, b"first")
    gate = Gate(watched, "flush")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(upload.flush)
        await gate.reached.wait()
        await upload.write(b" second")
        nursery.start_soon(upload.store)
        gate.open()
    assert not upload.is_flushed
    watched.arm(None)
    await upload.flush()
    assert any(line.startswith("flush") for line in watched.log)
    assert upload.is_flushed


async def test_what_a_flush_notes_that_was_overtaken(registry: Registry, watched: FaultyDriver) -> None:
    """Only what it has made durable: zeros that a power cut leaves behind that must not count as bytes."""
    upload = await begin(watched, b"first")
    gate = Gate(watched, "flush")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(upload.flush)
        await gate.reached.wait()
        await upload.write(b" second")
        gate.open()
    files = await files_in(registry.driver)
    assert upload_path(NAME, upload.uuid, "layerfs-durable") not in files
    assert files[upload_path(NAME, upload.uuid, "hashstates/sha256/5")] == hash_state(b"first")


async def test_the_state_of_a_flush_that_was_overtaken(registry: Registry, watched: FaultyDriver) -> None:
    """Bytes that are taken while a state is being stored do not change what it is the state of."""
    upload = await begin(watched, b"first")
    gate = Gate(watched, "put_content", "hashstates")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(upload.flush)
        await gate.reached.wait()
        await upload.write(b" second")
        gate.open()
    await upload.flush()
    files = await files_in(registry.driver)
    check_storage(files)
    assert files[upload_path(NAME, upload.uuid, "hashstates/sha256/12")] == hash_state(b"first second")


@pytest.mark.local("an upload is cut")
async def test_bytes_taken_while_it_is_cut(watched: FaultyDriver) -> None:
    """They count, wherever the end was when they came: whoever appends next does not write over them."""
    upload = await begin(watched, b"0123456789")
    gate = Gate(watched, "truncate")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(upload.truncate, 4)
        await gate.reached.wait()
        await upload.write_at(upload.size, b"abc")
        gate.open()
    assert upload.size == 7
    await upload.write_at(upload.size, b"def")
    assert await upload.read(0, 100) == b"0123abcdef"


async def test_hashing_alongside_writing(
    layers: LayerService, driver: StorageDriver, payload: Callable[[int], bytes]
) -> None:
    """What was there before is hashed while more is written, and in the end nothing is left to read."""
    before, after = payload(10_000_000), payload(6_000_000)
    async with await layers.upload() as first:
        await first.write(before)
    upload = await layers.resume(first.uuid)
    await upload.open_writer()
    assert upload.hash_lag == len(before)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(upload.hash_stored)
        for start in range(0, len(after), 100_000):
            await upload.write(after[start : start + 100_000])
            await trio.lowlevel.checkpoint()
    await upload.store()
    await upload.hash_stored()
    assert upload.hash_lag == 0
    assert await upload.finish(digest_of(before + after)) == digest_of(before + after)


@pytest.mark.local("an upload is written in the middle")
@pytest.mark.parametrize("left", [3, 60], ids=["fewer", "more"])
async def test_states_that_others_have_left_before_a_failed_finish(
    registry: Registry, watched: FaultyDriver, left: int
) -> None:
    """They are no secret to whoever has verified the file, and goes on with it then: none is left of other bytes.

    A registry stores a state before the bytes that it is of, and may die between the two.
    """
    upload = await begin(watched)
    await upload.close_writer()
    async with await registry.repository(NAME).layers.resume(upload.uuid) as other:
        await other.write(b"0123456789")
    state = upload_path(NAME, upload.uuid, f"hashstates/sha256/{left}")
    await registry.driver.put_content(state, hash_state(b"x" * left))
    with pytest.raises(LayerInvalidDigest):
        await upload.finish(digest_of(b"something else"))
    await upload.open_writer()
    assert (state in await files_in(registry.driver)) == (left < len(b"0123456789"))
    await upload.write_at(2, b"X")
    assert not [path for path in await files_in(registry.driver) if "hashstates" in path]


async def test_appending_after_a_failed_finish_of_what_others_have_written(layers: LayerService) -> None:
    """Bytes that were taken for a place that is not the end any more are not put anywhere else."""
    async with await layers.upload() as first:
        await first.write(b"0123456789")
    upload = await layers.resume(first.uuid)
    async with await layers.resume(first.uuid) as other:
        await other.write(b"abc")
    with pytest.raises(LayerInvalidDigest):
        await upload.finish(digest_of(b"something else"))
    await upload.write(b"XYZ")
    with pytest.raises(ContentChanged):
        await upload.flush()
    async with await layers.resume(first.uuid) as again:
        assert await again.finish(digest_of(b"0123456789abc"))


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
async def test_finishing_while_it_is_hashed(
    layers: LayerService, algorithm: str, payload: Callable[[int], bytes]
) -> None:
    """Finishing takes its turn, whatever the hashing has come to."""
    content = payload(9_000_000)
    async with await layers.upload() as first:
        await first.write(content)
    upload = await layers.resume(first.uuid)
    await upload.open_writer()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(upload.hash_stored)
        await trio.lowlevel.checkpoint()
        assert await upload.finish(digest_of(content, algorithm)) == digest_of(content)


@pytest.mark.local("an upload is written in the middle")
async def test_overwriting_while_it_is_hashed(layers: LayerService, payload: Callable[[int], bytes]) -> None:
    """A random write is never in a hash that began before it."""
    content = payload(9_000_000)
    async with await layers.upload() as first:
        await first.write(content)
    upload = await layers.resume(first.uuid)
    await upload.open_writer()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(upload.hash_stored)
        for offset in (0, 5_000_000, 8_999_999):
            await upload.write_at(offset, b"!")
    changed = bytearray(content)
    for offset in (0, 5_000_000, 8_999_999):
        changed[offset] = ord("!")
    await upload.finish(digest_of(bytes(changed)))


@pytest.mark.local("an upload is cut behind the back of who writes it")
async def test_hashing_a_file_that_somebody_has_cut(layers: LayerService, driver: StorageDriver) -> None:
    """Hashing ends where there is nothing more to read, instead of trying for ever."""
    async with await layers.upload() as first:
        await first.write(b"0123456789")
    upload = await layers.resume(first.uuid)
    await upload.open_writer()
    writer = await driver.writer(upload_path(NAME, upload.uuid, "data"), append=True)
    await writer.truncate(4)
    await writer.close()
    with trio.fail_after(10):
        await upload.hash_stored()
    with pytest.raises(ContentChanged):
        await upload.close()
    assert await (await layers.resume(upload.uuid)).finish(digest_of(b"0123")) == digest_of(b"0123")


@pytest.mark.parametrize("call", ["seal", "sealed read", "publish", "put_content"])
async def test_nothing_is_written_while_it_is_finished(registry: Registry, watched: FaultyDriver, call: str) -> None:
    """Whoever wants to is told that it is being finished, at once; and finishing it twice at once is no better."""
    upload = await begin(watched, b"content")
    digest = digest_of(b"content", "sha512")
    gate = Gate(watched, call, "link" if call == "put_content" else "")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(upload.finish, digest)
        await gate.reached.wait()
        for use in (
            lambda: upload.write(b"x"),
            lambda: upload.write_at(0, b"x"),
            lambda: upload.truncate(0),
            lambda: upload.read(0, 1),
            upload.flush,
            upload.store,
            lambda: upload.finish(digest),
        ):
            with pytest.raises(LayerUploadBusy) as caught:
                await use()
            assert (caught.value.name, caught.value.uuid) == (NAME, upload.uuid)
        gate.open()
    check_storage(await files_in(registry.driver))
    assert await registry.repository(NAME).layers.exists(digest)


async def test_closing_waits_for_finishing(registry: Registry, watched: FaultyDriver) -> None:
    """It does not take the file away from under it."""
    upload = await begin(watched, b"content")
    gate = Gate(watched, "flush")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(upload.finish, digest_of(b"content"))
        await gate.reached.wait()
        nursery.start_soon(upload.close)
        await trio.testing.wait_all_tasks_blocked()
        gate.open()
    assert await registry.repository(NAME).layers.exists(digest_of(b"content"))
    assert not upload.is_usable


async def test_cancelling_waits_for_finishing(registry: Registry, watched: FaultyDriver) -> None:
    """What is finished cannot be cancelled any more: the layer stays."""
    upload = await begin(watched, b"content")
    gate = Gate(watched, "publish")

    async def cancel() -> None:
        with pytest.raises(LayerClosed):
            await upload.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(upload.finish, digest_of(b"content"))
        await gate.reached.wait()
        nursery.start_soon(cancel)
        await trio.testing.wait_all_tasks_blocked()
        gate.open()
    assert await registry.repository(NAME).layers.exists(digest_of(b"content"))
    check_storage(await files_in(registry.driver))


async def test_nothing_is_written_while_it_is_cancelled(registry: Registry, watched: FaultyDriver) -> None:
    """A write during or just before a cancel does not make a directory that nobody would ever remove."""
    upload = await begin(watched, b"content")
    await upload.flush()
    gate = Gate(watched, "delete")
    ends: list[str] = []

    async def store() -> None:
        try:
            await upload.store()
        except LayerClosed:
            ends.append("closed")

    await upload.write(b"taken before")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(upload.cancel)
        await gate.reached.wait()
        with pytest.raises(LayerClosed):
            await upload.write(b"too late")
        nursery.start_soon(store)
        await trio.testing.wait_all_tasks_blocked()
        gate.open()
    assert ends == ["closed"]
    assert await files_in(registry.driver) == {}


async def test_storing_that_waits_for_a_cancel(registry: Registry, watched: FaultyDriver) -> None:
    """The same for one that was waiting for its turn when the cancel came."""
    upload = await begin(watched, b"content")
    gate = Gate(watched, "flush")

    async def store() -> None:
        with contextlib.suppress(LayerClosed):
            await upload.store()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(upload.flush)
        await gate.reached.wait()
        await upload.write(b"more")
        nursery.start_soon(upload.cancel)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(store)
        await trio.testing.wait_all_tasks_blocked()
        gate.open()
    assert await files_in(registry.driver) == {}


@pytest.mark.parametrize("call", ["write", "flush", "writer"])
async def test_a_cancelled_write_is_never_called_stored(registry: Registry, watched: FaultyDriver, call: str) -> None:
    """After a cancellation in the middle, bytes are there and counted, or an error says that they may not be."""
    async with await begin(watched, b"0123") as first:
        pass
    upload = await Registry(watched).repository(NAME).layers.resume(first.uuid)
    await upload.write(b"4567")
    gate = Gate(watched, call)
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(upload.flush)
            await gate.reached.wait()
            scope.cancel()
    watched.on_call = None
    usable = upload.is_usable
    await upload.close()
    stored = await registry.driver.get_content(upload_path(NAME, upload.uuid, "data"), limit=100)
    assert stored == b"01234567" if usable else stored in (b"0123", b"01234567")
    check_storage(await files_in(registry.driver))


async def test_a_write_that_was_given_up_and_one_that_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its thread may write at the worst moment, just when the other's bytes are there: they never change places."""
    layers = (await Registry.open(LocalDriver(str(tmp_path)), create=True)).repository(NAME).layers
    upload = await layers.upload()
    await upload.write(b"given up")
    given_up, written = _hold_first(monkeypatch, "pwritev")
    with trio.move_on_after(0.1):
        await upload.store()
    await upload.close()
    assert not written.is_set()

    async def go_on() -> None:
        async with await layers.resume(upload.uuid) as again:
            await again.open_writer()
            again.seek(0, os.SEEK_END)
            await again.write(b"gone on.")
            await again.flush()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(go_on)
        await trio.testing.wait_all_tasks_blocked(0.1)
        given_up.set()
    async with await layers.resume(upload.uuid) as last:
        assert await last.read(0, 100) == b"given upgone on."
        await last.finish(digest_of(b"given upgone on."))


def _hold_first(monkeypatch: pytest.MonkeyPatch, name: str) -> tuple[threading.Event, threading.Event]:
    """Has the first call of `os.name` wait for one event, and set another when it is done.

    The second call, when it has done its work, lets the first go on and waits for its end.
    """
    real, calls = getattr(os, name), itertools.count()
    may_go_on, done = threading.Event(), threading.Event()

    def held(*arguments: object) -> object:
        if next(calls) == 0:
            assert may_go_on.wait(20)
            result = real(*arguments)
            done.set()
            return result
        result = real(*arguments)
        may_go_on.set()
        assert done.wait(20)
        return result

    monkeypatch.setattr(os, name, held)
    return may_go_on, done


async def test_publishing_is_not_cancelled(registry: Registry, watched: FaultyDriver) -> None:
    """Once the blob is being published, the last steps are done whatever happens to the caller."""
    upload = await begin(watched, b"content")
    gate = Gate(watched, "publish")
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(upload.finish, digest_of(b"content"))
            await gate.reached.wait()
            scope.cancel()
            gate.open()
    files = await files_in(registry.driver)
    check_storage(files)
    assert await registry.repository(NAME).layers.exists(digest_of(b"content"))
    assert not [path for path in files if "_uploads" in path]


async def test_publishing_that_never_ends(autojump_clock: trio.testing.MockClock) -> None:
    """Because it cannot be cancelled it has a deadline; doing it again completes it."""
    driver = MemoryDriver()
    watched = FaultyDriver(Disk(driver))
    upload = await begin(watched, b"content")
    await upload.flush()
    Gate(watched, "put_content", "/_layers/")
    started = trio.current_time()
    with pytest.raises(BackendFailure):
        await upload.finish(digest_of(b"content"))
    assert trio.current_time() - started == 60
    watched.on_call = None
    assert await upload.finish(digest_of(b"content")) == digest_of(b"content")
    check_storage(await files_in(driver))


async def test_verifying_goes_on_where_it_was_cancelled(
    registry: Registry, watched: FaultyDriver, payload: Callable[[int], bytes]
) -> None:
    """A finish that was cancelled while it read is done faster the second time, and is right."""
    content = payload(20_000_000)
    async with await begin(watched, content) as first:
        pass
    upload = await Registry(watched).repository(NAME).layers.resume(first.uuid)
    reads = 0
    scope = trio.CancelScope()

    async def cancel_third(what: str, path: str) -> None:
        nonlocal reads
        reads += what == "sealed read"
        if reads == 3:
            scope.cancel()
            await trio.lowlevel.checkpoint()

    watched.on_call = cancel_third
    with scope:
        await upload.finish(digest_of(content))
    watched.on_call = None
    watched.arm(None)
    assert upload.is_usable
    assert await upload.finish(digest_of(content)) == digest_of(content)
    assert sum(line.startswith("sealed read") for line in watched.log) == 3


async def test_many_uploads_at_once(
    layers: LayerService, driver: StorageDriver, payload: Callable[[int], bytes]
) -> None:
    """Eight of them, in pieces, two of each content: all are finished, and every blob is right."""
    contents = [payload(300_000 + number) for number in range(4)] * 2

    async def upload(content: bytes) -> None:
        async with await layers.upload() as upload:
            for start in range(0, len(content), 70_000):
                await upload.write(content[start : start + 70_000])
                await upload.flush()
            await upload.finish(digest_of(content))

    async with trio.open_nursery() as nursery:
        for content in contents:
            nursery.start_soon(upload, content)
    assert {info.digest for info in await layers.list()} == {digest_of(content) for content in contents}
    files = await files_in(driver)
    assert not [path for path in files if "_uploads" in path]
    for path, content in files.items():
        if path.endswith("/data"):
            assert hashlib.sha256(content).hexdigest() in path


async def test_cancelled_at_any_moment(tmp_path: Path, payload: Callable[[int], bytes]) -> None:
    """With real threads, that go on after their caller has gone: never another's bytes, and always a way to finish."""
    moments = random.Random(7)
    layers = (await Registry.open(LocalDriver(str(tmp_path)), create=True)).repository(NAME).layers

    async def go_on(upload: LayerUpload, content: bytes) -> None:
        while upload.offset < len(content):
            await upload.write(content[upload.offset : upload.offset + moments.choice([100, 70_000, 1_500_000])])
            await moments.choice([upload.flush, upload.store, lambda: upload.write_at(0, content[:5])])()
        await upload.finish(digest_of(content, moments.choice(["sha256", "sha512"])))

    for _ in range(30):
        content = payload(moments.choice([10, 5_000, 2_000_000]))
        upload = await layers.upload()
        while not await layers.exists(digest_of(content)):
            with trio.move_on_after(moments.choice([0.001, 0.01, 1.0])), contextlib.suppress(ContentChanged):
                await go_on(upload, content)
            if not upload.is_usable:
                await upload.close()
                with contextlib.suppress(LayerUploadUnknown):
                    upload = await layers.resume(upload.uuid)
                    assert content.startswith(await upload.read(0, upload.size))
        async with await layers.fetch(digest_of(content)) as layer:
            assert await layer.read() == content
