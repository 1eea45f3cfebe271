"""The catalog, and how repositories come, are recognised, and go."""

from __future__ import annotations

import pytest
from harness.faulty_driver import Disk, FaultyDriver
from harness.invariants import link_path, upload_path
from harness.walk import files_in

from layerfs.digest import Digest
from layerfs.driver.interface import StorageDriver
from layerfs.errors import (
    BackendFailure,
    InvalidRepositoryName,
    NotARegistry,
    RepositoryNotEmpty,
    RepositoryUnknown,
)
from layerfs.registry import Registry

REPOSITORIES = "/docker/registry/v2/repositories"
UUID = "f81d4fae-7dec-4d0a-a765-00a0c91e6bf6"

#: distribution's own list, in its order: a `/` sorts before everything.
NAMES = ["bar/c", "bar/d", "bar/e", "bar/f", "foo/a", "foo/b", "foo/d/in", "foo-bar/a", "foo-bar/b", "test"]


async def catalog(registry: Registry, last: str = "") -> list[str]:
    return [name async for name in registry.catalog(last=last)]


async def make_directory(driver: StorageDriver, path: str) -> None:
    """A directory; where there are none but for what is in them, with something in it that nobody knows."""
    await driver.make_directory(path)
    if not driver.capabilities.directories:
        await driver.put_content(f"{path}/.keep", b"")


async def make_repository(registry: Registry, name: str) -> None:
    """A repository without layers, manifests and uploads."""
    if registry.driver.capabilities.directories:
        await registry.create_repository(name)
    else:
        for mark in ("_layers", "_manifests"):
            await make_directory(registry.driver, f"{REPOSITORIES}/{name}/{mark}")


async def directories(driver: StorageDriver, name: str) -> set[str]:
    return {entry.name for entry in await driver.list(f"{REPOSITORIES}/{name}")}


# --- opening ---------------------------------------------------------------------------------------------------


async def test_opening_what_is_no_registry(driver: StorageDriver) -> None:
    """Raises `NotARegistry`, and makes nothing; with `create` there is an empty one.

    It can be opened again, if there are empty directories; else it has to be created until something is in it.
    """
    with pytest.raises(NotARegistry):
        await Registry.open(driver)
    assert await driver.list("/") == []
    assert await catalog(await Registry.open(driver, create=True)) == []
    if driver.capabilities.directories:
        assert await catalog(await Registry.open(driver)) == []
    else:
        with pytest.raises(NotARegistry):
            await Registry.open(driver)


async def test_creating_where_a_registry_is(registry: Registry, driver: StorageDriver) -> None:
    """`create` changes nothing there."""
    await make_repository(registry, "a")
    assert await catalog(await Registry.open(driver, create=True)) == ["a"]


# --- catalog -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("marks", [["_layers"], ["_manifests"], ["_uploads"], ["_layers", "_manifests", "_uploads"]])
async def test_the_order_of_the_catalog(registry: Registry, driver: StorageDriver, marks: list[str]) -> None:
    """By component, whichever directory makes a repository one: 2.x looks for `_layers`, 3.x for `_manifests`."""
    for name in reversed(NAMES):
        for mark in marks:
            await make_directory(driver, f"{REPOSITORIES}/{name}/{mark}")
    assert await catalog(registry) == NAMES


@pytest.mark.parametrize("count", [1, 3, 4, 100])
async def test_the_catalog_in_pages(registry: Registry, count: int) -> None:
    """`last` goes on behind the last name of the page before; at the end there is nothing more."""
    for name in NAMES:
        await make_repository(registry, name)
    pages, last = [], ""
    while page := (await catalog(registry, last))[:count]:
        pages += page
        last = page[-1]
    assert pages == NAMES


@pytest.mark.parametrize(
    ("last", "first"),
    [
        ("a", "bar/c"),
        ("bar", "bar/c"),
        ("bar/c/x", "bar/d"),
        ("bar/cc", "bar/d"),
        ("foo", "foo/a"),
        ("foo/c", "foo/d/in"),
        ("foo/d", "foo/d/in"),
        ("foo/d/in", "foo-bar/a"),
        ("foo/z", "foo-bar/a"),
        ("foo-", "foo-bar/a"),
        ("foo-bar/b", "test"),
    ],
)
async def test_going_on_behind_any_name(registry: Registry, last: str, first: str) -> None:
    """`last` need not be a repository."""
    for name in NAMES:
        await make_repository(registry, name)
    assert (await catalog(registry, last))[0] == first


async def test_the_end_of_the_catalog(registry: Registry) -> None:
    """Behind the last name there is nothing."""
    for name in NAMES:
        await make_repository(registry, name)
    assert await catalog(registry, "test") == []
    assert await catalog(registry, "zzz") == []


async def test_repositories_within_repositories(registry: Registry) -> None:
    """`a`, `a/b` and `a/b/c` exist side by side; the shorter name comes first."""
    for name in ("a/b/c", "a", "a-b", "a/b"):
        await make_repository(registry, name)
    assert await catalog(registry) == ["a", "a/b", "a/b/c", "a-b"]
    assert await catalog(registry, "a") == ["a/b", "a/b/c", "a-b"]


async def test_beginnings_of_names_are_no_repositories(registry: Registry, driver: StorageDriver) -> None:
    """Nor are files, nor what cannot be a component, nor anything inside a repository."""
    await make_repository(registry, "library/alpine")
    await driver.put_content(f"{REPOSITORIES}/a-file", b"")
    for hidden in (".git/_layers", "_layers/x/_layers", "-x/_layers", "library/alpine/_layers/x/_layers"):
        await make_directory(driver, f"{REPOSITORIES}/{hidden}")
    await make_directory(driver, f"{REPOSITORIES}/empty/directories/only")
    assert await catalog(registry) == ["library/alpine"]


async def test_names_that_are_only_read(registry: Registry, driver: StorageDriver) -> None:
    """What some registry let through is shown."""
    for name in ("Foo/bar", "a..b", "a___b"):
        await make_directory(driver, f"{REPOSITORIES}/{name}/_layers")
    assert await catalog(registry) == ["Foo/bar", "a..b", "a___b"]


@pytest.mark.local("object stores have no keys of more than 1,024 bytes")
async def test_a_maze_of_directories(registry: Registry, driver: StorageDriver) -> None:
    """Directories nested deeper than any name can be do not keep the catalog from ending."""
    await make_repository(registry, "z")
    deep = REPOSITORIES
    for _ in range(12):
        deep += "/" + "d" * 200
    await make_directory(driver, deep)
    assert await catalog(registry) == ["z"]


async def test_a_catalog_without_repositories(driver: StorageDriver) -> None:
    """A registry that has never been pushed to has no `repositories`."""
    await make_directory(driver, "/docker/registry/v2/blobs")
    assert await catalog(await Registry.open(driver)) == []


async def test_a_catalog_that_fails(registry: Registry, watched: FaultyDriver) -> None:
    """An error of the backend goes through, as at a registry's: half a catalog looks whole."""
    for name in NAMES:
        await make_repository(registry, name)

    async def fail(what: str, path: str) -> None:
        if path.endswith("/foo/d"):
            raise BackendFailure(path)

    watched.on_call = fail
    with pytest.raises(BackendFailure):
        await catalog(Registry(watched))


async def test_a_repository_that_goes_meanwhile(registry: Registry, watched: FaultyDriver) -> None:
    """One that is removed while the catalog is made is left out."""
    for name in NAMES:
        await make_repository(registry, name)

    async def remove(what: str, path: str) -> None:
        if path.endswith("/foo-bar"):
            await registry.driver.delete(f"{REPOSITORIES}/foo-bar")

    watched.on_call = remove
    assert await catalog(Registry(watched)) == [name for name in NAMES if not name.startswith("foo-bar")]


async def test_listing_a_directory_of_names(registry: Registry) -> None:
    """Whether it is a repository itself, and what comes next; what is not there is unknown."""
    for name in ("a", "a/b", "a/c/d"):
        await make_repository(registry, name)
    top, a, c = [await registry.list(name) for name in ("", "a", "a/c")]
    assert (top.is_repository, top.components) == (False, ("a",))
    assert (a.is_repository, a.components) == (True, ("b", "c"))
    assert (c.is_repository, c.components) == (False, ("d",))
    with pytest.raises(RepositoryUnknown) as caught:
        await registry.list("b")
    assert caught.value.name == "b"


# --- making and removing -----------------------------------------------------------------------------------------


async def test_creating_a_repository(registry: Registry, driver: StorageDriver) -> None:
    """Both directories are made, where there are any; again is no error; a name that is not strict is one."""
    for _ in range(2):
        await registry.create_repository("new/repo")
    if driver.capabilities.directories:
        assert await directories(driver, "new/repo") == {"_layers", "_manifests"}
    else:
        assert await files_in(driver) == {}
    with pytest.raises(InvalidRepositoryName):
        await registry.create_repository("New/repo")


async def test_a_name_that_no_registry_stores(registry: Registry) -> None:
    """There is no such repository, not even an empty one."""
    for name in ("", "..", "a/../b", "_layers", "a/_uploads", "a b"):
        with pytest.raises(InvalidRepositoryName):
            registry.repository(name)


async def test_removing_an_empty_repository(registry: Registry, driver: StorageDriver) -> None:
    """With the directories of deleted links and the ghosts of cancelled uploads; what it was in stays, if it can."""
    await registry.create_repository("a/b")
    await driver.make_directory(f"{REPOSITORIES}/a/b/_layers/sha256/{'0' * 64}")
    await driver.make_directory(f"{REPOSITORIES}/a/b/_manifests/tags")
    await driver.put_content(upload_path("a/b", UUID, "hashstates/sha256/0"), b"ghost")
    await registry.remove_repository("a/b")
    if driver.capabilities.directories:
        assert await directories(driver, "a") == set()
    assert await files_in(driver) == {}
    with pytest.raises(RepositoryUnknown):
        await registry.remove_repository("a/b")


@pytest.mark.parametrize(
    "path",
    [
        link_path("a", f"sha256:{'0' * 64}").removeprefix(f"{REPOSITORIES}/a/"),
        f"_manifests/revisions/sha256/{'0' * 64}/link",
        "_manifests/tags/latest/current/link",
        f"_uploads/{UUID}/startedat",
        f"_uploads/{UUID}/data",
        "README",
        ".hidden/file",
        "b/_layers/x",
    ],
)
async def test_a_repository_that_holds_something(registry: Registry, driver: StorageDriver, path: str) -> None:
    """Raises `RepositoryNotEmpty` and changes nothing; dangling links and bytes without a time are something too."""
    await registry.create_repository("a")
    await driver.put_content(f"{REPOSITORIES}/a/{path}", b"x")
    before = await files_in(driver)
    with pytest.raises(RepositoryNotEmpty) as caught:
        await registry.remove_repository("a")
    assert caught.value.name == "a"
    assert await files_in(driver) == before
    assert not driver.capabilities.directories or {"_layers", "_manifests"} <= await directories(driver, "a")


@pytest.mark.local("where there are no empty directories there is nothing to remove")
async def test_demoting_an_empty_repository(registry: Registry, driver: StorageDriver) -> None:
    """It is a mere beginning of names again; what begins with it is not touched."""
    await registry.create_repository("a")
    await registry.create_repository("a/b")
    await registry.demote_repository("a")
    assert await catalog(registry) == ["a/b"]
    await registry.demote_repository("nowhere")


@pytest.mark.parametrize(
    "path",
    [f"_layers/sha256/{'0' * 64}/link", "_manifests/tags/latest/current/link", f"_uploads/{UUID}/startedat"],
)
async def test_demoting_one_that_is_in_use(registry: Registry, driver: StorageDriver, path: str) -> None:
    """It keeps both directories: with only one, a collector of the other generation would delete its blobs."""
    await registry.create_repository("a")
    await driver.put_content(f"{REPOSITORIES}/a/{path}", b"x")
    before = await files_in(driver)
    await registry.demote_repository("a")
    assert await files_in(driver) == before
    assert not driver.capabilities.directories or {"_layers", "_manifests"} <= await directories(driver, "a")


@pytest.mark.local("where there are no empty directories there is nothing to remove")
@pytest.mark.parametrize("how", ["remove", "demote"])
async def test_a_layer_that_comes_meanwhile(registry: Registry, how: str) -> None:
    """Whoever is faster by a moment has a whole repository in the end."""
    await registry.create_repository("a")
    watched = FaultyDriver(Disk(registry.driver))

    async def put_layer(what: str, path: str) -> None:
        if what == "remove_directory" and path.endswith("/_manifests"):
            watched.on_call = None
            await registry.driver.put_content(f"{REPOSITORIES}/a/_manifests/tags/latest/current/link", b"sha256:")

    watched.on_call = put_layer
    if how == "remove":
        with pytest.raises(RepositoryNotEmpty):
            await Registry(watched).remove_repository("a")
    else:
        await Registry(watched).demote_repository("a")
    assert await directories(registry.driver, "a") == {"_layers", "_manifests"}


async def test_the_layers_of_no_repository(registry: Registry) -> None:
    """A layer service for a repository that is not there answers like an empty one."""
    layers = registry.repository("nowhere").layers
    assert await layers.list() == []
    assert await layers.uploads() == []
    assert not await layers.exists(Digest.of(b"x"))
