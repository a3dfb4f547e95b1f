"""Binds a pipeline to its target's tables: inspects, extends and opens them, and rechecks them during the run."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from replicator.checkpoints.contract import Checkpoints
from replicator.engine import preexisting
from replicator.engine.delivery import Delivery
from replicator.engine.retry import RetryPolicy
from replicator.engine.startup import Allowed, StartMode, StartupState, check_single_process, start_mode, with_request
from replicator.errors import ConfigError, GapFound
from replicator.hooks.hook import Hook
from replicator.pipeline.checkpoint_view import CheckpointView
from replicator.pipeline.pipeline import Pipeline
from replicator.source.table import SourceTable
from replicator.state import ResyncRequest
from replicator.target.contract import Defining, Rechecking, Table, Target

log = logging.getLogger("replicator")

RECHECK_INTERVAL = 60.0  # seconds


@dataclass(frozen=True, slots=True)
class Binding:
    """The target side of a run's startup."""

    target: Target
    tables: Sequence[Table]
    hook: Hook | None
    pipeline: Pipeline
    retrying: RetryPolicy

    def inspect(self, source: SourceTable) -> StartupState:
        view = self.pipeline.view
        return self.retrying(lambda: preexisting.inspect(view, source, self.target, self.tables, self.hook))

    def extend(self, startup: StartupState) -> None:
        """Add what the config added to the tables; the next epoch's scan fills it."""
        target = self.target
        assert isinstance(target, Defining)
        log.info("extending tables", extra={"statements": list(startup.additions or ())})
        self.retrying(lambda: target.extend(self.tables, startup.changes))

    def check_new_epoch(self) -> None:
        request = self.pipeline.view.request
        self.retrying(lambda: preexisting.check_new_epoch(self.target, self.tables, request))

    def open(self, startup: StartupState) -> None:
        """Open the tables and store their identities."""
        state = self.pipeline.view.pipeline
        assert state is not None
        self.retrying(lambda: self.target.open(self.tables, state.epoch))
        identities = self.retrying(lambda: preexisting.identities(self.target, self.tables))
        self.pipeline.define(replace(startup.bound, tables=identities))


@dataclass(slots=True)
class Recheck:
    """Checks periodically that the tables were not altered in a way that would lose rows silently."""

    target: Target
    tables: Sequence[Table]
    delivery: Delivery
    retrying: RetryPolicy
    monotonic: Callable[[], float]
    _checked_at: float = field(default=-math.inf)

    def check(self) -> None:
        """Once in an interval: ConfigError if ``open`` would now refuse a table although writes to it succeed. GapFound
        if the target has lost rows.
        """
        if self.monotonic() - self._checked_at >= RECHECK_INTERVAL:
            self.check_now()

    def check_now(self) -> None:
        """The same, at once."""
        self._checked_at, target = self.monotonic(), self.target
        if not isinstance(target, Rechecking):
            return
        self.delivery.settle()
        if problems := self.retrying(lambda: target.recheck(self.tables)):
            raise ConfigError(*problems)


def check_start(
    checkpoints: Checkpoints,
    inspect: Callable[[CheckpointView], StartupState],
    allowed: Allowed,
    check_new_epoch: Callable[[ResyncRequest | None], None],
    *,
    several: bool = False,
) -> None:
    """ConfigError if a run must not start with this config. ``several``: it has several workers.

    Called before the run claims the pipeline, so that a live run is not replaced by one that cannot start, and nothing
    is stored of an epoch that the target refuses. A gap does not count: the run records it after its claim. Tables that
    the run will extend are checked after that.
    """
    view = CheckpointView(checkpoints.read())
    with contextlib.suppress(GapFound):
        found = inspect(view)
        begins = start_mode(found, with_request(allowed, view.request, found)) is StartMode.BEGIN
        if begins and found.has_documents and not found.additions:
            check_new_epoch(view.request)
        if several and not begins:
            check_single_process(found.state)
