"""A DynamoDB table, a database, and the command line between them. Everything is looked at with plain clients."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import boto3
import psycopg
import yaml
from boto3.dynamodb.types import TypeDeserializer, TypeSerializer
from psycopg import sql
from psycopg.rows import dict_row
from psycopg.types.json import set_json_loads

from tests.servers_postgres import Database

T = TypeVar("T")
PATIENCE = 90.0  # seconds for anything on a busy machine
_AWS = {"AWS_ACCESS_KEY_ID": "local", "AWS_SECRET_ACCESS_KEY": "local", "AWS_REGION": "eu-west-1"}
_deserialized = TypeDeserializer().deserialize
_serialized = TypeSerializer().serialize


def eventually(found: Callable[[], T], what: str, within: float = PATIENCE) -> T:
    """What ``found`` returns once it is true; AssertionError when it is not within the deadline."""
    deadline = time.monotonic() + within
    while not (value := found()):
        assert time.monotonic() < deadline, f"{what}: not within {within:.0f} s"
        time.sleep(0.05)
    return value


@dataclass
class Source:
    """A table with a stream, what was written to it, and how many stream records that made."""

    endpoint: str
    table: str = field(default_factory=lambda: f"t{uuid.uuid4().hex[:10]}")
    view: str = "NEW_AND_OLD_IMAGES"
    records: int = 0
    alive: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.client: Any = boto3.client(
            "dynamodb",
            endpoint_url=self.endpoint,
            region_name="eu-west-1",
            aws_access_key_id="local",
            aws_secret_access_key="local",
        )

    def create(self) -> Source:
        self.client.create_table(
            TableName=self.table,
            KeySchema=[{"AttributeName": "pk", "KeyType": "HASH"}],
            AttributeDefinitions=[{"AttributeName": "pk", "AttributeType": "S"}],
            BillingMode="PAY_PER_REQUEST",
            StreamSpecification={"StreamEnabled": True, "StreamViewType": self.view},
        )
        return self

    def put(self, pk: str, **attributes: object) -> None:
        """Every put has to differ from what is there: one that changes nothing makes no record."""
        item = {"pk": pk, **attributes}
        self.client.put_item(TableName=self.table, Item={name: _serialized(v) for name, v in item.items()})
        self.records += 1
        self.alive.add(pk)

    def fill(self, count: int, prefix: str = "k", **attributes: object) -> None:
        """``count`` items with running numbers, in batches."""
        keys = [f"{prefix}{n}" for n in range(count)]
        for start in range(0, count, 25):
            items = [{"pk": k, "n": start + n, **attributes} for n, k in enumerate(keys[start : start + 25])]
            puts = [{"PutRequest": {"Item": {name: _serialized(v) for name, v in item.items()}}} for item in items]
            self.client.batch_write_item(RequestItems={self.table: puts})
        self.records += count
        self.alive.update(keys)

    def delete(self, pk: str) -> None:
        assert pk in self.alive, "deleting what is not there makes no record"
        self.client.delete_item(TableName=self.table, Key={"pk": {"S": pk}})
        self.records += 1
        self.alive.remove(pk)

    def stream(self, enabled: bool) -> None:
        specification: dict[str, Any] = {"StreamEnabled": enabled}
        if enabled:
            specification["StreamViewType"] = self.view
        self.client.update_table(TableName=self.table, StreamSpecification=specification)

    def items(self) -> dict[str, dict[str, Any]]:
        """All items as a plain scan shows them."""
        pages = self.client.get_paginator("scan").paginate(TableName=self.table, ConsistentRead=True)
        items = [{name: _deserialized(v) for name, v in item.items()} for page in pages for item in page["Items"]]
        return {item["pk"]: item for item in items}


class Load:
    """Writes, updates and deletes in a thread, from a seed, for as long as the block runs."""

    def __init__(self, source: Source, seed: int, keys: int = 150, every: Callable[[int], None] | None = None) -> None:
        self._source, self._random, self._keys = source, random.Random(seed), keys
        self._every = every
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, daemon=True)
        self.done = 0

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()
        if self._error is not None and error is None:
            raise self._error

    def wait(self, more: int) -> None:
        """Until so many more changes were made."""
        goal = self.done + more
        eventually(lambda: self.done >= goal or self._error, "the load goes on")

    def _work(self) -> None:
        try:
            while not self._stop.is_set():
                self._write()
                self.done += 1
                if self._every is not None:
                    self._every(self.done)
        except BaseException as e:
            self._error = e

    def _write(self) -> None:
        pk = f"k{self._random.randrange(self._keys)}"
        if pk in self._source.alive and self._random.random() < 0.3:
            self._source.delete(pk)
        else:
            self._source.put(pk, n=self.done, load=self._random.random().hex())


@dataclass
class Ended:
    """A command that ended."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]


class Run:
    """A command in a process of its own, and the events it wrote so far."""

    def __init__(self, arguments: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        self._log, self._errors = log, log.with_suffix(".err")
        with log.open("wb") as out, self._errors.open("wb") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "replicator", *arguments], env=environment, stdout=out, stderr=err
            )

    def __enter__(self) -> Run:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.kill()

    def events(self, name: str) -> list[dict[str, Any]]:
        complete = self._log.read_text().rpartition("\n")[0].splitlines()
        return [e for e in map(json.loads, complete) if e["event"] == name]

    def until(self, name: str, within: float = PATIENCE, **fields: object) -> dict[str, Any]:
        """The first event of that name with these fields."""
        wanted = fields.items()
        found = self.eventually(lambda: [e for e in self.events(name) if wanted <= e.items()], f"event {name}", within)
        return found[0]

    def eventually(self, found: Callable[[], T], what: str, within: float = PATIENCE) -> T:
        """The same as ``eventually``, but not for longer than the command runs."""

        def still() -> T:
            running = self.process.poll() is None
            value = found()
            assert value or running, f"{what}: ended before, {self.ended()}"
            return value

        return eventually(still, what, within)

    def wait(self, within: float = PATIENCE) -> Ended:
        self.process.wait(within)
        return self.ended()

    def ended(self) -> Ended:
        code = self.process.poll()
        return Ended(-1000 if code is None else code, self._log.read_text(), self._errors.read_text())

    def stop(self, within: float = 10.0) -> Ended:
        """As a service manager asks for it."""
        self.process.send_signal(signal.SIGTERM)
        return self.wait(within)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@dataclass
class Copy:
    """A pipeline's config in a folder, and the commands on it."""

    folder: Path
    source: Source
    database: Database
    clock: Mapping[str, str] = field(default_factory=dict)
    """Environment of a moved clock."""
    name: str = "copy"
    """Of the pipeline, and of its table where it has one."""
    runs: int = 0

    def configure(self, hook: str | None = None, tables: Mapping[str, Any] | None = None, **more: Any) -> Copy:
        """Write the config; ``hook`` is the source of its function ``hook``."""
        target = {"type": "postgres", "url": self.database.url} | (
            {"tables": tables} if tables else {"table": self.name}
        )
        config: dict[str, Any] = {
            "pipeline": self.name,
            "source": {"table": self.source.table, "region": "eu-west-1", "endpoint_url": self.source.endpoint},
            "target": target,
            **more,
        }
        if hook is not None:
            (self.folder / "hooks.py").write_text(hook)
            config["transform"] = "hooks.py:hook"
        self.path.write_text(yaml.safe_dump(config))
        return self

    @property
    def path(self) -> Path:
        return self.folder / f"{self.name}.yaml"

    def start(self, command: str = "run", *options: str) -> Run:
        """``replicator run`` (or another command), in the background."""
        self.runs += 1
        environment = {**os.environ, **_AWS, **self.clock}
        return Run(
            [*command.split(), str(self.path), *options], environment, self.folder / f"{self.name}-{self.runs}.log"
        )

    def command(self, command: str, *options: str) -> Ended:
        with self.start(command, *options) as run:
            ended = run.wait()
        if ended.code == -signal.SIGSEGV and self.clock:  # libfaketime's doing: never seen without it
            with self.start(command, *options) as run:
                ended = run.wait()
        return ended

    def caught_up(self, command: str = "run", *options: str) -> Ended:
        """The same until it has caught up, which has to go well."""
        ended = self.command(command, "--until", "caught-up", *options)
        assert ended.code == 0, ended
        return ended

    def status(self) -> dict[str, Any]:
        (found,) = self.command("status", "--json").lines
        return found

    def counts(self) -> dict[str, int]:
        """The counts of ``status``, which always add up."""
        counts: dict[str, int] = self.status()["counts"]
        assert counts["read"] == counts["applied"] + counts["stale"] + counts["dropped"] + counts["parked"], counts
        return counts

    def query(self, statement: str, *names: str) -> list[dict[str, Any]]:
        """The rows of a statement, its braces filled with ``names``."""
        filled = sql.SQL(statement).format(*map(sql.Identifier, names))
        with psycopg.connect(self.database.url, autocommit=True, row_factory=dict_row) as connection:
            set_json_loads(lambda text: json.loads(text, parse_float=Decimal), connection)
            return connection.execute(filled).fetchall()

    def documents(self) -> dict[str, dict[str, Any]]:
        """The target's documents as a plain client shows them."""
        return {row["pk"]: row["document"] for row in self.query("SELECT pk, document FROM {}", self.name)}

    def rows(self) -> int:
        """How many rows there are, 0 also before there is a table."""
        try:
            return int(self.query("SELECT count(*) AS n FROM {}", self.name)[0]["n"])
        except psycopg.Error:
            return 0

    def equal(self) -> bool:
        """Whether the target is what the source is now."""
        return self.documents() == self.source.items()

    def assert_equal(self) -> None:
        assert self.documents() == self.source.items()
