"""Targets predict which documents they would refuse."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from replicator.batch import Upsert
from replicator.config.target import destination
from replicator.items.attributes import image
from replicator.items.item import Item
from replicator.key import KeyAttribute, KeySchema
from replicator.operations.preview import json_values
from replicator.target.contract import OWN_IDS, Forecasting, Table

PK = KeySchema((KeyAttribute("pk", "S"),))
SEARCH = {"type": "opensearch", "url": "http://127.0.0.1:1", "username": "u", "password": "p"}
DYNAMODB = {"type": "dynamodb", "region": "eu-west-1"}
POSTGRES = {"type": "postgres", "url": "postgresql://127.0.0.1:1/d"}
FIELDS: Mapping[str, Any] = {
    "title": {"type": "keyword"},
    "total": {"type": "double"},
    "count": {"type": "short"},
    "paid": {"type": "boolean"},
    "placed": {"type": "date"},
    "loose": {"type": "integer", "ignore_malformed": True},
    "place": {"properties": {"city": {"type": "text"}, "open": {"dynamic": False, "properties": {}}}},
    "kept": {"type": "object", "enabled": False},
}


def reasons(
    config: Mapping[str, Any], body: Any, *, keys: KeySchema = PK, id: tuple[str, ...] = ("a",), **options: Any
) -> list[str]:
    """The predicted reasons, without a server."""
    found, problems = destination({**config, "tables": {"orders": options}})
    assert found is not None, problems
    target = found.build("p")
    assert isinstance(target, Forecasting)
    return [r.reason for r in target.refusals([Table("orders", keys, options)], [Upsert("orders", id, body, 1, id)])]


def searched(body: Any, **mapping: Any) -> list[str]:
    return reasons(SEARCH, body, mapping={"properties": FIELDS, **mapping})


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"titel": "x"}, "the field titel is not in the mapping, which is strict"),
        ({"place": {"street": "x"}}, "the field place.street is not in the mapping, which is strict"),
        ({"place.street": "x"}, "the field place.street is not in the mapping, which is strict"),
        ({"place": "Ulm"}, "the field place is an object in the mapping, but the value is not"),
        ({"total": "much"}, "the field total is of type double and cannot hold the value"),
        ({"total": {"eur": 1}}, "the field total is of type double and cannot hold the value"),
        ({"count": 40_000}, "the field count is of type short and cannot hold the value"),
        ({"paid": 1}, "the field paid is of type boolean and cannot hold the value"),
        ({"title": {"en": "x"}}, "the field title is of type keyword and cannot hold the value"),
        ({"title": "x" * 33_000}, "the text in the field title is longer than the 32,766 bytes"),
        ({"replicator": {"deleted": True}}, "has a field"),
    ],
)
def test_documents_a_mapping_refuses(body: dict[str, Any], reason: str) -> None:
    for given in (body, Item(image(body))):
        (found,) = searched(given)
        assert reason in found


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"title": "x", "total": "1.5", "count": -32_768, "paid": "true", "placed": "any format", "loose": "x"},
        {"title": ["x", None, 1], "place": [{"city": "Ulm"}, None], "place.city": "Ulm", "total": None},
        {"place": {"open": {"anything": {"deep": 1}}}, "kept": "anything"},
    ],
)
def test_documents_a_mapping_accepts(body: dict[str, Any]) -> None:
    assert searched(body) == []


@pytest.mark.parametrize("dynamic", [True, False, "runtime"])
def test_an_open_mapping_accepts_unknown_fields(dynamic: object) -> None:
    assert searched({"titel": "x", "place": {"street": "x"}}, dynamic=dynamic) == []


def test_an_index_without_a_mapping_accepts_anything() -> None:
    assert reasons(SEARCH, {"anything": {"x": [1, "a", {}]}}) == []


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"x": float("nan")}, "contains NaN or Infinity"),
        ({"x": "y" * 409_600}, "the item has 409,6"),
        ({"x": ["y" * 1000] * 500}, "but DynamoDB stores at most 409,600"),
        ({"_replicator_version": 1}, "has an attribute _replicator_version, the name under which"),
        ({"pk": "b"}, "has a key attribute pk that differs from the item's own"),
    ],
)
def test_items_dynamodb_refuses(body: dict[str, Any], reason: str) -> None:
    (found,) = reasons(DYNAMODB, body)
    assert reason in found


@pytest.mark.parametrize(
    ("id", "reason"),
    [
        (("a", ""), "the key attribute _id is empty, which DynamoDB does not allow"),
        (("a", "x" * 1025), "the key attribute _id has 1,025 bytes, but DynamoDB allows at most 1,024"),
        (("x" * 2049, "a"), "the key attribute _item has 2,049 bytes, but DynamoDB allows at most 2,048"),
    ],
)
def test_keys_dynamodb_refuses(id: tuple[str, str], reason: str) -> None:
    assert reasons(DYNAMODB, {"n": 1}, keys=OWN_IDS, id=id) == [reason]


def test_items_dynamodb_accepts() -> None:
    body = {"n": -1.5, "b": b"x", "s": {"a"}, "m": {"l": [None, True, 1]}, "large": "x" * 400_000}
    assert reasons(DYNAMODB, body) == []
    assert reasons(DYNAMODB, Item(image({"pk": "a", **{k: v for k, v in body.items() if k != "n"}}))) == []


def test_documents_postgres_refuses() -> None:
    columns = {"city": "text", "paid": {"type": "boolean", "nullable": False}}
    for body, words in (
        ({"paid": True, "citty": "x"}, "did you mean city?"),
        ({"city": "x"}, "column paid must not be null"),
        ({"paid": True, "city": 5}, "column city is text"),
        (Item(image({"pk": "a", "paid": "yes"})), "column paid is boolean, but the attribute is text"),
    ):
        (found,) = reasons(POSTGRES, body, columns=columns)
        assert words in found
    assert reasons(POSTGRES, {"paid": True}, columns=columns) == []


def test_a_preview_shows_nan_and_infinity() -> None:
    values = {"a": float("nan"), "b": float("-inf"), "c": 1.5, "d": [float("inf")]}
    assert json_values(values) == {"a": "NaN", "b": "-Infinity", "c": 1.5, "d": ["Infinity"]}
