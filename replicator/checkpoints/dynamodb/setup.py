"""The table itself: whether it is there, as it is to be, and whether everything is permitted; and how it is made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field
from tenacity import Retrying, retry_if_result, stop_after_delay, wait_fixed

from replicator.aws.client import Client
from replicator.checkpoints.dynamodb.table import Changed, CheckpointTable
from replicator.errors import ConfigError
from replicator.options import Access, TableName, aws_options

NEEDED = ("GetItem", "Query", "PutItem", "DeleteItem", "ConditionCheckItem", "DescribeTable")
_KEYS = {"pipeline": "HASH", "entry": "RANGE"}
_LONGEST = 120.0  # seconds that a new table may take


class DynamodbOptions(Access):
    """A table with the partition key ``pipeline`` and the sort key ``entry``; several pipelines may share it."""

    table: TableName = Field(description="created by check --create; keys pipeline and entry, both strings")


def resource(options: DynamodbOptions) -> str:
    return f"arn:aws:dynamodb:{options.region or '*'}:*:table/{options.table}"


def problems(client: Client, options: DynamodbOptions, pipeline: str) -> list[str]:
    """What is wrong with the table. Nothing is changed: writes are tried under conditions that never hold."""
    table = CheckpointTable(client, options.table, resource(options), pipeline)
    described = _described(table, options.table)
    if described is None:
        return [
            f"checkpoints.table: there is no {resource(options)}; make it with: replicator check --create CONFIG, or: "
            f"{command(options)}"
        ]
    found = {key["AttributeName"]: key["KeyType"] for key in described["KeySchema"]}
    kinds = {a["AttributeName"]: a["AttributeType"] for a in described["AttributeDefinitions"]}
    if found != _KEYS or any(kinds[name] != "S" for name in _KEYS):
        there = ", ".join(f"{name} ({kind}, {kinds[name]})" for name, kind in found.items())
        return [
            f"checkpoints.table: {options.table} has the keys {there}; they are to be pipeline (HASH, S) and "
            "entry (RANGE, S). Name another table"
        ]
    _try_all(table, options.table, pipeline)
    return []


def _try_all(table: CheckpointTable, name: str, pipeline: str) -> None:
    """NotPermitted names the action that is missing."""
    table.get("h")
    list(table.query("none"))
    key = {"pipeline": {"S": pipeline}, "entry": {"S": "h"}}
    never = {
        "ConditionExpression": "attribute_exists(#n) AND attribute_not_exists(#n)",
        "ExpressionAttributeNames": {"#n": "entry"},
    }
    check = {"ConditionCheck": {"TableName": name, "Key": key, **never}}
    attempts: Sequence[tuple[str, Mapping[str, Any]]] = (
        ("PutItem", {"TableName": name, "Item": key, **never}),
        ("DeleteItem", {"TableName": name, "Key": key, **never}),
        ("TransactWriteItems", {"TransactItems": [check]}),
    )
    for operation, request in attempts:
        try:
            table.call(operation, request)
        except Changed:
            continue
        raise AssertionError("a condition that cannot hold held")


def plan(client: Client, options: DynamodbOptions) -> list[str]:
    table = CheckpointTable(client, options.table, resource(options), "")
    if _described(table, options.table) is not None:
        return []
    actions = ", ".join(f"dynamodb:{action}" for action in NEEDED)
    return [f"{command(options)}\n# what a run needs: {actions} on {resource(options)}"]


def command(options: DynamodbOptions) -> str:
    """The command that makes the table."""
    return (
        f"aws dynamodb create-table --table-name {options.table}{aws_options(options)} --billing-mode PAY_PER_REQUEST "
        "--attribute-definitions AttributeName=pipeline,AttributeType=S AttributeName=entry,AttributeType=S "
        "--key-schema AttributeName=pipeline,KeyType=HASH AttributeName=entry,KeyType=RANGE"
    )


def create(client: Client, options: DynamodbOptions) -> None:
    """Make the table unless it is there, and wait until it can be used."""
    table = CheckpointTable(client, options.table, resource(options), "")
    if _described(table, options.table) is None:
        request = {
            "TableName": options.table,
            "AttributeDefinitions": [{"AttributeName": name, "AttributeType": "S"} for name in _KEYS],
            "KeySchema": [{"AttributeName": name, "KeyType": kind} for name, kind in _KEYS.items()],
            "BillingMode": "PAY_PER_REQUEST",
        }
        table.call("CreateTable", request)
    ready = Retrying(
        retry=retry_if_result(lambda found: found is None or found.get("TableStatus", "ACTIVE") != "ACTIVE"),
        stop=stop_after_delay(_LONGEST),
        wait=wait_fixed(1),
    )
    ready(lambda: _described(table, options.table))


def _described(table: CheckpointTable, name: str) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = table.call("DescribeTable", {"TableName": name})["Table"]
    except ConfigError:  # there is none
        return None
    return found
