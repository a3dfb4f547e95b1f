"""Making an absent table: from the source's own description, or from nothing but its key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from connectors.dynamodb.catalog import ask
from connectors.dynamodb.layout import Layout
from replicator.aws.client import Client
from replicator.key import KeySchema
from replicator.source.table import SourceTable

_INDEX = ("IndexName", "KeySchema", "Projection")
_UNITS = ("ReadCapacityUnits", "WriteCapacityUnits")


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be made: the request that does it, and the attribute that items expire by, if any."""

    create: Mapping[str, Any] = field(default_factory=dict)
    ttl: str | None = None

    def commands(self, options: str) -> list[str]:
        """As a person would type it. ``options``: see ``aws_options``."""
        name = self.create["TableName"]
        found = [f"aws dynamodb create-table{options} --cli-input-json '{orjson.dumps(self.create).decode()}'"]
        if self.ttl is not None:
            found.append(
                f"aws dynamodb update-time-to-live --table-name {name}{options} "
                f"--time-to-live-specification Enabled=true,AttributeName={self.ttl}"
            )
        return found


def plan(layout: Layout, mirrored: tuple[SourceTable, Client] | None, *, tags: bool) -> Plan:
    """The table for ``layout``: like the source where documents are filed under its key, else with only a key."""
    if mirrored is None or layout.keys != mirrored[0].keys:
        return Plan(_bare(layout.name, layout.keys))
    source, client = mirrored
    table = ask(client, "DescribeTable", {"TableName": source.name}, source.name)["Table"]
    ttl = ask(client, "DescribeTimeToLive", {"TableName": source.name}, source.name)["TimeToLiveDescription"]
    request = _alike(layout.name, table)
    if tags and (found := _tags(client, source.arn)):
        request["Tags"] = found
    enabled = ttl.get("TimeToLiveStatus") in ("ENABLED", "ENABLING")
    return Plan(request, ttl.get("AttributeName") if enabled else None)


def _bare(name: str, keys: KeySchema) -> dict[str, Any]:
    return {
        "TableName": name,
        "AttributeDefinitions": [{"AttributeName": a.name, "AttributeType": a.kind} for a in keys.attributes],
        "KeySchema": [
            {"AttributeName": name, "KeyType": kind} for name, kind in zip(keys.names, ("HASH", "RANGE"), strict=False)
        ],
        "BillingMode": "PAY_PER_REQUEST",
    }


def _alike(name: str, table: Mapping[str, Any]) -> dict[str, Any]:
    """A request for a table with the keys, indexes and capacity of the one that is described."""
    on_demand = table.get("BillingModeSummary", {}).get("BillingMode") == "PAY_PER_REQUEST"
    found: dict[str, Any] = {
        "TableName": name,
        "AttributeDefinitions": table["AttributeDefinitions"],
        "KeySchema": table["KeySchema"],
        "BillingMode": "PAY_PER_REQUEST" if on_demand else "PROVISIONED",
    }
    if not on_demand:
        found["ProvisionedThroughput"] = _units(table)
    if local := table.get("LocalSecondaryIndexes"):
        found["LocalSecondaryIndexes"] = [_index(index) for index in local]
    if everywhere := table.get("GlobalSecondaryIndexes"):
        found["GlobalSecondaryIndexes"] = [
            _index(index) | ({} if on_demand else {"ProvisionedThroughput": _units(index)}) for index in everywhere
        ]
    if (kind := table.get("TableClassSummary", {}).get("TableClass")) is not None:
        found["TableClass"] = kind
    return found


def _index(index: Mapping[str, Any]) -> dict[str, Any]:
    return {name: index[name] for name in _INDEX}


def _units(described: Mapping[str, Any]) -> dict[str, int]:
    return {name: described["ProvisionedThroughput"][name] for name in _UNITS}


def _tags(client: Client, arn: str) -> list[dict[str, str]]:
    """The table's tags, without those that AWS itself keeps."""
    found: list[dict[str, str]] = []
    after: dict[str, str] = {}
    while True:
        page = ask(client, "ListTagsOfResource", {"ResourceArn": arn, **after}, arn)
        found += page.get("Tags", ())
        if not page.get("NextToken"):
            return [tag for tag in found if not tag["Key"].startswith("aws:")]
        after = {"NextToken": page["NextToken"]}
