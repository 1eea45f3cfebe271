"""A push to `_oci` that is interrupted at every call of the storage: by an error, by a death, by a cancelled call."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing
from harness.faulty_driver import Disk, Fault, FaultyDriver, ProcessDied
from harness.images import OCI_INDEX, digest, encode, oci_image, oci_index
from harness.shown import InProcess
from harness.stored_manifests import check_complete

from layerfs.driver.memory import MemoryDriver
from layerfs.registry import Registry
from layerfs.registry.maintenance import check
from layerfs.view.tree import Tree, TreeOptions

CONFIG, LAYER, OLD_LAYER = b'{"os":"linux"}', b"a layer", b"an old layer"
OLD = encode(oci_image(CONFIG, [OLD_LAYER]))
IMAGE = encode(oci_image(CONFIG, [LAYER]))
PLATFORMS = encode(oci_index([IMAGE]))

#: More calls than a push makes.
CALLS = 250


class Pusher:
    """Pushes to repository `a` of a tree, as containers/image does: each blob under a temporary name first."""

    def __init__(self, driver: FaultyDriver, nursery: trio.Nursery) -> None:
        self.shown = InProcess(Tree(Registry(driver), TreeOptions(), nursery), driver, "a")

    async def push(self, manifests: list[bytes], blobs: list[bytes], top: bytes, tag: str) -> None:
        for number, blob in enumerate(blobs):
            if not await self.shown.exists(self._blob(blob)):
                temporary = f"a/_oci/oci-put-blob{number}"
                if await self.shown.exists(temporary):
                    await self.shown.remove(temporary)
                await self.shown.write(temporary, blob)
                await self.shown.rename(temporary, self._blob(blob))
        for manifest in manifests:
            await self.shown.write(self._blob(manifest), manifest, os.O_CREAT | os.O_TRUNC)
        entry = {"mediaType": OCI_INDEX, "digest": digest(top), "size": len(top)}
        named = entry | {"annotations": {"org.opencontainers.image.ref.name": tag}}
        index = json.dumps({"schemaVersion": 2, "manifests": [named]})
        await self.shown.write("a/_oci/index.json", index.encode(), os.O_CREAT | os.O_TRUNC)

    async def push_platforms(self) -> None:
        await self.push([IMAGE, PLATFORMS], [CONFIG, LAYER], PLATFORMS, "multi")

    async def tags(self) -> list[str]:
        return await self.shown.list("a/_tags")

    def _blob(self, content: bytes) -> str:
        return f"a/_oci/blobs/{digest(content).replace(':', '/')}"


async def storage_with_an_image(nursery: trio.Nursery) -> MemoryDriver:
    memory = MemoryDriver()
    registry = await Registry.open(memory, create=True)
    await registry.create_repository("a")
    await Pusher(FaultyDriver(Disk(memory)), nursery).push([OLD], [CONFIG, OLD_LAYER], OLD, "old")
    return memory


async def interrupted(push: Callable[[], Awaitable[None]], driver: FaultyDriver) -> None:
    with driver.scope, contextlib.suppress(ProcessDied, OSError):
        await push()


async def kinds_of_faults(driver: MemoryDriver) -> set[str]:
    return {fault.kind async for fault in check(Registry(driver), deep=True, settle=0)}


@pytest.mark.parametrize("how", ["fail", "die", "cancel"])
@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_push_that_is_interrupted(how: str, when: str, nursery: trio.Nursery) -> None:
    """Leaves what was there as it was, nothing that is wrong, and no tag but a complete one; then it succeeds."""
    for call in range(1, CALLS):
        memory = await storage_with_an_image(nursery)
        driver = FaultyDriver(Disk(memory))
        pusher = Pusher(driver, nursery)
        driver.arm(Fault(call, when, how))
        await interrupted(pusher.push_platforms, driver)
        await trio.testing.wait_all_tasks_blocked()
        struck = driver.has_struck
        driver.arm(None)

        await check_complete(memory)
        left = await kinds_of_faults(memory)
        assert left <= {"upload-without-startedat"}, (call, driver.log)
        again = Pusher(FaultyDriver(Disk(memory)), nursery) if how == "die" else pusher
        assert set(await again.tags()) <= {"old", "multi"}
        await again.push_platforms()
        assert await again.tags() == ["multi", "old"]
        await check_complete(memory)
        assert await kinds_of_faults(memory) <= {"upload-without-startedat"}
        if not struck:
            return
    raise AssertionError(f"a push makes more than {CALLS} calls")
