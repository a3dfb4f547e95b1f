"""Stores batches in targets without transactions, where every write is a request guarded by its version.

Such a target applies a write only if nothing newer is stored under its id. A batch may take several attempts; each one

1. sends the writes that no earlier attempt finished,
2. reads a verdict on each of them from the responses,
3. acknowledges what was stored. A conflict is either a write of this run whose response was lost, or superseded,
4. opens the in-doubt window where a response is missing: that write may have been applied, or may still be.

The batch is stored when every write is acknowledged. If the target refuses one for good, the whole batch comes back:
the caller parks the refused writes and sends the others again, in other batches.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, Protocol, TypeVar

from replicator.batch import Batch, Outcome, Rejection
from replicator.errors import ReplicatorError, TransientError
from replicator.target.acks import AckTracker, Entry, Place, place
from replicator.target.in_doubt import InDoubtWindow


class Verdict(Protocol):
    """What a response means for one write.

    ``kind``: ``stored``; ``conflict``: that version or a newer one is there; ``refused``: for good, for the ``reason``.
    Any other kind: not stored for now, because of ``error``.
    """

    @property
    def kind(self) -> str: ...
    @property
    def reason(self) -> str: ...
    @property
    def error(self) -> ReplicatorError | None: ...


class EncodedBatch(Protocol):
    """A batch in the target's own form. With ``rejections`` there is nothing to send."""

    @property
    def batch(self) -> Batch: ...
    @property
    def entries(self) -> Sequence[Entry]: ...
    @property
    def rejections(self) -> Sequence[Rejection]: ...


E = TypeVar("E", bound=Entry)
V = TypeVar("V", bound=Verdict)
B = TypeVar("B", bound=EncodedBatch)
S = TypeVar("S")


class Result(NamedTuple, Generic[E, V]):
    """A write that was sent, and the verdict on it. ``alone``: no other write was in the same request."""

    entry: E
    verdict: V
    alone: bool = True


@dataclass(frozen=True, slots=True)
class _InFlight(Generic[B, S]):
    encoded: B
    tombstones: bool
    sent: S


class GuardedWriter(ABC, Generic[E, V, B, S]):
    """The algorithm above, at most one batch in flight. ``S`` is what a subclass keeps of the requests it sent."""

    def __init__(self, in_doubt: InDoubtWindow, acks: AckTracker) -> None:
        self._in_doubt = in_doubt
        self._acks = acks
        self._in_flight: _InFlight[B, S] | None = None

    def send(self, encoded: B) -> None:
        """Send what is unfinished of a batch, without waiting for responses."""
        assert self._in_flight is None, "a batch is in flight: collect it first"
        tombstones = self._keeps_tombstones(encoded.batch)
        self._in_flight = _InFlight(encoded, tombstones, self._start(encoded, tombstones=tombstones))

    def ready(self) -> bool:
        """Whether ``collect`` would return without waiting."""
        return self._in_flight is None or self._is_done(self._in_flight.sent)

    def collect(self) -> Outcome:
        """Wait for every response. Unless the batch is stored, or refused in part, raises the most severe error."""
        in_flight, self._in_flight = self._in_flight, None
        assert in_flight is not None, "nothing was sent"
        encoded = in_flight.encoded
        if encoded.rejections:
            return Outcome(encoded.rejections)
        if self._is_first_attempt() and self._all_stored(in_flight.sent):  # nearly always
            if self._acks.lost:
                self._acks.forget(encoded.entries)
            return Outcome()
        results = self._results(in_flight.sent)
        if rejections := self._record(results, tombstones=in_flight.tombstones):
            return outcome(self._acks, encoded.entries, rejections)
        if (error := self._failure(in_flight.sent, results)) is not None:
            raise error
        return outcome(self._acks, encoded.entries)

    def drop(self) -> None:
        """Forget the batch in flight."""
        self._in_flight = None

    @abstractmethod
    def _start(self, encoded: B, *, tombstones: bool) -> S:
        """Send what is unfinished. ``tombstones``: deletes leave one."""

    @abstractmethod
    def _is_done(self, sent: S) -> bool:
        """Whether every response is there."""

    @abstractmethod
    def _all_stored(self, sent: S) -> bool:
        """Wait for the responses; whether each of them says ``stored``. A shortcut that need not make results."""

    @abstractmethod
    def _results(self, sent: S) -> Sequence[Result[E, V]]:
        """Wait for the responses; a result for every write that was sent."""

    @abstractmethod
    def _is_in_doubt(self, verdict: V) -> bool:
        """Whether the write may have been applied, or may still be."""

    @abstractmethod
    def _own(self, conflicts: Sequence[Result[E, V]]) -> set[Place]:
        """The conflicting writes that are stored because this run sent them before."""

    def _keeps_tombstones(self, batch: Batch) -> bool:
        return batch.tombstones or bool(self._in_doubt)

    def _is_first_attempt(self) -> bool:
        """Whether nothing is remembered of an earlier attempt at the same batch."""
        return not (self._acks.stored or self._acks.superseded)

    def _record(self, results: Sequence[Result[E, V]], *, tombstones: bool) -> list[Rejection]:
        """Take in the verdicts; the writes that are refused for good."""
        conflicts: list[Result[E, V]] = []
        rejections: list[Rejection] = []
        for result in results:
            entry, verdict, _ = result
            match verdict.kind:
                case "stored":
                    self._acks.was_stored(entry, tombstones=tombstones)
                case "conflict":
                    conflicts.append(result)
                case "refused":
                    rejections.append(Rejection(entry.write, verdict.reason))
                case _ if self._is_in_doubt(verdict):
                    self._in_doubt.begin()
                    self._acks.lost.add(place(entry.write))
        if conflicts:
            self._resolve(conflicts, tombstones=tombstones)
        return rejections

    def _resolve(self, conflicts: Sequence[Result[E, V]], *, tombstones: bool) -> None:
        """Tell this run's own writes among the conflicts from superseded ones."""
        own = self._own(conflicts)
        for entry, _, _ in conflicts:
            acknowledge(self._acks, entry, applied=place(entry.write) in own, tombstones=tombstones)

    def _failure(self, sent: S, results: Sequence[Result[E, V]]) -> ReplicatorError | None:
        """Why the batch is not stored; None if it is."""
        return most_severe(result.verdict.error for result in results)


def acknowledge(acks: AckTracker, entry: Entry, *, applied: bool, tombstones: bool) -> None:
    """Note that a write is finished: ``applied`` by this run, or superseded."""
    if applied:
        acks.was_stored(entry, tombstones=tombstones)
    else:
        acks.superseded.add(place(entry.write))


def outcome(acks: AckTracker, entries: Sequence[Entry], rejections: Sequence[Rejection] = ()) -> Outcome:
    """The outcome of a batch whose ``entries`` are all acknowledged, or some of which are refused."""
    if rejections:
        acks.came_back(entries)
        return Outcome(rejections)
    superseded = acks.superseded_by_source(entries)
    acks.forget(entries)
    return Outcome(superseded=superseded)


def most_severe(errors: Iterable[ReplicatorError | None]) -> ReplicatorError | None:
    """The first permanent error, else the first transient one: permanent errors take precedence."""
    found = [error for error in errors if error is not None]
    return next((e for e in found if not isinstance(e, TransientError)), found[0] if found else None)
