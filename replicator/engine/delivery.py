"""Delivers batches to the target, with retries, and commits or returns them to the pipeline."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from typing import Any

from replicator.batch import Batch, Outcome, outcome_counts
from replicator.checkpoints.contract import Checkpoints
from replicator.engine.making import Making
from replicator.engine.retry import RetryPolicy, Stopped
from replicator.errors import (
    CheckpointsReverted,
    ConfigError,
    Fenced,
    GapFound,
    NotPermitted,
    ReplicatorError,
    TransientError,
    Unfinished,
)
from replicator.pipeline.parked import DROPPED, PARKED, REPAIR, known, version_in
from replicator.pipeline.pipeline import Pipeline
from replicator.state import Entry, Save, encode
from replicator.target.contract import AppliesLate, Pipelined, Target, Transactional
from replicator.version import epoch_of

REQUEST = "request"
OF_COMMANDS = (PARKED, DROPPED, REQUEST)  # the kinds of entries that commands change during a run
OF_OTHERS = (*OF_COMMANDS, "item")  # also those that other workers change
OF_SWEEPS = ("spared",)  # those that an invocation of AWS Lambda may remove during a run's backfill
RESPONSE_INTERVAL = 0.01  # seconds between two looks at whether the last response is there
CONFIRMED = 5.0  # seconds for which a run trusts its last ownership check


class _Unacknowledged(Exception):
    """The in-doubt window was opened or extended, and the slot's entry does not say so yet."""


class Delivery:
    """Stores batches in order. For a ``Pipelined`` target, the next batch is encoded while one is in flight.

    ``still_at_it`` is called periodically during a batch that takes long, when a heartbeat may be saved; ``active``
    also when none may. ``stored`` is called with the number of changes in each stored batch and the seconds that took.
    ``stopping``: whether the run was asked to end.
    """

    def __init__(
        self,
        target: Target,
        checkpoints: Checkpoints,
        pipeline: Pipeline,
        retrying: RetryPolicy,
        now: Callable[[], float],
        hook_limit: AbstractContextManager[object] | None = None,
        still_at_it: Callable[[], None] = lambda: None,
        stored: Callable[[int, float], None] = lambda changes, seconds: None,
        monotonic: Callable[[], float] = time.monotonic,
        stopping: Callable[[], bool] = lambda: False,
        active: Callable[[], None] = lambda: None,
    ) -> None:
        self._active = active
        self._report_stored = stored
        self._monotonic = monotonic
        self._stopping = stopping
        self._sent_at = 0.0
        self._still_at_it = still_at_it
        self._hook_limit = nullcontext() if hook_limit is None else hook_limit
        self._target = target
        self._overlapping = target if isinstance(target, Pipelined) else None
        self._transactional = isinstance(target, Transactional)
        self._in_doubt = target.in_doubt if isinstance(target, AppliesLate) else None
        self._checkpoints = checkpoints
        self._pipeline = pipeline
        self._retrying = retrying
        self._now = now
        self._in_flight: Batch | None = None
        self._waiting: tuple[Batch, Any] | None = None  # encoded, not sent yet
        self._failed = False
        self._confirmed = -math.inf
        self._said: tuple[int, bool] | None = None  # the in-doubt window as the slot's entry says, or soon will

    @property
    def busy(self) -> bool:
        return self._in_flight is not None or self.full

    @property
    def in_flight(self) -> int:
        """Batches that are encoded or sent, and not stored."""
        return (self._in_flight is not None) + self.full

    @property
    def full(self) -> bool:
        """Whether an encoded batch is waiting, so that no other may be offered."""
        return self._waiting is not None

    def offer(self, batch: Batch) -> None:
        """Store ``batch`` after all earlier ones. It returns to the pipeline if one of those is refused."""
        assert not self.full, "a batch is waiting: push it first"
        if self._pipeline.slot and not batch.parts and not self._transactional:
            if self._settled():
                self._finish(batch, Outcome)
            return
        if self._overlapping is None:
            self._sent_at = self._monotonic()
            self._finish(batch, lambda: self._written_out(batch))
            return
        self._waiting = batch, self._overlapping.encode(batch)
        self.nudge()

    def nudge(self) -> None:
        """Send the waiting batch if its predecessor is done. Does not block."""
        if self.full and (self._in_flight is None or self._failed or self._is_ready()):
            self.push()

    def push(self) -> None:
        """Wait for the batch in flight; then send the waiting batch, unless it was returned to the pipeline."""
        waiting, self._waiting = self._waiting, None
        if self._settled() and waiting is not None:
            self._in_flight, encoded = waiting
            if self._is_acknowledged(self._in_flight):
                self._sent(encoded)
            else:
                self._failed = True

    def settle(self) -> None:
        """Wait until every offered batch is stored or returned to the pipeline."""
        while self.busy:
            self.push()

    def end(self, late: Callable[[], bool]) -> None:
        """Take the response to the batch in flight, so that its connection can be used again, and send nothing more.

        What is not stored is read or delivered again, and meets the same errors. Stopped if there is no response when
        it is ``late``: the connection must be closed then.
        """
        batch, self._in_flight, self._waiting = self._in_flight, None, None
        if batch is None or self._failed:
            return
        while not self._is_ready():
            if late():
                raise Stopped
            time.sleep(RESPONSE_INTERVAL)
        assert self._overlapping is not None
        with suppress(ReplicatorError, Stopped):
            self._finish(batch, self._overlapping.collect)

    def _is_ready(self) -> bool:
        assert self._overlapping is not None
        return self._overlapping.ready()

    def _settled(self) -> bool:
        """Wait for the batch in flight. False if part of it was refused, so that all batches were returned."""
        batch, self._in_flight = self._in_flight, None
        return batch is None or self._finish(batch, lambda: self._collected(batch))

    def flush(self) -> None:
        """Store everything that the pipeline has."""
        self.settle()
        while (batch := self.taken()) is not None:
            self.offer(batch)
            self.settle()

    def record(self, gap: GapFound) -> GapFound | None:
        """Store everything that the pipeline has, among it a gap. If the target cannot, the entries alone: what was
        read is dropped. Returns what the target has lost besides, which was found only now and is recorded, too.

        What else keeps the target from storing (ConfigError, NotPermitted) is raised once the gap is recorded.
        """
        own: GapFound | None = None
        refused: ReplicatorError | None = None
        if not gap.unwritable:
            try:
                self.flush()
                return None
            except GapFound as e:
                own = e
            except (ConfigError, NotPermitted) as e:
                self._pipeline.give_back()
                refused = e
        if own is not None and not self._pipeline.view.has_gap(own):
            self._pipeline.gap(own, self._now())
        self._pipeline.drop_ahead()
        while (batch := self.taken()) is not None:
            self._finish(batch, partial(self._recorded, batch))
        if refused is not None:
            raise refused
        return own

    def _recorded(self, batch: Batch) -> Outcome:
        if self._transactional:
            self._retrying(lambda: self._checkpoints.save(batch.saves), asks="checkpoints")
        return Outcome()

    def save(self) -> None:
        """Store the next batch, and no other."""
        self.settle()
        if (batch := self.taken()) is not None:
            self.offer(batch)
            self.settle()

    def taken(self) -> Batch | None:
        """The next batch from the pipeline. Runs the hook, but on no further item once the run was asked to end."""
        while True:
            making = Making(self._monotonic, self._stopping, self._still_making)
            with self._hook_limit:
                batch = self._pipeline.take(self._now(), making)
            if batch is not None and batch.parts and not making.is_late:
                self._pipeline.pages.took(making.seconds)
            if batch is not None or not making.is_late:
                return batch

    def _still_making(self) -> None:
        """A transaction that is in flight has the connection until its results are there."""
        self._active()
        if not self._transactional:
            self._still_at_it()
        elif self._in_flight is None or self._is_ready():
            try:
                self._still_at_it()
            except Fenced:
                self._free_connection()
                raise

    def _free_connection(self) -> None:
        """Take the response to the batch in flight, which is of no use to a run that was fenced: the next use of the
        connection is to find out by whom.
        """
        batch, self._in_flight = self._in_flight, None
        if batch is not None and not self._failed:
            assert self._overlapping is not None
            with suppress(ReplicatorError):
                self._overlapping.collect()

    def _sent(self, encoded: Any) -> None:
        assert self._overlapping is not None
        self._sent_at = self._monotonic()
        self._failed = True  # until it is sent: otherwise the batch is written again when it is collected
        with suppress(TransientError, GapFound):  # which is found again then
            self.confirm()
            self._overlapping.send(encoded)
            self._failed = False

    def _collected(self, batch: Batch) -> Outcome:
        assert self._overlapping is not None
        failed, self._failed = self._failed, False
        if not failed:
            try:
                return self._overlapping.collect()
            except Unfinished:
                self._active()
                self._still_at_it()
            except TransientError:
                pass  # perhaps stored; writing the batch again is idempotent
        return self._written_out(batch)

    def _written_out(self, batch: Batch) -> Outcome:
        """Write a batch, in several stretches if it takes long; ownership is confirmed before each of them."""
        while (outcome := self._retrying(lambda: self._stretch(batch))) is None:
            self._active()
            self._still_at_it()
        return outcome

    def _stretch(self, batch: Batch) -> Outcome | None:
        """Write as much as the target sends at once; None if part of the batch is left."""
        try:
            return self._written(batch)
        except Unfinished:
            return None

    def _written(self, batch: Batch) -> Outcome:
        if not self._is_acknowledged(batch):
            raise _Unacknowledged
        self.confirm()
        return self._target.write(batch)

    def _finish(self, batch: Batch, answer: Callable[[], Outcome]) -> bool:
        """Commit the batch. False if it was refused or overtaken, so that all batches were returned.

        GapFound, and all were, if the target has lost something. What it stored of them counts for nothing.
        """
        try:
            outcome = self._answered(batch, answer)
            if outcome.rejections:
                self._pipeline.refused(batch, outcome.rejections)
                return False
            if not self._transactional:
                counts = outcome_counts(batch, outcome)
                self._retrying(lambda: self._checkpoints.save(batch.saves, counts), asks="checkpoints")
                self._confirmed = self._now()
        except Fenced as e:
            return self._overtaken(batch, e)
        except _Unacknowledged:
            self._pipeline.give_back()
            self.acknowledge()
            return False
        except GapFound as gap:
            gap.of_target = gap.unwritable = True
            self._pipeline.give_back()
            raise
        self._pipeline.stored(batch, outcome, self._now())
        if changes := sum(part.counts.read for part in batch.parts):
            self._report_stored(changes, self._monotonic() - self._sent_at)
        return True

    def _answered(self, batch: Batch, answer: Callable[[], Outcome]) -> Outcome:
        """What the target says of the batch. GapFound only if it is to store something: an epoch that repairs the gap
        begins with entries alone, before the target is opened again.
        """
        try:
            return answer()
        except GapFound:
            if batch.parts or self._transactional:
                raise
            return Outcome()

    def _overtaken(self, batch: Batch, fenced: Fenced) -> bool:
        """Handle a failed compare-and-set. If this run still owns the pipeline, a command changed parked entries.

        If the batch had been stored before that and only the response was lost, the pipeline's (or slot's) entry shows
        it.
        """
        fence = ("slot", self._pipeline.slot) if self._pipeline.slot else ("pipeline", "")
        self._retrying(lambda: self._checkpoints.save(()), asks="checkpoints")
        stored = {(e.kind, e.id): e for e in self._retrying(self._checkpoints.read, asks="checkpoints").entries}
        if any((s.kind, s.id) == fence and _made(s, stored) for s in batch.saves):
            self._pipeline.stored(batch, Outcome(), self._now())
        elif any(_went_back(s, stored) for s in batch.saves):
            raise CheckpointsReverted(
                "the checkpoints were reverted to an earlier state during this run (failover to a standby without the "
                "last commits, or a restored backup). Start the run again: it resumes from what is stored"
            ) from fenced
        elif not any(_moved(s, stored) for s in batch.saves):
            raise fenced
        self._pipeline.give_back()
        if any(s.kind == REQUEST and _moved(s, stored) for s in batch.saves):
            self._pipeline.request_changed(stored.get((REQUEST, "")))
        self.know_parked()
        if self._in_doubt is not None:  # the command's writes may still be applied, whatever is parked now
            of_items = [s for s in batch.saves if s.kind in (PARKED, DROPPED)]
            moved = [epoch_of(version_in(s.id)) for s in of_items if _moved(s, stored)]
            self._in_doubt.begin(earlier=any(epoch < self._pipeline.epoch for epoch in moved))
        return False

    def acknowledge(self) -> None:
        """Store with the next batch what this worker's in-doubt window is, if the slot's entry does not say so yet.

        Nothing that relies on a tombstone because of the window is sent before that. What the window left to purge is
        left to the coordinator.
        """
        window = self._in_doubt
        if window is None:
            if self._said is None:
                self._pipeline.acknowledge(lingers=None)
            self._said = 0, False
            return
        if window.over:
            window.settle()
        if self._said != (window.begun, bool(window)):
            self._said = window.begun, bool(window)
            self._pipeline.acknowledge(in_doubt=window.left or 0.0, begun=window.begun)

    def acknowledge_again(self) -> None:
        """Store before anything is written that the slot, which rested, has a worker again."""
        self._said = self._pipeline.acknowledged = None
        self.acknowledge()

    def _is_acknowledged(self, batch: Batch) -> bool:
        if not (self._pipeline.slot and batch.parts) or self._in_doubt is None:
            return True
        return self._pipeline.acknowledged == self._in_doubt.begun

    def know_parked(self, entries: Sequence[Entry] | None = None) -> None:
        """Reload the parked items from the checkpoints (``entries``, if just read). No batch may be in flight.

        If a command retried changes since, its writes may still be applied, even if the item is no longer parked. A
        sweep starts over only if they are of an earlier epoch: otherwise frequent retries would postpone it forever.
        """
        before = self._pipeline.parked
        if entries is None and self._pipeline.slot:
            entries = self._retrying(self._checkpoints.read, asks="checkpoints").entries
        found = self._retrying(lambda: known(self._checkpoints, before, entries), asks="checkpoints")
        if self._in_doubt is not None and found.retries != before.retries:
            epoch = self._pipeline.epoch
            self._in_doubt.begin(earlier=found.retries.before(epoch) != before.retries.before(epoch))
        if self._in_doubt is not None and (found.repair is not None or before.repair is not None):
            self._in_doubt.begin()  # its inserts may be applied late: deletes leave tombstones, which are purged later
        self._pipeline.know(found, entries or ())

    def fence_repairs(self) -> None:
        """Before an epoch: make a command's inserts of what it read until now fail, which could come behind the sweep.

        They save its entry in their transactions, expecting the revision before this one.
        """
        while (repair := self._pipeline.parked.repair) is not None:
            again = Save(REPAIR, "", repair[1], encode(repair[0]))
            try:
                self._retrying(partial(self._checkpoints.save, [again]), asks="checkpoints")
                return
            except Fenced:  # the command has changed its entry, unless this run was replaced
                self._retrying(lambda: self._checkpoints.save(()), asks="checkpoints")
                self.know_parked()

    def confirm(self, *, afresh: bool = False) -> None:
        """Fenced if another run took over. Does nothing if the target's transactions check that.

        Ownership is trusted for CONFIRMED seconds, unless ``afresh``. Writes during that time are safe, because the
        next run starts with an in-doubt window. Purging is not: it could remove tombstones that the next run needs.
        """
        lately = 0 <= self._now() - self._confirmed <= CONFIRMED  # the clock may be set back
        if not self._transactional and (afresh or not lately):
            self._checkpoints.save(())
            self._confirmed = self._now()


def _made(save: Save, stored: Mapping[tuple[str, str], Entry]) -> bool:
    entry = stored.get((save.kind, save.id))
    return entry is not None and (entry.revision, entry.text) == ((save.expected or 0) + 1, save.text)


def _went_back(save: Save, stored: Mapping[tuple[str, str], Entry]) -> bool:
    """Whether an entry that only runs change is older than what this run saved."""
    entry = stored.get((save.kind, save.id))
    there = 0 if entry is None else entry.revision
    own = save.kind not in (*OF_OTHERS, *OF_SWEEPS)
    return own and save.expected is not None and there < save.expected


def _moved(save: Save, stored: Mapping[tuple[str, str], Entry]) -> bool:
    """Whether a command, or another worker, changed the entry that the save expects."""
    entry = stored.get((save.kind, save.id))
    there = 0 if entry is None else entry.revision
    return save.kind in OF_OTHERS and save.expected is not None and there != save.expected
