"""What a scheduled invocation of AWS Lambda cleans up: between backfills no coordinator is left to do it.

The transactions of a target check that the invocation has its slot, and that no other run has claimed the pipeline; of
a target without them, that is confirmed before each piece. So a sweep may be divided among any number of invocations,
and one that is killed harms nothing.
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
from replicator.pipeline import lanes, stages
from replicator.pipeline.checkpoint_view import CheckpointView
from replicator.pipeline.coordination import Workers
from replicator.pipeline.lanes import Standing
from replicator.pipeline.pipeline import Pipeline
from replicator.state import Owner, decode
from replicator.target.contract import AppliesLate
from replicator.target.past import KeepsHistory

log = logging.getLogger("replicator")

CLEANUP = "cleanup"  # the slot that an invocation claims while it sweeps
IN_VAIN = "cleanup-in-vain"  # the slot whose owner notes when a sweep had too little time for a piece
RETENTION_IN_VAIN = "retention-in-vain"  # the same for the removal of the oldest part of a history
PAUSE = 6 * 3600.0  # seconds after that without another attempt, each of which may read all of a large table
PURGE = "purge"  # the slot that an invocation claims while it purges; its owner notes when the last one did
PURGED = "purged"  # the slot whose owner notes when the last purge began that came to its end
PURGE_PAUSE = 3600.0  # seconds between two purges, each of which may read all of a large table
_TOO_LONG = (
    "time is over; another one begins in an hour. If none ends, a table takes longer to read than an invocation has: "
    "raise the function's timeout"
)


def sweep_settled(context: RunContext, owner: Owner, environment: Environment, retrying: RetryPolicy, run: int) -> None:
    """Sweep what the last sweep spared of items that are settled by now: their obsolete documents.

    ``run``: the revision of the run that handed over. Stopped if there is not enough time for a single piece;
    Fenced if another invocation sweeps, or adds shards meanwhile. The next invocation continues then.
    """
    if isinstance(context.target, AppliesLate):
        note_owed_purge(context.checkpoints, owner, run, retrying)
    cleanup = _cleanup(context, owner, environment, retrying, run, CLEANUP)
    delivery = cleanup.delivery
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


def purge(context: RunContext, owner: Owner, environment: Environment, retrying: RetryPolicy, run: int) -> None:
    """Remove all tombstones, if no request can be applied any more that these guard against; see ``lanes.may_purge``.

    ``run``, Fenced: as in ``sweep_settled``. If there is too little time, or a request comes to be in doubt
    meanwhile, a later invocation begins anew, with what is left.
    """
    now, checkpoints = environment.now, context.checkpoints
    began, may = now(), True
    noted = _revision(retrying(checkpoints.read, asks="checkpoints"), PURGED)
    cleanup = _cleanup(context, replace(owner, started=began), environment, retrying, run, PURGE)

    def may_purge() -> bool:
        """Read after the tombstones were listed that are removed next."""
        nonlocal may
        at = standing(CheckpointView(retrying(checkpoints.read, asks="checkpoints")))
        may = at is not None and lanes.may_purge(at, now())
        return may

    cleanup.may_purge = may_purge
    assert cleanup.in_doubt is not None
    cleanup.in_doubt.limit(0.0)  # of a lane that this container had; by a clock that may have stood still since
    cleanup.in_doubt.begin(0.0)  # a purge of an hour ago may have ended in the middle of a table, and goes on there
    try:
        while cleanup.purge():
            cleanup.delivery.flush()
            if environment.stop.is_set():
                raise Stopped
            cleanup.delivery.know_parked()
        other = _revision(retrying(checkpoints.read, asks="checkpoints"), PURGED) != noted
        if is_whole(cleanup, may=may) and not other:  # else a sweep, which is no lane, has left tombstones meanwhile
            _note_purged(checkpoints, replace(owner, started=began), run, retrying)
            log.info("tombstones purged")
    except Stopped:
        log.warning("purge not finished", extra={"reason": _TOO_LONG})


def is_whole(cleanup: Cleanup, *, may: bool) -> bool:
    """Whether a purge has ended because nothing was left. ``may``: whether no lane needed tombstones."""
    return may and not cleanup.in_doubt and not cleanup.pipeline.parked.repairing


def standing(view: CheckpointView) -> Standing | None:
    """What is stored that a purge depends on; None unless the stream alone is read."""
    state = view.pipeline
    if state is None or state.opening or state.stage != stages.FOLLOWING:
        return None
    return Standing(state, view.shards, view.slots, view.retries.all)


def is_purge_due(claimed: Claimed, at: Standing, now: float) -> bool:
    """Whether tombstones may be left, and the last attempt was long enough ago."""
    tried, purged = _noted(claimed, PURGE), _noted(claimed, PURGED)
    return lanes.owes_purge(at, purged) and not 0 <= now - tried < PURGE_PAUSE


def _noted(claimed: Claimed, slot: str) -> float:
    noted = [decode(e.kind, e.id, e.text) for e in claimed.entries if (e.kind, e.id) == ("owner", slot)]
    return max((owner.started for owner in noted if isinstance(owner, Owner)), default=0.0)


def _revision(claimed: Claimed, slot: str) -> int:
    """Of the slot's owner; it changes with each claim."""
    return max((e.revision for e in claimed.entries if (e.kind, e.id) == ("owner", slot)), default=0)


def note_owed_purge(checkpoints: Checkpoints, owner: Owner, run: int, retrying: RetryPolicy) -> None:
    """Note before tombstones are left that no lane knows of."""
    _note_purged(checkpoints, replace(owner, started=0.0), run, retrying)


def _note_purged(checkpoints: Checkpoints, owner: Owner, run: int, retrying: RetryPolicy) -> None:
    assert isinstance(checkpoints, Slotted)
    retrying(lambda: checkpoints.claim_slot(owner, PURGED, run), asks="checkpoints")


def _cleanup(
    context: RunContext, owner: Owner, environment: Environment, retrying: RetryPolicy, run: int, slot: str
) -> Cleanup:
    """What cleans up under that ``slot``, once it is claimed. Where the target applies requests late, it may not purge
    yet.
    """
    checkpoints, target, now = context.checkpoints, context.target, environment.now
    assert isinstance(checkpoints, Slotted)
    claimed = retrying(lambda: checkpoints.claim_slot(owner, slot, run), asks="checkpoints")
    workers = Workers((), owner)  # invocations park items meanwhile, as workers of a coordinator do
    pipeline = Pipeline(context.mapping, claimed, workers=workers, now=now())
    state, monotonic = pipeline.state, environment.monotonic
    assert state is not None, "an invocation of a pipeline that was handed over"
    delivery = Delivery(target, checkpoints, pipeline, retrying, now, monotonic=monotonic)
    window = target.in_doubt if isinstance(target, AppliesLate) else None
    cleanup = Cleanup(target, checkpoints, context.tables, pipeline, delivery, retrying, now, monotonic, window)
    if window is not None:
        cleanup.may_purge = lambda: False
    retrying(lambda: target.open(context.tables, state.epoch))
    return cleanup


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
