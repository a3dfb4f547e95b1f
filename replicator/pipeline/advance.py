"""What it means to pass pages: how a shard, or a segment, stands behind them, and the writes they come to."""

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
    """A shard behind its pages. Every record counts in the ordinals, also one that is dropped."""
    records = [r for page in pages for r in page.records]
    numbered: Iterable[tuple[int, Record]] = enumerate(records, state.ordinal + 1)
    if ignore_expired:
        numbered = ((n, r) for n, r in numbered if not r.expired)
    if mapping.own_ids:
        found = compact_runs(runs(numbered, at.epoch), mapping, at)
    else:
        found = compact_latest(latest(numbered, at.epoch), mapping, at)
    if ignore_expired:
        expired = sum(r.expired for r in records)
        found.read += expired
        found.filtered += expired
    return moved(state, pages, records), found


def moved(state: ShardState, pages: Sequence[Page], records: Sequence[Record]) -> ShardState:
    """Where a shard stands behind its pages."""
    last = records[-1] if records else None
    begins = last is not None and state.created is None  # perhaps before the epoch did
    return replace(
        state,
        sequence=last.sequence if last is not None else state.sequence,
        created=last.created if last is not None else state.created,
        ordinal=state.ordinal + len(records),
        ended=pages[-1].ended,
        through=pages[-1].through,
        since=pages[-1].since if begins else max(state.since, pages[-1].since),
    )


def scanned(
    state: SegmentState, pages: Sequence[ScanPage], mapping: DocumentMapping, at: BatchContext
) -> tuple[SegmentState, Compacted]:
    """A segment behind its pages. Scanned items have ordinal 0: any record of the epoch is newer."""
    changes = [Change(key, version(at.epoch, 0), new=image) for page in pages for key, image in page.items]
    cursor = pages[-1].cursor
    behind = replace(
        state,
        cursor=None if cursor is None else orjson.dumps(cursor).decode(),
        ended=pages[-1].ended,
        items=state.items + len(changes),
    )
    if mapping.own_ids:
        return behind, compact_runs({c.key: [c] for c in changes}, mapping, at)
    return behind, compact_latest(((c, c.version, 1) for c in changes), mapping, at)
