"""Writes encoded batches to the target's tables, and those of cleanup."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from hashlib import blake2b

from connectors.dynamodb.encode import Encoded, Entry, Request
from connectors.dynamodb.options import DynamoDBOptions
from connectors.dynamodb.responses import Verdict, is_stored, verdict
from connectors.dynamodb.sender import Sender
from replicator.batch import Batch, Write
from replicator.errors import ConfigError, ReplicatorError, TransientError, Unfinished
from replicator.target.acks import AckTracker, Place, place
from replicator.target.guarded_writes import GuardedWriter, Result, most_severe
from replicator.target.in_doubt import TOO_LATE, InDoubtWindow
from replicator.version import ORDINAL_BITS

_ORDINAL = (1 << ORDINAL_BITS) - 1


@dataclass(frozen=True, slots=True)
class _Sent:
    """Requests of one batch. ``done``: empty, or why some of them were not sent."""

    requests: Sequence[tuple[Entry, Request]]
    done: Future[str]


class Writer(GuardedWriter[Entry, Verdict, Encoded, _Sent]):
    """Writes to the tables of one account."""

    def __init__(self, sender: Sender, in_doubt: InDoubtWindow, options: DynamoDBOptions) -> None:
        super().__init__(in_doubt, AckTracker())
        self._sender = sender
        self._version = options.version_attribute
        self._counts = options.write_units is not None
        self._pristine = PristineGuard() if options.pristine else None

    @property
    def in_doubt_windows(self) -> Mapping[str, int]:
        """A number each for purges and sweeps: when it changes, their passes start over."""
        return {"purge": self._in_doubt.begun, "sweep": self._in_doubt.sweep_round}

    def write_all(self, requests: Sequence[Request]) -> int:
        """Send requests of cleanup and wait; how many were applied, the others having met a newer version.

        Raises the most severe error if any request has no clear response.
        """
        blocked_by = self._sender.start(requests).result()
        verdicts = [verdict(request, self._sender.server) for request in requests]
        if any(v is not None and v.kind == "unsure" for v in verdicts):
            self._in_doubt.begin()
        error = most_severe(v.error for v in verdicts if v is not None)
        if error is not None or blocked_by:
            raise error or self._unsent(blocked_by)
        for request, v in zip(requests, verdicts, strict=True):
            if v is not None and v.kind == "refused":  # the next pass would find the item, and be refused again
                server = self._sender.server
                raise ConfigError(f"{server}: {request.table} takes no tombstones ({v.reason}); run check")
        return sum(v is not None and v.kind == "stored" for v in verdicts)

    def _start(self, encoded: Encoded, *, tombstones: bool) -> _Sent:
        pending = self._acks.unfinished(encoded.entries, tombstones=tombstones)
        if self._pristine is not None:
            pending, superseded = self._pristine.split(pending, scanning=encoded.batch.tombstones)
            self._acks.superseded.update(place(entry.write) for entry in superseded)
        lost, counts = self._acks.lost, self._counts
        requests = [
            (e, e.request(tombstones=tombstones, shows=bool(lost) and place(e.write) in lost, counts=counts))
            for e in pending
        ]
        return _Sent(requests, self._sender.start([request for _, request in requests]))

    def _is_done(self, sent: _Sent) -> bool:
        return sent.done.done()

    def _all_stored(self, sent: _Sent) -> bool:
        return not sent.done.result() and all(
            is_stored(request.answer) and (request.then is None or is_stored(request.then.answer))
            for _, request in sent.requests
        )

    def _results(self, sent: _Sent) -> list[Result[Entry, Verdict]]:
        sent.done.result()
        if any(map(self._may_remain, (request for _, request in sent.requests))):
            self._in_doubt.begin()  # a purge follows once it is over
        verdicts = ((entry, verdict(request, self._sender.server)) for entry, request in sent.requests)
        return [Result(entry, v) for entry, v in verdicts if v is not None]

    def _may_remain(self, request: Request) -> bool:
        """Whether a tombstone was stored and not removed again. A conflict means that something replaced it."""
        if request.then is None or not isinstance(request.answer, bytes):
            return False
        removal = verdict(request.then, self._sender.server)
        return removal is None or removal.kind not in ("stored", "conflict")

    def _is_in_doubt(self, verdict: Verdict) -> bool:
        return verdict.kind == "unsure"

    def _own(self, conflicts: Sequence[Result[Entry, Verdict]]) -> set[Place]:
        places = [(place(entry.write), verdict.item or {}) for entry, verdict, _ in conflicts]
        stored = ((at, item.get(self._version, {}).get("N")) for at, item in places if at in self._acks.lost)
        return {at for at, version in stored if version == str(at[2])}

    def _keeps_tombstones(self, batch: Batch) -> bool:
        return self._pristine is None and super()._keeps_tombstones(batch)

    def _failure(self, sent: _Sent, results: Sequence[Result[Entry, Verdict]]) -> ReplicatorError | None:
        error = super()._failure(sent, results)
        blocked_by = sent.done.result()
        if error is None and blocked_by:
            return self._unsent(blocked_by)
        assert error is not None or len(results) == len(sent.requests), "a request without response or reason"
        return error

    def _unsent(self, blocked_by: str) -> TransientError:
        kind = Unfinished if blocked_by == TOO_LATE else TransientError
        return kind(f"{self._sender.server}: {blocked_by}")


class PristineGuard:
    """For tables that keep no versions: tells which scanned items the stream has superseded.

    A scanned page may be written after a change that is newer than the page. Other tables turn such writes away by
    version; for these, a run remembers what it wrote from the stream while it scans, as hashes of 16 bytes each. A
    restart forgets them, and also the pages read so far: the next run reads those again, and then they are up to date.
    """

    def __init__(self) -> None:
        self._changed: set[bytes] = set()

    def split(self, entries: Sequence[Entry], *, scanning: bool) -> tuple[list[Entry], list[Entry]]:
        """The entries to write, and those that are superseded."""
        if not scanning:
            self._changed.clear()
            return list(entries), []
        current: list[Entry] = []
        superseded: list[Entry] = []
        for entry in entries:
            id = _hash(entry.write)
            if entry.write.version & _ORDINAL:  # from the stream: scanned items have ordinal 0
                self._changed.add(id)
                current.append(entry)
            else:
                (superseded if id in self._changed else current).append(entry)
        return current, superseded


def _hash(write: Write) -> bytes:
    return blake2b(repr((write.table, write.id)).encode(errors="surrogatepass"), digest_size=16).digest()
