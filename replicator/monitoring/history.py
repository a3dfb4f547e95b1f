"""The last hour of a run, in samples."""

from __future__ import annotations

import threading
from collections import deque

import msgspec

from replicator.pipeline.progress import Progress

EVERY = 5.0  # seconds between samples
SPAN = 3600.0  # seconds that are kept


class Sample(msgspec.Struct, frozen=True):
    """``at``: seconds since 1970. ``rate``, ``scan_rate``: records and items per second. None: unknown."""

    at: float
    phase: str
    waiting: bool = False
    lag: float | None = None
    rate: float | None = None
    scan_rate: float | None = None
    retention_left: float | None = None

    @classmethod
    def of(cls, progress: Progress, at: float) -> Sample:
        backfill, hours = progress.backfill, progress.retention_left_hours
        return cls(
            at,
            progress.phase,
            progress.waiting_for is not None,
            progress.lag_seconds,
            progress.rate,
            backfill.rate if backfill is not None and backfill.segments_ended < backfill.segments else None,
            None if hours is None else hours * 3600,
        )


class History:
    """Samples of the last hour, oldest first. One thread adds them, others read."""

    def __init__(self) -> None:
        self._samples: deque[Sample] = deque(maxlen=int(SPAN / EVERY) + 1)
        self._lock = threading.Lock()

    def add(self, sample: Sample) -> None:
        with self._lock:
            self._samples.append(sample)

    def samples(self) -> tuple[Sample, ...]:
        with self._lock:
            return tuple(self._samples)
