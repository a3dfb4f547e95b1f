"""Sweeps rows that a rescan did not find, and purges tombstones, in pieces."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import psycopg
from psycopg import sql

from connectors.postgres.encode import Statement, fits
from connectors.postgres.table_schema import DELETED, VERSION, KeyColumn, TableSchema
from connectors.postgres.text import literal
from replicator.batch import Batch, Delete, DocumentId, Part, Past
from replicator.items.attributes import Malformed, canonical_number
from replicator.key import key_text
from replicator.target.contract import Table
from replicator.version import epoch_of

_PIECE = 5000  # documents; each piece searches from the start

_PURGE = """
WITH oldest AS (
  SELECT id FROM replicator.tombstones
  WHERE target = $1::text AND version < $3::bigint AND id NOT IN (SELECT pg_catalog.unnest($4::text[]))
  AND pg_catalog.substring(id, $5::text) NOT IN (SELECT pg_catalog.unnest($6::text[])) LIMIT $2::int
),
gone AS (DELETE FROM replicator.tombstones AS t USING oldest WHERE t.target = $1::text AND t.id = oldest.id RETURNING 1)
SELECT pg_catalog.count(*) FROM gone"""

FORGET = "DELETE FROM replicator.tombstones WHERE target = %s"
_NEWEST = "SELECT max(version) FROM replicator.tombstones WHERE target = %s"
_BACK = "it reappears after it was deleted (a trigger of the table?)"
_FIRST_PART = r'^\["(?:[^"\\]|\\.)*"'  # of an id as JSON
_MOST_HELD = 5000  # undeletable documents after which a sweep stops searching
_MOST_REASONS = 3  # in a message


def _number(text: str) -> str:
    """The number as a key has it; as it is if no item can have it (NaN, or too many digits): it is another's row."""
    try:
        return canonical_number(text)
    except Malformed:
        return text


FROM_TEXT: Mapping[str, Callable[[str], str]] = {
    "S": str,
    "N": _number,
    "B": lambda text: base64.b64encode(bytes.fromhex(text)).decode(),
}


@dataclass(slots=True)
class Sweep:
    """The progress of one table's sweep. ``held``: documents that the server refuses to delete, with the reasons.

    Those are retried after everything else is removed, since they may have depended on other rows of the table.
    """

    label: str
    held: dict[DocumentId, str] = field(default_factory=dict)
    _removed: frozenset[DocumentId] = frozenset()  # by the last piece
    _last: bool = False  # held documents are being retried

    def next(self, found: Sequence[DocumentId]) -> Sequence[DocumentId]:
        """Which documents to delete now, given those that were ``found``."""
        self._last = not found
        if self._last:
            return [] if _BACK in self.held.values() else list(self.held)
        self.held |= {id: _BACK for id in found if id in self._removed}
        return [id for id in found if id not in self._removed]

    def done(self, tried: Sequence[DocumentId], refused: Mapping[DocumentId, str]) -> int:
        """Record the result of an attempt; how many documents it deleted."""
        self._removed = frozenset(tried) - refused.keys()
        self.held = {id: reason for id, reason in {**self.held, **refused}.items() if id not in self._removed}
        return len(self._removed)

    @property
    def over(self) -> bool:
        """Whether nothing more can be deleted, or too many documents are held to search for more."""
        return self._last or len(self.held) >= _MOST_HELD

    @property
    def problem(self) -> str:
        reasons = "; ".join(sorted(set(self.held.values()))[:_MOST_REASONS])
        least = "at least " if len(self.held) >= _MOST_HELD else ""
        return (
            f"{self.label}: rows that the last scan of the source did not find cannot be deleted ({least}"
            f"{len(self.held)}): {reasons}. Delete the rows that refer to them, or change the constraint or trigger, "
            "then start the run again: it resumes this cleanup"
        )


def newest(connection: psycopg.Connection[Any], shape: TableSchema) -> int:
    """The latest epoch among the table's tombstones, 0 without any."""
    row = connection.execute(_NEWEST, (shape.label,)).fetchone()
    return epoch_of(row[0]) if row is not None and row[0] is not None else 0


def limit(left: Callable[[], float] | None) -> list[Statement]:
    """What makes the server end a statement of the transaction that takes longer than ``left()`` seconds."""
    if left is None:
        return []
    return [Statement(b"SET LOCAL statement_timeout = %d" % max(1, math.ceil(left() * 1000)), planned_once=False)]


def older(
    connection: psycopg.Connection[Any],
    shape: TableSchema,
    below: int,
    spare: Sequence[DocumentId],
    limits: Sequence[Statement] = (),
) -> list[DocumentId]:
    """Ids of some documents with a version below ``below``, except those that start with an id in ``spare``.

    Rows that are marked as deleted are none: they keep their version, which is of the change that deleted them.
    """
    query = sql.SQL("SELECT {} FROM {} AS t WHERE t.{} < {}{}{} LIMIT {}").format(
        sql.SQL(", ").join(as_text(key) for key in shape.keys),
        shape.qualified,
        sql.Identifier(VERSION),
        sql.Literal(below),
        live(shape),
        without(shape, spare),
        sql.Literal(_PIECE),
    )
    with connection.transaction():
        connection.execute("SET LOCAL enable_seqscan = on")
        for statement in limits:
            connection.execute(statement.sql)
        rows = connection.execute(query).fetchall()
    return [tuple(FROM_TEXT[k.kind](text) for k, text in zip(shape.keys, row, strict=True)) for row in rows]


def live(shape: TableSchema) -> sql.Composed:
    """A condition, after AND, that only rows which are not marked as deleted meet."""
    return sql.SQL(" AND t.{} IS NULL").format(sql.Identifier(DELETED)) if shape.marks else sql.Composed([])


def as_text(key: KeyColumn) -> sql.Composed:
    column = sql.SQL("t.{}").format(sql.Identifier(key.name))
    return sql.SQL("pg_catalog.encode({}, 'hex'::text)" if key.kind == "B" else "{}::text").format(column)


def without(shape: TableSchema, spare: Sequence[DocumentId]) -> sql.Composed:
    """Conditions, after AND, that rows meet whose id does not start with one in ``spare``."""
    return sql.Composed(list(_without(shape, spare)))


def _without(shape: TableSchema, spare: Sequence[DocumentId]) -> Iterator[sql.Composed]:
    spare = [id for id in spare if fits(shape.keys, id)]  # no row can have another id
    for length in sorted({len(id) for id in spare}):
        columns = list(zip(*(id for id in spare if len(id) == length), strict=True))
        keys = shape.keys[:length]
        row = sql.SQL(", ").join(sql.SQL("t.{}").format(sql.Identifier(key.name)) for key in keys)
        arrays = sql.SQL(", ").join(_array(key, texts) for key, texts in zip(keys, columns, strict=True))
        yield sql.SQL(" AND ({}) NOT IN (SELECT * FROM unnest({}))").format(row, arrays)


def _array(key: KeyColumn, texts: Sequence[str]) -> sql.Composed:
    values = [f"\\x{base64.b64decode(t).hex()}" for t in texts] if key.kind == "B" else texts
    return sql.SQL("{}::{}").format(sql.Literal(literal(values).decode()), sql.SQL(f"{key.type}[]"))


def removal(table: Table, ids: Sequence[DocumentId], below: int, began: float | None = None) -> Batch:
    """The guarded deletes of swept documents. They stand for no change of the source, so their weight is 0.

    ``began``: when the epoch began, for the table's history: the documents were gone by then. None: it has none.
    """
    deletes = [Delete(table.name, id, below, item=id, weight=0) for id in ids]
    past = [] if began is None else [Past(table.name, id, below, began, "", "remove") for id in ids]
    return Batch([Part("sweep", deletes, history=past)], tombstones=True)


def purge(shape: TableSchema, below: int, spare: Sequence[DocumentId]) -> Statement:
    fitting = [id for id in spare if fits(shape.keys, id)]
    whole = literal([key_text(id) for id in fitting if len(id) == len(shape.keys)])
    first = literal([key_text(id).removesuffix("]") for id in fitting if len(id) < len(shape.keys)])
    limits = [str(_PIECE).encode(), str(below).encode()]
    parameters = [shape.label.encode(), *limits, whole, _FIRST_PART.encode(), first]
    return Statement(_PURGE.encode(), parameters, planned_once=False)
