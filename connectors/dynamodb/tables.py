"""The tables as a run needs them: compared with what is wanted, made where they are absent, and their epochs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import orjson

from connectors.dynamodb import catalog
from connectors.dynamodb.catalog import Described, ask
from connectors.dynamodb.connection import Account
from connectors.dynamodb.documents import Layout
from connectors.dynamodb.epochs import KEYS, Newest, Note, taken
from connectors.dynamodb.options import DynamoDBOptions
from replicator.aws.client import Client
from replicator.aws.errors import AwsError, failure
from replicator.errors import ConfigError, TransientError
from replicator.identity import Identity
from replicator.key import KeySchema
from replicator.options import aws_options, table_name
from replicator.source.table import SourceTable
from replicator.version import epoch_of

_SAMPLED = 50  # items


class Tables:
    """What is asked about tables of one account. ``source``: the table that they copy, once it is known.

    ``keep_expired``: they keep what expires there.
    """

    def __init__(self, account: Account, options: DynamoDBOptions, pipeline: str) -> None:
        self._account = account
        self._options = options
        self._pipeline = pipeline
        self._newest_of: dict[str, Newest] = {}  # by identity: a scan of a whole table is made once
        self.source: tuple[SourceTable, Client] | None = None
        self.keep_expired = False

    def problems(self, wanted: Mapping[str, Layout], epoch: int = 0) -> list[str]:
        """Every reason why documents cannot be stored, by a run of ``epoch`` where that is known."""
        if wrong := list(_wrong_names(wanted)):
            return wrong
        found = {name: self._described(name) for name in wanted}
        return [text for name, layout in wanted.items() for text in self._problems(layout, found[name], epoch)]

    def plan(self, wanted: Mapping[str, Layout]) -> list[str]:
        found: list[str] = []
        options = aws_options(self._options)
        for name, layout in wanted.items():
            table = self._described(name)
            found += (
                self._plan(layout).commands(aws_options(self._options))
                if table is None
                else catalog.notes(layout, table)
            )
        if self._account.epochs.found() is None:
            found += Plan(self._account.epochs.request).commands(options)
        return found

    def epoch(self, wanted: Mapping[str, Layout]) -> int | None:
        """The highest epoch that is noted, 0 without one, None if a table is absent.

        ConfigError where another pipeline noted it.
        """
        described = {layout: self._described(name) for name, layout in wanted.items()}
        found = {layout: table for layout, table in described.items() if table is not None}
        if others := [text for of, table in found.items() for text in self._others(of, self._noted(table))]:
            raise ConfigError(*others)
        if len(found) < len(described):
            return None
        return max((self._epoch(layout, table) for layout, table in found.items()), default=0)

    def identities(self, wanted: Mapping[str, Layout]) -> dict[str, Identity]:
        """Each table by its ARN, and by its id, which a table that is made anew (or restored) does not have.

        Where a table is absent, that of the epochs tells the account; without either, it is another place.
        """
        return {name: self._identity(name) for name in wanted}

    def _identity(self, name: str) -> Identity:
        table = self._described(name)
        if table is not None:
            return Identity(table.arn, table.identity)
        own = self._account.epochs.found()
        if own is None:
            place = f"the table {name} at {self._account.client.server}, where nothing of this pipeline is"
            return Identity(place, known=False)
        return Identity(f"{own.arn.rpartition('/')[0]}/{name}")

    def make(self, wanted: Mapping[str, Layout], epoch: int) -> None:
        """Make what is absent, and note the epoch. TransientError while a table is being made."""
        epochs = self._account.epochs
        self._ready(epochs.name, epochs.found() or self._made(Plan(epochs.request)))
        for name, layout in wanted.items():
            plan = self._plan(layout) if self._options.create else None
            table = self._described(name)
            if table is None and plan is not None:
                table = self._made(plan)
            self._ready(name, table)
            assert table is not None
            if plan is not None and plan.ttl is not None and epochs.read(table) is None:
                self._expiring(name, plan.ttl)
            epochs.write(table, Note(self._pipeline, epoch))

    def try_writes(self, wanted: Iterable[str]) -> None:
        """Each call that a run makes on tables that are there, under conditions that never hold; NotPermitted if one
        is not allowed. What makes tables cannot be tried without making one."""
        client, epochs = self._account.client, self._account.epochs
        for table in filter(None, map(self._described, wanted)):
            catalog.ask(client, "Scan", {"TableName": table.name, "Limit": 1}, table.arn)
            catalog.try_put(client, table)
            catalog.try_delete(client, table)
        if (own := epochs.found()) is not None:
            catalog.try_put(client, own)

    def _described(self, name: str) -> Described | None:
        return catalog.describe(self._account.client, name)

    def _noted(self, table: Described) -> Note | None:
        return self._account.epochs.read(table) if self._account.epochs.found() is not None else None

    def empty(self, wanted: Mapping[str, Layout]) -> list[str]:
        """The tables that are there without an item. A tombstone is one, so a late delete leaves none empty."""
        return [name for name in wanted if self._described(name) is not None and self._is_empty(name)]

    def _is_empty(self, name: str) -> bool:
        request: dict[str, Any] = {"TableName": name, "Limit": 1, "ConsistentRead": True}
        while True:
            page = catalog.ask(self._account.client, "Scan", request, name)
            if page["Items"] or "LastEvaluatedKey" not in page:
                return not page["Items"]
            request["ExclusiveStartKey"] = page["LastEvaluatedKey"]

    def _epoch(self, layout: Layout, table: Described) -> int:
        """As noted; where the note is lost, or was of another table, as the versions of all items show."""
        note = self._noted(table)
        if note is not None:
            return note.epoch
        if layout.pristine:
            return 0
        return self._newest_of.setdefault(table.identity, Newest(self._account.client, layout))()

    def _sample(self, layout: Layout) -> list[int]:
        """The epochs of some items, 0 for those without a version."""
        request = {"TableName": layout.name, "Limit": _SAMPLED, "ConsistentRead": True}
        items = catalog.ask(self._account.client, "Scan", request, layout.name)["Items"]
        versions = [item.get(layout.version, {}).get("N", "0") for item in items]
        return [epoch_of(int(digits)) if digits.isdecimal() else 0 for digits in versions]

    def _plan(self, layout: Layout) -> Plan:
        planned = table_plan(layout, self.source, tags=self._options.tags)
        return replace(planned, ttl=None) if self.keep_expired else planned

    def _problems(self, layout: Layout, found: Described | None, epoch: int) -> Iterator[str]:
        if found is None:
            if not self._options.create:
                commands = "\n".join(self._plan(layout).commands(aws_options(self._options)))
                yield (
                    f"the target has no table {layout.name}; let replicator make it (create: true), or make it "
                    f"yourself:\n{commands}"
                )
            return
        wrong = list(catalog.mismatches(layout, found, self.source[0] if self.source is not None else None))
        note = self._noted(found)
        yield from wrong or [*self._others(layout, note), *self._contents(layout, note, epoch), *self._expiry(layout)]

    def _others(self, layout: Layout, note: Note | None) -> Iterator[str]:
        if note is not None and note.pipeline != self._pipeline:
            yield taken(layout.name, note, self._options.epochs_table)

    def _expiry(self, layout: Layout) -> Iterator[str]:
        found = self._time_to_live(layout.name) if self.keep_expired else {}
        if found.get("TimeToLiveStatus") in ("ENABLED", "ENABLING"):
            yield (
                f"the target's table {layout.name} has a time to live, so it removes the items that ttl_deletes: "
                "ignore keeps. Turn it off: aws dynamodb update-time-to-live --table-name "
                f"{layout.name}{aws_options(self._options)} --time-to-live-specification "
                f"Enabled=false,AttributeName={found.get('AttributeName', '')}"
            )

    def _contents(self, layout: Layout, note: Note | None, epoch: int) -> Iterator[str]:
        """Why what is in the table already is in the way."""
        begins = note is None or note.epoch < epoch
        if not begins or self._options.adopt or (note is not None and not layout.pristine):
            return
        if not self._sample(layout):
            return
        if layout.pristine:
            yield (
                f"the target's table {layout.name} is not empty, and a pristine copy begins with an empty table: "
                "without versions nobody could tell which items are left over. Delete the table and make it again, "
                "or leave pristine out"
            )
        else:
            yield (
                f"the target's table {layout.name} holds items, and nothing says that this copy wrote them. Name an "
                "empty table, or take it over (adopt: true): items of the source replace those with the same key, and "
                "others stay"
            )

    def _made(self, plan: Plan) -> Described | None:
        name = str(plan.create["TableName"])
        try:
            self._account.client.call("CreateTable", plan.create)
        except AwsError as e:
            if e.code != "ResourceInUseException":  # another run makes it just now
                raise failure(e, "CreateTable", name, place="target") from e
        return self._described(name)

    def _ready(self, name: str, table: Described | None) -> None:
        if table is None or not table.ready:
            raise TransientError(f"the target's table {name} is being made")
        if name == self._options.epochs_table and table.keys != KEYS:
            raise ConfigError(
                f"the table {name} is not what replicator keeps epochs in: its key is to be table (S). "
                "Name another one (target.epochs_table)"
            )

    def _expiring(self, name: str, attribute: str) -> None:
        """Let items expire as they do in the source; nothing if they do so already."""
        if self._time_to_live(name).get("TimeToLiveStatus") == "DISABLED":
            wanted = {"Enabled": True, "AttributeName": attribute}
            request = {"TableName": name, "TimeToLiveSpecification": wanted}
            catalog.ask(self._account.client, "UpdateTimeToLive", request, name)

    def _time_to_live(self, name: str) -> Mapping[str, Any]:
        answer = catalog.ask(self._account.client, "DescribeTimeToLive", {"TableName": name}, name)
        found: Mapping[str, Any] = answer["TimeToLiveDescription"]
        return found


def _wrong_names(names: Iterable[str]) -> Iterator[str]:
    for name in names:
        try:
            table_name(name)
        except ValueError as e:
            yield f"target.table: {name!r} {e}"


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


def table_plan(layout: Layout, mirrored: tuple[SourceTable, Client] | None, *, tags: bool) -> Plan:
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
