"""Two targets of one table: one process whose pipelines share a reader, and two processes with a reader each."""

from __future__ import annotations

import os
import statistics
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import data, destination, product, source
from benchmarks.counting import ratio
from replicator.batch import Batch, DocumentId, Outcome
from replicator.config.settings import Config
from replicator.engine import run
from replicator.monitoring.monitor import Monitor, Subject
from replicator.options import Options
from replicator.source.sharing import SharedPages
from replicator.target.contract import Table

Tables = Mapping[str, Mapping[str, Any]]
TARGETS: tuple[Tables, ...] = (product.TYPED, product.AS_DOCUMENTS)
HOOK = """
def product(item):
    return {"total": item["total"], "status": item["status"], "city": item["shipping"]["city"]}
"""


class Requests(Monitor):
    """Counts requests to the source, by operation."""

    def __init__(self) -> None:
        super().__init__(Subject("benchmark", "benchmark.yaml", "DynamoDB", "postgres"))
        self.made: Counter[str] = Counter()

    def responded(self, operation: str, outcome: str) -> None:
        self.made[operation] += 1


@dataclass(frozen=True, slots=True)
class Cost:
    """``changes``: of all targets. ``cpu``: seconds of all processes. ``requests``: GetRecords."""

    changes: int
    cpu: float
    requests: int

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.changes + other.changes, self.cpu + other.cpu, self.requests + other.requests)


class Nothing:
    """A target that costs nothing: what remains is the reading, the hook, and what a pipeline does for each change."""

    Options = TableOptions = Options

    def __init__(self, expected: int, stop: threading.Event) -> None:
        self._expected, self._stop = expected, stop
        self.stored = 0
        self.began = self.finished = (0.0, 0.0)

    def check(self, tables: Sequence[Table]) -> Sequence[str]:
        return ()

    plan = check

    def epoch(self, tables: Sequence[Table]) -> int | None:
        return None

    def open(self, tables: Sequence[Table], epoch: int) -> None:
        self.began = time.perf_counter(), time.process_time()

    def write(self, batch: Batch) -> Outcome:
        self.stored += sum(part.counts.read for part in batch.parts)
        if self.stored >= self._expected:
            self.finished = time.perf_counter(), time.process_time()
            self._stop.set()
        return Outcome()

    def sweep(self, table: Table, below: int, spare: Sequence[DocumentId] = ()) -> int:
        return 0

    purge = sweep

    def close(self) -> None:
        pass


Build = Callable[[threading.Event], tuple[Config, list[Any]]]
"""Makes the config of a pipeline that sets the event at its end, and the list to which its target is added."""


def copies(endpoint: str, url: str, targets: Sequence[Tables], expected: int) -> Cost:
    """Copy ``expected`` changes to each of these targets, in one process."""

    def build(tables: Tables, stop: threading.Event) -> tuple[Config, list[Any]]:
        built: list[Any] = []

        def connector(options: Any, pipeline: str) -> product.Counting:
            target = product.Counting(options, pipeline, expected, stop)
            built.append(target)
            return target

        return replace(product.config(endpoint, tables, connector, url, None), pipeline="-".join(tables)), built

    return _run([partial(build, tables) for tables in targets])


def reads(endpoint: str, count: int, hook: str | None, expected: int) -> Cost:
    """Read ``expected`` changes in each of ``count`` pipelines of one process, and store nothing."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "hooks.py").write_text(HOOK)

        def build(number: int, stop: threading.Event) -> tuple[Config, list[Any]]:
            built: list[Any] = []

            def connector(options: Any, pipeline: str) -> Nothing:
                target = Nothing(expected, stop)
                built.append(target)
                return target

            config = product.config(endpoint, {"t": {}}, connector, "postgresql://localhost/x", hook)
            path = Path(folder) / f"{number}.yaml"
            return replace(config, pipeline=f"reads{number}", path=path), built

        return _run([partial(build, number) for number in range(count)])


def _run(builds: Sequence[Build]) -> Cost:
    os.environ.update(product.CREDENTIALS)
    pages, requests, built = SharedPages(), Requests(), list[list[Any]]()

    def copy(build: Build) -> None:
        stop = threading.Event()
        config, targets = build(stop)
        built.append(targets)
        run.run(
            config,
            until=None,
            resync=False,
            accept_hook_change=False,
            stop=stop,
            observe=lambda _: None,
            measurements=requests,
            pages=pages,
        )

    threads = [threading.Thread(target=copy, args=(build,)) for build in builds]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = [target for targets in built for target in targets]
    cpu = max(target.finished[1] for target in found) - min(target.began[1] for target in found)
    return Cost(sum(target.stored for target in found), cpu, requests.made["GetRecords"])


def lines(rounds: int, changes: int, url: str, alone: Callable[..., Any]) -> Iterator[str]:
    """The result tables. ``alone`` calls a function in a separate process."""

    def postgres(endpoint: str, together: bool) -> list[Cost]:
        destination.reset(url, data.TABLE)
        destination.reset_one(url, data.DOCUMENTS)
        groups = [TARGETS] if together else [[tables] for tables in TARGETS]
        return [alone(copies, endpoint, url, group, changes) for group in groups]

    def nothing(hook: str | None, endpoint: str, together: bool) -> list[Cost]:
        return [alone(reads, endpoint, count, hook, changes) for count in ([2] if together else [1, 1])]

    with source.endpoint("--changes", str(changes)) as endpoint:
        for title, measure in (
            ("two targets in Postgres: columns, and jsonb", postgres),
            ("two targets that cost nothing", partial(nothing, None)),
            ("the same with a hook", partial(nothing, "hooks.py:product")),
        ):
            yield from _table(title, rounds, partial(measure, endpoint))
            yield ""


def _table(title: str, rounds: int, measure: Callable[[bool], Sequence[Cost]]) -> Iterator[str]:
    names = "one process, one reader", "two processes, two readers"
    costs: dict[str, list[Cost]] = {name: [] for name in names}
    for number in range(rounds):
        for name in sorted(names, reverse=number % 2 == 0):
            found = measure(name == names[0])
            costs[name].append(sum(found[1:], start=found[0]))
    base = [cost.cpu for cost in costs[names[1]]]
    yield f"| {title} | client CPU, us/change | x two processes | GetRecords |"
    yield "|---|---|---|---|"
    for name, each in costs.items():
        cpu = [cost.cpu for cost in each]
        a_change = statistics.median(cost.cpu / cost.changes * 1e6 for cost in each)
        requests = statistics.median(cost.requests for cost in each)
        yield f"| {name} | {a_change:.2f} | {ratio(cpu, base)} | {requests:,.0f} |"
