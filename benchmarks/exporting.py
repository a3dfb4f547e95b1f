"""A backfill from an export, and by a scan: client CPU for each item. Both sources are in another process.

The same items, into a target that costs nothing. Neither connection is encrypted, which spares the scan more: an export
is compressed. What is measured begins with the first batch, so that neither a client's start nor the wait for an export
counts.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from benchmarks import data, product, source
from benchmarks.counting import ratio
from benchmarks.sharing import Nothing
from replicator.aws.errors import AwsError
from replicator.batch import Batch, Outcome
from replicator.config.settings import Backfill
from replicator.engine import run
from replicator.source import export
from replicator.testing.dynamodb import DynamoDB
from replicator.testing.dynamodb.http import served

ITEMS, FILES, SEGMENTS = 200_000, 8, 4
BUCKET = "exports"
SCAN, EXPORT = "scan", "export"


class Timed(Nothing):
    """Timed from the first batch, which is not counted, to the last one."""

    first = 0

    def write(self, batch: Batch) -> Outcome:
        outcome = super().write(batch)
        if not self.first:
            self.first = self.stored
            self.began = time.perf_counter(), time.process_time()
        return outcome


def copied(endpoint: str, objects: str, way: str) -> product.Result:
    """Copy all items, by a scan or from an export."""
    os.environ.update(product.CREDENTIALS, AWS_ENDPOINT_URL_S3=objects)
    export.POLL = export.SETTLED = 0.05
    stop, built = threading.Event(), list[Timed]()

    def connector(options: Any, pipeline: str) -> Timed:
        built.append(Timed(ITEMS, stop))
        return built[-1]

    backfill = Backfill.model_validate(
        {"segments": SEGMENTS} if way == SCAN else {"from": EXPORT, "bucket": BUCKET, "segments": SEGMENTS}
    )
    with tempfile.TemporaryDirectory() as folder:
        config = product.config(endpoint, {"t": {}}, connector, "postgresql://localhost/x", None)
        config = replace(config, backfill=backfill, path=Path(folder) / "benchmark.yaml")
        run.run(config, until=None, resync=False, accept_hook_change=False, stop=stop, observe=lambda _: None)
    (target,) = built
    seconds, cpu = (after - before for before, after in zip(target.began, target.finished, strict=True))
    return product.Result(target.stored - target.first, seconds, cpu)


def lines(rounds: int, alone: Callable[..., Any]) -> Iterator[str]:
    """The result table. ``alone`` calls a function in a separate process."""
    found: dict[str, list[product.Result]] = {SCAN: [], EXPORT: []}
    with sources() as (endpoint, objects):
        for number in range(rounds):
            for way in sorted(found, reverse=number % 2 == 0):
                found[way].append(alone(copied, endpoint, objects, way))
                print(f"  {way}: {_cost(found[way][-1]):.2f} us, load {os.getloadavg()[0]:.1f}", file=sys.stderr)
    base = [_cost(result) for result in found[SCAN]]
    yield "| backfill, into a target that costs nothing | client CPU, us/item | rate per core, x scan |"
    yield "|---|---|---|"
    for way, results in found.items():
        costs = [_cost(result) for result in results]
        yield f"| {way} | {statistics.median(costs):.2f} | {ratio(base, costs)} |"


def _cost(result: product.Result) -> float:
    return result.cpu / result.changes * 1e6


class _Objects(BaseHTTPRequestHandler):
    """GetObject with a range, of the objects of an in-memory DynamoDB."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    database: DynamoDB

    def do_GET(self) -> None:
        _, bucket, key = unquote(urlsplit(self.path).path).split("/", 2)
        try:
            status = 206
            body = self.database.exports.get_object({"Bucket": bucket, "Key": key, "Range": self.headers["Range"]})
        except AwsError as e:
            status, body = e.status, f"<Error><Code>{e.code}</Code><Message>{e.message}</Message></Error>".encode()
        self.send_response_only(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Do not log requests."""


@contextlib.contextmanager
def sources() -> Iterator[tuple[str, str]]:
    """The URLs of a DynamoDB and an S3 that run during the block."""
    command = [sys.executable, "-m", "benchmarks.exporting"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            endpoint, objects = process.stdout.readline().split()
            yield endpoint, objects
        finally:
            process.terminate()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.exporting")
    parser.add_argument("--items", type=int, default=ITEMS)
    given = parser.parse_args()
    database = DynamoDB(now=time.time, random=random.Random(3), dialect=source.DIALECT)
    database.create_table(data.TABLE, keys=source.KEYS, view=None)
    for item in data.initial(given.items):
        database.put(data.TABLE, item)
    database.enable_stream(data.TABLE)
    database.exports.enable(data.TABLE)
    database.exports.files = FILES
    gc.collect()
    gc.freeze()  # keep garbage collection of this data out of the measurement
    gc.disable()
    objects = ThreadingHTTPServer(("127.0.0.1", 0), type("Objects", (_Objects,), {"database": database}))
    threading.Thread(target=objects.serve_forever, daemon=True).start()
    with served(database) as url:
        print(url, f"http://127.0.0.1:{objects.server_port}", flush=True)
        sys.stdin.read()  # until the parent process ends


if __name__ == "__main__":
    main()
