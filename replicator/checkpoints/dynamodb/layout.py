"""How checkpoints lie in a DynamoDB table: one item an entry, one a source's counts, one head, all under the pipeline.

entry (sort key)     what
h                    Head: who owns the pipeline, and the number of its last save
e#KIND#ID            an entry; p#ID if it is parked
c#SOURCE             a source's counts
b#TOKEN#NUMBER       a piece of what is too large for one item: a text, or the journal of a large save
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
INLINE = 200_000  # bytes of text that stay in the entry's own item
_COUNTS = ("read", "applied", "stale", "dropped", "parked")  # attributes, in the order of the fields of Counts


class Blob(msgspec.Struct, frozen=True):
    """Where a large text is: in so many pieces under one token."""

    token: str
    pieces: int

    @property
    def keys(self) -> list[str]:
        return [f"b#{self.token}#{n:06}" for n in range(self.pieces)]


@dataclass(frozen=True, slots=True)
class Head:
    """What every save goes past: it happens only if ``commit`` still is the number that the save began with.

    ``claim`` counts the runs, ``last`` names the last save of the present one. ``journal``: a large save that counts,
    and whose items are still to be written by whoever comes.
    """

    owner: str = ""
    claim: int = 0
    commit: int = 0
    last: str = "-"
    journal: Blob | None = None
    format: int = FORMAT


@dataclass(frozen=True, slots=True)
class Stored:
    """An entry without its text. ``sum`` is the text's checksum; ``blob`` where a large one is."""

    revision: int
    sum: str
    blob: Blob | None = None


@dataclass(slots=True)
class Known:
    """What a save has to know: the head, and the entries and counts that it touches (or all of them)."""

    head: Head
    entries: dict[Place, Stored] = field(default_factory=dict)
    counts: dict[str, Counts] = field(default_factory=dict)

    def rows(self) -> Mapping[Place, Row]:
        return {place: Row(found.revision, found.sum) for place, found in self.entries.items()}


class Action(msgspec.Struct, frozen=True):
    """Put ``item`` under ``key``, or remove what is there (None)."""

    key: str
    item: Item | None
    revision: int | None = None  # that the entry has before; 0 for none, None for what has no revision


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
    found = int(item["format"]["N"])
    if found > FORMAT:
        raise DamagedCheckpoint(
            f"the checkpoints in {place} are of format {found}, this replicator reads up to {FORMAT}: use the newer one"
        )
    numbers = {name: int(item[name]["N"]) for name in ("claim", "commit", "format")}
    return Head(owner=item["owner"]["S"], last=item["last"]["S"], journal=_blob(item.get("journal")), **numbers)


def _blob(attribute: Mapping[str, str] | None) -> Blob | None:
    return None if attribute is None else msgspec.json.decode(attribute["S"], type=Blob)


def actions(
    known: Known, saves: Sequence[Save], counts: Mapping[str, Counts], blobs: Mapping[Place, Blob]
) -> list[Action]:
    """What a save changes, in absolute terms: doing it twice is doing it once."""
    found = []
    for save in saves:
        place = (save.kind, save.id)
        before = known.entries[place].revision if place in known.entries else 0
        item = None if save.text is None else entry_item(before + 1, save.text, blobs.get(place))
        if item is not None or before:
            found.append(Action(entry_key(*place), item, before))
    return found + [
        Action(f"c#{source}", None if total is None else counts_item(total))
        for source, total in _totals(known, saves, counts).items()
    ]


def _totals(known: Known, saves: Sequence[Save], counts: Mapping[str, Counts]) -> dict[str, Counts | None]:
    """The counts that a save changes, as they are then; None for those of forgotten shards."""
    totals = {source: known.counts.get(source, Counts()) + more for source, more in counts.items()}
    gone = [source for source in forgotten(saves) if source in totals or source in known.counts]
    if not gone:
        return {**totals}
    folded = [totals.pop(source, known.counts.get(source, Counts())) for source in gone]
    totals[FORGOTTEN] = sum(folded, totals.get(FORGOTTEN, known.counts.get(FORGOTTEN, Counts())))
    return {**totals, **dict.fromkeys(gone)}


def after(known: Known, head: Head, done: Sequence[Action]) -> Known:
    """What is known once a save is made."""
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
