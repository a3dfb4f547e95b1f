"""The target contract on four real servers, read back with a plain client."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from decimal import Decimal
from functools import partial
from typing import Any

import pytest

from connectors.search import walk
from replicator.batch import Outcome
from replicator.target.contract import Table, Target
from replicator.testing.contract import TargetContract, batch, put, table
from replicator.testing.contract.definitions import Options
from replicator.testing.contract.kit import Stored
from replicator.testing.contract.late_writes import Proxied
from replicator.testing.contract.marked import Marking
from replicator.testing.contract.moves import Diverted, Remade
from replicator.testing.proxy import Proxy
from replicator.version import FIRST_EPOCH
from tests.servers.search_fixtures import Search

pytestmark = pytest.mark.search


class TestSearch(TargetContract):
    races = 150
    histories, steps = 2, 12

    @pytest.fixture(autouse=True)
    def _empty(self, search: Search, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        """The contract uses fixed table names, so every index is deleted after each test. Walks take several pieces."""
        monkeypatch.setattr(walk, "WALK_PIECE", 1000)
        yield
        search.server.start()
        for name in search.ask("GET", "/_cat/indices?format=json&h=index"):
            search.ask("DELETE", f"/{name['index']}")

    @pytest.fixture
    def proxy(self, search: Search) -> Iterator[Proxy]:
        with Proxy("127.0.0.1", search.server.port) as found:
            yield found

    @pytest.fixture
    def config(self, search: Search) -> Mapping[str, Any]:
        return options(search, search.server.port)

    @pytest.fixture
    def unreachable(self, search: Search) -> Mapping[str, Any]:
        return options(search, 1)

    @pytest.fixture
    def stored(self, search: Search) -> Callable[[Table], Any]:
        return partial(documents, search.url)

    @pytest.fixture
    def restart(self, search: Search) -> Callable[[], None]:
        return partial(restarted, search)

    @pytest.fixture
    def proxied(self, search: Search, proxy: Proxy) -> Proxied:
        return {**options(search, proxy.port), "timeout": 5}, proxy

    @pytest.fixture
    def diverted(self, search: Search) -> Diverted:
        return partial(led_elsewhere, search)

    @pytest.fixture
    def remade(self, search: Search) -> Remade:
        return partial(made_anew, search)

    @pytest.fixture
    def otherwise(self, search: Search) -> Mapping[str, Any]:
        return {**options(search, search.server.port), "url": f"http://localhost:{search.server.port}"}

    @pytest.fixture
    def options(self) -> Options:
        name = {"type": "text"}
        inner = {"properties": {"a": {"type": "keyword"}}}
        more = {"name": {**name, "fields": {"raw": {"type": "keyword"}}}, "price": {"type": "double"}}
        inside = {"properties": {**inner["properties"], "b": {"type": "date"}}}
        written = {"inner": {"type": "object", **inner}, "name": {**name, "index": "true"}}
        aside = {"replicas": 0, "settings": {"refresh_interval": "3s"}, "adopt": True}
        return Options(
            {"mapping": {"properties": {"name": name, "inner": inner}}},
            {"mapping": {"dynamic": "strict", "properties": written}, **aside},
            {"mapping": {"properties": {**more, "inner": inside}}},
        )

    @pytest.fixture
    def marking(self, search: Search) -> Marking:
        return Marking({"deletes": "mark"}, partial(marked, search))

    def test_recovers_from_a_cut_connection(  # type: ignore[override]
        self, proxied: Proxied, build: Callable[[Mapping[str, Any]], Target], stored: Stored
    ) -> None:
        """A connection that broke while idle is reopened without an error."""
        config, proxy = proxied
        target = build(config)
        target.open([table()], FIRST_EPOCH)
        target.write(batch(put({"pk": "a"}, 1)))
        proxy.cut()
        assert target.write(batch(put({"pk": "b"}, 2))) == Outcome()
        assert set(stored(table())) == {("a",), ("b",)}


def options(search: Search, port: int) -> dict[str, Any]:
    return {"type": search.server.which.partition("-")[0], "url": f"http://127.0.0.1:{port}"}


def restarted(search: Search) -> None:
    """Kill and restart the engine: it forgets deletes, its translog included, but not acknowledged writes."""
    search.ask("POST", "/_flush?force=true")
    search.ask("PUT", "/acknowledged", {"mappings": {"dynamic": False}})
    search.ask("PUT", "/acknowledged/_doc/1?version=7&version_type=external", {"amount": 1})
    search.server.kill()
    search.server.start()
    kept = search.ask("GET", "/acknowledged/_doc/1")
    assert (kept["_version"], kept["_source"]) == (7, {"amount": 1})


def led_elsewhere(search: Search, table: Table) -> Callable[[], Any]:
    """Move the alias to an index with documents of the same ids, as after a manual reindex."""
    search.ask("PUT", "/elsewhere")
    for id in ("a", "b"):
        search.ask("PUT", f"/elsewhere/_doc/{id}?refresh=true", {"mine": id})
    remove, add = {"index": f"{table.name}-1", "alias": table.name}, {"index": "elsewhere", "alias": table.name}
    search.ask("POST", "/_aliases", {"actions": [{"remove": remove}, {"add": add}]})
    return partial(everything, search, "elsewhere")


def marked(search: Search, table: Table) -> dict[tuple[str, ...], Any]:
    """The documents that a search through the alias finds, by key, and when they were deleted."""
    search.ask("POST", f"/{table.name}/_refresh")
    found: dict[tuple[str, ...], Any] = {}
    for hit in search.ask("GET", f"/{table.name}/_search?size=10000")["hits"]["hits"]:
        own = hit["_source"].pop("replicator")
        id = (own["item"], own["id"]) if "item" in own else (own["partition"],)
        at = own.get("deleted_at")
        found[id] = hit["_source"]["document"], at and datetime.fromisoformat(at).timestamp()
    return found


def everything(search: Search, index: str) -> Any:
    """Each document of an index with its version and sequence number, and the index's definition."""
    search.ask("POST", f"/{index}/_refresh")
    query = {"size": 1000, "version": True, "seq_no_primary_term": True, "sort": ["_doc"]}
    return search.ask("POST", f"/{index}/_search", query)["hits"]["hits"], search.ask("GET", f"/{index}/_mapping")


def made_anew(search: Search, table: Table) -> None:
    """Delete and recreate the index with the same mapping and aliases, as a script or a restore does."""
    index = f"{table.name}-1"
    was = search.ask("GET", f"/{index}")[index]
    search.ask("DELETE", f"/{index}")
    search.ask("PUT", f"/{index}", {"mappings": was["mappings"], "aliases": was["aliases"]})


def documents(url: str, table: Table) -> dict[tuple[str, ...], Any]:
    """The documents that a search through the alias finds, by key, without our own fields."""
    with urllib.request.urlopen(urllib.request.Request(f"{url}/{table.name}/_refresh", method="POST")):
        pass
    with urllib.request.urlopen(f"{url}/{table.name}/_search?size=10000") as answer:
        found = json.load(answer, parse_float=Decimal, parse_int=Decimal)
    return dict(_document(hit["_source"]) for hit in found["hits"]["hits"])


def _document(source: dict[str, Any]) -> tuple[tuple[str, ...], Any]:
    ours = source["replicator"]
    return tuple(ours[part] for part in ("partition", "sort", "item", "id") if part in ours), source["document"]
