"""One stream as its readers need it: GetRecords bodies become records, DescribeStream pages become listings."""

from __future__ import annotations

import random
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import msgspec

from replicator.aws.client import Call
from replicator.change import KeySchema, Record
from replicator.errors import TransientError
from replicator.source.table import KeyReader, Listing, describe_children, describe_stream, key_shape

LISTING_REST = 0.11  # seconds between DescribeStream calls: at most 10 a second are allowed


@dataclass(frozen=True, slots=True)
class Records:
    """A decoded GetRecords answer. ``removals`` holds the indices of records that say REMOVE."""

    records: Sequence[Record]
    removals: frozenset[int]
    next: str | None
    size: int


_ABSENT = msgspec.Raw(b"null")  # an image that is not there, whether it is left out or written so


@lru_cache(maxsize=64)
def _page_shape(keys: KeySchema) -> Any:
    """The struct of a GetRecords answer: keys are read, images stay raw bytes.

    A null stands for an absent value. Records must be there: without it anything in JSON would say that a shard ended.
    """
    stored = msgspec.defstruct(
        "Stored",
        [
            ("SequenceNumber", str),
            ("Keys", key_shape(keys)),
            ("ApproximateCreationDateTime", float | None, None),
            ("NewImage", msgspec.Raw, _ABSENT),
            ("OldImage", msgspec.Raw, _ABSENT),
        ],
        gc=False,
    )
    record = msgspec.defstruct(
        "StreamRecord",
        [
            ("dynamodb", stored),
            ("eventName", str | None, None),
            ("userIdentity", dict[str, str | None] | None, None),
        ],
        gc=False,
    )
    return msgspec.defstruct(
        "RecordsPage",
        [("Records", list[record] | None), ("NextShardIterator", str | None, None)],  # type: ignore[valid-type]
    )


class RecordsDecoder:
    """Turns a GetRecords body into records whose images stay raw bytes.

    ``images``: the stream's view has new images. Then the event decides whether a record removes its item, and one that
    neither removes it nor has an image is no answer of DynamoDB's: TransientError, for a repeat may bring it whole.
    """

    def __init__(self, keys: KeySchema, *, images: bool = True) -> None:
        self._images = images
        self._key = KeyReader(keys)
        self._decoder = msgspec.json.Decoder(_page_shape(keys))

    def __call__(self, body: bytes) -> Records:
        try:
            page: Any = self._decoder.decode(body)
            key, records = self._key.key, page.Records or ()
            found = [
                Record(
                    key(d.Keys),
                    d.SequenceNumber,
                    d.ApproximateCreationDateTime or 0.0,
                    None if r.eventName == "REMOVE" or d.NewImage == _ABSENT else d.NewImage,
                    None if d.OldImage == _ABSENT else d.OldImage,
                    r.userIdentity is not None and _expired(r.userIdentity),
                )
                for r in records
                for d in (r.dynamodb,)
            ]
        except (msgspec.DecodeError, UnicodeDecodeError, KeyError, ValueError, RecursionError) as e:
            raise TransientError(f"GetRecords was answered with something that is not DynamoDB's JSON: {e}") from e
        removals = frozenset(i for i, r in enumerate(records) if r.eventName == "REMOVE")
        if self._images and any(r.new is None and i not in removals for i, r in enumerate(found)):
            raise TransientError(
                "GetRecords was answered with a change that has no NewImage and is no removal (eventName REMOVE), "
                "though the stream's view has new images. Nothing of it is applied; asking again"
            )
        return Records(found, removals, page.NextShardIterator, len(body))


def _expired(identity: Mapping[str, str | None]) -> bool:
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
