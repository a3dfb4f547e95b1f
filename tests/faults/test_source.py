"""The source is slow, throttled, empty or failing for a while: the run waits, says why, and loses nothing."""

from __future__ import annotations

import re
from collections import Counter
from functools import partial

import pytest

from replicator.batch import Batch, Outcome
from replicator.engine import preexisting
from replicator.engine.startup import digest
from replicator.errors import TransientError
from replicator.pipeline.checkpoint_view import CheckpointView
from replicator.source.scan import LONGEST_BACKOFF
from replicator.source.table import describe_table
from replicator.state import ResyncRequest, Save, encode
from replicator.target.contract import Table
from replicator.testing.dynamodb import Misreport, children_first, duplicated, reopened, unordered
from replicator.testing.memory import MemoryCheckpoints, MemoryTarget
from tests.faults.world import HOUR, TABLE, World

EVERY_CALL = ("DescribeTable", "DescribeStream", "GetShardIterator", "GetRecords", "Scan")


def troubles(events: list[dict[str, object]]) -> str:
    return "\n".join(str(e.get("waiting_for", "")) for e in events)


def test_a_shard_throttled_for_ten_minutes_keeps_its_position_and_blocks_no_other(faults: World) -> None:
    faults.fill(shards=2)
    faults.copied()
    for n in range(12):
        faults.put(f"n{n}")
    slow, quick = sorted(faults.shards)
    before = faults.shards
    faults.db.fail("GetRecords", times=None, shard=slow)
    waiting = faults.run(seconds=600)
    throttled = faults.shards
    faults.db.heal()
    asked = len(faults.client.times("GetRecords"))
    faults.copied()

    assert waiting.code == 0
    assert f"shard:{slow}: GetRecords on" in troubles(waiting.events)
    assert "ProvisionedThroughputExceededException" in troubles(waiting.events)
    assert (throttled[slow].sequence, throttled[slow].ordinal) == (before[slow].sequence, before[slow].ordinal)
    assert throttled[quick].ordinal > before[quick].ordinal
    assert asked < 900  # the quick one once a second, the slow one every 10 to 20


def test_a_third_reader_is_reported_while_the_run_continues(faults: World) -> None:
    faults.fill()
    faults.db.fail("GetRecords", "LimitExceededException", times=5)
    ended = faults.copied()

    assert "another consumer is attached (at most two may read a shard)" in troubles(ended.events)


@pytest.mark.parametrize("code", ["InternalServerError", "ThrottlingException"])
def test_a_burst_of_errors_on_every_call_is_waited_out_and_counts_nothing_twice(faults: World, code: str) -> None:
    faults.fill(30)
    faults.db.page_sizes(records=4, items=4)

    def burst() -> None:
        for operation in EVERY_CALL:
            faults.db.fail(operation, code, times=None)
        faults.clock.plan(30, faults.db.heal)

    faults.clock.plan(0.0, burst)
    faults.copied()
    faults.put("k1", n=1)
    faults.clock.plan(1, burst)
    ended = faults.run(seconds=60)

    assert ended.code == 0
    faults.assert_equal()
    assert faults.counts.read == 30 + 31  # scanned, and streamed
    assert code in troubles(ended.events)


def test_iterators_that_expire_while_the_target_hangs_are_replaced_and_nothing_is_skipped(faults: World) -> None:
    faults.fill()
    faults.copied()
    down = faults.clock() + 16 * 60

    class Hanging(MemoryTarget):
        def write(self, batch: Batch) -> Outcome:
            if batch.parts and faults.clock() < down:
                raise TransientError("the target does not answer")
            return super().write(batch)

    faults.target = lambda: Hanging(faults.database)
    read, iterators = faults.counts.read, len(faults.client.times("GetShardIterator"))
    for n in range(40):
        faults.clock.plan(n * 30, partial(faults.put, "k1", f"n{n}", n=n))
    ended = faults.run(seconds=20 * 60)

    assert ended.code == 0
    faults.assert_equal()
    assert faults.counts.read == read + 80
    assert len(faults.client.times("GetShardIterator")) == iterators + 2  # the run's first one, and its replacement
    waits = [str(e["reason"]) for e in ended.events if e["event"] == "waiting"]
    assert "the target does not answer (failing for 9" in waits[-1]


def test_a_disabled_stream_is_stored_to_its_end_and_is_then_a_gap_without_a_busy_loop(faults: World) -> None:
    faults.fill()
    faults.copied()

    def disable() -> None:
        faults.put("last")
        faults.db.disable_stream(TABLE)

    faults.clock.plan(10, disable)
    before = len(faults.client.asked)
    ended = faults.run(seconds=600)

    assert ended.code == 3
    assert "the stream was disabled, and all of it is stored" in ended.err
    faults.assert_equal()
    assert len(faults.client.asked) - before < 200


def request_resync(world: World) -> None:
    """As the command notes it."""
    view = CheckpointView(MemoryCheckpoints(world.database).read())
    assert view.pipeline is not None
    table = describe_table(world.client, TABLE)
    target = MemoryTarget(world.database)
    start = preexisting.inspect(view, table, target, (Table(TABLE, table.keys, {}),), None)
    request = ResyncRequest(requested=world.clock(), config=digest(start))
    MemoryCheckpoints(world.database).save([Save("request", "", None, encode(request))])


@pytest.mark.parametrize("away", ["disabled", "deleted"])
def test_a_resync_that_the_stream_no_longer_allows_does_not_end_a_run_that_reads_the_rest(
    faults: World, away: str
) -> None:
    faults.fill()
    faults.copied()

    def requested() -> None:
        faults.db.fail("GetRecords", times=None)
        faults.put("last")
        request_resync(faults)
        faults.db.disable_stream(TABLE)
        if away == "deleted":
            faults.db.call("DeleteTable", {"TableName": TABLE})

    faults.clock.plan(10, requested)
    faults.clock.plan(100, faults.db.heal)
    ended = faults.run(seconds=600)

    assert "last" in faults.documents
    reason = str(ended.event("requested resync not started")["reason"])
    if away == "deleted":
        assert (ended.code, "no table orders" in reason) == (2, True), ended
        return
    assert (ended.code, "table orders has no enabled stream" in reason) == (3, True), ended
    again = faults.run(seconds=600)
    assert again.code == 2
    assert again.err.endswith("to withdraw it, and read on: replicator resync CONFIG --cancel\n")
    asked = faults.run(name="resync")
    assert asked.code == 2
    assert "--cancel" not in asked.err, "withdrawing the request changes nothing for a resync that is asked for"
    faults.db.enable_stream(TABLE)
    faults.copied()


def test_a_deleted_table_is_reported_and_the_copy_stays(faults: World) -> None:
    faults.fill()
    faults.copied()

    def delete() -> None:
        faults.put("last")
        faults.db.call("DeleteTable", {"TableName": TABLE})

    faults.clock.plan(10, delete)
    ended, again = faults.run(seconds=600), faults.run(seconds=600)

    assert ended.code == 2
    assert re.search(
        r"the table arn:aws:dynamodb:\S+:table/orders was deleted\. Everything in its stream is", ended.err
    )
    assert "disabled" not in ended.err
    assert (again.code, "no table orders in this account and region" in again.err) == (2, True)
    assert "last" in faults.documents
    assert len(faults.documents) == 7
    assert not faults.gaps


@pytest.mark.parametrize("operation", ["DescribeStream", "GetRecords"])
def test_a_table_deleted_with_its_stream_is_a_gap_that_says_so(faults: World, operation: str) -> None:
    """So do emulators, and AWS a day after the table was deleted."""
    faults.fill()
    faults.copied()

    def delete() -> None:
        faults.db.call("DeleteTable", {"TableName": TABLE})
        faults.db.fail(operation, "ResourceNotFoundException", times=None)

    if operation == "GetRecords":  # what is old in the shard may be gone with it
        faults.put("late")
        faults.clock.move(faults.clock() + 23.6 * 3600)
        delete_at = 0.0
    else:
        delete_at = 10.0
    faults.clock.plan(delete_at, delete)
    ended = faults.run(seconds=600)

    assert ended.code == 3
    assert re.search(
        r"the source table arn:\S+ was deleted before all of its stream was read: the (stream|sh)", ended.err
    )
    assert len(faults.gaps) == 1


LISTINGS: list[list[Misreport]] = [[unordered], [duplicated], [children_first], [reopened], [duplicated, unordered]]


@pytest.mark.parametrize("how", LISTINGS, ids=lambda how: " and ".join(h.__name__ for h in how))
def test_listings_in_any_order_with_duplicates_or_over_pages_mean_the_same(faults: World, how: list[Misreport]) -> None:
    faults.fill(shards=2)
    faults.copied()
    faults.db.page_sizes(shards=1)  # a page boundary between every parent and child
    faults.db.misreport(*how)
    for n in range(8):
        faults.put("k1", f"n{n}", n=n)
        faults.db.split(TABLE, faults.db.open_shards(TABLE)[0])
    faults.copied()

    assert {id: s.parent for id, s in faults.shards.items()} == {s.id: s.parent for s in faults.db.shards(TABLE)}
    assert faults.counts.read == 6 + 6 + 16


def test_the_children_of_an_ended_shard_are_looked_up_until_a_listing_shows_them(faults: World) -> None:
    faults.fill()
    faults.copied()
    parent = faults.db.open_shards(TABLE)[0]
    child = faults.db.roll(TABLE, parent)
    faults.put("late")
    faults.db.misreport(lambda shards: [s for s in shards if s.id != child], times=60)
    ended = faults.run(seconds=120)
    early = faults.documents
    faults.copied()

    assert ended.code == 0
    assert "late" not in early
    assert set(faults.shards) == {parent, child}
    assert not faults.gaps


def test_a_child_whose_parent_is_listed_as_open_is_stored_after_all_of_its_parent(faults: World) -> None:
    faults.fill()
    faults.copied()
    faults.db.page_sizes(records=1)
    parent = faults.db.open_shards(TABLE)[0]
    for n in range(5):
        faults.put("k1", n=n)
    child = faults.db.roll(TABLE, parent)
    faults.put("k1", n=99)
    faults.db.misreport(reopened)
    faults.copied()

    opened = [r["ShardId"] for _, operation, r in faults.client.asked if operation == "GetShardIterator"]
    assert opened.index(child) > max(at for at, shard in enumerate(opened) if shard == parent)
    assert faults.shards[child].ordinal == faults.shards[parent].ordinal + 1


def test_a_storm_of_256_shards_costs_at_most_ten_listings_a_second(faults: World) -> None:
    faults.fill(20)
    faults.copied()

    def storm(generation: int) -> None:
        for shard in faults.db.open_shards(TABLE):
            faults.db.split(TABLE, shard)
        for n in range(20):
            faults.put(f"k{n}", n=generation)

    for generation in range(8):
        faults.clock.plan(5 + 7 * generation, partial(storm, generation))
    assert faults.run(seconds=90).code == 0
    faults.copied()

    assert len(faults.db.open_shards(TABLE)) == 256
    seconds = Counter(int(at) for at in faults.client.times("DescribeStream"))
    assert max(seconds.values()) <= 10
    assert faults.counts.read == 20 + 20 + 160


def test_a_thousand_empty_pages_are_one_call_a_second_and_move_no_position(faults: World) -> None:
    faults.fill()
    faults.copied()
    before = faults.shards
    asked = len(faults.client.times("GetRecords"))
    faults.db.blank(times=1_000)
    faults.put("behind")
    ended = faults.run(seconds=1_000)
    (shard,) = before

    assert ended.code == 0
    assert faults.shards[shard].sequence == before[shard].sequence
    assert 900 < len(faults.client.times("GetRecords")) - asked < 1_010
    faults.db.heal()
    faults.copied()


def test_records_read_again_because_the_stream_starts_before_the_scan_are_superseded(faults: World) -> None:
    faults.fill(50)
    faults.copied()

    assert faults.counts.read == 100
    assert (
        faults.counts.read == faults.counts.applied + faults.counts.superseded == 100
    )  # stale: whichever comes second


def test_a_throttled_scan_waits_and_resumes_at_its_cursor(faults: World) -> None:
    faults.fill(40)
    faults.db.page_sizes(items=3)
    for n in range(4):
        faults.clock.plan(0.05 * n, lambda: faults.db.fail("Scan", times=4))
    ended = faults.copied()

    assert "Scan on orders: ProvisionedThroughputExceededException" in troubles(ended.events)
    scanned = [r for _, operation, r in faults.client.asked if operation == "Scan"]
    cursors = Counter((r["Segment"], str(r.get("ExclusiveStartKey"))) for r in scanned)
    assert max(cursors.values()) <= 17
    assert faults.counts.read == 80
    assert faults.clock() - 1_700_000_000 < 40 * LONGEST_BACKOFF


def test_a_changed_number_of_segments_applies_from_the_next_backfill(faults: World) -> None:
    faults.fill(60)
    faults.db.page_sizes(items=2)
    faults.configure(backfill={"segments": 3})
    faults.clock.plan(0.03, lambda: faults.db.fail("Scan", times=None))
    faults.run(seconds=5)
    begun = faults.states("segment")
    faults.db.heal()
    faults.configure(backfill={"segments": 5})
    faults.copied()
    after = faults.states("segment")
    ended = faults.run(name="resync")

    assert any(s.cursor for s in begun.values())
    assert not all(s.ended for s in begun.values())
    assert {s.total for s in after.values()} == {3}
    assert sum(s.items for s in after.values()) == 60
    assert ended.code == 0
    assert {s.total for s in faults.states("segment").values()} == {5}


@pytest.mark.parametrize("late", [False, True], ids=["before its change is read", "with its change in one page"])
def test_an_ignored_expiry_removes_nothing_where_the_stream_shows_keys_only(faults: World, late: bool) -> None:
    """The item's last state can no longer be looked up; the next record says that it expired."""
    faults.db.create_table(TABLE, view="KEYS_ONLY")
    faults.put("k1", "k2", "k3", n="1")
    faults.configure(ttl_deletes="ignore")
    assert faults.run().code == 0
    faults.put("k1", "k2", "k3", n="2")
    if not late:
        faults.db.page_sizes(records=1)
    faults.db.expire(TABLE, {"id": "k1"})
    faults.db.delete(TABLE, {"id": "k2"})
    assert faults.run().code == 0
    assert faults.documents == {"k1": {"id": "k1", "n": "1"}, "k3": {"id": "k3", "n": "2"}}
    total = faults.counts
    assert total.read == total.applied + total.superseded + total.filtered


def test_a_new_scan_removes_expired_items_that_the_target_keeps_only_if_it_is_told_that_it_may(faults: World) -> None:
    """An archive: what expires in the source stays in the target, and a scan of the source does not find it."""
    faults.db.create_table(TABLE)
    faults.put("k1", "k2", n=1)
    faults.configure(ttl_deletes="ignore")
    assert faults.run().event("expired items kept")["until"].startswith("a resync or --apply-schema-changes: ")
    faults.db.expire(TABLE, {"id": "k1"})
    assert faults.run().code == 0
    faults.clock.move(faults.clock() + 2 * HOUR)  # the stream is read from ten minutes before a new scan
    kept, epoch = dict(faults.documents), faults.states("pipeline")[""].epoch
    assert kept.keys() == {"k1", "k2"}

    ended = faults.run(name="resync")
    assert ended.code == 2
    assert "so they would be removed at its end" in ended.err
    assert ended.err.endswith("Nothing was changed. To allow their removal, add --remove-expired\n")
    assert (dict(faults.documents), faults.states("pipeline")[""].epoch) == (kept, epoch)
    assert faults.run().code == 0

    assert faults.run("--remove-expired", name="resync", seconds=60).code == 0
    assert faults.documents.keys() == {"k2"}


def test_a_gap_of_a_copy_that_keeps_expired_items_is_not_repaired_automatically(faults: World) -> None:
    faults.fill(2)
    faults.configure(ttl_deletes="ignore")
    assert faults.run().code == 0
    faults.db.disable_stream(TABLE)
    faults.db.enable_stream(TABLE)
    assert faults.run().code == 3
    assert faults.run(name="resync").code == 2
    assert faults.run().code == 3  # it is a gap still
    assert faults.run("--remove-expired", name="resync").code == 0
