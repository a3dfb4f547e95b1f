"""Inspects checkpoints, source and target before a run starts. Read-only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import orjson

from replicator.checkpoints.contract import Checkpoints
from replicator.engine.startup import StartupState
from replicator.errors import ConfigError
from replicator.hooks.hook import Hook
from replicator.identity import Change, Definition, Identity, Parts, changes
from replicator.pipeline.checkpoint_view import CheckpointView
from replicator.pipeline.past import told
from replicator.source.table import SourceTable
from replicator.state import HistoryReport, ResyncRequest
from replicator.target.contract import (
    Adopting,
    Aliased,
    Defining,
    Denied,
    EpochBlind,
    EpochChecking,
    Generation,
    Identifying,
    Inspectable,
    Rebuilding,
    RefusingChanges,
    Table,
    Target,
    Unnoted,
    keeps_history,
    with_history,
)
from replicator.target.past import KeepsHistory

_OPTIONS = "options"  # the single part of a target that is not Defining


def inspect(
    view: CheckpointView, source: SourceTable, target: Target, tables: Sequence[Table], hook: Hook | None
) -> StartupState:
    """The stored state next to the actual state of source and target."""
    defined = {table.name: parts(target, table) for table in tables}
    definition = _split_into_parts(view.definition, target, tables)
    changed = changes(definition.parts, defined)
    return StartupState(
        state=view.pipeline,
        definition=definition,
        shards=view.shards,
        segments=view.segments,
        gaps=view.gaps,
        table=source,
        epochs=_epochs(view, target, tables),
        identities=identities(target, tables),
        parts=defined,
        hook=hook.fingerprint if hook is not None else "",
        additions=_additions(target, tables, changed),
        refused_changes=target.refused_changes(tables, changed)
        if changed and isinstance(target, RefusingChanges)
        else (),
        emptied=_emptied(view, target, tables),
        adopted=target.adopted(tables) if isinstance(target, Adopting) else (),
        stripped=view.stripped,
        generation=tables[0].generation if tables else Generation.ONLY,
        rebuilds=isinstance(target, (Rebuilding, Aliased)),
        aliased=isinstance(target, Aliased),
        history_epoch=target.history_epoch(tables) if isinstance(target, KeepsHistory) else 0,
        history_beside=target.history_epoch_beside(tables) if isinstance(target, KeepsHistory) else 0,
        history_losses=history_losses(view, target, tables),
        own_ids=hook is not None and hook.declared,
        unnoted=view.pipeline is None and isinstance(target, Unnoted) and target.unnoted(tables),
    )


def history_losses(view: CheckpointView, target: object, tables: Sequence[Table]) -> Sequence[str]:
    """Why changes are missing from the histories of a pipeline's tables, a sentence each."""
    state = view.pipeline
    if state is None or not isinstance(target, KeepsHistory) or not with_history(tables):
        return ()
    # After an accepted hook change, a repair may have added documents that neither the scan nor a change made.
    scanned = state.scan_started is not None and not state.mixed
    return target.history_losses(tables, state.epoch, scanned=scanned)


def history_reports(target: KeepsHistory, tables: Sequence[Table], view: CheckpointView) -> tuple[HistoryReport, ...]:
    """What is known of the histories that exist, by table."""
    found: list[HistoryReport] = []
    for table in tables:
        if keeps_history(table.options):
            extent, size = target.history_extent(table), target.history_size(table)
            created, removed = (0, None) if extent is None else (extent.created, extent.since)
            since, unknown = told(view.histories_by_epoch, table.name, created, removed)
            lost = " ".join(history_losses(view, target, [table]))
            total, partitions = (0, 0) if size is None else (size.bytes, size.partitions)
            found.append(HistoryReport(table.name, since, unknown, removed, total, partitions, lost))
    return tuple(found)


def _epochs(view: CheckpointView, target: Target, tables: Sequence[Table]) -> Mapping[str, int | None]:
    if isinstance(target, EpochBlind) and not target.knows_epochs:
        return dict.fromkeys((table.name for table in tables), 0 if view.pipeline is None else view.pipeline.epoch)
    return {table.name: target.epoch([table]) for table in tables}


def filled(checkpoints: Checkpoints, target: Target, tables: Sequence[Table]) -> tuple[Sequence[str], int]:
    """The names of nonempty tables (none if the target cannot tell), and the revision of the ``retried`` entry.

    The revision is read first: a later retry may empty a table after it was inspected.
    """
    if not isinstance(target, Inspectable):
        return (), 0
    retried = CheckpointView(checkpoints.read()).retries.all
    empty = target.empty(tables)
    return [table.name for table in tables if table.name not in empty], retried


def check_new_epoch(target: Target, tables: Sequence[Table], request: ResyncRequest | None = None) -> None:
    """ConfigError if ``open`` would refuse a new epoch. To be called before anything of that epoch is stored.

    ``request``: a pending one, which keeps runs from resuming.
    """
    problems = target.epoch_problems(tables) if isinstance(target, EpochChecking) else target.check(tables)
    if refused := [problem for problem in problems if not isinstance(problem, Denied)]:
        withdraw = ["a resync is requested; to resume without it: replicator resync CONFIG --cancel"] if request else []
        raise ConfigError(*refused, *withdraw)


def check_same_epoch(target: Target, tables: Sequence[Table]) -> None:
    """ConfigError if a run would not start as things are now: a partial resync leaves most documents as they are, and
    must not note for all of them what it found, such as another ingest pipeline.
    """
    if refused := [problem for problem in target.check(tables) if not isinstance(problem, Denied)]:
        raise ConfigError(*refused)


def _emptied(view: CheckpointView, target: Target, tables: Sequence[Table]) -> Sequence[str]:
    """Tables that are empty now and were not when the last run stopped cleanly.

    None after a crash, or if parked changes were retried since: a retried removal may have deleted the last document.
    """
    last = view.heartbeat
    if last is None or last.phase != "stopped" or not last.filled or not isinstance(target, Inspectable):
        return ()
    if last.retried != view.retries.all:
        return ()
    return target.empty([table for table in tables if table.name in last.filled])


def identities(target: Target, tables: Sequence[Table]) -> Mapping[str, Identity]:
    """Each table's identity, by name."""
    if isinstance(target, Identifying):
        return target.identities(tables)
    return {table.name: Identity(table.name) for table in tables}


def parts(target: Target, table: Table) -> Parts:
    """The parts of the table's definition that determine its documents."""
    if isinstance(target, Defining):
        return target.parts(table)
    return {_OPTIONS: orjson.dumps(dict(table.options), option=orjson.OPT_SORT_KEYS, default=str).decode()}


def _split_into_parts(stored: Definition, target: Target, tables: Sequence[Table]) -> Definition:
    """The stored definition in the parts the target now uses, if it was stored before the target was Defining."""
    if not isinstance(target, Defining):
        return stored
    by_name = {table.name: table for table in tables}
    return replace(stored, parts={n: _parts_of(p, target, by_name.get(n)) for n, p in stored.parts.items()})


def _parts_of(stored: Parts, target: Defining, table: Table | None) -> Parts:
    if table is None or stored.keys() != {_OPTIONS}:
        return stored
    try:
        return target.parts(replace(table, options=orjson.loads(stored[_OPTIONS])))
    except (ConfigError, ValueError):  # options that are no longer valid count as changed
        return stored


def _additions(target: Target, tables: Sequence[Table], changed: Sequence[Change]) -> Sequence[str] | None:
    """The statements that apply ``changed`` to tables with documents; None if it requires a resync."""
    if not changed or not isinstance(target, Defining) or not all(change.added for change in changed):
        return None
    return target.additions(tables, changed)
