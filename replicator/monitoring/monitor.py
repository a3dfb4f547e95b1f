"""What is known of a run: its thread reports, the web server's thread reads."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from msgspec import structs

from replicator.monitoring.health import Mark, Verdict, health, readiness
from replicator.monitoring.history import History, Sample
from replicator.monitoring.metrics import Metrics, Moment
from replicator.pipeline.details import Details
from replicator.pipeline.progress import CURRENT, Progress, aged, as_values
from replicator.state import FULL_SCOPE

FAILED = "the pipeline has ended by an error, which is in the log"


@dataclass(frozen=True, slots=True)
class Subject:
    """What is monitored. ``config``: the file, and the target if it has a name, as in a command. ``source``,
    ``target``: as the page shows them.

    ``verify_every``: seconds from one verification pass of the run to the next; None if it makes none.
    """

    pipeline: str
    config: str
    source: str
    target: str
    tables: tuple[str, ...] = ()
    verify_every: float | None = None


class Monitor:
    """Receives a run's progress and measurements, and answers at any moment, also while the run is blocked.

    Every attribute that the run's thread sets is replaced as a whole, so that no reader sees half of it.
    """

    def __init__(
        self,
        subject: Subject,
        now: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.subject = subject
        self.history = History()
        self.metrics = Metrics(subject.pipeline, subject.target, self.moment)
        self.reduced_guarantee = ""
        self.began = now()
        self._now, self._monotonic = now, monotonic
        self._progress, self._details = Progress("starting"), Details()
        self._mark = Mark()
        self._reported = self._moved = monotonic()
        self._failed = False

    # The run's thread

    def observe(self, progress: Progress) -> None:
        mark, at = Mark.of(progress, self._details.stage, self._now()), self._monotonic()
        if mark.is_ahead(self._mark):
            self._mark, self._moved = mark, at
        elif mark.is_set_back(self._mark):
            self._mark = mark
        self._progress, self._reported = progress, at

    def guarantee_reduced(self, reduced: str) -> None:
        self.reduced_guarantee = reduced

    def waiting(self, reason: str | None) -> None:
        self._progress, self._reported = structs.replace(self._progress, waiting_for=reason), self._monotonic()

    def fail(self) -> None:
        """The pipeline has ended by an error, while the process continues with others."""
        self._failed = True

    def active(self) -> None:
        self._moved = self._monotonic()

    def working(self) -> None:
        """As long as the run does not get the response, it reports nothing."""

    def detailed(self, details: Callable[[], Details]) -> None:
        self._details = details()

    def stored(self, changes: int, seconds: float) -> None:
        self.metrics.stored(changes, seconds)

    def retried(self, cause: str) -> None:
        self.metrics.retried(cause)

    def responded(self, operation: str, outcome: str) -> None:
        self.metrics.responded(operation, outcome)

    def paged(self, reader: str) -> None:
        self.metrics.paged(reader)

    def scanned(self, read_units: float) -> None:
        self.metrics.scanned(read_units)

    # The web server's thread

    @property
    def details(self) -> Details:
        return self._details

    @property
    def silent(self) -> float:
        """Seconds since the run last reported."""
        return self._monotonic() - self._reported

    def progress(self) -> Progress:
        """The latest progress, with the run's owner. While the run reports nothing, its lag grows.

        One that has failed is stopped, or has a gap.
        """
        progress, silent = self._progress, self.silent
        progress = structs.replace(progress, owner=self._details.owner)
        if self._failed and progress.phase != "gap":
            progress = structs.replace(progress, phase="stopped")
        return progress if silent < CURRENT else aged(progress, silent)

    def health(self) -> Verdict:
        if self._failed:
            return Verdict(False, FAILED)
        stuck = self._monotonic() - self._moved
        return health(stuck=stuck, silent=self.silent, waiting_for=self._progress.waiting_for)

    def readiness(self) -> Verdict:
        return readiness(self.progress(), self.health())

    def moment(self) -> Moment:
        progressed_at = self._now() - (self._monotonic() - self._moved)
        return Moment(self.progress(), self._details, self.health().ok, progressed_at, self.verify_due())

    def verify_due(self) -> float | None:
        """When the next verification pass must have ended; None if the run makes none.

        It begins ``verify_every`` after the beginning of the last one over the whole table, and should not take longer
        than that.
        """
        every, progress = self.subject.verify_every, self._progress
        if every is None:
            return None
        if progress.verified is not None and progress.verified.scope == FULL_SCOPE:
            return progress.verified.started + 2 * every
        return (self.began if progress.verifying is None else progress.verifying.so_far.started) + 2 * every

    def status(self) -> Mapping[str, Any]:
        """The fields of ``status --json``."""
        values = as_values(self.progress())
        return {"pipeline": self.subject.pipeline, **values, "reduced_guarantee": self.reduced_guarantee or None}

    def sample(self) -> None:
        """Add the present moment to the history."""
        self.history.add(Sample.of(self.progress(), self._now()))

    def now(self) -> float:
        return self._now()
