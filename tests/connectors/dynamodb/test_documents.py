"""What hooks return, in DynamoDB's types; and documents as items, without a server."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import orjson
import pytest

from connectors.dynamodb.documents import Layout, Stored, typed
from connectors.dynamodb.encode import encode
from replicator.batch import Upsert
from replicator.items.attributes import image
from replicator.items.item import Item
from replicator.items.to_json import Unfit
from replicator.key import KeyAttribute, KeySchema
from replicator.target.contract import OWN_IDS
from replicator.testing.contract import at, batch

KEYS = KeySchema((KeyAttribute("pk", "S"), KeyAttribute("n", "N")))
LAYOUT = Layout("copy", KEYS, "_replicator_version", "_replicator_deleted", pristine=False)


def upsert(body: Mapping[str, Any], id: tuple[str, ...] = ("a", "1")) -> Upsert:
    return Upsert("copy", id, body, at(1), id)


def item_of(body: Mapping[str, Any], layout: Layout = LAYOUT, id: tuple[str, ...] = ("a", "1")) -> Any:
    encoded = encode(batch(upsert(body, id)), {"copy": layout})
    assert list(encoded.rejections) == []
    (entry,) = encoded.entries
    return orjson.loads(entry.request(tombstones=False, shows=False, counts=False).body)["Item"]


def reason(body: Mapping[str, Any], layout: Layout = LAYOUT) -> str:
    (rejection,) = encode(batch(upsert(body)), {"copy": layout}).rejections
    return rejection.reason


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        ("", {"S": ""}),
        (None, {"NULL": True}),
        (True, {"BOOL": True}),
        (12, {"N": "12"}),
        (0.1, {"N": "0.1"}),
        (1e22, {"N": "1E+22"}),
        (-0.0, {"N": "0"}),
        (Decimal("1.50"), {"N": "1.50"}),
        (10**40, {"N": str(10**40)}),
        (b"\x00", {"B": "AA=="}),
        ({"a": [1, {}]}, {"M": {"a": {"L": [{"N": "1"}, {"M": {}}]}}}),
        ({"b", "a"}, {"SS": ["a", "b"]}),
        ({1, 2.5}, {"NS": ["1", "2.5"]}),
        (frozenset([b"x"]), {"BS": ["eA=="]}),
        (datetime(2026, 1, 2, tzinfo=UTC), {"S": "2026-01-02T00:00:00+00:00"}),
        (uuid.UUID(int=1), {"S": "00000000-0000-0000-0000-000000000001"}),
    ],
)
def test_python_values_are_stored_with_the_matching_type(value: object, wanted: object) -> None:
    assert typed(value) == wanted


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (float("nan"), "NaN or Infinity"),
        (Decimal("Infinity"), "NaN or Infinity"),
        (Decimal("1." + "1" * 38), "more than 38 digits; round it in the hook"),
        (Decimal("1E126"), "outside of DynamoDB's range"),
        (Decimal("1E-131"), "outside of DynamoDB's range"),
        (set(), "set that is empty"),
        ({"a", 1}, "mixes types"),
        ({None}, "mixes types"),
        (object(), "contains a object, which DynamoDB has no type for"),
        ({1: 2}, "a int as a name; names must be strings"),
        ({"": 2}, "an empty name"),
        ("\ud800", "half of a surrogate pair"),
    ],
)
def test_a_value_without_a_dynamodb_type_is_refused_with_a_reason(value: object, words: str) -> None:
    with pytest.raises(Unfit, match=words):
        typed(value)


def test_too_deep_values_are_refused() -> None:
    value: object = "x"
    for _ in range(32):
        value = [value]
    with pytest.raises(Unfit, match="32 levels"):
        typed(value)


def test_without_a_hook_the_images_bytes_are_sent_unchanged() -> None:
    """Not decoded, so not even spaces change."""
    raw = b'{"pk":{"S":"a"}, "n":{"N":"1"}, "x" : {"N":"1.00"}}'
    (entry,) = encode(batch(upsert(Item(raw))), {"copy": LAYOUT}).entries
    assert raw[:-1] in entry.body


def test_a_changed_item_keeps_what_the_hook_did_not_touch() -> None:
    body = Item(b'{"pk":{"S":"a"},"n":{"N":"1"},"x":{"N":"1.00"},"y":{"S":"old"}}') | {"y": "new"}
    item = item_of(body)
    assert (item["x"], item["y"]) == ({"N": "1.00"}, {"S": "new"})


def test_a_hook_may_leave_the_key_out() -> None:
    item = item_of({"x": 1})
    assert (item["pk"], item["n"]) == ({"S": "a"}, {"N": "1"})


def test_equal_numbers_are_the_same_key() -> None:
    assert item_of({"pk": "a", "n": Decimal("1.0")})["n"] == {"N": "1"}


@pytest.mark.parametrize("body", [{"pk": "b"}, {"pk": 1}, {"n": 2}, {"n": "1"}])
def test_a_hook_may_not_change_the_key(body: Mapping[str, Any]) -> None:
    assert "that differs from the item's own" in reason(body)


def test_documents_with_their_own_ids_are_stored_under_item_and_id() -> None:
    own = Layout("copy", OWN_IDS, "v", "d", pristine=False)
    item = item_of(Item(image({"pk": "x", "n": 1})), own, ('["a"]', "line 1"))
    assert item == {
        "_item": {"S": '["a"]'},
        "_id": {"S": "line 1"},
        "pk": {"S": "x"},
        "n": {"N": "1"},
        "v": {"N": str(at(1))},
    }


def test_a_reserved_name_written_with_an_escape_is_refused_too() -> None:
    """JSON allows it, and two fields with one name would leave the choice to the server."""
    spelled = image({"pk": "a", "n": 1, "_replicator_version": 7}).replace(b'"_rep', b'"\\u005frep')
    assert b"_replicator_version" not in spelled
    assert "has an attribute _replicator_version, the name under which replicator" in reason(Item(spelled))
    harmless = image({"pk": "a", "n": 1, "x": "y"}).replace(b'"y"', b'"\\u0079"')
    assert item_of(Item(harmless))["x"] == {"S": "y"}


@pytest.mark.parametrize("way", ["none", "plain", "amended"])
@pytest.mark.parametrize("name", ["_item", "_id"])
def test_a_document_with_its_own_id_cannot_contain_a_different_one(name: str, way: str) -> None:
    own = Layout("copy", OWN_IDS, "v", "d", pristine=False)
    given: dict[str, object] = {"n": 1, name: "another"}
    bodies = {"none": Item(image(given)), "plain": given, "amended": Item(image({"n": 1})) | {name: "another"}}
    with pytest.raises(Unfit, match=f"has a key attribute {name} that differs from the item's own"):
        Stored(own).item(Upsert("copy", ('["a"]', "line 1"), bodies[way], 1, ("a",)))


@pytest.mark.parametrize("name", ["_replicator_version", "_replicator_deleted"])
def test_an_item_with_a_reserved_attribute_is_refused_with_a_reason(name: str) -> None:
    body = {"pk": "a", "n": 1, name: "theirs"}
    for given in (Item(image(body)), body, Item(image({"pk": "a", "n": 1})) | {name: 1}):
        assert f"has an attribute {name}, the name under which" in reason(given)
        assert "target.version_attribute" in reason(given)


def test_a_reserved_name_as_a_value_is_accepted() -> None:
    assert item_of(Item(image({"pk": "a", "n": 1, "x": "_replicator_version"})))["x"] == {"S": "_replicator_version"}


def test_a_pristine_table_gets_no_additional_attributes() -> None:
    pristine = Layout("copy", KEYS, "_replicator_version", "_replicator_deleted", pristine=True)
    body = {"pk": "a", "n": 1, "_replicator_version": 7}
    (entry,) = encode(batch(upsert(Item(image(body)))), {"copy": pristine}).entries
    request = orjson.loads(entry.request(tombstones=False, shows=False, counts=False).body)
    assert set(request) == {"TableName", "Item"}
    assert request["Item"] == {"pk": {"S": "a"}, "n": {"N": "1"}, "_replicator_version": {"N": "7"}}
