"""A gap is repaired from incremental exports: the copy is equal, deletes included, and the table is not scanned."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from replicator.aws.errors import AwsError
from replicator.errors import GapFound
from replicator.target.contract import Table
from replicator.target.verification import Walked
from replicator.testing.dynamodb import DynamoDB
from replicator.testing.memory import MemoryTarget
from replicator.testing.memory_index import MemoryIndex
from tests.faults.test_exports import BUCKET, DAMAGE, damaging
from tests.faults.test_hooks import discard
from tests.faults.world import HOUR, TABLE, Ended, World

REPAIRS = {"on_gap": "export", "backfill": {"bucket": BUCKET, "segments": 2}}
DAY = 24 * HOUR
MINUTE = 60.0


def copied(world: World, **config: object) -> None:
    """A copy of seven items, live for an hour."""
    world.fill(7)
    world.db.exports.enable(TABLE)
    world.clock.move(world.clock() + HOUR)
    world.configure(**{**REPAIRS, **config})
    world.copied()
    world.put("k0", n=1)
    world.copied()
    after(world, HOUR)
    world.client.asked.clear()


def live(world: World, seconds: float) -> None:
    assert world.run(seconds=seconds).code == 0


def after(world: World, seconds: float) -> None:
    world.clock.move(world.clock() + seconds)


def lose(world: World, *puts: str, removed: tuple[str, ...] = (), hours: float = 1.0) -> None:
    """Changes that the stream forgets, and one that it keeps."""
    world.put(*puts, n=int(world.clock.now))
    for key in removed:
        world.db.delete(TABLE, {"id": key})
    after(world, hours * HOUR)
    for shard in world.db.open_shards(TABLE):
        world.db.trim(TABLE, shard, 1000)
    world.put("kept", n=int(world.clock.now))


def repaired(world: World) -> Ended:
    """A run that repairs the gap without scanning the table, and leaves an equal copy."""
    world.client.asked.clear()
    ended = world.copied()
    assert not world.gaps
    assert not world.client.times("Scan")
    assert ended.event("gap")
    return ended


def windows(world: World) -> list[tuple[float, float]]:
    """Of the exports that were requested, in that order."""
    asked = [r for _, name, r in world.client.asked if name == "ExportTableToPointInTime"]
    times = [request["IncrementalExportSpecification"] for request in asked]
    return [(one["ExportFromTime"], one["ExportToTime"]) for one in times]


def read_in_order(world: World) -> list[tuple[float, float]]:
    """The windows of the exports, in the order in which they were waited for and read."""
    asked = dict.fromkeys(r["ExportArn"] for _, name, r in world.client.asked if name == "DescribeExport")
    return [window for arn in asked if (window := world.db.exports.known[arn].window) is not None]


def looked_up(world: World) -> set[str]:
    """The keys of the items that were looked up."""
    asked = [r for _, name, r in world.client.asked if name == "BatchGetItem"]
    return {key["id"]["S"] for request in asked for key in request["RequestItems"][TABLE]["Keys"]}


def test_lost_changes_come_from_an_export(faults: World) -> None:
    copied(faults)
    lose(faults, "k1", "new", removed=("k2",))
    ended = repaired(faults)

    assert ended.event("gap repair started")
    assert [gap.repaired is not None for gap in faults.states("gap").values()] == [True]


def test_what_the_stream_delivered_before_the_gap_and_an_export_does_not_mention_is_looked_up(faults: World) -> None:
    """It was inserted within the window of the export and deleted within it, so no line says that it is gone."""
    copied(faults)
    after(faults, HOUR)
    faults.put("ghost", "stays", n=1)
    live(faults, 60)
    lose(faults, "k1", removed=("ghost",))
    assert "ghost" in faults.documents
    repaired(faults)

    assert "ghost" not in faults.documents
    assert looked_up(faults) == {"ghost"}, "stays and k1 have lines, and the others were written before the window"


def test_a_gap_of_several_days_takes_several_exports_of_which_the_newest_is_read_first(faults: World) -> None:
    copied(faults)
    lose(faults, "k1", "k2", "short", hours=30)
    lose(faults, "k2", removed=("k1", "short"), hours=30)
    repaired(faults)

    found = read_in_order(faults)
    assert len(found) == 3
    assert sorted(found) == sorted(windows(faults))
    assert all(newer[0] == older[1] for newer, older in itertools.pairwise(found))
    assert all(15 * MINUTE <= end - start <= DAY for start, end in found)


def test_the_exports_of_a_gap_of_several_days_are_requested_at_once(faults: World) -> None:
    """But for the newest, whose window has not passed. DynamoDB makes them while that is waited for."""
    copied(faults)
    lose(faults, "k1", hours=30)
    lose(faults, "k2", removed=("k1",), hours=30)
    began = faults.clock()
    repaired(faults)

    *older, newest = zip(faults.client.times("ExportTableToPointInTime"), windows(faults), strict=True)
    assert [at - began < 2 * MINUTE for at, _ in older] == [True, True]
    assert newest[1] == max(windows(faults))
    assert newest[0] - began > 30 * MINUTE


def test_exports_that_were_requested_are_not_requested_again_by_the_next_run(faults: World) -> None:
    copied(faults)
    lose(faults, "k1", hours=30)
    lose(faults, "k2", removed=("k1",), hours=30)
    live(faults, 20 * MINUTE)
    assert len(windows(faults)) == 2, "the newest is not requested yet"
    after(faults, 9 * HOUR)  # no token holds that long
    live(faults, 5 * MINUTE)

    assert len(windows(faults)) == len(set(windows(faults))) == 3
    faults.copied()
    assert not faults.gaps


def test_an_export_that_dynamodb_does_not_make_at_the_same_time_is_requested_in_its_turn(faults: World) -> None:
    copied(faults)
    lose(faults, "k1", hours=30)
    lose(faults, "k2", removed=("k1",), hours=30)
    call, busy = faults.client.call, [True]

    def limited(operation: str, request: dict[str, Any]) -> bytes:
        if operation == "ExportTableToPointInTime" and busy:
            busy.pop()
            raise AwsError("LimitExceededException", "too many exports at the same time", 400)
        body: bytes = call(operation, request)
        return body

    faults.client.call = limited
    repaired(faults)
    assert len(read_in_order(faults)) == 3


def test_an_export_requested_ahead_that_conflicts_with_the_first_one_is_requested_in_its_turn(faults: World) -> None:
    """All of them write to one place in the bucket. What another one's place is, DynamoDB does not document."""
    copied(faults)
    lose(faults, "k1", hours=30)
    lose(faults, "k2", removed=("k1",), hours=30)
    call, requests = faults.client.call, itertools.count()

    def conflicting(operation: str, request: dict[str, Any]) -> bytes:
        if operation == "ExportTableToPointInTime" and next(requests) == 1:
            raise AwsError("ExportConflictException", "a conflict when writing to the bucket", 400)
        body: bytes = call(operation, request)
        return body

    faults.client.call = conflicting
    repaired(faults)
    assert len(read_in_order(faults)) == 3


def test_a_gaps_first_export_that_conflicts_with_that_of_another_target_is_requested_again(faults: World) -> None:
    copied(faults)
    lose(faults, "k1", hours=2)
    faults.db.fail("ExportTableToPointInTime", "ExportConflictException")
    repaired(faults)


def test_the_windows_begin_before_the_last_change_stored_and_end_after_the_positions(faults: World) -> None:
    copied(faults)
    live(faults, HOUR)
    until = faults.clock()
    lose(faults, "k1", hours=10)
    positions = faults.clock()
    repaired(faults)

    ((start, end),) = windows(faults)
    assert start <= until - 15 * MINUTE
    assert end >= positions + 15 * MINUTE
    requested = faults.client.times("ExportTableToPointInTime")[0]
    assert requested >= end


@pytest.mark.parametrize("skew", [-300.0, 2.0, 240.0, 840.0])
def test_what_dynamodb_cannot_export_yet_is_waited_for_however_wrong_the_clock_is(faults: World, skew: float) -> None:
    """It exports what was written five minutes ago, by its own clock, and refuses later ends."""
    copied(faults)
    lose(faults, "k1")
    faults.clock.skew = skew
    repaired(faults)

    requests = faults.client.times("ExportTableToPointInTime")
    assert (len(requests) > 1) == (skew > 600.0), "with clocks that differ by ten minutes at most, the first succeeds"


def test_a_window_that_dynamodb_never_exports_ends_the_run_with_the_reason(faults: World) -> None:
    copied(faults)
    lose(faults, "k1")
    call = faults.client.call

    def refusing(operation: str, request: dict[str, Any]) -> bytes:
        if operation == "ExportTableToPointInTime":
            raise AwsError("InvalidExportTimeException", "The specified ExportTime is outside of the window", 400)
        body: bytes = call(operation, request)
        return body

    faults.client.call = refusing
    ended = faults.run()

    assert (ended.code, "though point-in-time recovery reaches back to" in ended.err) == (2, True), ended


def test_a_replaced_stream_is_followed_from_its_beginning_and_what_came_before_exported(faults: World) -> None:
    copied(faults)
    faults.put("k1", n=5)
    live(faults, 60)
    faults.db.disable_stream(TABLE)
    faults.put("k3", "new", n=6)
    faults.db.delete(TABLE, {"id": "k2"})
    after(faults, 2 * HOUR)
    faults.db.enable_stream(TABLE)
    faults.put("k4", n=7)
    repaired(faults)


def test_what_changes_while_a_stream_is_being_enabled_again_is_exported(faults: World) -> None:
    copied(faults)
    faults.put("k1", n=5)
    live(faults, 60)
    faults.db.disable_stream(TABLE)
    after(faults, 2 * HOUR)
    faults.db.enable_stream(TABLE, enabling=40 * MINUTE)
    faults.clock.plan(38 * MINUTE, lambda: faults.put("k3", "new", n=6))
    faults.clock.plan(39 * MINUTE, lambda: faults.db.delete(TABLE, {"id": "k2"}))
    repaired(faults)
    live(faults, HOUR)
    faults.assert_equal()


def test_a_stream_that_was_disabled_while_a_run_was_up_is_exported_since_its_last_record(faults: World) -> None:
    """The run read on without records, and cannot tell since when there were none any more."""
    copied(faults)
    faults.put("k1", n=5)
    faults.clock.plan(5 * MINUTE, lambda: faults.db.disable_stream(TABLE))
    faults.clock.plan(10 * MINUTE, lambda: faults.put("k3", "new", n=6))
    assert faults.run(seconds=3 * HOUR).code == 2, "the table has no stream"
    faults.db.enable_stream(TABLE)
    repaired(faults)


def test_a_repair_that_is_interrupted_continues(faults: World) -> None:
    copied(faults)
    faults.put("ghost", n=1)
    live(faults, 60)
    lose(faults, "k1", "k2", removed=("ghost",), hours=30)
    faults.db.exports.polls = 4
    for seconds in (1, 10 * MINUTE, 12 * MINUTE, 30, 30, 30, 30):
        live(faults, seconds)
    faults.copied()

    assert not faults.gaps
    assert len(faults.db.exports.known) == 2, "each export is made once"
    assert not faults.client.times("Scan")


def test_a_gap_during_a_repair_is_repaired_from_where_the_first_one_began(faults: World) -> None:
    copied(faults)
    faults.put("ghost", n=1)
    live(faults, 60)
    lose(faults, "k1", hours=5)
    live(faults, 10 * MINUTE)
    faults.put("k5", "late", n=2)
    live(faults, 20)
    lose(faults, "k2", removed=("k5", "ghost", "late"), hours=2)
    repaired(faults)


FAILS_ON_13 = """\
def hook(item):
    if item.get("n") == 13:
        raise ValueError
    return item
"""


@pytest.mark.parametrize("deleted", [False, True])
@pytest.mark.parametrize("transactions", [False, True])
def test_a_change_that_an_older_export_has_is_not_left_parked(faults: World, transactions: bool, deleted: bool) -> None:
    """The hook fails on it, though a newer export had the item as it is: a retry would bring back the older one."""
    if not transactions:
        faults.target = lambda: MemoryIndex(faults.database, now=faults.clock)
    faults.hook(FAILS_ON_13)
    copied(faults, transform="hooks.py:hook")
    faults.put("x", n=1)
    live(faults, 60)
    after(faults, 10 * HOUR)
    faults.put("x", n=13)
    after(faults, 26 * HOUR)
    if deleted:
        faults.db.delete(TABLE, {"id": "x"})
    else:
        faults.put("x", n=2)
    lose(faults, hours=26)
    repaired(faults)

    assert len(windows(faults)) > 1
    assert not faults.states("parked")


def test_a_change_that_only_the_newest_export_has_stays_parked(faults: World) -> None:
    faults.hook(FAILS_ON_13)
    copied(faults, transform="hooks.py:hook")
    faults.put("k1", n=2)
    after(faults, 26 * HOUR)
    faults.put("k1", n=13)
    lose(faults, hours=26)
    assert faults.run().code == 6
    (parked,) = faults.states("parked").values()

    assert '"13"' in str(parked.new)
    assert faults.documents["k1"] == {"id": "k1"}, "as it was before the gap"


class TellsVersions(MemoryTarget):
    """A walk through it tells versions, so that they need not be asked for."""

    def walk(self, table: Table, cursor: str | None, within: tuple[str, ...] = ()) -> Walked:
        piece = super().walk(table, cursor, within)
        found = super().versions(table, piece.ids)
        return replace(piece, versions=[version for version in found if version is not None])

    def versions(self, table: Table, ids: Sequence[tuple[str, ...]]) -> list[int | None]:
        raise AssertionError("the walk has told them")


def test_versions_that_a_walk_tells_are_not_looked_up_again(faults: World) -> None:
    target = TellsVersions(faults.database)
    faults.target = lambda: target
    copied(faults)
    after(faults, HOUR)
    faults.put("ghost", "stays", n=1)
    live(faults, 60)
    lose(faults, "k1", removed=("ghost",))
    repaired(faults)

    assert "ghost" not in faults.documents
    assert looked_up(faults) == {"ghost"}


class Forgets(MemoryTarget):
    """Something happens to the source while the target is walked, between the second piece and the third."""

    def __init__(self, world: World, happens: Callable[[], object]) -> None:
        super().__init__(world.database)
        self.happens: list[Callable[[], object]] = [happens]
        self.pieces = 0

    def walk(self, table: Table, cursor: str | None, within: tuple[str, ...] = ()) -> Walked:
        self.pieces += 1
        if self.pieces > 2 and self.happens:
            self.happens.pop()()
            raise GapFound("records were lost during the walk")
        return super().walk(table, cursor, within)


def test_a_gap_while_the_target_is_walked_has_all_of_it_walked_again(faults: World) -> None:
    """What changed since is among the documents that were walked through before."""
    copied(faults)
    after(faults, HOUR)
    faults.put("a-ghost", *(f"m{n:04}" for n in range(350)), n=1)
    live(faults, 60)
    lose(faults, "k1")

    def vanishes() -> None:
        faults.db.delete(TABLE, {"id": "a-ghost"})
        lose(faults, "k2", hours=2)

    target = Forgets(faults, vanishes)
    faults.target = lambda: target
    repaired(faults)

    assert not target.happens
    assert "a-ghost" not in faults.documents


def test_what_was_scanned_while_the_stream_lagged_behind_is_looked_up(faults: World) -> None:
    """The oldest records are stored after a scan that shows newer items: no floor of their time hides these."""
    faults.fill(7)
    faults.db.exports.enable(TABLE)
    after(faults, HOUR)
    faults.configure(**REPAIRS)
    faults.db.page_sizes(records=1)
    stream = Slow(faults)
    faults.clock.plan(5 * MINUTE, lambda: faults.put("e1", n=1))
    faults.clock.plan(60 * MINUTE, lambda: faults.put("e2", n=1))
    faults.clock.plan(100 * MINUTE, lambda: faults.put("ghost", n=1))
    live(faults, 116 * MINUTE)
    for records in (1, 2):
        stream.records = records
        live(faults, 60)
    assert "ghost" in faults.documents, "scanned, and its record is unread"
    after(faults, 5 * HOUR)
    faults.db.delete(TABLE, {"id": "ghost"})
    after(faults, 30 * HOUR)
    stream.records = 1000
    lose(faults)
    repaired(faults)

    assert "ghost" in looked_up(faults)


class Slow:
    """A table whose scan is throttled for almost two hours, and whose stream gives so many ``records``."""

    def __init__(self, world: World) -> None:
        self.records = 0
        self._until, self._clock, self._call = world.clock() + 110 * MINUTE, world.clock, world.client.call
        world.client.call = self.call

    def call(self, operation: str, request: dict[str, Any]) -> bytes:
        slow = {"Scan": self._clock() < self._until, "GetRecords": not self.records}
        if slow.get(operation):
            raise AwsError("ProvisionedThroughputExceededException", "slow", 400)
        body: bytes = self._call(operation, request)
        self.records -= operation == "GetRecords" and b'"eventID"' in body
        return body


def test_a_parked_change_is_looked_up(faults: World) -> None:
    """Its item may have been inserted and deleted since the export begins; a retry would restore it."""
    copied(faults)
    refused = {"ghost", "k3"}
    faults.target = lambda: MemoryTarget(faults.database, lambda write: "no" if write.id[0] in refused else None)
    faults.put("ghost", "k3", n=1)
    live(faults, 60)
    assert len(faults.states("parked")) == 2
    lose(faults, "k1", removed=("ghost",))
    live(faults, HOUR)

    assert not faults.gaps
    assert "ghost" in looked_up(faults)
    (kept,) = faults.states("parked").values()
    assert kept.key == ("k3",)
    refused.clear()
    faults.put("k3", n=2)
    faults.copied()


def test_the_item_of_a_discarded_change_is_looked_up(faults: World) -> None:
    """Its document is older than the rescan that spared it, and no export says that the item is gone."""
    faults.hook(FAILS_ON_13)
    copied(faults, transform="hooks.py:hook")
    faults.db.delete(TABLE, {"id": "k1"})
    after(faults, HOUR)
    faults.put("k1", n=13)
    assert faults.run(name="resync").code == 6
    discard(faults)
    live(faults, 60)
    after(faults, HOUR)
    live(faults, 60)
    assert faults.documents["k1"] == {"id": "k1"}
    lose(faults, removed=("k1",))
    repaired(faults)

    assert "k1" in looked_up(faults)
    assert not faults.states("dropped")


@pytest.mark.parametrize("reason", ["point-in-time recovery is off", "point-in-time recovery reaches back to"])
def test_without_recovery_since_the_gap_began_the_run_ends_as_with_stop(faults: World, reason: str) -> None:
    copied(faults)
    recover(faults.db, enabled=False)
    lose(faults, "k1", hours=3)
    if "reaches" in reason:
        recover(faults.db, enabled=True)
    for _ in range(2):
        ended = faults.run()
        assert (ended.code, "on_gap: export cannot repair that: " in ended.err, reason in ended.err) == (3, True, True)
    assert faults.gaps
    assert not faults.client.times("ExportTableToPointInTime")
    assert faults.run(name="resync").code == 0
    faults.assert_equal()


def test_a_gap_of_more_than_35_days_is_beyond_recovery(faults: World) -> None:
    copied(faults)
    lose(faults, "k1", hours=36 * 24)
    ended = faults.run()

    assert (ended.code, "point-in-time recovery reaches back to" in ended.err) == (3, True), ended


def test_a_gap_during_the_backfill_needs_a_rescan(faults: World) -> None:
    faults.fill(7)
    faults.db.exports.enable(TABLE)
    faults.configure(**REPAIRS)
    faults.db.fail("Scan", "ThrottlingException", times=100)
    live(faults, 30)
    lose(faults, "k1", hours=30)
    faults.db.disable_stream(TABLE)
    faults.db.enable_stream(TABLE)
    ended = faults.run()

    assert (ended.code, "cannot repair that: the backfill has not ended" in ended.err) == (3, True), ended


def test_a_table_that_was_made_anew_needs_a_rescan(faults: World) -> None:
    copied(faults)
    faults.db.call("DeleteTable", {"TableName": TABLE})
    faults.db.create_table(TABLE)
    faults.db.exports.enable(TABLE)
    ended = faults.run()

    assert (ended.code, "cannot repair that: the table was deleted and created again" in ended.err) == (3, True), ended


def test_a_target_that_lost_documents_needs_a_rescan(faults: World) -> None:
    copied(faults)
    faults.database.rows[TABLE].clear()
    faults.database.tombstones[TABLE].clear()
    ended = faults.run()

    assert (ended.code, "the target has lost documents" in ended.err) == (3, True), ended


def test_an_export_that_fails_ends_the_run_with_its_reason_and_a_resync_repairs_the_copy(faults: World) -> None:
    copied(faults)
    lose(faults, "k1")
    faults.db.exports.shown = {"ExportStatus": "FAILED", "FailureCode": "S3NoSuchBucket", "FailureMessage": "none"}
    ended = faults.run()
    assert (ended.code, "on_gap: the export" in ended.err, "failed (S3NoSuchBucket" in ended.err) == (2, True, True)
    assert ended.err.strip().endswith("To repair the gap with a backfill instead: replicator resync CONFIG")
    faults.db.exports.shown = {}
    assert faults.run(name="resync").code == 0
    faults.assert_equal()


@pytest.mark.parametrize("reason", DAMAGE)
def test_a_damaged_file_is_named_and_may_be_restored(faults: World, reason: str) -> None:
    copied(faults)
    lose(faults, "k1", "k2", "k3")
    whole = damaging(faults, "0001.json.gz", DAMAGE[reason])
    ended = faults.run()
    assert (ended.code, reason in ended.err) == (2, True), ended
    faults.db.exports.objects |= whole
    faults.copied()


def test_an_export_that_lacks_a_part_of_its_window_is_not_used(faults: World) -> None:
    copied(faults)
    lose(faults, "k1")
    shown = {"ExportFromTime": faults.clock(), "ExportToTime": faults.clock() + HOUR}
    faults.db.exports.shown = {"IncrementalExportSpecification": shown}
    ended = faults.run()

    assert (ended.code, "some would be lost. Nothing of it was copied" in ended.err) == (2, True), ended


def test_a_repair_whose_export_is_not_started_does_not_turn_into_a_scan(faults: World) -> None:
    copied(faults)
    lose(faults, "k1")
    live(faults, 30)
    faults.configure()
    ended = faults.run()

    assert (ended.code, "the config no longer has on_gap: export with a bucket" in ended.err) == (2, True), ended


HOOK = """\
from replicator import documents

@documents
def hook(item):
    yield "orders", item["id"] + "-1", {"n": 1}
"""


def test_a_hook_that_chooses_document_ids_is_refused(faults: World) -> None:
    """An export does not say which documents an item had."""
    faults.fill(2)
    faults.db.exports.enable(TABLE)
    faults.hook(HOOK)
    faults.configure(transform="hooks.py:hook", **REPAIRS)
    ended = faults.run()

    assert (ended.code, "on_gap: export needs documents under their items' keys" in ended.err) == (2, True), ended


def recover(db: DynamoDB, *, enabled: bool) -> None:
    wanted = {"PointInTimeRecoveryEnabled": enabled}
    db.call("UpdateContinuousBackups", {"TableName": TABLE, "PointInTimeRecoverySpecification": wanted})
