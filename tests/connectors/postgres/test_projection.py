"""The fast path to columns gives what the exact path gives, and leaves unusual images to it."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from connectors.postgres.columns import UNUSUAL, ColumnEncoder, Projection
from connectors.postgres.encode import Encoder, TableEncoder
from connectors.postgres.table_schema import BodyColumn, shapes
from replicator.batch import Batch, Part, Upsert
from replicator.items.attributes import image
from replicator.items.item import Item
from replicator.key import KeyAttribute, KeySchema
from replicator.target.contract import Table

KEYS = KeySchema((KeyAttribute("pk", "S"),))
COLUMNS = {
    "name": "text", "total": "numeric", "count": "bigint", "paid": "boolean", "at": "timestamptz",
    "tags": "text[]", "scores": "numeric[]", "photo": "bytea", "address": "jsonb",
}  # fmt: skip
FULL: dict[str, Any] = {
    "pk": "1", "name": 'a "b" {c}\n', "total": Decimal("1.10"), "count": -7, "paid": True, "at": "2026-01-31T12:00:00Z",
    "tags": {"b", "a"}, "scores": {Decimal(2), Decimal("1.5")}, "photo": b"\xff\x00",
    "address": {"city": "É", "floors": [1, None, {"deep": Decimal("-0.5")}], "codes": {1, 2}}, "more": "not a column",
}  # fmt: skip
EMPTY: dict[str, Any] = {"pk": "2"}
NULLS: dict[str, Any] = {"pk": "3", **dict.fromkeys(COLUMNS)}


def parameters(bodies: list[Any], columns: dict[str, Any] | None = None) -> list[bytes | None]:
    """What is sent for rows with these bodies; ``columns``: none for one that holds the whole document."""
    columns = COLUMNS if columns is None else columns
    table = Table("t", KEYS, {"columns": columns, "extra": "ignore"} if columns else {})
    writes = [Upsert("t", (str(n),), body, n, (str(n),)) for n, body in enumerate(bodies)]
    encoded_batch = Encoder(shapes([table], "public"), "reject", "p").encode(Batch([Part("shard:1", writes)]))
    assert not encoded_batch.rejections, encoded_batch.rejections
    (statement,) = encoded_batch.statements
    return list(statement.parameters)


def items(*given: dict[str, Any]) -> list[Item]:
    return [Item(image(g)) for g in given]


def slowly(bodies: list[Any], monkeypatch: pytest.MonkeyPatch, columns: dict[str, Any] | None = None) -> list[Any]:
    """The same with the exact path only."""

    def never(*_: object) -> None:
        raise TypeError

    with monkeypatch.context() as patch:
        patch.setattr(Projection, "__call__", never)
        return parameters(bodies, columns)


@pytest.mark.parametrize("given", [(FULL,), (EMPTY,), (NULLS,), (FULL, EMPTY, NULLS)])
def test_the_fast_and_the_exact_path_send_the_same(
    given: tuple[dict[str, Any], ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert parameters(items(*given)) == slowly(items(*given), monkeypatch)


def test_an_amended_item_is_sent_like_the_equal_mapping() -> None:
    amended = [item | {"name": "changed", "total": Decimal(3)} for item in items(FULL, EMPTY, NULLS)]
    assert parameters(list(amended)) == parameters([dict(a) for a in amended])


def test_an_amended_item_is_a_whole_document_with_the_new_values() -> None:
    (item,) = items(FULL)
    (_, document, *_) = parameters([item | {"name": "changed"}], {})
    assert document == parameters([{**item, "name": "changed"}], {})[1]
    assert document is not None
    assert b"changed" in document


def test_if_a_hook_set_every_column_nothing_of_the_image_is_needed() -> None:
    columns = {"name": "text", "count": "bigint"}
    amended = [item | {"name": "x", "count": n} for n, item in enumerate(items(FULL, EMPTY))]
    assert parameters(list(amended), columns) == parameters([dict(a) for a in amended], columns)


def test_items_amended_in_different_ways_are_sent_like_the_equal_mappings() -> None:
    first, second, third = items(FULL, FULL, EMPTY)
    amended = [first | {"name": "changed"}, second | {"count": 3}, third | {}]
    assert parameters(list(amended)) == parameters([dict(a) for a in amended])


def test_two_columns_of_one_attribute_are_both_filled() -> None:
    columns = {"total": "numeric", "as_json": {"type": "jsonb", "from": "total"}}
    assert parameters(items(FULL), columns)[1:3] == [b'{"1.10"}', b'{"1.10"}']


@pytest.mark.parametrize(
    "attribute", [{"N": "1"}, {"S": 5}, {"S": None}, {"S": "a", "N": "1"}, {"L": []}, [], "a", None]
)
def test_a_text_column_takes_only_text_on_the_fast_path(attribute: object) -> None:
    import orjson

    column = BodyColumn("name", "text", "name", True)
    with pytest.raises(UNUSUAL):
        Projection([column])([orjson.dumps({"name": attribute})])


def test_a_not_null_column_is_not_filled_with_null_on_the_fast_path() -> None:
    for column in (BodyColumn("name", "text", "name", False), BodyColumn("name", "jsonb", "name", False)):
        (values,) = Projection([column])([image(EMPTY)])
        with pytest.raises(UNUSUAL):
            ColumnEncoder(column, "reject").usual(values)


def test_an_amended_item_that_is_malformed_is_refused_alone() -> None:
    table = shapes([Table("t", KEYS, {"columns": COLUMNS})], "public")["t"]
    bodies = [item | {"name": "x"} for item in (*items(FULL), Item(b'{"pk":{"S":"2"},"total":7}'))]
    rejections: list[Any] = []
    rows = [((str(n),), Upsert("t", (str(n),), body, n, (str(n),)), 1) for n, body in enumerate(bodies)]
    assert not list(TableEncoder(table, "reject").upserts(rows, (b"", b""), rejections, tombstones=False))
    assert [(r.write.version, r.reason) for r in rejections] == [(1, "the image is not DynamoDB's typed JSON")]


@pytest.mark.parametrize("columns", [COLUMNS, {}], ids=["columns", "whole"])
@pytest.mark.parametrize("levels", [500, 100_000])
def test_an_item_nested_without_end_is_refused_alone(columns: dict[str, Any], levels: int) -> None:
    deep = b'{"pk":{"S":"1"},"address":' + b'{"L":[' * levels + b'{"S":"x"}' + b"]}" * levels + b"}"
    table = Table("t", KEYS, {"columns": columns} if columns else {})
    bodies = [Item(deep), *items(FULL)]
    writes = [Upsert("t", (str(n),), body, n, (str(n),)) for n, body in enumerate(bodies)]
    encoded_batch = Encoder(shapes([table], "public"), "reject", "p").encode(Batch([Part("shard:1", writes)]))
    assert [r.write for r in encoded_batch.rejections] == writes[:1]
