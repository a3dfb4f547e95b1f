"""When tombstones are purged."""

from __future__ import annotations

from contextlib import suppress

import pytest

from replicator.engine.cleanup import ABANDONED
from replicator.engine.parked_limits import IDLE_INTERVAL, REREAD_INTERVAL
from replicator.state import Repair, Save, decode_repair, encode
from replicator.testing.memory import MemoryCheckpoints
from replicator.version import FIRST_EPOCH, version
from tests.simulation import runs
from tests.simulation.scenario import Scenario
from tests.simulation.targets import Killed
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


def test_a_resync_lets_no_insert_pass_that_a_repair_confirmed_before() -> None:
    universe = Universe(0, Scenario(rates={}, steps=1_000_000, keys=3))
    universe.write("a", removes=False)
    runs.go(universe, 5000)
    announce(universe, Repair("token"))
    (before, text) = universe.database.entries["repair", ""]
    runs.go(universe, 5000)
    assert universe.database.entries["repair", ""] == (before, text)
    universe.order_resync()
    runs.go(universe, 5000)
    assert universe.database.entries["repair", ""] == (before + 1, text)


@pytest.mark.parametrize("index", [False, True], ids=["transactions", "no transactions"])
def test_what_a_killed_repair_needed_is_purged_once_it_gave_no_sign_for_15_minutes(index: bool) -> None:
    universe = Universe(0, Scenario(rates={}, steps=1_000_000, keys=3, index=index))
    universe.write("a", removes=False)
    runs.go(universe, 5000)
    announce(universe, Repair("killed"))
    database, clock = universe.database, universe.clock
    tombstones = database.tombstones[universe.TABLE]
    tombstones["gone",] = version(FIRST_EPOCH, 5)
    driver = runs.driver_in(universe, runs.copy_in(universe))
    seen: list[float] = []  # how long the repair is known to the run

    def passes(left: int) -> None:
        clock.now += 5.0
        _, noted = database.entries.get(("repair", ""), (0, ""))
        if noted and not decode_repair(noted).ended:
            assert tombstones
            seen.append(clock.now)
        elif not noted and not tombstones:
            raise Killed

    runs.limit_turns(driver, 1000, passes)
    with suppress(Killed):
        driver.run(until=None)
    assert ABANDONED <= seen[-1] - seen[0] < ABANDONED + REREAD_INTERVAL + 60
    assert tombstones == {}


def test_a_repair_that_begins_while_what_another_needed_is_purged_leaves_nothing_in_any_table() -> None:
    universe = Universe(0, Scenario(rates={}, steps=1_000_000, keys=3, hook="fanned"))
    universe.write("a", removes=False)
    runs.go(universe, 5000)
    database, (first, last) = universe.database, sorted(universe.tables)
    announce(universe, Repair("one", ended=True))
    for table in (first, last):
        database.tombstones[table]["gone",] = version(FIRST_EPOCH, 5)
    second = iter([Repair("two"), Repair("two", ended=True)])
    driver = runs.driver_in(universe, runs.copy_in(universe))

    def passes(left: int) -> None:
        universe.clock.now += IDLE_INTERVAL  # after which the run looks at what commands noted
        if not database.tombstones[last] and (noted := next(second, None)) is not None:
            for table in (first, last):
                database.tombstones[table]["gone by two",] = version(FIRST_EPOCH, 6)
            announce(universe, noted)
        elif ("repair", "") not in database.entries:
            raise Killed

    runs.limit_turns(driver, 1000, passes)
    with suppress(Killed):
        driver.run(until=None)
    assert ("repair", "") not in database.entries
    assert not any(database.tombstones.values())


def test_a_repair_that_shows_that_it_is_at_work_is_not_given_up() -> None:
    universe = Universe(0, Scenario(rates={}, steps=1_000_000, keys=3))
    universe.write("a", removes=False)
    runs.go(universe, 5000)
    tombstones = universe.database.tombstones[universe.TABLE]
    tombstones["gone",] = version(FIRST_EPOCH, 5)
    driver = runs.driver_in(universe, runs.copy_in(universe))
    began = universe.clock.now

    def passes(left: int) -> None:
        universe.clock.now += 5.0
        if left % 12 == 0:
            announce(universe, Repair("at work"))

    runs.limit_turns(driver, 400, passes)
    with suppress(Killed):
        driver.run(until=None)
    assert universe.clock.now - began > 2 * ABANDONED
    assert ("repair", "") in universe.database.entries
    assert tombstones
