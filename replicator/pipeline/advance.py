"""Advances a shard or a segment past its pages: the new position, and the writes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import orjson

from replicator.change import Change, Page, Record, ScanPage
from replicator.hooks.hook import DocumentMapping
from replicator.pipeline.compaction import BatchContext, Compacted, compact_latest, compact_runs, latest, runs
from replicator.state import SegmentState, ShardState
from replicator.version import version


def streamed(
    state: ShardState, pages: Sequence[Page], mapping: DocumentMapping, at: BatchContext, *, ignore_expired: bool
) -> tuple[ShardState, Compacted]:
    """The shard's state after ``pages``, and their writes. Every record gets an ordinal, even if it is filtered out."""
    records = [r for page in pages for r in page.records]
    numbered: Iterable[tuple[int, Record]] = enumerate(records, state.ordinal + 1)
    if ignore_expired:
        numbered = ((n, r) for n, r in numbered if not r.expired)
    if mapping.own_ids:
        compacted = compact_runs(runs(numbered, at.epoch), mapping, at)
    else:
        compacted = compact_latest(latest(numbered, at.epoch), mapping, at)
    if ignore_expired:
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
    state: SegmentState, pages: Sequence[ScanPage], mapping: DocumentMapping, at: BatchContext
) -> tuple[SegmentState, Compacted]:
    """The segment's state after ``pages``, and their writes. Scanned items have ordinal 0: every record is newer."""
    changes = [Change(key, version(at.epoch, 0), new=image) for page in pages for key, image in page.items]
    cursor = pages[-1].cursor
    after = replace(
        state,
        cursor=None if cursor is None else orjson.dumps(cursor).decode(),
        ended=pages[-1].ended,
        items=state.items + len(changes),
    )
    if mapping.own_ids:
        return after, compact_runs({c.key: [c] for c in changes}, mapping, at)
    return after, compact_latest(((c, c.version, 1) for c in changes), mapping, at)
