"""Compares rows with expected documents inside the server, by value, and repairs them by compare-and-set.

The expected values go through the same encoding and casts as in an upsert, and the server compares them as values of
the column's type. Texts are compared byte by byte, whatever the column's collation.
"""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
import psycopg
from psycopg import sql

from connectors.postgres import generations, history
from connectors.postgres.cells import binary
from connectors.postgres.cleanup import FROM_TEXT, as_text, live
from connectors.postgres.encode import Row, Statement, TableEncoder, fits
from connectors.postgres.errors import is_data_error, refusal
from connectors.postgres.options import Nul
from connectors.postgres.session import Session
from connectors.postgres.table_schema import DELETED, VERSION, TableSchema
from connectors.postgres.text import literal
from replicator.batch import Delete, DocumentId, Upsert, Write
from replicator.key import key_text
from replicator.target.verification import CHANGED, Comparison, Walked

_PIECE = 2000  # ids of a walk
_COMPARED = 500  # documents in a statement
_CASTS = {"text[]", "numeric[]"}  # unnest flattens nested arrays, so these are sent as text literals
_COLLATED = {"text", "text[]"}

_COMPARE = """
SELECT pg_catalog.string_agg(n::text, ','), pg_catalog.string_agg(v::text, ','),
pg_catalog.json_agg(pg_catalog.json_build_array(n, m, f)) FILTER (WHERE m OR f <> '{{}}')
FROM (
  SELECT d.n::int AS n, t.{version} AS v, {marked} AS m, {differing} AS f
  FROM unnest({arrays}) WITH ORDINALITY AS d({names}, n) JOIN {table} AS t ON {matches} OFFSET 0
) AS compared"""  # in one row, as nearly all are equal; OFFSET keeps the server from comparing twice
_DIFFERING_COLUMNS = "pg_catalog.array_remove(ARRAY[{columns}]::text[], NULL)"
_DIFFERING_COLUMN = "CASE WHEN t.{column}{collate} IS DISTINCT FROM {given} THEN {name} END"
_DIFFERING_NAMES = """
CASE WHEN t.{column} IS NOT DISTINCT FROM {given} THEN '{{}}'::text[]
WHEN pg_catalog.jsonb_typeof(t.{column}) = 'object' THEN ARRAY(
  SELECT coalesce(a.key, b.key) FROM pg_catalog.jsonb_each(t.{column}) AS a
  FULL JOIN pg_catalog.jsonb_each({given}) AS b ON a.key = b.key
  WHERE a.value IS DISTINCT FROM b.value ORDER BY 1)
ELSE ARRAY[{name}] END"""
_STORED = """
SELECT d.n::int, t.{version} FROM unnest({arrays}) WITH ORDINALITY AS d({names}, n)
JOIN {table} AS t ON {matches}{live}"""
_WALK = "SELECT {columns} FROM {table} AS t WHERE {after}{live} ORDER BY {keys} LIMIT {limit}"
_REPLACE = """
UPDATE {table} AS t SET {assignments}
FROM unnest({arrays}, {versions}::bigint[]) WITH ORDINALITY AS d({names}, v, n)
WHERE {matches} AND t.{version} = d.v RETURNING d.n::int"""
_REMOVE = """
WITH gone AS (
  DELETE FROM {table} AS t
  USING unnest({arrays}, {versions}::bigint[], {ids}::text[]) WITH ORDINALITY AS d({names}, v, i, n)
  WHERE {matches} AND t.{version} = d.v RETURNING d.n::int AS n, d.i AS i, d.v AS v
), {kept}"""
_MARK = """
WITH gone AS (
  UPDATE {table} AS t SET {deleted} = pg_catalog.now()
  FROM unnest({arrays}, {versions}::bigint[], {ids}::text[]) WITH ORDINALITY AS d({names}, v, i, n)
  WHERE {matches}{live} AND t.{version} = d.v RETURNING d.n::int AS n, d.i AS i, d.v AS v
), {kept}"""
_KEPT = """kept AS (
  INSERT INTO replicator.tombstones AS x (target, id, version) SELECT {label}, i, v FROM gone
  ON CONFLICT (target, id) DO UPDATE SET version = EXCLUDED.version WHERE x.version < EXCLUDED.version
) SELECT n FROM gone"""


@dataclass(frozen=True, slots=True)
class _Asked:
    """A piece of documents: why some cannot be stored, and the places of those that the server compares.

    ``literals``: its parameters. ``kept``: whether they are compared with their histories, too.
    """

    expected: Sequence[Upsert]
    refused: Mapping[int, str]
    sent: Sequence[int]
    literals: Sequence[bytes]
    kept: bool


@dataclass(frozen=True, slots=True)
class TableVerification:
    """Comparison and repair of one table."""

    session: Session
    shape: TableSchema
    encoder: TableEncoder
    opened: Mapping[str, int]  # oids by label

    @classmethod
    def of(cls, session: Session, shape: TableSchema, nul: Nul, opened: Mapping[str, int]) -> TableVerification:
        return cls(session, shape, TableEncoder(shape, nul), opened)

    def compare(self, expected: Sequence[Upsert]) -> list[Comparison]:
        """Piece by piece: while the server compares one, the next is encoded."""
        found: list[Comparison] = []
        waiting: list[_Asked] = []
        with self._nothing_left_in_flight():
            for start in range(0, len(expected), _COMPARED):
                asked = self._asked(expected[start : start + _COMPARED], kept=self.shape.history)
                while waiting:
                    found += self._answered(waiting.pop())
                waiting.append(self._sent(asked))
            while waiting:
                found += self._answered(waiting.pop())
        return found

    @contextlib.contextmanager
    def _nothing_left_in_flight(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.session.close()
            raise

    def _asked(self, expected: Sequence[Upsert], *, kept: bool) -> _Asked:
        refused, literals = self._encoded([(write.id, write, 0) for write in expected])
        sent = [number for number in range(len(expected)) if number not in refused]
        if self.shape.history and sent:
            bodies = [expected[number].body for number in sent]
            literals = [*literals, self.encoder.kept(bodies) if kept else literal([None] * len(sent))]
        return _Asked(expected, refused, sent, literals, kept)

    def _sent(self, asked: _Asked) -> _Asked:
        if asked.sent:
            self.session.send([Statement(self._compare_sql().as_bytes(), asked.literals, planned_once=False)])
        return asked

    def _answered(self, asked: _Asked) -> list[Comparison]:
        found = [Comparison(None)] * len(asked.expected)
        for number, reason in asked.refused.items():
            found[number] = Comparison(None, refused=reason)
        try:
            ((numbers, versions, differing),) = self.session.collect()[0] if asked.sent else [(None, None, None)]
        except psycopg.Error as e:
            if is_data_error(e):
                return self._divided(asked, refusal(e, self.shape.name))
            raise self.session.translated(e) from e
        for number, version in zip(_numbers(numbers), _numbers(versions), strict=True):
            found[asked.sent[number - 1]] = Comparison(version)
        for number, marked, names in orjson.loads(differing or b"[]"):
            at = asked.sent[number - 1]
            found[at] = Comparison(found[at].version, (DELETED,) if marked else tuple(names))
        return found

    def _divided(self, asked: _Asked, reason: str) -> list[Comparison]:
        """After the server has refused a value: the answers for each half, down to the document that has it.

        The history has the reason in place of a document that only it cannot keep.
        """
        expected = asked.expected
        if len(expected) == 1 and not asked.kept:
            return [Comparison(None, refused=reason)]
        middle, kept = len(expected) // 2, asked.kept and len(expected) > 1
        halves = (half for half in (expected[:middle], expected[middle:]) if half)
        return [one for half in halves for one in self._answered(self._sent(self._asked(half, kept=kept)))]

    def versions(self, ids: Sequence[DocumentId]) -> list[int | None]:
        possible = [number for number, id in enumerate(ids) if fits(self.shape.keys, id)]
        versions: list[int | None] = [None] * len(ids)
        if possible:
            literals, _ = self.encoder.keys([(ids[number], _key_only(ids[number]), 0) for number in possible])
            for at, version in self._query(self._keyed(_STORED), literals):
                versions[possible[at - 1]] = version
        return versions

    def walk(self, cursor: str | None, within: DocumentId) -> Walked:
        """By the primary key, whose index makes each piece cheap."""
        keys = self.shape.keys
        after = [*self._is_within(within), *([] if cursor is None else [self._is_after(orjson.loads(cursor))])]
        query = sql.SQL(_WALK).format(
            columns=sql.SQL(", ").join(as_text(key) for key in keys),
            table=self.shape.qualified,
            after=sql.SQL(" AND ").join(after) if after else sql.SQL("true"),
            keys=sql.SQL(", ").join(sql.SQL("t.{}").format(sql.Identifier(key.name)) for key in keys),
            live=live(self.shape),
            limit=sql.Literal(_PIECE),
        )
        with self.session.connection() as connection:
            rows = connection.execute(query).fetchall()
        if not rows:
            return Walked([], None)
        parts = [map(FROM_TEXT[key.kind], texts) for key, texts in zip(keys, zip(*rows, strict=True), strict=True)]
        ids = list(zip(*parts, strict=True))
        return Walked(ids, _cursor(rows[-1]) if len(rows) == _PIECE else None, lambda n: _cursor(rows[n]))

    def replace(self, writes: Sequence[Upsert]) -> list[str]:
        refused, literals = self._encoded([(write.id, write, 0) for write in writes])
        sent = [number for number in range(len(writes)) if number not in refused]
        versions = literal([writes[number].version for number in sent])
        done = self._tried(self._replace_sql(), [*literals, versions], len(sent)) if sent else {}
        results = {sent[at]: reason for at, reason in done.items()} | refused
        return [results.get(number, CHANGED) for number in range(len(writes))]

    def remove(self, writes: Sequence[Delete]) -> list[str]:
        """Under the same lock as every batch that leaves tombstones."""
        literals, unfit = self.encoder.keys([(write.id, write, 0) for write in writes])
        assert not unfit, "such a row cannot exist"
        ids = literal([key_text(write.id) for write in writes])
        versions = literal([write.version for write in writes])
        done = self._tried(self._remove_sql(), [*literals, versions, ids], len(writes), lock=True)
        return [done.get(number, CHANGED) for number in range(len(writes))]

    def _encoded(self, rows: Sequence[Row]) -> tuple[dict[int, str], list[bytes]]:
        """Why rows cannot be stored, by number, and the literals of the others."""
        literals, reasons = self.encoder.expected(rows)
        if not reasons:
            return {}, literals
        fitting = [row for number, row in enumerate(rows) if number not in reasons]
        return dict(reasons), self.encoder.expected(fitting)[0] if fitting else []

    def _query(self, query: sql.Composed, literals: Sequence[bytes]) -> list[tuple[Any, ...]]:
        with self.session.connection() as connection:
            return psycopg.RawCursor(connection).execute(query, _texts(literals)).fetchall()

    def _tried(
        self, query: sql.Composed, literals: Sequence[bytes], count: int, *, lock: bool = False
    ) -> dict[int, str]:
        """Change rows; "" for each row that was changed, by its place. A constraint that fails refuses all of them."""
        with self.session.connection() as connection:
            try:
                with connection.transaction():
                    for statement in generations.still(self.opened):
                        connection.execute(statement)
                    if lock:
                        psycopg.RawCursor(connection).execute(
                            self.encoder.lock.sql, _texts(self.encoder.lock.parameters)
                        )
                    rows = psycopg.RawCursor(connection).execute(query, _texts(literals)).fetchall()
            except psycopg.Error as e:
                if not is_data_error(e):
                    raise
                return dict.fromkeys(range(count), refusal(e, self.shape.name))
        return {number - 1: "" for (number,) in rows}

    def _compare_sql(self) -> sql.Composed:
        """The row and its history are of one moment: they commit together."""
        arrays, names, differing = self._arrays(), self._names(), self._differing_sql()
        if self.shape.history:
            arrays = sql.SQL(", ").join([arrays, _raw(f"${len(self._types()) + 1}::jsonb[]")])
            names = sql.SQL(", ").join([names, _raw("h")])
            differing = sql.SQL("pg_catalog.array_cat({}, {})").format(differing, history.differing(self.shape))
        return sql.SQL(_COMPARE).format(
            version=sql.Identifier(VERSION),
            marked=_raw("t.{} IS NOT NULL").format(sql.Identifier(DELETED)) if self.shape.marks else _raw("false"),
            differing=differing,
            arrays=arrays,
            names=names,
            table=self.shape.qualified,
            matches=self._matches(),
        )

    def _differing_sql(self) -> sql.Composed:
        """What differs, as an array of texts: of a whole document the names in it, else the columns."""
        first, columns = len(self.shape.keys), self.shape.columns
        if columns[0].attribute is None:
            column = sql.Identifier(columns[0].name)
            name = sql.Literal(columns[0].name)
            return sql.SQL(_DIFFERING_NAMES).format(column=column, given=_raw(f"d.c{first}"), name=name)
        differing = [
            sql.SQL(_DIFFERING_COLUMN).format(
                column=sql.Identifier(c.name),
                collate=_raw(' COLLATE pg_catalog."C"' if c.type in _COLLATED else ""),
                given=_raw(f"d.c{n}::{c.type}" if c.type in _CASTS else f"d.c{n}"),
                name=sql.Literal(c.name),
            )
            for n, c in enumerate(columns, start=first)
        ]
        return sql.SQL(_DIFFERING_COLUMNS).format(columns=sql.SQL(", ").join(differing))

    def _replace_sql(self) -> sql.Composed:
        first, after = len(self.shape.keys), len(self._types()) + 1
        assignments = [
            _raw("{} = d." + f"c{n}" + (f"::{c.type}" if c.type in _CASTS else "")).format(sql.Identifier(c.name))
            for n, c in enumerate(self.shape.columns, start=first)
        ]
        if self.shape.marks:
            assignments.append(_raw("{} = NULL").format(sql.Identifier(DELETED)))
        return sql.SQL(_REPLACE).format(
            table=self.shape.qualified,
            assignments=sql.SQL(", ").join(assignments),
            arrays=self._arrays(),
            versions=_raw(f"${after}"),
            names=self._names(),
            matches=self._matches(),
            version=sql.Identifier(VERSION),
        )

    def _remove_sql(self) -> sql.Composed:
        after = len(self.shape.keys) + 1
        return sql.SQL(_MARK if self.shape.marks else _REMOVE).format(
            table=self.shape.qualified,
            arrays=self._arrays(keys_only=True),
            versions=_raw(f"${after}"),
            ids=_raw(f"${after + 1}"),
            names=self._names(keys_only=True),
            matches=self._matches(),
            version=sql.Identifier(VERSION),
            deleted=sql.Identifier(DELETED),
            live=live(self.shape),
            kept=sql.SQL(_KEPT).format(label=sql.Literal(self.shape.label)),
        )

    def _keyed(self, statement: str) -> sql.Composed:
        return _raw(statement).format(
            version=sql.Identifier(VERSION),
            arrays=self._arrays(keys_only=True),
            names=self._names(keys_only=True),
            table=self.shape.qualified,
            matches=self._matches(),
            live=live(self.shape),
        )

    def _types(self, *, keys_only: bool = False) -> list[str]:
        columns = () if keys_only else self.shape.columns
        return [k.type for k in self.shape.keys] + ["text" if c.type in _CASTS else c.type for c in columns]

    def _arrays(self, *, keys_only: bool = False) -> sql.Composable:
        types = self._types(keys_only=keys_only)
        return _raw(", ".join(f"${n}::{type}[]" for n, type in enumerate(types, start=1)))

    def _names(self, *, keys_only: bool = False) -> sql.Composable:
        return _raw(", ".join(f"c{n}" for n in range(len(self._types(keys_only=keys_only)))))

    def _matches(self) -> sql.Composed:
        pairs = [_raw("t.{} = d." + f"c{n}").format(sql.Identifier(key.name)) for n, key in enumerate(self.shape.keys)]
        return sql.SQL(" AND ").join(pairs)

    def _is_within(self, within: DocumentId) -> Iterator[sql.Composed]:
        for key, text in zip(self.shape.keys, within, strict=False):
            value = binary(base64.b64decode(text)) if key.kind == "B" else text
            yield sql.SQL("t.{} = {}::{}").format(sql.Identifier(key.name), sql.Literal(value), _raw(key.type))

    def _is_after(self, texts: Sequence[str]) -> sql.Composed:
        keys = self.shape.keys
        values = [f"\\x{t}" if k.kind == "B" else t for k, t in zip(keys, texts, strict=True)]
        typed = [sql.SQL("{}::{}").format(sql.Literal(v), _raw(k.type)) for k, v in zip(keys, values, strict=True)]
        names = [sql.SQL("t.{}").format(sql.Identifier(key.name)) for key in keys]
        return sql.SQL("({}) > ({})").format(sql.SQL(", ").join(names), sql.SQL(", ").join(typed))


def _cursor(row: Sequence[Any]) -> str:
    return orjson.dumps(list(row)).decode()


def _raw(text: str) -> sql.SQL:
    """SQL from our own constants, numbers and type names only; never a name from a config."""
    return sql.SQL(text)


def _numbers(joined: bytes | None) -> Iterable[int]:
    return () if joined is None else map(int, joined.split(b","))


def _key_only(id: DocumentId) -> Write:
    return Delete("", id, 0, id)


def _texts(parameters: Sequence[bytes | None]) -> list[str | None]:
    return [None if p is None else p.decode() for p in parameters]
