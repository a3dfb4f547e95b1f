"""A mapping proposed by ``replicator infer`` stores every sampled document, and makes its fields searchable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from connectors.search.forecast import refusals
from connectors.search.inference import ENOUGH, proposal
from connectors.search.layout import layouts
from replicator.batch import Upsert
from replicator.target.contract import Table
from replicator.target.observed import observed
from replicator.testing.contract.kit import PK
from tests.cli.command_line import World
from tests.security.canary import SECRET
from tests.servers.search_fixtures import Search

TABLE = Table("orders", PK)


def proposed(*documents: Mapping[str, Any]) -> Mapping[str, Any]:
    """The properties of the mapping, under which no document is refused."""
    found = proposal(TABLE, observed(documents))
    table = Table(TABLE.name, TABLE.keys, found.options)
    writes = [Upsert(TABLE.name, (str(n),), document, 1, (str(n),)) for n, document in enumerate(documents)]
    assert list(refusals(writes, layouts([table]))) == []
    assert found.options["mapping"]["dynamic"] is False
    properties: Mapping[str, Any] = found.options["mapping"]["properties"]
    return properties


KEYWORD = {"type": "keyword", "ignore_above": 8191}
KEPT = {"type": "object", "enabled": False}


@pytest.mark.parametrize(
    ("values", "field"),
    [
        (["a"], KEYWORD),
        ([True], {"type": "boolean"}),
        ([Decimal(1)], {"type": "double"}),
        ([Decimal(1)] * ENOUGH, {"type": "long"}),
        ([Decimal("1.5")] * ENOUGH, {"type": "double"}),
        ([Decimal(1 << 64)] * ENOUGH, {"type": "double"}),
        (["2026-01-31"], KEYWORD),
        (["2026-01-31", "2026-01-31T12:00:00Z"] * ENOUGH, {"type": "date"}),
        (["2026-02-31"] * ENOUGH, KEYWORD),
        ([b"\0"], {"type": "binary"}),
        (["a", Decimal(1), True], KEYWORD),
        (["a", {"b": 1}], KEPT),
        ([["a", "b"], []], KEYWORD),
        ([frozenset({Decimal(1)})], {"type": "double"}),
        ([None], KEPT),
        ([{}], KEPT),
        ([[{"sku": "a"}, {"sku": "b"}]], {"properties": {"sku": KEYWORD}}),
        ([{"a": {"b": "c"}}], {"properties": {"a": {"properties": {"b": KEYWORD}}}}),
        ([{f"user-{n}": 1 for n in range(51)}], KEPT),
    ],
)
def test_the_kinds_of_values_decide_on_the_type(values: Sequence[object], field: Mapping[str, Any]) -> None:
    assert proposed(*({"f": value} for value in values)) == {"f": field}


def test_long_text_can_be_searched_by_words_and_short_text_by_value() -> None:
    field = proposed({"f": "word " * 100})["f"]

    assert (field["type"], field["fields"]["keyword"]["type"]) == ("text", "keyword")


def test_names_with_dots_are_objects_as_the_engines_read_them() -> None:
    assert proposed({"a.b": "x", "a.c": "y"}) == {"a": {"properties": {"b": KEYWORD, "c": KEYWORD}}}
    assert proposed({"a.b": "x"}, {"a": "y"}) == {"a": KEPT}


@pytest.mark.parametrize("name", ["_id", "replicator", "replicator.x", "", " ", "a..b", ".", "a."])
def test_names_that_no_mapping_can_have_are_left_out_and_said(name: str) -> None:
    found = proposal(TABLE, observed([{name: "x"}]))

    assert found.options["mapping"]["properties"] in ({}, {"a": KEPT})
    (sentence,) = found.omitted
    assert "has a name that" in sentence
    assert sentence.split("'")[1] in name


def test_an_index_gets_no_more_fields_than_it_allows() -> None:
    found = proposal(TABLE, observed([{f"f{n}": n for n in range(1500)}]))

    assert len(found.options["mapping"]["properties"]) == 900
    assert "only the 900 most frequent fields can be searched" in found.omitted[0]


@pytest.mark.search
def test_a_proposed_mapping_is_checked_and_a_run_fills_the_index(world: World, one_search: Search) -> None:
    alias = f"{one_search.prefix}orders"
    world.change("type: postgres", "type: elasticsearch\n  username: me\n  password: " + SECRET)
    world.change(world.postgres.url, one_search.url)
    head, _, _ = Path(world.config).read_text().rpartition("  table: orders")
    Path(world.config).write_text(f"{head}  table: {alias}\n")
    world.db.create_table("orders")
    for n in range(ENOUGH):
        item = {"id": str(n), "n": n, "at": f"2026-01-{n % 28 + 1:02}T12:00:00Z", "m": {"tags": {"x", "y"}}, "b": b"\0"}
        world.db.put("orders", item | {"a.b": "dot", "mixed": n if n % 2 else str(n), "long": "words " * 60})
    new = world.folder / "new.yaml"
    assert world.call("infer", world.config, "--output", str(new))[0] == 0
    code, out, _ = world.call("check", str(new), "--human")
    assert (code, "would be parked" in out) == (0, False), out
    code, _, err = world.shell.run("run", str(new), "--until", "caught-up")
    assert code == 0, err

    query = {"bool": {"filter": [{"term": {"a.b": "dot"}}, {"range": {"at": {"lte": "2026-01-02"}}}]}}
    one_search.ask("POST", f"/{alias}/_refresh")
    hits = one_search.ask("POST", f"/{alias}/_search", {"query": query, "size": 0, "track_total_hits": True})
    assert hits["hits"]["total"]["value"] == sum(n % 28 + 1 <= 2 for n in range(ENOUGH))
    mapping = one_search.ask("GET", f"/{alias}/_mapping")[f"{alias}-1"]["mappings"]["properties"]
    assert (mapping["n"]["type"], mapping["at"]["type"], mapping["long"]["type"]) == ("long", "date", "text")
    assert "v" not in mapping
    one_search.clear()
