"""Notices that a command has requested a resync, and tells the run when to start it."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field

from replicator.checkpoints.contract import Checkpoints
from replicator.engine.cleanup import Cleanup
from replicator.engine.delivery import Delivery
from replicator.engine.retry import RetryPolicy
from replicator.errors import ReplicatorError
from replicator.pipeline import stages
from replicator.pipeline.pipeline import Pipeline
from replicator.state import ResyncRequest

log = logging.getLogger("replicator")

IDLE_INTERVAL = 2.0  # seconds between reads of the request
BUSY_INTERVAL = 10.0  # the same while batches are in flight, which have to be settled for it


@dataclass(slots=True)
class RequestWatch:
    """Watches for a requested resync during one run."""

    checkpoints: Checkpoints
    pipeline: Pipeline
    delivery: Delivery
    cleanup: Cleanup
    retrying: RetryPolicy
    monotonic: Callable[[], float]
    _read_at: float = field(default=-math.inf)
    _declined: ResyncRequest | None = None  # it is not for this run

    @property
    def pending(self) -> bool:
        """Whether this run still has a request to carry out."""
        request = self.pipeline.view.request
        return request is not None and request != self._declined

    def due(self) -> ResyncRequest | None:
        """The request, if this run may start it now. Reads it again every few seconds; no batch is in flight then."""
        now = self.monotonic()
        if now - self._read_at < (BUSY_INTERVAL if self.delivery.busy else IDLE_INTERVAL):
            return None
        self._read_at = now
        self.delivery.settle()
        self.pipeline.view.reread_request(self.retrying(self.checkpoints.request))
        request = self.pipeline.view.request
        return request if self.pending and request is not None and (request.whole or self._is_settled) else None

    @property
    def _is_settled(self) -> bool:
        """Whether no earlier scan, sweep or purge is left to do, which a partial resync must not cut short."""
        state = self.pipeline.state
        return state is not None and state.stage == stages.FOLLOWING and not self.cleanup.owes_sweep

    def decline(self, request: ResyncRequest, reason: ReplicatorError) -> None:
        """Leave the request to a later run, which may have another config or more permissions."""
        if request != self._declined:
            self._declined = request
            log.warning(
                "requested resync not started",
                extra={
                    "reason": str(reason),
                    "do": "correct that and restart the run, which then starts the resync; or withdraw the request "
                    "with: replicator resync CONFIG --cancel",
                },
            )
