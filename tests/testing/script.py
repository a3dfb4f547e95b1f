"""The differential script: what is done to every endpoint, step by step, in this order."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import Any

from replicator.aws.errors import AwsError
from tests.testing.world import Observation, World, typed, unordered

Step = Callable[[World], Observation]
STEPS: dict[str, Step] = {}


def step(function: Step) -> Step:
    STEPS[function.__name__] = function
    return function


@step
def first_writes(world: World) -> Observation:
    """What each write emits, and what emits nothing."""
    world.create("orders", id="S", line="N")
    world.put("orders", id="a", line=1, total=Decimal("1.50"), tags={"x", "y"})
    world.put("orders", id="a", line=1, tags={"y", "x"}, total=Decimal("1.5"))  # the same item: nothing
    world.put("orders", id="a", line=1, total=Decimal("2"))
    world.put("orders", id="a", line=2)
    world.delete("orders", id="a", line=1)
    world.delete("orders", id="a", line=1)  # absent: nothing
    return world.read("orders", 0, "TRIM_HORIZON")


@step
def updates(world: World) -> Observation:
    world.update("orders", {"id": "b", "line": 1}, "SET amount = :t", t=1)  # absent: an insert
    world.update("orders", {"id": "b", "line": 1}, "SET amount = :t, note = :n", t=2, n="")
    world.update("orders", {"id": "b", "line": 1}, "SET amount = :t", t=2)  # as it is: nothing
    world.update("orders", {"id": "b", "line": 1}, "REMOVE note")
    return world.read("orders", 0, "TRIM_HORIZON")


@step
def batch_writes(world: World) -> Observation:
    writes: list[dict[str, Any]] = [
        {"PutRequest": {"Item": typed({"id": "c", "line": 1, "n": 1})}},
        {"DeleteRequest": {"Key": typed({"id": "b", "line": 1})}},
        {"DeleteRequest": {"Key": typed({"id": "nobody", "line": 1})}},
    ]
    left = world.ask("BatchWriteItem", RequestItems={"orders": writes})["UnprocessedItems"]
    records = world.read("orders", 0, "TRIM_HORIZON")["records"][-2:]
    return left, sorted((r["eventName"], r["Keys"]["id"]["S"]) for r in records)  # a batch has no order


@step
def every_type(world: World) -> Observation:
    item = typed(
        {
            "id": "types",
            "line": Decimal("-0"),
            "nul": "\x00",
            "empty": "",
            "binary": b"\x00\xff",
            "nothing": None,
            "yes": True,
            "list": [1, "a", [b"", {}]],
            "map": {"deep": {"er": [None, False]}},
            "strings": {"b", "a", ""},
            "numbers": {Decimal("2.0"), Decimal("1E1")},
            "binaries": {b"\x01", b"\x00"},
        }
    )
    numbers = ["1E-130", "9.99E+125", "-9.99E+125", "0.1000", "007", "+1", "1e2", "-1.20E-7", "1" * 38, "0." + "1" * 38]
    item |= {f"n{i}": {"N": n} for i, n in enumerate(numbers)}
    world.ask("PutItem", TableName="orders", Item=item)
    return world.read("orders", 0, "TRIM_HORIZON")["records"][-1]


@step
def read_back(world: World) -> Observation:
    """The item that was put, as GetItem, BatchGetItem and Scan give it."""
    key = typed({"id": "types", "line": 0})
    got = world.ask("GetItem", TableName="orders", Key=key, ConsistentRead=True)["Item"]
    keys = [key, typed({"id": "nobody", "line": 1})]
    looked_up = world.ask("BatchGetItem", RequestItems={"orders": {"Keys": keys, "ConsistentRead": True}})
    assert looked_up["UnprocessedKeys"] == {}
    scanned = [i for i in world.ask("Scan", TableName="orders")["Items"] if i["id"] == {"S": "types"}]
    return _sets_sorted([got]) == _sets_sorted(looked_up["Responses"]["orders"]) == _sets_sorted(scanned), len(got)


def _sets_sorted(items: list[dict[str, Any]]) -> list[Any]:
    return [unordered(i) for i in items]


@step
def rolled_twice(world: World) -> Observation:
    """Lineage: each shard's parent, and whether it is open. The middle shard is empty."""
    world.roll()
    world.roll()
    world.put("orders", id="d", line=1)
    world.put("orders", id="d", line=2)
    shards = world.listed("orders")
    ids = [s["ShardId"] for s in shards]
    return [
        (
            ids.index(s["ParentShardId"]) if "ParentShardId" in s else None,
            "EndingSequenceNumber" in s["SequenceNumberRange"],
        )
        for s in shards
    ]


@step
def each_shard(world: World) -> Observation:
    return [world.read("orders", at, "TRIM_HORIZON") for at in range(3)]


@step
def ranges(world: World) -> Observation:
    """Records lie within their shard's range, and a child's begins behind its parent's end."""
    shards = world.listed("orders")
    starts = [int(s["SequenceNumberRange"]["StartingSequenceNumber"]) for s in shards]
    ends = [int(s["SequenceNumberRange"].get("EndingSequenceNumber", 10**40)) for s in shards]
    numbers = [[int(n) for n in world.sequences("orders", at)] for at in range(3)]
    inside = [all(low <= n <= high for n in found) for low, high, found in zip(starts, ends, numbers, strict=True)]
    return inside, [found == sorted(set(found)) for found in numbers], ends[0] < starts[1], ends[1] < starts[2]


@step
def at_each_record(world: World) -> Observation:
    numbers = world.sequences("orders", 0)
    return [world.read("orders", 0, "AT_SEQUENCE_NUMBER", SequenceNumber=n) for n in numbers]


@step
def after_each_record(world: World) -> Observation:
    numbers = world.sequences("orders", 0)
    return [world.read("orders", 0, "AFTER_SEQUENCE_NUMBER", SequenceNumber=n) for n in numbers]


@step
def leading_zeros_do_not_matter(world: World) -> Observation:
    number = world.sequences("orders", 0)[1].lstrip("0").rjust(24, "0")
    return world.read("orders", 0, "AT_SEQUENCE_NUMBER", SequenceNumber=number)


@step
def at_the_start_of_an_open_shard_where_no_record_is(world: World) -> Observation:
    world.roll()
    start = world.listed("orders")[-1]["SequenceNumberRange"]["StartingSequenceNumber"]
    empty = world.read("orders", -1, "AT_SEQUENCE_NUMBER", SequenceNumber=start)
    world.create("elsewhere", "NEW_IMAGE")
    world.put("elsewhere", id="uses a number")  # where the whole endpoint shares one counter
    world.put("orders", id="e", line=1)
    return empty, world.read("orders", -1, "AT_SEQUENCE_NUMBER", SequenceNumber=start)


@step
def after_the_last_record_of_the_open_shard(world: World) -> Observation:
    """Empty now; what is written later arrives."""
    last = world.sequences("orders", -1)[-1]
    iterator = world.iterator("orders", -1, "AFTER_SEQUENCE_NUMBER", SequenceNumber=last)
    before = world.follow(iterator)
    world.put("orders", id="f", line=1)
    return before, world.follow(iterator), world.follow(iterator)


@step
def latest(world: World) -> Observation:
    iterator = world.iterator("orders", -1, "LATEST")
    before = world.follow(iterator)
    world.put("orders", id="f", line=2)
    return before, world.follow(iterator), world.read("orders", 0, "LATEST")


@step
def an_iterator_taken_before_the_roll(world: World) -> Observation:
    iterator = world.iterator("orders", -1, "LATEST")
    world.put("orders", id="f", line=3)
    world.roll()
    world.put("orders", id="f", line=4)
    return world.follow(iterator)


@step
def a_future_number(world: World) -> Observation:
    number = f"{int(world.sequences('orders', -1)[-1]) + 10**9:021d}"
    at = world.read("orders", -1, "AT_SEQUENCE_NUMBER", SequenceNumber=number)
    return at, world.read("orders", -1, "AFTER_SEQUENCE_NUMBER", SequenceNumber=number)


@step
def above_a_closed_shards_end(world: World) -> Observation:
    end = int(world.listed("orders")[0]["SequenceNumberRange"]["EndingSequenceNumber"])
    return world.read("orders", 0, "AT_SEQUENCE_NUMBER", SequenceNumber=f"{end + 1:021d}")


@step
def below_a_shards_start(world: World) -> Observation:
    start = int(world.listed("orders")[2]["SequenceNumberRange"]["StartingSequenceNumber"])
    return world.read("orders", 2, "AFTER_SEQUENCE_NUMBER", SequenceNumber=f"{start - 1:021d}")


@step
def a_sequence_number_that_is_none(world: World) -> Observation:
    return world.read("orders", 0, "AT_SEQUENCE_NUMBER", SequenceNumber="a" * 21)


@step
def a_sequence_number_of_thirty_digits(world: World) -> Observation:
    return world.read("orders", -1, "AFTER_SEQUENCE_NUMBER", SequenceNumber="9" * 30)


@step
def no_sequence_number(world: World) -> Observation:
    return world.read("orders", 0, "AT_SEQUENCE_NUMBER")


@step
def at_timestamp(world: World) -> Observation:
    return world.read("orders", 0, "AT_TIMESTAMP", Timestamp=1)


@step
def an_iterator_type_that_is_none(world: World) -> Observation:
    return world.read("orders", 0, "OLDEST")


@step
def unknown_shards(world: World) -> Observation:
    where = {"StreamArn": world.arns["orders"], "ShardIteratorType": "TRIM_HORIZON"}
    bogus = "shardId-00000001414576573621-f55eea83"
    return world.refusal("GetShardIterator", **where, ShardId=bogus)


@step
def unknown_streams(world: World) -> Observation:
    arn = world.arns["orders"].rpartition("/")[0] + "/2020-01-01T00:00:00.000"
    where = {"StreamArn": arn, "ShardId": world.shard("orders", 0), "ShardIteratorType": "TRIM_HORIZON"}
    return world.refusal("DescribeStream", StreamArn=arn), world.refusal("GetShardIterator", **where)


@step
def limits(world: World) -> Observation:
    iterator = world.iterator("orders", 0, "TRIM_HORIZON")
    return [
        *(world.refusal("GetRecords", ShardIterator=iterator, Limit=n) for n in (-1, 0, 1, 1000, 1001)),
        *(world.refusal("DescribeStream", StreamArn=world.arns["orders"], Limit=n) for n in (-1, 0, 1, 100, 101)),
        *(world.refusal("Scan", TableName="orders", Limit=n) for n in (-1, 0, 1)),
    ]


@step
def one_record_a_page(world: World) -> Observation:
    """The end is told together with the last record."""
    iterator: str | None = world.iterator("orders", 0, "TRIM_HORIZON")
    sizes = []
    while iterator is not None:
        page = world.ask("GetRecords", ShardIterator=iterator, Limit=1)
        sizes.append(len(page["Records"]))
        iterator = page.get("NextShardIterator")
    return sizes


@step
def garbage_for_an_iterator(world: World) -> Observation:
    return world.refusal("GetRecords", ShardIterator="garbage")


@step
def listing_page_by_page(world: World) -> Observation:
    found, pages = [], 0
    after: dict[str, str] = {}
    while True:
        page = world.ask("DescribeStream", StreamArn=world.arns["orders"], Limit=2, **after)["StreamDescription"]
        found += [s["ShardId"] for s in page["Shards"]]
        pages += 1
        if "LastEvaluatedShardId" not in page:
            break
        after = {"ExclusiveStartShardId": page["LastEvaluatedShardId"]}
    return pages, found == [s["ShardId"] for s in world.listed("orders")]


@step
def items_that_are_refused(world: World) -> Observation:
    key = {"id": {"S": "x"}, "line": {"N": "1"}}
    bad: list[dict[str, Any]] = [
        {"id": {"S": "x"}},
        key | {"line": {"S": "1"}},
        key | {"id": {"S": ""}},
        key | {"v": {"SS": []}},
        key | {"v": {"SS": ["a", "a"]}},
        key | {"v": {"N": "1" * 39}},
        key | {"v": {"N": "NaN"}},
        key | {"v": {"N": "Infinity"}},
        key | {"v": {"N": "1E126"}},
        key | {"v": {"N": "1E-131"}},
        key | {"v": {"S": "x" * 410_000}},
        key | {"v": {}},
        key | {"v": {"NULL": False}},
        key | {"": {"S": "x"}},
        key | {"v": {"M": {"": {"S": "x"}}}},
        key | {"v": nested(30)},
        key | {"v": nested(31)},
        key | {"v": nested(32)},
    ]
    return [world.refusal("PutItem", TableName="orders", Item=item) for item in bad]


def nested(levels: int) -> dict[str, Any]:
    found: dict[str, Any] = {"L": []}
    for _ in range(levels):
        found = {"L": [found]}
    return found


@step
def keys_that_are_refused(world: World) -> Observation:
    bad: list[dict[str, Any]] = [{"id": {"S": "x"}}, typed({"id": "x", "line": 1, "z": 1}), typed({"id": 1, "line": 1})]
    calls = ("GetItem", "DeleteItem")
    found = [world.refusal(call, TableName="orders", Key=key) for call in calls for key in bad]
    return found, [world.refusal("Scan", TableName="orders", ExclusiveStartKey=key) for key in bad]


@step
def batches_that_are_refused(world: World) -> Observation:
    key = typed({"id": "x", "line": 1})
    keys = [typed({"id": "x", "line": n}) for n in range(101)]
    deletes = [{"DeleteRequest": {"Key": k}} for k in keys[:26]]
    return [
        world.refusal("BatchWriteItem", RequestItems={"orders": [{"DeleteRequest": {"Key": key}}] * 2}),
        world.refusal("BatchWriteItem", RequestItems={"orders": deletes}),
        world.refusal("BatchGetItem", RequestItems={"orders": {"Keys": [key, key]}}),
        world.refusal("BatchGetItem", RequestItems={"orders": {"Keys": keys}}),
    ]


@step
def unknown_tables(world: World) -> Observation:
    key = typed({"id": "x", "line": 1})
    calls: list[tuple[str, dict[str, Any]]] = [
        ("DescribeTable", {}),
        ("PutItem", {"Item": key}),
        ("DeleteItem", {"Key": key}),
        ("Scan", {}),
        ("DeleteTable", {}),
    ]
    found = [world.refusal(call, TableName="nowhere", **request) for call, request in calls]
    return [*found, world.refusal("BatchGetItem", RequestItems={"nowhere": {"Keys": [key]}})]


@step
def segments(world: World) -> Observation:
    """Every item is in exactly one segment, page by page."""
    found = []
    for segment in range(4):
        request: dict[str, Any] = {"TableName": "orders", "Segment": segment, "TotalSegments": 4, "Limit": 1}
        while True:
            page = world.ask("Scan", **request, ConsistentRead=True)
            found += [(i["id"]["S"], i["line"]["N"]) for i in page["Items"]]
            if "LastEvaluatedKey" not in page:
                break
            request["ExclusiveStartKey"] = page["LastEvaluatedKey"]
    return sorted(found)


@step
def segments_that_are_refused(world: World) -> Observation:
    bad: list[dict[str, int]] = [
        {"Segment": 4, "TotalSegments": 4},
        {"Segment": -1, "TotalSegments": 4},
        {"Segment": 0, "TotalSegments": 0},
        {"Segment": 0},
        {"TotalSegments": 4},
    ]
    return [world.refusal("Scan", TableName="orders", **request) for request in bad]


@step
def capacity(world: World) -> Observation:
    world.create("heavy", None)
    for name in "abc":
        world.put("heavy", id=name, text="x" * 6000)
    found = []
    for consistent in (True, False):
        page = world.ask("Scan", TableName="heavy", ConsistentRead=consistent, ReturnConsumedCapacity="TOTAL")
        found.append(page["ConsumedCapacity"]["CapacityUnits"])
    return found


@step
def scan_pages_of_one_megabyte(world: World) -> Observation:
    """The item that crosses the limit is the page's last one; a page that is full at the very end is not the last."""
    world.create("huge", None)
    for n in range(8):
        world.put("huge", id=f"big{n}", text="x" * 300_000)
    counts: list[int] = []
    request: dict[str, Any] = {}
    while True:
        page = world.ask("Scan", TableName="huge", **request)
        counts.append(page["Count"])
        if "LastEvaluatedKey" not in page:
            return counts
        request = {"ExclusiveStartKey": page["LastEvaluatedKey"]}


@step
def view_types(world: World) -> Observation:
    found = {}
    for view in ("KEYS_ONLY", "NEW_IMAGE", "OLD_IMAGE", "NEW_AND_OLD_IMAGES"):
        world.create(view, view)
        world.put(view, id="a", v=1)
        world.put(view, id="a", v=2)
        world.delete(view, id="a")
        found[view] = world.read(view, 0, "TRIM_HORIZON")
    return found


@step
def a_stream_that_is_disabled_and_enabled_again(world: World) -> Observation:
    table = "NEW_AND_OLD_IMAGES"
    iterator = world.iterator(table, 0, "TRIM_HORIZON")
    world.ask("UpdateTable", TableName=table, StreamSpecification={"StreamEnabled": False})
    world.put(table, id="unseen")
    description = world.ask("DescribeStream", StreamArn=world.arns[table])["StreamDescription"]
    closed = ["EndingSequenceNumber" in s["SequenceNumberRange"] for s in description["Shards"]]
    again = {"StreamEnabled": True, "StreamViewType": "KEYS_ONLY"}
    old, enabled = world.follow(iterator), world.ask("DescribeTable", TableName=table)["Table"]
    world.ask("UpdateTable", TableName=table, StreamSpecification=again)
    arn = world.ask("DescribeTable", TableName=table)["Table"]["LatestStreamArn"]
    return (
        (description["StreamStatus"], closed, old),
        (
            enabled.get("StreamSpecification", {}).get("StreamEnabled", False),
            enabled["LatestStreamArn"] == world.arns[table],
        ),
        (arn != world.arns[table], world.refusal("UpdateTable", TableName=table, StreamSpecification=again)),
    )


@step
def what_a_new_table_refuses(world: World) -> Observation:
    no_stream = {"StreamEnabled": False}
    return [
        world.refusal("UpdateTable", TableName="heavy", StreamSpecification=no_stream),
        _creation(world, "orders"),
        _creation(world, "strange", "SOME_IMAGES"),
    ]


def _creation(world: World, table: str, view: str = "NEW_IMAGE") -> Observation:
    try:
        world.create(table, view)
    except AwsError as e:
        return e.code
    return None


@step
def a_deleted_table(world: World) -> Observation:
    world.ask("DeleteTable", TableName="KEYS_ONLY")
    return world.refusal("DescribeTable", TableName="KEYS_ONLY")


@step
def iterators_of_14_and_16_minutes(world: World) -> Observation:
    iterator = world.iterator("orders", 0, "TRIM_HORIZON")
    world.advance(14)
    before = world.refusal("GetRecords", ShardIterator=iterator)
    world.advance(2)
    return before, world.refusal("GetRecords", ShardIterator=iterator)


@step
def an_open_shard_that_is_partly_trimmed(world: World) -> Observation:
    world.roll()
    for n in range(3):
        world.put("orders", id="old", line=n)
    old = world.sequences("orders", -1)
    world.advance(25 * 60)
    world.put("orders", id="new", line=1)
    return {
        "horizon": world.read("orders", -1, "TRIM_HORIZON"),
        "at": [world.read("orders", -1, "AT_SEQUENCE_NUMBER", SequenceNumber=n) for n in old],
        "after": [world.read("orders", -1, "AFTER_SEQUENCE_NUMBER", SequenceNumber=n) for n in old],
    }


@step
def closed_shards_that_are_wholly_trimmed(world: World) -> Observation:
    """The shard that closed 25 hours ago: whether it is listed, and what reading it says."""
    shards = world.listed("orders")
    closed = [at for at, s in enumerate(shards) if "EndingSequenceNumber" in s["SequenceNumberRange"]]
    return len(shards), [world.read("orders", at, "TRIM_HORIZON") for at in closed]


@step
def an_open_shard_that_is_wholly_trimmed(world: World) -> Observation:
    iterator = world.iterator("orders", -1, "TRIM_HORIZON")
    world.advance(10)
    world.follow(iterator)
    world.advance(25 * 60)
    horizon = world.read("orders", -1, "TRIM_HORIZON")
    world.put("orders", id="newer", line=1)
    return horizon, world.read("orders", -1, "TRIM_HORIZON")
