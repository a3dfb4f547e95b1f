"""Which writes of a batch are sent again, and which changes count as superseded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from replicator.batch import Delete, Write
from replicator.target.acks import AckTracker, place


@dataclass(frozen=True)
class Sent:
    write: Write
    source: str = "shard:a"
    plain: Any = None


def entry(id: str, *, weight: int = 1, source: str = "shard:a", plain: Any = None) -> Sent:
    return Sent(Delete("t", (id,), 7, (id,), weight), source, plain)


def test_of_what_an_index_holds_back_only_what_has_a_weight_counts_by_source() -> None:
    known = AckTracker()
    entries = [entry("new"), entry("old"), entry("more", weight=0), entry("other", weight=3, source="shard:b")]
    assert known.superseded_by_source(entries) == {}
    known.superseded |= {place(entries[1].write), place(entries[2].write)}
    assert known.superseded_by_source(entries) == {"shard:a": 1}
    known.superseded.add(place(entries[3].write))
    assert known.superseded_by_source(entries) == {"shard:a": 1, "shard:b": 3}


@pytest.mark.parametrize("tombstones", [False, True])
def test_stored_and_superseded_writes_are_not_sent_again(tombstones: bool) -> None:
    known = AckTracker()
    stored, superseded, left = entry("stored"), entry("superseded"), entry("left")
    assert list(known.unfinished([stored, superseded, left], tombstones=tombstones)) == [stored, superseded, left]
    known.was_stored(stored, tombstones=tombstones)
    assert list(known.unfinished([stored, superseded, left], tombstones=tombstones)) == [superseded, left]
    known.superseded.add(place(superseded.write))
    assert list(known.unfinished([stored, superseded, left], tombstones=tombstones)) == [left]


def test_a_delete_that_left_no_tombstone_is_sent_again_where_one_is_needed() -> None:
    known, delete = AckTracker(), entry("a", plain=b"")
    known.was_stored(delete, tombstones=False)
    assert list(known.unfinished([delete], tombstones=False)) == []
    assert list(known.unfinished([delete], tombstones=True)) == [delete]
    known.was_stored(delete, tombstones=True)
    assert list(known.unfinished([delete], tombstones=True)) == []


def test_a_returned_batch_is_sent_again_and_its_stored_writes_are_in_doubt() -> None:
    known = AckTracker()
    stored, superseded, left, lost = entry("stored"), entry("superseded"), entry("left"), entry("lost")
    known.was_stored(stored, tombstones=False)
    known.superseded.add(place(superseded.write))
    known.lost |= {place(lost.write), place(entry("elsewhere").write)}
    known.came_back([stored, superseded, left, lost])
    assert list(known.unfinished([stored, superseded, left, lost], tombstones=False)) == [
        stored,
        superseded,
        left,
        lost,
    ]
    assert known.lost == {place(stored.write), place(lost.write)}
    known.forget([stored])
    assert (known.lost, known.stored, known.superseded) == ({place(lost.write)}, {}, set())
