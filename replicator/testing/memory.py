"""An in-memory target and checkpoint store with the semantics of the real ones, for tests and simulations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import orjson

from replicator.batch import Batch, Delete, DocumentId, Outcome, Rejection, Upsert, Write, outcome_counts
from replicator.checkpoints.compare_and_set import Row, check_owned, saved_already
from replicator.checkpoints.contract import NO_COUNTS, Claimed
from replicator.errors import SweepRefused
from replicator.identity import Identity
from replicator.items.attributes import plain
from replicator.items.item import Item
from replicator.state import (
    FORGOTTEN,
    Counts,
    Entry,
    Owner,
    Parked,
    PipelineState,
    Save,
    counted,
    decode_parked,
    decode_pipeline,
    encode,
    forgotten,
)
from replicator.target.contract import Table
from replicator.target.verification import CHANGED, Comparison, Walked
from replicator.version import epoch_of


class Marked(NamedTuple):
    """A document whose item is gone: it has the version of its delete, and its last body. ``at``: when it vanished."""

    version: int
    body: bytes
    at: float | None


@dataclass(slots=True)
class MemoryDatabase:
    """The durable state: rows and tombstones by table and document id, checkpoint entries, counts.

    A row is (version, body as JSON bytes); a tombstone is a version. ``marked``: the documents that tables with
    ``deletes: mark`` kept, apart from the live ones. ``volatile``: version and time of deletes that a
    search engine remembers for a while, until it restarts. ``made``: how often a table was created, which identifies
    it among tables of the same name. ``keeps``: why a document cannot be deleted, None if it can.
    """

    rows: dict[str, dict[DocumentId, tuple[int, bytes]]] = field(default_factory=dict)
    tombstones: dict[str, dict[DocumentId, int]] = field(default_factory=dict)
    marked: dict[str, dict[DocumentId, Marked]] = field(default_factory=dict)
    volatile: dict[tuple[str, DocumentId], tuple[int, float]] = field(default_factory=dict)
    epochs: dict[str, int] = field(default_factory=dict)
    made: dict[str, int] = field(default_factory=dict)
    entries: dict[tuple[str, str], tuple[int, str]] = field(default_factory=dict)
    counts: dict[str, Counts] = field(default_factory=dict)
    keeps: Callable[[str, DocumentId], str | None] = lambda table, id: None

    def documents(self, table: str) -> dict[DocumentId, Any]:
        """The documents of a table as plain values, as other clients of the destination see them."""
        return {id: orjson.loads(body) for id, (_, body) in self.rows.get(table, {}).items()}


class MemoryCheckpoints:
    """``Checkpoints`` over a MemoryDatabase."""

    def __init__(self, database: MemoryDatabase) -> None:
        self._database = database
        self._claims: dict[str, int] = {}

    def claim(self, owner: Owner) -> Claimed:
        self._claims = {"": self._claim(owner, "")}
        return self.read()

    def claim_slot(self, owner: Owner, slot: str, run: int) -> Claimed:
        check_owned(self._owners([""]), {"": run})
        self._claims = {"": run, slot: self._claim(owner, slot)}
        return replace(self.read(), revision=self._claims[slot])

    def _claim(self, owner: Owner, slot: str) -> int:
        revision = self._owners([slot])[slot] + 1
        self._database.entries["owner", slot] = (revision, encode(owner))
        return revision

    def _owners(self, slots: Iterable[str]) -> dict[str, int]:
        return {slot: self._database.entries.get(("owner", slot), (0, ""))[0] for slot in slots}

    def read(self) -> Claimed:
        listed = [
            Entry(kind, id, revision, "" if kind == "parked" else text)
            for (kind, id), (revision, text) in self._database.entries.items()
        ]
        return Claimed(self._owners([""])[""], listed, dict(self._database.counts))

    def pipeline(self) -> PipelineState | None:
        found = self._database.entries.get(("pipeline", ""))
        return None if found is None else decode_pipeline(found[1])

    def request(self) -> Entry | None:
        found = self._database.entries.get(("request", ""))
        return None if found is None else Entry("request", "", *found)

    def parked(self, prefix: str = "", ids: Collection[str] | None = None) -> Iterator[tuple[str, Parked]]:
        for id in sorted(id for kind, id in self._database.entries if kind == "parked" and id.startswith(prefix)):
            if (ids is None or id in ids) and (found := self._database.entries.get(("parked", id))) is not None:
                yield id, decode_parked(id, found[1])

    def saved_already(self, saves: Sequence[Save]) -> bool:
        """Whether this run has already made exactly these saves (the response was lost). Fenced if they conflict."""
        entries = self._database.entries
        found = {(s.kind, s.id): Row(*entries.get((s.kind, s.id), ())) for s in saves}
        return saved_already(saves, found, self._owners(self._claims), self._claims)

    def save(self, saves: Sequence[Save], counts: Mapping[str, Counts] = NO_COUNTS) -> None:
        if self.saved_already(saves):
            return
        if not self._claims:
            counts = counted(counts, lambda shard: ("shard", shard) in self._database.entries)
        for source, more in counts.items():
            self._count(source, more)
        for source in forgotten(saves):
            if (gone := self._database.counts.pop(source, None)) is not None:
                self._count(FORGOTTEN, gone)
        for save in saves:
            place = (save.kind, save.id)
            revision = self._database.entries.get(place, (0, ""))[0]
            if save.text is None:
                self._database.entries.pop(place, None)
            else:
                self._database.entries[place] = (revision + 1, save.text)

    def _count(self, source: str, more: Counts) -> None:
        self._database.counts[source] = self._database.counts.get(source, Counts()) + more


class MemoryRows:
    """Common to both targets: guarded rows and tombstones. ``refuse``: why an upsert is rejected, None if it is not."""

    def __init__(self, database: MemoryDatabase, refuse: Callable[[Upsert], str | None] = lambda _: None) -> None:
        self._database = database
        self._refuse = refuse
        self._place = ""  # distinguishes databases, for tests with several

    def check(self, tables: Sequence[Table]) -> Sequence[str]:
        return []

    def plan(self, tables: Sequence[Table]) -> Sequence[str]:
        return []

    def refusals(self, tables: Sequence[Table], writes: Sequence[Write]) -> Sequence[Rejection]:
        upserts = [write for write in writes if isinstance(write, Upsert)]
        return [Rejection(write, reason) for write in upserts if (reason := self._refuse(write)) is not None]

    def epoch(self, tables: Sequence[Table]) -> int | None:
        found = [self._epoch(t.name) for t in tables]
        return None if None in found else max(e for e in found if e is not None)

    def empty(self, tables: Sequence[Table]) -> Sequence[str]:
        """As in Postgres, where tombstones do not count."""
        rows, marked = self._database.rows, self._database.marked
        return [t.name for t in tables if rows.get(t.name) == {} and not marked.get(t.name)]

    def _epoch(self, table: str) -> int | None:
        """The stored epoch, or that of the newest version."""
        noted = self._database.epochs.get(table)
        if noted != 0:
            return noted
        rows, tombstones = self._database.rows[table], self._database.tombstones[table]
        marked = [one.version for one in self._database.marked.get(table, {}).values()]
        return epoch_of(max((*(v for v, _ in rows.values()), *tombstones.values(), *marked), default=0))

    def identities(self, tables: Sequence[Table]) -> Mapping[str, Identity]:
        made, rows = self._database.made, self._database.rows
        return {
            t.name: Identity(f"{t.name}{self._place}", str(made.get(t.name, 1)) if t.name in rows else "")
            for t in tables
        }

    def open(self, tables: Sequence[Table], epoch: int) -> None:
        for table in tables:
            if table.name not in self._database.rows:
                self._database.rows[table.name] = {}
                self._database.tombstones[table.name] = {}  # of an earlier table of the same name
                self._database.marked.pop(table.name, None)
            if table.options.get("deletes") == "mark":
                self._database.marked.setdefault(table.name, {})
            self._database.epochs[table.name] = max(epoch, self._database.epochs.get(table.name, 0))

    def _reason(self, write: Write) -> str | None:
        """Why the database rejects a write, None if it does not."""
        if (document := stored_by(write)) is not None:
            return self._refuse(document)
        there = write.id in self._database.rows[write.table]
        return self._database.keeps(write.table, write.id) if there else None

    def _apply(self, write: Write, *, keep: bool, same: bool = False) -> bool:
        rows, tombstones = self._database.rows[write.table], self._database.tombstones[write.table]
        if not self._is_newer(write, keep=keep, same=same):
            return False
        marked = self._database.marked.get(write.table, {})
        tombstones.pop(write.id, None)
        if isinstance(write, Delete):
            if not self._mark(write) and keep:
                tombstones[write.id] = write.version
            rows.pop(write.id, None)
        else:
            rows[write.id] = (write.version, body(write.body))
            marked.pop(write.id, None)
        return True

    def _mark(self, write: Delete) -> bool:
        """Keep the document, as it was last, where the table marks; whether there is one.

        One that is marked already stays as it is, but for its version, unless another one has vanished since.
        """
        marked, row = self._database.marked.get(write.table), self._database.rows[write.table].get(write.id)
        if marked is None:
            return False
        if write.last is not None:
            marked[write.id] = Marked(write.version, body(write.last), write.created)
        elif row is not None:
            marked[write.id] = Marked(write.version, row[1], write.created)
        elif write.id in marked:
            marked[write.id] = marked[write.id]._replace(version=write.version)
        return write.id in marked

    def _is_newer(self, write: Write, *, keep: bool, same: bool) -> bool:
        return write.version > self._known(write)

    def _known(self, write: Write) -> int:
        rows, tombstones = self._database.rows[write.table], self._database.tombstones[write.table]
        return max(rows.get(write.id, (-1, b""))[0], tombstones.get(write.id, -1), self._marked(write.table, write.id))

    def _marked(self, table: str, id: DocumentId) -> int:
        """The version of a marked document, -1 if there is none."""
        return self._database.marked.get(table, {}).get(id, Marked(-1, b"", None)).version

    def sweep(self, table: Table, below: int, spare: Sequence[DocumentId]) -> int:
        return self.bury(table, self.removable(table, self.older(table, below, spare)), below)

    def purge(self, table: Table, below: int, spare: Sequence[DocumentId] = ()) -> int:
        return sum(self.forget(table, id, version) for id, version in unspared(self.buried(table, below), spare))

    def older(self, table: Table, below: int, spare: Sequence[DocumentId]) -> Sequence[DocumentId]:
        """The documents that a sweep removes."""
        rows = self._database.rows[table.name]
        return [id for id, (v, _) in rows.items() if v < below and not any(id[: len(s)] == s for s in spare)]

    def removable(self, table: Table, ids: Sequence[DocumentId]) -> Sequence[DocumentId]:
        """The ids that can be deleted. SweepRefused if none can."""
        kept = {id: reason for id in ids if (reason := self._database.keeps(table.name, id)) is not None}
        if kept and len(kept) == len(ids):
            raise SweepRefused(f"{table.name}: {len(kept)} documents cannot be deleted: {next(iter(kept.values()))}")
        return [id for id in ids if id not in kept]

    def bury(self, table: Table, ids: Sequence[DocumentId], below: int) -> int:
        """Replace these documents by tombstones, unless they are newer by now."""
        return sum(self._apply(Delete(table.name, id, below, id, weight=0), keep=True) for id in ids)

    def buried(self, table: Table, below: int) -> Sequence[tuple[DocumentId, int]]:
        """The tombstones that a purge removes, with their versions."""
        return [(id, version) for id, version in self._database.tombstones[table.name].items() if version < below]

    def forget(self, table: Table, id: DocumentId, version: int) -> int:
        """Remove a tombstone if it still has this version."""
        if self._database.tombstones[table.name].get(id) != version:
            return 0
        del self._database.tombstones[table.name][id]
        return 1

    @property
    def unrepairable(self) -> str:
        return ""

    def compare(self, table: Table, expected: Sequence[Upsert]) -> Sequence[Comparison]:
        return [self._comparison(table, write) for write in expected]

    def _comparison(self, table: Table, write: Upsert) -> Comparison:
        row = self._database.rows[table.name].get(write.id)
        version = None if row is None else row[0]
        if (reason := self._refuse(write)) is not None:
            return Comparison(version, refused=reason)
        if row is None and (marked := self._marked(table.name, write.id)) >= 0:
            return Comparison(marked, ("deleted_at",))
        if row is None:
            return Comparison(None)
        was, wanted = orjson.loads(row[1]), orjson.loads(body(write.body))
        names = sorted(was.keys() | wanted.keys())
        return Comparison(version, tuple(n for n in names if was.get(n, ...) != wanted.get(n, ...)))

    def versions(self, table: Table, ids: Sequence[DocumentId]) -> Sequence[int | None]:
        rows = self._database.rows[table.name]
        return [rows[id][0] if id in rows else None for id in ids]

    def walk(self, table: Table, cursor: str | None, within: DocumentId = ()) -> Walked:
        after = () if cursor is None else tuple(orjson.loads(cursor))
        rows = sorted(id for id in self._database.rows[table.name] if id > after and id[: len(within)] == within)
        ids = rows[:_PIECE]
        return Walked(ids, _cursor(ids[-1]) if len(rows) > _PIECE else None, lambda n: _cursor(ids[n]))

    def replace(self, table: Table, writes: Sequence[Upsert]) -> Sequence[str]:
        return [self._replaced(table, write) for write in writes]

    def _replaced(self, table: Table, write: Upsert) -> str:
        rows = self._database.rows[table.name]
        if write.version not in (rows.get(write.id, (None,))[0], self._marked(table.name, write.id)):
            return CHANGED
        if (reason := self._refuse(write)) is not None:
            return reason
        rows[write.id] = (write.version, body(write.body))
        self._database.marked.get(table.name, {}).pop(write.id, None)
        return ""

    def remove(self, table: Table, writes: Sequence[Delete]) -> Sequence[str]:
        return [self._removed(table, write) for write in writes]

    def _removed(self, table: Table, write: Delete) -> str:
        rows, tombstones = self._database.rows[table.name], self._database.tombstones[table.name]
        if rows.get(write.id, (None,))[0] != write.version:
            return CHANGED
        if (reason := self._database.keeps(table.name, write.id)) is not None:
            return reason
        if not self._mark(write):
            tombstones[write.id] = write.version
        del rows[write.id]
        return ""

    def close(self) -> None:
        pass


_PIECE = 100  # ids of a walk


def _cursor(id: DocumentId) -> str:
    return orjson.dumps(id).decode()


class MemoryTarget(MemoryRows):
    """A target with transactions: entries, counts and rows change together.

    ``at_commit``: rejections appear only when the transaction commits, like those of a deferred constraint, so several
    rejected writes are reported one at a time.
    """

    def __init__(
        self,
        database: MemoryDatabase,
        refuse: Callable[[Upsert], str | None] = lambda _: None,
        *,
        at_commit: bool = False,
    ) -> None:
        super().__init__(database, refuse)
        self._at_commit = at_commit
        self.checkpoints = MemoryCheckpoints(database)

    def _is_newer(self, write: Write, *, keep: bool, same: bool) -> bool:
        """As in Postgres, whose upserts look for no tombstone unless the batch keeps them."""
        if keep or isinstance(write, Delete):
            return super()._is_newer(write, keep=keep, same=same)
        row = self._database.rows[write.table].get(write.id, (-1, b""))[0]
        return write.version > max(row, self._marked(write.table, write.id))

    def write(self, batch: Batch) -> Outcome:
        check_distinct(batch)
        writes = [w for part in batch.parts for w in part.writes]
        rejections = [Rejection(w, reason) for w in writes if (reason := self._reason(w)) is not None]
        if rejections:
            return Outcome(rejections[:1] if self._at_commit else rejections)
        if self.checkpoints.saved_already(batch.saves):
            return Outcome()
        superseded: dict[str, int] = {}
        for part in batch.parts:
            known = sum(w.weight for w in part.writes if not self._apply(w, keep=batch.tombstones))
            if known:
                superseded[part.source] = superseded.get(part.source, 0) + known
        outcome = Outcome((), superseded)
        self.checkpoints.save(batch.saves, outcome_counts(batch, outcome))
        return outcome


def check_distinct(batch: Batch) -> None:
    """As real targets need it: a statement of Postgres affects no row twice, and requests of a batch have no order."""
    ids = Counter((write.table, write.id) for part in batch.parts for write in part.writes)
    twice = [id for id, count in ids.items() if count > 1]
    assert not twice, f"several writes of one document in a batch: {twice[:3]}"


def stored_by(write: Write) -> Upsert | None:
    """The document that a write stores, live or marked; None if it stores none."""
    if isinstance(write, Upsert):
        return write
    return None if write.last is None else Upsert(write.table, write.id, write.last, write.version, write.item)


def body(document: Mapping[str, object]) -> bytes:
    """A document as canonical JSON."""
    if isinstance(document, Item):
        document = {name: plain(v) for name, v in document.typed.items()}
    return orjson.dumps(dict(document), option=orjson.OPT_SORT_KEYS, default=_default)


def _default(value: object) -> object:
    if isinstance(value, set | frozenset):
        return sorted(value, key=str)
    return str(value)


def unspared(buried: Sequence[tuple[DocumentId, int]], spare: Sequence[DocumentId]) -> Sequence[tuple[DocumentId, int]]:
    """The tombstones whose ids do not start with any of ``spare``."""
    return [(id, version) for id, version in buried if not any(id[: len(s)] == s for s in spare)]
