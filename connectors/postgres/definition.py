"""What tells one Postgres table from another, and what decides what is stored in it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import psycopg
from psycopg import sql

from connectors.postgres import catalog
from connectors.postgres.table_schema import BodyColumn, TableSchema
from replicator.identity import Change, Identity, Parts

_COLUMN = "columns."  # how a part that is a column begins

_GIVER = """
SELECT c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = 'replicator' AND c.relname = 'checkpoints'"""


def identities(connection: psycopg.Connection[Any], shapes: Sequence[TableSchema]) -> Mapping[str, Identity]:
    """Each table by its oid, which a table that is made anew does not have.

    All oids change when a database is restored from a dump; that of our own table, which was restored with it, tells.
    """
    row = connection.execute(_GIVER).fetchone()
    within = "" if row is None else str(row[0])
    there = {shape.name: catalog.found(connection, shape) for shape in shapes}
    ids = {name: "" if table is None else str(table.oid) for name, table in there.items()}
    return {shape.name: Identity(shape.label, ids[shape.name], within) for shape in shapes}


def parts(shape: TableSchema) -> Parts:
    """Each column with its type and what it is made from.

    ``nul`` and ``extra`` are none of them: they say which items are parked from now on, and leave right what is stored.
    """
    return {_part(column): _column(column) for column in shape.columns}


def _column(column: BodyColumn) -> str:
    return f"{column.type} {'' if column.nullable else 'not null '}{_origin(column)}"


def _origin(column: BodyColumn) -> str:
    if column.attribute is None:
        return "the whole document"
    if not column.inside:
        return f"from {column.attribute}"
    return f"from inside {json.dumps([column.attribute, *column.inside])}"


def additions(shapes: Sequence[TableSchema], changes: Sequence[Change]) -> list[sql.Composed] | None:
    """The statements that add the columns that were added; None where one is no column, or may not be null."""
    added = {(change.table, change.part) for change in changes}
    columns = [(s, column) for s in shapes for column in s.columns if (s.name, _part(column)) in added]
    if len(columns) < len(changes) or not all(column.nullable for _, column in columns):
        return None
    return [catalog.add_column(shape, column) for shape, column in columns]


def _part(column: BodyColumn) -> str:
    return f"{_COLUMN}{column.name}"
