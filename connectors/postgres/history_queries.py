"""What the history beside a table says: the changes of one item, and the documents as of a time."""

from __future__ import annotations

import base64
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import psycopg
from psycopg import sql

from connectors.postgres import catalog
from connectors.postgres.cleanup import FROM_TEXT, as_text
from connectors.postgres.history import allow_joins, kept_since, last_of
from connectors.postgres.history_note import base_of, keep_partitions, since
from connectors.postgres.table_schema import KeyColumn, TableSchema, history_of
from replicator.errors import ConfigError
from replicator.items.attributes import canonical_number
from replicator.key import KeyAttribute, KeySchema, key_text
from replicator.target.contract import OWN_IDS
from replicator.target.past import Change, Extent, Period, Size, State

_KINDS = {"text": "S", "numeric": "N", "bytea": "B"}
_OURS = {"_changed_at", "_sequence"}
_PIECE = 1000  # rows that are fetched at once

_KEYS = """
SELECT a.attname::text, pg_catalog.format_type(a.atttypid, a.atttypmod)
FROM pg_catalog.pg_index AS i CROSS JOIN LATERAL pg_catalog.unnest(i.indkey) WITH ORDINALITY AS k (number, place)
JOIN pg_catalog.pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = k.number
JOIN pg_catalog.pg_class AS c ON c.oid = i.indrelid JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
WHERE i.indisprimary AND n.nspname = %s AND c.relname = %s ORDER BY k.place"""

_SIZE = """
SELECT coalesce(sum(pg_catalog.pg_total_relation_size(t.oid)), 0)::bigint, count(*) FILTER (WHERE t.is_partition)
FROM (
  SELECT inhrelid AS oid, true AS is_partition FROM pg_catalog.pg_inherits WHERE inhparent = %(history)s
  UNION ALL SELECT %(base)s::oid, false
) AS t"""

_CHANGES = """
SELECT * FROM (
  SELECT {keys}, t._version, pg_catalog.date_part('epoch', t._changed_at)::float8 AS at, t._operation,
    t._old::text, t._new::text, t._problem, t._sequence
  FROM {history} AS t WHERE {matches}
    AND t._changed_at >= coalesce(pg_catalog.to_timestamp(%(since)s::float8), '-infinity'::timestamptz)
    AND t._changed_at <= coalesce(pg_catalog.to_timestamp(%(until)s::float8), 'infinity'::timestamptz)
  ORDER BY t._changed_at DESC, pg_catalog.length(t._sequence) DESC, t._sequence DESC, t._version DESC LIMIT %(limit)s
) AS newest ORDER BY at, pg_catalog.length(_sequence), _sequence, _version"""

# Between the beginning of an epoch and a document's first change since, the document was what that change says it was
# before: a scanned image is of some later time, and an earlier epoch may have missed changes. What later epochs have
# added says nothing here: they may have had another hook, and all changes up to then were read before they began.
_AS_OF = """
WITH known AS MATERIALIZED (
  SELECT * FROM {history} AS t WHERE {matches} AND t._version >> 48 < %(end)s::bigint
  UNION ALL SELECT * FROM {base} AS t WHERE {matches}
), before AS (
  SELECT * FROM known AS t WHERE t._changed_at <= pg_catalog.to_timestamp(%(at)s::float8)
), last AS ({last}
), next AS (
  SELECT DISTINCT ON ({names}) t.*, true AS there FROM known AS t
  WHERE t._changed_at > pg_catalog.to_timestamp(%(at)s::float8) AND t._sequence <> ''
  ORDER BY {names}, t._changed_at, pg_catalog.length(t._sequence), t._sequence
), ids AS (
  SELECT {names} FROM last AS t UNION SELECT {names} FROM next AS t
), state AS (
  SELECT {names}, CASE WHEN c.kept THEN l._new ELSE n._old END AS document,
    CASE WHEN c.kept THEN l._problem
      WHEN n._old IS NULL AND n._operation <> 'insert'
        THEN coalesce(l._problem, 'the document before its next change is not known')
      END AS problem,
    CASE WHEN c.kept THEN l._version END AS version
  FROM ids AS t LEFT JOIN last AS l ON {same} LEFT JOIN next AS n ON {same_as_next},
    LATERAL (SELECT n.there IS NULL OR coalesce(l._sequence <> '' AND l._version >> 48 >= %(first)s::bigint, false)
    ) AS c (kept)
)
SELECT {keys}, t.document::text, t.problem, t.version FROM state AS t
WHERE t.document IS NOT NULL OR t.problem IS NOT NULL ORDER BY {names}"""


def keys_of(connection: psycopg.Connection[Any], shape: TableSchema) -> tuple[KeyColumn, ...]:
    """The key of a history as it is in the database; empty if there is none."""
    history = history_of(shape)
    rows = connection.execute(_KEYS, (history.schema, history.name)).fetchall()
    return tuple(KeyColumn(name, _KINDS[type]) for name, type in rows if name not in _OURS and type in _KINDS)


def extent(connection: psycopg.Connection[Any], shape: TableSchema) -> Extent | None:
    """What the history contains; None if there is none."""
    table = catalog.found(connection, history_of(shape))
    return None if table is None else Extent(since(connection, table), kept_since(connection, shape))


def size(connection: psycopg.Connection[Any], shape: TableSchema) -> Size | None:
    """How much a history has; None if there is none."""
    tables = [catalog.found(connection, part) for part in (history_of(shape), base_of(shape))]
    if None in tables:
        return None
    history, base = (table.oid for table in tables if table is not None)
    row = connection.execute(_SIZE, {"history": history, "base": base}).fetchone()
    return None if row is None else Size(*row)


@dataclass(frozen=True, slots=True)
class Ids:
    """The documents that a key in JSON means: key columns and the values that each may have."""

    columns: Sequence[KeyColumn]
    values: Sequence[Sequence[str]]

    @property
    def matches(self) -> sql.Composable:
        """A condition on rows of ``t``."""
        if not self.columns:
            return sql.SQL("true")
        one = sql.SQL("t.{} = ANY ({}::{}[])")
        return sql.SQL(" AND ").join(
            one.format(sql.Identifier(c.name), sql.Literal(list(v)), sql.SQL(c.type))
            for c, v in zip(self.columns, self.values, strict=True)
        )


def ids(keys: Sequence[KeyColumn], text: str | None) -> Ids:
    """The documents of an item, whose key is given in JSON; None: all. ValueError says what is wrong with it."""
    if text is None:
        return Ids((), ())
    if tuple(k.name for k in keys) == OWN_IDS.names:
        return Ids(keys[:1], [_items(text)])
    schema = KeySchema(tuple(KeyAttribute(key.name, key.kind) for key in keys))
    return Ids(keys, [[_stored(key, part)] for key, part in zip(keys, schema.from_json(text), strict=True)])


def _stored(key: KeyColumn, text: str) -> str:
    return f"\\x{base64.b64decode(text).hex()}" if key.kind == "B" else text


def _items(text: str) -> list[str]:
    """The item's key as text, as it begins the ids of its documents: the order of two attributes is not known here."""
    try:
        given = json.loads(text, parse_float=Decimal, parse_int=Decimal)
    except ValueError as e:
        raise ValueError(f"invalid JSON: {e}") from e
    if not isinstance(given, dict) or not 1 <= len(given) <= 2:
        raise ValueError('a key is a JSON object with one or two attributes, such as {"pk": "order#1"}')
    if not all(isinstance(value, str | Decimal) for value in given.values()):
        raise ValueError("a key's values are texts in quotes, numbers, or binary in base64")
    texts = [canonical_number(str(v)) if isinstance(v, Decimal) else v for v in given.values()]
    return [key_text(tuple(order)) for order in itertools.permutations(texts)]


def changes(
    connection: psycopg.Connection[Any],
    shape: TableSchema,
    keys: Sequence[KeyColumn],
    chosen: Ids,
    period: Period,
) -> Iterator[Change]:
    """An item's changes, oldest first."""
    query = sql.SQL(_CHANGES).format(keys=_texts(keys), history=history_of(shape).qualified, matches=chosen.matches)
    given = {"since": period.since, "until": period.until, "limit": period.limit}
    for row in _pieces(connection, query, given):
        id, (version, at, operation, old, new, problem, sequence) = row[: len(keys)], row[len(keys) :]
        yield Change(_key(keys, id), version, _utc(at), operation, old, new, problem, sequence)


def as_of(
    connection: psycopg.Connection[Any],
    shape: TableSchema,
    keys: Sequence[KeyColumn],
    chosen: Ids,
    at: float,
    epochs: tuple[int, int],
) -> Iterator[State]:
    """The documents as of a time, by key. ``epochs``: see ``KeepsHistory``.

    ConfigError if changes up to that time have been removed meanwhile.
    """
    query = sql.SQL(_AS_OF).format(
        history=history_of(shape).qualified,
        base=base_of(shape).qualified,
        matches=chosen.matches,
        keys=_texts(keys),
        names=_columns(keys, "t"),
        last=last_of(sql.SQL("before"), [key.name for key in keys]),
        same=_same(keys, "l"),
        same_as_next=_same(keys, "n"),
    )
    given = {"at": at, "first": epochs[0], "end": epochs[1]}
    with connection.transaction():
        keep_partitions(connection, [shape])
        if (removed := kept_since(connection, shape)) is not None and at < removed:
            raise ConfigError(f"changes before {_utc(removed)} have just been removed (history: keep)")
        for row in _pieces(connection, query, given, joins=True):
            yield State(_key(keys, row[: len(keys)]), *row[len(keys) :])


def _pieces(
    connection: psycopg.Connection[Any], query: sql.Composed, given: Mapping[str, Any], *, joins: bool = False
) -> Iterator[tuple[Any, ...]]:
    """The rows of a query, some at a time, however long what is done with them takes: a pager may wait for a person."""
    with connection.transaction(), psycopg.ServerCursor(connection, "history") as cursor:
        connection.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
        if joins:
            allow_joins(connection)
        cursor.itersize = _PIECE
        yield from cursor.execute(query, given)


def _texts(keys: Sequence[KeyColumn]) -> sql.Composed:
    return sql.SQL(", ").join(as_text(key) for key in keys)


def _columns(keys: Sequence[KeyColumn], alias: str) -> sql.Composed:
    return sql.SQL(", ").join(sql.Identifier(alias, key.name) for key in keys)


def _same(keys: Sequence[KeyColumn], alias: str) -> sql.Composed:
    pairs = (sql.SQL("t.{0} = {1}.{0}").format(sql.Identifier(k.name), sql.SQL(alias)) for k in keys)
    return sql.SQL(" AND ").join(pairs)


def _key(keys: Sequence[KeyColumn], texts: Sequence[str]) -> Mapping[str, str]:
    return {key.name: FROM_TEXT[key.kind](text) for key, text in zip(keys, texts, strict=True)}


def _utc(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()
