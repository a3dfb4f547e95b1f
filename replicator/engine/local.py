"""Moves a pipeline on this machine: calls for pages ahead are under way while one thread does everything else."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Literal

from replicator.aws.client import answered
from replicator.change import Listing
from replicator.engine import preexisting, startup
from replicator.engine.binding import Binding, Recheck
from replicator.engine.cleanup import Cleanup
from replicator.engine.context import Environment, RunContext, log_wait
from replicator.engine.delivery import Delivery
from replicator.engine.fetcher import Fetcher, end_of_stream, explained
from replicator.engine.heartbeat import ProgressReporter, tell_replaced
from replicator.engine.parked_limits import ParkedWatch
from replicator.engine.retry import RetryPolicy, Stopped
from replicator.errors import GapFound, ReplicatorError, TransientError
from replicator.options import aws_options
from replicator.pipeline import stages
from replicator.pipeline.page_buffer import PageBuffer
from replicator.pipeline.pipeline import Pipeline
from replicator.source.decoding import RecordsDecoder
from replicator.source.scan import ReadBudget, Scanned
from replicator.source.stream import Stream, listing
from replicator.source.table import SourceTable, describe_table, find_table
from replicator.state import Owner, PipelineState, Save, encode
from replicator.target import in_doubt
from replicator.target.contract import AppliesLate, Transactional

log = logging.getLogger("replicator")

WAIT = 0.1  # seconds the loop waits for a page at most
RESYNCS = 3  # in one run; more would be a loop


class Driver:
    """One run of a pipeline, from its claim to its end."""

    _fetcher: Fetcher | None = None  # until it is known what to read

    def __init__(self, copy: RunContext, owner: Owner, world: Environment) -> None:
        self._copy, self._world, self._now = copy, world, world.now
        self._started, self._table = world.now(), copy.table
        claimed = RetryPolicy(world.stop, log_wait, self._now, world.random)(lambda: copy.checkpoints.claim(owner))
        self._retrying = RetryPolicy(world.stop, self._report, self._now, world.random)
        self._pages = PageBuffer()
        self.pipeline = Pipeline(
            copy.mapping,
            claimed,
            pages=self._pages,
            ignore_expired=copy.config.ttl_deletes == "ignore",
            now=self._started,
        )
        self._reporter = ProgressReporter(self.pipeline, world.observe, self._now, world.monotonic, who=owner.who)
        tell_replaced(claimed, self._started)
        self._delivery = Delivery(
            copy.target,
            copy.checkpoints,
            self.pipeline,
            self._retrying,
            self._now,
            world.hook_limit,
            self._sign_past,
        )
        self._binding = Binding(copy.target, copy.tables, copy.hook, self.pipeline, self._retrying)
        self._watch = self._watch_of(copy.config.parked_limit)
        self._recheck = self._recheck_of(copy)
        self._in_doubt = copy.target.in_doubt if isinstance(copy.target, AppliesLate) else None
        self._cleanup = self._cleanup_of(copy)
        self._budget, self._steps = ReadBudget(copy.config.backfill.read_units), world.steps(copy.client)
        self._resyncs, self._extends = 0, False  # whether tables may be extended

    def _watch_of(self, limit: int) -> ParkedWatch:
        return ParkedWatch(self.pipeline, self._delivery, limit, self._world.monotonic, self.pipeline.total)

    def _recheck_of(self, copy: RunContext) -> Recheck:
        return Recheck(copy.target, copy.tables, self._delivery, self._retrying, self._world.monotonic)

    def _cleanup_of(self, copy: RunContext) -> Cleanup:
        told = (self.pipeline, self._delivery, self._retrying, self._now, self._world.monotonic, self._in_doubt)
        return Cleanup(copy.target, copy.checkpoints, copy.tables, *told)

    def run(self, *, until: Literal["caught-up"] | None, allowed: startup.Allowed = startup.RESUMING) -> None:
        """Until stopped, caught up, or something ends it. What is under way is stored before it returns."""
        self._extends = allowed.schema_changes
        try:
            self._delivery.know_parked()
            try:
                self._start(allowed)
            except GapFound as found:
                self._gap(found)
            self._run(until)
            self._say_goodbye()
        except Stopped:
            log.info("stopped while waiting", extra={"waiting_for": self._reporter.waiting_for})
        finally:
            self._steps.close()

    # Starting

    def _start(self, allowed: startup.Allowed) -> None:
        found = self._binding.found(self._table)
        if startup.start_mode(found, allowed) is not startup.StartMode.RESUME:
            self._begin(found)
            return
        assert found.state is not None
        self._take_over_window(found.state)
        if found.state.hook != found.hook:
            self._change(startup.with_hook(self._state(), found.hook))
        self._binding.open(found)
        self._fetch()
        log.info("going on", extra={"stage": found.state.stage, "epoch": found.state.epoch})

    def _begin(self, found: startup.StartupState) -> None:
        """A new epoch: positions first, durably, before anything is read.

        What defines the documents is remembered when the tables have taken it, and before any is written: a run that
        they refuse leaves the definition that the next one finds to be changed.
        """
        backfilling = self._copy.config.backfill
        if found.state is not None or found.highest:
            self._open_window()
        startup.check_source(
            self._table,
            own_ids=self._copy.mapping.own_ids,
            options=aws_options(self._copy.config.source, self._table.arn),
        )
        if self._extends and found.additions is not None:
            self._binding.extend(found)
        state = startup.new_epoch(found, enabled=backfilling.enabled, now=self._now())
        segments = stages.segments(backfilling.segments) if state.stage == stages.SCANNING else {}
        self._fetch()
        self.pipeline.begin(state, self._full_listing(), segments, found.as_defined)
        self._delivery.flush()
        self._binding.open(found)
        self._delivery.flush()
        log.info("epoch begins", extra={"epoch": state.epoch, "shards": len(self.pipeline.shards)})

    def _open_window(self, seconds: float = math.inf, *, earlier: bool = True) -> None:
        """A run before this one may have been killed while it wrote."""
        if self._in_doubt is not None:
            self._in_doubt.begin(seconds, earlier=earlier)

    def _take_over_window(self, state: PipelineState) -> None:
        """Doubt for as long as an earlier run, or a command, left reason to. A run that is killed leaves the most.

        What a command retried may be of an earlier epoch, as its note says; a run of this epoch sent nothing that is.
        """
        retries = self.pipeline.view.retries
        retried, earlier = retries.all, retries.before(state.epoch)
        if retried != state.retried:
            state = replace(state, lingers=in_doubt.WINDOW)
        if earlier != state.retried_earlier:
            state = replace(state, lingers_earlier=in_doubt.WINDOW)
        if state.lingers is not None:
            self._open_window(state.lingers, earlier=False)
        if state.lingers_earlier is not None:
            self._open_window(state.lingers_earlier)
        now = replace(state, lingers=in_doubt.WINDOW, retried=retried, retried_earlier=earlier)
        if self._in_doubt is not None and now != self._state():
            self._change(now)

    def _hand_over_window(self) -> None:
        """Note what the next run has to doubt: everything that this one sent was answered, or is in doubt."""
        state = self.pipeline.view.pipeline
        if self._in_doubt is not None and state is not None:
            earlier = self._in_doubt.left_earlier if state.resync else None  # else there is nothing to sweep
            self._change(replace(state, lingers=self._in_doubt.left, lingers_earlier=earlier))

    def _state(self) -> PipelineState:
        state = self.pipeline.view.pipeline
        assert state is not None
        return state

    def _change(self, state: PipelineState) -> None:
        self.pipeline.change(state)
        self._delivery.flush()

    def _fetch(self) -> None:
        """Read from the stream that the table has now."""
        table, world = self._table, self._world
        name = self._copy.config.source.table  # perhaps an ARN: a table of another account has to be called by it
        self._steps.clear()
        stream = Stream(
            arn=table.stream_arn or "",
            table=name,
            keys=table.keys,
            decode=RecordsDecoder(table.keys, images=table.view != "KEYS_ONLY"),
            now=self._now,
            random=world.random,
            keys_only=table.view == "KEYS_ONLY",
        )
        scanned = Scanned(name, table.keys, world.random)
        self._fetcher = Fetcher(
            self.pipeline, self._pages, stream, scanned, self._budget, self._steps, world.monotonic, world.random
        )

    def _full_listing(self) -> Listing:
        assert self._fetcher is not None
        stream = self._fetcher.stream

        def whole() -> Listing:
            pages: Iterator[Listing | float] = answered(self._copy.client, listing(stream))
            for found in pages:
                if isinstance(found, Listing):
                    return found
                self._world.stop.wait(found)
            raise AssertionError("a listing ends with a Listing")

        return self._retrying(whole)

    # Running

    def _run(self, until: str | None) -> None:
        while not self._world.stop.is_set():
            caught_up = until == "caught-up" and self.pipeline.caught_up(self._started)
            if caught_up and not self._cleanup.overdue:
                return
            try:
                self._turn()
            except GapFound as found:
                self._gap(explained(found, self._table, self._found_table()) if found.gone else found)

    def _found_table(self) -> SourceTable | None:
        """The source table as it is now, if there still is one."""
        return self._retrying(lambda: find_table(self._copy.client, self._copy.config.source.table))

    def _turn(self) -> None:
        """One round: take in what was read, give out what is to be stored, and see to what else is due."""
        assert self._fetcher is not None
        self._reporter.waiting_for = next(iter(self._fetcher.waiting_for.values()), None)
        self._reporter.tick()
        self._fetcher.advance()
        batch = None if self._delivery.full else self._delivery.taken()
        if batch is not None:
            self._delivery.offer(batch)
        busy = batch is not None or self._delivery.busy
        busy = self._cleanup.do(idle=not busy) or busy
        polled = self._fetcher.poll(0.0 if busy else WAIT, self._accepting)
        if not polled and batch is None:
            self._delivery.push()
        if self._fetcher.finished:
            raise end_of_stream(self._table, self._found_table())
        self._watch.look()
        self._recheck.look()

    def _accepting(self) -> bool:
        """Send the encoded batch if its predecessor is stored. Returns whether another one may be encoded."""
        self._delivery.nudge()
        return not self._delivery.full

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
        self._table = self._retrying(lambda: describe_table(self._copy.client, self._copy.config.source.table))
        self._begin(self._binding.found(self._table))

    def _recorded(self, found: GapFound) -> bool:
        gaps = self.pipeline.view.gaps.values()
        return any(g.repaired is None and (g.reason, g.shard) == (found.reason, found.shard) for g in gaps)

    # Telling

    def _report(self, waiting_for: str | None) -> None:
        """A wait began, goes on, or is over."""
        self._reporter.waiting_for = waiting_for
        if waiting_for is None:
            log.info("going on after a wait")
            return
        log.warning(
            "waiting", extra={"reason": waiting_for, "retention_left_hours": self._reporter.retention_left_hours()}
        )
        self._reporter.show()
        if not isinstance(self._copy.target, Transactional):
            self._sign_past()

    def _sign_past(self) -> None:
        """A sign of life beside the batch that waits, where the store is apart from the target."""
        sign = Save("pulse", "", None, encode(self._reporter.sign()))
        with contextlib.suppress(TransientError):  # it may be the store itself that is waited for
            self._copy.checkpoints.save([sign])

    def _filled(self) -> tuple[Sequence[str], int]:
        """See ``existing.filled``; nothing where the ends cannot tell now."""
        with contextlib.suppress(ReplicatorError):
            return preexisting.filled(self._copy.checkpoints, self._copy.target, self._copy.tables)
        return (), 0

    def _say_goodbye(self) -> None:
        """Store what is under way, not what was only read ahead: who stops a run wants it to end soon."""
        self._delivery.settle()
        self.pipeline.drop_ahead()
        self._reporter.goodbye(*self._filled())
        self._delivery.flush()
        self._hand_over_window()
        self._watch.end()
        self._reporter.show()
        log.info("stopped", extra={"read": self.pipeline.total.read})
