"""Listings that are kept for a while: fresh, bounded, and never older than a change of our own."""

from __future__ import annotations

import pytest
from harness.clock import Clock

from layerfs.view import state
from layerfs.view.state import ExpiringListings

TTL = 10.0


@pytest.fixture
def listings(clock: Clock) -> ExpiringListings[str]:
    """None yet."""
    return ExpiringListings(TTL)


def test_a_listing_is_kept_for_its_time(listings: ExpiringListings[str], clock: Clock) -> None:
    """Counted from when it was complete: one that takes longer than that would be of no use to anybody."""
    clock.now = 1000.0 + 2 * TTL
    listings.put("a", 1000.0, ["x"])
    clock.now += TTL - 0.1
    assert listings.get("a") == ["x"]
    clock.now += 0.1
    assert listings.get("a") is None


def test_a_newer_listing_takes_the_place(listings: ExpiringListings[str], clock: Clock) -> None:
    """With its own time."""
    listings.put("a", 1000.0, ["x"])
    clock.now = 1005.0
    listings.put("a", 1005.0, ["y"])
    clock.now = 1012.0
    assert listings.get("a") == ["y"]


def test_nothing_is_kept_without_time(clock: Clock) -> None:
    """`--metadata-ttl 0`."""
    listings = ExpiringListings[str](0.0)
    listings.put("a", clock.now, ["x"])
    assert listings.get("a") is None


def test_a_change_of_our_own(listings: ExpiringListings[str]) -> None:
    """The listing is forgotten, and no other."""
    for name in ("a", "b"):
        listings.put(name, 1000.0, [name])
    listings.forget("a")
    assert (listings.get("a"), listings.get("b")) == (None, ["b"])


def test_a_change_while_it_was_listed(listings: ExpiringListings[str], clock: Clock) -> None:
    """What was begun before the change may lack it, and so is not kept; what is begun after it is."""
    began_at = clock.now
    clock.now += 1
    listings.forget("a")
    clock.now += 1
    listings.put("a", began_at, ["old"])
    assert listings.get("a") is None
    listings.put("a", clock.now, ["new"])
    assert listings.get("a") == ["new"]


def test_a_change_elsewhere_while_it_was_listed(listings: ExpiringListings[str], clock: Clock) -> None:
    """It has nothing to do with this one."""
    clock.now += 1
    listings.forget("b")
    listings.put("a", 1000.0, ["x"])
    assert listings.get("a") == ["x"]


def test_many_changes_while_it_was_listed(listings: ExpiringListings[str], clock: Clock) -> None:
    """However many are made elsewhere after the one that counts: memory is bounded, the rule is not."""
    began_at = clock.now
    clock.now += 1
    listings.forget("a")
    for number in range(1000):
        clock.now += 0.001
        listings.forget(f"other-{number}")
    listings.put("a", began_at, ["old"])
    assert listings.get("a") is None


def test_only_so_many_listings(listings: ExpiringListings[str], clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest goes."""
    monkeypatch.setattr(state, "_LISTINGS_KEPT", 2)
    for name in ("a", "b", "c"):
        listings.put(name, clock.now, [name])
    assert [listings.get(name) for name in ("a", "b", "c")] == [None, ["b"], ["c"]]


def test_only_so_many_entries(listings: ExpiringListings[str], clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """In all together; but the newest listing is kept however long it is."""
    monkeypatch.setattr(state, "_LISTED_ENTRIES_KEPT", 3)
    listings.put("a", clock.now, ["x"] * 2)
    listings.put("b", clock.now, ["x"] * 2)
    assert (listings.get("a"), listings.get("b")) == (None, ["x"] * 2)
    listings.put("c", clock.now, ["x"] * 100)
    assert (listings.get("b"), listings.get("c")) == (None, ["x"] * 100)
