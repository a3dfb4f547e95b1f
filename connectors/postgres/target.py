"""The Postgres target: implements the target contract, with checkpoints in the same transactions."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import psycopg

from connectors.postgres import (
    bisection,
    catalog,
    cleanup,
    generations,
    history,
    history_merge,
    history_note,
    history_queries,
    moved,
)
from connectors.postgres.checkpoints import PostgresCheckpoints
from connectors.postgres.cleanup import Sweep
from connectors.postgres.encode import Encoded, Encoder, Statement
from connectors.postgres.errors import SKIPPED, StoredAlready, is_data_error
from connectors.postgres.hazards import hazards, missing_privileges
from connectors.postgres.inference import proposal
from connectors.postgres.migrations import exists, install
from connectors.postgres.options import PostgresOptions, PostgresTable
from connectors.postgres.session import Rows, Session
from connectors.postgres.table_schema import TableSchema, shapes
from connectors.postgres.verification import TableVerification
from replicator.batch import Batch, DocumentId, Outcome, Part, Rejection, Write
from replicator.errors import ConfigError, SweepRefused, TransientError
from replicator.identity import Change, Identity, Parts
from replicator.state import Save
from replicator.target.contract import Continued, Exchange, Generation, Table, keeps_history, with_history
from replicator.target.observed import Field, Proposal
from replicator.target.past import Change as PastChange
from replicator.target.past import Extent, Period, Size, State
from replicator.target.verification import ComparesByTable

_LOCK = """
SELECT pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended('replicator tables'::text, 0::bigint))"""

# Readers queue behind an ALTER TABLE that waits for a long transaction. Between two attempts they get their turn.
_BRIEFLY = "SET LOCAL lock_timeout = '500ms'"

_PAUSE = "SELECT pg_catalog.pg_sleep(0.5)"
_DROP_SECONDS = 20.0  # of attempts: half of them waiting, the other half those in which readers get their turn

_REPEATS = 3  # of a batch that conflicts with another session


class Postgres(ComparesByTable):
    """Tables in one schema of a Postgres database (15 or newer), and everything durable in the schema ``replicator``.

    A batch is one transaction and one round trip: entries, deletes, upserts and counts commit together or not at all.
    The user of ``url`` creates and owns the tables, or is granted them.
    """

    Options = PostgresOptions
    TableOptions = PostgresTable

    def __init__(self, options: PostgresOptions, pipeline: str) -> None:
        self._options = options
        self._pipeline = pipeline
        self._session = Session(options)
        self._checkpoints = PostgresCheckpoints(self._session, pipeline)
        self._encoder = Encoder({}, options.nul, pipeline)
        self._sent: Encoded | None = None
        self._sweeps: dict[tuple[str, int], Sweep] = {}
        self._left: Callable[[], float] | None = None
        self._repeated = 0
        self._verifications: dict[str, TableVerification] = {}
        self._opened: dict[str, int] = {}  # the oids of the opened tables, by label
        self._columns: dict[str, Mapping[str, int]] = {}  # the numbers of their columns, by name
        self._wanted: Mapping[str, TableSchema] = {}  # the opened tables
        self._partitions = history.KnownPartitions()

    @property
    def checkpoints(self) -> PostgresCheckpoints:
        """The pipeline's checkpoints. While a batch is in flight, only heartbeats may be saved."""
        return self._checkpoints

    def while_waiting(self, working: Callable[[], None]) -> None:
        self._session.heard = working

    def limit_sweeps(self, left: Callable[[], float]) -> None:
        self._left = left

    @staticmethod
    def infer(table: Table, fields: Sequence[Field]) -> Proposal:
        return proposal(table, fields)

    def check(self, tables: Sequence[Table]) -> Sequence[str]:
        try:
            wanted = self._shapes(tables)
        except ConfigError as e:
            return e.problems
        try:
            with self._session.connection() as connection:
                problems = [text for shape in wanted for text in self._mismatches(connection, shape)]
                return [*problems, *missing_privileges(connection, wanted)]
        except ConfigError as e:
            return e.problems

    def plan(self, tables: Sequence[Table]) -> Sequence[str]:
        wanted = self._shapes(tables)
        with self._session.connection() as connection:
            there = [(shape, catalog.found(connection, shape)) for shape in wanted]
            histories = [text for s in wanted if s.history for text in history.missing_tables(connection, s)]
        statements = [catalog.create_table(shape) for shape, table in there if table is None]
        statements += [catalog.add_version(s) for s, table in there if s.adopt and table and table.lacks_versions]
        statements += histories
        statements += [catalog.add_marks(s) for s, table in there if table and catalog.lacks_marks(s, table)]
        return [f"{statement.as_string(None)};" for statement in statements]

    def refusals(self, tables: Sequence[Table], writes: Sequence[Write]) -> Sequence[Rejection]:
        """By encoding alone: writing in a transaction that is rolled back would run triggers and take locks."""
        encoder = Encoder(shapes(tables, self._options.schema_), self._options.nul, self._pipeline)
        return encoder.encode(Batch([Part("", writes)])).rejections

    def epoch(self, tables: Sequence[Table]) -> int | None:
        wanted = self._shapes(tables)
        with self._session.connection() as connection:
            there = [(shape, t) for shape in wanted if (t := catalog.found(connection, shape)) is not None]
            if others := [text for shape, t in there for text in catalog.taken(shape, t, self._pipeline)]:
                raise ConfigError(*others)
            if len(there) < len(wanted):
                return None
            noted = [(shape, t, catalog.epoch(connection, shape, t)) for shape, t in there]
            return max((max(e, self._deleted(connection, shape, t)) for shape, t, e in noted), default=None)

    def adopted(self, tables: Sequence[Table]) -> Sequence[str]:
        with self._session.connection() as connection:
            wanted = shapes(tables, self._options.schema_).items()
            there = [(name, shape, catalog.found(connection, shape)) for name, shape in wanted]
            return [name for name, shape, t in there if t is not None and catalog.adopts(connection, shape, t)]

    def identities(self, tables: Sequence[Table]) -> Mapping[str, Identity]:
        wanted = shapes(tables, self._options.schema_)
        with self._session.connection() as connection:
            bound = self._checkpoints.definition(connection).tables
            now = catalog.identities(connection, wanted)
            unsure = moved.ambiguous(connection, wanted, bound, now)
        # Without an id it is another table than the last run's, until it is opened as such.
        opened = {name for name, shape in wanted.items() if shape.label in self._opened}
        return {name: replace(one, id="") if name in unsure - opened else one for name, one in now.items()}

    def empty(self, tables: Sequence[Table]) -> Sequence[str]:
        with self._session.connection() as connection:
            wanted = shapes(tables, self._options.schema_).items()
            there = [(name, shape) for name, shape in wanted if catalog.found(connection, shape) is not None]
            return [name for name, shape in there if not catalog.filled(connection, shape)]

    def parts(self, table: Table) -> Parts:
        (shape,) = self._shapes([table])
        return catalog.parts(shape)

    def additions(self, tables: Sequence[Table], changes: Sequence[Change]) -> Sequence[str] | None:
        statements = catalog.additions(shapes(tables, self._options.schema_), changes)
        return None if statements is None else [f"{s.as_string(None)};" for s in statements]

    def extend(self, tables: Sequence[Table], changes: Sequence[Change]) -> None:
        with self._session.connection() as connection, connection.transaction():
            connection.execute(_BRIEFLY)
            for statement in catalog.additions(shapes(tables, self._options.schema_), changes) or ():
                connection.execute(statement)

    def open(self, tables: Sequence[Table], epoch: int) -> None:
        wanted = shapes(tables, self._options.schema_)
        with self._session.connection() as connection:
            install(connection)
            with connection.transaction():
                connection.execute(_LOCK)
                self._checkpoints.check_claims(connection)  # else a table that a rebuild removed would be back
                bound, now = self._checkpoints.definition(connection).tables, catalog.identities(connection, wanted)
                for name, shape in wanted.items():
                    if label := moved.former(shape, bound.get(name), now[name]):
                        moved.follow(connection, shape, label)
                problems = [text for shape in wanted.values() for text in self._mismatches(connection, shape)]
                if problems:
                    raise ConfigError(*problems)
                for shape in wanted.values():
                    self._make(connection, shape, epoch)
                there = {shape.label: catalog.found(connection, shape) for shape in wanted.values()}
                for shape in wanted.values():
                    if shape.history:
                        ahead = history.current_days(connection)
                        self._partitions.know(shape, history.add_partitions(connection, shape, ahead))
        self._wanted = wanted
        self._opened |= {label: table.oid for label, table in there.items() if table is not None}
        self._columns |= {s.label: catalog.column_numbers(s, there[s.label]) for s in wanted.values()}
        self._encoder = Encoder(wanted, self._options.nul, self._pipeline)

    def recheck(self, tables: Sequence[Table]) -> Sequence[str]:
        with self._session.connection() as connection:
            shapes = [part for shape in self._shapes(tables) for part in (shape, *history_note.tables_of(shape))]
            there = [(shape, catalog.found(connection, shape)) for shape in shapes]
            altered = [text for shape, table in there if table for text in hazards(connection, shape, table)]
        return [*altered, *(text for shape, table in there if table for text in self._added_again(shape, table))]

    def _added_again(self, shape: TableSchema, table: catalog.Found) -> Iterator[str]:
        opened = self._columns.get(shape.label, {})
        for name, number in catalog.column_numbers(shape, table).items():
            if self._opened.get(shape.label) == table.oid and opened.get(name, number) != number:
                yield (
                    f"{shape.label}: column {name} was dropped and added again during the run, without the values that "
                    "it had. To fill it: replicator resync CONFIG"
                )

    def write(self, batch: Batch) -> Outcome:
        self.send(self.encode(batch))
        return self.collect()

    def encode(self, batch: Batch) -> Encoded:
        return self._encoder.encode(batch)

    def send(self, encoded: Encoded) -> None:
        if not encoded.rejections:
            batch = encoded.batch
            self._add_partitions(encoded.days)
            first = self._checkpoints.advance(batch.saves, batch.parts)
            last = self._checkpoints.folding(batch.saves, (part.source for part in batch.parts))
            same = () if self._checkpoints.claimed else map(Statement, generations.still(self._opened))
            self._session.send([*first, *same, *encoded.statements, *last])
        self._sent = encoded

    def _add_partitions(self, days: Mapping[str, frozenset[float]]) -> None:
        """Create the partitions that a batch needs and that were not made ahead."""
        lacking = {name: times for name, times in days.items() if self._partitions.lacks(self._wanted[name], times)}
        if not lacking:
            return
        with self._exclusively() as connection:
            self._checkpoints.check_claims(connection)  # else a run that was replaced would change the history
            for name, times in lacking.items():
                shape = self._wanted[name]
                self._partitions.know(shape, history.add_partitions(connection, shape, times))

    def retain(self, tables: Sequence[Table]) -> bool:
        removed, held = False, None
        for shape in self._shapes(tables):
            try:
                removed = (shape.history and self._retain(shape)) or removed
            except TransientError as e:  # the others are not held
                held = e
        if held is not None and not removed:
            raise held
        return removed

    def _retain(self, shape: TableSchema) -> bool:
        with self._exclusively() as connection:
            self._checkpoints.check_claims(connection)  # another run may keep changes for longer
            connection.execute(_BRIEFLY)
            there = history.add_partitions(connection, shape, history.current_days(connection))
        self._partitions.know(shape, there)
        if shape.keep is None:
            return False
        with self._session.connection() as connection, connection.transaction():
            connection.execute(_BRIEFLY)
            # It takes minutes: others go on with their tables.
            folded = history.fold_oldest(connection, shape, lambda: self._limit(connection))
            if folded is None:
                return False
            rest = self._drop(connection, shape, folded)
        self._partitions.know(shape, rest)
        return True

    def _drop(
        self, connection: psycopg.Connection[Any], shape: TableSchema, folded: history_note.Partition
    ) -> list[history_note.Partition]:
        """Drop a folded partition; returns the others. A reader in the way does not undo minutes of folding at once.

        It tries for _DROP_SECONDS, or for as long as cleanup has; the last attempt waits for each of its locks up to
        half a second more. All that time the run stores nothing, nor does it look whether it is to stop.
        """
        until = time.monotonic() + min(_DROP_SECONDS, math.inf if self._left is None else self._left())
        while True:
            try:
                self._limit(connection)
                with connection.transaction():
                    connection.execute(_BRIEFLY)
                    connection.execute(_LOCK)
                    self._checkpoints.check_claims(connection)
                    return history.drop(connection, shape, folded)
            except psycopg.errors.LockNotAvailable:
                if time.monotonic() >= until:
                    raise
            connection.execute(_PAUSE)

    def ready(self) -> bool:
        return not self._session.in_flight or self._session.ready()

    def collect(self) -> Outcome:
        encoded, self._sent = self._sent, None
        assert encoded is not None, "nothing was sent"
        if encoded.rejections:
            return Outcome(encoded.rejections)
        try:
            answers = self._session.collect()
        except psycopg.Error as e:
            return self._failed(encoded.batch, e)
        stale = dict(_stale(answers[1:]))
        self._checkpoints.noted(stale)
        return Outcome(superseded=stale)

    def sweep(self, table: Table, below: int, spare: Sequence[DocumentId]) -> int:
        (shape,) = self._shapes([table])
        sweep = self._sweeps.setdefault((table.name, below), Sweep(shape.label))
        while True:
            with self._session.connection() as connection:
                found = cleanup.older(connection, shape, below, [*spare, *sweep.held], cleanup.limit(self._left))
            tried = sweep.next(found)
            if removed := sweep.done(tried, self._remove(table, tried, below)):
                return removed
            if sweep.over:
                del self._sweeps[table.name, below]
                if sweep.held:
                    raise SweepRefused(sweep.problem)
                if shape.history:
                    self._sweep_history(table, shape, below, spare)
                return 0

    def _sweep_history(self, table: Table, shape: TableSchema, below: int, spare: Sequence[DocumentId]) -> None:
        """Record that documents are gone of which only the history knows."""
        began = self._checkpoints.began(below)
        self._add_partitions({table.name: frozenset([began // history.DAY * history.DAY])})
        with self._session.connection() as connection, connection.transaction():
            self._limit(connection)
            self._checkpoints.check_claims(connection)
            history.sweep(connection, shape, below, began, cleanup.without(shape, spare))

    def _limit(self, connection: psycopg.Connection[Any]) -> None:
        """From now on, end the transaction's statements when the time for cleanup is over."""
        for statement in cleanup.limit(self._left):
            connection.execute(statement.sql)

    def _remove(self, table: Table, ids: Sequence[DocumentId], below: int) -> dict[DocumentId, str]:
        """Delete documents; returns those that the server refuses to delete, with reasons."""
        refused: dict[DocumentId, str] = {}
        while left := [id for id in ids if id not in refused]:
            began = self._checkpoints.began(below) if with_history([table]) else None
            rejections = self.write(cleanup.removal(table, left, below, began)).rejections
            refused |= {r.write.id: r.reason for r in rejections}
            if not rejections:
                break
        return refused

    def purge(self, table: Table, below: int, spare: Sequence[DocumentId] = ()) -> int:
        (shape,) = self._shapes([table])
        limits = cleanup.limit(self._left)
        self._session.send([*limits, *self._checkpoints.advance((), ()), cleanup.purge(shape, below, spare)])
        try:
            *_, rows = self._session.collect()
        except psycopg.Error as e:
            raise self._session.translated(e) from e
        return int(rows[0][0] or 0)

    def history_epoch(self, tables: Sequence[Table]) -> int:
        with self._session.connection() as connection:
            kept = [shape for shape in self._shapes(tables) if shape.history]
            return max((history_note.latest_epoch(connection, shape, self._pipeline) for shape in kept), default=0)

    def history_epoch_beside(self, tables: Sequence[Table]) -> int:
        old = [replace(table, generation=Generation.ONLY) for table in tables if table.generation is Generation.NEW]
        return self.history_epoch(old)

    def history_losses(self, tables: Sequence[Table], epoch: int, *, scanned: bool) -> Sequence[str]:
        with self._session.connection() as connection, connection.transaction():
            connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            history_note.keep_partitions(connection, self._shapes(tables))  # before the snapshot is taken
            there = [(shape, catalog.found(connection, shape)) for shape in self._shapes(tables) if shape.history]
            begun = [shape for shape, table in there if table is not None and table.epoch >= epoch]
            return [text for shape in begun for text in history_note.losses(connection, shape, scanned=scanned)]

    def history_extent(self, table: Table) -> Extent | None:
        (shape,) = self._shapes([table])
        with self._session.connection() as connection:
            return history_queries.extent(connection, shape)

    def history_size(self, table: Table) -> Size | None:
        (shape,) = self._shapes([table])
        with self._session.connection() as connection:
            return history_queries.size(connection, shape)

    def history_changes(self, table: Table, key: str, period: Period) -> Iterator[PastChange]:
        (shape,) = self._shapes([table])
        with self._session.connection() as connection:
            keys = history_queries.keys_of(connection, shape)
            yield from history_queries.changes(connection, shape, keys, history_queries.ids(keys, key), period)

    def history_as_of(self, table: Table, key: str | None, at: float, epochs: tuple[int, int]) -> Iterator[State]:
        (shape,) = self._shapes([table])
        with self._session.connection() as connection:
            keys = history_queries.keys_of(connection, shape)
            chosen = history_queries.ids(keys, key)
            yield from history_queries.as_of(connection, shape, keys, chosen, at, epochs)

    def rebuild_problems(
        self, live: Sequence[Table], new: Sequence[Table], retired: Sequence[Table] = ()
    ) -> Sequence[str]:
        with self._session.connection() as connection:
            beside = [part for shape in self._shapes(new) for part in history_note.tables_of(shape)]
            return [
                *generations.problems(connection, self._shapes(live), self._shapes(new), self._shapes(retired)),
                *generations.existing(connection, beside),
            ]

    def prepare(self, live: Sequence[Table], new: Sequence[Table], pipeline: str, save: Save) -> Sequence[str]:
        with self._exclusively() as connection:
            generations.save(connection, self._pipeline, save)
            generations.forget(connection, pipeline)
            pairs = zip(self._shapes(live), self._shapes(new), strict=True)
            return [text for old, made in pairs for text in generations.create(connection, old, made, pipeline)]

    def exchange(self, exchange: Exchange) -> None:
        with self._exclusively() as connection:
            try:
                generations.exchange(connection, self._shapes(exchange.live), exchange)
            except psycopg.Error as e:
                raise generations.explained(self._session.translated(e), e) from e

    def discard(self, tables: Sequence[Table], pipeline: str, save: Save) -> None:
        with self._exclusively() as connection:
            shapes = self._shapes(tables)
            groups = [each for shape in shapes for each in ([shape], history_note.tables_of(shape))]
            dropped = [(pipeline, group) for group in groups]
            generations.begin_removal(connection, self._pipeline, save, [pipeline], dropped)
            for shape in shapes:
                generations.remove(connection, shape, pipeline)
                history_merge.discard(connection, shape, pipeline)
            generations.forget(connection, pipeline)

    def succeed(
        self,
        retired: Sequence[Table],
        live: Sequence[Table],
        pipeline: str,
        save: Save,
        continued: Continued | None = None,
    ) -> None:
        with self._exclusively() as connection:
            dropped: list[tuple[str, Sequence[TableSchema]]]
            dropped = [(self._pipeline, [shape]) for shape in self._shapes(retired)]
            if continued is not None:
                dropped += [(pipeline, history_note.tables_of(shape)) for shape in self._shapes(live)]
            generations.begin_removal(connection, self._pipeline, save, [self._pipeline, pipeline], dropped)
            if continued is not None:  # after the last batch of each, which adds to the history
                kept = [table for table in live if keeps_history(table.options)]
                for table in kept:
                    (new,), (old,) = self._shapes([table]), self._shapes([replace(table, generation=Generation.ONLY)])
                    history_merge.continue_with(connection, old, new, self._pipeline, continued)
                generations.continue_spans(connection, self._pipeline, pipeline, continued)
            for shape in self._shapes(retired):
                generations.remove(connection, shape, self._pipeline)
            generations.succeed(connection, self._shapes(live), self._pipeline, pipeline)

    @contextlib.contextmanager
    def _exclusively(self) -> Iterator[psycopg.Connection[Any]]:
        """A transaction during which no table is opened or exchanged by others."""
        with self._session.connection() as connection, connection.transaction():
            connection.execute(_LOCK)
            yield connection

    @property
    def unrepairable(self) -> str:
        return ""

    def _verification(self, table: Table) -> TableVerification:
        known = self._verifications.get(table.name)
        if known is None:
            (shape,) = self._shapes([table])
            known = self._verifications[table.name] = TableVerification.of(
                self._session, shape, self._options.nul, self._opened
            )
        return known

    def close(self) -> None:
        self._sent = None
        self._session.close()

    def _failed(self, batch: Batch, error: psycopg.Error) -> Outcome:
        self._partitions.forget()
        found = self._session.translated(error)
        if isinstance(found, StoredAlready):
            return Outcome(superseded=self._checkpoints.missed(batch.parts))
        if is_data_error(error):
            if rejections := bisection.refused(self._session, self._encoder, batch):
                return Outcome(rejections)
            if (kept := self._without_refused_history(batch)) is not None:
                return self.write(kept)
            return self._again(batch, error)
        raise found from error

    def _without_refused_history(self, batch: Batch) -> Batch | None:
        """See ``bisection``. A partition that is missing refuses nothing: it is made again."""
        if not any(part.history for part in batch.parts):
            return None
        self._add_partitions(self.encode(batch).days)
        kept = bisection.without_refused_history(self._session, self._encoder, batch)
        return None if kept == batch else kept

    def _again(self, batch: Batch, error: psycopg.Error) -> Outcome:
        """Write again a batch in which no single write is refused.

        If another session changed a row while a statement waited for its lock, the statement cannot see the new
        version, and takes the row for skipped by a trigger. The next attempt sees it.
        """
        if error.sqlstate != SKIPPED or self._repeated == _REPEATS:
            raise TransientError(
                f"Postgres refused a batch, but accepted its rows one by one: {type(error).__name__}"
            ) from error
        self._repeated += 1
        try:
            return self.write(batch)
        finally:
            self._repeated = 0

    def _shapes(self, tables: Sequence[Table]) -> list[TableSchema]:
        return list(shapes(tables, self._options.schema_).values())

    def _mismatches(self, connection: psycopg.Connection[Any], shape: TableSchema) -> Iterator[str]:
        table = catalog.found(connection, shape)
        if table is not None:
            yield from catalog.taken(shape, table, self._pipeline)
            yield from catalog.foreign(shape, table)
            yield from catalog.mismatches(shape, table)
            yield from hazards(connection, shape, table)
        if shape.history:
            yield from history.problems(connection, shape, self._pipeline)
            yield from history.continuation_problems(connection, shape, self._pipeline)
            for part in history_note.tables_of(shape):
                if (there := catalog.found(connection, part)) is not None:
                    yield from hazards(connection, part, there)

    def _deleted(self, connection: psycopg.Connection[Any], shape: TableSchema, table: catalog.Found) -> int:
        """The latest epoch of the table's tombstones; 0 if ``open`` deletes them, see ``_make``."""
        if not exists(connection) or catalog.is_new(connection, shape, table) or table.lacks_versions:
            return 0
        return cleanup.newest(connection, shape)

    def _make(self, connection: psycopg.Connection[Any], shape: TableSchema, epoch: int) -> None:
        table = catalog.found(connection, shape)
        if table is None:
            connection.execute(catalog.create_table(shape))
        elif table.lacks_versions:
            connection.execute(_BRIEFLY)
            connection.execute(catalog.add_version(shape))
        if table is not None and catalog.lacks_marks(shape, table):
            connection.execute(_BRIEFLY)
            connection.execute(catalog.add_marks(shape))
        if shape.marks and (table is None or not table.marks):
            connection.execute(catalog.comment_on_marks(shape))
        if table is None or table.lacks_versions or catalog.is_new(connection, shape, table):
            connection.execute(cleanup.FORGET, (shape.label,))  # tombstones of an earlier table with that name
        if shape.history:
            history.open_for(connection, shape, self._pipeline, epoch, 0 if table is None else table.epoch)
        if table is None or table.epoch < epoch:  # `parked retry` may open it while a resync starts a later one
            connection.execute(catalog.comment(shape, self._pipeline, epoch))


def _stale(answers: Sequence[Rows]) -> Iterator[tuple[str, int]]:
    totals: dict[str, int] = {}
    for rows in answers:
        for row in rows:
            if len(row) == 2 and row[0] is not None and row[1] is not None:
                source = row[0].decode()
                totals[source] = totals.get(source, 0) + int(row[1])
    return iter(totals.items())
