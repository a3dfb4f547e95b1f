"""Looks for records that a stopped pipeline has not read: reads on from its positions, and stores nothing."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from replicator.aws.client import Client, completed
from replicator.aws.threaded import calls_of
from replicator.change import Listing, Page, Record, Shard
from replicator.engine.scheduler import Scheduler
from replicator.errors import GapFound, TransientError
from replicator.pipeline import lineage
from replicator.pipeline.discovery import Discovery
from replicator.source import shard_reader
from replicator.source.stream import Stream, describe_stream
from replicator.state import ShardState

POLL = 0.2  # seconds
MOST_FAILURES = 5  # consecutive failed steps of a shard


def unread(
    client: Client,
    stream: Stream,
    known: Mapping[str, ShardState],
    discovery: Discovery,
    counts: Callable[[Record], bool],
) -> Record | None:
    """A record behind the positions of ``known`` that ``counts``; None if there was none when this was called.

    ``discovery``: of the pipeline's last run.

    GapFound if that cannot be told any more: records may have been trimmed since. TransientError if a shard cannot be
    read now.
    """
    asked, failures = stream.now(), Counter[str]()
    left = _to_read(client, stream, known, discovery)
    with contextlib.closing(Scheduler(calls_of(client))) as steps:
        for id, state in left.items():
            steps.add(id, shard_reader.read(stream, id, state))
        while left:
            result = steps.get(POLL)
            if result is None:
                continue
            if result.error is not None:
                raise result.error
            if isinstance(page := result.value, Page):
                if found := next(filter(counts, page.records), None):
                    return found
                _check_readable(page, failures)
                if page.through is None or page.through < asked:
                    steps.again(result.name, page.rest)
                    continue
            left.pop(result.name, None)
    return None


def _check_readable(page: Page, failures: Counter[str]) -> None:
    failures[page.shard] = failures[page.shard] + 1 if page.waiting_for else 0
    if failures[page.shard] >= MOST_FAILURES:
        raise TransientError(f"shard {page.shard} cannot be read now: {page.waiting_for}")


def _to_read(
    client: Client, stream: Stream, known: Mapping[str, ShardState], discovery: Discovery
) -> dict[str, ShardState]:
    """The shards that may have unread records, known and new ones."""
    listing = _listing(client, stream)
    if lineage.orphans(known, lineage.merged(listing.shards)):
        raise GapFound("the stream has shards whose parents are no longer listed, so some may be missing")
    new = discovery.news(known, listing).shards
    return {id: state for id, state in {**known, **new}.items() if not state.ended}


def _listing(client: Client, stream: Stream) -> Listing:
    started, shards, after = stream.now(), list[Shard](), None
    while True:
        page: Any = completed(client, describe_stream(stream.arn, after=after))
        shards += page.shards
        if (after := page.LastEvaluatedShardId) is None:
            return Listing(tuple(shards), True, page.StreamStatus or "", started)
