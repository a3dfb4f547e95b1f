"""The cost of a change with short and long backlogs: the driver, without HTTP and without a server.

The source hands out the same pages again and again under new sequence numbers; the target encodes and forgets.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import orjson
from pydantic import SecretStr

from benchmarks import data, destination, source
from benchmarks.product import TYPED
from connectors.postgres.encode import Encoder
from connectors.postgres.options import PostgresOptions
from connectors.postgres.table_schema import shapes
from replicator.batch import Batch, Outcome
from replicator.config.settings import Backfill, Config, Source
from replicator.config.target import Destination
from replicator.engine.assembly import assemble
from replicator.engine.context import Environment
from replicator.engine.local import Driver
from replicator.engine.run import tune_allocator
from replicator.source.table import describe_table
from replicator.state import Owner
from replicator.target.contract import Table
from replicator.testing.memory import MemoryDatabase, MemoryTarget

BEHIND = (10_000, 100_000, 1_000_000)


class Treadmill:
    """A client to a stream of any length, built from a few thousand changes."""

    def __init__(self, changes: int) -> None:
        self._database = source.filled(8000, data.SHARDS)
        self._pages = [page for _, body in source.bodies(self._database) if (page := source.cut(body)) is not None]
        self._in_shard = changes // data.SHARDS

    def call(self, operation: str, request: Mapping[str, Any]) -> bytes:
        if operation == "GetShardIterator":
            return orjson.dumps({"ShardIterator": "0"})
        if operation != "GetRecords":
            return self._database.call(operation, request)
        turn = int(request["ShardIterator"])
        first = turn * source.RECORDS + 1
        count = max(0, min(source.RECORDS, self._in_shard + 1 - first))
        return source.renumbered(self._pages[turn % len(self._pages)], first, count, str(turn + 1))


class Forgetting(MemoryTarget):
    """Encodes as for Postgres and stores checkpoints, but no rows."""

    def __init__(self, expected: int, stop: threading.Event) -> None:
        super().__init__(MemoryDatabase())
        self._encoder = Encoder(shapes(list(destination.SHAPES.values()), "public"), "reject", "benchmark")
        self._expected, self._stop, self.stored = expected, stop, 0

    def open(self, tables: Sequence[Table], epoch: int) -> None:
        super().open(tables, epoch)
        self.began = time.process_time()

    def write(self, batch: Batch) -> Outcome:
        assert not self._encoder.encode(batch).rejections
        self.checkpoints.save(batch.saves)
        self.stored += sum(part.counts.read for part in batch.parts)
        if self.stored >= self._expected:
            self._stop.set()
        return Outcome()


def cost(changes: int) -> float:
    """CPU microseconds per change, all threads, with a backlog of this size."""
    client, stop = Treadmill(changes), threading.Event()
    expected = changes // data.SHARDS * data.SHARDS
    target = Forgetting(expected, stop)
    options = PostgresOptions(url=SecretStr("postgresql://127.0.0.1/nowhere"))
    config = Config(
        "benchmark",
        Source(table=data.TABLE, region="us-east-1"),
        Destination("none", None, options, TYPED),
        backfill=Backfill(enabled=False),
    )
    copy = assemble(config, client, target, target.checkpoints, None, describe_table(client, data.TABLE))
    tune_allocator()
    owner = Owner("run", "host", 1, time.time())
    Driver(copy, owner, Environment(stop, lambda _: None)).run(until=None)
    spent: float = time.process_time() - target.began
    return spent / expected * 1e6
