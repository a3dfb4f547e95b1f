"""Keys: equal keys have equal tuples and texts, different keys differ."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any

import pytest

from replicator.change import ScanPage
from replicator.items.attributes import Malformed
from replicator.key import Key, KeyAttribute, KeySchema, key_text

DEVICE_AT = KeySchema((KeyAttribute("device", "S"), KeyAttribute("at", "N")))
RAW = KeySchema((KeyAttribute("raw", "B"),))


def at(digits: str) -> Key:
    return DEVICE_AT.key({"device": {"S": "d"}, "at": {"N": digits}})


def test_a_key_is_found_in_an_image_among_other_attributes() -> None:
    image = {"at": {"N": "17"}, "reading": {"N": "0.1"}, "device": {"S": "d1"}}
    assert DEVICE_AT.key(image) == ("d1", "17")


@pytest.mark.parametrize("digits", ["1.0", "1E0", "+1", "01", "0.1E1", "10E-1"])
def test_spellings_of_one_number_are_one_key(digits: str) -> None:
    assert at(digits) == at("1")


def test_numbers_that_differ_in_their_last_digit_are_different_keys() -> None:
    assert at("1" + "0" * 37) != at("1" + "0" * 36 + "1")
    assert at("1E-130") != at("0")


def test_a_text_key_that_looks_like_a_number_is_left_alone() -> None:
    schema = KeySchema((KeyAttribute("id", "S"),))
    assert schema.key({"id": {"S": "1.0"}}) == ("1.0",)


def test_a_malformed_number_in_a_key_is_malformed() -> None:
    with pytest.raises(Malformed):
        at("one")


def test_a_key_converts_to_typed_json_and_to_python_values() -> None:
    assert DEVICE_AT.typed(("d1", "17")) == {"device": {"S": "d1"}, "at": {"N": "17"}}
    assert DEVICE_AT.values(("d1", "1.5")) == {"device": "d1", "at": Decimal("1.5")}
    assert RAW.values(("AP8=",)) == {"raw": b"\x00\xff"}


def test_a_key_of_the_wrong_length_is_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        DEVICE_AT.typed(("d1",))


@pytest.mark.parametrize("given", [17, Decimal("17.0"), Decimal("1.7E1")])
def test_a_key_is_parsed_from_plain_values(given: object) -> None:
    assert DEVICE_AT.parse({"device": "d1", "at": given}) == ("d1", "17")
    assert RAW.parse({"raw": b"\x00\xff"}) == ("AP8=",)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "the key has the attributes device, at, not none"),
        ({"device": "d1"}, "the key has the attributes device, at, not device"),
        ({"device": "d1", "at": 1, "x": 2}, "the key has the attributes device, at, not device, at, x"),
        ({"device": "d1", "at": "1"}, "key attribute at is of type N (number): write it without quotes, such as 5"),
        ({"device": 1, "at": 1}, 'key attribute device is of type S (string): write it in quotes, such as "5"'),
        ({"device": "d1", "at": True}, "key attribute at is of type N (number): write it without quotes, such as 5"),
        ({"device": "d1", "at": None}, "key attribute at is of type N (number): write it without quotes, such as 5"),
        (
            {"device": "d1", "at": 1.5},
            "key attribute at: a float is not a DynamoDB value (numbers: int or Decimal)",
        ),
        ({"device": "d1", "at": Decimal("NaN")}, "key attribute at: NaN is not a DynamoDB number"),
    ],
)
def test_an_invalid_key_is_refused_with_the_wrong_attribute(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        DEVICE_AT.parse(given)


def test_a_schema_has_attributes_of_key_types() -> None:
    with pytest.raises(ValueError, match="at least one attribute"):
        KeySchema(())
    with pytest.raises(ValueError, match="S, N or B, not 'BOOL'"):
        KeyAttribute("id", "BOOL")


def test_key_texts_are_readable() -> None:
    assert key_text(("d1", "17")) == '["d1","17"]'
    assert key_text(("Grüße",)) == '["Grüße"]'


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("a,b",), ("a", "b")),
        (('a","b',), ("a", "b")),
        (("a", "b,c"), ("a,b", "c")),
        (("a\\", "b"), ("a", "\\b")),
        (("",), ("", "")),
        (("a\0",), ("a",)),
        (("a@0000000000000000001",), ("a",)),
        (('["a"]',), ("a",)),
    ],
)
def test_different_keys_have_different_texts(one: Key, other: Key) -> None:
    assert key_text(one) != key_text(other)


def test_a_long_key_is_hashed_and_stays_different() -> None:
    fits, long, other = ("a" * 508,), ("a" * 509,), ("a" * 508 + "b",)
    assert key_text(fits) == f'["{"a" * 508}"]'
    assert len(key_text(fits)) == 512
    assert key_text(long).startswith("sha256:")
    assert len(key_text(long)) == 71
    assert len({key_text(fits), key_text(long), key_text(other)}) == 3


def test_the_limit_counts_bytes_not_characters() -> None:
    assert key_text(("é" * 254,)).startswith("[")
    assert key_text(("é" * 255,)).startswith("sha256:")


def test_a_hash_cannot_be_forged_by_a_short_key() -> None:
    hashed = key_text(("a" * 600,))
    assert key_text((hashed,)) != hashed


def test_a_scan_page_ends_its_segment_unless_it_has_a_cursor_or_is_waiting() -> None:
    assert ScanPage(0).ended
    assert not ScanPage(0, cursor={"id": {"S": "a"}}).ended
    assert not ScanPage(0, waiting_for="throttled").ended
