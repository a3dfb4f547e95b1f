"""``keys: true``: the key attributes are fields of every document, whatever the hook returns."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import orjson
import pytest

from connectors.search.encode import TableEncoder
from connectors.search.forecast import refusals
from connectors.search.layout import Layout, layouts
from replicator.batch import Upsert
from replicator.errors import ConfigError
from replicator.items.attributes import image
from replicator.items.item import Item
from replicator.key import KeyAttribute, KeySchema
from replicator.target.contract import OWN_IDS, UNKNOWN_KEYS, Table
from tests.cli.command_line import World
from tests.security.canary import SECRET
from tests.servers.search_fixtures import Search

KEYS = KeySchema((KeyAttribute("customer", "S"), KeyAttribute("n", "N")))
MAPPING = {"properties": {"title": {"type": "text"}}}
KEYWORD = {"type": "keyword", "ignore_above": 8191}


def layout(keys: KeySchema = KEYS, **options: Any) -> Layout:
    return layouts([Table("orders", keys, {"keys": True, **options})])["orders"]


def document(of: Layout, body: Mapping[str, object]) -> Any:
    """What is stored, without replicator's own fields; nothing of it is refused."""
    write = Upsert("orders", ("c1", "7"), body, 1, ("c1", "7"))
    assert list(refusals([write], {"orders": of})) == []
    (entry,) = TableEncoder(of).entries([write], "s", [])
    stored = orjson.loads(entry.lines.splitlines()[1])
    stored.pop("replicator")
    return stored


def test_a_hooks_document_gets_the_key_that_it_lacks() -> None:
    assert document(layout(mapping=MAPPING), {"title": "x"}) == {"customer": "c1", "n": 7, "title": "x"}
    assert document(layout(mapping=MAPPING), {}) == {"customer": "c1", "n": 7}


def test_what_the_hook_returns_under_a_keys_name_stays() -> None:
    assert document(layout(mapping=MAPPING), {"n": 8}) == {"customer": "c1", "n": 8}


def test_an_item_has_its_key_already() -> None:
    of = layout(mapping=MAPPING)
    item = Item(image({"customer": "c1", "n": 7, "title": "x"}))

    assert document(of, item) == document(of, item | {"title": "x"}) == {"customer": "c1", "n": 7, "title": "x"}


def test_many_documents_at_once_are_those_one_by_one() -> None:
    of = layout(mapping=MAPPING)
    writes = [Upsert("orders", (f"c{n}", str(n)), {"title": "x"}, 1, (f"c{n}", str(n))) for n in range(500)]
    at_once = [entry.lines for entry in TableEncoder(of).entries(writes, "s", [])]

    assert at_once == [e.lines for w in writes for e in TableEncoder(of).entries([w], "s", [])]


def test_the_mapping_gets_the_key_unless_it_has_it() -> None:
    properties = layout(mapping={"properties": {"n": {"type": "long"}}}).mapping["properties"]

    assert properties["customer"] == KEYWORD
    assert properties["n"] == {"type": "long"}


def test_without_a_mapping_the_key_is_another_name_of_replicators_own_fields() -> None:
    of = layout()

    assert of.mapping["properties"]["customer"] == {"type": "alias", "path": "replicator.partition"}
    assert of.mapping["properties"]["n"] == {"type": "alias", "path": "replicator.sort"}
    assert document(of, Item(image({"customer": "c1", "n": 7}))) == {"document": {"customer": "c1", "n": 7}}


def test_without_the_option_nothing_is_added() -> None:
    of = layouts([Table("orders", KEYS, {"mapping": MAPPING})])["orders"]

    assert document(of, {"title": "x"}) == {"title": "x"}
    assert set(of.mapping["properties"]) == {"replicator", "title"}


@pytest.mark.parametrize("name", ["_id", "replicator", "a.b", " "])
def test_a_key_that_no_field_can_be_called_like_is_a_plain_error(name: str) -> None:
    with pytest.raises(ConfigError, match=f"orders: keys cannot be true, because no field can be called {name} like"):
        layout(KeySchema((KeyAttribute(name, "S"),)), mapping=MAPPING)


def test_documents_with_ids_of_their_own_have_no_key_to_add() -> None:
    with pytest.raises(ConfigError, match="orders: keys cannot be true if the hook chooses the documents' ids; it may"):
        layout(OWN_IDS, mapping=MAPPING)


def test_offline_nothing_is_wrong_with_an_unknown_key() -> None:
    assert layout(UNKNOWN_KEYS, mapping=MAPPING).added is None


@pytest.mark.search
@pytest.mark.parametrize("mapping", ["", ", mapping: {properties: {title: {type: text}}}"], ids=["whole", "mapped"])
def test_documents_are_found_by_the_key_of_their_item(world: World, search: Search, mapping: str) -> None:
    alias = f"{search.prefix}orders"
    kind = search.server.which.partition("-")[0]
    world.change("type: postgres", f"type: {kind}\n  username: me\n  password: {SECRET}")
    world.change(world.postgres.url, search.url)
    head, _, _ = Path(world.config).read_text().rpartition("  table: orders")
    Path(world.config).write_text(f"{head}  tables: {{{alias}: {{keys: true{mapping}}}}}\n")
    world.db.create_table("orders", keys={"customer": "S", "n": "N"})
    for n in range(3):
        world.db.put("orders", {"customer": "c1", "n": Decimal(n), "title": "x"})
    world.hook("def hook(item):\n    return {'title': item['title']}\n")
    code, out, _ = world.call("check", world.config, "--human")
    assert (code, "would be parked" in out) == (0, False), out
    for _ in range(2):  # the second run compares the index with the config
        world.catch_up()
    world.db.delete("orders", {"customer": "c1", "n": Decimal(0)})
    world.catch_up()
    search.ask("POST", f"/{alias}/_refresh")

    query = {"bool": {"filter": [{"term": {"customer": "c1"}}, {"terms": {"n": ["0", "2"]}}]}}
    hits = search.ask("POST", f"/{alias}/_search", {"query": query})["hits"]["hits"]
    assert [hit["_id"] for hit in hits] == ["c1|2"]
    expected = {"document": {"title": "x"}} if not mapping else {"customer": "c1", "n": 2, "title": "x"}
    assert {name: value for name, value in hits[0]["_source"].items() if name != "replicator"} == expected
