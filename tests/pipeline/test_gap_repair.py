"""A repair of a gap covers everything that may have been lost, in windows that DynamoDB accepts."""

from __future__ import annotations

import itertools
import random

import pytest

from replicator.errors import GapFound
from replicator.pipeline import gap_repair
from replicator.pipeline.gap_repair import (
    LONGEST,
    OVERLAP,
    SHORTEST,
    above,
    first_loss,
    planned,
    stored_until,
    thinned,
    windows,
    with_floor,
)
from replicator.state import Floor, GapRepair, PipelineState, ShardState
from replicator.version import version

HOUR = 3600.0
NOW = 1_700_000_000.0
E = 1024


def state(**more: object) -> PipelineState:
    return PipelineState(E, "stream", "table", "id", "following", started=NOW, **more)  # type: ignore[arg-type]


def shard(parent: str | None = None, since: float = NOW, **more: object) -> ShardState:
    return ShardState(parent, None, whole=False, since=since, **more)  # type: ignore[arg-type]


def test_windows_cover_the_gap_and_the_overlap_in_whole_minutes_without_holes() -> None:
    chance = random.Random(1)
    for _ in range(500):
        since = NOW + chance.random() * HOUR
        until = since + chance.choice([0.0, 60.0, 2 * HOUR, 23.4 * HOUR, 23.6 * HOUR, 24.3 * HOUR, 800 * HOUR])
        found = windows(since, until)
        assert found[0][1] >= until + OVERLAP
        assert found[-1][0] <= since - OVERLAP
        assert all(newer[0] == older[1] for newer, older in itertools.pairwise(found))
        assert all(SHORTEST <= end - start <= LONGEST for start, end in found)
        assert all(at % 60 == 0 for window in found for at in window)
        assert found[-1][0] > since - OVERLAP - SHORTEST - 60


def test_what_is_stored_is_told_by_the_shard_that_is_the_furthest_behind() -> None:
    shards = {
        "a": shard(since=NOW + 50, created=NOW + 10.0),
        "b": shard(since=NOW, created=NOW + 40.0),
        "old": shard(since=NOW - 100, ended=True),
        "child": shard("old", since=NOW + 60),
    }
    assert stored_until(shards) == NOW + 40


def test_an_ended_shard_tells_it_of_children_that_are_not_known_yet() -> None:
    shards = {"a": shard(since=NOW + 50), "ended": shard(since=NOW, created=NOW + 20.0, ended=True)}
    assert stored_until(shards) == NOW + 20


def test_a_shard_that_has_no_children_only_counts_once_the_stream_has_ended() -> None:
    leaf = shard(since=NOW, ended=True, leaf=True)
    assert stored_until({"leaf": leaf, "a": shard(since=NOW + 50)}) == NOW + 50
    assert stored_until({"leaf": leaf}) == NOW
    assert stored_until({}) is None


def test_a_shard_that_was_taken_for_one_without_children_tells_it_of_records_that_it_lost() -> None:
    """It may have waited for hours behind the others when listings lacked it."""
    shards = {"leaf": shard(since=NOW - 50, ended=True, leaf=True), "a": shard(since=NOW)}
    assert stored_until(shards, "a") == NOW
    assert stored_until(shards, "leaf") == NOW - 50
    assert stored_until(shards, "unknown") == NOW


def test_what_a_shard_that_was_never_listed_lost_is_older_than_any_position_if_it_may_be() -> None:
    shards = {"a": shard(since=NOW), "b": shard(since=NOW + 50)}
    assert first_loss(GapFound("trimmed", "a"), shards) == NOW
    assert first_loss(GapFound("its parent is missing", "z", since=NOW - HOUR), shards) == NOW - HOUR
    assert first_loss(GapFound("its parent is missing", "z", since=NOW + HOUR), shards) == NOW
    assert first_loss(GapFound("its parent is missing", "z", since=NOW - HOUR), {}) == NOW - HOUR
    assert first_loss(GapFound("the target lost rows", since=NOW - HOUR, of_target=True), shards) is None


def test_a_floor_is_the_lowest_ordinal_that_another_record_may_follow() -> None:
    shards = {
        "a": shard(created=NOW + 5.0, ordinal=40, sequence="1"),
        "b": shard(created=NOW + 9.0, ordinal=70, sequence="1"),
        "unopened": shard("b"),
    }
    assert with_floor(state(), shards, NOW + 9) == (Floor(NOW + 9, version(E, 40)),)


def test_floors_are_noted_a_quarter_of_an_hour_apart_of_records_alone() -> None:
    def at(seconds: float) -> dict[str, ShardState]:
        return {"a": shard(created=NOW + seconds, ordinal=int(seconds), sequence="1")}

    first = with_floor(state(), at(1.0), NOW + 1)
    assert with_floor(state(floors=first), at(900.0), NOW + 900) == first
    assert len(with_floor(state(floors=first), at(901.0), NOW + 901)) == 2
    assert with_floor(state(), {"a": shard()}, NOW) == ()


def test_a_floor_is_of_the_time_when_it_is_noted_however_old_the_records_are() -> None:
    """What was scanned or looked up in the meantime shows what the stream has not delivered yet."""
    lagging = {"a": shard(created=NOW - 2 * HOUR, ordinal=1, sequence="1")}
    assert with_floor(state(scan_ended=NOW), lagging, NOW + 60) == (Floor(NOW + 60, version(E, 1)),)


def test_floors_of_months_are_few_and_dense_where_they_are_new() -> None:
    floors: tuple[Floor, ...] = ()
    for n in range(4 * 24 * 60):
        floors = thinned((Floor(NOW + n * 900.0, n), *floors))
    ages = [floors[0].at - floor.at for floor in floors]

    assert len(floors) < 40
    assert all(after <= max(1800.0, 2.5 * before) for before, after in itertools.pairwise(ages[1:]))
    assert ages[-1] == (4 * 24 * 60 - 1) * 900.0, "the oldest is kept"


def test_documents_are_looked_up_above_the_newest_floor_that_is_certainly_older() -> None:
    floors = (Floor(NOW + 5000, version(E, 50)), Floor(NOW + 1000, version(E, 10)))
    of = state(floors=floors, scan_ended=NOW)
    assert above(of, NOW + 5600, inserting=False) == version(E, 50)
    assert above(of, NOW + 5599, inserting=False) == version(E, 10)
    assert above(of, NOW + 700, inserting=False) == version(E, 0), "what the scan has read"


@pytest.mark.parametrize("more", [{"inserted": NOW + 9000}, {"scan_ended": None, "floors": ()}])
def test_without_a_floor_every_document_is_looked_up(more: dict[str, object]) -> None:
    of = state(**{"floors": (Floor(NOW, version(E, 1)),), "scan_ended": NOW, **more})
    assert above(of, NOW + 9000, inserting=False) == version(E, 0) - 1


def test_while_a_command_inserts_documents_every_one_is_looked_up() -> None:
    of = state(floors=(Floor(NOW, version(E, 1)),), scan_ended=NOW)
    assert above(of, NOW + 9000, inserting=True) == version(E, 0) - 1


def test_an_insert_of_long_before_the_gap_does_not_matter() -> None:
    of = state(floors=(Floor(NOW, version(E, 1)),), inserted=NOW)
    assert above(of, NOW + 9000, inserting=False) == version(E, 1)


def test_a_repair_that_a_gap_interrupts_begins_where_it_did_before() -> None:
    earlier = GapRepair(NOW, version(E, 3), ())
    found = planned(state(repair=earlier), NOW + 9000, NOW + 9999, inserting=False)
    assert (found.since, found.above) == (NOW, version(E, 0) - 1)
    assert found.windows[-1][0] <= NOW - OVERLAP

    ended = GapRepair(NOW, version(E, 3), (), done=True)
    assert planned(state(repair=ended), NOW + 9000, NOW + 9999, inserting=False).since == NOW + 9000


def test_the_stream_was_enabled_at_its_newest_record_at_least() -> None:
    assert gap_repair.last_record(state(), {"a": shard(created=NOW + 5.0), "b": shard(created=NOW + 7.0)}) == NOW + 7
    assert gap_repair.last_record(state(), {"a": shard(since=NOW + 99)}) == NOW
