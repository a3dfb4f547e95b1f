"""A DynamoDB table with writes going on, and a database to copy it to; all of it looked at with plain clients."""

from __future__ import annotations

import json
import random
import threading
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from types import TracebackType
from typing import Any

import boto3
import psycopg
from boto3.dynamodb.types import TypeDeserializer, TypeSerializer
from psycopg import sql
from psycopg.rows import dict_row
from psycopg.types.json import set_json_loads

from tests.end_to_end.pipeline import PATIENCE, Ended, Pipeline, Run, eventually
from tests.security.canary import VALUE
from tests.servers.postgres_fixtures import Database

__all__ = ["Copy", "Ended", "Load", "PATIENCE", "Run", "Source", "eventually"]

_deserialized = TypeDeserializer().deserialize
_serialized = TypeSerializer().serialize


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
        item = {"pk": pk, "canary": VALUE, **attributes}
        self.client.put_item(TableName=self.table, Item={name: _serialized(v) for name, v in item.items()})
        self.records += 1
        self.alive.add(pk)

    def fill(self, count: int, prefix: str = "k", **attributes: object) -> None:
        """``count`` items with running numbers, in batches."""
        keys, attributes = [f"{prefix}{n}" for n in range(count)], {"canary": VALUE, **attributes}
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
    """Writes, updates and deletes in a thread, from a seed, for as long as the block runs.

    ``every`` is called after each change, with their number; ``pause``: seconds between changes.
    """

    def __init__(
        self,
        source: Source,
        seed: int,
        keys: int = 150,
        every: Callable[[int], None] | None = None,
        pause: float = 0.0,
    ) -> None:
        self._source, self._random, self._keys = source, random.Random(seed), keys
        self._every, self._pause = every, pause
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
            while not self._stop.wait(self._pause):
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
class Copy(Pipeline):
    """A pipeline into Postgres."""

    source: Source  # more than its base asks for: tests write to it
    database: Database

    def target(self) -> Mapping[str, Any]:
        return {"type": "postgres", "url": self.database.url}

    def query(self, statement: str, *names: str) -> list[dict[str, Any]]:
        """The rows of a statement, its braces filled with ``names``."""
        filled = sql.SQL(statement).format(*map(sql.Identifier, names))
        with psycopg.connect(self.database.url, autocommit=True, row_factory=dict_row) as connection:
            set_json_loads(lambda text: json.loads(text, parse_float=Decimal), connection)
            return connection.execute(filled).fetchall()

    def execute(self, statement: str) -> None:
        """A change behind replicator's back, its braces filled with the table."""
        with psycopg.connect(self.database.url, autocommit=True) as connection:
            connection.execute(sql.SQL(statement).format(sql.Identifier(self.name)))

    def documents(self) -> dict[str, dict[str, Any]]:
        return {row["pk"]: row["document"] for row in self.query("SELECT pk, document FROM {}", self.name)}

    def assert_history(self) -> int:
        """The history (``history: true``) ends in what is stored, and no change is missing before; how many it has.

        Behind a scan or a sweep, and in a new epoch, there may be changes that were not read.
        """
        history = f"{self.name}_history"
        unlike = self.query(
            """SELECT pk, t.document, h._new FROM {} AS t FULL JOIN (
              SELECT DISTINCT ON (pk) pk, _new FROM {} ORDER BY pk, _version DESC) AS h USING (pk)
            WHERE t.document IS DISTINCT FROM h._new""",
            self.name,
            history,
        )
        assert unlike == []
        broken = self.query(
            """SELECT * FROM (
              SELECT pk, _version, _old, lag(_new) OVER w AS before, lag(_sequence) OVER w AS earlier,
                lag(_version) OVER w AS version FROM {} WINDOW w AS (PARTITION BY pk ORDER BY _version)) AS changes
            WHERE earlier <> '' AND version >> 48 = _version >> 48 AND _old IS DISTINCT FROM before""",
            history,
        )
        assert broken == []
        return int(self.query("SELECT count(*) AS n FROM {} WHERE _sequence <> ''", history)[0]["n"])

    def rows(self) -> int:
        """How many rows there are, 0 also before there is a table."""
        try:
            return int(self.query("SELECT count(*) AS n FROM {}", self.name)[0]["n"])
        except psycopg.Error:
            return 0
