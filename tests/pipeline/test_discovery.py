"""What listings mean for a running copy; none is trusted alone."""

from __future__ import annotations

from dataclasses import replace

import pytest

from replicator.change import Listing, Shard
from replicator.errors import GapFound
from replicator.pipeline.discovery import Discovery, News
from replicator.state import ShardState

HOUR = 3600.0


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


def test_a_whole_generation_of_shards_may_appear_at_once_in_any_order() -> None:
    shards = [Shard("d", "c"), Shard("b", "a", last="2"), Shard("c", "b", last="3"), Shard("a", last="1")]
    assert list(Discovery().news({"a": state()}, listing(*shards)).shards) == ["b", "c", "d"]


def test_an_ancestor_that_is_listed_late_was_closed_before_the_epoch_and_is_not_read() -> None:
    shards = [Shard("a", last="1"), Shard("b", "a", last="2"), Shard("c", "b")]
    news = Discovery().news({"c": state("b")}, listing(*shards))
    assert {id: s.ended for id, s in news.shards.items()} == {"a": True, "b": True}


def test_after_an_existing_export_ancestors_that_appear_later_are_a_gap_for_two_days() -> None:
    """They may have records of after the export, which nothing else has; after a day, listed ones surely do."""
    known, shards = {"c": state("b")}, [Shard("b", last="2"), Shard("c", "b")]
    for at in (100.0, 50.0 + 2 * 86_400.0 - 1.0):
        with pytest.raises(GapFound, match="which may have changes since the export") as found:
            Discovery(needed_since=50.0).news(known, listing(*shards, at=at))
        assert found.value.of_target, "they may be older than what is stored of other shards"
    assert Discovery(needed_since=50.0).news(known, listing(*shards, at=50.0 + 2 * 86_400.0)).shards["b"].ended


def test_an_old_shard_mistaken_for_a_new_one_is_a_gap_once_that_is_discovered() -> None:
    discovery, known = Discovery(), {"c": state("b")}
    taken = discovery.news(known, listing(Shard("a"), Shard("c", "b"))).shards
    assert taken["a"].whole
    with pytest.raises(GapFound, match="an old shard was mistaken for a new one") as found:
        discovery.news({**known, **taken}, listing(Shard("a", last="1"), Shard("b", "a", last="2"), Shard("c", "b")))
    assert found.value.of_target, "documents show changes of long before, which no export has"


def test_two_shards_read_in_parallel_that_turn_out_to_be_related_are_a_gap() -> None:
    whole_line = listing(Shard("a", last="1"), Shard("b", "a", last="2"), Shard("c", "b"))
    Discovery().news({"a": state(ended=True), "c": state("b")}, whole_line)  # a was closed when the epoch began
    with pytest.raises(GapFound, match="an old shard was mistaken for a new one"):
        Discovery().news({"a": state(), "c": state("b")}, whole_line)


def test_a_sibling_that_is_listed_late_is_read() -> None:
    shards = [Shard("a", last="1"), Shard("b", "a"), Shard("c", "a")]
    news = Discovery().news({"a": state(ended=True), "b": state("a")}, listing(*shards))
    assert {id: s.ended for id, s in news.shards.items()} == {"c": False}


def lists(discovery: Discovery, known: dict[str, ShardState], *shards: Shard, times: int, at: float = 100.0) -> News:
    for _ in range(times):
        news = discovery.news(known, listing(*shards, at=at))
    return news


DAY = 23.5 * HOUR  # after which what a shard has to be read may be trimmed


def test_an_unfinished_shard_is_a_gap_when_the_third_listing_in_a_row_does_not_show_it() -> None:
    discovery, known = Discovery(), {"a": state(), "b": state()}
    lists(discovery, known, Shard("b"), times=2, at=DAY)
    with pytest.raises(GapFound, match="no longer listed, and it was not read to its end") as found:
        discovery.news(known, listing(Shard("b"), at=DAY))
    assert found.value.shard == "a"


@pytest.mark.parametrize(
    ("young", "at"),
    [
        (state(), DAY - 1.0),
        (state(since=10.0), DAY + 9.0),
        (replace(state(), created=10.0), DAY + 9.0),
        (replace(state(), through=DAY - 20 * HOUR + 1.0), DAY),
    ],
    ids=["since the epoch", "since it was listed", "since its last record", "since it was read"],
)
def test_an_unfinished_shard_with_nothing_old_to_read_is_no_gap_and_at_no_end_whatever_listings_omit(
    young: ShardState, at: float
) -> None:
    """Its reader decides: a child may have none yet, and that of a target that is down reads nothing."""
    discovery, known = Discovery(), {"a": young, "b": state(since=at)}
    assert lists(discovery, known, Shard("b"), times=9, at=at).finished == set()
    with pytest.raises(GapFound, match="not read to its end"):
        discovery.news(known, listing(Shard("b"), at=at + 1.0))


def test_an_ended_shard_that_leaves_the_listings_before_its_children_were_seen_is_a_gap_after_a_day() -> None:
    """For 23.5 hours nothing after it can have been trimmed: any children would be listed."""
    discovery, known = Discovery(), {"a": state(ended=True), "z": state("y")}
    lists(discovery, known, Shard("z", "y"), times=2, at=23.5 * HOUR)
    with pytest.raises(GapFound, match="no longer listed, and its children were never listed") as found:
        discovery.news(known, listing(Shard("z", "y"), at=23.5 * HOUR))
    assert found.value.shard == "a"
    discovery = Discovery()
    assert lists(discovery, known, Shard("z", "y"), times=2, at=23.4 * HOUR).finished == set()
    assert lists(discovery, known, Shard("z", "y"), times=1, at=23.4 * HOUR).finished == {"a"}


def test_the_children_of_a_recently_ended_shard_are_waited_for_while_it_is_listed() -> None:
    known = {"a": replace(state(ended=True), through=1000.0)}
    assert lists(Discovery(), known, Shard("a", last="9"), times=50, at=1000.0 + 899).finished == set()


def test_a_shard_that_is_listed_without_a_child_a_quarter_of_an_hour_after_its_end_has_none() -> None:
    known = {"a": replace(state(ended=True), through=1000.0)}
    assert lists(Discovery(), known, Shard("a", last="9"), times=1, at=1000.0 + 900).finished == {"a"}


def test_a_shard_closed_when_the_epoch_began_has_no_children_if_ten_listings_in_a_row_show_none() -> None:
    """It closed long before, or its child would be there within seconds."""
    discovery, known = Discovery(), {"a": state(ended=True), "b": state()}
    shown = (Shard("a", last="9"), Shard("b"))
    assert lists(discovery, known, *shown, times=9).finished == set()
    assert lists(discovery, known, Shard("a"), Shard("b"), times=1).finished == set(), "from before it closed"
    assert lists(discovery, known, *shown, times=9).finished == set()
    assert lists(discovery, known, *shown, times=1).finished == {"a"}


def test_a_contradictory_listing_proves_nothing_about_childless_shards() -> None:
    discovery, known = Discovery(), {"a": state(ended=True), "b": state()}
    lists(discovery, known, Shard("a", last="9"), Shard("b"), Shard("z", "y"), times=4, at=2000.0)
    assert lists(discovery, known, Shard("a", last="9"), times=2, at=2000.0).finished == set()


def test_a_childless_shard_does_not_prevent_listings_from_proving_later_shards_young() -> None:
    discovery = Discovery()
    known = {"a": replace(state(ended=True), leaf=True), "b": state(since=7.0)}
    discovery.news(known, listing(Shard("a", last="9"), Shard("b"), at=50.0))
    assert discovery.listed == 50.0
    lists(discovery, known, Shard("b"), times=5)


def test_a_listing_that_omits_a_child_beside_its_sibling_proves_nothing_of_its_age() -> None:
    """Both began when their parent ended."""
    parent, first, second = Shard("p", last="2"), Shard("a", "p"), Shard("b", "p")
    discovery, known = Discovery(begun=1.0), {"p": state(ended=True, since=5.0)}
    together = discovery.news(known, listing(parent, first, second, at=40.0))
    assert {id: s.since for id, s in together.shards.items()} == {"a": 5.0, "b": 5.0}
    known["a"] = together.shards["a"]
    discovery.news(known, listing(parent, first, at=50.0))
    assert discovery.listed == 50.0
    assert discovery.news(known, listing(parent, first, second, at=DAY)).shards["b"].since == 5.0


def test_an_epochs_beginning_in_the_future_says_nothing_of_a_child_beside_its_sibling_either() -> None:
    """The clock was wrong when the epoch began."""
    known = {"p": state(ended=True, since=5.0), "a": replace(state(since=5.0), parent="p")}
    shards = Shard("p", last="2"), Shard("a", "p"), Shard("b", "p")
    assert Discovery(begun=10 * DAY).news(known, listing(*shards, at=DAY)).shards["b"].since == 5.0


def test_a_listing_that_shows_a_child_without_its_parent_proves_nothing_young() -> None:
    """Whatever else it omits may be as old as the parent."""
    discovery, known = Discovery(listed=10.0), {"q": ShardState(None, "1", whole=True, since=10.0)}
    discovery.news(known, listing(Shard("q"), Shard("x", "p"), at=50.0))
    news = discovery.news(known, listing(Shard("q", last="5"), Shard("p", "q", last="8"), Shard("x", "p"), at=51.0))
    assert {id: s.since for id, s in news.shards.items()} == {"p": 10.0, "x": 10.0}


def test_a_shard_that_neither_listings_nor_its_reader_find_has_ended_without_a_gap() -> None:
    discovery, known = Discovery(), {"a": state(), "b": state()}
    discovery.not_found("a")
    assert lists(discovery, known, Shard("b"), times=2).finished == set()
    assert lists(discovery, known, Shard("b"), times=1).finished == {"a"}


def test_a_shard_that_its_reader_finds_again_but_listings_do_not_is_a_gap() -> None:
    discovery, known = Discovery(), {"a": state(), "b": state()}
    discovery.not_found("a")
    discovery.read_from("a")
    lists(discovery, known, Shard("b"), times=2, at=DAY)
    with pytest.raises(GapFound):
        discovery.news(known, listing(Shard("b"), at=DAY))


def test_a_page_of_a_shard_overrides_the_listings_before_it_but_not_those_after() -> None:
    discovery, known = Discovery(), {"a": state()}
    for _ in range(9):
        lists(discovery, known, times=2, at=DAY)
        discovery.read_from("a")
    lists(discovery, known, times=2, at=DAY)
    with pytest.raises(GapFound):
        discovery.news(known, listing(at=DAY))


def test_one_listing_that_shows_the_shard_again_restarts_the_count() -> None:
    discovery, known = Discovery(), {"a": state()}
    for _ in range(9):
        lists(discovery, known, times=2, at=DAY)
        lists(discovery, known, Shard("a"), times=1, at=DAY)
    lists(discovery, known, times=2, at=DAY)
    with pytest.raises(GapFound):
        discovery.news(known, listing(at=DAY))


def test_a_shard_whose_parent_five_listings_do_not_show_is_a_gap_not_a_root() -> None:
    discovery, known = Discovery(), {"a": state()}
    assert lists(discovery, known, Shard("a"), Shard("z", "y"), times=4).shards == {}
    with pytest.raises(GapFound, match="parent is missing from 5 listings") as found:
        discovery.news(known, listing(Shard("a"), Shard("z", "y")))
    assert found.value.shard == "z"
    assert found.value.of_target, "it is not known since when its parent's records are lost"


@pytest.mark.parametrize(("listed", "since"), [(None, 20.0), (50.0, 50.0)])
def test_a_missing_parents_records_are_lost_since_the_last_full_listing_or_the_epochs_beginning(
    listed: float | None, since: float
) -> None:
    discovery, known = Discovery(listed=listed, begun=20.0), {"a": state()}
    with pytest.raises(GapFound, match="parent is missing from 5 listings") as found:
        lists(discovery, known, Shard("a"), Shard("z", "y"), times=5, at=DAY + 100.0)
    assert (found.value.since, found.value.of_target) == (since, False)


def test_a_parent_that_cannot_have_been_trimmed_yet_is_waited_for_five_minutes_whatever_listings_omit() -> None:
    """All of its records are younger than the last listing, which lacked it: later listings will show it."""
    shards = Shard("a"), Shard("z", "y")
    discovery, known = Discovery(listed=50.0), {"a": state()}
    assert lists(discovery, known, *shards, times=9, at=100.0).shards == {}
    assert lists(discovery, known, *shards, times=9, at=399.0).shards == {}
    with pytest.raises(GapFound, match="parent is missing from 19 listings"):
        discovery.news(known, listing(*shards, at=400.0))
    discovery = Discovery(listed=50.0)
    lists(discovery, known, *shards, times=1, at=100.0)
    assert lists(discovery, known, *shards, times=8, at=900.0).shards == {}, "nine listings, between which it slept"
    discovery = Discovery(listed=50.0)
    lists(discovery, known, *shards, times=1, at=100.0)
    lists(discovery, known, Shard("a"), times=1, at=200.0)
    assert lists(discovery, known, *shards, times=9, at=400.0).shards == {}, "since it was missing first"
    discovery = Discovery(listed=50.0)
    with pytest.raises(GapFound, match="parent is missing from 5 listings"):
        lists(discovery, known, *shards, times=5, at=50.0 + DAY)


def test_only_the_shard_next_to_the_missing_one_is_a_gap_and_only_while_its_own_parent_is_missing() -> None:
    discovery, known = Discovery(), {"a": state()}
    descendants = Shard("z", "y"), Shard("q", "z"), Shard("b", "q")
    lists(discovery, known, Shard("a"), *descendants, times=4)
    with pytest.raises(GapFound) as found:
        discovery.news(known, listing(Shard("a"), *descendants))
    assert found.value.shard == "z"
    discovery = Discovery()
    lists(discovery, known, Shard("a"), Shard("q", "z"), times=4)
    late = lists(discovery, known, Shard("a"), Shard("z", "y"), Shard("q", "z"), times=4)
    assert late.shards == {}, "z, whose parent is missing from four listings, has come"
    assert lists(discovery, known, Shard("a"), Shard("q", "z"), times=4).shards == {}, "it was not missing before"
    with pytest.raises(GapFound, match="parent is missing from 5 listings"):
        discovery.news(known, listing(Shard("a"), Shard("q", "z")))


def test_a_lookup_of_one_shards_children_proves_nothing_about_other_shards() -> None:
    discovery, known = Discovery(), {"a": state(ended=True, since=DAY), "b": state()}
    lists(discovery, known, Shard("a", last="1"), times=2, at=DAY)  # b is missing twice
    for _ in range(9):
        asked = discovery.news(known, listing(Shard("c", "a"), complete=False, at=DAY + 100.0))
        assert list(asked.shards) == ["c"]
    assert discovery.listed is None
    with pytest.raises(GapFound) as found:
        discovery.news(known, listing(Shard("a", last="1"), at=DAY))
    assert found.value.shard == "b"


def test_closed_shards_are_remembered_so_that_their_empty_pages_do_not_delay_reading() -> None:
    discovery = Discovery()
    discovery.news({"a": state()}, listing(Shard("a", last="5"), Shard("b", "a")))
    assert discovery.closed == {"a"}


def test_one_listing_that_shows_the_parent_restarts_the_wait_for_it() -> None:
    discovery, known = Discovery(), {"a": state()}
    for _ in range(3):
        lists(discovery, known, Shard("a"), Shard("z", "y"), times=4)
        lists(discovery, known, Shard("a"), times=1)


def test_an_old_shard_mistaken_for_a_new_one_is_a_gap_also_behind_known_shards() -> None:
    known = {"a": replace(state(), whole=True), "b": state("a", ended=True), "c": state("b")}
    with pytest.raises(GapFound, match="an old shard was mistaken for a new one"):
        Discovery().news(known, listing(Shard("a", last="1"), Shard("b", "a", last="2"), Shard("c", "b")))


def test_the_parent_of_a_young_shard_is_not_mistaken_for_an_old_one() -> None:
    young = {"a": replace(state("r"), whole=True), "b": replace(state("a"), whole=True)}
    known = {"r": state(ended=True), **young}
    assert (
        Discovery().news(known, listing(Shard("r", last="1"), Shard("a", "r", last="2"), Shard("b", "a"))).shards == {}
    )


def test_a_shard_whose_end_lies_in_the_future_is_waited_for_no_longer_than_others() -> None:
    """A clock was set back."""
    discovery, known = Discovery(), {"a": replace(state(ended=True), through=5000.0)}
    assert lists(discovery, known, Shard("a", last="9"), times=1, at=1000.0).finished == set()
    assert lists(discovery, known, Shard("a", last="9"), times=1, at=1900.0).finished == {"a"}


def test_a_shard_still_being_read_counts_as_childless_from_the_first_listing_that_shows_it_closed() -> None:
    shown, ended = Shard("a", last="9"), replace(state(ended=True), through=1000.0)
    discovery = Discovery()
    lists(discovery, {"a": state()}, shown, times=10, at=1000.0)
    assert lists(discovery, {"a": ended}, shown, times=1, at=1001.0).finished == set()
    discovery = Discovery()
    lists(discovery, {"a": state()}, shown, times=1, at=1000.0)
    lists(discovery, {"a": state()}, shown, times=1, at=1900.0)
    assert lists(discovery, {"a": replace(ended, through=1899.0)}, shown, times=1, at=1901.0).finished == {"a"}


def test_a_shard_without_children_may_leave_the_listings_and_proves_later_ones_young() -> None:
    discovery, known = Discovery(), {"a": replace(state(ended=True), through=1000.0), "b": state()}
    assert lists(discovery, known, Shard("a", last="9"), Shard("b"), times=1, at=1900.0).finished == {"a"}
    assert discovery.listed == 1900.0
    assert lists(discovery, known, Shard("b"), times=3, at=30 * HOUR).finished == {"a"}


def test_nothing_is_kept_of_a_shard_that_is_forgotten() -> None:
    discovery, known = Discovery(), {"a": replace(state(ended=True), through=1000.0), "b": state()}
    lists(discovery, known, Shard("a", last="9"), Shard("b"), times=1, at=1900.0)
    assert (discovery.closed, discovery.leaves) == ({"a"}, {"a"})
    lists(discovery, {**known, "a": replace(known["a"], leaf=True)}, Shard("b"), times=1, at=1000 * HOUR)
    assert (discovery.closed, discovery.leaves) == (set(), set())
