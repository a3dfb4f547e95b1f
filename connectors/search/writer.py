"""Stores a batch: sends what is unfinished, reads every answer, and says what became of the whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile

import orjson

from connectors.search.bulk import SMALLEST, Bulk, Sent
from connectors.search.conflicts import Conflicts, Progress
from connectors.search.encode import Encoded, Entry, insisting
from connectors.search.errors import ResponseLost
from connectors.search.layout import Layout
from connectors.search.responses import STORED, Verdict, worst
from replicator.batch import Outcome, Rejection
from replicator.target.acks import place
from replicator.target.in_doubt import InDoubtWindow

_PROBE = {"_id": "replicator-is-there-room", "version": 0, "version_type": "external"}

Attempt = list[tuple[Entry, Verdict, bool]]
"""Each entry that was sent, what became of it, and whether it was alone in its request."""


@dataclass(slots=True)
class _InFlight:
    encoded: Encoded
    tombstones: bool
    sent: Sequence[tuple[str, Sequence[Entry], Sent]]


class Writing:
    """The way from encoded batches to outcomes. At most one batch is under way."""

    def __init__(self, bulk: Bulk, in_doubt: InDoubtWindow, conflicts: Conflicts) -> None:
        self._bulk = bulk
        self._in_doubt = in_doubt
        self._conflicts = conflicts
        self._progress = Progress()
        self._in_flight: _InFlight | None = None

    def send(self, encoded: Encoded, layouts: Mapping[str, Layout]) -> None:
        """Begin to store what is unfinished of a batch."""
        assert self._in_flight is None, "a batch is under way: collect it first"
        tombstones = encoded.batch.tombstones or bool(self._in_doubt)
        sent = []
        for table, entries in encoded.tables.items():
            pending = self._progress.unfinished(entries, tombstones=tombstones)
            lines = [entry.sent(tombstones=tombstones) for entry in pending]
            if encoded.batch.replaces_same:
                lines = list(map(insisting, lines))
            sent.append((table, pending, self._bulk.start(layouts[table], lines)))
        self._in_flight = _InFlight(encoded, tombstones, sent)

    def ready(self) -> bool:
        in_flight = self._in_flight
        return in_flight is None or all(done.done() for _, _, sent in in_flight.sent for _, done in sent)

    def collect(self, layouts: Mapping[str, Layout]) -> Outcome:
        """Wait for every answer to what was sent. An error if it is not all stored, by what to do about it."""
        in_flight, self._in_flight = self._in_flight, None
        assert in_flight is not None, "nothing was sent"
        if in_flight.encoded.rejections:
            return Outcome(in_flight.encoded.rejections)
        if self._all_stored(in_flight):
            self._bulk.size.grow()
            if self._progress.lost:
                self._progress.forget(in_flight.encoded.entries)
            return Outcome()
        attempt = [one for _, entries, sent in in_flight.sent for one in _answers(entries, sent)]
        self._sized(attempt)
        rejections = self._noted(attempt, layouts, tombstones=in_flight.tombstones)
        if rejections:
            self._progress.came_back(in_flight.encoded.entries)
            return Outcome(rejections)
        if (error := worst([verdict for _, verdict, _ in attempt])) is not None:
            raise error
        return self._whole(in_flight.encoded)

    def _all_stored(self, in_flight: _InFlight) -> bool:
        """Whether the batch is stored by its first attempt, as nearly always."""
        if self._progress:
            return False
        answers = [done.result() for _, _, sent in in_flight.sent for _, done in sent]
        return all(found.count(STORED) == len(found) for found in answers)

    def drop(self) -> None:
        self._in_flight = None

    def _sized(self, attempt: Attempt) -> None:
        """Smaller bulks where the server has no room, or where large ones never get an answer; else larger ones."""
        if any(v.kind == "busy" or isinstance(v.error, ResponseLost) for _, v, _ in attempt):
            self._bulk.size.shrink()
        else:
            self._bulk.size.grow()

    def _noted(self, attempt: Attempt, layouts: Mapping[str, Layout], *, tombstones: bool) -> list[Rejection]:
        """Remember what was said; the writes that are refused for good."""
        conflicting = []
        rejections = []
        for entry, verdict, _ in attempt:
            match verdict.kind:
                case "stored":
                    self._progress.was_stored(entry, tombstones=tombstones)
                case "conflict":
                    conflicting.append(entry)
                case "refused":
                    rejections.append(Rejection(entry.write, verdict.reason))
                case "failed" if isinstance(verdict.error, ResponseLost):
                    self._in_doubt.begin()
                    self._progress.lost.add(place(entry.write))
        self._known(conflicting, layouts, tombstones=tombstones)
        return rejections + self._too_heavy(attempt, layouts) + self._impossible(attempt, layouts)

    def _insisted(self, turned_away: Sequence[Entry], layouts: Mapping[str, Layout]) -> list[Entry]:
        """Put tombstones where a conflict shows only that the engine remembers a delete, until that memory ends.

        What is left of the conflicts; an error if a tombstone was not put.
        """
        bare = self._conflicts.remembered([e for e in turned_away if e.plain is not None], layouts)
        attempt: Attempt = []
        for table in {entry.write.table for entry in bare}:
            entries = [entry for entry in bare if entry.write.table == table]
            verdicts = self._bulk.store(layouts[table], [entry.insisting for entry in entries])
            attempt += ((entry, verdict, True) for entry, verdict in zip(entries, verdicts, strict=True))
        self._noted(attempt, layouts, tombstones=False)
        if (error := worst([verdict for _, verdict, _ in attempt])) is not None:
            raise error
        put = {place(entry.write) for entry, verdict, _ in attempt if verdict.kind == "stored"}
        self._progress.stored.update(dict.fromkeys(put, True))
        return [entry for entry in turned_away if place(entry.write) not in put]

    def _known(self, conflicting: Sequence[Entry], layouts: Mapping[str, Layout], *, tombstones: bool) -> None:
        if tombstones and conflicting:
            conflicting = self._insisted(conflicting, layouts)
        ours = self._conflicts.ours(conflicting, self._progress, layouts)
        for entry in conflicting:
            if place(entry.write) in ours:
                self._progress.was_stored(entry, tombstones=tombstones)
            else:
                self._progress.stale.add(place(entry.write))

    def _too_heavy(self, attempt: Attempt, layouts: Mapping[str, Layout]) -> list[Rejection]:
        """Documents that the engine has no room for, however often it is asked, while it has room for others."""
        busy = [(entry, alone) for entry, verdict, alone in attempt if verdict.kind == "busy"]
        if not busy:
            return []
        heavy = all(alone and len(entry.lines) > SMALLEST for entry, alone in busy)
        if not heavy or not self._room(layouts[busy[0][0].write.table]):
            return []
        return [Rejection(e.write, _TOO_HEAVY.format(len(e.lines))) for e, _ in busy if self._progress.struck(e)]

    def _impossible(self, attempt: Attempt, layouts: Mapping[str, Layout]) -> list[Rejection]:
        """Documents on which the engine fails however often they are sent, while their shard takes others."""
        failing = [entry for entry, verdict, _ in attempt if verdict.own]
        struck = [entry for entry in failing if self._progress.struck(entry)]
        passed = takewhile(lambda e: self._room(layouts[e.write.table], e), struck)
        return [Rejection(entry.write, _IMPOSSIBLE) for entry in passed]

    def _room(self, layout: Layout, beside: Entry | None = None) -> bool:
        """Whether the engine takes anything at all just now, in the shard of a document if one is given."""
        routing = (
            "x" if beside is None else beside.id if layout.routed_by is None else beside.write.id[layout.routed_by]
        )
        (verdict,) = self._bulk.store(layout, [orjson.dumps({"delete": {**_PROBE, "routing": routing}}) + b"\n"])
        return verdict.kind in ("stored", "conflict", "refused")

    def _whole(self, encoded: Encoded) -> Outcome:
        stale = self._progress.stale_by_source(encoded.entries)
        self._progress.forget(encoded.entries)
        return Outcome(superseded=stale)


_TOO_HEAVY = (
    "the engine has no room for this document of {} bytes, though it took others meanwhile (429 each time it was sent "
    "alone): it is too large for the memory of its nodes"
)


_IMPOSSIBLE = "the engine fails on this document (an error 500 each time it was sent), while its shard took others"


def _answers(entries: Sequence[Entry], sent: Sent) -> Attempt:
    found: Attempt = []
    for piece, done in sent:
        sent_entries = entries[piece]
        alone = len(sent_entries) == 1
        found += ((entry, verdict, alone) for entry, verdict in zip(sent_entries, done.result(), strict=True))
    return found
