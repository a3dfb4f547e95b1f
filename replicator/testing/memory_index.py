"""An in-memory target without transactions, like search engines and DynamoDB."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import msgspec
import orjson
from msgspec import structs

from replicator.batch import Batch, Delete, DocumentId, Outcome, Rejection, Upsert, Write
from replicator.target.acks import AckTracker, place
from replicator.target.contract import Table
from replicator.target.guarded_writes import acknowledge, outcome
from replicator.target.in_doubt import InDoubtWindow
from replicator.testing.memory import MemoryDatabase, MemoryRows, check_distinct, stored_by, unspared

GC_DELETES = 60.0  # seconds: the default of index.gc_deletes in Elasticsearch and OpenSearch


class Request(msgspec.Struct, frozen=True):
    """A write in flight, of ``source``.

    ``keep``: a delete leaves a tombstone. ``same``: a document of the same version is replaced.
    """

    write: Write
    source: str
    keep: bool
    same: bool = False

    @property
    def plain(self) -> bool | None:
        """Whether a delete may be sent without a tombstone; None for upserts, and for deletes that only mark."""
        return True if stored_by(self.write) is None else None


class MemoryIndex(MemoryRows):
    """A target without transactions, like search engines and DynamoDB: each write is a separate request.

    Writes of an unfinished batch that were acknowledged are not sent again. Deletes without a tombstone are kept in
    ``MemoryDatabase.volatile`` only, for GC_DELETES seconds.
    """

    def __init__(
        self,
        database: MemoryDatabase,
        refuse: Callable[[Upsert], str | None] = lambda _: None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(database, refuse)
        self.in_doubt = InDoubtWindow(now)
        self.acknowledged = AckTracker()
        self._now = now
        self._doomed: dict[tuple[str, int], Sequence[tuple[DocumentId, int]]] = {}

    def empty(self, tables: Sequence[Table]) -> Sequence[str]:
        return [name for name in super().empty(tables) if not self._database.tombstones.get(name)]

    def requests(self, batch: Batch) -> Sequence[Request]:
        """The unfinished writes of a batch."""
        check_distinct(batch)
        keep = batch.tombstones or bool(self.in_doubt)
        unfinished = self.acknowledged.unfinished(_requests(batch, keep), tombstones=keep)
        if not self._database.marked:
            return unfinished
        return [structs.replace(request, write=self._read(request.write)) for request in unfinished]

    def _read(self, write: Write) -> Write:
        """The write that is sent: a document is marked by storing the whole of it, so it is read if no image tells."""
        if isinstance(write, Upsert) or write.last is not None or write.table not in self._database.marked:
            return write
        row, marked = self._database.rows[write.table].get(write.id), self._database.marked[write.table].get(write.id)
        if row is not None:
            return structs.replace(write, last=orjson.loads(row[1]))
        return write if marked is None else structs.replace(write, last=orjson.loads(marked.body), created=marked.at)

    def carry_out(self, request: Request) -> bool:
        """Apply a request on the server, whenever it arrives. False if it is superseded."""
        write = request.write
        return self._apply(write, keep=request.keep, same=request.same)

    def write(self, batch: Batch) -> Outcome:
        sent = [r for r in self.requests(batch) if not self._reason(r.write)]
        for request in sent:
            self.answered(request, applied=self.carry_out(request))
        return self.outcome(batch)

    def answered(self, request: Request, *, applied: bool) -> None:
        """Handle the response to one request."""
        write, acks = request.write, self.acknowledged
        own = place(write) in acks.lost and super()._known(write) == write.version
        acknowledge(acks, request, applied=applied or own, tombstones=request.keep)

    def outcome(self, batch: Batch) -> Outcome:
        """The outcome of a batch whose requests have all been answered or rejected."""
        return outcome(self.acknowledged, _requests(batch, batch.tombstones), self.refused(batch))

    def refused(self, batch: Batch) -> list[Rejection]:
        """The writes that are always rejected."""
        requests = _requests(batch, batch.tombstones)
        return [Rejection(r.write, reason) for r in requests if (reason := self._reason(r.write)) is not None]

    def purge(self, table: Table, below: int, spare: Sequence[DocumentId] = ()) -> int:
        """Remove what the previous call found, see ``AppliesLate``; by version alone, as in a search engine."""
        for id, version in self._doomed.pop((table.name, below), ()):
            self.remove_buried(table, id, version)
        found = self._doomed[table.name, below] = unspared(self.buried(table, below), spare)
        return len(found)

    def remove_buried(self, table: Table, id: DocumentId, version: int) -> int:
        """Remove the tombstone, or the document that replaced it, unless it is newer."""
        at = self._database.rows[table.name].get(id, (-1, b""))[0]
        if 0 <= at <= version:
            del self._database.rows[table.name][id]
        if 0 <= self._marked(table.name, id) <= version:
            del self._database.marked[table.name][id]
        return self.forget(table, id, version)

    def forget(self, table: Table, id: DocumentId, version: int) -> int:
        """The engine remembers the removal of a tombstone like any other delete."""
        forgotten = super().forget(table, id, version)
        if forgotten:
            self._database.volatile[table.name, id] = version, self._now()
        return forgotten

    def _known(self, write: Write) -> int:
        return max(super()._known(write), self._remembered(write))

    def _is_newer(self, write: Write, *, keep: bool, same: bool) -> bool:
        """A tombstone is also written where the engine itself remembers this delete, because it will forget it."""
        tombstone = keep and isinstance(write, Delete)
        return write.version >= self._known(write) + (not same) or (
            tombstone and write.version > super()._known(write) and write.version == self._remembered(write)
        )

    def _remembered(self, write: Write) -> int:
        version, at = self._database.volatile.get((write.table, write.id), (-1, 0.0))
        return version if self._now() < at + GC_DELETES else -1

    def _apply(self, write: Write, *, keep: bool, same: bool = False) -> bool:
        applied = super()._apply(write, keep=keep, same=same)
        if applied:
            at = (write.table, write.id)
            self._database.volatile.pop(at, None)
            if isinstance(write, Delete) and not keep and self._marked(write.table, write.id) < 0:
                self._database.volatile[at] = write.version, self._now()
        return applied


def _requests(batch: Batch, keep: bool) -> list[Request]:
    same = batch.replaces_same
    return [Request(write, part.source, keep, same) for part in batch.parts for write in part.writes]
