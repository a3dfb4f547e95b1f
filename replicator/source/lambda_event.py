"""Decodes what AWS Lambda invokes a function with: a batch of one shard's records, already parsed from JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import orjson

from replicator.change import Record
from replicator.errors import ConfigError, TransientError
from replicator.source.decoding import RecordsDecoder

NO_SHARD = (
    "the event does not say which shard it is from (no shardId): give the event source mapping a tumbling window, e.g. "
    "TumblingWindowInSeconds: 60. Lambda then delivers records as before, and names their shard"
)


class ShardBatch(msgspec.Struct, frozen=True):
    """Records of one shard, in the stream's order, each once. Empty at the end of a window.

    ``removals``: their sequence numbers. ``size``: in bytes.
    """

    shard: str
    stream_arn: str
    records: Sequence[Record]
    size: int
    removals: frozenset[str] = frozenset()


def is_batch(event: object) -> bool:
    """Whether an event source mapping sent this event. Schedules and people send others."""
    return isinstance(event, Mapping) and "Records" in event


def shard_batch(event: Mapping[str, Any], decode: RecordsDecoder) -> ShardBatch:
    """The batch of an event. ConfigError if it is not a batch of a DynamoDB stream with a window.

    The records are encoded again, so that one decoder reads all there are; numbers stay text in DynamoDB's JSON.
    """
    records = event["Records"]
    foreign = {r.get("eventSource") for r in records} - {"aws:dynamodb", None}
    if foreign:
        raise ConfigError(f"the event is not from a DynamoDB stream but from {', '.join(map(str, sorted(foreign)))}")
    shard = event.get("shardId")
    if not isinstance(shard, str) or not shard:
        raise ConfigError(NO_SHARD)
    body = orjson.dumps({"Records": records})
    try:
        decoded = decode(body)
    except TransientError as e:
        raise ConfigError(str(e).replace("the response to GetRecords", "the event")) from e
    arn = event.get("eventSourceARN") or next((r.get("eventSourceARN") for r in records), None)
    removals = frozenset(decoded.records[i].sequence for i in decoded.removals)
    by_number = {int(record.sequence): record for record in decoded.records}
    return ShardBatch(shard, arn or "", [by_number[n] for n in sorted(by_number)], len(body), removals)
