"""Times replicator with any target, from before the first change is read until the last one is stored."""

from __future__ import annotations

import os
import statistics
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import data
from benchmarks.product import CREDENTIALS, Result
from replicator.batch import Batch, Outcome
from replicator.config.settings import Backfill, Config, Source
from replicator.config.target import Destination
from replicator.engine import run
from replicator.target.contract import Table


class Clock:
    """Stops the run when ``expected`` changes are stored."""

    def __init__(self, expected: int, stop: threading.Event) -> None:
        self._expected, self._stop = expected, stop
        self.stored = 0
        self.began = self.finished = (0.0, 0.0)

    def start(self) -> None:
        self.began = _clocks()

    def count(self, batch: Batch, outcome: Outcome) -> None:
        if not outcome.rejections:
            self.stored += sum(part.counts.read for part in batch.parts)
        if self.stored >= self._expected and not self._stop.is_set():
            self.finished = _clocks()
            self._stop.set()

    @property
    def result(self) -> Result:
        seconds, cpu = (after - before for before, after in zip(self.began, self.finished, strict=True))
        return Result(self.stored, seconds, cpu)


def counted(kind: type[Any], clock: Clock) -> Any:
    """A connector that builds the real target and reports what it stores to the clock."""

    class Counted(kind):  # type: ignore[misc]
        _in_flight: Batch | None = None

        def open(self, tables: Sequence[Table], epoch: int) -> None:
            clock.start()
            super().open(tables, epoch)

        def encode(self, batch: Batch) -> Any:
            return batch, super().encode(batch)

        def send(self, encoded: Any) -> None:
            self._in_flight, own = encoded
            super().send(own)

        def collect(self) -> Outcome:
            outcome: Outcome = super().collect()
            assert self._in_flight is not None
            clock.count(self._in_flight, outcome)
            return outcome

    return Counted


def plain_config(
    endpoint: str, connector: Any, options: Any, table: str, of_table: dict[str, Any], folder: Path
) -> Config:
    """A pipeline without a hook or backfill; its checkpoints are a file in ``folder``."""
    return Config(
        pipeline="benchmark",
        source=Source(table=data.TABLE, region="us-east-1", endpoint_url=endpoint),
        target=Destination("benchmark", connector, options, {table: of_table}),
        backfill=Backfill(enabled=False),
        path=folder / "benchmark.yaml",
    )


def copied(endpoint: str, kind: type[Any], options: Any, table: str, of_table: dict[str, Any], expected: int) -> Result:
    """Copy ``expected`` changes as ``replicator run`` does, with checkpoints in a file."""
    os.environ.update(CREDENTIALS)
    stop = threading.Event()
    clock = Clock(expected, stop)
    with tempfile.TemporaryDirectory() as folder:
        config = plain_config(endpoint, counted(kind, clock), options, table, of_table, Path(folder))
        run.run(config, until=None, resync=False, accept_hook_change=False, stop=stop, observe=lambda _: None)
    return clock.result


def ratio(these: Sequence[float], of_those: Sequence[float]) -> str:
    """Median, minimum and maximum of the rounds' ratios."""
    found = [a / b for a, b in zip(these, of_those, strict=True)]
    return f"{statistics.median(found):.2f} [{min(found):.2f}-{max(found):.2f}]"


def _clocks() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()
