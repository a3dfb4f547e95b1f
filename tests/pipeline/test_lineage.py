"""Which shards may be read, from literals: listings come in any order and state."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations

import pytest

from replicator.change import Shard
from replicator.pipeline.lineage import (
    KEPT,
    childless,
    forgettable,
    heirless,
    merged,
    newcomers,
    orphans,
    readable,
    vanished,
)


@dataclass(frozen=True)
class Stored:
    parent: str | None = None
    ended: bool = False
    since: float = 0.0
    through: float | None = None
    leaf: bool = False


LONG_AFTER = KEPT + 1
OPEN, ENDED = Stored(), Stored(ended=True)


def child(parent: str) -> Stored:
    return Stored(parent)


def ended_child(parent: str) -> Stored:
    return Stored(parent, ended=True)


def listed(*shards: Shard) -> dict[str, Shard]:
    return merged(shards)


def ids(shards: list[Shard]) -> list[str]:
    return [s.id for s in shards]


# what a listing says


def test_a_shard_listed_twice_is_one_shard() -> None:
    a = Shard("a", first="1")
    assert merged([a, a]) == {"a": a}


def test_a_shard_listed_open_and_closed_is_closed_whichever_came_first() -> None:
    opened, closed = Shard("a", first="1"), Shard("a", first="1", last="9")
    assert merged([opened, closed]) == merged([closed, opened]) == {"a": closed}


def test_a_shard_is_open_until_its_last_sequence_is_known() -> None:
    assert Shard("a", first="1").open
    assert not Shard("a", first="1", last="1").open


# which may be read


def test_a_root_may_be_read() -> None:
    assert readable({"a": OPEN}) == {"a"}


def test_an_ended_shard_is_not_read_again() -> None:
    assert readable({"a": ENDED}) == set()


def test_a_child_waits_for_its_parents_end() -> None:
    assert readable({"a": OPEN, "b": child("a")}) == {"a"}
    assert readable({"a": ENDED, "b": child("a")}) == {"b"}


def test_a_child_that_was_listed_on_an_earlier_page_than_its_parent_still_waits() -> None:
    assert readable({"b": child("a"), "a": OPEN}) == {"a"}


def test_an_open_parent_with_children_is_read_before_them() -> None:
    assert readable({"a": OPEN, "b": child("a"), "c": child("a")}) == {"a"}


def test_both_children_of_a_split_are_read_once_their_parent_ended() -> None:
    assert readable({"a": ENDED, "b": child("a"), "c": child("a")}) == {"b", "c"}


def test_a_grandchild_waits_though_the_grandparent_ended() -> None:
    assert readable({"a": ENDED, "b": child("a"), "c": child("b")}) == {"b"}


def test_an_unknown_parent_blocks_nothing() -> None:
    assert readable({"b": child("trimmed")}) == {"b"}


# which are new


def test_new_shards_are_ordered_parents_first_regardless_of_listing_order() -> None:
    family = [Shard("a"), Shard("b", "a"), Shard("c", "b"), Shard("d", "b")]
    for order in permutations(family):
        order_found = ids(newcomers({}, listed(*order)))
        assert sorted(order_found) == ["a", "b", "c", "d"]
        assert all(order_found.index(s.parent) < order_found.index(s.id) for s in family if s.parent is not None)


def test_known_shards_are_not_new() -> None:
    assert newcomers({"a": OPEN}, listed(Shard("a"))) == []


def test_a_child_of_a_known_parent_is_new_though_the_parent_is_no_longer_listed() -> None:
    assert ids(newcomers({"a": ENDED}, listed(Shard("b", "a")))) == ["b"]


def test_a_child_whose_parent_was_never_listed_is_an_orphan_and_not_new() -> None:
    shards = listed(Shard("a"), Shard("c", "b"))
    assert ids(newcomers({}, shards)) == ["a"]
    assert orphans({}, shards) == {"c"}


def test_the_descendants_of_an_orphan_are_orphans() -> None:
    assert orphans({}, listed(Shard("c", "b"), Shard("d", "c"), Shard("e", "d"))) == {"c", "d", "e"}


def test_a_shard_is_no_longer_an_orphan_once_its_parent_is_listed() -> None:
    shards = listed(Shard("c", "b"), Shard("b", last="9"))
    assert orphans({}, shards) == set()
    assert ids(newcomers({}, shards)) == ["b", "c"]


def test_a_known_shard_is_never_an_orphan_whatever_happened_to_its_parent() -> None:
    assert orphans({"b": child("a")}, listed(Shard("b", "a"))) == set()


@pytest.mark.parametrize("shards", [[Shard("a", "a")], [Shard("a", "b"), Shard("b", "a")]])
def test_a_cyclic_lineage_waits_and_does_not_loop_forever(shards: list[Shard]) -> None:
    assert newcomers({}, listed(*shards)) == []
    assert orphans({}, listed(*shards)) == {s.id for s in shards}


# which are gone


def test_an_unfinished_shard_that_is_not_listed_has_vanished() -> None:
    assert vanished({"a": OPEN, "b": OPEN}, listed(Shard("b"))) == {"a"}


def test_a_finished_shard_may_leave_the_listing() -> None:
    assert vanished({"a": ENDED, "b": child("a")}, listed(Shard("b", "a"))) == set()


def test_a_waiting_child_that_is_not_listed_has_vanished_too() -> None:
    assert vanished({"a": OPEN, "b": child("a")}, listed(Shard("a"))) == {"b"}


def test_an_ended_shard_that_left_the_listing_before_its_children_were_seen_has_vanished() -> None:
    assert vanished({"a": ENDED, "b": OPEN}, listed(Shard("b"))) == {"a"}


# whether a listing is from before a shard ended


def test_a_shard_that_ended_has_a_child_in_every_later_listing() -> None:
    assert heirless({"a": ENDED, "b": OPEN}, listed(Shard("a"), Shard("b"))) == {"a"}
    assert heirless({"a": ENDED, "b": OPEN}, listed(Shard("a", last="1"), Shard("b"), Shard("c", "a"))) == set()


def test_a_shard_that_a_listing_shows_closed_has_a_child_in_every_later_listing() -> None:
    assert heirless({"a": OPEN}, listed(Shard("a", last="1"))) == {"a"}


def test_a_child_that_is_known_already_is_a_child() -> None:
    assert heirless({"a": ENDED, "b": child("a")}, listed(Shard("a", last="1"))) == set()


# whose children are not known


def test_the_children_of_a_closed_childless_shard_are_looked_up() -> None:
    assert childless({"a": ENDED}) == {"a"}


def test_the_children_of_an_open_shard_are_not_looked_up() -> None:
    assert childless({"a": OPEN}) == set()


def test_only_the_last_generation_is_childless() -> None:
    assert childless({"a": ENDED, "b": ended_child("a")}) == {"b"}


# which may be forgotten


def test_a_shard_that_is_still_listed_is_kept() -> None:
    known = {"a": ENDED, "b": ended_child("a"), "c": child("b")}
    assert (
        forgettable(known, listed(Shard("a", last="1"), Shard("b", "a", last="2"), Shard("c", "b")), LONG_AFTER)
        == set()
    )


def test_an_ended_shard_whose_children_ended_may_be_forgotten_once_it_is_not_listed() -> None:
    known = {"a": ENDED, "b": ended_child("a"), "c": child("b")}
    assert forgettable(known, listed(Shard("c", "b")), LONG_AFTER) == {"a"}


def test_a_shard_missing_from_a_listing_is_kept_for_two_days() -> None:
    read_to_its_end = Stored(ended=True, through=1000.0)
    known = {"a": read_to_its_end, "b": ended_child("a"), "c": child("b")}
    assert forgettable(known, {}, 1000.0 + KEPT) == set()
    assert forgettable(known, {}, 1001.0 + KEPT) == {"a"}


def test_the_parent_of_an_unfinished_shard_is_kept() -> None:
    assert forgettable({"a": ENDED, "b": child("a")}, {}, LONG_AFTER) == set()


def test_a_parent_is_kept_while_one_of_its_children_is_unfinished() -> None:
    assert forgettable({"a": ENDED, "b": ended_child("a"), "c": child("a")}, {}, LONG_AFTER) == set()


def test_a_shard_whose_children_were_never_seen_is_kept() -> None:
    assert forgettable({"a": ENDED}, {}, LONG_AFTER) == set()


def test_an_unfinished_shard_is_never_forgotten() -> None:
    assert forgettable({"a": OPEN, "b": child("a")}, {}, LONG_AFTER) == set()


def test_a_child_is_not_forgotten_before_its_parent() -> None:
    """Its parent would look like one whose children no listing ever showed."""
    recently = Stored(ended=True, through=LONG_AFTER - KEPT)
    assert forgettable({"a": recently, "b": ended_child("a"), "c": child("b")}, {}, LONG_AFTER) == set()
    later = LONG_AFTER + 1
    assert forgettable({"a": recently, "b": ended_child("a"), "c": ended_child("b"), "d": child("c")}, {}, later) == {
        "a",
        "b",
    }


def test_one_child_of_a_kept_parent_is_enough() -> None:
    """Otherwise nothing of a lineage would be forgotten while another one from the same parent never ends."""
    known = {"a": ENDED, "b": child("a"), "c": ended_child("a"), "d": ended_child("c"), "e": child("d")}
    assert forgettable(known, {}, LONG_AFTER) == {"c"}


def test_one_child_of_a_listed_shard_is_kept() -> None:
    known = {"a": ENDED, "b": ended_child("a"), "c": ended_child("a"), "d": ended_child("b"), "e": ended_child("c")}
    known |= {"f": child("d"), "g": child("e")}
    assert forgettable(known, listed(Shard("a", last="1")), LONG_AFTER) == {"c"}


# which have no children


LEAF = Stored(ended=True, leaf=True)


def test_a_childless_shard_is_not_looked_up_does_not_vanish_and_makes_no_listing_stale() -> None:
    assert childless({"a": LEAF}) == set()
    assert vanished({"a": LEAF}, {}) == set()
    assert heirless({"a": LEAF}, listed(Shard("a", last="1"))) == set()
    assert forgettable({"a": LEAF}, {}, LONG_AFTER) == {"a"}
