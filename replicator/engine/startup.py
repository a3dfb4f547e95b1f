"""How a run begins: afresh, where the last one stopped, over again, or not at all. A pure decision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum

from replicator.errors import ConfigError, GapFound
from replicator.identity import (
    Change,
    Definition,
    Identity,
    Origin,
    Parts,
    changes,
    other_tables,
    recreated_tables,
    same_source,
)
from replicator.pipeline import stages
from replicator.source.table import SourceTable
from replicator.state import Gap, PipelineState, SegmentState, ShardState
from replicator.version import FIRST_EPOCH, LAST_EPOCH

ACCEPT_IDENTITY = "replicator resync --accept-identity-change"
APPLY_SCHEMA = "replicator run --apply-schema-changes"


@dataclass(frozen=True, slots=True)
class StartupState:
    """What a run finds when it starts: what is stored, and both ends as they are.

    ``epochs``: what ``Target.epoch`` says of each table. ``identities``, ``parts``: of the tables as the config names
    them now. ``hook``: fingerprint, "" without. ``additions``: the statements that make in the tables what is defined
    otherwise, None where only a resync will do. ``emptied``: tables without a document that held some when the last run
    stopped.
    """

    state: PipelineState | None
    definition: Definition
    shards: Mapping[str, ShardState]
    segments: Mapping[str, SegmentState]
    gaps: Mapping[str, Gap]
    table: SourceTable
    epochs: Mapping[str, int | None]
    identities: Mapping[str, Identity]
    parts: Mapping[str, Parts]
    hook: str
    additions: Sequence[str] | None = None
    emptied: Sequence[str] = ()

    @property
    def highest(self) -> int:
        """The latest epoch that wrote to a table of the target, 0 if none did."""
        return max((epoch for epoch in self.epochs.values() if epoch is not None), default=0)

    @property
    def changes(self) -> list[Change]:
        """In what the tables are defined otherwise than what is stored in them was."""
        return changes(self.definition.parts, self.parts)

    @property
    def bound(self) -> Definition:
        """What the pipeline is bound to from now on; to tables of the target once all of them can be told."""
        known = all(identity.known for identity in self.identities.values())
        return Definition(self.table.server, self.identities if known else {}, self.parts)

    @property
    def as_defined(self) -> Definition:
        """The same while the tables are not opened yet: defined as what they hold."""
        return replace(self.bound, parts=self.definition.parts)


@dataclass(frozen=True, slots=True)
class Allowed:
    """What a person wants of a run, or allows it, beyond resuming."""

    resync: bool = False
    hook_change: bool = False
    identity_change: bool = False
    schema_changes: bool = False
    sweep: bool = True  # what a scan does not find may be removed, though it may be an item that expired and was kept


RESUMING = Allowed()


class StartMode(Enum):
    """How a run begins. ``BEGIN``: a new epoch, which extends the tables first where that is allowed."""

    BEGIN = "begin"
    RESUME = "resume"


def start_mode(found: StartupState, allowed: Allowed) -> StartMode:
    """How a run begins. ConfigError if a person must change or allow something, GapFound if records are lost."""
    if not (allowed.resync and allowed.identity_change):
        check_identity(found)
    if allowed.resync:
        check_sweep(found, allowed)
        return StartMode.BEGIN
    if found.state is None and not found.highest:
        return StartMode.BEGIN
    if (lost := find_gap(found)) is not None:
        raise lost
    if not allowed.hook_change:
        check_hook(found)
    if not found.changes:
        return StartMode.RESUME
    if found.additions is None or not allowed.schema_changes:
        raise _redefined(found, found.additions)
    check_sweep(found, allowed)
    return StartMode.BEGIN


def check_identity(found: StartupState) -> None:
    """ConfigError if the config names another source, or another table of the target, than the pipeline is bound to."""
    state, table = found.state, found.table
    if state is None:
        return
    was = Origin(state.table_arn, state.table_id, state.stream_arn, found.definition.server)
    now = Origin(table.arn, table.id, table.stream_arn, table.server)
    if not same_source(was, now):
        raise ConfigError(
            f"source: this pipeline copies {was}, and the config leads to {now}. Nothing was changed. Put the source "
            "back, or give the copy of the other table a pipeline and a target of its own. If the target must become a "
            f"copy of the other table, which removes what it holds now: {ACCEPT_IDENTITY}"
        )
    if (others := other_tables(found.definition.tables, found.identities)) is not None:
        raise ConfigError(
            f"target: this pipeline writes to {others[0]}, and the config leads to {others[1]}. Nothing was changed. "
            "Put the target back, or give the other copy a pipeline of its own. If this pipeline must write to the "
            f"other table from now on, and leave the first as it is: {ACCEPT_IDENTITY}"
        )


def check_sweep(found: StartupState, allowed: Allowed) -> None:
    """ConfigError if a new epoch would remove expired items that the target keeps, and no flag allows it."""
    if not allowed.sweep and found.highest:
        raise ConfigError(
            "ttl_deletes: the target keeps items that expired in the source (ignore). A new scan of the source does "
            "not find them, so they would be removed at its end, like everything that it does not find: nothing tells "
            "them from items that were deleted. Nothing was changed. If they may be removed, add --remove-expired"
        )


def check_source(table: SourceTable, *, own_ids: bool, options: str = "") -> None:
    """ConfigError if the table has no stream, or one that cannot be replicated. ``options``: see ``aws_options``."""
    enable = (
        f"aws dynamodb update-table --table-name {table.name}{options} "
        "--stream-specification StreamEnabled=true,StreamViewType=NEW_AND_OLD_IMAGES"
    )
    disable = f"aws dynamodb update-table --table-name {table.name}{options} --stream-specification StreamEnabled=false"
    again = f"Disable the stream: {disable}; then enable it again: {enable}"
    if table.stream_arn is None or not table.streaming:
        raise ConfigError(f"table {table.name} has no enabled stream, so changes cannot be read; enable it: {enable}")
    if table.view == "OLD_IMAGE":
        raise ConfigError(
            f"the stream of {table.name} has view type OLD_IMAGE: it never shows what an item became. {again}"
        )
    if own_ids and table.view != "NEW_AND_OLD_IMAGES":
        raise ConfigError(
            f"the stream of {table.name} has view type {table.view}, but the hook gives documents ids of their own: "
            "without old images nobody knows which documents an item leaves behind. "
            f"{again}"
        )


def find_gap(found: StartupState) -> GapFound | None:
    """The reason why resuming would lose changes, if there is one."""
    state = found.state
    if state is None:
        if found.highest:
            return GapFound(
                f"the target's table was written by epoch {found.highest} of a pipeline whose checkpoints are lost, "
                "or kept elsewhere (checkpoints: in the config), or that has another name (pipeline: in the config); "
                "or it was filled from such a table"
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


def _target_gap(found: StartupState, state: PipelineState) -> GapFound | None:
    if found.highest > state.epoch:
        return GapFound(
            f"the checkpoints are older than the target: they know epoch {state.epoch}, "
            f"the target's table was written by epoch {found.highest}"
        )
    if not _has_stored(found):
        return None
    if None in found.epochs.values():
        gone = _places(found, [name for name, there in found.epochs.items() if there is None])
        return GapFound(f"{gone} is gone from the target since the last run")
    remade = [*recreated_tables(found.definition.tables, found.identities), *_older(found, state.epoch)]
    if remade:
        names = ", ".join(dict.fromkeys(remade))
        return GapFound(
            f"{names} is not the table that the last run wrote to: it was dropped and made again, replaced by a copy, "
            "or restored from a backup"
        )
    if found.emptied:
        return GapFound(f"{_places(found, found.emptied)} is empty, and held documents when the last run stopped")
    return None


def _older(found: StartupState, epoch: int) -> list[str]:
    """The tables that were last written to by an earlier epoch: noted is an epoch before anything is written."""
    return [_places(found, [name]) for name, there in found.epochs.items() if there is not None and there < epoch]


def _places(found: StartupState, names: Sequence[str]) -> str:
    return ", ".join(found.identities[name].place for name in names)


def _has_stored(found: StartupState) -> bool:
    shards = any(s.sequence is not None for s in found.shards.values())
    segments = any(s.cursor is not None or s.ended for s in found.segments.values())
    return shards or segments


def check_hook(found: StartupState) -> None:
    """ConfigError if the hook is not the one that the stored documents come from."""
    state = found.state
    if state is not None and state.hook != found.hook:
        was, now = "changed" if state.hook and found.hook else "was removed" if state.hook else "was added", found.hook
        raise ConfigError(
            f"transform: the hook {was} since the last run. Either go on and leave old documents as they are "
            "(run --accept-hook-change), or make all documents anew (resync)"
            + ("" if now else ". To keep the old documents' shape, put transform: back")
        )


def _redefined(found: StartupState, additions: Sequence[str] | None) -> ConfigError:
    """What to do about a config that defines the tables otherwise than what they hold."""
    changed = "; ".join(map(str, found.changes))
    if additions is None:
        return ConfigError(
            f"target.tables: {changed} since the last run, so what is stored was made otherwise. "
            "Put it back, or make all documents anew: replicator resync"
        )
    statements = "".join(f"\n{statement}" for statement in additions)
    return ConfigError(
        f"target.tables: {changed} since the last run. To add this and to fill it by a new scan of the source: "
        f"{APPLY_SCHEMA}{', which runs:' if statements else ''}{statements}"
    )


def new_epoch(found: StartupState, *, enabled: bool, now: float) -> PipelineState:
    """The state of the pipeline's first epoch, or of the one after the last."""
    before = max(found.state.epoch if found.state else 0, found.highest)
    if before >= LAST_EPOCH:
        raise ConfigError(
            f"the target's table has versions of epoch {before}, and {LAST_EPOCH} is the last there can be: nothing "
            "newer could be written over them. Empty the table, or name another one"
        )
    again = before >= FIRST_EPOCH
    assert found.table.stream_arn is not None
    return PipelineState(
        epoch=max(FIRST_EPOCH, before + 1),
        stream_arn=found.table.stream_arn,
        table_arn=found.table.arn,
        table_id=found.table.id,
        stage=stages.SCANNING if enabled or again else stages.FOLLOWING,
        hook=found.hook,
        resync=again,
        started=now,
        scan_started=now if enabled or again else None,
        items=found.table.items,
    )


def with_hook(state: PipelineState, hook: str) -> PipelineState:
    """The state after a person accepted a changed hook."""
    return replace(state, hook=hook, mixed=True)
