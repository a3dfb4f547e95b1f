"""Tables that others moved to another schema since the last run.

A table is known by its oid, which it keeps; its tombstones are kept under its quoted name, and must follow it. Without
them, what is left to read of a backfill would bring deleted rows back.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import psycopg
from psycopg import sql

from connectors.postgres import cleanup
from connectors.postgres.table_schema import VERSION, TableSchema
from replicator.identity import Identity

Connection = psycopg.Connection[Any]

_REMEMBERED = "SELECT EXISTS (SELECT FROM replicator.tombstones WHERE target = %s)"
_RELABEL = "UPDATE replicator.tombstones SET target = %s WHERE target = %s"
# By its name in the catalog: to_regclass needs USAGE on the schema, which may be revoked by now.
_WRITTEN = """
SELECT EXISTS (SELECT FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_class c ON c.oid = a.attrelid
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE concat('"', replace(n.nspname, '"', '""'), '"."', replace(c.relname, '"', '""'), '"') = %s
AND c.relkind IN ('r', 'p') AND a.attname = %s AND NOT a.attisdropped)"""


def former(shape: TableSchema, bound: Identity | None, now: Identity) -> str:
    """The name of the table in another schema, by which the last run knew it; empty if it was not moved.

    A rebuild, which exchanges names within a schema, takes tombstones along itself.
    """
    if bound is None or not now.id or (bound.id, bound.within) != (now.id, now.within):
        return ""
    name = sql.Identifier(shape.name).as_string(None)
    return bound.place if bound.place != now.place and bound.place.endswith(f".{name}") else ""


def is_taken(connection: Connection, label: str) -> bool:
    """Whether another table with versions has the name now: then it cannot be told whose tombstones are under it."""
    row = connection.execute(_WRITTEN, (label, VERSION)).fetchone()
    return row is not None and bool(row[0])


def ambiguous(
    connection: Connection,
    shapes: Mapping[str, TableSchema],
    bound: Mapping[str, Identity],
    now: Mapping[str, Identity],
) -> set[str]:
    """The tables, by name in the config, that were moved and whose former name another one has, with tombstones."""
    labels = {name: former(shape, bound.get(name), now[name]) for name, shape in shapes.items()}
    return {
        name
        for name, label in labels.items()
        if label and is_taken(connection, label) and _remembered(connection, label)
    }


def _remembered(connection: Connection, label: str) -> bool:
    row = connection.execute(_REMEMBERED, (label,)).fetchone()
    return row is not None and bool(row[0])


def follow(connection: Connection, shape: TableSchema, label: str) -> None:
    """Give a table the tombstones under its former name, instead of those that an earlier table left under its own."""
    if not _remembered(connection, label) or is_taken(connection, label):
        return
    connection.execute(cleanup.FORGET, (shape.label,))
    connection.execute(_RELABEL, (shape.label, label))
