"""What listings mean for a running copy; none is believed alone."""

from __future__ import annotations

import pytest

from replicator.checkpoints import ShardState
from replicator.discovery import ORPHAN_PATIENCE, PATIENCE, Discovery
from replicator.errors import GapFound
from replicator.lineage import Shard
from replicator.source import Listing


def listing(*shards: Shard, complete: bool = True, at: float = 100.0) -> Listing:
    return Listing(shards, complete, "ENABLED", at)


def state(parent: str | None = None, *, ended: bool = False, since: float = 0.0, ordinal: int = 0) -> ShardState:
    return ShardState(parent, None, whole=False, since=since, ended=ended, ordinal=ordinal)


def test_a_child_of_a_known_shard_is_read_whole_from_its_first_record() -> None:
    news = Discovery().news({"p": state(since=7.0)}, listing(Shard("p", last="9"), Shard("c", "p", first="10")))
    assert news.shards == {"c": ShardState("p", "10", whole=True, since=7.0)}


def test_nothing_in_a_new_shard_is_older_than_the_last_listing_without_it() -> None:
    discovery = Discovery()
    discovery.news({"p": state()}, listing(Shard("p"), at=50.0))
    news = discovery.news({"p": state()}, listing(Shard("p", last="9"), Shard("c", "p")))
    assert news.shards["c"].since == 50.0


def test_a_listing_that_lacks_a_shard_that_is_being_read_proves_nothing_young() -> None:
    """It is stale, perhaps by hours: the shard after it may be as old as its parent's last record."""
    discovery, known = Discovery(), {"p": state(since=7.0)}
    discovery.news(known, listing(at=50.0))
    news = discovery.news(known, listing(Shard("p", last="9"), Shard("c", "p")))
    assert news.shards["c"].since == 7.0


def test_a_listing_without_a_child_of_a_shard_that_ended_proves_nothing_young() -> None:
    """It is from before the end: the children that it lacks may be as old as their parent's last record."""
    discovery, known = Discovery(), {"p": state(since=7.0, ended=True)}
    discovery.news(known, listing(Shard("p"), at=50.0))
    discovery.news(known, listing(Shard("p", last="9"), at=60.0))
    news = discovery.news(known, listing(Shard("p", last="9"), Shard("c", "p")))
    assert news.shards["c"].since == 7.0


def test_a_whole_generation_may_appear_at_once_in_any_order() -> None:
    shards = [Shard("d", "c"), Shard("b", "a", last="2"), Shard("c", "b", last="3"), Shard("a", last="1")]
    assert list(Discovery().news({"a": state()}, listing(*shards)).shards) == ["b", "c", "d"]


def test_an_ancestor_that_shows_up_late_closed_before_the_epoch_and_is_not_read() -> None:
    shards = [Shard("a", last="1"), Shard("b", "a", last="2"), Shard("c", "b")]
    news = Discovery().news({"c": state("b")}, listing(*shards))
    assert {id: s.ended for id, s in news.shards.items()} == {"a": True, "b": True}


def test_an_old_shard_that_was_taken_for_a_new_one_is_a_gap_when_that_comes_out() -> None:
    discovery, known = Discovery(), {"c": state("b")}
    taken = discovery.news(known, listing(Shard("a"), Shard("c", "b"))).shards
    assert taken["a"].whole
    with pytest.raises(GapFound, match="an old shard was taken for a younger one"):
        discovery.news({**known, **taken}, listing(Shard("a", last="1"), Shard("b", "a", last="2"), Shard("c", "b")))


def test_two_shards_that_were_read_side_by_side_and_turn_out_to_be_kin_are_a_gap() -> None:
    whole_line = listing(Shard("a", last="1"), Shard("b", "a", last="2"), Shard("c", "b"))
    Discovery().news({"a": state(ended=True), "c": state("b")}, whole_line)  # a was closed when the epoch began
    with pytest.raises(GapFound, match="an old shard was taken for a younger one"):
        Discovery().news({"a": state(), "c": state("b")}, whole_line)


def test_a_sibling_that_shows_up_late_is_read() -> None:
    shards = [Shard("a", last="1"), Shard("b", "a"), Shard("c", "a")]
    news = Discovery().news({"a": state(ended=True), "b": state("a")}, listing(*shards))
    assert {id: s.ended for id, s in news.shards.items()} == {"c": False}


def test_an_unfinished_shard_that_no_listing_shows_is_a_gap_after_some_patience() -> None:
    discovery, known = Discovery(), {"a": state(), "b": state()}
    for _ in range(PATIENCE - 1):
        discovery.news(known, listing(Shard("b")))
    with pytest.raises(GapFound, match="no longer listed, and it was not read to its end"):
        discovery.news(known, listing(Shard("b")))


def test_an_ended_shard_whose_children_no_listing_ever_shows_is_a_gap_after_some_patience() -> None:
    discovery, known = Discovery(), {"a": state(ended=True), "z": state("y")}
    for _ in range(PATIENCE - 1):
        discovery.news(known, listing(Shard("z", "y")))
    with pytest.raises(GapFound, match="no longer listed, and no listing showed the shards after it") as found:
        discovery.news(known, listing(Shard("z", "y")))
    assert found.value.shard == "a"


def test_it_is_waited_for_while_it_is_listed() -> None:
    discovery, known = Discovery(), {"a": state(ended=True)}
    for _ in range(3 * PATIENCE):
        discovery.news(known, listing(Shard("a", last="9")))


def test_a_shard_that_hands_out_pages_is_there_whatever_listings_say() -> None:
    discovery, known = Discovery(), {"a": state()}
    for _ in range(3 * PATIENCE):
        discovery.news(known, listing())
        discovery.read_from("a")


def test_one_listing_that_shows_it_again_is_enough() -> None:
    discovery, known = Discovery(), {"a": state()}
    for _ in range(PATIENCE):
        discovery.news(known, listing())
        discovery.news(known, listing(Shard("a")))


def test_a_shard_whose_parent_no_listing_ever_shows_is_a_gap_not_a_root() -> None:
    discovery, known = Discovery(), {"a": state()}
    for _ in range(ORPHAN_PATIENCE - 1):
        assert discovery.news(known, listing(Shard("a"), Shard("z", "y"))).shards == {}
    with pytest.raises(GapFound, match="parent was not shown by 5 listings") as found:
        discovery.news(known, listing(Shard("a"), Shard("z", "y")))
    assert found.value.shard == "z"


def test_the_children_that_were_asked_for_say_nothing_about_other_shards() -> None:
    discovery, known = Discovery(), {"a": state(ended=True), "b": state()}
    for _ in range(3 * PATIENCE):
        discovery.news(known, listing(Shard("c", "a"), complete=False))


def test_closed_shards_are_remembered_so_that_their_empty_pages_are_not_waited_upon() -> None:
    discovery = Discovery()
    discovery.news({"a": state()}, listing(Shard("a", last="5"), Shard("b", "a")))
    assert discovery.closed == {"a"}
