"""Values in typed columns: exact from items and from hooks alike, or refused with a sentence that names no value."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from itertools import count
from typing import Any
from uuid import UUID

import pytest
from psycopg import Connection

from connectors.postgres import Postgres
from connectors.postgres.text import NulFound, array, json_literal, literal
from replicator.batch import Upsert
from replicator.items.attributes import image
from replicator.items.item import Item
from replicator.testing.contract import at, batch, put
from tests.connectors.postgres.postgres_kit import made, opened, rows, typed
from tests.servers.postgres_fixtures import Database

pytestmark = pytest.mark.postgres

ORDINALS = count(1)  # each test writes rows of its own
NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)
TYPES = ("text", "numeric", "bigint", "boolean", "timestamptz", "bytea", "jsonb", "text[]", "numeric[]")
COLUMNS = {type.replace("[]", "s"): {"type": type, "from": "value"} for type in TYPES}
NASTY = [
    '"',
    "\\",
    "\\\\n",
    "\n\r\t\b\f\x01\x1f\x7f",
    "{a,b}",
    "NULL",
    "null",
    "",
    " ",
    ",",
    "é漢\U0001f600",
    "\\u0041",
]

# type, the attribute or the hook's value, what Postgres then has
FROM_BOTH: list[tuple[str, object, object]] = [
    *(("text", text, text) for text in NASTY),
    ("numeric", Decimal("12345678901234567890.123456789012345678"), Decimal("12345678901234567890.123456789012345678")),
    ("numeric", Decimal("1E-130"), Decimal("1E-130")),
    ("numeric", Decimal("9.99E+125"), Decimal("9.99E+125")),
    ("numeric", Decimal("1.50"), Decimal("1.50")),
    ("numeric", 7, Decimal(7)),
    ("bigint", (1 << 63) - 1, (1 << 63) - 1),
    ("bigint", -(1 << 63), -(1 << 63)),
    ("bigint", Decimal("1E+3"), 1000),
    ("bigint", Decimal("5.0"), 5),
    ("boolean", True, True),
    ("boolean", False, False),
    ("timestamptz", "2026-01-31T12:00:00Z", NOON),
    ("timestamptz", "2026-01-31T13:00:00.123456+01:00", NOON + timedelta(microseconds=123456)),
    ("timestamptz", 1769860800, NOON),
    ("timestamptz", Decimal("1769860800.5"), NOON + timedelta(seconds=0.5)),
    ("bytea", b"", b""),
    ("bytea", bytes(range(256)), bytes(range(256))),
    ("jsonb", {"a": [1, None, True, "é"], "b": {"c": ""}}, {"a": [1, None, True, "é"], "b": {"c": ""}}),
    ("jsonb", "text", "text"),
    ("jsonb", 12, 12),
    ("text[]", ["b", "a", "b"], ["b", "a", "b"]),
    ("text[]", set(NASTY), sorted(NASTY)),
    ("text[]", [], []),
    ("numeric[]", [Decimal("1.5"), 2], [Decimal("1.5"), Decimal(2)]),
    ("numeric[]", {Decimal(10), Decimal(9)}, [Decimal(9), Decimal(10)]),
    *((type, None, None) for type in TYPES),
]
FROM_HOOKS: list[tuple[str, object, object]] = [
    ("text", UUID(int=5), "00000000-0000-0000-0000-000000000005"),
    ("numeric", 0.1, Decimal("0.1")),
    ("numeric", 1 << 200, Decimal(1 << 200)),
    ("bigint", 3.0, 3),
    ("timestamptz", NOON, NOON),
    ("timestamptz", NOON.astimezone(timezone(timedelta(hours=-5, minutes=-30))), NOON),
    ("timestamptz", date(2026, 1, 31), datetime(2026, 1, 31, tzinfo=UTC)),
    ("bytea", bytearray(b"x"), b"x"),
    ("jsonb", {"d": Decimal("1.10"), "s": {2, 1}, "t": (1,), "at": NOON, "b": b"\xff", "u": UUID(int=1), "i": 1 << 70},
     {"d": 1.1, "s": [1, 2], "t": [1], "at": "2026-01-31T12:00:00+00:00", "b": "/w==",
      "u": "00000000-0000-0000-0000-000000000001", "i": 1 << 70}),
    ("text[]", ("a",), ["a"]),
    ("text[]", frozenset({"b", "a"}), ["a", "b"]),
    ("numeric[]", [0.5, 1], [Decimal("0.5"), Decimal(1)]),
]  # fmt: skip
REFUSED: list[tuple[str, object, str]] = [
    ("text", 12345, "column text (from value) is text, but the"),
    ("text", "secret\0", "contains a NUL character"),
    ("numeric", "12345", "is numeric, but the"),
    ("numeric", True, "is numeric, but the"),
    ("bigint", Decimal("123.45"), "the number has a fraction"),
    ("bigint", 1 << 63, "does not fit 64 bits"),
    ("bigint", Decimal("1E+100"), "does not fit 64 bits"),
    ("boolean", 1, "is boolean, but the"),
    ("timestamptz", "yesterday", "is not a time like 2026-01-31T12:00:00Z"),
    ("timestamptz", "2026-01-31T12:00:00", "no UTC offset"),
    ("timestamptz", 1769860800000, "milliseconds?"),
    ("bytea", "secret", "is bytea, but the"),
    ("jsonb", {"secret": "\0"}, "contains a NUL character"),
    ("text[]", [12345], "not every member is text"),
    ("text[]", ["secret\0"], "contains a NUL character"),
    ("text[]", "secret", "is text[], but the"),
    ("numeric[]", ["secret"], "not every member is a number"),
    ("numeric[]", [True], "not every member is a number"),
]
REFUSED_OF_HOOKS: list[tuple[str, object, str]] = [
    ("text", "secret\ud800", "half of a surrogate pair"),
    ("numeric", float("nan"), "a finite number"),
    ("numeric", Decimal("Infinity"), "a finite number"),
    ("bigint", float("inf"), "a finite number"),
    ("timestamptz", datetime(2026, 1, 31), "no UTC offset"),
    ("timestamptz", float("nan"), "a finite number"),
    ("jsonb", {"a": [float("nan")]}, "contains NaN or Infinity"),
    ("jsonb", {"a": None, "b": Decimal("NaN")}, "contains NaN or Infinity"),
    ("jsonb", object(), "contains a object"),
    ("jsonb", {1: "secret"}, "names must be strings"),
    ("jsonb", {"a": {1, "a"}}, "a set whose members are of different types"),
    ("jsonb", "\udfff", "half of a surrogate pair"),
    ("jsonb", {"\udfff": 1}, "half of a surrogate pair"),
    ("numeric[]", [float("inf")], "a finite number"),
    ("text[]", ["\ud800"], "half of a surrogate pair"),
]


@pytest.fixture(scope="module")
def module_target(one_postgres_server: Any) -> Iterator[tuple[Postgres, Database]]:
    """One table with a column of every type, all made from the attribute ``value``; each test sees its own row only."""
    from tests.servers.postgres_fixtures import database

    for found in database(one_postgres_server):
        one = opened(found, *(typed(f"t_{name}", value=column) for name, column in COLUMNS.items()))
        made.remove(one)  # it outlives the tests
        yield one, found
        one.close()


def _name(type: str) -> str:
    return f"t_{type.replace('[]', 's')}"


def _one(module_target: tuple[Postgres, Database], type: str, body: Any) -> Any:
    target, found = module_target
    ordinal = next(ORDINALS)
    upsert = Upsert(_name(type), (f"{ordinal}",), body, at(ordinal), ("k",))
    outcome = target.write(batch(upsert))
    assert not outcome.rejections, outcome.rejections[0].reason
    (row,) = (row for row in rows(found, _name(type)) if row["pk"] == f"{ordinal}")
    return row["value"]


@pytest.mark.parametrize(("type", "value", "wanted"), FROM_BOTH)
def test_items_and_hooks_give_the_same_exact_value(module_target: Any, type: str, value: Any, wanted: Any) -> None:
    assert _one(module_target, type, Item(image({"value": value}))) == wanted
    assert _one(module_target, type, {"value": value}) == wanted


@pytest.mark.parametrize(("type", "value", "wanted"), FROM_HOOKS)
def test_hooks_may_return_more(module_target: Any, type: str, value: Any, wanted: Any) -> None:
    assert _one(module_target, type, {"value": value}) == wanted


def _reason(module_target: tuple[Postgres, Database], type: str, body: Any) -> str:
    outcome = module_target[0].write(batch(Upsert(_name(type), ("refused",), body, at(1), ("k",))))
    (rejection,) = outcome.rejections
    return rejection.reason


@pytest.mark.parametrize(("type", "value", "words"), REFUSED)
def test_a_value_that_does_not_fit_is_refused_with_a_reason(
    module_target: Any, type: str, value: Any, words: str
) -> None:
    words = words.replace("column text (from value) is text", "column value is text")
    for body in (Item(image({"value": value})), {"value": value}):
        reason = _reason(module_target, type, body)
        assert words in reason
        assert reason.startswith("column value ")
        assert "secret" not in reason
        assert "12345" not in reason


@pytest.mark.parametrize(("type", "value", "words"), REFUSED_OF_HOOKS)
def test_values_that_only_a_hook_can_produce_are_refused_too(
    module_target: Any, type: str, value: Any, words: str
) -> None:
    reason = _reason(module_target, type, {"value": value})
    assert words in reason
    assert "secret" not in reason


@pytest.mark.parametrize("type", TYPES)
def test_a_row_with_a_value_that_does_not_fit_is_refused_alone(module_target: Any, type: str) -> None:
    """In one batch: what fits in any way, what is missing, and what does not fit."""
    name, ordinal = _name(type), next(ORDINALS)
    good = [v for t, v, _ in FROM_BOTH if t == type]
    poor = [v for t, v, _ in REFUSED if t == type]
    items = [Item(image({"value": v})) for v in [*good, *poor]] + [Item(image({}))]
    for bodies in (items, [{"value": v} for v in [*good, *poor]] + [{}]):
        writes = [Upsert(name, (f"{ordinal} {n:02}",), body, at(ordinal), ("k",)) for n, body in enumerate(bodies)]
        outcome = module_target[0].write(batch(*writes))
        assert [r.write for r in outcome.rejections] == writes[len(good) : len(good) + len(poor)]


def test_a_column_may_come_from_another_attribute(one_postgres: Database) -> None:
    target = opened(
        one_postgres, typed(amount={"type": "numeric", "from": "total"}, version={"type": "bigint", "from": "_version"})
    )
    target.write(batch(put({"pk": "a", "total": 5, "_version": 7}, 1)))
    assert rows(one_postgres) == [{"pk": "a", "amount": Decimal(5), "version": 7, "_version": at(1)}]
    outcome = target.write(batch(put({"pk": "b", "total": "x"}, 1)))
    assert outcome.rejections[0].reason == "column amount (from total) is numeric, but the attribute is text"


def test_a_missing_attribute_of_a_column_that_may_not_be_null_is_refused(one_postgres: Database) -> None:
    target = opened(one_postgres, typed(total={"type": "numeric", "nullable": False}))
    writes = [put({"pk": "a"}, 1), put({"pk": "b", "total": None}, 1), Upsert("contract", ("c",), {}, at(1), ("c",))]
    for write in writes:
        (rejection,) = target.write(batch(write, put({"pk": "fine", "total": 1}, 1))).rejections
        assert rejection.write == write
        assert rejection.reason == "column total must not be null, but the attribute is missing or null"


def test_nul_can_be_replaced_but_never_in_a_key(one_postgres: Database) -> None:
    target = opened(one_postgres, typed(text="text", doc="jsonb", texts="text[]"), nul="replace")
    values = {"text": "a\0b", "doc": {"k\0": ["\0", "\\u0000"]}, "texts": ["\0"]}
    hook = Upsert("contract", ("hook",), values, at(1), ("hook",))
    assert not target.write(batch(put({"pk": "item", **values}, 1), hook)).rejections
    wanted = {"text": "a\ufffdb", "doc": {"k\ufffd": ["\ufffd", "\\u0000"]}, "texts": ["\ufffd"], "_version": at(1)}
    assert rows(one_postgres) == [{"pk": "hook", **wanted}, {"pk": "item", **wanted}]
    (rejection,) = target.write(batch(put({"pk": "a\0"}, 1))).rejections
    assert rejection.reason == "key pk contains a NUL character, which Postgres cannot store"


def test_any_text_array_literal_is_read_back_unchanged(one_postgres: Database) -> None:
    chance = random.Random(1)
    alphabet = [*NASTY, *map(chr, range(1, 128)), "\\u0000", "\\x00", "\u2028", "\ufeff"]
    columns = [["".join(chance.choices(alphabet, k=chance.randrange(6))) for _ in range(40)] for _ in range(40)]
    with one_postgres.connect() as client:
        for texts in columns:
            sent: list[str | None] = [*texts, None]
            row = client.execute("SELECT %s::text[]", (literal(sent).decode(),)).fetchone()
            assert row == (sent,)
            row = client.execute("SELECT %s::text[]", (array(texts),)).fetchone()
            assert row == (texts,)


def test_any_json_literal_is_read_back_unchanged(one_postgres: Database) -> None:
    documents = ['{"a":"\\"\\\\ \\n \\u0001 {,}"}', "[]", "null", '"NULL"', None]
    with one_postgres.connect() as client:
        row = client.execute("SELECT %s::jsonb[]::text[]", (json_literal(documents).decode(),)).fetchone()
        assert row == ([None if d is None else _read_back(client, d) for d in documents],)


def _read_back(client: Connection, document: str) -> str:
    row = client.execute("SELECT %s::jsonb::text", (document,)).fetchone()
    assert row is not None
    return str(row[0])


def test_no_literal_contains_a_nul_character() -> None:
    with pytest.raises(NulFound):
        literal(["fine", "a\0"])
    assert literal(["\\u0000"]) == b'{"\\\\u0000"}'


def test_a_damaged_image_is_refused(one_postgres: Database) -> None:
    target = opened(one_postgres, typed(total="numeric"))
    poor = Upsert("contract", ("b",), Item(b'{"total": 5'), at(1), ("b",))
    (rejection,) = target.write(batch(put({"pk": "a", "total": 1}, 1), poor)).rejections
    assert (rejection.write, rejection.reason) == (poor, "the image is not DynamoDB's typed JSON")
