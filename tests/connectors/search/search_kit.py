"""Shared by the tests of the search targets: targets and tables on a real server, writes, plain queries."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from connectors.elasticsearch import Elasticsearch, ElasticsearchOptions
from connectors.opensearch import OpenSearch, OpenSearchOptions
from connectors.search.target import SearchTarget
from replicator.batch import DocumentId, Upsert
from replicator.key import KeySchema
from replicator.target.contract import Table
from replicator.testing.contract.kit import PK, at
from replicator.version import FIRST_EPOCH
from tests.servers.search_fixtures import Search

made: list[SearchTarget] = []
"""Targets of the current test, closed when it ends."""

PLAIN = {"properties": {"pk": {"type": "keyword"}, "title": {"type": "text"}, "n": {"type": "long"}}}


def table(search: Search, name: str = "contract", keys: KeySchema = PK, **options: Any) -> Table:
    return Table(f"{search.prefix}{name}", keys, options)


def target(search: Search, pipeline: str = "contract", **options: Any) -> SearchTarget:
    return client(search.server.which.partition("-")[0], pipeline, url=search.url, **options)


def client(product: str, pipeline: str = "contract", **options: Any) -> SearchTarget:
    if product == "elasticsearch":
        made.append(Elasticsearch(ElasticsearchOptions.model_validate(options), pipeline))
    else:
        made.append(OpenSearch(OpenSearchOptions.model_validate(options), pipeline))
    return made[-1]


def opened(search: Search, *tables: Table, **options: Any) -> SearchTarget:
    found = target(search, **options)
    found.open(tables, FIRST_EPOCH)
    return found


def hooked(of: Table, pk: str, ordinal: int, body: Mapping[str, Any], id: DocumentId | None = None) -> Upsert:
    """An upsert of a document from a hook."""
    key = id or (pk,)
    return Upsert(of.name, key, body, at(ordinal), key)


def hits(search: Search, of: Table, query: Mapping[str, Any] | None = None) -> list[Any]:
    """What a search through the public alias finds."""
    search.ask("POST", f"/{of.name}/_refresh")
    body = {"size": 1000, "version": True, "query": query or {"match_all": {}}}
    found: list[Any] = search.ask("POST", f"/{of.name}/_search", body)["hits"]["hits"]
    return found


def ids(search: Search, of: Table) -> set[str]:
    return {hit["_id"] for hit in hits(search, of)}


def behind(search: Search, of: Table) -> dict[str, Any]:
    """Every document in the index itself, including tombstones, by id."""
    search.ask("POST", f"/{of.name}/_refresh")
    (index,) = search.ask("GET", f"/_alias/{quote(of.name)}")
    found = search.ask("POST", f"/{index}/_search", {"size": 1000, "version": True})
    return {hit["_id"]: hit for hit in found["hits"]["hits"]}
