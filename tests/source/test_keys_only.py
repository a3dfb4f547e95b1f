"""The items behind a KEYS_ONLY stream's records."""

from __future__ import annotations

import random
from collections.abc import Generator, Sequence, Set
from decimal import Decimal
from typing import Any

import orjson
import pytest

from replicator.aws.client import Client, answered
from replicator.change import Record
from replicator.errors import NotPermitted
from replicator.items.item import Item
from replicator.key import KeyAttribute, KeySchema
from replicator.source.decoding import RecordsDecoder
from replicator.source.keys_only import keys_for, looked_up, portion
from replicator.source.stream import Stream
from replicator.source.table import describe_table
from replicator.testing.dynamodb import DynamoDB

KEYS = KeySchema((KeyAttribute("id", "S"), KeyAttribute("n", "N")))


@pytest.fixture
def db() -> DynamoDB:
    made = DynamoDB(now=lambda: 0.0, random=random.Random(1))
    made.create_table("orders", keys={"id": "S", "n": "N"}, view="KEYS_ONLY")
    return made


def put(db: DynamoDB, *ids: str, text: str = "now") -> None:
    for id in ids:
        db.put("orders", {"id": id, "n": Decimal("1.0"), "text": text})


def stream() -> Stream:
    return Stream("arn", "orders", KEYS, RecordsDecoder(KEYS), lambda: 0.0, random.Random(2), keys_only=True)


def records(*ids: str) -> list[Record]:
    return [Record((id, "1"), str(at), 0.0) for at, id in enumerate(ids, start=1)]


def waiting_for(reason: str, _: bool) -> str:
    return reason


def steps(client: Client, found: Sequence[Record], removed: Set[int] = frozenset()) -> tuple[list[str], list[Any]]:
    """What was yielded between calls, and the texts of the resulting images."""

    def whole() -> Generator[Any, Any, None]:
        yield (yield from looked_up(stream(), found, removed, waiting_for))

    *waits, last = answered(client, whole())
    assert [(r.key, r.sequence) for r in last] == [(r.key, r.sequence) for r in found]
    return waits, [r.new and Item(bytes(r.new))["text"] for r in last]


def test_records_get_the_images_of_their_items(db: DynamoDB) -> None:
    put(db, "a", "b")
    assert steps(db, records("a", "b")) == ([], ["now", "now"])


def test_only_the_last_record_of_a_key_is_looked_up(db: DynamoDB) -> None:
    put(db, "a", "b")
    assert steps(db, records("a", "b", "a")) == ([], [None, "now", "now"])


def test_a_removal_is_not_looked_up_even_if_the_item_is_there_again(db: DynamoDB) -> None:
    put(db, "a")
    assert steps(db, records("a"), {0}) == ([], [None])


def test_an_item_that_is_removed_last_stays_removed(db: DynamoDB) -> None:
    put(db, "a")
    assert steps(db, records("a", "a"), {1}) == ([], [None, None])


def test_an_item_that_came_back_after_its_removal_is_looked_up(db: DynamoDB) -> None:
    put(db, "a")
    assert steps(db, records("a", "a"), {0}) == ([], [None, "now"])


def test_an_item_that_no_longer_exists_is_a_removal(db: DynamoDB) -> None:
    assert steps(db, records("gone")) == ([], [None])


def test_nothing_to_look_up_makes_no_call(db: DynamoDB) -> None:
    steps(db, records("a", "b"), {0, 1})
    assert db.calls["BatchGetItem"] == 0


def test_a_hundred_keys_a_call(db: DynamoDB) -> None:
    ids = [f"i{n}" for n in range(250)]
    put(db, *ids)
    assert steps(db, records(*ids)) == ([""] * 2, ["now"] * 250)
    assert db.calls["BatchGetItem"] == 3


def test_unprocessed_keys_are_requested_again(db: DynamoDB) -> None:
    put(db, "a", "b", "c")
    db.unprocessed(at_most=1, times=2)
    throttled = "BatchGetItem is throttled"
    assert steps(db, records("a", "b", "c")) == ([throttled, throttled], ["now"] * 3)


def report(waiting_for: str, progress: bool) -> tuple[str, bool]:
    return waiting_for, progress


def test_progress_is_reported(db: DynamoDB) -> None:
    put(db, "a", "b")
    db.unprocessed(at_most=0, times=1)
    db.unprocessed(at_most=1, times=1)
    throttled = "BatchGetItem is throttled"
    found = list(answered(db, looked_up(stream(), records("a", "b"), frozenset(), report)))
    assert found == [(throttled, False), (throttled, True)]


def test_a_full_response_leaves_keys_for_an_immediate_next_call(db: DynamoDB) -> None:
    ids = [f"i{n}" for n in range(50)]
    put(db, *ids, text="x" * 380_000)
    found = list(answered(db, looked_up(stream(), records(*ids), frozenset(), report)))
    assert found == [("", True)]


def test_records_are_portioned_by_the_keys_that_they_take() -> None:
    found = records("a", "b", "a", "c", "d")
    assert [portion(found, frozenset(), n) for n in (1, 2, 3, 4)] == [1, 3, 4, 5]
    assert [portion(found, {1, 3}, n) for n in (1, 2)] == [4, 5]


def test_the_next_look_up_requests_a_page_of_images() -> None:
    def images(*sizes: int) -> list[Record]:
        return [Record(("k", "1"), "1", 0.0, b"x" * size if size else None) for size in sizes]

    cases = [images(100_000), images(390_000, 390_000), images(3_000_000), images(10, 20), images(0), images()]
    assert [keys_for(each, 7) for each in cases] == [10, 2, 1, 100, 7, 7]


def test_unprocessed_keys_do_not_displace_others(db: DynamoDB) -> None:
    ids = [f"i{n}" for n in range(150)]
    put(db, *ids)
    db.unprocessed(at_most=30, times=1)
    assert steps(db, records(*ids))[1] == ["now"] * 150


def test_a_throttled_call_is_reported_and_retried(db: DynamoDB) -> None:
    put(db, "a")
    db.fail("BatchGetItem", message="slow down")
    (why,), texts = steps(db, records("a"))
    assert why == "BatchGetItem on orders: ProvisionedThroughputExceededException: slow down"
    assert texts == ["now"]


def of_table(db: DynamoDB) -> Stream:
    identity = describe_table(db, "orders").identity
    return Stream("arn", "orders", KEYS, RecordsDecoder(KEYS), lambda: 0.0, random.Random(2), True, None, identity)


def test_the_table_is_checked_once_all_items_are_there(db: DynamoDB) -> None:
    put(db, *(f"k{n}" for n in range(150)))
    before = db.calls.copy()
    list(answered(db, looked_up(of_table(db), records(*(f"k{n}" for n in range(150))), frozenset(), report)))
    assert (db.calls - before)["BatchGetItem"] == 2
    assert (db.calls - before)["DescribeTable"] == 2  # once for the identity


@pytest.mark.parametrize("code", ["ThrottlingException", "ResourceNotFoundException"])
def test_no_images_are_held_while_it_is_not_known_whose_they_are(db: DynamoDB, code: str) -> None:
    """DescribeTable may not find a new table for seconds, although its items can be read."""
    put(db, "a")
    stream = of_table(db)
    db.fail("DescribeTable", code)
    before = db.calls.copy()
    (waiting,) = answered(db, looked_up(stream, records("a"), frozenset(), report))
    assert ("DescribeTable" in waiting[0], waiting[1]) == (True, False)
    assert (db.calls - before)["BatchGetItem"] == 2


def test_a_table_that_is_not_there_yet_is_waited_for(db: DynamoDB) -> None:
    put(db, "a")
    stream = of_table(db)
    db.fail("BatchGetItem", "ResourceNotFoundException")
    (waiting,) = answered(db, looked_up(stream, records("a"), frozenset(), report))
    assert "BatchGetItem on orders" in waiting[0]


def test_a_denied_call_is_not_retried(db: DynamoDB) -> None:
    db.fail("BatchGetItem", "AccessDeniedException")
    with pytest.raises(NotPermitted, match="dynamodb:BatchGetItem on orders"):
        steps(db, records("a"))


def test_look_ups_are_consistent(db: DynamoDB) -> None:
    put(db, "a", text="before")
    db.lag_reads("orders")
    put(db, "a", text="after")
    assert steps(db, records("a"))[1] == ["after"]


def test_a_number_in_a_key_is_the_same_key_however_it_is_spelled() -> None:
    class Spelling:
        def call(self, operation: str, request: Any) -> bytes:
            image = {"id": {"S": "a"}, "n": {"N": "1.00"}, "text": {"S": "now"}}
            return orjson.dumps({"Responses": {"orders": [image]}})

    assert steps(Spelling(), records("a")) == ([], ["now"])


@pytest.mark.parametrize(
    "answer",
    [
        b"<html>proxy</html>",
        b'{"Responses":{"orders":[{"id":{"S":"a"}}]}}',
        b'{"Responses":{"orders":["a"]}}',
        b'{"Responses":{},"UnprocessedKeys":{"orders":{"Keys":[{"id":{"S":"a"}}]}}}',
        b'{"Responses":{},"UnprocessedKeys":{"orders":[]}}',
    ],
)
def test_a_response_that_is_not_dynamodbs_is_retried(db: DynamoDB, answer: bytes) -> None:
    answers = [answer]

    class Proxied:
        def call(self, operation: str, request: Any) -> bytes:
            return answers.pop() if answers else db.call(operation, request)

    put(db, "a")
    (why,), texts = steps(Proxied(), records("a"))
    assert "is not DynamoDB JSON" in why
    assert texts == ["now"]


def test_a_record_of_an_item_that_no_longer_exists_counts_as_expired(db: DynamoDB) -> None:
    """Its removal is still to come and will tell: where expirations are ignored, nothing is removed before."""
    put(db, "a")

    def whole() -> Generator[Any, Any, None]:
        yield (yield from looked_up(stream(), records("a", "gone", "gone", "a", "b", "b"), {5}, waiting_for))

    *_, last = answered(db, whole())
    assert [r.expired for r in last] == [False, True, True, False, True, False]
