"""The SQL that writes to one table and compares versions. Each array parameter is one column of the batch.

A row or a tombstone of the same or a newer version wins. The same statement counts the
writes that were superseded, looking them up only if fewer rows were affected than sent. A row that neither its version
nor its absence explains was skipped by a trigger (BEFORE … RETURN NULL), and aborts the transaction.

Where rows are marked as deleted, a delete is an UPDATE under the same guard: the row keeps its last image, and the
delete's version, so that it holds back older writes as a tombstone does. A row that is marked already keeps the time
that belongs to its image. A delete with the last document is an upsert of it, with the time of deletion.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from psycopg import sql

from connectors.postgres.table_schema import DELETED, VERSION, TableSchema

_CASTS = {"text[]", "numeric[]"}  # unnest flattens nested arrays, so these are sent as text literals

# unnest of several arrays cannot be schema-qualified; the session's search_path makes it the system's own.
_STALE = """ stale AS (
  SELECT ({sources}::text[])[s.source] AS source, pg_catalog.sum(s.weight)::bigint AS weight
  FROM unnest({arrays}, {numbers}::int[], {weights}::int[]) AS s({names}, source, weight)
  WHERE (SELECT pg_catalog.count(*) FROM done) < pg_catalog.cardinality({first}) AND {held_back}
  GROUP BY 1 HAVING pg_catalog.sum(s.weight) > 0
), corrected AS (
  UPDATE replicator.counts AS c SET applied = c.applied - stale.weight, stale = c.stale + stale.weight
  FROM stale WHERE c.pipeline = {pipeline} AND c.source = stale.source
) SELECT source, weight FROM stale"""

_UPSERT = """WITH done AS (
  INSERT INTO {table} AS t ({columns})
  SELECT {values} FROM (SELECT {rows}) AS d{unless_deleted}
  ON CONFLICT ({keys}) DO UPDATE SET {assignments} WHERE t.{version} < EXCLUDED.{version}
  RETURNING {returned}
),{stale}"""

_DELETE = """WITH done AS (
  DELETE FROM {table} AS t USING (SELECT {rows}) AS d
  WHERE {matches} AND t.{version} < d.v RETURNING {returned}
),{tombstones}{stale}"""

_MARK = """WITH done AS (
  UPDATE {table} AS t SET {version} = d.v,
    {deleted} = coalesce(t.{deleted}, pg_catalog.to_timestamp(d.at), pg_catalog.now())
  FROM (SELECT {rows}) AS d
  WHERE {matches} AND t.{version} < d.v RETURNING {returned}
),{tombstones}{stale}"""

_UPSERT_HELD_BACK = "CASE WHEN {not_done} THEN CASE WHEN {newer} THEN true ELSE replicator.skipped() END ELSE false END"

_DELETE_HELD_BACK = """CASE WHEN {tombstone} THEN true ELSE
    CASE (SELECT t.{version} >= s.v FROM {table} AS t WHERE {matches} LIMIT 1)
      WHEN true THEN true WHEN false THEN CASE WHEN {not_done} THEN replicator.skipped() ELSE false END
      ELSE false END END"""

_UNLESS_DELETED = """
  WHERE NOT EXISTS (
    SELECT FROM replicator.tombstones AS x WHERE x.target = {label} AND x.id = d.i AND x.version >= d.v)"""

_TOMBSTONES = """ kept AS (
  INSERT INTO replicator.tombstones AS x (target, id, version)
  SELECT {label}, d.i, d.v FROM unnest({ids}::text[], {versions}::bigint[]) AS d(i, v)
  ON CONFLICT (target, id) DO UPDATE SET version = EXCLUDED.version WHERE x.version < EXCLUDED.version
),"""


@dataclass(frozen=True, slots=True)
class Statements:
    """One table's statements.

    Parameters: keys, columns (upserts only), versions, ids (with tombstones only), times (where rows are marked only);
    then each write's source, as an index, and its weight; the sources' names, and the pipeline.
    """

    upsert: bytes
    upsert_unless_deleted: bytes
    delete: bytes
    delete_for_good: bytes


def statements(shape: TableSchema) -> Statements:
    return Statements(
        upsert=_upsert(shape, _Parameters(shape, tombstones=False)),
        upsert_unless_deleted=_upsert(shape, _Parameters(shape, tombstones=True)),
        delete=_delete(shape, _Parameters(shape, tombstones=False, columns=False)),
        delete_for_good=_delete(shape, _Parameters(shape, tombstones=True, columns=False)),
    )


class _Parameters:
    """The numbers and types of the parameters."""

    def __init__(self, shape: TableSchema, *, tombstones: bool, columns: bool = True) -> None:
        times = shape.marks
        types = [key.type for key in shape.keys]
        if columns:
            types += ["text" if c.type in _CASTS else c.type for c in shape.columns]
        self.count = len(types)
        self.types = [*types, "bigint", *(["text"] if tombstones else []), *(["float8"] if times else [])]
        self.names = [f"c{i}" for i in range(self.count)] + ["v"]
        self.names += (["i"] if tombstones else []) + (["at"] if times else [])
        self.times = [len(self.types) - 1] if times else []
        self.tombstones = tombstones
        self.versions = self.dollar(self.count)
        self.ids = self.dollar(self.count + 1)
        rest = len(self.types)
        self.numbers, self.weights, self.sources, self.pipeline = (self.dollar(rest + i) for i in range(4))

    def dollar(self, index: int) -> sql.SQL:
        return _raw(f"${index + 1}")

    def arrays(self, indices: Sequence[int] | None = None) -> sql.SQL:
        wanted = range(len(self.types)) if indices is None else indices
        return _raw(", ".join(f"${i + 1}::{self.types[i]}[]" for i in wanted))

    def rows(self, indices: Sequence[int] | None = None) -> sql.SQL:
        """The arrays as rows. In FROM, unnest would materialize each of them first."""
        wanted = range(len(self.types)) if indices is None else indices
        return _raw(", ".join(f"pg_catalog.unnest(${i + 1}::{self.types[i]}[]) AS {self.names[i]}" for i in wanted))

    def named(self, indices: Sequence[int] | None = None) -> sql.SQL:
        wanted = range(len(self.types)) if indices is None else indices
        return _raw(", ".join(self.names[i] for i in wanted))


def _raw(text: str) -> sql.SQL:
    """SQL from our own constants, numbers and type names only; never a name from a config."""
    return sql.SQL(text)


def _names(names: Sequence[str], prefix: str = "") -> sql.Composed:
    return _raw(", ").join(_raw(prefix) + sql.Identifier(name) for name in names)


def _upsert(shape: TableSchema, p: _Parameters) -> bytes:
    keys = [key.name for key in shape.keys]
    body = [*(c.name for c in shape.columns), VERSION]
    marks = [DELETED] if shape.marks else []
    held_back = sql.SQL(_UPSERT_HELD_BACK).format(not_done=_not_done(keys), newer=_newer(shape, p))
    casts = [""] * len(keys) + [f"::{c.type}" if c.type in _CASTS else "" for c in shape.columns] + [""]
    values = (f"d.{name}{cast}" for name, cast in zip(p.names, casts, strict=False))
    found = sql.SQL(_UPSERT).format(
        table=shape.qualified,
        columns=_names([*keys, *body, *marks]),
        values=_raw(", ".join([*values, *("pg_catalog.to_timestamp(d.at)" for _ in marks)])),
        rows=p.rows(),
        unless_deleted=sql.SQL(_UNLESS_DELETED).format(label=sql.Literal(shape.label)) if p.tombstones else _raw(""),
        keys=_names(keys),
        assignments=_raw(", ").join(
            sql.SQL("{0} = EXCLUDED.{0}").format(sql.Identifier(name)) for name in [*body, *marks]
        ),
        version=sql.Identifier(VERSION),
        returned=_names(keys, "t."),
        stale=_stale(p, [*range(len(keys)), *(n for n in range(p.count, len(p.types)) if n not in p.times)], held_back),
    )
    return found.as_bytes(None)


def _not_done(keys: Sequence[str]) -> sql.Composed:
    """NOT IN rather than NOT EXISTS: always hashed, whatever the planner settings, and keys are never null."""
    row = _raw(", ".join(f"s.c{i}" for i in range(len(keys))))
    return sql.SQL("({}) NOT IN (SELECT {} FROM done)").format(row, _names(keys))


def _delete(shape: TableSchema, p: _Parameters) -> bytes:
    keyed = [*range(p.count), p.count, *p.times]
    table = sql.SQL(_TOMBSTONES).format(label=sql.Literal(shape.label), ids=p.ids, versions=p.versions)
    keys = [key.name for key in shape.keys]
    held_back = sql.SQL(_DELETE_HELD_BACK).format(
        tombstone=_tombstone(shape) if p.tombstones else _raw("false"),
        version=sql.Identifier(VERSION),
        table=shape.qualified,
        matches=_matches(shape, "s"),
        not_done=_not_done(keys),
    )
    found = sql.SQL(_MARK if shape.marks else _DELETE).format(
        table=shape.qualified,
        rows=p.rows(keyed),
        matches=_matches(shape, "d"),
        version=sql.Identifier(VERSION),
        deleted=sql.Identifier(DELETED),
        returned=_names(keys, "t."),
        tombstones=table if p.tombstones else _raw(""),
        stale=_stale(p, [n for n in range(len(p.types)) if n not in p.times], held_back),
    )
    return found.as_bytes(None)


def _matches(shape: TableSchema, alias: str) -> sql.Composed:
    pairs = (
        sql.SQL("t.{} = {}").format(sql.Identifier(k.name), _raw(f"{alias}.c{i}")) for i, k in enumerate(shape.keys)
    )
    return _raw(" AND ").join(pairs)


def _newer(shape: TableSchema, p: _Parameters) -> sql.Composed:
    row = sql.SQL("EXISTS (SELECT FROM {} AS t WHERE {} AND t.{} >= s.v)")
    found = row.format(shape.qualified, _matches(shape, "s"), sql.Identifier(VERSION))
    return sql.SQL("({} OR {})").format(found, _tombstone(shape)) if p.tombstones else found


def _tombstone(shape: TableSchema) -> sql.Composed:
    tomb = "EXISTS (SELECT FROM replicator.tombstones AS x WHERE x.target = {} AND x.id = s.i AND x.version >= s.v)"
    return sql.SQL(tomb).format(sql.Literal(shape.label))


def _stale(p: _Parameters, indices: Sequence[int], held_back: sql.Composed) -> sql.Composed:
    return sql.SQL(_STALE).format(
        sources=p.sources,
        arrays=p.arrays(indices),
        numbers=p.numbers,
        weights=p.weights,
        names=p.named(indices),
        first=p.arrays([0]),
        held_back=held_back,
        pipeline=p.pipeline,
    )
