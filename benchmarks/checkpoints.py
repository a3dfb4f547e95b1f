"""Checkpoints in DynamoDB that several workers save at once, each the entries of its slot, as fast as it can."""

from __future__ import annotations

import os
import statistics
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.product import CREDENTIALS
from replicator.aws.client import Client
from replicator.checkpoints.dynamodb.store import DynamodbCheckpoints, DynamodbOptions
from replicator.errors import TransientError
from replicator.state import Counts, Owner, Save, ShardState, Slot, encode
from tests.servers.dynamodb_local import DynamoDBLocal

WORKERS = (1, 2, 4, 8)
SECONDS = 5.0
LATENCY = 0.005  # seconds of a request, as to a region nearby
SHARDS = 4  # of each worker, all in each save


class Distant:
    """A client far away from its server. Counts calls by operation."""

    def __init__(self, client: Client) -> None:
        self._client, self.calls = client, Counter[str]()

    def call(self, operation: str, request: Mapping[str, Any]) -> bytes:
        self.calls[operation] += 1
        time.sleep(LATENCY / 2)
        try:
            return self._client.call(operation, request)
        finally:
            time.sleep(LATENCY / 2)


@dataclass(frozen=True, slots=True)
class Saved:
    """``times``: seconds that each save took, with all that it tried again. ``gave_up``: attempts that had to be made
    again after a pause, because others saved all the time."""

    times: list[float]
    transactions: int
    gave_up: int


def shard(slot: str) -> str:
    return encode(ShardState(None, "1", whole=True, since=0.0, slot=slot))


def save(checkpoints: DynamodbCheckpoints, slot: str) -> Saved:
    client = Distant(checkpoints._connected())
    checkpoints._client = client
    fence, times, gave_up, revision = encode(Slot(1024, "following")), list[float](), 0, 1
    until = time.perf_counter() + SECONDS
    while (started := time.perf_counter()) < until:
        shards = [Save("shard", f"{slot} {n}", revision, shard(slot)) for n in range(SHARDS)]
        more = {f"shard:{slot} {n}": Counts(read=1, applied=1) for n in range(SHARDS)}
        while True:
            try:
                checkpoints.save([*shards, Save("slot", slot, revision - 1, fence)], more)
                break
            except TransientError:
                gave_up += 1
                time.sleep(0.1)
        revision += 1
        times.append(time.perf_counter() - started)
    return Saved(times, client.calls["TransactWriteItems"], gave_up)


def claimed(options: DynamodbOptions, workers: int) -> list[tuple[DynamodbCheckpoints, str]]:
    owner = Owner("benchmark", "here", 1, time.time())
    run = DynamodbCheckpoints(options, f"{workers}", Path("/"))
    run.create()
    revision = run.claim(owner).revision
    slots = [f"{n}" for n in range(workers)]
    run.save([Save("shard", f"{slot} {n}", 0, shard(slot)) for slot in slots for n in range(SHARDS)])
    stores = [(DynamodbCheckpoints(options, f"{workers}", Path("/")), slot) for slot in slots]
    for one, slot in stores:
        one.claim_slot(owner, slot, revision)
    return stores


def lines() -> Iterator[str]:
    os.environ.update(CREDENTIALS)
    yield "| workers | saves/s | transactions a save | median, ms | longest, ms | pauses because others saved |"
    yield "|---|---|---|---|---|---|"
    with DynamoDBLocal() as server:
        options = DynamodbOptions(table="benchmark", region="us-east-1", endpoint_url=server.endpoint)
        yield from (_measured(options, workers) for workers in WORKERS)


def _measured(options: DynamodbOptions, workers: int) -> str:
    stores = claimed(options, workers)
    with ThreadPoolExecutor(workers) as threads:
        found = list(threads.map(lambda of: save(*of), stores))
    times = sorted(t for one in found for t in one.times)
    tries, gave_up = sum(one.transactions for one in found), sum(one.gave_up for one in found)
    return (
        f"| {workers} | {len(times) / SECONDS:.0f} | {tries / len(times):.2f} | {statistics.median(times) * 1000:.0f} "
        f"| {times[-1] * 1000:.0f} | {gave_up} |"
    )
