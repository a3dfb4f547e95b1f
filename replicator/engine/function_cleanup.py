"""What a scheduled invocation of AWS Lambda cleans up: between backfills no coordinator is left to do it.

Behind Lambda targets have transactions, and these check that the invocation has its slot, and that no other run has
claimed the pipeline. So a sweep may be divided among any number of invocations, and one that is killed harms nothing.
"""

from __future__ import annotations

import contextlib
import logging
from dataclasses import replace

from replicator.checkpoints.contract import Checkpoints, Claimed, Slotted
from replicator.engine.cleanup import Cleanup
from replicator.engine.context import Environment, RunContext
from replicator.engine.delivery import Delivery
from replicator.engine.retry import RetryPolicy, Stopped
from replicator.errors import Fenced, TransientError
from replicator.pipeline.coordination import Workers
from replicator.pipeline.pipeline import Pipeline
from replicator.state import Owner, decode
from replicator.target.past import KeepsHistory

log = logging.getLogger("replicator")

CLEANUP = "cleanup"  # the slot that an invocation claims while it sweeps
IN_VAIN = "cleanup-in-vain"  # the slot whose owner notes when a sweep had too little time for a piece
RETENTION_IN_VAIN = "retention-in-vain"  # the same for the removal of the oldest part of a history
PAUSE = 6 * 3600.0  # seconds after that without another attempt, each of which may read all of a large table


def sweep_settled(context: RunContext, owner: Owner, environment: Environment, retrying: RetryPolicy, run: int) -> None:
    """Sweep what the last sweep spared of items that are settled by now: their obsolete documents.

    ``run``: the revision of the run that handed over. Stopped if there is not enough time for a single piece;
    Fenced if another invocation sweeps, or adds shards meanwhile. The next invocation continues then.
    """
    checkpoints, target = context.checkpoints, context.target
    assert isinstance(checkpoints, Slotted)
    claimed = retrying(lambda: checkpoints.claim_slot(owner, CLEANUP, run), asks="checkpoints")
    workers = Workers((), owner)  # invocations park items meanwhile, as workers of a coordinator do
    pipeline = Pipeline(context.mapping, claimed, workers=workers, now=environment.now())
    state, now, monotonic = pipeline.state, environment.now, environment.monotonic
    assert state is not None, "an invocation of a pipeline that was handed over"
    delivery = Delivery(target, checkpoints, pipeline, retrying, now, monotonic=monotonic)
    cleanup = Cleanup(target, checkpoints, context.tables, pipeline, delivery, retrying, now, monotonic, None)
    retrying(lambda: target.open(context.tables, state.epoch))
    log.info("sweeping", extra={"reason": "items that the last sweep spared are no longer parked"})
    swept = False
    try:
        while cleanup.sweep_settled():
            swept = True
            delivery.flush()
            if environment.stop.is_set():
                return
            delivery.know_parked()
    except Stopped:  # mostly within a piece
        if not swept:
            raise
        log.info("sweep not finished", extra={"reason": "time is over; the next invocation goes on"})


def retain_history(
    target: KeepsHistory, context: RunContext, owner: Owner, environment: Environment, claimed: Claimed
) -> None:
    """Remove what a history need not keep any more, and make room ahead. Not for hours after one had too little time.

    If transactions hold the history, a later event does it.
    """
    now, stop, removed = environment.now, environment.stop, False
    if is_paused(claimed, now(), RETENTION_IN_VAIN):
        return
    try:
        while target.retain(context.tables):
            removed = True
            log.info("history removed", extra={"reason": "older than is kept"})
            if stop.is_set():
                return
    except Fenced:
        log.info("history not removed", extra={"reason": "another invocation or run has taken over"})
    except TransientError as e:
        if removed or not stop.is_set():
            log.warning("history not removed", extra={"reason": str(e)})
            return
        log.warning("history not removed", extra={"reason": "time is over; trying again in a few hours"})
        note_in_vain(context.checkpoints, owner, claimed.revision, now(), RETENTION_IN_VAIN)


def note_in_vain(checkpoints: Checkpoints, owner: Owner, run: int, now: float, slot: str = IN_VAIN) -> None:
    """Note that there was too little time for a piece. If it cannot be noted, the next invocation tries again."""
    assert isinstance(checkpoints, Slotted)
    with contextlib.suppress(Fenced, TransientError):
        checkpoints.claim_slot(replace(owner, started=now), slot, run)


def is_paused(claimed: Claimed, now: float, slot: str = IN_VAIN) -> bool:
    """Whether there was too little time for a piece, not long ago."""
    noted = [decode(e.kind, e.id, e.text) for e in claimed.entries if (e.kind, e.id) == ("owner", slot)]
    return any(isinstance(owner, Owner) and abs(now - owner.started) < PAUSE for owner in noted)
