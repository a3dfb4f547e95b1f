"""Batches: at most one write per document, and the checkpoint entries that become durable with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import msgspec
from msgspec import structs

from replicator.key import Key
from replicator.state import Counts, Save

DocumentId = tuple[str, ...]
"""A document's id within its table: the item's key, or (key text of its item, id chosen by the hook)."""


@dataclass(frozen=True, slots=True)
class BatchSize:
    """What a target wants whose batches cost much, however small: ``rows`` (changes) in each, or what came in
    ``seconds``."""

    rows: int
    seconds: float


class Upsert(msgspec.Struct, frozen=True, gc=False):
    """Store ``body`` under ``id``, replacing the document, unless the target has this version or a newer one.

    ``body``: an ``Item`` without a hook, otherwise what the hook returned. ``item``: key of the source item.
    ``weight``: number of changes this write stands for in the counts; of an item's writes, only one has a weight.
    """

    table: str
    id: DocumentId
    body: Mapping[str, object]
    version: int
    item: Key
    weight: int = 1


class Delete(msgspec.Struct, frozen=True, gc=False):
    """Remove the document, unless the target has this version or a newer one.

    For targets that mark documents instead of removing them: ``created``, the time of the change that made it vanish,
    seconds since 1970, None if no change of the stream says so; and ``last``, the document as it was before that
    change, None if no image tells. ``last`` is given only with ``created``.
    """

    table: str
    id: DocumentId
    version: int
    item: Key
    weight: int = 1
    created: float | None = None
    last: Mapping[str, object] | None = None


Write = Upsert | Delete


class Past(msgspec.Struct, frozen=True, gc=False):
    """What one change of the source did to one document, for tables that keep a history.

    ``sequence``: of the stream record, "" for what a scan or a sweep found. ``time``: of the record, else when its
    epoch began; seconds since 1970. A table keeps one row per document, time and sequence, so the same record adds
    nothing in a replay or a later epoch. ``operation``: insert, modify, remove or scan. ``old``, ``new``: the document
    before and after; None: there was none, or (``new``, with a ``problem``) it could not be made or stored.
    """

    table: str
    id: DocumentId
    version: int
    time: float
    sequence: str
    operation: str
    old: Mapping[str, object] | None = None
    new: Mapping[str, object] | None = None
    problem: str | None = None


class Part(msgspec.Struct, frozen=True):
    """The part of a batch that comes from one shard or scan segment.

    ``source``: ``shard:ID`` or ``segment:N``. ``counts``: what is known before the write: read, filtered and parked.
    ``history``: every change of documents in tables that keep a history, also those that a later one of the batch
    overrides or that are parked.
    """

    source: str
    writes: Sequence[Write] = ()
    counts: Counts = Counts()
    history: Sequence[Past] = ()


@dataclass(frozen=True, slots=True)
class Batch:
    """Writes with distinct document ids, and the checkpoint entries to save once all of them are stored.

    ``tombstones``: deletes must leave tombstones, because scanned items with older versions may still arrive.
    ``replaces_same``: a write also replaces a document of the same version. Retries of parked changes need this: a
    refused batch, or an interrupted retry, may have stored a different document with that version.
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
    """A write that the target refuses permanently, and why. The reason must not quote item values."""

    write: Write
    reason: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """A target's response to a batch.

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
