"""What ``check`` looks for: tables that would silently lose or keep rows, and missing privileges."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, LiteralString

import psycopg
from psycopg import sql

from connectors.postgres.catalog import Found
from connectors.postgres.history_note import base_of
from connectors.postgres.migrations import exists, foreign, outdated, own_unlogged, unlogged
from connectors.postgres.table_schema import TableSchema, history_of
from replicator.target.contract import Denied

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
"""Not pg_partition_tree, which locks every partition and so waits for a VACUUM FULL of one."""
_CHILDREN: LiteralString = """
SELECT n.nspname::text, c.relname::text
FROM pg_catalog.pg_inherits AS i JOIN pg_catalog.pg_class AS c ON c.oid = i.inhrelid
JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace WHERE i.inhparent = %s ORDER BY 1, 2"""
_RULES: LiteralString = """
SELECT r.rulename::text FROM pg_catalog.pg_rewrite AS r
WHERE r.ev_class = %s AND r.ev_type <> '1' AND r.ev_enabled IN ('O', 'A') ORDER BY 1"""
_POLICIES: LiteralString = "SELECT pg_catalog.row_security_active(%s::oid)"


def hazards(connection: psycopg.Connection[Any], shape: TableSchema, table: Found) -> Iterator[str]:
    """Properties of an existing table that would silently lose or keep rows, a sentence each."""
    yield from (unlogged(*row) for row in connection.execute(_UNLOGGED, (table.oid,)))
    if table.kind == "r":  # the children of a partitioned table are its partitions
        yield from _inherited(shape, [_name(*row) for row in connection.execute(_CHILDREN, (table.oid,))])
    for (rule,) in connection.execute(_RULES, (table.oid,)):
        name = _name(rule)
        yield (
            f"{shape.label} has the rule {name}, which changes what replicator's statements do: DROP RULE {name} ON "
            f"{shape.label}. Use a trigger instead"
        )
    if connection.execute(_POLICIES, (table.oid,)).fetchone() == (True,):
        user = _name(table.user)
        yield (
            f"{shape.label} has row level security that applies to the role {user}: rows that a policy hides would be "
            f"neither updated nor deleted. ALTER TABLE {shape.label} NO FORCE ROW LEVEL SECURITY, or ALTER ROLE {user} "
            "BYPASSRLS"
        )


def _inherited(shape: TableSchema, children: list[str]) -> Iterator[str]:
    if children:
        yield (
            f"{shape.label} has tables that inherit from it ({', '.join(children)}), and what replicator deletes would "
            f"be deleted from them, too: ALTER TABLE {children[0]} NO INHERIT {shape.label}"
        )


def _name(*parts: str) -> str:
    return sql.Identifier(*parts).as_string(None)


_OLDEST = 150000
_NEEDED = ("SELECT", "INSERT", "UPDATE", "DELETE")
_OWN = ("checkpoints", "counts", "tombstones")


def missing_privileges(connection: psycopg.Connection[Any], shapes: Sequence[TableSchema]) -> list[str]:
    """Missing privileges and unsuitable servers, a sentence each with the fix."""
    user = sql.Identifier(str(_one(connection, "SELECT current_user"))).as_string(None)
    return [*_server(connection), *_own_tables(connection, user), *_targets(connection, shapes, user)]


def _server(connection: psycopg.Connection[Any]) -> Iterator[str]:
    if _one(connection, "SELECT pg_catalog.current_setting('transaction_read_only')") == "on":
        raise psycopg.errors.ReadOnlySqlTransaction  # as every write would
    if connection.info.server_version < _OLDEST:
        yield f"the server is Postgres {connection.info.server_version // 10000}; replicator needs 15 or newer"
    encoding = connection.info.parameter_status("server_encoding")
    if encoding != "UTF8":
        yield f"the database is encoded as {encoding}, which cannot hold every text: CREATE DATABASE … ENCODING 'UTF8'"


def _own_tables(connection: psycopg.Connection[Any], user: str) -> Iterator[str]:
    if (problem := foreign(connection)) is not None:
        yield problem
        return
    if not exists(connection):
        if not _one(connection, "SELECT pg_catalog.has_database_privilege(pg_catalog.current_database(), 'CREATE')"):
            database = sql.Identifier(str(_one(connection, "SELECT pg_catalog.current_database()"))).as_string(None)
            yield Denied(f"the schema replicator cannot be created: GRANT CREATE ON DATABASE {database} TO {user}")
        return
    if not _one(connection, "SELECT pg_catalog.has_schema_privilege('replicator', 'USAGE')"):
        yield Denied(f"the schema replicator cannot be used: GRANT USAGE ON SCHEMA replicator TO {user}")
        return
    if missing := list(_rights(connection, "replicator.version", user, ("SELECT",))):
        yield from missing
    elif (problem := outdated(connection)) is not None:
        yield problem
    yield from own_unlogged(connection)
    for table in _OWN:
        yield from _rights(connection, sql.Identifier("replicator", table).as_string(None), user)


def _targets(connection: psycopg.Connection[Any], shapes: Sequence[TableSchema], user: str) -> Iterator[str]:
    for name in sorted({shape.schema for shape in shapes}):
        quoted = sql.Identifier(name).as_string(None)
        if not _one(connection, "SELECT pg_catalog.count(*) FROM pg_catalog.pg_namespace WHERE nspname = %s", name):
            yield f"the schema {quoted} does not exist: CREATE SCHEMA {quoted}"
            return
        if not _one(connection, "SELECT pg_catalog.has_schema_privilege(%s, 'USAGE')", name):
            yield Denied(f"the schema {quoted} cannot be used: GRANT USAGE ON SCHEMA {quoted} TO {user}")
            return
    for shape in shapes:
        yield from _target(connection, shape, user)


def _target(connection: psycopg.Connection[Any], shape: TableSchema, user: str) -> Iterator[str]:
    schema = sql.Identifier(shape.schema).as_string(None)
    if _one(connection, "SELECT pg_catalog.to_regclass(%s)", shape.label) is None:
        if not _one(connection, "SELECT pg_catalog.has_schema_privilege(%s, 'CREATE')", shape.schema):
            yield Denied(f"{shape.label} cannot be created: GRANT CREATE ON SCHEMA {schema} TO {user}")
        return
    yield from _rights(connection, shape.label, user)
    if shape.history:
        yield from _for_history(connection, shape, user)


def _for_history(connection: psycopg.Connection[Any], shape: TableSchema, user: str) -> Iterator[str]:
    """What a history needs besides: runs make its partitions."""
    for table in (history_of(shape), base_of(shape)):
        if _one(connection, "SELECT pg_catalog.to_regclass(%s)", table.label) is not None:
            yield from _rights(connection, table.label, user)
    if not _one(connection, "SELECT pg_catalog.has_schema_privilege(%s, 'CREATE')", shape.schema):
        schema = sql.Identifier(shape.schema).as_string(None)
        yield Denied(f"partitions of the history cannot be created: GRANT CREATE ON SCHEMA {schema} TO {user}")


def _rights(
    connection: psycopg.Connection[Any], table: str, user: str, needed: Sequence[str] = _NEEDED
) -> Iterator[str]:
    missing = [r for r in needed if not _one(connection, "SELECT pg_catalog.has_table_privilege(%s, %s)", table, r)]
    if missing:
        yield Denied(f"{table} cannot be used: GRANT {', '.join(missing)} ON {table} TO {user}")


def _one(connection: psycopg.Connection[Any], query: str, *parameters: object) -> object:
    row = connection.execute(query, parameters or None).fetchone()
    return None if row is None else row[0]
