"""The trees that a real registry has written: nothing wrong in one, in the other exactly what was done to it."""

from __future__ import annotations

from contextlib import aclosing
from pathlib import Path

import pytest

from layerfs.driver.interface import Capabilities, StorageDriver
from layerfs.driver.local import LocalDriver
from layerfs.driver.memory import MemoryDriver
from layerfs.registry import Registry
from layerfs.registry.maintenance import check


async def faults_in(driver: StorageDriver, *, deep: bool) -> set[str]:
    """What is found, in the words of `damaged.txt`."""
    async with aclosing(check(Registry(driver), deep=deep, settle=0)) as faults:
        found = [f"{fault.kind} {fault.place}" async for fault in faults]
    assert len(found) == len(set(found)), "a fault is reported twice"
    return set(found)


def expected(trees: Path) -> set[str]:
    """`damaged.txt`, and those faults that the script then copied with the directory that they were in."""
    lines = (trees / "damaged.txt").read_text().splitlines()
    copied = {
        line.replace(" base", f" {target}", 1)
        for line in lines
        for target, parts in (
            ("layers/only", ("dangling-layer-link ", "empty-link ", "link-with-newline ")),
            ("manifests/only", ("tag-", "dangling-revision ", "manifest-not-json ")),
        )
        if line.startswith(parts)
    }
    return {*lines, *copied}


@pytest.mark.parametrize("deep", [False, True])
async def test_nothing_is_wrong_in_what_a_registry_has_written(fixture_trees: Path, deep: bool) -> None:
    """Aliases, mounted blobs, deleted manifests, uploads of every kind: all of it is as it should be."""
    assert await faults_in(LocalDriver(str(fixture_trees / "storage")), deep=deep) == set()


async def test_every_fault_is_named_and_no_other(fixture_trees: Path) -> None:
    """All 18 kinds, at their places."""
    assert await faults_in(LocalDriver(str(fixture_trees / "damaged")), deep=True) == expected(fixture_trees)


async def test_only_wrong_bytes_need_to_be_read(fixture_trees: Path) -> None:
    """Without `deep`, all but corrupt blobs are found."""
    found = await faults_in(LocalDriver(str(fixture_trees / "damaged")), deep=False)
    assert found == {line for line in expected(fixture_trees) if not line.startswith("corrupt-blob ")}


class ObjectStore(MemoryDriver):
    """Where directories are only the beginnings of names."""

    capabilities = Capabilities(directories=False, append=False, random_writes=False)


async def copy_files(root: Path, driver: StorageDriver) -> StorageDriver:
    """All files of a tree, without directories that have none in them."""
    for path in sorted(root.rglob("*")):
        if path.is_file():
            await driver.put_content(f"/{path.relative_to(root)}", path.read_bytes())
    return driver


async def test_the_same_is_found_on_an_object_store(fixture_trees: Path) -> None:
    """But for a tag that is an empty directory, and temporary files, which object stores do not have."""
    driver = await copy_files(fixture_trees / "damaged", ObjectStore())
    elsewhere = ("tag-without-current ", "left-over-tmp ")
    expect = {line for line in expected(fixture_trees) if not line.startswith(elsewhere)}
    assert await faults_in(driver, deep=True) == expect


async def test_nothing_is_wrong_in_a_copy_on_an_object_store(fixture_trees: Path) -> None:
    """A repository whose only image was deleted has lost `_manifests` with it, and that is no fault."""
    assert await faults_in(await copy_files(fixture_trees / "storage", ObjectStore()), deep=True) == set()
