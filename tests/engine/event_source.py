"""An event source mapping of AWS Lambda over a DynamoDB stream, as AWS documents it, on the in-memory DynamoDB."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from replicator.aws.errors import AwsError
from replicator.testing.dynamodb import DynamoDB


@dataclass
class Reading:
    """How far the mapping has come in a shard. ``after``: the sequence number of the last record it is done with."""

    parent: str | None
    after: int = -1
    ended: bool = False
    attempts: int = 0


@dataclass
class EventSource:
    """Delivers batches of one shard at a time, in order, a child after its parent; ``batch``: records at most."""

    source: DynamoDB
    table: str
    batch: int = 100
    shards: dict[str, Reading] = field(default_factory=dict)

    @property
    def arn(self) -> str:
        return self.source.stream_arn(self.table)

    def call(self, operation: str, **request: Any) -> Any:
        """As often as it is throttled."""
        while True:
            try:
                return orjson.loads(self.source.call(operation, request))
            except AwsError as e:
                if e.code != "ProvisionedThroughputExceededException":
                    raise

    def discover(self) -> None:
        described = self.call("DescribeStream", StreamArn=self.arn)["StreamDescription"]
        for shard in described["Shards"]:
            self.shards.setdefault(shard["ShardId"], Reading(shard.get("ParentShardId")))

    def ready(self) -> list[str]:
        """Shards that may be read: neither ended nor behind a parent that has not."""
        self.discover()
        return [id for id, s in self.shards.items() if not s.ended and self._is_done(s.parent)]

    def newest(self) -> list[str]:
        """Shards without a child."""
        self.discover()
        return [id for id in self.shards if all(s.parent != id for s in self.shards.values())]

    def _is_done(self, parent: str | None) -> bool:
        return parent is None or parent not in self.shards or self.shards[parent].ended

    def event(self, shard: str) -> dict[str, Any] | None:
        """The next batch of a shard; None if it has none now. Notices the shard's end."""
        at = self.shards[shard]
        try:
            records, end = self._records(shard)
        except AwsError as e:
            if e.code != "ResourceNotFoundException":
                raise
            records, end = [], True  # older than the stream keeps
        left = [r for r in records if int(r["dynamodb"]["SequenceNumber"]) > at.after][: self.batch]
        if not left:
            at.ended = end
            return None
        return event(shard, self.arn, left)

    def _records(self, shard: str) -> tuple[list[Any], bool]:
        place = {"StreamArn": self.arn, "ShardId": shard, "ShardIteratorType": "TRIM_HORIZON"}
        iterator, records = self.call("GetShardIterator", **place)["ShardIterator"], []
        while True:
            page = self.call("GetRecords", ShardIterator=iterator)
            records += page["Records"]
            following = page.get("NextShardIterator")
            if following is None or not page["Records"]:
                return records, following is None
            iterator = following

    def done(self, shard: str, delivered: dict[str, Any], response: dict[str, Any]) -> None:
        """Move on as the response says: the lowest record that failed, and all after it, come again."""
        numbers = [int(r["dynamodb"]["SequenceNumber"]) for r in delivered["Records"]]
        failed = [int(f["itemIdentifier"]) for f in response["batchItemFailures"]]
        self.shards[shard].after = numbers[-1] if not failed else max([-1, *(n for n in numbers if n < min(failed))])

    def drop(self, shard: str, delivered: dict[str, Any]) -> None:
        """Lambda gives up a batch: its retries are used up, or it is too old."""
        self.shards[shard].after = int(delivered["Records"][-1]["dynamodb"]["SequenceNumber"])


def event(shard: str, arn: str, records: Sequence[Any]) -> dict[str, Any]:
    """What the function is invoked with, for records as GetRecords returns them."""
    return {
        "Records": [_record(r, arn) for r in records],
        "window": {"start": "2026-01-01T00:00:00Z", "end": "2026-01-01T00:01:00Z"},
        "state": {},
        "shardId": shard,
        "eventSourceARN": arn,
        "isFinalInvokeForWindow": False,
        "isWindowTerminatedEarly": False,
    }


def _record(record: Any, arn: str) -> dict[str, Any]:
    stored = {
        **record["dynamodb"],
        "ApproximateCreationDateTime": float(record["dynamodb"]["ApproximateCreationDateTime"]),
    }
    identity = record.get("userIdentity")
    lower = {} if identity is None else {"userIdentity": {k[0].lower() + k[1:]: v for k, v in identity.items()}}
    kept = {k: v for k, v in record.items() if k not in ("dynamodb", "userIdentity")}
    return {**kept, "dynamodb": stored, **lower, "eventSourceARN": arn}
