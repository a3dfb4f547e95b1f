"""Finds the writes of a batch that the server refuses, by bisection, in a transaction that is rolled back.

Deferred constraints are checked after each attempt, as COMMIT would. A row may depend on one that comes later in its
batch, so rows that were refused for their relation to other rows are tried again once those were accepted.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import psycopg
from msgspec import structs
from psycopg import sql

from connectors.postgres.encode import Encoder, Statement
from connectors.postgres.errors import SKIPPED, depends_on_others, is_data_error, refusal
from connectors.postgres.session import BEGIN, Session
from replicator.batch import Batch, Part, Past, Rejection, Write

_DEFERRED = """
SELECT DISTINCT n.nspname, c.conname
FROM pg_catalog.pg_constraint AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.connamespace
WHERE c.condeferred AND pg_catalog.has_schema_privilege(n.oid, 'USAGE')"""

Refused = list[tuple[Write, psycopg.Error]]


def refused(session: Session, encoder: Encoder, batch: Batch) -> list[Rejection]:
    """A rejection for each write that the server refuses; none if it accepts all of them now."""
    writes = [write for part in batch.parts for write in part.writes]
    with _rehearsal(session, encoder, batch) as rehearsal:
        found = rehearsal.refused(writes)
    return [Rejection(write, refusal(e, write.table)) for write, e in found]


def without_refused_history(session: Session, encoder: Encoder, batch: Batch) -> Batch | None:
    """The batch with reasons in place of the documents that the server refuses to keep in a history; None: of none.

    Their table may store less of a document than the history does.
    """
    entries = [entry for part in batch.parts for entry in part.history]
    with _rehearsal(session, encoder, batch) as rehearsal:
        found = rehearsal.kept_history(entries)
    if not found:
        return None
    parts = [structs.replace(p, history=[found.get(_row(e), e) for e in p.history]) for p in batch.parts]
    return replace(batch, parts=parts)


@contextlib.contextmanager
def _rehearsal(session: Session, encoder: Encoder, batch: Batch) -> Iterator[_Rehearsal]:
    """In a transaction that is rolled back."""
    with session.connection() as connection:
        connection.execute(BEGIN.sql)
        try:
            yield _Rehearsal(connection, encoder, tombstones=batch.tombstones)
        finally:
            connection.rollback()


def _row(entry: Past) -> object:
    return entry.table, entry.id, entry.time, entry.sequence


class _Rehearsal:
    """Tries writes in an open transaction. What the server accepts stays there, so that other rows can refer to it."""

    def __init__(self, connection: psycopg.Connection[Any], encoder: Encoder, *, tombstones: bool) -> None:
        self._connection = connection
        self._encoder = encoder
        self._tombstones = tombstones
        self._settle = _as_at_commit(connection)

    def refused(self, writes: Sequence[Write]) -> Refused:
        """The writes that are still refused when all others are stored; at least one if any was refused at first."""
        first = found = self._halve(writes)
        while related := [write for write, e in found if depends_on_others(e)]:
            others = [(write, e) for write, e in found if not depends_on_others(e)]
            again = self._halve(related)
            if len(again) == len(related):
                break
            found = others + again
        return found or first  # all were accepted in another order: blame those refused first

    def _halve(self, writes: Sequence[Write]) -> Refused:
        error = self._attempt(writes)
        if error is None:
            return []
        if len(writes) == 1 and error.sqlstate == SKIPPED:  # perhaps another session changed the row at that moment
            error = self._attempt(writes)
        if error is None:
            return []
        if len(writes) == 1:
            return [(writes[0], error)]
        middle = len(writes) // 2
        return [found for half in (writes[:middle], writes[middle:]) for found in self._halve(half)]

    def kept_history(self, entries: Sequence[Past]) -> dict[object, Past]:
        """What can be kept of the entries of histories that are refused."""
        found: dict[object, Past] = {}
        for entry, error in self.refused_history(entries):
            kept = structs.replace(entry, old=None)
            if self._attempt((), [kept]) is not None:
                problem = refusal(error, f"the history of {entry.table}")
                kept = structs.replace(kept, new=None, problem=problem)
            found[_row(entry)] = kept
        return found

    def refused_history(self, entries: Sequence[Past]) -> list[tuple[Past, psycopg.Error]]:
        """The entries of histories that are refused."""
        error = self._attempt((), entries) if entries else None
        if error is None:
            return []
        if len(entries) == 1:
            return [(entries[0], error)]
        middle = len(entries) // 2
        return [found for half in (entries[:middle], entries[middle:]) for found in self.refused_history(half)]

    def _attempt(self, writes: Sequence[Write], entries: Sequence[Past] = ()) -> psycopg.Error | None:
        batch = Batch([Part("", writes, history=entries)], tombstones=self._tombstones)
        try:
            with self._connection.transaction():
                for statement in self._encoder.encode(batch).statements:
                    _execute(self._connection, statement)
                for setting in self._settle:
                    self._connection.execute(setting)
        except psycopg.Error as e:
            if is_data_error(e):
                return e
            raise
        return None


def _as_at_commit(connection: psycopg.Connection[Any]) -> Sequence[sql.Composed | sql.SQL]:
    """Check deferred constraints, then defer them again. Others stay as they are."""
    names = [sql.Identifier(*row) for row in connection.execute(_DEFERRED)]
    if not names:
        return ()
    again = sql.SQL("SET CONSTRAINTS {} DEFERRED").format(sql.SQL(", ").join(names))
    return sql.SQL("SET CONSTRAINTS ALL IMMEDIATE"), again


def _execute(connection: psycopg.Connection[Any], statement: Statement) -> None:
    texts = [None if p is None else p.decode() for p in statement.parameters]
    psycopg.RawCursor(connection).execute(statement.sql, texts)
