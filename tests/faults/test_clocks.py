"""The machine's clock is set during a run, or always wrong: order and ownership do not depend on it."""

from __future__ import annotations

from functools import partial

import pytest

from tests.faults.world import HOUR, TABLE, World

JUMPS = {
    "a day ahead": 24 * HOUR,
    "a day back": -24 * HOUR,
    "an hour of summer time": HOUR,
    "to 1970": -1_700_000_000.0,
}


def set_to(world: World, skew: float) -> None:
    world.clock.skew = skew


@pytest.mark.parametrize("jump", JUMPS.values(), ids=JUMPS)
def test_setting_the_clock_during_a_run_loses_nothing_and_causes_no_gap(faults: World, jump: float) -> None:
    faults.fill(shards=2)
    faults.copied()
    faults.clock.plan(20, lambda: set_to(faults, jump))
    for n in range(12):
        faults.clock.plan(5 * n, partial(faults.put, "k1", f"n{n}", n=f"{n}"))
    faults.clock.plan(30, lambda: faults.db.split(TABLE, faults.db.open_shards(TABLE)[0]))
    ended = faults.run(seconds=120)
    assert ended.code == 0, ended
    faults.assert_equal()
    later = faults.run(seconds=60)
    set_to(faults, 0.0)

    assert later.code == 0, later
    assert not faults.gaps
    faults.copied()


@pytest.mark.parametrize("skew", JUMPS.values(), ids=JUMPS)
def test_a_clock_wrong_by_hours_causes_no_gap_on_a_quiet_stream(faults: World, skew: float) -> None:
    """An emulator accepts such a clock; AWS rejects its signatures."""
    set_to(faults, skew)
    faults.fill(shards=2)
    faults.copied()
    faults.put("k1", "new", n="1")
    faults.db.roll_all(TABLE)
    faults.put("k1", n="2")
    faults.copied()
    assert not faults.gaps
