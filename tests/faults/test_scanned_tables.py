"""A scan copies the table that it began with: no sweep follows on pages of another table that got its name."""

from __future__ import annotations

from collections.abc import Callable

import orjson
import pytest

from tests.faults.world import HOUR, TABLE, World

OTHERS = tuple(f"other{n}" for n in range(40))


@pytest.fixture
def old(faults: World) -> World:
    """A copied table whose items are older than its stream, so that only a scan reads them; two per page."""
    faults.fill(60)
    faults.clock.move(faults.clock() + 30 * HOUR)
    faults.db.page_sizes(items=2)
    return faults


def made_again(world: World, *ids: str) -> Callable[[], None]:
    """Another table gets the name, with these items. Its stream cannot be read for a minute."""

    def recreated() -> None:
        world.db.fail("GetRecords", "ProvisionedThroughputExceededException", times=None)
        world.db.call("DeleteTable", {"TableName": TABLE})
        world.db.create_table(TABLE)
        world.put(*ids)
        world.clock.plan(60, world.db.heal)

    return recreated


@pytest.mark.parametrize("ids", [(), OTHERS], ids=["an empty table", "other items"])
@pytest.mark.parametrize("after", [0.01, 0.02, 0.05])
def test_a_resync_removes_nothing_when_the_table_is_made_again_between_two_pages(
    old: World, after: float, ids: tuple[str, ...]
) -> None:
    old.copied()
    before = old.documents
    old.clock.plan(after, made_again(old, *ids))
    ended, again = old.run(name="resync", seconds=600), old.run(seconds=600)

    assert (ended.code, again.code) == (3, 3), ended
    assert "the table orders was deleted and created again before all of its items were read" in ended.err
    assert old.documents.items() >= before.items()

    assert old.run(name="resync").code == 0
    old.assert_equal()


@pytest.mark.parametrize("resync", [False, True])
def test_no_page_of_another_table_is_stored_a_second_after_it_got_the_name(old: World, resync: bool) -> None:
    old.configure(backfill={"read_units": 1, "segments": 2})  # a page every two seconds
    if resync:
        old.copied()
    before = old.documents
    old.clock.plan(10, made_again(old, *OTHERS))
    ended = old.run(name="resync" if resync else "run", seconds=600)

    assert ended.code == 3
    assert not old.documents.keys() & set(OTHERS)
    assert old.documents.items() >= before.items()


def test_the_table_is_looked_up_once_a_second_and_at_the_end_of_each_segment(old: World) -> None:
    old.put(*(f"more{n}" for n in range(6000)))
    old.configure(backfill={"segments": 8})
    began = old.clock()
    old.copied()

    pages, checks = old.client.times("Scan"), old.client.times("DescribeTable")
    seconds = pages[-1] - pages[0]
    assert len(pages) > 200 * seconds > 1000, "or it shows little"
    assert seconds <= len([at for at in checks if at > began]) <= seconds + 8 + 8 + 10


def test_a_check_that_finds_no_table_is_made_again_with_its_page(old: World) -> None:
    old.db.fail("DescribeTable", "ResourceNotFoundException", times=3, when=lambda _: bool(old.client.times("Scan")))
    old.copied()
    assert len(old.client.times("Scan")) > 30 + 3


def test_while_checks_are_throttled_no_page_is_read_twice(old: World) -> None:
    """For five minutes of a scan whose segments end in them, too."""
    old.db.fail("DescribeTable", "ThrottlingException", times=None, when=lambda _: bool(old.client.times("Scan")))
    old.clock.plan(300, old.db.heal)
    old.copied()
    assert old.client.times("Scan")[-1] - old.client.times("Scan")[0] > 300
    scans = [orjson.dumps(request) for _, asked, request in old.client.asked if asked == "Scan"]
    assert len(scans) == len(set(scans))
