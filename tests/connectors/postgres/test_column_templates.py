"""Columns that are cut out of images give what the careful way gives, byte for byte, and leave it what is unusual."""

from __future__ import annotations

import random
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import msgspec
import pytest

from connectors.postgres import column_templates
from connectors.postgres.column_templates import MAX_PAUSE, MIN_IMAGES, ColumnTemplates
from connectors.postgres.columns import Projection
from connectors.postgres.encode import Encoder
from connectors.postgres.table_schema import BodyColumn, shapes
from replicator.batch import Batch, Part, Upsert
from replicator.items.attributes import image
from replicator.items.item import Amended, Item
from replicator.key import KeyAttribute, KeySchema
from replicator.target.contract import Table

KEYS = KeySchema((KeyAttribute("pk", "S"),))
COLUMNS = {
    "name": "text", "total": "numeric", "count": "bigint", "paid": "boolean", "at": "timestamptz",
    "address": "jsonb", "codes": "jsonb",
}  # fmt: skip
OTHERS = {"tags": "text[]", "photo": "bytea", "absent": "text"}
TEXTS = ("plain", "É ü 漢 🙂", 'a "b" {c}', "back\\slash", "line\nfeed\ttab", "", "null", "NULL", "{}", "a,b", "%b %s")
NUMBERS = (Decimal("1.10"), Decimal("-0.5"), Decimal("1E+5"), Decimal("9.99E+125"), Decimal(0), Decimal("-12345678.9"))
MANY = 3 * MIN_IMAGES


def item(chance: random.Random) -> dict[str, Any]:
    return {
        "pk": str(chance.random()),
        "name": chance.choice(TEXTS),
        "total": chance.choice(NUMBERS),
        "count": chance.choice((0, 7, -7, 10**17)),
        "paid": chance.random() < 0.5,
        "at": chance.choice(("2026-01-31T12:00:00Z", "2026-01-31T12:00:00.5+02:00")),
        "address": {
            "city": chance.choice(TEXTS),
            "floors": [chance.choice(NUMBERS), None, {"deep": chance.choice(TEXTS)}],
        },
        "codes": set(chance.sample(("b", "a", "ä", "B", "aa"), 3)),
        "tags": set(chance.sample(("x", "w", "v"), 2)),
        "photo": chance.randbytes(3),
        "more": chance.choice(TEXTS),
    }


def items(count: int = MANY, seed: int = 0, **changed: Any) -> list[dict[str, Any]]:
    chance = random.Random(seed)
    return [item(chance) | changed for _ in range(count)]


def as_streamed(given: dict[str, Any]) -> Item:
    """An item with its image as it comes out of a page."""
    return Item(msgspec.json.decode(image(given), type=msgspec.Raw))


def sent(bodies: Sequence[Any], columns: dict[str, Any] = COLUMNS | OTHERS) -> list[bytes | None]:
    table = Table("t", KEYS, {"columns": columns})
    writes = [Upsert("t", (str(n),), body, n, (str(n),)) for n, body in enumerate(bodies)]
    encoded_batch = Encoder(shapes([table], "public"), "reject", "p").encode(Batch([Part("shard:1", writes)]))
    assert not encoded_batch.rejections, encoded_batch.rejections
    (statement,) = encoded_batch.statements
    return list(statement.parameters)


def carefully(bodies: Sequence[Any], columns: dict[str, Any] = COLUMNS | OTHERS) -> list[bytes | None]:
    def never(*_: object) -> None:
        raise TypeError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Projection, "__call__", never)
        patch.setattr(ColumnTemplates, "__call__", lambda *_: {})
        return sent(bodies, columns)


def test_columns_equal_those_of_the_exact_path() -> None:
    for seed in range(20):
        bodies = [as_streamed(given) for given in items(seed=seed)]
        assert sent(bodies) == carefully(bodies)


def test_columns_from_attributes_are_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[int] = []
    right = Projection.__call__

    def counts(self: Projection, images: Sequence[bytes]) -> Sequence[Sequence[Any]]:
        decoded.append(len(self._columns))
        return right(self, images)

    monkeypatch.setattr(Projection, "__call__", counts)
    # A backslash is written in two ways, so it is left to others.
    given = [g for g in items() if "\\" not in str(image(g), "utf-8").replace("\\n", "").replace("\\t", "")]
    sent([as_streamed(g) for g in given], COLUMNS)
    assert decoded == [0]
    sent([as_streamed(g) for g in given])
    assert decoded == [0, len(OTHERS)]


def test_a_hooks_values_are_combined_with_values_cut_from_the_image() -> None:
    bodies = [Amended(as_streamed(g), {"name": "x", "count": 1}) for g in items()]
    assert sent(bodies) == carefully(bodies)


@pytest.mark.parametrize(
    "odd",
    [
        {"name": 5},
        {"name": None},
        {"name": "\\"},
        {"count": Decimal("1E+2")},
        {"count": 10**18},
        {"total": None},
        {"address": None},
        {"address": {}},
        {"address": 'quote " and \\ backslash'},
        {"codes": {Decimal(10), Decimal(9)}},
        {"codes": {b"\xff", b"\x00"}},
        {"added": "later"},
    ],
)
def test_one_item_unlike_the_others_is_stored_like_them(odd: dict[str, Any]) -> None:
    kinds = {"name": "jsonb"} if odd.get("name") == 5 else {}
    given = items()
    for mixed in ([*given[:-1], given[-1] | odd], [given[0] | odd, *given[1:]], [g | odd for g in given]):
        bodies = [as_streamed(g) for g in mixed]
        assert sent(bodies, COLUMNS | OTHERS | kinds) == carefully(bodies, COLUMNS | OTHERS | kinds)


@pytest.mark.parametrize(
    ("odd", "reason"),
    [
        ({"count": Decimal("1.5")}, "column count is bigint, but the number has a fraction"),
        ({"count": 10**19}, "column count is bigint, but the number does not fit 64 bits"),
        (
            {"at": "2026-02-31T12:00:00Z"},
            "column at is timestamptz, but the text is not a time like 2026-01-31T12:00:00Z",
        ),
        ({"at": "2026-02-01T12:00:00"}, "column at is timestamptz, but the time has no UTC offset"),
        ({"name": "a\0b"}, "column name contains a NUL character"),
        ({"address": {"city": "a\0b"}}, "column address contains a NUL character"),
        ({"paid": "yes"}, "column paid is boolean, but the attribute is text"),
    ],
)
def test_a_value_that_a_column_cannot_hold_is_refused_on_the_fast_path_too(odd: dict[str, Any], reason: str) -> None:
    table = Table("t", KEYS, {"columns": COLUMNS | OTHERS})
    given = items()
    for mixed in ([*given[:-1], given[-1] | odd], [g | odd for g in given]):
        writes = [Upsert("t", (str(n),), as_streamed(g), n, (str(n),)) for n, g in enumerate(mixed)]
        encoded_batch = Encoder(shapes([table], "public"), "reject", "p").encode(Batch([Part("shard:1", writes)]))
        assert {r.reason[: len(reason)] for r in encoded_batch.rejections} == {reason}
        assert len(encoded_batch.rejections) == sum(odd.items() <= g.items() for g in mixed)


def test_two_columns_may_come_from_one_attribute() -> None:
    columns = {"name": "text", "again": {"type": "jsonb", "from": "name"}, "total": "numeric"}
    bodies = [as_streamed(g) for g in items()]
    assert sent(bodies, columns) == carefully(bodies, columns)


def test_the_fast_path_is_rarely_tried_on_a_table_without_a_common_template(monkeypatch: pytest.MonkeyPatch) -> None:
    tries = 0

    def counts(*_: object) -> None:
        nonlocal tries
        tries += 1

    monkeypatch.setattr(column_templates, "fast_template", counts)
    templates = ColumnTemplates([BodyColumn("name", "text", "name", nullable=True)])
    images = [as_streamed(g).image for g in items()]
    for _ in range(10 * MAX_PAUSE):
        assert templates(images, frozenset()) == {}
    assert tries < 20
