"""The tests of mounts have their storages where `--stores` says: `make stores` runs them on all.

Without it they are on this machine, and a few, those with `also_on`, on an object store too.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from harness.store_option import chosen_for, parametrize

_HERE = Path(__file__).parent


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if chosen_for(metafunc) != ["local"]:
        # Tests on this machine are called as ever.
        here = pytest.param("local", id=pytest.HIDDEN_PARAM)
        parametrize(metafunc, "store", local=[here], scope="session")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Drops what would be on this machine all the same, if others are asked for; skips what can only be there."""
    dropped = []
    for item in [item for item in items if _HERE in item.path.parents]:
        store = _store_of(item)
        if store == "local" and "local" not in config.getoption("stores"):
            dropped.append(item)
        elif store != "local" and (mark := item.get_closest_marker("local")):
            # Also of one of several parameters, of which `store_option` does not know yet.
            item.add_marker(pytest.mark.skip(reason=f"local: {mark.args[0]}"))
    gone = set(dropped)
    items[:] = [item for item in items if item not in gone]
    config.hook.pytest_deselected(items=dropped)


def _store_of(item: pytest.Item) -> str:
    """Where a test has its storage, if it has any."""
    callspec = getattr(item, "callspec", None)
    return str(callspec.params.get("store", "local")) if callspec is not None else "local"
