"""A network in bad weather between a run and its target, each kind of it and each kind of target.

One run a target goes through all of it, on real servers: what is slow arrives, what is lost is said and comes again,
and in the end every change is there and was counted once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from replicator.testing.proxy import Proxy
from replicator.testing.servers.postgres import PostgresServer
from tests.end_to_end.conftest import table
from tests.end_to_end.pipeline import Pipeline, Run
from tests.end_to_end.targets import Index, OtherTable
from tests.end_to_end.world import Copy, Source
from tests.servers.dynamodb_local import DynamoDBLocal
from tests.servers.postgres_fixtures import database
from tests.servers.search import SearchServer
from tests.servers.search_fixtures import indices

pytestmark = [pytest.mark.dynamodb_local, pytest.mark.timeout(180)]
TIMEOUT = 1.0  # seconds that a run waits for an answer


@dataclass
class Route:
    """A run that follows ``source`` into its target through ``proxy``."""

    pipeline: Pipeline
    source: Source
    proxy: Proxy
    run: Run = field(init=False)
    changes: int = 0

    def begin(self) -> None:
        self.source.fill(20)
        self.source.put("gone", n=0)
        self.run = self.pipeline.start()
        self.run.until("progress", phase="live")

    def change(self) -> None:
        """A new item, one that changes, and one that goes."""
        self.changes += 1
        n = self.changes
        self.source.put(f"new{n}", n=n, note="x" * 200)
        self.source.put("k1", n=1000 + n)
        self.source.delete("gone" if n == 1 else f"new{n - 1}")

    def connects(self) -> None:
        """In fair weather: the last fault ended with every connection."""
        self.change()
        self.arrives()

    def arrives(self) -> None:
        self.run.eventually(self.pipeline.equal, "the copy is equal")

    def waits(self) -> str:
        """The reason of the next wait."""
        before = len(self.run.events("waiting"))
        self.change()
        self.run.eventually(lambda: len(self.run.events("waiting")) > before, "the run waits")
        return str(self.run.events("waiting")[before]["reason"])


class ThroughPostgres(Copy):
    port = 0

    def target(self) -> Mapping[str, Any]:
        url = self.database.url.replace(f":{self.database.server.port}", f":{self.port}")
        return {"type": "postgres", "url": url, "timeout": TIMEOUT}


class ThroughSearch(Index):
    port = 0

    def target(self) -> Mapping[str, Any]:
        return {**super().target(), "url": f"http://127.0.0.1:{self.port}", "timeout": TIMEOUT}


class ThroughDynamoDB(OtherTable):
    port = 0

    def target(self) -> Mapping[str, Any]:
        return {**super().target(), "endpoint_url": f"http://127.0.0.1:{self.port}", "timeout": TIMEOUT}


@contextmanager
def route(pipeline: Any, source: Source, port: int) -> Iterator[Route]:
    """A live run behind a proxy to ``port``; when the test is over it has to end in good order."""
    with Proxy("127.0.0.1", port) as proxy:
        pipeline.port = proxy.port
        if isinstance(pipeline, Copy):
            pipeline.configure()
        else:
            pipeline.configured(None)
        found = Route(pipeline, source, proxy)
        found.begin()
        try:
            yield found
        finally:
            found.run.kill()


@pytest.fixture(scope="module")
def to_postgres(
    postgres_server: PostgresServer, local: DynamoDBLocal, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Route]:
    with table(local.endpoint, "NEW_AND_OLD_IMAGES") as source, contextmanager(database)(postgres_server) as empty:
        copy = ThroughPostgres(tmp_path_factory.mktemp("network"), source, empty)
        with route(copy, source, postgres_server.port) as found:
            yield found


@pytest.fixture(scope="module")
def to_a_search_engine(
    search_server: SearchServer, local: DynamoDBLocal, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Route]:
    with table(local.endpoint, "NEW_AND_OLD_IMAGES") as source, contextmanager(indices)(search_server) as search:
        index = ThroughSearch(tmp_path_factory.mktemp("network"), source, search)
        with route(index, source, search_server.port) as found:
            yield found


@pytest.fixture(scope="module")
def to_a_table(local: DynamoDBLocal, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Route]:
    """Beside the source, on the same server."""
    with table(local.endpoint, "NEW_AND_OLD_IMAGES") as source:
        copy = ThroughDynamoDB(tmp_path_factory.mktemp("network"), source, local, name=f"copy-of-{source.table}")
        with route(copy, source, int(local.endpoint.rpartition(":")[2])) as found:
            yield found


def slow(proxy: Proxy) -> None:
    proxy.slow(0.03)


def narrow(proxy: Proxy) -> None:
    """About 100 kB a second."""
    proxy.slice(200, 0.002)


def closed_slowly(proxy: Proxy) -> None:
    proxy.close_slowly(0.5)


SOFT: dict[str, Callable[[Proxy], None]] = {
    "latency": slow,
    "bandwidth": narrow,
    "reset": Proxy.cut,
    "half-open": Proxy.forget,
    "slow close": closed_slowly,
}
HARD: dict[str, Callable[[Proxy], None]] = {
    "refused": Proxy.refuse,
    "black hole": Proxy.swallow,
    "answers time out": Proxy.deafen,
    "reset instead of an answer": Proxy.lose_responses,
    "answers cut short": lambda proxy: proxy.truncate(20),
}
"""Nothing is stored for certain before these are over."""


def arrives_all_the_same(found: Route, fault: str) -> None:
    found.connects()
    before = found.proxy.connections
    SOFT[fault](found.proxy)
    found.change()
    found.arrives()
    found.proxy.heal()
    assert fault in ("latency", "bandwidth") or found.proxy.connections > before


def is_said_and_arrives_afterwards(found: Route, fault: str, who: str) -> None:
    found.connects()
    HARD[fault](found.proxy)
    said = found.waits()
    found.change()
    found.proxy.heal()
    found.arrives()
    assert said.startswith(f"{who} at 127.0.0.1:{found.proxy.port}"), said
    assert "next attempt in" in said


def ends_well(found: Route) -> None:
    ended = found.run.stop()
    counts = found.pipeline.counts()
    assert (ended.code, ended.err) == (0, "")
    assert counts["read"] == 21 + found.source.records
    found.pipeline.assert_equal()


WHEEL = pytest.mark.parametrize("postgres_server", ["wheel"], indirect=True)
ENGINES = pytest.mark.parametrize("search_server", ["elasticsearch-9", "opensearch-3"], indirect=True)
soft, hard = pytest.mark.parametrize("fault", SOFT), pytest.mark.parametrize("fault", HARD)


@WHEEL
@soft
def test_a_bad_network_to_postgres_holds_changes_up_and_loses_none(to_postgres: Route, fault: str) -> None:
    arrives_all_the_same(to_postgres, fault)


@WHEEL
@hard
def test_a_broken_network_to_postgres_is_said_and_waited_for(to_postgres: Route, fault: str) -> None:
    is_said_and_arrives_afterwards(to_postgres, fault, "Postgres")


@WHEEL
def test_after_all_of_it_postgres_has_counted_each_change_once(to_postgres: Route) -> None:
    ends_well(to_postgres)


@pytest.mark.search
@ENGINES
@soft
def test_a_bad_network_to_an_engine_holds_changes_up_and_loses_none(to_a_search_engine: Route, fault: str) -> None:
    arrives_all_the_same(to_a_search_engine, fault)


@pytest.mark.search
@ENGINES
@hard
def test_a_broken_network_to_an_engine_is_said_and_waited_for(to_a_search_engine: Route, fault: str) -> None:
    is_said_and_arrives_afterwards(to_a_search_engine, fault, product(to_a_search_engine))


@pytest.mark.search
@ENGINES
def test_after_all_of_it_an_engine_has_counted_each_change_once(to_a_search_engine: Route) -> None:
    ends_well(to_a_search_engine)


@soft
def test_a_bad_network_to_a_table_holds_changes_up_and_loses_none(to_a_table: Route, fault: str) -> None:
    arrives_all_the_same(to_a_table, fault)


@hard
def test_a_broken_network_to_a_table_is_said_and_waited_for(to_a_table: Route, fault: str) -> None:
    is_said_and_arrives_afterwards(to_a_table, fault, "DynamoDB")


def test_after_all_of_it_a_table_has_counted_each_change_once(to_a_table: Route) -> None:
    ends_well(to_a_table)


def product(found: Route) -> str:
    kind = str(found.pipeline.target()["type"])
    return {"elasticsearch": "Elasticsearch", "opensearch": "OpenSearch"}[kind]
