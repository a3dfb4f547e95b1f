"""What makes an existing table lose or keep rows behind our back: found before anything is written."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, LiteralString

import psycopg
from psycopg import sql

from connectors.postgres.catalog import Found
from connectors.postgres.table_schema import TableSchema

_UNLOGGED: LiteralString = """
WITH RECURSIVE tree AS (
  SELECT %s::oid AS id
  UNION
  SELECT i.inhrelid FROM tree AS t JOIN pg_catalog.pg_inherits AS i ON i.inhparent = t.id
  JOIN pg_catalog.pg_class AS p ON p.oid = i.inhrelid WHERE p.relispartition
)
SELECT n.nspname::text, c.relname::text
FROM tree AS t JOIN pg_catalog.pg_class AS c ON c.oid = t.id
JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
WHERE c.relkind = 'r' AND c.relpersistence <> 'p' ORDER BY 1, 2"""
"""Not by pg_partition_tree, which locks each partition, and so waits for a VACUUM FULL of one."""
_UNLOGGED_OWN: LiteralString = """
SELECT n.nspname::text, c.relname::text
FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname = 'replicator' AND c.relkind = 'r' AND c.relpersistence <> 'p' ORDER BY 2"""
_CHILDREN: LiteralString = """
SELECT n.nspname::text, c.relname::text
FROM pg_catalog.pg_inherits AS i JOIN pg_catalog.pg_class AS c ON c.oid = i.inhrelid
JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace WHERE i.inhparent = %s ORDER BY 1, 2"""
_RULES: LiteralString = """
SELECT r.rulename::text FROM pg_catalog.pg_rewrite AS r
WHERE r.ev_class = %s AND r.ev_type <> '1' AND r.ev_enabled IN ('O', 'A') ORDER BY 1"""
_POLICIES: LiteralString = "SELECT pg_catalog.row_security_active(%s::oid)"


def hazards(connection: psycopg.Connection[Any], shape: TableSchema, table: Found) -> Iterator[str]:
    """Everything that must be changed about an existing table, a sentence each."""
    yield from (_unlogged(*row) for row in connection.execute(_UNLOGGED, (table.oid,)))
    if table.kind == "r":  # the children of a partitioned table are its partitions
        yield from _inherited(shape, [_name(*row) for row in connection.execute(_CHILDREN, (table.oid,))])
    for (rule,) in connection.execute(_RULES, (table.oid,)):
        name = _name(rule)
        yield (
            f"{shape.label} has the rule {name}, which changes what replicator's statements do: DROP RULE {name} ON "
            f"{shape.label}. A trigger may do its work"
        )
    if connection.execute(_POLICIES, (table.oid,)).fetchone() == (True,):
        user = _name(table.user)
        yield (
            f"{shape.label} has row level security that holds for the role {user}: rows that a policy hides would be "
            f"neither updated nor deleted. ALTER TABLE {shape.label} NO FORCE ROW LEVEL SECURITY, or ALTER ROLE {user} "
            "BYPASSRLS"
        )


def own_unlogged(connection: psycopg.Connection[Any]) -> list[str]:
    """A sentence for each of replicator's own tables that a crash would empty."""
    return [_unlogged(*row) for row in connection.execute(_UNLOGGED_OWN)]


def _unlogged(*name: str) -> str:
    return (
        f"{_name(*name)} is UNLOGGED: a crash or a failover of the server empties it, and nothing tells that it did. "
        f"ALTER TABLE {_name(*name)} SET LOGGED"
    )


def _inherited(shape: TableSchema, children: list[str]) -> Iterator[str]:
    if children:
        yield (
            f"{shape.label} has tables that inherit from it ({', '.join(children)}), and what replicator deletes would "
            f"be deleted from them, too: ALTER TABLE {children[0]} NO INHERIT {shape.label}"
        )


def _name(*parts: str) -> str:
    return sql.Identifier(*parts).as_string(None)
