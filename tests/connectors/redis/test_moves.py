"""Slots that moved: which of them may lack documents although their counts are there."""

from __future__ import annotations

from dataclasses import replace

from connectors.redis.cluster import SLOTS
from connectors.redis.moves import Moves, Standing

BEFORE = Standing(["a"] * SLOTS, {"a": "a1", "b": "b1"}, {"a'": "a", "b'": "b"})


def having(slot: int, owner: str, **changes: object) -> Standing:
    owners = list(BEFORE.owners)
    owners[slot] = owner
    return replace(BEFORE, owners=owners, **changes)  # type: ignore[arg-type]


def moving(slot: int, *nodes: str, **changes: object) -> Standing:
    return replace(BEFORE, moving={slot: frozenset(nodes)}, **changes)  # type: ignore[arg-type]


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
