"""How a run begins: afresh, where the last one stopped, over again, or not at all. A pure decision."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from replicator import backfill
from replicator.checkpoints import Gap, PipelineState, SegmentState, ShardState
from replicator.errors import ConfigError, GapFound
from replicator.position import FIRST_EPOCH
from replicator.source import SourceTable


@dataclass(frozen=True, slots=True)
class Found:
    """What a run finds when it starts. ``target_epoch``: see ``Target.epoch``. ``hook``: fingerprint, "" without."""

    state: PipelineState | None
    shards: Mapping[str, ShardState]
    segments: Mapping[str, SegmentState]
    gaps: Mapping[str, Gap]
    table: SourceTable
    target_epoch: int | None
    hook: str


def check_source(table: SourceTable, *, own_ids: bool) -> None:
    """ConfigError if the table has no stream, or one that cannot be replicated."""
    enable = (
        f"aws dynamodb update-table --table-name {table.name} "
        "--stream-specification StreamEnabled=true,StreamViewType=NEW_AND_OLD_IMAGES"
    )
    if table.stream_arn is None or not table.streaming:
        raise ConfigError(f"table {table.name} has no enabled stream, so changes cannot be read; enable it: {enable}")
    if table.view == "OLD_IMAGE":
        raise ConfigError(
            f"the stream of {table.name} has view type OLD_IMAGE: it never shows what an item became. "
            f"Disable the stream and enable it again: {enable}"
        )
    if own_ids and table.view != "NEW_AND_OLD_IMAGES":
        raise ConfigError(
            f"the stream of {table.name} has view type {table.view}, but the hook gives documents ids of their own: "
            "without old images nobody knows which documents an item leaves behind. "
            f"Disable the stream and enable it again: {enable}"
        )


def gap(found: Found) -> GapFound | None:
    """The reason why going on would lose changes, if there is one."""
    state = found.state
    if state is None:
        if found.target_epoch:
            return GapFound(
                f"the target's table was written by epoch {found.target_epoch} of a pipeline whose checkpoints are lost"
            )
        return None
    for g in found.gaps.values():
        if g.repaired is None and g.epoch >= state.epoch:
            return GapFound(g.reason, g.shard, g.sequence)
    if state.table_id != found.table.id:
        return GapFound(f"table {found.table.name} was deleted and created again since the last run")
    if state.stream_arn != found.table.stream_arn:
        return GapFound(
            f"the stream was replaced: the last run read {state.stream_arn}, "
            f"the table now has {found.table.stream_arn or 'none'}"
        )
    return _target_gap(found, state)


def _target_gap(found: Found, state: PipelineState) -> GapFound | None:
    if found.target_epoch is None and _has_stored(found):
        return GapFound("a table of the target is gone since the last run")
    if found.target_epoch is not None and found.target_epoch > state.epoch:
        return GapFound(
            f"the checkpoints are older than the target: they know epoch {state.epoch}, "
            f"the target's table was written by epoch {found.target_epoch}"
        )
    return None


def _has_stored(found: Found) -> bool:
    shards = any(s.sequence is not None for s in found.shards.values())
    segments = any(s.cursor is not None or s.ended for s in found.segments.values())
    following = found.state is not None and found.state.stage == backfill.FOLLOWING
    return shards or segments or following


def check_hook(found: Found) -> None:
    """ConfigError if the hook is not the one that the stored documents come from."""
    state = found.state
    if state is not None and state.hook != found.hook:
        was, now = "changed" if state.hook and found.hook else "was removed" if state.hook else "was added", found.hook
        raise ConfigError(
            f"transform: the hook {was} since the last run. Either go on and leave old documents as they are "
            "(run --accept-hook-change), or make all documents anew (resync)"
            + ("" if now else ". To keep the old documents' shape, put transform: back")
        )


def fresh(found: Found, *, enabled: bool, now: float) -> PipelineState:
    """The state of the pipeline's first epoch, or of the one after the last."""
    before = max(found.state.epoch if found.state else 0, found.target_epoch or 0)
    again = before >= FIRST_EPOCH
    assert found.table.stream_arn is not None
    return PipelineState(
        epoch=max(FIRST_EPOCH, before + 1),
        stream_arn=found.table.stream_arn,
        table_arn=found.table.arn,
        table_id=found.table.id,
        stage=backfill.SCANNING if enabled or again else backfill.FOLLOWING,
        hook=found.hook,
        resync=again,
        started=now,
        scan_started=now if enabled or again else None,
        items=found.table.items,
    )


def accepted(state: PipelineState, hook: str) -> PipelineState:
    """The state after a person accepted a changed hook."""
    return replace(state, hook=hook)
