"""Rechecking the target's tables during a run."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest

from replicator.errors import ConfigError, TransientError
from replicator.target.contract import Table
from tests.simulation import runs
from tests.simulation.scenario import Scenario
from tests.simulation.targets import UnreliableOverlapping
from tests.simulation.world import Universe

EVERY = 60.0  # seconds


@pytest.fixture
def universe() -> Universe:
    return Universe(0, Scenario(rates={}, steps=1_000_000, pace=2.0))


def test_a_run_ends_when_open_would_now_refuse_a_table_and_stores_pending_changes_first(
    universe: Universe,
) -> None:
    asked: list[float] = []

    class Changed(UnreliableOverlapping):
        def recheck(self, tables: Sequence[Table]) -> Sequence[str]:
            assert self._sent is None, "a batch is in flight"
            asked.append(universe.clock())
            if len(asked) == 2:
                raise TransientError("the connection broke")
            return [f"{table.name} has the rule kept" for table in tables] if len(asked) == 6 else []

    universe.target = Changed
    driver = runs.driver_in(universe, runs.copy_in(universe))
    turn = driver._turn

    def turns() -> None:
        universe.write("k1", removes=False)
        turn()

    driver._turn = turns  # type: ignore[method-assign]
    with pytest.raises(ConfigError, match="orders has the rule kept"):
        driver.run(until=None)
    assert len(asked) == 6
    assert all(EVERY <= later - earlier < 2 * EVERY for earlier, later in pairwise(asked[3:])), "once a minute"
    assert universe.database.rows[universe.TABLE]


def test_a_target_that_cannot_recheck_is_not_called(universe: Universe) -> None:
    runs.go(universe, 5000)
    assert universe.caught_up
