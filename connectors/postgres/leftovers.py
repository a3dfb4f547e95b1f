"""What a rescan did not confirm, and tombstones that have done their duty: found and removed in pieces."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import psycopg
from psycopg import sql

from connectors.postgres.encode import Statement
from connectors.postgres.literals import literal
from connectors.postgres.shape import VERSION, KeyColumn, Shape
from replicator.attributes import canonical_number
from replicator.batch import Batch, Delete, DocumentId, Part
from replicator.target import Table

_PIECE = 5000  # documents; every piece looks for its beginning anew

_PURGE = """
WITH oldest AS (SELECT id FROM replicator.tombstones WHERE target = $1::text AND version < $3::bigint LIMIT $2::int),
gone AS (DELETE FROM replicator.tombstones AS t USING oldest WHERE t.target = $1::text AND t.id = oldest.id RETURNING 1)
SELECT pg_catalog.count(*) FROM gone"""

_FROM_TEXT: Mapping[str, Callable[[str], str]] = {
    "S": str,
    "N": canonical_number,
    "B": lambda text: base64.b64encode(bytes.fromhex(text)).decode(),
}


def older(
    connection: psycopg.Connection[Any], shape: Shape, below: int, spare: Sequence[DocumentId]
) -> list[DocumentId]:
    """Ids of some documents with a version below ``below``, without those that begin with one of ``spare``."""
    query = sql.SQL("SELECT {} FROM {} AS t WHERE t.{} < {}{} LIMIT {}").format(
        sql.SQL(", ").join(_as_text(key) for key in shape.keys),
        shape.qualified,
        sql.Identifier(VERSION),
        sql.Literal(below),
        sql.Composed(list(_without(shape, spare))),
        sql.Literal(_PIECE),
    )
    with connection.transaction():
        connection.execute("SET LOCAL enable_seqscan = on")
        rows = connection.execute(query).fetchall()
    return [tuple(_FROM_TEXT[k.kind](text) for k, text in zip(shape.keys, row, strict=True)) for row in rows]


def _as_text(key: KeyColumn) -> sql.Composed:
    column = sql.SQL("t.{}").format(sql.Identifier(key.name))
    return sql.SQL("pg_catalog.encode({}, 'hex'::text)" if key.kind == "B" else "{}::text").format(column)


def _without(shape: Shape, spare: Sequence[DocumentId]) -> Iterator[sql.Composed]:
    for length in sorted({len(id) for id in spare}):
        columns = list(zip(*(id for id in spare if len(id) == length), strict=True))
        keys = shape.keys[:length]
        row = sql.SQL(", ").join(sql.SQL("t.{}").format(sql.Identifier(key.name)) for key in keys)
        arrays = sql.SQL(", ").join(_array(key, texts) for key, texts in zip(keys, columns, strict=True))
        yield sql.SQL(" AND ({}) NOT IN (SELECT * FROM unnest({}))").format(row, arrays)


def _array(key: KeyColumn, texts: Sequence[str]) -> sql.Composed:
    values = [f"\\x{base64.b64decode(t).hex()}" for t in texts] if key.kind == "B" else texts
    return sql.SQL("{}::{}").format(sql.Literal(literal(values).decode()), sql.SQL(f"{key.type}[]"))


def removal(table: Table, ids: Sequence[DocumentId], below: int) -> Batch:
    """The guarded deletes of swept documents. They answer for no change, so they weigh nothing."""
    deletes = [Delete(table.name, id, below, item=id, weight=0) for id in ids]
    return Batch([Part("sweep", deletes)], tombstones=True)


def purge(shape: Shape, below: int) -> Statement:
    parameters = [shape.label.encode(), str(_PIECE).encode(), str(below).encode()]
    return Statement(_PURGE.encode(), parameters, planned_once=False)
