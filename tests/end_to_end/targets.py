"""Pipelines into the other targets, read with plain clients, and what all of them are put through."""

from __future__ import annotations

import json
import os
import random
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import boto3
from boto3.dynamodb.types import TypeDeserializer
from deltalake import DeltaTable

from replicator.target.contract import Table
from replicator.testing.contract.kit import PK
from tests.connectors.delta.delta_kit import documents
from tests.connectors.webhook.receiver_kit import Receiver
from tests.end_to_end.kills import PAGE
from tests.end_to_end.pipeline import Pipeline, Run
from tests.end_to_end.world import Load, Source
from tests.security.canary import SECRET
from tests.servers.dynamodb_local import DynamoDBLocal
from tests.servers.redis import RedisCluster, RedisServer
from tests.servers.search_fixtures import Search

PROVE = bool(os.environ.get("REPLICATOR_PROVE"))
KILLS = int(os.environ.get("REPLICATOR_KILLS", "50" if PROVE else "3"))  # each of HOW_FAR
FILLER = "x" * 4000
PAUSE = 0.01  # between writes: servers that start need the processor, too
HOOK = """
def hook(item):
    if item["n"] % 5 == 0:
        return None
    return {"pk": item["pk"], "n": item["n"], "eighth": item["n"] / 8, "even": item["n"] % 2 == 0}
"""
MAPPING = {
    "properties": {
        "pk": {"type": "keyword"},
        "n": {"type": "long"},
        "eighth": {"type": "double"},
        "even": {"type": "boolean"},
    }
}
_deserialized = TypeDeserializer().deserialize


def through_the_hook(items: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """What HOOK makes of items, worked out once more."""
    return {
        item["pk"]: {"pk": item["pk"], "n": item["n"], "eighth": item["n"] / 8, "even": item["n"] % 2 == 0}
        for item in items
        if item["n"] % 5
    }


@dataclass
class Mirror(Pipeline):
    """A pipeline into a target without transactions."""

    options: Mapping[str, Any] = field(default_factory=dict, kw_only=True)
    """Of the target's table."""

    @abstractmethod
    def tombstones(self) -> int:
        """How many there are."""

    @abstractmethod
    def writes(self) -> int:
        """A number that is another one after anything was stored."""

    @abstractmethod
    def stop_server(self) -> None: ...

    @abstractmethod
    def start_server(self) -> None: ...

    def configured(self, hook: str | None = HOOK, **more: Any) -> Mirror:
        self.configure(hook, {self.table: dict(self.options)}, **more)
        return self

    @property
    def table(self) -> str:
        return self.name

    def begun(self, run: Run) -> None:
        """Until the run has found out where to go on."""
        run.eventually(lambda: run.events("snapshot started") + run.events("resuming"), "the run begins")


@dataclass
class Index(Mirror):
    """Into a search index, behind its alias."""

    search: Search

    def target(self) -> Mapping[str, Any]:
        kind = self.search.server.which.partition("-")[0]
        return {"type": kind, "url": self.search.url, "username": "me", "password": SECRET}  # which it does not ask for

    @property
    def table(self) -> str:
        return f"{self.search.prefix}{self.name}"

    def documents(self) -> dict[str, dict[str, Any]]:
        return {key: source for key, source in self._all(self.table)}

    def tombstones(self) -> int:
        hidden = {"query": {"term": {"replicator.deleted": True}}}
        return sum(self._asked("POST", f"/{index}/_count", hidden)["count"] for index in self._refreshed())

    def marked(self) -> set[str]:
        """The keys of the documents that ``deletes: mark`` kept."""
        self._refreshed()
        wanted = {"size": 10_000, "query": {"exists": {"field": "replicator.deleted_at"}}}
        hits = self._asked("POST", f"/{self.table}/_search", wanted)["hits"]["hits"]
        return {hit["_source"]["replicator"]["partition"] for hit in hits}

    def writes(self) -> int:
        stats = [self._asked("GET", f"/{index}/_stats/indexing")["_all"] for index in self.search.indices()]
        return sum(s["primaries"]["indexing"]["index_total"] for s in stats)

    def stop_server(self) -> None:
        self.search.server.stop()

    def start_server(self) -> None:
        self.search.server.start()

    def crash_server(self) -> None:
        """Without a trace of what it only remembers: everything stored is flushed, then the power goes."""
        for index in self.search.indices():
            self._asked("POST", f"/{index}/_flush")
        self.search.server.kill()

    def _refreshed(self) -> list[str]:
        indices = self.search.indices()
        for index in indices:
            self._asked("POST", f"/{index}/_refresh")
        return indices

    def _all(self, alias: str) -> Iterable[tuple[str, dict[str, Any]]]:
        if not self._refreshed():
            return
        page = self._asked("POST", f"/{alias}/_search?scroll=1m", {"size": 1000})
        while page["hits"]["hits"]:
            for hit in page["hits"]["hits"]:
                source = hit["_source"]
                ours = source.pop("replicator")
                yield ours["partition"], source.get("document", source)
            page = self._asked("POST", "/_search/scroll", {"scroll": "1m", "scroll_id": page["_scroll_id"]})

    def _asked(self, method: str, path: str, body: Any = None) -> Any:
        """The answer with its numbers exact."""
        data = None if body is None else json.dumps(body).encode()
        request = Request(f"{self.search.url}{path}", data, {"Content-Type": "application/json"}, method=method)
        with urlopen(request, timeout=60) as answer:
            return json.loads(answer.read(), parse_float=Decimal)


@dataclass
class OtherTable(Mirror):
    """Into a table of another DynamoDB."""

    server: DynamoDBLocal

    def target(self) -> Mapping[str, Any]:
        return {"type": "dynamodb", "region": "eu-west-1", "endpoint_url": self.server.endpoint, "create": True}

    def documents(self) -> dict[str, dict[str, Any]]:
        found = [item for item in self._items() if not _is_tombstone(item)]
        return {item["pk"]: {n: v for n, v in item.items() if not n.startswith("_replicator")} for item in found}

    def tombstones(self) -> int:
        return sum(map(_is_tombstone, self._items()))

    def writes(self) -> int:
        return sum(int(item["_replicator_version"]) for item in self._items())

    def stop_server(self) -> None:
        self.server.stop()

    def start_server(self) -> None:
        self.server.start()

    def _items(self) -> list[dict[str, Any]]:
        client = boto3.client(
            "dynamodb",
            endpoint_url=self.server.endpoint,
            region_name="eu-west-1",
            aws_access_key_id="local",
            aws_secret_access_key="local",
        )
        try:
            pages = client.get_paginator("scan").paginate(TableName=self.table, ConsistentRead=True)
            return [{n: _deserialized(v) for n, v in item.items()} for page in pages for item in page["Items"]]
        except client.exceptions.ResourceNotFoundException:
            return []


@dataclass
class Notified(Mirror):
    """Into the copy that the documented receiver of webhooks keeps."""

    receiver: Receiver

    def target(self) -> Mapping[str, Any]:
        return {**self.receiver.config, "max_events": 3}  # a batch takes several requests

    def documents(self) -> dict[str, dict[str, Any]]:
        return {id[0]: document for id, document in self.receiver.documents(self.table).items()}

    def tombstones(self) -> int:
        return self.receiver.tombstones()

    def writes(self) -> int:
        """Messages with changes that the receiver has accepted, also those whose events it had already."""
        return int(self.receiver.query("SELECT count(*) FROM messages WHERE answer LIKE '%superseded%'")[0][0])

    def stop_server(self) -> None:
        self.receiver.kill()

    def start_server(self) -> None:
        self.receiver.start()


@dataclass
class Lake(Mirror):
    """Into a Delta table in a folder."""

    lake: Path

    def target(self) -> Mapping[str, Any]:
        return {"type": "delta", "path": str(self.lake), "commit_rows": PAGE, "commit_seconds": 0}

    def documents(self) -> dict[str, dict[str, Any]]:
        found = Table(self.table, PK)
        return {} if self._table() is None else {id[0]: dict(d) for id, d in documents(str(self.lake), found).items()}

    def tombstones(self) -> int:
        found = self._table("_tombstones")
        return 0 if found is None else int(found.count())

    def writes(self) -> int:
        return sum(int(found.version()) for found in (self._table(), self._table("_tombstones")) if found is not None)

    def stop_server(self) -> None:
        raise AssertionError("there is none")

    start_server = stop_server

    def _table(self, *more: str) -> DeltaTable | None:
        place = self.lake.joinpath(self.table, *more)
        return DeltaTable(str(place)) if (place / "_delta_log").exists() else None


@dataclass
class Keys(Mirror):
    """Into a Redis server, or a cluster."""

    server: RedisServer | RedisCluster

    def target(self) -> Mapping[str, Any]:
        return {"type": "redis", "url": self.server.url}

    def documents(self) -> dict[str, dict[str, Any]]:
        found = [json.loads(text, parse_float=Decimal) for text in self._values(f"{self.table}:*")]
        return {document["pk"]: document for document in found}

    def tombstones(self) -> int:
        return sum(guard.endswith(b"d") for guard in self._guards())

    def writes(self) -> int:
        return sum(int(guard.rstrip(b"de")) for guard in self._guards())

    def stop_server(self) -> None:
        self.server.kill()

    def start_server(self) -> None:
        self.server.start()

    def _guards(self) -> list[bytes]:
        return self._values(f"replicator:{{{self.table}:*")

    def _values(self, pattern: str) -> list[bytes]:
        found: list[bytes] = []
        for node in self.server.nodes:
            with node.client() as client, client.pipeline(transaction=False) as pipeline:
                for key in client.keys(pattern):
                    pipeline.get(key)
                found += pipeline.execute()
        return found


def _is_tombstone(item: Mapping[str, Any]) -> bool:
    return "_replicator_deleted" in item


# What each is put through


def ends_equal_after_kills_and_a_restart(
    mirror: Mirror, source: Source, roll: Callable[[int], None], kills: int = KILLS
) -> None:
    """A backfill beside live writes with deletes; the run is killed at random moments, the server goes and returns."""
    chance = random.Random(KILLS)
    source.fill(800, filler=FILLER)
    mirror.configured(backfill={"segments": 2, "read_units": 30})
    with Load(source, seed=11, keys=800, every=roll, pause=PAUSE) as load:
        for kill in range(kills):
            with mirror.start() as run:
                mirror.begun(run)
                advances(mirror, run, HOW_FAR[kill % len(HOW_FAR)])
                load.wait(chance.randrange(1, 60))
                run.kill()
        killed = mirror.status()
        the_server_goes_and_returns(mirror, load)
    mirror.configured(backfill={"segments": 2})
    mirror.caught_up()

    assert killed["counts"]["read"] > 0
    assert mirror.documents() == through_the_hook(source.items().values())
    mirror.counts()


HOW_FAR = ("begun", "written", "saved")


def advances(mirror: Mirror, run: Run, how_far: str) -> None:
    """Until the run has begun, written something, or noted that it has."""
    if how_far == "written":
        before = mirror.writes()
        run.eventually(lambda: mirror.writes() != before, "the run writes something")
    elif how_far == "saved":
        read = mirror.status()["counts"]["read"]
        run.eventually(lambda: mirror.status()["counts"]["read"] > read, "the run saves something")


def the_server_goes_and_returns(mirror: Mirror, load: Load) -> None:
    with mirror.start() as run:
        mirror.begun(run)
        load.wait(20)
        mirror.stop_server()
        run.until("waiting")
        load.wait(30)
        mirror.start_server()
        run.until("resuming after a wait")
        load.wait(30)
        assert run.stop().code == 0


def leaves_no_tombstone(mirror: Mirror, source: Source) -> None:
    """Deletes beside a backfill that nothing interrupted."""
    source.fill(800, filler=FILLER)
    mirror.configured(backfill={"segments": 2, "read_units": 40})
    with mirror.start("run", "--until", "caught-up") as run:
        with Load(source, seed=12, keys=800, pause=PAUSE):
            run.eventually(mirror.tombstones, "a delete leaves a tombstone")
        assert run.wait().code == 0
    assert mirror.tombstones() == 0
    assert mirror.documents() == through_the_hook(source.items().values())
