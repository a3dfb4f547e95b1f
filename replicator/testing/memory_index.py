"""A target without transactions in memory, as search engines and DynamoDB are."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import msgspec

from replicator.batch import Batch, Delete, DocumentId, Outcome, Rejection, Upsert, Write
from replicator.target.acks import AckTracker, place
from replicator.target.contract import Table
from replicator.target.guarded_writes import acknowledge, outcome
from replicator.target.in_doubt import InDoubtWindow
from replicator.testing.memory import MemoryDatabase, MemoryRows, unspared

GC_DELETES = 60.0  # seconds: index.gc_deletes of Elasticsearch and OpenSearch, as it is unless somebody sets it


class Request(msgspec.Struct, frozen=True):
    """One write on its way, as part of ``source``. ``keep``: a delete leaves a tombstone. ``same``: what is there at
    the same version is replaced."""

    write: Write
    source: str
    keep: bool
    same: bool = False

    @property
    def plain(self) -> bool | None:
        """Whether it can be sent without leaving a tombstone; None for what is no delete."""
        return True if isinstance(self.write, Delete) else None


class MemoryIndex(MemoryRows):
    """A target without transactions, as search engines and DynamoDB are: each write is a request of its own.

    What it acknowledged of an unfinished batch is not sent again. Deletes without a tombstone are remembered in
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
        """What is unfinished of a batch."""
        keep = batch.tombstones or bool(self.in_doubt)
        return self.acknowledged.unfinished(_requests(batch, keep), tombstones=keep)

    def carry_out(self, request: Request) -> bool:
        """What the server does with it, whenever it arrives; False if it knew that version already."""
        write = request.write
        return self._apply(write, keep=request.keep, same=request.same)

    def write(self, batch: Batch) -> Outcome:
        sent = [r for r in self.requests(batch) if not self._reason(r.write)]
        for request in sent:
            self.answered(request, applied=self.carry_out(request))
        return self.outcome(batch)

    def answered(self, request: Request, *, applied: bool) -> None:
        """Take the response to one request."""
        write, acks = request.write, self.acknowledged
        own = place(write) in acks.lost and super()._known(write) == write.version
        acknowledge(acks, request, applied=applied or own, tombstones=request.keep)

    def outcome(self, batch: Batch) -> Outcome:
        """What became of a batch of which every request was answered or refused."""
        return outcome(self.acknowledged, _requests(batch, batch.tombstones), self.refused(batch))

    def refused(self, batch: Batch) -> list[Rejection]:
        """What of the batch is never taken."""
        requests = _requests(batch, batch.tombstones)
        return [Rejection(r.write, reason) for r in requests if (reason := self._reason(r.write)) is not None]

    def purge(self, table: Table, below: int, spare: Sequence[DocumentId] = ()) -> int:
        """Remove what the last call found; see ``AppliesLate``. As in a search engine, by the version alone."""
        for id, version in self._doomed.pop((table.name, below), ()):
            self.remove(table, id, version)
        found = self._doomed[table.name, below] = unspared(self.buried(table, below), spare)
        return len(found)

    def remove(self, table: Table, id: DocumentId, version: int) -> int:
        """Remove what is there under this id, if it is not newer: a tombstone, or what took its place."""
        at = self._database.rows[table.name].get(id, (-1, b""))[0]
        if 0 <= at <= version:
            del self._database.rows[table.name][id]
        return self.forget(table, id, version)

    def forget(self, table: Table, id: DocumentId, version: int) -> int:
        """The engine remembers a tombstone that it removes like any other delete."""
        forgotten = super().forget(table, id, version)
        if forgotten:
            self._database.volatile[table.name, id] = version, self._now()
        return forgotten

    def _known(self, write: Write) -> int:
        return max(super()._known(write), self._remembered(write))

    def _is_newer(self, write: Write, *, keep: bool, same: bool) -> bool:
        """A tombstone is also put where the engine itself remembers this very delete: that will end."""
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
            if isinstance(write, Delete) and not keep:
                self._database.volatile[at] = write.version, self._now()
        return applied


def _requests(batch: Batch, keep: bool) -> list[Request]:
    same = batch.replaces_same
    return [Request(write, part.source, keep, same) for part in batch.parts for write in part.writes]
