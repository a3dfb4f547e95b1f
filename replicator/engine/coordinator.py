"""The coordinator of a run with several workers: lists, decides and cleans up, and reads no shard or segment itself.

It is a ``Driver`` whose reading and writing others do. What it decides is in ``pipeline.coordination``; all that it
knows of the workers it reads from the checkpoints, again and again, so that another coordinator can take its place at
any time. Each of the two claims an entry of its own, like a slot, and the later one goes on.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from replicator.checkpoints.contract import Checkpoints, Claimed, Slotted
from replicator.engine import startup
from replicator.engine.context import Environment, RunContext
from replicator.engine.fetcher import end_of_stream, receive, send
from replicator.engine.local import Driver
from replicator.engine.parked_limits import check_parked
from replicator.engine.startup import StartupState
from replicator.engine.worker import News, check_guarded
from replicator.errors import ConfigError, Fenced, GapFound
from replicator.pipeline import coordination, stages
from replicator.pipeline.coordination import Workers
from replicator.pipeline.progress import WorkerProgress, workers_of
from replicator.state import (
    LONGEST_IN_DOUBT,
    Entry,
    Heartbeat,
    Owner,
    PipelineState,
    ResyncRequest,
    ShardState,
    Slot,
    decode,
)
from replicator.target.contract import Target

log = logging.getLogger("replicator")

COORDINATOR = coordination.COORDINATOR
READ_INTERVAL = 1.0  # seconds between two looks at what the workers have stored
DOUBT_SEEN = 10.0  # seconds for which a worker's in-doubt window counts as open after it was last seen to be


class Coordinator(Driver):
    """The coordinator of a run with ``slots``. Claims the pipeline, unless it replaces another one of the ``run``."""

    followed_by = "workers"  # noted with the run

    def __init__(
        self,
        context: RunContext,
        owner: Owner,
        environment: Environment,
        slots: tuple[str, ...],
        run: int | None = None,
    ) -> None:
        check_supported(context.target, context.checkpoints)
        self._workers = Workers(slots, owner)
        self._run_revision = run or 0
        self._owners: dict[str, Owner] = {}
        self._vacant: dict[str, tuple[int, float]] = {}  # slots without a worker: the revision, and when it was seen
        self._entries: dict[tuple[str, str], Entry] = {}
        self._stored: Mapping[str, ShardState] = {}
        self._begun_for: ResyncRequest | None = None  # the request that was there when the last epoch began
        self._read_at = -math.inf
        super().__init__(context, owner, environment)
        self._cleanup.may_purge = self._may_purge
        self._cleanup.forgotten = self._forgotten
        self._renewed = Slot(0, "", lingers=self._lingering(), retried=self.pipeline.view.retries.all)

    @property
    def revision(self) -> int:
        """The revision of the run's claim, which workers and further coordinators are given."""
        return self._run_revision

    def _claim(self, owner: Owner) -> Claimed:
        checkpoints = self._context.checkpoints
        assert isinstance(checkpoints, Slotted)
        if not self._run_revision:
            self._run_revision = checkpoints.claim(owner).revision
        return checkpoints.claim_slot(owner, COORDINATOR, self._run_revision)

    def _lingering(self) -> float | None:
        """How long writes of earlier runs, and of commands, may be applied: what each worker's window begins with."""
        state, slots = self.pipeline.view.pipeline, self.pipeline.view.slots.values()
        if state is None or state.retried != self.pipeline.view.retries.all:
            return LONGEST_IN_DOUBT
        left = (0.0 for slot in slots if slot.until)  # of lanes on AWS Lambda: tombstones, perhaps
        found = (state.lingers, *(slot.lingers for slot in slots), *left)
        return max((seconds for seconds in found if seconds is not None), default=None)

    # What is stored by now

    def _refresh(self) -> None:
        self._delivery.flush()
        claimed = self._retrying(self._context.checkpoints.read, asks="checkpoints")
        self.pipeline.reread(claimed)
        self._delivery.know_parked(claimed.entries)
        before, self._entries = self._entries, {(e.kind, e.id): e for e in claimed.entries}
        self._hear_of_shards(before)
        self._stored = dict(self.pipeline.shards)
        owners = {e.id: decode("owner", e.id, e.text) for e in claimed.entries if e.kind == "owner"}
        self._owners = {id: owner for id, owner in owners.items() if isinstance(owner, Owner)}
        self._read_at = self._environment.monotonic()
        self._notice_vacant(claimed.entries)
        self._reporter.workers = self._known_workers()

    def _hear_of_shards(self, before: Mapping[tuple[str, str], Entry]) -> None:
        """What workers have found that bears on listings: shards that can be read, and those that are not there."""
        discovery = self.pipeline.discovery
        discovery.unknown = {shard for beat in self._heartbeats().values() for shard in beat.unknown}
        for place, entry in self._entries.items():
            if entry.kind == "shard" and place in before and before[place].revision != entry.revision:
                discovery.read_from(entry.id)

    def _heartbeats(self) -> dict[str, Heartbeat]:
        """Of this run's workers, by slot."""
        assert self._workers is not None
        beats = [e for slot in self._workers.slots if (e := self._entries.get(("pulse", slot))) is not None]
        found = {e.id: decode("pulse", e.id, e.text) for e in beats}
        return {slot: beat for slot, beat in found.items() if isinstance(beat, Heartbeat)}

    def _notice_vacant(self, entries: Sequence[Entry]) -> None:
        """Since when slots have had no worker, by this process' own clock: that of another node may be wrong."""
        owners = [e for e in entries if e.kind == "owner" and (of := self._owners.get(e.id)) is not None and not of.run]
        seen = {e.id: self._vacant.get(e.id, (-1, 0.0)) for e in owners}
        now = self._environment.monotonic()
        self._vacant = {e.id: seen[e.id] if seen[e.id][0] == e.revision else (e.revision, now) for e in owners}

    def restarted(self, restarts: Mapping[str, int]) -> None:
        """How often this run's workers, by slot, and its coordinator were restarted, for what it reports."""
        self._reporter.restarts = restarts

    def _known_workers(self) -> tuple[WorkerProgress, ...]:
        beats = {e.id: decode("pulse", e.id, e.text) for e in self._entries.values() if e.kind == "pulse"}
        own = Heartbeat(self._now(), "", waiting_for=self._reporter.waiting_for, restarts=self._reporter.restarts)
        return workers_of(
            self._run_revision,
            slots=self.pipeline.view.slots,
            owners=self._owners,
            heartbeats={**{id: beat for id, beat in beats.items() if isinstance(beat, Heartbeat)}, "": own},
            shards=self.pipeline.shards,
            segments=self.pipeline.segments,
            now=self._now(),
        )

    def _start_over(self) -> None:
        """A worker has changed an entry meanwhile: decide again, unless this coordinator was replaced (Fenced)."""
        self._retrying(lambda: self._context.checkpoints.save(()), asks="checkpoints")
        gaps = self.pipeline.abandon()
        self._refresh()
        self.pipeline.restore(gaps)

    # Starting

    def start(self, allowed: startup.Allowed) -> None:
        while True:
            try:
                return super().start(allowed)
            except Fenced:  # a worker may have begun already
                self._start_over()

    def _start(self, allowed: startup.Allowed) -> None:
        super()._start(allowed)
        startup.check_single_process(self._state())
        if self.is_new_run:
            self._tables_opened()

    def _begin(self, start: StartupState) -> None:
        self._begun_for = self.pipeline.view.request
        self._stop_workers()
        super()._begin(start)

    def _end_request(self, start: StartupState) -> None:
        """Not one that was made after ``start`` was inspected: the epoch may have no sweep, which it needs."""
        if self.pipeline.view.request == self._begun_for:
            super()._end_request(start)

    def _stop_workers(self) -> None:
        """Take all slots away until the tables are opened: shards and segments stay as they are stored now."""
        state = self.pipeline.view.pipeline
        if state is not None and not state.opening:
            self._change(replace(state, opening=True))
        self._refresh()

    def _opening(self, state: PipelineState) -> PipelineState:
        return replace(state, opening=True)

    def _tables_opened(self) -> None:
        """Give everything to slots; from then on workers may claim them."""
        self._refresh()
        self._give()
        if self.is_new_run:
            self.pipeline.renew_slots(self._renewed, self._now())
            self.pipeline.note_run(COORDINATOR, self._run_revision, self.followed_by)
        super()._tables_opened()

    @property
    def is_new_run(self) -> bool:
        """Whether no coordinator of this run has given everything to slots yet."""
        return not coordination.has_given(self.pipeline.view.slots, self._run_revision)

    # Running

    def step(self) -> None:
        """One iteration. Another engine may call this instead of ``run``, between ``start`` and ``end``."""
        self._guarded_turn()

    def end(self) -> None:
        """Store what is in flight, and what the next run must know of the in-doubt window.

        GapFound if workers have found a gap, perhaps only as they ended.
        """
        while True:
            try:
                self._refresh()
                self._shut_down()
                break
            except Fenced:  # an invocation of AWS Lambda may list shards at any time
                self._start_over()
        self._steps.close()
        if gap := startup.unrepaired(self.pipeline.view.gaps.values(), self._state()):
            raise self._ending(gap)

    def _turn(self) -> None:
        try:
            self._coordinate()
        except Fenced:
            self._start_over()

    def _gap(self, gap: GapFound) -> None:
        try:
            super()._gap(gap)
        except Fenced:
            self._start_over()

    def _coordinate(self) -> None:
        assert self._fetcher is not None
        self._reporter.waiting_for = next(iter(self._fetcher.waiting_for.values()), self._cleanup.postponed)
        self._reporter.tick()
        if self._environment.monotonic() - self._read_at >= READ_INTERVAL:
            self._refresh()
            self._watch_workers()
            self._give()
        sent = send(self._fetcher, self._delivery)
        busy = self._may_clean() and self._cleanup.do()
        receive(self._fetcher, self._delivery, sent=sent, busy=sent or busy)
        if self._fetcher.finished:
            raise end_of_stream(self._table, self._current_table())
        self._recheck.check()
        self._carry_out_request()

    def _watch_workers(self) -> None:
        """Notice what workers found. GapFound, or ConfigError if all together parked too much."""
        state = self._state()
        check_parked(self.pipeline.parked, self._context.config.parked_limit, state)
        if gap := startup.unrepaired(self.pipeline.view.gaps.values(), state):
            raise gap
        self._notice_doubt()

    def _give(self) -> None:
        """Give shards that may be read by now, and segments, to slots that are there."""
        assert self._workers is not None
        pipeline, slots = self.pipeline, self._workers.slots
        stored = {id: slot for id, slot in pipeline.view.slots.items() if id in slots}
        known = {slot: stored.get(slot, coordination.UNCLAIMED) for slot in slots}
        shards = coordination.give_shards(pipeline.shards, pipeline.segments, known)
        given = {id: one.state for id, one in shards.items()}
        segments = coordination.give_segments({**pipeline.shards, **given}, pipeline.segments, slots)
        if given or segments:
            pipeline.give(given, segments)
            self._refresh()

    @property
    def read_at(self) -> float:
        """When it last read what the workers have stored, on the monotonic clock: news can only come from that."""
        return self._read_at

    def news(self) -> News:
        """What each slot's worker must be told of: shards that it was given and has not begun, their parents, and the
        claim of the slot for which that holds.

        Repeated until the worker has stored something of them, so nothing depends on one message.
        """
        found: dict[str, list[Entry]] = {}
        children: dict[str | None, list[str]] = {}
        for id, shard in self._stored.items():
            children.setdefault(shard.parent, []).append(id)
        for id, shard in self._stored.items():
            begun = shard.ended or shard.sequence or shard.anchor or shard.through
            if shard.slot and not begun:
                claim = self._entries.get(("owner", shard.slot))
                told = self._told(id, shard.parent, children.get(id, ()))
                found.setdefault(shard.slot, [] if claim is None else [claim]).extend(told)
        return found

    def _told(self, shard: str, parent: str | None, children: Sequence[str]) -> list[Entry]:
        of_parent = self._stored.get(parent) if parent is not None else None
        places = [("shard", id) for id in (shard, *children[:1])]  # one shows that the shard is closed
        if of_parent is not None and parent is not None:
            places += [("shard", parent), ("slot", of_parent.slot)]
        return [self._entries[place] for place in places if place in self._entries]

    # Cleaning up

    def _may_clean(self) -> bool:
        """Whether a sweep, if one is due, may begin: no worker writes as in an earlier stage."""
        state = self.pipeline.state
        if state is None or state.opening:
            return False
        return state.stage != stages.SWEEPING or self._in_doubt is None or self._asks(coordination.may_sweep)

    def _may_purge(self) -> bool:
        """Whether no worker needs the tombstones that were found before now."""
        if self._in_doubt is None:
            return True  # late transactions find that their slot was claimed anew
        self._refresh()
        return self._notice_doubt() and not self._in_doubt

    def _forgotten(self, repair: str) -> bool:
        """Whether no worker leaves tombstones for the ``repair``, which has ended, any more."""
        return all(beat.repair != repair for beat in self._heartbeats().values())

    def _notice_doubt(self) -> bool:
        """Keep the in-doubt window open, and with it owe a purge, while a worker's is. Returns whether none is."""
        if self._in_doubt is None or self._asks(coordination.may_purge):
            return True
        self._in_doubt.begin(DOUBT_SEEN)
        return False

    def _asks(self, decision: coordination.Decision) -> bool:
        assert self._workers is not None
        slots = {s: self.pipeline.view.slots.get(s, coordination.UNCLAIMED) for s in self._workers.slots}
        now = self._environment.monotonic()
        return decision(self._state(), slots, {slot: now - since for slot, (_, since) in self._vacant.items()})


def check_supported(target: Target, checkpoints: Checkpoints) -> None:
    """ConfigError for what needs a single process."""
    check_guarded(target)
    if not isinstance(checkpoints, Slotted):
        raise ConfigError("checkpoints: this store cannot be written by several workers; use one process")
