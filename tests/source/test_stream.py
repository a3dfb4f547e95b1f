"""Responses to GetRecords and DescribeStream, as DynamoDB and as other endpoints send them."""

from __future__ import annotations

import random
from collections.abc import Generator
from typing import Any

import orjson
import pytest

from replicator.aws.client import Call, answered
from replicator.change import Listing
from replicator.errors import TransientError
from replicator.key import KeyAttribute, KeySchema
from replicator.source.decoding import KeyReader, Records, RecordsDecoder
from replicator.source.stream import Stream, children, listing
from replicator.source.table import describe_table
from replicator.testing.dynamodb import DynamoDB, imageless

KEYS = KeySchema((KeyAttribute("id", "S"),))
IMAGE = {"id": {"S": "a"}, "v": {"N": "1"}}
WITHOUT_IMAGE = "a change that has no NewImage and is not a removal"


def records(*changes: dict[str, Any], images: bool = True, **page: Any) -> Records:
    """A decoded response; ``changes``: the members of its records besides key and sequence number."""
    made = []
    for n, change in enumerate(changes):
        event: dict[str, Any] = {name: change.pop(name) for name in ("eventName", "userIdentity") if name in change}
        stored: dict[str, Any] = {"Keys": {"id": {"S": "a"}}, "SequenceNumber": str(n), **change}
        made.append({**event, "dynamodb": stored})
    body = orjson.dumps({"Records": made, "NextShardIterator": "next", **page})
    return RecordsDecoder(KEYS, images=images)(body)


@pytest.mark.parametrize("more", [{}, {"NewImage": IMAGE}, {"NewImage": None}], ids=["none", "shown", "null"])
def test_a_removal_removes_its_item_whatever_image_it_shows(more: dict[str, Any]) -> None:
    found = records({"eventName": "REMOVE", "OldImage": IMAGE, **more})
    assert (found.records[0].new, found.removals) == (None, frozenset({0}))
    assert bytes(found.records[0].old or b"") == orjson.dumps(IMAGE)


@pytest.mark.parametrize("event", ["INSERT", "MODIFY", "", None])
@pytest.mark.parametrize("more", [{}, {"NewImage": None}], ids=["none", "null"])
def test_a_change_without_its_new_image_is_an_error_and_no_removal(event: str | None, more: dict[str, Any]) -> None:
    removal = {"eventName": "REMOVE", "OldImage": IMAGE}
    with pytest.raises(TransientError, match=WITHOUT_IMAGE):
        records(removal, {"eventName": event, **more})


def test_a_stream_without_new_images_has_changes_without_them() -> None:
    found = records({"eventName": "MODIFY"}, {"eventName": "REMOVE"}, images=False)
    assert ([r.new for r in found.records], found.removals) == ([None, None], frozenset({1}))


def test_null_is_an_absent_value() -> None:
    absent = {"OldImage": None, "ApproximateCreationDateTime": None, "userIdentity": None, "eventName": None}
    found = records({"NewImage": IMAGE, **absent}, NextShardIterator=None)
    (record,) = found.records
    assert (record.old, record.created, record.expired, found.removals, found.next) == (
        None,
        0.0,
        False,
        frozenset(),
        None,
    )
    assert records(Records=None).records == []
    nobody = records({"NewImage": IMAGE, "userIdentity": {"PrincipalId": None, "Type": None}})
    assert not nobody.records[0].expired


@pytest.mark.parametrize("body", [b"{}", b'{"status":"ok"}', b'{"NextShardIterator":"next"}'])
def test_a_response_without_records_is_not_one_of_getrecords_and_ends_no_shard(body: bytes) -> None:
    with pytest.raises(TransientError, match="is not DynamoDB JSON"):
        RecordsDecoder(KEYS)(body)


@pytest.fixture
def source() -> DynamoDB:
    made = DynamoDB(now=lambda: 1_700_000_000.0, random=random.Random(1))
    made.create_table("orders", keys={"id": "S"})
    return made


def stream(source: DynamoDB) -> Stream:
    return Stream(source.stream_arn("orders"), "orders", KEYS, RecordsDecoder(KEYS), lambda: 1.0, random.Random(2))


REFUSALS = ["ValidationException", "SerializationException", "UnknownOperationException", "ResourceNotFoundException"]


@pytest.mark.parametrize("code", REFUSALS)
def test_where_an_endpoint_does_not_name_a_shards_children_all_shards_are_listed(source: DynamoDB, code: str) -> None:
    parent = source.open_shards("orders")[0]
    child = source.roll("orders", parent)
    source.fail("DescribeStream", code, times=None, when=lambda request: "ShardFilter" in request)
    found = [step for step in answered(source, children(stream(source), parent)) if isinstance(step, Listing)]
    assert [(one.complete, {shard.id for shard in one.shards}) for one in found] == [(True, {parent, child})]


def test_any_other_error_while_listing_children_is_raised(source: DynamoDB) -> None:
    source.fail("DescribeStream", "ThrottlingException", message="slowly")
    with pytest.raises(TransientError, match=r"DescribeStream on arn:.*ThrottlingException: slowly"):
        list(answered(source, children(stream(source), source.open_shards("orders")[0])))


class Nulls:
    """A client whose responses have null for whatever is absent."""

    def __init__(self, **described: Any) -> None:
        self._described = described

    def call(self, operation: str, request: Any) -> bytes:
        return orjson.dumps(self._described)


def test_null_is_an_absent_value_in_a_listing() -> None:
    shard = {"ShardId": "s", "ParentShardId": None, "SequenceNumberRange": None}
    described = {"StreamStatus": None, "StreamViewType": None, "LastEvaluatedShardId": None}
    some, none = Nulls(StreamDescription={"Shards": [shard], **described}), Nulls(StreamDescription={"Shards": None})
    at = Stream("arn", "orders", KEYS, RecordsDecoder(KEYS), lambda: 1.0, random.Random(2))
    (found,) = answered(some, listing(at))
    assert isinstance(found, Listing)
    assert [(s.id, s.parent, s.first, s.last) for s in found.shards] == [("s", None, None, None)]
    (empty,) = answered(none, listing(at))
    assert isinstance(empty, Listing)
    assert empty.shards == ()


def test_null_is_an_absent_value_in_a_tables_description() -> None:
    names = ("TableArn", "TableId", "CreationDateTime", "ItemCount", "TableSizeBytes", "LatestStreamArn")
    table = dict.fromkeys(names) | {"TableName": "orders", "StreamSpecification": {"StreamEnabled": None}}
    key = {"KeySchema": [{"AttributeName": "id", "KeyType": "HASH"}]}
    kinds = {"AttributeDefinitions": [{"AttributeName": "id", "AttributeType": "S"}]}
    found = describe_table(Nulls(Table={**table, **key, **kinds}), "orders")
    assert (found.arn, found.id, found.items, found.bytes, found.streaming) == ("", "", 0, 0, False)


@pytest.mark.parametrize("name", ['a"b', "a\\b", "a\nb"])
@pytest.mark.parametrize("kinds", [("S",), ("N",), ("S", "N")])
def test_a_key_attribute_may_have_any_name(name: str, kinds: tuple[str, ...]) -> None:
    names = [name, "other"][: len(kinds)]
    source = DynamoDB(now=lambda: 1_700_000_000.0, random=random.Random(1))
    source.create_table("orders", keys=dict(zip(names, kinds, strict=True)))
    source.put("orders", dict(zip(names, ["x" if kind == "S" else 7 for kind in kinds], strict=True)))
    keys = describe_table(source, "orders").keys
    (shard,) = source.open_shards("orders")
    at = {"StreamArn": source.stream_arn("orders"), "ShardId": shard, "ShardIteratorType": "TRIM_HORIZON"}
    iterator = orjson.loads(source.call("GetShardIterator", at))["ShardIterator"]
    found = RecordsDecoder(keys)(source.call("GetRecords", {"ShardIterator": iterator}))
    expected = tuple("x" if kind == "S" else "7" for kind in kinds)
    assert [record.key for record in found.records] == [expected]
    assert KeyReader(keys).of(found.records[0].new or b"") == expected


def test_the_in_memory_source_leaves_images_out_on_request(source: DynamoDB) -> None:
    source.put("orders", {"id": "a"})
    source.distort(imageless)
    parent = source.open_shards("orders")[0]

    def steps() -> Generator[Call | bool, bytes, None]:
        at = {"StreamArn": source.stream_arn("orders"), "ShardId": parent, "ShardIteratorType": "TRIM_HORIZON"}
        iterator = orjson.loads((yield Call("GetShardIterator", at)))["ShardIterator"]
        for _ in range(2):
            body = yield Call("GetRecords", {"ShardIterator": iterator})
            yield b"NewImage" in body

    assert list(answered(source, steps())) == [False, True]
