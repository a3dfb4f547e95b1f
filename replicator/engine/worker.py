"""A worker of a run with several: reads the shards and segments of its slot, and writes what they contain.

It keeps nothing that is not in the checkpoints, so another one can take its place at any time. The coordinator takes
the slot away for each new epoch and stage; then the worker claims it again, and starts from what is stored. It ends
(Fenced) once another worker has claimed the slot, or another run the pipeline.
"""

from __future__ import annotations

import contextlib
import logging
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace

from msgspec import structs

from replicator.checkpoints.contract import Slotted
from replicator.engine import preexisting
from replicator.engine.binding import Recheck
from replicator.engine.context import Environment, RunContext
from replicator.engine.delivery import Delivery
from replicator.engine.fetcher import Fetcher, explained, fetcher_for, receive, send
from replicator.engine.heartbeat import HEARTBEAT_INTERVAL
from replicator.engine.parked_limits import ParkedWatch
from replicator.engine.retry import RetryPolicy, Stopped
from replicator.engine.startup import target_gap
from replicator.errors import ConfigError, Fenced, GapFound, TransientError
from replicator.pipeline import stages
from replicator.pipeline.checkpoint_view import CheckpointView
from replicator.pipeline.coordination import Claimant, has_given, window_of_claim
from replicator.pipeline.pipeline import Pipeline
from replicator.source.scan import ReadBudget
from replicator.source.table import SourceTable, find_table, view_of
from replicator.state import LONGEST_IN_DOUBT, Entry, Heartbeat, Owner, PipelineState, Save, decode, encode
from replicator.target.contract import AppliesLate, Target, Transactional, Unguarded, marks_of

log = logging.getLogger("replicator")

Connect = Callable[[], AbstractContextManager[RunContext]]
"""Source, target and checkpoints for one claim of a slot, closed on exit."""

CLAIM_INTERVAL = 0.5  # seconds between two looks at whether the slot may be claimed


@dataclass(frozen=True, slots=True)
class Post:
    """What a worker works on: the ``slot``, in the ``run`` (the revision of its claim) with so many ``slots``."""

    slot: str
    run: int
    slots: int = 1


class Worker:
    """One worker, from its start to its end.

    ``connect`` gives the source, target and checkpoints for one claim of the slot, and closes them on exit.
    """

    def __init__(
        self,
        post: Post,
        owner: Owner,
        connect: Connect,
        environment: Environment,
    ) -> None:
        self._post, self._owner, self._connect, self._environment = post, owner, connect, environment
        self._resources = ExitStack()
        self._held: SlotRun | None = None
        self._waiting: RunContext | None = None  # while the slot cannot be claimed
        self._lingers: float | None = LONGEST_IN_DOUBT  # of what this process sent under its last claim
        self._claimed_before = False

    def run(self, news: Callable[[], Sequence[Entry]] = tuple) -> None:
        """Work until stopped, or until another worker or run has taken over (Fenced). Stores what is in flight.

        ``news``: what the coordinator has told since it was called last.
        """
        try:
            while not self._environment.stop.is_set():
                if told := news():
                    self.learn(told)
                if not self.step():
                    self._environment.stop.wait(CLAIM_INTERVAL)
            self.end()
        except Stopped:
            log.info("stopped while waiting", extra={"slot": self._post.slot})
        finally:
            self._release()

    def end(self) -> None:
        """Store what is in flight, and release the slot."""
        if self._held is not None:
            self._held.shut_down()
        self._release()

    def close(self) -> None:
        """End without a word, as after an error."""
        self._release()

    def step(self) -> bool:
        """One iteration; False while the slot cannot be claimed, because an epoch is about to begin."""
        if self._held is None and not self._claim():
            return False
        assert self._held is not None
        try:
            self._held.step()
        except Fenced as e:
            self._fenced(e)
        return True

    def learn(self, entries: Sequence[Entry]) -> None:
        """What the coordinator tells: shards that the slot got since it was claimed (``Coordinator.news``).

        Nothing is lost if this is: a claim reads everything, and the coordinator repeats what was not begun.
        """
        try:
            if self._held is not None:
                self._held.learn(entries)
        except Fenced as e:  # batches in flight are stored first
            self._fenced(e)

    def _claim(self) -> bool:
        """While it waits for its turn it keeps its connections, and claims nothing. It claims over new ones, which know
        the table as it is then.
        """
        if self._waiting is not None:
            if not may_be_claimed(self._waiting, self._post, self._environment):
                return False
            self._release()
        context = self._resources.enter_context(self._connect())
        try:
            lingers = self._lingers if self._claimed_before else math.nan
            self._held = SlotRun.claimed(context, self._post, self._owner, self._environment)
            if self._held is not None:
                self._held.begin(lingers)
        except Fenced as e:
            self._fenced(e)
            return False
        except BaseException:
            self._release()
            raise
        if self._held is None:
            self._waiting = context
            return False
        self._claimed_before = True
        return True

    def _fenced(self, fenced: Fenced) -> None:
        """Claim the slot again if the coordinator took it away, or changed something of it."""
        held = self._held
        self._lingers = held.lingers if held is not None else self._lingers
        if held is None or not held.may_claim_again():
            self._release()
            raise fenced
        self._release()

    def _release(self) -> None:
        if self._held is not None:
            self._held.close()
        self._held = self._waiting = None
        self._resources.close()


class SlotRun:
    """A slot from one claim of it to the next."""

    def __init__(
        self,
        context: RunContext,
        post: Post,
        owner: Owner,
        environment: Environment,
        pipeline: Pipeline,
        revision: int,
    ) -> None:
        target, now, monotonic = context.target, environment.now, environment.monotonic
        retrying = RetryPolicy(
            environment.stop, self._report, now, environment.random, environment.measurements.retried
        )
        self.pipeline, self._revision = pipeline, revision
        self._context, self._environment, self._post, self._owner = context, environment, post, owner
        self._retrying = retrying
        self._in_doubt = target.in_doubt if isinstance(target, AppliesLate) else None
        self._delivery = Delivery(
            target,
            context.checkpoints,
            pipeline,
            retrying,
            now,
            environment.hook_limit,
            self._save_heartbeat,
            environment.measurements.stored,
            monotonic,
            environment.stop.is_set,
            environment.measurements.active,
        )
        everything = sys.maxsize  # the limit is for all workers together: the coordinator's matter
        self._watch = ParkedWatch(pipeline, self._delivery, everything, monotonic, pipeline.total)
        self._recheck = Recheck(target, context.tables, self._delivery, retrying, monotonic)
        self._steps = environment.scheduler(context.client)
        self._fetcher = self._open_fetcher()
        self._gapped = False
        self._beat_at = -math.inf
        self._repair = ""  # as in the last heartbeat
        self._waiting_for: str | None = None

    @classmethod
    def claimed(cls, context: RunContext, post: Post, owner: Owner, environment: Environment) -> SlotRun | None:
        """The slot, claimed; None while no epoch has begun, its tables are being opened, or nothing is given to slots.

        It begins next: the slot may be taken away meanwhile, and claimed again.
        """
        checkpoints, now = context.checkpoints, environment.now
        assert isinstance(checkpoints, Slotted)
        retrying = RetryPolicy(environment.stop, environment.waiting, now, environment.random)
        if not _has_begun(retrying(checkpoints.pipeline, asks="checkpoints")):
            return None
        claimed = retrying(lambda: checkpoints.claim_slot(owner, post.slot, post.run), asks="checkpoints")
        pipeline = Pipeline(
            context.mapping,
            claimed,
            ignore_expired=context.config.ttl_deletes == "ignore",
            marks=marks_of(context.target),
            slot=post.slot,
            worker=owner.run,
            now=now(),
        )
        if not _has_begun(pipeline.state) or not has_given(pipeline.view.slots, post.run):
            return None
        return cls(context, post, owner, environment, pipeline, claimed.revision)

    def begin(self, lingers: float | None) -> None:
        """Open the tables, and the in-doubt window, before anything is written.

        Tables that are gone are not opened, which would create them: that is a gap, and nothing is written.
        ``lingers``: how long this process' own writes under an earlier claim are in doubt; NaN if it had none.
        """
        state = self._state
        hook = self._context.hook
        if state.hook != (hook.fingerprint if hook is not None else ""):
            raise ConfigError("transform: this worker has another hook than the run: start all of them with the same")
        lost = self._opened()
        if self._in_doubt is not None:
            self._take_over_window(lingers)
        self._delivery.know_parked()
        self._delivery.acknowledge()
        log.info("slot claimed", extra={"slot": self._post.slot, "stage": state.stage, "epoch": state.epoch})
        if lost is not None:
            lost.unwritable = True
            self._gap(lost)

    def _opened(self) -> GapFound | None:
        """Open the tables; what the target has lost, if that is found before or as they are opened."""
        try:
            lost = self._retrying(self._target_gap)
            if lost is None:
                self._open_tables()
        except GapFound as gap:
            return gap
        except ConfigError:  # perhaps about the next epoch, which has begun meanwhile: Fenced says so
            self._retrying(lambda: self._context.checkpoints.save(()), asks="checkpoints")
            raise
        return lost

    def _open_tables(self) -> None:
        self._retrying(lambda: self._context.target.open(self._context.tables, self._state.epoch))

    def _target_gap(self) -> GapFound | None:
        """What the target has lost since the epoch began; emptied tables not counted, as the run may have done that."""
        context, view = self._context, self.pipeline.view
        found = preexisting.inspect(view, context.table, context.target, context.tables, context.hook)
        gap = target_gap(replace(found, emptied=()), self._state)
        if gap is not None:  # by a later epoch another run writes there; each would repair after the other
            gap.by_hand = gap.by_hand or found.highest > self._state.epoch
        return gap

    def _take_over_window(self, lingers: float | None) -> None:
        """Open the in-doubt window for as long as writes of this or another worker, or of a command, are in doubt."""
        assert self._in_doubt is not None
        view = self.pipeline.view
        claimant = Claimant(self._post.slot, self._owner.run, lingers, view.retries.all)
        if seconds := window_of_claim(claimant, self._state, view.slots):
            self._in_doubt.begin(seconds)

    def learn(self, entries: Sequence[Entry]) -> None:
        """New shards of this slot. What earlier workers parked of their items is known before they are read.

        What was read before the slot was claimed is not believed: it may be of an earlier epoch.
        """
        current = Entry("owner", self._post.slot, self._revision, "")
        if current not in (structs.replace(e, text="") for e in entries) or not self.pipeline.unlearnt(entries):
            return
        try:
            self._delivery.settle()
        except GapFound as gap:
            self._gap(gap)
        self.pipeline.learn(entries)
        window = self.pipeline.inherited_window([e.id for e in entries if e.kind == "shard"])
        if self._in_doubt is not None and window:
            self._in_doubt.begin(window)
        self._delivery.know_parked()

    def step(self) -> None:
        """One iteration: start reads, deliver a batch, process results, run periodic checks."""
        try:
            self._step()
        except GapFound as gap:
            self._gap(explained(gap, self._context.table, self._current_table()) if gap.gone else gap)

    def _step(self) -> None:
        self._delivery.acknowledge()
        self._beat()
        if self._gapped:
            self._delivery.flush()
            self._environment.stop.wait(CLAIM_INTERVAL)
            return
        sent = send(self._fetcher, self._delivery)
        receive(self._fetcher, self._delivery, sent=sent, busy=sent or self._delivery.busy)
        self._watch.check()
        self._recheck.check()

    def _gap(self, gap: GapFound) -> None:
        """Record the gap for the coordinator, which begins an epoch or ends the run. Until then, nothing is read.

        It is logged once it is recorded: a worker that was replaced, or whose slot is taken away for the next epoch,
        takes what its own run writes now for another one's, and learns that from the store.
        """
        self._steps.clear()
        self._gapped = True
        self.pipeline.gap(gap, self._environment.now())
        own = self._delivery.record(gap)
        for found in [gap] if own is None else [gap, own]:
            log.error("gap", extra={"reason": found.reason, "shard": found.shard, "slot": self._post.slot})
        self.pipeline.drop_ahead()

    def _current_table(self) -> SourceTable | None:
        name = self._context.config.source.table
        return self._retrying(lambda: find_table(self._context.client, name), asks="source")

    def shut_down(self) -> None:
        """Store the batches in flight, and how long the next worker must keep the in-doubt window open.

        What the target turns out to have lost is recorded: the coordinator, which ends last, ends the run with it.
        """
        try:
            self._delivery.settle()
        except GapFound as gap:
            self._gap(gap)
        self.pipeline.drop_ahead()
        window = self._in_doubt
        self.pipeline.heartbeat(replace(self._heartbeat(), phase="stopped"))
        left = None if window is None else window.left
        begun = 0 if window is None else window.begun
        self.pipeline.acknowledge(in_doubt=left or 0.0, lingers=left, begun=begun)
        self._delivery.flush()
        self._watch.end()

    def close(self) -> None:
        self._steps.close()

    @property
    def lingers(self) -> float | None:
        """How long writes under this claim may still be applied; all of it if some are in flight."""
        if self._in_doubt is None:
            return None
        return LONGEST_IN_DOUBT if self._delivery.busy else self._in_doubt.left

    def may_claim_again(self) -> bool:
        """Whether the run goes on, and no other worker has claimed the slot."""
        entries = self._retrying(self._context.checkpoints.read, asks="checkpoints").entries
        owners = {e.id: e for e in entries if e.kind == "owner"}
        owner = decode("owner", self._post.slot, owners[self._post.slot].text)
        assert isinstance(owner, Owner)
        return owners[""].revision == self._post.run and owner.run in ("", self._owner.run)

    @property
    def _state(self) -> PipelineState:
        state = self.pipeline.state
        assert state is not None
        return state

    def _open_fetcher(self) -> Fetcher:
        """Of the stream that the epoch is about, also if the table has another one by now."""
        config, state = self._context.config, self._state
        units = config.backfill.read_units
        budget = ReadBudget(None if units is None else units / self._post.slots)
        table, arn = self._context.table, state.stream_arn
        if table.id != state.table_id:
            table = replace(table, identity=state.table_id)  # items of the new one are not the epoch's
        if table.stream_arn != arn:
            view = self._retrying(lambda: view_of(self._context.client, arn), asks="source")
            table = replace(table, view=view or table.view)
        return fetcher_for(self._context, self._environment, self.pipeline, table, arn, budget, self._steps)

    # Heartbeats

    def _report(self, waiting_for: str | None) -> None:
        """What the worker waits for and tries again, also for ``status``."""
        self._waiting_for = waiting_for
        self._environment.waiting(waiting_for)
        if waiting_for is not None and not isinstance(self._context.target, Transactional):
            with contextlib.suppress(Fenced):  # perhaps while it claims the slot: what comes next notices that, too
                self._save_heartbeat()

    def _beat(self) -> None:
        self._waiting_for = next(iter(self._fetcher.waiting_for.values()), None)
        now, repair = self._environment.monotonic(), self.pipeline.parked.repairing
        if now - self._beat_at >= HEARTBEAT_INTERVAL or repair != self._repair:  # stored with the first such tombstones
            self._beat_at, self._repair = now, repair
            self.pipeline.heartbeat(self._heartbeat())

    def _heartbeat(self) -> Heartbeat:
        phase = "backfill" if self._state.stage != stages.FOLLOWING else "live"
        window, repair = self._in_doubt, self.pipeline.parked.repairing
        return Heartbeat(
            self._environment.now(),
            phase,
            waiting_for=self._waiting_for,
            who=self._owner.who,
            repair=repair,
            in_doubt=None if window is None else window.left,
            unknown=tuple(sorted(self.pipeline.discovery.unknown)),
        )

    def _save_heartbeat(self) -> None:
        """Save a heartbeat ahead of the batch that takes long to make, or waits for a target that is not the store."""
        with contextlib.suppress(TransientError):
            self._context.checkpoints.save([Save("pulse", self._post.slot, None, encode(self._heartbeat()))])


def check_guarded(target: Target) -> None:
    """ConfigError for a target whose documents have no versions. Does not connect."""
    if isinstance(target, Unguarded) and target.unguarded:
        raise ConfigError(
            "target.pristine: without versions in the items, writes of several workers to one item cannot be told "
            "apart: remove the option, or use one process"
        )


def may_be_claimed(context: RunContext, post: Post, environment: Environment) -> bool:
    """Whether an epoch has begun, and something is given to slots; or another run has, which a claim then notices."""
    retrying = RetryPolicy(environment.stop, environment.waiting, environment.now, environment.random)
    if not _has_begun(retrying(context.checkpoints.pipeline, asks="checkpoints")):
        return False
    claimed = retrying(context.checkpoints.read, asks="checkpoints")
    return claimed.revision != post.run or has_given(CheckpointView(claimed).slots, post.run)


def _has_begun(state: PipelineState | None) -> bool:
    return state is not None and not state.opening


News = Mapping[str, Sequence[Entry]]
"""What workers must be told, by slot."""
