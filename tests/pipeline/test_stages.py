"""Stages, and the state of shards when an epoch starts."""

from __future__ import annotations

from dataclasses import replace

from replicator.change import Shard
from replicator.pipeline import stages
from replicator.pipeline.lineage import merged
from replicator.state import PipelineState, SegmentState, ShardState
from replicator.version import FIRST_EPOCH

SCANNING = PipelineState(FIRST_EPOCH, "stream", "table", "id", stages.SCANNING)


def ended(*shards: Shard) -> dict[str, bool]:
    return {id: s.ended for id, s in stages.first_shards(merged(shards), 5.0).items()}


def test_open_shards_are_read_and_closed_ones_are_not() -> None:
    assert ended(Shard("a", last="1"), Shard("b", "a")) == {"a": True, "b": False}


def test_an_open_child_waits_for_a_parent_that_is_listed_as_open() -> None:
    assert ended(Shard("a"), Shard("b", "a")) == {"a": False, "b": False}


def test_a_closed_shard_proves_that_its_ancestors_had_closed() -> None:
    assert ended(Shard("a"), Shard("b", "a"), Shard("c", "b", last="3"), Shard("d", "c")) == {
        "a": True,
        "b": True,
        "c": True,
        "d": False,
    }


def test_a_child_continues_the_count_of_its_parents_last_record() -> None:
    parent = ShardState(None, None, whole=True, since=10.0, sequence="9", ordinal=4, created=30.0, ended=True)
    child = ShardState("p", "10", whole=True, since=20.0)
    started = stages.start(child, {"p": parent, "c": child})
    assert (started.ordinal, started.since) == (4, 30.0)


def test_a_shard_that_has_an_anchor_keeps_its_own_count() -> None:
    child = ShardState("p", "10", whole=True, since=20.0, anchor="11", ordinal=2)
    assert stages.start(child, {"p": replace(child, ordinal=9)}) == child


def test_the_first_copy_has_nothing_to_sweep_and_a_resync_has() -> None:
    stored = [SegmentState(1, ended=True)]
    first = stages.next_stage(SCANNING, stored, 9.0)
    again = stages.next_stage(replace(SCANNING, resync=True), stored, 9.0)
    assert first is not None
    assert again is not None
    assert (first.stage, again.stage, again.scan_ended) == (stages.PURGING, stages.SWEEPING, 9.0)


def test_the_scan_continues_while_one_segment_is_not_stored() -> None:
    assert stages.next_stage(SCANNING, [SegmentState(2, ended=True), SegmentState(2)], 9.0) is None


def test_deletes_leave_tombstones_as_long_as_a_scanned_item_may_arrive() -> None:
    remembered = [s for s in ("scanning", "sweeping", "purging", "following") if _remembers(s)]
    assert remembered == ["scanning", "sweeping"]


def _remembers(stage: str) -> bool:
    return stages.remembers_deletes(replace(SCANNING, stage=stage))


def test_after_the_sweep_comes_the_purge_and_then_only_the_stream() -> None:
    purging = stages.after_cleanup(replace(SCANNING, stage=stages.SWEEPING))
    assert purging.stage == stages.PURGING
    assert stages.after_cleanup(purging).stage == stages.FOLLOWING
