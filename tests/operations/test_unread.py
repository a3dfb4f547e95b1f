"""What a stopped pipeline has not read is looked for where its last run would have looked."""

from __future__ import annotations

import random
from collections.abc import Mapping

import pytest

from replicator.errors import GapFound
from replicator.operations.unread import unread
from replicator.pipeline.discovery import Discovery
from replicator.source.decoding import RecordsDecoder
from replicator.source.stream import Stream
from replicator.source.table import describe_table
from replicator.state import ShardState
from replicator.testing.dynamodb import DynamoDB

AT = 1_700_000_000.0


class Client:
    """The in-memory DynamoDB without its counter of calls."""

    def __init__(self, db: DynamoDB) -> None:
        self.call = db.call


def late_parent() -> tuple[Client, Stream, Mapping[str, ShardState]]:
    """A shard that an epoch follows, whose parent its listings omitted."""
    db = DynamoDB(now=lambda: AT, random=random.Random(1))
    db.create_table("orders")
    db.roll_all("orders")
    table = describe_table(db, "orders")
    assert table.stream_arn is not None
    stream = Stream(table.stream_arn, "orders", table.keys, RecordsDecoder(table.keys), lambda: AT, random.Random(1))
    (child,) = db.open_shards("orders")
    (parent,) = {shard.id for shard in db.shards("orders")} - {child}
    return Client(db), stream, {child: ShardState(parent, None, whole=False, since=AT - 60, through=AT)}


def test_after_an_existing_export_a_shard_that_listings_omitted_may_have_changes_that_are_not_copied() -> None:
    client, stream, known = late_parent()
    with pytest.raises(GapFound, match="may have changes since the export"):
        unread(client, stream, known, Discovery(needed_since=AT - 60), lambda record: True)


def test_after_a_scan_it_has_none() -> None:
    client, stream, known = late_parent()
    assert unread(client, stream, known, Discovery(), lambda record: True) is None
