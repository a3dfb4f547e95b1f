"""Events in a cluster during a run: it runs out of memory, ILM shrinks the index, a node dies."""

from __future__ import annotations

import json
import os
import random
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from replicator.testing.dynamodb import DynamoDB
from replicator.testing.dynamodb.http import served
from replicator.testing.servers.programs import free_port
from tests.end_to_end.pipeline import Run
from tests.servers.search import SearchServer, ServerMissing
from tests.servers.search_fixtures import Search
from tests.servers.starting import not_tested

pytestmark = pytest.mark.search

LIVE = {"bool": {"must_not": {"term": {"replicator.deleted": True}}}}
LOGIN = {"AWS_ACCESS_KEY_ID": "local", "AWS_SECRET_ACCESS_KEY": "local"}
FILLER = "x" * 2000


class Copy:
    """A pipeline from an in-memory table into an index, run in a separate process."""

    def __init__(self, search: Search, db: DynamoDB, endpoint: str, folder: Path, **options: Any) -> None:
        self.search, self.db, self._folder, self._runs = search, db, folder, 0
        self.alias = f"{search.prefix}orders"
        self.index = f"{self.alias}-1"
        db.create_table("orders", shards=2)
        kind = search.server.which.partition("-")[0]
        tables = {self.alias: {"mapping": {"dynamic": False, "properties": {}}, **options}}
        config = {
            "pipeline": "orders",
            "source": {"table": "orders", "region": "us-east-1", "endpoint_url": endpoint},
            "target": {"type": kind, "url": search.url, "tables": tables, "timeout": 20},
        }
        (folder / "orders.yaml").write_text(json.dumps(config))

    def start(self, *options: str) -> Run:
        self._runs += 1
        arguments = ["run", str(self._folder / "orders.yaml"), *options]
        return Run(arguments, {**os.environ, **LOGIN}, self._folder / f"{self._runs}.log")

    def change(self, first: int, count: int) -> None:
        """Put new items; change every second earlier item and delete every seventh."""
        for n in range(first, first + count):
            self.db.put("orders", {"id": f"k{n}", "n": n, "note": FILLER})
            if n % 2 and n >= count:
                self.db.put("orders", {"id": f"k{n - count}", "n": -n, "note": FILLER})
            if n % 7 == 0 and n >= count:
                self.db.delete("orders", {"id": f"k{n - count}"})

    def source(self) -> dict[str, int]:
        return {item["id"]: int(item["n"]) for item in self.db.items("orders")}

    def documents(self) -> dict[str, int]:
        if not self.search.indices():
            return {}
        self.search.ask("POST", f"/{self.alias}/_refresh")
        hits = self.search.ask("POST", f"/{self.alias}/_search", {"size": 10_000, "_source": ["n"]})["hits"]["hits"]
        return {hit["_id"]: hit["_source"]["n"] for hit in hits}

    def is_equal(self) -> bool:
        return self.documents() == self.source()


@contextmanager
def copied(search: Search, folder: Path, **options: Any) -> Iterator[Copy]:
    db = DynamoDB(now=time.time, random=random.Random(1))
    with served(db) as endpoint:
        yield Copy(search, db, endpoint, folder, **options)


@pytest.fixture
def copy(one_search: Search, tmp_path: Path) -> Iterator[Copy]:
    with copied(one_search, tmp_path, replicas=0, shards=2) as found:
        yield found


# memory


@pytest.mark.parametrize("search_server", ["elasticsearch-9", "opensearch-3"], indirect=True)
def test_a_run_waits_while_the_engine_is_out_of_memory_and_loses_nothing(search: Search, tmp_path: Path) -> None:
    """The parent circuit breaker rejects every request with 429."""
    with copied(search, tmp_path, replicas=0, shards=2) as copy:
        runs_out_of_memory(copy)


def runs_out_of_memory(copy: Copy) -> None:
    def limited(limit: str | None) -> None:
        copy.search.ask("PUT", "/_cluster/settings", {"transient": {"indices.breaker.total.limit": limit}})

    copy.change(0, 100)
    with copy.start() as run:
        run.eventually(copy.is_equal, "the copy is equal")
        limited("1%")
        try:
            copy.change(100, 200)
            waits = run.until("waiting")
        finally:
            limited(None)
        run.eventually(copy.is_equal, "the copy is equal again")
        assert run.stop().code == 0
    assert "is overloaded" in json.dumps(waits)
    assert run.events("parked") == []


# an index that is shrunk


def test_a_run_ends_when_its_index_is_shrunk_and_loses_no_document(copy: Copy) -> None:
    """Does what ILM does: block writes, shrink, move the aliases and the name, remove the old index."""
    search, small = copy.search, f"{copy.search.prefix}shrink-orders-1"
    copy.change(0, 60)
    with copy.start() as run:
        run.eventually(copy.is_equal, "the copy is equal")
        search.ask("PUT", f"/{copy.index}/_settings", {"index.blocks.write": True})
        copy.change(60, 30)
        waits = run.until("waiting")
        only = {"index.number_of_shards": 1, "index.blocks.write": None, "index.number_of_replicas": 0}
        search.ask("POST", f"/{copy.index}/_shrink/{small}?wait_for_active_shards=1", {"settings": only})
        adds = [
            {"add": {"index": small, "alias": name, "filter": LIVE}}
            for name in (copy.alias, f"{copy.index}-Replicator", copy.index)
        ]
        search.ask("POST", "/_aliases", {"actions": [{"remove_index": {"index": copy.index}}, *adds]})
        ended = run.wait()
    assert "writes to the index are blocked" in json.dumps(waits)
    assert ended.code == 2, ended
    assert small in ended.err
    assert f"Keep {small}, perhaps the only copy" in ended.err
    assert search.indices() == [small]
    assert copy.source().keys() & {f"k{n}" for n in range(60)} <= copy.documents().keys()
    with copy.start("--until", "caught-up") as again:
        assert again.wait().code == 2
    assert f"is no longer an index but an alias of {small}" in again.ended().err


# two nodes


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[tuple[SearchServer, SearchServer]]:
    """A cluster of a master node and a data node."""
    ports = free_port(), free_port()
    hosts = ", ".join(f'"127.0.0.1:{port}"' for port in ports)
    shared = {"discovery.type": "zen", "cluster.name": f"two-{ports[0]}", "discovery.seed_hosts": f"[{hosts}]"}
    leads = {"node.name": "first", "transport.port": str(ports[0]), "cluster.initial_cluster_manager_nodes": "[first]"}
    holds = {"node.name": "second", "transport.port": str(ports[1]), "node.roles": "[data]"}
    with ExitStack() as stack:
        try:
            nodes = [stack.enter_context(SearchServer("opensearch-3", {**shared, **of})) for of in (leads, holds)]
        except ServerMissing as e:
            not_tested(f"OpenSearch is missing: {e}")
        yield nodes[0], nodes[1]


def test_when_the_node_of_a_primary_dies_its_replica_takes_over_and_nothing_is_lost(
    two_nodes: tuple[SearchServer, SearchServer], tmp_path: Path
) -> None:
    """With segment replication, a replica has only refreshed documents in its index, and the rest in its translog."""
    first, second = two_nodes
    with ExitStack() as stack:
        copies = [stack.enter_context(on_the_second(first, tmp_path, how)) for how in ("SEGMENT", "DOCUMENT")]
        runs = [stack.enter_context(copy.start()) for copy in copies]
        for copy, run in zip(copies, runs, strict=True):
            run.eventually(copy.is_equal, "the copy is equal")
            is_replicated(copy)
            copy.change(100, 100)
            run.eventually(partial(has_stored, copy, 200), "changes are stored on both nodes")
            assert primary(copy) == "second"
        for copy in copies:
            copy.change(200, 200)
        second.kill()
        for copy, run in zip(copies, runs, strict=True):
            copy.change(400, 100)
            run.eventually(copy.is_equal, "the copy is equal on the node that is left")
            assert run.stop().code == 0
            assert primary(copy) == "first"
            assert run.events("parked") == []
            with copy.start("--until", "caught-up") as again:
                assert again.wait().code == 0, again.ended()
            assert copy.is_equal()
            copy.search.clear()


@contextmanager
def on_the_second(first: SearchServer, folder: Path, replication: str) -> Iterator[Copy]:
    """A copy of 100 items with its index on the second node, without a replica."""
    search = Search(first, f"t{uuid.uuid4().hex[:10]}-")
    (folder / replication).mkdir()
    there = {"routing.allocation.require._name": "second"}
    settings = {"replication.type": replication, "refresh_interval": "1h", **there}
    with copied(search, folder / replication, shards=1, replicas=0, settings=settings) as copy:
        copy.change(0, 100)
        yield copy


def is_replicated(copy: Copy) -> None:
    """Add a replica on the first node."""
    more = {"index.routing.allocation.require._name": None, "index.number_of_replicas": 1}
    copy.search.ask("PUT", f"/{copy.index}/_settings", more)
    copy.search.ask("GET", f"/_cluster/health/{copy.index}?wait_for_status=green&timeout=60s")


def has_stored(copy: Copy, writes: int) -> bool:
    """Whether the index has received this many writes, refreshed or not."""
    stats = copy.search.ask("GET", f"/{copy.index}/_stats/indexing")
    return bool(stats["_all"]["primaries"]["indexing"]["index_total"] >= writes)


def primary(copy: Copy) -> str:
    """The node that holds the primary shard."""
    shards = copy.search.ask("GET", f"/_cat/shards/{copy.index}?format=json&h=prirep,node")
    (node,) = (shard["node"] for shard in shards if shard["prirep"] == "p")
    return str(node)
