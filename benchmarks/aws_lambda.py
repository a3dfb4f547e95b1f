"""Behind AWS Lambda: the function against the usual one, which does one write a record; both get the same events.

The usual one has a connection open, decodes images with boto3's TypeDeserializer, and commits each record by itself. It
has no backfill, no positions and no guard against older records. No runtime client: both are called in their process.
"""

from __future__ import annotations

import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson
import psycopg
from boto3.dynamodb.types import TypeDeserializer

from benchmarks.counting import ratio
from benchmarks.product import CREDENTIALS, Result
from replicator.testing.dynamodb import DynamoDB
from replicator.testing.dynamodb.http import served
from tests.engine.event_source import event

TABLE, RECORDS, BATCH, LARGEST = "lambda_orders", 10_000, 1_000, 10_000
PAYLOAD = 6_291_456  # bytes of an event, at most
MEMORY = 0.5  # GB, as in the template
GB_SECOND, MILLION_REQUESTS, MILLION_READS = 0.0000166667, 0.20, 0.20  # dollars in us-east-1, x86, November 2026
CONFIG = """\
pipeline: lambda
source: {{table: {table}, region: us-east-1, endpoint_url: "{endpoint}"}}
target:
  type: postgres
  url: "{url}"
  tables: {{{table}: {{columns: {{customer: text, total: numeric, note: text}}}}}}
engine: {{type: lambda}}
"""
UPSERT = f"""
INSERT INTO {TABLE}_usual (id, customer, total, note) VALUES (%s, %s, %s, %s)
ON CONFLICT (id) DO UPDATE SET customer = EXCLUDED.customer, total = EXCLUDED.total, note = EXCLUDED.note"""
COLD = """
import os, resource, sys, time
import orjson
batch = orjson.loads(open(sys.argv[1]).read())
before = time.process_time()
from replicator.engine import aws_lambda
imported = time.process_time()
aws_lambda.Container(os.environ["REPLICATOR_CONFIG"]).invoke(batch, 60)
print(imported - before, time.process_time() - before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def usual(url: str, batches: Path) -> Result:
    events = [orjson.loads(line) for line in batches.read_bytes().splitlines()]
    decoded = TypeDeserializer().deserialize
    with psycopg.connect(url, autocommit=True) as connection:
        started, cpu = time.perf_counter(), time.process_time()
        for each in events:
            for record in each["Records"]:
                if record["eventName"] == "REMOVE":
                    id = decoded(record["dynamodb"]["Keys"]["id"])
                    connection.execute(f"DELETE FROM {TABLE}_usual WHERE id = %s", (id,))
                else:
                    item = {name: decoded(value) for name, value in record["dynamodb"]["NewImage"].items()}
                    connection.execute(UPSERT, (item["id"], item["customer"], item["total"], item["note"]))
        return _spent(events, started, cpu)


def product(config: str, batches: Path) -> Result:
    os.environ.update(CREDENTIALS)
    from replicator.engine.aws_lambda import Container

    events = [orjson.loads(line) for line in batches.read_bytes().splitlines()]
    container = Container(config)
    started, cpu = time.perf_counter(), time.process_time()
    for each in events:
        assert container.invoke(each, 300) == {"batchItemFailures": [], "state": {}}
    spent = _spent(events, started, cpu)
    container.close()
    return spent


def _spent(events: Sequence[Any], started: float, cpu: float) -> Result:
    changes = sum(len(each["Records"]) for each in events)
    return Result(changes, time.perf_counter() - started, time.process_time() - cpu)


class Stage:
    """A table with a stream, its copy in Postgres, and batches of its records as Lambda delivers them."""

    def __init__(self, folder: Path, url: str) -> None:
        self.memory = DynamoDB(now=time.time, random=random.Random(1), shards=1)
        self.memory.create_table(TABLE, keys={"id": "S"})
        self._folder, self._url, self._chance = folder, url, random.Random(2)
        self.config = folder / "config.yaml"

    def prepare(self, endpoint: str) -> None:
        """The copy of the empty table, handed over to Lambda."""
        with psycopg.connect(self._url, autocommit=True) as connection:
            connection.execute("DROP SCHEMA IF EXISTS replicator CASCADE")
            connection.execute(f"DROP TABLE IF EXISTS {TABLE}, {TABLE}_usual")
            columns = "id text PRIMARY KEY, customer text, total numeric, note text"
            connection.execute(f"CREATE TABLE {TABLE}_usual ({columns})")
        self.config.write_text(CONFIG.format(table=TABLE, endpoint=endpoint, url=self._url))
        command = [sys.executable, "-m", "replicator", "run", str(self.config), "--until", "backfilled"]
        subprocess.run(command, env={**os.environ, **CREDENTIALS}, check=True, capture_output=True)

    def batches(self, name: str, records: int, size: int, note: int = 200) -> Path:
        """New records of the stream in batches, one in a line. ``note``: the length of a text in each item."""
        for n in range(records):
            id = str(self._chance.randrange(5_000))
            item = {"id": id, "customer": f"customer {n}", "total": n, "note": "x" * note}
            self.memory.put(TABLE, item)
        found = self._records()[-records:]
        (shard,), arn = self.memory.open_shards(TABLE), self.memory.stream_arn(TABLE)
        path = self._folder / name
        cut = (found[first : first + size] for first in range(0, len(found), size))
        events = [orjson.dumps(event(shard, arn, records)) for records in cut]
        assert max(map(len, events)) < PAYLOAD, "Lambda would deliver less at once"
        path.write_bytes(b"\n".join(events))
        return path

    def _records(self) -> list[Any]:
        (shard,), arn = self.memory.open_shards(TABLE), self.memory.stream_arn(TABLE)
        place = {"StreamArn": arn, "ShardId": shard, "ShardIteratorType": "TRIM_HORIZON"}
        at, found = orjson.loads(self.memory.call("GetShardIterator", place))["ShardIterator"], list[Any]()
        while page := (response := orjson.loads(self.memory.call("GetRecords", {"ShardIterator": at})))["Records"]:
            found, at = found + page, response["NextShardIterator"]
        return found

    def cold(self, batch: Path) -> Sequence[float]:
        """CPU seconds of the imports, and of everything up to the first response; the most memory until then, in MB.

        Modules are compiled, as in the function's zip.
        """
        environment = {**os.environ, **CREDENTIALS, "REPLICATOR_CONFIG": str(self.config)}
        environment["PYTHONPYCACHEPREFIX"] = str(self._folder / "compiled")
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        command = [sys.executable, "-c", COLD, str(batch)]
        done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
        return [float(number) for number in done.stdout.split()[-3:]]


def lines(rounds: int, url: str, alone: Callable[..., Any]) -> Iterator[str]:
    """The result tables. ``alone`` calls a function in a separate process."""
    with tempfile.TemporaryDirectory() as folder:
        stage = Stage(Path(folder), url)
        with served(stage.memory) as endpoint:
            stage.prepare(endpoint)
            pairs, cold = [], []
            stage.cold(stage.batches("compiling", 1, 1))
            for n in range(rounds):
                cold.append(stage.cold(stage.batches(f"cold {n}", 1, 1)))
                path = stage.batches(f"round {n}", RECORDS, BATCH)
                pairs.append((alone(usual, url, path), alone(product, str(stage.config), path)))
            *_, largest = stage.cold(stage.batches("largest", LARGEST, LARGEST, note=10))
    yield from _table(pairs)
    yield ""
    imports, responded = (statistics.median(each[n] for each in cold) for n in (0, 1))
    yield f"Cold start, CPU: {imports:.2f} s of imports, {responded:.2f} s up to the response to a batch of one record."
    yield f"Memory with a batch of {LARGEST:,} records: {largest:.0f} MB, the process as a whole."


def _table(pairs: Sequence[tuple[Result, Result]]) -> Iterator[str]:
    yield f"| batches of {BATCH:,} records, {len(pairs)} rounds | records/s | x the usual rate | $ a million records |"
    yield "|---|---|---|---|"
    of: Mapping[str, list[Result]] = {
        "one write a record": [usual for usual, _ in pairs],
        "replicator": [product for _, product in pairs],
    }
    for name, results in of.items():
        rate = statistics.median(r.rate for r in results)
        times = ratio([r.rate for r in results], [r.rate for r in of["one write a record"]])
        yield f"| {name} | {rate:,.0f} | {times} | {_dollars(rate, 2 if name == 'replicator' else 0):.4f} |"


def _dollars(rate: float, reads: int) -> float:
    """Lambda's price of a million records at ``rate``, and that of ``reads`` stream requests for each batch."""
    batches = 1e6 / BATCH
    return 1e6 / rate * MEMORY * GB_SECOND + batches / 1e6 * (MILLION_REQUESTS + reads * MILLION_READS)
