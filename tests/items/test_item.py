"""The access profile changes no result, and limits what is decoded to what hooks access."""

from __future__ import annotations

import random
from decimal import Decimal
from typing import Any

import orjson
import pytest

from replicator.items.attributes import image
from replicator.items.item import Item
from replicator.items.projection import EMPTY, MAX_NAMES, AccessProfile

NAMES = ("status", "total", "paid", "deep", 'odd " name', "", "half \ud800")
ATTRIBUTES: list[Any] = [
    {"S": "OPEN"}, {"S": ""}, {"N": "12.50"}, {"N": "-0"}, {"N": "one"}, {"BOOL": True}, {"BOOL": False},
    {"NULL": True}, {"B": "AA=="}, {"M": {"a": {"N": "1"}}}, {"L": [{"S": "x"}]}, {"SS": ["b", "a"]}, {"S": 5},
    {"S": None}, {"S": "a", "N": "1"}, {"BOOL": "true"}, {}, [], None, 7,
]  # fmt: skip


def outcome(item: Item, access: str, name: Any) -> object:
    try:
        match access:
            case "value":
                return item[name]
            case "in":
                return name in item
            case "get":
                return item.get(name, "missing")
        return dict(item)
    except Exception as e:
        return type(e), str(e)


@pytest.mark.parametrize("seed", range(300))
def test_accesses_to_other_items_change_no_result(seed: int) -> None:
    luck = random.Random(seed)
    profile, usual = AccessProfile(), {name: luck.choice(ATTRIBUTES) for name in NAMES[:-1]}
    names = [*luck.sample(NAMES, luck.randrange(1, len(NAMES))), *luck.choice([[], [5]])]
    for _ in range(30):
        found = {n: luck.choice([a, a, a, luck.choice(ATTRIBUTES)]) for n, a in usual.items() if luck.random() < 0.8}
        text = orjson.dumps(found) if luck.random() < 0.95 else b'{"status":{"S":"OPEN"}'
        item, fresh = Item(text, profile), Item(text)
        for _ in range(luck.randrange(5)):
            access = luck.choice(["value", "value", "value", "in", "get", "all"])
            name = luck.choice(names)
            assert outcome(item, access, name) == outcome(fresh, access, name)


def test_only_the_accessed_attributes_of_the_next_item_are_decoded() -> None:
    profile = AccessProfile()
    for status in ("OPEN", "SENT"):
        item = Item(image({"status": status, "total": Decimal("1.50"), "tags": {"a"}, "note": "long"}), profile)
        assert (item["status"], item["total"], item["tags"]) == (status, Decimal("1.50"), {"a"})
    assert item._raws is None


def test_an_attribute_that_is_sometimes_missing_or_of_another_kind_does_not_decode_whole_items() -> None:
    profile = AccessProfile()
    for given in ({"a": "text", "b": 1}, {"a": None, "b": 1}, {"b": 1}, {"a": "text", "b": 1}, {"a": None, "b": 2}):
        item = Item(image(given), profile)
        assert (item.get("a"), item["b"]) == (given.get("a"), given["b"])
    assert item._raws is None


def test_iterating_over_an_item_teaches_the_profile_nothing() -> None:
    profile = AccessProfile()
    assert dict(Item(image({"a": 1}), profile)) == {"a": 1}
    assert profile.decode(image({"a": 1})) is EMPTY


def test_the_number_of_learned_names_is_bounded() -> None:
    profile = AccessProfile()
    for n in range(10 * MAX_NAMES):
        assert Item(image({"a": n}), profile).get(f"name {n}") is None
    assert len(profile.decode(image({"a": 1})).fields) == MAX_NAMES
