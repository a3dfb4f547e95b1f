"""Looks up the items behind the records of a KEYS_ONLY stream.

A looked-up image may be newer than its record, and the version stays the record's. Then the record of that newer image
is still to come, with a higher version, and is looked up again: the target ends with the newest image. That holds for
hooks that file one document under the item's key, and for no other kind: those need the images in between.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence, Set
from typing import Any, TypeVar

import msgspec

from replicator.change import Key, Record
from replicator.errors import TransientError
from replicator.source import KeyReader
from replicator.stream import Stream
from replicator.wire import Call, WireError, decoded, failure

T = TypeVar("T")
_AT_ONCE = 100  # keys that one BatchGetItem may ask for


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


def looked_up(
    stream: Stream, records: Sequence[Record], removed: Set[int], said: Callable[[str], T]
) -> Generator[Call | T, Any, Sequence[Record]]:
    """The records with the images of their items as they are now.

    Where a removal is still to come, a record counts as expired: where expiries are ignored, it must remove nothing,
    and the removal itself does if it is none. Only the last record of each key is looked up, and none that is a removal
    (``removed`` holds their indices). After each call it yields what ``said`` makes of why the call has to be repeated,
    or of "" if it went well.
    """
    last = {r.key: i for i, r in enumerate(records)}
    wanted = [key for key, i in last.items() if i not in removed]
    images: dict[Key, msgspec.Raw] = {}
    reader = KeyReader(stream.keys)
    while wanted:
        try:
            answer = yield from _batch_get(stream, wanted[:_AT_ONCE])
            images.update(reader.keyed(answer.found(stream.table), "BatchGetItem"))
            again = [key for key, _ in reader.keyed(answer.unprocessed(stream.table), "BatchGetItem")]
        except TransientError as e:
            yield said(str(e))
            continue
        wanted = again + wanted[_AT_ONCE:]
        yield said("BatchGetItem is throttled" if again else "")
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
    except WireError as e:
        raise failure(e, "BatchGetItem", stream.table) from e
    return decoded(body, _Responses, "BatchGetItem")
