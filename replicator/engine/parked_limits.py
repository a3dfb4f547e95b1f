"""What a run says and does about parked items: their reasons in the log, and an end when there are too many."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from replicator.engine.delivery import Delivery
from replicator.errors import ConfigError
from replicator.pipeline.parked import ParkedItems
from replicator.pipeline.pipeline import Pipeline
from replicator.state import Counts

log = logging.getLogger("replicator")

KNOWN = 10.0  # seconds until a run looks at what commands did about parked items
QUIET = 60.0  # the same while nothing is parked: a command that was suspended may still write
TOLD = 60.0  # seconds until a reason that goes on is logged again
MOST_LEAVES = 50_000  # documents that one parked item may have left in the target
MOST_REASONS = 50  # told apart in the log; further ones are one


@dataclass(slots=True)
class ParkedWatch:
    """One run's. ``limit``: how many items may be parked. ``monotonic``: a clock that is never set.

    ``before``: what earlier runs had counted.
    """

    pipeline: Pipeline
    delivery: Delivery
    limit: int
    monotonic: Callable[[], float]
    before: Counts = field(default_factory=Counts)
    _known: float = -math.inf
    _looked: float = field(init=False)
    _told: float = -math.inf
    _totals: Counter[str] = field(default_factory=Counter)
    _new: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._looked = self.monotonic()

    def look(self) -> None:
        """Learn what commands did about parked items, tell what was parked, and end the run where it is too much."""
        self._collect()
        now = self.monotonic()
        if self._new and (now - self._told >= TOLD or any(r not in self._totals for r in self._new)):
            self._tell(now)
        if now - self._known >= KNOWN if self.pipeline.parked else now - self._looked >= QUIET:
            self.delivery.settle()
            self.delivery.know_parked()
            self._known = self._looked = now
        self._check()

    def end(self) -> None:
        """Tell what was not told yet, and loudly where it is most of what this run read."""
        self._collect()
        if self._new:
            self._tell(self.monotonic())
        total = self.pipeline.total
        parked, read = total.parked - self.before.parked, total.read - self.before.read
        if parked * 2 >= read > 0:
            log.error("most of what this run read is parked", extra={"parked": parked, "read": read})

    def _collect(self) -> None:
        for reason, count in self.pipeline.parked_now().items():
            known = reason in self._totals or reason in self._new
            few = len(self._totals.keys() | self._new.keys()) < MOST_REASONS
            self._new[reason if known or few else "other reasons"] += count

    def _tell(self, now: float) -> None:
        self._totals += self._new
        for reason in self._new:
            log.warning("parked", extra={"reason": reason, "changes": self._totals[reason]})
        self._new.clear()
        self._told = now

    def _check(self) -> None:
        try:
            check_parked(self.pipeline.parked, self.limit)
        except ConfigError:
            self.delivery.flush()
            raise


def check_parked(parked: ParkedItems, limit: int) -> None:
    """ConfigError if more is parked than a run goes on with."""
    if len(parked) > limit:
        raise ConfigError(
            f"more than {limit} items are parked (parked_limit): the hook or the target's table is probably "
            "wrong. Look at them with: replicator parked list; fix the cause, then: replicator parked retry --all"
        )
    if parked.most_leaves > MOST_LEAVES:
        raise ConfigError(
            f"the changes of one parked item name more than {MOST_LEAVES:,} documents, and the run would hold "
            "ever more. Look for it with: replicator parked list; fix the cause and run: replicator parked retry; "
            "or give it up: replicator parked drop"
        )
