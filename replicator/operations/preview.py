"""Dry-runs the transform hook on an item: the writes that would result, or why the item would be parked."""

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

_DEEPEST = 100  # levels shown
_SCANNED = version(FIRST_EPOCH, 0)  # any version: it is not shown


@dataclass(frozen=True, slots=True)
class Preview:
    """An item (``before``) and the writes it would lead to.

    ``problem``: why it would be parked instead; ``refused``: the writes that the target would reject.
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
"""Which of some writes a target would reject, known before sending them."""


def forecast(target: object, tables: Sequence[Table]) -> Refusals:
    """The ``Refusals`` of ``target``; none if it cannot tell in advance."""
    if not isinstance(target, Forecasting):
        return lambda _: ()
    return partial(target.refusals, tables)


def preview(key: Key, image: bytes, mapping: DocumentMapping, refusals: Refusals = lambda _: ()) -> Preview:
    """What a scan of this item would store. One rejected document parks the whole item."""
    result = _transformed(key, image, mapping)
    rejections = refusals(result.writes)
    if not rejections:
        return result
    return replace(result, writes=(), problem=rejections[0].reason, refused=[r.write for r in rejections])


def _transformed(key: Key, image: bytes, mapping: DocumentMapping) -> Preview:
    change = Change(key, _SCANNED, new=image)
    try:
        if mapping.own_ids:
            return Preview(key, Item(image), run_writes([change], mapping))
    except (Poison, Malformed) as e:
        return Preview(key, Item(image), problem=_problem(str(e), getattr(e, "trace", NO_TRACE).words))
    at = BatchContext(refused={}, parked=ParkedItems(), epoch=FIRST_EPOCH, source="preview", now=0.0)
    batch = compact_latest([(change, change.version, 1)], mapping, at)
    if batch.part("preview").counts == Counts(read=1, parked=1):
        return Preview(key, Item(image), problem=_parked_reason(batch.saves[0].text))
    return Preview(key, Item(image), batch.writes)


def _parked_reason(entry: str | None) -> str:
    parked = orjson.loads(entry or "{}")
    return _problem(parked.get("reason", ""), parked.get("words", ""))


def _problem(reason: str, words: str) -> str:
    """The reason with the exception's message: a preview shows item data, so it may show that too."""
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

    Values that are nested too deeply or raise when read are replaced by a description; ``problem`` reports them.
    """
    if depth > _DEEPEST:
        return "<nested too deeply>"
    try:
        return _json_value(value, depth + 1)
    except BaseException as e:
        unreadable(e)  # re-raises KeyboardInterrupt
        return f"<{type(value).__name__} whose code raised {type(e).__name__}>"


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
