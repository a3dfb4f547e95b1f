"""Claims about a run with several workers: no seed diverges, and every wrong design among them is noticed."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest

from replicator.checkpoints.contract import Claimed
from replicator.engine.coordinator import Coordinator
from replicator.pipeline import coordination, lineage, stages
from replicator.pipeline.pipeline import Pipeline
from replicator.state import Owner
from replicator.testing.memory import MemoryCheckpoints
from tests.simulation.mutants.scenarios import Shape, as_drawn
from tests.simulation.scenario import Scenario
from tests.simulation.simulate import FAILURES
from tests.simulation.workers import draw, simulate

SEEDS = int(os.environ.get("REPLICATOR_SEEDS", "400")) // 20
FAILED_ONCE = (27, 356)  # shards given to a worker that was not told; a message that arrived when the slot was lost
MOST = 400  # seeds that may pass until a wrong design is noticed
Patch = pytest.MonkeyPatch
Apply = Callable[[Patch], None]


@pytest.fixture(autouse=True)
def _silent() -> None:
    logging.getLogger("replicator").setLevel(logging.CRITICAL)


@pytest.mark.timeout(60 + 3 * SEEDS)
def test_whatever_happens_to_workers_and_coordinators_the_target_converges() -> None:
    for seed in range(SEEDS):
        simulate(seed)


@pytest.mark.parametrize("seed", FAILED_ONCE)
def test_a_seed_that_failed_once_holds(seed: int) -> None:
    simulate(seed)


def test_a_seed_is_the_same_when_it_is_run_again() -> None:
    first, second = list[str](), list[str]()
    simulate(3, trace=first)
    simulate(3, trace=second)
    assert first == second


# What two workers store


def not_fenced_by_slot(patch: Patch) -> None:
    """A worker's saves compare the run's claim only."""
    right = MemoryCheckpoints.claim_slot

    def claim_slot(self: MemoryCheckpoints, owner: Owner, slot: str, run: int) -> Claimed:
        claimed = right(self, owner, slot, run)
        self._claims = {"": run}
        return claimed

    patch.setattr(MemoryCheckpoints, "claim_slot", claim_slot)


def counts_overwritten(patch: Patch) -> None:
    """A worker stores its own counts in place of those that others have stored of the source."""
    patch.setattr(MemoryCheckpoints, "_count", lambda self, source, more: self._database.counts.update({source: more}))


# Epochs and stages


def slots_kept(patch: Patch) -> None:
    """A new epoch or stage leaves the slots to their workers, which learn of it some time."""
    patch.setattr(Pipeline, "_put_owners", lambda self, taken, before, now: None)


def gap_ignored(patch: Patch) -> None:
    """A gap that a worker has recorded begins no epoch."""
    patch.setattr(Coordinator, "_watch_workers", lambda self: self._notice_doubt() and None)


# Lineage


def child_given_early(patch: Patch) -> None:
    """A child is given, and read, before its parent's end is stored."""
    everything = lambda known: {id for id, shard in known.items() if not shard.ended}  # noqa: E731
    patch.setattr(coordination, "readable", everything)
    patch.setattr(lineage, "readable", everything)


def ordinals_anew(patch: Patch) -> None:
    """A child in another slot does not go on from its parent's last ordinal."""
    patch.setattr(stages, "start", lambda state, known: state)


def not_given_again(patch: Patch) -> None:
    """Workers that claim their slots before a run's first coordinator has given all shards keep them."""
    patch.setattr(Pipeline, "renew_slots", lambda self, lingers, now: None)


# Parked changes


def parked_twice(patch: Patch) -> None:
    """Two workers park a change of one item each."""
    right = Pipeline._put

    def put(self: Pipeline, taken: Any, kind: str, id: str, value: object) -> None:
        if kind != "item":
            right(self, taken, kind, id, value)

    patch.setattr(Pipeline, "_put", put)


WRONG: Mapping[Apply, int] = {
    not_fenced_by_slot: 0,
    counts_overwritten: 0,
    slots_kept: 0,
    gap_ignored: 0,
    child_given_early: 4,
    ordinals_anew: 4,
    not_given_again: 27,
    parked_twice: 3,
}
"""Each with the seed that notices it: after a change of the code another one may be the first."""


def trimmed(drawn: Scenario) -> Scenario:
    """Workers are killed, and what they had read is trimmed meanwhile."""
    return replace(drawn, steps=400, rates={"write": 0.4, "trim": 0.02, "kill worker": 0.03})


SHAPES: Mapping[Apply, Shape] = {gap_ignored: trimmed}
"""Scenarios in which a wrong design shows more often than as drawn."""


@pytest.mark.parametrize("shape", sorted(set(SHAPES.values()), key=str))
def test_the_scenarios_for_wrong_designs_hold_without_them(shape: Shape) -> None:
    for seed in range(1 + SEEDS // 40):
        simulate(seed, shape(draw(seed)))


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: wrong.__name__)
def test_a_wrong_design_is_noticed(wrong: Apply, monkeypatch: Patch) -> None:
    wrong(monkeypatch)
    shape = SHAPES.get(wrong, as_drawn)
    for seed in [WRONG[wrong], *range(MOST)]:
        try:
            simulate(seed, shape(draw(seed)))
        except FAILURES:
            return
    pytest.fail(f"{MOST} seeds did not notice: {wrong.__doc__}")
