"""Which documents DynamoDB would refuse, as far as that can be told without asking it: keys and sizes."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import orjson

from connectors.dynamodb.encode import LARGEST_KEYS, Encoder, encode
from connectors.dynamodb.layout import Layout
from replicator.batch import Batch, Part, Rejection, Upsert, Write
from replicator.items.attributes import Typed
from replicator.key import KeySchema

_LARGEST = 400 * 1024  # bytes of an item, names included


def refusals(writes: Sequence[Write], layouts: Mapping[str, Layout]) -> Iterator[Rejection]:
    for write in writes:
        encoded = encode(Batch([Part("", [write])]), layouts)
        if encoded.rejections:
            yield from encoded.rejections
        elif isinstance(write, Upsert) and (reason := _reason(write, layouts[write.table])) is not None:
            yield Rejection(write, reason)


def _reason(write: Upsert, layout: Layout) -> str | None:
    item = orjson.loads(Encoder(layout).entry(write, "").body + b"}")["Item"]
    for reason in _keys(item, layout.keys):
        return reason
    size = sum(len(name.encode()) + _size(attribute) for name, attribute in item.items())
    return f"the item has {size:,} bytes, and DynamoDB stores at most {_LARGEST:,}" if size > _LARGEST else None


def _keys(item: Mapping[str, Typed], keys: KeySchema) -> Iterator[str]:
    for key, most in zip(keys.attributes, LARGEST_KEYS, strict=False):
        size = _size(item[key.name])
        if size == 0:
            yield f"the key attribute {key.name} is empty, which DynamoDB does not store"
        elif size > most:
            yield f"the key attribute {key.name} has {size:,} bytes, and DynamoDB takes at most {most:,}"


def _size(attribute: Typed) -> int:
    """Bytes that count against an item, by DynamoDB's documentation; of numbers about that many."""
    ((kind, inner),) = attribute.items()
    match kind:
        case "S":
            return len(inner.encode())
        case "B":
            return len(base64.b64decode(inner))
        case "N":
            return _number(inner)
        case "M":
            return 3 + sum(1 + len(name.encode()) + _size(value) for name, value in inner.items())
        case "L":
            return 3 + sum(1 + _size(value) for value in inner)
        case "SS" | "NS" | "BS":
            return sum(_size({kind[0]: member}) for member in inner)
    return 1


def _number(digits: Any) -> int:
    significant = str(digits).lower().partition("e")[0].lstrip("-+").replace(".", "").strip("0")
    return 1 + (len(significant) + 1) // 2
