"""What a hook returns for a table with columns: nothing vanishes unsaid, and nothing reaches columns that are ours."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import pytest

from connectors.postgres.encode import Encoded, Encoder
from connectors.postgres.table_schema import shapes
from replicator.batch import Batch, Delete, Part, Upsert
from replicator.config.target import destination
from replicator.errors import ConfigError
from replicator.items.attributes import image
from replicator.items.item import Item
from replicator.target.contract import OWN_IDS, Table
from tests.connectors.postgres.postgres_kit import PK

COLUMNS = {
    "city": "text",
    "lat": {"type": "numeric", "from": "location.lat"},
    "lon": {"type": "numeric", "from": "location.lon"},
}
ITEM: Mapping[str, Any] = {"pk": "1", "city": "Ulm", "location": {"lat": Decimal("48.4"), "lon": 10}, "more": 1}


def encoded(*bodies: Any, keys: Any = PK, **options: Any) -> Encoded:
    table = Table("orders", keys, {"columns": COLUMNS, **options})
    tail = ("x",) if keys is OWN_IDS else ()
    writes = [Upsert("orders", (f"{n}", *tail), body, n, (f"{n}",)) for n, body in enumerate(bodies)]
    return Encoder(shapes([table], "public"), "reject", "p").encode(Batch([Part("shard:1", writes)]))


@pytest.mark.parametrize("id", [(), ("a", "1"), ("a", "1", "x")])
@pytest.mark.parametrize("removed", [False, True])
def test_an_id_that_has_other_parts_than_a_rows_key_is_no_key_of_another_row(
    id: tuple[str, ...], removed: bool
) -> None:
    write = Delete("orders", id, 1, ("a",)) if removed else Upsert("orders", id, {"city": "Ulm"}, 1, ("a",))
    encoder = Encoder(shapes([Table("orders", PK, {"columns": COLUMNS})], "public"), "reject", "p")
    with pytest.raises(ValueError, match=f"an id has {len(id)} parts, and the key of a row has 1"):
        encoder.encode(Batch([Part("shard:1", [write])]))


def reasons(*bodies: Any, keys: Any = PK, **options: Any) -> list[str]:
    return [r.reason for r in encoded(*bodies, keys=keys, **options).rejections]


def cells(body: Any, many: int = 1) -> list[bytes | None]:
    """What is sent for the columns of COLUMNS."""
    encoded_batch = encoded(*[body] * many)
    assert not encoded_batch.rejections, encoded_batch.rejections
    return list(encoded_batch.statements[0].parameters[1:4])


MISSPELT = {"citty": "Ulm", "location": {}}


@pytest.mark.parametrize(
    "body", [MISSPELT, OrderedDict(MISSPELT), Item(image(ITEM)) | {"citty": "Ulm"}], ids=["dict", "mapping", "amended"]
)
def test_a_field_without_a_column_parks_the_item(body: Any) -> None:
    (reason,) = reasons({"city": "Ulm"}, body)
    assert reason == (
        "the hook returned a field citty, which no column of orders is made from; did you mean city? "
        "(extra: ignore leaves such fields out)"
    )
    assert reasons(body, extra="ignore") == []


def test_the_reason_lists_all_columns_if_none_has_a_similar_name() -> None:
    assert "orders is made from; known: city, location (extra" in reasons({"x": 1})[0]
    assert "returned a field of type int, which" in reasons({1: 1})[0]
    assert len(reasons({"x" * 60_000: 1})[0]) < 250


@pytest.mark.parametrize(
    "body", [{"pk": "1", "city": "Ulm"}, {}, Item(image(ITEM)), Item(image(ITEM)) | {"city": "Bonn"}]
)
def test_key_attributes_and_other_attributes_of_an_item_are_accepted(body: Any) -> None:
    assert reasons(body) == []


def test_a_table_of_whole_documents_accepts_any_field() -> None:
    write = Upsert("orders", ("1",), {"anything": 1, "_version": 2}, 1, ("1",))
    encoder = Encoder(shapes([Table("orders", PK)], "public"), "reject", "p")
    assert not encoder.encode(Batch([Part("shard:1", [write])])).rejections


@pytest.mark.parametrize("name", ["_version", "_item", "_id"])
def test_a_hook_cannot_set_replicators_own_columns(name: str) -> None:
    """On no way that a document is made, and not even by a column that says so."""
    item = Item(image({**ITEM, name: "9"}))
    for body in (item, item | {"city": "Bonn"}, {"city": "Bonn"}):
        encoded_batch = encoded(body, keys=OWN_IDS)
        assert not encoded_batch.rejections
        parameters = encoded_batch.statements[0].parameters
        assert (parameters[0], parameters[1], parameters[5]) == (b'{"0"}', b'{"x"}', b"{0}")
    for said in ({name: "9"}, Item(image(ITEM)) | {name: "9"}):
        assert f"a field {name}, which no column" in reasons(said, keys=OWN_IDS)[0]
    with pytest.raises(ConfigError, match=f"column {name} (is|already exists)"):
        shapes([Table("orders", OWN_IDS, {"columns": {name: "bigint"}})], "public")
    renamed = {"n": {"type": "text", "from": name}}
    assert reasons({name: "9"}, keys=OWN_IDS, columns=renamed) == []


# columns from inside of maps


@pytest.mark.parametrize("many", [1, 200])
@pytest.mark.parametrize(
    "body",
    [
        Item(image(ITEM)),
        {"city": "Ulm", "location": ITEM["location"]},
        Item(image(ITEM)) | {"city": "Ulm"},
        Item(image({"pk": "1", "city": "Ulm"})) | {"location": ITEM["location"]},
    ],
    ids=["item", "dict", "amended", "amended map"],
)
def test_a_column_may_come_from_inside_a_map(body: Any, many: int) -> None:
    assert cells(body, many) == [b"{%b}" % b",".join([b'"%b"' % value] * many) for value in (b"Ulm", b"48.4", b"10")]


@pytest.mark.parametrize("location", [None, {}, {"lat": None}])
def test_a_path_with_a_missing_part_is_null(location: Any) -> None:
    for body in (Item(image({"pk": "1", "location": location})), {"location": location}):
        assert cells(body)[1] == b"{null}"
    assert cells(Item(image({"pk": "1"})))[1] == b"{null}"


def test_a_path_through_a_value_that_is_not_a_map_parks_the_item() -> None:
    wanted = "column lat (from location.lat) is inside a map, but the {}"
    assert reasons(Item(image({"pk": "1", "location": "here"}))) == [wanted.format("attribute is text")]
    assert reasons({"location": "here"}) == [wanted.format("value is a str")]
    mixed = Item(image({"pk": "1", "location": {"lat": "north"}}))
    assert reasons(mixed) == ["column lat (from location.lat) is numeric, but the attribute is text"]


def test_a_map_may_be_one_column_and_its_parts_others() -> None:
    columns = {
        "location": "jsonb",
        "street": {"type": "text", "from": ["location", "address", "a.b"]},
        "dotted": {"type": "text", "from": ["x.y"]},
    }
    item = {"pk": "1", "location": {"address": {"a.b": "Ring"}}, "x.y": "z", "x": {"y": "no"}}
    for body in (Item(image(item)), {name: item[name] for name in ("location", "x.y")}):
        encoded_batch = encoded(body, columns=columns)
        assert not encoded_batch.rejections
        assert list(encoded_batch.statements[0].parameters[2:4]) == [b'{"Ring"}', b'{"z"}']


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"lat": {"type": "numeric", "from": "location."}}, "has an empty name between two dots"),
        ({"lat": {"type": "numeric", "from": []}}, "has an empty name between two dots"),
        ({"location.lat": "numeric"}, "it needs its origin: from: location.lat (inside a map), or from: ["),
        ({"location.lat": {"type": "numeric"}}, "it needs its origin"),
    ],
)
def test_an_ambiguous_path_is_a_config_error(columns: Any, words: str) -> None:
    given = {"type": "postgres", "url": "postgresql://localhost/d", "tables": {"orders": {"columns": columns}}}
    config, (problem,) = destination(given)
    assert config is None
    assert words in problem.text
