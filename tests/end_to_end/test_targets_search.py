"""Search indices, on each of the real servers: whatever interrupts a copy, the index ends as the hook's documents."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end import targets
from tests.end_to_end.targets import KILLS, MAPPING, PROVE, Index
from tests.end_to_end.world import Load, Source
from tests.servers.dynamodb_local import DynamoDBLocal
from tests.servers.search_fixtures import SERVERS, Search

pytestmark = [pytest.mark.search, pytest.mark.timeout(300 + 30 * KILLS)]

NEWEST = ("elasticsearch-9", "opensearch-3")


@pytest.fixture
def index(tmp_path: Path, source: Source, search: Search) -> Index:
    """A pipeline through the hook into an index on each server."""
    return Index(tmp_path, source, search, options={"mapping": MAPPING})


def test_after_kills_and_a_restart_of_the_server_the_index_is_what_the_hook_makes(
    index: Index, source: Source, local: DynamoDBLocal
) -> None:
    def roll(done: int) -> None:
        if done % 150 == 75:
            local.roll()

    one_kill = index.search.server.which not in NEWEST and not PROVE  # how a server stops may differ by its version
    targets.ends_equal_after_kills_and_a_restart(index, source, roll, 1 if one_kill else KILLS)


def test_a_backfill_that_nothing_interrupts_leaves_no_tombstone(index: Index, source: Source) -> None:
    targets.leaves_no_tombstone(index, source)


@pytest.mark.parametrize("search_server", SERVERS if PROVE else NEWEST, indirect=True)
def test_tombstones_outlive_a_crash_of_the_server_in_the_middle_of_a_backfill(index: Index, source: Source) -> None:
    """Older engines are crashed in the contract's tests."""
    source.fill(1500, filler=targets.FILLER)
    index.configured(backfill={"segments": 2, "read_units": 30})
    with Load(source, seed=13, keys=1500, pause=targets.PAUSE) as load, index.start() as run:
        run.eventually(lambda: index.tombstones() > 5, "deletes leave tombstones")
        index.crash_server()
        run.until("waiting")
        scan = index.status()["backfill"]
        index.start_server()
        kept = index.tombstones()
        run.until("resuming after a wait")
        load.wait(100)
        assert run.stop().code == 0
    index.configured(backfill={"segments": 2})
    index.caught_up()

    assert scan["segments_ended"] < scan["segments"]
    assert kept > 5
    assert index.documents() == targets.through_the_hook(source.items().values())


def test_what_is_deleted_is_marked_through_kills_a_resync_and_verify(
    tmp_path: Path, source: Source, one_search: Search
) -> None:
    """Live writes and deletes beside the backfill, a run that is killed, and one that catches up."""
    index = Index(tmp_path, source, one_search, options={"mapping": MAPPING, "deletes": "mark"})
    source.fill(200)
    first = targets.through_the_hook(source.items().values())
    index.configured(backfill={"segments": 2, "read_units": 30})
    with index.start() as run:
        index.begun(run)
        with Load(source, seed=14, keys=200, pause=targets.PAUSE) as load:
            targets.advances(index, run, "written")
            load.wait(100)
            run.kill()
    index.configured(backfill={"segments": 2})
    index.caught_up()
    _is_live_or_marked(index, source, first)
    before = index.documents()

    gone = sorted(source.alive)[:5]
    for pk in gone:
        source.delete(pk)
    assert index.command("resync", "--now", "--until", "caught-up").code == 0
    _is_live_or_marked(index, source, first)
    assert {pk: body for pk, body in before.items() if pk not in gone}.items() <= index.documents().items()
    verified = index.command("verify", "--json")
    assert (verified.code, verified.lines[-1]["extra"]) == (0, 0), verified


def _is_live_or_marked(index: Index, source: Source, first: Mapping[str, Any]) -> None:
    """What the hook makes of each item is live; what it made of those that are gone is marked."""
    documents, marked, live = index.documents(), index.marked(), targets.through_the_hook(source.items().values())
    assert {pk: body for pk, body in documents.items() if pk not in marked} == live
    assert not (lost := first.keys() - live.keys() - marked), f"neither live nor marked: {lost}"
    assert marked


def test_whole_items_without_a_mapping_keep_their_numbers_exactly(
    tmp_path: Path, source: Source, one_search: Search
) -> None:
    index = Index(tmp_path, source, one_search)
    index.configured(None)
    source.fill(20)
    exact = {"big": 12345678901234567890123456789012345678, "empty": "", "a.b": {"c": [1, None]}, "_id": "own"}
    source.put("odd", n=1, **exact)
    index.caught_up()

    index.assert_equal()
