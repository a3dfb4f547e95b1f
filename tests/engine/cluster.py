"""A run with several workers in one process, in memory: one step of each after the other, on a virtual clock."""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from replicator.aws.client import Client
from replicator.config.settings import Backfill, Config, Source
from replicator.config.target import Destination
from replicator.engine.context import Environment, RunContext
from replicator.engine.coordinator import Coordinator
from replicator.engine.scheduler import StepResult
from replicator.engine.startup import RESUMING, Allowed
from replicator.engine.worker import Post, Worker
from replicator.errors import Fenced
from replicator.hooks.hook import Hook
from replicator.source.table import describe_table
from replicator.state import Gap, Owner, decode
from replicator.target.contract import Table
from replicator.testing.dynamodb import DynamoDB
from replicator.testing.memory import MemoryCheckpoints, MemoryDatabase, MemoryTarget
from replicator.testing.memory_index import MemoryIndex
from tests.engine.virtual_scheduler import VirtualSteps
from tests.simulation.clock import Clock, VirtualStop

TABLE = "orders"


class Steps(VirtualSteps):
    """The step that is due first comes next."""

    def __init__(self, clock: Clock, client: Client) -> None:
        super().__init__(client)
        self._clock = clock
        self._when: dict[str, float] = {}

    def again(self, name: str, rest: float = 0.0) -> None:
        self._when[name] = self._clock.now + rest

    def clear(self) -> None:
        super().clear()
        self._when.clear()

    def get(self, timeout: float) -> StepResult | None:
        due = sorted((at, name) for name, at in self._when.items() if at <= self._clock.now)
        if not due or self.full():
            self._clock.now += 0.01 if timeout else 0.0
            return None
        del self._when[due[0][1]]
        return self._step(due[0][1])


class Wire:
    """A client of the source."""

    server = "memory"

    def __init__(self, source: DynamoDB) -> None:
        self._source = source

    def call(self, operation: str, request: Mapping[str, Any]) -> bytes:
        return self._source.call(operation, request)


class Cluster:
    """The source, the target, and what works between them. ``index``: the target has no transactions."""

    def __init__(
        self,
        *,
        slots: int = 3,
        index: bool = False,
        shards: int = 2,
        hook: Hook | None = None,
        view: str = "NEW_AND_OLD_IMAGES",
        **config: Any,
    ) -> None:
        self.clock = Clock()
        self.source = DynamoDB(now=self.clock, random=random.Random(1), shards=shards)
        self.source.create_table(TABLE, keys={"pk": "S"}, view=view)
        self.source.lag_reads(TABLE)
        self.database, self.index, self.hook = MemoryDatabase(), index, hook
        self.slots = tuple(str(n) for n in range(slots))
        self._config = {"backfill": Backfill(segments=3), "on_gap": "resync", **config}
        self.index_type, self.target_type = MemoryIndex, MemoryTarget
        self._made = 0
        self.coordinator: Coordinator | None = None
        self.workers: dict[str, Worker] = {}

    def context(self) -> RunContext:
        client = Wire(self.source)
        config = Config("memory", Source(table=TABLE), Destination("m", None, None, {TABLE: {}}), **self._config)  # type: ignore[arg-type]
        table = describe_table(client, TABLE)
        target = self.index_type(self.database, now=self.clock) if self.index else self.target_type(self.database)
        store = target.checkpoints if isinstance(target, MemoryTarget) else MemoryCheckpoints(self.database)
        return RunContext(config, client, target, store, self.hook, table, (Table(TABLE, table.keys, {}),))

    def environment(self) -> Environment:
        return Environment(
            VirtualStop(self.clock),  # type: ignore[arg-type]
            lambda progress: None,
            self.clock.wall,
            random.Random(2),
            lambda client: Steps(self.clock, client),
            self.clock,
        )

    def owner(self, who: str) -> Owner:
        self._made += 1
        return Owner(f"{who} {self._made}", "here", 1, self.clock())

    def start(self, allowed: Allowed = RESUMING) -> None:
        """A run begins; no worker of an earlier one is left."""
        self.coordinator = Coordinator(self.context(), self.owner("coordinator"), self.environment(), self.slots)
        self.coordinator.start(allowed)
        self.workers = {slot: self.worker(slot) for slot in self.slots}

    def replace_coordinator(self) -> Coordinator:
        """Another coordinator of the same run takes over."""
        run = self.running.revision
        self.coordinator = Coordinator(self.context(), self.owner("coordinator"), self.environment(), self.slots, run)
        self.coordinator.start(RESUMING)
        return self.coordinator

    @property
    def running(self) -> Coordinator:
        assert self.coordinator is not None
        return self.coordinator

    def worker(self, slot: str) -> Worker:
        @contextlib.contextmanager
        def connect() -> Iterator[RunContext]:
            yield self.context()

        post = Post(slot, self.running.revision, len(self.slots))
        return Worker(post, self.owner(f"worker {slot}"), connect, self.environment())

    def round(self, *, told: bool = True) -> None:
        """A step of each, and what the coordinator has to tell. A worker that was replaced ends."""
        self.clock.now += 0.05
        self.running.step()
        for slot, entries in self.running.news().items() if told else ():
            if slot in self.workers:
                self.workers[slot].learn(entries)
        for slot, worker in list(self.workers.items()):
            try:
                worker.step()
            except Fenced:
                del self.workers[slot]

    def restart_workers(self) -> None:
        """Every worker is replaced by another one."""
        self.workers = {slot: self.worker(slot) for slot in self.slots}

    def trim_all(self) -> None:
        """Nothing that the shards have had until now can be read any more."""
        for shard in self.source.shards(TABLE):
            self.source.trim(TABLE, shard.id, sys.maxsize)

    def stop(self) -> None:
        """All end in good order."""
        for worker in self.workers.values():
            worker.end()
        self.running.end()

    def rounds(self, count: int) -> None:
        for _ in range(count):
            self.round()

    def settle(self, rounds: int = 3000) -> None:
        """Until everything written before now is stored, and what a scan needed is cleaned up."""
        since = self.clock.now
        for _ in range(rounds):
            self.round()
            if self.running.pipeline.caught_up(since):
                return
        raise AssertionError(f"not caught up: {self.running.pipeline.state} {self.running.pipeline.shards}")

    def outlive_doubt(self) -> None:
        """Until no request can be applied late any more, and tombstones are purged."""
        for _ in range(3):
            self.clock.now += 400
            for _ in range(200):
                self.round()

    def write(self, key: str, value: int) -> None:
        self.source.put(TABLE, {"pk": key, "v": value})

    def delete(self, key: str) -> None:
        self.source.delete(TABLE, {"pk": key})

    @property
    def wanted(self) -> dict[tuple[str, ...], Any]:
        return {(str(item["pk"]),): {**item, "v": int(str(item["v"]))} for item in self.source.items(TABLE)}

    @property
    def stored(self) -> dict[Any, Any]:
        return self.database.documents(TABLE)

    @property
    def gaps(self) -> list[Gap]:
        found = [decode(kind, id, text) for (kind, id), (_, text) in self.database.entries.items() if kind == "gap"]
        return [gap for gap in found if isinstance(gap, Gap)]
