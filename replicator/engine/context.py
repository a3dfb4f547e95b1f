"""What a run works with (RunContext) and what it depends on from outside (Environment)."""

from __future__ import annotations

import contextlib
import logging
import random
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from replicator.aws.client import Client
from replicator.aws.threaded import calls_of
from replicator.checkpoints.contract import Checkpoints
from replicator.config.settings import Config
from replicator.engine.measurements import MeasuredCalls, Measurements, Unmeasured
from replicator.engine.scheduler import Scheduler
from replicator.engine.shared_calls import SharedCalls
from replicator.hooks.hook import DocumentMapping, Hook
from replicator.pipeline.progress import Progress
from replicator.source.sharing import SharedPages
from replicator.source.table import SourceTable
from replicator.target.contract import Table, Target, marking, with_history

log = logging.getLogger("replicator")


@dataclass(frozen=True, slots=True)
class RunContext:
    """Source, target, checkpoints, hook, and the target's tables."""

    config: Config
    client: Client
    target: Target
    checkpoints: Checkpoints
    hook: Hook | None
    table: SourceTable
    tables: tuple[Table, ...]

    @property
    def mapping(self) -> DocumentMapping:
        names = tuple(table.name for table in self.tables)
        return DocumentMapping(self.hook, names, marking(self.tables), with_history(self.tables))


@dataclass(frozen=True, slots=True)
class Environment:
    """Time, randomness, the scheduler, the stop signal, and the receivers of progress reports and measurements; tests
    replace them.

    ``now``: wall clock, in seconds since 1970; it may be set back. ``monotonic``: for intervals.
    """

    stop: threading.Event
    observe: Callable[[Progress], None]
    now: Callable[[], float] = time.time
    random: random.Random = field(default_factory=random.Random)
    steps: Callable[[Client], Scheduler] | None = None  # None: over the client's own calls
    monotonic: Callable[[], float] = time.monotonic
    hook_limit: contextlib.AbstractContextManager[object] = field(default_factory=contextlib.nullcontext)
    measurements: Measurements = field(default_factory=Unmeasured)
    confirm: Callable[[], None] = lambda: None  # called when the pipeline is claimed, before anything is looked at
    pages: SharedPages | None = None  # of the streams that other pipelines of the process read too
    earlier: Collection[str] = ()  # the runs of this process (``Owner.who``): a rebuild starts them again

    def scheduler(self, client: Client) -> Scheduler:
        """What makes the calls that read the source."""
        if self.steps is not None:
            return self.steps(client)
        calls = calls_of(client)
        measured = not isinstance(self.measurements, Unmeasured)
        calls = MeasuredCalls(calls, self.measurements) if measured else calls
        if self.pages is not None:
            calls = SharedCalls(calls, self.pages, measurements=self.measurements)
        return Scheduler(calls)

    def waiting(self, reason: str | None) -> None:
        """Report that the startup waits or (None) continues."""
        log_wait(reason)
        self.measurements.waiting(reason)


def log_wait(waiting_for: str | None) -> None:
    """Log that the run is waiting, or (None) that it continues."""
    if waiting_for is None:
        log.info("resuming after a wait")
    else:
        log.warning("waiting", extra={"reason": waiting_for})
