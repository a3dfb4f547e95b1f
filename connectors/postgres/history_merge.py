"""How the history of a new copy continues that of the old one, when a rebuild ends.

While both copies are kept, each has a history of its own: of the same changes, with the documents of its own hook. The
old one has what was before; from a time on, the new one tells the states. What it has moves to the old one's tables, as
if their pipeline had begun an epoch then, with a scan, under the new hook.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import psycopg
from psycopg import sql

from connectors.postgres import catalog
from connectors.postgres.history import (
    DAY,
    add_partitions,
    allow_joins,
    continuation_problems,
    kept_since,
    last_of,
    missing_tables,
    note_kept_since,
    sweep,
)
from connectors.postgres.history_note import base_of, note, noted, partitions, since
from connectors.postgres.history_queries import keys_of
from connectors.postgres.table_schema import TableSchema, history_of
from replicator.errors import ConfigError
from replicator.target.contract import Continued
from replicator.version import version

Connection = psycopg.Connection[Any]

_LOCK = "LOCK TABLE {history}, {base}, {new}, {new_base} IN SHARE ROW EXCLUSIVE MODE"
_DAYS = """
SELECT DISTINCT pg_catalog.floor(pg_catalog.date_part('epoch', _changed_at) / {day}) * {day}
FROM (SELECT _changed_at FROM {new} UNION ALL SELECT _changed_at FROM {new_base}) AS t"""

# Shards that were closed when the new copy listed them were never read for it: what is near the beginning of its scan
# may be in the old copy's history alone.
_OUT = """
DELETE FROM {table} AS h WHERE _changed_at >= pg_catalog.to_timestamp({since}) AND (
  _changed_at >= pg_catalog.to_timestamp({began})
  OR EXISTS (SELECT FROM {new} AS t WHERE {same} AND h._changed_at = t._changed_at AND h._sequence = t._sequence)
  OR EXISTS (SELECT FROM {new_base} AS t WHERE {same} AND h._changed_at = t._changed_at AND h._sequence = t._sequence)
)"""

# Epochs that the new copy had before the one that counts may have the numbers of the old one's. Their scans tell
# nothing any more; a scan of the one that counts stays newer than their changes. Retention may have moved a record that
# both have to the old one's base.
_MOVE = """
INSERT INTO {history} ({keys}, _changed_at, _sequence, _version, _operation, _old, _new, _problem)
SELECT {keys}, _changed_at, _sequence,
  CASE WHEN _sequence = '' AND _problem IS NULL THEN _version + {rescans} ELSE greatest(_version, {first}) END,
  _operation, _old, _new, _problem
FROM (SELECT * FROM {new} UNION ALL SELECT * FROM {new_base}) AS t WHERE (_sequence <> '' OR _version >= {first})
  AND NOT EXISTS (
    SELECT FROM {base} AS h WHERE {same} AND h._changed_at = t._changed_at AND h._sequence = t._sequence)
ON CONFLICT DO NOTHING"""

# A record from before, which both have, keeps the document of the old hook, and so does one that only the old history
# has. The state from then on has the new one's: where the rows before do not end with it, it is added.
_BEGIN = """
WITH known AS (SELECT * FROM {new} UNION ALL SELECT * FROM {new_base}),
earlier AS (SELECT * FROM known WHERE _changed_at < pg_catalog.to_timestamp({began})),
of_both AS (SELECT * FROM {history} UNION ALL SELECT * FROM {base}),
before AS (SELECT * FROM of_both WHERE _changed_at < pg_catalog.to_timestamp({began})),
last AS ({last_of_new}), last_of_both AS ({last_of_both})
INSERT INTO {history} ({keys}, _changed_at, _sequence, _version, _operation, _new, _problem)
SELECT {keys}, pg_catalog.to_timestamp({began}), '', {first} + 2,
  CASE WHEN t._new IS NULL AND t._problem IS NULL THEN 'remove' ELSE 'scan' END, t._new, t._problem
FROM last AS t WHERE NOT EXISTS (
  SELECT FROM last_of_both AS h WHERE {same}
    AND h._new IS NOT DISTINCT FROM t._new AND h._problem IS NOT DISTINCT FROM t._problem)
ON CONFLICT DO NOTHING"""


def discard(connection: Connection, shape: TableSchema, pipeline: str) -> None:
    """Drop a history that ``pipeline`` has written, as its note says."""
    table = catalog.found(connection, history_of(shape))
    if table is not None and table.pipeline == pipeline:
        for each in (history_of(shape), base_of(shape)):
            connection.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(each.qualified))


def continue_with(connection: Connection, table: TableSchema, new: TableSchema, pipeline: str, how: Continued) -> None:
    """Move the history of ``new`` to that of ``table``, of ``pipeline``, which goes on with it. In a transaction.

    ConfigError if the old one is something else, or has epochs that are not before those of the new one.
    """
    keys = keys_of(connection, new)
    table, new = replace(table, keys=keys), replace(new, keys=keys)
    source, there = catalog.found(connection, history_of(new)), catalog.found(connection, history_of(table))
    if source is None:
        return
    if problems := list(continuation_problems(connection, new, pipeline)):
        raise ConfigError(*problems)
    if there is not None and there.epoch >= how.epoch:
        raise ConfigError(
            f"the history of {table.label} has the epoch {there.epoch}: the old copy was scanned again after the new "
            "one was begun. So that its history comes after that one: replicator resync CONFIG; then finish again"
        )
    first = since(connection, source if there is None else there)
    for statement in missing_tables(connection, table):
        connection.execute(statement)
    _take(connection, table, new, how)
    connection.execute(catalog.comment(history_of(table), pipeline, source.epoch))
    noted_before = None if there is None else noted(connection, there)
    known = {} if noted_before is None else noted_before.partitions
    known = {**known, **{one.oid: (one.first, one.last) for one in partitions(connection, table)}}
    note(connection, table, first, known)
    allow_joins(connection)
    sweep(connection, table, version(how.epoch, 0), how.began, sql.SQL(""))
    for each in (history_of(new), base_of(new)):
        connection.execute(sql.SQL("DROP TABLE {}").format(each.qualified))


def _take(connection: Connection, table: TableSchema, new: TableSchema, how: Continued) -> None:
    keys = [key.name for key in table.keys]
    names: dict[str, sql.Composable] = {
        "history": history_of(table).qualified,
        "base": base_of(table).qualified,
        "new": history_of(new).qualified,
        "new_base": base_of(new).qualified,
        "day": sql.Literal(DAY),
        "since": sql.Literal(how.since),
        "began": sql.Literal(how.began),
        "keys": sql.SQL(", ").join(map(sql.Identifier, keys)),
        "first": sql.Literal(version(how.epoch, 0)),
        "rescans": sql.Literal(int(how.rescanned)),
        "last_of_new": last_of(sql.SQL("earlier"), keys),
        "last_of_both": last_of(sql.SQL("before"), keys),
        "same": sql.SQL(" AND ").join(sql.SQL("h.{0} = t.{0}").format(sql.Identifier(key)) for key in keys),
    }
    allow_joins(connection)
    connection.execute(sql.SQL(_LOCK).format(**names))
    days = [float(day) for (day,) in connection.execute(sql.SQL(_DAYS).format(**names))]
    for each in (history_of(table), base_of(table)):
        connection.execute(sql.SQL(_OUT).format(table=each.qualified, **names))
    add_partitions(connection, table, [*days, how.began])
    for statement in (_MOVE, _BEGIN):
        connection.execute(sql.SQL(statement).format(**names))
    removed = [at for at in (kept_since(connection, table), kept_since(connection, new)) if at is not None]
    if removed:
        note_kept_since(connection, table, max(removed))
