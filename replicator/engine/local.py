"""Runs a pipeline in this process: one thread, with reads in flight while it transforms and writes batches."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Literal

from replicator.aws.client import answered
from replicator.change import Listing
from replicator.checkpoints.contract import Claimed
from replicator.engine import gap_repair, preexisting, startup
from replicator.engine.binding import Binding, Recheck
from replicator.engine.cleanup import Cleanup
from replicator.engine.context import Environment, RunContext
from replicator.engine.delivery import Delivery
from replicator.engine.fetcher import Fetcher, end_of_stream, explained, fetcher_for, receive, send
from replicator.engine.gap_repair import Repairs
from replicator.engine.heartbeat import ProgressReporter, warn_if_replacing
from replicator.engine.parked_limits import ParkedWatch
from replicator.engine.resync_request import RequestWatch
from replicator.engine.retry import RetryPolicy, Stopped
from replicator.errors import ConfigError, GapFound, NotPermitted, ReplicatorError, TransientError
from replicator.options import aws_options
from replicator.pipeline import stages
from replicator.pipeline.batching import PageBuffer
from replicator.pipeline.coordination import Workers
from replicator.pipeline.details import Details, parked_details, shard_details
from replicator.pipeline.gap_repair import first_loss
from replicator.pipeline.pipeline import Pipeline
from replicator.source import chosen, export
from replicator.source.scan import ReadBudget
from replicator.source.stream import listing
from replicator.source.table import SourceTable, describe_table, find_table
from replicator.state import ExportState, Owner, PipelineState, ResyncRequest, Save, SegmentState, encode
from replicator.target import in_doubt
from replicator.target.contract import AppliesLate, Transactional, batch_size_of, caution_of, marks_of

log = logging.getLogger("replicator")

MAX_RESYNCS = 3  # one after the other, none of which caught up; more would be a loop


class Driver:
    """One run of a pipeline. Claims the pipeline on construction."""

    _fetcher: Fetcher | None = None  # until startup has decided what to read
    _workers: Workers | None = None  # that do this run's reading and writing

    def __init__(self, context: RunContext, owner: Owner, environment: Environment) -> None:
        self._context, self._environment, self._now = context, environment, environment.now
        stop, random, monotonic = environment.stop, environment.random, environment.monotonic
        self._started, self._table = self._now(), context.table
        self._owner, self._measurements = owner, environment.measurements
        retried = self._measurements.retried
        starting = RetryPolicy(stop, environment.waiting, self._now, random, retried)
        claimed = starting(lambda: self._claim(owner), asks="checkpoints")
        environment.confirm()
        self._retrying = RetryPolicy(stop, self._report, self._now, random, retried)
        self._pages = PageBuffer(batch_size_of(context.target))
        self.pipeline = Pipeline(
            context.mapping,
            claimed,
            pages=self._pages,
            ignore_expired=context.config.ttl_deletes == "ignore",
            marks=marks_of(context.target),
            workers=self._workers,
            now=self._started,
            keeps_floors=context.config.on_gap == "export" and self._workers is None,
        )
        self._reporter = ProgressReporter(self.pipeline, environment.observe, self._now, monotonic, who=owner.who)
        self._reporter.beat = lambda: self._measurements.detailed(self._details)
        warn_if_replacing(claimed, self._started, environment.earlier)
        target, tables, checkpoints = context.target, context.tables, context.checkpoints
        self._delivery = Delivery(
            target,
            checkpoints,
            self.pipeline,
            self._retrying,
            self._now,
            environment.hook_limit,
            self._save_heartbeat,
            self._measurements.stored,
            monotonic,
            stop.is_set,
        )
        self._binding = Binding(target, tables, context.hook, self.pipeline, self._retrying)
        self._watch = ParkedWatch(
            self.pipeline, self._delivery, context.config.parked_limit, monotonic, self.pipeline.total
        )
        self._recheck = Recheck(target, tables, self._delivery, self._retrying, monotonic)
        self._in_doubt = target.in_doubt if isinstance(target, AppliesLate) else None
        self._reporter.in_doubt = self._in_doubt
        self._cleanup = Cleanup(
            target,
            checkpoints,
            tables,
            self.pipeline,
            self._delivery,
            self._retrying,
            self._now,
            monotonic,
            self._in_doubt,
        )
        self._reporter.histories = lambda: self._cleanup.histories
        self._requests = RequestWatch(
            checkpoints, self.pipeline, self._delivery, self._cleanup, self._retrying, monotonic
        )
        self._repairs = Repairs(
            target,
            tables,
            checkpoints,
            self.pipeline,
            self._delivery,
            self._retrying,
            self._in_doubt,
            context.config.backfill.segments,
            monotonic,
        )
        self._budget = ReadBudget(context.config.backfill.read_units)
        self._steps = environment.scheduler(context.client)
        self._resyncs = 0
        self._allowed = startup.RESUMING
        self._may_extend = False  # whether tables may be extended

    def run(
        self, *, until: Literal["caught-up", "backfilled"] | None, allowed: startup.Allowed = startup.RESUMING
    ) -> None:
        """Replicate until stopped, caught up, or an error. Stores the batches in flight before it returns."""
        try:
            self.start(allowed)
            self._run(until)
            self._shut_down()
        except Stopped:
            log.info("stopped while waiting", extra={"waiting_for": self._reporter.waiting_for})
        finally:
            self._steps.close()

    # Starting

    def start(self, allowed: startup.Allowed) -> None:
        """Start an epoch, or resume."""
        gap_repair.check_supported(self._context.config, self._context.mapping, self._context.target)
        self._delivery.know_parked()
        try:
            self._start(allowed)
        except GapFound as gap:
            self._gap(gap)

    def _claim(self, owner: Owner) -> Claimed:
        return self._context.checkpoints.claim(owner)

    def _start(self, allowed: startup.Allowed) -> None:
        start = self._binding.inspect(self._table)
        self._allowed = allowed
        allowed = startup.with_request(allowed, self.pipeline.view.request, start)
        self._may_extend = allowed.schema_changes
        if startup.start_mode(start, allowed) is not startup.StartMode.RESUME:
            if allowed is not self._allowed and not self._allowed.resync:
                startup.requested(self._check_source, self._table)
            self._begin(start)
            self._end_request(start)
            return
        assert start.state is not None
        if self.pipeline.marks is not None:
            startup.check_old_images(self._table)
        if self.pipeline.mapping.histories:
            startup.check_history_images(self._table)
        self._take_over_window(start.state)
        if start.state.hook != start.hook:
            self._change(startup.with_hook(self._state(), start.hook))
        self._binding.open(start)
        if start.state.opening:
            self._tables_opened()
        self._fetch()
        log.info("resuming", extra={"stage": start.state.stage, "epoch": start.state.epoch})

    def _begin(self, start: startup.StartupState) -> None:
        """Start a new epoch. The positions of all shards are durable before anything is read.

        The tables' new definition is stored after the tables accepted it and before any document is written: if they
        refuse it, the next run compares against the old definition again.
        """
        backfill = self._context.config.backfill
        if start.has_documents:
            self._open_window()
        self._check_source(self._table)
        if self._may_extend and start.additions is not None:
            self._binding.extend(start)
        if start.has_documents:
            self._binding.check_new_epoch()
        state = startup.new_epoch(start, enabled=backfill.enabled, now=self._now())
        state = self._opening(
            replace(state, export=self._export(self._table) if state.stage == stages.SCANNING else None)
        )
        segments = stages.segments(backfill.segments) if state.stage == stages.SCANNING else {}
        self._delivery.fence_repairs()
        self._fetch()
        listing = self._first_listing()
        state = replace(state, started=listing.at, scan_started=listing.at if state.scan_started else None)
        self._begin_with(state, listing, segments, start)

    def _check_source(self, table: SourceTable) -> None:
        """ConfigError if no epoch can begin with the table's stream."""
        startup.check_source(
            table,
            own_ids=self._context.mapping.own_ids,
            loops=self.pipeline.marks is not None,
            history=bool(self._context.mapping.histories),
            options=aws_options(self._context.config.source, table.arn),
        )

    def _begin_with(
        self, state: PipelineState, listing: Listing, segments: Mapping[str, SegmentState], start: startup.StartupState
    ) -> None:
        self.pipeline.begin(state, listing, segments, start.as_defined)
        self._delivery.flush()
        self._binding.open(start)
        self._delivery.flush()
        if self._state().opening:
            self._tables_opened()
        what = "snapshot started" if state.repair is None else "gap repair started"
        log.info(what, extra={"epoch": state.epoch, "shards": len(self.pipeline.shards)})

    def _repair(self, gap: GapFound, start: startup.StartupState) -> None:
        """Start the epoch that repairs a gap from exports. GapFound, which says why, if that cannot be done."""
        before, options = start.state, self._context.config.source
        why = gap_repair.obstacle(start)
        since = gap_repair.lost_since(start, before) if before is not None and not why else None
        if since is not None and not why:
            known = since if before is None or before.repair is None or before.repair.done else before.repair.since
            first = min(since, known)
            why = self._retrying(lambda: gap_repair.refusal(self._context.client, options.table, first))
        if why or before is None or since is None:
            raise gap_repair.explained(gap, why)
        self._open_window()
        startup.check_source(self._table, own_ids=False, options=aws_options(options, self._table.arn))
        self._binding.check_new_epoch()
        self._delivery.fence_repairs()
        self._fetch()
        listing = self._first_listing()
        inserting = self.pipeline.parked.repair is not None
        now = self._now()
        state = gap_repair.epoch_of_repair(before, startup.new_epoch(start, enabled=True, now=now), since, inserting)
        self._begin_with(state, listing, stages.segments(self._context.config.backfill.segments), start)

    def _export(self, table: SourceTable) -> ExportState | None:
        """What a new epoch copies the items from: an export that it requests or that exists, or (None) the table."""
        backfill = self._context.config.backfill
        if backfill.source == "scan":
            return None
        if backfill.export is None:
            return ExportState()
        client, arn, gap = self._context.client, backfill.export, self.pipeline.view.last_gap
        at = self._retrying(lambda: export.existing(client, arn, table, self._now(), gap), asks="source")
        return ExportState(arn, at)

    def _opening(self, state: PipelineState) -> PipelineState:
        """The state with which an epoch begins. This process writes nothing before it has opened the tables."""
        return state

    def _tables_opened(self) -> None:
        self._change(replace(self._state(), opening=False))

    def _end_request(self, start: startup.StartupState) -> None:
        """Remove the request that the epoch has just begun for; one for another config stays."""
        request = self.pipeline.view.request
        if request is not None and request.config == startup.digest(start):
            self.pipeline.end_request()
        self._delivery.flush()

    def _carry_out_request(self) -> None:
        """Start the resync that a command has requested, if it is meant for this run's config."""
        request = self._requests.due()
        if request is None:
            return
        name = self._context.config.source.table
        try:
            table = self._retrying(lambda: describe_table(self._context.client, name), asks="source")
            start = self._binding.inspect(table)
            self._check_request(request, start)
        except (ConfigError, NotPermitted) as e:
            self._requests.decline(request, e)
            return
        if request.whole:
            self._steps.clear()
            self._table = table
            self._begin(start)
            self._end_request(start)
        else:
            self._rescan(request)

    def _check_request(self, request: ResyncRequest, start: startup.StartupState) -> None:
        """ConfigError or NotPermitted if this run could not carry it out: then it continues as before."""
        if startup.digest(start) != request.config:
            raise ConfigError("it was requested for another config than that of this run")
        if request.whole:
            startup.check_key(self._context.table, start.table)
            self._check_source(start.table)
            startup.start_mode(start, startup.with_request(self._allowed, request, start))
            self._export(start.table)
            return
        startup.check_history(start)
        self._recheck.check_now()  # of the new epoch on, the target only notices what it loses from then on
        self._retrying(lambda: preexisting.check_same_epoch(self._context.target, self._context.tables))
        if request.keys:
            with contextlib.suppress(TransientError):  # retried as it reads: nothing else may wait for that
                chosen.check_permitted(self._context.client, self._table, request.keys[0])

    def _rescan(self, request: ResyncRequest) -> None:
        """Start the epoch of a partial resync. Its tables are opened once it is stored, before anything is written."""
        backfill = self._context.config.backfill
        state = stages.partial(self._state(), self._now())
        self.pipeline.rescan(state, stages.chosen_segments(request.keys, request.where, backfill.segments))
        self._delivery.save()
        if self._state().epoch != state.epoch:
            return  # the request was changed in the meantime
        self._retrying(lambda: self._context.target.open(self._context.tables, state.epoch))
        self._tables_opened()
        log.info(
            "partial resync started",
            extra={"epoch": state.epoch, "items": len(request.keys), "conditions": len(request.where)},
        )

    def _open_window(self, seconds: float = math.inf, *, earlier: bool = True) -> None:
        """Open the in-doubt window: an earlier run may have been killed with requests in flight."""
        if self._in_doubt is not None:
            self._in_doubt.begin(seconds, earlier=earlier)

    def _take_over_window(self, state: PipelineState) -> None:
        """Reopen the in-doubt window for as long as the last run, or a command, left it open; after a kill, fully.

        A command may have sent writes of an earlier epoch, as its note says. A run of this epoch has not.
        """
        retries = self.pipeline.view.retries
        retried, earlier = retries.all, retries.before(state.repairing)
        if retried != state.retried:
            state = replace(state, lingers=in_doubt.WINDOW)
        if earlier != state.retried_earlier:
            state = replace(state, lingers_earlier=in_doubt.WINDOW)
        if state.lingers is not None:
            self._open_window(state.lingers, earlier=False)
        if state.lingers_earlier is not None:
            self._open_window(state.lingers_earlier)
        self._take_over_slots(state.repairing)
        now = replace(state, lingers=in_doubt.WINDOW, retried=retried, retried_earlier=earlier)
        if self._in_doubt is not None and now != self._state():
            self._change(now)

    def _take_over_slots(self, epoch: int) -> None:
        """The same of the workers of a run that had several, and of lanes on AWS Lambda."""
        slots = self.pipeline.view.slots
        for slot in slots.values():
            if slot.lingers is not None:
                self._open_window(slot.lingers, earlier=slot.epoch < epoch)
        self._take_over_lanes()
        if self._workers is None:
            self.pipeline.end_slots({id: slot for id, slot in slots.items() if slot.is_left})

    def _take_over_lanes(self) -> None:
        """Owe a purge of what the function on AWS Lambda has left: its schedule purges at most once an hour."""
        if any(slot.until for slot in self.pipeline.view.slots.values()):
            self._open_window(0.0, earlier=False)

    def _hand_over_window(self) -> None:
        """Store how long the next run must keep the window open: all requests of this run are answered or in doubt."""
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
        """Create a fetcher for the table's current stream."""
        self._steps.clear()
        table, arn = self._table, self._table.stream_arn or ""
        self._fetcher = fetcher_for(
            self._context, self._environment, self.pipeline, table, arn, self._budget, self._steps
        )

    def _first_listing(self) -> Listing:
        """The positions of a new epoch: all shards, of a stream that has every change from now on.

        While AWS enables a stream it has no shards, and changes are not added to it. A scan that began then may have
        read an item before its change, which would be in neither.
        """
        assert self._fetcher is not None
        stream = self._fetcher.stream

        def list_all() -> Listing:
            steps: Iterator[Listing | float] = answered(self._context.client, listing(stream))
            for step in steps:
                if isinstance(step, Listing):
                    if step.status == "ENABLING":
                        raise TransientError(
                            "the stream is still being enabled and records no changes yet; the copy starts once it does"
                        )
                    return step
                self._measurements.active()
                self._environment.stop.wait(step)
            raise AssertionError("a listing ends with a Listing")

        return self._retrying(list_all, asks="source")

    # Running

    def _run(self, until: str | None) -> None:
        while not self._environment.stop.is_set():
            if until == "caught-up" and self.caught_up:
                return
            self._guarded_turn()

    @property
    def caught_up(self) -> bool:
        """Whether all that existed when the run started is stored, and nothing is left to clean up or to rescan."""
        caught_up = self.pipeline.caught_up(self._started)
        return caught_up and not self._cleanup.overdue and not self._requests.pending

    def _guarded_turn(self) -> None:
        try:
            self._turn()
            if self._resyncs and self.pipeline.caught_up(self._state().started):
                self._resyncs = 0
        except GapFound as gap:
            self._gap(explained(gap, self._table, self._current_table()) if gap.gone else gap)

    def _current_table(self) -> SourceTable | None:
        """The source table as it is now; None if it no longer exists."""
        return self._retrying(
            lambda: find_table(self._context.client, self._context.config.source.table), asks="source"
        )

    def _turn(self) -> None:
        """One iteration: start reads, deliver a batch, do a piece of cleanup, process results, run periodic checks."""
        assert self._fetcher is not None
        self._reporter.waiting_for = next(iter(self._fetcher.waiting_for.values()), self._cleanup.postponed)
        self._reporter.tick()
        sent = send(self._fetcher, self._delivery)
        busy = sent or self._delivery.busy
        busy = self._cleanup.do(idle=not busy) or busy
        busy = self._repairs.do(self._fetcher) or busy
        receive(self._fetcher, self._delivery, sent=sent, busy=busy)
        if self._fetcher.finished:
            raise end_of_stream(self._table, self._current_table())
        self._watch.check()
        self._recheck.check()
        self._carry_out_request()

    def _gap(self, gap: GapFound) -> None:
        """Record the gap, then repair it as ``on_gap`` says, or end the run with it."""
        gap = self._recorded(gap)
        if self._context.config.on_gap == "stop" or gap.by_hand or self._resyncs >= MAX_RESYNCS:
            raise self._ending(gap)
        self._resyncs += 1
        name = self._context.config.source.table
        self._table = self._retrying(lambda: describe_table(self._context.client, name), asks="source")
        if self._context.config.on_gap == "resync":
            startup.check_key(self._context.table, self._table)
        start = self._binding.inspect(self._table)
        if self._context.config.on_gap == "export":
            self._repair(gap, start)
            return
        self._begin(start)
        self._end_request(start)

    def _recorded(self, gap: GapFound) -> GapFound:
        """Record the gap. Returns the one that decides what follows: what the target turns out to have lost as it is
        recorded, which no export repairs and only a user may, or the gap itself.

        A gap that only a user may repair is logged once it is recorded: a run that has been replaced may mistake its
        successor's writes for another pipeline's, and then recording fails first.
        """
        if not gap.by_hand:
            _log_gap(gap)
        self._steps.clear()
        if not self.pipeline.view.has_gap(gap):
            self.pipeline.gap(gap, self._now(), first_loss(gap, self.pipeline.shards))
        own = self._delivery.record(gap)
        if gap.by_hand:
            _log_gap(gap)
        if own is None:
            return gap
        _log_gap(own)
        return gap if gap.by_hand else own

    def _ending(self, gap: GapFound) -> GapFound:
        """The gap that ends the run."""
        gap.caution = caution_of(self._context.target)
        return gap

    # Reporting

    def _report(self, waiting_for: str | None) -> None:
        """Report that a wait starts or continues or, with None, is over."""
        self._reporter.waiting_for = waiting_for
        if waiting_for is None:
            log.info("resuming after a wait")
            return
        log.warning(
            "waiting", extra={"reason": waiting_for, "retention_left_hours": self._reporter.retention_left_hours()}
        )
        self._reporter.show()
        if not isinstance(self._context.target, Transactional):
            self._save_heartbeat()

    def _details(self) -> Details:
        pipeline, window = self.pipeline, self._in_doubt
        waiting_for = self._fetcher.waiting_for if self._fetcher is not None else {}
        return Details(
            shards=shard_details(pipeline.seen(), waiting_for),
            shards_total=len(pipeline.shards),
            parked=parked_details(pipeline.parked.all_parked),
            in_doubt_seconds=window.left if window is not None else None,
            buffered=self._pages.rows,
            batches=self._delivery.in_flight,
            requests=self._steps.in_flight,
            stage=pipeline.state.stage if pipeline.state is not None else "",
            owner=self._owner,
        )

    def _save_heartbeat(self) -> None:
        """Save a heartbeat ahead of the batch that waits for the target; needs a store that is not the target."""
        heartbeat = Save("pulse", "", None, encode(self._reporter.current()))
        with contextlib.suppress(TransientError):  # the store itself may be what the run waits for
            self._context.checkpoints.save([heartbeat])

    def _filled(self) -> tuple[Sequence[str], int]:
        """See ``preexisting.filled``; empty if target or checkpoints cannot be asked now."""
        with contextlib.suppress(ReplicatorError):
            return preexisting.filled(self._context.checkpoints, self._context.target, self._context.tables)
        return (), 0

    def _shut_down(self) -> None:
        """Store the batches in flight, but not pages read ahead: a stop should be quick.

        GapFound if the target turns out to have lost something: it is recorded, and the next run repairs it.
        """
        try:
            self._delivery.settle()
        except GapFound as gap:
            raise self._ending(self._recorded(gap)) from gap
        self.pipeline.drop_ahead()
        self._reporter.stopped(*self._filled())
        self._delivery.flush()
        self._hand_over_window()
        self._watch.end()
        self._reporter.show()
        log.info("stopped", extra={"read": self.pipeline.total.read})


def _log_gap(gap: GapFound) -> None:
    log.error("gap", extra={"reason": gap.reason, "shard": gap.shard, "sequence": gap.sequence})
