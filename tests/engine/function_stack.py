"""The AWS Lambda function with its source, target, mapping and containers, step by step in memory."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from replicator.engine.context import Environment, RunContext
from replicator.engine.function import Function
from replicator.engine.handover import Backfill
from replicator.engine.startup import RESUMING, Allowed
from tests.engine.cluster import TABLE, Cluster
from tests.engine.event_source import EventSource
from tests.simulation.clock import VirtualStop

TIME = 100.0  # seconds


class Timer(VirtualStop):
    """Time is over once ``over`` says so."""

    over: Callable[[], bool] = staticmethod(lambda: False)

    def is_set(self) -> bool:
        return self.over()

    def wait(self, timeout: float | None = None) -> bool:
        super().wait(timeout)
        return self.is_set()


class Stack(Cluster):
    """The source, the target, the mapping, and containers of the function."""

    def __init__(self, *, view: str = "NEW_AND_OLD_IMAGES", **config: Any) -> None:
        super().__init__(**{"on_gap": "stop", **config}, view=view)
        self.mapping = EventSource(self.source, TABLE)
        self.containers: list[Function] = []
        self._until = math.inf

    def environment(self) -> Environment:
        """Time that no invocation or backfill needs, so that one that makes no progress fails."""
        timer = Timer(self.clock)
        timer.over = lambda: self.clock.now >= self._until
        return replace(super().environment(), stop=timer)  # type: ignore[arg-type]

    def backfill(self, allowed: Allowed = RESUMING) -> Backfill:
        self._until = self.clock.now + TIME
        run = Backfill(self.context(), self.owner("backfill"), self.environment(), self._connected)
        assert run.run(allowed)
        return run

    def scanning(self, allowed: Allowed = RESUMING) -> Backfill:
        """A backfill that has begun its epoch, and scans."""
        self._until = self.clock.now + TIME
        run = Backfill(self.context(), self.owner("backfill"), self.environment(), self._connected)
        run.start(allowed)
        while not run.is_scanning:
            run.step()
        return run

    @contextlib.contextmanager
    def _connected(self) -> Iterator[RunContext]:
        yield self.context()

    def lose(self, key: str, value: int) -> None:
        """A change that Lambda gives up, and the stream has no longer."""
        self.write(key, value)
        (shard,) = self.mapping.ready()
        batch = self.mapping.event(shard)
        assert batch is not None
        self.mapping.drop(shard, batch)
        self.trim_all()

    def until_over(self) -> None:
        """The next invocation has its time from now on."""
        self._until = self.clock.now + TIME

    def container(self) -> Function:
        self.containers.append(Function(self.context(), self.owner("container"), self.environment()))
        return self.containers[-1]

    def deliver(self, *functions: Function) -> None:
        """All there is, in turns to these containers."""
        turn, idle = 0, False
        while not idle:
            idle = True
            for shard in self.mapping.ready():
                batch = self.mapping.event(shard)
                if batch is not None:
                    assert turn < 1000, "the same batches come again and again"
                    self.until_over()
                    response = functions[turn % len(functions)].invoke(batch)
                    self.mapping.done(shard, batch, response)
                    turn, idle = turn + 1, False
                elif self.mapping.shards[shard].ended:
                    idle = False
