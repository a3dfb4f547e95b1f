"""The history that a pipeline hands over beside the compacted writes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from replicator.batch import Past
from replicator.change import Page, Record, ScanPage
from replicator.pipeline.advance import scanned, streamed
from replicator.pipeline.past import known_through
from replicator.state import Gap, SegmentState, ShardState
from replicator.version import version
from tests.pipeline.test_compaction import EPOCH, FAN, FILTER, PLAIN, A, B, _image, at, record

KEEPING = replace(PLAIN, histories=frozenset(PLAIN.tables))
FILTERING = replace(FILTER, histories=frozenset(FILTER.tables))
FANNING = replace(FAN, histories=frozenset({"vowels"}))
SHARD = ShardState(None, "1", whole=False, since=0.0)


def of(mapping: Any, *records: Record, **refused: Any) -> list[Past]:
    _, compacted = streamed(SHARD, [Page("s", records)], mapping, at(**refused), ignore_expired=False)
    return list(compacted.part("shard:s").history)


def short(entries: Sequence[Past]) -> list[tuple[Any, ...]]:
    """(id, ordinal, operation, old, new)"""
    return [(e.id, e.version - version(EPOCH, 0), e.operation, _v(e.old), _v(e.new)) for e in entries]


def _v(body: Any) -> Any:
    return None if body is None else dict(body).get("v", dict(body).get("to"))


def test_all_changes_of_a_batch_are_handed_over_in_order() -> None:
    found = of(KEEPING, record(A, 1, 1), record(B, 2, 5), record(A, 3, 2, 1), record(A, 4, None, 2), record(A, 5, 3))
    assert short(found) == [
        (A, 1, "insert", None, 1),
        (A, 3, "modify", 1, 2),
        (A, 4, "remove", 2, None),
        (A, 5, "insert", None, 3),
        (B, 2, "insert", None, 5),
    ]
    assert [(e.sequence, e.time) for e in found][:2] == [("1", 1.0), ("3", 1.0)]


def test_without_a_history_nothing_is_handed_over() -> None:
    assert of(PLAIN, record(A, 1, 1)) == []
    _, compacted = scanned(SegmentState(1), [ScanPage(0, [(A, _image(1))])], PLAIN, at())
    assert compacted.history == []


def test_it_follows_the_hook_and_says_where_that_fails() -> None:
    found = of(FILTERING, record(A, 1, 1), record(A, 2, 2, 1), record(A, 3, 13, 2), record(A, 4, 4, 13))
    assert short(found) == [
        (A, 2, "insert", None, 2),
        (A, 3, "modify", 2, None),
        (A, 4, "modify", None, 4),
    ]
    assert [e.problem is None for e in found] == [True, False, True]


def test_only_documents_of_tables_that_keep_a_history_are_handed_over() -> None:
    found = of(FANNING, record(A, 1, "ab"), record(A, 2, "eb", "ab"))
    assert short(found) == [
        (('["a"]', "a"), 1, "insert", None, "ab"),
        (('["a"]', "a"), 2, "remove", "ab", None),
        (('["a"]', "e"), 2, "insert", None, "eb"),
    ]


def test_a_change_that_the_target_refuses_is_kept_with_the_reason() -> None:
    refused = {(A, version(EPOCH, 2)): "too long"}
    found = of(KEEPING, record(A, 1, 1), record(A, 2, 2, 1), refused=refused)
    assert [(e.problem, _v(e.new)) for e in found] == [(None, 1), ("too long", None)]


def test_a_scanned_item_has_the_time_at_which_its_epoch_began() -> None:
    around = replace(at(), began=7.0)
    _, compacted = scanned(SegmentState(1), [ScanPage(0, [(A, _image(1)), (B, None)])], KEEPING, around)
    assert short(compacted.history) == [(A, 0, "scan", None, 1), (B, 0, "scan", None, None)]
    assert {(e.sequence, e.time) for e in compacted.history} == {("", 7.0)}


@given(st.lists(st.tuples(st.sampled_from([A, B]), st.sampled_from([None, 1, 2, 3])), max_size=20), st.integers(1, 20))
def test_however_changes_are_cut_into_batches_the_history_is_the_same(changes: list[Any], size: int) -> None:
    state: dict[Any, Any] = {}
    records = []
    for n, (key, value) in enumerate(changes, start=1):
        records.append(record(key, n, value, state.get(key)))
        state[key] = value
    whole = sorted(short(of(KEEPING, *records)))
    shard, parts = SHARD, []
    for start in range(0, len(records), size):
        page = Page("s", records[start : start + size])
        shard, compacted = streamed(shard, [page], KEEPING, at(), ignore_expired=False)
        parts += short(compacted.history)
    assert sorted(parts) == whole


def test_what_is_known_ends_where_the_shard_that_is_furthest_behind_is() -> None:
    shards = {
        "ended": replace(SHARD, ended=True, since=1.0, created=2.0),
        "open": replace(SHARD, since=5.0, through=9.0),
        "behind": replace(SHARD, since=6.0),
    }
    assert known_through(shards, (), [], None) == 6.0
    assert known_through(shards, {"ended"}, [], None) == 2.0
    assert known_through({}, (), [], None) is None


def test_behind_a_gap_that_the_stream_has_passed_nothing_is_known() -> None:
    stopped = replace(SHARD, sequence="7", since=6.0)
    gap = Gap("trimmed", 9.0, 0, "s", "7")
    assert known_through({"s": stopped}, (), [gap], None) == 6.0
    assert known_through({"s": replace(stopped, sequence="9")}, (), [gap], None) is None
