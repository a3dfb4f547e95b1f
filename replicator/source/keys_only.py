"""Looks up the items behind the records of a KEYS_ONLY stream.

A looked-up image may be newer than its record, whose version it gets. Then the newer image's own record is still to
come, with a higher version, and is looked up again: the target converges to the newest image. This only works for hooks
that store one document under the item's key. Hooks that choose ids need the images in between.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence, Set
from typing import Any, TypeVar

import msgspec

from replicator.aws.batch_get import of_table
from replicator.aws.client import Call
from replicator.aws.errors import AwsError, decoded, failure
from replicator.change import Record
from replicator.errors import TransientError
from replicator.key import Key
from replicator.source.decoding import KeyReader
from replicator.source.stream import Stream
from replicator.source.table import check_same

T = TypeVar("T")
MAX_KEYS = 100  # per BatchGetItem request
FIRST_KEYS = 10  # in a reader's first look-up, when the size of images is unknown: 4 MB at most
PAGE_BYTES = 1 << 20  # target size of the images of one look-up
_UNREAD = "all of its stream, which has keys only, was read: items can no longer be looked up"
_FULL = (1 << 20) - (400 << 10)  # bytes; a response this large may have been cut off at 1 MB: one more item did not fit


class _Unprocessed(msgspec.Struct):
    Keys: list[msgspec.Raw] | None = None


class _Responses(msgspec.Struct):
    """``Responses`` is required: otherwise any JSON object would say that no item exists."""

    Responses: dict[str, list[msgspec.Raw] | None]
    UnprocessedKeys: dict[str, _Unprocessed | None] | None = None

    def images(self, table: str) -> list[msgspec.Raw]:
        return of_table(self.Responses, table) or []

    def unprocessed(self, table: str) -> list[msgspec.Raw]:
        left = of_table(self.UnprocessedKeys, table)
        return [] if left is None else left.Keys or []


def portion(records: Sequence[Record], removed: Set[int], most: int) -> int:
    """How many of the first records can be looked up with at most ``most`` keys."""
    keys: set[Key] = set()
    for i, record in enumerate(records):
        if i not in removed:
            keys.add(record.key)
            if len(keys) > most:
                return i
    return len(records)


def weight(records: Sequence[Record]) -> int:
    """The size of the records' keys and images in bytes."""
    return sum(sum(map(len, r.key)) + (0 if r.new is None else len(r.new)) for r in records)


def keys_for(records: Sequence[Record], before: int) -> int:
    """How many keys the next look-up requests: about ``PAGE_BYTES`` of images like those in ``records``."""
    images = [len(r.new) for r in records if r.new is not None]
    return min(MAX_KEYS, max(1, PAGE_BYTES * len(images) // sum(images))) if images else before


def looked_up(
    stream: Stream, records: Sequence[Record], removed: Set[int], report: Callable[[str, bool], T]
) -> Generator[Call | T, Any, Sequence[Record]]:
    """Returns the records with the current images of their items.

    Only the last record of each key is looked up, and no removals (``removed`` holds their indices). A record whose
    item no longer exists counts as expired: its removal is still to come and will tell. Where expirations are ignored,
    the record must not remove the document; the removal itself will, unless it is an expiration.

    At the end it checks that the items are of the stream's table: another one may have got its name.

    Between two calls it yields ``report(waiting_for, progress)``: why the next call must wait ("" if it need not), and
    whether the last one returned any key. A response that leaves out keys because it is full (16 MB in all, or 1 MB of
    one partition) is no reason to wait. After the last call it yields nothing: a waiting reader must not hold images,
    because they are not counted against the memory limit.
    """
    last = {r.key: i for i, r in enumerate(records)}
    images = yield from _images(stream, [key for key, i in last.items() if i not in removed], report)
    return [
        r if i in removed else _with_image(r, images.get(r.key), last=last[r.key] == i) for i, r in enumerate(records)
    ]


def _images(
    stream: Stream, keys: Sequence[Key], report: Callable[[str, bool], T]
) -> Generator[Call | T, Any, Mapping[Key, msgspec.Raw]]:
    """The current images of the items that exist."""
    images: dict[Key, msgspec.Raw] = {}
    reader, wanted = KeyReader(stream.keys), list(keys)
    while wanted:
        try:
            response = yield from _batch_get(stream, wanted[:MAX_KEYS])
            returned = response.images(stream.table)
            images.update(reader.keyed(returned, "BatchGetItem"))
            again = [key for key, _ in reader.keyed(response.unprocessed(stream.table), "BatchGetItem")]
        except TransientError as e:
            yield report(str(e), False)
            continue
        progress = len(again) < len(wanted[:MAX_KEYS])
        wanted = again + wanted[MAX_KEYS:]
        full = sum(len(image) for image in returned) >= _FULL
        if wanted:
            yield report("BatchGetItem is throttled" if again and not full else "", progress)
            continue
        try:
            yield from _check_table(stream, answers=True)
        except TransientError as e:
            images.clear()  # not held while the reader waits
            wanted = list(keys)
            yield report(str(e), False)
    return images


def _check_table(stream: Stream, *, answers: bool = False) -> Generator[Call, bytes, None]:
    if stream.identity:
        yield from check_same(stream.table, stream.identity, _UNREAD, answers=answers)


def _with_image(record: Record, image: msgspec.Raw | None, *, last: bool) -> Record:
    """A record, not a removal, after its item was looked up."""
    if image is None:
        return msgspec.structs.replace(record, expired=True)  # possibly: the removal that follows will tell
    return msgspec.structs.replace(record, new=image) if last else record


def _batch_get(stream: Stream, keys: Sequence[Key]) -> Generator[Call, bytes, _Responses]:
    wanted = {"Keys": [stream.keys.typed(k) for k in keys], "ConsistentRead": True}
    try:
        body = yield Call("BatchGetItem", {"RequestItems": {stream.table: wanted}})
    except AwsError as e:
        if e.code != "ResourceNotFoundException" or not stream.identity:
            raise failure(e, "BatchGetItem", stream.table) from e
        yield from _check_table(stream)
        raise TransientError(f"BatchGetItem on {stream.table}: {e}") from e  # it is being created, or restored
    return decoded(body, _Responses, "BatchGetItem")
