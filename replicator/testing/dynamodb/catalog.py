"""Tables and streams by name: what CreateTable, DescribeTable, UpdateTable and DeleteTable do."""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import orjson

from replicator.key import KeyAttribute, KeySchema
from replicator.testing.dynamodb.refusals import in_use, invalid, unknown_stream, unknown_table
from replicator.testing.dynamodb.rows import Table
from replicator.testing.dynamodb.sequences import Numbering
from replicator.testing.dynamodb.streams import RETENTION, VIEWS, Origin, Stream

ACCOUNT = "123456789012"
RECOVERY = 35 * 86_400.0  # seconds for which a table can be recovered
DELAY = 300.0  # seconds until what was written can be recovered


class Catalog:
    """All tables and streams of one endpoint. ``shards``: how many a new stream has.

    ``enabling``: seconds until a new stream, other than a new table's, begins.
    """

    def __init__(
        self,
        now: Callable[[], float],
        random: random.Random,
        numbering: Numbering,
        shards: int,
        region: str,
        lingering: float = 0.0,
        account: str = ACCOUNT,
    ) -> None:
        self.now = now
        self.random = random
        self.shards = shards
        self.numbering = numbering
        self.region = region
        self.lingering = lingering
        self.enabling = 0.0
        self.account = account
        self.tables: dict[str, Table] = {}
        self._streams: dict[str, Stream] = {}
        self._labelled = 0.0  # label of the newest stream, in milliseconds; labels are unique

    def table(self, name: str) -> Table:
        """The table of that name or ARN."""
        name = name.rsplit("/", 1)[-1]
        if name not in self.tables:
            raise unknown_table(name)
        return self.tables[name]

    def streams(self) -> list[Stream]:
        """Streams that are enabled or were within the last 24 hours."""
        oldest = self.now() - RETENTION
        return [s for s in self._streams.values() if s.disabled is None or s.disabled >= oldest]

    def stream(self, arn: str) -> Stream:
        found = self._streams.get(arn)
        if found is None or found not in self.streams():
            raise unknown_stream(arn)
        return found

    def create_table(self, request: Mapping[str, Any]) -> bytes:
        name = request["TableName"]
        if name in self.tables:
            raise in_use(f"Table already exists: {name}")
        definition = {
            "AttributeDefinitions": request["AttributeDefinitions"],
            "TableName": name,
            "KeySchema": request["KeySchema"],
            "TableStatus": "ACTIVE",
            "CreationDateTime": self.now(),
            "TableArn": f"arn:aws:dynamodb:{self.region}:{self.account}:table/{name}",
            "TableId": str(uuid.UUID(int=self.random.getrandbits(128))),
            "BillingModeSummary": {"BillingMode": request.get("BillingMode", "PROVISIONED")},
        }
        definition |= _described(request)
        table = Table(name, _key_schema(request), definition, self.now)
        table.tags = {tag["Key"]: tag["Value"] for tag in request.get("Tags", ())}
        if request.get("StreamSpecification", {}).get("StreamEnabled"):
            self._enable(table, request["StreamSpecification"])
        self.tables[name] = table
        return orjson.dumps({"TableDescription": self._description(table)})

    def describe_table(self, request: Mapping[str, Any]) -> bytes:
        return orjson.dumps({"Table": self._description(self.table(request["TableName"]))})

    def list_tables(self, request: Mapping[str, Any]) -> bytes:
        return orjson.dumps({"TableNames": sorted(self.tables)})

    def update_table(self, request: Mapping[str, Any]) -> bytes:
        table = self.table(request["TableName"])
        wanted = request.get("StreamSpecification")
        if wanted is None:
            raise invalid("At least one of StreamSpecification is required")
        if wanted.get("StreamEnabled"):
            self._enable(table, wanted, self.enabling)
        else:
            self._disable(table)
        return orjson.dumps({"TableDescription": self._description(table)})

    def delete_table(self, request: Mapping[str, Any]) -> bytes:
        """Delete a table; its stream stays readable for 24 hours."""
        table = self.table(request["TableName"])
        if table.stream is not None:
            self._disable(table)
        del self.tables[table.name]
        return orjson.dumps({"TableDescription": self._description(table) | {"TableStatus": "DELETING"}})

    def tag_resource(self, request: Mapping[str, Any]) -> bytes:
        self.table(request["ResourceArn"]).tags |= {tag["Key"]: tag["Value"] for tag in request["Tags"]}
        return b"{}"

    def list_tags_of_resource(self, request: Mapping[str, Any]) -> bytes:
        tags = self.table(request["ResourceArn"]).tags
        return orjson.dumps({"Tags": [{"Key": key, "Value": value} for key, value in tags.items()]})

    def describe_time_to_live(self, request: Mapping[str, Any]) -> bytes:
        attribute = self.table(request["TableName"]).ttl_attribute
        found = {"TimeToLiveStatus": "DISABLED"}
        if attribute is not None:
            found = {"TimeToLiveStatus": "ENABLED", "AttributeName": attribute}
        return orjson.dumps({"TimeToLiveDescription": found})

    def update_time_to_live(self, request: Mapping[str, Any]) -> bytes:
        """Store the attribute. Items do not expire by themselves, only through ``DynamoDB.expire``."""
        wanted = request["TimeToLiveSpecification"]
        self.table(request["TableName"]).ttl_attribute = wanted["AttributeName"] if wanted["Enabled"] else None
        return orjson.dumps({"TimeToLiveSpecification": wanted})

    def describe_continuous_backups(self, request: Mapping[str, Any]) -> bytes:
        status = "ENABLED" if self.table(request["TableName"]).recoverable else "DISABLED"
        recovery: dict[str, Any] = {"PointInTimeRecoveryStatus": status}
        since = self.table(request["TableName"]).recoverable_since
        if since is not None:
            recovery |= {"EarliestRestorableDateTime": max(since, self.now() - RECOVERY)}
            recovery |= {"LatestRestorableDateTime": self.now() - DELAY}
        described = {"ContinuousBackupsStatus": "ENABLED", "PointInTimeRecoveryDescription": recovery}
        return orjson.dumps({"ContinuousBackupsDescription": described})

    def update_continuous_backups(self, request: Mapping[str, Any]) -> bytes:
        """Store the setting. Nothing can be recovered."""
        wanted = request["PointInTimeRecoverySpecification"]["PointInTimeRecoveryEnabled"]
        self.table(request["TableName"]).recover(enabled=wanted)
        return self.describe_continuous_backups(request)

    def _enable(self, table: Table, wanted: Mapping[str, Any], enabling: float = 0.0) -> None:
        view = wanted.get("StreamViewType")
        if view not in VIEWS:
            raise invalid(f"StreamViewType must be one of {', '.join(VIEWS)}, not {view}")
        if table.stream is not None:
            raise invalid(f"Table already has an enabled stream: TableName: {table.name}")
        self._labelled = max(self._labelled + 1, self.now() * 1000 // 1)
        label = datetime.fromtimestamp(self._labelled / 1000, UTC).isoformat(timespec="milliseconds").split("+")[0]
        arn = f"{table.definition['TableArn']}/stream/{label}"
        schema = tuple(table.definition["KeySchema"])
        origin = Origin(arn, label, table.name, view, self.region, schema)
        stream = Stream(origin, self.shards, self.numbering, self.now, self.random, self.lingering, enabling)
        self._streams[arn] = table.stream = table.latest_stream = stream

    def _disable(self, table: Table) -> None:
        if table.stream is None:
            raise invalid(f"Table does not have an enabled stream to disable: TableName: {table.name}")
        table.stream.disable()
        table.stream = None

    def _description(self, table: Table) -> dict[str, Any]:
        found = table.definition | {"ItemCount": len(table), "TableSizeBytes": table.size}
        if table.stream is not None:
            found["StreamSpecification"] = {"StreamEnabled": True, "StreamViewType": table.stream.origin.view}
        if table.latest_stream is not None:
            origin = table.latest_stream.origin
            found |= {"LatestStreamArn": origin.arn, "LatestStreamLabel": origin.label}
        return found


def _key_schema(request: Mapping[str, Any]) -> KeySchema:
    kinds = {a["AttributeName"]: a["AttributeType"] for a in request["AttributeDefinitions"]}
    ordered = sorted(request["KeySchema"], key=lambda a: str(a["KeyType"]))  # HASH, RANGE
    if not 1 <= len(ordered) <= 2 or any(a["AttributeName"] not in kinds for a in ordered):
        raise invalid("One or more parameter values were invalid: KeySchema and AttributeDefinitions do not fit")
    return KeySchema(tuple(KeyAttribute(a["AttributeName"], kinds[a["AttributeName"]]) for a in ordered))


def _described(request: Mapping[str, Any]) -> dict[str, Any]:
    """Indexes and capacity as DescribeTable shows them. Items are not looked up by index here."""
    found: dict[str, Any] = {}
    for kind in ("GlobalSecondaryIndexes", "LocalSecondaryIndexes"):
        if kind in request:
            found[kind] = [{**index, "IndexStatus": "ACTIVE", "ItemCount": 0} for index in request[kind]]
    if "ProvisionedThroughput" in request:
        found["ProvisionedThroughput"] = {**request["ProvisionedThroughput"], "NumberOfDecreasesToday": 0}
    if "TableClass" in request:
        found["TableClassSummary"] = {"TableClass": request["TableClass"]}
    return found
