"""Writes that are tried before a run and never happen: their conditions contradict themselves."""

from __future__ import annotations

from typing import Any

from connectors.dynamodb.catalog import Described
from replicator.aws.client import Wire
from replicator.aws.errors import WireError, failure

_ANY = {"S": "-", "N": "0", "B": "AA=="}


def put(wire: Wire, table: Described) -> None:
    """NotPermitted if nothing may be put there."""
    _attempt(wire, "PutItem", table, {"Item": _key(table)})


def delete(wire: Wire, table: Described) -> None:
    """NotPermitted if nothing may be deleted there."""
    _attempt(wire, "DeleteItem", table, {"Key": _key(table)})


def _attempt(wire: Wire, operation: str, table: Described, what: dict[str, Any]) -> None:
    never = {
        "ConditionExpression": "attribute_exists(#k) AND attribute_not_exists(#k)",
        "ExpressionAttributeNames": {"#k": table.keys.names[0]},
    }
    try:
        wire.call(operation, {"TableName": table.name, **what, **never})
    except WireError as e:
        if e.code != "ConditionalCheckFailedException":
            raise failure(e, operation, table.arn, place="target") from e


def _key(table: Described) -> dict[str, dict[str, str]]:
    return {a.name: {a.kind: _ANY[a.kind]} for a in table.keys.attributes}
