"""A DynamoDB stream as its readers see it, and its listings of shards (DescribeStream)."""

from __future__ import annotations

import random
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from replicator.aws.client import Call
from replicator.aws.errors import AwsError, decoded, failure
from replicator.change import Listing, Shard
from replicator.errors import GapFound
from replicator.key import KeySchema
from replicator.source.decoding import RecordsDecoder

LISTING_REST = 0.11  # seconds between DescribeStream calls: AWS allows 10 per second


@dataclass(frozen=True, slots=True)
class Stream:
    """A stream and what its readers need apart from their calls; time and randomness are injected.

    ``now``: seconds since 1970. ``keys_only``: the view has no images, so items must be looked up. ``poll_interval``:
    seconds between the requests of a shard without new records; None: a quarter at first, then up to one.
    ``identity``: of the table, in which items are looked up only as long as no other one has its name; "" if unknown.
    """

    arn: str
    table: str
    keys: KeySchema
    decode: RecordsDecoder
    now: Callable[[], float]
    random: random.Random
    keys_only: bool = False
    poll_interval: float | None = None
    identity: str = ""


@dataclass(slots=True)
class ListedPages:
    """What a listing has shown so far. ``started``: when its first page was requested, in seconds since 1970.

    ``after``: the last shard of these pages; None before the first.
    """

    started: float
    shards: list[Shard] = field(default_factory=list)
    after: str | None = None


def listing(stream: Stream, pages: ListedPages | None = None) -> Generator[Call | Listing | float, Any, None]:
    """Yields calls, the seconds to wait between them, and in the end one listing of all shards.

    It continues after ``pages``, and adds each page to them, so that one that fails or has no more time is not lost.
    """
    pages = pages or ListedPages(stream.now())
    while True:
        page = yield from describe_stream(stream.arn, after=pages.after)
        pages.shards += page.shards
        pages.after = page.LastEvaluatedShardId
        if pages.after is None:
            yield Listing(tuple(pages.shards), True, page.StreamStatus or "", pages.started)
            return
        yield LISTING_REST


def children(stream: Stream, parent: str) -> Generator[Call | Listing | float, Any, None]:
    """Yields like ``listing``, but lists only the children of an ended shard; a full listing if that is unsupported.

    Some endpoints ignore the filter and return all shards, or return none.
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
    CreationRequestDateTime: float | None = None

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

    GapFound if the stream no longer exists, as a day after it was disabled.
    """
    try:
        return (yield from _page(arn, {} if after is None else {"ExclusiveStartShardId": after}))
    except AwsError as e:
        if e.code == "ResourceNotFoundException":
            raise GapFound(f"the stream {arn} no longer exists, and it was not read to its end", gone=True) from e
        raise failure(e, "DescribeStream", arn) from e


def describe_children(arn: str, parent: str) -> Generator[Call, bytes, StreamPage | None]:
    """The children of an ended shard; None if the endpoint rejects the filter, which proves nothing."""
    try:
        return (yield from _page(arn, {"ShardFilter": {"Type": "CHILD_SHARDS", "ShardId": parent}}))
    except AwsError as e:
        if e.code in _FILTER_REJECTED:
            return None
        raise failure(e, "DescribeStream", arn) from e


_FILTER_REJECTED = frozenset(
    {
        "ValidationException",
        "SerializationException",
        "UnknownOperationException",
        "ResourceNotFoundException",  # perhaps only of the parent, which may have expired from the stream
    }
)


def _page(arn: str, parameters: Mapping[str, Any]) -> Generator[Call, bytes, StreamPage]:
    body = yield Call("DescribeStream", {"StreamArn": arn, **parameters})
    return decoded(body, _DescribeStream, "DescribeStream").StreamDescription
