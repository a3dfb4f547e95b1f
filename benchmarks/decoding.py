"""From the body of GetRecords to what Postgres is sent, without any server: the product, and what boto3 makes of it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle
from typing import Any

import boto3
from boto3.dynamodb.types import TypeDeserializer
from botocore.awsrequest import AWSResponse

from benchmarks import data, destination, source
from benchmarks.product import CREDENTIALS
from connectors.postgres.encode import Encoder
from connectors.postgres.shape import shapes
from replicator.aws import connect
from replicator.batch import Batch
from replicator.compaction import Circumstances, Filing, ParkedItems, compact_latest, latest
from replicator.config import Source
from replicator.run import calm_down
from replicator.stream import RecordsDecoder
from replicator.transform import Hook
from replicator.wire import Wire

PAGES = 8
EPOCH = 1024


def measured(rounds: int) -> dict[str, list[float]]:
    """Microseconds of CPU a change, for each way and round."""
    os.environ.update(CREDENTIALS)
    bodies = [body for _, body in source.bodies(source.filled(PAGES * 1000, 1))][:PAGES]
    calm_down()
    client = boto3.client("dynamodbstreams", region_name="us-east-1")
    wire = connect(Source(table=data.TABLE, region="us-east-1"))
    for each in (client, wire._clients["dynamodbstreams"]):
        _canned(each, bodies)
    ways: dict[str, Callable[[], int]] = {
        "boto3 + TypeDeserializer": lambda: _boto3(client),
        "no hook": lambda: _product(wire, None, data.TABLE),
        "hook (item | {...})": lambda: _product(wire, data.hook, data.TABLE),
        "hook that makes a dictionary": lambda: _product(wire, data.rebuilding_hook, data.TABLE),
        "no hook, jsonb document": lambda: _product(wire, None, data.DOCUMENTS),
    }
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            started = time.process_time()
            changes = way()
            found[name].append((time.process_time() - started) / changes * 1e6)
    return found


def _canned(client: Any, bodies: Sequence[bytes]) -> None:
    """The client parses these bodies, over and over, and no network is there."""
    left = cycle(bodies)

    class Raw:
        def stream(self) -> Iterator[bytes]:
            yield next(left)

    client.meta.events.register("before-send", lambda request, **_: AWSResponse(request.url, 200, {}, Raw()))


def _boto3(client: Any) -> int:
    decode = TypeDeserializer().deserialize
    changes = 0
    for _ in range(PAGES):
        records = client.get_records(ShardIterator="x")["Records"]
        changes += len(records)
        for change in (record["dynamodb"] for record in records):
            {name: decode(v) for name, v in change.get("NewImage", {}).items()}
    return changes


def _product(wire: Wire, function: Callable[..., Any] | None, table: str) -> int:
    hook = None if function is None else Hook("hook", function, "", False)
    decoder, filing = RecordsDecoder(destination.KEYS), Filing(hook, (table,))
    encoder = Encoder(shapes([destination.SHAPES[table]], "public"), "reject", "benchmark")
    changes = 0
    for _ in range(0, PAGES, 2):
        records = [r for _ in range(2) for r in decoder(wire.call("GetRecords", {"ShardIterator": "x"})).records]
        at = Circumstances({}, ParkedItems(), EPOCH, "shard:1", 0.0)
        found = compact_latest(latest(enumerate(records, changes + 1), EPOCH), filing, at)
        assert not encoder.encode(Batch([found.part("shard:1")])).rejections
        changes += len(records)
    return changes
