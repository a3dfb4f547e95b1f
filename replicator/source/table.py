"""The source table and its stream, as DynamoDB describes them."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from operator import attrgetter
from typing import Any

import msgspec

from replicator.aws.client import Call, Wire, WireError, decoded, failure
from replicator.change import Key, KeyAttribute, KeySchema
from replicator.errors import ConfigError, GapFound, TransientError
from replicator.items.attributes import Malformed, canonical_number
from replicator.pipeline.lineage import Shard

VIEW_TYPES = ("NEW_IMAGE", "NEW_AND_OLD_IMAGES", "KEYS_ONLY", "OLD_IMAGE")


@dataclass(frozen=True, slots=True)
class SourceTable:
    """A DynamoDB table. ``stream_arn`` and ``view`` are None where no stream is (or was last) enabled.

    ``identity``: what no other table has, not even one of the same name elsewhere (some endpoints give equal ARNs).
    ``server``: the endpoint that described it.
    """

    name: str
    arn: str
    id: str
    keys: KeySchema
    items: int
    bytes: int
    stream_arn: str | None
    streaming: bool
    view: str | None
    identity: str = ""
    server: str = ""


@dataclass(frozen=True, slots=True)
class Listing:
    """What DescribeStream told: shards in any order, whether these are all, and the stream's status."""

    shards: tuple[Shard, ...]
    complete: bool
    status: str
    at: float


class _Attribute(msgspec.Struct):
    AttributeName: str
    AttributeType: str = ""
    KeyType: str = ""


class _StreamSpecification(msgspec.Struct):
    StreamEnabled: bool | None = None
    StreamViewType: str | None = None


class _Table(msgspec.Struct):
    TableName: str
    KeySchema: list[_Attribute]
    AttributeDefinitions: list[_Attribute]
    TableArn: str | None = None
    TableId: str | None = None
    CreationDateTime: float | None = None
    ItemCount: int | None = None
    TableSizeBytes: int | None = None
    LatestStreamArn: str | None = None
    StreamSpecification: _StreamSpecification | None = None


class _DescribeTable(msgspec.Struct):
    Table: _Table


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


def describe_table(wire: Wire, name: str) -> SourceTable:
    """The table as it is now; ConfigError if there is none."""
    table = find_table(wire, name)
    if table is None:
        raise ConfigError(
            f"source.table: there is no table {name} in this account and region; "
            "check source.table, source.region and the credentials"
        )
    return table


def find_table(wire: Wire, name: str) -> SourceTable | None:
    """The table as it is now; None if there is none."""
    try:
        body = wire.call("DescribeTable", {"TableName": name})
    except WireError as e:
        if e.code == "ResourceNotFoundException":
            return None
        raise failure(e, "DescribeTable", name) from e
    try:
        return _source_table(decoded(body, _DescribeTable, "DescribeTable").Table, getattr(wire, "server", ""))
    except (KeyError, ValueError) as e:  # a key attribute that is not defined, or of a type that no key has
        raise TransientError(f"DescribeTable was answered with something that is not DynamoDB's JSON: {e}") from e


def _source_table(table: _Table, server: str) -> SourceTable:
    kinds = {a.AttributeName: a.AttributeType for a in table.AttributeDefinitions}
    ordered = sorted(table.KeySchema, key=lambda a: a.KeyType != "HASH")
    stream = table.StreamSpecification or _StreamSpecification()
    return SourceTable(
        name=table.TableName,
        arn=table.TableArn or "",
        id=table.TableId or table.TableArn or "",
        keys=KeySchema(tuple(KeyAttribute(a.AttributeName, kinds[a.AttributeName]) for a in ordered)),
        items=table.ItemCount or 0,
        bytes=table.TableSizeBytes or 0,
        stream_arn=table.LatestStreamArn,
        streaming=stream.StreamEnabled is True,
        view=stream.StreamViewType,
        identity=table.TableId or str(table.CreationDateTime or 0.0),
        server=server,
    )


def describe_stream(arn: str, *, after: str | None = None) -> Generator[Call, bytes, StreamPage]:
    """One page of the stream's shards: the first, or the one after shard ``after``.

    GapFound if the stream is forgotten, a day after it was disabled.
    """
    try:
        return (yield from _page(arn, {} if after is None else {"ExclusiveStartShardId": after}))
    except WireError as e:
        if e.code == "ResourceNotFoundException":
            raise GapFound(f"the stream {arn} no longer exists, and it was not read to its end", gone=True) from e
        raise failure(e, "DescribeStream", arn) from e


def describe_children(arn: str, parent: str) -> Generator[Call, bytes, StreamPage | None]:
    """The children of an ended shard; None if the endpoint refuses the question, which proves nothing."""
    try:
        return (yield from _page(arn, {"ShardFilter": {"Type": "CHILD_SHARDS", "ShardId": parent}}))
    except WireError as e:
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


# Structs, not dictionaries: a record's key is read in half the time.
_VALUES = {kind: msgspec.defstruct(kind, [(kind, str)], gc=False) for kind in ("S", "N", "B")}


def _unspellable(keys: KeySchema) -> bool:
    """Whether a name has something in it that msgspec takes in no field's."""
    return any(re.search(r'["\\\x00-\x1f]', name) for name in keys.names)


@lru_cache(maxsize=64)  # making the struct costs more than reading a page with it
def key_shape(keys: KeySchema) -> Any:
    """The type that a key in raw typed JSON is decoded to: a struct, or a dictionary where no struct has such names."""
    if _unspellable(keys):
        return dict[str, msgspec.Raw]
    named = [(f"k{i}", a) for i, a in enumerate(keys.attributes)]
    fields = [(name, _VALUES[a.kind]) for name, a in named]
    return msgspec.defstruct("Keys", fields, rename={name: a.name for name, a in named}, gc=False)


def _texts(keys: KeySchema) -> Callable[[Any], Any]:
    """What takes the texts out of a key that was decoded to its shape: one alone, several as a tuple."""
    if not _unspellable(keys):
        return attrgetter(*(f"k{i}.{a.kind}" for i, a in enumerate(keys.attributes)))
    decoders = [(a.name, msgspec.json.Decoder(_VALUES[a.kind]), attrgetter(a.kind)) for a in keys.attributes]

    def texts(found: Mapping[str, msgspec.Raw]) -> Any:
        values = tuple(text(decoder.decode(found[name])) for name, decoder, text in decoders)
        return values if len(values) > 1 else values[0]

    return texts


class KeyReader:
    """Takes the key out of raw typed JSON (a record's Keys, or a whole image) without parsing the rest."""

    def __init__(self, keys: KeySchema) -> None:
        self.shape = key_shape(keys)
        self._decoder = msgspec.json.Decoder(self.shape)
        self._texts = _texts(keys)
        self._kinds = tuple(a.kind for a in keys.attributes)

    def key(self, found: Any) -> Key:
        """The key in a decoded ``shape``."""
        texts: Key = self._texts(found) if len(self._kinds) > 1 else (self._texts(found),)
        if "N" not in self._kinds:
            return texts
        return tuple(canonical_number(t) if k == "N" else t for k, t in zip(self._kinds, texts, strict=True))

    def of(self, image: bytes | msgspec.Raw) -> Key:
        """The key in an image; Malformed if there is none."""
        try:
            return self.key(self._decoder.decode(image))
        except (msgspec.DecodeError, UnicodeDecodeError, KeyError, RecursionError) as e:
            raise Malformed(f"no key in an image: {e}") from e

    def keyed(self, images: Iterable[msgspec.Raw], operation: str) -> list[tuple[Key, msgspec.Raw]]:
        """Images with their keys; TransientError if one has none, for then it is no answer of DynamoDB's."""
        try:
            return [(self.of(image), image) for image in images]
        except Malformed as e:
            raise TransientError(f"{operation} was answered with something that is not DynamoDB's JSON: {e}") from e
