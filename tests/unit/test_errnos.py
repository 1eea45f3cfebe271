"""The table of errnos: whatever is raised has a number that was chosen for it."""

from __future__ import annotations

import ast
import errno
import inspect
from pathlib import Path

import pytest

import layerfs
from layerfs import errors
from layerfs.errors import LayerfsError
from layerfs.fuse.errnos import ERRNOS, errno_of

CLASSES = {
    name: found
    for name, found in inspect.getmembers(errors, inspect.isclass)
    if issubclass(found, LayerfsError) and found.__module__ == errors.__name__
}


def made_somewhere() -> set[str]:
    """The names of errors that are called, or raised without a call, anywhere in the program."""
    names = set()
    for path in Path(layerfs.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            made = node.func if isinstance(node, ast.Call) else node.exc if isinstance(node, ast.Raise) else None
            if isinstance(made, ast.Name):
                names.add(made.id)
            elif isinstance(made, ast.Attribute):
                names.add(made.attr)
    return names & set(CLASSES)


@pytest.mark.parametrize("name", sorted(made_somewhere()))
def test_every_error_that_is_raised_has_a_row(name: str) -> None:
    """Its own, or that of a base that is more than the base of all."""
    rows = [base for base in CLASSES[name].__mro__ if base in ERRNOS]
    assert rows, f"{name} has no row"


def test_every_row_is_of_our_errors() -> None:
    """And every number is an errno."""
    assert set(ERRNOS) <= set(CLASSES.values())
    assert set(ERRNOS.values()) <= set(errno.errorcode)


def test_a_row_counts_before_that_of_its_base() -> None:
    """And a class without one has that of the nearest base that has."""

    class Own(errors.AccessDenied):
        pass

    assert errno_of(errors.AccessDenied("/x")) == errno.EACCES
    assert errno_of(errors.DriverError("/x")) == errno.EIO
    assert errno_of(Own("/x")) == errno.EACCES


def test_an_error_that_nobody_thought_of() -> None:
    """EIO."""

    class New(LayerfsError):
        pass

    assert errno_of(New("new")) == errno.EIO
