"""What a place has: no table, one of this pipeline, or something else; and what differs from the config."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Iterator, Sequence

import pyarrow as pa
from deltalake import DeltaTable, Schema

from connectors.delta.probe import has_files, table_around
from connectors.delta.schema import VERSION, TableSchema
from connectors.delta.stored_table import ADDED, EPOCH, PIPELINE, StoredTable
from replicator.version import epoch_of


def problems(stored: StoredTable, shape: TableSchema, table: DeltaTable | None) -> Iterator[str]:
    if outer := table_around(stored.storage, stored.place):
        yield (
            f"{stored.place} is inside the Delta table {outer}, whose upkeep removes files that it does not have. "
            "Correct target.path: it is the folder that contains the tables' folders"
        )
        return
    if table is None:
        yield from _in_the_way(stored)
        return
    notes = table.metadata().configuration
    if PIPELINE not in notes:
        yield (
            f"{stored.place} is a Delta table that replicator did not create, and it overwrites no rows of others. "
            "Choose another table or path"
        )
    elif notes[PIPELINE] != stored.pipeline:
        yield taken(stored, table)
    else:
        yield from _differences(stored, shape, table)


def taken(stored: StoredTable, table: DeltaTable) -> str:
    """For a table that another pipeline writes; empty if it is this one's."""
    other = table.metadata().configuration.get(PIPELINE, stored.pipeline)
    if other == stored.pipeline:
        return ""
    return (
        f"{stored.place} is written by the pipeline {other}; two copies in one table would overwrite each other. "
        f"Choose another table or path, or name this pipeline {other} if it is the same one"
    )


def _in_the_way(stored: StoredTable) -> Iterator[str]:
    """What keeps a table from being created in a folder."""
    in_s3 = stored.storage.config.in_s3
    if (in_s3 or os.path.isdir(stored.place)) and has_files(stored.storage, stored.place):
        yield f"{stored.place} has files, and is not a Delta table. Choose another table or path"
    if in_s3:
        return
    parent = _existing(stored.place)
    if not os.path.isdir(parent):
        yield f"{parent} is a file, not a folder. Correct target.path"
    elif not os.access(parent, os.W_OK | os.X_OK):
        yield f"{parent} is not writable for this user. Change its permissions, or correct target.path"
    elif (refused := _refused_folder(parent)) is not None:
        yield f"no folder can be created in {parent} ({refused}). Correct target.path"


def _refused_folder(parent: str) -> str | None:
    """Why the file system takes no folder there, though it permits it; None if it does. A full disk is waited for."""
    try:
        with tempfile.TemporaryDirectory(prefix=".replicator-", dir=parent):
            return None
    except OSError as e:
        return None if e.errno in (errno.ENOSPC, errno.EDQUOT) else e.strerror


def _existing(place: str) -> str:
    while not os.path.exists(place) and os.path.dirname(place) != place:
        place = os.path.dirname(place)
    return place


def _differences(stored: StoredTable, shape: TableSchema, table: DeltaTable) -> Iterator[str]:
    there = {field.name: field.type for field in _arrow(table)}
    unused = added(table)  # null in all rows, and written as null
    for field in shape.arrow:
        if field.name not in there:
            yield f"{stored.place} has no column {field.name}"
        elif not _same(there[field.name], field.type):
            yield f"{stored.place}: the column {field.name} is {there[field.name]}, but the config says {field.type}"
    if more := sorted(there.keys() - {*shape.arrow.names, *unused}):
        yield f"{stored.place} has columns that are not in the config: {', '.join(more)}"
    divided = tuple(table.metadata().partition_columns)
    if divided != shape.partition_by:
        yield (
            f"{stored.place} is partitioned by {', '.join(divided) or 'nothing'}, which cannot be changed; the config "
            f"says {', '.join(shape.partition_by) or 'nothing'}. Choose another table"
        )
    if not os.access(stored.place, os.W_OK | os.X_OK) and not stored.storage.config.in_s3:
        yield f"{stored.place} is not writable for this user. Change its permissions"


def _arrow(table: DeltaTable) -> pa.Schema:
    return pa.schema(table.schema().to_arrow())


def _same(one: pa.DataType, other: pa.DataType) -> bool:
    return _canonical(one) == _canonical(other)


def _canonical(type: pa.DataType) -> str:
    return str(type).replace("large_", "").replace("element:", "item:").replace("string_view", "string")


def epoch(table: DeltaTable) -> int:
    """The epoch that is noted, or a later one that a row has: rows may have been copied there."""
    return max(int(table.metadata().configuration.get(EPOCH, "0")), epoch_of(highest_version(table)))


def highest_version(table: DeltaTable) -> int:
    """By the files' statistics; 0 without rows."""
    actions = pa.table(table.get_add_actions(flatten=True))
    name = f"max.{VERSION}"
    found = actions.column(name).to_pylist() if name in actions.column_names else []
    return max((version for version in found if version is not None), default=0)


def added(table: DeltaTable) -> list[str]:
    """The columns that were added for an epoch that has not begun."""
    names: list[str] = json.loads(table.metadata().configuration.get(ADDED, "[]"))
    return names


def add(stored: StoredTable, table: DeltaTable, fields: Sequence[pa.Field]) -> None:
    """Add columns, null in all rows. A config of before may go on without them until an epoch begins that has them."""
    stored.note(table, {ADDED: json.dumps([*added(table), *(field.name for field in fields)])})
    wanted = Schema.from_arrow(pa.schema(list(fields))).fields
    with stored.commit(table) as commit:
        table.alter.add_columns(wanted, commit_properties=commit.properties)
