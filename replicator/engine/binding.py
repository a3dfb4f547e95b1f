"""Binds a run's pipeline to the tables of its target: opened, extended where a person allows it, and remembered."""

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
from replicator.engine.startup import Allowed, StartupState, start_mode
from replicator.errors import ConfigError, GapFound
from replicator.hooks.hook import Hook
from replicator.pipeline.checkpoint_view import CheckpointView
from replicator.pipeline.pipeline import Pipeline
from replicator.source.table import SourceTable
from replicator.target.contract import Defining, Rechecking, Table, Target

log = logging.getLogger("replicator")

RECHECKED = 60.0  # seconds until tables are looked at again


@dataclass(frozen=True, slots=True)
class Binding:
    """The target's side of a run that begins."""

    target: Target
    tables: Sequence[Table]
    hook: Hook | None
    pipeline: Pipeline
    retrying: RetryPolicy

    def found(self, source: SourceTable) -> StartupState:
        view = self.pipeline.view
        return self.retrying(lambda: preexisting.inspect(view, source, self.target, self.tables, self.hook))

    def extend(self, found: StartupState) -> None:
        """Add to the tables what the config added; the epoch that begins next fills it."""
        target = self.target
        assert isinstance(target, Defining)
        log.info("tables are extended", extra={"statements": list(found.additions or ())})
        self.retrying(lambda: target.extend(self.tables, found.changes))

    def open(self, found: StartupState) -> None:
        """Open the tables, and remember which they are."""
        state = self.pipeline.view.pipeline
        assert state is not None
        self.retrying(lambda: self.target.open(self.tables, state.epoch))
        opened = self.retrying(lambda: preexisting.identities(self.target, self.tables))
        self.pipeline.define(replace(found.bound, tables=opened))


@dataclass(slots=True)
class Recheck:
    """Looks now and then whether the tables are still such that nothing is lost in them. ``monotonic``: never set."""

    target: Target
    tables: Sequence[Table]
    delivery: Delivery
    retrying: RetryPolicy
    monotonic: Callable[[], float]
    _looked: float = field(default=-math.inf)

    def look(self) -> None:
        """ConfigError where ``open`` would refuse a table by now, though no write says so."""
        now, target = self.monotonic(), self.target
        if not isinstance(target, Rechecking) or now - self._looked < RECHECKED:
            return
        self._looked = now
        self.delivery.settle()
        if problems := self.retrying(lambda: target.recheck(self.tables)):
            raise ConfigError(*problems)


def check_start(checkpoints: Checkpoints, found: Callable[[CheckpointView], StartupState], allowed: Allowed) -> None:
    """ConfigError if a run must not begin as the config says, before it owns anything: a live run goes on.

    What only a gap stands against is for the run itself, which records it.
    """
    with contextlib.suppress(GapFound):
        start_mode(found(CheckpointView(checkpoints.read())), allowed)
