"""Claims about whole runs: no seed diverges, every wrong design is caught, and a seed decides everything."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor

import pytest

from tests.simulation import scenario
from tests.simulation.mutants import MUTANTS, Mutant
from tests.simulation.simulate import FAILURES, Failure, differing, failing, simulate, traced

SEEDS = int(os.environ.get("REPLICATOR_SEEDS", "400"))
PIECE = 100  # seeds that a process is given at a time


@pytest.mark.timeout(60 + SEEDS)
def test_whatever_happens_the_target_ends_as_the_hook_says() -> None:
    pieces = [range(first, min(first + PIECE, SEEDS)) for first in range(0, SEEDS, PIECE)]
    with ProcessPoolExecutor() as pool:
        failures: list[Failure] = [f for found in pool.map(failing, pieces) for f in found]
    assert not failures, "\n\n".join(map(str, failures[:3]))


@pytest.mark.parametrize("mutant", MUTANTS, ids=[m.name for m in MUTANTS])
def test_a_wrong_design_is_caught(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    logging.getLogger("replicator").setLevel(logging.CRITICAL)
    mutant.apply(monkeypatch)
    for seed in range(mutant.seeds):
        drawn = scenario.draw(seed)
        if mutant.where(drawn):
            try:
                simulate(seed, mutant.shape(drawn))
            except FAILURES:
                return
    raise AssertionError(f"{mutant.seeds} seeds did not notice: {mutant.name}")


def test_one_seed_in_a_hundred_is_the_same_when_it_is_run_again() -> None:
    assert not differing(range(0, SEEDS, 100))


def test_a_seed_is_the_same_in_another_process() -> None:
    show = "from tests.simulation.simulate import traced; print('\\n'.join(traced(7)))"
    with_another_hash_seed = os.environ | {"PYTHONHASHSEED": "1"}
    found = subprocess.run(
        [sys.executable, "-c", show], env=with_another_hash_seed, capture_output=True, text=True, check=True
    )
    assert found.stdout.splitlines() == "\n".join(traced(7)).splitlines()


def test_a_failing_seed_is_shown_with_what_it_takes_and_how_to_repeat_it(monkeypatch: pytest.MonkeyPatch) -> None:
    next(m for m in MUTANTS if m.name == "an empty page is taken for the end of its shard").apply(monkeypatch)
    shown = str(failing(range(50))[0])
    assert "what it takes" in shown
    assert "repeat it with: python -m tests.simulation --seed" in shown
