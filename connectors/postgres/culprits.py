"""Which writes of a batch the server refuses: found by halving, in a transaction that is rolled back in the end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import psycopg

from connectors.postgres.encode import Encoder, Statement
from connectors.postgres.errors import is_data_error, refusal
from connectors.postgres.session import BEGIN, Session
from replicator.batch import Batch, Part, Rejection, Write
from replicator.errors import TransientError


def refused(session: Session, encoder: Encoder, batch: Batch, error: psycopg.Error) -> list[Rejection]:
    """A rejection for each write to blame. ``error`` is what the whole batch met."""
    found: list[Rejection] = []
    writes = [write for part in batch.parts for write in part.writes]
    with session.connection() as connection:
        connection.execute(BEGIN.sql)
        try:
            found += _halve(connection, encoder, writes, tombstones=batch.tombstones)
        finally:
            connection.rollback()
    if not found:
        raise TransientError(
            f"Postgres refused a batch and took its rows one by one: {type(error).__name__}"
        ) from error
    return found


def _halve(
    connection: psycopg.Connection[Any], encoder: Encoder, writes: Sequence[Write], *, tombstones: bool
) -> list[Rejection]:
    error = _attempt(connection, encoder, Batch([Part("", writes)], tombstones=tombstones))
    if error is None:
        return []  # these stay, so that the rest meets them as it would in the real transaction
    if len(writes) == 1:
        return [Rejection(writes[0], refusal(error, writes[0].table))]
    middle = len(writes) // 2
    halves = (writes[:middle], writes[middle:])
    return [found for half in halves for found in _halve(connection, encoder, half, tombstones=tombstones)]


def _attempt(connection: psycopg.Connection[Any], encoder: Encoder, batch: Batch) -> psycopg.Error | None:
    try:
        with connection.transaction():
            for statement in encoder.encode(batch).statements:
                _execute(connection, statement)
    except psycopg.Error as e:
        if is_data_error(e):
            return e
        raise
    return None


def _execute(connection: psycopg.Connection[Any], statement: Statement) -> None:
    texts = [None if p is None else p.decode() for p in statement.parameters]
    psycopg.RawCursor(connection).execute(statement.sql, texts)
