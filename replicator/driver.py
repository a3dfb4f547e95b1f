"""Moves a pipeline on this machine: pages are read ahead on a few threads, everything else happens on one."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

from replicator import backfill, start
from replicator.change import key_text
from replicator.checkpoints import Checkpoints, Owner, Pulse
from replicator.compaction import Filing
from replicator.config import Config
from replicator.delivery import Delivery, Patience, Stopped
from replicator.errors import ConfigError, GapFound
from replicator.fetching import Fetching, check_disabled
from replicator.pipeline import Pipeline
from replicator.position import epoch_of, version
from replicator.progress import Progress, measured
from replicator.scan import ReadBudget, Scanned
from replicator.source import Listing, SourceTable, describe_table
from replicator.steps import Steps
from replicator.stream import RecordsDecoder, Stream, listing
from replicator.target import Table, Target
from replicator.transform import Hook
from replicator.wire import Wire

log = logging.getLogger("replicator")

THREADS = 12  # that read ahead
PULSE = 2.0  # seconds between signs of life
OBSERVE = 0.25  # seconds between looks at the progress
WAIT = 0.1  # seconds the loop waits for a page at most
LIVE = 10.0  # seconds of lag up to which a copy counts as live
RESYNCS = 3  # in one run; more would be a loop


@dataclass(frozen=True, slots=True)
class Copy:
    """What a run works with: both ends, the hook, the target's tables."""

    config: Config
    wire: Wire
    target: Target
    checkpoints: Checkpoints
    hook: Hook | None
    table: SourceTable
    tables: tuple[Table, ...]

    @property
    def filing(self) -> Filing:
        return Filing(self.hook, tuple(t.name for t in self.tables))


@dataclass(frozen=True, slots=True)
class World:
    """What a run gets from outside: time, randomness, threads, when to stop, and who wants to know how it goes."""

    stop: threading.Event
    observe: Callable[[Progress], None]
    now: Callable[[], float] = time.time
    random: random.Random = field(default_factory=random.Random)
    steps: Callable[[], Steps] = lambda: Steps(THREADS)


def log_wait(trouble: str | None) -> None:
    """Say that a wait goes on, or that it is over."""
    if trouble is None:
        log.info("going on after a wait")
    else:
        log.warning("waiting", extra={"reason": trouble})


@dataclass(slots=True)
class Rate:
    """How fast a counter rises, a second, smoothed over a few looks at it."""

    at: float = 0.0
    count: int = 0
    value: float | None = None

    def look(self, count: int, now: float) -> float | None:
        if self.at and now > self.at:
            recent = max(0, count - self.count) / (now - self.at)
            self.value = recent if self.value is None else 0.6 * self.value + 0.4 * recent
        self.at, self.count = now, count
        return self.value


class Driver:
    """One run of a pipeline, from its claim to its end."""

    def __init__(self, copy: Copy, owner: Owner, world: World) -> None:
        self._copy, self._world, self._now = copy, world, world.now
        self._started = world.now()
        self._table = copy.table
        claimed = Patience(world.stop, log_wait, self._now, world.random)(lambda: copy.checkpoints.claim(owner))
        self._patiently = Patience(world.stop, self._report, self._now, world.random)
        self.pipeline = Pipeline(copy.filing, claimed, ignore_expired=copy.config.ttl_deletes == "ignore")
        self._delivery = Delivery(copy.target, copy.checkpoints, self.pipeline, self._patiently, self._now)
        self._budget = ReadBudget(copy.config.backfill.read_units)
        self._steps = world.steps()
        self._fetching: Fetching | None = None
        self._outage: str | None = None
        self._pulsed = self._observed = 0.0
        self._resyncs = 0
        self._rate, self._scan_rate = Rate(), Rate()

    def run(self, *, until: Literal["caught-up"] | None, resync: bool, accept_hook_change: bool) -> None:
        """Until stopped, caught up, or something ends it. What is under way is stored before it returns."""
        try:
            try:
                self._start(resync=resync, accept_hook_change=accept_hook_change)
            except GapFound as found:
                self._gap(found)
            self._run(until)
            self._say_goodbye()
        except Stopped:
            log.info("stopped while waiting", extra={"waiting_for": self._outage})
        finally:
            self._steps.close()

    # Starting

    def _found(self) -> start.Found:
        tables, hook = self._copy.tables, self._copy.hook
        return start.Found(
            state=self.pipeline.ledger.pipeline,
            shards=self.pipeline.shards,
            segments=self.pipeline.segments,
            gaps=self.pipeline.ledger.gaps,
            table=self._table,
            target_epoch=self._patiently(lambda: self._copy.target.epoch(tables)),
            hook=hook.fingerprint if hook is not None else "",
        )

    def _start(self, *, resync: bool, accept_hook_change: bool) -> None:
        found = self._found()
        if resync or (found.state is None and not found.target_epoch):
            self._begin(found)
            return
        if (lost := start.gap(found)) is not None:
            raise lost
        if not accept_hook_change:
            start.check_hook(found)
        assert found.state is not None
        if found.state.hook != found.hook:
            self.pipeline.change(start.accepted(found.state, found.hook))
            self._delivery.flush()
        state = found.state
        self._patiently(lambda: self._copy.target.open(self._copy.tables, state.epoch))
        self._fetch()
        log.info("going on", extra={"stage": state.stage, "epoch": state.epoch})

    def _begin(self, found: start.Found) -> None:
        """A new epoch: positions first, durably, before anything is read."""
        backfilling = self._copy.config.backfill
        start.check_source(self._table, own_ids=self._copy.filing.own_ids)
        state = start.fresh(found, enabled=backfilling.enabled, now=self._now())
        segments = backfill.segments(backfilling.segments) if state.stage == backfill.SCANNING else {}
        self._fetch()
        self.pipeline.begin(state, self._full_listing(), segments)
        self._delivery.flush()
        self._patiently(lambda: self._copy.target.open(self._copy.tables, state.epoch))
        log.info("epoch begins", extra={"epoch": state.epoch, "shards": len(self.pipeline.shards)})

    def _fetch(self) -> None:
        """Read from the stream that the table has now."""
        wire, table, world = self._copy.wire, self._table, self._world
        self._steps.clear()
        stream = Stream(
            wire=wire,
            arn=table.stream_arn or "",
            table=table.name,
            keys=table.keys,
            decode=RecordsDecoder(table.keys),
            now=self._now,
            random=world.random,
            keys_only=table.view == "KEYS_ONLY",
        )
        scanned = Scanned(wire, table.name, table.keys, world.random)
        self._fetching = Fetching(self.pipeline, stream, scanned, self._budget, self._steps, self._now, world.random)

    def _full_listing(self) -> Listing:
        assert self._fetching is not None
        stream = self._fetching.stream

        def whole() -> Listing:
            for found in listing(stream):
                if isinstance(found, Listing):
                    return found
                self._world.stop.wait(found)
            raise AssertionError("a listing ends with a Listing")

        return self._patiently(whole)

    # Running

    def _run(self, until: str | None) -> None:
        while not self._world.stop.is_set():
            if until == "caught-up" and self.pipeline.caught_up(self._started):
                return
            try:
                self._turn()
            except GapFound as found:
                self._gap(found)

    def _turn(self) -> None:
        """One round: take in what was read, give out what is to be stored, and see to what else is due."""
        assert self._fetching is not None
        self._pulse()
        self._fetching.advance()
        batch = self.pipeline.take(self._now())
        if batch is not None:
            self._delivery.offer(batch)
        idle = batch is None and not self._delivery.busy
        stepped = self._steps.get(WAIT if idle and not self._chore() else 0.0)
        if stepped is None and batch is None:
            self._delivery.settle()
        while stepped is not None:
            self._fetching.handle(stepped)
            stepped = self._steps.get(0.0)
        check_disabled(self._fetching)
        self._check_parked()

    def _chore(self) -> bool:
        """Sweep or purge a little; whether there was something to do."""
        state = self.pipeline.state
        if state is None or state.stage not in (backfill.SWEEPING, backfill.PURGING):
            return False
        if state.stage == backfill.SWEEPING:
            spare, obsolete = self._spared(state.epoch)
            self.pipeline.unpark(obsolete)
            sweep = partial(self._copy.target.sweep, below=version(state.epoch, 0), spare=spare)
            done = [self._patiently(partial(sweep, table)) for table in self._copy.tables]
        else:
            done = [self._patiently(partial(self._copy.target.purge, table)) for table in self._copy.tables]
        if not any(done):
            self.pipeline.chore_done(self._now())
            self._delivery.flush()
        return True

    def _spared(self, epoch: int) -> tuple[list[tuple[str, ...]], list[str]]:
        """Documents of items parked in this epoch stay; older parked changes belong to items that are gone."""
        parked = self._patiently(self._copy.checkpoints.parked)
        own = self._copy.filing.own_ids
        spare = [(key_text(p.key),) if own else p.key for _, p in parked if epoch_of(p.version) >= epoch]
        return spare, [id for id, p in parked if epoch_of(p.version) < epoch]

    def _gap(self, found: GapFound) -> None:
        """Record it; then repair it by a rescan if that is wished for, else end with it."""
        log.error("gap", extra={"reason": found.reason, "shard": found.shard, "sequence": found.sequence})
        self._steps.clear()
        if not self._recorded(found):
            self.pipeline.gap(found, self._now())
        self._delivery.flush()
        if self._copy.config.on_gap != "resync" or self._resyncs >= RESYNCS:
            raise found
        self._resyncs += 1
        self._table = self._patiently(lambda: describe_table(self._copy.wire, self._copy.config.source.table))
        self._begin(self._found())

    def _recorded(self, found: GapFound) -> bool:
        gaps = self.pipeline.ledger.gaps.values()
        return any(g.repaired is None and (g.reason, g.shard) == (found.reason, found.shard) for g in gaps)

    def _check_parked(self) -> None:
        limit = self._copy.config.parked_limit
        if len(self.pipeline.parked) > limit:
            self._delivery.flush()
            raise ConfigError(
                f"more than {limit} items are parked (parked_limit): the hook or the target's table is probably wrong. "
                "Look at them with: replicator parked list; mend the cause, then: replicator parked retry --all"
            )

    # Telling

    def _report(self, trouble: str | None) -> None:
        """A wait began, goes on, or is over."""
        self._outage = trouble
        if trouble is None:
            log.info("going on after a wait")
        else:
            log.warning("waiting", extra={"reason": trouble, "hours_until_loss": self._hours_until_loss()})
            self._world.observe(replace(self.progress(), trouble=trouble))

    def _hours_until_loss(self) -> float | None:
        hours = self.progress().hours_until_loss
        return None if hours is None else round(hours, 1)

    def _pulse(self) -> None:
        now = self._now()
        if now - self._pulsed >= PULSE:
            self._pulsed = now
            counts = self.pipeline.total
            self._rate.look(counts.read, now)
            self._scan_rate.look(sum(s.items for s in self.pipeline.segments.values()), now)
            self.pipeline.pulse(self._sign(self.progress().phase))
        if now - self._observed >= OBSERVE:
            self._observed = now
            self._world.observe(self.progress())

    def _sign(self, phase: str) -> Pulse:
        return Pulse(self._now(), phase, self._rate.value, self._scan_rate.value, self._current_trouble())

    def _current_trouble(self) -> str | None:
        fetching = self._fetching
        return self._outage or (next(iter(fetching.trouble.values()), None) if fetching is not None else None)

    def progress(self) -> Progress:
        """How the run is doing, from what is stored and what idle shards showed."""
        pipeline = self.pipeline
        found = measured(
            state=pipeline.state,
            pulse=self._sign("catching-up"),
            shards=pipeline.seen(),
            segments=pipeline.segments,
            gaps=pipeline.ledger.gaps,
            parked=len(pipeline.parked),
            counts=pipeline.total,
            now=self._now(),
        )
        return replace(found, phase=self._phase(found))

    def _phase(self, found: Progress) -> str:
        state = self.pipeline.state
        if found.phase == "gap":
            return "gap"
        if state is None or state.stage != backfill.FOLLOWING:
            return "backfill"
        return "live" if found.lag_seconds is not None and found.lag_seconds <= LIVE else "catching-up"

    def _say_goodbye(self) -> None:
        self.pipeline.pulse(self._sign("stopped"))
        self._delivery.flush()
        self._world.observe(self.progress())
        log.info("stopped", extra={"read": self.pipeline.total.read})
