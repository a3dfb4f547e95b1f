"""The four calls of the Streams API: listings, iterators and records."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import orjson

from replicator.testing.dynamodb.catalog import Catalog
from replicator.testing.dynamodb.faults import Dialect, Faults, Listed
from replicator.testing.dynamodb.refusals import expired, invalid, trimmed
from replicator.testing.dynamodb.shards import Shard
from replicator.testing.dynamodb.streams import Stream

LIFETIME = 15 * 60.0  # seconds until an iterator expires
REMEMBERED = 4096  # iterators


class _Iterator(msgspec.Struct, array_like=True, frozen=True):
    """The content of an iterator: it continues after the number ``after``."""

    arn: str
    shard: str
    after: str
    issued: float

    @property
    def text(self) -> str:
        return f"{self.arn}|1|{base64.b64encode(msgspec.json.encode(self)).decode()}"


def position(iterator: str) -> tuple[str, int]:
    """The shard of an iterator, and the sequence number after which it continues."""
    at = _parsed(iterator)
    return at.shard, int(at.after)


def _parsed(text: Any) -> _Iterator:
    try:
        return msgspec.json.decode(base64.b64decode(str(text).rpartition("|")[2], validate=True), type=_Iterator)
    except (msgspec.DecodeError, binascii.Error, UnicodeError, ValueError):
        raise invalid("Invalid ShardIterator") from None


@dataclass(slots=True)
class StreamReads:
    """The operations on streams. ``page_shards``, ``page_records``: page sizes, smaller than AWS's for small tests."""

    catalog: Catalog
    faults: Faults
    dialect: Dialect
    page_shards: int = 100
    page_records: int = 1000
    _issued: dict[str, _Iterator] = field(default_factory=dict)  # the newest ones, to avoid decoding

    def shard_of(self, operation: str, request: Mapping[str, Any]) -> str | None:
        """The shard that a call refers to, for faults on one shard."""
        if operation == "GetRecords":
            return self._known(request.get("ShardIterator")).shard
        return request.get("ShardId") if operation == "GetShardIterator" else None

    def list_streams(self, request: Mapping[str, Any]) -> bytes:
        wanted = request.get("TableName")
        origins = [s.origin for s in self.catalog.streams() if wanted in (None, s.origin.table)]
        found = [{"StreamArn": o.arn, "StreamLabel": o.label, "TableName": o.table} for o in origins]
        return orjson.dumps({"Streams": found})

    def describe_stream(self, request: Mapping[str, Any]) -> bytes:
        stream = self.catalog.stream(request["StreamArn"])
        limit = min(_limit(request, 100), self.page_shards)
        shards = self._listing(stream, request)
        page, rest = shards[:limit], shards[limit:]
        found = {
            "CreationRequestDateTime": stream.created,
            "KeySchema": list(stream.origin.key_schema),
            "Shards": [_shown(shard) for shard in page],
            "StreamArn": stream.origin.arn,
            "StreamLabel": stream.origin.label,
            "StreamStatus": stream.status,
            "StreamViewType": stream.origin.view,
            "TableName": stream.origin.table,
        }
        if rest:
            found["LastEvaluatedShardId"] = page[-1].id
        return orjson.dumps({"StreamDescription": found})

    def _listing(self, stream: Stream, request: Mapping[str, Any]) -> Sequence[Listed]:
        """The requested shards, as DescribeStream shows them."""
        text = stream.numbering.text
        shards: Sequence[Listed] = [
            Listed(s.id, s.parent, text(s.start), None if s.end is None else text(s.end)) for s in stream.shards
        ]
        misreport = self.faults.take("listing", request)
        if misreport is not None:
            shards = misreport(shards)
        if self.dialect.shard_filter and (parent := _parent_wanted(request)) is not None:
            return [s for s in shards if s.parent == parent]
        after = request.get("ExclusiveStartShardId")
        if after is None:
            return shards
        seen = [at for at, shard in enumerate(shards) if shard.id == after]
        return shards[seen[-1] + 1 :] if seen else [s for s in shards if s.id > after]

    def get_shard_iterator(self, request: Mapping[str, Any]) -> bytes:
        stream = self.catalog.stream(request["StreamArn"])
        shard = stream.shard(request["ShardId"])
        after = self._place(shard, request)
        if after < shard.trimmed and self.dialect.refuses_early:
            raise trimmed()
        return orjson.dumps({"ShardIterator": self._iterator(stream, shard, after)})

    def get_records(self, request: Mapping[str, Any]) -> bytes:
        at = self._known(request.get("ShardIterator"))
        limit = min(_limit(request, 1000), self.page_records)
        if self.catalog.now() - at.issued > LIFETIME:
            raise expired()
        stream = self.catalog.stream(at.arn)
        shard = stream.shard(at.shard)
        after = int(at.after)
        if after < shard.trimmed:
            raise trimmed()
        if self.faults.take("blank", request, at.shard):
            limit = 0
        bodies, reached = shard.page(after, limit)
        distorted = self.faults.take("records", request, at.shard)
        if distorted is not None:
            bodies = [orjson.dumps(distorted(orjson.loads(body))) for body in bodies]
        more = limit == 0 or not shard.exhausted(reached)
        following = b',"NextShardIterator":' + orjson.dumps(self._iterator(stream, shard, reached)) if more else b""
        return b"".join([b'{"Records":[', b",".join(bodies), b"]", following, b"}"])

    def _iterator(self, stream: Stream, shard: Shard, after: int) -> str:
        issued = _Iterator(stream.origin.arn, shard.id, str(after), self.catalog.now())
        if len(self._issued) >= REMEMBERED:
            self._issued.clear()
        text = issued.text
        self._issued[text] = issued
        return text

    def _known(self, text: Any) -> _Iterator:
        return self._issued.get(str(text)) or _parsed(text)

    def _place(self, shard: Shard, request: Mapping[str, Any]) -> int:
        """The number after which the iterator starts."""
        match request.get("ShardIteratorType"):
            case "TRIM_HORIZON":
                return shard.trimmed
            case "LATEST":
                return shard.last
            case "AT_SEQUENCE_NUMBER":
                return self._at(shard, _sequence(shard, request))
            case "AFTER_SEQUENCE_NUMBER":
                return _sequence(shard, request)
            case "AT_TIMESTAMP" if self.dialect.at_timestamp:
                return shard.before(self._timestamp(request))
        raise invalid(f"Invalid ShardIteratorType: {request.get('ShardIteratorType')}")

    def _at(self, shard: Shard, number: int) -> int:
        if number == shard.start and not self.dialect.starts and shard.sequences and not shard.has(number):
            return shard.start - 2  # before the first record ever written: counts as trimmed
        return number - 1

    def _timestamp(self, request: Mapping[str, Any]) -> float:
        timestamp = request.get("Timestamp")
        if not isinstance(timestamp, int | float):
            raise invalid("Timestamp is required for the iterator type AT_TIMESTAMP, in seconds since 1970")
        if timestamp > self.catalog.now():
            raise invalid("Timestamp is in the future")
        return timestamp


def _sequence(shard: Shard, request: Mapping[str, Any]) -> int:
    text = request.get("SequenceNumber")
    if not isinstance(text, str) or not text.isdecimal() or len(text) > 400:
        raise invalid("SequenceNumber is required for this iterator type, and consists of digits")
    number = int(text)
    if number < shard.start or (shard.end is not None and number > shard.end):
        raise invalid("Invalid SequenceNumber for the shard")
    return number


def _limit(request: Mapping[str, Any], most: int) -> int:
    limit = request.get("Limit", most)
    if not isinstance(limit, int) or not 1 <= limit <= most:
        raise invalid(f"Value '{limit}' at 'limit' failed to satisfy constraint: 1 to {most}")
    return limit


def _parent_wanted(request: Mapping[str, Any]) -> str | None:
    wanted = request.get("ShardFilter")
    if wanted is None:
        return None
    if wanted.get("Type") != "CHILD_SHARDS" or "ShardId" not in wanted:
        raise invalid("ShardFilter has the type CHILD_SHARDS and a ShardId")
    return str(wanted["ShardId"])


def _shown(shard: Listed) -> dict[str, Any]:
    found: dict[str, Any] = {"ShardId": shard.id, "SequenceNumberRange": {"StartingSequenceNumber": shard.start}}
    if shard.end is not None:
        found["SequenceNumberRange"]["EndingSequenceNumber"] = shard.end
    if shard.parent is not None:
        found["ParentShardId"] = shard.parent
    return found
