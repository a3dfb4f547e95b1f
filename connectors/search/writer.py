"""Writes encoded batches to the indices of one cluster, as bulk requests."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from itertools import takewhile

import orjson

from connectors.search import marking
from connectors.search.bulk import SMALLEST, Bulk, Sent
from connectors.search.conflicts import Conflicts, Progress
from connectors.search.encode import Encoded, Entry, insisting
from connectors.search.errors import ResponseLost
from connectors.search.layout import Layout
from connectors.search.marking import Stored
from connectors.search.responses import STORED, Verdict, worst
from replicator.batch import Delete, DocumentId, Rejection
from replicator.errors import ReplicatorError
from replicator.target import guarded_writes
from replicator.target.acks import Place, place
from replicator.target.guarded_writes import GuardedWriter
from replicator.target.in_doubt import InDoubtWindow

_PROBE = {"_id": "replicator-is-there-room", "version": 0, "version_type": "external"}
_TOO_HEAVY = (
    "the engine has no room for this document of {} bytes, though it took others meanwhile (429 each time it was sent "
    "alone): it is too large for the memory of its nodes"
)
_IMPOSSIBLE = "the engine fails on this document (an error 500 each time it was sent), while its shard took others"

Result = guarded_writes.Result[Entry, Verdict]
_Sent = Sequence[tuple[Sequence[Entry], Sent]]
"""For each index its entries, and the bulk requests they are in."""


class Writer(GuardedWriter[Entry, Verdict, Encoded, _Sent]):
    """Writes to one cluster. ``layouts``: the indices, by table."""

    def __init__(
        self,
        bulk: Bulk,
        in_doubt: InDoubtWindow,
        conflicts: Conflicts,
        read: Callable[[Layout, Sequence[DocumentId]], Sequence[Stored | None]],
    ) -> None:
        self._progress = Progress()
        super().__init__(in_doubt, self._progress)
        self._bulk = bulk
        self._conflicts = conflicts
        self._read = read
        self.layouts: Mapping[str, Layout] = {}

    def _start(self, encoded: Encoded, *, tombstones: bool) -> _Sent:
        pending = {
            table: self._pending(table, entries, tombstones=tombstones) for table, entries in encoded.tables.items()
        }  # all of them first: what is read may fail, and nothing may be in flight then
        sent = []
        for table, entries in pending.items():
            lines = [entry.sent(tombstones=tombstones) for entry in entries]
            if encoded.batch.replaces_same:
                lines = list(map(insisting, lines))
            sent.append((entries, self._bulk.start(self.layouts[table], lines)))
        return sent

    def _pending(self, table: str, entries: Sequence[Entry], *, tombstones: bool) -> Sequence[Entry]:
        unfinished = self._progress.unfinished(entries, tombstones=tombstones)
        return self._marking(self.layouts[table], unfinished) if self.layouts[table].marks else unfinished

    def _marking(self, layout: Layout, entries: Sequence[Entry]) -> Sequence[Entry]:
        """The entries with deletes that mark the stored document; those that find none stay as they are."""
        ids = [entry.write.id for entry in entries if entry.plain is not None]
        stored = {id: one for id, one in zip(ids, self._read(layout, ids), strict=True) if one is not None}
        return [_mark(layout, e, stored[e.write.id]) if e.write.id in stored else e for e in entries]

    def _is_done(self, sent: _Sent) -> bool:
        return all(done.done() for _, requests in sent for _, done in requests)

    def _is_first_attempt(self) -> bool:
        return not self._progress

    def _all_stored(self, sent: _Sent) -> bool:
        verdicts = [done.result() for _, requests in sent for _, done in requests]
        stored = all(found.count(STORED) == len(found) for found in verdicts)
        if stored:
            self._bulk.size.grow()
        return stored

    def _results(self, sent: _Sent) -> list[Result]:
        results = [result for entries, requests in sent for result in _results(entries, requests)]
        self._resize(results)
        return results

    def _resize(self, results: Sequence[Result]) -> None:
        """Smaller bulks where the server has no room, or where large ones never get a response; else larger ones."""
        if any(r.verdict.kind == "busy" or self._is_in_doubt(r.verdict) for r in results):
            self._bulk.size.shrink()
        else:
            self._bulk.size.grow()

    def _is_in_doubt(self, verdict: Verdict) -> bool:
        return isinstance(verdict.error, ResponseLost)

    def _record(self, results: Sequence[Result], *, tombstones: bool) -> list[Rejection]:
        rejections = super()._record(results, tombstones=tombstones)
        return rejections + self._too_heavy(results) + self._impossible(results)

    def _resolve(self, conflicts: Sequence[Result], *, tombstones: bool) -> None:
        super()._resolve(self._bury_again(conflicts) if tombstones else conflicts, tombstones=tombstones)

    def _bury_again(self, conflicts: Sequence[Result]) -> Sequence[Result]:
        """Put tombstones where a conflict only shows that the engine remembers a delete: it soon forgets that.

        Returns the remaining conflicts; raises an error if a tombstone could not be put.
        """
        deletes = [r.entry for r in conflicts if r.entry.plain is not None]
        missing = self._conflicts.remembered(deletes, self.layouts)
        results: list[Result] = []
        for table in {entry.write.table for entry in missing}:
            entries = [entry for entry in missing if entry.write.table == table]
            verdicts = self._bulk.store(self.layouts[table], [entry.insisting for entry in entries])
            results += map(guarded_writes.Result, entries, verdicts)
        self._record(results, tombstones=False)
        if (error := worst([r.verdict for r in results])) is not None:
            raise error
        put = {place(r.entry.write) for r in results if r.verdict.kind == "stored"}
        self._progress.stored.update(dict.fromkeys(put, True))
        return [r for r in conflicts if place(r.entry.write) not in put]

    def _own(self, conflicts: Sequence[Result]) -> set[Place]:
        return self._conflicts.ours([r.entry for r in conflicts], self._progress, self.layouts)

    def _failure(self, sent: _Sent, results: Sequence[Result]) -> ReplicatorError | None:
        return worst([r.verdict for r in results])

    def _too_heavy(self, results: Sequence[Result]) -> list[Rejection]:
        """Large documents that the engine rejects as busy every time, sent alone, while it has room for others."""
        busy = [r for r in results if r.verdict.kind == "busy"]
        if not busy:
            return []
        heavy = all(r.alone and len(r.entry.lines) > SMALLEST for r in busy)
        if not heavy or not self._has_room(self.layouts[busy[0].entry.write.table]):
            return []
        entries = [r.entry for r in busy if self._progress.struck(r.entry)]
        return [Rejection(e.write, _TOO_HEAVY.format(len(e.lines))) for e in entries]

    def _impossible(self, results: Sequence[Result]) -> list[Rejection]:
        """Documents on which the engine fails every time, while their shard takes others."""
        failing = [r.entry for r in results if r.verdict.own]
        struck = [entry for entry in failing if self._progress.struck(entry)]
        passed = takewhile(lambda e: self._has_room(self.layouts[e.write.table], e), struck)
        return [Rejection(entry.write, _IMPOSSIBLE) for entry in passed]

    def _has_room(self, layout: Layout, beside: Entry | None = None) -> bool:
        """Whether the engine takes anything at all now, in the shard of the document ``beside`` if one is given."""
        routing = "x" if beside is None else layout.routing(beside.write.id) or beside.id
        (verdict,) = self._bulk.store(layout, [orjson.dumps({"delete": {**_PROBE, "routing": routing}}) + b"\n"])
        return verdict.kind in ("stored", "conflict", "refused")


def _mark(layout: Layout, entry: Entry, stored: Stored) -> Entry:
    write = entry.write
    at = write.created if isinstance(write, Delete) else None
    lines = marking.mark(layout, write.id, write.version, stored, time.time() if at is None else at)
    return Entry(write, entry.source, lines)


def _results(entries: Sequence[Entry], requests: Sent) -> list[Result]:
    results: list[Result] = []
    for piece, done in requests:
        sent = entries[piece]
        alone = len(sent) == 1
        results += [
            guarded_writes.Result(entry, verdict, alone) for entry, verdict in zip(sent, done.result(), strict=True)
        ]
    return results
