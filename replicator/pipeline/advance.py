"""Advances a shard or a segment past its pages: the new position, and the writes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import msgspec
import orjson
from msgspec import structs

from replicator.change import Change, OwnWrite, Page, Record, ScanPage
from replicator.hooks.hook import DocumentMapping
from replicator.key import Key
from replicator.marks import Marks
from replicator.pipeline.compaction import BatchContext, Compacted, compact_latest, compact_runs, latest, newest, runs
from replicator.pipeline.past import history
from replicator.state import SegmentState, ShardState
from replicator.version import version


def streamed(
    state: ShardState,
    pages: Sequence[Page],
    mapping: DocumentMapping,
    at: BatchContext,
    *,
    ignore_expired: bool,
    marks: Marks | None = None,
) -> tuple[ShardState, Compacted]:
    """The shard's state after ``pages``, and their writes. Every record gets an ordinal, even if it is filtered out.

    ``marks``: of the opposite pipeline, whose writes are passed over; None if there is none. With one, so are
    expiries: the other table has the same time to live, and its item may have been renewed since.
    """
    passes_over_expired = ignore_expired or marks is not None
    records = [r for page in pages for r in page.records]
    numbered: Iterable[tuple[int, Record]] = enumerate(records, state.ordinal + 1)
    if passes_over_expired:
        numbered = ((n, r) for n, r in numbered if not r.expired)
    if marks is not None:
        numbered = ((n, unmarked(r, marks)) for n, r in numbered)
    items: Mapping[Key, Sequence[Change]] = {}
    if mapping.own_ids:
        items = runs(numbered, at.epoch)
        compacted = compact_runs(items, mapping, at)
    elif mapping.marks or mapping.histories:
        items = runs(numbered, at.epoch)
        compacted = compact_latest(newest(items), mapping, at, items if mapping.marks else None)
    else:
        compacted = compact_latest(latest(numbered, at.epoch), mapping, at)
    if mapping.histories:
        compacted.history += (past for run in items.values() for past in history(run, mapping, at.began, at.refused))
    if passes_over_expired:
        expired = sum(r.expired for r in records)
        compacted.read += expired
        compacted.filtered += expired
    return moved(state, pages, records), compacted


def moved(state: ShardState, pages: Sequence[Page], records: Sequence[Record]) -> ShardState:
    """The shard's state after its pages."""
    last = records[-1] if records else None
    is_first = last is not None and state.created is None  # may have been created before the epoch
    return replace(
        state,
        sequence=last.sequence if last is not None else state.sequence,
        created=last.created if last is not None else state.created,
        ordinal=state.ordinal + len(records),
        ended=pages[-1].ended,
        through=pages[-1].through,
        since=pages[-1].since if is_first else max(state.since, pages[-1].since),
    )


def scanned(
    state: SegmentState,
    pages: Sequence[ScanPage],
    mapping: DocumentMapping,
    at: BatchContext,
    *,
    marks: Marks | None = None,
) -> tuple[SegmentState, Compacted]:
    """The segment's state after ``pages``, and their writes. Scanned items have ordinal 0: every record is newer."""
    first = version(at.epoch, 0)
    changes: list[Change | OwnWrite]
    if marks is None:
        changes = [Change(key, first, new=image) for page in pages for key, image in page.items]
    else:
        changes = [_unmarked_item(key, image, marks, at) for page in pages for key, image in page.items]
    cursor = pages[-1].cursor
    after = replace(
        state,
        cursor=None if cursor is None else orjson.dumps(cursor).decode(),
        ended=pages[-1].ended,
        items=(state.items if pages[0].before is None else pages[0].before) + len(changes),
    )
    if mapping.own_ids:
        compacted = compact_runs({c.key: [c] for c in changes if isinstance(c, Change)}, mapping, at)
    else:
        compacted = compact_latest(((c, first, 1) for c in changes), mapping, at)
    if mapping.histories:
        runs_of = ([c] for c in changes if isinstance(c, Change))
        compacted.history += (past for run in runs_of for past in history(run, mapping, at.began, at.refused))
    return after, compacted


def unmarked(record: Record, marks: Marks) -> Record:
    """The record as if only applications wrote to the table: without marks, an ``OwnWrite`` if a pipeline made it."""
    old = None if record.old is None else marks.read(record.old)
    before = None if old is None or old.deleted else old.image
    if record.new is None:
        purged = old is not None and old.deleted
        return _own_write(record) if purged else structs.replace(record, old=before)
    new = marks.read(record.new)
    if new.is_own(record.key, old):
        return _own_write(record)
    return structs.replace(record, new=None if new.deleted else new.image, old=before)


def _own_write(record: Record) -> OwnWrite:
    return OwnWrite(record.key, record.sequence, record.created)


def _unmarked_item(key: Key, image: msgspec.Raw | bytes | None, marks: Marks, at: BatchContext) -> Change | OwnWrite:
    """A scanned item without marks; None: it does not exist.

    A tombstone is no item. What it leaves in the target is removed by a sweep, or here if none follows: after a partial
    resync.
    """
    first = version(at.epoch, 0)
    if image is None:
        return Change(key, first)
    item = marks.read(image)
    if not item.deleted:
        return Change(key, first, new=item.image)
    return Change(key, first) if at.full else OwnWrite(key, "", 0.0)
