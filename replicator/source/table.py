"""The source table and its stream, as DynamoDB describes them."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from replicator.aws.client import Client
from replicator.aws.errors import AwsError, decoded, failure
from replicator.errors import ConfigError, TransientError
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


class _DescribeTable(msgspec.Struct):
    Table: _Table


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
        return _source_table(decoded(body, _DescribeTable, "DescribeTable").Table, name, getattr(client, "server", ""))
    except (KeyError, ValueError) as e:  # a key attribute without a definition, or of a type that keys cannot have
        raise TransientError(f"the response to DescribeTable is not DynamoDB JSON: {e}") from e


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
        identity=table.TableId or str(table.CreationDateTime or 0.0),
        server=server,
        replicas=tuple(replica.RegionName or "another region" for replica in table.Replicas or ()),
        requested=requested,
    )
