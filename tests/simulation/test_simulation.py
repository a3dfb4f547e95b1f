"""Claims about whole runs: no seed diverges, and every wrong design is caught."""

from __future__ import annotations

import logging
import os

import pytest

from replicator.errors import ReplicatorError
from tests.simulation import hooks
from tests.simulation.mutants import MUTANTS, Mutant
from tests.simulation.world import Scenario, simulate

SEEDS = int(os.environ.get("REPLICATOR_SEEDS", "40"))

SCENARIOS = {
    "no hook": Scenario(),
    "new images only": Scenario(view="NEW_IMAGE"),
    "keys only": Scenario(hooks.kept, view="KEYS_ONLY"),
    "a filter": Scenario(hooks.kept),
    "ids that change": Scenario(hooks.rekeyed),
    "fan-out": Scenario(hooks.fanned),
    "a filter that fails": Scenario(hooks.poisoned),
    "fan-out that fails": Scenario(hooks.poisoned_fan),
    "no hook, records trimmed": Scenario(trims=True),
    "a filter, records trimmed": Scenario(hooks.kept, trims=True),
    "fan-out, records trimmed": Scenario(hooks.fanned, trims=True),
    "a filter that fails, records trimmed": Scenario(hooks.poisoned, trims=True),
    "fan-out that fails, records trimmed": Scenario(hooks.poisoned_fan, trims=True),
    "a target that refuses some": Scenario(hooks.kept, refuses=True),
    "an index": Scenario(index=True),
    "an index that refuses some": Scenario(hooks.kept, refuses=True, index=True),
    "an index, a filter that fails": Scenario(hooks.poisoned, index=True),
    "an index, fan-out that fails, records trimmed": Scenario(hooks.poisoned_fan, trims=True, index=True),
}


@pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=SCENARIOS)
def test_whatever_happens_the_target_ends_as_the_hook_says(scenario: Scenario) -> None:
    for seed in range(SEEDS):
        try:
            simulate(seed, scenario)
        except Exception as e:
            raise AssertionError(f"seed {seed}: {type(e).__name__}: {e}") from e


@pytest.mark.parametrize("mutant", MUTANTS, ids=[m.name for m in MUTANTS])
def test_a_wrong_design_is_caught(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    logging.getLogger("replicator").setLevel(logging.CRITICAL)
    mutant.apply(monkeypatch)
    for seed in range(mutant.seeds):
        try:
            simulate(seed, mutant.scenario)
        except (AssertionError, ReplicatorError):
            return
    raise AssertionError(f"{mutant.seeds} seeds did not notice: {mutant.name}")


def test_a_seed_decides_everything() -> None:
    first, second = (simulate(7, SCENARIOS["fan-out, records trimmed"]) for _ in range(2))
    assert first.database == second.database
    assert first.clock.now == second.clock.now
