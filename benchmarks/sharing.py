"""Two targets of one table: one process whose pipelines share a reader, and two processes with a reader each."""

from __future__ import annotations

import os
import statistics
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from benchmarks import data, destination, product, source
from benchmarks.counting import ratio
from replicator.engine import run
from replicator.monitoring.monitor import Monitor, Subject
from replicator.source.sharing import SharedPages

Tables = Mapping[str, Mapping[str, Any]]
TARGETS: tuple[Tables, ...] = (product.TYPED, product.AS_DOCUMENTS)


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


def copies(endpoint: str, url: str, targets: Sequence[Tables], expected: int) -> Cost:
    """Copy ``expected`` changes to each of these targets, in one process."""
    os.environ.update(product.CREDENTIALS)
    pages, requests, built = SharedPages(), Requests(), list[product.Counting]()

    def copy(tables: Tables) -> None:
        stop = threading.Event()

        def connector(options: Any, pipeline: str) -> product.Counting:
            built.append(product.Counting(options, pipeline, expected, stop))
            return built[-1]

        wanted = replace(product.config(endpoint, tables, connector, url, None), pipeline="-".join(tables))
        run.run(
            wanted,
            until=None,
            resync=False,
            accept_hook_change=False,
            stop=stop,
            observe=lambda _: None,
            measurements=requests,
            pages=pages,
        )

    threads = [threading.Thread(target=copy, args=(tables,)) for tables in targets]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    cpu = max(target.finished[1] for target in built) - min(target.began[1] for target in built)
    return Cost(sum(target.stored for target in built), cpu, requests.made["GetRecords"])


def lines(rounds: int, changes: int, url: str, alone: Callable[..., Any]) -> Iterator[str]:
    """The result table. ``alone`` calls a function in a separate process."""
    names = "one process, one reader", "two processes, two readers"
    costs: dict[str, list[Cost]] = {name: [] for name in names}
    with source.endpoint("--changes", str(changes)) as endpoint:
        for number in range(rounds):
            for name in sorted(names, reverse=number % 2 == 0):
                destination.reset(url, data.TABLE)
                destination.reset_one(url, data.DOCUMENTS)
                groups = [TARGETS] if name == names[0] else [[tables] for tables in TARGETS]
                found = [alone(copies, endpoint, url, group, changes) for group in groups]
                costs[name].append(sum(found[1:], start=found[0]))
    base = [cost.cpu for cost in costs[names[1]]]
    yield "| two targets in Postgres: columns, and jsonb | client CPU, us/change | x two processes | GetRecords |"
    yield "|---|---|---|---|"
    for name, each in costs.items():
        cpu = [cost.cpu for cost in each]
        a_change = statistics.median(cost.cpu / cost.changes * 1e6 for cost in each)
        requests = statistics.median(cost.requests for cost in each)
        yield f"| {name} | {a_change:.2f} | {ratio(cpu, base)} | {requests:,.0f} |"
