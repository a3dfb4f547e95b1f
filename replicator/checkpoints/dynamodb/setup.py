"""Checks the checkpoint table and the permissions for it, and creates the table."""

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
_CREATE_TIMEOUT = 120.0  # seconds


class DynamodbOptions(Access):
    """A table with the partition key ``pipeline`` and the sort key ``entry``; several pipelines may share it."""

    table: TableName = Field(description="created by check --create; keys pipeline and entry, both strings")


def resource(options: DynamodbOptions) -> str:
    return f"arn:aws:dynamodb:{options.region or '*'}:*:table/{options.table}"


def problems(client: Client, options: DynamodbOptions, pipeline: str) -> list[str]:
    """Problems with the table or its permissions. Changes nothing: writes are tried with conditions that never hold."""
    table = CheckpointTable(client, options.table, resource(options), pipeline)
    described = _described(table, options.table)
    if described is None:
        return [
            f"checkpoints.table: there is no {resource(options)}; create it with: replicator check --create CONFIG, "
            f"or: {command(options)}"
        ]
    keys = {key["AttributeName"]: key["KeyType"] for key in described["KeySchema"]}
    types = {a["AttributeName"]: a["AttributeType"] for a in described["AttributeDefinitions"]}
    if keys != _KEYS or any(types[name] != "S" for name in _KEYS):
        actual = ", ".join(f"{name} ({role}, {types[name]})" for name, role in keys.items())
        return [
            f"checkpoints.table: {options.table} has the keys {actual}; they must be pipeline (HASH, S) and "
            "entry (RANGE, S). Use another table"
        ]
    _try_all(table, options.table, pipeline)
    return []


def _try_all(table: CheckpointTable, name: str, pipeline: str) -> None:
    """Try every operation a run needs. NotPermitted names the missing action."""
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
    return [f"{command(options)}\n# permissions a run needs: {actions} on {resource(options)}"]


def notes(client: Client, options: DynamodbOptions) -> list[str]:
    """What an existing table does not give, a sentence each."""
    table = CheckpointTable(client, options.table, resource(options), "")
    described = _described(table, options.table) or {}
    regions = ", ".join(str(replica["RegionName"]) for replica in described.get("Replicas", ()))
    if not regions:
        return []
    return [
        f"checkpoints.table: {options.table} is a global table, with replicas in {regions}. Conditions and "
        "transactions hold in one region only, and replication is item by item: run this pipeline against one region's "
        "table, ever. A run that is started with another replica may find a save in parts, and does not replace the "
        "run in this region. To start again elsewhere: replicator resync CONFIG --now"
    ]


def command(options: DynamodbOptions) -> str:
    """The AWS CLI command that creates the table."""
    return (
        f"aws dynamodb create-table --table-name {options.table}{aws_options(options)} --billing-mode PAY_PER_REQUEST "
        "--attribute-definitions AttributeName=pipeline,AttributeType=S AttributeName=entry,AttributeType=S "
        "--key-schema AttributeName=pipeline,KeyType=HASH AttributeName=entry,KeyType=RANGE"
    )


def create(client: Client, options: DynamodbOptions) -> None:
    """Create the table if it does not exist, and wait until it is active."""
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
        retry=retry_if_result(lambda table: table is None or table.get("TableStatus", "ACTIVE") != "ACTIVE"),
        stop=stop_after_delay(_CREATE_TIMEOUT),
        wait=wait_fixed(1),
    )
    ready(lambda: _described(table, options.table))


def _described(table: CheckpointTable, name: str) -> dict[str, Any] | None:
    try:
        description: dict[str, Any] = table.call("DescribeTable", {"TableName": name})["Table"]
    except ConfigError:  # it does not exist
        return None
    return description
