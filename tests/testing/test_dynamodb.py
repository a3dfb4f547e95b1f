"""What the in-memory DynamoDB promises to tests and simulations beyond what DynamoDB Local can show."""

from __future__ import annotations

import random
from collections.abc import Iterator
from decimal import Decimal
from itertools import pairwise
from typing import Any

import orjson
import pytest

from replicator.aws.errors import AwsError
from replicator.items.attributes import from_python
from replicator.items.item import Item
from replicator.testing.dynamodb import (
    LOCAL,
    Dialect,
    DynamoDB,
    Misreport,
    Numbering,
    children_first,
    duplicated,
    parentless,
    reopened,
    stale,
    unordered,
)

HOUR = 3600.0


class Clock:
    def __init__(self) -> None:
        self.now = 1_800_000_000.75

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def db(clock: Clock) -> DynamoDB:
    return DynamoDB(now=clock, random=random.Random(1))


def ask(db: DynamoDB, operation: str, **request: Any) -> dict[str, Any]:
    found: dict[str, Any] = orjson.loads(db.call(operation, request))
    return found


def refusal(db: DynamoDB, operation: str, **request: Any) -> tuple[str, int]:
    with pytest.raises(AwsError) as raised:
        db.call(operation, request)
    return raised.value.code, raised.value.status


def iterator(db: DynamoDB, shard: str, type: str = "TRIM_HORIZON", table: str = "orders", **more: Any) -> str:
    where = {"StreamArn": db.stream_arn(table), "ShardId": shard, "ShardIteratorType": type}
    return str(ask(db, "GetShardIterator", **where, **more)["ShardIterator"])


def pages(db: DynamoDB, iterator: str, **more: Any) -> Iterator[dict[str, Any]]:
    """Pages up to the shard's end, or to the first empty one."""
    page: dict[str, Any] = {"Records": [None], "NextShardIterator": iterator}
    while page["Records"] and "NextShardIterator" in page:
        page = ask(db, "GetRecords", ShardIterator=page["NextShardIterator"], **more)
        yield page


def records(db: DynamoDB, shard: str, type: str = "TRIM_HORIZON", **more: Any) -> list[dict[str, Any]]:
    return [r for page in pages(db, iterator(db, shard, type, **more)) for r in page["Records"]]


def listed(db: DynamoDB, **more: Any) -> list[dict[str, Any]]:
    """All shards of the listing, page by page."""
    found: list[dict[str, Any]] = []
    request: dict[str, Any] = {"StreamArn": db.stream_arn("orders"), **more}
    while True:
        page = ask(db, "DescribeStream", **request)["StreamDescription"]
        found += page["Shards"]
        if "LastEvaluatedShardId" not in page:
            return found
        request["ExclusiveStartShardId"] = page["LastEvaluatedShardId"]


def ids(shards: list[dict[str, Any]]) -> list[str]:
    return [s["ShardId"] for s in shards]


def numbers(found: list[dict[str, Any]]) -> list[str]:
    return [r["dynamodb"]["SequenceNumber"] for r in found]


def fill(db: DynamoDB, count: int, table: str = "orders", start: int = 0) -> None:
    for n in range(start, start + count):
        db.put(table, {"id": f"i{n}", "n": n})


class TestShards:
    def test_items_of_a_split_shard_go_on_in_one_of_its_children(self, db: DynamoDB) -> None:
        db.create_table("orders")
        (root,) = db.open_shards("orders")
        fill(db, 40)
        left, right = db.split("orders", root)
        for n in range(40):
            db.put("orders", {"id": f"i{n}", "n": n + 100})
        seen = {shard: {r["dynamodb"]["Keys"]["id"]["S"] for r in records(db, shard)} for shard in (left, right)}
        assert min(map(len, seen.values())) > 0
        assert not seen[left] & seen[right]
        assert len(seen[left] | seen[right]) == 40

    def test_children_name_their_parent_and_open_shards_have_no_end(self, db: DynamoDB) -> None:
        db.create_table("orders")
        (root,) = db.open_shards("orders")
        left, right = db.split("orders", root)
        grandchild = db.roll("orders", left)
        found = {s["ShardId"]: (s.get("ParentShardId"), len(s["SequenceNumberRange"])) for s in listed(db)}
        assert found == {root: (None, 2), left: (root, 2), right: (root, 1), grandchild: (left, 1)}

    def test_a_closed_shard_ends_together_with_its_last_records(self, db: DynamoDB) -> None:
        db.create_table("orders")
        fill(db, 3)
        (root,) = db.open_shards("orders")
        db.roll_all("orders")
        found = list(pages(db, iterator(db, root), Limit=2))
        assert [len(page["Records"]) for page in found] == [2, 1]
        assert "NextShardIterator" not in found[-1]

    def test_a_closed_shard_is_not_closed_again(self, db: DynamoDB) -> None:
        db.create_table("orders")
        (root,) = db.open_shards("orders")
        db.roll_all("orders")
        with pytest.raises(ValueError, match="closed already"):
            db.split("orders", root)

    def test_a_stream_may_begin_with_several_shards(self, db: DynamoDB) -> None:
        db.create_table("orders", shards=4)
        fill(db, 80)
        found = [len(records(db, shard)) for shard in db.open_shards("orders")]
        assert len(found) == 4
        assert min(found) > 0
        assert sum(found) == 80

    @pytest.mark.parametrize("seed", range(10))
    def test_the_lineage_replayed_gives_the_table(self, clock: Clock, seed: int) -> None:
        """Random writes, splits and roll-overs: parents before children, the last image of each item is the item."""
        dice = random.Random(seed)
        db = DynamoDB(now=clock, random=dice, numbering=Numbering(across_shards=seed % 2 == 0))
        db.create_table("orders", shards=2)
        for n in range(400):
            key = {"id": f"i{dice.randrange(12)}"}
            match dice.randrange(20):
                case 0:
                    db.split("orders", dice.choice(db.open_shards("orders")))
                case 1:
                    db.roll("orders", dice.choice(db.open_shards("orders")))
                case 2 | 3 | 4:
                    db.delete("orders", key)
                case _:
                    db.put("orders", {**key, "n": n})
        copy: dict[str, Any] = {}
        for shard in ids(listed(db)):  # oldest first
            for r in records(db, shard):
                key_text = r["dynamodb"]["Keys"]["id"]["S"]
                assert r["dynamodb"].get("OldImage") == copy.get(key_text)
                copy[key_text] = r["dynamodb"].get("NewImage")
        kept = {k: v for k, v in copy.items() if v is not None}
        assert kept == {i["id"]: {n: from_python(v) for n, v in i.items()} for i in db.items("orders")}


class TestRecords:
    def test_an_expired_item_is_removed_by_the_service(self, db: DynamoDB) -> None:
        db.create_table("orders")
        fill(db, 2)
        db.expire("orders", {"id": "i0"})
        db.delete("orders", {"id": "i1"})
        expired, deleted = records(db, db.open_shards("orders")[0])[-2:]
        assert expired["userIdentity"] == {"Type": "Service", "PrincipalId": "dynamodb.amazonaws.com"}
        assert "userIdentity" not in deleted

    def test_creation_times_are_whole_seconds_as_numbers(self, db: DynamoDB, clock: Clock) -> None:
        db.create_table("orders")
        fill(db, 1)
        clock.now += 0.5
        fill(db, 1, start=1)
        body = db.call("GetRecords", {"ShardIterator": iterator(db, db.open_shards("orders")[0])})
        found = [r["dynamodb"]["ApproximateCreationDateTime"] for r in orjson.loads(body)["Records"]]
        assert found == [1_800_000_000, 1_800_000_001]
        assert b'"ApproximateCreationDateTime":1.8E9' in body

    def test_images_give_back_the_values_that_were_put(self, db: DynamoDB) -> None:
        item = {"id": "a", "n": Decimal("1E-130"), "b": b"\x00", "none": None, "set": {1, 2}, "map": {"l": [True, ""]}}
        db.create_table("orders")
        db.put("orders", item)
        (record,) = records(db, db.open_shards("orders")[0])
        expected = item | {"set": {Decimal(1), Decimal(2)}}
        assert dict(Item(orjson.dumps(record["dynamodb"]["NewImage"]))) == expected
        assert db.items("orders") == [expected]

    def test_a_page_holds_one_megabyte(self, db: DynamoDB) -> None:
        db.create_table("orders", view="NEW_IMAGE")
        for n in range(5):
            db.put("orders", {"id": f"i{n}", "text": "x" * 390_000})
        found = [len(page["Records"]) for page in pages(db, iterator(db, db.open_shards("orders")[0]))]
        assert found == [2, 2, 1, 0]

    @pytest.mark.parametrize(("view", "count"), [("KEYS_ONLY", 6), ("OLD_IMAGE", 5), ("NEW_AND_OLD_IMAGES", 2)])
    def test_a_page_is_measured_by_what_the_streams_view_has(self, db: DynamoDB, view: str, count: int) -> None:
        db.create_table("orders", view=view)
        for n in range(3):
            db.put("orders", {"id": f"i{n}", "text": "x" * 390_000})
        for n in range(3):
            db.put("orders", {"id": f"i{n}", "text": "y" * 390_000})
        start = iterator(db, db.open_shards("orders")[0])
        assert len(ask(db, "GetRecords", ShardIterator=start)["Records"]) == count

    def test_a_page_holds_a_thousand_records(self, db: DynamoDB) -> None:
        db.create_table("orders")
        fill(db, 1500)
        found = [len(page["Records"]) for page in pages(db, iterator(db, db.open_shards("orders")[0]))]
        assert found == [1000, 500, 0]

    def test_a_table_without_a_stream_emits_nothing_and_says_so(self, db: DynamoDB) -> None:
        db.create_table("orders", view=None)
        fill(db, 1)
        assert db.stream_arn("orders") == ""
        assert "StreamSpecification" not in ask(db, "DescribeTable", TableName="orders")["Table"]


class TestNumbering:
    @pytest.mark.parametrize(
        "numbering",
        [
            Numbering(),
            Numbering(digits=40),
            Numbering(digits=56, zeros=30),
            Numbering(digits=21, first=10**20 - 3000),
            Numbering(across_shards=False),
        ],
    )
    def test_numbers_rise_inside_a_shard_with_gaps(self, clock: Clock, numbering: Numbering) -> None:
        db = DynamoDB(now=clock, random=random.Random(3), numbering=numbering)
        db.create_table("orders")
        fill(db, 50)
        found = numbers(records(db, db.open_shards("orders")[0]))
        values = [int(n) for n in found]
        assert values == sorted(set(values))
        assert {b - a for a, b in pairwise(values)} != {1}
        assert {len(n) for n in found} == {numbering.digits}

    def test_leading_zeros_are_part_of_the_number_as_written(self, clock: Clock) -> None:
        db = DynamoDB(now=clock, random=random.Random(3), numbering=Numbering(digits=30, zeros=9))
        db.create_table("orders")
        fill(db, 1)
        (number,) = numbers(records(db, db.open_shards("orders")[0]))
        assert number.startswith("0" * 9)
        assert len(number) == 30

    def test_a_number_may_grow_longer_while_the_stream_runs(self, clock: Clock) -> None:
        """Compared as text, the later number would come first."""
        db = DynamoDB(now=clock, random=random.Random(3), numbering=Numbering(digits=21, first=10**21 - 2000))
        db.create_table("orders")
        fill(db, 20)
        found = numbers(records(db, db.open_shards("orders")[0]))
        assert found[0] > found[-1]
        assert int(found[0]) < int(found[-1])

    def test_a_child_may_count_lower_than_its_parent(self, clock: Clock) -> None:
        starts = []
        for seed in range(8):
            db = DynamoDB(now=clock, random=random.Random(seed), numbering=Numbering(across_shards=False))
            db.create_table("orders")
            (child,) = db.roll_all("orders")
            parent, last = db.shards("orders")
            assert last.id == child
            starts.append(last.start < parent.start)
        assert set(starts) == {True, False}

    def test_a_childs_numbers_follow_its_parents_unless_configured_otherwise(self, db: DynamoDB) -> None:
        db.create_table("orders")
        fill(db, 5)
        (child,) = db.roll_all("orders")
        fill(db, 5, start=5)
        parent = db.shards("orders")[0]
        assert parent.end is not None
        assert parent.end < int(numbers(records(db, child))[0])

    def test_a_shards_start_and_end_are_no_records_numbers(self, db: DynamoDB) -> None:
        db.create_table("orders")
        fill(db, 3)
        db.roll_all("orders")
        shard = db.shards("orders")[0]
        assert shard.end is not None
        assert shard.start < shard.sequences[0]
        assert shard.sequences[-1] < shard.end
        text = listed(db)[0]["SequenceNumberRange"]["StartingSequenceNumber"]
        assert len(records(db, shard.id, "AT_SEQUENCE_NUMBER", SequenceNumber=text)) == 3


class TestTrimming:
    def test_records_of_24_hours_are_gone(self, db: DynamoDB, clock: Clock) -> None:
        db.create_table("orders")
        fill(db, 2)
        clock.now += 23 * HOUR
        fill(db, 2, start=2)
        (shard,) = db.open_shards("orders")
        old = numbers(records(db, shard))
        clock.now += 1.1 * HOUR
        assert numbers(records(db, shard)) == old[2:]
        at = {"StreamArn": db.stream_arn("orders"), "ShardId": shard, "SequenceNumber": old[1]}
        code = refusal(db, "GetShardIterator", ShardIteratorType="AT_SEQUENCE_NUMBER", **at)
        assert code == ("TrimmedDataAccessException", 400)
        assert numbers(records(db, shard, "AFTER_SEQUENCE_NUMBER", SequenceNumber=old[1])) == old[2:]

    def test_a_record_may_be_trimmed_between_iterator_and_read(self, db: DynamoDB) -> None:
        db.create_table("orders")
        fill(db, 3)
        (shard,) = db.open_shards("orders")
        begun = iterator(db, shard)
        db.trim("orders", shard, 1)
        assert refusal(db, "GetRecords", ShardIterator=begun)[0] == "TrimmedDataAccessException"
        assert len(records(db, shard)) == 2

    def test_a_trimmed_head_refuses_the_shards_start(self, db: DynamoDB) -> None:
        db.create_table("orders")
        fill(db, 3)
        (shard,) = db.open_shards("orders")
        db.trim("orders", shard, 1)
        at = {"StreamArn": db.stream_arn("orders"), "ShardId": shard, "ShardIteratorType": "AT_SEQUENCE_NUMBER"}
        start = listed(db)[0]["SequenceNumberRange"]["StartingSequenceNumber"]
        assert refusal(db, "GetShardIterator", **at, SequenceNumber=start)[0] == "TrimmedDataAccessException"

    def test_a_shard_is_gone_24_hours_after_it_closed(self, db: DynamoDB, clock: Clock) -> None:
        db.create_table("orders")
        fill(db, 1)
        (root,) = db.open_shards("orders")
        begun = iterator(db, root)
        (child,) = db.roll_all("orders")
        clock.now += 24.1 * HOUR
        assert [(s["ShardId"], s["ParentShardId"]) for s in listed(db)] == [(child, root)]
        assert refusal(db, "GetRecords", ShardIterator=begun)[0] == "ExpiredIteratorException"
        where = {"StreamArn": db.stream_arn("orders"), "ShardId": root, "ShardIteratorType": "TRIM_HORIZON"}
        assert refusal(db, "GetShardIterator", **where)[0] == "ResourceNotFoundException"

    def test_iterators_live_15_minutes(self, db: DynamoDB, clock: Clock) -> None:
        db.create_table("orders")
        begun = iterator(db, db.open_shards("orders")[0])
        clock.now += 15 * 60
        page = ask(db, "GetRecords", ShardIterator=begun)
        clock.now += 1
        assert refusal(db, "GetRecords", ShardIterator=begun)[0] == "ExpiredIteratorException"
        ask(db, "GetRecords", ShardIterator=page["NextShardIterator"])  # a new one lives its own 15 minutes

    def test_a_disabled_stream_is_readable_for_24_hours(self, db: DynamoDB, clock: Clock) -> None:
        arn = db.create_table("orders")
        fill(db, 1)
        (shard,) = db.open_shards("orders")
        db.disable_stream("orders")
        clock.now += 23 * HOUR
        assert len(records(db, shard)) == 1
        assert db.enable_stream("orders") != arn
        clock.now += 2 * HOUR
        assert refusal(db, "DescribeStream", StreamArn=arn)[0] == "ResourceNotFoundException"

    def test_a_deleted_table_leaves_its_stream(self, db: DynamoDB) -> None:
        arn = db.create_table("orders")
        fill(db, 1)
        ask(db, "DeleteTable", TableName="orders")
        assert ask(db, "DescribeStream", StreamArn=arn)["StreamDescription"]["StreamStatus"] == "DISABLED"
        assert db.create_table("orders") != arn


class TestTimestamps:
    @pytest.mark.parametrize(("offset", "found"), [(-HOUR, 3), (0, 3), (0.5, 2), (10, 2), (10.1, 1), (20, 1)])
    def test_at_timestamp_is_the_first_record_at_or_after_it(
        self, db: DynamoDB, clock: Clock, offset: float, found: int
    ) -> None:
        clock.now = 1_800_000_000.0
        db.create_table("orders")
        for n in range(3):
            fill(db, 1, start=n)
            clock.now += 10
        (shard,) = db.open_shards("orders")
        assert len(records(db, shard, "AT_TIMESTAMP", Timestamp=1_800_000_000 + offset)) == found

    def test_at_timestamp_behind_the_last_record_waits_for_the_next(self, db: DynamoDB, clock: Clock) -> None:
        db.create_table("orders")
        fill(db, 1)
        clock.now += 10
        (shard,) = db.open_shards("orders")
        begun = iterator(db, shard, "AT_TIMESTAMP", Timestamp=clock.now)
        fill(db, 1, start=1)
        assert len(next(pages(db, begun))["Records"]) == 1

    def test_at_timestamp_before_the_trim_horizon_is_the_horizon(self, db: DynamoDB, clock: Clock) -> None:
        db.create_table("orders")
        fill(db, 3)
        (shard,) = db.open_shards("orders")
        db.trim("orders", shard, 1)
        assert len(records(db, shard, "AT_TIMESTAMP", Timestamp=clock.now - 100 * HOUR)) == 2

    def test_the_future_is_refused(self, db: DynamoDB, clock: Clock) -> None:
        arn = db.create_table("orders")
        (shard,) = db.open_shards("orders")
        where = {"StreamArn": arn, "ShardId": shard, "ShardIteratorType": "AT_TIMESTAMP"}
        assert refusal(db, "GetShardIterator", **where, Timestamp=clock.now + 1) == ("ValidationException", 400)


class TestDialects:
    def test_an_endpoint_without_at_timestamp_refuses_it(self, clock: Clock) -> None:
        db = DynamoDB(now=clock, random=random.Random(1), dialect=LOCAL)
        where = {"StreamArn": db.create_table("orders"), "ShardId": db.open_shards("orders")[0]}
        found = refusal(db, "GetShardIterator", **where, ShardIteratorType="AT_TIMESTAMP", Timestamp=1)
        assert found == ("ValidationException", 400)

    def test_child_shards_are_asked_for_by_their_parent(self, db: DynamoDB) -> None:
        db.create_table("orders", shards=2)
        one, other = db.open_shards("orders")
        children = db.split("orders", one)
        wanted = {"Type": "CHILD_SHARDS", "ShardId": one}
        assert ids(listed(db, ShardFilter=wanted)) == list(children)
        assert listed(db, ShardFilter=wanted | {"ShardId": other}) == []

    def test_an_endpoint_without_the_filter_lists_all(self, clock: Clock) -> None:
        db = DynamoDB(now=clock, random=random.Random(1), dialect=LOCAL)
        db.create_table("orders")
        (root,) = db.open_shards("orders")
        db.split("orders", root)
        assert len(listed(db, ShardFilter={"Type": "CHILD_SHARDS", "ShardId": root})) == 3

    @pytest.mark.parametrize("early", [True, False])
    def test_an_endpoint_may_refuse_a_start_that_is_no_records_number(self, clock: Clock, early: bool) -> None:
        dialect = Dialect(starts=False, refuses_early=early)
        db = DynamoDB(now=clock, random=random.Random(1), dialect=dialect)
        arn = db.create_table("orders")
        fill(db, 1)
        (shard,) = listed(db)
        start = shard["SequenceNumberRange"]["StartingSequenceNumber"]
        where = {"StreamArn": arn, "ShardId": shard["ShardId"], "ShardIteratorType": "AT_SEQUENCE_NUMBER"}
        if early:
            found = refusal(db, "GetShardIterator", **where, SequenceNumber=start)
        else:
            begun = ask(db, "GetShardIterator", **where, SequenceNumber=start)["ShardIterator"]
            found = refusal(db, "GetRecords", ShardIterator=begun)
        assert found == ("TrimmedDataAccessException", 400)
        assert len(records(db, shard["ShardId"])) == 1


class TestListings:
    @pytest.fixture
    def family(self, db: DynamoDB) -> tuple[str, ...]:
        """A root, its two children, and a child of the first of them."""
        db.create_table("orders")
        (root,) = db.open_shards("orders")
        left, right = db.split("orders", root)
        return root, left, right, db.roll("orders", left)

    @pytest.mark.parametrize("size", [1, 2, 3, 100])
    @pytest.mark.parametrize("how", [duplicated, unordered, children_first, reopened])
    def test_a_misreported_listing_still_shows_every_shard(
        self, db: DynamoDB, family: tuple[str, ...], how: Misreport, size: int
    ) -> None:
        db.page_sizes(shards=size)
        db.misreport(how)
        assert set(ids(listed(db))) == set(family)

    def test_a_parent_and_its_child_may_be_on_different_pages(self, db: DynamoDB, family: tuple[str, ...]) -> None:
        db.page_sizes(shards=1)
        page = ask(db, "DescribeStream", StreamArn=db.stream_arn("orders"))["StreamDescription"]
        assert ids(page["Shards"]) == [family[0]]
        assert page["LastEvaluatedShardId"] == family[0]

    def test_duplicated_shows_closed_shards_open_first(self, db: DynamoDB, family: tuple[str, ...]) -> None:
        db.misreport(duplicated)
        found = [s for s in listed(db) if s["ShardId"] == family[0]]
        assert ["EndingSequenceNumber" in s["SequenceNumberRange"] for s in found] == [False, True]

    def test_stale_hides_children(self, db: DynamoDB, family: tuple[str, ...]) -> None:
        db.misreport(stale)
        (only,) = listed(db)
        assert only["ShardId"] == family[0]
        assert "EndingSequenceNumber" in only["SequenceNumberRange"]

    def test_reopened_shows_parents_open_beside_their_children(self, db: DynamoDB, family: tuple[str, ...]) -> None:
        db.misreport(reopened)
        assert not any("EndingSequenceNumber" in s["SequenceNumberRange"] for s in listed(db))

    def test_parentless_leaves_parents_out(self, db: DynamoDB, family: tuple[str, ...]) -> None:
        db.misreport(parentless)
        assert ids(listed(db)) == [family[2], family[3]]

    def test_children_first_comes_before_their_parents(self, db: DynamoDB, family: tuple[str, ...]) -> None:
        db.misreport(children_first)
        assert ids(listed(db)) == list(reversed(family))

    def test_the_truth_comes_back_after_so_many_calls(self, db: DynamoDB, family: tuple[str, ...]) -> None:
        db.misreport(stale, times=1)
        assert [len(listed(db)), len(listed(db))] == [1, 4]


class TestFaults:
    def test_a_call_is_refused_so_many_times(self, db: DynamoDB) -> None:
        db.create_table("orders")
        db.fail("Scan", times=2)
        for _ in range(2):
            assert refusal(db, "Scan", TableName="orders") == ("ProvisionedThroughputExceededException", 400)
        assert ask(db, "Scan", TableName="orders")["Count"] == 0

    def test_a_server_error_is_one(self, db: DynamoDB) -> None:
        db.create_table("orders")
        db.fail("Scan", "InternalServerError", times=1)
        assert refusal(db, "Scan", TableName="orders") == ("InternalServerError", 500)

    def test_a_third_reader_is_limited_on_its_shard_only(self, db: DynamoDB) -> None:
        db.create_table("orders", shards=2)
        one, other = db.open_shards("orders")
        db.fail("GetRecords", "LimitExceededException", shard=one, times=None)
        assert refusal(db, "GetRecords", ShardIterator=iterator(db, one)) == ("LimitExceededException", 400)
        ask(db, "GetRecords", ShardIterator=iterator(db, other))
        db.heal()
        ask(db, "GetRecords", ShardIterator=iterator(db, one))

    def test_a_fault_may_look_at_the_request(self, db: DynamoDB) -> None:
        db.create_table("orders")
        db.fail("Scan", times=None, when=lambda request: request.get("Segment") == 1)
        ask(db, "Scan", TableName="orders", Segment=0, TotalSegments=2)
        assert refusal(db, "Scan", TableName="orders", Segment=1, TotalSegments=2)[1] == 400

    def test_an_empty_page_loses_nothing(self, db: DynamoDB) -> None:
        """Also at a closed shard's end: the iterator stays, and the records come with the next page."""
        db.create_table("orders")
        fill(db, 2)
        (root,) = db.open_shards("orders")
        db.roll_all("orders")
        db.blank(times=2)
        at, sizes = iterator(db, root), []
        while at:
            page = ask(db, "GetRecords", ShardIterator=at)
            sizes.append(len(page["Records"]))
            at = page.get("NextShardIterator", "")
        assert sizes == [0, 0, 2]

    def test_the_end_may_come_on_a_page_of_its_own(self, db: DynamoDB) -> None:
        """As AWS does at times: all records are read, an empty page follows, and only the next one ends the shard."""
        db.create_table("orders")
        fill(db, 2)
        (root,) = db.open_shards("orders")
        last = numbers(records(db, root))[-1]
        db.roll_all("orders")
        db.blank()
        page = ask(db, "GetRecords", ShardIterator=iterator(db, root, "AFTER_SEQUENCE_NUMBER", SequenceNumber=last))
        assert page["Records"] == []
        page = ask(db, "GetRecords", ShardIterator=page["NextShardIterator"])
        assert page == {"Records": []}

    def test_short_pages_lose_nothing(self, db: DynamoDB) -> None:
        db.create_table("orders")
        fill(db, 5)
        db.page_sizes(records=2, items=2)
        found = [len(page["Records"]) for page in pages(db, iterator(db, db.open_shards("orders")[0]), Limit=1000)]
        assert found == [2, 2, 1, 0]
        assert ask(db, "Scan", TableName="orders")["Count"] == 2

    def test_unprocessed_keys_come_back(self, db: DynamoDB) -> None:
        db.create_table("orders")
        fill(db, 3)
        wanted = {"orders": {"Keys": [{"id": {"S": f"i{n}"}} for n in range(3)], "ConsistentRead": True}}
        db.unprocessed(at_most=1)
        first = ask(db, "BatchGetItem", RequestItems=wanted)
        assert len(first["Responses"]["orders"]) == 1
        assert first["UnprocessedKeys"]["orders"]["ConsistentRead"] is True
        rest = ask(db, "BatchGetItem", RequestItems=first["UnprocessedKeys"])
        assert len(rest["Responses"]["orders"]) == 2
        assert rest["UnprocessedKeys"] == {}


class TestItems:
    def test_a_scan_continues_after_an_item_that_was_removed_meanwhile(self, db: DynamoDB) -> None:
        db.create_table("orders", keys={"id": "S", "n": "N"})
        fill(db, 10)
        first = ask(db, "Scan", TableName="orders", Limit=4)
        after = first["LastEvaluatedKey"]
        db.delete("orders", {"id": after["id"]["S"], "n": int(after["n"]["N"])})
        rest = ask(db, "Scan", TableName="orders", ExclusiveStartKey=after)
        assert len({i["id"]["S"] for i in first["Items"] + rest["Items"]}) == 10

    def test_items_put_back_after_a_removal_are_scanned_once(self, db: DynamoDB) -> None:
        db.create_table("orders")
        for _ in range(3):
            fill(db, 30)
            assert ask(db, "Scan", TableName="orders")["Count"] == 30
            for n in range(30):
                db.delete("orders", {"id": f"i{n}"})
            assert ask(db, "Scan", TableName="orders")["Count"] == 0

    def test_reads_that_are_not_consistent_may_miss_the_last_write(self, db: DynamoDB) -> None:
        db.create_table("orders")
        fill(db, 2)
        db.lag_reads("orders")
        db.put("orders", {"id": "i0", "n": 99})
        db.delete("orders", {"id": "i1"})
        db.put("orders", {"id": "i2"})
        wanted = [{"id": {"S": f"i{n}"}} for n in range(3)]
        found = {}
        for consistent in (True, False):
            scanned = ask(db, "Scan", TableName="orders", ConsistentRead=consistent)["Items"]
            request = {"orders": {"Keys": wanted, "ConsistentRead": consistent}}
            looked_up = ask(db, "BatchGetItem", RequestItems=request)["Responses"]["orders"]
            assert sorted(map(str, scanned)) == sorted(map(str, looked_up))
            found[consistent] = {i["id"]["S"]: i.get("n", {}).get("N") for i in scanned}
        assert found == {True: {"i0": "99", "i2": None}, False: {"i0": "0", "i1": "1"}}
        db.heal()
        assert (
            ask(db, "Scan", TableName="orders")["Items"]
            == ask(db, "Scan", TableName="orders", ConsistentRead=True)["Items"]
        )

    def test_calls_are_counted(self, db: DynamoDB) -> None:
        db.create_table("orders")
        db.fail("Scan")
        refusal(db, "Scan", TableName="orders")
        ask(db, "Scan", TableName="orders")
        assert db.calls["Scan"] == 2

    def test_capacity_is_counted_in_4_kb(self, db: DynamoDB) -> None:
        db.create_table("orders")
        db.put("orders", {"id": "a", "text": "x" * 9000})
        for consistent, units in ((True, 3.0), (False, 1.5)):
            request = {"TableName": "orders", "ReturnConsumedCapacity": "TOTAL", "ConsistentRead": consistent}
            assert ask(db, "Scan", **request)["ConsumedCapacity"]["CapacityUnits"] == units
            key = {"Key": {"id": {"S": "a"}}}
            assert ask(db, "GetItem", **request, **key)["ConsumedCapacity"]["CapacityUnits"] == units

    def test_equal_numbers_are_one_key(self, db: DynamoDB) -> None:
        db.create_table("orders", keys={"n": "N"})
        for text in ("1", "1.0", "1E0", "+1"):
            db.call("PutItem", {"TableName": "orders", "Item": {"n": {"N": text}}})
        assert db.items("orders") == [{"n": Decimal(1)}]
        assert len(records(db, db.open_shards("orders")[0])) == 1

    def test_a_table_is_described(self, db: DynamoDB) -> None:
        arn = db.create_table("orders", keys={"id": "S", "n": "N"}, view="NEW_IMAGE")
        fill(db, 3)
        found = ask(db, "DescribeTable", TableName="orders")["Table"]
        assert found["KeySchema"][1] == {"AttributeName": "n", "KeyType": "RANGE"}
        assert found["TableArn"].endswith(":table/orders")
        assert found["LatestStreamArn"] == arn
        assert found["StreamSpecification"] == {"StreamEnabled": True, "StreamViewType": "NEW_IMAGE"}
        assert (found["ItemCount"], found["TableStatus"]) == (3, "ACTIVE")
        ask(db, "DeleteTable", TableName="orders")
        db.create_table("orders", keys={"id": "S", "n": "N"})
        assert ask(db, "DescribeTable", TableName="orders")["Table"]["TableId"] != found["TableId"]

    def test_what_it_does_not_know_is_refused(self, db: DynamoDB) -> None:
        """A condition that is overlooked would make a test pass that should not."""
        db.create_table("orders")
        request: dict[str, Any] = {"TableName": "orders", "Item": {"id": {"S": "a"}}, "Expected": {}}
        assert refusal(db, "PutItem", **request) == ("ValidationException", 400)
        assert refusal(db, "ExecuteStatement", Statement="x") == ("UnknownOperationException", 400)
        assert refusal(db, "PutItem", TableName="orders") == ("ValidationException", 400)
