"""The source in a separate process: the in-memory DynamoDB over HTTP, with all changes already in its stream."""

from __future__ import annotations

import argparse
import contextlib
import gc
import random
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

import orjson

from benchmarks import data
from replicator.aws.client import Client
from replicator.testing.dynamodb import AWS, DynamoDB
from replicator.testing.dynamodb.http import UnsignedClient, served

KEYS = {"pk": "S", "sk": "S"}
# Streams are opened at their first record: a benchmark may take longer than AT_TIMESTAMP's ten minutes.
DIALECT = replace(AWS, at_timestamp=False)
RECORDS = 1000  # in a full page
_SEQUENCE = re.compile(rb'("SequenceNumber":")\d+')
_NEXT = re.compile(rb'}(?:,{"awsRegion"|])')  # where a record ends


def filled(changes: int, shards: int) -> DynamoDB:
    database = DynamoDB(now=time.time, random=random.Random(3), dialect=DIALECT, shards=shards)
    database.create_table(data.TABLE, keys=KEYS, view=None)
    for item in data.initial():
        database.put(data.TABLE, item)
    database.enable_stream(data.TABLE)
    for kind, item in data.changes(changes):
        (database.put if kind == "put" else database.delete)(data.TABLE, item)
    return database


def wide(shards: int, records: int, size: int) -> DynamoDB:
    """``records`` changes of items of ``size`` bytes."""
    database = DynamoDB(now=time.time, random=random.Random(4), dialect=DIALECT, shards=shards)
    database.create_table(data.TABLE, keys=KEYS)
    filler = orjson.dumps(list(range(size))).decode()[: size - 200]
    for n in range(records):
        database.put(data.TABLE, {**data.key(n % (shards * 4)), "turn": n, "filler": filler})
    return database


@contextlib.contextmanager
def endpoint(*arguments: str) -> Iterator[str]:
    """The URL of a source that runs during the block. ``arguments``: of ``main``."""
    command = [sys.executable, "-m", "benchmarks.source", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            url = process.stdout.readline().strip()
            if not url:
                raise RuntimeError("the source did not start")
            yield url
        finally:
            process.terminate()


def bodies(client: Client) -> Iterator[tuple[str, bytes]]:
    """Every page of the stream: its shard, and the response body of GetRecords."""
    arn = orjson.loads(client.call("DescribeTable", {"TableName": data.TABLE}))["Table"]["LatestStreamArn"]
    described = orjson.loads(client.call("DescribeStream", {"StreamArn": arn}))["StreamDescription"]
    for shard in (s["ShardId"] for s in described["Shards"]):
        first = {"StreamArn": arn, "ShardId": shard, "ShardIteratorType": "TRIM_HORIZON"}
        iterator = orjson.loads(client.call("GetShardIterator", first))["ShardIterator"]
        while True:
            body = client.call("GetRecords", {"ShardIterator": iterator})
            answer = orjson.loads(body)
            if not answer["Records"]:
                break
            yield shard, body
            iterator = answer["NextShardIterator"]


def cut(body: bytes) -> list[bytes] | None:
    """A full page of the stream, cut at its sequence numbers; None if it is not full."""
    parts = _SEQUENCE.split(body)
    return parts if len(parts) == 2 * RECORDS + 1 else None


def renumbered(page: Sequence[bytes], first: int, count: int, following: str) -> bytes:
    """A response with the first records of a cut page, numbered from ``first`` on."""
    end = orjson.dumps({"NextShardIterator": following})[1:]
    if count == 0:
        return b'{"Records":[],' + end
    parts = list(page[: 2 * count + 1])
    parts[1::2] = [b'"SequenceNumber":"%021d' % n for n in range(first, first + count)]
    parts[-1] = _NEXT.split(parts[-1])[0]
    return b"".join(parts) + b"}]," + end


def client(url: str) -> Client:
    return UnsignedClient(url)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.source")
    parser.add_argument("--changes", type=int, default=data.CHANGES)
    parser.add_argument("--shards", type=int, default=data.SHARDS)
    parser.add_argument("--size", type=int, help="bytes of each item, instead of the usual ones")
    given = parser.parse_args()
    if given.size is None:
        database = filled(given.changes, given.shards)
    else:
        database = wide(given.shards, given.changes, given.size)
    gc.collect()
    gc.freeze()  # keep garbage collection of this data out of the measurement
    gc.disable()
    with served(database) as url:
        print(url, flush=True)
        sys.stdin.read()  # until the parent process ends


if __name__ == "__main__":
    main()
