"""Sweeps obsolete documents and purges tombstones after a scan, in pieces between batches."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial

from replicator.batch import DocumentId
from replicator.checkpoints.contract import Checkpoints
from replicator.engine.delivery import Delivery
from replicator.engine.preexisting import history_reports
from replicator.engine.retry import POSTPONED, RetryPolicy, unless_postponed
from replicator.errors import Fenced, Postponed, SweepRefused, TransientError
from replicator.key import Key
from replicator.pipeline import stages
from replicator.pipeline.parked import REPAIR, item_of, kept_keys, key_in, parked_keys, version_in
from replicator.pipeline.pipeline import Pipeline
from replicator.state import HistoryReport, PipelineState, Repair, Save, encode
from replicator.target.contract import Table, Target
from replicator.target.in_doubt import InDoubtWindow
from replicator.target.past import KeepsHistory
from replicator.version import epoch_of, version

log = logging.getLogger("replicator")

Pass = tuple[str, int, int]
"""Operation ("sweep" or "purge"), version limit, and in-doubt round; when one of them changes, a new pass starts."""

RETAIN_INTERVAL = 3600.0  # seconds between looks at what a history need not keep any more
ABANDONED = 900.0  # seconds without a heartbeat after which a repair counts as killed
PAUSE_FACTOR = 4.0  # while changes are waiting, pause this many times as long as the last piece took


@dataclass(slots=True)
class Cleanup:
    """The cleanup work of one run. ``in_doubt``: the target's in-doubt window, if it is one that AppliesLate.

    ``may_purge()``: no worker still needs the tombstones that the last piece of a purge has found.
    ``forgotten(token)``: no worker still leaves tombstones for that repair, which has ended. ``postponed``: why a full
    walk of the target must wait at present. ``histories``: as last looked at.
    """

    target: Target
    checkpoints: Checkpoints
    tables: Sequence[Table]
    pipeline: Pipeline
    delivery: Delivery
    retrying: RetryPolicy
    now: Callable[[], float]
    monotonic: Callable[[], float]
    in_doubt: InDoubtWindow | None
    may_purge: Callable[[], bool] = lambda: True
    forgotten: Callable[[str], bool] = lambda token: True
    postponed: str | None = None
    histories: tuple[HistoryReport, ...] = ()
    _spared_items: set[str] = field(default_factory=set)  # by the current sweep
    _through: dict[Pass, set[str]] = field(default_factory=dict)  # tables that a pass has finished
    _refused: dict[str, SweepRefused] = field(default_factory=dict)  # by table
    _keys: Mapping[str, Key] = field(default_factory=dict)  # of parked entries, as last read
    _removed: bool = False  # whether another table made progress since one was refused
    _paused_until: float = -math.inf
    _postponed_until: float = -math.inf
    _retained_until: float = -math.inf
    _repair: tuple[Repair, int] | None = None  # as last seen
    _repair_seen: float = -math.inf  # when it last changed

    def do(self, *, idle: bool = True) -> bool:
        """Do one piece of the work that is due; return False if there is none. The last piece enters the next stage.

        A piece may scan a large part of a table. Unless the run is ``idle``, cleanup gets a fifth of the time.
        """
        started = self.monotonic()
        if started < self._postponed_until or (not idle and started < self._paused_until):
            return False
        try:
            busy = self._do()
        except Postponed as e:
            self._postpone(str(e))
            return False
        if self.postponed is not None:
            self.postponed = None
            log.info("resuming after a wait")
        if busy:
            now = self.monotonic()
            self._paused_until = now + PAUSE_FACTOR * (now - started)
        return busy

    def _postpone(self, reason: str) -> None:
        """Try the same piece again later. Changes are written meanwhile."""
        self._postponed_until = self.monotonic() + POSTPONED
        if reason != self.postponed:
            self.postponed = reason
            log.warning("waiting", extra={"reason": reason})

    @property
    def overdue(self) -> bool:
        """Whether work is due that ``run --until caught-up`` would otherwise never get to."""
        state, in_doubt = self.pipeline.state, self.in_doubt
        if state is None or in_doubt is None or state.stage != stages.FOLLOWING:
            return False
        return self._owes_sweep(state) or in_doubt.over

    def _owes_sweep(self, state: PipelineState) -> bool:
        return state.resync and self.in_doubt is not None and self.in_doubt.owes_sweep

    @property
    def owes_sweep(self) -> bool:
        """Whether a sweep of this epoch is still to come, although the stream is followed."""
        state = self.pipeline.state
        return state is not None and (self._owes_sweep(state) or self.pipeline.owes_sweep)

    def sweep_settled(self) -> bool:
        """Do a piece of the sweep of what was spared of items that are settled by now; False if none is due."""
        state = self.pipeline.state
        return state is not None and state.stage == stages.FOLLOWING and self._after_parking(state)

    def purge(self) -> bool:
        """Do a piece of the purge of all tombstones; False if none is left, or may be removed."""
        state = self.pipeline.state
        assert state is not None
        self.delivery.settle()
        return self._purge(state.epoch)

    def _do(self) -> bool:
        state = self.pipeline.state
        if state is None or state.stage == stages.SCANNING:
            return False
        if state.stage == stages.FOLLOWING:
            return (
                self._after_window(state)
                or self._after_parking(state)
                or self._after_repair(state)
                or self._retains_history()
            )
        self.delivery.settle()
        left = self._sweep(state.complete) if state.stage == stages.SWEEPING else self._purge(state.epoch)
        if not left:
            self._through.clear()
            self.delivery.flush()
            if state.stage == stages.SWEEPING:
                self._swept()
            self.pipeline.cleanup_done(self.now())
            self.delivery.flush()
        return True

    def _after_window(self, state: PipelineState) -> bool:
        """Once the in-doubt window has closed, purge the tombstones that were kept during it.

        After a resync, sweep again first: a write of an earlier epoch may have been applied behind the first sweep.
        """
        if self.in_doubt is None:
            return False
        if self._owes_sweep(state):
            self._sweep_again(self.in_doubt, state.complete)
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
        """Sweep again after an item that the last sweep spared is settled: it may have older documents."""
        if not self.pipeline.owes_sweep:
            return False
        self.delivery.settle()
        if not self._sweep(state.complete) and not self._purge(state.epoch):
            self._through.clear()
            self._swept()
        return True

    def _after_repair(self, state: PipelineState) -> bool:
        """Once a command has repaired documents, or was killed while it did, purge the tombstones that it needed.

        Its entry says first that it has ended, so that it repairs nothing more: the entry is part of the transaction of
        each insert. It is removed last, so that the next run purges if this one does not get to it. Where writes may
        be applied late, the in-doubt window began again, and the purge follows when it has closed.
        """
        repair, now = self.pipeline.parked.repair, self.monotonic()
        if repair is not None and repair != self._repair:
            self._repair, self._repair_seen = repair, now
            self._through.clear()  # it left tombstones in tables that a purge after an earlier one had finished
        if repair is None:
            return False
        noted, revision = repair
        if not noted.ended and now - self._repair_seen < ABANDONED:
            return False
        self.delivery.settle()
        if not noted.ended:
            ended = Repair(noted.token, ended=True)
            self._save_repair(Save(REPAIR, "", revision, encode(ended)), (ended, revision + 1))
        elif not self.forgotten(noted.token):
            return False
        elif self.in_doubt is not None or not self._purge(state.epoch):
            self._through.clear()
            self.pipeline.change(replace(state, inserted=self.now()))
            self.delivery.flush()
            self._save_repair(Save(REPAIR, "", revision, None), None)
        return True

    def _retains_history(self) -> bool:
        """Remove a piece of the history that is older than is kept. If readers hold it, there is a next time."""
        target, now = self.target, self.monotonic()
        if not self.pipeline.mapping.histories or now < self._retained_until or not isinstance(target, KeepsHistory):
            return False
        self.delivery.settle()
        self._retained_until = now + RETAIN_INTERVAL
        try:
            if target.retain(self.tables):
                self._retained_until = now
                log.info("history removed", extra={"reason": "older than is kept"})
        except TransientError as e:
            log.warning("history not removed", extra={"reason": str(e)})
        self._look_at_histories(target)
        return True

    def _look_at_histories(self, target: KeepsHistory) -> None:
        """Say once which part of a history is lost: a run that begins now would refuse to go on."""
        told = {report.table: report.lost for report in self.histories}
        with suppress(TransientError):
            self.histories = history_reports(target, self.tables, self.pipeline.view)
        for report in self.histories:
            if report.lost and report.lost != told.get(report.table):
                log.error("history lost", extra={"table": report.table, "reason": report.lost})

    def _save_repair(self, save: Save, after: tuple[Repair, int] | None) -> None:
        try:
            self.retrying(lambda: self.checkpoints.save([save]))
        except Fenced:  # another command has announced itself, unless this run was replaced
            self.retrying(lambda: self.checkpoints.save(()))
            self.delivery.know_parked()
        else:
            self.pipeline.parked.repair = after

    def _swept(self) -> None:
        self.pipeline.swept(self._spared_items)
        self._spared_items.clear()

    def _sweep(self, epoch: int) -> bool:
        parked, discarded = self._kept()
        if obsolete := [id for id in parked if epoch_of(version_in(id)) < epoch]:
            # Their items no longer exist, and a later retry would write documents of an earlier epoch behind the sweep.
            self.pipeline.unpark(obsolete)
            self.delivery.flush()
            parked, discarded = self._kept()
        spare = self._spared({**parked, **discarded}, epoch)
        self._spared_items.update(id[0] for id in spare)
        below = version(epoch, 0)
        return self._piece("sweep", below, partial(self.target.sweep, below=below, spare=spare))

    def _purge(self, epoch: int) -> bool:
        if self.in_doubt or self.pipeline.parked.repairing or not self.may_purge():
            return False  # the tombstones are purged after the in-doubt window, or once the repair has ended
        below, spare = version(epoch + 1, 0), self._of_parked(self._parked_by_run())
        return self._piece("purge", below, partial(self.target.purge, below=below, spare=spare))

    def _piece(self, what: str, below: int, do: Callable[[Table], int]) -> bool:
        """Do a piece in the first unfinished table; return False once all tables are finished.

        A finished table is not asked again in this pass: asking would start another scan of it, and scans of tables of
        different sizes would never finish together. When the in-doubt window reopens, a purge starts a new pass,
        because new tombstones are kept. A sweep does so only for writes of an earlier epoch, when they become possible
        and when they no longer are: this run's own writes are of the current epoch.
        """
        through = self._through.setdefault((what, below, self._round(what)), set())
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
        """Whether to retry tables that refused a removal: what blocked it may have been removed from another table."""
        refused, removed = self._refused, self._removed
        self._refused, self._removed = {}, False
        if refused and not removed:
            raise SweepRefused(*(problem for e in refused.values() for problem in e.problems))
        return bool(refused)

    def _round(self, what: str) -> int:
        if self.in_doubt is None:
            return 0
        return self.in_doubt.begun if what == "purge" else self.in_doubt.sweep_round

    def _retrying(self, piece: Callable[[], int], *, forgets: bool = False) -> int:
        def confirmed() -> int:
            self.delivery.confirm(afresh=forgets)
            return piece()

        return unless_postponed(self.retrying, confirmed)

    def _parked(self) -> Mapping[str, Key]:
        """Ids and keys of the parked entries."""
        self._keys = self.retrying(lambda: parked_keys(self.checkpoints, self._keys))
        return self._keys

    def _kept(self) -> tuple[Mapping[str, Key], Mapping[str, Key]]:
        """Ids and keys of the parked and of the discarded entries."""
        reads = 1 if self.pipeline.workers is None else 2  # workers save meanwhile
        self._keys, discarded = self.retrying(lambda: kept_keys(self.checkpoints, self._keys, reads=reads))
        return self._keys, discarded

    def _parked_by_run(self) -> Mapping[str, Key]:
        """The same as the run knows them: ahead of the store, and at most a reread behind the commands.

        A command may only have removed entries, and sparing their tombstones a little longer does no harm. The store
        is read only for a key of which the entry's id has just the hash.
        """
        ids = self.pipeline.parked.ids
        if self.pipeline.mapping.own_ids:
            return dict.fromkeys(ids, ())  # their documents' ids start with the item, not the key
        known = self._keys_of(ids)
        if len(known) < len(ids):
            self._parked()
            known = self._keys_of(ids)
        return known

    def _keys_of(self, ids: Sequence[str]) -> Mapping[str, Key]:
        return {id: key for id in ids if (key := self._keys.get(id) or key_in(id)) is not None}

    def _spared(self, parked: Mapping[str, Key], epoch: int) -> list[DocumentId]:
        """The documents to spare: those of items parked, or parked and discarded, in this epoch."""
        return self._of_parked({id: key for id, key in parked.items() if epoch_of(version_in(id)) >= epoch})

    def _of_parked(self, parked: Mapping[str, Key]) -> list[DocumentId]:
        """Prefixes of the document ids of these items."""
        own = self.pipeline.mapping.own_ids
        return [(item_of(id),) if own else key for id, key in parked.items()]
