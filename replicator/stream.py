"""One stream as its readers need it: GetRecords bodies become records, DescribeStream pages become listings."""

from __future__ import annotations

import random
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import msgspec

from replicator.change import KeySchema, Record
from replicator.errors import TransientError
from replicator.source import KeyReader, Listing, describe_stream, key_shape
from replicator.wire import Call

LISTING_REST = 0.11  # seconds between DescribeStream calls: at most 10 a second are allowed


@dataclass(frozen=True, slots=True)
class Records:
    """A decoded GetRecords answer. ``removals`` holds the indices of records that say REMOVE."""

    records: Sequence[Record]
    removals: frozenset[int]
    next: str | None
    size: int


@lru_cache(maxsize=64)
def _page_shape(keys: KeySchema) -> Any:
    """The struct of a GetRecords answer: keys are read, images stay raw bytes."""
    stored = msgspec.defstruct(
        "Stored",
        [
            ("SequenceNumber", str),
            ("Keys", key_shape(keys)),
            ("ApproximateCreationDateTime", float, 0.0),
            ("NewImage", msgspec.Raw, None),
            ("OldImage", msgspec.Raw, None),
        ],
        gc=False,
    )
    record = msgspec.defstruct(
        "StreamRecord",
        [("dynamodb", stored), ("eventName", str, ""), ("userIdentity", dict[str, str] | None, None)],
        gc=False,
    )
    return msgspec.defstruct(
        "RecordsPage",
        [("Records", list[record], msgspec.field(default_factory=list)), ("NextShardIterator", str | None, None)],  # type: ignore[valid-type]
    )


class RecordsDecoder:
    """Turns a GetRecords body into records whose images stay raw bytes."""

    def __init__(self, keys: KeySchema) -> None:
        self._key = KeyReader(keys)
        self._decoder = msgspec.json.Decoder(_page_shape(keys))

    def __call__(self, body: bytes) -> Records:
        try:
            page: Any = self._decoder.decode(body)
            key = self._key.key
            found = [
                Record(
                    key(d.Keys),
                    d.SequenceNumber,
                    d.ApproximateCreationDateTime,
                    d.NewImage,
                    d.OldImage,
                    r.userIdentity is not None and _expired(r.userIdentity),
                )
                for r in page.Records
                for d in (r.dynamodb,)
            ]
        except (msgspec.DecodeError, UnicodeDecodeError, KeyError, ValueError, RecursionError) as e:
            raise TransientError(f"GetRecords was answered with something that is not DynamoDB's JSON: {e}") from e
        removals = frozenset(i for i, r in enumerate(page.Records) if r.eventName == "REMOVE")
        return Records(found, removals, page.NextShardIterator, len(body))


def _expired(identity: Mapping[str, str]) -> bool:
    return identity.get("PrincipalId", identity.get("principalId")) == "dynamodb.amazonaws.com"


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
            yield Listing(tuple(found), True, page.StreamStatus, started)
            return
        yield LISTING_REST


def children(stream: Stream, parent: str) -> Generator[Call | Listing, Any, None]:
    """What the endpoint says are the children of an ended shard; some endpoints answer with all shards or none."""
    started = stream.now()
    page = yield from describe_stream(stream.arn, children_of=parent)
    yield Listing(tuple(page.shards), False, page.StreamStatus, started)
