"""Layout of checkpoints in a DynamoDB table. The pipeline's name is the partition key.

entry (sort key)     item
h                    Head: the owner, and the number of the last save
e#KIND#ID            an entry; p#ID for parked ones
c#SOURCE             the counts of a source
b#TOKEN#NUMBER       a piece of a blob: a text too large for one item, or the journal of a large save
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
from msgspec import structs

from replicator.checkpoints.checksums import seal
from replicator.checkpoints.compare_and_set import Row
from replicator.state import FORGOTTEN, Counts, DamagedCheckpoint, Save, forgotten

Item = dict[str, dict[str, str]]
Place = tuple[str, str]

FORMAT = 1
HEAD = "h"
INLINE = 200_000  # bytes; larger texts are stored as blobs
_COUNTS = ("read", "applied", "stale", "dropped", "parked")  # attributes, in the order of the fields of Counts


class Blob(msgspec.Struct, frozen=True):
    """A large text, stored in ``pieces`` items under ``token``."""

    token: str
    pieces: int

    @property
    def keys(self) -> list[str]:
        return [f"b#{self.token}#{n:06}" for n in range(self.pieces)]


_decode_blob = msgspec.json.Decoder(Blob).decode


@dataclass(frozen=True, slots=True)
class Head:
    """The item that serializes saves: each one requires that ``commit`` is still the number that it started from.

    ``claim``: number of runs so far. ``last``: name of the current run's last save. ``journal``: a large save that is
    committed, but whose items are not all written yet; any process that finds it completes it.
    """

    owner: str = ""
    claim: int = 0
    commit: int = 0
    last: str = "-"
    journal: Blob | None = None
    format: int = FORMAT


@dataclass(frozen=True, slots=True)
class Stored:
    """An entry without its text. ``sum``: the text's checksum. ``blob``: set for large texts."""

    revision: int
    sum: str
    blob: Blob | None = None


@dataclass(slots=True)
class Known:
    """The state that a save builds on: the head, and at least the entries and counts that it touches."""

    head: Head
    entries: dict[Place, Stored] = field(default_factory=dict)
    counts: dict[str, Counts] = field(default_factory=dict)

    def rows(self) -> Mapping[Place, Row]:
        return {place: Row(stored.revision, stored.sum) for place, stored in self.entries.items()}


class Action(msgspec.Struct, frozen=True):
    """Put ``item`` under ``key``, or delete the item (None)."""

    key: str
    item: Item | None
    revision: int | None = None  # the expected revision; 0: must not exist, None: unconditional


def entry_key(kind: str, id: str) -> str:
    return f"p#{id}" if kind == "parked" else f"e#{kind}#{id}"


def place_of(key: str) -> Place:
    if key.startswith("p#"):
        return "parked", key[2:]
    _, kind, id = key.split("#", 2)
    return kind, id


def text_sum(text: str) -> str:
    return seal(text).hex()


def entry_item(revision: int, text: str, blob: Blob | None) -> Item:
    where = {"text": {"S": text}} if blob is None else {"blob": {"S": msgspec.json.encode(blob).decode()}}
    return {"revision": {"N": str(revision)}, "sum": {"S": text_sum(text)}, **where}


def counts_item(counts: Counts) -> Item:
    return {name: {"N": str(n)} for name, n in zip(_COUNTS, structs.astuple(counts), strict=True)}


def head_item(head: Head) -> Item:
    numbers = {name: {"N": str(getattr(head, name))} for name in ("claim", "commit", "format")}
    journal = {} if head.journal is None else {"journal": {"S": msgspec.json.encode(head.journal).decode()}}
    return {"owner": {"S": head.owner}, "last": {"S": head.last}, **numbers, **journal}


def stored_of(item: Mapping[str, Any]) -> Stored:
    return Stored(int(item["revision"]["N"]), item["sum"]["S"], _blob(item.get("blob")))


def counts_of(item: Mapping[str, Any]) -> Counts:
    return Counts(*(int(item[name]["N"]) for name in _COUNTS))


def head_of(item: Mapping[str, Any], place: str) -> Head:
    format = int(item["format"]["N"])
    if format > FORMAT:
        raise DamagedCheckpoint(
            f"the checkpoints in {place} have format {format}, but this replicator reads up to {FORMAT}: "
            "use a newer one"
        )
    numbers = {name: int(item[name]["N"]) for name in ("claim", "commit", "format")}
    return Head(owner=item["owner"]["S"], last=item["last"]["S"], journal=_blob(item.get("journal")), **numbers)


def _blob(attribute: Mapping[str, str] | None) -> Blob | None:
    return None if attribute is None else _decode_blob(attribute["S"])


def actions(
    known: Known, saves: Sequence[Save], counts: Mapping[str, Counts], blobs: Mapping[Place, Blob]
) -> list[Action]:
    """The item changes of a save. They contain absolute values, so that they are idempotent."""
    changes = []
    for save in saves:
        place = (save.kind, save.id)
        before = known.entries[place].revision if place in known.entries else 0
        item = None if save.text is None else entry_item(before + 1, save.text, blobs.get(place))
        if item is not None or before:
            changes.append(Action(entry_key(*place), item, before))
    return changes + [
        Action(f"c#{source}", None if total is None else counts_item(total))
        for source, total in _totals(known, saves, counts).items()
    ]


def _totals(known: Known, saves: Sequence[Save], counts: Mapping[str, Counts]) -> dict[str, Counts | None]:
    """The new counts of the sources that a save changes; None to delete those of removed shards."""
    totals = {source: known.counts.get(source, Counts()) + more for source, more in counts.items()}
    gone = [source for source in forgotten(saves) if source in totals or source in known.counts]
    if not gone:
        return {**totals}
    folded = [totals.pop(source, known.counts.get(source, Counts())) for source in gone]
    totals[FORGOTTEN] = sum(folded, totals.get(FORGOTTEN, known.counts.get(FORGOTTEN, Counts())))
    return {**totals, **dict.fromkeys(gone)}


def after(known: Known, head: Head, done: Sequence[Action]) -> Known:
    """``known`` after a save."""
    entries, counts = known.entries, known.counts
    for action in done:
        if action.key.startswith("c#"):
            counts.pop(action.key[2:], None)
            if action.item is not None:
                counts[action.key[2:]] = counts_of(action.item)
        elif action.item is None:
            entries.pop(place_of(action.key), None)
        else:
            entries[place_of(action.key)] = stored_of(action.item)
    return Known(head, entries, counts)


def committed(head: Head, token: str, journal: Blob | None) -> Head:
    return replace(head, commit=head.commit + 1, last=token, journal=journal)
