"""What a hook makes of an item, and which writes would follow: worked out, shown, and not done."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, time
from decimal import Decimal
from functools import partial
from typing import Any

import orjson

from replicator.batch import Rejection, Upsert, Write
from replicator.change import Change
from replicator.hooks.hook import NO_TRACE, DocumentMapping, Poison
from replicator.hooks.redaction import storable
from replicator.items.attributes import Malformed, number, plain
from replicator.items.item import Item
from replicator.items.to_json import unreadable
from replicator.key import Key
from replicator.pipeline.compaction import BatchContext, compact_latest, run_writes
from replicator.pipeline.parked import ParkedItems
from replicator.state import Counts
from replicator.target.contract import Forecasting, Table
from replicator.version import FIRST_EPOCH, version

_DEEPEST = 100  # levels that are shown
_SCANNED = version(FIRST_EPOCH, 0)  # the version is not shown; any will do


@dataclass(frozen=True, slots=True)
class Preview:
    """An item and what would become of it.

    ``problem``: why it would be parked instead; ``refused``: the writes that the target would not take.
    """

    key: Key
    before: Item
    writes: Sequence[Write] = ()
    problem: str | None = None
    refused: Sequence[Write] = ()

    def as_json(self) -> bytes:
        return orjson.dumps(
            {
                "key": self.key,
                "before": json_values(self.before),
                "writes": [_shown(w) for w in self.writes],
                "problem": self.problem,
                **({"refused": [_shown(w) for w in self.refused]} if self.refused else {}),
            }
        )


Refusals = Callable[[Sequence[Write]], Sequence[Rejection]]
"""What a target would refuse of some writes."""


def forecast(target: object, tables: Sequence[Table]) -> Refusals:
    """What ``target`` can tell of its refusals in advance; nothing if it cannot."""
    if not isinstance(target, Forecasting):
        return lambda _: ()
    return partial(target.refusals, tables)


def preview(key: Key, image: bytes, mapping: DocumentMapping, refusals: Refusals = lambda _: ()) -> Preview:
    """What a scan that met this item would store. One document that is refused parks its item."""
    found = _made(key, image, mapping)
    refused = refusals(found.writes)
    if not refused:
        return found
    return replace(found, writes=(), problem=refused[0].reason, refused=[r.write for r in refused])


def _made(key: Key, image: bytes, mapping: DocumentMapping) -> Preview:
    change = Change(key, _SCANNED, new=image)
    try:
        if mapping.own_ids:
            return Preview(key, Item(image), run_writes([change], mapping))
    except (Poison, Malformed) as e:
        return Preview(key, Item(image), problem=_problem(str(e), getattr(e, "trace", NO_TRACE).words))
    at = BatchContext(refused={}, parked=ParkedItems(), epoch=FIRST_EPOCH, source="preview", now=0.0)
    found = compact_latest([(change, change.version, 1)], mapping, at)
    if found.part("preview").counts == Counts(read=1, parked=1):
        return Preview(key, Item(image), problem=_parked_for(found.saves[0].text))
    return Preview(key, Item(image), found.writes)


def _parked_for(parked: str | None) -> str:
    found = orjson.loads(parked or "{}")
    return _problem(found.get("reason", ""), found.get("words", ""))


def _problem(reason: str, words: str) -> str:
    """A preview shows values, so also the words that may quote them."""
    *_, last = words.splitlines() or [""]
    return f"{reason} ({last})" if last and last.partition(": ")[2] not in reason else reason


def _shown(write: Write) -> dict[str, Any]:
    if isinstance(write, Upsert):
        return {"write": "upsert", "table": write.table, "id": write.id, "document": json_values(write.body)}
    return {"write": "delete", "table": write.table, "id": write.id}


def pretty(body: Mapping[str, object]) -> str:
    return orjson.dumps(json_values(body), option=orjson.OPT_INDENT_2).decode()


def json_values(value: object, depth: int = 0) -> Any:
    """A document, or a value in it, as plain JSON values: exact digits, base64, sorted sets.

    What is too deep, or raises while it is read, is shown as what it is: a preview says elsewhere that it is refused.
    """
    if depth > _DEEPEST:
        return "<nested too deeply>"
    try:
        return _json_value(value, depth + 1)
    except BaseException as e:
        unreadable(e)  # goes on with Ctrl-C
        return f"<{type(value).__name__} whose own code raised {type(e).__name__}>"


def _json_value(value: object, depth: int) -> Any:
    match value:
        case Item():
            return {name: plain(attribute) for name, attribute in value.typed.items()}
        case Mapping():
            return {storable(str(name)): json_values(inner, depth) for name, inner in value.items()}
        case set() | frozenset():
            return [json_values(inner, depth) for inner in sorted(value, key=str)]
        case list() | tuple():
            return [json_values(inner, depth) for inner in value]
    return _json_scalar(value)


def _json_scalar(value: object) -> Any:
    match value:
        case None | bool():
            return value
        case str():
            return storable(str(value))
        case float():
            return value if math.isfinite(value) else str(value).replace("nan", "NaN").replace("inf", "Infinity")
        case int() | Decimal():
            return number(str(value)) if isinstance(value, int) or value.is_finite() else str(value)
        case bytes() | bytearray() | memoryview():
            return base64.b64encode(bytes(value)).decode()
        case datetime() | date() | time():
            return value.isoformat()
    return f"<{type(value).__name__}>"
