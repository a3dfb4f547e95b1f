"""The table of all benchmarks: its items, changes and rows in Postgres, generated from a seed."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any

from replicator.items.item import Amended, Item

Plain = dict[str, Any]
TABLE = "orders"
DOCUMENTS = "documents"
KEYS = ("pk", "sk")
ITEMS, CHANGES, SHARDS = 100_000, 120_000, 4
INSERTS, UPDATES = 0.3, 0.6  # of the changes; the rest deletes

COLUMNS: Mapping[str, str] = {
    "customer": "text",
    "status": "text",
    "note": "text",
    "created_at": "timestamptz",
    "total": "numeric",
    "tax": "numeric",
    "quantity": "bigint",
    "paid": "boolean",
    "tags": "jsonb",
    "shipping": "jsonb",
}
NAMES = (*KEYS, *COLUMNS, "_version")  # 13 columns

_WORDS = ("Amsterdam", "Bergen", "Coruña", "Dublin", "Espoo", "Firenze", "Gdańsk", "Hamburg", "Ioannina", "Jaca")
_STATES = ("OPEN", "PACKED", "SENT", "RETURNED")


def key(number: int) -> Plain:
    return {"pk": f"order#{number:08d}", "sk": "2026"}


def item(number: int, random: random.Random) -> Plain:
    """12 attributes, about 650 bytes of DynamoDB's JSON."""
    second = random.randrange(86_400)
    return {
        **key(number),
        "customer": f"customer-{random.randrange(10**7)}",
        "status": random.choice(_STATES),
        "note": (" ".join(random.choices(_WORDS, k=32)))[:200],
        "created_at": f"2026-03-{random.randrange(1, 29):02d}T{second // 3600:02d}:{second // 60 % 60:02d}:00Z",
        "total": Decimal(random.randrange(1, 10**7)) / 100,
        "tax": Decimal(random.randrange(1, 10**6)) / 1000,
        "quantity": random.randrange(1, 500),
        "paid": random.random() < 0.5,
        "tags": set(random.sample(_WORDS, 3)),
        "shipping": {
            "city": random.choice(_WORDS),
            "zip": f"{random.randrange(10**5):05d}",
            "lines": [random.randrange(100), random.choice(_WORDS)],
        },
    }


def initial(count: int = ITEMS) -> Iterator[Plain]:
    """The items before the first change."""
    source = random.Random(1)
    return (item(n, source) for n in range(count))


def changes(count: int, items: int = ITEMS) -> Iterator[tuple[str, Plain]]:
    """("put", item) or ("delete", key), with uniformly distributed keys."""
    source = random.Random(2)
    alive, following = list(range(items)), items
    for _ in range(count):
        kind = source.random()
        if kind < INSERTS or not alive:
            alive.append(following)
            yield "put", item(following, source)
            following += 1
            continue
        at = source.randrange(len(alive))
        if kind < INSERTS + UPDATES:
            yield "put", item(alive[at], source)
        else:
            alive[at], alive[-1] = alive[-1], alive[at]
            yield "delete", key(alive.pop())


def hook(given: Item) -> Amended:
    """A simple hook: lowercases a string, computes a sum, keeps the rest."""
    return given | {"status": given["status"].lower(), "tax": given["total"] * Decimal("0.2")}


def rebuilding_hook(given: Item) -> dict[str, object]:
    """The same, but builds a dictionary of all attributes."""
    return {**given, "status": given["status"].lower(), "tax": given["total"] * Decimal("0.2")}


def row(found: Mapping[str, Any]) -> tuple[Any, ...]:
    """The row of an item (or of the hook's document) as psycopg reads it, without its version."""
    values = {name: _plain(found[name]) for name in (*KEYS, *COLUMNS)}
    values["created_at"] = datetime.fromisoformat(values["created_at"])
    return tuple(values.values())


def document(found: Mapping[str, Any]) -> tuple[Any, ...]:
    """The row of an item in a table of whole documents."""
    return (*(found[name] for name in KEYS), {name: _plain(v) for name, v in found.items()})


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(v) for name, v in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(value)
    return [_plain(v) for v in value] if isinstance(value, list) else value
