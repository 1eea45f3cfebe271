"""Which storage a suite runs on: the local disk, unless `--stores` names object stores that run here as well.

A test of what only a local disk can do says so: `@pytest.mark.local("reason")`. On other stores it is skipped, and the
summary of the run has the reason. A suite that runs on an object store in every run says that too:
`pytestmark = pytest.mark.also_on("s3")`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import pytest

#: Ceph's gateway, Azurite, fake-gcs-server: `object_stores`, `azurite` and `gcs_server` start them.
OBJECT_STORES: Final = ("s3", "azure", "gcs")
STORES: Final = ("local", *OBJECT_STORES)


def add_option(parser: pytest.Parser) -> None:
    parser.addoption(
        "--stores",
        type=_parse,
        default=["local"],
        metavar="STORE[,STORE…]",
        help=f"where the suites that run on any storage have theirs: {', '.join(STORES)} (default: local)",
    )


def _parse(text: str) -> list[str]:
    stores = text.split(",")
    if unknown := set(stores) - set(STORES):
        raise pytest.UsageError(f"--stores: {', '.join(sorted(unknown))} not among {', '.join(STORES)}")
    return stores


def parametrize(
    metafunc: pytest.Metafunc,
    fixture: str,
    *,
    local: Iterable[object] = ("local",),
    ways: Iterable[str] = ("{}",),
    scope: str | None = None,
) -> None:
    """Gives a fixture each store in turn.

    `local` is what it takes for the local disk, `ways` for an object store, with `{}` for its name.
    """
    if fixture not in metafunc.fixturenames:
        return
    chosen = chosen_for(metafunc)
    values = [value for store in chosen for value in (local if store == "local" else _on_store(metafunc, store, ways))]
    metafunc.parametrize(fixture, values, indirect=True, scope=scope)


def follow(metafunc: pytest.Metafunc) -> None:
    """Gives the fixture `store` each store in turn; tests on this machine are called as ever."""
    if chosen_for(metafunc) != ["local"]:
        parametrize(metafunc, "store", local=[pytest.param("local", id=pytest.HIDDEN_PARAM)], scope="session")


def chosen_for(metafunc: pytest.Metafunc) -> list[str]:
    """The stores that a test is to run on."""
    also = {store for mark in metafunc.definition.iter_markers("also_on") for store in mark.args}
    return [store for store in STORES if store in metafunc.config.getoption("stores") or store in also]


def _on_store(metafunc: pytest.Metafunc, store: str, ways: Iterable[str]) -> list[object]:
    skips = [pytest.mark.skip(reason=f"local: {mark.args[0]}") for mark in metafunc.definition.iter_markers("local")]
    return [pytest.param(way.format(store), marks=[pytest.mark.on_store, *skips]) for way in ways]
