"""Slots that moved: which of them may lack documents although their counts are there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from connectors.redis.cluster import SLOTS
from connectors.redis.moves import Moves, Standing
from connectors.redis.routing import has_continued

BEFORE = Standing(
    ["a"] * SLOTS, {"a": "a1", "b": "b1"}, {"a'": "a", "b'": "b"}, histories={"a": "of a", "b": "of b"}, at=1000
)


def having(slot: int, owner: str, **changes: Any) -> Standing:
    owners = list(BEFORE.owners)
    owners[slot] = owner
    return replace(BEFORE, owners=owners, **changes)


def moving(slot: int, *nodes: str, **changes: Any) -> Standing:
    return replace(BEFORE, moving={slot: frozenset(nodes)}, **changes)


def doubtful(*standings: Standing) -> set[int]:
    """After the run has looked at each."""
    moves = Moves.begin(BEFORE)
    for one in standings:
        moves.counted(moves.look(one), one)
    return moves.doubtful


def test_a_slot_that_moved_between_primaries_that_stayed_is_counted_and_lacks_nothing() -> None:
    moves, after = Moves.begin(BEFORE), having(7, "b")
    assert moves.look(BEFORE) == []
    assert moves.look(after) == [7]
    assert moves.look(after) == [7], "until it is counted"
    moves.counted([7], after)
    assert moves.look(after) == []
    assert not moves.doubtful


def test_a_replica_that_takes_over_has_the_counts_that_its_primary_made() -> None:
    after = replace(BEFORE, owners=["a'"] * SLOTS, runs={"a'": "r1", "b": "b1"}, replicas={"a": "a'", "b'": "b"})
    moves = Moves.begin(BEFORE)
    assert moves.look(after) == []
    assert not moves.doubtful


def test_a_slot_lacks_documents_if_the_node_that_received_it_was_replaced_or_restarted() -> None:
    runs = {"a": "a1", "b'": "r1"}
    assert doubtful(having(7, "b'", runs=runs, promoted=frozenset({"b'"}))) == {7}
    assert doubtful(having(7, "b", runs={"a": "a1", "b": "b2"})) == {7}


def test_a_slot_lacks_documents_if_the_node_that_gave_it_was_replaced_or_restarted() -> None:
    """The count had gone ahead; what the node lost was not replicated."""
    assert doubtful(having(7, "b", runs={"a'": "r1", "b": "b1"})) == {7}
    assert doubtful(having(7, "b", runs={"a": "a2", "b": "b1"})) == {7}


def test_a_node_that_gave_all_its_slots_and_left_took_nothing_along() -> None:
    assert doubtful(replace(BEFORE, owners=["b"] * SLOTS, runs={"b": "b1"}, replicas={"b'": "b"})) == set()


def test_a_node_that_joined_and_received_a_slot_lacks_nothing_unless_it_was_a_replica() -> None:
    runs = {"a": "a1", "b": "b1", "c": "c1"}
    assert doubtful(having(7, "c", runs=runs)) == set()
    assert doubtful(having(7, "c", runs=runs, promoted=frozenset({"c"}))) == {7}


def test_a_slot_lacks_documents_if_a_node_was_replaced_while_it_was_moving_also_if_it_comes_back() -> None:
    opened = moving(7, "a", "b")
    for replaced in ({"a": "a1", "b'": "r1"}, {"a'": "r1", "b": "b1"}, {"a": "a1", "b": "b2"}):
        assert doubtful(opened, moving(7, "a", "b", runs=replaced)) == {7}
        assert doubtful(opened, replace(BEFORE, runs=replaced)) == {7}
    assert doubtful(opened, opened, BEFORE) == set()
    assert doubtful(opened, having(7, "b")) == set()


def test_a_node_whose_successor_has_everything_is_not_replaced() -> None:
    runs, opened = {"a'": "r1", "b'": "r2"}, moving(7, "a", "b")
    both: dict[str, Any] = {"runs": runs, "continued": {"a": "a'", "b": "b'"}, "promoted": frozenset(runs)}
    assert doubtful(having(7, "b'", **both)) == set()
    assert doubtful(opened, having(7, "b'", **both)) == set()
    assert doubtful(opened, moving(7, "a'", "b'", **both)) == set()
    gone = replace(BEFORE, runs={"a'": "r1"}, replicas={"b'": "b"})
    assert doubtful(opened, moving(7, "a'", "b'", **both), replace(gone, runs={"a'": "r3", "b'": "r2"})) == {7}


def test_a_replica_that_joined_since_and_took_over_has_the_counts_that_its_primary_made() -> None:
    took_over: dict[str, Any] = {"promoted": frozenset({"c"}), "before": {"c": "of a"}}
    assert doubtful(replace(BEFORE, owners=["c"] * SLOTS, runs={"c": "c1", "b": "b1"}, **took_over)) == set()
    assert doubtful(having(7, "c", runs={"c": "c1", "a": "a1", "b": "b1"}, **took_over)) == {7}, "it was one before"


def test_a_node_that_took_over_from_another_one_than_had_the_slot_may_lack_documents() -> None:
    """The slot moved there first, and the replica, or the former primary itself, followed it."""
    followed: dict[str, Any] = {"promoted": frozenset({"a'"}), "before": {"a'": "of b"}}
    every = set(range(SLOTS))
    assert doubtful(having(7, "a'", runs={"a'": "r1", "a": "a1"}, **followed)) == {7}
    assert doubtful(replace(BEFORE, owners=["a'"] * SLOTS, runs={"a'": "r1"}, **followed)) == every
    assert doubtful(replace(BEFORE, runs={"a": "a1"}, promoted=frozenset({"a"}), before={"a": "of b"})) == every


def test_a_node_that_was_replaced_for_a_time_is_replaced_also_if_its_process_lives_on() -> None:
    back = replace(BEFORE, before={"a": "of a'"}, promoted=frozenset({"a"}))
    assert doubtful(back) == set(), "its slots did not move, so their counts tell"
    assert doubtful(moving(7, "a", "b"), replace(having(7, "b"), before={"a": "of a'"})) == {7}


@pytest.mark.parametrize(("born", "lacks"), [(900.0, set()), (1011.0, {7})])
def test_a_node_that_could_not_be_asked_is_another_one_if_it_restarted_since(born: float, lacks: set[int]) -> None:
    opened = moving(7, "a", "c", at=1000)
    known: dict[str, Any] = {"runs": {"a": "a1", "b": "b1", "c": "c1"}, "born": {"c": born}, "at": 1020}
    assert doubtful(opened, having(7, "c", **known)) == lacks


INFO = {"role": "slave", "master_replid": "new", "master_replid2": "old", "master_sync_in_progress": "0"}


@pytest.mark.parametrize(
    ("changed", "has_everything"),
    [
        ({}, True),
        ({"role": "master", "master_replid": "old", "master_replid2": "0" * 40}, None),
        ({"master_replid": "old", "master_replid2": "0" * 40}, None),
        ({"master_replid": "old", "master_sync_in_progress": "1"}, False),
        ({"master_replid2": "0" * 40}, False),
        ({"master_replid": "of a third one"}, False),
    ],
)
def test_a_former_primary_that_could_keep_what_it_had_shows_that_its_successor_has_it(
    changed: Mapping[str, str], has_everything: bool | None
) -> None:
    assert has_continued({**INFO, **changed}, "old", "new") is has_everything
