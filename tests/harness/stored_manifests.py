"""Manifests in storage, below any mount: where they are, what must be true of them, how putting them is interrupted.

What must be true is known from the layout and the formats, not from layerfs.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Awaitable, Callable, Mapping

from harness import images
from harness.faulty_driver import Disk, Fault, FaultyDriver, InjectedFailure, ProcessDied
from harness.invariants import V2, blob_path, check_storage, link_path
from harness.walk import files_in
from layerfs.driver.interface import StorageDriver
from layerfs.registry import Registry, Repository

NAME = "foo/bar"
REPOSITORIES = f"{V2}/repositories"


def revision_path(digest: object, name: str = NAME) -> str:
    return f"{REPOSITORIES}/{name}/_manifests/revisions/{str(digest).replace(':', '/')}/link"


def tag_paths(tag: str, digest: object, name: str = NAME) -> list[str]:
    directory = f"{REPOSITORIES}/{name}/_manifests/tags/{tag}"
    return [f"{directory}/index/{str(digest).replace(':', '/')}/link", f"{directory}/current/link"]


async def put_layer(driver: StorageDriver, content: bytes, name: str = NAME, *, alias: str = "") -> None:
    """A layer as a registry would store it, also linked by another algorithm if asked to."""
    digest = images.digest(content)
    await driver.put_content(blob_path(digest), content)
    await driver.put_content(link_path(name, digest), digest.encode())
    if alias:
        await driver.put_content(link_path(name, images.digest(content, alias)), digest.encode())


async def check_links(driver: StorageDriver) -> dict[str, bytes]:
    """All files; fails if any link of a manifest or tag leads nowhere, or any blob is not what its name says."""
    files = await files_in(driver)
    check_storage(files)
    for path, content in files.items():
        if match := re.fullmatch(rf"{REPOSITORIES}/(.+)/_manifests/(.+)/link", path):
            assert blob_path(content.decode()) in files, path
            assert revision_path(content.decode(), match[1]) in files, path
    return files


async def check_complete(driver: StorageDriver) -> None:
    """Fails if a manifest refers to what is not in its repository, also where `check_links` would not."""
    files = await check_links(driver)
    for path, content in files.items():
        if match := re.fullmatch(rf"{REPOSITORIES}/(.+)/_manifests/revisions/.+/link", path):
            document = json.loads(files[blob_path(content.decode())])
            for layer in (*document.get("layers", ()), *([document["config"]] if "config" in document else ())):
                assert link_path(match[1], layer["digest"]) in files, path
            for child in document.get("manifests", ()):
                assert revision_path(child["digest"], match[1]) in files, path


async def interrupt(registry: Registry, fault: Fault, call: Callable[[Repository], Awaitable[object]]) -> FaultyDriver:
    """Calls, and is stopped at the fault."""
    driver = FaultyDriver(Disk(registry.driver))
    driver.arm(fault)
    with driver.scope, contextlib.suppress(ProcessDied, InjectedFailure):
        await call(Registry(driver).repository(NAME))
    return driver


async def restore(driver: StorageDriver, files: Mapping[str, bytes]) -> None:
    """Makes the storage have exactly these files."""
    found = await files_in(driver)
    for path in found.keys() - files.keys():
        await driver.delete(path)
    for path, content in files.items():
        if found.get(path) != content:
            await driver.put_content(path, content)
