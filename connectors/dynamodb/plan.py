"""The table that a run creates for its documents: like the source, or with nothing but a key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from connectors.dynamodb.catalog import ask
from connectors.dynamodb.documents import Layout
from replicator.aws.client import Client
from replicator.key import KeySchema
from replicator.source.table import SourceTable

_INDEX = ("IndexName", "KeySchema", "Projection")
_UNITS = ("ReadCapacityUnits", "WriteCapacityUnits")


@dataclass(frozen=True, slots=True)
class Plan:
    """A table to create: the request for CreateTable, and the attribute for its time to live, if any."""

    create: Mapping[str, Any] = field(default_factory=dict)
    ttl: str | None = None

    def commands(self, options: str) -> list[str]:
        """Commands for the AWS CLI. ``options``: see ``aws_options``."""
        name = self.create["TableName"]
        commands = [f"aws dynamodb create-table{options} --cli-input-json '{orjson.dumps(self.create).decode()}'"]
        if self.ttl is not None:
            commands.append(
                f"aws dynamodb update-time-to-live --table-name {name}{options} "
                f"--time-to-live-specification Enabled=true,AttributeName={self.ttl}"
            )
        return commands


def table_plan(layout: Layout, mirrored: tuple[SourceTable, Client] | None, *, tags: bool) -> Plan:
    """The table for ``layout``: like the source if documents have the source's key, else with nothing but a key."""
    if mirrored is None or layout.keys != mirrored[0].keys:
        return Plan(_minimal(layout.name, layout.keys))
    source, client = mirrored
    table = ask(client, "DescribeTable", {"TableName": source.requested}, source.requested)["Table"]
    request = _like(layout.name, table)
    if tags and (copied := tags_of(client, source.arn)):
        request["Tags"] = copied
    return Plan(request, expiring_attribute(client, source))


def expiring_attribute(client: Client, source: SourceTable) -> str | None:
    """The attribute by which the source's items expire; None without a time to live."""
    ttl = ask(client, "DescribeTimeToLive", {"TableName": source.requested}, source.requested)["TimeToLiveDescription"]
    return enabled_attribute(ttl)


def enabled_attribute(ttl: Mapping[str, Any]) -> str | None:
    """The attribute by which items expire, of a description of a table's time to live; None without one."""
    return ttl.get("AttributeName") if ttl.get("TimeToLiveStatus") in ("ENABLED", "ENABLING") else None


def _minimal(name: str, keys: KeySchema) -> dict[str, Any]:
    return {
        "TableName": name,
        "AttributeDefinitions": [{"AttributeName": a.name, "AttributeType": a.kind} for a in keys.attributes],
        "KeySchema": [
            {"AttributeName": name, "KeyType": kind} for name, kind in zip(keys.names, ("HASH", "RANGE"), strict=False)
        ],
        "BillingMode": "PAY_PER_REQUEST",
    }


def _like(name: str, table: Mapping[str, Any]) -> dict[str, Any]:
    """A request for a table with the keys, indexes and capacity of the described one."""
    on_demand = table.get("BillingModeSummary", {}).get("BillingMode") == "PAY_PER_REQUEST"
    request: dict[str, Any] = {
        "TableName": name,
        "AttributeDefinitions": table["AttributeDefinitions"],
        "KeySchema": table["KeySchema"],
        "BillingMode": "PAY_PER_REQUEST" if on_demand else "PROVISIONED",
    }
    if not on_demand:
        request["ProvisionedThroughput"] = _units(table)
    if local := table.get("LocalSecondaryIndexes"):
        request["LocalSecondaryIndexes"] = [_index(index) for index in local]
    if secondary := table.get("GlobalSecondaryIndexes"):
        request["GlobalSecondaryIndexes"] = [
            _index(index) | ({} if on_demand else {"ProvisionedThroughput": _units(index)}) for index in secondary
        ]
    if (kind := table.get("TableClassSummary", {}).get("TableClass")) is not None:
        request["TableClass"] = kind
    return request


def _index(index: Mapping[str, Any]) -> dict[str, Any]:
    return {name: index[name] for name in _INDEX}


def _units(described: Mapping[str, Any]) -> dict[str, int]:
    return {name: described["ProvisionedThroughput"][name] for name in _UNITS}


def tags_of(client: Client, arn: str) -> list[dict[str, str]]:
    """The table's tags, without those that AWS manages."""
    tags: list[dict[str, str]] = []
    after: dict[str, str] = {}
    while True:
        page = ask(client, "ListTagsOfResource", {"ResourceArn": arn, **after}, arn)
        tags += page.get("Tags", ())
        if not page.get("NextToken"):
            return [tag for tag in tags if not tag["Key"].startswith("aws:")]
        after = {"NextToken": page["NextToken"]}
