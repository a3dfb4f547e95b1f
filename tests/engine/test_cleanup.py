"""When tombstones are purged."""

from __future__ import annotations

from replicator.state import Repair, Save, encode
from replicator.testing.memory import MemoryCheckpoints
from replicator.version import FIRST_EPOCH, version
from tests.simulation import runs
from tests.simulation.scenario import Scenario
from tests.simulation.world import Universe


def announce(universe: Universe, repair: Repair) -> None:
    MemoryCheckpoints(universe.database).save([Save("repair", "", None, encode(repair))])


def test_a_resync_beside_a_repair_leaves_the_tombstones_that_the_repair_needs() -> None:
    universe = Universe(0, Scenario(rates={}, steps=1_000_000, keys=3))
    universe.write("a", removes=False)
    runs.go(universe, 5000)
    announce(universe, Repair("token"))
    tombstones = universe.database.tombstones[universe.TABLE]
    tombstones["gone",] = version(FIRST_EPOCH, 5)
    universe.order_resync()
    runs.go(universe, 5000)
    assert set(tombstones) == {("gone",)}
    announce(universe, Repair("token", ended=True))
    runs.go(universe, 500, until=None)
    assert tombstones == {}
