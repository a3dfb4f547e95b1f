"""Decides how a run starts: with a new epoch, by resuming, or not at all. Pure functions."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum

import orjson

from replicator.errors import ConfigError, GapFound
from replicator.identity import (
    REMEMBERS,
    Change,
    Definition,
    Identity,
    Origin,
    Parts,
    changes,
    forgotten_deletes,
    other_tables,
    readded_columns,
    recreated_tables,
    same_source,
)
from replicator.pipeline import stages
from replicator.source.table import SourceTable
from replicator.state import Gap, PipelineState, ResyncRequest, SegmentState, ShardState, Stripped
from replicator.target.contract import Generation
from replicator.version import FIRST_EPOCH, LAST_EPOCH

ACCEPT_IDENTITY = "replicator resync CONFIG --accept-identity-change"
APPLY_SCHEMA = "replicator run --apply-schema-changes"
START_OVER = "replicator resync CONFIG --now"  # without checkpoints, in which a resync could be requested
_UNNOTED = (
    "Nothing tells whose it is: repair it only if all of it is this pipeline's, because what the source does not have "
    "is removed"
)
_RECOMPUTE = {
    Generation.ONLY: "recompute all documents: in a second copy, with a switch at the end (replicator rebuild start "
    "NEW_CONFIG), or in place (replicator resync CONFIG)",
    Generation.NEW: "recompute all documents of the new copy: in place (replicator resync CONFIG; readers see it only "
    "once it is live), or by starting over, while it is not live: replicator rebuild cancel CONFIG, then replicator "
    "rebuild start CONFIG",
    Generation.OLD: "recompute all documents of the old copy in place (replicator resync OLD_CONFIG). The old copy of "
    "a rebuild needs what it was made with: keep the new hook and definition in the new config only",
}
"""How documents become those of a changed hook or definition, for each of the copies that a rebuild keeps."""
_IN_PLACE = "recompute all documents in place (replicator resync CONFIG)"
_BESIDE = (
    "To build the other index while readers keep this one, and switch at once, name it in a second config "
    "(docs/rebuilding.md): replicator rebuild start NEW_CONFIG"
)
_ANEW = {
    Generation.ONLY: "To build a second copy with it, and switch at the end: replicator rebuild start. ",
    Generation.NEW: "To start the new copy over, while it is not live: replicator rebuild cancel CONFIG, then "
    "replicator rebuild start CONFIG. ",
    Generation.OLD: "",
}


@dataclass(frozen=True, slots=True)
class StartupState:
    """The stored state of a pipeline next to the actual state of its source and target.

    ``epochs``: ``Target.epoch`` of each table. ``identities``, ``parts``: of the tables in the current config.
    ``hook``: the hook's fingerprint, "" without a hook. ``additions``: statements that bring the tables to the current
    definition, None if that requires a resync. ``refused_changes``: why not even a resync brings the documents to the
    current definition. ``emptied``: tables that are empty now and were not when the last run stopped. ``adopted``:
    tables with rows that no pipeline wrote, to be taken over. ``generation``: which copy it is.
    ``aliased``: readers use an alias, which a rebuild can move to other tables. ``history_epoch``: the latest one in
    the histories of the tables, 0 without any. ``history_beside``: likewise for the old copy, if this is the new
    one of a rebuild. ``history_losses``: what these lack, in sentences. ``own_ids``: the hook chooses document ids.
    ``unnoted``: a table holds versioned documents, but no note says which pipeline wrote them.
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
    refused_changes: Sequence[str] = ()
    emptied: Sequence[str] = ()
    adopted: Sequence[str] = ()
    stripped: Stripped | None = None
    generation: Generation = Generation.ONLY
    rebuilds: bool = True  # whether the target can keep two copies
    aliased: bool = False
    history_epoch: int = 0
    history_beside: int = 0
    history_losses: Sequence[str] = ()
    own_ids: bool = False
    unnoted: bool = False

    @property
    def highest(self) -> int:
        """The latest epoch in any of the target's tables, or of their histories; 0 if there is none."""
        return max([self.history_epoch, *(epoch for epoch in self.epochs.values() if epoch is not None)])

    @property
    def has_documents(self) -> bool:
        """Whether an epoch has begun before."""
        return self.state is not None or self.highest > 0

    @property
    def changes(self) -> list[Change]:
        """Differences between the current definition of the tables and the one their documents were written with."""
        return changes(self.definition.parts, self.parts)

    @property
    def bound(self) -> Definition:
        """The definition to store from now on. Identities are included only if they are known for all tables."""
        known = all(identity.known for identity in self.identities.values())
        return Definition(self.table.server, self.identities if known else {}, self.parts)

    @property
    def as_defined(self) -> Definition:
        """The definition to store until the tables are opened: current identities, previous parts."""
        return replace(self.bound, parts=self.definition.parts)


@dataclass(frozen=True, slots=True)
class Allowed:
    """What the command line asks for or allows, beyond resuming."""

    resync: bool = False
    hook_change: bool = False
    identity_change: bool = False
    schema_changes: bool = False
    sweep: bool = True  # a resync may remove documents of expired items that ``ttl_deletes: ignore`` kept


RESUMING = Allowed()


def with_request(allowed: Allowed, request: ResyncRequest | None, found: StartupState) -> Allowed:
    """What a run may do as it starts if a resync of the whole table is requested, for what it has ``found``."""
    if request is None or not request.whole or request.config != digest(found):
        return allowed
    return Allowed(
        resync=True,
        hook_change=True,
        identity_change=allowed.identity_change or request.identity_change,
        schema_changes=allowed.schema_changes or request.schema_changes,
        sweep=allowed.sweep or request.remove_expired,
    )


def digest(found: StartupState) -> str:
    """What a request to resync is meant for: the source, the target's tables, their definition, and the hook."""
    places = {name: identity.at or identity.place for name, identity in found.identities.items()}
    parts = {name: dict(part) for name, part in found.parts.items()}
    text = orjson.dumps([found.table.arn, found.hook, places, parts], option=orjson.OPT_SORT_KEYS)
    return hashlib.sha256(text).hexdigest()


class StartMode(Enum):
    """``BEGIN``: start a new epoch, after extending the tables if that is allowed. ``RESUME``: continue."""

    BEGIN = "begin"
    RESUME = "resume"


def start_mode(found: StartupState, allowed: Allowed) -> StartMode:
    """How to start. ConfigError if something must be changed or allowed first, GapFound if records are lost."""
    check_not_stripped(found)
    if not (allowed.resync and allowed.identity_change):
        check_identity(found)
    if allowed.resync:
        if found.refused_changes:
            raise ConfigError(*found.refused_changes)
        check_sweep(found, allowed)
        return StartMode.BEGIN
    if not found.has_documents:
        return StartMode.BEGIN
    if (gap := find_gap(found)) is not None:
        raise gap
    check_hook_of_export(found)
    if not allowed.hook_change:
        check_hook(found)
    if not found.changes:
        check_history(found)
        return StartMode.RESUME
    if found.additions is None or not allowed.schema_changes:
        raise _redefined(found, found.additions)
    check_sweep(found, allowed)
    return StartMode.BEGIN


def check_identity(found: StartupState) -> None:
    """ConfigError if the config names a different source or target table than the one the pipeline is bound to."""
    state, table = found.state, found.table
    if state is None:
        return
    bound = Origin(state.table_arn, state.table_id, state.stream_arn, found.definition.server)
    configured = Origin(table.arn, table.id, table.stream_arn, table.server)
    if not same_source(bound, configured):
        raise ConfigError(
            f"source: this pipeline copies {bound}, but the config names {configured}. Nothing was changed. Restore "
            "the source in the config, or use a separate pipeline and target for the other table. To turn the target "
            f"into a copy of the other table, which removes its current contents: {ACCEPT_IDENTITY}"
        )
    if (others := other_tables(found.definition.tables, found.identities)) is not None:
        raise ConfigError(
            f"target: this pipeline writes to {others[0]}, but the config names {others[1]}. Nothing was changed. "
            "Restore the target in the config, or use a separate pipeline for the other table. To write to what the "
            f"config names from now on, and leave any other table as it is: {ACCEPT_IDENTITY}"
            + (f". {_BESIDE}" if found.aliased else "")
        )


def check_not_stripped(found: StartupState) -> None:
    """ConfigError if `strip` has removed versions from the target: nothing would protect what others write there."""
    if found.stripped is None:
        return
    tables = ", ".join(found.identities) or "the target"
    raise ConfigError(
        f"target: replicator strip has removed the versions from {tables}, which other writers own now: this pipeline "
        "would overwrite their changes, so it never writes there again. To copy the source again, use another "
        "pipeline: name and another target table"
    )


def check_tables(found: StartupState) -> None:
    """ConfigError or GapFound if a command must not write to these tables, because runs write to others.

    Gaps in the source do not matter: what a command stores is replaced or confirmed by the resync that repairs them.
    """
    check_not_stripped(found)
    check_identity(found)
    if found.changes:
        raise _redefined(found, found.additions)
    if found.state is not None and (gap := target_gap(found, found.state)) is not None:
        raise gap
    check_history(found)


def check_history(found: StartupState) -> None:
    """ConfigError if changes are missing from a history: with those that follow, it would tell wrong states."""
    if found.history_losses:
        raise ConfigError(*found.history_losses)


def check_sweep(found: StartupState, allowed: Allowed) -> None:
    """ConfigError if a new epoch would remove expired items that the target keeps, and no flag allows it."""
    if not allowed.sweep and found.highest:
        raise ConfigError(
            "ttl_deletes: the target keeps items that expired in the source (ignore). A new scan does not find them, "
            "so they would be removed at its end: they cannot be distinguished from deleted items. Nothing was "
            "changed. To allow their removal, add --remove-expired"
        )


def check_single_process(state: PipelineState | None) -> None:
    """ConfigError if a run with several workers must not resume: what is in progress needs a single process."""
    if state is not None and state.repair is not None and not state.repair.done:
        raise ConfigError(
            "a gap is being repaired from exports (on_gap: export), which only one process does: run the pipeline "
            "without engine until status no longer shows the phase backfill, or start over with a backfill: "
            "replicator resync CONFIG"
        )


def check_source(
    table: SourceTable, *, own_ids: bool, loops: bool = False, history: bool = False, options: str = ""
) -> None:
    """ConfigError if the table has no stream, or one that cannot be replicated. ``options``: see ``aws_options``."""
    enable = (
        f"aws dynamodb update-table --table-name {table.requested}{options} "
        "--stream-specification StreamEnabled=true,StreamViewType=NEW_AND_OLD_IMAGES"
    )
    disable = (
        f"aws dynamodb update-table --table-name {table.requested}{options} --stream-specification StreamEnabled=false"
    )
    recreate = f"Disable the stream: {disable}; then enable it again: {enable}"
    if table.stream_arn is None or not table.streaming:
        raise ConfigError(f"table {table.name} has no enabled stream, so changes cannot be read; enable it: {enable}")
    if table.view == "OLD_IMAGE":
        raise ConfigError(
            f"the stream of {table.name} has view type OLD_IMAGE, which does not include new images. {recreate}"
        )
    if own_ids and table.view != "NEW_AND_OLD_IMAGES":
        raise ConfigError(
            f"the stream of {table.name} has view type {table.view}, but the hook chooses document ids (@documents): "
            "without old images, obsolete documents of an item cannot be identified. "
            f"{recreate}"
        )
    if history:
        check_history_images(table, recreate)
    if loops:
        check_old_images(table, recreate)


def check_key(before: SourceTable, now: SourceTable) -> None:
    """ConfigError if a run must not begin an epoch with the table as it is ``now``: it was made again during the run.

    What the run knows of the target's tables is of the key ``before``, under which several items may be one document.
    """
    if before.keys != now.keys:
        raise ConfigError(
            f"source.table: the table {now.name} was deleted and created again with another key ({_shown(now)}) than "
            f"the one that this run writes under ({_shown(before)}). Nothing of the new table was copied. Start the "
            "run again, and it copies the new table if the target's key fits; otherwise it says what to change"
        )


def _shown(table: SourceTable) -> str:
    return ", ".join(f"{key.name}: {key.kind}" for key in table.keys.attributes)


def check_expiries(table: SourceTable, ttl_deletes: str) -> None:
    """ConfigError if expired items stay in the copy and the stream does not tell every expiry from a delete."""
    if ttl_deletes == "ignore" and table.replicas:
        raise ConfigError(
            f"ttl_deletes: the source {table.name} is a replica of a global table, with others in "
            f"{', '.join(table.replicas)}. Items that expire there are removed here as if they had been deleted: the "
            "stream does not tell the difference, so the target would lose what ttl_deletes: ignore keeps. Copy a "
            "table without replicas, or set ttl_deletes: apply, with which expired items are removed from the target"
        )


def requested(check: Callable[[SourceTable], None], table: SourceTable) -> None:
    """The same check of a run that would resume if no resync were requested, which its ConfigError says."""
    try:
        check(table)
    except ConfigError as e:
        advice = (
            "A resync of the whole table is requested; to withdraw it, and read on: replicator resync CONFIG --cancel"
        )
        raise ConfigError(f"{e}. {advice}") from e


def check_old_images(table: SourceTable, remedy: str = "Recreate the stream with view type NEW_AND_OLD_IMAGES") -> None:
    """ConfigError if the stream lacks what ``loops`` needs; also for a run that resumes, which may not have had it."""
    if table.view not in (None, "NEW_AND_OLD_IMAGES"):
        raise ConfigError(
            f"the stream of {table.name} has view type {table.view}, but target.loops needs old images: without them, "
            f"the opposite pipeline's writes cannot be told from an application's. {remedy}"
        )


def check_history_images(
    table: SourceTable, remedy: str = "Recreate the stream with view type NEW_AND_OLD_IMAGES"
) -> None:
    """ConfigError if the stream lacks what a history needs; also for a run that resumes."""
    if table.view not in (None, "NEW_AND_OLD_IMAGES"):
        raise ConfigError(
            f"the stream of {table.name} has view type {table.view}, but history: true needs old and new images: "
            f"without both, a change does not say what it changed. {remedy}"
        )


def find_gap(found: StartupState) -> GapFound | None:
    """Why resuming would lose changes; None if it would not."""
    state = found.state
    if state is None:
        if found.highest:
            written = (
                f"the target's table was written by epoch {found.highest}"
                if any(found.epochs.values())
                else f"the target's history was written by epoch {found.highest}"
            )
            return GapFound(
                f"{written} of a pipeline whose checkpoints are lost or stored elsewhere (checkpoints: in the config), "
                "or that has another name (pipeline: in the config); or it is a copy of such a table"
                + (f". {_UNNOTED}" if found.unnoted else ""),
                repair=START_OVER,
                of_target=True,
                by_hand=found.unnoted,
            )
        return None
    if gap := unrepaired(found.gaps.values(), state):
        return gap
    if gap := made_again(state, found.table):
        return gap
    if state.stream_arn != found.table.stream_arn:
        return GapFound(
            f"the stream was replaced: the last run read {state.stream_arn}, "
            f"the table now has {found.table.stream_arn or 'none'}"
        )
    return target_gap(found, state)


def unrepaired(gaps: Iterable[Gap], state: PipelineState) -> GapFound | None:
    """A gap that the epoch does not repair, of several one that only a person may repair: another epoch repairs all."""
    left = [gap for gap in gaps if gap.repaired is None and gap.epoch >= state.repairing]
    for gap in sorted(left, key=lambda gap: not gap.by_hand):
        return GapFound(gap.reason, gap.shard, gap.sequence, by_hand=gap.by_hand)
    return None


def made_again(state: PipelineState, table: SourceTable) -> GapFound | None:
    """The gap if ``table`` is not the one that the pipeline copies; None if it is."""
    if state.table_id == table.id:
        return None
    return GapFound(f"table {table.name} was deleted and created again since the last run")


def target_gap(found: StartupState, state: PipelineState) -> GapFound | None:
    """What the target has lost since the last run, as far as it can be told; None if nothing."""
    if found.highest > state.epoch:
        return GapFound(
            f"the checkpoints are older than the target: they are at epoch {state.epoch}, "
            f"the target's table was written by epoch {found.highest}",
            of_target=True,
        )
    if not _has_stored(found):
        return None
    if None in found.epochs.values():
        missing = _places(found, [name for name, epoch in found.epochs.items() if epoch is None])
        return GapFound(f"{missing} is gone from the target since the last run", of_target=True)
    if forgotten := forgotten_deletes(found.definition.tables, found.identities):
        places = ", ".join(forgotten)
        return GapFound(f"{places} was removed or replaced since the last run: {REMEMBERS}", of_target=True)
    noted = state.epoch - 1 if state.opening else state.epoch
    replaced = [*recreated_tables(found.definition.tables, found.identities), *_older(found, noted)]
    if replaced:
        names = ", ".join(dict.fromkeys(replaced))
        return GapFound(
            f"{names} is not the table that the last run wrote to: it was dropped and recreated, replaced by a copy, "
            "or restored from a backup",
            of_target=True,
        )
    if columns := readded_columns(found.definition.tables, found.identities):
        return GapFound(
            f"{', '.join(columns)} is not the column that the last run wrote to: it was dropped and added again, "
            "without the values that it had",
            of_target=True,
        )
    if found.emptied:
        emptied = _places(found, found.emptied)
        return GapFound(f"{emptied} is empty, but held documents when the last run stopped", of_target=True)
    return None


def _older(found: StartupState, epoch: int) -> list[str]:
    """Tables last written by an earlier epoch. An epoch is noted in every table before it writes anything."""
    return [_places(found, [name]) for name, noted in found.epochs.items() if noted is not None and noted < epoch]


def _places(found: StartupState, names: Sequence[str]) -> str:
    return ", ".join(found.identities[name].place for name in names)


def _has_stored(found: StartupState) -> bool:
    """Whether positions were stored. A partial epoch adds to what a whole one has stored."""
    if found.state is not None and found.state.partial:
        return True
    shards = any(s.sequence is not None for s in found.shards.values())
    segments = any(s.cursor is not None or s.ended for s in found.segments.values())
    return shards or segments


def check_hook(found: StartupState) -> None:
    """ConfigError if the hook is not the one that produced the stored documents."""
    state = found.state
    if state is not None and state.hook != found.hook:
        what = "changed" if state.hook and found.hook else "was removed" if state.hook else "was added"
        raise ConfigError(
            f"transform: the hook {what} since the last run. Either resume and leave existing documents as they are "
            f"(run --accept-hook-change), or {_recompute(found)}"
            + ("" if found.hook else ". To keep the documents' shape, restore transform: in the config")
        )


def check_hook_of_export(found: StartupState) -> None:
    """ConfigError if another hook than before would read the rest of an export, and it chooses document ids.

    The items that it still has may have been removed since. A removal left tombstones for the documents that the hook
    of its time makes of the item; those that only the new hook makes would come back with the export's image.
    """
    state = found.state
    if state is None or state.read_export is None or state.stage != stages.SCANNING or state.hook == found.hook:
        return
    if found.own_ids:
        raise ConfigError(
            "transform: the hook, which chooses document ids, changed while the backfill reads an export: documents of "
            "items that were removed since could come back. Either restore the hook until the backfill is done (run "
            f"--until backfilled), or {_recompute(found)}"
        )


def _recompute(found: StartupState) -> str:
    return _RECOMPUTE[found.generation] if found.rebuilds else _IN_PLACE


def _redefined(found: StartupState, additions: Sequence[str] | None) -> ConfigError:
    """The error for tables whose definition changed since their documents were written."""
    if found.refused_changes:
        return ConfigError(*found.refused_changes)
    changed = "; ".join(map(str, found.changes))
    if additions is None:
        return ConfigError(
            f"target.tables: {changed} since the last run, so existing documents do not match the definition. "
            f"Undo the change, or {_recompute(found)}. If the target's table must be changed first, resync says how"
        )
    statements = "".join(f"\n{statement}" for statement in additions)
    anew = _ANEW[found.generation] if found.rebuilds else ""
    return ConfigError(
        f"target.tables: {changed} since the last run. {anew}To apply this and fill it with a new "
        f"scan of the source: {APPLY_SCHEMA}{', which executes:' if statements else ''}{statements}"
    )


def new_epoch(found: StartupState, *, enabled: bool, now: float) -> PipelineState:
    """The state of the pipeline's first epoch, or of the epoch after the last. ``enabled``: whether to backfill."""
    last = max(found.state.epoch if found.state else 0, found.highest)
    if last >= LAST_EPOCH:
        raise ConfigError(
            f"the target's table has versions of epoch {last}, and {LAST_EPOCH} is the highest possible epoch: nothing "
            "newer could overwrite them. Empty the table, or use another one"
        )
    again = last >= FIRST_EPOCH or bool(found.adopted)
    last = max(last, found.history_beside)  # the history of this copy will continue that one
    assert found.table.stream_arn is not None
    return PipelineState(
        epoch=max(FIRST_EPOCH, last + 1),
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
    """``state`` after --accept-hook-change."""
    return replace(state, hook=hook, mixed=True)
