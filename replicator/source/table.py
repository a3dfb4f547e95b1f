"""The source table and its stream, as DynamoDB describes them."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field, replace

import msgspec

from replicator.aws.client import Call, Client
from replicator.aws.errors import AwsError, decoded, failure
from replicator.errors import ConfigError, GapFound, TransientError
from replicator.key import KeyAttribute, KeySchema

VIEW_TYPES = ("NEW_IMAGE", "NEW_AND_OLD_IMAGES", "KEYS_ONLY", "OLD_IMAGE")


@dataclass(frozen=True, slots=True)
class SourceTable:
    """A DynamoDB table. ``stream_arn`` and ``view``: of the current or last stream, None if there was none.

    ``requested``: how a request must name it, as the config does. A table of another account is requested by its ARN;
    ``name`` alone is a table of the caller's own account, so it is for messages and documents.

    ``identity``: unique to this table, even among tables of the same name elsewhere (some endpoints return equal ARNs).
    ``server``: host and port of the endpoint that described it. ``replicas``: the regions of the others, if it is a
    replica of a global table.
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
    replicas: tuple[str, ...] = ()
    requested: str = field(kw_only=True)


class _Attribute(msgspec.Struct):
    AttributeName: str
    AttributeType: str = ""
    KeyType: str = ""


class _StreamSpecification(msgspec.Struct):
    StreamEnabled: bool | None = None
    StreamViewType: str | None = None


class _Replica(msgspec.Struct):
    RegionName: str | None = None


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
    Replicas: list[_Replica] | None = None

    @property
    def identity(self) -> str:
        return self.TableId or str(self.CreationDateTime or 0.0)


class _DescribeTable(msgspec.Struct):
    Table: _Table


class _Stream(msgspec.Struct):
    StreamViewType: str | None = None


class _DescribeStream(msgspec.Struct):
    StreamDescription: _Stream


def describe_table(client: Client, name: str) -> SourceTable:
    """Describe the table. ConfigError if it does not exist."""
    table = find_table(client, name)
    if table is None:
        raise ConfigError(
            f"source.table: no table {name} in this account and region; "
            "check source.table, source.region and the credentials"
        )
    return table


def find_table(client: Client, name: str) -> SourceTable | None:
    """Describe the table; None if it does not exist."""
    try:
        body = client.call("DescribeTable", {"TableName": name})
    except AwsError as e:
        if e.code == "ResourceNotFoundException":
            return None
        raise failure(e, "DescribeTable", name) from e
    try:
        described = decoded(body, _DescribeTable, "DescribeTable").Table
        found = _source_table(described, name, getattr(client, "server", ""))
    except (KeyError, ValueError) as e:  # a key attribute without a definition, or of a type that keys cannot have
        raise TransientError(f"the response to DescribeTable is not DynamoDB JSON: {e}") from e
    if found.stream_arn is None or found.view is not None:
        return found
    return replace(found, view=view_of(client, found.stream_arn))


def view_of(client: Client, stream_arn: str) -> str | None:
    """The view of a stream, also of one that was disabled, of which DescribeTable does not tell it.

    None if the stream is gone, a day after that, or may not be described, which a reader will say.
    """
    try:
        body = client.call("DescribeStream", {"StreamArn": stream_arn})
    except AwsError as e:
        error = failure(e, "DescribeStream", stream_arn)
        if isinstance(error, TransientError):
            raise error from e
        return None
    return decoded(body, _DescribeStream, "DescribeStream").StreamDescription.StreamViewType


class NotListed(TransientError):
    """DescribeTable does not find the table."""


def check_same(name: str, identity: str, before: str, *, answers: bool = False) -> Generator[Call, bytes, None]:
    """Check that the table still is the one with this ``identity``; what was read of its items by then was its own.

    ``before``: what has not been done yet, for messages. GapFound if another table has its name by now, ConfigError if
    none has. ``answers``: it has just returned items; then a DescribeTable that does not find it proves nothing, as it
    is eventually consistent: NotListed, and the next request for items will tell.
    """
    try:
        body = yield Call("DescribeTable", {"TableName": name})
    except AwsError as e:
        if e.code != "ResourceNotFoundException":
            raise failure(e, "DescribeTable", name) from e
        if answers:
            raise NotListed(f"DescribeTable on {name}: {e}") from e
        raise ConfigError(
            f"source.table: the table {name} was deleted before {before}. Nothing was removed from the target. If the "
            "table is created again, copy it with: replicator resync CONFIG"
        ) from e
    if decoded(body, _DescribeTable, "DescribeTable").Table.identity != identity:
        raise GapFound(f"the table {name} was deleted and created again before {before}")


def _source_table(table: _Table, requested: str, server: str) -> SourceTable:
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
        identity=table.identity,
        server=server,
        replicas=tuple(replica.RegionName or "another region" for replica in table.Replicas or ()),
        requested=requested,
    )
