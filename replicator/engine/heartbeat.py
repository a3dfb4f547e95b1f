"""How a run is doing, for whoever watches it and for whoever asks `status` later."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from msgspec import structs

from replicator.checkpoints.contract import Claimed
from replicator.pipeline import stages
from replicator.pipeline.pipeline import Pipeline
from replicator.pipeline.progress import SILENCE, Progress, measured
from replicator.state import Heartbeat, decode

log = logging.getLogger("replicator")

PULSE = 2.0  # seconds between signs of life
OBSERVE = 0.25  # seconds between looks at the progress
LIVE = 10.0  # seconds of lag up to which a copy counts as live


@dataclass(slots=True)
class Rate:
    """How fast a counter rises, a second, smoothed over a few looks at it."""

    at: float = 0.0
    count: int = 0
    value: float | None = None

    def look(self, count: int, now: float) -> None:
        if self.at and now > self.at:
            recent = max(0, count - self.count) / (now - self.at)
            self.value = recent if self.value is None else 0.6 * self.value + 0.4 * recent
        self.at, self.count = now, count


@dataclass(slots=True)
class ProgressReporter:
    """One run's progress, rates and signs of life. ``waiting_for`` is what it waits for now, if anything.

    ``now`` is what signs of life are dated with; ``monotonic``, which is never set, says when the next one is due.
    """

    pipeline: Pipeline
    observe: Callable[[Progress], None]
    now: Callable[[], float]
    monotonic: Callable[[], float]
    waiting_for: str | None = None
    who: str = ""
    _rate: Rate = field(default_factory=Rate)
    _scan_rate: Rate = field(default_factory=Rate)
    _beat_at: float = -math.inf
    _observed: float = -math.inf

    def tick(self) -> None:
        """Give a sign of life, and show the progress, when it is time."""
        now = self.monotonic()
        pulses, shows = now - self._beat_at >= PULSE, now - self._observed >= OBSERVE
        if pulses:
            self._rate.look(self.pipeline.total.read, now)
            self._scan_rate.look(sum(s.items for s in self.pipeline.segments.values()), now)
        if not (pulses or shows):
            return
        progress = self.progress()
        if pulses:
            self._beat_at = now
            self.pipeline.heartbeat(self._sign(progress.phase))
        if shows:
            self._observed = now
            self.observe(progress)

    def show(self) -> None:
        self.observe(self.progress())

    def sign(self) -> Heartbeat:
        """A heartbeat as of now. The shards that the last listing showed may wait in a batch that is not stored."""
        return replace(self._sign(self.progress().phase), listed=self.pipeline.listing_stored)

    def goodbye(self, filled: Sequence[str], retried: int) -> None:
        """The last heartbeat: stopped in good order, with something in the tables ``filled``; see Pulse."""
        self.pipeline.heartbeat(replace(self._sign("stopped"), filled=tuple(filled), retried=retried))

    def progress(self) -> Progress:
        """How the run is doing, from what is stored and what idle shards showed."""
        pipeline = self.pipeline
        found = measured(
            state=pipeline.state,
            heartbeat=self._sign("catching-up"),
            shards=pipeline.seen(),
            segments=pipeline.segments,
            gaps=pipeline.view.gaps,
            parked=len(pipeline.parked),
            counts=pipeline.total,
            now=self.now(),
        )
        return structs.replace(found, phase=self._phase(found))

    def retention_left_hours(self) -> float | None:
        hours = self.progress().retention_left_hours
        return None if hours is None else round(hours, 1)

    def _sign(self, phase: str) -> Heartbeat:
        return Heartbeat(self.now(), phase, self._rate.value, self._scan_rate.value, self.waiting_for, who=self.who)

    def _phase(self, found: Progress) -> str:
        state = self.pipeline.state
        if found.phase == "gap":
            return "gap"
        if state is None or state.stage != stages.FOLLOWING:
            return "backfill"
        return "live" if found.lag_seconds is not None and found.lag_seconds <= LIVE else "catching-up"


def tell_replaced(claimed: Claimed, now: float) -> None:
    """Name the run that this one takes the pipeline over from, if it may still be alive."""
    texts = [e.text for e in claimed.entries if e.kind == "pulse"]
    for last in (decode("pulse", "", text) for text in texts):
        if isinstance(last, Heartbeat) and last.phase != "stopped" and 0 <= now - last.at <= SILENCE:
            heartbeat = f"{now - last.at:.0f} s ago"
            log.warning("replacing another run", extra={"replaced": last.who or "unknown", "last_heartbeat": heartbeat})
