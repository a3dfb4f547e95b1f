"""What verifying a whole copy costs, beside the backfill that made it: Postgres, one process each, an idle source."""

from __future__ import annotations

import os
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import psycopg

from benchmarks import data, product, source
from benchmarks.counting import ratio
from benchmarks.product import CREDENTIALS, Result
from connectors.postgres import Postgres
from replicator.config.settings import Backfill, Config
from replicator.engine import run
from replicator.engine.context import Environment
from replicator.hooks.time_limit import HookLimit
from replicator.operations import verify as operation
from replicator.operations.verify import Progress, Request
from replicator.verification.differences import Finding
from replicator.verification.verifier import Result as Compared

HOOK = "data.py:hook"


class Silent:
    """A report without a reader: the pass's tally says what was found."""

    def result(self, result: Compared) -> None: ...
    def repair(self, finding: Finding, reason: str) -> None: ...
    def waiting(self, reason: str | None) -> None: ...
    def progress(self, progress: Progress) -> None: ...


def lines(rounds: int, url: str, alone: Callable[..., Result]) -> Iterator[str]:
    with source.endpoint("--changes", "0") as endpoint:
        yield f"| {data.ITEMS:,} items | backfill, items/s | verify, items/s | x backfill's rate | x its CPU per item |"
        yield "|---|---|---|---|---|"
        for name, transform in (("no hook", None), ("hook (`item \\| {...}`)", HOOK)):
            made, compared = [], []
            for _ in range(rounds):
                _clear(url)
                made.append(alone(backfilled, endpoint, url, transform))
                compared.append(alone(verified, endpoint, url, transform))
            rates = [[one.rate for one in results] for results in (made, compared)]
            costs = [[one.cpu for one in results] for results in (made, compared)]
            speeds = " | ".join(f"{statistics.median(found):,.0f}" for found in rates)
            yield f"| {name} | {speeds} | {ratio(rates[1], rates[0])} | {ratio(costs[1], costs[0])} |"


def backfilled(endpoint: str, url: str, transform: str | None) -> Result:
    """Read the whole table into an empty one, as ``replicator run --until caught-up`` does."""
    config = _config(endpoint, url, transform)

    def work() -> int:
        run.run(
            config,
            until="caught-up",
            resync=False,
            accept_hook_change=False,
            stop=threading.Event(),
            observe=lambda _: None,
        )
        return data.ITEMS

    return _timed(work)


def verified(endpoint: str, url: str, transform: str | None) -> Result:
    """Compare all of it, as ``replicator verify`` does."""
    config = _config(endpoint, url, transform)

    def work() -> int:
        environment = Environment(threading.Event(), lambda _: None, hook_limit=HookLimit(config.hook_timeout))
        tally = operation.verify(config, Request(), Silent(), environment)
        assert tally.exit_code == 0, tally
        assert tally.walked == tally.documents == data.ITEMS, tally
        return tally.items

    return _timed(work)


def _config(endpoint: str, url: str, transform: str | None) -> Config:
    os.environ.update(CREDENTIALS)
    config = product.config(endpoint, product.TYPED, Postgres, url, transform)
    return replace(config, backfill=Backfill(enabled=True))


def _timed(work: Callable[[], int]) -> Result:
    before = time.perf_counter(), time.process_time()
    items = work()
    return Result(items, time.perf_counter() - before[0], time.process_time() - before[1])


def _clear(url: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("DROP SCHEMA IF EXISTS replicator CASCADE")
        connection.execute(f"DROP TABLE IF EXISTS {data.TABLE}")
