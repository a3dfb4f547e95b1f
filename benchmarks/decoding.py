"""CPU cost from the body of GetRecords to the data sent to Postgres, without servers: replicator and boto3."""

from __future__ import annotations

import os
import pickle
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import boto3
from boto3.dynamodb.types import TypeDeserializer
from botocore.awsrequest import AWSResponse

from benchmarks import data, destination, source
from benchmarks.product import CREDENTIALS
from connectors.postgres.encode import Encoder
from connectors.postgres.table_schema import shapes
from replicator.aws.boto import connect
from replicator.aws.client import Call
from replicator.aws.http_client import HttpClient
from replicator.aws.http_connection import HttpConnection
from replicator.batch import Batch
from replicator.config.settings import Source
from replicator.engine.run import tune_allocator
from replicator.hooks.hook import DocumentMapping, Hook
from replicator.pipeline.compaction import BatchContext, compact_latest, latest
from replicator.pipeline.parked import ParkedItems
from replicator.source.decoding import RecordsDecoder

PAGES = 8
EPOCH = 1024
LEAST = 0.5  # seconds of CPU time per variant and round


BOTO3 = "boto3 + TypeDeserializer"
WAYS: Mapping[str, Callable[[Sequence[bytes]], Callable[[], int]]] = {
    BOTO3: lambda bodies: partial(_boto3, _client(bodies)),
    "no hook": lambda bodies: partial(_product, Fetcher(bodies), None, data.TABLE),
    "hook (item | {...})": lambda bodies: partial(_product, Fetcher(bodies), data.hook, data.TABLE),
    "hook that makes a dictionary": lambda bodies: partial(_product, Fetcher(bodies), data.rebuilding_hook, data.TABLE),
    "no hook, jsonb document": lambda bodies: partial(_product, Fetcher(bodies), None, data.DOCUMENTS),
}


def bodies(path: Path) -> None:
    """Write pages of the stream to a file, for ``cost``."""
    found = [body for _, body in source.bodies(source.filled(PAGES * 1000, 1))][:PAGES]
    path.write_bytes(pickle.dumps(found))


def cost(path: Path, name: str) -> float:
    """CPU microseconds per change, in a separate process: the memory of one variant would slow down the next."""
    os.environ.update(CREDENTIALS)
    way = WAYS[name](pickle.loads(path.read_bytes()))
    tune_allocator()
    way()
    started, changes = time.process_time(), 0
    while (taken := time.process_time() - started) < LEAST:
        changes += way()
    return taken / changes * 1e6


def _client(bodies: Sequence[bytes]) -> Any:
    client = boto3.client("dynamodbstreams", region_name="us-east-1")
    _canned(client, bodies)
    return client


def _canned(client: Any, bodies: Sequence[bytes]) -> None:
    """boto3's client, parsing these bodies repeatedly without a network."""
    left = cycle(bodies)

    class Raw:
        def stream(self) -> Iterator[bytes]:
            yield next(left)

    client.meta.events.register("before-send", lambda request, **_: AWSResponse(request.url, 200, {}, Raw()))


class Fetcher:
    """replicator's client: signs, sends, and reads these bodies repeatedly from a fake connection."""

    def __init__(self, bodies: Sequence[bytes]) -> None:
        client = connect(Source(table=data.TABLE, region="us-east-1"))
        self._call = Call("GetRecords", {"ShardIterator": "x", "Limit": 1000})
        self._lines = HttpClient(client.route, client.keys, 60.0)
        pool, _ = self._lines.message(self._call)
        self._line = HttpConnection(_Connection(bodies), pool)  # type: ignore[arg-type]

    def __call__(self) -> bytes:
        _, message = self._lines.message(self._call)
        self._line.send("", message, 0.0)
        assert self._line.pull(0.0)
        body = self._line.response()
        assert isinstance(body, bytes)
        return body


class _Connection:
    """The part of a socket that HttpConnection uses: each request gets the next response."""

    def __init__(self, bodies: Sequence[bytes]) -> None:
        self._left = cycle(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body) for body in bodies)
        self._answer = memoryview(b"")

    def setblocking(self, flag: bool) -> None: ...

    def send(self, message: bytes) -> int:
        self._answer = memoryview(next(self._left))
        return len(message)

    def recv(self, most: int) -> bytes:
        found, self._answer = self._answer[:most], self._answer[most:]
        return bytes(found)


def _boto3(client: Any) -> int:
    decode = TypeDeserializer().deserialize
    changes = 0
    for _ in range(PAGES):
        records = client.get_records(ShardIterator="x")["Records"]
        changes += len(records)
        for change in (record["dynamodb"] for record in records):
            {name: decode(v) for name, v in change.get("NewImage", {}).items()}
    return changes


def _product(fetch: Fetcher, function: Callable[..., Any] | None, table: str) -> int:
    hook = None if function is None else Hook("hook", function, "", False)
    decoder, mapping = RecordsDecoder(destination.KEYS), DocumentMapping(hook, (table,))
    encoder = Encoder(shapes([destination.SHAPES[table]], "public"), "reject", "benchmark")
    changes = 0
    for _ in range(0, PAGES, 2):
        records = [r for _ in range(2) for r in decoder(fetch()).records]
        at = BatchContext({}, ParkedItems(), EPOCH, "shard:1", 0.0)
        found = compact_latest(latest(enumerate(records, changes + 1), EPOCH), mapping, at)
        assert not encoder.encode(Batch([found.part("shard:1")])).rejections
        changes += len(records)
    return changes
