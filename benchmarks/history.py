"""``history: true`` on Postgres: the rate with it, against the same changes into the same table without it."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator

import psycopg
from pydantic import SecretStr

from benchmarks import data, destination, source
from benchmarks.counting import ratio
from benchmarks.product import CREDENTIALS, Result
from connectors.postgres import Postgres
from connectors.postgres.options import PostgresOptions
from replicator.batch import Batch
from replicator.change import Page
from replicator.engine.run import tune_allocator
from replicator.hooks.hook import DocumentMapping
from replicator.pipeline.advance import streamed
from replicator.pipeline.compaction import BatchContext
from replicator.pipeline.parked import ParkedItems
from replicator.source.decoding import RecordsDecoder
from replicator.state import ShardState
from replicator.target.contract import Table, with_history
from replicator.version import FIRST_EPOCH

CHANGES = 12_000
NAME = "kept"


def copied(url: str, keep: bool) -> Result:
    """Response bodies to committed rows; the bodies are in memory."""
    os.environ.update(CREDENTIALS)
    table = Table(NAME, destination.KEYS, {"columns": dict(data.COLUMNS), **({"history": {}} if keep else {})})
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("DROP SCHEMA IF EXISTS replicator CASCADE")
        connection.execute(f"DROP TABLE IF EXISTS {NAME}, {NAME}_history, {NAME}_history_base")
    bodies = [body for _, body in source.bodies(source.filled(CHANGES, 1))]
    mapping, decoder = DocumentMapping(None, (NAME,), histories=with_history([table])), RecordsDecoder(destination.KEYS)
    target = Postgres(PostgresOptions(url=SecretStr(url)), "benchmark")
    target.open([table], FIRST_EPOCH)
    at = BatchContext({}, ParkedItems(), FIRST_EPOCH, "shard:1", 0.0)
    shard, in_flight = ShardState(None, None, whole=True, since=0.0), False
    tune_allocator()
    started, cpu = time.perf_counter(), time.process_time()
    for body in bodies:
        page = Page("1", decoder(body).records)
        shard, compacted = streamed(shard, [page], mapping, at, ignore_expired=False)
        encoded = target.encode(Batch([compacted.part("shard:1")]))
        if in_flight:
            target.collect()
        target.send(encoded)
        in_flight = True
    assert not target.collect().rejections
    spent = Result(shard.ordinal, time.perf_counter() - started, time.process_time() - cpu)
    target.close()
    return spent


def lines(rounds: int, url: str, alone: Callable[..., Result]) -> Iterator[str]:
    """The result table. ``alone`` calls a function in a separate process."""
    pairs = [(alone(copied, url, False), alone(copied, url, True)) for _ in range(rounds)]
    yield "| to Postgres | changes/s | client CPU, us/change | x without |"
    yield "|---|---|---|---|"
    without, kept = zip(*pairs, strict=True)
    for name, results in (("without a history", without), ("`history: true`", kept)):
        rate = statistics.median(r.rate for r in results)
        cpu = statistics.median(r.cpu / r.changes * 1e6 for r in results)
        yield f"| {name} | {rate:,.0f} | {cpu:.1f} | {ratio([r.rate for r in results], [r.rate for r in without])} |"
