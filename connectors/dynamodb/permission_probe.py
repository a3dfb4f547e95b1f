"""Writes that are tried before a run and never happen: their conditions contradict themselves."""

from __future__ import annotations

from typing import Any

from connectors.dynamodb.catalog import Described
from replicator.aws.client import Client
from replicator.aws.errors import AwsError, failure

_ANY = {"S": "-", "N": "0", "B": "AA=="}


def put(client: Client, table: Described) -> None:
    """NotPermitted if nothing may be put there."""
    _attempt(client, "PutItem", table, {"Item": _key(table)})


def delete(client: Client, table: Described) -> None:
    """NotPermitted if nothing may be deleted there."""
    _attempt(client, "DeleteItem", table, {"Key": _key(table)})


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


def _key(table: Described) -> dict[str, dict[str, str]]:
    return {a.name: {a.kind: _ANY[a.kind]} for a in table.keys.attributes}
