"""Messages to a receiver: a batch of change events, or a note about an epoch. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import orjson

from replicator.batch import Batch, Delete, Part, Rejection, Upsert, Write
from replicator.items.to_json import DocumentText, Unfit
from replicator.target.contract import Table

SNAPSHOT, CHANGE = b"snapshot", b"change"
FRAME = 300  # bytes of a message without its events, at most
_SEGMENT = "segment:"  # the beginning of a part's source, if a scan read it


@dataclass(frozen=True, slots=True)
class Event:
    """A write as JSON. ``source``: the part of the batch it belongs to."""

    write: Write
    source: str
    text: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Message:
    """A request body and its id, under which it is also sent again. ``events``: those in it."""

    id: str
    body: bytes = field(repr=False)
    events: Sequence[Event] = ()


@dataclass(frozen=True, slots=True)
class Frame:
    """What a batch's messages have in common. ``tombstones``: the receiver must remember deletes."""

    pipeline: str
    timestamp: str
    tombstones: bool = False
    replaces_same: bool = False

    def message(self, id: str, events: Sequence[Event]) -> Message:
        head = {"type": "replicator.changes", "timestamp": self.timestamp}
        data = {"pipeline": self.pipeline, "tombstones": self.tombstones, "replaces_same": self.replaces_same}
        begin = orjson.dumps(head)[:-1] + b',"data":' + orjson.dumps(data)[:-1] + b',"events":['
        return Message(id, begin + b",".join(event.text for event in events) + b"]}}", events)


def timestamp(now: float) -> str:
    """A time as Standard Webhooks has it: ISO 8601 in UTC."""
    return datetime.fromtimestamp(now, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def text_of(version: int) -> str:
    """A version as text that compares as the version does: many receivers have no integers above 2 to the 53rd."""
    return f"{version:019}"


def note(id: str, kind: str, now: float, data: Mapping[str, Any]) -> Message:
    """A message about an epoch. ``kind``: what follows ``replicator.`` in its type."""
    body = {"type": f"replicator.{kind}", "timestamp": timestamp(now), "data": data}
    return Message(id, json.dumps(body, separators=(",", ":")).encode())  # ids may have halves of surrogate pairs


class Encoder:
    """Encodes the writes of some tables as events."""

    def __init__(self, tables: Sequence[Table], largest: int) -> None:
        self._tables = {table.name: _TableEncoder(table) for table in tables}
        self._largest = largest

    def encode(self, batch: Batch) -> tuple[list[Event], list[Rejection]]:
        """The batch's events, and the writes that cannot be one."""
        events: list[Event] = []
        rejections: list[Rejection] = []
        for part in batch.parts:
            for write, text in self._texts(part):
                if isinstance(text, bytes):
                    events.append(Event(write, part.source, text))
                else:
                    rejections.append(Rejection(write, text))
        return events, rejections

    def _texts(self, part: Part) -> Iterator[tuple[Write, bytes | str]]:
        """Each write with its event, or with the reason why there is none."""
        kind = SNAPSHOT if part.source.startswith(_SEGMENT) else CHANGE
        for write in part.writes:
            try:
                text = self._tables[write.table].event(write, kind)
            except Unfit as e:
                yield write, f"the document {e}"
                continue
            if len(text) > self._largest - FRAME:
                yield write, f"the event has {len(text):,} bytes, more than a request may have (target.max_bytes)"
            else:
                yield write, text


class _TableEncoder:
    def __init__(self, table: Table) -> None:
        self._document = DocumentText()
        self._name = orjson.dumps(table.name)
        self._keys = [(orjson.dumps(a.name) + b":", a.kind == "N") for a in table.keys.attributes]

    def event(self, write: Write, kind: bytes) -> bytes:
        """Unfit if the document has no JSON."""
        id = [_text(part, write) for part in write.id]
        key = [
            name + (part.encode() if number else text)
            for (name, number), part, text in zip(self._keys, write.id, id, strict=True)
        ]
        begin = b'{"operation":"%b","kind":"%b","table":%b,"id":[%b],"key":{%b},"version":"%b"' % (
            b"upsert" if isinstance(write, Upsert) else b"delete",
            kind,
            self._name,
            b",".join(id),
            b",".join(key),
            text_of(write.version).encode(),
        )
        if isinstance(write, Delete):
            return begin + (
                b"}" if write.created is None else b',"deleted_at":"%b"}' % timestamp(write.created).encode()
            )
        return begin + b',"document":' + self._document(write.body) + b"}"


def _text(part: str, write: Write) -> bytes:
    """A part of an id as JSON."""
    try:
        return orjson.dumps(part)
    except TypeError as e:  # half of a surrogate pair, in an id from a hook
        if isinstance(write, Upsert):
            raise Unfit("has an id with half of a surrogate pair") from e
        return json.dumps(part).encode()


def chunked(events: Sequence[Event], most: int, largest: int) -> Iterator[Sequence[Event]]:
    """The events in order, in pieces of at most ``most`` events and ``largest`` bytes, but of one event at least."""
    start = size = 0
    for at, event in enumerate(events):
        size += len(event.text) + 1
        if at > start and (at - start >= most or size > largest - FRAME):
            yield events[start:at]
            start, size = at, len(event.text) + 1
    if start < len(events):
        yield events[start:]


def halves(events: Sequence[Event]) -> tuple[Sequence[Event], Sequence[Event]]:
    middle = len(events) // 2
    return events[:middle], events[middle:]
