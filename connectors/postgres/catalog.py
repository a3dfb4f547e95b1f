"""Tables as they exist in the database, how they differ from the config, and DDL for absent ones."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, LiteralString

import psycopg
from psycopg import sql

from connectors.postgres.table_schema import DELETED, VERSION, BodyColumn, TableSchema
from replicator.identity import Change, Identity, Parts
from replicator.target.contract import SECOND
from replicator.version import FIRST_EPOCH, epoch_of

_MARKS = "replicator: when the row's item was deleted; NULL while there is one"
_NOTE = re.compile(r"replicator: pipeline (.*), epoch (\d+)", re.DOTALL)

_TABLE = """
SELECT c.oid, c.relkind::text, pg_catalog.pg_get_userbyid(c.relowner)::text, current_user::text,
       pg_catalog.pg_has_role(c.relowner, 'USAGE')
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = %s AND c.relname = %s"""
_COLUMNS = """
SELECT a.attname, pg_catalog.format_type(a.atttypid, a.atttypmod), a.attnotnull, a.atthasdef OR a.attidentity <> '',
       a.attgenerated <> '' OR a.attidentity = 'a', coalesce(o.collisdeterministic, true),
       pg_catalog.col_description(a.attrelid, a.attnum), a.attnum
FROM pg_catalog.pg_attribute a LEFT JOIN pg_catalog.pg_collation o ON o.oid = a.attcollation
WHERE a.attrelid = %s AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum"""
_PRIMARY = """
SELECT a.attname FROM pg_catalog.pg_index i
JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey)
WHERE i.indrelid = %s AND i.indisprimary AND i.indimmediate"""
_PLACEHOLDERS: Mapping[str, LiteralString] = {
    "text": "''",
    "numeric": "0",
    "bigint": "0",
    "boolean": "false",
    "timestamptz": "'epoch'",
    "bytea": "''",
    "jsonb": "'null'",
    "text[]": "'{}'",
    "numeric[]": "'{}'",
}
_TYPES = {"timestamptz": "timestamp with time zone"}
_RELATIONS = {"v": "a view", "m": "a materialized view", "f": "a foreign table", "i": "an index", "S": "a sequence"}


@dataclass(frozen=True, slots=True)
class Existing:
    """A column in the database. ``number``: a column that is dropped and added again gets another one."""

    name: str
    type: str
    not_null: bool
    has_default: bool
    generated: bool
    deterministic: bool
    comment: str | None
    number: int


@dataclass(frozen=True, slots=True)
class Found:
    """A relation in the database."""

    oid: int
    kind: str
    columns: Mapping[str, Existing]
    primary: frozenset[str]
    owner: str
    user: str
    ours: bool  # whether the user is a member of the owner's role

    @property
    def epoch(self) -> int:
        """The latest epoch noted on the table, 0 without a note."""
        noted = self._note
        return int(noted[2]) if noted else 0

    @property
    def pipeline(self) -> str | None:
        """The pipeline noted on the table, None without a note."""
        noted = self._note
        return noted[1] if noted else None

    @property
    def has_versions(self) -> bool:
        """Whether it is a table with our version column."""
        version = self.columns.get(VERSION)
        return self.kind in ("r", "p") and version is not None and version.type == "bigint"

    @property
    def marks(self) -> bool:
        """Whether a pipeline has marked deleted rows in it."""
        deleted = self.columns.get(DELETED)
        return deleted is not None and deleted.comment == _MARKS

    @property
    def lacks_versions(self) -> bool:
        """Whether it is a table without our version column: something else created it."""
        return self.kind in ("r", "p") and VERSION not in self.columns

    @property
    def _note(self) -> re.Match[str] | None:
        version = self.columns.get(VERSION)
        return _NOTE.fullmatch(version.comment or "") if version is not None else None


def found(connection: psycopg.Connection[Any], shape: TableSchema) -> Found | None:
    """The table, None if it is absent."""
    row = connection.execute(_TABLE, (shape.schema, shape.name)).fetchone()
    if row is None:
        return None
    columns = [Existing(*c) for c in connection.execute(_COLUMNS, (row[0],))]
    primary = frozenset(name for (name,) in connection.execute(_PRIMARY, (row[0],)))
    return Found(row[0], row[1], {c.name: c for c in columns}, primary, *row[2:])


def epoch(connection: psycopg.Connection[Any], shape: TableSchema, table: Found) -> int:
    """The latest epoch that wrote to the table: from its note, else from the versions of all its rows.

    A copy of a table (CREATE TABLE AS, logical replication, pg_dump --no-comments) has versions but no note. Versions
    below the first epoch's belong to other tools, and are overwritten.
    """
    if table.epoch or not table.has_versions:
        return table.epoch
    query = sql.SQL("SELECT max({}) FROM {}").format(sql.Identifier(VERSION), shape.qualified)
    row = connection.execute(query).fetchone()
    newest = epoch_of(row[0]) if row is not None and row[0] is not None else 0
    return newest if newest >= FIRST_EPOCH else 0


def filled(connection: psycopg.Connection[Any], shape: TableSchema) -> bool:
    """Whether the table has any row."""
    row = connection.execute(sql.SQL("SELECT EXISTS (SELECT FROM {})").format(shape.qualified)).fetchone()
    return row is not None and bool(row[0])


def is_new(connection: psycopg.Connection[Any], shape: TableSchema, table: Found) -> bool:
    """Whether no pipeline has written to the table."""
    return table.pipeline is None and table.has_versions and not filled(connection, shape)


def adopts(connection: psycopg.Connection[Any], shape: TableSchema, table: Found) -> bool:
    """Whether rows that something else wrote are taken over: no pipeline is noted on the table."""
    if not shape.adopt or table.pipeline is not None:
        return False
    if table.lacks_versions:
        return True
    return table.has_versions and epoch(connection, shape, table) == 0 and filled(connection, shape)


def lacks_marks(shape: TableSchema, table: Found) -> bool:
    """Whether ``open`` adds the time of deletion: to a table that is adopted."""
    return shape.marks and shape.adopt and table.pipeline is None and DELETED not in table.columns


def taken(shape: TableSchema, table: Found, pipeline: str) -> Iterator[str]:
    """That the table belongs to another pipeline: a sweep of either would remove the other's rows."""
    if table.pipeline == pipeline + SECOND:
        yield (
            f"{shape.label} is written by the pipeline {table.pipeline}: a rebuild has switched to its new copy, and "
            "this config is that of the old one, or of the new one without replaces: (put that back until rebuild "
            "finish). Run the config that replaces it, for both copies; to go back: replicator rebuild rollback "
            "NEW_CONFIG"
        )
    elif table.pipeline not in (None, pipeline):
        hand_over = comment(shape, pipeline, table.epoch).as_string(None)
        yield (
            f"{shape.label} is written by the pipeline {table.pipeline}; two copies in one table would overwrite each "
            "other. If this config belongs to that pipeline, correct its pipeline: key; if not, name another table; or "
            f"if that pipeline no longer exists: {hand_over}; then: replicator resync CONFIG --now"
        )


def foreign(shape: TableSchema, table: Found) -> Iterator[str]:
    """That the table belongs to another role: its triggers would run with our rights, and we could note no epoch."""
    if not table.ours:
        yield (
            f"{shape.label} belongs to the role {table.owner}, whose triggers would run as {table.user}, and only its "
            f"owner may note the epoch. If you trust what is in it: {_hand_over(shape, table.user)}"
        )


def _hand_over(shape: TableSchema, user: str) -> str:
    return sql.SQL("ALTER TABLE {} OWNER TO {}").format(shape.qualified, sql.Identifier(user)).as_string(None)


def mismatches(shape: TableSchema, table: Found) -> Iterator[str]:
    """Every difference between an existing table and the config, a sentence each."""
    if table.kind not in ("r", "p"):
        yield f"{shape.label} is {_RELATIONS.get(table.kind, 'not a table')}; replicator writes only to tables"
        return
    wanted = {name: (type, not_null) for name, type, not_null in _wanted(shape)}
    if table.lacks_versions:
        del wanted[VERSION]
        if not shape.adopt:
            yield (
                f"{shape.label}: there is no column {VERSION}, so something else created the table. Name another one; "
                "or set adopt: true under the table to turn it into a copy of the source, which replaces its rows and "
                "removes those that no item has"
            )
    if lacks_marks(shape, table):
        del wanted[DELETED]
    yield from _left_marks(shape, table)
    yield from column_differences(shape, table, wanted, refills=table.pipeline is not None)
    keys = [key.name for key in shape.keys]
    if table.primary != frozenset(keys):
        there = ", ".join(sorted(table.primary)) or "none (or a deferrable one)"
        yield f"{shape.label}: the primary key must be ({', '.join(keys)}), but it is {there}"
    yield from required_columns(shape, table, wanted)


def column_differences(
    shape: TableSchema, table: Found, wanted: Mapping[str, tuple[str, bool]], *, refills: bool = False
) -> Iterator[str]:
    """Columns that are not as they must be. ``wanted``: the type of each, and whether it is NOT NULL. ``refills``:
    whether the table has rows, in which a resync fills a column that is made anew.
    """
    filled = _filled(shape) if refills else ()
    for name, (type, not_null) in wanted.items():
        column = table.columns.get(name)
        remedy = _remedy(shape, name, type, not_null, column) if name in filled else ""
        yield from (f"{shape.label}: {text}" for text in _differences(name, type, not_null, column, remedy))


def required_columns(shape: TableSchema, table: Found, wanted: Mapping[str, tuple[str, bool]]) -> Iterator[str]:
    """Columns beside those ``wanted`` without which no row can be added."""
    for column in table.columns.values():
        if column.name not in wanted and column.not_null and not (column.has_default or column.generated):
            yield f"{shape.label}: column {column.name} is not in the config, but NOT NULL without a default"


def _wanted(shape: TableSchema) -> Iterator[tuple[str, str, bool]]:
    yield from ((key.name, key.type, True) for key in shape.keys)
    yield from ((c.name, c.type, not c.nullable) for c in shape.columns)
    yield VERSION, "bigint", True
    if shape.marks:
        yield DELETED, "timestamptz", False


def _left_marks(shape: TableSchema, table: Found) -> Iterator[str]:
    """That rows are marked in a table in which they are no longer: readers would take them for live ones."""
    if not shape.marks and table.marks:
        names = {"table": shape.qualified, "column": sql.Identifier(DELETED)}
        fix = sql.SQL("DELETE FROM {table} WHERE {column} IS NOT NULL; ALTER TABLE {table} DROP COLUMN {column}")
        yield (
            f"{shape.label} was written with deletes: mark, and its column {DELETED} tells which rows are deleted. Set "
            f"deletes: mark again; or remove those rows and the column: {fix.format(**names).as_string(None)}; then: "
            "replicator resync CONFIG"
        )


def _remedy(shape: TableSchema, name: str, type: str, not_null: bool, column: Existing | None) -> str:
    """The statement that brings a column of a table with rows to its type, the command that fills it, and what to do
    afterwards or instead. In parentheses, except for that.

    The default that the rows need stays until the resync is done: a run that knows no such column may still add rows.
    """
    value = sql.SQL(" NOT NULL DEFAULT {}").format(sql.SQL(_PLACEHOLDERS[type])) if not_null else sql.SQL("")
    names = {"table": shape.qualified, "column": sql.Identifier(name), "type": _type(type), "value": value}
    statement: LiteralString = "ALTER TABLE {table} ADD COLUMN {column} {type}{value}"
    after: LiteralString = ". Once it is filled: ALTER TABLE {table} ALTER COLUMN {column} DROP DEFAULT"
    if column is not None:
        statement = "ALTER TABLE {table} ALTER COLUMN {column} TYPE {type} USING {column}::{type}"
        after = (
            ". If the database cannot convert its values, replace the column before the resync: "
            "ALTER TABLE {table} DROP COLUMN {column}, ADD COLUMN {column} {type}{value}"
        ) + (after if not_null else "")
    elif not not_null:
        after = ""
    first, second = (sql.SQL(text).format(**names).as_string(None) for text in (statement, after))
    return f"({first}; then, to fill it: replicator resync CONFIG){second}"


def _differences(name: str, type: str, not_null: bool, column: Existing | None, remedy: str) -> Iterator[str]:
    if column is None:
        yield f"column {name} is missing {remedy or f'(ADD COLUMN {name} {type}' + (' NOT NULL)' if not_null else ')')}"
        return
    if column.type != _TYPES.get(type, type):
        yield f"column {name} must be {type}, but is {column.type}{f' {remedy}' if remedy else ''}"
    if column.not_null != not_null:
        yield f"column {name} must be {_nullness(not_null)}, but is {_nullness(column.not_null)}"
    if column.generated:
        yield f"column {name} is generated by the database, so it cannot be written"
    if not column.deterministic:
        yield f"column {name} has a nondeterministic collation, under which different keys are equal"


def _nullness(not_null: bool) -> str:
    return "NOT NULL" if not_null else "nullable"


def create_table(shape: TableSchema) -> sql.Composed:
    """The CREATE TABLE statement, formatted for reading."""
    lines = [sql.SQL("  {} {} NOT NULL").format(sql.Identifier(key.name), key_type(key.type)) for key in shape.keys]
    for column in shape.columns:
        null = sql.SQL("" if column.nullable else " NOT NULL")
        lines.append(sql.SQL("  {} {}{}").format(sql.Identifier(column.name), _type(column.type), null))
    lines.append(sql.SQL("  {} bigint NOT NULL").format(sql.Identifier(VERSION)))
    keys = sql.SQL(", ").join(sql.Identifier(key.name) for key in shape.keys)
    if shape.marks:
        lines.append(sql.SQL("  {} timestamptz").format(sql.Identifier(DELETED)))
    lines.append(sql.SQL("  PRIMARY KEY ({})").format(keys))
    return sql.SQL("CREATE TABLE {} (\n{}\n)").format(shape.qualified, sql.SQL(",\n").join(lines))


def add_version(shape: TableSchema) -> sql.Composed:
    """The statement that adopts a table. Its rows get a version below every epoch, without being rewritten."""
    return sql.SQL("ALTER TABLE {} ADD COLUMN {} bigint NOT NULL DEFAULT 0").format(
        shape.qualified, sql.Identifier(VERSION)
    )


def add_marks(shape: TableSchema) -> sql.Composed:
    """The statement that adds the time of deletion; every existing row is a live one."""
    return sql.SQL("ALTER TABLE {} ADD COLUMN IF NOT EXISTS {} timestamptz").format(
        shape.qualified, sql.Identifier(DELETED)
    )


def comment_on_marks(shape: TableSchema) -> sql.Composed:
    return sql.SQL("COMMENT ON COLUMN {}.{} IS {}").format(
        shape.qualified, sql.Identifier(DELETED), sql.Literal(_MARKS)
    )


def add_column(shape: TableSchema, column: BodyColumn) -> sql.Composed:
    """The statement that adds a column to an existing table, unless it has that column already."""
    return sql.SQL("ALTER TABLE {} ADD COLUMN IF NOT EXISTS {} {}").format(
        shape.qualified, sql.Identifier(column.name), _type(column.type)
    )


def _type(name: str) -> sql.SQL:
    return sql.SQL(name)


def key_type(name: str) -> sql.SQL:
    return sql.SQL('text COLLATE "C"' if name == "text" else name)


def comment(shape: TableSchema, pipeline: str, epoch: int) -> sql.Composed:
    """The statement that notes pipeline and epoch on the table itself, where the note outlives the checkpoints."""
    text = sql.Literal(f"replicator: pipeline {pipeline}, epoch {epoch}")
    return sql.SQL("COMMENT ON COLUMN {}.{} IS {}").format(shape.qualified, sql.Identifier(VERSION), text)


def absent(found: Sequence[Found | None]) -> bool:
    return any(table is None for table in found)


_COLUMN = "columns."  # prefix of the parts that are columns
_DELETES = "deletes"
HISTORY = "history"

_GIVER = """
SELECT c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = 'replicator' AND c.relname = 'checkpoints'"""


def identities(connection: psycopg.Connection[Any], shapes: Mapping[str, TableSchema]) -> Mapping[str, Identity]:
    """Each table's oid, which changes when a table is re-created, and the numbers of its columns.

    Restoring a database from a dump changes all oids; the oid of our own table, restored with it, tells these cases
    apart.
    """
    row = connection.execute(_GIVER).fetchone()
    within = "" if row is None else str(row[0])
    there = {name: found(connection, shape) for name, shape in shapes.items()}
    ids = {name: "" if table is None else str(table.oid) for name, table in there.items()}
    return {
        name: Identity(shape.label, ids[name], within, columns=column_numbers(shape, there[name]))
        for name, shape in shapes.items()
    }


def column_numbers(shape: TableSchema, table: Found | None) -> Mapping[str, int]:
    """The numbers of the columns that a scan fills, by name."""
    if table is None:
        return {}
    return {name: table.columns[name].number for name in _filled(shape) if name in table.columns}


def _filled(shape: TableSchema) -> list[str]:
    """The columns that only a scan fills again."""
    return [*(column.name for column in shape.columns), *([DELETED] if shape.marks else [])]


def parts(shape: TableSchema) -> Parts:
    """Each column with its type and its origin.

    Not ``nul`` and ``extra``: they decide which items are parked from now on, and what is stored stays right.
    """
    deletes = {_DELETES: "mark"} if shape.marks else {}
    history = {HISTORY: "kept"} if shape.history else {}
    return {**{_part(column): _column(column) for column in shape.columns}, **deletes, **history}


def _column(column: BodyColumn) -> str:
    return f"{column.type} {'' if column.nullable else 'not null '}{_origin(column)}"


def _origin(column: BodyColumn) -> str:
    if column.attribute is None:
        return "the whole document"
    if not column.inside:
        return f"from {column.attribute}"
    return f"from inside {json.dumps([column.attribute, *column.inside])}"


def additions(shapes: Mapping[str, TableSchema], changes: Sequence[Change]) -> list[sql.Composed] | None:
    """The statements for added columns; None if another change is among them, or a column is NOT NULL.

    A history begins with a scan, which says what the table contains then.
    """
    added = {(change.table, change.part) for change in changes}
    if any(change.part == HISTORY for change in changes):
        return None
    columns = [(s, c) for name, s in shapes.items() for c in s.columns if (name, _part(c)) in added]
    marking = [s for name, s in shapes.items() if s.marks and (name, _DELETES) in added]
    if len(columns) + len(marking) < len(changes) or not all(column.nullable for _, column in columns):
        return None
    return [*(add_column(shape, column) for shape, column in columns), *map(add_marks, marking)]


def _part(column: BodyColumn) -> str:
    return f"{_COLUMN}{column.name}"
