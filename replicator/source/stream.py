"""One stream as its readers need it: GetRecords bodies become records, DescribeStream pages become listings."""

from __future__ import annotations

import random
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from replicator.aws.client import Call
from replicator.aws.errors import AwsError, decoded, failure
from replicator.change import Listing, Shard
from replicator.errors import GapFound
from replicator.key import KeySchema
from replicator.source.decoding import RecordsDecoder

LISTING_REST = 0.11  # seconds between DescribeStream calls: at most 10 a second are allowed


@dataclass(frozen=True, slots=True)
class Stream:
    """One stream, and what its readers need besides their calls. Time and randomness are arguments."""

    arn: str
    table: str
    keys: KeySchema
    decode: RecordsDecoder
    now: Callable[[], float]
    random: random.Random
    keys_only: bool = False


def listing(stream: Stream) -> Generator[Call | Listing | float, Any, None]:
    """All pages of DescribeStream as one listing, the last thing yielded; before it, seconds to rest between calls."""
    started = stream.now()
    found = []
    after: str | None = None
    while True:
        page = yield from describe_stream(stream.arn, after=after)
        found += page.shards
        after = page.LastEvaluatedShardId
        if after is None:
            yield Listing(tuple(found), True, page.StreamStatus or "", started)
            return
        yield LISTING_REST


def children(stream: Stream, parent: str) -> Generator[Call | Listing | float, Any, None]:
    """What the endpoint says are the children of an ended shard; some endpoints answer with all shards or none.

    Where it refuses the question, a full listing.
    """
    started = stream.now()
    page = yield from describe_children(stream.arn, parent)
    if page is None:
        yield LISTING_REST
        yield from listing(stream)
        return
    yield Listing(tuple(page.shards), False, page.StreamStatus or "", started)


class _Range(msgspec.Struct):
    StartingSequenceNumber: str | None = None
    EndingSequenceNumber: str | None = None


class _Shard(msgspec.Struct):
    ShardId: str
    ParentShardId: str | None = None
    SequenceNumberRange: _Range | None = None


class StreamPage(msgspec.Struct):
    """One page of DescribeStream."""

    StreamStatus: str | None = None
    StreamViewType: str | None = None
    Shards: list[_Shard] | None = None
    LastEvaluatedShardId: str | None = None

    @property
    def shards(self) -> list[Shard]:
        return [
            Shard(s.ShardId, s.ParentShardId or None, at.StartingSequenceNumber, at.EndingSequenceNumber)
            for s in self.Shards or ()
            for at in (s.SequenceNumberRange or _Range(),)
        ]


class _DescribeStream(msgspec.Struct):
    StreamDescription: StreamPage


def describe_stream(arn: str, *, after: str | None = None) -> Generator[Call, bytes, StreamPage]:
    """One page of the stream's shards: the first, or the one after shard ``after``.

    GapFound if the stream is forgotten, a day after it was disabled.
    """
    try:
        return (yield from _page(arn, {} if after is None else {"ExclusiveStartShardId": after}))
    except AwsError as e:
        if e.code == "ResourceNotFoundException":
            raise GapFound(f"the stream {arn} no longer exists, and it was not read to its end", gone=True) from e
        raise failure(e, "DescribeStream", arn) from e


def describe_children(arn: str, parent: str) -> Generator[Call, bytes, StreamPage | None]:
    """The children of an ended shard; None if the endpoint refuses the question, which proves nothing."""
    try:
        return (yield from _page(arn, {"ShardFilter": {"Type": "CHILD_SHARDS", "ShardId": parent}}))
    except AwsError as e:
        if e.code in _NO_FILTER:
            return None
        raise failure(e, "DescribeStream", arn) from e


_NO_FILTER = frozenset(
    {
        "ValidationException",
        "SerializationException",
        "UnknownOperationException",
        "ResourceNotFoundException",  # also of the parent alone, which may have left the stream
    }
)


def _page(arn: str, asked: Mapping[str, Any]) -> Generator[Call, bytes, StreamPage]:
    body = yield Call("DescribeStream", {"StreamArn": arn, **asked})
    return decoded(body, _DescribeStream, "DescribeStream").StreamDescription
