"""A stream that AWS is still enabling has no shards, and no change is added to it: an epoch begins after that."""

from __future__ import annotations

from functools import partial

from tests.faults.world import TABLE, World

ENABLING = 90.0


def enabled_again(world: World) -> None:
    world.db.disable_stream(TABLE)
    world.clock.move(world.clock() + 1)
    world.db.enable_stream(TABLE, enabling=ENABLING)


def write(world: World) -> None:
    """Changes while the stream is being enabled, and later ones."""
    for after in (5, 30, 85, 95, 200):
        world.clock.plan(after, partial(world.put, f"k{after % 6}", n=after))


def test_a_copy_of_a_stream_that_is_being_enabled_begins_after_that_and_says_so(faults: World) -> None:
    faults.db.create_table(TABLE, view=None)
    faults.put(*(f"k{n}" for n in range(6)))
    faults.db.enable_stream(TABLE, enabling=ENABLING)
    enabled = faults.clock() + ENABLING
    write(faults)
    ended = faults.run()
    assert ended.code == 0
    assert "the stream is still being enabled" in str(ended.event("waiting")["reason"])
    assert faults.clock() >= enabled
    assert faults.states("pipeline")[""].started >= enabled
    assert faults.run(seconds=600).code == 0
    faults.assert_equal()


def test_a_run_that_is_stopped_while_its_stream_is_being_enabled_has_begun_nothing(faults: World) -> None:
    faults.db.create_table(TABLE, view=None)
    faults.put("k1")
    faults.db.enable_stream(TABLE, enabling=ENABLING)
    assert faults.run(seconds=ENABLING / 2).code == 0
    assert (faults.documents, faults.states("pipeline")) == ({}, {})
    faults.clock.move(faults.clock() + ENABLING)
    faults.copied()


def test_on_gap_resync_waits_for_a_stream_that_is_being_enabled_again(faults: World) -> None:
    faults.configure(on_gap="resync")
    faults.fill()
    faults.copied()
    faults.clock.plan(100, lambda: enabled_again(faults))
    faults.clock.plan(101, lambda: write(faults))
    ended = faults.run(seconds=3600)
    assert ended.code == 0
    assert [e["event"] for e in ended.events if e["event"] in ("gap", "snapshot started")] == [
        "gap",
        "snapshot started",
    ]
    assert not faults.gaps
    faults.assert_equal()


def test_a_resync_waits_for_a_stream_that_is_being_enabled_again(faults: World) -> None:
    faults.fill()
    faults.copied()
    enabled_again(faults)
    assert faults.run(seconds=1).code == 3
    write(faults)
    assert faults.run(name="resync").code == 0
    assert faults.run(seconds=600).code == 0
    faults.assert_equal()
