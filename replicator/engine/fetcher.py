"""Reads ahead from the source: runs shard readers, segment scans and shard listings, and buffers their pages."""

from __future__ import annotations

import random
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from replicator.aws.client import Call
from replicator.change import Listing, Page, ScanPage
from replicator.engine.context import Environment, RunContext
from replicator.engine.delivery import Delivery
from replicator.engine.measurements import Measurements, Unmeasured
from replicator.engine.scheduler import Scheduler, StepResult
from replicator.errors import ConfigError, GapFound, ReplicatorError, TransientError
from replicator.pipeline import stages
from replicator.pipeline.batching import PageBuffer
from replicator.pipeline.pipeline import Pipeline
from replicator.source import chosen, export
from replicator.source.decoding import decoder_of
from replicator.source.scan import ReadBudget, Scanned, scan
from replicator.source.shard_reader import read
from replicator.source.stream import LISTING_REST, Stream, children, listing
from replicator.source.table import SourceTable
from replicator.state import PipelineState, SegmentState

POLL_TIMEOUT = 0.1  # seconds
LISTING_INTERVAL = 30.0  # seconds between full listings while the lineage is complete
MIN_RELIST, MAX_RELIST = 0.5, 10.0  # seconds between listings while shards are missing from the lineage
MAX_SINGLE_LOOKUPS = 3  # childless shards to look up individually; for more, a full listing is cheaper
_LISTING = "listing"
_EXPORT = "export"


@dataclass(slots=True)
class Fetcher:
    """Reads ahead from every readable shard and segment, within the limits of ``pages``.

    ``waiting_for``: by source, why it cannot be read at the moment. ``disabled``: the table's stream was disabled.
    ``exporting``: prepares the export that an epoch's state names. ``exported``: that export, once it is complete.
    """

    pipeline: Pipeline
    pages: PageBuffer
    stream: Stream
    table: Scanned
    budget: ReadBudget
    steps: Scheduler
    now: Callable[[], float]
    random: random.Random
    measurements: Measurements = field(default_factory=Unmeasured)
    waiting_for: dict[str, str] = field(default_factory=dict)
    disabled: bool = False
    exporting: Callable[[PipelineState], Iterator[Any]] | None = None
    exported: export.Exported | None = None
    _paused: dict[str, float] = field(default_factory=dict)
    _asked: set[str] = field(default_factory=set)
    _ask_at: float = 0.0
    _list_at: float = 0.0
    _list_rest: float = MIN_RELIST
    _history_from: float = 0.0  # for which a listing was made: of when the scan ended

    def __post_init__(self) -> None:
        self.steps.full = lambda: self.pages.full

    def advance(self) -> None:
        """Start what is due: new readers and scans, a listing, and sources that were paused for lack of room."""
        if openings := list(self.pipeline.openings()):
            closed = self.pipeline.closed
            for shard, state in openings:
                self.steps.add(f"shard:{shard}", read(self.stream, shard, state, closed=shard in closed))
        if self._may_scan():
            for segment, stored in self.pipeline.scans():
                self.steps.add(f"segment:{segment}", self._scan(segment, stored))
        for source in [s for s in self._paused if self.pages.room(s)]:
            self.steps.again(source, self._paused.pop(source))
        self._list()
        self.steps.begin()

    def _may_scan(self) -> bool:
        """Whether segments can be read. An export is prepared first; its epoch's positions are stored by then."""
        state = self.pipeline.state
        if state is None or state.read_export is None or self.exported is not None:
            return True
        unread = any(not segment.ended for segment in self.pipeline.segments.values())
        begins = state.stage == stages.SCANNING and not state.opening and unread
        if begins and not self.steps.has(_EXPORT) and self.exporting is not None:
            self.steps.add(_EXPORT, self.exporting(state))
        return False

    def _process_export(self, step: export.Requested | export.Exporting | export.Exported) -> None:
        stored = self.pipeline.view.pipeline
        assert stored is not None
        assert stored.export is not None
        if isinstance(step, export.Requested):
            assert stored.repair is not None
            self.pipeline.change(replace(stored, repair=replace(stored.repair, arns=step.arns)))
            self.steps.again(_EXPORT)
            return
        if step.arn and step.arn != stored.export.arn:
            self.pipeline.change(replace(stored, export=export.begun(stored.export, step.arn)))
        if isinstance(step, export.Exported):
            self.exported = step
            self.waiting_for.pop(_EXPORT, None)
            self.steps.again(_EXPORT)  # lets the generator end
        else:
            self.waiting_for[_EXPORT] = f"{_EXPORT}: {step.waiting_for}"
            self.steps.again(_EXPORT, step.rest)

    def next_export(self) -> None:
        """The export was read: the next one is prepared once the pipeline's state names it."""
        self.exported = None

    def _scan(self, segment: int, stored: SegmentState) -> Generator[Call | ScanPage, Any, None]:
        state = self.pipeline.state
        if self.exported is not None and state is not None and state.read_export is not None:
            return export.read(self.exported, self.table.keys, segment, stored, self.random)
        if stored.keys:
            return chosen.read(self.table, segment, stored, keeps_expired=self.pipeline.ignore_expired)
        return scan(self.table, segment, stored)

    def poll(self, timeout: float, accepting: Callable[[], bool]) -> bool:
        """Process step results until none is left, or a whole batch is buffered while ``accepting`` one.

        ``accepting`` is called after each result. Returns False if there was no result within ``timeout`` seconds.
        Raises GapFound, and other errors that end a run.
        """
        result = self.steps.get(timeout)
        if result is None:
            return False
        while result is not None:
            self._process(result)
            if accepting() and self.pages.has_batch:
                break
            result = self.steps.get(0.0)
        return True

    def gathers(self) -> bool:
        """Whether the next batch should wait, for a target that wants large ones: none is full, and none is late."""
        return self.pages.is_gathering and self.pages.gathers(self.now())

    @property
    def finished(self) -> bool:
        """Whether the stream was disabled and all of it is stored."""
        return self.disabled and self.pipeline.ended

    def _process(self, result: StepResult) -> None:
        if result.name == _LISTING:
            self._process_listing(result)
        elif result.error is not None:
            raise result.error
        elif isinstance(result.value, Page):
            self._page(result.name, result.value)
        elif isinstance(result.value, ScanPage):
            self._scan_page(result.name, result.value)
        elif isinstance(result.value, export.Requested | export.Exporting | export.Exported):
            self._process_export(result.value)

    def _page(self, source: str, page: Page) -> None:
        self.pipeline.accept(page)
        if self.pipeline.gone(page.shard):
            self._set_waiting(source, None)
            return
        self._set_waiting(source, page.waiting_for)
        self._schedule(source, page.rest)  # after the last page too: the generator needs one more step to end

    def _scan_page(self, source: str, page: ScanPage) -> None:
        self.pipeline.accept_scan(page)
        self._set_waiting(source, page.waiting_for)
        self.measurements.scanned(page.read_units)
        self._schedule(source, max(page.rest, self.budget.spend(page.read_units, self.now())))

    def _set_waiting(self, source: str, waiting_for: str | None) -> None:
        if waiting_for is None:
            self.waiting_for.pop(source, None)
        else:
            self.waiting_for[source] = f"{source}: {waiting_for}"
            self.measurements.retried("source")

    def _schedule(self, source: str, rest: float) -> None:
        if self.pages.room(source):
            self.steps.again(source, rest)
        else:
            self._paused[source] = rest

    def _list(self) -> None:
        now = self.now()
        if self.pipeline.slot or self.steps.has(_LISTING) or now < self._ask_at:  # a coordinator lists for all workers
            return
        childless = self.pipeline.childless
        self._asked &= childless
        new = childless - self._asked
        if new and len(childless) <= MAX_SINGLE_LOOKUPS:
            shard = min(new)
            self._asked.add(shard)
            self._list_rest, self._list_at = MIN_RELIST, min(self._list_at, now + MIN_RELIST)
            self.steps.add(_LISTING, children(self.stream, shard))
        elif now >= self._list_at or new or self.pipeline.history_from > self._history_from:
            self._asked, self._history_from = self._asked | new, self.pipeline.history_from
            self.steps.add(_LISTING, listing(self.stream))

    def _process_listing(self, result: StepResult) -> None:
        self._ask_at = self.now() + LISTING_REST
        if isinstance(result.error, TransientError):
            self._set_waiting(_LISTING, str(result.error))
            self._list_at = self.now() + self.random.uniform(1, MAX_RELIST)
        elif result.error is not None:
            raise result.error
        elif isinstance(result.value, float):
            self.steps.again(_LISTING, result.value)
        elif isinstance(result.value, Listing):
            self._listed(result.value)

    def _listed(self, listing: Listing) -> None:
        self.steps.again(_LISTING)  # lets the generator end
        self._set_waiting(_LISTING, None)
        self.disabled = listing.status in ("DISABLED", "DISABLING")
        self.pipeline.listed(listing)
        if not listing.complete:
            return
        if self.pipeline.childless or self.pipeline.discovery.orphaned or self.pipeline.discovery.misses:
            self._list_rest = min(MAX_RELIST, self._list_rest * 2)
            self._list_at = self.now() + self._list_rest
        else:
            self._list_rest, self._list_at = MIN_RELIST, self.now() + LISTING_INTERVAL


def fetcher_for(
    context: RunContext,
    environment: Environment,
    pipeline: Pipeline,
    table: SourceTable,
    arn: str,
    budget: ReadBudget,
    steps: Scheduler,
) -> Fetcher:
    """A fetcher for ``table`` and its stream ``arn``."""
    name = context.config.source.table  # may be an ARN, which a table of another account requires
    stream = Stream(
        arn=arn,
        table=name,
        keys=table.keys,
        decode=decoder_of(table),
        now=environment.now,
        random=environment.random,
        keys_only=table.view == "KEYS_ONLY",
        poll_interval=context.config.source.poll_interval,
        identity=table.identity,
    )
    config = context.config

    def exporting(state: PipelineState) -> Iterator[Any]:
        assert state.export is not None

        def wanted(window: export.Window | None) -> export.Destination | None:
            token = export.token(config.pipeline, state.table_id, state.epoch, state.started, window)
            return config.destination(token, incremental=window is not None)

        following = () if state.repair is None else state.repair.following
        ahead = [export.Ahead(window, arn, wanted(window)) for window, arn in following]
        to = wanted(state.export.window)
        return export.prepare(table, state.export, to, environment.random, environment.now, ahead)

    return Fetcher(
        pipeline,
        pipeline.pages,
        stream,
        Scanned(name, table.keys, environment.random, environment.monotonic, table.identity),
        budget,
        steps,
        environment.monotonic,
        environment.random,
        environment.measurements,
        exporting=exporting,
    )


def send(fetcher: Fetcher, delivery: Delivery) -> bool:
    """Start reads, and deliver the next batch. Returns whether there was one."""
    fetcher.advance()
    batch = None if delivery.full or fetcher.gathers() else delivery.taken()
    if batch is not None:
        delivery.offer(batch)
    return batch is not None


def receive(fetcher: Fetcher, delivery: Delivery, *, sent: bool, busy: bool) -> None:
    """Process what was read. Without anything to do, wait for that, or for the batch in flight."""

    def accepting() -> bool:
        delivery.nudge()  # sends the encoded batch if its predecessor is stored
        return not delivery.full

    polled = fetcher.poll(0.0 if busy else POLL_TIMEOUT, accepting)
    if not polled and not sent:
        delivery.push()


def end_of_stream(before: SourceTable, now: SourceTable | None) -> ReplicatorError:
    """Why a fully stored stream has ended. ``now``: the table as it is now, None if it no longer exists."""
    if now is None:
        return ConfigError(
            f"source.table: the table {before.arn or before.name} was deleted. Everything in its stream is stored, and "
            "nothing was removed from the target. If the table is created again, copy it with: replicator resync CONFIG"
        )
    if now.identity != before.identity:
        return GapFound(
            f"the table {before.name} was deleted and created again during this run; the stream of the deleted table "
            "is fully stored"
        )
    if now.streaming and now.stream_arn != before.stream_arn:
        return GapFound(
            f"the stream was replaced: this run read {before.stream_arn}, all of which is stored, and the table now "
            f"has {now.stream_arn}"
        )
    return GapFound(
        "the stream was disabled, and all of it is stored; changes made since then cannot be read. "
        "Enable it again, then run: replicator resync CONFIG"
    )


def explained(gap: GapFound, before: SourceTable, now: SourceTable | None) -> GapFound:
    """``gap``, with the deleted table as its cause if the table no longer exists (``now`` is None)."""
    if now is not None:
        return gap
    reason = f"the source table {before.arn or before.name} was deleted before all of its stream was read: {gap.reason}"
    return GapFound(reason, gap.shard, gap.sequence)
