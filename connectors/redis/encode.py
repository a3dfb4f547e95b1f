"""A batch as arguments of the script that stores it: everything that can be done before anything is sent. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

import msgspec
import orjson

from connectors.redis.layout import Layout, guard_of
from replicator.batch import Batch, Delete, Rejection, Upsert, Write
from replicator.items.attributes import Malformed
from replicator.items.to_json import DocumentText, Unfit, unreadable

_raws = msgspec.json.Decoder(dict[str, msgspec.Raw])
_IN_USE = 5 * 365 * 86400  # seconds: times of expiry further in the past are no such times, by DynamoDB's rule too
_LAST_TIME = 1 << 40  # seconds since 1970; Redis counts milliseconds in 64 bits


class Entry(msgspec.Struct, frozen=True, gc=False):
    """A write as the ``keys`` and ``arguments`` of the script. ``plain``: not None for a delete."""

    write: Write
    source: str
    keys: tuple[bytes, bytes]
    arguments: tuple[bytes, ...]
    plain: bytes | None = None

    @property
    def size(self) -> int:
        return sum(map(len, self.keys)) + sum(map(len, self.arguments))


@dataclass(frozen=True, slots=True)
class Encoded:
    """A batch as entries. With ``rejections`` there is nothing to send."""

    batch: Batch
    entries: Sequence[Entry]
    rejections: Sequence[Rejection] = ()


class Encoder:
    """Encodes the documents of one table."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self._text = DocumentText()

    def entry(self, write: Write, source: str, now: float) -> Entry | None:
        """None for the delete of an id that no key can have. Unfit for a document that cannot be stored."""
        try:
            key = self.layout.key(write.id)
        except UnicodeEncodeError:
            if isinstance(write, Delete):
                return None
            raise Unfit("has an id that contains half of a surrogate pair, which is not valid text") from None
        version = b"%d" % write.version
        if isinstance(write, Delete):
            return Entry(write, source, (key, guard_of(key)), (version, b"delete", b"", b"0"), b"")
        values = self.values(write)
        what = b"hash" if self.layout.hashes else b"json"
        arguments = (version, what, self.expires(write, now), b"%d" % len(values), *values)
        return Entry(write, source, (key, guard_of(key)), arguments)

    def text(self, write: Upsert) -> bytes:
        return self._text(write.body)

    def values(self, write: Upsert) -> list[bytes]:
        """The document as it is stored: its JSON, or the names and values of its fields."""
        text = self.text(write)
        if not self.layout.hashes:
            return [text]
        fields = fields_of(text)
        if not fields:
            raise Unfit("has no fields, and Redis keeps no empty hashes; use store: json")
        return [part for field in fields.items() for part in field]

    def expires(self, write: Upsert, now: float) -> bytes:
        """The time at which the document expires; empty if it does not."""
        if not self.layout.expires:
            return b""
        try:
            time = write.body.get(self.layout.expires)
        except Malformed:
            raise
        except Exception as e:
            raise unreadable(e) from e
        if isinstance(time, bool) or not isinstance(time, int | float | Decimal):
            return b""
        if not max(0, now - _IN_USE) < time < _LAST_TIME:  # also of NaN
            return b""
        return b"%d" % int(time)


def encode(batch: Batch, encoders: Mapping[str, Encoder], now: float) -> Encoded:
    """Every write as an entry."""
    entries: list[Entry] = []
    rejections: list[Rejection] = []
    for part in batch.parts:
        for write in part.writes:
            try:
                if (entry := encoders[write.table].entry(write, part.source, now)) is not None:
                    entries.append(entry)
            except Unfit as e:
                rejections.append(Rejection(write, f"the document {e}"))
            except Malformed:
                rejections.append(Rejection(write, "the item is not valid DynamoDB JSON"))
    return Encoded(batch, () if rejections else entries, rejections)


def fields_of(text: bytes) -> dict[bytes, bytes]:
    """The fields of a hash: text as it is, everything else as JSON."""
    return {name.encode(): _field(bytes(raw)) for name, raw in _raws.decode(text).items()}


def _field(raw: bytes) -> bytes:
    if not raw.startswith(b'"'):
        return raw
    text: str = orjson.loads(raw)
    return text.encode()


def grouped(entries: Sequence[Entry], most: int, most_bytes: int) -> Iterator[Sequence[Entry]]:
    """Groups of entries, each for one call of the script, within both limits; a larger entry gets its own."""
    group: list[Entry] = []
    size = 0
    for entry in entries:
        if group and (len(group) >= most or size + entry.size > most_bytes):
            yield group
            group, size = [], 0
        group.append(entry)
        size += entry.size
    if group:
        yield group
