"""The source's side of a run: which readers, scans and listings are due, and what becomes of what they find."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from replicator.change import Listing, Page, ScanPage
from replicator.engine.scheduler import Scheduler, StepResult
from replicator.errors import ConfigError, GapFound, ReplicatorError, TransientError
from replicator.pipeline.page_buffer import PageBuffer
from replicator.pipeline.pipeline import Pipeline
from replicator.source.scan import ReadBudget, Scanned, scan
from replicator.source.shard_reader import read
from replicator.source.stream import LISTING_REST, Stream, children, listing
from replicator.source.table import SourceTable

LISTING_EVERY = 30.0  # seconds between full listings when nothing asks for one
SOONEST, LATEST = 0.5, 10.0  # seconds between listings while something is missing in the lineage
FEW = 3  # childless shards that are asked about one by one; more are cheaper in a full listing
_LISTER = "listing"


@dataclass(slots=True)
class Fetcher:
    """Reads ahead from every readable shard and segment, within the limits of ``pages``.

    ``waiting_for``: by source, why it cannot be read at the moment. ``disabled``: the table's stream was disabled.
    """

    pipeline: Pipeline
    pages: PageBuffer
    stream: Stream
    table: Scanned
    budget: ReadBudget
    steps: Scheduler
    now: Callable[[], float]
    random: random.Random
    waiting_for: dict[str, str] = field(default_factory=dict)
    disabled: bool = False
    _paused: dict[str, float] = field(default_factory=dict)
    _asked: set[str] = field(default_factory=set)
    _ask_at: float = 0.0
    _list_at: float = 0.0
    _list_rest: float = SOONEST

    def __post_init__(self) -> None:
        self.steps.full = lambda: self.pages.full

    def advance(self) -> None:
        """Start what is due: new readers and scans, a listing, and sources that were paused for lack of room."""
        for shard, state in self.pipeline.openings():
            closed = shard in self.pipeline.discovery.closed
            self.steps.add(f"shard:{shard}", read(self.stream, shard, state, closed=closed))
        for segment, stored in self.pipeline.scans():
            self.steps.add(f"segment:{segment}", scan(self.table, segment, stored))
        for source in [s for s in self._paused if self.pages.room(s)]:
            self.steps.again(source, self._paused.pop(source))
        self._list()
        self.steps.begin()

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

    @property
    def finished(self) -> bool:
        """Whether the stream is disabled, and stored to its end."""
        return self.disabled and self.pipeline.ended

    def _process(self, result: StepResult) -> None:
        if result.name == _LISTER:
            self._listing_step(result)
        elif result.error is not None:
            raise result.error
        elif isinstance(result.value, Page):
            self._page(result.name, result.value)
        elif isinstance(result.value, ScanPage):
            self._scan_page(result.name, result.value)

    def _page(self, source: str, page: Page) -> None:
        self.pipeline.accept(page)
        if self.pipeline.gone(page.shard):
            self._note(source, None)
            return
        self._note(source, page.waiting_for)
        self._next(source, page.rest)  # after the last page too: the generator's end is one more step

    def _scan_page(self, source: str, page: ScanPage) -> None:
        self.pipeline.accept_scan(page)
        self._note(source, page.waiting_for)
        self._next(source, max(page.rest, self.budget.spend(page.read_units, self.now())))

    def _note(self, source: str, waiting_for: str | None) -> None:
        if waiting_for is None:
            self.waiting_for.pop(source, None)
        else:
            self.waiting_for[source] = f"{source}: {waiting_for}"

    def _next(self, source: str, rest: float) -> None:
        if self.pages.room(source):
            self.steps.again(source, rest)
        else:
            self._paused[source] = rest

    def _list(self) -> None:
        now = self.now()
        if self.steps.has(_LISTER) or now < self._ask_at:
            return
        childless = self.pipeline.childless
        self._asked &= childless
        new = childless - self._asked
        if new and len(childless) <= FEW:
            shard = min(new)
            self._asked.add(shard)
            self._list_rest, self._list_at = SOONEST, min(self._list_at, now + SOONEST)
            self.steps.add(_LISTER, children(self.stream, shard))
        elif now >= self._list_at or new:
            self._asked |= new
            self.steps.add(_LISTER, listing(self.stream))

    def _listing_step(self, stepped: StepResult) -> None:
        self._ask_at = self.now() + LISTING_REST
        if isinstance(stepped.error, TransientError):
            self._note(_LISTER, str(stepped.error))
            self._list_at = self.now() + self.random.uniform(1, LATEST)
        elif stepped.error is not None:
            raise stepped.error
        elif isinstance(stepped.value, float):
            self.steps.again(_LISTER, stepped.value)
        elif isinstance(stepped.value, Listing):
            self._listed(stepped.value)

    def _listed(self, found: Listing) -> None:
        self.steps.again(_LISTER)  # to its end
        self._note(_LISTER, None)
        self.disabled = found.status in ("DISABLED", "DISABLING")
        self.pipeline.listed(found)
        if not found.complete:
            return
        if self.pipeline.childless or self.pipeline.discovery.waits or self.pipeline.discovery.misses:
            self._list_rest = min(LATEST, self._list_rest * 2)
            self._list_at = self.now() + self._list_rest
        else:
            self._list_rest, self._list_at = SOONEST, self.now() + LISTING_EVERY


def end_of_stream(was: SourceTable, now: SourceTable | None) -> ReplicatorError:
    """Why a stream that is stored to its end has no more changes. ``now``: the table, None if there is none."""
    if now is None:
        return ConfigError(
            f"source.table: the table {was.arn or was.name} was deleted. All that its stream held is stored, and "
            "nothing was removed from the target. If the table is created again, copy it with: replicator resync"
        )
    if now.identity != was.identity:
        return GapFound(
            f"the table {was.name} was deleted and created again while this run copied it; the stream of the first "
            "one is stored to its end"
        )
    return GapFound(
        "the stream was disabled, and is stored to its end; changes made since then cannot be read. "
        "Enable it again, then: replicator resync"
    )


def explained(found: GapFound, was: SourceTable, now: SourceTable | None) -> GapFound:
    """A gap where a stream or a shard is gone, with the reason if the table is gone as well."""
    if now is not None:
        return found
    reason = f"the source table {was.arn or was.name} was deleted before all of its stream was read: {found.reason}"
    return GapFound(reason, found.shard, found.sequence)
