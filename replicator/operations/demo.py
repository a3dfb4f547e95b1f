"""The demo: replicates a table between two local servers while it is written to, then verifies the copy."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import boto3
import click
import psycopg
from boto3.dynamodb.types import TypeDeserializer
from psycopg.types.json import set_json_loads

from replicator.config import settings
from replicator.engine.stop_event import Stop
from replicator.errors import ConfigError
from replicator.escape import escaped
from replicator.pipeline.progress import Progress, progress
from replicator.testing.servers.ministack import MiniStack
from replicator.testing.servers.postgres import PostgresServer, ServerMissing

TABLE = "orders"
PATIENCE = 120.0  # seconds for each step: a busy machine is slow, but a broken demo must end
_CONFIG = """\
pipeline: demo
source:
  table: {table}
  region: us-east-1
  endpoint_url: {endpoint}
target:
  type: postgres
  url: {url}
  table: {table}
backfill:
  segments: 20
  read_units: 4  # the emulator charges one per page, so the scan takes five seconds: time to watch, and to write
"""


def say(text: str) -> None:
    click.echo(escaped(text))
    sys.stdout.flush()


class Demo:
    """One demo run with ``items`` items."""

    def __init__(self, items: int) -> None:
        self._items = items
        self._random = random.Random(1)
        self._started = time.monotonic()

    def run(self, keep: bool) -> int:
        """The number of differences at the end. ``keep``: leave the servers up until Ctrl-C."""
        with _servers() as (dynamodb, postgres), tempfile.TemporaryDirectory(prefix="replicator-demo-") as folder:
            self._step(f"DynamoDB emulator at {dynamodb.url}, Postgres at 127.0.0.1:{postgres.port}")
            path = Path(folder) / "demo.yaml"
            path.write_text(_CONFIG.format(table=TABLE, endpoint=dynamodb.url, url=postgres.url()))
            table = SourceTable(dynamodb, self._random)
            table.load(self._items)
            self._step(f"{self._items:,} items loaded before the stream was enabled, so they must come from the scan")
            self._copy(path, dynamodb, table)
            count = differences(table.items(), stored(postgres.url()))
            self._step(f"verified {len(table.items()):,} items against the rows in Postgres: {count} differences")
            if keep:
                _explain_access(path, dynamodb, postgres)
                _wait_for_signal()
            else:
                say("\nTo explore both sides, keep the servers running: replicator demo --keep")
        return count

    def _step(self, text: str) -> None:
        say(f"[{time.monotonic() - self._started:4.1f} s] {text}")

    def _copy(self, path: Path, dynamodb: MiniStack, table: SourceTable) -> None:
        """Run the pipeline as a user would while writing to the table, stop it, and let a second run finish."""
        self._step(f"$ replicator run {path.name}")
        running = _replicator(path, dynamodb)
        try:
            writes, during = self._write(table, path, running)
            self._step(f"{writes:,} puts, updates and deletes written so far, {during:,} of them during the backfill")
            _await(lambda p: p.phase == "live", path, running)
        finally:
            running.send_signal(signal.SIGTERM)
            code = running.wait(PATIENCE)
        if code != 0:
            raise ConfigError(f"replicator run ended with exit code {code}")
        self._step("$ replicator run --until caught-up   (resumes where the first run stopped)")
        if (code := _replicator(path, dynamodb, "--until", "caught-up").wait(PATIENCE)) != 0:
            raise ConfigError(f"replicator run --until caught-up ended with exit code {code}")

    def _write(self, table: SourceTable, path: Path, running: subprocess.Popen[bytes]) -> tuple[int, int]:
        """Write until the backfill is over, and a little longer. Returns all writes, and those during the backfill."""
        _await(lambda p: p.phase != "stopped", path, running)
        during = total = 0
        while _now(path).phase == "backfill":
            during += table.change(50)
        total = during + table.change(500)
        return total, during


class SourceTable:
    """A table of orders, created and changed through boto3."""

    def __init__(self, server: MiniStack, rng: random.Random) -> None:
        self._client = boto3.client("dynamodb", **server.options)
        self._random = rng
        self._last = 0

    def load(self, items: int) -> None:
        self._client.create_table(
            TableName=TABLE,
            KeySchema=[{"AttributeName": "id", "KeyType": "HASH"}],
            AttributeDefinitions=[{"AttributeName": "id", "AttributeType": "S"}],
            BillingMode="PAY_PER_REQUEST",
        )
        for first in range(0, items, 25):
            puts = [{"PutRequest": {"Item": self._order(n)}} for n in range(first, min(first + 25, items))]
            self._client.batch_write_item(RequestItems={TABLE: puts})
        self._last = items
        stream = {"StreamEnabled": True, "StreamViewType": "NEW_AND_OLD_IMAGES"}
        self._client.update_table(TableName=TABLE, StreamSpecification=stream)

    def change(self, times: int) -> int:
        """Write ``times`` changes: a third each of deletes, updates and new items."""
        for _ in range(times):
            key = {"id": {"S": f"order#{self._random.randrange(self._last)}"}}
            match self._random.randrange(3):
                case 0:
                    self._client.delete_item(TableName=TABLE, Key=key)
                case 1:
                    self._client.put_item(TableName=TABLE, Item=self._order(self._random.randrange(self._last)))
                case _:
                    self._client.put_item(TableName=TABLE, Item=self._order(self._last))
                    self._last += 1
        return times

    def items(self) -> dict[str, Any]:
        """All items in DynamoDB, by id."""
        pages = self._client.get_paginator("scan").paginate(TableName=TABLE, ConsistentRead=True)
        read = TypeDeserializer().deserialize
        return {i["id"]["S"]: {n: read(v) for n, v in i.items()} for page in pages for i in page["Items"]}

    def _order(self, number: int) -> Mapping[str, Any]:
        cents = self._random.randrange(100, 1_000_000)
        return {
            "id": {"S": f"order#{number}"},
            "customer": {"S": f"customer#{self._random.randrange(2000)}"},
            "total": {"N": f"{cents // 100}.{cents % 100:02d}"},
            "paid": {"BOOL": self._random.random() < 0.7},
            "lines": {"L": [{"M": {"sku": {"S": f"sku-{self._random.randrange(99)}"}, "count": {"N": "2"}}}]},
            "note": {"S": "leave it at the neighbour's" if self._random.random() < 0.1 else ""},
        }


def stored(url: str) -> dict[str, Any]:
    """All rows in Postgres, by id."""
    with psycopg.connect(url) as connection:
        set_json_loads(lambda text: json.loads(text, parse_float=Decimal, parse_int=Decimal), connection)
        return dict(connection.execute(f"SELECT id, document FROM {TABLE}").fetchall())  # noqa: S608 - the table is a constant


def differences(items: Mapping[str, Any], rows: Mapping[str, Any]) -> int:
    """The number of ids that are missing on one side or differ."""
    return sum(items.get(id) != rows.get(id) for id in items.keys() | rows.keys())


@contextmanager
def _servers() -> Iterator[tuple[MiniStack, PostgresServer]]:
    try:
        with MiniStack() as dynamodb, PostgresServer("wheel") as postgres:
            yield dynamodb, postgres
    except ServerMissing as e:
        raise ConfigError(f"the demo needs a local Postgres: {e}") from e


def _replicator(path: Path, dynamodb: MiniStack, *more: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "replicator", "run", str(path), "--human", *more]
    return subprocess.Popen(command, env={**os.environ, **dynamodb.environ})


def _now(path: Path) -> Progress:
    """The progress that ``replicator status`` would show."""
    loaded = settings.load(path)
    target = loaded.target.build(loaded.pipeline)
    try:
        claimed = target.checkpoints.read()  # type: ignore[attr-defined]
    finally:
        target.close()
    return progress(claimed.entries, claimed.counts, time.time())


def _await(holds: Any, path: Path, running: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not holds(_now(path)):
        if running.poll() is not None:
            raise ConfigError(f"replicator run ended with exit code {running.returncode}")
        if time.monotonic() > deadline:
            raise ConfigError(f"replicator run made no progress for {PATIENCE:.0f} seconds")
        time.sleep(0.2)


def _explain_access(path: Path, dynamodb: MiniStack, postgres: PostgresServer) -> None:
    credentials = " ".join(f"{name}={value}" for name, value in dynamodb.environ.items())
    say("")
    say("To explore both sides:")
    # Without the password: other users can see the arguments of a process.
    address = f"postgresql://postgres@127.0.0.1:{postgres.port}/postgres"
    say(f"  PGPASSWORD={postgres.password} psql {address} -c 'TABLE {TABLE} LIMIT 3'")
    say(f"  {credentials} aws dynamodb scan --endpoint-url {dynamodb.url} --table-name {TABLE} --max-items 3")
    say(f"  {credentials} replicator run {path}")


def _wait_for_signal() -> None:
    stop = Stop()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    say("Press Ctrl-C to stop the servers and remove all files.")
    stop.wait()
