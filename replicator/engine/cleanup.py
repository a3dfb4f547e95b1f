"""Sweep and purge: what a copy owes its target once the scan is stored, done a piece at a time between batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from replicator.batch import DocumentId
from replicator.checkpoints.contract import Checkpoints
from replicator.engine.delivery import Delivery
from replicator.engine.retry import RetryPolicy
from replicator.errors import SweepRefused
from replicator.key import Key
from replicator.pipeline import stages
from replicator.pipeline.parked import item_of, parked_keys, version_in
from replicator.pipeline.pipeline import Pipeline
from replicator.state import PipelineState
from replicator.target.contract import Table, Target
from replicator.target.in_doubt import InDoubtWindow
from replicator.version import epoch_of, version

Pass = tuple[str, int, int]
"""What is done, below which version, and which number the doubts gave it: with another one it begins anew."""


SHARE = 4.0  # times as long as a piece took, others come first where changes wait


@dataclass(slots=True)
class Cleanup:
    """The chores of one run. ``in_doubt`` is the target's, where its requests may linger."""

    target: Target
    checkpoints: Checkpoints
    tables: Sequence[Table]
    pipeline: Pipeline
    delivery: Delivery
    retrying: RetryPolicy
    now: Callable[[], float]
    monotonic: Callable[[], float]
    in_doubt: InDoubtWindow | None
    _spared_items: set[str] = field(default_factory=set)  # by the sweep that goes on
    _through: dict[Pass, set[str]] = field(default_factory=dict)  # tables of which a pass has reached the end
    _refused: dict[str, SweepRefused] = field(default_factory=dict)  # by table: what could not be removed so far
    _keys: Mapping[str, Key] = field(default_factory=dict)  # of parked entries, as last read
    _removed: bool = False  # by other tables, something, since one was refused

    _rests_until: float = -math.inf

    def do(self, *, idle: bool = True) -> bool:
        """Do a piece of what is due; False if nothing is. With the last piece, the next stage begins.

        A piece may look through a large part of a table. Unless the run is ``idle``, it gets a fifth of the time.
        """
        began = self.monotonic()
        if not idle and began < self._rests_until:
            return False
        busy = self._do()
        if busy:
            now = self.monotonic()
            self._rests_until = now + SHARE * (now - began)
        return busy

    @property
    def overdue(self) -> bool:
        """Whether something can be done that runs which end once they are caught up would never come to."""
        state, in_doubt = self.pipeline.state, self.in_doubt
        if state is None or in_doubt is None or state.stage != stages.FOLLOWING:
            return False
        return self._owes_sweep(state) or in_doubt.over

    def _owes_sweep(self, state: PipelineState) -> bool:
        return state.resync and self.in_doubt is not None and self.in_doubt.owes_sweep

    def _do(self) -> bool:
        state = self.pipeline.state
        if state is None or state.stage == stages.SCANNING:
            return False
        if state.stage == stages.FOLLOWING:
            return self._after_window(state) or self._after_parking(state)
        self.delivery.settle()
        left = self._sweep(state.epoch) if state.stage == stages.SWEEPING else self._purge(state.epoch)
        if not left:
            self._through.clear()
            self.delivery.flush()
            if state.stage == stages.SWEEPING:
                self._swept()
            self.pipeline.cleanup_done(self.now())
            self.delivery.flush()
        return True

    def _after_window(self, state: PipelineState) -> bool:
        """Forget the tombstones that were kept in case a lost request is still carried out.

        After a resync the sweep comes again first: what an earlier epoch's run had sent may have arrived behind it.
        """
        if self.in_doubt is None:
            return False
        if self._owes_sweep(state):
            self._sweep_again(self.in_doubt, state.epoch)
            return True
        if not self.in_doubt.over:
            return False
        self.delivery.settle()
        if not self._purge(state.epoch) and self.in_doubt.over:
            self._through.clear()
            self.in_doubt.settle()
        return True

    def _sweep_again(self, in_doubt: InDoubtWindow, epoch: int) -> None:
        self.delivery.settle()
        in_doubt.swept = not self._sweep(epoch)
        if in_doubt.swept:
            self._through.clear()
            self._swept()

    def _after_parking(self, state: PipelineState) -> bool:
        """Sweep once more where an item that was parked during a sweep is not any more: it may have older documents."""
        if not self.pipeline.owes_sweep:
            return False
        self.delivery.settle()
        if not self._sweep(state.epoch) and not self._purge(state.epoch):
            self._through.clear()
            self._swept()
        return True

    def _swept(self) -> None:
        self.pipeline.swept(self._spared_items)
        self._spared_items.clear()

    def _sweep(self, epoch: int) -> bool:
        parked = self._parked()
        if obsolete := [id for id in parked if epoch_of(version_in(id)) < epoch]:
            self.pipeline.unpark(obsolete)  # their items are gone; a retry that comes later loses, or it would store
            self.delivery.flush()  # something of an earlier epoch behind the sweep
            parked = self._parked()
        spare = self._spared(parked, epoch)
        self._spared_items.update(id[0] for id in spare)
        below = version(epoch, 0)
        return self._piece("sweep", below, partial(self.target.sweep, below=below, spare=spare))

    def _purge(self, epoch: int) -> bool:
        if self.in_doubt:
            return False  # the tombstones stay for now, and go when the doubt is over
        below, spare = version(epoch + 1, 0), self._of_parked(self._parked())
        return self._piece("purge", below, partial(self.target.purge, below=below, spare=spare))

    def _piece(self, what: str, below: int, do: Callable[[Table], int]) -> bool:
        """Do a piece in the first table with something left; False once every table was found to have nothing left.

        A table whose end was reached is not asked again until all that is due is done, since that would begin another
        pass through it: passes of different lengths would never end together. With a new doubt a purge begins anew,
        because of the tombstones left meanwhile; a sweep only where something of an earlier epoch may have been sent,
        and once that has arrived: what this run sends is of its own.
        """
        this = what, below, self._window_of(what)
        through = self._through.setdefault(this, set())
        for table in self.tables:
            if table.name in through or table.name in self._refused:
                continue
            try:
                done = self._retrying(partial(do, table), forgets=what == "purge")
            except SweepRefused as e:
                self._refused[table.name] = e
                continue
            if done:
                self._removed = self._removed or bool(self._refused)
                return True
            through.add(table.name)
        return self._tries_again()

    def _tries_again(self) -> bool:
        """Whether tables in which something was refused are asked again: what it needed may be gone from another."""
        refused, removed = self._refused, self._removed
        self._refused, self._removed = {}, False
        if refused and not removed:
            raise SweepRefused(*(problem for e in refused.values() for problem in e.problems))
        return bool(refused)

    def _window_of(self, what: str) -> int:
        if self.in_doubt is None:
            return 0
        return self.in_doubt.begun if what == "purge" else self.in_doubt.sweep_round

    def _retrying(self, piece: Callable[[], int], *, forgets: bool = False) -> int:
        def confirmed() -> int:
            self.delivery.confirm(afresh=forgets)
            return piece()

        return self.retrying(confirmed)

    def _parked(self) -> Mapping[str, Key]:
        """The parked entries' ids, with their keys."""
        self._keys = self.retrying(lambda: parked_keys(self.checkpoints, self._keys))
        return self._keys

    def _spared(self, parked: Mapping[str, Key], epoch: int) -> list[DocumentId]:
        """Documents of items parked in this epoch stay."""
        return self._of_parked({id: key for id, key in parked.items() if epoch_of(version_in(id)) >= epoch})

    def _of_parked(self, parked: Mapping[str, Key]) -> list[DocumentId]:
        """What the ids of the items' documents begin with."""
        own = self.pipeline.mapping.own_ids
        return [(item_of(id),) if own else key for id, key in parked.items()]
