"""The stages of an epoch. Pure functions.

scanning    segments and stream are read; deletes leave tombstones, so that a scan cannot restore a deleted item
sweeping    after a resync: documents that neither scan nor stream confirmed in this epoch are removed
purging     tombstones are removed: no older version can arrive any more
following   the stream alone is read
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from replicator.change import Shard
from replicator.key import Key
from replicator.pipeline.lineage import ancestors
from replicator.state import PipelineState, SegmentState, ShardState

PORTION = 500  # keys in one segment's entry, which is saved with each of its pages

SCANNING, SWEEPING, PURGING, FOLLOWING = "scanning", "sweeping", "purging", "following"


def shards_since(listed: Mapping[str, Shard], since: float) -> dict[str, ShardState]:
    """The initial state of every listed shard for items of an earlier time: closed ones may have changes since then."""
    return {s.id: ShardState(parent=s.parent, first=s.first, whole=False, since=since) for s in listed.values()}


def first_shards(listed: Mapping[str, Shard], now: float) -> dict[str, ShardState]:
    """The initial state of every listed shard: open shards are read, closed ones are not needed.

    Changes in a shard that closed before the scan are included in the scanned items. A closed shard proves that its
    ancestors are closed too, even if the listing shows them as open. An open shard with an open parent waits for it.
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
    """The state of a shard that appeared during the epoch: all its records are needed.

    None of them is older than its parent's last record, or than the last complete listing without the shard.
    """
    parent = known.get(shard.parent) if shard.parent is not None else None
    bounds = [listed_before or 0.0]
    if parent is not None:
        bounds += [parent.since, parent.created or 0.0]
    return ShardState(shard.parent, shard.first, whole=True, since=max(bounds))


def start(state: ShardState, known: Mapping[str, ShardState]) -> ShardState:
    """A shard's state when reading starts: ordinals continue from its parent's last one."""
    parent = known.get(state.parent) if state.parent is not None else None
    if parent is None or state.sequence is not None or state.anchor is not None:
        return state
    since = max(state.since, parent.since, parent.created or 0.0)
    return replace(state, ordinal=parent.ordinal, since=since)


def segments(count: int) -> dict[str, SegmentState]:
    return {str(n): SegmentState(total=count) for n in range(count)}


def chosen_segments(keys: Sequence[Key], where: Sequence[str], count: int) -> dict[str, SegmentState]:
    """The segments of a partial resync: portions of the keys, and for each condition a scan in ``count`` segments."""
    portions = [SegmentState(total=1, keys=tuple(keys[at : at + PORTION])) for at in range(0, len(keys), PORTION)]
    scans = [SegmentState(total=count, where=condition, number=n) for condition in where for n in range(count)]
    return {str(n): segment for n, segment in enumerate([*portions, *scans])}


def partial(pipeline: PipelineState, now: float) -> PipelineState:
    """The epoch in which chosen items are rescanned.

    Their scan is older than every record that is not stored yet, and newer than everything that is: it replaces
    whatever the target has of these items, and nothing that the stream brings from now on. All other items stay as the
    last complete epoch copied them, so the time of its export still matters.
    """
    return replace(
        pipeline,
        epoch=pipeline.epoch + 1,
        full=pipeline.complete,
        opening=True,
        stage=SCANNING,
        scan_started=now,
        scan_ended=None,
        repair=None,
    )


def next_stage(pipeline: PipelineState, segments: Iterable[SegmentState], now: float) -> PipelineState | None:
    """The state after the scan; None while it is not fully stored, or in a stage that cleanup ends."""
    if pipeline.stage != SCANNING or not all(s.ended for s in segments):
        return None
    if pipeline.repair is not None and not pipeline.repair.done:
        return None  # another export follows, or documents to look up
    sweeps = pipeline.resync and not pipeline.partial  # what a partial resync does not read is still valid
    return replace(pipeline, stage=SWEEPING if sweeps else PURGING, scan_ended=now)


def after_cleanup(pipeline: PipelineState) -> PipelineState:
    """The state after the sweep or the purge."""
    return replace(pipeline, stage=PURGING if pipeline.stage == SWEEPING else FOLLOWING)


def remembers_deletes(pipeline: PipelineState) -> bool:
    """Whether deletes must leave tombstones, because an older scanned item may still arrive."""
    return pipeline.stage in (SCANNING, SWEEPING)
