"""Stages of a copy: positions first, then the scan beside the live stream, then sweep and purge. Pure decisions.

scanning    segments are read; deletes leave tombstones, so that no scanned item comes back after its delete
sweeping    after a resync: what neither scan nor stream confirmed in this epoch is removed
purging     tombstones are forgotten: nothing with a smaller version can arrive any more
following   the live stream alone
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from replicator.change import Shard
from replicator.pipeline.lineage import ancestors
from replicator.state import PipelineState, SegmentState, ShardState

SCANNING, SWEEPING, PURGING, FOLLOWING = "scanning", "sweeping", "purging", "following"


def first_shards(listed: Mapping[str, Shard], now: float) -> dict[str, ShardState]:
    """Where every listed shard stands as an epoch begins: open ones are read, closed ones hold nothing we need.

    Items changed in a shard that closed before the scan are as new in the scan. A shard listed as open whose parent is
    listed as open too waits for it, as it would later; but a closed shard proves that its ancestors had closed, however
    they are listed.
    """
    closed = {shard.id for shard in listed.values() if not shard.open}
    closed |= ancestors(closed, {shard.id: shard.parent for shard in listed.values()})
    return {
        shard.id: ShardState(
            parent=shard.parent,
            first=shard.first,
            whole=False,
            since=now,
            ended=shard.id in closed,
        )
        for shard in listed.values()
    }


def new_shard(shard: Shard, known: Mapping[str, ShardState], listed_before: float | None) -> ShardState:
    """The state of a shard that appeared after the epoch began: all its records are needed.

    Nothing in it is older than its parent's last record, or than the last complete listing that did not show it.
    """
    parent = known.get(shard.parent) if shard.parent is not None else None
    bounds = [listed_before or 0.0]
    if parent is not None:
        bounds += [parent.since, parent.created or 0.0]
    return ShardState(shard.parent, shard.first, whole=True, since=max(bounds))


def start(state: ShardState, known: Mapping[str, ShardState]) -> ShardState:
    """A shard's state as its reader opens it: ordinals go on from its parent's last."""
    parent = known.get(state.parent) if state.parent is not None else None
    if parent is None or state.sequence is not None or state.anchor is not None:
        return state
    since = max(state.since, parent.since, parent.created or 0.0)
    return replace(state, ordinal=parent.ordinal, since=since)


def segments(count: int) -> dict[str, SegmentState]:
    return {str(n): SegmentState(total=count) for n in range(count)}


def next_stage(pipeline: PipelineState, segments: Iterable[SegmentState], now: float) -> PipelineState | None:
    """The pipeline in its next stage once the scan is stored; None while it is not, or where chores decide."""
    if pipeline.stage != SCANNING or not all(s.ended for s in segments):
        return None
    return replace(pipeline, stage=SWEEPING if pipeline.resync else PURGING, scan_ended=now)


def after_cleanup(pipeline: PipelineState) -> PipelineState:
    """The pipeline when nothing is left to sweep, or to purge."""
    return replace(pipeline, stage=PURGING if pipeline.stage == SWEEPING else FOLLOWING)


def remembers_deletes(pipeline: PipelineState) -> bool:
    """Whether deletes leave tombstones: as long as a scanned item may still arrive."""
    return pipeline.stage in (SCANNING, SWEEPING)
