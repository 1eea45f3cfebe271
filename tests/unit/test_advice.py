"""The table of advice: whatever fails, somebody is told what to do about it."""

from __future__ import annotations

import pytest

from layerfs import errors
from layerfs.advice import ADVICE, advice_for
from layerfs.fuse.errnos import ERRNOS


@pytest.mark.parametrize("kind", sorted(ERRNOS, key=lambda kind: kind.__name__), ids=lambda kind: kind.__name__)
def test_every_error_that_a_client_can_see_has_advice(kind: type[errors.LayerfsError]) -> None:
    """A row of its own, in whole sentences."""
    assert kind in ADVICE
    assert advice_for(kind.__name__) == ADVICE[kind]
    assert ADVICE[kind].endswith(".")
    assert len(ADVICE[kind]) > 25


def test_every_other_class_has_that_of_its_base() -> None:
    """Also one that is added without a row, as long as its base is more than the base of all."""
    bases = {errors.LayerfsError, errors.ViewError}
    for name, kind in vars(errors).items():
        if isinstance(kind, type) and issubclass(kind, errors.LayerfsError) and kind not in bases:
            assert "bug" not in advice_for(name)


def test_what_is_no_error_of_ours_is_a_bug() -> None:
    """And is said to be one."""
    assert "report" in advice_for("Unexpected")
    assert "report" in advice_for("os")
