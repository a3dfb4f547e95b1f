"""R: replicator itself, from the stream over HTTP to rows in Postgres, in one process."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from benchmarks import data
from connectors.postgres import Postgres
from connectors.postgres.options import PostgresOptions
from replicator.batch import Outcome
from replicator.config.monitoring import Address
from replicator.config.settings import Backfill, Config, Source
from replicator.config.target import Destination
from replicator.engine import run
from replicator.monitoring.monitor import Monitor, Subject
from replicator.monitoring.server import serving
from replicator.pipeline.progress import Progress
from replicator.target.contract import Table
from replicator.testing.servers.programs import free_port

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "local", "AWS_SECRET_ACCESS_KEY": "local"}
TYPED: Mapping[str, Mapping[str, Any]] = {data.TABLE: {"columns": dict(data.COLUMNS)}}
AS_DOCUMENTS: Mapping[str, Mapping[str, Any]] = {data.DOCUMENTS: {}}


@dataclass(frozen=True, slots=True)
class Result:
    """Changes, and seconds for them. ``cpu``: CPU seconds of this process, all threads."""

    changes: int
    seconds: float
    cpu: float

    @property
    def rate(self) -> float:
        return self.changes / self.seconds


class Counting(Postgres):
    """The real target, timed from before the first change is read until the expected number is stored."""

    def __init__(self, options: PostgresOptions, pipeline: str, expected: int, stop: threading.Event) -> None:
        super().__init__(options, pipeline)
        self._expected, self._stop = expected, stop
        self.stored = 0
        self.began = self.finished = (0.0, 0.0)

    def open(self, tables: Sequence[Table], epoch: int) -> None:
        self.began = _clocks()
        super().open(tables, epoch)

    def collect(self) -> Outcome:
        in_flight = self._sent
        outcome = super().collect()
        if in_flight is not None and not outcome.rejections:
            self.stored += sum(part.counts.read for part in in_flight.batch.parts)
        if self.stored >= self._expected:
            self.finished = _clocks()
            self._stop.set()
        return outcome


def config(
    endpoint: str, tables: Mapping[str, Mapping[str, Any]], connector: Any, url: str, transform: str | None
) -> Config:
    return Config(
        pipeline="benchmark",
        source=Source(table=data.TABLE, region="us-east-1", endpoint_url=endpoint),
        target=Destination("postgres", connector, PostgresOptions(url=SecretStr(url)), tables),
        transform=transform,
        backfill=Backfill(enabled=False),
        path=Path(__file__),
    )


def copy(
    endpoint: str,
    url: str,
    tables: Mapping[str, Mapping[str, Any]],
    transform: str | None,
    expected: int,
    monitor: Monitor | None = None,
) -> Result:
    """Copy ``expected`` changes, as ``replicator run`` does."""
    os.environ.update(CREDENTIALS)
    stop = threading.Event()
    built: list[Counting] = []

    def connector(options: PostgresOptions, pipeline: str) -> Counting:
        built.append(Counting(options, pipeline, expected, stop))
        return built[-1]

    wanted = config(endpoint, tables, connector, url, transform)
    observe: Callable[[Progress], None] = (lambda _: None) if monitor is None else monitor.observe
    run.run(
        wanted,
        until=None,
        resync=False,
        accept_hook_change=False,
        stop=stop,
        observe=observe,
        measurements=monitor,
    )
    (target,) = built
    seconds, cpu = (after - before for before, after in zip(target.began, target.finished, strict=True))
    return Result(target.stored, seconds, cpu)


def monitored(
    endpoint: str, url: str, tables: Mapping[str, Mapping[str, Any]], transform: str | None, expected: int
) -> Result:
    """The same with its metrics scraped, and its page updated, every second, by another process."""
    return monitored_apart(endpoint, url, tables, transform, expected)[0]


def monitored_apart(
    endpoint: str, url: str, tables: Mapping[str, Mapping[str, Any]], transform: str | None, expected: int
) -> tuple[Result, float]:
    """The same, and the CPU seconds of the thread that serves, from its start on."""
    address = Address("127.0.0.1", free_port())
    monitor = Monitor(Subject("benchmark", "benchmark.yaml", "DynamoDB", "postgres"))
    with serving(monitor, address), subprocess.Popen([sys.executable, "-c", _WATCH, f"http://{address}/"]) as watcher:
        for path in ("metrics", "fragment"):  # what only the first request costs is not part of a change
            with urllib.request.urlopen(f"http://{address}/{path}") as response:
                response.read()
        try:
            result = copy(endpoint, url, tables, transform, expected, monitor)
            (thread,) = (thread for thread in threading.enumerate() if thread.name == "monitoring")
            return result, time.clock_gettime(time.pthread_getcpuclockid(thread.ident or 0))
        finally:
            watcher.terminate()


_WATCH = """
import sys, time, urllib.request
while True:
    for path in ("metrics", "fragment"):
        with urllib.request.urlopen(sys.argv[1] + path) as response:
            response.read()
    time.sleep(1.0)
"""


def _clocks() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()
