"""Existing tables: their descriptions, reasons why documents cannot be stored in them, and permission probes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from connectors.dynamodb.documents import Layout
from replicator.aws.client import Client
from replicator.aws.errors import AwsError, decoded, failure
from replicator.errors import TransientError
from replicator.key import KeyAttribute, KeySchema
from replicator.source.table import SourceTable
from replicator.target.contract import NO_STATEMENT


@dataclass(frozen=True, slots=True)
class Described:
    """A table's description. ``identity`` differs from that of a later table with the same name."""

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
    """Call DynamoDB; the response's JSON object. ReplicatorError, by what to do about it."""
    try:
        return decoded(client.call(operation, request), dict[str, Any], operation)
    except AwsError as e:
        raise failure(e, operation, resource, place="target") from e


def describe(client: Client, name: str) -> Described | None:
    """The table's description, None if there is no such table."""
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


def create(client: Client, request: Mapping[str, Any]) -> Described | None:
    """Create a table. What it is now; None if there is one of that name by now, as if another run creates it."""
    name = str(request["TableName"])
    try:
        body = client.call("CreateTable", request)
    except AwsError as e:
        if e.code == "ResourceInUseException":
            return None
        raise failure(e, "CreateTable", name, place="target") from e
    try:
        return _described(orjson.loads(body)["TableDescription"])
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        raise TransientError(f"the response to CreateTable is not DynamoDB JSON: {e}") from e


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
    """The table's id, or its creation time where the endpoint returns no ids (DynamoDB Local)."""
    return str(table.get("TableId") or float(table["CreationDateTime"]))


def chooses_ids(layout: Layout) -> str:
    """Why ``loops`` cannot be, whether there is a table or not."""
    return (
        f"the hook chooses document ids (@documents), so the target's table {layout.name} has another key than the "
        "source, and no opposite pipeline can copy it back; remove loops from the config, or use a hook that "
        "returns one document per item"
    )


def gone(name: str) -> str:
    """That a run cannot go on without the table."""
    return f"the target's table {name} no longer exists; it did when the run started"


def replaced(table: Described) -> str:
    """That what a run has stored may not be there."""
    return (
        f"{table.arn} is not the table that this run has written to: it was deleted and created again, or restored "
        "from a backup, while the run was up"
    )


def mismatches(layout: Layout, table: Described, source: SourceTable | None) -> Iterator[str]:
    """Reasons why documents cannot be stored in the table, a sentence each."""
    if source is not None and table.arn == source.arn and table.identity == source.identity:
        yield (
            f"the target's table {layout.name} is the source itself ({table.arn}): every copied item would be a change "
            "to copy again. Name another table, region or account under target"
        )
        return
    if source is not None and _is_replica(table, source):
        yield (
            f"the target's table {layout.name} and the source are replicas of one global table, which DynamoDB keeps "
            "in sync already; name another table"
        )
    if table.keys != layout.keys:
        yield (
            f"the target's table {layout.name} has the key {_keys(table.keys)}, but the documents' key is "
            f"{_keys(layout.keys)}. Name a table with that key, or let replicator create one (create: true)"
        )
    for name in layout.ours:
        if name in table.keys.names or name in table.index_keys:
            yield (
                f"{name} is a key attribute of the target's table {layout.name} or of one of its indexes, so "
                "replicator cannot store its own values in it; choose another name (target.version_attribute, "
                "target.deleted_attribute, target.mark_attribute)"
            )


def _is_replica(table: Described, source: SourceTable) -> bool:
    """Whether both are in the same account under the same name, and the table has a replica in the source's region."""
    own, other = table.arn.split(":"), source.arn.split(":")
    return len(other) == 6 and own[4:] == other[4:] and other[3] in table.replicas


def _keys(keys: KeySchema) -> str:
    return " and ".join(f"{a.name} ({a.kind})" for a in keys.attributes)


def notes(layout: Layout, table: Described) -> Iterator[str]:
    """What users should know about an existing table, though it prevents nothing."""
    if table.streaming and layout.mark is None:
        yield (
            f"{NO_STATEMENT}: the target's table {layout.name} has a stream. Its readers see each copied item as a "
            "change; if one of them writes back to the source, items circulate forever (two opposite pipelines need "
            "loops: true)"
        )
    if table.replicas:
        yield (
            f"{NO_STATEMENT}: the target's table {layout.name} has replicas in {', '.join(table.replicas)}. Nothing "
            "else may write to those: there the last writer wins, whatever the version"
        )


_ANY = {"S": "-", "N": "0", "B": "AA=="}


def try_put(client: Client, table: Described) -> None:
    """NotPermitted if PutItem is not allowed. Changes nothing."""
    _attempt(client, "PutItem", table, {"Item": _any_key(table)})


def try_delete(client: Client, table: Described) -> None:
    """NotPermitted if DeleteItem is not allowed. Changes nothing."""
    _attempt(client, "DeleteItem", table, {"Key": _any_key(table)})


def _attempt(client: Client, operation: str, table: Described, subject: dict[str, Any]) -> None:
    never = {  # contradicts itself, so nothing is ever written
        "ConditionExpression": "attribute_exists(#k) AND attribute_not_exists(#k)",
        "ExpressionAttributeNames": {"#k": table.keys.names[0]},
    }
    try:
        client.call(operation, {"TableName": table.name, **subject, **never})
    except AwsError as e:
        if e.code != "ConditionalCheckFailedException":
            raise failure(e, operation, table.arn, place="target") from e


def _any_key(table: Described) -> dict[str, dict[str, str]]:
    return {a.name: {a.kind: _ANY[a.kind]} for a in table.keys.attributes}
