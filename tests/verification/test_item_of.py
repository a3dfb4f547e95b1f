"""Which item a stored document is of: the one that its id names, none, or one that only a hash tells."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from replicator.items.attributes import canonical_number
from replicator.key import Key, KeyAttribute, KeySchema, key_text
from replicator.verification.differences import NO_ITEM
from replicator.verification.examiner import Examiner, Floor

STRING = KeySchema((KeyAttribute("pk", "S"),))
COMPOSITE = KeySchema((KeyAttribute("pk", "N"), KeyAttribute("sk", "B")))


def item_of(keys: KeySchema, id: tuple[str, ...], *, own_ids: bool) -> Key | None:
    mapping: Any = SimpleNamespace(own_ids=own_ids)
    target: Any = None
    return Examiner(mapping, {}, target, Floor(0, 0), keys=keys).item_of(id)


@pytest.mark.parametrize(
    ("keys", "id"),
    [
        (STRING, ("a",)),
        (STRING, ("x" * 2048,)),
        (STRING, ("\U0001f600\n",)),
        (COMPOSITE, ("-1.5", "AP8=")),
        (COMPOSITE, ("0", "AAAA")),
        (COMPOSITE, ("1" * 38, "AAAA")),
        (COMPOSITE, (canonical_number("1E+125"), "AAAA")),
        (COMPOSITE, (canonical_number("1E-130"), "AAAA")),
    ],
)
def test_a_key_that_an_item_can_have_is_looked_up(keys: KeySchema, id: tuple[str, ...]) -> None:
    assert item_of(keys, id, own_ids=False) == id
    if not key_text(id).startswith("sha256:"):
        assert item_of(keys, (key_text(id), "1"), own_ids=True) == id


@pytest.mark.parametrize(
    ("keys", "id"),
    [
        (STRING, ("",)),
        (STRING, ("x" * 2049,)),
        (STRING, ("é" * 1025,)),
        (STRING, ("\ud800",)),
        (COMPOSITE, ("1", "")),
        (COMPOSITE, ("1", "AP8")),
        (COMPOSITE, ("1", "A" * 1368)),
        (COMPOSITE, ("1.0", "AP8=")),
        (COMPOSITE, ("NaN", "AP8=")),
        (COMPOSITE, ("1" * 39, "AP8=")),
        (COMPOSITE, ("1E+126", "AP8=")),
        (COMPOSITE, ("1E-131", "AP8=")),
        (COMPOSITE, ("one", "AP8=")),
        (COMPOSITE, ("1",)),
    ],
)
def test_no_item_can_have_a_key_that_dynamodb_refuses(keys: KeySchema, id: tuple[str, ...]) -> None:
    assert item_of(keys, id, own_ids=False) == NO_ITEM


@pytest.mark.parametrize("text", ["foo", "[x", '["a","b"]', "[1]", "", '[""]', "[[]]", "null", '{"a":1}', '["a" ]'])
def test_no_item_has_a_document_whose_id_names_no_possible_key(text: str) -> None:
    assert item_of(STRING, (text, "1"), own_ids=True) == NO_ITEM


def test_an_item_whose_key_is_hashed_is_unknown() -> None:
    assert item_of(STRING, (key_text(("x" * 600,)), "1"), own_ids=True) is None
