"""Progress reports and heartbeats of a running pipeline."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field, replace

from msgspec import structs

from replicator.checkpoints.contract import Claimed
from replicator.pipeline import stages
from replicator.pipeline.pipeline import Pipeline
from replicator.pipeline.progress import HEARTBEAT_TIMEOUT, Progress, WorkerProgress, measured
from replicator.state import Heartbeat, HistoryReport, decode
from replicator.target.in_doubt import InDoubtWindow

log = logging.getLogger("replicator")

HEARTBEAT_INTERVAL = 2.0  # seconds
OBSERVE_INTERVAL = 0.25  # seconds between updates of the progress display
LIVE = 10.0  # a replica counts as live while its lag is at most this many seconds


@dataclass(slots=True)
class Rate:
    """Exponentially smoothed rate of a counter, per second."""

    at: float = 0.0
    count: int = 0
    value: float | None = None

    def update(self, count: int, now: float) -> None:
        if self.at and now > self.at:
            recent = max(0, count - self.count) / (now - self.at)
            self.value = recent if self.value is None else 0.6 * self.value + 0.4 * recent
        self.at, self.count = now, count


@dataclass(slots=True)
class ProgressReporter:
    """Sends heartbeats to the checkpoints and progress to ``observe``.

    ``waiting_for``: what blocks the run at the moment, or None. ``who``: the owner named in heartbeats.
    ``beat``: called with each heartbeat.
    ``in_doubt``: of a target that applies requests late. ``workers``: of a run with several, and their ``restarts``.
    ``histories``: of the target's tables, as last looked at.
    ``now``: wall clock, for timestamps. ``monotonic``: for intervals.
    """

    pipeline: Pipeline
    observe: Callable[[Progress], None]
    now: Callable[[], float]
    monotonic: Callable[[], float]
    waiting_for: str | None = None
    who: str = ""
    beat: Callable[[], None] = lambda: None
    in_doubt: InDoubtWindow | None = None
    workers: tuple[WorkerProgress, ...] = ()
    restarts: Mapping[str, int] = field(default_factory=dict)
    histories: Callable[[], tuple[HistoryReport, ...]] = tuple
    _rate: Rate = field(default_factory=Rate)
    _scan_rate: Rate = field(default_factory=Rate)
    _beat_at: float = -math.inf
    _observed_at: float = -math.inf

    def tick(self) -> None:
        """Send a heartbeat and report progress, each when it is due."""
        now = self.monotonic()
        beat_due = now - self._beat_at >= HEARTBEAT_INTERVAL
        observe_due = now - self._observed_at >= OBSERVE_INTERVAL
        if beat_due:
            self._rate.update(self.pipeline.total.read, now)
            self._scan_rate.update(sum(s.items for s in self.pipeline.segments.values()), now)
        if not (beat_due or observe_due):
            return
        progress = self.progress()
        if beat_due:
            self._beat_at = now
            self.pipeline.heartbeat(self._heartbeat(progress.phase))
            self.beat()
        if observe_due:
            self._observed_at = now
            self.observe(progress)

    def show(self) -> None:
        self.observe(self.progress())

    def current(self) -> Heartbeat:
        """A heartbeat that may be stored out of order.

        ``listed`` is the time of the last stored listing: the shards of a later one may be in a batch in flight.
        """
        listed, orphans = self.pipeline.listing_stored, len(self.pipeline.discovery.orphaned)
        return replace(self._heartbeat(self.progress().phase), listed=listed, orphans=orphans)

    def stopped(self, filled: Sequence[str], retried: int) -> None:
        """Send the final heartbeat of a clean stop; see ``Heartbeat`` for ``filled`` and ``retried``."""
        self.pipeline.heartbeat(replace(self._heartbeat("stopped"), filled=tuple(filled), retried=retried))

    def progress(self) -> Progress:
        """Current progress, from what is stored and what idle shards have shown since."""
        pipeline = self.pipeline
        progress = measured(
            state=pipeline.state,
            heartbeat=self._heartbeat("catching-up"),
            shards=pipeline.seen(),
            segments=pipeline.segments,
            gaps=pipeline.view.gaps,
            parked=len(pipeline.parked),
            counts=pipeline.total,
            now=self.now(),
            request=pipeline.view.request,
        )
        return structs.replace(progress, phase=self._phase(progress), workers=self.workers)

    def retention_left_hours(self) -> float | None:
        hours = self.progress().retention_left_hours
        return None if hours is None else round(hours, 1)

    def _heartbeat(self, phase: str) -> Heartbeat:
        rates, repair = (self._rate.value, self._scan_rate.value), self.pipeline.parked.repairing
        left = None if self.in_doubt is None else self.in_doubt.left
        beat = Heartbeat(self.now(), phase, *rates, self.waiting_for, who=self.who, repair=repair, in_doubt=left)
        beat = replace(beat, histories=self.histories())
        return replace(beat, restarts=self.restarts) if self.restarts else beat

    def _phase(self, progress: Progress) -> str:
        state = self.pipeline.state
        if progress.phase == "gap":
            return "gap"
        if state is None or state.stage != stages.FOLLOWING:
            return "backfill"
        return "live" if progress.lag_seconds is not None and progress.lag_seconds <= LIVE else "catching-up"


def warn_if_replacing(claimed: Claimed, now: float, earlier: Container[str] = ()) -> None:
    """Log which run this one replaces, if that one may still be alive. ``earlier``: the runs of this process, which
    it has ended itself.
    """
    texts = [e.text for e in claimed.entries if e.kind == "pulse"]
    for last in (decode("pulse", "", text) for text in texts):
        if not isinstance(last, Heartbeat) or last.who in earlier:
            continue
        if last.phase != "stopped" and 0 <= now - last.at <= HEARTBEAT_TIMEOUT:
            heartbeat = f"{now - last.at:.0f} s ago"
            log.warning("replacing another run", extra={"replaced": last.who or "unknown", "last_heartbeat": heartbeat})
