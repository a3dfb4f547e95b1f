"""How long a change takes from DynamoDB to Postgres while the table is at rest, by the configured poll interval.

Changes come one at a time, at random moments, so that the shard is idle before each. The source is the in-memory
DynamoDB over HTTP on this machine: no network and no propagation delay, so what AWS adds comes on top.
"""

from __future__ import annotations

import os
import random
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psycopg

from benchmarks.product import CREDENTIALS
from replicator.operations.estimate import idle_requests
from replicator.testing.dynamodb import DynamoDB
from replicator.testing.dynamodb.http import served

INTERVALS = (None, "500ms", "200ms", "100ms", "50ms")
CHANGES = 200
_CONFIG = """\
pipeline: latency
source: {{table: latency, region: us-east-1, endpoint_url: "{endpoint}"{interval}}}
target: {{type: postgres, url: "{url}", table: latency}}
"""


def lines(url: str) -> Iterator[str]:
    yield "| poll_interval | p50, ms | p90, ms | p99, ms | requests per idle shard and day |"
    yield "|---|---|---|---|---|"
    for interval in INTERVALS:
        delays = sorted(measured(url, interval))
        p50, p90, p99 = (f"{delays[int(len(delays) * share)] * 1000:.0f}" for share in (0.5, 0.9, 0.99))
        seconds = None if interval is None else float(interval.removesuffix("ms")) / 1000
        yield f"| {interval or 'default'} | {p50} | {p90} | {p99} | up to {idle_requests(seconds).high:,.0f} |"


def measured(url: str, interval: str | None) -> Sequence[float]:
    """Seconds until a row was committed, of each change."""
    db = DynamoDB(now=time.time, random=random.Random(1))
    db.create_table("latency")
    with served(db) as endpoint, tempfile.TemporaryDirectory() as folder, psycopg.connect(url, autocommit=True) as row:
        row.execute("DROP SCHEMA IF EXISTS replicator CASCADE")
        row.execute("DROP TABLE IF EXISTS latency")
        config = Path(folder) / "latency.yaml"
        option = "" if interval is None else f", poll_interval: {interval}"
        config.write_text(_CONFIG.format(endpoint=endpoint, url=url, interval=option))
        command = [sys.executable, "-m", "replicator", "run", str(config)]
        environ = {**os.environ, **CREDENTIALS}
        with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
            try:
                _await_live(process)
                return list(_delays(db, row))
            finally:
                process.terminate()


def _await_live(process: subprocess.Popen[bytes]) -> None:
    assert process.stdout is not None
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        readable, _, _ = select.select([process.stdout], [], [], 1)
        if readable and b'"live"' in process.stdout.readline():
            return
    raise SystemExit("the run did not become live")


def _delays(db: DynamoDB, connection: psycopg.Connection[tuple[object, ...]]) -> Iterator[float]:
    order = random.Random(7)
    for number in range(CHANGES):
        time.sleep(order.uniform(1.2, 2.5))  # so that the reader is at its slowest again
        started = time.perf_counter()
        db.put("latency", {"id": str(number)})
        while not connection.execute("SELECT 1 FROM latency WHERE id = %s", (str(number),)).fetchone():
            time.sleep(0.001)
        yield time.perf_counter() - started
