"""The target's tables as DynamoDB describes them, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import orjson

from connectors.dynamodb.documents import Layout
from replicator.aws.client import Client
from replicator.aws.errors import AwsError, decoded, failure
from replicator.errors import TransientError
from replicator.key import KeyAttribute, KeySchema
from replicator.source.table import SourceTable


@dataclass(frozen=True, slots=True)
class Described:
    """A table as it is. ``identity`` tells it from a later one of the same name."""

    name: str
    arn: str
    identity: str
    ready: bool
    keys: KeySchema
    index_keys: frozenset[str]
    streaming: bool
    replicas: tuple[str, ...]
    ttl: str | None = None


def ask(client: Client, operation: str, request: dict[str, Any], resource: str) -> Any:
    """The JSON object of an answer; errors by what to do about them."""
    try:
        return decoded(client.call(operation, request), dict[str, Any], operation)
    except AwsError as e:
        raise failure(e, operation, resource, place="target") from e


def describe(client: Client, name: str) -> Described | None:
    """The table as it is now, None if there is none."""
    try:
        body = client.call("DescribeTable", {"TableName": name})
    except AwsError as e:
        if e.code == "ResourceNotFoundException":
            return None
        raise failure(e, "DescribeTable", name, place="target") from e
    try:
        return _described(orjson.loads(body)["Table"])
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        raise TransientError(f"the response to DescribeTable is not DynamoDB JSON: {e}") from e


def _described(table: dict[str, Any]) -> Described:
    kinds = {a["AttributeName"]: a["AttributeType"] for a in table["AttributeDefinitions"]}
    ordered = sorted(table["KeySchema"], key=lambda a: a["KeyType"] != "HASH")
    return Described(
        name=table["TableName"],
        arn=table["TableArn"],
        identity=identity(table),
        ready=table["TableStatus"] in ("ACTIVE", "UPDATING"),
        keys=KeySchema(tuple(KeyAttribute(a["AttributeName"], kinds[a["AttributeName"]]) for a in ordered)),
        index_keys=frozenset(kinds) - {a["AttributeName"] for a in ordered},
        streaming=bool(table.get("StreamSpecification", {}).get("StreamEnabled")),
        replicas=tuple(r["RegionName"] for r in table.get("Replicas", ())),
    )


def identity(table: dict[str, Any]) -> str:
    """What two tables never share: their id, or when they were made where the endpoint gives none."""
    return str(table.get("TableId") or float(table["CreationDateTime"]))


def mismatches(layout: Layout, found: Described, source: SourceTable | None) -> Iterator[str]:
    """Every reason why documents cannot be stored there."""
    if source is not None and found.arn == source.arn and found.identity == source.identity:
        yield (
            f"the target's table {layout.name} is the source's own ({found.arn}): every copied item would be a change "
            "to copy again. Name another table, region or account under target"
        )
        return
    if source is not None and _replica_of(found, source):
        yield (
            f"the target's table {layout.name} is a replica of the source in one global table, which DynamoDB keeps "
            "alike by itself; name another table"
        )
    if found.keys != layout.keys:
        yield (
            f"the target's table {layout.name} has the key {_keys(found.keys)}, the documents are filed under "
            f"{_keys(layout.keys)}. Name a table with that key, or let replicator make one (create: true)"
        )
    for name in layout.ours:
        if name in found.keys.names or name in found.index_keys:
            yield (
                f"{name} is a key attribute of the target's table {layout.name} or of an index of it, so replicator "
                "cannot keep its own values there; choose another name (target.version_attribute, "
                "target.deleted_attribute)"
            )


def _replica_of(found: Described, source: SourceTable) -> bool:
    """Same account and name, and the source's region among those that the table is in."""
    here, there = found.arn.split(":"), source.arn.split(":")
    return len(there) == 6 and (here[4:], True) == (there[4:], there[3] in found.replicas)


def _keys(keys: KeySchema) -> str:
    return " and ".join(f"{a.name} ({a.kind})" for a in keys.attributes)


def notes(layout: Layout, found: Described) -> Iterator[str]:
    """What a person should know about an existing table, though it stops nothing."""
    if found.streaming:
        yield (
            f"nothing, but note: the target's table {layout.name} has a stream of its own. Whatever reads it sees each "
            "copied item as a change; if that brings items back to the source, they go round for ever"
        )
    if found.replicas:
        yield (
            f"nothing, but note: the target's table {layout.name} has replicas in {', '.join(found.replicas)}. Let "
            "nothing else write to them: the last writer wins there, whatever its version"
        )


_ANY = {"S": "-", "N": "0", "B": "AA=="}


def try_put(client: Client, table: Described) -> None:
    """NotPermitted if nothing may be put there."""
    _attempt(client, "PutItem", table, {"Item": _any_key(table)})


def try_delete(client: Client, table: Described) -> None:
    """NotPermitted if nothing may be deleted there."""
    _attempt(client, "DeleteItem", table, {"Key": _any_key(table)})


def _attempt(client: Client, operation: str, table: Described, what: dict[str, Any]) -> None:
    never = {
        "ConditionExpression": "attribute_exists(#k) AND attribute_not_exists(#k)",
        "ExpressionAttributeNames": {"#k": table.keys.names[0]},
    }
    try:
        client.call(operation, {"TableName": table.name, **what, **never})
    except AwsError as e:
        if e.code != "ConditionalCheckFailedException":
            raise failure(e, operation, table.arn, place="target") from e


def _any_key(table: Described) -> dict[str, dict[str, str]]:
    return {a.name: {a.kind: _ANY[a.kind]} for a in table.keys.attributes}
