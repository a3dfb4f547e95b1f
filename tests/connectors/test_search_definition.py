"""What decides which documents an index holds, and which changes of it can be made in an index with documents."""

from __future__ import annotations

from typing import Any

import pytest

from connectors.search import definition
from connectors.search.layout import layouts
from replicator.change import KeyAttribute, KeySchema
from replicator.identity import changes
from replicator.target import Table

PK = KeySchema((KeyAttribute("pk", "S"), KeyAttribute("sk", "S")))


def mapped(properties: dict[str, Any], more: dict[str, Any] | None = None, **options: Any) -> Table:
    return Table("products", PK, {"mapping": {"properties": properties, **(more or {})}, **options})


def parts(table: Table) -> Any:
    return definition.parts(layouts([table])["products"])


FIELDS: dict[str, Any] = {"title": {"type": "text"}, "maker": {"properties": {"name": {"type": "keyword"}}}}
BEFORE = mapped(FIELDS)


def test_each_field_is_a_part_and_settings_are_none() -> None:
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


def test_how_a_mapping_is_written_is_no_matter() -> None:
    title = {"type": "text", "index": True, "store": "false"}
    maker = {"type": "object", "enabled": True, **FIELDS["maker"]}
    around = {"dynamic": "strict", "date_detection": True, "_meta": {"owner": "shop"}}
    assert parts(mapped({"maker": maker, "title": title}, around)) == parts(BEFORE)


def test_an_added_field_is_put_into_the_mapping_with_the_object_that_holds_it() -> None:
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
def test_what_is_stored_otherwise_is_a_change(after: Table, part: str) -> None:
    (change,) = changes({"products": parts(BEFORE)}, {"products": parts(after)})
    assert (change.part, change.added) == (part, False)
