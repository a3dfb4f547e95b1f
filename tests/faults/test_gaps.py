"""Lost records: exit code 3 with the reason, nothing skipped; a resync repairs the copy, deletes included."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import orjson
import pytest
from msgspec import structs

from replicator.batch import Batch, Outcome
from replicator.engine.fetcher import MAX_RELIST
from replicator.errors import TransientError
from replicator.pipeline.discovery import ORPHAN_TIME
from replicator.testing.dynamodb import LOCAL, Listed
from replicator.testing.memory_index import MemoryIndex
from tests.faults.world import HOUR, TABLE, World

Fault = Callable[[World], None]


def shard(world: World) -> str:
    return world.db.open_shards(TABLE)[0]


def unseen(world: World) -> None:
    """Changes that no run reads before they are gone."""
    world.db.delete(TABLE, {"id": "k0"})
    world.put("k1", "k2", n=7)


def trimmed_behind_the_position(world: World) -> None:
    unseen(world)
    world.put("k3", n=8)
    world.db.trim(TABLE, shard(world), len(world.documents) + 2)


def trimmed_between_iterator_and_read(world: World) -> None:
    unseen(world)
    real = world.db.call

    def call(operation: str, request: Mapping[str, Any]) -> bytes:
        answer = real(operation, request)
        if operation == "GetShardIterator":
            world.db.call = real  # type: ignore[method-assign]
            world.db.trim(TABLE, shard(world), len(world.documents) + 2)
        return answer

    world.db.call = call  # type: ignore[method-assign]


def answered_with_later_records(world: World) -> None:
    """As on an endpoint that returns the remaining records instead of an error."""
    unseen(world)
    real = world.db.call

    def call(operation: str, request: Mapping[str, Any]) -> bytes:
        if operation == "GetShardIterator":
            request = {k: v for k, v in request.items() if k != "SequenceNumber"} | {
                "ShardIteratorType": "TRIM_HORIZON"
            }
        return real(operation, request)

    world.db.trim(TABLE, shard(world), len(world.documents) + 1)
    world.db.call = call  # type: ignore[method-assign]


def vanished(world: World) -> None:
    """The shard is no longer there, and it was not read to its end."""
    unseen(world)
    world.db.roll_all(TABLE)
    world.clock.move(world.clock() + 25 * HOUR)
    world.put("k3", n=8)


def late_shard_without_its_head(world: World) -> None:
    """A shard that appeared and lost its first records while no run was up."""
    child = world.db.roll(TABLE, shard(world))
    world.clock.move(world.clock() + 23.8 * HOUR)
    unseen(world)
    world.put("k3", n=8)
    world.db.trim(TABLE, child, 1)


def replaced_stream(world: World) -> None:
    world.db.disable_stream(TABLE)
    unseen(world)
    world.clock.move(world.clock() + 60)
    world.db.enable_stream(TABLE)


def another_table(world: World) -> None:
    world.db.call("DeleteTable", {"TableName": TABLE})
    world.clock.move(world.clock() + 60)
    world.db.create_table(TABLE)
    world.put("k1", "other")


FAULTS: dict[str, tuple[Fault, str]] = {
    "trimmed behind the position": (trimmed_behind_the_position, "records after the stored position have been trimmed"),
    "trimmed between iterator and read": (
        trimmed_between_iterator_and_read,
        "stored position have been trimmed",
    ),
    "answered with later records": (answered_with_later_records, "instead of the stored position"),
    "vanished": (vanished, "the shard no longer exists, and it was not read to its end"),
    "late shard without its head": (late_shard_without_its_head, "the start of the shard may have been trimmed"),
    "replaced stream": (replaced_stream, "the stream was replaced: the last run read arn:aws:dynamodb:"),
    "another table of the name": (another_table, "was deleted and created again since the last run"),
}


@pytest.mark.parametrize(("fault", "reason"), FAULTS.values(), ids=FAULTS)
def test_lost_records_end_a_run_with_exit_code_3_and_a_resync_repairs_it(
    faults: World, fault: Fault, reason: str
) -> None:
    faults.fill()
    faults.copied()
    real, before = faults.db.call, faults.documents
    fault(faults)
    first, again = faults.run(seconds=60), faults.run(seconds=60)
    after, gaps = faults.documents, faults.gaps
    faults.db.call = real  # type: ignore[method-assign]
    repaired = faults.run(name="resync")

    assert (first.code, again.code) == (3, 3)
    assert reason in first.err
    assert reason in again.err
    assert "To repair the copy: replicator resync CONFIG" in first.err
    assert first.event("gap")["reason"] in first.err
    assert [reason in g.reason for g in gaps] == [True]
    assert after == before
    assert repaired.code == 0
    faults.assert_equal()
    assert not faults.gaps


@pytest.mark.parametrize(("fault", "reason"), FAULTS.values(), ids=FAULTS)
def test_with_on_gap_resync_the_same_run_repairs_the_gap(faults: World, fault: Fault, reason: str) -> None:
    faults.configure(on_gap="resync")
    faults.fill()
    faults.copied()
    real = faults.db.call
    fault(faults)
    faults.clock.plan(20, lambda: setattr(faults.db, "call", real))
    ended = faults.run(seconds=120)

    assert ended.code == 0
    assert reason in ended.event("gap")["reason"]
    faults.assert_equal()
    assert not faults.gaps


def test_a_stream_replaced_during_a_run_is_a_gap_within_one_listing(faults: World) -> None:
    faults.fill()
    faults.copied()
    faults.clock.plan(10, lambda: replaced_stream(faults))
    ended = faults.run(seconds=600)

    assert ended.code == 3
    assert "the stream was replaced: this run read arn:aws:dynamodb:" in ended.err
    assert f"and the table now has {faults.db.stream_arn(TABLE)}" in ended.err
    assert faults.clock() < 1_700_000_000 + 10 + 60 + 60


def test_a_table_recreated_during_a_run_is_not_merged_into_the_copy(faults: World) -> None:
    faults.fill()
    faults.copied()
    faults.clock.plan(10, lambda: another_table(faults))
    ended, again = faults.run(seconds=600), faults.run(seconds=600)

    assert (ended.code, again.code) == (3, 3)
    assert "the table orders was deleted and created again during this run" in ended.err
    assert "other" not in faults.documents


def with_another_key(world: World) -> None:
    world.db.call("DeleteTable", {"TableName": TABLE})
    world.clock.move(world.clock() + 1)
    world.db.create_table(TABLE, keys={"id": "S", "n": "N"})
    for n in (1, 2):
        world.db.put(TABLE, {"id": "a", "n": n})


def test_on_gap_resync_copies_no_table_that_was_made_again_with_another_key(faults: World) -> None:
    """What this run knows of the target is of the other key, under which two items would be one row."""
    faults.configure(on_gap="resync")
    faults.fill()
    faults.copied()
    before = faults.documents
    faults.clock.plan(10, lambda: with_another_key(faults))
    ended = faults.run(seconds=600)

    assert ended.code == 2
    assert "created again with another key (id: S, n: N) than the one that this run writes under (id: S)" in ended.err
    assert faults.documents == before
    assert faults.gaps

    assert faults.run().code == 0
    assert faults.database.documents(TABLE).keys() == {("a", "1"), ("a", "2")}


def test_on_gap_resync_repairs_any_number_of_gaps_between_which_the_copy_caught_up(faults: World) -> None:
    faults.configure(on_gap="resync")
    faults.fill()
    faults.copied()
    for n in range(1, 7):
        faults.clock.plan(n * 2000, lambda: replaced_stream(faults))
    ended = faults.run(seconds=15_000)

    assert ended.code == 0
    assert sum(e["event"] == "snapshot started" for e in ended.events) == 6
    assert not faults.gaps
    faults.assert_equal()


def test_on_gap_resync_ends_a_run_when_three_rescans_in_a_row_do_not_catch_up(faults: World) -> None:
    faults.configure(on_gap="resync")
    faults.fill()
    faults.copied()
    faults.db.fail("Scan", times=None)
    for n in range(1, 7):
        faults.clock.plan(n * 100, lambda: replaced_stream(faults))
    ended = faults.run(seconds=3000)

    assert ended.code == 3
    assert sum(e["event"] == "snapshot started" for e in ended.events) == 3


def test_a_stream_that_is_gone_for_good_is_a_gap(faults: World) -> None:
    """Disabled for more than a day: neither the stream nor its shards are known any more."""
    faults.fill()
    faults.copied()
    faults.db.disable_stream(TABLE)
    unseen(faults)
    faults.clock.move(faults.clock() + 25 * HOUR)
    ended = faults.run(seconds=600)

    assert ended.code == 3
    assert "no longer exists" in ended.err


def test_a_stream_that_listings_report_as_gone_is_a_gap_too(faults: World) -> None:
    faults.fill()
    faults.copied()
    faults.db.fail("DescribeStream", "ResourceNotFoundException", times=None)
    ended = faults.run(seconds=600)

    assert ended.code == 3
    assert f"the stream {faults.db.stream_arn(TABLE)} no longer exists" in ended.err
    assert len(faults.gaps) == 1


def test_a_shard_whose_parent_was_trimmed_before_it_was_listed_is_a_gap(faults: World) -> None:
    faults.fill()
    faults.copied()
    parent = shard(faults)
    faults.db.roll(TABLE, parent)
    faults.db.misreport(
        lambda shards: [structs.replace(s, parent="shardId-0-0") if s.parent == parent else s for s in shards]
    )
    ended = faults.run(seconds=600)

    assert ended.code == 3
    found = re.search(r"the shard's parent is missing from (\d+) listings: its records are lost", ended.err)
    assert found is not None
    assert int(found[1]) > ORPHAN_TIME / MAX_RELIST


def test_records_out_of_order_stop_a_run_before_anything_of_them_is_stored(faults: World) -> None:
    faults.fill()
    faults.copied()
    real, before = faults.db.call, faults.documents
    faults.put("k1", "k2", n=1)

    def call(operation: str, request: Mapping[str, Any]) -> bytes:
        answer = orjson.loads(real(operation, request))
        if operation == "GetRecords":
            answer["Records"][1:] = reversed(answer["Records"][1:])
        return orjson.dumps(answer)

    faults.db.call = call  # type: ignore[method-assign]
    ended = faults.run(seconds=60)
    faults.db.call = real  # type: ignore[method-assign]

    assert ended.code == 1
    assert "sequence numbers within a shard must increase. Nothing after it was stored" in ended.err
    assert faults.documents == before
    faults.copied()


def test_an_endpoint_without_at_timestamp_is_read_from_its_oldest_record_while_that_is_young(faults: World) -> None:
    faults.db = type(faults.db)(now=faults.clock, random=faults.random, dialect=LOCAL)
    faults.client.db = faults.db
    faults.fill()
    faults.copied()
    assert faults.counts.read == 12  # the records as well as the scanned items, whichever comes first


def test_a_quiet_parent_and_its_child_are_forgotten_in_order_days_after_a_catch_up(faults: World) -> None:
    faults.fill()
    faults.copied()
    for hours in (1, 4):
        faults.clock.move(faults.clock() + hours * HOUR)
        faults.put(f"k{hours}", n=hours)
        faults.db.roll_all(TABLE)
    faults.clock.move(faults.clock() + 4 * HOUR)
    faults.copied()
    for hour in range(60):
        faults.clock.move(faults.clock() + HOUR)
        faults.put(f"h{hour}", n=hour)
        assert faults.run(seconds=40).code == 0
        if hour % 4 == 3:
            faults.db.roll_all(TABLE)
    faults.assert_equal()
    assert len(faults.shards) <= 14, "what is older than two days is forgotten"


def test_a_childless_shard_older_than_a_day_neither_delays_catching_up_nor_is_a_gap_when_it_vanishes(
    faults: World,
) -> None:
    """Large streams have closed shards that never get children."""
    faults.fill()
    leaf = faults.db.wither(TABLE, shard(faults))
    faults.clock.move(faults.clock() + 23 * HOUR)
    faults.put("k1", n=1)
    faults.copied()
    assert faults.shards[leaf].leaf
    faults.clock.move(faults.clock() + 2 * HOUR)
    assert leaf not in {s.id for s in faults.db.shards(TABLE)}
    faults.put("k2", n=2)
    faults.copied()


@pytest.mark.parametrize("hours", [18, 19.8])
def test_a_quiet_shard_may_be_left_for_20_hours_even_after_a_long_backfill(faults: World, hours: float) -> None:
    faults.fill()
    faults.put("k1", n=0)
    faults.db.roll_all(TABLE)
    faults.copied()
    for _ in range(8):
        faults.clock.move(faults.clock() + HOUR)
        faults.copied()
    faults.clock.move(faults.clock() + hours * HOUR)
    faults.put("k2", n=2)
    faults.copied()


def test_a_run_that_was_live_for_long_may_be_away_for_23_hours(faults: World) -> None:
    faults.fill()
    faults.put("k1", n=0)
    assert faults.run(seconds=2 * HOUR).code == 0
    faults.clock.move(faults.clock() + 23 * HOUR)
    faults.put("k2", n=2)
    faults.copied()


class Down(MemoryIndex):
    """A target without transactions whose writes can fail; a run keeps working while it waits for it."""

    down = False
    _sent: Batch

    def encode(self, batch: Batch) -> Batch:
        return batch

    def send(self, encoded: Batch) -> None:
        self._sent = encoded

    def ready(self) -> bool:
        return not self.down

    def collect(self) -> Outcome:
        return self.write(self._sent)

    def write(self, batch: Batch) -> Outcome:
        if self.down and batch.parts:
            raise TransientError("no response")
        return super().write(batch)


@pytest.mark.parametrize("waits", [False, True])
def test_a_listing_counts_only_once_the_shards_it_showed_are_stored(faults: World, waits: bool) -> None:
    """Heartbeats overtake the waiting batch that holds them; the next run must not assume that they are young."""
    target = Down(faults.database, now=faults.clock)
    faults.target = lambda: target
    faults.fill(items=24, shards=6)
    faults.copied()
    start = faults.clock()
    *ending, _ = faults.db.open_shards(TABLE)

    def end() -> None:
        faults.db.fail("DescribeStream", "LimitExceededException", times=None)
        for id in ending:
            faults.db.roll(TABLE, id)

    faults.clock.plan(20, end)
    assert faults.run(seconds=60).code == 0
    for n in range(24):
        faults.db.delete(TABLE, {"id": f"k{n}"})  # most of it in shards that no listing showed
    assert faults.run(seconds=30).code == 0
    faults.clock.move(start + 19 * HOUR)
    faults.put(*(f"q{n}" for n in range(24)))
    assert faults.run(seconds=30).code == 0
    faults.db.heal()
    if waits:
        faults.clock.move(start + 20 * HOUR)
        faults.put(*(f"z{n}" for n in range(24)))
        target.down = True
        faults.run(seconds=60)
        target.down = False
    faults.clock.move(start + 25 * HOUR)
    faults.put("last")
    ended = faults.run()
    assert (ended.code, len(faults.gaps)) == (3, 1)


def test_a_shard_listed_although_it_was_already_gone_is_no_gap(faults: World) -> None:
    faults.fill()
    gone = Listed("shardId-00000000000000000000-00000000", None, "1", None)
    faults.db.misreport(lambda shards: [gone, *shards], times=1)
    faults.copied()
    assert faults.shards[gone.id].ended
    faults.put("k2", n=2)
    faults.copied()
