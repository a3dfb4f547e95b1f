"""Stores a batch: sends what is unfinished, reads every answer, and says what became of the whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from connectors.dynamodb.encode import Encoded, Entry
from connectors.dynamodb.options import DynamoDBOptions
from connectors.dynamodb.pristine_guard import Overtaken
from connectors.dynamodb.request import Request
from connectors.dynamodb.responses import Verdict, verdict
from connectors.dynamodb.sender import Sender
from replicator.batch import Outcome, Rejection
from replicator.errors import ConfigError, ReplicatorError, TransientError, Unfinished
from replicator.target.acks import AckTracker, place
from replicator.target.in_doubt import TOO_LATE, InDoubtWindow


@dataclass(slots=True)
class _InFlight:
    encoded: Encoded
    tombstones: bool
    sent: Sequence[tuple[Entry, Request]]
    done: Future[str]


class Writing:
    """The way from encoded batches to outcomes. At most one batch is under way."""

    def __init__(self, sender: Sender, in_doubt: InDoubtWindow, options: DynamoDBOptions) -> None:
        self._sender = sender
        self._in_doubt = in_doubt
        self._version = options.version_attribute
        self._counts = options.write_units is not None
        self._overtaken = Overtaken() if options.pristine else None
        self._progress = AckTracker()
        self._in_flight: _InFlight | None = None

    @property
    def in_doubt_windows(self) -> Mapping[str, int]:
        """Numbers of a purge and a sweep: with another one they begin anew."""
        return {"purge": self._in_doubt.begun, "sweep": self._in_doubt.sweep_round}

    def send(self, encoded: Encoded) -> None:
        """Begin to store what is unfinished of a batch."""
        assert self._in_flight is None, "a batch is under way: collect it first"
        tombstones = self._overtaken is None and (encoded.batch.tombstones or bool(self._in_doubt))
        pending = self._progress.unfinished(encoded.entries, tombstones=tombstones)
        if self._overtaken is not None:
            pending, stale = self._overtaken.split(pending, scanning=encoded.batch.tombstones)
            self._progress.stale.update(place(entry.write) for entry in stale)
        lost, counts = self._progress.lost, self._counts
        sent = [
            (e, e.request(tombstones=tombstones, shows=bool(lost) and place(e.write) in lost, counts=counts))
            for e in pending
        ]
        done = self._sender.start([request for _, request in sent])
        self._in_flight = _InFlight(encoded, tombstones, sent, done)

    def ready(self) -> bool:
        return self._in_flight is None or self._in_flight.done.done()

    def collect(self) -> Outcome:
        """Wait for every answer to what was sent. An error if it is not all stored, by what to do about it."""
        in_flight, self._in_flight = self._in_flight, None
        assert in_flight is not None, "nothing was sent"
        blocked_by = in_flight.done.result()
        if in_flight.encoded.rejections:
            return Outcome(in_flight.encoded.rejections)
        rejections, errors = self._noted(in_flight)
        if rejections:
            self._progress.came_back(in_flight.encoded.entries)
            return Outcome(rejections)
        if errors:
            raise _worst(errors)
        if blocked_by:
            raise self._unsent(blocked_by)
        assert all(request.answer is not None for _, request in in_flight.sent), "a request without answer or reason"
        return self._whole(in_flight.encoded.entries)

    def all_done(self, requests: Sequence[Request]) -> int:
        """Carry out writes of our own; how many of them the table did not turn away. An error if some are not done."""
        blocked_by = self._sender.start(requests).result()
        found = [verdict(request, self._sender.server) for request in requests]
        errors = [v.error for v in found if v is not None and v.error is not None]
        if any(v is not None and v.kind == "unsure" for v in found):
            self._in_doubt.begin()
        if errors or blocked_by:
            raise _worst(errors or [self._unsent(blocked_by)])
        for request, told in zip(requests, found, strict=True):
            if told is not None and told.kind == "refused":  # it would be found again by the next pass, and refused
                server, reason = self._sender.server, told.reason
                raise ConfigError(f"{server}: {request.table} takes no tombstones ({reason}); run check")
        return sum(v is not None and v.kind == "stored" for v in found)

    def _unsent(self, blocked_by: str) -> TransientError:
        kind = Unfinished if blocked_by == TOO_LATE else TransientError
        return kind(f"{self._sender.server}: {blocked_by}")

    def drop(self) -> None:
        self._in_flight = None

    def _noted(self, in_flight: _InFlight) -> tuple[list[Rejection], list[ReplicatorError]]:
        """Remember what was said; the writes that are refused for good, and the errors."""
        rejections: list[Rejection] = []
        errors: list[ReplicatorError] = []
        for entry, request in in_flight.sent:
            found = verdict(request, self._sender.server)
            if found is None:
                continue
            if found.kind == "stored":
                self._progress.was_stored(entry, tombstones=in_flight.tombstones)
            elif found.kind == "conflict":
                self._known(entry, found, in_flight.tombstones)
            elif found.kind == "refused":
                rejections.append(Rejection(entry.write, found.reason))
            elif found.error is not None:
                errors.append(found.error)
                if found.kind == "unsure":
                    self._in_doubt.begin()
                    self._progress.lost.add(place(entry.write))
        return rejections, errors

    def _known(self, entry: Entry, found: Verdict, tombstones: bool) -> None:
        """The table has that version, or a newer one: perhaps from a request of ours whose answer was lost."""
        there = (found.found or {}).get(self._version, {}).get("N")
        if place(entry.write) in self._progress.lost and there == str(entry.write.version):
            self._progress.was_stored(entry, tombstones=tombstones)
        else:
            self._progress.stale.add(place(entry.write))

    def _whole(self, entries: Sequence[Entry]) -> Outcome:
        stale = self._progress.stale_by_source(entries)
        self._progress.forget(entries)
        return Outcome(superseded=stale)


def _worst(errors: Sequence[ReplicatorError]) -> ReplicatorError:
    """What a person must change before what time mends."""
    return next((e for e in errors if not isinstance(e, TransientError)), errors[0])
