"""Logs why changes were parked, and stops a run that parks too many items."""

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
from replicator.state import Counts, PipelineState

log = logging.getLogger("replicator")

REREAD_INTERVAL = 10.0  # seconds between reads of the parked entries, which commands may change
IDLE_INTERVAL = 60.0  # the same while nothing is parked: a suspended command may still write
LOG_INTERVAL = 60.0  # seconds before a known reason is logged again
MAX_LEAVES = 50_000  # documents that one parked item may have in the target
MAX_REASONS = 50  # distinct reasons in the log; all others are logged as one


@dataclass(slots=True)
class ParkedWatch:
    """Watches the parked items of one run.

    ``limit``: how many items may be parked. ``before``: the counts when the run started.
    """

    pipeline: Pipeline
    delivery: Delivery
    limit: int
    monotonic: Callable[[], float]
    before: Counts = field(default_factory=Counts)
    _read_at: float = field(init=False)
    _logged_at: float = -math.inf
    _totals: Counter[str] = field(default_factory=Counter)
    _new: Counter[str] = field(default_factory=Counter)
    _parked_at: float = -math.inf

    def __post_init__(self) -> None:
        self._read_at = self.monotonic()

    def check(self) -> None:
        """Log newly parked changes, reread the parked entries when due, and enforce the limits with a ConfigError."""
        self._collect()
        now = self.monotonic()
        if self._new and (now - self._logged_at >= LOG_INTERVAL or any(r not in self._totals for r in self._new)):
            self._log(now)
        often = self.pipeline.parked or self.pipeline.parked.repairing
        due = now - self._parked_at >= REREAD_INTERVAL if often else now - self._read_at >= IDLE_INTERVAL
        if due:
            self.delivery.settle()
            self.delivery.know_parked()
            self._parked_at = self._read_at = now
        self._enforce()

    def end(self) -> None:
        """Log what was not logged yet, as an error if at least half of what this run read was parked."""
        self._collect()
        if self._new:
            self._log(self.monotonic())
        total = self.pipeline.total
        parked, read = total.parked - self.before.parked, total.read - self.before.read
        if parked * 2 >= read > 0:
            log.error("most changes in this run were parked", extra={"parked": parked, "read": read})

    def _collect(self) -> None:
        for reason, count in self.pipeline.parked_now().items():
            known = reason in self._totals or reason in self._new
            few = len(self._totals.keys() | self._new.keys()) < MAX_REASONS
            self._new[reason if known or few else "other reasons"] += count

    def _log(self, now: float) -> None:
        self._totals += self._new
        for reason in self._new:
            log.warning("parked", extra={"reason": reason, "changes": self._totals[reason]})
        self._new.clear()
        self._logged_at = now

    def _enforce(self) -> None:
        try:
            check_parked(self.pipeline.parked, self.limit, self.pipeline.state)
        except ConfigError:
            self.delivery.flush()
            raise


def check_parked(parked: ParkedItems, limit: int, state: PipelineState | None) -> None:
    """ConfigError if too many items are parked, or one parked item has too many documents.

    What was parked before the last scan of all items began does not count: that scan reads those items again.
    """
    epoch = 0 if state is None else state.complete
    if parked.number_since(epoch) > limit:
        raise ConfigError(
            f"more than {limit} items are parked (parked_limit): the hook or the target's table is probably "
            "wrong. Inspect them with: replicator parked list CONFIG; fix the cause, then run: "
            "replicator parked retry CONFIG --all"
        )
    if parked.most_leaves_since(epoch) > MAX_LEAVES:
        raise ConfigError(
            f"the changes of one parked item name more than {MAX_LEAVES:,} documents, and the list would keep growing. "
            "Find the item with: replicator parked list CONFIG; fix the cause and run: replicator "
            "parked retry CONFIG ITEM; or discard the change: replicator parked drop CONFIG ITEM"
        )
