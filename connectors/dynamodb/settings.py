"""Settings of tables that a migration should compare: what differs between the source and a table of the target."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from connectors.dynamodb.catalog import ask
from connectors.dynamodb.plan import tags_of
from replicator.aws.client import Client
from replicator.errors import ReplicatorError

Setting = Callable[[Client, str, Mapping[str, Any]], "str | Tags"]
"""A setting, of a client's table by its name and description. Its ``str`` is shown."""


@dataclass(frozen=True, slots=True)
class Tags:
    """A table's tags. Only their keys are shown: values may be secret or personal."""

    values: Mapping[str, str] = field(repr=False)

    def __str__(self) -> str:
        return ", ".join(sorted(self.values)) or "none"


def differing(source: tuple[Client, str], target: tuple[Client, str]) -> Iterator[str]:
    """A line for each setting that differs, or cannot be compared."""
    try:
        described = [
            ask(client, "DescribeTable", {"TableName": name}, name)["Table"] for client, name in (source, target)
        ]
    except ReplicatorError as e:
        yield f"the settings of {target[1]} cannot be compared: {e}"
        return
    for label, setting in _SETTINGS.items():
        try:
            values = [setting(*at, table) for at, table in zip((source, target), described, strict=True)]
        except ReplicatorError as e:
            yield f"{label} of {target[1]} cannot be compared: {e}"
            continue
        if values[0] == values[1]:
            continue
        if str(values[0]) == str(values[1]):
            yield f"{label} of {target[1]}: {values[1]}, but with other values in the source"
        else:
            yield f"{label} of {target[1]}: {values[1]}, but in the source: {values[0]}"


def _keys(client: Client, name: str, table: Mapping[str, Any]) -> str:
    return _schema(table)


def _schema(of: Mapping[str, Any]) -> str:
    keys = sorted(of["KeySchema"], key=lambda key: str(key["KeyType"]))
    return ", ".join(f"{key['AttributeName']} ({key['KeyType']})" for key in keys)


def _indexes(client: Client, name: str, table: Mapping[str, Any]) -> str:
    found = [*table.get("GlobalSecondaryIndexes", ()), *table.get("LocalSecondaryIndexes", ())]
    lines = [f"{i['IndexName']} [{_schema(i)}; {_projection(i['Projection'])}]" for i in found]
    return "; ".join(sorted(lines)) or "none"


def _projection(projection: Mapping[str, Any]) -> str:
    names = projection.get("NonKeyAttributes")
    return str(projection.get("ProjectionType", "ALL")) + (f" {', '.join(sorted(names))}" if names else "")


def _time_to_live(client: Client, name: str, table: Mapping[str, Any]) -> str:
    ttl = ask(client, "DescribeTimeToLive", {"TableName": name}, name)["TimeToLiveDescription"]
    enabled = ttl.get("TimeToLiveStatus") in ("ENABLED", "ENABLING")
    return f"by {ttl.get('AttributeName')}" if enabled else "off"


def _stream(client: Client, name: str, table: Mapping[str, Any]) -> str:
    stream = table.get("StreamSpecification", {})
    return str(stream.get("StreamViewType")) if stream.get("StreamEnabled") else "off"


def _billing(client: Client, name: str, table: Mapping[str, Any]) -> str:
    if table.get("BillingModeSummary", {}).get("BillingMode") == "PAY_PER_REQUEST":
        return "on demand"
    units = table.get("ProvisionedThroughput", {})
    return f"provisioned, {units.get('ReadCapacityUnits', 0)} read and {units.get('WriteCapacityUnits', 0)} write units"


def _class(client: Client, name: str, table: Mapping[str, Any]) -> str:
    return str(table.get("TableClassSummary", {}).get("TableClass", "STANDARD"))


def _tags(client: Client, name: str, table: Mapping[str, Any]) -> Tags:
    return Tags({tag["Key"]: tag["Value"] for tag in tags_of(client, table["TableArn"])})


def _recovery(client: Client, name: str, table: Mapping[str, Any]) -> str:
    found = ask(client, "DescribeContinuousBackups", {"TableName": name}, name)["ContinuousBackupsDescription"]
    enabled = found.get("PointInTimeRecoveryDescription", {}).get("PointInTimeRecoveryStatus") == "ENABLED"
    return "on" if enabled else "off"


_SETTINGS: Mapping[str, Setting] = {
    "key": _keys,
    "indexes": _indexes,
    "time to live": _time_to_live,
    "stream": _stream,
    "capacity": _billing,
    "table class": _class,
    "tags": _tags,
    "point-in-time recovery": _recovery,
}
