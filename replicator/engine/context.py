"""What a run works with, and what it gets from outside."""

from __future__ import annotations

import contextlib
import logging
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from replicator.aws.client import Wire
from replicator.aws.threaded import calls_of
from replicator.checkpoints.contract import Checkpoints
from replicator.config.settings import Config
from replicator.engine.scheduler import Steps
from replicator.hooks.hook import Filing, Hook
from replicator.pipeline.progress import Progress
from replicator.source.table import SourceTable
from replicator.target.contract import Table, Target

log = logging.getLogger("replicator")


@dataclass(frozen=True, slots=True)
class Copy:
    """What a run works with: both ends, the hook, the target's tables."""

    config: Config
    wire: Wire
    target: Target
    checkpoints: Checkpoints
    hook: Hook | None
    table: SourceTable
    tables: tuple[Table, ...]

    @property
    def filing(self) -> Filing:
        return Filing(self.hook, tuple(t.name for t in self.tables))


@dataclass(frozen=True, slots=True)
class World:
    """What a run gets from outside: time, randomness, calls, when to stop, and who wants to know how it goes.

    ``now`` is the time that people and AWS go by; it may be set, also back. ``steady`` never is: whatever is to happen
    again after some seconds goes by it.
    """

    stop: threading.Event
    observe: Callable[[Progress], None]
    now: Callable[[], float] = time.time
    random: random.Random = field(default_factory=random.Random)
    steps: Callable[[Wire], Steps] = lambda wire: Steps(calls_of(wire))
    steady: Callable[[], float] = time.monotonic
    hook_limit: contextlib.AbstractContextManager[object] = field(default_factory=contextlib.nullcontext)


def log_wait(trouble: str | None) -> None:
    """Say that a wait goes on, or that it is over."""
    if trouble is None:
        log.info("going on after a wait")
    else:
        log.warning("waiting", extra={"reason": trouble})
