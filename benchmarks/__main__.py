"""Runs all benchmarks and prints their tables: python -m benchmarks [--rounds N] [--changes N]."""

from __future__ import annotations

import argparse
import os
import platform
import random
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import psycopg

from benchmarks import (
    aws_lambda,
    backlog,
    checkpoints,
    data,
    decoding,
    destination,
    dynamodb,
    exporting,
    history,
    latency,
    memory,
    monitoring,
    product,
    references,
    sharing,
    source,
    target_memory,
    verifying,
    webhook,
    workers,
)
from benchmarks.counting import ratio
from benchmarks.product import CREDENTIALS, Result
from replicator.testing.servers.postgres import PostgresServer

PARTS = (
    *("end-to-end", "decoding", "backlog", "memory", "search", "dynamodb", "target-memory", "latency"),
    *(
        "webhook",
        "verifying",
        "monitoring",
        "redis",
        "delta",
        "workers",
        "checkpoints",
        "sharing",
        "lambda",
        "history",
        "export",
    ),
)
PLAIN, MONITORED = "R, no hook", "R, no hook, monitored"
NAIVE, ONE_BY_ONE = 12_000, 1_000  # changes for the slow contenders


def alone(work: Callable[..., Any], *arguments: Any) -> Any:
    """Run ``work`` in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


class EndToEnd:
    """The contenders on one stream, in rounds, all from the same initial state."""

    def __init__(self, endpoint: str, url: str, changes: int, folder: Path) -> None:
        self._url = url
        batches = {(table, pages): folder / f"{table}-{pages}" for table in destination.SHAPES for pages in (1, 2)}
        for (table, pages), path in batches.items():
            references.prepare(endpoint, path, table, pages)
        typed, whole = (product.TYPED, data.TABLE), (product.AS_DOCUMENTS, data.DOCUMENTS)
        self._work: dict[str, tuple[str, Callable[..., Result], tuple[Any, ...]]] = {
            f"M{pages if pages > 1 else ''}{'' if table == data.TABLE else ', jsonb document'}": (
                table,
                references.merge,
                (path, url, table),
            )
            for (table, pages), path in batches.items()
        }
        self._work |= {
            "N": (data.TABLE, references.naive, (endpoint, url, NAIVE)),
            "L": (data.TABLE, references.one_by_one, (endpoint, url, ONE_BY_ONE)),
        }
        for name, (tables, table), hook in (
            ("R, no hook", typed, None),
            ("R, hook (item | {...})", typed, "data.py:hook"),
            ("R, hook that makes a dictionary", typed, "data.py:rebuilding_hook"),
            ("R, jsonb document", whole, None),
        ):
            self._work[name] = (table, product.copy, (endpoint, url, tables, hook, changes))
        self._work[MONITORED] = (data.TABLE, product.monitored, (endpoint, url, product.TYPED, None, changes))
        self._items = destination.items(endpoint)
        self._before = {item["pk"]: item for item in data.initial()}
        self.results: dict[str, list[Result]] = {name: [] for name in self._work}

    def round(self, order: random.Random) -> None:
        for name in order.sample(sorted(self._work), len(self._work)):
            table, work, arguments = self._work[name]
            destination.reset(self._url, table)
            result = alone(work, *arguments)
            self.results[name].append(result)
            if name not in ("N", "L"):
                self._check(name, table)
            print(f"  {name}: {result.rate:,.0f}/s, {result.cpu / result.changes * 1e6:.1f} us", file=sys.stderr)

    def _check(self, name: str, table: str) -> None:
        """Compare the table with the source, row by row."""
        row = data.row if table == data.TABLE else data.document
        hooked = "hook (" in name or "hook that" in name
        made = (_hooked(item) if hooked and item != self._before.get(item["pk"]) else item for item in self._items)
        differences = destination.differences(self._url, table, map(row, made))
        if differences:
            raise SystemExit(f"{name}: {differences} rows differ from the source")

    def lines(self) -> Iterator[str]:
        yield "| | changes/s | client CPU, us/change | x M | x N | x L |"
        yield "|---|---|---|---|---|---|"
        for name, results in self.results.items():
            cpu = statistics.median(r.cpu / r.changes * 1e6 for r in results)
            least = "M, jsonb document" if "jsonb" in name else "M"
            ratios = " | ".join(self._ratio(name, other) for other in (least, "N", "L"))
            yield f"| {name} | {statistics.median(r.rate for r in results):,.0f} | {cpu:.1f} | {ratios} |"

        yield ""
        yield f"{MONITORED}: x {PLAIN} {self._ratio(MONITORED, PLAIN)}"

    def _ratio(self, name: str, other: str) -> str:
        return ratio([r.rate for r in self.results[name]], [r.rate for r in self.results[other]])


def _hooked(item: dict[str, Any]) -> Mapping[str, Any]:
    """The hook's result for an item that another library decoded."""
    made: Mapping[str, Any] = data.hook(item)  # type: ignore[arg-type]
    return made


def decoding_lines(rounds: int) -> Iterator[str]:
    found: dict[str, list[float]] = {name: [] for name in decoding.WAYS}
    with tempfile.NamedTemporaryFile() as file:
        alone(decoding.bodies, Path(file.name))
        for _ in range(rounds):
            for name, costs in found.items():
                costs.append(alone(decoding.cost, Path(file.name), name))
    base = found[decoding.BOTO3]
    yield "| body to rows, no server | CPU, us/change | x boto3 + TypeDeserializer |"
    yield "|---|---|---|"
    for name, costs in found.items():
        yield f"| {name} | {statistics.median(costs):.1f} | {ratio(base, costs)} |"


def backlog_lines(rounds: int) -> Iterator[str]:
    found: dict[int, list[float]] = {behind: [] for behind in backlog.BEHIND}
    for _ in range(rounds):
        for behind, costs in found.items():
            again = max(1, 100_000 // behind)  # a single 60 ms run would mostly measure the machine
            costs.append(statistics.median(alone(backlog.cost, behind) for _ in range(again)))
    base = found[100_000]
    yield "| changes behind | client CPU, us/change | x 100,000 behind |"
    yield "|---|---|---|"
    for behind, costs in found.items():
        yield f"| {behind:,} | {statistics.median(costs):.1f} | {ratio(costs, base)} |"


def memory_lines(url: str) -> Iterator[str]:
    arguments = ("--changes", memory.RECORDS, "--shards", memory.SHARDS, "--size", memory.SIZE)
    with source.endpoint(*map(str, arguments)) as endpoint:
        destination.reset(url, data.DOCUMENTS)
        found = alone(memory.measured, endpoint, url)
    yield f"| {memory.SHARDS} shards, items of {memory.SIZE // 1000} KB | MB |"
    yield "|---|---|"
    yield f"| peak RSS | {found.peak:.0f} |"
    yield f"| RSS in the second quarter of the run | {found.early:.0f} |"
    yield f"| RSS in the last quarter | {found.late:.0f} |"


def machine(url: str) -> str:
    processor = Path("/proc/cpuinfo").read_text().partition("model name")[2].partition("\n")[0].strip("\t :")
    with psycopg.connect(url) as connection:
        postgres = connection.info.server_version // 10_000
    return f"{os.cpu_count()} cores ({processor}), Python {platform.python_version()}, Postgres {postgres}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--changes", type=int, default=data.CHANGES)
    parser.add_argument("--only", choices=PARTS)
    given = parser.parse_args()
    os.environ.update(CREDENTIALS)
    with PostgresServer("debian", destination.SETTINGS) as server:
        url = server.url()
        print(f"{machine(url)}; {given.rounds} rounds, medians [least-most] of each round's ratio\n")
        destination.prepare(url)
        for part in _parts(given, url):
            print("\n".join(part), "\n", flush=True)


def _parts(given: argparse.Namespace, url: str) -> Iterator[Iterator[str]]:
    lines: dict[str, Callable[[], Iterator[str]]] = {
        "end-to-end": lambda: end_to_end_lines(given.rounds, given.changes, url),
        "decoding": lambda: decoding_lines(given.rounds),
        "backlog": lambda: backlog_lines(given.rounds),
        "memory": lambda: memory_lines(url),
        "search": lambda: _search_lines(given.rounds),
        "dynamodb": lambda: dynamodb.lines(given.rounds, alone),
        "webhook": lambda: webhook.lines(given.rounds, alone),
        "target-memory": lambda: target_memory.lines(alone),
        "latency": lambda: latency.lines(url),
        "verifying": lambda: verifying.lines(given.rounds, url, alone),
        "monitoring": lambda: monitoring.lines(given.rounds, given.changes, url, alone),
        "redis": lambda: _redis_lines(given.rounds),
        "delta": lambda: _delta_lines(given.rounds),
        "workers": lambda: workers.lines(given.rounds, url),
        "checkpoints": lambda: checkpoints.lines(),
        "lambda": lambda: aws_lambda.lines(given.rounds, url, alone),
        "history": lambda: history.lines(given.rounds, url, alone),
        "export": lambda: exporting.lines(given.rounds, alone),
        "sharing": lambda: sharing.lines(given.rounds, given.changes, url, alone),
    }
    yield from (lines[part]() for part in PARTS if given.only in (None, part))


def _search_lines(rounds: int) -> Iterator[str]:
    from benchmarks import search, search_cost  # only these need the extra "bench"
    from tests.servers.search import SearchServer

    with SearchServer("elasticsearch-9", heap=1024, fast_start=False) as server:
        yield from search_cost.lines(rounds, server.url, alone)
        yield ""
        yield from search.lines(rounds, server.url, alone)


def _redis_lines(rounds: int) -> Iterator[str]:
    from benchmarks import redis  # only this needs the extra "redis"
    from tests.servers.redis import RedisCluster, RedisServer

    with RedisServer() as server, RedisCluster(replicas=0) as cluster:
        yield from redis.lines(rounds, server, cluster, alone)


def _delta_lines(rounds: int) -> Iterator[str]:
    from benchmarks import delta  # only this needs the extra "delta"

    yield from delta.lines(rounds, alone)


def end_to_end_lines(rounds: int, changes: int, url: str) -> Iterator[str]:
    order = random.Random(5)
    with source.endpoint("--changes", str(changes)) as endpoint, tempfile.TemporaryDirectory() as folder:
        contest = EndToEnd(endpoint, url, changes, Path(folder))
        for number in range(rounds):
            print(f"round {number + 1}, load {os.getloadavg()[0]:.1f}", file=sys.stderr)
            contest.round(order)
        yield from contest.lines()


if __name__ == "__main__":
    main()
