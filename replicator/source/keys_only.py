"""Looks up the items behind the records of a KEYS_ONLY stream.

A looked-up image may be newer than its record, and the version stays the record's. Then the record of that newer image
is still to come, with a higher version, and is looked up again: the target ends with the newest image. That holds for
hooks that file one document under the item's key, and for no other kind: those need the images in between.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence, Set
from typing import Any, TypeVar

import msgspec

from replicator.aws.client import Call
from replicator.aws.errors import AwsError, decoded, failure
from replicator.change import Record
from replicator.errors import TransientError
from replicator.key import Key
from replicator.source.decoding import KeyReader
from replicator.source.stream import Stream

T = TypeVar("T")
AT_ONCE = 100  # keys that one BatchGetItem may ask for
FIRST = 10  # keys of a reader's first look-up, which does not know yet how large images are: 4 MB at most
PAGE_BYTES = 1 << 20  # about the weight of the images of one look-up
_CUT = (1 << 20) - (400 << 10)  # bytes from which on an answer may be as large as DynamoDB lets it be


class _Unprocessed(msgspec.Struct):
    Keys: list[msgspec.Raw] | None = None


class _Responses(msgspec.Struct):
    """Responses must be there: without it anything in JSON would say that no item exists."""

    Responses: dict[str, list[msgspec.Raw] | None]
    UnprocessedKeys: dict[str, _Unprocessed | None] | None = None

    def found(self, table: str) -> list[msgspec.Raw]:
        return self.Responses.get(table) or []

    def unprocessed(self, table: str) -> list[msgspec.Raw]:
        left = (self.UnprocessedKeys or {}).get(table)
        return [] if left is None else left.Keys or []


def portion(records: Sequence[Record], removed: Set[int], most: int) -> int:
    """How many of the records, from the first on, can be looked up with ``most`` keys."""
    keys: set[Key] = set()
    for i, record in enumerate(records):
        if i not in removed:
            keys.add(record.key)
            if len(keys) > most:
                return i
    return len(records)


def weight(records: Sequence[Record]) -> int:
    """Bytes of their keys and images."""
    return sum(sum(map(len, r.key)) + (0 if r.new is None else len(r.new)) for r in records)


def keys_for(records: Sequence[Record], before: int) -> int:
    """How many keys the next look-up asks for: as many as images like those of these ``records`` make a page."""
    images = [len(r.new) for r in records if r.new is not None]
    return min(AT_ONCE, max(1, PAGE_BYTES * len(images) // sum(images))) if images else before


def looked_up(
    stream: Stream, records: Sequence[Record], removed: Set[int], said: Callable[[str, bool], T]
) -> Generator[Call | T, Any, Sequence[Record]]:
    """The records with the images of their items as they are now.

    Where a removal is still to come, a record counts as expired: where expiries are ignored, it must remove nothing,
    and the removal itself does if it is none. Only the last record of each key is looked up, and none that is a removal
    (``removed`` holds their indices). Between two calls it yields what ``said`` makes of why the next one has to wait
    ("" if it need not), and of whether any key was answered. An answer that leaves keys out because it is full (16 MB
    in all, or 1 MB of one partition, and one more item did not fit) is no reason to wait. After the last call it
    yields nothing: a reader that rests must hold no images, because they are not counted.
    """
    last = {r.key: i for i, r in enumerate(records)}
    wanted = [key for key, i in last.items() if i not in removed]
    images: dict[Key, msgspec.Raw] = {}
    reader = KeyReader(stream.keys)
    while wanted:
        try:
            answer = yield from _batch_get(stream, wanted[:AT_ONCE])
            found = answer.found(stream.table)
            images.update(reader.keyed(found, "BatchGetItem"))
            again = [key for key, _ in reader.keyed(answer.unprocessed(stream.table), "BatchGetItem")]
        except TransientError as e:
            yield said(str(e), False)
            continue
        progress = len(again) < len(wanted[:AT_ONCE])
        wanted = again + wanted[AT_ONCE:]
        full = sum(len(image) for image in found) >= _CUT
        if wanted:
            yield said("BatchGetItem is throttled" if again and not full else "", progress)
    return [r if i in removed else _seen(r, images.get(r.key), last=last[r.key] == i) for i, r in enumerate(records)]


def _seen(record: Record, image: msgspec.Raw | None, *, last: bool) -> Record:
    """A record that is no removal, once its item was looked up."""
    if image is None:
        return msgspec.structs.replace(record, expired=True)  # perhaps: the removal that is to come says so
    return msgspec.structs.replace(record, new=image) if last else record


def _batch_get(stream: Stream, keys: Sequence[Key]) -> Generator[Call, bytes, _Responses]:
    wanted = {"Keys": [stream.keys.typed(k) for k in keys], "ConsistentRead": True}
    try:
        body = yield Call("BatchGetItem", {"RequestItems": {stream.table: wanted}})
    except AwsError as e:
        raise failure(e, "BatchGetItem", stream.table) from e
    return decoded(body, _Responses, "BatchGetItem")
