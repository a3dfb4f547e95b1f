"""One endpoint as the differential script sees it: what it answers, without what no two endpoints have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from replicator.aws.client import Client
from replicator.aws.errors import AwsError
from replicator.items.attributes import from_python

Observation = Any


@dataclass
class World:
    """An endpoint, how to roll its shards, and how to move its clock by minutes."""

    client: Client
    roll: Callable[[], None]
    advance: Callable[[float], None]
    arns: dict[str, str] = field(default_factory=dict)

    def ask(self, operation: str, **request: Any) -> dict[str, Any]:
        found: dict[str, Any] = orjson.loads(self.client.call(operation, request))
        return found

    def refusal(self, operation: str, **request: Any) -> Observation:
        """The code of the error that answers a call, None if it is answered."""
        try:
            self.ask(operation, **request)
        except AwsError as e:
            return e.code
        return None

    def create(self, table: str, view: str | None = "NEW_AND_OLD_IMAGES", **keys: str) -> None:
        names = keys or {"id": "S"}
        request: dict[str, Any] = {
            "TableName": table,
            "AttributeDefinitions": [{"AttributeName": n, "AttributeType": k} for n, k in names.items()],
            "KeySchema": [{"AttributeName": n, "KeyType": t} for n, t in zip(names, ("HASH", "RANGE"), strict=False)],
            "BillingMode": "PAY_PER_REQUEST",
        }
        if view is not None:
            request["StreamSpecification"] = {"StreamEnabled": True, "StreamViewType": view}
        self.ask("CreateTable", **request)
        self.arns[table] = self.ask("DescribeTable", TableName=table)["Table"].get("LatestStreamArn", "")

    def put(self, table: str, **item: object) -> None:
        self.ask("PutItem", TableName=table, Item=typed(item))

    def delete(self, table: str, **key: object) -> None:
        self.ask("DeleteItem", TableName=table, Key=typed(key))

    def update(self, table: str, key: Mapping[str, object], expression: str, **values: object) -> None:
        more = {"ExpressionAttributeValues": {f":{n}": from_python(v) for n, v in values.items()}} if values else {}
        self.ask("UpdateItem", TableName=table, Key=typed(key), UpdateExpression=expression, **more)

    def listed(self, table: str) -> list[dict[str, Any]]:
        """The stream's shards, oldest first."""
        shards = self.ask("DescribeStream", StreamArn=self.arns[table])["StreamDescription"]["Shards"]
        return sorted(shards, key=lambda shard: str(shard["ShardId"]))

    def shard(self, table: str, at: int) -> str:
        return str(self.listed(table)[at]["ShardId"])

    def iterator(self, table: str, at: int, type: str, **more: Any) -> str:
        where = {"StreamArn": self.arns[table], "ShardId": self.shard(table, at), "ShardIteratorType": type}
        return str(self.ask("GetShardIterator", **where, **more)["ShardIterator"])

    def read(self, table: str, at: int, type: str, **more: Any) -> Observation:
        """What follows an iterator in the shard: its records, and whether the shard ended; or who refused it, how."""
        try:
            iterator = self.iterator(table, at, type, **more)
        except AwsError as e:
            return f"GetShardIterator: {e.code}"
        return self.follow(iterator)

    def follow(self, iterator: str) -> Observation:
        try:
            pages = list(self._pages(iterator))
        except AwsError as e:
            return f"GetRecords: {e.code}"
        records = [change(r) for page in pages for r in page["Records"]]
        return {"records": records, "ended": "NextShardIterator" not in pages[-1]}

    def sequences(self, table: str, at: int) -> list[str]:
        pages = self._pages(self.iterator(table, at, "TRIM_HORIZON"))
        return [r["dynamodb"]["SequenceNumber"] for page in pages for r in page["Records"]]

    def _pages(self, iterator: str) -> Iterator[dict[str, Any]]:
        """Pages up to the shard's end, or to the first empty one: nothing is written meanwhile."""
        page: dict[str, Any] = {"Records": [None], "NextShardIterator": iterator}
        while page["Records"] and "NextShardIterator" in page:
            page = self.ask("GetRecords", ShardIterator=page["NextShardIterator"], Limit=1000)
            yield page


def typed(item: Mapping[str, object]) -> dict[str, Any]:
    return {name: from_python(v) for name, v in item.items()}


def change(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record without its ids, numbers, time and region."""
    kept = {k: v for k, v in record["dynamodb"].items() if k in ("Keys", "NewImage", "OldImage", "StreamViewType")}
    named = ("eventName", "eventSource", "eventVersion", "userIdentity")
    return {k: v for k, v in record.items() if k in named} | {k: unordered(v) for k, v in kept.items()}


def unordered(value: Any) -> Any:
    """Sets have no order; lists keep theirs."""
    if isinstance(value, Mapping):
        return {k: sorted(v) if k in ("SS", "NS", "BS") else unordered(v) for k, v in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [unordered(v) for v in value]
    return value
