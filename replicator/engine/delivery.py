"""Hands batches to the target: the one place that retries, and where a batch becomes stored or comes back."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from replicator.batch import Batch, Outcome, outcome_counts
from replicator.checkpoints.contract import Checkpoints
from replicator.engine.retry import RetryPolicy
from replicator.errors import Fenced, PutBack, TransientError, Unfinished
from replicator.pipeline.parked import DROPPED, PARKED, known, version_in
from replicator.pipeline.pipeline import Pipeline
from replicator.state import Entry, Save
from replicator.target.contract import AppliesLate, Pipelined, Target, Transactional
from replicator.version import epoch_of

CONFIRMED = 5.0  # seconds for which a run believes that no other one took over; it may have been stopped meanwhile


class Delivery:
    """Stores batches in order. Where the target can, one is under way while the next is encoded, and then waits.

    ``still_at_it`` is called now and then while a batch takes long.
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
    ) -> None:
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
        self._waiting: tuple[Batch, Any] | None = None  # with its encoded form
        self._failed = False
        self._confirmed = -math.inf

    @property
    def busy(self) -> bool:
        return self._in_flight is not None or self.full

    @property
    def full(self) -> bool:
        """Whether no batch may be offered, because one waits already."""
        return self._waiting is not None

    def offer(self, batch: Batch) -> None:
        """Begin to store ``batch`` behind everything before it; if something before was refused, it comes back."""
        assert not self.full, "a batch waits: push it first"
        if self._overlapping is None:
            self._finish(batch, lambda: self._written_out(batch))
            return
        self._waiting = batch, self._overlapping.encode(batch)
        self.nudge()

    def nudge(self) -> None:
        """Send what waits if nothing is under way any more. It takes no time to ask."""
        if self.full and (self._in_flight is None or self._failed or self._is_ready()):
            self.push()

    def push(self) -> None:
        """Wait for the oldest answer; then send what waits, unless it came back."""
        waiting, self._waiting = self._waiting, None
        if self._settled() and waiting is not None:
            self._in_flight, encoded = waiting
            self._sent(encoded)

    def settle(self) -> None:
        """Wait until everything that was offered is stored, or came back."""
        while self.busy:
            self.push()

    def _is_ready(self) -> bool:
        assert self._overlapping is not None
        return self._overlapping.ready()

    def _settled(self) -> bool:
        """Whether what was under way is stored; the target may have refused part of it, so that all came back."""
        batch, self._in_flight = self._in_flight, None
        return batch is None or self._finish(batch, lambda: self._collected(batch))

    def flush(self) -> None:
        """Store everything that the pipeline has to give."""
        self.settle()
        while (batch := self.taken()) is not None:
            self.offer(batch)
            self.settle()

    def taken(self) -> Batch | None:
        """The next batch, for which the hook works."""
        with self._hook_limit:
            return self._pipeline.take(self._now())

    def _sent(self, encoded: Any) -> None:
        assert self._overlapping is not None
        try:
            self.confirm()
            self._overlapping.send(encoded)
        except TransientError:
            self._failed = True  # the answer will be asked for, and the batch written again

    def _collected(self, batch: Batch) -> Outcome:
        assert self._overlapping is not None
        failed, self._failed = self._failed, False
        if not failed:
            try:
                return self._overlapping.collect()
            except Unfinished:
                self._still_at_it()
            except TransientError:
                pass  # unsure whether it is stored: the same batch follows, which changes nothing if it is
        return self._written_out(batch)

    def _written_out(self, batch: Batch) -> Outcome:
        """A batch that takes long is sent in stretches; before each the run asks whether the pipeline is its own."""
        while (outcome := self._retrying(lambda: self._stretch(batch))) is None:
            self._still_at_it()
        return outcome

    def _stretch(self, batch: Batch) -> Outcome | None:
        """None if some of the batch is left to be sent."""
        try:
            return self._written(batch)
        except Unfinished:
            return None

    def _written(self, batch: Batch) -> Outcome:
        self.confirm()
        return self._target.write(batch)

    def _finish(self, batch: Batch, answer: Callable[[], Outcome]) -> bool:
        """Whether the batch is stored and what was taken after it still holds; else that came back."""
        try:
            outcome = answer()
            if outcome.rejections:
                self._pipeline.refused(batch, outcome.rejections)
                return False
            if not self._transactional:
                counts = outcome_counts(batch, outcome)
                self._retrying(lambda: self._checkpoints.save(batch.saves, counts))
                self._confirmed = self._now()
        except Fenced as e:
            return self._overtaken(batch, e)
        self._pipeline.stored(batch, outcome, self._now())
        return True

    def _overtaken(self, batch: Batch, fenced: Fenced) -> bool:
        """No other run may own the pipeline, but a command may have changed entries of parked items meanwhile.

        If it did after the batch was stored, and only the answer was lost, the pipeline's own entry tells.
        """
        self._retrying(lambda: self._checkpoints.save(()))
        stored = {(e.kind, e.id): e for e in self._retrying(self._checkpoints.read).entries}
        if any(s.kind == "pipeline" and _made(s, stored) for s in batch.saves):
            self._pipeline.stored(batch, Outcome(), self._now())
        elif any(_went_back(s, stored) for s in batch.saves):
            raise PutBack(
                "the checkpoints were put back to an earlier state while this run was up (a standby took over that "
                "lacks the last commits, or a backup was restored). Start the run again: it reads on from what is "
                "stored"
            ) from fenced
        elif not any(_moved(s, stored) for s in batch.saves):
            raise fenced
        self._pipeline.give_back()
        self.know_parked()
        if self._in_doubt is not None:  # what the command sent may still be carried out, whatever is parked
            moved = [epoch_of(version_in(s.id)) for s in batch.saves if _moved(s, stored)]
            self._in_doubt.begin(earlier=any(epoch < self._pipeline.epoch for epoch in moved))
        return False

    def know_parked(self) -> None:
        """Take the parked items as they are stored. Nothing may be under way.

        Where a command sent something since, it may be carried out late, also if the item is not parked any more. A
        sweep begins anew only where it is of an earlier epoch: else frequent retries would put it off for ever.
        """
        before = self._pipeline.parked
        found = self._retrying(lambda: known(self._checkpoints, before))
        if self._in_doubt is not None and found.retries != before.retries:
            epoch = self._pipeline.epoch
            self._in_doubt.begin(earlier=found.retries.before(epoch) != before.retries.before(epoch))
        self._pipeline.know(found)

    def confirm(self, *, afresh: bool = False) -> None:
        """Fenced if another run took over. Asked where the target cannot.

        Not again within a few seconds, unless ``afresh``: the next run doubts what this one writes meanwhile, but
        nothing makes up for tombstones of its own that this one forgets.
        """
        lately = 0 <= self._now() - self._confirmed <= CONFIRMED  # clocks are set back, too
        if not self._transactional and (afresh or not lately):
            self._checkpoints.save(())
            self._confirmed = self._now()


def _made(save: Save, stored: Mapping[tuple[str, str], Entry]) -> bool:
    entry = stored.get((save.kind, save.id))
    return entry is not None and (entry.revision, entry.text) == ((save.expected or 0) + 1, save.text)


def _went_back(save: Save, stored: Mapping[tuple[str, str], Entry]) -> bool:
    """Whether an entry that only runs change is older than the one that this run saved."""
    entry = stored.get((save.kind, save.id))
    there = 0 if entry is None else entry.revision
    return save.kind not in (PARKED, DROPPED) and save.expected is not None and there < save.expected


def _moved(save: Save, stored: Mapping[tuple[str, str], Entry]) -> bool:
    """Whether a command changed the entry that the save expects."""
    entry = stored.get((save.kind, save.id))
    there = 0 if entry is None else entry.revision
    return save.kind in (PARKED, DROPPED) and save.expected is not None and there != save.expected
