"""``run --until backfilled``: begins an epoch if one is due, makes its backfill, and leaves the stream to AWS Lambda.

A coordinator gives each shard a lane, which the function's invocations claim, and a worker in the same process scans
the segments. From then on nothing but the function works on the pipeline, until another run claims it.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Sequence
from dataclasses import replace

from replicator.engine import preexisting, startup
from replicator.engine.connections import connected
from replicator.engine.context import Environment, RunContext
from replicator.engine.coordinator import Coordinator
from replicator.engine.function import check_supported
from replicator.engine.retry import RetryPolicy
from replicator.engine.run import Beside, Until, naming_the_owner
from replicator.engine.worker import Connect, Post, Worker
from replicator.errors import Fenced
from replicator.pipeline import lanes, stages
from replicator.pipeline.checkpoint_view import CheckpointView
from replicator.pipeline.coordination import UNCLAIMED, Workers, knows
from replicator.state import Owner, ShardState

log = logging.getLogger("replicator")

BACKFILL = "backfill"  # the slot that has all segments
_REPAIRING = (
    "verify --repair works on the copy, or was killed less than 15 minutes ago: until it has ended, deletes leave "
    "tombstones, which the function would not purge"
)
_LATE = (
    "requests of the epoch before may be applied for up to 6 minutes: what they bring back is removed then. "
    "If this run ends before that, run it again"
)
LONGEST_INVOCATION = 900.0  # seconds, which is Lambda's limit
COORDINATE_INTERVAL = 1.0  # seconds between two steps of the coordinator while the worker is busy


class LaneCoordinator(Coordinator):
    """A coordinator whose workers are the function's invocations, one for each lane, and one that scans."""

    followed_by = lanes.HANDED_OVER
    _told_of_repair = _told_of_sweep = False

    def __init__(self, context: RunContext, owner: Owner, environment: Environment) -> None:
        check_supported(context.target, context.checkpoints)
        self._silent: dict[str, tuple[int, float]] = {}  # lanes' claims, and since when nothing was stored under them
        super().__init__(context, owner, environment, (BACKFILL,))
        self._know_lanes()

    @property
    def is_backfilled(self) -> bool:
        """Whether the epoch's backfill is made, and nothing is left that only a coordinator cleans up."""
        if not self._is_following:
            return False
        cleanup = self._cleanup
        owes = cleanup.overdue or cleanup.owes_sweep or self.pipeline.parked.repair is not None
        return not owes and not self._awaits_sweep and not self._requests.pending

    @property
    def _awaits_sweep(self) -> bool:
        """Whether requests of an earlier epoch may still be applied, behind the sweep: another one follows."""
        return self._state().resync and self._in_doubt is not None and bool(self._in_doubt.left_earlier)

    @property
    def _is_following(self) -> bool:
        state = self.pipeline.state
        return state is not None and state.stage == stages.FOLLOWING and not state.opening

    @property
    def waits_for_workers(self) -> bool:
        """Whether each worker must say that it knows the stage, also one that has nothing left to do."""
        return self._in_doubt is not None

    def _coordinate(self) -> None:
        super()._coordinate()
        self._take_from_silent()

    def step(self) -> None:
        super().step()
        if self._is_following and self.pipeline.parked.repair is not None and not self._told_of_repair:
            self._told_of_repair = True
            log.info("waiting", extra={"reason": _REPAIRING})
        if self._is_following and self._awaits_sweep and not self._told_of_sweep:
            self._told_of_sweep = True
            log.info("waiting", extra={"reason": _LATE})

    def _take_from_silent(self) -> None:
        """Take lanes from invocations that were killed before they stored anything, and that no other one follows."""
        now, slots = self._environment.monotonic(), self.pipeline.view.slots
        claims = {id: self._entries["owner", id].revision for id, owner in self._owners.items() if owner.run}
        unknowing = {id for id in claims if lanes.is_lane(id) and not knows(slots.get(id, UNCLAIMED), self._state())}
        self._silent = {
            id: self._silent[id] if self._silent.get(id, (0, 0.0))[0] == claims[id] else (claims[id], now)
            for id in unknowing
        }
        if over := [id for id, (_, since) in self._silent.items() if now - since > LONGEST_INVOCATION]:
            log.info(
                "taking lanes", extra={"slots": over, "reason": "their invocations have stored nothing for 15 min"}
            )
            self.pipeline.take_away(over, self._environment.now())
            self._refresh()

    def close(self) -> None:
        self._steps.close()

    def _take_over_lanes(self) -> None:
        """Nothing: the function's schedule continues to purge what it has left."""

    def _filled(self) -> tuple[Sequence[str], int]:
        """Nothing: invocations may empty tables from now on, and it would look as if they were lost."""
        return (), 0

    def _refresh(self) -> None:
        super()._refresh()
        self._know_lanes()

    def _know_lanes(self) -> None:
        """The lanes may have become more: an invocation gives new shards theirs."""
        shards, slots = self.pipeline.view.shards, self.pipeline.view.slots
        found = {s.slot for s in shards.values() if lanes.is_lane(s.slot)} | {id for id in slots if lanes.is_lane(id)}
        self._use_slots((BACKFILL, *sorted(found)))

    def _use_slots(self, slots: tuple[str, ...]) -> None:
        self._workers = self.pipeline.workers = Workers(slots, self._owner)

    def _give(self) -> None:
        """Give each shard a lane, before its parent has ended too, and all segments to this process."""
        pipeline = self.pipeline
        shards: dict[str, ShardState] = lanes.assigned(pipeline.shards)
        left = {id: s for id, s in pipeline.segments.items() if not s.ended and s.slot != BACKFILL}
        segments = {id: replace(segment, slot=BACKFILL) for id, segment in left.items()}
        if shards or segments:
            pipeline.give(shards, segments)
            self._refresh()


def follow(
    context: RunContext, owner: Owner, environment: Environment, until: Until, allowed: startup.Allowed, beside: Beside
) -> int:
    """Make the backfill, for a function that follows the stream; see ``engine.run.Follow``."""
    assert until == "backfilled", "the command line refuses anything else"
    retrying = RetryPolicy(environment.stop, environment.waiting, environment.now, environment.random)
    retrying(lambda: check_gap(context, allowed))
    with naming_the_owner(context.checkpoints), beside(context.hook):
        run = Backfill(context, owner, environment, lambda: connected(context.config, context.hook, environment))
        run.run(allowed)
    return len(run.coordinator.pipeline.parked)


def check_gap(context: RunContext, allowed: startup.Allowed) -> None:
    """GapFound if a gap would end the run, and invocations follow the stream: after its claim they no longer would."""
    claimed = context.checkpoints.read()
    view = CheckpointView(claimed)
    if lanes.is_handed_over(view.slots, claimed.revision):
        found = preexisting.inspect(view, context.table, context.target, context.tables, context.hook)
        startup.start_mode(found, startup.with_request(allowed, view.request, found))


class Backfill:
    """The coordinator and the worker of one run, step by step."""

    def __init__(self, context: RunContext, owner: Owner, environment: Environment, connect: Connect) -> None:
        self.coordinator = LaneCoordinator(context, owner, environment)
        self._environment = environment
        self._worker: Worker | None = None
        self._owner, self._connect = owner, connect
        self._coordinated = -math.inf

    def start(self, allowed: startup.Allowed) -> None:
        self.coordinator.start(allowed)
        post = Post(BACKFILL, self.coordinator.revision)
        self._worker = Worker(post, self._owner, self._connect, self._environment)

    def step(self) -> None:
        """A step of the worker while there is something to scan, and now and then one of the coordinator."""
        assert self._worker is not None
        scanning = self.is_scanning and self._worker.step()
        if not self.is_scanning and self.coordinator.waits_for_workers:
            self._worker.step()
        now = self._environment.monotonic()
        if not scanning or now - self._coordinated >= COORDINATE_INTERVAL:
            self._coordinated = now
            self.coordinator.step()

    @property
    def is_scanning(self) -> bool:
        state = self.coordinator.pipeline.state
        return state is not None and state.stage == stages.SCANNING and not state.opening

    def end(self) -> None:
        if self._worker is not None:
            with contextlib.suppress(Fenced):  # the coordinator took the slot away for the stage after the scan
                self._worker.end()
        self.coordinator.end()

    def run(self, allowed: startup.Allowed) -> bool:
        """Until the backfill is made, and cleaned up after. Returns False if stopped before."""
        try:
            done = self._run(allowed)
        finally:
            self.close()
        if done:
            log.info(
                "backfilled; AWS Lambda follows the stream", extra={"shards": len(self.coordinator.pipeline.shards)}
            )
        return done

    def _run(self, allowed: startup.Allowed) -> bool:
        self.start(allowed)
        stop = self._environment.stop
        while not self.coordinator.is_backfilled and not stop.is_set():
            self.step()
        done = self.coordinator.is_backfilled
        self.end()
        return done

    def close(self) -> None:
        if self._worker is not None:
            self._worker.close()
        self.coordinator.close()
