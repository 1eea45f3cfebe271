"""Uploads and layers against a plain model: any order of operations, with failures, deaths and power cuts in between.

The model is one `bytes` for each upload, and a set of layers. After every step: what was flushed is in storage, every
blob and link is right (`harness.invariants`), and the service lists exactly the layers and uploads of the model. A
command that was interrupted is repeated, and must succeed then.
"""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import ClassVar

import pytest
import trio
from harness.faulty_driver import Disk, Fault, FaultyDriver, InjectedFailure, ProcessDied
from harness.invariants import blob_path, check_storage, link_path, upload_path
from harness.walk import files_in
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from layerfs.digest import Digest
from layerfs.driver.interface import StorageDriver
from layerfs.driver.local import LocalDriver
from layerfs.driver.memory import MemoryDriver
from layerfs.errors import (
    ContentChanged,
    LayerExists,
    LayerInvalidDigest,
    LayerInvalidLength,
    LayerUnknown,
    LayerUploadUnknown,
)
from layerfs.registry import LayerService, LayerUpload, Registry

NAMES = ["a", "a/b"]
ALGORITHMS = ["sha256", "sha512"]

pieces = st.one_of(
    st.binary(min_size=1, max_size=80),
    st.builds(lambda byte, size: bytes([byte]) * size, st.integers(0, 255), st.integers(1, 300)),
)
faults = st.one_of(
    st.none(),
    st.none(),
    st.builds(
        Fault, st.integers(1, 12), st.sampled_from(["before", "after"]), st.sampled_from(["fail", "die", "power"])
    ),
)


def digest_of(content: bytes, algorithm: str = "sha256") -> Digest:
    return Digest(algorithm, hashlib.new(algorithm, content).hexdigest())


@dataclass
class Model:
    """What an upload is to its user."""

    name: str
    #: All that was taken.
    content: bytes = b""
    #: What a power cut must leave: as of the last flush.
    durable: bytes = b""
    #: How many bytes the driver certainly has: a process that dies must leave them.
    stored: int = 0
    #: Whether some of it was left by a process that died before it was durable.
    is_inherited: bool = False
    #: What a power cut may leave as well: what was inherited is durable once the file was opened and flushed.
    perhaps: list[bytes] = field(default_factory=list)
    offset: int = 0


class Interrupted(Exception):
    """The fault came due; `died` if no object of before can be used any more."""

    def __init__(self, fault: Fault) -> None:
        self.died = fault.how != "fail"
        self.power = fault.how == "power"


@dataclass
class World:
    """What survives the process, and the model."""

    disk: Disk
    uploads: dict[str, Model] = field(default_factory=dict)
    layers: dict[tuple[str, str], bytes] = field(default_factory=dict)


class UploadMachine(RuleBasedStateMachine):
    """One process at a time, on one storage."""

    local: ClassVar[bool] = False

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory() if self.local else None
        driver: StorageDriver = LocalDriver(self.directory.name) if self.directory else MemoryDriver()
        self.world = World(Disk(driver))
        self.open: dict[str, LayerUpload] = {}

    def teardown(self) -> None:
        if self.directory is not None:
            self.directory.cleanup()

    @initialize()
    def begin(self) -> None:
        trio.run(lambda: Registry.open(self.world.disk.driver, create=True))
        self.start()

    def start(self) -> None:
        """A new process: nothing is left of the old one's objects."""
        self.driver = FaultyDriver(self.world.disk)
        self.registry = Registry(self.driver)
        self.open = {}

    def run(
        self, command: Callable[[], Awaitable[object]], fault: Fault | None = None, uuid: str | None = None
    ) -> object:
        """Runs one command. Raises `Interrupted` if the fault came due and was felt; the new process runs then.

        All uploads but `uuid`, which the command changes, are judged already.
        """
        self.driver.arm(fault)
        try:
            return trio.run(command)
        except (InjectedFailure, ProcessDied):
            assert fault is not None
            interrupted = Interrupted(fault)
        finally:
            self.driver.arm(None)
        if interrupted.power:
            trio.run(self.world.disk.lose_power)
        if interrupted.died:
            self.start()
            for other, model in self.world.uploads.items():
                if other != uuid:
                    self.judge(other, model.content, interrupted)
        raise interrupted

    def layers(self, name: str) -> LayerService:
        return self.registry.repository(name).layers

    def upload(self, data: st.DataObject) -> tuple[str, Model, LayerUpload]:
        """One of the uploads, resumed if this process has not got it open."""
        uuid = data.draw(st.sampled_from(list(self.world.uploads)))
        return uuid, self.world.uploads[uuid], self.resumed(uuid)

    def resumed(self, uuid: str) -> LayerUpload:
        if uuid not in self.open:
            model = self.world.uploads[uuid]
            upload = self.run(lambda: self.layers(model.name).resume(uuid))
            assert isinstance(upload, LayerUpload)
            assert upload.size == len(model.content)
            assert upload.offset == len(model.content)
            model.offset = upload.offset
            self.open[uuid] = upload
        return self.open[uuid]

    def change(
        self, uuid: str, command: Callable[[], Awaitable[object]], after: bytes, fault: Fault | None, *, durable: bool
    ) -> None:
        """Runs a command after which the upload has the content `after`, and judges what is there if it fails."""
        model = self.world.uploads[uuid]
        try:
            self.run(command, fault, uuid)
        except Interrupted as interrupted:
            upload = self.open.pop(uuid, None)
            if upload is not None and upload.is_usable:
                # Not lost with the command: what it had taken is taken still.
                trio.run(upload.close)
                interrupted.power = False
            self.judge(uuid, after, interrupted)
        else:
            model.content, model.stored = after, min(model.stored, len(after))
            if durable:
                model.durable, model.stored, model.is_inherited = after, len(after), False
                model.perhaps.clear()
            elif model.is_inherited:
                model.perhaps.append(after)

    def judge(self, uuid: str, after: bytes, interrupted: Interrupted) -> None:
        """Storage has what it must have after an interruption; from now on the model has what storage has."""
        model = self.world.uploads[uuid]
        found = self.files().get(upload_path(model.name, uuid, "data"), b"")
        if found not in (model.durable, model.content, after, *model.perhaps):
            assert not interrupted.power, "a power cut has taken what was flushed"
            assert any(
                whole.startswith(found) and len(found) >= min(model.stored, len(after))
                for whole in (model.content, after)
            ), "bytes that were stored are gone, or others are there"
        elif not interrupted.power:
            assert len(found) >= min(model.stored, len(after))
        model.content, model.stored = found, len(found)
        if interrupted.power:
            model.durable = found
            model.perhaps.clear()
        model.is_inherited = found != model.durable
        if model.is_inherited:
            model.perhaps.append(found)

    def files(self) -> dict[str, bytes]:
        return trio.run(files_in, self.world.disk.driver)

    # --- uploads ---------------------------------------------------------------------------------------------

    @rule(name=st.sampled_from(NAMES), fault=faults)
    def begin_upload(self, name: str, fault: Fault | None) -> None:
        """An upload is begun; one that was begun half can be cancelled."""
        if len(self.world.uploads) >= 3:
            return
        try:
            upload = self.run(lambda: self.layers(name).upload(), fault)
        except Interrupted:
            for info in trio.run(self.layers(name).uploads):
                if info.uuid not in self.world.uploads:
                    assert info.size == 0
                    trio.run(self.cancel_found, name, info.uuid)
            return
        assert isinstance(upload, LayerUpload)
        self.world.uploads[upload.uuid] = Model(name)
        self.open[upload.uuid] = upload

    async def cancel_found(self, name: str, uuid: str) -> None:
        await (await self.layers(name).resume(uuid)).cancel()

    @precondition(lambda self: self.world.uploads)
    @rule(data=st.data(), content=pieces, fault=faults)
    def write(self, data: st.DataObject, content: bytes, fault: Fault | None) -> None:
        """Bytes go where the upload stands; a gap is zeros."""
        uuid, model, upload = self.upload(data)
        offset = model.offset
        before = model.content.ljust(offset, b"\0")
        after = before[:offset] + content + before[offset + len(content) :]
        model.offset += len(content)
        self.change(uuid, lambda: upload.write(content), after, fault, durable=False)

    @precondition(lambda self: self.world.uploads)
    @rule(data=st.data())
    def seek(self, data: st.DataObject) -> None:
        """The next write goes elsewhere, beyond the end too."""
        _, model, upload = self.upload(data)
        model.offset = upload.seek(data.draw(st.integers(0, len(model.content) + 100)))

    @precondition(lambda self: self.world.uploads)
    @rule(data=st.data(), fault=faults)
    def truncate(self, data: st.DataObject, fault: Fault | None) -> None:
        """Bytes are cut off, or zeros added."""
        uuid, model, upload = self.upload(data)
        size = data.draw(st.integers(0, len(model.content) + 100))
        after = model.content[:size].ljust(size, b"\0")
        self.change(uuid, lambda: upload.truncate(size), after, fault, durable=False)

    @precondition(lambda self: self.world.uploads)
    @rule(data=st.data(), fault=faults)
    def store(self, data: st.DataObject, fault: Fault | None) -> None:
        """The driver gets all there is: a dying process does not take it along."""
        uuid, model, upload = self.upload(data)
        self.change(uuid, upload.store, model.content, fault, durable=False)
        model.stored = len(model.content)

    @precondition(lambda self: self.world.uploads)
    @rule(data=st.data(), fault=faults, opened=st.booleans(), let_go=st.booleans())
    def flush(self, data: st.DataObject, fault: Fault | None, opened: bool, let_go: bool) -> None:
        """All there is becomes durable; what others have left in the file too, if it was opened for writing."""
        uuid, model, upload = self.upload(data)

        async def command() -> None:
            if opened:
                await upload.open_writer()
            await (upload.close_writer() if let_go else upload.flush())

        self.change(uuid, command, model.content, fault, durable=opened or not model.is_inherited)
        if uuid in self.open:
            assert upload.is_flushed

    @precondition(lambda self: self.world.uploads)
    @rule(data=st.data(), fault=faults)
    def close(self, data: st.DataObject, fault: Fault | None) -> None:
        """Closing makes it durable too; the next operation resumes."""
        uuid, model, upload = self.upload(data)
        self.change(uuid, upload.close, model.content, fault, durable=not model.is_inherited)
        self.open.pop(uuid, None)

    @precondition(lambda self: self.world.uploads)
    @rule(data=st.data())
    def read(self, data: st.DataObject) -> None:
        """Reading gives what was taken, stored or not."""
        _, model, upload = self.upload(data)
        assert upload.size == len(model.content)
        offset = data.draw(st.integers(0, len(model.content) + 10))
        length = data.draw(st.integers(0, len(model.content) + 10))
        assert self.run(lambda: upload.read(offset, length)) == model.content[offset : offset + length]

    @precondition(lambda self: self.world.uploads)
    @rule(data=st.data())
    def hash_stored(self, data: st.DataObject) -> None:
        """The hash catches up, so that nothing is left to read."""
        _, _, upload = self.upload(data)
        self.run(upload.open_writer)
        self.run(upload.store)
        self.run(upload.hash_stored)
        assert upload.hash_lag == 0

    @precondition(lambda self: self.world.uploads)
    @rule(data=st.data(), content=pieces)
    def foreign_append(self, data: st.DataObject, content: bytes) -> None:
        """A registry appends: whoever has the file open is told, and nobody's bytes are mixed with another's."""
        uuid, model, upload = self.upload(data)
        self.run(upload.flush)

        async def append() -> None:
            writer = await self.world.disk.driver.writer(upload_path(model.name, uuid, "data"), append=True)
            await writer.write([content])
            await writer.flush()
            await writer.close()
            await self.world.disk.flushed(upload_path(model.name, uuid, "data"))

        trio.run(append)
        model.content = model.durable = model.content + content
        model.stored, model.is_inherited = len(model.content), False
        model.perhaps.clear()

        async def write_unaware() -> None:
            await upload.write_at(upload.size, b"mine")
            with pytest.raises(ContentChanged):
                await upload.flush()
            await upload.close()

        trio.run(write_unaware)
        del self.open[uuid]

    @precondition(lambda self: self.world.uploads)
    @rule(data=st.data(), algorithm=st.sampled_from(ALGORITHMS), fault=faults)
    def finish(self, data: st.DataObject, algorithm: str, fault: Fault | None) -> None:
        """The right digest makes it a layer, and what was interrupted is completed by the same command."""
        uuid, model, upload = self.upload(data)
        content, digest = model.content, digest_of(model.content, algorithm)
        size = data.draw(st.sampled_from([None, len(content)]))
        try:
            assert self.run(lambda: upload.finish(digest, size), fault, uuid) == digest_of(content)
        except Interrupted as interrupted:
            self.open.pop(uuid, None)
            self.finish_again(uuid, digest, interrupted)
        self.open.pop(uuid, None)
        del self.world.uploads[uuid]
        for linked in (digest_of(content), digest):
            self.world.layers[model.name, str(linked)] = content
        with pytest.raises(LayerUploadUnknown):
            trio.run(self.layers(model.name).resume, uuid)

    def finish_again(self, uuid: str, digest: Digest, interrupted: Interrupted) -> None:
        model = self.world.uploads[uuid]
        content = model.content
        try:
            upload = trio.run(self.layers(model.name).resume, uuid)
        except LayerUploadUnknown:
            assert trio.run(self.layers(model.name).exists, digest)
            return
        if upload_path(model.name, uuid, "data") in self.files():
            self.judge(uuid, content, interrupted)
            if model.content != content:
                # What was not flushed is gone: its user brings it again.
                upload.seek(0)
                trio.run(upload.write, content)
                trio.run(upload.truncate, len(content))
        assert trio.run(upload.finish, digest) == digest_of(content)

    @precondition(lambda self: self.world.uploads)
    @rule(data=st.data(), algorithm=st.sampled_from(ALGORITHMS), other=pieces, fault=faults)
    def finish_wrongly(self, data: st.DataObject, algorithm: str, other: bytes, fault: Fault | None) -> None:
        """A wrong digest or size is refused, whatever else goes wrong, and changes nothing."""
        uuid, model, upload = self.upload(data)
        right, wrong = digest_of(model.content, algorithm), digest_of(other, algorithm)
        if right == wrong:
            return
        published = {path for path in self.files() if "_uploads" not in path}

        async def command() -> None:
            with pytest.raises(LayerInvalidLength) as length:
                await upload.finish(right, len(model.content) + 1)
            assert (length.value.expected, length.value.actual) == (len(model.content) + 1, len(model.content))
            with pytest.raises(LayerInvalidDigest) as caught:
                await upload.finish(wrong)
            assert (caught.value.expected, caught.value.actual) == (wrong, right)

        self.change(uuid, command, model.content, fault, durable=not model.is_inherited)
        assert {path for path in self.files() if "_uploads" not in path} == published

    @precondition(lambda self: self.world.uploads)
    @rule(data=st.data(), fault=faults)
    def cancel(self, data: st.DataObject, fault: Fault | None) -> None:
        """The upload goes, and its bytes."""
        uuid, model, upload = self.upload(data)
        try:
            self.run(upload.cancel, fault, uuid)
        except Interrupted as interrupted:
            if not interrupted.died:
                trio.run(upload.cancel)
            else:
                with contextlib.suppress(LayerUploadUnknown):
                    trio.run(self.cancel_found, model.name, uuid)
        self.open.pop(uuid, None)
        del self.world.uploads[uuid]
        left = [path for path in self.files() if uuid in path]
        assert not [path for path in left if path.endswith(("/data", "/startedat")) or "hashstates" in path]

    @rule(power=st.booleans())
    def restart(self, power: bool) -> None:
        """The process ends without a word."""
        fault = Fault(1, "before", "power" if power else "die")
        with pytest.raises(Interrupted):
            self.run(lambda: self.driver.stat("/"), fault)

    # --- layers ----------------------------------------------------------------------------------------------

    @precondition(lambda self: self.world.layers)
    @rule(data=st.data(), into=st.sampled_from(NAMES), fault=faults)
    def mount(self, data: st.DataObject, into: str, fault: Fault | None) -> None:
        """A layer of one repository becomes one of another, by its canonical digest too."""
        name, digest = data.draw(st.sampled_from(list(self.world.layers)))
        content = self.world.layers[name, digest]
        command = lambda: self.layers(into).mount(name, Digest.parse(digest))  # noqa: E731
        try:
            self.run(command, fault)
        except Interrupted:
            with contextlib.suppress(LayerExists):
                self.run(command)
        except LayerExists as error:
            assert (into, digest) in self.world.layers
            assert (error.name, str(error.digest)) == (into, digest)
            return
        for linked in (digest, str(digest_of(content))):
            self.world.layers[into, linked] = content

    @precondition(lambda self: self.world.layers)
    @rule(data=st.data(), fault=faults)
    def delete(self, data: st.DataObject, fault: Fault | None) -> None:
        """A link goes, and with a canonical one its aliases; the blob stays."""
        name, digest = data.draw(st.sampled_from(list(self.world.layers)))
        content = self.world.layers[name, digest]
        command = lambda: self.layers(name).delete(Digest.parse(digest))  # noqa: E731
        try:
            self.run(command, fault)
        except Interrupted:
            with contextlib.suppress(LayerUnknown):
                self.run(command)
        gone = [digest] if not digest.startswith("sha256") else [str(digest_of(content, one)) for one in ALGORITHMS]
        for one in gone:
            self.world.layers.pop((name, one), None)
        assert blob_path(str(digest_of(content))) in self.files()

    @precondition(lambda self: self.world.layers)
    @rule(data=st.data())
    def fetch(self, data: st.DataObject) -> None:
        """Every layer reads as what was uploaded."""
        name, digest = data.draw(st.sampled_from(list(self.world.layers)))

        async def read() -> bytes:
            async with await self.layers(name).fetch(Digest.parse(digest)) as layer:
                return await layer.read()

        assert self.run(read) == self.world.layers[name, digest]

    # --- always ----------------------------------------------------------------------------------------------

    @invariant()
    def storage_is_right(self) -> None:
        """Blobs, links and states are right, and nothing that was flushed is missing."""
        files = self.files()
        check_storage(files)
        for uuid, model in self.world.uploads.items():
            data = files.get(upload_path(model.name, uuid, "data"), b"")
            assert len(data) >= min(model.stored, len(model.content))
        assert {path for path in files if "/_layers/" in path} == {link_path(*key) for key in self.world.layers}

    @invariant()
    def what_is_listed_is_what_there_is(self) -> None:
        """The service shows the layers and uploads of the model, and nothing else."""
        for name in NAMES:
            listed = {str(info.digest) for info in trio.run(self.layers(name).list)}
            assert listed == {digest for repository, digest in self.world.layers if repository == name}
            uploads = {info.uuid for info in trio.run(self.layers(name).uploads)}
            assert uploads == {uuid for uuid, model in self.world.uploads.items() if model.name == name}


class LocalUploadMachine(UploadMachine):
    """The same on a real file system."""

    local = True


def run_machine(machine: type[UploadMachine], examples: int, steps: int, *, fixed: bool = True) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            derandomize=fixed,
            deadline=None,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
            database=None,
        ),
    )


def test_uploads_in_memory() -> None:
    """A fixed set of sequences."""
    run_machine(UploadMachine, 80, 30)


def test_uploads_on_disk() -> None:
    """A smaller set on a real file system, with its versions, leases, and files that are published by renaming."""
    run_machine(LocalUploadMachine, 10, 25)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("machine", [UploadMachine, LocalUploadMachine])
def test_uploads_at_length(machine: type[UploadMachine]) -> None:
    """Other sequences in every run; what fails prints how to see it again."""
    run_machine(machine, 2000 if machine is UploadMachine else 300, 60, fixed=False)
