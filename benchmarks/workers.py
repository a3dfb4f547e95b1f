"""Several workers against one process: throughput, and client CPU a change, of the stream and of the backfill.

Coordinator and workers are those of ``engine: ray``, in plain processes, so Ray's own CPU is no part of it. The source
costs little and is in each process: full pages of the in-memory DynamoDB's stream, or of a scan of it, again and again
under new sequence numbers or keys. Checkpoints are in Postgres, also those of the target that costs nothing.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import re
import statistics
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import orjson
from pydantic import SecretStr

from benchmarks import data, destination, source
from benchmarks.counting import ratio
from benchmarks.product import TYPED
from connectors.postgres import Postgres
from connectors.postgres.encode import Encoded
from connectors.postgres.options import PostgresOptions
from replicator.aws.client import Call, Calls
from replicator.batch import Batch, Outcome
from replicator.config.settings import Backfill, Config, Source
from replicator.config.target import Destination
from replicator.engine.assembly import assemble
from replicator.engine.context import Environment, RunContext
from replicator.engine.coordinator import Coordinator
from replicator.engine.local import Driver
from replicator.engine.run import tune_allocator
from replicator.engine.startup import RESUMING
from replicator.engine.worker import Post, Worker
from replicator.source.table import describe_table
from replicator.state import Entry, Owner
from replicator.target.contract import Table

SHARDS = SEGMENTS = 8
WORKERS = (1, 2, 4)
CHANGES = {"nothing": 640_000, "Postgres": 320_000}  # by target
_KEY = re.compile(rb"order#\d{8}")


@dataclass(frozen=True, slots=True)
class Pages:
    """What the source's pages are made of. ``records``: full pages by shard, cut. ``items``: a page of a scan, cut at
    its keys. ``others``: responses to other operations.
    """

    records: Mapping[str, Sequence[Sequence[bytes]]]
    items: Sequence[bytes]
    others: Mapping[str, bytes]


def pages() -> Pages:
    database = source.filled(SHARDS * 4_000, SHARDS)
    records: dict[str, list[list[bytes]]] = {}
    for shard, body in source.bodies(database):
        if (page := source.cut(body)) is not None:
            records.setdefault(shard, []).append(page)
    assert len(records) == SHARDS
    scanned = orjson.loads(database.call("Scan", {"TableName": data.TABLE}))["Items"]
    table = database.call("DescribeTable", {"TableName": data.TABLE})
    arn = orjson.loads(table)["Table"]["LatestStreamArn"]
    stream = database.call("DescribeStream", {"StreamArn": arn})
    items = _KEY.split(b",".join(orjson.dumps(item) for item in scanned))
    return Pages(records, items, {"DescribeTable": table, "DescribeStream": stream})


class Treadmill:
    """A client whose responses are there at once. ``changes``: of each shard. ``items``: of each segment, at least."""

    server = "memory"

    def __init__(self, found: Pages, changes: int, items: int) -> None:
        self._pages, self._changes, self._items = found, changes, items

    def calls(self) -> Calls:
        return _AtOnce(self)

    def call(self, operation: str, request: Mapping[str, Any]) -> bytes:
        if operation == "GetShardIterator":
            return orjson.dumps({"ShardIterator": f"{request['ShardId']} 0"})
        if operation == "GetRecords":
            shard, _, first = request["ShardIterator"].rpartition(" ")
            return self._records(shard, int(first))
        if operation == "Scan":
            return self._scanned(request["Segment"], request.get("ExclusiveStartKey"))
        return self._pages.others[operation]

    def _records(self, shard: str, read: int) -> bytes:
        count = min(source.RECORDS, self._changes - read)
        made = self._pages.records[shard]
        page = made[read // source.RECORDS % len(made)]
        return source.renumbered(page, read + 1, count, f"{shard} {read + count}")

    def _scanned(self, segment: int, after: Mapping[str, Any] | None) -> bytes:
        cut = self._pages.items
        first = 0 if after is None else int(after["pk"]["S"][-7:]) + 1
        last = first + len(cut) - 2
        parts = [b""] * (2 * len(cut) - 1)
        parts[::2] = cut
        parts[1::2] = [b"order#%d%07d" % (segment, n) for n in range(first, last + 1)]
        end = b',"LastEvaluatedKey":{"pk":{"S":"order#%d%07d"}}' % (segment, last) if last < self._items else b""
        return b'{"Items":[' + b"".join(parts) + b"]" + end + b"}"


class _AtOnce:
    """``Calls`` that take no time."""

    def __init__(self, client: Treadmill) -> None:
        self._client = client
        self._made: deque[tuple[object, Call]] = deque()

    def begin(self, name: object, call: Call) -> None:
        self._made.append((name, call))

    def next(self, timeout: float) -> tuple[Any, bytes | Exception] | None:
        if not self._made:
            time.sleep(max(0.0, timeout))
            return None
        name, call = self._made.popleft()
        return name, self._client.call(call.operation, call.request if call.body is None else orjson.loads(call.body))

    def close(self) -> None:
        self._made.clear()


class Forgetting(Postgres):
    """Encodes as for Postgres and stores checkpoints, but no rows."""

    def encode(self, batch: Batch) -> Encoded:
        return replace(super().encode(batch), statements=())


TARGETS: Mapping[str, type[Postgres]] = {"nothing": Forgetting, "Postgres": Postgres}


@dataclass(frozen=True, slots=True)
class Job:
    """What is copied, into which target: so many changes of the stream, or items of a scan."""

    pages: Path
    url: str
    target: str
    backfill: bool
    expected: int

    @property
    def config(self) -> Config:
        return Config(
            "benchmark",
            Source(table=data.TABLE, region="us-east-1"),
            Destination("postgres", None, PostgresOptions(url=SecretStr(self.url)), TYPED),
            backfill=Backfill(enabled=self.backfill, segments=SEGMENTS),
        )


@dataclass(frozen=True, slots=True)
class Meter:
    """What the processes of a run share: changes stored, when they were all stored, and the signal to stop then."""

    stored: Any
    finished: Any
    stop: Any


@dataclass(frozen=True, slots=True)
class Result:
    """``cpu``: CPU seconds of all processes, each since it opened the target, so after its imports."""

    changes: int
    seconds: float
    cpu: float

    @property
    def rate(self) -> float:
        return self.changes / self.seconds

    @property
    def cost(self) -> float:
        """CPU microseconds for each change."""
        return self.cpu / self.changes * 1e6


class Process:
    """This process' part of a run: how long it takes, and what it costs."""

    def __init__(self, job: Job, meter: Meter) -> None:
        found: Pages = pickle.loads(job.pages.read_bytes())
        share = job.expected // SHARDS
        self._client = Treadmill(found, 0 if job.backfill else share, share)
        self._job, self._meter = job, meter
        self._began: tuple[float, float] | None = None
        self.environment = Environment(meter.stop, lambda _: None)
        tune_allocator()

    @contextlib.contextmanager
    def context(self) -> Iterator[RunContext]:
        with contextlib.closing(self._target()) as target:
            table = describe_table(self._client, data.TABLE)
            yield assemble(self._job.config, self._client, target, target.checkpoints, None, table)

    def _target(self) -> Postgres:
        kind, process = TARGETS[self._job.target], self

        class Counted(kind):  # type: ignore[misc, valid-type]
            def open(self, tables: Sequence[Table], epoch: int) -> None:
                process.begin()
                super().open(tables, epoch)

            def collect(self) -> Outcome:
                in_flight = self._sent
                outcome: Outcome = super().collect()
                if in_flight is not None and not outcome.rejections:
                    process.count(in_flight.batch)
                return outcome

        return Counted(PostgresOptions(url=SecretStr(self._job.url)), "benchmark")

    def begin(self) -> None:
        self._began = self._began or (time.time(), time.process_time())

    def count(self, batch: Batch) -> None:
        meter = self._meter
        with meter.stored.get_lock():
            meter.stored.value += sum(part.counts.read for part in batch.parts)
            if meter.stored.value >= self._job.expected and not meter.stop.is_set():
                meter.finished.value = time.time()
                meter.stop.set()

    @property
    def spent(self) -> tuple[float, float]:
        """When it began, and its CPU seconds since."""
        at, cpu = self._began or (time.time(), time.process_time())
        return at, time.process_time() - cpu


def alone(process: Process) -> None:
    with process.context() as context:
        Driver(context, _owner("alone"), process.environment).run(until=None)


def coordinate(process: Process, workers: Sequence[Connection]) -> None:
    slots = tuple(str(n) for n in range(len(workers)))
    with process.context() as context:
        coordinator = Coordinator(context, _owner("coordinator"), process.environment, slots)
        coordinator.start(RESUMING)
        for worker in workers:
            worker.send(coordinator.revision)
        told = 0.0
        while not process.environment.stop.is_set():
            coordinator.step()
            if coordinator.read_at != told:
                told = coordinator.read_at
                for slot, entries in coordinator.news().items():
                    workers[int(slot)].send(entries)


def work(process: Process, slot: int, slots: int, coordinator: Connection) -> None:
    post = Post(str(slot), coordinator.recv(), slots)

    def news() -> Sequence[Entry]:
        told: Sequence[Entry] = coordinator.recv() if coordinator.poll() else ()
        return told

    Worker(post, _owner(f"worker {slot}"), process.context, process.environment).run(news)


def _owner(name: str) -> Owner:
    return Owner(name, "here", os.getpid(), time.time())


def _measured(part: Callable[..., None], job: Job, meter: Meter, spent: Any, *arguments: Any) -> None:
    """Runs in a process of its own."""
    process = Process(job, meter)
    try:
        part(process, *arguments)
    finally:
        spent.put(process.spent)
        meter.stop.set()  # if this part has failed, so have the others


def copied(job: Job, workers: int) -> Result:
    """``workers``: 0 for one process without a coordinator."""
    context = multiprocessing.get_context("spawn")
    meter, spent = Meter(context.Value("q", 0), context.Value("d", 0.0), context.Event()), context.Queue()
    pipes = [context.Pipe() for _ in range(workers)]
    parts: list[tuple[Any, ...]] = [(work, n, workers, theirs) for n, (_, theirs) in enumerate(pipes)]
    parts.append((coordinate, [ours for ours, _ in pipes]) if workers else (alone,))
    processes = [
        context.Process(target=_measured, args=(part, job, meter, spent, *arguments)) for part, *arguments in parts
    ]
    for process in processes:
        process.start()
    found = [spent.get() for _ in processes]
    for process in processes:
        process.join()
    if meter.stored.value < job.expected:
        raise SystemExit("a process of the benchmark has failed")
    began = sorted(at for at, _ in found)[min(1, workers)]  # the coordinator opens the target first
    return Result(meter.stored.value, meter.finished.value - began, sum(cpu for _, cpu in found))


def lines(rounds: int, url: str) -> Iterator[str]:
    """The result table."""
    with tempfile.NamedTemporaryFile() as file:
        Path(file.name).write_bytes(pickle.dumps(pages()))
        yield "| target, what is read | workers | changes/s | client CPU, us/change | x one process | x its CPU |"
        yield "|---|---|---|---|---|---|"
        for target, changes in CHANGES.items():
            for backfill in (False, True):
                yield from _compared(Job(Path(file.name), url, target, backfill, changes), rounds)


def _compared(job: Job, rounds: int) -> Iterator[str]:
    found: dict[int, list[Result]] = {workers: [] for workers in (0, *WORKERS)}
    for _ in range(rounds):
        for workers, results in found.items():
            destination.reset(job.url, data.TABLE)
            results.append(copied(job, workers))
            text = f"{results[-1].rate:,.0f}/s, {results[-1].cost:.1f} us, load {os.getloadavg()[0]:.1f}"
            print(f"  {job.target}, {workers} workers: {text}", file=sys.stderr)
    rates = {workers: [r.rate for r in results] for workers, results in found.items()}
    costs = {workers: [r.cost for r in results] for workers, results in found.items()}
    name = f"{job.target}, {'scan' if job.backfill else 'stream'}"
    for workers in found:
        medians = f"{statistics.median(rates[workers]):,.0f} | {statistics.median(costs[workers]):.1f}"
        ratios = f"{ratio(rates[workers], rates[0])} | {ratio(costs[workers], costs[0])}"
        yield f"| {name} | {workers or 'one process'} | {medians} | {ratios} |"
