"""Whether a run is healthy, and whether its copy is ready for readers. Pure decisions."""

from __future__ import annotations

from dataclasses import dataclass

from replicator.duration import duration
from replicator.pipeline.progress import Progress

STALLED = 20.0  # seconds without progress after which a run is unhealthy
MOVED = 0.01  # seconds by which the stored time must advance to count; less is rounding
SET_BACK = 1.0  # seconds by which it falls if the clock was set back; less is the delay of a report


@dataclass(frozen=True, slots=True)
class Mark:
    """What changes while a run makes progress. ``through``: every change before that time is stored."""

    counts: tuple[object, ...] = ()
    through: float | None = None

    @classmethod
    def of(cls, progress: Progress, stage: str, now: float) -> Mark:
        """``now``: wall clock, in seconds since 1970."""
        backfill = progress.backfill
        scanned = (backfill.items, backfill.segments_ended) if backfill is not None else ()
        through = now - progress.lag_seconds if progress.lag_seconds is not None else None
        return cls((progress.counts.read, progress.epoch, stage, len(progress.gaps), *scanned), through)

    def is_ahead(self, before: Mark) -> bool:
        """Whether there was progress since ``before``. Idle shards count: reading them to their end is progress."""
        if self.counts != before.counts:
            return True
        if self.through is None:
            return False
        return before.through is None or self.through > before.through + MOVED

    def is_set_back(self, before: Mark) -> bool:
        """Whether times of before cannot be compared with later ones: the clock was set back. That is no progress."""
        return self.through is not None and before.through is not None and self.through < before.through - SET_BACK


@dataclass(frozen=True, slots=True)
class Verdict:
    """``reason``: one sentence; it never contains item values."""

    ok: bool
    reason: str


def health(*, stuck: float, silent: float, waiting_for: str | None) -> Verdict:
    """``stuck``: seconds since the last progress; ``silent``: seconds since the run last reported anything."""
    if stuck < STALLED:
        return Verdict(True, "progress is made")
    since = f"no progress for {duration(stuck)}"
    if waiting_for is not None:
        return Verdict(False, f"{since}, waiting for: {waiting_for}")
    if silent >= STALLED / 2:
        return Verdict(False, f"{since}: no response from the source, the target or the hook for {duration(silent)}")
    return Verdict(False, f"{since}, although nothing that the run waits for is known")


def readiness(progress: Progress, verdict: Verdict) -> Verdict:
    """Whether readers may rely on the copy: it is live, and the run makes progress."""
    if not verdict.ok:
        return verdict
    lag = duration(progress.lag_seconds)
    reasons = {
        "live": f"live, lag {lag}",
        "starting": "starting: nothing is read yet",
        "backfill": f"backfill: {_scanned(progress)}",
        "catching-up": f"catching up: lag {lag}",
        "gap": "gap: records can no longer be read",
    }
    return Verdict(progress.phase == "live", reasons.get(progress.phase, progress.phase))


def _scanned(progress: Progress) -> str:
    backfill = progress.backfill
    if backfill is None:
        return "nothing is scanned yet"
    total = f" of about {backfill.estimate:,}" if backfill.estimate is not None else ""
    return f"{backfill.items:,}{total} items copied"
