"""Any input decodes or is Malformed, and what DynamoDB can hold round-trips."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from replicator.aws.errors import decoded
from replicator.errors import TransientError
from replicator.items.attributes import Malformed, canonical_number, from_python, image, number, plain, typed, value
from replicator.items.item import Item
from replicator.key import KeyAttribute, KeySchema
from replicator.source.decoding import KeyReader, RecordsDecoder
from replicator.source.keys_only import _Responses
from replicator.source.scan import _Scanned

KINDS = ["S", "N", "B", "BOOL", "NULL", "M", "L", "SS", "NS", "BS"]
SCHEMAS = [
    KeySchema((KeyAttribute("id", "S"),)),
    KeySchema((KeyAttribute("id", "N"),)),
    KeySchema((KeyAttribute("id", "S"), KeyAttribute("at", "N"))),
    KeySchema((KeyAttribute("id", "B"), KeyAttribute("at", "S"))),
]

# what DynamoDB can hold

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
digits = st.integers(-(10**38) + 1, 10**38 - 1)
numbers = st.builds(lambda n, shift: Decimal(n).scaleb(shift), digits, st.integers(-130, 88)) | st.just(Decimal("-0"))
binaries = st.binary(max_size=20)
scalars = texts | numbers | binaries | st.booleans() | st.none()
sets = st.one_of(*(st.frozensets(kind, min_size=1, max_size=5) for kind in (texts, numbers, binaries)))
values = st.recursive(
    scalars | sets,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=20,
)
items = st.dictionaries(texts, values, max_size=6)

# other input

any_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=15,
)
spellings = st.sampled_from(
    ["", "1", "01", "+1", "-", "1e5", "1E999", "1E9999999", "NaN", "Infinity", "1_0", "٣", "0x1"]
)
inner_values = any_json | spellings | st.lists(spellings | any_json, max_size=3)
near_valid: st.SearchStrategy[object] = st.recursive(
    st.dictionaries(st.sampled_from([*KINDS, "s", ""]), inner_values, max_size=2) | any_json,
    lambda inner: (
        st.builds(dict, M=st.dictionaries(texts, inner, max_size=3)) | st.builds(dict, L=st.lists(inner, max_size=3))
    ),
    max_leaves=10,
)


def malformed_or(convert: Callable[[], object], *, valid: bool) -> None:
    """``convert`` succeeds or raises Malformed, nothing else, and succeeds if the input is ``valid``."""
    try:
        convert()
    except Malformed:
        assert not valid


def is_attribute(given: Any) -> bool:
    """Whether it is certainly an attribute that DynamoDB could hold, decided independently of the decoder."""
    if not isinstance(given, dict) or len(given) != 1:
        return False
    ((kind, inner),) = given.items()
    if kind in ("SS", "NS", "BS"):
        return isinstance(inner, list) and all(is_attribute({kind[0]: member}) for member in inner)
    if kind in ("M", "L"):
        inner = list(inner.values()) if kind == "M" and isinstance(inner, dict) else inner
        return isinstance(inner, list) and all(map(is_attribute, inner))
    if kind in ("BOOL", "NULL"):
        return isinstance(inner, bool)
    return isinstance(inner, str) and (kind == "S" or (kind == "N" and is_number(inner)) or (kind == "B" and not inner))


def is_number(text: str) -> bool:
    """Whether it is a plain decimal number of at most 38 digits."""
    return re.fullmatch(r"-?(0|[1-9][0-9]{0,36})(\.[0-9])?(e-?[0-9]{1,2})?", text) is not None


def is_image(given: Any) -> bool:
    return isinstance(given, dict) and all(map(is_attribute, given.values()))


def parsed(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


@given(st.binary(max_size=200) | st.builds(image, items))
@example(b'{"id":{"S":"a"}}')
def test_any_bytes_are_an_image_or_malformed(data: bytes) -> None:
    malformed_or(lambda: [value(v) for v in typed(data).values()], valid=is_image(parsed(data)))


@given(any_json | st.dictionaries(texts, st.builds(from_python, values), max_size=4))
@example({"id": {"S": "a"}})
def test_any_json_is_an_image_or_malformed(data: object) -> None:
    malformed_or(lambda: dict(Item(json.dumps(data).encode())), valid=is_image(data))


@given(near_valid | st.builds(from_python, values))
@example({"M": {"a": {"L": [{"NS": ["1", "2"]}, {"NULL": True}]}}})
@example({"N": None})
@example({"M": {"a": "S"}})
@example({"NS": ["1", "x"]})
@example({"SS": [["a"]]})
def test_what_is_nearly_an_attribute_is_one_or_malformed(attribute: Any) -> None:
    malformed_or(lambda: value(attribute), valid=is_attribute(attribute))
    malformed_or(lambda: orjson.dumps(plain(attribute)), valid=is_attribute(attribute))


@given(st.text(max_size=10) | spellings | st.integers(-(10**20), 10**20).map(str))
@example("-1.5e-9")
def test_any_text_is_a_number_or_malformed(text: str) -> None:
    malformed_or(lambda: canonical_number(text), valid=is_number(text))
    literal = lambda: json.loads(orjson.dumps(number(text)), parse_int=str, parse_float=str)  # noqa: E731
    malformed_or(literal, valid=is_number(text))


keys = st.fixed_dictionaries({}, optional={"id": near_valid, "at": near_valid})
record = st.fixed_dictionaries(
    {
        "dynamodb": st.fixed_dictionaries(
            {"Keys": keys | any_json, "SequenceNumber": spellings | any_json},
            optional={
                "NewImage": near_valid,
                "OldImage": near_valid,
                "ApproximateCreationDateTime": any_json | st.floats(allow_nan=False, allow_infinity=False),
            },
        )
    },
    optional={"eventName": any_json, "userIdentity": any_json | st.dictionaries(texts, texts, max_size=2)},
)
bodies = st.one_of(
    st.binary(max_size=200),
    st.builds(lambda found: json.dumps({"Records": found}).encode(), st.lists(record, max_size=3)),
    st.builds(lambda found: json.dumps(found).encode(), any_json),
    st.builds(
        lambda found, at: json.dumps({"Items": found, "Responses": {"t": found}, "Records": found}).encode()[:at],
        st.lists(keys, max_size=3),
        st.integers(0, 300),
    ),
)


@given(body=bodies, schema=st.sampled_from(SCHEMAS))
def test_only_transient_errors_come_out_of_the_records_decoder(body: bytes, schema: KeySchema) -> None:
    try:
        found = RecordsDecoder(schema)(body)
    except TransientError:
        return
    assert all(len(r.key) == len(schema.attributes) and all(isinstance(p, str) for p in r.key) for r in found.records)


@given(st.lists(st.tuples(texts, items), max_size=5))
@example([("a", {}), ("b", {"v": 1})])
def test_records_as_dynamodb_writes_them_are_never_refused(given: list[tuple[str, dict[str, Any]]]) -> None:
    stored = [(key, image({**item, "id": key})) for key, item in given]
    records = [
        b'{"eventName":"INSERT","dynamodb":{"Keys":{"id":%b},"NewImage":%b,"SequenceNumber":"%d"}}'
        % (orjson.dumps(from_python(key)), new, n)
        for n, (key, new) in enumerate(stored)
    ]
    found = RecordsDecoder(SCHEMAS[0])(b'{"Records":[%b],"NextShardIterator":"x"}' % b",".join(records))
    assert [(r.key, bytes(r.new or b""), r.sequence) for r in found.records] == [
        ((key,), new, str(n)) for n, (key, new) in enumerate(stored)
    ]
    page = decoded(b'{"Items":[%b]}' % b",".join(new for _, new in stored), _Scanned, "Scan")
    assert [key for key, _ in KeyReader(SCHEMAS[0]).keyed(page.Items or (), "Scan")] == [(key,) for key, _ in stored]


@given(body=bodies, schema=st.sampled_from(SCHEMAS))
def test_only_transient_errors_come_out_of_scans_and_look_ups(body: bytes, schema: KeySchema) -> None:
    try:
        KeyReader(schema).keyed(decoded(body, _Scanned, "Scan").Items or (), "Scan")
        for found in decoded(body, _Responses, "BatchGetItem").Responses.values():
            KeyReader(schema).keyed(found or (), "BatchGetItem")
    except TransientError:
        return


@pytest.mark.parametrize("depth", [500, 5_000, 200_000])
def test_nesting_of_any_depth_is_a_transient_error_or_none(depth: int) -> None:
    deep = b'{"L":[' * depth + b'{"S":""}' + b"]}" * depth
    stored = b'{"SequenceNumber":"1","Keys":{"id":{"S":"a"}},"NewImage":{"a":%s}}' % deep
    for body in (b'{"Records":[{"dynamodb":%s}]}' % stored, b'{"Items":[{"id":{"S":"a"},"a":%s}]}' % deep):
        for decode in (
            RecordsDecoder(SCHEMAS[0]),
            lambda b: KeyReader(SCHEMAS[0]).keyed(decoded(b, _Scanned, "S").Items or (), "S"),
        ):
            try:
                decode(body)
            except TransientError:
                continue


@given(items)
@settings(max_examples=300)
def test_an_item_goes_out_and_comes_back_equal(item: dict[str, Any]) -> None:
    found = dict(Item(image(item)))
    assert found == item
    assert same_digits(found, item)


def same_digits(found: Any, given: Any) -> bool:
    """Whether numbers are equal including trailing zeros."""
    if isinstance(given, Decimal):
        return bool(found.as_tuple() == given.as_tuple())
    if isinstance(given, dict):
        return all(same_digits(found[name], v) for name, v in given.items())
    if isinstance(given, list):
        return all(same_digits(f, v) for f, v in zip(found, given, strict=True))
    if isinstance(given, frozenset):
        return sorted(map(repr, found)) == sorted(map(repr, given))
    return type(found) is type(given)


@given(items)
@settings(max_examples=300)
def test_plain_json_keeps_every_digit(item: dict[str, Any]) -> None:
    text = orjson.dumps({name: plain(v) for name, v in Item(image(item)).typed.items()})
    assert json.loads(text, parse_float=Literal, parse_int=Literal) == {name: in_json(v) for name, v in item.items()}


class Literal(str):
    """The digits of a JSON number."""


def in_json(given: Any) -> Any:
    """The expected JSON of a value, computed independently."""
    if isinstance(given, Decimal):
        return Literal(given)
    if isinstance(given, bytes):
        return base64.b64encode(given).decode()
    if isinstance(given, dict):
        return {name: in_json(v) for name, v in given.items()}
    if isinstance(given, frozenset):
        if all(isinstance(v, Decimal) for v in given):
            return [Literal(v) for v in sorted(given)]
        return sorted(in_json(v) for v in given)
    return [in_json(v) for v in given] if isinstance(given, list) else given


@given(one=numbers, other=numbers)
def test_numbers_are_one_key_if_and_only_if_they_are_equal(one: Decimal, other: Decimal) -> None:
    assert (canonical_number(str(one)) == canonical_number(str(other))) == (one == other)


@given(numbers, st.integers(0, 30))
def test_a_number_written_out_with_more_zeros_is_the_same_key(n: Decimal, zeros: int) -> None:
    written = format(n, "f")
    longer = f"{written}{'' if '.' in written else '.'}{'0' * zeros}".rstrip(".")
    assert canonical_number(longer) == canonical_number(str(n))


@given(texts | numbers | binaries)
def test_a_key_survives_its_way_through_a_request_and_an_image(part: Any) -> None:
    attribute = from_python(part)
    (kind,) = attribute
    schema = KeySchema((KeyAttribute("id", kind),))
    key = schema.parse({"id": part})
    assert schema.key(schema.typed(key)) == key
    assert schema.values(key) == {"id": part}
    assert KeyReader(schema).of(image({"id": part, "other": [1]})) == key
