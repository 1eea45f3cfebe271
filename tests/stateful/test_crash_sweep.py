"""Every command, interrupted at every call of the driver, in every way; then repeated, as its user would.

Not random: for each command all calls are gone through, until one round ends without the fault having come due.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
import trio
from harness.faulty_driver import Disk, Fault, FaultyDriver, InjectedFailure, ProcessDied
from harness.invariants import blob_path, check_storage, link_path, upload_path
from harness.tarsums import archive, tarsum_of
from harness.walk import files_in

from layerfs.digest import Digest
from layerfs.driver.interface import StorageDriver
from layerfs.driver.local import LocalDriver
from layerfs.driver.memory import MemoryDriver
from layerfs.errors import (
    LayerExists,
    LayerfsError,
    LayerUnknown,
    LayerUploadUnknown,
    RepositoryNotEmpty,
    RepositoryUnknown,
)
from layerfs.layername import parse_layer_name
from layerfs.registry import LayerUpload, Registry

#: An archive, so that it has a TarSum.
CONTENT = archive("one-file.tar")
SHA256 = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"
SHA512 = f"sha512:{hashlib.sha512(CONTENT).hexdigest()}"
SHA384 = f"sha384:{hashlib.sha384(CONTENT).hexdigest()}"
TARSUM = tarsum_of("one-file.tar")
EMPTY = f"sha256:{hashlib.sha256(b'').hexdigest()}"
UUID = "f81d4fae-7dec-4d0a-a765-00a0c91e6bf6"

#: A command, given the registry, that can be repeated until it succeeds.
Command = Callable[[Registry], Awaitable[None]]

MOST_CALLS = 200


#: On a real disk only one way of ending: what differs there is what the calls do, not how they are cut off.
WAYS = [("memory", "fail"), ("memory", "die"), ("memory", "power"), ("memory", "cancel"), ("local", "die")]


@pytest.fixture(params=WAYS, ids="-".join)
def way(request: pytest.FixtureRequest) -> tuple[str, str]:
    """The kind of storage, and how the call ends."""
    return request.param


@pytest.fixture
def how(way: tuple[str, str]) -> str:
    """How the call ends."""
    return way[1]


@pytest.fixture
def disks(way: tuple[str, str], quick_path: Path) -> Callable[[], Disk]:
    """Makes empty storages, each another one."""
    numbers = iter(range(10_000))

    def make() -> Disk:
        if way[0] == "local":
            return Disk(LocalDriver(str(quick_path / str(next(numbers))), create=True))
        return Disk(MemoryDriver())

    return make


def sweep(disks: Callable[[], Disk], how: str, prepare: Command, command: Command) -> Iterator[tuple[Disk, Fault]]:
    """The storage after `command` was interrupted at each call in turn and then repeated; invariants are checked."""
    for when in ("before", "after"):
        for call in range(1, MOST_CALLS):
            disk = disks()
            if not trio.run(_round, disk, Fault(call, when, how), prepare, command):
                break
            yield disk, Fault(call, when, how)
        else:
            pytest.fail("the command never ends")


async def _round(disk: Disk, fault: Fault, prepare: Command, command: Command) -> bool:
    await prepare(await Registry.open(disk.driver, create=True))
    driver = FaultyDriver(disk)
    driver.arm(fault)
    registry = Registry(driver)
    try:
        with driver.scope:
            await command(registry)
    except InjectedFailure:
        driver.arm(None)
    except ProcessDied:
        if fault.how == "power":
            await disk.lose_power()
        registry = Registry(FaultyDriver(disk))
    else:
        if not driver.has_struck:
            return False
    check_storage(await files_in(disk.driver))
    await command(registry)
    check_storage(await files_in(disk.driver))
    return True


async def nothing(registry: Registry) -> None:
    """No preparation."""


async def _upload_called(registry: Registry, file_name: str) -> LayerUpload:
    layers = registry.repository("a/b").layers
    for info in await layers.uploads():
        if info.file_name == file_name:
            return await layers.resume(info.uuid)
    return await layers.upload(file_name=file_name)


def finish_by(digest: str, content: bytes = CONTENT) -> Command:
    """What `mv` after an interrupted copy does: finishes what is there, if it is all there."""

    async def command(registry: Registry) -> None:
        layers = registry.repository("a/b").layers
        try:
            upload = await layers.resume(UUID)
        except LayerUploadUnknown:
            # Only because it is finished.
            async with await layers.fetch(parse_layer_name(digest)) as layer:
                assert await layer.read() == content
            return
        assert str(await upload.finish(parse_layer_name(digest), len(content))) == _sha256(content)

    return command


def _sha256(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


async def begun(registry: Registry) -> None:
    """An upload with all its bytes in storage."""
    async with await registry.repository("a/b").layers.upload(file_name=UUID) as upload:
        await upload.write(CONTENT)


async def with_layer(registry: Registry) -> None:
    """Repository `a/b` with the layer, by four names, and an empty repository `c`."""
    for digest in (SHA256, SHA512, SHA384, TARSUM):
        async with await registry.repository("a/b").layers.upload() as upload:
            await upload.write(CONTENT)
            await upload.finish(parse_layer_name(digest))
    await registry.create_repository("c")


@pytest.mark.parametrize("digest", [SHA256, SHA512], ids=["sha256", "sha512"])
def test_copy_and_commit(disks: Callable[[], Disk], how: str, digest: str) -> None:
    """From nothing to a layer, stopped anywhere and begun again: the layer is there, and nothing half-done is shown."""

    async def command(registry: Registry) -> None:
        layers = registry.repository("a/b").layers
        if await layers.exists(parse_layer_name(digest)):
            return
        upload = await _upload_called(registry, "layer.tar")
        if upload.size:
            assert CONTENT.startswith(await upload.read(0, upload.size))
        async with upload:
            while upload.offset < len(CONTENT):
                await upload.write(CONTENT[upload.offset : upload.offset + 500])
                await upload.flush()
        upload = await layers.resume(upload.uuid)
        await upload.finish(parse_layer_name(digest), len(CONTENT))

    for disk, _ in sweep(disks, how, nothing, command):
        files = trio.run(files_in, disk.driver)
        assert files[blob_path(SHA256)] == CONTENT
        assert files[link_path("a/b", digest)] == SHA256.encode()


@pytest.mark.parametrize("digest", [SHA256, SHA512, SHA384, TARSUM], ids=["sha256", "sha512", "sha384", "tarsum"])
def test_commit(disks: Callable[[], Disk], how: str, digest: str) -> None:
    """Finishing, stopped anywhere and repeated, leaves exactly what a registry would have written."""
    for disk, _ in sweep(disks, how, begun, finish_by(digest)):
        files = trio.run(files_in, disk.driver)
        expected = {blob_path(SHA256): CONTENT}
        expected |= {link_path("a/b", name): SHA256.encode() for name in (SHA256, digest)}
        assert {path: content for path, content in files.items() if "_uploads" not in path} == expected
        assert not [path for path in files if path.endswith("/startedat")]


def test_commit_of_nothing(disks: Callable[[], Disk], how: str) -> None:
    """The same for an upload that has no byte."""

    async def prepare(registry: Registry) -> None:
        async with await registry.repository("a/b").layers.upload(file_name=UUID):
            pass

    for disk, _ in sweep(disks, how, prepare, finish_by(EMPTY, b"")):
        assert trio.run(files_in, disk.driver)[blob_path(EMPTY)] == b""


@pytest.mark.parametrize("digest", [SHA256, SHA512], ids=["sha256", "sha512"])
def test_commit_over_a_damaged_blob(disks: Callable[[], Disk], how: str, digest: str) -> None:
    """A stored blob with wrong bytes is replaced, whatever is interrupted; until then it is as damaged as it was."""
    damaged = b"damaged"

    async def broken(driver: StorageDriver, fault: Fault) -> bool:
        registry = await Registry.open(driver, create=True)
        await begun(registry)
        await driver.put_content(blob_path(SHA256), damaged)
        faulty = FaultyDriver(Disk(driver))
        faulty.arm(fault)
        try:
            await finish_by(digest)(Registry(faulty))
        except (InjectedFailure, ProcessDied):
            pass
        else:
            if not faulty.has_struck:
                return False
        assert (await driver.get_content(blob_path(SHA256), limit=10_000)) in (damaged, CONTENT)
        await finish_by(digest)(registry)
        assert await driver.get_content(blob_path(SHA256), limit=10_000) == CONTENT
        return True

    for when in ("before", "after"):
        assert any(not trio.run(broken, disks().driver, Fault(call, when, how)) for call in range(1, MOST_CALLS))


def test_a_wrong_digest_interrupted(disks: Callable[[], Disk], how: str) -> None:
    """However finishing by a wrong digest ends, nothing is published, and the right one works afterwards."""
    wrong = Digest.of(b"other content")

    async def command(registry: Registry) -> None:
        upload = await registry.repository("a/b").layers.resume(UUID)
        try:
            await upload.finish(wrong)
        except (InjectedFailure, ProcessDied):
            raise
        except LayerfsError:
            pass
        else:
            pytest.fail("a wrong digest was accepted")

    for disk, _ in sweep(disks, how, begun, command):
        files = trio.run(files_in, disk.driver)
        assert not [path for path in files if "/blobs/" in path or "/_layers/" in path]
        trio.run(finish_by(SHA256), Registry(disk.driver))


def test_cancel(disks: Callable[[], Disk], how: str) -> None:
    """Cancelling, stopped anywhere and repeated, leaves no upload and no bytes."""

    async def command(registry: Registry) -> None:
        try:
            upload = await registry.repository("a/b").layers.resume(UUID)
        except LayerUploadUnknown:
            return
        await upload.cancel()

    for disk, _ in sweep(disks, how, begun, command):
        files = trio.run(files_in, disk.driver)
        assert not [path for path in files if path.endswith(("/startedat", "/data")) or "/hashstates/" in path]


def test_rename(disks: Callable[[], Disk], how: str) -> None:
    """An upload has its old name or its new one, and all its bytes."""

    async def command(registry: Registry) -> None:
        layers = registry.repository("a/b").layers
        (info,) = await layers.uploads()
        assert info.file_name in (UUID, "new.tar")
        await layers.rename_upload(UUID, "new.tar")
        (info,) = await layers.uploads()
        assert info.file_name == "new.tar"

    for disk, _ in sweep(disks, how, begun, command):
        assert trio.run(files_in, disk.driver)[upload_path("a/b", UUID, "data")] == CONTENT


@pytest.mark.parametrize("digest", [SHA256, SHA512, TARSUM], ids=["sha256", "sha512", "tarsum"])
def test_mount(disks: Callable[[], Disk], how: str, digest: str) -> None:
    """A layer mounted from another repository is linked by the name asked for and by its canonical one."""

    async def command(registry: Registry) -> None:
        with contextlib.suppress(LayerExists):
            await registry.repository("c").layers.mount("a/b", parse_layer_name(digest))

    for disk, _ in sweep(disks, how, with_layer, command):
        files = trio.run(files_in, disk.driver)
        assert {path for path in files if "/repositories/c/" in path} == {
            link_path("c", SHA256),
            link_path("c", digest),
        }


def test_delete(disks: Callable[[], Disk], how: str) -> None:
    """Deleting a layer takes its aliases first: none is ever left without its canonical link."""

    async def command(registry: Registry) -> None:
        with contextlib.suppress(LayerUnknown):
            await registry.repository("a/b").layers.delete(Digest.parse(SHA256))

    for disk, _ in sweep(disks, how, with_layer, command):
        files = trio.run(files_in, disk.driver)
        assert not [path for path in files if "/_layers/" in path]
        assert files[blob_path(SHA256)] == CONTENT


def test_create_repository(disks: Callable[[], Disk], how: str) -> None:
    """A repository is made, for both generations of registries."""

    async def command(registry: Registry) -> None:
        await registry.create_repository("x/y")
        assert [name async for name in registry.catalog()] == ["x/y"]

    async def directories(driver: StorageDriver) -> set[str]:
        return {entry.name for entry in await driver.list("/docker/registry/v2/repositories/x/y")}

    for disk, _ in sweep(disks, how, nothing, command):
        assert trio.run(directories, disk.driver) == {"_layers", "_manifests"}


def test_remove_repository(disks: Callable[[], Disk], how: str) -> None:
    """An empty repository goes, whatever registries have left in it of cancelled uploads; its neighbours stay."""

    async def prepare(registry: Registry) -> None:
        await registry.create_repository("x/y")
        await registry.create_repository("x/z")
        await registry.driver.put_content(upload_path("x/y", UUID, "hashstates/sha256/0"), b"ghost")

    async def command(registry: Registry) -> None:
        with contextlib.suppress(RepositoryUnknown):
            await registry.remove_repository("x/y")
        assert [name async for name in registry.catalog()] == ["x/z"]

    for _ in sweep(disks, how, prepare, command):
        pass


def test_a_repository_with_a_layer_is_never_half_removed(disks: Callable[[], Disk], how: str) -> None:
    """Trying to remove or demote a repository with a layer leaves all of it, for both generations of registries."""

    async def command(registry: Registry) -> None:
        with pytest.raises(RepositoryNotEmpty):
            await registry.remove_repository("a/b")
        await registry.demote_repository("a/b")

    async def directories(driver: StorageDriver) -> set[str]:
        return {entry.name for entry in await driver.list("/docker/registry/v2/repositories/a/b")}

    for disk, _ in sweep(disks, how, with_layer, command):
        assert {"_layers", "_manifests"} <= trio.run(directories, disk.driver)
