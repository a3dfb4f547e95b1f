"""The definition that stored documents depend on, and which changes to it an index with documents accepts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from connectors.search import definition, searches
from connectors.search.connection import Connection
from connectors.search.errors import Response
from connectors.search.layout import layouts
from replicator.errors import TransientError
from replicator.identity import Identity, changes
from replicator.key import KeyAttribute, KeySchema
from replicator.target.contract import Table

PK = KeySchema((KeyAttribute("pk", "S"), KeyAttribute("sk", "S")))


def mapped(properties: dict[str, Any], more: dict[str, Any] | None = None, **options: Any) -> Table:
    return Table("products", PK, {"mapping": {"properties": properties, **(more or {})}, **options})


def parts(table: Table) -> Any:
    return definition.parts(layouts([table])["products"])


FIELDS: dict[str, Any] = {"title": {"type": "text"}, "maker": {"properties": {"name": {"type": "keyword"}}}}
BEFORE = mapped(FIELDS)


def test_fields_are_parts_and_settings_are_not() -> None:
    assert parts(BEFORE) == {
        "dynamic": '"strict"',
        "mapping.title": '{"type":"text"}',
        "mapping.maker": "{}",
        "mapping.maker.name": '{"type":"keyword"}',
    }
    aside: dict[str, Any] = {"replicas": 2, "adopt": True, "settings": {"refresh_interval": "5s"}}
    assert parts(mapped(FIELDS, **aside)) == parts(BEFORE)
    assert parts(Table("products", PK)) == {"dynamic": '"strict"', "mapping.document": '{"enabled":"false"}'}
    assert parts(mapped({"a": {"type": "text"}}, routing="pk")) == {
        "dynamic": '"strict"',
        "mapping.a": '{"type":"text"}',
        "routing": "partition",
    }


def test_the_spelling_of_a_mapping_does_not_matter() -> None:
    title = {"type": "text", "index": True, "store": "false"}
    maker = {"type": "object", "enabled": True, **FIELDS["maker"]}
    around = {"dynamic": "strict", "date_detection": True, "_meta": {"owner": "shop"}}
    assert parts(mapped({"maker": maker, "title": title}, around)) == parts(BEFORE)


def test_an_added_field_is_put_with_its_enclosing_object() -> None:
    maker = {"properties": {"name": {"type": "keyword"}, "city": {"type": "keyword"}}}
    title = {"type": "text", "fields": {"raw": {"type": "keyword"}}}
    after = mapped({"title": title, "maker": maker, "price": {"type": "double"}, "prices": {"type": "double"}})
    added = changes({"products": parts(mapped({**FIELDS, "prices": {"type": "double"}}))}, {"products": parts(after)})
    assert [str(change) for change in added] == [
        "products: mapping.maker.city was added",
        "products: mapping.price was added",
        "products: mapping.title.raw was added",
    ]
    assert definition.additions(layouts([after]), added) == [
        ("/products-1/_mapping", {"properties": {"maker": maker, "price": {"type": "double"}, "title": title}})
    ]


@pytest.mark.parametrize(
    ("after", "part"),
    [
        (mapped(FIELDS, routing="pk"), "routing"),
        (mapped(FIELDS, {"date_detection": False}), "date_detection"),
        (mapped(FIELDS, {"dynamic_templates": [{"all": {"mapping": {"type": "keyword"}}}]}), "dynamic_templates"),
    ],
)
def test_only_fields_can_be_added(after: Table, part: str) -> None:
    (change,) = changes({"products": parts(BEFORE)}, {"products": parts(after)})
    assert (change.part, change.added) == (part, True)
    assert definition.additions(layouts([after]), [change]) is None


@pytest.mark.parametrize(
    ("after", "part"),
    [
        (mapped({**FIELDS, "title": {"type": "text", "analyzer": "english"}}), "mapping.title"),
        (mapped({**FIELDS, "title": {"type": "keyword"}}), "mapping.title"),
        (mapped({"maker": FIELDS["maker"]}), "mapping.title"),
        (mapped(FIELDS, {"dynamic": True}), "dynamic"),
    ],
    ids=["analyzer", "type", "removed", "dynamic"],
)
def test_a_definition_that_stores_documents_differently_is_a_change(after: Table, part: str) -> None:
    (change,) = changes({"products": parts(BEFORE)}, {"products": parts(after)})
    assert (change.part, change.added) == (part, False)


# identity and contents of an index


@dataclass
class Cluster(Connection):
    """A connection with canned responses by path, which records requests."""

    answers: Mapping[str, tuple[int, Any]]
    product: str = "OpenSearch"
    server: str = "OpenSearch at search:9200"
    asked: list[str] = field(default_factory=list)

    def request(self, method: str, path: str, body: bytes | None = None, *, form: str = "") -> Response:
        self.asked.append(path)
        known = (told for beginning, told in self.answers.items() if path.startswith(beginning) and beginning != "/")
        status, told = self.answers["/"] if path == "/" else next(known, (200, {}))
        return Response(status, json.dumps(told).encode())


WITHOUT = {"settings": {"index": {"uuid": "U", "search": {"default_pipeline": "hides-everything"}}}, "aliases": {}}
STATE = "/_cluster/state/version"


def place(root: tuple[int, Any], state: tuple[int, Any]) -> Identity:
    cluster = Cluster({"/": root, STATE: state, "/products": (200, {"products-1": WITHOUT})})
    return definition.identities(cluster, layouts([BEFORE]))["products"]


@pytest.mark.parametrize(
    ("root", "state", "at"),
    [
        ((200, {"cluster_uuid": "C"}), (200, {}), "products-1 in the cluster C"),
        ((405, {"error": "no"}), (200, {"cluster_uuid": "C"}), "products-1 in the cluster C"),
        ((403, {}), (200, {"cluster_uuid": "C"}), "products-1 in the cluster C"),
        ((200, {"cluster_uuid": "_na_"}), (403, {}), ""),
        ((404, {}), (403, {}), ""),
        ((200, []), (200, {"cluster_uuid": 7}), ""),
    ],
    ids=["told", "without that page", "not allowed to see it", "not formed yet", "a service", "something else"],
)
def test_an_index_is_identified_by_its_cluster_where_known(
    root: tuple[int, Any], state: tuple[int, Any], at: str
) -> None:
    assert place(root, state) == Identity("the index products-1 of OpenSearch at search:9200", "U", at=at)


@pytest.mark.parametrize("status", [429, 503])
def test_a_cluster_that_does_not_respond_is_queried_again(status: int) -> None:
    """Otherwise it would count as a different cluster."""
    with pytest.raises(TransientError):
        place((status, {"error": "busy"}), (403, {}))


def test_whole_index_searches_skip_pipelines_and_use_primaries() -> None:
    hits = {"hits": {"hits": [{"sort": [7]}], "total": {"value": 1}}}
    cluster = Cluster({"/products-1/_search": (200, hits), "/products": (200, {"products-1": WITHOUT})})
    (layout,) = layouts([BEFORE]).values()
    assert searches.newest(cluster, layout) == 7
    assert not searches.is_empty(cluster, layout)
    paths = [path for path in cluster.asked if "/_search" in path]
    assert len(paths) == 2
    for path in paths:
        assert "allow_partial_search_results=false" in path
        assert "search_pipeline=_none" in path
        assert "preference=_primary" in path
        assert cluster.asked[cluster.asked.index(path) - 2] == "/products-1/_refresh"


@pytest.mark.parametrize("hits", [[], [{"sort": [None]}], [{"sort": [-1]}]], ids=["empty", "others only", "nonsense"])
def test_an_index_without_a_version_has_none(hits: list[Any]) -> None:
    cluster = Cluster({"/products-1/_search": (200, {"hits": {"hits": hits}}), "/products": (200, {})})
    (layout,) = layouts([BEFORE]).values()
    assert searches.newest(cluster, layout) == 0
