"""A batch: writes, at most one per document, and what becomes durable with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import msgspec
from msgspec import structs

from replicator.key import Key
from replicator.state import Counts, Save

DocumentId = tuple[str, ...]
"""A document's id inside its table: the item's key, or (key text of its item, id the hook gave)."""


class Upsert(msgspec.Struct, frozen=True, gc=False):
    """Store the whole ``body`` under ``id`` unless the target has that version or a newer one.

    ``body`` is an ``Item`` where there is no hook, else what the hook returned. ``item`` is the key of the item it came
    from. ``weight``: how many changes this write answers for in the counts; one write an item has it, others have 0.
    """

    table: str
    id: DocumentId
    body: Mapping[str, object]
    version: int
    item: Key
    weight: int = 1


class Delete(msgspec.Struct, frozen=True, gc=False):
    """Remove the document unless the target has that version or a newer one."""

    table: str
    id: DocumentId
    version: int
    item: Key
    weight: int = 1


Write = Upsert | Delete


class Part(msgspec.Struct, frozen=True):
    """What one shard or one scan segment contributes to a batch.

    ``source`` names it in the counts: ``shard:ID`` or ``segment:N``. ``counts`` holds what is known before the target
    answers: read, filtered and parked.
    """

    source: str
    writes: Sequence[Write] = ()
    counts: Counts = Counts()


@dataclass(frozen=True, slots=True)
class Batch:
    """Writes with distinct document ids, and the checkpoint entries that may move once all of them are stored.

    ``tombstones``: deletes must be remembered, because scanned items with older versions may still arrive.
    ``replaces_same``: what the target has of a document at the write's very own version is replaced, too. A retry of a
    parked change wants that: a refused batch, or a retry that was cut off, may have stored other documents of it.
    """

    parts: Sequence[Part] = ()
    saves: Sequence[Save] = ()
    tombstones: bool = False
    replaces_same: bool = False

    @property
    def size(self) -> int:
        return sum(len(part.writes) for part in self.parts)


@dataclass(frozen=True, slots=True)
class Rejection:
    """A write that the target refuses for good, with the reason in a plain sentence (no values in it)."""

    write: Write
    reason: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a target answers to a batch.

    With ``rejections``, nothing else counts: the batch is not stored, its entries did not move, and the caller comes
    back with a batch that parks what was refused. Otherwise ``superseded`` says, for each source that had any, how many
    changes (by weight) the target already knew.
    """

    rejections: Sequence[Rejection] = ()
    superseded: Mapping[str, int] = field(default_factory=dict)


def outcome_counts(batch: Batch, outcome: Outcome) -> dict[str, Counts]:
    """What a stored batch adds to the counts of each source."""
    found: dict[str, Counts] = {}
    for part in batch.parts:
        superseded = outcome.superseded.get(part.source, 0) if part.source not in found else 0
        known = part.counts
        applied = known.read - known.filtered - known.parked - superseded
        known = structs.replace(known, applied=applied, superseded=superseded)
        found[part.source] = found.get(part.source, Counts()) + known
    return found
