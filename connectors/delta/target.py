"""The Delta Lake target: implements the target contract."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from connectors.delta import catalog
from connectors.delta.encode import Encoded, Encoder, encode
from connectors.delta.errors import Conflict, Missing
from connectors.delta.maintenance import Maintenance
from connectors.delta.options import S3, DeltaOptions, DeltaTableOptions
from connectors.delta.probe import keeps_commits
from connectors.delta.schema import VERSION, TableSchema, added, parts, shape, shapes
from connectors.delta.storage import Storage
from connectors.delta.stored_table import (
    ADDED,
    EPOCH,
    KEEP,
    PIPELINE,
    StoredTable,
    id_of,
    ids_and_versions,
    quoted,
    rows,
)
from connectors.delta.tombstones import FOLDER, SCHEMA, Tombstones
from connectors.delta.verification import TableVerification
from connectors.delta.walk import TableWalk
from connectors.delta.writer import TableWriter
from replicator.aws.permissions import Needed
from replicator.batch import Batch, BatchSize, Delete, DocumentId, Outcome, Part, Rejection, Write
from replicator.errors import ConfigError, NotPermitted, Postponed, TransientError, Unfinished
from replicator.identity import REMEMBERS, Change, Identity, Parts
from replicator.target.background import Background
from replicator.target.contract import Denied, Table
from replicator.target.in_doubt import InDoubtWindow
from replicator.target.verification import ComparesByTable, Walked

_ATTEMPTS = 5
_SWEPT = 10_000  # rows to remove in one commit


@dataclass(slots=True)
class _Open:
    """What belongs to one table."""

    encoder: Encoder
    writer: TableWriter
    maintenance: Maintenance


class Sparing:
    """Whether a document's id begins with one of those given."""

    def __init__(self, spare: Sequence[DocumentId]) -> None:
        self._spared = frozenset(spare)

    def __call__(self, id: DocumentId) -> bool:
        return any(id[:length] in self._spared for length in range(1, len(id) + 1))


class Delta(ComparesByTable):
    """Tables in one folder, or under one prefix in S3. Each batch is one commit to each of its tables."""

    Options = DeltaOptions
    TableOptions = DeltaTableOptions

    def __init__(self, options: DeltaOptions, pipeline: str) -> None:
        self._options = options
        self._pipeline = pipeline
        self._storage = Storage(options)
        self._in_doubt = InDoubtWindow()
        self._open: dict[str, _Open] = {}
        self._background = Background()
        self._walks: dict[str, TableWalk] = {}
        self._walking = Background(name="delta walk")
        self._asked: tuple[str, str | None, DocumentId] | None = None

    @property
    def in_doubt(self) -> InDoubtWindow:
        return self._in_doubt

    @property
    def batch_size(self) -> BatchSize:
        return BatchSize(self._options.commit_rows, self._options.commit_seconds)

    @staticmethod
    def permissions(options: DeltaOptions, tables: Sequence[Table], *, keep_expired: bool) -> Sequence[Needed]:
        if not options.in_s3:
            return []
        place = options.path.removeprefix(S3)
        bucket = place.partition("/")[0]
        return [
            Needed("target", "LakeFiles", options, {"LAKE": place}),
            Needed("target", "LakeBucket", options, {"LAKE": bucket}),
        ]

    def check(self, tables: Sequence[Table]) -> Sequence[str]:
        try:
            wanted = shapes(tables).values()
            pairs = [(self._stored(of), of) for of in wanted]
            found = [text for stored, of in pairs for text in catalog.problems(stored, of, stored.found())]
            return found or self._store_problems()
        except NotPermitted as e:
            return [Denied(str(e))]
        except ConfigError as e:
            return e.problems

    def _store_problems(self) -> Sequence[str]:
        """What a run needs of a store that is not S3 itself."""
        endpoint = self._storage.endpoint()
        if not self._options.in_s3 or endpoint is None or keeps_commits(self._storage):
            return []
        return [
            f"{endpoint} lets one commit replace another (it ignores If-None-Match), so that rows would be lost. Use a "
            "store that has conditional writes, as S3 does, or a folder"
        ]

    def plan(self, tables: Sequence[Table]) -> Sequence[str]:
        pairs = [(self._stored(of), of) for of in shapes(tables).values()]
        return [_creation(stored, of) for stored, of in pairs if stored.found() is None]

    def refusals(self, tables: Sequence[Table], writes: Sequence[Write]) -> Sequence[Rejection]:
        return encode(Batch([Part("", writes)]), {n: Encoder(of) for n, of in shapes(tables).items()}).rejections

    def epoch(self, tables: Sequence[Table]) -> int | None:
        stored = [self._stored(of) for of in shapes(tables).values()]
        found = [(one, table) for one in stored if (table := one.found()) is not None]
        if others := [text for one, table in found if (text := catalog.taken(one, table))]:
            raise ConfigError(*others)
        return max(catalog.epoch(table) for _, table in found) if len(found) == len(stored) else None

    def identities(self, tables: Sequence[Table]) -> Mapping[str, Identity]:
        return {name: self._identity(of) for name, of in shapes(tables).items()}

    def _identity(self, of: TableSchema) -> Identity:
        return Identity(self._stored(of).place, self._id(of), beside=self._tombstones(of).stored.place)

    def _id(self, of: TableSchema) -> str:
        """Of a table with its tombstones, which a run that resumes in the middle of a scan needs; empty without one."""
        table, tombstones = self._stored(of).found(), self._tombstones(of).stored.found()
        return "" if table is None else f"{id_of(table)} {'' if tombstones is None else id_of(tombstones)}"

    def empty(self, tables: Sequence[Table]) -> Sequence[str]:
        return [name for name, of in shapes(tables).items() if self._is_empty(of)]

    def _is_empty(self, of: TableSchema) -> bool:
        table = self._stored(of).found()
        if table is None:
            return False
        remembered = self._tombstones(of).stored.found()
        return table.count() == 0 and (remembered is None or remembered.count() == 0)

    def parts(self, table: Table) -> Parts:
        return parts(shape(table))

    def additions(self, tables: Sequence[Table], changes: Sequence[Change]) -> Sequence[str] | None:
        found = added(shapes(tables), changes)
        if found is None:
            return None
        return [f"ALTER TABLE delta.`{self._stored(of).place}` ADD COLUMN {c.name} {c.type}" for of, c in found]

    def extend(self, tables: Sequence[Table], changes: Sequence[Change]) -> None:
        for of, column in added(shapes(tables), changes) or ():
            stored = self._stored(of)
            table = stored.current()
            if column.name not in [field.name for field in table.schema().fields]:
                catalog.add(stored, table, [of.arrow.field(column.name)])

    def open(self, tables: Sequence[Table], epoch: int) -> None:
        wanted = shapes(tables)
        if problems := self.check(tables):
            raise ConfigError(*problems)
        self._walking.settle()
        self._asked = None  # what a walk of before has read is not what is there now
        self._open = {}
        self._open = {name: self._opened(of, epoch) for name, of in wanted.items()}

    def _opened(self, of: TableSchema, epoch: int) -> _Open:
        stored, tombstones, encoder = self._stored(of), self._tombstones(of), Encoder(of)
        notes = {PIPELINE: self._pipeline, EPOCH: str(epoch)}
        tombstones.stored.id = id_of(tombstones.stored.create(SCHEMA, (), notes))
        table = stored.create(of.arrow, of.partition_by, notes)
        notes[KEEP] = stored.keep
        for _ in range(_ATTEMPTS):
            stored.number = stored.last_number(table)
            there = table.metadata().configuration
            if int(there.get(EPOCH, "0")) >= epoch and there.get(KEEP) == stored.keep:
                break
            notes[EPOCH] = str(max(epoch, int(there.get(EPOCH, "0"))))
            if ADDED in there:
                notes[ADDED] = json.dumps([name for name in catalog.added(table) if name not in of.arrow.names])
            try:
                stored.note(table, notes)
            except Conflict:
                table = stored.current()
        else:
            raise TransientError(f"{stored.place} is changed by others all the time")
        stored.id = id_of(table)
        maintenance = Maintenance(self._options, stored, tombstones)
        maintenance.begin()
        return _Open(encoder, TableWriter(of, stored, tombstones), maintenance)

    def recheck(self, tables: Sequence[Table]) -> Sequence[str]:
        """GapFound if a table was removed or replaced. Looks after the files of those for which it is time.

        Unfinished while that goes on; the next call waits for it.
        """
        self._background.result(self._open, self._recheck, f"the compaction in {self._options.path}")
        return []

    def _recheck(self) -> None:
        for opened in self._open.values():
            for stored in (opened.writer.stored, opened.writer.tombstones.stored):
                table = stored.found()
                if table is None:
                    raise stored.gone()
                stored.require_same(table)
            if opened.maintenance.is_due():
                opened.maintenance.run()

    def write(self, batch: Batch) -> Outcome:
        """As in the contract. Unfinished while a commit goes on: the run saves a heartbeat, and calls again."""
        outcome: Outcome = self._background.result(batch, lambda: self._written(batch), "a commit")
        return outcome

    def _written(self, batch: Batch) -> Outcome:
        encoded = self.encode(batch)
        if encoded.rejections:
            return Outcome(encoded.rejections)
        superseded: Counter[str] = Counter()
        tombstones = batch.tombstones or bool(self._in_doubt)
        for name, opened in self._open.items():
            some = encoded.rows.get(name, ())
            try:
                if some or opened.writer.has_to_note(batch):
                    superseded += opened.writer.write(batch, some, tombstones=tombstones)
            except Unfinished:
                raise
            except TransientError:  # no commit can be applied late, but writes of commands may go by the window
                self._in_doubt.begin()
                opened.writer.stored.forget()
                opened.writer.tombstones.stored.forget()
                raise
        return Outcome(superseded=dict(superseded))

    def encode(self, batch: Batch) -> Encoded:
        return encode(batch, {name: opened.encoder for name, opened in self._open.items()})

    def sweep(self, table: Table, below: int, spare: Sequence[DocumentId]) -> int:
        of = shape(table)
        spares = Sparing(spare)
        found = self._older(of, below, spares)
        if found:
            writes = [Delete(table.name, id, below, id, 0) for id in found]
            self._written(Batch([Part("", writes)], tombstones=True))
        return len(found)

    def _older(self, of: TableSchema, below: int, spares: Sparing) -> list[DocumentId]:
        """GapFound if the table was removed or replaced: there is nothing left to sweep, nor what was stored."""
        stored, found = self._stored(of), list[DocumentId]()
        try:
            table = stored.current()
        except Missing:
            raise stored.gone() from None
        stored.require_same(table)
        for piece in rows(table, [*of.keys, VERSION], f"{quoted(VERSION)} < {below:d}"):
            found += [id for id, _ in ids_and_versions(piece, of.keys) if not spares(id)]
            if len(found) >= _SWEPT:
                break
        return found

    def purge(self, table: Table, below: int, spare: Sequence[DocumentId] = ()) -> int:
        return self._tombstones(shape(table)).purge(below, Sparing(spare))

    @property
    def unrepairable(self) -> str:
        return ""

    def _verification(self, table: Table) -> TableVerification:
        of = shape(table)
        return TableVerification(of, Encoder(of), self._stored(of), self._tombstones(of), self._walk(of))

    def walk(self, table: Table, cursor: str | None, within: DocumentId = ()) -> Walked:
        """As in the contract. Postponed while a run's piece takes long: the run writes on meanwhile."""
        if not self._open:
            return super().walk(table, cursor, within)
        walk, asked = self._walk(shape(table)), (table.name, cursor, within)
        if asked != self._asked:
            self._asked = asked  # else the same object again, for which the work goes on
        try:
            piece: Walked = self._walking.result(
                self._asked, lambda: walk.piece(cursor, within), f"reading {walk.stored.place}"
            )
        except Unfinished as e:
            raise Postponed(str(e)) from None
        return piece

    def _walk(self, of: TableSchema) -> TableWalk:
        """With connections of its own: it goes on beside commits."""
        found = self._walks.get(of.name)
        if found is None or found.keys != of.keys:
            stored = StoredTable(self._storage, self._storage.place(of.name), self._pipeline)
            found = self._walks[of.name] = TableWalk(stored, of.keys)
        return found

    def close(self) -> None:
        self._walking.settle()
        self._background.settle()
        self._open = {}
        self._walks = {}
        self._storage.close()

    def _stored(self, of: TableSchema) -> StoredTable:
        """For what is not done in the background: one thread at a time uses a table."""
        self._background.settle()
        opened = self._open.get(of.name)
        if opened is not None and opened.writer.shape == of:
            return opened.writer.stored
        return StoredTable(self._storage, self._storage.place(of.name), self._pipeline)

    def _tombstones(self, of: TableSchema) -> Tombstones:
        self._background.settle()
        opened = self._open.get(of.name)
        if opened is not None and opened.writer.shape == of:
            return opened.writer.tombstones
        place = self._storage.place(of.name, FOLDER)
        return Tombstones(StoredTable(self._storage, place, self._pipeline, purpose=REMEMBERS))


def _creation(stored: StoredTable, of: TableSchema) -> str:
    columns = ", ".join(f"{field.name} {field.type}" for field in of.arrow)
    divided = f" PARTITIONED BY ({', '.join(of.partition_by)})" if of.partition_by else ""
    return f"CREATE TABLE delta.`{stored.place}` ({columns}){divided}"
