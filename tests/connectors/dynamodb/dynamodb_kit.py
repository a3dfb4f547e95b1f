"""A DynamoDB target, read with a plain boto3 client, and failures on the way to it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any
from urllib.parse import urlsplit

import boto3

from replicator.batch import DocumentId
from replicator.target.contract import Table
from replicator.testing.contract import as_json

VERSION, DELETED = "_replicator_version", "_replicator_deleted"
EPOCHS = "replicator-epochs"


def client(endpoint: str) -> Any:
    keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test"}
    return boto3.client("dynamodb", region_name="us-east-1", endpoint_url=endpoint, **keys)


def options(endpoint: str, **more: Any) -> dict[str, Any]:
    """The target's part of a config."""
    return {"type": "dynamodb", "region": "us-east-1", "endpoint_url": endpoint, "create": True, **more}


def port(endpoint: str) -> int:
    number = urlsplit(endpoint).port
    assert number is not None
    return number


def items(endpoint: str, name: str) -> list[dict[str, Any]]:
    """All items as boto3 gives them: typed, numbers as digits, binary as bytes."""
    pages = client(endpoint).get_paginator("scan").paginate(TableName=name, ConsistentRead=True)
    return [item for page in pages for item in page["Items"]]


def documents(endpoint: str, table: Table) -> Mapping[DocumentId, Any]:
    """What readers see: the items that are not marked as deleted, without our attributes."""
    return dict(_document(item, table) for item in items(endpoint, table.name) if DELETED not in item)


def _document(item: dict[str, Any], table: Table) -> tuple[DocumentId, Any]:
    id = tuple(str(item[a.name][a.kind]) for a in table.keys.attributes)
    hidden = {VERSION, "_item", "_id"}
    return id, {name: as_json(plain(value)) for name, value in item.items() if name not in hidden}


def plain(attribute: Mapping[str, Any]) -> Any:
    """The Python value; boto3's own deserializer stumbles over some of DynamoDB's numbers."""
    ((kind, inner),) = attribute.items()
    match kind:
        case "N":
            return Decimal(inner)
        case "NULL":
            return None
        case "M":
            return {name: plain(value) for name, value in inner.items()}
        case "L":
            return [plain(value) for value in inner]
        case "NS":
            return {Decimal(digits) for digits in inner}
        case "SS" | "BS":
            return set(inner)
    return inner


def emptied(endpoint: str) -> None:
    """No tables are left."""
    api = client(endpoint)
    for name in api.list_tables()["TableNames"]:
        api.delete_table(TableName=name)


def made_anew(endpoint: str, table: Table) -> None:
    """The table is deleted and recreated, with the same key."""
    api = client(endpoint)
    was = api.describe_table(TableName=table.name)["Table"]
    api.delete_table(TableName=table.name)
    wanted = {name: was[name] for name in ("TableName", "KeySchema", "AttributeDefinitions")}
    api.create_table(**wanted, BillingMode="PAY_PER_REQUEST")


def late_after(requests: int) -> Callable[[float, float], bool]:
    """Replaces ``in_doubt.is_late``: a batch is late after so many requests since it started or resumed."""
    seen: Counter[float] = Counter()

    def late(began: float, now: float) -> bool:
        seen[began] += 1
        return seen[began] > requests

    return late
