"""What is noted on a history itself, and what shows that changes are missing from it.

The note is a comment on a column of ``NAME_history``: people comment on tables. It names the tables and partitions with
the changes so far, so that one that was dropped, detached, emptied, or restored from another time is noticed before
anything is added.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import psycopg
from psycopg import sql

from connectors.postgres import catalog
from connectors.postgres.options import BASE
from connectors.postgres.table_schema import DELETED, VERSION, TableSchema, history_of
from replicator.target.contract import SECOND
from replicator.version import FIRST_EPOCH, version

_PREFIX = "replicator: "
_NOTED = "_changed_at"  # the column with the note
_COMMENTS = """
SELECT pg_catalog.col_description(c.oid, a.attnum), pg_catalog.obj_description(c.oid, 'pg_class')
FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_attribute AS a ON a.attrelid = c.oid
WHERE c.oid = %s AND a.attname = %s"""
_CHECKPOINTS = """
SELECT c.oid FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname = 'replicator' AND c.relname = 'checkpoints'"""
_PARTITIONS = """
SELECT c.oid, n.nspname::text, c.relname::text, pg_catalog.date_part('epoch', b.bounds[1]::timestamptz)::float8,
  pg_catalog.date_part('epoch', b.bounds[2]::timestamptz)::float8
FROM pg_catalog.pg_inherits AS i JOIN pg_catalog.pg_class AS c ON c.oid = i.inhrelid
  JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace,
  LATERAL (SELECT pg_catalog.regexp_match(
    pg_catalog.pg_get_expr(c.relpartbound, c.oid), $$FROM \\('([^']+)'\\) TO \\('([^']+)'\\)$$) AS bounds) AS b
WHERE i.inhparent = %s AND b.bounds IS NOT NULL ORDER BY 4"""

_SAMPLED = 100  # documents that are looked up in the history
_UNKNOWN = """
SELECT count(*), count(*) FILTER (WHERE NOT d.known),
  count(*) FILTER (WHERE NOT d.known AND d._version & ((1::bigint << 48) - 1) > 0)
FROM (
  SELECT o._version, EXISTS (SELECT FROM {history} AS h WHERE {in_history})
    OR EXISTS (SELECT FROM {base} AS b WHERE {in_base}) AS known
  FROM (SELECT * FROM {table} AS t WHERE t.{version} >= {since}{unmarked} LIMIT {most}) AS o
) AS d"""

_AGAIN = "To begin the history again with a scan of the source: replicator resync CONFIG"


@dataclass(frozen=True, slots=True)
class Partition:
    """One partition: its oid, schema and name, and its times in seconds since 1970, from ``first`` to before ``last``.

    Its schema may differ from that of the history: people may have moved it.
    """

    oid: int
    schema: str
    name: str
    first: float
    last: float


@dataclass(frozen=True, slots=True)
class Note:
    """``since``: the epoch from which on no change is missing. ``tables``: the oids of the history and of its base.

    ``within``: that of the table of checkpoints. A restored database has other oids for all of them.
    """

    since: int
    tables: tuple[int, int]
    within: int
    partitions: Mapping[int, tuple[float, float]]


def base_of(shape: TableSchema) -> TableSchema:
    """The table with the states from before the retained time."""
    history = history_of(shape)
    return TableSchema(history.name + BASE, history.schema, shape.keys, ())


def tables_of(shape: TableSchema) -> tuple[TableSchema, ...]:
    """The tables of its history, if it keeps one."""
    return (history_of(shape), base_of(shape)) if shape.history else ()


def partitions(connection: psycopg.Connection[Any], shape: TableSchema) -> list[Partition]:
    """All partitions, by time."""
    table = catalog.found(connection, history_of(shape))
    return [] if table is None else [Partition(*row) for row in connection.execute(_PARTITIONS, (table.oid,))]


def noted(connection: psycopg.Connection[Any], table: catalog.Found) -> Note | None:
    """The note on a history; None if it has none, such as in a copy of it. Before, it was on the table itself."""
    row = connection.execute(_COMMENTS, (table.oid, _NOTED)).fetchone() or (None, None)
    return next((found for text in row if (found := _read(text)) is not None), None)


def _read(text: str | None) -> Note | None:
    """The note in a comment; None if it is something else."""
    try:
        found = json.loads((text or "").removeprefix(_PREFIX))
        parts = {int(oid): (float(first), float(last)) for oid, (first, last) in found["partitions"].items()}
        return Note(int(found["since"]), (int(found["table"]), int(found["base"])), int(found["within"]), parts)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def latest_epoch(connection: psycopg.Connection[Any], shape: TableSchema, pipeline: str) -> int:
    """The latest epoch in which ``pipeline`` has opened the history; 0 if there is none of it."""
    table = catalog.found(connection, history_of(shape))
    if table is None or table.pipeline not in (None, pipeline, pipeline.removesuffix(SECOND)):
        return 0
    return catalog.epoch(connection, history_of(shape), table)


def since(connection: psycopg.Connection[Any], table: catalog.Found) -> int:
    """The epoch from which on the history is whole."""
    note = noted(connection, table)
    return table.epoch if note is None else note.since


def note(
    connection: psycopg.Connection[Any], shape: TableSchema, since: int, partitions: Mapping[int, tuple[float, float]]
) -> None:
    """Note what the history consists of."""
    history, base = catalog.found(connection, history_of(shape)), catalog.found(connection, base_of(shape))
    assert history is not None
    assert base is not None
    text = json.dumps(
        {
            "since": since,
            "table": history.oid,
            "base": base.oid,
            "within": _within(connection),
            "partitions": {str(oid): list(times) for oid, times in sorted(partitions.items())},
        }
    )
    name, column = history_of(shape).qualified, sql.Identifier(_NOTED)
    statement = sql.SQL("COMMENT ON COLUMN {}.{} IS {}")
    connection.execute(statement.format(name, column, sql.Literal(_PREFIX + text)))
    row = connection.execute(_COMMENTS, (history.oid, _NOTED)).fetchone()
    if row is not None and _read(row[1]) is not None:  # an earlier note, in the place of people's comments
        connection.execute(sql.SQL("COMMENT ON TABLE {} IS NULL").format(name))


def note_partitions(
    connection: psycopg.Connection[Any], shape: TableSchema, there: Sequence[Partition], removed: Sequence[int] = ()
) -> None:
    """Note partitions that were added, and forget ``removed`` ones. One that is gone otherwise stays in the note."""
    table = catalog.found(connection, history_of(shape))
    assert table is not None
    before = noted(connection, table)
    known = {} if before is None else before.partitions
    restored = before is not None and before.within != _within(connection)
    if restored and not _gone(before, there, same=False):  # the oids are those of another database
        known = {}
    parts = {oid: times for oid, times in known.items() if oid not in removed}
    parts |= {one.oid: (one.first, one.last) for one in there}
    if before is None or restored or parts != before.partitions:
        note(connection, shape, table.epoch if before is None else before.since, parts)


def keep_partitions(connection: psycopg.Connection[Any], shapes: Iterable[TableSchema]) -> None:
    """Keep retention from removing partitions until the transaction ends. Takes no snapshot.

    The server knows the partitions of now, also where a snapshot shows the note and the base of before.
    """
    for shape in shapes:
        if shape.history:
            # A history that is not there, or is something else, has no partitions: what reads it tells.
            with contextlib.suppress(psycopg.ProgrammingError), connection.transaction():
                name = history_of(shape).qualified
                connection.execute(sql.SQL("LOCK TABLE ONLY {} IN ACCESS SHARE MODE").format(name))


def losses(connection: psycopg.Connection[Any], shape: TableSchema, *, scanned: bool) -> Iterator[str]:
    """Why a table's history does not have all changes since it began, a sentence each.

    ``scanned``: whether the table began with a scan, so that it is known where each of its documents comes from.
    """
    history, base = catalog.found(connection, history_of(shape)), catalog.found(connection, base_of(shape))
    table = catalog.found(connection, shape)
    if history is None:
        yield gone(shape)
    elif base is None:
        yield f"{base_of(shape).label} is gone, and with it what documents were before the first partition. {_AGAIN}"
    else:
        yield from _replaced(connection, shape, history, base, 0 if table is None else table.epoch)
        if table is not None and (text := _emptied(connection, shape, table, since(connection, history), scanned)):
            yield text


def gone(shape: TableSchema) -> str:
    """That a history was removed during its epoch: later changes alone do not tell what the table contained."""
    return (
        f"{history_of(shape).label} is gone, and with it the changes of {shape.label} so far. To begin a new history "
        "with a scan of the source: replicator resync CONFIG"
    )


def _replaced(
    connection: psycopg.Connection[Any], shape: TableSchema, history: catalog.Found, base: catalog.Found, epoch: int
) -> Iterator[str]:
    """Tables and partitions that are not those of the note."""
    note, label = noted(connection, history), history_of(shape).label
    if note is None:
        return
    same = note.within == _within(connection)
    if history.epoch < epoch or (same and note.tables != (history.oid, base.oid)):
        yield (
            f"{label} is not the table that the last run wrote to: it was recreated, replaced by a copy, or restored "
            f"from a backup of another time. {_AGAIN}"
        )
        return
    for first, last in _gone(note, partitions(connection, shape), same=same):
        yield (
            f"the partition of {label} with the changes from {_day(first)} to {_day(last)} is gone. Attach it again: "
            f"ALTER TABLE {label} ATTACH PARTITION … FOR VALUES FROM ('{_day(first)}') TO ('{_day(last)}'). Without "
            f"it: replicator resync CONFIG, from which on the history tells the state at a time"
        )


def _gone(note: Note | None, there: Sequence[Partition], *, same: bool) -> list[tuple[float, float]]:
    """The times of noted partitions that are not there. ``same``: whether oids are those of the same database."""
    if note is None:
        return []
    if same:
        oids = {one.oid for one in there}
        return sorted(times for oid, times in note.partitions.items() if oid not in oids)
    times_there = {(one.first, one.last) for one in there}
    return sorted(times for times in note.partitions.values() if times not in times_there)


def _emptied(
    connection: psycopg.Connection[Any], shape: TableSchema, table: catalog.Found, since: int, scanned: bool
) -> str | None:
    """That rows were removed from the history: it and the table commit together, so every document is in both."""
    if since < FIRST_EPOCH:  # not known
        return None
    statement = sql.SQL(_UNKNOWN).format(
        history=history_of(shape).qualified,
        base=base_of(shape).qualified,
        table=shape.qualified,
        version=sql.Identifier(VERSION),
        in_history=_same(table, "h"),
        in_base=_same(table, "b"),
        since=sql.Literal(version(since, 0)),
        unmarked=sql.SQL(" AND t.{} IS NULL").format(sql.Identifier(DELETED)) if shape.marks else sql.SQL(""),
        most=sql.Literal(_SAMPLED),
    )
    row = connection.execute(statement).fetchone()
    sampled, unknown, streamed = row or (0, 0, 0)
    if streamed == 0 and not (scanned and sampled and unknown == sampled):
        return None
    return (
        f"{history_of(shape).label} lacks changes of documents that {shape.label} has: it was truncated, or rows were "
        f"removed from it. {_AGAIN}"
    )


def _same(table: catalog.Found, alias: str) -> sql.Composed:
    pairs = (sql.SQL("{0}.{1} = o.{1}").format(sql.SQL(alias), sql.Identifier(name)) for name in sorted(table.primary))
    return sql.SQL(" AND ").join(pairs)


def _within(connection: psycopg.Connection[Any]) -> int:
    row = connection.execute(_CHECKPOINTS).fetchone()
    return 0 if row is None else int(row[0])


def _day(time: float) -> str:
    return datetime.fromtimestamp(time, UTC).strftime("%Y-%m-%dT%H:%M:%SZ").replace("T00:00:00Z", "")
