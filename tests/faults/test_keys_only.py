"""A stream with keys only is read by looking items up, in the table that it belongs to and in no other."""

from __future__ import annotations

import pytest

from tests.faults.world import TABLE, World


@pytest.fixture
def copied(faults: World) -> World:
    faults.db.create_table(TABLE, view="KEYS_ONLY")
    faults.put("k0", "k1", "k2")
    assert faults.run().code == 0
    faults.assert_equal()
    return faults


def deleted(world: World) -> None:
    world.put("k1", "k2", n=7)
    world.db.call("DeleteTable", {"TableName": TABLE})


def recreated(world: World) -> None:
    deleted(world)
    world.clock.move(world.clock() + 1)
    world.db.create_table(TABLE, view="KEYS_ONLY")
    world.put("k1", other="table")


def test_what_is_read_of_a_stream_whose_table_was_made_again_is_not_looked_up_in_the_other_table(copied: World) -> None:
    before = copied.documents
    copied.clock.plan(10, lambda: recreated(copied))
    ended = copied.run(seconds=600)

    assert ended.code == 3
    assert "the table orders was deleted and created again before all of its stream, which has keys only" in ended.err
    assert copied.documents == before

    assert copied.run(name="resync").code == 0
    copied.assert_equal()


def test_items_of_a_deleted_table_that_can_no_longer_be_looked_up_stay_as_they_are(copied: World) -> None:
    before = copied.documents
    copied.clock.plan(10, lambda: deleted(copied))
    ended = copied.run(seconds=600)

    assert ended.code == 2
    assert "the table orders was deleted before all of its stream, which has keys only, was read" in ended.err
    assert copied.documents == before


@pytest.mark.parametrize("up", [False, True])
def test_a_stream_that_was_disabled_is_read_to_its_end(copied: World, up: bool) -> None:
    """DescribeTable no longer says which view it has."""

    def disable() -> None:
        copied.put("k1", n=7)
        copied.db.disable_stream(TABLE)

    if up:
        copied.clock.plan(10, disable)
    else:
        disable()
    ended = copied.run(seconds=600)

    assert ended.code == 3
    assert "the stream was disabled, and all of it is stored" in ended.err
    copied.assert_equal()


def test_a_table_that_is_deleted_while_it_is_scanned_is_named(faults: World) -> None:
    faults.fill(30)
    faults.db.page_sizes(items=2)
    faults.clock.plan(0.02, lambda: faults.db.call("DeleteTable", {"TableName": TABLE}))
    ended = faults.run(seconds=600)

    assert ended.code == 2
    assert "the table orders was deleted before all of its items were read. Nothing was removed" in ended.err
