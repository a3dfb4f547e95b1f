"""Which pipeline wrote to each table last, and in which epoch: an item for each in a small table of our own.

Not in the target table itself, where that would be one more item among the user's. Not as a tag: reads of tags are
eventually consistent and need permissions of their own, and DynamoDB Local has none.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from connectors.dynamodb.catalog import Described, ask, describe
from connectors.dynamodb.documents import Layout
from replicator.aws.client import Client
from replicator.aws.errors import AwsError, decoded, failure
from replicator.errors import ConfigError
from replicator.key import KeyAttribute, KeySchema
from replicator.source.table import SourceTable
from replicator.version import FIRST_EPOCH, epoch_of, version

KEYS = KeySchema((KeyAttribute("table", "S"),))


class ForeignTable(ConfigError):
    """The table that is named for notes is something else."""


@dataclass(frozen=True, slots=True)
class Note:
    """The ``pipeline`` that writes to a table, and its latest ``epoch`` there. ``stripped``: it has ended.

    ``source``: the ARN of the table that it copies, if it marks its writes (``loops``); empty in notes of earlier
    versions. ``attributes``: in which of an item's attributes its versions and the marks of tombstones are, none in a
    pristine table; None in notes of earlier versions. ``created``: the pipeline has created the table, and not set it
    up yet.
    """

    pipeline: str
    epoch: int
    stripped: bool = False
    source: str = ""
    attributes: tuple[str, ...] | None = None
    created: bool = False


@dataclass(frozen=True, slots=True)
class Epochs:
    """The table of notes; ``name`` is its name."""

    client: Client
    name: str

    @property
    def request(self) -> dict[str, Any]:
        """For CreateTable."""
        return {
            "TableName": self.name,
            "AttributeDefinitions": [{"AttributeName": "table", "AttributeType": "S"}],
            "KeySchema": [{"AttributeName": "table", "KeyType": "HASH"}],
            "BillingMode": "PAY_PER_REQUEST",
        }

    def described(self) -> Described | None:
        return describe(self.client, self.name)

    def read(self, table: Described) -> Note | None:
        """The note for a table; None without one, or if it is about an earlier table of the same name."""
        return _note(ask(self.client, "GetItem", self._request_of(table), self.name), table.identity)

    def may_be_of(self, table: Described, pipeline: str) -> bool:
        """Whether no note says that another pipeline wrote to this table, or to an earlier one of the same name."""
        item = ask(self.client, "GetItem", self._request_of(table), self.name).get("Item")
        return item is None or item["pipeline"]["S"] == pipeline

    def beside(self, source: SourceTable) -> Note | None:
        """The note for a pipeline's source, in the source's account; None also if there is no table of notes.

        ForeignTable if a table of that name is not replicator's. It is not described: that is one more permission.
        """
        account, of_another, _ = source.requested.rpartition("/")
        name = account + of_another + self.name
        try:
            body = self.client.call("GetItem", self._request_of(source) | {"TableName": name})
        except AwsError as e:
            if e.code == "ResourceNotFoundException":
                return None
            if e.code == "ValidationException":
                raise ForeignTable(foreign(self.name, "beside the source")) from e
            raise failure(e, "GetItem", name) from e
        return _note(decoded(body, dict[str, Any], "GetItem"), source.identity)

    def _request_of(self, table: Described | SourceTable) -> dict[str, Any]:
        return {"TableName": self.name, "Key": {"table": {"S": table.name}}, "ConsistentRead": True}

    def write(self, table: Described, note: Note) -> None:
        """Store a note, unless the same table has one with a later epoch, or with the same one and all it needs.

        ConfigError if another pipeline's note is there: two may have started on one table at the same moment. The same
        if the table was stripped: its own checkpoints say so, too, unless they were lost.
        """
        lacks = "attribute_not_exists(#o)" + (" OR attribute_not_exists(#a)" if note.source else "")
        request = {
            "TableName": self.name,
            "Item": {
                "table": {"S": table.name},
                "identity": {"S": table.identity},
                "pipeline": {"S": note.pipeline},
                "epoch": {"N": str(note.epoch)},
                **({"attributes": _list(note.attributes)} if note.attributes is not None else {}),
                **({"source": {"S": note.source}} if note.source else {}),
                **({"created": {"BOOL": True}} if note.created else {}),
            },
            "ConditionExpression": (
                "attribute_not_exists(#e) OR #i <> :i OR (#p = :p AND attribute_not_exists(#s) AND "
                f"(#e < :e OR (#e = :e AND ({lacks}))))"
            ),
            "ExpressionAttributeNames": {
                "#e": "epoch",
                "#i": "identity",
                "#p": "pipeline",
                "#s": "stripped",
                "#o": "source",
                **({"#a": "attributes"} if note.source else {}),
            },
            "ExpressionAttributeValues": {
                ":e": {"N": str(note.epoch)},
                ":i": {"S": table.identity},
                ":p": {"S": note.pipeline},
            },
        }
        try:
            self.client.call("PutItem", request)
        except AwsError as e:
            if e.code != "ConditionalCheckFailedException":
                raise failure(e, "PutItem", self.name, place="target") from e
            stored = self.read(table)
            if stored is not None and stored.pipeline != note.pipeline:
                raise ConfigError(taken(table.name, stored, self.name)) from e
            if stored is not None and stored.stripped:
                raise ConfigError(ended(table.name, self.name)) from e

    def end(self, table: Described, pipeline: str) -> None:
        """Note that the table is stripped: no epoch of the pipeline may begin in it, whatever its checkpoints say."""
        note = self.read(table)
        item = {
            "table": {"S": table.name},
            "identity": {"S": table.identity},
            "pipeline": {"S": pipeline},
            "epoch": {"N": str(note.epoch if note is not None else 0)},
            "stripped": {"BOOL": True},
        }
        ask(self.client, "PutItem", {"TableName": self.name, "Item": item}, self.name)


def foreign(epochs_table: str, where: str) -> str:
    """Why a table cannot have notes, and what to do."""
    return (
        f"the table {epochs_table} {where} is not a table of epochs: its key must be table (S). Name another one "
        "(target.epochs_table), in both configs if two pipelines are opposite"
    )


def _list(names: Iterable[str]) -> dict[str, Any]:
    return {"L": [{"S": name} for name in names]}


def _note(response: Mapping[str, Any], identity: str) -> Note | None:
    item = response.get("Item")
    if item is None or item["identity"]["S"] != identity:
        return None
    source = item.get("source", {}).get("S", "")
    attributes = tuple(name["S"] for name in item["attributes"]["L"]) if "attributes" in item else None
    return Note(
        item["pipeline"]["S"],
        int(item["epoch"]["N"]),
        stripped="stripped" in item,
        source=source,
        attributes=attributes,
        created="created" in item,
    )


def ended(table: str, epochs_table: str) -> str:
    """Why the table's own pipeline must not write to it any more."""
    return (
        f"target: replicator strip has removed the versions from {table}, which other writers own now, according to "
        f"the table {epochs_table}: this pipeline would overwrite their changes. To copy the source again, use another "
        "pipeline: name and another target table"
    )


def taken(table: str, note: Note, epochs_table: str) -> str:
    """Why a table must not be written to: its note names another pipeline."""
    return (
        f"the target's table {table} is written by the pipeline {note.pipeline}, according to the table "
        f"{epochs_table}; two copies in one table would overwrite each other. If this config belongs to that pipeline, "
        "correct its pipeline: key; if not, name another table, or delete that item if the other pipeline no longer "
        "exists"
    )


def chained(source: SourceTable, note: Note, epochs_table: str) -> str:
    """Why a table cannot be copied with ``loops``: it is itself a copy, but not of this pipeline's target."""
    return (
        f"the source {source.name} is a copy that the pipeline {note.pipeline} makes of {note.source}, according to "
        f"the table {epochs_table} there. With loops: true whatever a pipeline writes to the source is taken for a "
        f"write of the opposite pipeline and passed over, so the target would miss it. Copy {note.source} itself; if "
        f"that pipeline has ended for good, delete its item {source.name} from {epochs_table}"
    )


log = logging.getLogger("replicator")


@dataclass(slots=True)
class EpochScan:
    """The latest epoch among the versions of a table's items, where no note tells it.

    One scan of the whole table; if an error such as throttling interrupts it, the next call resumes it.
    """

    client: Client
    layout: Layout
    _epoch: int = 0
    _after: dict[str, Any] | None = field(default_factory=dict)  # where to resume; None: at the end

    def __call__(self) -> int:
        """0 if no item has a version. Versions below the first epoch's belong to other tools."""
        if self._after == {}:
            log.info("loading stored versions", extra={"table": self.layout.name, "reason": "no epoch is noted for it"})
        while self._after is not None:
            page = ask(self.client, "Scan", self._request(self._after), self.layout.name)
            versions = [int(Decimal(item[self.layout.version]["N"])) for item in page["Items"]]
            self._epoch = max([self._epoch, *map(epoch_of, versions)])
            self._after = page.get("LastEvaluatedKey")
        return self._epoch

    def _request(self, after: dict[str, Any]) -> dict[str, Any]:
        return {
            "TableName": self.layout.name,
            "ConsistentRead": True,
            "FilterExpression": "#v >= :first",
            "ProjectionExpression": "#v",
            "ExpressionAttributeNames": {"#v": self.layout.version},
            "ExpressionAttributeValues": {":first": {"N": str(version(FIRST_EPOCH, 0))}},
            **({"ExclusiveStartKey": after} if after else {}),
        }
