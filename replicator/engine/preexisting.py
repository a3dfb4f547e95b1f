"""What a run finds before it starts: what is stored, and both ends as they are now. Reads, and changes nothing."""

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
from replicator.source.table import SourceTable
from replicator.target.contract import Defining, Identifying, Inspectable, Table, Target

_OPTIONS = "options"  # the one part where a target does not know what decides


def inspect(
    view: CheckpointView, source: SourceTable, target: Target, tables: Sequence[Table], hook: Hook | None
) -> StartupState:
    """What is stored beside what is there."""
    defined = {table.name: parts(target, table) for table in tables}
    definition = _taken_apart(view.definition, target, tables)
    changed = changes(definition.parts, defined)
    return StartupState(
        state=view.pipeline,
        definition=definition,
        shards=view.shards,
        segments=view.segments,
        gaps=view.gaps,
        table=source,
        epochs={table.name: target.epoch([table]) for table in tables},
        identities=identities(target, tables),
        parts=defined,
        hook=hook.fingerprint if hook is not None else "",
        additions=_additions(target, tables, changed),
        emptied=_emptied(view, target, tables),
    )


def filled(checkpoints: Checkpoints, target: Target, tables: Sequence[Table]) -> tuple[Sequence[str], int]:
    """The tables that hold something, none where the target cannot tell; and the retries that this takes into account.

    Those are read first: a retry that is not among them may empty a table that was looked at before.
    """
    if not isinstance(target, Inspectable):
        return (), 0
    retried = CheckpointView(checkpoints.read()).retries.all
    nothing = target.empty(tables)
    return [table.name for table in tables if table.name not in nothing], retried


def _emptied(view: CheckpointView, target: Target, tables: Sequence[Table]) -> Sequence[str]:
    """The tables that hold nothing, and did when the last run stopped in good order. After a crash nothing is known,
    nor where a person retried parked changes since: a removal may have taken the last document."""
    last = view.heartbeat
    if last is None or last.phase != "stopped" or not last.filled or not isinstance(target, Inspectable):
        return ()
    if last.retried != view.retries.all:
        return ()
    return target.empty([table for table in tables if table.name in last.filled])


def identities(target: Target, tables: Sequence[Table]) -> Mapping[str, Identity]:
    """Which tables of the target these are."""
    if isinstance(target, Identifying):
        return target.identities(tables)
    return {table.name: Identity(table.name) for table in tables}


def parts(target: Target, table: Table) -> Parts:
    """What decides what is stored in ``table``."""
    if isinstance(target, Defining):
        return target.parts(table)
    return {_OPTIONS: orjson.dumps(dict(table.options), option=orjson.OPT_SORT_KEYS, default=str).decode()}


def _taken_apart(was: Definition, target: Target, tables: Sequence[Table]) -> Definition:
    """What is stored, in the parts that the target knows now: of a target that was not Defining it is whole options."""
    if not isinstance(target, Defining):
        return was
    there = {table.name: table for table in tables}
    return replace(was, parts={n: _parts_of(p, target, there.get(n)) for n, p in was.parts.items()})


def _parts_of(was: Parts, target: Defining, table: Table | None) -> Parts:
    if table is None or was.keys() != {_OPTIONS}:
        return was
    try:
        return target.parts(replace(table, options=orjson.loads(was[_OPTIONS])))
    except (ConfigError, ValueError):  # options that are none any more: all that can be said is that they changed
        return was


def _additions(target: Target, tables: Sequence[Table], changed: Sequence[Change]) -> Sequence[str] | None:
    """The statements that make what ``changed`` in tables that hold documents; None where only a resync will do."""
    if not changed or not isinstance(target, Defining) or not all(change.added for change in changed):
        return None
    return target.additions(tables, changed)
