"""Proves ``verify`` beside a thousand writes a second: every injected difference is found and repaired, nothing else.

    python -m benchmarks.differences [--differences 10000] [--target postgres|dynamodb|elasticsearch-9]

The source is the in-memory DynamoDB over HTTP. ``run`` and ``verify`` are processes of their own.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import psycopg

from benchmarks import source
from benchmarks.product import CREDENTIALS
from replicator.testing.servers.postgres import PostgresServer

TABLE = "proof"
RATE, AT_ONCE, MOVING = 1000, 25, 1000  # writes a second, in one request, and the items that they go to
BIG, OTHER = "1" * 37 + "1", "1" * 37 + "2"
LIKE = "w0"  # an item without differences, whose document is copied where one is made
HOOK = """
def hook(item):
    return None if item.get("hidden") else {name: item.get(name) for name in ("n", "big", "tags", "load")}
"""
KINDS = ("missing", "value", "digit", "set", "stale", "extra", "filtered")
TARGETS = ("postgres", "dynamodb", "elasticsearch-9", "opensearch-3")
WANTED = {"missing": "missing", "extra": "extra", "filtered": "extra"}


class Copy(Protocol):
    """A target into which differences are injected, behind replicator's back."""

    @property
    def target(self) -> Mapping[str, Any]: ...
    @property
    def kinds(self) -> Sequence[str]: ...

    def inject(self, kind: str, keys: Sequence[str]) -> None: ...


class Rows:
    """A table of Postgres."""

    kinds = KINDS
    _statements: Mapping[str, str] = {
        "missing": "DELETE FROM proof WHERE pk = ANY(%s)",
        "value": "UPDATE proof SET n = -7 WHERE pk = ANY(%s)",
        "digit": f"UPDATE proof SET big = {OTHER} WHERE pk = ANY(%s)",
        "set": "UPDATE proof SET tags = ARRAY['a', 'c'] WHERE pk = ANY(%s)",
        "stale": "UPDATE proof SET _version = 5 WHERE pk = ANY(%s)",
        "extra": "INSERT INTO proof (pk, n, _version) SELECT pk, 1, v FROM unnest(%s::text[]) AS pk, "
        "(SELECT max(_version) AS v FROM proof WHERE pk LIKE 'v%%') AS newest",
    }

    def __init__(self, url: str) -> None:
        columns = {"n": "numeric", "big": "numeric", "tags": "text[]", "load": "text"}
        self.target = {"type": "postgres", "url": url, "tables": {TABLE: {"columns": columns}}}
        self._url = url

    def inject(self, kind: str, keys: Sequence[str]) -> None:
        with psycopg.connect(self._url, autocommit=True) as connection:
            statement = self._statements["extra" if kind == "filtered" else kind]
            connection.execute(statement, [list(keys)])


class Documents:
    """An index; its versions cannot go back."""

    kinds = tuple(kind for kind in KINDS if kind != "stale")

    def __init__(self, ask: Callable[..., Any], url: str) -> None:
        fields = {"n": "long", "big": "keyword", "tags": "keyword", "load": "keyword"}
        mapping = {"properties": {name: {"type": kind} for name, kind in fields.items()}}
        self.target = {"type": "elasticsearch", "url": url, "tables": {TABLE: {"mapping": mapping, "replicas": 0}}}
        self._ask = ask

    def inject(self, kind: str, keys: Sequence[str]) -> None:
        made = kind in ("extra", "filtered")
        like = [LIKE] * len(keys) if made else keys
        lines: list[bytes] = []
        for start in range(0, len(keys), 500):
            stored = self._ask("POST", f"/{TABLE}-1/_mget", {"ids": like[start : start + 500]})["docs"]
            for key, document in zip(keys[start : start + 500], stored, strict=True):
                lines += self._lines(kind, key, document)
        for start in range(0, len(lines), 1000):
            done = self._ask("POST", f"/{TABLE}-1/_bulk", b"\n".join(lines[start : start + 1000]) + b"\n")
            assert not done["errors"], [one for one in done["items"] if "error" in str(one)][:3]
        self._ask("POST", f"/{TABLE}-1/_refresh")

    def _lines(self, kind: str, key: str, document: Mapping[str, Any]) -> Iterator[bytes]:
        newer = 10**6 if key.startswith(("gone", "hidden")) else 0  # than the tombstone of an item that is filtered
        action = {"_id": key, "version": document["_version"] + newer, "version_type": "external_gte"}
        if kind == "missing":
            yield json.dumps({"delete": action}).encode()
            yield b" "
            return
        changed: Mapping[str, Any] = {"value": {"n": -7}, "digit": {"big": OTHER}, "set": {"tags": ["a", "c"]}}
        body: dict[str, Any] = {**document["_source"], **changed.get(kind, {})}
        body["replicator"] = {**body["replicator"], "partition": key}
        yield json.dumps({"index": action}).encode()
        yield json.dumps(body).encode()


class Items:
    """A table of DynamoDB."""

    kinds = KINDS
    _changed: Mapping[str, Mapping[str, Any]] = {
        "value": {"n": {"N": "-7"}},
        "digit": {"big": {"N": OTHER}},
        "set": {"tags": {"SS": ["a", "c"]}},
        "stale": {"_replicator_version": {"N": "5"}},
    }

    def __init__(self, url: str) -> None:
        account = {"region": "us-east-1", "endpoint_url": url}
        self.target = {"type": "dynamodb", "table": f"{TABLE}-copy", "create": True, **account}
        self._client = source.client(url)

    def inject(self, kind: str, keys: Sequence[str]) -> None:
        like = self._stored(LIKE)
        for key in keys:
            if kind == "missing":
                self._call("DeleteItem", Key={"pk": {"S": key}})
            elif kind in ("extra", "filtered"):
                self._call("PutItem", Item={**like, "pk": {"S": key}})
            else:
                self._call("PutItem", Item={**self._stored(key), **self._changed[kind]})

    def _stored(self, key: str) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self._call("GetItem", Key={"pk": {"S": key}}, ConsistentRead=True)["Item"]
        return found

    def _call(self, operation: str, **request: Any) -> Any:
        return json.loads(self._client.call(operation, {"TableName": f"{TABLE}-copy", **request}))


def writing(url: str, ended: threading.Event, done: Counter[str]) -> None:
    """``RATE`` writes a second, to items without differences."""
    client, began, number = source.client(url), time.monotonic(), 0
    while not ended.is_set():
        keys = [f"k{(number + n) % MOVING}" for n in range(AT_ONCE)]
        put(client, [item(key, number + n, load=f"{number}") for n, key in enumerate(keys)])
        number += AT_ONCE
        done["writes"] = number
        ended.wait(max(0.0, began + number / RATE - time.monotonic()))


def item(key: str, n: int, **more: str) -> dict[str, Any]:
    made: dict[str, Any] = {"pk": {"S": key}, "n": {"N": str(n)}, "big": {"N": BIG}, "tags": {"SS": ["a", "b"]}}
    return made | {name: {"S": value} for name, value in more.items()}


def put(client: Any, items: Sequence[Mapping[str, Any]]) -> None:
    for start in range(0, len(items), AT_ONCE):
        puts = [{"PutRequest": {"Item": one}} for one in items[start : start + AT_ONCE]]
        client.call("BatchWriteItem", {"RequestItems": {TABLE: puts}})


@contextlib.contextmanager
def served() -> Iterator[str]:
    command = [sys.executable, "-m", "replicator.testing.dynamodb.http", "--shards", "4"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


def proof(copy: Copy, count: int, folder: Path) -> Iterator[str]:
    with served() as url:
        client = source.client(url)
        keys = [{"AttributeName": "pk", "KeyType": "HASH"}]
        kinds = [{"AttributeName": "pk", "AttributeType": "S"}]
        stream = {"StreamEnabled": True, "StreamViewType": "NEW_AND_OLD_IMAGES"}
        made = {"TableName": TABLE, "KeySchema": keys, "AttributeDefinitions": kinds, "StreamSpecification": stream}
        client.call("CreateTable", {**made, "BillingMode": "PAY_PER_REQUEST"})
        each = -(-count // len(copy.kinds))
        injected = {
            kind: [f"{_prefix(kind)}{n}" for n in range(at * each, (at + 1) * each)]
            for at, kind in enumerate(copy.kinds)
        }
        put(client, [item(f"v{n}", n) for n in range(count + 1000)])
        put(client, [item(key, 0, hidden="yes") for key in injected["filtered"]])
        put(client, [item(LIKE, 0), *(item(f"k{n}", n) for n in range(MOVING))])
        config = _config(copy, url, folder)
        ended, done = threading.Event(), Counter[str]()
        writer = threading.Thread(target=writing, args=(url, ended, done))
        with running(config, folder):
            writer.start()
            try:
                yield from _passes(copy, config, injected, done)
            finally:
                ended.set()
                writer.join()


def _passes(copy: Copy, config: str, injected: Mapping[str, Sequence[str]], done: Counter[str]) -> Iterator[str]:
    for kind, keys in injected.items():
        copy.inject(kind, keys)
    wanted = {(key, WANTED.get(kind, "different")) for kind, keys in injected.items() for key in keys}
    yield f"{len(wanted):,} differences: {', '.join(injected)}\n"
    yield "| | result | found | missed | false alarms | repaired | s | writes/s |"
    yield "|---|---|---|---|---|---|---|---|"
    none: set[tuple[str, str]] = set()
    for name, options, there in (
        ("verify", (), wanted),
        ("verify --repair", ("--repair",), wanted),
        ("verify", (), none),
    ):
        began, before = time.monotonic(), done["writes"]
        *results, total = [json.loads(line) for line in command("verify", config, "--json", *options).splitlines()]
        seconds = time.monotonic() - began
        found = {(line["id"][0], line["kind"]) for line in results if line["result"] == "difference"}
        others = sum(line["result"] not in ("difference", "repaired") for line in results) + len(found - there)
        rate = (done["writes"] - before) / seconds
        missed = len(there - found)
        counts = f"{len(found & there):,} | {missed:,} | {others:,} | {total['repaired']:,}"
        yield f"| {name} | {total['result']} | {counts} | {seconds:.0f} | {rate:,.0f} |"


def _prefix(kind: str) -> str:
    return {"extra": "gone", "filtered": "hidden"}.get(kind, "v")


def _config(copy: Copy, url: str, folder: Path) -> str:
    (folder / "hooks.py").write_text(HOOK)
    place = {"table": TABLE, "region": "us-east-1", "endpoint_url": url}
    config = {"pipeline": TABLE, "source": place, "transform": "hooks.py:hook", "target": copy.target}
    path = folder / "proof.yaml"
    path.write_text(json.dumps(config))
    return str(path)


def command(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "replicator", *arguments], stdout=subprocess.PIPE, text=True, check=False
    )
    return done.stdout


@contextlib.contextmanager
def running(config: str, folder: Path) -> Iterator[None]:
    """A run that is live."""
    log = folder / "run.log"
    with (
        log.open("wb") as out,
        subprocess.Popen([sys.executable, "-m", "replicator", "run", config], stdout=out) as run,
    ):
        try:
            while '"phase":"live"' not in log.read_text().replace(" ", ""):
                assert run.poll() is None, log.read_text()
                time.sleep(0.2)
            yield
            assert run.poll() is None, log.read_text()
        finally:
            run.terminate()


@contextlib.contextmanager
def opened(target: str) -> Iterator[Copy]:
    if target == "postgres":
        with PostgresServer("debian") as server:
            yield Rows(server.url())
        return
    if target == "dynamodb":
        from tests.servers.dynamodb_local import DynamoDBLocal

        with DynamoDBLocal() as local:
            yield Items(local.endpoint)
        return
    from tests.servers.search import SearchServer
    from tests.servers.search_fixtures import Search

    which: Any = target
    with SearchServer(which, heap=1024, fast_start=False) as server:
        yield Documents(Search(server, TABLE).ask, server.url)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.differences", description=__doc__)
    parser.add_argument("--differences", type=int, default=10_000)
    parser.add_argument("--target", default="postgres", choices=TARGETS)
    given = parser.parse_args()
    os.environ.update(CREDENTIALS)
    with opened(given.target) as copy, tempfile.TemporaryDirectory() as folder:
        for line in proof(copy, given.differences, Path(folder)):
            print(line, flush=True)


if __name__ == "__main__":
    main()
