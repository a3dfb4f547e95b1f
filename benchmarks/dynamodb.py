"""DynamoDB as a target: CPU cost and time per item, compared with boto3's ``batch_writer``.

The product's writes are conditional, one item a request; ``batch_writer`` sends 25 items a request, without conditions.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence

import boto3

from benchmarks import data, destination, source, writes
from benchmarks.counting import ratio
from benchmarks.product import CREDENTIALS, Result
from connectors.dynamodb.connection import Account
from connectors.dynamodb.documents import layouts
from connectors.dynamodb.encode import encode
from connectors.dynamodb.options import DynamoDBOptions
from replicator.batch import Batch
from replicator.engine.run import tune_allocator
from replicator.hooks.hook import DocumentMapping
from replicator.pipeline.compaction import BatchContext, compact_latest, latest
from replicator.pipeline.parked import ParkedItems
from replicator.source.decoding import RecordsDecoder
from replicator.target.contract import Table
from replicator.target.in_doubt import InDoubtWindow
from replicator.version import FIRST_EPOCH

ITEMS = 8000
LATENCIES = (0.0, 0.005)  # seconds


def batch_writer(endpoint: str) -> Result:
    os.environ.update(CREDENTIALS)
    table = boto3.resource("dynamodb", endpoint_url=endpoint, region_name="us-east-1").Table(data.TABLE)
    items = list(data.initial(ITEMS))
    tune_allocator()
    started, cpu = time.perf_counter(), time.process_time()
    with table.batch_writer() as batch:
        for item in items:
            batch.put_item(Item=item)
    return Result(ITEMS, time.perf_counter() - started, time.process_time() - cpu)


def product(endpoint: str) -> Result:
    """One batch per stream page; building them is not measured."""
    os.environ.update(CREDENTIALS)
    batches = list(page_batches())
    options = DynamoDBOptions(endpoint_url=endpoint, region="us-east-1")
    account = Account(options)
    writing = account.writer(InDoubtWindow())
    tables = layouts([Table(data.TABLE, destination.KEYS)], options)
    tune_allocator()
    started, cpu = time.perf_counter(), time.process_time()
    for batch in batches:
        writing.send(encode(batch, tables))
        assert not writing.collect().rejections
    spent = Result(sum(b.size for b in batches), time.perf_counter() - started, time.process_time() - cpu)
    account.close()
    return spent


def page_batches() -> Iterator[Batch]:
    decoder, mapping, done = RecordsDecoder(destination.KEYS), DocumentMapping(None, (data.TABLE,)), 0
    for _, body in source.bodies(source.filled(ITEMS, 1)):
        records = decoder(body).records
        at = BatchContext({}, ParkedItems(), FIRST_EPOCH, "shard:1", 0.0)
        yield Batch([compact_latest(latest(enumerate(records, done + 1), FIRST_EPOCH), mapping, at).part("shard:1")])
        done += len(records)


def lines(rounds: int, alone: Callable[..., Result]) -> Iterator[str]:
    """The result table. ``alone`` calls a function in a separate process."""
    yield "| to DynamoDB | latency, ms | items/s | client CPU, us/item | x batch_writer's rate | times less CPU |"
    yield "|---|---|---|---|---|---|"
    for latency in LATENCIES:
        with writes.endpoint(latency) as endpoint:
            pairs = [(alone(batch_writer, endpoint), alone(product, endpoint)) for _ in range(rounds)]
        yield from rows(latency, pairs, "batch_writer", "replicator, with conditions")


def rows(latency: float, pairs: Sequence[tuple[Result, Result]], *names: str) -> Iterator[str]:
    """Two rows of a table: each round's results of both ``names``, as ratios to the first one's."""
    theirs, ours = zip(*pairs, strict=True)
    for name, results in zip(names, (theirs, ours), strict=True):
        rate = statistics.median(r.rate for r in results)
        cpu = [r.cpu / r.changes * 1e6 for r in results]
        rates = ratio([r.rate for r in results], [r.rate for r in theirs])
        less = ratio([r.cpu / r.changes * 1e6 for r in theirs], cpu)
        row = (name, f"{latency * 1000:.0f}", f"{rate:,.0f}", f"{statistics.median(cpu):.1f}", rates, less)
        yield f"| {' | '.join(row)} |"
