"""Layout of checkpoints in a DynamoDB table. The pipeline's name is the partition key.

entry (sort key)     item
h                    Head: the owner, and the number of the last save
h#SLOT               Head of a slot, see below
e#KIND#ID            an entry; p#ID for parked ones
c#SOURCE             the counts of a source
b#TOKEN#NUMBER       a piece of a blob: a text too large for one item, or the journal of a large save

Each entry, and the counts of each source, have one head as their guard: that of their slot if the run has one for it
(``Head.slots``), otherwise ``h``. A change is conditional on its guard's number and moves it. So workers that change
what belongs to their slots have no item in common: they do not wait for one another. Who changes anything else moves
``h`` as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
from msgspec import structs

from replicator.checkpoints.checksums import seal
from replicator.checkpoints.compare_and_set import Row
from replicator.state import FORGOTTEN, Counts, DamagedCheckpoint, Save, forgotten

Item = dict[str, dict[str, str]]
Place = tuple[str, str]

FORMAT = 2  # once a slot has had a head; until then, checkpoints have the format 1
HEAD = "h"
MOST_HEADS = 90  # of slots: all of them, and ``h``, fit in a transaction. Further slots are guarded by ``h``
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

    ``last``: name of the last save of the run, or of the worker, that claimed it. ``journal``: a large save that is
    committed, but whose items are not all written yet; any process that finds it completes it. ``held``: another
    process is about to change what this head guards, so the slot's worker waits a moment; "" if none is.

    Of ``h`` only: ``claim``: number of runs so far. ``slots``: those that have a head in this run.
    """

    owner: str = ""
    claim: int = 0
    commit: int = 0
    last: str = "-"
    journal: Blob | None = None
    format: int = 1
    slots: tuple[str, ...] = ()
    held: str = ""


Heads = Mapping[str, Head]
"""Heads by slot; ``h`` is that of ""."""


@dataclass(frozen=True, slots=True)
class Stored:
    """An entry without its text. ``sum``: the text's checksum. ``blob``: set for large texts.

    ``slot``: which a shard or segment belongs to.
    """

    revision: int
    sum: str
    blob: Blob | None = None
    slot: str = ""


@dataclass(slots=True)
class Known:
    """The state that a save builds on: heads, and the entries and counts that were read after them.

    What a head guards is as it was read while that head's ``commit`` is the same. ``complete``: everything was read;
    otherwise ``read`` has the keys of what was, whether it exists or not. ``slots``: those that have a head.
    """

    heads: dict[str, Head]
    slots: tuple[str, ...] = ()
    entries: dict[Place, Stored] = field(default_factory=dict)
    counts: dict[str, Counts] = field(default_factory=dict)
    complete: bool = False
    read: set[str] = field(default_factory=set)

    def rows(self) -> Mapping[Place, Row]:
        return {place: Row(stored.revision, stored.sum) for place, stored in self.entries.items()}

    def missing(self, keys: Iterable[str]) -> list[str]:
        return [] if self.complete else [key for key in dict.fromkeys(keys) if key not in self.read]

    def guard(self, place: Place, slot: str = "") -> str:
        """The slot whose head guards an entry; ``slot``: of a shard or segment that exists."""
        kind, id = place
        found = id if kind in _BY_ID else slot if kind in _BY_SLOT else ""
        return found if found in self.slots else ""

    def guard_now(self, place: Place) -> str:
        stored = self.entries.get(place)
        return self.guard(place, "" if stored is None else stored.slot)

    def guard_of_counts(self, source: str) -> str:
        place = counted_by(source)
        return "" if place is None else self.guard_now(place)


_BY_ID, _BY_SLOT = ("owner", "slot", "pulse"), ("shard", "segment")


def counted_by(source: str) -> Place | None:
    """The entry with which the counts of a source are guarded; None if there is none."""
    kind, _, id = source.partition(":")
    return (kind, id) if kind in _BY_SLOT and id else None


class _InSlot(msgspec.Struct):
    slot: str = ""


_decode_slot = msgspec.json.Decoder(_InSlot).decode


def slot_in(kind: str, text: str | None) -> str:
    """The slot of a shard or segment. What is too large to be stored in its item counts as having none."""
    if text is None or kind not in _BY_SLOT or '"slot":"' not in text or is_large(text):
        return ""
    try:
        return _decode_slot(text).slot
    except msgspec.DecodeError:
        return ""


def is_large(text: str) -> bool:
    return len(text) > INLINE or len(text.encode()) > INLINE


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


def head_key(slot: str) -> str:
    return f"{HEAD}#{slot}" if slot else HEAD


def entry_item(revision: int, text: str, blob: Blob | None) -> Item:
    where = {"text": {"S": text}} if blob is None else {"blob": {"S": msgspec.json.encode(blob).decode()}}
    return {"revision": {"N": str(revision)}, "sum": {"S": text_sum(text)}, **where}


def counts_item(counts: Counts) -> Item:
    return {name: {"N": str(n)} for name, n in zip(_COUNTS, structs.astuple(counts), strict=True)}


def head_item(head: Head, slot: str = "") -> Item:
    journal = {} if head.journal is None else {"journal": {"S": msgspec.json.encode(head.journal).decode()}}
    held = {"held": {"S": head.held}} if head.held else {}
    common = {"commit": {"N": str(head.commit)}, "last": {"S": head.last}, **journal, **held}
    if slot:
        return common
    numbers = {name: {"N": str(getattr(head, name))} for name in ("claim", "format")}
    slots = {"slots": {"S": msgspec.json.encode(head.slots).decode()}} if head.slots else {}
    return {"owner": {"S": head.owner}, **common, **numbers, **slots}


def stored_of(item: Mapping[str, Any], kind: str) -> Stored:
    slot = slot_in(kind, item["text"]["S"]) if kind in _BY_SLOT and "text" in item else ""
    return Stored(int(item["revision"]["N"]), item["sum"]["S"], _blob(item.get("blob")), slot)


def counts_of(item: Mapping[str, Any]) -> Counts:
    return Counts(*(int(item[name]["N"]) for name in _COUNTS))


def head_of(item: Mapping[str, Any], place: str) -> Head:
    format = int(item["format"]["N"]) if "format" in item else 1
    if format > FORMAT:
        raise DamagedCheckpoint(
            f"the checkpoints in {place} have format {format}, but this replicator reads up to {FORMAT}: "
            "use a newer one"
        )
    return Head(
        owner=item["owner"]["S"] if "owner" in item else "",
        claim=int(item["claim"]["N"]) if "claim" in item else 0,
        commit=int(item["commit"]["N"]),
        last=item["last"]["S"],
        journal=_blob(item.get("journal")),
        format=format,
        slots=_decode_slots(item["slots"]["S"]) if "slots" in item else (),
        held=item["held"]["S"] if "held" in item else "",
    )


_decode_slots = msgspec.json.Decoder(tuple[str, ...]).decode


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


def touched(saves: Sequence[Save], sources: Iterable[str]) -> list[str]:
    """The keys of all that a save may depend on."""
    gone = forgotten(saves)
    sources = list(dict.fromkeys([*sources, *gone, *([FORGOTTEN] if gone else ())]))
    places = [(save.kind, save.id) for save in saves]
    places += [place for source in sources if (place := counted_by(source)) is not None]
    return [*(entry_key(*place) for place in dict.fromkeys(places)), *(f"c#{source}" for source in sources)]


def guards(known: Known, saves: Sequence[Save], counts: Mapping[str, Counts]) -> set[str]:
    """The slots whose heads guard what a save changes, before it or after it."""
    if not known.slots:
        return {""}
    found = {known.guard_of_counts(source) for source in _totals(known, saves, counts)}
    for save in saves:
        place = (save.kind, save.id)
        found |= {known.guard_now(place), known.guard(place, slot_in(save.kind, save.text))}
    return found


def after(known: Known, heads: Heads, done: Sequence[Action]) -> Known:
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
            place = place_of(action.key)
            entries[place] = stored_of(action.item, place[0])
    known.heads.update(heads)
    if not known.complete:
        known.read.update(action.key for action in done)
    return known


def guarded_by(known: Known, slot: str) -> Known:
    """What of ``known`` the head of a slot guards, and nothing else."""
    entries = {place: stored for place, stored in known.entries.items() if known.guard_now(place) == slot}
    counts = {source: found for source, found in known.counts.items() if known.guard_of_counts(source) == slot}
    read = {entry_key(*place) for place in entries} | {f"c#{source}" for source in counts}
    return Known({slot: known.heads[slot]}, (slot,) if slot else known.slots, entries, counts, read=read)


def with_guarded(known: Known, kept: Known, slot: str) -> Known:
    """``known``, with what the head of a slot guards as it is ``kept``, if that head has not moved since."""
    if slot in known.heads and known.heads[slot].commit == kept.heads[slot].commit:
        guarded = guarded_by(kept, slot)
        known.entries.update(guarded.entries)
        known.counts.update(guarded.counts)
        known.read.update(guarded.read)
    return known


def committed(head: Head, last: str, journal: Blob | None) -> Head:
    return replace(head, commit=head.commit + 1, last=last, journal=journal, held="")
