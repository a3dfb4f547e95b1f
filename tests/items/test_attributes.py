"""DynamoDB's typed JSON: every type, exact, and nothing converted before it is accessed."""

from __future__ import annotations

import base64
from decimal import Decimal
from typing import Any

import orjson
import pytest

from replicator.items.attributes import (
    Malformed,
    canonical_number,
    exact,
    from_python,
    image,
    number,
    plain,
    typed,
    value,
)
from replicator.items.item import Item
from replicator.key import KeyAttribute, KeySchema
from replicator.source.decoding import RecordsDecoder

NINES_38 = "9" * 38
NUMBERS = [
    "0",
    "-0",
    "1",
    "-1.5",
    NINES_38,
    f"-{NINES_38}",
    f"0.{NINES_38}",
    "1E-130",
    "-1E-130",
    "9.9999999999999999999999999999999999999E+125",
    "1234567895171680000000000000000000000000",
]


def as_json(attribute: dict[str, Any]) -> str:
    return orjson.dumps(plain(attribute)).decode()


@pytest.mark.parametrize(
    ("attribute", "expected"),
    [
        ({"S": "text"}, "text"),
        ({"S": ""}, ""),
        ({"S": "a\0b"}, "a\0b"),
        ({"S": "Grüße 🐘"}, "Grüße 🐘"),
        ({"N": "1.50"}, Decimal("1.50")),
        ({"B": "AP8="}, b"\x00\xff"),
        ({"B": ""}, b""),
        ({"BOOL": True}, True),
        ({"BOOL": False}, False),
        ({"NULL": True}, None),
        ({"L": []}, []),
        ({"L": [{"S": "a"}, {"N": "1"}, {"NULL": True}]}, ["a", Decimal(1), None]),
        ({"M": {}}, {}),
        ({"M": {"": {"S": "no name"}, "n": {"M": {"m": {"BOOL": True}}}}}, {"": "no name", "n": {"m": True}}),
        ({"SS": ["b", "a", ""]}, frozenset({"a", "b", ""})),
        ({"NS": ["1", "2.5"]}, frozenset({Decimal(1), Decimal("2.5")})),
        ({"BS": ["AA==", "/w=="]}, frozenset({b"\x00", b"\xff"})),
    ],
)
def test_every_type_has_one_python_value(attribute: dict[str, Any], expected: object) -> None:
    found = value(attribute)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("attribute", "expected"),
    [
        ({"S": "a\0b"}, r'"a\u0000b"'),
        ({"S": ""}, '""'),
        ({"B": "AP8="}, '"AP8="'),
        ({"BOOL": False}, "false"),
        ({"NULL": True}, "null"),
        ({"L": [{"N": "1.0"}, {"L": []}]}, "[1.0,[]]"),
        ({"M": {"a": {"N": "1.0"}, "m": {"M": {}}}}, '{"a":1.0,"m":{}}'),
        ({"SS": ["b", "a"]}, '["a","b"]'),
        ({"BS": ["/w==", "AA=="]}, '["/w==","AA=="]'),
    ],
)
def test_every_type_has_one_json_form(attribute: dict[str, Any], expected: str) -> None:
    assert as_json(attribute) == expected


def test_a_number_set_is_sorted_by_value_not_by_digits() -> None:
    assert as_json({"NS": ["10", "9", "-1", "1E-130", "0.5"]}) == "[-1,1E-130,0.5,9,10]"


def test_sets_have_one_json_form_whatever_their_order() -> None:
    assert as_json({"SS": ["c", "a", "b"]}) == as_json({"SS": ["b", "c", "a"]})


@pytest.mark.parametrize("digits", NUMBERS)
def test_a_number_keeps_its_exact_value(digits: str) -> None:
    assert value({"N": digits}) == Decimal(digits)
    assert value({"N": digits}).as_tuple() == Decimal(digits).as_tuple()


@pytest.mark.parametrize("digits", NUMBERS)
def test_a_number_keeps_its_exact_digits_in_json(digits: str) -> None:
    assert as_json({"N": digits}) == digits


@pytest.mark.parametrize(
    ("digits", "literal"),
    [("+1", "1"), ("007", "7"), ("-007.50", "-7.50"), (".5", "0.5"), ("5.", "5"), ("+1E+2", "1E+2")],
)
def test_a_number_that_is_not_a_json_literal_is_normalized(digits: str, literal: str) -> None:
    assert as_json({"N": digits}) == literal
    assert value({"N": digits}) == Decimal(literal)


@pytest.mark.parametrize("digits", ["NaN", "sNaN", "Infinity", "-Infinity", "", "one", "1,5", "0x10", "--1"])
def test_anything_but_a_finite_number_is_malformed(digits: str) -> None:
    for convert in (exact, number, canonical_number):
        with pytest.raises(Malformed):
            convert(digits)
    with pytest.raises(Malformed):
        value({"N": digits})


@pytest.mark.parametrize(
    ("spellings", "one"),
    [
        (["1", "1.0", "1E0", "+1", "001", "0.1E1"], "1"),
        (["0", "-0", "0.000", "0E10", "-0E-100"], "0"),
        (["1200", "1.2E3", "12E2"], "1200"),
        (["-0.5", "-5E-1", "-.50"], "-0.5"),
        (["1E-130", "10E-131"], "1E-130"),
        ([NINES_38, f"{NINES_38}.0"], NINES_38),
        (
            ["1234567895171680000000000000000000000000", "1.23456789517168E39"],
            "1234567895171680000000000000000000000000",
        ),
        (["1E125", "1" + "0" * 125], "1E+125"),
    ],
)
def test_equal_numbers_have_one_canonical_spelling(spellings: list[str], one: str) -> None:
    assert {canonical_number(s) for s in spellings} == {one}


def test_different_numbers_have_different_canonical_spellings() -> None:
    close = ["1", "1." + "0" * 36 + "1", "-1", "10", "1E-130", "2E-130", NINES_38, "1E38"]
    assert len({canonical_number(s) for s in close}) == len(close)


@pytest.mark.parametrize("digits", ["1E999999999", "-1E999999999", "1E-999999999", "1" * 401])
def test_a_key_number_outside_dynamodbs_range_is_malformed_not_rounded(digits: str) -> None:
    with pytest.raises(Malformed):
        canonical_number(digits)


def nested(levels: int, innermost: dict[str, Any]) -> dict[str, Any]:
    for level in range(levels):
        innermost = {"L": [innermost]} if level % 2 else {"M": {"m": innermost}}
    return innermost


def test_32_levels_of_nesting_are_decoded() -> None:
    item = Item(orjson.dumps({"deep": nested(32, {"N": "1.0"})}))
    found = item["deep"]
    for _ in range(32):
        (found,) = found.values() if isinstance(found, dict) else found
    assert found == Decimal("1.0")
    assert as_json(item.typed["deep"]).count("1.0") == 1


@pytest.mark.parametrize("nest", [b'{"L":[', b'{"M":{"m":'])
def test_extreme_nesting_is_malformed_and_does_not_crash(nest: bytes) -> None:
    end = {b"[": b"]}", b":": b"}}"}[nest[-1:]]
    deep = b'{"a":' + nest * 100_000 + b'{"S":""}' + end * 100_000 + b"}"
    with pytest.raises(Malformed):
        typed(deep)


def test_nesting_that_decodes_but_is_too_deep_for_python_is_malformed() -> None:
    deep = nested(5_000, {"S": ""})
    with pytest.raises(Malformed):
        value(deep)
    with pytest.raises(Malformed):
        plain(deep)


def test_an_item_is_a_read_only_mapping_of_its_attributes() -> None:
    item = Item(b'{"id":{"S":"a"},"n":{"N":"1"}}')
    assert dict(item) == {"id": "a", "n": Decimal(1)}
    assert (len(item), list(item), "id" in item, "x" in item) == (2, ["id", "n"], True, False)
    assert item.get("x", "default") == "default"
    with pytest.raises(KeyError):
        item["x"]
    with pytest.raises(TypeError):
        item["id"] = "b"  # type: ignore[index]


def test_an_item_shows_names_and_no_values() -> None:
    assert repr(Item(b'{"id":{"S":"secret"}}')) == "Item(id)"


def test_an_attribute_that_is_not_accessed_is_never_converted() -> None:
    item = Item(b'{"good":{"N":"1"},"bad":{"N":"one"},"worse":{"Q":[]},"both":{"S":"a","N":"1"}}')
    assert item["good"] == 1
    assert len(item) == 4
    assert "bad" in item
    for name in ("bad", "worse", "both"):
        with pytest.raises(Malformed):
            item[name]


def test_an_image_that_is_not_accessed_is_never_parsed() -> None:
    item = Item(b"not JSON at all")
    assert item.image == b"not JSON at all"
    with pytest.raises(Malformed, match="not DynamoDB's typed JSON"):
        item["id"]


@pytest.mark.parametrize("text", [b"", b"[]", b"null", b'{"a":1}', b'{"a":{"S":"x"}', b'{"a":{"S":"\xff"}}', b"{} {}"])
def test_anything_but_an_image_is_malformed(text: bytes) -> None:
    with pytest.raises(Malformed):
        typed(text)


@pytest.mark.parametrize(
    "attribute",
    [
        {},
        {"S": "a", "N": "1"},
        {"X": "a"},
        {"S": 5},
        {"S": None},
        {"N": 5},
        {"N": None},
        {"N": ["1"]},
        {"B": "not base64"},
        {"B": 1},
        {"BOOL": "false"},
        {"L": {"S": "a"}},
        {"L": "ab"},
        {"L": ["a"]},
        {"M": []},
        {"M": {"a": "b"}},
        {"SS": "ab"},
        {"SS": [1, "a"]},
        {"SS": [["a"]]},
        {"NS": ["x"]},
        {"NS": [1]},
        {"NS": None},
        {"BS": ["?"]},
    ],
)
def test_anything_but_an_attribute_is_malformed(attribute: dict[str, Any]) -> None:
    with pytest.raises(Malformed):
        value(attribute)


@pytest.mark.parametrize(
    "attribute",
    [
        {},
        {"S": "a", "N": "1"},
        {"X": "a"},
        {"N": 5},
        {"N": None},
        {"L": 5},
        {"L": ["a"]},
        {"L": {}},
        {"M": []},
        {"M": {"a": "b"}},
        {"M": {"a": "S"}},
        {"SS": [1, "a"]},
        {"SS": None},
        {"NS": ["x"]},
        {"NS": [1]},
        {"NS": None},
        {"BS": 5},
    ],
)
def test_anything_but_an_attribute_has_no_json_form(attribute: dict[str, Any]) -> None:
    with pytest.raises(Malformed):
        plain(attribute)


def test_the_reason_names_types_and_no_values() -> None:
    with pytest.raises(Malformed) as raised:
        value({"B": "secret!"})
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    "given",
    [
        None,
        True,
        "",
        "a\0b",
        0,
        10**37,
        Decimal("1E-130"),
        Decimal("-0.10"),
        b"",
        b"\x00\xff",
        [],
        [1, ["a"], {}],
        {},
        {"a": {"b": None}},
        {"x", "y"},
        {1, Decimal("2.5")},
        frozenset({b"\x00"}),
    ],
)
def test_python_values_round_trip(given: object) -> None:
    assert value(from_python(given)) == given
    assert Item(image({"a": given}))["a"] == given


def test_tuples_are_lists_and_other_bytes_are_bytes() -> None:
    assert from_python((1,)) == {"L": [{"N": "1"}]}
    encoded = base64.b64encode(b"ab").decode()
    assert from_python(bytearray(b"ab")) == from_python(memoryview(b"ab")) == {"B": encoded}


@pytest.mark.parametrize(
    "given",
    [1.5, object(), set(), {1, "a"}, {None}, {(1,)}, Decimal("NaN"), Decimal("Infinity"), {"a": 1.5}, [1.5]],
)
def test_what_dynamodb_cannot_hold_is_rejected(given: object) -> None:
    with pytest.raises(TypeError):
        from_python(given)


def test_a_streamed_image_and_a_scanned_one_decode_to_the_same() -> None:
    given = {"id": "a", "n": Decimal("1E-130"), "raw": b"\x00", "s": {"b", "a"}, "m": {"l": [None, True, ""]}}
    scanned = image(given)
    stream = RecordsDecoder(KeySchema((KeyAttribute("id", "S"),)))
    body = (
        b'{"Records":[{"eventName":"INSERT","dynamodb":{"SequenceNumber":"1","Keys":{"id":{"S":"a"}},"NewImage":%s}}]}'
    )
    (record,) = stream(body % scanned).records
    assert record.new is not None
    streamed = bytes(record.new)
    assert streamed == scanned
    assert Item(record.new) == Item(scanned)
    assert {n: as_json(v) for n, v in typed(streamed).items()} == {n: as_json(v) for n, v in typed(scanned).items()}


def test_an_item_amended_is_a_mapping_with_the_new_values_in_place() -> None:
    item = Item(image({"a": 1, "b": "x"}))
    amended = item | {"b": "y", "c": None}
    assert dict(amended) == {"a": Decimal(1), "b": "y", "c": None}
    assert (len(amended), "c" in amended, list(amended)) == (3, True, ["a", "b", "c"])
    assert dict(amended | {"a": 2}) == {"a": 2, "b": "y", "c": None}
    assert dict(item) == {"a": Decimal(1), "b": "x"}  # unchanged


def test_an_item_is_amended_with_mappings_only() -> None:
    with pytest.raises(TypeError):
        Item(image({"a": 1})) | 5  # type: ignore[operator]
    with pytest.raises(TypeError):
        (Item(image({"a": 1})) | {"b": 1}) | 5  # type: ignore[operator]


def test_an_amended_item_shows_names_only() -> None:
    assert repr(Item(image({"a": "secret"})) | {"b": "secret"}) == "Amended(a, b)"
