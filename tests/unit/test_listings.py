"""Listings that are kept for a while: fresh, bounded, and never older than a change of our own."""

from __future__ import annotations

import pytest
from harness.clock import Clock

from layerfs.view import state
from layerfs.view.nodes import Attributes, DirectoryEntry, Node, file_attributes
from layerfs.view.state import ExpiringListings, TagListings

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


# --- tags -------------------------------------------------------------------------------------------------------------


class Tag(Node):
    """As much of one as a listing needs."""

    key = "tag"

    async def attributes(self) -> Attributes:
        raise NotImplementedError


def entry(name: str, node: Node) -> DirectoryEntry:
    return DirectoryEntry(name.encode(), node, file_attributes(permissions=0o444, size=0, modified_at=0))


@pytest.fixture
def tags(clock: Clock) -> TagListings:
    """Of a storage that is far away; none yet."""
    return TagListings(TTL, is_far=True)


@pytest.mark.parametrize(
    ("took", "shown_for", "found_for"),
    [(0.0, TTL, TTL), (TTL / 4, TTL * 3 / 4, TTL), (TTL, TTL, 2 * TTL), (3 * TTL, TTL, 4 * TTL)],
)
def test_tags_are_found_until_who_has_listed_them_is_through(
    tags: TagListings, clock: Clock, took: float, shown_for: float, found_for: float
) -> None:
    """When a listing is given out, its tags are found for as long again as it took; for longer than the time to live
    only where it took long."""
    began_at = clock.now
    clock.now += took
    tags.put("a", began_at, [entry("v1", Tag())])
    listed_at = clock.now
    clock.now = listed_at + shown_for - 0.1
    assert tags.get("a") is not None
    clock.now = listed_at + shown_for
    assert tags.get("a") is None
    clock.now = listed_at + found_for - 0.1
    assert tags.find("a", "v1") is not None
    clock.now = listed_at + found_for
    assert tags.find("a", "v1") is None


def test_tags_without_a_time_to_live(clock: Clock) -> None:
    """Are asked for each time, however long it took to list them."""
    tags = TagListings(0.0, is_far=True)
    clock.now += TTL
    tags.put("a", clock.now - TTL, [entry("v1", Tag())])
    assert (tags.get("a"), tags.find("a", "v1")) == (None, None)


def test_tags_are_found_in_the_newest_listing(tags: TagListings, clock: Clock) -> None:
    """Of their own repository."""
    old, new, other = Tag(), Tag(), Tag()
    tags.put("a", clock.now, [entry("v1", old)])
    tags.put("b", clock.now, [entry("v1", other)])
    assert [tags.find(name, "v1") for name in "aba"] == [old, other, old]
    tags.put("a", clock.now, [entry("v1", new)])
    assert [tags.find("a", tag) for tag in ("v1", "v2")] == [new, None]


def test_a_tag_that_was_looked_up_is_known_for_its_time(tags: TagListings, clock: Clock) -> None:
    """Since storage was asked, not since it has answered."""
    node, asked_at = Tag(), clock.now
    clock.now += TTL / 2
    tags.remember("a", "v1", asked_at, node)
    clock.now += TTL / 2 - 0.1
    assert [tags.find(*of) for of in (("a", "v1"), ("a", "v2"), ("b", "v1"))] == [node, None, None]
    clock.now += 0.1
    assert tags.find("a", "v1") is None


def test_tags_are_forgotten_with_a_change_of_our_own(tags: TagListings, clock: Clock) -> None:
    """Also what was asked for before the change, and is answered after it."""
    asked_at = clock.now
    tags.put("a", asked_at, [entry("v1", Tag())])
    tags.remember("a", "v2", asked_at, Tag())
    clock.now += 1
    tags.forget("a")
    tags.remember("a", "v3", asked_at, Tag())
    assert [tags.find("a", tag) for tag in ("v1", "v2", "v3")] == [None] * 3


def test_tags_on_this_machine_are_asked_for(clock: Clock) -> None:
    """Whatever is remembered of them."""
    tags = TagListings(TTL, is_far=False)
    tags.put("a", clock.now, [entry("v1", Tag())])
    tags.remember("a", "v1", clock.now, Tag())
    assert tags.find("a", "v1") is None


def test_only_so_many_single_tags(tags: TagListings, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest go."""
    monkeypatch.setattr(state, "_TAGS_KEPT", 2)
    for number in (1, 2, 3):
        tags.remember("a", f"v{number}", clock.now, Tag())
    assert [tags.find("a", f"v{number}") is not None for number in (1, 2, 3)] == [False, True, True]
